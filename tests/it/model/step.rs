//! The steps of a sequence, and how they are chosen.

use proptest::prelude::*;

/// A step. Machines, revisions and refs are indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A client downloads the files whose bits are set.
    Download { machine: usize, revision: usize, files: u8, reference: Option<usize>, tree: bool },
    /// A client is killed in the middle of a download: a ref, a lock file and an unfinished file remain.
    BreakOff { machine: usize, revision: usize },
    /// `push`
    Push { machine: usize, clock: Clock, kill: Option<u64> },
    /// `pull`, by `main` or by commit; `include` is the file of the revision whose path is the only one to pull.
    Pull { machine: usize, revision: usize, by_ref: bool, include: Option<usize>, kill: Option<u64> },
    /// `pull-all`; `only` is a revision whose repo is the only one to pull.
    PullAll { machine: usize, only: Option<usize>, kill: Option<u64> },
    /// `prune`
    Prune { machine: usize, options: Prune, clock: Clock, kill: Option<u64> },
    /// `rm` of a repo, or of one revision.
    Rm { machine: usize, revision: usize, all: bool, require_remote: bool, busy: Option<usize>, kill: Option<u64> },
    /// `remote rm` of a repo, or of one revision.
    RemoteRm { machine: usize, revision: usize, all: bool, kill: Option<u64> },
    /// `remote gc`
    RemoteGc { machine: usize, clock: Clock, kill: Option<u64> },
    /// `verify --repair`
    Repair { machine: usize, kill: Option<u64> },
    /// `verify --remote --deep --repair`
    RepairRemote { machine: usize, kill: Option<u64> },
    /// A user deletes a blob.
    DeleteBlob { machine: usize, revision: usize, file: usize },
    /// A user deletes a snapshot.
    DeleteSnapshot { machine: usize, revision: usize },
    /// A user deletes a repo.
    DeleteRepo { machine: usize, revision: usize },
    /// A user deletes a ref.
    DeleteRef { machine: usize, revision: usize, name: usize },
    /// A blob becomes corrupt on disk.
    CorruptBlob { machine: usize, revision: usize, file: usize, cut: bool },
    /// Another tool deletes an object from the bucket.
    DeleteObject { revision: usize, file: usize },
    /// Another tool deletes a manifest from the bucket.
    DeleteManifest { revision: usize },
    /// An object becomes corrupt in the bucket.
    CorruptObject { revision: usize, file: usize, cut: bool },
    /// A manifest in the bucket is truncated.
    CorruptManifest { revision: usize },
    /// The ref objects of this name, for a repo, are truncated.
    CorruptRef { revision: usize, name: usize },
    /// A tree file on disk is truncated.
    CorruptTree { machine: usize, revision: usize },
    /// Everything in a cache becomes this many days older, or newer than now.
    Age { machine: usize, days: i64 },
    /// Everything in the bucket becomes this many days older.
    AgeBucket { days: u64 },
}

/// The options of a prune.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prune {
    /// `--max-size`
    pub budget: Budget,
    /// What may be evicted.
    pub scope: Scope,
    /// Whether unused blobs have an hour of grace.
    pub grace: bool,
    /// `--keep`, with the repo of this revision.
    pub keep: Option<usize>,
    /// `--older-than 1d`
    pub older_than: bool,
    /// A revision whose repo is locked by a client during the prune.
    pub busy: Option<usize>,
}

/// How much a prune has to free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// As much as it can.
    Nothing,
    /// A part.
    Some,
    /// The cache is within its budget.
    Everything,
}

impl Budget {
    /// Returns the budget in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Budget::Nothing => 0,
            Budget::Some => 20,
            Budget::Everything => 1_000_000_000,
        }
    }
}

/// What a prune may evict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Revisions without refs.
    Detached,
    /// `--include-referenced`
    All,
    /// `--require-remote`
    Held,
}

/// The store's clock during a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// It is right.
    Right,
    /// It is this many seconds fast.
    Shifted(i64),
    /// Only its answers are dated this many seconds fast; its listings are right.
    Ahead(i64),
}

/// Generates sequences of up to `length` steps that begin by creating data. Some end with a repair of actual damage in the
/// bucket, which is rare otherwise.
pub fn sequence(length: usize) -> impl Strategy<Value = Vec<Step>> {
    let downloads = prop::collection::vec(download(), 0..3);
    let steps = prop::collection::vec(step(), 1..=length);
    (downloads, steps, prop::option::weighted(0.2, repair_of_bucket())).prop_map(|(downloads, steps, repair)| {
        downloads.into_iter().chain(steps).chain(repair.into_iter().flatten()).collect()
    })
}

/// Pushes, damages an object, and repairs it.
fn repair_of_bucket() -> impl Strategy<Value = Vec<Step>> {
    let damage = (revision(), 0usize..3, 0..3).prop_map(|(revision, file, how)| match how {
        0 => Step::DeleteObject { revision, file },
        how => Step::CorruptObject { revision, file, cut: how == 1 },
    });
    (machine(), prop::collection::vec(damage, 1..4)).prop_map(|(machine, damage)| {
        let push = Step::Push { machine, clock: Clock::Right, kill: None };
        let repair = Step::RepairRemote { machine, kill: None };
        [vec![push], damage, vec![repair]].concat()
    })
}

