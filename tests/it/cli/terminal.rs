//! What reaches a terminal or a log: no unescaped text from outside, nothing at all with `-q` if all went well,
//! requests with `-v`, and progress lines during long operations.

use std::fs;

use hf_cache_sync::internals::escape::{Keep, escape};

use crate::harness::cache::{COMMIT, Revision};
use crate::harness::machine::{Machine, Output, run};
use crate::harness::s3::{Action, Gate, SECRET_KEY};
use crate::harness::store::Store;
use crate::harness::wait_until;

/// Sets a title, changes the colour, clears the screen with a C1 code, reverses and hides text, and contains invisible
/// characters.
const EVIL: &str = "x\u{1b}]0;t\u{7}\u{1b}[35m\u{9b}2J\u{85}\r\u{202e}\u{2066}\u{200e}\u{61c}\u{200b}\u{200d}\u{2060}\u{feff}\u{ad}\u{2028}\
                    \u{e0041}\u{fe0f}\u{a0}\u{3000}y";
/// The part of it that is allowed in a ref.
const EVIL_REF: &str = "x\u{202e}\u{2066}\u{200e}\u{61c}\u{200b}\u{200d}\u{2060}\u{feff}\u{ad}\u{2028}\u{e0041}y";

#[track_caller]
fn assert_harmless(line: &[&str], output: &Output) {
    for text in [&output.stdout, &output.stderr] {
        assert_eq!(escape(text, Keep::LinesAndColours), *text, "{line:?}");
        assert!(!text.contains("\u{1b}[35m"), "{line:?}: {text:?}");
    }
    assert!(!output.stderr.contains("panicked"), "{line:?}: {output:#?}");
}

#[test]
fn text_from_outside_is_escaped() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    Revision::model("org/name").git("caf\u{e9}\u{202e}漢字.txt", "1").refs(&["main", EVIL_REF]).write(&machine.hub());
    machine.ok(&["push"]);
    fs::write(machine.hub().join("models--org--name/blobs").join(EVIL), "1").unwrap();
    fs::write(machine.hub().join("models--org--name/refs/bad\u{1b}[35m"), "1").unwrap();
    fs::create_dir(machine.hub().join(format!("models--{EVIL}"))).unwrap();
    store.put(&format!("manifests/{EVIL_REF}@{COMMIT}.json"), "{}");
    store.put(&format!("refs/{EVIL_REF}/main"), COMMIT);
    let lines: Vec<Vec<&str>> = vec![
        vec!["list"],
        vec!["list", "--revisions"],
        vec!["list", "--remote"],
        vec!["list", "--remote", "--revisions", "--sizes"],
        vec!["status"],
        vec!["diff", "--deep"],
        vec!["doctor"],
        vec!["push", "--dry-run"],
        vec!["push", "-v"],
        vec!["pull-all"],
        vec!["prune", "--dry-run"],
        vec!["pull", "org/name", "-r", EVIL],
        vec!["pull", "org/name", "-r", EVIL_REF],
        vec!["pull", EVIL],
        vec!["pull", "org/nam"],
        vec!["push", EVIL],
        vec!["pull", "org/name", "--repo-type", EVIL],
        vec!["pull", "org/name", "--fallback", EVIL],
        vec!["pull", "org/name", "--workers", EVIL],
        vec!["push", "--bwlimit", EVIL],
        vec!["pull-all", "--include", "[x\u{1b}[35m\u{202e}"],
        vec!["prune", "--max-size", EVIL],
        vec!["watch", "--debounce", EVIL],
        vec![EVIL],
        vec!["push", "--x\u{1b}[35m\u{202e}"],
        vec!["--bucket", EVIL, "push"],
        vec!["--endpoint", EVIL, "push"],
        vec!["--region", EVIL, "push"],
        vec!["--prefix", EVIL, "list", "--remote"],
        vec!["--config", EVIL, "status"],
        vec!["--cache-dir", EVIL, "status"],
        vec!["--cache-dir", EVIL, "list"],
        vec!["completions", EVIL],
        vec!["man", "/dev/null/\u{1b}[35m\u{202e}"],
    ];
    let check = |machine: &Machine, line: &[&str]| {
        assert_harmless(line, &machine.run(line));
        let json = [line, &["--json"]].concat();
        let output = machine.run(&json);
        assert_harmless(&json, &output);
        assert!(
            output.stdout.is_empty() || serde_json::from_str::<serde_json::Value>(&output.stdout).is_ok(),
            "{output:#?}"
        );
    };
    lines.iter().for_each(|line| check(&machine, line));
    assert!(machine.ok(&["list"]).contains("\\u{202e}"), "escaped, but still shown");
    // With colours, as on a terminal.
    machine.set("CLICOLOR_FORCE", "1");
    for line in lines.iter().take(12) {
        assert_harmless(line, &machine.run(line));
    }
    // Text from a server, a file, or a variable.
    let evil = "no\u{202e}\u{200b}pe";
    store.server.on_request(move |_| Action::Refuse(403, "Odd\u{202e}Code", evil));
    [&["list", "--remote"][..], &["doctor"], &["push", "-v"]].iter().for_each(|line| check(&machine, line));
    store.server.behave();
    machine.configure("storage:\n  \"buk\u{202e}et\\e[35m\": x\nteam: {prefix: \"a\u{200b}\\u001b[35mb\"}\n");
    check(&machine, &["list", "--remote"]);
    machine.set("B2_BUCKET", EVIL_REF);
    check(&machine, &["list", "--remote"]);
    machine.set("HF_HUB_CACHE", EVIL);
    check(&machine, &["status"]);
}

