//! The decision of a prune. Pure: what is there and what time it is in, ordered actions out.
//!
//! First what nobody needs: the tool's own leftovers, abandoned downloads, orphaned blobs and payloads. Then, while the
//! cache is over its budget, revisions, least recently used first: those that no ref names, and after them, when asked
//! for, the others. Last the folders that are empty by then. What is young, busy or not understood is left alone, and
//! so is all of every repo while a barrier stands.

pub mod ledger;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::cache::clients;
use crate::cache::facts::{Facts, RepoFacts};
use crate::cache::layout::Layout;
use crate::cache::scan::{InFlight, Place, Problem, ProblemKind, Repo, Revision, SnapshotFile};
use crate::error::{Error, shown};
use crate::model::ids::{BlobId, Commit, RefName, RepoName};
use ledger::Ledger;

/// A client that was seen in a repo so recently may still be between two files of a download. That is then the newest
/// revision, of which something came since then, unless its tree proves that it is complete.
const RECENT: Duration = Duration::from_secs(300);

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Options {
    /// Bytes that the cache may take.
    pub budget: u64,
    /// Also revisions that a ref names.
    pub include_referenced: bool,
    /// Blobs that no revision uses are left alone while they are younger.
    pub orphan_grace: Duration,
    /// Unfinished files are left alone until they were untouched for so long.
    pub temporary_grace: Duration,
}

/// What to do, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What to delete.
    pub actions: Vec<Action>,
    /// What is left alone although it was looked at for deleting.
    pub skips: Vec<Skip>,
    /// What is wrong already now.
    pub failures: Vec<Error>,
    /// Bytes of the cache now.
    pub size: u64,
    /// Bytes that the actions give back.
    pub freed: u64,
    /// Bytes that no plan gives back: they have names outside the cache, or nobody knows who needs them.
    pub pinned: u64,
}

/// One deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Action {
    /// What.
    #[serde(flatten)]
    pub what: What,
    /// Why.
    pub reason: Reason,
    /// Bytes that the disk gets back by this, after all before it.
    pub bytes: u64,
}

impl What {
    /// Whether it is content of a repo, and not something that nobody finished.
    fn is_content(&self) -> bool {
        !matches!(self, What::Leftover { .. } | What::Temporary { .. } | What::RootTemporary { .. })
    }
}

/// What is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum What {
    /// A file or folder of the tool's own state.
    Leftover {
        /// Which.
        #[serde(serialize_with = "crate::lossy::path")]
        path: PathBuf,
    },
    /// An unfinished file in a repo.
    Temporary {
        /// Whose.
        #[serde(flatten)]
        repo: RepoName,
        /// Which.
        #[serde(serialize_with = "crate::lossy::path")]
        path: PathBuf,
    },
    /// An unfinished file at the root, of nobody knows which repo.
    RootTemporary {
        /// Which.
        #[serde(serialize_with = "crate::lossy::path")]
        path: PathBuf,
    },
    /// A blob.
    Blob {
        /// Whose.
        #[serde(flatten)]
        repo: RepoName,
        /// Which.
        blob: BlobId,
    },
    /// A payload of the cache-wide store.
    Payload {
        /// Which.
        #[serde(serialize_with = "crate::lossy::path")]
        path: PathBuf,
    },
    /// A ref to a commit that is not here: because of one, huggingface_hub's scan drops the whole repo.
    Ref {
        /// Whose.
        #[serde(flatten)]
        repo: RepoName,
        /// Which.
        name: RefName,
        /// What it names.
        commit: Commit,
    },
    /// A revision: its refs, its snapshot and what belongs to it, and the blobs that only it needed.
    Revision(Eviction),
    /// A repo's folder.
    Folder {
        /// Whose.
        #[serde(flatten)]
        repo: RepoName,
    },
}

/// A revision that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Eviction {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision.
    pub revision: Commit,
    /// Refs that name it.
    pub refs: Vec<RefName>,
    /// Last use, in seconds since 1970.
    #[serde(rename = "last_used", serialize_with = "crate::when::serialize_seconds")]
    pub last_use: u64,
    /// Blobs that only it needed.
    pub blobs: Vec<BlobId>,
}

/// Why something is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Untouched for longer than the grace period.
    Abandoned,
    /// No revision uses it.
    Unused,
    /// Over budget, and no ref names it.
    Detached,
    /// Over budget, and references may be evicted too.
    Referenced,
    /// Nothing is left in it.
    Empty,
    /// What it names has not come for longer than the grace period.
    Dangling,
}

