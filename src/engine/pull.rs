//! The part that `pull` and `pull-all` share: it plans revisions that were found, and carries the plans out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::fallback::Fallback;
use super::hydrate::{self, Outcome, Planned};
use crate::bucket::client::Bucket;
use crate::cache::gated::Gated;
use crate::cache::layout::Layout;
use crate::cache::lock::Lock;
use crate::cache::snapshot::LinkKind;
use crate::cache::state::LocalState;
use crate::cache::{donors, place, presence, repair, scan, shared, space};
use crate::engine::Session;
use crate::error::{Cause, Error, Result};
use crate::model::found::Found;
use crate::model::ids::{RefName, RepoName};
use crate::plan::pull::{self as plan, FetchReason, Plan};
use crate::progress::Event;
use crate::task::blocking;
use crate::transfer::Context;
use crate::transfer::download::allocated_bytes;
use crate::transfer::limit::Caps;

/// A revision to pull.
#[derive(Debug, Clone)]
pub struct Work {
    /// The result of the lookup.
    pub found: Found,
    /// Its plan.
    pub plan: Plan,
    /// Whether it was found on the Hub.
    pub from_hub: bool,
}

/// The decision about a revision.
#[derive(Debug)]
pub enum Decision {
    /// Skip it: the repo looks gated.
    Gated(Gated),
    /// Carry out this plan.
    Pull(Box<Plan>),
}

/// How to carry plans out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Limits for the transfers.
    pub caps: Caps,
    /// Whether a blob is flushed to the disk before it becomes visible.
    pub sync: bool,
    /// Whether local blobs are hashed.
    pub verify: bool,
}

/// A pull of one or more revisions into the cache.
pub struct Pull<'a> {
    session: &'a Session,
    bucket: &'a Bucket,
    options: Options,
    fallback: Fallback,
    /// Keeps `prune` from deleting files that the plans rely on. Failing to take it is an error only if something has to be
    /// written, since a complete cache may be read-only.
    lock: Result<Option<Lock>>,
    local: Arc<LocalState>,
    /// The context of transfers that this pull shares with others.
    shared: Option<Context>,
}

