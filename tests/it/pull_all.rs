//! `pull-all` with the real binary against a real S3 server: which repos are pulled, shared blobs, and failures that
//! stay isolated.

use std::fs;

use crate::harness::cache::{COMMIT, OTHER, Revision};
use crate::harness::machine::{Machine, Output};
use crate::harness::s3::{Action, S3Request};
use crate::harness::store::Store;
use crate::harness::{contents, is_same_file, visible, weights};

/// A revision with its own commit, since commits on the Hub differ between repos.
fn numbered(kind: &str, id: &str, number: usize) -> Revision {
    let revision = Revision::new(kind, id).at(&format!("{number:x}{}", &COMMIT[1..]));
    revision
        .git("config.json", format!("{{\"name\": \"{id}\"}}\n"))
        .lfs("model.bin", weights(number as u64 + 1, 50_000))
}

/// Publishes the revisions from a separate machine.
fn push_all(store: &Store, revisions: &[Revision]) {
    let source = Machine::new(store);
    revisions.iter().for_each(|revision| revision.write(&source.hub()));
    source.ok(&["push"]);
    store.server.take_seen();
}

/// Returns the repo folders in a cache.
fn folders(machine: &Machine) -> Vec<String> {
    let entries = fs::read_dir(machine.hub()).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.contains("--"));
    names.sort();
    names
}

/// Returns the name and result of each row of the report.
fn rows(output: &Output) -> Vec<(String, String)> {
    let report = output.json();
    let rows = report["repos"].as_array().unwrap().iter();
    rows.map(|row| {
        let name = match row["repo_type"].as_str() {
            Some("model") | None => row["repo"].as_str().unwrap_or("?").to_string(),
            Some(kind) => format!("{kind}:{}", row["repo"].as_str().unwrap()),
        };
        (name, row["result"].as_str().unwrap().to_string())
    })
    .collect()
}

fn owned(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(name, result)| (name.to_string(), result.to_string())).collect()
}

/// One id with every type, and ids that are encoded alike; 0.1.0 confuses or loses them.
fn zoo() -> Vec<Revision> {
    let ids = [
        ("model", "org/name"),
        ("dataset", "org/name"),
        ("space", "org/name"),
        ("kernel", "org/name"),
        ("model", "gpt2"),
        ("model", "a_/b"),
        ("model", "a/_b"),
        ("dataset", "a__b"),
        ("model", "team__a/under__score"),
    ];
    ids.iter().enumerate().map(|(number, (kind, id))| numbered(kind, id, number)).collect()
}

