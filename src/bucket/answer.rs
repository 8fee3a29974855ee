//! Reading what a store answers in XML. An answer is whole or it is an error: a body that ends in the middle, has
//! another root or is no XML at all never counts as a shorter one. What nobody needs, such as an odd date, is no reason
//! to refuse it.

use std::time::SystemTime;

use percent_encoding::percent_decode_str;
use quick_xml::Reader;
use quick_xml::events::Event;

use super::client::Part;

/// Elements below each other that are followed. S3's answers have three.
const DEEPEST: usize = 16;

/// An element with what is in it.
#[derive(Debug, Default)]
pub(super) struct Element {
    name: String,
    text: String,
    children: Vec<Element>,
}

/// Why a body is not the answer that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It ends before the answer does.
    Cut,
    /// It is none of S3's; says what it is instead.
    Foreign(String),
}

impl Element {
    /// The document in a body.
    pub(super) fn parse(body: &[u8]) -> Result<Element, Unreadable> {
        let text = decoded(body);
        let start = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        if start.is_empty() {
            return Err(Unreadable::Cut);
        }
        if let Some(what) = other_kind(start) {
            return Err(Unreadable::Foreign(what.into()));
        }
        let mut reader = Reader::from_str(start);
        // Some stores write what people have typed as it is.
        reader.config_mut().allow_dangling_amp = true;
        let mut open: Vec<Element> = Vec::new();
        let mut root: Option<Element> = None;
        loop {
            let event = match reader.read_event() {
                Ok(event) => event,
                Err(quick_xml::Error::Syntax(_)) => return Err(Unreadable::Cut),
                Err(_) => return Err(Unreadable::Foreign("XML that cannot be read".into())),
            };
            match event {
                Event::Start(tag) if root.is_none() && open.len() < DEEPEST => {
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
                        return Err(Unreadable::Foreign("XML that cannot be read".into()));
                    };
                    match open.last_mut() {
                        Some(parent) => parent.children.push(element),
                        None => root = Some(element),
                    }
                }
                Event::Text(text) => add(&mut open, &String::from_utf8_lossy(&text)),
                Event::CData(text) => add(&mut open, &String::from_utf8_lossy(&text)),
                Event::GeneralRef(reference) => {
                    let meant = match reference.resolve_char_ref() {
                        Ok(Some(c)) => Some(c),
                        _ => named(&reference),
                    };
                    match meant {
                        Some(c) => add(&mut open, c.encode_utf8(&mut [0; 4])),
                        None => add(&mut open, &format!("&{};", String::from_utf8_lossy(&reference))),
                    }
                }
                Event::Start(_) | Event::Empty(_) => {
                    return Err(Unreadable::Foreign("XML that cannot be read".into()));
                }
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) | Event::DocType(_) => {}
                Event::Eof => return root.filter(|_| open.is_empty()).ok_or(Unreadable::Cut),
            }
        }
    }

    /// The document in a body, whose root must be this one.
    pub(super) fn expect(body: &[u8], root: &str) -> Result<Element, Unreadable> {
        let element = Element::parse(body)?;
        match element.name == root {
            true => Ok(element),
            false => Err(Unreadable::Foreign(format!("<{}> where <{root}> belongs", element.name))),
        }
    }

    /// The root's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn children<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Element> {
        let name = name.to_string();
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text of a child, without white space around it; `None` when it is empty or not there.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.children(name).map(|child| child.text.trim()).find(|text| !text.is_empty())
    }
}

fn add(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

/// The characters that XML gives names.
fn named(reference: &[u8]) -> Option<char> {
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

/// UTF-8, or UTF-16 with its mark.
fn decoded(body: &[u8]) -> String {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    };
    match body {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        body => String::from_utf8_lossy(body).into_owned(),
    }
}

/// What a body is that is surely no XML of a store, in words.
pub(super) fn other_kind(text: &str) -> Option<&'static str> {
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
        _ => Some("text that is no XML"),
    }
}

