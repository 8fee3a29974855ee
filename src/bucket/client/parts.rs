//! Uploads in parts.

use bytes::Bytes;

use super::{Bucket, MakeBody};
use crate::bucket::answer::{self, Element, Refusal, Unreadable};
use crate::bucket::error::{Cause, Failure};
use crate::bucket::wire::{ANSWER, CRC32, Op, Payload, Request, unreadable, whole};
use crate::error::Result;

/// A finished part of a multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// From 1.
    pub number: i32,
    /// As the store returned it.
    pub etag: String,
    /// Size in bytes.
    pub size: u64,
    /// Its checksum, where the store has one: it must be named again when the parts are put together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc32: Option<String>,
}

impl Bucket {
    /// Starts a multipart upload.
    ///
    /// # Errors
    /// When the request fails for good.
    pub async fn start_parts(&self, key: &str) -> Result<String, Failure> {
        let full = self.key(key);
        let request = Request::new(Op::StartParts, &full).query("uploads", "");
        self.retried(Op::StartParts, || async {
            let (body, who) = whole(self.wire.send(&request).await?, ANSWER).await?;
            let root = success(&body, "InitiateMultipartUploadResult", &who)?;
            let id = root.text("UploadId").map(String::from);
            id.ok_or_else(|| Failure::new(Cause::Other, "the store gave no upload id"))
        })
        .await
    }

    /// Sends one part.
    ///
    /// # Errors
    /// When the request fails for good.
    pub async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: i32,
        size: u64,
        make: MakeBody<'_>,
    ) -> Result<Part, Failure> {
        let full = self.key(key);
        let request =
            Request::new(Op::PutPart, &full).query("partNumber", number.to_string()).query("uploadId", upload);
        let request = request.payload(Payload::Stream { size, sha256: None, make });
        let response = self.retried(Op::PutPart, || self.wire.send(&request)).await?;
        let etag = response.headers().get("etag").filter(|etag| !etag.is_empty()).map(String::from);
        let etag = etag.ok_or_else(|| Failure::new(Cause::Other, "the store gave no part etag"))?;
        let crc32 = response.headers().get(CRC32).map(String::from);
        Ok(Part { number, etag, size, crc32 })
    }

    /// The parts that the store has of an upload, or `None` when it does not know the upload any more.
    ///
    /// # Errors
    /// When the request fails for good.
    pub async fn parts(&self, key: &str, upload: &str) -> Result<Option<Vec<Part>>, Failure> {
        let full = self.key(key);
        let mut parts: Vec<Part> = Vec::new();
        let mut marker: Option<String> = None;
        loop {
            let mut request = Request::new(Op::ListParts, &full).query("uploadId", upload);
            if let Some(marker) = &marker {
                request = request.query("part-number-marker", marker);
            }
            let listed = self
                .retried(Op::ListParts, || async {
                    let (body, who) = whole(self.wire.send(&request).await?, ANSWER).await?;
                    answer::parts(&body).map_err(|why| refused(why, &body, &who))
                })
                .await;
            let (page, next) = match listed {
                Ok(listed) => listed,
                Err(failure) if matches!(failure.cause, Cause::NoSuchUpload | Cause::NoSuchKey) => return Ok(None),
                Err(failure) => return Err(failure),
            };
            let last = parts.last().map_or(0, |part| part.number);
            parts.extend(page.into_iter().filter(|part| part.number > last));
            match next {
                None => return Ok(Some(parts)),
                Some(next) if marker.as_ref() == Some(&next) || parts.last().map_or(0, |part| part.number) == last => {
                    return Err(Failure::new(Cause::NotS3, "its listing of parts has no end"));
                }
                Some(next) => marker = Some(next),
            }
        }
    }

    /// Makes an object of its parts. An answer that got lost is looked up before it counts as a failure.
    ///
    /// # Errors
    /// When the request fails for good and the object is not there with this size.
    pub async fn finish_parts(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), Failure> {
        let full = self.key(key);
        let mut request = Request::new(Op::FinishParts, &full).query("uploadId", upload);
        request = request.header("content-type", "application/xml").payload(Payload::Bytes(completion(parts)));
        // Putting the parts together takes a store a while: allow more than for another answer.
        request.patience = ANSWER * 5;
        let finished = self
            .retried(Op::FinishParts, || async {
                let (body, who) = whole(self.wire.send(&request).await?, request.patience).await?;
                success(&body, "CompleteMultipartUploadResult", &who).map(|_| ())
            })
            .await;
        match finished {
            Ok(()) => Ok(()),
            Err(failure) => {
                let size: u64 = parts.iter().map(|part| part.size).sum();
                if self.head(key).await.is_ok_and(|there| there == Some(size)) { Ok(()) } else { Err(failure) }
            }
        }
    }

    /// Gives up a multipart upload, so that its parts are not billed. Best effort.
    pub async fn abort_parts(&self, key: &str, upload: &str) {
        let full = self.key(key);
        let request = Request::new(Op::AbortParts, &full).query("uploadId", upload);
        if let Err(failure) = self.wire.send(&request).await {
            tracing::debug!(key = full, reason = failure.detail, "an unfinished upload could not be aborted");
        }
    }
}

/// The answer to a request that may fail although its status says success.
fn success(body: &Bytes, root: &str, who: &str) -> Result<Element, Failure> {
    Element::expect(body, root).map_err(|why| refused(why, body, who))
}

fn refused(why: Unreadable, body: &Bytes, who: &str) -> Failure {
    match Element::parse(body) {
        // Too late for a status: it was sent before the store began to work.
        Ok(root) if root.name() == "Error" => Failure::refused(500, &Refusal::from_xml(&root)),
        _ => unreadable(why, body, who),
    }
}

fn completion(parts: &[Part]) -> Bytes {
    let mut text = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for Part { number, etag, crc32, .. } in parts {
        let etag = quick_xml::escape::escape(etag.as_str());
        let crc32 = crc32.as_ref().map_or(String::new(), |crc32| {
            format!("<ChecksumCRC32>{}</ChecksumCRC32>", quick_xml::escape::escape(crc32.as_str()))
        });
        text += &format!("<Part><ETag>{etag}</ETag><PartNumber>{number}</PartNumber>{crc32}</Part>");
    }
    text += "</CompleteMultipartUpload>";
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_named_in_xml() {
        let parts = [Part { number: 1, etag: "\"a&b\"".into(), size: 1, crc32: None }];
        let text = String::from_utf8(completion(&parts).to_vec()).unwrap();
        assert!(text.contains("<Part><ETag>&quot;a&amp;b&quot;</ETag><PartNumber>1</PartNumber></Part>"), "{text}");
    }
}
