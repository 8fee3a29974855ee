//! Every command behind a faulty network. In every case, the result is right, or there is one clear error; the cache and the
//! bucket are sound afterwards; and the same command completes once the network works again.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::harness::cache::{OTHER, Revision};
use crate::harness::machine::{Machine, Output};
use crate::harness::proxy::{Fault, Passing, Place, Proxy, Response};
use crate::harness::sound::{assert_sound_bucket, assert_sound_cache};
use crate::harness::store::{BUCKET, Store};
use crate::harness::{contents, seed, sha256, weights};
#[cfg(unix)]
use crate::serve::Serve;

/// An age at which objects may be deleted.
const OLD: i64 = -48 * 3600;

/// A bucket behind a proxy, and a machine.
struct World {
    store: Store,
    machine: Machine,
    proxy: Proxy,
    one: Revision,
    two: Revision,
}

impl World {
    fn new(command: &Command) -> World {
        let store = Store::new();
        let proxy = Proxy::to(&store.server.url);
        let mut machine = Machine::unconfigured();
        machine.connect(&proxy.url, BUCKET, "test-region");
        machine.set("HF_CACHE_SYNC_CHECKSUMS", "md5");
        let one = Revision::new("model", "org/one").git("config.json", "{\"model_type\": \"bert\"}\n");
        let one = one.lfs("model.bin", weights(1, 40_000)).git("sub/vocab.txt", "a\nb\n");
        let two = Revision::new("model", "org/two").at(OTHER).lfs("model.bin", weights(1, 40_000)).git("b.txt", "two");
        let world = World { store, machine, proxy, one, two };
        (command.prepare)(&world);
        world.store.keys().iter().for_each(|key| world.store.age(key, OLD));
        world
    }

    fn publish(&self) {
        self.one.publish(&self.store);
        self.two.publish(&self.store);
    }

    fn write(&self) {
        for revision in [&self.one, &self.two] {
            revision.write(&self.machine.hub());
            revision.age(&self.machine.hub(), 30);
        }
    }

    fn assert_published(&self) {
        for revision in [&self.one, &self.two] {
            revision.assert_published(&self.store);
            let reference = self.store.text(&format!("refs/{}/main", revision.encoded()));
            assert_eq!(reference, revision.commit);
        }
    }

    /// Damages the cache: wrong bytes, missing bytes, and a ref that names nothing.
    #[cfg(unix)]
    fn damage_cache(&self) {
        let hub = self.machine.hub();
        self.one.write(&hub);
        fs::write(self.one.blob(&hub, "config.json"), "wrong").unwrap();
        fs::write(self.one.blob(&hub, "sub/vocab.txt"), "").unwrap();
        fs::remove_file(self.one.blob(&hub, "model.bin")).unwrap();
        fs::write(self.one.dir(&hub).join("refs/main"), "no commit").unwrap();
        self.one.age(&hub, 30);
    }

    /// Asserts that the bucket and the cache are sound, except for damage of this kind that existed `before`.
    #[track_caller]
    fn assert_sound(&self, damage: Damage, before: &BTreeMap<String, String>) {
        if damage != Damage::Bucket {
            assert_sound_bucket(&self.store);
        }
        match damage {
            Damage::Cache => self.assert_no_new_damage(before),
            Damage::None | Damage::Bucket => assert_sound_cache(&self.machine.hub()),
        }
    }

    /// Asserts that every blob, link and ref of the cache is unchanged or correct, and that none is gone.
    #[track_caller]
    fn assert_no_new_damage(&self, before: &BTreeMap<String, String>) {
        let (hub, one) = (self.machine.hub(), &self.one);
        let after = contents(&hub);
        for (path, what) in before {
            assert!(after.contains_key(path), "{path} is gone: it was {what}");
        }
        let changed = after.iter().filter(|(path, what)| before.get(*path) != Some(*what));
        for (path, what) in changed {
            let bytes = fs::read(hub.join(path)).unwrap_or_default();
            let file = one.files.iter().find(|file| one.blob(&hub, &file.path) == hub.join(path));
            let is_right = match file {
                Some(file) => bytes == file.bytes,
                None => *path == format!("{}/refs/main", one.folder()) && bytes == one.commit.as_bytes(),
            };
            assert!(is_right, "{path} is {what} now");
        }
    }
}

/// The damage before a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(unix), allow(dead_code))]
enum Damage {
    None,
    Bucket,
    Cache,
}

/// A command, with its setup and its expected result.
struct Command {
    line: &'static [&'static str],
    prepare: fn(&World),
    /// The damage before it.
    damage: Damage,
    /// Asserts that it has completed its work.
    is_done: fn(&World),
}

/// A blob that nothing needs.
fn unused() -> (String, Vec<u8>) {
    let bytes = weights(9, 500);
    (format!("blobs/{}", sha256(&bytes)), bytes)
}

