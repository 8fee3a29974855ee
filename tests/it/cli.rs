//! The command line as people and scripts meet it: help, version, options in every place, precedence of the
//! configuration, and what is read on stdout and stderr (`snapshots/`).

mod completion;
mod terminal;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::cache::{COMMIT, OTHER, Revision};
use crate::harness::machine::{self, Machine, Ran};
use crate::harness::s3::{ACCESS_KEY, Action, SECRET_KEY};
use crate::harness::store::{BUCKET, Store};

/// What was said, without what differs between runs and machines.
fn plain(store: &Store, machine: &Machine, ran: &Ran) -> String {
    let text =
        ran.text().replace(&machine.home().display().to_string(), "~").replace(&store.server.url, "http://STORE");
    let lines = text.lines().map(timeless).map(|line| match line {
        line if line.contains("Disk space") => measured(line, "SIZE", &["B", "KiB", "MiB", "GiB", "TiB", "PiB"]),
        line if line.contains("Clock") => measured(line, "N s", &["s"]),
        line => paceless(line),
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// "2026-09-21T14:13:20Z  Uploaded" without the time, which the summaries of a log carry.
fn timeless(line: &str) -> &str {
    match line.split_once("Z  ") {
        Some((time, rest)) if time.len() == 19 && time.starts_with("20") => rest,
        _ => line,
    }
}

/// The line with a word for its first number, which must be in one of these units.
#[track_caller]
fn measured(line: &str, word: &str, units: &[&str]) -> String {
    let (before, after) = line.split_at(line.find(|c: char| c.is_ascii_digit()).unwrap_or_else(|| panic!("{line}")));
    let (number, rest) = after.split_once(' ').unwrap();
    let (unit, rest) = rest.split_once(' ').unwrap();
    assert!(number.parse::<f64>().is_ok() && units.contains(&unit), "{line}");
    format!("{before}{word} {rest}")
}

/// "in 0.3 s, 12.0 MiB/s" without the numbers.
fn paceless(line: &str) -> String {
    let Some((before, after)) = line.split_once(" in ") else { return line.to_string() };
    let Some((_, rest)) = after.split_once(" s") else { return line.to_string() };
    let rest = match rest.split_once("/s") {
        Some((_, rest)) => rest,
        None => rest,
    };
    if after.starts_with(|c: char| c.is_ascii_digit()) { format!("{before} in TIME{rest}") } else { line.to_string() }
}

#[test]
fn help_and_version() {
    let machine = Machine::unconfigured();
    assert_eq!(machine.ok(&["--version"]), format!("hf-cache-sync {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(machine.ok(&["-V"]), machine.ok(&["--version"]));
    let help = machine.ok(&["--help"]);
    for command in ["init", "doctor", "push", "pull", "pull-all"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{help}");
        let own = machine.ok(&[command, "--help"]);
        assert!(own.contains("Usage: hf-cache-sync") && own.contains("Global options"), "{own}");
        assert!(own.contains("--cache-dir") && own.contains("--json"), "{own}");
    }
    for (command, options) in [
        ("push", &["--dry-run", "--workers", "--bwlimit", "--max-memory"][..]),
        ("watch", &["--workers", "--bwlimit", "--max-memory"]),
        ("pull", &["-r, --revision", "--repo-type", "--dry-run", "--workers", "--verify", "--no-sync"]),
        (
            "pull-all",
            &["--dry-run", "--limit", "--include", "--exclude", "--workers", "--fallback", "hf-hub", "--verify"],
        ),
        ("doctor", &["--require-write"]),
    ] {
        let own = machine.ok(&[command, "--help"]);
        options.iter().for_each(|option| assert!(own.contains(option), "{option}: {own}"));
    }
}

/// Examples are lines of their own: on a terminal of 80 columns, none may be broken.
#[test]
fn examples_fit_a_narrow_terminal() {
    use clap::CommandFactory;
    let tool = hf_cache_sync::cli::Cli::command();
    for command in tool.get_subcommands().chain([&tool]) {
        let text = command.get_after_help().map(|text| text.to_string()).unwrap_or_default();
        assert!(text.contains("Examples:\n"), "{} has no examples", command.get_name());
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        }
    }
}

#[test]
fn wrong_usage() {
    let machine = Machine::unconfigured();
    for line in [
        &[][..],
        &["pusj"],
        &["push", "--nope"],
        &["pull"],
        &["pull", "a", "b"],
        &["push", "--workers", "0"],
        &["push", "--bwlimit", "0"],
        &["pull", "a", "--bwlimit", "-5MB/s"],
        &["pull-all", "--bwlimit", "10"],
        &["watch", "--bwlimit", "9000TB/s"],
        &["push", "--max-memory", "1MiB"],
        &["pull", "a", "--max-memory", "-64MiB"],
        &["pull-all", "--limit", "-1"],
        &["pull", "a", "--fallback", "b2"],
    ] {
        let ran = machine.run(line);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{line:?}: {ran:#?}");
        ran.nothing_internal();
    }
    let said = machine.run(&["pull-all", "--limit", "-1"]).stderr;
    assert!(said.contains("invalid value '-1'") && said.contains("0 or more"), "{said}");
    assert!(machine.run(&["pusj"]).stderr.contains("'push'"), "the nearest command is named");
    let said = machine.run(&["push", "--bwlimit", "fast"]).stderr;
    assert!(said.contains("expected a rate such as 50MB/s"), "{said}");
    let said = machine.run(&["push", "--max-memory", "1MiB"]).stderr;
    assert!(said.contains("at least 32MiB"), "{said}");
}

#[test]
fn global_options_stand_anywhere() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    ["B2_ENDPOINT", "B2_BUCKET", "B2_REGION"].iter().for_each(|name| machine.unset(name));
    let revision = Revision::model("org/name");
    revision.write(&machine.home().join("other-hub"));
    let hub = machine.home().join("other-hub").display().to_string();
    let options = [
        ["--endpoint", store.server.url.as_str()],
        ["--bucket", BUCKET],
        ["--region", "here"],
        ["--prefix", "team"],
        ["--cache-dir", &hub],
    ];
    let options = options.concat();
    machine.ok(&[&options[..], &["--json", "push", "--workers", "2"]].concat());
    let (first, last) = options.split_at(4);
    let ran = machine.run(&[first, &["push", "--json", "org/name"], last].concat());
    assert_eq!(ran.json()["present"]["blobs"], 2, "{ran:#?}");
    let ran = machine.run(&[&["pull", "org/name"], &options[..], &["-q"]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:#?}");
    assert!(store.keys().iter().all(|key| key.starts_with("team/")));
}

/// Flags, then `B2_*`, then YAML, then AWS's own variables; each credential pair whole.
#[test]
fn precedence() {
    let store = Store::new();
    let mut machine = Machine::unconfigured();
    let yaml = format!(
        "storage:\n  endpoint: {}\n  bucket: from-yaml\n  region: yaml-region\n  access_key: {ACCESS_KEY}\n  \
         secret_key: {SECRET_KEY}\nteam:\n  prefix: yaml-prefix\n",
        store.server.url
    );
    let seen = |machine: &Machine, line: &[&str]| -> (String, String, String) {
        let ran = machine.run(&[line, &["doctor", "--json"]].concat());
        ran.nothing_internal();
        let report = ran.json();
        let detail = |name: &str| {
            let checks = report["checks"].as_array().unwrap().clone();
            let check = checks.into_iter().find(|check| check["name"] == name).unwrap();
            check["detail"].as_str().unwrap().to_string()
        };
        (detail("Bucket"), detail("Region"), detail("Credentials"))
    };
    let is = |found: (String, String, String), bucket: &str, region: &str, source: &str| {
        assert_eq!(found, (bucket.into(), region.into(), source.into()));
    };
    // The home directory's file, then the current directory's, then --config.
    fs::write(machine.home().join(".hf-cache-sync.yaml"), &yaml).unwrap();
    machine.set("AWS_REGION", "aws-region");
    is(seen(&machine, &[]), "from-yaml", "yaml-region", "source=config");
    machine.configure(&yaml.replace("from-yaml", "from-here"));
    is(seen(&machine, &[]), "from-here", "yaml-region", "source=config");
    fs::write(machine.work().join("x.yaml"), yaml.replace("from-yaml", "from-x")).unwrap();
    is(seen(&machine, &["--config", "x.yaml"]), "from-x", "yaml-region", "source=config");

    machine.set("AWS_ACCESS_KEY_ID", ACCESS_KEY);
    machine.set("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    is(seen(&machine, &[]), "from-here", "yaml-region", "source=aws_env");
    // Half a pair of a higher rank is ignored, with a warning.
    machine.set("B2_APPLICATION_KEY_ID", "half");
    is(seen(&machine, &[]), "from-here", "yaml-region", "source=aws_env");
    let warned = machine.run(&["doctor"]).stderr;
    assert!(warned.contains("warning: B2_APPLICATION_KEY_ID is set without B2_APPLICATION_KEY"), "{warned}");
    machine.set("B2_APPLICATION_KEY_ID", ACCESS_KEY);
    machine.set("B2_APPLICATION_KEY", SECRET_KEY);
    machine.set("B2_BUCKET", BUCKET);
    machine.set("B2_REGION", "b2-region");
    is(seen(&machine, &[]), BUCKET, "b2-region", "source=b2_env");
    is(seen(&machine, &["--bucket", "flag", "--region", "flag-region"]), "flag", "flag-region", "source=b2_env");
    // An empty variable is as good as none.
    machine.set("B2_BUCKET", "");
    is(seen(&machine, &[]), "from-here", "b2-region", "source=b2_env");

    // AWS's endpoint variables count when nothing else is set.
    let mut machine = Machine::new(&store);
    machine.unset("B2_ENDPOINT");
    machine.set("AWS_ENDPOINT_URL", &store.server.url);
    machine.ok(&["doctor"]);
    machine.set("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1");
    assert_eq!(machine.run(&["pull", "org/name"]).code, 6);
}

#[test]
fn a_profile_of_aws_is_the_last_resort() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    machine.unset("B2_APPLICATION_KEY_ID");
    machine.unset("B2_APPLICATION_KEY");
    fs::create_dir(machine.home().join(".aws")).unwrap();
    let profile = format!("[team]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    fs::write(machine.home().join(".aws/credentials"), profile).unwrap();
    machine.set("AWS_PROFILE", "team");
    let said = machine.ok(&["doctor"]);
    assert!(said.contains("source=aws_chain"), "{said}");
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let store = Store::new();
    let machine = Machine::new(&store);
    fs::create_dir_all(machine.hub()).unwrap();
    for line in [["status", "--no-progress"], ["status", "--json"]] {
        let mut command = machine.command(&line);
        command.stdout(std::fs::File::create("/dev/full").unwrap()).stderr(std::process::Stdio::piped());
        let ran = command.spawn().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot write the result to stdout: No space left"), "{said}");
    }
}

#[test]
fn a_variable_that_is_no_text_is_not_taken_for_none() {
    use std::os::unix::ffi::OsStrExt;
    let store = Store::new();
    let machine = Machine::new(&store);
    let mut command = machine.command(&["status"]);
    command.env("HF_HUB_CACHE", std::ffi::OsStr::from_bytes(b"/caf\xe9"));
    machine::run(command).refused(2, &["HF_HUB_CACHE", "not valid UTF-8"]);
}

#[test]
fn local_commands_ask_neither_the_store_nor_for_credentials() {
    use std::os::unix::fs::PermissionsExt;
    let mut machine = Machine::unconfigured();
    Revision::model("org/name").refs(&["main"]).write(&machine.hub());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    machine.set("B2_ENDPOINT", &format!("http://{}", listener.local_addr().unwrap()));
    machine.set("B2_BUCKET", BUCKET);
    let (asked, ask) = (machine.home().join("asked"), machine.home().join("ask"));
    fs::write(&ask, format!("#!/bin/sh\n: > {}\n", asked.display())).unwrap();
    fs::set_permissions(&ask, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(machine.home().join(".aws")).unwrap();
    let profile = format!("[profile team]\ncredential_process = {}\n", ask.display());
    fs::write(machine.home().join(".aws/config"), profile).unwrap();
    machine.set("AWS_PROFILE", "team");
    for line in [&["list"][..], &["status"], &["prune"], &["init"], &["completions", "bash"], &["man"], &["--version"]]
    {
        machine.ok(line);
        assert!(!asked.exists(), "{line:?} looked for credentials");
        let came = listener.accept().map(|_| ()).map_err(|error| error.kind());
        assert_eq!(came, Err(std::io::ErrorKind::WouldBlock), "{line:?} went to the store");
    }
    // The trap works: what needs the bucket falls into it.
    drop(listener);
    machine.run(&["list", "--remote"]);
    assert!(asked.exists());
}

#[test]
fn init_writes_a_file_that_only_the_owner_reads() {
    use std::os::unix::fs::PermissionsExt;
    let machine = Machine::unconfigured();
    let said = machine.ok(&["init"]);
    assert!(said.contains("hf-cache-sync doctor"), "{said}");
    let path = machine.work().join(".hf-cache-sync.yaml");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    insta::assert_snapshot!("init", fs::read_to_string(&path).unwrap());
    fs::write(&path, "mine").unwrap();
    machine.ok(&["init"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine", "never over an existing file");
    assert_eq!(machine.run(&["init", "--json"]).json()["created"], false);
}

#[test]
fn init_writes_the_file_that_is_named() {
    let mut machine = Machine::unconfigured();
    let said = machine.ok(&["init", "--config", "team.yaml"]);
    let path = machine.work().join("team.yaml");
    let named = path.display().to_string();
    assert!(said.contains(&format!("Created {named}")) && said.contains(&format!("--config {named}")), "{said}");
    assert!(fs::read_to_string(&path).unwrap().starts_with("# hf-cache-sync configuration"));
    assert!(!machine.work().join(".hf-cache-sync.yaml").exists());
    fs::write(&path, "mine").unwrap();
    assert!(machine.ok(&["init", "--config", "team.yaml"]).contains("already exists"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    for name in ["none/team.yaml", "."] {
        let ran = machine.run(&["init", "--config", name]);
        assert!(ran.code != 0 && ran.stderr.contains("cannot write"), "{name}: {ran:#?}");
    }
    machine.set("HF_CACHE_SYNC_CONFIG", "other.yaml");
    machine.ok(&["init"]);
    assert!(machine.work().join("other.yaml").exists() && !machine.work().join(".hf-cache-sync.yaml").exists());
}

#[test]
fn the_untouched_template_does_not_stand_in_the_way() {
    let mut machine = Machine::unconfigured();
    machine.ok(&["init"]);
    let said = machine.run(&["doctor"]).stdout;
    assert!(said.contains("set storage.bucket in ") && said.contains("set storage.endpoint in "), "{said}");
    machine.set("B2_ENDPOINT", "https://s3.eu-central-003.backblazeb2.com");
    machine.set("B2_BUCKET", "ours");
    let shown = machine.ok(&["config", "show"]);
    assert!(shown.contains("eu-central-003") && !shown.contains("us-west-000"), "{shown}");
}

#[test]
fn what_doctor_says() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    insta::assert_snapshot!("doctor_well", plain(&store, &machine, &machine.run(&["doctor"])));
    store.server.on_request(|_| Action::Ahead(300));
    insta::assert_snapshot!("doctor_clock_off", plain(&store, &machine, &machine.run(&["doctor"])));
    store.server.on_request(|request| match request.method.as_str() {
        "HEAD" => Action::Pass,
        _ => Action::Refuse(403, "RequestTimeTooSkewed", "too far off"),
    });
    insta::assert_snapshot!("doctor_clock_refused", plain(&store, &machine, &machine.run(&["doctor"])));
    store.server.on_request(|request| match request.method.as_str() {
        "HEAD" => Action::Pass,
        _ => Action::Refuse(403, "AccessDenied", "not entitled"),
    });
    let ran = machine.run(&["doctor"]);
    assert!(ran.code == 3 && ran.stdout.contains("(B2: listFiles, S3: s3:ListBucket)"), "{ran:#?}");
    store.server.on_request(|request| match request.method.as_str() {
        "GET" | "HEAD" => Action::Pass,
        _ => Action::Refuse(403, "AccessDenied", "not entitled"),
    });
    insta::assert_snapshot!("doctor_read_only", plain(&store, &machine, &machine.run(&["doctor"])));
    let ran = machine.run(&["doctor", "--require-write"]);
    insta::assert_snapshot!("doctor_require_write", plain(&store, &machine, &ran));
    store.server.behave();
    let ran = machine.run(&["doctor", "--bucket", "no-such-bucket"]);
    insta::assert_snapshot!("doctor_wrong_bucket", plain(&store, &machine, &ran));
    machine.set("B2_APPLICATION_KEY", "wrong-secret");
    let ran = machine.run(&["doctor"]);
    ran.nothing_internal();
    insta::assert_snapshot!("doctor_wrong_key", plain(&store, &machine, &ran));
    machine.unset("B2_APPLICATION_KEY");
    machine.unset("B2_BUCKET");
    let ran = machine.run(&["doctor", "--cache-dir", "new"]);
    insta::assert_snapshot!("doctor_unconfigured", plain(&store, &machine, &ran));
    assert!(!machine.work().join("new").exists(), "doctor makes no cache");
}

#[test]
fn what_push_and_pull_say() {
    let store = Store::new();
    let (source, target) = (Machine::new(&store), Machine::new(&store));
    Revision::model("org/name").write(&source.hub());
    Revision::model("org/gated").git("LICENSE", "You must accept this agreement").write(&source.hub());
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n";
    let data = Revision::new("dataset", "org/data").git("x.csv", "1").git("large.csv", pointer).at(OTHER);
    data.refs(&["main", "v1"]).with_tree().write(&source.hub());
    let said = |machine: &Machine, line: &[&str]| plain(&store, machine, &machine.run(line));
    insta::assert_snapshot!("push_dry_run", said(&source, &["push", "--dry-run"]));
    insta::assert_snapshot!("push", said(&source, &["push"]));
    insta::assert_snapshot!("push_again", said(&source, &["push"]));
    insta::assert_snapshot!("pull_dry_run", said(&target, &["pull", "org/name", "--dry-run"]));
    insta::assert_snapshot!("pull", said(&target, &["pull", "org/name"]));
    insta::assert_snapshot!("pull_again", said(&target, &["pull", "org/name"]));
    insta::assert_snapshot!("pull_partial", said(&target, &["pull", "org/data"]));
    insta::assert_snapshot!("pull_unknown", said(&target, &["pull", "org/nane"]));
    insta::assert_snapshot!("pull_unknown_revision", said(&target, &["pull", "org/name", "-r", "v2"]));
    store.remove(&Revision::model("org/name").blob_key("model.safetensors"));
    let fresh = Machine::new(&store);
    insta::assert_snapshot!("pull_incomplete", said(&fresh, &["pull", "org/name"]));
}

/// A program reads the same report: errors as well, and nothing else on stdout.
#[test]
fn reports_as_json() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    let ran = machine.run(&["push", "--json"]);
    let report = ran.json();
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:#?}");
    assert_eq!(
        (&report["uploaded"]["blobs"], &report["manifests"], &report["refs"]),
        (&2.into(), &1.into(), &1.into())
    );
    let target = Machine::new(&store);
    let report = target.run(&["--json", "pull", "org/name"]).json();
    assert_eq!((&report["revision"], &report["repo_type"]), (&COMMIT.into(), &"model".into()), "{report:#}");
    assert_eq!(report["snapshot"], Revision::model("org/name").snapshot(&target.hub()).display().to_string());
    assert_eq!((&report["downloaded"]["blobs"], &report["source"]), (&2.into(), &"bucket".into()));
    let ran = target.run(&["--json", "pull", "org/none"]);
    assert_eq!((ran.code, &ran.json()["error"]["kind"]), (4, &"not-found".into()), "{ran:#?}");
}

/// Without a terminal there are no bars and no colours; with -v there is more to read, and no secret in it.
#[test]
fn logs_hold_no_secret() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    for line in [&["push"][..], &["-v", "push"], &["-vv", "push"], &["-vv", "doctor"], &["-vv", "pull", "org/name"]] {
        let ran = machine.run(line);
        assert_eq!(ran.code, 0, "{ran:#?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(!said.contains(SECRET_KEY), "{line:?}: {said}");
        assert!(!said.contains('\u{1b}') && !said.contains('\r'), "{line:?}: {said}");
    }
}

/// What happens inside is told on stderr, and only to those who ask; RUST_LOG has the last word.
#[test]
fn debug_lines_are_for_stderr() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    Revision::model("org/name").publish(&store);
    let mut said = |filter: Option<&str>, line: &[&str]| {
        match filter {
            Some(filter) => machine.set("RUST_LOG", filter),
            None => machine.unset("RUST_LOG"),
        }
        let asked = AtomicUsize::new(0);
        store.server.on_request(move |request| match request.is_list() && asked.fetch_add(1, Ordering::SeqCst) == 0 {
            true => Action::Refuse(503, "SlowDown", "no tomes available"),
            false => Action::Pass,
        });
        let ran = machine.run(&[line, &["list", "--remote", "--json"]].concat());
        assert_eq!(ran.code, 0, "{ran:#?}");
        assert_eq!(ran.json()["repos"].as_array().unwrap().len(), 1, "{ran:#?}");
        ran.stderr
    };
    assert_eq!(said(None, &[]), "");
    assert_eq!(said(Some("off"), &["-v"]), "");
    for (filter, line) in
        [(Some("hf_cache_sync=debug"), &[][..]), (Some("hf_cache_sync=debug"), &["-q"]), (None, &["-v"])]
    {
        let stderr = said(filter, line);
        assert!(stderr.contains("DEBUG") && stderr.contains("request is tried again"), "{stderr}");
        assert!(stderr.contains("no tomes available") && !stderr.contains("hyper"), "{stderr}");
    }
}

/// A reader that goes away, such as `head`, is no error.
#[test]
fn a_closed_pipe() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    let shell = machine.script("(\"$0\" push; echo $? >&2) | true");
    let ran = machine::run(shell);
    assert_eq!(ran.stderr.trim(), "0", "{ran:#?}");
}
