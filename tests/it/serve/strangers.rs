//! Requests that no Hub client sends: other hosts, wrong tokens, odd paths, floods.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use super::client::{self, connect};
use super::{Serve, file, setup};
use crate::harness::cache::{COMMIT, Revision};
use crate::harness::machine::{Machine, Output};
use crate::harness::store::Store;
use crate::harness::{wait_until, weights};

const TOKEN: &str = "team-secret-1234";

/// Returns a machine with a token file.
fn with_token(store: &Store) -> (Machine, String) {
    let machine = Machine::new(store);
    let path = machine.work().join("token");
    fs::write(&path, format!("{TOKEN}\n")).unwrap();
    (machine, path.display().to_string())
}

#[test]
fn a_web_page_cannot_read_through_its_own_host_name() {
    let revision = Revision::model("org/name");
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    store.server.take_seen();
    for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost.evil.example"]
    {
        for path in ["/", "/status.json", "/metrics", "/healthz", &file(&revision, "config.json")] {
            let answer = serve.ask("GET", path, &[("host", host)]);
            assert_eq!(answer.status, 421, "{host} {path}: {answer:?}");
            assert!(!answer.text().contains("team-cache"), "{answer:?}");
        }
    }
    assert!(store.server.take_seen().is_empty());
    // The host counts, not the target.
    let target = format!("http://localhost:{}{}", serve.port, file(&revision, "config.json"));
    assert_eq!(serve.ask("GET", &target, &[("host", "evil.example")]).status, 421);
    for host in ["localhost", "127.0.0.1:1", "[::1]:8090", "LOCALHOST"] {
        assert_eq!(serve.ask("GET", &file(&revision, "config.json"), &[("host", host)]).status, 200, "{host}");
    }
    let answer = serve.get("/");
    assert!(answer.header("content-security-policy").contains("default-src 'none'"));
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[test]
fn the_token_grants_access_and_is_never_shown() {
    let revision = Revision::model("org/name");
    let (store, _) = setup(std::slice::from_ref(&revision));
    for trace in [false, true] {
        let (mut machine, path) = with_token(&store);
        if trace {
            machine.set("RUST_LOG", "trace");
        }
        let serve = Serve::start(&machine, &["-vv", "--token-file", &path]);
        let right = format!("Bearer {TOKEN}");
        for value in ["Bearer wrong-token-77", "Bearer ", "Basic d3Jvbmc=", TOKEN, "Bearer team-secret-12345", ""] {
            let answer = serve.ask("GET", &file(&revision, "config.json"), &[("authorization", value)]);
            answer.refused(401, "");
            assert_eq!(answer.header("x-error-message"), "Invalid credentials in Authorization header", "{value}");
        }
        for path in ["/", "/status.json", "/metrics", "/api/whoami-v2", "/nothing", &file(&revision, "config.json")] {
            assert_eq!(serve.get(path).status, 401, "{path}");
        }
        assert_eq!(serve.get("/healthz").status, 200, "probes have no token");
        let answer = serve.ask(
            "GET",
            &file(&revision, "model.safetensors"),
            &[("authorization", &right), ("host", "cache.team.example")],
        );
        assert!(answer.status == 200 && answer.body == revision.file("model.safetensors").bytes);
        let page = serve.ask("GET", "/", &[("authorization", "Basic dXNlcjp0ZWFtLXNlY3JldC0xMjM0")]);
        assert_eq!(page.status, 200);
        let status = serve.ask("GET", "/status.json", &[("authorization", &right)]);
        let output = serve.stop();
        assert!(output.stderr.contains("/org/name/resolve/main/model.safetensors"), "it logs requests");
        for text in [&output.stderr, &output.stdout, &page.text(), &status.text()] {
            for secret in [TOKEN, "wrong-token-77", "dGVhbS1zZWNyZXQ", "dXNlcjp0ZWF"] {
                assert!(!text.contains(secret), "{secret} in {text}");
            }
        }
        output.nothing_secret();
    }
}

impl Output {
    /// Asserts that the output has no secret key.
    #[track_caller]
    fn nothing_secret(&self) {
        assert!(
            !self.stderr.contains(crate::harness::s3::SECRET_KEY)
                && !self.stdout.contains(crate::harness::s3::SECRET_KEY)
        );
    }
}

#[test]
fn a_token_file_that_cannot_be_used_is_refused() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let at = |name: &str| machine.work().join(name).display().to_string();
    let refuse = |path: &str, words: &[&str]| {
        machine.run(&["serve", "--listen", "127.0.0.1:0", "--token-file", path]).refused(2, words);
    };
    refuse(&at("none"), &["token file", "none", "HF_TOKEN"]);
    refuse(&at(""), &["token file"]);
    for (name, content, why) in [
        ("empty", "", "empty"),
        ("blank", " \n\n", "empty"),
        ("two", "one\ntwo\n", "line breaks"),
        ("umlaut", "geheim\u{e4}", "ASCII"),
        ("control", "a\u{7}b", "ASCII"),
    ] {
        fs::write(machine.work().join(name), content).unwrap();
        refuse(&at(name), &[name, why]);
    }
    fs::write(machine.work().join("binary"), [0xff, 0xfe, 0]).unwrap();
    refuse(&at("binary"), &["not text"]);
    fs::write(machine.work().join("huge"), "x".repeat(100_000)).unwrap();
    refuse(&at("huge"), &["too large"]);
    assert!(std::process::Command::new("mkfifo").arg(machine.work().join("pipe")).status().unwrap().success());
    refuse(&at("pipe"), &["token file"]);
}

