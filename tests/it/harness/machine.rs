//! A machine: a home directory, a cache, an environment of its own, and the real binary. Every run has a time limit, so
//! that a hang is a failure.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
#[cfg(unix)]
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
#[cfg(unix)]
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::s3::{ACCESS_KEY, SECRET_KEY};
use super::store::Store;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_hf-cache-sync");

/// Longest run of a command, and longest wait for what it is to do.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The user and group `nobody`, for whom permissions count.
#[cfg(unix)]
const NOBODY: u32 = 65534;

/// A machine.
pub struct Machine {
    dir: tempfile::TempDir,
    hub: PathBuf,
    env: Vec<(String, String)>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; -1 when it was killed.
    pub code: i32,
    /// What it printed as its result.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Machine {
    /// A machine that is set up for the store by its environment.
    pub fn new(store: &Store) -> Self {
        let mut machine = Machine::unconfigured();
        machine.connect(&store.server.url, &store.bucket, "test-region");
        machine
    }

    /// A machine without any configuration.
    pub fn unconfigured() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        let hub = dir.path().join(".cache").join("huggingface").join("hub");
        let mut machine = Machine { dir, hub, env: Vec::new() };
        let home = machine.home().display().to_string();
        machine.set("HOME", &home);
        if cfg!(windows) {
            machine.set("USERPROFILE", &home);
            // Without it there are no sockets.
            machine.set("SystemRoot", &std::env::var("SystemRoot").unwrap());
        }
        machine.set("AWS_EC2_METADATA_DISABLED", "true");
        machine
    }

    /// Sets it up for a bucket.
    pub fn connect(&mut self, endpoint: &str, bucket: &str, region: &str) {
        self.set("B2_APPLICATION_KEY_ID", ACCESS_KEY);
        self.set("B2_APPLICATION_KEY", SECRET_KEY);
        self.set("B2_ENDPOINT", endpoint);
        self.set("B2_BUCKET", bucket);
        self.set("B2_REGION", region);
    }

    /// Keeps the cache in a folder of the home directory, which is made.
    pub fn keep_hub_in(&mut self, folder: &str) {
        self.hub = self.dir.path().join(folder);
        fs::create_dir(&self.hub).unwrap();
        self.set("HF_HUB_CACHE", &self.hub.display().to_string());
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.env.push((name.to_string(), value.to_string()));
    }

    /// Removes a variable.
    pub fn unset(&mut self, name: &str) {
        self.env.retain(|(known, _)| known != name);
    }

    /// The home directory.
    pub fn home(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    /// The current directory of commands.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// The cache.
    pub fn hub(&self) -> PathBuf {
        self.hub.clone()
    }

    /// Writes a configuration file into the current directory.
    pub fn configure(&self, yaml: &str) {
        fs::write(self.work().join(".hf-cache-sync.yaml"), yaml).unwrap();
    }

    /// A command on this machine.
    pub fn command(&self, line: &[&str]) -> Command {
        self.program(BINARY, line)
    }

    /// Another program on this machine: a shell, or a copy of the binary.
    pub fn program(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.work()).env_clear().envs(self.env.iter().cloned());
        command
    }

    /// A script of sh in which `$0` is the binary.
    pub fn script(&self, text: &str) -> Command {
        self.program("/bin/sh", &["-c", text, BINARY])
    }

    /// A command on a terminal of its own, so many columns wide; all that is shown there is its stdout. The terminal is
    /// that of script(1), from util-linux.
    #[cfg(target_os = "linux")]
    pub fn on_terminal(&self, columns: u16, line: &str) -> Command {
        let line = format!("stty rows 24 cols {columns} && exec '{BINARY}' {line}");
        let mut command = self.program("script", &["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TERM", "xterm");
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, line: &[&str]) -> Ran {
        run(self.command(line))
    }

    /// Runs a command that must succeed; returns its stdout.
    pub fn ok(&self, line: &[&str]) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{line:?}: {ran:#?}");
        ran.stdout
    }

    /// The same for a command whose result is JSON.
    pub fn ok_json(&self, line: &[&str]) -> Value {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{line:?}: {ran:#?}");
        ran.json()
    }

    /// Starts a command and leaves it running.
    pub fn start(&self, line: &[&str]) -> Running {
        Running::start(self.command(line))
    }
}

#[cfg(unix)]
impl Machine {
    /// Runs as a user who may read the cache and change nothing in it, also where the tests run as root.
    pub fn run_read_only(&self, line: &[&str]) -> Ran {
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        chmod(&self.home(), 0o755);
        if self.is_of_root() {
            return run(self.command_of_nobody(line));
        }
        let folders = |mode| {
            let found = super::listing(&self.home());
            let folders = found.iter().filter(|(_, what)| what.starts_with("dir"));
            folders.rev().for_each(|(path, _)| chmod(&self.home().join(path), mode));
        };
        folders(0o555);
        let ran = self.run(line);
        chmod(&self.home(), 0o755);
        folders(0o755);
        ran
    }

    /// Runs as a user for whom permissions count and who owns everything here, also where the tests run as root.
    pub fn run_as_owner(&self, line: &[&str]) -> Ran {
        if !self.is_of_root() {
            return self.run(line);
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
        run(self.command_of_nobody(line))
    }

    /// Runs as a user for whom permissions count and who may write to every folder, also where the tests run as root.
    pub fn run_in_shared(&self, line: &[&str]) -> Ran {
        if !self.is_of_root() {
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

    fn is_of_root(&self) -> bool {
        fs::metadata(self.home()).unwrap().uid() == 0
    }

    fn copy_of_binary(&self) -> PathBuf {
        self.work().join("binary")
    }

    /// A command of a user who need not reach the folder in which the binary was built.
    fn command_of_nobody(&self, line: &[&str]) -> Command {
        let binary = self.copy_of_binary();
        // Another process copies: what this one has open for writing, its children have, too, and nobody can run.
        if !binary.exists() && fs::hard_link(BINARY, &binary).is_err() {
            assert!(Command::new("cp").arg(BINARY).arg(&binary).status().unwrap().success());
        }
        let mut command = self.program(binary, line);
        command.uid(NOBODY).gid(NOBODY);
        command
    }
}

/// Runs a command to its end.
pub fn run(command: Command) -> Ran {
    let output = assert_cmd::Command::from_std(command).timeout(LIMIT).output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What has come of a stream that is read while it comes.
#[derive(Default)]
struct Heard {
    text: String,
    has_ended: bool,
}

#[derive(Clone, Default)]
struct Stream(Arc<(Mutex<Heard>, Condvar)>);

impl Stream {
    fn read(stream: impl Read + Send + 'static) -> Stream {
        let heard = Stream::default();
        let hears = heard.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                hears.update(|heard| heard.text += &(line + "\n"));
            }
            hears.update(|heard| heard.has_ended = true);
        });
        heard
    }

    fn update(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn text(&self) -> String {
        self.0.0.lock().unwrap().text.clone()
    }

    /// What has come by the time that it is as wanted.
    #[track_caller]
    fn wait(&self, what: &str, is_wanted: impl Fn(&Heard) -> bool) -> String {
        let heard = self.0.0.lock().unwrap();
        let (heard, waited) = self.0.1.wait_timeout_while(heard, LIMIT, |heard| !is_wanted(heard)).unwrap();
        let text = heard.text.clone();
        // Others may still use what a panic would poison.
        drop(heard);
        assert!(!waited.timed_out(), "waited in vain for {what}, heard only: {text}");
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

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Ran {
        let [stdout, stderr] =
            [&self.stdout, &self.stderr].map(|stream| stream.wait("the command's end", |heard| heard.has_ended));
        Ran { code: self.child.wait().unwrap().code().unwrap_or(-1), stdout, stderr }
    }

    /// kill -9
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// ctrl-c
    #[cfg(unix)]
    pub fn interrupt(&self) {
        self.signal("-INT");
    }

    /// Sends a signal, by its name for kill(1).
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it says something on stderr.
    #[track_caller]
    pub fn wait_for(&self, words: &str) {
        self.stderr.wait(&format!("'{words}'"), |heard| heard.text.contains(words));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ran {
    /// Everything that a person sees.
    pub fn text(&self) -> String {
        format!("exit {}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }

    /// The result as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// The one clear error that this must be: its exit code, one to three lines on stderr that contain `words`, no
    /// result, nothing internal and no secret.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(self.stdout.is_empty(), "{self:#?}");
        self.clear_error(words);
    }

    /// Of [`Ran::refused`] what concerns stderr.
    #[track_caller]
    pub fn clear_error(&self, words: &[&str]) {
        let lines = self.stderr.trim_end().lines().count();
        assert!((1..=3).contains(&lines) && self.stderr.starts_with("error: "), "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "'{word}' is missing: {}", self.stderr);
        }
        self.nothing_internal();
    }

    /// Nothing that belongs to the inside of the program, and no secret.
    #[track_caller]
    pub fn nothing_internal(&self) {
        let said = format!("{}{}", self.stdout, self.stderr);
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
            assert!(!said.contains(word), "'{word}' is in: {said}");
        }
    }
}