const COMMANDS: &[Command] = &[
    Command { line: &["push"], prepare: World::write, damage: Damage::None, is_done: World::assert_published },
    Command {
        line: &["pull", "org/one"],
        prepare: World::publish,
        damage: Damage::None,
        is_done: |world| world.one.assert_pulled(&world.machine.hub()),
    },
    Command {
        line: &["pull-all"],
        prepare: World::publish,
        damage: Damage::None,
        is_done: |world| {
            world.one.assert_pulled(&world.machine.hub());
            world.two.assert_pulled(&world.machine.hub());
        },
    },
    Command {
        line: &["prune", "--max-size", "0B", "--require-remote", "--yes"],
        prepare: |world| {
            world.publish();
            world.write();
        },
        damage: Damage::None,
        is_done: |world| {
            world.assert_published();
            assert!(!world.one.snapshot(&world.machine.hub()).exists());
            assert!(!world.two.snapshot(&world.machine.hub()).exists());
        },
    },
    Command {
        line: &["verify", "--remote", "--deep"],
        prepare: World::publish,
        damage: Damage::None,
        is_done: World::assert_published,
    },
    Command {
        line: &["verify", "--remote", "--repair"],
        prepare: |world| {
            world.publish();
            world.write();
            world.store.remove(&world.one.blob_key("model.bin"));
            world.store.remove(&world.two.manifest_key());
        },
        damage: Damage::Bucket,
        is_done: World::assert_published,
    },
    #[cfg(unix)]
    Command {
        line: &["verify", "--repair"],
        prepare: |world| {
            world.publish();
            world.damage_cache();
        },
        damage: Damage::Cache,
        is_done: |world| {
            world.assert_published();
            world.one.assert_pulled(&world.machine.hub());
        },
    },
    Command {
        line: &["remote", "gc", "--yes"],
        prepare: |world| {
            world.publish();
            let (key, bytes) = unused();
            world.store.put(&key, bytes);
        },
        damage: Damage::None,
        is_done: |world| {
            world.assert_published();
            assert!(!world.store.has(&unused().0));
        },
    },
    Command {
        line: &["remote", "rm", "org/two", "--yes"],
        prepare: World::publish,
        damage: Damage::None,
        is_done: |world| {
            world.one.assert_published(&world.store);
            assert!(!world.store.has(&world.two.manifest_key()) && !world.store.has(&world.two.blob_key("b.txt")));
        },
    },
    Command {
        line: &["rm", "org/one", "--require-remote", "--yes"],
        prepare: |world| {
            world.publish();
            world.write();
        },
        damage: Damage::None,
        is_done: |world| {
            world.assert_published();
            assert!(!world.one.snapshot(&world.machine.hub()).exists());
        },
    },
];

/// Exit codes after a detectable failure: a reset, a rejection, a stall. None of them means that something is missing or
/// corrupt.
const HONEST: [i32; 3] = [0, 3, 6];
/// Exit codes after a response that may have misled the client.
const MISLED: [i32; 6] = [0, 1, 3, 4, 5, 6];

/// Asserts that a command has succeeded, or that its error is clear and has one of these exit codes.
#[track_caller]
fn assert_clear(ran: &Output, codes: &[i32], what: &str) {
    ran.nothing_internal();
    assert!(codes.contains(&ran.code), "{what}: {ran:#?}");
    if ran.code != 0 {
        let lines = ran.stderr.lines().count();
        assert!((1..=16).contains(&lines) && ran.stderr.contains("error: "), "{what}: {ran:#?}");
    }
}

/// Asserts the same after detectable failures. The exit code for damage that they kept from being repaired takes precedence.
#[track_caller]
fn assert_clear_failure(command: &Command, ran: &Output, codes: &[i32], what: &str) {
    if command.damage == Damage::None || ran.code != 5 {
        return assert_clear(ran, codes, what);
    }
    assert_clear(ran, &[5], what);
    let blames_bucket = ["not in bucket", "in the bucket is not valid", "corrupt in the bucket", "wrong size in the"];
    let is_honest = ran.stderr.contains("error: cannot ") && !blames_bucket.iter().any(|one| ran.stderr.contains(one));
    assert!(is_honest, "{what}: {ran:#?}");
}

/// Runs a command behind a fault and again without it, and asserts what the module documentation describes.
fn assert_survives(command: &Command, what: &str, rule: impl FnMut(&Passing) -> Fault + Send + 'static) -> Output {
    assert_survives_within(None, command, what, rule)
}

