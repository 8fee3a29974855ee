//! `rm` with the real binary: named repos and revisions are removed, and data that others need is kept.

use std::fs::{self, File};
#[cfg(unix)]
use std::os::unix::fs::symlink;

use serde_json::Value;

use crate::harness::cache::Revision;
use crate::harness::cache_dir::{CacheDir, commit, id, set_last_used};
use crate::harness::machine::{Machine, Output};
use crate::harness::store::Store;

const A: &str = "models--org--a";
const B: &str = "datasets--org--b";

fn rm(hub: &CacheDir, args: &[&str]) -> Output {
    hub.machine.run(&[&["rm", "--json"], args].concat())
}

/// Runs `rm`, which must succeed, and returns the report.
fn removed(hub: &CacheDir, args: &[&str]) -> Value {
    let ran = rm(hub, args);
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran.json()
}

fn revisions(report: &Value) -> Vec<&str> {
    report["evicted"].as_array().unwrap().iter().map(|one| one["revision"].as_str().unwrap()).collect()
}

/// Two revisions that share a blob, with refs, and another repo.
fn setup() -> CacheDir {
    let hub = CacheDir::new();
    let (common, one, two) = (hub.blob(A, 1, 1000, 3), hub.blob(A, 2, 20, 3), hub.blob(A, 3, 30, 3));
    hub.snapshot(A, &commit(1), &[("weights", &common), ("config", &one)]);
    hub.snapshot(A, &commit(2), &[("weights", &common), ("config", &two)]);
    hub.reference(A, "main", &commit(2));
    hub.reference(A, "v1.0", &commit(1));
    hub.reference(A, "refs/pr/1", &commit(1));
    hub.write(&format!("{A}/trees/{}.json", commit(1)), "{}");
    hub.revision(B, 4, 100, 3);
    hub.reference(B, "main", &commit(4));
    hub
}

#[test]
fn a_whole_repo_is_removed() {
    let hub = setup();
    hub.blob(A, 5, 50, 0);
    let half = hub.write(&format!("{A}/blobs/{}.incomplete", id(6)), "half");
    set_last_used(&half, 600);
    hub.write(&format!(".locks/{A}/{}.lock", id(1)), "");
    let other = hub.contents_of(B);
    let planned = removed(&hub, &["org/a", "--dry-run"]);
    assert!(hub.exists(A) && planned["plan"]["actions"].as_array().unwrap().len() >= 4);
    let report = removed(&hub, &["org/a"]);
    assert_eq!((revisions(&report).len(), &report["freed"]), (2, &1104.into()));
    assert_eq!((&report["orphans"]["blobs"], &report["abandoned"]["blobs"]), (&1.into(), &1.into()));
    assert_eq!(report["repos_removed"][0]["repo"], "org/a");
    for key in ["evicted", "freed", "orphans", "abandoned", "repos_removed", "skipped"] {
        assert_eq!(planned[key], report[key], "{key}");
    }
    assert!(!hub.exists(A) && !hub.exists(&format!(".locks/{A}")));
    assert_eq!(hub.contents_of(B), other);
}

#[test]
fn one_revision_is_removed_with_its_refs_and_the_others_keep_their_blobs() {
    for revision in ["v1.0", "refs/pr/1", &commit(1), &commit(1)[..38]] {
        let hub = setup();
        if revision.len() == 38 {
            hub.machine.run(&["rm", "org/a", "-r", revision]).refused(2, &["ambiguous", &commit(1), &commit(2)]);
            continue;
        }
        let report = removed(&hub, &["org/a", "-r", revision]);
        assert_eq!((revisions(&report), &report["freed"]), (vec![commit(1).as_str()], &20.into()), "{revision}");
        let names = hub.contents_of(A).into_keys().filter(|name| !name.contains("/blobs/"));
        let left: Vec<String> = names.filter(|name| name.contains(&commit(1))).collect();
        assert_eq!(left, Vec::<String>::new());
        assert!(!hub.exists(&format!("{A}/refs/v1.0")) && !hub.exists(&format!("{A}/refs/refs")));
        assert!(hub.exists(&format!("{A}/snapshots/{}/weights", commit(2))) && hub.exists(&format!("{A}/refs/main")));
        assert!(hub.exists(&format!("{A}/blobs/{}", id(1))) && !hub.exists(&format!("{A}/blobs/{}", id(2))));
    }
    // The folder is removed with the last one.
    let hub = setup();
    let report = removed(&hub, &["org/a@v1.0", "org/a@main", "dataset:org/b"]);
    assert_eq!((revisions(&report).len(), hub.contents().len()), (3, 0), "{report:#}");
}

