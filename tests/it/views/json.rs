//! docs/json.md documents the reports: its examples have exactly the keys of real reports.

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory;
use serde_json::Value;

use super::world::{World, blob, commit};
use crate::harness::s3::Action;

/// The keys of a JSON value. The elements of a list are merged.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Shape {
    fields: BTreeMap<String, Shape>,
    elements: Option<Box<Shape>>,
}

impl Shape {
    fn of(values: &[Value]) -> Shape {
        let mut shape = Shape::default();
        values.iter().for_each(|value| shape.add(value));
        shape
    }

    fn add(&mut self, value: &Value) {
        match value {
            Value::Object(object) => {
                object.iter().for_each(|(key, value)| self.fields.entry(key.clone()).or_default().add(value));
            }
            Value::Array(list) => {
                let elements = self.elements.get_or_insert_default();
                list.iter().for_each(|value| elements.add(value));
            }
            _ => {}
        }
    }

    /// Returns one line for each key: `a`, `list[].b`.
    fn lines(&self, prefix: &str) -> Vec<String> {
        let mut lines: Vec<String> = self
            .fields
            .iter()
            .flat_map(|(key, shape)| {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                let inner = shape.lines(&path);
                std::iter::once(path).chain(inner)
            })
            .collect();
        lines.extend(self.elements.iter().flat_map(|elements| elements.lines(&format!("{prefix}[]"))));
        lines
    }
}

/// Returns the examples in each section of the document.
fn documented() -> BTreeMap<String, Vec<Value>> {
    let text = include_str!("../../../docs/json.md");
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for section in text.split("\n## ").skip(1) {
        let name = section.lines().next().unwrap().trim().to_string();
        let blocks = section.split("```json\n").skip(1).map(|block| block.split("```").next().unwrap());
        let parse = |block| serde_json::from_str(block).unwrap_or_else(|e| panic!("example of {name}: {e}"));
        found.insert(name.clone(), blocks.map(parse).collect());
    }
    found
}

#[track_caller]
fn check(section: &str, reports: &[Value]) {
    let examples = documented().remove(section).unwrap_or_else(|| panic!("docs/json.md has no section '{section}'"));
    let (documented, real) = (Shape::of(&examples).lines(""), Shape::of(reports).lines(""));
    let set = |lines: &[String]| lines.iter().cloned().collect::<BTreeSet<_>>();
    let (documented, real) = (set(&documented), set(&real));
    let missing: Vec<_> = real.difference(&documented).collect();
    let wrong: Vec<_> = documented.difference(&real).collect();
    assert!(missing.is_empty() && wrong.is_empty(), "{section}: undocumented: {missing:?}, only documented: {wrong:?}");
}

#[test]
fn every_command_is_documented() {
    let documented = documented();
    let has = |name: &str| assert!(documented.contains_key(name), "docs/json.md has no section '{name}'");
    for command in hf_cache_sync::cli::Cli::command().get_subcommands() {
        match command.get_name() {
            group @ "remote" => {
                command.get_subcommands().for_each(|command| has(&format!("{group} {}", command.get_name())))
            }
            name => has(name),
        }
    }
}

#[test]
fn local_reports_match_the_documentation() {
    let world = World::offline();
    check("init", &[world.run(&["init", "--json"]).json()]);
    world.snapshot("models--gpt2", 'a', &[("vocab.txt", "words")], &["main"]);
    std::fs::write(world.cache.path("models--gpt2/refs/broken"), "nothing").unwrap();
    check("status", &[world.run(&["status", "--json"]).json()]);
    std::fs::write(world.work("bad.yaml"), "storage:\n  regoin: x\n  region: a b\n").unwrap();
    let bad = world.work("bad.yaml");
    check("config", &[world.run(&["config", "show", "--config", bad.to_str().unwrap(), "--json"]).json()]);
    check("completions", &[world.run(&["completions", "fish", "--json"]).json()]);
    check("man", &[world.run(&["man", "--json"]).json(), world.run(&["man", "pages", "--json"]).json()]);
    check("errors", &[World::offline().run(&["diff", "--json"]).json(), missing_config(&world)]);
}

