//! Every command that writes is killed at random moments, and the server disappears at random moments. After each, the cache
//! and the bucket are sound. In the end, the same command completes, transfers no finished part of a large blob again, and
//! leaves nothing behind.
//!
//! `SEED` repeats the choices of a run, and `KILL_ROUNDS` is the number of rounds of each scenario, with up to five kills each
//! (6 rounds by default, fewer of the large ones): `KILL_ROUNDS=300 cargo test --test it kills::`. `KILL_ONLY` is a part of
//! the names of the scenarios to run.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::harness::cache::{OTHER, Revision};
#[cfg(feature = "fallback")]
use crate::harness::hub_server::Hub;
use crate::harness::machine::{Machine, Output, Running};
use crate::harness::proxy::{Fault, Passing, Proxy};
use crate::harness::server_process::ServerProcess;
use crate::harness::sound::{assert_good_blobs, assert_sound_bucket_except, assert_sound_cache_except};
use crate::harness::store::{BUCKET, Store};
use crate::harness::{contents, listing, seed, sha256, wait_until, weights};

/// Rounds of each scenario.
const ROUNDS: usize = 6;
/// A large blob is sent in parts above 16 MiB, and fetched in ranges above 8 MiB.
const LARGE_PUT: usize = 17 << 20;
const LARGE_GET: usize = 10 << 20;
/// An age at which objects may be deleted.
const OLD: i64 = -48 * 3600;

/// Records the parts that the server has accepted, and those that are sent again after that.
#[derive(Clone, Default)]
struct Parts(Arc<Mutex<(HashSet<String>, Vec<String>)>>);

impl Parts {
    fn watch(&self, proxy: &Proxy) {
        let parts = self.clone();
        proxy.fail(move |request: &Passing| {
            if request.method != "PUT" || !request.query.contains("partNumber=") {
                return Fault::None;
            }
            let mut noted = parts.0.lock().unwrap();
            if noted.0.contains(&request.query) {
                noted.1.push(request.query.clone());
            }
            drop(noted);
            let (parts, query) = (parts.clone(), request.query.clone());
            Fault::edit(move |response| {
                if response.head.starts_with("HTTP/1.1 200") {
                    parts.0.lock().unwrap().0.insert(query.clone());
                }
            })
        });
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap().0.is_empty()
    }

    #[track_caller]
    fn assert_none_repeated(&self, what: &str) {
        let repeated = &self.0.lock().unwrap().1;
        assert!(repeated.is_empty(), "{what}: finished parts were sent again: {repeated:?}");
    }
}

/// A bucket behind a proxy, and a machine.
struct World {
    store: Store,
    proxy: Proxy,
    parts: Parts,
    machine: Machine,
    revisions: Vec<Revision>,
    damages: Vec<Damage>,
    /// The state before a repair, which may change nothing but the damage.
    before: Before,
    #[cfg(feature = "fallback")]
    hub: Option<Hub>,
}

/// Damage before a scenario. At any moment until its end, the damage is unchanged or repaired.
struct Damage {
    place: Place,
    /// The wrong bytes; `None` if the blob or object is missing.
    bytes: Option<Vec<u8>>,
}

enum Place {
    /// A blob in the cache.
    Blob(PathBuf),
    /// A key in the bucket.
    Key(String),
}

impl Damage {
    fn is_left(&self, world: &World) -> bool {
        let found = match &self.place {
            Place::Blob(path) => fs::read(path).ok(),
            Place::Key(key) => fs::read(world.store.path(key)).ok(),
        };
        found == self.bytes
    }
}

/// The contents of the cache and of the bucket, each with a hash.
type Before = (BTreeMap<String, String>, BTreeMap<String, String>);

/// A command that is killed, with its setup and its expected result.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    line: &'static [&'static str],
    prepare: fn(&mut World),
    /// Asserts that it has completed its work.
    is_done: fn(&World),
    /// Whether it moves a large blob. Such scenarios get fewer rounds.
    is_large: bool,
}

fn small() -> Vec<Revision> {
    let one = Revision::new("model", "org/one").git("config.json", "{}\n").lfs("model.bin", weights(1, 400_000));
    let one = one.git("sub/vocab.txt", "a\nb\n").refs(&["main", "v1.0"]);
    let two = Revision::new("dataset", "org/two").at(OTHER).lfs("model.bin", weights(1, 400_000)).git("b.txt", "two");
    vec![one, two]
}

fn large(length: usize) -> Vec<Revision> {
    vec![Revision::new("model", "org/large").git("config.json", "{}\n").lfs("model.bin", weights(2, length))]
}

/// A blob that nothing needs.
fn unused() -> (String, Vec<u8>) {
    let bytes = weights(9, 500);
    (format!("blobs/{}", sha256(&bytes)), bytes)
}

