//! What `prune` says: a line per evicted revision, one for everything, one when the budget is missed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use super::time::{Stream, ago, stamped};
use super::{plural, size};
use crate::commands::prune::{Evicted, Gone, Report, Row};
use crate::error::{Error, Kind, printable};
use crate::model::ids::RepoName;
use crate::plan::prune::{Reason, Skip, SkipReason};
use crate::ui;
use crate::ui::table::{Cell, Column, Table, Tone};
use crate::when::after_1970;

/// What went, the largest first.
fn table(rows: &[Row], now: SystemTime) -> String {
    let columns = [
        Column::Name("Repo"),
        Column::Fixed("Revision"),
        Column::Number("Size"),
        Column::Fixed("Last used"),
        Column::Text("Why"),
    ];
    let mut table = Table::new(columns);
    for row in rows {
        let repo = row.repo.as_ref().map_or("-".into(), ToString::to_string);
        let (what, used, why) = match &row.gone {
            Gone::Revision(one) => {
                (one.revision.short().to_string(), ago(after_1970(one.last_use), now), evicted_why(one))
            }
            Gone::Orphans(count) => (plural(*count, "blob"), "-".into(), "no revision uses it".into()),
            Gone::Abandoned(count) => (plural(*count, "file"), "-".into(), "was never finished".into()),
        };
        table.row([
            Cell::new(repo, Tone::Name),
            Cell::new(what, Tone::Dim),
            size(row.bytes).into(),
            used.into(),
            why.into(),
        ]);
    }
    table.to_text()
}

fn evicted_why(one: &Evicted) -> String {
    match one.reason {
        Reason::Referenced => {
            // Its own name says nothing.
            let refs = one.refs.iter().map(|name| name.as_str()).filter(|name| *name != one.revision.as_str());
            format!("least recently used ({})", refs.collect::<Vec<_>>().join(", "))
        }
        _ => "no ref names it".into(),
    }
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

/// How far the budget is missed, what stands in the way, the largest first, and what helps.
fn missed(report: &Report) -> String {
    let mut kept: BTreeMap<SkipReason, (u64, u64)> = BTreeMap::new();
    for skip in &report.skipped {
        let (count, bytes) = kept.entry(skip.reason).or_default();
        *count += 1;
        *bytes = if is_one_for_all(skip.reason) { skip.bytes.max(*bytes) } else { *bytes + skip.bytes };
    }
    kept.remove(&SkipReason::Unknown);
    let mut kept: Vec<(SkipReason, u64, u64)> =
        kept.into_iter().map(|(why, (count, bytes))| (why, count, bytes)).collect();
    kept.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
    let mut why: Vec<String> = kept
        .iter()
        .map(|(reason, count, bytes)| match (reason, bytes) {
            (SkipReason::Referenced, _) => {
                let (have, these) = if *count == 1 { ("has", "it") } else { ("have", "these") };
                let revisions = plural(*count, "revision");
                format!("{revisions} ({}) {have} refs; use --include-referenced to evict {these} too", size(*bytes))
            }
            (_, 0) => format!("left alone: {}", in_short(*reason)),
            _ => format!("left alone: {} ({})", in_short(*reason), size(*bytes)),
        })
        .collect();
    if report.pinned > 0 {
        why.push(format!("{} have a name outside the cache, or no list says who needs them", size(report.pinned)));
    }
    if report.declined {
        why = vec!["you said no".into()];
    }
    if why.is_empty() {
        why.push("nothing else may be evicted".into());
    }
    let mut text =
        format!("Over the budget of {} by {}: {}.", size(report.budget), size(report.over_budget), why.join("; "));
    let largest = kept.first().filter(|(_, _, bytes)| *bytes > 0 && !report.declined);
    if let Some(helps) = largest.and_then(|(reason, ..)| what_helps(*reason)) {
        let _ = write!(text, "\n  {helps}");
    }
    text
}

/// Whether each of several skips keeps the same bytes.
fn is_one_for_all(reason: SkipReason) -> bool {
    reason == SkipReason::Unreadable
}

/// What a user can do about it.
fn what_helps(reason: SkipReason) -> Option<&'static str> {
    match reason {
        SkipReason::Referenced
        | SkipReason::FreesNothing
        | SkipReason::Unknown
        | SkipReason::Unlisted
        | SkipReason::Changed => None,
        SkipReason::Young => Some("run it again later, or with a shorter --orphan-grace"),
        SkipReason::InFlight => {
            Some("run it again when no download is under way; --temporary-grace says how long one may rest")
        }
        SkipReason::Busy => Some("run it again in some minutes, or with --orphan-grace 0"),
        SkipReason::Held => Some("run it again when the other process has ended"),
        SkipReason::Link | SkipReason::NeededElsewhere => Some("remove the links, or free the space where they lead"),
        SkipReason::Unreadable => Some("make it readable, or run as a user who may read it"),
        SkipReason::Undecidable | SkipReason::BadRef => {
            Some("without -q it says which; `hf-cache-sync doctor` may help")
        }
    }
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
        SkipReason::Undecidable => "files that unrecognised entries may need",
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
        SkipReason::Undecidable => "a link or name is not recognised, so its repo is kept to be safe",
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
        let all = skips.iter().map(|skip| skip.bytes);
        let bytes = match if is_one_for_all(why) { all.max().unwrap_or_default() } else { all.sum() } {
            0 => String::new(),
            bytes => format!(" ({})", size(bytes)),
        };
        let _ = writeln!(out, "left alone {first}{more}{bytes}: {}", reason(why));
    }
    out
}

impl ui::Report for Report {
    fn result(&self) -> String {
        if self.declined {
            return "Nothing was deleted.\n".into();
        }
        let verb = if self.dry_run { "Would free" } else { "Freed" };
        let mut out = String::new();
        if !self.rows.is_empty() && !self.was_shown {
            out.push_str(&table(&self.rows, self.now));
        }
        let of = match self.over_budget {
            0 => format!("{} of the {} budget", size(self.size), size(self.budget)),
            _ => size(self.size),
        };
        let of = if self.dry_run { format!("that leaves {of}") } else { format!("{of} used") };
        let total = format!("{} {}: {}; {of}.", verb, size(self.freed), counts(self));
        let total = if self.dry_run { total } else { stamped(&total, Stream::Out) };
        let _ = writeln!(out, "{total}");
        if self.over_budget > 0 {
            let _ = writeln!(out, "{}", missed(self));
        }
        out
    }

    fn quiet_result(&self) -> String {
        // For cron: only what somebody has to act on, which is on stderr.
        if self.dry_run { self.result() } else { String::new() }
    }

    fn attention(&self) -> Option<String> {
        let is_news = self.over_budget > 0 && !self.dry_run && !self.declined;
        is_news.then(|| missed(self).trim_end().replacen("Over", "over", 1))
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
