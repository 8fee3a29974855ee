//! The only place where bucket keys are built or parsed. They do not include the team prefix, which the client adds.
//! Layout: docs/bucket-format.md.

use std::time::SystemTime;

use crate::hash::is_hex;
use crate::model::ids::{BlobId, Commit, RefName, RepoId, RepoName, RepoType};

/// All blobs.
pub const BLOBS: &str = "blobs/";
/// All manifests.
pub const MANIFESTS: &str = "manifests/";
/// The beginning of the keys of manifests in a later format.
pub const LATER_MANIFESTS: &str = "manifests-v";
/// Maximum length of an encoded id, in bytes.
const MAX_ENCODED: usize = 2 * 96 + 2;
/// All refs, both 0.1.0's and ours.
pub const ALL_REFS: &str = "refs";
/// Refs in 0.1.0's layout.
pub const REFS: &str = "refs/";
/// Refs under the repo's folder name, which names the type and is unambiguous.
pub const REFS_V2: &str = "refs-v2/";
/// The prefix of `doctor`'s probes.
pub const PROBES: &str = "_hf_cache_sync_doctor/";
/// The prefix of the notices of running pushes and deletions.
pub const NOTICES: &str = "_hf_cache_sync_gc/";

/// Returns a key for a probe of `doctor`.
pub fn new_probe() -> String {
    format!("{PROBES}probe-{:016x}", fastrand::u64(..))
}

/// Returns whether `doctor` may have written this key.
pub fn is_probe(key: &str) -> bool {
    let random = key.strip_prefix(PROBES).and_then(|name| name.strip_prefix("probe-"));
    random.is_some_and(|random| is_hex(random, 16))
}

/// Returns a key for a notice: `_hf_cache_sync_gc/<kind>-<random>.json`. Keys sort by age, so that pushes take turns in the
/// order in which they came.
pub fn new_notice(kind: &str, now: SystemTime) -> String {
    let millis = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let random = fastrand::u128(..) >> 48;
    format!("{NOTICES}{kind}-{:012x}{random:020x}.json", millis & 0xffff_ffff_ffff)
}

/// Parses the key of a notice into its kind.
pub fn parse_notice(key: &str) -> Option<&str> {
    let (kind, random) = key.strip_prefix(NOTICES)?.strip_suffix(".json")?.split_once('-')?;
    is_hex(random, 32).then_some(kind)
}

/// `blobs/<etag>`
pub fn blob(id: &BlobId) -> String {
    format!("{BLOBS}{id}")
}

/// Parses a key under `blobs/`; `None` for names that are not a hash (0.1.0 uploads `*.incomplete` there).
pub fn parse_blob(key: &str) -> Option<BlobId> {
    key.strip_prefix(BLOBS)?.parse().ok()
}

/// Encodes an id as in keys: `/` becomes `__`. Not always reversible; see [`plain_id`].
pub fn encoded(id: &RepoId) -> String {
    id.as_str().replace('/', "__")
}

/// `manifests/<id>@<commit>.json`. The repo type is in the manifest, not in the key.
pub fn manifest(id: &RepoId, commit: &Commit) -> String {
    format!("{}{commit}.json", manifests_of(id))
}

/// The key prefix of all manifests of this id, of any repo type.
pub fn manifests_of(id: &RepoId) -> String {
    format!("{MANIFESTS}{}@", encoded(id))
}

/// Parses a manifest key into the encoded id and the commit, split at the first `@`. A key with further slashes belongs to
/// another team, whose prefix starts with `manifests/`.
pub fn parse_manifest(key: &str) -> Option<(&str, Commit)> {
    let (encoded, rest) = key.strip_prefix(MANIFESTS)?.split_once('@')?;
    if encoded.contains('/') || encoded.len() > MAX_ENCODED {
        return None;
    }
    Some((encoded, rest.strip_suffix(".json")?.parse().ok()?))
}