/// The same, with a timeout in seconds during the fault.
fn assert_survives_within(
    timeout: Option<u32>,
    command: &Command,
    what: &str,
    mut rule: impl FnMut(&Passing) -> Fault + Send + 'static,
) -> Output {
    let what = format!("{what}, {:?}", command.line);
    let mut world = World::new(command);
    if let Some(seconds) = timeout {
        world.machine.set("HF_CACHE_SYNC_TIMEOUT", &seconds.to_string());
    }
    let [is_misled, is_listing_wrong] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let noted = (is_misled.clone(), is_listing_wrong.clone());
    world.proxy.fail(move |request| {
        let fault = rule(request);
        if fault.may_mislead() {
            noted.0.store(true, Ordering::SeqCst);
        }
        if matches!(fault, Fault::FlipBody(_)) && request.key.is_empty() {
            noted.1.store(true, Ordering::SeqCst);
        }
        fault
    });
    let before = contents(&world.machine.hub());
    let ran = world.machine.run(command.line);
    let is_listing_wrong = is_listing_wrong.load(Ordering::SeqCst);
    // Nothing in a listing shows that it is wrong. Objects that it wrongly lacks or has may be kept without an error.
    if is_listing_wrong {
        ran.nothing_internal();
        assert!(MISLED.contains(&ran.code), "{what}: {ran:#?}");
    } else {
        match is_misled.load(Ordering::SeqCst) {
            true => assert_clear(&ran, &MISLED, &what),
            false => assert_clear_failure(command, &ran, &HONEST, &what),
        }
        if ran.code == 0 {
            (command.is_done)(&world);
        }
    }
    let is_repaired = ran.code == 0 && !is_listing_wrong;
    world.assert_sound(if is_repaired { Damage::None } else { command.damage }, &before);
    world.proxy.behave();
    world.machine.unset("HF_CACHE_SYNC_TIMEOUT");
    // Pushes would wait for the notice of a deletion that could not be removed.
    if ran.code != 0 {
        forget_deletions(&world.store);
    }
    let again = world.machine.run(command.line);
    // Objects that have been removed cannot be removed again.
    let is_gone = again.code == 4 && command.line.contains(&"rm");
    assert!(again.code == 0 || is_gone, "{what}: after {ran:#?}: {again:#?}");
    // If a manifest was deleted, but the response was wrong, its blobs are left for gc.
    if is_gone && command.line[0] == "remote" {
        let ran = world.machine.run(&["remote", "gc", "--yes"]);
        assert_eq!(ran.code, 0, "{what}: {ran:#?}");
    }
    world.assert_sound(Damage::None, &before);
    (command.is_done)(&world);
    ran
}

fn forget_deletions(store: &Store) {
    let notices = store.keys().into_iter().filter(|key| key.starts_with("_hf_cache_sync_gc/"));
    notices.for_each(|key| store.age(&key, -7200));
}

/// Returns the requests that a command makes without a fault.
fn requests(command: &Command) -> Vec<Passing> {
    let world = World::new(command);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    world.proxy.fail(move |request| {
        noted.lock().unwrap().push(request.clone());
        Fault::None
    });
    let ran = world.machine.run(command.line);
    assert_eq!(ran.code, 0, "{:?}: {ran:#?}", command.line);
    (command.is_done)(&world);
    std::mem::take(&mut seen.lock().unwrap())
}

type MakeFault = fn(&mut fastrand::Rng) -> Fault;

/// The faults of a single request or response.
const ACCIDENTS: [(&str, MakeFault); 11] = [
    ("reset before the server", |_| Fault::ResetBefore),
    ("reset in the head", |random| Fault::ResetAfter(random.usize(..60))),
    ("reset in the middle", |random| Fault::ResetAfter(random.usize(60..2000))),
    ("closed in the body", |random| Fault::CloseAfter(random.usize(..300))),
    ("a flipped bit in the status line", |random| Fault::FlipHead(random.usize(..15))),
    ("a flipped bit in the head", |random| Fault::FlipHead(random.usize(..300))),
    ("a flipped bit in the body", |random| Fault::FlipBody(random.usize(..))),
    ("a flipped bit in the request", |random| Fault::FlipRequest(random.usize(..))),
    ("500", |_| Fault::Refuse(500, "InternalError", "we are sorry")),
    ("503", |_| Fault::Refuse(503, "SlowDown", "later")),
    ("429", |_| Fault::Refuse(429, "", "")),
];

/// Runs a test for all commands concurrently, with the random choices and the number of requests of each.
fn with_every_command(test: impl Fn(u64, &'static Command, fastrand::Rng, usize) + Sync) {
    let (seed, test) = (seed(), &test);
    std::thread::scope(|scope| {
        for (number, command) in COMMANDS.iter().enumerate() {
            scope.spawn(move || {
                let random = fastrand::Rng::with_seed(seed.wrapping_add(number as u64));
                test(seed, command, random, requests(command).len());
            });
        }
    });
}

/// One fault in each run, at a random request. `SEED` repeats a run, and `FAULT_ROUNDS` is the number of faults of each kind
/// for each command (1 by default).
#[test]
fn a_single_network_fault_does_no_harm() {
    let rounds = std::env::var("FAULT_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    with_every_command(|seed, command, mut random, count| {
        for (name, fault) in ACCIDENTS {
            for _ in 0..rounds {
                let (at, fault) = (random.usize(..count), fault(&mut random));
                let what = format!("seed {seed}, {name} at request {at}");
                assert_survives(command, &what, move |request| match request.number == at {
                    true => fault.clone(),
                    false => Fault::None,
                });
            }
        }
    });
}

