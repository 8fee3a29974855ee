//! Links into repos that the scan does not follow, and places that could not be inspected.
//!
//! A snapshot file is normally a link into its own repo's `blobs/`. People also create links by hand: to another repo's
//! blobs, to whole folders, or to the cache under another name (a bind mount, a linked root, an absolute path). Each such
//! link keeps the repo that it points into. An unreadable place may hold links to anything, so it keeps everything.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, FileType};
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::clients;
use crate::cache::inventory::{BlobPlace, Inventory, Problem, ProblemKind, Repo};
use crate::cache::junk::is_junk;
use crate::cache::layout::{self, Layout};
use crate::error::Cause;
use crate::model::ids::RepoName;
use crate::platform;

/// Maximum number of links in a chain; the operating system gives up at 40.
const MAX_HOPS: usize = 40;

/// The result of following all links.
#[derive(Debug, Default)]
pub struct IncomingLinks {
    /// Repos that a link from outside points into, each with one such link.
    pub needed: BTreeMap<RepoName, PathBuf>,
    /// Places that could not be inspected, with the cause, besides those that the scan reported as unreadable.
    pub hidden: BTreeMap<PathBuf, Cause>,
    /// Places that the scan reported as unreadable, but that cannot hold links: files in place of folders.
    pub harmless: BTreeSet<PathBuf>,
}

/// Follows all links that the scan did not recognise or did not visit.
pub fn find(inventory: &Inventory) -> IncomingLinks {
    let mut walker = LinkWalker::new(inventory);
    for problem in inventory.problems.iter().filter(|problem| problem.kind != ProblemKind::Unreadable) {
        walker.visit_entry(&problem.path);
    }
    walker.visit_known_entries(inventory.layout.root(), clients::may_hold_links_at_root);
    for repo in &inventory.repos {
        walker.visit_repo(repo);
        let folder = inventory.layout.repo(&repo.name);
        walker.visit_known_entries(&folder, clients::may_hold_links_in_repo);
        walker.visit_known_entries(&folder.join("snapshots"), |_| false);
        for commit in repo.revisions.keys() {
            walker.visit_junk(&repo.name, &inventory.layout.snapshot(&repo.name, commit));
        }
    }
    walker.found
}

struct LinkWalker<'a> {
    layout: &'a Layout,
    roots: Vec<PathBuf>,
    /// Repos by the device and inode of their folder.
    folders: HashMap<(u64, u64), RepoName>,
    names: BTreeSet<RepoName>,
    walked: HashSet<PathBuf>,
    found: IncomingLinks,
}

impl<'a> LinkWalker<'a> {
    fn new(inventory: &'a Inventory) -> Self {
        let layout = &inventory.layout;
        let ids =
            inventory.repos.iter().filter_map(|repo| Some((folder_id(&layout.repo(&repo.name))?, repo.name.clone())));
        LinkWalker {
            layout,
            roots: std::iter::once(layout.root().to_path_buf()).chain(layout.root().canonicalize()).collect(),
            folders: ids.collect(),
            names: inventory.repos.iter().map(|repo| repo.name.clone()).collect(),
            walked: HashSet::new(),
            found: IncomingLinks::default(),
        }
    }

    fn visit_repo(&mut self, repo: &Repo) {
        let folder = self.layout.repo(&repo.name);
        for problem in &repo.problems {
            self.visit_problem(repo, &folder, problem);
        }
        let elsewhere = repo.blobs.iter().filter(|(_, blob)| blob.place == BlobPlace::Elsewhere);
        let links: Vec<PathBuf> = elsewhere.map(|(id, _)| self.layout.blob(&repo.name, id)).collect();
        // The scan has already visited the contents of these.
        let parts = ["blobs", "snapshots"].map(|part| folder.join(part)).into_iter().chain([folder]);
        for link in links {
            self.follow_link(Some(&repo.name), &link, false);
        }
        for link in parts.filter(|part| fs::symlink_metadata(part).is_ok_and(|meta| meta.is_symlink())) {
            self.follow_folder_link(&repo.name, &link, false);
        }
    }

