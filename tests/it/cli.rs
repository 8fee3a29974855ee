//! The command line as people and scripts use it: help, version, options in any position, the precedence of
//! settings, and what is printed on stdout and stderr (`snapshots/`).

mod completion;
mod terminal;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::cache::{COMMIT, OTHER, Revision};
use crate::harness::machine::{self, Machine, Output};
use crate::harness::s3::{ACCESS_KEY, Action, SECRET_KEY};
use crate::harness::store::{BUCKET, Store};

/// Returns the output without anything that differs between runs and machines.
fn normalized(store: &Store, machine: &Machine, output: &Output) -> String {
    let text =
        output.text().replace(&machine.home().display().to_string(), "~").replace(&store.server.url, "http://STORE");
    let lines = text.lines().map(without_timestamp).map(|line| match line {
        line if line.contains("Disk space") => without_number(line, "SIZE", &["B", "KiB", "MiB", "GiB", "TiB", "PiB"]),
        line if line.contains("Clock") => without_number(line, "N s", &["s"]),
        line => without_rate(line),
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// Strips the timestamp from "2026-09-21T14:13:20Z  Uploaded", which summaries have in a log.
fn without_timestamp(line: &str) -> &str {
    match line.split_once("Z  ") {
        Some((time, rest)) if time.len() == 19 && time.starts_with("20") => rest,
        _ => line,
    }
}

/// Replaces the first number in the line, which must have one of these units, with a word.
#[track_caller]
fn without_number(line: &str, word: &str, units: &[&str]) -> String {
    let (before, after) = line.split_at(line.find(|c: char| c.is_ascii_digit()).unwrap_or_else(|| panic!("{line}")));
    let (number, rest) = after.split_once(' ').unwrap();
    let (unit, rest) = rest.split_once(' ').unwrap();
    assert!(number.parse::<f64>().is_ok() && units.contains(&unit), "{line}");
    format!("{before}{word} {rest}")
}

/// Replaces the numbers in "in 0.3 s, 12.0 MiB/s".
fn without_rate(line: &str) -> String {
    let Some((before, after)) = line.split_once(" in ") else { return line.to_string() };
    let Some((_, rest)) = after.split_once(" s") else { return line.to_string() };
    let rest = match rest.split_once("/s") {
        Some((_, rest)) => rest,
        None => rest,
    };
    if after.starts_with(|c: char| c.is_ascii_digit()) { format!("{before} in TIME{rest}") } else { line.to_string() }
}

/// A command that a hint names acts on the same bucket as the one that failed.
#[test]
fn hints_carry_the_options_of_the_command_line() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    let one = Revision::model("org/one");
    one.write(&machine.hub());
    machine.unset("B2_BUCKET");
    machine.configure("team:\n  prefix: other\n");
    fs::rename(machine.work().join(".hf-cache-sync.yaml"), machine.work().join("my team.yaml")).unwrap();
    let given = ["--config", "my team.yaml", "--bucket", BUCKET];
    machine.ok(&[&["push"], &given[..]].concat());
    let failed = machine.run(&[&["pull", "zzz/qqq"], &given[..]].concat());
    let hinted = format!("`hf-cache-sync --config 'my team.yaml' --bucket {BUCKET} list --remote`");
    failed.refused(4, &[&hinted]);
    let line = hinted.trim_matches('`').replacen("hf-cache-sync", "\"$0\"", 1);
    let listed = machine::run(machine.script(&line));
    assert!(listed.code == 0 && listed.stdout.contains("org/one"), "{listed:#?}");
    // Notes and summaries, too.
    store.remove(&format!("other/{}", one.blob_key("config.json")));
    let verified = machine.run(&[&["verify", "--remote", "--prefix", "other"], &given[..]].concat());
    let hinted = format!("--bucket {BUCKET} --prefix other verify --remote --repair` uploads");
    assert!(verified.code == 5 && verified.stderr.contains(&hinted), "{verified:#?}");
}

#[test]
fn help_lists_all_commands_and_options() {
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

/// Examples must not wrap on a terminal with 80 columns.
#[test]
fn examples_fit_into_80_columns() {
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
fn usage_errors_exit_with_2() {
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
        let output = machine.run(line);
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{line:?}: {output:#?}");
        output.nothing_internal();
    }
    let stderr = machine.run(&["pull-all", "--limit", "-1"]).stderr;
    assert!(stderr.contains("invalid value '-1'") && stderr.contains("0 or more"), "{stderr}");
    assert!(machine.run(&["pusj"]).stderr.contains("'push'"), "the closest command is suggested");
    let stderr = machine.run(&["push", "--bwlimit", "fast"]).stderr;
    assert!(stderr.contains("expected a rate such as 50MB/s"), "{stderr}");
    let stderr = machine.run(&["push", "--max-memory", "1MiB"]).stderr;
    assert!(stderr.contains("at least 32MiB"), "{stderr}");
}

#[test]
fn global_options_are_accepted_anywhere() {
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
    let output = machine.run(&[first, &["push", "--json", "org/name"], last].concat());
    assert_eq!(output.json()["present"]["blobs"], 2, "{output:#?}");
    let output = machine.run(&[&["pull", "org/name"], &options[..], &["-q"]].concat());
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:#?}");
    assert!(store.keys().iter().all(|key| key.starts_with("team/")));
}

/// Flags, then `B2_*`, then YAML, then AWS's own variables. Credential pairs are never mixed.
#[test]
fn settings_follow_the_documented_precedence() {
    let store = Store::new();
    let mut machine = Machine::unconfigured();
    let yaml = format!(
        "storage:\n  endpoint: {}\n  bucket: from-yaml\n  region: yaml-region\n  access_key: {ACCESS_KEY}\n  \
         secret_key: {SECRET_KEY}\nteam:\n  prefix: yaml-prefix\n",
        store.server.url
    );
    let resolved = |machine: &Machine, line: &[&str]| -> (String, String, String) {
        let output = machine.run(&[line, &["doctor", "--json"]].concat());
        output.nothing_internal();
        let report = output.json();
        let detail = |name: &str| {
            let checks = report["checks"].as_array().unwrap().clone();
            let check = checks.into_iter().find(|check| check["name"] == name).unwrap();
            check["detail"].as_str().unwrap().to_string()
        };
        (detail("Bucket"), detail("Region"), detail("Credentials"))
    };
    let assert_resolved = |found: (String, String, String), bucket: &str, region: &str, source: &str| {
        assert_eq!(found, (bucket.into(), region.into(), source.into()));
    };
    // The file in the home directory, then the one in the working directory, then --config.
    fs::write(machine.home().join(".hf-cache-sync.yaml"), &yaml).unwrap();
    machine.set("AWS_REGION", "aws-region");
    assert_resolved(resolved(&machine, &[]), "from-yaml", "yaml-region", "source=config");
    machine.configure(&yaml.replace("from-yaml", "from-here"));
    assert_resolved(resolved(&machine, &[]), "from-here", "yaml-region", "source=config");
    fs::write(machine.work().join("x.yaml"), yaml.replace("from-yaml", "from-x")).unwrap();
    assert_resolved(resolved(&machine, &["--config", "x.yaml"]), "from-x", "yaml-region", "source=config");

    machine.set("AWS_ACCESS_KEY_ID", ACCESS_KEY);
    machine.set("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    assert_resolved(resolved(&machine, &[]), "from-here", "yaml-region", "source=aws_env");
    // Half a pair with higher precedence is ignored, with a warning.
    machine.set("B2_APPLICATION_KEY_ID", "half");
    assert_resolved(resolved(&machine, &[]), "from-here", "yaml-region", "source=aws_env");
    let warned = machine.run(&["doctor"]).stderr;
    assert!(warned.contains("warning: B2_APPLICATION_KEY_ID is set without B2_APPLICATION_KEY"), "{warned}");
    machine.set("B2_APPLICATION_KEY_ID", ACCESS_KEY);
    machine.set("B2_APPLICATION_KEY", SECRET_KEY);
    machine.set("B2_BUCKET", BUCKET);
    machine.set("B2_REGION", "b2-region");
    assert_resolved(resolved(&machine, &[]), BUCKET, "b2-region", "source=b2_env");
    assert_resolved(
        resolved(&machine, &["--bucket", "flag", "--region", "flag-region"]),
        "flag",
        "flag-region",
        "source=b2_env",
    );
    // An empty variable counts as unset.
    machine.set("B2_BUCKET", "");
    assert_resolved(resolved(&machine, &[]), "from-here", "b2-region", "source=b2_env");

    // AWS's endpoint variables apply when nothing else is set.
    let mut machine = Machine::new(&store);
    machine.unset("B2_ENDPOINT");
    machine.set("AWS_ENDPOINT_URL", &store.server.url);
    machine.ok(&["doctor"]);
    machine.set("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1");
    assert_eq!(machine.run(&["pull", "org/name"]).code, 6);
}

#[test]
fn an_aws_profile_is_the_last_resort() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    machine.unset("B2_APPLICATION_KEY_ID");
    machine.unset("B2_APPLICATION_KEY");
    fs::create_dir(machine.home().join(".aws")).unwrap();
    let profile = format!("[team]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    fs::write(machine.home().join(".aws/credentials"), profile).unwrap();
    machine.set("AWS_PROFILE", "team");
    let stdout = machine.ok(&["doctor"]);
    assert!(stdout.contains("source=aws_chain"), "{stdout}");
}

#[test]
fn failing_to_write_the_result_is_an_error() {
    let store = Store::new();
    let machine = Machine::new(&store);
    fs::create_dir_all(machine.hub()).unwrap();
    for line in [["status", "--no-progress"], ["status", "--json"]] {
        let mut command = machine.command(&line);
        command.stdout(std::fs::File::create("/dev/full").unwrap()).stderr(std::process::Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("cannot write the result to stdout: No space left"), "{stderr}");
    }
}

#[test]
fn a_variable_that_is_not_utf8_is_not_treated_as_unset() {
    use std::os::unix::ffi::OsStrExt;
    let store = Store::new();
    let machine = Machine::new(&store);
    let mut command = machine.command(&["status"]);
    command.env("HF_HUB_CACHE", std::ffi::OsStr::from_bytes(b"/caf\xe9"));
    machine::run(command).refused(2, &["HF_HUB_CACHE", "not valid UTF-8"]);
}

#[test]
fn local_commands_need_neither_the_store_nor_credentials() {
    use std::os::unix::fs::PermissionsExt;
    let mut machine = Machine::unconfigured();
    Revision::model("org/name").refs(&["main"]).write(&machine.hub());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    machine.set("B2_ENDPOINT", &format!("http://{}", listener.local_addr().unwrap()));
    machine.set("B2_BUCKET", BUCKET);
    let (marker, helper) = (machine.home().join("called"), machine.home().join("helper"));
    fs::write(&helper, format!("#!/bin/sh\n: > {}\n", marker.display())).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(machine.home().join(".aws")).unwrap();
    let profile = format!("[profile team]\ncredential_process = {}\n", helper.display());
    fs::write(machine.home().join(".aws/config"), profile).unwrap();
    machine.set("AWS_PROFILE", "team");
    for line in [&["list"][..], &["status"], &["prune"], &["init"], &["completions", "bash"], &["man"], &["--version"]]
    {
        machine.ok(line);
        assert!(!marker.exists(), "{line:?} asked for credentials");
        let connection = listener.accept().map(|_| ()).map_err(|error| error.kind());
        assert_eq!(connection, Err(std::io::ErrorKind::WouldBlock), "{line:?} contacted the store");
    }
    // Make sure that the trap works: a command that needs the bucket triggers it.
    drop(listener);
    machine.run(&["list", "--remote"]);
    assert!(marker.exists());
}

#[test]
fn init_creates_a_file_that_only_the_owner_can_read() {
    use std::os::unix::fs::PermissionsExt;
    let machine = Machine::unconfigured();
    let stdout = machine.ok(&["init"]);
    assert!(stdout.contains("hf-cache-sync doctor"), "{stdout}");
    let path = machine.work().join(".hf-cache-sync.yaml");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    insta::assert_snapshot!("init", fs::read_to_string(&path).unwrap());
    fs::write(&path, "mine").unwrap();
    machine.ok(&["init"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine", "existing files must not be overwritten");
    assert_eq!(machine.run(&["init", "--json"]).json()["created"], false);
}

#[test]
fn init_creates_the_file_given_by_config() {
    let mut machine = Machine::unconfigured();
    let stdout = machine.ok(&["init", "--config", "team.yaml"]);
    let path = machine.work().join("team.yaml");
    let named = path.display().to_string();
    assert!(stdout.contains(&format!("Created {named}")) && stdout.contains(&format!("--config {named}")), "{stdout}");
    assert!(fs::read_to_string(&path).unwrap().starts_with("# hf-cache-sync configuration"));
    assert!(!machine.work().join(".hf-cache-sync.yaml").exists());
    fs::write(&path, "mine").unwrap();
    assert!(machine.ok(&["init", "--config", "team.yaml"]).contains("already exists"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    for name in ["none/team.yaml", "."] {
        let output = machine.run(&["init", "--config", name]);
        assert!(output.code != 0 && output.stderr.contains("cannot write"), "{name}: {output:#?}");
    }
    machine.set("HF_CACHE_SYNC_CONFIG", "other.yaml");
    machine.ok(&["init"]);
    assert!(machine.work().join("other.yaml").exists() && !machine.work().join(".hf-cache-sync.yaml").exists());
}

#[test]
fn the_unedited_template_does_not_override_the_environment() {
    let mut machine = Machine::unconfigured();
    machine.ok(&["init"]);
    let stdout = machine.run(&["doctor"]).stdout;
    assert!(stdout.contains("set storage.bucket in ") && stdout.contains("set storage.endpoint in "), "{stdout}");
    machine.set("B2_ENDPOINT", "https://s3.eu-central-003.backblazeb2.com");
    machine.set("B2_BUCKET", "ours");
    let shown = machine.ok(&["config", "show"]);
    assert!(shown.contains("eu-central-003") && !shown.contains("us-west-000"), "{shown}");
}

#[test]
fn doctor_output() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    insta::assert_snapshot!("doctor_well", normalized(&store, &machine, &machine.run(&["doctor"])));
    store.server.on_request(|_| Action::ClockAhead(300));
    insta::assert_snapshot!("doctor_clock_off", normalized(&store, &machine, &machine.run(&["doctor"])));
    store.server.on_request(|request| match request.method.as_str() {
        "HEAD" => Action::Pass,
        _ => Action::Refuse(403, "RequestTimeTooSkewed", "too far off"),
    });
    insta::assert_snapshot!("doctor_clock_refused", normalized(&store, &machine, &machine.run(&["doctor"])));
    store.server.on_request(|request| match request.method.as_str() {
        "HEAD" => Action::Pass,
        _ => Action::Refuse(403, "AccessDenied", "not entitled"),
    });
    let output = machine.run(&["doctor"]);
    assert!(output.code == 3 && output.stdout.contains("(B2: listFiles, S3: s3:ListBucket)"), "{output:#?}");
    store.server.on_request(|request| match request.method.as_str() {
        "GET" | "HEAD" => Action::Pass,
        _ => Action::Refuse(403, "AccessDenied", "not entitled"),
    });
    insta::assert_snapshot!("doctor_read_only", normalized(&store, &machine, &machine.run(&["doctor"])));
    let output = machine.run(&["doctor", "--require-write"]);
    insta::assert_snapshot!("doctor_require_write", normalized(&store, &machine, &output));
    store.server.behave();
    let output = machine.run(&["doctor", "--bucket", "no-such-bucket"]);
    insta::assert_snapshot!("doctor_wrong_bucket", normalized(&store, &machine, &output));
    machine.set("B2_APPLICATION_KEY", "wrong-secret");
    let output = machine.run(&["doctor"]);
    output.nothing_internal();
    insta::assert_snapshot!("doctor_wrong_key", normalized(&store, &machine, &output));
    machine.unset("B2_APPLICATION_KEY");
    machine.unset("B2_BUCKET");
    let output = machine.run(&["doctor", "--cache-dir", "new"]);
    insta::assert_snapshot!("doctor_unconfigured", normalized(&store, &machine, &output));
    assert!(!machine.work().join("new").exists(), "doctor must not create a cache");
}

#[test]
fn push_and_pull_output() {
    let store = Store::new();
    let (source, target) = (Machine::new(&store), Machine::new(&store));
    Revision::model("org/name").write(&source.hub());
    Revision::model("org/gated").git("LICENSE", "You must accept this agreement").write(&source.hub());
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n";
    let data = Revision::new("dataset", "org/data").git("x.csv", "1").git("large.csv", pointer).at(OTHER);
    data.refs(&["main", "v1"]).with_tree().write(&source.hub());
    let run = |machine: &Machine, line: &[&str]| normalized(&store, machine, &machine.run(line));
    insta::assert_snapshot!("push_dry_run", run(&source, &["push", "--dry-run"]));
    insta::assert_snapshot!("push", run(&source, &["push"]));
    insta::assert_snapshot!("push_again", run(&source, &["push"]));
    insta::assert_snapshot!("pull_dry_run", run(&target, &["pull", "org/name", "--dry-run"]));
    insta::assert_snapshot!("pull", run(&target, &["pull", "org/name"]));
    insta::assert_snapshot!("pull_again", run(&target, &["pull", "org/name"]));
    insta::assert_snapshot!("pull_partial", run(&target, &["pull", "org/data"]));
    insta::assert_snapshot!("pull_unknown", run(&target, &["pull", "org/nane"]));
    insta::assert_snapshot!("pull_unknown_revision", run(&target, &["pull", "org/name", "-r", "v2"]));
    store.remove(&Revision::model("org/name").blob_key("model.safetensors"));
    let fresh = Machine::new(&store);
    insta::assert_snapshot!("pull_incomplete", run(&fresh, &["pull", "org/name"]));
}

/// Scripts get the same report, including errors, and nothing else on stdout.
#[test]
fn reports_and_errors_are_printed_as_json() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    let output = machine.run(&["push", "--json"]);
    let report = output.json();
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:#?}");
    assert_eq!(
        (&report["uploaded"]["blobs"], &report["manifests"], &report["refs"]),
        (&2.into(), &1.into(), &1.into())
    );
    let target = Machine::new(&store);
    let report = target.run(&["--json", "pull", "org/name"]).json();
    assert_eq!((&report["revision"], &report["repo_type"]), (&COMMIT.into(), &"model".into()), "{report:#}");
    assert_eq!(report["snapshot"], Revision::model("org/name").snapshot(&target.hub()).display().to_string());
    assert_eq!((&report["downloaded"]["blobs"], &report["source"]), (&2.into(), &"bucket".into()));
    let output = target.run(&["--json", "pull", "org/none"]);
    assert_eq!((output.code, &output.json()["error"]["kind"]), (4, &"not-found".into()), "{output:#?}");
}

/// Without a terminal there are no progress bars and no colours, and -v prints no secret.
#[test]
fn logs_contain_no_secrets() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    for line in [&["push"][..], &["-v", "push"], &["-vv", "push"], &["-vv", "doctor"], &["-vv", "pull", "org/name"]] {
        let output = machine.run(line);
        assert_eq!(output.code, 0, "{output:#?}");
        let text = format!("{}{}", output.stdout, output.stderr);
        assert!(!text.contains(SECRET_KEY), "{line:?}: {text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{line:?}: {text}");
    }
}

/// Debug lines go to stderr, and only on request; RUST_LOG takes precedence.
#[test]
fn debug_lines_go_to_stderr() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    Revision::model("org/name").publish(&store);
    let mut run = |filter: Option<&str>, line: &[&str]| {
        match filter {
            Some(filter) => machine.set("RUST_LOG", filter),
            None => machine.unset("RUST_LOG"),
        }
        let lists = AtomicUsize::new(0);
        store.server.on_request(move |request| match request.is_list() && lists.fetch_add(1, Ordering::SeqCst) == 0 {
            true => Action::Refuse(503, "SlowDown", "no tomes available"),
            false => Action::Pass,
        });
        let output = machine.run(&[line, &["list", "--remote", "--json"]].concat());
        assert_eq!(output.code, 0, "{output:#?}");
        assert_eq!(output.json()["repos"].as_array().unwrap().len(), 1, "{output:#?}");
        output.stderr
    };
    assert_eq!(run(None, &[]), "");
    assert_eq!(run(Some("off"), &["-v"]), "");
    for (filter, line) in
        [(Some("hf_cache_sync=debug"), &[][..]), (Some("hf_cache_sync=debug"), &["-q"]), (None, &["-v"])]
    {
        let stderr = run(filter, line);
        assert!(stderr.contains("DEBUG") && stderr.contains("request is tried again"), "{stderr}");
        assert!(stderr.contains("no tomes available") && !stderr.contains("hyper"), "{stderr}");
    }
}

/// A reader that exits early, such as `head`, is not an error.
#[test]
fn a_closed_pipe_is_not_an_error() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    let shell = machine.script("(\"$0\" push; echo $? >&2) | true");
    let output = machine::run(shell);
    assert_eq!(output.stderr.trim(), "0", "{output:#?}");
}