/// Faults that keep a connection open, but deliver nothing or next to nothing.
const STALLS: [(&str, Fault); 4] = [
    ("a stall in a head", Fault::Stall(Place::Head)),
    ("a stall in a body", Fault::Stall(Place::Body)),
    ("a trickling body", Fault::Trickle(Place::Body)),
    ("a stall in a request", Fault::StallRequest),
];

/// A single stall is detected, and the request is sent again.
#[test]
fn a_stalled_connection_is_closed_and_replaced() {
    with_every_command(|seed, command, mut random, count| {
        std::thread::scope(|scope| {
            for (name, fault) in STALLS {
                let at = random.usize(..count);
                scope.spawn(move || {
                    let what = format!("seed {seed}, {name} at request {at}");
                    let ran =
                        assert_survives_within(Some(5), command, &what, move |request| match request.number == at {
                            true => fault.clone(),
                            false => Fault::None,
                        });
                    // A busy machine may stall once more.
                    let is_expected = ran.code == 0 || ran.stderr.contains("stalled");
                    assert!(is_expected, "{what}, {:?}: {ran:#?}", command.line);
                });
            }
        });
    });
}

/// A stall that recurs with every attempt is an error after a few attempts, each of which takes as long as the timeout.
#[test]
fn a_store_that_stalls_is_one_clear_error() {
    type IsHit = fn(&Passing) -> bool;
    let is_blob: IsHit = |request| request.is("GET", "blobs/");
    // The slowest ones first.
    let is_manifest: IsHit = |request| request.is("GET", "manifests/");
    let stalls: [(&str, IsHit, Fault); 8] = [
        ("every change stalls", |request| ["PUT", "POST", "DELETE"].contains(&&*request.method), Fault::StallRequest),
        ("every blob stalls", is_blob, Fault::Stall(Place::Body)),
        ("every blob trickles", is_blob, Fault::Trickle(Place::Body)),
        ("every manifest stalls", is_manifest, Fault::Stall(Place::Body)),
        ("every manifest trickles", is_manifest, Fault::Trickle(Place::Body)),
        ("every head stalls", |_| true, Fault::Stall(Place::Head)),
        ("every listing stalls", Passing::is_list, Fault::Stall(Place::Body)),
        ("every page of a listing trickles", Passing::is_list, Fault::Trickle(Place::Body)),
    ];
    let requests: Vec<Vec<Passing>> = std::thread::scope(|scope| {
        let running: Vec<_> = COMMANDS.iter().map(|command| scope.spawn(|| requests(command))).collect();
        running.into_iter().map(|running| running.join().unwrap()).collect()
    });
    let mut cases = Vec::new();
    for stall in stalls {
        let hit = COMMANDS.iter().zip(&requests).filter(|(_, requests)| requests.iter().any(stall.1));
        cases.extend(hit.map(|(command, _)| (command, stall.clone())));
    }
    let next = Mutex::new(cases.into_iter());
    std::thread::scope(|scope| {
        // They mostly wait. If all ran at once, the machine would be too busy to respond within the timeout.
        for _ in 0..20 {
            scope.spawn(|| {
                loop {
                    let Some((command, (what, is_hit, fault))) = next.lock().unwrap().next() else { return };
                    let ran = assert_survives_within(Some(1), command, what, move |request| match is_hit(request) {
                        true => fault.clone(),
                        false => Fault::None,
                    });
                    let what = format!("{what}, {:?}", command.line);
                    assert_clear_failure(command, &ran, &[6], &what);
                    assert!(ran.stderr.contains("stalled"), "{what}: {ran:#?}");
                }
            });
        }
    });
}

/// A burst of rejections that hits all requests for a short time is waited out.
#[test]
fn a_burst_of_rejections_is_retried() {
    std::thread::scope(|scope| {
        for command in COMMANDS {
            for (status, code) in [(500, "InternalError"), (503, "SlowDown")] {
                scope.spawn(move || {
                    let burst = AtomicUsize::new(0);
                    let ran = assert_survives(command, "a burst", move |request| {
                        match request.number >= 1 && burst.fetch_add(1, Ordering::SeqCst) < 3 {
                            true => Fault::Refuse(status, code, "later"),
                            false => Fault::None,
                        }
                    });
                    assert_eq!(ran.code, 0, "{:?}: {ran:#?}", command.line);
                });
            }
        }
    });
}

/// A store that rejects or breaks everything from some request on.
#[test]
fn a_store_that_is_lost_during_a_run_is_one_clear_error() {
    let losses: [(&str, Fault, &[i32]); 4] = [
        ("403", Fault::Refuse(403, "AccessDenied", "Access Denied"), &[3]),
        ("expired credentials", Fault::Refuse(400, "ExpiredToken", "The provided token has expired."), &[3]),
        ("503", Fault::Refuse(503, "SlowDown", "Please reduce your request rate."), &[6]),
        ("resets", Fault::ResetBefore, &[6]),
    ];
    std::thread::scope(|scope| {
        for command in COMMANDS {
            for (name, fault, codes) in losses.clone() {
                scope.spawn(move || {
                    let from = requests(command).len() / 2;
                    let ran = assert_survives(command, name, move |request| match request.number >= from {
                        true => fault.clone(),
                        false => Fault::None,
                    });
                    // The last requests of a command may be dispensable.
                    let codes = [&[0], codes].concat();
                    assert_clear_failure(command, &ran, &codes, &format!("{name}, {:?}", command.line));
                });
            }
        }
    });
}

