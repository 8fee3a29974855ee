//! Progress on stderr: redrawn in place on a terminal, and periodic lines elsewhere. The text comes from
//! [`super::running`]; this module has the clock, the thread and the terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use super::hints::GivenOptions;
use super::running::Running;
use super::text::time::stamp;
use crate::escape::{Keep, escape};
use crate::progress::{Event, Progress, longest_wait};

/// Interval between frames on a terminal.
const FRAME_INTERVAL: Duration = Duration::from_millis(125);
/// Interval between lines in a log, short enough for one every 30 seconds despite scheduling delays.
const LINE_INTERVAL: Duration = Duration::from_secs(25);
/// The variable that overrides this interval, in seconds.
pub const INTERVAL_VARIABLE: &str = "HF_CACHE_SYNC_PROGRESS_SECONDS";

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressMode {
    /// Redrawn in place on a terminal.
    Drawn,
    /// Periodic lines.
    Lines,
    /// Not at all.
    Hidden,
}

impl ProgressMode {
    /// Returns the mode for stderr. A terminal that cannot move its cursor counts as none.
    pub fn for_stderr() -> Self {
        let is_capable = io::stderr().is_terminal() && Term::stderr().features().is_attended();
        if is_capable && std::env::var_os("TERM").is_none_or(|term| term != "dumb") {
            ProgressMode::Drawn
        } else {
            ProgressMode::Lines
        }
    }
}

/// The progress display on stderr.
#[derive(Clone)]
pub struct Bars(Arc<Inner>);

struct Inner {
    mode: ProgressMode,
    quiet: bool,
    options: GivenOptions,
    interval: Duration,
    start: Instant,
    state: Mutex<State>,
    changed: Condvar,
    /// The bar currently on the terminal; locked while writing to stderr.
    drawn: Mutex<Option<ProgressBar>>,
}

#[derive(Default)]
struct State {
    running: Running,
    /// Whether the display thread is running.
    has_thread: bool,
    /// The command has ended, so nothing more is shown.
    is_over: bool,
}

impl Bars {
    /// Creates a display. Notes are printed unless `quiet`, and commands in them get these options.
    pub fn new(mode: ProgressMode, quiet: bool, options: GivenOptions) -> Self {
        let interval = std::env::var(INTERVAL_VARIABLE).ok().and_then(|text| text.parse().ok());
        let interval =
            interval.and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok()).filter(|t| !t.is_zero());
        Bars(Arc::new(Inner {
            mode,
            quiet,
            options,
            interval: interval.unwrap_or(LINE_INTERVAL),
            start: Instant::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
            drawn: Mutex::default(),
        }))
    }

    /// Clears the display until the next event.
    pub fn clear(&self) {
        self.0.state().running = Running::default();
        self.0.erase();
    }

    /// Clears the display for good.
    pub fn finish(&self) {
        let mut state = self.0.state();
        state.is_over = true;
        state.running = Running::default();
        self.0.changed.notify_all();
        drop(state);
        self.0.erase();
    }

    /// Writes to stderr without garbling the display.
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
            let _ = self.write(format!("{}\n", escape(&self.0.options.complete(text), Keep::Nothing)).as_bytes());
        }
    }
}