#[test]
fn repos_of_every_type_are_pulled_once() {
    let store = Store::new();
    let zoo = zoo();
    push_all(&store, &zoo);
    let machine = Machine::new(&store);
    let output = machine.run(&["pull-all", "--json"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(rows(&output).iter().all(|(_, result)| result == "pulled"), "{output:#?}");
    assert_eq!(rows(&output).len(), zoo.len());
    zoo.iter().for_each(|revision| revision.assert_pulled(&machine.hub()));
    assert_eq!(folders(&machine).len(), zoo.len());

    let before = contents(&machine.hub());
    let again = machine.run(&["pull-all", "--json"]);
    assert!(again.code == 0 && rows(&again).iter().all(|(_, result)| result == "present"), "{again:#?}");
    assert_eq!(contents(&machine.hub()), before);
    #[cfg(unix)]
    {
        let read_only = machine.run_read_only(&["pull-all"]);
        assert_eq!(read_only.code, 0, "{read_only:#?}");
    }
}

#[test]
fn a_bucket_written_by_0_1_0_can_be_pulled() {
    let store = Store::new();
    let repos = [numbered("model", "org/a", 1), numbered("dataset", "org/b", 2), numbered("model", "gpt2", 3)];
    repos.iter().for_each(|revision| revision.publish(&store));
    // Other refs, and keys with extra segments that end in /main, are not repos.
    numbered("model", "org/no-main", 4).refs(&["v1.0", "refs/main"]).publish(&store);
    let machine = Machine::new(&store);
    let output = machine.run(&["pull-all", "--json"]);
    let expected = owned(&[("gpt2", "pulled"), ("org/a", "pulled"), ("dataset:org/b", "pulled")]);
    assert_eq!((output.code, rows(&output)), (0, expected), "in the listing's order: {output:#?}");
    repos.iter().for_each(|revision| revision.assert_pulled(&machine.hub()));
}

#[test]
fn the_newest_ref_wins() {
    let store = Store::new();
    let ours = numbered("dataset", "org/name", 1);
    push_all(&store, std::slice::from_ref(&ours));
    let theirs = Revision::new("dataset", "org/name").git("data.csv", "2\n").at(OTHER);
    theirs.publish(&store);
    store.age("refs-v2/datasets--org--name/main", -60);
    let machine = Machine::new(&store);
    machine.ok(&["pull-all"]);
    theirs.assert_pulled(&machine.hub());
    assert!(!ours.snapshot(&machine.hub()).exists());

    store.age("refs/org__name/main", -120);
    let machine = Machine::new(&store);
    machine.ok(&["pull-all"]);
    ours.assert_pulled(&machine.hub());
    assert!(!theirs.snapshot(&machine.hub()).exists());
}

#[test]
fn filters_apply_in_the_order_include_exclude_limit() {
    let store = Store::new();
    push_all(&store, &zoo());
    for (flags, expected) in [
        (
            &["--include", "org/*"][..],
            &["datasets--org--name", "kernels--org--name", "models--org--name", "spaces--org--name"][..],
        ),
        (&["--include", "dataset:org/*"], &["datasets--org--name"]),
        (&["--include", "dataset:*", "--include", "gpt?"], &["datasets--a__b", "datasets--org--name", "models--gpt2"]),
        (&["--exclude", "org/*", "--exclude", "*_*"], &["models--gpt2"]),
        (&["--include", "*2", "--exclude", "GPT2"], &["models--gpt2"]),
        (&["--include", "a[_/]*b"], &["datasets--a__b", "models--a--_b", "models--a_--b"]),
        (
            &["--include", "org/*", "--exclude", "model:*", "--exclude", "kernel:*", "--exclude", "space:*"],
            &["datasets--org--name"],
        ),
    ] {
        let machine = Machine::new(&store);
        let line: Vec<&str> = ["pull-all"].iter().chain(flags).copied().collect();
        machine.ok(&line);
        assert_eq!(folders(&machine), expected, "{flags:?}");
    }
    let machine = Machine::new(&store);
    let output = machine.run(&[
        "pull-all",
        "--include",
        "g*",
        "--include",
        "org/*",
        "--exclude",
        "dataset:*",
        "--limit",
        "2",
        "--json",
    ]);
    assert_eq!(rows(&output), owned(&[("gpt2", "pulled"), ("org/name", "pulled")]));
}

#[test]
fn excluded_repos_are_not_read() {
    let store = Store::new();
    push_all(&store, &zoo());
    let machine = Machine::new(&store);
    machine.ok(&["pull-all", "--include", "gpt2"]);
    let gets: Vec<String> = store
        .server
        .take_seen()
        .into_iter()
        .filter(|seen| seen.method == "GET" && !seen.is_list())
        .map(|seen| seen.key)
        .collect();
    assert_eq!(gets.len(), 4, "ref, manifest, two blobs: {gets:?}");
}

#[test]
fn an_empty_selection_is_an_error_unless_the_limit_is_zero() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let empty = machine.run(&["pull-all"]);
    empty.refused(4, &["team-cache", "no repo with a main", "--prefix"]);
    machine.run(&["pull-all", "--prefix", "elsewhere"]).refused(4, &["team-cache", "elsewhere/"]);
    push_all(&store, &[numbered("model", "org/a", 1)]);
    let line = ["pull-all", "--include", "other/*", "--exclude", "*-x"];
    machine.run(&line).refused(4, &["team-cache", "--include 'other/*' --exclude '*-x'"]);
    machine.run(&[&line[..], &["--dry-run"]].concat()).refused(4, &["team-cache", "other/*"]);
    let output = machine.run(&["pull-all", "--limit", "0"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, ""), "{output:#?}");
    assert!(folders(&machine).is_empty());
}

#[test]
fn a_bad_pattern_is_refused_before_any_request() {
    let store = Store::new();
    let machine = Machine::new(&store);
    for pattern in ["org/[a", "", "modell:org/*", "[z-a]"] {
        for flag in ["--include", "--exclude"] {
            let output = machine.run(&["pull-all", flag, pattern]);
            assert_eq!(output.code, 2, "{flag} {pattern}: {output:#?}");
            assert!(output.stderr.contains(flag), "{output:#?}");
        }
    }
    assert!(store.server.take_seen().is_empty());
}

#[test]
fn a_dry_run_reports_the_plan_and_writes_nothing() {
    let store = Store::new();
    push_all(&store, &[numbered("model", "org/a", 1), numbered("model", "org/b", 2)]);
    let machine = Machine::new(&store);
    machine.ok(&["pull", "org/a"]);
    let before = visible(&machine.hub());
    let output = machine.run(&["pull-all", "--dry-run", "--json"]);
    assert_eq!((output.code, rows(&output)), (0, owned(&[("org/a", "present"), ("org/b", "planned")])));
    let report = output.json();
    assert_eq!(report["downloaded"]["blobs"], 2);
    assert_eq!(visible(&machine.hub()), before);
}

/// Three repos of two types that share the weights of a base model.
fn relatives() -> Vec<Revision> {
    let base = weights(99, 9 << 20);
    [("model", "org/base"), ("model", "org/tuned"), ("dataset", "org/copy")]
        .iter()
        .enumerate()
        .map(|(number, (kind, id))| {
            Revision::new(kind, id).at(&format!("{number}{}", &COMMIT[1..])).git("id.txt", id).lfs("model.bin", &base)
        })
        .collect()
}

fn assert_stored_once(machine: &Machine, revisions: &[Revision]) {
    // A reflink has its own inode; a hard link does not.
    let blobs: Vec<_> = revisions.iter().map(|r| r.blob(&machine.hub(), "model.bin")).collect();
    let same = blobs.iter().filter(|blob| is_same_file(blob, &blobs[0])).count();
    assert!(same == 1 || same == blobs.len(), "{same}");
    revisions.iter().for_each(|revision| revision.assert_pulled(&machine.hub()));
}

fn count_gets(store: &Store, key: &str) -> u64 {
    store.server.take_seen().iter().filter(|seen| seen.is("GET", key)).count() as u64
}

#[test]
fn a_blob_shared_by_several_repos_is_downloaded_once() {
    let store = Store::new();
    let relatives = relatives();
    push_all(&store, &relatives);
    let machine = Machine::new(&store);
    for line in [&["pull-all", "--json", "--dry-run"][..], &["pull-all", "--json"]] {
        let output = machine.run(line);
        assert_eq!(output.code, 0, "{output:#?}");
        let report = output.json();
        assert_eq!((&report["downloaded"]["blobs"], &report["shared"]["blobs"]), (&4.into(), &2.into()), "{line:?}");
    }
    let key = relatives[0].blob_key("model.bin");
    let seen: Vec<S3Request> = store.server.take_seen().into_iter().filter(|seen| seen.is("GET", &key)).collect();
    let ranges: std::collections::HashSet<_> = seen.iter().map(|seen| seen.range.clone()).collect();
    assert!(ranges.len() == seen.len() && seen.len() > 1, "every range is fetched once: {ranges:?}");
    assert_stored_once(&machine, &relatives);
}

#[test]
fn a_blob_in_another_cached_repo_is_reused() {
    let store = Store::new();
    let relatives = relatives();
    push_all(&store, &relatives);
    let machine = Machine::new(&store);
    machine.ok(&["pull", "org/base"]);
    store.server.take_seen();
    machine.ok(&["pull", "org/tuned"]);
    machine.ok(&["pull-all"]);
    assert_eq!(count_gets(&store, &relatives[0].blob_key("model.bin")), 0);
    assert_stored_once(&machine, &relatives);
}

#[test]
fn a_corrupt_blob_is_not_reused() {
    let store = Store::new();
    let relatives = relatives();
    push_all(&store, &relatives);
    let machine = Machine::new(&store);
    machine.ok(&["pull", "org/base"]);
    let blob = relatives[0].blob(&machine.hub(), "model.bin");
    let mut bytes = fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    fs::write(&blob, bytes).unwrap();
    machine.ok(&["pull", "org/tuned"]);
    relatives[1].assert_pulled(&machine.hub());
}

#[test]
fn a_failing_repo_is_named_and_does_not_stop_the_others() {
    let store = Store::new();
    let repos: Vec<Revision> = ["org/good", "org/no-blob", "org/no-manifest", "org/rotten", "org/torn", "org/z-good"]
        .iter()
        .enumerate()
        .map(|(number, id)| numbered("model", id, number))
        .collect();
    push_all(&store, &repos);
    store.remove(&repos[1].blob_key("model.bin"));
    store.remove(&repos[2].manifest_key());
    store.put(&repos[3].blob_key("model.bin"), vec![7; 50_000]);
    store.put(&repos[4].manifest_key(), "{");
    let machine = Machine::new(&store);
    let output = machine.run(&["pull-all", "--json"]);
    assert_eq!(output.code, 5, "corrupt data determines the exit code: {output:#?}");
    let expected = [
        ("org/good", "pulled"),
        ("org/no-blob", "partial"),
        ("org/no-manifest", "failed"),
        ("org/rotten", "partial"),
        ("org/torn", "failed"),
        ("org/z-good", "pulled"),
    ];
    assert_eq!(rows(&output), owned(&expected));
    let report = output.json();
    for (row, repo) in report["repos"].as_array().unwrap().iter().zip(&repos) {
        let failures = row["failures"].as_array().unwrap();
        let own = [repo.id.clone(), repo.encoded()];
        assert!(
            failures.iter().all(|failure| own.iter().any(|own| failure["what"].as_str().unwrap().contains(own))),
            "{row}"
        );
        assert_eq!(failures.len(), usize::from(!row["result"].as_str().unwrap().starts_with("pulled")));
    }
    repos[0].assert_pulled(&machine.hub());
    repos[5].assert_pulled(&machine.hub());
    for incomplete in [&repos[1], &repos[3]] {
        assert!(!incomplete.dir(&machine.hub()).join("refs/main").exists(), "an incomplete repo must not get a ref");
    }
    let text = Machine::new(&store).run(&["pull-all"]);
    for id in ["org/no-blob", "no-manifest", "org/rotten", "torn"] {
        assert!(text.stderr.contains(id), "{text:#?}");
    }

    store.put(&repos[3].blob_key("model.bin"), &repos[3].file("model.bin").bytes);
    store.remove("refs/org__torn/main");
    let output = Machine::new(&store).run(&["pull-all"]);
    assert_eq!(output.code, 1, "{output:#?}");
}

#[test]
fn a_missing_shared_blob_is_reported_once_but_fails_every_repo() {
    let store = Store::new();
    let relatives = relatives();
    push_all(&store, &relatives);
    store.remove(&relatives[0].blob_key("model.bin"));
    let machine = Machine::new(&store);
    let output = machine.run(&["pull-all", "--json"]);
    assert_eq!(output.code, 1);
    let report = output.json();
    for row in report["repos"].as_array().unwrap() {
        assert_eq!((&row["result"], row["failures"].as_array().unwrap().len()), (&"partial".into(), 1), "{row}");
    }
    assert_eq!(report["failures"].as_array().unwrap().len(), 1, "{report}");
}

#[test]
fn a_gated_repo_is_skipped_without_stopping_the_others() {
    let store = Store::new();
    let gated = numbered("model", "org/gated", 1).git("LICENSE", "You must accept this agreement first.\n");
    let free = numbered("model", "org/free", 2);
    [&gated, &free].iter().for_each(|revision| revision.publish(&store));
    let machine = Machine::new(&store);
    gated.clone().without(&["model.bin"]).write(&machine.hub());
    let output = machine.run(&["pull-all", "--json"]);
    assert_eq!((output.code, rows(&output)), (0, owned(&[("org/free", "pulled"), ("org/gated", "skipped")])));
    assert!(!gated.blob(&machine.hub(), "model.bin").exists());
    machine.configure("team:\n  allow_gated: true\n");
    machine.ok(&["pull-all"]);
    gated.assert_pulled(&machine.hub());
}

#[test]
fn refused_credentials_stop_the_run() {
    let store = Store::new();
    push_all(&store, &zoo());
    // A single repo is looked up without a listing of the manifests, so its ref is read.
    for (prefix, line) in [("manifests/", &["pull-all"][..]), ("refs", &["pull-all", "--limit", "1"])] {
        store.server.on_request(move |seen| match seen.key.starts_with(prefix) {
            true => Action::Refuse(403, "AccessDenied", "no"),
            false => Action::Pass,
        });
        let output = Machine::new(&store).run(line);
        assert_eq!(output.code, 3, "{output:#?}");
        assert_eq!(output.stdout, "");
    }
}

/// Returns the number of requests of a `pull-all` that succeeds: listings, and others.
fn count_requests(store: &Store, machine: &Machine, line: &[&str]) -> (usize, usize) {
    store.server.take_seen();
    machine.ok(&[&["pull-all"], line].concat());
    let seen = store.server.take_seen();
    let lists = seen.iter().filter(|request| request.is_list()).count();
    (lists, seen.len() - lists)
}

#[test]
fn a_complete_cache_costs_only_listings() {
    let numbered = |number: usize| {
        let revision = Revision::model(&format!("org/repo-{:03}", number % 1000)).at(&format!("{number:040x}"));
        revision.git("number.txt", number.to_string())
    };
    let store = Store::new();
    let machine = Machine::new(&store);
    for count in [30, 60] {
        for number in 0..count {
            let revision = numbered(number);
            if number % 3 == 0 { revision.with_tree() } else { revision }.publish(&store);
        }
        machine.ok(&["pull-all"]);
        assert_eq!(count_requests(&store, &machine, &[]), (2, 0), "{count}");
        assert_eq!(count_requests(&store, &machine, &["--dry-run"]), (2, 0), "{count}");
    }
    // A new cache reads each manifest, but no ref.
    let fresh = Machine::new(&store);
    store.server.take_seen();
    fresh.ok(&["pull-all"]);
    let seen = store.server.take_seen();
    let of = |prefix: &str| seen.iter().filter(|request| request.is("GET", prefix)).count();
    assert_eq!((of("manifests/"), of("refs/")), (60, 0));
    // The repos that changed are read, and nothing else.
    let changed = numbered(7).git("more.txt", "more");
    changed.publish(&store);
    let moved = numbered(1008);
    moved.publish(&store);
    assert_eq!(count_requests(&store, &machine, &["--dry-run"]), (2, 2));
    machine.ok(&["pull-all"]);
    changed.assert_pulled(&machine.hub());
    moved.assert_pulled(&machine.hub());
    assert_eq!(count_requests(&store, &machine, &[]), (2, 0));
    // Data that was deleted here is restored.
    std::fs::remove_dir_all(changed.dir(&machine.hub())).unwrap();
    machine.ok(&["pull-all"]);
    changed.assert_pulled(&machine.hub());
}

#[test]
fn remembered_manifests_are_verified() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revisions: Vec<Revision> =
        (0..10).map(|number| numbered("model", &format!("org/repo-{number}"), number)).collect();
    revisions.iter().for_each(|revision| revision.publish(&store));
    machine.ok(&["pull-all"]);
    let folder = machine.hub().join(".locks/.hf-cache-sync/manifests");
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 10);
    // One is the manifest of another revision, one is damaged, one is a folder.
    std::fs::copy(&files[0], &files[1]).unwrap();
    let mut bytes = std::fs::read(&files[2]).unwrap();
    let at = bytes.iter().position(|byte| byte.is_ascii_digit()).unwrap();
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    std::fs::write(&files[2], bytes).unwrap();
    std::fs::remove_file(&files[3]).unwrap();
    std::fs::create_dir(&files[3]).unwrap();
    assert_eq!(count_requests(&store, &machine, &[]), (2, 3));
    assert_eq!(count_requests(&store, &machine, &[]), (2, 1));
    revisions.iter().for_each(|revision| revision.assert_pulled(&machine.hub()));
}
