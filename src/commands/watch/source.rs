//! Where news of changes comes from: the operating system, or a look at the cache every few seconds.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};
use serde::Serialize;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::relevant::{brings_something, is_pushed};
use crate::cache::scan::{self, Inventory, SnapshotFile};
use crate::model::ids::RepoName;
use crate::task::blocking;

/// Changes that wait to be looked at; more are not needed, since each says only that there was one.
const WAITING: usize = 64;
/// How often watching is tried again when a folder vanishes while it is set up, as the client's probes do.
const TRIES: u32 = 5;

/// What a source tells.
#[derive(Debug)]
pub enum Change {
    /// There is something new.
    Changed,
    /// A repo folder has come that is a link: what happens at its target is not told yet.
    Linked,
    /// The source cannot go on, and why.
    Broken(String),
}

/// How changes are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// By the operating system's events.
    Events,
    /// By looking.
    Poll,
}

/// A running source; it stops when it is dropped.
pub struct Source {
    /// How it works.
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
    /// Asks the operating system. What happens from the return on is noticed.
    ///
    /// # Errors
    /// Says why that is not possible, such as a limit on watches that is used up.
    pub fn events(root: &Path) -> Result<Source, String> {
        let places = places(root).map_err(|error| crate::error::plain_io(&error))?;
        let (sender, changes) = channel(WAITING);
        let bases = places.clone();
        let handler = move |event| handle(&bases, &sender, event);
        // Links in snapshots are many and lead to files: following them would look at each.
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(handler, config).map_err(|error| reason(&error))?;
        for place in &places {
            watch(&mut watcher, &place.folder)?;
        }
        Ok(Source { how: How::Events, changes, _watcher: Some(watcher), _poller: None })
    }

    /// Looks every so often. What happens from the return on is noticed.
    pub async fn poll(root: &Path, every: Duration) -> Source {
        let (sender, changes) = channel(WAITING);
        let root = root.to_path_buf();
        let mut known = look(&root).await;
        let poller = tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let found = look(&root).await;
                if found != known && sender.send(Change::Changed).await.is_err() {
                    return;
                }
                known = found;
            }
        });
        Source { how: How::Poll, changes, _watcher: None, _poller: Some(StopOnDrop(poller)) }
    }

    /// The next change.
    pub async fn next(&mut self) -> Change {
        self.changes.recv().await.unwrap_or_else(|| Change::Broken("no more events come".into()))
    }
}

/// A folder that is watched, and what it is, relative to the cache root.
#[derive(Debug, Clone)]
struct Place {
    folder: PathBuf,
    relative: PathBuf,
}

/// The root, and the targets of repo folders that are links.
fn places(root: &Path) -> std::io::Result<Vec<Place>> {
    let mut places = vec![Place { folder: root.canonicalize()?, relative: PathBuf::new() }];
    for entry in std::fs::read_dir(root)?.flatten() {
        let linked = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        let repo = entry.file_name().to_str().is_some_and(|name| RepoName::from_folder(name).is_some());
        if linked
            && repo
            && let Ok(folder) = entry.path().canonicalize()
            && folder.is_dir()
        {
            places.push(Place { folder, relative: entry.file_name().into() });
        }
    }
    Ok(places)
}

fn watch(watcher: &mut RecommendedWatcher, folder: &Path) -> Result<(), String> {
    for _ in 1..TRIES {
        match watcher.watch(folder, RecursiveMode::Recursive) {
            Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
            done => return done.map_err(|error| reason(&error)),
        }
    }
    watcher.watch(folder, RecursiveMode::Recursive).map_err(|error| reason(&error))
}

fn reason(error: &notify::Error) -> String {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => "the system's limit on watched folders is reached".into(),
        notify::ErrorKind::PathNotFound => "a folder vanished".into(),
        notify::ErrorKind::Io(source) => crate::error::plain_io(source),
        _ => error.to_string(),
    }
}

/// Called on the watcher's own thread.
fn handle(places: &[Place], sender: &Sender<Change>, event: notify::Result<Event>) {
    match event {
        Ok(event) if is_linked_repo(places, &event) => {
            let _ = sender.blocking_send(Change::Linked);
        }
        Ok(event) if is_news(places, &event) => {
            // A full channel has enough of them.
            let _ = sender.try_send(Change::Changed);
        }
        Ok(_) => {}
        Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
        Err(error) => {
            let _ = sender.blocking_send(Change::Broken(reason(&error)));
        }
    }
}

/// Whether a repo folder came that is a link to one elsewhere.
fn is_linked_repo(places: &[Place], event: &Event) -> bool {
    let Some(path) = event.paths.last().filter(|_| brings_something(event.kind)) else { return false };
    let root = places.first().map(|place| place.folder.as_path());
    let named = path.file_name().and_then(|name| RepoName::from_folder(name.to_str()?)).is_some();
    named && path.parent() == root && path.is_symlink() && path.is_dir()
}

fn is_news(places: &[Place], event: &Event) -> bool {
    // Events were lost: anything may have happened.
    if event.need_rescan() {
        return true;
    }
    brings_something(event.kind)
        && event.paths.last().is_some_and(|path| {
            let relative = |place: &Place| Some(place.relative.join(path.strip_prefix(&place.folder).ok()?));
            places.iter().filter_map(relative).any(|relative| is_pushed(&relative))
        })
}

/// The fingerprint of what is there; `None` when that cannot be told, which the watch itself finds out.
async fn look(root: &Path) -> Option<u64> {
    let root = root.to_path_buf();
    blocking(move || scan::scan(&root).ok().map(|inventory| fingerprint(&inventory))).await
}

/// Changes with everything that a push may send: blobs, snapshots, refs, trees; not with reading or downloads in
/// flight.
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
                    SnapshotFile::Real { size, modified, .. } => (size, modified).hash(&mut hash),
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
    fn the_fingerprint_changes_with_what_is_pushed() {
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
    fn a_repo_folder_that_is_a_link_is_watched_at_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (dir.path().join("hub"), dir.path().join("elsewhere"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, root.join("models--a--b")).unwrap();
        let places = places(&root).unwrap();
        let news = |path: PathBuf| {
            let kind = notify::EventKind::Create(notify::event::CreateKind::File);
            is_news(&places, &Event::new(kind).add_path(path))
        };
        let elsewhere = elsewhere.canonicalize().unwrap();
        assert!(news(elsewhere.join("refs/main")) && !news(elsewhere.join("notes.txt")));
        let root = root.canonicalize().unwrap();
        assert!(news(root.join("models--c--d/refs/main")));
        let comes = |name: &str| {
            let kind = notify::EventKind::Create(notify::event::CreateKind::Any);
            is_linked_repo(&places, &Event::new(kind).add_path(root.join(name)))
        };
        fs::create_dir(root.join("models--c--d")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, root.join("notes")).unwrap();
        assert!(comes("models--a--b") && !comes("models--c--d") && !comes("notes") && !comes("models--e--f"));
    }
}
