//! `pull`: downloads revisions from the bucket into this cache.
//!
//! [`crate::bucket::lookup`] finds each revision, and [`crate::engine::pull`], shared with `pull-all`, does the rest.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::fallback::FallbackArgs;
use super::pulled::{self, Outcome, Row, Source};
use super::{PathArgs, TransferArgs, kind_of};
use crate::bucket::client::Bucket;
use crate::bucket::lookup;
use crate::cache::gated::Gated;
use crate::cache::layout::Layout;
use crate::cache::presence;
use crate::engine::Session;
use crate::engine::fallback::Fallback;
use crate::engine::pull::{Decision, Options, Pull, Work};
use crate::error::{Error, Kind, Result, printable};
use crate::model::amount::Amount;
use crate::model::filter::PathFilter;
use crate::model::found::Found;
use crate::model::ids::{self, Commit, RefName, RepoName, RepoQuery, RepoSpec, RepoType};
use crate::model::selection::Selection;
use crate::plan::pull as plan;
use crate::progress::Event;

/// Number of revisions to look up concurrently.
const CONCURRENCY: usize = 8;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync pull org/name            the bucket's main
  hf-cache-sync pull org/name -r v1.0    a tag, a branch, a PR ref or a commit
  hf-cache-sync pull dataset:org/name --dry-run
  hf-cache-sync pull org/a org/b@v1.0    several repos; a path a line on stdout
  hf-cache-sync pull org/name --include '*.json' --include 'onnx/'
  hf-cache-sync pull org/name --exclude '*.bin'   all other files
  hf-cache-sync pull org/name --fallback hf-hub   else from the Hub
  hf-cache-sync pull org/name --no-sync  faster, for short-lived machines

With --include or --exclude, the snapshot is partial, as huggingface_hub leaves
it with allow_patterns. A later pull adds the files that it selects.";

