//! Deletes from a bucket: plans, announces the deletion, plans again, and deletes what was planned both times. Refs are
//! deleted first, then manifests, then blobs, so that nothing in the bucket ever names a deleted object.
//! docs/bucket-format.md explains why a push on another machine loses nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::{poll_fn, ready};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::Session;
use crate::bucket::census::Census;
use crate::bucket::client::{Bucket, Object, Unfinished};
use crate::bucket::keys;
use crate::bucket::notices::{self, DELETION_LIFE, Kind, LONGEST_REQUEST, Listed, Notice, Subject};
use crate::error::{Cause, Error, Failure, Result};
use crate::model::amount::Amount;
use crate::plan::deletion::{self as plan, Facts, KeepReason, ManifestDeletion, Options, Plan};
use crate::progress::Event;
use crate::when;

/// Maximum number of concurrent requests about uploads.
const CONCURRENCY: usize = 16;
/// Age at which a probe of `doctor` counts as left behind.
const PROBE_LIFE: Duration = Duration::from_secs(3600);
/// Hint for a key that may not delete.
const DENIED_HINT: &str = "deleting needs the capability deleteFiles (B2) or the permission s3:DeleteObject; an object lock \
                           may refuse like this, too";

/// A bucket whose content is known, and what may be deleted from it.
pub struct Prepared {
    bucket: Bucket,
    census: Census,
    options: Options,
    /// Probes that `doctor` could not remove.
    probes: Vec<String>,
    /// Whether there are expired notices to remove.
    has_expired: bool,
    /// The objects to delete.
    pub plan: Plan,
    /// Whether the bucket keeps earlier versions; `None` if the store does not say.
    pub versioned: Option<bool>,
}

/// The outcome of a deletion.
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
    /// Blobs that no manifest needs and that stay, by reason.
    pub kept: BTreeMap<KeepReason, Amount>,
    /// Revisions that stay because a push is publishing them.
    pub busy: Vec<ManifestDeletion>,
    /// Failures.
    pub failures: Vec<Error>,
}

/// Returns what running pushes have announced, and the keys of expired notices.
async fn read_announced(bucket: &Bucket, listed: &[Listed], now: SystemTime) -> Result<(Subject, Vec<String>)> {
    let (live, expired): (Vec<&Listed>, Vec<&Listed>) = listed.iter().partition(|notice| notice.is_live(now));
    let pushes = live.into_iter().filter(|notice| notice.kind == Kind::Push);
    let mut subject = Subject::default();
    notices::read(bucket, pushes).await?.into_iter().for_each(|one| subject.extend(one));
    Ok((subject, expired.into_iter().map(|notice| notice.key.clone()).collect()))
}

/// Returns the keys of old probes of `doctor`. It leaves one behind if it was killed, or if its key may not delete.
async fn old_probes(bucket: &Bucket, now: SystemTime) -> Result<Vec<String>> {
    let objects = bucket.list_objects(keys::PROBES).await?;
    let is_old = |object: &Object| keys::is_probe(&object.key) && when::is_past(object.modified, PROBE_LIFE, now);
    Ok(objects.into_iter().filter(is_old).map(|object| object.key).collect())
}

/// Returns the unfinished uploads of blobs that were started before the grace period, with the time of their last change.
async fn unfinished(bucket: &Bucket, options: &Options, now: SystemTime) -> Result<Vec<Unfinished>> {
    let doing = format!("cannot list the unfinished uploads of bucket '{}'", bucket.name());
    let explain = |failure| bucket.explain(failure, &doing);
    let Some(uploads) = bucket.unfinished_uploads(keys::BLOBS).await.map_err(explain)? else { return Ok(Vec::new()) };
    let old = uploads.into_iter().filter(|upload| plan::is_abandoned(upload, options.grace, now));
    let old = old.map(async |upload| {
        let started = bucket.last_change(&upload).await?;
        Ok(Unfinished { started, ..upload })
    });
    stream::iter(old).buffer_unordered(CONCURRENCY).try_collect().await.map_err(explain)
}

