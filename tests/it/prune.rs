//! `prune` with the real binary, on caches in every layout.

use std::fs::{self, File};
use std::io::{Read, Write};
#[cfg(unix)]
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::cache_dir::{CacheDir, DAY, commit, disk_usage, id, set_last_used};
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

/// Runs as an unprivileged user.
#[cfg(unix)]
fn run_as_owner(hub: &CacheDir, args: &[&str]) -> Output {
    hub.machine.run_as_owner(&prune_line(args))
}

/// Returns the output without the timestamp that its first line has in a log.
fn without_timestamp(text: &str) -> String {
    text.split_once("Z  ").map(|(_, rest)| rest.to_string()).unwrap_or_else(|| panic!("no timestamp: {text}"))
}

/// Runs with a budget in bytes, asserts success, and checks the report against the disk.
fn prune(hub: &CacheDir, budget: u64, args: &[&str]) -> Value {
    let before = disk_usage_of_blobs(hub);
    let budget = format!("{budget}B");
    let output = run(hub, &[&["--json", "--max-size", &budget], args].concat());
    assert!(output.code == 0, "{}{}", output.stdout, output.stderr);
    let report = output.json();
    assert_eq!(report["size_before"], before, "{report:#}");
    if report["dry_run"] == false {
        assert_eq!(report["freed"], before - disk_usage_of_blobs(hub), "{report:#}");
    }
    report
}

/// Everything except refs, trees and lists, which do not count towards the budget.
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
fn detached_revisions_are_evicted_least_recently_used_first() {
    let hub = CacheDir::new();
    let commits = [(1, 3), (2, 30), (3, 10)].map(|(number, days)| hub.revision(A, number, 100, days));
    let other = hub.revision(B, 4, 100, 20);
    hub.reference(A, "main", &commits[0]);
    let report = prune(&hub, 200, &[]);
    assert_eq!(evicted(&report), [commits[1].clone(), other]);
    assert_eq!((&report["size"], &report["over_budget"]), (&200.into(), &0.into()));
    assert!(hub.exists(&format!("{A}/snapshots/{}/model.bin", commits[2])));
    assert!(!hub.exists(&format!("{A}/snapshots/{}", commits[1])) && !hub.exists(&format!("{A}/blobs/{}", id(2))));
    assert!(!hub.exists(B), "nothing of that repo may remain");
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
fn a_cache_within_the_budget_does_not_change() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    let before = hub.contents();
    let output = run(&hub, &["--max-size", "100B", "-q"]);
    assert!(output.code == 0 && output.stdout.is_empty() && output.stderr.is_empty());
    let output = run(&hub, &["--max-gb", "0.001"]);
    assert_eq!(without_timestamp(&output.stdout), "Freed 0 B: nothing to delete; 100 B of the 1.0 MiB budget used.\n");
    assert_eq!(hub.contents(), before);
}

