//! `rm`: removes repos and revisions from the local cache, by the same rules and the same engine as `prune`.

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::kind_of;
use super::prune::Deletions;
use crate::cache::inventory::Inventory;
use crate::cache::prune_facts;
use crate::cache::scan;
use crate::cache::select::{self, Selected};
use crate::engine::Session;
use crate::engine::evict::{self, Outcome};
use crate::engine::held;
use crate::error::{Error, Kind, Result};
use crate::model::ids::{RepoName, RepoSpec};
use crate::model::selection::Selection;
use crate::plan::prune::{self as plan, Agreement, Options, Plan, Removal, Skip};
use crate::progress::Event;
use crate::task::blocking;

/// An unfinished download that nobody has written to for this long, and whose lock nobody holds, is not going on.
const ABANDONED: Duration = Duration::from_secs(300);

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync rm org/name --dry-run       show what would be removed
  hf-cache-sync rm org/name dataset:org/name
  hf-cache-sync rm org/name -r v1.0         only this revision, with its refs
  hf-cache-sync rm org/name --require-remote --yes

Removes from this machine only; the bucket stays as it is. What other revisions,
other repos or links need stays, too, and so does a repo that another process
holds a lock in, or is downloading into. On a terminal, it shows what would be
removed and asks, unless --yes is given.";

/// Remove repos or revisions from the local cache
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repos to remove (org/name, dataset:org/name, org/name@revision, or the Hub's URL). Without a type, the model; if
    /// there is none, the only other type with that id
    #[arg(value_name = "REPO_ID", required = true)]
    pub repos: Vec<RepoSpec>,

    /// Remove only this revision: a branch, tag, PR ref, commit or abbreviated commit
    #[arg(long, short, value_name = "REV")]
    pub revision: Option<String>,

    /// Show what would be removed, but remove nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,

    /// Remove only what the bucket holds, so that a pull brings it back
    #[arg(long)]
    pub require_remote: bool,
}

/// The report of `rm`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// Whether the user was asked and declined, so that nothing was removed.
    pub declined: bool,
    /// Whether the bucket had to hold what was removed.
    pub require_remote: bool,
    /// Bytes of disk space freed, or that would be freed.
    pub freed: u64,
    /// What was removed.
    #[serde(flatten)]
    pub deleted: Deletions,
    /// What was kept, and why.
    pub skipped: Vec<Skip>,
    /// Notes for the user.
    pub notes: Vec<String>,
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

impl Report {
    /// Returns the kind of failure that determines the exit code. Anything that was requested and kept is a failure.
    pub fn failed(&self) -> Option<Kind> {
        let is_kept = !self.skipped.is_empty() && !self.declined;
        kind_of(&self.failures).or(is_kept.then_some(Kind::Failed))
    }

    /// Returns whether anything is removed.
    pub fn deletes(&self) -> bool {
        !self.deleted.is_empty()
    }

    /// Converts a preview into the report of a declined removal: nothing was removed, which is not a failure.
    pub fn into_declined(self) -> Self {
        let deleted = Deletions::default();
        Report { dry_run: false, declined: true, freed: 0, deleted, failures: Vec::new(), plan: None, ..self }
    }

    fn new(options: &Options, plan: Plan, done: Option<Outcome>, notes: Vec<String>) -> Report {
        let deleted = Deletions::new(&plan, done.as_ref());
        let (mut skipped, mut failures) = (plan.skips.clone(), plan.failures.clone());
        let freed = done.as_ref().map_or(plan.freed, |done| done.freed);
        let dry_run = done.is_none();
        if let Some(done) = done {
            skipped.extend(done.skips);
            failures.extend(done.failures);
        }
        Report {
            dry_run,
            declined: false,
            require_remote: options.held.is_some(),
            freed,
            deleted,
            skipped,
            notes,
            failures,
            seconds: 0.0,
            plan: dry_run.then_some(plan),
            was_shown: false,
            now: SystemTime::UNIX_EPOCH,
        }
    }
}

/// Returns what would be removed right now, without taking the lock, as in a dry run.
///
/// # Errors
/// See [`execute()`].
pub async fn preview(session: &Session, args: &Args) -> Result<Report> {
    run(session, &Args { dry_run: true, ..args.clone() }, None).await
}

/// Runs the command. If the user has confirmed the report in `shown`, nothing else is removed.
///
/// # Errors
/// When nothing can be removed at all, or a repo or revision is not in the cache; individual failures are in the report.
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
    let selection = Selection::of(args.repos.clone()).at_revision(args.revision.as_deref())?;
    let bucket = if args.require_remote { Some(session.bucket().await.map_err(nothing_removed)?) } else { None };
    let mut options = Options { orphan_grace: Duration::ZERO, temporary_grace: ABANDONED, ..Options::default() };
    let lock = match args.dry_run {
        true => None,
        false => evict::lock(session, &mut options, "`rm --dry-run` shows what could be removed").await?,
    };
    session.progress.event(Event::Step("scanning the cache"));
    let mut inventory = blocking(move || scan::scan(layout.root())).await?;
    // Names that are wrong are reported before the bucket is asked.
    let (removal, notes) = resolve(&inventory, &selection)?;
    if let Some(bucket) = &bucket {
        let examined = held::examine(session, bucket, inventory, selection).await;
        let (examined, held) = examined.map_err(nothing_removed)?;
        options.held = Some(held);
        inventory = examined;
    }
    let facts = blocking(move || prune_facts::gather(inventory)).await;
    let mut plan = plan::plan_removal(&facts, &removal, &options, session.now);
    if let Some(agreement) = &agreement {
        plan.limit_to(agreement);
    }
    let (facts, plan) = evict::add_statuses(facts, plan).await;
    let mut report = match args.dry_run {
        true => Report::new(&options, plan, None, notes),
        false => {
            let (plan, done) = evict::carry_out(session, facts, plan, bucket.as_ref(), &options, lock).await;
            Report::new(&options, plan, Some(done), notes)
        }
    };
    report.seconds = started.elapsed().as_secs_f64();
    report.now = session.now;
    Ok(report)
}

/// Adds to an error of the bucket what follows from it.
fn nothing_removed(error: Error) -> Error {
    Error { what: format!("nothing was removed: {}", error.what), ..error }
}

/// Finds what is to be removed, with notes for the user.
///
/// # Errors
/// When a repo or revision is not in the cache, or an id without a type may mean several repos.
fn resolve(inventory: &Inventory, selection: &Selection) -> Result<(Removal, Vec<String>)> {
    for spec in selection.repos.iter().filter(|spec| spec.query.kind.is_none()) {
        let alone = select::select(inventory, &Selection::of(vec![spec.clone()]))?;
        let names: Vec<&RepoName> = alone.repos.iter().map(|one| &one.repo.name).collect();
        if let [first, _, ..] = names.as_slice() {
            let kinds: Vec<&str> = names.iter().map(|name| name.kind.word()).collect();
            return Err(Error::usage(format!("{} may mean several repos", spec.query))
                .because(format!("this cache has a {} of that id", kinds.join(" and a ")))
                .hint(format!("name it with its type, as in {first}")));
        }
    }
    let Selected { repos, notes } = select::select(inventory, selection)?;
    Ok((repos.into_iter().map(|one| (one.repo.name.clone(), one.commits)).collect(), notes))
}
