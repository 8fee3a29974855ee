//! An independent plan: the documented rules, applied to whole sets by brute force, without the ledger's accounts. Random
//! caches must get the same plan from both.

use super::*;
use crate::cache::prune_facts::RepoFacts;

/// A name of some bytes on disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Blob(usize, BlobId),
    Real(usize, Commit, String),
    Payload(PathBuf),
    /// One that is not part of this cache's inventory.
    Foreign(PathBuf),
}

/// A file on disk.
#[derive(Debug, Clone)]
struct OneFile {
    size: u64,
    names: BTreeSet<Name>,
    /// Number of names that it has, whether or not they are known.
    links: usize,
    is_pinned: bool,
}

/// What the planner decides, in a form that can be compared.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decision {
    targets: BTreeSet<String>,
    evicted: Vec<String>,
    freed: u64,
    size: u64,
}

impl Decision {
    fn of(plan: &Plan) -> Decision {
        let mut decision = Decision { freed: plan.freed, size: plan.size, ..Decision::default() };
        for action in &plan.actions {
            let text = match &action.target {
                Target::Leftover { path } => format!("leftover {}", path.display()),
                Target::RootTemporary { path } => format!("root temporary {}", path.display()),
                Target::Temporary { repo, path } => format!("temporary {repo} {}", path.display()),
                Target::Payload { path } => format!("payload {}", path.display()),
                Target::Blob { repo, blob } => format!("blob {repo} {blob}"),
                Target::Ref { repo, name, .. } => format!("ref {repo} {name}"),
                Target::Folder { repo } => format!("folder {repo}"),
                Target::Revision(gone) => {
                    decision.evicted.push(format!("{}@{}", gone.repo, gone.revision));
                    format!("revision {}@{} with {:?} and {:?}", gone.repo, gone.revision, gone.refs, gone.blobs)
                }
            };
            assert!(decision.targets.insert(text), "nothing goes twice: {}", describe(plan));
        }
        decision
    }
}

struct Reference<'a> {
    facts: &'a Facts,
    options: &'a Options,
}

