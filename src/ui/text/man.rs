//! The output of `man`: the page, or the paths of the pages.

use crate::commands::man::Report;
use crate::error::{Kind, shown};
use crate::ui;

impl ui::Report for Report {
    fn result(&self) -> String {
        match &self.page {
            Some(page) => page.clone(),
            None => self.pages.iter().map(|path| shown(path) + "\n").collect(),
        }
    }

    fn quiet_result(&self) -> String {
        self.page.clone().unwrap_or_default()
    }

    fn failed(&self) -> Option<Kind> {
        None
    }
}
