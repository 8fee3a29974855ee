//! The traces of other programs that write to this cache: their unfinished downloads, lock files and folders,
//! recognised by name alone. Pure.
//!
//! | program | unfinished download | beside it |
//! |---|---|---|
//! | huggingface_hub 0.8 to 0.22 | `hub/tmpXXXXXXXX` | `blobs/<etag>.lock` until 0.16, then `.locks/<repo>/<etag>.lock` |
//! | huggingface_hub since 0.23, huggingface.js, hf-hub 1.0 | `blobs/<etag>.incomplete`, in 2.x with 8 hex in between | `.locks/` |
//! | hf-hub 0.3 | `hub/tmp/XXXXXXX` | `refs/<commit>` |
//! | hf-hub 0.4 and 0.5 | `blobs/<etag>.part`, `..part`, `.sync.part` | `blobs/<etag>.lock`, `refs/<commit>` |
//! | llama.cpp | `blobs/<oid>.downloadInProgress`, in `snapshots/` where it knows no oid | `refs/<ref>.tmp`, `<file>.etag` |
//! | swift-huggingface | `blobs/<etag>.incomplete` | `hub/.metadata/`, `.locks/<repo>/blobs/<etag>.lock` |

use std::path::Path;

use super::junk::is_junk;
use crate::model::ids::BlobId;

/// Suffixes of unfinished downloads in `blobs/`.
const UNFINISHED: [&str; 3] = [".incomplete", ".part", ".downloadInProgress"];

/// Entries of the root that clients create and that are not repos: locks, a tag for backup programs, older clients'
/// version files, and the listings that swift-huggingface keeps.
const ROOT: [&str; 5] = [".locks", ".metadata", "CACHEDIR.TAG", "version.txt", "version_diffusers_cache.txt"];

/// The kind of an entry of `blobs/`, judging by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobEntry {
    /// A blob.
    Blob(BlobId),
    /// A download in flight: never read or pushed.
    InFlight,
    /// A lock file that stays there.
    Lock,
    /// Metadata that a client keeps beside a file.
    Note,
    /// None of these.
    Foreign,
}

/// Classifies a name in `blobs/`.
pub fn blob_entry(name: &str) -> BlobEntry {
    if let Ok(id) = name.parse() {
        return BlobEntry::Blob(id);
    }
    // Such as the AppleDouble file of a download in flight.
    if is_junk(name) {
        return BlobEntry::Foreign;
    }
    // huggingface_hub's copies and replacements: `tmp_<uuid>`, `.<etag>.<8 hex>.shared|.new|.old`.
    let swap = name.starts_with('.') && [".shared", ".new", ".old"].iter().any(|end| name.ends_with(end));
    if UNFINISHED.iter().any(|end| name.ends_with(end)) || name.starts_with("tmp_") || swap {
        return BlobEntry::InFlight;
    }
    if name.ends_with(".lock") || name.ends_with(".lock.soft") {
        return BlobEntry::Lock;
    }
    if name.ends_with(".etag") || name.ends_with(".etag.tmp") { BlobEntry::Note } else { BlobEntry::Foreign }
}

/// Returns the blob that a temporary file or lock file in `blobs/` belongs to, if its name says so.
pub fn blob_of_temporary(name: &str) -> Option<BlobId> {
    name.trim_start_matches('.').split('.').next()?.parse().ok()
}

/// Returns whether a real file in a snapshot is an unfinished download. If llama.cpp does not know the blob name, it
/// downloads next to the final file. Other clients' suffixes do not count, since repos have files with those names.
pub fn is_unfinished_file(name: &str) -> bool {
    name.ends_with(".downloadInProgress")
}

/// Returns whether an entry of the root is known not to be a repo.
pub fn is_known_at_root(name: &str) -> bool {
    // The client's symlink probe briefly creates `tmp*` folders; files are unfinished downloads.
    ROOT.contains(&name) || name.starts_with("tmp")
}

/// Returns whether an entry of a repo folder is known, although it holds no part of the repo.
pub fn is_known_in_repo(name: &str) -> bool {
    name == ".metadata" || name.starts_with("tmp")
}

/// Returns whether a known entry of the root may contain links to repos. `.locks` never does.
pub fn may_hold_links_at_root(name: &str) -> bool {
    is_known_at_root(name) && name != ".locks"
}

/// Returns whether an entry of a repo folder that the scan does not search may contain links.
pub fn may_hold_links_in_repo(name: &str) -> bool {
    is_known_in_repo(name) || name == ".no_exist"
}

/// Returns whether a file at the root is named like one of Python's `NamedTemporaryFile`: a download by an old
/// huggingface_hub, for an unknown repo.
pub fn is_root_temporary(name: &str) -> bool {
    name.strip_prefix("tmp").is_some_and(is_random_word)
}

