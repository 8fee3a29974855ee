//! `prune` by the real binary, on cache folders of every layout.

use std::fs::{self, File};
use std::io::{Read, Write};
#[cfg(unix)]
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::cache_dir::{CacheDir, DAY, commit, disk_usage, id, used};
use crate::harness::machine::{self, Output};

const A: &str = "models--org--a";
const B: &str = "datasets--org--b";
const LENDER: &str = "models--good--b";

fn prune_line<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["prune"], args].concat()
}

fn run(hub: &CacheDir, args: &[&str]) -> Output {
    hub.machine.run(&prune_line(args))
}

/// Runs as a user for whom permissions count.
#[cfg(unix)]
fn run_as_owner(hub: &CacheDir, args: &[&str]) -> Output {
    hub.machine.run_as_owner(&prune_line(args))
}

/// What was said, without the time that its first line has in a log.
fn untimed(said: &str) -> String {
    said.split_once("Z  ").map(|(_, rest)| rest.to_string()).unwrap_or_else(|| panic!("no time: {said}"))
}

/// Runs with a budget in bytes, demands success, and checks the report against the disk.
fn prune(hub: &CacheDir, budget: u64, args: &[&str]) -> Value {
    let before = disk_usage_of_blobs(hub);
    let budget = format!("{budget}B");
    let ran = run(hub, &[&["--json", "--max-size", &budget], args].concat());
    assert!(ran.code == 0, "{}{}", ran.stdout, ran.stderr);
    let report = ran.json();
    assert_eq!(report["size_before"], before, "{report:#}");
    if report["dry_run"] == false {
        assert_eq!(report["freed"], before - disk_usage_of_blobs(hub), "{report:#}");
    }
    report
}

/// All but refs, trees and lists, which no budget counts.
fn disk_usage_of_blobs(hub: &CacheDir) -> u64 {
    disk_usage(&hub.root(), |name| {
        let small = ["/refs/", "/trees/", ".refs", "/.huggingface-shared-blobs", ".metadata/"]
            .iter()
            .any(|part| name.contains(part));
        !small
    })
}

fn evicted(report: &Value) -> Vec<String> {
    let all = report["evicted"].as_array().unwrap();
    all.iter().map(|one| one["revision"].as_str().unwrap().to_string()).collect()
}

fn reasons(report: &Value) -> Vec<String> {
    let all = report["skipped"].as_array().unwrap();
    all.iter().map(|one| one["reason"].as_str().unwrap().to_string()).collect()
}

#[test]
fn the_least_recently_used_detached_revision_goes_first_and_no_more_than_needed() {
    let hub = CacheDir::new();
    let commits = [(1, 3), (2, 30), (3, 10)].map(|(number, days)| hub.revision(A, number, 100, days));
    let other = hub.revision(B, 4, 100, 20);
    hub.reference(A, "main", &commits[0]);
    let report = prune(&hub, 200, &[]);
    assert_eq!(evicted(&report), [commits[1].clone(), other]);
    assert_eq!((&report["size"], &report["over_budget"]), (&200.into(), &0.into()));
    assert!(hub.exists(&format!("{A}/snapshots/{}/model.bin", commits[2])));
    assert!(!hub.exists(&format!("{A}/snapshots/{}", commits[1])) && !hub.exists(&format!("{A}/blobs/{}", id(2))));
    assert!(!hub.exists(B), "of that repo nothing is left");
}

#[test]
fn reading_counts_as_use() {
    let hub = CacheDir::new();
    let commits = [hub.revision(A, 1, 100, 30), hub.revision(A, 2, 100, 20)];
    let now = fs::FileTimes::new().set_accessed(std::time::SystemTime::now());
    File::open(hub.path(&format!("{A}/blobs/{}", id(1)))).unwrap().set_times(now).unwrap();
    assert_eq!(evicted(&prune(&hub, 150, &[])), [commits[1].clone()]);
}

#[test]
fn within_the_budget_nothing_happens() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    let before = hub.contents();
    let ran = run(&hub, &["--max-size", "100B", "-q"]);
    assert!(ran.code == 0 && ran.stdout.is_empty() && ran.stderr.is_empty());
    let ran = run(&hub, &["--max-gb", "0.001"]);
    assert_eq!(untimed(&ran.stdout), "Freed 0 B: nothing to delete; 100 B of the 1.0 MiB budget used.\n");
    assert_eq!(hub.contents(), before);
}

