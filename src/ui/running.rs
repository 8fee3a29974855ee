//! The state of a running command, as lines of text. Pure: takes events and the time, and returns text.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::table::cut;
use super::text::size;
use crate::error::printable;
use crate::model::ids::BlobId;
use crate::progress::{Event, Job};

/// Maximum number of lines for individual blobs.
const MAX_BLOB_LINES: usize = 4;
/// Columns in front of the name in such a line.
const NAME_OFFSET: usize = 18;
/// Time window for the rate: short enough to follow changes, and long enough not to jump with every part.
const RATE_WINDOW: Duration = Duration::from_secs(20);
/// Time without progress after which the transfer is shown as stalled.
const STALL_TIME: Duration = Duration::from_secs(5);
/// Minimum time to measure a rate over.
const MIN_RATE_TIME: Duration = Duration::from_secs(1);

/// The state of a running command.
#[derive(Debug, Default)]
pub struct Running {
    step: Option<(&'static str, Duration)>,
    transfer: Option<Transfer>,
}

/// A transfer.
#[derive(Debug, Default)]
struct Transfer {
    /// Unfinished blobs, each with its size and the index of its repo.
    unfinished: HashMap<BlobId, (u64, usize)>,
    blobs: usize,
    /// Number of unfinished blobs of each repo.
    repos: Vec<usize>,
    /// Bytes that this run has to transfer, and those it has transferred.
    total: u64,
    moved: u64,
    in_flight: BTreeMap<u64, BlobProgress>,
    numbers: HashMap<BlobId, u64>,
    started: u64,
    last_progress: Duration,
    /// Times, and the bytes that had been transferred by then.
    samples: VecDeque<(Duration, u64)>,
}

/// A blob in flight.
#[derive(Debug)]
struct BlobProgress {
    name: String,
    size: u64,
    moved: u64,
    /// Bytes from an earlier run.
    resumed: u64,
}

impl Running {
    /// Records an event.
    pub fn record(&mut self, event: Event, now: Duration) {
        match event {
            Event::Note(_) => {}
            Event::Step(text) => {
                self.step = Some((text, now));
                self.transfer = None;
            }
            Event::Planned(jobs) => {
                if !jobs.is_empty() {
                    self.step = None;
                    self.transfer = Some(Transfer::new(&jobs, now));
                }
            }
            other => {
                if let Some(transfer) = &mut self.transfer {
                    transfer.record(other, now);
                }
            }
        }
    }

    /// Whether there is nothing to show.
    pub fn is_idle(&self) -> bool {
        self.step.is_none() && self.transfer.is_none()
    }

    /// Whether nothing has been transferred for this long.
    pub fn is_stalled(&self, now: Duration, time: Duration) -> bool {
        self.transfer.as_ref().is_none_or(|transfer| now.saturating_sub(transfer.last_progress) >= time)
    }

    /// Takes a sample of the bytes transferred, for the rate.
    pub fn sample(&mut self, now: Duration) {
        if let Some(transfer) = &mut self.transfer {
            transfer.sample(now);
        }
    }

    /// Returns a line for a log: progress, rate, time left, and what is being waited for.
    pub fn line(&self, now: Duration, waiting: Option<(Duration, &str)>) -> String {
        let mut line = match (&self.transfer, self.step) {
            (Some(transfer), _) => transfer.line(now),
            (None, Some((step, since))) => format!("{step}: {} so far", span(now.saturating_sub(since))),
            (None, None) => "still running".into(),
        };
        if let Some((time, what)) = waiting {
            line += &format!("; waiting for {what} ({})", span(time));
        }
        line
    }

    /// Returns the lines for a terminal of this size, each narrower than the terminal.
    pub fn frame(&self, columns: usize, rows: usize, now: Duration, waiting: Option<(Duration, &str)>) -> Vec<String> {
        let width = columns.saturating_sub(1);
        let mut lines = match (&self.transfer, self.step) {
            (Some(transfer), _) => transfer.frame(width, rows.saturating_sub(2), now),
            (None, Some((step, since))) => {
                let spinner = ["|", "/", "-", "\\"][(now.as_millis() / 250 % 4) as usize];
                let time = now.saturating_sub(since);
                let time = if time < STALL_TIME { String::new() } else { format!("  {}", span(time)) };
                vec![format!("{spinner} {step}{time}")]
            }
            (None, None) => Vec::new(),
        };
        if let Some((time, what)) = waiting.filter(|_| rows > 2 && !lines.is_empty()) {
            lines.push(format!("waiting for {what} ({})", span(time)));
        }
        lines.iter().map(|line| console::truncate_str(line, width, "…").into_owned()).collect()
    }
}

impl Transfer {
    fn new(jobs: &[Job], now: Duration) -> Self {
        let mut repos = Vec::new();
        let mut unfinished = HashMap::new();
        for job in jobs {
            if unfinished.insert(job.blob, (job.size, job.repo)).is_none() {
                repos.resize(repos.len().max(job.repo + 1), 0);
                repos[job.repo] += 1;
            }
        }
        repos.retain(|blobs| *blobs > 0 || jobs.is_empty());
        let mut numbers: Vec<usize> = jobs.iter().map(|job| job.repo).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for (_, repo) in unfinished.values_mut() {
            *repo = numbers.binary_search(repo).unwrap_or_default();
        }
        // Sizes may come from strangers.
        let total = unfinished.values().fold(0, |sum: u64, (size, _)| sum.saturating_add(*size));
        let samples = VecDeque::from([(now, 0)]);
        Transfer {
            blobs: unfinished.len(),
            unfinished,
            repos,
            total,
            last_progress: now,
            samples,
            ..Transfer::default()
        }
    }

