//! Deleting from a bucket: looks, announces itself, looks again, and deletes what was planned both times. Refs go first,
//! then manifests, then blobs, so that nothing in the bucket ever leads to what is gone. Why a push on another machine loses
//! nothing: docs/bucket-format.md.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::Session;
use crate::bucket::census::Census;
use crate::bucket::client::{Bucket, Unfinished};
use crate::bucket::error::Failure;
use crate::bucket::keys;
use crate::bucket::notices::{self, Kind, LONGEST_REQUEST, Listed, Notice, Subject};
use crate::error::{Cause, Error, Result};
use crate::model::amount::Amount;
use crate::plan::deletion::{self as plan, Facts, KeepReason, ManifestDeletion, Options, Plan};
use crate::progress::Event;

/// Requests about uploads at once.
const AT_ONCE: usize = 16;
/// What a key needs to delete.
const DENIED_HINT: &str = "deleting needs the capability deleteFiles (B2) or the permission s3:DeleteObject; an object lock \
                           may refuse like this, too";

/// A bucket that was looked at, and what may be deleted from it.
pub struct Prepared {
    bucket: Bucket,
    census: Census,
    options: Options,
    /// Whether there are notices that nobody heeds any more.
    has_expired: bool,
    /// What would be deleted.
    pub plan: Plan,
    /// Whether the bucket keeps earlier versions, as far as the store tells.
    pub versioned: Option<bool>,
}

/// What was deleted.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Number of refs.
    pub refs: usize,
    /// Revisions.
    pub manifests: Vec<ManifestDeletion>,
    /// Blobs.
    pub blobs: Amount,
    /// Number of aborted uploads.
    pub uploads: usize,
    /// What stays although no manifest needs it.
    pub kept: BTreeMap<KeepReason, Amount>,
    /// Revisions that stay because a push is publishing them.
    pub busy: Vec<ManifestDeletion>,
    /// What failed.
    pub failures: Vec<Error>,
}

/// What pushes have announced that still count, and notices that have expired.
async fn announced(bucket: &Bucket, listed: &[Listed], now: SystemTime) -> Result<(Subject, Vec<String>)> {
    let (live, expired): (Vec<&Listed>, Vec<&Listed>) = listed.iter().partition(|notice| notice.is_live(now));
    let pushes = live.into_iter().filter(|notice| notice.kind == Kind::Push);
    let mut subject = Subject::default();
    notices::read(bucket, pushes).await?.into_iter().for_each(|one| subject.extend(one));
    Ok((subject, expired.into_iter().map(|notice| notice.key.clone()).collect()))
}

/// The unfinished uploads of blobs, those that are old with the time of their last change.
async fn unfinished(bucket: &Bucket, options: &Options, now: SystemTime) -> Result<Vec<Unfinished>> {
    let doing = format!("cannot list the unfinished uploads of bucket '{}'", bucket.name());
    let explain = |failure| bucket.explain(failure, &doing);
    let Some(uploads) = bucket.unfinished_uploads(keys::BLOBS).await.map_err(explain)? else { return Ok(Vec::new()) };
    let is_old = |upload: &Unfinished| {
        let age = upload.started.and_then(|started| now.duration_since(started).ok());
        keys::parse_blob(&upload.key).is_some() && age.is_some_and(|age| age >= options.grace)
    };
    let old = uploads.into_iter().filter(is_old).map(async |upload| {
        let started = bucket.last_change(&upload).await?;
        Ok(Unfinished { started, ..upload })
    });
    stream::iter(old).buffer_unordered(AT_ONCE).try_collect().await.map_err(explain)
}

/// Looks at the bucket, and plans. `removed` picks the manifests to remove, by their keys.
///
/// # Errors
/// When a request fails, or something in the bucket is not understood: then nothing may be deleted.
pub async fn prepare(
    session: &Session,
    mut options: Options,
    removed: impl FnOnce(&Census) -> Result<BTreeSet<String>>,
) -> Result<Prepared> {
    let bucket = session.bucket().await?;
    session.progress.event(Event::Step("reading the bucket's manifests"));
    // In this order: what a push has published since its notice was listed is in the census.
    let listed = notices::list(&bucket).await?;
    let now = bucket.store_time().unwrap_or(session.now);
    let (announced, expired) = announced(&bucket, &listed, now).await?;
    let (census, versioned) = tokio::join!(Census::take(&bucket, None), bucket.is_versioned());
    let census = census?;
    if options.everything {
        refuse_problems(&bucket, &census)?;
    }
    options.keep_blobs = !census.problems.is_empty();
    options.removed = removed(&census)?;
    let uploads = if options.everything { unfinished(&bucket, &options, now).await? } else { Vec::new() };
    let plan = plan::plan(&Facts { census: &census, announced: &announced, uploads: &uploads, now }, &options);
    let has_expired = options.everything && !expired.is_empty();
    Ok(Prepared { bucket, census, options, has_expired, plan, versioned })
}

