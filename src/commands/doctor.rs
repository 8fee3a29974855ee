//! `doctor`: checks the setup. Reads first, then writes; a read-only key is a valid mode of use, not a failure.

use bytes::Bytes;
use serde::Serialize;

use crate::bucket::client::Bucket;
use crate::bucket::keys;
use crate::cache::inventory::{Inventory, Problem, ProblemKind};
use crate::cache::layout::Layout;
use crate::cache::lock::{self, Lock};
use crate::cache::scan;
use crate::cache::snapshot::LinkKind;
use crate::cache::{repair, space};
use crate::config::settings::Template;
use crate::config::{Credentials, Source};
use crate::engine::Session;
use crate::error::{Cause, Error, Failure, Kind, Result, shown};
use crate::model::ids::{RefName, RepoName};
use crate::progress::Event;
use crate::task::blocking;

/// Clock difference to warn about, in seconds. Stores reject signed requests beyond 15 minutes; warn long before.
const CLOCK_WARNING: u64 = 120;
/// Free disk space to warn about, in bytes.
const LOW_SPACE: u64 = 1 << 30;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync doctor
  hf-cache-sync doctor --require-write   for a machine that has to push
  hf-cache-sync doctor --fix             repair refs with stray white space
  hf-cache-sync --bucket my-hf-cache --endpoint http://minio.lan:9000 doctor";

/// Check configuration, credentials, bucket and cache
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Treat a read-only key as a failure
    #[arg(long)]
    pub require_write: bool,

    /// Repair what can be repaired safely: refs with white space around their commit
    #[arg(long)]
    pub fix: bool,
}

/// The report of `doctor`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The checks, in order.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// The result.
    pub status: Status,
    /// Details of the result.
    pub detail: String,
    /// What to do about it, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The kind of failure, for the exit code.
    #[serde(skip)]
    pub kind: Kind,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Passed.
    Ok,
    /// Works, but there is something to know.
    Note,
    /// Does not work.
    Failed,
    /// Not checked, because an earlier check failed.
    Skipped,
}

impl Report {
    /// Returns the kind of the first failure, which determines the exit code, since later checks depend on earlier ones.
    pub fn failed(&self) -> Option<Kind> {
        self.checks.iter().find(|check| check.status == Status::Failed).map(|check| check.kind)
    }
}

impl Check {
    fn new(name: &'static str, status: Status, detail: impl Into<String>) -> Self {
        Check { name, status, detail: detail.into(), hint: None, kind: Kind::Failed }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn from_error(name: &'static str, error: Error) -> Self {
        let kind = error.kind();
        Check { name, status: Status::Failed, detail: error.why.unwrap_or(error.what), hint: error.hint, kind }
    }
}

/// Runs every check.
pub async fn execute(session: &Session, args: &Args) -> Report {
    session.progress.event(Event::Step("checking the setup"));
    let storage = &session.config.storage;
    let mut checks = vec![
        match &session.config.file {
            Some(path) => Check::new("Configuration", Status::Ok, path.display().to_string()),
            None => Check::new("Configuration", Status::Ok, "no file, only environment and options"),
        },
        match storage.bucket() {
            Ok(bucket) => note_placeholder(session, "bucket", Check::new("Bucket", Status::Ok, bucket)),
            Err(error) => Check { detail: "not set".into(), ..Check::from_error("Bucket", error) },
        },
    ];
    let connected = match storage.bucket() {
        Ok(_) => Some(session.bucket().await),
        Err(_) => None,
    };
    let place = connected.as_ref().and_then(|bucket| Some(bucket.as_ref().ok()?.place()));
    let endpoint = match (&storage.endpoint, place) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(place)) if !place.url.is_empty() => format!("{} (from the AWS profile)", place.url),
        (None, _) => "not set: AWS S3".to_string(),
    };
    checks.insert(1, note_placeholder(session, "endpoint", Check::new("Endpoint", Status::Ok, endpoint)));
    checks.push(region(session, connected.as_ref().and_then(|bucket| bucket.as_ref().ok())));
    checks.push(credentials(session, connected.as_ref()));
    checks.extend(options(session));
    let (layout, source) = (session.layout(), session.config.cache.source.clone());
    let (fix, no_links) = (args.fix, session.config.hub.no_symlinks);
    checks.extend(blocking(move || cache(&layout, &source, fix, no_links)).await);
    match connected {
        Some(Ok(bucket)) => checks.extend(store(&bucket, args.require_write).await),
        _ => checks.push(Check::new("Bucket reachable", Status::Skipped, "needs a bucket and credentials")),
    }
    Report { checks }
}