impl World {
    fn new(scenario: &Scenario) -> World {
        let store = Store::new();
        let proxy = Proxy::to(&store.server.url);
        let mut machine = Machine::unconfigured();
        machine.connect(&proxy.url, BUCKET, "test-region");
        fs::create_dir_all(machine.hub()).unwrap();
        let mut world = World {
            store,
            proxy,
            parts: Parts::default(),
            machine,
            revisions: small(),
            damages: Vec::new(),
            before: Before::default(),
            #[cfg(feature = "fallback")]
            hub: None,
        };
        (scenario.prepare)(&mut world);
        world.store.keys().iter().for_each(|key| world.store.age(key, OLD));
        world.parts.watch(&world.proxy);
        if !world.damages.is_empty() {
            world.before = (contents(&world.machine.hub()), world.store.objects());
        }
        world
    }

    /// Gives a blob in the cache wrong bytes, or removes it.
    fn damage_blob(&mut self, revision: usize, path: &str, bytes: Option<Vec<u8>>) {
        let blob = self.revisions[revision].blob(&self.machine.hub(), path);
        match &bytes {
            Some(bytes) => fs::write(&blob, bytes).unwrap(),
            None => fs::remove_file(&blob).unwrap(),
        }
        self.damages.push(Damage { place: Place::Blob(blob), bytes });
    }

    /// Gives an object wrong bytes, or removes it.
    fn damage_object(&mut self, key: &str, bytes: Option<&str>) {
        match bytes {
            Some(bytes) => self.store.put(key, bytes),
            None => self.store.remove(key),
        }
        self.damages.push(Damage { place: Place::Key(key.to_string()), bytes: bytes.map(|bytes| bytes.into()) });
    }

    fn write(&mut self) {
        for revision in &self.revisions {
            revision.write(&self.machine.hub());
            revision.age(&self.machine.hub(), 30);
        }
    }

    fn publish(&mut self) {
        self.revisions.iter().for_each(|revision| revision.publish(&self.store));
    }

    /// Starts a Hub that has the revisions.
    #[cfg(feature = "fallback")]
    fn start_hub(&mut self) {
        let hub = Hub::start(&self.revisions);
        self.machine.set("HF_ENDPOINT", &hub.url);
        self.hub = Some(hub);
    }

    fn publish_and_write(&mut self) {
        self.publish();
        self.write();
    }

    fn assert_published(&self) {
        self.revisions.iter().for_each(|revision| revision.assert_published(&self.store));
    }

    /// Returns whether every ref is in the bucket.
    fn has_all_refs(&self) -> bool {
        let has = |revision: &Revision, name| self.store.has(&format!("refs/{}/{name}", revision.encoded()));
        self.revisions.iter().all(|revision| revision.refs.iter().all(|name| has(revision, name)))
    }

    #[track_caller]
    fn assert_pulled(&self) {
        self.revisions.iter().for_each(|revision| revision.assert_pulled(&self.machine.hub()));
    }

    #[track_caller]
    fn assert_gone_here(&self) {
        self.revisions.iter().for_each(|revision| assert!(!revision.snapshot(&self.machine.hub()).exists()));
    }

    /// Asserts that everything except damage not yet repaired is sound, and that nothing else has changed. The command
    /// must have ended; the server may still be carrying out its last requests.
    #[track_caller]
    fn assert_sound(&self) {
        wait_until("the last requests", || self.proxy.connections() == 0 && self.store.server.in_flight() == 0);
        let (mut blobs, mut keys) = (Vec::new(), Vec::new());
        for damage in self.damages.iter().filter(|damage| damage.is_left(self)) {
            match &damage.place {
                Place::Blob(path) => blobs.push(path.clone()),
                Place::Key(key) => keys.push(key.as_str()),
            }
        }
        assert_sound_bucket_except(&self.store, &keys);
        assert_good_blobs(&self.store, &keys);
        assert_sound_cache_except(&self.machine.hub(), &blobs);
        let (in_cache, in_bucket) = (contents(&self.machine.hub()), self.store.objects());
        for (path, what) in &self.before.0 {
            let is_damaged = |damage: &Damage| matches!(&damage.place, Place::Blob(blob) if blob.ends_with(path));
            assert!(in_cache.get(path) == Some(what) || self.damages.iter().any(is_damaged), "{path} has changed");
        }
        for (key, what) in &self.before.1 {
            let is_damaged = |damage: &Damage| matches!(&damage.place, Place::Key(damaged) if damaged == key);
            assert!(in_bucket.get(key) == Some(what) || self.damages.iter().any(is_damaged), "{key} has changed");
        }
        self.damages.iter().for_each(|damage| self.assert_kept(damage));
    }

