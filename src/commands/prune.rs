//! `prune`: brings the cache back within its budget, and takes away what nobody needs.
//!
//! [`crate::cache::prune_facts`] looks around beside the scan, [`crate::plan::prune`] decides (pure),
//! [`crate::engine::evict`] deletes under the tool's exclusive lock and checks each thing once more right before.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::kind_of;
use super::size::Size;
use crate::cache::lock::{self, Mode};
use crate::cache::prune_facts;
use crate::cache::scan;
use crate::config::GigaBytes;
use crate::engine::Session;
use crate::engine::evict::{self, Outcome};
use crate::engine::session::wait_for;
use crate::error::{Error, Kind, Result};
use crate::model::amount::Amount;
use crate::model::ids::{Commit, RefName, RepoName};
use crate::plan::prune::{self as plan, Agreement, Options, Plan, Reason, Skip, Target};
use crate::progress::Event;
use crate::task::blocking;

/// Where nobody can be kept out, what others may be at work on is known by its age alone.
const WITHOUT_LOCKS: Duration = Duration::from_secs(24 * 3600);

/// Evict least recently used revisions until the cache is within its budget
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  hf-cache-sync prune --dry-run             what would go, by cache.max_local_gb
  hf-cache-sync prune --max-size 200GiB --include-referenced -q  for cron
  hf-cache-sync prune --max-gb 50 --include-referenced --fail-over-budget

Revisions that no ref names go first, then, with --include-referenced, the
others; each least recently used first. Blobs that no revision uses and
abandoned downloads go in any case, once they are old enough.

On a terminal it shows what would go and asks; --yes does not. A download
writes a ref (`main`), so that without --include-referenced hardly anything
goes but what later commits have replaced.")]
pub struct Args {
    /// Budget in gigabytes of 2^30 bytes [default: cache.max_local_gb]
    #[arg(long, value_name = "FLOAT", allow_negative_numbers = true, conflicts_with = "max_size", value_parser = gigabytes)]
    pub max_gb: Option<GigaBytes>,

    /// Budget with a unit: 50GB, 200GiB, 1.5TiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub max_size: Option<Size>,

    /// Say what would be deleted, and stop there
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,

    /// Go on to revisions that a branch, a tag or another ref names
    #[arg(long)]
    pub include_referenced: bool,

    /// Exit with 1 when the cache is still over its budget
    #[arg(long)]
    pub fail_over_budget: bool,

    /// Leave blobs that no revision uses alone while they are younger than this
    #[arg(long, value_name = "AGE", default_value = "1h")]
    pub orphan_grace: Age,

    /// Keep unfinished downloads until they have been untouched for this long
    #[arg(long, value_name = "AGE", default_value = "24h")]
    pub temporary_grace: Age,
}

/// Who writes a unit means `--max-size`.
fn gigabytes(text: &str) -> Result<GigaBytes, String> {
    text.parse().map_err(|why: String| match text.parse::<Size>() {
        Ok(_) => format!("{why}; with a unit it is `--max-size {}`", text.trim()),
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

/// What a prune did, or would do.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing was deleted.
    pub dry_run: bool,
    /// Whether somebody was asked, and said no: nothing was deleted then.
    pub declined: bool,
    /// Bytes that the cache may take.
    pub budget: u64,
    /// Bytes that it took before, each file counted once.
    pub size_before: u64,
    /// Bytes that it takes now, or would take.
    pub size: u64,
    /// Bytes that the disk got back, or would get back.
    pub freed: u64,
    /// Bytes by which the budget is missed.
    pub over_budget: u64,
    /// Bytes that no prune gives back: they have names outside the cache, or nobody knows who needs them.
    pub pinned: u64,
    /// Revisions that went, in this order.
    pub evicted: Vec<Evicted>,
    /// Blobs and payloads that nobody used.
    pub orphans: Amount,
    /// Unfinished files that nobody went on with.
    pub abandoned: Amount,
    /// Refs that named a commit which is not here, in repos that stay.
    pub refs_removed: Vec<GoneRef>,
    /// Repos of which nothing was left.
    pub repos_removed: Vec<RepoName>,
    /// What was left alone, and why.
    pub skipped: Vec<Skip>,
    /// Whether the file system keeps no access times, so that the last use is the last change.
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
    /// All of it in rows, for people: the largest first.
    #[serde(skip)]
    pub rows: Vec<Row>,
    /// Whether these rows were shown before, in a question.
    #[serde(skip)]
    pub was_shown: bool,
    /// The time of the report.
    #[serde(skip)]
    pub now: SystemTime,
}

/// A row of what went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The repo, when it is of one.
    pub repo: Option<RepoName>,
    /// What.
    pub gone: Gone,
    /// Bytes that came back with it.
    pub bytes: u64,
}

/// What a row is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// A revision.
    Revision(Evicted),
    /// So many blobs that no revision used.
    Orphans(u64),
    /// So many files that nobody finished.
    Abandoned(u64),
}

