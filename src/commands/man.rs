//! `man`: manual pages, generated from the command tree and the table of settings. Needs no configuration.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use clap_mangen::Man;
use serde::Serialize;

use crate::config::settings::SETTINGS;
use crate::error::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync man                          print the main page
  hf-cache-sync man ~/.local/share/man/man1  write one page per command";

/// The documentation, from which the pages take environment variables, exit codes and configuration file locations.
const DOCUMENTATION: &str = include_str!("../../docs/configuration.md");

/// Files other than the configuration.
const FILES: [(&str, &str); 4] = [
    ("~/.cache/huggingface/hub", "The cache, unless --cache-dir, the configuration or the environment names another."),
    (".locks/.hf-cache-sync/", "In the cache: locks, and state to resume interrupted transfers from."),
    ("~/.aws/config, ~/.aws/credentials", "AWS profiles, used if no key pair is set."),
    ("~/.cache/huggingface/token", "The token of `hf auth login`, for the Hub."),
];

/// Print the manual page, or write one page per command
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder for the pages; created if it does not exist
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// The report of `man`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Files that were written.
    #[serde(serialize_with = "crate::lossy::all")]
    pub pages: Vec<PathBuf>,
    /// The main page, if no folder was named.
    pub page: Option<String>,
}

/// Generates the pages of this command tree.
///
/// # Errors
/// When the folder cannot be created or a page cannot be written.
pub fn execute(tree: clap::Command, args: &Args) -> Result<Report> {
    let tree = build(tree);
    let Some(dir) = &args.dir else {
        return Ok(Report { pages: Vec::new(), page: Some(page(&tree, &tree)) });
    };
    fs::create_dir_all(dir).map_err(|e| Error::io("cannot create the folder", dir, &e))?;
    let mut pages = Vec::new();
    for command in commands(&tree) {
        let path = dir.join(Man::new(command.clone()).get_filename());
        fs::write(&path, page(&tree, command)).map_err(|e| Error::io("cannot write", &path, &e))?;
        pages.push(path);
    }
    Ok(Report { pages, page: None })
}

fn build(tree: clap::Command) -> clap::Command {
    let mut tree = tree.disable_help_subcommand(true);
    tree.build();
    tree
}

/// Returns the commands that have a page: this one, and all below it.
fn commands(tree: &clap::Command) -> Vec<&clap::Command> {
    let below = tree.get_subcommands().filter(|command| !command.is_hide_set()).flat_map(commands);
    std::iter::once(tree).chain(below).collect()
}

/// Returns the page's name. clap does not set the display name of the tree itself.
fn title_of(command: &clap::Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

/// Generates a page: clap's sections of the command, then the sections that all pages share.
fn page(tree: &clap::Command, command: &clap::Command) -> String {
    let version = tree.get_version().unwrap_or_default();
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    let mut render = |section: fn(&Man, &mut dyn std::io::Write) -> std::io::Result<()>| {
        section(&man, &mut page).expect("writing to memory does not fail");
    };
    render(Man::render_title);
    render(Man::render_name_section);
    render(Man::render_synopsis_section);
    render(Man::render_description_section);
    render(Man::render_options_section);
    let name = title_of(command);
    let title = format!(".TH {} 1 \"\" \"hf-cache-sync {version}\" \"User Commands\"", name.to_uppercase());
    let mut page = clean(&String::from_utf8_lossy(&page), &title);

    let pages: Vec<&str> = commands(tree).into_iter().map(title_of).collect();
    if command.has_subcommands() {
        page += ".SH COMMANDS\n";
        for one in &commands(command)[1..] {
            let about = one.get_about().map(ToString::to_string).unwrap_or_default();
            item(&mut page, &format!("{}(1)", title_of(one)), &about);
        }
    }
    page += ".SH EXIT STATUS\n";
    table("## Exit codes").for_each(|(code, text)| item(&mut page, code, &sentence(text)));
    page += ".SH ENVIRONMENT\n";
    for setting in SETTINGS {
        let names: Vec<&str> = setting.variables.iter().chain(setting.fallbacks).copied().collect();
        if !names.is_empty() {
            item(&mut page, &names.join(", "), &format!("{}: {}.", setting.name(), setting.doc));
        }
    }
    table("## Environment variables").for_each(|(names, text)| item(&mut page, names, &sentence(text)));
    page += ".SH FILES\n";
    let paths: Vec<&str> = config_paths().collect();
    item(&mut page, &paths.join(", "), "The configuration: the first of these that exists.");
    FILES.iter().for_each(|(names, text)| item(&mut page, names, text));

    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (examples, notes) = split_help(&help);
    page += &format!(".SH EXAMPLES\n.nf\n{}.fi\n", lines(examples));
    if !notes.is_empty() {
        page += &format!(".SH NOTES\n{}", lines(notes));
    }
    let others = pages.iter().filter(|other| **other != name);
    let others: Vec<String> = others.map(|name| format!("\\fB{}\\fR(1)", escape(name))).collect();
    page += &format!(".SH SEE ALSO\n{}\n", others.join(", "));
    page
}

/// Cleans up clap_mangen's output: sets the title line, and removes empty lines, which roff does not allow, and the
/// preamble that each separately rendered section repeats.
fn clean(page: &str, title_line: &str) -> String {
    let preamble: Vec<&str> = page.lines().take_while(|line| !line.starts_with(".TH")).collect();
    let mut seen = false;
    let mut out = String::new();
    for line in page.lines() {
        let is_title = line.starts_with(".TH");
        if line.trim().is_empty() || (seen && !is_title && preamble.contains(&line)) {
            continue;
        }
        seen |= is_title;
        out += if is_title { title_line } else { line };
        out.push('\n');
    }
    out
}

/// Splits a help text into the examples and what follows them.
fn split_help(help: &str) -> (&str, &str) {
    let text = help.split_once("Examples:\n").map_or("", |(_, text)| text);
    text.split_once("\n\n").map_or((text, ""), |(examples, notes)| (examples, notes))
}

/// Returns the text under a heading of the documentation.
fn section(heading: &str) -> &'static str {
    let after = DOCUMENTATION.split_once(heading).map_or("", |(_, after)| after);
    after.split("\n## ").next().unwrap_or_default()
}

