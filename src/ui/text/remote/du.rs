//! The output of `remote du`: a table on stdout, totals and notes on stderr.

use std::fmt::Write;

use super::super::{blobs, plural, size};
use crate::commands::remote::du::Report;
use crate::error::{Error, Kind};
use crate::ui;
use crate::ui::table::{Cell, Column, Table, Tone};

fn table(report: &Report) -> Table {
    let mut table = Table::new([
        Column::Name("Repo"),
        Column::Fixed("Type"),
        Column::Number("Revisions"),
        Column::Number("Size"),
        Column::Number("Unique"),
        Column::Number("Shared"),
    ]);
    for row in &report.repos {
        table.row([
            Cell::new(row.repo.id.as_str(), Tone::Name),
            row.repo.kind.word().into(),
            row.revisions.to_string().into(),
            size(row.size).into(),
            size(row.unique).into(),
            size(row.shared).into(),
        ]);
    }
    table
}

impl ui::Report for Report {
    fn result(&self) -> String {
        if self.repos.is_empty() { String::new() } else { table(self).to_text() }
    }

    fn quiet_result(&self) -> String {
        table(self).to_bare_text()
    }

    fn summary(&self) -> String {
        let mut out = String::new();
        let under = if self.prefix.is_empty() { String::new() } else { format!(", under {}", self.prefix) };
        let revisions = self.repos.iter().map(|row| row.revisions as u64).sum();
        let counts = format!("{}, {}", plural(self.repos.len() as u64, "repo"), plural(revisions, "revision"));
        let _ = writeln!(out, "{counts}, {} in bucket '{}'{under}.", blobs(&self.blobs), self.bucket);
        if self.shared.blobs > 0 {
            let _ = writeln!(out, "Shared by several repos: {}.", blobs(&self.shared));
        }
        if self.unreferenced.blobs > 0 {
            let advice = match self.failures.is_empty() {
                true => "`hf-cache-sync remote gc` deletes those that no push needs",
                false => "manifests that could not be read may need them",
            };
            let _ = writeln!(out, "Unreferenced: {}; {advice}.", blobs(&self.unreferenced));
        }
        for row in self.repos.iter().filter(|row| row.missing.blobs > 0) {
            let missing = blobs(&row.missing);
            let _ = writeln!(out, "note: {} lacks {missing}; push it from a machine that has them", row.repo);
        }
        if let Some(count) = self.unfinished_uploads.filter(|count| *count > 0) {
            let uploads = plural(count as u64, "unfinished upload");
            let _ = writeln!(
                out,
                "note: {uploads}, whose parts take space, too; `hf-cache-sync remote gc` aborts those that are old enough"
            );
        }
        if self.foreign.keys > 0 {
            let keys = plural(self.foreign.keys as u64, "unrecognised key");
            let _ = writeln!(out, "note: ignored {keys} ({})", size(self.foreign.bytes));
        }
        if self.versioned == Some(true) {
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
