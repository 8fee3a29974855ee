//! Queries to the Hub: the commit of a revision, the listing of a commit, and the bytes of its files.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use reqwest::Url;
use serde::Deserialize;

use super::Body;
use super::address::{LinkTarget, escape_segment, next_page};
use super::http::{Http, Refusal};
use super::listing::{self, Entry};
use crate::config;
use crate::error::{Cause, Error, Failure, Result, printable};
use crate::model::file_list::MAX_FILES;
use crate::model::found::Found;
use crate::model::ids::{Commit, RefName, RepoName, RepoPath, RepoQuery, RepoType};
use crate::net::{self, Network};
use crate::progress::Progress;

/// Most pages of a listing that are read. The Hub puts 1,000 entries on a page.
const MAX_PAGES: usize = 10_000;
/// Most consecutive pages without a new entry.
const MAX_IDLE_PAGES: usize = 16;

/// A client of the Hub.
#[derive(Debug, Clone)]
pub struct Hub {
    http: Http,
}

/// A revision as the Hub knows it.
struct Revision {
    repo: RepoName,
    commit: Commit,
    /// The files that the Hub lists along with the commit. For a large repo, the list is incomplete.
    files: Vec<Box<str>>,
}

/// The Hub's information about a revision.
#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    sha: String,
    siblings: Option<Vec<Sibling>>,
}

/// A file of a revision.
#[derive(Deserialize)]
struct Sibling {
    rfilename: Box<str>,
}

impl Hub {
    /// Prepares the client without sending anything. `wait` limits how long it waits for the Hub's rate limit.
    ///
    /// # Errors
    /// [`Cause::Usage`] if the Hub is disabled, or if its endpoint, the token or the certificates cannot be used.
    pub fn connect(
        settings: &config::Hub,
        network: &Network,
        progress: Arc<dyn Progress>,
        wait: Duration,
    ) -> Result<Hub> {
        if let Some(variable) = settings.offline {
            return Err(Error::usage("the Hub is disabled")
                .because(format!("{variable} is set"))
                .hint("unset it, or omit --fallback"));
        }
        Ok(Hub { http: Http::new(settings, network, progress, wait)? })
    }

    /// Finds and lists a revision of a repo (`main` by default). An id without a type refers to the model, or else to
    /// the only other type that has this id.
    ///
    /// # Errors
    /// [`Cause::NoSuchKey`], [`Cause::Gated`] and [`Cause::Denied`] for repos that need a token or access, [`Cause::Usage`] if several
    /// types have the id, [`Cause::Invalid`] if the listing is not valid, and all causes of failed requests.
    pub async fn find(&self, query: &RepoQuery, revision: Option<&str>) -> Result<Found> {
        let name: RefName = match revision {
            None => RefName::main(),
            Some(text) => text
                .parse()
                .map_err(|e| Error::usage(format!("invalid revision for {query}")).because(format!("{e}")))?,
        };
        let Revision { repo, commit, files } = self.choose(query, &name).await?;
        let doing = format!("cannot list {repo} on the Hub");
        let entries =
            self.tree(&repo, &commit, &files).await.map_err(|refusal| self.explain(refusal.failure, &doing))?;
        let manifest = listing::manifest(repo.clone(), commit.clone(), entries).map_err(|why| {
            Error::invalid(format!("the Hub's listing of {repo}@{} cannot be used", commit.short())).because(why)
        })?;
        // A full or abbreviated commit hash is not a ref.
        let reference = Some(name).filter(|name| !commit.as_str().starts_with(name.as_str()));
        Ok(Found { manifest, reference, pinned: false, modified: None, notes: Vec::new() })
    }

    async fn choose(&self, query: &RepoQuery, name: &RefName) -> Result<Revision> {
        let repo = |kind| RepoName::new(kind, query.id.clone());
        let doing = format!("cannot find '{name}' of {query} on the Hub");
        let first = query.kind.unwrap_or(RepoType::Model);
        let refusal = match self.revision(repo(first), name).await {
            Ok(revision) => return Ok(revision),
            Err(refusal) => refusal,
        };
        if query.kind.is_some() || refusal.failure.cause != Cause::NoSuchKey || refusal.code == "RevisionNotFound" {
            let is_revision = refusal.code == "RevisionNotFound";
            let mut error = self.explain(refusal.failure, &doing);
            if is_revision {
                error.cause = Cause::NoSuchRevision;
            }
            return Err(error);
        }
        let others = RepoType::ALL.into_iter().filter(|kind| *kind != first);
        let tried = others.map(|kind| async move {
            match self.revision(repo(kind), name).await {
                Ok(revision) => Ok(Some(revision)),
                Err(refusal) if refusal.failure.cause == Cause::NoSuchKey => Ok(None),
                Err(refusal) => Err(refusal),
            }
        });
        let found = try_join_all(tried).await.map_err(|refusal| self.explain(refusal.failure, &doing))?;
        let mut found: Vec<Revision> = found.into_iter().flatten().collect();
        match found.len() {
            0 => Err(self.explain(refusal.failure, &doing)),
            1 => Ok(found.remove(0)),
            _ => {
                let kinds: Vec<&str> = found.iter().map(|revision| revision.repo.kind.word()).collect();
                Err(Error::usage(format!("{query} is ambiguous"))
                    .because(format!("the Hub has a {} with that id", kinds.join(" and a ")))
                    .hint(format!("say which one with --repo-type {}", kinds.join(" or --repo-type "))))
            }
        }
    }

