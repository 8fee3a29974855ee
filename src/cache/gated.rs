//! Decides whether a repo looks gated, by a best-effort reading of its licence files.
//!
//! The text of open licences is ignored (`licenses`). The remaining text is searched for 0.1.0's keywords, such as
//! "agreement", and for the names of well-known model licences that are not open.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::layout::Layout;
use super::licenses;
use crate::model::ids::{RepoName, RepoPath};

/// 0.1.0's keywords. The last word of each is a prefix: "agreement" also matches "agreements", but not "disagreement", and
/// "gated" does not match "aggregated".
const KEYWORDS: [&str; 6] =
    ["agreement", "meta llama", "acceptable use", "community license", "you must accept", "gated"];

/// Model licences that are not open: the words of the name, where `*` is any one word, and the name to display.
const RESTRICTED: [(&str, &str); 55] = [
    ("llama * community license", "the Llama Community License"),
    ("llama * * community license", "the Llama Community License"),
    ("llama community license", "the Llama Community License"),
    ("llama * license agreement", "the Llama license"),
    ("gemma terms of use", "the Gemma Terms of Use"),
    ("gemma prohibited use policy", "the Gemma Prohibited Use Policy"),
    ("tongyi qianwen license", "the Tongyi Qianwen License"),
    ("qianwen license", "the Tongyi Qianwen License"),
    ("qwen license", "the Qwen License"),
    ("qwen research license", "the Qwen Research License"),
    ("deepseek license", "the DeepSeek License"),
    ("deepseek model license", "the DeepSeek License"),
    ("openrail", "an OpenRAIL license"),
    ("open rail", "an OpenRAIL license"),
    ("bigscience rail", "an OpenRAIL license"),
    ("rail license", "a RAIL license"),
    ("responsible ai license", "a RAIL license"),
    ("falcon llm license", "the Falcon LLM License"),
    ("falcon * tii license", "the Falcon LLM License"),
    ("tii falcon", "the Falcon LLM License"),
    ("stability ai community license", "the Stability AI Community License"),
    ("stability ai non commercial", "the Stability AI Non-Commercial License"),
    ("stability ai noncommercial", "the Stability AI Non-Commercial License"),
    ("stability non commercial", "the Stability AI Non-Commercial License"),
    ("stable * research license", "a Stability AI research license"),
    ("flux * non commercial license", "the FLUX Non-Commercial License"),
    ("flux * * non commercial license", "the FLUX Non-Commercial License"),
    ("flux non commercial license", "the FLUX Non-Commercial License"),
    ("nvidia open model license", "the NVIDIA Open Model License"),
    ("nvidia source code license", "the NVIDIA Source Code License"),
    ("nvidia software license", "the NVIDIA Software License"),
    ("nvidia license", "the NVIDIA License"),
    ("mistral ai research license", "the Mistral AI Research License"),
    ("mistral ai non production license", "the Mistral AI Non-Production License"),
    ("hunyuan community license", "the Tencent Hunyuan Community License"),
    ("yi series models community license", "the Yi Community License"),
    ("jamba open model license", "the Jamba Open Model License"),
    ("community license agreement", "a community license"),
    ("falcon * * tii license", "the Falcon LLM License"),
    ("tii license", "the Falcon LLM License"),
    ("creativeml open rail", "an OpenRAIL license"),
    ("responsible ai source code license", "a RAIL license"),
    ("coqui public model license", "the Coqui Public Model License"),
    ("glm license", "the GLM license"),
    ("glm * license", "the GLM license"),
    ("chatglm * license", "the GLM license"),
    ("chatglm2 * license", "the GLM license"),
    ("chatglm3 * license", "the GLM license"),
    ("chatglm license", "the GLM license"),
    ("cogvideox license", "the CogVideoX license"),
    ("cogvlm license", "the CogVLM license"),
    ("minicpm model license", "the MiniCPM Model License"),
    ("health ai developer foundations", "the Health AI Developer Foundations terms"),
    ("lfm open license", "the LFM Open License"),
    ("modified mit license", "a modified MIT license"),
];

