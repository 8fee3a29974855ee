//! Does a repo look gated? A best-effort reading of its licence files.
//!
//! What is part of an open licence's text is none of it (`licenses`); in the rest, 0.1.0's keywords count, such
//! as "agreement", and the names of the well-known licences of models that are not open.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::licenses;

/// 0.1.0's keywords, the last word by its beginning: also "agreements", but neither "aggregated" nor "disagreement".
const KEYWORDS: [&str; 6] =
    ["agreement", "meta llama", "acceptable use", "community license", "you must accept", "gated"];

/// Licences of models that are not open: words that name one, and its name for people. `*` is any one word.
const RESTRICTED: [(&str, &str); 38] = [
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
];

/// An open licence: how its standard text is recognised, and its sentences that contain a keyword.
struct OpenLicense {
    marks: &'static [&'static str],
    harmless: &'static [&'static str],
}

/// For excerpts and old versions that are not recognised by their text. All in lower case, white space folded.
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

/// Words at the beginning of what is no open licence in which a name is a title, and not only mentioned.
const TITLE: usize = 60;

/// Longest licence file that is read, in bytes; a longer one is judged by its beginning.
const MAX_SIZE: u64 = 1 << 20;

/// Words at the beginning of a licence file's name.
const FIRST: [&str; 6] = ["license", "licence", "licenses", "licences", "copying", "unlicense"];
/// Endings of texts; a file without one is a text too.
const ENDINGS: [&str; 8] = ["md", "txt", "rst", "markdown", "text", "adoc", "html", "htm"];

/// Why a repo looks gated.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Gated {
    /// The licence file.
    pub file: String,
    /// The keyword found in it.
    pub keyword: &'static str,
    /// The licence, where it is a well-known one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<&'static str>,
}

impl Gated {
    /// What was found, for a sentence.
    pub fn why(&self) -> String {
        let Gated { file, keyword, license } = self;
        let file = crate::error::printable(file, 100);
        match license {
            Some(license) => format!("{file} is {license}"),
            None => format!("{file} contains \"{keyword}\""),
        }
    }
}

/// What a licence text says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing in it looks gated; the SPDX names of the open licences that it is made of, where they had to be found.
    Open(Vec<&'static str>),
    /// It looks gated: the keyword, and the licence where it is a well-known one.
    Gated(&'static str, Option<&'static str>),
}

/// Judges a licence text.
pub fn judge(text: &str) -> Verdict {
    let words = licenses::words(text);
    // Most texts have no such word at all. Then no licence needs to be known.
    if keyword_in([words.as_slice()]).is_none() && name_in([words.as_slice()], usize::MAX).is_none() {
        return Verdict::Open(Vec::new());
    }
    let mut judgement = licenses::judge(text);
    if judgement.licenses.is_empty() {
        judgement.rest = vec![licenses::words(&without_harmless(text))];
    }
    let rest = || judgement.rest.iter().map(Vec::as_slice);
    let keyword = keyword_in(rest());
    match (keyword, name_in(rest(), if keyword.is_some() { usize::MAX } else { TITLE })) {
        (None, None) => Verdict::Open(judgement.licenses),
        (Some(keyword), name) => Verdict::Gated(keyword, name),
        (None, Some(name)) => Verdict::Gated("license", Some(name)),
    }
}

/// A text without the sentences of open licences that have a keyword, where one of these is named in it.
fn without_harmless(text: &str) -> String {
    let mut folded = text.to_lowercase().replace(['“', '”'], "\"");
    folded = folded.split_whitespace().collect::<Vec<_>>().join(" ");
    for license in &OPEN_LICENSES {
        if license.marks.iter().all(|mark| folded.contains(mark)) {
            for sentence in license.harmless {
                // A word that no licence has stays in its place, so that no phrase forms across it.
                folded = folded.replace(sentence, " … hfcs … ");
            }
        }
    }
    folded
}

/// The first keyword in these passages.
fn keyword_in<'a>(passages: impl IntoIterator<Item = &'a [String]> + Clone) -> Option<&'static str> {
    KEYWORDS.into_iter().find(|keyword| {
        let wanted: Vec<&str> = keyword.split(' ').collect();
        let (last, first) = wanted.split_last().expect("it has a word");
        passages.clone().into_iter().any(|words| {
            words.windows(wanted.len()).any(|found| {
                let (end, start) = found.split_last().expect("as many words");
                end.starts_with(last) && start.iter().zip(first).all(|(found, wanted)| found == wanted)
            })
        })
    })
}

