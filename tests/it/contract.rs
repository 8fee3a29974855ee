//! What the tool needs from a store, and how it behaves with it: the same tests for every store. By default, the store is
//! the embedded server; `tests/stores/run` starts others and names them in the environment:
//!
//! | variable | |
//! |---|---|
//! | `CONTRACT_STORE` | the name of the store, a column of the table in docs/stores.md |
//! | `CONTRACT_ENDPOINT`, `CONTRACT_REGION`, `CONTRACT_KEYS` | its URL and region, and a pair `key:secret` that may do everything |
//! | `CONTRACT_READ_ONLY` | a bucket and a pair that may only read it: `bucket:key:secret`; not set if the store has no such keys |
//! | `CONTRACT_FACTS` | the file to which the tests append what they have measured |
//!
//! The tool must behave the same everywhere. Differences between stores are measured, and compared with the table.

mod raw;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use md5::Digest;
use serde_json::Value;

use crate::harness::cache::{COMMIT, OTHER, Revision};
use crate::harness::machine::Machine;
use crate::harness::store::Store;
use crate::harness::{git_sha1, hex, sha256, wait_until, weights};
use raw::{Raw, Reply, Request};

/// A separate bucket on the store under test.
struct Team {
    raw: Raw,
    bucket: String,
    /// The embedded server, if it is the store.
    _embedded: Option<Store>,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("CONTRACT_{name}")).ok().filter(|value| !value.is_empty())
}

fn pair(text: &str) -> (String, String) {
    // The access keys of OpenStack Swift have a colon.
    let (key, secret) = text.rsplit_once(':').expect("key:secret");
    (key.into(), secret.into())
}

