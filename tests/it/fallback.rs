//! `--fallback hf-hub`: when the Hub is asked and when it is not, and that what comes from it is proven first.

use std::fs;

use crate::harness::cache::{COMMIT, Revision};
use crate::harness::hub_server::{Asked, Hub, Reply, TOKEN, entry};
use crate::harness::machine::{Machine, Ran};
use crate::harness::s3::Action;
use crate::harness::store::{BUCKET, Store};
use crate::harness::{listing, tls_file, weights};
use hf_cache_sync::internals::hub::Hub as Client;
use hf_cache_sync::internals::transfer::download::{Fetch, download};
use hf_cache_sync::internals::transfer::limit::Caps;
use hf_cache_sync::internals::transfer::source::Source;
use serde_json::{Value, json};

const HUB: [&str; 2] = ["--fallback", "hf-hub"];

/// A store, a Hub that has these, and a machine that knows both.
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

fn pull(machine: &Machine, line: &[&str]) -> Ran {
    machine.run(&[&["pull"], line, &HUB].concat())
}

/// The hub folder has no file that is not finished, neither the client's nor ours.
fn assert_clean(machine: &Machine) {
    let found = listing(&machine.hub());
    let unfinished = |path: &&String| {
        [".incomplete", ".tmp", ".small", ".parts"].iter().any(|end| path.ends_with(end))
            || path.starts_with(".locks/.hf-cache-sync/partial/")
    };
    assert_eq!(found.keys().filter(unfinished).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn a_repo_that_the_bucket_lacks_comes_from_the_hub() {
    for kind in ["model", "dataset", "space", "kernel"] {
        let revision = Revision::new(kind, "org/name")
            .git("config.json", "{}\n")
            .git("ordner/größe #1?.txt", "x")
            .git("empty.txt", "")
            .lfs("model.bin", weights(1, 9 << 20))
            .refs(&["main", "refs/pr/1"]);
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        for name in &revision.refs {
            let ran = pull(&machine, &["org/name", "-r", name]);
            assert_eq!((ran.code, ran.stdout), (0, format!("{}\n", revision.snapshot(&machine.hub()).display())));
            if name == "main" {
                assert!(ran.stderr.contains("not in bucket") && ran.stderr.contains("from the Hub"), "{}", ran.stderr);
            }
        }
        revision.assert_pulled(&machine.hub());
        assert_clean(&machine);
        assert_eq!(hub.bodies(), 3, "each file once, none for the empty one");
        // A commit and a short one write no ref.
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
    let source = |ran: Ran| {
        let report = ran.json();
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
fn a_missing_manifest_and_a_torn_one_and_a_corrupt_blob_are_made_up_for() {
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
        let ran = machine.run(&["pull", "org/name"]);
        assert!(ran.code != 0 && hub.seen() == 0, "not without the flag: {ran:#?}");
        let ran = machine.run(&["pull", "org/name", "--dry-run", "--fallback", "hf-hub"]);
        assert!(hub.seen() == 0, "not by a dry run: {ran:#?}");
        let ran = pull(&machine, &["org/name"]);
        assert_eq!(ran.code, 0, "{damage}: {ran:#?}");
        assert!(ran.stderr.contains("taken from the Hub"), "{ran:#?}");
        revision.assert_pulled(&machine.hub());
        assert_clean(&machine);
    }
}

#[test]
fn a_store_that_does_not_answer_is_made_up_for() {
    let revision = Revision::model("org/name");
    let (_, hub, mut machine) = setup(std::slice::from_ref(&revision));
    machine.set("B2_ENDPOINT", "http://127.0.0.1:1");
    let ran = pull(&machine, &["org/name"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    revision.assert_pulled(&machine.hub());
    // pull-all cannot know what there is.
    assert_eq!(machine.run(&[&["pull-all"][..], &HUB].concat()).code, 6);
    assert_eq!(hub.bodies(), 2);
}

#[test]
fn an_archived_blob_is_made_up_for() {
    let revision = Revision::model("org/name");
    let (store, hub, machine) = setup(std::slice::from_ref(&revision));
    revision.publish(&store);
    store.server.on_request(|request| match request.is("GET", "blobs/") {
        true => Action::Refuse(403, "InvalidObjectState", "not valid for the object's storage class"),
        false => Action::Pass,
    });
    let ran = machine.run(&["pull", "org/name"]);
    assert!(ran.code == 6 && ran.stderr.contains("archived") && hub.seen() == 0, "{ran:#?}");
    let ran = pull(&machine, &["org/name"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    revision.assert_pulled(&machine.hub());
}

#[test]
fn a_wrong_set_up_is_never_papered_over() {
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
    assert_eq!(hub.seen(), 0);
    assert_eq!(BUCKET, "team-cache");
}

#[test]
fn what_the_hub_sends_is_proven_before_it_is_seen() {
    let revision = Revision::model("org/name");
    for (path, bytes) in [
        ("model.safetensors", weights(77, 300_000)),
        ("model.safetensors", weights(1, 299_999)),
        ("model.safetensors", weights(1, 300_001)),
        ("config.json", b"<html>not the file</html>".to_vec()),
    ] {
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        hub.lie(path, bytes);
        let ran = pull(&machine, &["org/name"]);
        assert!(ran.code != 0 && ran.stdout.is_empty(), "{ran:#?}");
        assert!(ran.stderr.contains(path), "{ran:#?}");
        assert!(!revision.blob(&machine.hub(), path).exists());
        assert!(!revision.dir(&machine.hub()).join("refs/main").exists());
        assert_clean(&machine);
        hub.lie(path, revision.file(path).bytes.clone());
        assert_eq!(pull(&machine, &["org/name"]).code, 0);
        revision.assert_pulled(&machine.hub());
    }
}

#[test]
fn a_listing_that_leads_out_of_the_cache_is_refused() {
    let revision = Revision::model("org/name").git("../../../../evil.txt", "x");
    let (_store, _hub, machine) = setup(std::slice::from_ref(&revision));
    let ran = pull(&machine, &["org/name"]);
    assert_eq!(ran.code, 5, "{ran:#?}");
    assert!(!machine.hub().exists() || fs::read_dir(machine.hub()).unwrap().count() == 0, "{ran:#?}");
}

#[test]
fn the_token_is_sent_and_the_hubs_refusal_is_told() {
    let revision = Revision::model("org/name");
    let (_store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    hub.require_token();
    let ran = pull(&machine, &["org/name"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.stderr.contains("HF_TOKEN") && ran.stderr.contains("not in bucket"), "{ran:#?}");
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
fn what_neither_has_is_told_for_both() {
    let (_store, _hub, machine) = setup(&[Revision::model("org/name")]);
    let ran = pull(&machine, &["org/missing"]);
    assert_eq!(ran.code, 4, "{ran:#?}");
    assert!(ran.stderr.contains("on the Hub") && ran.stderr.contains("not in bucket"), "{ran:#?}");
    let ran = pull(&machine, &["org/name", "-r", "v9"]);
    assert!(ran.code == 4 && ran.stderr.contains("no such revision"), "{ran:#?}");
}

#[test]
fn an_interrupted_download_goes_on_where_it_was() {
    let revision = Revision::new("model", "org/name").git("a.txt", "a").lfs("big.bin", weights(5, 80 << 20));
    let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
    // The second run of parts of 64 MiB breaks, every time.
    hub.cut("big.bin", 64 << 20, 0);
    let ran = pull(&machine, &["org/name"]);
    assert_eq!(ran.code, 6, "{ran:#?}");
    assert!(!revision.dir(&machine.hub()).join("refs/main").exists());
    hub.cut("big.bin", u64::MAX, 0);
    hub.take_sent();
    assert_eq!(pull(&machine, &["org/name"]).code, 0);
    assert!(hub.take_sent() <= 16 << 20, "only what is missing comes again");
    revision.assert_pulled(&machine.hub());
    assert_clean(&machine);
}

#[test]
fn pull_all_asks_for_what_fails_and_for_nothing_else() {
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
    let ran = machine.run(&["pull-all", "--json", "--fallback", "hf-hub"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let report = ran.json();
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
    assert_eq!(hub.bodies(), 3);
    repos.iter().for_each(|revision| revision.assert_pulled(&machine.hub()));
    assert_clean(&machine);
}

/// Whether this asks for a listing.
fn is_tree(asked: &Asked) -> bool {
    asked.target.contains("/tree/")
}

/// The entries of a revision, one on each page, with the page's number in the query; `links` makes the link after a page.
fn pages(hub: &Hub, revision: &Revision, link: impl Fn(usize) -> Option<String> + Send + 'static) {
    let entries: Vec<Value> = revision.files.iter().map(entry).collect();
    hub.script(move |asked| {
        if !is_tree(asked) {
            return None;
        }
        let page = asked.target.split_once("page=").map_or(0, |(_, number)| number.parse().unwrap());
        let reply = Reply::json(&entries.get(page).into_iter().cloned().collect());
        Some(match link(page) {
            Some(link) => reply.with("link", format!("<{link}>; rel=\"next\"")),
            None => reply,
        })
    });
}

#[test]
fn the_token_goes_to_the_configured_origin_alone() {
    let revision = Revision::model("org/name");
    let tree = format!("/api/models/org/name/tree/{}?recursive=true&page=1", revision.commit);
    let thief = Hub::start(std::slice::from_ref(&revision));
    let port = thief.url.rsplit_once(':').unwrap().1.to_string();
    let near = |hub: &Hub| hub.url.trim_start_matches("http://").to_string();
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
    for (link, is_home) in links {
        let (_store, hub, mut machine) = setup(std::slice::from_ref(&revision));
        machine.set("HF_TOKEN", TOKEN);
        let next = format!("{}{tree}", link(&near(&hub), &port));
        let own = next.clone();
        pages(&hub, &revision, move |page| (page == 0).then(|| own.clone()));
        let ran = pull(&machine, &["org/name"]);
        assert_eq!(ran.code, if is_home { 0 } else { 6 }, "{next}: {ran:#?}");
        if is_home {
            revision.assert_pulled(&machine.hub());
        } else {
            assert!(!revision.dir(&machine.hub()).exists(), "{next}");
        }
        let bearer = Some(format!("Bearer {TOKEN}"));
        assert!(hub.asked().iter().all(|asked| asked.authorization == bearer), "{next}");
        assert_eq!(thief.seen(), 0, "{next}");
    }
}

#[test]
fn redirects_are_followed_without_the_token_unless_they_stay() {
    let revision = Revision::model("org/name");
    let cdn = Hub::start(std::slice::from_ref(&revision));
    let (_store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    machine.set("HF_TOKEN", TOKEN);
    let to = cdn.url.clone();
    let official = "https://huggingface.co/org/name/resolve";
    hub.script(move |asked| {
        let rest = asked.target.strip_prefix("/org/name/resolve")?;
        if asked.target.ends_with("?moved") {
            return None;
        }
        // One file is elsewhere, the other one only under another name of the mirror.
        let target = match rest.ends_with("config.json") {
            true => format!("{official}{rest}?moved"),
            false => format!("{to}{}", asked.target),
        };
        Some(Reply::status(302).with("location", target))
    });
    assert_eq!(pull(&machine, &["org/name"]).code, 0);
    revision.assert_pulled(&machine.hub());
    assert!(cdn.seen() == 1 && cdn.asked().iter().all(|asked| asked.authorization.is_none()), "{:?}", cdn.asked());
    assert!(hub.asked().iter().any(|asked| asked.target.ends_with("?moved") && asked.authorization.is_some()));

    let (_store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    machine.set("HF_TOKEN", TOKEN);
    for target in ["", "/org/name", "http://[", "file:///etc/passwd"] {
        hub.script(move |asked| {
            asked.target.contains("/resolve/").then(|| {
                let here = if target.is_empty() { asked.target.clone() } else { target.to_string() };
                Reply::status(307).with("location", here)
            })
        });
        let ran = pull(&machine, &["org/name"]);
        assert!(ran.code != 0 && !ran.stderr.contains(TOKEN), "{target}: {ran:#?}");
    }
}

#[test]
fn a_listing_is_whole_or_an_error() {
    let revision = Revision::model("org/name").git("more.txt", "m");
    // An empty page in the middle is none of its business; the last page has no link.
    let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
    let entries: Vec<Value> = revision.files.iter().map(entry).collect();
    hub.script(move |asked| {
        let number = asked.target.split_once("page=").map_or(0, |(_, number)| number.parse::<usize>().unwrap());
        let reply = Reply::json(&entries.get(number / 2).filter(|_| number % 2 == 0).into_iter().cloned().collect());
        let link = format!("<?page={}>; rel=next", number + 1);
        is_tree(asked).then(|| if number / 2 + 1 < entries.len() { reply.with("link", link) } else { reply })
    });
    assert_eq!(pull(&machine, &["org/name"]).code, 0);
    revision.assert_pulled(&machine.hub());

    // The same page again, two in turn, the same entries under new addresses, nothing new for ever.
    let again: [fn(usize) -> Option<String>; 3] = [
        |_| Some("?recursive=true&page=0".into()),
        |number| Some(format!("?recursive=true&page={}", (number + 1) % 2)),
        |number| Some(format!("?recursive=true&page={}", number + 1)),
    ];
    for link in again {
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        pages(&hub, &revision, link);
        let ran = pull(&machine, &["org/name"]);
        assert_eq!(ran.code, 6, "{ran:#?}");
        assert!(ran.stderr.contains("listing") && ran.stdout.is_empty(), "{ran:#?}");
        assert!(!revision.dir(&machine.hub()).exists());
        assert!(hub.seen() < 50, "{}", hub.seen());
    }
    // Cut: JSON that ends in the middle, a web page, a listing without what the revision's own list names.
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
        hub.script(move |asked| match is_tree(asked) {
            true => Some(Reply { status: 200, headers: Vec::new(), body: body.clone() }),
            false => asked.target.contains("/revision/").then(|| Reply::json(&info)),
        });
        let ran = pull(&machine, &["org/name"]);
        assert_eq!(ran.code, 6, "{name}: {ran:#?}");
        assert!(!revision.dir(&machine.hub()).exists(), "{name}");
    }
}

#[test]
fn the_hubs_limit_of_requests_is_waited_for_once() {
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
        // Everything is refused until the time that the first refusal named is over.
        hub.script(move |asked| {
            if !asked.target.contains(part) {
                return None;
            }
            let until = *until.get_or_insert_with(|| std::time::Instant::now() + std::time::Duration::from_secs(1));
            (std::time::Instant::now() < until).then(|| headers(Reply::status(429)))
        });
        let ran = pull(&machine, &["org/name"]);
        assert_eq!(ran.code, 0, "{part}: {ran:#?}");
        assert_eq!(ran.stderr.matches("rate limit is reached").count(), 1, "{ran:#?}");
        revision.assert_pulled(&machine.hub());
    }
    // Longer than it may wait: an error at once, and no storm.
    for (part, most) in [("/revision/", 2), ("/resolve/", 40)] {
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        hub.script(move |asked| {
            asked.target.contains(part).then(|| Reply::status(429).with("ratelimit", "\"api\";r=0;t=90"))
        });
        let ran = pull(&machine, &["org/name", "--hub-wait", "30"]);
        assert_eq!(ran.code, 6, "{ran:#?}");
        assert!(ran.stderr.contains("90 s") && ran.stderr.contains("--hub-wait"), "{ran:#?}");
        assert!(hub.seen() < most, "{}", hub.seen());
    }
    let (_store, _hub, machine) = setup(&[]);
    assert_eq!(pull(&machine, &["org/name", "--hub-wait", "soon"]).code, 2);
}

#[test]
fn push_back_by_the_store_does_not_slow_the_hub_down() {
    let revision = Revision::model("org/name").git("one.txt", "1");
    let (store, hub, machine) = setup(std::slice::from_ref(&revision));
    let mut session = store.session(&machine.hub(), &machine.work());
    session.config.hub.endpoint = hub.url.clone();
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
fn certificates_are_believed_by_bundle_and_refused_by_name() {
    let revision = Revision::model("org/name");
    let ca = tls_file("ca.pem").display().to_string();
    for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"] {
        let (store, hub) = (Store::new(), Hub::start_tls(std::slice::from_ref(&revision), "good.pem"));
        let mut machine = machine(&store, &hub);
        machine.set(variable, &ca);
        let ran = pull(&machine, &["org/name"]);
        assert_eq!(ran.code, 0, "{variable}: {ran:#?}");
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
        let ran = pull(&machine, &["org/name"]);
        assert_eq!(ran.code, 6, "{certificate}: {ran:#?}");
        assert_eq!(ran.stderr.matches(words).count(), 1, "{certificate}: {ran:#?}");
    }
    let (_store, _hub, mut machine) = setup(std::slice::from_ref(&revision));
    let empty = machine.home().join("empty.pem");
    fs::write(&empty, "").unwrap();
    for path in [&empty, &machine.home().join("missing.pem")] {
        machine.set("REQUESTS_CA_BUNDLE", &path.display().to_string());
        let ran = pull(&machine, &["org/name"]);
        assert_eq!(ran.code, 2, "{ran:#?}");
        assert!(ran.stderr.contains("REQUESTS_CA_BUNDLE") && ran.stderr.contains(path.to_str().unwrap()), "{ran:#?}");
    }
}

#[test]
fn a_proxy_is_gone_round_by_host_and_port_and_offline_has_two_names() {
    let revision = Revision::model("org/name");
    let (store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    let proxy = Hub::start(&[]);
    // The store is under another name, which is never sent to the proxy.
    machine.set("B2_ENDPOINT", &store.server.url.replace("127.0.0.1", "localhost"));
    machine.set("HTTP_PROXY", &proxy.url);
    machine.set("http_proxy", &proxy.url);
    let near = hub.url.trim_start_matches("http://");
    for (exceptions, direct) in [
        (format!("{near},localhost"), true),
        ("127.0.0.1:1, localhost".into(), false),
        ("127.0.0.1,localhost".into(), true),
    ] {
        let seen = proxy.seen();
        machine.set("NO_PROXY", &exceptions);
        let cache = machine.home().join(format!("cache-{direct}-{seen}"));
        let ran = pull(&machine, &["org/name", "--cache-dir", cache.to_str().unwrap()]);
        assert_eq!(ran.code, if direct { 0 } else { 4 }, "{exceptions}: {ran:#?}");
        assert_eq!(proxy.seen() == seen, direct, "{exceptions}");
    }
    for (name, value, code) in
        [("TRANSFORMERS_OFFLINE", "YES", 2), ("HF_HUB_OFFLINE", "on", 2), ("TRANSFORMERS_OFFLINE", "2", 4)]
    {
        let mut machine = self::machine(&store, &hub);
        machine.set(name, value);
        let ran = pull(&machine, &["org/other"]);
        assert!(ran.code == code && (code != 2 || ran.stderr.contains(name)), "{ran:#?}");
    }
}