/// Adds a note if a value in the file is still the placeholder that `init` wrote.
fn note_placeholder(session: &Session, key: &str, check: Check) -> Check {
    let found = session.config.values.iter().find(|given| given.setting.name() == format!("storage.{key}"));
    match found.map(|given| (given.setting.template, &given.value, &given.source)) {
        Some((Template::Set(placeholder), Some(value), Source::File { path, .. })) if value == placeholder => {
            let hint = format!("this is the placeholder that `init` wrote: set storage.{key} in {}", shown(path));
            Check { status: Status::Note, ..check }.hint(hint)
        }
        _ => check,
    }
}

fn region(session: &Session, bucket: Option<&Bucket>) -> Check {
    match (&session.config.storage.region, bucket) {
        (Some(region), _) => Check::new("Region", Status::Ok, region),
        (None, Some(bucket)) => {
            let detail = format!("not set, using {}", bucket.place().region);
            Check::new("Region", Status::Note, detail)
                .hint("set storage.region or B2_REGION if the bucket is in another region")
        }
        (None, None) => Check::new("Region", Status::Note, "not set"),
    }
}

fn credentials(session: &Session, bucket: Option<&Result<Bucket>>) -> Check {
    let found = &session.config.storage.credentials;
    let source = format!("source={}", found.source());
    match (bucket, found) {
        (Some(Err(error)), _) if matches!(error.cause, Cause::BadCredentials | Cause::Usage) => Check {
            detail: format!("{source}: {}", error.why.as_ref().unwrap_or(&error.what)),
            ..Check::from_error("Credentials", error.clone())
        },
        (_, Credentials::Incomplete(why)) => {
            Check { kind: Kind::Usage, ..Check::new("Credentials", Status::Failed, why) }
        }
        _ => match session.config.storage.suspicion() {
            Some(suspicion) => Check::new("Credentials", Status::Note, source)
                .hint(format!("{suspicion}: if requests fail, this is probably why")),
            None => Check::new("Credentials", Status::Ok, source),
        },
    }
}

/// Lists the store's settings that have a value but no check of their own.
fn options(session: &Session) -> Option<Check> {
    const CHECKED: [&str; 5] = ["endpoint", "bucket", "region", "access_key", "secret_key"];
    let values = session.config.values.iter().filter(|given| given.setting.section == "storage");
    let values = values.filter(|given| !CHECKED.contains(&given.setting.key));
    let texts = values.filter_map(|given| {
        Some(format!("{}={} ({})", given.setting.key, given.value.as_ref()?.to_string_lossy(), given.source))
    });
    let texts: Vec<String> = texts.collect();
    (!texts.is_empty()).then(|| Check::new("Store options", Status::Ok, texts.join(", ")))
}

fn cache(layout: &Layout, source: &Source, fix: bool, no_links: bool) -> Vec<Check> {
    let root = layout.root();
    let mut checks = Vec::new();
    let exists = match scan::scan(root) {
        Err(error) => {
            checks.push(Check::from_error("HF cache dir", error));
            return checks;
        }
        Ok(_) if !root.exists() => {
            let check = Check::new(
                "HF cache dir",
                Status::Note,
                format!("{} does not exist yet (from {source})", root.display()),
            );
            checks.push(check.hint(
                "pull or huggingface_hub will create it; to use another folder, set HF_HUB_CACHE or cache.hf_cache_dir",
            ));
            false
        }
        Ok(inventory) => {
            // Untidy refs have a check of their own.
            let is_counted = |problem: &&Problem| problem.kind.is_failure() && problem.kind != ProblemKind::UntidyRef;
            let problems = inventory.problems().filter(is_counted).count();
            let detail = format!("{} (repos: {})", root.display(), inventory.repos.len());
            checks.push(match problems {
                0 => Check::new("HF cache dir", Status::Ok, detail),
                count => Check::new("HF cache dir", Status::Note, format!("{detail}, problems: {count}"))
                    .hint("`hf-cache-sync status` lists the problems"),
            });
            let shared = if inventory.shared_store { "used by huggingface_hub" } else { "not used" };
            checks.push(Check::new("Shared blob store", Status::Ok, shared));
            checks.extend(refs(&inventory, fix));
            true
        }
    };
    checks.extend(space::available(root).map(disk_space));
    if exists {
        checks.push(links(layout, no_links));
    }
    checks
}

