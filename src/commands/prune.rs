//! `prune`: brings the cache back within its budget, and deletes what is not needed.
//!
//! [`crate::cache::prune_facts`] adds to the scan, [`crate::plan::prune`] makes the plan (pure), and
//! [`crate::engine::evict`] deletes under the tool's exclusive lock, checking each item again right before.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use serde::{Serialize, Serializer};

use super::kind_of;
use super::size::Size;
use crate::bucket::client::Bucket;
use crate::cache::inventory::Inventory;
use crate::cache::layout::Layout;
use crate::cache::prune_facts::{self, Facts};
use crate::cache::scan;
use crate::cache::state::Completeness;
use crate::config::GigaBytes;
use crate::engine::Session;
use crate::engine::evict::{self, Outcome};
use crate::engine::held;
use crate::error::{Error, Kind, Result, printable};
use crate::model::amount::Amount;
use crate::model::ids::{Commit, RefName, RepoName};
use crate::model::pins::Pins;
use crate::model::selection::Selection;
use crate::plan::prune::held::Held;
use crate::plan::prune::{self as plan, Agreement, Options, Plan, Reason, Skip, SkipReason, Target};
use crate::progress::Event;
use crate::task::blocking;

/// Evict the least recently used revisions until the cache is within its budget
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  hf-cache-sync prune --dry-run             preview, with cache.max_local_gb
  hf-cache-sync prune --max-size 200GiB --require-remote -q      for cron
  hf-cache-sync prune --older-than 30d --require-remote
  hf-cache-sync prune --require-remote --keep 'org/*' --keep '*@v1.0'
  hf-cache-sync prune --max-gb 50 --include-referenced --fail-over-budget

Evicts revisions without refs first and then, with --include-referenced, those
with refs; least recently used first. Every download writes a ref (`main`), so
without that option, only revisions that a later commit has replaced go.

With --require-remote, any revision may go, least recently used first, but only
if the bucket holds all of it: a pull brings it back. What the bucket lacks is
named and kept.

Blobs that no revision uses and abandoned downloads are always deleted once they
are old enough. On a terminal, it shows what would be deleted and asks, unless
--yes is given.")]
pub struct Args {
    /// Budget in gigabytes of 2^30 bytes [default: cache.max_local_gb]
    #[arg(long, value_name = "FLOAT", allow_negative_numbers = true, conflicts_with = "max_size", value_parser = gigabytes)]
    pub max_gb: Option<GigaBytes>,

    /// Budget with a unit: 50GB, 200GiB, 1.5TiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub max_size: Option<Size>,

    /// Show what would be deleted, but delete nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,

    /// Also evict revisions that a branch, tag or other ref names
    #[arg(long)]
    pub include_referenced: bool,

    /// Evict only what the bucket holds, whether or not a ref names it [default: cache.prune_require_remote]
    #[arg(long, overrides_with = "no_require_remote")]
    pub require_remote: bool,

    /// Ignore cache.prune_require_remote
    #[arg(long, overrides_with = "require_remote")]
    pub no_require_remote: bool,

    /// Evict only what has not been used for this long, such as 30d. Without --max-gb and --max-size, evict all of that
    #[arg(long, value_name = "AGE")]
    pub older_than: Option<Age>,

    /// Never evict revisions that match, such as 'org/*', 'dataset:org/name' or 'org/name@v1.0'; in addition to cache.keep
    #[arg(long, value_name = "GLOB")]
    pub keep: Vec<String>,

    /// Exit with 1 if the cache is still over its budget
    #[arg(long)]
    pub fail_over_budget: bool,

    /// Keep blobs that no revision uses until they are this old
    #[arg(long, value_name = "AGE", default_value = "1h")]
    pub orphan_grace: Age,

    /// Keep unfinished downloads until they have been untouched for this long
    #[arg(long, value_name = "AGE", default_value = "24h")]
    pub temporary_grace: Age,
}

impl Args {
    /// Returns the arguments that keep a cache within a budget of this many bytes, without a question: only what the bucket
    /// holds is evicted.
    pub fn to_budget(bytes: u64) -> Args {
        Args {
            max_gb: None,
            max_size: Some(Size(bytes)),
            dry_run: false,
            yes: true,
            include_referenced: false,
            require_remote: true,
            no_require_remote: false,
            older_than: None,
            keep: Vec::new(),
            fail_over_budget: false,
            orphan_grace: Age(Duration::from_secs(3600)),
            temporary_grace: Age(Duration::from_secs(24 * 3600)),
        }
    }
}

/// Parses a number of gigabytes. A value with a unit gets a hint about `--max-size`.
fn gigabytes(text: &str) -> Result<GigaBytes, String> {
    text.parse().map_err(|why: String| match text.parse::<Size>() {
        Ok(_) => format!("{why}; to use a unit, write `--max-size {}`", text.trim()),
        Err(_) => why,
    })
}

