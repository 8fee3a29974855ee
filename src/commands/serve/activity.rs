//! The activity of a server: the numbers behind `/metrics` and the status page.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use serde::Serialize;

use crate::error::Error;
use crate::model::ids::BlobId;
use crate::progress::{Event, Progress};

/// Number of recent failures, and of recent pulls, on the status page.
const RECENT: usize = 20;

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The bucket.
    Bucket,
    /// The Hub.
    Hub,
    /// This machine's cache.
    Disk,
}

impl Origin {
    /// Returns the word for it.
    pub fn word(self) -> &'static str {
        match self {
            Origin::Bucket => "bucket",
            Origin::Hub => "hub",
            Origin::Disk => "disk",
        }
    }
}

/// The activity of a server.
pub struct Activity {
    started: Instant,
    /// Requests for files whose blob was in the cache.
    pub hits: AtomicU64,
    /// Requests for files whose blob had to be pulled, or was already being pulled.
    pub misses: AtomicU64,
    /// Bytes sent to clients.
    pub sent: AtomicU64,
    /// Responses in flight.
    pub responses: AtomicU64,
    /// Open connections.
    pub connections: AtomicU64,
    bucket_bytes: AtomicU64,
    hub_bytes: AtomicU64,
    disk_bytes: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Responses by status.
    statuses: BTreeMap<u16, u64>,
    /// Failures by kind.
    errors: BTreeMap<&'static str, u64>,
    /// Blobs in flight.
    pulls: HashMap<BlobId, Pull>,
    recent: VecDeque<Done>,
    failures: VecDeque<Failure>,
    notes: VecDeque<String>,
}

/// A blob in flight.
#[derive(Debug, Clone, Serialize)]
pub struct Pull {
    /// The file, with its repo.
    pub file: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that have arrived.
    pub arrived: u64,
    /// Where it comes from.
    pub origin: Origin,
    /// Seconds since it started.
    #[serde(serialize_with = "seconds")]
    pub since: Instant,
}

fn seconds<S: serde::Serializer>(since: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(since.elapsed().as_secs())
}

/// A blob that has arrived.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// The file, with its repo.
    pub file: String,
    /// Its size in bytes.
    pub size: u64,
    /// Where it came from.
    pub origin: Origin,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The time.
    pub time: String,
}

/// Something that failed.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// What was requested.
    pub request: String,
    /// What failed, why, and what to do next.
    pub error: String,
    /// The time.
    pub time: String,
}

/// The numbers at one point in time.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    /// Seconds since the server started.
    pub uptime: u64,
    /// Requests for files whose blob was in the cache.
    pub hits: u64,
    /// Requests for all other files.
    pub misses: u64,
    /// Bytes sent to clients.
    pub sent: u64,
    /// Bytes read, by origin.
    pub bytes: BTreeMap<&'static str, u64>,
    /// Responses in flight.
    pub responses: u64,
    /// Open connections.
    pub connections: u64,
    /// Blobs in flight.
    pub pulls: Vec<Pull>,
    /// Blobs that have arrived, the latest first.
    pub recent: Vec<Done>,
    /// Failures, the latest first.
    pub failures: Vec<Failure>,
    /// Notes, the latest first.
    pub notes: Vec<String>,
}

