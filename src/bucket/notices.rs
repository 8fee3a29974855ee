//! Coordinates pushes and deletions on different machines: each writes a notice into the bucket before it relies on
//! anything in it or deletes anything from it.
//!
//! - A push announces what it is about to publish, then reads the notices of deletions and waits for those that affect it.
//!   Only then does it check that its blobs are there. Pushes that write the same manifest take turns: see
//!   `engine::announce`.
//! - A deletion announces what it is about to delete, then reads the notices of pushes, lists the bucket again, and spares
//!   what they name. It removes its notice after its last request.
//!
//! The second of two writers sees the notice of the first, since a listing shows every completed write. The proof is in
//! docs/bucket-format.md. The notice of a killed process expires, by the store's clock.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::client::{Bucket, Object};
use super::keys;
use crate::error::{Cause, Error, Result};
use crate::model::ids::BlobId;
use crate::when;

/// How long the notice of a push is valid. A push publishes nothing with one that is older than half of this.
pub const PUSH_LIFE: Duration = Duration::from_secs(3600);
/// How long other pushes of the same revisions wait for a push after it last wrote its notice.
pub const TURN_LIFE: Duration = Duration::from_secs(12);
/// How long the notice of a deletion is valid. It is renewed when it is older than [`RENEWAL`], and no request takes longer
/// than [`LONGEST_REQUEST`].
pub const DELETION_LIFE: Duration = Duration::from_secs(300);
/// See [`DELETION_LIFE`].
pub const RENEWAL: Duration = Duration::from_secs(60);
/// See [`DELETION_LIFE`].
pub const LONGEST_REQUEST: Duration = Duration::from_secs(120);
/// Maximum number of notices that are read concurrently.
const CONCURRENCY: usize = 16;
/// Maximum size of a notice, in bytes.
const MAX_SIZE: u64 = 256 << 20;
/// Hint for a key that may not write or delete. A deletion starts by writing a notice.
const DENIED_HINT: &str = "`remote rm` and `remote gc` write to the bucket and delete from it: this needs the capabilities writeFiles and \
                           deleteFiles (B2) or the permissions s3:PutObject and s3:DeleteObject";

/// The operation that a notice announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A push, which is about to publish.
    Push,
    /// `remote rm` or `remote gc`, which is about to delete.
    Deletion,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Push, Kind::Deletion];

    /// Returns the prefix of its notices' names.
    fn word(self) -> &'static str {
        match self {
            Kind::Push => "push",
            Kind::Deletion => "deletion",
        }
    }

    /// Returns how long a notice is valid.
    fn life(self) -> Duration {
        match self {
            Kind::Push => PUSH_LIFE,
            Kind::Deletion => DELETION_LIFE,
        }
    }
}

/// The objects that are about to be published or deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Keys of refs.
    pub refs: BTreeSet<String>,
    /// Keys of manifests.
    pub manifests: BTreeSet<String>,
    /// Blobs.
    pub blobs: BTreeSet<BlobId>,
    /// Whether the push lets others write the same manifests first.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub gives_way: bool,
}

impl Subject {
    /// Returns whether the two have anything in common.
    pub fn overlaps(&self, other: &Subject) -> bool {
        !self.refs.is_disjoint(&other.refs)
            || !self.manifests.is_disjoint(&other.manifests)
            || !self.blobs.is_disjoint(&other.blobs)
    }

    /// Returns whether both name a manifest that only one push may write at a time.
    pub fn conflicts(&self, other: &Subject) -> bool {
        !self.gives_way && !other.gives_way && !self.manifests.is_disjoint(&other.manifests)
    }

    /// Adds everything from another one.
    pub fn extend(&mut self, other: Subject) {
        self.refs.extend(other.refs);
        self.manifests.extend(other.manifests);
        self.blobs.extend(other.blobs);
    }

    pub(crate) fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).expect("a subject is plain data").into()
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Subject> {
        let subject: Subject = serde_json::from_slice(bytes).ok()?;
        let all_begin_with = |keys: &BTreeSet<String>, start: &str| keys.iter().all(|key| key.starts_with(start));
        let manifests = keys::MANIFESTS.trim_end_matches('/');
        let is_valid = all_begin_with(&subject.refs, keys::ALL_REFS) && all_begin_with(&subject.manifests, manifests);
        is_valid.then_some(subject)
    }
}

