//! Disk usage and last use of the cache, computed from a [`super::inventory::Inventory`]. Pure.

use std::collections::{BTreeSet, HashSet};
use std::time::SystemTime;

use super::inventory::{Blob, Repo, Revision, SnapshotFile};
use crate::model::ids::BlobId;
use crate::platform::Inode;

/// Returns the bytes on disk. A file with several names (hard links, or links into the cache-wide store) counts once.
pub fn unique_bytes<'a>(repos: impl IntoIterator<Item = &'a Repo>) -> u64 {
    let mut seen = HashSet::new();
    let mut first = |inode: Option<&Inode>| inode.is_none_or(|inode| seen.insert(inode.id));
    let mut bytes = 0;
    for repo in repos {
        bytes += repo.blobs.values().filter(|blob| first(blob.inode.as_ref())).map(|blob| blob.size).sum::<u64>();
        for file in repo.revisions.values().flat_map(|revision| revision.files.values()) {
            if let SnapshotFile::Real(file) = file
                && first(file.inode.as_ref())
            {
                bytes += file.size;
            }
        }
    }
    bytes
}

/// Returns the size of a revision, counting each blob once.
pub fn revision_bytes(repo: &Repo, revision: &Revision) -> u64 {
    let linked: u64 = linked_blobs(revision).iter().filter_map(|id| Some(repo.blobs.get(id)?.size)).sum();
    let mut seen = HashSet::new();
    let real = revision.files.values().map(|file| match file {
        SnapshotFile::Real(file) if file.inode.is_none_or(|inode| seen.insert(inode.id)) => file.size,
        _ => 0,
    });
    linked + real.sum::<u64>()
}

/// Returns the last use of a revision: the latest access or modification of any of its files.
pub fn last_use(repo: &Repo, revision: &Revision) -> Option<SystemTime> {
    let linked = linked_blobs(revision).into_iter().filter_map(|id| last_use_of_blob(repo.blobs.get(&id)?)).max();
    let real = revision.files.values().filter_map(|file| match file {
        SnapshotFile::Real(file) => file.accessed.max(file.modified),
        SnapshotFile::Link(_) => None,
    });
    linked.max(real.max())
}

/// Returns the last use of a repo, including blobs that no revision uses.
pub fn last_use_of_repo(repo: &Repo) -> Option<SystemTime> {
    let blobs = repo.blobs.values().filter_map(last_use_of_blob).max();
    blobs.max(repo.revisions.values().filter_map(|revision| last_use(repo, revision)).max())
}

fn linked_blobs(revision: &Revision) -> BTreeSet<BlobId> {
    let links = revision.files.values().filter_map(|file| match file {
        SnapshotFile::Link(id) => Some(*id),
        SnapshotFile::Real(_) => None,
    });
    links.collect()
}

fn last_use_of_blob(blob: &Blob) -> Option<SystemTime> {
    blob.accessed.max(blob.modified)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::cache::scan::scan;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn hard_links_and_shared_payloads_count_once() {
        let hub = tempfile::tempdir().unwrap();
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        fs::create_dir_all(hub.path().join("blobs/aa")).unwrap();
        fs::write(hub.path().join("blobs/.huggingface-shared-blobs"), "1\n").unwrap();
        fs::write(hub.path().join("blobs/aa").join(&a), [0; 1000]).unwrap();
        for repo in ["models--x", "datasets--y"] {
            let repo = hub.path().join(repo);
            fs::create_dir_all(repo.join("blobs")).unwrap();
            fs::create_dir_all(repo.join("snapshots").join(COMMIT)).unwrap();
            symlink(format!("../../blobs/aa/{a}"), repo.join("blobs").join(&a)).unwrap();
            symlink(format!("../../blobs/{a}"), repo.join("snapshots").join(COMMIT).join("w.bin")).unwrap();
        }
        let blob = hub.path().join("models--x/blobs").join(&b);
        fs::write(&blob, [0; 30]).unwrap();
        fs::hard_link(&blob, hub.path().join("models--x/snapshots").join(COMMIT).join("real.txt")).unwrap();

        let inventory = scan(hub.path()).unwrap();
        assert_eq!(unique_bytes(&inventory.repos), 1030);
        assert_eq!(unique_bytes(&inventory.repos[..1]), 1030);
        let sizes: Vec<u64> =
            inventory.repos.iter().map(|repo| revision_bytes(repo, repo.revisions.values().next().unwrap())).collect();
        assert_eq!(sizes, [1030, 1000]);
    }

    #[test]
    fn the_latest_access_or_change_is_the_last_use() {
        let hub = tempfile::tempdir().unwrap();
        let repo = hub.path().join("models--x");
        fs::create_dir_all(repo.join("blobs")).unwrap();
        fs::create_dir_all(repo.join("snapshots").join(COMMIT)).unwrap();
        let day = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(n * 86_400);
        for (name, accessed, modified) in [("a", 10, 12), ("b", 14, 11), ("c", 20, 20)] {
            let path = repo.join("blobs").join(name.repeat(40));
            fs::write(&path, name).unwrap();
            let times = fs::FileTimes::new().set_accessed(day(accessed)).set_modified(day(modified));
            fs::File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
            if name != "c" {
                let link = repo.join("snapshots").join(COMMIT).join(name);
                symlink(format!("../../blobs/{}", name.repeat(40)), link).unwrap();
            }
        }
        let inventory = scan(hub.path()).unwrap();
        let repo = &inventory.repos[0];
        assert_eq!(last_use(repo, repo.revisions.values().next().unwrap()), Some(day(14)));
        assert_eq!(last_use_of_repo(repo), Some(day(20)));
    }
}
