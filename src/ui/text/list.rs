//! The output of `list`: a table on stdout, totals on stderr.

use std::fmt::Write;

use super::{plural, size, time::ago};
use crate::commands::list::{Report, local, remote};
use crate::error::{Error, Kind, shown};
use crate::model::ids::RefName;
use crate::ui;
use crate::ui::table::{Cell, Column, Table, Tone};

impl ui::Report for Report {
    fn result(&self) -> String {
        let empty = match self {
            Report::Local(report) => report.repos.is_empty(),
            Report::Remote(report) => report.repos.is_empty(),
        };
        if empty { String::new() } else { table(self).to_text() }
    }

    fn quiet_result(&self) -> String {
        table(self).to_bare_text()
    }

    fn summary(&self) -> String {
        let mut out = String::new();
        let _ = match self {
            Report::Local(report) if report.repos.is_empty() => {
                writeln!(out, "No cached repos found in {}.", shown(&report.cache_dir))
            }
            Report::Local(report) => {
                let revisions = report.repos.iter().map(|repo| repo.revisions.len()).sum();
                writeln!(out, "{} on disk.", totals(report.repos.len(), revisions, Some(report.size)))
            }
            Report::Remote(report) if report.repos.is_empty() => {
                writeln!(out, "No manifests found in bucket '{}'{}.", report.bucket, under(&report.prefix))
            }
            Report::Remote(report) => {
                let revisions = report.repos.iter().map(|repo| repo.revisions.len()).sum();
                let totals = totals(report.repos.len(), revisions, None);
                writeln!(out, "{totals} in bucket '{}'{}.", report.bucket, under(&report.prefix))
            }
        };
        match self {
            Report::Local(report) if report.problems > 0 => {
                let problems = plural(report.problems as u64, "problem");
                let _ = writeln!(out, "note: {problems} found; see `hf-cache-sync status`");
            }
            Report::Remote(report) if report.unknown_keys > 0 => {
                let keys = plural(report.unknown_keys as u64, "unrecognised key");
                let _ = writeln!(out, "note: ignored {keys}");
            }
            _ => {}
        }
        out
    }

    fn failures(&self) -> &[Error] {
        match self {
            Report::Local(_) => &[],
            Report::Remote(report) => &report.failures,
        }
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}

fn table(report: &Report) -> Table {
    match report {
        Report::Local(report) => local_table(report),
        Report::Remote(report) => remote_table(report),
    }
}

fn totals(repos: usize, revisions: usize, bytes: Option<u64>) -> String {
    let counts = format!("{}, {}", plural(repos as u64, "repo"), plural(revisions as u64, "revision"));
    bytes.map_or_else(|| counts.clone(), |bytes| format!("{counts}, {}", size(bytes)))
}

fn under(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!(", under {prefix}") }
}

/// "main, v1.0", "main and 12 more"
pub(super) fn refs<'a>(names: impl ExactSizeIterator<Item = &'a RefName>) -> String {
    const SHOWN: usize = 3;
    let count = names.len();
    let mut names: Vec<&str> = names.map(RefName::as_str).collect();
    // The main branch comes first.
    names.sort_by_key(|name| (*name != "main", *name));
    match count.checked_sub(SHOWN + 1) {
        None => names.join(", "),
        Some(_) => format!("{} and {} more", names[..SHOWN].join(", "), count - SHOWN),
    }
}

pub(super) fn bytes_or_dash(bytes: Option<u64>) -> Cell {
    bytes.map_or_else(|| Cell::new("-", Tone::Dim), |bytes| size(bytes).into())
}

fn local_table(report: &local::Report) -> Table {
    use Column::{Fixed, Name, Number, SpareNumber, Text};
    let used = |time| Cell::new(ago(time, report.now), Tone::Dim);
    if report.by_revision {
        let mut table = Table::new([
            Name("Repo"),
            Fixed("Type"),
            Fixed("Revision"),
            SpareNumber("Files"),
            Number("Size"),
            Text("Refs"),
            Fixed("Last used"),
        ]);
        for row in &report.repos {
            for revision in &row.revisions {
                table.row([
                    Cell::new(row.repo.id.as_str(), Tone::Name),
                    row.repo.kind.word().into(),
                    revision.revision.short().into(),
                    revision.files.to_string().into(),
                    size(revision.size).into(),
                    refs(revision.refs.iter()).into(),
                    used(revision.last_used),
                ]);
            }
        }
        return table;
    }
    let mut table = Table::new([
        Name("Repo"),
        Fixed("Type"),
        Number("Revisions"),
        Number("Size"),
        SpareNumber("Blobs"),
        Text("Refs"),
        Fixed("Last used"),
    ]);
    for row in &report.repos {
        table.row([
            Cell::new(row.repo.id.as_str(), Tone::Name),
            row.repo.kind.word().into(),
            row.revisions.len().to_string().into(),
            size(row.size).into(),
            row.blobs.to_string().into(),
            refs(row.refs.iter().map(|reference| &reference.name)).into(),
            used(row.last_used),
        ]);
    }
    table
}

fn remote_table(report: &remote::Report) -> Table {
    use Column::{Fixed, Name, Number, SpareNumber, Text};
    let pushed = |time| Cell::new(ago(time, report.now), Tone::Dim);
    let with_size = |mut columns: Vec<Column>, at: usize| {
        if report.with_sizes {
            columns.insert(at, Number("Size"));
        }
        Table::new(columns)
    };
    let sized = |mut cells: Vec<Cell>, at: usize, size: Option<u64>| {
        if report.with_sizes {
            cells.insert(at, bytes_or_dash(size));
        }
        cells
    };
    if report.by_revision {
        let columns = vec![Name("Repo"), Fixed("Type"), Fixed("Revision"), Text("Refs"), Fixed("Pushed")];
        let mut table = with_size(columns, 3);
        for row in &report.repos {
            for revision in &row.revisions {
                let cells = vec![
                    Cell::new(row.repo.id.as_str(), Tone::Name),
                    row.repo.kind.word().into(),
                    revision.revision.short().into(),
                    refs(revision.refs.iter()).into(),
                    pushed(revision.pushed),
                ];
                table.row(sized(cells, 3, revision.size));
            }
        }
        return table;
    }
    let columns = vec![
        Name("Repo"),
        Fixed("Type"),
        SpareNumber("Revisions"),
        Fixed("Last pushed"),
        Text("Refs"),
        Fixed("Pushed"),
    ];
    let mut table = with_size(columns, 3);
    for row in &report.repos {
        let cells = vec![
            Cell::new(row.repo.id.as_str(), Tone::Name),
            row.repo.kind.word().into(),
            row.revisions.len().to_string().into(),
            row.latest.short().into(),
            refs(row.refs.iter().map(|reference| &reference.name)).into(),
            pushed(row.pushed),
        ];
        table.row(sized(cells, 3, row.size));
    }
    table
}
