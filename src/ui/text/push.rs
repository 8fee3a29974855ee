//! The output of `push`.

use std::fmt::Write;

use super::time::{Stream, stamped};
use super::{blobs, pace, plural, size};
use crate::cache::gated::Gated;
use crate::commands::push::{Report, Row};
use crate::error::{Error, Kind};
use crate::plan::push::{ManifestAction, Skip, SkipReason};
use crate::ui;
use crate::ui::table::{Cell, Column, Table, Tone};

/// Joins the first few names.
fn abbreviate(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}

/// Formats a line about a skipped item.
pub(super) fn skip_line(skip: &Skip) -> String {
    let repo = match &skip.revision {
        Some(commit) => format!("{}@{}", skip.repo, commit.short()),
        None => skip.repo.to_string(),
    };
    let why = match &skip.reason {
        SkipReason::Gated { file, keyword, license } => {
            let gated = Gated { file: file.clone(), keyword, license: *license };
            format!("looks gated: {}; set team.allow_gated: true if you may share it", gated.why())
        }
        SkipReason::Pointer { path } => {
            format!("{path} is an LFS/Xet pointer, not the file; set cache.sync_xet: true to push it")
        }
        SkipReason::NoFiles => "has no files to publish".into(),
        SkipReason::NoSnapshot { name } => format!("ref {name} has no snapshot in this cache"),
        SkipReason::Withheld { files } => {
            format!("not published, because {} could not be uploaded", plural(*files as u64, "file"))
        }
        SkipReason::Unlisted { files } => {
            format!(
                "{} not part of this commit, according to its tree: {}",
                plural(files.len() as u64, "file"),
                abbreviate(files)
            )
        }
        SkipReason::Unlinked { files } => {
            let many = plural(files.len() as u64, "file");
            format!(
                "{many} not known to be part of this commit (not links, and not listed in a tree): {}",
                abbreviate(files)
            )
        }
        SkipReason::Unused { blobs } => format!("{} that no snapshot uses", plural(*blobs as u64, "blob")),
    };
    format!("skipped {repo}: {why}")
}

/// Formats the revisions with changes, those with the most bytes first.
fn table(report: &Report) -> String {
    let columns = [
        Column::Name("Repo"),
        Column::Fixed("Revision"),
        Column::SpareNumber("Blobs"),
        Column::Number("Upload"),
        Column::Text("Result"),
    ];
    let mut table = Table::new(columns);
    for row in &report.rows {
        table.row([
            Cell::new(row.repo.to_string(), Tone::Name),
            Cell::new(row.revision.short(), Tone::Dim),
            row.uploads.blobs.to_string().into(),
            size(row.uploads.bytes).into(),
            result(report, row),
        ]);
    }
    table.to_text()
}

fn result(report: &Report, row: &Row) -> Cell {
    let withheld = report.skipped.iter().any(|skip| {
        let is_this = skip.repo == row.repo && skip.revision.as_ref() == Some(&row.revision);
        is_this && matches!(skip.reason, SkipReason::Withheld { .. })
    });
    if withheld || row.is_unpublished {
        return Cell::new("not published", Tone::Bad);
    }
    let text = match (report.dry_run, row.manifest) {
        (true, ManifestAction::Create) => "would be published",
        (true, ManifestAction::Extend) => "would be extended",
        (true, ManifestAction::Replace) => "would be replaced",
        (true, ManifestAction::Keep) => "would be completed",
        (false, ManifestAction::Create) => "published",
        (false, ManifestAction::Extend) => "extended",
        (false, ManifestAction::Replace) => "replaced",
        (false, ManifestAction::Keep) => "completed",
    };
    if row.missing_files > 0 {
        return Cell::new(format!("{text} without {}", plural(row.missing_files as u64, "file")), Tone::Bad);
    }
    Cell::new(text, if report.dry_run { Tone::Attention } else { Tone::Good })
}

impl ui::Report for Report {
    fn result(&self) -> String {
        let mut out = String::new();
        if !self.rows.is_empty() {
            out.push_str(&table(self));
        }
        for skip in &self.skipped {
            let _ = writeln!(out, "{}", skip_line(skip));
        }
        let _ = writeln!(
            out,
            "{}: {}, {}. Unchanged: {}, {}.",
            if self.dry_run { "Would write" } else { "Wrote" },
            plural(self.manifests as u64, "manifest"),
            plural(self.refs as u64, "ref"),
            plural(self.manifests_unchanged as u64, "manifest"),
            plural(self.refs_unchanged as u64, "ref"),
        );
        let mut total = match self.dry_run {
            true => format!("Would upload {}", blobs(&self.uploaded)),
            false => format!("Uploaded {} {}", blobs(&self.uploaded), pace(&self.uploaded, self.seconds)),
        };
        let _ = write!(total, "; {} already in the bucket", blobs(&self.present));
        for (number, what) in [(self.skipped.len(), "skipped"), (self.failures.len(), "failed")] {
            if number > 0 {
                let _ = write!(total, "; {number} {what}");
            }
        }
        let total = if self.dry_run { total } else { stamped(&total, Stream::Out) };
        let _ = writeln!(out, "{total}.");
        out
    }

    fn summary(&self) -> String {
        self.notes.iter().map(|note| format!("note: {note}\n")).collect()
    }

    fn quiet_result(&self) -> String {
        if self.dry_run { self.result() } else { String::new() }
    }

    fn failures(&self) -> &[Error] {
        &self.failures
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}
