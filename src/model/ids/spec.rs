//! Parses repos as people type and paste them: URLs of the Hub, `hf://` paths, cache folders, `org/name@revision`.
//! Pure, except that [`RepoSpec::from_str`] reads `HF_ENDPOINT`.

use std::fmt;
use std::str::FromStr;

use super::{Invalid, RepoName, RepoQuery, RepoType, invalid};
use crate::escape::is_hidden;

/// Hosts whose URLs refer to repos, in addition to that of `HF_ENDPOINT`.
const HOSTS: [&str; 3] = ["huggingface.co", "www.huggingface.co", "hf.co"];
/// Path segments that follow the id in URLs of the Hub, and that a revision follows.
const VIEWS: [&str; 8] = ["tree", "blob", "resolve", "raw", "blame", "edit", "commits", "commit"];
/// Other pages of a repo.
const PAGES: [&str; 6] = ["discussions", "settings", "viewer", "revision", "upload", "new"];
/// Pages of the Hub that are not repos.
const NOT_REPOS: [&str; 14] = [
    "api",
    "docs",
    "blog",
    "papers",
    "collections",
    "settings",
    "login",
    "join",
    "organizations",
    "posts",
    "tasks",
    "pricing",
    "learn",
    "search",
];

/// A repo as typed by the user, with the other details in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoSpec {
    /// The repo.
    pub query: RepoQuery,
    /// The revision in the text.
    pub revision: Option<String>,
    /// The path of a file or folder in the text.
    pub path: Option<String>,
    /// The number of the discussion or pull request, if the text is the URL of its page.
    pub discussion: Option<u64>,
}

impl RepoSpec {
    /// Parses a text. `endpoint` is the URL of a mirror of the Hub.
    ///
    /// # Errors
    /// If the text does not specify a repo.
    pub fn parse(text: &str, endpoint: Option<&str>) -> Result<RepoSpec, Invalid> {
        let trimmed = trim_quotes(text);
        if let Some(c) = trimmed.chars().find(|c| is_hidden(*c) || c.is_control()) {
            return invalid(
                text,
                format!("cannot be used: it contains an invisible character (U+{:04X})", u32::from(c)),
            );
        }
        if let Some(rest) = strip_prefix_ignore_case(trimmed, "hf://") {
            return parse_hf_path(text, rest);
        }
        // The Hub offers `git@hf.co:org/name` for cloning over ssh.
        let ssh = strip_prefix_ignore_case(trimmed, "git@").and_then(|rest| rest.split_once(':'));
        let ssh = ssh.filter(|(host, _)| is_host(host, None)).map(|(_, rest)| rest.to_string());
        if let Some(rest) = ssh {
            return parse_url_path(text, &rest);
        }
        if let Some(rest) =
            strip_prefix_ignore_case(trimmed, "https://").or_else(|| strip_prefix_ignore_case(trimmed, "http://"))
        {
            let rest = cut_at(rest, &['?', '#']);
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority.rsplit('@').next().unwrap_or_default();
            return match below_endpoint(host, path, endpoint) {
                Some(path) => parse_url_path(text, path),
                None => invalid(host, "is not the Hub (huggingface.co, or the host of HF_ENDPOINT): use org/name"),
            };
        }
        let bare = cut_at(trimmed, &['?', '#']);
        if let Some((host, path)) = bare.split_once('/')
            && let Some(path) = below_endpoint(host, path, endpoint)
        {
            return parse_url_path(text, path);
        }
        if let Some(found) = parse_cache_folder(trimmed) {
            return Ok(found);
        }
        // A cache folder followed by `@revision`, as this tool prints revisions.
        if let Some((folder, revision)) = trimmed.rsplit_once('@')
            && let Some(found) = parse_cache_folder(folder).filter(|found| found.revision.is_none())
            && !revision.is_empty()
        {
            return Ok(RepoSpec { revision: Some(revision.to_string()), ..found });
        }
        parse_plain(text, trimmed)
    }

    fn new(query: RepoQuery, revision: Option<String>, path: Option<String>) -> RepoSpec {
        RepoSpec { query, revision, path: path.filter(|path| !path.is_empty()), discussion: None }
    }
}