impl Activity {
    /// Creates counters that start at zero.
    pub fn new() -> Activity {
        Activity {
            started: Instant::now(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            responses: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            bucket_bytes: AtomicU64::new(0),
            hub_bytes: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes that were read.
    pub fn count_bytes(&self, origin: Origin, bytes: u64) {
        let counter = match origin {
            Origin::Bucket => &self.bucket_bytes,
            Origin::Hub => &self.hub_bytes,
            Origin::Disk => &self.disk_bytes,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a response.
    pub fn count_status(&self, status: u16) {
        *self.lock().statuses.entry(status).or_default() += 1;
    }

    /// Records that a blob is in flight.
    pub fn begin_pull(&self, blob: BlobId, file: String, size: u64, origin: Origin) {
        self.lock().pulls.insert(blob, Pull { file, size, arrived: 0, origin, since: Instant::now() });
    }

    /// Records that a blob has arrived, or why it has not.
    pub fn end_pull(&self, blob: &BlobId, failure: Option<&Error>) {
        let mut state = self.lock();
        let Some(pull) = state.pulls.remove(blob) else { return };
        match failure {
            None => {
                let seconds = pull.since.elapsed().as_secs_f64();
                let Pull { file, size, origin, .. } = pull;
                push(&mut state.recent, Done { file, size, origin, seconds, time: now() });
            }
            Some(error) => state.fail(pull.file, error),
        }
    }

    /// Records a failure.
    pub fn fail(&self, request: impl Into<String>, error: &Error) {
        self.lock().fail(request.into(), error);
    }

    /// Returns the current numbers.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let mut pulls: Vec<Pull> = state.pulls.values().cloned().collect();
        pulls.sort_by_key(|pull| pull.since);
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            uptime: self.started.elapsed().as_secs(),
            hits: load(&self.hits),
            misses: load(&self.misses),
            sent: load(&self.sent),
            bytes: self.bytes(),
            responses: load(&self.responses),
            connections: load(&self.connections),
            pulls,
            recent: state.recent.iter().cloned().collect(),
            failures: state.failures.iter().cloned().collect(),
            notes: state.notes.iter().cloned().collect(),
        }
    }

    fn bytes(&self) -> BTreeMap<&'static str, u64> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [(Origin::Bucket, &self.bucket_bytes), (Origin::Hub, &self.hub_bytes), (Origin::Disk, &self.disk_bytes)]
            .map(|(origin, counter)| (origin.word(), load(counter)))
            .into()
    }

    /// Returns the counters in Prometheus' text format.
    pub fn metrics(&self, cache_bytes: Option<u64>) -> String {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.lock();
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
            let _ = writeln!(out, "# HELP hf_cache_sync_{name} {help}\n# TYPE hf_cache_sync_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "hf_cache_sync_{name}{labels} {value}");
            }
        };
        let plain = |value| vec![(String::new(), value)];
        family("hits_total", "counter", "Requests for files whose blob was in the cache.", plain(load(&self.hits)));
        family("misses_total", "counter", "Requests for files whose blob had to be pulled.", plain(load(&self.misses)));
        let bytes = self.bytes().into_iter().map(|(origin, bytes)| (format!("{{source=\"{origin}\"}}"), bytes));
        family("read_bytes_total", "counter", "Bytes read, by source.", bytes.collect());
        family("sent_bytes_total", "counter", "Bytes of files sent to clients.", plain(load(&self.sent)));
        let statuses = state.statuses.iter().map(|(status, count)| (format!("{{status=\"{status}\"}}"), *count));
        family("responses_total", "counter", "Responses, by HTTP status.", statuses.collect());
        let errors = state.errors.iter().map(|(kind, count)| (format!("{{kind=\"{kind}\"}}"), *count));
        family("errors_total", "counter", "Failures, by kind.", errors.collect());
        family("pulls_in_flight", "gauge", "Blobs on their way.", plain(state.pulls.len() as u64));
        family("responses_in_flight", "gauge", "Responses in flight.", plain(load(&self.responses)));
        family("connections", "gauge", "Open connections.", plain(load(&self.connections)));
        if let Some(bytes) = cache_bytes {
            family("cache_bytes", "gauge", "Size of the cache in bytes, if known.", plain(bytes));
        }
        family(
            "uptime_seconds",
            "counter",
            "Seconds since the server started.",
            plain(self.started.elapsed().as_secs()),
        );
        out
    }
}

impl State {
    fn fail(&mut self, request: String, error: &Error) {
        *self.errors.entry(error.kind().word()).or_default() += 1;
        push(&mut self.failures, Failure { request, error: error.to_string(), time: now() });
    }
}

/// Formats an error, including its hint, as one line for a header or the log.
pub fn one_line(text: &impl ToString) -> String {
    text.to_string().lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Adds an entry, and drops the oldest beyond [`RECENT`].
fn push<T>(list: &mut VecDeque<T>, latest: T) {
    list.push_front(latest);
    list.truncate(RECENT);
}

fn now() -> String {
    crate::when::format(SystemTime::now()).unwrap_or_default()
}

/// Receives the events of the server's transfers.
impl Progress for Activity {
    fn event(&self, event: Event) {
        let mut state = self.lock();
        match event {
            Event::Moved { blob, bytes } => {
                if let Some(pull) = state.pulls.get_mut(&blob) {
                    pull.arrived += bytes;
                    let origin = pull.origin;
                    self.count_bytes(origin, bytes);
                }
            }
            Event::Found { blob, bytes } => {
                if let Some(pull) = state.pulls.get_mut(&blob) {
                    pull.arrived += bytes;
                }
            }
            Event::Lost { blob, bytes } => {
                if let Some(pull) = state.pulls.get_mut(&blob) {
                    pull.arrived = pull.arrived.saturating_sub(bytes);
                }
            }
            Event::Restarted { blob } => {
                if let Some(pull) = state.pulls.get_mut(&blob) {
                    pull.arrived = 0;
                }
            }
            Event::Note(note) => {
                tracing::warn!("{}", one_line(&note));
                push(&mut state.notes, note);
            }
            Event::Step(_) | Event::Planned(_) | Event::Started { .. } | Event::Finished { .. } => {}
        }
    }
}

/// Counts a response or a connection while it lasts.
pub struct InFlight {
    activity: Arc<Activity>,
    counter: fn(&Activity) -> &AtomicU64,
}

impl InFlight {
    /// Counts a response.
    pub fn of_responses(activity: &Arc<Activity>) -> Self {
        Self::new(activity, |activity| &activity.responses)
    }

    /// Counts a connection.
    pub fn of_connections(activity: &Arc<Activity>) -> Self {
        Self::new(activity, |activity| &activity.connections)
    }

    fn new(activity: &Arc<Activity>, counter: fn(&Activity) -> &AtomicU64) -> Self {
        counter(activity).fetch_add(1, Ordering::Relaxed);
        InFlight { activity: activity.clone(), counter }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        (self.counter)(&self.activity).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_are_prometheus_text() {
        let activity = Activity::new();
        let blob: BlobId = "1".repeat(40).parse().unwrap();
        activity.begin_pull(blob, "org/name/file".into(), 10, Origin::Hub);
        activity.event(Event::Moved { blob, bytes: 10 });
        activity.end_pull(&blob, None);
        activity.count_status(200);
        activity.fail("GET /x", &Error::corrupt("blob"));
        let text = activity.metrics(Some(7));
        for line in [
            "hf_cache_sync_read_bytes_total{source=\"hub\"} 10",
            "hf_cache_sync_responses_total{status=\"200\"} 1",
            "hf_cache_sync_errors_total{kind=\"integrity\"} 1",
            "hf_cache_sync_pulls_in_flight 0",
            "hf_cache_sync_cache_bytes 7",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        let names =
            text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(['{', ' ']).next().unwrap());
        for name in names {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
        }
        let snapshot = activity.snapshot();
        assert_eq!((snapshot.recent.len(), snapshot.failures.len(), snapshot.pulls.len()), (1, 1, 0));
    }
}
