//! Bad input of every kind: one clear error of one to three lines, the documented exit code, and no change to the cache
//! or the bucket.

mod settings;

use std::fs;
use std::net::TcpListener;

use crate::harness::cache::{COMMIT, OTHER, Revision, indented};
use crate::harness::machine::{Machine, Output};
use crate::harness::s3::Action;
use crate::harness::store::Store;
use crate::harness::{git_sha1, listing, sha256, visible, weights};
use serde_json::{Value, json};

/// A bucket with `org/name`, and a machine with a repo of its own, so that changes can be detected.
fn setup() -> (Store, Machine) {
    let store = Store::new();
    let machine = Machine::new(&store);
    revision().publish(&store);
    mine().write(&machine.hub());
    // An older revision of the same repo, with its ref.
    revision().at(OTHER).write(&machine.hub());
    (store, machine)
}

fn revision() -> Revision {
    let revision = Revision::new("model", "org/name").git("config.json", "{}\n");
    revision.lfs("model.safetensors", weights(1, 5000)).git("sub/file.txt", "text")
}

fn mine() -> Revision {
    Revision::new("model", "org/mine").git("config.json", "mine").at(OTHER)
}

/// Asserts that a command is refused and changes nothing on the machine or in the bucket.
#[track_caller]
fn assert_unchanged(store: &Store, machine: &Machine, line: &[&str], code: i32, words: &[&str]) {
    let before = (listing(&machine.home()), store.objects());
    let output = machine.run(line);
    output.refused(code, words);
    assert!((listing(&machine.home()), store.objects()) == before, "{line:?} made changes: {output:#?}");
}

/// A setup for pulls of `org/name` with an altered manifest.
struct ManifestTest(Store, Machine);

impl ManifestTest {
    fn new() -> Self {
        let (store, machine) = setup();
        ManifestTest(store, machine)
    }

    /// Asserts that a pull of `org/name` is refused if its manifest is altered.
    #[track_caller]
    fn assert_refused(&self, alter: impl Fn(&mut Value), words: &[&str]) {
        let mut manifest = revision().manifest();
        alter(&mut manifest);
        self.0.put(&revision().manifest_key(), indented(&manifest, b"  "));
        assert_unchanged(&self.0, &self.1, &["pull", "org/name"], 5, &[words, &["org__name"]].concat());
    }
}

#[test]
fn a_missing_bucket_is_a_usage_error() {
    let (store, mut machine) = setup();
    machine.unset("B2_BUCKET");
    assert_unchanged(&store, &machine, &["pull", "org/name"], 2, &["no bucket", "--bucket"]);
    assert_unchanged(&store, &machine, &["push"], 2, &["no bucket"]);
}

#[test]
fn tokens_in_urls_are_not_echoed() {
    let (_store, machine) = setup();
    let address = "https://user:hf_SECRETTOKEN@example.com/a/b";
    for line in [
        &["pull", address][..],
        &["push", address],
        &["diff", address],
        &["pull-all", "--include", address],
        &["pull-all", address],
        &["pull", "--repo", address],
        &["pull", "https://user:hf_SECRETTOKEN@huggingface.co/docs/x"],
        &["list", address, "--nonsense"],
    ] {
        let output = machine.run(line);
        assert!(output.code != 0 && !format!("{output:?}").contains("SECRETTOKEN"), "{line:?}: {output:#?}");
    }
}

#[test]
fn invalid_bucket_names_are_refused() {
    let (store, machine) = setup();
    for name in ["s3://team-cache", "team/cache", "team cache", ".team"] {
        assert_unchanged(&store, &machine, &["push", "--bucket", name], 2, &[name]);
    }
}

#[test]
fn bucket_names_that_a_store_does_not_accept_are_explained() {
    // Some stores accept a single character. This one does not.
    let (store, mut machine) = setup();
    for line in [&["push"][..], &["pull", "org/name"], &["remote", "gc", "--yes"], &["list", "--remote"]] {
        let words = ["does not accept 'x' as the name of a bucket (InvalidBucketName", "storage.bucket", "3 to 63"];
        assert_unchanged(&store, &machine, &[line, &["--bucket", "x"]].concat(), 2, &words);
    }
    // Known stores are not even asked.
    for (endpoint, name, words) in [
        (
            "https://s3.us-west-004.backblazeb2.com",
            "short",
            "s3.us-west-004.backblazeb2.com have at least 6 characters",
        ),
        ("https://s3.eu-central-1.amazonaws.com", "xy", "have at least 3 characters"),
        ("", "xy", "those of AWS have at least 3 characters"),
    ] {
        match endpoint {
            "" => machine.unset("B2_ENDPOINT"),
            endpoint => machine.set("B2_ENDPOINT", endpoint),
        }
        machine.run(&["list", "--remote", "--bucket", name]).refused(2, &[name, words, "--bucket"]);
    }
}

