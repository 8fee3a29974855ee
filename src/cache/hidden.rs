//! Where links lead that the scan does not follow, and what nobody could look into.
//!
//! A snapshot file is a link into its own repo's `blobs/`. People link more by hand: to another repo's blobs, to whole
//! folders, to the cache by another of its names (a bind mount, a linked root, an absolute path). Each such link keeps
//! the repo that it leads into. A place that cannot be read may hold such links to anything, and so keeps everything.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, FileType};
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::clients;
use crate::cache::layout::{self, Layout};
use crate::cache::litter::is_litter;
use crate::cache::scan::{Inventory, Place, Problem, ProblemKind, Repo, inode};
use crate::model::ids::RepoName;

/// Links in a chain that are followed; the system gives up at 40.
const HOPS: usize = 40;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Repos that something outside them links into, and the link.
    pub needed: BTreeMap<RepoName, PathBuf>,
    /// What could not be looked into, beside what the scan said to be unreadable.
    pub hidden: BTreeSet<PathBuf>,
    /// What the scan said to be unreadable, but which cannot hold a link: a file where a folder should be.
    pub harmless: BTreeSet<PathBuf>,
}

/// Looks behind everything that the scan did not understand.
pub fn look(inventory: &Inventory) -> Found {
    let mut look = Look::new(inventory);
    for problem in inventory.problems.iter().filter(|problem| problem.kind != ProblemKind::Unreadable) {
        look.stranger(&problem.path);
    }
    look.known(inventory.layout.root(), clients::may_hold_links_at_root);
    for repo in &inventory.repos {
        look.repo(repo);
        let folder = inventory.layout.repo(&repo.name);
        look.known(&folder, clients::may_hold_links_in_repo);
        look.known(&folder.join("snapshots"), |_| false);
        for commit in repo.revisions.keys() {
            look.litter(&repo.name, &inventory.layout.snapshot(&repo.name, commit));
        }
    }
    look.found
}

struct Look<'a> {
    layout: &'a Layout,
    roots: Vec<PathBuf>,
    /// Repo folders by device and inode.
    folders: HashMap<(u64, u64), RepoName>,
    names: BTreeSet<RepoName>,
    walked: HashSet<PathBuf>,
    found: Found,
}

impl<'a> Look<'a> {
    fn new(inventory: &'a Inventory) -> Self {
        let layout = &inventory.layout;
        let ids = inventory.repos.iter().filter_map(|repo| {
            let id = inode(&fs::metadata(layout.repo(&repo.name)).ok()?)?.id;
            Some((id, repo.name.clone()))
        });
        Look {
            layout,
            roots: std::iter::once(layout.root().to_path_buf()).chain(layout.root().canonicalize()).collect(),
            folders: ids.collect(),
            names: inventory.repos.iter().map(|repo| repo.name.clone()).collect(),
            walked: HashSet::new(),
            found: Found::default(),
        }
    }

    fn repo(&mut self, repo: &Repo) {
        let folder = self.layout.repo(&repo.name);
        for problem in &repo.problems {
            self.problem(repo, &folder, problem);
        }
        let elsewhere = repo.blobs.iter().filter(|(_, blob)| blob.place == Place::Elsewhere);
        let links: Vec<PathBuf> = elsewhere.map(|(id, _)| self.layout.blob(&repo.name, id)).collect();
        // The scan went through these.
        let parts = ["blobs", "snapshots"].map(|part| folder.join(part)).into_iter().chain([folder]);
        for link in links {
            self.link(Some(&repo.name), &link, false);
        }
        for link in parts.filter(|part| fs::symlink_metadata(part).is_ok_and(|meta| meta.is_symlink())) {
            self.folder_link(&repo.name, &link, false);
        }
    }

