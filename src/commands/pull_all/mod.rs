//! `pull-all`: every repo whose `main` is in the bucket, filtered, as one plan: a blob that several repos need is
//! fetched once, and a repo that fails does not stop the others.
//!
//! [`filter`] decides which repos (pure), [`crate::remote::mains`] finds them, the rest is the work of
//! [`super::pull`].

pub mod filter;

use std::time::Instant;

use serde::Serialize;

use super::pull::plan::Plan;
use super::pull::run::{self, Decision};
use super::pull::{Source, local};
use super::{Amount, Session, TransferArgs, kind_of};
use crate::cache::gated::Gated;
use crate::error::{Error, Kind, Result};
use crate::ids::{Commit, RepoId, RepoName, RepoType};
use crate::progress::Event;
use crate::remote::lookup::Found;
use crate::remote::mains::{self, Main};
use filter::Filter;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync pull-all                             everything that has a main
  hf-cache-sync pull-all --include 'org/*' --exclude '*-GGUF'
  hf-cache-sync pull-all --include 'dataset:*' --limit 5 --dry-run";

/// Download every repo whose main is in the bucket
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Say what would be downloaded and stop there
    #[arg(long)]
    pub dry_run: bool,

    /// Only so many repos, after --include and --exclude
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,

    /// Only repos whose id matches, such as 'org/*' or 'dataset:org/*'; may be given several times
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,

    /// No repos whose id matches; may be given several times
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,

    /// Hash the blobs that are here already, and fetch those anew that are corrupt
    #[arg(long)]
    pub verify: bool,

    /// Do not wait for the disk before a blob becomes visible: faster, for machines that are thrown away
    #[arg(long)]
    pub no_sync: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub transfer: TransferArgs,
}

/// What a pull of everything did, or would do.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// The bucket.
    pub bucket: String,
    /// A row for each repo, in the bucket's order.
    pub repos: Vec<Row>,
    /// Why there are no rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nothing: Option<Nothing>,
    /// Downloaded, or to be downloaded.
    pub downloaded: Amount,
    /// Shared with other repos of this cache.
    pub shared: Amount,
    /// Here already.
    pub present: Amount,
    /// What failed, in the rows' order.
    pub failures: Vec<Error>,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Why nothing was there to be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nothing {
    /// The bucket has no `main` of any repo.
    Empty,
    /// No repo passes `--include`, `--exclude` and `--limit`.
    NoMatch,
}

/// One repo.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The key of its ref in the bucket.
    pub key: String,
    /// Its id, as far as it is known.
    pub repo: Option<RepoId>,
    /// Its type, as far as it is known.
    pub repo_type: Option<RepoType>,
    /// The revision, where it was found.
    pub revision: Option<Commit>,
    /// What became of it.
    pub result: Outcome,
    /// Where the files came from.
    pub source: Option<Source>,
    /// Bytes of the revision, each blob counted once.
    pub size: u64,
    /// Downloaded, or to be downloaded; a blob that several repos need counts for the first of them.
    pub downloaded: Amount,
    /// Shared with other repos of this cache.
    pub shared: Amount,
    /// Here already.
    pub present: Amount,
    /// Set when it was left alone because it looks gated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gated: Option<Gated>,
    /// What failed.
    pub failures: Vec<Error>,
}

/// What became of a repo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Something was done, and it is complete now.
    Pulled,
    /// It was complete already.
    Present,
    /// Something would be done.
    Planned,
    /// It looks gated, and was left alone.
    Skipped,
    /// Some of it could be pulled.
    Partial,
    /// None of it could be pulled.
    Failed,
}

impl Report {
    /// Decides the exit code.
    pub fn failed(&self) -> Option<Kind> {
        kind_of(&self.failures)
    }
}

