//! What a running command is at, as lines for people. Pure: events and the time go in, text comes out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::table::cut;
use super::text::size;
use crate::error::printable;
use crate::model::ids::BlobId;
use crate::progress::{Event, Job};

/// Lines of single blobs at the most.
const MOST_LINES: usize = 4;
/// Columns of such a line before the name.
const BESIDE_NAME: usize = 18;
/// The rate is that of the last while, so that it follows what happens, and does not jump with every part.
const WINDOW: Duration = Duration::from_secs(20);
/// After this time without a byte that is said instead of a rate.
const STILL: Duration = Duration::from_secs(5);
/// A rate over less than this is not worth telling.
const SOON: Duration = Duration::from_secs(1);

/// What is going on.
#[derive(Debug, Default)]
pub struct Running {
    step: Option<(&'static str, Duration)>,
    moving: Option<Moving>,
}

/// A transfer.
#[derive(Debug, Default)]
struct Moving {
    /// The blobs that are not finished, each with its size and the number of its repo.
    left: HashMap<BlobId, (u64, usize)>,
    blobs: usize,
    /// Unfinished blobs of each repo.
    repos: Vec<usize>,
    /// Bytes that this run has to move, and those that it has moved.
    total: u64,
    moved: u64,
    flying: BTreeMap<u64, Flying>,
    numbers: HashMap<BlobId, u64>,
    started: u64,
    last_move: Duration,
    /// When how much had been moved.
    samples: VecDeque<(Duration, u64)>,
}

/// A blob on its way.
#[derive(Debug)]
struct Flying {
    name: String,
    size: u64,
    moved: u64,
    /// From an earlier run.
    found: u64,
}

impl Running {
    /// Takes an event that came at this time.
    pub fn take(&mut self, event: Event, now: Duration) {
        match event {
            Event::Note(_) => {}
            Event::Step(text) => {
                self.step = Some((text, now));
                self.moving = None;
            }
            Event::Planned(jobs) => {
                if !jobs.is_empty() {
                    self.step = None;
                    self.moving = Some(Moving::new(&jobs, now));
                }
            }
            other => {
                if let Some(moving) = &mut self.moving {
                    moving.take(other, now);
                }
            }
        }
    }

    /// Whether there is anything to tell.
    pub fn is_idle(&self) -> bool {
        self.step.is_none() && self.moving.is_none()
    }

    /// Whether nothing has moved for so long.
    pub fn is_still(&self, now: Duration, time: Duration) -> bool {
        self.moving.as_ref().is_none_or(|moving| now.saturating_sub(moving.last_move) >= time)
    }

    /// Notes how much has been moved by now, for the rate.
    pub fn sample(&mut self, now: Duration) {
        if let Some(moving) = &mut self.moving {
            moving.sample(now);
        }
    }

    /// One line for a log: what is done, how fast it goes, how long it will take, what is waited for.
    pub fn line(&self, now: Duration, waiting: Option<(Duration, &str)>) -> String {
        let mut line = match (&self.moving, self.step) {
            (Some(moving), _) => moving.line(now),
            (None, Some((step, since))) => format!("{step}: {} so far", span(now.saturating_sub(since))),
            (None, None) => "still at work".into(),
        };
        if let Some((time, what)) = waiting {
            line += &format!("; waiting for {what} ({})", span(time));
        }
        line
    }