/// The server disappears and comes back, and refuses connections in the meantime.
#[test]
fn a_server_that_refuses_connections_is_one_clear_error() {
    for command in COMMANDS {
        let world = World::new(command);
        let before = contents(&world.machine.hub());
        world.proxy.cut_off();
        let ran = world.machine.run(command.line);
        assert!(ran.stderr.contains("cannot connect to"), "{:?}: {ran:#?}", command.line);
        assert_clear_failure(command, &ran, &[6], "refused");
        world.assert_sound(command.damage, &before);
        world.proxy.restore();
        world.machine.ok(command.line);
        world.assert_sound(Damage::None, &before);
        (command.is_done)(&world);
    }
}

/// Changes the text of a listing.
type Edit = fn(&str) -> String;

/// Changes every listing of objects.
fn listings(change: Edit) -> impl FnMut(&Passing) -> Fault + Send + 'static {
    move |request| match request.is_list() {
        true => Fault::edit(move |response: &mut Response| response.edit(change)),
        false => Fault::None,
    }
}

fn entries(xml: &str) -> Vec<String> {
    let rest = xml.split("<Contents>").skip(1);
    rest.map(|rest| format!("<Contents>{}</Contents>", rest.split("</Contents>").next().unwrap())).collect()
}

/// Returns a listing with these entries.
fn with_entries(xml: &str, changed: &[String]) -> String {
    let bare = entries(xml).iter().fold(xml.to_string(), |xml, entry| xml.replace(entry, ""));
    let bare = match (bare.split_once("<KeyCount>"), bare.split_once("</KeyCount>")) {
        (Some((before, _)), Some((_, after))) => format!("{before}{after}"),
        _ => bare,
    };
    bare.replace("</ListBucketResult>", &format!("{}</ListBucketResult>", changed.concat()))
}

#[test]
fn listings_out_of_order_or_with_repetitions_are_read_completely() {
    let odd: [(&str, Edit); 2] = [
        ("out of order", |xml| {
            let mut all = entries(xml);
            all.reverse();
            with_entries(xml, &all)
        }),
        ("twice", |xml| with_entries(xml, &[entries(xml), entries(xml)].concat())),
    ];
    for (what, change) in odd {
        for command in COMMANDS {
            let ran = assert_survives(command, what, listings(change));
            assert_eq!(ran.code, 0, "{what}, {:?}: {ran:#?}", command.line);
        }
    }
}

#[test]
fn invalid_listings_are_one_clear_error_and_nothing_is_done() {
    let wrong: [(&str, Edit); 5] = [
        ("a token that repeats for ever", |xml| {
            let more = "<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>";
            let xml = xml.replace("<IsTruncated>false</IsTruncated>", "");
            xml.replace("</ListBucketResult>", &format!("{more}</ListBucketResult>"))
        }),
        ("a key outside the prefix", |xml| {
            let entry = "<Contents><Key>elsewhere/x</Key><Size>1</Size></Contents>".to_string();
            with_entries(xml, &[entries(xml), vec![entry]].concat())
        }),
        ("an error with status 200", |_| {
            "<?xml version=\"1.0\"?><Error><Code>InternalError</Code><Message>sorry</Message></Error>".into()
        }),
        ("no end of the document", |xml| xml[..xml.len() / 2].into()),
        ("another document", |_| "<html><body>log in</body></html>".into()),
    ];
    std::thread::scope(|scope| {
        for (what, change) in wrong {
            for command in COMMANDS {
                scope.spawn(move || {
                    let world = World::new(command);
                    let (bucket, cache) = (world.store.objects(), contents(&world.machine.hub()));
                    world.proxy.fail(listings(change));
                    let ran = world.machine.run(command.line);
                    let what = format!("{what}, {:?}", command.line);
                    assert_clear_failure(command, &ran, &[1, 6], &what);
                    assert_eq!(world.store.objects(), bucket, "{what}");
                    match command.damage {
                        // The repair of a blob needs no listing.
                        Damage::Cache => world.assert_no_new_damage(&cache),
                        _ => assert_eq!(contents(&world.machine.hub()), cache, "{what}"),
                    }
                    world.proxy.behave();
                    world.machine.ok(command.line);
                    (command.is_done)(&world);
                });
            }
        }
    });
}