/// A text for places where control characters are rejected: it reorders and hides the text around it.
const HIDDEN: &str = "a\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{e0041}b";

/// Returns a cache and a bucket with hostile names and contents, which only escaping makes harmless.
fn hostile_names() -> (Store, Machine, Revision) {
    let store = Store::new();
    let machine = Machine::new(&store);
    let path = format!("{HIDDEN}/{HIDDEN}.txt");
    let published = Revision::new("dataset", "org/name").git(&path, "1").git("b.txt", "2").refs(&["main", EVIL_REF]);
    published.publish(&store);
    // One that no client has made, and two that are not understood.
    let mut odd = published.manifest();
    odd["repo"] = format!("org/{EVIL}").into();
    store.put(&format!("manifests/org__odd@{COMMIT}.json"), odd.to_string());
    let mut bad = published.manifest();
    bad["files"][0]["path"] = EVIL.into();
    store.put(&format!("manifests/org__bad@{COMMIT}.json"), bad.to_string());
    store.put("refs/org__bad/main", COMMIT);
    store.put(&format!("refs/org__name/{HIDDEN}"), EVIL);
    store.put(&format!("blobs/{HIDDEN}"), "1");
    let first = machine.run(&["pull", "dataset:org/name"]);
    assert_eq!(first.code, 0, "{first:#?}");
    assert!(machine.hub().join("datasets--org--name/snapshots").join(COMMIT).join(&path).exists());
    let dir = published.dir(&machine.hub());
    fs::write(dir.join("blobs").join(published.etag(&path)), "x").unwrap();
    fs::write(dir.join("refs").join(HIDDEN), EVIL).unwrap();
    fs::write(dir.join("snapshots").join(COMMIT).join(format!("{HIDDEN}-stray")), "stray").unwrap();
    fs::create_dir_all(dir.join("trees")).unwrap();
    fs::write(dir.join("trees").join(format!("{COMMIT}.json")), EVIL).unwrap();
    std::os::unix::fs::symlink(EVIL, dir.join("snapshots").join(COMMIT).join(format!("{HIDDEN}-link"))).unwrap();
    let partial = machine.hub().join(".locks/.hf-cache-sync/partial");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join(EVIL), "1").unwrap();
    (store, machine, published)
}

