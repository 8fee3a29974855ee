//! `watch`: pushes whenever the cache has changed and then been quiet for a while.
//!
//! [`source`] notices changes, [`relevant`] says which of them matter, [`schedule`] decides when to push (all
//! decisions are pure), [`news`] keeps what was said already from being said again. A push is that of `push`, so a
//! push too many costs a listing and nothing else.
//!
//! SIGINT and SIGTERM are how a watch ends, so the exit code is 0 after them. A push that runs at that moment gets
//! five seconds to finish and is then given up, or at once at a second signal; the next push goes on from there.

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
use crate::interrupt::Interruption;
use crate::progress::Event;
use crate::task::blocking;
use news::News;
use root::Root;
use schedule::{Outcome, Schedule, Step};
use source::{Change, Source};
use update::{Pushed, Update, What};

/// How long a running push may go on after a signal.
const GRACE: Duration = Duration::from_secs(5);
/// How often the cache folder is checked to be there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often the cache is looked at when the operating system cannot tell of changes.
const FALLBACK_POLL: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync watch                  push what is new, 30 s after a change
  hf-cache-sync watch --debounce 300   not before five quiet minutes
  hf-cache-sync watch --poll 60        on NFS, which tells of no changes
  hf-cache-sync watch --json           a JSON object a line, for programs";

/// Push new blobs, snapshots and refs as they appear, until stopped
///
/// Pushes once at the start, and then whenever the cache has changed and been quiet for the debounce time. A push
/// that fails is tried again with growing pauses and never ends the watch. Ctrl-c and SIGTERM end it (exit code 0).
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Push when nothing has changed for so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", allow_negative_numbers = true, value_parser = debounce)]
    pub debounce: Duration,

    /// Look at the cache every so many seconds instead of waiting for the system's events (network file systems)
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

fn seconds(text: &str, least: f64) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(number) if (least..=86_400.0).contains(&number) => Ok(Duration::from_secs_f64(number)),
        _ => Err(format!("expected a number of seconds from {least} to 86400")),
    }
}

/// Runs the command until a signal ends it; `say` is told what happens.
///
/// # Errors
/// When the watch cannot begin (no cache, no bucket, half a credential pair, another watch of this cache), or when
/// the cache is gone.
pub async fn execute(session: &Session, args: &Args, say: &dyn Fn(Update)) -> Result<()> {
    let mut interruption = Interruption::listen();
    session.need_cache()?;
    let root = Root::open(&session.config.cache.root)?;
    let begin = async {
        let bucket = session.bucket().await?.name().to_string();
        let lock = alone(session)?;
        Ok((bucket, lock, open_source(session, &root, args.poll).await))
    };
    let (bucket, _lock, source) = tokio::select! {
        begun = begin => begun?,
        () = interruption.next() => {
            say(Update::now(What::Stopped { push_abandoned: false }));
            return Ok(());
        }
    };
    say(Update::now(What::Started {
        cache: root.path().to_path_buf(),
        bucket,
        how: source.how,
        debounce: args.debounce.as_secs_f64(),
    }));
    let schedule = Schedule::new(args.debounce);
    let watch = Watch { session, args, say, root, source, schedule, news: News::default(), start: Instant::now() };
    let push_abandoned = watch.run(&mut interruption).await?;
    say(Update::now(What::Stopped { push_abandoned }));
    Ok(())
}

/// The lock that keeps a second watch away; none where nothing can be written.
fn alone(session: &Session) -> Result<Option<Lock>> {
    let layout: Layout = session.layout();
    match lock::try_watch_lock(&layout) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(Error::failed(format!("another `watch` is already running on {}", layout.root().display()))
            .hint("one is enough; stop it before starting another")),
        Err(error) => {
            session.progress.event(Event::Note(format!("a second watch of this cache would not be noticed: {error}")));
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
        "the system cannot tell of changes ({why}): looking at the cache every {seconds} s instead (see --poll)"
    )));
    Source::poll(root.path(), FALLBACK_POLL).await
}