#[test]
fn a_missing_repo_or_revision_is_an_error_and_nothing_is_removed() {
    let hub = setup();
    let before = hub.contents();
    for (args, words) in [
        (&["org/x"][..], &["org/x is not in the cache", "did you mean org/a"][..]),
        (&["dataset:org/a"], &["org/a is a model there", "model:org/a"]),
        (&["org/a", "org/zzz"], &["org/zzz is not in the cache"]),
        (&["org/a", "-r", "v9"], &["revision 'v9' of org/a is not in this cache", "main"]),
    ] {
        hub.machine.run(&[&["rm"], args].concat()).refused(4, words);
    }
    hub.machine.run(&["rm", "org/a", "org/b", "-r", "main"]).refused(2, &["-r applies to one repo"]);
    assert_eq!(hub.machine.run(&["rm"]).code, 2);
    hub.machine.run(&["rm", "org/a", "--require-remote"]).refused(2, &["no bucket is configured"]);
    assert_eq!(hub.contents(), before);
    fs::remove_dir_all(hub.root()).unwrap();
    assert_eq!(hub.machine.run(&["rm", "org/a"]).code, 4);
}

#[test]
fn an_id_without_a_type_is_the_model_and_never_several() {
    let hub = CacheDir::new();
    for (number, folder) in [(1, "models--org--x"), (2, "datasets--org--x"), (3, "spaces--org--x")] {
        hub.revision(folder, number, 100, 3);
    }
    let report = removed(&hub, &["org/x"]);
    assert_eq!(report["evicted"][0]["repo_type"], "model");
    assert!(report["notes"][0].as_str().unwrap().contains("dataset:org/x"), "{report:#}");
    hub.machine.run(&["rm", "org/x"]).refused(2, &["a dataset and a space", "dataset:org/x"]);
    assert_eq!(removed(&hub, &["space:org/x"])["evicted"][0]["repo_type"], "space");
    assert_eq!(removed(&hub, &["org/x"])["evicted"][0]["repo_type"], "dataset");
    assert!(hub.contents().is_empty());
}

/// Anything another process may be using is kept and named, and counts as a failure.
#[test]
fn anything_in_use_is_kept() {
    let in_flight = |hub: &CacheDir| drop(hub.write(&format!("{A}/blobs/{}.incomplete", id(7)), "half"));
    let at_root = |hub: &CacheDir| drop(hub.write("tmp/aB3dE5f", "half"));
    let bad_ref = |hub: &CacheDir| drop(hub.write(&format!("{A}/refs/bad"), "not a commit"));
    let stranger = |hub: &CacheDir| hub.snapshot(A, "not-a-commit", &[("x", &id(1))]);
    type Spoil<'a> = &'a dyn Fn(&CacheDir);
    let cases: [(&str, Spoil); 4] =
        [("in-flight", &in_flight), ("in-flight", &at_root), ("bad-ref", &bad_ref), ("unknown", &stranger)];
    for (reason, spoil) in cases {
        let hub = setup();
        spoil(&hub);
        let before = hub.contents();
        for args in [&["org/a"][..], &["org/a", "-r", "v1.0"], &["org/a", "--dry-run"]] {
            let ran = rm(&hub, args);
            let report = ran.json();
            assert_eq!((ran.code, &report["skipped"][0]["reason"]), (1, &reason.into()), "{args:?}: {ran:#?}");
            assert!(ran.stderr.contains("kept ") && report["freed"] == 0, "{ran:#?}");
            ran.nothing_internal();
            let ran = hub.machine.run(&[&["rm"], args].concat());
            let would = if args.contains(&"--dry-run") {
                "Would free 0 B: everything would be"
            } else {
                "Freed 0 B: everything was"
            };
            assert!(ran.code == 1 && ran.stdout.contains(&format!("{would} kept.")), "{ran:#?}");
            assert!(reason != "in-flight" || ran.stderr.contains("wait until it has finished"), "{ran:#?}");
        }
        assert_eq!(hub.contents(), before, "{reason}");
    }
    let hub = setup();
    let lock = File::create(hub.write(&format!(".locks/{A}/{}.lock", id(9)), "")).unwrap();
    lock.lock().unwrap();
    let ran = hub.machine.run(&["rm", "org/a", "dataset:org/b"]);
    assert!(ran.code == 1 && ran.stderr.contains("kept org/a") && ran.stderr.contains("holds the lock"), "{ran:#?}");
    assert!(hub.exists(A) && !hub.exists(B), "one that is in use does not keep the other");
    lock.unlock().unwrap();
    assert_eq!(hub.machine.run(&["rm", "org/a", "-q"]).text(), "exit 0\n--- stdout\n--- stderr\n");
}

