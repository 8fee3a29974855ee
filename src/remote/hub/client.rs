//! Requests to the Hub. Each is tried again while its failure is transient; what is sent where needs no more than the
//! token and the endpoint that huggingface_hub would use.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream::BoxStream;
use hf_hub::{HFClient, HFError, RepoTypeDataset, RepoTypeKernel, RepoTypeModel, RepoTypeSpace, split_id};
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde_json::Value;

use super::listing;
use crate::config::{self, Secret};
use crate::error::{Error, Kind, Result, printable};
use crate::ids::{Commit, RefName, RepoName, RepoPath, RepoQuery, RepoType};
use crate::progress::waiting;
use crate::remote::client::back_off;
use crate::remote::error::{Cause, Failure};
use crate::remote::lookup::Found;
use crate::remote::told::Sent;

/// A connection must stand within this time.
const CONNECT: Duration = Duration::from_secs(10);
/// An answer, and each next piece of it, must come within this time.
const STALL: Duration = Duration::from_secs(60);
/// Tries of one request.
const TRIES: u32 = 5;

/// The Hub.
#[derive(Debug, Clone)]
pub struct Hub {
    files: HFClient,
    http: reqwest::Client,
    endpoint: String,
    token: Option<Secret>,
}

/// The bytes of a file, or of a range of it.
pub struct Body(BoxStream<'static, Result<Bytes, HFError>>);

/// A failed request, and the Hub's word for it.
struct Refusal {
    failure: Failure,
    code: String,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Refusal { failure, code: String::new() }
    }
}

impl Hub {
    /// Prepares the client; nothing is sent.
    ///
    /// # Errors
    /// [`Kind::Usage`] when the Hub is switched off, or its endpoint is no URL.
    pub fn connect(settings: &config::Hub) -> Result<Hub> {
        if settings.offline {
            return Err(Error::usage("the Hub is disabled")
                .because("HF_HUB_OFFLINE is set")
                .hint("unset it, or leave --fallback out"));
        }
        let failed = |why: String| {
            Error::usage(format!("cannot use the Hub at {}", settings.endpoint)).because(why).hint("check HF_ENDPOINT")
        };
        let agent = format!("hf-cache-sync/{}", env!("CARGO_PKG_VERSION"));
        let http = reqwest::Client::builder().user_agent(&agent).connect_timeout(CONNECT).read_timeout(STALL);
        let http = http.build().map_err(|e| failed(deepest(&e)))?;
        let token = settings.find_token();
        let mut files = HFClient::builder()
            .endpoint(&settings.endpoint)
            .client(http.clone())
            .user_agent(agent)
            .retry_max_attempts(TRIES as usize - 1)
            .cache_enabled(false);
        match &token {
            Some(token) => files = files.token(token.expose()),
            None => settings.check_token_file()?,
        }
        let files = files.build().map_err(|e| failed(printable(&e.to_string(), 200)))?;
        Ok(Hub { files, http, endpoint: settings.endpoint.clone(), token })
    }

    /// Finds a revision (`main` when none) of a repo, and lists it. Without a type: the model of that id, else the
    /// only other type that has it.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Credentials`] for repos that need a token or access, [`Kind::Usage`] when several
    /// types fit, [`Kind::Integrity`] when the listing is not valid, [`Kind::Unavailable`].
    pub async fn find(&self, query: &RepoQuery, revision: Option<&str>) -> Result<Found> {
        let name: RefName = match revision {
            None => RefName::main(),
            Some(text) => text
                .parse()
                .map_err(|e| Error::usage(format!("invalid revision for {query}")).because(format!("{e}")))?,
        };
        let (repo, commit) = self.choose(query, &name).await?;
        let doing = format!("cannot list {repo} on the Hub");
        let entries = self.tree(&repo, &commit).await.map_err(|refusal| self.explain(refusal.failure, &doing))?;
        let manifest = listing::manifest(&repo, &commit, &entries).map_err(|why| {
            Error::integrity(format!("the Hub's listing of {repo}@{} cannot be used", commit.short())).because(why)
        })?;
        // A commit, whole or shortened, is no ref.
        let reference = Some(name).filter(|name| !commit.as_str().starts_with(name.as_str()));
        Ok(Found { manifest, reference, pinned: false, notes: Vec::new() })
    }

