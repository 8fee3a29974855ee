//! The disk as a source: a blob's file in this cache, and request bodies that read it.

use std::fs::File;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, ready};

use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::Context;
use super::hashing::OrderedHash;
use super::rate::Throttle;
use crate::bucket::client::Pulse;
use crate::cache::read::read_at;
use crate::error::{Cause, Error, Result};
use crate::hash::BlobHasher;
use crate::model::ids::BlobId;
use crate::progress::Meter;

/// Number of bytes read from a file at a time.
pub(super) const SLICE: u64 = 256 << 10;

/// A blob to upload.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Its name.
    pub id: BlobId,
    /// Its size in bytes, as scanned.
    pub size: u64,
    /// The file that contains it.
    pub source: std::path::PathBuf,
    /// A file name for display.
    pub label: String,
}

impl Upload {
    /// Returns what fails if the store refuses it.
    pub(super) fn doing(&self) -> String {
        format!("cannot push blob {} ({})", self.id, self.label)
    }

    /// Returns the error for bytes that hash to another name.
    pub(super) fn wrong_bytes(&self, found: &BlobId) -> Error {
        Error::corrupt(format!("blob {} ({}) is corrupt in this cache and was not pushed", self.id, self.label))
            .because(format!("its bytes hash to {found}"))
            .hint(format!(
                "`hf-cache-sync verify --repair` replaces it and keeps the bad bytes; or delete {} and download it again",
                self.source.display()
            ))
    }

    /// Returns the error for a file that cannot be read.
    pub(super) fn unreadable(&self, error: &std::io::Error) -> Error {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return Error::corrupt(format!("blob {} ({}) became shorter while it was read", self.id, self.label));
        }
        let failure = Error::io("cannot read", &self.source, error);
        match error.kind() {
            std::io::ErrorKind::NotFound => Error { cause: Cause::Vanished, ..failure },
            _ => failure,
        }
    }
}

/// How the bytes that a body sends are checked.
#[derive(Clone)]
pub(super) enum Check {
    /// The body is the whole blob: its last slice is sent only if the hash matches the name.
    Whole(BlobHasher),
    /// The body is a part of the blob, which is hashed as a whole.
    Part(Arc<OrderedHash>),
    /// The body is a part that is sent only to see how the store answers.
    Nobody,
}

/// The reason why a body stopped, since the SDK would only report that it failed.
#[derive(Clone, Default)]
pub(super) struct LocalError(Arc<Mutex<Option<Error>>>);

impl LocalError {
    fn set(&self, error: Error) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
    }

    /// Takes the error, if a body has left one.
    pub(super) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }
}

/// A request body that reads a range of a file, slice by slice, as the connection accepts it.
pub(super) struct FileBody {
    blob: Upload,
    file: Arc<File>,
    offset: u64,
    end: u64,
    check: Check,
    meter: Option<Meter>,
    pulse: Pulse,
    throttle: Throttle,
    local_error: LocalError,
}

/// Makes the body of a request from the bytes of a file, as often as the request is sent.
pub(super) struct BodyMaker<'a> {
    pub(super) context: &'a Context,
    pub(super) blob: &'a Upload,
    pub(super) file: &'a Arc<File>,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) check: Check,
    pub(super) local_error: LocalError,
}

impl BodyMaker<'_> {
    /// Makes a body that reads from the start.
    pub(super) fn make(&self, pulse: &Pulse) -> SdkBody {
        SdkBody::from_body_1_x(FileBody {
            blob: self.blob.clone(),
            file: self.file.clone(),
            offset: self.offset,
            end: self.offset + self.size,
            check: self.check.clone(),
            meter: Some(Meter::new(&self.context.progress, self.blob.id)),
            pulse: pulse.clone(),
            throttle: Throttle::new(&self.context.limits.rate),
            local_error: self.local_error.clone(),
        })
    }
}

impl FileBody {
    /// Reads the next slice, and checks it.
    fn read_slice(&mut self, length: u64) -> Result<Bytes> {
        let bytes = read_at(&self.file, length as usize, self.offset).map_err(|e| self.blob.unreadable(&e))?;
        match &mut self.check {
            Check::Whole(hasher) => hasher.update(&bytes),
            Check::Part(hash) => hash.advance(&bytes, self.offset),
            Check::Nobody => {}
        }
        self.offset += length;
        if self.offset == self.end
            && let Check::Whole(hasher) = std::mem::replace(&mut self.check, Check::Nobody)
        {
            let found = hasher.finish();
            if found != self.blob.id {
                return Err(self.blob.wrong_bytes(&found));
            }
        }
        if let Some(meter) = &mut self.meter {
            meter.add(length);
        }
        Ok(bytes)
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.offset == self.end {
            return Poll::Ready(None);
        }
        self.pulse.beat();
        let length = self.throttle.slice(SLICE).min(self.end - self.offset);
        ready!(self.throttle.poll(length, task));
        match self.read_slice(length) {
            Ok(bytes) => {
                if self.offset == self.end {
                    self.meter.take().into_iter().for_each(Meter::keep);
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Err(error) => {
                self.pulse.poison();
                self.local_error.set(error);
                Poll::Ready(Some(Err(std::io::Error::other("the local bytes cannot be sent"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.offset == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.offset)
    }
}
