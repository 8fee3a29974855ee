//! Paths of huggingface_hub's cache, and the meaning of file names in it. Pure: no I/O.

use std::path::{Path, PathBuf};

use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};

/// Marker file of the cache-wide blob store, in `hub/blobs/`.
pub const SHARED_MARKER: &str = ".huggingface-shared-blobs";

/// The content of the marker that huggingface_hub writes. A store with any other marker is left alone.
pub const SHARED_MARKER_CONTENT: &str = "1\n";

/// Largest ref file that is read, in bytes: room for a commit with some white space around it.
pub const MAX_REF: u64 = 256;

/// The paths under one cache root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout under `root`, the `hub` folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Layout { root: root.into() }
    }

    /// The `hub` folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `hub/models--org--name`
    pub fn repo(&self, repo: &RepoName) -> PathBuf {
        self.root.join(repo.folder())
    }

    /// `…/blobs`
    pub fn blobs(&self, repo: &RepoName) -> PathBuf {
        self.repo(repo).join("blobs")
    }

    /// `…/blobs/<etag>`
    pub fn blob(&self, repo: &RepoName, blob: &BlobId) -> PathBuf {
        self.blobs(repo).join(blob.to_string())
    }

    /// `…/snapshots/<commit>`
    pub fn snapshot(&self, repo: &RepoName, commit: &Commit) -> PathBuf {
        self.repo(repo).join("snapshots").join(commit.as_str())
    }

    /// `…/snapshots/<commit>/<path>`
    pub fn snapshot_file(&self, repo: &RepoName, commit: &Commit, path: &RepoPath) -> PathBuf {
        join(self.snapshot(repo, commit), path)
    }

    /// `…/refs/<ref>`
    pub fn reference(&self, repo: &RepoName, name: &RefName) -> PathBuf {
        let mut file = self.repo(repo).join("refs");
        file.extend(name.as_str().split('/'));
        file
    }

    /// `…/trees/<commit>.json`
    pub fn tree(&self, repo: &RepoName, commit: &Commit) -> PathBuf {
        self.repo(repo).join("trees").join(format!("{commit}.json"))
    }

    /// The file that huggingface_hub locks with flock while it downloads a blob: `hub/.locks/<repo folder>/<etag>.lock`
    pub fn client_lock(&self, repo: &RepoName, blob: &BlobId) -> PathBuf {
        self.client_locks(repo).join(format!("{blob}.lock"))
    }

    /// `hub/.locks/<repo folder>`
    pub fn client_locks(&self, repo: &RepoName) -> PathBuf {
        self.root.join(".locks").join(repo.folder())
    }

    /// The tool's own state: `hub/.locks/.hf-cache-sync`, which huggingface_hub's scan and prune both skip.
    pub fn state(&self) -> PathBuf {
        self.root.join(".locks").join(".hf-cache-sync")
    }

    /// The lock file of the tool's own lock on the cache.
    pub fn tool_lock(&self) -> PathBuf {
        self.state().join("lock")
    }

    /// The lock file that makes a `watch` the only one of its cache.
    pub fn watch_lock(&self) -> PathBuf {
        self.state().join("watch.lock")
    }

    /// The lock file that makes a repair the only one of its cache.
    pub fn repair_lock(&self) -> PathBuf {
        self.state().join("repair.lock")
    }

    /// The folder of temporary files and folders.
    pub fn staging(&self) -> PathBuf {
        self.state().join("staging")
    }

    /// Returns a new path in [`Layout::staging`].
    pub fn new_staged(&self) -> PathBuf {
        self.staging().join(format!("{:016x}", fastrand::u64(..)))
    }

    /// The folder of the bucket's manifests that were read before, named by their MD5.
    pub fn manifests(&self) -> PathBuf {
        self.state().join("manifests")
    }

    /// The folder of the marks of [`Layout::unverified`].
    pub fn unverified_marks(&self) -> PathBuf {
        self.state().join("unverified")
    }

    /// The mark on a blob whose bytes were passed on before they were verified.
    pub fn unverified(&self, blob: &BlobId) -> PathBuf {
        self.unverified_marks().join(blob.to_string())
    }

    /// The folder of partial downloads.
    pub fn partials(&self) -> PathBuf {
        self.state().join("partial")
    }

    /// A partial download. It is content-addressed, so one file serves all repos.
    pub fn partial(&self, blob: &BlobId) -> PathBuf {
        self.partials().join(blob.to_string())
    }

    /// The folder of the records of interrupted uploads.
    pub fn uploads(&self) -> PathBuf {
        self.state().join("uploads")
    }

    /// The record from which an interrupted upload of a large blob is resumed.
    pub fn upload(&self, blob: &BlobId) -> PathBuf {
        self.uploads().join(format!("{blob}.json"))
    }

    /// The folder of what a repair takes out of the cache.
    pub fn quarantine(&self) -> PathBuf {
        self.state().join("quarantine")
    }

    /// A payload of the cache-wide blob store: `hub/blobs/<2 hex>/<xet hash>`
    pub fn payload(&self, xet_hash: &BlobId) -> PathBuf {
        let name = xet_hash.to_string();
        self.shared_store().join(&name[..2]).join(&name)
    }

    /// The cache-wide blob store, `hub/blobs`.
    pub fn shared_store(&self) -> PathBuf {
        self.root.join("blobs")
    }
}

