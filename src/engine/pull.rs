//! What `pull` and `pull-all` share: from revisions that were found to plans, and from plans to a filled cache.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::fallback::{FallbackArgs, both, taken};
use super::hydrate::{self, Outcome};
use crate::bucket::client::Bucket;
use crate::cache::gated::Gated;
use crate::cache::layout::Layout;
use crate::cache::lock::Lock;
use crate::cache::place::{self, LinkKind};
use crate::cache::{donors, gated, space, target};
use crate::cache::{mend, scan};
use crate::engine::Session;
use crate::error::{Error, Result};
use crate::hub::Hub;
use crate::model::found::Found;
use crate::model::ids::{RefName, RepoName, RepoQuery};
use crate::plan::pull::{self as plan, FetchReason, Plan};
use crate::progress::Event;
use crate::task::blocking;
use crate::transfer::Context;
use crate::transfer::download::already_there;
use crate::transfer::limit::Caps;

/// A revision that is to be pulled.
#[derive(Debug, Clone)]
pub struct Work {
    /// What was found.
    pub found: Found,
    /// What is to be done.
    pub plan: Plan,
    /// The Hub, where that was what knew it.
    pub hub: Option<Hub>,
}

/// What is to be done about a revision.
#[derive(Debug)]
pub enum Decision {
    /// Nothing: the repo looks gated.
    Gated(Gated),
    /// This.
    Pull(Box<Plan>),
}

/// How to carry plans out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// What the transfers may use.
    pub caps: Caps,
    /// Whether a blob is flushed to the disk before it becomes visible.
    pub sync: bool,
    /// Whether blobs that are here are hashed.
    pub verify: bool,
    /// What to do when the bucket fails.
    pub fallback: FallbackArgs,
}

/// Asks the Hub for what the bucket does not give, where that is wanted; a note says so.
///
/// # Errors
/// The bucket's failure, or both.
pub async fn or_on_hub(
    session: &Session,
    found: Result<Found>,
    query: &RepoQuery,
    revision: Option<&str>,
    fallback: FallbackArgs,
) -> Result<(Found, Option<Hub>)> {
    let failure = match found {
        Ok(found) => return Ok((found, None)),
        Err(failure) if !fallback.covers(&failure) => return Err(failure),
        Err(failure) => failure,
    };
    session.progress.event(Event::Step("asking the Hub"));
    let hub = fallback.connect(session)?;
    let mut found = hub.find(query, revision).await.map_err(|second| both(&failure, second))?;
    found.notes.push(taken(&failure));
    Ok((found, Some(hub)))
}

/// Keeps `prune` out from the first look at the cache until the last file is in place: what is found here must stay.
/// Not having the lock is an error only where something has to be written, since a complete cache may be read-only. Nor
/// is a first one made for a pull that has nothing to do: then [`carry_out`] takes it.
pub async fn lock(session: &Session, dry_run: bool) -> Result<Option<Lock>> {
    let is_used = session.layout().tool_lock().exists();
    if dry_run || !is_used { Ok(None) } else { session.lock_shared().await.map(Some) }
}

/// Looks at what is here and decides. What the Hub gives to this user is not judged again by its licence files, nor is
/// a revision of which nothing has to come.
///
/// # Errors
/// When it cannot be told whether the repo is gated, or the system cannot hold any of the file names.
pub async fn decide(session: &Session, found: &Found, from_hub: bool, verify: bool) -> Result<Decision> {
    let judge = !from_hub && !session.config.team.allow_gated;
    if !found.manifest.files.iter().any(|file| file.path.is_storable()) {
        return Err(Error::failed(format!("cannot pull {}", found.manifest.repo))
            .because("this system cannot store a file of any of its names"));
    }
    let (layout, found) = (session.layout(), found.clone());
    blocking(move || {
        let plan = look_and_plan(&layout, &found, verify);
        if judge
            && !plan.fetch.is_empty()
            && let Some(gated) = gated::look_at_repo(&layout, &found.manifest.repo)?
        {
            return Ok(Decision::Gated(gated));
        }
        Ok(Decision::Pull(Box::new(plan)))
    })
    .await
}

fn look_and_plan(layout: &Layout, found: &Found, verify: bool) -> Plan {
    let mut found = found.clone();
    let mut unstorable = Vec::new();
    found.manifest.files.retain(|file| {
        let storable = file.path.is_storable();
        if !storable {
            unstorable.push(file.path.clone());
        }
        storable
    });
    let state = target::look(layout, &found, verify);
    Plan { unstorable, ..plan::plan(layout, &found, &state) }
}

