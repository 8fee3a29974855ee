//! Detects changes to the cache, by events from the operating system or by polling.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};
use serde::Serialize;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::relevant::{is_read_by_push, may_add_content};
use crate::cache::inventory::{Inventory, SnapshotFile};
use crate::cache::scan;
use crate::model::ids::RepoName;
use crate::task::blocking;

/// Capacity of the channel of changes. Losing some is harmless, since each only says that something changed.
const CAPACITY: usize = 64;
/// Attempts to set up a watch. A folder can disappear meanwhile, as huggingface_hub's probes do.
const ATTEMPTS: u32 = 5;

/// A change that a source reports.
#[derive(Debug)]
pub enum Change {
    /// Something in the cache changed.
    Changed,
    /// A new repo folder is a link, whose target is not being watched yet.
    Linked,
    /// The source has failed, for this reason.
    Broken(String),
}

/// How changes are detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// By events from the operating system.
    Events,
    /// By polling.
    Poll,
}

/// A running source, which stops when dropped.
pub struct Source {
    /// How changes are detected.
    pub how: How,
    changes: Receiver<Change>,
    _watcher: Option<RecommendedWatcher>,
    _poller: Option<StopOnDrop>,
}

struct StopOnDrop(tokio::task::JoinHandle<()>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Source {
    /// Watches by events from the operating system. All changes after this returns are detected.
    ///
    /// # Errors
    /// The reason why watching is not possible, such as an exhausted limit on watches.
    pub fn events(root: &Path) -> Result<Source, String> {
        let folders = watched_folders(root).map_err(|error| crate::error::plain_io(&error))?;
        let (sender, changes) = channel(CAPACITY);
        let bases = folders.clone();
        let handler = move |event| handle(&bases, &sender, event);
        // Following the many links in snapshots, which point to files, would be slow and useless.
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(handler, config).map_err(|error| reason(&error))?;
        for folder in &folders {
            watch(&mut watcher, &folder.path)?;
        }
        Ok(Source { how: How::Events, changes, _watcher: Some(watcher), _poller: None })
    }

    /// Polls at this interval. All changes after this returns are detected.
    pub async fn poll(root: &Path, every: Duration) -> Source {
        let (sender, changes) = channel(CAPACITY);
        let root = root.to_path_buf();
        let mut known = take_fingerprint(&root).await;
        let poller = tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let found = take_fingerprint(&root).await;
                if found != known && sender.send(Change::Changed).await.is_err() {
                    return;
                }
                known = found;
            }
        });
        Source { how: How::Poll, changes, _watcher: None, _poller: Some(StopOnDrop(poller)) }
    }

    /// Waits for the next change.
    pub async fn next(&mut self) -> Change {
        self.changes.recv().await.unwrap_or_else(|| Change::Broken("the event stream ended".into()))
    }
}

/// A watched folder.
#[derive(Debug, Clone)]
struct WatchedFolder {
    path: PathBuf,
    /// Its path relative to the cache root, before following links.
    relative: PathBuf,
}

/// Returns the cache root, and the targets of repo folders that are links.
fn watched_folders(root: &Path) -> std::io::Result<Vec<WatchedFolder>> {
    let mut folders = vec![WatchedFolder { path: root.canonicalize()?, relative: PathBuf::new() }];
    for entry in std::fs::read_dir(root)?.flatten() {
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        let is_repo = entry.file_name().to_str().is_some_and(|name| RepoName::from_folder(name).is_some());
        if is_link
            && is_repo
            && let Ok(path) = entry.path().canonicalize()
            && path.is_dir()
        {
            folders.push(WatchedFolder { path, relative: entry.file_name().into() });
        }
    }
    Ok(folders)
}

fn watch(watcher: &mut RecommendedWatcher, folder: &Path) -> Result<(), String> {
    for _ in 1..ATTEMPTS {
        match watcher.watch(folder, RecursiveMode::Recursive) {
            Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
            result => return result.map_err(|error| reason(&error)),
        }
    }
    watcher.watch(folder, RecursiveMode::Recursive).map_err(|error| reason(&error))
}

fn reason(error: &notify::Error) -> String {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => "the system's limit on watched folders has been reached".into(),
        notify::ErrorKind::PathNotFound => "a folder disappeared".into(),
        notify::ErrorKind::Io(source) => crate::error::plain_io(source),
        _ => error.to_string(),
    }
}

/// Handles an event, on the watcher's own thread.
fn handle(folders: &[WatchedFolder], sender: &Sender<Change>, event: notify::Result<Event>) {
    match event {
        Ok(event) if is_linked_repo(folders, &event) => {
            let _ = sender.blocking_send(Change::Linked);
        }
        Ok(event) if is_relevant(folders, &event) => {
            // If the channel is full, enough changes are pending.
            let _ = sender.try_send(Change::Changed);
        }
        Ok(_) => {}
        Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
        Err(error) => {
            let _ = sender.blocking_send(Change::Broken(reason(&error)));
        }
    }
}

