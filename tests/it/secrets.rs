//! No secret leaves the program: every command, working and failing, at -vv and with RUST_LOG=trace. Everything that they
//! print, write, log, serve and publish, and the process list, is searched for every secret that they know.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use hf_cache_sync::cli::Cli;
use serde_json::Value;

use crate::harness::cache::{OTHER, Revision};
use crate::harness::machine::{Machine, Output};
use crate::harness::proxy::{Fault, Proxy};
use crate::harness::s3::{ACCESS_KEY, SECRET_KEY};
use crate::harness::scripted::{Reply, Scripted};
use crate::harness::store::{BUCKET, Store};
use crate::harness::{wait_until, weights};

const SESSION_TOKEN: &str = "session-token-4711";
const WRONG_KEY: &str = "mistyped-secret-key-23";
const PROXY_PASSWORD: &str = "proxy-password-0815";
const ENDPOINT_PASSWORD: &str = "endpoint-password-42";
/// The token that the imitation of the Hub accepts.
const HUB_TOKEN: &str = "hf_right";
const SERVE_TOKEN: &str = "serve-token-5678";
const CONTAINER_TOKEN: &str = "container-token-1357";
const IDENTITY_TOKEN: &str = "identity-token-2468";

/// Returns all secrets, in plain text and as encoded for transfer.
fn secrets() -> Vec<String> {
    let plain = [
        SECRET_KEY,
        SESSION_TOKEN,
        WRONG_KEY,
        PROXY_PASSWORD,
        ENDPOINT_PASSWORD,
        HUB_TOKEN,
        SERVE_TOKEN,
        CONTAINER_TOKEN,
        IDENTITY_TOKEN,
    ]
    .map(String::from);
    let encoded = [
        format!("proxyuser:{PROXY_PASSWORD}"),
        format!("user:{ENDPOINT_PASSWORD}"),
        format!("user:{SERVE_TOKEN}"),
        SECRET_KEY.to_string(),
    ]
    .map(|text| base64(text.as_bytes()));
    plain.into_iter().chain(encoded).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for at in 0..=chunk.len() {
            text.push(char::from(DIGITS[(number >> (18 - 6 * at)) as usize & 63]));
        }
    }
    text + &"=".repeat((3 - bytes.len() % 3) % 3)
}

/// Asserts that a text has no secret.
#[track_caller]
fn assert_clean(text: &str, what: &str) {
    for secret in secrets() {
        if let Some(at) = text.find(&secret) {
            let from = text[..at].rfind('\n').map_or(0, |at| at + 1);
            let line: String = text[from..].lines().next().unwrap_or_default().chars().take(2000).collect();
            panic!("{what}: '{secret}' is in: {line}");
        }
    }
}

/// Asserts that no file below a folder has a secret, except those that the test has written.
#[track_caller]
fn assert_clean_files(folder: &Path, inputs: &[PathBuf], what: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap()) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            assert_clean_files(&path, inputs, what);
        } else if entry.file_type().unwrap().is_file() && !inputs.contains(&path) {
            let bytes = fs::read(&path).unwrap();
            assert_clean(&String::from_utf8_lossy(&bytes), &format!("{what}: {}", path.display()));
        }
        assert_clean(&path.to_string_lossy(), what);
    }
}

/// A way in which commands succeed or fail.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Works,
    ThroughProxy,
    NoProxyThere,
    WrongKey,
    Profile,
    File,
    Expired,
    PasswordInEndpoint,
    Process,
    Container,
    WebIdentity,
}

const MODES: [Mode; 11] = [
    Mode::Works,
    Mode::ThroughProxy,
    Mode::NoProxyThere,
    Mode::WrongKey,
    Mode::Profile,
    Mode::File,
    Mode::Expired,
    Mode::PasswordInEndpoint,
    Mode::Process,
    Mode::Container,
    Mode::WebIdentity,
];