/// A notice of this process.
#[derive(Debug)]
pub struct Notice {
    kind: Kind,
    key: String,
    content: Bytes,
    /// The moment before it was last written.
    written: Moment,
}

/// A point in time by both local clocks: the monotonic one may stop while the machine sleeps, the other may be set.
#[derive(Debug, Clone, Copy)]
struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    fn now() -> Moment {
        Moment { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// Returns how long ago it was, by the clock that shows more.
    fn age(&self) -> Duration {
        self.monotonic.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }
}

/// A notice in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// The kind of operation that wrote it.
    pub kind: Kind,
    /// Size in bytes. It changes whenever the content does.
    pub size: u64,
    /// When it was last written, by the store's clock.
    pub modified: Option<SystemTime>,
}

impl Listed {
    fn of(object: &Object) -> Option<Listed> {
        let word = keys::parse_notice(&object.key)?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.word() == word)?;
        Some(Listed { key: object.key.clone(), kind, size: object.size, modified: object.modified })
    }

    /// Returns whether it is still valid at `now`, by the store's clock. A notice of unknown age is valid.
    pub fn is_live(&self, now: SystemTime) -> bool {
        when::age(self.modified, now).is_none_or(|age| age <= self.kind.life())
    }

    /// Returns whether it had this content when it was listed. It may have been rewritten before it was read.
    pub fn had(&self, content: &Subject) -> bool {
        content.to_json().len() as u64 == self.size
    }

    /// Returns whether the push that wrote it conflicted with `ours` when it was listed. The content that was `read` may be
    /// newer: then its `gives_way` says nothing about that time.
    pub fn conflicts(&self, read: &Subject, ours: &Subject) -> bool {
        let gives_way = read.gives_way && self.had(read);
        Subject { gives_way, ..read.clone() }.conflicts(ours)
    }

    /// Returns whether the push that wrote it may be publishing at `now`. A push renews its notice while it publishes.
    pub fn may_be_publishing(&self, now: SystemTime) -> bool {
        let is_recent = |modified: SystemTime| now.duration_since(modified).unwrap_or_default() <= TURN_LIFE;
        let names_something = self.size > Subject::default().to_json().len() as u64;
        self.kind == Kind::Push && names_something && self.modified.is_some_and(is_recent)
    }
}

impl Notice {
    /// Writes a notice.
    ///
    /// # Errors
    /// If the request fails permanently.
    pub async fn write(bucket: &Bucket, kind: Kind, subject: &Subject) -> Result<Notice> {
        let key = keys::new_notice(kind.word(), SystemTime::now());
        let content = subject.to_json();
        let mut notice = Notice { kind, key, content, written: Moment::now() };
        notice.renew(bucket).await?;
        Ok(notice)
    }

    /// Writes it again, which restarts its validity.
    ///
    /// # Errors
    /// If the request fails permanently.
    pub async fn renew(&mut self, bucket: &Bucket) -> Result<()> {
        let now = Moment::now();
        let written = bucket.put_small(&self.key, self.content.clone()).await;
        written.map_err(|mut failure| {
            if self.kind == Kind::Deletion && failure.cause == Cause::Denied && failure.hint.is_none() {
                failure.hint = Some(DENIED_HINT.into());
            }
            bucket.explain(failure, &format!("cannot announce this run to other machines with the key {}", self.key))
        })?;
        self.written = now;
        Ok(())
    }

    /// Writes it with new content.
    ///
    /// # Errors
    /// If the request fails permanently.
    pub async fn change(&mut self, bucket: &Bucket, subject: &Subject) -> Result<()> {
        self.content = subject.to_json();
        self.renew(bucket).await
    }