impl FromStr for RepoSpec {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        RepoSpec::parse(text, std::env::var("HF_ENDPOINT").ok().as_deref())
    }
}

impl fmt::Display for RepoSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.query),
            None => self.query.fmt(f),
        }
    }
}

/// Splits an id pattern into its type and the rest, after removing a URL of the Hub or `hf://` in front.
///
/// # Errors
/// If the type does not exist, or the pattern contains a revision.
pub fn pattern<'a>(text: &'a str, endpoint: Option<&str>) -> Result<(Option<RepoType>, &'a str), String> {
    let mut rest = trim(text);
    let mut url_type = None;
    if let Some(path) = strip_prefix_ignore_case(rest, "hf://") {
        rest = path;
    } else {
        let address = strip_prefix_ignore_case(rest, "https://").or_else(|| strip_prefix_ignore_case(rest, "http://"));
        let (host, path) = address.unwrap_or(rest).split_once('/').unwrap_or_default();
        match below_endpoint(host, path, endpoint) {
            Some(path) => (rest, url_type) = (path, Some(RepoType::Model)),
            None if address.is_some() => return Err("it is not a URL of the Hub".into()),
            None => {}
        }
    }
    rest = rest.trim_end_matches('/');
    if rest.contains('@') {
        return Err("it has a revision, but pull-all only pulls main".into());
    }
    let (mut kind, mut rest) = split_type(rest).map_err(|why| why.to_string())?;
    if let Some((word, id)) = rest.split_once("--")
        && kind.is_none()
        && let Some(found) = type_from_plural(word)
        && !id.contains('/')
        && id.contains("--")
    {
        // A cache folder is not a valid pattern, but its equivalent can be suggested: `models--org--*` is
        // `model:org/*`.
        return Err(format!("it is the name of a cache folder; use {found}:{}", id.replacen("--", "/", 1)));
    }
    if kind.is_none()
        && let Some((word, id)) = rest.split_once('/')
        && let Some(found) = type_from_plural(word)
    {
        (kind, rest) = (Some(found), id);
    }
    Ok((kind.or(url_type), rest))
}

/// Trims white space and zero-width characters, which often come with pasted text.
pub fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || is_hidden(c))
}

/// Like [`trim`], but also removes one pair of quotes around a pasted id.
fn trim_quotes(text: &str) -> &str {
    let text = trim(text);
    let pairs = [('"', '"'), ('\'', '\''), ('`', '`'), ('\u{201c}', '\u{201d}'), ('\u{2018}', '\u{2019}')];
    let inner = pairs.iter().find_map(|(open, close)| text.strip_prefix(*open)?.strip_suffix(*close));
    inner.map_or(text, trim)
}

/// Parses the type of a repo as people write it: `dataset`, `datasets`, `Dataset`.
///
/// # Errors
/// If there is no such type.
pub fn repo_type(text: &str) -> Result<RepoType, Invalid> {
    let lower = trim(text).to_ascii_lowercase();
    type_from_plural(&lower).map_or_else(|| lower.parse(), Ok)
}

fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let front = text.get(..prefix.len())?;
    front.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

fn cut_at<'a>(text: &'a str, ends: &[char]) -> &'a str {
    text.split(ends).next().unwrap_or_default()
}

fn type_from_plural(word: &str) -> Option<RepoType> {
    RepoType::ALL.into_iter().find(|kind| word.strip_suffix('s').is_some_and(|word| word == kind.word()))
}

/// Returns host and path of an endpoint, without its scheme and user.
fn address(endpoint: &str) -> (String, &str) {
    let rest = endpoint.trim().split_once("://").map_or(endpoint.trim(), |(_, rest)| rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit('@').next().unwrap_or_default();
    (host.to_ascii_lowercase(), path.trim_matches('/'))
}

fn is_host(host: &str, endpoint: Option<&str>) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let plain = host.strip_suffix(":443").or_else(|| host.strip_suffix(":80")).unwrap_or(&host);
    let own = endpoint.map(|endpoint| address(endpoint).0).filter(|host| !host.is_empty());
    HOSTS.contains(&plain) || own.is_some_and(|own| own == host || own == plain)
}

