//! The S3 server of [`super::s3`] in a separate process, which can be killed and restarted on the same folder and port.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::machine::Running;
use super::s3::{ACCESS_KEY, SECRET_KEY, Server};
use super::wait_until;

/// The variable with the folder that the process serves.
const ROOT: &str = "HF_CACHE_SYNC_TEST_SERVER_ROOT";
/// The variable with its port.
const PORT: &str = "HF_CACHE_SYNC_TEST_SERVER_PORT";

/// A server, which is killed when it is dropped.
pub struct ServerProcess {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    root: PathBuf,
    running: Option<Running>,
}

impl ServerProcess {
    /// Serves a folder, each of whose subfolders is a bucket.
    pub fn start(root: &Path) -> ServerProcess {
        let (url, running) = start(root, "0");
        ServerProcess { url, root: root.into(), running: Some(running) }
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.running.take().unwrap().kill();
    }

    /// Starts it again.
    pub fn restart(&mut self) {
        let (url, running) = start(&self.root, self.url.rsplit(':').next().unwrap());
        assert_eq!(url, self.url);
        self.running = Some(running);
    }
}

/// Starts the process: this test binary, with the only test that serves.
fn start(root: &Path, port: &str) -> (String, Running) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "harness::server_process::serve_until_the_end", "--ignored", "--nocapture"]);
    command.env(ROOT, root).env(PORT, port).stdin(Stdio::piped());
    let mut running = Running::start(command);
    let url = || running.stdout().split_whitespace().find(|word| word.starts_with("http://")).map(String::from);
    wait_until("the server's process", || url().is_some());
    let url = url().unwrap();
    assert!(running.is_running());
    (url, running)
}

/// Serves until stdin ends, which happens when the parent process exits at the latest.
#[test]
#[ignore = "the process of a server that other tests start"]
#[expect(clippy::print_stdout, reason = "the other process reads the URL")]
fn serve_until_the_end() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let port = std::env::var(PORT).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(Server::start(Path::new(&root), port, ACCESS_KEY, SECRET_KEY));
    println!(" {} ", server.url);
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}
