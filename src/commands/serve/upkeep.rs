//! The background tasks of a server: keeps the cache within its budget, and publishes revisions fetched from the Hub.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::activity::one_line;
use super::puller::Puller;
use super::respond::Site;
use crate::commands::size::Size;
use crate::commands::{prune, push};
use crate::engine::Session;
use crate::error::{Error, Result};
use crate::files;
use crate::model::ids::{Commit, RepoName, RepoSpec};
use crate::progress::{Event, Silent};

/// A revision is published once no file of it has arrived from the Hub for this long.
const QUIET: Duration = Duration::from_secs(5);
/// Time for pulls to finish before the cache is pruned. New ones wait meanwhile, and clients time out after ten seconds.
const LULL: Duration = Duration::from_secs(4);
/// Interval between attempts while pulls do not finish in time.
const RETRY: Duration = Duration::from_secs(15);

/// Runs both tasks until it is dropped.
pub async fn run(session: &Session, puller: &Arc<Puller>, site: &Site, max_size: Option<Size>) {
    let budget = async {
        match max_size {
            Some(size) => keep_within(size.0, session, puller, site).await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(budget, publish(session, puller));
}

/// Prunes the cache at the start, and whenever pulls have taken it over its budget.
async fn keep_within(max: u64, session: &Session, puller: &Arc<Puller>, site: &Site) {
    let mut known: Option<u64> = None;
    loop {
        let added = puller.added.load(Ordering::Relaxed);
        let is_over = known.is_none_or(|known| known.saturating_add(added) > max);
        if !is_over {
            site.about.measured.store(known.unwrap_or_default().saturating_add(added), Ordering::Relaxed);
            puller.has_added.notified().await;
            continue;
        }
        // If pulls do not finish in time, they continue: better a cache over its budget than clients that wait for hours.
        let Ok(_gate) = tokio::time::timeout(LULL, puller.gate.write()).await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        puller.added.store(0, Ordering::Relaxed);
        // The first pull creates the cache.
        if files::is_missing(session.layout().root()) {
            known = Some(0);
            continue;
        }
        match prune_to(max, session).await {
            Ok(report) => {
                known = Some(report.size);
                site.about.measured.store(report.size, Ordering::Relaxed);
                for failure in &report.failures {
                    site.activity.fail("prune", failure);
                }
                if report.size > max {
                    let over = bytesize::ByteSize(report.size - max).display().iec().to_string();
                    let note = format!(
                        "the cache is {over} over its budget: everything left in it is in use, or not in the bucket"
                    );
                    session.progress.event(Event::Note(note));
                    // Until something is added, another attempt would change nothing.
                    drop(_gate);
                    puller.has_added.notified().await;
                    tokio::time::sleep(RETRY).await;
                }
            }
            Err(error) => {
                site.activity.fail("prune", &error);
                tracing::warn!("cannot prune the cache: {}", one_line(&error));
                drop(_gate);
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn prune_to(max: u64, session: &Session) -> Result<prune::Report> {
    let session = Session { now: SystemTime::now(), progress: Arc::new(Silent), ..session.clone() };
    prune::execute(&session, &prune::Args::to_budget(max), None).await
}

/// Publishes each revision from the Hub once no more of its files have arrived for a while.
async fn publish(session: &Session, puller: &Arc<Puller>) {
    let Some(unpublished) = &puller.unpublished else { return std::future::pending().await };
    loop {
        tokio::time::sleep(QUIET / 2).await;
        let due: Vec<(RepoName, Commit)> = {
            let unpublished = unpublished.lock().unwrap_or_else(PoisonError::into_inner);
            unpublished.waiting.iter().filter(|(_, last)| last.elapsed() >= QUIET).map(|(key, _)| key.clone()).collect()
        };
        for (repo, commit) in due {
            let started = Instant::now();
            let pushed = push_revision(session, puller, &repo, &commit).await;
            let is_retried = pushed.as_ref().is_err_and(|error| error.cause.may_pass());
            if let Err(error) = pushed {
                let note = format!("{repo}@{} was not published: {}", commit.short(), error.brief());
                session.progress.event(Event::Note(note));
            }
            // Removed only now, so that a push interrupted by the shutdown is repeated by [`publish_rest`].
            let waiting = &mut unpublished.lock().unwrap_or_else(PoisonError::into_inner).waiting;
            let key = (repo, commit);
            match waiting.get_mut(&key) {
                Some(last) if is_retried => *last = Instant::now() + RETRY,
                Some(last) if *last < started => drop(waiting.remove(&key)),
                // More files have arrived meanwhile.
                _ => {}
            }
        }
    }
}

/// Publishes the remaining revisions at shutdown.
pub async fn publish_rest(session: &Session, puller: &Arc<Puller>) {
    let Some(unpublished) = &puller.unpublished else { return };
    let rest: Vec<(RepoName, Commit)> =
        unpublished.lock().unwrap_or_else(PoisonError::into_inner).waiting.drain().map(|(key, _)| key).collect();
    for (repo, commit) in rest {
        if let Err(error) = push_revision(session, puller, &repo, &commit).await {
            tracing::warn!("{repo}@{} was not published: {}", commit.short(), one_line(&error));
        }
    }
}

/// Pushes one revision by the rules of `push`, which exclude gated repos.
async fn push_revision(session: &Session, puller: &Arc<Puller>, repo: &RepoName, commit: &Commit) -> Result<()> {
    if !session.config.team.allow_gated {
        puller.pull_licenses(repo, commit).await?;
    }
    let session = Session { now: SystemTime::now(), progress: Arc::new(Silent), ..session.clone() };
    let spec: RepoSpec = repo
        .to_string()
        .parse()
        .map_err(|why| Error::failed(format!("cannot push {repo}")).because(format!("{why}")))?;
    let args = push::Args { repos: vec![spec], revision: Some(commit.to_string()), ..push::Args::default() };
    let report = push::execute(&session, &args).await?;
    for skip in &report.skipped {
        tracing::info!(repo = %skip.repo, "not published: {}", serde_json::to_string(&skip.reason).unwrap_or_default());
    }
    tracing::info!(%repo, revision = commit.short(), blobs = report.uploaded.blobs, manifests = report.manifests, "published");
    report.failures.into_iter().next().map_or(Ok(()), Err)
}