#[test]
fn referenced_revisions_are_kept_and_a_missed_budget_is_reported() {
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
    let output = run(&hub, &["--max-size", "50B"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert_eq!(
        without_timestamp(&output.stdout),
        "Freed 0 B: everything was kept; 3.0 KiB used.\n\
         Over the budget of 50 B by 3.0 KiB: 2 revisions (3.0 KiB) have refs; use --include-referenced to evict these too.\n"
    );
    let output = run(&hub, &["--max-size", "50B", "--fail-over-budget", "-q"]);
    assert_eq!(output.code, 1);
    // Cron mails the output of both streams. A missed budget is not an error by itself, but always a warning.
    for args in [&["-q"][..], &["-q", "--fail-over-budget"], &["--json"], &["-q", "--json"]] {
        let output = run(&hub, &[&["--max-size", "50B"], args].concat());
        let warning = "warning: over the budget of 50 B by 3.0 KiB: 2 revisions (3.0 KiB) have refs; \
                    use --include-referenced to evict these too.\n";
        assert_eq!(output.stderr, warning, "{args:?}");
        assert_eq!(output.stdout.is_empty(), !args.contains(&"--json"), "{args:?}");
    }
    let output = run(&hub, &["--max-size", "5000B", "-q"]);
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
}

/// The warning explains what is kept, the largest first, and what to do about it.
#[test]
fn a_missed_budget_is_explained() {
    let missed = |hub: &CacheDir| {
        let output = run(hub, &["--max-size", "10B", "-q", "--include-referenced"]);
        assert_eq!(output.code, 0, "{output:#?}");
        output.stderr
    };
    let hub = CacheDir::new();
    hub.revision(A, 1, 3000, 30);
    hub.blob(A, 2, 1000, 30);
    let file = hub.write(&format!("{A}/blobs/{}.part", id(3)), "half");
    let stderr = missed(&hub);
    assert!(
        stderr.contains("kept possible downloads in flight (3.9 KiB)") && stderr.contains("no download is in progress")
    );
    fs::remove_file(file).unwrap();
    let lock = File::create(hub.path(&format!("{A}/blobs/{}.lock", id(3)))).unwrap();
    lock.lock().unwrap();
    let stderr = missed(&hub);
    assert!(stderr.contains("kept items locked by another process (3.9 KiB)"), "{stderr}");
    lock.unlock().unwrap();
    fs::hard_link(hub.path(&format!("{A}/blobs/{}", id(1))), hub.outside().join("mine")).unwrap();
    let stderr = missed(&hub);
    assert!(stderr.contains("2.9 KiB are hard-linked from outside the cache"), "{stderr}");
}

#[test]
fn referenced_revisions_are_evicted_with_their_refs_trees_and_markers() {
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
fn blobs_of_kept_revisions_are_kept_and_not_counted_as_freed() {
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
fn orphans_are_deleted_before_revisions() {
    let hub = CacheDir::new();
    let kept = hub.revision(A, 1, 100, 30);
    hub.blob(A, 2, 100, 30);
    assert_eq!(evicted(&prune(&hub, 100, &[])), Vec::<String>::new());
    assert!(hub.exists(&format!("{A}/snapshots/{kept}/model.bin")));
}

/// 0.1.0 mixes up the types. The same blob name and commit in a model and a dataset with the same id are two files
/// here.
#[test]
fn a_model_and_a_dataset_with_the_same_name_are_two_repos() {
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
fn a_blob_is_freed_with_the_last_of_its_revisions() {
    let hub = CacheDir::new();
    let blob = hub.blob(A, 1, 1000, 30);
    for number in [1, 2] {
        hub.snapshot(A, &commit(number), &[("weights", &blob)]);
    }
    let report = prune(&hub, 10, &[]);
    assert_eq!((evicted(&report).len(), &report["freed"]), (2, &1000.into()));
}

#[test]
fn a_dry_run_matches_a_real_run_and_changes_nothing() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "main", &commit(1));
    hub.revision(A, 2, 200, 20);
    hub.blob(A, 9, 50, 5);
    let before = hub.contents();
    let planned = prune(&hub, 150, &["--dry-run"]);
    let stdout = run(&hub, &["--max-size", "150B", "--dry-run"]).stdout;
    let rows: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let words = "org/a 000000000000 200 B 2 weeks ago no ref names it";
    assert_eq!(rows[1].join(" "), words, "{stdout}");
    assert_eq!(rows[2].join(" "), "org/a 1 blob 50 B - no revision uses it", "{stdout}");
    assert!(
        rows[0].join(" ") == "Repo Revision Size Last used Why" && stdout.contains("\nWould free 250 B: "),
        "{stdout}"
    );
    assert_eq!(hub.contents(), before);
    assert!(!hub.exists(".locks"), "a dry run must not create a lock");
    let done = prune(&hub, 150, &[]);
    for key in ["freed", "size", "evicted", "orphans", "over_budget", "skipped"] {
        assert_eq!(planned[key], done[key], "{key}");
    }
    assert_eq!(done["freed"], 250);
}

/// 0.1.0 treats every blob that is a link as an orphan, and leaks its payload.
#[cfg(unix)]
#[test]
fn a_shared_store_within_the_budget_does_not_change() {
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
fn a_payload_is_deleted_with_its_last_link() {
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

/// A root that contains `..` or is reached through a link is the same cache.
#[cfg(unix)]
#[test]
fn the_shared_store_is_recognised_for_every_form_of_the_root() {
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
fn payloads_are_deleted_if_their_list_is_empty_but_not_if_it_is_missing() {
    let hub = CacheDir::new();
    let (unused, young, unlisted) =
        (hub.payload(1, 10, 2, &[]), hub.payload(2, 20, 0, &[]), hub.payload(3, 30, 2, &[]));
    fs::remove_file(unlisted.with_extension("refs")).unwrap();
    assert_eq!(prune(&hub, 1000, &[])["freed"], 0, "its folder has just changed");
    set_last_used(unused.parent().unwrap(), 2 * DAY);
    let report = prune(&hub, 1000, &[]);
    assert_eq!((&report["freed"], &report["orphans"]["blobs"]), (&10.into(), &1.into()));
    assert_eq!(reasons(&report), ["young", "unlisted"]);
    assert!(!unused.exists() && young.exists() && unlisted.exists());
}

#[cfg(unix)]
#[test]
fn a_new_link_to_an_old_payload_is_young() {
    let hub = CacheDir::new();
    hub.payload(7, 5000, 40, &[(A, &id(1))]);
    let report = prune(&hub, 10_000, &[]);
    assert_eq!(reasons(&report), ["young"]);
    assert!(hub.exists(&format!("{A}/blobs/{}", id(1))));
    assert_eq!(prune(&hub, 10_000, &["--orphan-grace", "0"])["freed"], 5000);
}

#[test]
fn hard_links_count_once_and_are_freed_with_the_last_name() {
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
fn bytes_with_a_hard_link_outside_the_cache_are_not_freed() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 1000, 30);
    fs::hard_link(hub.path(&format!("{A}/blobs/{}", id(1))), hub.outside().join("mine")).unwrap();
    let output = run(&hub, &["--json", "--max-size", "100B"]);
    let report = output.json();
    assert_eq!((&report["freed"], reasons(&report)), (&0.into(), vec!["frees-nothing".to_string()]));
}

#[test]
fn snapshots_of_regular_files_are_evicted() {
    let hub = CacheDir::new();
    for (number, days) in [(1, 30), (2, 20)] {
        let file = hub.write(&format!("{A}/snapshots/{}/sub/model.bin", commit(number)), vec![b'r'; 100]);
        set_last_used(&file, days * DAY);
    }
    // A blob of which the second one has a copy, and one to which it has a hard link, are not orphans.
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
fn a_broken_link_keeps_its_repo_but_not_others() {
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

/// To the client, any folder in snapshots/ is a revision that may use any blob.
#[test]
fn a_snapshot_folder_that_is_not_a_commit_keeps_all_blobs() {
    let hub = CacheDir::new();
    let blob = hub.blob(A, 1, 100, 30);
    hub.snapshot(A, "not-a-commit", &[("model.bin", &blob)]);
    assert_eq!(prune(&hub, 0, &[])["freed"], 0);
    assert!(hub.exists(&format!("{A}/blobs/{blob}")));
}

#[cfg(unix)]
#[test]
fn a_link_from_another_repo_keeps_the_blobs() {
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

/// Users do this to save space: a blob, or the folder of blobs, is a link into another repo.
#[cfg(unix)]
#[test]
fn a_repo_whose_blobs_another_repo_uses_is_kept() {
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
        let output = run(&hub, &["--max-size", "0B", "--include-referenced", "--json"]);
        let report = output.json();
        assert!(reasons(&report).contains(&"needed-elsewhere".to_string()), "{report:#}");
        assert_eq!(hub.contents(), before);
    }
}

#[test]
fn an_unreadable_repo_is_an_error_and_is_kept() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.write("models--org--file", "a file where a folder should be");
    hub.snapshot(B, &commit(2), &[]);
    hub.write(&format!("{B}/blobs"), "a file where a folder should be");
    let output = run(&hub, &["--max-size", "0B"]);
    assert_eq!(output.code, 1);
    assert!(output.stdout.contains("\norg/a  000000000000"), "{}", output.stdout);
    let errors = output.stderr;
    assert!(errors.contains("models--org--file") && errors.contains(&format!("{B}/blobs")), "{errors}");
    assert!(hub.exists("models--org--file") && hub.exists(&format!("{B}/snapshots/{}", commit(2))) && !hub.exists(A));
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_are_shown_in_json() {
    use std::os::unix::ffi::OsStrExt;
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    let stray = hub.path(A).join("snapshots").join(commit(1)).join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    fs::write(stray, "").unwrap();
    let output = run(&hub, &["--max-size", "0B", "--json"]);
    let report = output.json();
    assert!(report.to_string().contains("caf\u{fffd}"), "{report:#}");
    assert!(hub.exists(&format!("{A}/blobs/{}", id(1))));
}

#[cfg(unix)]
#[test]
fn an_unreadable_folder_is_reported_once() {
    use std::os::unix::fs::PermissionsExt;
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.revision(B, 2, 100, 20);
    let folder = hub.path(A);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o000)).unwrap();
    let output = run_as_owner(&hub, &["--max-size", "0B"]);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(output.code, 3);
    let errors = output.stderr;
    assert_eq!(errors.matches("error: ").count(), 1, "{errors}");
    // It may contain links to anything, so the error says what it keeps.
    assert!(errors.contains("models--org--a (100 B): it cannot be read"), "{errors}");
    assert!(hub.exists(&format!("{A}/snapshots/{}/model.bin", commit(1))) && hub.exists(B));
}

/// `org/a` uses weights of `good/b` through a link that was created by hand, and no revision of b has a ref.
#[cfg(unix)]
fn write_borrowing_repo(hub: &CacheDir) {
    hub.revision(LENDER, 1, 100, 30);
    hub.blob(LENDER, 2, 50, 30);
    fs::create_dir_all(hub.path(&format!("{A}/blobs"))).unwrap();
    let snapshot = hub.path(&format!("{A}/snapshots/{}/sub", commit(3)));
    fs::create_dir_all(&snapshot).unwrap();
    symlink(format!("../../../../{LENDER}/blobs/{}", id(2)), snapshot.join("weights")).unwrap();
    hub.reference(A, "main", &commit(3));
}

/// Any unreadable part of a repo may contain the link to the blob.
#[cfg(unix)]
#[test]
fn an_unreadable_folder_keeps_everything_it_may_link_to() {
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
        // With 0444, the names can be read, but not their metadata.
        for mode in [0o000, 0o444, 0o111] {
            let hub = CacheDir::new();
            write_borrowing_repo(&hub);
            let before = hub.contents();
            let folder = hub.path(place);
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            let output = run_as_owner(&hub, &["--max-size", "0B", "--include-referenced", "--orphan-grace", "0"]);
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
            let text = format!("{place} {mode:o}: {}{}", output.stdout, output.stderr);
            assert_eq!(hub.contents(), before, "{text}");
            assert!(output.code == 3 || mode == 0o444 || mode == 0o111, "{text}");
        }
    }
}

/// The same for failures other than permissions: link loops, dangling links, and other things in place of a folder.
#[cfg(unix)]
#[test]
fn a_broken_folder_keeps_everything_it_may_have_linked_to() {
    let snapshot = format!("{A}/snapshots/{}", commit(3));
    for place in [A.to_string(), format!("{A}/snapshots"), snapshot.clone(), format!("{A}/blobs")] {
        for kind in ["loop", "fifo", "unmounted", "gone"] {
            let hub = CacheDir::new();
            write_borrowing_repo(&hub);
            let path = hub.path(&place);
            fs::rename(&path, hub.outside().join("aside")).unwrap();
            match kind {
                "loop" => symlink(path.file_name().unwrap(), &path).unwrap(),
                "unmounted" => symlink("/not-mounted/elsewhere", &path).unwrap(),
                "gone" => symlink("/not-mounted/models--good--b/blobs", &path).unwrap(),
                _ => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
            }
            let before = hub.contents_of(LENDER);
            let output = run(&hub, &["--max-size", "0B", "--include-referenced", "--orphan-grace", "0"]);
            let text = format!("{place} {kind}: {}{}", output.stdout, output.stderr);
            assert_eq!(hub.contents_of(LENDER), before, "{text}");
        }
    }
}

#[cfg(unix)]
#[test]
fn links_of_every_form_and_in_every_place_keep_a_repo() {
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
            let output = run(&hub, &["--max-size", "0B", "--include-referenced", "--orphan-grace", "0"]);
            let text = format!("{place} {number}: {}{}", output.stdout, output.stderr);
            assert_eq!(hub.contents(), before, "{text}");
            assert!(text.contains("a link elsewhere points into it"), "{text}");
        }
    }
}

/// The snapshot is a link to a folder on another disk.
#[cfg(unix)]
#[test]
fn a_snapshot_that_is_a_link_keeps_the_targets_of_its_files() {
    let hub = CacheDir::new();
    write_borrowing_repo(&hub);
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

/// A folder cannot be moved without write permission to it.
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
    let output = run_as_owner(&hub, &["--max-size", "0B", "--include-referenced"]);
    assert_eq!(output.code, 3, "{}", output.stderr);
    assert!(output.stderr.contains("cannot delete"), "{}", output.stderr);
    assert_eq!(hub.contents(), before);
    fs::set_permissions(&snapshot, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(run_as_owner(&hub, &["--max-size", "0B", "--include-referenced"]).code == 0);
    assert!(!hub.exists(A));
}

/// 0.1.0 deletes downloads that are in flight.
#[test]
fn a_download_in_flight_keeps_its_repo() {
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

/// Returns the names of unfinished downloads of every client.
fn unfinished_downloads(number: u64) -> Vec<String> {
    let ends = [".incomplete", ".0a1b2c3d.incomplete", ".part", "..part", ".sync.part", ".downloadInProgress"];
    ends.iter().map(|end| format!("{A}/blobs/{}{end}", id(number))).collect()
}

/// llama.cpp only links its files once all have arrived. Until then, finished shards are unlinked blobs.
#[test]
fn downloads_of_every_client_keep_their_repo_until_they_are_old() {
    let mut names = unfinished_downloads(5);
    names.push(format!("{A}/snapshots/{}/model.gguf.downloadInProgress", commit(1)));
    names.push(format!("{A}/refs/main.0a1b2c3d.tmp"));
    for name in names {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.reference(A, "lost", &commit(9));
        set_last_used(&hub.path(&format!("{A}/refs/lost")), 30 * DAY);
        let shard = hub.blob(A, 2, 200, 2);
        hub.revision(B, 3, 100, 30);
        // Refs do not count towards the size.
        let file = hub.write(&name, if name.contains("/refs/") { "" } else { "half" });
        set_last_used(&file, 3600);
        for args in [&["--dry-run"][..], &[]] {
            let report = prune(&hub, 0, args);
            assert_eq!(evicted(&report), [commit(3)], "{name}: {report:#}");
            assert!(hub.exists(&format!("{A}/blobs/{shard}")) && hub.exists(&format!("{A}/refs/lost")), "{name}");
            let kept = report["skipped"].as_array().unwrap().iter().find(|skip| skip["bytes"] == 300);
            assert_eq!(kept.map(|skip| &skip["reason"]), Some(&"in-flight".into()), "{name}: {report:#}");
        }
        set_last_used(&file, 2 * DAY);
        let report = prune(&hub, 0, &[]);
        assert_eq!((&report["abandoned"]["blobs"], &report["size"]), (&1.into(), &0.into()), "{name}: {report:#}");
        assert!(!file.exists() && !hub.exists(A), "{name}");
    }
}

/// Old versions of huggingface_hub, and hf-hub 0.3, download to the root, so the repo is unknown.
#[test]
fn downloads_at_the_root_keep_every_repo_until_they_are_old() {
    for name in ["tmpa1b2c3d4", "tmp_x9_k2ab", "tmp/aB3dE5f"] {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.blob(B, 2, 100, 30);
        let file = hub.write(name, "half");
        let before = hub.contents();
        let report = prune(&hub, 0, &["--orphan-grace", "0"]);
        assert_eq!((hub.contents(), reasons(&report)), (before, vec!["in-flight".to_string()]), "{name}");
        assert_eq!(&report["skipped"][0]["bytes"], 200, "{name}");
        set_last_used(&file, 2 * DAY);
        let report = prune(&hub, 0, &[]);
        assert_eq!((&report["abandoned"]["blobs"], &report["freed"]), (&1.into(), &204.into()), "{name}");
        assert!(!hub.exists(A) && !hub.exists(&format!("{B}/blobs/{}", id(2))) && !hub.exists(name));
    }
}

/// The client's symlink probe, and files that are not downloads.
#[test]
fn other_files_named_tmp_keep_nothing() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    fs::create_dir_all(hub.path("tmpprobe01/x")).unwrap();
    hub.write("tmp-notes.txt", "mine");
    hub.write("tmp/notes.txt", "mine");
    assert!(run(&hub, &["--max-size", "0B"]).code == 0);
    assert!(!hub.exists(A) && hub.exists("tmp-notes.txt") && hub.exists("tmp/notes.txt") && hub.exists("tmpprobe01/x"));
}

/// hf-hub 0.4 and 0.5 and old versions of huggingface_hub keep locks in `blobs/`, swift-huggingface in a subfolder.
#[test]
fn a_held_lock_of_any_client_keeps_its_repo() {
    for place in [format!("{A}/blobs"), format!(".locks/{A}/blobs"), format!(".locks/{A}")] {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.blob(A, 2, 10, 30);
        hub.write(&format!(".metadata/{A}/{}.json", commit(1)), "{}");
        let path = hub.write(&format!("{place}/{}.lock", id(2)), "");
        set_last_used(&path, DAY);
        let lock = File::open(&path).unwrap();
        lock.lock().unwrap();
        let report = prune(&hub, 0, &[]);
        assert_eq!((evicted(&report).len(), &report["freed"], reasons(&report)), (0, &0.into(), vec!["held".into()]));
        lock.unlock().unwrap();
        let report = prune(&hub, 0, &[]);
        assert_eq!((&report["freed"], reasons(&report)), (&110.into(), vec![]), "{place}");
        assert!(!hub.exists(A), "{place}");
    }
}

/// hf-hub finds a pinned commit through a ref with the commit's own name. It does not keep the commit, and is deleted
/// with it.
#[test]
fn a_ref_named_after_its_commit_does_not_keep_it() {
    let hub = CacheDir::new();
    for (number, days) in [(1, 30), (2, 20)] {
        hub.revision(A, number, 100, days);
        hub.reference(A, &commit(number), &commit(number));
    }
    hub.reference(A, "main", &commit(2));
    hub.reference(A, &commit(9), &commit(9));
    set_last_used(&hub.path(&format!("{A}/refs/{}", commit(9))), DAY);
    let report = prune(&hub, 100, &[]);
    assert_eq!((evicted(&report), &report["evicted"][0]["reason"]), (vec![commit(1)], &"detached".into()));
    assert_eq!(report["refs_removed"][0]["name"], commit(9));
    let refs: Vec<String> = hub.contents().into_keys().filter(|name| name.contains("/refs/")).collect();
    assert_eq!(refs, [format!("{A}/refs/"), format!("{A}/refs/{}", commit(2)), format!("{A}/refs/main")]);
}

#[test]
fn abandoned_downloads_are_deleted_unless_their_lock_is_held() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "main", &commit(1));
    let names = [format!("{}.0a1b2c3d.incomplete", id(5)), format!("{}.incomplete", id(6)), "tmp_0b0e".into()];
    for name in &names {
        set_last_used(&hub.write(&format!("{A}/blobs/{name}"), "half"), 2 * DAY);
    }
    set_last_used(&hub.write(&format!("{A}/refs/main.0a1b2c3d.tmp"), ""), 2 * DAY);
    let lock = File::create(hub.write(&format!(".locks/{A}/{}.lock", id(6)), "")).unwrap();
    lock.lock().unwrap();
    let report = prune(&hub, 0, &["--include-referenced"]);
    assert_eq!((reasons(&report), &report["abandoned"]["blobs"]), (vec!["held".into(), "in-flight".into()], &3.into()));
    assert_eq!(evicted(&report).len(), 0, "the client that holds the lock may need the revision");
    let remaining: Vec<bool> = names.iter().map(|name| hub.exists(&format!("{A}/blobs/{name}"))).collect();
    assert_eq!(remaining, [false, true, false]);
    assert!(!hub.exists(&format!("{A}/refs/main.0a1b2c3d.tmp")));
    assert!(!hub.exists(&format!(".locks/{A}/{}.lock", id(5))), "prune must not leave new lock files behind");
}

#[test]
fn a_branch_named_like_a_temporary_file_is_a_ref() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "wip.tmp", &commit(1));
    assert_eq!(reasons(&prune(&hub, 0, &[])), ["referenced"]);
}