impl Reference<'_> {
    fn is_old(&self, time: Option<SystemTime>, grace: Duration) -> bool {
        time.is_some_and(|time| time + grace <= now())
    }

    fn is_abandoned(&self, file: &UnfinishedFile) -> bool {
        let times = [file.modified, file.changed];
        file.modified.is_some()
            && times.into_iter().flatten().any(|time| self.is_old(Some(time), self.options.temporary_grace))
    }

    fn repos(&self) -> &[Repo] {
        &self.facts.inventory.repos
    }

    fn about(&self, repo: usize) -> &RepoFacts {
        self.facts.for_repo(&self.repos()[repo].name)
    }

    /// Returns whether a repo is left alone in any case.
    fn is_blocked(&self, repo: usize) -> bool {
        let about = self.about(repo);
        self.repos()[repo].is_link
            || about.linked_part.is_some()
            || about.needed_by.is_some()
            || self.hides_uses(repo, true)
    }

    fn hides_uses(&self, repo: usize, with_unreadable: bool) -> bool {
        let one = &self.repos()[repo];
        let snapshots = self.facts.inventory.layout.repo(&one.name).join("snapshots");
        one.problems.iter().any(|problem| match problem.kind {
            ProblemKind::Unreadable => with_unreadable,
            ProblemKind::BrokenLink | ProblemKind::ForeignLink | ProblemKind::BadName => true,
            ProblemKind::UnknownEntry => with_unreadable && problem.path.starts_with(&snapshots),
            ProblemKind::BadRef | ProblemKind::UntidyRef | ProblemKind::NotAFile => false,
        })
    }

    /// Whether a download may be in flight in a repo, or another process holds a lock.
    fn is_in_use(&self, repo: usize) -> bool {
        let (one, about) = (&self.repos()[repo], self.about(repo));
        let mut unfinished = one.in_flight.iter().chain(&one.temporaries);
        unfinished.any(|file| !self.is_abandoned(file))
            || !about.held.is_empty()
            || about.locked
            || about.last_unfinished_write.is_some_and(|time| !self.is_old(Some(time), self.options.temporary_grace))
    }

    fn has_bad_ref(&self, repo: usize) -> bool {
        self.repos()[repo].problems.iter().any(|problem| problem.kind == ProblemKind::BadRef)
    }

    /// Whether huggingface_hub downloaded something here in the last five minutes.
    fn has_recent_client(&self, repo: usize) -> bool {
        self.about(repo).client_seen.is_some_and(|time| self.is_recent(Some(time)))
    }

    fn is_recent(&self, time: Option<SystemTime>) -> bool {
        !self.is_old(time, Duration::from_secs(300).min(self.options.orphan_grace))
    }

    /// Whether something may need any blob of the cache.
    fn is_everything_kept(&self) -> bool {
        let hides = |problem: &Problem, folder: Option<PathBuf>| {
            let is_harmless = self.facts.harmless.contains(&problem.path);
            let holds_no_links = folder.is_some_and(|folder| {
                ["refs", "trees", ".no_exist"].iter().any(|part| problem.path.starts_with(folder.join(part)))
            });
            problem.kind == ProblemKind::Unreadable && !is_harmless && !holds_no_links
        };
        let layout = &self.facts.inventory.layout;
        !self.facts.hidden.is_empty()
            || self.facts.inventory.problems.iter().any(|problem| hides(problem, None))
            || self
                .repos()
                .iter()
                .any(|repo| repo.problems.iter().any(|problem| hides(problem, Some(layout.repo(&repo.name)))))
            || self.facts.root_temporaries.iter().any(|file| !self.is_abandoned(file))
    }

    /// Returns the blobs that a revision needs.
    fn needs(&self, repo: usize, commit: &Commit) -> BTreeSet<BlobId> {
        let one = &self.repos()[repo];
        let mut needs = BTreeSet::new();
        for file in one.revisions[commit].files.values() {
            match file {
                SnapshotFile::Link(id) => drop(needs.insert(*id)),
                SnapshotFile::Real(file) => {
                    let RealFile { size, inode, .. } = &**file;
                    let id = inode.map(|inode| inode.id);
                    let linked =
                        one.blobs.iter().rfind(|(_, blob)| id.is_some() && blob.inode.map(|inode| inode.id) == id);
                    match linked {
                        Some((blob, _)) => drop(needs.insert(*blob)),
                        // It may be a copy of any blob of its size.
                        None => {
                            needs.extend(one.blobs.iter().filter(|(_, blob)| blob.size == *size).map(|(blob, _)| *blob))
                        }
                    }
                }
            }
        }
        needs
    }

    fn is_used(&self, repo: usize, blob: &BlobId) -> bool {
        self.repos()[repo].revisions.keys().any(|commit| self.needs(repo, commit).contains(blob))
    }

    /// Returns all files of the cache with their names.
    fn files(&self) -> Vec<OneFile> {
        let mut files: BTreeMap<String, OneFile> = BTreeMap::new();
        let mut add = |key: String, name: Name, size: u64, links: usize, is_pinned: bool| {
            let file = files.entry(key).or_insert(OneFile { size, names: BTreeSet::new(), links, is_pinned });
            file.names.insert(name);
        };
        let layout = &self.facts.inventory.layout;
        for payload in &self.facts.payloads {
            let key = format!("payload {}", payload.path.display());
            let is_pinned = payload.references.is_none();
            let mut has_names = false;
            for (repo, one) in self.repos().iter().enumerate() {
                for (id, blob) in &one.blobs {
                    let is_listed = payload.references.iter().flatten().any(|link| *link == layout.blob(&one.name, id));
                    if is_listed || blob.place == BlobPlace::Shared(payload.path.clone()) {
                        has_names = true;
                        add(key.clone(), Name::Blob(repo, *id), payload.size, 0, is_pinned);
                    }
                }
            }
            for link in payload.references.iter().flatten() {
                let is_known =
                    self.repos().iter().any(|one| one.blobs.keys().any(|id| layout.blob(&one.name, id) == *link));
                if !is_known {
                    has_names = true;
                    add(key.clone(), Name::Foreign(link.clone()), payload.size, 0, is_pinned);
                }
            }
            if !has_names {
                add(key, Name::Payload(payload.path.clone()), payload.size, 0, is_pinned);
            }
        }
        for (repo, one) in self.repos().iter().enumerate().filter(|(_, one)| !one.is_link) {
            for (id, blob) in &one.blobs {
                if blob.place == BlobPlace::Blobs {
                    let key = blob.inode.map_or(format!("blob {repo} {id}"), |inode| format!("inode {:?}", inode.id));
                    let links = blob.inode.map_or(1, |inode| inode.links as usize);
                    add(key, Name::Blob(repo, *id), blob.size, links, false);
                }
            }
            for (commit, revision) in &one.revisions {
                for (path, file) in &revision.files {
                    if let SnapshotFile::Real(file) = file {
                        let RealFile { size, inode, .. } = &**file;
                        let key =
                            inode.map_or(format!("{repo} {commit} {path}"), |inode| format!("inode {:?}", inode.id));
                        let links = inode.map_or(1, |inode| inode.links as usize);
                        add(key, Name::Real(repo, commit.clone(), path.to_string()), *size, links, false);
                    }
                }
            }
        }
        files.into_values().collect()
    }

    /// Returns the names that go when these revisions do.
    fn names_of(&self, evicted: &BTreeSet<(usize, Commit)>) -> BTreeSet<Name> {
        let mut names = BTreeSet::new();
        for (repo, commit) in evicted {
            let one = &self.repos()[*repo];
            for (path, file) in &one.revisions[commit].files {
                if let SnapshotFile::Real(_) = file {
                    names.insert(Name::Real(*repo, commit.clone(), path.to_string()));
                }
            }
            for blob in self.needs(*repo, commit) {
                let is_needed = one.revisions.keys().any(|other| {
                    !evicted.contains(&(*repo, other.clone())) && self.needs(*repo, other).contains(&blob)
                });
                if !is_needed {
                    names.insert(Name::Blob(*repo, blob));
                }
            }
        }
        names
    }

    fn freed(&self, files: &[OneFile], gone: &BTreeSet<Name>) -> u64 {
        let is_freed =
            |file: &&OneFile| !file.is_pinned && file.names.is_subset(gone) && file.names.len() >= file.links;
        files.iter().filter(is_freed).map(|file| file.size).sum()
    }

    fn last_use(&self, repo: usize, revision: &Revision) -> SystemTime {
        let times = revision.files.values().flat_map(|file| match file {
            SnapshotFile::Link(id) => {
                let blob = &self.repos()[repo].blobs[id];
                [blob.accessed, blob.modified]
            }
            SnapshotFile::Real(file) => [file.accessed, file.modified],
        });
        times.map(|time| time.unwrap_or(now())).max().unwrap_or(now())
    }

    fn arrival(&self, repo: usize, revision: &Revision) -> Option<SystemTime> {
        let times = revision.files.values().map(|file| match file {
            SnapshotFile::Link(id) => {
                let blob = &self.repos()[repo].blobs[id];
                blob.modified.max(blob.placed)
            }
            SnapshotFile::Real(file) => file.modified,
        });
        times.max().flatten()
    }

    /// Returns the revisions that may be evicted, in order.
    fn candidates(&self) -> Vec<(usize, Commit)> {
        let mut found = Vec::new();
        for (index, repo) in self.repos().iter().enumerate() {
            if self.is_blocked(index) || self.is_in_use(index) || self.has_bad_ref(index) {
                continue;
            }
            let newest = repo.revisions.values().map(|revision| self.arrival(index, revision)).max().flatten();
            for (commit, revision) in &repo.revisions {
                let is_link = self.needs(index, commit).iter().any(|id| repo.blobs[id].place == BlobPlace::Elsewhere);
                let arrival = self.arrival(index, revision);
                let is_half = self.has_recent_client(index)
                    && arrival >= newest
                    && self.is_recent(arrival)
                    && !self.about(index).complete.contains(commit);
                let last_use = self.last_use(index, revision);
                let is_named = repo.refs.values().any(|named| named == commit);
                let is_young = self.options.older_than.is_some_and(|age| !self.is_old(Some(last_use), age));
                let refs: Vec<RefName> = self.refs(index, commit);
                let is_pinned = self.options.keep.match_revision(&repo.name, commit, &refs);
                let is_free = match &self.options.held {
                    Some(held) => held.lack(&repo.name, commit).is_none(),
                    None => !is_named || self.options.include_referenced,
                };
                if !is_link && !is_half && !is_young && !is_pinned && is_free {
                    let first = self.options.held.is_none() && is_named;
                    found.push((first, last_use, index, commit.clone()));
                }
            }
        }
        found.sort();
        found.into_iter().map(|(_, _, index, commit)| (index, commit)).collect()
    }

    fn refs(&self, repo: usize, commit: &Commit) -> Vec<RefName> {
        let one = &self.repos()[repo];
        let names = one.refs.iter().filter(|(_, named)| *named == commit).map(|(name, _)| name.clone());
        names.chain(one.pins.get(commit).map(RefName::of_commit)).collect()
    }

    fn decide(&self) -> Decision {
        let options = self.options;
        let files = self.files();
        let mut plain = BTreeSet::new();
        let mut content = BTreeSet::new();
        let mut gone = BTreeSet::new();
        let mut freed = 0;
        let mut size: u64 = files.iter().map(|file| file.size).sum();
        for leftover in &self.facts.leftovers {
            size += leftover.bytes;
            if self.is_old(leftover.modified, options.temporary_grace) {
                freed += leftover.bytes;
                plain.insert(format!("leftover {}", leftover.path.display()));
            }
        }
        for file in &self.facts.root_temporaries {
            size += file.on_disk;
            if self.is_abandoned(file) {
                freed += file.on_disk;
                plain.insert(format!("root temporary {}", file.path.display()));
            }
        }
        let mut things: Vec<usize> = Vec::new();
        for (index, repo) in self.repos().iter().enumerate() {
            let about = self.about(index);
            let mut left = repo.revisions.len() + repo.blobs.len();
            let may_clean = !self.is_blocked(index)
                || (!repo.is_link && about.linked_part.is_none() && self.is_first_problem_about_links(index));
            for file in repo.in_flight.iter().chain(&repo.temporaries) {
                size += if repo.is_link { 0 } else { file.on_disk };
                if may_clean && self.is_abandoned(file) && !about.held.contains(&file.path) {
                    freed += file.on_disk;
                    plain.insert(format!("temporary {} {}", repo.name, file.path.display()));
                } else {
                    left += 1;
                }
            }
            if !self.is_blocked(index) && !self.is_in_use(index) {
                let is_young = |time: Option<SystemTime>| !self.is_old(time, options.orphan_grace);
                let is_copy_running = about.last_arrival.is_some_and(|time| is_young(Some(time)))
                    || (repo.revisions.is_empty()
                        && is_young(repo.blobs.values().map(|blob| blob.placed).max().flatten()));
                for (id, blob) in &repo.blobs {
                    let is_needed = self.is_used(index, id) || blob.place == BlobPlace::Elsewhere;
                    if !is_needed && !is_copy_running && !is_young(blob.placed) {
                        gone.insert(Name::Blob(index, *id));
                        content.insert(format!("blob {} {id}", repo.name));
                        left -= 1;
                    }
                }
            }
            things.push(left);
        }
        for payload in &self.facts.payloads {
            let links = self.repos().iter().flat_map(|repo| repo.blobs.values());
            let is_linked = links.filter(|blob| blob.place == BlobPlace::Shared(payload.path.clone())).count() > 0;
            let is_listed_unused = payload.references.as_ref().is_some_and(BTreeSet::is_empty);
            if is_listed_unused && !is_linked && self.is_old(payload.modified, options.orphan_grace) {
                gone.insert(Name::Payload(payload.path.clone()));
                content.insert(format!("payload {}", payload.path.display()));
            }
        }
        let evicted = self.evictions(&files, &gone, size, freed);
        let all: BTreeSet<(usize, Commit)> = evicted.iter().cloned().collect();
        // Each blob goes with the last revision that needs it.
        let mut before = BTreeSet::new();
        let mut so_far = BTreeSet::new();
        for (index, commit) in &evicted {
            so_far.insert((*index, commit.clone()));
            let names = self.names_of(&so_far);
            let blobs: Vec<BlobId> = names
                .difference(&before)
                .filter_map(|name| match name {
                    Name::Blob(_, id) => Some(*id),
                    _ => None,
                })
                .collect();
            things[*index] -= 1 + blobs.len();
            let (repo, refs) = (&self.repos()[*index].name, self.refs(*index, commit));
            content.insert(format!("revision {repo}@{commit} with {refs:?} and {blobs:?}"));
            before = names;
        }
        gone.extend(self.names_of(&all));
        for (index, repo) in self.repos().iter().enumerate() {
            let about = self.about(index);
            let was_evicted_from = all.iter().any(|(one, _)| *one == index);
            let is_quiet = !self.is_blocked(index) && !self.is_in_use(index);
            let is_untouched = about.last_change.is_none_or(|time| self.is_old(Some(time), options.orphan_grace));
            let is_going = is_quiet
                && repo.problems.is_empty()
                && is_untouched
                && (!self.has_recent_client(index) || was_evicted_from)
                && things[index] == 0;
            if is_going {
                content.insert(format!("folder {}", repo.name));
            } else if is_quiet && !repo.revisions.is_empty() && !self.has_recent_client(index) {
                for (name, one) in &about.dangling_refs {
                    if self.is_old(one.written, options.orphan_grace) {
                        content.insert(format!("ref {} {name}", repo.name));
                    }
                }
            }
        }
        if self.is_everything_kept() {
            return Decision { targets: plain, evicted: Vec::new(), freed, size };
        }
        let name = |(index, commit): &(usize, Commit)| format!("{}@{commit}", self.repos()[*index].name);
        let freed = freed + self.freed(&files, &gone);
        Decision {
            targets: plain.union(&content).cloned().collect(),
            evicted: evicted.iter().map(name).collect(),
            freed,
            size,
        }
    }

    /// Whether the first thing that keeps a repo is a link of it that is not understood; then its abandoned files still go.
    fn is_first_problem_about_links(&self, repo: usize) -> bool {
        let one = &self.repos()[repo];
        let snapshots = self.facts.inventory.layout.repo(&one.name).join("snapshots");
        let hides = |problem: &&Problem| match problem.kind {
            ProblemKind::UnknownEntry => problem.path.starts_with(&snapshots),
            ProblemKind::BadRef | ProblemKind::UntidyRef | ProblemKind::NotAFile => false,
            _ => true,
        };
        let first = one.problems.iter().find(hides).map(|problem| problem.kind);
        matches!(first, Some(ProblemKind::BrokenLink | ProblemKind::ForeignLink | ProblemKind::BadName))
    }

    /// Returns the revisions to evict, in order.
    fn evictions(&self, files: &[OneFile], gone: &BTreeSet<Name>, size: u64, freed: u64) -> Vec<(usize, Commit)> {
        let freed_with = |evicted: &[(usize, Commit)]| {
            let names = self.names_of(&evicted.iter().cloned().collect());
            freed + self.freed(files, &gone.union(&names).cloned().collect())
        };
        let wants_more = |evicted: &[(usize, Commit)]| match self.options.budget {
            Some(budget) => size - freed_with(evicted) > budget,
            None => self.options.older_than.is_some(),
        };
        let mut chosen = Vec::new();
        for candidate in self.candidates() {
            if !wants_more(&chosen) {
                break;
            }
            chosen.push(candidate);
        }
        // Without those that free nothing after all.
        for index in (0..chosen.len()).rev() {
            let mut without = chosen.clone();
            without.remove(index);
            if freed_with(&without) == freed_with(&chosen) {
                chosen = without;
            }
        }
        chosen
    }
}