    /// The lines for a terminal of this size, each narrower than that.
    pub fn frame(&self, columns: usize, rows: usize, now: Duration, waiting: Option<(Duration, &str)>) -> Vec<String> {
        let width = columns.saturating_sub(1);
        let mut lines = match (&self.moving, self.step) {
            (Some(moving), _) => moving.frame(width, rows.saturating_sub(2), now),
            (None, Some((step, since))) => {
                let spinner = ["|", "/", "-", "\\"][(now.as_millis() / 250 % 4) as usize];
                let time = now.saturating_sub(since);
                let time = if time < STILL { String::new() } else { format!("  {}", span(time)) };
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

impl Moving {
    fn new(jobs: &[Job], now: Duration) -> Self {
        let mut repos = Vec::new();
        let mut left = HashMap::new();
        for job in jobs {
            if left.insert(job.blob, (job.size, job.repo)).is_none() {
                repos.resize(repos.len().max(job.repo + 1), 0);
                repos[job.repo] += 1;
            }
        }
        repos.retain(|blobs| *blobs > 0 || jobs.is_empty());
        let mut numbers: Vec<usize> = jobs.iter().map(|job| job.repo).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for (_, repo) in left.values_mut() {
            *repo = numbers.binary_search(repo).unwrap_or_default();
        }
        let total = left.values().map(|(size, _)| size).sum();
        let samples = VecDeque::from([(now, 0)]);
        Moving { blobs: left.len(), left, repos, total, last_move: now, samples, ..Moving::default() }
    }

    fn take(&mut self, event: Event, now: Duration) {
        match event {
            Event::Started { blob, name, size } => {
                self.started += 1;
                self.numbers.insert(blob, self.started);
                self.flying.insert(self.started, Flying { name: printable(&name, 400), size, moved: 0, found: 0 });
            }
            Event::Found { blob, bytes } => {
                self.total = self.total.saturating_sub(bytes);
                self.flying(&blob, |flying| flying.found += bytes);
            }
            Event::Moved { blob, bytes } => {
                self.moved += bytes;
                self.last_move = now;
                self.flying(&blob, |flying| flying.moved += bytes);
            }
            Event::Lost { blob, bytes } => {
                self.moved = self.moved.saturating_sub(bytes);
                self.flying(&blob, |flying| flying.moved = flying.moved.saturating_sub(bytes));
            }
            Event::Restarted { blob } => {
                let mut again = 0;
                self.flying(&blob, |flying| {
                    again = std::mem::take(&mut flying.moved) + std::mem::take(&mut flying.found)
                });
                self.total += again;
            }
            Event::Finished { blob } => {
                let flying = self.numbers.remove(&blob).and_then(|number| self.flying.remove(&number));
                let Some((size, repo)) = self.left.remove(&blob) else { return };
                self.repos[repo] -= 1;
                // What failed, or came in another way, is not moved any more.
                let there = flying.map_or(0, |flying| flying.moved + flying.found);
                self.total = self.total.saturating_sub(size.saturating_sub(there)).max(self.moved);
            }
            Event::Note(_) | Event::Step(_) | Event::Planned(_) => {}
        }
    }

    fn flying(&mut self, blob: &BlobId, change: impl FnOnce(&mut Flying)) {
        if let Some(flying) = self.numbers.get(blob).and_then(|number| self.flying.get_mut(number)) {
            change(flying);
        }
    }

    fn sample(&mut self, now: Duration) {
        self.samples.push_back((now, self.moved));
        while self.samples.len() > 2 && self.samples[1].0 + WINDOW <= now {
            self.samples.pop_front();
        }
    }

    /// Bytes per second.
    fn rate(&self, now: Duration) -> Option<f64> {
        let (then, before) = self.samples.front()?;
        let time = now.saturating_sub(*then);
        let bytes = self.moved.saturating_sub(*before);
        (time >= SOON && bytes > 0).then(|| bytes as f64 / time.as_secs_f64())
    }

    /// "12/94 blobs, repo 3/20"
    fn counts(&self) -> String {
        let blobs = format!("{}/{} blobs", self.blobs - self.left.len(), self.blobs);
        let repos = self.repos.len();
        if repos < 2 {
            return blobs;
        }
        let done = self.repos.iter().filter(|left| **left == 0).count();
        format!("{blobs}, repo {}/{repos}", (done + 1).min(repos))
    }

    /// How fast, and for how long still.
    fn pace(&self, now: Duration) -> (Option<String>, Option<String>) {
        let left = self.total.saturating_sub(self.moved);
        if left == 0 {
            return (None, Some("finishing".into()));
        }
        let still = now.saturating_sub(self.last_move);
        if still >= STILL {
            return (None, Some(format!("nothing moved for {}", span(still))));
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

    fn frame(&self, width: usize, most: usize, now: Duration) -> Vec<String> {
        let mut lines = vec![self.total_line(width, now)];
        // The longest on their way first: these do not change with every glance.
        for flying in self.flying.values().take(most.min(MOST_LINES)) {
            let percent = ((flying.moved + flying.found) * 100).checked_div(flying.size).unwrap_or(100).min(100);
            let name = fitted(&flying.name, width.saturating_sub(BESIDE_NAME));
            lines.push(format!("{percent:>3} %  {:>9}  {name}", size(flying.size)));
        }
        lines
    }

    /// What fits, the most important first: counts, the time left, the rate, bytes, a bar.
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

/// A repo and a file in it, cut in the middle where it is too wide; the file's own name stays whole if it can.
fn fitted(name: &str, width: usize) -> String {
    let columns = console::measure_text_width;
    if columns(name) <= width {
        return name.to_string();
    }
    let kept = width.saturating_sub(1);
    let file = name.rsplit('/').next().map_or(0, |file| columns(file) + 1);
    // A file name that takes nearly everything leaves nothing to tell repos apart.
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
        running.take(Event::Started { blob: blob(number), name, size }, at(now));
    }

    /// Four blobs of 100 MiB in three repos.
    fn transfer() -> Running {
        let mut running = Running::default();
        let job = |number, repo| Job { blob: blob(number), size: 100 * MIB, repo };
        running.take(Event::Planned(vec![job(1, 0), job(2, 4), job(3, 4), job(4, 7)]), at(0));
        running
    }

    #[test]
    fn blobs_repos_rate_and_time_are_told() {
        let mut running = transfer();
        assert_eq!(running.line(at(0), None), "0/4 blobs, repo 1/3: 0 B of 400.0 MiB");
        start(&mut running, 1, 100 * MIB, 0);
        start(&mut running, 2, 100 * MIB, 0);
        running.take(Event::Moved { blob: blob(1), bytes: 100 * MIB }, at(9));
        running.take(Event::Moved { blob: blob(2), bytes: 50 * MIB }, at(10));
        running.take(Event::Finished { blob: blob(1) }, at(10));
        running.take(Event::Finished { blob: blob(1) }, at(10));
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
    fn what_an_earlier_run_has_moved_counts_neither_as_rate_nor_as_total() {
        let mut running = transfer();
        start(&mut running, 1, 100 * MIB, 0);
        running.take(Event::Found { blob: blob(1), bytes: 90 * MIB }, at(0));
        running.take(Event::Moved { blob: blob(1), bytes: 5 * MIB }, at(5));
        running.sample(at(5));
        assert_eq!(running.line(at(5), None), "0/4 blobs, repo 1/3: 5.0 MiB of 310.0 MiB, 1.0 MiB/s, 6 min left");
        assert!(running.frame(80, 24, at(5), None)[1].starts_with(" 95 %"));
        running.take(Event::Restarted { blob: blob(1) }, at(5));
        assert_eq!(running.line(at(5), None), "0/4 blobs, repo 1/3: 5.0 MiB of 405.0 MiB, 1.0 MiB/s, 7 min left");
    }

    #[test]
    fn nothing_left_is_never_said_in_seconds() {
        let mut running = transfer();
        for number in 1..=4 {
            start(&mut running, number, 100 * MIB, 0);
            running.take(Event::Moved { blob: blob(number), bytes: 100 * MIB - u64::from(number == 4) }, at(1));
        }
        running.sample(at(1));
        assert!(running.line(at(2), None).ends_with(", 1 s left"));
        running.take(Event::Moved { blob: blob(4), bytes: 1 }, at(2));
        assert!(running.line(at(2), None).ends_with(", finishing"));
        assert!(running.line(at(20), None).ends_with(", finishing"));
    }

    #[test]
    fn waiting_is_said() {
        let mut running = transfer();
        start(&mut running, 1, 100 * MIB, 0);
        running.take(Event::Moved { blob: blob(1), bytes: MIB }, at(5));
        running.sample(at(40));
        let waiting = Some((at(35), "the store, which said 503 SlowDown"));
        assert_eq!(
            running.line(at(40), waiting),
            "0/4 blobs, repo 1/3: 1.0 MiB of 400.0 MiB, nothing moved for 35 s; waiting for the store, which said 503 \
             SlowDown (35 s)"
        );
        running.take(Event::Step("scanning the cache"), at(50));
        assert_eq!(running.line(at(80), None), "scanning the cache: 30 s so far");
        assert_eq!(running.frame(40, 10, at(80), waiting).len(), 2);
    }

    #[test]
    fn what_failed_or_came_in_another_way_is_not_waited_for() {
        let mut running = transfer();
        start(&mut running, 1, 100 * MIB, 0);
        running.take(Event::Moved { blob: blob(1), bytes: 30 * MIB }, at(5));
        running.take(Event::Finished { blob: blob(1) }, at(5));
        running.take(Event::Finished { blob: blob(2) }, at(5));
        assert!(running.line(at(5), None).starts_with("2/4 blobs, repo 2/3: 30.0 MiB of 230.0 MiB"));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut running = transfer();
        start(&mut running, 1, 100 * MIB, 0);
        let name = "org/漢字漢字漢字漢字漢字漢字漢字\u{202e}漢字漢字漢字漢字漢字/データデータデータ.bin".to_string();
        running.take(Event::Started { blob: blob(2), name, size: 1 }, at(0));
        running.take(Event::Moved { blob: blob(1), bytes: MIB }, at(2));
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
    fn the_file_name_stays() {
        let name = "meta-research/a-very-long-model-name-instruct-7b-gguf/model-00001-of-00004.safetensors";
        assert_eq!(fitted(name, 48), "meta-research/…/model-00001-of-00004.safetensors");
        assert_eq!(fitted(name, 128), name);
        assert_eq!(fitted("org/some-model/onnx/model.onnx", 25), "org/some-mod…x/model.onnx");
        assert_eq!(fitted(name, 20), "meta-rese…afetensors");
        for width in 0..100 {
            assert!(fitted(name, width).chars().count() <= width.max(1), "{width}");
        }
    }
}