#[test]
fn an_address_that_cannot_be_used_is_refused() {
    let store = Store::new();
    let (machine, token) = with_token(&store);
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        machine.run(&["serve", "--listen", listen]).refused(2, &["not a loopback address", "--token-file"]);
    }
    machine
        .run(&["serve", "--listen", "192.0.2.1:0", "--token-file", &token])
        .refused(1, &["192.0.2.1", "does not have that address"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    machine.run(&["serve", "--listen", &address]).refused(1, &[&address, "in use", "--listen"]);
    for listen in ["8090", "localhost", "127.0.0.1:x", "127.0.0.1:99999", "", "http://127.0.0.1:1"] {
        machine.run(&["serve", "--listen", listen]).refused(2, &["--listen"]);
    }
    for line in [
        &["serve", "--env", "--listen", "127.0.0.1:0"][..],
        &["serve", "--push"],
        &["serve", "--offline", "--fallback", "hf-hub"],
        &["serve", "--offline", "--max-size", "1GB"],
        &["serve", "--max-size", "-1"],
        &["serve", "--refresh", "soon"],
        &["serve", "--env", "--", "true"],
        &["serve", "true"],
    ] {
        let output = machine.run(line);
        assert!(output.code == 2 && output.stderr.starts_with("error: "), "{line:?}: {output:?}");
    }
}

#[test]
fn paths_cannot_leave_a_repo() {
    let revision = Revision::model("org/name");
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    fs::write(machine.hub().join("secret.txt"), "the content of a file outside").unwrap();
    let serve = Serve::start(&machine, &[]);
    assert_eq!(serve.get(&file(&revision, "config.json")).status, 200);
    let names = [
        "../../../../secret.txt",
        "..%2f..%2f..%2f..%2fsecret.txt",
        "%2e%2e/%2e%2e/%2e%2e/%2e%2e/secret.txt",
        "a/../../secret.txt",
        "..",
        "%2e%2e",
        ".%2e/x",
        "..%5c..%5csecret.txt",
        "a//b",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "config.json/",
        "config.json%00.txt",
        "%ff",
        "a%0d%0ab",
        "\\",
        "C:/x",
    ];
    for name in names {
        for method in ["GET", "HEAD"] {
            let answer = serve.ask(method, &file(&revision, name), &[]);
            assert!(matches!(answer.status, 400 | 404), "{name}: {answer:?}");
            assert!(!answer.text().contains("outside"), "{name}: {answer:?}");
        }
    }
    for path in [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/org/name/resolve/../x",
        "/org/name/resolve/..%2f..%2fx/config.json",
        "/api/models/../../x",
        "/api/models/%2e%2e/x",
        "/org%2Fname/resolve/main/config.json",
    ] {
        let answer = serve.get(path);
        assert!(matches!(answer.status, 200 | 400 | 404), "{path}: {answer:?}");
        assert!(!answer.text().contains("root:"), "{path}: {answer:?}");
    }
    // An encoded slash is a slash, as on the Hub.
    let nested = Revision::new("model", "org/nested").git("a/b.txt", "x");
    let (_other, machine) = setup(std::slice::from_ref(&nested));
    let serve = Serve::start(&machine, &[]);
    assert_eq!(serve.get("/org/nested/resolve/main/a%2Fb.txt").body, b"x");
}

/// Returns the status of a response to these raw bytes; 0 if the connection is closed without one.
fn status_of(port: u16, bytes: &[u8]) -> u16 {
    let mut stream = connect(port).unwrap();
    // The server may answer, and close, before it has read everything.
    let _ = stream.write_all(bytes);
    client::read_reply(BufReader::new(stream), "HEAD").map_or(0, |reply| reply.status)
}

#[test]
fn floods_are_refused_without_affecting_other_clients() {
    let revision = Revision::model("org/name");
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    let get = |headers: String| format!("GET / HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").into_bytes();
    let many: String = (0..5000).map(|n| format!("x-{n}: y\r\n")).collect();
    assert_eq!(status_of(serve.port, &get(many)), 431, "many headers");
    assert_eq!(status_of(serve.port, &get(format!("x: {}\r\n", "y".repeat(10 << 20)))), 431, "a long header");
    for length in [17_000, 60_000, 200_000, 10 << 20] {
        let target = format!("GET /org/name/resolve/main/{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(length));
        let status = status_of(serve.port, target.as_bytes());
        assert!(matches!(status, 400 | 414 | 431), "{length}: {status}");
    }
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ] {
        let mut stream = connect(serve.port).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&rest));
    }
    // A body that never arrives, and one that is too long.
    let path = "/api/models/org/name/paths-info/main";
    let long = client::open(serve.port, "POST", path, &[("content-type", "application/json")], &vec![b' '; 5 << 20]);
    assert!(long.is_err() || long.is_ok_and(|reply| reply.status == 413));
    let answer = serve.get(&file(&revision, "config.json"));
    assert_eq!(answer.status, 200);
}