struct Watch<'a> {
    session: &'a Session,
    args: &'a Args,
    say: &'a dyn Fn(Update),
    root: Root,
    source: Source,
    schedule: Schedule,
    news: News,
    start: Instant,
}

impl Watch<'_> {
    /// Returns, at a signal, whether a push was given up.
    async fn run(mut self, interruption: &mut Interruption) -> Result<bool> {
        loop {
            let pause = match self.schedule.next(self.start.elapsed()) {
                Step::Push => {
                    match self.push(interruption).await? {
                        Ended::Normally => continue,
                        Ended::BySignal { abandoned } => return Ok(abandoned),
                    };
                }
                Step::WaitUntil(due) => due.saturating_sub(self.start.elapsed()).min(HEARTBEAT),
                Step::Idle => HEARTBEAT,
            };
            tokio::select! {
                () = interruption.next() => return Ok(false),
                change = self.source.next() => {
                    tokio::select! {
                        () = self.notice(change) => {}
                        () = interruption.next() => return Ok(false),
                    }
                }
                () = tokio::time::sleep(pause) => self.root.check()?,
            }
        }
    }

    async fn notice(&mut self, change: Change) {
        self.schedule.changed(self.start.elapsed());
        match change {
            Change::Changed => {}
            Change::Linked => self.source = open_source(self.session, &self.root, self.args.poll).await,
            Change::Broken(why) => self.source = fall_back(self.session, &self.root, &why).await,
        }
    }

    async fn push(&mut self, interruption: &mut Interruption) -> Result<Ended> {
        self.root.check()?;
        self.schedule.begun();
        let session = Session { now: SystemTime::now(), ..self.session.clone() };
        let args = push::Args { transfer: self.args.transfer.clone(), ..push::Args::default() };
        let mut running = std::pin::pin!(push::execute(&session, &args));
        let ended = loop {
            tokio::select! {
                ended = &mut running => break Some(ended),
                change = self.source.next() => self.notice(change).await,
                () = interruption.next() => break None,
            }
        };
        let (ended, signal) = match ended {
            Some(ended) => (ended, false),
            None => tokio::select! {
                ended = &mut running => (ended, true),
                () = tokio::time::sleep(GRACE) => return Ok(Ended::BySignal { abandoned: true }),
                () = interruption.next() => return Ok(Ended::BySignal { abandoned: true }),
            },
        };
        // A cache that vanished meanwhile is not a list of blobs that cannot be read.
        self.root.check()?;
        self.tell(ended);
        Ok(if signal { Ended::BySignal { abandoned: false } } else { Ended::Normally })
    }

    fn tell(&mut self, ended: Result<Report>) {
        let outcome = ended.as_ref().map_or(Outcome::Retry, |report| outcome(&report.failures));
        let pause = self.schedule.ended(self.start.elapsed(), outcome, fastrand::f64());
        let retry_in = pause.map(|pause| pause.as_secs_f64());
        (self.say)(Update::now(match ended {
            Ok(report) => What::Pushed(Pushed {
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
            Err(error) => What::Failed {
                news: self.news.failures(std::slice::from_ref(&error)),
                error,
                attempt: self.schedule.failures(),
                retry_in: retry_in.unwrap_or_default(),
            },
        }));
    }
}

enum Ended {
    Normally,
    BySignal { abandoned: bool },
}

/// A broken blob or an unreadable folder is the same until it changes.
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
    fn what_the_way_or_the_store_did_is_tried_again_and_what_is_wrong_here_waits_for_a_change() {
        let (here, unreadable) = (Error::corrupt("blob 1"), Error::new(Cause::Permission, "blob 2"));
        assert_eq!(outcome(&[]), Outcome::Done);
        assert_eq!(outcome(&[here.clone(), unreadable]), Outcome::Done);
        for cause in [Cause::Damaged, Cause::Denied, Cause::Busy] {
            assert_eq!(outcome(&[here.clone(), Error::new(cause, "blob 3")]), Outcome::Retry, "{cause:?}");
        }
    }
}
