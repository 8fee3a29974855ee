//! `remote du`, `remote rm` and `remote gc`: what takes space in a bucket, and what can be deleted from it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::cache::{COMMIT, OTHER, Revision};
use crate::harness::machine::{Machine, Output, Running};
use crate::harness::s3::{Action, Gate};
use crate::harness::scripted::{Reply, Scripted};
use crate::harness::sound::assert_sound_bucket;
use crate::harness::store::Store;
use crate::harness::{seed, wait_until};

/// Publishes two repos that share a file, and a blob that nothing needs.
fn shared_bucket(store: &Store) {
    let weights = vec![7; 3000];
    Revision::new("model", "org/one").lfs("model.bin", &weights).git("a.txt", "one").publish(store);
    Revision::new("model", "org/two").at(OTHER).lfs("model.bin", &weights).git("b.txt", "two!").publish(store);
    store.put(&format!("blobs/{}", "e".repeat(64)), [0; 500]);
}

/// Returns what the user sees, with the server's address replaced.
fn shown(ran: &Output, store: &Store) -> String {
    ran.text().replace(&store.server.url, "[URL]")
}

#[test]
fn du_distinguishes_unique_shared_and_unreferenced_bytes() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    store.put("blobs/half.incomplete", [0; 20]);
    store.put("manifests/notes.txt", "hello");
    let before = store.objects();
    let ran = machine.run(&["remote", "du"]);
    insta::assert_snapshot!("du", shown(&ran, &store));
    let report = machine.ok_json(&["remote", "du", "--json"]);
    let row = &report["repos"][0];
    assert_eq!((&row["repo"], &row["unique"], &row["shared"]), (&"org/two".into(), &4.into(), &3000.into()));
    assert_eq!(report["blobs"], json!({"blobs": 4, "bytes": 3507}));
    assert_eq!(report["unreferenced"], json!({"blobs": 1, "bytes": 500}));
    assert_eq!(report["foreign"], json!({"keys": 2, "bytes": 25}));
    // The server supports neither request.
    assert_eq!((&report["unfinished_uploads"], &report["versioned"]), (&Value::Null, &Value::Null));
    assert_eq!(store.objects(), before);
}

#[test]
fn du_reports_manifests_that_cannot_be_read() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    store.put(&format!("manifests/org__one@{COMMIT}.json"), "{");
    let ran = machine.run(&["remote", "du"]);
    assert_eq!(ran.code, 5, "{ran:#?}");
    assert!(ran.stderr.contains("manifests that could not be read may need them"), "{ran:#?}");
    assert!(ran.stderr.contains("is not valid"), "{ran:#?}");
}

#[test]
fn du_notes_that_earlier_versions_take_space_until_they_expire() {
    let store = Scripted::new();
    let machine = store.machine();
    for (key, bytes) in Revision::model("org/one").git("a.txt", "one").objects() {
        store.put(&key, bytes);
    }
    let xml = |text: &str| Some(Reply::new(200, text).header("content-type", "application/xml"));
    store.script(move |asked, _| match asked.query.split('&').next() {
        Some("versioning=") => xml("<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"),
        Some("uploads=") => xml(&format!(
            "<ListMultipartUploadsResult><Upload><Key>blobs/{}</Key><UploadId>u</UploadId></Upload>\
             <Upload><Key>blobs/other</Key><UploadId>v</UploadId></Upload></ListMultipartUploadsResult>",
            "a".repeat(64)
        )),
        _ => None,
    });
    let ran = machine.run(&["remote", "du"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    for words in ["earlier versions", "1 unfinished upload,"] {
        assert!(ran.stderr.contains(words), "{words}: {ran:#?}");
    }
    // `rclone serve s3` answers like this if there are none.
    store.script(|asked, _| {
        let asks = asked.query.starts_with("uploads");
        asks.then(|| Reply::refusal(404, "NoSuchUpload", "The specified multipart upload does not exist."))
    });
    assert_eq!(machine.ok_json(&["remote", "du", "--json"])["unfinished_uploads"], 0);
    machine.ok(&["remote", "gc", "--yes"]);
    // Everything else is shown even if the key may not send these requests.
    store.script(|asked, _| {
        let asks = asked.query.starts_with("versioning") || asked.query.starts_with("uploads");
        asks.then(|| Reply::refusal(403, "AccessDenied", "Access Denied"))
    });
    let report = machine.ok_json(&["remote", "du", "--json"]);
    assert_eq!((&report["unfinished_uploads"], &report["versioned"]), (&Value::Null, &Value::Null));
}

/// Older than every grace period here, in seconds from now.
const OLD: i64 = -200_000;

/// Makes every object old.
fn age_all(store: &Store) {
    store.keys().iter().for_each(|key| store.age(key, OLD));
}

fn unneeded_blob(digit: char) -> String {
    format!("blobs/{}", digit.to_string().repeat(64))
}

/// Returns the keys that have been deleted.
fn gone(before: &[String], store: &Store) -> Vec<String> {
    before.iter().filter(|key| !store.has(key)).cloned().collect()
}

#[test]
fn gc_deletes_old_objects_that_nothing_needs() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    store.put(&unneeded_blob('d'), "young");
    store.put("refs/org__gone/main", COMMIT);
    // Uploads of 0.1.0 that never finished, and files of others.
    store.put("blobs/half.incomplete", [0; 20]);
    store.put("manifests/notes.txt", "hello");
    age_all(&store);
    store.age(&unneeded_blob('d'), -3600);
    let before = store.keys();
    let ran = machine.run(&["remote", "gc", "--dry-run"]);
    insta::assert_snapshot!("gc_dry_run", shown(&ran, &store));
    assert_eq!(store.keys(), before);
    // Without consent.
    machine.run(&["remote", "gc"]).refused(2, &["no terminal to ask on", "--yes"]);
    assert_eq!(store.keys(), before);

    let ran = machine.run(&["remote", "gc", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stdout.contains("Freed 500 B in bucket 'team-cache': 1 ref and 1 blob."), "{ran:#?}");
    assert_eq!(gone(&before, &store), [unneeded_blob('e'), "refs/org__gone/main".into()]);
    assert_sound_bucket(&store);
    // With a shorter grace period, it deletes the rest. After that, there is nothing left to do.
    let report = machine.ok_json(&["remote", "gc", "--yes", "--grace", "30m", "--json"]);
    assert_eq!((&report["blobs"]["blobs"], &report["kept"]), (&1.into(), &json!([])));
    let report = machine.ok_json(&["remote", "gc", "--yes", "--json"]);
    assert_eq!((&report["blobs"]["blobs"], &report["refs"]), (&0.into(), &0.into()));
    assert!(!store.keys().iter().any(|key| key.starts_with("_hf_cache_sync_gc")), "{:?}", store.keys());
    machine.ok(&["pull", "org/one"]);
}

#[test]
fn a_clock_that_is_an_hour_off_makes_nothing_older() {
    let store = Store::new();
    let machine = Machine::new(&store);
    // The store's clock is an hour behind or ahead of this machine's: its answers and its listings say so.
    for shift in [-3600, 3600] {
        store.put(&unneeded_blob('a'), "old");
        store.put(&unneeded_blob('b'), "young");
        store.age(&unneeded_blob('a'), -3000);
        store.age(&unneeded_blob('b'), -1000);
        store.server.on_request(move |_| Action::Shift(shift));
        machine.ok(&["remote", "gc", "--grace", "2000s", "--dry-run"]);
        machine.ok(&["remote", "gc", "--grace", "2000s", "--yes"]);
        assert!(!store.has(&unneeded_blob('a')) && store.has(&unneeded_blob('b')), "{shift}");
        store.server.behave();
    }
}

#[test]
fn gc_deletes_nothing_if_it_does_not_understand_everything() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let published = Revision::new("model", "org/one").git("a.txt", "one");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut manifest = published.manifest();
        change(&mut manifest);
        manifest.to_string()
    };
    let later = with(&|manifest| manifest["format_version"] = 2.into());
    let parts = with(&|manifest| manifest["files"][0]["parts"] = json!([]));
    let kind = with(&|manifest| manifest["repo_type"] = "gadget".into());
    let own = published.manifest_key();
    for (key, content, words) in [
        (own.clone(), "{".to_string(), "is not valid"),
        (own.clone(), later, "is newer than this version"),
        (own.clone(), parts, "is newer than this version"),
        (own.clone(), kind, "is not valid"),
        (format!("manifests/org__x@{OTHER}.json"), with(&|_| {}), "is not valid"),
        ("manifests/org__one@main.json".into(), "{}".into(), "not a manifest that this version knows"),
        (format!("manifests-v2/org__one/{COMMIT}"), "{}".into(), "not a manifest that this version knows"),
    ] {
        store.clear();
        published.publish(&store);
        store.put(&unneeded_blob('e'), "old");
        store.put(&key, content);
        age_all(&store);
        let before = store.objects();
        machine.run(&["remote", "gc", "--yes"]).refused(5, &["nothing was deleted", words]);
        machine.run(&["remote", "gc", "--dry-run"]).refused(5, &[words]);
        assert_eq!(store.objects(), before, "{words}");
    }
}