    fn visit_problem(&mut self, repo: &Repo, folder: &Path, problem: &Problem) {
        let path = &problem.path;
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.mark_hidden(path, Cause::of_io(&error)),
        };
        if meta.is_symlink() {
            return match is_snapshot(folder, path) {
                true => self.follow_folder_link(&repo.name, path, true),
                // An unknown entry may be a link that a user created, so it counts even if it points into this same repo.
                false if problem.kind == ProblemKind::UnknownEntry => self.follow_link(None, path, true),
                false => self.follow_link(Some(&repo.name), path, true),
            };
        }
        match problem.kind {
            ProblemKind::Unreadable if meta.is_file() => drop(self.found.harmless.insert(path.clone())),
            ProblemKind::Unreadable => {}
            // As above, links of unknown entries into this same repo count.
            ProblemKind::UnknownEntry if meta.is_dir() => self.walk_folder(None, path),
            _ if meta.is_dir() => self.walk_folder(Some(&repo.name), path),
            // Something else in place of a snapshot folder: the snapshot may exist elsewhere.
            ProblemKind::ForeignLink if !meta.is_file() && is_snapshot(folder, path) => {
                self.mark_hidden(path, Cause::Other)
            }
            _ => {}
        }
    }

    /// Visits entries that the scan skips by name or as junk, since users may keep links there. The file system's own
    /// `lost+found` has none.
    fn visit_known_entries(&mut self, folder: &Path, is_known: fn(&str) -> bool) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if (is_known(name) || is_junk(name)) && name != "lost+found" {
                self.visit_entry(&entry.path());
            }
        }
    }

    /// Visits entries of a snapshot that are named like junk. The scan only follows those that link into their own
    /// repo.
    fn visit_junk(&mut self, owner: &RepoName, snapshot: &Path) {
        let mut folders = vec![snapshot.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let path = entry.path();
                match entry.file_name().to_str().is_some_and(is_junk) {
                    true if kind.is_symlink() => self.follow_link(Some(owner), &path, true),
                    true if kind.is_dir() => self.walk_folder(Some(owner), &path),
                    false if kind.is_dir() => folders.push(path),
                    _ => {}
                }
            }
        }
    }

    /// Visits an entry of the root that is not a repo. Future clients or users may keep links to repos in it.
    fn visit_entry(&mut self, path: &Path) {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_symlink() => self.follow_link(None, path, false),
            Ok(meta) if meta.is_dir() => self.walk_folder(None, path),
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.mark_hidden(path, Cause::of_io(&error)),
            _ => {}
        }
    }

    fn mark_hidden(&mut self, path: &Path, cause: Cause) {
        self.found.hidden.insert(path.to_path_buf(), cause);
    }

    /// Follows a link in place of a folder. If it is broken now, perhaps because a disk is not mounted, it may point to
    /// anything.
    fn follow_folder_link(&mut self, owner: &RepoName, link: &Path, through: bool) {
        self.follow_link(Some(owner), link, through);
        if let Err(error) = fs::metadata(link) {
            self.mark_hidden(link, Cause::of_io(&error));
        }
    }

    /// Records the repos that a link passes through, hop by hop. With `through`, also walks the folder that it ends at.
    fn follow_link(&mut self, owner: Option<&RepoName>, link: &Path, through: bool) {
        let mut at = link.to_path_buf();
        for _ in 0..MAX_HOPS {
            let target = match fs::read_link(&at) {
                Ok(target) => target,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(error) => return self.mark_hidden(link, Cause::of_io(&error)),
            };
            let next = at.parent().unwrap_or(Path::new("")).join(target);
            let inside = self.record_target(owner, link, &next);
            match fs::symlink_metadata(&next) {
                Ok(meta) if meta.is_symlink() => at = next,
                Ok(meta) if meta.is_dir() && through && !inside => return self.walk_folder(owner, &next),
                Ok(_) => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    return self.record_by_name(owner, link, &next);
                }
                Err(error) => return self.mark_hidden(link, Cause::of_io(&error)),
            }
        }
        // A loop has no target.
    }

    /// Records the repo that contains `path`, both as spelled and with all links resolved. Returns whether the path is
    /// in the cache at all.
    fn record_target(&mut self, owner: Option<&RepoName>, link: &Path, path: &Path) -> bool {
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
        // The same folders have other names when reached through another mount.
        for folder in real.iter().flat_map(|path| path.ancestors()) {
            if let Some(repo) = folder_id(folder).and_then(|id| self.folders.get(&id)) {
                inside = true;
                repos.insert(repo.clone());
            }
        }
        self.record(owner, link, repos);
        inside
    }

    /// Records the repos of this cache that appear in the text of a broken link, for example while a disk is not mounted.
    fn record_by_name(&mut self, owner: Option<&RepoName>, link: &Path, path: &Path) {
        let named = path.iter().filter_map(|part| RepoName::from_folder(part.to_str()?));
        let repos = named.filter(|name| self.names.contains(name)).collect();
        self.record(owner, link, repos);
    }

    fn record(&mut self, owner: Option<&RepoName>, link: &Path, repos: BTreeSet<RepoName>) {
        for repo in repos.into_iter().filter(|repo| Some(repo) != owner) {
            self.found.needed.entry(repo).or_insert_with(|| link.to_path_buf());
        }
    }

    /// Follows all links in a folder and below it.
    fn walk_folder(&mut self, owner: Option<&RepoName>, folder: &Path) {
        let mut folders = vec![folder.to_path_buf()];
        while let Some(folder) = folders.pop() {
            if !self.walked.insert(folder.clone()) {
                continue;
            }
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    self.mark_hidden(&folder, Cause::of_io(&error));
                    continue;
                }
            };
            for entry in entries {
                let kind = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)));
                match kind {
                    Ok((path, kind)) if FileType::is_symlink(&kind) => self.follow_link(owner, &path, false),
                    Ok((path, kind)) if kind.is_dir() => folders.push(path),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => self.mark_hidden(&folder, Cause::of_io(&error)),
                }
            }
        }
    }
}

/// Returns the identity of a folder, which is independent of the path.
fn folder_id(folder: &Path) -> Option<(u64, u64)> {
    platform::inode(folder, &fs::metadata(folder).ok()?).map(|inode| inode.id)
}

/// Returns whether `path` is the location of a snapshot folder.
fn is_snapshot(folder: &Path, path: &Path) -> bool {
    path.parent() == Some(&folder.join("snapshots"))
}