/// Checks for refs that huggingface_hub cannot use: those with stray white space, which can be repaired, and those without
/// a snapshot. The latter are left alone, since huggingface_hub also writes them when it merely looks up a revision.
fn refs(inventory: &Inventory, fix: bool) -> Vec<Check> {
    const NAME: &str = "Refs";
    let repos = inventory.repos.iter();
    let all: Vec<_> = repos.flat_map(|repo| repo.untidy_refs.iter().map(move |name| (&repo.name, name))).collect();
    let title = |(repo, name): &(&RepoName, &RefName)| format!("{repo} refs/{name}");
    let mut checks = Vec::new();
    match (all.is_empty(), fix) {
        (true, false) => {}
        (true, true) => checks.push(Check::new(NAME, Status::Ok, "nothing to repair")),
        (false, false) => {
            let detail = format!("white space around the commit in {}", abbreviate(all.iter().map(title)));
            let hint = "huggingface_hub cannot use these offline: `hf-cache-sync doctor --fix` repairs them";
            checks.push(Check::new(NAME, Status::Note, detail).hint(hint));
        }
        (false, true) => {
            let mut repaired = Vec::new();
            let mut failed = Vec::new();
            for reference in &all {
                match repair::repair_ref(&inventory.layout, reference.0, reference.1) {
                    Ok(true) => repaired.push(title(reference)),
                    Ok(false) => {}
                    Err(error) => failed.push(error),
                }
            }
            if !repaired.is_empty() {
                checks.push(Check::new(NAME, Status::Ok, format!("repaired {}", repaired.join(", "))));
            }
            checks.extend(failed.into_iter().map(|error| {
                let detail = format!("{}: {}", error.what, error.why.clone().unwrap_or_default());
                Check { detail, ..Check::from_error(NAME, error) }
            }));
        }
    }
    let repos = inventory.repos.iter();
    let lone = repos.flat_map(|repo| {
        let lone = repo.refs.iter().filter(|(_, commit)| !repo.revisions.contains_key(*commit));
        lone.map(move |(name, _)| title(&(&repo.name, name)))
    });
    let lone: Vec<String> = lone.collect();
    if !lone.is_empty() {
        let detail = format!("no snapshot for the commit named by {}", abbreviate(lone.into_iter()));
        let hint = "this is harmless: huggingface_hub writes such refs too; a download or a pull adds the snapshot";
        checks.push(Check::new("Lone refs", Status::Note, detail).hint(hint));
    }
    checks
}