/// A revision that went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evicted {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision.
    pub revision: Commit,
    /// Why.
    pub reason: Reason,
    /// Refs that named it.
    pub refs: Vec<RefName>,
    /// Last use, in seconds since 1970.
    #[serde(rename = "last_used", serialize_with = "crate::when::serialize_seconds")]
    pub last_use: u64,
    /// Bytes that came back with it.
    pub bytes: u64,
}

/// A ref that went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GoneRef {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// Its name.
    pub name: RefName,
    /// What it named.
    pub commit: Commit,
}

impl Report {
    /// Decides the exit code.
    pub fn failed(&self) -> Option<Kind> {
        let over = self.fail_over_budget && self.over_budget > 0;
        kind_of(&self.failures).or(over.then_some(Kind::Failed))
    }

    /// Whether anything goes.
    pub fn deletes(&self) -> bool {
        !self.rows.is_empty() || !self.refs_removed.is_empty() || !self.repos_removed.is_empty()
    }

    /// The same after somebody said no to it: nothing was deleted, and that is no failure.
    pub fn declined(self) -> Self {
        Report {
            dry_run: false,
            declined: true,
            size: self.size_before,
            freed: 0,
            over_budget: self.size_before.saturating_sub(self.budget),
            evicted: Vec::new(),
            orphans: Amount::default(),
            abandoned: Amount::default(),
            refs_removed: Vec::new(),
            repos_removed: Vec::new(),
            fail_over_budget: false,
            failures: Vec::new(),
            plan: None,
            rows: Vec::new(),
            ..self
        }
    }

    fn new(args: &Args, budget: u64, plan: Plan, done: Option<Outcome>, noatime: bool) -> Self {
        let all: BTreeSet<usize> = (0..plan.actions.len()).collect();
        let (actions, freed) = done.as_ref().map_or((&all, plan.freed), |done| (&done.actions, done.freed));
        let size = plan.size.saturating_sub(freed);
        let mut report = Report {
            dry_run: done.is_none(),
            declined: false,
            budget,
            size_before: plan.size,
            size,
            freed,
            over_budget: size.saturating_sub(budget),
            pinned: plan.pinned,
            evicted: Vec::new(),
            orphans: Amount::default(),
            abandoned: Amount::default(),
            refs_removed: Vec::new(),
            repos_removed: Vec::new(),
            skipped: plan.skips.clone(),
            noatime,
            fail_over_budget: args.fail_over_budget,
            failures: plan.failures.clone(),
            seconds: 0.0,
            plan: None,
            rows: Vec::new(),
            was_shown: false,
            now: SystemTime::UNIX_EPOCH,
        };
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
                    report.refs_removed.push(GoneRef { repo, name, commit });
                }
                Target::Folder { repo } => report.repos_removed.push(repo.clone()),
                Target::Revision(gone) => report.evicted.push(Evicted {
                    repo: gone.repo.clone(),
                    revision: gone.revision.clone(),
                    reason: action.reason,
                    refs: gone.refs.clone(),
                    last_use: gone.last_use,
                    bytes: action.bytes,
                }),
            }
        }
        let row = |gone: fn(u64) -> Gone| {
            move |(repo, amount): (Option<RepoName>, Amount)| Row {
                repo,
                gone: gone(amount.blobs),
                bytes: amount.bytes,
            }
        };
        let revisions = report.evicted.iter().map(|one| {
            let (repo, bytes) = (Some(one.repo.clone()), one.bytes);
            Row { repo, gone: Gone::Revision(one.clone()), bytes }
        });
        let others = orphans.into_iter().map(row(Gone::Orphans)).chain(abandoned.into_iter().map(row(Gone::Abandoned)));
        report.rows = revisions.chain(others).collect();
        report.rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
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