#[test]
fn what_a_ref_names_is_kept_and_the_missed_budget_is_said() {
    let hub = CacheDir::new();
    let main = hub.revision(A, 1, 3000, 30);
    let tag = hub.revision(A, 2, 100, 20);
    let detached = hub.revision(A, 3, 100, 1);
    hub.reference(A, "main", &main);
    hub.reference(A, "refs/pr/1", &tag);
    let report = prune(&hub, 50, &[]);
    assert_eq!(evicted(&report), [detached]);
    assert_eq!((&report["size"], &report["over_budget"]), (&3100.into(), &3050.into()));
    assert_eq!(reasons(&report), ["referenced", "referenced"]);
    let ran = run(&hub, &["--max-size", "50B"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(
        untimed(&ran.stdout),
        "Freed 0 B: nothing to delete; 3.0 KiB used.\n\
         Over the budget of 50 B by 3.0 KiB: 2 revisions (3.0 KiB) have refs; use --include-referenced to evict these too.\n"
    );
    let ran = run(&hub, &["--max-size", "50B", "--fail-over-budget", "-q"]);
    assert_eq!(ran.code, 1);
    // Cron sends what is on either stream; a missed budget is no failure by itself, but never a secret.
    for args in [&["-q"][..], &["-q", "--fail-over-budget"], &["--json"], &["-q", "--json"]] {
        let ran = run(&hub, &[&["--max-size", "50B"], args].concat());
        let said = "warning: over the budget of 50 B by 3.0 KiB: 2 revisions (3.0 KiB) have refs; \
                    use --include-referenced to evict these too.\n";
        assert_eq!(ran.stderr, said, "{args:?}");
        assert_eq!(ran.stdout.is_empty(), !args.contains(&"--json"), "{args:?}");
    }
    let ran = run(&hub, &["--max-size", "5000B", "-q"]);
    assert!(ran.stdout.is_empty() && ran.stderr.is_empty());
}

/// What keeps how much, the largest first, and what helps.
#[test]
fn a_missed_budget_is_explained() {
    let missed = |hub: &CacheDir| {
        let ran = run(hub, &["--max-size", "10B", "-q", "--include-referenced"]);
        assert_eq!(ran.code, 0, "{ran:#?}");
        ran.stderr
    };
    let hub = CacheDir::new();
    hub.revision(A, 1, 3000, 30);
    hub.blob(A, 2, 1000, 30);
    let file = hub.write(&format!("{A}/blobs/{}.part", id(3)), "half");
    let said = missed(&hub);
    assert!(
        said.contains("kept possible downloads in flight (3.9 KiB)") && said.contains("no download is in progress")
    );
    fs::remove_file(file).unwrap();
    let lock = File::create(hub.path(&format!("{A}/blobs/{}.lock", id(3)))).unwrap();
    lock.lock().unwrap();
    let said = missed(&hub);
    assert!(said.contains("kept items locked by another process (3.9 KiB)"), "{said}");
    drop(lock);
    fs::hard_link(hub.path(&format!("{A}/blobs/{}", id(1))), hub.outside().join("mine")).unwrap();
    let said = missed(&hub);
    assert!(said.contains("2.9 KiB are hard-linked from outside the cache"), "{said}");
}

#[test]
fn referenced_revisions_go_with_their_refs_trees_and_absences() {
    let hub = CacheDir::new();
    let old = hub.revision(A, 1, 100, 30);
    let new = hub.revision(A, 2, 100, 20);
    hub.reference(A, "refs/pr/1", &old);
    hub.reference(A, "old", &old);
    hub.reference(A, "main", &new);
    for commit in [&old, &new] {
        hub.write(&format!("{A}/trees/{commit}.json"), "{}");
        hub.write(&format!("{A}/.no_exist/{commit}/sub/adapter.json"), "");
    }
    let report = prune(&hub, 100, &["--include-referenced"]);
    assert_eq!(evicted(&report), std::slice::from_ref(&old));
    let names: Vec<String> = hub.contents().into_keys().filter(|name| name.contains(&old)).collect();
    assert_eq!(names, Vec::<String>::new());
    assert!(!hub.exists(&format!("{A}/refs/refs")) && !hub.exists(&format!("{A}/refs/old")));
    assert_eq!(fs::read_to_string(hub.path(&format!("{A}/refs/main"))).unwrap(), new);
    assert!(
        hub.exists(&format!("{A}/trees/{new}.json")) && hub.exists(&format!("{A}/.no_exist/{new}/sub/adapter.json"))
    );

    let report = prune(&hub, 0, &["--include-referenced"]);
    assert_eq!((&report["repos_removed"][0]["repo"], &report["size"]), (&"org/a".into(), &0.into()));
    assert!(hub.contents().is_empty(), "{:?}", hub.contents());
}

#[test]
fn blobs_of_kept_revisions_stay_and_do_not_count_as_freed() {
    let hub = CacheDir::new();
    let (common, own, new) = (hub.blob(A, 1, 1000, 30), hub.blob(A, 2, 10, 30), hub.blob(A, 3, 20, 1));
    hub.snapshot(A, &commit(1), &[("weights", &common), ("config", &own)]);
    hub.snapshot(A, &commit(2), &[("deep/er/weights", &common), ("config", &new)]);
    hub.snapshot(A, &commit(3), &[("weights", &common)]);
    hub.reference(A, "main", &commit(2));
    let report = prune(&hub, 1000, &[]);
    assert_eq!(evicted(&report), [commit(1)], "{report:#}");
    assert_eq!((&report["freed"], &report["over_budget"]), (&10.into(), &20.into()));
    assert_eq!(reasons(&report), ["frees-nothing", "referenced"]);
    assert!(hub.exists(&format!("{A}/blobs/{common}")) && hub.exists(&format!("{A}/snapshots/{}/weights", commit(3))));
}

#[test]
fn what_orphans_give_back_saves_a_revision() {
    let hub = CacheDir::new();
    let kept = hub.revision(A, 1, 100, 30);
    hub.blob(A, 2, 100, 30);
    assert_eq!(evicted(&prune(&hub, 100, &[])), Vec::<String>::new());
    assert!(hub.exists(&format!("{A}/snapshots/{kept}/model.bin")));
}

/// 0.1.0 mixes the types: one blob name and one commit in a model and a dataset of one id are two files here.
#[test]
fn a_model_and_a_dataset_of_one_name_are_two_repos() {
    let hub = CacheDir::new();
    let (model, dataset) = ("models--org--x", "datasets--org--x");
    let old = hub.revision(model, 1, 100, 30);
    hub.revision(dataset, 1, 100, 20);
    hub.reference(dataset, "main", &old);
    let report = prune(&hub, 100, &["--include-referenced"]);
    assert_eq!((&report["evicted"][0]["repo_type"], &report["freed"]), (&"model".into(), &100.into()));
    assert_eq!(report["evicted"].as_array().unwrap().len(), 1);
    assert!(!hub.exists(model) && hub.exists(&format!("{dataset}/snapshots/{old}/model.bin")));
}

#[test]
fn revisions_that_only_together_hold_a_blob_free_it_together() {
    let hub = CacheDir::new();
    let blob = hub.blob(A, 1, 1000, 30);
    for number in [1, 2] {
        hub.snapshot(A, &commit(number), &[("weights", &blob)]);
    }
    let report = prune(&hub, 10, &[]);
    assert_eq!((evicted(&report).len(), &report["freed"]), (2, &1000.into()));
}

#[test]
fn a_dry_run_says_what_a_run_does_and_changes_nothing() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "main", &commit(1));
    hub.revision(A, 2, 200, 20);
    hub.blob(A, 9, 50, 5);
    let before = hub.contents();
    let planned = prune(&hub, 150, &["--dry-run"]);
    let said = run(&hub, &["--max-size", "150B", "--dry-run"]).stdout;
    let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    let words = "org/a 000000000000 200 B 2 weeks ago no ref names it";
    assert_eq!(rows[1].join(" "), words, "{said}");
    assert_eq!(rows[2].join(" "), "org/a 1 blob 50 B - no revision uses it", "{said}");
    assert!(rows[0].join(" ") == "Repo Revision Size Last used Why" && said.contains("\nWould free 250 B: "), "{said}");
    assert_eq!(hub.contents(), before);
    assert!(!hub.exists(".locks"), "not even a lock");
    let done = prune(&hub, 150, &[]);
    for key in ["freed", "size", "evicted", "orphans", "over_budget", "skipped"] {
        assert_eq!(planned[key], done[key], "{key}");
    }
    assert_eq!(done["freed"], 250);
}

/// 0.1.0 takes every blob that is a link for an orphan, and leaks its payload.
#[cfg(unix)]
#[test]
fn a_cache_with_the_shared_store_within_its_budget_stays_as_it_is() {
    let hub = CacheDir::new();
    hub.payload(7, 5000, 40, &[(A, &id(1)), (B, &id(1))]);
    for repo in [A, B] {
        hub.snapshot(repo, &commit(1), &[("weights", &id(1))]);
        hub.reference(repo, "main", &commit(1));
    }
    let before = hub.contents();
    let report = prune(&hub, 5000, &["--orphan-grace", "0"]);
    assert_eq!((&report["size"], &report["freed"]), (&5000.into(), &0.into()));
    assert_eq!(hub.contents(), before);
}

#[cfg(unix)]
#[test]
fn a_payload_is_freed_with_its_last_link_and_its_list_follows() {
    let hub = CacheDir::new();
    let payload = hub.payload(7, 5000, 40, &[(A, &id(1)), (B, &id(1))]);
    let list = payload.with_extension("refs");
    for repo in [A, B] {
        let own = hub.blob(repo, 2, 30, 35);
        hub.snapshot(repo, &commit(1), &[("weights", &id(1)), ("config", &own)]);
    }
    hub.reference(A, "main", &commit(1));
    let report = prune(&hub, 100, &[]);
    assert_eq!((evicted(&report).len(), &report["freed"]), (1, &30.into()));
    assert_eq!(fs::read_to_string(&list).unwrap(), format!("{A}/blobs/{}\n", id(1)));
    assert!(payload.exists() && !hub.exists(B));

    let report = prune(&hub, 100, &["--include-referenced"]);
    assert_eq!((&report["freed"], &report["size"]), (&5030.into(), &0.into()));
    assert!(!payload.exists() && !list.exists() && payload.with_extension("lock").exists());
    assert!(hub.exists("blobs/.huggingface-shared-blobs"));
}

