//! Protects a push from deletions and from other pushes. The push announces what it is about to publish and waits for any
//! that affect it. After that, everything it needs stays in the bucket until it has published, and no other push writes its
//! manifests meanwhile. The proofs are in docs/bucket-format.md.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use crate::bucket::client::Bucket;
use crate::bucket::keys;
use crate::bucket::notices::{self, Kind, Listed, Notice, PUSH_LIFE, Subject, TURN_LIFE};
use crate::error::Result;
use crate::plan::push::RevisionAction;
use crate::progress::{Event, Progress, waiting};

/// Pauses between listings of the notices.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How long to wait for another push before the user is notified.
const QUIET: Duration = Duration::from_secs(3);
/// How long to wait for other pushes in total.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// The announcement of a push to other machines.
pub struct Announcement {
    notice: Notice,
    subject: Subject,
}

/// What is known about other machines' notices.
#[derive(Default)]
struct Known {
    /// Deletions that do not affect this push.
    unrelated: HashSet<String>,
    /// Whether a push conflicts with this one, by key and size. A notice whose content changes also changes its size.
    competing: HashMap<(String, u64), bool>,
}

impl Announcement {
    /// Announces the publication of these revisions.
    ///
    /// # Errors
    /// If the notice cannot be written.
    pub async fn make(bucket: &Bucket, revisions: &[&RevisionAction]) -> Result<Announcement> {
        let mut subject = Subject::default();
        for revision in revisions {
            subject.manifests.insert(keys::manifest(&revision.ours.repo().id, revision.ours.revision()));
            subject.refs.extend(revision.refs.iter().map(|one| one.key.clone()));
            subject.blobs.extend(revision.ours.files().iter().map(|file| file.blob));
        }
        let notice = Notice::write(bucket, Kind::Push, &subject).await?;
        Ok(Announcement { notice, subject })
    }

    /// Writes it again, which restarts its validity.
    ///
    /// # Errors
    /// If the notice cannot be written.
    pub async fn renew(&mut self, bucket: &Bucket) -> Result<()> {
        self.notice.renew(bucket).await
    }

    /// Returns whether it will be valid for long enough; otherwise, it has to be renewed.
    pub fn is_fresh(&self) -> bool {
        self.notice.age() < PUSH_LIFE / 4
    }

    /// Returns whether anything may still be published under it.
    pub fn is_valid(&self) -> bool {
        self.notice.age() < PUSH_LIFE / 2
    }

    /// Waits until no deletion that affects this push is in progress, and no other push is writing one of its manifests.
    /// Deletions and pushes that begin later see the announcement.
    ///
    /// # Errors
    /// If a request fails.
    pub async fn wait_for_others(&mut self, bucket: &Bucket, progress: &dyn Progress) -> Result<()> {
        let mut known = Known::default();
        let mut pause = FIRST_PAUSE;
        let mut wait = None;
        let start = Instant::now();
        loop {
            // Others wait only for a recent notice.
            if self.notice.age() > TURN_LIFE / 3 {
                self.notice.renew(bucket).await?;
            }
            let listed = notices::list(bucket).await?;
            // Both times are the store's. If they differ, more notices are valid at the earlier one.
            let times = [self.notice.store_time(&listed), bucket.store_time()];
            let now = times.into_iter().flatten().min().unwrap_or_else(SystemTime::now);
            let deletion = self.find_deletion(bucket, &listed, now, &mut known).await?;
            let competing = match start.elapsed() < MAX_WAIT {
                true => self.find_competing(bucket, &listed, now, &mut known).await?,
                false => Vec::new(),
            };
            // The oldest goes first.
            let is_next = competing.iter().all(|key| *key > self.notice.key());
            if is_next == self.subject.gives_way {
                self.subject.gives_way = !is_next;
                self.notice.change(bucket, &self.subject).await?;
                if is_next {
                    continue;
                }
            }
            if deletion.is_none() && competing.is_empty() {
                return Ok(());
            }
            if let Some(key) = deletion
                && wait.is_none()
            {
                let key = format!("{}{key}", bucket.prefix());
                let note = "another machine is deleting something from the bucket that this push needs: waiting for it";
                progress.event(Event::Note(format!("{note} (its notice is {key})")));
                wait = Some(waiting("another machine that is deleting from the bucket".to_string()));
            }
            if !competing.is_empty() && wait.is_none() && start.elapsed() > QUIET {
                let note = "another machine is publishing the same revision: waiting for it";
                progress.event(Event::Note(note.into()));
                wait = Some(waiting("another machine that is publishing the same revision".to_string()));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Returns the key of the notice of a deletion that is in progress and affects this push.
    async fn find_deletion<'a>(
        &self,
        bucket: &Bucket,
        listed: &'a [Listed],
        now: SystemTime,
        known: &mut Known,
    ) -> Result<Option<&'a str>> {
        let mut found = None;
        for notice in listed.iter().filter(|notice| notice.kind == Kind::Deletion && notice.is_live(now)) {
            if known.unrelated.contains(&notice.key) {
                continue;
            }
            // A notice that affects this push is read every time: a deletion whose key may not delete marks its end in the
            // content.
            let overlaps = match notices::read(bucket, [notice]).await {
                Ok(subjects) => subjects.iter().any(|subject| subject.overlaps(&self.subject)),
                // It may delete anything.
                Err(error) if error.cause.is_invalid() => true,
                Err(error) => return Err(error),
            };
            match overlaps {
                true => found = Some(notice.key.as_str()),
                false => drop(known.unrelated.insert(notice.key.clone())),
            }
        }
        Ok(found)
    }

    /// Returns the keys of the notices of other pushes that are publishing, or about to publish, a revision of this push.
    async fn find_competing<'a>(
        &self,
        bucket: &Bucket,
        listed: &'a [Listed],
        now: SystemTime,
        known: &mut Known,
    ) -> Result<Vec<&'a str>> {
        let ours = Subject { gives_way: false, ..self.subject.clone() };
        let mut competing = Vec::new();
        for notice in listed.iter().filter(|notice| notice.may_be_publishing(now) && notice.key != self.notice.key()) {
            let is_competing = match known.competing.get(&(notice.key.clone(), notice.size)) {
                Some(is_competing) => *is_competing,
                None => {
                    let (is_competing, is_final) = match notices::read(bucket, [notice]).await {
                        Ok(subjects) => (
                            subjects.iter().any(|subject| notice.conflicts(subject, &ours)),
                            subjects.iter().all(|subject| notice.had(subject)),
                        ),
                        // A later version of this program may take turns differently.
                        Err(error) if error.cause.is_invalid() => (false, true),
                        Err(error) => return Err(error),
                    };
                    if is_final {
                        known.competing.insert((notice.key.clone(), notice.size), is_competing);
                    }
                    is_competing
                }
            };
            if is_competing {
                competing.push(notice.key.as_str());
            }
        }
        Ok(competing)
    }

    /// Makes other pushes of the same revisions wait while `work` runs.
    pub async fn keep_during<T>(&self, bucket: &Bucket, work: impl Future<Output = T>) -> T {
        self.notice.repeat_during(bucket, work).await
    }

    /// Announces the end of the push.
    pub async fn end(self, bucket: &Bucket) {
        self.notice.remove(bucket).await;
    }
}
