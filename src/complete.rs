//! Command-line completion, called by the shell scripts that `completions` writes. Commands, options and fixed values
//! come from the command tree; repos and refs from the cache and, for `pull`, also from the bucket if it answers quickly.
//!
//! Nothing here may disturb a prompt: failures silently lead to fewer candidates.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, ValueHint};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use crate::bucket::client::Bucket;
use crate::bucket::keys;
use crate::bucket::refs::Candidate;
use crate::cache::layout::Layout;
use crate::cli::{Cli, Global};
use crate::commands::completions::VARIABLE;
use crate::config::Config;
use crate::model::ids::{RefName, RepoName, RepoQuery, RepoSpec, RepoType};
use crate::progress::Silent;

/// Time limit for requests to the bucket.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Maximum number of candidates.
const MAX_CANDIDATES: usize = 1000;

/// Prints candidates if a shell asks for them. Returns false if it does not, and the command should run.
pub fn answer(words: &[OsString]) -> bool {
    if std::env::var_os(VARIABLE).is_none_or(|shell| shell.is_empty() || shell == "0") {
        return false;
    }
    // A panic must only cost the candidates.
    std::panic::set_hook(Box::new(|_| {}));
    let current = std::env::current_dir().ok();
    let complete = || CompleteEnv::with_factory(tree).var(VARIABLE).try_complete(words, current.as_deref());
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(complete));
    true
}

/// Returns the command tree with completers for its values.
fn tree() -> clap::Command {
    let add =
        |arg: clap::Arg, completer: fn(&OsStr) -> Vec<CompletionCandidate>| arg.add(ArgValueCompleter::new(completer));
    Cli::command()
        .mut_arg("cache-dir", |arg| arg.value_hint(ValueHint::DirPath))
        .mut_subcommand("push", |push| {
            push.mut_arg("repos", |arg| add(arg, cached_repos)).mut_arg("revision", |arg| add(arg, cached_refs))
        })
        .mut_subcommand("rm", |rm| {
            rm.mut_arg("repos", |arg| add(arg, cached_repos)).mut_arg("revision", |arg| add(arg, cached_refs))
        })
        .mut_subcommand("verify", |verify| verify.mut_arg("repos", |arg| add(arg, all_repos)))
        .mut_subcommand("pull", |pull| {
            pull.mut_arg("repos", |arg| add(arg, all_repos)).mut_arg("revision", |arg| add(arg, refs))
        })
        .mut_subcommand("pull-all", |pull_all| {
            pull_all.mut_arg("include", |arg| add(arg, patterns)).mut_arg("exclude", |arg| add(arg, patterns))
        })
        .mut_subcommand("remote", |remote| {
            remote.mut_subcommand("rm", |rm| {
                rm.mut_arg("repos", |arg| add(arg, stored_repos)).mut_arg("revision", |arg| add(arg, stored_refs))
            })
        })
}

/// The relevant parts of the incomplete command line.
struct Line {
    global: Global,
    repo: Option<RepoQuery>,
}

impl Line {
    fn read() -> Line {
        let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
        let matches = Cli::command().ignore_errors(true).try_get_matches_from(words).ok();
        let mut matches = matches.as_ref().and_then(|matches| matches.subcommand()).map(|(_, inner)| inner);
        while let Some((_, inner)) = matches.and_then(|matches| matches.subcommand()) {
            matches = Some(inner);
        }
        let global = matches.and_then(|matches| Global::from_arg_matches(matches).ok()).unwrap_or_default();
        let repo =
            matches.and_then(|matches| matches.try_get_many::<RepoSpec>("repos").ok().flatten()?.next().cloned());
        Line { global, repo: repo.map(|typed| typed.query) }
    }

    fn config(&self) -> Option<Config> {
        self.global.load().ok()
    }
}

fn cached_repos(typed: &OsStr) -> Vec<CompletionCandidate> {
    let line = Line::read();
    let repos = line.config().map(|config| repos_in_cache(&config.cache.root)).unwrap_or_default();
    candidates(typed, repos.iter().map(ToString::to_string))
}

fn all_repos(typed: &OsStr) -> Vec<CompletionCandidate> {
    candidates(typed, known_repos(typed).into_iter())
}

/// Suggests repos that the bucket has.
fn stored_repos(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(config) = Line::read().config() else { return Vec::new() };
    let repos = within_timeout(repos_in_bucket(&config, &typed.to_string_lossy())).unwrap_or_default();
    candidates(typed, repos.into_iter())
}

/// Suggests refs that the bucket has.
fn stored_refs(typed: &OsStr) -> Vec<CompletionCandidate> {
    let line = Line::read();
    let (Some(config), Some(query)) = (line.config(), line.repo) else { return Vec::new() };
    candidates(typed, within_timeout(refs_in_bucket(&config, &query)).unwrap_or_default().into_iter())
}

/// Suggests whole organisations first, since they are the main use of a pattern.
fn patterns(typed: &OsStr) -> Vec<CompletionCandidate> {
    let repos = known_repos(OsStr::new(""));
    let orgs: BTreeSet<String> =
        repos.iter().filter_map(|repo| Some(format!("{}/*", repo.split_once('/')?.0))).collect();
    candidates(typed, orgs.into_iter().chain(repos))
}