impl<'a> Pull<'a> {
    /// Takes the lock, unless this is a dry run. If no lock file exists yet, none is created for a pull that may have
    /// nothing to do: then [`carry_out`](Self::carry_out) takes the lock.
    pub async fn begin(
        session: &'a Session,
        bucket: &'a Bucket,
        options: Options,
        fallback: Fallback,
        dry_run: bool,
    ) -> Pull<'a> {
        let is_used = session.layout().tool_lock().exists();
        let lock = if dry_run || !is_used { Ok(None) } else { session.lock_shared().await.map(Some) };
        let local = Arc::new(LocalState::unscanned(session.layout()));
        Pull { session, bucket, options, fallback, lock, local, shared: None }
    }

    /// Shares the transfer context, including its limits, with other pulls.
    pub fn sharing(self, context: &Context) -> Self {
        Pull { shared: Some(context.clone()), ..self }
    }

    /// Checks the local files and makes the plan. A revision that the Hub gives to this user is not judged by its licence
    /// files, nor is one that needs no download.
    ///
    /// # Errors
    /// If it is unknown whether the repo is gated, or the system can store none of the file names.
    pub async fn decide(&self, found: &Found, from_hub: bool) -> Result<Decision> {
        let judge = !from_hub && !self.session.config.team.allow_gated;
        if !found.manifest.files().iter().any(|file| file.path.is_storable()) {
            return Err(Error::failed(format!("cannot pull {}", found.manifest.repo()))
                .because("this system cannot store a file of any of its names"));
        }
        let (local, found, verify) = (self.local.clone(), found.clone(), self.options.verify);
        blocking(move || {
            let plan = inspect_and_plan(&local, &found, verify);
            let repo = found.manifest.repo();
            let unknown = |error: Error| Error { what: error.what + ", so it is not pulled", ..error };
            if judge
                && !plan.fetch.is_empty()
                && let Some(gated) = local.gated(repo).map_err(unknown)?
            {
                return Ok(Decision::Gated(gated));
            }
            Ok(Decision::Pull(Box::new(plan)))
        })
        .await
    }

    /// Finds blobs that this cache has elsewhere, so that they are linked instead of downloaded.
    pub async fn reuse_local(&self, work: &mut [Work]) {
        let plans = reuse_local(&self.local, self.reach(), work.iter().map(|work| work.plan.clone()).collect()).await;
        work.iter_mut().zip(plans).for_each(|(work, plan)| work.plan = plan);
    }

    fn reach(&self) -> Reach {
        Reach { uses_store: self.uses_store(), only_names: self.shared.is_some() }
    }

    fn uses_store(&self) -> bool {
        let hub = &self.session.config.hub;
        !hub.no_symlinks && !hub.no_shared_blobs && shared::is_store(self.local.layout())
    }

    /// Carries the plans out together, and returns the outcomes in the same order. A complete revision is only marked as
    /// used, which works in a read-only cache. Also repairs refs of these repos that huggingface_hub cannot read.
    ///
    /// # Errors
    /// If there is not enough disk space, or the cache cannot be written to at all.
    pub async fn carry_out(self, work: &mut [Work]) -> Result<Vec<Outcome>> {
        let (layout, verify) = (self.session.layout(), self.options.verify);
        let mut outcomes = self.carry_out_plans(work).await?;
        for (work, outcome) in work.iter().zip(&mut outcomes) {
            let (layout, repo) = (layout.clone(), work.plan.manifest.repo().clone());
            outcome.failures.extend(work.plan.unstorable.iter().map(|path| {
                Error::failed(format!("cannot pull '{path}' of {repo}"))
                    .because("this system cannot store a file of that name")
            }));
            if verify && outcome.failures.is_empty() {
                outcome.notes.extend(work.plan.replaced_note());
            }
            outcome.notes.extend(blocking(move || repair_refs(&layout, &repo)).await);
        }
        Ok(outcomes)
    }

    async fn carry_out_plans(self, work: &mut [Work]) -> Result<Vec<Outcome>> {
        let reach = self.reach();
        let Pull { session, bucket, options, fallback, lock, shared, .. } = self;
        let layout = session.layout();
        let (idle, busy): (Vec<usize>, Vec<usize>) = (0..work.len()).partition(|index| work[*index].plan.is_empty());
        for index in idle {
            mark_used(&work[index].plan, session.now);
            hydrate::write_pin(&layout, &work[index].plan);
        }
        let mut outcomes: Vec<Outcome> = work.iter().map(|_| Outcome::default()).collect();
        if busy.is_empty() {
            return Ok(outcomes);
        }
        let lock = lock?;
        let room = check_space(&layout, &busy.iter().map(|index| &work[*index].plan).collect::<Vec<_>>())?;
        if let Some(note) = room {
            session.progress.event(Event::Note(note));
        }
        let _lock = match lock {
            Some(lock) => lock,
            // A `prune` may have run between planning and locking.
            None => {
                let was_used = layout.tool_lock().exists();
                let lock = session.lock_shared().await?;
                if was_used {
                    let plans = plan_again(&layout, work, &busy, options.verify, reach).await;
                    busy.iter().zip(plans).for_each(|(index, plan)| work[*index].plan = plan);
                }
                lock
            }
        };
        let kind = LinkKind::probe(&layout, session.config.hub.no_symlinks)?;
        let context = shared.unwrap_or_else(|| session.transfers(bucket, options.caps, options.sync));
        let planned =
            busy.iter().map(|index| Planned { plan: work[*index].plan.clone(), from_hub: work[*index].from_hub });
        let done = hydrate::hydrate(&context, &fallback, planned.collect(), kind, session.now).await;
        for (index, mut outcome) in busy.into_iter().zip(done) {
            if !outcome.failures.is_empty() {
                outcome.failures.extend(fallback.failure());
            }
            outcomes[index] = outcome;
        }
        Ok(outcomes)
    }
}

fn inspect_and_plan(local: &LocalState, found: &Found, verify: bool) -> Plan {
    let mut found = found.clone();
    let files = found.manifest.files().iter();
    let unstorable: Vec<_> = files.map(|file| &file.path).filter(|path| !path.is_storable()).cloned().collect();
    if let Some(storable) = found.manifest.filtered(|file| file.path.is_storable()) {
        found.manifest = storable;
    }
    let state = presence::inspect(local, &found, verify);
    Plan { unstorable, ..plan::plan(local.layout(), &found, &state) }
}

