//! Reports as people read them.

use std::fmt::Write;

use bytesize::ByteSize;
use console::style;

use super::Report;
use crate::commands::push::plan::{Skip, SkipReason};
use crate::commands::{Amount, doctor, init, pull, push};
use crate::error::{Error, Kind};

/// A size in the one unit system that is used everywhere: powers of 1024.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

fn plural(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

fn blobs(amount: &Amount) -> String {
    format!("{} ({})", plural(amount.blobs, "blob"), size(amount.bytes))
}

/// "in 3.2 s, 512 MiB/s"
fn pace(amount: &Amount, seconds: f64) -> String {
    match amount.bytes {
        0 => format!("in {seconds:.1} s"),
        bytes => format!("in {seconds:.1} s, {}/s", size((bytes as f64 / seconds.max(0.001)) as u64)),
    }
}

impl Report for init::Report {
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

impl Report for doctor::Report {
    fn result(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
        let mut out = String::new();
        for check in &self.checks {
            let mark = match check.status {
                doctor::Status::Ok => style("ok  ").green(),
                doctor::Status::Note => style("note").yellow(),
                doctor::Status::Failed => style("FAIL").red().bold(),
                doctor::Status::Skipped => style("-   ").dim(),
            };
            let _ = writeln!(out, "{mark}  {:width$}  {}", check.name, check.detail);
            if let Some(hint) = &check.hint {
                let _ = writeln!(out, "      {:width$}  {}", "", style(hint).dim());
            }
        }
        match self.checks.iter().filter(|check| check.status == doctor::Status::Failed).count() {
            0 => out.push_str("All checks passed.\n"),
            count => {
                let _ = writeln!(out, "{} failed.", plural(count as u64, "check"));
            }
        }
        out
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}

fn skip_line(skip: &Skip) -> String {
    let repo = match &skip.revision {
        Some(commit) => format!("{}@{}", skip.repo, commit.short()),
        None => skip.repo.to_string(),
    };
    let why = match &skip.reason {
        SkipReason::Gated { file, keyword } => format!(
            "looks gated: {file} contains \"{keyword}\"; set team.allow_gated: true if you may share it"
        ),
        SkipReason::Pointer { path } => {
            format!("{path} is an LFS/Xet pointer, not the file; set cache.sync_xet: true to push it")
        }
        SkipReason::NoFiles => "has no files to publish".into(),
        SkipReason::NoSnapshot { name } => format!("ref {name} has no snapshot in this cache"),
        SkipReason::Withheld { files } => {
            format!("was not published, because {} could not be sent", plural(*files as u64, "file"))
        }
        SkipReason::Unused { blobs } => format!("{} that no snapshot uses", plural(*blobs as u64, "blob")),
    };
    format!("skipped {repo}: {why}")
}

impl Report for push::Report {
    fn result(&self) -> String {
        let mut out = String::new();
        if let Some(plan) = &self.plan {
            for upload in &plan.uploads {
                let _ = writeln!(out, "would upload {}  {}/{}  {}", upload.blob, upload.repo, upload.path, size(upload.size));
            }
        }
        for skip in &self.skipped {
            let _ = writeln!(out, "{}", skip_line(skip));
        }
        let verb = if self.dry_run { "Would upload" } else { "Uploaded" };
        let _ = writeln!(out, "{verb} {} {}.", blobs(&self.uploaded), pace(&self.uploaded, self.seconds));
        let _ = writeln!(
            out,
            "{} in the bucket already. {} and {} {}; {} and {} up to date.",
            blobs(&self.present),
            plural(self.manifests as u64, "manifest"),
            plural(self.refs as u64, "ref"),
            if self.dry_run { "to be written" } else { "written" },
            plural(self.manifests_unchanged as u64, "manifest"),
            plural(self.refs_unchanged as u64, "ref"),
        );
        out
    }

    fn failures(&self) -> &[Error] {
        &self.failures
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}

impl Report for pull::Report {
    fn result(&self) -> String {
        let complete = self.failures.is_empty() && !self.dry_run && self.gated.is_none();
        if complete { self.snapshot.display().to_string() } else { String::new() }
    }

    fn summary(&self) -> String {
        let name = format!("{}@{}", self.repo, self.revision.short());
        let mut out = String::new();
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        if let Some(gated) = &self.gated {
            let _ = writeln!(
                out,
                "Skipped {name}: it looks gated, {} contains \"{}\". Set team.allow_gated: true if you may use it.",
                gated.file, gated.keyword
            );
            return out;
        }
        if self.files_not_in_bucket > 0 {
            let missing = plural(self.files_not_in_bucket as u64, "file");
            let _ = writeln!(out, "note: {missing} of this revision were never pushed");
        }
        let _ = match (self.dry_run, self.source, self.failures.is_empty()) {
            (true, ..) => writeln!(out, "Would download {} of {name}; {} here already.", blobs(&self.downloaded), blobs(&self.present)),
            (_, _, false) => writeln!(out, "{name} is incomplete: {} of it could not be pulled.", plural(self.failures.len() as u64, "blob")),
            (_, pull::Source::Cache, _) => writeln!(out, "{name} is here already: {}.", plural(self.files as u64, "file")),
            (_, pull::Source::Bucket, _) => writeln!(
                out,
                "Pulled {name} from the bucket: {} {}; {} here already.",
                blobs(&self.downloaded),
                pace(&self.downloaded, self.seconds),
                blobs(&self.present)
            ),
        };
        out
    }

    fn failures(&self) -> &[Error] {
        &self.failures
    }

    fn failed(&self) -> Option<Kind> {
        self.failed()
    }
}
