//! Parses the store's XML responses.
//!
//! A response is complete or it is an error: a truncated body, another root element, or anything that is not XML never
//! counts as a shorter response. Fields that this tool does not need, such as a malformed date, are no reason to reject
//! it.

use std::borrow::Cow;
use std::time::SystemTime;

use percent_encoding::percent_decode_str;
use quick_xml::Reader;
use quick_xml::events::Event;

/// Maximum nesting of elements. S3's responses have three levels.
const MAX_DEPTH: usize = 16;
/// Maximum number of elements. A page of 1,000 objects has about 10,000, and each takes many times the memory of its text.
const MAX_ELEMENTS: usize = 200_000;

/// An XML element and its content.
#[derive(Debug, Default)]
pub(super) struct Element {
    name: String,
    text: String,
    children: Vec<Element>,
}

/// Why a body is not the expected response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ParseError {
    /// It is truncated.
    Truncated,
    /// It is not an S3 response; describes what it is instead.
    NotS3(String),
}

impl Element {
    /// Parses a body as an XML document.
    pub(super) fn parse(body: &[u8]) -> Result<Element, ParseError> {
        let text = decode(body);
        let start = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        if start.is_empty() {
            return Err(ParseError::Truncated);
        }
        if let Some(what) = kind_if_not_xml(start) {
            return Err(ParseError::NotS3(what.into()));
        }
        let mut reader = Reader::from_str(start);
        // Some stores do not escape `&` in user input.
        reader.config_mut().allow_dangling_amp = true;
        let mut open: Vec<Element> = Vec::new();
        let mut root: Option<Element> = None;
        let mut count = 0;
        loop {
            let event = match reader.read_event() {
                Ok(event) => event,
                Err(quick_xml::Error::Syntax(_)) => return Err(ParseError::Truncated),
                Err(_) => return Err(ParseError::NotS3("malformed XML".into())),
            };
            if matches!(event, Event::Start(_) | Event::Empty(_)) {
                count += 1;
                if count > MAX_ELEMENTS {
                    return Err(ParseError::NotS3("too many XML elements".into()));
                }
            }
            match event {
                Event::Start(tag) if root.is_none() && open.len() < MAX_DEPTH => {
                    open.push(Element { name: name_of(tag.local_name().as_ref()), ..Element::default() });
                }
                Event::Empty(tag) if root.is_none() => {
                    let element = Element { name: name_of(tag.local_name().as_ref()), ..Element::default() };
                    match open.last_mut() {
                        Some(parent) => parent.children.push(element),
                        None => root = Some(element),
                    }
                }
                Event::End(_) => {
                    let Some(element) = open.pop() else {
                        return Err(ParseError::NotS3("malformed XML".into()));
                    };
                    match open.last_mut() {
                        Some(parent) => parent.children.push(element),
                        None => root = Some(element),
                    }
                }
                Event::Text(text) => add_text(&mut open, &String::from_utf8_lossy(&text)),
                Event::CData(text) => add_text(&mut open, &String::from_utf8_lossy(&text)),
                Event::GeneralRef(reference) => {
                    let resolved = match reference.resolve_char_ref() {
                        Ok(Some(c)) => Some(c),
                        _ => named_entity(&reference),
                    };
                    match resolved {
                        Some(c) => add_text(&mut open, c.encode_utf8(&mut [0; 4])),
                        None => add_text(&mut open, &format!("&{};", String::from_utf8_lossy(&reference))),
                    }
                }
                Event::Start(_) | Event::Empty(_) => {
                    return Err(ParseError::NotS3("malformed XML".into()));
                }
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) | Event::DocType(_) => {}
                Event::Eof => return root.filter(|_| open.is_empty()).ok_or(ParseError::Truncated),
            }
        }
    }

    /// Parses a body as an XML document with this root element.
    pub(super) fn expect(body: &[u8], root: &str) -> Result<Element, ParseError> {
        Element::parse(body)?.named(root)
    }

    /// Returns the element if it has this name.
    fn named(self, name: &str) -> Result<Element, ParseError> {
        match self.name == name {
            true => Ok(self),
            false => Err(ParseError::NotS3(format!("<{}> instead of <{name}>", self.name))),
        }
    }

    /// Returns the element's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn children<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Element> {
        let name = name.to_string();
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Returns the text of a child, without surrounding white space; `None` if it is empty or missing.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.children(name).map(|child| child.text.trim()).find(|text| !text.is_empty())
    }
}

