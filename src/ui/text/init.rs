//! What `init` says.

use crate::commands::init::Report;
use crate::error::Kind;
use crate::ui;

impl ui::Report for Report {
    fn result(&self) -> String {
        let path = self.path.display();
        match self.created {
            false => format!("{path} is there already and was left as it is."),
            true => format!(
                "Created {path}.\nNext: fill in endpoint, bucket and region, export B2_APPLICATION_KEY_ID and \
                 B2_APPLICATION_KEY,\nand run `hf-cache-sync doctor`."
            ),
        }
    }

    fn failed(&self) -> Option<Kind> {
        None
    }
}
