//! Starting, running and stopping a server.

use std::fs;
use std::io::{BufReader, Write};

use serde_json::Value;

use super::client::{self, connect};
use super::{Serve, file, setup};
use crate::harness::cache::Revision;
use crate::harness::machine::{self, Machine, Running};
use crate::harness::store::{BUCKET, Store};
use crate::harness::{wait_until, weights};

#[test]
fn a_signal_stops_the_server_once_responses_in_flight_are_sent() {
    for signal in ["-TERM", "-INT"] {
        let revision = Revision::new("model", "org/name").lfs("model.bin", weights(1, 32 << 20));
        let bytes = &revision.file("model.bin").bytes;
        let (_store, machine) = setup(std::slice::from_ref(&revision));
        machine.ok(&["pull", "org/name"]);
        let serve = Serve::start(&machine, &[]);
        // An idle connection is no reason to wait.
        let mut idle = connect(serve.port).unwrap();
        write!(idle, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        assert_eq!(
            client::read_reply(BufReader::new(idle.try_clone().unwrap()), "GET").unwrap().finish().body,
            b"ok\n"
        );
        let mut begun = serve.open("GET", &file(&revision, "model.bin"), &[]);
        begun.read(1000);
        serve.running.signal(signal);
        wait_until("the port to be closed", || connect(serve.port).is_err());
        let rest = begun.finish();
        assert!(rest.is_complete && rest.body == bytes[1000..], "{rest:?}");
        let output = serve.running.finish();
        assert_eq!(output.code, 0, "{output:?}");
        let events: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["started", "stopped"]);
        assert_eq!(output.stderr, "");
    }
}

#[test]
fn a_second_signal_stops_it_immediately() {
    let revision = Revision::new("model", "org/name").lfs("model.bin", weights(1, 12 << 20));
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let _gate = store.server.hold(|request| request.is("GET", "blobs/"));
    let serve = Serve::start(&machine, &[]);
    // Its response has not begun, and never will.
    let mut waiting = connect(serve.port).unwrap();
    write!(waiting, "GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n", file(&revision, "model.bin")).unwrap();
    store.server.wait_for("the pull", |seen| seen.iter().any(|request| request.is("GET", "blobs/")));
    serve.running.signal("-TERM");
    wait_until("the port to be closed", || connect(serve.port).is_err());
    serve.running.signal("-TERM");
    let output = serve.running.finish();
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
}

#[test]
fn the_output_for_users() {
    let (_store, machine) = setup(&[Revision::model("org/name")]);
    let running = Running::start(machine.command(&["serve", "--listen", "localhost:0"]));
    running.wait_for("Serving bucket");
    running.signal("-INT");
    let output = running.finish();
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{output:?}");
    let url = lines[0].strip_prefix("export HF_ENDPOINT=").unwrap();
    assert!(url.starts_with("http://127.0.0.1:"));
    assert_eq!(
        lines[1..],
        ["export HF_HUB_DISABLE_XET=1", "export NO_PROXY=\"${NO_PROXY:+$NO_PROXY,}localhost,127.0.0.1\""]
    );
    assert!(
        output.stderr.contains(&format!("'{BUCKET}'"))
            && output.stderr.contains(url)
            && output.stderr.ends_with("Stopped.\n"),
        "{output:?}"
    );
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let quiet = Running::start(machine.command(&["-q", "serve", "--listen", &format!("127.0.0.1:{port}")]));
    wait_until("the server", || connect(port).is_ok());
    quiet.signal("-TERM");
    let output = quiet.finish();
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (0, "", ""));
}