#[test]
fn a_manifest_that_is_listed_and_cannot_be_found_keeps_everything() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    age_all(&store);
    let before = store.objects();
    store.server.on_request(|request| {
        match request.method == "GET" && request.key.starts_with("manifests/org__one@") {
            true => Action::Refuse(404, "NoSuchKey", "The specified key does not exist."),
            false => Action::Pass,
        }
    });
    let words = "the store lists it, but says that it does not exist";
    machine.run(&["remote", "gc", "--yes"]).refused(5, &["nothing was deleted", words]);
    // The other repo is removed, except for the blobs that may be shared.
    let ran = machine.run(&["remote", "rm", "org/two", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    store.server.behave();
    assert_sound_bucket(&store);
    assert_eq!(store.keys().iter().filter(|key| key.starts_with("blobs/")).count(), 4);
    assert!(before.len() > store.keys().len());
}

#[test]
fn a_manifest_with_unknown_additions_keeps_the_blobs_that_it_mentions() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let published = Revision::new("model", "org/one").git("a.txt", "one");
    published.publish(&store);
    let mut manifest = published.manifest();
    manifest["extra"] = json!({"previews": ["e".repeat(64)]});
    store.put(&published.manifest_key(), manifest.to_string());
    for digit in ['d', 'e'] {
        store.put(&unneeded_blob(digit), "old");
    }
    age_all(&store);
    let before = store.keys();
    machine.ok(&["remote", "gc", "--yes"]);
    assert_eq!(gone(&before, &store), [unneeded_blob('d')]);
}

#[test]
fn keys_of_other_teams_are_never_touched() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    let commit = "7".repeat(40);
    let blob = "d".repeat(64);
    // Regardless of their prefixes, some of which look like our folders.
    let prefixes = ["", "team-a/", "team-a/b/", "blobs/", "manifests/", "refs/", "refs/team/", "refs-v2/x/"];
    for prefix in prefixes {
        store.put(&format!("{prefix}blobs/{blob}"), "old");
        store.put(&format!("{prefix}refs/org__name/main"), &commit);
        store.put(&format!("{prefix}refs-v2/datasets--org--name/main"), &commit);
    }
    age_all(&store);
    let before = store.keys();
    let mut expected: Vec<String> = Vec::new();
    for prefix in ["", "team-a/"] {
        machine.set("HF_CACHE_SYNC_PREFIX", prefix);
        let names = [format!("blobs/{blob}"), "refs-v2/datasets--org--name/main".into(), "refs/org__name/main".into()];
        expected.extend(names.iter().map(|name| format!("{prefix}{name}")));
        machine.configure(&format!("team:\n  prefix: '{prefix}'\n"));
        machine.ok(&["remote", "gc", "--yes"]);
        expected.sort();
        assert_eq!(gone(&before, &store), expected, "{prefix}");
    }
}