/// An open licence: the phrases that identify its standard text, and its sentences that contain a keyword.
struct OpenLicense {
    marks: &'static [&'static str],
    harmless: &'static [&'static str],
}

/// Open licences whose excerpts and old versions are not recognised by their full text. Everything is in lower case,
/// with white space collapsed.
const OPEN_LICENSES: [OpenLicense; 5] = [
    OpenLicense {
        marks: &[
            "apache license",
            "version 2.0, january 2004",
            "terms and conditions for use, reproduction, and distribution",
        ],
        harmless: &["terms of any separate license agreement you may have executed with licensor"],
    },
    OpenLicense {
        marks: &["mozilla public license"],
        harmless: &[
            "all end user license agreements (excluding distributors and resellers)",
            "this license represents the complete agreement concerning",
        ],
    },
    OpenLicense {
        marks: &["gnu", "general public license", "free software foundation"],
        harmless: &[
            "the license agreements of most software companies try to keep users at",
            "this license agreement applies to any",
            "(whether by court order, agreement or otherwise)",
            "a \"patent license\" is any express agreement or commitment, however denominated",
            "to make such an agreement or commitment not to enforce a patent",
        ],
    },
    OpenLicense {
        marks: &["creative commons", "attribution", "licensed material"],
        harmless: &["any arrangements, understandings, or agreements regarding the licensed material"],
    },
    OpenLicense {
        marks: &["creative commons", "attribution", "the work (as defined below)"],
        harmless: &[
            "this license constitutes the entire agreement between the parties",
            "there are no understandings, agreements or representations",
            "mutual written agreement of the licensor and you",
        ],
    },
];

/// Number of words at the start of the remaining text in which a licence's name counts as the title. Further on, it may be a
/// mere mention.
const TITLE_WORDS: usize = 60;

/// Number of bytes that are read from a licence file. A longer one is judged by its beginning.
const MAX_SIZE: u64 = 1 << 20;

/// First words of licence file names.
const NAME_WORDS: [&str; 6] = ["license", "licence", "licenses", "licences", "copying", "unlicense"];
/// Other file names of terms that a user has to accept.
const TERMS_FILE_NAMES: [&str; 6] =
    ["use policy", "acceptable use policy", "prohibited use policy", "terms of use", "terms of service", "terms"];
/// Names of licence folders, in lower case.
const FOLDERS: [&str; 4] = ["license", "licence", "licenses", "licences"];
/// Extensions of text files. A file without an extension counts as text, too.
const TEXT_EXTENSIONS: [&str; 8] = ["md", "txt", "rst", "markdown", "text", "adoc", "html", "htm"];

/// Why a repo looks gated.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Gated {
    /// The licence file.
    pub file: String,
    /// The keyword found in it.
    pub keyword: &'static str,
    /// The licence, if it is a well-known one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<&'static str>,
}

impl Gated {
    /// Describes the finding, as a part of a sentence.
    pub fn why(&self) -> String {
        let Gated { file, keyword, license } = self;
        let file = crate::error::printable(file, 100);
        match license {
            Some(license) => format!("{file} is {license}"),
            None => format!("{file} contains \"{keyword}\""),
        }
    }
}

/// The verdict on a licence text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing in it looks gated. Contains the SPDX names of its open licences, if they had to be determined.
    Open(Vec<&'static str>),
    /// It looks gated. Contains the keyword, and the licence if it is a well-known one.
    Gated(&'static str, Option<&'static str>),
}

/// A path that could not be read, and why.
pub type ReadFailure = (PathBuf, io::Error);

/// An entry of a folder: its name, its path, and whether it is a folder itself.
type Entry = (String, PathBuf, bool);

