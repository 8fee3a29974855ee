//! Entry points for fuzzing: each takes any bytes as one kind of input from outside, and panics if what comes of it breaks
//! a promise. `fuzz/` calls them with cargo-fuzz; the tests below do with arbitrary and with almost valid input.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::bucket::{self, keys};
use crate::commands::serve;
use crate::config::{Config, Environment, FILE_NAME, Overrides};
use crate::error::Error;
use crate::escape::{Keep, escape, escape_json};
use crate::model::ids::{Commit, RefName, RepoId, RepoName, RepoPath, RepoSpec};
use crate::model::manifest::Manifest;
use crate::model::tree::Tree;

/// A word that never may be shown if it is in a secret.
pub const SECRET: &str = "hf_SECRET";

/// Asserts that a relative path stays below a folder.
fn assert_inside(path: &str) {
    if cfg!(windows) && path.contains(':') {
        // Windows cannot store it, so it is never joined to a folder there.
        return;
    }
    let base = Path::new("/base");
    let joined = base.join(path);
    assert!(joined.starts_with(base) && joined != base, "{path:?}");
    assert!(joined.components().all(|part| part != Component::ParentDir && part != Component::CurDir), "{path:?}");
    assert!(!path.contains(['\0', '\\', '\n']), "{path:?}");
}

fn assert_sound(manifest: &Manifest) {
    let json = manifest.to_json();
    assert!(json.is_ascii() && !json.ends_with(b"\n"));
    assert_eq!(Manifest::parse(&json).as_ref(), Ok(manifest), "it is read back");
    assert!(!manifest.files().is_empty());
    manifest.files().iter().for_each(|file| assert_inside(file.path.as_str()));
    assert!(manifest.files().is_sorted_by(|a, b| a.path < b.path), "sorted, and no path comes twice");
    assert!(manifest.total_size() >= manifest.files().iter().map(|file| file.size).max().unwrap_or_default());
    assert_eq!(manifest.merge(manifest).ok().as_ref(), Some(manifest), "merging it with itself changes nothing");
    let key = keys::manifest(&manifest.repo().id, manifest.revision());
    let encoded = keys::encoded(&manifest.repo().id);
    assert_eq!(keys::parse_manifest(&key), Some((encoded.as_str(), manifest.revision().clone())));
    assert!(keys::possible_ids(&encoded).contains(&manifest.repo().id));
    let folder = manifest.repo().folder();
    assert_eq!(RepoName::from_folder(&folder).as_ref(), Some(manifest.repo()));
    assert_inside(&folder);
    if let Some(tree) = manifest.tree() {
        assert_tree(tree);
        assert!(tree.is_harmless());
    }
}

fn assert_tree(tree: &Tree) {
    let again = Tree::parse(&tree.to_json()).expect("it is read back").expect("in the same format");
    assert_eq!(again, *tree);
    tree.entries().for_each(|(path, _)| assert_inside(path.as_str()));
    if tree.is_harmless() {
        for path in tree.unportable_paths() {
            assert_inside(&path.replace('\\', "/").replace(|c: char| c.is_control(), "_"));
            assert!(!path.starts_with(['/', '\\']));
        }
    }
}

/// A manifest from a bucket, for readers and for deletions.
pub fn manifest(data: &[u8]) {
    let parsed = Manifest::parse(data);
    if let Ok(manifest) = &parsed {
        assert_sound(manifest);
        let key = keys::manifest(&manifest.repo().id, manifest.revision());
        if let Ok(needs) = bucket::census::needs(&key, data) {
            assert_eq!(needs.blobs, manifest.blobs(), "what is needed is never less than what is named");
        }
    } else {
        assert!(bucket::census::needs("manifests/x", data).is_err(), "what is not understood is a problem");
    }
}

/// A tree in a cache.
pub fn tree(data: &[u8]) {
    if let Ok(Some(tree)) = Tree::parse(data) {
        assert_tree(&tree);
    }
}