#[test]
fn prune_reports_match_the_documentation() {
    let world = World::online();
    world.snapshot("models--acme--tiny", 'b', &[("a", "kept")], &["main"]);
    world.snapshot("datasets--acme--corpus", 'd', &[("d", "gone")], &[]);
    world.snapshot("models--acme--tiny", 'a', &[("a", "gone")], &[]);
    std::fs::write(world.cache.path("models--acme--tiny/refs/lost"), commit('c')).unwrap();
    // Without a grace period, since the snapshots are new.
    let line = ["prune", "--max-gb", "0", "--orphan-grace", "0", "--json"];
    let planned = world.run(&[&line[..], &["--dry-run"]].concat());
    let report = world.run(&line);
    assert_eq!((planned.code, report.code), (0, 0), "{}", report.text());
    assert_eq!(world.run(&["push", "-q"]).code, 0);
    world.put_manifest("acme__tiny", "acme/tiny", "model", 'b');
    let lacking = world.run(&["prune", "--max-gb", "0", "--require-remote", "--json"]);
    check("prune", &[planned.json(), report.json(), lacking.json()]);
}

#[test]
fn remote_command_reports_match_the_documentation() {
    let world = World::online();
    world.snapshot("models--acme--tiny", 'a', &[("a", "one")], &["main"]);
    assert_eq!(world.run(&["push", "-q"]).code, 0);
    world.store().put("manifests/a__b@main.json", "{");
    check("remote du", &[world.run(&["remote", "du", "--json"]).json()]);

    world.store().remove("manifests/a__b@main.json");
    world.snapshot("models--acme--tiny", 'b', &[("a", "two")], &["next"]);
    assert_eq!(world.run(&["push", "-q"]).code, 0);
    world.age(&format!("blobs/{}", blob("one")), 3);
    let rm = world.run(&["remote", "rm", "acme/tiny", "--dry-run", "--json"]);
    check("remote rm", &[rm.json()]);
    world.store().put(&format!("blobs/{}", blob("x")), "x");
    world.store().put(&format!("blobs/{}", blob("y")), "y");
    world.age(&format!("blobs/{}", blob("x")), 3);
    world.store().put("refs/acme__gone/main", commit('c'));
    world.age("refs/acme__gone/main", 3);
    check("remote gc", &[world.run(&["remote", "gc", "--dry-run", "--json"]).json()]);
}

#[test]
fn rm_report_matches_the_documentation() {
    let world = World::offline();
    world.snapshot("models--acme--tiny", 'a', &[("a", "gone")], &["main"]);
    world.snapshot("models--acme--other", 'b', &[("b", "kept")], &["main"]);
    std::fs::write(world.cache.path(&format!("models--acme--other/blobs/{}.incomplete", blob("x"))), "half").unwrap();
    let line = ["rm", "acme/tiny", "acme/other", "--json"];
    let planned = world.run(&[&line[..], &["--dry-run"]].concat());
    let report = world.run(&line);
    assert_eq!((planned.code, report.code), (1, 1), "{}", report.text());
    check("rm", &[planned.json(), report.json()]);
}

fn missing_config(world: &World) -> Value {
    let run = world.run(&["--config", "nowhere.yaml", "status", "--json"]);
    assert_eq!(run.code, 2, "{}", run.text());
    run.json()
}

#[test]
fn remote_reports_match_the_documentation() {
    let world = World::online();
    let doctor = [world.run(&["doctor", "--json"]).json(), World::offline().run(&["doctor", "--json"]).json()];
    check("doctor", &doctor);

    world.snapshot("models--org--llm", 'a', &[("a.txt", "first"), ("b.txt", "second")], &["main"]);
    assert_eq!(world.run(&["push", "-q"]).code, 0);
    // Everything that a diff can report: a file on one side only, a different blob, a missing blob, a moved ref.
    let manifest = format!("manifests/org__llm@{}.json", commit('a'));
    let files = format!(
        "[{{\"path\": \"a.txt\", \"blob\": \"{}\", \"size\": 2}}, {{\"path\": \"c.txt\", \"blob\": \"{}\", \"size\": 2}}]",
        blob("hi"),
        blob("hi")
    );
    let json = format!("{{\"repo\": \"org/llm\", \"revision\": \"{}\", \"files\": {files}}}", commit('a'));
    world.store().put(&manifest, &json);
    world.store().put("refs/org__llm/main", commit('b'));
    world.store().put("manifests/org___bad@", "");
    world.store().put(&format!("manifests/a___b@{}.json", commit('c')), "{}");
    check("diff", &[world.run(&["diff", "--json"]).json()]);
    world.store().put("refs/org__llm/main", commit('a'));
    check("list", &[world.run(&["list", "--json"]).json()]);
    check("list --remote", &[world.run(&["list", "--remote", "--sizes", "--json"]).json()]);
}

