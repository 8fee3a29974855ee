//! Settings: surrounding white space and quotes are stripped, errors name the setting and its source, secrets are never
//! echoed, and a missing cache is reported.

use std::fs;

use crate::harness::cache::Revision;
use crate::harness::machine::{Machine, Output};
use crate::harness::s3::{ACCESS_KEY, SECRET_KEY};
use crate::harness::store::{BUCKET, Store};
use crate::harness::{listing, machine};

const CANARY: &str = "canarYvalue7Kx";

fn setup() -> (Store, Machine) {
    let (store, machine) = (Store::new(), Machine::unconfigured());
    Revision::model("org/name").write(&machine.hub());
    (store, machine)
}

fn yaml(store: &Store) -> String {
    format!(
        "storage:\n  endpoint: {}\n  bucket: {BUCKET}\n  region: test-region\n  access_key: {ACCESS_KEY}\n  \
         secret_key: {SECRET_KEY}\n",
        store.server.url
    )
}

fn run_with(machine: &Machine, line: &[&str], vars: &[(&str, &[u8])]) -> Output {
    let mut command = machine.command(line);
    for (name, value) in vars {
        #[cfg(unix)]
        let value: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(value.to_vec());
        #[cfg(windows)]
        let value = str::from_utf8(value).unwrap();
        command.env(name, value);
    }
    machine::run(command)
}

