//! The requests of Hub clients, and the responses.

use serde_json::{Value, json};

use super::client::{self, Answer};
use super::{Serve, file, gets, push, setup};
use crate::harness::cache::{COMMIT, Content, OTHER, Revision};
use crate::harness::machine::Machine;
use crate::harness::store::Store;
use crate::harness::{git_sha1, weights};

const TYPES: [&str; 4] = ["model", "dataset", "space", "kernel"];

/// Returns a revision with all sorts of files.
fn mixed(kind: &str, id: &str) -> Revision {
    Revision::new(kind, id)
        .git("README.md", "---\nlicense: mit\ntags: [one, two]\npipeline_tag: fill-mask\n---\n# Title\n")
        .git("config.json", format!("{{\"kind\": \"{kind}\"}}\n"))
        .git("empty.txt", "")
        .git("ordner/größe #1?.txt", "x")
        .lfs("ordner/model.safetensors", weights(id.len() as u64, 300_000))
        .refs(&["main", "v1.0", "refs/pr/1", "refs/convert/parquet"])
}

/// Encodes a path as clients do.
fn encoded(path: &str) -> String {
    let encode = |part| percent_encoding::utf8_percent_encode(part, percent_encoding::NON_ALPHANUMERIC).to_string();
    path.split('/').map(encode).collect::<Vec<_>>().join("/")
}

/// Asserts the headers of a file that clients rely on.
#[track_caller]
fn assert_head(answer: &Answer, file: &Content, commit: &str) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let etag = format!("\"{}\"", file.etag());
    let size = file.bytes.len().to_string();
    let expected = [
        ("etag", etag.as_str()),
        ("x-linked-etag", &etag),
        ("x-linked-size", &size),
        ("content-length", &size),
        ("x-repo-commit", commit),
        ("accept-ranges", "bytes"),
    ];
    for (name, value) in expected {
        assert_eq!(answer.header(name), value, "{name}: {answer:?}");
    }
    for name in ["location", "link", "x-xet-hash", "content-encoding", "transfer-encoding", "set-cookie"] {
        assert!(!answer.headers.contains_key(name), "{name}: {answer:?}");
    }
}

#[test]
fn files_of_every_type_at_every_kind_of_revision() {
    let revisions = TYPES.map(|kind| mixed(kind, &format!("org/a-{kind}")));
    let (store, machine) = setup(&revisions[..3]);
    // 0.1.0 does not know kernels.
    push(&store, &revisions[3]);
    let serve = Serve::start(&machine, &[]);
    for revision in &revisions {
        let prefixes = match revision.kind.as_str() {
            "model" => vec!["".to_string(), "/models".into()],
            kind => vec![format!("/{kind}s")],
        };
        let names = ["main", "HEAD", "v1.0", "refs/pr/1", "refs%2Fpr%2F1", "refs%2Fconvert%2Fparquet", COMMIT];
        for name in names.into_iter().chain([&COMMIT[..8]]) {
            for (prefix, file) in
                prefixes.iter().flat_map(|prefix| revision.files.iter().map(move |file| (prefix, file)))
            {
                let path = format!("{prefix}/{}/resolve/{name}/{}", revision.id, encoded(&file.path));
                let head = serve.head(&path);
                assert_head(&head, file, COMMIT);
                let get = serve.get(&format!("{path}?download=true"));
                assert_head(&get, file, COMMIT);
                assert!(get.body == file.bytes && head.body.is_empty(), "{path}");
            }
        }
    }
    // Served files are in the cache, as if they had been pulled.
    drop(serve);
    for revision in &revisions {
        for file in &revision.files {
            assert!(std::fs::read(revision.snapshot(&machine.hub()).join(&file.path)).unwrap() == file.bytes);
        }
    }
}

