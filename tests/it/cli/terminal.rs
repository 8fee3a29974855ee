//! What reaches a terminal or a log: nothing from outside as it is, nothing at all with `-q` where all went well, requests
//! with `-v`, and a line now and then while long work goes on.

use std::fs;

use hf_cache_sync::internals::escape::{Keep, escape};

use crate::harness::cache::{COMMIT, Revision};
use crate::harness::machine::{Machine, Ran, run};
use crate::harness::s3::{Action, Gate, SECRET_KEY};
use crate::harness::store::Store;

/// Sets a title, changes the colour, clears the screen by C1, turns and hides text, and says more in characters that
/// nobody sees.
const EVIL: &str = "x\u{1b}]0;t\u{7}\u{1b}[35m\u{9b}2J\u{85}\r\u{202e}\u{2066}\u{200e}\u{61c}\u{200b}\u{200d}\u{2060}\u{feff}\u{ad}\u{2028}\
                    \u{e0041}\u{fe0f}\u{a0}\u{3000}y";
/// What of that a ref may hold.
const EVIL_REF: &str = "x\u{202e}\u{2066}\u{200e}\u{61c}\u{200b}\u{200d}\u{2060}\u{feff}\u{ad}\u{2028}\u{e0041}y";

#[track_caller]
fn harmless(line: &[&str], ran: &Ran) {
    for text in [&ran.stdout, &ran.stderr] {
        assert_eq!(escape(text, Keep::LinesAndColours), *text, "{line:?}");
        assert!(!text.contains("\u{1b}[35m"), "{line:?}: {text:?}");
    }
    assert!(!ran.stderr.contains("panicked"), "{line:?}: {ran:#?}");
}

#[test]
fn nothing_from_outside_reaches_the_terminal_as_it_is() {
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
        harmless(line, &machine.run(line));
        let json = [line, &["--json"]].concat();
        let ran = machine.run(&json);
        harmless(&json, &ran);
        assert!(ran.stdout.is_empty() || serde_json::from_str::<serde_json::Value>(&ran.stdout).is_ok(), "{ran:#?}");
    };
    lines.iter().for_each(|line| check(&machine, line));
    assert!(machine.ok(&["list"]).contains("\\u{202e}"), "shown, and not left out");
    // With colours as on a terminal.
    machine.set("CLICOLOR_FORCE", "1");
    for line in lines.iter().take(12) {
        harmless(line, &machine.run(line));
    }
    // What a server says, and what a file or a variable holds.
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

#[test]
fn a_path_for_a_program_keeps_its_bytes() {
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
fn quiet_is_silent_unless_something_fails() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    Revision::model("org/name").refs(&["main"]).write(&machine.hub());
    let silent = |machine: &Machine, line: &[&str]| {
        let ran = machine.run(line);
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""), "{line:?}");
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
        silent(&machine, line);
    }
    fs::remove_file(machine.work().join(".hf-cache-sync.yaml")).unwrap();
    // What was asked for, and nothing beside it.
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
    silent(&machine, &["pull-all", "-q"]);
    // What fails is said all the same.
    machine.set("B2_BUCKET", "another");
    let ran = machine.run(&["doctor", "-q"]);
    assert_eq!(ran.code, 4, "{ran:#?}");
    assert!(ran.stdout.starts_with("FAIL  Bucket") && !ran.stdout.contains("ok  "), "{ran:#?}");
    let ran = machine.run(&["push", "-q"]);
    assert!(ran.code == 4 && ran.stdout.is_empty() && ran.stderr.starts_with("error: "), "{ran:#?}");
}

/// "2026-09-21T14:13:20.123Z" or without the milliseconds.
fn has_time(line: &str) -> bool {
    let time = line.split(' ').next().unwrap_or_default();
    time.len() >= 20 && time.starts_with("20") && time.ends_with('Z') && time.as_bytes()[10] == b'T'
}