#[test]
fn rm_deletes_a_repo_and_the_blobs_that_no_other_needs() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    age_all(&store);
    let before = store.keys();
    let ran = machine.run(&["remote", "rm", "org/one", "--dry-run"]);
    insta::assert_snapshot!("rm_dry_run", shown(&ran, &store));
    machine.run(&["remote", "rm", "org/one"]).refused(2, &["no terminal to ask on", "--yes"]);
    assert_eq!(store.keys(), before);
    let ran = machine.run(&["remote", "rm", "org/one", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let one = Revision::new("model", "org/one").git("a.txt", "one");
    assert_eq!(gone(&before, &store), [one.blob_key("a.txt"), one.manifest_key(), "refs/org__one/main".into()]);
    assert_sound_bucket(&store);
    machine
        .run(&["remote", "rm", "org/one", "--yes"])
        .refused(4, &["org/one is not in bucket", "did you mean org/two?"]);
}

#[test]
fn rm_refuses_a_revision_that_could_mean_another() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    let before = store.keys();
    let rm = |line: &[&str]| machine.run(&[&["remote", "rm", "--yes"], line].concat());
    rm(&["org/one@v1", "-r", "main"]).refused(2, &["the id says revision 'v1' but -r says 'main'"]);
    rm(&["org/one", "org/two", "-r", "main"]).refused(2, &["-r applies to one repo", "org/name@v1.0"]);
    rm(&["org/one", "-r", ""]).refused(2, &["-r is empty"]);
    assert_eq!(store.keys(), before);
}

#[test]
fn rm_refuses_the_beginning_of_several_commits() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let commits = ["a", "b"].map(|digit| format!("01234567{}", digit.repeat(32)));
    for commit in &commits {
        Revision::model("org/name").at(commit).refs(&[]).publish(&store);
    }
    let before = store.keys();
    machine
        .run(&["remote", "rm", "org/name", "-r", "01234567", "--yes"])
        .refused(2, &["ambiguous", &commits[0], &commits[1]]);
    assert_eq!(store.keys(), before);
    machine.ok(&["remote", "rm", "org/name", "-r", &commits[0][..9], "--yes"]);
    assert!(!store.has(&format!("manifests/org__name@{}.json", commits[0])));
    assert!(store.has(&format!("manifests/org__name@{}.json", commits[1])));
}

#[test]
fn rm_of_young_blobs_leaves_them_to_gc() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::new("model", "org/one").git("a.txt", "one");
    one.publish(&store);
    let ran = machine.run(&["remote", "rm", "org/one", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(
        ran.stderr.contains("kept 1 blob (3 B): younger than the grace period; `hf-cache-sync remote gc`"),
        "{ran:#?}"
    );
    assert_eq!(store.keys(), [one.blob_key("a.txt")]);
    store.age(&one.blob_key("a.txt"), OLD);
    machine.ok(&["remote", "gc", "--yes"]);
    assert!(store.keys().is_empty());
}

#[test]
fn rm_of_a_revision_takes_its_refs_and_leaves_the_others() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let first = Revision::new("model", "org/one").git("a.txt", "one").git("b.txt", "same").refs(&["v1.0", "old"]);
    let second = Revision::new("model", "org/one").at(OTHER).git("a.txt", "two").git("b.txt", "same");
    first.publish(&store);
    second.publish(&store);
    age_all(&store);
    let before = store.keys();
    machine.run(&["remote", "rm", "org/one", "-r", "v2", "--yes"]).refused(4, &["revision 'v2'", "main, old, v1.0"]);
    machine.run(&["remote", "rm", "org/one", "org/two", "-r", "v1.0"]).refused(2, &["--yes"]);
    machine.run(&["remote", "rm", "org/one", "org/two", "-r", "v1.0", "--yes"]).refused(2, &["org/name@revision"]);
    let report = machine.ok_json(&["remote", "rm", "org/one", "-r", "v1.0", "--yes", "--json"]);
    assert_eq!(report["revisions"][0]["refs"], json!(["old", "v1.0"]));
    let expected =
        [first.blob_key("a.txt"), first.manifest_key(), "refs/org__one/old".into(), "refs/org__one/v1.0".into()];
    assert_eq!(gone(&before, &store), expected);
    assert_sound_bucket(&store);
    machine.ok(&["pull", "org/one"]);
    // The beginning of a commit, as part of the repo's name.
    machine.ok(&["remote", "rm", &format!("org/one@{}", &OTHER[..7]), "--yes"]);
    assert!(store.keys().is_empty(), "{:?}", store.keys());
}

#[test]
fn rm_of_a_dataset_leaves_the_model_of_its_name() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::new("model", "org/one").git("a.txt", "model").write(&machine.hub());
    Revision::new("dataset", "org/one").at(OTHER).git("a.txt", "dataset").write(&machine.hub());
    machine.ok(&["push", "-q"]);
    age_all(&store);
    machine.ok(&["remote", "rm", "dataset:org/one", "--yes"]);
    assert!(!store.keys().iter().any(|key| key.contains(OTHER) || key.contains("datasets")), "{:?}", store.keys());
    assert_eq!(store.text("refs/org__one/main"), COMMIT);
    assert_sound_bucket(&store);
    machine.run(&["remote", "rm", "dataset:org/one", "--yes"]).refused(4, &["org/one is there", "type"]);
}

#[test]
fn a_bad_manifest_protects_its_repo_and_the_blobs_of_all_others() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    store.put(&format!("manifests/org__two@{OTHER}.json"), "{");
    age_all(&store);
    let before = store.objects();
    machine.run(&["remote", "rm", "org/two", "--yes"]).refused(5, &["nothing of org/two was deleted", "is not valid"]);
    assert_eq!(store.objects(), before);
    let before = store.keys();
    let ran = machine.run(&["remote", "rm", "org/one", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stderr.contains("manifests that could not be read may need them"), "{ran:#?}");
    assert_eq!(gone(&before, &store), [format!("manifests/org__one@{COMMIT}.json"), "refs/org__one/main".into()]);
}

