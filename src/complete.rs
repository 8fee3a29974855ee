//! Completion on the command line, as the shells' scripts (`completions`) ask for it: commands, options and values from
//! the command tree; repos and refs from the cache, and for `pull` from the bucket, as far as that answers at once.
//!
//! Nothing here may disturb a prompt. Whatever fails gives fewer candidates, and no word about it.

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

/// Nobody waits longer than this for a list of names.
const PATIENCE: Duration = Duration::from_millis(1500);
/// More names than these are no help.
const MOST: usize = 1000;

/// Answers a shell that asks for candidates; false when none does and the command is to run.
pub fn answer(words: &[OsString]) -> bool {
    if std::env::var_os(VARIABLE).is_none_or(|shell| shell.is_empty() || shell == "0") {
        return false;
    }
    // A fault here is a prompt without candidates.
    std::panic::set_hook(Box::new(|_| {}));
    let current = std::env::current_dir().ok();
    let complete = || CompleteEnv::with_factory(tree).var(VARIABLE).try_complete(words, current.as_deref());
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(complete));
    true
}

/// The command tree, with what completes its values.
fn tree() -> clap::Command {
    let add =
        |arg: clap::Arg, completer: fn(&OsStr) -> Vec<CompletionCandidate>| arg.add(ArgValueCompleter::new(completer));
    Cli::command()
        .mut_arg("cache-dir", |arg| arg.value_hint(ValueHint::DirPath))
        .mut_subcommand("push", |push| push.mut_arg("repos", |arg| add(arg, cached_repos)))
        .mut_subcommand("pull", |pull| {
            pull.mut_arg("repo", |arg| add(arg, all_repos)).mut_arg("revision", |arg| add(arg, refs))
        })
        .mut_subcommand("pull-all", |pull_all| {
            pull_all.mut_arg("include", |arg| add(arg, patterns)).mut_arg("exclude", |arg| add(arg, patterns))
        })
}

/// What stands on the command line so far, as far as it is understood.
struct Line {
    global: Global,
    repo: Option<RepoQuery>,
}

impl Line {
    fn read() -> Line {
        let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
        let matches = Cli::command().ignore_errors(true).try_get_matches_from(words).ok();
        let matches = matches.as_ref().and_then(|matches| matches.subcommand()).map(|(_, inner)| inner);
        let global = matches.and_then(|matches| Global::from_arg_matches(matches).ok()).unwrap_or_default();
        let repo = matches.and_then(|matches| matches.try_get_one::<RepoSpec>("repo").ok().flatten().cloned());
        Line { global, repo: repo.map(|typed| typed.query) }
    }

    fn config(&self) -> Option<Config> {
        self.global.load().ok()
    }
}

fn cached_repos(typed: &OsStr) -> Vec<CompletionCandidate> {
    let line = Line::read();
    let repos = line.config().map(|config| in_cache(&config.cache.root)).unwrap_or_default();
    candidates(typed, repos.iter().map(ToString::to_string))
}

fn all_repos(typed: &OsStr) -> Vec<CompletionCandidate> {
    candidates(typed, known_repos(typed).into_iter())
}

/// Whole orgs first, since that is what a pattern is for.
fn patterns(typed: &OsStr) -> Vec<CompletionCandidate> {
    let repos = known_repos(OsStr::new(""));
    let orgs: BTreeSet<String> =
        repos.iter().filter_map(|repo| Some(format!("{}/*", repo.split_once('/')?.0))).collect();
    candidates(typed, orgs.into_iter().chain(repos))
}

fn known_repos(typed: &OsStr) -> BTreeSet<String> {
    let Some(config) = Line::read().config() else { return BTreeSet::new() };
    let mut repos: BTreeSet<String> = in_cache(&config.cache.root).iter().map(ToString::to_string).collect();
    repos.extend(at_once(in_bucket(&config, &typed.to_string_lossy())).unwrap_or_default());
    repos
}

fn refs(typed: &OsStr) -> Vec<CompletionCandidate> {
    let line = Line::read();
    let (Some(config), Some(query)) = (line.config(), line.repo) else { return Vec::new() };
    let mut names = BTreeSet::new();
    for repo in in_cache(&config.cache.root).iter().filter(|repo| query.matches(repo)) {
        let refs = Layout::new(&config.cache.root).repo(repo).join("refs");
        collect_refs(&refs, "", 0, &mut names);
    }
    names.extend(at_once(refs_in_bucket(&config, &query)).unwrap_or_default());
    candidates(typed, names.into_iter())
}

fn candidates(typed: &OsStr, values: impl Iterator<Item = String>) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    // A line is a candidate to every shell, and a name that is escaped would not be found.
    let plain = |value: &String| crate::error::printable(value, value.len()) == *value;
    values.filter(|value| value.starts_with(&*typed)).filter(plain).take(MOST).map(CompletionCandidate::new).collect()
}

fn in_cache(root: &Path) -> BTreeSet<RepoName> {
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

/// What comes within the time that somebody waits for a list.
fn at_once<T>(work: impl Future<Output = Option<T>>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().ok()?;
    let done = runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await });
    runtime.shutdown_background();
    done.ok().flatten()
}

/// Repos of the bucket that may begin with what was typed: one page of either kind of refs.
async fn in_bucket(config: &Config, typed: &str) -> Option<BTreeSet<String>> {
    let bucket = Bucket::connect(config, Arc::new(Silent)).await.ok()?;
    let begins = typed.replace('/', "__");
    let (old, new) = (format!("{}{begins}", keys::REFS), new_prefix(typed));
    let (old, new) = tokio::join!(bucket.list_page(&old, None, 1000), bucket.list_page(&new, None, 1000));
    let pages = [old.ok()?.0, new.ok()?.0];
    let found = pages.into_iter().flatten().filter_map(Candidate::of).filter_map(|candidate| match candidate.repo {
        Some(repo) => Some(repo.to_string()),
        None => Some(keys::plain_id(&candidate.encoded)?.as_str().to_string()),
    });
    Some(found.collect())
}

/// What the keys begin with of repos whose names, with or without a type, begin with what was typed.
fn new_prefix(typed: &str) -> String {
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
    fn what_is_completed_is_there() {
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