/// Mounted secrets and `.env` files end in a newline, and some values are quoted.
#[test]
fn surrounding_white_space_and_quotes_are_stripped() {
    let (store, mut machine) = setup();
    machine.set("B2_ENDPOINT", &store.server.url);
    for (before, after) in
        [("", "\n"), (" ", "\r\n"), ("\u{feff}", "\t"), ("\u{a0}", "\u{a0}\n\n"), ("\"", "\"\n"), ("'", "'")]
    {
        let wrap = |text: &str| format!("{before}{text}{after}");
        for (id, key) in
            [("B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY"), ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        {
            let mut command = machine.command(&["push"]);
            command.env(id, wrap(ACCESS_KEY)).env(key, wrap(SECRET_KEY)).env("B2_BUCKET", wrap(BUCKET));
            command.env("B2_ENDPOINT", wrap(&store.server.url)).env("AWS_REGION", wrap("test-region"));
            command.env("HF_TOKEN", wrap("hf_x")).env("HF_HUB_CACHE", wrap(machine.hub().to_str().unwrap()));
            let output = machine::run(command);
            assert_eq!(output.code, 0, "{before:?} {after:?} {id}: {output:#?}");
        }
        let mut command = machine.command(&["push", "--region", &wrap("test-region"), "--bucket", &wrap(BUCKET)]);
        command.env("B2_APPLICATION_KEY_ID", ACCESS_KEY).env("B2_APPLICATION_KEY", SECRET_KEY);
        assert_eq!(machine::run(command).code, 0);
    }
    machine.configure(
        &yaml(&store).replace(SECRET_KEY, &format!("\"{SECRET_KEY}\\n\"")).replace(BUCKET, "\" team-cache\\n\""),
    );
    machine.unset("B2_ENDPOINT");
    assert_eq!(machine.run(&["push"]).code, 0);
}

/// Any other control character is an error that names the setting, but never shows its value.
#[test]
fn control_characters_inside_a_value_are_refused() {
    let (store, machine) = setup();
    machine.configure(&yaml(&store));
    let bare = Machine::unconfigured();
    for name in [
        "B2_APPLICATION_KEY_ID",
        "B2_APPLICATION_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "B2_REGION",
        "B2_ENDPOINT",
        "AWS_ENDPOINT_URL",
        "B2_BUCKET",
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HTTPS_PROXY",
        "NO_PROXY",
        "HF_CACHE_SYNC_SSE_KMS_KEY_ID",
        "HF_CACHE_SYNC_CONFIG",
    ] {
        for inside in ["\n", "\r\n", "\t", "\u{1b}[31m", "\u{7}", "\u{7f}", "\u{85}"] {
            let value = format!("{CANARY}{inside}x");
            let is_used = !matches!(name, "AWS_REGION" | "AWS_ENDPOINT_URL");
            for line in [&["push"][..], &["config", "show"]] {
                // AWS's variables are ignored if the file has the setting.
                let machine = if is_used { &machine } else { &bare };
                let output = run_with(machine, line, &[(name, value.as_bytes())]);
                assert_eq!(output.code, 2, "{name} {inside:?}: {output:#?}");
                assert!(output.stderr.contains(name), "{name} {inside:?}: {output:#?}");
                assert!(!format!("{output:?}").contains(CANARY), "{name} {inside:?}: {output:#?}");
                output.nothing_internal();
            }
        }
    }
    for flag in ["--region", "--bucket", "--endpoint", "--prefix", "--cache-dir", "--storage-class", "--sse-kms-key-id"]
    {
        let output = machine.run(&["push", flag, "a\u{1b}b"]);
        output.refused(2, &[flag]);
    }
    // Characters that no key or region contains.
    for (name, value) in
        [("B2_APPLICATION_KEY", "schlüssel"), ("AWS_SECRET_ACCESS_KEY", "a\u{200b}b"), ("AWS_REGION", "日本")]
    {
        let machine = if name == "AWS_REGION" { &bare } else { &machine };
        let output = run_with(machine, &["push"], &[(name, value.as_bytes())]);
        assert_eq!(output.code, 2, "{name}: {output:#?}");
        assert!(output.stderr.contains(name), "{output:#?}");
    }
    // Not UTF-8.
    #[cfg(unix)]
    for name in ["B2_APPLICATION_KEY", "HF_HOME", "B2_REGION", "HF_TOKEN"] {
        let output = run_with(&machine, &["push"], &[(name, b"a\xff\xfeb")]);
        output.refused(2, &[name, "UTF-8"]);
    }
}

/// The value of a secret is never printed, no matter how broken the YAML is.
#[test]
fn errors_in_a_broken_file_never_show_its_contents() {
    let (store, machine) = setup();
    let place = |value: &str| yaml(&store).replace(SECRET_KEY, value);
    let whole = |text: &str| text.replace("CANARY", CANARY);
    for (broken, code) in [
        ("storage: CANARY\n".to_string(), 2),
        ("CANARY\n".into(), 2),
        ("- CANARY\n".into(), 2),
        ("CANARY: 1\n".into(), 3),
        ("storage: !!int CANARY\n".into(), 2),
        ("storage: !CANARY x\n".into(), 2),
        ("storage:\n  secret_key: CANARY\n  secret_key: CANARY\n".into(), 2),
        ("storage:\n\tsecret_key: CANARY\n".into(), 2),
        ("storage:\n  secret_key: \"CANARY\n".into(), 2),
        ("storage: {CANARY}\n".into(), 3),
        ("storage:\n  CANARY:\n".into(), 3),
        ("storge:\n  secret_key: CANARY\n".into(), 3),
        ("storage:\n  secretkey: CANARY\n".into(), 3),
        ("storage:\n  ? CANARY\n  : x\n".into(), 3),
        ("storage:\n  secret_key: CANARY: x\n".into(), 2),
        ("storage:\n  access_key:CANARY\n  secret_key:CANARY\n".into(), 2),
        ("storage: [CANARY\n".into(), 2),
        ("cache:\n  max_local_gb: CANARY\n".into(), 2),
        ("team:\n  allow_gated: CANARY\n".into(), 2),
        ("storage: *CANARY\n".into(), 2),
        (place("!!int CANARY"), 2),
        (place("[CANARY]"), 2),
        (place("{CANARY: CANARY}"), 2),
        (place("\n    CANARY: CANARY"), 2),
        (place("!CANARY"), 2),
        (place("!CANARY CANARY"), 2),
        (place("*CANARY"), 2),
        (place("&CANARY"), 2),
        (place("@CANARY"), 2),
        (place("%CANARY"), 2),
        (place("`CANARY"), 2),
        (place("\"CANARY\" CANARY"), 2),
        (place("\"CANARY\\qCANARY\""), 2),
        (place("\"CANARY\\nCANARY\""), 2),
        (place("!!bool CANARY"), 2),
        (place("!!null CANARY"), 2),
        (place("!!float CANARY"), 2),
        (place("!!binary CANARY"), 3),
        (place("|\n    CANARY\n    CANARY"), 2),
        (place("CANARY\u{0}"), 2),
    ] {
        let text = whole(&broken);
        machine.configure(&text);
        for line in
            [&["push"][..], &["-vv", "push"], &["--json", "push"], &["config", "show"], &["config", "show", "--json"]]
        {
            let output = machine.run(line);
            assert!(!format!("{output:?}").contains(CANARY), "{text:?} {line:?}: {output:#?}");
            assert!(output.code == code || line.contains(&"show") || code == 3, "{text:?} {line:?}: {output:#?}");
            if !line.contains(&"-vv") {
                output.nothing_internal();
            }
        }
    }
}

/// Every error names the line, calls a tab a tab, and explains that a quoted number is text.
#[test]
fn errors_in_the_file_name_the_line() {
    let (_store, machine) = setup();
    for (text, words) in [
        ("storage:\n  bucket: b\n\tregion: r\n", &["line 3", "tab"][..]),
        ("storage:\n\tbucket: b\n", &["line 2", "tab"]),
        ("storage:\n  bucket: b\n  \tregion: r\n", &["line 3", "tab"]),
        ("cache:\n  max_local_gb: \"50\"\n", &["line 2", "max_local_gb", "without quotes"]),
        ("cache:\n\n  max_local_gb: '50'\n", &["line 3", "max_local_gb", "without quotes"]),
        ("storage:\n  max_parts: \"10\"\n", &["line 2", "max_parts", "without quotes"]),
        ("team:\n  allow_gated: \"yes\"\n", &["line 2", "allow_gated", "without quotes"]),
        ("cache: {sync_xet: 'on'}\n", &["line 1", "sync_xet", "without quotes"]),
        ("storage:\n  bucket: 12345\n", &["line 2", "bucket", "quotes"]),
        ("storage:\n  bucket: b\nstorage:\n  region: r\n", &["storage", "twice"]),
        ("storage:\n  addressing_style: dns\n", &["line 2", "addressing_style", "auto, path or virtual"]),
        ("storage:\n  region: us west\n", &["line 2", "region"]),
        ("storage:\n  max_parts: 10001\n", &["line 2", "max_parts", "10000"]),
        ("storage:\n  requester_pays: requester\n", &["line 2", "requester_pays", "true or false"]),
        ("a: 1\n---\nb: 2\n", &["more than one document"]),
    ] {
        machine.configure(text);
        machine.run(&["push"]).refused(2, &[words, &[".hf-cache-sync.yaml"]].concat());
    }
    fs::write(machine.work().join(".hf-cache-sync.yaml"), b"storage:\n  bucket: a\xff\n").unwrap();
    machine.run(&["push"]).refused(2, &["line 2", "UTF-8"]);
    fs::write(machine.work().join(".hf-cache-sync.yaml"), b"\xff\xfes\0t\0").unwrap();
    machine.run(&["push"]).refused(2, &["UTF-16"]);
}

/// Every error names the variable or option, and the allowed values.
#[test]
fn errors_in_values_name_the_setting() {
    let (_store, machine) = setup();
    for (name, value, words) in [
        ("HF_CACHE_SYNC_ADDRESSING_STYLE", "dns", "auto, path or virtual"),
        ("HF_CACHE_SYNC_CHECKSUMS", "sha1", "auto, none, md5 or crc32"),
        ("HF_CACHE_SYNC_SSE", "rot13", "AES256, aws:kms or aws:kms:dsse"),
        ("HF_CACHE_SYNC_SSE_KMS_KEY_ID", "a b", "without spaces"),
        ("HF_CACHE_SYNC_STORAGE_CLASS", "very cold", "STANDARD_IA"),
        ("HF_CACHE_SYNC_REQUESTER_PAYS", "maybe", "true or false"),
        ("AWS_REQUEST_PAYER", "me", "true or false"),
        ("HF_CACHE_SYNC_UNSIGNED", "2", "true or false"),
        ("HF_CACHE_SYNC_MAX_PARTS", "0", "1 to 10000"),
        ("HF_CACHE_SYNC_TIMEOUT", "1h", "seconds from 1 to 3600"),
        ("AWS_USE_DUALSTACK_ENDPOINT", "si", "true or false"),
        ("AWS_USE_FIPS_ENDPOINT", "si", "true or false"),
    ] {
        for line in [&["push"][..], &["status"]] {
            run_with(&machine, line, &[(name, value.as_bytes())]).refused(2, &[name, words]);
        }
    }
    for (flag, value) in
        [("--addressing-style", "dns"), ("--checksums", "sha1"), ("--sse", "rot13"), ("--storage-class", "a b")]
    {
        let output = machine.run(&["push", flag, value]);
        assert!(output.code == 2 && output.stderr.contains(flag), "{output:#?}");
    }
    let both = [("HF_CACHE_SYNC_FIPS", &b"true"[..]), ("B2_ENDPOINT", b"http://h")];
    run_with(&machine, &["status"], &both).refused(2, &["HF_CACHE_SYNC_FIPS", "B2_ENDPOINT"]);
    let ambient = [("AWS_USE_FIPS_ENDPOINT", &b"true"[..]), ("B2_ENDPOINT", b"http://h")];
    assert_eq!(run_with(&machine, &["status"], &ambient).code, 0);
    let keys = [("HF_CACHE_SYNC_SSE", &b"AES256"[..]), ("HF_CACHE_SYNC_SSE_KMS_KEY_ID", b"k")];
    run_with(&machine, &["status"], &keys).refused(2, &["HF_CACHE_SYNC_SSE_KMS_KEY_ID", "AES256"]);
}

/// For a bucket given as a URL or path, the hint is a command line that works.
#[test]
fn a_url_in_place_of_a_bucket_gets_a_hint() {
    let (_store, machine) = setup();
    let refused = |line: &[&str], words: &[&str]| machine.run(&[&["push"], line].concat()).refused(2, words);
    refused(&["--bucket", "s3://team/models/x"], &["--bucket team --prefix models/x"]);
    refused(&["--bucket", "s3://team"], &["--bucket team"]);
    refused(&["--bucket", "team/models"], &["--bucket team --prefix models"]);
    refused(&["--endpoint", "s3://team"], &["--bucket"]);
    let b2 = "https://s3.us-west-004.backblazeb2.com";
    let line = ["--endpoint", &format!("{b2}/team/p"), "--bucket", "team"];
    refused(&line, &[&format!("--endpoint {b2} --bucket team --prefix p")]);
    let line = ["--endpoint", "https://other.s3.us-west-004.backblazeb2.com", "--bucket", "team"];
    refused(&line, &["'other'", "'team'", &format!("--endpoint {b2}")]);
}

/// A bucket that is part of the endpoint's host or path is removed, with a note. A region in the host takes precedence
/// over variables that platforms set.
#[test]
fn bucket_and_region_are_taken_from_the_endpoint() {
    let (store, mut machine) = setup();
    machine.set("AWS_REGION", "eu-north-1");
    let shown = |line: &[&str], vars: &[(&str, &[u8])]| {
        let output = run_with(&machine, &[line, &["config", "show", "--json"]].concat(), vars);
        assert_eq!(output.code, 0, "{output:#?}");
        let report = output.json();
        let value = |name: &str| {
            let row = report["settings"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
            row["value"].as_str().unwrap_or_default().to_string()
        };
        (value("storage.endpoint"), value("storage.bucket"), value("storage.region"), report["notes"].to_string())
    };
    let b2 = "https://s3.us-west-004.backblazeb2.com";
    for (url, endpoint, region) in [
        ("https://b.s3.us-west-004.backblazeb2.com", b2, "us-west-004"),
        ("HTTPS://S3.us-west-004.backblazeb2.com/b", b2, "us-west-004"),
        ("b.s3.us-west-004.backblazeb2.com", b2, "us-west-004"),
        ("https://b.s3.eu-west-3.amazonaws.com/", "https://s3.eu-west-3.amazonaws.com", "eu-west-3"),
        ("https://b.oss-cn-hangzhou.aliyuncs.com", "https://oss-cn-hangzhou.aliyuncs.com", "cn-hangzhou"),
        ("http://minio.lan:9000/b", "http://minio.lan:9000", "eu-north-1"),
    ] {
        for line in [&["--endpoint", url][..], &["--endpoint", url, "--bucket", "b"]] {
            let (found, bucket, found_region, notes) = shown(line, &[]);
            assert_eq!((found.as_str(), bucket.as_str(), found_region.as_str()), (endpoint, "b", region), "{line:?}");
            assert!(notes.contains("removed the bucket"), "{notes}");
        }
    }
    let region = |line: &[&str], vars: &[(&str, &[u8])]| shown(line, vars).2;
    assert_eq!(region(&["--endpoint", "https://storage.googleapis.com"], &[]), "auto");
    assert_eq!(region(&["--endpoint", "https://s3.wasabisys.com"], &[("AWS_DEFAULT_REGION", b"x")]), "us-east-1");
    assert_eq!(region(&["--endpoint", b2, "--region", "r"], &[]), "r");
    assert_eq!(region(&["--endpoint", b2], &[("B2_REGION", b"r")]), "r");
    assert_eq!(region(&[], &[]), "eu-north-1");
    // The real store, with the bucket in the endpoint's path.
    machine.set("B2_APPLICATION_KEY_ID", ACCESS_KEY);
    machine.set("B2_APPLICATION_KEY", SECRET_KEY);
    let url = format!("{}/{BUCKET}", store.server.url.replace("http://", "HTTP://"));
    let output = machine.run(&["push", "--endpoint", &url]);
    assert!(output.code == 0 && output.stderr.contains("from the endpoint"), "{output:#?}");
    Revision::model("org/name").assert_published(&store);
}

/// The error says where the path comes from, and nothing is created.
#[cfg(unix)]
#[test]
fn a_missing_cache_is_not_found() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    let missing = machine.home().join("disk/hub");
    let commands: [&[&str]; 7] =
        [&["push"], &["push", "--dry-run"], &["prune"], &["list"], &["status"], &["diff"], &["watch"]];
    let refused = |machine: &Machine, more: &[&str], words: &[&str]| {
        for line in commands {
            let before = listing(&machine.home());
            machine.run(&[line, more].concat()).refused(4, words);
            assert_eq!(listing(&machine.home()), before, "{line:?}");
        }
    };
    refused(&machine, &[], &[".cache/huggingface/hub", "(from the default)"]);
    refused(
        &machine,
        &["--cache-dir", missing.to_str().unwrap()],
        &["disk/hub (from --cache-dir)", "/disk does not exist"],
    );
    for (name, value) in [
        ("HF_HOME", machine.home().join("disk")),
        ("HF_HUB_CACHE", missing.clone()),
        ("HUGGINGFACE_HUB_CACHE", missing.clone()),
        ("XDG_CACHE_HOME", machine.home().join("disk")),
    ] {
        machine.set(name, value.to_str().unwrap());
        refused(&machine, &[], &["/disk/", &format!("(from {name})")]);
        machine.unset(name);
    }
    machine.configure(&format!("cache:\n  hf_cache_dir: {}\n", missing.display()));
    refused(&machine, &[], &["disk/hub", "cache.hf_cache_dir on line 2 of", ".hf-cache-sync.yaml"]);
    fs::remove_file(machine.work().join(".hf-cache-sync.yaml")).unwrap();
    std::os::unix::fs::symlink(&missing, machine.home().join("link")).unwrap();
    refused(&machine, &["--cache-dir", "../link"], &["is a link to", "disk/hub"]);
    fs::write(machine.home().join("file"), "").unwrap();
    refused(&machine, &["--cache-dir", "../file/hub"], &["/file is a file"]);
    for line in commands {
        machine.run(&[line, &["--cache-dir", "../file"]].concat()).refused(2, &["not a directory", "--cache-dir"]);
    }
    // Only a pull creates a cache, and not in a dry run. An empty cache is fine.
    Revision::model("org/name").publish(&store);
    for line in [&["pull", "org/name", "--dry-run"][..], &["pull-all", "--dry-run"], &["list", "--remote"], &["doctor"]]
    {
        let before = listing(&machine.home());
        machine.ok(line);
        assert_eq!(listing(&machine.home()), before, "{line:?}");
    }
    machine.ok(&["pull", "org/name"]);
    let empty = machine.home().join("empty");
    fs::create_dir(&empty).unwrap();
    for line in commands.into_iter().filter(|line| line[0] != "watch") {
        machine.ok(&[line, &["--cache-dir", empty.to_str().unwrap()]].concat());
    }
    // `~` in an option that the shell has not expanded.
    assert!(machine.ok(&["status", "--cache-dir=~/empty"]).contains("/empty"));
}

/// A bug in the program is reported in one line with exit code 70, also with `--json`, and no secret is shown.
#[cfg(debug_assertions)]
#[test]
fn a_panic_is_reported_in_one_line_with_its_own_exit_code() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    machine.set("B2_APPLICATION_KEY", CANARY);
    for place in ["main", "task", "blocking", "thread", "plain"] {
        machine.set("HF_CACHE_SYNC_TEST_PANIC", place);
        let output = machine.run(&["status"]);
        output.refused(70, &["internal error", "main.rs:", "please report", env!("CARGO_PKG_VERSION")]);
        assert_eq!(output.stderr.contains("plain words"), place == "plain", "{output:#?}");
        let output = machine.run(&["--json", "status"]);
        let report = output.json();
        assert_eq!((output.code, &report["error"]["kind"]), (70, &"internal".into()), "{output:#?}");
        assert!(!format!("{output:?}").contains(CANARY), "{output:#?}");
    }
}

