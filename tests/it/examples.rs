//! The tool accepts every command line in examples/, docs/ and the top-level Markdown files.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use hf_cache_sync::cli::Cli;

use crate::harness::cache::Revision;
use crate::harness::machine::Machine;
use crate::harness::store::Store;

const TOOL: &str = "hf-cache-sync";

/// Returns all files below `dir` that match `wanted`, sorted.
fn files(dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => found.extend(files(&entry, wanted)),
            false if wanted(&entry) => found.push(entry),
            false => {}
        }
    }
    found.sort();
    found
}

/// Replaces a placeholder such as `<repo_id>` or `N`; 4 is a valid repo id, number and path.
fn fill_placeholder(word: &str) -> String {
    let placeholder = word.starts_with('<') && word.ends_with('>')
        || word.starts_with('$')
        || word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    match word.trim_matches(['<', '>']) {
        "command" if placeholder => "doctor".into(),
        "SHELL" => "bash".into(),
        _ if placeholder => "4".into(),
        _ => word.into(),
    }
}

/// Splits the first simple command of a line into shell words. Returns `None` if it is only a sketch of a command.
fn words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = command.trim_start();
    while let Some(first) = rest.chars().next() {
        if first == '#' || ";|&)>".contains(first) || rest.starts_with("2>") || rest.starts_with("< ") {
            break;
        }
        let (word, end) = match first {
            '\'' | '"' => {
                let end = rest[1..].find(first)? + 1;
                (&rest[1..end], end + 1)
            }
            _ => {
                let end = rest.find(|c: char| c.is_whitespace() || ";|&)".contains(c)).unwrap_or(rest.len());
                (&rest[..end], end)
            }
        };
        if word.contains(['[', '…']) || word.ends_with("...") {
            return None;
        }
        words.push(fill_placeholder(word));
        rest = rest[end..].trim_start();
    }
    Some(words)
}

/// Whether the text before the tool's name allows it to be a command: nothing, list markers, variables, cron's time
/// fields, or `ExecStart=` with a path.
fn is_command(before: &str) -> bool {
    let segment = before.rsplit([';', '|', '&', '(', '`']).next().unwrap_or_default();
    let directory = segment.rsplit(char::is_whitespace).next().unwrap_or_default();
    let attached = directory.is_empty() || directory.ends_with('/');
    let mut earlier = segment[..segment.len() - directory.len()].split_whitespace();
    let is_prefix = |word: &str| {
        ["-", "$", "run:", "script:", "exec", "time", "nice", "if", "!"].contains(&word)
            || word.contains('=')
            || word.chars().all(|c| c.is_ascii_digit() || "*/,-".contains(c))
            || word.starts_with('@')
    };
    attached && earlier.all(is_prefix)
}

/// Returns the tool's command lines in shell scripts, YAML, crontabs or unit files.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for line in text.replace("\\\n", " ").lines() {
        // The exec form: a list in brackets.
        if let Some(list) = line.find(&format!("[\"{TOOL}\"")).map(|at| &line[at..]) {
            let end = list.find(']').expect("the list ends on the same line");
            found.push(serde_json::from_str(&list[..=end]).expect("a list of strings"));
            continue;
        }
        let comment = line.trim_start();
        let line = comment.strip_prefix("# ").map_or(line, str::trim_start);
        for (at, _) in line.match_indices(TOOL) {
            let (before, mut command) = (&line[..at], &line[at..]);
            if before.ends_with('`') {
                command = command.split('`').next().unwrap_or_default();
            }
            if command[TOOL.len()..].starts_with(' ') && is_command(before) {
                found.extend(words(command));
            }
        }
    }
    found
}

/// Returns the command lines in a Markdown file: code spans, and code blocks except those with output or data.
fn markdown_commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut block: Option<(&str, String)> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), &mut block) {
            (Some(language), None) => block = Some((language.trim(), String::new())),
            (Some(_), Some((language, code))) => {
                if !["text", "json", "output"].contains(language) {
                    found.extend(commands(code));
                }
                block = None;
            }
            (None, Some((_, code))) => code.extend([line, "\n"]),
            (None, None) => {
                let spans = line.split('`').skip(1).step_by(2);
                found.extend(spans.filter(|span| span.starts_with(&format!("{TOOL} "))).filter_map(words));
            }
        }
    }
    found
}