#[test]
fn a_repo_with_a_recent_download_is_busy() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 0);
    let lock = hub.write(&format!(".locks/{A}/{}.lock", id(1)), "");
    assert_eq!(reasons(&prune(&hub, 0, &[])), ["busy"]);
    // Some clients do not update the timestamp of a lock that they take again. The blob's timestamp counts, too.
    set_last_used(&lock, DAY);
    set_last_used(&hub.path(&format!("{A}/blobs/{}", id(1))), 1);
    assert_eq!(reasons(&prune(&hub, 0, &[])), ["busy"]);
    set_last_used(&hub.path(&format!("{A}/blobs/{}", id(1))), DAY);
    assert_eq!(evicted(&prune(&hub, 0, &[])), [commit(1)]);
    assert!(!hub.exists(&format!(".locks/{A}")), "the locks must be deleted with the repo");
}

/// Complete revisions need no grace period after their download.
#[test]
fn complete_revisions_can_be_evicted_right_after_their_download() {
    let hub = CacheDir::new();
    for (number, days) in [(1, 30), (2, 0), (3, 0)] {
        hub.revision(A, number, 100, days);
        hub.write(&format!(".locks/{A}/{}.lock", id(number)), "");
        let entry = r#"{"size":100,"blob_id":"ce013625030ba8dba906f756967f9e9ca394464a"}"#;
        let other = if number == 3 { format!(r#","other":{entry}"#) } else { String::new() };
        let tree = format!(r#"{{"format_version":1,"files":{{"model.bin":{entry}{other}}}}}"#);
        hub.write(&format!("{A}/trees/{}.json", commit(number)), tree);
    }
    set_last_used(&hub.path(&format!("{A}/blobs/{}", id(2))), 60);
    let report = prune(&hub, 0, &[]);
    assert_eq!((evicted(&report), reasons(&report)), (vec![commit(1), commit(2)], vec!["busy".to_string()]));
    // The revision with a missing file may still be in flight.
    assert!(hub.exists(&format!("{A}/snapshots/{}/model.bin", commit(3))));
}

#[test]
fn old_orphans_are_deleted_even_within_the_budget() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "main", &commit(1));
    let (old, young) = (hub.blob(A, 2, 10, 1), hub.blob(A, 3, 20, 0));
    let report = prune(&hub, 1000, &[]);
    assert_eq!((&report["freed"], reasons(&report)), (&10.into(), vec!["young".to_string()]));
    assert!(!hub.exists(&format!("{A}/blobs/{old}")) && hub.exists(&format!("{A}/blobs/{young}")));
    assert_eq!(prune(&hub, 1000, &["--orphan-grace", "0"])["freed"], 20);
}

/// `cp -a`, `rsync -a` and `tar` preserve old timestamps, and write blobs before snapshots.
#[test]
fn a_repo_that_is_being_copied_is_kept() {
    let hub = CacheDir::new();
    hub.blob(A, 1, 10, 30);
    hub.blob(A, 2, 20, 0);
    let report = prune(&hub, 0, &[]);
    assert_eq!((&report["freed"], reasons(&report)), (&0.into(), vec!["young".to_string(); 2]));
    hub.snapshot(A, &commit(1), &[("a", &id(1))]);
    assert_eq!(prune(&hub, 1000, &["--orphan-grace", "0"])["freed"], 20);
}

/// The blobs of another revision arrive first, and only the folders' timestamps show it.
#[test]
fn new_blobs_with_old_timestamps_are_kept() {
    for (known, touched) in [(false, ""), (false, "blobs"), (true, ""), (true, "blobs"), (true, "snapshots")] {
        let hub = CacheDir::new();
        if known {
            hub.revision(A, 1, 10, 30);
            hub.reference(A, "main", &commit(1));
        }
        hub.blob(A, 2, 20, 30);
        fs::create_dir_all(hub.path(&format!("{A}/snapshots"))).unwrap();
        hub.backdate_folders(A);
        set_last_used(&hub.path(&format!("{A}/{touched}")), 60);
        assert_eq!(prune(&hub, 1000, &[])["freed"], 0, "{known} {touched}");
        hub.backdate_folders(A);
        assert_eq!(prune(&hub, 1000, &[])["freed"], 20, "{known} {touched}");
    }
}

/// Temporary files of `rsync`, `aria2c` and other programs.
#[test]
fn temporary_files_of_any_program_keep_their_repo() {
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
        set_last_used(&file, 2 * DAY);
        assert!(run(&hub, &["--max-size", "0B"]).code == 0);
        assert!(!hub.exists(&format!("{A}/blobs/{}", id(1))) && !hub.exists(&format!("{A}/blobs/{}", id(2))), "{name}");
        assert!(file.exists() || !name.starts_with("blobs/"), "{name}");
    }
}