impl Team {
    /// Creates an empty bucket.
    fn new() -> Team {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let Some(endpoint) = variable("ENDPOINT") else { return Team::embedded() };
        let keys = pair(&variable("KEYS").expect("CONTRACT_KEYS"));
        let raw = Raw { endpoint, region: variable("REGION").unwrap_or("us-east-1".into()), keys };
        let bucket = format!("contract-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        raw.create(&bucket);
        Team { raw, bucket, _embedded: None }
    }

    fn embedded() -> Team {
        use crate::harness::s3::{ACCESS_KEY, SECRET_KEY};
        let store = Store::new();
        let raw = Raw {
            endpoint: store.server.url.clone(),
            region: "test-region".into(),
            keys: (ACCESS_KEY.into(), SECRET_KEY.into()),
        };
        Team { raw, bucket: store.bucket.clone(), _embedded: Some(store) }
    }

    /// Returns a machine with these keys.
    fn machine_with(&self, keys: &(String, String)) -> Machine {
        let mut machine = Machine::unconfigured();
        machine.connect(&self.raw.endpoint, &self.bucket, &self.raw.region);
        machine.set("B2_APPLICATION_KEY_ID", &keys.0);
        machine.set("B2_APPLICATION_KEY", &keys.1);
        machine
    }

    fn machine(&self) -> Machine {
        self.machine_with(&self.raw.keys)
    }

    fn send(&self, request: &Request) -> Reply {
        self.raw.send(&self.bucket, request)
    }

    fn put(&self, key: &str, body: &[u8]) {
        self.raw.put(&self.bucket, key, body);
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.raw.get(&self.bucket, key)
    }

    fn keys(&self) -> BTreeSet<String> {
        self.raw.keys(&self.bucket).into_iter().collect()
    }

    /// Returns the manifest of a revision.
    #[track_caller]
    fn manifest(&self, prefix: &str, revision: &Revision) -> Value {
        let key = format!("{prefix}{}", revision.manifest_key());
        serde_json::from_slice(&self.get(&key).unwrap_or_else(|| panic!("{key} is missing"))).unwrap()
    }

    /// Asserts that the bucket has all of a revision, byte for byte, below a prefix.
    #[track_caller]
    fn assert_has(&self, prefix: &str, revision: &Revision) {
        for file in revision.present() {
            let found = self.get(&format!("{prefix}blobs/{}", file.etag()));
            assert!(found.as_ref() == Some(&file.bytes), "{} has different contents", file.path);
        }
        assert_eq!(self.manifest(prefix, revision)["files"], revision.manifest()["files"]);
        for name in &revision.refs {
            let found = self.get(&format!("{prefix}refs/{}/{name}", revision.encoded()));
            assert_eq!(found.as_deref(), Some(revision.commit.as_bytes()), "{name}");
        }
    }

    /// Asserts that every ref has a manifest, and that every blob of a manifest exists with bytes that match its name.
    #[track_caller]
    fn assert_whole(&self) {
        let keys = self.keys();
        for key in &keys {
            if let Some((encoded, _)) = key.strip_prefix("refs/").and_then(|rest| rest.split_once('/')) {
                let commit = String::from_utf8(self.get(key).unwrap()).unwrap();
                assert!(keys.contains(&format!("manifests/{encoded}@{commit}.json")), "{key} leads nowhere: {keys:#?}");
            }
            if key.starts_with("manifests/") {
                let manifest: Value = serde_json::from_slice(&self.get(key).unwrap()).unwrap();
                for file in manifest["files"].as_array().unwrap() {
                    let name = file["blob"].as_str().unwrap();
                    let bytes = self.get(&format!("blobs/{name}")).unwrap_or_else(|| panic!("{key} needs {name}"));
                    let hash = if name.len() == 64 { sha256(&bytes) } else { git_sha1(&bytes) };
                    assert_eq!(hash, name, "{key}");
                }
            }
        }
    }
}

/// Records a fact about the store, which has to match the table in docs/stores.md.
#[track_caller]
fn fact(row: &str, value: &str) {
    if let Some(path) = variable("FACTS") {
        // One write each, so that concurrent tests do not mix their lines.
        let mut file = fs::File::options().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{row}\t{value}\n").as_bytes()).unwrap();
        return;
    }
    let store = variable("STORE").unwrap_or("s3s-fs".into());
    assert_eq!(table(row, &store).as_deref(), Some(value), "docs/stores.md: '{row}' of {store}");
}

/// Returns a cell of the table of measured properties.
fn table(row: &str, column: &str) -> Option<String> {
    static DOCS: OnceLock<String> = OnceLock::new();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/stores.md");
    let text = DOCS.get_or_init(|| fs::read_to_string(path).unwrap());
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect::<Vec<_>>();
    let mut lines = text.split("<!-- measured -->").nth(1)?.lines().filter(|line| line.starts_with('|'));
    let index = cells(lines.next()?).iter().position(|name| name == column)?;
    lines.map(cells).find(|cells| cells[0] == row)?.get(index).cloned()
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// Returns `N` of `uploaded`, `manifests` and `refs` of a push's report.
fn written(report: &Value) -> [u64; 3] {
    let manifests = &report["manifests"];
    let sum = |value: &Value| match value {
        Value::Object(fields) => fields.values().filter_map(Value::as_u64).sum(),
        other => other.as_u64().unwrap_or(0),
    };
    [report["uploaded"]["blobs"].as_u64().unwrap(), sum(manifests), sum(&report["refs"])]
}

/// Two models, one of which has files with difficult names, and a dataset with the id of the first.
fn repos() -> [Revision; 3] {
    let odd = Revision::new("model", "org/odd.name-1_x")
        .git("a b/c+d%41~e.txt", "one")
        .git("ünï/日本 語.json", "{}")
        .git("empty", "")
        .lfs("weights 100%.bin", weights(7, 70_000))
        .refs(&["main", "v1.0+cu118", "refs/pr/1", "feature/ä+b"]);
    [Revision::model("org/one"), odd, Revision::model("gpt2").at(OTHER)]
}

#[test]
fn a_push_is_complete_and_a_second_one_writes_nothing() {
    let team = Team::new();
    let machine = team.machine();
    let all = repos();
    all.iter().for_each(|one| one.write(&machine.hub()));
    machine.ok(&["push"]);
    all.iter().for_each(|one| team.assert_has("", one));
    team.assert_whole();
    let before = team.keys();
    let again = machine.ok_json(&["push", "--json"]);
    assert_eq!(written(&again), [0, 0, 0], "{again:#}");
    assert_eq!(team.keys(), before);
    assert_eq!(machine.run(&["diff", "--exit-code"]).code, 0);

    let other = team.machine();
    for one in &all {
        for name in &one.refs {
            other.ok(&["pull", &one.id, "-r", name]);
        }
        one.assert_pulled(&other.hub());
    }
    let third = team.machine();
    third.ok(&["pull-all"]);
    assert!(third.ok(&["list", "--remote"]).contains("org/odd.name-1_x"));
    assert_eq!(third.run(&["verify"]).code, 0);
}

#[test]
fn keys_may_contain_anything() {
    let team = Team::new();
    // Spaces, a plus, an encoded letter, reserved and non-ASCII characters.
    let prefix = "a team/+%41~!'()*=@:,;$ü日";
    let (source, target) = (team.machine(), team.machine());
    let odd = &repos()[1];
    odd.write(&source.hub());
    source.ok(&["push", "--prefix", prefix]);
    team.assert_has(&format!("{prefix}/"), odd);
    target.ok(&["pull", &odd.id, "--prefix", prefix]);
    target.ok(&["pull", &odd.id, "--prefix", prefix, "-r", "feature/ä+b"]);
    target.ok(&["pull", &odd.id, "--prefix", prefix, "-r", "v1.0+cu118"]);
    target.ok(&["pull", &odd.id, "--prefix", prefix, "-r", "refs/pr/1"]);
    odd.assert_pulled(&target.hub());
    assert_eq!(written(&source.ok_json(&["push", "--prefix", prefix, "--json"])), [0, 0, 0]);
    // Nothing of it is visible under another prefix.
    assert_eq!(target.run(&["pull", &odd.id]).code, 4);
    source.ok(&["remote", "rm", &odd.id, "--prefix", prefix, "--yes"]);
    source.ok(&["remote", "gc", "--grace", "0", "--prefix", prefix, "--yes"]);
    assert_eq!(team.keys(), BTreeSet::new());
}

#[test]
fn a_large_blob_is_uploaded_in_parts_and_downloaded_in_ranges() {
    let team = Team::new();
    let (source, target) = (team.machine(), team.machine());
    let large = Revision::new("model", "org/large").lfs("model.bin", weights(3, (40 << 20) + 12_345));
    large.write(&source.hub());
    let pushed = source.run(&["push", "-v"]);
    assert_eq!(pushed.code, 0, "{pushed:#?}");
    assert!(pushed.stderr.contains("partNumber=2"), "{pushed:#?}");
    team.assert_has("", &large);
    let pulled = target.run(&["pull", "org/large", "-v"]);
    assert_eq!(pulled.code, 0, "{pulled:#?}");
    assert!(pulled.stderr.matches(&large.blob_key("model.bin")).count() > 1, "{pulled:#?}");
    large.assert_pulled(&target.hub());
    assert_eq!(written(&source.ok_json(&["push", "--json"])), [0, 0, 0]);
}

#[test]
fn an_interrupted_upload_resumes() {
    let team = Team::new();
    let source = team.machine();
    let large = Revision::new("model", "org/large").lfs("model.bin", weights(5, 40 << 20));
    large.write(&source.hub());
    let push = source.start(&["push", "-v", "--bwlimit", "10MB/s", "--workers", "2"]);
    push.wait_for("partNumber=3 200");
    push.kill();
    assert_eq!(team.get(&large.blob_key("model.bin")), None);
    let again = source.run(&["push", "-v"]);
    assert_eq!(again.code, 0, "{again:#?}");
    team.assert_has("", &large);
    fact("interrupted uploads continue", yes(!again.stderr.contains("partNumber=1 200")));

    let target = team.machine();
    let pull = target.start(&["pull", "org/large", "--bwlimit", "10MB/s", "--workers", "2", "-v"]);
    let partial = target.hub().join(".locks/.hf-cache-sync/partial");
    pull.wait_for(&large.blob_key("model.bin"));
    wait_until("some bytes", || {
        let entries = fs::read_dir(&partial).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| entry.metadata().ok()).any(|meta| meta.len() > 0)
    });
    pull.kill();
    target.ok(&["pull", "org/large"]);
    large.assert_pulled(&target.hub());
}

#[test]
fn ranges_are_exact() {
    let team = Team::new();
    let bytes = weights(1, 100_000);
    team.put("object", &bytes);
    let get = |range: &str, more: &[(&str, String)]| {
        let headers = [&[("range", format!("bytes={range}"))], more].concat();
        team.send(&Request { method: "GET", key: "object", headers: &headers, ..Request::default() })
    };
    for (range, expected) in [("0-0", 0..1), ("5-9", 5..10), ("99990-99999", 99_990..100_000)] {
        let reply = get(range, &[]);
        assert_eq!(reply.body, bytes[expected], "{range}");
        assert_eq!(reply.header("content-range"), format!("bytes {range}/100000"));
    }
    assert_eq!(get("100000-", &[]).status, 416);
    let reply = get("0-0", &[]);
    let etag = reply.header("etag").to_string();
    assert_eq!(get("0-0", &[("if-match", etag)]).status, reply.status);
    fact("status of a range", &reply.status.to_string());
    let refused = get("0-0", &[("if-match", format!("\"{}\"", "0".repeat(32)))]);
    fact("`If-Match` of a GET", if refused.status == 412 { "honoured" } else { "ignored" });
}

/// Returns how a store treats a condition that is false.
fn condition(reply: &Reply) -> &'static str {
    match reply.status {
        412 => "honoured",
        200 => "ignored",
        501 => "refused (501)",
        status => panic!("{status}: {reply:?}"),
    }
}

