//! The output of `pull`: the snapshots' paths on stdout, one a line, everything else on stderr.

use std::fmt::Write;
use std::path::Path;

use super::pull_all::{describe, totals};
use super::time::{Stream, stamped};
use super::{blobs, pace, plural};
use crate::commands::pull::{Report, RevisionReport};
use crate::commands::pulled::{self, Source};
use crate::error::{Error, Kind, shown};
use crate::model::amount::Amount;
use crate::ui;

/// "; 2 blobs (1.5 GiB) already in the cache", if there are any
fn reused(report: &RevisionReport) -> String {
    let part = |amount: &Amount, what: &str| match amount.blobs {
        0 => String::new(),
        _ => format!("; {} {what}", blobs(amount)),
    };
    part(&report.present, "already in the cache") + &part(&report.shared, "shared with other snapshots")
}

impl ui::Report for Report {
    fn result(&self) -> String {
        self.paths().into_iter().map(shown).collect::<Vec<_>>().join("\n")
    }

    fn paths(&self) -> Vec<&Path> {
        match self {
            Report::One(one) => {
                let complete = one.failures.is_empty() && !one.dry_run && one.gated.is_none();
                complete.then_some(one.snapshot.as_path()).into_iter().collect()
            }
            Report::Several(several) => several.repos.iter().filter_map(|row| row.snapshot.as_deref()).collect(),
        }
    }

    fn summary(&self) -> String {
        match self {
            Report::One(one) => one.summary(),
            Report::Several(several) => summary_of_several(several),
        }
    }

    fn failures(&self) -> &[Error] {
        match self {
            Report::One(one) => &one.failures,
            Report::Several(several) => &several.failures,
        }
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}

/// A line for each repo, and the totals.
fn summary_of_several(report: &pulled::Report) -> String {
    let mut out = String::new();
    for note in &report.notes {
        let _ = writeln!(out, "note: {note}");
    }
    for row in &report.repos {
        let revision = row.revision.as_ref().map_or(String::new(), |commit| format!("@{}", commit.short()));
        let _ = writeln!(out, "{}{revision}: {}{}", row.name(), describe(row).0, left_out(row.files_left_out));
    }
    let _ = writeln!(out, "{}", stamped(&totals(report), Stream::Err));
    out
}

/// "; 3 files not selected", if there are any
fn left_out(files: Option<usize>) -> String {
    match files {
        None | Some(0) => String::new(),
        Some(files) => format!("; {} not selected", plural(files as u64, "file")),
    }
}

impl RevisionReport {
    fn summary(&self) -> String {
        let name = format!("{}@{}", self.repo, self.revision.short());
        let mut out = String::new();
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        // Reported as a failure.
        if self.gated.is_some() {
            return out;
        }
        if self.files_not_in_bucket > 0 {
            let missing = plural(self.files_not_in_bucket as u64, "file");
            let _ = writeln!(
                out,
                "note: the bucket lacks {missing} of this revision (never pushed): push from a machine that has all, or use \
                 --fallback hf-hub"
            );
        }
        let total = match (self.dry_run, self.source, self.failures.is_empty()) {
            (true, ..) => format!("Would download {} of {name}{}.", blobs(&self.downloaded), reused(self)),
            (_, _, false) => format!(
                "{name} is incomplete: {} could not be pulled. Pulled {} {}{}.",
                plural(self.failures.len() as u64, "blob"),
                blobs(&self.downloaded),
                pace(&self.downloaded, self.seconds),
                reused(self)
            ),
            (_, Source::Cache, _) => {
                format!("{name} is already in the cache: {}.", plural(self.files as u64, "file"))
            }
            (_, source, _) => format!(
                "Pulled {name} from {}: {} {}{}.",
                match source {
                    Source::Hub => "the Hub",
                    Source::Both => "the bucket and the Hub",
                    _ => "the bucket",
                },
                blobs(&self.downloaded),
                pace(&self.downloaded, self.seconds),
                reused(self)
            ),
        };
        let total = match self.files_left_out {
            Some(1..) => format!("{}{}.", total.trim_end_matches('.'), left_out(self.files_left_out)),
            _ => total,
        };
        let _ = writeln!(out, "{}", stamped(&total, Stream::Err));
        out
    }
}