#[test]
fn unrelated_files_at_the_root_are_kept() {
    let hub = CacheDir::new();
    for name in ["tmpnotes", "tmpl", "tmp/abcdefg", "tmp/x", "tmpcheckout"] {
        set_last_used(&hub.write(name, "mine"), 90 * DAY);
    }
    let before = hub.contents();
    assert!(run(&hub, &["--max-size", "0B"]).code == 0);
    assert_eq!(hub.contents(), before);
}

/// Places that the scan ignores may contain links that someone uses to view a repo.
#[cfg(unix)]
#[test]
fn links_in_ignored_places_keep_their_repo() {
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

/// An unreadable folder with the name of litter may belong to the commit, or contain links to it.
#[cfg(unix)]
#[test]
fn an_unreadable_folder_named_like_litter_keeps_the_blobs() {
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
        let output = run_as_owner(&hub, &["--max-gb", "1"]);
        fs::set_permissions(hub.path(&place), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(output.code, if kept { 3 } else { 0 }, "{place}: {}", output.stderr);
        assert_eq!(hub.exists(&format!("{A}/blobs/{}", id(2))), kept, "{place}");
    }
}

#[test]
fn a_blob_with_a_held_lock_is_kept() {
    let hub = CacheDir::new();
    hub.blob(A, 2, 10, 1);
    let path = hub.write(&format!(".locks/{A}/{}.lock", id(2)), "");
    set_last_used(&path, DAY);
    let lock = File::open(&path).unwrap();
    lock.lock().unwrap();
    let report = prune(&hub, 0, &[]);
    assert_eq!((&report["freed"], reasons(&report)), (&0.into(), vec!["held".to_string()]));
    assert!(hub.exists(&format!("{A}/blobs/{}", id(2))));
    lock.unlock().unwrap();
    assert_eq!(prune(&hub, 0, &[])["freed"], 10);
}

/// huggingface_hub holds the lock of an existing blob while it links the blob into a snapshot.
#[test]
fn a_held_lock_keeps_all_revisions_of_its_repo() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.revision(A, 2, 100, 20);
    hub.revision(B, 3, 100, 30);
    let path = hub.write(&format!(".locks/{A}/{}.lock", id(2)), "");
    set_last_used(&path, DAY);
    let lock = File::open(&path).unwrap();
    lock.lock().unwrap();
    for args in [&["--dry-run"][..], &[]] {
        let report = prune(&hub, 0, args);
        assert_eq!((evicted(&report), reasons(&report)), (vec![commit(3)], vec!["held".to_string()]));
    }
    lock.unlock().unwrap();
    assert_eq!(prune(&hub, 0, &[])["size"], 0);
}