/// An age such as `90m`, `24h`, `7 days`, or `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub Duration);

impl FromStr for Age {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "0" {
            return Ok(Age(Duration::ZERO));
        }
        let days = jiff::SpanRelativeTo::days_are_24_hours();
        let span = text.trim().parse::<jiff::Span>().and_then(|span| span.to_duration(days)).ok();
        let age = span.and_then(|span| Duration::try_from(span).ok());
        age.map(Age).ok_or_else(|| "expected an age such as 90m, 24h or 7d, or 0".to_string())
    }
}

fn serialize_age<S: Serializer>(age: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    age.map(|age| age.as_secs()).serialize(serializer)
}

/// The report of `prune`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing was deleted.
    pub dry_run: bool,
    /// Whether the user was asked and declined, so that nothing was deleted.
    pub declined: bool,
    /// Maximum size of the cache in bytes; null if only the age counts.
    pub budget: Option<u64>,
    /// Whether the bucket had to hold what was evicted.
    pub require_remote: bool,
    /// Seconds for which evicted revisions had not been used; null if the age did not count.
    #[serde(serialize_with = "serialize_age")]
    pub older_than: Option<Duration>,
    /// Size in bytes before, each file counted once.
    pub size_before: u64,
    /// Size in bytes afterwards, or the size that it would have.
    pub size: u64,
    /// Bytes of disk space freed, or that would be freed.
    pub freed: u64,
    /// Bytes over the budget.
    pub over_budget: u64,
    /// Bytes that no prune can free: hard links outside the cache use them, or it is unknown what needs them.
    pub pinned: u64,
    /// What was deleted.
    #[serde(flatten)]
    pub deleted: Deletions,
    /// What was kept, and why.
    pub skipped: Vec<Skip>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Whether the file system keeps no access times, so that only modification times show the last use.
    pub noatime: bool,
    /// Whether being over budget is a failure.
    pub fail_over_budget: bool,
    /// What failed.
    pub failures: Vec<Error>,
    /// Duration in seconds.
    pub seconds: f64,
    /// The actions, for a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Whether the rows were already shown when asking for confirmation.
    #[serde(skip)]
    pub was_shown: bool,
    /// The time of the report.
    #[serde(skip)]
    pub now: SystemTime,
}

/// What was deleted, or would be.
#[derive(Debug, Default, Serialize)]
pub struct Deletions {
    /// Evicted revisions, in order.
    pub evicted: Vec<EvictedRevision>,
    /// Unused blobs and shared payloads.
    pub orphans: Amount,
    /// Abandoned unfinished files.
    pub abandoned: Amount,
    /// Refs to commits that are not in the cache, in repos that were kept.
    pub refs_removed: Vec<RemovedRef>,
    /// Repos that were removed entirely.
    pub repos_removed: Vec<RepoName>,
    /// Everything, as rows of the table, largest first.
    #[serde(skip)]
    pub rows: Vec<Row>,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The repo, if it belongs to one.
    pub repo: Option<RepoName>,
    /// What was deleted.
    pub kind: RowKind,
    /// Bytes freed.
    pub bytes: u64,
}

/// What a row describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowKind {
    /// A revision.
    Revision(EvictedRevision),
    /// This many unused blobs.
    Orphans(u64),
    /// This many unfinished files.
    Abandoned(u64),
}

/// An evicted revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EvictedRevision {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision.
    pub revision: Commit,
    /// Why it was evicted.
    pub reason: Reason,
    /// Refs that named it.
    pub refs: Vec<RefName>,
    /// How much of the commit was here.
    pub status: Completeness,
    /// Last use, in seconds since 1970.
    #[serde(rename = "last_used", serialize_with = "crate::when::serialize_seconds")]
    pub last_use: u64,
    /// Bytes freed.
    pub bytes: u64,
}

/// A removed ref.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RemovedRef {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// Its name.
    pub name: RefName,
    /// The commit it named.
    pub commit: Commit,
}

