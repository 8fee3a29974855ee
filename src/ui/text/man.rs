//! What `man` says: the page, or where the pages are.

use crate::commands::man::Report;
use crate::error::Kind;
use crate::ui;

impl ui::Report for Report {
    fn result(&self) -> String {
        match &self.page {
            Some(page) => page.clone(),
            None => self.pages.iter().map(|path| format!("{}\n", path.display())).collect(),
        }
    }

    fn failed(&self) -> Option<Kind> {
        None
    }
}