impl Progress for Bars {
    fn event(&self, event: Event) {
        if let Event::Note(text) = &event {
            return self.note(text);
        }
        if self.0.mode == ProgressMode::Hidden {
            return;
        }
        let now = self.0.start.elapsed();
        let mut state = self.0.state();
        if state.is_over {
            return;
        }
        state.running.record(event, now);
        if !state.has_thread && !state.running.is_idle() {
            let inner = self.0.clone();
            let thread = std::thread::Builder::new().name("progress".into()).spawn(move || match inner.mode {
                ProgressMode::Drawn => inner.draw(),
                _ => inner.print_lines(),
            });
            state.has_thread = thread.is_ok();
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

    /// Sleeps. Returns false once the command has ended.
    fn pause(&self, time: Duration) -> bool {
        let result = self.changed.wait_timeout_while(self.state(), time, |state| !state.is_over);
        !result.unwrap_or_else(PoisonError::into_inner).0.is_over
    }

    /// Returns the longest wait and its reason, if nothing has been transferred meanwhile.
    fn waiting(&self, running: &Running, now: Duration, min: Duration) -> Option<(Duration, String)> {
        longest_wait(min).filter(|_| running.is_stalled(now, min))
    }

    fn draw(&self) {
        let mut since_sample = Duration::ZERO;
        while self.pause(FRAME_INTERVAL) {
            let size = Term::stderr().size();
            let now = self.start.elapsed();
            let mut state = self.state();
            since_sample += FRAME_INTERVAL;
            if since_sample >= FRAME_INTERVAL * 4 {
                state.running.sample(now);
                since_sample = Duration::ZERO;
            }
            let waiting = self.waiting(&state.running, now, Duration::from_secs(3));
            let waiting = waiting.as_ref().map(|(time, what)| (*time, what.as_str()));
            let frame = state.running.frame(size.1.into(), size.0.into(), now, waiting);
            let mut drawn = self.drawn();
            // Checked while holding the lock on the bar: `clear` and `finish` then either remove the bar or prevent it.
            let is_over = state.is_over || state.running.is_idle();
            drop(state);
            if is_over {
                continue;
            }
            drawn.get_or_insert_with(new_bar).set_message(frame.join("\n"));
        }
    }

    fn print_lines(&self) {
        while self.pause(self.interval) {
            let now = self.start.elapsed();
            let mut state = self.state();
            state.running.sample(now);
            if state.running.is_idle() {
                continue;
            }
            let waiting = self.waiting(&state.running, now, self.interval / 3);
            let line = state.running.line(now, waiting.as_ref().map(|(time, what)| (*time, what.as_str())));
            // Written while holding the lock, so that no line follows the end.
            let _ = writeln!(io::stderr().lock(), "{}  {}", stamp(), escape(&line, Keep::Nothing));
        }
    }
}

fn new_bar() -> ProgressBar {
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(Screen::default()), 20);
    let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, target).with_style(style)
}

/// The terminal for indicatif to draw on. Lines have no trailing blanks, so that after the terminal is resized, the number
/// of rows they occupy follows from its current width. Each frame is a single write.
#[derive(Debug, Default)]
struct Screen(Mutex<Frame>);

#[derive(Debug, Default)]
struct Frame {
    /// Widths of the lines on the screen. The cursor is at the start of the last, so that an echoed ^C does not start a new
    /// row.
    shown: Vec<usize>,
    /// Widths of the lines of the next frame.
    pending: Vec<usize>,
    has_begun: bool,
    out: String,
}

impl Screen {
    fn frame(&self) -> MutexGuard<'_, Frame> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frame {
    /// Begins a frame by erasing the previous one.
    fn begin(&mut self, columns: usize) {
        if !std::mem::replace(&mut self.has_begun, true) && !self.shown.is_empty() {
            self.out += &erase_sequence(&self.shown, columns);
        }
    }
}

/// Returns the escape sequence that erases lines of these widths from a terminal with this many columns. The cursor must be
/// at the start of the last line.
fn erase_sequence(lines: &[usize], columns: usize) -> String {
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
        // indicatif pads lines with blanks.
        if !text.trim_start_matches(' ').is_empty() {
            if !frame.pending.is_empty() {
                frame.out.push_str("\r\n");
            }
            frame.pending.push(console::measure_text_width(text));
            frame.out.push_str(text);
        }
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut frame = self.frame();
        if !frame.pending.is_empty() {
            frame.out.push('\r');
        }
        let mut stderr = io::stderr().lock();
        stderr.write_all(frame.out.as_bytes())?;
        stderr.flush()?;
        *frame = Frame { shown: std::mem::take(&mut frame.pending), ..Frame::default() };
        Ok(())
    }
}

/// Writes log lines above the progress display, without tearing them.
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
    fn erasing_accounts_for_rows_after_a_resize() {
        assert_eq!(erase_sequence(&[79], 80), "\r\u{1b}[J");
        assert_eq!(erase_sequence(&[79, 30, 0], 80), "\r\u{1b}[2A\u{1b}[J");
        assert_eq!(erase_sequence(&[79, 30], 40), "\r\u{1b}[2A\u{1b}[J");
        assert_eq!(erase_sequence(&[30, 79], 40), "\r\u{1b}[1A\u{1b}[J", "the cursor is at the start of the last");
        assert_eq!(erase_sequence(&[39, 39], 200), "\r\u{1b}[1A\u{1b}[J");
    }

    #[test]
    fn a_frame_without_a_predecessor_erases_nothing() {
        let screen = Screen::default();
        screen.frame().begin(80);
        screen.write_str("one").unwrap();
        screen.write_str("       ").unwrap();
        screen.write_str("two").unwrap();
        screen.write_str("").unwrap();
        assert_eq!(screen.frame().out, "one\r\ntwo");
        assert_eq!(screen.frame().pending, [3, 3]);
    }
}
