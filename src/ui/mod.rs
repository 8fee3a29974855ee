//! All output: results on stdout; progress, notes and errors on stderr.

mod hints;
pub mod log;
mod progress;
mod running;
mod table;
mod text;

use std::collections::{HashMap, HashSet};
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Kind, plain_io};
use crate::escape::{Keep, escape, escape_json};
pub use hints::GivenOptions;
use progress::{Bars, ProgressMode};

/// Maximum number of failures to show for the same reason.
const MAX_SIMILAR: usize = 10;

/// The output style.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Reports as JSON on stdout.
    pub json: bool,
    /// Show only results and errors.
    pub quiet: bool,
    /// Show no progress.
    pub no_progress: bool,
    /// Print each JSON object on a single line.
    pub lines: bool,
}

/// A report that can be shown.
pub trait Report: Serialize {
    /// Returns the result, for stdout.
    fn result(&self) -> String;
    /// Returns the result with `-q`, for stdout.
    fn quiet_result(&self) -> String {
        self.result()
    }
    /// Returns the paths, if they are the whole result. Unless stdout is a terminal, they are written verbatim, one a
    /// line, for scripts.
    fn paths(&self) -> Vec<&Path> {
        Vec::new()
    }
    /// Returns what happened, for stderr. Not shown with `-q`.
    fn summary(&self) -> String {
        String::new()
    }
    /// Returns something that requires action although nothing failed. Shown on stderr with `-q` and `--json`, which would
    /// otherwise omit it.
    fn attention(&self) -> Option<String> {
        None
    }
    /// Returns the failures to show as errors.
    fn failures(&self) -> &[Error] {
        &[]
    }
    /// Returns the kind of failure that determines the exit code.
    fn failed(&self) -> Option<Kind>;
}

/// The user interface, the only place that prints.
#[derive(Clone)]
pub struct Ui {
    style: Style,
    bars: Bars,
    options: GivenOptions,
}

impl Ui {
    /// Creates a user interface on this process's stdout and stderr. Commands in hints get these options.
    pub fn new(style: Style, options: GivenOptions) -> Self {
        let mode = match ProgressMode::for_stderr() {
            _ if style.no_progress || style.quiet => ProgressMode::Hidden,
            ProgressMode::Drawn if style.json => ProgressMode::Lines,
            mode => mode,
        };
        Ui { style, bars: Bars::new(mode, style.quiet, options.clone()), options }
    }

    /// Returns the progress display.
    pub fn bars(&self) -> &Bars {
        &self.bars
    }

    /// Shows a report, and returns the kind of failure that determines the exit code.
    pub fn show(&self, report: &impl Report) -> Option<Kind> {
        self.bars.finish();
        let printed = match (self.style.json, self.style.quiet) {
            (true, _) => print_json(serde_json::to_string_pretty(report).expect("reports are plain data")),
            _ if !report.paths().is_empty() && !io::stdout().is_terminal() => {
                report.paths().into_iter().try_for_each(print_path)
            }
            (_, true) => self.print_result(&report.quiet_result()),
            _ => self.print_result(&report.result()),
        };
        if !self.style.quiet && !self.style.json {
            self.print_aside(&report.summary());
        }
        if let Some(text) = report.attention().filter(|_| self.style.quiet || self.style.json) {
            self.line("warning", text);
        }
        self.failures(report.failures());
        if let Err(error) = &printed {
            self.line("error", Error::failed("cannot write the result to stdout").because(plain_io(error)));
        }
        report.failed().or(printed.is_err().then_some(Kind::Failed))
    }

    /// Shows one of many reports of a long-running command, each on a line.
    pub fn show_line(&self, report: &impl Report) {
        self.bars.clear();
        // A watch carries on even if its log cannot be written.
        if self.style.json {
            let _ = print_json(serde_json::to_string(report).expect("reports are plain data"));
        } else {
            let _ = self.print_result(&if self.style.quiet { report.quiet_result() } else { report.result() });
            if !self.style.quiet {
                self.print_aside(&report.summary());
            }
        }
        self.failures(report.failures());
    }