/// A page of a listing after the first one fails: its objects must not count as missing.
#[test]
fn a_later_page_that_fails_is_one_clear_error_and_nothing_is_done() {
    let failures: [(&str, Fault, &[i32]); 4] = [
        ("403", Fault::Refuse(403, "AccessDenied", "not entitled"), &[3]),
        ("500", Fault::Refuse(500, "InternalError", "we are sorry"), &[6]),
        ("a reset", Fault::ResetBefore, &[6]),
        ("an error with status 200", Fault::Refuse(200, "InternalError", "we are sorry"), &[1, 6]),
    ];
    std::thread::scope(|scope| {
        for (what, fault, codes) in failures {
            for command in COMMANDS {
                let fault = fault.clone();
                scope.spawn(move || {
                    let what = format!("{what}, {:?}", command.line);
                    let world = World::new(command);
                    // So that every listing has more than one page, of objects that do not concern the command.
                    let others = ["org/x", "org/y", "org/z"].map(|id| Revision::new("model", id).git("a.txt", id));
                    others.iter().for_each(|other| other.publish(&world.store));
                    world.store.server.set_page_size(2);
                    let (bucket, cache) = (world.store.objects(), contents(&world.machine.hub()));
                    let pages = Arc::new(AtomicUsize::new(0));
                    let counter = pages.clone();
                    world.proxy.fail(move |request| match request.query.contains("continuation-token") {
                        true => {
                            counter.fetch_add(1, Ordering::SeqCst);
                            fault.clone()
                        }
                        false => Fault::None,
                    });
                    let ran = world.machine.run(command.line);
                    let has_pages = pages.load(Ordering::SeqCst) > 0;
                    assert_eq!(has_pages, !READS_ONE_PAGE.contains(&command.line), "{what}: {ran:#?}");
                    if has_pages {
                        assert_clear(&ran, codes, &what);
                        assert_eq!(world.store.objects(), bucket, "{what}");
                        assert_eq!(contents(&world.machine.hub()), cache, "{what}");
                    }
                    world.proxy.behave();
                    if has_pages {
                        world.machine.ok(command.line);
                    }
                    (command.is_done)(&world);
                });
            }
        }
    });
}

/// Commands that list nothing, or less than a page.
const READS_ONE_PAGE: [&[&str]; 2] = [&["pull", "org/one"], &["verify", "--repair"]];

/// Some stores and proxies answer a read with status 200 and an error in the body. It is never taken for content: not for a
/// manifest that may be replaced or left out, not for a bad ref, not for the bytes of a blob.
#[test]
fn an_error_with_status_200_is_not_content() {
    const ERROR: Fault = Fault::Refuse(200, "InternalError", "We encountered an internal error. Please try again.");
    std::thread::scope(|scope| {
        for prefix in ["manifests/", "refs/", "blobs/"] {
            for command in COMMANDS {
                scope.spawn(move || {
                    let what = format!("200 with an error for {prefix}");
                    let ran = assert_survives(command, &what, move |request| match request.is("GET", prefix) {
                        true => ERROR,
                        false => Fault::None,
                    });
                    assert_clear_failure(command, &ran, &[0, 6], &format!("{what}, {:?}", command.line));
                    // Once for each key.
                    let failed = Mutex::new(std::collections::HashSet::new());
                    let ran = assert_survives(command, &what, move |request| {
                        match request.is("GET", prefix) && failed.lock().unwrap().insert(request.key.clone()) {
                            true => ERROR,
                            false => Fault::None,
                        }
                    });
                    assert_eq!(ran.code, 0, "{what}, once, {:?}: {ran:#?}", command.line);
                });
            }
        }
    });
}

/// A push of part of a revision keeps the entries of its manifest, even if the manifest seems to be an error.
#[test]
fn an_error_with_status_200_does_not_replace_a_manifest() {
    let store = Store::new();
    let proxy = Proxy::to(&store.server.url);
    let mut machine = Machine::unconfigured();
    machine.connect(&proxy.url, BUCKET, "test-region");
    let revision = Revision::model("org/one");
    revision.publish(&store);
    revision.clone().without(&["config.json"]).write(&machine.hub());
    for code in ["InternalError", "SlowDown", "AccessDenied", "SomethingElse"] {
        proxy.fail(move |request| match request.is("GET", "manifests/") {
            true => Fault::Refuse(200, code, "sorry"),
            false => Fault::None,
        });
        let ran = machine.run(&["push"]);
        assert_clear(&ran, &[1, 3, 6], code);
        assert_ne!(ran.code, 0, "{code}: {ran:#?}");
        revision.assert_published(&store);
    }
    proxy.behave();
    machine.ok(&["push"]);
    revision.assert_published(&store);
}

/// Stores without conditional writes answer 501 to them, and some answer 200 with an error in the body.
#[test]
fn refused_conditions_and_errors_with_status_200_are_handled() {
    for command in COMMANDS {
        let ran = assert_survives(command, "501", |request| match request.is_conditional() {
            true => Fault::Refuse(501, "NotImplemented", "A header you provided implies functionality"),
            false => Fault::None,
        });
        assert_eq!(ran.code, 0, "{:?}: {ran:#?}", command.line);
        // Every answer to a write is such an error once.
        let failed = Mutex::new(std::collections::HashSet::new());
        assert_survives(command, "200 with an error", move |request| {
            let is_write = request.method == "PUT" || request.method == "POST";
            match is_write && failed.lock().unwrap().insert((request.key.clone(), request.query.clone())) {
                true => Fault::Refuse(200, "InternalError", "We encountered an internal error. Please try again."),
                false => Fault::None,
            }
        });
    }
}