    /// Asserts that the wrong bytes of a blob in the cache are in place or in the quarantine.
    #[track_caller]
    fn assert_kept(&self, damage: &Damage) {
        let Damage { place: Place::Blob(path), bytes: Some(bytes) } = damage else { return };
        let quarantine = self.state().join("quarantine");
        let kept = quarantine.join(path.parent().unwrap().strip_prefix(self.machine.hub()).unwrap());
        let mut kept = fs::read_dir(kept).into_iter().flatten().map(|entry| fs::read(entry.unwrap().path()).unwrap());
        assert!(damage.is_left(self) || kept.any(|kept| kept == *bytes), "{} is lost", path.display());
    }

    /// Asserts that no damage is left.
    #[track_caller]
    fn assert_repaired(&self) {
        assert!(!self.damages.iter().any(|damage| damage.is_left(self)));
        self.assert_sound();
    }

    /// Returns the folder with the bucket, in which its server keeps unfinished uploads.
    fn root(&self) -> PathBuf {
        self.store.path("").parent().unwrap().to_path_buf()
    }

    fn state(&self) -> PathBuf {
        self.machine.hub().join(".locks/.hf-cache-sync")
    }

    /// Returns how many bytes have been received from the bucket and the Hub since the last call.
    fn take_received(&self) -> u64 {
        #[cfg(feature = "fallback")]
        let from_hub = self.hub.as_ref().map_or(0, Hub::take_bytes_sent);
        #[cfg(not(feature = "fallback"))]
        let from_hub = 0;
        self.proxy.take_received() + from_hub
    }

    /// Asserts that no bytes of the large blob that had been recorded were received again since the last call of
    /// [`World::take_received`].
    #[track_caller]
    fn assert_resumed(&self, recorded: u64, what: &str) {
        let files = self.revisions.iter().flat_map(|revision| &revision.files);
        let all: u64 = files.map(|file| file.bytes.len() as u64).sum();
        let (received, rest) = (self.take_received(), all.saturating_sub(recorded));
        assert!(received <= rest + 100_000, "{what}: {received} bytes were received, {recorded} had been recorded");
    }

