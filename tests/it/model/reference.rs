//! The reference: what must and what may exist after a command, given the state before it. It knows the documented rules,
//! but nothing about their implementation.

use std::collections::BTreeSet;

use super::state::{Fact, Health, REFS, State, Universe};
use super::step::{Budget, Clock, Prune, Scope, Step};

/// The states that are allowed after a command.
pub struct Allowed {
    /// Everything that must exist.
    pub must: BTreeSet<Fact>,
    /// Everything that may exist.
    pub may: BTreeSet<Fact>,
    /// The exit codes, unless it was killed.
    pub codes: Vec<i32>,
    /// Maximum size of the blobs on a machine, in bytes.
    pub size: Option<(usize, u64)>,
}

/// Returns the states that are allowed after a command.
pub fn after(universe: &Universe, before: &State, step: &Step, was_killed: bool) -> Allowed {
    let facts = &before.facts;
    let mut rules = Rules { universe, before, must: facts.clone(), may: facts.clone(), size: None, was_killed };
    let codes = match step {
        Step::Push { machine, .. } => rules.push(*machine),
        Step::Pull { machine, revision, by_ref, include, .. } => rules.pull(*machine, *revision, *by_ref, *include),
        Step::PullAll { machine, only, .. } => rules.pull_all(*machine, *only),
        Step::Prune { machine, options, .. } => {
            rules.prune(*machine, options);
            vec![0]
        }
        Step::Rm { machine, revision, all, require_remote, busy, .. } => {
            rules.rm(*machine, *revision, *all, *require_remote, *busy)
        }
        Step::RemoteRm { revision, all, .. } => rules.remote_rm(*revision, *all),
        Step::RemoteGc { clock, .. } => rules.remote_gc(*clock),
        Step::Repair { machine, .. } => rules.repair(*machine),
        Step::RepairRemote { machine, .. } => rules.repair_remote(*machine),
        other => unreachable!("{other:?} is not a command"),
    };
    Allowed { must: rules.must, may: rules.may, codes, size: rules.size }
}

struct Rules<'a> {
    universe: &'a Universe,
    before: &'a State,
    must: BTreeSet<Fact>,
    may: BTreeSet<Fact>,
    size: Option<(usize, u64)>,
    was_killed: bool,
}

