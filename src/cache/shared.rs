//! The cache-wide blob store of huggingface_hub, `hub/blobs`: listing its content, and deleting from it by the client's
//! protocol.
//!
//! `<2 hex>/<xet hash>` is a payload, `<xet hash>.refs` beside it lists the `<repo folder>/blobs/<etag>` that link to
//! it, and `<xet hash>.lock` guards both. The list is only a hint: a line counts as long as the link that it names
//! leads to the payload. A payload without a readable list is never deleted, since it may be in use.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::layout::{self, Layout};
use super::scan::{Problem, ProblemKind};
use super::{lock, quarantine, read, remove};
use crate::error::{Error, Result, plain_io};
use crate::platform::{self, Inode};

/// Largest list of references that is read, in bytes.
const MAX_REFS: u64 = 64 << 20;
/// How long to wait for a payload's lock. The client holds it only briefly.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A payload in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// `hub/blobs/<2 hex>/<xet hash>`
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// The file behind it.
    pub inode: Option<Inode>,
    /// Last change of the payload or of its folder.
    pub modified: Option<SystemTime>,
    /// The listed `blobs/<etag>` that really link here; `None` if that cannot be determined.
    pub references: Option<BTreeSet<PathBuf>>,
}

/// The result of sweeping a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweepOutcome {
    /// Deleted, with the number of bytes freed.
    Freed(u64),
    /// Kept, with the number of links that lead to it.
    Referenced(usize),
    /// Kept, because its list is missing or unreadable.
    Unknown,
    /// Kept, because another process holds its lock.
    Locked,
}

/// Returns whether the root has a store that huggingface_hub would use: a real folder with the marker of a known
/// version.
pub fn is_store(layout: &Layout) -> bool {
    let store = layout.shared_store();
    let marker = store.join(layout::SHARED_MARKER);
    let content = || read::read_small(&marker, 16).ok().flatten();
    fs::symlink_metadata(&store).is_ok_and(|meta| meta.is_dir())
        && fs::symlink_metadata(&marker).is_ok_and(|meta| meta.is_file())
        && content().as_deref() == Some(layout::SHARED_MARKER_CONTENT.as_bytes())
}

