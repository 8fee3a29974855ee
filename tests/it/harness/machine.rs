//! A machine: a home directory, a cache, its own environment, and the real binary. Every run has a time limit, so that
//! a hang is reported as a failure.

use std::ffi::OsStr;
use std::fs;
#[cfg(target_os = "linux")]
use std::io::Write;
use std::io::{BufRead, BufReader, Read};
#[cfg(unix)]
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
#[cfg(unix)]
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::s3::{ACCESS_KEY, SECRET_KEY};
use super::store::Store;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_hf-cache-sync");

/// Time limit for a command to exit, and for waiting until it does something.
pub const LIMIT: Duration = Duration::from_secs(300);

/// The user and group `nobody`, to whom permissions apply.
#[cfg(unix)]
const NOBODY: u32 = 65534;

/// A machine with its own home directory, cache and environment.
pub struct Machine {
    dir: tempfile::TempDir,
    hub: PathBuf,
    env: Vec<(String, String)>,
}

/// The result of a command.
#[derive(Debug)]
pub struct Output {
    /// Exit code; -1 if it was killed.
    pub code: i32,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

impl Machine {
    /// Returns a machine whose environment is configured for the store.
    pub fn new(store: &Store) -> Self {
        let mut machine = Machine::unconfigured();
        machine.connect(&store.server.url, &store.bucket, "test-region");
        machine
    }

    /// Returns a machine without any configuration.
    pub fn unconfigured() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        let hub = dir.path().join(".cache").join("huggingface").join("hub");
        let mut machine = Machine { dir, hub, env: Vec::new() };
        let home = machine.home().display().to_string();
        machine.set("HOME", &home);
        if cfg!(windows) {
            machine.set("USERPROFILE", &home);
            // Sockets do not work without it.
            machine.set("SystemRoot", &std::env::var("SystemRoot").unwrap());
        }
        machine.set("AWS_EC2_METADATA_DISABLED", "true");
        machine
    }

    /// Configures a bucket.
    pub fn connect(&mut self, endpoint: &str, bucket: &str, region: &str) {
        self.set("B2_APPLICATION_KEY_ID", ACCESS_KEY);
        self.set("B2_APPLICATION_KEY", SECRET_KEY);
        self.set("B2_ENDPOINT", endpoint);
        self.set("B2_BUCKET", bucket);
        self.set("B2_REGION", region);
    }

    /// Moves the cache to a new folder in the home directory.
    pub fn move_hub_to(&mut self, folder: &str) {
        self.hub = self.dir.path().join(folder);
        fs::create_dir(&self.hub).unwrap();
        self.set("HF_HUB_CACHE", &self.hub.display().to_string());
    }

    /// Sets an environment variable.
    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.env.push((name.to_string(), value.to_string()));
    }

    /// Removes an environment variable.
    pub fn unset(&mut self, name: &str) {
        self.env.retain(|(known, _)| known != name);
    }

    /// Returns the home directory.
    pub fn home(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    /// Returns the working directory of commands.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Returns the cache.
    pub fn hub(&self) -> PathBuf {
        self.hub.clone()
    }

    /// Writes a configuration file into the working directory.
    pub fn configure(&self, yaml: &str) {
        fs::write(self.work().join(".hf-cache-sync.yaml"), yaml).unwrap();
    }

    /// Returns a command on this machine.
    pub fn command(&self, line: &[&str]) -> Command {
        self.program(BINARY, line)
    }

    /// Returns another program on this machine: a shell, or a copy of the binary.
    pub fn program(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.work()).env_clear().envs(self.env.iter().cloned());
        command
    }

    /// Returns an sh script in which `$0` is the binary.
    pub fn script(&self, text: &str) -> Command {
        self.program("/bin/sh", &["-c", text, BINARY])
    }

    /// Returns a command on its own terminal of this width, provided by script(1) from util-linux. Everything shown on
    /// the terminal goes to stdout.
    #[cfg(target_os = "linux")]
    pub fn on_terminal(&self, columns: u16, line: &str) -> Command {
        let line = format!("stty rows 24 cols {columns} && exec '{BINARY}' {line}");
        let mut command = self.program("script", &["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TERM", "xterm");
        command
    }

    /// Runs a command on a terminal, and types what `answer` returns once the command has asked. Returns everything shown
    /// there, and the exit code.
    #[cfg(target_os = "linux")]
    pub fn answer_on_terminal(&self, line: &str, answer: impl Fn() -> Vec<u8>) -> (String, Option<i32>) {
        let mut command = self.on_terminal(100, &format!("{line} --no-progress"));
        command.env("NO_COLOR", "1").env("TERM", "dumb");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (mut shown, mut byte) = (Vec::new(), [0]);
        while stdout.read(&mut byte).unwrap() == 1 {
            shown.push(byte[0]);
            if shown.ends_with(b"[y/N] ") {
                stdin.write_all(&answer()).unwrap();
            }
        }
        (String::from_utf8(shown).unwrap().replace('\r', ""), child.wait().unwrap().code())
    }

    /// Runs a command to completion.
    pub fn run(&self, line: &[&str]) -> Output {
        run(self.command(line))
    }

    /// Runs a command that must succeed, and returns its stdout.
    pub fn ok(&self, line: &[&str]) -> String {
        let output = self.run(line);
        assert_eq!(output.code, 0, "{line:?}: {output:#?}");
        output.stdout
    }

    /// Runs a command that must succeed, and returns its result as JSON.
    pub fn ok_json(&self, line: &[&str]) -> Value {
        let output = self.run(line);
        assert_eq!(output.code, 0, "{line:?}: {output:#?}");
        output.json()
    }

    /// Starts a command without waiting for it.
    pub fn start(&self, line: &[&str]) -> Running {
        Running::start(self.command(line))
    }
}