#[test]
fn documented_command_lines_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let has_extension = |path: &Path, extension: &str| path.extension().is_some_and(|found| found == extension);
    let mut sources = files(&root.join("examples"), &|path| !has_extension(path, "rs"));
    sources.extend(files(&root.join("docs"), &|path| has_extension(path, "md")));
    let top = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    sources.extend(top.filter(|path| has_extension(path, "md")));

    let (mut wrong, mut seen) = (Vec::new(), 0);
    for source in &sources {
        let text = fs::read_to_string(source).unwrap();
        let found = if has_extension(source, "md") { markdown_commands(&text) } else { commands(&text) };
        // `hf-cache-sync` on its own is just the name of the tool.
        for command in found.iter().filter(|command| command.len() > 1) {
            seen += 1;
            if let Err(error) = Cli::try_parse_from(command)
                && !matches!(error.kind(), clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion)
            {
                let first = error.to_string().lines().next().unwrap_or_default().to_string();
                wrong.push(format!("{}: `{}`: {first}", source.display(), command.join(" ")));
            }
        }
    }
    assert!(seen >= 20, "only {seen} command lines were found in {sources:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The budgets in the examples are far larger than a test can fill, so each command line runs with a small one, on a
/// cache where every revision has a ref, as after downloads and pulls, and all but one have been pushed.
#[test]
fn prune_examples_enforce_their_budget_and_evict_only_pushed_revisions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let (mut seen, is_prune) = (0, |command: &Vec<String>| command.get(1).is_some_and(|word| word == "prune"));
    for source in files(&root, &|path| path.extension().is_none_or(|found| found != "rs")) {
        for mut command in commands(&fs::read_to_string(&source).unwrap()).into_iter().filter(is_prune) {
            let at = command.iter().position(|word| word == "--max-size" || word == "--max-gb");
            let at = at.unwrap_or_else(|| panic!("{}: {command:?} has no budget", source.display()));
            command[at] = "--max-size".into();
            command[at + 1] = "1000B".into();
            let store = Store::new();
            let machine = Machine::new(&store);
            let days = [40, 30, 20, 1];
            let revisions = [0, 1, 2, 3].map(|number: u8| {
                let content = [number; 400];
                Revision::new("model", &format!("org/m{number}")).lfs("model.bin", content)
            });
            for (number, (revision, days)) in revisions.iter().zip(days).enumerate() {
                revision.write(&machine.hub());
                if number == 2 {
                    // The oldest revision is not pushed.
                    machine.ok(&["push", "-q", "org/m1", "org/m2"]);
                }
                revision.age(&machine.hub(), days);
            }
            machine.ok(&["push", "-q", "org/m3"]);
            let words: Vec<&str> = command[1..].iter().map(String::as_str).collect();
            let output = machine.run(&words);
            assert_eq!(output.code, 0, "{}: {command:?}: {output:#?}", source.display());
            let left = revisions.map(|revision| revision.dir(&machine.hub()).exists());
            assert_eq!(left, [true, false, false, true], "{}: {command:?}: {output:#?}", source.display());
            seen += 1;
        }
    }
    assert!(seen >= 4, "only {seen} prunes were found in examples/");
}

#[test]
fn files_named_in_the_docs_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut missing, mut seen) = (Vec::new(), 0);
    for source in files(&root.join("docs"), &|path| path.extension().is_some_and(|found| found == "md")) {
        let text = fs::read_to_string(&source).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let ours = ["src/", "tests/", "docs/", "examples/", "benches/"].iter().any(|top| name.starts_with(top));
            // `src/commands/<name>.rs` stands for many files.
            if ours && !name.contains('<') {
                seen += 1;
                if !root.join(name).exists() {
                    missing.push(format!("{}: `{name}`", source.display()));
                }
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !link.is_empty() && !link.contains("://") && !source.with_file_name(link).exists() {
                missing.push(format!("{}: link to {link}", source.display()));
            }
        }
    }
    assert!(seen >= 20 && missing.is_empty(), "{seen} names, missing: {}", missing.join("\n"));
}

/// A tag or a branch of an action can be moved to other code; a commit cannot.
#[test]
fn workflows_pin_everything_that_they_download() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut actions, mut tools) = (0, 0);
    for folder in [".github", "examples"] {
        let is_yaml = |path: &Path| path.extension().is_some_and(|found| found == "yml" || found == "yaml");
        for source in files(&root.join(folder), &is_yaml) {
            let text = fs::read_to_string(&source).unwrap();
            let place = source.display();
            for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
                if let Some((_, action)) = line.split_once("uses: ") {
                    let (name, pin) = action.split_once('@').unwrap_or_else(|| panic!("{place}: {line}"));
                    let (commit, version) = pin.split_once(" # v").unwrap_or_else(|| panic!("{place}: {line}"));
                    assert!(commit.len() == 40 && commit.bytes().all(|c| c.is_ascii_hexdigit()), "{place}: {line}");
                    assert!(name.contains('/') && version.contains('.'), "{place}: {line}");
                    actions += 1;
                }
                if let Some((_, tool)) = line.split_once("cargo install ") {
                    assert!(tool.contains("--locked") && tool.contains('@'), "{place}: {line}");
                    tools += 1;
                }
            }
        }
    }
    assert!(actions >= 20 && tools >= 2, "{actions} actions, {tools} tools");
}

#[test]
fn command_lines_are_found_in_every_format() {
    let line = |text: &str| commands(text).iter().map(|words| words.join(" ")).collect::<Vec<_>>();
    for (text, expected) in [
        ("        run: hf-cache-sync doctor", "hf-cache-sync doctor"),
        ("    - hf-cache-sync pull a/b -r 'x y' # why", "hf-cache-sync pull a/b -r x y"),
        ("ExecStart=%h/.local/bin/hf-cache-sync watch", "hf-cache-sync watch"),
        ("17 3 * * *  hf-cache-sync prune -q > log", "hf-cache-sync prune -q"),
        ("set -a; . ./env; A=b hf-cache-sync push && true", "hf-cache-sync push"),
        ("#   hf-cache-sync pull \\\n#", "hf-cache-sync pull"),
        ("command: [\"hf-cache-sync\", \"pull\", \"a/b\"]", "hf-cache-sync pull a/b"),
        ("# run `hf-cache-sync prune` from a job", "hf-cache-sync prune"),
        ("$ hf-cache-sync push --workers N", "hf-cache-sync push --workers 4"),
    ] {
        assert_eq!(line(text), [expected], "{text}");
    }
    for text in ["cargo install hf-cache-sync --locked", "# The hf-cache-sync tool", "kubectl get hf-cache-sync x"] {
        assert!(line(text).is_empty(), "{text}");
    }
    let markdown = "Run `hf-cache-sync doctor`, not hf-cache-sync nonsense.\n```text\nhf-cache-sync 1\n```\n\
                    ```bash\nhf-cache-sync push\n```\n";
    let found: Vec<String> = markdown_commands(markdown).iter().map(|words| words.join(" ")).collect();
    assert_eq!(found, ["hf-cache-sync doctor", "hf-cache-sync push"]);
}
