//! Listings: whole, or an error.

use std::collections::HashSet;

use super::{Bucket, Object, unquoted};
use crate::bucket::answer::{self, Page};
use crate::bucket::error::{Cause, Failure};
use crate::bucket::wire::{ANSWER, Op, Request, unreadable, whole};
use crate::error::printable;

/// Pages without anything new that a listing may have one after the other. Stores send empty ones where many objects
/// were deleted.
const NOTHING_NEW: usize = 40;
/// Pages after which a listing must have had [`SPARSE`] keys a page on average. One that gives a new key a page for ever
/// has no end, either.
const MANY: usize = 2_000;
/// See [`MANY`].
const SPARSE: usize = 10;
/// Keys asked for at a time: S3's limit.
const PAGE: u32 = 1000;

/// Where the objects of a listing go, page by page: whoever keeps less of them than all needs less memory.
pub trait Collect {
    /// Takes an object.
    fn take(&mut self, object: Object);

    /// The keys of all that it took. Asked only where a store does not list in order.
    fn keys(&self) -> HashSet<String>;
}

impl Collect for Vec<Object> {
    fn take(&mut self, object: Object) {
        self.push(object);
    }

    fn keys(&self) -> HashSet<String> {
        self.iter().map(|object| object.key.clone()).collect()
    }
}

impl Bucket {
    /// All objects whose keys begin with `prefix`.
    ///
    /// # Errors
    /// Any page that fails fails the whole listing, and so does one that has no end.
    pub async fn list<C: Collect + Default>(&self, prefix: &str) -> Result<C, Failure> {
        let mut listing = Listing::<C>::default();
        let mut token = None;
        loop {
            let page = self.page(prefix, token.as_deref(), PAGE).await?;
            let objects = self.objects(prefix, &page)?;
            match listing.add(objects, &page)? {
                Some(next) => token = Some(next),
                None => return Ok(listing.taken),
            }
        }
    }

    /// One page of a listing and the token of the next.
    ///
    /// # Errors
    /// When the request fails, or the store says that there is more without saying where.
    pub async fn list_page(
        &self,
        prefix: &str,
        token: Option<String>,
        max: i32,
    ) -> Result<(Vec<Object>, Option<String>), Failure> {
        let page = self.page(prefix, token.as_deref(), max.unsigned_abs()).await?;
        let objects = self.objects(prefix, &page)?;
        Ok((objects, if page.last { None } else { page.next }))
    }

    async fn page(&self, prefix: &str, token: Option<&str>, max: u32) -> Result<Page, Failure> {
        let mut request = Request::new(Op::List, "").query("list-type", "2").query("max-keys", max.to_string());
        request = request.query("prefix", self.key(prefix));
        if let Some(token) = token {
            request = request.query("continuation-token", token);
        }
        self.retried(Op::List, || async {
            let (body, who) = whole(self.wire.send(&request).await?, ANSWER).await?;
            match answer::page(&body) {
                Ok(page) => Ok(page),
                Err(why) => match answer::Element::parse(&body) {
                    Ok(root) if root.name() == "Error" => Err(Failure::refused(400, &answer::Refusal::from_xml(&root))),
                    _ => Err(unreadable(why, &body, &who)),
                },
            }
        })
        .await
    }