/// Runs every command that can encounter hostile names in the cache and the bucket, in both output formats.
#[test]
fn names_in_caches_and_buckets_are_escaped_by_every_command() {
    let (store, mut machine, _) = hostile_names();
    let check = |machine: &Machine, line: &[&str]| {
        for line in [[line, &["--json"]].concat(), [line, &["-vv"]].concat()] {
            assert_harmless(&line, &machine.run(&line));
        }
    };
    let lines: Vec<Vec<&str>> = vec![
        vec!["pull", "dataset:org/name"],
        vec!["pull", "dataset:org/name", "org/bad", "org/odd"],
        vec!["pull", "dataset:org/name", "--include", HIDDEN],
        vec!["pull-all", "--include", EVIL],
        vec!["pull-all"],
        vec!["verify"],
        vec!["verify", "--remote"],
        vec!["verify", "--remote", "--deep"],
        vec!["diff"],
        vec!["push", "--dry-run"],
        vec!["push"],
        vec!["status"],
        vec!["list", "--revisions", "--sizes"],
        vec!["list", "--remote", "--revisions"],
        vec!["doctor"],
        vec!["config", "show"],
        vec!["remote", "du"],
        vec!["remote", "gc", "--dry-run"],
        vec!["remote", "gc", "--yes"],
        vec!["remote", "rm", "dataset:org/name", "--dry-run"],
        vec!["remote", "rm", "org/bad", "--yes"],
        vec!["remote", "rm", EVIL, "--yes"],
        vec!["remote", "rm", "dataset:org/name", "-r", EVIL, "--yes"],
        vec!["rm", "dataset:org/name", "--dry-run"],
        vec!["rm", "dataset:org/name", "-r", HIDDEN, "--yes"],
        vec!["rm", EVIL, "--yes"],
        vec!["prune", "--dry-run", "--max-size", "0", "--orphan-grace", "0s", "--temporary-grace", "0s"],
        vec!["prune", "--dry-run", "--max-size", "0", "--require-remote"],
        vec!["prune", "--dry-run", "--keep", EVIL],
        vec!["serve", "--listen", EVIL],
        vec!["verify", "--repair"],
        vec!["verify", "--remote", "--repair"],
        vec!["rm", "dataset:org/name", "--yes"],
    ];
    lines.iter().for_each(|line| check(&machine, line));
    machine.set("CLICOLOR_FORCE", "1");
    lines.iter().take(20).for_each(|line| assert_harmless(line, &machine.run(line)));
    // A store whose every response has such text.
    for status in [403, 404] {
        store.server.on_request(move |_| Action::Refuse(status, "a\u{202e}b\u{200b}", "no\u{2066}\u{feff}\u{e0041}pe"));
        for line in [
            vec!["pull", "org/name"],
            vec!["pull-all"],
            vec!["push"],
            vec!["verify", "--remote"],
            vec!["remote", "du"],
            vec!["remote", "gc", "--yes"],
            vec!["remote", "rm", "org/name", "--yes"],
            vec!["prune", "--max-size", "0", "--require-remote", "--yes"],
            vec!["rm", "org/name", "--require-remote", "--yes"],
            vec!["diff"],
        ] {
            check(&machine, &line);
        }
    }
}

#[test]
fn a_watch_escapes_names() {
    for more in [&["-vv"][..], &["--json", "-vv"], &["--poll", "0.1"]] {
        let (store, machine, published) = hostile_names();
        let line = [&["watch", "--debounce", "0.1"], more].concat();
        let watch = machine.start(&line);
        let snapshots = published.snapshot(&machine.hub());
        // What it finds at its start, and what appears while it runs.
        for name in ["config.json", "later.json"] {
            let added = Revision::model(&format!("org/{name}")).git(&format!("{HIDDEN}.txt"), name).refs(&[EVIL_REF]);
            added.write(&machine.hub());
            fs::write(snapshots.join(format!("{HIDDEN}-{name}")), EVIL).unwrap();
            wait_until("the push", || store.has(&added.manifest_key()));
        }
        store.server.on_request(|_| Action::Refuse(403, "a\u{202e}b\u{200b}", "no\u{2066}\u{feff}\u{e0041}pe"));
        Revision::model("org/last").write(&machine.hub());
        watch.wait_for("a\\u{202e}b");
        watch.interrupt();
        let output = watch.finish();
        assert_harmless(&line, &output);
        assert!(format!("{output:?}").contains("u{202e}"), "{output:#?}");
    }
}