/// Joins a folder and a path within a repo. They are joined as text, since `Path::join` on Windows would take a part
/// such as `C:` for a path of its own.
pub fn join(folder: PathBuf, path: &RepoPath) -> PathBuf {
    let mut text = folder.into_os_string();
    for segment in path.segments() {
        text.push(std::path::MAIN_SEPARATOR_STR);
        text.push(segment);
    }
    PathBuf::from(text)
}

/// Returns the relative link text from a snapshot file to its blob: `../../blobs/<etag>`, with one more `../` for each
/// folder.
pub fn link_text(path: &RepoPath, blob: &BlobId) -> String {
    let depth = path.segments().count() + 1;
    format!("{}blobs/{blob}", "../".repeat(depth))
}

/// Strips the white space and byte order mark that editors and shells put around the commit in a ref. The client writes
/// none, and does not strip any when it reads.
pub fn bare_commit(content: &str) -> &str {
    content.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
}

/// Returns the payload of the cache-wide store, `<store>/<2 hex>/<xet hash>`, that the link text of `blobs/<etag>`
/// points to; `None` if it points elsewhere. `blobs` is the folder that holds the link. The root may be spelled with
/// `..`.
pub fn shared_target(store: &Path, blobs: &Path, target: &Path) -> Option<PathBuf> {
    let resolved = normalized(&blobs.join(target));
    let inside = resolved.strip_prefix(normalized(store)).ok()?;
    let mut parts = inside.iter().map(|part| part.to_str());
    let (Some(Some(prefix)), Some(Some(name)), None) = (parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    let hash = name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (hash && prefix == &name[..2]).then(|| store.join(inside))
}

/// Removes `.` and `..` lexically, without resolving links.
pub fn normalized(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::RepoType;

    const SHA1: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    #[test]
    fn paths_match_those_of_the_client() {
        let layout = Layout::new("/hub");
        let repo = RepoName::new(RepoType::Dataset, "org/name".parse().unwrap());
        let blob: BlobId = SHA1.parse().unwrap();
        assert_eq!(layout.blob(&repo, &blob), Path::new("/hub/datasets--org--name/blobs").join(SHA1));
        assert_eq!(
            layout.reference(&repo, &"refs/pr/1".parse().unwrap()),
            Path::new("/hub/datasets--org--name/refs/refs/pr/1")
        );
        assert_eq!(
            layout.client_lock(&repo, &blob),
            Path::new("/hub/.locks/datasets--org--name").join(format!("{SHA1}.lock"))
        );
        assert_eq!(link_text(&"a".parse().unwrap(), &blob), format!("../../blobs/{SHA1}"));
        assert_eq!(link_text(&"d/e/a".parse().unwrap(), &blob), format!("../../../../blobs/{SHA1}"));
    }

    #[test]
    fn only_links_into_the_store_are_shared() {
        let hash = "ab".repeat(32);
        let store = Path::new("/hub/blobs");
        let blobs = Path::new("/hub/models--x/blobs");
        let target = format!("../../blobs/ab/{hash}");
        assert_eq!(shared_target(store, blobs, Path::new(&target)), Some(store.join("ab").join(&hash)));
        let spelled = (Path::new("/x/../hub/blobs"), Path::new("/x/../hub/models--x/blobs"));
        assert_eq!(shared_target(spelled.0, spelled.1, Path::new(&target)), Some(spelled.0.join("ab").join(&hash)));
        for other in
            [format!("../../blobs/cd/{hash}"), format!("../{hash}"), "../../blobs/ab/x".into(), "/etc/passwd".into()]
        {
            assert_eq!(shared_target(store, blobs, Path::new(&other)), None, "{other}");
        }
    }
}