/// Reads the bucket and plans a deletion. `removed` returns the keys of the manifests to remove.
///
/// # Errors
/// If a request fails, or if something in the bucket is not understood, since nothing may be deleted then.
pub async fn prepare(
    session: &Session,
    mut options: Options,
    removed: impl FnOnce(&Census) -> Result<BTreeSet<String>>,
) -> Result<Prepared> {
    let bucket = session.bucket().await?;
    session.progress.event(Event::Step("reading the bucket's manifests"));
    // The notices first: what the pushes in them have published by then is in the census.
    let listed = notices::list(&bucket).await?;
    let now = bucket.store_time().unwrap_or(session.now);
    let (announced, expired) = read_announced(&bucket, &listed, now).await?;
    let (census, versioned) = tokio::join!(Census::take(&bucket, None), bucket.is_versioned());
    let census = census?;
    if options.everything {
        refuse_problems(&bucket, &census)?;
    }
    options.keep_blobs = !census.problems.is_empty();
    options.removed = removed(&census)?;
    let uploads = if options.everything { unfinished(&bucket, &options, now).await? } else { Vec::new() };
    let plan = plan::plan(&Facts { census: &census, announced: &announced, uploads: &uploads, now }, &options);
    let probes = if options.everything { old_probes(&bucket, now).await? } else { Vec::new() };
    let has_expired = options.everything && !expired.is_empty();
    Ok(Prepared { bucket, census, options, probes, has_expired, plan, versioned })
}

/// Returns an error if the census is incomplete.
fn refuse_problems(bucket: &Bucket, census: &Census) -> Result<()> {
    let Some(first) = census.problems.values().next() else { return Ok(()) };
    let more = match census.problems.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Err(Census::refusal(format!("nothing was deleted from bucket '{}'", bucket.name()), first, &more))
}

impl Prepared {
    /// Returns the bucket's name.
    pub fn bucket(&self) -> &str {
        self.bucket.name()
    }

    /// Deletes the planned objects that a second reading of the bucket confirms.
    ///
    /// # Errors
    /// If nothing could be deleted at all; individual failures are part of the outcome.
    pub async fn execute(&self, session: &Session) -> Result<Outcome> {
        if !self.plan.deletes() && !self.has_expired && self.probes.is_empty() {
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
        let lost_before = self.bucket.lost_changes();
        let done = self.confirm_and_delete(session, &mut deletion).await;
        let Deletion { notice, outcome, is_unanswered, .. } = deletion;
        // A request without an answer may still delete something. The notice then stays, and pushes wait until it expires.
        match self.bucket.lost_changes() == lost_before && !is_unanswered {
            true => notice.remove(&self.bucket).await,
            false => {
                let wait = DELETION_LIFE.as_secs() / 60;
                let note = format!(
                    "the store did not answer every request, so a deletion may still be in progress there: pushes that need \
                     what it deletes wait up to {wait} minutes"
                );
                session.progress.event(Event::Note(note));
            }
        }
        done.map(|()| outcome)
    }

    async fn confirm_and_delete(&self, session: &Session, deletion: &mut Deletion<'_>) -> Result<()> {
        let bucket = &self.bucket;
        let listed = notices::list(bucket).await?;
        let Some(shown) = deletion.notice.store_time(&listed) else {
            return Err(Error::new(Cause::NotKept, format!("nothing was deleted from bucket '{}'", bucket.name()))
                .because("its listing does not show an object that was just written, with its time")
                .hint(
                    "run it again; if it persists, the store's listings lag behind, and deleting is not safe there",
                ));
        };
        // Both times are the store's. If they differ, fewer blobs are old at the earlier one.
        let now = bucket.store_time().map_or(shown, |time| time.min(shown));
        let (announced, expired) = read_announced(bucket, &listed, now).await?;
        let reading = async {
            let census = Census::take(bucket, Some(&self.census)).await?;
            if self.options.everything {
                refuse_problems(bucket, &census)?;
            }
            let everything = self.options.everything;
            let uploads = if everything { unfinished(bucket, &self.options, now).await? } else { Vec::new() };
            Ok((census, uploads))
        };
        let (census, uploads) = deletion.notice.keep_during(bucket, reading).await?;
        // If the notice had expired, pushes may have published something since the census.
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
            deletion.delete(&[expired, self.probes.clone()].concat()).await;
        }
        Ok(())
    }

    /// Returns the manifests to remove that have been pushed again since the first reading.
    fn changed(&self, census: &Census, plan: &Plan) -> HashSet<String> {
        let known: HashSet<&str> = self.plan.refs.iter().map(|one| one.key.as_str()).collect();
        let new_refs = plan.refs.iter().filter(|one| !known.contains(one.key.as_str())).map(|one| one.target.clone());
        let is_changed = |key: &&String| self.census.state.listed_manifest(key) != census.state.listed_manifest(key);
        new_refs.chain(self.options.removed.iter().filter(is_changed).cloned()).collect()
    }
}

/// A deletion in progress.
struct Deletion<'a> {
    bucket: &'a Bucket,
    notice: Notice,
    outcome: Outcome,
    /// Whether a request was abandoned without an answer.
    is_unanswered: bool,
    /// Whether nothing more may be deleted, because the notice has expired or the store has stopped answering.
    is_stopped: bool,
}

