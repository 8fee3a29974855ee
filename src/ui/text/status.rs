//! The output of `status`: one line per fact, and the problems.

use std::fmt::Write;

use console::style;

use super::{plural, size, time::ago};
use crate::commands::status::Report;
use crate::error::{Kind, shown};
use crate::ui;

/// Maximum number of problems to show.
const MAX_PROBLEMS: usize = 10;

impl ui::Report for Report {
    fn result(&self) -> String {
        let mut out = String::new();
        let mut fact = |name: &str, value: String| {
            let _ = writeln!(out, "{:11}{value}", format!("{name}:"));
        };
        fact("Cache dir", shown(&self.cache_dir));
        fact("Repos", format!("{} ({})", self.repos, plural(self.revisions as u64, "revision")));
        fact("Size", size(self.size));
        fact("Budget", budget(self));
        if let Some(free) = self.free {
            fact("Free", size(free));
        }
        if self.last_used.is_some() {
            fact("Last used", ago(self.last_used, self.now));
        }
        if self.in_flight.blobs > 0 {
            let files = plural(self.in_flight.blobs, "unfinished download");
            fact("In flight", format!("{files} ({})", size(self.in_flight.bytes)));
        }
        if let Some(bucket) = &self.bucket {
            fact("Bucket", location(self, bucket));
        }
        let (failures, notes) = count_problems(self);
        fact("Problems", problems(failures, notes));
        if self.bucket.is_none() {
            let _ = writeln!(out, "{}", style("No remote storage configured.").yellow());
        }
        out
    }

    fn summary(&self) -> String {
        let mut out = String::new();
        for problem in self.problems.iter().take(MAX_PROBLEMS) {
            let word = if problem.kind.is_failure() { "problem" } else { "note" };
            let _ = writeln!(out, "{word}: {problem}");
        }
        if self.problems.len() > MAX_PROBLEMS {
            let more = self.problems.len() - MAX_PROBLEMS;
            let _ = writeln!(out, "… and {more} more; `hf-cache-sync status --json` lists them all");
        }
        out
    }

    fn failed(&self) -> Option<Kind> {
        None
    }
}

fn budget(report: &Report) -> String {
    let budget = size(report.budget);
    match report.size.checked_sub(report.budget) {
        None | Some(0) => budget,
        Some(over) => format!("{budget}, exceeded by {}; see `hf-cache-sync prune`", size(over)),
    }
}

fn location(report: &Report, bucket: &str) -> String {
    let mut location = bucket.to_string();
    if let Some(endpoint) = &report.endpoint {
        let _ = write!(location, " at {endpoint}");
    }
    if !report.prefix.is_empty() {
        let _ = write!(location, ", under {}", report.prefix);
    }
    location
}

fn count_problems(report: &Report) -> (usize, usize) {
    let failures = report.problems.iter().filter(|problem| problem.kind.is_failure()).count();
    (failures, report.problems.len() - failures)
}

fn problems(failures: usize, notes: usize) -> String {
    match (failures, notes) {
        (0, 0) => "none".into(),
        (0, notes) => format!("none ({})", plural(notes as u64, "note")),
        (failures, _) => failures.to_string(),
    }
}