#[cfg(unix)]
#[test]
fn links_are_neither_followed_nor_broken() {
    let hub = setup();
    // A link from another repo into this one.
    let link = hub.path(&format!("{B}/snapshots/{}/borrowed", commit(4)));
    symlink(format!("../../../{A}/blobs/{}", id(1)), &link).unwrap();
    let before = hub.contents();
    let ran = rm(&hub, &["org/a"]);
    assert_eq!((ran.code, &ran.json()["skipped"][0]["reason"]), (1, &"needed-elsewhere".into()));
    assert_eq!(hub.contents(), before);
    fs::remove_file(&link).unwrap();
    // A repo that is itself a link.
    let elsewhere = hub.outside().join("elsewhere");
    fs::rename(hub.path(A), &elsewhere).unwrap();
    symlink(&elsewhere, hub.path(A)).unwrap();
    let ran = rm(&hub, &["org/a"]);
    assert_eq!((ran.code, &ran.json()["skipped"][0]["reason"]), (1, &"link".into()), "{ran:#?}");
    assert!(elsewhere.join(format!("blobs/{}", id(1))).exists());
}

#[cfg(unix)]
#[test]
fn a_shared_payload_stays_for_the_repo_that_needs_it() {
    let hub = CacheDir::new();
    let payload = hub.payload(7, 5000, 40, &[(A, &id(1)), (B, &id(1))]);
    for repo in [A, B] {
        hub.snapshot(repo, &commit(1), &[("weights", &id(1))]);
        hub.reference(repo, "main", &commit(1));
    }
    assert_eq!(removed(&hub, &["org/a"])["freed"], 0);
    assert!(payload.exists() && !hub.exists(A) && hub.exists(&format!("{B}/snapshots/{}/weights", commit(1))));
    assert_eq!(removed(&hub, &["dataset:org/b"])["freed"], 5000);
    assert!(!payload.exists() && !hub.exists(B));
}

#[test]
fn with_require_remote_and_no_bucket_nothing_is_removed() {
    let mut hub = setup();
    hub.machine.connect("http://127.0.0.1:9", "bucket", "test-region");
    let before = hub.contents();
    hub.machine
        .run(&["rm", "org/a", "--require-remote"])
        .refused(6, &["nothing was removed: cannot list bucket 'bucket'", "cannot connect"]);
    assert_eq!(hub.contents(), before);
}

#[test]
fn with_require_remote_only_held_revisions_are_removed() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let (one, two) = (Revision::model("org/one"), Revision::model("org/another"));
    one.write(&machine.hub());
    two.write(&machine.hub());
    machine.ok(&["push", "-q", "org/one"]);
    let ran = machine.run(&["rm", "org/one", "org/another", "--require-remote"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("kept org/another@") && ran.stderr.contains("no manifest"), "{ran:#?}");
    assert!(!one.dir(&machine.hub()).exists() && two.snapshot(&machine.hub()).exists());
    machine.ok(&["pull", "org/one"]);
    one.assert_pulled(&machine.hub());
    // Without an answer, nothing is removed.
    store.server.on_request(|_| crate::harness::s3::Action::Refuse(403, "AccessDenied", "Access Denied"));
    machine.run(&["rm", "org/one", "--require-remote"]).refused(3, &["not allowed"]);
    one.assert_pulled(&machine.hub());
}

#[cfg(target_os = "linux")]
#[test]
fn rm_asks_on_a_terminal() {
    use std::io::{Read, Write};
    use std::process::Stdio;
    for (typed, is_gone) in [("n\n", false), ("y\n", true)] {
        let hub = setup();
        let mut command = hub.machine.on_terminal(100, "rm org/a --no-progress");
        command.env("NO_COLOR", "1").env("TERM", "dumb");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (mut said, mut byte) = (Vec::new(), [0]);
        while stdout.read(&mut byte).unwrap() == 1 {
            said.push(byte[0]);
            if said.ends_with(b"[y/N] ") {
                stdin.write_all(typed.as_bytes()).unwrap();
            }
        }
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("Remove this? [y/N]") && said.contains("refs/pr/1, v1.0"), "{said}");
        assert_eq!((child.wait().unwrap().code(), hub.exists(A)), (Some(0), !is_gone), "{said}");
        assert_eq!(said.contains("Nothing was removed."), !is_gone, "{said}");
    }
}

/// Both in the repo itself and in another one, which may link to anything.
#[cfg(unix)]
#[test]
fn an_unreadable_folder_is_a_permission_error() {
    use std::os::unix::fs::PermissionsExt;
    let chmod = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for place in [A.to_string(), format!("{A}/blobs"), format!("{A}/snapshots"), B.to_string()] {
        let hub = setup();
        let before = hub.contents();
        chmod(&hub.path(&place), 0o000);
        let ran = hub.machine.run_as_owner(&["rm", "org/a"]);
        chmod(&hub.path(&place), 0o755);
        assert_eq!(ran.code, 3, "{place}: {ran:#?}");
        assert_eq!(ran.stderr.matches("error: ").count(), 1, "{place}: {ran:#?}");
        assert_eq!(hub.contents(), before, "{place}");
    }
}

#[cfg(unix)]
#[test]
fn a_read_only_cache_is_a_permission_error() {
    let hub = setup();
    let before = hub.contents();
    let ran = hub.machine.run_read_only(&["rm", "org/a"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    ran.nothing_internal();
    assert_eq!(hub.contents(), before);
}