    /// Returns how many bytes of the large blob a killed pull has recorded as complete.
    fn recorded(&self) -> u64 {
        let folder = self.state().join("partial");
        let journals = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
        let journals = journals.filter(|path| path.extension().is_some_and(|end| end == "parts"));
        let complete = |path: PathBuf| {
            let bytes = fs::read(path).unwrap();
            let Some(unit) = bytes.get(16..24) else { return 0 };
            let unit = u64::from_le_bytes(unit.try_into().unwrap());
            bytes[24..].iter().filter(|done| **done == 1).count() as u64 * unit
        };
        journals.map(complete).sum()
    }
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "push",
        line: &["push"],
        prepare: World::write,
        is_done: World::assert_published,
        is_large: false,
    },
    Scenario {
        name: "push in parts",
        line: &["push", "--workers", "1"],
        prepare: |world| {
            world.revisions = large(LARGE_PUT);
            world.write();
        },
        is_done: World::assert_published,
        is_large: true,
    },
    Scenario {
        name: "pull",
        line: &["pull", "org/one"],
        prepare: |world| {
            world.revisions.truncate(1);
            world.revisions[0].refs.truncate(1);
            world.publish();
        },
        is_done: World::assert_pulled,
        is_large: false,
    },
    Scenario {
        name: "pull in ranges",
        line: &["pull", "org/large", "--workers", "1"],
        prepare: |world| {
            world.revisions = large(LARGE_GET);
            world.publish();
        },
        is_done: World::assert_pulled,
        is_large: true,
    },
    #[cfg(feature = "fallback")]
    Scenario {
        name: "pull from the Hub",
        line: &["pull", "org/one", "--fallback", "hf-hub"],
        prepare: |world| {
            world.revisions.truncate(1);
            world.revisions[0].refs.truncate(1);
            world.start_hub();
        },
        is_done: World::assert_pulled,
        is_large: false,
    },
    #[cfg(feature = "fallback")]
    Scenario {
        name: "pull from the Hub in ranges",
        line: &["pull", "org/large", "--fallback", "hf-hub", "--workers", "1"],
        prepare: |world| {
            world.revisions = large(LARGE_GET);
            world.start_hub();
        },
        is_done: World::assert_pulled,
        is_large: true,
    },
    Scenario {
        name: "pull-all",
        line: &["pull-all"],
        prepare: |world| {
            world.revisions[0].refs.truncate(1);
            world.publish();
        },
        is_done: World::assert_pulled,
        is_large: false,
    },
    Scenario {
        name: "pull-all in ranges",
        line: &["pull-all", "--workers", "1"],
        prepare: |world| {
            world.revisions = large(LARGE_GET);
            world.publish();
        },
        is_done: World::assert_pulled,
        is_large: true,
    },
    Scenario {
        name: "prune",
        line: &["prune", "--max-size", "0B", "--include-referenced", "--yes"],
        prepare: World::write,
        is_done: World::assert_gone_here,
        is_large: false,
    },
    Scenario {
        name: "prune --require-remote",
        line: &["prune", "--max-size", "0B", "--require-remote", "--yes"],
        prepare: World::publish_and_write,
        is_done: |world| {
            world.assert_gone_here();
            world.assert_published();
        },
        is_large: false,
    },
    Scenario {
        name: "rm",
        line: &["rm", "org/one", "--yes"],
        prepare: |world| {
            world.write();
            world.revisions.truncate(1);
        },
        is_done: World::assert_gone_here,
        is_large: false,
    },
    Scenario {
        name: "remote rm",
        line: &["remote", "rm", "org/one", "--yes"],
        prepare: World::publish,
        is_done: |world| {
            world.revisions[1].assert_published(&world.store);
            assert!(!world.store.has(&world.revisions[0].manifest_key()));
            assert!(!world.store.keys().iter().any(|key| key.starts_with("refs/org__one")));
        },
        is_large: false,
    },
    Scenario {
        name: "remote gc",
        line: &["remote", "gc", "--yes"],
        prepare: |world| {
            world.publish();
            let (key, bytes) = unused();
            world.store.put(&key, bytes);
        },
        is_done: |world| {
            world.assert_published();
            assert!(!world.store.has(&unused().0));
        },
        is_large: false,
    },
    Scenario {
        name: "verify --repair",
        line: &["verify", "--repair"],
        prepare: |world| {
            world.revisions[0].refs.truncate(1);
            world.publish_and_write();
            world.damage_blob(0, "model.bin", Some("damaged".into()));
            world.damage_blob(1, "b.txt", None);
        },
        is_done: |world| {
            world.assert_pulled();
            world.assert_repaired();
        },
        is_large: false,
    },
    Scenario {
        name: "verify --repair in ranges",
        line: &["verify", "--repair", "--workers", "1"],
        prepare: |world| {
            world.revisions = large(LARGE_GET);
            world.publish_and_write();
            let mut bytes = world.revisions[0].file("model.bin").bytes.clone();
            bytes[LARGE_GET / 2] ^= 1;
            world.damage_blob(0, "model.bin", Some(bytes));
        },
        is_done: |world| {
            world.assert_pulled();
            world.assert_repaired();
        },
        is_large: true,
    },
    Scenario {
        name: "verify --remote --repair",
        line: &["verify", "--remote", "--repair"],
        prepare: |world| {
            world.publish_and_write();
            let (manifest, blob) = (world.revisions[0].manifest_key(), world.revisions[1].blob_key("b.txt"));
            world.damage_object(&manifest, None);
            world.damage_object("refs/org__one/main", Some("not a commit"));
            world.damage_object("refs/org__one/v1.0", Some("not one, either"));
            world.damage_object(&blob, Some("short"));
        },
        is_done: |world| {
            world.assert_published();
            world.assert_repaired();
        },
        is_large: false,
    },
    Scenario {
        name: "verify --remote --repair in parts",
        line: &["verify", "--remote", "--repair", "--workers", "1"],
        prepare: |world| {
            world.revisions = large(LARGE_PUT);
            world.publish_and_write();
            let blob = world.revisions[0].blob_key("model.bin");
            world.damage_object(&blob, Some("short"));
        },
        is_done: |world| {
            world.assert_published();
            world.assert_repaired();
        },
        is_large: true,
    },
];

/// When a process is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After this time.
    Time(Duration),
    /// Once this many requests have been sent, and this time has passed.
    Request(usize, Duration),
    /// Once a part of the large blob is finished, and this time has passed.
    Part(Duration),
}

impl Moment {
    fn random(random: &mut fastrand::Rng, usual: Duration, requests: usize) -> Moment {
        match requests > 0 && random.bool() {
            true => Moment::Request(random.usize(..requests), Duration::from_micros(random.u64(..3000))),
            false => Moment::Time(usual.mul_f64(random.f64() * 1.1)),
        }
    }

    /// Waits for the moment, or until the process has ended.
    fn wait(self, running: &mut Running, world: &World) {
        let pause = match self {
            Moment::Time(pause) => pause,
            Moment::Request(requests, pause) => {
                wait_while(running, || world.proxy.count() <= requests);
                pause
            }
            Moment::Part(pause) => {
                wait_while(running, || world.parts.is_empty() && world.recorded() == 0);
                pause
            }
        };
        let start = Instant::now();
        wait_while(running, || start.elapsed() < pause);
    }
}