#[test]
fn the_server_exits_with_the_commands_exit_code() {
    let revision = Revision::model("org/name");
    let (_store, mut machine) = setup(std::slice::from_ref(&revision));
    machine.set("PATH", &std::env::var("PATH").unwrap());
    machine.set("NO_PROXY", "internal.example");
    for (script, code) in
        [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
    {
        let output = machine.run(&["serve", "--", "/bin/sh", "-c", script]);
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (code, "", ""), "{script}");
    }
    let script = "echo $HF_ENDPOINT $HF_HUB_DISABLE_XET $NO_PROXY $no_proxy ${HF_TOKEN-none}; cat";
    let output = machine.run(&["serve", "--", "/bin/sh", "-c", script]);
    let words: Vec<&str> = output.stdout.split_whitespace().collect();
    assert!(words[0].starts_with("http://127.0.0.1:") && !words[0].ends_with(":0"), "{output:?}");
    assert_eq!(words[1..], ["1", "internal.example,localhost,127.0.0.1", "localhost,127.0.0.1", "none"], "{output:?}");
    fs::write(machine.work().join("token"), "abc123").unwrap();
    let output = machine.run(&["serve", "--token-file", "token", "--", "/bin/sh", "-c", "echo $HF_TOKEN"]);
    assert_eq!(output.stdout, "abc123\n", "{output:?}");
    // Two concurrent servers do not compete for a port.
    let first = machine.start(&["serve", "--", "/bin/sh", "-c", "echo $HF_ENDPOINT; read line"]);
    assert_eq!(machine.run(&["serve", "--", "true"]).code, 0);
    drop(first);
    machine.run(&["serve", "--", "no-such-command"]).refused(4, &["no-such-command", "cannot run"]);
    fs::write(machine.work().join("file"), "x").unwrap();
    machine.run(&["serve", "--", "./file"]).refused(3, &["./file"]);
}

#[test]
fn a_command_gets_the_signals_and_decides_when_it_ends() {
    let (_store, mut machine) = setup(&[Revision::model("org/name")]);
    machine.set("PATH", &std::env::var("PATH").unwrap());
    for (signal, name, code) in [("-TERM", "TERM", 7), ("-INT", "INT", 8)] {
        let script = format!("trap 'echo got {name}; exit {code}' {name}; echo ready; while :; do sleep 0.1; done");
        let running = machine.start(&["serve", "--", "/bin/sh", "-c", &script]);
        wait_until("the command", || running.stdout().contains("ready"));
        running.signal(signal);
        let output = running.finish();
        assert_eq!(
            (output.code, output.stdout.as_str()),
            (code, format!("ready\ngot {name}\n").as_str()),
            "{output:?}"
        );
    }
}

#[test]
fn a_shell_can_evaluate_the_variables() {
    let mut machine = Machine::unconfigured();
    for (set, expected) in [("", "localhost,127.0.0.1"), ("a.example", "a.example,localhost,127.0.0.1")] {
        machine.set("NO_PROXY", set);
        let script = "eval \"$(\"$0\" serve --env --listen localhost:9999)\" && /usr/bin/env";
        let output = machine::run(machine.script(script));
        for line in ["HF_ENDPOINT=http://127.0.0.1:9999", "HF_HUB_DISABLE_XET=1", &format!("NO_PROXY={expected}")] {
            assert!(output.stdout.lines().any(|one| one == line), "{line}: {output:?}");
        }
    }
    assert!(machine.ok(&["serve", "--env"]).contains("HF_ENDPOINT=http://127.0.0.1:8090\n"));
    let variables = machine.ok_json(&["--json", "serve", "--env"]);
    assert_eq!(variables["environment"][0]["name"], "HF_ENDPOINT");
}

#[test]
fn metrics_are_prometheus_text() {
    let revision = Revision::model("org/name");
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    for _ in 0..2 {
        serve.get(&file(&revision, "model.safetensors"));
    }
    serve.get("/org/none/resolve/main/a");
    let answer = serve.get("/metrics");
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let text = answer.text();
    let (mut types, mut seen) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(matches!(kind, "counter" | "gauge") && !types.contains(&name.to_string()), "{line}");
            assert!(kind == "gauge" || name.ends_with("_total") || name.ends_with("_seconds"), "{line}");
            types.push(name.to_string());
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            assert_eq!(Some(name), types.last().map(String::as_str), "samples follow their type: {line}");
            assert!(value.parse::<u64>().is_ok() && !seen.contains(&sample.to_string()), "{line}");
            seen.push(sample.to_string());
        }
    }
    let size = revision.file("model.safetensors").bytes.len() as u64;
    assert_eq!((serve.metric("hits_total"), serve.metric("misses_total")), (1, 1));
    assert_eq!(serve.metric("read_bytes_total{source=\"bucket\"}"), size);
    assert_eq!(serve.metric("read_bytes_total{source=\"disk\"}"), size);
    assert_eq!(serve.metric("read_bytes_total{source=\"hub\"}"), 0);
    assert_eq!(serve.metric("sent_bytes_total"), 2 * size);
    assert_eq!(serve.metric("responses_total{status=\"404\"}"), 1);
    assert_eq!(serve.get("/healthz").body, b"ok\n");
}