    /// Returns its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Rewrites the notice of a push at intervals while `work` runs. This does not extend its validity: what it protects was
    /// checked when it was [renewed](Notice::renew).
    pub async fn repeat_during<T>(&self, bucket: &Bucket, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(TURN_LIFE / 3, &mut work).await {
                return done;
            }
            if let Err(failure) = bucket.put_small(&self.key, self.content.clone()).await {
                tracing::debug!(key = self.key, reason = failure.detail, "a notice could not be written again");
            }
        }
    }

    /// Returns how long ago it was last written.
    pub fn age(&self) -> Duration {
        self.written.age()
    }

    /// Returns whether the notice of a deletion may have expired, so that pushes ignore it. It is not renewed after that.
    pub fn has_lapsed(&self) -> bool {
        self.age() >= DELETION_LIFE
    }

    /// Renews the notice of a deletion if it is due.
    ///
    /// # Errors
    /// If the request fails, or if the notice may have expired: a push may then rely on anything.
    pub async fn keep(&mut self, bucket: &Bucket) -> Result<()> {
        let last = self.written;
        if self.age() > RENEWAL && !self.has_lapsed() {
            self.renew(bucket).await?;
            if last.age() >= DELETION_LIFE {
                self.written = last;
            }
        }
        if self.has_lapsed() { Err(lapsed(bucket)) } else { Ok(()) }
    }

    /// Keeps the notice of a deletion valid while `work` runs.
    ///
    /// # Errors
    /// Those of the work and of [`Notice::keep`].
    pub async fn keep_during<T>(&mut self, bucket: &Bucket, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let done = tokio::time::timeout(RENEWAL, &mut work).await;
            self.keep(bucket).await?;
            if let Ok(done) = done {
                return done;
            }
        }
    }

    /// Checks that the notice of a deletion is still in the bucket.
    ///
    /// # Errors
    /// If the listing fails or does not show it: it had expired, and another deletion has removed it.
    pub async fn confirm(&self, bucket: &Bucket) -> Result<()> {
        let is_there = list(bucket).await?.iter().any(|notice| notice.key == self.key);
        if is_there { Ok(()) } else { Err(lapsed(bucket)) }
    }

    /// Returns the store's time, inferred from a listing of this notice; `None` if the listing does not show it.
    pub fn store_time(&self, listed: &[Listed]) -> Option<SystemTime> {
        let own = listed.iter().find(|notice| notice.key == self.key)?;
        own.modified?.checked_add(self.age())
    }

    /// Removes it. A key that may not delete replaces it with an empty notice, which nobody waits for, until it expires.
    pub async fn remove(self, bucket: &Bucket) {
        let Err(failure) = bucket.delete(&self.key).await else { return };
        tracing::debug!(key = self.key, reason = failure.detail, "a notice could not be removed");
        if failure.cause.is_transient() {
            return;
        }
        if let Err(failure) = bucket.put_small(&self.key, Subject::default().to_json()).await {
            tracing::debug!(key = self.key, reason = failure.detail, "a notice could not be replaced");
        }
    }
}

/// Returns the error for a deletion whose notice may have expired.
pub fn lapsed(bucket: &Bucket) -> Error {
    Error::new(Cause::Changed, format!("the deletion from bucket '{}' was stopped", bucket.name()))
        .because("it was delayed for so long that other machines may rely on what it would delete")
        .hint("run it again")
}

/// Lists all notices.
///
/// # Errors
/// If the listing fails.
pub async fn list(bucket: &Bucket) -> Result<Vec<Listed>> {
    Ok(bucket.list_objects(keys::NOTICES).await?.iter().filter_map(Listed::of).collect())
}

