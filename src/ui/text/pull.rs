//! The output of `pull`: the snapshot's path on stdout, everything else on stderr.

use std::fmt::Write;
use std::path::Path;

use super::time::{Stream, stamped};
use super::{blobs, pace, plural};
use crate::commands::pull::{Report, Source};
use crate::error::{Error, Kind, shown};
use crate::model::amount::Amount;
use crate::ui;

/// "; 2 blobs (1.5 GiB) already in the cache", if there are any
fn reused(report: &Report) -> String {
    let part = |amount: &Amount, what: &str| match amount.blobs {
        0 => String::new(),
        _ => format!("; {} {what}", blobs(amount)),
    };
    part(&report.present, "already in the cache") + &part(&report.shared, "shared with other snapshots")
}

impl ui::Report for Report {
    fn result(&self) -> String {
        self.path().map(shown).unwrap_or_default()
    }

    fn path(&self) -> Option<&Path> {
        let complete = self.failures.is_empty() && !self.dry_run && self.gated.is_none();
        complete.then_some(&self.snapshot)
    }

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
            let _ = writeln!(out, "note: the bucket lacks {missing} of this revision (never pushed)");
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
        let _ = writeln!(out, "{}", stamped(&total, Stream::Err));
        out
    }

    fn failures(&self) -> &[Error] {
        &self.failures
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}
