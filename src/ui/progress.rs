//! Bars: one for everything, and a line for each large blob in flight. Events in, drawing out.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::ids::BlobId;
use crate::progress::{Event, Progress};

/// Blobs from this size on get a line of their own.
const LARGE: u64 = 64 << 20;
/// Lines of single blobs at the most.
const MOST_LINES: usize = 4;
/// Columns of such a line before the name.
const BESIDE_NAME: usize = 32;

/// A repo and a file in it, cut in the middle where it is too wide; the file's own name stays whole if it can.
fn fitted(name: &str, width: usize) -> String {
    let chars: Vec<char> = name.chars().collect();
    if chars.len() <= width {
        return name.to_string();
    }
    let kept = width.saturating_sub(1);
    let file = name.rsplit('/').next().map_or(0, |file| file.chars().count() + 1);
    // A file name that takes nearly everything leaves nothing to tell repos apart.
    let tail = if file + 8 <= kept { file.max(kept / 2) } else { kept - kept / 2 };
    let (head, tail) = (&chars[..kept - tail], &chars[chars.len() - tail..]);
    head.iter().chain(&['…']).chain(tail).collect()
}

/// Draws progress on stderr, or nothing when that is no terminal.
#[derive(Clone)]
pub struct Bars {
    multi: MultiProgress,
    visible: bool,
    quiet: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    step: Option<ProgressBar>,
    total: Option<ProgressBar>,
    moved: u64,
    lines: HashMap<BlobId, ProgressBar>,
}

impl Bars {
    /// Bars that are drawn when `visible`; notes are printed unless `quiet`.
    pub fn new(visible: bool, quiet: bool) -> Self {
        let target = if visible { ProgressDrawTarget::stderr_with_hz(8) } else { ProgressDrawTarget::hidden() };
        Bars { multi: MultiProgress::with_draw_target(target), visible, quiet, state: Arc::default() }
    }

    /// Removes all bars.
    pub fn clear(&self) {
        let mut state = self.lock();
        let State { step, total, lines, .. } = &mut *state;
        step.take()
            .into_iter()
            .chain(total.take())
            .chain(lines.drain().map(|(_, bar)| bar))
            .for_each(|bar| bar.finish_and_clear());
        let _ = self.multi.clear();
    }

    /// A writer for log lines that does not tear the bars.
    pub fn log_writer(&self) -> LogWriter {
        LogWriter(self.multi.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn bar(&self, length: u64, template: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.multi.add(ProgressBar::new(length).with_style(style.progress_chars("=> ")));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            self.multi.suspend(|| {
                let _ = writeln!(io::stderr().lock(), "{text}");
            });
        }
    }
}

impl Progress for Bars {
    fn event(&self, event: Event) {
        if let Event::Note(text) = &event {
            return self.note(text);
        }
        if !self.visible {
            return;
        }
        let mut state = self.lock();
        match event {
            Event::Note(_) => {}
            Event::Step(text) => {
                let bar = match state.step.take() {
                    Some(bar) => bar,
                    None => self.bar(0, "{spinner} {msg}"),
                };
                bar.set_message(text);
                state.step = Some(bar);
            }
            Event::Planned { blobs, bytes } => {
                if let Some(bar) = state.step.take() {
                    bar.finish_and_clear();
                }
                if blobs > 0 {
                    let template =
                        "{bytes:>11} / {total_bytes:<11} [{wide_bar}] {binary_bytes_per_sec:>11}  {eta:>5} left";
                    state.total = Some(self.bar(bytes, template));
                    state.moved = 0;
                }
            }
            Event::Started { blob, name, size } => {
                if size >= LARGE && state.lines.len() < MOST_LINES {
                    let bar = self.bar(size, "{bytes:>11} / {total_bytes:<11} {percent:>3}%  {wide_msg}");
                    let width = usize::from(console::Term::stderr().size().1).saturating_sub(BESIDE_NAME);
                    bar.set_message(fitted(&crate::error::printable(&name, 200), width));
                    state.lines.insert(blob, bar);
                }
            }
            Event::Moved { blob, bytes } => {
                state.moved += bytes;
                let moved = state.moved;
                state.total.iter().for_each(|bar| bar.set_position(moved));
                state.lines.get(&blob).into_iter().for_each(|bar| bar.inc(bytes));
            }
            Event::Lost { blob, bytes } => {
                state.moved = state.moved.saturating_sub(bytes);
                let moved = state.moved;
                state.total.iter().for_each(|bar| bar.set_position(moved));
                state
                    .lines
                    .get(&blob)
                    .into_iter()
                    .for_each(|bar| bar.set_position(bar.position().saturating_sub(bytes)));
            }
            Event::Finished { blob } => {
                state.lines.remove(&blob).into_iter().for_each(|bar| bar.finish_and_clear());
            }
        }
    }
}

/// Writes log lines above the bars.
#[derive(Clone)]
pub struct LogWriter(MultiProgress);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