/// Returns the path below the Hub's address, if the host is the Hub's.
fn below_endpoint<'a>(host: &str, path: &'a str, endpoint: Option<&str>) -> Option<&'a str> {
    if !is_host(host, endpoint) {
        return None;
    }
    let base = endpoint.map(address).filter(|(own, base)| own == &host.to_ascii_lowercase() && !base.is_empty());
    let below = base.and_then(|(_, base)| path.strip_prefix(base)?.strip_prefix('/'));
    Some(below.unwrap_or(path))
}

fn percent_decode(segment: &str) -> String {
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

/// Parses the path of a URL of the Hub: `org/name/tree/main/sub`.
fn parse_url_path(text: &str, path: &str) -> Result<RepoSpec, Invalid> {
    let segments: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(percent_decode).collect();
    let mut rest: &[String] = &segments;
    let is_api = rest.first().is_some_and(|word| word == "api");
    rest = &rest[usize::from(is_api)..];
    let kind = rest.first().and_then(|word| type_from_plural(word));
    rest = &rest[usize::from(kind.is_some())..];
    let names_page = kind.is_none() && rest.first().is_some_and(|word| NOT_REPOS.contains(&word.as_str()));
    let Some(first) = rest.first().filter(|_| !names_page) else {
        return invalid(text, "is a URL of the Hub, but not of a repo (use org/name)");
    };
    let ends = |word: &str| VIEWS.contains(&word) || PAGES.contains(&word);
    let (id, rest) = match rest.get(1) {
        Some(second) if !ends(second) => (format!("{first}/{second}"), &rest[2..]),
        _ => (first.clone(), &rest[1..]),
    };
    let id = id.strip_suffix(".git").unwrap_or(&id);
    // A URL without a type is that of a model.
    let query = RepoQuery { kind: kind.or(Some(RepoType::Model)), id: id.parse()? };
    let with_revision = rest.first().is_some_and(|word| VIEWS.contains(&word.as_str()) || word == "revision");
    if !with_revision {
        // The URL of the repo itself, or of another of its pages.
        let number = rest.get(1).filter(|_| rest[0] == "discussions").and_then(|number| number.parse().ok());
        return Ok(RepoSpec { discussion: number, ..RepoSpec::new(query, None, None) });
    }
    let (revision, path) = split_revision(&rest[1..]);
    Ok(RepoSpec::new(query, revision, Some(path)))
}

/// Splits off the revision that a path begins with, which may be an unescaped `refs/pr/1`.
fn split_revision(segments: &[String]) -> (Option<String>, String) {
    match segments {
        [refs, kind, name, path @ ..] if refs == "refs" && matches!(kind.as_str(), "pr" | "convert") => {
            (Some(format!("refs/{kind}/{name}")), path.join("/"))
        }
        [revision, path @ ..] => (Some(revision.clone()), path.join("/")),
        [] => (None, String::new()),
    }
}

/// Parses a path of huggingface_hub's file system: `[datasets/]org/name[@revision][/path]`.
fn parse_hf_path(text: &str, path: &str) -> Result<RepoSpec, Invalid> {
    let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let kind = segments.first().and_then(|word| type_from_plural(word));
    let rest = &segments[usize::from(kind.is_some())..];
    // A repo without an organisation has its revision in the first part, or nothing after it.
    let parts = if rest.first().is_some_and(|first| first.contains('@')) { 1 } else { 2.min(rest.len()) };
    if parts == 0 {
        return invalid(text, "does not name a repo (use hf://org/name)");
    }
    let id = rest[..parts].join("/");
    let (id, revision) = match id.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (id.as_str(), None),
    };
    let query = RepoQuery { kind, id: id.parse()? };
    let Some(revision) = revision else { return Ok(RepoSpec::new(query, None, Some(rest[parts..].join("/")))) };
    if revision.is_empty() {
        return invalid(text, "has no revision after its '@'");
    }
    let behind: Vec<String> =
        std::iter::once(percent_decode(revision)).chain(rest[parts..].iter().map(|part| part.to_string())).collect();
    let (revision, path) = split_revision(&behind);
    Ok(RepoSpec::new(query, revision, Some(path)))
}