/// `config show` shows every value with its source, even if the configuration is invalid.
#[test]
fn config_show_lists_values_and_sources() {
    let (store, mut machine) = setup();
    let xdg = machine.home().join(".config/hf-cache-sync");
    fs::create_dir_all(&xdg).unwrap();
    fs::write(xdg.join("config.yaml"), yaml(&store)).unwrap();
    machine.set("B2_BUCKET", "from-env");
    machine.set("HTTPS_PROXY", &format!("http://user:{CANARY}@proxy:3128"));
    machine.set("HF_TOKEN", CANARY);
    let stdout = machine.ok(&["config", "show", "--prefix", "p", "--no-sign-request"]);
    for words in [
        ".config/hf-cache-sync/config.yaml",
        "from-env",
        "B2_BUCKET",
        "storage.region on line 4 of",
        "--prefix",
        "p/",
        "storage.secret_key",
        "(hidden)",
        "--no-sign-request",
        "HF_TOKEN",
        "…@proxy:3128",
        "cache.max_local_gb",
    ] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
    assert!(!stdout.contains(SECRET_KEY) && !stdout.contains(ACCESS_KEY) && !stdout.contains(CANARY), "{stdout}");
    // The variable takes precedence over the default locations, and the option over the variable.
    fs::write(machine.work().join("other.yaml"), "storage:\n  bucket: other\n  regoin: x\n  max_parts: many\n")
        .unwrap();
    machine.set("HF_CACHE_SYNC_CONFIG", "other.yaml");
    machine.unset("B2_BUCKET");
    let output = machine.run(&["config", "show", "--json"]);
    let report = output.json();
    assert_eq!((output.code, &report["file_source"]), (2, &"HF_CACHE_SYNC_CONFIG".into()), "{output:#?}");
    assert!(report["failures"][0].to_string().contains("max_parts"), "{report}");
    assert!(report["warnings"][0].to_string().contains("regoin"), "{report}");
    let bucket = report["settings"].as_array().unwrap().iter().find(|row| row["name"] == "storage.bucket").unwrap();
    assert_eq!(bucket["value"], "other", "valid settings are still shown: {report}");
    machine.set("HF_CACHE_SYNC_CONFIG", "nowhere.yaml");
    machine.run(&["status"]).refused(2, &["nowhere.yaml", "HF_CACHE_SYNC_CONFIG"]);
    assert_eq!(machine.run(&["status", "--config", "../.config/hf-cache-sync/config.yaml"]).code, 0);
}

