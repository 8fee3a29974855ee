//! Multipart uploads.

use bytes::Bytes;

use super::{Bucket, MakeBody};
use crate::bucket::answer::{self, Element, Part};
use crate::bucket::request::{Op, Payload, Request};
use crate::bucket::wire::{CRC32, body_failure};
use crate::error::{Cause, Failure, Result};

/// The status that an error in the body stands for: the store sent a status before it began to work.
const STARTED: u16 = 500;

impl Bucket {
    /// Starts a multipart upload.
    ///
    /// # Errors
    /// If the request fails permanently.
    pub async fn start_parts(&self, key: &str) -> Result<String, Failure> {
        let full = self.key(key);
        let request = Request::new(Op::StartParts, &full).query("uploads", "");
        self.retried(Op::StartParts, || async {
            let (body, description) = self.wire.send_for_xml(&request).await?;
            let id = answer::upload_id(&body).map_err(|why| body_failure(why, &body, &description, STARTED))?;
            id.ok_or_else(|| Failure::new(Cause::Other, "the store returned no upload id"))
        })
        .await
    }

    /// Sends one part.
    ///
    /// # Errors
    /// If the request fails permanently.
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
        let etag = etag.ok_or_else(|| Failure::new(Cause::Other, "the store returned no ETag for the part"))?;
        let crc32 = response.headers().get(CRC32).map(String::from);
        Ok(Part { number, etag, size, crc32 })
    }

    /// Lists the parts of an upload that the store has; `None` if the store no longer knows the upload.
    ///
    /// # Errors
    /// If the request fails permanently.
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
                    let (body, description) = self.wire.send_for_xml(&request).await?;
                    answer::parts(&body).map_err(|why| body_failure(why, &body, &description, STARTED))
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

    /// Completes a multipart upload. Since the response may have been lost, the object is looked up before a failure counts.
    ///
    /// # Errors
    /// If the request fails permanently and there is no object of this size.
    pub async fn finish_parts(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), Failure> {
        let full = self.key(key);
        let mut request = Request::new(Op::FinishParts, &full).query("uploadId", upload);
        request = request.header("content-type", "application/xml").payload(Payload::Bytes(completion(parts)));
        // A store may need longer than for other requests to assemble the parts.
        request.timeout = Some(self.wire.timeout() * 5);
        let finished = self
            .retried(Op::FinishParts, || async {
                let (body, description) = self.wire.send_for_xml(&request).await?;
                parse_success(&body, "CompleteMultipartUploadResult", &description).map(|_| ())
            })
            .await;
        match finished {
            Ok(()) => Ok(()),
            Err(failure) => {
                let size = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.size));
                if self.head(key).await.is_ok_and(|found| found == Some(size)) { Ok(()) } else { Err(failure) }
            }
        }
    }

    /// Aborts a multipart upload, so that its parts are not billed. Best effort.
    pub async fn abort_parts(&self, key: &str, upload: &str) {
        let full = self.key(key);
        let request = Request::new(Op::AbortParts, &full).query("uploadId", upload);
        if let Err(failure) = self.wire.send(&request).await {
            tracing::debug!(key = full, reason = failure.detail, "an unfinished upload could not be aborted");
        }
    }
}

/// Parses the response to a request that may fail despite a success status.
fn parse_success(body: &Bytes, root: &str, description: &str) -> Result<Element, Failure> {
    Element::expect(body, root).map_err(|why| body_failure(why, body, description, STARTED))
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
    fn completion_lists_parts_in_xml() {
        let parts = [Part { number: 1, etag: "\"a&b\"".into(), size: 1, crc32: None }];
        let text = String::from_utf8(completion(&parts).to_vec()).unwrap();
        assert!(text.contains("<Part><ETag>&quot;a&amp;b&quot;</ETag><PartNumber>1</PartNumber></Part>"), "{text}");
    }
}