/// Returns the resident memory of a process in KiB.
#[cfg(target_os = "linux")]
fn memory(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn slow_readers_cost_little_memory() {
    let revision = Revision::new("model", "org/name").lfs("model.bin", weights(1, 64 << 20));
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &["--no-sync"]);
    let path = file(&revision, "model.bin");
    assert_eq!(serve.get(&path).body.len(), 64 << 20);
    let readers: Vec<_> = (0..100).map(|_| serve.open("GET", &path, &[])).collect();
    wait_until("all of them", || serve.metric("responses_in_flight") >= 100);
    let used = memory(serve.running.id());
    assert!(used < 300 << 10, "{used} KiB for readers of {} MiB", 100 * 64);
    drop(readers);
    wait_until("the end of their responses", || serve.metric("responses_in_flight") == 0);
}

/// Lists are generated as they are read. As a whole, each of these takes 7 MB, more than the buffers of a socket.
#[cfg(target_os = "linux")]
#[test]
fn unread_lists_cost_little_memory() {
    const FILES: usize = 6_000;
    let folder = format!("{}/", "a".repeat(200)).repeat(6);
    let (store, machine) = setup(&[]);
    let revision = Revision::model("org/name");
    let files: Vec<String> = (0..FILES)
        .map(|number| format!(r#"{{"path":"{folder}{number}.bin","blob":"{number:064x}","size":6}}"#))
        .collect();
    let manifest = json!({ "repo": "org/name", "revision": COMMIT, "repo_type": "model", "files": [] }).to_string();
    store.put(&revision.manifest_key(), manifest.replace("[]", &format!("[{}]", files.join(","))));
    store.put("refs/org__name/main", COMMIT);
    let serve = Serve::start(&machine, &[]);
    let (tree, info) = ("/api/models/org/name/tree/main?recursive=true", "/api/models/org/name?blobs=true");
    let (listed, document) = (serve.json(tree), serve.json(info));
    assert_eq!(listed.as_array().unwrap().len(), FILES + 6);
    assert_eq!(document["siblings"].as_array().unwrap().len(), FILES);
    let before = memory(serve.running.id());
    let mut readers = Vec::new();
    for _ in 0..4 {
        for path in [tree, info] {
            let stream = client::connect_with_small_buffer(serve.port).unwrap();
            readers.push(client::open_on(stream, "GET", path, &[], b"").unwrap());
        }
    }
    let used = memory(serve.running.id()).saturating_sub(before);
    assert!(readers.iter().all(|reader| reader.status == 200));
    assert!(used < 16 << 10, "{used} KiB for {} readers", readers.len());
}

/// Beyond the maximum number of connections, a new one replaces the one that has been idle longest.
#[test]
fn idle_connections_do_not_keep_others_out() {
    let revision = Revision::model("org/name");
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let mut command = machine.program(
        "/bin/sh",
        &["-c", "ulimit -n 256; exec \"$0\" --json serve --listen 127.0.0.1:0", crate::harness::machine::BINARY],
    );
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let serve = Serve::of(crate::harness::machine::Running::start(command));
    let path = file(&revision, "model.safetensors");
    let mut idle: Vec<TcpStream> = Vec::new();
    for round in 0..10 {
        idle.extend((0..100).map(|_| connect(serve.port).unwrap()));
        let answer = serve.get(&path);
        assert!(answer.is_complete && answer.body == revision.file("model.safetensors").bytes, "round {round}");
    }
    // A connection that sends requests is not closed while others are idle.
    let mut kept = connect(serve.port).unwrap();
    write!(kept, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let reply = client::read_reply(BufReader::new(kept), "GET").unwrap();
    assert_eq!(reply.finish().body, b"ok\n");
    assert!(serve.metric("connections") <= 128);
    idle[0].set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(idle[0].read(&mut [0]).unwrap_or(0), 0, "the oldest was closed");
}

#[test]
fn names_cannot_add_markup_to_the_status_page() {
    let name = "<img src=x onerror=alert(1)>.bin";
    let revision = Revision::new("model", "org/name").git(name, "good");
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let path = file(&revision, "%3Cimg%20src=x%20onerror=alert(1)%3E.bin");
    let serve = Serve::start(&machine, &[]);
    assert_eq!(serve.get(&path).body, b"good");
    let revision = Revision::new("model", "org/bad").git(name, "bad");
    revision.publish(&store);
    store.put(&revision.blob_key(name), "evil");
    let answer = serve.get("/org/bad/resolve/main/%3Cimg%20src=x%20onerror=alert(1)%3E.bin");
    assert_eq!(answer.status, 424);
    let page = serve.get("/");
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let page = page.text();
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;.bin") && !page.contains("<img"), "{page}");
    let status = serve.json("/status.json");
    assert_eq!(status["status"]["recent"][0]["file"], format!("org/name/{name}"));
    assert!(
        status["html"].as_object().unwrap().values().all(|html| !html.as_str().unwrap().contains("<img")),
        "{status}"
    );
}