    async fn choose(&self, query: &RepoQuery, name: &RefName) -> Result<(RepoName, Commit)> {
        let repo = |kind| RepoName::new(kind, query.id.clone());
        let doing = format!("cannot find '{name}' of {query} on the Hub");
        let first = query.kind.unwrap_or(RepoType::Model);
        let refusal = match self.commit(&repo(first), name).await {
            Ok(commit) => return Ok((repo(first), commit)),
            Err(refusal) => refusal,
        };
        if query.kind.is_some() || refusal.failure.cause != Cause::NoSuchKey || refusal.code == "RevisionNotFound" {
            return Err(self.explain(refusal.failure, &doing));
        }
        let others = RepoType::ALL.into_iter().filter(|kind| *kind != first);
        let tried = others.map(|kind| async move {
            match self.commit(&repo(kind), name).await {
                Ok(commit) => Ok(Some((repo(kind), commit))),
                Err(refusal) if refusal.failure.cause == Cause::NoSuchKey => Ok(None),
                Err(refusal) => Err(refusal),
            }
        });
        let found = try_join_all(tried).await.map_err(|refusal| self.explain(refusal.failure, &doing))?;
        let mut found: Vec<(RepoName, Commit)> = found.into_iter().flatten().collect();
        match found.len() {
            0 => Err(self.explain(refusal.failure, &doing)),
            1 => Ok(found.remove(0)),
            _ => {
                let kinds: Vec<&str> = found.iter().map(|(repo, _)| repo.kind.word()).collect();
                Err(Error::usage(format!("{query} is ambiguous"))
                    .because(format!("the Hub has a {} of that id", kinds.join(" and a ")))
                    .hint(format!("say which one with --repo-type {}", kinds.join(" or --repo-type "))))
            }
        }
    }

    /// The commit that a ref, or a shortened commit, names.
    async fn commit(&self, repo: &RepoName, name: &RefName) -> Result<Commit, Refusal> {
        let url = format!("{}/revision/{}", self.api(repo), escaped(name.as_str()));
        let info: Value = self.json(&url).await?.0;
        let sha = info["sha"].as_str().unwrap_or_default();
        sha.parse().map_err(|why| Failure::new(Cause::Other, format!("the Hub's commit {why}")).into())
    }

    async fn tree(&self, repo: &RepoName, commit: &Commit) -> Result<Vec<Value>, Refusal> {
        let mut next = Some(format!("{}/tree/{commit}?recursive=true", self.api(repo)));
        let mut entries = Vec::new();
        while let Some(url) = next {
            let (page, headers) = self.json(&url).await?;
            let Value::Array(page) = page else {
                return Err(Failure::new(Cause::Other, "the Hub's listing is not a list").into());
            };
            entries.extend(page);
            next = next_page(&headers);
            // The token goes to the Hub and nowhere else; and a listing ends.
            if let Some(next) = next.as_ref().filter(|next| **next == url || !next.starts_with(&self.endpoint)) {
                let detail = format!("the Hub's listing goes on at {}", printable(next, 200));
                return Err(Failure::new(Cause::Other, detail).into());
            }
        }
        Ok(entries)
    }

    fn api(&self, repo: &RepoName) -> String {
        format!("{}/api/{}s/{}", self.endpoint, repo.kind, repo.id)
    }