/// A root that is written with `..` or reached through a link is the same cache.
#[cfg(unix)]
#[test]
fn the_shared_store_is_recognised_however_the_root_is_spelled() {
    let hub = CacheDir::new();
    hub.payload(7, 5000, 40, &[(A, &id(1))]);
    hub.snapshot(A, &commit(1), &[("weights", &id(1))]);
    symlink(hub.root(), hub.outside().join("link")).unwrap();
    fs::create_dir(hub.outside().join("sub")).unwrap();
    let before = hub.contents();
    for root in ["hub", "sub/../hub", "./hub/", "link", "link/."] {
        let mut command = hub.machine.command(&["prune", "--json", "--dry-run", "--max-size", "0B"]);
        command.current_dir(hub.outside()).env("HF_HUB_CACHE", root);
        let report = machine::run(command).json();
        assert_eq!((&report["freed"], evicted(&report)), (&5000.into(), vec![commit(1)]), "{root}: {report:#}");
    }
    assert_eq!(hub.contents(), before);
}

#[cfg(unix)]
#[test]
fn payloads_that_nobody_links_to_go_and_those_without_a_list_stay() {
    let hub = CacheDir::new();
    let (unused, young, unlisted) =
        (hub.payload(1, 10, 2, &[]), hub.payload(2, 20, 0, &[]), hub.payload(3, 30, 2, &[]));
    fs::remove_file(unlisted.with_extension("refs")).unwrap();
    assert_eq!(prune(&hub, 1000, &[])["freed"], 0, "something just came into its folder, or went");
    used(unused.parent().unwrap(), 2 * DAY);
    let report = prune(&hub, 1000, &[]);
    assert_eq!((&report["freed"], &report["orphans"]["blobs"]), (&10.into(), &1.into()));
    assert_eq!(reasons(&report), ["young", "unlisted"]);
    assert!(!unused.exists() && young.exists() && unlisted.exists());
}

#[cfg(unix)]
#[test]
fn a_fresh_link_to_an_old_payload_is_young() {
    let hub = CacheDir::new();
    hub.payload(7, 5000, 40, &[(A, &id(1))]);
    let report = prune(&hub, 10_000, &[]);
    assert_eq!(reasons(&report), ["young"]);
    assert!(hub.exists(&format!("{A}/blobs/{}", id(1))));
    assert_eq!(prune(&hub, 10_000, &["--orphan-grace", "0"])["freed"], 5000);
}

#[test]
fn hard_links_count_once_and_come_back_with_the_last_name() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 1000, 30);
    fs::create_dir_all(hub.path(&format!("{B}/blobs"))).unwrap();
    fs::hard_link(hub.path(&format!("{A}/blobs/{}", id(1))), hub.path(&format!("{B}/blobs/{}", id(1)))).unwrap();
    hub.snapshot(B, &commit(1), &[("weights", &id(1))]);
    hub.reference(B, "main", &commit(1));
    let report = prune(&hub, 100, &[]);
    assert_eq!((&report["size_before"], &report["freed"]), (&1000.into(), &0.into()));
    assert_eq!(reasons(&report), ["frees-nothing", "referenced"]);
    assert_eq!(prune(&hub, 100, &["--include-referenced"])["freed"], 1000);
}

#[test]
fn a_name_outside_the_cache_keeps_the_bytes() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 1000, 30);
    fs::hard_link(hub.path(&format!("{A}/blobs/{}", id(1))), hub.outside().join("mine")).unwrap();
    let ran = run(&hub, &["--json", "--max-size", "100B"]);
    let report = ran.json();
    assert_eq!((&report["freed"], reasons(&report)), (&0.into(), vec!["frees-nothing".to_string()]));
}

#[test]
fn snapshots_of_real_files_are_evicted_whole() {
    let hub = CacheDir::new();
    for (number, days) in [(1, 30), (2, 20)] {
        let file = hub.write(&format!("{A}/snapshots/{}/sub/model.bin", commit(number)), vec![b'r'; 100]);
        used(&file, days * DAY);
    }
    // A blob that the second one is a copy of, and one that it is a hard link to, are not orphans.
    hub.blob(A, 3, 100, 20);
    let blob = hub.blob(A, 4, 77, 20);
    let linked = hub.path(&format!("{A}/snapshots/{}/linked", commit(2)));
    fs::hard_link(hub.path(&format!("{A}/blobs/{blob}")), linked).unwrap();
    hub.reference(A, "main", &commit(2));
    let report = prune(&hub, 277, &[]);
    assert_eq!((evicted(&report), &report["freed"]), (vec![commit(1)], &100.into()));
    assert_eq!(report["orphans"]["blobs"], 0);
    assert_eq!(prune(&hub, 0, &["--include-referenced"])["freed"], 277);
    assert!(hub.contents().is_empty());
}

#[test]
fn a_broken_link_keeps_its_repo_and_the_rest_goes_on() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.snapshot(A, &commit(2), &[("lost", &id(99))]);
    hub.blob(A, 3, 100, 30);
    hub.revision(B, 4, 100, 20);
    let before: Vec<String> = hub.contents().into_keys().filter(|name| name.starts_with(A)).collect();
    let report = prune(&hub, 0, &[]);
    assert_eq!(evicted(&report), [commit(4)]);
    assert_eq!(reasons(&report), ["undecidable"]);
    assert_eq!(hub.contents().into_keys().collect::<Vec<_>>(), before);
}

/// To the client, any folder in snapshots/ is a revision, and it may use any blob.
#[test]
fn a_foreign_snapshot_folder_keeps_the_blobs_of_its_repo() {
    let hub = CacheDir::new();
    let blob = hub.blob(A, 1, 100, 30);
    hub.snapshot(A, "not-a-commit", &[("model.bin", &blob)]);
    assert_eq!(prune(&hub, 0, &[])["freed"], 0);
    assert!(hub.exists(&format!("{A}/blobs/{blob}")));
}

#[cfg(unix)]
#[test]
fn a_link_from_another_repo_keeps_the_blobs_of_this_one() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    let snapshot = hub.path(&format!("{B}/snapshots/{}", commit(2)));
    fs::create_dir_all(&snapshot).unwrap();
    symlink(format!("../../../{A}/blobs/{}", id(1)), snapshot.join("weights")).unwrap();
    let report = prune(&hub, 0, &[]);
    assert_eq!(
        (&report["freed"], reasons(&report)),
        (&0.into(), vec!["undecidable".into(), "needed-elsewhere".into()])
    );
    assert!(snapshot.join("weights").exists());
}

/// By hand, to save space: a blob, or the folder of blobs, is a link into another repo.
#[cfg(unix)]
#[test]
fn a_repo_that_another_takes_its_blobs_from_is_left_alone() {
    for whole in [true, false] {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.blob(A, 2, 10, 30);
        hub.snapshot(B, &commit(2), &[("model.bin", &id(2))]);
        if whole {
            symlink(format!("../{A}/blobs"), hub.path(&format!("{B}/blobs"))).unwrap();
        } else {
            fs::create_dir(hub.path(&format!("{B}/blobs"))).unwrap();
            symlink(format!("../../{A}/blobs/{}", id(2)), hub.path(&format!("{B}/blobs/{}", id(2)))).unwrap();
        }
        let before = hub.contents();
        let ran = run(&hub, &["--max-size", "0B", "--include-referenced", "--json"]);
        let report = ran.json();
        assert!(reasons(&report).contains(&"needed-elsewhere".to_string()), "{report:#}");
        assert_eq!(hub.contents(), before);
    }
}