/// What somebody was shown, and agreed to.
#[derive(Debug, Default)]
pub struct Agreement(HashSet<String>);

impl Agreement {
    /// To all that this plan does.
    pub fn to(plan: &Plan) -> Self {
        Agreement(plan.actions.iter().map(|action| Self::key(&action.what)).collect())
    }

    fn covers(&self, what: &What) -> bool {
        self.0.contains(&Self::key(what))
    }

    /// What is deleted, by name. Which of the blobs go with a revision is not agreed on, but that it has these refs.
    fn key(what: &What) -> String {
        match what {
            What::Leftover { path } | What::RootTemporary { path } | What::Payload { path } => format!("{path:?}"),
            What::Temporary { repo, path } => format!("{repo} {path:?}"),
            What::Blob { repo, blob } => format!("{repo} {blob}"),
            What::Ref { repo, name, commit } => format!("{repo} {name} {commit}"),
            What::Revision(gone) => format!("{}@{} {:?}", gone.repo, gone.revision, gone.refs),
            What::Folder { repo } => repo.to_string(),
        }
    }
}

/// Something that is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skip {
    /// The repo, when it is about one.
    #[serde(flatten)]
    pub repo: Option<RepoName>,
    /// The revision, when it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<Commit>,
    /// Where, when it is about one file or folder.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::lossy::optional")]
    pub path: Option<PathBuf>,
    /// Why.
    pub reason: SkipReason,
    /// Bytes that deleting it would have given back, as far as is known.
    pub bytes: u64,
}

/// Why something is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkipReason {
    /// A ref names the revision.
    Referenced,
    /// All that the revision needs is needed by others too.
    FreesNothing,
    /// Younger than the grace period.
    Young,
    /// A download may be in flight.
    InFlight,
    /// A client worked in this repo minutes ago.
    Busy,
    /// Another process holds the lock.
    Held,
    /// It is a link, or is reached through one.
    Link,
    /// A link in another repo leads into this one.
    NeededElsewhere,
    /// It cannot be read, so nobody can tell what is needed.
    Unreadable,
    /// What is there is not understood, so nobody can tell which blobs are needed.
    Undecidable,
    /// A ref is not understood, so nobody can tell which revision it names.
    BadRef,
    /// Not a part of a cache.
    Unknown,
    /// The payload has no readable list of who needs it.
    Unlisted,
    /// It is not as the scan found it, or not as it was shown.
    Changed,
}

impl Plan {
    /// Leaves out what was not `shown` to whoever agreed.
    pub fn limit_to(&mut self, shown: &Agreement) {
        let all = std::mem::take(&mut self.actions);
        for action in all {
            match shown.covers(&action.what) {
                true => self.actions.push(action),
                false => {
                    self.freed = self.freed.saturating_sub(action.bytes);
                    let (repo, revision, path) = match &action.what {
                        What::Leftover { path } | What::RootTemporary { path } | What::Payload { path } => {
                            (None, None, Some(path.clone()))
                        }
                        What::Temporary { repo, path } => (Some(repo.clone()), None, Some(path.clone())),
                        What::Revision(gone) => (Some(gone.repo.clone()), Some(gone.revision.clone()), None),
                        What::Blob { repo, .. } | What::Ref { repo, .. } | What::Folder { repo } => {
                            (Some(repo.clone()), None, None)
                        }
                    };
                    let (reason, bytes) = (SkipReason::Changed, action.bytes);
                    self.skips.push(Skip { repo, revision, path, reason, bytes });
                }
            }
        }
    }

    fn act(&mut self, what: What, reason: Reason, bytes: u64) {
        self.freed += bytes;
        self.actions.push(Action { what, reason, bytes });
    }

    fn skip(&mut self, reason: SkipReason, repo: Option<&RepoName>, path: Option<PathBuf>, bytes: u64) {
        self.skips.push(Skip { repo: repo.cloned(), revision: None, path, reason, bytes });
    }
}

/// Something because of which nobody can tell who needs any of the cache's blobs.
struct Barrier<'a> {
    reason: SkipReason,
    repo: Option<&'a RepoName>,
    path: &'a Path,
}

