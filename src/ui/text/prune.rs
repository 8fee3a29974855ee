//! The output of `prune`: a table, a line of totals, and another if the budget is exceeded.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use super::time::{Stream, ago, stamped};
use super::{plural, size};
use crate::cache::state::Completeness;
use crate::commands::prune::{Deletions, EvictedRevision, Report, Row, RowKind};
use crate::error::{Error, Kind, printable};
use crate::model::ids::RepoName;
use crate::plan::prune::held::Lack;
use crate::plan::prune::{Reason, Skip, SkipReason};
use crate::ui;
use crate::ui::table::{Cell, Column, Table, Tone};
use crate::when::from_unix_seconds;

/// Formats what was deleted, largest first.
pub(super) fn table(rows: &[Row], now: SystemTime) -> String {
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
        let (what, used, why) = match &row.kind {
            RowKind::Revision(one) => {
                let why = match notable(&one.status) {
                    Some(word) => format!("{}; {word}", eviction_reason(one)),
                    None => eviction_reason(one),
                };
                (one.revision.short().to_string(), ago(from_unix_seconds(one.last_use), now), why)
            }
            RowKind::Orphans(count) => (plural(*count, "blob"), "-".into(), "no revision uses it".into()),
            RowKind::Abandoned(count) => (plural(*count, "file"), "-".into(), "never finished".into()),
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

fn eviction_reason(one: &EvictedRevision) -> String {
    match one.reason {
        Reason::Referenced => format!("least recently used ({})", refs_of(one)),
        Reason::Requested => refs_of(one),
        _ => "no ref names it".into(),
    }
}

/// Returns the word for how much of a commit is here, if it is not all of it or is unusable.
fn notable(status: &Completeness) -> Option<&'static str> {
    matches!(status, Completeness::Partial { .. } | Completeness::Damaged { .. }).then(|| status.word())
}

/// Lists the refs that named it, except one named like the commit itself, which carries no information.
fn refs_of(one: &EvictedRevision) -> String {
    let refs = one.refs.iter().map(|name| name.as_str()).filter(|name| *name != one.revision.as_str());
    let refs: Vec<&str> = refs.collect();
    if refs.is_empty() { "no ref".into() } else { refs.join(", ") }
}

/// "2 revisions, 1 orphaned blob and 3 abandoned files", omitting zero counts; `if_none` if all are zero.
pub(super) fn counts(deleted: &Deletions, require_remote: bool, if_none: &str) -> String {
    let all = [
        (deleted.evicted.len() as u64, "revision"),
        (deleted.orphans.blobs, "orphaned blob"),
        (deleted.abandoned.blobs, "abandoned file"),
        (deleted.refs_removed.len() as u64, "dangling ref"),
        (deleted.repos_removed.len() as u64, "empty repo folder"),
    ];
    let mut some: Vec<String> = all.iter().filter(|(n, _)| *n > 0).map(|(n, word)| plural(*n, word)).collect();
    if require_remote && !deleted.evicted.is_empty() {
        some[0].push_str(" that the bucket holds");
    }
    match some.split_last() {
        None => if_none.into(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}

/// Says why nothing is deleted: it was kept, failed, or there was nothing.
pub(super) fn nothing(is_kept: bool, has_failed: bool, dry_run: bool) -> &'static str {
    match (is_kept, has_failed, dry_run) {
        (true, _, false) => "everything was kept",
        (true, _, true) => "everything would be kept",
        (false, true, false) => "nothing was deleted",
        (false, true, true) => "nothing would be deleted",
        (false, false, _) => "nothing to delete",
    }
}

/// Returns what prevented asking the bucket, and what follows from that, if anything was kept for this reason.
fn bucket_failure(report: &Report) -> Option<String> {
    let count = report.skipped.iter().filter(|skip| skip.lacks == Some(Lack::Unknown)).count() as u64;
    let is_unreachable = report.failures.iter().any(|failure| failure.kind() == Kind::Unavailable);
    let what = if is_unreachable { "reached" } else { "checked" };
    let kept = match report.deleted.evicted.len() {
        0 if report.dry_run => "nothing would be evicted".into(),
        0 => "nothing was evicted".into(),
        _ => format!("{} kept", plural(count, "revision")),
    };
    (count > 0).then(|| format!("the bucket could not be {what}, so {kept}"))
}

/// Explains by how much the budget is exceeded, what prevents freeing more, largest first, and what to do about it.
fn budget_excess(report: &Report) -> String {
    let budget = report.budget.unwrap_or_default();
    let mut kept: BTreeMap<SkipReason, (u64, u64)> = BTreeMap::new();
    let bucket_failure = bucket_failure(report);
    for skip in report.skipped.iter().filter(|skip| skip.lacks != Some(Lack::Unknown)) {
        let (count, bytes) = kept.entry(skip.reason).or_default();
        *count += 1;
        *bytes = if covers_same_bytes(skip.reason) { skip.bytes.max(*bytes) } else { *bytes + skip.bytes };
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
            (_, 0) => format!("kept {}", kept_items(*reason)),
            _ => format!("kept {} ({})", kept_items(*reason), size(*bytes)),
        })
        .collect();
    why.extend(bucket_failure);
    if report.pinned > 0 {
        why.push(format!(
            "{} are hard-linked from outside the cache, or nothing records what needs them",
            size(report.pinned)
        ));
    }
    if report.declined {
        why = vec!["you declined".into()];
    }
    if why.is_empty() {
        why.push("nothing else may be evicted".into());
    }
    let mut text = format!("Over the budget of {} by {}: {}.", size(budget), size(report.over_budget), why.join("; "));
    let largest = kept.first().filter(|(_, _, bytes)| *bytes > 0 && !report.declined);
    if let Some(advice) = largest.and_then(|(reason, ..)| advice(*reason)) {
        let _ = write!(text, "\n  {advice}");
    }
    text
}

/// Whether several skips with this reason keep the same bytes.
fn covers_same_bytes(reason: SkipReason) -> bool {
    reason == SkipReason::Unreadable
}

/// Returns what the user can do about it.
fn advice(reason: SkipReason) -> Option<&'static str> {
    match reason {
        SkipReason::Referenced
        | SkipReason::FreesNothing
        | SkipReason::Unknown
        | SkipReason::Unlisted
        | SkipReason::Changed => None,
        SkipReason::NotInBucket => {
            Some("run `hf-cache-sync push`, then prune again; `hf-cache-sync diff` shows what differs")
        }
        SkipReason::Pinned => Some("relax --keep or cache.keep"),
        SkipReason::Recent => Some("use a shorter --older-than"),
        SkipReason::Young => Some("run prune again later, or with a shorter --orphan-grace"),
        SkipReason::InFlight => {
            Some("run prune again when no download is in progress; --temporary-grace sets how long one may pause")
        }
        SkipReason::Busy => Some("run prune again in a few minutes, or with --orphan-grace 0"),
        SkipReason::Held => Some("run prune again when the other process has finished"),
        SkipReason::Link | SkipReason::NeededElsewhere => Some("remove the links, or free space at their targets"),
        SkipReason::Unreadable => Some("make it readable, or run prune as a user who can read it"),
        SkipReason::Undecidable | SkipReason::BadRef => {
            Some("stderr names them, unless -q is given; `hf-cache-sync doctor` may help")
        }
    }
}