/// A listed object, with the key as it stands in the answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: String,
    /// In bytes; `None` where there is no such number.
    pub(super) size: Option<u64>,
    pub(super) etag: Option<String>,
    pub(super) modified: Option<SystemTime>,
}

/// One page of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) objects: Vec<Listed>,
    /// Where the next page begins.
    pub(super) next: Option<String>,
    /// Whether the store says that this was all, whatever it says of a next page.
    pub(super) last: bool,
    /// Whether the store says that keys are percent-encoded.
    pub(super) encoded: bool,
}

/// Reads a page of a listing.
pub(super) fn page(body: &[u8]) -> Result<Page, Unreadable> {
    let root = Element::expect(body, "ListBucketResult")?;
    let mut objects = Vec::new();
    for entry in root.children("Contents") {
        // White space around a key may be its own.
        let key = entry.children("Key").map(|child| child.text.as_str()).find(|key| !key.is_empty());
        let Some(key) = key else { return Err(Unreadable::Foreign("an object without a key".into())) };
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
        return Err(Unreadable::Cut);
    }
    let encoded = root.text("EncodingType").is_some_and(|text| text.eq_ignore_ascii_case("url"));
    Ok(Page { objects, last: truncated == Some(false), next, encoded })
}

/// Reads a page of the parts of an upload, and the marker of the next one.
pub(super) fn parts(body: &[u8]) -> Result<(Vec<Part>, Option<String>), Unreadable> {
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
        (true, None) => Err(Unreadable::Cut),
        (true, Some(next)) => Ok((parts, Some(next.to_string()))),
        (false, _) => Ok((parts, None)),
    }
}

/// What a store answers to a request that deletes many objects.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Deletions {
    /// Keys that are gone, as they stand in the answer.
    pub(super) deleted: Vec<String>,
    /// Keys that could not be deleted, and why.
    pub(super) refused: Vec<(String, Refusal)>,
}

/// Reads which objects were deleted.
pub(super) fn deletions(body: &[u8]) -> Result<Deletions, Unreadable> {
    let root = Element::expect(body, "DeleteResult")?;
    // White space around a key may be its own.
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

/// An unfinished multipart upload, with the key as it stands in the answer.
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
    /// Where the next page begins: a key and an upload of it.
    pub(super) next: Option<(String, String)>,
    /// Whether the store says that keys are percent-encoded.
    pub(super) encoded: bool,
}

/// Reads a page of the unfinished multipart uploads.
pub(super) fn uploads(body: &[u8]) -> Result<UploadsPage, Unreadable> {
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
        (true, None) => return Err(Unreadable::Cut),
        (true, Some(key)) => Some((key.into(), root.text("NextUploadIdMarker").unwrap_or_default().into())),
        (false, _) => None,
    };
    let encoded = root.text("EncodingType").is_some_and(|text| text.eq_ignore_ascii_case("url"));
    Ok(UploadsPage { uploads, next, encoded })
}

/// Reads whether a bucket keeps the earlier versions of its objects.
pub(super) fn is_versioned(body: &[u8]) -> Result<bool, Unreadable> {
    let root = Element::expect(body, "VersioningConfiguration")?;
    // A suspended one keeps what it has.
    Ok(root.text("Status").is_some_and(|status| status.eq_ignore_ascii_case("enabled")))
}

/// What a store says of a request that it refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Option<String>,
    pub(super) message: String,
    /// The region that the bucket is in.
    pub(super) region: Option<String>,
    /// The host that answers for the bucket.
    pub(super) endpoint: Option<String>,
    /// Of an object that cannot be read as it is.
    pub(super) class: Option<String>,
    /// What it is instead, when it is no refusal of a store.
    pub(super) foreign: Option<String>,
}

