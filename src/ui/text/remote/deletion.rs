//! The output of `remote rm` and `remote gc`: the revisions, and a line of totals; what stays, on stderr.

use std::fmt::Write;

use super::super::time::{Stream, stamped};
use super::super::{blobs, list::refs, plural, size};
use crate::commands::remote::deletion::{Removed, Report};
use crate::error::{Error, Kind};
use crate::plan::deletion::KeepReason;
use crate::ui;
use crate::ui::table::{Cell, Column, Table, Tone};

fn table(revisions: &[Removed]) -> String {
    let mut table =
        Table::new([Column::Name("Repo"), Column::Fixed("Type"), Column::Fixed("Revision"), Column::Text("Refs")]);
    for row in revisions {
        table.row([
            Cell::new(row.repo.id.as_str(), Tone::Name),
            row.repo.kind.word().into(),
            Cell::new(row.revision.short(), Tone::Dim),
            refs(row.refs.iter()).into(),
        ]);
    }
    table.to_text()
}

/// "2 revisions, 1 ref and 3 blobs", omitting zero counts.
fn counts(report: &Report) -> String {
    let all = [
        (report.revisions.len() as u64, "revision"),
        (report.refs as u64, "ref"),
        (report.blobs.blobs, "blob"),
        (report.uploads as u64, "unfinished upload"),
    ];
    let some: Vec<String> = all.iter().filter(|(n, _)| *n > 0).map(|(n, word)| plural(*n, word)).collect();
    match some.split_last() {
        None if report.failures.is_empty() => "nothing to delete".into(),
        None => "nothing was deleted".into(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}

fn reason(reason: KeepReason) -> &'static str {
    match reason {
        KeepReason::Young => "younger than the grace period; `hf-cache-sync remote gc` deletes them later",
        KeepReason::Announced => "a push that is running needs them",
        KeepReason::Undated => "the store does not say how old they are",
        KeepReason::Changed => "they changed in the meantime",
        KeepReason::Unread => "manifests that could not be read may need them; see `hf-cache-sync remote du`",
    }
}

impl ui::Report for Report {
    fn result(&self) -> String {
        if self.declined {
            return "Nothing was deleted.\n".into();
        }
        let mut out = String::new();
        if !self.revisions.is_empty() && !self.was_shown {
            out.push_str(&table(&self.revisions));
        }
        let verb = if self.dry_run { "Would free" } else { "Freed" };
        let under = if self.prefix.is_empty() { String::new() } else { format!(", under {}", self.prefix) };
        let total = format!("{verb} {} in bucket '{}'{under}: {}.", size(self.blobs.bytes), self.bucket, counts(self));
        let _ = writeln!(out, "{}", if self.dry_run { total } else { stamped(&total, Stream::Out) });
        out
    }

    fn quiet_result(&self) -> String {
        // For cron: print nothing but what requires action, which goes to stderr.
        if self.dry_run { self.result() } else { String::new() }
    }

    fn attention(&self) -> Option<String> {
        let first = self.busy.first().filter(|_| !self.dry_run && !self.declined)?;
        Some(format!("{}@{} is being pushed, and stays: try again later", first.repo, first.revision.short()))
    }

    fn summary(&self) -> String {
        let mut out = String::new();
        if self.declined {
            return out;
        }
        for row in &self.busy {
            let _ = writeln!(out, "kept {}@{}: it is being pushed; try again later", row.repo, row.revision.short());
        }
        for kept in &self.kept {
            let _ = writeln!(out, "kept {}: {}", blobs(&kept.amount), reason(kept.reason));
        }
        if self.versioned == Some(true) && self.deletes() {
            let _ = writeln!(out, "{}", super::VERSIONED);
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