fn known_repos(typed: &OsStr) -> BTreeSet<String> {
    let Some(config) = Line::read().config() else { return BTreeSet::new() };
    let mut repos: BTreeSet<String> = repos_in_cache(&config.cache.root).iter().map(ToString::to_string).collect();
    repos.extend(within_timeout(repos_in_bucket(&config, &typed.to_string_lossy())).unwrap_or_default());
    repos
}

fn refs(typed: &OsStr) -> Vec<CompletionCandidate> {
    let line = Line::read();
    let (Some(config), Some(query)) = (line.config(), line.repo) else { return Vec::new() };
    let mut names = refs_in_cache(&config, &query);
    names.extend(within_timeout(refs_in_bucket(&config, &query)).unwrap_or_default());
    candidates(typed, names.into_iter())
}

/// Suggests the refs of this cache.
fn cached_refs(typed: &OsStr) -> Vec<CompletionCandidate> {
    let line = Line::read();
    let (Some(config), Some(query)) = (line.config(), line.repo) else { return Vec::new() };
    candidates(typed, refs_in_cache(&config, &query).into_iter())
}

fn refs_in_cache(config: &Config, query: &RepoQuery) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for repo in repos_in_cache(&config.cache.root).iter().filter(|repo| query.matches(repo)) {
        let refs = Layout::new(&config.cache.root).repo(repo).join("refs");
        collect_refs(&refs, "", 0, &mut names);
    }
    names
}

fn candidates(typed: &OsStr, values: impl Iterator<Item = String>) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    // Shells expect one candidate a line, and an escaped name would not be found.
    let plain = |value: &String| crate::error::printable(value, value.len()) == *value;
    values
        .filter(|value| value.starts_with(&*typed))
        .filter(plain)
        .take(MAX_CANDIDATES)
        .map(CompletionCandidate::new)
        .collect()
}

fn repos_in_cache(root: &Path) -> BTreeSet<RepoName> {
    let entries = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| RepoName::from_folder(entry.file_name().to_str()?)).collect()
}

fn collect_refs(folder: &Path, above: &str, depth: usize, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let (Ok(name), Ok(kind)) = (entry.file_name().into_string(), entry.file_type()) else { continue };
        let name = format!("{above}{name}");
        if kind.is_dir() && depth < 8 {
            collect_refs(&entry.path(), &format!("{name}/"), depth + 1, names);
        } else if kind.is_file() && name.parse::<RefName>().is_ok() {
            names.insert(name);
        }
    }
}

/// Runs `work` with a time limit.
fn within_timeout<T>(work: impl Future<Output = Option<T>>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().ok()?;
    let result = runtime.block_on(async { tokio::time::timeout(TIMEOUT, work).await });
    runtime.shutdown_background();
    result.ok().flatten()
}

/// Lists repos in the bucket that start with `typed`, from one page of refs in each of the two key formats.
async fn repos_in_bucket(config: &Config, typed: &str) -> Option<BTreeSet<String>> {
    let bucket = Bucket::connect(config, Arc::new(Silent)).await.ok()?;
    let encoded = typed.replace('/', "__");
    let (old, new) = (format!("{}{encoded}", keys::REFS), new_refs_prefix(typed));
    let (old, new) = tokio::join!(bucket.list_page(&old, None, 1000), bucket.list_page(&new, None, 1000));
    let pages = [old.ok()?.0, new.ok()?.0];
    let found = pages.into_iter().flatten().filter_map(Candidate::of).filter_map(|candidate| match candidate.repo {
        Some(repo) => Some(repo.to_string()),
        None => Some(keys::plain_id(&candidate.encoded)?.as_str().to_string()),
    });
    Some(found.collect())
}

/// Returns the key prefix of new-style refs of repos that start with `typed`, which may include a type.
fn new_refs_prefix(typed: &str) -> String {
    match typed.split_once(':') {
        Some((kind, id)) if kind.parse::<RepoType>().is_ok() => {
            format!("{}{kind}s--{}", keys::REFS_V2, id.replace('/', "--"))
        }
        _ => keys::REFS_V2.to_string(),
    }
}

async fn refs_in_bucket(config: &Config, query: &RepoQuery) -> Option<BTreeSet<String>> {
    let bucket = Bucket::connect(config, Arc::new(Silent)).await.ok()?;
    let kinds = RepoType::ALL.into_iter().filter(|kind| query.kind.is_none_or(|wanted| wanted == *kind));
    let new = kinds.map(|kind| keys::new_refs_of(&RepoName::new(kind, query.id.clone())));
    let prefixes: Vec<String> = new.chain([keys::old_refs_of(&query.id)]).collect();
    let pages = prefixes.iter().map(|prefix| bucket.list_page(prefix, None, 1000));
    let pages = futures_util::future::join_all(pages).await;
    let objects = pages.into_iter().filter_map(Result::ok).flat_map(|(objects, _)| objects);
    Some(objects.filter_map(Candidate::of).map(|candidate| candidate.name.as_str().to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_completed_argument_exists() {
        let plain = Cli::command();
        for command in tree().get_subcommands() {
            let of = |tree: &clap::Command| {
                let command = tree.find_subcommand(command.get_name()).unwrap();
                command.get_arguments().map(|arg| arg.get_id().to_string()).collect::<BTreeSet<_>>()
            };
            assert_eq!(of(&plain), of(&tree()));
        }
    }
}
