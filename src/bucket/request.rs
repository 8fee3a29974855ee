//! Requests to the store, before they get the headers that all have in common and a signature.

use std::time::Duration;

use bytes::Bytes;

use super::body::MakeBody;

/// The operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    List,
    Read,
    Head,
    HeadBucket,
    Put,
    /// A conditional write, which a store may not support.
    PutIf,
    Delete,
    StartParts,
    PutPart,
    ListParts,
    FinishParts,
    AbortParts,
    /// Deletes many objects in one request.
    DeleteMany,
    ListUploads,
    Versioning,
}

impl Op {
    pub(super) fn method(self) -> &'static str {
        match self {
            Op::List | Op::Read | Op::ListParts | Op::ListUploads | Op::Versioning => "GET",
            Op::Head | Op::HeadBucket => "HEAD",
            Op::Put | Op::PutIf | Op::PutPart => "PUT",
            Op::StartParts | Op::FinishParts | Op::DeleteMany => "POST",
            Op::Delete | Op::AbortParts => "DELETE",
        }
    }

    /// Whether it may change something in the bucket.
    pub(super) fn changes_bucket(self) -> bool {
        !matches!(self.method(), "GET" | "HEAD")
    }

    /// Whether it creates an object, or starts to.
    pub(super) fn creates_object(self) -> bool {
        matches!(self, Op::Put | Op::PutIf | Op::StartParts)
    }

    /// Whether it uploads content.
    pub(super) fn uploads_content(self) -> bool {
        matches!(self, Op::Put | Op::PutIf | Op::PutPart)
    }

    /// Whether it takes up space in the store.
    pub(super) fn uses_space(self) -> bool {
        matches!(self, Op::Put | Op::PutIf | Op::PutPart | Op::StartParts)
    }

    /// Whether it follows redirects to any host.
    pub(super) fn follows_redirects(self) -> bool {
        matches!(self, Op::Read | Op::Head)
    }

    /// Whether it concerns a multipart upload in progress.
    pub(super) fn is_for_multipart_upload(self) -> bool {
        matches!(self, Op::PutPart | Op::ListParts | Op::FinishParts | Op::AbortParts)
    }

    /// Whether it concerns the bucket rather than one key.
    pub(super) fn is_for_bucket(self) -> bool {
        matches!(self, Op::List | Op::HeadBucket | Op::DeleteMany | Op::ListUploads | Op::Versioning)
    }
}

/// A request.
pub(super) struct Request<'a> {
    pub(super) op: Op,
    /// Empty for a request about the bucket.
    pub(super) key: &'a str,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) payload: Payload<'a>,
    /// Response timeout, unless the body is streamed; `None` for the usual one.
    pub(super) timeout: Option<Duration>,
}

impl<'a> Request<'a> {
    pub(super) fn new(op: Op, key: &'a str) -> Self {
        Request { op, key, query: Vec::new(), headers: Vec::new(), payload: Payload::Empty, timeout: None }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn payload(mut self, payload: Payload<'a>) -> Self {
        self.payload = payload;
        self
    }
}

/// The body of a request.
pub(super) enum Payload<'a> {
    Empty,
    /// Small, and covered by the signature.
    Bytes(Bytes),
    /// Created for each attempt. If its sha256 is known, the signature covers it.
    Stream {
        size: u64,
        sha256: Option<String>,
        make: MakeBody<'a>,
    },
}