#[test]
fn unknown_files_are_kept_and_reported() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    let unknown = ["notes.txt".to_string(), format!("{A}/README"), format!("{A}/blobs/README")];
    unknown.iter().for_each(|name| set_last_used(&hub.write(name, "mine"), 2 * DAY));
    let output = run(&hub, &["--max-size", "0B"]);
    assert_eq!(output.code, 0, "{output:#?}");
    for name in &unknown {
        assert!(hub.exists(name) && output.stderr.contains("not part of a Hugging Face cache"), "{name}");
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
    // In another repo, only the blobs folder is a link, and in a third one only a blob.
    elsewhere.blob("repo3", 3, 100, 30);
    fs::create_dir_all(hub.path(B)).unwrap();
    symlink(elsewhere.path("repo3/blobs"), hub.path(&format!("{B}/blobs"))).unwrap();
    hub.snapshot(B, &commit(3), &[("weights", &id(3))]);
    let third = "spaces--org--c";
    fs::create_dir_all(hub.path(&format!("{third}/blobs"))).unwrap();
    symlink(elsewhere.path(&format!("repo/blobs/{}", id(2))), hub.path(&format!("{third}/blobs/{}", id(2)))).unwrap();
    hub.snapshot(third, &commit(2), &[("weights", &id(2))]);
    let (before, outside) = (hub.contents(), elsewhere.contents());
    let output = run(&hub, &["--max-size", "0B", "--json", "--include-referenced"]);
    let report = output.json();
    assert_eq!(output.code, 0, "{output:#?}");
    assert_eq!(reasons(&report), ["link", "link", "link"]);
    assert_eq!((hub.contents(), elsewhere.contents()), (before, outside));
}