fn add_text(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

/// Resolves XML's predefined entities.
fn named_entity(reference: &[u8]) -> Option<char> {
    Some(match reference {
        b"lt" => '<',
        b"gt" => '>',
        b"amp" => '&',
        b"quot" => '"',
        b"apos" => '\'',
        _ => return None,
    })
}

fn name_of(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// Decodes UTF-8, or UTF-16 with a byte order mark.
fn decode(body: &[u8]) -> Cow<'_, str> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        Cow::Owned(String::from_utf16_lossy(&units))
    };
    match body {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        body => String::from_utf8_lossy(body),
    }
}

/// Describes a body that is certainly not a store's XML; `None` if it may be.
pub(super) fn kind_if_not_xml(text: &str) -> Option<&'static str> {
    let start = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    let lower: String = start.chars().take(512).collect::<String>().to_ascii_lowercase();
    let first = lower.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>")).map_or(&*lower, |(_, rest)| rest);
    let first = first.trim_start();
    match first.as_bytes() {
        [] => None,
        [0x1f, ..] => Some("compressed data"),
        b if b.starts_with(b"<!doctype html") || b.starts_with(b"<html") || b.starts_with(b"<head") => {
            Some("an HTML page")
        }
        b if b.starts_with(b"<!--") && lower.contains("<html") => Some("an HTML page"),
        [b'{' | b'[', ..] => Some("JSON"),
        [b'<', ..] => None,
        _ if start.starts_with('\u{1f}') => Some("compressed data"),
        _ => Some("text that is not XML"),
    }
}

/// A listed object, with its key exactly as in the response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: String,
    /// In bytes; `None` if it is missing or not a number.
    pub(super) size: Option<u64>,
    pub(super) etag: Option<String>,
    pub(super) modified: Option<SystemTime>,
}

/// One page of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) objects: Vec<Listed>,
    /// The continuation token of the next page.
    pub(super) next: Option<String>,
    /// Whether the store marks this page as the last, even if it names a next one.
    pub(super) last: bool,
    /// Whether the store says that the keys are percent-encoded.
    pub(super) encoded: bool,
}

/// Parses a page of a listing.
pub(super) fn page(body: &[u8]) -> Result<Page, ParseError> {
    let root = Element::expect(body, "ListBucketResult")?;
    let mut objects = Vec::new();
    for entry in root.children("Contents") {
        // White space around a key may be part of it.
        let key = entry.children("Key").map(|child| child.text.as_str()).find(|key| !key.is_empty());
        let Some(key) = key else { return Err(ParseError::NotS3("an object without a key".into())) };
        objects.push(Listed {
            key: key.to_string(),
            size: entry.text("Size").and_then(|text| text.parse().ok()),
            etag: entry.text("ETag").map(String::from),
            modified: entry.text("LastModified").and_then(time),
        });
    }
    let truncated = root.text("IsTruncated").map(|text| text.eq_ignore_ascii_case("true") || text == "1");
    let next = root.text("NextContinuationToken").map(String::from);
    let listed = objects.len() as u64 + root.children("CommonPrefixes").count() as u64;
    let counted = root.text("KeyCount").and_then(|text| text.parse::<u64>().ok());
    if counted.is_some_and(|counted| counted > listed) || (truncated == Some(true) && next.is_none()) {
        return Err(ParseError::Truncated);
    }
    let encoded = root.text("EncodingType").is_some_and(|text| text.eq_ignore_ascii_case("url"));
    Ok(Page { objects, last: truncated == Some(false), next, encoded })
}

/// An uploaded part of a multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// From 1.
    pub number: i32,
    /// As the store returned it.
    pub etag: String,
    /// Size in bytes.
    pub size: u64,
    /// Its checksum, if the store returned one: completing the upload must repeat it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc32: Option<String>,
}

/// Parses the id of a new multipart upload; `None` if there is none. `rclone serve s3` gives the root element another name.
pub(super) fn upload_id(body: &[u8]) -> Result<Option<String>, ParseError> {
    let root = match Element::parse(body)? {
        root if root.name == "InitiateMultipartUpload" => root,
        root => root.named("InitiateMultipartUploadResult")?,
    };
    Ok(root.text("UploadId").map(String::from))
}