/// The content of a ref, and the name of one.
pub fn reference(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(commit) = text.trim().parse::<Commit>() {
        assert!(commit.as_str().len() == 40 && commit.as_str().bytes().all(|b| b.is_ascii_hexdigit()));
        assert_inside(commit.as_str());
    }
    if let Ok(name) = text.parse::<RefName>() {
        assert_inside(name.as_str());
        let id: RepoId = "org/name".parse().expect("valid");
        let key = keys::old_ref(&id, &name);
        let Some(keys::RefKey::Old(encoded, parsed)) = keys::parse_ref(&key) else {
            panic!("{name} makes no key");
        };
        assert_eq!((encoded, parsed), ("org__name", name));
    }
}

/// A key in a bucket.
pub fn key(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(blob) = keys::parse_blob(&text) {
        assert_eq!(keys::blob(&blob), text);
    }
    if let Some((encoded, commit)) = keys::parse_manifest(&text) {
        assert_eq!(keys::manifest_of(encoded, &commit), text);
        for id in keys::possible_ids(encoded) {
            assert_eq!(keys::encoded(&id), encoded);
        }
        if let Some(id) = keys::plain_id(encoded) {
            assert!(keys::possible_ids(encoded).contains(&id));
        }
    }
    match keys::parse_ref(&text) {
        Some(keys::RefKey::Old(encoded, name)) => {
            assert_eq!(format!("{}{encoded}/{name}", keys::REFS), text);
            assert_inside(name.as_str());
            let _ = keys::may_be_of_other_team(encoded, &name);
        }
        Some(keys::RefKey::New(repo, name)) => {
            assert_eq!(keys::new_ref(&repo, &name), text);
            assert_inside(&repo.folder());
        }
        None => {}
    }
}

/// A response of a store, in XML.
pub fn answer(data: &[u8]) {
    bucket::parse_any_answer(data);
}

/// The notice of a push or a deletion.
pub fn notice(data: &[u8]) {
    let Some(subject) = bucket::notices::Subject::parse(data) else { return };
    assert_eq!(bucket::notices::Subject::parse(&subject.to_json()), Some(subject));
}

/// The front matter of a README.
pub fn card(data: &[u8]) {
    let card = crate::commands::serve::card::front_matter(&format!("---\n{}\n---\n", String::from_utf8_lossy(data)));
    let text = serde_json::to_vec(&card).expect("a card is plain data");
    assert!(text.len() <= 64 * (data.len() + 64), "{} bytes became {}", data.len(), text.len());
}

/// A listing of the Hub.
#[cfg(feature = "fallback")]
pub fn hub_listing(data: &[u8]) {
    let Ok(entries) = serde_json::from_slice(data) else { return };
    let repo = RepoName::new(crate::model::ids::RepoType::Model, "org/name".parse().expect("valid"));
    let commit: Commit = "0123456789abcdef0123456789abcdef01234567".parse().expect("valid");
    if let Ok(manifest) = crate::hub::listing::manifest(repo.clone(), commit.clone(), entries) {
        assert_sound(&manifest);
        assert_eq!((manifest.repo(), manifest.revision()), (&repo, &commit));
    }
}

/// A request to `serve`: the path, and after a line break the query.
pub fn url(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (path, query) = text.split_once('\n').unwrap_or((&text, ""));
    use serve::route::Route;
    match serve::route::parse(path, query) {
        Ok(Route::File { path, query, .. } | Route::Raw { path, query, .. }) => {
            assert_inside(path.as_str());
            assert!(query.id.as_str().parse::<RepoId>().is_ok());
        }
        Ok(Route::Tree { folder: Some(folder), .. }) => assert_inside(folder.as_str()),
        Ok(_) | Err(_) => {}
    }
}

/// The header `Range`: the size of the file in eight bytes, and the header's value.
pub fn range(data: &[u8]) {
    let Some((size, header)) = data.split_first_chunk::<8>() else { return };
    let (size, header) = (u64::from_le_bytes(*size), String::from_utf8_lossy(header));
    if let serve::range::Requested::Part { bytes, is_rest } = serve::range::parse(Some(&header), size) {
        assert!(bytes.start < bytes.end && bytes.end <= size, "{header} of {size}: {bytes:?}");
        assert!(!is_rest || bytes.end == size);
    }
}