/// Every command line. The first word, or the first two, name the command.
const LINES: [&[&str]; 32] = [
    &["doctor"],
    &["doctor", "--require-write"],
    &["config", "show"],
    &["status"],
    &["list"],
    &["push", "--dry-run"],
    &["push"],
    &["push", "org/none"],
    &["list", "--remote", "--sizes"],
    &["diff"],
    &["pull", "org/bucket"],
    &["pull", "org/none"],
    &["pull", "org/hub", "--fallback", "hf-hub"],
    &["pull", "org/none", "--fallback", "hf-hub"],
    &["pull-all"],
    &["verify"],
    &["verify", "--repair", "--fallback", "hf-hub"],
    &["verify", "--remote", "--deep"],
    &["verify", "--remote", "--repair"],
    &["prune", "--max-size", "0B", "--require-remote", "--yes"],
    &["rm", "org/local", "--yes"],
    &["remote", "du"],
    &["remote", "gc", "--grace", "0", "--yes"],
    &["remote", "rm", "org/none", "--yes"],
    &["remote", "rm", "org/local", "--yes"],
    &["serve", "--env"],
    &["serve", "--no-such-option"],
    &["init"],
    &["completions", "bash"],
    &["man"],
    &["pull", "https://user:endpoint-password-42@huggingface.co/org/x"],
    &["push", "--endpoint", "http://user:endpoint-password-42@127.0.0.1:1"],
];

impl Mode {
    /// Whether the keys have to be requested from another service.
    fn asks_for_keys(self) -> bool {
        matches!(self, Mode::Process | Mode::Container | Mode::WebIdentity)
    }

    /// Returns the command lines to run. The source of the keys matters only for a few.
    fn lines(self) -> Vec<&'static [&'static str]> {
        let needs_keys =
            |line: &&[&str]| matches!(line[..], ["doctor" | "push"] | ["config", _] | ["pull", "org/hub", ..]);
        LINES.into_iter().filter(|line| !self.asks_for_keys() || needs_keys(line)).collect()
    }
}

/// Returns a service that hands out keys in exchange for a token: to containers, and for a web identity.
fn key_service() -> Scripted {
    let service = Scripted::new();
    service.script(|request, _| {
        let is_container = request.header("authorization") == CONTAINER_TOKEN;
        let is_identity = String::from_utf8_lossy(&request.body).contains(IDENTITY_TOKEN);
        Some(match (is_container, is_identity) {
            (true, _) => Reply::new(200, json_keys("Token")),
            (_, true) => Reply::new(
                200,
                format!(
                    "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
                     <AccessKeyId>{ACCESS_KEY}</AccessKeyId><SecretAccessKey>{SECRET_KEY}</SecretAccessKey>\
                     <SessionToken>{SESSION_TOKEN}</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>\
                     </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
                ),
            )
            .header("content-type", "text/xml"),
            _ => Reply::new(403, ""),
        })
    });
    service
}

/// Returns keys as a JSON object, with the session token under this name.
fn json_keys(token: &str) -> String {
    format!(
        "{{\"Version\": 1, \"AccessKeyId\": \"{ACCESS_KEY}\", \"SecretAccessKey\": \"{SECRET_KEY}\", \
         \"{token}\": \"{SESSION_TOKEN}\", \"Expiration\": \"2099-01-01T00:00:00Z\"}}"
    )
}

/// Returns a `credential_process` that writes the command lines of its callers to the file `processes`, and prints this
/// text.
fn credential_process(text: &str) -> String {
    format!(
        "#!/bin/sh\nparent=$(cut -d ' ' -f 4 /proc/$PPID/stat)\nfor each in $PPID $parent; do\n\
         tr '\\0' ' ' < /proc/$each/cmdline >> ~/processes; echo >> ~/processes; done\necho '{text}'\n"
    )
}