#[test]
fn our_own_leftovers_are_deleted_after_the_grace_period() {
    let hub = CacheDir::new();
    let state = ".locks/.hf-cache-sync";
    let old = hub.write(&format!("{state}/partial/{}", id(1)), "half");
    let journal = hub.write(&format!("{state}/partial/{}.parts", id(1)), "1");
    let young = hub.write(&format!("{state}/partial/{}", id(2)), "half");
    let staged = hub.write(&format!("{state}/staging/0123/file"), "half");
    // The record of an interrupted upload that was never resumed. The store has kept or deleted its parts.
    let (upload, recent) = (format!("{state}/uploads/{}.json", id(3)), format!("{state}/uploads/{}.json", id(4)));
    let (upload, recent) = (hub.write(&upload, "{}"), hub.write(&recent, "{}"));
    for path in [&old, &journal, &staged, &staged.parent().unwrap().to_path_buf(), &upload] {
        set_last_used(path, 2 * DAY);
    }
    let report = prune(&hub, 1000, &[]);
    assert_eq!((&report["freed"], &report["abandoned"]["blobs"]), (&11.into(), &4.into()));
    assert!(!old.exists() && !journal.exists() && !staged.exists() && young.exists());
    assert!(!upload.exists() && recent.exists());
    set_last_used(&recent, DAY / 2);
    set_last_used(&young, DAY / 2);
    assert_eq!(prune(&hub, 1000, &["--temporary-grace", "6h"])["abandoned"]["blobs"], 2);
}

