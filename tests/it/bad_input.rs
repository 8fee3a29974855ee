//! Bad input, each kind of it: one clear error of one to three lines, the documented exit code, and no change, neither
//! in the cache nor in the bucket.

mod settings;

use std::fs;
use std::net::TcpListener;

use crate::harness::cache::{COMMIT, OTHER, Revision, indented};
use crate::harness::machine::{Machine, Ran};
use crate::harness::s3::Action;
use crate::harness::store::Store;
use crate::harness::{git_sha1, listing, sha256, visible, weights};
use serde_json::{Value, json};

/// A bucket with `org/name` and a machine with something of its own, to be compared afterwards.
fn scene() -> (Store, Machine) {
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

/// Runs, and compares everything before and after.
#[track_caller]
fn unchanged(store: &Store, machine: &Machine, line: &[&str], code: i32, words: &[&str]) {
    let before = (listing(&machine.home()), store.objects());
    let ran = machine.run(line);
    ran.refused(code, words);
    assert!((listing(&machine.home()), store.objects()) == before, "{line:?} changed something: {ran:#?}");
}

/// A scene in which manifests of `org/name` are bent.
struct Bender(Store, Machine);

impl Bender {
    fn new() -> Self {
        let (store, machine) = scene();
        Bender(store, machine)
    }

    /// Publishes `org/name` with a manifest that is bent, and pulls it.
    #[track_caller]
    fn bend(&self, bend: impl Fn(&mut Value), words: &[&str]) {
        let mut manifest = revision().manifest();
        bend(&mut manifest);
        self.0.put(&revision().manifest_key(), indented(&manifest, b"  "));
        unchanged(&self.0, &self.1, &["pull", "org/name"], 5, &[words, &["org__name"]].concat());
    }
}

#[test]
fn no_bucket() {
    let (store, mut machine) = scene();
    machine.unset("B2_BUCKET");
    unchanged(&store, &machine, &["pull", "org/name"], 2, &["no bucket", "--bucket"]);
    unchanged(&store, &machine, &["push"], 2, &["no bucket"]);
}

#[test]
fn a_token_in_an_address_is_not_repeated() {
    let (_store, machine) = scene();
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
        let ran = machine.run(line);
        assert!(ran.code != 0 && !format!("{ran:?}").contains("SECRETTOKEN"), "{line:?}: {ran:#?}");
    }
}

#[test]
fn a_bucket_name_that_is_none() {
    let (store, machine) = scene();
    for name in ["s3://team-cache", "team/cache", "team cache"] {
        unchanged(&store, &machine, &["push", "--bucket", name], 2, &[name]);
    }
}

