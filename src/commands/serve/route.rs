//! Parses the URL of a request. Pure.
//!
//! The paths are those of the Hub. An id has one part or two, and a revision comes as one part (`refs%2Fpr%2F1`) or, if it
//! starts with `refs`, as three.

use percent_encoding::percent_decode_str;

use crate::error::printable;
use crate::model::ids::{RepoId, RepoPath, RepoQuery, RepoType};

/// Maximum length of path and query, in bytes.
pub const MAX_TARGET: usize = 16 << 10;

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// A file of a revision: `/{id}/resolve/{revision}/{path}`.
    File {
        /// The repo.
        query: RepoQuery,
        /// A branch, tag, PR ref, commit or abbreviated commit.
        revision: String,
        /// The file.
        path: RepoPath,
    },
    /// A file as git stores it, which is a pointer for one in LFS: `/{id}/raw/{revision}/{path}`.
    Raw {
        /// The repo.
        query: RepoQuery,
        /// The revision.
        revision: String,
        /// The file.
        path: RepoPath,
    },
    /// A revision: `/api/models/{id}` and `/api/models/{id}/revision/{revision}`.
    Info {
        /// The repo.
        query: RepoQuery,
        /// The revision.
        revision: String,
        /// Whether to include the size and hash of each file.
        with_blobs: bool,
    },
    /// A listing: `/api/models/{id}/tree/{revision}/{folder}`.
    Tree {
        /// The repo.
        query: RepoQuery,
        /// The revision.
        revision: String,
        /// The folder; `None` for the root.
        folder: Option<RepoPath>,
        /// Whether to descend into subfolders.
        is_recursive: bool,
        /// Whether to include the last commit.
        is_expanded: bool,
    },
    /// The entries of certain paths: `/api/models/{id}/paths-info/{revision}`. The paths are in the body.
    PathsInfo {
        /// The repo.
        query: RepoQuery,
        /// The revision.
        revision: String,
    },
    /// The branches and tags of a repo: `/api/models/{id}/refs`.
    Refs {
        /// The repo.
        query: RepoQuery,
        /// Whether to list pull requests.
        with_pull_requests: bool,
    },
    /// Whether a user may read a repo: `/api/models/{id}/auth-check`.
    AuthCheck {
        /// The repo.
        query: RepoQuery,
    },
    /// The user: `/api/whoami-v2`.
    WhoAmI,
    /// Whether the server is up.
    Health,
    /// Counters for Prometheus.
    Metrics,
    /// The status page.
    Page,
    /// The content of the status page, as JSON.
    Status,
    /// Any other endpoint of the Hub.
    NotServed,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is malformed: HTTP status 400.
    Malformed(String),
    /// No repo can have such an id.
    NoSuchRepo(String),
}

/// Endpoints that follow the id of a repo, and whether they need further parts.
const REPO_ENDPOINTS: [(&str, bool); 13] = [
    ("auth-check", false),
    ("commits", true),
    ("compare", true),
    ("discussions", false),
    ("jwt", false),
    ("parquet", false),
    ("paths-info", true),
    ("refs", false),
    ("revision", true),
    ("safetensors-metadata", false),
    ("tree", true),
    ("xet-read-token", true),
    ("xet-write-token", true),
];

/// Parses the path and the query of a request.
///
/// # Errors
/// If the request is malformed.
pub fn parse(path: &str, query: &str) -> Result<Route, Refusal> {
    if path.len() + query.len() > MAX_TARGET {
        return Err(Refusal::Malformed("the URL is too long".into()));
    }
    let parts = path.strip_prefix('/').unwrap_or(path).split('/').map(decode).collect::<Result<Vec<String>, _>>()?;
    let words: Vec<&str> = parts.iter().map(String::as_str).collect();
    match words.as_slice() {
        [""] => Ok(Route::Page),
        ["healthz"] => Ok(Route::Health),
        ["metrics"] => Ok(Route::Metrics),
        ["status.json"] => Ok(Route::Status),
        ["api", "whoami-v2"] => Ok(Route::WhoAmI),
        ["api", kind, id @ ..] => match (type_of(kind), id) {
            (Some(kind), [_, ..]) => parse_api(kind, id, &Options::parse(query)?),
            _ => Ok(Route::NotServed),
        },
        [first, rest @ ..] => match type_of(first) {
            Some(kind) if verb_at(rest).is_some() => parse_file(kind, rest),
            _ if verb_at(&words).is_some() => parse_file(RepoType::Model, &words),
            _ => Ok(Route::NotServed),
        },
        [] => Ok(Route::NotServed),
    }
}

