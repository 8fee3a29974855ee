//! The output of `doctor`: one line per check.

use std::fmt::Write;

use console::style;

use super::plural;
use crate::commands::doctor::{Check, Report, Status};
use crate::error::Kind;
use crate::escape::{Keep, escape};
use crate::ui;

impl ui::Report for Report {
    fn result(&self) -> String {
        lines(self, |_| true)
    }

    fn quiet_result(&self) -> String {
        let failed = |check: &Check| check.status == Status::Failed;
        if self.checks.iter().any(failed) { lines(self, failed) } else { String::new() }
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}

fn lines(report: &Report, is_shown: impl Fn(&Check) -> bool) -> String {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut out = String::new();
    for check in report.checks.iter().filter(|check| is_shown(check)) {
        let mark = match check.status {
            Status::Ok => style("ok  ").green(),
            Status::Note => style("note").yellow(),
            Status::Failed => style("FAIL").red().bold(),
            Status::Skipped => style("-   ").dim(),
        };
        let _ = writeln!(out, "{mark}  {:width$}  {}", check.name, line(&check.detail));
        if let Some(hint) = &check.hint {
            let _ = writeln!(out, "      {:width$}  {}", "", style(line(hint)).dim());
        }
    }
    match report.checks.iter().filter(|check| check.status == Status::Failed).count() {
        0 => out.push_str("All checks passed.\n"),
        count => {
            let _ = writeln!(out, "{} failed.", plural(count as u64, "check"));
        }
    }
    out
}

/// Escapes details of a check, which may contain names from outside.
fn line(text: &str) -> String {
    escape(text, Keep::Nothing).into_owned()
}