/// huggingface_hub resumes at the `Location` of a HEAD. With the name of a branch, it could get the rest of another file.
#[test]
fn head_gives_the_location_at_the_commit() {
    let bytes = |seed: u8| vec![seed; 1000];
    for kind in TYPES {
        let revision = Revision::new(kind, "org/name").lfs("a b/ü#.bin", bytes(1));
        let store = Store::new();
        push(&store, &revision);
        let machine = Machine::new(&store);
        let serve = Serve::start(&machine, &["--refresh", "0"]);
        let agent = ("user-agent", "unknown/None; hf_hub/0.36.2; python/3.11");
        let by_name = file(&revision, "a%20b/%C3%BC%23.bin");
        let head = serve.ask("HEAD", &by_name, &[agent]);
        let by_commit = by_name.replace("/main/", &format!("/{COMMIT}/"));
        assert_eq!((head.status, head.header("x-repo-commit")), (200, COMMIT), "{head:?}");
        assert!(head.header("location").starts_with("http://127.0.0.1:"), "{head:?}");
        assert!(head.header("location").ends_with(&by_commit), "{head:?}");
        assert_head(&serve.ask("HEAD", &by_commit, &[agent]), revision.file("a b/ü#.bin"), COMMIT);
        assert_eq!(serve.head(&by_name).header("location"), "", "other clients are not led away");
        assert!(serve.ask("GET", &by_name, &[agent]).body == bytes(1));
        // The branch moves.
        let moved = Revision::new(kind, "org/name").lfs("a b/ü#.bin", bytes(2));
        push(&store, &Revision { commit: "f".repeat(40), ..moved });
        assert!(serve.ask("GET", &by_name, &[agent, ("range", "bytes=500-")]).body == bytes(2)[500..]);
        let rest = serve.ask("GET", &by_commit, &[agent, ("range", "bytes=500-")]);
        assert!(rest.status == 206 && rest.body == bytes(1)[500..]);
    }
}

#[test]
fn the_info_of_a_revision() {
    for has_tree in [false, true] {
        for kind in TYPES {
            let store = Store::new();
            let revision = mixed(kind, "org/name");
            match has_tree {
                true => push(&store, &revision.clone().with_tree()),
                false if kind == "kernel" => push(&store, &revision),
                false => revision.publish(&store),
            }
            let serve = Serve::start(&Machine::new(&store), &[]);
            let mut paths: Vec<String> = revision.files.iter().map(|file| file.path.clone()).collect();
            paths.sort();
            for suffix in ["", "/revision/main", "/revision/refs%2Fpr%2F1", &format!("/revision/{COMMIT}")] {
                let info = serve.json(&format!("/api/{kind}s/org/name{suffix}"));
                let siblings = info["siblings"].as_array().unwrap();
                let listed: Vec<&str> = siblings.iter().map(|one| one["rfilename"].as_str().unwrap()).collect();
                assert_eq!(listed, paths, "{kind}{suffix}");
                assert_eq!((&info["id"], &info["sha"]), (&json!("org/name"), &json!(COMMIT)));
                assert_eq!(
                    (&info["private"], &info["gated"], &info["disabled"]),
                    (&json!(false), &json!(false), &json!(false))
                );
                assert_eq!(info["cardData"]["license"], "mit");
                assert_eq!(info["tags"], json!(["one", "two", "fill-mask", "license:mit"]));
                assert!(info["_id"].is_string() && info["lastModified"].as_str().unwrap().ends_with('Z'));
                if kind == "model" {
                    assert_eq!(info["pipeline_tag"], "fill-mask");
                }
                assert!(siblings[0].get("size").is_none());
            }
            let info = serve.json(&format!("/api/{kind}s/org/name?blobs=true"));
            for sibling in info["siblings"].as_array().unwrap() {
                let file = revision.file(sibling["rfilename"].as_str().unwrap());
                assert_eq!(sibling["size"], file.bytes.len());
                assert_oid(&sibling["blobId"], &sibling["lfs"], "sha256", file);
            }
        }
    }
}

/// Asserts the git oid of a file, and its LFS entry if it is in LFS.
#[track_caller]
fn assert_oid(oid: &Value, lfs: &Value, hash: &str, file: &Content) {
    if file.lfs {
        let (sha256, size) = (file.etag(), file.bytes.len());
        let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n");
        assert_eq!(*lfs, json!({ hash: sha256, "size": size, "pointerSize": pointer.len() }));
        assert_eq!(*oid, git_sha1(pointer.as_bytes()));
    } else {
        assert_eq!((oid, lfs), (&json!(file.etag()), &Value::Null));
    }
}

