//! A machine: a home directory, a cache, an environment of its own, and the real binary. Every run has a time limit, so
//! that a hang is a failure.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use super::s3::{ACCESS_KEY, SECRET_KEY};
use super::store::{BUCKET, Store};

/// Longest run of a command.
const LIMIT: Duration = Duration::from_secs(90);

/// A machine.
pub struct Machine {
    dir: tempfile::TempDir,
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
        machine.set("B2_APPLICATION_KEY_ID", ACCESS_KEY);
        machine.set("B2_APPLICATION_KEY", SECRET_KEY);
        machine.set("B2_ENDPOINT", &store.server.url);
        machine.set("B2_BUCKET", BUCKET);
        machine.set("B2_REGION", "test-region");
        machine
    }

    /// A machine without any configuration.
    pub fn unconfigured() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        let mut machine = Machine { dir, env: Vec::new() };
        machine.set("HOME", &machine.home().display().to_string());
        machine.set("AWS_EC2_METADATA_DISABLED", "true");
        machine
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
        self.dir.path().join(".cache/huggingface/hub")
    }

    /// Writes a configuration file into the current directory.
    pub fn configure(&self, yaml: &str) {
        fs::write(self.work().join(".hf-cache-sync.yaml"), yaml).unwrap();
    }

    /// A command on this machine.
    pub fn command(&self, line: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_hf-cache-sync")), line)
    }

    /// The same with a copy of the binary.
    pub fn command_of(&self, binary: &Path, line: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.args(line).current_dir(self.work()).env_clear().envs(self.env.iter().cloned());
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

    /// Runs as a user who may read the cache and change nothing in it, also where the tests run as root.
    pub fn run_read_only(&self, line: &[&str]) -> Ran {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        use std::os::unix::process::CommandExt;
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        chmod(&self.home(), 0o755);
        if fs::metadata(self.home()).unwrap().uid() == 0 {
            let binary = self.home().join("work/binary");
            if !binary.exists() {
                fs::copy(env!("CARGO_BIN_EXE_hf-cache-sync"), &binary).unwrap();
            }
            let mut command = self.command_of(&binary, line);
            command.uid(65534).gid(65534);
            return run(command);
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

    /// Starts a command and leaves it running.
    pub fn start(&self, line: &[&str]) -> Running {
        let mut child = self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let (send, stdout) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = out.read_to_string(&mut text);
            let _ = send.send(text);
        });
        let heard = Arc::<Heard>::default();
        let (err, hears) = (child.stderr.take().unwrap(), heard.clone());
        let ear = std::thread::spawn(move || {
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                *hears.text.lock().unwrap() += &(line + "\n");
                hears.more.notify_all();
            }
        });
        Running { child, stdout, heard, ear: Some(ear) }
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

#[derive(Default)]
struct Heard {
    text: Mutex<String>,
    more: Condvar,
}

/// A running command; killed when it is dropped.
pub struct Running {
    child: Child,
    stdout: mpsc::Receiver<String>,
    heard: Arc<Heard>,
    ear: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Waits for its end.
    pub fn finish(mut self) -> Ran {
        let stdout = self.stdout.recv_timeout(LIMIT).expect("the command hangs");
        let status = self.child.wait().unwrap();
        self.ear.take().unwrap().join().unwrap();
        let stderr = self.heard.text.lock().unwrap().clone();
        Ran { code: status.code().unwrap_or(-1), stdout, stderr }
    }

    /// kill -9
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// ctrl-c
    pub fn interrupt(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    }

    /// Waits until it says something on stderr.
    pub fn wait_for(&self, words: &str) {
        let text = self.heard.text.lock().unwrap();
        let (text, waited) = self.heard.more.wait_timeout_while(text, LIMIT, |text| !text.contains(words)).unwrap();
        assert!(!waited.timed_out(), "it never said '{words}', only: {text}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ran {
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