    fn problem(&mut self, repo: &Repo, folder: &Path, problem: &Problem) {
        let path = &problem.path;
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(_) => return self.hide(path),
        };
        if meta.is_symlink() {
            return match is_snapshot(folder, path) {
                true => self.folder_link(&repo.name, path, true),
                // A stranger's link into this very repo counts, too.
                false if problem.kind == ProblemKind::UnknownEntry => self.link(None, path, true),
                false => self.link(Some(&repo.name), path, true),
            };
        }
        match problem.kind {
            ProblemKind::Unreadable if meta.is_file() => drop(self.found.harmless.insert(path.clone())),
            ProblemKind::Unreadable => {}
            // A stranger's links into this very repo count, too.
            ProblemKind::UnknownEntry if meta.is_dir() => self.walk(None, path),
            _ if meta.is_dir() => self.walk(Some(&repo.name), path),
            // Something else where the folder of a snapshot should be: nobody knows what became of that.
            ProblemKind::ForeignLink if !meta.is_file() && is_snapshot(folder, path) => self.hide(path),
            _ => {}
        }
    }

    /// What the scan knows and passes over in a folder, by name or as litter: people keep links there all the same. What
    /// a file system keeps for itself holds none.
    fn known(&mut self, folder: &Path, is_known: fn(&str) -> bool) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if (is_known(name) || is_litter(name)) && name != "lost+found" {
                self.stranger(&entry.path());
            }
        }
    }

    /// What is called like litter in a snapshot: the scan knows of the links into its own repo alone.
    fn litter(&mut self, owner: &RepoName, snapshot: &Path) {
        let mut folders = vec![snapshot.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let path = entry.path();
                match entry.file_name().to_str().is_some_and(is_litter) {
                    true if kind.is_symlink() => self.link(Some(owner), &path, true),
                    true if kind.is_dir() => self.walk(Some(owner), &path),
                    false if kind.is_dir() => folders.push(path),
                    _ => {}
                }
            }
        }
    }

    /// An entry of the root that is no repo: what a later client, or a person, keeps there may use the repos.
    fn stranger(&mut self, path: &Path) {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_symlink() => self.link(None, path, false),
            Ok(meta) if meta.is_dir() => self.walk(None, path),
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.hide(path),
            _ => {}
        }
    }

    fn hide(&mut self, path: &Path) {
        self.found.hidden.insert(path.to_path_buf());
    }

    /// A link in place of a folder: one that leads nowhere now, as while a disk is not mounted, may have led to anything.
    fn folder_link(&mut self, owner: &RepoName, link: &Path, through: bool) {
        self.link(Some(owner), link, through);
        if fs::metadata(link).is_err() {
            self.hide(link);
        }
    }

    /// The repos on the way of a link, hop by hop; with `through`, also what is in a folder that it ends at.
    fn link(&mut self, owner: Option<&RepoName>, link: &Path, through: bool) {
        let mut at = link.to_path_buf();
        for _ in 0..HOPS {
            let target = match fs::read_link(&at) {
                Ok(target) => target,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(_) => return self.hide(link),
            };
            let next = at.parent().unwrap_or(Path::new("")).join(target);
            let inside = self.note(owner, link, &next);
            match fs::symlink_metadata(&next) {
                Ok(meta) if meta.is_symlink() => at = next,
                Ok(meta) if meta.is_dir() && through && !inside => return self.walk(owner, &next),
                Ok(_) => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    return self.note_by_name(owner, link, &next);
                }
                Err(_) => return self.hide(link),
            }
        }
        // A loop leads nowhere.
    }

    /// Notes the repo that `path` is in: by its spelling, and by which folders it really goes through. Whether it is
    /// in the cache at all.
    fn note(&mut self, owner: Option<&RepoName>, link: &Path, path: &Path) -> bool {
        let mut repos = BTreeSet::new();
        let mut inside = false;
        let named = layout::normalized(path);
        let real = path.parent().and_then(|folder| folder.canonicalize().ok());
        let real =
            real.zip(path.file_name()).map(|(folder, name)| folder.join(name)).or_else(|| path.canonicalize().ok());
        for path in [Some(&named), real.as_ref()].into_iter().flatten() {
            for root in &self.roots {
                if let Ok(rest) = path.strip_prefix(root) {
                    inside = true;
                    repos.extend(rest.iter().next().and_then(|name| RepoName::from_folder(name.to_str()?)));
                }
            }
        }
        // By another mount, the same folders have other names.
        for folder in real.iter().flat_map(|path| path.ancestors()) {
            let id = fs::metadata(folder).ok().and_then(|meta| inode(&meta)).map(|inode| inode.id);
            if let Some(repo) = id.and_then(|id| self.folders.get(&id)) {
                inside = true;
                repos.insert(repo.clone());
            }
        }
        self.need(owner, link, repos);
        inside
    }

    /// Of a link to nothing, as while a disk is not mounted: the repos of this cache that its text names.
    fn note_by_name(&mut self, owner: Option<&RepoName>, link: &Path, path: &Path) {
        let named = path.iter().filter_map(|part| RepoName::from_folder(part.to_str()?));
        let repos = named.filter(|name| self.names.contains(name)).collect();
        self.need(owner, link, repos);
    }

    fn need(&mut self, owner: Option<&RepoName>, link: &Path, repos: BTreeSet<RepoName>) {
        for repo in repos.into_iter().filter(|repo| Some(repo) != owner) {
            self.found.needed.entry(repo).or_insert_with(|| link.to_path_buf());
        }
    }

    /// All links in a folder and below.
    fn walk(&mut self, owner: Option<&RepoName>, folder: &Path) {
        let mut folders = vec![folder.to_path_buf()];
        while let Some(folder) = folders.pop() {
            if !self.walked.insert(folder.clone()) {
                continue;
            }
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => {
                    self.hide(&folder);
                    continue;
                }
            };
            for entry in entries {
                let kind = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)));
                match kind {
                    Ok((path, kind)) if FileType::is_symlink(&kind) => self.link(owner, &path, false),
                    Ok((path, kind)) if kind.is_dir() => folders.push(path),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(_) => self.hide(&folder),
                }
            }
        }
    }
}

/// Whether `path` is where a snapshot's folder would be.
fn is_snapshot(folder: &Path, path: &Path) -> bool {
    path.parent() == Some(&folder.join("snapshots"))
}