#[test]
fn conditions_are_measured() {
    let team = Team::new();
    let put = |key: &str, body: &[u8], name: &str, value: &str| {
        let headers = [(name, value.to_string())];
        team.send(&Request { method: "PUT", key, headers: &headers, body, ..Request::default() })
    };
    team.put("there", b"one");
    fact("`If-None-Match: *` of a PUT", condition(&put("there", b"two", "if-none-match", "*")));
    let wrong = format!("\"{}\"", "0".repeat(32));
    let of_wrong = condition(&put("there", b"three", "if-match", &wrong));
    let etag = || {
        let head = team.send(&Request { method: "HEAD", key: "there", ..Request::default() });
        head.header("etag").to_string()
    };
    let meets = |etag: &str| condition(&put("there", b"four", "if-match", etag)) != "honoured";
    let (is_met, is_met_bare) = (meets(&etag()), meets(etag().trim_matches('"')));
    fact(
        "`If-Match` of a PUT",
        match (is_met, is_met_bare) {
            (true, _) => of_wrong,
            (false, true) => "honoured without quotes",
            (false, false) => "never met",
        },
    );
    // Of concurrent writers, at least one wins. On some stores, several do: they check first and write later.
    let winners = std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..8).map(|n| scope.spawn(move || put("new", &[n; 1000], "if-none-match", "*").status == 200)).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).filter(|won| *won).count()
    });
    assert!(winners >= 1 || condition(&put("newer", b"x", "if-none-match", "*")).starts_with("refused"));
}

