//! `pull-all`: downloads every repo whose `main` is in the bucket and passes the filters. All repos are pulled together: a
//! blob that several of them need is downloaded once, and a repo that fails does not stop the others.
//!
//! [`crate::bucket::main_revisions`] finds the repos, [`crate::model::filter`] selects them (pure), and
//! [`crate::engine::pull`] does the rest.

use std::collections::HashSet;
use std::time::Instant;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::kind_of;
use super::pull::{DownloadArgs, Source};
use crate::bucket::main_revisions::{self, MainRevision};
use crate::cache::gated::Gated;
use crate::cache::presence;
use crate::engine::Session;
use crate::engine::fallback::Fallback;
use crate::engine::pull::{Decision, Pull, Work};
use crate::error::{Error, Kind, Result, printable};
use crate::model::amount::Amount;
use crate::model::filter::RepoFilter;
use crate::model::found::Found;
use crate::model::ids::{BlobId, Commit, RepoId, RepoName, RepoQuery, RepoType};
use crate::plan::pull::Plan;
use crate::progress::Event;

/// Number of repos to examine, or to look up on the Hub, concurrently.
const CONCURRENCY: usize = 8;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync pull-all                             every repo with a main
  hf-cache-sync pull-all --include 'org/*' --exclude '*-GGUF'
  hf-cache-sync pull-all --include 'dataset:*' --limit 5 --dry-run
  hf-cache-sync pull-all --fallback hf-hub           else from the Hub";

/// Download every repo whose main is in the bucket
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Show what would be downloaded, but download nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Maximum number of repos, after --include and --exclude
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = limit)]
    pub limit: Option<usize>,

    /// Only repos whose id matches, such as 'org/*' or 'dataset:org/*'; can be repeated
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,

    /// Skip repos whose id matches; can be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub download: DownloadArgs,
}

fn limit(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a number of repos, 0 or more".to_string())
}

/// The report of `pull-all`.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// The bucket.
    pub bucket: String,
    /// A row for each repo, in the order of the bucket's listing.
    pub repos: Vec<Row>,
    /// Why there are no rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nothing: Option<EmptyReason>,
    /// Blobs downloaded, or to be downloaded.
    pub downloaded: Amount,
    /// The part of `downloaded` that came from the Hub.
    pub from_hub: Amount,
    /// Blobs shared with other repos of this cache.
    pub shared: Amount,
    /// Blobs already in the cache.
    pub present: Amount,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// All failures, in the order of the rows.
    pub failures: Vec<Error>,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Why there was nothing to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyReason {
    /// No repo in the bucket has a `main`.
    Empty,
    /// No repo passes `--include`, `--exclude` and `--limit`.
    NoMatch,
}

/// A repo.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The key of its ref in the bucket.
    pub key: String,
    /// Its id, if known.
    pub repo: Option<RepoId>,
    /// Its type, if known.
    pub repo_type: Option<RepoType>,
    /// The revision, if it was found.
    pub revision: Option<Commit>,
    /// The outcome.
    pub result: Outcome,
    /// Where the files came from.
    pub source: Option<Source>,
    /// Bytes of the revision, each blob counted once.
    pub size: u64,
    /// Blobs downloaded, or to be downloaded; a blob that several repos need counts towards the first.
    pub downloaded: Amount,
    /// The part of `downloaded` that came from the Hub.
    pub from_hub: Amount,
    /// Blobs shared with other repos of this cache.
    pub shared: Amount,
    /// Blobs already in the cache.
    pub present: Amount,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Set if it was skipped because it looks gated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gated: Option<Gated>,
    /// What failed.
    pub failures: Vec<Error>,
}

/// The outcome for a repo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Something was pulled, and the repo is now complete.
    Pulled,
    /// It was already complete.
    Present,
    /// Something would be pulled.
    Planned,
    /// It was skipped because it looks gated.
    Skipped,
    /// Only part of it could be pulled.
    Partial,
    /// Nothing could be pulled.
    Failed,
}

