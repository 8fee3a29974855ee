//! Determines which revisions of this cache the bucket holds, and checks that again right before one is deleted here.
//!
//! One listing is the basis of the proof. By the time of the deletion, another machine may have deleted from the bucket:
//! refs first, then manifests, and blobs only once no manifest names them. So it is enough to read the refs and the manifest
//! of a revision again right before it is deleted here. The reads for the next few revisions run concurrently, and their
//! results are valid only briefly.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::Session;
use super::survey::{Survey, survey_scanned};
use crate::bucket::client::Bucket;
use crate::bucket::keys;
use crate::bucket::read::{self, Stored};
use crate::bucket::state::RemoteState;
use crate::cache::inventory::Inventory;
use crate::cache::pushable::Local;
use crate::error::{Error, Result};
use crate::model::ids::{Commit, RepoName};
use crate::model::selection::Selection;
use crate::plan::prune::held::{Held, Lack, Proof, RefIndex};

/// Compares the scanned cache with the bucket. Returns the cache, and which revisions the bucket holds.
///
/// # Errors
/// If a repo is not in the cache, or a request to the bucket fails: nothing counts as held then.
pub async fn examine(
    session: &Session,
    bucket: &Bucket,
    inventory: Inventory,
    selection: Selection,
) -> Result<(Inventory, Held)> {
    let options = session.push_options(selection);
    let Survey { state, local, remote } = survey_scanned(session, bucket, options, inventory).await?;
    read_refs(bucket, &local, &remote).await?;
    let mut held = Held::examine(&local, &remote);
    for repo in &local.repos {
        if let Some(gated) = &repo.gated {
            let commits =
                state.inventory().repo(&repo.name).into_iter().flat_map(|repo| repo.revisions.keys().cloned());
            held.refuse(&repo.name, commits, &Lack::Gated { path: gated.file.clone() });
        }
    }
    Ok((state.into_inventory(), held))
}

/// Reads every key that a pull of one of this cache's refs would consider, and the manifests these name.
async fn read_refs(bucket: &Bucket, local: &Local, remote: &RemoteState) -> Result<()> {
    let index = RefIndex::new(remote);
    let mut found = Vec::new();
    for repo in &local.repos {
        for (name, commit) in repo.all_refs() {
            found.extend(index.find(&repo.name, &name).map(|candidate| (repo, commit, candidate)));
        }
    }
    let unknown = found.iter().filter(|(_, commit, candidate)| !remote.prove_ref(&candidate.object.key, commit));
    remote.read_refs(bucket, unknown.map(|(_, _, candidate)| candidate.object.key.clone())).await?;
    let targets = found.iter().filter_map(|(repo, _, candidate)| {
        let target = remote.reference(&candidate.object.key)?.valid()?;
        Some(keys::manifest(&repo.name.id, &target)).filter(|key| remote.listed_manifest(key).is_some())
    });
    remote.read_manifests(bucket, targets).await
}

/// Maximum number of revisions that are checked concurrently, each with one request at a time.
const CONCURRENCY: usize = 32;
/// How long a check is valid. A revision that is deleted later is checked again.
const FRESH: Duration = Duration::from_secs(1);

/// Checks whether the bucket still holds a revision.
pub struct Checker {
    bucket: Bucket,
    /// The revisions, in the order in which they are deleted.
    revisions: Vec<(RepoName, Commit)>,
    /// Their proofs; `None` if there is none.
    proofs: Vec<Option<Proof>>,
    /// The answers of the last batch that have not been used yet, by index, with their times.
    checks: HashMap<usize, (Instant, bool)>,
    /// The number of revisions to check in the next batch.
    batch: usize,
    /// How many answers of the last batch were used.
    used: usize,
}

/// A question to a [`Checker`] from another thread.
pub struct Question {
    repo: RepoName,
    commit: Commit,
    answer: std::sync::mpsc::Sender<Result<bool>>,
}

/// Asks a [`Checker`] from a thread that may block.
#[derive(Clone)]
pub struct Asker(mpsc::UnboundedSender<Question>);