#[test]
fn listings_are_complete_and_current() {
    let team = Team::new();
    // Sorted by UTF-8 bytes; UTF-16 would put the last two in the other order.
    let mut expected: Vec<String> =
        ["A", "B/1", "a b", "a+b", "a/1", "a0", "aa", "b%41", "~", "é", "\u{ff5e}", "\u{1f600}"]
            .map(|name| format!("odd/{name}"))
            .to_vec();
    expected.sort();
    for key in &expected {
        team.put(key, key.as_bytes());
        assert!(team.raw.list(&team.bucket, "odd/", 1000).concat().contains(key), "{key} is not listed at once");
    }
    let pages = team.raw.list(&team.bucket, "odd/", 5);
    let listed = pages.concat();
    assert_eq!(listed.iter().collect::<BTreeSet<_>>(), expected.iter().collect::<BTreeSet<_>>());
    assert_eq!(listed.len(), expected.len(), "a key is listed twice");
    assert!(pages.iter().all(|page| page.len() <= 5), "{pages:#?}");
    let by_utf16 = |key: &String| key.encode_utf16().collect::<Vec<_>>();
    fact(
        "order of a listing",
        match listed {
            _ if listed == expected => "by bytes",
            _ if listed.is_sorted_by_key(by_utf16) => "by UTF-16",
            _ => "none",
        },
    );
    assert_eq!(team.raw.list(&team.bucket, "odd/a", 1000).concat().len(), 5);
    for key in &expected {
        team.raw.delete(&team.bucket, key);
        assert!(!team.raw.list(&team.bucket, "odd/", 1000).concat().contains(key), "{key} is still listed");
    }
    team.put("folder", b"x");
    let inner = team.send(&Request { method: "PUT", key: "folder/inner", body: b"y", ..Request::default() });
    let both = inner.status == 200 && team.get("folder").as_deref() == Some(b"x");
    fact("`a` and `a/b` can both be keys", yes(both));
    let (key, body) = ("etag", b"some bytes");
    team.put(key, body);
    let md5 = hex(&md5::Md5::digest(body));
    let query = [("list-type", "2"), ("prefix", "etag")];
    let etag = team.send(&Request { method: "GET", query: &query, ..Request::default() }).all("ETag").concat();
    fact("ETag of a small object", if etag.contains(&md5) { "MD5" } else { "other" });
}

