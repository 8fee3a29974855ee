//! `pull-all`: every repo whose `main` is in the bucket, filtered, as one plan: a blob that several repos need is
//! fetched once, and a repo that fails does not stop the others.
//!
//! [`crate::model::filter`] decides which repos (pure), [`crate::bucket::main_revisions`] finds them, the rest is the work of
//! [`crate::engine::pull`].

use std::collections::HashSet;
use std::time::Instant;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::fallback::FallbackArgs;
use super::pull::Source;
use super::{TransferArgs, kind_of};
use crate::bucket::main_revisions::{self, MainRevision};
use crate::cache::gated::Gated;
use crate::cache::presence;
use crate::engine::Session;
use crate::engine::fallback::Fallback;
use crate::engine::pull::{Decision, Options, Pull, Work};
use crate::error::{Error, Kind, Result, printable};
use crate::model::amount::Amount;
use crate::model::filter::Filter;
use crate::model::found::Found;
use crate::model::ids::{BlobId, Commit, RepoId, RepoName, RepoQuery, RepoType};
use crate::plan::pull::Plan;
use crate::progress::Event;

/// Repos that are looked at, or looked for on the Hub, at once.
const AT_ONCE: usize = 8;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync pull-all                             everything that has a main
  hf-cache-sync pull-all --include 'org/*' --exclude '*-GGUF'
  hf-cache-sync pull-all --include 'dataset:*' --limit 5 --dry-run
  hf-cache-sync pull-all --fallback hf-hub           the Hub where that fails";

/// Download every repo whose main is in the bucket
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Say what would be downloaded and stop there
    #[arg(long)]
    pub dry_run: bool,

    /// Only so many repos, after --include and --exclude
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = limit)]
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

    /// Do not wait for the disk before a blob becomes visible: faster, for short-lived machines
    #[arg(long)]
    pub no_sync: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub fallback: FallbackArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub transfer: TransferArgs,
}

