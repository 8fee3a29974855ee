//! What `prune` says: a line per evicted revision, one for everything, one when the budget is missed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::SystemTime;

use super::time::{Stream, ago, stamped};
use super::{plural, size};
use crate::commands::prune::plan::{Skip, SkipReason};
use crate::commands::prune::{Evicted, Report};
use crate::commands::when::after_1970;
use crate::error::{Error, Kind, printable};
use crate::ids::RepoName;
use crate::ui;

fn evicted_line(verb: &str, one: &Evicted, now: SystemTime) -> String {
    let refs: Vec<&str> = one.refs.iter().map(|name| name.as_str()).collect();
    let refs = if refs.is_empty() { String::new() } else { format!(", {}", refs.join(" ")) };
    let name = format!("{}@{}{refs}", one.repo, one.revision.short());
    format!("{verb} {name}  {}  last used {}", size(one.bytes), ago(after_1970(one.last_use), now))
}

/// "2 revisions, 1 orphaned blob and 3 abandoned files", without what there is none of.
fn counts(report: &Report) -> String {
    let all = [
        (report.evicted.len() as u64, "revision"),
        (report.orphans.blobs, "orphaned blob"),
        (report.abandoned.blobs, "abandoned file"),
        (report.refs_removed.len() as u64, "dangling ref"),
        (report.repos_removed.len() as u64, "empty repo folder"),
    ];
    let some: Vec<String> = all.iter().filter(|(n, _)| *n > 0).map(|(n, word)| plural(*n, word)).collect();
    match some.split_last() {
        None => "nothing to delete".into(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}

/// How far the budget is missed, and what stands in the way.
fn missed(report: &Report) -> String {
    let mut why = Vec::new();
    let of = |reason: SkipReason| report.skipped.iter().filter(move |skip| skip.reason == reason);
    let referenced = of(SkipReason::Referenced).count() as u64;
    if referenced > 0 {
        let bytes = size(of(SkipReason::Referenced).map(|skip| skip.bytes).sum());
        why.push(format!(
            "{} ({bytes}) {} named by refs, --include-referenced evicts these too",
            plural(referenced, "revision"),
            if referenced == 1 { "is" } else { "are" },
        ));
    }
    let others: BTreeSet<SkipReason> = report.skipped.iter().map(|skip| skip.reason).collect();
    let others: Vec<&str> = others
        .into_iter()
        .filter(|one| !matches!(one, SkipReason::Referenced | SkipReason::Unknown))
        .map(in_short)
        .collect();
    if !others.is_empty() {
        let also = if why.is_empty() { "" } else { "also " };
        why.push(format!("{also}left alone: {}", others.join(", ")));
    }
    if why.is_empty() {
        why.push("nothing else may be evicted".into());
    }
    format!("Over the budget of {} by {}: {}.", size(report.budget), size(report.over_budget), why.join("; "))
}

/// For a line with several.
fn in_short(reason: SkipReason) -> &'static str {
    match reason {
        SkipReason::Referenced => "what refs name",
        SkipReason::FreesNothing => "what would free nothing",
        SkipReason::Young => "what is young",
        SkipReason::InFlight => "what may be in flight",
        SkipReason::Busy => "what came minutes ago",
        SkipReason::Held => "what another process has locked",
        SkipReason::Link => "what is behind links",
        SkipReason::NeededElsewhere => "what another repo needs",
        SkipReason::Unreadable => "what may be needed by what cannot be read",
        SkipReason::Undecidable => "what may be needed by what is not understood",
        SkipReason::BadRef => "what a bad ref may name",
        SkipReason::Unknown => "unrecognised files",
        SkipReason::Unlisted => "shared blobs without a list",
        SkipReason::Changed => "what changed meanwhile",
    }
}

fn reason(reason: SkipReason) -> &'static str {
    match reason {
        SkipReason::Referenced => "a ref names it",
        SkipReason::FreesNothing => "others need all of its blobs, so evicting it would free nothing",
        SkipReason::Young => "younger than the grace period",
        SkipReason::InFlight => "a download may be in flight (see --temporary-grace)",
        SkipReason::Busy => "a download was here minutes ago (use --orphan-grace 0 to evict anyway)",
        SkipReason::Held => "another process holds the lock",
        SkipReason::Link => "it is a link or is reached through one; nothing is deleted through links",
        SkipReason::NeededElsewhere => "a link elsewhere leads into it",
        SkipReason::Unreadable => "cannot be read, so nobody can tell what is needed",
        SkipReason::Undecidable => "a link or name is not understood, so nobody can tell which blobs are needed",
        SkipReason::BadRef => "not a valid ref, so nobody can tell which revision it names",
        SkipReason::Unknown => "not a part of a Hugging Face cache",
        SkipReason::Unlisted => "no list says who needs this shared blob",
        SkipReason::Changed => "it changed while prune was at work",
    }
}