#[test]
fn verbose_tells_requests_and_decisions_a_line_each() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").refs(&["main"]).write(&machine.hub());
    let gated = Revision::new("model", "org/gated").git("LICENSE", "You must accept this").refs(&["main"]);
    gated.write(&machine.hub());
    let ran = machine.run(&["push", "-v"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert!(lines.iter().all(|line| has_time(line)), "{ran:#?}");
    let told = |words: &[&str]| lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(told(&["GET http://", "list-type=2", " 200 ", " ms"]), "{ran:#?}");
    assert!(told(&["PUT http://", "/blobs/", " 200 ", " ms"]), "{ran:#?}");
    assert!(told(&["PUT http://", "/refs/org__name/main", " 200 "]), "{ran:#?}");
    assert!(told(&["upload", "org/name", "missing"]), "{ran:#?}");
    assert!(told(&["org/gated", "gated"]), "{ran:#?}");
    let said = &ran.stderr;
    assert!(!said.contains(SECRET_KEY) && !said.contains("Signature") && !said.contains("Credential"), "{said}");
    // Its summary has a time as well, in a log.
    assert!(has_time(ran.stdout.lines().last().unwrap()), "{ran:#?}");
    fs::remove_dir_all(machine.hub()).unwrap();
    let ran = machine.run(&["pull", "org/name", "-v"]);
    assert!(ran.stderr.contains("GET http://") && ran.stderr.contains("/blobs/"), "{ran:#?}");
    assert!(ran.stderr.contains("fetch") && ran.stderr.contains("model.safetensors"), "{ran:#?}");
    // A retry says why, and which.
    store.server.on_request(|seen| match seen.method.as_str() {
        "HEAD" => Action::Refuse(503, "SlowDown", "not so fast"),
        _ => Action::Pass,
    });
    let running = machine.start(&["doctor", "-v"]);
    running.wait_for("try 1 of ");
    running.kill();
}

#[test]
fn without_a_terminal_long_work_tells_how_far_it_is() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    machine.set("HF_CACHE_SYNC_PROGRESS_SECONDS", "0.05");
    Revision::model("org/name").refs(&["main"]).write(&machine.hub());
    Revision::model("org/other-name").refs(&["main"]).write(&machine.hub());
    // The store does not answer the listing, then not the blobs.
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
        let ran = running.finish();
        assert_eq!(ran.code, 0, "{ran:#?}");
        assert!(ran.stderr.lines().all(has_time), "{ran:#?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&ran.stdout).is_ok(), json);
        fs::remove_dir_all(store.path("blobs")).unwrap();
    }
    // It pushes back.
    store.server.on_request(|seen| match seen.is("PUT", "blobs/") {
        true => Action::Refuse(503, "SlowDown", "not so fast"),
        false => Action::Pass,
    });
    let running = machine.start(&["push"]);
    running.wait_for("waiting for the store (SlowDown: not so fast; try 2 of ");
    running.kill();
    // Those who do not want to hear it do not.
    let gate = Gate::new();
    let held = gate.clone();
    store.server.on_request(move |_| Action::Hold(held.clone()));
    for silent in ["-q", "--no-progress"] {
        store.server.take_seen();
        let running = machine.start(&["push", silent]);
        store.server.wait_for("listing", |seen| !seen.is_empty());
        running.interrupt();
        let ran = running.finish();
        assert!(ran.code == 130 && ran.stderr.starts_with("error: interrupted"), "{ran:#?}");
    }
}

#[test]
fn arguments_that_are_no_text_are_told_without_them() {
    use std::os::unix::ffi::OsStrExt;
    let machine = Machine::unconfigured();
    for bytes in [&b"caf\xe9"[..], b"--caf\xe9\x1b[35m", b"\x1b[35m\xff"] {
        let mut command = machine.command(&["pull"]);
        command.arg(std::ffi::OsStr::from_bytes(bytes));
        let ran = run(command);
        harmless(&["pull"], &ran);
        assert_eq!(ran.code, 2, "{ran:#?}");
    }
}