#[cfg(unix)]
impl Machine {
    /// Runs as a user who can read the cache but not change it, even if the tests run as root.
    pub fn run_read_only(&self, line: &[&str]) -> Output {
        let output = self.start_read_only(line).finish();
        self.make_writable();
        output
    }

    /// Starts a command as in [`Machine::run_read_only`]. Call [`Machine::make_writable`] at its end.
    pub fn start_read_only(&self, line: &[&str]) -> Running {
        fs::set_permissions(self.home(), fs::Permissions::from_mode(0o755)).unwrap();
        if self.runs_as_root() {
            return Running::start(self.command_as_nobody(line));
        }
        self.set_mode_of_folders(0o555);
        self.start(line)
    }

    /// Lets the owner of the home directory change everything in it.
    pub fn make_writable(&self) {
        fs::set_permissions(self.home(), fs::Permissions::from_mode(0o755)).unwrap();
        if !self.runs_as_root() {
            self.set_mode_of_folders(0o755);
        }
    }

    fn set_mode_of_folders(&self, mode: u32) {
        let found = super::listing(&self.home());
        let folders = found.iter().filter(|(_, what)| what.starts_with("dir"));
        let set =
            |path: &String| fs::set_permissions(self.home().join(path), fs::Permissions::from_mode(mode)).unwrap();
        folders.rev().for_each(|(path, _)| set(path));
    }

    /// Runs as an unprivileged user who owns everything here, even if the tests run as root.
    pub fn run_as_owner(&self, line: &[&str]) -> Output {
        self.start_as_owner(line).finish()
    }

    /// Starts a command as in [`Machine::run_as_owner`].
    pub fn start_as_owner(&self, line: &[&str]) -> Running {
        if !self.runs_as_root() && self.copy_of_binary().symlink_metadata().is_err() {
            return self.start(line);
        }
        let mut left = vec![self.home()];
        while let Some(path) = left.pop() {
            if path == self.copy_of_binary() {
                continue;
            }
            lchown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        Running::start(self.command_as_nobody(line))
    }

    /// Runs as an unprivileged user who can write to every folder, even if the tests run as root.
    pub fn run_in_shared(&self, line: &[&str]) -> Output {
        if !self.runs_as_root() {
            return self.run(line);
        }
        let mut left = vec![self.home()];
        while let Some(folder) = left.pop() {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
            let entries = fs::read_dir(&folder).unwrap().map(Result::unwrap);
            left.extend(entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path()));
        }
        self.run_read_only(line)
    }

    fn runs_as_root(&self) -> bool {
        fs::metadata(self.home()).unwrap().uid() == 0
    }

    fn copy_of_binary(&self) -> PathBuf {
        self.work().join("binary")
    }

