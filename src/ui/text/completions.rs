//! The output of `completions`: the script.

use crate::commands::completions::Report;
use crate::error::Kind;
use crate::ui;

impl ui::Report for Report {
    fn result(&self) -> String {
        self.script.clone()
    }

    fn failed(&self) -> Option<Kind> {
        None
    }
}
