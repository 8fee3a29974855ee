//! Responses of stores and of proxies in front of them: incomplete listings, all kinds of errors, redirects, pages from
//! other servers; and the configuration of the AWS tools.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::cache::Revision;
use crate::harness::machine::Machine;
use crate::harness::scripted::{Objects, Reply, Request, Scripted, entry, list, listing, read};
use crate::harness::store::BUCKET;
use crate::harness::{tls_file, visible, weights};

/// Publishes a revision.
fn publish(store: &Scripted, revision: &Revision) {
    for (key, bytes) in revision.objects() {
        store.put(&key, bytes);
    }
}

/// A store with three models.
fn store_with_three_models() -> Scripted {
    let store = Scripted::new();
    for id in ["org/one", "org/three", "org/two"] {
        publish(&store, &Revision::model(id));
    }
    store
}

/// Returns the ids that `list --remote` shows.
fn listed(machine: &Machine) -> Vec<String> {
    let shown = machine.ok_json(&["--json", "list", "--remote"]);
    let text = shown.to_string();
    ["org/one", "org/three", "org/two"].into_iter().filter(|id| text.contains(id)).map(String::from).collect()
}

fn xml(text: &str) -> Option<Reply> {
    Some(Reply::new(200, text).header("content-type", "application/xml"))
}

/// Changes the body of every listing.
fn alter_lists(
    change: impl Fn(&Request, String) -> String + Send + Sync + 'static,
) -> impl Fn(&Request, &Objects) -> Option<Reply> {
    move |request: &Request, objects: &Objects| {
        if !request.is_list() {
            return None;
        }
        let whole = String::from_utf8(list(request, objects).body).unwrap();
        xml(&change(request, whole))
    }
}

#[test]
fn a_truncated_listing_is_an_error() {
    let store = store_with_three_models();
    let machine = store.machine();
    assert_eq!(listed(&machine), ["org/one", "org/three", "org/two"]);
    let cuts: Vec<fn(&str) -> String> = vec![
        // In the middle of an entry, between two entries, and before the end.
        |text| text[..text.len() / 2].to_string(),
        |text| text.split_inclusive("</Contents>").next().unwrap().to_string(),
        |text| text.replace("</ListBucketResult>", ""),
        |text| text[..text.len() - 1].to_string(),
        // Well-formed, but incomplete according to its own fields.
        |text| text.replace("<IsTruncated>false", "<IsTruncated>true"),
        |text| text.replace("<KeyCount>", "<KeyCount>1"),
        |_| String::new(),
        |_| "<?xml version=\"1.0\"?>".to_string(),
    ];
    for cut in cuts {
        store.script(alter_lists(move |_, whole| cut(&whole)));
        machine.run(&["list", "--remote"]).refused(6, &["incomplete response"]);
        machine.run(&["pull", "org/one"]).refused(6, &["incomplete response"]);
    }
}

#[test]
fn a_continuation_token_is_followed_regardless_of_is_truncated() {
    let store = store_with_three_models();
    let machine = store.machine();
    for truncated in
        ["", "<IsTruncated>true</IsTruncated>", "<IsTruncated>TRUE</IsTruncated>", "<IsTruncated>false</IsTruncated>"]
    {
        store.script(move |request, objects| {
            if !request.is_list() {
                return None;
            }
            let prefix = request.parameter("prefix").unwrap();
            let after = request.parameter("continuation-token").unwrap_or_default();
            let left: Vec<_> = objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after).collect();
            let entries: Vec<String> = left.iter().take(1).map(|(key, bytes)| entry(key, bytes)).collect();
            let more = match left.as_slice() {
                [(key, _), _, ..] => format!("{truncated}<NextContinuationToken>{key}</NextContinuationToken>"),
                _ => "<IsTruncated>false</IsTruncated>".to_string(),
            };
            xml(&listing(&entries, &more))
        });
        assert_eq!(listed(&machine), ["org/one", "org/three", "org/two"], "{truncated}");
    }
}

#[test]
fn an_endless_listing_is_an_error() {
    let store = store_with_three_models();
    let machine = store.machine();
    let next =
        |token: &str| format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>");
    let turns = move |request: &Request| match request.parameter("continuation-token").as_deref() {
        Some("A") => "B".to_string(),
        _ => "A".to_string(),
    };
    let fresh = |request: &Request| {
        let round: u32 = request.parameter("continuation-token").and_then(|text| text.parse().ok()).unwrap_or(0);
        (round + 1).to_string()
    };
    // Alternating tokens, the same token, and a new token every time; always the same keys, or none.
    for empty in [false, true] {
        for kind in 0..3 {
            store.script(move |request, objects| {
                if !request.is_list() {
                    return None;
                }
                let token = [turns(request), "same".to_string(), fresh(request)][kind].clone();
                let prefix = request.parameter("prefix").unwrap();
                let found = objects.iter().filter(|(key, _)| key.starts_with(&prefix) && !empty);
                let entries: Vec<String> = found.map(|(key, bytes)| entry(key, bytes)).collect();
                xml(&listing(&entries, &next(&token)))
            });
            machine.run(&["list", "--remote"]).refused(6, &["no end"]);
        }
    }
    // Keys outside the requested prefix.
    store.script(alter_lists(|_, _| listing(&[entry("elsewhere/x", b"x")], "<IsTruncated>false</IsTruncated>")));
    machine.run(&["list", "--remote"]).refused(6, &["'elsewhere/x'", "not requested"]);
}

#[test]
fn listed_objects_need_a_size_but_no_valid_date() {
    let store = store_with_three_models();
    let machine = store.machine();
    for date in ["", "yesterday", "2026-01-02", "Fri, 02 Jan 2026 03:04:05 GMT", "99999-01-01T00:00:00Z"] {
        store.script(alter_lists(move |_, text| text.replace("2026-01-02T03:04:05.000Z", date)));
        assert_eq!(listed(&machine), ["org/one", "org/three", "org/two"], "{date}");
        store.script(move |request, objects| {
            let bytes = objects.get(&request.key).filter(|_| request.method == "GET" && !request.is_list())?;
            Some(read(request, bytes).header("last-modified", date))
        });
        let fresh = store.machine();
        fresh.ok(&["pull", "org/one"]);
    }
    for size in ["", "<Size></Size>", "<Size>-1</Size>", "<Size>many</Size>"] {
        store.script(alter_lists(move |_, text| {
            let at = text.find("<Size>").unwrap_or(text.len());
            let end = text.find("</Size>").map_or(text.len(), |at| at + 7);
            format!("{}{size}{}", &text[..at], &text[end..])
        }));
        machine.run(&["list", "--remote"]).refused(6, &["without a size", "org__one"]);
    }
}