/// Parses a page of an upload's parts, and the marker of the next page.
pub(super) fn parts(body: &[u8]) -> Result<(Vec<Part>, Option<String>), ParseError> {
    let root = Element::expect(body, "ListPartsResult")?;
    let part = |entry: &Element| {
        Some(Part {
            number: entry.text("PartNumber")?.parse().ok()?,
            etag: entry.text("ETag")?.to_string(),
            size: entry.text("Size")?.parse().ok()?,
            crc32: entry.text("ChecksumCRC32").map(String::from),
        })
    };
    let parts = root.children("Part").filter_map(part).collect();
    let truncated = root.text("IsTruncated").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    match (truncated, root.text("NextPartNumberMarker")) {
        (true, None) => Err(ParseError::Truncated),
        (true, Some(next)) => Ok((parts, Some(next.to_string()))),
        (false, _) => Ok((parts, None)),
    }
}

/// The response to a request that deletes many objects.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Deletions {
    /// Deleted keys, exactly as in the response.
    pub(super) deleted: Vec<String>,
    /// Keys that could not be deleted, and why.
    pub(super) refused: Vec<(String, Refusal)>,
}

/// Parses which objects were deleted.
pub(super) fn deletions(body: &[u8]) -> Result<Deletions, ParseError> {
    let root = Element::expect(body, "DeleteResult")?;
    // White space around a key may be part of it.
    let key = |entry: &Element| entry.children("Key").map(|child| child.text.clone()).find(|key| !key.is_empty());
    let refusal = |entry: &Element| {
        let text = |name| entry.text(name).map(String::from);
        Refusal { code: text("Code"), message: text("Message").unwrap_or_default(), ..Refusal::default() }
    };
    Ok(Deletions {
        deleted: root.children("Deleted").filter_map(key).collect(),
        refused: root.children("Error").filter_map(|entry| Some((key(entry)?, refusal(entry)))).collect(),
    })
}

/// An unfinished multipart upload, with its key exactly as in the response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedUpload {
    pub(super) key: String,
    pub(super) id: String,
    pub(super) started: Option<SystemTime>,
}

/// One page of the unfinished multipart uploads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UploadsPage {
    pub(super) uploads: Vec<ListedUpload>,
    /// The markers of the next page: a key, and an upload of it.
    pub(super) next: Option<(String, String)>,
    /// Whether the store says that the keys are percent-encoded.
    pub(super) encoded: bool,
}

/// Parses a page of the unfinished multipart uploads.
pub(super) fn uploads(body: &[u8]) -> Result<UploadsPage, ParseError> {
    let root = Element::expect(body, "ListMultipartUploadsResult")?;
    let upload = |entry: &Element| {
        Some(ListedUpload {
            key: entry.children("Key").map(|child| child.text.clone()).find(|key| !key.is_empty())?,
            id: entry.text("UploadId")?.to_string(),
            started: entry.text("Initiated").and_then(time),
        })
    };
    let uploads = root.children("Upload").filter_map(upload).collect();
    let truncated = root.text("IsTruncated").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let next = match (truncated, root.text("NextKeyMarker")) {
        (true, None) => return Err(ParseError::Truncated),
        (true, Some(key)) => Some((key.into(), root.text("NextUploadIdMarker").unwrap_or_default().into())),
        (false, _) => None,
    };
    let encoded = root.text("EncodingType").is_some_and(|text| text.eq_ignore_ascii_case("url"));
    Ok(UploadsPage { uploads, next, encoded })
}

/// Parses whether a bucket keeps earlier versions of its objects.
pub(super) fn is_versioned(body: &[u8]) -> Result<bool, ParseError> {
    let root = Element::expect(body, "VersioningConfiguration")?;
    // With versioning suspended, the existing versions stay, but no new ones are kept.
    Ok(root.text("Status").is_some_and(|status| status.eq_ignore_ascii_case("enabled")))
}

/// Reads when the parts on a page arrived, and the marker of the next page.
pub(super) fn part_times(body: &[u8]) -> Result<(Vec<SystemTime>, Option<String>), ParseError> {
    let (_, next) = parts(body)?;
    let root = Element::expect(body, "ListPartsResult")?;
    let times = root.children("Part").filter_map(|entry| entry.text("LastModified").and_then(time)).collect();
    Ok((times, next))
}

