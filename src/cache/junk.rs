//! Junk files: names that operating systems, file servers, sync programs and editors leave in any folder that they can
//! write to. In a cache they are neither refs, blobs nor files, and no reason to refuse anything. Pure.
//!
//! A repo may still have a file with such a name, so it is junk only in the absence of other evidence: a link to a blob, or
//! a real file that the commit's tree lists, belongs to the commit regardless of its name.

/// Whole names, in lower case, since programs disagree on case (`Thumbs.db`, `thumbs.db`).
const NAMES: [&str; 46] = [
    // macOS
    ".ds_store",
    ".localized",
    ".appledouble",
    ".appledb",
    ".appledesktop",
    ".apdisk",
    ".spotlight-v100",
    ".fseventsd",
    ".trashes",
    ".temporaryitems",
    ".documentrevisions-v100",
    ".volumeicon.icns",
    "network trash folder",
    "temporary items",
    "icon\r",
    // Windows
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "$recycle.bin",
    "recycler",
    "system volume information",
    // Linux desktops and file systems
    ".directory",
    ".trash",
    "lost+found",
    // File servers: Synology, QNAP, NetApp, ZFS and btrfs
    "@eadir",
    "@tmp",
    "@recycle",
    "@recently-snapshot",
    "#recycle",
    "#snapshot",
    ".snapshot",
    ".snapshots",
    ".zfs",
    ".@__thumb",
    ".streams",
    // Syncthing, Dropbox, Resilio, Nextcloud
    ".stfolder",
    ".stversions",
    ".stignore",
    ".dropbox",
    ".dropbox.cache",
    ".dropbox.attr",
    ".sync",
    ".owncloudsync.log",
    ".nextcloudsync.log",
    ".sync_exclude.lst",
];

/// Prefixes: AppleDouble files, deleted files that are still open on NFS, FUSE and SMB, a user's trash, and temporary
/// files of Syncthing, GNOME, LibreOffice and Dropbox.
const BEGINNINGS: [&str; 12] = [
    "._",
    ".nfs",
    ".fuse_hidden",
    ".smbdelete",
    ".trash-",
    "~syncthing~",
    ".syncthing.",
    ".goutputstream-",
    ".~lock.",
    ".sync.ffs_",
    ".sync_",
    ".owncloud",
];

/// Returns whether a file or folder of this name is known to be left by programs that do not use the cache.
pub fn is_junk(name: &str) -> bool {
    NAMES.iter().any(|known| known.eq_ignore_ascii_case(name))
        || BEGINNINGS.iter().any(|begin| name.get(..begin.len()).is_some_and(|it| it.eq_ignore_ascii_case(begin)))
        || is_editor_file(name)
}

/// Recognises swap files of vim (`.name.swp`), lock and auto-save files of Emacs (`.#name`, `#name#`), and backups
/// (`name~`).
fn is_editor_file(name: &str) -> bool {
    let swap = name.starts_with('.') && [".swp", ".swo", ".swx"].iter().any(|end| name.ends_with(end));
    let saved = name.len() > 2 && name.starts_with('#') && name.ends_with('#');
    swap || saved || name.starts_with(".#") || (name.len() > 1 && name.ends_with('~'))
}

/// Returns whether editors, merge tools or sync programs give such a name to copies of another file.
pub fn is_copy(name: &str) -> bool {
    const ENDS: [&str; 12] =
        [".bak", ".orig", ".old", ".rej", ".save", ".backup", ".copy", ".txt", ".md", ".json", ".part", ".new"];
    let name = name.to_ascii_lowercase();
    ENDS.iter().any(|end| name.ends_with(end)) || name.contains(".sync-conflict-") || name.contains("conflicted-copy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_junk_is_recognised() {
        for name in [
            ".DS_Store",
            "._model.safetensors",
            "._ce013625030ba8dba906f756967f9e9ca394464a",
            "._main",
            "Thumbs.db",
            "desktop.ini",
            "Desktop.ini",
            "ehthumbs.db",
            ".localized",
            "@eaDir",
            "#recycle",
            ".AppleDouble",
            ".snapshot",
            ".Trash-1000",
            "lost+found",
            "$RECYCLE.BIN",
            "System Volume Information",
            ".nfs00000000000a1b2c00000001",
            ".fuse_hidden0000001200000001",
            ".stfolder",
            "~syncthing~model.bin.tmp",
            ".syncthing.model.bin.tmp",
            ".directory",
            ".config.json.swp",
            "README.md~",
            "#README.md#",
            ".#README.md",
            ".~lock.table.ods#",
        ] {
            assert!(is_junk(name), "{name}");
        }
    }

    #[test]
    fn files_of_repos_are_not_junk() {
        for name in [
            ".gitattributes",
            ".gitignore",
            "README.md",
            "model.safetensors",
            ".github",
            "_name",
            ".eval_results",
            "snapshot",
            "recycle",
            "config.swp.json",
            "~",
            "#",
            "##",
            ".cache",
            ".lock",
            "__pycache__",
            "main",
        ] {
            assert!(!is_junk(name), "{name}");
        }
    }
}