#[test]
fn a_server_escapes_names() {
    use std::io::{Read, Write};
    let percent = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let (evil, hidden) = (percent(EVIL), percent(HIDDEN));
    for more in [&["-vv"][..], &["--json", "-vv"], &["-vv", "--offline"]] {
        let (store, machine, _) = hostile_names();
        let line = [&["serve", "--listen", "127.0.0.1:0"], more].concat();
        let mut serve = machine.start(&line);
        let mut port = None;
        wait_until("the server", || {
            let shown = serve.stdout();
            let rest = shown.split_once("127.0.0.1:").map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()));
            port = rest.and_then(|mut parts| parts.next()?.parse::<u16>().ok());
            port.is_some() || !serve.is_running()
        });
        let ask = |path: &str, agent: &str| {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port.unwrap())).unwrap();
            let head =
                format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: {agent}\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let answer = String::from_utf8_lossy(&answer).into_owned();
            // Clients print headers.
            let head = answer.split("\r\n\r\n").next().unwrap_or_default().replace("\r\n", "\n");
            assert_eq!(escape(&head, Keep::Lines), *head, "{path}");
            assert!(head.starts_with("HTTP/1.1 "), "{path}: {answer:?}");
        };
        let ask_for_all = || {
            for path in [
                format!("/datasets/org/name/resolve/main/{hidden}/{hidden}.txt"),
                format!("/datasets/org/name/resolve/main/{evil}"),
                format!("/datasets/org/name/resolve/{evil}/b.txt"),
                format!("/datasets/org/name/resolve/{hidden}/b.txt"),
                format!("/org/{evil}/resolve/main/b.txt"),
                format!("/{evil}?{evil}"),
                format!("/api/models/org/{evil}"),
                "/api/datasets/org/name".to_string(),
                "/api/datasets/org/name/refs".to_string(),
                format!("/api/datasets/org/name/tree/main/{hidden}"),
                "/org/bad/resolve/main/a".to_string(),
                "/org/odd/resolve/main/a".to_string(),
                "/metrics".to_string(),
            ] {
                ask(&path, HIDDEN);
            }
        };
        ask_for_all();
        store.server.on_request(|_| Action::Refuse(403, "a\u{202e}b\u{200b}", "no\u{2066}\u{feff}\u{e0041}pe"));
        ask_for_all();
        serve.signal("-TERM");
        let output = serve.finish();
        assert_harmless(&line, &output);
        let asks_bucket = !line.contains(&"--offline");
        assert_eq!(output.stderr.contains("\\u{202e}"), asks_bucket, "{line:?}: {output:#?}");
    }
}

#[cfg(feature = "fallback")]
#[test]
fn messages_from_the_hub_are_escaped() {
    use crate::harness::hub_server::{Hub, Reply};
    let store = Store::new();
    let mut machine = Machine::new(&store);
    let hub = Hub::start(&[]);
    machine.set("HF_ENDPOINT", &hub.url);
    for status in [400, 401, 403, 404, 418] {
        hub.script(move |_| {
            let reply = Reply { status, headers: Vec::new(), body: format!("{{\"error\": {EVIL:?}}}").into_bytes() };
            Some(reply.with("x-error-message", HIDDEN).with("x-error-code", HIDDEN).with("location", HIDDEN))
        });
        let line = ["pull", "org/name", "--fallback", "hf-hub"];
        for more in [&[][..], &["--json"], &["-vv"]] {
            let line = [&line[..], more].concat();
            assert_harmless(&line, &machine.run(&line));
        }
    }
    hub.script(|_| {
        Some(Reply { status: 200, headers: Vec::new(), body: format!("{{\"sha\": {EVIL:?}}}").into_bytes() })
    });
    assert_harmless(&["pull"], &machine.run(&["pull", "org/name", "--fallback", "hf-hub"]));
}