/// `scan_cache_dir` ignores a whole repo with such a ref, and warns.
#[test]
fn dangling_refs_are_deleted_after_the_grace_period() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    hub.reference(A, "main", &commit(1));
    hub.reference(A, "refs/pr/1", &commit(2));
    let pr = hub.path(&format!("{A}/refs/refs/pr/1"));
    assert_eq!(prune(&hub, 1000, &[])["refs_removed"].as_array().unwrap().len(), 0, "a download may just have started");
    set_last_used(&pr, DAY);
    let planned = prune(&hub, 1000, &["--dry-run"]);
    assert!(pr.exists());
    let done = prune(&hub, 1000, &[]);
    assert_eq!(
        (&done["refs_removed"][0]["name"], &planned["refs_removed"]),
        (&"refs/pr/1".into(), &done["refs_removed"])
    );
    assert!(!hub.exists(&format!("{A}/refs/refs")) && hub.exists(&format!("{A}/refs/main")));
    hub.reference(A, "main", &commit(3));
    set_last_used(&hub.path(&format!("{A}/refs/main")), DAY);
    let output = run(&hub, &["--max-gb", "1"]);
    let stdout = without_timestamp(&output.stdout);
    assert!(stdout.starts_with("Freed 0 B: 1 dangling ref; 100 B of"), "{stdout}");
}

#[test]
fn empty_repo_folders_are_deleted_after_the_grace_period() {
    let hub = CacheDir::new();
    hub.reference(A, "main", &commit(1));
    fs::create_dir_all(hub.path(&format!("{A}/blobs"))).unwrap();
    assert_eq!(prune(&hub, 1000, &[])["repos_removed"].as_array().unwrap().len(), 0);
    assert!(hub.exists(&format!("{A}/refs/main")), "a download may just have started");
    assert_eq!(prune(&hub, 1000, &["--orphan-grace", "0"])["repos_removed"][0]["repo"], "org/a");
    assert!(!hub.exists(A));
}

