//! Hostile input: no matter what a store, the Hub or a file contains, memory stays a small multiple of its size, sizes are
//! limited, and every command ends. The real binary runs with a memory limit, beyond which it would abort.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::cache::{COMMIT, OTHER, Revision};
use crate::harness::machine::{Machine, Output, run};
use crate::harness::scripted::{Reply, Request, Scripted, entry, listing, read};
use crate::harness::store::Store;
use crate::harness::{listing as files, weights};

const MIB: usize = 1 << 20;
/// Memory of a run that reads next to nothing, with its threads.
const BASE: usize = 96 * MIB;
const SHA1: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

/// Runs a command that may use this many bytes of memory.
fn run_within(machine: &Machine, memory: usize, line: &[&str]) -> Output {
    let mut command = machine.script(&format!("ulimit -d {} && exec \"$0\" \"$@\"", memory / 1024));
    // Each thread has a stack, little of which it uses.
    command.args(line).env("TOKIO_WORKER_THREADS", "2");
    run(command)
}

fn file(path: &str) -> String {
    format!(r#"{{"path":"{path}","blob":"{SHA1}","size":6}}"#)
}

/// Returns a manifest of `org/name` with these entries of `files`, and further keys.
fn manifest(files: &str, more: &str) -> String {
    format!(r#"{{"repo":"org/name","revision":"{COMMIT}","repo_type":"model","files":[{files}]{more}}}"#)
}

/// Returns a store with this manifest, and a machine for it.
fn store_with(manifest: &str) -> (Scripted, Machine) {
    let store = Scripted::new();
    store.put(&Revision::model("org/name").manifest_key(), manifest);
    store.put("refs/org__name/main", COMMIT);
    store.put(&format!("blobs/{SHA1}"), "hello\n");
    let machine = store.machine();
    (store, machine)
}

/// Asserts that a command is refused within this memory and changes nothing on the machine.
#[track_caller]
fn assert_refused(machine: &Machine, memory: usize, line: &[&str], code: i32, words: &[&str]) {
    let before = files(&machine.home());
    run_within(machine, memory, line).refused(code, words);
    assert!(files(&machine.home()) == before, "{line:?} made changes");
}

#[test]
fn memory_is_a_small_multiple_of_a_manifest_with_unknown_keys() {
    let ones = ",1".repeat(2 * MIB);
    let (_store, machine) = store_with(&manifest(&file("a"), &format!(r#","x":[1{ones}]"#)));
    for line in [&["pull", "org/name"][..], &["remote", "gc", "--dry-run"], &["remote", "du"], &["verify", "--remote"]]
    {
        let output = run_within(&machine, BASE + 4 * 4 * MIB, line);
        assert_eq!(output.code, 0, "{line:?}: {output:#?}");
    }
}

#[test]
fn memory_is_a_small_multiple_of_a_manifest_with_many_files() {
    let paths: Vec<String> = (0..60_000).map(|number| format!("data/{number:08x}")).collect();
    let entries: Vec<String> = paths.iter().map(|path| file(path)).collect();
    let listed: Vec<String> = paths.iter().map(|path| format!(r#""{path}":{{"size":6,"blob_id":"{SHA1}"}}"#)).collect();
    let tree = format!(r#","tree":{{"format_version":1,"files":{{{}}}}}"#, listed.join(","));
    for text in [manifest(&entries.join(","), ""), manifest(&entries[0], &tree)] {
        let (_store, machine) = store_with(&text);
        let output = run_within(&machine, BASE + 4 * text.len(), &["pull", "org/name", "--dry-run"]);
        assert_eq!(output.code, 0, "{output:#?}");
    }
}

#[test]
fn memory_is_a_small_multiple_of_a_notice() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    machine.ok(&["push"]);
    Revision::model("org/other").write(&machine.hub());
    let notice = format!(r#"{{"refs":[],"manifests":[],"blobs":[],"x":[1{}]}}"#, ",1".repeat(2 * MIB));
    for (kind, line) in [("deletion", &["push"][..]), ("push", &["remote", "gc", "--yes"])] {
        let key = format!("_hf_cache_sync_gc/{kind}-{:032x}.json", 1);
        store.put(&key, &notice);
        let output = run_within(&machine, BASE + 4 * notice.len(), line);
        assert_eq!(output.code, 0, "{line:?}: {output:#?}");
        store.remove(&key);
    }
}

#[test]
fn large_manifests_are_not_all_read_at_once() {
    const SIZE: usize = 8 * MIB;
    let store = Scripted::new();
    for number in 0..30 {
        store.put(&Revision::model(&format!("org/name-{number}")).manifest_key(), "!".repeat(SIZE));
    }
    // A proxy may leave out the size.
    for has_size in [true, false] {
        if !has_size {
            store.script(|request, objects| {
                let is_manifest = request.method == "GET" && request.key.starts_with("manifests/");
                let bytes = objects.get(&request.key).filter(|_| is_manifest)?;
                let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n0\r\n\r\n"].concat();
                Some(Reply::new(200, chunk).header("transfer-encoding", "chunked"))
            });
        }
        let output = run_within(&store.machine(), BASE + 10 * SIZE, &["remote", "gc", "--dry-run"]);
        output.refused(5, &["and 29 more", "not JSON"]);
    }
}

#[test]
fn nested_brackets_are_refused_everywhere() {
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let (one, blob) = (file("a"), format!("\"{SHA1}\""));
    for (text, words) in [
        (manifest(&one, &format!(r#","x":{nested}"#)), "recursion limit"),
        (manifest(&one, &format!(r#","tree":{nested}"#)), "recursion limit"),
        (manifest(&one.replace("\"a\"", &nested), ""), "`path` is not a text"),
        (manifest(&one.replace(&blob, &nested), ""), "`blob` is not a text"),
        (manifest(&nested, ""), "an entry of `files` is not an object"),
        (nested.clone(), "it is not a JSON object"),
        (format!("{}{one}", "{\"x\":".repeat(100_000)), "it is not JSON"),
    ] {
        let (_store, machine) = store_with(&text);
        assert_refused(&machine, BASE, &["pull", "org/name"], 5, &["manifests/org__name@", words]);
    }
}

#[test]
fn sizes_near_the_maximum_do_not_overflow() {
    let (most, more) = (u64::MAX.to_string(), (u64::MAX - 1).to_string());
    let with_size = |path: &str, digit: &str, size: &str| {
        file(path).replace(SHA1, &digit.repeat(40)).replace(":6}", &format!(":{size}}}"))
    };
    let (store, machine) = store_with(&manifest(&with_size("a", "a", &most), ""));
    assert_refused(&machine, BASE, &["pull", "org/name"], 1, &["not enough disk space", "16.0 EiB"]);
    store.put(&format!("blobs/{}", "a".repeat(40)), "");
    store.put(&format!("blobs/{}", "b".repeat(40)), "");
    let other = manifest(&with_size("b", "b", &more), "").replace(COMMIT, OTHER).replace("org/name", "org/other");
    store.put(&Revision::model("org/other").at(OTHER).manifest_key(), other);
    store.put("refs/org__other/main", OTHER);
    let huge = most.clone();
    store.script(move |request, objects| {
        let prefix = request.parameter("prefix").filter(|_| request.is_list())?;
        let found = objects.iter().filter(|(key, _)| key.starts_with(&prefix));
        let entries: Vec<String> =
            found.map(|(key, bytes)| entry(key, bytes).replace("<Size>0<", &format!("<Size>{huge}<"))).collect();
        Some(Reply::new(200, listing(&entries, "<IsTruncated>false</IsTruncated>")))
    });
    Revision::model("org/mine").git("config.json", "{}").write(&machine.hub());
    for line in [
        &["remote", "du", "--json"][..],
        &["remote", "gc", "--dry-run", "--json"],
        &["list", "--remote", "--json"],
        &["pull-all", "--dry-run", "--json"],
        &["verify", "--remote", "--json"],
        &["diff", "--json"],
        &["push", "--dry-run", "--json"],
    ] {
        let output = machine.run(line);
        assert!([0, 1, 5].contains(&output.code), "{line:?}: {output:#?}");
        output.nothing_internal();
    }
    let usage = machine.ok_json(&["remote", "du", "--json"]);
    assert_eq!(usage["blobs"]["bytes"].as_u64(), Some(u64::MAX), "{usage}");
}

/// Answers requests for an object with this many MiB of zeros, and lists it with this size.
fn put_bomb(store: &Scripted, key: &str, mib: usize, headers: &'static [(&str, &str)]) {
    let bomb = key.to_string();
    store.script(move |request, objects| {
        if request.key == bomb {
            let is_chunked = headers.iter().any(|(_, value)| *value == "chunked");
            let piece = vec![b' '; MIB];
            let piece = if is_chunked { [b"100000\r\n", &piece[..], b"\r\n"].concat() } else { piece };
            let reply = headers.iter().fold(Reply::new(200, piece), |reply, (name, value)| reply.header(name, value));
            return Some(reply.times(mib));
        }
        let prefix = request.parameter("prefix").filter(|_| request.is_list())?;
        let size = |key: &String, bytes: &[u8]| if *key == bomb { mib << 20 } else { bytes.len() };
        let found = objects.iter().filter(|(key, _)| key.starts_with(&prefix));
        let entries: Vec<String> = found
            .map(|(key, bytes)| {
                let entry = entry(key, bytes);
                let at = entry.find("<Size>").unwrap();
                format!("{}<Size>{}</Size></Contents>", &entry[..at], size(key, bytes))
            })
            .collect();
        Some(Reply::new(200, listing(&entries, "<IsTruncated>false</IsTruncated>")))
    });
}

/// Commands that read manifests and refs from the bucket.
const READING_COMMANDS: [&[&str]; 8] = [
    &["pull", "org/name"],
    &["pull-all"],
    &["push"],
    &["diff"],
    &["list", "--remote", "--sizes"],
    &["verify", "--remote"],
    &["remote", "du"],
    &["remote", "gc", "--dry-run"],
];

#[test]
fn an_object_that_is_too_large_is_refused_without_being_read() {
    let revision = Revision::model("org/name").git("config.json", "{}").refs(&["main"]);
    for (key, limit) in [(revision.manifest_key(), "256 MiB"), ("refs/org__name/main".to_string(), "256 bytes")] {
        let (store, machine) = store_with(&manifest(&file("a"), ""));
        revision.write(&machine.hub());
        put_bomb(&store, &key, 1024, &[]);
        for line in READING_COMMANDS {
            store.take_sent();
            let output = run_within(&machine, BASE, line);
            assert!([0, 1, 5].contains(&output.code), "{line:?}: {output:#?}");
            output.nothing_internal();
            // Buffers of the two sockets.
            let sent = store.take_sent();
            assert!(sent < 64 << 20, "{line:?} had {sent} bytes sent");
            if line[0] == "pull" {
                output.refused(5, &[&key, "larger than", limit]);
            }
        }
    }
}

#[test]
fn an_object_of_unknown_size_is_read_up_to_its_limit() {
    let revision = Revision::model("org/name").git("config.json", "{}").refs(&["main"]);
    for (key, limit) in [(revision.manifest_key(), 256 * MIB), ("refs/org__name/main".to_string(), 256)] {
        let (store, machine) = store_with(&manifest(&file("a"), ""));
        put_bomb(&store, &key, 1024, &[("transfer-encoding", "chunked")]);
        let output = run_within(&machine, BASE + 2 * limit, &["pull", "org/name"]);
        output.refused(5, &[&key, "larger than"]);
        let sent = store.take_sent();
        assert!(sent < limit as u64 + (64 << 20), "{sent} bytes of {key} were sent");
    }
}

#[test]
fn a_manifest_with_too_many_files_is_refused() {
    let entry = file("a") + ",";
    let text = manifest(entry.repeat(1_000_001).trim_end_matches(','), "");
    let (_store, machine) = store_with(&text);
    assert_refused(&machine, BASE + 4 * text.len(), &["pull", "org/name"], 5, &["more than 1000000 files"]);
}

/// Returns a machine with an empty bucket and this Hub as the fallback.
#[cfg(feature = "fallback")]
fn machine_with_hub(hub: &crate::harness::hub_server::Hub) -> (Scripted, Machine) {
    let store = Scripted::new();
    let mut machine = store.machine();
    machine.set("HF_ENDPOINT", &hub.url);
    (store, machine)
}

#[cfg(feature = "fallback")]
#[test]
fn documents_of_the_hub_are_limited_in_size() {
    use crate::harness::hub_server::{Hub, Reply};
    let line = ["pull", "model:org/name", "--fallback", "hf-hub"];
    for header in ["x-nothing", "transfer-encoding"] {
        for path in ["/revision/", "/tree/"] {
            let hub = Hub::start(&[Revision::model("org/name")]);
            let (_store, machine) = machine_with_hub(&hub);
            let body = vec![b' '; 40 * MIB];
            hub.script(move |request| {
                let reply = Reply { status: 200, headers: Vec::new(), body: body.clone() };
                request.target.contains(path).then(|| reply.with(header, "chunked"))
            });
            assert_refused(&machine, BASE + 64 * MIB, &line, 5, &["response is larger than 32 MiB"]);
        }
    }
}

#[cfg(feature = "fallback")]
#[test]
fn listings_of_the_hub_are_limited_in_length() {
    use crate::harness::hub_server::{Hub, Reply};
    const PER_PAGE: usize = 260_000;
    let hub = Hub::start(&[Revision::model("org/name")]);
    let (_store, machine) = machine_with_hub(&hub);
    hub.script(|request| {
        let (path, query) = request.target.split_once('?').unwrap_or_default();
        path.contains("/tree/").then_some(())?;
        let page: usize = query.rsplit_once("page=").map_or(0, |(_, page)| page.parse().unwrap());
        let mut body = String::from("[");
        for number in page * PER_PAGE..(page + 1) * PER_PAGE {
            body += &format!(r#"{{"type":"directory","path":"{number:x}"}},"#);
        }
        let body = (body.trim_end_matches(',').to_string() + "]").into_bytes();
        let reply = Reply { status: 200, headers: Vec::new(), body };
        Some(reply.with("link", format!("<{path}?page={}>; rel=\"next\"", page + 1)))
    });
    let line = ["pull", "model:org/name", "--fallback", "hf-hub"];
    assert_refused(&machine, BASE + 256 * MIB, &line, 5, &["its listing has more than 1000000 entries"]);
    assert_eq!(hub.requests().iter().filter(|request| request.target.contains("/tree/")).count(), 4);
}

/// Responds to every listing with this body.
fn list_with(store: &Scripted, body: impl Into<Vec<u8>>) {
    let body = Arc::new(body.into());
    store.script(move |request, _| request.is_list().then(|| Reply::new(200, body.as_slice())));
}

const LISTING_COMMANDS: [&[&str]; 6] =
    [&["push"], &["diff"], &["list", "--remote"], &["pull", "org/name"], &["pull-all"], &["remote", "gc", "--dry-run"]];

#[test]
fn listing_pages_are_limited_in_size() {
    let store = Scripted::new();
    let machine = store.machine();
    Revision::model("org/mine").git("config.json", "{}").write(&machine.hub());
    let open = "<ListBucketResult><IsTruncated>false</IsTruncated>";
    let pages = [
        (format!("{open}{}", " ".repeat(9 * MIB)), "larger than any of S3"),
        (format!("{open}{}", "<a/>".repeat(3 * MIB)), "larger than any of S3"),
        (format!("{open}{}</ListBucketResult>", "<a/>".repeat(MIB)), "too many XML elements"),
        (format!("{open}{}", "<Contents>".repeat(MIB / 2)), "malformed XML"),
    ];
    for (page, words) in pages {
        list_with(&store, page);
        for line in LISTING_COMMANDS {
            assert_refused(&machine, BASE + 64 * MIB, line, 6, &["is not an S3 store", words]);
        }
    }
}

#[test]
fn a_listing_that_has_no_end_is_an_error() {
    let store = Scripted::new();
    let machine = store.machine();
    Revision::model("org/mine").git("config.json", "{}").write(&machine.hub());
    let more =
        |token: &str| format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>");
    let key = |request: &Request, name: &str| match request.parameter("prefix").unwrap().as_str() {
        "refs" => format!("refs/org__name/{name}"),
        prefix => format!("{prefix}{name}"),
    };
    // The same token forever, and the same keys forever with new tokens.
    store.script(move |request, _| {
        request.is_list().then(|| Reply::new(200, listing(&[entry(&key(request, "a"), b"x")], &more("same"))))
    });
    for line in LISTING_COMMANDS {
        assert_refused(&machine, BASE, line, 6, &["its listing repeats itself and has no end"]);
    }
    let count = AtomicUsize::new(0);
    store.script(move |request, _| {
        let token = count.fetch_add(1, Ordering::SeqCst).to_string();
        request.is_list().then(|| Reply::new(200, listing(&[entry(&key(request, "a"), b"x")], &more(&token))))
    });
    for line in LISTING_COMMANDS {
        assert_refused(&machine, BASE, line, 6, &["its listing repeats itself and has no end"]);
    }
}

#[test]
fn a_listing_with_keys_outside_its_prefix_is_an_error() {
    let store = Scripted::new();
    let machine = store.machine();
    Revision::model("org/mine").git("config.json", "{}").write(&machine.hub());
    for key in ["other/key", "", &format!("blobs/{}", "a".repeat(2000))] {
        list_with(&store, listing(&[entry(key, b"x")], "<IsTruncated>false</IsTruncated>"));
        for line in LISTING_COMMANDS {
            assert_refused(&machine, BASE, line, 6, &["is not an S3 store"]);
        }
    }
}

#[test]
fn keys_in_any_order_and_twice_are_listed_once() {
    let store = Scripted::new();
    let revision = Revision::model("org/name").git("a.txt", "one").git("b.txt", "two").lfs("c.bin", weights(1, 3000));
    let revision = revision.refs(&["main"]);
    revision.objects().into_iter().for_each(|(key, bytes)| store.put(&key, bytes));
    store.script(|request, objects| {
        let prefix = request.parameter("prefix").filter(|_| request.is_list())?;
        // Two keys per page, backwards, and every page twice.
        let keys: Vec<_> = objects.iter().rev().filter(|(key, _)| key.starts_with(&prefix)).collect();
        let at: usize = request.parameter("continuation-token").map_or(0, |token| token.parse().unwrap());
        let page = keys.chunks(2).nth(at / 2).unwrap_or_default();
        let entries: Vec<String> = page.iter().map(|(key, bytes)| entry(key, bytes)).collect();
        let rest = match at + 1 < keys.len().div_ceil(2) * 2 {
            true => format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>", at + 1),
            false => "<IsTruncated>false</IsTruncated>".into(),
        };
        Some(Reply::new(200, listing(&entries, &rest)))
    });
    let machine = store.machine();
    machine.ok(&["pull", "org/name"]);
    revision.assert_pulled(&machine.hub());
    let usage = machine.ok_json(&["remote", "du", "--json"]);
    assert_eq!(usage["blobs"]["blobs"], revision.files.len(), "{usage}");
    let pushed = machine.ok_json(&["push", "--json"]);
    assert_eq!(pushed["uploaded"]["blobs"], 0, "{pushed}");
}

#[test]
fn memory_is_a_small_multiple_of_a_tree_in_the_cache() {
    let store = Scripted::new();
    let machine = store.machine();
    let revision = Revision::model("org/mine").git("config.json", "{}").refs(&["main"]);
    revision.write(&machine.hub());
    let trees = revision.dir(&machine.hub()).join("trees");
    fs::create_dir_all(&trees).unwrap();
    let tree = trees.join(format!("{COMMIT}.json"));
    let sha1 = revision.etag("config.json");
    let good = format!(r#""format_version":1,"files":{{"config.json":{{"size":2,"blob_id":"{sha1}"}}}}"#);
    let ones = format!("[1{}]", ",1".repeat(2 * MIB));
    let many: Vec<String> =
        (0..40_000).map(|number| format!(r#""{number:08x}":{{"size":2,"blob_id":"{sha1}"}}"#)).collect();
    for text in [
        format!(r#"{{{good},"x":{ones}}}"#),
        ones.clone(),
        format!(r#"{{"x":{ones}}}"#),
        format!(r#"{{{},{}}}}}"#, good.trim_end_matches('}').to_string() + "}", many.join(",")),
    ] {
        fs::write(&tree, &text).unwrap();
        for line in [&["diff"][..], &["push", "--dry-run"], &["verify"]] {
            let output = run_within(&machine, BASE + 4 * text.len(), line);
            assert!([0, 1, 5].contains(&output.code), "{line:?}: {output:#?}");
            output.nothing_internal();
        }
    }
    // It is not read at all.
    fs::File::create(&tree).unwrap().set_len(1 << 40).unwrap();
    let reference = revision.dir(&machine.hub()).join("refs/huge");
    fs::File::create(&reference).unwrap().set_len(1 << 40).unwrap();
    for line in [&["diff"][..], &["push", "--dry-run"], &["status"]] {
        let output = run_within(&machine, BASE, line);
        assert!([0, 1, 5].contains(&output.code), "{line:?}: {output:#?}");
    }
}

/// Truncates every blob response after this many bytes.
fn cut_after(store: &Scripted, bytes: usize) {
    store.script(move |request, objects| {
        let content = objects.get(&request.key).filter(|_| request.key.starts_with("blobs/"))?;
        let whole = read(request, content);
        let mut raw = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", whole.status, whole.body.len());
        whole.headers.iter().for_each(|(name, value)| raw += &format!("{name}: {value}\r\n"));
        let mut raw = (raw + "\r\n").into_bytes();
        raw.extend(whole.body.iter().take(bytes));
        Some(Reply { raw: Some(raw), ..Reply::default() })
    });
}

#[test]
fn a_blob_that_arrives_byte_by_byte_is_abandoned() {
    let store = Scripted::new();
    let revision = Revision::new("model", "org/name").lfs("small.bin", weights(1, 4000)).refs(&["main"]);
    revision.objects().into_iter().for_each(|(key, bytes)| store.put(&key, bytes));
    cut_after(&store, 1);
    for line in [&["pull", "org/name"][..], &["pull-all"], &["verify", "--remote", "--deep"]] {
        let machine = store.machine();
        store.take_seen();
        let output = machine.run(line);
        assert_eq!(output.code, 6, "{line:?}: {output:#?}");
        let asked = store.take_seen().into_iter().filter(|request| request.key.starts_with("blobs/")).count();
        assert!((2..=12).contains(&asked), "{line:?} sent {asked} requests for a blob");
    }
}

#[test]
fn a_slow_blob_that_makes_progress_arrives() {
    let store = Scripted::new();
    let revision = Revision::model("org/name").lfs("a.bin", weights(1, 700_000)).lfs("b.bin", weights(2, 9_000));
    let revision = revision.refs(&["main"]);
    revision.objects().into_iter().for_each(|(key, bytes)| store.put(&key, bytes));
    // More often than a body may break off without progress.
    cut_after(&store, 70_000);
    let machine = store.machine();
    machine.ok(&["pull", "org/name"]);
    revision.assert_pulled(&machine.hub());
}
