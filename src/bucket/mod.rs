//! The bucket.
//!
//! - Keys: [`keys`] builds and parses them; [`refs`] decides which repos a ref key may refer to and which of a ref's keys
//!   takes precedence.
//! - Requests: [`client`] has the operations on a bucket; `request` describes a request; `wire` sends every one and adapts
//!   to the store; `endpoint` builds URLs, `credentials` finds keys, `connection` opens connections, `body` has the bodies of
//!   uploads, `answer` parses responses, and `error` classifies and explains failures.
//! - State: [`state`] is a snapshot of the bucket's listing and of the content read so far; [`read`] does the reading.
//! - Queries: [`lookup`] finds one revision, [`main_revisions`] the `main` of every repo, [`catalog`] all repos with their
//!   revisions and refs.
//! - Deletion: [`census`] knows what every manifest needs; through [`notices`], pushes and deletions on all machines know
//!   of each other.

mod answer;
mod body;
pub mod catalog;
pub mod census;
pub mod client;
mod connection;
mod credentials;
mod endpoint;
mod error;
pub mod keys;
pub mod lookup;
pub mod main_revisions;
pub mod notices;
pub mod read;
pub mod refs;
mod request;
pub mod state;
mod wire;

/// Parses a response in every way that there is, and checks what comes of it.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_any_answer(body: &[u8]) {
    if let Ok(page) = answer::page(body) {
        assert!(page.objects.iter().all(|object| !object.key.is_empty()));
        assert_eq!(answer::page(body).as_ref(), Ok(&page), "the same again");
    }
    if let Ok((parts, _)) = answer::parts(body) {
        assert!(parts.iter().all(|part| !part.etag.is_empty()));
    }
    let _ = answer::part_times(body);
    let _ = answer::uploads(body);
    let _ = answer::deletions(body);
    let _ = answer::is_versioned(body);
    let _ = answer::Refusal::parse(body);
    let _ = answer::kind_if_not_xml(&String::from_utf8_lossy(body));
}
