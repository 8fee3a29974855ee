//! Each layer imports only layers below it, as docs/architecture.md promises.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules at the root of the crate, from the lowest layer up. Modules of one layer may import each other.
const LAYERS: &[&[&str]] = &[
    &["platform"],
    &["error", "escape", "files", "lossy", "pace", "retry", "suggest", "task", "when"],
    &["model"],
    &["hash", "progress"],
    &["config", "net"],
    &["cache"],
    &["bucket"],
    &["hub"],
    &["transfer"],
    &["plan"],
    &["engine"],
    &["commands"],
    &["ui"],
    &["cli"],
    &["complete"],
    &["fuzz", "lib", "main"],
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn add_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => add_files(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

/// Returns the modules at the root of the crate that the code of a file imports, apart from its tests.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    let code = code.split("\n#[cfg(all(test").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.flat_map(|line| line.split("crate::").skip(1)).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn each_layer_imports_only_lower_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    add_files(&root, &mut files);
    assert!(files.len() > 100, "the sources are not where this test looks");
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        if inside.iter().any(|part| part == "tests" || part == "tests.rs") {
            continue;
        }
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let own =
            layer(module).unwrap_or_else(|| panic!("{module} has no layer: add it here and to docs/architecture.md"));
        let text = fs::read_to_string(&file).unwrap();
        for import in imports(&text) {
            let is_lower = layer(import).is_none_or(|other| other <= own);
            assert!(is_lower, "{} imports {import}, which is in a higher layer", inside.display());
        }
    }
}