/// Whether the event is about a new repo folder that is a link.
fn is_linked_repo(folders: &[WatchedFolder], event: &Event) -> bool {
    let Some(path) = event.paths.last().filter(|_| may_add_content(event.kind)) else { return false };
    let root = folders.first().map(|folder| folder.path.as_path());
    let is_repo = path.file_name().and_then(|name| RepoName::from_folder(name.to_str()?)).is_some();
    is_repo && path.parent() == root && path.is_symlink() && path.is_dir()
}

/// Whether an event may mean that there is something to push.
fn is_relevant(folders: &[WatchedFolder], event: &Event) -> bool {
    // Events were lost, so anything may have changed.
    if event.need_rescan() {
        return true;
    }
    may_add_content(event.kind)
        && event.paths.last().is_some_and(|path| {
            let relative = |folder: &WatchedFolder| Some(folder.relative.join(path.strip_prefix(&folder.path).ok()?));
            folders.iter().filter_map(relative).any(|relative| is_read_by_push(&relative))
        })
}

/// Scans the cache and returns its fingerprint, or `None` if the scan fails, which the watch itself detects.
async fn take_fingerprint(root: &Path) -> Option<u64> {
    let root = root.to_path_buf();
    blocking(move || scan::scan(&root).ok().map(|inventory| fingerprint(&inventory))).await
}

/// Computes a fingerprint of everything that a push may send: blobs, snapshots, refs and trees. It does not depend on
/// access times or downloads in flight.
fn fingerprint(inventory: &Inventory) -> u64 {
    let mut hash = DefaultHasher::new();
    for repo in &inventory.repos {
        repo.name.hash(&mut hash);
        for (id, blob) in &repo.blobs {
            (id, blob.size).hash(&mut hash);
        }
        for (commit, revision) in &repo.revisions {
            commit.hash(&mut hash);
            for (path, file) in &revision.files {
                path.hash(&mut hash);
                match file {
                    SnapshotFile::Link(id) => id.hash(&mut hash),
                    SnapshotFile::Real(file) => (file.size, file.modified).hash(&mut hash),
                }
            }
        }
        repo.refs.hash(&mut hash);
        repo.trees.hash(&mut hash);
    }
    for problem in inventory.problems() {
        (&problem.path, problem.kind).hash(&mut hash);
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const SHA1: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    #[test]
    fn the_fingerprint_covers_everything_that_is_pushed() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("models--a--b");
        let print = || fingerprint(&scan::scan(dir.path()).unwrap());
        let mut seen = vec![print()];
        let steps: [(&str, &dyn Fn()); 4] = [
            ("blob", &|| {
                fs::create_dir_all(repo.join("blobs")).unwrap();
                fs::write(repo.join("blobs").join(SHA1), "hello\n").unwrap();
            }),
            ("snapshot", &|| {
                let snapshot = repo.join("snapshots").join(COMMIT);
                fs::create_dir_all(&snapshot).unwrap();
                fs::write(snapshot.join("a"), "hello\n").unwrap();
            }),
            ("ref", &|| {
                fs::create_dir_all(repo.join("refs")).unwrap();
                fs::write(repo.join("refs/main"), COMMIT).unwrap();
            }),
            ("tree", &|| {
                fs::create_dir_all(repo.join("trees")).unwrap();
                fs::write(repo.join("trees").join(format!("{COMMIT}.json")), "{}").unwrap();
            }),
        ];
        for (what, step) in steps {
            step();
            let found = print();
            assert!(!seen.contains(&found), "{what}");
            seen.push(found);
        }
        fs::write(repo.join("blobs").join(format!("{SHA1}.incomplete")), "hel").unwrap();
        fs::create_dir_all(dir.path().join(".locks/.hf-cache-sync")).unwrap();
        fs::read(repo.join("blobs").join(SHA1)).unwrap();
        assert_eq!(Some(&print()), seen.last());
    }

    #[cfg(unix)]
    #[test]
    fn targets_of_linked_repo_folders_are_watched() {
        let dir = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (dir.path().join("hub"), dir.path().join("elsewhere"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, root.join("models--a--b")).unwrap();
        let folders = watched_folders(&root).unwrap();
        let relevant = |path: PathBuf| {
            let kind = notify::EventKind::Create(notify::event::CreateKind::File);
            is_relevant(&folders, &Event::new(kind).add_path(path))
        };
        let elsewhere = elsewhere.canonicalize().unwrap();
        assert!(relevant(elsewhere.join("refs/main")) && !relevant(elsewhere.join("notes.txt")));
        let root = root.canonicalize().unwrap();
        assert!(relevant(root.join("models--c--d/refs/main")));
        let linked = |name: &str| {
            let kind = notify::EventKind::Create(notify::event::CreateKind::Any);
            is_linked_repo(&folders, &Event::new(kind).add_path(root.join(name)))
        };
        fs::create_dir(root.join("models--c--d")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, root.join("notes")).unwrap();
        assert!(linked("models--a--b") && !linked("models--c--d") && !linked("notes") && !linked("models--e--f"));
    }
}