/// Returns a machine for a mode, and its files with secrets.
fn machine(mode: Mode, proxy: &Proxy, hub: &str, keys: &str) -> (Machine, Vec<PathBuf>) {
    let mut machine = Machine::unconfigured();
    let mut inputs = Vec::new();
    machine.set("B2_ENDPOINT", &proxy.url);
    machine.set("B2_BUCKET", BUCKET);
    machine.set("B2_REGION", "test-region");
    machine.set("HF_ENDPOINT", hub);
    machine.set("HF_TOKEN", HUB_TOKEN);
    machine.set("RUST_LOG", "trace");
    let through = |port: &str| format!("http://proxyuser:{PROXY_PASSWORD}@{port}");
    let address = proxy.url.trim_start_matches("http://");
    let via = through(if mode == Mode::NoProxyThere { "127.0.0.1:1" } else { address });
    ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"].iter().for_each(|name| machine.set(name, &via));
    if !matches!(mode, Mode::ThroughProxy | Mode::NoProxyThere) {
        machine.set("NO_PROXY", "127.0.0.1");
    }
    let mut write = |path: PathBuf, text: &str| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        inputs.push(path);
    };
    match mode {
        Mode::Profile => write(
            machine.home().join(".aws/credentials"),
            &format!(
                "[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n\
                 aws_session_token = {SESSION_TOKEN}\n"
            ),
        ),
        Mode::Process => {
            let script = machine.home().join("process");
            write(script.clone(), &credential_process(&json_keys("SessionToken")));
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
            let profile = format!("[default]\ncredential_process = {}\n", script.display());
            write(machine.home().join(".aws/config"), &profile);
        }
        Mode::Container => {
            machine.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{keys}/credentials"));
            machine.set("AWS_CONTAINER_AUTHORIZATION_TOKEN", CONTAINER_TOKEN);
        }
        Mode::WebIdentity => {
            let token = machine.home().join("identity");
            write(token.clone(), IDENTITY_TOKEN);
            machine.set("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string());
            machine.set("AWS_ROLE_ARN", "arn:aws:iam::1:role/r");
            machine.set("AWS_ENDPOINT_URL_STS", keys);
        }
        Mode::File => write(
            machine.work().join(".hf-cache-sync.yaml"),
            &format!("storage:\n  access_key: {ACCESS_KEY}\n  secret_key: {SECRET_KEY}\n"),
        ),
        _ => {
            machine.set("AWS_ACCESS_KEY_ID", ACCESS_KEY);
            machine.set("AWS_SECRET_ACCESS_KEY", if mode == Mode::WrongKey { WRONG_KEY } else { SECRET_KEY });
            machine.set("AWS_SESSION_TOKEN", SESSION_TOKEN);
        }
    }
    if mode == Mode::PasswordInEndpoint {
        machine.set("B2_ENDPOINT", &format!("http://user:{ENDPOINT_PASSWORD}@{address}"));
    }
    // Where `hf auth login` puts it.
    if matches!(mode, Mode::Profile | Mode::File) {
        write(machine.home().join(".cache/huggingface/token"), HUB_TOKEN);
        machine.unset("HF_TOKEN");
    }
    write(machine.work().join("token"), SERVE_TOKEN);
    Revision::model("org/local").write(&machine.hub());
    (machine, inputs)
}

fn check(output: &Output, what: &str) {
    assert_clean(&output.stdout, what);
    assert_clean(&output.stderr, what);
    assert!(!output.stderr.contains("panicked"), "{what}: {output:#?}");
}

fn run_mode(mode: Mode) {
    let store = Store::new();
    Revision::new("model", "org/bucket").at(OTHER).git("a.txt", "a").lfs("b.bin", weights(3, 9 << 20)).publish(&store);
    let proxy = Proxy::to(&store.server.url);
    if mode == Mode::Expired {
        proxy.fail(|_| Fault::Refuse(400, "ExpiredToken", "The provided token has expired."));
    }
    #[cfg(feature = "fallback")]
    let hub = crate::harness::hub_server::Hub::start(&[Revision::model("org/hub")]);
    #[cfg(feature = "fallback")]
    hub.script(|request| {
        let is_right = request.authorization.as_deref() == Some(&*format!("Bearer {HUB_TOKEN}"));
        (!is_right).then(|| crate::harness::hub_server::Reply::status(401))
    });
    #[cfg(feature = "fallback")]
    let address = hub.url.clone();
    #[cfg(not(feature = "fallback"))]
    let address = "http://127.0.0.1:1".to_string();
    let keys = key_service();
    let (machine, inputs) = machine(mode, &proxy, &address, &keys.url);
    for line in mode.lines() {
        for more in [&["-vv"][..], &["-vv", "--json"]] {
            let what = format!("{mode:?}, {line:?} {more:?}");
            let output = machine.run(&[line, more].concat());
            check(&output, &what);
            assert!(output.code == 0 || !mode.asks_for_keys(), "{what}: {output:#?}");
        }
    }
    #[cfg(feature = "fallback")]
    if mode.asks_for_keys() || matches!(mode, Mode::Works | Mode::Profile | Mode::File) {
        assert!(hub.requests().iter().any(|request| request.authorization.is_some()), "{mode:?}: no token was sent");
    }
    watch(mode, &machine);
    if mode == Mode::Process {
        check_bad_credential_process(&machine);
    }
    if !mode.asks_for_keys() {
        serve(mode, &machine);
    }
    assert_clean_files(&machine.home(), &inputs, &format!("{mode:?}"));
    for key in store.keys() {
        assert_clean(&key, "the bucket");
        assert_clean(&String::from_utf8_lossy(&store.get(&key)), &key);
    }
}