/// Decides.
pub fn plan(facts: &Facts, options: &Options, now: SystemTime) -> Plan {
    let ledger = Ledger::new(facts);
    let mut plan = Plan { size: ledger.size(), pinned: ledger.pinned(), ..Plan::default() };
    notes(facts, &mut plan);
    let repos = facts.inventory.repos.iter();
    let blocks = repos.map(|repo| block(&facts.inventory.layout, repo, facts.about(&repo.name))).collect();
    let mut planner = Planner { facts, options, now, plan, ledger, blocks, holds: Vec::new() };
    planner.holds = facts.inventory.repos.iter().map(|repo| planner.hold(repo)).collect();
    let barriers = planner.barriers();
    planner.clean();
    planner.evict();
    planner.folders();
    planner.refs();
    let mut plan = planner.plan;
    plan.stop_at(&barriers);
    plan
}

impl Plan {
    /// Takes back every deletion of content, since anybody may need it, and says how much that is.
    fn stop_at(&mut self, barriers: &[Barrier<'_>]) {
        if barriers.is_empty() {
            return;
        }
        let before = self.actions.len();
        let held = self.actions.iter().filter(|action| action.what.is_content()).map(|action| action.bytes).sum();
        self.actions.retain(|action| !action.what.is_content());
        self.freed = self.actions.iter().map(|action| action.bytes).sum();
        let stops = self.actions.len() < before;
        for Barrier { reason, repo, path } in barriers {
            let is_this = |skip: &&mut Skip| skip.reason == *reason && skip.path.as_deref() == Some(*path);
            match self.skips.iter_mut().find(is_this) {
                Some(said) => said.bytes += held,
                None => self.skip(*reason, *repo, Some(path.to_path_buf()), held),
            }
            if *reason == SkipReason::Unreadable
                && stops
                && !self.failures.iter().any(|failure| failure.what == shown(path))
            {
                self.failures.push(Error::failed(shown(path)).because("cannot be looked into"));
            }
        }
    }
}

/// Says what is wrong or not understood, whatever the budget.
fn notes(facts: &Facts, plan: &mut Plan) {
    let of_repos = facts.inventory.repos.iter().flat_map(|repo| repo.problems.iter().map(|p| (Some(&repo.name), p)));
    let of_root = facts.inventory.problems.iter().chain(&facts.store_problems).map(|problem| (None, problem));
    let understood = |problem: &Problem| problem.kind == ProblemKind::UntidyRef;
    for (repo, problem) in of_root.chain(of_repos).filter(|(_, problem)| !understood(problem)) {
        plan.skip(skip_reason(problem.kind), repo, Some(problem.path.clone()), 0);
        if problem.kind == ProblemKind::Unreadable {
            plan.failures.push(Error::failed(shown(&problem.path)).because(problem.detail.clone()));
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

/// Whether an unreadable place in a repo may hold links to blobs: refs and trees hold none.
fn may_hide_links(repo: &Path, path: &Path) -> bool {
    let part = path.strip_prefix(repo).ok().and_then(|inside| inside.iter().next());
    !part.is_some_and(|part| ["refs", "trees", ".no_exist"].iter().any(|known| part == *known))
}

/// Why blobs and revisions of a repo must stay, and the path that tells.
fn block(layout: &Layout, repo: &Repo, about: &RepoFacts) -> Option<(SkipReason, Option<PathBuf>)> {
    if repo.is_link {
        return Some((SkipReason::Link, None));
    }
    if let Some(part) = &about.linked_part {
        return Some((SkipReason::Link, Some(part.clone())));
    }
    if let Some(problem) = hidden_uses(layout, repo) {
        return Some((skip_reason(problem.kind), Some(problem.path.clone())));
    }
    about.needed_by.clone().map(|link| (SkipReason::NeededElsewhere, Some(link)))
}

/// A problem because of which blobs may be in use in a way that the scan does not show.
pub(crate) fn hidden_uses<'a>(layout: &Layout, repo: &'a Repo) -> Option<&'a Problem> {
    let snapshots = layout.repo(&repo.name).join("snapshots");
    repo.problems.iter().find(|problem| match problem.kind {
        ProblemKind::Unreadable | ProblemKind::BrokenLink | ProblemKind::ForeignLink | ProblemKind::BadName => true,
        // What is no file, no folder and no link needs no blob.
        ProblemKind::BadRef | ProblemKind::UntidyRef | ProblemKind::NotAFile => false,
        // A folder in snapshots/ that is no commit is a snapshot to huggingface_hub all the same.
        ProblemKind::UnknownEntry => problem.path.starts_with(&snapshots),
    })
}

/// A revision that may go.
struct Candidate<'a> {
    index: usize,
    repo: &'a RepoName,
    commit: &'a Commit,
    /// All of its refs.
    refs: Vec<RefName>,
    /// Whether one of them is more than the commit's own name.
    is_named: bool,
    last_use: SystemTime,
}

struct Planner<'a> {
    facts: &'a Facts,
    options: &'a Options,
    now: SystemTime,
    plan: Plan,
    ledger: Ledger,
    /// For each repo of the inventory.
    blocks: Vec<Option<(SkipReason, Option<PathBuf>)>>,
    /// For each repo of the inventory, why somebody may be at work in it.
    holds: Vec<Option<SkipReason>>,
}

