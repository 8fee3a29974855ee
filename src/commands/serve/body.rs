//! Response bodies: files read from the cache, or while they arrive.
//!
//! A blob in flight is read up to the point that has been hashed. The end of every response is held back until the hash of
//! the whole blob has matched: no client ever gets a complete response with unverified bytes. If the hash does not match,
//! the connection is aborted. While the end is held back, or the store stalls, a byte now and then keeps clients from timing
//! out.
//!
//! The part of an aborted response that a client has may thus be wrong. Most clients start again if they get the whole blob
//! instead of the requested rest. Clients that would not are sent nothing until the blob is verified; see [`Trust`].

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::activity::{Activity, InFlight, Origin};
use crate::cache::read::{Buffer, open_quietly};
use crate::platform;
use crate::transfer::arrival::{Arrival, State};

/// Number of bytes that are read at a time: few enough to stay in the processor's cache until they are sent.
const SLICE: u64 = 128 << 10;
/// Maximum number of unused buffers of this size that are kept for reuse.
const SPARE_BUFFERS: usize = 32;
/// Number of bytes at the end of a response that are held back until the blob is verified.
const HELD_BACK: u64 = 64 << 10;
/// Number of bytes that are kept in reserve in case the store stalls.
const RESERVE: u64 = 16;
/// Interval at which one of the bytes held back or in reserve is sent. Clients give up after ten seconds without a byte.
const HEARTBEAT: Duration = Duration::from_secs(4);

/// The body of a response.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Returns a body of these bytes.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Returns a body of pieces that are generated as they are sent. An empty piece ends it.
pub fn of_pieces(mut next: impl FnMut() -> String + Send + 'static) -> Body {
    let pieces = stream::iter(std::iter::from_fn(move || Some(next()).filter(|piece| !piece.is_empty())));
    StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece.into())))).boxed_unsync()
}

/// Returns an empty body without a length: in a response to HEAD, `Content-Length` is that of the file.
pub fn nothing() -> Body {
    StreamBody::new(stream::empty::<io::Result<Frame<Bytes>>>()).boxed_unsync()
}

/// Returns the body of a range of a file in the cache.
pub fn of_file(file: File, range: Range<u64>, activity: Arc<Activity>) -> Body {
    body(Source::Present(Arc::new(file)), range, activity)
}

/// How much of a blob a client may get before it is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// All but the end: the client discards its partial download if it cannot be resumed.
    AllButTheEnd,
    /// Nothing, not even a byte against its timeout.
    Nothing,
}

/// Returns the body of a range of a blob in flight. It is aborted unless this attempt is the one that succeeds.
pub fn of_arrival(
    arrival: &Arc<Arrival>,
    attempt: u32,
    range: Range<u64>,
    trust: Trust,
    activity: Arc<Activity>,
) -> Body {
    let state = arrival.watch();
    let length = range.end - range.start;
    let held_back = match trust {
        // A request for the first byte is only a probe for the size. That byte is not held back.
        _ if range == (0..1) => 0,
        Trust::AllButTheEnd => HELD_BACK.min(length),
        Trust::Nothing => length,
    };
    let following = Following {
        arrival: arrival.clone(),
        state,
        attempt,
        file: None,
        held_from: range.end - held_back,
        has_heartbeat: trust == Trust::AllButTheEnd,
    };
    body(Source::Arriving(following), range, activity)
}

fn body(source: Source, range: Range<u64>, activity: Arc<Activity>) -> Body {
    let in_flight = InFlight::of_responses(&activity);
    let reader = Reader { at: range.start, end: range.end, source, ahead: None, activity, _in_flight: in_flight };
    let stream = stream::try_unfold(reader, |mut reader| async move {
        if reader.at >= reader.end {
            return Ok(None);
        }
        let slice = reader.next().await?;
        Ok(Some((Frame::data(slice), reader)))
    });
    StreamBody::new(stream).boxed_unsync()
}

/// A response that is being sent.
struct Reader {
    at: u64,
    end: u64,
    source: Source,
    /// The next slice, which is read while this one is sent, and where it starts.
    ahead: Option<(u64, JoinHandle<io::Result<Bytes>>)>,
    activity: Arc<Activity>,
    _in_flight: InFlight,
}

/// The source of a response's bytes.
enum Source {
    Present(Arc<File>),
    Arriving(Following),
}

