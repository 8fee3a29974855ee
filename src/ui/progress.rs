//! Progress on stderr: lines that are drawn over and over on a terminal, a line now and then everywhere else. What they
//! say is made in [`super::running`]; here are the clock, the thread and the terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use super::running::Running;
use super::text::time::stamp;
use crate::escape::{Keep, escape};
use crate::progress::{Event, Progress, longest_wait};

/// How often a terminal is drawn.
const GLANCE: Duration = Duration::from_millis(125);
/// How often a log gets a line: at least every 30 seconds, whatever the scheduler does.
const EVERY: Duration = Duration::from_secs(25);
/// Another time for that, in seconds.
pub const EVERY_VARIABLE: &str = "HF_CACHE_SYNC_PROGRESS_SECONDS";

/// How progress is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// On a terminal, in place.
    Drawn,
    /// A line now and then.
    Lines,
    /// Not at all.
    Nothing,
}

impl Show {
    /// What suits stderr. A terminal that cannot move its cursor is as good as none.
    pub fn on_stderr() -> Self {
        let able = io::stderr().is_terminal() && Term::stderr().features().is_attended();
        if able && std::env::var_os("TERM").is_none_or(|term| term != "dumb") { Show::Drawn } else { Show::Lines }
    }
}

/// Tells progress on stderr.
#[derive(Clone)]
pub struct Bars(Arc<Inner>);

struct Inner {
    show: Show,
    quiet: bool,
    every: Duration,
    start: Instant,
    state: Mutex<State>,
    changed: Condvar,
    /// What is drawn at the moment; held by whoever writes to stderr.
    drawn: Mutex<Option<ProgressBar>>,
}

#[derive(Default)]
struct State {
    running: Running,
    /// Whether the thread that tells is there.
    told: bool,
    /// The command has ended: what still runs is not told any more.
    over: bool,
}

impl Bars {
    /// Progress is told as `show` says; notes are printed unless `quiet`.
    pub fn new(show: Show, quiet: bool) -> Self {
        let every = std::env::var(EVERY_VARIABLE).ok().and_then(|text| text.parse().ok());
        let every = every.and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok()).filter(|t| !t.is_zero());
        Bars(Arc::new(Inner {
            show,
            quiet,
            every: every.unwrap_or(EVERY),
            start: Instant::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
            drawn: Mutex::default(),
        }))
    }

    /// Removes what is drawn, until the next event.
    pub fn clear(&self) {
        self.0.state().running = Running::default();
        self.0.erase();
    }

    /// Removes what is drawn, for good.
    pub fn finish(&self) {
        let mut state = self.0.state();
        state.over = true;
        state.running = Running::default();
        self.0.changed.notify_all();
        drop(state);
        self.0.erase();
    }

    /// Writes to stderr without tearing what is drawn there.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let write = || {
            let mut stderr = io::stderr().lock();
            stderr.write_all(bytes).and_then(|()| stderr.flush())
        };
        match &*self.0.drawn() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn note(&self, text: &str) {
        if !self.0.quiet {
            let _ = self.write(format!("{}\n", escape(text, Keep::Nothing)).as_bytes());
        }
    }
}

impl Progress for Bars {
    fn event(&self, event: Event) {
        if let Event::Note(text) = &event {
            return self.note(text);
        }
        if self.0.show == Show::Nothing {
            return;
        }
        let now = self.0.start.elapsed();
        let mut state = self.0.state();
        if state.over {
            return;
        }
        state.running.take(event, now);
        if !state.told && !state.running.is_idle() {
            let inner = self.0.clone();
            let teller = std::thread::Builder::new().name("progress".into()).spawn(move || match inner.show {
                Show::Drawn => inner.draw(),
                _ => inner.tell(),
            });
            state.told = teller.is_ok();
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drawn(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn erase(&self) {
        if let Some(bar) = self.drawn().take() {
            bar.finish_and_clear();
        }
    }

    /// Waits; false at the end.
    fn pause(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), time, |state| !state.over);
        !waited.unwrap_or_else(PoisonError::into_inner).0.over
    }

    /// What is waited for, when nothing else goes on.
    fn waiting(&self, running: &Running, now: Duration, least: Duration) -> Option<(Duration, String)> {
        longest_wait(least).filter(|_| running.is_still(now, least))
    }

    fn draw(&self) {
        let mut since_sample = Duration::ZERO;
        while self.pause(GLANCE) {
            let size = Term::stderr().size();
            let now = self.start.elapsed();
            let mut state = self.state();
            since_sample += GLANCE;
            if since_sample >= GLANCE * 4 {
                state.running.sample(now);
                since_sample = Duration::ZERO;
            }
            let waiting = self.waiting(&state.running, now, Duration::from_secs(3));
            let waiting = waiting.as_ref().map(|(time, what)| (*time, what.as_str()));
            let frame = state.running.frame(size.1.into(), size.0.into(), now, waiting);
            let mut drawn = self.drawn();
            // Only now: whoever ends the progress has either seen the bar or keeps it from being drawn.
            let over = state.over || state.running.is_idle();
            drop(state);
            if over {
                continue;
            }
            drawn.get_or_insert_with(new_bar).set_message(frame.join("\n"));
        }
    }

    fn tell(&self) {
        while self.pause(self.every) {
            let now = self.start.elapsed();
            let mut state = self.state();
            state.running.sample(now);
            if state.running.is_idle() {
                continue;
            }
            let waiting = self.waiting(&state.running, now, self.every / 3);
            let line = state.running.line(now, waiting.as_ref().map(|(time, what)| (*time, what.as_str())));
            // Under the lock: not a line comes after the end.
            let _ = writeln!(io::stderr().lock(), "{}  {}", stamp(), escape(&line, Keep::Nothing));
        }
    }
}

fn new_bar() -> ProgressBar {
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(Screen::default()), 20);
    let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, target).with_style(style)
}