/// The supported query parameters, in any order.
#[derive(Debug, Default)]
struct Options {
    with_blobs: bool,
    is_recursive: bool,
    is_expanded: bool,
    with_pull_requests: bool,
}

impl Options {
    fn parse(query: &str) -> Result<Options, Refusal> {
        let mut options = Options::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let is_set = matches!(decode(value)?.to_ascii_lowercase().as_str(), "true" | "1");
            match decode(name)?.as_str() {
                "blobs" => options.with_blobs = is_set,
                "recursive" => options.is_recursive = is_set,
                "expand" => options.is_expanded = is_set,
                "include_prs" => options.with_pull_requests = is_set,
                _ => {}
            }
        }
        Ok(options)
    }
}

fn parse_api(kind: RepoType, words: &[&str], options: &Options) -> Result<Route, Refusal> {
    let is_endpoint = |word: &str, rest: &[&str]| {
        let has_more = rest.iter().any(|part| !part.is_empty());
        REPO_ENDPOINTS.iter().any(|(name, needs_more)| *name == word && (has_more || !needs_more))
    };
    let (id, rest) = match words {
        [name] => (vec![*name], &words[1..]),
        [name, word, rest @ ..] if is_endpoint(word, rest) => (vec![*name], &words[1..]),
        [org, name, ..] => (vec![*org, *name], &words[2..]),
        [] => return Ok(Route::NotServed),
    };
    let query = query(kind, &id)?;
    let (revision, rest) = match rest {
        [] => return Ok(Route::Info { query, revision: "main".into(), with_blobs: options.with_blobs }),
        ["refs"] => return Ok(Route::Refs { query, with_pull_requests: options.with_pull_requests }),
        ["auth-check"] => return Ok(Route::AuthCheck { query }),
        ["tree", revision @ ..] if !revision.is_empty() => split_revision(revision)?,
        // Nothing follows the revision, so unescaped slashes belong to it.
        ["revision" | "paths-info", revision @ ..] if !revision.is_empty() => {
            (split_revision(&[revision.join("/").trim_end_matches('/')])?.0, &[][..])
        }
        _ => return Ok(Route::NotServed),
    };
    // A trailing slash adds an empty part.
    let rest: Vec<&str> = rest.iter().copied().filter(|part| !part.is_empty()).collect();
    match (words[id.len()], rest.as_slice()) {
        ("revision", []) => Ok(Route::Info { query, revision, with_blobs: options.with_blobs }),
        ("paths-info", []) => Ok(Route::PathsInfo { query, revision }),
        ("tree", folder) => Ok(Route::Tree {
            query,
            revision,
            folder: if folder.is_empty() { None } else { Some(repo_path(folder)?) },
            is_recursive: options.is_recursive,
            is_expanded: options.is_expanded,
        }),
        _ => Ok(Route::NotServed),
    }
}

fn parse_file(kind: RepoType, words: &[&str]) -> Result<Route, Refusal> {
    let Some(at) = verb_at(words) else { return Ok(Route::NotServed) };
    let query = query(kind, &words[..at])?;
    let (revision, path) = split_revision(&words[at + 1..])?;
    let path = repo_path(path)?;
    Ok(match words[at] {
        "raw" => Route::Raw { query, revision, path },
        _ => Route::File { query, revision, path },
    })
}

/// Returns the position of `resolve` or `raw` in the path of a file. A repo may itself be named `raw`.
fn verb_at(words: &[&str]) -> Option<usize> {
    let is_at = |at: usize, verb: &str| words.len() > at + 2 && words[at] == verb;
    let places = [(1, "resolve"), (2, "resolve"), (2, "raw"), (1, "raw")];
    places.into_iter().find(|(at, verb)| is_at(*at, verb)).map(|(at, _)| at)
}

fn type_of(word: &str) -> Option<RepoType> {
    RepoType::ALL.into_iter().find(|kind| word.strip_suffix('s') == Some(kind.word()))
}

fn query(kind: RepoType, words: &[&str]) -> Result<RepoQuery, Refusal> {
    let id = words.join("/").parse::<RepoId>().map_err(|why| Refusal::NoSuchRepo(why.to_string()))?;
    Ok(RepoQuery { kind: Some(kind), id })
}