#[test]
fn listings_of_folders() {
    let revision = mixed("dataset", "org/name").git("ordner/tief/a.txt", "a");
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    let paths = |suffix: &str| {
        let entries = serve.json(&format!("/api/datasets/org/name/tree/{suffix}"));
        let entries = entries.as_array().unwrap().clone();
        entries.iter().map(|entry| entry["path"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    let root = ["README.md", "config.json", "empty.txt", "ordner"];
    for suffix in
        ["main", "main/", "main?recursive=false", "main?recursive=False&expand=false", COMMIT, "refs%2Fpr%2F1"]
    {
        assert_eq!(paths(suffix), root, "{suffix}");
    }
    let inner = ["ordner/größe #1?.txt", "ordner/model.safetensors", "ordner/tief", "ordner/tief/a.txt"];
    for word in ["true", "True", "1"] {
        assert_eq!(paths(&format!("main?recursive={word}&expand=false")), [&root[..], &inner[..]].concat());
    }
    assert_eq!(paths("main/ordner"), inner[..3]);
    assert_eq!(paths("main/ordner/tief?recursive=true"), inner[3..]);
    let listed = serve.json("/api/datasets/org/name/tree/main?recursive=true&expand=true");
    for entry in listed.as_array().unwrap() {
        assert_eq!(entry["lastCommit"]["id"], COMMIT);
        assert!(entry["lastCommit"]["date"].is_string() && entry["lastCommit"]["title"].is_string());
        assert!(entry.get("xetHash").is_none());
        match entry["type"].as_str().unwrap() {
            "directory" => assert_eq!((&entry["size"], entry["oid"].as_str().unwrap().len()), (&json!(0), 40)),
            "file" => {
                let file = revision.file(entry["path"].as_str().unwrap());
                assert_eq!(entry["size"], file.bytes.len());
                assert_oid(&entry["oid"], &entry["lfs"], "oid", file);
            }
            other => panic!("{other}"),
        }
    }
    serve.get("/api/datasets/org/name/tree/main/none").refused(404, "EntryNotFound");
}

#[test]
fn paths_are_read_from_a_form_or_json() {
    let revision = mixed("dataset", "org/name");
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    let form = (
        "application/x-www-form-urlencoded",
        "paths=config.json&paths=ordner&paths=none&paths=ordner%2Fmodel.safetensors&expand=True",
    );
    let document = (
        "application/json",
        r#"{"paths": ["config.json", "ordner", "none", "ordner/model.safetensors"], "expand": true}"#,
    );
    for (kind, body) in [form, document] {
        let path = "/api/datasets/org/name/paths-info/main";
        let answer =
            client::open(serve.port, "POST", path, &[("content-type", kind)], body.as_bytes()).unwrap().finish();
        let entries = answer.json();
        let entries = entries.as_array().unwrap();
        let paths: Vec<&str> = entries.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["config.json", "ordner", "ordner/model.safetensors"], "{answer:?}");
        assert_eq!(entries[1]["type"], "directory");
        assert!(entries.iter().all(|entry| entry["lastCommit"]["id"] == COMMIT));
        assert_oid(&entries[2]["oid"], &entries[2]["lfs"], "oid", revision.file("ordner/model.safetensors"));
    }
    for (kind, body) in [("application/json", "{"), ("application/json", "[]"), ("text/plain", "\u{e4}"), (form.0, "")]
    {
        let path = "/api/datasets/org/name/paths-info/main";
        let answer =
            client::open(serve.port, "POST", path, &[("content-type", kind)], body.as_bytes()).unwrap().finish();
        assert_eq!(answer.status, 400, "{kind} {body}: {answer:?}");
    }
    assert_eq!(serve.get("/api/datasets/org/name/paths-info/main").status, 405);
}

#[test]
fn refs_are_listed_by_kind() {
    let (_store, machine) = setup(&[
        mixed("model", "org/name"),
        Revision::new("model", "org/name").git("a", "a").at(OTHER).refs(&["feature/x"]),
    ]);
    let serve = Serve::start(&machine, &[]);
    let refs = serve.json("/api/models/org/name/refs");
    let of = |list: &str, all: &Value| {
        let list = all[list].as_array().unwrap_or_else(|| panic!("{list}: {all}")).clone();
        list.iter()
            .map(|one| format!("{} {}", one["ref"].as_str().unwrap(), one["targetCommit"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("branches", &refs), [format!("refs/heads/feature/x {OTHER}"), format!("refs/heads/main {COMMIT}")]);
    assert_eq!(of("tags", &refs), [format!("refs/tags/v1.0 {COMMIT}")]);
    assert_eq!(of("converts", &refs), [format!("refs/convert/parquet {COMMIT}")]);
    assert!(refs.get("pullRequests").is_none());
    let refs = serve.json("/api/models/org/name/refs?include_prs=1");
    assert_eq!(of("pullRequests", &refs), [format!("refs/pr/1 {COMMIT}")]);
}

/// huggingface.js does not escape them when it lists files.
#[test]
fn slashes_in_a_branch_need_no_escaping() {
    let (_store, machine) = setup(&[
        mixed("model", "org/name"),
        Revision::new("model", "org/name").git("b/a", "a").at(OTHER).refs(&["feature/x"]),
    ]);
    let serve = Serve::start(&machine, &[]);
    let listing = serve.json("/api/models/org/name/tree/feature%2Fx?recursive=true");
    assert_eq!(serve.json("/api/models/org/name/tree/feature/x?recursive=true"), listing);
    assert_eq!(serve.json("/api/models/org/name/tree/feature/x/b")[0]["path"], "b/a");
    assert_eq!(serve.json("/api/models/org/name/revision/feature/x")["sha"], OTHER);
    assert_eq!(
        serve.json("/api/models/org/name/tree/v1.0/ordner"),
        serve.json("/api/models/org/name/tree/main/ordner")
    );
    serve.get("/api/models/org/name/tree/main/none").refused(404, "EntryNotFound");
    serve.get("/api/models/org/name/tree/feature/x/none").refused(404, "EntryNotFound");
    serve.get("/api/models/org/name/tree/other/x").refused(404, "RevisionNotFound");
}

#[test]
fn errors_for_missing_files_match_the_hub() {
    let (_store, machine) = setup(&[mixed("model", "org/name")]);
    let serve = Serve::start(&machine, &[]);
    for path in [
        "/org/none/resolve/main/a",
        "/none/resolve/main/a",
        "/datasets/org/name/resolve/main/config.json",
        "/api/models/org/none",
        "/api/models/org/none/tree/main",
        "/api/models/org/none/refs",
        "/api/models/org/none/auth-check",
        "/a--b/resolve/main/a",
    ] {
        for method in ["GET", "HEAD"] {
            let answer = serve.ask(method, path, &[]);
            answer.refused(404, "RepoNotFound");
            assert_eq!(answer.header("x-repo-commit"), "");
        }
    }
    for path in [
        "/org/name/resolve/none/a",
        "/org/name/resolve/refs%2Fpr%2F9/a",
        "/api/models/org/name/revision/none",
        "/api/models/org/name/tree/none",
        &format!("/org/name/resolve/{OTHER}/a"),
    ] {
        let answer = serve.get(path);
        answer.refused(404, "RevisionNotFound");
        assert_eq!(answer.header("x-repo-commit"), "");
    }
}

/// With `X-Repo-Commit`, huggingface_hub caches forever that there is no such file.
#[test]
fn only_a_tree_proves_that_a_file_does_not_exist() {
    let whole = Revision::model("org/whole").with_tree();
    let part = Revision::model("org/part").with_tree().git("absent.txt", "x").without(&["absent.txt"]);
    let old = Revision::model("org/old").git("absent.txt", "x").without(&["absent.txt"]);
    let store = Store::new();
    push(&store, &whole);
    push(&store, &part);
    old.publish(&store);
    let serve = Serve::start(&Machine::new(&store), &[]);
    for (revision, commit) in [(&whole, COMMIT), (&part, COMMIT), (&old, "")] {
        for method in ["HEAD", "GET"] {
            let answer = serve.ask(method, &file(revision, "none.txt"), &[]);
            answer.refused(404, "EntryNotFound");
            assert_eq!(answer.header("x-repo-commit"), commit, "{}: {answer:?}", revision.id);
        }
    }
    // The commit has it, but it was never pushed. Clients must neither cache that as absence nor retry for long.
    let answer = serve.get(&file(&part, "absent.txt"));
    answer.refused(424, "");
    assert_eq!(answer.header("x-repo-commit"), "");
    assert!(answer.header("x-error-message").contains("never pushed"), "{answer:?}");
    // After a failed HEAD, huggingface_hub reports that it cannot connect.
    assert_eq!(serve.ask("HEAD", &file(&part, "absent.txt"), &[]).status, 200);
    let listed = serve.json("/api/models/org/part/tree/main");
    assert_eq!(listed.as_array().unwrap().len(), 3, "the whole commit is listed: {listed}");
    let answer = serve.get(&file(&old, "absent.txt"));
    answer.refused(404, "EntryNotFound");
    assert_eq!(answer.header("x-repo-commit"), "");
}

/// huggingface.js requests these to find out whether a file exists.
#[test]
fn raw_files_are_pointers_if_they_are_in_lfs() {
    let revision = Revision::new("model", "org/name").lfs("a.bin", weights(3, 200_000)).git("b.txt", "text");
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    let raw = |path: &str| file(&revision, path).replace("/resolve/", "/raw/");
    let etag = revision.etag("a.bin");
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{etag}\nsize 200000\n");
    let oid = serve.json("/api/models/org/name/tree/main")[0]["oid"].as_str().unwrap().to_string();
    for (method, content) in [("HEAD", ""), ("GET", pointer.as_str())] {
        let answer = serve.ask(method, &raw("a.bin"), &[]);
        assert_eq!((answer.status, answer.text().as_str()), (200, content), "{answer:?}");
        assert_eq!(answer.header("content-length"), pointer.len().to_string());
        assert_eq!(answer.header("etag"), format!("\"{oid}\""));
    }
    let part = serve.ask("GET", &raw("a.bin"), &[("range", "bytes=0-6")]);
    assert_eq!((part.status, part.text().as_str()), (206, "version"));
    assert_eq!(gets(&store.server.take_seen(), &revision.blob_key("a.bin")), 0);
    assert_eq!(serve.get(&raw("b.txt")).text(), "text");
    serve.get(&raw("c.txt")).refused(404, "EntryNotFound");
}

#[test]
fn ranges() {
    let revision = Revision::new("model", "org/name").lfs("a.bin", weights(3, 200_000)).git("empty.txt", "");
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    let (path, bytes) = (file(&revision, "a.bin"), &revision.file("a.bin").bytes);
    let size = bytes.len();
    let parts = [
        ("bytes=0-0", 0..1),
        ("bytes=0-100000", 0..100_001),
        ("bytes=150000-", 150_000..size),
        ("bytes=0-", 0..size),
        ("bytes=199999-199999", 199_999..size),
        ("bytes=100-999999999", 100..size),
        ("bytes=-10", size - 10..size),
        ("bytes=-999999999", 0..size),
    ];
    for (range, part) in parts {
        let content = format!("bytes {}-{}/{size}", part.start, part.end - 1);
        for method in ["HEAD", "GET"] {
            let answer = serve.ask(method, &path, &[("range", range)]);
            assert_eq!((answer.status, answer.header("content-range")), (206, content.as_str()), "{range}: {answer:?}");
            assert_eq!(answer.header("content-length"), part.len().to_string());
            assert_eq!(answer.header("x-repo-commit"), COMMIT);
            assert_eq!(answer.header("etag"), format!("\"{}\"", revision.etag("a.bin")));
            if method == "GET" {
                assert!(answer.is_complete && answer.body == bytes[part.clone()], "{range}");
            }
        }
    }
    for range in ["bytes=200000-", "bytes=200000-200001", "bytes=99999999999999999999999-", "bytes=-0"] {
        let answer = serve.ask("GET", &path, &[("range", range)]);
        assert_eq!((answer.status, answer.header("content-range")), (416, "bytes */200000"), "{range}: {answer:?}");
        assert!(answer.body.is_empty());
    }
    for range in ["", "bytes", "bytes=", "bytes=-", "bytes=b-a", "bytes=5-1", "lines=0-1", "bytes=0-1,4-5"] {
        let answer = serve.ask("GET", &path, &[("range", range)]);
        assert!(answer.status == 200 && answer.body == *bytes, "{range}: {answer:?}");
    }
    for range in ["bytes=0-0", "bytes=0-", "bytes=5-"] {
        let answer = serve.ask("GET", &file(&revision, "empty.txt"), &[("range", range)]);
        assert_eq!((answer.status, answer.header("content-range"), answer.body.len()), (200, "bytes */0", 0));
    }
    // Several concurrent requests, as by hf-hub.
    std::thread::scope(|scope| {
        for at in (0..size).step_by(20_000) {
            let (serve, path) = (&serve, &path);
            scope.spawn(move || {
                let answer = serve.ask("GET", path, &[("range", &format!("bytes={at}-{}", at + 19_999))]);
                assert!(answer.status == 206 && answer.body == bytes[at..at + 20_000]);
            });
        }
    });
}

#[test]
fn several_requests_on_one_connection() {
    use std::io::{BufReader, Write};
    let revision = Revision::new("model", "org/name").git("config.json", "{}");
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    let mut stream = client::connect(serve.port).unwrap();
    for (method, path, status) in [
        ("HEAD", "/org/name/resolve/main/config.json", 200),
        ("GET", "/org/name/resolve/main/none", 404),
        ("HEAD", "/org/name/resolve/main/none", 404),
        ("GET", "/org/name/resolve/main/config.json", 200),
        ("HEAD", "/", 200),
        ("GET", "/healthz", 200),
    ] {
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let reply = client::read_reply(BufReader::new(stream.try_clone().unwrap()), method).unwrap();
        assert_eq!(reply.status, status, "{method} {path}");
        assert!(reply.finish().is_complete);
    }
}

#[test]
fn unsupported_requests_are_refused_without_a_request_to_the_store() {
    let (store, machine) = setup(&[Revision::model("org/name")]);
    let serve = Serve::start(&machine, &[]);
    store.server.take_seen();
    for path in [
        "/api/models/org/name/xet-read-token/main",
        "/api/models/org/name/commits/main",
        "/api/models/org/name/discussions",
        "/api/models/org/name/discussions/1",
        "/api/models/org/name/safetensors-metadata",
        "/api/datasets/org/name/parquet",
        "/api/datasets/org/name/jwt",
        "/api/models",
        "/api/datasets",
        "/api/telemetry/x/y",
        "/info",
        "/parquet",
        "/org/name",
        "/org/name/blob/main/config.json",
        "/favicon.ico",
        "//",
        "/api//org/name",
    ] {
        for method in ["GET", "HEAD", "POST"] {
            let answer = serve.ask(method, path, &[]);
            assert_eq!(answer.status, 404, "{method} {path}: {answer:?}");
            assert_eq!(answer.header("x-error-code"), "", "{method} {path}");
        }
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = serve.ask(method, "/org/name/resolve/main/config.json", &[]);
        assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD"), "{method}");
    }
    let seen = store.server.take_seen();
    assert!(seen.is_empty(), "{seen:?}");
    assert_eq!(serve.json("/api/whoami-v2")["type"], "user");
    assert_eq!(serve.json("/api/models/org/name/auth-check"), json!({}));
}

/// huggingface_hub refuses more than 50 GB over plain HTTP; since 1.33, only if the size is sent.
#[test]
fn the_size_of_a_huge_file_is_omitted_if_the_client_accepts_that() {
    let revision = Revision::model("org/name");
    let store = Store::new();
    revision.publish(&store);
    let mut manifest = revision.manifest();
    manifest["files"][1]["size"] = json!(60_000_000_000_u64);
    store.put(&revision.manifest_key(), manifest.to_string());
    let serve = Serve::start(&Machine::new(&store), &[]);
    let path = file(&revision, "model.safetensors").replace("/main/", &format!("/{COMMIT}/"));
    for (agent, size) in
        [("unknown/None; hf_hub/0.36.2; python/3.11", "60000000000"), ("unknown/None; hf_hub/2.4.0; python/3.11", "")]
    {
        let answer = serve.ask("HEAD", &path, &[("user-agent", agent)]);
        assert_eq!(
            (answer.status, answer.header("content-length"), answer.header("x-linked-size")),
            (200, size, size),
            "{answer:?}"
        );
        assert_eq!(answer.header("etag"), format!("\"{}\"", revision.etag("model.safetensors")));
    }
    assert_eq!(serve.json("/api/models/org/name/tree/main")[1]["size"], 60_000_000_000_u64);
}