/// The configuration, which is written to this folder.
pub fn settings(folder: &Path, data: &[u8]) {
    std::fs::write(folder.join(FILE_NAME), data).expect("the folder can be written to");
    let var = |_: &str| None;
    let env = Environment { var: &var, home: Some(folder.into()), current: folder.into() };
    let shown = match Config::load(&Overrides::default(), &env) {
        Ok(config) => {
            assert!(config.team.prefix.is_empty() || config.team.prefix.ends_with('/'));
            [config.warnings.join("\n"), config.notes.join("\n"), format!("{config:?}")].join("\n")
        }
        Err(error) => {
            assert_eq!(error.kind(), crate::error::Kind::Usage);
            assert_printed(&error.to_string());
            error.to_string()
        }
    };
    let text = String::from_utf8_lossy(data);
    let is_secret = |line: &str| line.trim_start().starts_with("secret_key:") && line.contains(SECRET);
    let elsewhere = text.lines().filter(|line| !is_secret(line)).any(|line| line.contains(SECRET));
    assert!(elsewhere || !shown.contains(SECRET), "{shown}");
}

/// A repo as users and other programs write it.
pub fn spec(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for endpoint in [None, Some("https://mirror.example/hub")] {
        match RepoSpec::parse(&text, endpoint) {
            Ok(spec) => assert!(spec.query.id.as_str().parse::<RepoId>().is_ok()),
            Err(why) => assert_printed(&Error::usage(why.to_string()).to_string()),
        }
    }
    if let Ok(path) = text.parse::<RepoPath>() {
        assert_inside(path.as_str());
    }
    let _ = crate::model::glob::Glob::parse(&text).map(|glob| glob.matches(&text));
}

/// Text that is printed.
pub fn text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for keep in [Keep::Nothing, Keep::Lines, Keep::LinesAndColours] {
        let shown = escape(&text, keep);
        assert_eq!(escape(&shown, keep), shown, "what is safe stays as it is");
    }
    assert_printed(&escape(&text, Keep::Lines));
    assert_printed(&crate::error::printable(&text, 200));
    assert_printed(&crate::error::shown(&PathBuf::from(&*text)));
    assert_printed(&Error::failed(&*text).because(&*text).hint(&*text).to_string());
    let json = serde_json::to_string(&Value::from(&*text)).expect("text is plain data");
    let safe = escape_json(json);
    assert_printed(&safe);
    assert_eq!(serde_json::from_str::<String>(&safe).ok().as_deref(), Some(&*text), "the same text for programs");
}