/// Waits while the condition holds and the process runs.
fn wait_while(running: &mut Running, condition: impl Fn() -> bool) {
    while running.is_running() && condition() {
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn rounds(default: usize) -> usize {
    std::env::var("KILL_ROUNDS").map_or(default, |rounds| rounds.parse().unwrap())
}

/// Notices of killed deletions expire after five minutes by the store's clock, those of pushes after an hour.
fn expire_notices(store: &Store) {
    let notices = store.keys().into_iter().filter(|key| key.starts_with("_hf_cache_sync_gc/"));
    notices.for_each(|key| store.age(&key, -7200));
}

/// Runs the command to its end.
#[track_caller]
fn complete(scenario: &Scenario, world: &World, what: &str) -> Output {
    expire_notices(&world.store);
    let ran = world.machine.run(scenario.line);
    assert_completed(scenario, &ran, what);
    ran
}

#[track_caller]
fn assert_completed(scenario: &Scenario, ran: &Output, what: &str) {
    // Objects that were removed before the kill cannot be removed again.
    let is_gone = ran.code == 4 && scenario.line.contains(&"rm");
    assert!(ran.code == 0 || is_gone, "{what}: {ran:#?}");
}

/// Asserts that no leftovers of killed processes remain once they are old, neither in the cache nor in the bucket.
#[track_caller]
fn assert_nothing_left(world: &World, what: &str) {
    let hub = world.machine.hub();
    let long_ago = SystemTime::now() - Duration::from_secs(49 * 3600);
    for path in listing(&hub.join(".locks")).keys() {
        let path = hub.join(".locks").join(path);
        if let Ok(file) = fs::File::open(&path) {
            let _ = file.set_modified(long_ago);
        }
    }
    expire_notices(&world.store);
    world.machine.ok(&["prune", "--max-gb", "1000", "--yes"]);
    world.machine.ok(&["remote", "gc", "--yes"]);
    let allowed = |path: &str| {
        let name = path.rsplit('/').next().unwrap();
        let is_lock = name == "lock" || name.ends_with(".lock");
        // Bad bytes are kept for the user, marks of `serve` as long as a client may resume, manifests as long as they are
        // used.
        is_lock || ["quarantine/", "unverified/", "manifests/"].iter().any(|folder| path.starts_with(folder))
    };
    let left: Vec<String> = listing(&world.state())
        .into_iter()
        .filter(|(path, what)| !what.starts_with("dir") && !allowed(path))
        .map(|(path, _)| path)
        .collect();
    assert!(left.is_empty(), "{what}: left in the cache: {left:?}");
    let left: Vec<String> = world.store.keys().into_iter().filter(|key| key.starts_with("_hf_cache_sync")).collect();
    assert!(left.is_empty(), "{what}: left in the bucket: {left:?}");
}

/// Asserts that no multipart upload was abandoned.
#[track_caller]
fn assert_no_upload_left(world: &World, what: &str) {
    // The server keeps unfinished uploads next to the buckets, and the received part of other objects when the connection
    // broke (`.tmp.`). An upload that was killed right at its start has no parts, and is left to `gc` or a lifecycle rule.
    let beside = fs::read_dir(world.root()).unwrap();
    let unfinished = beside.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let unfinished: Vec<String> =
        unfinished.filter(|name| name.contains(".part") && !name.starts_with(".tmp.")).collect();
    assert!(unfinished.is_empty(), "{what}: {unfinished:?}");
}

fn run_scenario(scenario: &Scenario, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    // Measures how long it takes, and how many requests it sends.
    let world = World::new(scenario);
    let start = Instant::now();
    world.machine.ok(scenario.line);
    let (usual, requests) = (start.elapsed(), world.proxy.count());
    (scenario.is_done)(&world);
    world.assert_sound();
    drop(world);

    for round in 0..rounds(if scenario.is_large { 1 } else { ROUNDS }) {
        let world = World::new(scenario);
        for _ in 0..random.usize(2..=5) {
            world.parts.watch(&world.proxy);
            let moment = match scenario.is_large && random.bool() {
                true => Moment::Part(Duration::from_micros(random.u64(..5000))),
                false => Moment::random(&mut random, usual, requests),
            };
            let what = format!("seed {seed}, {}, round {round}, {moment:?}", scenario.name);
            let mut running = world.machine.start(scenario.line);
            moment.wait(&mut running, &world);
            running.kill();
            world.assert_sound();
            world.parts.assert_none_repeated(&what);
        }
        let what = format!("seed {seed}, {}, round {round}", scenario.name);
        let recorded = world.recorded();
        world.take_received();
        world.parts.watch(&world.proxy);
        complete(scenario, &world, &what);
        (scenario.is_done)(&world);
        world.assert_sound();
        world.parts.assert_none_repeated(&what);
        if recorded > 0 {
            world.assert_resumed(recorded, &what);
        }
        assert_nothing_left(&world, &what);
        assert_no_upload_left(&world, &what);
    }
}

#[test]
fn every_command_that_writes_can_be_killed_at_any_moment() {
    let seed = seed();
    // Two at a time, so that processes are killed while they run and not while they wait for the processor.
    let only = std::env::var("KILL_ONLY").unwrap_or_default();
    let next = Mutex::new(SCENARIOS.iter().enumerate().filter(|(_, scenario)| scenario.name.contains(&only)));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((number, scenario)) = next.lock().unwrap().next() else { return };
                    run_scenario(scenario, seed.wrapping_add(number as u64));
                }
            });
        }
    });
}