#[test]
fn many_blobs_are_listed_completely() {
    let team = Team::new();
    // Several pages. The embedded server is tested with small pages in `push_pull`.
    let number: usize = if team._embedded.is_some() { 20 } else { 2500 };
    let mut keys: Vec<String> = (0..number).map(|n| format!("blobs/{}", sha256(&n.to_le_bytes()))).collect();
    std::thread::scope(|scope| {
        for share in keys.chunks(number.div_ceil(8)) {
            scope.spawn(|| share.iter().for_each(|key| team.put(key, b"x")));
        }
    });
    let report = team.machine().ok_json(&["remote", "du", "--json"]);
    assert_eq!(report["blobs"], serde_json::json!({"blobs": number, "bytes": number}));
    keys.sort();
    let middle = &keys[number / 2];
    let query = [("list-type", "2"), ("prefix", "blobs/"), ("start-after", middle)];
    let listed = team.send(&Request { method: "GET", query: &query, ..Request::default() }).all("Key");
    let expected = &keys[number / 2 + 1..];
    let is_honoured = listed == expected[..expected.len().min(1000)];
    fact("`start-after` of a listing", if is_honoured { "honoured" } else { "ignored" });
}

#[test]
fn deletions_leave_what_is_needed() {
    let team = Team::new();
    let machine = team.machine();
    let all = repos();
    all.iter().for_each(|one| one.write(&machine.hub()));
    machine.ok(&["push"]);
    let needed = team.keys();
    let orphans: Vec<String> = (0..1_050).map(|n| format!("blobs/{n:064x}")).collect();
    std::thread::scope(|scope| {
        for some in orphans.chunks(132) {
            scope.spawn(|| some.iter().for_each(|key| team.put(key, b"x")));
        }
    });
    // They are young.
    machine.ok(&["remote", "gc", "--yes"]);
    assert_eq!(team.keys().len(), needed.len() + orphans.len());
    let report = machine.ok_json(&["remote", "gc", "--grace", "0", "--yes", "--json"]);
    assert_eq!(report["blobs"]["blobs"], 1_050, "{report:#}");
    assert_eq!(team.keys(), needed);
    team.assert_whole();
    machine.ok(&["remote", "rm", "org/one", "--yes"]);
    machine.ok(&["remote", "gc", "--grace", "0", "--yes"]);
    team.assert_whole();
    let left = team.keys();
    assert!(
        !left.contains(&all[0].blob_key("config.json")) || all[2].etag("config.json") == all[0].etag("config.json")
    );
    assert!(!left.iter().any(|key| key.contains("org__one")), "{left:#?}");
    let other = team.machine();
    all[1..].iter().for_each(|one| drop(other.ok(&["pull", &one.id])));
    assert_eq!(other.run(&["pull", "org/one"]).code, 4);
    // A push brings it back.
    machine.ok(&["push"]);
    assert_eq!(team.keys(), needed);
}