#[test]
fn what_cannot_be_read_is_a_failure_and_keeps_its_repo() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.write("models--org--file", "a file where a folder should be");
    hub.snapshot(B, &commit(2), &[]);
    hub.write(&format!("{B}/blobs"), "a file where a folder should be");
    let ran = run(&hub, &["--max-size", "0B"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("\norg/a  000000000000"), "{}", ran.stdout);
    let errors = ran.stderr;
    assert!(errors.contains("models--org--file") && errors.contains(&format!("{B}/blobs")), "{errors}");
    assert!(hub.exists("models--org--file") && hub.exists(&format!("{B}/snapshots/{}", commit(2))) && !hub.exists(A));
}

#[cfg(unix)]
#[test]
fn a_name_that_is_not_utf8_is_shown_in_json_too() {
    use std::os::unix::ffi::OsStrExt;
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    let stray = hub.path(A).join("snapshots").join(commit(1)).join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    fs::write(stray, "").unwrap();
    let ran = run(&hub, &["--max-size", "0B", "--json"]);
    let report = ran.json();
    assert!(report.to_string().contains("caf\u{fffd}"), "{report:#}");
    assert!(hub.exists(&format!("{A}/blobs/{}", id(1))));
}

#[cfg(unix)]
#[test]
fn an_unreadable_folder_is_said_once() {
    use std::os::unix::fs::PermissionsExt;
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.revision(B, 2, 100, 20);
    let folder = hub.path(A);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o000)).unwrap();
    let ran = run_as_owner(&hub, &["--max-size", "0B"]);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(ran.code, 1);
    let errors = ran.stderr;
    assert_eq!(errors.matches("error: ").count(), 1, "{errors}");
    // It may hold a link to anything: what that keeps is said.
    assert!(errors.contains("models--org--a (100 B): it cannot be read"), "{errors}");
    assert!(hub.exists(&format!("{A}/snapshots/{}/model.bin", commit(1))) && hub.exists(B));
}

/// `org/a` takes its weights from `good/b`, by a link that was made by hand, and none of b's revisions has a ref.
#[cfg(unix)]
fn borrowed(hub: &CacheDir) {
    hub.revision(LENDER, 1, 100, 30);
    hub.blob(LENDER, 2, 50, 30);
    fs::create_dir_all(hub.path(&format!("{A}/blobs"))).unwrap();
    let snapshot = hub.path(&format!("{A}/snapshots/{}/sub", commit(3)));
    fs::create_dir_all(&snapshot).unwrap();
    symlink(format!("../../../../{LENDER}/blobs/{}", id(2)), snapshot.join("weights")).unwrap();
    hub.reference(A, "main", &commit(3));
}

/// Whatever part of a repo cannot be read may hold the link that needs the blob.
#[cfg(unix)]
#[test]
fn an_unreadable_place_anywhere_keeps_what_it_may_need() {
    use std::os::unix::fs::PermissionsExt;
    let snapshot = format!("{A}/snapshots/{}", commit(3));
    let places = [
        A.to_string(),
        format!("{A}/snapshots"),
        snapshot.clone(),
        format!("{snapshot}/sub"),
        format!("{A}/refs"),
        format!("{A}/blobs"),
    ];
    for place in &places {
        // 0444: the names can be read, but not what they are.
        for mode in [0o000, 0o444, 0o111] {
            let hub = CacheDir::new();
            borrowed(&hub);
            let before = hub.contents();
            let folder = hub.path(place);
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            let ran = run_as_owner(&hub, &["--max-size", "0B", "--include-referenced", "--orphan-grace", "0"]);
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
            let said = format!("{place} {mode:o}: {}{}", ran.stdout, ran.stderr);
            assert_eq!(hub.contents(), before, "{said}");
            assert!(ran.code == 1 || mode == 0o444 || mode == 0o111, "{said}");
        }
    }
}

/// The same where permissions do not bind: links that go in a circle, and other things in place of a folder.
#[cfg(unix)]
#[test]
fn a_place_that_is_no_folder_any_more_keeps_what_it_may_have_needed() {
    let snapshot = format!("{A}/snapshots/{}", commit(3));
    for place in [A.to_string(), format!("{A}/snapshots"), snapshot.clone(), format!("{A}/blobs")] {
        for kind in ["loop", "fifo", "unmounted", "gone"] {
            let hub = CacheDir::new();
            borrowed(&hub);
            let path = hub.path(&place);
            fs::rename(&path, hub.outside().join("aside")).unwrap();
            match kind {
                "loop" => symlink(path.file_name().unwrap(), &path).unwrap(),
                "unmounted" => symlink("/not-mounted/elsewhere", &path).unwrap(),
                "gone" => symlink("/not-mounted/models--good--b/blobs", &path).unwrap(),
                _ => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
            }
            let before = hub.contents_of(LENDER);
            let ran = run(&hub, &["--max-size", "0B", "--include-referenced", "--orphan-grace", "0"]);
            let said = format!("{place} {kind}: {}{}", ran.stdout, ran.stderr);
            assert_eq!(hub.contents_of(LENDER), before, "{said}");
        }
    }
}

#[cfg(unix)]
#[test]
fn links_keep_a_repo_however_they_are_spelled_and_wherever_they_lie() {
    let real = |hub: &CacheDir| hub.root().join(LENDER).join("blobs").join(id(2));
    let alias = |hub: &CacheDir| {
        symlink(hub.root(), hub.outside().join("alias")).unwrap();
        hub.outside().join("alias").join(LENDER).join("blobs").join(id(2))
    };
    let hops = |hub: &CacheDir| {
        symlink(hub.root().join(LENDER), hub.outside().join("first")).unwrap();
        symlink(hub.outside().join("first/blobs"), hub.outside().join("second")).unwrap();
        hub.outside().join("second").join(id(2))
    };
    let doubled = |hub: &CacheDir| format!("{}//./{LENDER}/refs/../blobs//{}", hub.root().display(), id(2)).into();
    type Target = fn(&CacheDir) -> std::path::PathBuf;
    let targets: [Target; 4] = [real, alias, hops, doubled];
    let places = [
        format!("{A}/snapshots/{}/sub/weights", commit(3)),
        format!("{A}/snapshots/not-a-commit/weights"),
        format!("{A}/blobs/{}", id(2)),
        format!("{A}/blobs/README"),
        format!("{A}/strange/deep/weights"),
        "widgets--org--w/snapshots/x/weights".to_string(),
        "backup/models--org--a/snapshots/x/weights".to_string(),
        "weights".to_string(),
    ];
    for (number, target) in targets.iter().enumerate() {
        for place in &places {
            let hub = CacheDir::new();
            hub.revision(LENDER, 1, 100, 30);
            hub.blob(LENDER, 2, 50, 30);
            hub.write(&format!("{LENDER}/refs/x"), commit(1));
            let link = hub.path(place);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(target(&hub), &link).unwrap();
            let before = hub.contents();
            let ran = run(&hub, &["--max-size", "0B", "--include-referenced", "--orphan-grace", "0"]);
            let said = format!("{place} {number}: {}{}", ran.stdout, ran.stderr);
            assert_eq!(hub.contents(), before, "{said}");
            assert!(said.contains("a link elsewhere points into it"), "{said}");
        }
    }
}

/// The snapshot lies on another disk, and a link stands for it.
#[cfg(unix)]
#[test]
fn a_snapshot_behind_a_link_keeps_what_its_files_lead_to() {
    let hub = CacheDir::new();
    borrowed(&hub);
    let snapshot = hub.path(&format!("{A}/snapshots/{}", commit(3)));
    let outside = hub.outside().join("disk");
    fs::create_dir_all(outside.join("sub")).unwrap();
    symlink(hub.path(&format!("models--good--b/blobs/{}", id(2))), outside.join("sub/weights")).unwrap();
    fs::remove_dir_all(&snapshot).unwrap();
    symlink(&outside, &snapshot).unwrap();
    let before = hub.contents();
    run(&hub, &["--max-size", "0B", "--include-referenced", "--orphan-grace", "0"]);
    assert_eq!(hub.contents(), before);
}