    /// Looks up the commit of a ref or of an abbreviated commit hash.
    async fn revision(&self, repo: RepoName, name: &RefName) -> Result<Revision, Refusal> {
        let url = self.url(&format!("{}/revision/{}", api(&repo), escape_segment(name.as_str())))?;
        let info: Info = self.http.json(&url).await?.0;
        let commit = info
            .sha
            .parse()
            .map_err(|why| Failure::new(Cause::Garbled, format!("the commit in its response {why}")))?;
        let files = info.siblings.unwrap_or_default().into_iter().map(|file| file.rfilename).collect();
        Ok(Revision { repo, commit, files })
    }

    /// Lists all entries of a commit, which must include these `files`. The listing is complete, or an error.
    async fn tree(&self, repo: &RepoName, commit: &Commit, files: &[Box<str>]) -> Result<Vec<Entry>, Refusal> {
        let broken = |why: String| Refusal::from(Failure::new(Cause::Garbled, why));
        let mut url = self.url(&format!("{}/tree/{commit}?recursive=true", api(repo)))?;
        let (mut entries, mut paths, mut asked) = (Vec::new(), HashSet::new(), HashSet::new());
        let mut idle = 0;
        loop {
            if !asked.insert(url.clone()) {
                return Err(broken("its listing repeats a page".into()));
            }
            let (page, headers, from) = self.http.json::<Vec<Entry>>(&url).await?;
            let before = paths.len();
            if before + page.len() > MAX_FILES {
                let why = format!("its listing has more than {MAX_FILES} entries");
                return Err(Failure::new(Cause::TooLarge, why).into());
            }
            for entry in page {
                if !paths.insert(entry.path.clone()) {
                    return Err(broken(format!("its listing has '{}' twice", printable(&entry.path, 200))));
                }
                entries.push(entry);
            }
            let Some(next) = next_page(&headers) else { break };
            idle = if paths.len() > before { 0 } else { idle + 1 };
            if idle > MAX_IDLE_PAGES || asked.len() >= MAX_PAGES {
                return Err(broken("its listing does not end".into()));
            }
            url = match self.http.endpoint.follow(&from, &next) {
                Ok(LinkTarget::Home(next)) => next,
                Ok(LinkTarget::External(next)) => {
                    let why = format!("its listing continues at another address, {}", printable(next.as_str(), 200));
                    return Err(broken(why));
                }
                Err(why) => return Err(broken(format!("its listing has no valid next page: {why}"))),
            };
        }
        match files.iter().find(|file| !paths.contains(&***file)) {
            Some(missing) => {
                Err(broken(format!("its listing lacks '{}', so it is truncated", printable(missing, 200))))
            }
            None => Ok(entries),
        }
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        self.http.endpoint.url(path).map_err(|why| Failure::new(Cause::Other, why))
    }

    /// Opens a file for reading: all of it, or the bytes from `range.0` to `range.1` (exclusive).
    ///
    /// # Errors
    /// [`Cause::NoSuchKey`] if it does not exist, and all other causes of failed requests.
    pub async fn open(
        &self,
        repo: &RepoName,
        commit: &Commit,
        path: &RepoPath,
        range: Option<(u64, u64)>,
    ) -> Result<Body, Failure> {
        let kind = match repo.kind {
            RepoType::Model => String::new(),
            kind => format!("/{kind}s"),
        };
        let path: Vec<String> = path.segments().map(escape_segment).collect();
        let url = self.url(&format!("{kind}/{}/resolve/{commit}/{}", repo.id, path.join("/")))?;
        self.http.open(&url, range).await.map_err(|refusal| refusal.failure)
    }

    /// Converts a failure to an error for the user. `doing` describes the failed operation.
    pub fn explain(&self, failure: Failure, doing: &str) -> Error {
        let place = self.http.endpoint.shown();
        let (why, hint) = match failure.cause {
            Cause::NoSuchKey => (failure.detail, None),
            Cause::BadCredentials => (
                format!("the Hub does not accept the token ({})", failure.detail),
                Some("check HF_TOKEN, or log in again with `hf auth login`"),
            ),
            Cause::Denied | Cause::Gated => (
                format!("the Hub does not give access ({})", failure.detail),
                Some("ask for access on the repo's page, and set HF_TOKEN or log in with `hf auth login`"),
            ),
            Cause::Certificate => {
                let hint = net::tls_hint(&failure.detail);
                (format!("no secure connection to {place}: {}", failure.detail), hint)
            }
            Cause::Garbled => (
                format!("{place} does not respond like the Hub: {}", failure.detail),
                Some("check HF_ENDPOINT, and what server it points to"),
            ),
            Cause::RateLimited => (
                format!("{place} accepts no more requests for now: {}", failure.detail),
                Some("run it again later, or with a larger --hub-wait; with a token (HF_TOKEN) the Hub allows more"),
            ),
            Cause::Unreachable => (
                format!("cannot connect to {place} ({})", failure.detail),
                Some("check HF_ENDPOINT, the network, and HTTPS_PROXY"),
            ),
            cause if cause.is_transient() => (
                format!("{place} is overloaded or temporarily unavailable ({})", failure.detail),
                Some("run it again: finished work is kept"),
            ),
            _ => (failure.detail, None),
        };
        let error = Error::new(failure.cause, doing).because(why);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

fn api(repo: &RepoName) -> String {
    format!("/api/{}s/{}", repo.kind, repo.id)
}
