//! The output of `verify`: what is damaged and what became of it on stdout, the totals on stderr.

use std::fmt::Write;

use console::style;

use super::{blobs, pace, plural};
use crate::commands::verify::{Report, Scope};
use crate::error::{Error, Kind, shown};
use crate::model::amount::Amount;
use crate::plan::verify::local::{Row, UnverifiedReason};
use crate::plan::verify::{Finding, Outcome, Place, Reason};
use crate::ui;

/// Most files that are named for one finding.
const MAX_FILES: usize = 3;
/// Most places that are named for one reason why something cannot be verified.
const MAX_PLACES: usize = 3;

impl ui::Report for Report {
    fn result(&self) -> String {
        let mut out: String = self.findings.iter().map(|finding| line(self, finding) + "\n").collect();
        if !out.is_empty() {
            out.push('\n');
        }
        let _ = writeln!(out, "{}", verdict(self));
        out
    }

    fn quiet_result(&self) -> String {
        self.left().map(|finding| line(self, finding) + "\n").collect()
    }

    fn summary(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "Verified {} of {} {}.",
            blobs(&self.verified),
            revisions(&self.revisions),
            pace(&self.verified, self.seconds)
        );
        if self.scope == Scope::Bucket {
            out = format!("Found {} of {} in the listing.\n", blobs(&self.verified), revisions(&self.revisions));
        }
        for (amount, what) in [
            (&self.downloaded, "downloaded"),
            (&self.from_hub, "of them from the Hub"),
            (&self.shared, "taken from elsewhere in this cache"),
            (&self.uploaded, "uploaded"),
        ] {
            if amount.blobs > 0 {
                let _ = writeln!(out, "{} {what}.", blobs(amount));
            }
        }
        if let (Amount { blobs: 1.., .. }, Some(folder)) = (self.quarantined, &self.quarantine) {
            let files = plural(self.quarantined.blobs, "file");
            let size = super::size(self.quarantined.bytes);
            let _ = writeln!(out, "{files} ({size}) moved to {}, which is yours to delete.", shown(folder));
        }
        out += &unverified(self);
        if self.in_use > 0 {
            let _ =
                writeln!(out, "note: {} in use by another program and not checked", plural(self.in_use as u64, "file"));
        }
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        if !self.repair && self.left().next().is_some() {
            let (line, what) = match self.scope {
                Scope::Cache => ("verify", "fetches good copies from the bucket"),
                Scope::Bucket => ("verify --remote", "uploads good copies from the cache"),
                Scope::BucketDeep => ("verify --remote --deep", "uploads good copies from the cache"),
            };
            let _ = writeln!(out, "`hf-cache-sync {line} --repair` {what}; with --dry-run, it shows which.");
        }
        out
    }

    fn failures(&self) -> &[Error] {
        &self.failures
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}

/// "org/name: model.safetensors: its bytes hash to …: repaired"
fn line(report: &Report, finding: &Finding) -> String {
    let mut out = match &finding.repo {
        Some(repo) => format!("{repo}: "),
        None => String::new(),
    };
    let place = match &finding.place {
        Place::Path(path) => shown(path),
        Place::Key(key) => key.clone(),
    };
    if finding.files.is_empty() {
        out += &place;
    } else {
        let files = finding.files.iter().take(MAX_FILES);
        let files: Vec<String> = files.map(|file| format!("{}@{}", file.path, file.revision.short())).collect();
        out += &files.join(", ");
        if finding.files.len() > MAX_FILES {
            let _ = write!(out, " and {} more", finding.files.len() - MAX_FILES);
        }
        if let Some(blob) = finding.blob {
            let _ = write!(out, " (blob {blob})");
        }
    }
    let _ = write!(out, ": {}, {}", reason(finding.reason), finding.detail);
    let outcome = match finding.outcome {
        Outcome::Found => None,
        Outcome::Repairable => Some(style("can be repaired").yellow()),
        Outcome::Repaired => Some(style("repaired").green()),
        Outcome::Left if report.repair => Some(style("not repaired").red()),
        Outcome::Left => None,
    };
    if let Some(outcome) = outcome {
        let _ = write!(out, " -> {outcome}");
    }
    out
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Corrupt => "corrupt",
        Reason::Missing => "missing",
        Reason::WrongSize => "wrong size",
        Reason::ForeignLink => "foreign link",
        Reason::AbsoluteLink => "absolute link",
        Reason::WrongBlob => "wrong blob",
        Reason::BadTree => "bad tree",
        Reason::BadRef => "bad ref",
        Reason::UntidyRef => "untidy ref",
        Reason::DanglingRef => "dangling ref",
        Reason::BadManifest => "bad manifest",
        Reason::NotAFile => "not a file",
    }
}

fn verdict(report: &Report) -> String {
    let left = report.left().count() as u64;
    let repaired = report.findings.iter().filter(|finding| finding.outcome == Outcome::Repaired).count() as u64;
    let what = if report.scope == Scope::Cache { "the cache" } else { "the bucket" };
    let repaired = if repaired > 0 { format!("{} repaired", plural(repaired, "fault")) } else { String::new() };
    match (left, report.failures.is_empty(), repaired.is_empty()) {
        (0, true, true) if report.scope == Scope::Bucket => {
            let text = "No damage found in the bucket. The bytes of blobs were not read: --deep does that.";
            style(text.to_string()).green().to_string()
        }
        (0, true, true) => style(format!("No damage found in {what}.")).green().to_string(),
        (0, true, false) => style(format!("{repaired}; no damage is left in {what}.")).green().to_string(),
        (0, false, _) => {
            style(format!("No damage found in {what}, as far as it could be checked.")).yellow().to_string()
        }
        (left, _, true) => style(format!("{} found in {what}.", plural(left, "fault"))).red().to_string(),
        (left, _, false) => style(format!("{repaired}, {left} left in {what}.")).red().to_string(),
    }
}

/// "3 revisions (2 complete, 1 partial)"
fn revisions(rows: &[Row]) -> String {
    let count = |word: &str| rows.iter().filter(|row| row.status.word() == word).count();
    let words = [
        (count("complete"), "complete"),
        (count("partial"), "partial"),
        (count("unknown"), "of unknown completeness"),
        (count("damaged"), "damaged"),
    ];
    let words: Vec<String> =
        words.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    let all = plural(rows.len() as u64, "revision");
    if words.is_empty() { all } else { format!("{all} ({})", words.join(", ")) }
}

/// One note for each reason why something cannot be verified.
fn unverified(report: &Report) -> String {
    use UnverifiedReason::{Name, NoHash, NoTree, PrivateTree, Stray, UnknownTree};
    let mut out = String::new();
    for (why, what) in [
        (NoHash, "cannot be verified: the name of the blob is not a hash"),
        (NoTree, "cannot be verified: a real file, and no tree says what it should be"),
        (Stray, "cannot be verified: not a file of the commit"),
        (Name, "cannot be verified: its path is not possible on every system"),
        (UnknownTree, "cannot be verified: a tree of a newer format"),
        (PrivateTree, "cannot be verified: a tree that only its owner can read"),
    ] {
        let places: Vec<_> = report.unverified.iter().filter(|one| one.reason == why).collect();
        for one in places.iter().take(MAX_PLACES) {
            let _ = writeln!(out, "note: {} {what}", shown(&one.path));
        }
        if places.len() > MAX_PLACES {
            let _ = writeln!(out, "note: {} more {what}", places.len() - MAX_PLACES);
        }
    }
    out
}
