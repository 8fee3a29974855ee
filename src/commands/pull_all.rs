//! `pull-all`: downloads every repo whose `main` is in the bucket and passes the filters. All repos are pulled together: a
//! blob that several of them need is downloaded once, and a repo that fails does not stop the others.
//!
//! [`crate::bucket::main_revisions`] finds the repos, [`crate::model::filter`] selects them (pure), and
//! [`crate::engine::pull`] does the rest.

use std::time::Instant;

use futures_util::{StreamExt, stream};

use super::pull::DownloadArgs;
use super::pulled::{EmptyReason, Report, Row};
use crate::bucket::main_revisions::{self, MainRevision};
use crate::cache::presence;
use crate::engine::Session;
use crate::engine::fallback::Fallback;
use crate::engine::pull::{Pull, Work};
use crate::engine::remembered::Remembered;
use crate::error::{Error, Result, printable};
use crate::model::filter::RepoFilter;
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

    /// Only repos whose id matches, such as 'org/*' or 'dataset:org/*'; can be repeated. These patterns select repos;
    /// to select files, use `pull --include`
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,

    /// Skip repos whose id matches; can be repeated. These patterns select repos, not files
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub download: DownloadArgs,
}

fn limit(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a number of repos, 0 or more".to_string())
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
    let memory = Remembered::new(layout, args.dry_run);
    let mains = main_revisions::find(&bucket, &memory, |repo| filter.allows(repo), args.limit).await?;
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
    let decided = stream::iter(mains.all).map(|main| examine(&pull, &fallback, main, &filter));
    let decided = decided.buffered(CONCURRENCY).collect().await;
    report.finish(pull, decided).await?;
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
    let row = Row { key: Some(main.key), ..Row::new(main.query.as_ref()) };
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
    row.decide(pull, found, from_hub).await
}