/// The terminal as indicatif draws on it. Each line ends where its text ends, so that a terminal that is made wider or
/// narrower leaves as many rows as can be told from its width now; and each frame is one write.
#[derive(Debug, Default)]
struct Screen(Mutex<Frame>);

#[derive(Debug, Default)]
struct Frame {
    /// Columns of the lines that stand there, the cursor at the start of the last: what the terminal echoes of a ctrl-c
    /// begins no new row then.
    there: Vec<usize>,
    /// Columns of those that are being written.
    coming: Vec<usize>,
    begun: bool,
    out: String,
}

impl Screen {
    fn frame(&self) -> MutexGuard<'_, Frame> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frame {
    /// Begins a frame: what stands there goes.
    fn begin(&mut self, columns: usize) {
        if !std::mem::replace(&mut self.begun, true) && !self.there.is_empty() {
            self.out += &erasure(&self.there, columns);
        }
    }
}

/// What removes these lines from a terminal that is so wide by now, with the cursor at the start of the last.
fn erasure(lines: &[usize], columns: usize) -> String {
    let above = lines.split_last().map_or(&[][..], |(_, above)| above);
    match above.iter().map(|width| width.div_ceil(columns.max(1)).max(1)).sum::<usize>() {
        0 => "\r\u{1b}[J".into(),
        up => format!("\r\u{1b}[{up}A\u{1b}[J"),
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        Term::stderr().size().1
    }

    fn height(&self) -> u16 {
        Term::stderr().size().0
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        self.frame().begin(self.width().into());
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        let width = self.width().into();
        let mut frame = self.frame();
        frame.begin(width);
        // indicatif fills lines up with blanks.
        if !text.trim_start_matches(' ').is_empty() {
            if !frame.coming.is_empty() {
                frame.out.push_str("\r\n");
            }
            frame.coming.push(console::measure_text_width(text));
            frame.out.push_str(text);
        }
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut frame = self.frame();
        if !frame.coming.is_empty() {
            frame.out.push('\r');
        }
        let mut stderr = io::stderr().lock();
        stderr.write_all(frame.out.as_bytes())?;
        stderr.flush()?;
        *frame = Frame { there: std::mem::take(&mut frame.coming), ..Frame::default() };
        Ok(())
    }
}

/// Writes log lines, each whole and above what is drawn.
pub struct LogWriter(pub Bars);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_erased_with_the_rows_that_they_take_by_now() {
        assert_eq!(erasure(&[79], 80), "\r\u{1b}[J");
        assert_eq!(erasure(&[79, 30, 0], 80), "\r\u{1b}[2A\u{1b}[J");
        assert_eq!(erasure(&[79, 30], 40), "\r\u{1b}[2A\u{1b}[J");
        assert_eq!(erasure(&[30, 79], 40), "\r\u{1b}[1A\u{1b}[J", "the cursor is at the start of the last");
        assert_eq!(erasure(&[39, 39], 200), "\r\u{1b}[1A\u{1b}[J");
    }

    #[test]
    fn a_frame_replaces_the_one_before() {
        let screen = Screen::default();
        screen.frame().begin(80);
        screen.write_str("one").unwrap();
        screen.write_str("       ").unwrap();
        screen.write_str("two").unwrap();
        screen.write_str("").unwrap();
        assert_eq!(screen.frame().out, "one\r\ntwo");
        assert_eq!(screen.frame().coming, [3, 3]);
    }
}
