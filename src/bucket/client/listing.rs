//! Listings: complete, or an error.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::try_join_all;
use md5::{Digest, Md5};

use super::segments::{self, Segment};
use super::{Bucket, Object, unquoted};
use crate::bucket::answer::{self, Page};
use crate::bucket::keys;
use crate::bucket::request::{Op, Request};
use crate::bucket::wire::body_failure;
use crate::error::{Cause, Error, Failure, printable};

/// Maximum number of consecutive pages without new keys. Stores send empty pages where many objects were deleted.
const MAX_STALE_PAGES: usize = 40;
/// Number of pages after which a listing must have at least [`MIN_KEYS_PER_PAGE`] keys per page on average. A listing that
/// goes on with one new key per page does not end either.
const MAX_SPARSE_PAGES: usize = 2_000;
/// See [`MAX_SPARSE_PAGES`].
const MIN_KEYS_PER_PAGE: usize = 10;
/// Number of keys to request per page: S3's limit.
const PAGE: u32 = 1000;
/// Maximum number of blobs in a listing. Each takes about 60 bytes of memory.
const MAX_BLOBS: usize = 10_000_000;
/// Maximum number of other objects in a listing.
const MAX_OTHERS: usize = 1_000_000;
/// Maximum length of a key in bytes: S3's limit.
const MAX_KEY: usize = 1024;

/// Collects the objects of a listing, page by page. A collection that keeps only part of each object needs less memory.
pub trait Collect {
    /// Adds an object.
    fn add(&mut self, object: Object);

    /// Returns the keys of all collected objects. Needed only if a store does not list in order.
    fn keys(&self) -> impl Iterator<Item = String>;
}

impl Collect for Vec<Object> {
    fn add(&mut self, object: Object) {
        self.push(object);
    }

    fn keys(&self) -> impl Iterator<Item = String> {
        self.iter().map(|object| object.key.clone())
    }
}

