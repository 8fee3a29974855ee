//! The output of `pull-all`: a table of the repos on stdout, totals on stderr.

use std::fmt::Write;

use super::time::{Stream, stamped};
use super::{blobs, pace, plural, size};
use crate::commands::pulled::{EmptyReason, Outcome, Report, Row, Source};
use crate::error::{Error, Kind};
use crate::ui;
use crate::ui::table::{Cell, Column, Table, Tone};

impl ui::Report for Report {
    fn result(&self) -> String {
        if self.repos.is_empty() {
            return String::new();
        }
        let mut table = Table::new([
            Column::Name("Repo"),
            Column::Spare("Revision"),
            Column::Text("Result"),
            Column::Number("Size"),
        ]);
        let mut rows: Vec<&Row> = self.repos.iter().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.size));
        for row in rows {
            let revision = row.revision.as_ref().map_or("-", |commit| commit.short());
            let bytes = if row.revision.is_some() { size(row.size) } else { "-".into() };
            table.row([Cell::new(row.name(), Tone::Name), Cell::new(revision, Tone::Dim), result(row), bytes.into()]);
        }
        table.to_text()
    }

    fn quiet_result(&self) -> String {
        if self.dry_run { self.result() } else { String::new() }
    }

    fn summary(&self) -> String {
        let mut out = String::new();
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        let _ = match self.nothing {
            Some(_) if !self.failures.is_empty() => Ok(()),
            Some(EmptyReason::Empty) => writeln!(out, "No refs/main found in bucket '{}'.", self.bucket),
            Some(EmptyReason::NoMatch) => {
                writeln!(out, "No repo in bucket '{}' matches --include, --exclude and --limit.", self.bucket)
            }
            None => writeln!(out, "{}", stamped(&totals(self), Stream::Err)),
        };
        out
    }

    fn failures(&self) -> &[Error] {
        &self.failures
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}

fn result(row: &Row) -> Cell {
    let (text, tone) = describe(row);
    Cell::new(text, tone)
}

/// Describes the outcome for a repo.
pub(super) fn describe(row: &Row) -> (String, Tone) {
    match row.result {
        Outcome::Pulled => match row.source {
            Some(Source::Hub) => ("pulled from the Hub".into(), Tone::Good),
            Some(Source::Both) => ("pulled, partly from the Hub".into(), Tone::Good),
            _ => ("pulled".into(), Tone::Good),
        },
        Outcome::Present => ("already in the cache".into(), Tone::Dim),
        Outcome::Planned => match row.downloaded.blobs {
            0 => ("would link files".into(), Tone::Attention),
            _ => (format!("would download {}", size(row.downloaded.bytes)), Tone::Attention),
        },
        Outcome::Skipped => {
            let why = row.gated.as_ref().map_or(String::new(), |gated| format!(": {}", gated.why()));
            (format!("skipped, looks gated{why}"), Tone::Attention)
        }
        Outcome::Partial => ("incomplete".into(), Tone::Bad),
        Outcome::Failed => ("failed".into(), Tone::Bad),
    }
}

pub(super) fn totals(report: &Report) -> String {
    let count = |wanted: &[Outcome]| report.repos.iter().filter(|row| wanted.contains(&row.result)).count() as u64;
    let mut parts = Vec::new();
    let done = count(&[Outcome::Pulled]);
    if report.dry_run {
        parts.push(format!(
            "Would download {} of {}",
            blobs(&report.downloaded),
            plural(count(&[Outcome::Planned]), "repo")
        ));
    } else if done > 0 || report.downloaded.blobs > 0 {
        let pace = pace(&report.downloaded, report.seconds);
        parts.push(format!("Pulled {}: {} {pace}", plural(done, "repo"), blobs(&report.downloaded)));
    }
    if report.from_hub.blobs > 0 {
        parts.push(format!("{} of that from the Hub", blobs(&report.from_hub)));
    }
    if report.shared.blobs > 0 {
        parts.push(format!("{} shared between repos", blobs(&report.shared)));
    }
    for (wanted, what) in [
        (&[Outcome::Present][..], "already in the cache"),
        (&[Outcome::Skipped], "skipped (set team.allow_gated: true if you may use them)"),
        (&[Outcome::Failed, Outcome::Partial], "failed"),
    ] {
        match count(wanted) {
            0 => {}
            number => parts.push(format!("{} {what}", plural(number, "repo"))),
        }
    }
    format!("{}.", parts.join("; "))
}