impl Report {
    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        match self.nothing {
            Some(_) => self.failures.first().map(crate::error::Error::kind),
            None => kind_of(&self.failures),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the bucket cannot be read or the cache cannot be written to; failures of individual repos are in the report.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    let started = Instant::now();
    let filter = RepoFilter::new(&args.include, &args.exclude)?;
    args.download.fallback.check()?;
    let bucket = session.bucket().await?;
    let layout = session.layout();
    presence::check_root(&layout)?;
    session.progress.event(Event::Step("looking up repos in the bucket"));
    let mains = main_revisions::find(&bucket, |repo| filter.allows(repo), args.limit).await?;
    let mut report = Report { dry_run: args.dry_run, bucket: bucket.name().to_string(), ..Report::default() };
    if mains.all.is_empty() {
        report.nothing = Some(if mains.any { EmptyReason::NoMatch } else { EmptyReason::Empty });
        // With --limit 0, an empty result is what was asked for.
        if args.limit != Some(0) {
            report.failures.push(args.nothing_found(bucket.name(), bucket.prefix(), mains.any));
        }
        return Ok(report);
    }

    let fallback = args.download.fallback.resolve(session, args.dry_run);
    let pull = Pull::begin(session, &bucket, args.download.options(), fallback.clone(), args.dry_run).await;
    let (mut work, mut rows_of_work) = (Vec::new(), Vec::new());
    let mut examined =
        stream::iter(mains.all).map(|main| examine(&pull, &fallback, main, &filter)).buffered(CONCURRENCY);
    while let Some((row, todo)) = examined.next().await {
        if let Some(todo) = todo {
            work.push(todo);
            rows_of_work.push(report.repos.len());
        }
        report.repos.push(row);
    }
    drop(examined);
    pull.borrow(&mut work).await;
    if args.dry_run {
        let mut counted = HashSet::new();
        for (row, work) in rows_of_work.into_iter().zip(&work) {
            report.repos[row].record_plan(&work.plan, &mut counted);
        }
    } else {
        let outcomes = pull.carry_out(&mut work).await?;
        for ((row, work), outcome) in rows_of_work.into_iter().zip(&work).zip(outcomes) {
            report.repos[row].record_outcome(&work.plan, outcome);
        }
    }
    report.sum_rows();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

impl Args {
    /// Returns the error for an empty result, since a wrong prefix or pattern is more likely than an empty bucket.
    fn nothing_found(&self, bucket: &str, prefix: &str, any: bool) -> Error {
        let under = if prefix.is_empty() { String::new() } else { format!(" under the prefix '{prefix}'") };
        if !any {
            return Error::not_found(format!("bucket '{bucket}' has no repo with a main ref{under}"))
                .hint("push a repo first, or check --bucket and --prefix (storage.bucket, team.prefix)");
        }
        let quoted = |flag: &str, patterns: &[String]| {
            patterns.iter().map(|pattern| format!(" --{flag} '{}'", printable(pattern, 100))).collect::<String>()
        };
        let patterns = quoted("include", &self.include) + &quoted("exclude", &self.exclude);
        Error::not_found(format!("no repo in bucket '{bucket}'{under} matches{patterns}"))
            .hint("`hf-cache-sync list --remote` lists the repos in the bucket")
    }
}

/// Plans the pull of a repo, if there is anything to pull.
async fn examine(pull: &Pull<'_>, fallback: &Fallback, main: MainRevision, filter: &RepoFilter) -> (Row, Option<Work>) {
    let mut row = Row::new(main.key, main.query.as_ref());
    let (found, from_hub) = match (main.found, &main.query) {
        (Ok(found), _) => (found, false),
        (Err(failure), None) => return (row.with_failure(failure), None),
        (Err(failure), Some(query)) => match fallback.find(query, None, failure.clone()).await {
            Ok(found) if filter.allows(found.manifest.repo()) => (found, true),
            // A key of 0.1.0 does not contain the type, and the filter may exclude the type found on the Hub.
            Ok(_) => return (row.with_failure(failure), None),
            Err(error) => return (row.with_failure(error), None),
        },
    };
    row.set_revision(&found);
    match pull.decide(&found, from_hub).await {
        Ok(Decision::Gated(gated)) => {
            row.result = Outcome::Skipped;
            row.gated = Some(gated);
            (row, None)
        }
        Ok(Decision::Pull(plan)) => {
            row.present = plan.present;
            (row, Some(Work { found, plan: *plan, from_hub }))
        }
        Err(error) => (row.with_failure(error), None),
    }
}

impl Row {
    fn new(key: String, query: Option<&RepoQuery>) -> Row {
        Row {
            key,
            repo: query.map(|query| query.id.clone()),
            repo_type: query.and_then(|query| query.kind),
            revision: None,
            result: Outcome::Failed,
            source: None,
            size: 0,
            downloaded: Amount::default(),
            from_hub: Amount::default(),
            shared: Amount::default(),
            present: Amount::default(),
            notes: Vec::new(),
            gated: None,
            failures: Vec::new(),
        }
    }

    fn set_revision(&mut self, found: &Found) {
        let manifest = &found.manifest;
        (self.repo, self.repo_type) = (Some(manifest.repo().id.clone()), Some(manifest.repo().kind));
        self.revision = Some(manifest.revision().clone());
        self.size = manifest.total_size();
        self.notes.clone_from(&found.notes);
    }

    /// Returns the repo's name, or its key if only that is known.
    pub fn name(&self) -> String {
        match (&self.repo, self.repo_type) {
            (Some(id), Some(kind)) => RepoName::new(kind, id.clone()).to_string(),
            (Some(id), None) => id.to_string(),
            (None, _) => self.key.clone(),
        }
    }

    fn with_failure(mut self, error: Error) -> Row {
        self.failures.push(error);
        self
    }

    /// Records what would be pulled. `counted` holds the blobs that earlier rows would download.
    fn record_plan(&mut self, plan: &Plan, counted: &mut HashSet<BlobId>) {
        self.result = if plan.is_empty() { Outcome::Present } else { Outcome::Planned };
        for fetch in &plan.fetch {
            let shared = fetch.donor.is_some() || !counted.insert(fetch.blob);
            let amount = if shared { &mut self.shared } else { &mut self.downloaded };
            amount.add(fetch.size);
        }
    }

    /// Records what was pulled.
    fn record_outcome(&mut self, plan: &Plan, outcome: crate::engine::hydrate::Outcome) {
        let lost = outcome.lost();
        self.result = match outcome.failures.is_empty() {
            true if plan.is_empty() => Outcome::Present,
            true => Outcome::Pulled,
            false if lost < plan.manifest.blobs().len() => Outcome::Partial,
            false => Outcome::Failed,
        };
        self.source = Some(Source::of(&outcome.downloaded, &outcome.from_hub));
        self.downloaded = outcome.downloaded;
        self.from_hub = outcome.from_hub;
        self.notes.extend(outcome.notes);
        self.shared = outcome.shared;
        self.failures.extend(outcome.failures);
    }
}

impl Report {
    fn sum_rows(&mut self) {
        for row in &self.repos {
            self.downloaded += row.downloaded;
            self.from_hub += row.from_hub;
            self.notes.extend(row.notes.iter().cloned());
            self.shared += row.shared;
            self.present += row.present;
            for failure in &row.failures {
                // A failed blob that several repos need is reported once.
                if !self.failures.contains(failure) {
                    self.failures.push(failure.clone());
                }
            }
        }
    }
}
