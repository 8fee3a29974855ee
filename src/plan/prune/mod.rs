//! Plans a prune. Pure: takes the facts and the current time, and returns ordered actions.
//!
//! The plan first deletes what is not needed: the tool's own leftovers, abandoned downloads, orphaned blobs and
//! payloads. Then, while the cache is over budget, it evicts revisions, least recently used first: those that no ref
//! names, and then, if requested, the others. If the bucket has to hold what is evicted, refs make no difference.
//! Finally it deletes folders that are empty by then. Anything recent, in use or not understood is left alone, and while
//! there is a barrier, so is the content of every repo.

mod actions;
pub mod held;
pub mod ledger;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cache::clients;
use crate::cache::inventory::{BlobPlace, Problem, ProblemKind, Repo, Revision, SnapshotFile, UnfinishedFile};
use crate::cache::layout::Layout;
use crate::cache::prune_facts::{Facts, RepoFacts};
use crate::cache::state::Completeness;
use crate::error::{Cause, Error, shown};
use crate::model::ids::{Commit, RefName, RepoName};
use crate::model::pins::Pins;
use crate::when;
pub use actions::{Agreement, Eviction, Plan, Reason, Skip, SkipReason, Target};
use held::{Held, Lack};
use ledger::Ledger;

/// A client that was active in a repo this recently may be between two files of a download. The newest revision then
/// stays if it received a file in this time, unless its tree proves that it is complete.
const RECENT: Duration = Duration::from_secs(300);

/// The options of a prune.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Bytes that the cache may take. `None` evicts everything that is older than `older_than`.
    pub budget: Option<u64>,
    /// Whether revisions that a ref names may be evicted, too.
    pub include_referenced: bool,
    /// Revisions are kept until they have not been used for this long.
    pub older_than: Option<Duration>,
    /// Revisions that are never evicted.
    pub keep: Pins,
    /// If given, only what the bucket holds may be evicted, whether or not a ref names it.
    pub held: Option<Held>,
    /// Blobs that no revision uses are kept until they are this old.
    pub orphan_grace: Duration,
    /// Unfinished files are kept until they have not been written to for this long.
    pub temporary_grace: Duration,
}

/// A reason why any of the cache's blobs may be in use.
struct Barrier<'a> {
    reason: SkipReason,
    repo: Option<&'a RepoName>,
    path: &'a Path,
    /// Why it cannot be read, if that is the reason.
    cause: Cause,
}

/// Makes the plan.
pub fn plan(facts: &Facts, options: &Options, now: SystemTime) -> Plan {
    let mut planner = Planner::new(facts, options, now);
    report_problems(facts, &mut planner.plan);
    let barriers = planner.barriers();
    planner.plan_cleanup();
    planner.plan_evictions();
    planner.plan_empty_folders(|_| true);
    planner.plan_dangling_refs();
    let mut plan = planner.plan;
    plan.apply_barriers(&barriers);
    plan
}

/// The repos to remove, each with its revisions to remove; `None` removes all of it.
pub type Removal = BTreeMap<RepoName, Option<BTreeSet<Commit>>>;

/// Plans the removal of repos and revisions by the same rules, regardless of the budget, their last use and refs to them.
pub fn plan_removal(facts: &Facts, removal: &Removal, options: &Options, now: SystemTime) -> Plan {
    let mut planner = Planner::new(facts, options, now);
    let barriers = planner.barriers();
    for (index, repo) in facts.inventory.repos.iter().enumerate() {
        if let Some(commits) = removal.get(&repo.name) {
            planner.plan_removal_of(index, repo, commits.as_ref());
        }
    }
    planner.plan_empty_folders(|repo| removal.contains_key(repo));
    let mut plan = planner.plan;
    plan.apply_barriers(&barriers);
    plan
}