/// Tells each decision to the log.
fn tell(plan: &Plan) {
    let repo = &plan.manifest.repo;
    for fetch in &plan.fetch {
        let why = match fetch.reason {
            FetchReason::Missing => "not here",
            FetchReason::WrongSize => "what is here has another size",
            FetchReason::Corrupt => "what is here is corrupt",
        };
        let from = fetch.donor.as_ref().map_or(String::new(), |donor| format!(", shared from {}", donor.repo));
        tracing::debug!("fetch {} ({repo}/{}, {} B): {why}{from}", fetch.blob, fetch.path, fetch.size);
    }
    let (revision, reference) = (plan.manifest.revision.short(), plan.write_ref.as_ref().map(RefName::as_str));
    let reference = reference.map_or(String::new(), |name| format!(", writes ref {name}"));
    tracing::debug!(
        "link {} files of {repo}@{revision}; {} blobs here{reference}",
        plan.link.len(),
        plan.present.blobs
    );
}

/// Takes blobs from repos of this cache that have them.
pub async fn borrow(layout: &Layout, mut plans: Vec<Plan>) -> Vec<Plan> {
    let layout = layout.clone();
    blocking(move || {
        let lacking = |plan: &Plan| plan.fetch.iter().map(|fetch| (fetch.blob, fetch.size)).collect();
        let lacking: Vec<_> = plans.iter().map(|plan| (&plan.manifest.repo, lacking(plan))).collect();
        let donors = donors::find(&layout, &lacking);
        plans.iter_mut().for_each(|plan| plan.borrow_from(&layout, &donors));
        plans.iter().for_each(tell);
        plans
    })
    .await
}

/// Carries the plans, made under this `lock`, out together, those of the bucket first; the outcomes are in their order.
/// What is complete is only marked as used, which a read-only cache allows. What the bucket does not give comes from
/// the Hub, where that is wanted. Refs of these repos that huggingface_hub could not read are mended.
///
/// # Errors
/// When there is not enough disk space, or the cache cannot be written to at all.
pub async fn carry_out(
    session: &Session,
    bucket: &Bucket,
    lock: Result<Option<Lock>>,
    work: &mut [Work],
    options: Options,
) -> Result<Vec<Outcome>> {
    let mut outcomes = carry_out_plans(session, bucket, lock, work, options).await?;
    for (work, outcome) in work.iter().zip(&mut outcomes) {
        let (layout, repo) = (session.layout(), work.plan.manifest.repo.clone());
        outcome.notes.extend(blocking(move || mend_refs(&layout, &repo)).await);
        outcome.failures.extend(work.plan.unstorable.iter().map(|path| {
            Error::failed(format!("cannot pull '{path}' of {}", work.plan.manifest.repo))
                .because("this system cannot store a file of that name")
        }));
    }
    Ok(outcomes)
}

/// Says what was mended, or could not be: no pull fails for that.
fn mend_refs(layout: &Layout, repo: &RepoName) -> Vec<String> {
    let untidy = scan::untidy_refs(layout, repo);
    let notes = untidy.iter().filter_map(|name| match mend::reference(layout, repo, name) {
        Ok(true) => Some(format!("mended refs/{name} of {repo}: it had white space around its commit")),
        Ok(false) => None,
        Err(error) => Some(format!("refs/{name} of {repo} has white space around its commit: {error}")),
    });
    notes.collect()
}

