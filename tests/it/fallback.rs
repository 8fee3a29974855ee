//! `--fallback hf-hub`: when the Hub is contacted and when it is not, and that its data is verified before it becomes
//! visible.

use std::fs;

use crate::harness::cache::{COMMIT, Revision};
use crate::harness::hub_server::{Hub, HubRequest, Reply, TOKEN, entry};
use crate::harness::machine::{Machine, Output};
use crate::harness::s3::Action;
use crate::harness::store::{BUCKET, Store};
use crate::harness::{listing, tls_file, weights};
use hf_cache_sync::internals::config::Secret;
use hf_cache_sync::internals::hub::Hub as Client;
use hf_cache_sync::internals::transfer::download::{Fetch, download};
use hf_cache_sync::internals::transfer::limit::Caps;
use hf_cache_sync::internals::transfer::source::Source;
use serde_json::{Value, json};

const HUB: [&str; 2] = ["--fallback", "hf-hub"];

/// A store, a Hub with these revisions, and a machine that is configured for both.
fn setup(revisions: &[Revision]) -> (Store, Hub, Machine) {
    let (store, hub) = (Store::new(), Hub::start(revisions));
    let machine = machine(&store, &hub);
    (store, hub, machine)
}

fn machine(store: &Store, hub: &Hub) -> Machine {
    let mut machine = Machine::new(store);
    machine.set("HF_ENDPOINT", &hub.url);
    machine
}

fn pull(machine: &Machine, line: &[&str]) -> Output {
    machine.run(&[&["pull"], line, &HUB].concat())
}

