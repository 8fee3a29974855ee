//! What `doctor` says: a line a check.

use std::fmt::Write;

use console::style;

use super::plural;
use crate::commands::doctor::{Report, Status};
use crate::error::Kind;
use crate::ui;

impl ui::Report for Report {
    fn result(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
        let mut out = String::new();
        for check in &self.checks {
            let mark = match check.status {
                Status::Ok => style("ok  ").green(),
                Status::Note => style("note").yellow(),
                Status::Failed => style("FAIL").red().bold(),
                Status::Skipped => style("-   ").dim(),
            };
            let _ = writeln!(out, "{mark}  {:width$}  {}", check.name, check.detail);
            if let Some(hint) = &check.hint {
                let _ = writeln!(out, "      {:width$}  {}", "", style(hint).dim());
            }
        }
        match self.checks.iter().filter(|check| check.status == Status::Failed).count() {
            0 => out.push_str("All checks passed.\n"),
            count => {
                let _ = writeln!(out, "{} failed.", plural(count as u64, "check"));
            }
        }
        out
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}