/// Reads the content of notices. A notice that has been removed since it was listed is empty.
///
/// # Errors
/// If a request fails, or if a notice is not valid, so that its content is unknown.
pub async fn read<'a>(bucket: &Bucket, notices: impl IntoIterator<Item = &'a Listed>) -> Result<Vec<Subject>> {
    let reads = stream::iter(notices).map(async |notice| {
        let doing = format!("cannot read {}", notice.key);
        let small = bucket.get_small(&notice.key, MAX_SIZE).await.map_err(|failure| bucket.explain(failure, &doing))?;
        let Some(small) = small else { return Ok(Subject::default()) };
        Subject::parse(&small.bytes).ok_or_else(|| {
            Error::invalid(format!("the notice {} is not valid", notice.key))
                .because("a newer version of this program may have written it")
                .hint("update hf-cache-sync, or wait until the notice has expired")
        })
    });
    reads.buffer_unordered(CONCURRENCY).try_collect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(key: &str, second: u64) -> Option<Listed> {
        let modified = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
        Listed::of(&Object { key: key.into(), size: 100, etag: None, modified })
    }

    #[test]
    fn notices_are_recognised_by_their_keys_and_expire() {
        let hex = "0123456789abcdef0123456789abcdef";
        let push = listed(&format!("_hf_cache_sync_gc/push-{hex}.json"), 1000).unwrap();
        let deletion = listed(&format!("_hf_cache_sync_gc/deletion-{hex}.json"), 1000).unwrap();
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        assert_eq!((push.kind, push.is_live(at(4600)), push.is_live(at(4601))), (Kind::Push, true, false));
        assert_eq!(
            (deletion.kind, deletion.is_live(at(1300)), deletion.is_live(at(1301))),
            (Kind::Deletion, true, false)
        );
        assert!(push.is_live(at(1)), "nothing gets old when the clock goes back");
        let turns = [1012, 1013, 1].map(|second| push.may_be_publishing(at(second)));
        assert_eq!(turns, [true, false, true]);
        assert!(!Listed { size: 37, ..push.clone() }.may_be_publishing(at(1000)), "it names nothing");
        assert!(!deletion.may_be_publishing(at(1000)));
        let ageless = Listed { modified: None, ..push };
        assert!(ageless.is_live(at(99_999)) && !ageless.may_be_publishing(at(1000)));
        for key in ["_hf_cache_sync_gc/push-x.json", "_hf_cache_sync_gc/blobs/a", "blobs/push-0.json"] {
            assert_eq!(listed(key, 1), None, "{key}");
        }
    }

    #[test]
    fn a_delayed_deletion_lapses_by_either_clock() {
        let ago = |monotonic, wall| Notice {
            kind: Kind::Deletion,
            key: "_hf_cache_sync_gc/deletion-0.json".into(),
            content: Bytes::new(),
            written: Moment {
                monotonic: Instant::now().checked_sub(Duration::from_secs(monotonic)).unwrap(),
                wall: SystemTime::now() - Duration::from_secs(wall),
            },
        };
        assert!(!ago(0, 0).has_lapsed() && !ago(200, 200).has_lapsed());
        assert!(ago(300, 0).has_lapsed(), "the clock was set back");
        assert!(ago(0, 300).has_lapsed(), "the machine slept");
    }

    #[test]
    fn subjects_survive_json_and_anything_else_is_rejected() {
        let blob: BlobId = "a".repeat(64).parse().unwrap();
        let subject = Subject {
            refs: ["refs/a__b/main".to_string()].into(),
            manifests: ["manifests/x".to_string()].into(),
            blobs: [blob].into(),
            gives_way: false,
        };
        let waiting = Subject { gives_way: true, ..subject.clone() };
        assert!(subject.conflicts(&subject) && !subject.conflicts(&waiting) && !waiting.conflicts(&subject));
        let listed_as = |content: &Subject| {
            let key = format!("{}push-{:032x}.json", keys::NOTICES, 1);
            let size = content.to_json().len() as u64;
            Listed::of(&Object { key, size, etag: None, modified: None }).unwrap()
        };
        // A notice that was listed while its push was publishing may be read when the push gives way, and vice versa.
        assert!(listed_as(&subject).conflicts(&waiting, &subject) && listed_as(&waiting).conflicts(&subject, &subject));
        assert!(
            listed_as(&subject).conflicts(&subject, &subject) && !listed_as(&waiting).conflicts(&waiting, &subject)
        );
        assert!(listed_as(&subject).had(&subject) && !listed_as(&subject).had(&waiting));
        assert!(!listed_as(&subject).conflicts(&Subject::default(), &subject), "it has been removed");
        for subject in [&subject, &waiting, &Subject::default()] {
            assert_eq!(Subject::parse(&subject.to_json()).as_ref(), Some(subject));
        }
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"refs":[],"manifests":[],"blobs":["x"]}"#,
            r#"{"refs":[1],"manifests":[],"blobs":[]}"#,
            r#"{"refs":["a"],"manifests":[],"blobs":[]}"#,
            r#"{"refs":[],"manifests":["refs/a"],"blobs":[]}"#,
        ] {
            assert_eq!(Subject::parse(bad.as_bytes()), None, "{bad}");
        }
        let more = r#"{"refs":[],"x":[1,{"y":2}],"manifests":[],"blobs":[]}"#;
        assert_eq!(Subject::parse(more.as_bytes()), Some(Subject::default()));
        let only = |blobs| Subject { blobs, ..Subject::default() };
        assert!(subject.overlaps(&only([blob].into())) && !subject.overlaps(&only(BTreeSet::new())));
    }
}