/// An object of unknown size counts as neither absent nor held. Such a listing is never used.
#[test]
fn nothing_is_decided_on_a_listing_without_a_size() {
    let store = Scripted::new();
    let machine = store.machine();
    let revision = Revision::model("org/one");
    revision.write(&machine.hub());
    machine.ok(&["push"]);
    revision.age(&machine.hub(), 100);
    let (objects, cache) = (store.objects(), visible(&machine.hub()));
    for prefix in ["blobs/", "manifests/", "refs/"] {
        for size in ["", "<Size>99999999999999999999</Size>"] {
            store.script(alter_lists(move |_, text| {
                let Some((before, after)) = text.split_once(&format!("<Key>{prefix}")) else { return text };
                let (start, rest) = after.split_once("<Size>").unwrap();
                let (_, rest) = rest.split_once("</Size>").unwrap();
                format!("{before}<Key>{prefix}{start}{size}{rest}")
            }));
            let commands: [&[&str]; 8] = [
                &["push"],
                &["diff"],
                &["verify", "--remote"],
                &["remote", "du"],
                &["remote", "gc", "--grace", "0", "--yes"],
                &["remote", "rm", "org/one", "--yes"],
                &["prune", "--max-size", "0B", "--require-remote", "--yes"],
                &["pull-all"],
            ];
            for command in commands {
                let ran = machine.run(command);
                // A pull of a single repo lists only refs.
                if command[0] == "pull-all" && prefix != "refs/" {
                    assert_eq!(ran.code, 0, "{ran:#?}");
                } else {
                    assert_eq!(ran.code, 6, "{command:?} {prefix} {size}: {ran:#?}");
                    assert!(ran.stderr.contains("without a size") && ran.stderr.contains(prefix), "{ran:#?}");
                }
            }
            assert!(store.objects() == objects && visible(&machine.hub()) == cache, "{prefix} {size}");
        }
    }
}

#[test]
fn keys_are_decoded_in_every_encoding() {
    let escaped = |key: &str| {
        let code = |c: char| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_' => c.to_string(),
            c => c.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect(),
        };
        key.chars().map(code).collect::<String>()
    };
    let store = store_with_three_models();
    let odd = Revision::model("org/plus").refs(&["main", "v1.0+cu118", "refs/pr/1"]);
    publish(&store, &odd);
    store.put("manifests/\u{1b}[31m\u{7}evil", "x");
    store.put("refs/a b/\u{1}", "x");
    let all = |request: &Request, objects: &Objects, write: &dyn Fn(&str) -> String, rest: &str| {
        let prefix = request.parameter("prefix").unwrap();
        let found = objects.iter().filter(|(key, _)| key.starts_with(&prefix));
        let entries: Vec<String> = found.map(|(key, bytes)| entry(&write(key), bytes)).collect();
        xml(&listing(&entries, rest))
    };
    const LAST: &str = "<IsTruncated>false</IsTruncated>";
    const URL: &str = "<IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>";
    for encoding in 0..5 {
        store.script(move |request, objects| {
            if !request.is_list() {
                return None;
            }
            let requested = request.parameter("encoding-type").as_deref() == Some("url");
            let slashes = |key: &str| escaped(key).replace("%2F", "/");
            match encoding {
                // Requested, with AWS's and with other encodings; not requested; with raw control characters.
                0 if requested => all(request, objects, &|key| slashes(key).replace("%20", "+"), URL),
                1 if requested => all(request, objects, &|key| slashes(key).replace("%2B", "+"), URL),
                2 => all(request, objects, &escaped, LAST),
                3 => all(request, objects, &|key| key.to_string(), LAST),
                // Not supported.
                4 if requested => Some(Reply::refusal(501, "NotImplemented", "encoding-type")),
                4 => all(request, objects, &|key| key.replace(['\u{1b}', '\u{7}', '\u{1}'], "?"), LAST),
                _ => Some(Reply::refusal(500, "InternalError", "cannot be put into XML")),
            }
        });
        let machine = store.machine();
        assert_eq!(listed(&machine), ["org/one", "org/three", "org/two"], "{encoding}");
        machine.ok(&["pull", "org/plus", "-r", "v1.0+cu118"]);
        machine.ok(&["pull", "org/one"]);
    }
}

#[test]
fn servers_that_are_not_s3_stores_are_reported() {
    let store = store_with_three_models();
    let machine = store.machine();
    let html = "<!DOCTYPE html><html><title>Log in</title></html>";
    let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let page = |status| Reply::new(status, html).header("content-type", "text/html").header("server", "portal\u{202e}");
    for (reply, words) in [
        (page(200), "HTML page"),
        (page(403), "HTML page"),
        (page(401), "HTML page"),
        (page(404), "HTML page"),
        (page(511), "HTML page"),
        (Reply::new(200, "{\"status\":\"ok\"}").header("content-type", "application/json"), "JSON"),
        (Reply::new(200, "It works!").header("content-type", "text/plain"), "text/plain"),
        (Reply::new(200, "<Index><a/></Index>"), "<Index>"),
        (Reply::new(200, gzip).header("content-encoding", "gzip"), "compressed"),
        (Reply::new(200, gzip), "compressed"),
        (Reply::new(302, "").header("location", "https://login.example/here"), "https://login.example"),
        (Reply::new(307, html).header("location", "/login").header("content-type", "text/html"), "127.0.0.1"),
        (Reply::new(200, html).header("server", "MinIO Console").header("content-type", "text/html"), "console"),
    ] {
        let answer = reply.clone();
        store.script(move |_, _| Some(answer.clone()));
        for line in [&["list", "--remote"][..], &["pull", "org/one"], &["list", "--remote", "--json"]] {
            let output = machine.run(line);
            assert_eq!(output.code, 6, "{reply:?} {output:#?}");
            assert!(
                output.stderr.contains("not an S3 store") && output.stderr.contains(words),
                "{reply:?} {output:#?}"
            );
            assert!(!output.stderr.contains('\u{202e}'));
            output.nothing_internal();
        }
        // Writes get the same error.
        let answer = reply.clone();
        store.script(move |request, _| (request.method == "PUT").then(|| answer.clone()));
        let pushing = store.machine();
        Revision::model("org/new").write(&pushing.hub());
        if reply.status != 200 || words == "HTML page" {
            let output = pushing.run(&["push"]);
            assert_eq!(output.code, 6, "{reply:?} {output:#?}");
        }
    }
}

