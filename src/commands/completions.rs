//! `completions`: a script for the shell. Needs no configuration.

use clap_complete::Shell;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  source <(hf-cache-sync completions bash)      (in ~/.bashrc)
  hf-cache-sync completions zsh  > ~/.zfunc/_hf-cache-sync
  hf-cache-sync completions fish > ~/.config/fish/completions/hf-cache-sync.fish";

/// Print a completion script for a shell
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// The script.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The shell.
    pub shell: String,
    /// Its content.
    pub script: String,
}

/// Makes the script for this command tree.
pub fn execute(tree: &mut clap::Command, args: &Args) -> Report {
    let mut script = Vec::new();
    let name = tree.get_name().to_string();
    clap_complete::generate(args.shell, tree, name, &mut script);
    Report { shell: args.shell.to_string(), script: String::from_utf8_lossy(&script).into_owned() }
}