impl Refusal {
    /// Reads the body of an answer that is no success. One that is cut, or of another kind, gives what it gives.
    pub(super) fn read(body: &[u8]) -> Refusal {
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
                (None, Unreadable::Foreign(what)) => Refusal { foreign: Some(what), ..Refusal::default() },
                (None, Unreadable::Cut) => Refusal::default(),
            },
        }
    }

    /// The `Error` of an XML document, which may be its root or be in it.
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

    /// Some stores and gateways answer in JSON.
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

/// What stands in an element of a text that is no whole XML.
fn between(text: &str, name: &str) -> Option<String> {
    let rest = text.split_once(&format!("<{name}>"))?.1;
    let found = rest.split_once(&format!("</{name}>"))?.0.trim();
    (!found.is_empty() && !found.contains('<')).then(|| found.to_string())
}

/// A time as stores write it: ISO 8601, or the form of HTTP headers.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    let parsed = text.parse::<jiff::Timestamp>().ok();
    let parsed = parsed.or_else(|| Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp()));
    let parsed = parsed?;
    let (seconds, rest) = (u64::try_from(parsed.as_second()).ok()?, parsed.subsec_nanosecond().unsigned_abs());
    SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::new(seconds, rest))
}

/// Undoes percent-encoding; what is none stays as it is. `None` when the result is not UTF-8.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    Some(percent_decode_str(text).decode_utf8().ok()?.into_owned())
}

/// A key as it is named in requests, of one that was listed below `prefix`; `None` when it is not below it.
///
/// Stores that percent-encode when they are asked to do it in different ways: a space is `%20` or `+`, and a `+` is
/// `%2B` or itself. No key of this tool has a space but for its prefix. Some stores encode unasked: a `%2F` or `%40`
/// is that, since no key of this tool has them.
pub(super) fn key(listed: &str, encoded: bool, prefix: &str) -> Option<String> {
    let unasked = !encoded && (!listed.starts_with(prefix) || has_encoded_separator(listed));
    if !encoded && !unasked {
        return Some(listed.to_string());
    }
    let decoded = percent_decoded(listed).unwrap_or_else(|| listed.to_string());
    if decoded.starts_with(prefix) {
        return Some(decoded);
    }
    // The prefix's spaces stand as `+`.
    let spaces = percent_decoded(&listed.replace('+', "%20"))?;
    let rest_length = spaces.len().checked_sub(prefix.len())?;
    let rest = decoded.len().checked_sub(rest_length).and_then(|at| decoded.get(at..))?;
    spaces.starts_with(prefix).then(|| format!("{prefix}{rest}"))
}