/// The server disappears at a random request, and comes back. The command fails with one clear error, or waits and
/// completes.
#[test]
fn the_server_can_disappear_at_any_moment() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    for scenario in SCENARIOS.iter().filter(|scenario| !scenario.is_large) {
        let world = World::new(scenario);
        world.machine.ok(scenario.line);
        let requests = world.proxy.count();
        // Without requests, the server cannot matter.
        for round in 0..if requests == 0 { 0 } else { rounds(ROUNDS / 3) } {
            let world = World::new(scenario);
            let mut running = world.machine.start(scenario.line);
            Moment::Request(random.usize(..requests), Duration::from_micros(random.u64(..2000)))
                .wait(&mut running, &world);
            world.proxy.cut_off();
            let what = format!("seed {seed}, {}, round {round}", scenario.name);
            if random.bool() {
                std::thread::sleep(Duration::from_millis(random.u64(..300)));
                world.proxy.restore();
                let ran = running.finish();
                assert_eq!(ran.code, 0, "{what}: {ran:#?}");
            } else {
                running.kill();
                world.proxy.restore();
            }
            world.assert_sound();
            complete(scenario, &world, &what);
            (scenario.is_done)(&world);
            world.assert_sound();
            assert_nothing_left(&world, &what);
            assert_no_upload_left(&world, &what);
        }
    }
}

/// Returns whether the bucket's server or a command is in the middle of a blob, or has begun to delete.
fn is_in_the_middle(world: &World, keys: usize) -> bool {
    const MIDDLE: u64 = 64 << 10;
    let lengths = |folder: &Path| -> Vec<(String, u64)> {
        let entries = fs::read_dir(folder).into_iter().flatten().map(Result::unwrap);
        entries
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.metadata().ok()?.len())))
            .collect()
    };
    let is_sent = || lengths(&world.root()).iter().any(|(name, length)| name.starts_with(".tmp.") && *length > MIDDLE);
    let is_fetched = || lengths(&world.state().join("partial")).iter().any(|(_, length)| *length > MIDDLE);
    is_sent() || is_fetched() || world.store.keys().len() < keys
}

/// The server's process is killed at a random moment or in the middle of a body, and comes back. The command waits and
/// completes, or is killed as well. At any moment, the bucket is sound.
#[test]
fn the_servers_process_can_be_killed_at_any_moment() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let named = |name: &str, line| Scenario { line, ..*SCENARIOS.iter().find(|known| known.name == name).unwrap() };
    let scenarios = [
        named("push", &["push"]),
        named("push in parts", &["push", "--workers", "1", "--bwlimit", "30MB/s"]),
        named("pull", &["pull", "org/one"]),
        named("pull in ranges", &["pull", "org/large", "--workers", "1", "--bwlimit", "30MB/s"]),
        named("remote rm", &["remote", "rm", "org/one", "--yes"]),
        named("remote gc", &["remote", "gc", "--yes"]),
    ];
    for scenario in &scenarios {
        let mut usual = Duration::ZERO;
        for round in 0..rounds(if scenario.is_large { 1 } else { ROUNDS / 3 }) {
            let what = format!("seed {seed}, {}, round {round}", scenario.name);
            let mut world = World::new(scenario);
            let mut server = ServerProcess::start(&world.root());
            world.machine.connect(&server.url, BUCKET, "test-region");
            if usual.is_zero() {
                let start = Instant::now();
                world.machine.ok(scenario.line);
                usual = start.elapsed();
                world = World::new(scenario);
                server = ServerProcess::start(&world.root());
                world.machine.connect(&server.url, BUCKET, "test-region");
            }
            let keys = world.store.keys().len();
            for number in 0..random.usize(1..=3) {
                let mut running = world.machine.start(scenario.line);
                if number == 0 || random.bool() {
                    wait_while(&mut running, || !is_in_the_middle(&world, keys));
                } else {
                    Moment::Time(usual.mul_f64(random.f64())).wait(&mut running, &world);
                }
                server.kill();
                if scenario.is_large && number == 0 {
                    assert!(running.is_running() && is_in_the_middle(&world, keys), "{what}: no body was interrupted");
                }
                assert_sound_bucket_except(&world.store, &[]);
                assert_good_blobs(&world.store, &[]);
                if random.bool() {
                    server.restart();
                    assert_completed(scenario, &running.finish(), &what);
                } else {
                    running.kill();
                    server.restart();
                }
                world.assert_sound();
                expire_notices(&world.store);
            }
            complete(scenario, &world, &what);
            (scenario.is_done)(&world);
            world.assert_sound();
            assert_nothing_left(&world, &what);
        }
    }
}

