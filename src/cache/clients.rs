//! The traces of the other programs that write this cache, in one table: what they are still downloading, their lock
//! files, and folders of their own. Pure: by names alone.
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

use super::litter::is_litter;
use crate::model::ids::BlobId;

/// How names of unfinished downloads in `blobs/` end.
const UNFINISHED: [&str; 3] = [".incomplete", ".part", ".downloadInProgress"];

/// Entries of the root that some client makes and that hold no repo: locks, a tag for backups, older clients' version
/// files, and the listings that swift-huggingface keeps.
const ROOT: [&str; 5] = [".locks", ".metadata", "CACHEDIR.TAG", "version.txt", "version_diffusers_cache.txt"];

/// What an entry of `blobs/` is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobEntry {
    /// A blob.
    Blob(BlobId),
    /// A download in flight: never read, pushed or deleted.
    InFlight,
    /// A lock file that stays there.
    Lock,
    /// A note that a client keeps beside a file.
    Note,
    /// None of these.
    Foreign,
}

/// Classifies a name in `blobs/`.
pub fn blob_entry(name: &str) -> BlobEntry {
    if let Ok(id) = name.parse() {
        return BlobEntry::Blob(id);
    }
    // A twin of a download in flight is none.
    if is_litter(name) {
        return BlobEntry::Foreign;
    }
    // huggingface_hub's copies and exchanges: `tmp_<uuid>`, `.<etag>.<8 hex>.shared|.new|.old`.
    let swap = name.starts_with('.') && [".shared", ".new", ".old"].iter().any(|end| name.ends_with(end));
    if UNFINISHED.iter().any(|end| name.ends_with(end)) || name.starts_with("tmp_") || swap {
        return BlobEntry::InFlight;
    }
    if name.ends_with(".lock") || name.ends_with(".lock.soft") {
        return BlobEntry::Lock;
    }
    if name.ends_with(".etag") || name.ends_with(".etag.tmp") { BlobEntry::Note } else { BlobEntry::Foreign }
}

/// The blob that a temporary in `blobs/`, or a lock file there, is for, when its name tells.
pub fn blob_of_temporary(name: &str) -> Option<BlobId> {
    name.trim_start_matches('.').split('.').next()?.parse().ok()
}

/// Whether a real file in a snapshot is an unfinished download: where llama.cpp knows no blob name, it downloads to the
/// place of the file itself. The other endings are also those of files that repos have.
pub fn is_unfinished_file(name: &str) -> bool {
    name.ends_with(".downloadInProgress")
}

/// Whether the root's entry is known to hold no repo.
pub fn is_known_at_root(name: &str) -> bool {
    // The client's symlink probe makes `tmp*` folders for a moment; files are unfinished downloads.
    ROOT.contains(&name) || name.starts_with("tmp")
}

/// Whether a repo folder's entry is known although it holds nothing of the repo.
pub fn is_known_in_repo(name: &str) -> bool {
    name == ".metadata" || name.starts_with("tmp")
}

/// Whether the root's entry, though known, may be somebody's view of repos: of `.locks` and files nobody makes one.
pub fn may_hold_links_at_root(name: &str) -> bool {
    is_known_at_root(name) && name != ".locks"
}

/// The same in a repo's folder, with the parts that the scan does not look into for links.
pub fn may_hold_links_in_repo(name: &str) -> bool {
    is_known_in_repo(name) || name == ".no_exist"
}

/// Whether a file at the root is named as Python's `NamedTemporaryFile` names one: a download of an old
/// huggingface_hub, for nobody knows which repo.
pub fn is_root_temporary(name: &str) -> bool {
    name.strip_prefix("tmp").is_some_and(is_random_word)
}

/// The folder at the root in which hf-hub 0.3 downloads, for nobody knows which repo.
pub const TEMPORARY_FOLDER: &str = "tmp";

/// Whether a file in that folder is named as hf-hub names it.
pub fn is_in_temporary_folder(name: &str) -> bool {
    is_random_word(name)
}

/// Whether a file at the root or in [`TEMPORARY_FOLDER`] has a name that chance made: only such a one may be deleted.
/// Python takes 8 of `a-z0-9_`, hf-hub 7 of `A-Za-z0-9`. Those that read like a word are left to whoever wrote them.
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

/// Whether a name in `trees/` is a temporary of the client.
pub fn is_temporary_tree(name: &str) -> bool {
    name.ends_with(".tmp")
}

/// Whether a name in `refs/` is a temporary of huggingface_hub, `<ref>.<8 hex>.tmp`: a branch may be called `x.tmp`.
pub fn is_temporary_ref(name: &str) -> bool {
    let random = name.strip_suffix(".tmp").and_then(|name| name.rsplit_once('.'));
    random.is_some_and(|(name, random)| !name.is_empty() && is_token(random))
}

/// Whether a name in `refs/` may be one that llama.cpp is writing: then its content is not a commit yet.
pub fn may_be_torn_ref(name: &str) -> bool {
    name.ends_with(".tmp")
}

/// The client's `secrets.token_hex(4)`.
fn is_token(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA1: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    #[test]
    fn names_in_blobs_are_told_apart() {
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
    fn temporaries_at_the_root_are_those_of_clients() {
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
