//! What `pull` and `pull-all` share: from revisions that were found to plans, and from plans to a filled cache.

use std::time::SystemTime;

use super::hydrate::{self, Outcome};
use super::plan::{self, Plan};
use super::{local, look_gated};
use crate::cache::gated::Gated;
use crate::cache::layout::Layout;
use crate::cache::place::{self, LinkKind};
use crate::commands::Session;
use crate::error::Result;
use crate::remote::client::Bucket;
use crate::remote::lookup::Found;
use crate::remote::transfer::blocking;

/// What is to be done about a revision.
#[derive(Debug)]
pub enum Decision {
    /// Nothing: the repo looks gated.
    Gated(Gated),
    /// This.
    Pull(Plan),
}

/// How to carry plans out.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Requests in flight at most.
    pub workers: Option<usize>,
    /// Whether a blob is flushed to the disk before it becomes visible.
    pub sync: bool,
}

/// Looks at what is here and decides. With `verify`, the bytes of blobs that are here are hashed.
///
/// # Errors
/// When it cannot be told whether the repo is gated.
pub async fn decide(session: &Session, found: &Found, verify: bool) -> Result<Decision> {
    let (layout, found, allow_gated) = (session.layout(), found.clone(), session.config.team.allow_gated);
    blocking(move || {
        if !allow_gated && let Some(gated) = look_gated(&layout, &found.manifest.repo)? {
            return Ok(Decision::Gated(gated));
        }
        let state = local::look(&layout, &found.manifest, found.reference.as_ref(), verify);
        Ok(Decision::Pull(plan::plan(&layout, &found, &state)))
    })
    .await
}

/// Takes blobs from repos of this cache that have them.
pub async fn borrow(layout: &Layout, mut plans: Vec<Plan>) -> Vec<Plan> {
    let layout = layout.clone();
    blocking(move || {
        let donors = local::find_donors(&layout, &plans);
        plans.iter_mut().for_each(|plan| plan.borrow_from(&donors));
        plans
    })
    .await
}

/// Carries the plans out together; the outcomes are in their order. What is complete is only marked as used, which
/// a read-only cache allows.
///
/// # Errors
/// When there is not enough disk space, or the cache cannot be written to at all.
pub async fn carry_out(session: &Session, bucket: &Bucket, plans: &[Plan], options: Options) -> Result<Vec<Outcome>> {
    let (idle, busy): (Vec<usize>, Vec<usize>) = (0..plans.len()).partition(|index| plans[*index].is_empty());
    idle.iter().for_each(|index| mark_used(&plans[*index], session.now));
    let mut outcomes: Vec<Outcome> = plans.iter().map(|_| Outcome::default()).collect();
    if !busy.is_empty() {
        let layout = session.layout();
        let wanted: Vec<Plan> = busy.iter().map(|index| plans[*index].clone()).collect();
        local::check_space(&layout, &wanted.iter().collect::<Vec<_>>())?;
        let _lock = session.lock_shared().await?;
        let kind = LinkKind::probe(&layout)?;
        let context = session.transfers(bucket, options.workers, options.sync);
        let done = hydrate::hydrate(&context, &wanted, kind, session.now).await;
        busy.into_iter().zip(done).for_each(|(index, outcome)| outcomes[index] = outcome);
    }
    Ok(outcomes)
}

fn mark_used(plan: &Plan, now: SystemTime) {
    plan.used.iter().for_each(|path| place::mark_used(path, now));
}
