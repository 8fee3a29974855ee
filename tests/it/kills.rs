//! Every command that writes, killed at random moments, and the server gone at random moments. After each, the cache and
//! the bucket are sound. In the end the same command completes, sends or fetches no finished part of a large blob again, and
//! leaves nothing behind.
//!
//! `SEED` repeats the choices of a run, and `KILL_ROUNDS` is the number of rounds of each scenario, with up to five kills each
//! (8 rounds by default, fewer of the large ones): `KILL_ROUNDS=300 cargo test --test it kills::`.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::harness::cache::{OTHER, Revision};
#[cfg(feature = "fallback")]
use crate::harness::hub_server::Hub;
use crate::harness::machine::{Machine, Output, Running};
use crate::harness::proxy::{Fault, Passing, Proxy};
use crate::harness::sound::{assert_sound_bucket, assert_sound_cache};
use crate::harness::store::{BUCKET, Store};
use crate::harness::{listing, seed, sha256, wait_until, weights};

/// Rounds of each scenario.
const ROUNDS: usize = 8;
/// A large blob is sent in parts above 16 MiB, and fetched in ranges above 8 MiB.
const LARGE_PUT: usize = 17 << 20;
const LARGE_GET: usize = 10 << 20;
/// How old an object has to be to be deleted, and older.
const OLD: i64 = -48 * 3600;

/// A bucket behind a proxy, and a machine.
struct World {
    store: Store,
    proxy: Proxy,
    machine: Machine,
    revisions: Vec<Revision>,
    #[cfg(feature = "fallback")]
    hub: Option<Hub>,
}

/// What is not sound before a scenario, and may stay so until the end.
#[derive(Clone, Copy, PartialEq)]
enum Damaged {
    Nothing,
    Cache,
    Bucket,
}

/// A command that is killed, and what it is about.
struct Scenario {
    name: &'static str,
    line: &'static [&'static str],
    prepare: fn(&mut World),
    /// Asserts that it has done its work.
    is_done: fn(&World),
    /// Whether it moves a large blob. Such scenarios get fewer rounds.
    is_large: bool,
    damaged: Damaged,
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
            machine,
            revisions: small(),
            #[cfg(feature = "fallback")]
            hub: None,
        };
        (scenario.prepare)(&mut world);
        world.store.keys().iter().for_each(|key| world.store.age(key, OLD));
        world
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

    fn publish_and_write(&mut self) {
        self.publish();
        self.write();
    }

    fn assert_published(&self) {
        self.revisions.iter().for_each(|revision| revision.assert_published(&self.store));
    }

    #[track_caller]
    fn assert_pulled(&self) {
        self.revisions.iter().for_each(|revision| revision.assert_pulled(&self.machine.hub()));
    }

    #[track_caller]
    fn assert_gone_here(&self) {
        self.revisions.iter().for_each(|revision| assert!(!revision.snapshot(&self.machine.hub()).exists()));
    }

    #[track_caller]
    fn assert_sound(&self, damaged: Damaged) {
        if damaged != Damaged::Bucket {
            assert_sound_bucket(&self.store);
        }
        if damaged != Damaged::Cache {
            assert_sound_cache(&self.machine.hub());
        }
    }

    fn state(&self) -> PathBuf {
        self.machine.hub().join(".locks/.hf-cache-sync")
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
        damaged: Damaged::Nothing,
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
        damaged: Damaged::Nothing,
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
        damaged: Damaged::Nothing,
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
        damaged: Damaged::Nothing,
    },
    #[cfg(feature = "fallback")]
    Scenario {
        name: "pull from the Hub",
        line: &["pull", "org/one", "--fallback", "hf-hub"],
        prepare: |world| {
            world.revisions.truncate(1);
            world.revisions[0].refs.truncate(1);
            let hub = Hub::start(&world.revisions);
            world.machine.set("HF_ENDPOINT", &hub.url);
            world.hub = Some(hub);
        },
        is_done: World::assert_pulled,
        is_large: false,
        damaged: Damaged::Nothing,
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
        damaged: Damaged::Nothing,
    },
    Scenario {
        name: "prune",
        line: &["prune", "--max-size", "0B", "--include-referenced", "--yes"],
        prepare: World::write,
        is_done: World::assert_gone_here,
        is_large: false,
        damaged: Damaged::Nothing,
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
        damaged: Damaged::Nothing,
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
        damaged: Damaged::Nothing,
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
        damaged: Damaged::Nothing,
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
        damaged: Damaged::Nothing,
    },
    Scenario {
        name: "verify --repair",
        line: &["verify", "--repair"],
        prepare: |world| {
            world.revisions[0].refs.truncate(1);
            world.publish_and_write();
            let hub = world.machine.hub();
            fs::write(world.revisions[0].blob(&hub, "model.bin"), "damaged").unwrap();
            fs::remove_file(world.revisions[1].blob(&hub, "b.txt")).unwrap();
        },
        is_done: |world| {
            world.assert_pulled();
            let kept = world.state().join("quarantine/models--org--one/blobs");
            let kept: Vec<_> =
                fs::read_dir(kept).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
            assert!(kept.contains(&b"damaged".to_vec()), "bad bytes are kept");
        },
        is_large: false,
        damaged: Damaged::Cache,
    },
    Scenario {
        name: "verify --remote --repair",
        line: &["verify", "--remote", "--repair"],
        prepare: |world| {
            world.publish_and_write();
            world.store.remove(&world.revisions[0].manifest_key());
            world.store.remove("refs/org__one/main");
            world.store.remove("refs/org__one/v1.0");
            world.store.put("refs/org__one/main", "not a commit");
        },
        is_done: World::assert_published,
        is_large: false,
        damaged: Damaged::Bucket,
    },
];