/// Whether a key that is not a valid manifest key may be that of a manifest in a format that this program does not know.
/// Deeper keys belong to other teams.
pub fn may_be_manifest(key: &str) -> bool {
    match key.strip_prefix(MANIFESTS) {
        Some(name) => !name.contains('/') && (name.contains('@') || name.ends_with(".json")),
        None => key.starts_with(LATER_MANIFESTS),
    }
}

/// Like [`manifest`], for an encoded id.
pub fn manifest_of(encoded: &str, commit: &Commit) -> String {
    format!("{MANIFESTS}{encoded}@{commit}.json")
}

/// `refs/<id>/<ref>`, shared by all repo types and all ids with the same encoding.
pub fn old_ref(id: &RepoId, name: &RefName) -> String {
    format!("{}{name}", old_refs_of(id))
}

/// The key prefix of all of 0.1.0's refs of this id.
pub fn old_refs_of(id: &RepoId) -> String {
    format!("{REFS}{}/", encoded(id))
}

/// `refs-v2/<repo folder name>/<ref>`
pub fn new_ref(repo: &RepoName, name: &RefName) -> String {
    format!("{}{name}", new_refs_of(repo))
}

/// The key prefix of all our refs of this repo.
pub fn new_refs_of(repo: &RepoName) -> String {
    format!("{REFS_V2}{}/", repo.folder())
}

/// A parsed ref key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefKey<'a> {
    /// 0.1.0's: the encoded id and the ref.
    Old(&'a str, RefName),
    /// Ours.
    New(RepoName, RefName),
}

/// Parses a key under `refs/` or `refs-v2/`; `None` for anything else.
pub fn parse_ref(key: &str) -> Option<RefKey<'_>> {
    if let Some(rest) = key.strip_prefix(REFS_V2) {
        let (folder, name) = rest.split_once('/')?;
        return Some(RefKey::New(RepoName::from_folder(folder)?, name.parse().ok()?));
    }
    let (encoded, name) = key.strip_prefix(REFS)?.split_once('/')?;
    if encoded.len() > MAX_ENCODED {
        return None;
    }
    Some(RefKey::Old(encoded, name.parse().ok()?))
}

/// Whether a ref key of 0.1.0's kind may be something else of a team whose prefix begins with `refs/`: such a prefix makes
/// `refs/team/manifests/…` of a manifest. The Hub has no such refs.
pub fn may_be_of_other_team(encoded: &str, name: &RefName) -> bool {
    let folders = ["blobs", "manifests", "refs", "refs-v2"];
    let is_folder = |part: &str| folders.contains(&part) || part == NOTICES.trim_end_matches('/');
    let of_the_hub = ["refs/pr/", "refs/convert/"].iter().any(|start| name.as_str().starts_with(start));
    let name = if of_the_hub { &name.as_str()["refs/".len()..] } else { name.as_str() };
    is_folder(encoded) || name.split('/').any(is_folder)
}

/// Counts the occurrences of `__`, including overlapping ones: `a___b` has two.
fn separators(encoded: &str) -> usize {
    encoded.as_bytes().windows(2).filter(|pair| pair == b"__").count()
}

/// Whether 0.1.0 decodes this repo's keys to this very repo. If so, its refs are written only to `refs/`, as by 0.1.0.
pub fn is_plain(repo: &RepoName) -> bool {
    let slashes = usize::from(repo.id.as_str().contains('/'));
    repo.kind == RepoType::Model && separators(&encoded(&repo.id)) == slashes
}

/// Whether this ref key of the repo may also be another repo's: it is 0.1.0's key, and the repo is not plain.
pub fn is_shared_ref(repo: &RepoName, key: &str) -> bool {
    key.starts_with(REFS) && !is_plain(repo)
}

/// Decodes an id if there is only one way to: an id without `__` is a canonical one, and a single `__` is the slash. The
/// repo type remains unknown; only the manifest has it.
pub fn plain_id(encoded: &str) -> Option<RepoId> {
    match separators(encoded) {
        0 => encoded.parse().ok(),
        1 => encoded.replacen("__", "/", 1).parse().ok(),
        _ => None,
    }
}