/// Checks output of a credential process that cannot be parsed, and the process list.
fn check_bad_credential_process(machine: &Machine) {
    let processes = fs::read_to_string(machine.home().join("processes")).unwrap();
    for command in ["push", "doctor", "watch"] {
        assert!(processes.contains(&format!(" {command} ")), "{processes}");
    }
    let keys = json_keys("SessionToken");
    for text in [
        format!("not JSON {SECRET_KEY}"),
        keys.trim_end_matches('}').to_string(),
        keys.replace("\"Version\": 1", "\"Version\": 2"),
        keys.replace("2099-01-01T00:00:00Z", SECRET_KEY),
        keys.replace("AccessKeyId", SECRET_KEY),
        keys.replace(SECRET_KEY, &format!("{SECRET_KEY}\u{e9}")),
    ] {
        fs::write(machine.home().join("process"), credential_process(&text)).unwrap();
        let output = machine.run(&["push", "-vv"]);
        check(&output, &text);
        assert_eq!(output.code, 3, "{text}: {output:#?}");
    }
}

fn watch(mode: Mode, machine: &Machine) {
    let mut running = machine.start(&["-vv", "--json", "watch", "--debounce", "0.1"]);
    wait_until("the watch", || {
        let text = running.stdout();
        text.contains("pushed") || text.contains("failed") || !running.is_running()
    });
    if running.is_running() {
        running.signal("-TERM");
    }
    check(&running.finish(), &format!("{mode:?}, watch"));
}

/// Checks the server, its access log, pages and counters, and the command that it runs, with the process list that the
/// command sees.
fn serve(mode: Mode, machine: &Machine) {
    let what = format!("{mode:?}, serve");
    let token = machine.work().join("token").display().to_string();
    let arguments =
        ["-vv", "--json", "serve", "--listen", "127.0.0.1:0", "--fallback", "hf-hub", "--token-file", &token];
    let arguments =
        if cfg!(feature = "fallback") { arguments.to_vec() } else { [&arguments[..5], &arguments[7..]].concat() };
    let mut running = machine.start(&arguments);
    wait_until("the server", || !running.stdout().is_empty() || !running.is_running());
    let started = running.stdout().lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok());
    // Where it has failed, that is an error.
    let url = started.and_then(|started| Some(started["url"].as_str()?.to_string()));
    if let Some(url) = url.filter(|_| running.is_running()) {
        let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
        let basic = format!("Basic {}", base64(format!("user:{SERVE_TOKEN}").as_bytes()));
        let bearer = format!("Bearer {SERVE_TOKEN}");
        for authorization in [bearer.as_str(), &basic, "Bearer mistyped-secret-key-23", ""] {
            for path in [
                "/org/bucket/resolve/main/a.txt",
                "/org/hub/resolve/main/config.json",
                "/org/none/resolve/main/a.txt",
                "/api/models/org/bucket",
                "/api/models/org/hub",
                "/metrics",
                "/status.json",
                "/",
            ] {
                let answer = ask(port, path, authorization);
                assert_clean(&answer, &format!("{what} {path}"));
            }
        }
        let command_line = fs::read(format!("/proc/{}/cmdline", running.id())).unwrap_or_default();
        assert_clean(&String::from_utf8_lossy(&command_line), &format!("{what}: the list of processes"));
        running.signal("-TERM");
    }
    check(&running.finish(), &what);
    // The command has the token in its environment, but no command line contains it.
    let script = "for each in /proc/$$ /proc/$PPID; do tr '\\0' ' ' < $each/cmdline; echo; done";
    let line = ["-vv", "serve", "--listen", "127.0.0.1:0", "--token-file", &token, "--", "/bin/sh", "-c", script];
    check(&machine.run(&line), &format!("{what}: the list of processes"));
}

/// Returns the whole response.
fn ask(port: u16, path: &str, authorization: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(crate::harness::machine::LIMIT)).unwrap();
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: {authorization}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn no_secret_is_shown_logged_written_or_served() {
    assert_eq!(base64(b"user:wrong"), "dXNlcjp3cm9uZw==");
    std::thread::scope(|scope| MODES.iter().for_each(|mode| drop(scope.spawn(|| run_mode(*mode)))));
}

/// A new command has to be added to the lines above.
#[test]
fn the_search_for_secrets_covers_every_command() {
    let mut covered: BTreeSet<String> = ["watch", "serve"].map(String::from).into();
    for line in LINES {
        covered.insert(line[0].to_string());
        if let Some(second) = line.get(1) {
            covered.insert(format!("{} {second}", line[0]));
        }
    }
    for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        assert!(covered.contains(name), "{name}");
        for inner in command.get_subcommands() {
            let name = format!("{name} {}", inner.get_name());
            assert!(covered.contains(&name), "{name}");
        }
    }
}