#[test]
fn a_compressing_proxy_is_not_reported_as_corruption() {
    let store = store_with_three_models();
    store.script(|request, objects| {
        assert_eq!(request.header("accept-encoding"), "identity");
        let bytes = objects.get(&request.key).filter(|_| request.key.starts_with("blobs/"))?;
        Some(Reply::new(200, &bytes[1..]).header("content-encoding", "gzip"))
    });
    let machine = store.machine();
    let output = machine.run(&["pull", "org/one"]);
    assert_eq!(output.code, 6, "{output:#?}");
    assert!(output.stderr.contains("gzip") && !output.stderr.contains("corrupt"), "{output:#?}");
}

#[test]
fn a_full_store_is_reported_once_and_stops_the_push() {
    for (status, code, message) in [
        (403, "QuotaExceeded", "The quota of the bucket is exceeded"),
        (507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold."),
        (507, "", ""),
        (403, "AccessDenied", "Cannot upload files, storage cap exceeded. See the Caps & Alerts page."),
        (500, "InternalError", "write: no space left on device"),
    ] {
        let store = Scripted::new();
        store.script(move |request, _| (request.method == "PUT").then(|| Reply::refusal(status, code, message)));
        let machine = store.machine();
        let files =
            (0..300).fold(Revision::new("model", "org/many"), |all, n| all.lfs(&format!("{n}.bin"), weights(n, 1000)));
        files.write(&machine.hub());
        let output = machine.run(&["push"]);
        assert_eq!(output.code, 1, "{output:#?}");
        assert_eq!(output.stderr.matches("no room left").count(), 1, "{output:#?}");
        let puts = store.take_seen().iter().filter(|request| request.method == "PUT").count();
        assert!(puts <= 64, "{puts} PUTs");
        // Reads still work.
        store.put("x", "y");
        assert_eq!(machine.run(&["list", "--remote"]).code, 0);
    }
}

#[test]
fn a_store_that_rejects_all_uploads_is_reported_once_and_stops_the_push() {
    // The key is part of the message, so that no two errors are identical.
    for (status, code, message, exit, expected) in [
        (403, "InvalidAccessKeyId", "no such key", 3, "does not accept the credentials"),
        (403, "AccessDenied", "no access to KEY", 3, "is not allowed to do that"),
        (403, "AccessDenied", "Object is WORM protected: KEY", 3, "a retention rule"),
        (400, "InvalidStorageClass", "not valid: KEY", 2, "storage.storage_class"),
        (405, "MethodNotAllowed", "read only", 1, "does not support this request"),
        (400, "InvalidTag", "a tag is missing", 1, "InvalidTag"),
    ] {
        let store = Scripted::new();
        store.script(move |request, _| {
            (request.method == "PUT").then(|| Reply::refusal(status, code, &message.replace("KEY", &request.key)))
        });
        let machine = store.machine();
        let files =
            (0..100).fold(Revision::new("model", "org/many"), |all, n| all.lfs(&format!("{n}.bin"), weights(n, 1000)));
        files.write(&machine.hub());
        let output = machine.run(&["push"]);
        assert_eq!(output.code, exit, "{output:#?}");
        assert_eq!(output.stderr.matches(expected).count(), 1, "{output:#?}");
        assert!(output.stderr.contains("99 more failed in the same way"), "{output:#?}");
        let puts = store.take_seen().iter().filter(|request| request.method == "PUT").count();
        assert!(puts <= 16, "{puts} PUTs for {code}");
    }
}

#[test]
fn a_rejected_listing_does_not_change_later_ones() {
    let store = store_with_three_models();
    let refused = AtomicBool::new(false);
    store.script(move |request, _| {
        let now = request.is_list() && !refused.swap(true, Ordering::Relaxed);
        now.then(|| Reply::refusal(400, "BadRequest", "An error occurred when parsing the HTTP request."))
    });
    store.machine().ok(&["pull", "org/one"]);
    let seen = store.take_seen();
    let lists: Vec<&Request> = seen.iter().filter(|request| request.is_list()).collect();
    let plain = lists.iter().filter(|request| request.parameter("encoding-type").is_none()).count();
    assert!(lists.len() > 3 && plain == 1, "{lists:#?}");
}

#[test]
fn a_wrong_size_in_a_response_loses_no_finished_parts() {
    let store = Scripted::new();
    let revision = Revision::new("model", "org/large").lfs("model.bin", weights(1, 40 << 20));
    publish(&store, &revision);
    let sent = AtomicBool::new(false);
    store.script(move |request, objects| {
        let is_fourth = request.header("range").starts_with("bytes=25165824-");
        if !is_fourth || sent.swap(true, Ordering::Relaxed) {
            return None;
        }
        let mut reply = read(request, &objects[&request.key]);
        reply.headers.retain(|(name, _)| name != "content-range");
        Some(reply.header("content-range", "bytes 25165824-33554431/50000000"))
    });
    let machine = store.machine();
    let output = machine.run(&["pull", "org/large", "--workers", "1"]);
    assert!(output.code == 5 && output.stderr.contains("wrong size"), "{output:#?}");
    store.take_seen();
    machine.ok(&["pull", "org/large", "--workers", "1"]);
    let starts = store
        .take_seen()
        .into_iter()
        .filter_map(|request| request.header("range").strip_prefix("bytes=")?.split('-').next()?.parse::<u64>().ok());
    assert!(starts.min() >= Some(24 << 20));
    revision.assert_pulled(&machine.hub());
}

#[test]
fn errors_of_the_store_are_explained() {
    let is_put = |request: &Request| request.method == "PUT";
    let is_blob_get = |request: &Request| request.method == "GET" && request.key.starts_with("blobs/");
    let is_list = |request: &Request| request.is_list();
    type When = fn(&Request) -> bool;
    type Case = (When, &'static str, u16, &'static str, &'static str, i32, &'static [&'static str]);
    let cases: [Case; 18] = [
        (is_list, "list", 403, "AccessDenied", "Access Denied: the bucket is Requester Pays", 2, &["requester_pays"]),
        (is_list, "list", 403, "RequestTimeTooSkewed", "The difference is too large", 2, &["clock"]),
        (is_list, "list", 403, "SignatureDoesNotMatch", "Signature expired: 2020 is earlier", 2, &["clock"]),
        (is_list, "list", 403, "AllAccessDisabled", "All access has been disabled", 3, &["account"]),
        (is_list, "list", 403, "AccountProblem", "There is a problem with your account", 3, &["account"]),
        (is_list, "list", 403, "UserSuspended", "", 3, &["account"]),
        (is_list, "list", 400, "ExpiredToken", "The provided token has expired.", 3, &["expired", "AWS_SESSION_TOKEN"]),
        (is_list, "list", 403, "InvalidAccessKeyId", "no such key", 3, &["does not accept the credentials"]),
        (
            is_blob_get,
            "pull",
            403,
            "InvalidObjectState",
            "not valid for the object's storage class",
            6,
            &["archived", "GLACIER"],
        ),
        (
            is_put,
            "push",
            403,
            "AccessDenied",
            "Requests must specify x-amz-server-side-encryption",
            2,
            &["storage.sse"],
        ),
        (is_put, "push", 400, "ServerSideEncryptionConfigurationNotFoundError", "", 2, &["storage.sse"]),
        (is_put, "push", 403, "KMS.DisabledException", "the key is disabled", 2, &["storage.sse_kms_key_id"]),
        (is_put, "push", 400, "KMS.NotFoundException", "Invalid keyId", 2, &["storage.sse_kms_key_id"]),
        (
            is_put,
            "push",
            403,
            "AccessDenied",
            "Object is WORM protected and cannot be overwritten",
            3,
            &["object lock"],
        ),
        (is_put, "push", 400, "InvalidRequest", "Object is under legal hold", 3, &["object lock"]),
        (is_put, "push", 400, "EntityTooLarge", "Your proposed upload exceeds the maximum", 1, &["EntityTooLarge"]),
        (
            is_put,
            "push",
            403,
            "AccessDenied",
            "not authorized to perform: s3:PutObject because of an explicit deny",
            3,
            &["policy"],
        ),
        (is_put, "push", 405, "MethodNotAllowed", "The specified method is not allowed", 1, &["MethodNotAllowed"]),
    ];
    for (applies, line, status, code, message, exit, words) in cases {
        let store = store_with_three_models();
        let machine = store.machine();
        if line == "push" {
            Revision::model("org/new").write(&machine.hub());
        }
        let (status, code, message) = (status, code.to_string(), message.to_string());
        let shown = format!("{status} {code}: {message}");
        store.script(move |request, _| match request.method.as_str() {
            "HEAD" if request.key.starts_with("blobs/") => {
                Some(Reply::new(200, "").header("x-amz-storage-class", "GLACIER"))
            }
            _ => applies(request).then(|| Reply::refusal(status, &code, &message)),
        });
        let output = match line {
            "list" => machine.run(&["list", "--remote"]),
            "pull" => machine.run(&["pull", "org/one"]),
            _ => machine.run(&["push"]),
        };
        assert_eq!(output.code, exit, "{shown} {output:#?}");
        for word in words {
            assert!(output.stderr.contains(word), "'{word}' is missing for {shown}: {}", output.stderr);
        }
        output.nothing_internal();
    }
}

#[test]
fn checksums_are_sent_once_the_store_requires_them() {
    let message =
        "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
    let store = Scripted::new();
    store.script(move |request, _| {
        let needs = request.method == "PUT" && request.header("content-md5").is_empty();
        needs.then(|| Reply::refusal(400, "InvalidRequest", message))
    });
    let machine = store.machine();
    let revision =
        Revision::model("org/name").lfs("middle.bin", weights(1, 700_000)).lfs("big.bin", weights(2, 20 << 20));
    revision.write(&machine.hub());
    let output = machine.run(&["push"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert_eq!(output.stderr.matches("wants a checksum").count(), 1, "{output:#?}");
    let seen = store.take_seen();
    for request in seen.iter().filter(|request| !request.header("content-md5").is_empty()) {
        use md5::Digest;
        let md5: [u8; 16] = md5::Md5::digest(&request.body).into();
        assert_eq!(request.header("content-md5"), aws_smithy_types::base64::encode(md5));
    }
    for file in revision.present() {
        assert!(store.objects()[&format!("blobs/{}", file.etag())] == file.bytes, "{}", file.path);
    }
}

#[test]
fn a_store_that_rejects_path_style_is_addressed_virtual_hosted() {
    let store = store_with_three_models();
    store.script(|request, _| {
        let is_virtual = request.header("host").starts_with("team-cache.oss.example");
        (!is_virtual).then(|| {
            Reply::refusal(
                403,
                "SecondLevelDomainForbidden",
                "The bucket must be addressed using OSS third level domain.",
            )
        })
    });
    let mut machine = store.machine();
    machine.set("B2_ENDPOINT", "http://oss.example");
    machine.set("HTTP_PROXY", &store.url);
    let output = machine.run(&["pull", "org/one"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert_eq!(output.stderr.matches("addressing").count(), 1, "{output:#?}");
    Revision::model("org/new").write(&machine.hub());
    machine.ok(&["push"]);
}

/// Returns the region that a request is signed for.
fn region(request: &Request) -> String {
    request.header("authorization").split('/').nth(2).unwrap_or_default().to_string()
}

#[test]
fn the_region_named_by_the_store_is_used_and_reported() {
    type Refuse = fn() -> Reply;
    let refusals: [Refuse; 4] = [
        || Reply::new(301, "").header("x-amz-bucket-region", "eu-central-9"),
        || {
            let text = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is malformed; the \
                        region 'us-east-1' is wrong; expecting 'eu-central-9'</Message><Region>eu-central-9</Region></Error>";
            Reply::new(400, text)
        },
        || {
            Reply::refusal(
                400,
                "AuthorizationHeaderMalformed",
                "the region 'us-east-1' is wrong; expecting 'eu-central-9'",
            )
        },
        || Reply::new(307, "<Error><Code>TemporaryRedirect</Code><Region>eu-central-9</Region></Error>"),
    ];
    for (number, refuse) in refusals.into_iter().enumerate() {
        let store = store_with_three_models();
        store.script(move |request, _| (region(request) != "eu-central-9").then(refuse));
        let machine = store.machine();
        Revision::model("org/new").write(&machine.hub());
        for line in [&["pull", "org/one"][..], &["push"]] {
            let output = machine.run(line);
            assert_eq!(output.code, 0, "{number} {output:#?}");
            assert_eq!(output.stderr.matches("storage.region: eu-central-9").count(), 1, "{number} {output:#?}");
        }
        machine.ok(&["doctor"]);
    }
    // Do not follow a store that always names another region.
    let store = store_with_three_models();
    store.script(|request, _| {
        let other = if region(request) == "one" { "two" } else { "one" };
        Some(Reply::new(301, "").header("x-amz-bucket-region", other))
    });
    let output = store.machine().run(&["list", "--remote"]);
    assert!(output.code == 2 && output.stderr.contains("is not in region"), "{output:#?}");
    assert!(store.take_seen().len() < 12);
}

#[test]
fn a_redirect_to_another_endpoint_is_followed() {
    for status in [301, 307] {
        let (store, other) = (Scripted::new(), store_with_three_models());
        let host = other.url.trim_start_matches("http://").to_string();
        store.script(move |_, _| {
            let text = format!("<Error><Code>PermanentRedirect</Code><Endpoint>{host}</Endpoint></Error>");
            Some(Reply::new(status, text))
        });
        let machine = store.machine();
        let output = machine.run(&["pull", "org/one"]);
        assert_eq!(output.code, 0, "{output:#?}");
        assert!(output.stderr.contains(&other.url), "{output:#?}");
        assert!(other.take_seen().iter().all(Request::is_signed));
    }
}

#[test]
fn redirected_reads_are_sent_unsigned() {
    for (number, status) in [301, 302, 303, 307, 308].into_iter().enumerate() {
        let (store, cdn) = (store_with_three_models(), Scripted::new());
        let big = Revision::model("org/big").lfs("big.bin", weights(3, 24 << 20));
        publish(&store, &big);
        let (base, copy) = (cdn.url.clone(), store.objects());
        store.script(move |request, _| {
            let is_redirected = request.method == "GET" && !request.key.is_empty();
            is_redirected
                .then(|| Reply::new(status, "").header("location", &format!("{base}/hop/{}?X-Token=t", request.key)))
        });
        cdn.script(move |request, _| match request.path.strip_prefix("/hop/") {
            // Another hop, with a relative URL.
            Some(key) => Some(Reply::new(302, "").header("location", &format!("/file/{key}"))),
            None => Some(match copy.get(request.path.strip_prefix("/file/")?) {
                Some(bytes) => read(request, bytes),
                None => Reply::new(404, "gone"),
            }),
        });
        let machine = store.machine();
        machine.ok(&["pull", "org/big"]);
        big.assert_pulled(&machine.hub());
        let seen = cdn.take_seen();
        assert!(seen.iter().any(|request| !request.header("range").is_empty()), "{number}");
        for request in &seen {
            assert!(
                !request.is_signed() && !request.headers.keys().any(|name| name.starts_with("x-amz")),
                "{request:?}"
            );
        }
    }
}

#[test]
fn redirect_loops_and_bad_redirects_are_errors() {
    let store = store_with_three_models();
    let base = store.url.clone();
    store.script(move |request, _| {
        let is_redirected = request.method == "GET" && !request.is_list();
        is_redirected.then(|| Reply::new(302, "").header("location", &format!("{base}/again?{}", request.query.len())))
    });
    let output = store.machine().run(&["pull", "org/one"]);
    assert_eq!(output.code, 6, "{output:#?}");
    assert!(output.stderr.contains("circles"), "{output:#?}");
    assert!(store.take_seen().len() < 60);
    for location in ["ftp://x/y", "nonsense", "http://[/"] {
        store.script(move |request, _| {
            (request.method == "GET" && !request.is_list()).then(|| Reply::new(302, "").header("location", location))
        });
        let output = store.machine().run(&["pull", "org/one"]);
        assert_eq!(output.code, 6, "{location} {output:#?}");
    }
}

#[test]
fn a_wrong_scheme_gets_a_hint() {
    let store = store_with_three_models();
    let mut machine = store.machine();
    let address = store.url.trim_start_matches("http://").to_string();
    for endpoint in [format!("https://{address}"), address.clone()] {
        machine.set("B2_ENDPOINT", &endpoint);
        let hint = format!("use http://{address}");
        machine.run(&["list", "--remote"]).refused(6, &[&hint]);
    }
    // The opposite case: the error pages of nginx and Go, and a server that only speaks TLS.
    machine.set("B2_ENDPOINT", &store.url);
    let hint = format!("use https://{address}");
    for page in [
        "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
        "Client sent an HTTP request to an HTTPS server.\n",
    ] {
        store.script(move |_, _| Some(Reply::new(400, page)));
        machine.run(&["list", "--remote"]).refused(6, &[&hint]);
    }
    store.script(|_, _| Some(Reply { raw: Some(vec![0x15, 3, 1, 0, 2, 2, 70]), ..Reply::default() }));
    machine.run(&["list", "--remote"]).refused(6, &[&hint]);
    let to = format!("https://{address}/x");
    store.script(move |_, _| Some(Reply::new(301, "").header("location", &to)));
    machine.run(&["list", "--remote"]).refused(6, &[&hint]);
}

/// Over plain HTTP, nothing protects a response in transit.
#[test]
fn a_damaged_status_line_is_retried() {
    for damaged in ["first", "later"] {
        let store = store_with_three_models();
        let machine = store.machine();
        let is_first = move |request: &Request| (damaged == "first") == request.is_list();
        let done = AtomicBool::new(false);
        store.script(move |request, _| {
            (is_first(request) && !done.swap(true, Ordering::Relaxed)).then(|| Reply {
                raw: Some(b"IUTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec()),
                ..Reply::default()
            })
        });
        machine.ok(&["pull-all"]);
    }
}

#[test]
fn a_completed_upload_is_verified() {
    for body in ["", "<CompleteMulti", "<html>"] {
        let store = Scripted::new();
        let machine = store.machine();
        let revision = Revision::model("org/name").lfs("big.bin", weights(2, 20 << 20));
        revision.write(&machine.hub());
        // The object was not stored, so the response alone must not count.
        store.script(move |request, _| {
            (request.method == "POST" && request.parameter("uploadId").is_some()).then(|| Reply::new(200, body))
        });
        let output = machine.run(&["push"]);
        assert!(![0, 101].contains(&output.code), "{output:#?}");
        assert!(!store.objects().contains_key(&revision.manifest_key()), "{output:#?}");
    }
}

/// As of `rclone serve s3`.
#[test]
fn another_root_element_and_a_range_with_status_200_are_understood() {
    let store = Scripted::new();
    let machine = store.machine();
    let revision = Revision::new("model", "org/large").lfs("model.bin", weights(4, 40 << 20));
    revision.write(&machine.hub());
    let failed = AtomicBool::new(false);
    store.script(move |request, objects| match request.method.as_str() {
        // An error may name an upload, too.
        "POST" if request.parameter("uploads").is_some() && !failed.swap(true, Ordering::Relaxed) => {
            xml("<Error><Code>InternalError</Code><UploadId>none</UploadId></Error>")
        }
        "POST" if request.parameter("uploads").is_some() => {
            xml("<InitiateMultipartUpload><UploadId>u1</UploadId></InitiateMultipartUpload>")
        }
        "GET" if !request.header("range").is_empty() => {
            objects.get(&request.key).map(|bytes| Reply { status: 200, ..read(request, bytes) })
        }
        _ => None,
    });
    machine.ok(&["push"]);
    let seen = store.take_seen();
    let mut parts = seen.iter().filter(|request| request.parameter("partNumber").is_some()).peekable();
    assert!(parts.peek().is_some() && parts.all(|request| request.query.contains("uploadId=u1")), "{seen:#?}");
    let reader = store.machine();
    reader.ok(&["pull", "org/large"]);
    assert!(store.take_seen().iter().any(|request| !request.header("range").is_empty()));
    revision.assert_pulled(&reader.hub());
}

/// OpenStack Swift answers like this to the slower of two concurrent writes of an object.
#[test]
fn an_upload_that_was_accepted_and_not_stored_is_sent_again() {
    let store = Scripted::new();
    let machine = store.machine();
    let revision = Revision::model("org/name").lfs("big.bin", weights(6, 20 << 20));
    revision.write(&machine.hub());
    let refused = std::sync::Mutex::new(std::collections::BTreeSet::new());
    store.script(move |request, _| {
        let is_first =
            request.method == "PUT" && refused.lock().unwrap().insert((request.path.clone(), request.query.clone()));
        let page = "<html><h1>Accepted</h1><p>The request is accepted for processing.</p></html>";
        is_first.then(|| Reply::new(200, page).header("content-type", "text/html; charset=UTF-8"))
    });
    machine.ok(&["push"]);
    let reader = store.machine();
    reader.ok(&["pull", "org/name"]);
    revision.assert_pulled(&reader.hub());
}

/// A machine whose keys come from an AWS profile.
fn with_profile(store: &Scripted, config: &str) -> Machine {
    let mut machine = store.machine();
    machine.unset("B2_APPLICATION_KEY_ID");
    machine.unset("B2_APPLICATION_KEY");
    fs::create_dir_all(machine.home().join(".aws")).unwrap();
    fs::write(machine.home().join(".aws/config"), config).unwrap();
    machine.set("AWS_EC2_METADATA_DISABLED", "true");
    machine
}

#[test]
fn an_aws_profile_can_set_the_endpoint() {
    let store = store_with_three_models();
    let url = &store.url;
    let keys = "aws_access_key_id = AKIA\naws_secret_access_key = secret\n";
    for config in [
        format!("[default]\n{keys}endpoint_url = {url}\n"),
        format!(
            "[default]\n{keys}endpoint_url = http://127.0.0.1:1\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = {url}/\n"
        ),
        format!("[profile other]\n{keys}endpoint_url = {url}\ns3 =\n  addressing_style = path\n"),
    ] {
        let mut machine = with_profile(&store, &config);
        machine.unset("B2_ENDPOINT");
        if config.contains("other") {
            machine.set("AWS_PROFILE", "other");
        }
        assert_eq!(listed(&machine).len(), 3, "{config}");
        machine.set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true");
        machine.set("AWS_ENDPOINT_URL", &store.url);
        // No request leaves the machine, not even to AWS.
        machine.set("HTTPS_PROXY", "http://127.0.0.1:1");
        let doctor = machine.run(&["doctor"]);
        assert!(!doctor.stdout.contains(url), "{doctor:#?}");
        machine.unset("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
        machine.unset("AWS_ENDPOINT_URL");
        machine.unset("HTTPS_PROXY");
        let doctor = machine.run(&["doctor"]);
        assert!(doctor.stdout.contains("from the AWS profile"), "{doctor:#?}");
        // Our own settings take precedence.
        machine.set("B2_ENDPOINT", "http://127.0.0.1:1");
        assert_eq!(machine.run(&["list", "--remote"]).code, 6, "{config}");
    }
}

#[test]
fn an_endpoint_from_a_profile_is_validated_and_never_echoed() {
    let store = store_with_three_models();
    let keys = "aws_access_key_id = AKIA\naws_secret_access_key = secret\n";
    let at = store.url.trim_start_matches("http://");
    for wrong in [
        "s3://user:SEKRIT@127.0.0.1".to_string(),
        format!("http://user:SEKRIT@{at}"),
        format!("http://{at}/?x=SEKRIT"),
        "ftp://SEKRIT".to_string(),
    ] {
        let mut machine = with_profile(&store, &format!("[default]\n{keys}endpoint_url = {wrong}\n"));
        machine.unset("B2_ENDPOINT");
        for args in [&["list", "--remote"][..], &["doctor"], &["-vv", "pull", "org/x", "--dry-run"]] {
            let output = machine.run(args);
            assert_eq!(output.code, 2, "{wrong} {args:?}: {output:#?}");
            assert!(!format!("{output:?}").contains("SEKRIT"), "{wrong} {args:?}: {output:#?}");
        }
    }
    // A bucket at the end of the URL is removed, as in our own setting.
    let bucket = BUCKET;
    let mut machine = with_profile(&store, &format!("[default]\n{keys}endpoint_url = {}/{bucket}\n", store.url));
    machine.unset("B2_ENDPOINT");
    assert_eq!(listed(&machine).len(), 3);
}

#[cfg(unix)]
#[test]
fn a_credential_process_runs_once_and_its_error_is_shown() {
    use std::os::unix::fs::PermissionsExt;
    let store = store_with_three_models();
    let machine = with_profile(&store, "");
    let script = machine.home().join("process");
    let runs = machine.home().join("runs");
    let write = |text: String| {
        fs::write(&script, format!("#!/bin/sh\necho run >> {}\n{text}\n", runs.display())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(
            machine.home().join(".aws/config"),
            format!("[default]\ncredential_process = {}\n", script.display()),
        )
        .unwrap();
    };
    // Keys without an expiration date, and with one.
    for end in ["", ", \"Expiration\": \"2099-01-01T00:00:00Z\""] {
        let _ = fs::remove_file(&runs);
        write(format!("echo '{{\"Version\": 1, \"AccessKeyId\": \"a\", \"SecretAccessKey\": \"s\"{end}}}'"));
        let fresh = listed(&machine);
        assert_eq!(fresh.len(), 3);
        assert_eq!(fs::read_to_string(&runs).unwrap(), "run\n");
        let _ = fs::remove_dir_all(machine.hub());
        machine.ok(&["pull", "org/one"]);
        assert_eq!(fs::read_to_string(&runs).unwrap(), "run\nrun\n");
    }
    write("echo first >&2; echo 'vault is sealed' >&2; exit 3".into());
    machine.run(&["list", "--remote"]).refused(3, &["vault is sealed", "credential_process"]);
    write("echo 'not json, wrong-secret'".into());
    machine.run(&["list", "--remote"]).refused(3, &["credential_process"]);
}

#[test]
fn missing_aws_credentials_are_explained() {
    let store = store_with_three_models();
    let sso = "[default]\nsso_session = corp\nsso_account_id = 1\nsso_role_name = r\n[sso-session corp]\n\
               sso_region = us-east-1\nsso_start_url = https://corp.example/start\n";
    with_profile(&store, sso).run(&["list", "--remote"]).refused(3, &["aws sso login"]);
    let mut machine = with_profile(&store, "[default]\nregion = x\n");
    machine.set("AWS_PROFILE", "nobody");
    machine.run(&["list", "--remote"]).refused(3, &["nobody", "AWS_PROFILE"]);
    let mut machine = with_profile(&store, "");
    machine.set("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token");
    machine.set("AWS_ROLE_ARN", "arn:aws:iam::1:role/r");
    machine.run(&["list", "--remote"]).refused(3, &["/nowhere/token"]);
    // No profile was chosen: the default profile is missing or has no keys, and the metadata service offers no role.
    let export = "B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY";
    let metadata = Scripted::new();
    metadata.script(|request, _| {
        let token = Reply::new(200, "token").header("x-aws-ec2-metadata-token-ttl-seconds", "600");
        Some(if request.method == "PUT" { token } else { Reply::new(404, "") })
    });
    for (config, address) in [
        ("", None),
        ("[default]\nregion = x\n", None),
        ("", Some("http://127.0.0.1:1")),
        ("[default]\nregion = x\n", Some("http://127.0.0.1:1")),
        ("", Some(metadata.url.as_str())),
    ] {
        let mut machine = with_profile(&store, config);
        if let Some(address) = address {
            machine.unset("AWS_EC2_METADATA_DISABLED");
            machine.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", address);
        }
        let output = machine.run(&["pull", "gpt2"]);
        output.refused(3, &["no credentials were found: looked in", export, "AWS_", "storage.access_key"]);
        assert!(
            !output.stderr.contains("AWS_PROFILE") && !output.stderr.contains("not enabled"),
            "{config} {address:?}: {output:#?}"
        );
    }
    // A profile was chosen, but it does not exist or has no keys.
    for (name, config, words) in [
        ("nope", "", "there is no AWS profile 'nope'"),
        ("nope", "[default]\naws_access_key_id = a\naws_secret_access_key = s\n", "there is no AWS profile 'nope'"),
        ("nope", "[profile other]\nregion = x\n", "there is no AWS profile 'nope'"),
        (
            "other",
            "[profile other]\nregion = x\n",
            "the AWS profile 'other' (AWS_PROFILE) provides none: it has no keys",
        ),
    ] {
        let mut machine = with_profile(&store, config);
        machine.set("AWS_PROFILE", name);
        machine.run(&["list", "--remote"]).refused(3, &[words, export]);
    }
    let config = "[default]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = elsewhere\n";
    with_profile(&store, config).run(&["list", "--remote"]).refused(3, &["elsewhere"]);
    // The error message of the credential provider is shown.
    let refusal = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRole</Message>\
                   </Error></ErrorResponse>";
    let service = Scripted::new();
    service.script(move |_, _| Some(Reply::new(403, refusal).header("content-type", "text/xml")));
    let mut machine = with_profile(&store, "");
    let token = machine.home().join("token");
    fs::write(&token, "token").unwrap();
    machine.set("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string());
    machine.set("AWS_ROLE_ARN", "arn:aws:iam::1:role/r");
    machine.set("AWS_ENDPOINT_URL_STS", &service.url);
    machine.run(&["list", "--remote"]).refused(3, &["AccessDenied: Not authorized to perform sts:AssumeRole"]);
}

#[test]
fn instance_metadata_requests_are_retried() {
    let store = store_with_three_models();
    let metadata = Scripted::new();
    let failures = std::sync::atomic::AtomicU32::new(0);
    metadata.script(move |request, _| {
        // Every other response is an error, as from a service under load.
        if failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed).is_multiple_of(2) {
            return Some(Reply::new(503, ""));
        }
        let keys = "{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"AccessKeyId\":\"a\",\"SecretAccessKey\":\"s\",\
                    \"Token\":\"t\",\"Expiration\":\"2099-01-01T00:00:00Z\",\"LastUpdated\":\"2020-01-01T00:00:00Z\"}";
        Some(match request.path.as_str() {
            "/latest/api/token" => Reply::new(200, "token").header("x-aws-ec2-metadata-token-ttl-seconds", "21600"),
            path if path.ends_with("/role") => Reply::new(200, keys),
            _ => Reply::new(200, "role"),
        })
    });
    let mut machine = with_profile(&store, "");
    machine.set("AWS_EC2_METADATA_DISABLED", "false");
    machine.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata.url);
    assert_eq!(listed(&machine).len(), 3);
}

#[test]
fn no_proxy_can_contain_ports() {
    let store = store_with_three_models();
    let proxy = Scripted::new();
    // An error that is not retried.
    proxy.script(|_, _| Some(Reply::new(403, "this is the proxy")));
    let port = store.url.rsplit(':').next().unwrap().to_string();
    for (no_proxy, bypassed) in [
        (format!("127.0.0.1:{port}"), true),
        (format!("x.example, 127.0.0.1:{port}"), true),
        ("127.0.0.1:1".into(), false),
        ("127.0.0.1".into(), true),
        ("127.0.0.0/8".into(), true),
        ("other.example".into(), false),
    ] {
        let mut machine = store.machine();
        machine.set("HTTP_PROXY", &proxy.url);
        machine.set("http_proxy", &proxy.url);
        machine.set("NO_PROXY", &no_proxy);
        proxy.take_seen();
        let output = machine.run(&["list", "--remote"]);
        assert_eq!((output.code == 0, proxy.take_seen().is_empty()), (bypassed, bypassed), "{no_proxy} {output:#?}");
    }
}

#[test]
fn certificates_are_trusted_only_with_a_bundle() {
    let store = store_with_three_models();
    let port = tls_front(&store.url);
    let mut machine = store.machine();
    machine.set("B2_ENDPOINT", &format!("https://localhost:{port}"));
    let output = machine.run(&["list", "--remote"]);
    output.refused(6, &["certificate", "does not trust", "SSL_CERT_FILE"]);
    let bundle = tls_file("cert.pem").display().to_string();
    for variable in ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"] {
        machine.set(variable, &bundle);
        assert_eq!(listed(&machine).len(), 3, "{variable}");
        for broken in ["/nowhere/bundle.pem", "/dev/null"] {
            machine.set(variable, broken);
            machine.run(&["list", "--remote"]).refused(2, &[broken, variable]);
        }
        machine.unset(variable);
    }
    machine.set("AWS_CA_BUNDLE", &bundle);
    machine.set("B2_ENDPOINT", &format!("https://127.0.0.1:{port}"));
    machine.run(&["list", "--remote"]).refused(6, &["certificate", "another host"]);
}

/// Starts a TLS proxy in front of a plain server, with an untrusted certificate for localhost, and returns its port.
fn tls_front(url: &str) -> u16 {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = CertificateDer::from_pem_file(tls_file("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(tls_file("key.pem")).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let config = std::sync::Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let inner = url.trim_start_matches("http://").to_string();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let (config, inner) = (config.clone(), inner.clone());
            std::thread::spawn(move || relay(socket, config, &inner));
        }
    });
    port
}

/// Forwards one request and its response.
fn relay(mut socket: std::net::TcpStream, config: std::sync::Arc<rustls::ServerConfig>, inner: &str) {
    let Ok(mut session) = rustls::ServerConnection::new(config) else { return };
    let mut tls = rustls::Stream::new(&mut session, &mut socket);
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match tls.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&head).replace("\r\n\r\n", "\r\nx-relay: 1\r\n\r\n");
    let mut plain = std::net::TcpStream::connect(inner).unwrap();
    plain.write_all(text.as_bytes()).unwrap();
    plain.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(0);
    let mut whole = answer[..end].to_vec();
    whole.extend_from_slice(b"\r\nconnection: close");
    whole.extend_from_slice(&answer[end..]);
    let _ = tls.write_all(&whole);
    let _ = tls.flush();
    session.send_close_notify();
    let _ = session.complete_io(&mut socket);
}

#[test]
fn an_archived_blob_suggests_the_fallback() {
    // Without the fallback, the error suggests it. The fallback itself is tested in tests/it/fallback.rs.
    let store = store_with_three_models();
    store.script(|request, _| {
        let blob = request.key.starts_with("blobs/") && request.method == "GET";
        let text = "<Error><Code>InvalidObjectState</Code><StorageClass>DEEP_ARCHIVE</StorageClass></Error>";
        blob.then(|| Reply::new(403, text))
    });
    let output = store.machine().run(&["pull", "org/one"]);
    assert_eq!(output.code, 6, "{output:#?}");
    assert!(output.stderr.contains("DEEP_ARCHIVE") && output.stderr.contains("--fallback"), "{output:#?}");
}

#[test]
fn storage_options_are_sent_with_every_relevant_request() {
    let store = Scripted::new();
    let mut machine = store.machine();
    machine.set("B2_REGION", "us-east-1");
    machine.configure(
        "storage:\n  sse: aws:kms\n  sse_kms_key_id: key-1\n  storage_class: STANDARD_IA\n  requester_pays: true\n  \
         checksums: crc32\n",
    );
    let revision =
        Revision::model("org/name").lfs("middle.bin", weights(1, 700_000)).lfs("big.bin", weights(2, 20 << 20));
    revision.write(&machine.hub());
    machine.ok(&["push"]);
    fs::remove_dir_all(machine.hub()).unwrap();
    machine.ok(&["pull", "org/name"]);
    machine.ok(&["doctor"]);
    let seen = store.take_seen();
    for request in &seen {
        assert_eq!(request.header("x-amz-request-payer"), "requester", "{} {}", request.method, request.key);
        let signed = request.header("authorization");
        assert!(signed.contains("x-amz-request-payer"), "{signed}");
        let creates = request.method == "PUT" && request.parameter("partNumber").is_none()
            || request.method == "POST" && request.parameter("uploads").is_some();
        for (name, value) in [
            ("x-amz-server-side-encryption", "aws:kms"),
            ("x-amz-server-side-encryption-aws-kms-key-id", "key-1"),
            ("x-amz-storage-class", "STANDARD_IA"),
        ] {
            assert_eq!(
                request.header(name),
                if creates { value } else { "" },
                "{name} {} {}",
                request.method,
                request.key
            );
        }
        let has_body = request.method == "PUT";
        assert_eq!(!request.header("x-amz-checksum-crc32").is_empty(), has_body, "{} {}", request.method, request.key);
        let starts = request.method == "POST" && request.parameter("uploads").is_some();
        assert_eq!(request.header("x-amz-checksum-algorithm"), if starts { "CRC32" } else { "" });
    }
    assert!(seen.iter().any(|request| request.parameter("partNumber").is_some()));
}

#[test]
fn a_public_bucket_is_read_without_keys() {
    let store = store_with_three_models();
    let mut machine = with_profile(&store, "");
    machine.set("HF_CACHE_SYNC_UNSIGNED", "true");
    assert_eq!(listed(&machine).len(), 3);
    machine.ok(&["pull", "org/one"]);
    assert!(store.take_seen().iter().all(|request| !request.is_signed()));
    store.script(|request, _| (request.method == "PUT").then(|| Reply::refusal(403, "AccessDenied", "Access Denied")));
    Revision::model("org/new").lfs("x", "y").write(&machine.hub());
    let output = machine.run(&["push"]);
    assert!(output.code == 3 && output.stderr.contains("storage.unsigned"), "{output:#?}");
}

#[test]
fn the_addressing_style_can_be_set() {
    let store = store_with_three_models();
    let mut machine = store.machine();
    machine.set("B2_ENDPOINT", "http://store.example/deep");
    machine.set("HTTP_PROXY", &store.url);
    for (style, host, path) in
        [("virtual", "team-cache.store.example", "/deep/"), ("path", "store.example", "/deep/team-cache/")]
    {
        machine.run(&["list", "--remote", "--addressing-style", style]);
        let seen = store.take_seen();
        assert!(!seen.is_empty());
        for request in seen {
            assert_eq!((request.header("host"), request.path.as_str()), (host, path));
        }
    }
    // A store that is known not to support path style.
    machine.set("B2_ENDPOINT", "http://oss-eu-central-1.aliyuncs.com");
    machine.ok(&["list", "--remote"]);
    assert!(store.take_seen().iter().all(|request| request.header("host").starts_with("team-cache.oss-")));
    // AWS's own endpoints, by its rules.
    machine.unset("B2_ENDPOINT");
    machine.set("HTTPS_PROXY", &store.url);
    for (variable, host) in [
        ("AWS_USE_DUALSTACK_ENDPOINT", "team-cache.s3.dualstack.us-east-1.amazonaws.com:443"),
        ("AWS_USE_FIPS_ENDPOINT", "team-cache.s3-fips.us-east-1.amazonaws.com:443"),
        ("X", "team-cache.s3.us-east-1.amazonaws.com:443"),
    ] {
        machine.set(variable, "true");
        machine.run(&["list", "--remote"]);
        let seen = store.take_seen();
        assert!(seen.iter().all(|request| request.method == "CONNECT" && request.header("host") == host), "{seen:#?}");
        assert!(!seen.is_empty());
        machine.unset(variable);
    }
}