fn machine() -> impl Strategy<Value = usize> {
    0..super::state::MACHINES
}

fn revision() -> impl Strategy<Value = usize> {
    0usize..6
}

/// Kills a command before it has sent this many requests, or, if it sends none, after this many milliseconds.
fn kill() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![3 => Just(None), 1 => (0u64..12).prop_map(Some)]
}

fn download() -> impl Strategy<Value = Step> {
    (machine(), revision(), 1u8..8, prop::option::weighted(0.7, 0usize..2), any::<bool>()).prop_map(
        |(machine, revision, files, reference, tree)| Step::Download { machine, revision, files, reference, tree },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let busy = || prop::option::weighted(0.2, revision());
    let budget = prop::sample::select(vec![Budget::Nothing, Budget::Nothing, Budget::Some, Budget::Everything]);
    let scope = prop::sample::select(vec![Scope::Detached, Scope::All, Scope::Held]);
    let days = 86_400;
    let clock = prop::sample::select(vec![
        Clock::Right,
        Clock::Right,
        Clock::Shifted(3600),
        Clock::Shifted(-3600),
        Clock::Ahead(3 * days),
        Clock::Ahead(-3 * days),
    ]);
    // Mostly right, since everything else depends on a push.
    let moved = || {
        let moved = prop::sample::select(vec![Clock::Shifted(3600), Clock::Shifted(-2 * days), Clock::Ahead(3 * days)]);
        prop_oneof![5 => Just(Clock::Right), 1 => moved]
    };
    let keep = prop::option::weighted(0.2, revision());
    let prune = (budget, scope, any::<bool>(), keep, prop::bool::weighted(0.25), busy()).prop_map(
        |(budget, scope, grace, keep, older_than, busy)| Prune { budget, scope, grace, keep, older_than, busy },
    );
    let include = prop::option::weighted(0.2, 0usize..3);
    prop_oneof![
        10 => download(),
        2 => (machine(), revision()).prop_map(|(machine, revision)| Step::BreakOff { machine, revision }),
        10 => (machine(), moved(), kill()).prop_map(|(machine, clock, kill)| Step::Push { machine, clock, kill }),
        8 => (machine(), revision(), any::<bool>(), include, kill()).prop_map(
            |(machine, revision, by_ref, include, kill)| Step::Pull { machine, revision, by_ref, include, kill }
        ),
        4 => (machine(), prop::option::weighted(0.3, revision()), kill())
            .prop_map(|(machine, only, kill)| Step::PullAll { machine, only, kill }),
        10 => (machine(), prune, moved(), kill())
            .prop_map(|(machine, options, clock, kill)| Step::Prune { machine, options, clock, kill }),
        4 => (machine(), revision(), any::<bool>(), any::<bool>(), busy(), kill()).prop_map(
            |(machine, revision, all, require_remote, busy, kill)| {
                Step::Rm { machine, revision, all, require_remote, busy, kill }
            }
        ),
        3 => (machine(), revision(), any::<bool>(), kill())
            .prop_map(|(machine, revision, all, kill)| Step::RemoteRm { machine, revision, all, kill }),
        5 => (machine(), clock, kill()).prop_map(|(machine, clock, kill)| Step::RemoteGc { machine, clock, kill }),
        3 => (machine(), kill()).prop_map(|(machine, kill)| Step::Repair { machine, kill }),
        3 => (machine(), kill()).prop_map(|(machine, kill)| Step::RepairRemote { machine, kill }),
        2 => (machine(), revision(), 0usize..3)
            .prop_map(|(machine, revision, file)| Step::DeleteBlob { machine, revision, file }),
        1 => (machine(), revision()).prop_map(|(machine, revision)| Step::DeleteSnapshot { machine, revision }),
        1 => (machine(), revision()).prop_map(|(machine, revision)| Step::DeleteRepo { machine, revision }),
        1 => (machine(), revision(), 0usize..2)
            .prop_map(|(machine, revision, name)| Step::DeleteRef { machine, revision, name }),
        2 => (machine(), revision(), 0usize..3, any::<bool>())
            .prop_map(|(machine, revision, file, cut)| Step::CorruptBlob { machine, revision, file, cut }),
        2 => (revision(), 0usize..3).prop_map(|(revision, file)| Step::DeleteObject { revision, file }),
        1 => revision().prop_map(|revision| Step::DeleteManifest { revision }),
        2 => (revision(), 0usize..3, any::<bool>())
            .prop_map(|(revision, file, cut)| Step::CorruptObject { revision, file, cut }),
        1 => revision().prop_map(|revision| Step::CorruptManifest { revision }),
        1 => (revision(), 0usize..2).prop_map(|(revision, name)| Step::CorruptRef { revision, name }),
        1 => (machine(), revision()).prop_map(|(machine, revision)| Step::CorruptTree { machine, revision }),
        4 => (machine(), prop::sample::select(vec![3i64, 3, -2]))
            .prop_map(|(machine, days)| Step::Age { machine, days }),
        3 => Just(Step::AgeBucket { days: 2 }),
    ]
}