/// A folder that its user may not write to cannot be moved.
#[cfg(unix)]
#[test]
fn a_snapshot_that_cannot_be_deleted_keeps_its_refs() {
    use std::os::unix::fs::PermissionsExt;
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "main", &commit(1));
    hub.reference(A, "refs/pr/1", &commit(1));
    let snapshot = hub.path(&format!("{A}/snapshots/{}", commit(1)));
    fs::set_permissions(&snapshot, fs::Permissions::from_mode(0o555)).unwrap();
    let before = hub.contents();
    let ran = run_as_owner(&hub, &["--max-size", "0B", "--include-referenced"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot delete"), "{}", ran.stderr);
    assert_eq!(hub.contents(), before);
    fs::set_permissions(&snapshot, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(run_as_owner(&hub, &["--max-size", "0B", "--include-referenced"]).code == 0);
    assert!(!hub.exists(A));
}

/// 0.1.0 deletes downloads that are in flight.
#[test]
fn a_download_in_flight_is_left_alone_with_its_repo() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    for name in [format!("{}.0a1b2c3d.incomplete", id(5)), format!("{}.incomplete", id(6)), "tmp_0b0e".into()] {
        hub.write(&format!("{A}/blobs/{name}"), "half");
    }
    hub.write(&format!("{A}/refs/main.0a1b2c3d.tmp"), "");
    let before = hub.contents();
    let report = prune(&hub, 0, &["--orphan-grace", "0"]);
    assert_eq!(hub.contents(), before);
    assert!(reasons(&report).iter().all(|reason| reason == "in-flight"));
}

/// What each client's unfinished download in a repo is called.
fn unfinished(number: u64) -> Vec<String> {
    let ends = [".incomplete", ".0a1b2c3d.incomplete", ".part", "..part", ".sync.part", ".downloadInProgress"];
    ends.iter().map(|end| format!("{A}/blobs/{}{end}", id(number))).collect()
}

/// llama.cpp links its files only after all have arrived: until then, finished shards lie there unlinked.
#[test]
fn what_any_client_is_still_downloading_keeps_its_whole_repo() {
    let mut names = unfinished(5);
    names.push(format!("{A}/snapshots/{}/model.gguf.downloadInProgress", commit(1)));
    names.push(format!("{A}/refs/main.0a1b2c3d.tmp"));
    for name in names {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.reference(A, "lost", &commit(9));
        used(&hub.path(&format!("{A}/refs/lost")), 30 * DAY);
        let shard = hub.blob(A, 2, 200, 2);
        hub.revision(B, 3, 100, 30);
        // A ref is no more than a name: it does not count.
        let file = hub.write(&name, if name.contains("/refs/") { "" } else { "half" });
        used(&file, 3600);
        for args in [&["--dry-run"][..], &[]] {
            let report = prune(&hub, 0, args);
            assert_eq!(evicted(&report), [commit(3)], "{name}: {report:#}");
            assert!(hub.exists(&format!("{A}/blobs/{shard}")) && hub.exists(&format!("{A}/refs/lost")), "{name}");
            let kept = report["skipped"].as_array().unwrap().iter().find(|skip| skip["bytes"] == 300);
            assert_eq!(kept.map(|skip| &skip["reason"]), Some(&"in-flight".into()), "{name}: {report:#}");
        }
        used(&file, 2 * DAY);
        let report = prune(&hub, 0, &[]);
        assert_eq!((&report["abandoned"]["blobs"], &report["size"]), (&1.into(), &0.into()), "{name}: {report:#}");
        assert!(!file.exists() && !hub.exists(A), "{name}");
    }
}

/// Old huggingface_hub and hf-hub 0.3 download at the root: nobody can tell for which repo.
#[test]
fn a_download_at_the_root_keeps_every_repo_until_it_is_old() {
    for name in ["tmpa1b2c3d4", "tmp_x9_k2ab", "tmp/aB3dE5f"] {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.blob(B, 2, 100, 30);
        let file = hub.write(name, "half");
        let before = hub.contents();
        let report = prune(&hub, 0, &["--orphan-grace", "0"]);
        assert_eq!((hub.contents(), reasons(&report)), (before, vec!["in-flight".to_string()]), "{name}");
        assert_eq!(&report["skipped"][0]["bytes"], 200, "{name}");
        used(&file, 2 * DAY);
        let report = prune(&hub, 0, &[]);
        assert_eq!((&report["abandoned"]["blobs"], &report["freed"]), (&1.into(), &204.into()), "{name}");
        assert!(!hub.exists(A) && !hub.exists(&format!("{B}/blobs/{}", id(2))) && !hub.exists(name));
    }
}

/// The client's symlink probe, and what is no download.
#[test]
fn other_things_called_tmp_stand_in_nobody_s_way() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    fs::create_dir_all(hub.path("tmpprobe01/x")).unwrap();
    hub.write("tmp-notes.txt", "mine");
    hub.write("tmp/notes.txt", "mine");
    assert!(run(&hub, &["--max-size", "0B"]).code == 0);
    assert!(!hub.exists(A) && hub.exists("tmp-notes.txt") && hub.exists("tmp/notes.txt") && hub.exists("tmpprobe01/x"));
}

/// hf-hub 0.4 and 0.5 and old huggingface_hub have their locks in `blobs/`, swift-huggingface in a folder more.
#[test]
fn a_lock_of_any_client_keeps_its_repo_and_a_free_one_is_no_noise() {
    for place in [format!("{A}/blobs"), format!(".locks/{A}/blobs"), format!(".locks/{A}")] {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.blob(A, 2, 10, 30);
        hub.write(&format!(".metadata/{A}/{}.json", commit(1)), "{}");
        let path = hub.write(&format!("{place}/{}.lock", id(2)), "");
        used(&path, DAY);
        let lock = File::open(&path).unwrap();
        lock.lock().unwrap();
        let report = prune(&hub, 0, &[]);
        assert_eq!((evicted(&report).len(), &report["freed"], reasons(&report)), (0, &0.into(), vec!["held".into()]));
        drop(lock);
        let report = prune(&hub, 0, &[]);
        assert_eq!((&report["freed"], reasons(&report)), (&110.into(), vec![]), "{place}");
        assert!(!hub.exists(A), "{place}");
    }
}

/// hf-hub finds a pinned commit by a ref that is called like it. It goes with the commit, and keeps it no longer.
#[test]
fn a_ref_called_like_its_commit_does_not_keep_it() {
    let hub = CacheDir::new();
    for (number, days) in [(1, 30), (2, 20)] {
        hub.revision(A, number, 100, days);
        hub.reference(A, &commit(number), &commit(number));
    }
    hub.reference(A, "main", &commit(2));
    hub.reference(A, &commit(9), &commit(9));
    used(&hub.path(&format!("{A}/refs/{}", commit(9))), DAY);
    let report = prune(&hub, 100, &[]);
    assert_eq!((evicted(&report), &report["evicted"][0]["reason"]), (vec![commit(1)], &"detached".into()));
    assert_eq!(report["refs_removed"][0]["name"], commit(9));
    let refs: Vec<String> = hub.contents().into_keys().filter(|name| name.contains("/refs/")).collect();
    assert_eq!(refs, [format!("{A}/refs/"), format!("{A}/refs/{}", commit(2)), format!("{A}/refs/main")]);
}