/// Judges a licence text.
pub fn judge(text: &str) -> Verdict {
    let text = &separate_fields(&strip_tags(text));
    let words = licenses::words(text);
    // Most texts have no such word at all, and the licence texts need not be loaded for them.
    if find_keyword([words.as_slice()]).is_none() && find_name([words.as_slice()], usize::MAX).is_none() {
        return Verdict::Open(Vec::new());
    }
    let mut judgement = licenses::analyze(text);
    if judgement.licenses.is_empty() {
        judgement.rest = vec![licenses::words(&strip_harmless(text))];
    }
    let rest = || judgement.rest.iter().map(Vec::as_slice);
    let keyword = find_keyword(rest());
    match (keyword, find_name(rest(), if keyword.is_some() { usize::MAX } else { TITLE_WORDS })) {
        (None, None) => match find_title(text) {
            Some(name) => Verdict::Gated("license", Some(name)),
            None => Verdict::Open(judgement.licenses),
        },
        (Some(keyword), name) => Verdict::Gated(keyword, name),
        (None, Some(name)) => Verdict::Gated("license", Some(name)),
    }
}

/// Finds the first well-known licence whose name begins a line anywhere in the text.
fn find_title(text: &str) -> Option<&'static str> {
    text.lines().find_map(|line| {
        let words = licenses::words(line);
        let words = words.strip_prefix(&["the".to_string()][..]).unwrap_or(&words);
        find_name([words], 1)
    })
}

/// Inserts a marker before lines with a licence field, so that no phrase spans the end of the previous line and the
/// field.
fn separate_fields(text: &str) -> String {
    let is_field = |line: &str| line.trim_start().starts_with("License:") || line.trim_start().starts_with("Licence:");
    let lines = text.lines().map(|line| if is_field(line) { format!("hfcs {line}") } else { line.to_string() });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the text of an HTML page, and any other text unchanged.
fn strip_tags(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    if !["<html", "<body", "</p>", "</pre>", "</div>", "<br"].iter().any(|tag| lower.contains(tag)) {
        return text.to_string();
    }
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let (front, tag) = rest.split_at(at);
        plain += front;
        let is_tag = tag[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '!');
        match tag.find('>').filter(|_| is_tag) {
            Some(end) => {
                // Inline tags may split a word, as in `<b>L</b>icense`. All others break the line.
                let name = tag[1..].trim_start_matches('/').to_ascii_lowercase();
                let inline = ["a", "b", "i", "em", "strong", "span", "u", "tt", "code", "font", "sup", "sub"];
                let name: String = name.chars().take_while(char::is_ascii_alphanumeric).collect();
                if !inline.contains(&name.as_str()) {
                    plain.push('\n');
                }
                rest = &tag[end + 1..];
            }
            None => {
                plain.push('<');
                rest = &tag[1..];
            }
        }
    }
    plain += rest;
    let entities = [
        ("&nbsp;", " "),
        ("&#160;", " "),
        ("&quot;", "\""),
        ("&ldquo;", "\""),
        ("&rdquo;", "\""),
        ("&apos;", "'"),
        ("&#39;", "'"),
        ("&lsquo;", "'"),
        ("&rsquo;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&copy;", "(c)"),
        ("&ndash;", "-"),
        ("&mdash;", "-"),
        ("&amp;", "&"),
    ];
    entities.iter().fold(plain, |text, (entity, plain)| text.replace(entity, plain))
}

/// Removes harmless sentences with a keyword, if the text has the marks of the open licence that they come from.
fn strip_harmless(text: &str) -> String {
    let mut folded = text.to_lowercase().replace(['“', '”'], "\"");
    folded = folded.split_whitespace().collect::<Vec<_>>().join(" ");
    for license in &OPEN_LICENSES {
        if license.marks.iter().all(|mark| folded.contains(mark)) {
            for sentence in license.harmless {
                // Leaves a word that occurs in no licence, so that no phrase spans the gap.
                folded = folded.replace(sentence, " … hfcs … ");
            }
        }
    }
    folded
}

/// Finds the first keyword in these passages.
fn find_keyword<'a>(passages: impl IntoIterator<Item = &'a [String]> + Clone) -> Option<&'static str> {
    KEYWORDS.into_iter().find(|keyword| {
        let wanted: Vec<&str> = keyword.split(' ').collect();
        let (last, first) = wanted.split_last().expect("it has a word");
        passages.clone().into_iter().any(|words| {
            words.windows(wanted.len()).enumerate().any(|(at, found)| {
                let (end, start) = found.split_last().expect("as many words");
                // "without a written agreement", "no written agreement is required"
                let none = at >= 2 && words[at - 1] == "written" && ["without", "no"].contains(&words[at - 2].as_str());
                !none && end.starts_with(last) && start.iter().zip(first).all(|(found, wanted)| found == wanted)
            })
        })
    })
}

