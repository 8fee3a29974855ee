//! The cache-wide blob store of huggingface_hub, `hub/blobs`: listing its content, joining it, and deleting from it by the
//! client's protocol.
//!
//! `<2 hex>/<xet hash>` is a payload, `<xet hash>.refs` beside it lists the `<repo folder>/blobs/<etag>` that link to
//! it, and `<xet hash>.lock` guards both. The list is only a hint: a line counts as long as the link that it names
//! leads to the payload. A payload without a readable list is never deleted, since it may be in use.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::inside::{self, ensure_dir, open_dir};
use super::inventory::Problem;
use super::layout::{self, Layout};
use super::place::rename_over;
use super::{lock, quarantine, read, remove};
use crate::error::{Error, Result};
use crate::model::ids::{BlobId, RepoName};
use crate::platform::{self, Inode, Opening};

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
    let mut entries = |dir: &Path| -> Vec<fs::DirEntry> {
        let list = fs::read_dir(dir).and_then(|entries| entries.collect());
        list.unwrap_or_else(|error| {
            problems.push(Problem::unreadable(dir, &error));
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

/// Deletes a payload if no link needs it, as huggingface_hub does: under its lock, after reading its list again. `known` are
/// links found by a scan, which count even if they are missing from the list.
///
/// # Errors
/// If the lock cannot be taken, or the payload cannot be deleted.
pub fn sweep(layout: &Layout, payload: &Path, known: &[PathBuf]) -> Result<SweepOutcome> {
    remove_unused(layout, payload, known, || {
        remove::delete_file(layout.root(), payload).map_err(|e| Error::io("cannot delete", payload, &e))
    })
}

/// Moves a payload with wrong bytes into the quarantine if no link needs it. See [`sweep`].
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
    let Some(_lock) = wait_for_lock(layout, payload)? else { return Ok(SweepOutcome::Locked) };
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
    remove::delete_file(layout.root(), &sibling(payload, ".refs")).map_err(failed)?;
    Ok(SweepOutcome::Freed(freed))
}

/// Makes `blobs/<etag>` a link to a payload that the store already has, as huggingface_hub does. Returns `false` if it has
/// no usable one: its bytes must be those of the blob, regardless of its name.
///
/// # Errors
/// If the payload's lock cannot be taken, or the link cannot be created.
pub fn link(layout: &Layout, repo: &RepoName, blob: &BlobId, size: u64, xet_hash: &BlobId) -> Result<bool> {
    let payload = layout.payload(xet_hash);
    // Hashing may take long, so it is done before the lock is taken, so that other processes do not wait.
    let verified = usable(layout, &payload, size).filter(|_| read::matches_name(&payload, blob, size));
    if verified.is_none() {
        return Ok(false);
    }
    ensure_dir(layout.root(), &layout.blobs(repo))?;
    let Some(_lock) = wait_for_lock(layout, &payload)? else { return Ok(false) };
    if usable(layout, &payload, size) != verified {
        return Ok(false);
    }
    add_reference(layout, repo, blob, &payload).map_err(|e| Error::io("cannot link to", &payload, &e))?;
    Ok(true)
}

/// Moves a blob into the store and leaves a link in its place, as huggingface_hub does after a download by Xet. The caller
/// has verified the blob and holds huggingface_hub's lock on it. Other repos use the payload by `xet_hash` alone, so the
/// bytes must have that hash, unless it is trusted because the Hub itself gave it. Returns `false`, and leaves the blob as
/// it is, if they do not, or the store cannot take it.
///
/// # Errors
/// If the payload's lock cannot be taken, or the blob is lost between the two.
pub fn publish(
    layout: &Layout,
    repo: &RepoName,
    blob: &BlobId,
    size: u64,
    xet_hash: &BlobId,
    is_trusted: bool,
) -> Result<bool> {
    let (file, payload) = (layout.blob(repo, blob), layout.payload(xet_hash));
    let is_regular = fs::symlink_metadata(&file).is_ok_and(|meta| meta.is_file() && meta.len() == size);
    if !is_store(layout) || !is_regular || fs::symlink_metadata(&payload).is_ok() {
        return Ok(false);
    }
    let has_hash = || read::open_quietly(&file).and_then(crate::hash::xet_hash).is_ok_and(|hash| hash == *xet_hash);
    if !is_trusted && !has_hash() {
        tracing::debug!(
            "{} has another Xet hash than {xet_hash}, and stays out of the cache-wide store",
            file.display()
        );
        return Ok(false);
    }
    let failed = |error: io::Error| Error::io("cannot move a blob to", &payload, &error);
    let folder = payload.parent().unwrap_or(&payload);
    let folder = open_dir(layout.root(), folder)?;
    platform::copy_folder_mode(layout.root(), &folder).map_err(failed)?;
    let Some(_lock) = wait_for_lock(layout, &payload)? else { return Ok(false) };
    // The client may have published it meanwhile.
    if fs::symlink_metadata(&payload).is_ok() {
        return Ok(false);
    }
    let opened = inside::open_file(layout.root(), &file, Opening::Existing, 0).map_err(failed)?;
    platform::make_payload(layout.root(), &folder, &opened).map_err(failed)?;
    drop(opened);
    append_reference(layout, repo, blob, &payload).map_err(failed)?;
    inside::rename(layout.root(), &file, &payload).map_err(failed)?;
    if let Err(error) = replace_by_link(layout, repo, blob, &payload) {
        // Under the lock, so that no prune takes the payload first.
        let blobs = open_dir(layout.root(), &layout.blobs(repo))?;
        read::copy_quietly(&payload, &blobs, blob.to_string().as_ref()).map_err(failed)?;
        tracing::debug!(%error, "{} stays out of the cache-wide store", file.display());
        return Ok(false);
    }
    Ok(true)
}

/// Identifies the file that was verified.
#[derive(PartialEq, Eq)]
struct FileIdentity {
    size: u64,
    modified: Option<SystemTime>,
    inode: Option<(u64, u64)>,
}

/// Identifies a payload, if it is a readable regular file of this size.
fn usable(layout: &Layout, payload: &Path, size: u64) -> Option<FileIdentity> {
    let fits = |meta: &fs::Metadata| meta.is_file() && meta.len() == size;
    let meta = fs::symlink_metadata(payload).ok().filter(fits)?;
    let inside = is_store(layout) && is_payload(layout, payload) && remove::is_inside(layout.root(), payload);
    let inode = platform::inode(payload, &meta).map(|inode| inode.id);
    (inside && read::open_quietly(payload).is_ok()).then(|| FileIdentity {
        size,
        modified: meta.modified().ok(),
        inode,
    })
}

/// Lists `blobs/<etag>` as a reference, and then makes it a link. The other way round, a prune could miss the link.
fn add_reference(layout: &Layout, repo: &RepoName, blob: &BlobId, payload: &Path) -> io::Result<()> {
    append_reference(layout, repo, blob, payload)?;
    replace_by_link(layout, repo, blob, payload)
}

fn append_reference(layout: &Layout, repo: &RepoName, blob: &BlobId, payload: &Path) -> io::Result<()> {
    let list = sibling(payload, ".refs");
    if fs::symlink_metadata(&list).is_ok_and(|meta| !meta.is_file()) {
        return Err(io::Error::other("its list of references is not a file"));
    }
    debug_assert!(layout.blob(repo, blob).starts_with(layout.root()));
    let mut file = inside::open_file(layout.root(), &list, Opening::Append, 0o666)?;
    // All users of a shared cache append to it.
    let _ = platform::widen_mode(&file, 0o666);
    file.write_all(format!("{}/blobs/{blob}\n", repo.folder()).as_bytes())?;
    file.sync_all()
}

fn replace_by_link(layout: &Layout, repo: &RepoName, blob: &BlobId, payload: &Path) -> io::Result<()> {
    let inside = payload.strip_prefix(layout.root()).map_err(io::Error::other)?;
    let temporary = layout.blobs(repo).join(format!(".{blob}.{:08x}.shared", fastrand::u32(..)));
    let target = Path::new("..").join("..").join(inside);
    let root = layout.root();
    inside::symlink(root, &target.to_string_lossy(), &temporary)?;
    let renamed = rename_over(root, &temporary, &layout.blob(repo, blob));
    renamed.inspect_err(|_| drop(inside::remove_file(root, &temporary)))
}

fn wait_for_lock(layout: &Layout, payload: &Path) -> Result<Option<lock::Lock>> {
    let path = sibling(payload, ".lock");
    let started = Instant::now();
    loop {
        match lock::try_store_lock(layout.root(), &path)? {
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
        let mut file = inside::open_file(layout.root(), &temporary, Opening::NewToWrite, 0o666)?;
        file.write_all(content.as_bytes())?;
        // All users of a shared cache append to it.
        platform::widen_mode(&file, 0o666)?;
        file.sync_all()?;
        inside::rename(layout.root(), &temporary, &sibling(payload, ".refs"))
    };
    write().inspect_err(|_| drop(inside::remove_file(layout.root(), &temporary)))
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
    fn a_published_blob_becomes_a_payload_with_a_reference() {
        use std::os::unix::fs::PermissionsExt;
        let store = store(&[], None);
        let (layout, hash): (&Layout, BlobId) = (&store.layout, "cd".repeat(32).parse().unwrap());
        let repo = RepoName::from_folder("models--a--b").unwrap();
        let blob: BlobId = crate::hash::blob_id_of(&hash, b"bytes");
        fs::create_dir_all(layout.blobs(&repo)).unwrap();
        fs::write(layout.blob(&repo, &blob), b"bytes").unwrap();
        assert!(publish(layout, &repo, &blob, 5, &hash, true).unwrap());
        let payload = layout.payload(&hash);
        assert_eq!(
            fs::read_link(layout.blob(&repo, &blob)).unwrap(),
            Path::new("../../blobs/cd").join("cd".repeat(32))
        );
        assert_eq!(fs::read(layout.blob(&repo, &blob)).unwrap(), b"bytes");
        assert_eq!(fs::read_to_string(sibling(&payload, ".refs")).unwrap(), format!("models--a--b/blobs/{blob}\n"));
        assert_eq!(fs::metadata(&payload).unwrap().permissions().mode() & 0o222, 0, "nobody writes to it");
        assert_eq!(sweep(layout, &payload, &[]).unwrap(), SweepOutcome::Referenced(1));

        // Another repo links to it. A blob with other bytes does not.
        let other = RepoName::from_folder("models--c").unwrap();
        assert!(link(layout, &other, &blob, 5, &hash).unwrap());
        assert_eq!(fs::read(layout.blob(&other, &blob)).unwrap(), b"bytes");
        let unlike = crate::hash::blob_id_of(&hash, b"BYTES");
        assert!(!link(layout, &other, &unlike, 5, &hash).unwrap());
        assert_eq!(sweep(layout, &payload, &[]).unwrap(), SweepOutcome::Referenced(2));
        assert!(!publish(layout, &other, &unlike, 5, &hash, true).unwrap(), "there is nothing to publish");
    }

    #[test]
    fn payloads_report_their_references() {
        let store = store(&["models--a--b", "datasets--c"], Some("models--a--b/blobs/etag\ndatasets--c/blobs/etag\n"));
        let (found, problems) = payloads(&store.layout);
        assert_eq!((found.len(), problems), (1, vec![]));
        assert_eq!(found[0].references.as_ref().unwrap().len(), 2);
    }
}