#[test]
fn a_key_that_may_not_write_or_not_delete_changes_nothing() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    age_all(&store);
    let before = store.objects();
    store.server.on_request(|request| match request.method.as_str() {
        "PUT" | "POST" | "DELETE" => Action::Refuse(403, "AccessDenied", "Access Denied"),
        _ => Action::Pass,
    });
    for line in [&["remote", "gc", "--yes"][..], &["remote", "rm", "org/one", "--yes"]] {
        machine.run(line).refused(3, &["not allowed", "writeFiles and deleteFiles", "s3:DeleteObject"]);
    }
    assert_eq!(store.objects(), before);
    // A key that may write but not delete, and a retention rule.
    for (message, words) in
        [("Access Denied", "s3:DeleteObject"), ("Object is protected by object lock", "object lock")]
    {
        store.server.on_request(move |request| match request.method.as_str() {
            "POST" | "DELETE" => Action::Refuse(403, "AccessDenied", message),
            _ => Action::Pass,
        });
        let ran = machine.run(&["remote", "rm", "org/one", "--yes"]);
        assert_eq!(ran.code, 3, "{ran:#?}");
        assert!(ran.stderr.contains("cannot delete refs/org__one/main") && ran.stderr.contains(words), "{ran:#?}");
        let mut after = store.objects();
        after.retain(|key, _| !key.starts_with("_hf_cache_sync_gc"));
        assert_eq!(after, before);
    }
}

/// Makes the store refuse all deletions from now on.
fn refuse_deletions(store: &Store) {
    store.server.on_request(|request| match request.method.as_str() {
        "POST" | "DELETE" => Action::Refuse(403, "AccessDenied", "Access Denied"),
        _ => Action::Pass,
    });
}