#[test]
fn a_missing_root_is_not_found() {
    let hub = CacheDir::new();
    fs::remove_dir(hub.root()).unwrap();
    assert_eq!(run(&hub, &[]).code, 4);
    assert!(!hub.root().exists());
    fs::write(hub.root(), "a file").unwrap();
    assert_eq!(run(&hub, &[]).code, 2);
}

#[test]
fn invalid_budgets_and_ages_are_usage_errors() {
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
        let output = run(&hub, &args);
        assert_eq!(output.code, 2, "{args:?}");
        assert!(output.stderr.contains("expected"), "{}", output.stderr);
    }
    assert_eq!(run(&hub, &["--max-gb", "1", "--max-size", "1GB"]).code, 2);
    assert_eq!(run(&hub, &["--max-size", "1.5 TiB", "--orphan-grace", "2 days"]).code, 0);
}

/// Runs on a terminal with this input. Returns everything that is shown there, and the exit code.
#[cfg(target_os = "linux")]
fn on_terminal(hub: &CacheDir, args: &str, typed: &[u8]) -> (String, Option<i32>) {
    let mut command = hub.machine.on_terminal(100, &format!("prune {args}"));
    command.env("NO_COLOR", "1").env("TERM", "dumb");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    // Answer only once the question has been shown.
    let (mut shown, mut byte) = (Vec::new(), [0]);
    while stdout.read(&mut byte).unwrap() == 1 {
        shown.push(byte[0]);
        if shown.ends_with(b"[y/N] ") {
            stdin.write_all(typed).unwrap();
        }
    }
    (String::from_utf8(shown).unwrap().replace('\r', ""), child.wait().unwrap().code())
}

#[cfg(unix)]
#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal_prune_shows_the_plan_and_asks() {
    let make = || {
        let hub = CacheDir::new();
        hub.revision(A, 1, 100, 30);
        hub.revision(B, 2, 5000, 20);
        hub
    };
    // No, an empty line, another word, the end of input.
    for typed in ["n\n", "\n", "what\n", "\u{4}"] {
        let hub = make();
        let before = hub.contents();
        let (shown, code) = on_terminal(&hub, "--max-size 0B --no-progress --fail-over-budget", typed.as_bytes());
        assert_eq!((hub.contents(), code), (before, Some(0)), "{typed:?}: {shown}");
        assert!(shown.contains("Delete this? [y/N]") && shown.contains("Nothing was deleted."), "{typed:?}: {shown}");
        // The largest first, with its type.
        let rows: Vec<usize> = ["org/b", "org/a "].iter().map(|name| shown.find(name).unwrap()).collect();
        assert!(rows.is_sorted() && shown.contains("4.9 KiB") && shown.contains("no ref names it"), "{shown}");
        assert!(!hub.exists(".locks"), "no lock may be held during the question");
    }
    for typed in ["y\n", "YES\n"] {
        let hub = make();
        let (shown, code) = on_terminal(&hub, "--max-size 0B --no-progress", typed.as_bytes());
        assert_eq!((hub.exists(A), hub.exists(B), code), (false, false, Some(0)), "{shown}");
        assert!(
            shown.contains("Freed 5.0 KiB") && shown.matches("no ref names it").count() == 2,
            "the plan is shown once: {shown}"
        );
    }
    // There is no question where none is needed.
    for args in
        ["--max-size 0B --yes --no-progress", "--max-size 0B -y --json", "--max-size 0B --no-progress < /dev/null"]
    {
        let hub = make();
        let (shown, code) = on_terminal(&hub, args, b"");
        assert_eq!((hub.exists(A), code, shown.contains("[y/N]")), (false, Some(0), false), "{args}: {shown}");
    }
    let hub = make();
    for args in ["--max-size 1GB --no-progress", "--max-size 0B --dry-run --no-progress"] {
        let (shown, code) = on_terminal(&hub, args, b"");
        assert_eq!((hub.exists(A), code, shown.contains("[y/N]")), (true, Some(0), false), "{args}: {shown}");
    }
    // The question is on stderr, and only the result on stdout.
    let (_, code) = on_terminal(&hub, "--max-size 0B --json > out.json", b"y\n");
    let report: Value = serde_json::from_slice(&fs::read(hub.machine.work().join("out.json")).unwrap()).unwrap();
    assert_eq!((code, &report["freed"], &report["declined"]), (Some(0), &5100.into(), &false.into()));
    let hub = make();
    let (shown, code) = on_terminal(&hub, "--max-size 0B --no-progress", b"\x03");
    assert_eq!((hub.exists(A), code), (true, Some(130)), "{shown}");
}

#[test]
fn prune_waits_for_another_running_hf_cache_sync() {
    let hub = CacheDir::new();
    hub.revision(A, 1, 100, 30);
    let lock = File::create(hub.write(".locks/.hf-cache-sync/lock", "")).unwrap();
    lock.lock_shared().unwrap();
    let mut running = hub.machine.start(&["prune", "--max-size", "0B"]);
    running.wait_for("another hf-cache-sync is using this cache");
    assert!(hub.exists(A) && running.is_running());
    lock.unlock().unwrap();
    assert_eq!(running.finish().code, 0);
    assert!(!hub.exists(A));
}