impl Rules<'_> {
    fn revisions(&self) -> std::ops::Range<usize> {
        0..self.universe.revisions.len()
    }

    fn etag(&self, revision: usize, path: &str) -> String {
        self.universe.files(revision).find(|(known, _)| known == path).map(|(_, etag)| etag).unwrap()
    }

    fn etags(&self, revision: usize, paths: &BTreeSet<String>) -> BTreeSet<String> {
        paths.iter().map(|path| self.etag(revision, path)).collect()
    }

    fn object(&self, etag: &str, health: Health) -> Fact {
        Fact::Object { etag: etag.into(), health }
    }

    fn blob(&self, machine: usize, revision: usize, etag: &str, health: Health) -> Fact {
        Fact::Blob { machine, repo: self.universe.repo(revision), etag: etag.into(), health }
    }

    /// Returns the refs of a machine that name a revision.
    fn refs(&self, machine: usize, revision: usize) -> Vec<String> {
        let fact = |name: &str| Fact::Ref { machine, repo: self.universe.repo(revision), name: name.into(), revision };
        REFS.iter().filter(|name| self.before.facts.contains(&fact(name))).map(|name| name.to_string()).collect()
    }

    /// Returns the revision that a ref names in the bucket.
    fn remote_ref(&self, repo: &str, name: &str) -> Option<usize> {
        let fact = |revision| Fact::RemoteRef { repo: repo.into(), name: name.into(), revision };
        self.revisions().find(|revision| self.before.facts.contains(&fact(*revision)))
    }

    fn has(&self, which: impl Fn(&Fact) -> bool) -> bool {
        self.before.facts.iter().any(which)
    }

    /// Whether the bucket has a manifest that cannot be read.
    fn has_bad_manifest(&self) -> bool {
        self.has(|fact| matches!(fact, Fact::BadManifest { .. }))
    }

    /// Whether the bucket has anything that cannot be read.
    fn has_bad_object(&self) -> bool {
        self.has_bad_manifest() || self.has(|fact| matches!(fact, Fact::BadRef { .. }))
    }

    /// Whether refs of a repo in the bucket may be bad, or may name a bad manifest. It is uncertain which commit they name.
    fn has_doubtful_refs(&self, revision: usize) -> bool {
        let id = &self.universe.revisions[revision].id;
        let keys: Vec<String> = REFS.iter().flat_map(|name| self.universe.ref_keys(revision, name)).collect();
        self.has(|fact| match fact {
            Fact::BadManifest { revision } => self.universe.revisions[*revision].id == *id,
            Fact::BadRef { key } => keys.contains(key),
            _ => false,
        })
    }

    /// Requires a fact.
    fn require(&mut self, fact: Fact) {
        self.must.insert(fact.clone());
        self.may.insert(fact);
    }

    /// Allows that facts disappear.
    fn release(&mut self, which: impl Fn(&Fact) -> bool) {
        self.must.retain(|fact| !which(fact));
    }

    /// Requires that facts disappear.
    fn forbid(&mut self, which: impl Fn(&Fact) -> bool) {
        self.must.retain(|fact| !which(fact));
        self.may.retain(|fact| !which(fact));
    }

    /// Whether every file of a revision on a machine has a good blob there, so that nothing prevents a push.
    fn is_clean(&self, machine: usize, revision: usize) -> bool {
        let paths = self.before.paths(machine, revision);
        // One copy of a blob is sent for all repos of the cache, so a bad one anywhere may prevent the push.
        let is_bad = |etag: &String| {
            self.revisions().any(|other| {
                let health = self.before.blob(machine, &self.universe.repo(other), etag);
                health.is_some_and(|health| health != Health::Good)
            })
        };
        let repo = self.universe.repo(revision);
        let etags = self.etags(revision, &paths);
        !etags.is_empty() && etags.iter().all(|etag| self.before.blob(machine, &repo, etag).is_some() && !is_bad(etag))
    }

    fn push(&mut self, machine: usize) -> Vec<i32> {
        // A bad tree is reported, and everything is pushed without it.
        let has_bad_tree = self.has(|fact| matches!(fact, Fact::BadTree { machine: m, .. } if *m == machine));
        let mut is_certain = !self.was_killed && !self.has_bad_object() && !has_bad_tree;
        for revision in self.revisions() {
            let paths = self.before.paths(machine, revision);
            let is_clean = self.is_clean(machine, revision);
            is_certain &= is_clean || paths.is_empty();
            let is_due = is_clean && !self.was_killed;
            let repo = self.universe.repo(revision);
            // A bad manifest is replaced.
            if !paths.is_empty() {
                self.release(|fact| *fact == Fact::BadManifest { revision });
            }
            if is_due {
                self.forbid(|fact| *fact == Fact::BadManifest { revision });
            }
            for path in &paths {
                let etag = self.etag(revision, path);
                let good = self.object(&etag, Health::Good);
                self.may.insert(good.clone());
                let truncated = self.object(&etag, Health::Truncated);
                self.release(|fact| *fact == truncated);
                let entry = Fact::Entry { revision, path: path.clone() };
                self.may.insert(entry.clone());
                if is_due {
                    // A listing does not show wrong bytes of the right size.
                    if self.before.object(&etag) != Some(Health::Altered) {
                        self.require(good);
                        self.forbid(|fact| *fact == truncated);
                    }
                    self.require(entry);
                }
            }
            for name in self.refs(machine, revision).iter().filter(|_| !paths.is_empty()) {
                self.push_ref(&repo, name, revision, is_due);
            }
        }
        self.sort_out_refs();
        if is_certain { vec![0] } else { vec![0, 1, 5] }
    }

    fn push_ref(&mut self, repo: &str, name: &str, revision: usize, is_due: bool) {
        let one = &self.universe.revisions[revision];
        let own = Fact::RemoteRef { repo: repo.into(), name: name.into(), revision };
        let others = |fact: &Fact| matches!(fact, Fact::RemoteRef { repo: r, name: n, .. } if r == repo && n == name);
        self.release(|fact| others(fact) && *fact != own);
        self.may.insert(own.clone());
        if is_due {
            self.forbid(|fact| others(fact) && *fact != own);
            self.require(own);
        }
        // An id that a key of 0.1.0 does not identify has another key, which no other repo shares.
        let [old, new] = self.universe.ref_keys(revision, name);
        let own_key = if one.kind == "model" { old.clone() } else { new.clone() };
        for key in [old, new] {
            let is_of_key =
                |fact: &Fact| matches!(fact, Fact::RefObject { key: k, .. } | Fact::BadRef { key: k } if *k == key);
            let own = Fact::RefObject { key: key.clone(), revision };
            if is_due && key == own_key {
                self.forbid(is_of_key);
                self.require(own);
            } else {
                self.release(is_of_key);
                self.may.insert(own);
            }
        }
    }

    /// A dangling ref counts again once its manifest exists, and a ref that another repo has taken over no longer counts.
    fn sort_out_refs(&mut self) {
        let objects: Vec<(String, usize)> = self
            .may
            .iter()
            .filter_map(|fact| match fact {
                Fact::RefObject { key, revision } => Some((key.clone(), *revision)),
                _ => None,
            })
            .collect();
        for (key, revision) in objects {
            let repo = self.universe.repo(revision);
            let name = key.rsplit('/').next().unwrap().to_string();
            let has_one_key = self.universe.revisions[revision].kind == "model";
            let is_due = self
                .must
                .iter()
                .any(|fact| matches!(fact, Fact::RemoteRef { repo: r, name: n, .. } if *r == repo && *n == name));
            if !is_due || !has_one_key {
                self.may.insert(Fact::RemoteRef { repo, name, revision });
            }
        }
    }

    /// Whether a pull can get a blob: from its own folder, from another repo of the cache, or from the bucket.
    fn is_obtainable(&self, machine: usize, revision: usize, etag: &str) -> bool {
        let here = |repo: &str| self.before.blob(machine, repo, etag);
        let own = here(&self.universe.repo(revision));
        matches!(own, Some(Health::Good | Health::Altered))
            || self.before.object(etag) == Some(Health::Good)
            || self.revisions().any(|other| here(&self.universe.repo(other)) == Some(Health::Good))
    }

    /// Pulls these paths of a revision. Returns whether it certainly succeeds.
    fn pull_revision(
        &mut self,
        machine: usize,
        revision: usize,
        paths: BTreeSet<String>,
        name: Option<&str>,
        is_sure: bool,
    ) -> bool {
        let repo = self.universe.repo(revision);
        let etags = self.etags(revision, &paths);
        let is_due =
            is_sure && !self.was_killed && etags.iter().all(|etag| self.is_obtainable(machine, revision, etag));
        self.release(|fact| *fact == Fact::BadTree { machine, revision });
        for etag in &etags {
            let health = self.before.blob(machine, &repo, etag);
            let good = self.blob(machine, revision, etag, Health::Good);
            if health != Some(Health::Altered) {
                let truncated = self.blob(machine, revision, etag, Health::Truncated);
                self.release(|fact| *fact == truncated);
                self.may.insert(good.clone());
                if is_due {
                    self.forbid(|fact| *fact == truncated);
                    self.require(good);
                }
            }
        }
        for path in paths {
            let fact = Fact::File { machine, revision, path };
            match is_due {
                true => self.require(fact),
                false => _ = self.may.insert(fact),
            }
        }
        if let Some(name) = name {
            let own = Fact::Ref { machine, repo: repo.clone(), name: name.into(), revision };
            let is_other = |fact: &Fact| {
                matches!(fact, Fact::Ref { machine: m, repo: r, name: n, .. } if *m == machine && *r == repo && n == name)
                    && *fact != own
            };
            if is_due {
                self.forbid(is_other);
                self.require(own);
            } else if self.was_killed || !is_sure {
                self.release(is_other);
                self.may.insert(own);
            }
        }
        is_due
    }

    fn pull(&mut self, machine: usize, revision: usize, by_ref: bool, include: Option<usize>) -> Vec<i32> {
        let include = include.map(|file| self.universe.path(revision, file));
        if by_ref && self.has_doubtful_refs(revision) {
            for one in self.universe.siblings(revision).collect::<Vec<_>>() {
                let paths = self.paths_to_pull(one, &include);
                if !paths.is_empty() {
                    self.pull_revision(machine, one, paths, Some("main"), false);
                }
            }
            return vec![0, 1, 4, 5];
        }
        let target = match by_ref {
            true => self.remote_ref(&self.universe.repo(revision), "main"),
            false => Some(revision).filter(|revision| self.before.has_manifest(*revision)),
        };
        let Some(target) = target else { return vec![4, 5] };
        let paths = self.paths_to_pull(target, &include);
        if paths.is_empty() {
            return vec![4];
        }
        match self.pull_revision(machine, target, paths, by_ref.then_some("main"), true) {
            true => vec![0],
            false => vec![1, 4, 5],
        }
    }

    /// Returns the paths of a manifest, or only this one.
    fn paths_to_pull(&self, revision: usize, include: &Option<String>) -> BTreeSet<String> {
        let mut paths = self.before.entries(revision);
        paths.retain(|path| include.as_ref().is_none_or(|include| include == path));
        paths
    }

    fn pull_all(&mut self, machine: usize, only: Option<usize>) -> Vec<i32> {
        let only = only.map(|revision| self.universe.repo(revision));
        let mut is_certain = !self.has_bad_object();
        let mut pulled = BTreeSet::new();
        let mut found = false;
        for revision in self.revisions() {
            let repo = self.universe.repo(revision);
            if only.as_ref().is_some_and(|only| *only != repo) || !pulled.insert(repo.clone()) {
                continue;
            }
            if self.has_doubtful_refs(revision) {
                for one in self.universe.siblings(revision).collect::<Vec<_>>() {
                    if self.before.has_manifest(one) {
                        self.pull_revision(machine, one, self.before.entries(one), Some("main"), false);
                    }
                }
            } else if let Some(target) = self.remote_ref(&repo, "main") {
                found = true;
                is_certain &= self.pull_revision(machine, target, self.before.entries(target), Some("main"), true);
            }
        }
        let has_dangling =
            self.has(|fact| matches!(fact, Fact::RefObject { revision, .. } if !self.before.has_manifest(*revision)));
        if is_certain && !has_dangling && found { vec![0] } else { vec![0, 1, 4, 5] }
    }

    /// Whether the repo of a revision must be left alone, since a file of it is missing and it is unknown what else may be
    /// needed.
    fn is_undecidable(&self, machine: usize, revision: usize) -> bool {
        let repo = self.universe.repo(revision);
        self.universe.siblings(revision).any(|one| {
            let paths = self.before.paths(machine, one);
            self.etags(one, &paths).iter().any(|etag| self.before.blob(machine, &repo, etag).is_none())
        })
    }

    fn is_busy(&self, machine: usize, revision: usize, busy: Option<usize>) -> bool {
        let repo = self.universe.repo(revision);
        busy.is_some_and(|one| self.universe.repo(one) == repo) || self.before.in_flight.contains(&(machine, repo))
    }

    /// Whether the bucket certainly does not hold a revision in its local state.
    fn is_surely_unheld(&self, machine: usize, revision: usize) -> bool {
        let (paths, entries) = (self.before.paths(machine, revision), self.before.entries(revision));
        let repo = self.universe.repo(revision);
        let lacks_object = |etag: &String| !matches!(self.before.object(etag), Some(Health::Good | Health::Altered));
        let is_cut = |etag: &String| self.before.blob(machine, &repo, etag) == Some(Health::Truncated);
        !paths.is_subset(&entries)
            || entries.is_empty()
            || self.etags(revision, &entries).iter().any(lacks_object)
            || self.etags(revision, &paths).iter().any(is_cut)
            || self.refs(machine, revision).iter().any(|name| self.remote_ref(&repo, name) != Some(revision))
    }

    /// Whether the bucket certainly holds a revision in its local state.
    fn is_surely_held(&self, machine: usize, revision: usize) -> bool {
        let entries = self.before.entries(revision);
        let is_good = |etag: &String| self.before.object(etag) == Some(Health::Good);
        !self.is_surely_unheld(machine, revision)
            && !self.has_doubtful_refs(revision)
            && self.is_clean(machine, revision)
            && self.etags(revision, &entries).iter().all(is_good)
    }

    /// Whether a fact is of a repo on a machine.
    fn is_of(&self, fact: &Fact, machine: usize, repo: &str) -> bool {
        match fact {
            Fact::Blob { machine: m, repo: r, .. } | Fact::Ref { machine: m, repo: r, .. } => {
                *m == machine && r == repo
            }
            Fact::File { machine: m, revision, .. } => *m == machine && self.universe.repo(*revision) == repo,
            _ => false,
        }
    }

    /// Releases everything of a repo except what these revisions need, and young unused blobs. A killed removal may have
    /// stopped anywhere in between.
    fn release_all_but(&mut self, machine: usize, repo: &str, kept: &BTreeSet<usize>, keeps_young: bool) {
        let mut needed = BTreeSet::new();
        let mut used = BTreeSet::new();
        for revision in self.revisions().filter(|one| self.universe.repo(*one) == repo) {
            let etags = self.etags(revision, &self.before.paths(machine, revision));
            used.extend(etags.iter().cloned());
            if kept.contains(&revision) {
                needed.extend(etags);
            }
        }
        let is_kept = |fact: &Fact| match fact {
            Fact::Blob { etag, .. } => {
                let is_young = self.before.young_blobs.contains(&(machine, repo.to_string(), etag.clone()));
                needed.contains(etag) || (keeps_young && is_young && !used.contains(etag))
            }
            // A dangling ref is useless, and keeps `scan_cache_dir` from listing the repo.
            Fact::Ref { revision, .. } if self.before.paths(machine, *revision).is_empty() => false,
            Fact::Ref { revision, .. } | Fact::File { revision, .. } => kept.contains(revision),
            _ => true,
        };
        let gone: BTreeSet<Fact> =
            self.must.iter().filter(|fact| self.is_of(fact, machine, repo) && !is_kept(fact)).cloned().collect();
        self.release(|fact| gone.contains(fact));
    }

    fn prune(&mut self, machine: usize, options: &Prune) {
        let Prune { budget, scope, grace, keep, older_than, busy } = *options;
        let mut everything_may_go = true;
        let mut free = BTreeSet::new();
        // Blobs that may stay, by repo and name.
        let mut staying: BTreeSet<(String, String)> = BTreeSet::new();
        let repos: BTreeSet<String> = self.revisions().map(|one| self.universe.repo(one)).collect();
        for repo in repos {
            let siblings: Vec<usize> = self.revisions().filter(|one| self.universe.repo(*one) == repo).collect();
            let first = siblings[0];
            if self.is_busy(machine, first, busy) || self.is_undecidable(machine, first) {
                everything_may_go = false;
                let all = self.before.inodes.keys().filter(|(m, r, _)| *m == machine && *r == repo);
                staying.extend(all.map(|(_, repo, etag)| (repo.clone(), etag.clone())));
                continue;
            }
            let is_pinned = keep.is_some_and(|keep| self.universe.repo(keep) == repo);
            let is_kept = |revision: &usize| match scope {
                _ if budget == Budget::Everything || is_pinned => true,
                _ if older_than && self.before.recent.contains(&(machine, *revision)) => true,
                Scope::Detached => !self.refs(machine, *revision).is_empty(),
                Scope::All => false,
                Scope::Held => self.is_surely_unheld(machine, *revision),
            };
            let kept: BTreeSet<usize> = siblings.iter().copied().filter(is_kept).collect();
            let is_there = |revision: &usize| !self.before.paths(machine, *revision).is_empty();
            let may_stay = |revision: &usize| {
                is_there(revision)
                    && (is_kept(revision) || (scope == Scope::Held && !self.is_surely_held(machine, *revision)))
            };
            for one in siblings.iter().filter(|one| may_stay(one)) {
                everything_may_go = false;
                let etags = self.etags(*one, &self.before.paths(machine, *one));
                staying.extend(etags.into_iter().map(|etag| (repo.clone(), etag)));
            }
            self.release_all_but(machine, &repo, &kept, grace);
            free.insert(repo);
        }
        let is_timely = !self.before.from_future.iter().any(|(one, _)| *one == machine);
        // Unused data is deleted in any case.
        if !grace && is_timely && !self.was_killed {
            let mut used = BTreeSet::new();
            for one in self.revisions() {
                let etags = self.etags(one, &self.before.paths(machine, one));
                used.extend(etags.into_iter().map(|etag| (self.universe.repo(one), etag)));
            }
            self.forbid(|fact| match fact {
                Fact::Blob { machine: m, repo, etag, .. } => {
                    *m == machine && free.contains(repo) && !used.contains(&(repo.clone(), etag.clone()))
                }
                _ => false,
            });
        }
        // Evictable data is deleted as far as the budget requires it.
        if !grace && is_timely && !self.was_killed && budget != Budget::Everything {
            let sizes = self
                .before
                .inodes
                .iter()
                .filter(|((m, repo, etag), _)| *m == machine && staying.contains(&(repo.clone(), etag.clone())));
            let sizes: BTreeSet<(u64, u64)> = sizes.map(|(_, inode)| *inode).collect();
            let least = sizes.iter().map(|(_, size)| size).sum();
            self.size = Some((machine, budget.bytes().max(least)));
        }
        // Nothing prevents it, so everything is removed.
        if everything_may_go && is_timely && budget == Budget::Nothing && !grace && !self.was_killed {
            let gone: BTreeSet<Fact> = self
                .may
                .iter()
                .filter(|fact| !matches!(fact, Fact::Ref { .. }))
                .filter(|fact| free.iter().any(|repo| self.is_of(fact, machine, repo)))
                .cloned()
                .collect();
            self.forbid(|fact| gone.contains(fact));
        }
    }

    fn rm(
        &mut self,
        machine: usize,
        revision: usize,
        all: bool,
        require_remote: bool,
        busy: Option<usize>,
    ) -> Vec<i32> {
        let repo = self.universe.repo(revision);
        let siblings: Vec<usize> = self.universe.siblings(revision).collect();
        let is_wanted = |one: &usize| all || *one == revision;
        let is_there = |one: &usize| !self.before.paths(machine, *one).is_empty();
        let is_known = self.before.facts.iter().any(|fact| self.is_of(fact, machine, &repo));
        let has_unfinished = self.before.unfinished.contains(&(machine, repo.clone()));
        if !siblings.iter().any(|one| is_wanted(one) && is_there(one)) {
            // A folder without a revision may count as a repo or not.
            if all {
                self.release_all_but(machine, &repo, &BTreeSet::new(), false);
            }
            return if is_known || has_unfinished { vec![0, 1, 4] } else { vec![0, 4] };
        }
        if busy.is_some_and(|one| self.universe.repo(one) == repo) || self.is_undecidable(machine, revision) {
            return vec![1];
        }
        let is_kept = |one: &usize| !is_wanted(one) || (require_remote && self.is_surely_unheld(machine, *one));
        let kept: BTreeSet<usize> = siblings.iter().copied().filter(is_kept).collect();
        // Files that arrived within the last five minutes may belong to an unfinished download.
        let is_quiet = !self.before.active.contains(&(machine, repo.clone()));
        let mut wanted = siblings.iter().filter(|one| is_wanted(one) && is_there(one));
        let is_certain = is_quiet && wanted.all(|one| !require_remote || self.is_surely_held(machine, *one));
        self.release_all_but(machine, &repo, &kept, false);
        if !all {
            // Unused blobs are not part of a revision.
            let used: BTreeSet<String> =
                siblings.iter().flat_map(|one| self.etags(*one, &self.before.paths(machine, *one))).collect();
            let unused: Vec<Fact> = self
                .before
                .facts
                .iter()
                .filter(|fact| matches!(fact, Fact::Blob { machine: m, repo: r, etag, .. } if *m == machine && *r == repo && !used.contains(etag)))
                .cloned()
                .collect();
            unused.into_iter().for_each(|fact| self.require(fact));
        }
        if is_certain && !has_unfinished && !self.was_killed {
            let is_gone = |fact: &Fact| match fact {
                Fact::File { machine: m, revision: one, .. } => {
                    *m == machine && siblings.contains(one) && is_wanted(one)
                }
                Fact::Ref { machine: m, revision: one, .. } => {
                    *m == machine && siblings.contains(one) && is_wanted(one) && is_there(one)
                }
                _ => false,
            };
            self.forbid(is_gone);
        }
        match (is_certain, has_unfinished) {
            (true, false) => vec![0],
            (false, _) if require_remote && kept.iter().any(|one| is_wanted(one) && is_there(one)) => vec![1],
            _ => vec![0, 1],
        }
    }

    /// Releases old blobs in the bucket that only the manifests of `removed` name, and old refs that dangle or name one of
    /// those.
    fn release_remote(&mut self, removed: &BTreeSet<usize>, everything: bool) {
        let all: Vec<usize> = self.revisions().collect();
        let needed: BTreeSet<String> = all
            .iter()
            .filter(|one| !removed.contains(one))
            .flat_map(|one| self.etags(*one, &self.before.entries(*one)))
            .collect();
        let considered: BTreeSet<String> =
            removed.iter().flat_map(|one| self.etags(*one, &self.before.entries(*one))).collect();
        let before = self.before;
        // A manifest that cannot be read may need any blob.
        let is_decidable = !self.has_bad_manifest();
        self.release(|fact| match fact {
            Fact::Entry { revision, .. } => removed.contains(revision),
            Fact::RemoteRef { revision, .. } => removed.contains(revision),
            Fact::Object { etag, .. } => {
                is_decidable
                    && !needed.contains(etag)
                    && !before.young_objects.contains(etag)
                    && (everything || considered.contains(etag))
            }
            Fact::RefObject { key, revision } => {
                let is_dangling = !before.has_manifest(*revision);
                removed.contains(revision) || (everything && is_dangling && !before.young_refs.contains(key))
            }
            _ => false,
        });
    }

    fn remote_rm(&mut self, revision: usize, all: bool) -> Vec<i32> {
        let repo = self.universe.repo(revision);
        let removed: BTreeSet<usize> = self
            .revisions()
            .filter(|one| self.universe.repo(*one) == repo && (all || *one == revision))
            .filter(|one| self.before.has_manifest(*one))
            .collect();
        if removed.is_empty() {
            return if self.has_bad_object() { vec![0, 1, 4, 5] } else { vec![4] };
        }
        self.release_remote(&removed, false);
        if self.has_bad_object() {
            let keys: Vec<String> = REFS.iter().flat_map(|name| self.universe.ref_keys(revision, name)).collect();
            self.release(|fact| matches!(fact, Fact::BadRef { key } if keys.contains(key)));
            self.sort_out_refs();
            return vec![0, 1, 5];
        }
        if !self.was_killed && !self.before.has_notices {
            self.forbid_released();
            // Another key of the ref may name a revision that stays.
            self.sort_out_refs();
            self.may.retain(|fact| !matches!(fact, Fact::RemoteRef { revision, .. } if removed.contains(revision)));
            return vec![0];
        }
        self.sort_out_refs();
        vec![0, 1]
    }

    fn remote_gc(&mut self, clock: Clock) -> Vec<i32> {
        // Nothing is deleted unless everything is understood.
        if self.has_bad_manifest() {
            return vec![5];
        }
        if self.has_bad_object() {
            self.release_remote(&BTreeSet::new(), true);
            return vec![0, 5];
        }
        self.release_remote(&BTreeSet::new(), true);
        // If the store's responses are dated too early, nothing may look old.
        if !self.was_killed && !self.before.has_notices && !matches!(clock, Clock::Ahead(..0)) {
            self.forbid_released();
        }
        vec![0]
    }

    /// Requires that everything that existed and may be deleted is deleted.
    fn forbid_released(&mut self) {
        let released: BTreeSet<Fact> = self.before.facts.difference(&self.must).cloned().collect();
        self.forbid(|fact| released.contains(fact));
    }

    fn repair(&mut self, machine: usize) -> Vec<i32> {
        let before = self.before;
        let mut is_certain = true;
        for revision in self.revisions() {
            let repo = self.universe.repo(revision);
            let paths = self.before.paths(machine, revision);
            for etag in self.etags(revision, &paths) {
                let good = self.blob(machine, revision, &etag, Health::Good);
                let is_good = before.blob(machine, &repo, &etag) == Some(Health::Good);
                self.may.insert(good.clone());
                let has_source = before.object(&etag) == Some(Health::Good)
                    || self
                        .revisions()
                        .any(|one| before.blob(machine, &self.universe.repo(one), &etag) == Some(Health::Good));
                match has_source && before.object(&etag) != Some(Health::Altered) {
                    true => {
                        let is_blob = |fact: &Fact| matches!(fact, Fact::Blob { machine: m, repo: r, etag: e, .. } if *m == machine && *r == repo && *e == etag);
                        self.release(is_blob);
                        if !self.was_killed {
                            self.forbid(is_blob);
                            self.require(good);
                        }
                    }
                    false => {
                        is_certain &= is_good;
                        if !is_good {
                            self.release(|fact| matches!(fact, Fact::Blob { machine: m, repo: r, etag: e, .. } if *m == machine && *r == repo && *e == etag));
                        }
                    }
                }
            }
        }
        // A bad, unused blob is removed. So is an old dangling ref, unless it gets the bucket's commit.
        self.release(|fact| match fact {
            Fact::Blob { machine: m, health, .. } => *m == machine && *health != Health::Good,
            Fact::Ref { machine: m, revision, .. } => *m == machine && before.paths(machine, *revision).is_empty(),
            Fact::BadTree { machine: m, .. } => *m == machine,
            _ => false,
        });
        let is_doubtful = self.has_bad_object() || self.has(|fact| matches!(fact, Fact::BadTree { .. }));
        match is_certain {
            true if is_doubtful => vec![0, 1, 4, 5],
            true => vec![0, 5],
            false => vec![1, 4, 5],
        }
    }

    fn repair_remote(&mut self, machine: usize) -> Vec<i32> {
        let before = self.before;
        for revision in self.revisions() {
            // A good copy here replaces any object in the bucket.
            for etag in self.etags(revision, &self.before.entries(revision)) {
                let has_copy = self
                    .revisions()
                    .any(|one| before.blob(machine, &self.universe.repo(one), &etag) == Some(Health::Good));
                if has_copy {
                    self.repair_object(&etag);
                }
            }
            // A bad manifest, or one that a ref lacks, is published again.
            let paths = before.paths(machine, revision);
            let is_bad = before.facts.contains(&Fact::BadManifest { revision });
            let is_lacking = self.has(|fact| matches!(fact, Fact::RefObject { revision: r, .. } if *r == revision))
                && !before.has_manifest(revision);
            let is_due = (is_bad || is_lacking) && self.is_clean(machine, revision) && !self.was_killed;
            if !paths.is_empty() {
                self.release(|fact| *fact == Fact::BadManifest { revision });
            }
            if is_due {
                self.forbid(|fact| *fact == Fact::BadManifest { revision });
            }
            for path in paths {
                let etag = self.etag(revision, &path);
                let entry = Fact::Entry { revision, path };
                if is_due {
                    self.require(entry);
                    // A push does not read objects of the right size.
                    if before.object(&etag) != Some(Health::Altered) {
                        self.repair_object(&etag);
                    }
                } else {
                    self.may.insert(self.object(&etag, Health::Good));
                    self.may.insert(entry);
                }
            }
            for name in REFS {
                for key in self.universe.ref_keys(revision, name) {
                    self.release(|fact| match fact {
                        Fact::RefObject { key: k, revision } => *k == key && !before.has_manifest(*revision),
                        Fact::BadRef { key: k } => *k == key,
                        _ => false,
                    });
                    if self.refs(machine, revision).contains(&name.to_string()) {
                        self.may.insert(Fact::RefObject { key, revision });
                    }
                }
            }
        }
        self.sort_out_refs();
        vec![0, 1, 5]
    }

    /// Requires that an object is good, unless the command was killed.
    fn repair_object(&mut self, etag: &str) {
        let is_it = |fact: &Fact| matches!(fact, Fact::Object { etag: e, .. } if *e == etag);
        let good = self.object(etag, Health::Good);
        self.release(is_it);
        if self.was_killed {
            self.may.insert(good);
        } else {
            self.forbid(is_it);
            self.require(good);
        }
    }
}