#[test]
fn half_a_credential_pair() {
    for (set, missing) in
        [("B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY"), ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")]
    {
        let (store, mut machine) = scene();
        machine.unset("B2_APPLICATION_KEY_ID");
        machine.unset("B2_APPLICATION_KEY");
        machine.set(set, "wrong-secret");
        unchanged(&store, &machine, &["pull", "org/name"], 2, &[set, missing]);
        unchanged(&store, &machine, &["push"], 2, &[set, missing]);
    }
    let (store, mut machine) = scene();
    machine.unset("B2_APPLICATION_KEY_ID");
    machine.unset("B2_APPLICATION_KEY");
    machine.configure("storage:\n  secret_key: \"wrong-secret\"\n");
    unchanged(&store, &machine, &["push"], 2, &["storage.access_key"]);
}

#[test]
fn no_credentials_at_all() {
    let (store, mut machine) = scene();
    machine.unset("B2_APPLICATION_KEY_ID");
    machine.unset("B2_APPLICATION_KEY");
    unchanged(&store, &machine, &["push"], 3, &["no credentials"]);
    assert!(store.server.take_seen().is_empty(), "and nothing is sent without a signature");
}

#[test]
fn an_endpoint_where_nobody_is() {
    let (store, mut machine) = scene();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    machine.set("B2_ENDPOINT", &url);
    unchanged(&store, &machine, &["pull", "org/name"], 6, &["cannot connect", &url]);
    unchanged(&store, &machine, &["push"], 6, &["cannot connect", &url]);
}

#[test]
fn an_endpoint_that_is_none() {
    let (store, machine) = scene();
    for url in ["ftp://host", "http://", "http://user:wrong-secret@host", "http://host:99999999"] {
        let before = (listing(&machine.home()), store.objects());
        let ran = machine.run(&["push", "--endpoint", url]);
        assert_eq!((listing(&machine.home()), store.objects()), before);
        ran.refused(2, &["endpoint"]);
    }
}

#[test]
fn an_endpoint_that_is_no_store() {
    let (store, machine) = scene();
    store.server.on_request(|_| Action::Refuse(404, "", "<html>"));
    unchanged(&store, &machine, &["push"], 6, &["team-cache", "not an S3 store"]);
}

#[test]
fn a_wrong_key() {
    for (variable, value) in [("B2_APPLICATION_KEY", "wrong-secret"), ("B2_APPLICATION_KEY_ID", "wrong-id")] {
        let (store, mut machine) = scene();
        machine.set(variable, value);
        unchanged(&store, &machine, &["pull", "org/name"], 3, &["credentials", "doctor"]);
        unchanged(&store, &machine, &["push"], 3, &["credentials"]);
        unchanged(&store, &machine, &["push", "--dry-run"], 3, &["credentials"]);
    }
}

#[test]
fn a_key_that_may_not() {
    let (store, machine) = scene();
    store.server.on_request(|_| Action::Refuse(403, "AccessDenied", "not entitled"));
    unchanged(&store, &machine, &["pull", "org/name"], 3, &["not entitled", "team-cache"]);
}

#[test]
fn a_read_only_key_cannot_push() {
    let (store, machine) = scene();
    store.server.on_request(|request| match request.method.as_str() {
        "GET" | "HEAD" => Action::Pass,
        _ => Action::Refuse(403, "AccessDenied", "not entitled"),
    });
    let before = (visible(&machine.hub()), store.objects());
    let ran = machine.run(&["push"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.stderr.contains("not entitled"), "{ran:#?}");
    ran.nothing_internal();
    assert_eq!((visible(&machine.hub()), store.objects()), before);
}

#[test]
fn a_wrong_bucket() {
    let (store, machine) = scene();
    let words = ["no-such-bucket", "does not exist"];
    unchanged(&store, &machine, &["pull", "org/name", "--bucket", "no-such-bucket"], 4, &words);
    unchanged(&store, &machine, &["push", "--bucket", "no-such-bucket"], 4, &words);
}

#[test]
fn a_wrong_region() {
    let (store, machine) = scene();
    for (status, code) in [(400, "AuthorizationHeaderMalformed"), (301, "PermanentRedirect")] {
        store.server.on_request(move |_| Action::Refuse(status, code, "the region is wrong; expecting 'eu-south-9'"));
        unchanged(&store, &machine, &["pull", "org/name"], 2, &["test-region", "eu-south-9", "storage.region"]);
        unchanged(&store, &machine, &["push"], 2, &["eu-south-9"]);
    }
}

#[test]
fn a_repo_that_is_not_in_the_bucket() {
    let (store, machine) = scene();
    unchanged(&store, &machine, &["pull", "org/nmae"], 4, &["org/nmae", "did you mean org/name?"]);
    unchanged(&store, &machine, &["pull", "zzz/qqq"], 4, &["zzz/qqq", "repos in the bucket: 1"]);
    unchanged(&store, &machine, &["pull", "dataset:org/name"], 4, &["dataset:org/name"]);
    unchanged(&store, &machine, &["pull", "org/name", "--prefix", "elsewhere"], 4, &["team.prefix"]);
    let empty = Store::new();
    Machine::new(&empty).run(&["pull", "org/name"]).refused(4, &["org/name", "push first"]);
}

#[test]
fn a_repo_that_is_not_in_the_cache() {
    let (store, machine) = scene();
    unchanged(&store, &machine, &["push", "org/mien"], 4, &["org/mien", "did you mean org/mine"]);
}

#[test]
fn a_revision_that_is_not_in_the_bucket() {
    let (store, machine) = scene();
    for revision in ["v9", "refs/pr/9", OTHER, &OTHER[..8], "0123456788"] {
        let line = ["pull", "org/name", "-r", revision];
        unchanged(&store, &machine, &line, 4, &[revision, "it has main", &COMMIT[..12]]);
    }
}

#[test]
fn a_short_commit_that_fits_two() {
    let (store, machine) = scene();
    let twin = format!("{}f", &COMMIT[..39]);
    revision().at(&twin).refs(&[]).publish(&store);
    unchanged(&store, &machine, &["pull", "org/name", "-r", &COMMIT[..10]], 2, &["ambiguous", COMMIT, &twin]);
}

#[test]
fn a_revision_or_id_that_is_none() {
    let (store, machine) = scene();
    for revision in ["", "../main", "a b", "x..y", "main\u{7}"] {
        unchanged(&store, &machine, &["pull", "org/name", "-r", revision], 2, &["ref name"]);
    }
    for id in ["a/b/c", "../x", "org/na me", "-", "org--name"] {
        unchanged(&store, &machine, &["pull", "--", id], 2, &[]);
    }
    unchanged(&store, &machine, &["pull", "dataset:org/name", "--repo-type", "model"], 2, &["dataset", "model"]);
    for (line, words) in [
        (&["pull", "org/na\u{200b}me"][..], &["org/na\\u{200b}me", "it contains an invisible character (U+200B)"][..]),
        (&["push", "https://huggingface.co/org/na\u{feff}me"], &["it contains an invisible character (U+FEFF)"]),
        (&["pull", "org/name", "rajpurkar/squad"], &["one repo at a time", "`hf-cache-sync pull rajpurkar/squad`"]),
        (&["pull", "org/name", "v1.0"], &["`hf-cache-sync pull org/name -r v1.0`"]),
        (&["pull", "org/name", "refs/pr/1"], &["`hf-cache-sync pull org/name -r refs/pr/1`"]),
        (&["prune", "--max-gb", "50GB"], &["`--max-size 50GB`"]),
        (&["pull", "org/name", "--repo-type", "planets"], &["possible values: model, dataset"]),
    ] {
        let ran = machine.run(line);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:#?}");
        words.iter().for_each(|word| assert!(ran.stderr.contains(word), "{word}: {ran:#?}"));
    }
}

#[test]
fn ids_as_they_are_pasted() {
    let (_store, machine) = scene();
    for id in ["\u{feff}org/name\u{200b}", "\"org/name\"", "/org/name", "org/name#files", "models--org--name@main"] {
        machine.ok(&["pull", id, "--dry-run"]);
    }
    machine.ok(&["pull", "org/name", "--repo-type", "models", "--dry-run", "-r", "main\u{a0}\u{200b}"]);
    let ran = machine.run(&["pull", "https://huggingface.co/org/name/discussions/7", "--dry-run"]);
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(ran.code == 0 && said.contains("pulling main; the pull request itself is org/name@refs/pr/7"), "{ran:#?}");
}

#[test]
fn a_manifest_that_is_no_json() {
    let (store, machine) = scene();
    for content in [&b""[..], b"{", b"[]", b"null", b"\xff\xfe", b"<html>", b"{\"repo\": \"org/name\"}"] {
        store.put(&revision().manifest_key(), content);
        unchanged(&store, &machine, &["pull", "org/name"], 5, &["manifests/org__name", "not valid"]);
    }
}

#[test]
fn a_manifest_of_another_repo() {
    let bender = Bender::new();
    bender.bend(|manifest| manifest["repo"] = "org/other".into(), &["org/other"]);
    unchanged(&bender.0, &bender.1, &["pull", "org/name", "-r", COMMIT], 5, &["org/other"]);
    unchanged(&bender.0, &bender.1, &["pull", "org/name", "--dry-run"], 5, &["org/other"]);
    bender.bend(|manifest| manifest["revision"] = OTHER.into(), &[OTHER]);
    bender.bend(|manifest| manifest["repo"] = "../../etc".into(), &["`repo`"]);
    bender.bend(|manifest| manifest["repo"] = 7.into(), &["`repo`"]);
    bender.bend(|manifest| manifest["repo_type"] = "models/../..".into(), &["`repo_type`"]);
    bender.bend(|manifest| manifest["revision"] = "main".into(), &["`revision`"]);
}

#[test]
fn a_manifest_with_bad_paths() {
    let bender = Bender::new();
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
        bender.bend(|manifest| manifest["files"][0]["path"] = path.into(), &[word]);
    }
    bender.bend(|manifest| manifest["files"][0]["path"] = 1.into(), &["`path`"]);
    bender.bend(|manifest| manifest["files"] = json!([]), &["no files"]);
    bender.bend(|manifest| manifest["files"] = json!({}), &["`files`"]);
    bender.bend(|manifest| manifest["files"][0] = json!("config.json"), &["`files`"]);
}

#[test]
fn a_manifest_with_bad_blob_names() {
    let bender = Bender::new();
    let long = "a".repeat(65);
    let upper = sha256(b"").to_uppercase();
    for name in ["", "main", "../../x", &long, &long[..39], &upper, "0123456789abcdef0123456789abcdef0123456g"] {
        bender.bend(|manifest| manifest["files"][0]["blob"] = name.into(), &["blob name"]);
    }
    bender.bend(|manifest| manifest["files"][0]["blob"] = Value::Null, &["`blob`"]);
}

#[test]
fn a_manifest_with_bad_sizes() {
    let bender = Bender::new();
    for size in [json!(-1), json!(1.5), json!("7"), Value::Null, json!(1e30)] {
        bender.bend(|manifest| manifest["files"][0]["size"] = size.clone(), &["size"]);
    }
    let twice = |manifest: &mut Value| {
        let mut file = manifest["files"][0].clone();
        file["path"] = "again".into();
        file["size"] = 1.into();
        manifest["files"].as_array_mut().unwrap().push(file);
    };
    bender.bend(twice, &["two sizes"]);
    let huge = |manifest: &mut Value| {
        manifest["files"][0]["size"] = u64::MAX.into();
        manifest["files"][1]["size"] = u64::MAX.into();
    };
    bender.bend(huge, &["more than any disk"]);
}

#[test]
fn a_size_that_is_not_the_objects() {
    // In one request and in ranges; larger and smaller than the object.
    for (length, said) in [(1000, 999), (1000, 1001), (9 << 20, (9 << 20) - 1), (9 << 20, (9 << 20) + 1)] {
        let (store, machine) = scene();
        let revision = Revision::new("model", "org/sized").lfs("model.bin", weights(1, length));
        revision.publish(&store);
        let mut manifest = revision.manifest();
        manifest["files"][0]["size"] = said.into();
        store.put(&revision.manifest_key(), indented(&manifest, b"  "));
        let before = (visible(&machine.hub()), store.objects());
        let ran = machine.run(&["pull", "org/sized"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (5, ""), "{ran:#?}");
        assert!(ran.stderr.contains("wrong size") && ran.stderr.contains(&said.to_string()), "{ran:#?}");
        ran.nothing_internal();
        assert_eq!((visible(&machine.hub()), store.objects()), before);
    }
}

#[test]
fn a_bad_tree() {
    let bender = Bender::new();
    let tree: Value = serde_json::from_slice(&revision().tree_json()).unwrap();
    let bent_tree = |bend: &dyn Fn(&mut Value), words: &[&str]| {
        let mut tree = tree.clone();
        bend(&mut tree);
        bender.bend(|manifest| manifest["tree"] = tree.clone(), &[words, &["tree"]].concat());
    };
    let entry = tree["files"]["config.json"].clone();
    for path in ["../x", "/x", "a\\b", "a\u{0}", "", "config.json/x"] {
        bent_tree(&|tree| tree["files"][path] = entry.clone(), &[]);
    }
    let lfs = |tree: &mut Value, key: &str, value: Value| tree["files"]["model.safetensors"][key] = value;
    for hash in [json!("../../x"), json!("ab"), json!(1), json!(git_sha1(b""))] {
        bent_tree(&|tree| lfs(tree, "lfs_sha256", hash.clone()), &[]);
        bent_tree(&|tree| lfs(tree, "xet_hash", hash.clone()), &[]);
    }
    bent_tree(&|tree| lfs(tree, "blob_id", json!(sha256(b""))), &[]);
    bent_tree(&|tree| lfs(tree, "size", json!("large")), &[]);
    bent_tree(&|tree| lfs(tree, "lfs_sha256", json!(sha256(b"other"))), &["model.safetensors"]);
    bent_tree(&|tree| drop(tree["files"].as_object_mut().unwrap().remove("config.json")), &["config.json"]);
    bent_tree(&|tree| tree["files"] = json!([]), &[]);
    bender.bend(|manifest| manifest["tree"] = json!("tree"), &["tree"]);
}

#[test]
fn a_tree_of_an_unknown_version_is_no_tree() {
    let (store, machine) = scene();
    let mut manifest = revision().manifest();
    manifest["tree"] = json!({"format_version": 2, "files": {"../x": {}}});
    store.put(&revision().manifest_key(), indented(&manifest, b"  "));
    machine.ok(&["pull", "org/name"]);
    revision().assert_pulled(&machine.hub());
    assert!(!revision().dir(&machine.hub()).join("trees").exists());
}

#[test]
fn a_ref_that_is_no_commit() {
    let (store, machine) = scene();
    for content in ["", "main", "../../x", &COMMIT[..39], "\u{1b}[31m", &"0".repeat(41), &"x".repeat(10_000)] {
        store.put("refs/org__name/main", content);
        unchanged(&store, &machine, &["pull", "org/name"], 5, &["refs/org__name/main"]);
        assert!(!machine.run(&["pull", "org/name"]).stderr.contains('\u{1b}'), "nothing drives the terminal");
    }
}

#[test]
fn a_ref_to_a_manifest_that_is_not_there() {
    let (store, machine) = scene();
    store.put("refs/org__name/main", OTHER);
    unchanged(&store, &machine, &["pull", "org/name"], 4, &["main", &COMMIT[..12]]);
}

#[test]
fn a_blob_that_is_missing_in_the_bucket() {
    for length in [1000, 9 << 20] {
        let (store, machine) = scene();
        let revision = Revision::new("model", "org/one").lfs("model.bin", weights(1, length));
        revision.publish(&store);
        store.remove(&revision.blob_key("model.bin"));
        let before = (visible(&machine.hub()), store.objects());
        let ran = machine.run(&["pull", "org/one"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:#?}");
        assert!(ran.stderr.contains(&revision.etag("model.bin")) && ran.stderr.contains("push it again"), "{ran:#?}");
        ran.nothing_internal();
        assert_eq!((visible(&machine.hub()), store.objects()), before);
    }
}

#[test]
fn bytes_that_are_not_what_their_name_says() {
    // By sha256 and by git's sha1; in one request and in ranges.
    for (lfs, length) in [(true, 1000), (false, 1000), (true, 9 << 20), (false, 9 << 20)] {
        let (store, machine) = scene();
        let bytes = weights(1, length);
        let revision = Revision::new("model", "org/one");
        let revision = if lfs { revision.lfs("model.bin", &bytes) } else { revision.git("model.bin", &bytes) };
        revision.publish(&store);
        let mut bytes = bytes;
        bytes[length - 1] ^= 1;
        store.put(&revision.blob_key("model.bin"), &bytes);
        let before = (visible(&machine.hub()), store.objects());
        for _ in 0..2 {
            let ran = machine.run(&["pull", "org/one"]);
            assert_eq!((ran.code, ran.stdout.as_str()), (5, ""), "{ran:#?}");
            assert!(ran.stderr.contains(&revision.blob_key("model.bin")) && ran.stderr.contains("corrupt"), "{ran:#?}");
            ran.nothing_internal();
            assert_eq!((visible(&machine.hub()), store.objects()), before);
        }
        let partial = machine.hub().join(".locks/.hf-cache-sync/partial");
        let left: Vec<String> = listing(&partial).into_keys().collect();
        assert!(left.iter().all(|name| name.is_empty() || name.ends_with(".lock")), "{left:?}");
    }
}

#[test]
fn a_full_disk() {
    let (store, machine) = scene();
    let mut manifest = revision().manifest();
    manifest["files"][0]["size"] = (1u64 << 60).into();
    store.put(&revision().manifest_key(), indented(&manifest, b"  "));
    store.server.take_seen();
    let words = ["not enough disk space", "needs 1.0 EiB", "are free at", "prune"];
    unchanged(&store, &machine, &["pull", "org/name"], 1, &words);
    assert!(!store.server.take_seen().iter().any(|seen| seen.key.starts_with("blobs/")), "before the first byte");
}

#[cfg(unix)]
#[test]
fn a_read_only_cache() {
    let (store, machine) = scene();
    let refused = |ran: Ran| {
        ran.refused(3, &["ermission denied"]);
    };
    let before = (listing(&machine.hub()), store.objects());
    refused(machine.run_read_only(&["pull", "org/name"]));
    assert_eq!((listing(&machine.hub()), store.objects()), before);
    // Not even the root is there.
    fs::create_dir(machine.home().join("locked")).unwrap();
    refused(machine.run_read_only(&["pull", "org/name", "--cache-dir", "../locked/hub"]));
    // A push only reads.
    let ran = machine.run_read_only(&["push"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(listing(&machine.hub()), before.0);
    mine().assert_published(&store);
}

#[test]
fn a_cache_that_is_a_file() {
    let (store, machine) = scene();
    fs::write(machine.home().join("file"), "mine").unwrap();
    for line in [&["pull", "org/name"][..], &["push"], &["pull", "org/name", "--dry-run"]] {
        let line = [line, &["--cache-dir", "../file"]].concat();
        unchanged(&store, &machine, &line, 2, &["not a directory"]);
    }
    let ran = machine.run(&["doctor", "--cache-dir", "../file"]);
    assert_ne!(ran.code, 0, "{ran:#?}");
    assert_eq!(fs::read(machine.home().join("file")).unwrap(), b"mine");
}

#[cfg(unix)]
#[test]
fn links_that_lead_out_of_the_cache() {
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
        let ran = machine.run(&["pull", "org/name"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{part}: {ran:#?}");
        assert!(ran.stderr.contains("symbolic link"), "{part}: {ran:#?}");
        ran.nothing_internal();
        assert_eq!(listing(&outside), before, "{part}");
        assert!(link.is_symlink());
    }
}

/// What 0.1.0 or another hand left under our keys is replaced, and stops nothing else.
#[test]
fn a_push_over_rubbish() {
    let (store, machine) = scene();
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

/// Such as the Finder's.
#[test]
fn stray_files_in_the_cache() {
    let (store, machine) = scene();
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
fn configuration_files() {
    let (store, machine) = scene();
    unchanged(&store, &machine, &["push", "--config", "missing.yaml"], 2, &["missing.yaml"]);
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
        unchanged(&store, &machine, &["push"], 2, words);
        assert!(!machine.run(&["push"]).stderr.contains("12345"), "a key is never shown");
    }
    machine.configure("storage:\n  buket: x\nteem:\n  prefix: y\n");
    let ran = machine.run(&["push", "--dry-run"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stderr.contains("did you mean `storage.bucket`") && ran.stderr.contains("did you mean `team`"));
}