/// Runs the command.
///
/// # Errors
/// When the bucket cannot be read or the cache not be written to; failures of single repos are in the report.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    let started = Instant::now();
    let filter = Filter::new(&args.include, &args.exclude)?;
    let bucket = session.bucket().await?;
    let layout = session.layout();
    local::check_root(&layout)?;
    session.progress.event(Event::Step("looking up repos in the bucket"));
    let mains = mains::find(&bucket, |repo| filter.allows(repo), args.limit).await?;
    let mut report = Report { dry_run: args.dry_run, bucket: bucket.name().to_string(), ..Report::default() };
    if mains.all.is_empty() {
        report.nothing = Some(if mains.any { Nothing::NoMatch } else { Nothing::Empty });
        return Ok(report);
    }

    session.progress.event(Event::Step("looking at the cache"));
    let (mut plans, mut rows_of_plans) = (Vec::new(), Vec::new());
    for main in mains.all {
        let (row, plan) = look(session, main, args.verify).await;
        if let Some(plan) = plan {
            plans.push(plan);
            rows_of_plans.push(report.repos.len());
        }
        report.repos.push(row);
    }
    let plans = run::borrow(&layout, plans).await;
    if args.dry_run {
        rows_of_plans.into_iter().zip(&plans).for_each(|(row, plan)| report.repos[row].would(plan));
    } else {
        let options = run::Options { workers: args.transfer.workers(), sync: !args.no_sync };
        let outcomes = run::carry_out(session, &bucket, &plans, options).await?;
        for ((row, plan), outcome) in rows_of_plans.into_iter().zip(&plans).zip(outcomes) {
            report.repos[row].became(plan, outcome);
        }
    }
    report.add_up();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

async fn look(session: &Session, main: Main, verify: bool) -> (Row, Option<Plan>) {
    let mut row = Row::new(&main);
    let found = match main.found {
        Ok(found) => found,
        Err(error) => return (row.failing(error), None),
    };
    match run::decide(session, &found, verify).await {
        Ok(Decision::Gated(gated)) => {
            row.result = Outcome::Skipped;
            row.gated = Some(gated);
            (row, None)
        }
        Ok(Decision::Pull(plan)) => {
            row.present = plan.present;
            (row, Some(plan))
        }
        Err(error) => (row.failing(error), None),
    }
}

impl Row {
    fn new(main: &Main) -> Row {
        let manifest = main.found.as_ref().ok().map(|Found { manifest, .. }| manifest);
        Row {
            key: main.key.clone(),
            repo: main.query.as_ref().map(|query| query.id.clone()),
            repo_type: main.query.as_ref().and_then(|query| query.kind),
            revision: manifest.map(|manifest| manifest.revision.clone()),
            result: Outcome::Failed,
            source: None,
            size: manifest.map_or(0, |manifest| manifest.total_size()),
            downloaded: Amount::default(),
            shared: Amount::default(),
            present: Amount::default(),
            gated: None,
            failures: Vec::new(),
        }
    }

    /// The repo's name, or its key where only that is known.
    pub fn name(&self) -> String {
        match (&self.repo, self.repo_type) {
            (Some(id), Some(kind)) => RepoName::new(kind, id.clone()).to_string(),
            (Some(id), None) => id.to_string(),
            (None, _) => self.key.clone(),
        }
    }

    fn failing(mut self, error: Error) -> Row {
        self.failures.push(error);
        self
    }

    fn would(&mut self, plan: &Plan) {
        self.result = if plan.is_empty() { Outcome::Present } else { Outcome::Planned };
        for fetch in &plan.fetch {
            let amount = if fetch.donor.is_some() { &mut self.shared } else { &mut self.downloaded };
            amount.add(fetch.size);
        }
    }

    fn became(&mut self, plan: &Plan, outcome: super::pull::hydrate::Outcome) {
        let lost = outcome.lost();
        self.result = match outcome.failures.is_empty() {
            true if plan.is_empty() => Outcome::Present,
            true => Outcome::Pulled,
            false if lost < plan.manifest.blobs().len() => Outcome::Partial,
            false => Outcome::Failed,
        };
        self.source = Some(if outcome.downloaded.blobs > 0 { Source::Bucket } else { Source::Cache });
        self.downloaded = outcome.downloaded;
        self.shared = outcome.shared;
        self.failures.extend(outcome.failures);
    }
}

impl Report {
    fn add_up(&mut self) {
        for row in &self.repos {
            self.downloaded += row.downloaded;
            self.shared += row.shared;
            self.present += row.present;
            for failure in &row.failures {
                // A blob that several repos lack is told once.
                if !self.failures.contains(failure) {
                    self.failures.push(failure.clone());
                }
            }
        }
    }
}