    async fn json(&self, url: &str) -> Result<(Value, HeaderMap), Refusal> {
        let mut tried = 0;
        loop {
            let refusal = match self.json_once(url).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusal,
            };
            tried += 1;
            if tried >= TRIES || !refusal.failure.cause.is_transient() {
                return Err(refusal);
            }
            tokio::time::sleep(back_off(tried, refusal.failure.retry_after)).await;
        }
    }

    async fn json_once(&self, url: &str) -> Result<(Value, HeaderMap), Refusal> {
        let mut request = self.http.get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let (sent, _waiting) = (Sent::now("GET", url), waiting("an answer of the Hub"));
        let answer = request.send().await;
        if let Some(sent) = sent {
            let answer = answer.as_ref().ok();
            sent.answered(
                answer.map(|answer| answer.status().as_u16()),
                answer.and_then(|answer| answer.content_length()),
            );
        }
        let answer = answer.map_err(|e| from_http(&e))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let header = |name: &str| headers.get(name).and_then(|text| text.to_str().ok()).unwrap_or_default();
        if !status.is_success() {
            let failure = from_status(status, header("x-error-code"), header("x-error-message"));
            let wait = header("retry-after").trim().parse().ok().map(|s: u64| Duration::from_secs(s.min(60)));
            return Err(Refusal {
                failure: Failure { retry_after: wait, ..failure },
                code: header("x-error-code").to_string(),
            });
        }
        let body = answer.bytes().await.map_err(|e| from_http(&e))?;
        let value = serde_json::from_slice(&body);
        Ok((value.map_err(|e| Failure::new(Cause::Other, format!("the Hub's answer is not JSON: {e}")))?, headers))
    }

    /// Opens a file for reading: all of it, or the bytes from `range.0` to `range.1` (exclusive).
    ///
    /// # Errors
    /// [`Cause::NoSuchKey`] when it is not there, and the rest.
    pub async fn open(
        &self,
        repo: &RepoName,
        commit: &Commit,
        path: &RepoPath,
        range: Option<(u64, u64)>,
    ) -> Result<Body, Failure> {
        // By the type's own handle: `RepoTypeAny` of hf-hub 1.0 looks for the file in the model of that id.
        match repo.kind {
            RepoType::Model => self.open_in(RepoTypeModel, repo, commit, path, range).await,
            RepoType::Dataset => self.open_in(RepoTypeDataset, repo, commit, path, range).await,
            RepoType::Space => self.open_in(RepoTypeSpace, repo, commit, path, range).await,
            RepoType::Kernel => self.open_in(RepoTypeKernel, repo, commit, path, range).await,
        }
    }

    async fn open_in<T: hf_hub::RepoType>(
        &self,
        kind: T,
        repo: &RepoName,
        commit: &Commit,
        path: &RepoPath,
        range: Option<(u64, u64)>,
    ) -> Result<Body, Failure> {
        let (owner, name) = split_id(repo.id.as_str());
        let repository = self.files.repository(kind, owner, name);
        let request = repository.download_file_stream().filename(path.as_str()).revision(commit.as_str());
        let opened = request.maybe_range(range.map(|(from, to)| from..to)).send().await;
        let bytes = range.map_or_else(String::new, |(from, to)| format!(", bytes {from} to {to}"));
        let ended = if opened.is_ok() { "opened" } else { "not opened" };
        tracing::debug!("{ended} {}/{path}@{commit} on the Hub{bytes}", repo.id);
        opened.map(|(_, stream)| Body(stream.boxed())).map_err(|e| from_hub(&e))
    }

    /// The error for the user. `doing` names what failed and on what.
    pub fn explain(&self, failure: Failure, doing: &str) -> Error {
        let (kind, why, hint) = match failure.cause {
            Cause::NoSuchKey => (Kind::NotFound, failure.detail, None),
            Cause::BadCredentials => (
                Kind::Credentials,
                format!("the Hub does not accept the token ({})", failure.detail),
                Some("check HF_TOKEN, or log in again with `hf auth login`"),
            ),
            Cause::Denied => (
                Kind::Credentials,
                format!("the Hub does not give access ({})", failure.detail),
                Some("ask for access on the repo's page, and set HF_TOKEN or log in with `hf auth login`"),
            ),
            Cause::Unreachable => (
                Kind::Unavailable,
                format!("cannot connect to {} ({})", self.endpoint, failure.detail),
                Some("check HF_ENDPOINT, the network, and HTTPS_PROXY"),
            ),
            cause if cause.is_transient() => (
                Kind::Unavailable,
                format!("{} is overloaded or temporarily unavailable ({})", self.endpoint, failure.detail),
                Some("run it again: finished work is kept"),
            ),
            _ => (Kind::Failed, failure.detail, None),
        };
        let error = Error::new(kind, doing).because(why);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl Body {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Cause::Broken`] when the connection breaks or stalls.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(STALL, self.0.next()).await {
            Err(_) => Err(Failure::new(Cause::Broken, "the download stalled")),
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(Some(Err(error))) => Err(match from_hub(&error) {
                failure if failure.cause.is_transient() => failure,
                _ => Failure::new(Cause::Broken, "the download ended early"),
            }),
        }
    }
}

/// The Hub hides private repos: whoever may not see one is told that there is none, or to log in.
fn from_status(status: StatusCode, code: &str, message: &str) -> Failure {
    let missing = "there is no such repo, or it is private";
    let said = |or: &str| if message.is_empty() { or.to_string() } else { printable(message, 200) };
    let (cause, detail) = match (status.as_u16(), code) {
        (_, "RevisionNotFound") => (Cause::NoSuchKey, "the repo has no such revision".into()),
        (_, "EntryNotFound") => (Cause::NoSuchKey, "the revision has no such file".into()),
        (_, "GatedRepo") => (Cause::Denied, said("the repo is gated")),
        (_, "RepoNotFound") => (Cause::NoSuchKey, missing.into()),
        (401, _) if message == "Invalid credentials in Authorization header" => (Cause::BadCredentials, said("")),
        (401 | 404, _) => (Cause::NoSuchKey, missing.into()),
        (403, _) => (Cause::Denied, said("HTTP status 403")),
        (408 | 429 | 500 | 502 | 503 | 504, _) => (Cause::Busy, said(&format!("HTTP status {status}"))),
        _ => (Cause::Other, said(&format!("HTTP status {status}"))),
    };
    Failure::new(cause, detail)
}

fn from_http(error: &reqwest::Error) -> Failure {
    let cause = if error.is_connect() { Cause::Unreachable } else { Cause::Broken };
    Failure::new(cause, deepest(error))
}

fn from_hub(error: &HFError) -> Failure {
    let context = match error {
        HFError::Request { source, .. } => return from_http(source),
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::Conflict { context }
        | HFError::RateLimited { context, .. } => Some(context),
        HFError::RepoNotFound { context, .. }
        | HFError::RevisionNotFound { context, .. }
        | HFError::EntryNotFound { context, .. } => context.as_ref(),
        HFError::Xet { .. } => return Failure::new(Cause::Broken, printable(&error.to_string(), 200)),
        _ => None,
    };
    match context {
        Some(context) => {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            from_status(context.status, &text(&context.error_code), &text(&context.server_message))
        }
        None => Failure::new(Cause::Other, printable(&error.to_string(), 200)),
    }
}

/// The innermost reason of a chain of errors.
fn deepest(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    let end = text.find(" (os error").unwrap_or(text.len());
    printable(&text[..end], 200)
}

/// A revision as one segment of a URL.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// `<URL>; rel="next"` of the header `link`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get("link")?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_codes_become_causes() {
        for (status, code, message, cause) in [
            (404, "RepoNotFound", "", Cause::NoSuchKey),
            (401, "RepoNotFound", "", Cause::NoSuchKey),
            (401, "", "Invalid username or password.", Cause::NoSuchKey),
            (401, "", "Invalid credentials in Authorization header", Cause::BadCredentials),
            (401, "GatedRepo", "", Cause::Denied),
            (403, "GatedRepo", "", Cause::Denied),
            (404, "RevisionNotFound", "", Cause::NoSuchKey),
            (429, "", "", Cause::Busy),
            (503, "", "", Cause::Busy),
            (400, "", "", Cause::Other),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(from_status(status, code, message).cause, cause, "{status} {code} {message}");
        }
    }

    #[test]
    fn revisions_are_one_segment() {
        assert_eq!(escaped("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escaped("v1.0_x-y~é"), "v1.0_x-y~%C3%A9");
    }
}