    fn record(&mut self, event: Event, now: Duration) {
        match event {
            Event::Started { blob, name, size } => {
                self.started += 1;
                self.numbers.insert(blob, self.started);
                let blob = BlobProgress { name: printable(&name, 400), size, moved: 0, resumed: 0 };
                self.in_flight.insert(self.started, blob);
            }
            Event::Found { blob, bytes } => {
                self.total = self.total.saturating_sub(bytes);
                self.update(&blob, |blob| blob.resumed += bytes);
            }
            Event::Moved { blob, bytes } => {
                self.moved += bytes;
                self.last_progress = now;
                self.update(&blob, |blob| blob.moved += bytes);
            }
            Event::Lost { blob, bytes } => {
                self.moved = self.moved.saturating_sub(bytes);
                self.update(&blob, |blob| blob.moved = blob.moved.saturating_sub(bytes));
            }
            Event::Restarted { blob } => {
                let mut again = 0;
                self.update(&blob, |blob| again = std::mem::take(&mut blob.moved) + std::mem::take(&mut blob.resumed));
                self.total = self.total.saturating_add(again);
            }
            Event::Finished { blob } => {
                let progress = self.numbers.remove(&blob).and_then(|number| self.in_flight.remove(&number));
                let Some((size, repo)) = self.unfinished.remove(&blob) else { return };
                self.repos[repo] -= 1;
                // The rest of a blob that failed, or came from elsewhere, is no longer to be transferred.
                let done = progress.map_or(0, |blob| blob.moved + blob.resumed);
                self.total = self.total.saturating_sub(size.saturating_sub(done)).max(self.moved);
            }
            Event::Note(_) | Event::Step(_) | Event::Planned(_) => {}
        }
    }

    fn update(&mut self, blob: &BlobId, change: impl FnOnce(&mut BlobProgress)) {
        if let Some(progress) = self.numbers.get(blob).and_then(|number| self.in_flight.get_mut(number)) {
            change(progress);
        }
    }

    fn sample(&mut self, now: Duration) {
        self.samples.push_back((now, self.moved));
        while self.samples.len() > 2 && self.samples[1].0 + RATE_WINDOW <= now {
            self.samples.pop_front();
        }
    }

    /// Returns the rate in bytes per second.
    fn rate(&self, now: Duration) -> Option<f64> {
        let (then, before) = self.samples.front()?;
        let time = now.saturating_sub(*then);
        let bytes = self.moved.saturating_sub(*before);
        (time >= MIN_RATE_TIME && bytes > 0).then(|| bytes as f64 / time.as_secs_f64())
    }

    /// "12/94 blobs, repo 3/20"
    fn counts(&self) -> String {
        let blobs = format!("{}/{} blobs", self.blobs - self.unfinished.len(), self.blobs);
        let repos = self.repos.len();
        if repos < 2 {
            return blobs;
        }
        let done = self.repos.iter().filter(|left| **left == 0).count();
        format!("{blobs}, repo {}/{repos}", (done + 1).min(repos))
    }

    /// Returns the rate and the time left.
    fn pace(&self, now: Duration) -> (Option<String>, Option<String>) {
        let left = self.total.saturating_sub(self.moved);
        if left == 0 {
            return (None, Some("finishing".into()));
        }
        let stalled = now.saturating_sub(self.last_progress);
        if stalled >= STALL_TIME {
            return (None, Some(format!("stalled for {}", span(stalled))));
        }
        let Some(rate) = self.rate(now) else { return (None, None) };
        let seconds = (left as f64 / rate).ceil().clamp(1.0, 1e9);
        (Some(format!("{}/s", size(rate as u64))), Some(format!("{} left", span(Duration::from_secs(seconds as u64)))))
    }