fn has_encoded_separator(key: &str) -> bool {
    let upper = key.to_ascii_uppercase();
    upper.contains("%2F") || upper.contains("%40")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
        <Name>b</Name><Prefix/><KeyCount>2</KeyCount><IsTruncated>false</IsTruncated>\
        <Contents><Key>refs/a &amp; b</Key><LastModified>yesterday</LastModified><ETag>&quot;0a&quot;</ETag><Size>40</Size></Contents>\
        <Contents><Key>refs/&#x1b;c</Key><LastModified>2024-01-02T03:04:05.000Z</LastModified><Size>-1</Size></Contents>\
        </ListBucketResult>";

    #[test]
    fn a_page_is_read_and_odd_dates_do_not_matter() {
        let page = page(WHOLE.as_bytes()).unwrap();
        assert_eq!((page.next.as_deref(), page.last, page.encoded), (None, true, false));
        assert_eq!((page.objects[0].key.as_str(), page.objects[0].size), ("refs/a & b", Some(40)));
        assert_eq!((page.objects[0].etag.as_deref(), page.objects[0].modified), (Some("\"0a\""), None));
        assert_eq!((page.objects[1].key.as_str(), page.objects[1].size), ("refs/\u{1b}c", None));
        assert!(page.objects[1].modified.is_some());
    }

    #[test]
    fn whatever_is_cut_off_is_no_page() {
        for length in 0..WHOLE.len() {
            assert!(page(&WHOLE.as_bytes()[..length]).is_err(), "{}", &WHOLE[..length]);
        }
        let with = |from: &str, to: &str| page(WHOLE.replacen(from, to, 1).as_bytes());
        assert_eq!(with("<KeyCount>2", "<KeyCount>3"), Err(Unreadable::Cut));
        assert_eq!(with("<IsTruncated>false", "<IsTruncated>true"), Err(Unreadable::Cut));
        let more =
            with("<IsTruncated>false</IsTruncated>", "<NextContinuationToken>t</NextContinuationToken>").unwrap();
        assert_eq!((more.next.as_deref(), more.last), (Some("t"), false));
        assert!(matches!(with("</Contents>", "</Content>"), Err(Unreadable::Foreign(_))));
    }

    #[test]
    fn what_is_no_answer_of_a_store_is_named() {
        for (body, what) in [
            ("<!DOCTYPE html><html></html>", "an HTML page"),
            ("\n<html><body>log in", "an HTML page"),
            ("<?xml version=\"1.0\"?><!DOCTYPE html PUBLIC \"x\"><html/>", "an HTML page"),
            ("{\"ok\":true}", "JSON"),
            ("hello", "text that is no XML"),
            ("<Other/>", "<Other> where <ListBucketResult> belongs"),
            ("\u{1f}\u{8b}\u{8}", "compressed data"),
        ] {
            assert_eq!(page(body.as_bytes()), Err(Unreadable::Foreign(what.into())), "{body}");
        }
        assert_eq!(page(b""), Err(Unreadable::Cut));
        assert_eq!(page(b" \n"), Err(Unreadable::Cut));
    }

    #[test]
    fn each_deleted_or_refused_key_is_read() {
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
    fn unfinished_uploads_are_read_page_by_page() {
        let text = "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>blobs/a</NextKeyMarker>\
                    <NextUploadIdMarker>1</NextUploadIdMarker><Upload><Key>blobs/a</Key><UploadId>1</UploadId>\
                    <Initiated>2024-01-02T03:04:05.000Z</Initiated></Upload></ListMultipartUploadsResult>";
        let page = uploads(text.as_bytes()).unwrap();
        assert_eq!((page.uploads.len(), page.next), (1, Some(("blobs/a".into(), "1".into()))));
        assert!(page.uploads[0].started.is_some());
        let cut = text.replace("<NextKeyMarker>blobs/a</NextKeyMarker>", "");
        assert_eq!(uploads(cut.as_bytes()), Err(Unreadable::Cut));
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
    fn refusals_are_read_from_xml_and_json() {
        let read = |text: &str| Refusal::read(text.as_bytes());
        let xml = read("<Error><Code>InvalidObjectState</Code><StorageClass>GLACIER</StorageClass></Error>");
        assert_eq!((xml.code.as_deref(), xml.class.as_deref()), (Some("InvalidObjectState"), Some("GLACIER")));
        let nested = read("<ErrorResponse><Error><Code>A</Code><Message>m</Message></Error></ErrorResponse>");
        assert_eq!((nested.code.as_deref(), nested.message.as_str()), (Some("A"), "m"));
        assert_eq!(read("{\"code\":\"unauthorized\",\"message\":\"no\"}").code.as_deref(), Some("unauthorized"));
        let cut = read("<Error><Code>SlowDown</Code><Message>a & b</Message><Host");
        assert_eq!((cut.code.as_deref(), cut.message.as_str()), (Some("SlowDown"), "a & b"));
        assert_eq!(read("<html>").foreign.as_deref(), Some("an HTML page"));
        assert_eq!(read("{\"detail\":1}").foreign.as_deref(), Some("JSON"));
        assert_eq!(read(""), Refusal::default());
    }

    #[test]
    fn keys_are_decoded_where_they_are_encoded() {
        for (listed, encoded, prefix, key_is) in [
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
            ("other/x", false, "refs", None),
            ("other/x", true, "refs", None),
        ] {
            assert_eq!(key(listed, encoded, prefix).as_deref(), key_is, "{listed}");
        }
    }
}