/// The hint appears if the secret is in place of the key id.
#[test]
fn swapped_credentials_get_a_hint() {
    let (store, mut machine) = setup();
    machine.set("B2_ENDPOINT", &store.server.url);
    machine.set("B2_BUCKET", BUCKET);
    machine.set("B2_APPLICATION_KEY_ID", "K005abcdefghijklmnopqrstuvwxyz0");
    machine.set("B2_APPLICATION_KEY", "0051a2b3c4d5e6f0000000001");
    machine.run(&["push"]).refused(3, &["look swapped"]);
    let output = machine.run(&["doctor"]);
    assert!(output.code == 3 && output.stdout.contains("look swapped"), "{output:#?}");
}

/// A dataset that is requested as a model, and vice versa.
#[test]
fn an_id_of_another_type_gets_a_hint() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::new("dataset", "org/data").git("data.csv", "1\n").publish(&store);
    Revision::new("dataset", "org/here").git("data.csv", "2\n").write(&machine.hub());
    machine.run(&["pull", "model:org/data"]).refused(4, &["org/data", "is a dataset", "--repo-type dataset"]);
    machine.run(&["pull", "org/data", "--repo-type", "space"]).refused(4, &["is a dataset"]);
    let output = machine.run(&["pull", "org/data"]);
    assert!(output.code == 0 && output.stderr.contains("org/data is a dataset"), "{output:#?}");
    machine.run(&["push", "model:org/here"]).refused(4, &["is a dataset", "dataset:org/here"]);
}

