//! What `push` says.

use std::fmt::Write;

use super::time::{Stream, stamped};
use super::{blobs, pace, plural, size};
use crate::commands::push::Report;
use crate::commands::push::plan::{Skip, SkipReason};
use crate::error::{Error, Kind};
use crate::ui;

/// The first of many names.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}

/// A line on what was left out.
pub(super) fn skip_line(skip: &Skip) -> String {
    let repo = match &skip.revision {
        Some(commit) => format!("{}@{}", skip.repo, commit.short()),
        None => skip.repo.to_string(),
    };
    let why = match &skip.reason {
        SkipReason::Gated { file, keyword } => {
            format!("looks gated: {file} contains \"{keyword}\"; set team.allow_gated: true if you may share it")
        }
        SkipReason::Pointer { path } => {
            format!("{path} is an LFS/Xet pointer, not the file; set cache.sync_xet: true to push it")
        }
        SkipReason::NoFiles => "has no files to publish".into(),
        SkipReason::NoSnapshot { name } => format!("ref {name} has no snapshot in this cache"),
        SkipReason::Withheld { files } => {
            format!("was not published, because {} could not be sent", plural(*files as u64, "file"))
        }
        SkipReason::Unlisted { files } => {
            format!("{} not of this commit, by its tree: {}", plural(files.len() as u64, "file"), few(files))
        }
        SkipReason::Unlinked { files } => {
            let many = plural(files.len() as u64, "file");
            format!("{many} that nothing shows to be of this commit (no links, and no tree lists them): {}", few(files))
        }
        SkipReason::Unused { blobs } => format!("{} that no snapshot uses", plural(*blobs as u64, "blob")),
    };
    format!("skipped {repo}: {why}")
}

impl ui::Report for Report {
    fn result(&self) -> String {
        let mut out = String::new();
        if let Some(plan) = &self.plan {
            for upload in &plan.uploads {
                let _ = writeln!(
                    out,
                    "would upload {}  {}/{}  {}",
                    upload.blob,
                    upload.repo,
                    upload.path,
                    size(upload.size)
                );
            }
        }
        for skip in &self.skipped {
            let _ = writeln!(out, "{}", skip_line(skip));
        }
        let _ = writeln!(
            out,
            "{}: {}, {}. Unchanged: {}, {}.",
            if self.dry_run { "To be written" } else { "Written" },
            plural(self.manifests as u64, "manifest"),
            plural(self.refs as u64, "ref"),
            plural(self.manifests_unchanged as u64, "manifest"),
            plural(self.refs_unchanged as u64, "ref"),
        );
        let mut total = match self.dry_run {
            true => format!("Would upload {}", blobs(&self.uploaded)),
            false => format!("Uploaded {} {}", blobs(&self.uploaded), pace(&self.uploaded, self.seconds)),
        };
        let _ = write!(total, "; {} in the bucket already", blobs(&self.present));
        for (number, what) in [(self.skipped.len(), "skipped"), (self.failures.len(), "failed")] {
            if number > 0 {
                let _ = write!(total, "; {number} {what}");
            }
        }
        let total = if self.dry_run { total } else { stamped(&total, Stream::Out) };
        let _ = writeln!(out, "{total}.");
        out
    }

    fn summary(&self) -> String {
        self.notes.iter().map(|note| format!("note: {note}\n")).collect()
    }

    fn quiet_result(&self) -> String {
        if self.dry_run { self.result() } else { String::new() }
    }

    fn failures(&self) -> &[Error] {
        &self.failures
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}