/// Parses `models--org--name`, alone or in a path, optionally followed by a snapshot or a ref.
fn parse_cache_folder(text: &str) -> Option<RepoSpec> {
    let segments: Vec<&str> = text.split(['/', '\\']).filter(|part| !part.is_empty()).collect();
    let at = segments.iter().position(|part| RepoName::from_folder(part).is_some())?;
    let repo = RepoName::from_folder(segments[at])?;
    let query = RepoQuery { kind: Some(repo.kind), id: repo.id };
    let (revision, path) = match &segments[at + 1..] {
        ["snapshots", commit, path @ ..] => (Some(commit.to_string()), Some(path.join("/"))),
        ["refs", name @ ..] if !name.is_empty() => (Some(name.join("/")), None),
        _ => (None, None),
    };
    Some(RepoSpec::new(query, revision, path))
}

/// Splits off a type before a colon: `dataset:`, `datasets:`.
fn split_type(text: &str) -> Result<(Option<RepoType>, &str), Invalid> {
    let Some((word, rest)) = text.split_once(':') else { return Ok((None, text)) };
    let lower = word.trim().to_ascii_lowercase();
    match type_from_plural(&lower).or_else(|| lower.parse().ok()) {
        Some(kind) => Ok((Some(kind), rest.trim_start())),
        None if word.bytes().all(|byte| byte.is_ascii_alphabetic()) && !word.is_empty() => {
            Err(word.parse::<RepoType>().err().unwrap_or_else(|| Invalid(String::new())))
        }
        None => Ok((None, text)),
    }
}

