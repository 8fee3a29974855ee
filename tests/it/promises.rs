//! docs/promises.md: every promise names tests, and every one of them exists and runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const COMMANDS: [&str; 11] =
    ["Everywhere", "push", "pull", "pull-all", "prune", "rm", "verify", "watch", "remote rm", "remote gc", "serve"];

/// Returns the files in which the tests of a module may be.
fn files(module: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = module.join("/");
    let names = [
        format!("tests/it/{path}.rs"),
        format!("src/{path}.rs"),
        format!("src/{path}/mod.rs"),
        format!("tests/{path}.py"),
    ];
    names.iter().map(|name| root.join(name)).filter(|path| path.is_file()).collect()
}

/// Whether a source file has a test of this name, which is not left out. In Python, only the name counts.
fn has_test(source: &str, name: &str) -> bool {
    if source.lines().any(|line| line.trim_start().starts_with(&format!("def {name}("))) {
        return true;
    }
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| line.starts_with(&format!("fn {name}(")));
    let attributes = at.map(|at| lines[..at].iter().rev().take_while(|line| line.starts_with(['#', '/'])));
    let attributes: Vec<&&str> = attributes.into_iter().flatten().collect();
    attributes.contains(&&"#[test]") && !attributes.iter().any(|line| line.starts_with("#[ignore"))
}

#[test]
fn every_promise_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let (mut sections, mut section, mut promises) = (BTreeSet::new(), "", 0);
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title;
        }
        let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |")) else { continue };
        let (promise, tests) = row.rsplit_once(" | ").unwrap();
        if promise == "promise" {
            continue;
        }
        sections.insert(section);
        promises += 1;
        let names: Vec<&str> = tests.split(", ").map(|name| name.trim_matches('`')).collect();
        for name in names {
            let path: Vec<&str> = name.split("::").collect();
            let (function, module) = path.split_last().unwrap();
            let found = files(module);
            assert!(!found.is_empty(), "'{promise}' ({section}) names {name}, whose module does not exist");
            let sources = found.iter().map(|path| fs::read_to_string(path).unwrap());
            assert!(
                sources.into_iter().any(|source| has_test(&source, function)),
                "'{promise}' ({section}): no {name}"
            );
        }
    }
    assert_eq!(sections, COMMANDS.into_iter().collect());
    assert!(promises > 90, "{promises}");
}

#[test]
fn tests_are_distinguished_from_other_functions_and_ignored_tests() {
    assert!(has_test("#[cfg(unix)]\n#[test]\nfn a() {", "a") && has_test("    #[test]\n    fn a() {", "a"));
    assert!(has_test("#[test]\n#[expect(x)]\nfn a() {", "a"));
    assert!(!has_test("fn a() {", "a") && !has_test("#[test]\n#[ignore]\nfn a() {", "a"));
    assert!(!has_test("#[test]\nfn a_b() {", "a"));
}