/// Asserts that there is one notice, that its name has this prefix, and that it is empty. Returns its key.
#[track_caller]
fn assert_one_ended_notice(store: &Store, start: &str) -> String {
    let notices: Vec<String> = store.keys().into_iter().filter(|key| key.starts_with("_hf_cache_sync_gc/")).collect();
    assert!(notices.len() == 1 && notices[0].starts_with(&format!("_hf_cache_sync_gc/{start}")), "{notices:?}");
    assert_eq!(store.text(&notices[0]), r#"{"refs":[],"manifests":[],"blobs":[]}"#);
    notices[0].clone()
}

#[test]
fn the_notice_of_a_key_that_may_not_delete_ends_by_being_overwritten() {
    let store = Store::new();
    let (machine, revision) = half_pushed(&store);
    refuse_deletions(&store);
    machine.ok(&["push"]);
    let notice = assert_one_ended_notice(&store, "push-");
    store.server.behave();
    // No push is in progress.
    let ran = machine.run(&["remote", "rm", "org/one", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(!store.has(&revision.manifest_key()));
    store.remove(&notice);

    put_unneeded_blob(&store, 'e');
    refuse_deletions(&store);
    assert_eq!(machine.run(&["remote", "gc", "--yes", "--grace", "0"]).code, 3);
    assert_one_ended_notice(&store, "deletion-");
    // No deletion is in progress.
    let ran = machine.run(&["push"]);
    assert!(ran.code == 0 && !ran.stderr.contains("is deleting"), "{ran:#?}");
    revision.assert_published(&store);
}

#[test]
fn a_push_continues_when_the_notice_that_it_waits_for_is_overwritten() {
    let store = Store::new();
    let (machine, revision) = half_pushed(&store);
    put_unneeded_blob(&store, 'e');
    let cleaner = Machine::new(&store);
    let (gc, _gate) = start_and_hold(&cleaner, &["remote", "gc", "--yes"], &store, "POST", "delete");
    let push = machine.start(&["push"]);
    push.wait_for(
        "another machine is deleting something from the bucket that this push needs: waiting for it (its notice is ",
    );
    gc.kill();
    let notice = store.keys().into_iter().find(|key| key.contains("/deletion-")).unwrap();
    store.put(&notice, r#"{"refs":[],"manifests":[],"blobs":[]}"#);
    assert_eq!(push.finish().code, 0);
    revision.assert_published(&store);
}

/// A write without an answer may arrive after the push has ended.
#[test]
fn a_push_without_an_answer_leaves_its_notice() {
    let store = Store::new();
    let (machine, revision) = half_pushed(&store);
    let key = revision.manifest_key();
    store.server.on_request(move |request| match request.method == "PUT" && request.key == key {
        true => Action::Refuse(503, "SlowDown", "not so fast"),
        false => Action::Pass,
    });
    assert_eq!(machine.run(&["push"]).code, 6);
    store.server.behave();
    let report = machine.ok_json(&["remote", "gc", "--yes", "--grace", "0", "--json"]);
    assert_eq!((&report["blobs"]["blobs"], &report["kept"][0]["reason"]), (&0.into(), &"announced".into()));
}

#[test]
fn deletions_without_an_answer_are_counted_if_the_store_has_carried_them_out() {
    let store = Store::new();
    let machine = Machine::new(&store);
    ['a', 'b', 'c'].iter().for_each(|digit| put_unneeded_blob(&store, *digit));
    store.server.on_request(|request| match request.query.starts_with("delete") {
        true => Action::Cut(10),
        false => Action::Pass,
    });
    let output = machine.run(&["remote", "gc", "--yes", "--json"]);
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&report["blobs"]["blobs"], &report["failures"]), (&3.into(), &json!([])));
    assert!(output.code == 0 && output.stderr.contains("pushes that need what it deletes wait"), "{output:#?}");
}

/// Otherwise, pushes would wait for minutes until the notice expires.
#[test]
fn a_deletion_that_only_had_to_repeat_a_read_removes_its_notice() {
    let store = Store::new();
    let machine = Machine::new(&store);
    put_unneeded_blob(&store, 'a');
    let (has_announced, failures) = (AtomicBool::new(false), AtomicUsize::new(0));
    store.server.on_request(move |request| {
        has_announced.fetch_or(request.is("PUT", "_hf_cache_sync_gc/"), Ordering::SeqCst);
        let is_read = request.method == "GET" && has_announced.load(Ordering::SeqCst);
        match is_read && failures.fetch_add(1, Ordering::SeqCst) < 2 {
            true => Action::Refuse(503, "SlowDown", "not so fast"),
            false => Action::Pass,
        }
    });
    let report = machine.ok_json(&["remote", "gc", "--yes", "--json"]);
    assert_eq!(report["blobs"]["blobs"], 1);
    assert_eq!(store.keys(), Vec::<String>::new());
}

#[test]
fn a_store_that_dies_in_the_middle_is_reported_once() {
    let store = Scripted::new();
    let machine = store.machine();
    for number in 0..1200 {
        store.put(&format!("blobs/{number:064x}"), "old");
    }
    // It deletes the first thousand. After that, every response is incomplete or an error.
    let deletions = AtomicUsize::new(0);
    store.script(move |request, _| {
        if request.query.starts_with("delete") && deletions.fetch_add(1, Ordering::Relaxed) == 0 {
            let body = String::from_utf8(request.body.clone()).unwrap();
            let keys: Vec<&str> = body.split("<Key>").skip(1).map(|rest| rest.split('<').next().unwrap()).collect();
            let deleted = keys.iter().map(|key| format!("<Deleted><Key>{key}</Key></Deleted>")).collect::<String>();
            return Some(Reply::new(200, format!("<DeleteResult>{deleted}</DeleteResult>")));
        }
        match deletions.load(Ordering::Relaxed) {
            0 | 1 => None,
            _ if request.query.starts_with("delete") => Some(Reply::new(200, "<DeleteResult><Deleted>")),
            _ => Some(Reply::refusal(503, "SlowDown", "not so fast")),
        }
    });
    let ran = machine.run(&["remote", "gc", "--grace", "0", "--yes", "--json"]);
    assert_eq!(ran.code, 6, "{ran:#?}");
    let report = ran.json();
    assert_eq!(report["blobs"]["blobs"], 1000, "{report:#}");
    let failures = report["failures"].as_array().unwrap();
    let what = format!("cannot confirm the deletion of blobs/{:064x} and 199 more objects", 1000);
    assert!(failures.len() == 1 && failures[0]["what"] == what, "{report:#}");
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal_deletions_are_shown_and_confirmed() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let fill = || {
        store.clear();
        shared_bucket(&store);
        age_all(&store);
    };
    let one = Revision::new("model", "org/one").git("a.txt", "one");
    let gc_takes = vec![unneeded_blob('e')];
    let rm_takes = vec![one.blob_key("a.txt"), one.manifest_key(), "refs/org__one/main".into()];
    for (line, total, taken) in [
        ("remote gc", "Would free 500 B in bucket 'team-cache': 1 blob.", gc_takes),
        ("remote rm org/one", "Would free 3 B in bucket 'team-cache': 1 revision, 1 ref and 1 blob.", rm_takes),
    ] {
        // No, an empty line, another word, the end of the input, an interruption.
        for (typed, code) in [("n\n", 0), ("\n", 0), ("delete\n", 0), ("\u{4}", 0), ("\u{3}", 130)] {
            fill();
            let before = store.objects();
            let (shown, ended) = machine.answer_on_terminal(line, || typed.into());
            assert_eq!((store.objects(), ended), (before, Some(code)), "{typed:?}: {shown}");
            assert!(shown.contains(total), "{shown}");
            assert!(shown.contains("Delete this from the bucket? [y/N]"), "{shown}");
            assert_eq!(shown.contains("Nothing was deleted."), code == 0, "{typed:?}: {shown}");
        }
        for typed in ["y\n", "YES\n"] {
            fill();
            let before = store.keys();
            let (shown, ended) = machine.answer_on_terminal(line, || typed.into());
            assert_eq!((gone(&before, &store), ended), (taken.clone(), Some(0)), "{typed:?}: {shown}");
            assert!(shown.contains("Freed ") && shown.matches("org/one ").count() <= 1, "shown once: {shown}");
        }
        // There is no question where none is needed.
        for more in ["--dry-run", "--yes", "-y --json"] {
            fill();
            let (shown, ended) = machine.answer_on_terminal(&format!("{line} {more}"), Vec::new);
            assert_eq!((ended, shown.contains("[y/N]")), (Some(0), false), "{more}: {shown}");
        }
    }
    // Anything pushed during the question stays.
    store.clear();
    let (other, revision) = half_pushed(&store);
    let (shown, ended) = machine.answer_on_terminal("remote gc", || {
        other.ok(&["push"]);
        b"y\n".to_vec()
    });
    assert_eq!(ended, Some(0), "{shown}");
    revision.assert_published(&store);
    // Nothing to delete: no question.
    let (shown, ended) = machine.answer_on_terminal("remote gc", Vec::new);
    assert!(ended == Some(0) && !shown.contains("[y/N]") && shown.contains("nothing to delete"), "{shown}");
}

#[test]
fn stores_without_multi_object_delete_get_single_deletions() {
    for (status, code) in [(501, "NotImplemented"), (405, "MethodNotAllowed"), (400, "InvalidRequest"), (404, "")] {
        let store = Store::new();
        let machine = Machine::new(&store);
        for digit in ['a', 'b', 'c'] {
            store.put(&unneeded_blob(digit), "old");
        }
        age_all(&store);
        store.server.on_request(move |request| match request.query.starts_with("delete") {
            true => Action::Refuse(status, code, "no"),
            false => Action::Pass,
        });
        let report = machine.ok_json(&["remote", "gc", "--yes", "--json"]);
        assert_eq!((&report["blobs"]["blobs"], store.keys()), (&3.into(), Vec::new()), "{code}");
    }
}

#[test]
fn objects_that_a_store_refuses_to_delete_are_named_and_the_others_are_deleted() {
    let store = Scripted::new();
    let machine = store.machine();
    let keys = ['a', 'b', 'c'].map(unneeded_blob);
    keys.iter().for_each(|key| store.put(key, "old"));
    let refused = keys[1].clone();
    store.script(move |asked, _| {
        // The only time in its listings.
        if asked.query.starts_with("delete") {
            assert!(!asked.header("content-md5").is_empty());
            let text = format!("<DeleteResult><Error><Key>{refused}</Key><Code>AccessDenied</Code><Message>WORM</Message></Error></DeleteResult>");
            return Some(Reply::new(200, text));
        }
        None
    });
    let ran = machine.run(&["remote", "gc", "--grace", "0", "--yes", "--json"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    let report = ran.json();
    assert_eq!(report["blobs"]["blobs"], 2, "{report:#}");
    assert_eq!(report["failures"][0]["what"], format!("cannot delete {}", keys[1]));
    // The response did not mention the others, so they were deleted one by one.
    assert_eq!(store.objects().keys().filter(|key| key.starts_with("blobs/")).collect::<Vec<_>>(), [&keys[1]]);
}

#[test]
fn an_upload_whose_age_is_unknown_stays_and_the_rest_is_deleted() {
    let upload = format!(
        "<ListMultipartUploadsResult><Upload><Key>{}</Key><UploadId>u</UploadId>\
         <Initiated>2020-01-01T00:00:00Z</Initiated></Upload></ListMultipartUploadsResult>",
        unneeded_blob('a')
    );
    // The store does not list parts, not for this key, or not as S3 does.
    for reply in [
        Reply::refusal(501, "NotImplemented", "no"),
        Reply::refusal(403, "AccessDenied", "no"),
        Reply::new(200, "<ListPartsResponse/>").header("content-type", "application/xml"),
    ] {
        let store = Scripted::new();
        store.put(&unneeded_blob('b'), "old");
        let uploads = Reply::new(200, upload.as_str()).header("content-type", "application/xml");
        store.script(move |asked, _| match asked.query.split(['=', '&']).next() {
            Some("uploads") => Some(uploads.clone()),
            Some("uploadId") => Some(reply.clone()),
            _ => None,
        });
        let report = store.machine().ok_json(&["remote", "gc", "--grace", "0", "--yes", "--json"]);
        assert_eq!((&report["blobs"]["blobs"], &report["uploads"]), (&1.into(), &0.into()), "{report:#}");
        assert!(store.take_seen().iter().all(|asked| asked.method != "DELETE" || !asked.query.contains("uploadId")));
    }
}

#[test]
fn an_odd_listing_deletes_nothing() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    age_all(&store);
    let before = store.objects();
    for prefix in ["prefix=blobs", "prefix=manifests", "prefix=refs", "prefix=_hf_cache_sync_gc"] {
        store.server.on_request(move |request| match request.is_list() && request.query.contains(prefix) {
            true => Action::Page(200),
            false => Action::Pass,
        });
        for line in [&["remote", "gc", "--yes"][..], &["remote", "rm", "org/one", "--yes"]] {
            let ran = machine.run(line);
            assert_eq!(ran.code, 6, "{prefix}: {ran:#?}");
        }
        store.server.behave();
        assert_eq!(store.objects(), before, "{prefix}");
    }
}

/// Returns a machine with a revision in its cache. The bucket has an old blob of it, and nothing that names the blob.
fn half_pushed(store: &Store) -> (Machine, Revision) {
    let machine = Machine::new(store);
    let revision = Revision::new("model", "org/one").git("a.txt", "one").lfs("b.bin", vec![9; 5000]);
    revision.write(&machine.hub());
    store.put(&revision.blob_key("b.bin"), &revision.file("b.bin").bytes);
    store.age(&revision.blob_key("b.bin"), OLD);
    (machine, revision)
}

/// Holds requests with this method whose key (or query, without a key) has this prefix.
fn hold(store: &Store, method: &'static str, start: &'static str) -> Gate {
    store.server.hold(move |request| {
        let is_of_bucket = request.key.is_empty() && request.query.starts_with(start);
        request.method == method && (is_of_bucket || (!request.key.is_empty() && request.key.starts_with(start)))
    })
}

/// Starts the command, and waits until its first such request is held.
fn start_and_hold(
    machine: &Machine,
    line: &[&str],
    store: &Store,
    method: &'static str,
    start: &'static str,
) -> (Running, Gate) {
    let gate = hold(store, method, start);
    let running = machine.start(line);
    wait_for_request(store, method, start);
    (running, gate)
}

/// Puts an old blob that nothing names into the bucket.
fn put_unneeded_blob(store: &Store, digit: char) {
    store.put(&unneeded_blob(digit), "old");
    store.age(&unneeded_blob(digit), OLD);
}

fn wait_for_request(store: &Store, method: &'static str, start: &'static str) {
    store.server.wait_for(start, |seen| {
        seen.iter().any(|one| one.method == method && (one.key.starts_with(start) || one.query.starts_with(start)))
    });
}

/// Ages the notices of deletions so that they have expired. Notices may disappear meanwhile.
fn expire_deletions(store: &Store) {
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    for key in store.keys().iter().filter(|key| key.contains("/deletion-")) {
        if let Ok(file) = std::fs::File::options().write(true).open(store.path(key)) {
            file.set_modified(time).unwrap();
        }
    }
}

#[test]
fn blobs_that_gc_deletes_after_a_push_has_seen_them_are_sent_again() {
    let store = Store::new();
    let (machine, revision) = half_pushed(&store);
    // The push has listed the bucket, and has not yet announced anything.
    let (push, gate) = start_and_hold(&machine, &["push"], &store, "PUT", "_hf_cache_sync_gc/push");
    Machine::new(&store).ok(&["remote", "gc", "--yes"]);
    assert!(!store.has(&revision.blob_key("b.bin")));
    gate.open();
    let ran = push.finish();
    assert_eq!(ran.code, 0, "{ran:#?}");
    revision.assert_published(&store);
    assert_sound_bucket(&store);
}

#[test]
fn blobs_that_a_push_has_announced_stay() {
    let store = Store::new();
    let (machine, revision) = half_pushed(&store);
    // The push has checked that its blobs are there, and has published nothing.
    let (push, gate) = start_and_hold(&machine, &["push"], &store, "PUT", "manifests/");
    let ran = Machine::new(&store).run(&["remote", "gc", "--grace", "0", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stderr.contains("a push that is running needs them"), "{ran:#?}");
    gate.open();
    assert_eq!(push.finish().code, 0);
    revision.assert_published(&store);
    assert_sound_bucket(&store);
}

#[test]
fn a_push_waits_for_a_deletion_of_what_it_needs() {
    let store = Store::new();
    let (machine, revision) = half_pushed(&store);
    // A second object, so that both go in one request.
    put_unneeded_blob(&store, 'e');
    let cleaner = Machine::new(&store);
    let (gc, gate) = start_and_hold(&cleaner, &["remote", "gc", "--yes"], &store, "POST", "delete");
    let push = machine.start(&["push"]);
    push.wait_for("another machine is deleting something from the bucket that this push needs");
    // Another push, which needs nothing that is being deleted, does not wait.
    let other = Machine::new(&store);
    Revision::new("model", "org/other").git("c.txt", "other").write(&other.hub());
    other.ok(&["push"]);
    assert!(!store.has(&revision.manifest_key()));
    gate.open();
    assert_eq!(gc.finish().code, 0);
    let ran = push.finish();
    assert_eq!(ran.code, 0, "{ran:#?}");
    revision.assert_published(&store);
    assert_sound_bucket(&store);
}

#[test]
fn the_notice_of_a_killed_deletion_expires_by_the_stores_clock() {
    let store = Store::new();
    let (machine, revision) = half_pushed(&store);
    put_unneeded_blob(&store, 'e');
    let cleaner = Machine::new(&store);
    let (gc, gate) = start_and_hold(&cleaner, &["remote", "gc", "--yes"], &store, "POST", "delete");
    gc.kill();
    store.server.behave();
    let push = machine.start(&["push"]);
    push.wait_for("another machine is deleting");
    expire_deletions(&store);
    assert_eq!(push.finish().code, 0);
    gate.open();
    revision.assert_published(&store);
    // The next one removes it.
    machine.ok(&["remote", "gc", "--yes"]);
    assert!(!store.keys().iter().any(|key| key.starts_with("_hf_cache_sync_gc")), "{:?}", store.keys());
    assert_sound_bucket(&store);
}

#[test]
fn a_deletion_whose_notice_has_expired_deletes_nothing() {
    let store = Store::new();
    let (machine, revision) = half_pushed(&store);
    let late = Revision::new("model", "org/late").git("late.txt", "late");
    let held = late.manifest_key();
    let cleaner = Machine::new(&store);
    let (gc, gate) = start_and_hold(&cleaner, &["remote", "gc", "--yes"], &store, "PUT", "_hf_cache_sync_gc/deletion");
    // Its second reading takes long: it has listed the bucket, and reads what is new there.
    late.publish(&store);
    let key = held.clone();
    let second = store.server.hold(move |request| request.method == "GET" && request.key == key);
    gate.open();
    store.server.wait_for(&held, |seen| seen.iter().any(|one| one.method == "GET" && one.key == held));
    // Its notice expires, and another deletion removes it. So a push does not wait.
    expire_deletions(&store);
    store.keys().iter().filter(|key| key.contains("/deletion-")).for_each(|key| store.remove(key));
    machine.ok(&["push"]);
    revision.assert_published(&store);
    second.open();
    let ran = gc.finish();
    assert_eq!(ran.code, 6, "{ran:#?}");
    assert!(ran.stderr.contains("other machines may rely on what it would delete"), "{ran:#?}");
    assert_sound_bucket(&store);
}

#[test]
fn blobs_that_become_needed_between_the_two_readings_of_gc_stay() {
    let store = Store::new();
    let (machine, revision) = half_pushed(&store);
    put_unneeded_blob(&store, 'e');
    put_unneeded_blob(&store, 'd');
    let cleaner = Machine::new(&store);
    let (gc, gate) =
        start_and_hold(&cleaner, &["remote", "gc", "--yes", "--json"], &store, "PUT", "_hf_cache_sync_gc/deletion");
    machine.ok(&["push"]);
    // A blob that 0.1.0 has written again is young again.
    store.age(&unneeded_blob('d'), 0);
    gate.open();
    let ran = gc.finish();
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(ran.json()["blobs"]["blobs"], 1, "{ran:#?}");
    assert!(store.has(&unneeded_blob('d')) && !store.has(&unneeded_blob('e')));
    revision.assert_published(&store);
    assert_sound_bucket(&store);
}

#[test]
fn rm_leaves_a_revision_that_is_being_pushed() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::new("model", "org/one").git("a.txt", "one").refs(&["main"]);
    revision.publish(&store);
    age_all(&store);
    // Another ref of the same revision is about to be written.
    revision.refs(&["main", "v1.0"]).write(&machine.hub());
    let (push, gate) = start_and_hold(&machine, &["push"], &store, "PUT", "refs/org__one/v1.0");
    let ran = Machine::new(&store).run(&["remote", "rm", "org/one", "--yes"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("it is being pushed; try again later"), "{ran:#?}");
    gate.open();
    assert_eq!(push.finish().code, 0);
    assert_sound_bucket(&store);
    assert!(store.has("refs/org__one/v1.0"));
}

#[test]
fn a_push_that_finds_its_revision_removed_publishes_it_again() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::new("model", "org/one").git("a.txt", "one").refs(&["main"]);
    revision.publish(&store);
    age_all(&store);
    let revision = revision.refs(&["main", "v1.0"]);
    revision.write(&machine.hub());
    let (push, gate) = start_and_hold(&machine, &["push"], &store, "PUT", "_hf_cache_sync_gc/push");
    Machine::new(&store).ok(&["remote", "rm", "org/one", "--yes"]);
    gate.open();
    let ran = push.finish();
    assert_eq!(ran.code, 0, "{ran:#?}");
    revision.assert_published(&store);
    assert_sound_bucket(&store);
    assert!(store.has("refs/org__one/v1.0"));
}

/// A process of the test below that may be killed.
enum Task {
    Gc,
    Rm,
    /// The push of the machine with this number.
    Push(usize),
}

/// Kills a process once the server has seen this many requests, if it is still running then.
fn kill_after(requests: usize, mut running: Running, store: &Store) {
    while running.is_running() && store.server.seen() < requests {
        std::thread::sleep(Duration::from_millis(1));
    }
    running.kill();
}

/// Two `gc`, one `rm` and four pushes run concurrently, and each may be killed at any request. In every case, the bucket is
/// sound and still has everything that `rm` does not name, and pushing again completes it. `SEED` repeats the choices of a
/// failed run.
#[test]
fn deletions_and_pushes_killed_at_random_lose_nothing() {
    let store = Store::new();
    let machines: Vec<(Machine, Vec<Revision>)> = (0..4)
        .map(|number| {
            let machine = Machine::new(&store);
            let revisions = (0..3).map(|repo| {
                // One blob that all share, one that two machines share, and a unique one.
                Revision::new("model", &format!("org/m{}", (number + repo) % 4))
                    .at(&format!("{:040x}", number * 10 + repo))
                    .git("all.txt", "all")
                    .lfs("pair.bin", vec![(number / 2) as u8; 2000])
                    .git("own.txt", format!("{number} {repo}"))
                    .refs(&[&format!("v{number}.{repo}")])
            });
            let revisions: Vec<Revision> = revisions.collect();
            revisions.iter().for_each(|revision| revision.write(&machine.hub()));
            (machine, revisions)
        })
        .collect();
    // These two are not pushed again. They share blobs with all others.
    let only_in_bucket = |id: &str| {
        let revision = Revision::new("model", id).git("all.txt", "all").lfs("pair.bin", vec![0; 2000]);
        revision.git("own.txt", format!("of {id}"))
    };
    let (kept, gone) = (only_in_bucket("org/kept"), only_in_bucket("org/gone"));
    let cleaner = Machine::new(&store);
    let mut random = fastrand::Rng::with_seed(seed());
    // Some requests take longer, so that those of different processes arrive in any order.
    let delay = || if fastrand::u8(..4) == 0 { fastrand::u64(..150) } else { 0 };
    store.server.on_request(move |_| Action::Delay(Duration::from_millis(delay())));
    for round in 0..8 {
        store.clear();
        // Blobs of earlier pushes, which nothing names.
        for file in machines.iter().flat_map(|(_, revisions)| revisions).flat_map(Revision::present) {
            store.put(&format!("blobs/{}", file.etag()), &file.bytes);
        }
        [&kept, &gone, &machines[0].1[0]].iter().for_each(|revision| revision.publish(&store));
        age_all(&store);
        store.server.take_seen();
        let removed: &[&str] = if random.bool() { &["org/gone", "org/m0"] } else { &["org/gone"] };
        let is_named = |revision: &Revision| removed.contains(&revision.id.as_str());
        let grace = if random.bool() { "24h" } else { "0" };
        let gc = ["remote", "gc", "--yes", "--grace", grace];
        let rm = [&["remote", "rm", "--yes"], removed].concat();
        let mut tasks: Vec<(Task, Running)> = machines
            .iter()
            .enumerate()
            .map(|(number, (machine, _))| (Task::Push(number), machine.start(&["push"])))
            .collect();
        tasks.extend([Task::Gc, Task::Gc].map(|task| (task, cleaner.start(&gc))));
        tasks.push((Task::Rm, cleaner.start(&rm)));
        // The first round has no kills.
        let share = if round == 0 { 0.0 } else { 0.4 };
        let (victims, survivors): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|_| random.f64() < share);
        let mut victims: Vec<(usize, Running)> =
            victims.into_iter().map(|(_, running)| (random.usize(..120), running)).collect();
        victims.sort_by_key(|(requests, _)| *requests);
        victims.into_iter().for_each(|(requests, running)| kill_after(requests, running, &store));

        // Deletions do not wait. Once all of them are over, the only notices left are those of killed ones, which expire
        // quickly here.
        let (pushes, deletions): (Vec<_>, Vec<_>) =
            survivors.into_iter().partition(|(task, _)| matches!(task, Task::Push(_)));
        let mut is_removed = false;
        for (task, running) in deletions {
            let ran = running.finish();
            match task {
                // A revision that is being pushed stays.
                Task::Rm if ran.code == 1 => assert!(ran.stderr.contains("being pushed"), "{ran:#?}"),
                _ => assert_eq!(ran.code, 0, "{ran:#?}"),
            }
            is_removed |= matches!(task, Task::Rm);
        }
        wait_until("the end of deletions", || store.server.deletions() == 0);
        let is_over = AtomicBool::new(false);
        let pushed: Vec<usize> = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    expire_deletions(&store);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let outputs: Vec<_> = pushes.into_iter().map(|(task, running)| (task, running.finish())).collect();
            is_over.store(true, Ordering::Relaxed);
            let pushed = outputs.into_iter().filter_map(|(task, ran)| {
                assert_eq!(ran.code, 0, "{ran:#?}");
                if let Task::Push(number) = task { Some(number) } else { None }
            });
            pushed.collect()
        });
        expire_deletions(&store);

        let assert_kept = || {
            assert_sound_bucket(&store);
            kept.assert_published(&store);
            assert_eq!(store.text("refs/org__kept/main"), kept.commit);
        };
        assert_kept();
        let is_gone = !store.has(&gone.manifest_key()) && !store.has(&gone.blob_key("own.txt"));
        assert!(is_gone || !is_removed, "{:#?}", store.keys());
        for revision in pushed.iter().flat_map(|number| &machines[*number].1).filter(|revision| !is_named(revision)) {
            revision.assert_published(&store);
            let reference = format!("refs/{}/{}", revision.encoded(), revision.refs[0]);
            assert_eq!(store.text(&reference), revision.commit);
        }
        for (machine, _) in &machines {
            machine.ok(&["push", "-q"]);
        }
        assert_kept();
        machines.iter().flat_map(|(_, revisions)| revisions).for_each(|revision| revision.assert_published(&store));
        cleaner.ok(&["remote", "gc", "--yes", "--grace", "0"]);
        assert_kept();
        let reader = Machine::new(&store);
        let revision = &machines[round % 4].1[0];
        reader.ok(&["pull", &revision.id, "-r", &revision.refs[0]]);
        revision.assert_pulled(&reader.hub());
    }
}

#[test]
fn gc_removes_probes_that_doctor_left_behind() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let [old, fresh] = [1, 2].map(|number| format!("_hf_cache_sync_doctor/probe-{number:016x}"));
    let other = "_hf_cache_sync_doctor/notes.txt".to_string();
    for key in [&old, &fresh, &other] {
        store.put(key, "hf-cache-sync doctor probe");
    }
    store.age(&old, -7200);
    store.age(&other, -7200);
    machine.ok(&["remote", "gc", "--dry-run"]);
    assert!(store.has(&old));
    machine.ok(&["remote", "gc", "--yes"]);
    assert_eq!(store.keys(), [other, fresh]);
}
