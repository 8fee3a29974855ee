//! The output of `init`.

use crate::commands::init::Report;
use crate::error::{Kind, shown};
use crate::ui;

impl ui::Report for Report {
    fn result(&self) -> String {
        let path = shown(&self.path);
        match self.created {
            false => format!("{path} already exists and was left unchanged."),
            true => {
                let option = if self.named { format!(" --config {path}") } else { String::new() };
                format!(
                    "Created {path}.\nNext: fill in endpoint and bucket, export B2_APPLICATION_KEY_ID and \
                     B2_APPLICATION_KEY,\nand run `hf-cache-sync doctor{option}`."
                )
            }
        }
    }

    fn quiet_result(&self) -> String {
        String::new()
    }

    fn failed(&self) -> Option<Kind> {
        None
    }
}
