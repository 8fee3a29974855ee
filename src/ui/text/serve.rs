//! The output of `serve`: how to use it on stdout, the rest on stderr.

use crate::commands::serve::environment::{Report, shell_lines};
use crate::commands::serve::update::{Update, UpdateKind};
use crate::error::{Kind, shown};
use crate::ui;

impl ui::Report for Report {
    fn result(&self) -> String {
        shell_lines(&self.environment)
    }

    fn failed(&self) -> Option<Kind> {
        None
    }
}

impl ui::Report for Update {
    fn result(&self) -> String {
        match &self.kind {
            // The command has stdout to itself.
            UpdateKind::Started { has_command: true, .. } | UpdateKind::Stopped { .. } => String::new(),
            UpdateKind::Started { environment, .. } => shell_lines(environment),
        }
    }

    fn quiet_result(&self) -> String {
        String::new()
    }

    fn summary(&self) -> String {
        match &self.kind {
            UpdateKind::Started { has_command: true, .. } | UpdateKind::Stopped { has_command: true } => String::new(),
            UpdateKind::Started { url, cache, bucket, needs_token, .. } => {
                let from = match bucket {
                    Some(bucket) => format!("bucket '{bucket}' through {}", shown(cache)),
                    None => format!("{} alone", shown(cache)),
                };
                let token = if *needs_token { ", and the token as HF_TOKEN" } else { "" };
                format!("Serving {from} at {url}. Clients need the variables above{token}; ctrl-c stops it.")
            }
            UpdateKind::Stopped { .. } => "Stopped.".into(),
        }
    }

    fn failed(&self) -> Option<Kind> {
        None
    }
}
