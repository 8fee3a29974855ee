//! `status`, `list`, `diff`, and the commands that need no configuration, with the real binary against a real S3
//! server.

mod json;
mod world;

use world::{World, blob, commit};

use crate::harness::machine::Output;

/// Writes three repos, one of which has two revisions and another a download in flight.
fn fill(world: &World) {
    let files = [("config.json", "{}"), ("onnx/model.onnx", "weights of the first"), ("same.txt", "{}")];
    world.snapshot("models--org--llm", 'a', &files, &["main", "v1.0"]);
    world.snapshot("models--org--llm", 'b', &[("config.json", "{}")], &["refs/pr/1"]);
    world.snapshot("models--gpt2", 'c', &[("vocab.txt", "words")], &["main"]);
    world.snapshot("datasets--org--llm", 'd', &[("train.csv", "1,2")], &["main"]);
    let partial = format!("models--gpt2/blobs/{}.0a1b2c3d.incomplete", "e".repeat(64));
    std::fs::write(world.cache.root().join(partial), "half").unwrap();
}

fn requests(world: &World) -> Vec<String> {
    let seen = world.server().take_seen();
    let mut keys: Vec<String> = seen
        .iter()
        .map(|request| match request.key.is_empty() {
            true => "LIST".into(),
            false => format!("{} {}", request.method, request.key.replace("%40", "@")),
        })
        .collect();
    keys.sort();
    keys
}