/// A large blob, so that it is read in ranges.
fn large() -> (Store, Proxy, Machine, Revision) {
    let store = Store::new();
    let proxy = Proxy::to(&store.server.url);
    let mut machine = Machine::unconfigured();
    machine.connect(&proxy.url, BUCKET, "test-region");
    let revision = Revision::new("model", "org/large").lfs("model.bin", weights(4, 9 << 20));
    (store, proxy, machine, revision)
}

/// Wrong ranges, and ranges with wrong bytes.
fn lies(whole: Vec<u8>) -> [(&'static str, Fault); 4] {
    [
        (
            "ranges are ignored",
            Fault::edit(move |response| {
                response.head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}", whole.len());
                response.body = whole.clone();
            }),
        ),
        ("another start", Fault::edit(|response| response.set_header("content-range", "bytes 7-8/9437184"))),
        ("another size", Fault::edit(|response| response.set_header("content-range", "bytes 0-8388607/77"))),
        ("other bytes", Fault::edit(|response| response.body.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1)))),
    ]
}

#[test]
fn ranges_that_a_store_ignores_or_lies_about_are_one_clear_error() {
    let repair: &[&str] = &["verify", "--repair"];
    let check: &[&str] = &["verify", "--remote", "--deep"];
    std::thread::scope(|scope| {
        for line in [&["pull", "org/large"], &["pull-all"][..], repair, check] {
            scope.spawn(move || {
                let (store, proxy, machine, revision) = large();
                revision.publish(&store);
                let (bucket, hub) = (store.objects(), machine.hub());
                let blob = revision.blob(&hub, "model.bin");
                for (what, lie) in lies(revision.file("model.bin").bytes.clone()) {
                    let what = format!("{what}, {line:?}");
                    if line == repair {
                        revision.write(&hub);
                        fs::write(&blob, "wrong").unwrap();
                    }
                    let is_hit = |request: &Passing| request.is("GET", "blobs/");
                    let fault = lie.clone();
                    proxy.fail(move |request| if is_hit(request) { fault.clone() } else { Fault::None });
                    let ran = machine.run(line);
                    if line == check {
                        // It reads a blob as a whole, so the result can be right in spite of most wrong ranges. A fault is
                        // not an error here.
                        let is_right = ran.code == 0 && !what.starts_with("other bytes");
                        assert!(is_right || ran.stdout.contains("1 fault found") || ran.code == 1, "{what}: {ran:#?}");
                        ran.nothing_internal();
                    } else {
                        assert_clear(&ran, &[1, 5], &what);
                    }
                    assert_eq!(store.objects(), bucket, "{what}");
                    if line == repair {
                        assert_eq!(fs::read(&blob).unwrap(), b"wrong", "{what}");
                    } else {
                        assert!(!revision.snapshot(&hub).exists(), "{what}");
                        assert_sound_cache(&hub);
                    }
                    // Only once: the command continues.
                    let told = AtomicUsize::new(0);
                    proxy.fail(move |request| match is_hit(request) && told.fetch_add(1, Ordering::SeqCst) == 0 {
                        true => lie.clone(),
                        false => Fault::None,
                    });
                    let ran = machine.run(line);
                    ran.nothing_internal();
                    assert!(MISLED.contains(&ran.code), "{what}: {ran:#?}");
                    proxy.behave();
                    machine.ok(line);
                    if line != check {
                        revision.assert_pulled(&hub);
                        fs::remove_dir_all(&hub).unwrap();
                    }
                }
            });
        }
    });
}

#[cfg(unix)]
#[test]
fn bytes_from_a_wrong_range_are_never_served() {
    let (store, proxy, machine, revision) = large();
    revision.publish(&store);
    let whole = &revision.file("model.bin").bytes;
    for (what, lie) in lies(whole.clone()) {
        let fault = lie.clone();
        proxy.fail(move |request| if request.is("GET", "blobs/") { fault.clone() } else { Fault::None });
        let serve = Serve::start(&machine, &[]);
        for range in ["", "bytes=0-99", "bytes=8500000-"] {
            let headers: &[(&str, &str)] = if range.is_empty() { &[] } else { &[("range", range)] };
            let answer = serve.ask("GET", "/org/large/resolve/main/model.bin", headers);
            let is_success = (200..300).contains(&answer.status);
            assert!(!(is_success && answer.is_complete), "{what}, '{range}': {answer:?}");
        }
        assert_sound_cache(&machine.hub());
        proxy.behave();
        drop(serve);
        let serve = Serve::start(&machine, &[]);
        let answer = serve.get("/org/large/resolve/main/model.bin");
        assert!(answer.is_complete && answer.body == *whole, "{what}: {answer:?}");
        revision.assert_pulled(&machine.hub());
        fs::remove_dir_all(machine.hub()).unwrap();
    }
}