    fn line(&self, now: Duration) -> String {
        let (rate, left) = self.pace(now);
        let bytes = format!("{} of {}", size(self.moved), size(self.total));
        let parts = [Some(bytes), rate, left].into_iter().flatten().collect::<Vec<_>>();
        format!("{}: {}", self.counts(), parts.join(", "))
    }

    fn frame(&self, width: usize, max_lines: usize, now: Duration) -> Vec<String> {
        let mut lines = vec![self.total_line(width, now)];
        // Oldest first, so that the lines do not change with every frame.
        for blob in self.in_flight.values().take(max_lines.min(MAX_BLOB_LINES)) {
            let percent = ((blob.moved + blob.resumed) * 100).checked_div(blob.size).unwrap_or(100).min(100);
            let name = fit_name(&blob.name, width.saturating_sub(NAME_OFFSET));
            lines.push(format!("{percent:>3} %  {:>9}  {name}", size(blob.size)));
        }
        lines
    }

    /// Returns the first line, with as much as fits in order of importance: counts, time left, rate, bytes, bar.
    fn total_line(&self, width: usize, now: Duration) -> String {
        let (rate, left) = self.pace(now);
        let counts = self.counts();
        let mut room = width.saturating_sub(counts.len());
        let mut fits = |text: Option<String>| {
            let text = text.filter(|text| text.len() + 2 <= room)?;
            room -= text.len() + 2;
            Some(text)
        };
        let left = fits(left);
        let rate = fits(rate);
        let bytes = fits(Some(format!("{} of {}", size(self.moved), size(self.total))));
        let bar = (bytes.is_some() && room >= 14).then(|| {
            let inner = (room - 4).min(40);
            let done = (self.moved as f64 / self.total.max(1) as f64 * inner as f64) as usize;
            let done = done.min(inner);
            format!("[{}{}]", "=".repeat(done), " ".repeat(inner - done))
        });
        [Some(counts), bytes, bar, rate, left].into_iter().flatten().collect::<Vec<_>>().join("  ")
    }
}

/// "45 s", "12 min", "3 h 5 min", "2 days"
fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=99 => format!("{seconds} s"),
        seconds @ 100..=7199 => format!("{} min", seconds.div_ceil(60)),
        seconds @ 7200..=172_799 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Shortens a repo's name and a path in it to fit, keeping the file name whole if possible.
fn fit_name(name: &str, width: usize) -> String {
    let columns = console::measure_text_width;
    if columns(name) <= width {
        return name.to_string();
    }
    let kept = width.saturating_sub(1);
    let file = name.rsplit('/').next().map_or(0, |file| columns(file) + 1);
    // Leave enough of the repo's name to distinguish repos.
    let tail = if file + 8 <= kept { file.max(kept / 2) } else { kept - kept / 2 };
    cut(name, kept - tail, tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(number: u8) -> BlobId {
        BlobId::Sha256([number; 32])
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const MIB: u64 = 1 << 20;

    fn start(running: &mut Running, number: u8, size: u64, now: u64) {
        let name = format!("org/model-{number}/model-0000{number}-of-00004.safetensors");
        running.record(Event::Started { blob: blob(number), name, size }, at(now));
    }

    /// Creates a transfer of four blobs of 100 MiB in three repos.
    fn transfer() -> Running {
        let mut running = Running::default();
        let job = |number, repo| Job { blob: blob(number), size: 100 * MIB, repo };
        running.record(Event::Planned(vec![job(1, 0), job(2, 4), job(3, 4), job(4, 7)]), at(0));
        running
    }

    #[test]
    fn blobs_repos_rate_and_time_are_shown() {
        let mut running = transfer();
        assert_eq!(running.line(at(0), None), "0/4 blobs, repo 1/3: 0 B of 400.0 MiB");
        start(&mut running, 1, 100 * MIB, 0);
        start(&mut running, 2, 100 * MIB, 0);
        running.record(Event::Moved { blob: blob(1), bytes: 100 * MIB }, at(9));
        running.record(Event::Moved { blob: blob(2), bytes: 50 * MIB }, at(10));
        running.record(Event::Finished { blob: blob(1) }, at(10));
        running.record(Event::Finished { blob: blob(1) }, at(10));
        running.sample(at(10));
        assert_eq!(running.line(at(10), None), "1/4 blobs, repo 2/3: 150.0 MiB of 400.0 MiB, 15.0 MiB/s, 17 s left");
        assert_eq!(
            running.frame(100, 24, at(10), None),
            [
                "1/4 blobs, repo 2/3  150.0 MiB of 400.0 MiB  [==========                   ]  15.0 MiB/s  17 s left",
                " 50 %  100.0 MiB  org/model-2/model-00002-of-00004.safetensors"
            ]
        );
        assert_eq!(
            running.frame(40, 10, at(10), None),
            ["1/4 blobs, repo 2/3  17 s left", " 50 %  100.0 MiB  org/model-…afetensors"]
        );
    }

    #[test]
    fn resumed_bytes_count_towards_neither_rate_nor_total() {
        let mut running = transfer();
        start(&mut running, 1, 100 * MIB, 0);
        running.record(Event::Found { blob: blob(1), bytes: 90 * MIB }, at(0));
        running.record(Event::Moved { blob: blob(1), bytes: 5 * MIB }, at(5));
        running.sample(at(5));
        assert_eq!(running.line(at(5), None), "0/4 blobs, repo 1/3: 5.0 MiB of 310.0 MiB, 1.0 MiB/s, 6 min left");
        assert!(running.frame(80, 24, at(5), None)[1].starts_with(" 95 %"));
        running.record(Event::Restarted { blob: blob(1) }, at(5));
        assert_eq!(running.line(at(5), None), "0/4 blobs, repo 1/3: 5.0 MiB of 405.0 MiB, 1.0 MiB/s, 7 min left");
    }

    #[test]
    fn finishing_replaces_the_time_left() {
        let mut running = transfer();
        for number in 1..=4 {
            start(&mut running, number, 100 * MIB, 0);
            running.record(Event::Moved { blob: blob(number), bytes: 100 * MIB - u64::from(number == 4) }, at(1));
        }
        running.sample(at(1));
        assert!(running.line(at(2), None).ends_with(", 1 s left"));
        running.record(Event::Moved { blob: blob(4), bytes: 1 }, at(2));
        assert!(running.line(at(2), None).ends_with(", finishing"));
        assert!(running.line(at(20), None).ends_with(", finishing"));
    }

    #[test]
    fn waiting_is_shown() {
        let mut running = transfer();
        start(&mut running, 1, 100 * MIB, 0);
        running.record(Event::Moved { blob: blob(1), bytes: MIB }, at(5));
        running.sample(at(40));
        let waiting = Some((at(35), "the store, which said 503 SlowDown"));
        assert_eq!(
            running.line(at(40), waiting),
            "0/4 blobs, repo 1/3: 1.0 MiB of 400.0 MiB, stalled for 35 s; waiting for the store, which said 503 \
             SlowDown (35 s)"
        );
        running.record(Event::Step("scanning the cache"), at(50));
        assert_eq!(running.line(at(80), None), "scanning the cache: 30 s so far");
        assert_eq!(running.frame(40, 10, at(80), waiting).len(), 2);
    }

    #[test]
    fn finished_blobs_reduce_the_total() {
        let mut running = transfer();
        start(&mut running, 1, 100 * MIB, 0);
        running.record(Event::Moved { blob: blob(1), bytes: 30 * MIB }, at(5));
        running.record(Event::Finished { blob: blob(1) }, at(5));
        running.record(Event::Finished { blob: blob(2) }, at(5));
        assert!(running.line(at(5), None).starts_with("2/4 blobs, repo 2/3: 30.0 MiB of 230.0 MiB"));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut running = transfer();
        start(&mut running, 1, 100 * MIB, 0);
        let name = "org/漢字漢字漢字漢字漢字漢字漢字\u{202e}漢字漢字漢字漢字漢字/データデータデータ.bin".to_string();
        running.record(Event::Started { blob: blob(2), name, size: 1 }, at(0));
        running.record(Event::Moved { blob: blob(1), bytes: MIB }, at(2));
        for columns in 1..130 {
            for rows in 0..12 {
                let frame = running.frame(columns, rows, at(3), Some((at(3), "the store")));
                assert!(frame.len() <= rows.max(1), "{frame:?}");
                for line in frame {
                    assert!(console::measure_text_width(&line) < columns.max(2), "{columns}: {line}");
                    assert!(!line.contains('\u{202e}'));
                }
            }
        }
    }

    #[test]
    fn the_file_name_is_kept() {
        let name = "meta-research/a-very-long-model-name-instruct-7b-gguf/model-00001-of-00004.safetensors";
        assert_eq!(fit_name(name, 48), "meta-research/…/model-00001-of-00004.safetensors");
        assert_eq!(fit_name(name, 128), name);
        assert_eq!(fit_name("org/some-model/onnx/model.onnx", 25), "org/some-mod…x/model.onnx");
        assert_eq!(fit_name(name, 20), "meta-rese…afetensors");
        for width in 0..100 {
            assert!(fit_name(name, width).chars().count() <= width.max(1), "{width}");
        }
    }
}
