//! The output of `rm`: a table and a line of totals.

use std::fmt::Write;

use super::prune::{counts, nothing, reason, skip_lines, table};
use super::size;
use super::time::{Stream, stamped};
use crate::commands::rm::Report;
use crate::error::{Error, Kind};
use crate::plan::prune::SkipReason;
use crate::ui;

/// Returns why something was kept, without the options of `prune`.
fn reason_of_rm(why: SkipReason) -> &'static str {
    match why {
        SkipReason::InFlight => {
            "a download may be in flight: wait until it has finished, or for five minutes after it was aborted"
        }
        SkipReason::Busy => "something was downloaded minutes ago: try again in five minutes",
        SkipReason::Changed => "it was used or changed in the meantime: try again",
        SkipReason::Link => "it is a link, or reached through one; nothing is deleted through links",
        _ => reason(why),
    }
}

impl ui::Report for Report {
    fn result(&self) -> String {
        if self.declined {
            return "Nothing was removed.\n".into();
        }
        let mut out = String::new();
        if !self.deleted.rows.is_empty() && !self.was_shown {
            out.push_str(&table(&self.deleted.rows, self.now));
        }
        let verb = if self.dry_run { "Would free" } else { "Freed" };
        let nothing = nothing(!self.skipped.is_empty(), !self.failures.is_empty(), self.dry_run);
        let total = format!("{verb} {}: {}.", size(self.freed), counts(&self.deleted, self.require_remote, nothing));
        let total = if self.dry_run { total } else { stamped(&total, Stream::Out) };
        let _ = writeln!(out, "{total}");
        out
    }

    fn quiet_result(&self) -> String {
        if self.dry_run { self.result() } else { String::new() }
    }

    fn attention(&self) -> Option<String> {
        let kept = skip_lines(self.skipped.iter(), reason_of_rm);
        (!kept.is_empty() && !self.declined).then(|| kept.trim_end().to_string())
    }

    fn summary(&self) -> String {
        let mut out: String = self.notes.iter().map(|note| format!("note: {note}\n")).collect();
        out.push_str(&skip_lines(self.skipped.iter(), reason_of_rm));
        out
    }

    fn failures(&self) -> &[Error] {
        &self.failures
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}
