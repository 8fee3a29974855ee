//! A push beside deletions: it announces what it is about to publish, and waits for those deletions that concern it. What
//! is in the bucket after that stays there until it is published. Why: docs/bucket-format.md.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::bucket::client::Bucket;
use crate::bucket::keys;
use crate::bucket::notices::{self, Kind, Notice, PUSH_LIFE, Subject};
use crate::error::Result;
use crate::plan::push::RevisionAction;
use crate::progress::{Event, Progress, waiting};

/// Pauses between looks at the deletions that are under way.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What other machines are told of a push.
pub struct Announcement {
    notice: Notice,
    subject: Subject,
}

impl Announcement {
    /// Tells other machines that these revisions are about to be published.
    ///
    /// # Errors
    /// When the bucket does not take it.
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

    /// Makes it count from now.
    ///
    /// # Errors
    /// When the bucket does not take it.
    pub async fn renew(&mut self, bucket: &Bucket) -> Result<()> {
        self.notice.renew(bucket).await
    }

    /// Whether it will count for long enough: what takes longer than this has to announce itself again.
    pub fn is_fresh(&self) -> bool {
        self.notice.age() < PUSH_LIFE / 4
    }

    /// Whether something may still be published by it.
    pub fn is_valid(&self) -> bool {
        self.notice.age() < PUSH_LIFE / 2
    }

    /// Waits until no deletion that concerns this push is under way. Those that begin later see the announcement.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn wait_for_deletions(&self, bucket: &Bucket, progress: &dyn Progress) -> Result<()> {
        let mut known: HashMap<String, bool> = HashMap::new();
        let mut pause = FIRST_PAUSE;
        let mut wait = None;
        loop {
            let listed = notices::list(bucket).await?;
            // Both are the store's. Of two that differ, the earlier heeds more deletions.
            let times = [self.notice.store_time(&listed), bucket.store_time()];
            let now = times.into_iter().flatten().min().unwrap_or_else(SystemTime::now);
            let mut concerns = false;
            for notice in listed.iter().filter(|notice| notice.kind == Kind::Deletion && notice.is_live(now)) {
                if !known.contains_key(&notice.key) {
                    let overlaps = match notices::read(bucket, [notice]).await {
                        Ok(subjects) => subjects.iter().any(|subject| subject.overlaps(&self.subject)),
                        // What it deletes is not known.
                        Err(error) if error.cause.is_invalid() => true,
                        Err(error) => return Err(error),
                    };
                    known.insert(notice.key.clone(), overlaps);
                }
                concerns |= known[&notice.key];
            }
            if !concerns {
                return Ok(());
            }
            if wait.is_none() {
                let note = "another machine is deleting something from the bucket that this push needs: waiting for it";
                progress.event(Event::Note(note.into()));
                wait = Some(waiting("another machine that is deleting from the bucket".to_string()));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Tells other machines that it is over.
    pub async fn end(self, bucket: &Bucket) {
        self.notice.remove(bucket).await;
    }
}