impl Plan {
    /// Cancels every deletion of content, since any of it may be in use, and reports how many bytes that keeps.
    fn apply_barriers(&mut self, barriers: &[Barrier<'_>]) {
        if barriers.is_empty() {
            return;
        }
        let before = self.actions.len();
        let held = self.actions.iter().filter(|action| action.target.is_content()).map(|action| action.bytes).sum();
        self.actions.retain(|action| !action.target.is_content());
        self.freed = self.actions.iter().map(|action| action.bytes).sum();
        let has_effect = self.actions.len() < before;
        for Barrier { reason, repo, path, cause } in barriers {
            let is_this = |skip: &&mut Skip| skip.reason == *reason && skip.path.as_deref() == Some(*path);
            match self.skips.iter_mut().find(is_this) {
                Some(reported) => reported.bytes += held,
                None => self.add_skip(*reason, *repo, Some(path.to_path_buf()), held),
            }
            if *reason == SkipReason::Unreadable
                && has_effect
                && !self.failures.iter().any(|failure| failure.what == shown(path))
            {
                self.failures.push(Error::new(*cause, shown(path)).because("cannot be inspected"));
            }
        }
    }
}

/// Reports everything that is wrong or not understood, regardless of the budget.
fn report_problems(facts: &Facts, plan: &mut Plan) {
    let of_repos = facts.inventory.repos.iter().flat_map(|repo| repo.problems.iter().map(|p| (Some(&repo.name), p)));
    let of_root = facts.inventory.problems.iter().chain(&facts.store_problems).map(|problem| (None, problem));
    let is_harmless = |problem: &Problem| problem.kind == ProblemKind::UntidyRef;
    for (repo, problem) in of_root.chain(of_repos).filter(|(_, problem)| !is_harmless(problem)) {
        plan.add_skip(skip_reason(problem.kind), repo, Some(problem.path.clone()), 0);
        if problem.kind == ProblemKind::Unreadable {
            plan.failures.push(problem.to_error(""));
        }
    }
}

fn skip_reason(kind: ProblemKind) -> SkipReason {
    match kind {
        ProblemKind::Unreadable => SkipReason::Unreadable,
        ProblemKind::BrokenLink | ProblemKind::ForeignLink | ProblemKind::BadName => SkipReason::Undecidable,
        ProblemKind::BadRef | ProblemKind::UntidyRef => SkipReason::BadRef,
        ProblemKind::UnknownEntry | ProblemKind::NotAFile => SkipReason::Unknown,
    }
}

/// Returns whether an unreadable place in a repo may contain links to blobs. Refs and trees contain none.
fn may_hide_links(repo: &Path, path: &Path) -> bool {
    let part = path.strip_prefix(repo).ok().and_then(|inside| inside.iter().next());
    !part.is_some_and(|part| ["refs", "trees", ".no_exist"].iter().any(|known| part == *known))
}

/// Returns why blobs and revisions of a repo must stay, and the path that shows it.
fn blocking_reason(layout: &Layout, repo: &Repo, about: &RepoFacts) -> Option<(SkipReason, Option<PathBuf>)> {
    if repo.is_link {
        return Some((SkipReason::Link, None));
    }
    if let Some(part) = &about.linked_part {
        return Some((SkipReason::Link, Some(part.clone())));
    }
    if let Some(problem) = find_undecidable(layout, repo) {
        return Some((skip_reason(problem.kind), Some(problem.path.clone())));
    }
    about.needed_by.clone().map(|link| (SkipReason::NeededElsewhere, Some(link)))
}

/// Finds a problem that may hide uses of the repo's blobs from the scan.
pub(crate) fn find_undecidable<'a>(layout: &Layout, repo: &'a Repo) -> Option<&'a Problem> {
    let snapshots = layout.repo(&repo.name).join("snapshots");
    repo.problems.iter().find(|problem| match problem.kind {
        ProblemKind::Unreadable | ProblemKind::BrokenLink | ProblemKind::ForeignLink | ProblemKind::BadName => true,
        // Refs, pipes, sockets and devices do not use blobs.
        ProblemKind::BadRef | ProblemKind::UntidyRef | ProblemKind::NotAFile => false,
        // huggingface_hub treats every folder in snapshots/ as a snapshot, even if its name is not a commit.
        ProblemKind::UnknownEntry => problem.path.starts_with(&snapshots),
    })
}