#[test]
fn a_printed_path_is_not_escaped_in_a_pipe() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.write(&machine.hub());
    machine.ok(&["push"]);
    let other = machine.home().join("caf\u{e9}\u{a0}\u{200b}hub");
    let path = machine.ok(&["pull", "org/name", "--cache-dir", other.to_str().unwrap()]);
    assert!(fs::metadata(path.trim_end_matches('\n')).unwrap().is_dir(), "{path:?}");
}

#[test]
fn quiet_prints_nothing_unless_something_fails() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    Revision::model("org/name").refs(&["main"]).write(&machine.hub());
    let assert_silent = |machine: &Machine, line: &[&str]| {
        let output = machine.run(line);
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (0, "", ""), "{line:?}");
    };
    let pages = machine.home().join("pages").display().to_string();
    for line in [
        &["doctor", "-q"][..],
        &["push", "-q"],
        &["push", "-q"],
        &["-q", "prune"],
        &["init", "-q"],
        &["man", "-q", &pages],
    ] {
        assert_silent(&machine, line);
    }
    fs::remove_file(machine.work().join(".hf-cache-sync.yaml")).unwrap();
    // Only the requested output is printed.
    let rows = machine.run(&["list", "-q"]);
    assert!(
        rows.stdout.starts_with("org/name  ") && rows.stdout.lines().count() == 1 && rows.stderr.is_empty(),
        "{rows:#?}"
    );
    let rows = machine.run(&["list", "--remote", "-q"]);
    assert!(
        rows.stdout.starts_with("org/name  ") && rows.stdout.lines().count() == 1 && rows.stderr.is_empty(),
        "{rows:#?}"
    );
    let rows = machine.run(&["diff", "-q"]);
    assert!(
        rows.stdout.starts_with("org/name  ") && rows.stdout.lines().count() == 1 && rows.stderr.is_empty(),
        "{rows:#?}"
    );
    fs::remove_dir_all(machine.hub()).unwrap();
    let path = machine.run(&["pull", "-q", "org/name"]);
    assert!(path.stdout.ends_with(&format!("snapshots/{COMMIT}\n")) && path.stderr.is_empty(), "{path:#?}");
    fs::remove_dir_all(machine.hub()).unwrap();
    assert_silent(&machine, &["pull-all", "-q"]);
    // Errors are still reported.
    machine.set("B2_BUCKET", "another");
    let output = machine.run(&["doctor", "-q"]);
    assert_eq!(output.code, 4, "{output:#?}");
    assert!(output.stdout.starts_with("FAIL  Bucket") && !output.stdout.contains("ok  "), "{output:#?}");
    let output = machine.run(&["push", "-q"]);
    assert!(output.code == 4 && output.stdout.is_empty() && output.stderr.starts_with("error: "), "{output:#?}");
}

/// Whether the line starts like "2026-09-21T14:13:20.123Z"; the milliseconds are optional.
fn has_time(line: &str) -> bool {
    let time = line.split(' ').next().unwrap_or_default();
    time.len() >= 20 && time.starts_with("20") && time.ends_with('Z') && time.as_bytes()[10] == b'T'
}