/// The first well-known licence that is named in the first words of these passages.
fn name_in<'a>(passages: impl IntoIterator<Item = &'a [String]>, most: usize) -> Option<&'static str> {
    let mut seen = 0;
    for words in passages {
        for at in 0..words.len() {
            if seen >= most {
                return None;
            }
            seen += 1;
            let fits = |pattern: &str| {
                let mut rest = words[at..].iter();
                pattern
                    .split(' ')
                    .all(|wanted| rest.next().is_some_and(|word| wanted == "*" || spelled(word) == wanted))
            };
            if let Some((_, name)) = RESTRICTED.iter().find(|(pattern, _)| fits(pattern)) {
                return Some(name);
            }
        }
    }
    None
}

/// British spelling is the same name.
fn spelled(word: &str) -> &str {
    if word == "licence" { "license" } else { word }
}

/// Whether a file of this name is a licence.
fn is_license_file(name: &str) -> bool {
    let lower = name.to_lowercase();
    if lower == "use_policy.md" || lower == "use_policy.txt" || lower == "use_policy" {
        return true;
    }
    let (stem, ending) = match lower.rsplit_once('.') {
        // `LICENSE-2.0`, `LICENSE.llama`: a version or a name, no kind of file.
        Some((stem, ending)) if ENDINGS.contains(&ending) => (stem, true),
        _ => (lower.as_str(), !lower.contains('.')),
    };
    let words: Vec<&str> = stem.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let (Some(first), Some(last)) = (words.first(), words.last()) else { return false };
    let is_first = FIRST.contains(first);
    let known = stem.starts_with("license.") || stem.starts_with("licence.") || stem.starts_with("copying.");
    (is_first && (ending || (known || words.len() <= 3) && !binary(&lower)))
        || (ending && (FIRST[..2].contains(last) || stem.ends_with("license agreement")))
}

/// Endings that files of a repo have and licences have not.
fn binary(name: &str) -> bool {
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

/// A text in the encodings in which licence files are found.
fn decoded(bytes: &[u8]) -> String {
    let utf16 = |bytes: &[u8], little: bool| {
        let unit = |pair: &[u8; 2]| if little { u16::from_le_bytes(*pair) } else { u16::from_be_bytes(*pair) };
        String::from_utf16_lossy(&bytes.as_chunks().0.iter().map(unit).collect::<Vec<_>>())
    };
    let zeros = |offset: usize| bytes.iter().skip(offset).step_by(2).take(200).filter(|byte| **byte == 0).count();
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, true),
        [0xfe, 0xff, rest @ ..] => utf16(rest, false),
        [0xef, 0xbb, 0xbf, rest @ ..] => decoded(rest),
        _ if bytes.len() >= 8 && zeros(1) * 10 > bytes.len().div_ceil(2).min(200) * 8 => utf16(bytes, true),
        _ if bytes.len() >= 8 && zeros(0) * 10 > bytes.len().div_ceil(2).min(200) * 8 => utf16(bytes, false),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_string(),
            // The end of a long file may be in the middle of a character.
            Err(error) if error.error_len().is_none() => String::from_utf8_lossy(bytes).into_owned(),
            Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
        },
    }
}

/// Reads the licence files at the root of one snapshot.
///
/// # Errors
/// When a licence file is there and cannot be read: then nobody knows.
pub fn look(snapshot: &Path) -> io::Result<Option<Gated>> {
    let mut names: Vec<(String, PathBuf)> = Vec::new();
    let entries = match std::fs::read_dir(snapshot) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str().filter(|name| is_license_file(name)) {
            names.push((name.to_string(), entry.path()));
        }
    }
    names.sort();
    for (file, path) in names {
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(super::read::open_quietly(&path)?, MAX_SIZE), &mut bytes)?;
        match remembered(&bytes) {
            Verdict::Gated(keyword, license) => return Ok(Some(Gated { file, keyword, license })),
            Verdict::Open(names) if names.is_empty() => tracing::debug!(path = %path.display(), "does not look gated"),
            Verdict::Open(names) => tracing::debug!(path = %path.display(), "is {}, not gated", names.join(" and ")),
        }
    }
    Ok(None)
}

/// Judges a file, or remembers what the same bytes were in another repo or snapshot.
fn remembered(bytes: &[u8]) -> Verdict {
    static KNOWN: Mutex<Option<HashMap<[u8; 32], Verdict>>> = Mutex::new(None);
    let hash: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(bytes).into();
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(verdict) = known().get_or_insert_default().get(&hash) {
        return verdict.clone();
    }
    let verdict = judge(&decoded(bytes));
    known().get_or_insert_default().insert(hash, verdict.clone());
    verdict
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
        texts.retain(|(_, text)| keyword_in([licenses::words(text).as_slice()]).is_some());
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
        ] {
            assert_eq!(decoded(&bytes), text, "{bytes:?}");
        }
        for bytes in [&b""[..], b"\0", b"\xff\xfe\0", b"\xef\xbb\xbf", b"\xd8\0\xd8\0\xd8\0\xd8\0\xd8\0"] {
            let _ = judge(&decoded(bytes));
        }
    }
}