/// Only the version is printed.
#[test]
fn the_version_is_one_line_with_an_optional_commit() {
    let stdout = Machine::unconfigured().ok(&["--version"]);
    let rest = stdout.strip_prefix(concat!("hf-cache-sync ", env!("CARGO_PKG_VERSION"))).unwrap().trim();
    let commit = rest.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    assert!(
        rest.is_empty() || commit.is_some_and(|text| text.len() == 9 && text.bytes().all(|b| b.is_ascii_hexdigit()))
    );
}

/// Keys from a profile are validated like those from the environment.
#[test]
fn profiles_with_control_characters_are_refused() {
    let (store, mut machine) = setup();
    machine.set("B2_ENDPOINT", &store.server.url);
    machine.set("B2_BUCKET", BUCKET);
    fs::create_dir(machine.home().join(".aws")).unwrap();
    let write = |text: String| fs::write(machine.home().join(".aws/config"), text).unwrap();
    let keys = format!("aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    for inside in ["\u{1}", "\u{7f}", "\u{e9}"] {
        write(format!("[default]\naws_access_key_id = A{inside}B\naws_secret_access_key = {CANARY}{inside}x\n"));
        let output = machine.run(&["push", "--region", "r"]);
        output.refused(3, &["AWS profile"]);
        assert!(!format!("{output:?}").contains(CANARY), "{output:#?}");
        write(format!("[default]\nregion = a{inside}b\n{keys}"));
        machine.run(&["push"]).refused(2, &["region of the AWS profile"]);
    }
}

/// Variables that libraries read themselves are stripped as well: a proxy with a trailing newline is used, not
/// bypassed.
#[test]
fn proxy_variables_are_stripped_too() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    for value in ["http://127.0.0.1:1", "http://127.0.0.1:1\n", " \"http://127.0.0.1:1\"\r\n"] {
        machine.set("HTTP_PROXY", value);
        assert_eq!(machine.run(&["push", "--dry-run"]).code, 6, "{value:?}");
        machine.set("NO_PROXY", "127.0.0.1\n");
        assert_eq!(machine.run(&["push", "--dry-run"]).code, 0, "{value:?}");
        machine.unset("NO_PROXY");
    }
}