    /// Returns a command of a user who may not have access to the folder in which the binary was built.
    fn command_as_nobody(&self, line: &[&str]) -> Command {
        let binary = self.copy_of_binary();
        // Copy in another process: our children would inherit a descriptor that is open for writing, and a binary that
        // is open for writing cannot be executed.
        if !binary.exists() && fs::hard_link(BINARY, &binary).is_err() {
            assert!(Command::new("cp").arg(BINARY).arg(&binary).status().unwrap().success());
        }
        let mut command = self.program(binary, line);
        command.uid(NOBODY).gid(NOBODY);
        command
    }
}

/// Runs a command to completion.
pub fn run(command: Command) -> Output {
    let output = assert_cmd::Command::from_std(command).timeout(LIMIT).output().unwrap();
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The output of a stream so far.
#[derive(Default)]
struct Captured {
    text: String,
    has_ended: bool,
}

#[derive(Clone, Default)]
struct Stream(Arc<(Mutex<Captured>, Condvar)>);

impl Stream {
    fn read(input: impl Read + Send + 'static) -> Stream {
        let stream = Stream::default();
        let writer = stream.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(input).lines().map_while(Result::ok) {
                writer.update(|captured| captured.text += &(line + "\n"));
            }
            writer.update(|captured| captured.has_ended = true);
        });
        stream
    }

    fn update(&self, change: impl FnOnce(&mut Captured)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn text(&self) -> String {
        self.0.0.lock().unwrap().text.clone()
    }

    /// Blocks until the output meets the condition, and returns it.
    #[track_caller]
    fn wait(&self, what: &str, is_wanted: impl Fn(&Captured) -> bool) -> String {
        let captured = self.0.0.lock().unwrap();
        let (captured, waited) = self.0.1.wait_timeout_while(captured, LIMIT, |captured| !is_wanted(captured)).unwrap();
        let text = captured.text.clone();
        // A panic while locked would poison the mutex for other users.
        drop(captured);
        assert!(!waited.timed_out(), "timed out waiting for {what}; got: {text}");
        text
    }
}

/// A running command; killed when it is dropped.
pub struct Running {
    child: Child,
    stdout: Stream,
    stderr: Stream,
}

impl Running {
    /// Starts a command.
    pub fn start(mut command: Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Running { child, stdout: Stream::read(stdout), stderr: Stream::read(stderr) }
    }

    /// Waits for the command to exit.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        let [stdout, stderr] = [&self.stdout, &self.stderr]
            .map(|stream| stream.wait("the command to exit", |captured| captured.has_ended));
        Output { code: self.child.wait().unwrap().code().unwrap_or(-1), stdout, stderr }
    }

    /// Kills the process (SIGKILL).
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGINT, as Ctrl-C does.
    #[cfg(unix)]
    pub fn interrupt(&self) {
        self.signal("-INT");
    }

    /// Sends a signal, given as an option of kill(1).
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Returns its stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Returns the id of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until stderr contains `words`.
    #[track_caller]
    pub fn wait_for(&self, words: &str) {
        self.stderr.wait(&format!("'{words}'"), |captured| captured.text.contains(words));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    /// Returns everything that a user sees.
    pub fn text(&self) -> String {
        format!("exit {}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }

    /// Parses stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// Asserts that the command failed with one clear error: this exit code, one to three lines on stderr that contain
    /// `words`, nothing on stdout, no internals and no secret.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(self.stdout.is_empty(), "{self:#?}");
        self.clear_error(words);
    }

    /// Asserts that stderr is a clear error, as in [`Output::refused`].
    #[track_caller]
    pub fn clear_error(&self, words: &[&str]) {
        let lines = self.stderr.trim_end().lines().count();
        assert!((1..=3).contains(&lines) && self.stderr.starts_with("error: "), "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "'{word}' is missing: {}", self.stderr);
        }
        self.nothing_internal();
    }

    /// Asserts that the output contains neither internals of the program nor a secret.
    #[track_caller]
    pub fn nothing_internal(&self) {
        let output = format!("{}{}", self.stdout, self.stderr);
        let internal = [
            "SdkError",
            "DispatchFailure",
            "ServiceError",
            "ConnectorError",
            "Some(",
            "Err(",
            "Error {",
            "panicked",
            "aws_sdk",
            "smithy",
            "serde",
            "src/",
            "os error",
        ];
        for word in internal.into_iter().chain([SECRET_KEY, "wrong-secret"]) {
            assert!(!output.contains(word), "'{word}' is in: {output}");
        }
    }
}