impl Reader {
    async fn next(&mut self) -> io::Result<Bytes> {
        let (at, end) = (self.at, self.end);
        let slice = match &mut self.source {
            Source::Present(file) => {
                let file = file.clone();
                let slice = self.read(&file, end).await?;
                self.activity.count_bytes(Origin::Disk, slice.len() as u64);
                slice
            }
            Source::Arriving(following) => {
                let (file, until) = following.wait(at, end).await?;
                self.read(&file, until).await?
            }
        };
        self.activity.sent.fetch_add(slice.len() as u64, Ordering::Relaxed);
        Ok(slice)
    }

    /// Reads the next slice, at most up to `end`. Bytes in the page cache are read directly: switching threads takes as long
    /// as reading them. Otherwise, the following slice is read while this one is sent.
    async fn read(&mut self, file: &Arc<File>, end: u64) -> io::Result<Bytes> {
        let read = |from: u64| {
            let (file, length) = (file.clone(), (end - from).min(SLICE) as usize);
            tokio::task::spawn_blocking(move || {
                let mut slice = Slice::take(length);
                platform::read_exact_at(&file, slice.bytes(), from)?;
                Ok(Bytes::from_owner(slice))
            })
        };
        let running = match self.ahead.take() {
            Some((from, running)) if from == self.at => running,
            _ => {
                let mut slice = Slice::take((end - self.at).min(SLICE) as usize);
                if let Some(length) = platform::read_cached_at(file, slice.bytes(), self.at) {
                    slice.length = length;
                    self.at += length as u64;
                    return Ok(Bytes::from_owner(slice));
                }
                read(self.at)
            }
        };
        let slice = running.await.map_err(io::Error::other)??;
        self.at += slice.len() as u64;
        if self.at < end {
            self.ahead = Some((self.at, read(self.at)));
        }
        Ok(slice)
    }
}

/// Buffers that are not in use. The last one sent is the next one filled, while it is still in the processor's cache.
static SPARE: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());

/// The first bytes of a buffer.
struct Slice {
    /// `None` once it is dropped.
    buffer: Option<Buffer>,
    length: usize,
}

impl Slice {
    fn take(length: usize) -> Slice {
        let spare = match length as u64 {
            SLICE => SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop(),
            _ => None,
        };
        Slice { buffer: Some(spare.unwrap_or_else(|| Buffer::new(length))), length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let buffer = self.buffer.as_mut().expect("it is not dropped");
        &mut buffer[..self.length]
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.as_ref().expect("it is not dropped")[..self.length]
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take().filter(|buffer| buffer.len() as u64 == SLICE) else { return };
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    }
}

/// Follows a blob in flight.
struct Following {
    arrival: Arc<Arrival>,
    state: watch::Receiver<State>,
    /// The attempt whose bytes are sent.
    attempt: u32,
    file: Option<Arc<File>>,
    /// The offset from which bytes are held back.
    held_from: u64,
    /// Whether a held-back byte is sent at every [`HEARTBEAT`].
    has_heartbeat: bool,
}

impl Following {
    /// Waits until bytes from `at` on may be sent. Returns the file, and the end of these bytes.
    async fn wait(&mut self, at: u64, end: u64) -> io::Result<(Arc<File>, u64)> {
        loop {
            let (frontier, is_verified) = {
                let state = self.state.borrow_and_update();
                // A client that is sent only verified bytes has no wrong ones.
                if state.attempt != self.attempt && self.has_heartbeat {
                    return Err(io::Error::other("wrong bytes have arrived"));
                }
                if state.attempt != self.attempt {
                    (self.attempt, self.file) = (state.attempt, None);
                }
                if let Some(file) = &state.file {
                    self.file = Some(file.clone());
                }
                match &state.outcome {
                    Some(Ok(())) => (end, true),
                    Some(Err(error)) => return Err(io::Error::other(error.what.clone())),
                    None => (state.frontier, false),
                }
            };
            let until = if is_verified { end } else { frontier.saturating_sub(RESERVE).min(self.held_from) };
            // Many small pieces would cost more time than they save.
            let is_enough = is_verified || until == self.held_from || until >= at + SLICE;
            if at < until && is_enough {
                return Ok((self.file()?, until));
            }
            // The last byte is always held back.
            let may_send_byte = self.has_heartbeat && at < frontier && at + 1 < end;
            tokio::select! {
                changed = self.state.changed() => changed.map_err(io::Error::other)?,
                () = tokio::time::sleep(HEARTBEAT), if may_send_byte => return Ok((self.file()?, until.max(at + 1))),
            }
        }
    }

    /// Returns the file that the bytes arrive in, or the blob in the cache if that file was not readable in the meantime.
    fn file(&mut self) -> io::Result<Arc<File>> {
        if self.file.is_none() {
            self.file = Some(Arc::new(open_quietly(&self.arrival.path)?));
        }
        Ok(self.file.clone().expect("it was just opened"))
    }
}