    /// Shows failures. Of many with the same reason, such as an unreachable store, only the first are shown.
    fn failures(&self, failures: &[Error]) {
        // Messages with a shared reason may differ in the names they mention.
        let reason = |failure: &Error| {
            (failure.cause, failure.why.clone().filter(|_| !(failure.shared && failure.cause.is_shared())))
        };
        let shared: HashSet<_> = failures.iter().filter(|failure| failure.shared).map(reason).collect();
        let mut similar: HashMap<_, usize> = HashMap::new();
        let mut shown = 0;
        for failure in failures {
            let reason = reason(failure);
            let max = if shared.contains(&reason) { 1 } else { MAX_SIMILAR };
            let seen = similar.entry(reason).or_default();
            *seen += 1;
            if *seen <= max {
                self.line("error", failure);
                shown += 1;
            }
        }
        let left = failures.len() - shown;
        if left > 0 {
            self.line("error", format!("{left} more failed in the same way (--json lists all)"));
        }
    }

    /// Whether there is a user to ask.
    pub fn can_ask(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Shows a preview and asks for confirmation, both on stderr, so that stdout contains only the result. Anything but a
    /// clear yes counts as no, including the end of the input.
    pub async fn ask(&self, preview: &impl Report, question: &str) -> bool {
        self.bars.clear();
        let mut text = preview.result();
        text.push_str(&preview.summary());
        let _ = print(&mut io::stderr().lock(), self.options.complete(&text).as_bytes());
        let _ = write!(io::stderr().lock(), "{question} [y/N] ").and_then(|()| io::stderr().lock().flush());
        // On a separate thread, so that an interruption does not have to wait for a line.
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            io::stdin().read_line(&mut line).map(|length| (length > 0).then_some(line))
        });
        match answer.await {
            Ok(Ok(Some(line))) => matches!(line.trim().to_lowercase().as_str(), "y" | "yes"),
            _ => {
                let _ = writeln!(io::stderr().lock());
                false
            }
        }
    }

    /// Shows the error that ended the command.
    pub fn error(&self, error: &Error) {
        self.bars.finish();
        if self.style.json {
            let json = serde_json::json!({ "error": error });
            let _ = print_json(if self.style.lines { json.to_string() } else { format!("{json:#}") });
        }
        self.line("error", error);
    }

    /// Shows a warning.
    pub fn warning(&self, text: &str) {
        if !self.style.quiet {
            self.line("warning", text);
        }
    }

    fn line(&self, word: &str, text: impl std::fmt::Display) {
        let word = match word {
            "error" => console::style(word).for_stderr().red().bold(),
            _ => console::style(word).for_stderr().yellow().bold(),
        };
        let line = format!("{word}: {}\n", escape(&self.options.complete(&text.to_string()), Keep::Lines));
        let _ = self.bars.write(line.as_bytes());
    }

    /// Prints a result. All output passes through this or one of the functions below, so that no unescaped text from
    /// outside reaches the terminal.
    fn print_result(&self, text: &str) -> io::Result<()> {
        let keep = if console::colors_enabled() { Keep::LinesAndColours } else { Keep::Lines };
        print(&mut io::stdout().lock(), escape(&self.options.complete(text), keep).as_bytes())
    }

    fn print_aside(&self, text: &str) {
        let keep = if console::colors_enabled_stderr() { Keep::LinesAndColours } else { Keep::Lines };
        let _ = print(&mut io::stderr().lock(), escape(&self.options.complete(text), keep).as_bytes());
    }
}

fn print_json(json: String) -> io::Result<()> {
    print(&mut io::stdout().lock(), escape_json(json).as_bytes())
}

/// Prints a path verbatim, since a program can only open the file with the exact bytes.
fn print_path(path: &Path) -> io::Result<()> {
    print(&mut io::stdout().lock(), path.as_os_str().as_encoded_bytes())
}

/// Prints text with a trailing newline. A closed pipe is not an error.
fn print(out: &mut impl Write, text: &[u8]) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let end = text.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 1);
    match out.write_all(&text[..end]).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}
