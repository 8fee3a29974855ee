//! Protects a push from deletions: it announces what it is about to publish, and waits for those deletions that affect it.
//! Anything in the bucket after that stays there until it is published. The proof is in docs/bucket-format.md.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use crate::bucket::client::Bucket;
use crate::bucket::keys;
use crate::bucket::notices::{self, Kind, Notice, PUSH_LIFE, Subject};
use crate::error::Result;
use crate::plan::push::RevisionAction;
use crate::progress::{Event, Progress, waiting};

/// Pauses between listings of the deletions in progress.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The announcement of a push to other machines.
pub struct Announcement {
    notice: Notice,
    subject: Subject,
}

impl Announcement {
    /// Announces that these revisions are about to be published.
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

    /// Makes it valid from now.
    ///
    /// # Errors
    /// If the notice cannot be written.
    pub async fn renew(&mut self, bucket: &Bucket) -> Result<()> {
        self.notice.renew(bucket).await
    }

    /// Whether it will be valid for long enough; otherwise, it has to be renewed.
    pub fn is_fresh(&self) -> bool {
        self.notice.age() < PUSH_LIFE / 4
    }

    /// Whether anything may still be published on the strength of it.
    pub fn is_valid(&self) -> bool {
        self.notice.age() < PUSH_LIFE / 2
    }

    /// Waits until no deletion that affects this push is in progress. Those that begin later see the announcement.
    ///
    /// # Errors
    /// If a request fails.
    pub async fn wait_for_deletions(&self, bucket: &Bucket, progress: &dyn Progress) -> Result<()> {
        let mut unrelated: HashSet<String> = HashSet::new();
        let mut pause = FIRST_PAUSE;
        let mut wait = None;
        loop {
            let listed = notices::list(bucket).await?;
            // Both are the store's. If they differ, more notices are valid at the earlier one.
            let times = [self.notice.store_time(&listed), bucket.store_time()];
            let now = times.into_iter().flatten().min().unwrap_or_else(SystemTime::now);
            let mut is_affected = false;
            for notice in listed.iter().filter(|notice| notice.kind == Kind::Deletion && notice.is_live(now)) {
                if unrelated.contains(&notice.key) {
                    continue;
                }
                // One that affects this push is read each time: if its key may not delete, its end is in its content.
                let overlaps = match notices::read(bucket, [notice]).await {
                    Ok(subjects) => subjects.iter().any(|subject| subject.overlaps(&self.subject)),
                    // It may delete anything.
                    Err(error) if error.cause.is_invalid() => true,
                    Err(error) => return Err(error),
                };
                match overlaps {
                    true => is_affected = true,
                    false => drop(unrelated.insert(notice.key.clone())),
                }
            }
            if !is_affected {
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

    /// Announces the end of the push.
    pub async fn end(self, bucket: &Bucket) {
        self.notice.remove(bucket).await;
    }
}