/// Names what is kept for a reason, for a list of several.
fn kept_items(reason: SkipReason) -> &'static str {
    match reason {
        SkipReason::Referenced => "revisions with refs",
        SkipReason::NotInBucket => "revisions that the bucket does not hold",
        SkipReason::Pinned => "revisions that match --keep or cache.keep",
        SkipReason::Recent => "revisions used more recently than --older-than",
        SkipReason::FreesNothing => "revisions whose eviction would free nothing",
        SkipReason::Young => "items within the grace period",
        SkipReason::InFlight => "possible downloads in flight",
        SkipReason::Busy => "recent downloads",
        SkipReason::Held => "items locked by another process",
        SkipReason::Link => "items reached through links",
        SkipReason::NeededElsewhere => "items that another repo needs",
        SkipReason::Unreadable => "items that something unreadable may need",
        SkipReason::Undecidable => "items that unrecognised entries may need",
        SkipReason::BadRef => "revisions that an invalid ref may name",
        SkipReason::Unknown => "unrecognised files",
        SkipReason::Unlisted => "shared blobs without a record of their users",
        SkipReason::Changed => "items that changed in the meantime",
    }
}

pub(super) fn reason(reason: SkipReason) -> &'static str {
    match reason {
        SkipReason::Referenced => "a ref names it (use --include-referenced or --require-remote to evict it)",
        SkipReason::NotInBucket => "the bucket does not hold all of it",
        SkipReason::Pinned => "it matches --keep or cache.keep",
        SkipReason::Recent => "it was used more recently than --older-than",
        SkipReason::FreesNothing => "other revisions need all of its blobs, so evicting it would free nothing",
        SkipReason::Young => "it is younger than the grace period",
        SkipReason::InFlight => {
            "a download may be in flight: wait until it has finished, or use a shorter --temporary-grace if it was aborted"
        }
        SkipReason::Busy => "something was downloaded minutes ago (use --orphan-grace 0 to evict anyway)",
        SkipReason::Held => "another process holds the lock: wait until it has finished",
        SkipReason::Link => "it is a link, or reached through one; prune deletes nothing through links",
        SkipReason::NeededElsewhere => "a link elsewhere points into it",
        SkipReason::Unreadable => "it cannot be read, so it is unknown what it needs",
        SkipReason::Undecidable => "a link or name is not recognised, so the repo is kept to be safe",
        SkipReason::BadRef => "it is not a valid ref, so it is unknown which revision it names",
        SkipReason::Unknown => "it is not part of a Hugging Face cache",
        SkipReason::Unlisted => "nothing records which repos need this shared blob",
        SkipReason::Changed => "it changed while prune was running",
    }
}