/// Logs each decision.
fn log_plan(plan: &Plan) {
    let repo = plan.manifest.repo();
    for fetch in &plan.fetch {
        let why = match fetch.reason {
            FetchReason::Missing => "not in the cache",
            FetchReason::WrongSize => "the local file has another size",
            FetchReason::Corrupt => "the local file is corrupt",
        };
        let from = fetch.donor.as_ref().map_or(String::new(), |donor| format!(", shared from {}", donor.repo));
        tracing::debug!("fetch {} ({repo}/{}, {} B): {why}{from}", fetch.blob, fetch.path, fetch.size);
    }
    let (revision, reference) = (plan.manifest.revision().short(), plan.write_ref.as_ref().map(RefName::as_str));
    let reference = reference.map_or(String::new(), |name| format!(", writes ref {name}"));
    tracing::debug!(
        "link {} files of {repo}@{revision}; {} blobs in the cache{reference}",
        plan.link.len(),
        plan.present.blobs
    );
}

/// The scope of the search for blobs elsewhere in this cache.
#[derive(Debug, Clone, Copy)]
struct Reach {
    /// Also in the cache-wide store.
    uses_store: bool,
    /// Only where blobs have their own names.
    only_names: bool,
}

/// Finds blobs that this cache has elsewhere.
async fn reuse_local(local: &Arc<LocalState>, reach: Reach, mut plans: Vec<Plan>) -> Vec<Plan> {
    let local = local.clone();
    blocking(move || {
        let missing = |plan: &Plan| plan.fetch.iter().map(|fetch| (fetch.blob, fetch.size)).collect();
        let missing: Vec<_> = plans.iter().map(|plan| (plan.manifest.repo(), missing(plan))).collect();
        let donors = match reach.only_names {
            true => donors::find_by_name(local.layout(), &missing),
            false => donors::find(&local, &missing),
        };
        for plan in &mut plans {
            plan.use_donors(local.layout(), &donors);
            if reach.uses_store {
                plan.use_store();
            }
            let repo = plan.manifest.repo().clone();
            for fetch in plan.fetch.iter_mut().filter(|fetch| fetch.donor.is_none()) {
                let in_store = |hash| donors::find_in_store(local.layout(), &repo, fetch.size, hash);
                fetch.donor = fetch.xet_hash.as_ref().and_then(in_store);
            }
            log_plan(plan);
        }
        plans
    })
    .await
}

/// Repairs refs, and returns notes on the outcome: a pull does not fail because of them.
fn repair_refs(layout: &Layout, repo: &RepoName) -> Vec<String> {
    let untidy = scan::untidy_refs(layout, repo);
    let notes = untidy.iter().filter_map(|name| match repair::repair_ref(layout, repo, name) {
        Ok(true) => Some(format!("repaired refs/{name} of {repo}: it had white space around its commit")),
        Ok(false) => None,
        Err(error) => Some(format!("refs/{name} of {repo} has white space around its commit: {error}")),
    });
    notes.collect()
}

/// Makes the plans of these revisions again, since the cache may have changed.
async fn plan_again(layout: &Layout, work: &[Work], indices: &[usize], verify: bool, reach: Reach) -> Vec<Plan> {
    let local = Arc::new(LocalState::unscanned(layout.clone()));
    let mut plans = Vec::new();
    for index in indices {
        let (local, found) = (local.clone(), work[*index].found.clone());
        plans.push(blocking(move || inspect_and_plan(&local, &found, verify)).await);
    }
    reuse_local(&local, reach, plans).await
}

fn mark_used(plan: &Plan, now: SystemTime) {
    plan.used.iter().for_each(|path| place::mark_used(path, now));
}

/// Checks that there is enough disk space for everything before the download starts. Returns a note if the free space is
/// unknown.
///
/// # Errors
/// [`Cause::DiskFull`] with the numbers.
pub(super) fn check_space(layout: &Layout, plans: &[&Plan]) -> Result<Option<String>> {
    let mut blobs = BTreeMap::new();
    for plan in plans {
        blobs.extend(plan.downloads().map(|fetch| (fetch.blob, fetch.size)));
    }
    let missing = blobs.iter().map(|(id, size)| size.saturating_sub(allocated_bytes(layout, id, *size)));
    let needed = missing.fold(0, u64::saturating_add);
    match space::available(layout.root()) {
        Some(free) if free < needed => Err(Error::new(Cause::DiskFull, "there is not enough disk space")
            .because(format!(
                "the download needs {}, {} are free at {}",
                bytesize::ByteSize(needed).display().iec(),
                bytesize::ByteSize(free).display().iec(),
                layout.root().display()
            ))
            .hint("free some, for example with `hf-cache-sync prune`, or use another cache directory")),
        None if needed > 0 => Ok(Some(format!(
            "the free space at {} is unknown, so it was not checked; {} are needed",
            layout.root().display(),
            bytesize::ByteSize(needed).display().iec()
        ))),
        _ => Ok(None),
    }
}