#[test]
fn abandoned_downloads_go_unless_their_lock_is_held() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "main", &commit(1));
    let names = [format!("{}.0a1b2c3d.incomplete", id(5)), format!("{}.incomplete", id(6)), "tmp_0b0e".into()];
    for name in &names {
        used(&hub.write(&format!("{A}/blobs/{name}"), "half"), 2 * DAY);
    }
    used(&hub.write(&format!("{A}/refs/main.0a1b2c3d.tmp"), ""), 2 * DAY);
    let lock = File::create(hub.write(&format!(".locks/{A}/{}.lock", id(6)), "")).unwrap();
    lock.lock().unwrap();
    let report = prune(&hub, 0, &["--include-referenced"]);
    assert_eq!((reasons(&report), &report["abandoned"]["blobs"]), (vec!["held".into(), "in-flight".into()], &3.into()));
    assert_eq!(evicted(&report).len(), 0, "the client that holds the lock may need what is here");
    let left: Vec<bool> = names.iter().map(|name| hub.exists(&format!("{A}/blobs/{name}"))).collect();
    assert_eq!(left, [false, true, false]);
    assert!(!hub.exists(&format!("{A}/refs/main.0a1b2c3d.tmp")));
    assert!(!hub.exists(&format!(".locks/{A}/{}.lock", id(5))), "no lock file is left that was not there before");
}

#[test]
fn a_branch_called_like_a_temporary_is_a_ref() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "wip.tmp", &commit(1));
    assert_eq!(reasons(&prune(&hub, 0, &[])), ["referenced"]);
}

#[test]
fn a_repo_that_a_client_downloaded_into_moments_ago_is_busy() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 0);
    let lock = hub.write(&format!(".locks/{A}/{}.lock", id(1)), "");
    assert_eq!(reasons(&prune(&hub, 0, &[])), ["busy"]);
    // Some clients leave the lock's time as it is when they take it again; the blob's tells then.
    used(&lock, DAY);
    used(&hub.path(&format!("{A}/blobs/{}", id(1))), 1);
    assert_eq!(reasons(&prune(&hub, 0, &[])), ["busy"]);
    used(&hub.path(&format!("{A}/blobs/{}", id(1))), DAY);
    assert_eq!(evicted(&prune(&hub, 0, &[])), [commit(1)]);
    assert!(!hub.exists(&format!(".locks/{A}")), "the locks of a repo that is gone go too");
}