/// Asserts that the cache has no unfinished files, neither the client's nor ours.
fn assert_clean(machine: &Machine) {
    let found = listing(&machine.hub());
    let unfinished = |path: &&String| {
        [".incomplete", ".tmp", ".small", ".parts"].iter().any(|end| path.ends_with(end))
            || path.starts_with(".locks/.hf-cache-sync/partial/")
    };
    assert_eq!(found.keys().filter(unfinished).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn a_repo_missing_from_the_bucket_is_pulled_from_the_hub() {
    for kind in ["model", "dataset", "space", "kernel"] {
        let revision = Revision::new(kind, "org/name")
            .git("config.json", "{}\n")
            .git("ordner/größe #1?.txt", "x")
            .git("empty.txt", "")
            .lfs("model.bin", weights(1, 9 << 20))
            .refs(&["main", "refs/pr/1"]);
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        for name in &revision.refs {
            let output = pull(&machine, &["org/name", "-r", name]);
            assert_eq!((output.code, output.stdout), (0, format!("{}\n", revision.snapshot(&machine.hub()).display())));
            if name == "main" {
                assert!(
                    output.stderr.contains("not in bucket") && output.stderr.contains("from the Hub"),
                    "{}",
                    output.stderr
                );
            }
        }
        revision.assert_pulled(&machine.hub());
        assert_clean(&machine);
        assert_eq!(hub.download_count(), 3, "each file once, and no request for the empty one");
        // Pulls by commit write no ref, whether the commit is full or short.
        let other = self::machine(&_store, &hub);
        for commit in [revision.commit.as_str(), &revision.commit[..8]] {
            assert_eq!(pull(&other, &["org/name", "-r", commit, "--repo-type", kind]).code, 0);
            assert!(!revision.dir(&other.hub()).join("refs").exists());
        }
    }
}

#[test]
fn the_report_names_the_source() {
    let revision = Revision::model("org/name");
    let (store, _hub, machine) = setup(std::slice::from_ref(&revision));
    let source = |output: Output| {
        let report = output.json();
        (report["source"].as_str().unwrap().to_string(), report["from_hub"]["blobs"].as_u64().unwrap())
    };
    assert_eq!(source(pull(&machine, &["org/name", "--json"])), ("hub".into(), 2));
    machine.ok(&["push"]);
    assert_eq!(source(pull(&machine, &["org/name", "--json"])), ("cache".into(), 0));
    let other = self::machine(&store, &_hub);
    assert_eq!(source(pull(&other, &["org/name", "--json"])), ("bucket".into(), 0));
    store.remove(&revision.blob_key("config.json"));
    let other = self::machine(&store, &_hub);
    assert_eq!(source(pull(&other, &["org/name", "--json"])), ("bucket-and-hub".into(), 1));
}

#[test]
fn damaged_bucket_data_is_replaced_from_the_hub() {
    let revision = Revision::model("org/name");
    for damage in ["manifest", "torn", "blob", "ref"] {
        let (store, hub, machine) = setup(std::slice::from_ref(&revision));
        revision.publish(&store);
        match damage {
            "manifest" => store.remove(&revision.manifest_key()),
            "torn" => store.put(&revision.manifest_key(), "{"),
            "ref" => store.put("refs/org__name/main", "nonsense"),
            _ => store.put(&revision.blob_key("model.safetensors"), vec![1; 300_000]),
        }
        let output = machine.run(&["pull", "org/name"]);
        assert!(
            output.code != 0 && hub.request_count() == 0,
            "the Hub must not be contacted without the flag: {output:#?}"
        );
        let output = machine.run(&["pull", "org/name", "--dry-run", "--fallback", "hf-hub"]);
        assert!(hub.request_count() == 0, "the Hub must not be contacted by a dry run: {output:#?}");
        let output = pull(&machine, &["org/name"]);
        assert_eq!(output.code, 0, "{damage}: {output:#?}");
        assert!(output.stderr.contains("taken from the Hub"), "{output:#?}");
        revision.assert_pulled(&machine.hub());
        assert_clean(&machine);
    }
}

#[test]
fn an_unreachable_store_falls_back_to_the_hub() {
    let revision = Revision::model("org/name");
    let (_, hub, mut machine) = setup(std::slice::from_ref(&revision));
    machine.set("B2_ENDPOINT", "http://127.0.0.1:1");
    let output = pull(&machine, &["org/name"]);
    assert_eq!(output.code, 0, "{output:#?}");
    revision.assert_pulled(&machine.hub());
    // Without the bucket, pull-all does not know which repos there are.
    assert_eq!(machine.run(&[&["pull-all"][..], &HUB].concat()).code, 6);
    assert_eq!(hub.download_count(), 2);
}

#[test]
fn an_archived_blob_is_pulled_from_the_hub() {
    let revision = Revision::model("org/name");
    let (store, hub, machine) = setup(std::slice::from_ref(&revision));
    revision.publish(&store);
    store.server.on_request(|request| match request.is("GET", "blobs/") {
        true => Action::Refuse(403, "InvalidObjectState", "not valid for the object's storage class"),
        false => Action::Pass,
    });
    let output = machine.run(&["pull", "org/name"]);
    assert!(output.code == 6 && output.stderr.contains("archived") && hub.request_count() == 0, "{output:#?}");
    let output = pull(&machine, &["org/name"]);
    assert_eq!(output.code, 0, "{output:#?}");
    revision.assert_pulled(&machine.hub());
}

#[test]
fn configuration_errors_do_not_fall_back_to_the_hub() {
    let revision = Revision::model("org/name");
    let (store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    store.server.on_request(|_| Action::Refuse(403, "AccessDenied", "no"));
    assert_eq!(pull(&machine, &["org/name"]).code, 3);
    store.server.behave();
    assert_eq!(pull(&machine, &["org/name", "--bucket", "no-such-bucket"]).code, 4);
    assert_eq!(pull(&machine, &["org/name", "-r", "a b"]).code, 2);
    machine.set("B2_APPLICATION_KEY", "wrong");
    assert_eq!(pull(&machine, &["org/name"]).code, 3);
    machine.unset("B2_BUCKET");
    assert_eq!(pull(&machine, &["org/name"]).code, 2);
    assert_eq!(hub.request_count(), 0);
    assert_eq!(BUCKET, "team-cache");
}

#[test]
fn data_from_the_hub_is_verified_before_it_is_visible() {
    let revision = Revision::model("org/name");
    for (path, bytes) in [
        ("model.safetensors", weights(77, 300_000)),
        ("model.safetensors", weights(1, 299_999)),
        ("model.safetensors", weights(1, 300_001)),
        ("config.json", b"<html>not the file</html>".to_vec()),
    ] {
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        hub.tamper_with(path, bytes);
        let output = pull(&machine, &["org/name"]);
        assert!(output.code != 0 && output.stdout.is_empty(), "{output:#?}");
        assert!(output.stderr.contains(path), "{output:#?}");
        assert!(!revision.blob(&machine.hub(), path).exists());
        assert!(!revision.dir(&machine.hub()).join("refs/main").exists());
        assert_clean(&machine);
        hub.tamper_with(path, revision.file(path).bytes.clone());
        assert_eq!(pull(&machine, &["org/name"]).code, 0);
        revision.assert_pulled(&machine.hub());
    }
}

#[test]
fn a_listing_with_paths_outside_the_cache_is_refused() {
    let revision = Revision::model("org/name").git("../../../../evil.txt", "x");
    let (_store, _hub, machine) = setup(std::slice::from_ref(&revision));
    let output = pull(&machine, &["org/name"]);
    assert_eq!(output.code, 5, "{output:#?}");
    assert!(!machine.hub().exists() || fs::read_dir(machine.hub()).unwrap().count() == 0, "{output:#?}");
}

#[test]
fn the_token_is_sent_and_rejections_are_explained() {
    let revision = Revision::model("org/name");
    let (_store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    hub.require_token();
    let output = pull(&machine, &["org/name"]);
    assert_eq!(output.code, 3, "{output:#?}");
    assert!(output.stderr.contains("HF_TOKEN") && output.stderr.contains("not in bucket"), "{output:#?}");
    machine.set("HF_TOKEN", "hf_wrong");
    assert!(!pull(&machine, &["org/name"]).stderr.contains("hf_wrong"));
    machine.set("HF_TOKEN", TOKEN);
    assert_eq!(pull(&machine, &["org/name"]).code, 0);

    let mut machine = self::machine(&_store, &hub);
    fs::write(machine.home().join("stored"), format!("{TOKEN}\n")).unwrap();
    machine.set("HF_TOKEN_PATH", &machine.home().join("stored").display().to_string());
    assert_eq!(pull(&machine, &["org/name"]).code, 0);
    revision.assert_pulled(&machine.hub());
    machine.set("HF_HUB_OFFLINE", "1");
    assert_eq!(pull(&machine, &["org/other"]).code, 2);
}

#[test]
fn a_repo_found_in_neither_place_is_reported_for_both() {
    let (_store, _hub, machine) = setup(&[Revision::model("org/name")]);
    let output = pull(&machine, &["org/missing"]);
    assert_eq!(output.code, 4, "{output:#?}");
    assert!(output.stderr.contains("on the Hub") && output.stderr.contains("not in bucket"), "{output:#?}");
    let output = pull(&machine, &["org/name", "-r", "v9"]);
    assert!(output.code == 4 && output.stderr.contains("no such revision"), "{output:#?}");
}

#[test]
fn an_interrupted_download_resumes() {
    let revision = Revision::new("model", "org/name").git("a.txt", "a").lfs("big.bin", weights(5, 80 << 20));
    let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
    // The second run of 64 MiB parts breaks every time.
    hub.cut("big.bin", 64 << 20, 0);
    let output = pull(&machine, &["org/name"]);
    assert_eq!(output.code, 6, "{output:#?}");
    assert!(!revision.dir(&machine.hub()).join("refs/main").exists());
    hub.cut("big.bin", u64::MAX, 0);
    hub.take_bytes_sent();
    assert_eq!(pull(&machine, &["org/name"]).code, 0);
    assert!(hub.take_bytes_sent() <= 16 << 20, "only the missing part is downloaded");
    revision.assert_pulled(&machine.hub());
    assert_clean(&machine);
}

#[test]
fn pull_all_uses_the_hub_only_for_failed_blobs_and_manifests() {
    let at = |number: usize| format!("{number}{}", &COMMIT[1..]);
    let repos: Vec<Revision> = [("model", "org/a"), ("dataset", "org/b"), ("model", "org/c"), ("dataset", "org/d")]
        .iter()
        .enumerate()
        .map(|(number, (kind, id))| {
            let revision =
                Revision::new(kind, id).at(&at(number)).git("config.json", format!("{{\"id\": \"{id}\"}}\n"));
            revision.lfs("model.bin", weights(number as u64 + 1, 10_000))
        })
        .collect();
    let (store, hub, machine) = setup(&repos);
    let source = Machine::new(&store);
    repos.iter().for_each(|revision| revision.write(&source.hub()));
    source.ok(&["push"]);
    store.remove(&repos[1].blob_key("model.bin"));
    store.remove(&repos[2].manifest_key());
    let output = machine.run(&["pull-all", "--json", "--fallback", "hf-hub"]);
    assert_eq!(output.code, 0, "{output:#?}");
    let report = output.json();
    let mut rows: Vec<(String, String)> = report["repos"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["repo"].as_str().unwrap().into(), row["source"].as_str().unwrap().into()))
        .collect();
    rows.sort();
    let expected = [("org/a", "bucket"), ("org/b", "bucket-and-hub"), ("org/c", "hub"), ("org/d", "bucket")];
    assert_eq!(rows, expected.map(|(repo, source)| (repo.to_string(), source.to_string())));
    assert_eq!(report["notes"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(hub.download_count(), 3);
    repos.iter().for_each(|revision| revision.assert_pulled(&machine.hub()));
    assert_clean(&machine);
}

/// Whether the request is for a listing.
fn is_tree(request: &HubRequest) -> bool {
    request.target.contains("/tree/")
}

/// Lists one entry of a revision per page, with the page number in the query; `link` returns the link on each page.
fn serve_in_pages(hub: &Hub, revision: &Revision, link: impl Fn(usize) -> Option<String> + Send + 'static) {
    let entries: Vec<Value> = revision.files.iter().map(entry).collect();
    hub.script(move |request| {
        if !is_tree(request) {
            return None;
        }
        let page = request.target.split_once("page=").map_or(0, |(_, number)| number.parse().unwrap());
        let reply = Reply::json(&entries.get(page).into_iter().cloned().collect());
        Some(match link(page) {
            Some(link) => reply.with("link", format!("<{link}>; rel=\"next\"")),
            None => reply,
        })
    });
}

#[test]
fn the_token_is_sent_only_to_the_configured_origin() {
    let revision = Revision::model("org/name");
    let tree = format!("/api/models/org/name/tree/{}?recursive=true&page=1", revision.commit);
    let thief = Hub::start(std::slice::from_ref(&revision));
    let port = thief.url.rsplit_once(':').unwrap().1.to_string();
    let authority = |hub: &Hub| hub.url.trim_start_matches("http://").to_string();
    type Link = fn(&str, &str) -> String;
    let links: [(Link, bool); 12] = [
        (|_, port| format!("http://127.0.0.1:{port}"), false),
        (|hub, port| format!("http://{hub}@127.0.0.1:{port}"), false),
        (|hub, port| format!("http://{hub}%40x:y@127.0.0.1:{port}"), false),
        (|_, port| format!("//127.0.0.1:{port}"), false),
        (|_, port| format!("\\\\127.0.0.1:{port}"), false),
        (|_, port| format!("http://localhost:{port}"), false),
        (|hub, _| format!("https://{hub}"), false),
        (|hub, _| format!("ftp://{hub}"), false),
        (|hub, _| format!("http://me:secret@{hub}"), true),
        (|_, _| String::new(), true),
        (|_, _| "https://huggingface.co".into(), true),
        (|_, _| "https://HuggingFace.co:443".into(), true),
    ];
    for (link, is_same_origin) in links {
        let (_store, hub, mut machine) = setup(std::slice::from_ref(&revision));
        machine.set("HF_TOKEN", TOKEN);
        let next = format!("{}{tree}", link(&authority(&hub), &port));
        let own = next.clone();
        serve_in_pages(&hub, &revision, move |page| (page == 0).then(|| own.clone()));
        let output = pull(&machine, &["org/name"]);
        assert_eq!(output.code, if is_same_origin { 0 } else { 6 }, "{next}: {output:#?}");
        if is_same_origin {
            revision.assert_pulled(&machine.hub());
        } else {
            assert!(!revision.dir(&machine.hub()).exists(), "{next}");
        }
        let bearer = Some(format!("Bearer {TOKEN}"));
        assert!(hub.requests().iter().all(|request| request.authorization == bearer), "{next}");
        assert_eq!(thief.request_count(), 0, "{next}");
    }
}

#[test]
fn redirects_to_another_origin_carry_no_token() {
    let revision = Revision::model("org/name");
    let cdn = Hub::start(std::slice::from_ref(&revision));
    let (_store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    machine.set("HF_TOKEN", TOKEN);
    let to = cdn.url.clone();
    let official = "https://huggingface.co/org/name/resolve";
    hub.script(move |request| {
        let rest = request.target.strip_prefix("/org/name/resolve")?;
        if request.target.ends_with("?moved") {
            return None;
        }
        // One file is on another host, the other one under another name of the mirror.
        let target = match rest.ends_with("config.json") {
            true => format!("{official}{rest}?moved"),
            false => format!("{to}{}", request.target),
        };
        Some(Reply::status(302).with("location", target))
    });
    assert_eq!(pull(&machine, &["org/name"]).code, 0);
    revision.assert_pulled(&machine.hub());
    assert!(
        cdn.request_count() == 1 && cdn.requests().iter().all(|request| request.authorization.is_none()),
        "{:?}",
        cdn.requests()
    );
    assert!(hub.requests().iter().any(|request| request.target.ends_with("?moved") && request.authorization.is_some()));

    let (_store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    machine.set("HF_TOKEN", TOKEN);
    for target in ["", "/org/name", "http://[", "file:///etc/passwd"] {
        hub.script(move |request| {
            request.target.contains("/resolve/").then(|| {
                let here = if target.is_empty() { request.target.clone() } else { target.to_string() };
                Reply::status(307).with("location", here)
            })
        });
        let output = pull(&machine, &["org/name"]);
        assert!(output.code != 0 && !output.stderr.contains(TOKEN), "{target}: {output:#?}");
    }
}

#[test]
fn an_incomplete_listing_is_an_error() {
    let revision = Revision::model("org/name").git("more.txt", "m");
    // A next link may be relative and a page in the middle empty; the last page has no link.
    let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
    let entries: Vec<Value> = revision.files.iter().map(entry).collect();
    hub.script(move |request| {
        let number = request.target.split_once("page=").map_or(0, |(_, number)| number.parse::<usize>().unwrap());
        let reply = Reply::json(&entries.get(number / 2).filter(|_| number % 2 == 0).into_iter().cloned().collect());
        let link = format!("<?page={}>; rel=next", number + 1);
        is_tree(request).then(|| if number / 2 + 1 < entries.len() { reply.with("link", link) } else { reply })
    });
    assert_eq!(pull(&machine, &["org/name"]).code, 0);
    revision.assert_pulled(&machine.hub());

    // The same page again, two pages in turn, the same entries under new addresses without end.
    let repeating: [fn(usize) -> Option<String>; 3] = [
        |_| Some("?recursive=true&page=0".into()),
        |number| Some(format!("?recursive=true&page={}", (number + 1) % 2)),
        |number| Some(format!("?recursive=true&page={}", number + 1)),
    ];
    for link in repeating {
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        serve_in_pages(&hub, &revision, link);
        let output = pull(&machine, &["org/name"]);
        assert_eq!(output.code, 6, "{output:#?}");
        assert!(output.stderr.contains("listing") && output.stdout.is_empty(), "{output:#?}");
        assert!(!revision.dir(&machine.hub()).exists());
        assert!(hub.request_count() < 50, "{}", hub.request_count());
    }
    // Incomplete listings: truncated JSON, a web page, a listing without files that the revision names.
    let files: Vec<Value> = revision.files.iter().map(|file| json!({"rfilename": file.path})).collect();
    let info = json!({"id": "org/name", "sha": revision.commit, "siblings": files});
    let first = json!([entry(&revision.files[0])]);
    let text = first.to_string().into_bytes();
    for (name, body) in [
        ("cut", text[..text.len() / 2].to_vec()),
        ("page", b"<html>Welcome to our guest network</html>".to_vec()),
        ("part", text.clone()),
        ("object", b"{}".to_vec()),
        ("no path", b"[{\"type\": \"file\"}]".to_vec()),
    ] {
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        let info = info.clone();
        hub.script(move |request| match is_tree(request) {
            true => Some(Reply { status: 200, headers: Vec::new(), body: body.clone() }),
            false => request.target.contains("/revision/").then(|| Reply::json(&info)),
        });
        let output = pull(&machine, &["org/name"]);
        assert_eq!(output.code, 6, "{name}: {output:#?}");
        assert!(!revision.dir(&machine.hub()).exists(), "{name}");
    }
}

#[test]
fn the_hubs_rate_limit_is_waited_for_once() {
    let mut revision = Revision::model("org/name");
    for number in 0..12 {
        revision = revision.git(&format!("f{number}.txt"), format!("{number}"));
    }
    type Headers = fn(Reply) -> Reply;
    let answers: [(&str, Headers); 4] = [
        ("/revision/", |reply| reply.with("ratelimit", "\"api\";r=0;t=1")),
        ("/tree/", |reply| reply.with("retry-after", "1")),
        ("/resolve/", |reply| reply.with("ratelimit", "\"resolvers\";r=0;t=1")),
        ("/resolve/", |reply| {
            reply.with("date", "Sun, 06 Nov 1994 08:49:37 GMT").with("retry-after", "Sun, 06 Nov 1994 08:49:38 GMT")
        }),
    ];
    for (part, headers) in answers {
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        let mut until = None;
        // All requests are rejected until the wait requested by the first rejection is over.
        hub.script(move |request| {
            if !request.target.contains(part) {
                return None;
            }
            let until = *until.get_or_insert_with(|| std::time::Instant::now() + std::time::Duration::from_secs(1));
            (std::time::Instant::now() < until).then(|| headers(Reply::status(429)))
        });
        let output = pull(&machine, &["org/name"]);
        assert_eq!(output.code, 0, "{part}: {output:#?}");
        assert_eq!(output.stderr.matches("rate limit is reached").count(), 1, "{output:#?}");
        revision.assert_pulled(&machine.hub());
    }
    // If the wait exceeds the limit, the command fails at once, without a flood of requests.
    for (part, most) in [("/revision/", 2), ("/resolve/", 40)] {
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        hub.script(move |request| {
            request.target.contains(part).then(|| Reply::status(429).with("ratelimit", "\"api\";r=0;t=90"))
        });
        let output = pull(&machine, &["org/name", "--hub-wait", "30"]);
        assert_eq!(output.code, 6, "{output:#?}");
        assert!(output.stderr.contains("90 s") && output.stderr.contains("--hub-wait"), "{output:#?}");
        assert!(hub.request_count() < most, "{}", hub.request_count());
    }
    let (_store, _hub, machine) = setup(&[]);
    assert_eq!(pull(&machine, &["org/name", "--hub-wait", "soon"]).code, 2);
}

#[test]
fn throttling_by_the_store_does_not_slow_hub_downloads() {
    let revision = Revision::model("org/name").git("one.txt", "1");
    let (store, hub, machine) = setup(std::slice::from_ref(&revision));
    let mut session = store.session(&machine.hub(), &machine.work());
    session.config.hub.endpoint = Secret::new(hub.url.clone());
    let refused = std::sync::atomic::AtomicBool::new(false);
    store.server.on_request(move |_| match refused.swap(true, std::sync::atomic::Ordering::Relaxed) {
        true => Action::Pass,
        false => Action::Refuse(503, "SlowDown", "later"),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let bucket = session.bucket().await.unwrap();
        bucket.list_page("", None, 1).await.unwrap();
        assert_eq!(bucket.counts().1, 1);
        let wait = std::time::Duration::from_secs(5);
        let hub = Client::connect(&session.config.hub, &session.config.network, session.progress.clone(), wait);
        let context = session.transfers(&bucket, Caps::default(), false);
        let before = context.limits.objects.limit();
        let file = revision.files.iter().find(|file| file.path == "one.txt").unwrap();
        let fetch = Fetch {
            id: file.etag().parse().unwrap(),
            size: file.bytes.len() as u64,
            repo: hf_cache_sync::internals::model::ids::RepoName::from_folder("models--org--name").unwrap(),
            commit: revision.commit.parse().unwrap(),
            path: file.path.parse().unwrap(),
            source: Source::Hub(hub.unwrap()),
        };
        download(&context, &fetch).await.unwrap();
        assert_eq!(context.limits.objects.limit(), before);
    });
}

#[test]
fn certificate_bundles_are_used_and_bad_certificates_explained() {
    let revision = Revision::model("org/name");
    let ca = tls_file("ca.pem").display().to_string();
    for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"] {
        let (store, hub) = (Store::new(), Hub::start_tls(std::slice::from_ref(&revision), "good.pem"));
        let mut machine = machine(&store, &hub);
        machine.set(variable, &ca);
        let output = pull(&machine, &["org/name"]);
        assert_eq!(output.code, 0, "{variable}: {output:#?}");
        revision.assert_pulled(&machine.hub());
    }
    for (certificate, bundle, words) in [
        ("good.pem", None, "authority that this machine does not trust"),
        ("good.pem", Some("self-signed.pem"), "authority that this machine does not trust"),
        ("expired.pem", Some("ca.pem"), "has expired"),
        ("other-host.pem", Some("ca.pem"), "for another host"),
        ("self-signed.pem", None, "self-signed"),
    ] {
        let (store, hub) = (Store::new(), Hub::start_tls(std::slice::from_ref(&revision), certificate));
        let mut machine = machine(&store, &hub);
        if let Some(name) = bundle {
            machine.set("REQUESTS_CA_BUNDLE", &tls_file(name).display().to_string());
        }
        let output = pull(&machine, &["org/name"]);
        assert_eq!(output.code, 6, "{certificate}: {output:#?}");
        assert_eq!(output.stderr.matches(words).count(), 1, "{certificate}: {output:#?}");
    }
    let (_store, _hub, mut machine) = setup(std::slice::from_ref(&revision));
    let empty = machine.home().join("empty.pem");
    fs::write(&empty, "").unwrap();
    for path in [&empty, &machine.home().join("missing.pem")] {
        machine.set("REQUESTS_CA_BUNDLE", &path.display().to_string());
        let output = pull(&machine, &["org/name"]);
        assert_eq!(output.code, 2, "{output:#?}");
        assert!(
            output.stderr.contains("REQUESTS_CA_BUNDLE") && output.stderr.contains(path.to_str().unwrap()),
            "{output:#?}"
        );
    }
}

#[test]
fn no_proxy_matches_ports_and_offline_mode_has_two_variables() {
    let revision = Revision::model("org/name");
    let (store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    let proxy = Hub::start(&[]);
    // The store has another host name, which is excluded from the proxy.
    machine.set("B2_ENDPOINT", &store.server.url.replace("127.0.0.1", "localhost"));
    machine.set("HTTP_PROXY", &proxy.url);
    machine.set("http_proxy", &proxy.url);
    let authority = hub.url.trim_start_matches("http://");
    for (exceptions, direct) in [
        (format!("{authority},localhost"), true),
        ("127.0.0.1:1, localhost".into(), false),
        ("127.0.0.1,localhost".into(), true),
    ] {
        let count = proxy.request_count();
        machine.set("NO_PROXY", &exceptions);
        let cache = machine.home().join(format!("cache-{direct}-{count}"));
        let output = pull(&machine, &["org/name", "--cache-dir", cache.to_str().unwrap()]);
        assert_eq!(output.code, if direct { 0 } else { 4 }, "{exceptions}: {output:#?}");
        assert_eq!(proxy.request_count() == count, direct, "{exceptions}");
    }
    for (name, value, code) in
        [("TRANSFORMERS_OFFLINE", "YES", 2), ("HF_HUB_OFFLINE", "on", 2), ("TRANSFORMERS_OFFLINE", "2", 4)]
    {
        let mut machine = self::machine(&store, &hub);
        machine.set(name, value);
        let output = pull(&machine, &["org/other"]);
        assert!(output.code == code && (code != 2 || output.stderr.contains(name)), "{output:#?}");
    }
}
