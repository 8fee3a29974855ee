//! The output of `watch`: a line for each push on stdout, the rest on stderr.

use std::fmt::Write;

use super::push::skip_line;
use super::{blobs, pace, plural};
use crate::commands::watch::source::How;
use crate::commands::watch::update::{PushSummary, Update, UpdateKind};
use crate::error::{Error, Kind, shown};
use crate::ui;

fn push_line(pushed: &PushSummary) -> String {
    let mut out = match pushed.uploaded.blobs {
        0 => "nothing to upload".to_string(),
        _ => format!("uploaded {} {}", blobs(&pushed.uploaded), pace(&pushed.uploaded, pushed.seconds)),
    };
    for (count, word) in [(pushed.manifests, "manifest"), (pushed.refs, "ref")] {
        if count > 0 {
            let _ = write!(out, ", wrote {}", plural(count as u64, word));
        }
    }
    let _ = write!(out, "; {} already in the bucket", blobs(&pushed.present));
    if pushed.failed > 0 {
        let known = pushed.failed - pushed.failures.len();
        let _ = write!(out, "; {}", plural(pushed.failed as u64, "failure"));
        if known > 0 {
            let _ = write!(out, " ({known} as before)");
        }
    }
    if let Some(seconds) = pushed.retry_in {
        let _ = write!(out, "; retrying in {}", pause(seconds));
    }
    out
}

fn pause(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds => format!("{:.0} min", seconds / 60.0),
    }
}

impl ui::Report for Update {
    fn result(&self) -> String {
        let line = match &self.kind {
            UpdateKind::Started { .. } | UpdateKind::Stopped { .. } => return String::new(),
            UpdateKind::Pushed(pushed) => push_line(pushed),
            UpdateKind::Failed { attempt, retry_in, .. } => {
                let tries = if *attempt > 1 { format!(" {attempt} times in a row") } else { String::new() };
                format!("push failed{tries}; retrying in {}", pause(*retry_in))
            }
        };
        format!("{}  {line}", self.time)
    }

    fn quiet_result(&self) -> String {
        match &self.kind {
            UpdateKind::Failed { .. } => self.result(),
            UpdateKind::Pushed(pushed) if pushed.failed > 0 => self.result(),
            _ => String::new(),
        }
    }

    fn summary(&self) -> String {
        match &self.kind {
            UpdateKind::Started { cache, bucket, how, debounce } => {
                let how = if *how == How::Poll { ", by polling" } else { "" };
                format!(
                    "Watching {}{how}: pushing to bucket '{bucket}' now, and after {debounce} s of quiet.",
                    shown(cache)
                )
            }
            UpdateKind::Pushed(pushed) => {
                let notes = pushed.notes.iter().map(|note| format!("note: {note}\n"));
                notes.chain(pushed.skipped.iter().map(|skip| skip_line(skip) + "\n")).collect()
            }
            UpdateKind::Failed { .. } => String::new(),
            UpdateKind::Stopped { push_abandoned: false } => "Stopped.".into(),
            UpdateKind::Stopped { push_abandoned: true } => {
                "Stopped during a push; the next one resumes from there.".into()
            }
        }
    }

    fn failures(&self) -> &[Error] {
        match &self.kind {
            UpdateKind::Pushed(pushed) => &pushed.failures,
            UpdateKind::Failed { news, .. } => news,
            _ => &[],
        }
    }

    fn failed(&self) -> Option<Kind> {
        None
    }
}