#[test]
fn transfer_reports_match_the_documentation() {
    let world = World::online();
    let repo = "models--org--llm";
    world.snapshot(repo, 'a', &[("a.txt", "first")], &["main"]);
    world.snapshot(repo, 'b', &[("lost.txt", "refused")], &[]);
    world.snapshot(repo, 'd', &[("pointer", "version https://git-lfs.github.com/spec/v1")], &[]);
    std::fs::create_dir_all(world.cache.root().join(repo).join("snapshots").join(commit('e'))).unwrap();
    std::fs::write(world.cache.root().join(repo).join("refs/old"), commit('f')).unwrap();
    std::fs::write(world.cache.root().join(repo).join("blobs").join("1".repeat(40)), "unused").unwrap();
    world.snapshot("models--org--gated", 'a', &[("LICENSE", "you must accept this agreement")], &["main"]);
    let dry = world.run(&["push", "--dry-run", "--json"]).json();
    let refused = blob("refused");
    let key = format!("blobs/{refused}");
    let server = world.server();
    server.on_request(move |request| match request.method == "PUT" && request.key == key {
        true => Action::Refuse(403, "AccessDenied", "Access Denied"),
        false => Action::Pass,
    });
    let real = world.run(&["push", "--json"]).json();
    server.behave();
    check("push", &[dry, real]);

    world.remove("models--org--llm");
    let mut reports = vec![world.run(&["pull", "org/llm", "--dry-run", "--json"]).json()];
    reports.push(world.run(&["pull", "org/llm", "-r", &commit('a'), "--json"]).json());
    world.snapshot(repo, '9', &[("LICENSE", "you must accept this agreement")], &[]);
    world.remove(&format!("{repo}/blobs/{}", blob("first")));
    reports.push(world.run(&["pull", "org/llm", "--json"]).json());
    world.remove("models--org--llm");
    world.store().remove(&format!("blobs/{}", blob("first")));
    reports.push(world.run(&["pull", "org/llm", "--json"]).json());
    check("pull", &reports);

    let mut reports = vec![world.run(&["pull-all", "--json", "--include", "nothing/*"]).json()];
    reports.push(world.run(&["pull-all", "--json"]).json());
    world.snapshot(repo, '9', &[("LICENSE", "you must accept this agreement")], &[]);
    reports.push(world.run(&["pull-all", "--json"]).json());
    check("pull-all", &reports);
}

#[test]
fn verify_report_matches_the_documentation() {
    let world = World::online();
    world.snapshot("models--org--llm", 'a', &[("a.txt", "first"), ("b.txt", "second")], &["main"]);
    assert_eq!(world.run(&["push", "-q"]).code, 0);
    let blobs = world.cache.path("models--org--llm/blobs");
    std::fs::write(blobs.join(blob("first")), "other").unwrap();
    std::fs::write(blobs.join("5d41402abc4b2a76b9719d911017c592"), "old").unwrap();
    std::fs::remove_file(blobs.join(blob("second"))).unwrap();
    std::fs::remove_file(world.store().path(&format!("blobs/{}", blob("second")))).unwrap();
    world.store().put(&format!("blobs/{}", blob("first")), "wrong");
    let report = world.run(&["verify", "--repair", "--json"]);
    assert_eq!(report.code, 5, "{}", report.text());
    check("verify", &[report.json()]);
}