impl Checker {
    /// Creates a checker for these revisions, which will be deleted in this order.
    pub fn new<'a>(bucket: &Bucket, held: &Held, all: impl IntoIterator<Item = (&'a RepoName, &'a Commit)>) -> Checker {
        let revisions: Vec<_> = all.into_iter().map(|(repo, commit)| (repo.clone(), commit.clone())).collect();
        let proofs = revisions.iter().map(|(repo, commit)| held.proof(repo, commit).cloned()).collect();
        Checker { bucket: bucket.clone(), revisions, proofs, checks: HashMap::new(), batch: CONCURRENCY, used: 0 }
    }

    /// Answers questions until all askers are gone.
    pub async fn serve(mut self, mut questions: mpsc::UnboundedReceiver<Question>) {
        let indexes: HashMap<_, _> = self.revisions.iter().cloned().zip(0..).collect();
        // A store that has stopped answering would keep every further question waiting just as long.
        let mut failure: Option<Error> = None;
        while let Some(Question { repo, commit, answer }) = questions.recv().await {
            let result = match indexes.get(&(repo, commit)) {
                None => Ok(false),
                Some(index) => self.answer(*index, &mut failure).await,
            };
            let _ = answer.send(result);
        }
    }

    /// Answers from a fresh check. If there is none, checks this revision and the following ones, unless a request has
    /// failed before.
    async fn answer(&mut self, index: usize, failure: &mut Option<Error>) -> Result<bool> {
        match self.checks.remove(&index) {
            Some((answered, holds)) if answered.elapsed() < FRESH => {
                self.used += 1;
                return Ok(holds);
            }
            // If deletions are slow, no more revisions are checked than can be used in time.
            Some(_) => self.batch = self.used.max(1),
            None => self.batch = (2 * self.batch).min(CONCURRENCY),
        }
        if failure.is_none() {
            (self.checks, *failure) = self.check_from(index).await;
        }
        self.used = 1;
        match (self.checks.remove(&index), failure) {
            (Some((_, holds)), _) => Ok(holds),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(false),
        }
    }

    /// Checks a revision and the following ones, until a request fails.
    async fn check_from(&self, first: usize) -> (HashMap<usize, (Instant, bool)>, Option<Error>) {
        let indexes = first..self.revisions.len().min(first + self.batch);
        let checks =
            indexes.map(|index| async move { (index, self.holds(index).await.map(|holds| (Instant::now(), holds))) });
        let mut checks = std::pin::pin!(stream::iter(checks).buffered(CONCURRENCY));
        let mut found = HashMap::new();
        while let Some((index, check)) = checks.next().await {
            match check {
                Ok(check) => drop(found.insert(index, check)),
                Err(error) => return (found, Some(error)),
            }
        }
        (found, None)
    }

    async fn holds(&self, index: usize) -> Result<bool> {
        let ((repo, commit), Some(proof)) = (&self.revisions[index], &self.proofs[index]) else { return Ok(false) };
        for key in &proof.refs {
            if read::reference(&self.bucket, key).await?.valid().as_ref() != Some(commit) {
                return Ok(false);
            }
        }
        let now = read::manifest(&self.bucket, &keys::manifest(&repo.id, commit)).await?;
        Ok(matches!(now, Stored::Valid(manifest) if manifest == *proof.manifest))
    }
}

impl Asker {
    /// Creates an asker and the receiver of its questions.
    pub fn new() -> (Asker, mpsc::UnboundedReceiver<Question>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Asker(sender), receiver)
    }

    /// Returns whether the bucket still holds the revision. In an interrupted run, there is no answer, which counts as no.
    ///
    /// # Errors
    /// If a request fails.
    pub fn still_holds(&self, repo: &RepoName, commit: &Commit) -> Result<bool> {
        let (answer, answered) = std::sync::mpsc::channel();
        let question = Question { repo: repo.clone(), commit: commit.clone(), answer };
        match self.0.send(question) {
            Ok(()) => answered.recv().unwrap_or(Ok(false)),
            Err(_) => Ok(false),
        }
    }
}
