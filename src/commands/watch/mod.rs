//! `watch`: pushes whenever the cache has changed and then been quiet for a while.
//!
//! [`source`] detects changes, [`relevant`] filters them, [`schedule`] decides when to push (both pure), and [`news`]
//! suppresses repeated messages. The pushes are those of `push`, so an unnecessary one costs a listing and nothing else.
//!
//! SIGINT and SIGTERM are the normal way to end a watch, so the exit code is 0. A push in progress gets five seconds to
//! finish, or none at a second signal, and is then abandoned; the next push resumes from there.

pub mod news;
pub mod relevant;
pub mod root;
pub mod schedule;
pub mod source;
pub mod update;

use std::time::{Duration, Instant, SystemTime};

use super::TransferArgs;
use super::push::{self, Report};
use crate::cache::layout::Layout;
use crate::cache::lock::{self, Lock};
use crate::engine::Session;
use crate::error::{Error, Result};
use crate::platform::Interruption;
use crate::progress::Event;
use crate::task::blocking;
use news::News;
use root::Root;
use schedule::{Outcome, Schedule, Step};
use source::{Change, Source};
use update::{PushSummary, Update, UpdateKind};

/// Time for a running push to finish after a signal.
const GRACE: Duration = Duration::from_secs(5);
/// Interval between checks that the cache folder still exists.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Polling interval if the operating system cannot report changes.
const FALLBACK_POLL: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync watch                  push 30 s after the last change
  hf-cache-sync watch --debounce 300   push after five quiet minutes
  hf-cache-sync watch --poll 60        for NFS, which reports no changes
  hf-cache-sync watch --json           one JSON object per line, for scripts";

/// Push new blobs, snapshots and refs as they appear, until stopped
///
/// Pushes once at the start, and then whenever the cache has changed and been quiet for the debounce time. A failed push
/// is retried with growing pauses and never ends the watch. Ctrl-C and SIGTERM end it (exit code 0).
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Push once nothing has changed for this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", allow_negative_numbers = true, value_parser = debounce)]
    pub debounce: Duration,

    /// Scan the cache every SECONDS instead of relying on the system's events (for network file systems)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = poll)]
    pub poll: Option<Duration>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub transfer: TransferArgs,
}

fn debounce(text: &str) -> Result<Duration, String> {
    seconds(text, 0.0)
}

fn poll(text: &str) -> Result<Duration, String> {
    seconds(text, 0.1)
}

fn seconds(text: &str, min: f64) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(number) if (min..=86_400.0).contains(&number) => Ok(Duration::from_secs_f64(number)),
        _ => Err(format!("expected a number of seconds from {min} to 86400")),
    }
}

/// Runs the command until a signal ends it, passing updates to `report`.
///
/// # Errors
/// When the watch cannot start (no cache, no bucket, incomplete credentials, another watch of this cache), or when the
/// cache disappears.
pub async fn execute(session: &Session, args: &Args, report: &dyn Fn(Update)) -> Result<()> {
    let mut interruption = Interruption::listen();
    session.need_cache()?;
    let root = Root::open(&session.config.cache.root)?;
    let start = async {
        let bucket = session.bucket().await?.name().to_string();
        let lock = lock_watch(session)?;
        Ok((bucket, lock, open_source(session, &root, args.poll).await))
    };
    let (bucket, _lock, source) = tokio::select! {
        started = start => started?,
        () = interruption.next() => {
            report(Update::now(UpdateKind::Stopped { push_abandoned: false }));
            return Ok(());
        }
    };
    report(Update::now(UpdateKind::Started {
        cache: root.path().to_path_buf(),
        bucket,
        how: source.how,
        debounce: args.debounce.as_secs_f64(),
    }));
    let schedule = Schedule::new(args.debounce);
    let watch = Watch { session, args, report, root, source, schedule, news: News::default(), start: Instant::now() };
    let push_abandoned = watch.run(&mut interruption).await?;
    report(Update::now(UpdateKind::Stopped { push_abandoned }));
    Ok(())
}

/// Takes the lock that prevents a second watch of this cache; returns none if the cache is read-only.
fn lock_watch(session: &Session) -> Result<Option<Lock>> {
    let layout: Layout = session.layout();
    match lock::try_watch_lock(&layout) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(Error::failed(format!("another `watch` is already running on {}", layout.root().display()))
            .hint("one per cache is enough; stop it before starting another")),
        Err(error) => {
            let note = format!("a second watch of this cache would go unnoticed: {}", error.brief());
            session.progress.event(Event::Note(note));
            Ok(None)
        }
    }
}

async fn open_source(session: &Session, root: &Root, poll: Option<Duration>) -> Source {
    if let Some(every) = poll {
        return Source::poll(root.path(), every).await;
    }
    let path = root.path().to_path_buf();
    match blocking(move || Source::events(&path)).await {
        Ok(source) => source,
        Err(why) => fall_back(session, root, &why).await,
    }
}