/// Formats a line for each repo and reason for keeping something.
fn skip_lines_of(report: &Report) -> String {
    skip_lines(report.skipped.iter().filter(|skip| is_shown(report, skip.reason)), reason)
}

/// Returns whether this reason is mentioned. Items within the grace period are only mentioned if the budget is exceeded, since
/// there are always some.
fn is_shown(report: &Report, reason: SkipReason) -> bool {
    match reason {
        // The line about the budget has them.
        SkipReason::Referenced => report.budget.is_none(),
        SkipReason::Recent => false,
        SkipReason::Young => report.over_budget > 0,
        _ => true,
    }
}

/// Returns whether a deletion was considered, as opposed to something that is never deleted.
fn was_considered(skip: &Skip) -> bool {
    skip.bytes > 0 || skip.revision.is_some()
}

/// Formats a line for each repo and reason, in these words.
pub(super) fn skip_lines<'a>(skips: impl Iterator<Item = &'a Skip>, reason: fn(SkipReason) -> &'static str) -> String {
    let mut groups: BTreeMap<(Option<&RepoName>, SkipReason), Vec<&Skip>> = BTreeMap::new();
    for skip in skips {
        groups.entry((skip.repo.as_ref(), skip.reason)).or_default().push(skip);
    }
    // What the bucket lacks differs from revision to revision.
    let groups = groups.into_iter().flat_map(|((repo, why), skips)| match why {
        SkipReason::NotInBucket => skips.into_iter().map(|skip| (repo, why, vec![skip])).collect(),
        _ => vec![(repo, why, skips)],
    });
    let mut out = String::new();
    for (repo, why, skips) in groups {
        let lacks = skips[0].lacks.as_ref();
        let first = match (skips[0].path.as_ref(), skips[0].revision.as_ref(), repo) {
            (Some(path), ..) => printable(&path.to_string_lossy(), 400),
            (None, Some(commit), Some(repo)) => format!("{repo}@{}", commit.short()),
            (None, _, Some(repo)) => repo.to_string(),
            (None, _, None) => "something".into(),
        };
        let more = if skips.len() > 1 { format!(" and {} more", skips.len() - 1) } else { String::new() };
        let all = skips.iter().map(|skip| skip.bytes);
        let bytes = if covers_same_bytes(why) { all.max().unwrap_or_default() } else { all.sum() };
        let mut facts: Vec<String> = (bytes > 0).then(|| size(bytes)).into_iter().collect();
        for word in ["partial", "damaged"] {
            let statuses = skips.iter().filter_map(|skip| notable(skip.status.as_ref()?));
            match (statuses.filter(|status| *status == word).count(), skips.len()) {
                (0, _) => {}
                (_, 1) => facts.push(word.into()),
                (count, _) => facts.push(format!("{count} {word}")),
            }
        }
        let facts = if facts.is_empty() { String::new() } else { format!(" ({})", facts.join(", ")) };
        let why = lacks.map_or_else(|| reason(why).to_string(), lack);
        let _ = writeln!(out, "kept {first}{more}{facts}: {why}");
    }
    out
}

