//! Decides which file system events may mean that there is something to push. Pure.

use std::path::{Component, Path};

use notify::EventKind;
use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};

use crate::cache::clients::{self, BlobEntry};
use crate::cache::junk::is_junk;
use crate::model::ids::RepoName;

/// Whether an event of this kind may have added content. Removing, reading and touching do not; this tool itself touches
/// files to restore access times.
pub fn may_add_content(kind: EventKind) -> bool {
    match kind {
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Metadata(_)) => false,
        EventKind::Modify(ModifyKind::Name(mode)) => mode != RenameMode::From,
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other => true,
    }
}

/// Whether a push reads this path, relative to the cache root: a repo's folder, a complete blob (a file, or a link into the
/// shared store), anything in a snapshot, a ref or a tree. It does not read temporary files, `.locks` with our own state,
/// `.no_exist`, the shared store or huggingface_hub's probes.
pub fn is_read_by_push(relative: &Path) -> bool {
    let parts = relative.components().map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let Some(parts) = parts.collect::<Option<Vec<&str>>>() else { return false };
    let Some((repo, inside)) = parts.split_first() else { return false };
    if RepoName::from_folder(repo).is_none() {
        return false;
    }
    match inside {
        ["snapshots", .., name] => !clients::is_unfinished_file(name),
        [] | ["blobs" | "refs" | "trees" | "snapshots"] => true,
        ["blobs", name] => matches!(clients::blob_entry(name), BlobEntry::Blob(_)),
        ["refs", folders @ .., name] => !clients::is_temporary_tree(name) && !folders.iter().any(|name| is_junk(name)),
        ["trees", name] => name.ends_with(".json"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{CreateKind, DataChange, MetadataKind, RemoveKind};

    const SHA1: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    #[test]
    fn paths_that_a_push_reads_are_relevant() {
        for path in [
            "models--a--b".to_string(),
            "models--gpt2/blobs".into(),
            format!("datasets--a--b/blobs/{SHA1}"),
            format!("models--a--b/blobs/{}", "ab".repeat(32)),
            format!("models--a--b/snapshots/{SHA1}"),
            format!("models--a--b/snapshots/{SHA1}/x.incomplete"),
            format!("models--a--b/snapshots/{SHA1}/blobs/tmp_x"),
            "models--a--b/refs/main".into(),
            "models--a--b/refs/refs/pr/1".into(),
            format!("kernels--a--b/trees/{SHA1}.json"),
        ] {
            assert!(is_read_by_push(Path::new(&path)), "{path}");
        }
    }

    #[test]
    fn temporary_lock_and_foreign_files_are_not_relevant() {
        let xet = "ab".repeat(32);
        for path in [
            String::new(),
            "/".into(),
            "..".into(),
            "tmpab12".into(),
            "README".into(),
            "version.txt".into(),
            "CACHEDIR.TAG".into(),
            ".locks/.hf-cache-sync/lock".into(),
            format!(".locks/models--a--b/{SHA1}.lock"),
            format!("blobs/ab/{xet}"),
            format!("blobs/ab/{xet}.refs"),
            "models--a--b/tmpab12".into(),
            format!("models--a--b/blobs/{SHA1}.incomplete"),
            format!("models--a--b/blobs/{SHA1}.0a1b2c3d.incomplete"),
            "models--a--b/blobs/tmp_0b0e".into(),
            format!("models--a--b/blobs/.{SHA1}.0a1b2c3d.shared"),
            format!("models--a--b/blobs/.{SHA1}.0a1b2c3d.new"),
            format!("models--a--b/blobs/.{SHA1}.0a1b2c3d.old"),
            "models--a--b/blobs/README".into(),
            "models--a--b/refs/main.0a1b2c3d.tmp".into(),
            format!("models--a--b/trees/{SHA1}.json.tmp"),
            format!("models--a--b/.no_exist/{SHA1}/x"),
        ] {
            assert!(!is_read_by_push(Path::new(&path)), "{path}");
        }
    }

    #[test]
    fn reading_and_removing_do_not_add_content() {
        for kind in [
            EventKind::Access(AccessKind::Open(AccessMode::Any)),
            EventKind::Access(AccessKind::Close(AccessMode::Read)),
            EventKind::Modify(ModifyKind::Metadata(MetadataKind::AccessTime)),
            EventKind::Modify(ModifyKind::Name(RenameMode::From)),
            EventKind::Remove(RemoveKind::File),
        ] {
            assert!(!may_add_content(kind), "{kind:?}");
        }
        for kind in [
            EventKind::Create(CreateKind::File),
            EventKind::Access(AccessKind::Close(AccessMode::Write)),
            EventKind::Modify(ModifyKind::Data(DataChange::Any)),
            EventKind::Modify(ModifyKind::Name(RenameMode::To)),
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)),
            EventKind::Modify(ModifyKind::Name(RenameMode::Any)),
        ] {
            assert!(may_add_content(kind), "{kind:?}");
        }
    }
}