    fn objects(&self, prefix: &str, page: &Page) -> Result<Vec<Object>, Failure> {
        let full = self.key(prefix);
        let object = |listed: &answer::Listed| {
            let Some(key) = answer::key(&listed.key, page.encoded, &full) else {
                let detail = format!("it lists '{}', which was not asked for", printable(&listed.key, 120));
                return Err(Failure::new(Cause::NotS3, detail));
            };
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

/// A listing as it comes, page by page.
#[derive(Default)]
struct Listing<C> {
    taken: C,
    count: usize,
    /// The last of the keys, in their order.
    highest: Option<String>,
    tokens: HashSet<String>,
    without_news: usize,
}

impl<C: Collect> Listing<C> {
    /// Takes a page; returns the token of the next one.
    fn add(&mut self, mut objects: Vec<Object>, page: &Page) -> Result<Option<String>, Failure> {
        // Pages come in order: only where they do not, keys may be there already.
        let follows = objects.first().is_none_or(|first| self.highest.as_ref().is_none_or(|last| *last < first.key));
        if !follows || !objects.is_sorted_by(|a, b| a.key < b.key) {
            let mut known = self.taken.keys();
            objects.retain(|object| known.insert(object.key.clone()));
        }
        let has_news = !objects.is_empty();
        self.count += objects.len();
        self.highest = objects.iter().map(|object| &object.key).chain(&self.highest).max().cloned();
        objects.into_iter().for_each(|object| self.taken.take(object));
        let Some(next) = &page.next else { return Ok(None) };
        // A store may name a next page beside saying that this was the last: then it may be asked for, and may be none.
        if page.last && (!has_news || self.tokens.contains(next)) {
            return Ok(None);
        }
        self.without_news = if has_news { 0 } else { self.without_news + 1 };
        let is_sparse = self.tokens.len() > MANY && self.count < self.tokens.len() * SPARSE;
        if !self.tokens.insert(next.clone()) || self.without_news > NOTHING_NEW || is_sparse {
            return Err(Failure::new(Cause::NotS3, "its listing goes round in circles and has no end"));
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
    fn a_listing_that_gives_one_key_a_page_for_ever_is_an_error() {
        let add = |listing: &mut Listing<Vec<Object>>, at: usize, keys: usize| {
            let keys: Vec<String> = (0..keys).map(|key| format!("{at:06}-{key:04}")).collect();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            listing.add(objects(&keys), &page(Some(&at.to_string()), false))
        };
        let mut endless = Listing::<Vec<Object>>::default();
        assert!((0..MANY + 10).any(|at| add(&mut endless, at, 1).is_err()));
        let mut large = Listing::<Vec<Object>>::default();
        assert!((0..MANY + 10).all(|at| add(&mut large, at, 20).is_ok()), "a store may give small pages");
    }

    fn page(next: Option<&str>, last: bool) -> Page {
        Page { objects: Vec::new(), next: next.map(String::from), last, encoded: false }
    }

    #[test]
    fn a_listing_is_put_together_in_any_order_without_doubles() {
        let mut listing = Listing::<Vec<Object>>::default();
        assert_eq!(listing.add(objects(&["a", "c"]), &page(Some("1"), false)).unwrap().as_deref(), Some("1"));
        assert_eq!(listing.add(objects(&["b", "c", "d"]), &page(Some("2"), false)).unwrap().as_deref(), Some("2"));
        assert_eq!(listing.add(objects(&[]), &page(Some("3"), false)).unwrap().as_deref(), Some("3"));
        assert_eq!(listing.add(objects(&["e"]), &page(None, true)).unwrap(), None);
        let keys: Vec<&str> = listing.taken.iter().map(|object| object.key.as_str()).collect();
        assert_eq!(keys, ["a", "c", "b", "d", "e"]);

        // A key may come again two pages later.
        let mut listing = Listing::<Vec<Object>>::default();
        for (page_number, keys) in [&["a", "c"][..], &["b"], &["c", "d"]].into_iter().enumerate() {
            listing.add(objects(keys), &page(Some(&page_number.to_string()), false)).unwrap();
        }
        let keys: Vec<&str> = listing.taken.iter().map(|object| object.key.as_str()).collect();
        assert_eq!(keys, ["a", "c", "b", "d"]);
    }

    #[test]
    fn a_listing_without_end_is_an_error() {
        for keys in [&["a"][..], &[]] {
            let mut listing = Listing::<Vec<Object>>::default();
            let mut ended = None;
            for round in 0..1000 {
                if listing.add(objects(keys), &page(Some(&round.to_string()), false)).is_err() {
                    ended = Some(round);
                    break;
                }
            }
            assert!(ended.is_some());
        }
        // Tokens in turn, whatever they bring.
        let mut listing = Listing::<Vec<Object>>::default();
        assert!(listing.add(objects(&["a"]), &page(Some("A"), false)).is_ok());
        assert!(listing.add(objects(&["b"]), &page(Some("B"), false)).is_ok());
        assert!(listing.add(objects(&["c"]), &page(Some("A"), false)).is_err());
    }

    #[test]
    fn a_last_page_that_names_a_next_one_may_be_the_last() {
        let mut listing = Listing::<Vec<Object>>::default();
        assert_eq!(listing.add(objects(&["a"]), &page(Some("x"), true)).unwrap().as_deref(), Some("x"));
        assert_eq!(listing.add(objects(&["a"]), &page(Some("x"), true)).unwrap(), None);
        assert_eq!(listing.taken.len(), 1);
    }
}
