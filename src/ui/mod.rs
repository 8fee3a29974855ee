//! Everything that people and programs read: results on stdout, progress, notes and errors on stderr.

pub mod progress;
pub mod table;
pub mod text;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::error::{Error, Kind};
use progress::Bars;

/// How to speak.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Reports as JSON on stdout.
    pub json: bool,
    /// Only results and errors.
    pub quiet: bool,
    /// No bars.
    pub no_progress: bool,
    /// Each JSON object in a line of its own.
    pub lines: bool,
}

/// A report that can be shown.
pub trait Report: Serialize {
    /// For stdout: the result itself.
    fn result(&self) -> String;
    /// For stdout with `-q`.
    fn quiet_result(&self) -> String {
        self.result()
    }
    /// For stderr: what happened, for people; not shown with `-q`.
    fn summary(&self) -> String {
        String::new()
    }
    /// Failures to show as errors.
    fn failures(&self) -> &[Error] {
        &[]
    }
    /// Decides the exit code.
    fn failed(&self) -> Option<Kind>;
}

/// The one place that prints.
#[derive(Clone)]
pub struct Ui {
    style: Style,
    bars: Bars,
}

impl Ui {
    /// A user interface on this process's stdout and stderr.
    pub fn new(style: Style) -> Self {
        let visible = !style.no_progress && !style.quiet && !style.json && io::stderr().is_terminal();
        Ui { style, bars: Bars::new(visible, style.quiet) }
    }

    /// Where progress goes.
    pub fn bars(&self) -> &Bars {
        &self.bars
    }

    /// Shows a report; returns what decides the exit code.
    pub fn show(&self, report: &impl Report) -> Option<Kind> {
        self.bars.clear();
        if self.style.json {
            let json = serde_json::to_string_pretty(report).expect("reports are plain data");
            print(&mut io::stdout().lock(), &json);
        }
        if !self.style.json {
            let result = if self.style.quiet { report.quiet_result() } else { report.result() };
            print(&mut io::stdout().lock(), &result);
        }
        if !self.style.quiet && !self.style.json {
            print(&mut io::stderr().lock(), &report.summary());
        }
        for failure in report.failures() {
            self.line("error", failure);
        }
        report.failed()
    }

    /// Shows one of many reports of a long-lived command: a line each.
    pub fn show_line(&self, report: &impl Report) {
        self.bars.clear();
        if self.style.json {
            let json = serde_json::to_string(report).expect("reports are plain data");
            print(&mut io::stdout().lock(), &json);
        } else {
            print(&mut io::stdout().lock(), &report.result());
            if !self.style.quiet {
                print(&mut io::stderr().lock(), &report.summary());
            }
        }
        for failure in report.failures() {
            self.line("error", failure);
        }
    }

    /// Shows an error that ended the command.
    pub fn error(&self, error: &Error) {
        self.bars.clear();
        if self.style.json {
            let json = serde_json::json!({ "error": error });
            let text = if self.style.lines { json.to_string() } else { format!("{json:#}") };
            print(&mut io::stdout().lock(), &text);
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
        print(&mut io::stderr().lock(), &format!("{word}: {text}"));
    }
}

/// Prints a text, with a final newline; a reader that went away is no error.
fn print(out: &mut impl Write, text: &str) {
    if text.is_empty() {
        return;
    }
    let _ = writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush());
}
