//! `pull`: downloads a revision from the bucket into this cache.
//!
//! [`crate::bucket::lookup`] finds the revision, and [`crate::engine::pull`], shared with `pull-all`, does the rest.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use serde::Serialize;

use super::fallback::FallbackArgs;
use super::{TransferArgs, kind_of};
use crate::bucket::lookup;
use crate::cache::gated::Gated;
use crate::cache::layout::Layout;
use crate::cache::presence;
use crate::engine::Session;
use crate::engine::pull::{Decision, Options, Pull, Work};
use crate::error::{Error, Kind, Result, printable};
use crate::model::amount::Amount;
use crate::model::found::Found;
use crate::model::ids::{self, Commit, RefName, RepoName, RepoQuery, RepoSpec, RepoType};
use crate::plan::pull as plan;
use crate::progress::Event;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync pull org/name            the bucket's main
  hf-cache-sync pull org/name -r v1.0    a tag, a branch, a PR ref or a commit
  hf-cache-sync pull dataset:org/name --dry-run
  hf-cache-sync pull org/name --fallback hf-hub   else from the Hub
  hf-cache-sync pull org/name --no-sync  faster, for short-lived machines";

/// Download a revision into the cache and print its snapshot's path
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The repo (org/name, dataset:org/name, org/name@revision, or the Hub's URL)
    #[arg(value_name = "REPO_ID")]
    pub repo: RepoSpec,

    /// Branch, tag, PR ref or commit, which may be abbreviated if unambiguous [default: main]
    #[arg(short, long, value_name = "REVISION")]
    pub revision: Option<String>,

    /// The repo's type, if several types share the id
    #[arg(long, value_name = "TYPE", value_parser = TypeParser)]
    pub repo_type: Option<RepoType>,

    /// Show what would be downloaded, but download nothing
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub download: DownloadArgs,
}

/// Options that `pull` and `pull-all` share.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DownloadArgs {
    /// Hash blobs that are already in the cache, and download corrupt ones again
    #[arg(long)]
    pub verify: bool,

    /// Do not flush blobs to disk before they become visible: faster, for short-lived machines
    #[arg(long)]
    pub no_sync: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub fallback: FallbackArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub transfer: TransferArgs,
}

impl DownloadArgs {
    /// Returns what the engine is to do with them.
    pub fn options(&self) -> Options {
        Options { caps: self.transfer.caps(), sync: !self.no_sync, verify: self.verify }
    }
}

/// The report of `pull`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision.
    pub revision: Commit,
    /// The ref that named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<RefName>,
    /// The snapshot's folder.
    #[serde(serialize_with = "crate::lossy::path")]
    pub snapshot: PathBuf,
    /// Where the files came from.
    pub source: Source,
    /// Blobs downloaded, or to be downloaded.
    pub downloaded: Amount,
    /// The part of `downloaded` that came from the Hub.
    pub from_hub: Amount,
    /// Blobs shared with other repos of this cache.
    pub shared: Amount,
    /// Blobs already in the cache.
    pub present: Amount,
    /// Number of files in the bucket's manifest.
    pub files: usize,
    /// Number of files of the commit that were never pushed, according to its tree.
    pub files_not_in_bucket: usize,
    /// Set if the repo was skipped because it looks gated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gated: Option<Gated>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// What failed.
    pub failures: Vec<Error>,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Where the files of a pull came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The bucket.
    Bucket,
    /// The Hub.
    Hub,
    /// Both the bucket and the Hub.
    #[serde(rename = "bucket-and-hub")]
    Both,
    /// Neither: nothing had to be downloaded.
    Cache,
}

impl Source {
    /// Determines the source from the blobs downloaded and the part of them that came from the Hub.
    pub fn of(downloaded: &Amount, from_hub: &Amount) -> Source {
        match (downloaded.blobs, from_hub.blobs) {
            (0, _) => Source::Cache,
            (_, 0) => Source::Bucket,
            (all, hub) if all == hub => Source::Hub,
            _ => Source::Both,
        }
    }
}

impl Report {
    /// Turns a skipped gated repo into a failure; otherwise, a script would carry on without the files.
    fn into_gated(mut self, gated: Gated) -> Self {
        let name = format!("{}@{}", self.repo, self.revision.short());
        self.failures.push(
            Error::failed(format!("{name} was not pulled"))
                .because(format!("it looks gated, {}", gated.why()))
                .hint("set team.allow_gated: true if you may use it"),
        );
        self.gated = Some(gated);
        self
    }

    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        kind_of(&self.failures)
    }
}