fn limit(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a number of repos, 0 or more".to_string())
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
    /// What of that came from the Hub.
    pub from_hub: Amount,
    /// Shared with other repos of this cache.
    pub shared: Amount,
    /// Here already.
    pub present: Amount,
    /// What a user should know.
    pub notes: Vec<String>,
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
    /// What of that came from the Hub.
    pub from_hub: Amount,
    /// Shared with other repos of this cache.
    pub shared: Amount,
    /// Here already.
    pub present: Amount,
    /// What a user should know.
    pub notes: Vec<String>,
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
        match self.nothing {
            Some(_) => self.failures.first().map(crate::error::Error::kind),
            None => kind_of(&self.failures),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the bucket cannot be read or the cache not be written to; failures of single repos are in the report.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    let started = Instant::now();
    let filter = Filter::new(&args.include, &args.exclude)?;
    args.fallback.check()?;
    let bucket = session.bucket().await?;
    let layout = session.layout();
    presence::check_root(&layout)?;
    session.progress.event(Event::Step("looking up repos in the bucket"));
    let mains = main_revisions::find(&bucket, |repo| filter.allows(repo), args.limit).await?;
    let mut report = Report { dry_run: args.dry_run, bucket: bucket.name().to_string(), ..Report::default() };
    if mains.all.is_empty() {
        report.nothing = Some(if mains.any { Nothing::NoMatch } else { Nothing::Empty });
        // Of none, none were asked for.
        if args.limit != Some(0) {
            report.failures.push(args.found_nothing(bucket.name(), bucket.prefix(), mains.any));
        }
        return Ok(report);
    }

    let fallback = args.fallback.resolve(session, args.dry_run);
    let pull = Pull::begin(session, &bucket, args.options(), fallback.clone(), args.dry_run).await;
    let (mut work, mut rows_of_work) = (Vec::new(), Vec::new());
    let mut looked = stream::iter(mains.all).map(|main| look(&pull, &fallback, main, &filter)).buffered(AT_ONCE);
    while let Some((row, todo)) = looked.next().await {
        if let Some(todo) = todo {
            work.push(todo);
            rows_of_work.push(report.repos.len());
        }
        report.repos.push(row);
    }
    drop(looked);
    let plans = pull.borrow(work.iter().map(|work| work.plan.clone()).collect()).await;
    work.iter_mut().zip(&plans).for_each(|(work, plan)| work.plan = plan.clone());
    if args.dry_run {
        let mut told = HashSet::new();
        for (row, plan) in rows_of_work.into_iter().zip(&plans) {
            report.repos[row].would(plan, &mut told);
        }
    } else {
        let outcomes = pull.carry_out(work).await?;
        for ((row, plan), outcome) in rows_of_work.into_iter().zip(&plans).zip(outcomes) {
            report.repos[row].became(plan, outcome);
        }
    }
    report.add_up();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

impl Args {
    /// Why nothing was pulled: a wrong prefix or pattern is more likely than nothing to do.
    fn found_nothing(&self, bucket: &str, prefix: &str, any: bool) -> Error {
        let under = if prefix.is_empty() { String::new() } else { format!(" under the prefix '{prefix}'") };
        if !any {
            return Error::not_found(format!("bucket '{bucket}' has no repo with a main ref{under}"))
                .hint("push one first, or check --bucket and --prefix (storage.bucket, team.prefix)");
        }
        let quoted = |flag: &str, patterns: &[String]| {
            patterns.iter().map(|pattern| format!(" --{flag} '{}'", printable(pattern, 100))).collect::<String>()
        };
        let patterns = quoted("include", &self.include) + &quoted("exclude", &self.exclude);
        Error::not_found(format!("no repo in bucket '{bucket}'{under} passes{patterns}"))
            .hint("`hf-cache-sync list --remote` shows what is there")
    }

    fn options(&self) -> Options {
        Options { caps: self.transfer.caps(), sync: !self.no_sync, verify: self.verify }
    }
}

async fn look(pull: &Pull<'_>, fallback: &Fallback, main: MainRevision, filter: &Filter) -> (Row, Option<Work>) {
    let mut row = Row::new(main.key, main.query.as_ref());
    let (found, from_hub) = match (main.found, &main.query) {
        (Ok(found), _) => (found, false),
        (Err(failure), None) => return (row.failing(failure), None),
        (Err(failure), Some(query)) => match fallback.find(query, None, failure.clone()).await {
            Ok(found) if filter.allows(&found.manifest.repo) => (found, true),
            // A key of 0.1.0 does not tell the type; what the Hub has of that id may not be wanted.
            Ok(_) => return (row.failing(failure), None),
            Err(error) => return (row.failing(error), None),
        },
    };
    row.found(&found);
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
        Err(error) => (row.failing(error), None),
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

    fn found(&mut self, found: &Found) {
        let manifest = &found.manifest;
        (self.repo, self.repo_type) = (Some(manifest.repo.id.clone()), Some(manifest.repo.kind));
        self.revision = Some(manifest.revision.clone());
        self.size = manifest.total_size();
        self.notes.clone_from(&found.notes);
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

    /// `told` are the blobs that rows before this one would download.
    fn would(&mut self, plan: &Plan, told: &mut HashSet<BlobId>) {
        self.result = if plan.is_empty() { Outcome::Present } else { Outcome::Planned };
        for fetch in &plan.fetch {
            let shared = fetch.donor.is_some() || !told.insert(fetch.blob);
            let amount = if shared { &mut self.shared } else { &mut self.downloaded };
            amount.add(fetch.size);
        }
    }

    fn became(&mut self, plan: &Plan, outcome: crate::engine::hydrate::Outcome) {
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
    fn add_up(&mut self) {
        for row in &self.repos {
            self.downloaded += row.downloaded;
            self.from_hub += row.from_hub;
            self.notes.extend(row.notes.iter().cloned());
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