/// When a process is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After this time.
    Time(Duration),
    /// Once this many requests have been sent, and this time has passed.
    Request(usize, Duration),
}

impl Moment {
    fn random(random: &mut fastrand::Rng, usual: Duration, requests: usize) -> Moment {
        match requests > 0 && random.bool() {
            true => Moment::Request(random.usize(..requests), Duration::from_micros(random.u64(..3000))),
            false => Moment::Time(usual.mul_f64(random.f64() * 1.1)),
        }
    }

    /// Waits for it, or until the process has ended.
    fn wait(self, running: &mut Running, proxy: &Proxy) {
        let pause = match self {
            Moment::Time(pause) => pause,
            Moment::Request(requests, pause) => {
                while running.is_running() && proxy.count() <= requests {
                    std::thread::sleep(Duration::from_micros(200));
                }
                pause
            }
        };
        let start = Instant::now();
        while running.is_running() && start.elapsed() < pause {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Notes the parts that the server has accepted, and those that are sent although it has accepted them before.
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

    fn repeated(&self) -> Vec<String> {
        self.0.lock().unwrap().1.clone()
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
    // What has been removed before the kill cannot be removed again.
    let is_gone = ran.code == 4 && scenario.line.contains(&"rm");
    assert!(ran.code == 0 || is_gone, "{what}: {ran:#?}");
    ran
}

/// Asserts that nothing of killed processes is left once it is old: not in the cache, and not in the bucket.
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
        // Bad bytes are kept for people, marks of `serve` as long as a client may resume, manifests until they are not used.
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
    // The server keeps unfinished uploads beside the buckets, and what it had received of other objects when the connection
    // broke (`.tmp.`). One that was killed right at its start has no parts, and is
    // left to `gc` or a lifecycle rule.
    let beside = fs::read_dir(world.store.path("").parent().unwrap()).unwrap();
    let unfinished = beside.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let unfinished: Vec<String> =
        unfinished.filter(|name| name.contains(".part") && !name.starts_with(".tmp.")).collect();
    assert!(unfinished.is_empty(), "{what}: {unfinished:?}");
}

fn run_scenario(scenario: &Scenario, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    // How long it takes, and how many requests.
    let world = World::new(scenario);
    world.proxy.fail(|_| Fault::None);
    let start = Instant::now();
    world.machine.ok(scenario.line);
    let (usual, requests) = (start.elapsed(), world.proxy.count());
    (scenario.is_done)(&world);
    world.assert_sound(Damaged::Nothing);
    drop(world);

    for round in 0..rounds(if scenario.is_large { ROUNDS / 4 } else { ROUNDS }) {
        let world = World::new(scenario);
        let parts = Parts::default();
        for _ in 0..random.usize(2..=5) {
            parts.watch(&world.proxy);
            let moment = Moment::random(&mut random, usual, requests);
            let what = format!("seed {seed}, {}, round {round}, {moment:?}", scenario.name);
            let mut running = world.machine.start(scenario.line);
            moment.wait(&mut running, &world.proxy);
            running.kill();
            world.assert_sound(scenario.damaged);
            assert_eq!(parts.repeated(), Vec::<String>::new(), "{what}: finished parts were sent again");
        }
        let what = format!("seed {seed}, {}, round {round}", scenario.name);
        let recorded = world.recorded();
        world.proxy.take_received();
        parts.watch(&world.proxy);
        complete(scenario, &world, &what);
        (scenario.is_done)(&world);
        world.assert_sound(Damaged::Nothing);
        assert_eq!(parts.repeated(), Vec::<String>::new(), "{what}: finished parts were sent again");
        if recorded > 0 {
            let fetched = world.proxy.take_received();
            let most = LARGE_GET as u64 + 100_000 - recorded.min(LARGE_GET as u64);
            assert!(fetched <= most, "{what}: {fetched} bytes were fetched, {recorded} had been recorded");
        }
        assert_nothing_left(&world, &what);
    }
}

#[test]
fn every_command_that_writes_can_be_killed_at_any_moment() {
    let seed = seed();
    // Two at a time: the moments should be those of processes that run, not of processes that wait for the processor.
    let next = Mutex::new(SCENARIOS.iter().enumerate());
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

/// The server goes away at a random request, and comes back. The command fails with one clear error, or waits and completes.
#[test]
fn the_server_can_go_away_at_any_moment() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    for scenario in SCENARIOS.iter().filter(|scenario| !scenario.is_large) {
        let world = World::new(scenario);
        world.proxy.fail(|_| Fault::None);
        world.machine.ok(scenario.line);
        let requests = world.proxy.count();
        // Without requests, there is nothing that a server could disturb.
        for round in 0..if requests == 0 { 0 } else { rounds(ROUNDS / 4) } {
            let world = World::new(scenario);
            world.proxy.fail(|_| Fault::None);
            let mut running = world.machine.start(scenario.line);
            Moment::Request(random.usize(..requests), Duration::from_micros(random.u64(..2000)))
                .wait(&mut running, &world.proxy);
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
            world.assert_sound(scenario.damaged);
            complete(scenario, &world, &what);
            (scenario.is_done)(&world);
            world.assert_sound(Damaged::Nothing);
            assert_nothing_left(&world, &what);
        }
    }
}

/// Waits until the watch or the server has said its first line, or a moment.
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
    let scenario = Scenario {
        name: "watch",
        line: &["push"],
        prepare: |_| {},
        is_done: World::assert_published,
        is_large: false,
        damaged: Damaged::Nothing,
    };
    for round in 0..rounds(ROUNDS / 2) {
        let mut world = World::new(&scenario);
        world.proxy.fail(|_| Fault::None);
        let mut running = world.machine.start(&["--json", "watch", "--debounce", "0.05"]);
        wait_for_start(&running, Duration::from_secs(20));
        world.write();
        Moment::random(&mut random, Duration::from_millis(400), 20).wait(&mut running, &world.proxy);
        running.kill();
        world.assert_sound(Damaged::Nothing);
        let what = format!("seed {seed}, watch, round {round}");
        complete(&scenario, &world, &what);
        (scenario.is_done)(&world);
        // Another watch may start at once.
        let running = world.machine.start(&["--json", "watch", "--debounce", "0.05"]);
        wait_until("the watch to push", || running.stdout().contains("\"pushed\""));
        running.kill();
        assert_nothing_left(&world, &what);
    }
}

/// A server with a client that reads. After the kill, the next one serves the right bytes, and fetches no finished part again.
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
        damaged: Damaged::Nothing,
    };
    let start = |world: &World| {
        let running = world.machine.start(&["--json", "serve", "--listen", "127.0.0.1:0"]);
        wait_until("the server", || !running.stdout().is_empty());
        let line: Value = serde_json::from_str(running.stdout().lines().next().unwrap()).unwrap();
        let port: u16 = line["url"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        (running, port)
    };
    for round in 0..rounds(ROUNDS / 4) {
        let what = format!("seed {seed}, serve, round {round}");
        let world = World::new(&scenario);
        let expected = &world.revisions[0].file("model.bin").bytes;
        world.proxy.fail(|_| Fault::None);
        let (mut running, port) = start(&world);
        let client = std::thread::spawn(move || get(port, "/org/large/resolve/main/model.bin"));
        let moment = Moment::random(&mut random, Duration::from_millis(500), 8);
        moment.wait(&mut running, &world.proxy);
        running.kill();
        if let Some(bytes) = client.join().unwrap() {
            assert!(bytes == *expected, "{what}: a client got wrong bytes in a complete response");
        }
        world.assert_sound(Damaged::Nothing);
        let recorded = world.recorded();
        world.proxy.take_received();
        let (running, port) = start(&world);
        let bytes = get(port, "/org/large/resolve/main/model.bin");
        assert!(bytes.as_ref() == Some(expected), "{what}: {:?} bytes", bytes.map(|bytes| bytes.len()));
        let fetched = world.proxy.take_received();
        let most = LARGE_GET as u64 + 100_000 - recorded.min(LARGE_GET as u64);
        assert!(fetched <= most, "{what}: {fetched} bytes were fetched, {recorded} had been recorded");
        running.kill();
        complete(&scenario, &world, &what);
        (scenario.is_done)(&world);
        world.assert_sound(Damaged::Nothing);
        assert_nothing_left(&world, &what);
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