/// Runs the command.
///
/// # Errors
/// When the revision cannot be found or nothing can be pulled; failures of individual blobs are in the report.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    let started = Instant::now();
    let query = with_type(&args.repo.query, args.repo_type)?;
    let revision = args.repo.revision_with(args.revision.as_deref())?;
    args.download.fallback.check()?;
    let bucket = session.bucket().await?;
    session.progress.event(Event::Step("looking up the revision"));
    let fallback = args.download.fallback.resolve(session, args.dry_run);
    let (mut found, from_hub) = match lookup::find(&bucket, &query, revision).await {
        Ok(found) => (found, false),
        Err(failure) => (fallback.find(&query, revision, failure).await?, true),
    };
    if let Some(path) = &args.repo.path {
        found.notes.push(format!("pulling the whole revision, not just {}", printable(path, 200)));
    }
    if let Some(number) = args.repo.discussion.filter(|_| revision.is_none()) {
        let repo = found.manifest.repo();
        found.notes.push(format!("pulling main; the pull request itself is {repo}@refs/pr/{number}"));
    }
    let layout = session.layout();
    presence::check_root(&layout)?;
    let pull = Pull::begin(session, &bucket, args.download.options(), fallback, args.dry_run).await;
    let plan = match pull.decide(&found, from_hub).await? {
        Decision::Gated(gated) => return Ok(report(&layout, found, args.dry_run).into_gated(gated)),
        Decision::Pull(plan) => plan,
    };
    let mut report = report(&layout, found.clone(), args.dry_run);
    report.present = plan.present;
    let mut work = [Work { found, plan: *plan, from_hub }];
    pull.borrow(&mut work).await;
    if args.dry_run {
        for fetch in &work[0].plan.fetch {
            let amount = if fetch.donor.is_some() { &mut report.shared } else { &mut report.downloaded };
            amount.add(fetch.size);
        }
        report.source = Source::of(&report.downloaded, &Amount::default());
    } else {
        let outcome = pull.carry_out(&mut work).await?.remove(0);
        report.downloaded = outcome.downloaded;
        report.from_hub = outcome.from_hub;
        report.shared = outcome.shared;
        report.source = Source::of(&outcome.downloaded, &outcome.from_hub);
        report.notes.extend(outcome.notes);
        report.failures = outcome.failures;
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Parses a repo type, ignoring case and accepting plurals. Help and completion show only the canonical words.
#[derive(Clone)]
struct TypeParser;

impl TypedValueParser for TypeParser {
    type Value = RepoType;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<RepoType, clap::Error> {
        match value.to_str().map(ids::repo_type) {
            Some(Ok(kind)) => Ok(kind),
            _ => EnumValueParser::<RepoType>::new().parse_ref(command, arg, value),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(RepoType::value_variants().iter().filter_map(ValueEnum::to_possible_value)))
    }
}

/// Combines the types in `REPO_ID` and `--repo-type`.
fn with_type(query: &RepoQuery, kind: Option<RepoType>) -> Result<RepoQuery> {
    match (query.kind, kind) {
        (Some(a), Some(b)) if a != b => {
            Err(Error::usage(format!("the id says {a} but --repo-type says {b}")).hint("remove one of them"))
        }
        (a, b) => Ok(RepoQuery { kind: a.or(b), id: query.id.clone() }),
    }
}

fn report(layout: &Layout, found: Found, dry_run: bool) -> Report {
    let manifest = &found.manifest;
    Report {
        dry_run,
        snapshot: layout.snapshot(manifest.repo(), manifest.revision()),
        files: manifest.files().len(),
        files_not_in_bucket: manifest.missing_from_tree(),
        repo: manifest.repo().clone(),
        revision: manifest.revision().clone(),
        reference: found.reference,
        source: Source::Cache,
        downloaded: Amount::default(),
        from_hub: Amount::default(),
        shared: Amount::default(),
        present: Amount::default(),
        gated: None,
        notes: found.notes.into_iter().chain(plan::unportable_note(manifest)).collect(),
        failures: Vec::new(),
        seconds: 0.0,
    }
}