/// The folder at the root that hf-hub 0.3 downloads to, for an unknown repo.
pub const TEMPORARY_FOLDER: &str = "tmp";

/// Returns whether a file in that folder has a name like those that hf-hub makes.
pub fn is_in_temporary_folder(name: &str) -> bool {
    is_random_word(name)
}

/// Returns whether a file at the root or in [`TEMPORARY_FOLDER`] has a random name: only such a file may be deleted. Python
/// uses 8 of `a-z0-9_`, hf-hub 7 of `A-Za-z0-9`. A name that could be a word may be a user's own file.
pub fn is_surely_temporary(root: &Path, path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    if path.parent() == Some(root) {
        return name.strip_prefix("tmp").is_some_and(|random| {
            let is_known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            random.len() == 8 && random.bytes().all(is_known) && !random.bytes().all(|b| b.is_ascii_lowercase())
        });
    }
    let is_mixed = name.bytes().any(|b| b.is_ascii_lowercase()) && name.bytes().skip(1).any(|b| b.is_ascii_uppercase());
    name.len() == 7 && name.bytes().all(|b| b.is_ascii_alphanumeric()) && is_mixed
}

fn is_random_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Returns whether a name in `trees/` is one of the client's temporary files.
pub fn is_temporary_tree(name: &str) -> bool {
    name.ends_with(".tmp")
}

/// Returns whether a name in `refs/` is a temporary file of huggingface_hub, `<ref>.<8 hex>.tmp`. A plain `x.tmp` may
/// be a branch.
pub fn is_temporary_ref(name: &str) -> bool {
    let random = name.strip_suffix(".tmp").and_then(|name| name.rsplit_once('.'));
    random.is_some_and(|(name, random)| !name.is_empty() && is_token(random))
}

/// Returns whether a name in `refs/` may be a file that llama.cpp is still writing, with a truncated commit in it.
pub fn may_be_torn_ref(name: &str) -> bool {
    name.ends_with(".tmp")
}

/// Returns whether the text looks like the client's `secrets.token_hex(4)`.
fn is_token(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA1: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    #[test]
    fn names_in_blobs_are_classified() {
        assert!(matches!(blob_entry(SHA1), BlobEntry::Blob(_)));
        for name in [
            format!("{SHA1}.incomplete"),
            format!("{SHA1}.0a1b2c3d.incomplete"),
            format!("{SHA1}.part"),
            format!("{SHA1}..part"),
            format!("{SHA1}.sync.part"),
            format!("{SHA1}.downloadInProgress"),
            format!(".{SHA1}.0a1b2c3d.shared"),
            format!(".{SHA1}.0a1b2c3d.old"),
        ] {
            assert_eq!(blob_entry(&name), BlobEntry::InFlight, "{name}");
            assert_eq!(blob_of_temporary(&name).unwrap().to_string(), SHA1, "{name}");
        }
        assert_eq!((blob_entry("tmp_0b0e"), blob_of_temporary("tmp_0b0e")), (BlobEntry::InFlight, None));
        assert_eq!(blob_entry(&format!("{SHA1}.lock")), BlobEntry::Lock);
        assert_eq!(blob_entry(&format!("{SHA1}.etag")), BlobEntry::Note);
        for name in ["README", "partial", "incomplete", "part"] {
            assert_eq!(blob_entry(name), BlobEntry::Foreign, "{name}");
        }
    }

    #[test]
    fn temporaries_at_the_root_are_recognised_by_name() {
        for name in ["tmpa1b2c3d4", "tmp_x9_k2ab", "tmpABC"] {
            assert!(is_root_temporary(name) && is_known_at_root(name), "{name}");
        }
        for name in ["tmp", "tmp-notes.txt", "mytmp", "temporary.bin"] {
            assert!(!is_root_temporary(name), "{name}");
        }
        assert!(is_in_temporary_folder("aB3dE5f") && !is_in_temporary_folder("notes.txt"));
        let is_sure = |path: &str| is_surely_temporary(Path::new("/hub"), &Path::new("/hub").join(path));
        for path in ["tmpa1b2c3d4", "tmp_x9_k2ab", "tmp/aB3dE5f"] {
            assert!(is_sure(path), "{path}");
        }
        for path in
            ["tmpnotes", "tmpl", "tmpcheckout", "tmpA1B2C3D4", "tmp/abcdefg", "tmp/Results", "tmp/RESULTS", "tmp/x"]
        {
            assert!(!is_sure(path), "{path}");
        }
    }

    #[test]
    fn a_branch_may_look_like_a_temporary() {
        assert!(is_temporary_ref("main.0a1b2c3d.tmp"));
        for branch in ["main.tmp", "x.0a1b2c3.tmp", ".0a1b2c3d.tmp", "main"] {
            assert!(!is_temporary_ref(branch), "{branch}");
        }
    }
}