#[test]
fn local_views_work_without_a_bucket() {
    let world = World::offline();
    fill(&world);
    std::fs::write(world.cache.path("models--gpt2/refs/broken"), "nothing").unwrap();
    for (name, args) in [
        ("status", &["status"][..]),
        ("list", &["list"]),
        ("list_revisions", &["list", "--revisions"]),
        ("status_quiet", &["status", "-q"]),
    ] {
        let mut text = world.run(args).text();
        if let Some(at) = text.find("Free:") {
            let end = at + text[at..].find('\n').unwrap();
            text.replace_range(at..end, "Free:      [FREE]");
        }
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn local_views_send_no_requests() {
    let world = World::online();
    fill(&world);
    let text = world.run(&["status"]).text();
    assert!(text.contains("Bucket:    team at [URL]"), "{text}");
    assert_eq!(world.run(&["list"]).code, 0);
    assert_eq!(requests(&world), Vec::<String>::new());
}

#[test]
fn an_empty_cache_is_reported() {
    let world = World::offline();
    insta::assert_snapshot!(world.run(&["list"]).text(), @r"
    exit 0
    --- stdout
    --- stderr
    No cached repos found in [DIR]/hub.
    ");
    world.remove("");
    // A missing cache is an error.
    let run = world.run(&["status", "--json"]);
    assert_eq!((run.code, &run.json()["error"]["kind"]), (4, &"not-found".into()), "{}", run.text());
}

#[test]
fn remote_views_explain_a_missing_bucket() {
    let world = World::offline();
    for args in [&["diff"][..], &["list", "--remote"]] {
        let run = world.run(args);
        assert_eq!(run.code, 2, "{}", run.text());
        assert!(run.stderr.starts_with("error: no bucket is configured"), "{}", run.stderr);
    }
    assert_eq!(world.run(&["list", "--sizes"]).code, 2);
}

#[test]
fn list_reads_only_ambiguous_manifests() {
    let world = World::online();
    fill(&world);
    assert_eq!(world.run(&["push", "-q"]).code, 0);
    // Left behind by 0.1.0 and by another program.
    world.put_manifest("team__set", "team/set", "dataset", 'e');
    world.put_manifest("a___b", "a_/b", "model", 'f');
    world.store().put("manifests/notes.txt", "hello");
    world.age(&format!("manifests/org__llm@{}.json", commit('b')), 40);
    requests(&world);
    insta::assert_snapshot!("list_remote", world.run(&["list", "--remote"]).text());
    let shared = |digit| format!("GET manifests/org__llm@{}.json", commit(digit));
    let odd = format!("GET manifests/a___b@{}.json", commit('f'));
    let lists = vec!["LIST".to_string(); 2];
    // A model and a dataset share an id, so their manifests are read. The ETags in the listing prove what the refs
    // contain.
    let mut expected: Vec<String> = [odd, shared('a'), shared('b'), shared('d')].into_iter().chain(lists).collect();
    expected.sort();
    assert_eq!(requests(&world), expected);
    insta::assert_snapshot!("list_remote_revisions", world.run(&["list", "--remote", "--revisions", "--sizes"]).text());
}

#[test]
fn unambiguous_manifests_are_not_read() {
    let world = World::online();
    for number in 0..1100 {
        world.put_manifest(&format!("org__m{number}"), &format!("org/m{number}"), "model", 'a');
    }
    let run = world.run(&["list", "--remote", "--json"]);
    assert_eq!((run.code, run.json()["repos"].as_array().unwrap().len()), (0, 1100));
    assert_eq!(requests(&world), ["LIST"; 3]);
}

#[test]
fn an_empty_bucket_is_reported() {
    let world = World::online();
    insta::assert_snapshot!(world.run(&["list", "--remote"]).text(), @r"
    exit 0
    --- stdout
    --- stderr
    No manifests found in bucket 'team'.
    ");
    insta::assert_snapshot!(world.run(&["diff", "--exit-code"]).text(), @r"
    exit 0
    --- stdout
    No repos in the cache or the bucket.
    --- stderr
    ");
}

#[test]
fn a_diff_after_a_push_is_clean() {
    let world = World::online();
    fill(&world);
    assert_eq!(world.run(&["push", "-q"]).code, 0);
    let run = world.run(&["diff", "--exit-code"]);
    insta::assert_snapshot!("diff_clean", run.text());
}

#[test]
fn diff_shows_every_difference() {
    let world = World::online();
    fill(&world);
    world.snapshot("models--org--gone", 'e', &[("a.txt", "aaa")], &["main"]);
    world.snapshot("models--org--bad", 'f', &[("a.txt", "aaaa")], &["main"]);
    assert_eq!(world.run(&["push", "-q"]).code, 0);
    // Missing here, missing in the bucket, different files on each side, a missing blob, a moved ref, an invalid
    // manifest.
    world.remove("models--org--gone");
    world.snapshot("models--org--new", '1', &[("a.txt", "new")], &["main"]);
    world.snapshot("models--org--llm", 'a', &[("more.txt", "more")], &[]);
    world.remove(&format!("models--org--llm/snapshots/{}/same.txt", commit('a')));
    world.store().remove(&format!("blobs/{}", blob("words")));
    world.store().put("refs/org__llm/v1.0", commit('b'));
    world.store().put(&format!("manifests/org__bad@{}.json", commit('f')), "{}");
    insta::assert_snapshot!("diff", world.run(&["diff"]).text());
    assert_eq!(world.run(&["diff", "--exit-code"]).code, 5);

    // A push repairs what it can.
    assert_eq!(world.run(&["push", "-q"]).code, 0);
    let json = world.run(&["diff", "--exit-code", "--json"]).json();
    assert_eq!(json["counts"]["remote_only"], 1, "{json:#}");
    assert_eq!(json["counts"]["missing_blobs"], 0, "{json:#}");
    assert_eq!((&json["counts"]["partial"], &json["counts"]["invalid"]), (&1.into(), &0.into()), "{json:#}");
    assert_eq!(world.run(&["diff", "--exit-code"]).code, 1);
    assert_eq!(world.run(&["diff"]).code, 0);
}

/// A revision that is never pushed must not keep a CI job red forever.
#[test]
fn revisions_skipped_by_push_are_not_differences() {
    let world = World::online();
    fill(&world);
    world.snapshot("models--org--gated", 'd', &[("LICENSE", "you must accept this agreement")], &["main"]);
    assert_eq!(world.run(&["push", "-q"]).code, 0);
    let run = world.run(&["diff", "--exit-code"]);
    assert_eq!(run.code, 0, "{}", run.text());
    assert!(run.stdout.contains("org/gated@dddddddddddd: looks gated, so a push skips it"), "{}", run.text());
    std::fs::write(world.work(".hf-cache-sync.yaml"), "team:\n  allow_gated: true\n").unwrap();
    assert_eq!(world.run(&["diff", "--exit-code"]).code, 1);
}

/// A revision that is not in the cache may also have missing blobs.
#[test]
fn a_deep_diff_reads_revisions_only_in_the_bucket() {
    let world = World::online();
    world.put_manifest("org__theirs", "org/theirs", "model", 'a');
    let row = |args: &[&str]| world.run(args).json()["revisions"][0].clone();
    let shallow = row(&["diff", "--json"]);
    assert_eq!((&shallow["size"], &shallow["missing_blobs"]), (&serde_json::Value::Null, &serde_json::json!([])));
    let deep = row(&["diff", "--json", "--deep"]);
    assert_eq!((&deep["status"], &deep["size"]), (&"remote-only".into(), &2.into()));
    assert_eq!(deep["missing_blobs"][0]["here"], false, "{deep:#}");
    assert!(world.run(&["diff", "--deep"]).stdout.contains("1 blob missing from the bucket"));
}

#[test]
fn a_dataset_pushed_by_0_1_0_is_not_a_difference() {
    let world = World::online();
    world.snapshot("datasets--team--set", 'e', &[("a.txt", "hi")], &["main"]);
    world.put_manifest("team__set", "team/set", "dataset", 'e');
    world.store().put("refs/team__set/main", commit('e'));
    world.store().put(&format!("blobs/{}", blob("hi")), "hi");
    let run = world.run(&["diff", "--exit-code"]);
    assert_eq!(run.code, 0, "{}", run.text());
    assert!(run.stdout.contains("1 in-sync, 0 local-only, 0 remote-only."), "{}", run.text());
}

#[test]
fn completions_and_man_work_with_a_broken_configuration() {
    let world = World::offline();
    std::fs::write(world.work(".hf-cache-sync.yaml"), "storage: [").unwrap();
    assert_eq!(world.run(&["status"]).code, 2);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = world.run(&["completions", shell]);
        assert!(run.code == 0 && run.stdout.contains("completions") && run.stderr.is_empty(), "{}", run.text());
    }
    assert!(world.run(&["man"]).stdout.contains(".SH SYNOPSIS"));
    let run = world.run(&["man", "pages/man1"]);
    assert_eq!(run.code, 0, "{}", run.text());
    assert!(run.stdout.contains("pages/man1/hf-cache-sync-push.1\n"), "{}", run.stdout);
    for page in run.stdout.lines() {
        let text = std::fs::read_to_string(world.work(page)).unwrap();
        assert!(text.contains(".SH EXAMPLES\n"), "{page}");
    }
}

#[test]
fn output_in_a_pipe_is_not_truncated_or_coloured() {
    let world = World::offline();
    let long = format!("models--org--{}", "x".repeat(90));
    world.snapshot(&long, 'a', &[("a", "a")], &["main"]);
    let run = world.run(&["list"]);
    assert!(
        run.stdout.contains(&format!("org/{}", "x".repeat(90))) && !run.stdout.contains('\u{1b}'),
        "{}",
        run.stdout
    );
}

#[cfg(target_os = "linux")]
#[test]
fn output_on_a_terminal_is_coloured_and_tables_fit() {
    let world = World::offline();
    world.snapshot(&format!("models--org--{}", "x".repeat(90)), 'a', &[("a", "a")], &["main"]);
    let plain = |run: &Output| console::strip_ansi_codes(&run.stdout).replace('\r', "");
    let mut tables = Vec::new();
    for (variable, coloured) in [(("LANG", "C"), true), (("NO_COLOR", "1"), false), (("TERM", "dumb"), false)] {
        let run = world.run_on_terminal(60, variable, "list --no-progress");
        assert_eq!((run.code, run.stdout.contains('\u{1b}')), (0, coloured), "{variable:?}: {}", run.text());
        assert!(run.stdout.contains('…'), "{variable:?}: {}", run.text());
        assert!(plain(&run).lines().all(|line| console::measure_text_width(line) <= 60), "{}", run.text());
        tables.push(plain(&run));
        let run = world.run_on_terminal(60, variable, "diff --no-progress");
        assert_eq!((run.code, run.stdout.contains('\u{1b}')), (2, coloured), "{variable:?}: {}", run.text());
        assert!(plain(&run).starts_with("error: no bucket is configured"), "{}", run.text());
        // Each stream is checked for a terminal separately.
        let run = world.run_on_terminal(60, variable, "list --no-progress | cat");
        assert!(run.stdout.contains(&"x".repeat(90)) && !run.stdout.contains('\u{1b}'), "{variable:?}: {}", run.text());
    }
    assert!(tables.windows(2).all(|pair| pair[0] == pair[1]), "{tables:#?}");
}