/// Refuses to go on if the census is not complete.
fn refuse_problems(bucket: &Bucket, census: &Census) -> Result<()> {
    let Some(first) = census.problems.values().next() else { return Ok(()) };
    let more = match census.problems.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Err(Census::refusal(format!("nothing was deleted from bucket '{}'", bucket.name()), first, &more))
}

impl Prepared {
    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        self.bucket.name()
    }

    /// Deletes what was planned, as far as a second look confirms it.
    ///
    /// # Errors
    /// When nothing could be deleted at all; individual failures are part of the outcome.
    pub async fn execute(&self, session: &Session) -> Result<Outcome> {
        if !self.plan.deletes() && !self.has_expired {
            return Ok(Outcome { kept: self.plan.kept.clone(), busy: self.plan.busy.clone(), ..Outcome::default() });
        }
        session.progress.event(Event::Step("checking that nothing needs it"));
        let notice = Notice::write(&self.bucket, Kind::Deletion, &self.plan.subject()).await?;
        let mut deletion = Deletion {
            bucket: &self.bucket,
            notice,
            outcome: Outcome::default(),
            is_unanswered: false,
            is_stopped: false,
        };
        let (_, lost_before) = self.bucket.counts();
        let done = self.look_again(session, &mut deletion).await;
        let Deletion { notice, outcome, is_unanswered, .. } = deletion;
        let (_, lost) = self.bucket.counts();
        // A request without an answer may still delete something: then pushes wait until the notice has expired.
        if lost == lost_before && !is_unanswered {
            notice.remove(&self.bucket).await;
        }
        done.map(|()| outcome)
    }

    async fn look_again(&self, session: &Session, deletion: &mut Deletion<'_>) -> Result<()> {
        let bucket = &self.bucket;
        let listed = notices::list(bucket).await?;
        let Some(shown) = deletion.notice.store_time(&listed) else {
            return Err(Error::new(Cause::NotKept, format!("nothing was deleted from bucket '{}'", bucket.name()))
                .because("its listing does not show what was written just before, with its time")
                .hint(
                    "run it again; if it persists, the store's listings lag behind, and deleting is not safe there",
                ));
        };
        // Both are the store's. Of two that differ, the earlier makes fewer blobs old.
        let now = bucket.store_time().map_or(shown, |told| told.min(shown));
        let (announced, expired) = announced(bucket, &listed, now).await?;
        let look = async {
            let census = Census::take(bucket, Some(&self.census)).await?;
            if self.options.everything {
                refuse_problems(bucket, &census)?;
            }
            let everything = self.options.everything;
            let uploads = if everything { unfinished(bucket, &self.options, now).await? } else { Vec::new() };
            Ok((census, uploads))
        };
        let (census, uploads) = deletion.notice.keep_during(bucket, look).await?;
        // Pushes that did not heed it may have published since the census.
        deletion.notice.confirm(bucket).await?;
        let facts = Facts { census: &census, announced: &announced, uploads: &uploads, now };
        let keep_blobs = !census.problems.is_empty();
        let mut options = Options { keep_blobs, ..self.options.clone() };
        let changed = self.changed(&census, &plan::plan(&facts, &options));
        options.removed.retain(|key| !changed.contains(key));
        let mut plan = plan::plan(&facts, &options);
        plan.limit_to(&self.plan);
        let busy = self.plan.manifests.iter().filter(|one| changed.contains(&one.key)).cloned();
        deletion.outcome.busy = plan.busy.iter().cloned().chain(busy).collect();
        session.progress.event(Event::Step("deleting"));
        deletion.carry_out(plan, &census).await;
        if self.options.everything && deletion.outcome.failures.is_empty() {
            deletion.delete(&expired).await;
        }
        Ok(())
    }

    /// The revisions to remove that somebody has pushed again since the first look.
    fn changed(&self, census: &Census, plan: &Plan) -> HashSet<String> {
        let known: HashSet<&str> = self.plan.refs.iter().map(|one| one.key.as_str()).collect();
        let new_refs = plan.refs.iter().filter(|one| !known.contains(one.key.as_str())).map(|one| one.target.clone());
        let is_changed = |key: &&String| self.census.state.listed_manifest(key) != census.state.listed_manifest(key);
        new_refs.chain(self.options.removed.iter().filter(is_changed).cloned()).collect()
    }
}

