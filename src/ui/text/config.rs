//! The output of `config show`: one line per setting.

use std::fmt::Write;

use crate::commands::config::Report;
use crate::error::{Error, Kind};
use crate::ui;
use crate::ui::table::{Cell, Column, Table, Tone};

impl ui::Report for Report {
    fn result(&self) -> String {
        let mut out = String::new();
        let _ = match (&self.file, &self.file_source) {
            (Some(path), Some(source)) => writeln!(out, "File: {} (from {source})", path.display()),
            (Some(path), None) => writeln!(out, "File: {}", path.display()),
            (None, _) => {
                let searched: Vec<String> = self.searched.iter().map(|path| path.display().to_string()).collect();
                writeln!(out, "File: none (searched: {})", searched.join(", "))
            }
        };
        let _ = writeln!(out, "Credentials: {}\n", self.credentials);
        let mut table = Table::new([Column::Fixed("Setting"), Column::Fixed("Value"), Column::Fixed("Source")]);
        for row in &self.settings {
            let value = match (&row.value, row.hidden) {
                (_, true) => Cell::new("(hidden)", Tone::Dim),
                (Some(value), false) => Cell::from(value.as_str()),
                (None, false) => Cell::new(row.default.as_str(), Tone::Dim),
            };
            let source = Cell::new(row.source.as_deref().unwrap_or("default"), Tone::Dim);
            table.row([Cell::new(row.name.as_str(), Tone::Name), value, source]);
        }
        out + &table.to_text()
    }

    fn summary(&self) -> String {
        let mut out = String::new();
        for (word, texts) in [("warning", &self.warnings), ("note", &self.notes)] {
            for text in texts {
                let _ = writeln!(out, "{word}: {text}");
            }
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