/// Returns the refusal in a body that was sent with a success status; `None` if it is something else.
pub(super) fn find_refusal(body: &[u8]) -> Option<Refusal> {
    let is_xml = body.trim_ascii_start().starts_with(b"<");
    let root = is_xml.then(|| Element::parse(body).ok()).flatten()?;
    (root.name() == "Error").then(|| Refusal::from_xml(&root))
}

/// A store's reason for refusing a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Option<String>,
    pub(super) message: String,
    /// The region that the bucket is in.
    pub(super) region: Option<String>,
    /// The host that answers for the bucket.
    pub(super) endpoint: Option<String>,
    /// The storage class of an archived object.
    pub(super) class: Option<String>,
    /// Describes the body if it does not come from a store.
    pub(super) foreign: Option<String>,
}

impl Refusal {
    /// Parses the body of an error response. A truncated or unknown body yields whatever could be parsed.
    pub(super) fn parse(body: &[u8]) -> Refusal {
        let text = String::from_utf8_lossy(body);
        if let Some(refusal) = Refusal::from_json(&text) {
            return refusal;
        }
        match Element::parse(body) {
            Ok(root) => Refusal::from_xml(&root),
            Err(why) => match (between(&text, "Code"), why) {
                (Some(code), _) => Refusal {
                    code: Some(code),
                    message: between(&text, "Message").unwrap_or_default(),
                    region: between(&text, "Region"),
                    ..Refusal::default()
                },
                (None, ParseError::NotS3(what)) => Refusal { foreign: Some(what), ..Refusal::default() },
                (None, ParseError::Truncated) => Refusal::default(),
            },
        }
    }

    /// Parses the `Error` element of an XML document, which may be its root or a child of the root.
    pub(super) fn from_xml(root: &Element) -> Refusal {
        let error = match root.name.as_str() {
            "Error" => root,
            _ => match root.children("Error").next().or_else(|| root.children("Errors").next()) {
                Some(inner) => inner,
                None => {
                    return Refusal { foreign: Some(format!("<{}>", root.name)), ..Refusal::default() };
                }
            },
        };
        let text = |name| error.text(name).map(String::from);
        Refusal {
            code: text("Code"),
            message: text("Message").unwrap_or_default(),
            region: text("Region"),
            endpoint: text("Endpoint"),
            class: text("StorageClass"),
            foreign: None,
        }
    }

    /// Parses a JSON error, which some stores and gateways send.
    fn from_json(text: &str) -> Option<Refusal> {
        let value: serde_json::Value = serde_json::from_str(text).ok()?;
        let field = |names: [&str; 2]| {
            let found = names.into_iter().find_map(|name| value[name].as_str());
            found.map(String::from)
        };
        let code = field(["code", "Code"])?;
        Some(Refusal {
            code: Some(code),
            message: field(["message", "Message"]).unwrap_or_default(),
            region: field(["region", "Region"]),
            ..Refusal::default()
        })
    }
}

/// Returns the text of an element in truncated XML.
fn between(text: &str, name: &str) -> Option<String> {
    let rest = text.split_once(&format!("<{name}>"))?.1;
    let found = rest.split_once(&format!("</{name}>"))?.0.trim();
    (!found.is_empty() && !found.contains('<')).then(|| found.to_string())
}

/// Parses a time as stores write it: in ISO 8601, or in the format of HTTP headers.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    let parsed = text.parse::<jiff::Timestamp>().ok();
    let parsed = parsed.or_else(|| Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp()));
    let parsed = parsed?;
    let (seconds, rest) = (u64::try_from(parsed.as_second()).ok()?, parsed.subsec_nanosecond().unsigned_abs());
    SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::new(seconds, rest))
}

/// Decodes percent-encoding and leaves invalid sequences as they are; `None` if the result is not UTF-8.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    Some(percent_decode_str(text).decode_utf8().ok()?.into_owned())
}

/// Decodes a listed key to the form used in requests; `None` if it does not start with `prefix`.
///
/// Stores percent-encode in different ways when requested to: a space becomes `%20` or `+`, and a `+` becomes `%2B` or
/// stays. In this tool's keys, only the prefix can contain a space. Some stores encode without being requested to: `%2F`
/// or `%40` shows that, since this tool's keys never contain either.
pub(super) fn key(listed: &str, encoded: bool, prefix: &str) -> Option<String> {
    let is_encoded_anyway = !encoded && (!listed.starts_with(prefix) || has_encoded_separator(listed));
    if !encoded && !is_encoded_anyway {
        return Some(listed.to_string());
    }
    let decoded = percent_decoded(listed).unwrap_or_else(|| listed.to_string());
    if decoded.starts_with(prefix) {
        return Some(decoded);
    }
    // The spaces in the prefix are encoded as `+`.
    let with_spaces = percent_decoded(&listed.replace('+', "%20")).filter(|key| key.starts_with(prefix));
    if let Some(with_spaces) = with_spaces {
        let rest_length = with_spaces.len().checked_sub(prefix.len())?;
        let rest = decoded.len().checked_sub(rest_length).and_then(|at| decoded.get(at..))?;
        return Some(format!("{prefix}{rest}"));
    }
    // Some stores say that they encode, and do not.
    listed.starts_with(prefix).then(|| listed.to_string())
}