/// Returns every id with this encoding: at most one `__` stands for the slash.
pub fn possible_ids(encoded: &str) -> Vec<RepoId> {
    let separators = encoded.as_bytes().windows(2).enumerate().filter(|(_, pair)| *pair == b"__");
    let slashed = separators.map(|(at, _)| format!("{}/{}", &encoded[..at], &encoded[at + 2..]));
    slashed.chain([encoded.to_string()]).filter_map(|id| id.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn repo(kind: RepoType, id: &str) -> RepoName {
        RepoName::new(kind, id.parse().unwrap())
    }

    #[test]
    fn keys_match_0_1_0() {
        let id = "org/name".parse().unwrap();
        let commit = COMMIT.parse().unwrap();
        assert_eq!(manifest(&id, &commit), format!("manifests/org__name@{COMMIT}.json"));
        assert_eq!(old_ref(&id, &"refs/pr/1".parse().unwrap()), "refs/org__name/refs/pr/1");
        assert_eq!(new_ref(&repo(RepoType::Dataset, "org/name"), &RefName::main()), "refs-v2/datasets--org--name/main");
        assert_eq!(parse_blob("blobs/0123.incomplete"), None);
        assert_eq!(parse_manifest(&format!("manifests/a__b@{COMMIT}.json")), Some(("a__b", commit)));
        assert_eq!(parse_manifest("manifests/a__b@main.json"), None);
        assert_eq!(parse_manifest(&format!("manifests/manifests/a__b@{COMMIT}.json")), None);
    }

    #[test]
    fn repos_that_0_1_0_decodes_correctly_are_plain() {
        for (id, plain) in [
            ("gpt2", true),
            ("org/name", true),
            ("team__a/under__score", false),
            ("a_/b", false),
            ("a/_b", false),
            ("a__b", false),
            ("a_b/c_d", true),
        ] {
            assert_eq!(is_plain(&repo(RepoType::Model, id)), plain, "{id}");
            assert!(!is_plain(&repo(RepoType::Dataset, id)), "{id}");
        }
        assert_eq!(plain_id("a__b").unwrap().as_str(), "a/b");
        assert_eq!(plain_id("a___b"), None);
        let possible: Vec<String> = possible_ids("a___b").iter().map(|id| id.to_string()).collect();
        assert_eq!(possible, ["a/_b", "a_/b", "a___b"]);
    }

    #[test]
    fn keys_below_a_prefix_that_looks_like_ours_are_another_teams() {
        let other = |encoded, name: &str| may_be_of_other_team(encoded, &name.parse().unwrap());
        for (encoded, name) in
            [("refs", "a__b/main"), ("blobs", "x"), ("team", "refs/a__b/main"), ("a", "b/manifests/c")]
        {
            assert!(other(encoded, name), "{encoded} {name}");
        }
        for name in ["main", "refs/pr/1", "refs/convert/parquet", "feature/x"] {
            assert!(!other("org__name", name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn plain_ids_round_trip(id in "[a-z_]{1,6}(/[a-z_]{1,6})?") {
            if let Ok(id) = id.parse::<RepoId>() {
                let repo = RepoName::new(RepoType::Model, id.clone());
                if is_plain(&repo) {
                    prop_assert_eq!(plain_id(&encoded(&id)), Some(id));
                }
            }
        }

        #[test]
        fn parsing_never_panics(key in ".{0,60}") {
            let _ = (parse_ref(&key), parse_manifest(&key), parse_blob(&key));
        }
    }

    #[test]
    fn possible_manifests_are_distinguished_from_other_keys() {
        for (key, expected) in [
            ("manifests/a__b@main.json", true),
            ("manifests/a__b.json", true),
            ("manifests-v2/x", true),
            ("manifests/.DS_Store", false),
            ("manifests/manifests/a__b@0.json", false),
            ("blobs/x.json", false),
        ] {
            assert_eq!(may_be_manifest(key), expected, "{key}");
        }
        let long = format!("manifests/{}@{}.json", "a".repeat(300), "0".repeat(40));
        assert!(parse_manifest(&long).is_none() && may_be_manifest(&long));
        assert!(parse_ref(&format!("refs/{}/main", "a".repeat(300))).is_none());
    }
}