#[test]
fn an_incomplete_key_pair_is_refused() {
    for (set, missing) in
        [("B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY"), ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")]
    {
        let (store, mut machine) = setup();
        machine.unset("B2_APPLICATION_KEY_ID");
        machine.unset("B2_APPLICATION_KEY");
        machine.set(set, "wrong-secret");
        assert_unchanged(&store, &machine, &["pull", "org/name"], 2, &[set, missing]);
        assert_unchanged(&store, &machine, &["push"], 2, &[set, missing]);
    }
    let (store, mut machine) = setup();
    machine.unset("B2_APPLICATION_KEY_ID");
    machine.unset("B2_APPLICATION_KEY");
    machine.configure("storage:\n  secret_key: \"wrong-secret\"\n");
    assert_unchanged(&store, &machine, &["push"], 2, &["storage.access_key"]);
}

#[test]
fn missing_credentials_are_an_error() {
    let (store, mut machine) = setup();
    machine.unset("B2_APPLICATION_KEY_ID");
    machine.unset("B2_APPLICATION_KEY");
    assert_unchanged(&store, &machine, &["push"], 3, &["no credentials"]);
    assert!(store.server.take_seen().is_empty(), "no unsigned request may be sent");
}

#[test]
fn an_unreachable_endpoint_is_an_error() {
    let (store, mut machine) = setup();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    machine.set("B2_ENDPOINT", &url);
    assert_unchanged(&store, &machine, &["pull", "org/name"], 6, &["cannot connect", &url]);
    assert_unchanged(&store, &machine, &["push"], 6, &["cannot connect", &url]);
}

#[test]
fn invalid_endpoints_are_refused() {
    let (store, machine) = setup();
    for url in ["ftp://host", "http://", "http://user:wrong-secret@host", "http://host:99999999"] {
        let before = (listing(&machine.home()), store.objects());
        let output = machine.run(&["push", "--endpoint", url]);
        assert_eq!((listing(&machine.home()), store.objects()), before);
        output.refused(2, &["endpoint"]);
    }
}

#[test]
fn an_endpoint_that_is_not_s3_is_reported() {
    let (store, machine) = setup();
    store.server.on_request(|_| Action::Refuse(404, "", "<html>"));
    assert_unchanged(&store, &machine, &["push"], 6, &["team-cache", "not an S3 store"]);
}

#[test]
fn wrong_keys_are_refused() {
    for (variable, value) in [("B2_APPLICATION_KEY", "wrong-secret"), ("B2_APPLICATION_KEY_ID", "wrong-id")] {
        let (store, mut machine) = setup();
        machine.set(variable, value);
        assert_unchanged(&store, &machine, &["pull", "org/name"], 3, &["credentials", "doctor"]);
        assert_unchanged(&store, &machine, &["push"], 3, &["credentials"]);
        assert_unchanged(&store, &machine, &["push", "--dry-run"], 3, &["credentials"]);
    }
}

#[test]
fn a_key_without_permission_is_refused() {
    let (store, machine) = setup();
    store.server.on_request(|_| Action::Refuse(403, "AccessDenied", "not entitled"));
    assert_unchanged(&store, &machine, &["pull", "org/name"], 3, &["not entitled", "team-cache"]);
}

#[test]
fn a_read_only_key_cannot_push() {
    let (store, machine) = setup();
    store.server.on_request(|request| match request.method.as_str() {
        "GET" | "HEAD" => Action::Pass,
        _ => Action::Refuse(403, "AccessDenied", "not entitled"),
    });
    let before = (visible(&machine.hub()), store.objects());
    let output = machine.run(&["push"]);
    assert_eq!(output.code, 3, "{output:#?}");
    assert!(output.stderr.contains("not entitled"), "{output:#?}");
    output.nothing_internal();
    assert_eq!((visible(&machine.hub()), store.objects()), before);
}

#[test]
fn an_unknown_bucket_is_not_found() {
    let (store, machine) = setup();
    let words = ["no-such-bucket", "does not exist"];
    assert_unchanged(&store, &machine, &["pull", "org/name", "--bucket", "no-such-bucket"], 4, &words);
    assert_unchanged(&store, &machine, &["push", "--bucket", "no-such-bucket"], 4, &words);
}

#[test]
fn a_wrong_region_is_reported_with_the_right_one() {
    let (store, machine) = setup();
    for (status, code) in [(400, "AuthorizationHeaderMalformed"), (301, "PermanentRedirect")] {
        store.server.on_request(move |_| Action::Refuse(status, code, "the region is wrong; expecting 'eu-south-9'"));
        assert_unchanged(&store, &machine, &["pull", "org/name"], 2, &["test-region", "eu-south-9", "storage.region"]);
        assert_unchanged(&store, &machine, &["push"], 2, &["eu-south-9"]);
    }
}

#[test]
fn pulling_an_unknown_repo_suggests_a_similar_one() {
    let (store, machine) = setup();
    assert_unchanged(&store, &machine, &["pull", "org/nmae"], 4, &["org/nmae", "did you mean org/name?"]);
    assert_unchanged(&store, &machine, &["pull", "zzz/qqq"], 4, &["zzz/qqq", "repos in the bucket: 1"]);
    assert_unchanged(&store, &machine, &["pull", "dataset:org/name"], 4, &["dataset:org/name"]);
    assert_unchanged(&store, &machine, &["pull", "org/name", "--prefix", "elsewhere"], 4, &["team.prefix"]);
    let empty = Store::new();
    Machine::new(&empty).run(&["pull", "org/name"]).refused(4, &["org/name", "push first"]);
}

#[test]
fn pushing_an_unknown_repo_suggests_a_similar_one() {
    let (store, machine) = setup();
    assert_unchanged(&store, &machine, &["push", "org/mien"], 4, &["org/mien", "did you mean org/mine"]);
}

#[test]
fn an_unknown_revision_is_not_found() {
    let (store, machine) = setup();
    for revision in ["v9", "refs/pr/9", OTHER, &OTHER[..8], "0123456788"] {
        let line = ["pull", "org/name", "-r", revision];
        assert_unchanged(&store, &machine, &line, 4, &[revision, "it has main", &COMMIT[..12]]);
    }
}

#[test]
fn an_ambiguous_short_commit_is_refused() {
    let (store, machine) = setup();
    let twin = format!("{}f", &COMMIT[..39]);
    revision().at(&twin).refs(&[]).publish(&store);
    assert_unchanged(&store, &machine, &["pull", "org/name", "-r", &COMMIT[..10]], 2, &["ambiguous", COMMIT, &twin]);
}

#[test]
fn invalid_revisions_and_ids_are_refused() {
    let (store, machine) = setup();
    for revision in ["", "../main", "a b", "x..y", "main\u{7}"] {
        assert_unchanged(&store, &machine, &["pull", "org/name", "-r", revision], 2, &["ref name"]);
    }
    for id in ["a/b/c", "../x", "org/na me", "-", "org--name"] {
        assert_unchanged(&store, &machine, &["pull", "--", id], 2, &[]);
    }
    assert_unchanged(&store, &machine, &["pull", "dataset:org/name", "--repo-type", "model"], 2, &["dataset", "model"]);
    for (line, words) in [
        (&["pull", "org/na\u{200b}me"][..], &["org/na\\u{200b}me", "it contains an invisible character (U+200B)"][..]),
        (&["push", "https://huggingface.co/org/na\u{feff}me"], &["it contains an invisible character (U+FEFF)"]),
        (&["pull", "org/name", "v1.0"], &["`hf-cache-sync pull org/name -r v1.0`"]),
        (&["pull", "org/name", "refs/pr/1"], &["`hf-cache-sync pull org/name -r refs/pr/1`"]),
        (&["prune", "--max-gb", "50GB"], &["`--max-size 50GB`"]),
        (&["pull", "org/name", "--repo-type", "planets"], &["possible values: model, dataset"]),
    ] {
        let output = machine.run(line);
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{output:#?}");
        words.iter().for_each(|word| assert!(output.stderr.contains(word), "{word}: {output:#?}"));
    }
}

#[test]
fn pasted_ids_are_cleaned_up() {
    let (_store, machine) = setup();
    for id in ["\u{feff}org/name\u{200b}", "\"org/name\"", "/org/name", "org/name#files", "models--org--name@main"] {
        machine.ok(&["pull", id, "--dry-run"]);
    }
    machine.ok(&["pull", "org/name", "--repo-type", "models", "--dry-run", "-r", "main\u{a0}\u{200b}"]);
    let output = machine.run(&["pull", "https://huggingface.co/org/name/discussions/7", "--dry-run"]);
    let text = format!("{}{}", output.stdout, output.stderr);
    assert!(
        output.code == 0 && text.contains("pulling main; the pull request itself is org/name@refs/pr/7"),
        "{output:#?}"
    );
}

#[test]
fn a_manifest_that_is_not_json_is_refused() {
    let (store, machine) = setup();
    for content in [&b""[..], b"{", b"[]", b"null", b"\xff\xfe", b"<html>", b"{\"repo\": \"org/name\"}"] {
        store.put(&revision().manifest_key(), content);
        assert_unchanged(&store, &machine, &["pull", "org/name"], 5, &["manifests/org__name", "not valid"]);
    }
}

#[test]
fn a_manifest_of_another_repo_is_refused() {
    let manifests = ManifestTest::new();
    manifests.assert_refused(|manifest| manifest["repo"] = "org/other".into(), &["org/other"]);
    assert_unchanged(&manifests.0, &manifests.1, &["pull", "org/name", "-r", COMMIT], 5, &["org/other"]);
    assert_unchanged(&manifests.0, &manifests.1, &["pull", "org/name", "--dry-run"], 5, &["org/other"]);
    manifests.assert_refused(|manifest| manifest["revision"] = OTHER.into(), &[OTHER]);
    manifests.assert_refused(|manifest| manifest["repo"] = "../../etc".into(), &["`repo`"]);
    manifests.assert_refused(|manifest| manifest["repo"] = 7.into(), &["`repo`"]);
    manifests.assert_refused(|manifest| manifest["repo_type"] = "models/../..".into(), &["`repo_type`"]);
    manifests.assert_refused(|manifest| manifest["revision"] = "main".into(), &["`revision`"]);
}

#[test]
fn manifests_with_bad_paths_are_refused() {
    let manifests = ManifestTest::new();
    for (path, word) in [
        ("..", "'..'"),
        ("../x", "'..'"),
        ("a/../../x", "'..'"),
        ("./x", "'.'"),
        ("a//b", "empty"),
        ("a/", "empty"),
        ("", "is not a valid file path"),
        ("/etc/passwd", "absolute"),
        ("sub\\x", "backslash"),
        ("C:\\x", "backslash"),
        ("a\u{0}b", "control"),
        ("a\nb", "control"),
        ("a\u{1b}[31m", "control"),
        (&"x".repeat(300), "255"),
        ("sub/file.txt", "twice"),
        ("sub", "both a file and a folder"),
        ("sub/file.txt/deeper", "both a file and a folder"),
    ] {
        manifests.assert_refused(|manifest| manifest["files"][0]["path"] = path.into(), &[word]);
    }
    manifests.assert_refused(|manifest| manifest["files"][0]["path"] = 1.into(), &["`path`"]);
    manifests.assert_refused(|manifest| manifest["files"] = json!([]), &["no files"]);
    manifests.assert_refused(|manifest| manifest["files"] = json!({}), &["`files`"]);
    manifests.assert_refused(|manifest| manifest["files"][0] = json!("config.json"), &["`files`"]);
}

#[test]
fn manifests_with_bad_blob_names_are_refused() {
    let manifests = ManifestTest::new();
    let long = "a".repeat(65);
    let upper = sha256(b"").to_uppercase();
    for name in ["", "main", "../../x", &long, &long[..39], &upper, "0123456789abcdef0123456789abcdef0123456g"] {
        manifests.assert_refused(|manifest| manifest["files"][0]["blob"] = name.into(), &["blob name"]);
    }
    manifests.assert_refused(|manifest| manifest["files"][0]["blob"] = Value::Null, &["`blob`"]);
}

#[test]
fn manifests_with_bad_sizes_are_refused() {
    let manifests = ManifestTest::new();
    for size in [json!(-1), json!(1.5), json!("7"), Value::Null, json!(1e30)] {
        manifests.assert_refused(|manifest| manifest["files"][0]["size"] = size.clone(), &["size"]);
    }
    let twice = |manifest: &mut Value| {
        let mut file = manifest["files"][0].clone();
        file["path"] = "again".into();
        file["size"] = 1.into();
        manifest["files"].as_array_mut().unwrap().push(file);
    };
    manifests.assert_refused(twice, &["two sizes"]);
    let huge = |manifest: &mut Value| {
        manifest["files"][0]["size"] = u64::MAX.into();
        manifest["files"][1]["size"] = u64::MAX.into();
    };
    manifests.assert_refused(huge, &["more than any disk"]);
}

#[test]
fn a_wrong_size_in_a_manifest_is_detected() {
    // In one request and in ranges; objects that are larger and smaller.
    for (length, stated) in [(1000, 999), (1000, 1001), (9 << 20, (9 << 20) - 1), (9 << 20, (9 << 20) + 1)] {
        let (store, machine) = setup();
        let revision = Revision::new("model", "org/sized").lfs("model.bin", weights(1, length));
        revision.publish(&store);
        let mut manifest = revision.manifest();
        manifest["files"][0]["size"] = stated.into();
        store.put(&revision.manifest_key(), indented(&manifest, b"  "));
        let before = (visible(&machine.hub()), store.objects());
        let output = machine.run(&["pull", "org/sized"]);
        assert_eq!((output.code, output.stdout.as_str()), (5, ""), "{output:#?}");
        assert!(output.stderr.contains("wrong size") && output.stderr.contains(&stated.to_string()), "{output:#?}");
        output.nothing_internal();
        assert_eq!((visible(&machine.hub()), store.objects()), before);
    }
}

#[test]
fn manifests_with_bad_trees_are_refused() {
    let manifests = ManifestTest::new();
    let tree: Value = serde_json::from_slice(&revision().tree_json()).unwrap();
    let assert_tree_refused = |alter: &dyn Fn(&mut Value), words: &[&str]| {
        let mut tree = tree.clone();
        alter(&mut tree);
        manifests.assert_refused(|manifest| manifest["tree"] = tree.clone(), &[words, &["tree"]].concat());
    };
    let entry = tree["files"]["config.json"].clone();
    for path in ["../x", "/x", "a\\b", "a\u{0}", "", "config.json/x"] {
        assert_tree_refused(&|tree| tree["files"][path] = entry.clone(), &[]);
    }
    let lfs = |tree: &mut Value, key: &str, value: Value| tree["files"]["model.safetensors"][key] = value;
    for hash in [json!("../../x"), json!("ab"), json!(1), json!(git_sha1(b""))] {
        assert_tree_refused(&|tree| lfs(tree, "lfs_sha256", hash.clone()), &[]);
        assert_tree_refused(&|tree| lfs(tree, "xet_hash", hash.clone()), &[]);
    }
    assert_tree_refused(&|tree| lfs(tree, "blob_id", json!(sha256(b""))), &[]);
    assert_tree_refused(&|tree| lfs(tree, "size", json!("large")), &[]);
    assert_tree_refused(&|tree| lfs(tree, "lfs_sha256", json!(sha256(b"other"))), &["model.safetensors"]);
    assert_tree_refused(&|tree| drop(tree["files"].as_object_mut().unwrap().remove("config.json")), &["config.json"]);
    assert_tree_refused(&|tree| tree["files"] = json!([]), &[]);
    manifests.assert_refused(|manifest| manifest["tree"] = json!("tree"), &["tree"]);
}

#[test]
fn a_tree_of_an_unknown_version_is_ignored() {
    let (store, machine) = setup();
    let mut manifest = revision().manifest();
    manifest["tree"] = json!({"format_version": 2, "files": {"../x": {}}});
    store.put(&revision().manifest_key(), indented(&manifest, b"  "));
    machine.ok(&["pull", "org/name"]);
    revision().assert_pulled(&machine.hub());
    assert!(!revision().dir(&machine.hub()).join("trees").exists());
}

#[test]
fn a_ref_that_is_not_a_commit_is_refused() {
    let (store, machine) = setup();
    for content in ["", "main", "../../x", &COMMIT[..39], "\u{1b}[31m", &"0".repeat(41), &"x".repeat(10_000)] {
        store.put("refs/org__name/main", content);
        assert_unchanged(&store, &machine, &["pull", "org/name"], 5, &["refs/org__name/main"]);
        assert!(
            !machine.run(&["pull", "org/name"]).stderr.contains('\u{1b}'),
            "no escape sequence may reach the terminal"
        );
    }
}

#[test]
fn a_ref_to_a_missing_manifest_is_not_found() {
    let (store, machine) = setup();
    store.put("refs/org__name/main", OTHER);
    assert_unchanged(&store, &machine, &["pull", "org/name"], 4, &["main", &COMMIT[..12]]);
}

#[test]
fn a_blob_missing_from_the_bucket_is_named() {
    for length in [1000, 9 << 20] {
        let (store, machine) = setup();
        let revision = Revision::new("model", "org/one").lfs("model.bin", weights(1, length));
        revision.publish(&store);
        store.remove(&revision.blob_key("model.bin"));
        let before = (visible(&machine.hub()), store.objects());
        let output = machine.run(&["pull", "org/one"]);
        assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{output:#?}");
        assert!(
            output.stderr.contains(&revision.etag("model.bin")) && output.stderr.contains("push it again"),
            "{output:#?}"
        );
        output.nothing_internal();
        assert_eq!((visible(&machine.hub()), store.objects()), before);
    }
}

#[test]
fn a_corrupt_blob_in_the_bucket_is_not_installed() {
    // With sha256 and git's sha1; in one request and in ranges.
    for (lfs, length) in [(true, 1000), (false, 1000), (true, 9 << 20), (false, 9 << 20)] {
        let (store, machine) = setup();
        let bytes = weights(1, length);
        let revision = Revision::new("model", "org/one");
        let revision = if lfs { revision.lfs("model.bin", &bytes) } else { revision.git("model.bin", &bytes) };
        revision.publish(&store);
        let mut bytes = bytes;
        bytes[length - 1] ^= 1;
        store.put(&revision.blob_key("model.bin"), &bytes);
        let before = (visible(&machine.hub()), store.objects());
        for _ in 0..2 {
            let output = machine.run(&["pull", "org/one"]);
            assert_eq!((output.code, output.stdout.as_str()), (5, ""), "{output:#?}");
            let words =
                [&revision.etag("model.bin"), "corrupt in the bucket", "verify --remote --deep --repair org/one"];
            assert!(words.iter().all(|words| output.stderr.contains(words)), "{output:#?}");
            output.nothing_internal();
            assert_eq!((visible(&machine.hub()), store.objects()), before);
        }
        let partial = machine.hub().join(".locks/.hf-cache-sync/partial");
        let left: Vec<String> = listing(&partial).into_keys().collect();
        assert!(left.iter().all(|name| name.is_empty() || name.ends_with(".lock")), "{left:?}");
    }
}

#[test]
fn a_full_disk_is_detected_before_the_download() {
    let (store, machine) = setup();
    let mut manifest = revision().manifest();
    manifest["files"][0]["size"] = (1u64 << 60).into();
    store.put(&revision().manifest_key(), indented(&manifest, b"  "));
    store.server.take_seen();
    let words = ["not enough disk space", "needs 1.0 EiB", "are free at", "prune"];
    assert_unchanged(&store, &machine, &["pull", "org/name"], 1, &words);
    assert!(!store.server.take_seen().iter().any(|seen| seen.key.starts_with("blobs/")), "no blob may be requested");
}

#[cfg(unix)]
#[test]
fn a_read_only_cache_can_be_pushed_but_not_pulled_into() {
    let (store, machine) = setup();
    let assert_denied = |output: Output| {
        output.refused(3, &["ermission denied"]);
    };
    let before = (listing(&machine.hub()), store.objects());
    assert_denied(machine.run_read_only(&["pull", "org/name"]));
    assert_eq!((listing(&machine.hub()), store.objects()), before);
    // The cache's root does not exist either.
    fs::create_dir(machine.home().join("locked")).unwrap();
    assert_denied(machine.run_read_only(&["pull", "org/name", "--cache-dir", "../locked/hub"]));
    // A push only reads.
    let output = machine.run_read_only(&["push"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert_eq!(listing(&machine.hub()), before.0);
    mine().assert_published(&store);
}

#[test]
fn a_cache_path_that_is_a_file_is_refused() {
    let (store, machine) = setup();
    fs::write(machine.home().join("file"), "mine").unwrap();
    for line in [&["pull", "org/name"][..], &["push"], &["pull", "org/name", "--dry-run"]] {
        let line = [line, &["--cache-dir", "../file"]].concat();
        assert_unchanged(&store, &machine, &line, 2, &["not a directory"]);
    }
    let output = machine.run(&["doctor", "--cache-dir", "../file"]);
    assert_ne!(output.code, 0, "{output:#?}");
    assert_eq!(fs::read(machine.home().join("file")).unwrap(), b"mine");
}

#[cfg(unix)]
#[test]
fn links_out_of_the_cache_are_not_followed() {
    use std::os::unix::fs::symlink;
    let revision = revision();
    for part in ["blobs", "snapshots", "refs", "", ".locks", "snapshots/COMMIT/sub"] {
        let store = Store::new();
        let machine = Machine::new(&store);
        revision.publish(&store);
        let outside = machine.home().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("mine"), "mine").unwrap();
        let link = match part {
            ".locks" => machine.hub().join(".locks"),
            part => revision.dir(&machine.hub()).join(part.replace("COMMIT", COMMIT)),
        };
        let link = link.components().collect::<std::path::PathBuf>();
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&outside, &link).unwrap();
        let before = listing(&outside);
        let output = machine.run(&["pull", "org/name"]);
        assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{part}: {output:#?}");
        assert!(output.stderr.contains("symbolic link"), "{part}: {output:#?}");
        output.nothing_internal();
        assert_eq!(listing(&outside), before, "{part}");
        assert!(link.is_symlink());
    }
}

/// Objects under our keys that 0.1.0 or another program left behind are replaced, and do not stop the push.
#[test]
fn a_push_replaces_garbage_under_its_keys() {
    let (store, machine) = setup();
    for content in [&b"{"[..], b"x".repeat(10_000).as_slice(), b"\xff"] {
        store.put("refs/org__mine/main", content);
        store.put(&mine().manifest_key(), content);
        store.put("refs/org__name/main", content);
        machine.ok(&["push"]);
        mine().assert_published(&store);
        assert_eq!(store.text("refs/org__mine/main"), OTHER);
        assert_eq!(store.text("refs/org__name/main"), OTHER);
    }
}

/// For example, those of macOS Finder.
#[test]
fn stray_files_in_the_cache_are_ignored() {
    let (store, machine) = setup();
    for dir in ["", "models--org--name", "models--org--name/snapshots", "models--org--name/blobs"] {
        fs::write(machine.hub().join(dir).join(".DS_Store"), "Mac").unwrap();
        fs::write(machine.hub().join(dir).join("stray.txt"), "stray").unwrap();
    }
    machine.ok(&["pull", "org/name"]);
    revision().assert_pulled(&machine.hub());
    machine.ok(&["push"]);
    assert!(!store.objects().values().any(|hash| *hash == sha256(b"stray") || *hash == sha256(b"Mac")));
}

#[test]
fn bad_configuration_files_are_refused() {
    let (store, machine) = setup();
    assert_unchanged(&store, &machine, &["push", "--config", "missing.yaml"], 2, &["missing.yaml"]);
    for (yaml, words) in [
        ("storage: [", &["line"][..]),
        ("just text", &["line 1"]),
        ("storage: 7", &["storage", "line 1"]),
        ("cache:\n  max_local_gb: lots", &["max_local_gb", "line 2"]),
        ("cache:\n  max_local_gb: 50GB", &["max_local_gb", "a plain number of GiB", "such as 50"]),
        ("cache:\n  max_local_gb: -1", &["max_local_gb", "line 2"]),
        ("team:\n  prefix: [a]", &["prefix", "line 2"]),
        ("storage:\n  access_key: 12345", &["access_key", "line 2", "quotes"]),
        ("team:\n  prefix: a/../b", &["a/../b"]),
        ("storage:\n  bucket: a\n  bucket: b", &["bucket", "line"]),
    ] {
        machine.configure(yaml);
        assert_unchanged(&store, &machine, &["push"], 2, words);
        assert!(!machine.run(&["push"]).stderr.contains("12345"), "keys must never be shown");
    }
    machine.configure("storage:\n  buket: x\nteem:\n  prefix: y\n");
    let output = machine.run(&["push", "--dry-run"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(output.stderr.contains("did you mean `storage.bucket`") && output.stderr.contains("did you mean `team`"));
}