#[test]
fn verbose_logs_requests_and_decisions() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").refs(&["main"]).write(&machine.hub());
    let gated = Revision::new("model", "org/gated").git("LICENSE", "You must accept this").refs(&["main"]);
    gated.write(&machine.hub());
    let output = machine.run(&["push", "-v"]);
    assert_eq!(output.code, 0, "{output:#?}");
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert!(lines.iter().all(|line| has_time(line)), "{output:#?}");
    let is_logged = |words: &[&str]| lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(is_logged(&["GET http://", "list-type=2", " 200 ", " ms"]), "{output:#?}");
    assert!(is_logged(&["PUT http://", "/blobs/", " 200 ", " ms"]), "{output:#?}");
    assert!(is_logged(&["PUT http://", "/refs/org__name/main", " 200 "]), "{output:#?}");
    assert!(is_logged(&["upload", "org/name", "missing"]), "{output:#?}");
    assert!(is_logged(&["org/gated", "gated"]), "{output:#?}");
    let stderr = &output.stderr;
    assert!(
        !stderr.contains(SECRET_KEY) && !stderr.contains("Signature") && !stderr.contains("Credential"),
        "{stderr}"
    );
    // In a log, the summary has a timestamp, too.
    assert!(has_time(output.stdout.lines().last().unwrap()), "{output:#?}");
    fs::remove_dir_all(machine.hub()).unwrap();
    let output = machine.run(&["pull", "org/name", "-v"]);
    assert!(output.stderr.contains("GET http://") && output.stderr.contains("/blobs/"), "{output:#?}");
    assert!(output.stderr.contains("fetch") && output.stderr.contains("model.safetensors"), "{output:#?}");
    // A retry is logged with its reason and number.
    store.server.on_request(|seen| match seen.method.as_str() {
        "HEAD" => Action::Refuse(503, "SlowDown", "not so fast"),
        _ => Action::Pass,
    });
    let running = machine.start(&["doctor", "-v"]);
    running.wait_for("try 1 of ");
    running.kill();
}

#[test]
fn long_operations_log_progress_without_a_terminal() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    machine.set("HF_CACHE_SYNC_PROGRESS_SECONDS", "0.05");
    Revision::model("org/name").refs(&["main"]).write(&machine.hub());
    Revision::model("org/other-name").refs(&["main"]).write(&machine.hub());
    // The store delays its response to the listing, then to the blobs.
    for json in [false, true] {
        let (lists, blobs) = (Gate::new(), Gate::new());
        let gates = (lists.clone(), blobs.clone());
        store.server.on_request(move |seen| match seen {
            seen if seen.is_list() => Action::Hold(gates.0.clone()),
            seen if seen.is("PUT", "blobs/") => Action::Hold(gates.1.clone()),
            _ => Action::Pass,
        });
        let line = if json { &["push", "--json"][..] } else { &["push"] };
        let running = machine.start(line);
        running.wait_for("scanning the cache: 0 s so far; waiting for the store (0 s)");
        lists.open();
        running.wait_for("0/3 blobs, repo 1/2: ");
        blobs.open();
        let output = running.finish();
        assert_eq!(output.code, 0, "{output:#?}");
        assert!(output.stderr.lines().all(has_time), "{output:#?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&output.stdout).is_ok(), json);
        fs::remove_dir_all(store.path("blobs")).unwrap();
    }
    // The store throttles.
    store.server.on_request(|seen| match seen.is("PUT", "blobs/") {
        true => Action::Refuse(503, "SlowDown", "not so fast"),
        false => Action::Pass,
    });
    let running = machine.start(&["push"]);
    running.wait_for("waiting for the store (SlowDown: not so fast; try 2 of ");
    running.kill();
    // Progress can be turned off.
    let gate = Gate::new();
    let held = gate.clone();
    store.server.on_request(move |_| Action::Hold(held.clone()));
    for silent in ["-q", "--no-progress"] {
        store.server.take_seen();
        let running = machine.start(&["push", silent]);
        store.server.wait_for("a listing", |seen| !seen.is_empty());
        running.interrupt();
        let output = running.finish();
        assert!(output.code == 130 && output.stderr.starts_with("error: interrupted"), "{output:#?}");
    }
}

#[test]
fn invalid_utf8_in_arguments_is_not_echoed() {
    use std::os::unix::ffi::OsStrExt;
    let machine = Machine::unconfigured();
    for bytes in [&b"caf\xe9"[..], b"--caf\xe9\x1b[35m", b"\x1b[35m\xff"] {
        let mut command = machine.command(&["pull"]);
        command.arg(std::ffi::OsStr::from_bytes(bytes));
        let output = run(command);
        assert_harmless(&["pull"], &output);
        assert_eq!(output.code, 2, "{output:#?}");
    }
}