/// Returns the first two cells of each row of the table under a heading, without the header row.
fn table(heading: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = section(heading).lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split_once(" | "));
    cells.skip(1).map(|(name, rest)| (name, rest.split(" | ").next().unwrap_or_default().trim_end_matches(" |")))
}

/// Returns the locations of the configuration file, from the numbered list in the documentation.
fn config_paths() -> impl Iterator<Item = &'static str> {
    let lines = section("## The file").lines().take_while(|line| !line.starts_with("```"));
    lines
        .filter_map(|line| line.split_once(". "))
        .filter(|(number, _)| number.parse::<u8>().is_ok())
        .map(|(_, place)| place)
}

/// Adds a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters).chain(['.']).collect()
}

fn item(page: &mut String, term: &str, text: &str) {
    let _ = write!(page, ".TP\n\\fB{}\\fR\n{}", escape(term), lines(text));
}

/// Converts text to roff: an empty line starts a paragraph, and no line is taken for a request.
fn lines(text: &str) -> String {
    let line = |line: &str| match line.trim_end() {
        "" => ".PP\n".to_string(),
        line if line.starts_with(['.', '\'']) => format!("\\&{}\n", escape(line)),
        line => format!("{}\n", escape(line)),
    };
    text.lines().map(line).collect()
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('`', "")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn pages() -> Vec<(String, String)> {
        let tree = build(crate::cli::Cli::command());
        commands(&tree).into_iter().map(|command| (title_of(command).to_string(), page(&tree, command))).collect()
    }

    #[test]
    fn every_page_has_every_section_in_order() {
        for (name, page) in pages() {
            let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
            let wanted =
                ["NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"];
            let found: Vec<&str> =
                sections.iter().map(|title| title.trim_matches('"')).filter(|title| wanted.contains(title)).collect();
            assert_eq!(found, wanted, "{name}: {page}");
            assert!(page.contains("hf\\-cache\\-sync"), "{name}: {page}");
            let title = format!(".TH {} 1 ", name.to_uppercase());
            assert!(page.lines().any(|line| line.starts_with(&title)), "{name}: {page}");
            let lines: Vec<&str> = page.lines().collect();
            let terms = lines.windows(3).filter(|at| at[0] == ".TP");
            terms.for_each(|at| assert!(!at[2].starts_with('.'), "{name}: no text for {}", at[1]));
            let own = page.split(".SH \"SEE ALSO\"").last().unwrap().split(".SH SEE ALSO").last().unwrap();
            assert_eq!(own.contains("\\fBhf\\-cache\\-sync\\fR(1)"), name != "hf-cache-sync", "{name}: {own}");
            assert!(page.starts_with(".") && !page.contains("\n\n"), "{name}: {page}");
        }
    }

    #[test]
    fn nested_commands_have_pages_that_refer_to_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args { dir: Some(dir.path().to_path_buf()) };
        let report = execute(crate::cli::Cli::command(), &args).unwrap();
        let names: Vec<_> = report.pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap()).collect();
        for name in ["remote", "remote-gc", "remote-rm", "remote-du", "config", "config-show"] {
            assert!(names.contains(&format!("hf-cache-sync-{name}.1").as_str()), "{names:?}");
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
        for page in pages() {
            let others: Vec<String> =
                pages().into_iter().map(|(name, _)| name).filter(|name| *name != page.0).collect();
            let (_, see_also) = page.1.split_once(".SH SEE ALSO\n").unwrap();
            let links: Vec<String> =
                see_also.trim().split(", ").map(|link| link.replace("\\fB", "").replace("\\fR(1)", "")).collect();
            let links: Vec<String> = links.into_iter().map(|link| link.replace("\\-", "-")).collect();
            assert_eq!(links, others, "{}", page.0);
        }
        let gc = read("hf-cache-sync-remote-gc");
        assert!(gc.contains(".TH HF-CACHE-SYNC-REMOTE-GC 1 ") && gc.contains("hf\\-cache\\-sync remote gc"), "{gc}");
        let remote = read("hf-cache-sync-remote");
        let (_, commands) = remote.split_once(".SH COMMANDS\n").unwrap();
        let (commands, _) = commands.split_once(".SH EXIT STATUS").unwrap();
        assert!(commands.contains("hf\\-cache\\-sync\\-remote\\-gc(1)"), "{commands}");
        assert!(!commands.contains("hf\\-cache\\-sync\\-push(1)"), "{commands}");
    }

    #[test]
    fn pages_include_the_documentation() {
        for (name, page) in pages() {
            for words in [
                "\\fB130\\fR\nCtrl\\-C or SIGTERM.\n",
                "\\fBHF_TOKEN, HUGGING_FACE_HUB_TOKEN, HF_TOKEN_PATH\\fR\n",
                "\\fBB2_BUCKET\\fR\n",
                "~/.hf\\-cache\\-sync.yaml",
            ] {
                assert!(page.contains(words), "{words} is not in the page of {name}: {page}");
            }
        }
        let codes: Vec<&str> = table("## Exit codes").map(|(code, _)| code).collect();
        assert!(codes.starts_with(&["0", "1", "2", "3", "4", "5", "6"]) && codes.ends_with(&["130"]), "{codes:?}");
        assert!(config_paths().count() >= 3);
    }
}