/// Download revisions into the cache and print their snapshots' paths
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The repos (org/name, dataset:org/name, org/name@revision, or the Hub's URL)
    #[arg(value_name = "REPO_ID", required = true)]
    pub repos: Vec<RepoSpec>,

    /// Branch, tag, PR ref or commit, which may be abbreviated if unambiguous [default: main]. Only with one repo; with
    /// several, write org/name@revision
    #[arg(short, long, value_name = "REVISION")]
    pub revision: Option<String>,

    /// The repo's type, if several types share the id
    #[arg(long, value_name = "TYPE", value_parser = TypeParser)]
    pub repo_type: Option<RepoType>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub paths: PathArgs,

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
#[serde(untagged)]
pub enum Report {
    /// On one repo.
    One(Box<RevisionReport>),
    /// On several.
    Several(pulled::Report),
}

/// The report on one revision.
#[derive(Debug, Serialize)]
pub struct RevisionReport {
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
    /// Number of selected files in the bucket's manifest.
    pub files: usize,
    /// Number of files that `--include` and `--exclude` leave out, if there are such patterns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files_left_out: Option<usize>,
    /// Number of selected files of the commit that were never pushed, according to its tree.
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

impl RevisionReport {
    fn new(layout: &Layout, lookup: &Lookup, dry_run: bool) -> RevisionReport {
        let Lookup { found, files_left_out, files_not_in_bucket, .. } = lookup;
        let manifest = &found.manifest;
        RevisionReport {
            dry_run,
            snapshot: layout.snapshot(manifest.repo(), manifest.revision()),
            files: manifest.files().len(),
            files_left_out: *files_left_out,
            files_not_in_bucket: *files_not_in_bucket,
            repo: manifest.repo().clone(),
            revision: manifest.revision().clone(),
            reference: found.reference.clone(),
            source: Source::Cache,
            downloaded: Amount::default(),
            from_hub: Amount::default(),
            shared: Amount::default(),
            present: Amount::default(),
            gated: None,
            notes: found.notes.clone(),
            failures: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Turns a skipped gated repo into a failure; otherwise, a script would carry on without the files.
    fn into_gated(mut self, gated: Gated) -> Self {
        self.failures.push(gated_error(&self.repo, &self.revision, &gated));
        self.gated = Some(gated);
        self
    }
}

impl Report {
    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        match self {
            Report::One(one) => kind_of(&one.failures),
            // As for a single repo, if nothing could be found at all.
            Report::Several(several) if several.repos.iter().all(|row| row.revision.is_none()) => {
                let mut kinds = several.failures.iter().map(Error::kind);
                let first = kinds.next()?;
                if kinds.all(|kind| kind == first) { Some(first) } else { kind_of(&several.failures) }
            }
            Report::Several(several) => kind_of(&several.failures),
        }
    }
}

fn gated_error(repo: &RepoName, revision: &Commit, gated: &Gated) -> Error {
    Error::failed(format!("{repo}@{} was not pulled", revision.short()))
        .because(format!("it looks gated, {}", gated.why()))
        .hint("set team.allow_gated: true if you may use it")
}

/// Runs the command.
///
/// # Errors
/// When a single revision cannot be found or pulled; failures of individual blobs, and of one of several repos, are in
/// the report.
pub async fn execute(session: &Session, args: &Args) -> Result<Report> {
    let started = Instant::now();
    let selection = args.selection()?;
    args.download.fallback.check()?;
    let bucket = session.bucket().await?;
    session.progress.event(Event::Step(match selection.repos.as_slice() {
        [_] => "looking up the revision",
        _ => "looking up the revisions",
    }));
    let fallback = args.download.fallback.resolve(session, args.dry_run);
    match selection.repos.as_slice() {
        [one] => {
            let lookup = look_up(&bucket, &fallback, one, &selection.paths).await?;
            let mut report = pull_one(session, &bucket, args, fallback, lookup).await?;
            report.seconds = started.elapsed().as_secs_f64();
            Ok(Report::One(Box::new(report)))
        }
        _ => {
            let mut report = pull_several(session, &bucket, args, fallback, &selection).await?;
            report.seconds = started.elapsed().as_secs_f64();
            Ok(Report::Several(report))
        }
    }
}

async fn pull_one(
    session: &Session,
    bucket: &Bucket,
    args: &Args,
    fallback: Fallback,
    lookup: Lookup,
) -> Result<RevisionReport> {
    let layout = session.layout();
    presence::check_root(&layout)?;
    let pull = Pull::begin(session, bucket, args.download.options(), fallback, args.dry_run).await;
    let mut report = RevisionReport::new(&layout, &lookup, args.dry_run);
    let Lookup { found, from_hub, .. } = lookup;
    let plan = match pull.decide(&found, from_hub).await? {
        Decision::Gated(gated) => return Ok(report.into_gated(gated)),
        Decision::Pull(plan) => plan,
    };
    report.present = plan.present;
    let mut work = [Work { found, plan: *plan, from_hub }];
    pull.reuse_local(&mut work).await;
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
    Ok(report)
}

/// Pulls several repos together. One that fails does not stop the others.
async fn pull_several(
    session: &Session,
    bucket: &Bucket,
    args: &Args,
    fallback: Fallback,
    selection: &Selection,
) -> Result<pulled::Report> {
    let layout = session.layout();
    presence::check_root(&layout)?;
    let pull = Pull::begin(session, bucket, args.download.options(), fallback.clone(), args.dry_run).await;
    let decide = |spec: &RepoSpec| {
        let row = Row { requested: Some(spec.to_string()), ..Row::new(Some(&spec.query)) };
        let (pull, fallback, layout, spec) = (&pull, &fallback, &layout, spec.clone());
        async move {
            let lookup = match look_up(bucket, fallback, &spec, &selection.paths).await {
                Ok(lookup) => lookup,
                Err(error) => return (row.with_failure(error), None),
            };
            let Lookup { found, from_hub, files_left_out, files_not_in_bucket } = lookup;
            let (repo, revision) = (found.manifest.repo().clone(), found.manifest.revision().clone());
            let (mut row, work) = row.decide(pull, found, from_hub).await;
            row.snapshot = Some(layout.snapshot(&repo, &revision));
            row.files_left_out = files_left_out;
            if files_not_in_bucket > 0 {
                row.notes.push(format!(
                    "the bucket lacks {files_not_in_bucket} of the selected files of {repo}@{} (never pushed)",
                    revision.short()
                ));
            }
            // A script would carry on without the files.
            if let Some(gated) = &row.gated {
                row.failures.push(gated_error(&repo, &revision, gated));
            }
            (row, work)
        }
    };
    let decided: Vec<_> = selection.repos.iter().map(decide).collect();
    let decided = stream::iter(decided).buffered(CONCURRENCY).collect().await;
    let bucket = bucket.name().to_string();
    let mut report = pulled::Report { dry_run: args.dry_run, bucket, ..pulled::Report::default() };
    report.finish(pull, decided).await?;
    for row in &mut report.repos {
        if args.dry_run || !matches!(row.result, Outcome::Pulled | Outcome::Present) {
            row.snapshot = None;
        }
    }
    Ok(report)
}

/// A revision that was found, limited to the selected files.
struct Lookup {
    found: Found,
    from_hub: bool,
    files_left_out: Option<usize>,
    files_not_in_bucket: usize,
}

/// Finds a revision in the bucket, or else on the Hub.
async fn look_up(bucket: &Bucket, fallback: &Fallback, spec: &RepoSpec, paths: &PathFilter) -> Result<Lookup> {
    let revision = spec.revision.as_deref();
    let (mut found, from_hub) = match lookup::find(bucket, &spec.query, revision).await {
        Ok(found) => (found, false),
        Err(failure) => (fallback.find(&spec.query, revision, failure).await?, true),
    };
    if let Some(path) = &spec.path
        && paths.is_empty()
    {
        let path = printable(path, 200);
        found.notes.push(format!("pulling the whole revision, not just {path} (--include '{path}' selects it)"));
    }
    if let Some(number) = spec.discussion.filter(|_| revision.is_none()) {
        let repo = found.manifest.repo();
        found.notes.push(format!("pulling main; the pull request itself is {repo}@refs/pr/{number}"));
    }
    found.notes.extend(plan::unportable_note(&found.manifest));
    limit_to(found, from_hub, paths)
}

/// Limits a revision to the selected files.
///
/// # Errors
/// [`crate::error::Cause::NotFound`] if that is none of them.
fn limit_to(mut found: Found, from_hub: bool, paths: &PathFilter) -> Result<Lookup> {
    let manifest = &found.manifest;
    let files_not_in_bucket = manifest.missing_from_tree(paths);
    let Some(selected) = manifest.filtered(|file| paths.allows(&file.path)) else {
        let name = format!("{}@{}", manifest.repo(), manifest.revision().short());
        if files_not_in_bucket > 0 {
            return Err(Error::not_found(format!("no file of {name} in the bucket matches {paths}"))
                .because(format!("{files_not_in_bucket} of the commit do, but were never pushed"))
                .hint("push them from a machine that has them"));
        }
        let mut names: Vec<&str> = manifest.files().iter().map(|file| file.path.as_str()).collect();
        let more = names.len().saturating_sub(6);
        names.truncate(6);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return Err(Error::not_found(format!("no file of {name} matches {paths}"))
            .because(format!("it has {}{more}", names.join(", "))));
    };
    let unmatched = paths.unmatched_includes(manifest.files().iter().map(|file| &file.path));
    found.notes.extend(
        unmatched
            .map(|pattern| format!("no file of {} matches --include '{}'", manifest.repo(), printable(pattern, 100))),
    );
    let files_left_out = (!paths.is_empty()).then(|| manifest.files().len() - selected.files().len());
    found.manifest = selected;
    Ok(Lookup { found, from_hub, files_left_out, files_not_in_bucket })
}

impl Args {
    fn selection(&self) -> Result<Selection> {
        let mut repos: Vec<RepoSpec> = Vec::new();
        for spec in &self.repos {
            let query = with_type(&spec.query, self.repo_type)?;
            if !repos.is_empty() && is_revision(query.id.as_str()) && query.kind.is_none() {
                let (word, repo) = (printable(query.id.as_str(), 80), &repos[0].query);
                return Err(Error::usage(format!("{word} looks like a revision, not like a repo"))
                    .hint(format!("write `hf-cache-sync pull {repo} -r {word}`")));
            }
            let spec = RepoSpec { query, ..spec.clone() };
            if !repos.contains(&spec) {
                repos.push(spec);
            }
        }
        let paths = self.paths.filter()?;
        Selection { paths, ..Selection::of(repos) }.at_revision(self.revision.as_deref())
    }
}

/// Returns whether a word names a revision rather than a repo without an organisation.
fn is_revision(word: &str) -> bool {
    let is_version = word.strip_prefix(['v', 'V']).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let is_commit = (7..=40).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_hexdigit());
    is_version || is_commit || matches!(word, "main" | "master" | "dev")
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