/// Asserts that nothing in the text controls a terminal, changes the direction of what is around it, or is invisible. This
/// does not use the tables of [`crate::escape`].
fn assert_printed(text: &str) {
    let is_bad = |c: char| {
        let code = u32::from(c);
        (c.is_control() && c != '\n' && c != '\t')
            // Directions and their marks.
            || matches!(code, 0x61c | 0x200e | 0x200f | 0x202a..=0x202e | 0x2066..=0x2069)
            // Joiners, separators, spaces of other widths, soft hyphens, byte order marks, tags, private use.
            || matches!(code, 0xad | 0x200b..=0x200d | 0x2028 | 0x2029 | 0x2060..=0x2064 | 0xfeff | 0xfff9..=0xfffb)
            || matches!(code, 0xe0000..=0xe007f | 0xe000..=0xf8ff | 0xf0000..=0x10ffff)
            || (c.is_whitespace() && !matches!(c, ' ' | '\n' | '\t'))
    };
    assert!(!text.contains(is_bad), "{text:?}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    const SHA1: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    const SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    /// Generates names that are good, or bad in a way that has mattered somewhere.
    fn any_name() -> impl Strategy<Value = String> {
        let known = [
            "",
            ".",
            "..",
            "../x",
            "/x",
            "a",
            "b",
            "a/b",
            "a/b/c",
            "a//b",
            "a/",
            "a\\b",
            "..\\x",
            "c:\\x",
            "a:b",
            "con",
            "a\0",
            "a\n",
            "\u{1b}[31m",
            "\u{202e}x",
            "\u{feff}",
            "é",
            "e\u{301}",
            "😀",
            "a__b",
            "a___b",
            "a--b",
            "-a",
            ".git",
            "x.lock",
            "a@{1}",
            "main",
            "refs/pr/1",
            "HEAD",
            "org/name",
            "a..b",
            " a",
            "a ",
            "%2e%2e",
            "a%2Fb",
            SHA1,
            SHA256,
            "0123456789abcdef0123456789abcdef01234567",
        ];
        prop_oneof![
            6 => prop::sample::select(known.to_vec()).prop_map(String::from),
            2 => "[a-c/._\\-@:]{0,8}",
            1 => any::<String>(),
        ]
    }

    fn any_number() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::from(6)),
            Just(Value::from(0)),
            Just(Value::from(-1)),
            Just(Value::from(1.5)),
            Just(Value::from(u64::MAX)),
            Just(Value::from(u64::MAX - 5)),
            Just(Value::from(1u64 << 63)),
            any::<u64>().prop_map(Value::from),
        ]
    }

    /// Generates any JSON value.
    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any_number(),
            any_name().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any_name(), inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    /// Generates an object with these keys. Usually each has a good value, sometimes any other or none; a few keys are added.
    fn object(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
        let fields: Vec<_> = fields
            .into_iter()
            .map(|(name, good)| {
                let value = prop_oneof![
                    30 => good.prop_map(Some), 1 => any_value().prop_map(Some), 1 => Just(None),
                ];
                value.prop_map(move |value| Some((name.to_string(), value?)))
            })
            .collect();
        let more = prop::option::weighted(0.1, (any_name(), any_value()));
        (fields, more)
            .prop_map(|(fields, more)| Value::Object(fields.into_iter().flatten().chain(more).collect()))
            .boxed()
    }

    fn texts(good: &[&'static str]) -> BoxedStrategy<Value> {
        prop::sample::select(good.to_vec()).prop_map(Value::from).boxed()
    }

    fn paths() -> BoxedStrategy<Value> {
        prop_oneof![8 => "[a-z]{1,3}(/[a-z]{1,3}){0,2}", 1 => any_name()].prop_map(Value::from).boxed()
    }

    fn sizes() -> BoxedStrategy<Value> {
        prop_oneof![20 => Just(Value::from(6)), 1 => any_number()].boxed()
    }

    fn any_tree() -> BoxedStrategy<Value> {
        let entry = object(vec![
            ("size", sizes()),
            ("blob_id", texts(&[SHA1])),
            ("lfs_sha256", texts(&[SHA256])),
            ("lfs_size", sizes()),
            ("xet_hash", texts(&[SHA256])),
        ]);
        let path = prop_oneof![8 => "[a-z]{1,3}(/[a-z]{1,3}){0,2}", 1 => any_name()];
        let files =
            prop::collection::vec((path, entry), 0..5).prop_map(|pairs| Value::Object(pairs.into_iter().collect()));
        object(vec![("format_version", Just(Value::from(1)).boxed()), ("files", files.boxed())])
    }

    fn any_manifest() -> BoxedStrategy<Value> {
        let file = object(vec![("path", paths()), ("blob", texts(&[SHA1, SHA256])), ("size", sizes())]);
        let files = prop::collection::vec(file, 1..6).prop_map(Value::from).boxed();
        let tree = prop_oneof![2 => Just(Value::Null), 1 => any_tree()].boxed();
        object(vec![
            ("repo", texts(&["org/name", "gpt2", "a_/b", "a/_b"])),
            ("revision", texts(&["0123456789abcdef0123456789abcdef01234567"])),
            ("repo_type", texts(&["model", "dataset", "space", "kernel"])),
            ("files", files),
            ("tree", tree.clone()),
            ("unportable_tree", tree),
        ])
    }

    fn any_listing() -> BoxedStrategy<Value> {
        let lfs = object(vec![("oid", texts(&[SHA256])), ("size", sizes()), ("pointerSize", sizes())]);
        let lfs = prop_oneof![1 => Just(Value::Null), 1 => lfs].boxed();
        let entry = object(vec![
            ("type", texts(&["file", "directory"])),
            ("path", paths()),
            ("oid", texts(&[SHA1])),
            ("size", sizes()),
            ("lfs", lfs),
            ("xetHash", texts(&[SHA256])),
        ]);
        prop::collection::vec(entry, 0..6).prop_map(Value::from).boxed()
    }

    /// Generates a document with a few bytes changed, cut out, or repeated.
    fn damaged(text: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<u8>> {
        let edit = (any::<prop::sample::Index>(), 0usize..6, any::<u8>());
        (text, prop::collection::vec(edit, 0..4)).prop_map(|(text, edits)| {
            let mut bytes = text.into_bytes();
            for (at, kind, byte) in edits {
                if bytes.is_empty() {
                    break;
                }
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes.truncate(at),
                    2 => drop(bytes.drain(at..(at + 1 + usize::from(byte) % 8).min(bytes.len()))),
                    3 => bytes.insert(at, byte),
                    4 => {
                        let part = bytes[at..(at + usize::from(byte)).min(bytes.len())].to_vec();
                        bytes.splice(at..at, part);
                    }
                    _ => bytes[at] ^= 0x20,
                }
            }
            bytes
        })
    }

    fn any_xml() -> impl Strategy<Value = String> {
        let key = prop_oneof![Just(format!("blobs/{SHA1}")), any_name()];
        let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
        let entry = (key, any_number(), 0usize..5).prop_map(move |(key, size, kind)| {
            let name = ["Contents", "Part", "Upload", "Deleted", "CommonPrefixes"][kind];
            format!(
                "<{name}><Key>{}</Key><Size>{size}</Size><ETag>&quot;x&quot;</ETag><PartNumber>{size}</PartNumber>\
                 <UploadId>u</UploadId><LastModified>2026-01-02T03:04:05.000Z</LastModified></{name}>",
                escaped(&key)
            )
        });
        let root = prop::sample::select(vec![
            "ListBucketResult",
            "ListPartsResult",
            "ListMultipartUploadsResult",
            "DeleteResult",
            "VersioningConfiguration",
            "Error",
        ]);
        let truncated = prop::sample::select(vec!["true", "false", "", "1"]);
        (root, prop::collection::vec(entry, 0..4), truncated, 0u64..5, any_name()).prop_map(
            move |(root, entries, truncated, count, token)| {
                let token = escaped(&token);
                format!(
                    "<?xml version=\"1.0\"?><{root}><IsTruncated>{truncated}</IsTruncated><KeyCount>{count}</KeyCount>\
                     <NextContinuationToken>{token}</NextContinuationToken><NextKeyMarker>{token}</NextKeyMarker>{}</{root}>",
                    entries.concat()
                )
            },
        )
    }

    fn any_yaml() -> impl Strategy<Value = String> {
        let value = prop_oneof![
            4 => any_name(),
            1 => Just("true".to_string()), 1 => Just("1.5".into()), 1 => Just("[a, b]".into()), 1 => Just("{a: b}".into()),
            1 => Just("&x [*x]".into()), 1 => Just("!!binary abc".into()), 1 => Just("|\n    text".into()),
            1 => Just("\"\\u001b[31m\"".into()), 1 => Just("1e309".into()), 1 => Just(".nan".into()),
        ];
        let secret = prop::sample::select(vec![
            SECRET.to_string(),
            format!("\"{SECRET}\""),
            format!("[{SECRET}]"),
            format!("{{{SECRET}: 1}}"),
            format!("'{SECRET}"),
            format!("\"{SECRET}\\q\""),
            format!("!{SECRET} x"),
            format!("&{SECRET} *{SECRET}"),
            format!("{SECRET}: x"),
            format!("- {SECRET}"),
            format!("@{SECRET}"),
            format!("%{SECRET}"),
            format!("*{SECRET}"),
        ]);
        let key = prop::sample::select(vec![
            "endpoint",
            "bucket",
            "region",
            "access_key",
            "prefix",
            "max_local_gb",
            "hf_cache_dir",
            "keep",
            "allow_gated",
            "addressing",
            "checksums",
            "storage_class",
            "proxy",
            "<<",
            "other",
        ]);
        let line = prop_oneof![
            5 => (key, value).prop_map(|(key, value)| format!("  {key}: {value}\n")),
            1 => secret.prop_map(|value| format!("  secret_key: {value}\n")),
        ];
        let section =
            prop::sample::select(vec!["storage:\n", "cache:\n", "team:\n", "hub:\n", "other:\n", "- a\n", ""]);
        prop::collection::vec((section, prop::collection::vec(line, 0..4)), 0..4).prop_map(|sections| {
            sections.into_iter().map(|(section, lines)| section.to_string() + &lines.concat()).collect()
        })
    }

    fn any_url() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            prop::sample::select(vec![
                "api",
                "models",
                "datasets",
                "resolve",
                "raw",
                "tree",
                "revision",
                "main",
                "refs",
                "pr",
                "1",
                "org",
                "name",
                "paths-info",
                "whoami-v2",
                "auth-check",
                "%2e%2e",
                "..",
                "%2f",
                "%5c",
                "%00",
                "%ff",
                "%",
                "",
                "gpt2",
            ])
            .prop_map(String::from),
            any_name(),
        ];
        (prop::collection::vec(part, 0..9), any_name())
            .prop_map(|(parts, query)| format!("/{}\n{query}=true&recursive=1", parts.join("/").replace('\n', "")))
    }

    fn any_range() -> impl Strategy<Value = Vec<u8>> {
        let number = prop_oneof![
            Just(String::new()),
            (0u64..200).prop_map(|n| n.to_string()),
            any::<u64>().prop_map(|n| n.to_string()),
            Just("99999999999999999999999".into()),
            Just("-1".into()),
            Just(" 7 ".into()),
            any_name(),
        ];
        let size = prop_oneof![0u64..200, any::<u64>()];
        let unit = prop::sample::select(vec!["bytes=", "bytes = ", "items=", ""]);
        (size, unit, number.clone(), number).prop_map(|(size, unit, start, end)| {
            [size.to_le_bytes().as_slice(), format!("{unit}{start}-{end}").as_bytes()].concat()
        })
    }

    fn any_key() -> impl Strategy<Value = String> {
        let start =
            prop::sample::select(vec!["blobs/", "manifests/", "refs/", "refs-v2/", "refs", "manifests-v2/", ""]);
        let joint = prop::sample::select(vec!["/", "@", "", "__", "--", "/models--", "@@"]);
        let end = prop::sample::select(vec!["", ".json", "/main", ".incomplete"]);
        (start, any_name(), joint, any_name(), end)
            .prop_map(|(start, one, joint, other, end)| format!("{start}{one}{joint}{other}{end}"))
    }

    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..300)
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in any_bytes()) {
            manifest(&data);
            tree(&data);
            reference(&data);
            key(&data);
            answer(&data);
            notice(&data);
            #[cfg(feature = "fallback")]
            hub_listing(&data);
            url(&data);
            range(&data);
            spec(&data);
            text(&data);
        }

        #[test]
        fn manifests_are_sound(value in any_manifest()) {
            manifest(value.to_string().as_bytes());
        }

        #[test]
        fn damaged_manifests_are_sound(data in damaged(any_manifest().prop_map(|value| value.to_string()))) {
            manifest(&data);
        }

        #[test]
        fn trees_are_sound(data in damaged(any_tree().prop_map(|value| value.to_string()))) {
            tree(&data);
        }

        #[test]
        fn refs_and_keys_lead_nowhere_else(name in any_name(), text in any_key()) {
            reference(name.as_bytes());
            key(text.as_bytes());
        }

        #[test]
        fn answers_of_stores_are_survived(data in damaged(any_xml())) {
            answer(&data);
        }

        #[test]
        fn notices_are_read_back(value in object(vec![
            ("refs", prop::collection::vec(any_name(), 0..3).prop_map(Value::from).boxed()),
            ("manifests", prop::collection::vec(any_name(), 0..3).prop_map(Value::from).boxed()),
            ("blobs", prop::collection::vec(texts(&[SHA1, SHA256]), 0..3).prop_map(Value::from).boxed()),
        ])) {
            notice(value.to_string().as_bytes());
        }

        #[cfg(feature = "fallback")]
        #[test]
        fn listings_of_the_hub_make_sound_manifests(data in damaged(any_listing().prop_map(|value| value.to_string()))) {
            hub_listing(&data);
        }

        #[test]
        fn requests_lead_nowhere_else(path in any_url()) {
            url(path.as_bytes());
        }

        #[test]
        fn ranges_stay_in_the_file(data in any_range()) {
            range(&data);
        }

        #[test]
        fn names_of_repos_are_survived(name in any_name(), start in prop::sample::select(vec![
            "", "hf://", "https://huggingface.co/", "git@hf.co:", "models--", "dataset:", "https://mirror.example/hub/", "[", "{", "*",
        ])) {
            spec(format!("{start}{name}").as_bytes());
        }

        #[test]
        fn nothing_that_is_printed_drives_a_terminal(text_of in any::<String>(), name in any_name()) {
            text(text_of.as_bytes());
            text(name.as_bytes());
            let codes = "\u{1b}[8m\u{9b}31m\u{202e}\u{e0041}\u{200b}";
            text(format!("{codes}{text_of}{codes}{name}").as_bytes());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
        #[test]
        fn settings_never_show_a_secret(data in damaged(any_yaml())) {
            let folder = tempfile::tempdir().unwrap();
            settings(folder.path(), &data);
        }
    }

    /// The seeds of libFuzzer, including inputs that once made it fail.
    #[test]
    fn seeds_are_survived() {
        type Target = fn(&[u8]);
        let targets: [(&str, Target); 13] = [
            ("answer", answer),
            ("card", card),
            #[cfg(feature = "fallback")]
            ("hub_listing", hub_listing),
            #[cfg(not(feature = "fallback"))]
            ("hub_listing", |_| ()),
            ("key", key),
            ("manifest", manifest),
            ("notice", notice),
            ("range", range),
            ("reference", reference),
            ("settings", |data| settings(tempfile::tempdir().unwrap().path(), data)),
            ("spec", spec),
            ("text", text),
            ("tree", tree),
            ("url", url),
        ];
        let mut remaining = BTreeMap::from(targets);
        for folder in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds")).unwrap() {
            let folder = folder.unwrap();
            let target = remaining.remove(folder.file_name().to_str().unwrap()).expect("a target has this name");
            let seeds: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|seed| seed.unwrap().path()).collect();
            assert!(!seeds.is_empty(), "{folder:?}");
            seeds.iter().for_each(|seed| target(&std::fs::read(seed).unwrap()));
        }
        assert!(remaining.is_empty(), "without seeds: {:?}", remaining.keys());
    }

    /// The generators make valid documents often enough to test what is beyond the parser.
    #[test]
    fn many_documents_are_valid() {
        use proptest::strategy::ValueTree;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut share = |strategy: &BoxedStrategy<Value>, is_valid: &dyn Fn(&[u8]) -> bool| {
            (0..300)
                .filter(|_| is_valid(strategy.new_tree(&mut runner).unwrap().current().to_string().as_bytes()))
                .count()
        };
        assert!(share(&any_manifest(), &|data| Manifest::parse(data).is_ok()) > 30);
        assert!(share(&any_tree(), &|data| matches!(Tree::parse(data), Ok(Some(_)))) > 60);
    }
}