/// One line for all that was left alone in a repo for one reason.
/// Young things are only told where they stand in the way: there will always be some.
fn skip_lines(skips: &[Skip], over_budget: bool) -> String {
    let mut groups: BTreeMap<(Option<&RepoName>, SkipReason), Vec<&Skip>> = BTreeMap::new();
    let told = |reason| reason != SkipReason::Referenced && (over_budget || reason != SkipReason::Young);
    for skip in skips.iter().filter(|skip| told(skip.reason)) {
        groups.entry((skip.repo.as_ref(), skip.reason)).or_default().push(skip);
    }
    let mut out = String::new();
    for ((repo, why), skips) in groups {
        let first = match (skips[0].path.as_ref(), skips[0].revision.as_ref(), repo) {
            (Some(path), ..) => printable(&path.to_string_lossy(), 400),
            (None, Some(commit), Some(repo)) => format!("{repo}@{}", commit.short()),
            (None, _, Some(repo)) => repo.to_string(),
            (None, _, None) => "something".into(),
        };
        let more = if skips.len() > 1 { format!(" and {} more", skips.len() - 1) } else { String::new() };
        let bytes = match skips.iter().map(|skip| skip.bytes).sum() {
            0 => String::new(),
            bytes => format!(" ({})", size(bytes)),
        };
        let _ = writeln!(out, "left alone {first}{more}{bytes}: {}", reason(why));
    }
    out
}

impl ui::Report for Report {
    fn result(&self) -> String {
        let verbs = if self.dry_run { ("would evict", "Would free") } else { ("evicted", "Freed") };
        let mut out = String::new();
        for one in &self.evicted {
            let _ = writeln!(out, "{}", evicted_line(verbs.0, one, self.now));
        }
        let of = match self.over_budget {
            0 => format!("{} of the {} budget", size(self.size), size(self.budget)),
            _ => size(self.size),
        };
        let of = if self.dry_run { format!("that leaves {of}") } else { format!("{of} used") };
        let total = format!("{} {}: {}; {of}.", verbs.1, size(self.freed), counts(self));
        let total = if self.dry_run { total } else { stamped(&total, Stream::Out) };
        let _ = writeln!(out, "{total}");
        if self.over_budget > 0 {
            let _ = writeln!(out, "{}", missed(self));
        }
        out
    }

    fn quiet_result(&self) -> String {
        // For cron: only what somebody has to act on.
        match (self.dry_run, self.fail_over_budget && self.over_budget > 0) {
            (true, _) => self.result(),
            (_, true) => missed(self),
            _ => String::new(),
        }
    }

    fn summary(&self) -> String {
        let mut out = skip_lines(&self.skipped, self.over_budget > 0);
        if self.noatime && (!self.evicted.is_empty() || self.over_budget > 0) {
            let _ = writeln!(
                out,
                "note: this file system keeps no access times (noatime), so the last use is the last download or pull"
            );
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