/// Splits off the revision. huggingface.js requests `HEAD` for the default branch.
fn split_revision<'a, 'b>(words: &'a [&'b str]) -> Result<(String, &'a [&'b str]), Refusal> {
    let (revision, rest) = match words {
        ["refs", _, _, ..] => (words[..3].join("/"), &words[3..]),
        [revision, rest @ ..] => (revision.to_string(), rest),
        [] => return Err(Refusal::Malformed("the revision is missing".into())),
    };
    match revision.as_str() {
        "" => Err(Refusal::Malformed("the revision is empty".into())),
        "HEAD" => Ok(("main".into(), rest)),
        _ => Ok((revision, rest)),
    }
}

/// Returns the ref whose name includes the start of a path, and the rest of the path. Some clients do not escape the slashes
/// in a ref's name, so that all but its first part looks like a path. The Hub resolves this by its list of refs, too.
pub fn longer_revision<'a>(
    refs: impl IntoIterator<Item = &'a str>,
    revision: &str,
    path: &RepoPath,
) -> Option<(&'a str, Option<RepoPath>)> {
    let rest_after = |name: &str| {
        let name = name.strip_prefix(revision)?.strip_prefix('/')?;
        match path.as_str().strip_prefix(name)? {
            "" => Some(None),
            rest => Some(Some(rest.strip_prefix('/')?.parse().ok()?)),
        }
    };
    let matching = refs.into_iter().filter_map(|name| Some((name, rest_after(name)?)));
    matching.max_by_key(|(name, _)| name.len())
}

fn repo_path(words: &[&str]) -> Result<RepoPath, Refusal> {
    words.join("/").parse().map_err(|why: crate::model::ids::Invalid| Refusal::Malformed(why.to_string()))
}