/// A revision that may be evicted.
struct Candidate<'a> {
    index: usize,
    repo: &'a RepoName,
    commit: &'a Commit,
    /// All of its refs.
    refs: Vec<RefName>,
    /// Whether any of them is more than the commit's own hash.
    is_named: bool,
    last_use: SystemTime,
}

struct Planner<'a> {
    facts: &'a Facts,
    options: &'a Options,
    now: SystemTime,
    plan: Plan,
    ledger: Ledger,
    /// Why each repo of the inventory must stay.
    blocked: Vec<Option<(SkipReason, Option<PathBuf>)>>,
    /// Why each repo of the inventory may be in use by a client.
    activity: Vec<Option<SkipReason>>,
}

impl<'a> Planner<'a> {
    fn new(facts: &'a Facts, options: &'a Options, now: SystemTime) -> Planner<'a> {
        let ledger = Ledger::new(facts);
        let plan = Plan { size: ledger.size(), pinned: ledger.pinned(), ..Plan::default() };
        let repos = facts.inventory.repos.iter();
        let blocked =
            repos.map(|repo| blocking_reason(&facts.inventory.layout, repo, facts.for_repo(&repo.name))).collect();
        let mut planner = Planner { facts, options, now, plan, ledger, blocked, activity: Vec::new() };
        planner.activity = facts.inventory.repos.iter().map(|repo| planner.activity_in(repo)).collect();
        planner
    }

    /// Returns whether the time is at least `grace` ago. An unknown time, or one in the future, is not.
    fn is_old(&self, time: Option<SystemTime>, grace: Duration) -> bool {
        when::is_past(time, grace, self.now)
    }

    /// Returns whether no process is expected to continue this file.
    fn is_abandoned(&self, file: &UnfinishedFile) -> bool {
        self.is_old(file.last_write(), self.options.temporary_grace)
    }

    /// Returns why a client may be active in this repo. It may be about to link any of the repo's blobs.
    fn activity_in(&self, repo: &Repo) -> Option<SkipReason> {
        let about = self.facts.for_repo(&repo.name);
        let mut unfinished = repo.in_flight.iter().chain(&repo.temporaries);
        if unfinished.any(|file| !self.is_abandoned(file)) || !about.held.is_empty() {
            return Some(SkipReason::InFlight);
        }
        if about.last_unfinished_write.is_some()
            && !self.is_old(about.last_unfinished_write, self.options.temporary_grace)
        {
            return Some(SkipReason::InFlight);
        }
        about.locked.then_some(SkipReason::Held)
    }

    /// Returns the barriers: unreadable places, which may contain links to anything, and recent downloads at the root,
    /// which may be for any repo.
    fn barriers(&self) -> Vec<Barrier<'a>> {
        let inventory = &self.facts.inventory;
        let unreadable = |problem: &&'a Problem| {
            problem.kind == ProblemKind::Unreadable && !self.facts.harmless.contains(&problem.path)
        };
        let of_root = inventory.problems.iter().filter(unreadable);
        let of_root = of_root.map(|problem| (None, problem.path.as_path(), problem.cause));
        let of_repos = inventory.repos.iter().flat_map(move |repo| {
            let folder = inventory.layout.repo(&repo.name);
            let problems = repo.problems.iter().filter(unreadable);
            let problems = problems.filter(move |problem| may_hide_links(&folder, &problem.path));
            problems.map(|problem| (Some(&repo.name), problem.path.as_path(), problem.cause))
        });
        let hidden = self.facts.hidden.iter().map(|(path, cause)| (None, path.as_path(), *cause));
        let unreadable = of_root.chain(of_repos).chain(hidden);
        let young = self.facts.root_temporaries.iter().filter(|file| !self.is_abandoned(file));
        unreadable
            .map(|(repo, path, cause)| Barrier { reason: SkipReason::Unreadable, repo, path, cause })
            .chain(young.map(|file| Barrier {
                reason: SkipReason::InFlight,
                repo: None,
                path: &file.path,
                cause: Cause::Other,
            }))
            .collect()
    }

    /// Deletes leftovers, abandoned downloads, orphaned blobs and payloads.
    fn plan_cleanup(&mut self) {
        for leftover in &self.facts.leftovers {
            let path = leftover.path.clone();
            match self.is_old(leftover.modified, self.options.temporary_grace) {
                true => self.plan.add_action(Target::Leftover { path }, Reason::Abandoned, leftover.bytes),
                false => self.plan.add_skip(SkipReason::InFlight, None, Some(path), leftover.bytes),
            }
        }
        let facts = self.facts;
        for file in &facts.root_temporaries {
            if !self.is_abandoned(file) {
                continue;
            }
            // A file such as `tmpnotes` may be a user's own.
            if !clients::is_surely_temporary(self.facts.inventory.layout.root(), &file.path) {
                self.plan.add_skip(SkipReason::Unknown, None, Some(file.path.clone()), file.on_disk);
                continue;
            }
            self.plan.add_action(Target::RootTemporary { path: file.path.clone() }, Reason::Abandoned, file.on_disk);
        }
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            match self.blocked[index].clone() {
                None => self.plan_temporaries(repo),
                Some((SkipReason::Undecidable, _)) => self.plan_temporaries(repo),
                // Already reported as a problem.
                Some((SkipReason::Unreadable | SkipReason::Unknown, _)) => {}
                Some((reason, path)) => self.plan.add_skip(reason, Some(&repo.name), path, 0),
            }
        }
        self.report_protected_bytes();
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            if self.blocked[index].is_none() && self.activity[index].is_none() {
                self.plan_orphans(index, repo);
            }
        }
        let blobs = self.facts.inventory.repos.iter().flat_map(|repo| repo.blobs.values());
        let linked: HashSet<&Path> = blobs
            .filter_map(|blob| match &blob.place {
                BlobPlace::Shared(payload) => Some(payload.as_path()),
                _ => None,
            })
            .collect();
        for payload in &self.facts.payloads {
            match &payload.references {
                None => self.plan.add_skip(SkipReason::Unlisted, None, Some(payload.path.clone()), payload.size),
                Some(links) if !links.is_empty() || linked.contains(payload.path.as_path()) => {}
                Some(_) if !self.is_old(payload.modified, self.options.orphan_grace) => {
                    self.plan.add_skip(SkipReason::Young, None, Some(payload.path.clone()), payload.size);
                }
                Some(_) => {
                    let bytes = self.ledger.drop_payload(&payload.path);
                    self.plan.add_action(Target::Payload { path: payload.path.clone() }, Reason::Unused, bytes);
                }
            }
        }
    }

    fn plan_temporaries(&mut self, repo: &Repo) {
        let about = self.facts.for_repo(&repo.name);
        for file in repo.in_flight.iter().chain(&repo.temporaries) {
            let path = file.path.clone();
            if about.held.contains(&path) {
                self.plan.add_skip(SkipReason::Held, Some(&repo.name), Some(path), file.on_disk);
                continue;
            }
            match self.is_abandoned(file) {
                true => {
                    self.plan.add_action(
                        Target::Temporary { repo: repo.name.clone(), path },
                        Reason::Abandoned,
                        file.on_disk,
                    );
                }
                false => self.plan.add_skip(SkipReason::InFlight, Some(&repo.name), Some(path), file.on_disk),
            }
        }
    }

    /// Reports how many bytes are kept in repos that are left alone entirely: always those of unused blobs, and those
    /// of revisions if the cache is over budget.
    fn report_protected_bytes(&mut self) {
        let over = self.wants_more(0);
        let mut trial: Option<Ledger> = None;
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            let is_bad_ref = || repo.problems.iter().any(|problem| problem.kind == ProblemKind::BadRef);
            let activity = self.activity[index];
            let reason = match &self.blocked[index] {
                Some((reason, _)) => *reason,
                None => match activity {
                    Some(reason) => reason,
                    None if is_bad_ref() => SkipReason::BadRef,
                    None => continue,
                },
            };
            let trial = trial.get_or_insert_with(|| self.ledger.clone());
            let unused = repo.blobs.keys().filter(|id| !self.ledger.is_used(index, id));
            let mut bytes = match reason {
                // Unused blobs of such a repo are planned one by one.
                SkipReason::BadRef => 0,
                _ => unused.map(|id| trial.drop_blob(index, id)).sum(),
            };
            if over {
                bytes += repo.revisions.keys().map(|commit| trial.evict(index, commit).bytes).sum::<u64>();
            }
            let is_this = |skip: &&mut Skip| skip.reason == reason && skip.repo.as_ref() == Some(&repo.name);
            match self.plan.skips.iter_mut().find(is_this) {
                Some(reported) if self.blocked[index].is_some() || reason == SkipReason::BadRef => {
                    reported.bytes = bytes
                }
                _ if bytes > 0 => self.plan.add_skip(reason, Some(&repo.name), None, bytes),
                _ => {}
            }
        }
    }

    fn plan_orphans(&mut self, index: usize, repo: &Repo) {
        // A copy may be in progress that keeps old times and writes blobs before snapshots, so a recent addition
        // protects all blobs of the repo.
        let is_young = |time: Option<SystemTime>| !self.is_old(time, self.options.orphan_grace);
        let newest = repo.blobs.values().map(|blob| blob.placed).max().flatten();
        let arrived = self.facts.for_repo(&repo.name).last_arrival;
        let arriving = (repo.revisions.is_empty() && is_young(newest)) || (arrived.is_some() && is_young(arrived));
        for (id, blob) in &repo.blobs {
            let path = || Some(self.facts.inventory.layout.blob(&repo.name, id));
            if self.ledger.is_used(index, id) {
                continue;
            }
            if blob.place == BlobPlace::Elsewhere {
                self.plan.add_skip(SkipReason::Link, Some(&repo.name), path(), 0);
            } else if arriving || !self.is_old(blob.placed, self.options.orphan_grace) {
                self.plan.add_skip(SkipReason::Young, Some(&repo.name), path(), blob.size);
            } else {
                let bytes = self.ledger.drop_blob(index, id);
                self.plan.add_action(Target::Blob { repo: repo.name.clone(), blob: *id }, Reason::Unused, bytes);
            }
        }
    }

    /// Returns whether revisions have to be evicted, after all actions so far and `more` bytes freed.
    fn wants_more(&self, more: u64) -> bool {
        match self.options.budget {
            Some(budget) => (self.plan.size - self.plan.freed).saturating_sub(more) > budget,
            None => self.options.older_than.is_some(),
        }
    }

    /// Evicts revisions until the cache is within its budget; without a budget, all that may be evicted.
    fn plan_evictions(&mut self) {
        if !self.wants_more(0) {
            return;
        }
        let candidates = self.candidates();
        let mut trial = self.ledger.clone();
        let (mut chosen, mut kept, mut freed) = (Vec::new(), Vec::new(), 0);
        for candidate in &candidates {
            if !self.wants_more(freed) {
                break;
            }
            match self.obstacle(candidate) {
                Some(obstacle) => kept.push((candidate, obstacle)),
                None => {
                    freed += trial.evict(candidate.index, candidate.commit).bytes;
                    chosen.push(candidate);
                }
            }
        }
        // Evicting a revision is useless if all of its blobs stay because others need them.
        let mut useless = BTreeSet::new();
        for candidate in chosen.iter().rev() {
            match trial.restore(candidate.index, candidate.commit) {
                0 => drop(useless.insert((candidate.index, candidate.commit))),
                _ => drop(trial.evict(candidate.index, candidate.commit)),
            }
        }
        for candidate in chosen {
            if useless.contains(&(candidate.index, candidate.commit)) {
                self.skip_revision(candidate, SkipReason::FreesNothing, 0);
                continue;
            }
            let reason = if candidate.is_named { Reason::Referenced } else { Reason::Detached };
            self.evict(candidate, reason);
        }
        let is_over_budget = self.options.budget.is_some() && self.wants_more(0);
        let mut trial = self.ledger.clone();
        for (candidate, (reason, lacks)) in kept {
            let bytes = trial.evict(candidate.index, candidate.commit).bytes;
            // There are always some that were used recently.
            if reason != SkipReason::Recent || is_over_budget {
                let (repo, revision) = (Some(candidate.repo.clone()), Some(candidate.commit.clone()));
                self.plan.skips.push(Skip { repo, revision, status: None, path: None, reason, lacks, bytes });
            }
        }
    }

    fn evict(&mut self, candidate: &Candidate<'_>, reason: Reason) {
        let gone = self.ledger.evict(candidate.index, candidate.commit);
        let target = Target::Revision(Eviction {
            repo: candidate.repo.clone(),
            revision: candidate.commit.clone(),
            refs: candidate.refs.clone(),
            status: Completeness::Unknown,
            last_use: candidate.last_use.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            blobs: gone.blobs,
        });
        self.plan.add_action(target, reason, gone.bytes);
    }

    /// Returns why the options keep this revision.
    fn obstacle(&self, candidate: &Candidate<'_>) -> Option<(SkipReason, Option<Lack>)> {
        let Candidate { repo, commit, refs, .. } = candidate;
        let is_recent = |age: Duration| !self.is_old(Some(candidate.last_use), age);
        if self.options.older_than.is_some_and(is_recent) {
            return Some((SkipReason::Recent, None));
        }
        if self.options.keep.match_revision(repo, commit, refs) {
            return Some((SkipReason::Pinned, None));
        }
        match &self.options.held {
            Some(held) => held.lack(repo, commit).map(|lack| (SkipReason::NotInBucket, Some(lack))),
            None if candidate.is_named && !self.options.include_referenced => Some((SkipReason::Referenced, None)),
            None => None,
        }
    }

    fn skip_revision(&mut self, candidate: &Candidate<'_>, reason: SkipReason, bytes: u64) {
        let (repo, revision) = (Some(candidate.repo.clone()), Some(candidate.commit.clone()));
        self.plan.skips.push(Skip { repo, revision, status: None, path: None, reason, lacks: None, bytes });
    }

    /// Returns the revisions that may be evicted: detached ones first unless the bucket has to hold all of them, then by
    /// last use. Reports the others as skipped.
    fn candidates(&mut self) -> Vec<Candidate<'a>> {
        let mut found = Vec::new();
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            if self.blocked[index].is_some() || repo.revisions.is_empty() {
                continue;
            }
            if repo.problems.iter().any(|problem| problem.kind == ProblemKind::BadRef) {
                continue;
            }
            if self.activity[index].is_some() {
                continue;
            }
            found.extend(self.candidates_of(index, repo));
        }
        let refs_count = self.options.held.is_none();
        found.sort_by_key(|one| (refs_count && one.is_named, one.last_use, one.index, one.commit));
        found
    }

    /// Returns the revisions of a repo that may be evicted. Reports the others as skipped.
    fn candidates_of(&mut self, index: usize, repo: &'a Repo) -> Vec<Candidate<'a>> {
        let mut found = Vec::new();
        let about = self.facts.for_repo(&repo.name);
        let arrivals: Vec<_> = repo.revisions.values().map(|revision| last_arrival(repo, revision)).collect();
        let newest = arrivals.iter().max().copied().flatten();
        let mut refs: BTreeMap<&Commit, Vec<RefName>> = BTreeMap::new();
        for (name, commit) in &repo.refs {
            refs.entry(commit).or_default().push(name.clone());
        }
        for ((commit, revision), arrival) in repo.revisions.iter().zip(arrivals) {
            let last_use = last_use(repo, revision, self.now);
            let mut refs = refs.remove(commit).unwrap_or_default();
            let is_named = !refs.is_empty();
            refs.extend(repo.pins.get(commit).map(RefName::of_commit));
            let candidate = Candidate { index, repo: &repo.name, commit, refs, is_named, last_use };
            // A file of it arrived recently while a client was active, so more may follow.
            let is_fresh = arrival >= newest && self.is_recent(arrival) && self.has_recent_client(repo);
            if !self.ledger.has_all(index, commit) {
                self.skip_revision(&candidate, SkipReason::Link, 0);
            } else if is_fresh && !about.complete.contains(commit) {
                self.skip_revision(&candidate, SkipReason::Busy, 0);
            } else {
                found.push(candidate);
            }
        }
        found
    }

    /// Returns whether a client was active so recently that it may be between two files of a download.
    fn has_recent_client(&self, repo: &Repo) -> bool {
        let seen = self.facts.for_repo(&repo.name).client_seen;
        seen.is_some() && self.is_recent(seen)
    }

    /// Returns whether a download that wrote a file at this time may still be going on.
    fn is_recent(&self, time: Option<SystemTime>) -> bool {
        !self.is_old(time, RECENT.min(self.options.orphan_grace))
    }

    /// Removes revisions of a repo, or all of it.
    fn plan_removal_of(&mut self, index: usize, repo: &'a Repo, commits: Option<&BTreeSet<Commit>>) {
        let bad_ref = repo.problems.iter().find(|problem| problem.kind == ProblemKind::BadRef);
        let bad_ref = bad_ref.map(|problem| (SkipReason::BadRef, Some(problem.path.clone())));
        let activity = self.activity[index].map(|reason| (reason, None));
        if let Some((reason, path)) = self.blocked[index].clone().or(activity).or(bad_ref) {
            let mut trial = self.ledger.clone();
            let bytes = repo.revisions.keys().map(|commit| trial.evict(index, commit).bytes).sum();
            self.plan.add_skip(reason, Some(&repo.name), path, bytes);
            let unreadable = repo.problems.iter().filter(|problem| problem.kind == ProblemKind::Unreadable);
            self.plan.failures.extend(unreadable.map(|problem| problem.to_error("")));
            return;
        }
        if commits.is_none() {
            self.plan_temporaries(repo);
            // Before the evictions, which take the blobs of their own with them.
            self.plan_orphans(index, repo);
        }
        let is_wanted = |commit: &Commit| commits.is_none_or(|commits| commits.contains(commit));
        for candidate in self.candidates_of(index, repo).into_iter().filter(|one| is_wanted(one.commit)) {
            let lacks = self.options.held.as_ref().and_then(|held| held.lack(&repo.name, candidate.commit));
            match lacks {
                None => self.evict(&candidate, Reason::Requested),
                lacks => {
                    let (repo, revision) = (Some(repo.name.clone()), Some(candidate.commit.clone()));
                    let reason = SkipReason::NotInBucket;
                    self.plan.skips.push(Skip { repo, revision, status: None, path: None, reason, lacks, bytes: 0 });
                }
            }
        }
        // What was found to be in use is no reason to fail if it was not to be removed.
        let is_about_wanted = |skip: &Skip| skip.revision.as_ref().is_none_or(is_wanted);
        self.plan.skips.retain(|skip| skip.repo.as_ref() != Some(&repo.name) || is_about_wanted(skip));
    }

    /// Deletes folders that are empty after all other actions, of repos that are wanted.
    fn plan_empty_folders(&mut self, is_wanted: impl Fn(&RepoName) -> bool) {
        let evictions = self.plan.actions.iter().filter_map(|action| match &action.target {
            Target::Revision(gone) => Some(&gone.repo),
            _ => None,
        });
        let evicted: HashSet<&RepoName> = evictions.collect();
        let mut left: BTreeMap<&RepoName, usize> = BTreeMap::new();
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            let about = self.facts.for_repo(&repo.name);
            let untouched = about.last_change.is_none() || self.is_old(about.last_change, self.options.orphan_grace);
            let busy =
                self.activity[index].is_some() || (self.has_recent_client(repo) && !evicted.contains(&repo.name));
            if is_wanted(&repo.name) && self.blocked[index].is_none() && repo.problems.is_empty() && untouched && !busy
            {
                let things = repo.revisions.len() + repo.blobs.len() + repo.in_flight.len() + repo.temporaries.len();
                left.insert(&repo.name, things);
            }
        }
        for action in &self.plan.actions {
            let (repo, things) = match &action.target {
                Target::Temporary { repo, .. } | Target::Blob { repo, .. } => (repo, 1),
                Target::Revision(gone) => (&gone.repo, 1 + gone.blobs.len()),
                Target::Leftover { .. }
                | Target::RootTemporary { .. }
                | Target::Payload { .. }
                | Target::Ref { .. }
                | Target::Folder { .. } => continue,
            };
            left.entry(repo).and_modify(|left| *left = left.saturating_sub(things));
        }
        let empty: Vec<RepoName> =
            left.into_iter().filter(|(_, left)| *left == 0).map(|(name, _)| name.clone()).collect();
        empty.into_iter().for_each(|repo| self.plan.add_action(Target::Folder { repo }, Reason::Empty, 0));
    }

    /// Deletes dangling refs in repos that stay. All others are deleted with their folder.
    fn plan_dangling_refs(&mut self) {
        let folders = self.plan.actions.iter().filter_map(|action| match &action.target {
            Target::Folder { repo } => Some(repo.clone()),
            _ => None,
        });
        let going: HashSet<RepoName> = folders.collect();
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            let is_going = going.contains(&repo.name);
            let about = self.facts.for_repo(&repo.name);
            let busy = self.activity[index].is_some() || self.has_recent_client(repo);
            if self.blocked[index].is_some() || repo.revisions.is_empty() || is_going || busy {
                continue;
            }
            for (name, one) in &about.dangling_refs {
                if self.is_old(one.written, self.options.orphan_grace) {
                    let target =
                        Target::Ref { repo: repo.name.clone(), name: name.clone(), commit: one.commit.clone() };
                    self.plan.add_action(target, Reason::Dangling, 0);
                }
            }
        }
    }
}

/// Returns when the newest file of the revision arrived.
fn last_arrival(repo: &Repo, revision: &Revision) -> Option<SystemTime> {
    let times = revision.files.values().filter_map(|file| match file {
        SnapshotFile::Link(id) => repo.blobs.get(id).map(|blob| blob.modified.max(blob.placed)),
        SnapshotFile::Real(file) => Some(file.modified),
    });
    times.max().flatten()
}

/// Returns the latest access or change of the revision's files. An unknown time counts as now, and so does a revision
/// without files, so that neither looks unused.
fn last_use(repo: &Repo, revision: &Revision, now: SystemTime) -> SystemTime {
    let times = revision.files.values().filter_map(|file| match file {
        SnapshotFile::Link(id) => repo.blobs.get(id).map(|blob| [blob.accessed, blob.modified]),
        SnapshotFile::Real(file) => Some([file.accessed, file.modified]),
    });
    times.flatten().map(|time| time.unwrap_or(now)).max().unwrap_or(now)
}