/// Lists all payloads, sorted by path, and everything that could not be read.
pub fn payloads(layout: &Layout) -> (Vec<Payload>, Vec<Problem>) {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    if !is_store(layout) {
        return (found, problems);
    }
    let mut unreadable = |path: &Path, error: &io::Error| {
        let detail = format!("cannot be read: {}", plain_io(error));
        problems.push(Problem { path: path.to_path_buf(), kind: ProblemKind::Unreadable, detail });
    };
    let mut entries = |dir: &Path| -> Vec<fs::DirEntry> {
        let list = fs::read_dir(dir).and_then(|entries| entries.collect());
        list.unwrap_or_else(|error| {
            unreadable(dir, &error);
            Vec::new()
        })
    };
    for folder in entries(&layout.shared_store()) {
        if !is_hex(&folder.file_name(), 2) || !folder.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        // A payload that was copied here may have an old modification time.
        let arrived = folder.metadata().and_then(|meta| meta.modified()).ok();
        for entry in entries(&folder.path()) {
            let path = entry.path();
            if !is_payload(layout, &path) {
                continue;
            }
            if let Ok(meta) = entry.metadata()
                && meta.is_file()
            {
                let references = read_references(layout, &path);
                let (inode, modified) = (platform::inode(&path, &meta), meta.modified().ok().max(arrived));
                found.push(Payload { path, size: meta.len(), inode, modified, references });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    (found, problems)
}

/// Returns whether `path` is named like a payload of this store.
fn is_payload(layout: &Layout, path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(layout.shared_store()) else { return false };
    let parts: Vec<_> = inside.iter().collect();
    let [folder, name] = parts.as_slice() else { return false };
    is_hex(name, 64) && folder.as_encoded_bytes() == &name.as_encoded_bytes()[..2]
}

fn is_hex(name: &std::ffi::OsStr, length: usize) -> bool {
    let name = name.as_encoded_bytes();
    name.len() == length && name.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
}

fn sibling(payload: &Path, end: &str) -> PathBuf {
    let mut name = payload.file_name().unwrap_or_default().to_os_string();
    name.push(end);
    payload.with_file_name(name)
}

/// Reads the list of a payload, and returns those links that lead to it; `None` if the list is missing or unreadable,
/// or one of the links is unreadable.
fn read_references(layout: &Layout, payload: &Path) -> Option<BTreeSet<PathBuf>> {
    let list = sibling(payload, ".refs");
    if !fs::symlink_metadata(&list).is_ok_and(|meta| meta.is_file()) {
        return None;
    }
    let text = String::from_utf8(read::read_small(&list, MAX_REFS).ok()??).ok()?;
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| is_reference(Path::new(line))) {
        let link = layout.root().join(line);
        if leads_to(layout, &link, payload).ok()? {
            found.insert(link);
        }
    }
    Some(found)
}

/// Returns whether a line names `<repo folder>/blobs/<etag>`. Repo types of future clients are accepted as well.
fn is_reference(line: &Path) -> bool {
    let parts: Vec<_> = line.components().collect();
    let [Component::Normal(repo), Component::Normal(blobs), Component::Normal(_)] = parts.as_slice() else {
        return false;
    };
    let repo = repo.to_string_lossy();
    repo.split_once("--").is_some_and(|(kind, id)| !kind.is_empty() && !id.is_empty()) && *blobs == "blobs"
}

/// Returns whether `link` exists and leads to this payload.
fn leads_to(layout: &Layout, link: &Path, payload: &Path) -> io::Result<bool> {
    let target = match fs::symlink_metadata(link) {
        Ok(meta) if meta.is_symlink() => fs::read_link(link)?,
        Ok(_) => return Ok(false),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    let folder = link.parent().unwrap_or(Path::new(""));
    let named = layout::shared_target(&layout.shared_store(), folder, &target).is_some_and(|target| target == payload);
    // The link may spell the path differently, but still open this file.
    Ok(named || fs::canonicalize(link).is_ok_and(|real| fs::canonicalize(payload).is_ok_and(|payload| real == payload)))
}

/// Deletes a payload if no link needs it any more, as huggingface_hub does: under its lock, after reading its list
/// again. `known` are links found by a scan, which count even if they are missing from the list.
///
/// # Errors
/// If the lock cannot be taken, or the payload cannot be deleted.
pub fn sweep(layout: &Layout, payload: &Path, known: &[PathBuf]) -> Result<SweepOutcome> {
    remove_unused(layout, payload, known, || {
        remove::delete_file(payload).map_err(|e| Error::io("cannot delete", payload, &e))
    })
}

/// Moves a payload with wrong bytes into the quarantine if no link needs it any more. See [`sweep`].
///
/// # Errors
/// If the lock cannot be taken, or the payload cannot be moved.
pub fn quarantine(layout: &Layout, payload: &Path, known: &[PathBuf]) -> Result<SweepOutcome> {
    remove_unused(layout, payload, known, || quarantine::set_aside(layout, payload).map(|_| 0))
}

fn remove_unused(
    layout: &Layout,
    payload: &Path,
    known: &[PathBuf],
    remove: impl FnOnce() -> Result<u64>,
) -> Result<SweepOutcome> {
    let failed = |error: io::Error| Error::io("cannot delete", payload, &error);
    if !is_store(layout) || !is_payload(layout, payload) || !remove::is_inside(layout.root(), payload) {
        return Ok(SweepOutcome::Unknown);
    }
    let Some(_lock) = wait_for_lock(payload)? else { return Ok(SweepOutcome::Locked) };
    let Some(mut references) = read_references(layout, payload) else { return Ok(SweepOutcome::Unknown) };
    for link in known {
        if leads_to(layout, link, payload).map_err(failed)? {
            references.insert(link.clone());
        }
    }
    if !references.is_empty() {
        rewrite_list(layout, payload, &references).map_err(failed)?;
        return Ok(SweepOutcome::Referenced(references.len()));
    }
    // Only regular files are deleted. Of a payload that is already gone, the list may remain.
    if !fs::symlink_metadata(payload).is_ok_and(|meta| meta.is_file()) {
        return Ok(SweepOutcome::Freed(0));
    }
    let freed = remove()?;
    remove::delete_file(&sibling(payload, ".refs")).map_err(failed)?;
    Ok(SweepOutcome::Freed(freed))
}

fn wait_for_lock(payload: &Path) -> Result<Option<lock::Lock>> {
    let path = sibling(payload, ".lock");
    let started = Instant::now();
    loop {
        match lock::try_store_lock(&path)? {
            Some(lock) => return Ok(Some(lock)),
            None if started.elapsed() > LOCK_TIMEOUT => return Ok(None),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn rewrite_list(layout: &Layout, payload: &Path, references: &BTreeSet<PathBuf>) -> io::Result<()> {
    let mut content = String::new();
    for link in references {
        let line: Vec<_> =
            link.strip_prefix(layout.root()).unwrap_or(link).iter().map(|p| p.to_string_lossy()).collect();
        content += &format!("{}\n", line.join("/"));
    }
    let temporary = sibling(payload, &format!(".refs.{:08x}.tmp", fastrand::u32(..)));
    let write = || {
        let mut file = File::create_new(&temporary)?;
        file.write_all(content.as_bytes())?;
        // All users of a shared cache append to it.
        platform::widen_mode(&file, 0o666)?;
        file.sync_all()?;
        fs::rename(&temporary, sibling(payload, ".refs"))
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Store {
        _dir: tempfile::TempDir,
        layout: Layout,
        payload: PathBuf,
    }

    /// A store with one payload, which the named repos link to; `listed` is what its list says.
    fn store(linked: &[&str], listed: Option<&str>) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let hash = "ab".repeat(32);
        let payload = layout.shared_store().join("ab").join(&hash);
        fs::create_dir_all(payload.parent().unwrap()).unwrap();
        fs::write(layout.shared_store().join(layout::SHARED_MARKER), layout::SHARED_MARKER_CONTENT).unwrap();
        fs::write(&payload, b"payload").unwrap();
        for repo in linked {
            let blobs = layout.root().join(repo).join("blobs");
            fs::create_dir_all(&blobs).unwrap();
            symlink(format!("../../blobs/ab/{hash}"), blobs.join("etag")).unwrap();
        }
        listed.into_iter().for_each(|text| fs::write(sibling(&payload, ".refs"), text).unwrap());
        Store { _dir: dir, layout, payload }
    }

    fn list(store: &Store) -> String {
        fs::read_to_string(sibling(&store.payload, ".refs")).unwrap()
    }

    #[test]
    fn an_unreferenced_payload_is_deleted_with_its_list() {
        let store = store(&[], Some("models--a--b/blobs/etag\n"));
        assert_eq!(sweep(&store.layout, &store.payload, &[]).unwrap(), SweepOutcome::Freed(7));
        assert!(!store.payload.exists() && !sibling(&store.payload, ".refs").exists());
        assert!(sibling(&store.payload, ".lock").exists(), "the lock stays");
    }

    #[test]
    fn one_link_keeps_the_payload_and_the_list_is_cleaned() {
        let store = store(&["models--a--b"], Some("models--gone/blobs/etag\nmodels--a--b/blobs/etag\n../x/blobs/y\n"));
        assert_eq!(sweep(&store.layout, &store.payload, &[]).unwrap(), SweepOutcome::Referenced(1));
        assert_eq!(list(&store), "models--a--b/blobs/etag\n");
        assert!(store.payload.exists());
    }

    #[test]
    fn a_link_missing_from_the_list_keeps_the_payload_and_is_added() {
        let store = store(&["models--a--b"], Some(""));
        let known = [store.layout.root().join("models--a--b/blobs/etag")];
        assert_eq!(sweep(&store.layout, &store.payload, &known).unwrap(), SweepOutcome::Referenced(1));
        assert_eq!(list(&store), "models--a--b/blobs/etag\n");
    }

    #[test]
    fn a_link_that_spells_the_path_differently_keeps_the_payload() {
        let store = store(&[], Some("models--a--b/blobs/etag\n"));
        let blobs = store.layout.root().join("models--a--b/blobs");
        fs::create_dir_all(&blobs).unwrap();
        let alias = store.layout.root().with_file_name("alias");
        symlink(store.layout.root(), &alias).unwrap();
        let hash = store.payload.file_name().unwrap();
        symlink(alias.join("blobs/ab").join(hash), blobs.join("etag")).unwrap();
        assert_eq!(sweep(&store.layout, &store.payload, &[]).unwrap(), SweepOutcome::Referenced(1));
        // The same cache by its other name.
        let other = Layout::new(alias.join("../hub"));
        assert_eq!(payloads(&other).0[0].references.as_ref().unwrap().len(), 1);
    }

    #[test]
    fn without_a_readable_list_or_a_known_marker_the_payload_stays() {
        let unlisted = store(&[], None);
        assert_eq!(sweep(&unlisted.layout, &unlisted.payload, &[]).unwrap(), SweepOutcome::Unknown);
        let linked_list = store(&[], None);
        symlink("/dev/null", sibling(&linked_list.payload, ".refs")).unwrap();
        assert_eq!(sweep(&linked_list.layout, &linked_list.payload, &[]).unwrap(), SweepOutcome::Unknown);
        let newer = store(&[], Some(""));
        fs::write(newer.layout.shared_store().join(layout::SHARED_MARKER), "2\n").unwrap();
        assert_eq!(sweep(&newer.layout, &newer.payload, &[]).unwrap(), SweepOutcome::Unknown);
        assert_eq!(payloads(&newer.layout).0, []);
        for store in [unlisted, linked_list, newer] {
            assert!(store.payload.exists());
        }
    }

    #[test]
    fn payloads_report_their_references() {
        let store = store(&["models--a--b", "datasets--c"], Some("models--a--b/blobs/etag\ndatasets--c/blobs/etag\n"));
        let (found, problems) = payloads(&store.layout);
        assert_eq!((found.len(), problems), (1, vec![]));
        assert_eq!(found[0].references.as_ref().unwrap().len(), 2);
    }
}