/// Finds the first well-known licence that is named in the first `limit` words of these passages.
fn find_name<'a>(passages: impl IntoIterator<Item = &'a [String]>, limit: usize) -> Option<&'static str> {
    let mut seen = 0;
    for words in passages {
        for at in 0..words.len() {
            if seen >= limit {
                return None;
            }
            seen += 1;
            let fits = |pattern: &str| {
                let mut rest = words[at..].iter();
                pattern
                    .split(' ')
                    .all(|wanted| rest.next().is_some_and(|word| wanted == "*" || american_spelling(word) == wanted))
            };
            if let Some((_, name)) = RESTRICTED.iter().find(|(pattern, _)| fits(pattern)) {
                return Some(name);
            }
        }
    }
    None
}

/// Maps the British spelling of "license" to the American one.
fn american_spelling(word: &str) -> &str {
    if word == "licence" { "license" } else { word }
}

/// Returns whether a file of this name is a licence.
fn is_license_file(name: &str) -> bool {
    let lower = name.to_lowercase();
    let (stem, ending) = match lower.rsplit_once('.') {
        // In `LICENSE-2.0` and `LICENSE.llama`, the part after the dot is a version or a name, not an extension.
        Some((stem, ending)) if TEXT_EXTENSIONS.contains(&ending) => (stem, true),
        _ => (lower.as_str(), !lower.contains('.')),
    };
    let words: Vec<&str> = stem.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let (Some(first), Some(last)) = (words.first(), words.last()) else { return false };
    let phrase = words.join(" ");
    if ending && (TERMS_FILE_NAMES.contains(&phrase.as_str()) || phrase.contains("model license")) {
        return true;
    }
    let is_first = NAME_WORDS.contains(first);
    let known = stem.starts_with("license.") || stem.starts_with("licence.") || stem.starts_with("copying.");
    (is_first && (ending || (known || words.len() <= 3) && !is_binary_name(&lower)))
        || (ending && (NAME_WORDS[..2].contains(last) || phrase.ends_with("license agreement")))
}

/// Returns whether [`check_repo`] judges a repo by this file of a snapshot.
pub fn is_judged_by(path: &RepoPath) -> bool {
    match path.as_str().split_once('/') {
        None => is_license_file(path.as_str()),
        Some((folder, name)) => is_license_folder(folder) && !name.contains('/') && may_be_license(name),
    }
}

fn is_license_folder(name: &str) -> bool {
    FOLDERS.contains(&name.to_ascii_lowercase().as_str())
}

/// Returns whether a file of this name in a licence folder is read.
fn may_be_license(name: &str) -> bool {
    !is_binary_name(&name.to_lowercase()) && !super::junk::is_junk(name)
}

/// Returns whether the extension belongs to other kinds of files, so that this is not a licence.
fn is_binary_name(name: &str) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    [
        "json",
        "bin",
        "onnx",
        "pdf",
        "png",
        "jpg",
        "py",
        "safetensors",
        "gguf",
        "csv",
        "parquet",
        "yaml",
        "yml",
        "pt",
        "zip",
    ]
    .contains(&ending)
}