/// Nobody has to wait after a download that has ended.
#[test]
fn right_after_a_complete_download_what_is_over_the_budget_goes() {
    let hub = CacheDir::new();
    for (number, days) in [(1, 30), (2, 0), (3, 0)] {
        hub.revision(A, number, 100, days);
        hub.write(&format!(".locks/{A}/{}.lock", id(number)), "");
        let entry = r#"{"size":100,"blob_id":"ce013625030ba8dba906f756967f9e9ca394464a"}"#;
        let other = if number == 3 { format!(r#","other":{entry}"#) } else { String::new() };
        let tree = format!(r#"{{"format_version":1,"files":{{"model.bin":{entry}{other}}}}}"#);
        hub.write(&format!("{A}/trees/{}.json", commit(number)), tree);
    }
    used(&hub.path(&format!("{A}/blobs/{}", id(2))), 60);
    let report = prune(&hub, 0, &[]);
    assert_eq!((evicted(&report), reasons(&report)), (vec![commit(1), commit(2)], vec!["busy".to_string()]));
    // The one that lacks a file may be on its way.
    assert!(hub.exists(&format!("{A}/snapshots/{}/model.bin", commit(3))));
}

#[test]
fn orphans_go_when_they_are_old_enough_within_the_budget_too() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "main", &commit(1));
    let (old, young) = (hub.blob(A, 2, 10, 1), hub.blob(A, 3, 20, 0));
    let report = prune(&hub, 1000, &[]);
    assert_eq!((&report["freed"], reasons(&report)), (&10.into(), vec!["young".to_string()]));
    assert!(!hub.exists(&format!("{A}/blobs/{old}")) && hub.exists(&format!("{A}/blobs/{young}")));
    assert_eq!(prune(&hub, 1000, &["--orphan-grace", "0"])["freed"], 20);
}

/// `cp -a`, `rsync -a` and `tar` keep old times, and bring blobs before snapshots.
#[test]
fn a_repo_that_is_being_copied_here_is_left_alone() {
    let hub = CacheDir::new();
    hub.blob(A, 1, 10, 30);
    hub.blob(A, 2, 20, 0);
    let report = prune(&hub, 0, &[]);
    assert_eq!((&report["freed"], reasons(&report)), (&0.into(), vec!["young".to_string(); 2]));
    hub.snapshot(A, &commit(1), &[("a", &id(1))]);
    assert_eq!(prune(&hub, 1000, &["--orphan-grace", "0"])["freed"], 20);
}

/// Blobs of one more revision come first, and nothing but the folders tells that something came.
#[test]
fn blobs_that_came_with_old_times_wait_for_their_snapshot() {
    for (known, touched) in [(false, ""), (false, "blobs"), (true, ""), (true, "blobs"), (true, "snapshots")] {
        let hub = CacheDir::new();
        if known {
            hub.revision(A, 1, 10, 30);
            hub.reference(A, "main", &commit(1));
        }
        hub.blob(A, 2, 20, 30);
        fs::create_dir_all(hub.path(&format!("{A}/snapshots"))).unwrap();
        hub.backdate_folders(A);
        used(&hub.path(&format!("{A}/{touched}")), 60);
        assert_eq!(prune(&hub, 1000, &[])["freed"], 0, "{known} {touched}");
        hub.backdate_folders(A);
        assert_eq!(prune(&hub, 1000, &[])["freed"], 20, "{known} {touched}");
    }
}

/// Of `rsync`, `aria2c` and whoever else writes here.
#[test]
fn what_any_program_is_still_writing_keeps_its_repo() {
    let hash = id(7);
    let names = ["tmp", "tmp.123", "part.tmp", "aria2", "download", "partial", "INCOMPLETE"];
    let names = names.map(|end| format!("blobs/{hash}.{end}")).into_iter();
    let others = [&format!("blobs/.{hash}.Xa1B2c"), "blobs/tmpabc123", "tmp/abc", "tmpabc", ".metadata/x.incomplete"];
    for name in names.chain(others.map(String::from)) {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.blob(A, 2, 50, 30);
        let file = hub.write(&format!("{A}/{name}"), "half");
        let before = hub.contents();
        assert!(run(&hub, &["--max-size", "0B", "--include-referenced"]).code == 0);
        assert_eq!(hub.contents(), before, "{name}");
        used(&file, 2 * DAY);
        assert!(run(&hub, &["--max-size", "0B"]).code == 0);
        assert!(!hub.exists(&format!("{A}/blobs/{}", id(1))) && !hub.exists(&format!("{A}/blobs/{}", id(2))), "{name}");
        assert!(file.exists() || !name.starts_with("blobs/"), "{name}");
    }
}

#[test]
fn files_of_people_at_the_root_stay() {
    let hub = CacheDir::new();
    for name in ["tmpnotes", "tmpl", "tmp/abcdefg", "tmp/x", "tmpcheckout"] {
        used(&hub.write(name, "mine"), 90 * DAY);
    }
    let before = hub.contents();
    assert!(run(&hub, &["--max-size", "0B"]).code == 0);
    assert_eq!(hub.contents(), before);
}

/// What the scan passes over may be somebody's view of a repo.
#[cfg(unix)]
#[test]
fn links_in_places_that_mean_nothing_keep_their_repo() {
    let snapshot = format!("{A}/snapshots/{}", commit(3));
    let places = [
        format!("{snapshot}/.DS_Store"),
        format!("{snapshot}/m.bin~"),
        format!("{snapshot}/@eaDir/m.bin"),
        format!("{A}/snapshots/@eaDir/m.bin"),
        "tmpview/m.bin".into(),
        "tmpcurrent".into(),
        ".snapshots/m.bin".into(),
        ".metadata/m.bin".into(),
        format!("{A}/tmpview/m.bin"),
        format!("{A}/.metadata/m.bin"),
        format!("{A}/.no_exist/m.bin"),
        format!("{LENDER}/current"),
    ];
    for place in places {
        for target in [format!("snapshots/{}", commit(1)), format!("blobs/{}", id(1))] {
            let hub = CacheDir::new();
            hub.revision(LENDER, 1, 100, 30);
            hub.blob(LENDER, 2, 50, 30);
            hub.revision(A, 3, 10, 30);
            hub.reference(A, "main", &commit(3));
            let link = hub.path(&place);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(hub.root().join(LENDER).join(target), &link).unwrap();
            hub.backdate_folders(LENDER);
            let before = hub.contents();
            prune(&hub, 0, &[]);
            assert_eq!(hub.contents(), before, "{place}");
        }
    }
}

/// Litter that nobody can look into may be a folder of the commit, or somebody's view.
#[cfg(unix)]
#[test]
fn an_unreadable_place_called_like_litter_keeps_what_it_may_need() {
    use std::os::unix::fs::PermissionsExt;
    let snapshot = format!("{A}/snapshots/{}", commit(1));
    let places = [format!("{snapshot}/.sync"), format!("{A}/snapshots/@eaDir"), ".snapshot".into(), "tmpq".into()];
    for (place, kept) in places.into_iter().map(|place| (place, true)).chain([("lost+found".into(), false)]) {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.reference(A, "main", &commit(1));
        hub.blob(A, 2, 50, 30);
        fs::create_dir_all(hub.path(&place)).unwrap();
        hub.backdate_folders(A);
        fs::set_permissions(hub.path(&place), fs::Permissions::from_mode(0o000)).unwrap();
        let ran = run_as_owner(&hub, &["--max-gb", "1"]);
        fs::set_permissions(hub.path(&place), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(ran.code, if kept { 1 } else { 0 }, "{place}: {}", ran.stderr);
        assert_eq!(hub.exists(&format!("{A}/blobs/{}", id(2))), kept, "{place}");
    }
}

#[test]
fn a_blob_whose_lock_a_client_holds_is_left() {
    let hub = CacheDir::new();
    hub.blob(A, 2, 10, 1);
    let path = hub.write(&format!(".locks/{A}/{}.lock", id(2)), "");
    used(&path, DAY);
    let lock = File::open(&path).unwrap();
    lock.lock().unwrap();
    let report = prune(&hub, 0, &[]);
    assert_eq!((&report["freed"], reasons(&report)), (&0.into(), vec!["held".to_string()]));
    assert!(hub.exists(&format!("{A}/blobs/{}", id(2))));
    drop(lock);
    assert_eq!(prune(&hub, 0, &[])["freed"], 10);
}

/// huggingface_hub holds the lock of a blob that is there while it links it into a snapshot.
#[test]
fn a_repo_in_which_a_client_holds_any_lock_keeps_its_revisions() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.revision(A, 2, 100, 20);
    hub.revision(B, 3, 100, 30);
    let path = hub.write(&format!(".locks/{A}/{}.lock", id(2)), "");
    used(&path, DAY);
    let lock = File::open(&path).unwrap();
    lock.lock().unwrap();
    for args in [&["--dry-run"][..], &[]] {
        let report = prune(&hub, 0, args);
        assert_eq!((evicted(&report), reasons(&report)), (vec![commit(3)], vec!["held".to_string()]));
    }
    drop(lock);
    assert_eq!(prune(&hub, 0, &[])["size"], 0);
}

#[test]
fn strangers_are_left_and_said() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    let strangers = ["notes.txt".to_string(), format!("{A}/README"), format!("{A}/blobs/README")];
    strangers.iter().for_each(|name| used(&hub.write(name, "mine"), 2 * DAY));
    let ran = run(&hub, &["--max-size", "0B"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    for name in &strangers {
        assert!(hub.exists(name) && ran.stderr.contains("not part of a Hugging Face cache"), "{name}");
    }
    assert!(!hub.exists(&format!("{A}/snapshots/{}", commit(1))) && hub.exists(&format!("{A}/snapshots")));
}

#[cfg(unix)]
#[test]
fn nothing_is_deleted_through_a_link() {
    let hub = CacheDir::new();
    let elsewhere = CacheDir::new();
    elsewhere.revision("repo", 1, 100, 30);
    elsewhere.blob("repo", 2, 100, 30);
    symlink(elsewhere.path("repo"), hub.path(A)).unwrap();
    // Another repo keeps only its blobs elsewhere, a third one blob.
    elsewhere.blob("repo3", 3, 100, 30);
    fs::create_dir_all(hub.path(B)).unwrap();
    symlink(elsewhere.path("repo3/blobs"), hub.path(&format!("{B}/blobs"))).unwrap();
    hub.snapshot(B, &commit(3), &[("weights", &id(3))]);
    let third = "spaces--org--c";
    fs::create_dir_all(hub.path(&format!("{third}/blobs"))).unwrap();
    symlink(elsewhere.path(&format!("repo/blobs/{}", id(2))), hub.path(&format!("{third}/blobs/{}", id(2)))).unwrap();
    hub.snapshot(third, &commit(2), &[("weights", &id(2))]);
    let (before, outside) = (hub.contents(), elsewhere.contents());
    let ran = run(&hub, &["--max-size", "0B", "--json", "--include-referenced"]);
    let report = ran.json();
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(reasons(&report), ["link", "link", "link"]);
    assert_eq!((hub.contents(), elsewhere.contents()), (before, outside));
}

#[test]
fn what_the_tool_itself_left_goes_after_the_grace_period() {
    let hub = CacheDir::new();
    let state = ".locks/.hf-cache-sync";
    let old = hub.write(&format!("{state}/partial/{}", id(1)), "half");
    let journal = hub.write(&format!("{state}/partial/{}.parts", id(1)), "1");
    let young = hub.write(&format!("{state}/partial/{}", id(2)), "half");
    let staged = hub.write(&format!("{state}/staging/0123/file"), "half");
    // Of an upload that was interrupted and never taken up again: the store has the parts, or has dropped them.
    let (upload, going_on) = (format!("{state}/uploads/{}.json", id(3)), format!("{state}/uploads/{}.json", id(4)));
    let (upload, going_on) = (hub.write(&upload, "{}"), hub.write(&going_on, "{}"));
    for path in [&old, &journal, &staged, &staged.parent().unwrap().to_path_buf(), &upload] {
        used(path, 2 * DAY);
    }
    let report = prune(&hub, 1000, &[]);
    assert_eq!((&report["freed"], &report["abandoned"]["blobs"]), (&11.into(), &4.into()));
    assert!(!old.exists() && !journal.exists() && !staged.exists() && young.exists());
    assert!(!upload.exists() && going_on.exists());
    used(&going_on, DAY / 2);
    used(&young, DAY / 2);
    assert_eq!(prune(&hub, 1000, &["--temporary-grace", "6h"])["abandoned"]["blobs"], 2);
}

/// Because of such a ref, `scan_cache_dir` drops the whole repo, with a warning.
#[test]
fn refs_to_what_is_not_here_go_when_it_has_not_come() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "main", &commit(1));
    hub.reference(A, "refs/pr/1", &commit(2));
    let pr = hub.path(&format!("{A}/refs/refs/pr/1"));
    assert_eq!(prune(&hub, 1000, &[])["refs_removed"].as_array().unwrap().len(), 0, "a download may have just begun");
    used(&pr, DAY);
    let planned = prune(&hub, 1000, &["--dry-run"]);
    assert!(pr.exists());
    let done = prune(&hub, 1000, &[]);
    assert_eq!(
        (&done["refs_removed"][0]["name"], &planned["refs_removed"]),
        (&"refs/pr/1".into(), &done["refs_removed"])
    );
    assert!(!hub.exists(&format!("{A}/refs/refs")) && hub.exists(&format!("{A}/refs/main")));
    hub.reference(A, "main", &commit(3));
    used(&hub.path(&format!("{A}/refs/main")), DAY);
    let ran = run(&hub, &["--max-gb", "1"]);
    let said = untimed(&ran.stdout);
    assert!(said.starts_with("Freed 0 B: 1 dangling ref; 100 B of"), "{said}");
}