impl Deletion<'_> {
    async fn carry_out(&mut self, plan: Plan, census: &Census) {
        let refs: Vec<String> = plan.refs.iter().map(|one| one.key.clone()).collect();
        let gone = self.delete(&refs).await;
        self.outcome.refs = gone.len();
        // A revision is kept as long as a ref names it.
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
            if self.is_stopped {
                return;
            }
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

    /// Deletes objects. Returns those that are gone. Stops if the store refuses a whole batch or stops answering, or if the
    /// notice may have expired.
    async fn delete(&mut self, keys: &[String]) -> HashSet<String> {
        let mut gone = HashSet::new();
        let mut left = keys;
        while !left.is_empty() && !self.is_stopped {
            if let Err(error) = self.notice.keep(self.bucket).await {
                self.is_stopped = self.notice.has_lapsed();
                self.outcome.failures.push(error);
                return gone;
            }
            let (batch, others) = left.split_at(left.len().min(self.bucket.delete_batch()));
            left = others;
            let mut request = pin!(tokio::time::timeout(LONGEST_REQUEST, self.bucket.delete_many(batch)));
            // Timeouts do not advance while the machine sleeps. Once the notice has expired, the request must not be
            // retried.
            let answer = poll_fn(|context| match self.notice.has_lapsed() {
                true => Poll::Ready(None),
                false => request.as_mut().poll(context).map(Result::ok),
            });
            let Some(failed) = answer.await else {
                (self.is_unanswered, self.is_stopped) = (true, true);
                self.report_unconfirmed(batch.iter(), Failure::new(Cause::Broken, "no answer in time"));
                return gone;
            };
            let (unanswered, refused): (BTreeMap<_, _>, BTreeMap<_, _>) =
                failed.into_iter().partition(|(_, failure)| failure.shared || failure.cause.is_transient());
            let unconfirmed = self.find_unconfirmed(unanswered.keys()).await;
            gone.extend(batch.iter().filter(|key| !refused.contains_key(*key) && !unconfirmed.contains(*key)).cloned());
            let has_failed_entirely = refused.len() + unconfirmed.len() == batch.len();
            self.is_stopped =
                unanswered.values().any(|failure| failure.shared) || (has_failed_entirely && !unconfirmed.is_empty());
            if let Some(failure) = unanswered.into_values().next().filter(|_| !unconfirmed.is_empty()) {
                self.report_unconfirmed(unconfirmed.iter(), failure);
            }
            self.report_refused(refused, batch.len());
            if has_failed_entirely {
                return gone;
            }
        }
        gone
    }

    /// Returns which of these objects the bucket still has, or may have. The store may have deleted some of them even though
    /// its answer did not arrive.
    async fn find_unconfirmed(&self, keys: impl Iterator<Item = &String>) -> BTreeSet<String> {
        let checks = stream::iter(keys).map(async |key| {
            let is_gone = matches!(self.bucket.head(key).await, Ok(None));
            (!is_gone).then(|| key.clone())
        });
        checks.buffer_unordered(CONCURRENCY).filter_map(ready).collect().await
    }

    /// Reports once that the store did not answer, no matter how many objects are affected.
    fn report_unconfirmed<'k>(&mut self, keys: impl Iterator<Item = &'k String>, failure: Failure) {
        let doing = format!("cannot confirm the deletion of {}", name_all(keys));
        self.outcome.failures.push(explain(self.bucket, failure, &doing));
    }

    /// Reports the objects that the store refused to delete; only once if it refused a whole batch for the same reason.
    fn report_refused(&mut self, refused: BTreeMap<String, Failure>, batch: usize) {
        let reasons: HashSet<_> = refused.values().map(|failure| (failure.cause, &failure.detail)).collect();
        let is_one = refused.len() == batch && reasons.len() == 1;
        let errors: Vec<(String, Failure)> = match is_one {
            true => {
                let names = name_all(refused.keys());
                refused.into_values().next().map(|failure| (names, failure)).into_iter().collect()
            }
            false => refused.into_iter().collect(),
        };
        for (name, failure) in errors {
            self.outcome.failures.push(explain(self.bucket, failure, &format!("cannot delete {name}")));
        }
    }
}

/// Returns the first key and the number of further ones.
fn name_all<'k>(mut keys: impl Iterator<Item = &'k String>) -> String {
    let first = keys.next().map_or("", String::as_str);
    match keys.count() {
        0 => first.to_string(),
        1 => format!("{first} and 1 more object"),
        more => format!("{first} and {more} more objects"),
    }
}

fn explain(bucket: &Bucket, mut failure: Failure, doing: &str) -> Error {
    if failure.cause == Cause::Denied && failure.hint.is_none() {
        failure.hint = Some(DENIED_HINT.into());
    }
    bucket.explain(failure, doing)
}