/// Parses `org/name`, optionally with a type before it and a revision after it.
fn parse_plain(text: &str, trimmed: &str) -> Result<RepoSpec, Invalid> {
    let (id, revision) = match trimmed.split_once('@') {
        Some((id, revision)) => (id, Some(revision.trim())),
        None => (trimmed, None),
    };
    // Tolerates the remains of a URL: a fragment, a query, or a leading slash.
    let id = cut_at(id, &['#', '?']);
    let id = id.strip_prefix('/').filter(|id| id.contains('/') && !id.starts_with('/')).unwrap_or(id);
    let (mut kind, id) = split_type(id)?;
    // Shell completion may add a trailing slash. After a single word, it may mean that the repo's name is missing.
    let shorter = id.trim_end_matches('/');
    let id = if shorter.contains('/') { shorter } else { id };
    let segments: Vec<&str> = id.split('/').collect();
    let singular = |word: &str| RepoType::ALL.into_iter().find(|kind| kind.word() == word);
    let id = match segments.as_slice() {
        [word, rest @ ..] if !rest.is_empty() && kind.is_none() && type_from_plural(word).is_some() => {
            kind = type_from_plural(word);
            rest.join("/")
        }
        [word, org, name] if kind.is_none() && singular(word).is_some() => {
            kind = singular(word);
            format!("{org}/{name}")
        }
        _ => id.to_string(),
    };
    if revision.is_some_and(str::is_empty) {
        return invalid(text, "has no revision after its '@'");
    }
    if let Some((front, tag)) = id.rsplit_once(':')
        && front.parse::<super::RepoId>().is_ok()
    {
        let form = format!("is not a valid repo id: a revision is written {front}@{tag}, or with -r");
        return invalid(text, form);
    }
    let id = match id.parse() {
        Ok(id) => id,
        Err(_) if id.contains('\\') => {
            return invalid(text, "is not a valid repo id: it has a backslash (use org/name)");
        }
        Err(_) if id.ends_with(".git") => id.trim_end_matches(".git").parse()?,
        Err(why) => return Err(why),
    };
    Ok(RepoSpec::new(RepoQuery { kind, id }, revision.map(String::from), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> String {
        match RepoSpec::parse(text, Some("https://me:pw@mirror.corp:8443/hf/")) {
            Ok(typed) => {
                let kind = typed.query.kind.map_or("-", RepoType::word);
                let more = typed.path.map(|path| format!(" ({path})")).unwrap_or_default();
                format!("{kind} {}@{}{more}", typed.query.id, typed.revision.unwrap_or_default())
            }
            Err(why) => format!("no: {why}"),
        }
    }

    #[test]
    fn common_spellings_are_parsed() {
        for (text, meant) in [
            ("org/name", "- org/name@"),
            ("  org/name/ ", "- org/name@"),
            ("gpt2", "- gpt2@"),
            ("dataset:org/name", "dataset org/name@"),
            ("Datasets:org/name", "dataset org/name@"),
            ("datasets/org/name", "dataset org/name@"),
            ("datasets/squad", "dataset squad@"),
            ("dataset/org/name", "dataset org/name@"),
            ("dataset/name", "- dataset/name@"),
            ("models/org/name", "model org/name@"),
            ("models/gpt2", "model gpt2@"),
            ("org/name@main", "- org/name@main"),
            ("dataset:org/name@refs/pr/1", "dataset org/name@refs/pr/1"),
            ("datasets/org/name@v1", "dataset org/name@v1"),
            ("org/name@feature/x", "- org/name@feature/x"),
            ("models--org--name", "model org/name@"),
            ("models--org--name@v1.0", "model org/name@v1.0"),
            ("/c/hub/datasets--org--name@refs/pr/1", "dataset org/name@refs/pr/1"),
            ("\"org/name\"", "- org/name@"),
            ("'datasets/org/name@v1'", "dataset org/name@v1"),
            ("\u{201c}gpt2\u{201d}", "- gpt2@"),
            ("\u{feff}org/name\u{200b}", "- org/name@"),
            ("\u{a0}\u{2060}gpt2@v1\u{200e}", "- gpt2@v1"),
            ("\u{200b}https://huggingface.co/org/name\u{feff}", "model org/name@"),
            ("org/name#x", "- org/name@"),
            ("org/name?library=x", "- org/name@"),
            ("org/name@a#1", "- org/name@a#1"),
            ("/org/name", "- org/name@"),
            ("/datasets/org/name/", "dataset org/name@"),
            ("datasets--squad", "dataset squad@"),
            ("~/.cache/huggingface/hub/models--org--name/snapshots/abc/", "model org/name@abc"),
            ("/c/models--org--name/snapshots/abc/sub/x.bin", "model org/name@abc (sub/x.bin)"),
            ("models--org--name/refs/refs/pr/1", "model org/name@refs/pr/1"),
            ("https://huggingface.co/org/name", "model org/name@"),
            ("HTTPS://HuggingFace.co/org/name/", "model org/name@"),
            ("http://www.huggingface.co/org/name?library=x#y", "model org/name@"),
            ("https://huggingface.co/org/name/tree/main", "model org/name@main"),
            ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1/sub", "model org/name@refs/pr/1 (sub)"),
            ("https://huggingface.co/org/name/tree/refs/pr/1", "model org/name@refs/pr/1"),
            ("https://huggingface.co/org/name/blob/v1/a/b.json", "model org/name@v1 (a/b.json)"),
            ("https://huggingface.co/org/name/resolve/abc/x.bin?download=true", "model org/name@abc (x.bin)"),
            ("https://huggingface.co/org/name/commit/abc", "model org/name@abc"),
            ("https://huggingface.co/org/name/discussions/7", "model org/name@"),
            ("https://huggingface.co/gpt2", "model gpt2@"),
            ("https://huggingface.co/gpt2/tree/main", "model gpt2@main"),
            ("https://huggingface.co/datasets/org/name/viewer/default/train", "dataset org/name@"),
            ("https://huggingface.co/datasets/squad/tree/main", "dataset squad@main"),
            ("https://huggingface.co/spaces/org/app", "space org/app@"),
            ("https://huggingface.co/api/models/org/name/revision/main", "model org/name@main"),
            ("https://user:token@huggingface.co/org/name.git", "model org/name@"),
            ("git@hf.co:datasets/org/name", "dataset org/name@"),
            ("huggingface.co/org/name", "model org/name@"),
            ("hf.co/org/name/tree/main", "model org/name@main"),
            ("hf.co/datasets/org/name", "dataset org/name@"),
            ("https://mirror.corp:8443/hf/org/name/tree/v2", "model org/name@v2"),
            ("mirror.corp:8443/hf/datasets/org/name", "dataset org/name@"),
            ("hf://org/name", "- org/name@"),
            ("hf://org/name@rev/a/b", "- org/name@rev (a/b)"),
            ("hf://datasets/org/name@refs/pr/2/x", "dataset org/name@refs/pr/2 (x)"),
            ("hf://datasets/org/name@refs%2Fconvert%2Fparquet/x", "dataset org/name@refs/convert/parquet (x)"),
            ("hf://gpt2@main/config.json", "- gpt2@main (config.json)"),
            ("HF://spaces/org/app", "space org/app@"),
        ] {
            assert_eq!(read(text), meant, "{text}");
        }
    }

    #[test]
    fn texts_without_a_repo_are_rejected() {
        for text in [
            "",
            "  ",
            "/",
            "org/",
            "a/b/c",
            "org name",
            "org/name@",
            "hf://",
            "hf://datasets",
            "hf://org/name@/x",
            "https://huggingface.co",
            "https://huggingface.co/",
            "https://huggingface.co/datasets",
            "https://huggingface.co/models?search=x",
            "https://huggingface.co/docs/hub",
            "https://github.com/org/name",
            "https://huggingface.co.evil.test/org/name",
            "https://huggingface.co@evil.test/org/name",
            "file:///etc/passwd",
            "planet:org/name",
            "org/name:v1",
            "org\\name",
            "../x",
            "-x/y",
            "//",
            "//org/name",
            "/name",
            "\"",
            "\"\"",
            "\"org/name",
            "#x",
            "models--org--name@",
        ] {
            assert!(read(text).starts_with("no: "), "{text}: {}", read(text));
        }
        assert!(!read("https://u:secret@evil.test/org/name").contains("secret"));
        for text in ["gpt\u{200b}2", "org\u{a0}name", "https://huggingface.co/org/na\u{200b}me", "gpt2@v\u{feff}1"] {
            assert!(read(text).contains("invisible character (U+"), "{text}: {}", read(text));
        }
        assert!(read("org/name:v1").contains("org/name@v1"), "{}", read("org/name:v1"));
    }

    #[test]
    fn patterns_may_start_with_a_url_or_a_type() {
        let read = |text| pattern(text, None);
        assert_eq!(read("org/*"), Ok((None, "org/*")));
        assert_eq!(read("*:x"), Ok((None, "*:x")));
        assert_eq!(read("dataset:org/*"), Ok((Some(RepoType::Dataset), "org/*")));
        assert_eq!(read("datasets/org/*"), Ok((Some(RepoType::Dataset), "org/*")));
        assert_eq!(read("https://huggingface.co/datasets/org/*"), Ok((Some(RepoType::Dataset), "org/*")));
        assert_eq!(read("hf.co/org/name/"), Ok((Some(RepoType::Model), "org/name")));
        assert_eq!(read("hf://spaces/org/[ab]?"), Ok((Some(RepoType::Space), "org/[ab]?")));
        for text in ["planet:x", "org/name@main", "https://github.com/org/*", "models--org--name"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}", front in "(hf://|https://hf.co/|models--|dataset:|)") {
            let _ = RepoSpec::parse(&format!("{front}{text}"), Some("http://127.0.0.1:80/x"));
            let _ = pattern(&format!("{front}{text}"), None);
        }

        #[test]
        fn printed_names_are_parsed(
            id in "[a-z0-9]{1,5}(/[a-z0-9]{1,5})?",
            revision in "[0-9a-f]{12}|main|refs/pr/[0-9]",
            kind in 0..4usize,
        ) {
            let repo = RepoName::new(RepoType::ALL[kind], id.parse().unwrap());
            let typed = RepoSpec::parse(&format!("{repo}@{revision}"), None).unwrap();
            prop_assert!(typed.query.matches(&repo));
            prop_assert_eq!(typed.revision.as_deref(), Some(revision.as_str()));
        }
    }
}