/// Where a page of a listing starts.
#[derive(Debug, Clone, Copy)]
enum Start<'a> {
    /// After this key; at the first one if it is empty.
    After(&'a str),
    /// Where an earlier page ended.
    Token(&'a str),
}

impl<'a> Start<'a> {
    /// Starts at this token, or at the first key if there is none.
    fn at(token: Option<&'a str>) -> Self {
        token.map_or(Start::After(""), Start::Token)
    }
}

impl Bucket {
    /// Lists all objects whose keys start with `prefix`. For blobs, use [`Bucket::list_blobs`].
    ///
    /// # Errors
    /// If any page fails, if the listing does not end, or if it has more keys than this tool supports.
    pub async fn list<C: Collect + Default>(&self, prefix: &str) -> Result<C, Failure> {
        debug_assert_ne!(prefix, keys::BLOBS);
        let listing = Listing::new(MAX_OTHERS);
        Ok(self.list_rest(prefix, listing, None).await?.collected)
    }

    /// Lists all blobs, of which there are about `expected`, or 0 if that is unknown. If they do not fit on one page, pages
    /// are requested concurrently. Returns one or two parts of the listing, without common keys, and in any order.
    ///
    /// # Errors
    /// As [`Bucket::list`].
    pub async fn list_blobs<C: Collect + Default + Send>(&self, expected: usize) -> Result<Vec<C>, Failure> {
        if let Some(found) = self.list_segments(&segments::of_all(expected, PAGE as usize)).await {
            return Ok(vec![found]);
        }
        let mut listing = Listing::new(MAX_BLOBS);
        let page = self.page(keys::BLOBS, Start::at(None), PAGE).await?;
        let objects = self.objects(keys::BLOBS, &page)?;
        let rest = if page.last { Vec::new() } else { segments::of_rest(&objects) };
        let Some(token) = listing.add(objects, &page)? else { return Ok(vec![listing.collected]) };
        if let Some(found) = self.list_segments(&rest).await {
            return Ok(vec![found, listing.collected]);
        }
        let listing = self.list_rest(keys::BLOBS, listing, Some(token)).await?;
        if listing.known.is_some() {
            self.shared.lists_in_sequence.store(true, Ordering::Relaxed);
        }
        Ok(vec![listing.collected])
    }

    /// Adds all pages from this token on.
    async fn list_rest<C: Collect + Default>(
        &self,
        prefix: &str,
        mut listing: Listing<C>,
        mut token: Option<String>,
    ) -> Result<Listing<C>, Failure> {
        loop {
            let page = self.page(prefix, Start::at(token.as_deref()), PAGE).await?;
            let objects = self.objects(prefix, &page)?;
            match listing.add(objects, &page)? {
                Some(next) => token = Some(next),
                None => return Ok(listing),
            }
        }
    }

    /// Lists these segments of the blobs concurrently. Returns `None` if there are fewer than two, or if the store does not
    /// list in order, does not support `start-after`, or fails: then the pages have to be requested one after another.
    async fn list_segments<C: Collect + Default + Send>(&self, segments: &[Segment]) -> Option<C> {
        if segments.len() < 2 || self.shared.lists_in_sequence.load(Ordering::Relaxed) {
            return None;
        }
        // One collection for all of them takes less memory than several that are merged.
        let listed = Mutex::new((C::default(), 0));
        let edges = try_join_all(segments.iter().map(|segment| self.list_segment(segment, &listed))).await;
        // A store that starts elsewhere leaves a gap.
        let is_complete = edges.is_ok_and(|edges| edges.windows(2).all(|pair| pair[0].end == pair[1].first));
        if !is_complete {
            tracing::debug!("pages of the listing are requested one after another");
            self.shared.lists_in_sequence.store(true, Ordering::Relaxed);
            return None;
        }
        let (collected, _) = listed.into_inner().unwrap_or_else(PoisonError::into_inner);
        Some(collected)
    }

    /// Lists a segment, and adds it to what all segments have `listed`: their objects and the number of these. No request
    /// is retried.
    ///
    /// # Errors
    /// If a request fails, or the response is not what was requested.
    async fn list_segment<C: Collect>(&self, segment: &Segment, listed: &Mutex<(C, usize)>) -> Result<Edges, Failure> {
        let unexpected = || Failure::new(Cause::NotS3, "its listing does not start after the requested key");
        let mut edges = Edges::default();
        let mut after = segment.after.clone();
        for pages in 0.. {
            self.shared.count_request();
            // No tokens: some versions of MinIO skip a key with those that follow `start-after`.
            let page = self.request_page(keys::BLOBS, Start::After(&after), PAGE).await?;
            // Parsed pages take several times their size, so there is only one at a time.
            let mut listed = listed.lock().unwrap_or_else(PoisonError::into_inner);
            let (collected, count) = &mut *listed;
            let page = page.parse()?;
            let objects = self.objects(keys::BLOBS, &page)?;
            let is_in_order = objects.is_sorted_by(|a, b| a.key < b.key);
            let starts_early = objects.first().is_some_and(|first| *first.key <= *after);
            let is_sparse = pages > MAX_SPARSE_PAGES && objects.len() < MIN_KEYS_PER_PAGE;
            if !is_in_order || starts_early || is_sparse {
                return Err(unexpected());
            }
            edges.first = edges.first.or_else(|| objects.first().map(|object| object.key.clone()));
            let is_last = page.last || page.next.is_none();
            match objects.last() {
                Some(last) => after.clone_from(&last.key),
                None if is_last => break,
                None => return Err(unexpected()),
            }
            for object in objects {
                if segment.is_past(&object.key) {
                    edges.end = Some(object.key);
                    // Names are spread too evenly for an empty segment: the store starts elsewhere.
                    return if edges.end == edges.first { Err(unexpected()) } else { Ok(edges) };
                }
                *count += 1;
                collected.add(object);
            }
            check_count(*count, MAX_BLOBS)?;
            if is_last {
                break;
            }
        }
        // Only the last segment ends with the listing.
        if segment.is_last() { Ok(edges) } else { Err(unexpected()) }
    }

    /// Like [`Bucket::list`], with the error for users.
    ///
    /// # Errors
    /// As [`Bucket::list`].
    pub async fn list_objects(&self, prefix: &str) -> Result<Vec<Object>, Error> {
        self.list(prefix).await.map_err(|failure| self.explain_listing(failure))
    }

    /// Returns one page of a listing, and the token of the next page.
    ///
    /// # Errors
    /// If the request fails, or if the store says that there is more but sends no token.
    pub async fn list_page(
        &self,
        prefix: &str,
        token: Option<String>,
        max: i32,
    ) -> Result<(Vec<Object>, Option<String>), Failure> {
        let page = self.page(prefix, Start::at(token.as_deref()), max.unsigned_abs()).await?;
        let objects = self.objects(prefix, &page)?;
        Ok((objects, if page.last { None } else { page.next }))
    }

    async fn page(&self, prefix: &str, start: Start<'_>, max: u32) -> Result<Page, Failure> {
        self.retried(Op::List, || async { self.request_page(prefix, start, max).await?.parse() }).await
    }

    async fn request_page(&self, prefix: &str, start: Start<'_>, max: u32) -> Result<RawPage, Failure> {
        let mut request = Request::new(Op::List, "").query("list-type", "2").query("max-keys", max.to_string());
        request = request.query("prefix", self.key(prefix));
        request = match start {
            Start::After("") => request,
            Start::After(key) => request.query("start-after", self.key(key)),
            Start::Token(token) => request.query("continuation-token", token),
        };
        let (body, description) = self.wire.send_for_xml(&request).await?;
        Ok(RawPage { body, description })
    }

    fn objects(&self, prefix: &str, page: &Page) -> Result<Vec<Object>, Failure> {
        let full = self.key(prefix);
        let object = |listed: &answer::Listed| {
            let Some(key) = answer::key(&listed.key, page.encoded, &full) else {
                let detail = format!("it lists '{}', which was not requested", printable(&listed.key, 120));
                return Err(Failure::new(Cause::NotS3, detail));
            };
            if key.len() > MAX_KEY {
                let detail = format!("it lists a key of {} bytes, '{}'", key.len(), printable(&key, 120));
                return Err(Failure::new(Cause::NotS3, detail));
            }
            let Some(size) = listed.size else {
                let detail = format!("it lists '{}' without a size", printable(&key, 120));
                return Err(Failure::new(Cause::NotS3, detail));
            };
            Ok(Object {
                key: key.strip_prefix(&self.prefix).unwrap_or(&key).to_string(),
                size,
                etag: listed.etag.as_deref().and_then(unquoted),
                modified: listed.modified,
            })
        };
        page.objects.iter().map(object).collect()
    }
}

/// A page of a listing, as the store sent it.
struct RawPage {
    body: Bytes,
    description: String,
}

impl RawPage {
    fn parse(self) -> Result<Page, Failure> {
        answer::page(&self.body).map_err(|why| body_failure(why, &self.body, &self.description, 400))
    }
}

/// Where a segment of a listing starts and ends.
#[derive(Debug, Default)]
struct Edges {
    /// The first key after the start of the segment.
    first: Option<String>,
    /// The first key after its end.
    end: Option<String>,
}

/// A listing in progress.
struct Listing<C> {
    collected: C,
    count: usize,
    /// Maximum number of keys.
    max: usize,
    /// Digests of all keys so far, once the order is broken. Digests take less memory than keys.
    known: Option<HashSet<[u8; 16]>>,
    /// The greatest key so far.
    highest: Option<String>,
    tokens: HashSet<String>,
    /// Consecutive pages without new keys.
    stale_pages: usize,
}

fn check_count(count: usize, max: usize) -> Result<(), Failure> {
    if count <= max {
        return Ok(());
    }
    let detail = format!("the listing has more than {max} keys, the most that are supported");
    Err(Failure::new(Cause::TooLarge, detail))
}

fn digest(key: &str) -> [u8; 16] {
    Md5::digest(key).into()
}

impl<C: Collect + Default> Listing<C> {
    fn new(max: usize) -> Listing<C> {
        let (collected, tokens) = (C::default(), HashSet::new());
        Listing { collected, count: 0, max, known: None, highest: None, tokens, stale_pages: 0 }
    }

    /// Adds a page and returns the token of the next one.
    fn add(&mut self, mut objects: Vec<Object>, page: &Page) -> Result<Option<String>, Failure> {
        // In an ordered listing, no key can repeat. Check for duplicates only if the order is broken.
        let follows = objects.first().is_none_or(|first| self.highest.as_ref().is_none_or(|last| *last < first.key));
        if self.known.is_none() && (!follows || !objects.is_sorted_by(|a, b| a.key < b.key)) {
            self.known = Some(self.collected.keys().map(|key| digest(&key)).collect());
        }
        if let Some(known) = &mut self.known {
            objects.retain(|object| known.insert(digest(&object.key)));
        }
        let has_new_keys = !objects.is_empty();
        self.count += objects.len();
        check_count(self.count, self.max)?;
        self.highest = objects.iter().map(|object| &object.key).chain(&self.highest).max().cloned();
        objects.into_iter().for_each(|object| self.collected.add(object));
        let Some(next) = &page.next else { return Ok(None) };
        // Some stores send a token although this page is the last. Request the next page anyway, but it may be empty.
        if page.last && (!has_new_keys || self.tokens.contains(next)) {
            return Ok(None);
        }
        self.stale_pages = if has_new_keys { 0 } else { self.stale_pages + 1 };
        let is_sparse = self.tokens.len() > MAX_SPARSE_PAGES && self.count < self.tokens.len() * MIN_KEYS_PER_PAGE;
        if !self.tokens.insert(next.clone()) || self.stale_pages > MAX_STALE_PAGES || is_sparse {
            return Err(Failure::new(Cause::NotS3, "its listing repeats itself and has no end"));
        }
        Ok(Some(next.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(keys: &[&str]) -> Vec<Object> {
        let object = |key: &&str| Object { key: key.to_string(), size: 1, etag: None, modified: None };
        keys.iter().map(object).collect()
    }

    #[test]
    fn an_endless_listing_with_one_key_per_page_is_an_error() {
        let add = |listing: &mut Listing<Vec<Object>>, at: usize, keys: usize| {
            let keys: Vec<String> = (0..keys).map(|key| format!("{at:06}-{key:04}")).collect();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            listing.add(objects(&keys), &page(Some(&at.to_string()), false))
        };
        let mut endless = Listing::<Vec<Object>>::new(100_000);
        assert!((0..MAX_SPARSE_PAGES + 10).any(|at| add(&mut endless, at, 1).is_err()));
        let mut large = Listing::<Vec<Object>>::new(100_000);
        assert!((0..MAX_SPARSE_PAGES + 10).all(|at| add(&mut large, at, 20).is_ok()), "a store may send small pages");
    }

    fn page(next: Option<&str>, last: bool) -> Page {
        Page { objects: Vec::new(), next: next.map(String::from), last, encoded: false }
    }

    #[test]
    fn pages_in_any_order_are_collected_without_duplicates() {
        let mut listing = Listing::<Vec<Object>>::new(100_000);
        assert_eq!(listing.add(objects(&["a", "c"]), &page(Some("1"), false)).unwrap().as_deref(), Some("1"));
        assert_eq!(listing.add(objects(&["b", "c", "d"]), &page(Some("2"), false)).unwrap().as_deref(), Some("2"));
        assert_eq!(listing.add(objects(&[]), &page(Some("3"), false)).unwrap().as_deref(), Some("3"));
        assert_eq!(listing.add(objects(&["e"]), &page(None, true)).unwrap(), None);
        let keys: Vec<&str> = listing.collected.iter().map(|object| object.key.as_str()).collect();
        assert_eq!(keys, ["a", "c", "b", "d", "e"]);

        // A key may repeat two pages later.
        let mut listing = Listing::<Vec<Object>>::new(100_000);
        for (page_number, keys) in [&["a", "c"][..], &["b"], &["c", "d"]].into_iter().enumerate() {
            listing.add(objects(keys), &page(Some(&page_number.to_string()), false)).unwrap();
        }
        let keys: Vec<&str> = listing.collected.iter().map(|object| object.key.as_str()).collect();
        assert_eq!(keys, ["a", "c", "b", "d"]);
    }

    #[test]
    fn a_listing_has_a_maximum_number_of_keys() {
        let mut listing = Listing::<Vec<Object>>::new(3);
        assert!(listing.add(objects(&["a", "b"]), &page(Some("1"), false)).is_ok());
        assert!(listing.add(objects(&["b", "c"]), &page(Some("2"), false)).is_ok());
        let error = listing.add(objects(&["d"]), &page(Some("3"), false)).unwrap_err();
        assert!(error.cause == Cause::TooLarge && error.detail.contains("more than 3 keys"), "{error:?}");
    }

    #[test]
    fn an_endless_listing_is_an_error() {
        for keys in [&["a"][..], &[]] {
            let mut listing = Listing::<Vec<Object>>::new(100_000);
            let mut ended = None;
            for round in 0..1000 {
                if listing.add(objects(keys), &page(Some(&round.to_string()), false)).is_err() {
                    ended = Some(round);
                    break;
                }
            }
            assert!(ended.is_some());
        }
        // Alternating tokens, even with new keys.
        let mut listing = Listing::<Vec<Object>>::new(100_000);
        assert!(listing.add(objects(&["a"]), &page(Some("A"), false)).is_ok());
        assert!(listing.add(objects(&["b"]), &page(Some("B"), false)).is_ok());
        assert!(listing.add(objects(&["c"]), &page(Some("A"), false)).is_err());
    }

    #[test]
    fn a_last_page_with_a_token_may_be_the_last() {
        let mut listing = Listing::<Vec<Object>>::new(100_000);
        assert_eq!(listing.add(objects(&["a"]), &page(Some("x"), true)).unwrap().as_deref(), Some("x"));
        assert_eq!(listing.add(objects(&["a"]), &page(Some("x"), true)).unwrap(), None);
        assert_eq!(listing.collected.len(), 1);
    }
}