/// What would go: the plan of this moment, under no lock, as for a dry run.
///
/// # Errors
/// As [`execute()`].
pub async fn preview(session: &Session, args: &Args) -> Result<Report> {
    run(session, &Args { dry_run: true, ..args.clone() }, None).await
}

/// Runs the command. With a `shown` report, that somebody agreed to, nothing goes that is not in there: what came up
/// while they were asked is for the next run.
///
/// # Errors
/// When nothing can be done at all; single failures are in the report.
pub async fn execute(session: &Session, args: &Args, shown: Option<&Report>) -> Result<Report> {
    let agreement = shown.map(|shown| shown.plan.as_ref().map(Agreement::to).unwrap_or_default());
    let was_shown = agreement.is_some();
    let report = run(session, args, agreement).await?;
    Ok(Report { was_shown, ..report })
}

async fn run(session: &Session, args: &Args, agreement: Option<Agreement>) -> Result<Report> {
    let started = Instant::now();
    session.need_cache()?;
    let layout = session.layout();
    let mut options = Options {
        budget: args
            .max_gb
            .map(|size| size.0)
            .or(args.max_size.map(|size| size.0))
            .unwrap_or(session.config.cache.max_local_bytes),
        include_referenced: args.include_referenced,
        orphan_grace: args.orphan_grace.0,
        temporary_grace: args.temporary_grace.0,
    };
    let lock = match args.dry_run || !layout.root().is_dir() {
        true => None,
        false => {
            let note = "another hf-cache-sync is using this cache: waiting";
            Some(wait_for(&*session.progress, note, || lock::try_tool_lock(&layout, Mode::Exclusive)).await?)
        }
    };
    if lock.as_ref().is_some_and(|lock| !lock.is_real()) {
        let note = "this file system has no locks: unused blobs and unfinished downloads are left alone for a day";
        session.progress.event(Event::Note(note.into()));
        options.orphan_grace = options.orphan_grace.max(WITHOUT_LOCKS);
        options.temporary_grace = options.temporary_grace.max(WITHOUT_LOCKS);
    }
    session.progress.event(Event::Step("scanning the cache"));
    let (progress, now, args) = (session.progress.clone(), session.now, args.clone());
    let mut report = blocking(move || -> Result<Report> {
        let facts = prune_facts::gather(scan::scan(layout.root())?);
        let mut plan = plan::plan(&facts, &options, now);
        if let Some(agreement) = &agreement {
            plan.limit_to(agreement);
        }
        if args.dry_run {
            return Ok(Report::new(&args, options.budget, plan, None, facts.noatime));
        }
        progress.event(Event::Step("deleting"));
        let done = evict::execute(&facts, &plan);
        // Held until the last deletion, even when nobody waits for this any more.
        drop(lock);
        Ok(Report::new(&args, options.budget, plan, Some(done), facts.noatime))
    })
    .await?;
    report.seconds = started.elapsed().as_secs_f64();
    report.now = session.now;
    Ok(report)
}