async fn fall_back(session: &Session, root: &Root, why: &str) -> Source {
    let seconds = FALLBACK_POLL.as_secs();
    session.progress.event(Event::Note(format!(
        "the system cannot report changes ({why}): scanning the cache every {seconds} s instead (see --poll)"
    )));
    Source::poll(root.path(), FALLBACK_POLL).await
}

struct Watch<'a> {
    session: &'a Session,
    args: &'a Args,
    report: &'a dyn Fn(Update),
    root: Root,
    source: Source,
    schedule: Schedule,
    news: News,
    start: Instant,
}

impl Watch<'_> {
    /// Runs until a signal. Returns whether a push was abandoned.
    async fn run(mut self, interruption: &mut Interruption) -> Result<bool> {
        loop {
            let pause = match self.schedule.next(self.start.elapsed()) {
                Step::Push => {
                    match self.push(interruption).await? {
                        PushEnd::Normal => continue,
                        PushEnd::Signal { abandoned } => return Ok(abandoned),
                    };
                }
                Step::WaitUntil(due) => due.saturating_sub(self.start.elapsed()).min(HEARTBEAT),
                Step::Idle => HEARTBEAT,
            };
            tokio::select! {
                () = interruption.next() => return Ok(false),
                change = self.source.next() => {
                    tokio::select! {
                        () = self.handle(change) => {}
                        () = interruption.next() => return Ok(false),
                    }
                }
                () = tokio::time::sleep(pause) => self.root.check()?,
            }
        }
    }

    async fn handle(&mut self, change: Change) {
        self.schedule.record_change(self.start.elapsed());
        match change {
            Change::Changed => {}
            Change::Linked => self.source = open_source(self.session, &self.root, self.args.poll).await,
            Change::Broken(why) => self.source = fall_back(self.session, &self.root, &why).await,
        }
    }

    async fn push(&mut self, interruption: &mut Interruption) -> Result<PushEnd> {
        self.root.check()?;
        self.schedule.start_push();
        let session = Session { now: SystemTime::now(), ..self.session.clone() };
        let args = push::Args { transfer: self.args.transfer.clone(), ..push::Args::default() };
        let mut running = std::pin::pin!(push::execute(&session, &args));
        let result = loop {
            tokio::select! {
                result = &mut running => break Some(result),
                change = self.source.next() => self.handle(change).await,
                () = interruption.next() => break None,
            }
        };
        let (result, signal) = match result {
            Some(result) => (result, false),
            None => tokio::select! {
                result = &mut running => (result, true),
                () = tokio::time::sleep(GRACE) => return Ok(PushEnd::Signal { abandoned: true }),
                () = interruption.next() => return Ok(PushEnd::Signal { abandoned: true }),
            },
        };
        // If the cache has disappeared, report that rather than a list of unreadable blobs.
        self.root.check()?;
        self.report_push(result);
        Ok(if signal { PushEnd::Signal { abandoned: false } } else { PushEnd::Normal })
    }

    fn report_push(&mut self, result: Result<Report>) {
        let outcome = result.as_ref().map_or(Outcome::Retry, |report| outcome(&report.failures));
        let pause = self.schedule.finish_push(self.start.elapsed(), outcome, fastrand::f64());
        let retry_in = pause.map(|pause| pause.as_secs_f64());
        (self.report)(Update::now(match result {
            Ok(report) => UpdateKind::Pushed(PushSummary {
                uploaded: report.uploaded,
                present: report.present,
                manifests: report.manifests,
                refs: report.refs,
                failed: report.failures.len(),
                failures: self.news.failures(&report.failures),
                skipped: self.news.skips(&report.skipped),
                notes: self.news.notes(&report.notes),
                seconds: report.seconds,
                retry_in,
            }),
            Err(error) => UpdateKind::Failed {
                news: self.news.failures(std::slice::from_ref(&error)),
                error,
                attempt: self.schedule.failures(),
                retry_in: retry_in.unwrap_or_default(),
            },
        }));
    }
}

/// Why a push ended.
enum PushEnd {
    Normal,
    Signal { abandoned: bool },
}

/// Decides whether to retry: a store may recover, but a corrupt blob or an unreadable folder stays as it is until it
/// changes.
fn outcome(failures: &[Error]) -> Outcome {
    match failures.iter().any(|error| error.cause.may_pass()) {
        true => Outcome::Retry,
        false => Outcome::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;

    #[test]
    fn remote_failures_are_retried_and_local_ones_wait_for_a_change() {
        let (corrupt, unreadable) = (Error::corrupt("blob 1"), Error::new(Cause::Permission, "blob 2"));
        assert_eq!(outcome(&[]), Outcome::Done);
        assert_eq!(outcome(&[corrupt.clone(), unreadable]), Outcome::Done);
        for cause in [Cause::Damaged, Cause::Denied, Cause::Busy] {
            assert_eq!(outcome(&[corrupt.clone(), Error::new(cause, "blob 3")]), Outcome::Retry, "{cause:?}");
        }
    }
}