fn has_encoded_separator(key: &str) -> bool {
    let upper = key.to_ascii_uppercase();
    upper.contains("%2F") || upper.contains("%40")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
        <Name>b</Name><Prefix/><KeyCount>2</KeyCount><IsTruncated>false</IsTruncated>\
        <Contents><Key>refs/a &amp; b</Key><LastModified>yesterday</LastModified><ETag>&quot;0a&quot;</ETag><Size>40</Size></Contents>\
        <Contents><Key>refs/&#x1b;c</Key><LastModified>2024-01-02T03:04:05.000Z</LastModified><Size>-1</Size></Contents>\
        </ListBucketResult>";

    #[test]
    fn pages_are_parsed_and_malformed_dates_are_ignored() {
        let page = page(COMPLETE.as_bytes()).unwrap();
        assert_eq!((page.next.as_deref(), page.last, page.encoded), (None, true, false));
        assert_eq!((page.objects[0].key.as_str(), page.objects[0].size), ("refs/a & b", Some(40)));
        assert_eq!((page.objects[0].etag.as_deref(), page.objects[0].modified), (Some("\"0a\""), None));
        assert_eq!((page.objects[1].key.as_str(), page.objects[1].size), ("refs/\u{1b}c", None));
        assert!(page.objects[1].modified.is_some());
    }

    #[test]
    fn truncated_pages_are_errors() {
        for length in 0..COMPLETE.len() {
            assert!(page(&COMPLETE.as_bytes()[..length]).is_err(), "{}", &COMPLETE[..length]);
        }
        let with = |from: &str, to: &str| page(COMPLETE.replacen(from, to, 1).as_bytes());
        assert_eq!(with("<KeyCount>2", "<KeyCount>3"), Err(ParseError::Truncated));
        assert_eq!(with("<IsTruncated>false", "<IsTruncated>true"), Err(ParseError::Truncated));
        let more =
            with("<IsTruncated>false</IsTruncated>", "<NextContinuationToken>t</NextContinuationToken>").unwrap();
        assert_eq!((more.next.as_deref(), more.last), (Some("t"), false));
        assert!(matches!(with("</Contents>", "</Content>"), Err(ParseError::NotS3(_))));
    }

    #[test]
    fn responses_not_from_a_store_are_described() {
        for (body, what) in [
            ("<!DOCTYPE html><html></html>", "an HTML page"),
            ("\n<html><body>log in", "an HTML page"),
            ("<?xml version=\"1.0\"?><!DOCTYPE html PUBLIC \"x\"><html/>", "an HTML page"),
            ("{\"ok\":true}", "JSON"),
            ("hello", "text that is not XML"),
            ("<Other/>", "<Other> instead of <ListBucketResult>"),
            ("\u{1f}\u{8b}\u{8}", "compressed data"),
        ] {
            assert_eq!(page(body.as_bytes()), Err(ParseError::NotS3(what.into())), "{body}");
        }
        assert_eq!(page(b""), Err(ParseError::Truncated));
        assert_eq!(page(b" \n"), Err(ParseError::Truncated));
    }

    #[test]
    fn deleted_and_refused_keys_are_parsed() {
        let text = "<DeleteResult xmlns=\"x\"><Deleted><Key>blobs/a &amp; b</Key></Deleted><Error><Key>blobs/c</Key>\
                    <Code>AccessDenied</Code><Message>WORM</Message></Error></DeleteResult>";
        let read = deletions(text.as_bytes()).unwrap();
        assert_eq!(read.deleted, ["blobs/a & b"]);
        assert_eq!((read.refused[0].0.as_str(), read.refused[0].1.code.as_deref()), ("blobs/c", Some("AccessDenied")));
        for length in 0..text.len() {
            assert!(deletions(&text.as_bytes()[..length]).is_err());
        }
        assert_eq!(deletions(b"<DeleteResult/>"), Ok(Deletions::default()));
    }

    #[test]
    fn unfinished_uploads_are_parsed_page_by_page() {
        let text = "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>blobs/a</NextKeyMarker>\
                    <NextUploadIdMarker>1</NextUploadIdMarker><Upload><Key>blobs/a</Key><UploadId>1</UploadId>\
                    <Initiated>2024-01-02T03:04:05.000Z</Initiated></Upload></ListMultipartUploadsResult>";
        let page = uploads(text.as_bytes()).unwrap();
        assert_eq!((page.uploads.len(), page.next), (1, Some(("blobs/a".into(), "1".into()))));
        assert!(page.uploads[0].started.is_some());
        let truncated = text.replace("<NextKeyMarker>blobs/a</NextKeyMarker>", "");
        assert_eq!(uploads(truncated.as_bytes()), Err(ParseError::Truncated));
        assert_eq!(uploads(text.replace(">true<", ">false<").as_bytes()).unwrap().next, None);
    }

    #[test]
    fn only_an_enabled_bucket_keeps_versions() {
        let of = |status: &str| {
            is_versioned(format!("<VersioningConfiguration>{status}</VersioningConfiguration>").as_bytes())
        };
        assert_eq!(of("<Status>Enabled</Status>"), Ok(true));
        assert_eq!(of("<Status>Suspended</Status>"), Ok(false));
        assert_eq!(of(""), Ok(false));
        assert!(is_versioned(b"<Error/>").is_err());
    }

    #[test]
    fn refusals_are_parsed_from_xml_and_json() {
        let parse = |text: &str| Refusal::parse(text.as_bytes());
        let xml = parse("<Error><Code>InvalidObjectState</Code><StorageClass>GLACIER</StorageClass></Error>");
        assert_eq!((xml.code.as_deref(), xml.class.as_deref()), (Some("InvalidObjectState"), Some("GLACIER")));
        let nested = parse("<ErrorResponse><Error><Code>A</Code><Message>m</Message></Error></ErrorResponse>");
        assert_eq!((nested.code.as_deref(), nested.message.as_str()), (Some("A"), "m"));
        assert_eq!(parse("{\"code\":\"unauthorized\",\"message\":\"no\"}").code.as_deref(), Some("unauthorized"));
        let truncated = parse("<Error><Code>SlowDown</Code><Message>a & b</Message><Host");
        assert_eq!((truncated.code.as_deref(), truncated.message.as_str()), (Some("SlowDown"), "a & b"));
        assert_eq!(parse("<html>").foreign.as_deref(), Some("an HTML page"));
        assert_eq!(parse("{\"detail\":1}").foreign.as_deref(), Some("JSON"));
        assert_eq!(parse(""), Refusal::default());
    }

    #[test]
    fn keys_are_decoded_where_they_are_encoded() {
        for (listed, encoded, prefix, expected) in [
            ("refs/a/v1+cu", false, "refs", Some("refs/a/v1+cu")),
            ("refs/a/v1+cu", true, "refs", Some("refs/a/v1+cu")),
            ("refs/a/v1%2Bcu", true, "refs", Some("refs/a/v1+cu")),
            ("my+team/refs/v1%2B", true, "my team/refs", Some("my team/refs/v1+")),
            ("my+team/refs/v1+2", true, "my team/", Some("my team/refs/v1+2")),
            ("my%20team/a", true, "my team/", Some("my team/a")),
            ("refs/%1B", true, "refs", Some("refs/\u{1b}")),
            ("manifests%2Fo__n%40c.json", false, "manifests/", Some("manifests/o__n@c.json")),
            ("manifests/o__n%40c.json", false, "manifests/", Some("manifests/o__n@c.json")),
            ("refs/100%", false, "refs", Some("refs/100%")),
            // They say that it is encoded, and it is not.
            ("a+%41 100%/refs/x", true, "a+%41 100%/", Some("a+%41 100%/refs/x")),
            ("a+%41/refs/v1+2", true, "a+%41/", Some("a+%41/refs/v1+2")),
            ("other/x", false, "refs", None),
            ("other/x", true, "refs", None),
        ] {
            assert_eq!(key(listed, encoded, prefix).as_deref(), expected, "{listed}");
        }
    }
}