/// Multipart uploads behind faults: damaged parts are sent again, and no part is sent twice without need.
#[test]
fn faults_during_a_multipart_upload_do_no_harm() {
    for (what, fault) in [
        ("reset", Fault::ResetBefore),
        ("no answer", Fault::ResetAfter(0)),
        ("a flipped bit", Fault::FlipRequest(77)),
        ("503", Fault::Refuse(503, "SlowDown", "later")),
    ] {
        for start in ["partNumber=2&", "uploads", "uploadId="] {
            let store = Store::new();
            let proxy = Proxy::to(&store.server.url);
            let mut machine = Machine::unconfigured();
            machine.connect(&proxy.url, BUCKET, "test-region");
            machine.set("HF_CACHE_SYNC_CHECKSUMS", "md5");
            let revision = Revision::new("model", "org/large").lfs("model.bin", weights(4, 17 << 20));
            revision.write(&machine.hub());
            let (times, fault) = (AtomicUsize::new(0), fault.clone());
            proxy.fail(move |request| {
                let is_it = request.query.starts_with(start) && (start != "uploadId=" || request.method == "POST");
                match is_it && times.fetch_add(1, Ordering::SeqCst) == 0 {
                    true => fault.clone(),
                    false => Fault::None,
                }
            });
            let ran = machine.run(&["push"]);
            assert_clear(&ran, &HONEST, what);
            assert_sound_bucket(&store);
            if ran.code == 0 {
                revision.assert_published(&store);
            }
            proxy.behave();
            machine.ok(&["push"]);
            revision.assert_published(&store);
            let sent = proxy.take_sent()[&revision.blob_key("model.bin")];
            assert!(sent < 35 << 20, "{what} at {start}: {sent} bytes were sent");
        }
    }
}

/// Asserts that a command fails because of a stall, and completes without it.
fn assert_resumes(machine: &mut Machine, proxy: &Proxy, line: &[&str], rule: fn(&Passing) -> Fault) {
    machine.set("HF_CACHE_SYNC_TIMEOUT", "5");
    proxy.fail(rule);
    let ran = machine.run(line);
    assert!(ran.stderr.contains("stalled"), "{ran:#?}");
    assert_clear(&ran, &[6], "a stall");
    proxy.behave();
    proxy.take_received();
    machine.unset("HF_CACHE_SYNC_TIMEOUT");
    machine.ok(line);
}

#[test]
fn a_large_download_resumes_after_a_stall() {
    let (store, proxy, mut machine, revision) = large();
    revision.publish(&store);
    assert_resumes(&mut machine, &proxy, &["pull", "org/large"], |request| match request.range() {
        Some((first, _)) if first >= 5 << 20 => Fault::Stall(Place::Body),
        _ => Fault::None,
    });
    revision.assert_pulled(&machine.hub());
    let received = proxy.take_received();
    assert!(received < 5 << 20, "{received} bytes were fetched again");
}

#[test]
fn a_large_upload_resumes_after_a_stall() {
    let (store, proxy, mut machine, _) = large();
    let revision = Revision::new("model", "org/large").lfs("model.bin", weights(4, 17 << 20));
    revision.write(&machine.hub());
    assert_resumes(&mut machine, &proxy, &["push"], |request| match request.query.starts_with("partNumber=1&") {
        true => Fault::StallRequest,
        false => Fault::None,
    });
    revision.assert_published(&store);
    let sent = proxy.take_sent()[&revision.blob_key("model.bin")];
    assert!(sent < 18 << 20, "{sent} bytes were sent");
}

/// Stored manifests that are damaged in transit must be neither used nor reported as damage in the bucket. A flipped digit
/// of a blob's name makes a blob look unused; a flipped letter of a path installs a file under another name.
#[test]
fn a_manifest_damaged_in_transit_is_read_again() {
    for (line, word) in [
        (&["pull", "org/one"][..], "config"),
        (&["pull-all"], "vocab"),
        (&["remote", "gc", "--yes"], "\"blob\": \""),
        (&["remote", "rm", "org/two", "--yes"], "\"blob\": \""),
        (&["verify", "--remote"], "\"blob\": \""),
        (&["prune", "--max-size", "0B", "--require-remote", "--yes"], "\"blob\": \""),
    ] {
        let command = COMMANDS.iter().find(|command| command.line.starts_with(&line[..1])).unwrap();
        let command = COMMANDS.iter().find(|command| command.line == line).unwrap_or(command);
        let world = World::new(command);
        let manifest = world.one.manifest_key();
        let text = world.store.text(&manifest);
        let at = text.find(word).unwrap() + word.len();
        let (times, key) = (AtomicUsize::new(0), manifest.clone());
        world.proxy.fail(move |request| match request.is("GET", &key) && times.fetch_add(1, Ordering::SeqCst) == 0 {
            true => Fault::FlipBody(at),
            false => Fault::None,
        });
        let before = contents(&world.machine.hub());
        world.machine.ok(line);
        world.assert_sound(Damage::None, &before);
        (command.is_done)(&world);
    }
}