/// A deletion under way.
struct Deletion<'a> {
    bucket: &'a Bucket,
    notice: Notice,
    outcome: Outcome,
    /// Whether a request was given up.
    is_unanswered: bool,
    /// Whether pushes may have taken it for over.
    is_stopped: bool,
}

impl Deletion<'_> {
    async fn carry_out(&mut self, plan: Plan, census: &Census) {
        let refs: Vec<String> = plan.refs.iter().map(|one| one.key.clone()).collect();
        let gone = self.delete(&refs).await;
        self.outcome.refs = gone.len();
        // A revision that a ref still names stays.
        let named: HashSet<&str> =
            plan.refs.iter().filter(|one| !gone.contains(&one.key)).map(|one| one.target.as_str()).collect();
        let manifests: Vec<String> =
            plan.manifests.iter().map(|one| one.key.clone()).filter(|key| !named.contains(key.as_str())).collect();
        let gone = self.delete(&manifests).await;
        let (removed, left): (Vec<_>, Vec<_>) = plan.manifests.into_iter().partition(|one| gone.contains(&one.key));
        let left = left.iter().filter_map(|one| census.manifests.get(&one.key));
        let needed: HashSet<_> = left.flat_map(|needs| needs.blobs.keys().chain(&needs.mentions)).copied().collect();
        self.outcome.manifests = removed;
        let blobs = plan.blobs.iter().filter(|one| !needed.contains(&one.blob));
        let sizes: BTreeMap<String, u64> = blobs.map(|one| (keys::blob(&one.blob), one.bytes)).collect();
        let blobs: Vec<String> = sizes.keys().cloned().collect();
        for key in self.delete(&blobs).await {
            self.outcome.blobs += Amount { blobs: 1, bytes: sizes[&key] };
        }
        self.outcome.kept = plan.kept;
        for upload in plan.uploads {
            let unfinished = Unfinished { key: upload.key, id: upload.id, started: None };
            match self.bucket.abort_upload(&unfinished).await {
                Ok(()) => self.outcome.uploads += 1,
                Err(failure) => {
                    let doing = format!("cannot abort an unfinished upload of {}", unfinished.key);
                    self.outcome.failures.push(explain(self.bucket, failure, &doing));
                }
            }
        }
    }

    /// Deletes objects; returns those that are gone. Stops when the store refuses all of a batch, and when other machines
    /// could take this deletion for over.
    async fn delete(&mut self, keys: &[String]) -> HashSet<String> {
        let mut gone = HashSet::new();
        let mut left = keys;
        while !left.is_empty() {
            if self.is_stopped {
                return gone;
            }
            if let Err(error) = self.notice.keep(self.bucket).await {
                self.is_stopped = self.notice.has_lapsed();
                self.outcome.failures.push(error);
                return gone;
            }
            let (batch, others) = left.split_at(left.len().min(self.bucket.delete_batch()));
            left = others;
            let mut request = pin!(tokio::time::timeout(LONGEST_REQUEST, self.bucket.delete_many(batch)));
            // Timeouts stand still while the machine sleeps. After that, nothing may be tried again.
            let answer = poll_fn(|context| match self.notice.has_lapsed() {
                true => Poll::Ready(None),
                false => request.as_mut().poll(context).map(Result::ok),
            });
            let Some(failed) = answer.await else {
                self.is_unanswered = true;
                let failure = Failure::new(Cause::Broken, "no answer in time");
                self.outcome.failures.push(explain(self.bucket, failure, &format!("cannot delete {}", batch[0])));
                return gone;
            };
            gone.extend(batch.iter().filter(|key| !failed.contains_key(*key)).cloned());
            let is_refused = failed.len() == batch.len();
            for (key, failure) in failed {
                self.outcome.failures.push(explain(self.bucket, failure, &format!("cannot delete {key}")));
            }
            if is_refused {
                return gone;
            }
        }
        gone
    }
}

fn explain(bucket: &Bucket, mut failure: Failure, doing: &str) -> Error {
    if failure.cause == Cause::Denied && failure.hint.is_none() {
        failure.hint = Some(DENIED_HINT.into());
    }
    bucket.explain(failure, doing)
}
