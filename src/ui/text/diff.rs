//! The output of `diff`: a table and the counts on stdout.

use std::fmt::Write;

use console::style;

use super::list::{bytes_or_dash, refs};
use super::{plural, time::ago};
use crate::cache::state::Completeness;
use crate::commands::diff::Report;
use crate::error::{Error, Kind};
use crate::plan::diff::{RefRow, Row, Status};
use crate::ui;
use crate::ui::table::{Cell, Column, Table, Tone};

impl ui::Report for Report {
    fn result(&self) -> String {
        if self.revisions.is_empty() {
            return "No repos in the cache or the bucket.".into();
        }
        let mut out = table(self).to_text();
        let notes: Vec<String> = self.revisions.iter().filter_map(note).chain(self.refs.iter().map(ref_line)).collect();
        if !notes.is_empty() {
            let _ = writeln!(out, "\n{}", notes.join("\n"));
        }
        let _ = writeln!(out, "\n{}", counts(self));
        out
    }

    fn summary(&self) -> String {
        self.notes.iter().map(|note| format!("note: {note}\n")).collect()
    }

    fn quiet_result(&self) -> String {
        table(self).to_bare_text()
    }

    fn failures(&self) -> &[Error] {
        &self.failures
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}

fn table(report: &Report) -> Table {
    use Column::{Fixed, Name, Spare, SpareNumber, Text};
    let columns = [
        Name("Repo"),
        Fixed("Type"),
        Fixed("Revision"),
        Fixed("Status"),
        SpareNumber("Size"),
        Text("Refs"),
        Spare("Last used"),
    ];
    let mut table = Table::new(columns);
    for row in &report.revisions {
        let (word, tone) = status(row.status);
        let cells = [
            Cell::new(row.repo.id.as_str(), Tone::Name),
            row.repo.kind.word().into(),
            row.revision.short().into(),
            Cell::new(word, tone),
            bytes_or_dash(row.size),
            refs(row.refs.iter()).into(),
            Cell::new(ago(row.last_used, report.now), Tone::Dim),
        ];
        table.row(cells);
    }
    table
}

fn status(status: Status) -> (&'static str, Tone) {
    match status {
        Status::InSync => ("in-sync", Tone::Good),
        Status::LocalOnly => ("local-only", Tone::Attention),
        Status::RemoteOnly => ("remote-only", Tone::Remote),
        Status::Partial => ("partial", Tone::Attention),
        Status::Invalid => ("invalid", Tone::Bad),
    }
}

/// "org/name@0123456789ab: 2 files only here; 1 blob missing from the bucket"
fn note(row: &Row) -> Option<String> {
    let files =
        |paths: &[_], what: &str| (!paths.is_empty()).then(|| format!("{} {what}", plural(paths.len() as u64, "file")));
    let missing = &row.missing_blobs;
    let gaps = (!missing.is_empty()).then(|| {
        let restorable = match (missing.iter().all(|gap| gap.here), missing.len()) {
            (false, _) => "",
            (true, 1) => " (a push from this cache restores it)",
            (true, _) => " (a push from this cache restores them)",
        };
        format!("{} missing from the bucket{restorable}", plural(missing.len() as u64, "blob"))
    });
    let not_here = match &row.completeness {
        Some(Completeness::Partial { missing }) => {
            Some(format!("partial here, without {} of the commit", plural(*missing as u64, "file")))
        }
        _ => None,
    };
    let parts = [
        not_here,
        files(&row.only_local, "only here"),
        files(&row.only_remote, "only in the bucket"),
        files(&row.different, "different"),
        gaps,
        (row.gated && row.status != Status::InSync).then(|| "looks gated, so a push skips it".into()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("{}@{}: {}", row.repo, row.revision.short(), parts.join("; ")))
}

fn ref_line(row: &RefRow) -> String {
    let there = match &row.remote {
        Some(commit) => format!("{} in the bucket", commit.short()),
        None => "not in the bucket".into(),
    };
    format!("{}, ref {}: {} here, {there}", row.repo, row.name, row.local.short())
}

fn counts(report: &Report) -> String {
    let counts = &report.counts;
    let mut parts = vec![
        style(format!("{} in-sync", counts.in_sync)).green(),
        style(format!("{} local-only", counts.local_only)).yellow(),
        style(format!("{} remote-only", counts.remote_only)).blue(),
    ];
    if counts.partial > 0 {
        parts.push(style(format!("{} partial", counts.partial)).yellow());
    }
    if counts.invalid > 0 {
        parts.push(style(format!("{} invalid", counts.invalid)).red());
    }
    if counts.missing_blobs > 0 {
        let missing = plural(counts.missing_blobs as u64, "blob");
        parts.push(style(format!("{missing} missing from the bucket")).red());
    }
    let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
    format!("{}.", parts.join(", "))
}
