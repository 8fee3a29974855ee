//! The machines and the bucket that steps are applied to.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::state::{MACHINES, REFS, Universe};
use super::step::{Clock, Scope, Step};
use crate::harness::cache_dir::set_times_to;
use crate::harness::machine::{LIMIT, Machine};
use crate::harness::s3::{Action, S3Request};
use crate::harness::store::Store;

/// Two machines and a bucket.
pub struct World<'a> {
    universe: &'a Universe,
    /// The bucket.
    pub store: Store,
    machines: Vec<Machine>,
}

/// The end of a command.
#[derive(Debug)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// The command and its output.
    pub text: String,
    /// Whether it was killed before it ended.
    pub was_killed: bool,
}

const DAY: i64 = 86_400;

impl<'a> World<'a> {
    /// Creates an empty bucket and two machines with empty caches.
    pub fn new(universe: &'a Universe) -> World<'a> {
        let store = Store::new();
        let machines = (0..MACHINES).map(|_| Machine::new(&store)).collect();
        World { universe, store, machines }
    }

    /// Returns the cache of a machine.
    pub fn hub(&self, machine: usize) -> PathBuf {
        self.machines[machine].hub()
    }

    /// Empties everything.
    pub fn reset(&self) {
        self.store.clear();
        self.store.server.clean_up_uploads();
        for machine in &self.machines {
            if machine.hub().exists() {
                fs::remove_dir_all(machine.hub()).unwrap();
            }
            fs::create_dir_all(machine.hub()).unwrap();
        }
    }

    /// Applies a step, and returns how the command ended if it is one.
    pub fn apply(&self, step: &Step) -> Option<Ran> {
        let spec = |revision: usize| {
            let one = &self.universe.revisions[revision];
            format!("{}:{}", one.kind, one.id)
        };
        let commit = |revision: usize| self.universe.revisions[revision].commit.clone();
        let run = |machine: usize, line: &[&str], kill: Option<u64>| Some(self.run(machine, line, Clock::Right, kill));
        match step {
            Step::Download { machine, revision, files, reference, tree } => {
                self.download(*machine, *revision, *files, *reference, *tree);
            }
            Step::BreakOff { machine, revision } => self.break_off(*machine, *revision),
            Step::Push { machine, clock, kill } => return Some(self.run(*machine, &["push"], *clock, *kill)),
            Step::Pull { machine, revision, by_ref, include, kill } => {
                let (spec, commit) = (spec(*revision), commit(*revision));
                let mut line = vec!["pull", &spec, "-r", if *by_ref { "main" } else { &commit }];
                let include = include.map(|file| self.universe.path(*revision, file));
                line.extend(include.iter().flat_map(|path| ["--include", path]));
                return run(*machine, &line, *kill);
            }
            Step::PullAll { machine, only, kill } => {
                let mut line = vec!["pull-all"];
                let only = only.map(spec);
                line.extend(only.iter().flat_map(|spec| ["--include", spec]));
                return run(*machine, &line, *kill);
            }
            Step::Prune { machine, options, clock, kill } => {
                let size = format!("{}B", options.budget.bytes());
                let mut line = vec!["prune", "--yes", "--max-size", &size];
                match options.scope {
                    Scope::Detached => {}
                    Scope::All => line.push("--include-referenced"),
                    Scope::Held => line.push("--require-remote"),
                }
                if !options.grace {
                    line.extend(["--orphan-grace", "0s"]);
                }
                if options.older_than {
                    line.extend(["--older-than", "1d"]);
                }
                let keep = options.keep.map(spec);
                line.extend(keep.iter().flat_map(|spec| ["--keep", spec]));
                let _lock = options.busy.map(|revision| self.lock(*machine, revision));
                return Some(self.run(*machine, &line, *clock, *kill));
            }
            Step::Rm { machine, revision, all, require_remote, busy, kill } => {
                let (spec, commit) = (spec(*revision), commit(*revision));
                let mut line = vec!["rm", "--yes", &spec];
                if !all {
                    line.extend(["-r", &commit]);
                }
                if *require_remote {
                    line.push("--require-remote");
                }
                let _lock = busy.map(|revision| self.lock(*machine, revision));
                return run(*machine, &line, *kill);
            }
            Step::RemoteRm { machine, revision, all, kill } => {
                let (spec, commit) = (spec(*revision), commit(*revision));
                let mut line = vec!["remote", "rm", "--yes", &spec];
                if !all {
                    line.extend(["-r", &commit]);
                }
                return run(*machine, &line, *kill);
            }
            Step::RemoteGc { machine, clock, kill } => {
                return Some(self.run(*machine, &["remote", "gc", "--yes"], *clock, *kill));
            }
            Step::Repair { machine, kill } => return run(*machine, &["verify", "--repair"], *kill),
            Step::RepairRemote { machine, kill } => {
                return run(*machine, &["verify", "--remote", "--deep", "--repair"], *kill);
            }
            Step::DeleteBlob { machine, revision, file } => {
                let _ = fs::remove_file(self.blob(*machine, *revision, *file));
            }
            Step::DeleteSnapshot { machine, revision } => {
                let _ = fs::remove_dir_all(self.universe.revisions[*revision].snapshot(&self.hub(*machine)));
            }
            Step::DeleteRepo { machine, revision } => {
                let _ = fs::remove_dir_all(self.universe.revisions[*revision].dir(&self.hub(*machine)));
            }
            Step::DeleteRef { machine, revision, name } => {
                let dir = self.universe.revisions[*revision].dir(&self.hub(*machine));
                let _ = fs::remove_file(dir.join("refs").join(REFS[*name]));
            }
            Step::CorruptBlob { machine, revision, file, cut } => {
                damage(&self.blob(*machine, *revision, *file), if *cut { Damage::Cut(1) } else { Damage::Flip });
            }
            Step::CorruptObject { revision, file, cut } => {
                // Not the same length as for a blob on disk, so that the two never have the same wrong size.
                let object = self.store.path(&format!("blobs/{}", self.etag(*revision, *file)));
                damage(&object, if *cut { Damage::Cut(2) } else { Damage::Flip });
            }
            Step::DeleteObject { revision, file } => {
                let _ = fs::remove_file(self.store.path(&format!("blobs/{}", self.etag(*revision, *file))));
            }
            Step::DeleteManifest { revision } => {
                let _ = fs::remove_file(self.store.path(&self.universe.revisions[*revision].manifest_key()));
            }
            Step::CorruptManifest { revision } => {
                damage(&self.store.path(&self.universe.revisions[*revision].manifest_key()), Damage::Cut(2));
            }
            Step::CorruptRef { revision, name } => {
                for key in self.universe.ref_keys(*revision, REFS[*name]) {
                    damage(&self.store.path(&key), Damage::Cut(1));
                }
            }
            Step::CorruptTree { machine, revision } => {
                damage(&self.universe.tree(&self.hub(*machine), *revision), Damage::Cut(2));
            }
            Step::Age { machine, days } => age(&self.hub(*machine), *days),
            Step::AgeBucket { days } => {
                // The order of refs, which determines which one counts, stays the same.
                for key in self.store.keys() {
                    let path = self.store.path(&key);
                    let then = fs::metadata(&path).unwrap().modified().unwrap() - Duration::from_secs(days * 86_400);
                    set_times_to(&path, then);
                }
            }
        }
        None
    }

    fn etag(&self, revision: usize, file: usize) -> String {
        let files = &self.universe.revisions[revision].files;
        files[file % files.len()].etag()
    }

    fn blob(&self, machine: usize, revision: usize, file: usize) -> PathBuf {
        let dir = self.universe.revisions[revision].dir(&self.hub(machine));
        dir.join("blobs").join(self.etag(revision, file))
    }

    /// Downloads as huggingface_hub does: the ref, then for each file a lock, an unfinished file, a rename, a link.
    fn download(&self, machine: usize, revision: usize, files: u8, reference: Option<usize>, tree: bool) {
        let (one, hub) = (&self.universe.revisions[revision], self.hub(machine));
        let (dir, snapshot) = (one.dir(&hub), one.snapshot(&hub));
        if let Some(name) = reference {
            write(&dir.join("refs").join(REFS[name]), one.commit.as_bytes());
        }
        if tree {
            write(&dir.join("trees").join(format!("{}.json", one.commit)), &one.tree_json());
        }
        write(&hub.join("CACHEDIR.TAG"), b"Signature: 8a477f597d28d172789f06886806bc55\n");
        for (_, file) in one.files.iter().enumerate().filter(|(number, _)| files & (1 << number) != 0) {
            let (blob, link) = (dir.join("blobs").join(file.etag()), snapshot.join(&file.path));
            write(&self.lock_file(machine, revision, &file.etag()), b"");
            if !blob.exists() {
                let incomplete = dir.join("blobs").join(format!("{}.0a1b2c3d.incomplete", file.etag()));
                write(&incomplete, &file.bytes);
                fs::rename(incomplete, &blob).unwrap();
            }
            if link.symlink_metadata().is_err() {
                fs::create_dir_all(link.parent().unwrap()).unwrap();
                let up = "../".repeat(file.path.matches('/').count() + 2);
                crate::harness::link(&format!("{up}blobs/{}", file.etag()), &link).unwrap();
            }
        }
    }

    fn break_off(&self, machine: usize, revision: usize) {
        let one = &self.universe.revisions[revision];
        let dir = one.dir(&self.hub(machine));
        let file = &one.files[0];
        write(&dir.join("refs").join(REFS[0]), one.commit.as_bytes());
        write(&self.lock_file(machine, revision, &file.etag()), b"");
        write(&dir.join("blobs").join(format!("{}.0a1b2c3d.incomplete", file.etag())), &file.bytes[..1]);
    }

    fn lock_file(&self, machine: usize, revision: usize, etag: &str) -> PathBuf {
        let folder = self.universe.revisions[revision].folder();
        self.hub(machine).join(".locks").join(folder).join(format!("{etag}.lock"))
    }

    /// Takes a client's lock on the first file of a revision.
    fn lock(&self, machine: usize, revision: usize) -> fs::File {
        let path = self.lock_file(machine, revision, &self.etag(revision, 0));
        write(&path, b"");
        let file = fs::File::options().write(true).open(path).unwrap();
        file.lock().unwrap();
        file
    }

    /// Ages the notices of killed commands so that no push waits for them. Those of pushes still count for deletions.
    fn age_notices(&self) {
        for key in self.store.keys() {
            if key.starts_with("_hf_cache_sync_gc/") {
                self.store.age(&key, if key.contains("/deletion-") { -3600 } else { -60 });
            }
        }
    }

    /// Runs a command, and kills it before its request number `kill` or, if it sends none, after that many milliseconds.
    fn run(&self, machine: usize, line: &[&str], clock: Clock, kill: Option<u64>) -> Ran {
        let server = &self.store.server;
        let ordinary = move |_: &S3Request| match clock {
            Clock::Right => Action::Pass,
            Clock::Shifted(seconds) => Action::Shift(seconds),
            Clock::Ahead(seconds) => Action::ClockAhead(seconds),
        };
        let Some(kill) = kill else {
            server.on_request(ordinary);
            let output = self.machines[machine].run(line);
            server.behave();
            return Ran { code: output.code, text: format!("{line:?}: {}", output.text()), was_killed: false };
        };
        let requests = Arc::new(AtomicU64::new(0));
        let counter = requests.clone();
        server.on_request(move |request| match counter.fetch_add(1, Ordering::SeqCst) {
            number if number >= kill => Action::Hang,
            _ => ordinary(request),
        });
        let started = Instant::now();
        let mut running = self.machines[machine].start(line);
        let is_due = || match requests.load(Ordering::SeqCst) {
            0 => ["prune", "rm", "verify"].contains(&line[0]) && started.elapsed() > Duration::from_millis(10 * kill),
            count => count > kill,
        };
        let mut was_killed = true;
        while !is_due() {
            assert!(started.elapsed() < LIMIT, "{line:?} neither ends nor sends a request");
            if !running.is_running() {
                was_killed = false;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let ran = match was_killed {
            true => {
                let text = format!("{line:?}, killed\n{}", running.stdout());
                running.kill();
                Ran { code: -1, text, was_killed }
            }
            false => {
                let output = running.finish();
                Ran { code: output.code, text: format!("{line:?}: {}", output.text()), was_killed }
            }
        };
        // Requests that have been sent may still be carried out.
        crate::harness::wait_until("requests of the killed command", || server.in_flight() == 0);
        self.age_notices();
        server.behave();
        ran
    }
}

/// Writes a file as a client does, by a rename.
fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

enum Damage {
    Flip,
    Cut(usize),
}

/// Replaces a file by a damaged one, if there is one. Other names of the same file keep the good bytes.
fn damage(path: &Path, how: Damage) {
    let Ok(mut bytes) = fs::read(path) else { return };
    match how {
        Damage::Flip => {
            if let Some(first) = bytes.first_mut() {
                *first ^= 1;
            }
        }
        Damage::Cut(length) => bytes.truncate(bytes.len().saturating_sub(length)),
    }
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Sets the times of everything below a folder to this many days ago.
fn age(folder: &Path, days: i64) {
    let now = SystemTime::now();
    let offset = Duration::from_secs((days.unsigned_abs()) * DAY as u64);
    let then = if days < 0 { now + offset } else { now - offset };
    let mut left = vec![folder.to_path_buf()];
    while let Some(path) = left.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        if !meta.is_symlink() {
            set_times_to(&path, then);
        }
    }
}