impl Report {
    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        let over = self.fail_over_budget && self.over_budget > 0;
        match self.failures.as_slice() {
            // The reason why the bucket could not be asked, say.
            [only] => Some(only.kind()),
            failures => kind_of(failures).or(over.then_some(Kind::Failed)),
        }
    }

    /// Whether anything is deleted.
    pub fn deletes(&self) -> bool {
        !self.deleted.is_empty()
    }

    /// Converts a preview into the report of a declined prune: nothing was deleted, which is not a failure.
    pub fn into_declined(self) -> Self {
        Report {
            dry_run: false,
            declined: true,
            size: self.size_before,
            freed: 0,
            over_budget: excess(self.size_before, self.budget),
            deleted: Deletions::default(),
            fail_over_budget: false,
            failures: Vec::new(),
            plan: None,
            ..self
        }
    }

    fn new(args: &Args, options: &Options, plan: Plan, done: Option<Outcome>, noatime: bool) -> Self {
        let freed = done.as_ref().map_or(plan.freed, |done| done.freed);
        let size = plan.size.saturating_sub(freed);
        let mut report = Report {
            dry_run: done.is_none(),
            declined: false,
            budget: options.budget,
            require_remote: options.held.is_some(),
            older_than: options.older_than,
            size_before: plan.size,
            size,
            freed,
            over_budget: excess(size, options.budget),
            pinned: plan.pinned,
            deleted: Deletions::new(&plan, done.as_ref()),
            skipped: plan.skips.clone(),
            notes: Vec::new(),
            noatime,
            fail_over_budget: args.fail_over_budget,
            failures: plan.failures.clone(),
            seconds: 0.0,
            plan: None,
            was_shown: false,
            now: SystemTime::UNIX_EPOCH,
        };
        match done {
            Some(done) => {
                report.skipped.extend(done.skips);
                report.failures.extend(done.failures);
            }
            None => report.plan = Some(plan),
        }
        report
    }
}

impl Deletions {
    /// Collects the actions of the plan that were carried out, or all of them if it was not executed.
    pub fn new(plan: &Plan, done: Option<&Outcome>) -> Self {
        let all: BTreeSet<usize> = (0..plan.actions.len()).collect();
        let actions = done.map_or(&all, |done| &done.actions);
        let mut report = Deletions::default();
        let mut orphans: BTreeMap<Option<RepoName>, Amount> = BTreeMap::new();
        let mut abandoned: BTreeMap<Option<RepoName>, Amount> = BTreeMap::new();
        for action in actions.iter().map(|index| &plan.actions[*index]) {
            match &action.target {
                Target::Leftover { .. } | Target::RootTemporary { .. } => {
                    report.abandoned.add(action.bytes);
                    abandoned.entry(None).or_default().add(action.bytes);
                }
                Target::Temporary { repo, .. } => {
                    report.abandoned.add(action.bytes);
                    abandoned.entry(Some(repo.clone())).or_default().add(action.bytes);
                }
                Target::Blob { repo, .. } => {
                    report.orphans.add(action.bytes);
                    orphans.entry(Some(repo.clone())).or_default().add(action.bytes);
                }
                Target::Payload { .. } => {
                    report.orphans.add(action.bytes);
                    orphans.entry(None).or_default().add(action.bytes);
                }
                Target::Ref { repo, name, commit } => {
                    let (repo, name, commit) = (repo.clone(), name.clone(), commit.clone());
                    report.refs_removed.push(RemovedRef { repo, name, commit });
                }
                Target::Folder { repo } => report.repos_removed.push(repo.clone()),
                Target::Revision(evicted) => report.evicted.push(EvictedRevision {
                    repo: evicted.repo.clone(),
                    revision: evicted.revision.clone(),
                    reason: action.reason,
                    refs: evicted.refs.clone(),
                    status: evicted.status.clone(),
                    last_use: evicted.last_use,
                    bytes: action.bytes,
                }),
            }
        }
        let row = |kind: fn(u64) -> RowKind| {
            move |(repo, amount): (Option<RepoName>, Amount)| Row {
                repo,
                kind: kind(amount.blobs),
                bytes: amount.bytes,
            }
        };
        let revisions = report.evicted.iter().map(|one| {
            let (repo, bytes) = (Some(one.repo.clone()), one.bytes);
            Row { repo, kind: RowKind::Revision(one.clone()), bytes }
        });
        let others =
            orphans.into_iter().map(row(RowKind::Orphans)).chain(abandoned.into_iter().map(row(RowKind::Abandoned)));
        report.rows = revisions.chain(others).collect();
        report.rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
        report
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.refs_removed.is_empty() && self.repos_removed.is_empty()
    }
}

fn excess(size: u64, budget: Option<u64>) -> u64 {
    budget.map_or(0, |budget| size.saturating_sub(budget))
}

/// Returns what would be deleted right now, without taking the lock, as in a dry run.
///
/// # Errors
/// See [`execute()`].
pub async fn preview(session: &Session, args: &Args) -> Result<Report> {
    run(session, &Args { dry_run: true, ..args.clone() }, None).await
}