/// Joins the first few names.
fn abbreviate(names: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 5;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.take(SHOWN).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// Checks the free space, in bytes.
fn disk_space(free: u64) -> Check {
    let detail = format!("{} free", bytesize::ByteSize(free).display().iec());
    match free < LOW_SPACE {
        false => Check::new("Disk space", Status::Ok, detail),
        true => Check::new("Disk space", Status::Note, detail).hint("`hf-cache-sync prune` frees space"),
    }
}

fn links(layout: &Layout, no_links: bool) -> Check {
    match LinkKind::probe(layout, no_links) {
        Ok(LinkKind::Symlink) => Check::new("Links", Status::Ok, "symbolic links work"),
        Ok(LinkKind::Hardlink) => Check::new("Links", Status::Note, "no symbolic links: hard links are used"),
        Ok(LinkKind::Real) if no_links => {
            Check::new("Links", Status::Note, "HF_HUB_DISABLE_SYMLINKS is set: snapshots get real files")
        }
        Ok(LinkKind::Real) => Check::new("Links", Status::Note, "no links: snapshots get real files"),
        Err(error) => {
            // A push works from a read-only cache.
            let lock = lock::try_tool_lock(layout, lock::Mode::Shared);
            let detail = match lock {
                Ok(lock) if lock.as_ref().is_none_or(Lock::is_real) => "could not be tested",
                _ => "this user cannot write to the cache: push works, but pull, prune and rm do not",
            };
            Check { hint: error.why, ..Check::new("Links", Status::Note, detail) }
        }
    }
}

async fn store(bucket: &Bucket, require_write: bool) -> Vec<Check> {
    let mut checks = Vec::new();
    match bucket.head_bucket().await {
        Ok(ahead) => {
            checks.push(Check::new("Bucket reachable", Status::Ok, bucket.name()));
            checks.extend(ahead.map(clock));
        }
        Err(failure) => {
            checks.push(Check::from_error("Bucket reachable", bucket.explain(failure, "cannot reach the bucket")));
            return checks;
        }
    }
    checks.push(match bucket.list_page("", None, 1000).await {
        Ok(_) => Check::new("Read permission", Status::Ok, "listing works"),
        Err(failure) => {
            let needed = "the key needs to list this bucket (B2: listFiles, S3: s3:ListBucket)";
            failed_request("Read permission", bucket, failure, "cannot list", needed)
        }
    });
    checks.push(write(bucket, require_write).await);
    checks
}

/// Checks the clock. `ahead` is how far the store's clock is ahead of this machine's, in seconds.
fn clock(ahead: i64) -> Check {
    let detail = format!("{} s off the store's clock", ahead.unsigned_abs());
    match ahead.unsigned_abs() < CLOCK_WARNING {
        true => Check::new("Clock", Status::Ok, detail),
        false => Check::new("Clock", Status::Note, detail)
            .hint("set the clock: stores reject requests more than 15 minutes off"),
    }
}

/// Creates the check for a failed request. The hint is what the key needs, if a missing permission is the reason.
fn failed_request(name: &'static str, bucket: &Bucket, failure: Failure, what: &str, needed: &str) -> Check {
    let denied = failure.cause == Cause::Denied;
    let check = Check::from_error(name, bucket.explain(failure, what));
    if denied { check.hint(needed) } else { check }
}

async fn write(bucket: &Bucket, required: bool) -> Check {
    const NAME: &str = "Write permission";
    let key = keys::new_probe();
    let content = Bytes::from_static(b"hf-cache-sync doctor probe");
    if let Err(failure) = bucket.put_small(&key, content.clone()).await {
        let denied = failure.cause == Cause::Denied;
        if denied && !required {
            return Check::new(NAME, Status::Note, "read-only: pull works, push does not");
        }
        let needed = "the key needs to write to this bucket (B2: writeFiles, S3: s3:PutObject)";
        return failed_request(NAME, bucket, failure, "cannot write", needed);
    }
    let read_back = bucket.get_small(&key, 1024).await;
    let deleted = bucket.delete(&key).await;
    match (read_back, deleted) {
        (Ok(Some(small)), Ok(())) if small.bytes == content => {
            Check::new(NAME, Status::Ok, "wrote, read back and deleted a probe")
        }
        (Ok(Some(small)), Err(_)) if small.bytes == content => {
            Check::new(NAME, Status::Note, format!("works, but the probe {key} could not be deleted"))
                .hint("delete that key manually")
        }
        (Err(failure), _) => Check::from_error(NAME, bucket.explain(failure, "cannot read back")),
        (Ok(_), _) => Check::new(NAME, Status::Failed, "the probe did not read back as written"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(check: &Check) -> (Status, &str, bool) {
        (check.status, check.detail.as_str(), check.hint.is_some())
    }

    #[test]
    fn a_large_clock_difference_is_noted_in_either_direction() {
        assert_eq!(outline(&clock(0)), (Status::Ok, "0 s off the store's clock", false));
        for sign in [1, -1] {
            assert_eq!(outline(&clock(119 * sign)), (Status::Ok, "119 s off the store's clock", false));
            assert_eq!(outline(&clock(120 * sign)), (Status::Note, "120 s off the store's clock", true));
            assert_eq!(outline(&clock(86_400 * sign)), (Status::Note, "86400 s off the store's clock", true));
        }
        assert!(clock(-900).hint.unwrap().contains("15 minutes"));
        // Not a failure: the store itself decides how much is too much.
        assert_eq!(Report { checks: vec![clock(i64::MIN), clock(i64::MAX)] }.failed(), None);
    }

    #[test]
    fn low_disk_space_is_noted() {
        assert_eq!(outline(&disk_space(1 << 30)), (Status::Ok, "1.0 GiB free", false));
        assert_eq!(outline(&disk_space(5 << 40)), (Status::Ok, "5.0 TiB free", false));
        assert_eq!(outline(&disk_space((1 << 30) - 1)).0, Status::Note);
        assert_eq!(outline(&disk_space(0)), (Status::Note, "0 B free", true));
        assert!(disk_space(3 << 20).hint.unwrap().contains("prune"));
        assert_eq!(Report { checks: vec![disk_space(0)] }.failed(), None);
    }
}
