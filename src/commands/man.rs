//! `man`: manual pages, made from the command tree. Needs no configuration.

use std::fs;
use std::path::PathBuf;

use clap_mangen::Man;
use serde::Serialize;

use crate::error::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync man                          the main page on stdout
  hf-cache-sync man ~/.local/share/man/man1  one page for each command";

/// Print the manual page, or write one page for each command
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder for the pages, made when it is not there
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// What was made.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The files that were written.
    #[serde(serialize_with = "crate::lossy::all")]
    pub pages: Vec<PathBuf>,
    /// The main page, when no folder was named.
    pub page: Option<String>,
}

/// Makes the pages of this command tree.
///
/// # Errors
/// When the folder cannot be made or a page cannot be written.
pub fn execute(tree: clap::Command, args: &Args) -> Result<Report> {
    let mut tree = tree.disable_help_subcommand(true);
    tree.build();
    let Some(dir) = &args.dir else {
        return Ok(Report { pages: Vec::new(), page: Some(page(&tree)) });
    };
    fs::create_dir_all(dir).map_err(|e| Error::io("cannot make the folder", dir, &e))?;
    let commands = tree.get_subcommands().filter(|command| !command.is_hide_set());
    let mut pages = Vec::new();
    for command in std::iter::once(&tree).chain(commands) {
        let path = dir.join(Man::new(command.clone()).get_filename());
        fs::write(&path, page(command)).map_err(|e| Error::io("cannot write", &path, &e))?;
        pages.push(path);
    }
    Ok(Report { pages, page: None })
}

/// One page. What clap calls extra are the examples.
fn page(command: &clap::Command) -> String {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page).expect("writing to memory does not fail");
    String::from_utf8_lossy(&page).replace(".SH EXTRA\nExamples:\n", ".SH EXAMPLES\n")
}