#[test]
fn each_request_is_one_log_line() {
    let revision = Revision::model("org/name");
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &["-v"]);
    let path = file(&revision, "config.json");
    serve.ask("GET", &format!("{path}?x=%0a%1b[31m"), &[("range", "bytes=0-1")]);
    serve.head("/org/none/resolve/main/a");
    let output = serve.stop();
    let lines =
        |words: &str| output.stderr.lines().filter(|line| line.contains(words)).map(String::from).collect::<Vec<_>>();
    let requests = lines(&format!("GET {path}"));
    assert_eq!(requests.len(), 1, "{}", output.stderr);
    assert!(
        requests[0].contains("status=206")
            && requests[0].contains("bytes=0-1")
            && requests[0].contains("peer=127.0.0.1"),
        "{requests:?}"
    );
    let requests = lines("HEAD /org/none/resolve/main/a");
    assert!(requests.len() == 1 && requests[0].contains("status=404"), "{}", output.stderr);
    assert!(!output.stderr.contains('\u{1b}'), "{}", output.stderr);
    // Without -v there is none.
    let serve = Serve::start(&machine, &[]);
    serve.get(&path);
    assert_eq!(serve.stop().stderr, "");
}

#[test]
fn the_status_page_shows_pulls_in_progress() {
    let revision = Revision::new("model", "org/name").lfs("model.bin", weights(1, 24 << 20));
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let gate = store.server.hold(|request| {
        request.is("GET", "blobs/") && !request.range.as_deref().unwrap_or_default().starts_with("bytes=0-")
    });
    let serve = Serve::start(&machine, &[]);
    let client = serve.open("GET", &file(&revision, "model.bin"), &[]);
    let status = serve.json("/status.json");
    assert_eq!(status["about"]["bucket"], BUCKET);
    let pull = &status["status"]["pulls"][0];
    assert_eq!((pull["file"].as_str().unwrap(), &pull["origin"]), ("org/name/model.bin", &Value::from("bucket")));
    assert!(pull["arrived"].as_u64().unwrap() > 0 && pull["arrived"].as_u64() < pull["size"].as_u64(), "{pull}");
    let page = serve.get("/").text();
    assert!(page.contains("org/name/model.bin") && page.contains("<progress"), "{page}");
    assert_eq!(page.matches("<script").count(), 1, "nothing is loaded from elsewhere");
    assert!(!page.contains("src=") && !page.contains("href=\"http"), "{page}");
    gate.open();
    assert!(client.finish().is_complete);
    wait_until("the end of the pull", || {
        serve.json("/status.json")["status"]["recent"][0]["file"] == "org/name/model.bin"
    });
    assert!(serve.json("/status.json")["status"]["pulls"].as_array().unwrap().is_empty());
}

#[test]
fn it_does_not_start_without_a_bucket_or_with_a_wrong_cache() {
    let machine = Machine::unconfigured();
    machine.run(&["serve", "--listen", "127.0.0.1:0"]).refused(2, &["bucket"]);
    let store = Store::new();
    let machine = Machine::new(&store);
    fs::create_dir_all(machine.hub().parent().unwrap()).unwrap();
    fs::write(machine.hub(), "a file").unwrap();
    let output = machine.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(matches!(output.code, 1..=3), "{output:?}");
    output.clear_error(&["hub"]);
}