/// Decodes a text in any of the encodings that licence files use.
fn decode(bytes: &[u8]) -> String {
    let utf16 = |bytes: &[u8], little: bool| {
        let unit = |pair: &[u8; 2]| if little { u16::from_le_bytes(*pair) } else { u16::from_be_bytes(*pair) };
        String::from_utf16_lossy(&bytes.as_chunks().0.iter().map(unit).collect::<Vec<_>>())
    };
    let zeros = |offset: usize| bytes.iter().skip(offset).step_by(2).take(200).filter(|byte| **byte == 0).count();
    let utf32 = |bytes: &[u8], little: bool| {
        let number = |four: &[u8; 4]| if little { u32::from_le_bytes(*four) } else { u32::from_be_bytes(*four) };
        let letter = |four| char::from_u32(number(four)).unwrap_or(char::REPLACEMENT_CHARACTER);
        bytes.as_chunks().0.iter().map(letter).collect()
    };
    match bytes {
        [0xff, 0xfe, 0, 0, rest @ ..] => utf32(rest, true),
        [0, 0, 0xfe, 0xff, rest @ ..] => utf32(rest, false),
        [0xff, 0xfe, rest @ ..] => utf16(rest, true),
        [0xfe, 0xff, rest @ ..] => utf16(rest, false),
        [0xef, 0xbb, 0xbf, rest @ ..] => decode(rest),
        _ if bytes.len() >= 8 && zeros(1) * 10 > bytes.len().div_ceil(2).min(200) * 8 => utf16(bytes, true),
        _ if bytes.len() >= 8 && zeros(0) * 10 > bytes.len().div_ceil(2).min(200) * 8 => utf16(bytes, false),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_string(),
            // A long file may have been cut in the middle of a character.
            Err(error) if error.error_len().is_none() => String::from_utf8_lossy(bytes).into_owned(),
            Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
        },
    }
}

/// Checks the licence files at the root of a snapshot and in its licence folders.
///
/// # Errors
/// The first licence file that cannot be read, since the answer is then unknown.
fn check_snapshot(snapshot: &Path) -> Result<Option<Gated>, ReadFailure> {
    let mut names: Vec<(String, PathBuf)> = Vec::new();
    for (name, path, is_folder) in list_folder(snapshot)? {
        if is_folder && is_license_folder(&name) {
            let inside =
                list_folder(&path)?.into_iter().filter(|(inner, _, is_folder)| !is_folder && may_be_license(inner));
            names.extend(inside.map(|(inner, path, _)| (format!("{name}/{inner}"), path)));
        } else if is_license_file(&name) {
            names.push((name, path));
        }
    }
    names.sort();
    for (file, path) in names {
        let Some(bytes) = read_start(&path).map_err(|error| (path.clone(), error))? else { continue };
        match cached_verdict(&bytes) {
            Verdict::Gated(keyword, license) => return Ok(Some(Gated { file, keyword, license })),
            Verdict::Open(names) if names.is_empty() => tracing::debug!(path = %path.display(), "does not look gated"),
            Verdict::Open(names) => tracing::debug!(path = %path.display(), "is {}, not gated", names.join(" and ")),
        }
    }
    Ok(None)
}

/// Lists a folder. A missing folder is empty.
fn list_folder(folder: &Path) -> Result<Vec<Entry>, ReadFailure> {
    let at = |error| (folder.to_path_buf(), error);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(at)?;
        if let Some(name) = entry.file_name().to_str() {
            found.push((name.to_string(), entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir())));
        }
    }
    Ok(found)
}

/// Reads the beginning of a file; `None` if it is not a regular file or does not exist.
fn read_start(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(super::read::open_quietly(path)?, MAX_SIZE), &mut bytes)?;
    Ok(Some(bytes))
}

/// Judges a file. Caches the verdict, since many repos and snapshots have the same licence files.
fn cached_verdict(bytes: &[u8]) -> Verdict {
    static KNOWN: Mutex<Option<HashMap<[u8; 32], Verdict>>> = Mutex::new(None);
    let hash: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(bytes).into();
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(verdict) = known().get_or_insert_default().get(&hash) {
        return verdict.clone();
    }
    let verdict = judge(&decode(bytes));
    known().get_or_insert_default().insert(hash, verdict.clone());
    verdict
}