/// Runs the command. If the user has confirmed the report in `shown`, nothing else is deleted: what came up in the
/// meantime is left for the next run.
///
/// # Errors
/// When nothing can be pruned at all; individual failures are in the report.
pub async fn execute(session: &Session, args: &Args, shown: Option<&Report>) -> Result<Report> {
    let agreement = shown.map(|shown| shown.plan.as_ref().map(Agreement::to).unwrap_or_default());
    let was_shown = agreement.is_some();
    let report = run(session, args, agreement).await?;
    Ok(Report { was_shown, ..report })
}

async fn run(session: &Session, args: &Args, agreement: Option<Agreement>) -> Result<Report> {
    let started = Instant::now();
    session.need_cache()?;
    let config = &session.config;
    let layout = session.layout();
    let require_remote = args.require_remote || (config.cache.prune_require_remote && !args.no_require_remote);
    let given = args.max_gb.map(|size| size.0).or(args.max_size.map(|size| size.0));
    let keep = Pins::new("keep", &args.keep)?;
    let mut options = Options {
        // An age without a budget is a request of its own, whatever the configured budget.
        budget: given.or(args.older_than.is_none().then_some(config.cache.max_local_bytes)),
        include_referenced: args.include_referenced,
        older_than: args.older_than.map(|age| age.0),
        keep: keep.clone().and(config.cache.keep.clone()),
        held: require_remote.then(Held::default),
        orphan_grace: args.orphan_grace.0,
        temporary_grace: args.temporary_grace.0,
    };
    if require_remote {
        // Even if it turns out not to be needed: a nightly prune should not start to fail on the day that it matters.
        config.storage.bucket()?;
    }
    let lock = match args.dry_run {
        true => None,
        false => evict::lock(session, &mut options, "`prune --dry-run` shows what could be deleted").await?,
    };
    session.progress.event(Event::Step("scanning the cache"));
    let mut facts = scan_cache(&layout).await?;
    let notes = notes_on_patterns(&keep, &facts.inventory);
    let (mut checker, mut failure) = (None, None);
    if require_remote && evicts(&facts, &options, session.now) {
        match examine(session, facts.inventory).await {
            Ok((bucket, inventory, held)) => {
                // Locks may have been taken meanwhile, and files may have arrived.
                facts = blocking(move || prune_facts::gather(inventory)).await;
                options.held = Some(held);
                checker = Some(bucket);
            }
            Err(error) => {
                facts = scan_cache(&layout).await?;
                failure = Some(error);
            }
        }
    }
    let mut plan = plan::plan(&facts, &options, session.now);
    plan.failures.extend(failure);
    if let Some(agreement) = &agreement {
        plan.limit_to(agreement);
    }
    let (facts, plan) = evict::add_statuses(facts, plan).await;
    let mut report = match args.dry_run {
        true => Report::new(args, &options, plan, None, facts.noatime),
        false => {
            let noatime = facts.noatime;
            let (plan, done) = evict::carry_out(session, facts, plan, checker.as_ref(), &options, lock).await;
            Report::new(args, &options, plan, Some(done), noatime)
        }
    };
    report.notes = notes;
    report.seconds = started.elapsed().as_secs_f64();
    report.now = session.now;
    Ok(report)
}

/// Names the patterns of the command line that protect nothing, such as misspelled ones. Those of cache.keep need not match:
/// machines share a configuration, and not each has all of its repos.
fn notes_on_patterns(keep: &Pins, inventory: &Inventory) -> Vec<String> {
    let mut revisions = Vec::new();
    for repo in &inventory.repos {
        for commit in repo.revisions.keys() {
            let refs = repo.refs.iter().filter(|(_, named)| *named == commit).map(|(name, _)| name.clone());
            revisions.push((&repo.name, commit, refs.collect()));
        }
    }
    let note = |text| format!("--keep '{}' matches no revision in this cache", printable(text, 100));
    keep.unmatched(&revisions).map(note).collect()
}

/// Returns whether any revision would be considered if the bucket held all of them. If not, there is no need to ask it.
fn evicts(facts: &Facts, options: &Options, now: SystemTime) -> bool {
    let options = Options { include_referenced: true, held: None, ..options.clone() };
    let plan = plan::plan(facts, &options, now);
    plan.actions.iter().any(|action| matches!(action.target, Target::Revision(_)))
        || plan.skips.iter().any(|skip| skip.reason == SkipReason::FreesNothing)
}

async fn scan_cache(layout: &Layout) -> Result<Facts> {
    let layout = layout.clone();
    blocking(move || Ok(prune_facts::gather(scan::scan(layout.root())?))).await
}

async fn examine(session: &Session, inventory: Inventory) -> Result<(Bucket, Inventory, Held)> {
    let bucket = session.bucket().await?;
    let (inventory, held) = held::examine(session, &bucket, inventory, Selection::default()).await?;
    Ok((bucket, inventory, held))
}