/// Generates what a scan may find beside plain content: problems, links, other clients, real files, pins.
#[derive(Debug, Clone)]
struct Oddities {
    problem: Option<(ProblemKind, &'static str)>,
    is_link: bool,
    linked_part: bool,
    needed_by: bool,
    elsewhere: Option<u64>,
    shared: Option<u64>,
    real: Option<(u64, u64, u64, Option<u64>)>,
    pin: Option<u64>,
    complete: Option<u64>,
    last_change: Option<u64>,
    last_arrival: Option<u64>,
    timeless: Option<u64>,
}

fn any_oddities() -> impl Strategy<Value = Oddities> {
    let problem = prop::sample::select(vec![
        (ProblemKind::BrokenLink, "snapshots/x"),
        (ProblemKind::ForeignLink, "blobs/x"),
        (ProblemKind::BadName, "blobs/x"),
        (ProblemKind::BadRef, "refs/x"),
        (ProblemKind::UntidyRef, "refs/x"),
        (ProblemKind::UnknownEntry, "snapshots/x"),
        (ProblemKind::UnknownEntry, "README"),
        (ProblemKind::NotAFile, "blobs/x"),
        (ProblemKind::Unreadable, "refs/x"),
        (ProblemKind::Unreadable, "trees"),
        (ProblemKind::Unreadable, "snapshots/x"),
    ]);
    let rarely = || prop::bool::weighted(0.05);
    let sometimes = |range: std::ops::Range<u64>| prop::option::weighted(0.2, range);
    let real = (0u64..6, 1u64..50, 0u64..100, prop::option::of(0u64..4));
    (
        (prop::option::weighted(0.15, problem), rarely(), rarely(), rarely()),
        (sometimes(0..8), sometimes(0..8), prop::option::weighted(0.3, real)),
        (sometimes(0..6), sometimes(0..6), sometimes(0..3), sometimes(0..3), sometimes(0..8)),
    )
        .prop_map(|((problem, is_link, linked_part, needed_by), (elsewhere, shared, real), others)| {
            let (pin, complete, last_change, last_arrival, timeless) = others;
            Oddities {
                problem,
                is_link,
                linked_part,
                needed_by,
                elsewhere,
                shared,
                real,
                pin,
                complete,
                last_change,
                last_arrival,
                timeless,
            }
        })
}

/// Adds oddities to the facts of a repo.
fn make_odd(facts: &mut Facts, index: usize, odd: &Oddities) {
    let layout = facts.inventory.layout.clone();
    let repo = &mut facts.inventory.repos[index];
    let folder = layout.repo(&repo.name);
    let about = facts.repos.entry(repo.name.clone()).or_default();
    if let Some((kind, path)) = odd.problem {
        repo.problems.push(Problem::new(folder.join(path), kind, "why"));
    }
    repo.is_link = odd.is_link;
    about.linked_part = odd.linked_part.then(|| folder.join("snapshots"));
    about.needed_by = odd.needed_by.then(|| "/hub/elsewhere".into());
    if let Some(blob) = odd.elsewhere.and_then(|number| repo.blobs.get_mut(&blob_id(number))) {
        blob.place = BlobPlace::Elsewhere;
        blob.inode = None;
    }
    if let Some(blob) = odd.shared.and_then(|number| repo.blobs.get_mut(&blob_id(number)))
        && blob.place == BlobPlace::Blobs
    {
        blob.place = BlobPlace::Shared(facts.payloads[0].path.clone());
        (blob.inode, blob.size) = (None, facts.payloads[0].size);
    }
    if let Some(blob) = odd.timeless.and_then(|number| repo.blobs.get_mut(&blob_id(number))) {
        blob.accessed = None;
    }
    if let Some((number, size, hours, file)) = odd.real
        && let Some(revision) = repo.revisions.get_mut(&commit(number))
    {
        let inode = file.map(|file| Inode { id: (1, file), links: 3, allocated: 0 });
        let size = file.map_or(size, |file| 1000 * (file + 1));
        let time = ago(hours * HOUR);
        let real = SnapshotFile::Real(Box::new(RealFile { size, inode, accessed: time, modified: time }));
        revision.files.insert("real".parse().unwrap(), real);
    }
    repo.pins.extend(odd.pin.map(commit));
    about.complete.extend(odd.complete.map(commit));
    about.last_change = odd.last_change.and_then(|hours| ago(hours * HOUR));
    about.last_arrival = odd.last_arrival.and_then(|hours| ago(hours * HOUR));
}

/// What is beside the repos: ages in hours, and the references of a payload.
#[derive(Debug, Clone)]
struct Surroundings {
    leftovers: Vec<u64>,
    temporaries: Vec<u64>,
    hidden: bool,
    unreadable: bool,
    payload_age: u64,
    /// Whether each reference is to a blob of the inventory.
    references: Option<Vec<bool>>,
}

fn any_surroundings() -> impl Strategy<Value = Surroundings> {
    let ages = || prop::collection::vec(0u64..50, 0..2);
    let temporaries = prop_oneof![5 => Just(Vec::new()), 1 => ages()];
    let rarely = || prop::bool::weighted(0.03);
    let references = prop::option::weighted(0.8, prop::collection::vec(any::<bool>(), 0..2));
    (ages(), temporaries, rarely(), rarely(), 0u64..3, references).prop_map(
        |(leftovers, temporaries, hidden, unreadable, payload_age, references)| Surroundings {
            leftovers,
            temporaries,
            hidden,
            unreadable,
            payload_age,
            references,
        },
    )
}

fn any_options() -> impl Strategy<Value = Options> {
    let pins = prop::sample::select(vec!["", "", "org/a", "*@ref-0", "org/b@ref-*"]);
    (
        prop::option::weighted(0.8, 0u64..5000),
        any::<bool>(),
        prop::option::weighted(0.3, 0u64..100),
        pins,
        prop::option::weighted(0.4, prop::collection::vec(any::<bool>(), 12)),
        0u64..3,
        0u64..50,
    )
        .prop_map(|(budget, include_referenced, older_than, pins, holds, orphan, temporary)| Options {
            budget,
            include_referenced,
            older_than: older_than.map(|hours| Duration::from_secs(hours * HOUR)),
            keep: Pins::parse_list(pins).unwrap(),
            held: holds.map(|holds| {
                let all = (0..6u64).flat_map(|number| ["org/a", "org/b"].map(|id| (id, number)));
                let examined = all.zip(holds).map(|((id, number), is_held)| {
                    let name = RepoName::new(RepoType::Model, id.parse().unwrap());
                    let file = ManifestFile { path: "file".parse().unwrap(), blob: blob_id(0), size: 0 };
                    let manifest = Manifest::new(name.clone(), commit(number), vec![file], None).unwrap();
                    let proof = Proof { manifest: Arc::new(manifest), refs: Vec::new() };
                    ((name, commit(number)), if is_held { Ok(proof) } else { Err(Lack::Manifest) })
                });
                Held::of(examined)
            }),
            orphan_grace: Duration::from_secs(orphan * HOUR),
            temporary_grace: Duration::from_secs(temporary * HOUR),
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    /// For any cache and options, the plan is that of the reference, action by action and byte by byte.
    #[test]
    fn the_plan_is_that_of_the_reference(
        repos in (any_repo("org/a"), any_repo("org/b")),
        activity in prop::collection::vec(prop_oneof![2 => Just(Default::default()), 1 => any_activity()], 2),
        oddities in prop::collection::vec(any_oddities(), 2),
        surroundings in any_surroundings(),
        options in any_options(),
    ) {
        let Surroundings { leftovers, temporaries, hidden, unreadable, payload_age, references } = surroundings;
        let mut facts = busy_facts(vec![repos.0, repos.1], activity);
        let references = references.map(|all| all.iter().map(|is_known| match is_known {
            true => facts.inventory.layout.blob(&facts.inventory.repos[0].name, &blob_id(0)),
            false => "/hub/models--org--c/blobs/x".into(),
        }).collect());
        let path = PathBuf::from("/hub/blobs/payload");
        facts.payloads = vec![Payload { path, size: 77_777, inode: None, modified: ago(payload_age * HOUR), references }];
        for (index, odd) in oddities.iter().enumerate() {
            make_odd(&mut facts, index, odd);
        }
        // A list is only believed where its links really lead to the payload.
        let first = &mut facts.inventory.repos[0];
        let payload = &mut facts.payloads[0];
        let listed = facts.inventory.layout.blob(&first.name, &blob_id(0));
        let leads_there = first.blobs.get(&blob_id(0)).is_some_and(|blob| blob.place == BlobPlace::Shared(payload.path.clone()));
        if let Some(references) = payload.references.as_mut().filter(|_| !leads_there) {
            references.remove(&listed);
        }
        facts.leftovers = leftovers.iter().enumerate().map(|(number, hours)| {
            Leftover { path: format!("leftover-{number}").into(), bytes: 5, modified: ago(hours * HOUR) }
        }).collect();
        facts.root_temporaries = temporaries.iter().enumerate().map(|(number, hours)| {
            let path = format!("/hub/tmpa1b2c3d{number}").into();
            UnfinishedFile { path, size: 7, on_disk: 7, modified: ago(hours * HOUR), changed: None }
        }).collect();
        if hidden {
            facts.hidden.insert("/elsewhere".into(), Cause::Permission);
        }
        if unreadable {
            facts.inventory.problems.push(Problem::new("/hub/x".into(), ProblemKind::Unreadable, "why"));
        }
        let planned = plan(&facts, &options, now());
        let expected = Reference { facts: &facts, options: &options }.decide();
        prop_assert_eq!(Decision::of(&planned), expected, "{}", describe(&planned));
    }
}