/// Checks the licence files of all snapshots of a repo.
///
/// # Errors
/// The path that cannot be read, since the answer is then unknown.
pub fn check_repo(layout: &Layout, repo: &RepoName) -> Result<Option<Gated>, ReadFailure> {
    let folder = layout.repo(repo).join("snapshots");
    let mut snapshots = match list_folder(&folder) {
        Err((_, error)) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        listed => listed?,
    };
    snapshots.sort();
    // Skips stray files such as .DS_Store.
    for (_, path, _) in snapshots.iter().filter(|(name, path, _)| !super::junk::is_junk(name) && path.is_dir()) {
        if let Some(gated) = check_snapshot(path)? {
            return Ok(Some(gated));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gated(text: &str) -> Option<&'static str> {
        match judge(text) {
            Verdict::Gated(keyword, _) => Some(keyword),
            Verdict::Open(_) => None,
        }
    }

    #[test]
    fn recognises_the_files_by_which_a_repo_is_judged() {
        let is_judged_by = |path: &str| is_judged_by(&path.parse().unwrap());
        assert!(["LICENSE", "use_policy.md", "licenses/llama", "LICENSES/x.txt"].into_iter().all(is_judged_by));
        assert!(!["config.json", "a/LICENSE", "licenses/a/b", "licenses/x.json"].into_iter().any(is_judged_by));
    }

    #[test]
    fn keywords_are_found() {
        assert_eq!(gated("META LLAMA 3 COMMUNITY LICENSE AGREEMENT"), Some("agreement"));
        assert_eq!(gated("You\n must  accept this"), Some("you must accept"));
        assert_eq!(gated("This is a gated model"), Some("gated"));
        assert_eq!(gated("Works may be aggregated; you are obligated"), None);
        assert_eq!(gated("In case of a disagreement between the translation and the original"), None);
        assert_eq!(gated("(agreements with others)"), Some("agreement"));
    }

    #[test]
    fn open_licences_are_open_however_they_are_written() {
        let mut texts: Vec<(&str, String)> = licenses::texts().into_iter().collect();
        texts.sort();
        texts.retain(|(_, text)| find_keyword([licenses::words(text).as_slice()]).is_some());
        assert!(texts.len() > 100, "{}", texts.len());
        // Each one takes long without optimisation.
        for (name, text) in texts.into_iter().step_by(5) {
            let wrapped: Vec<String> = text.split(' ').map(String::from).collect();
            let wrapped = wrapped.chunks(9).map(|line| line.join("  ")).collect::<Vec<_>>().join(",\r\n\t * ");
            let text =
                format!("Copyright (c) 2024 Some Agents GmbH, all rights reserved\n\n{}", wrapped.to_uppercase());
            assert_eq!(gated(&text), None, "{name}: {:?}", judge(&text));
        }
    }

    #[test]
    fn additions_and_quotations_still_count() {
        let texts = licenses::texts();
        let apache = &texts["Apache-2.0"];
        assert_eq!(judge(apache), Verdict::Open(vec!["Apache-2.0"]));
        assert_eq!(gated(&format!("{apache}\nYou must accept our terms.")), Some("you must accept"));
        let quoting = format!("Qwen RESEARCH LICENSE AGREEMENT\n\n{apache}");
        assert_eq!(judge(&quoting), Verdict::Gated("agreement", Some("the Qwen Research License")));
        assert_eq!(
            judge("Gemma Terms of Use\n\nUse it well."),
            Verdict::Gated("license", Some("the Gemma Terms of Use"))
        );
        let rail = format!("CreativeML Open RAIL-M\n\n{apache}");
        assert_eq!(judge(&rail), Verdict::Gated("license", Some("an OpenRAIL license")));
        let two = format!("{apache}\n\n-----\n\n{}\nNOTICE\nMade by us.", texts["EPL-2.0"]);
        assert_eq!(gated(&two), None);
        assert_eq!(
            gated("the terms of any separate license agreement you may have executed with licensor"),
            Some("agreement")
        );
    }

    #[test]
    fn an_excerpt_of_an_open_licence_is_open_and_additions_still_count() {
        let apache = "Apache License\n Version 2.0, January 2004\n\
                      TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION\n\
                      nothing herein shall supersede or modify the terms of any\n separate license agreement you may have \
                      executed with Licensor regarding such Contributions.";
        assert_eq!(gated(apache), None);
        assert_eq!(gated(&format!("{apache}\nYou must accept our terms.")), Some("you must accept"));
        assert_eq!(gated("MIT License\nPermission is hereby granted, free of charge"), None);
    }

    #[test]
    fn files_are_licences_by_their_names() {
        for name in [
            "LICENSE",
            "License.txt",
            "LICENCE.md",
            "LICENSE.rst",
            "licence",
            "COPYING",
            "COPYING.LESSER",
            "LICENSE-MODEL",
            "LICENSE_MODEL.txt",
            "MODEL_LICENSE",
            "LICENSE-2.0.txt",
            "LICENSE.llama",
            "USE_POLICY.md",
            "UNLICENSE",
            "Tongyi Qianwen LICENSE AGREEMENT",
            "LICENSE-APACHE",
            "Licenses.md",
            "TERMS_OF_USE.md",
            "ACCEPTABLE_USE_POLICY.md",
            "model_license_agreement.txt",
            "LICENSE (1).txt",
        ] {
            assert!(is_license_file(name), "{name}");
        }
        for name in
            ["license.json", "license_plates.onnx", "config.json", "README.md", "licensed.txt", "licensing.py", "x"]
        {
            assert!(!is_license_file(name), "{name}");
        }
    }

    #[test]
    fn restricted_licences_are_found_by_their_titles() {
        let texts = licenses::texts();
        for title in [
            "DEEPSEEK LICENSE",
            "Gemma Terms of Use",
            "CreativeML Open RAIL-M applies to them.",
            "Falcon Mamba 7B TII License 2.0",
            "Responsible AI Source Code License",
            "# Coqui Public Model License 1.0.0",
            "The glm-4-9b License",
            "The ChatGLM3-6B License",
            "CogVideoX LICENSE",
            "MiniCPM Model License",
            "Health AI Developer Foundations Terms of Use",
            "LFM Open License v1.0",
            "Modified MIT License",
        ] {
            let late = format!("{}\n{}\n{title}\nVersion 1", texts["Apache-2.0"], "filler of the vendor ".repeat(60));
            for text in [title, &late] {
                assert!(matches!(judge(text), Verdict::Gated(_, Some(_))), "{text:.100}: {:?}", judge(text));
            }
        }
    }

    #[test]
    fn permissive_licences_without_an_agreement_are_open() {
        let texts = licenses::texts();
        let apache = texts["Apache-2.0"].replace("License", "<b>License</b>").replace(' ', "&nbsp;");
        for text in [
            "without fee, and without a written agreement is hereby granted",
            "without written agreement and without license or royalty fees",
            "No written agreement, license, or royalty fee is required for any of the authorized uses.",
            "Copyright: 2010 KDE Community\nLicense: BSD-2-clause",
            &format!("<html><body><p>{apache}</p></body></html>"),
        ] {
            assert_eq!(gated(text), None, "{text:.100}");
        }
        assert_eq!(gated("<p>You <b>must</b> accept</p>"), Some("you must accept"));
        assert_eq!(gated("by written agreement with us"), Some("agreement"));
    }

    #[test]
    fn encodings_are_read() {
        let text = "Lizenz für alle: you must accept";
        let units: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        let latin: Vec<u8> = text.chars().map(|c| c as u8).collect();
        for bytes in [
            text.as_bytes().to_vec(),
            [&[0xef, 0xbb, 0xbf], text.as_bytes()].concat(),
            [&[0xff, 0xfe][..], &little].concat(),
            [&[0xfe, 0xff][..], &big].concat(),
            little,
            big,
            latin,
            std::iter::once('\u{feff}').chain(text.chars()).flat_map(|c| u32::from(c).to_le_bytes()).collect(),
            std::iter::once('\u{feff}').chain(text.chars()).flat_map(|c| u32::from(c).to_be_bytes()).collect(),
        ] {
            assert_eq!(decode(&bytes), text, "{bytes:?}");
        }
        for bytes in [&b""[..], b"\0", b"\xff\xfe\0", b"\xef\xbb\xbf", b"\xd8\0\xd8\0\xd8\0\xd8\0\xd8\0"] {
            let _ = judge(&decode(bytes));
        }
    }
}
