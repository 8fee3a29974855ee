//! `completions`: a script for the shell, which asks this program for candidates. Needs no configuration.

use std::path::PathBuf;

use clap_complete::Shell;
use clap_complete::env::Shells;
use serde::Serialize;

use crate::error::{Error, Result};

/// Says which shell asks for candidates.
pub const VARIABLE: &str = "HF_CACHE_SYNC_COMPLETE";

const EXAMPLES: &str = "\
Examples:
  source <(hf-cache-sync completions bash)      (in ~/.bashrc)
  hf-cache-sync completions zsh  > ~/.zfunc/_hf-cache-sync
  hf-cache-sync completions fish > ~/.config/fish/completions/hf-cache-sync.fish

Commands, options and their values are completed, repos of the cache, and for
pull those of the bucket too, when it answers within a second or two.";

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

/// bash, since the crate's script does not know that bash splits words at `=` and `:`, and needs variables that are not
/// always set. Works without the bash-completion package, with `set -u`, and from bash 3.2 on.
const BASH: &str = r#"# Made by `hf-cache-sync completions bash`.
_hf_cache_sync() {
    local program=@PROGRAM@ word joined="" before="" index=-1 i found line glue=""
    [[ -x $program ]] || program=hf-cache-sync
    local -a words
    words=()
    # bash splits at = and :, the program does not.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]-}
        if ((i == COMP_CWORD)) && [[ $word != [=:] && $# -ge 2 ]]; then
            word=$2
        fi
        if ((index > 0)) && [[ $word == [=:] || -n $glue ]]; then
            before=$joined
            joined+=$word
            words[index]=$joined
        else
            index=$((index + 1))
            before=""
            joined=$word
            words[index]=$word
        fi
        glue=""
        if [[ $word == [=:] ]]; then
            glue=1
            before=$joined
        fi
    done
    COMPREPLY=()
    found=$(_CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$index @VARIABLE@=bash "$program" -- "${words[@]}" 2>/dev/null) || return 0
    [[ -n $found ]] || return 0
    while IFS= read -r line; do
        if [[ $line == *[=/:] ]]; then
            compopt -o nospace 2>/dev/null
        fi
        # Only what comes after the last split is replaced.
        printf -v line %q "${line#"$before"}"
        COMPREPLY+=("$line")
    done <<< "$found"
}
complete -o bashdefault -o default -o nosort -F _hf_cache_sync hf-cache-sync 2>/dev/null ||
    complete -o bashdefault -o default -F _hf_cache_sync hf-cache-sync
"#;

const ZSH: &str = r#"#compdef hf-cache-sync
# Made by `hf-cache-sync completions zsh`.
_hf_cache_sync() {
    local program=@PROGRAM@ one value
    [[ -x $program ]] || program=hf-cache-sync
    local -a found folders others
    found=("${(@f)$(_CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$((CURRENT - 1)) @VARIABLE@=zsh $program -- "${words[@]}" 2>/dev/null)}")
    for one in $found; do
        value=${one%%:*}
        if [[ $value == */ ]]; then
            folders+=("${value%/}${one#"$value"}")
        else
            others+=("$one")
        fi
    done
    (($#folders)) && _describe -V 'values' folders -S '/' -r '/'
    (($#others)) && _describe -V 'values' others
    return 0
}
if [[ ${funcstack[1]-} == _hf-cache-sync ]]; then
    _hf_cache_sync "$@"
else
    compdef _hf_cache_sync hf-cache-sync
fi
"#;

const FISH: &str = r#"# Made by `hf-cache-sync completions fish`.
function __hf_cache_sync_complete
    set -l program @PROGRAM@
    test -x $program; or set program hf-cache-sync
    @VARIABLE@=fish $program -- (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token) 2>/dev/null
end
complete --keep-order --exclusive --command hf-cache-sync --arguments "(__hf_cache_sync_complete)"
"#;

/// Makes the script.
///
/// # Errors
/// When there is none for this shell.
pub fn execute(args: &Args) -> Result<Report> {
    let program = program();
    let script = match args.shell {
        Shell::Bash => filled(BASH, &quoted(&program)),
        Shell::Zsh => filled(ZSH, &quoted(&program)),
        Shell::Fish => filled(FISH, &format!("'{}'", program.replace('\\', r"\\").replace('\'', r"\'"))),
        other => generated(other, &program)?,
    };
    Ok(Report { shell: args.shell.to_string(), script })
}

fn filled(script: &str, program: &str) -> String {
    script.replace("@PROGRAM@", program).replace("@VARIABLE@", VARIABLE)
}

/// The crate's own script.
fn generated(shell: Shell, program: &str) -> Result<String> {
    let name = shell.to_string();
    let unknown = || Error::usage(format!("there is no completion script for {name}"));
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let shell = shells.completer(&name).ok_or_else(unknown)?;
    let written = shell.write_registration(VARIABLE, "hf-cache-sync", "hf-cache-sync", program, &mut script);
    written.map_err(|_| unknown())?;
    Ok(format!("# Made by `hf-cache-sync completions {name}`.\n{}", String::from_utf8_lossy(&script)))
}

/// Where this program is, when it was called by its path; else its name, so that a newer one is found as well.
fn program() -> String {
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let path = if called.components().count() > 1 { std::env::current_exe().ok() } else { None };
    path.map_or_else(|| "hf-cache-sync".into(), |path| path.to_string_lossy().into_owned())
}

/// As one word of a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