fn decode(text: &str) -> Result<String, Refusal> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(Refusal::Malformed(format!("'{}' is not UTF-8", printable(text, 100)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query_of(text: &str) -> RepoQuery {
        text.parse().unwrap()
    }

    fn file(query: &str, revision: &str, path: &str) -> Result<Route, Refusal> {
        Ok(Route::File { query: query_of(query), revision: revision.into(), path: path.parse().unwrap() })
    }

    #[test]
    fn parses_files_for_every_form_of_id_and_revision() {
        let cases = [
            ("/gpt2/resolve/main/config.json", "model:gpt2", "main", "config.json"),
            ("/org/name/resolve/HEAD/a/b.txt", "model:org/name", "main", "a/b.txt"),
            ("/models/org/name/resolve/v1.0/x", "model:org/name", "v1.0", "x"),
            (
                "/datasets/squad/resolve/refs/convert/parquet/p/0.parquet",
                "dataset:squad",
                "refs/convert/parquet",
                "p/0.parquet",
            ),
            ("/datasets/org/name/resolve/refs%2Fpr%2F1/x", "dataset:org/name", "refs/pr/1", "x"),
            ("/spaces/org/name/resolve/main/app.py", "space:org/name", "main", "app.py"),
            ("/kernels/org/name/resolve/main/build/a%20b.so", "kernel:org/name", "main", "build/a b.so"),
            ("/org/name/resolve/main/a%2Fb", "model:org/name", "main", "a/b"),
        ];
        for (path, query, revision, name) in cases {
            assert_eq!(parse(path, ""), file(query, revision, name), "{path}");
        }
        assert_eq!(parse("/org/raw/resolve/main/x", ""), file("model:org/raw", "main", "x"));
        for (path, query) in [
            ("/gpt2/raw/main/raw/x", "model:gpt2"),
            ("/org/raw/raw/main/raw/x", "model:org/raw"),
            ("/datasets/org/name/raw/main/raw/x", "dataset:org/name"),
        ] {
            let raw = Route::Raw { query: query_of(query), revision: "main".into(), path: "raw/x".parse().unwrap() };
            assert_eq!(parse(path, ""), Ok(raw), "{path}");
        }
    }

    #[test]
    fn parses_api_endpoints() {
        let query = query_of("model:org/name");
        let tree = |folder: Option<&str>, is_recursive, is_expanded| {
            Ok(Route::Tree {
                query: query.clone(),
                revision: "main".into(),
                folder: folder.map(|folder| folder.parse().unwrap()),
                is_recursive,
                is_expanded,
            })
        };
        let info = |query: &str, revision: &str, with_blobs| {
            Ok(Route::Info { query: query_of(query), revision: revision.into(), with_blobs })
        };
        assert_eq!(parse("/api/models/org/name", "blobs=true"), info("model:org/name", "main", true));
        assert_eq!(parse("/api/models/gpt2", "expand=sha&blobs=True"), info("model:gpt2", "main", true));
        assert_eq!(parse("/api/datasets/gpt2/revision/refs%2Fpr%2F3", ""), info("dataset:gpt2", "refs/pr/3", false));
        assert_eq!(parse("/api/models/org/tree", ""), info("model:org/tree", "main", false));
        assert_eq!(parse("/api/models/org/name/tree/main", "recursive=True&expand=false"), tree(None, true, false));
        assert_eq!(parse("/api/models/org/name/tree/main/", "expand=true"), tree(None, false, true));
        assert_eq!(parse("/api/models/org/name/tree/main/a/b", "recursive=1"), tree(Some("a/b"), true, false));
        assert_eq!(
            parse("/api/models/org/name/paths-info/main", ""),
            Ok(Route::PathsInfo { query: query.clone(), revision: "main".into() })
        );
        assert_eq!(
            parse("/api/models/org/name/refs", "include_prs=1"),
            Ok(Route::Refs { query: query.clone(), with_pull_requests: true })
        );
        assert_eq!(parse("/api/models/org/name/auth-check", ""), Ok(Route::AuthCheck { query }));
        assert_eq!(parse("/api/whoami-v2", ""), Ok(Route::WhoAmI));
        for path in
            ["/api/models", "/api/models/org/name/discussions", "/api/models/org/name/commits/main", "/x", "/a/b/c"]
        {
            assert_eq!(parse(path, ""), Ok(Route::NotServed), "{path}");
        }
    }

    #[test]
    fn slashes_in_a_ref_need_no_escaping() {
        let longer = |path: &str| {
            longer_revision(["main", "a/b", "a/b/c", "ab/c", "b/c"], "a", &path.parse().unwrap())
                .map(|(name, rest)| (name, rest.map(|rest| rest.to_string())))
        };
        assert_eq!(longer("b"), Some(("a/b", None)));
        assert_eq!(longer("b/d/x"), Some(("a/b", Some("d/x".into()))));
        assert_eq!(longer("b/c/x"), Some(("a/b/c", Some("x".into()))));
        assert_eq!(longer("bc/x"), None);
        assert_eq!(longer("c"), None);
        for (path, revision) in [("revision/a/b", "a/b"), ("revision/a/", "a"), ("revision/HEAD", "main")] {
            let info = Route::Info { query: query_of("model:org/name"), revision: revision.into(), with_blobs: false };
            assert_eq!(parse(&format!("/api/models/org/name/{path}"), ""), Ok(info), "{path}");
        }
    }

    #[test]
    fn refuses_invalid_paths_and_ids() {
        for path in ["..", "a/../b", "%2e%2e/x", "a%2F..%2Fb", "a//b", "a%5Cb", "%00", "%ff", "a%0ab"] {
            let parsed = parse(&format!("/org/name/resolve/main/{path}"), "");
            assert!(matches!(parsed, Err(Refusal::Malformed(_))), "{path}: {parsed:?}");
        }
        for id in ["a--b", "-x", "a..b/c", "%2e%2e/x", "a/b.git"] {
            let parsed = parse(&format!("/{id}/resolve/main/x"), "");
            assert!(matches!(parsed, Err(Refusal::NoSuchRepo(_))), "{id}: {parsed:?}");
        }
        assert!(matches!(
            parse(&format!("/org/name/resolve/main/{}", "a".repeat(20_000)), ""),
            Err(Refusal::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn no_request_escapes_the_repo(path in "(/|[a-z]{1,3}|\\.\\.|%2[eEfF]|%5c|resolve|raw|api|models|main|refs|%00|é){0,14}", query in "[a-z=&%0-9]{0,20}") {
            if let Ok(Route::File { path, .. } | Route::Raw { path, .. }) = parse(&path, &query) {
                prop_assert!(path.segments().all(|part| !part.is_empty() && part != ".." && !part.contains('\\')));
            }
        }

        #[test]
        fn parses_any_valid_file(id in "[a-z0-9]{1,8}/[a-zA-Z0-9_.]{0,6}x", revision in "[a-z][a-z0-9/]{0,8}[a-z]", path in "[^/\\\\\\p{C}]{1,10}(/[^/\\\\\\p{C}]{1,10}){0,3}") {
            prop_assume!(id.parse::<RepoId>().is_ok() && path.parse::<RepoPath>().is_ok() && !id.contains("/resolve"));
            // The first part of other routes is no organisation on the Hub.
            let owner = id.split('/').next().unwrap_or_default();
            prop_assume!(owner != "api" && type_of(owner).is_none());
            let escape = |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
            let url = format!("/{id}/resolve/{}/{}", escape(&revision), path.split('/').map(escape).collect::<Vec<_>>().join("/"));
            prop_assert_eq!(parse(&url, ""), file(&format!("model:{id}"), &revision, &path));
        }
    }
}