async fn carry_out_plans(
    session: &Session,
    bucket: &Bucket,
    lock: Result<Option<Lock>>,
    work: &mut [Work],
    options: Options,
) -> Result<Vec<Outcome>> {
    let (idle, busy): (Vec<usize>, Vec<usize>) = (0..work.len()).partition(|index| work[*index].plan.is_empty());
    for index in idle {
        mark_used(&work[index].plan, session.now);
        hydrate::write_pin(&session.layout(), &work[index].plan);
    }
    let mut outcomes: Vec<Outcome> = work.iter().map(|_| Outcome::default()).collect();
    if busy.is_empty() {
        return Ok(outcomes);
    }
    let layout = session.layout();
    let lock = lock?;
    let room = check_space(&layout, &busy.iter().map(|index| &work[*index].plan).collect::<Vec<_>>())?;
    if let Some(note) = room {
        session.progress.event(Event::Note(note));
    }
    let _lock = match lock {
        Some(lock) => lock,
        // A `prune` may have been here between the look and the lock.
        None => {
            let was_used = layout.tool_lock().exists();
            let lock = session.lock_shared().await?;
            if was_used {
                let plans = plan_again(&layout, work, &busy, options.verify).await;
                busy.iter().zip(plans).for_each(|(index, plan)| work[*index].plan = plan);
            }
            lock
        }
    };
    let kind = LinkKind::probe(&layout, session.config.hub.no_symlinks)?;
    let context = session.transfers(bucket, options.caps, options.sync);

    let (from_hub, from_bucket): (Vec<usize>, Vec<usize>) =
        busy.into_iter().partition(|index| work[*index].hub.is_some());
    let plans: Vec<Plan> = from_bucket.iter().map(|index| work[*index].plan.clone()).collect();
    let done = hydrate::hydrate(&context, &plans, kind, session.now).await;
    from_bucket.iter().zip(done).for_each(|(index, outcome)| outcomes[*index] = outcome);

    let mut left = from_hub;
    left.extend(from_bucket.iter().filter(|index| options.fallback.covers_all(&outcomes[**index].failures)));
    left.sort_unstable();
    let known = work.iter().find_map(|work| work.hub.clone());
    let hub = match (left.is_empty(), known) {
        (true, _) => return Ok(outcomes),
        (_, Some(hub)) => Ok(hub),
        (_, None) => options.fallback.connect(session),
    };
    match hub {
        Ok(hub) => {
            let context = Context { hub: Some(hub), ..context };
            finish_from_hub(session, &context, work, &left, kind, options.verify, &mut outcomes).await;
        }
        Err(error) => left.iter().for_each(|index| outcomes[*index].failures.push(error.clone())),
    }
    Ok(outcomes)
}

/// Plans for these anew, since what is here has changed, or may have.
async fn plan_again(layout: &Layout, work: &[Work], indices: &[usize], verify: bool) -> Vec<Plan> {
    let mut plans = Vec::new();
    for index in indices {
        let (layout, found) = (layout.clone(), work[*index].found.clone());
        plans.push(blocking(move || look_and_plan(&layout, &found, verify)).await);
    }
    borrow(layout, plans).await
}

async fn finish_from_hub(
    session: &Session,
    context: &Context,
    work: &[Work],
    left: &[usize],
    kind: LinkKind,
    verify: bool,
    outcomes: &mut [Outcome],
) {
    session.progress.event(Event::Step("asking the Hub for what the bucket does not give"));
    let plans = plan_again(&session.layout(), work, left, verify).await;
    let done = hydrate::hydrate(context, &plans, kind, session.now).await;
    for (index, second) in left.iter().zip(done) {
        let first = std::mem::take(&mut outcomes[*index]);
        outcomes[*index] = joined(first, second);
    }
}

/// What became of a plan by the bucket and then by the Hub.
fn joined(bucket: Outcome, hub: Outcome) -> Outcome {
    let mut all = hub;
    all.from_hub = all.downloaded;
    all.downloaded += bucket.downloaded;
    all.shared += bucket.shared;
    if let Some(first) = bucket.failures.first() {
        all.failures = all.failures.into_iter().map(|second| both(first, second)).collect();
    }
    if all.failures.is_empty() {
        all.notes = bucket.failures.iter().map(taken).collect();
    }
    all
}

fn mark_used(plan: &Plan, now: SystemTime) {
    plan.used.iter().for_each(|path| place::mark_used(path, now));
}

/// Makes sure that the disk can take everything, before the first byte. Where the system does not tell, a note says so.
///
/// # Errors
/// [`crate::error::Kind::Failed`] with the numbers.
fn check_space(layout: &Layout, plans: &[&Plan]) -> Result<Option<String>> {
    let mut blobs = BTreeMap::new();
    for plan in plans {
        blobs.extend(plan.downloads().map(|fetch| (fetch.blob, fetch.size)));
    }
    let needed: u64 = blobs.iter().map(|(id, size)| size.saturating_sub(already_there(layout, id, *size))).sum();
    match space::available(layout.root()) {
        Some(free) if free < needed => Err(Error::failed("there is not enough disk space")
            .because(format!(
                "the download needs {}, {} are free at {}",
                bytesize::ByteSize(needed).display().iec(),
                bytesize::ByteSize(free).display().iec(),
                layout.root().display()
            ))
            .hint("free some, for example with `hf-cache-sync prune`, or use another cache directory")),
        None if needed > 0 && cfg!(unix) => Ok(Some(format!(
            "the free space at {} is not known: going on without a check, {} are needed",
            layout.root().display(),
            bytesize::ByteSize(needed).display().iec()
        ))),
        _ => Ok(None),
    }
}