#[test]
fn several_objects_are_deleted_in_one_request() {
    let team = Team::new();
    let keys = ["a b", "c+d", "e%41", "f&g", "ü~"];
    keys.iter().for_each(|key| team.put(key, b"x"));
    let objects: String =
        keys.iter().map(|key| format!("<Object><Key>{}</Key></Object>", quick_xml::escape::escape(*key))).collect();
    let body = format!("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{objects}</Delete>");
    let headers = [("content-md5", md5_of(body.as_bytes()))];
    let query = [("delete", "")];
    let request =
        Request { method: "POST", query: &query, headers: &headers, body: body.as_bytes(), ..Request::default() };
    let reply = team.send(&request);
    assert!(matches!(reply.status, 200 | 501), "{reply:?}");
    fact("`DeleteObjects`", yes(reply.status == 200));
    if reply.status == 200 {
        assert_eq!(team.keys(), BTreeSet::new());
    }
}

/// Returns the `Content-MD5` of some bytes.
fn md5_of(bytes: &[u8]) -> String {
    base64(&md5::Md5::digest(bytes))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let encode = |chunk: &[u8]| {
        let number = (0..3).fold(0, |number, at| number << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        let digit = |at: usize| match at > chunk.len() {
            true => '=',
            false => char::from(DIGITS[(number >> (18 - 6 * at) & 63) as usize]),
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(encode).collect()
}

#[test]
fn unfinished_uploads_are_found_and_aborted() {
    let team = Team::new();
    let machine = team.machine();
    let key = format!("blobs/{}", "a".repeat(64));
    let start = |key: &str| {
        let request = Request { method: "POST", key, query: &[("uploads", "")], ..Request::default() };
        team.send(&request).all("UploadId").concat()
    };
    let upload = start(&key);
    let query = [("partNumber", "1"), ("uploadId", upload.as_str())];
    let part = Request { method: "PUT", key: &key, query: &query, body: b"part", ..Request::default() };
    assert_eq!(team.send(&part).status, 200);
    let report = machine.ok_json(&["remote", "du", "--json"]);
    let listed = report["unfinished_uploads"].as_u64();
    fact("`ListMultipartUploads`", yes(listed.is_some()));
    machine.ok(&["remote", "gc", "--yes"]);
    if listed.is_some() {
        assert_eq!(listed, Some(1), "{report:#}");
    }
    // An upload of unknown age is left to the store's own rules.
    let aborted = machine.ok_json(&["remote", "gc", "--grace", "0", "--yes", "--json"])["uploads"].as_u64() == Some(1);
    fact("`gc` aborts unfinished uploads", yes(aborted));
    if !aborted {
        let query = [("uploadId", upload.as_str())];
        let abort = Request { method: "DELETE", key: &key, query: &query, ..Request::default() };
        assert!(matches!(team.send(&abort).status, 200 | 204));
    }
    fact("parts of an aborted upload are refused", yes(team.send(&part).status == 404));
    assert_eq!(team.keys(), BTreeSet::new());
}

#[test]
fn checksums_are_sent_as_configured() {
    let team = Team::new();
    for (number, kind) in ["none", "md5", "crc32"].into_iter().enumerate() {
        let machine = team.machine();
        let id = format!("org/{kind}");
        let revision = Revision::model(&id).lfs("large.bin", weights(number as u64 + 40, 17 << 20));
        revision.write(&machine.hub());
        machine.ok(&["push", "--checksums", kind]);
        team.assert_has("", &revision);
    }
    let wrong = |name: &str, value: String| {
        let headers = [(name, value)];
        let request = Request { method: "PUT", key: "wrong", headers: &headers, body: b"right", ..Request::default() };
        let reply = team.send(&request);
        assert!(matches!(reply.status, 200 | 400), "{name}: {reply:?}");
        yes(reply.status == 400)
    };
    fact("a wrong `Content-MD5` is refused", wrong("content-md5", md5_of(b"wrong")));
    let crc = base64(&crc32fast::hash(b"wrong").to_be_bytes());
    fact("a wrong `x-amz-checksum-crc32` is refused", wrong("x-amz-checksum-crc32", crc));
    let request = Request { method: "PUT", key: "wrong", body: b"right", ..Request::default() };
    let reply = team.send(&Request { claims: Some(sha256(b"wrong")), ..request });
    fact("a wrong signed SHA-256 is refused", yes(reply.status >= 400));
}

#[test]
fn wrong_keys_and_buckets_are_distinguished() {
    let team = Team::new();
    let mut machine = team.machine();
    Revision::model("org/one").write(&machine.hub());
    machine.ok(&["push"]);
    let (id, secret) = team.raw.keys.clone();
    // An id of the same length: stores have rules for what an id looks like.
    let other_id: String = id.chars().rev().collect();
    let denied = [(id, "wrong-secret".into()), (other_id, secret)]
        .map(|keys| team.machine_with(&keys).run(&["pull", "org/one"]));
    fact("signatures are verified", yes(denied[0].code != 0));
    denied.iter().filter(|output| output.code != 0).for_each(|output| output.refused(3, &["credentials"]));
    machine.set("B2_BUCKET", "no-such-bucket");
    for line in [&["pull", "org/one"][..], &["push"], &["list", "--remote"], &["remote", "gc", "--yes"]] {
        let output = machine.run(line);
        assert_eq!(output.code, 4, "{line:?}: {output:#?}");
        assert!(output.stderr.contains("no-such-bucket"), "{output:#?}");
        output.nothing_internal();
    }
}

#[test]
fn a_wrong_region_is_corrected_if_it_matters() {
    let team = Team::new();
    let mut machine = team.machine();
    machine.set("B2_REGION", "nowhere-1");
    let revision = Revision::model("org/one");
    revision.write(&machine.hub());
    machine.ok(&["push"]);
    machine.ok(&["doctor"]);
    team.assert_has("", &revision);
}

#[test]
fn a_read_only_key_reads_and_changes_nothing() {
    let Some(given) = variable("READ_ONLY") else {
        fact("read-only keys", "no");
        return;
    };
    fact("read-only keys", "yes");
    let (bucket, keys) = given.split_once(':').expect("bucket:key:secret");
    let team = Team { bucket: bucket.into(), ..Team::new() };
    team.keys().iter().for_each(|key| team.raw.delete(bucket, key));
    let writer = team.machine();
    let revision = Revision::model("org/one");
    revision.write(&writer.hub());
    writer.ok(&["push"]);
    let orphan = format!("blobs/{}", "e".repeat(64));
    team.put(&orphan, b"x");
    let before = team.keys();
    let reader = team.machine_with(&pair(keys));
    reader.ok(&["doctor"]);
    assert_eq!(reader.run(&["doctor", "--require-write"]).code, 3);
    reader.ok(&["pull", "org/one"]);
    revision.assert_pulled(&reader.hub());
    reader.ok(&["list", "--remote", "--sizes"]);
    reader.ok(&["verify", "--remote", "--deep"]);
    reader.ok(&["remote", "du"]);
    reader.ok(&["push"]);
    Revision::model("org/new").at(OTHER).write(&reader.hub());
    for line in [&["push"][..], &["remote", "gc", "--grace", "0", "--yes"], &["remote", "rm", "org/one", "--yes"]] {
        let output = reader.run(line);
        assert_eq!(output.code, 3, "{line:?}: {output:#?}");
        assert_eq!(team.keys(), before, "{line:?}");
        output.nothing_internal();
    }
}

#[test]
fn damage_in_the_bucket_is_found_and_repaired() {
    let team = Team::new();
    let machine = team.machine();
    let revision = Revision::model("org/one").git("a.txt", "one").lfs("other.bin", weights(8, 50_000));
    revision.write(&machine.hub());
    machine.ok(&["push"]);
    machine.ok(&["verify", "--remote", "--deep"]);
    let flipped = revision.blob_key("other.bin");
    let mut bytes = team.get(&flipped).unwrap();
    bytes[777] ^= 1;
    team.put(&flipped, &bytes);
    team.raw.delete(&team.bucket, &revision.blob_key("a.txt"));
    team.put(&revision.blob_key("config.json"), b"short");
    // A listing shows sizes only.
    assert_eq!(machine.run(&["verify", "--remote"]).code, 5);
    assert_eq!(machine.run(&["verify", "--remote", "--deep"]).code, 5);
    let reader = team.machine();
    assert_eq!(reader.run(&["pull", "org/one", "--exclude", "a.txt", "--exclude", "config.json"]).code, 5);
    machine.ok(&["verify", "--remote", "--deep", "--repair"]);
    machine.ok(&["verify", "--remote", "--deep"]);
    team.assert_has("", &revision);
    reader.ok(&["pull", "org/one"]);
    revision.assert_pulled(&reader.hub());
}

#[test]
fn parts_pushed_by_two_machines_are_merged() {
    let team = Team::new();
    let whole = (0..12)
        .fold(Revision::new("model", "org/parts"), |all, n| all.lfs(&format!("{n:02}.bin"), weights(n + 100, 3_000)));
    let paths: Vec<&str> = whole.files.iter().map(|file| file.path.as_str()).collect();
    for round in 0..5 {
        team.keys().iter().for_each(|key| team.raw.delete(&team.bucket, key));
        let machines = [team.machine(), team.machine()];
        for (machine, absent) in machines.iter().zip([&paths[..4], &paths[8..]]) {
            whole.clone().without(absent).write(&machine.hub());
        }
        let running: Vec<_> = machines.iter().map(|machine| machine.start(&["push"])).collect();
        for push in running {
            let ended = push.finish();
            assert_eq!(ended.code, 0, "{ended:#?}");
        }
        team.assert_whole();
        // After one more push from each at the latest, nothing is missing.
        machines.iter().for_each(|machine| drop(machine.ok(&["push"])));
        team.assert_has("", &whole);
        let reader = team.machine();
        reader.ok(&["pull", "org/parts", "-r", COMMIT]);
        assert_eq!(fs::read_dir(whole.snapshot(&reader.hub())).unwrap().count(), 12, "round {round}");
    }
}

#[test]
fn doctor_reports_no_problems() {
    let team = Team::new();
    let machine = team.machine();
    Revision::model("org/one").write(&machine.hub());
    machine.ok(&["doctor", "--require-write"]);
    assert_eq!(team.keys(), BTreeSet::new(), "the probe is left");
}
