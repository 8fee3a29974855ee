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
    Push { machine: usize, kill: Option<u64> },
    /// `pull`, by `main` or by commit.
    Pull { machine: usize, revision: usize, by_ref: bool, kill: Option<u64> },
    /// `pull-all`
    PullAll { machine: usize, kill: Option<u64> },
    /// `prune`; `busy` is a revision in whose repo a client holds a lock meanwhile.
    Prune { machine: usize, budget: Budget, scope: Scope, grace: bool, busy: Option<usize>, kill: Option<u64> },
    /// `rm` of a repo, or of one revision.
    Rm { machine: usize, revision: usize, all: bool, require_remote: bool, busy: Option<usize> },
    /// `remote rm` of a repo, or of one revision.
    RemoteRm { machine: usize, revision: usize, all: bool, kill: Option<u64> },
    /// `remote gc`
    RemoteGc { machine: usize, clock: Clock, kill: Option<u64> },
    /// `verify --repair`
    Repair { machine: usize },
    /// `verify --remote --deep --repair`
    RepairRemote { machine: usize },
    /// A user deletes a blob.
    DeleteBlob { machine: usize, revision: usize, file: usize },
    /// A user deletes a snapshot.
    DeleteSnapshot { machine: usize, revision: usize },
    /// A user deletes a repo.
    DeleteRepo { machine: usize, revision: usize },
    /// A user deletes a ref.
    DeleteRef { machine: usize, revision: usize, name: usize },
    /// A blob rots on disk.
    CorruptBlob { machine: usize, revision: usize, file: usize, cut: bool },
    /// Another tool deletes an object from the bucket.
    DeleteObject { revision: usize, file: usize },
    /// Another tool deletes a manifest from the bucket.
    DeleteManifest { revision: usize },
    /// An object rots in the bucket.
    CorruptObject { revision: usize, file: usize, cut: bool },
    /// Everything in a cache becomes this many days older, or newer than now.
    Age { machine: usize, days: i64 },
    /// Everything in the bucket becomes this many days older.
    AgeBucket { days: u64 },
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

/// Generates sequences of up to `length` steps, in which something is there to begin with.
pub fn sequence(length: usize) -> impl Strategy<Value = Vec<Step>> {
    (prop::collection::vec(download(), 0..3), prop::collection::vec(step(), 1..=length)).prop_map(
        |(mut downloads, steps)| {
            downloads.extend(steps);
            downloads
        },
    )
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
    let clock = prop::sample::select(vec![
        Clock::Right,
        Clock::Right,
        Clock::Shifted(3600),
        Clock::Shifted(-3600),
        Clock::Ahead(3 * 86_400),
        Clock::Ahead(-3 * 86_400),
    ]);
    prop_oneof![
        10 => download(),
        2 => (machine(), revision()).prop_map(|(machine, revision)| Step::BreakOff { machine, revision }),
        10 => (machine(), kill()).prop_map(|(machine, kill)| Step::Push { machine, kill }),
        8 => (machine(), revision(), any::<bool>(), kill())
            .prop_map(|(machine, revision, by_ref, kill)| Step::Pull { machine, revision, by_ref, kill }),
        4 => (machine(), kill()).prop_map(|(machine, kill)| Step::PullAll { machine, kill }),
        9 => (machine(), budget, scope, any::<bool>(), busy(), kill()).prop_map(
            |(machine, budget, scope, grace, busy, kill)| Step::Prune { machine, budget, scope, grace, busy, kill }
        ),
        4 => (machine(), revision(), any::<bool>(), any::<bool>(), busy()).prop_map(
            |(machine, revision, all, require_remote, busy)| Step::Rm { machine, revision, all, require_remote, busy }
        ),
        3 => (machine(), revision(), any::<bool>(), kill())
            .prop_map(|(machine, revision, all, kill)| Step::RemoteRm { machine, revision, all, kill }),
        5 => (machine(), clock, kill()).prop_map(|(machine, clock, kill)| Step::RemoteGc { machine, clock, kill }),
        2 => machine().prop_map(|machine| Step::Repair { machine }),
        2 => machine().prop_map(|machine| Step::RepairRemote { machine }),
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
        4 => (machine(), prop::sample::select(vec![3i64, 3, -2]))
            .prop_map(|(machine, days)| Step::Age { machine, days }),
        3 => Just(Step::AgeBucket { days: 2 }),
    ]
}