/// Waits until the watch or the server has printed its first line, or for `moment`.
fn wait_for_start(running: &Running, moment: Duration) {
    let start = Instant::now();
    while running.stdout().is_empty() && start.elapsed() < moment {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_watch_can_be_killed_at_any_moment() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let scenario =
        Scenario { name: "watch", line: &["push"], prepare: |_| {}, is_done: World::assert_published, is_large: false };
    for round in 0..rounds(ROUNDS / 2) {
        let mut world = World::new(&scenario);
        let mut running = world.machine.start(&["--json", "watch", "--debounce", "0.05"]);
        wait_for_start(&running, Duration::from_secs(20));
        world.write();
        Moment::random(&mut random, Duration::from_millis(400), 20).wait(&mut running, &world);
        running.kill();
        world.assert_sound();
        let what = format!("seed {seed}, watch, round {round}");
        complete(&scenario, &world, &what);
        (scenario.is_done)(&world);
        // Another watch may start immediately.
        let running = world.machine.start(&["--json", "watch", "--debounce", "0.05"]);
        wait_until("the watch to push", || running.stdout().contains("\"pushed\""));
        running.kill();
        assert_nothing_left(&world, &what);
        assert_no_upload_left(&world, &what);
    }
}

/// Starts `serve`, and returns its port.
fn start_server(world: &World, arguments: &[&str]) -> (Running, u16) {
    let running = world.machine.start(&[&["--json", "serve", "--listen", "127.0.0.1:0"], arguments].concat());
    wait_until("the server", || !running.stdout().is_empty());
    let line: Value = serde_json::from_str(running.stdout().lines().next().unwrap()).unwrap();
    let port = line["url"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    (running, port)
}

/// Reads every file as a client does. Asserts that complete responses are right, and returns whether all were complete.
#[track_caller]
fn read_all(port: u16, revisions: &[Revision]) -> bool {
    let mut is_complete = true;
    for revision in revisions {
        let kind = if revision.kind == "model" { String::new() } else { format!("/{}s", revision.kind) };
        for file in &revision.files {
            match get(port, &format!("{kind}/{}/resolve/main/{}", revision.id, file.path)) {
                Some(bytes) => assert!(bytes == file.bytes, "a complete response for {} has wrong bytes", file.path),
                None => is_complete = false,
            }
        }
    }
    is_complete
}

/// A server with a reading client. After a kill, the next server serves the right bytes, and fetches no finished part again.
#[test]
fn serve_can_be_killed_at_any_moment() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let scenario = Scenario {
        name: "serve",
        line: &["pull", "org/large"],
        prepare: |world| {
            world.revisions = large(LARGE_GET);
            world.publish();
        },
        is_done: World::assert_pulled,
        is_large: true,
    };
    for round in 0..rounds(ROUNDS / 3) {
        let what = format!("seed {seed}, serve, round {round}");
        let world = World::new(&scenario);
        let (mut running, port) = start_server(&world, &[]);
        std::thread::scope(|scope| {
            scope.spawn(|| read_all(port, &world.revisions));
            Moment::random(&mut random, Duration::from_millis(500), 8).wait(&mut running, &world);
            running.kill();
        });
        world.assert_sound();
        let recorded = world.recorded();
        world.take_received();
        let (running, port) = start_server(&world, &[]);
        assert!(read_all(port, &world.revisions), "{what}");
        world.assert_resumed(recorded, &what);
        running.kill();
        complete(&scenario, &world, &what);
        (scenario.is_done)(&world);
        world.assert_sound();
        assert_nothing_left(&world, &what);
        assert_no_upload_left(&world, &what);
    }
}

/// A server that publishes files from the Hub is killed while a client reads, while it publishes an idle revision, and while
/// it publishes the rest at shutdown. The next one publishes everything.
#[cfg(all(unix, feature = "fallback"))]
#[test]
fn a_server_that_publishes_can_be_killed_at_any_moment() {
    const PUBLISHED: &[&str] = &["--fallback", "hf-hub", "--push", "--workers", "1"];
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let scenario = Scenario {
        name: "serve --push",
        line: &["push"],
        prepare: |world| {
            world.revisions = small();
            world.revisions[0].refs.truncate(1);
            world.revisions.extend(large(LARGE_PUT));
            world.start_hub();
        },
        is_done: |world| {
            world.assert_pulled();
            world.assert_published();
            assert!(world.has_all_refs());
        },
        is_large: true,
    };
    for round in 0..rounds(ROUNDS / 3) {
        let what = format!("seed {seed}, serve --push, round {round}");
        let world = World::new(&scenario);
        for _ in 0..random.usize(1..=3) {
            world.parts.watch(&world.proxy);
            let (mut running, port) = start_server(&world, PUBLISHED);
            std::thread::scope(|scope| {
                let client = scope.spawn(|| read_all(port, &world.revisions));
                if random.bool() {
                    // While the client reads.
                    Moment::Time(Duration::from_secs(1).mul_f64(random.f64())).wait(&mut running, &world);
                } else {
                    assert!(client.join().unwrap(), "{what}");
                    // At shutdown, or once nothing has arrived for a while.
                    if random.usize(..3) > 0 {
                        running.signal("-TERM");
                    }
                    world.parts.watch(&world.proxy);
                    let requests = random.usize(..20);
                    wait_while(&mut running, || world.proxy.count() <= requests && !world.has_all_refs());
                    Moment::Time(Duration::from_micros(random.u64(..20_000))).wait(&mut running, &world);
                }
                running.kill();
            });
            world.assert_sound();
            world.parts.assert_none_repeated(&what);
        }
        expire_notices(&world.store);
        let recorded = world.recorded();
        world.take_received();
        let (running, port) = start_server(&world, PUBLISHED);
        assert!(read_all(port, &world.revisions), "{what}");
        world.assert_resumed(recorded, &what);
        running.signal("-TERM");
        let ran = running.finish();
        assert_eq!(ran.code, 0, "{what}: {ran:#?}");
        (scenario.is_done)(&world);
        world.assert_sound();
        world.parts.assert_none_repeated(&what);
        assert_nothing_left(&world, &what);
        assert_no_upload_left(&world, &what);
    }
}

/// A server that keeps its cache within a budget is killed at random moments and when it has begun to evict. Nothing that a
/// client sees is broken, and the next one serves everything and returns to the budget.
#[test]
fn a_server_with_a_budget_can_be_killed_at_any_moment() {
    const BUDGET: u64 = 1 << 20;
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let scenario = Scenario {
        name: "serve --max-size",
        line: &["pull-all"],
        prepare: |world| {
            let revision = |number: u64| {
                let revision = Revision::new("model", &format!("org/{number}")).at(&format!("{number}").repeat(40));
                revision.git("config.json", "{}\n").lfs("model.bin", weights(number, 400_000))
            };
            world.revisions = (1..=5).map(revision).collect();
            world.publish();
            for revision in &world.revisions[..2] {
                revision.write(&world.machine.hub());
                revision.age(&world.machine.hub(), 30);
            }
        },
        is_done: World::assert_pulled,
        is_large: false,
    };
    let is_here = |world: &World, revision: &Revision| revision.blob(&world.machine.hub(), "model.bin").exists();
    let count = |world: &World| world.revisions.iter().filter(|revision| is_here(world, revision)).count() as u64;
    let is_within = |world: &World| count(world) * 400_000 <= BUDGET;
    let start = |world: &World| start_server(world, &["--max-size", &BUDGET.to_string()]);
    for round in 0..rounds(ROUNDS / 2) {
        let what = format!("seed {seed}, serve --max-size, round {round}");
        let world = World::new(&scenario);
        for _ in 0..random.usize(1..=3) {
            let (mut running, port) = start(&world);
            std::thread::scope(|scope| {
                let client = scope.spawn(|| read_all(port, &world.revisions));
                if random.bool() {
                    Moment::Time(Duration::from_millis(random.u64(..800))).wait(&mut running, &world);
                } else {
                    let most = std::cell::Cell::new(0);
                    wait_while(&mut running, || {
                        let now = count(&world);
                        most.set(now.max(most.get()));
                        now == most.get() && !(client.is_finished() && is_within(&world))
                    });
                    Moment::Time(Duration::from_micros(random.u64(..3000))).wait(&mut running, &world);
                }
                running.kill();
            });
            world.assert_sound();
            world.assert_published();
        }
        let (running, port) = start(&world);
        assert!(read_all(port, &world.revisions), "{what}");
        wait_until("the budget", || is_within(&world));
        running.kill();
        world.assert_sound();
        world.assert_published();
        complete(&scenario, &world, &what);
        (scenario.is_done)(&world);
        assert_nothing_left(&world, &what);
        assert_no_upload_left(&world, &what);
    }
}

/// Returns the body of a complete response, or `None`.
fn get(port: u16, path: &str) -> Option<Vec<u8>> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(crate::harness::machine::LIMIT)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length =
        head.split("\r\n").find_map(|line| line.strip_prefix("content-length:"))?.trim().parse::<usize>().ok()?;
    let body = answer.split_off(end);
    (head.starts_with("http/1.1 200") && body.len() == length).then_some(body)
}