impl<'a> Planner<'a> {
    /// Whether it was untouched for that long; what has no time, or one in the future, was not.
    fn is_old(&self, time: Option<SystemTime>, grace: Duration) -> bool {
        time.and_then(|time| self.now.duration_since(time).ok()).is_some_and(|age| age >= grace)
    }

    /// Whether nobody goes on with it any more.
    fn is_abandoned(&self, file: &InFlight) -> bool {
        self.is_old(file.written(), self.options.temporary_grace)
    }

    /// Why somebody may be at work in this repo: a client may need, and is about to link, whatever lies in it.
    fn hold(&self, repo: &Repo) -> Option<SkipReason> {
        let about = self.facts.about(&repo.name);
        let mut unfinished = repo.in_flight.iter().chain(&repo.temporaries);
        if unfinished.any(|file| !self.is_abandoned(file)) || !about.held.is_empty() {
            return Some(SkipReason::InFlight);
        }
        if about.unfinished.is_some() && !self.is_old(about.unfinished, self.options.temporary_grace) {
            return Some(SkipReason::InFlight);
        }
        about.locked.then_some(SkipReason::Held)
    }

    /// What cannot be read may hold a link to anything, and a download at the root may be one into any repo.
    fn barriers(&self) -> Vec<Barrier<'a>> {
        let inventory = &self.facts.inventory;
        let unreadable = |problem: &&'a Problem| {
            problem.kind == ProblemKind::Unreadable && !self.facts.harmless.contains(&problem.path)
        };
        let of_root = inventory.problems.iter().filter(unreadable).map(|problem| (None, problem.path.as_path()));
        let of_repos = inventory.repos.iter().flat_map(move |repo| {
            let folder = inventory.layout.repo(&repo.name);
            let problems = repo.problems.iter().filter(unreadable);
            let problems = problems.filter(move |problem| may_hide_links(&folder, &problem.path));
            problems.map(|problem| (Some(&repo.name), problem.path.as_path()))
        });
        let hidden = self.facts.hidden.iter().map(|path| (None, path.as_path()));
        let unreadable = of_root.chain(of_repos).chain(hidden);
        let young = self.facts.root_temporaries.iter().filter(|file| !self.is_abandoned(file));
        unreadable
            .map(|(repo, path)| Barrier { reason: SkipReason::Unreadable, repo, path })
            .chain(young.map(|file| Barrier { reason: SkipReason::InFlight, repo: None, path: &file.path }))
            .collect()
    }

    /// What nobody needs.
    fn clean(&mut self) {
        for leftover in &self.facts.leftovers {
            let path = leftover.path.clone();
            match self.is_old(leftover.modified, self.options.temporary_grace) {
                true => self.plan.act(What::Leftover { path }, Reason::Abandoned, leftover.bytes),
                false => self.plan.skip(SkipReason::Young, None, Some(path), leftover.bytes),
            }
        }
        let facts = self.facts;
        for file in &facts.root_temporaries {
            if !self.is_abandoned(file) {
                continue;
            }
            // Anybody may call a file `tmpnotes`.
            if !clients::is_surely_temporary(self.facts.inventory.layout.root(), &file.path) {
                self.plan.skip(SkipReason::Unknown, None, Some(file.path.clone()), file.on_disk);
                continue;
            }
            self.plan.act(What::RootTemporary { path: file.path.clone() }, Reason::Abandoned, file.on_disk);
        }
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            match self.blocks[index].clone() {
                None => self.temporaries(repo),
                Some((SkipReason::Undecidable, _)) => self.temporaries(repo),
                // Said already, as the problem that it is.
                Some((SkipReason::Unreadable | SkipReason::Unknown, _)) => {}
                Some((reason, path)) => self.plan.skip(reason, Some(&repo.name), path, 0),
            }
        }
        self.say_kept();
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            if self.blocks[index].is_none() && self.holds[index].is_none() {
                self.orphans(index, repo);
            }
        }
        let blobs = self.facts.inventory.repos.iter().flat_map(|repo| repo.blobs.values());
        let linked: HashSet<&Path> = blobs
            .filter_map(|blob| match &blob.place {
                Place::Shared(payload) => Some(payload.as_path()),
                _ => None,
            })
            .collect();
        for payload in &self.facts.payloads {
            match &payload.references {
                None => self.plan.skip(SkipReason::Unlisted, None, Some(payload.path.clone()), payload.size),
                Some(links) if !links.is_empty() || linked.contains(payload.path.as_path()) => {}
                Some(_) if !self.is_old(payload.modified, self.options.orphan_grace) => {
                    self.plan.skip(SkipReason::Young, None, Some(payload.path.clone()), payload.size);
                }
                Some(_) => {
                    let bytes = self.ledger.drop_payload(&payload.path);
                    self.plan.act(What::Payload { path: payload.path.clone() }, Reason::Unused, bytes);
                }
            }
        }
    }

    fn temporaries(&mut self, repo: &Repo) {
        let about = self.facts.about(&repo.name);
        for file in repo.in_flight.iter().chain(&repo.temporaries) {
            let path = file.path.clone();
            if about.held.contains(&path) {
                self.plan.skip(SkipReason::Held, Some(&repo.name), Some(path), file.on_disk);
                continue;
            }
            match self.is_abandoned(file) {
                true => {
                    self.plan.act(What::Temporary { repo: repo.name.clone(), path }, Reason::Abandoned, file.on_disk);
                }
                false => self.plan.skip(SkipReason::InFlight, Some(&repo.name), Some(path), file.on_disk),
            }
        }
    }

    /// Says of what is kept as a whole how many bytes that keeps: of unused blobs always, of revisions as far as the
    /// budget is missed.
    fn say_kept(&mut self) {
        let over = self.plan.size > self.options.budget;
        let mut trial: Option<Ledger> = None;
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            let is_bad_ref = || repo.problems.iter().any(|problem| problem.kind == ProblemKind::BadRef);
            let hold = self.holds[index];
            let reason = match &self.blocks[index] {
                Some((reason, _)) => *reason,
                None => match hold {
                    Some(reason) => reason,
                    None if is_bad_ref() => SkipReason::BadRef,
                    None => continue,
                },
            };
            let trial = trial.get_or_insert_with(|| self.ledger.clone());
            let unused = repo.blobs.keys().filter(|id| !self.ledger.is_used(index, id));
            let mut bytes = match reason {
                // These go one by one.
                SkipReason::BadRef => 0,
                _ => unused.map(|id| trial.drop_blob(index, id)).sum(),
            };
            if over {
                bytes += repo.revisions.keys().map(|commit| trial.evict(index, commit).bytes).sum::<u64>();
            }
            let is_this = |skip: &&mut Skip| skip.reason == reason && skip.repo.as_ref() == Some(&repo.name);
            match self.plan.skips.iter_mut().find(is_this) {
                Some(said) if self.blocks[index].is_some() || reason == SkipReason::BadRef => said.bytes = bytes,
                _ if bytes > 0 => self.plan.skip(reason, Some(&repo.name), None, bytes),
                _ => {}
            }
        }
    }

    fn orphans(&mut self, index: usize, repo: &Repo) {
        // Where something was just added, more may be being copied here, old times and all, blobs before snapshots.
        let is_young = |time: Option<SystemTime>| !self.is_old(time, self.options.orphan_grace);
        let newest = repo.blobs.values().map(|blob| blob.placed).max().flatten();
        let arrived = self.facts.about(&repo.name).arrived;
        let arriving = (repo.revisions.is_empty() && is_young(newest)) || (arrived.is_some() && is_young(arrived));
        for (id, blob) in &repo.blobs {
            let path = || Some(self.facts.inventory.layout.blob(&repo.name, id));
            if self.ledger.is_used(index, id) {
                continue;
            }
            if blob.place == Place::Elsewhere {
                self.plan.skip(SkipReason::Link, Some(&repo.name), path(), 0);
            } else if arriving || !self.is_old(blob.placed, self.options.orphan_grace) {
                self.plan.skip(SkipReason::Young, Some(&repo.name), path(), blob.size);
            } else {
                let bytes = self.ledger.drop_blob(index, id);
                self.plan.act(What::Blob { repo: repo.name.clone(), blob: *id }, Reason::Unused, bytes);
            }
        }
    }

    /// Revisions, until the cache is within its budget.
    fn evict(&mut self) {
        let excess = |plan: &Plan, more: u64| (plan.size - plan.freed).saturating_sub(more) > self.options.budget;
        if !excess(&self.plan, 0) {
            return;
        }
        let candidates = self.candidates();
        let mut trial = self.ledger.clone();
        let (mut chosen, mut freed) = (Vec::new(), 0);
        for candidate in &candidates {
            if !excess(&self.plan, freed) {
                break;
            }
            if !candidate.is_named || self.options.include_referenced {
                freed += trial.evict(candidate.index, candidate.commit).bytes;
                chosen.push(candidate);
            }
        }
        // A revision whose blobs all stay, because others need them, would go for nothing.
        let mut useless = BTreeSet::new();
        for candidate in chosen.iter().rev() {
            match trial.restore(candidate.index, candidate.commit) {
                0 => drop(useless.insert((candidate.index, candidate.commit))),
                _ => drop(trial.evict(candidate.index, candidate.commit)),
            }
        }
        for candidate in chosen {
            if useless.contains(&(candidate.index, candidate.commit)) {
                self.keep(candidate, SkipReason::FreesNothing, 0);
                continue;
            }
            let gone = self.ledger.evict(candidate.index, candidate.commit);
            let reason = if candidate.is_named { Reason::Referenced } else { Reason::Detached };
            let what = What::Revision(Eviction {
                repo: candidate.repo.clone(),
                revision: candidate.commit.clone(),
                refs: candidate.refs.clone(),
                last_use: candidate.last_use.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
                blobs: gone.blobs,
            });
            self.plan.act(what, reason, gone.bytes);
        }
        if excess(&self.plan, 0) && !self.options.include_referenced {
            let mut trial = self.ledger.clone();
            for candidate in candidates.iter().filter(|candidate| candidate.is_named) {
                let bytes = trial.evict(candidate.index, candidate.commit).bytes;
                self.keep(candidate, SkipReason::Referenced, bytes);
            }
        }
    }

    fn keep(&mut self, candidate: &Candidate<'_>, reason: SkipReason, bytes: u64) {
        let (repo, revision) = (Some(candidate.repo.clone()), Some(candidate.commit.clone()));
        self.plan.skips.push(Skip { repo, revision, path: None, reason, bytes });
    }

    /// Revisions that may go: detached ones first, then by last use. Says which may not, and why.
    fn candidates(&mut self) -> Vec<Candidate<'a>> {
        let mut found = Vec::new();
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            if self.blocks[index].is_some() || repo.revisions.is_empty() {
                continue;
            }
            if repo.problems.iter().any(|problem| problem.kind == ProblemKind::BadRef) {
                continue;
            }
            if self.holds[index].is_some() {
                continue;
            }
            let about = self.facts.about(&repo.name);
            let came: Vec<_> = repo.revisions.values().map(|revision| brought(repo, revision)).collect();
            let newest = came.iter().max().copied().flatten();
            let mut refs: BTreeMap<&Commit, Vec<RefName>> = BTreeMap::new();
            for (name, commit) in &repo.refs {
                refs.entry(commit).or_default().push(name.clone());
            }
            for ((commit, revision), came) in repo.revisions.iter().zip(came) {
                let last_use = last_use(repo, revision, self.now);
                let mut refs = refs.remove(commit).unwrap_or_default();
                let is_named = !refs.is_empty();
                refs.extend(repo.pins.get(commit).map(RefName::of_commit));
                let candidate = Candidate { index, repo: &repo.name, commit, refs, is_named, last_use };
                // Something of it came so recently, while a client was here, that more may be on its way.
                let is_fresh = came >= newest && self.is_recent(came) && self.has_recent_client(repo);
                if !self.ledger.has_all(index, commit) {
                    self.keep(&candidate, SkipReason::Link, 0);
                } else if is_fresh && !about.complete.contains(commit) {
                    self.keep(&candidate, SkipReason::Busy, 0);
                } else {
                    found.push(candidate);
                }
            }
        }
        found.sort_by_key(|one| (one.is_named, one.last_use, one.index, one.commit));
        found
    }

    /// Whether a client was here so recently that it may be between two files of a download.
    fn has_recent_client(&self, repo: &Repo) -> bool {
        let seen = self.facts.about(&repo.name).client_seen;
        seen.is_some() && self.is_recent(seen)
    }

    /// Whether a download of which this was a part may go on.
    fn is_recent(&self, time: Option<SystemTime>) -> bool {
        !self.is_old(time, RECENT.min(self.options.orphan_grace))
    }

    /// Folders of which nothing is left.
    fn folders(&mut self) {
        let evicted = |repo: &Repo| {
            let mut actions = self.plan.actions.iter();
            actions.any(|action| matches!(&action.what, What::Revision(gone) if gone.repo == repo.name))
        };
        let mut left: BTreeMap<&RepoName, usize> = BTreeMap::new();
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            let about = self.facts.about(&repo.name);
            let untouched = about.touched.is_none() || self.is_old(about.touched, self.options.orphan_grace);
            let busy = self.holds[index].is_some() || (self.has_recent_client(repo) && !evicted(repo));
            if self.blocks[index].is_none() && repo.problems.is_empty() && untouched && !busy {
                let things = repo.revisions.len() + repo.blobs.len() + repo.in_flight.len() + repo.temporaries.len();
                left.insert(&repo.name, things);
            }
        }
        for action in &self.plan.actions {
            let (repo, things) = match &action.what {
                What::Temporary { repo, .. } | What::Blob { repo, .. } => (repo, 1),
                What::Revision(gone) => (&gone.repo, 1 + gone.blobs.len()),
                What::Leftover { .. }
                | What::RootTemporary { .. }
                | What::Payload { .. }
                | What::Ref { .. }
                | What::Folder { .. } => continue,
            };
            left.entry(repo).and_modify(|left| *left = left.saturating_sub(things));
        }
        let empty: Vec<RepoName> =
            left.into_iter().filter(|(_, left)| *left == 0).map(|(name, _)| name.clone()).collect();
        empty.into_iter().for_each(|repo| self.plan.act(What::Folder { repo }, Reason::Empty, 0));
    }

    /// Refs that lead nowhere, in repos that stay. The others go with their folder.
    fn refs(&mut self) {
        for (index, repo) in self.facts.inventory.repos.iter().enumerate() {
            let is_going =
                self.plan.actions.iter().any(|action| action.what == What::Folder { repo: repo.name.clone() });
            let about = self.facts.about(&repo.name);
            let busy = self.holds[index].is_some() || self.has_recent_client(repo);
            if self.blocks[index].is_some() || repo.revisions.is_empty() || is_going || busy {
                continue;
            }
            for (name, one) in &about.lone_refs {
                if self.is_old(one.written, self.options.orphan_grace) {
                    let what = What::Ref { repo: repo.name.clone(), name: name.clone(), commit: one.commit.clone() };
                    self.plan.act(what, Reason::Dangling, 0);
                }
            }
        }
    }
}

/// When the newest file of the revision came.
fn brought(repo: &Repo, revision: &Revision) -> Option<SystemTime> {
    let times = revision.files.values().filter_map(|file| match file {
        SnapshotFile::Link(id) => repo.blobs.get(id).map(|blob| blob.modified.max(blob.placed)),
        SnapshotFile::Real { modified, .. } => Some(*modified),
    });
    times.max().flatten()
}

/// The newest access or change of what the revision consists of. A time that cannot be read counts as now, and so does
/// a revision of nothing: never as long ago.
fn last_use(repo: &Repo, revision: &Revision, now: SystemTime) -> SystemTime {
    let times = revision.files.values().filter_map(|file| match file {
        SnapshotFile::Link(id) => repo.blobs.get(id).map(|blob| [blob.accessed, blob.modified]),
        SnapshotFile::Real { accessed, modified, .. } => Some([*accessed, *modified]),
    });
    times.flatten().map(|time| time.unwrap_or(now)).max().unwrap_or(now)
}