/// Says what the bucket lacks of a revision.
fn lack(lack: &Lack) -> String {
    let one_of = |count: usize, text: &str| {
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        format!("{}{more}", printable(text, 200))
    };
    match lack {
        Lack::Unknown => "the bucket could not be checked".into(),
        Lack::Manifest => "the bucket has no manifest of it".into(),
        Lack::ValidManifest { why } => format!("its manifest in the bucket is not valid: {}", printable(why, 200)),
        Lack::OwnManifest { of } => format!("its key in the bucket belongs to {of}"),
        Lack::Files { count, path } => {
            format!("its manifest in the bucket lacks {}, or has other content", one_of(*count, path.as_str()))
        }
        Lack::Blobs { count, blob } => {
            format!(
                "the bucket lacks blobs of it, or has them with the wrong size: {}",
                one_of(*count, &blob.to_string())
            )
        }
        Lack::Ref { name, remote: None } => format!("the bucket's refs do not name it: it has no {name} of this repo"),
        Lack::Ref { name, remote: Some(commit) } => {
            format!("{name} is {} in the bucket, so a pull would bring that instead", commit.short())
        }
        Lack::Gated { path } => {
            format!("the repo looks gated ({}), so push and pull leave it out", printable(path, 200))
        }
        Lack::Pointer { path } => format!("push leaves out the LFS/Xet pointer {}", printable(path.as_str(), 200)),
        Lack::Strays { count, path } => {
            format!("push leaves out files that are not the commit's: {}", one_of(*count, path))
        }
        Lack::Damaged { why } => format!("it is damaged here: {}", printable(why, 200)),
        Lack::Changed => "it changed in the bucket while prune was running".into(),
    }
}

impl ui::Report for Report {
    fn result(&self) -> String {
        if self.declined {
            return "Nothing was deleted.\n".into();
        }
        let verb = if self.dry_run { "Would free" } else { "Freed" };
        let mut out = String::new();
        if !self.deleted.rows.is_empty() && !self.was_shown {
            out.push_str(&table(&self.deleted.rows, self.now));
        }
        let of = match self.budget {
            Some(budget) if self.over_budget == 0 => format!("{} of the {} budget", size(self.size), size(budget)),
            _ => size(self.size),
        };
        let of = if self.dry_run { format!("that leaves {of}") } else { format!("{of} used") };
        let is_kept =
            self.over_budget > 0 || self.skipped.iter().any(|skip| is_shown(self, skip.reason) && was_considered(skip));
        let nothing = nothing(is_kept, !self.failures.is_empty(), self.dry_run);
        let counts = counts(&self.deleted, self.require_remote, nothing);
        let total = format!("{} {}: {counts}; {of}.", verb, size(self.freed));
        let total = if self.dry_run { total } else { stamped(&total, Stream::Out) };
        let _ = writeln!(out, "{total}");
        if self.over_budget > 0 {
            let _ = writeln!(out, "{}", budget_excess(self));
        }
        out
    }

    fn quiet_result(&self) -> String {
        // For cron: print nothing but what requires action, which goes to stderr.
        if self.dry_run { self.result() } else { String::new() }
    }

    fn attention(&self) -> Option<String> {
        let is_needed = self.over_budget > 0 && !self.dry_run && !self.declined;
        is_needed.then(|| budget_excess(self).trim_end().replacen("Over", "over", 1))
    }

    fn summary(&self) -> String {
        let mut out: String = self.notes.iter().map(|note| format!("note: {note}\n")).collect();
        out.push_str(&skip_lines_of(self));
        if self.noatime && (!self.deleted.evicted.is_empty() || self.over_budget > 0 || self.older_than.is_some()) {
            let _ = writeln!(
                out,
                "note: this file system keeps no access times (noatime), so the last download or pull counts as the last use"
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