#[test]
fn empty_repo_folders_go_when_nobody_touched_them() {
    let hub = CacheDir::new();
    hub.reference(A, "main", &commit(1));
    fs::create_dir_all(hub.path(&format!("{A}/blobs"))).unwrap();
    assert_eq!(prune(&hub, 1000, &[])["repos_removed"].as_array().unwrap().len(), 0);
    assert!(hub.exists(&format!("{A}/refs/main")), "a download may have just begun");
    assert_eq!(prune(&hub, 1000, &["--orphan-grace", "0"])["repos_removed"][0]["repo"], "org/a");
    assert!(!hub.exists(A));
}

#[test]
fn a_root_that_is_not_there_is_not_found() {
    let hub = CacheDir::new();
    fs::remove_dir(hub.root()).unwrap();
    assert_eq!(run(&hub, &[]).code, 4);
    assert!(!hub.root().exists());
    fs::write(hub.root(), "a file").unwrap();
    assert_eq!(run(&hub, &[]).code, 2);
}

#[test]
fn absurd_budgets_and_ages_are_usage_errors() {
    let hub = CacheDir::new();
    for args in [
        ["--max-gb", "-1"],
        ["--max-gb", "nan"],
        ["--max-gb", "inf"],
        ["--max-gb", "1e300"],
        ["--max-gb", "50GB"],
        ["--max-size", "-1GB"],
        ["--max-size", "lots"],
        ["--max-size", "5000 PiB"],
        ["--max-size", "50"],
        ["--orphan-grace", "-1h"],
        ["--temporary-grace", "soon"],
    ] {
        let ran = run(&hub, &args);
        assert_eq!(ran.code, 2, "{args:?}");
        assert!(ran.stderr.contains("expected"), "{}", ran.stderr);
    }
    assert_eq!(run(&hub, &["--max-gb", "1", "--max-size", "1GB"]).code, 2);
    assert_eq!(run(&hub, &["--max-size", "1.5 TiB", "--orphan-grace", "2 days"]).code, 0);
}

/// On a terminal, with what a person types; all that is shown there.
#[cfg(target_os = "linux")]
fn on_terminal(hub: &CacheDir, args: &str, typed: &[u8]) -> (String, Option<i32>) {
    let mut command = hub.machine.on_terminal(100, &format!("prune {args}"));
    command.env("NO_COLOR", "1").env("TERM", "dumb");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    // A person reads the question first.
    let (mut said, mut byte) = (Vec::new(), [0]);
    while stdout.read(&mut byte).unwrap() == 1 {
        said.push(byte[0]);
        if said.ends_with(b"[y/N] ") {
            stdin.write_all(typed).unwrap();
        }
    }
    (String::from_utf8(said).unwrap().replace('\r', ""), child.wait().unwrap().code())
}

#[cfg(unix)]
#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal_it_shows_what_goes_and_asks() {
    let make = || {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.revision(B, 2, 5000, 20);
        hub
    };
    // A no, nothing, something else, the end of the input.
    for typed in ["n\n", "\n", "what\n", "\u{4}"] {
        let hub = make();
        let before = hub.contents();
        let (said, code) = on_terminal(&hub, "--max-size 0B --no-progress --fail-over-budget", typed.as_bytes());
        assert_eq!((hub.contents(), code), (before, Some(0)), "{typed:?}: {said}");
        assert!(said.contains("Delete this? [y/N]") && said.contains("Nothing was deleted."), "{typed:?}: {said}");
        // The largest first, with its type.
        let rows: Vec<usize> = ["org/b", "org/a "].iter().map(|name| said.find(name).unwrap()).collect();
        assert!(rows.is_sorted() && said.contains("4.9 KiB") && said.contains("no ref names it"), "{said}");
        assert!(!hub.exists(".locks"), "nothing was locked meanwhile");
    }
    for typed in ["y\n", "YES\n"] {
        let hub = make();
        let (said, code) = on_terminal(&hub, "--max-size 0B --no-progress", typed.as_bytes());
        assert_eq!((hub.exists(A), hub.exists(B), code), (false, false, Some(0)), "{said}");
        assert!(said.contains("Freed 5.0 KiB") && said.matches("no ref names it").count() == 2, "shown once: {said}");
    }
    // Nobody is asked without need.
    for args in
        ["--max-size 0B --yes --no-progress", "--max-size 0B -y --json", "--max-size 0B --no-progress < /dev/null"]
    {
        let hub = make();
        let (said, code) = on_terminal(&hub, args, b"");
        assert_eq!((hub.exists(A), code, said.contains("[y/N]")), (false, Some(0), false), "{args}: {said}");
    }
    let hub = make();
    for args in ["--max-size 1GB --no-progress", "--max-size 0B --dry-run --no-progress"] {
        let (said, code) = on_terminal(&hub, args, b"");
        assert_eq!((hub.exists(A), code, said.contains("[y/N]")), (true, Some(0), false), "{args}: {said}");
    }
    // The question is on stderr, the result alone on stdout.
    let (_, code) = on_terminal(&hub, "--max-size 0B --json > out.json", b"y\n");
    let report: Value = serde_json::from_slice(&fs::read(hub.machine.work().join("out.json")).unwrap()).unwrap();
    assert_eq!((code, &report["freed"], &report["declined"]), (Some(0), &5100.into(), &false.into()));
    let hub = make();
    let (said, code) = on_terminal(&hub, "--max-size 0B --no-progress", b"\x03");
    assert_eq!((hub.exists(A), code), (true, Some(130)), "{said}");
}

#[test]
fn it_waits_for_another_hf_cache_sync_that_is_at_work() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    let lock = File::create(hub.write(".locks/.hf-cache-sync/lock", "")).unwrap();
    lock.lock_shared().unwrap();
    let mut running = hub.machine.start(&["prune", "--max-size", "0B"]);
    running.wait_for("another hf-cache-sync is using this cache");
    assert!(hub.exists(A) && running.is_running());
    drop(lock);
    assert_eq!(running.finish().code, 0);
    assert!(!hub.exists(A));
}
