//! Shell completion, requested as the shells request it.

use std::fs;
use std::path::Path;

use crate::harness::cache::Revision;
use crate::harness::machine::{BINARY, Machine, Output, run};
use crate::harness::s3::Action;
use crate::harness::store::Store;

/// Returns what bash completes for the last of these words, which are split as bash splits them. Runs with `set -u` and
/// without the bash-completion package.
fn bash(machine: &Machine, words: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let last = words.last().unwrap();
    let current = if [":", "="].contains(last) { "" } else { last };
    let script = format!(
        "set -u\nsource <('{}' completions bash)\n\
         f=$(complete -p hf-cache-sync)\nf=${{f##*-F }}\nf=${{f%% *}}\n\
         COMP_WORDS=(hf-cache-sync {})\nCOMP_CWORD={}\n\
         \"$f\" hf-cache-sync '{current}' before\n\
         if ((${{#COMPREPLY[@]}})); then printf '%s\\n' \"${{COMPREPLY[@]}}\"; fi\n",
        BINARY,
        quoted.join(" "),
        words.len()
    );
    let output = shell(machine, Path::new("bash"), &["--noprofile", "--norc", "-c", &script]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{words:?}: {output:#?}");
    output.stdout.lines().map(String::from).collect()
}

fn shell(machine: &Machine, shell: &Path, args: &[&str]) -> Output {
    // The binary's folder is not on the PATH.
    let mut command = machine.program(shell, args);
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    run(command)
}

/// Two repos in the cache, and a third one with refs in the bucket.
fn setup(store: &Store) -> Machine {
    let machine = Machine::new(store);
    Revision::model("org/far").refs(&["main", "v1.0", "refs/pr/1"]).write(&machine.hub());
    machine.ok(&["push"]);
    fs::remove_dir_all(machine.hub()).unwrap();
    Revision::model("org/near").refs(&["main", "v2.0"]).write(&machine.hub());
    Revision::new("dataset", "org/set").git("a", "1").write(&machine.hub());
    machine
}

#[test]
fn bash_completes_commands_options_and_values() {
    let machine = Machine::unconfigured();
    assert_eq!(bash(&machine, &["pu"]), ["push", "pull", "pull-all"]);
    assert_eq!(bash(&machine, &["-q", "sta"]), ["status"]);
    assert_eq!(bash(&machine, &["push", "--dry"]), ["--dry-run"]);
    assert_eq!(bash(&machine, &["remote", "d"]), ["du"]);
    assert_eq!(bash(&machine, &["remote", "gc", "--gr"]), ["--grace"]);
    assert_eq!(bash(&machine, &["push", "--dry-run", "--wor"]), ["--workers"]);
    assert_eq!(bash(&machine, &["pull", "org/name", "--fallback", ""]), ["hf-hub"]);
    assert_eq!(
        bash(&machine, &["pull", "org/name", "--fallback", "=", "h"]),
        ["hf-hub"],
        "completes only the part after the ="
    );
    assert_eq!(bash(&machine, &["pull", "org/name", "--fallback", "="]), ["hf-hub"]);
    assert_eq!(bash(&machine, &["pull", "x", "--repo-type", "d"]), ["dataset"]);
    assert_eq!(bash(&machine, &["completions", "b"]), ["bash"]);
}

#[test]
fn bash_completes_repos_and_refs() {
    let store = Store::new();
    let machine = setup(&store);
    assert_eq!(bash(&machine, &["push", "org/"]), ["org/near"]);
    assert_eq!(bash(&machine, &["push", "dataset", ":", "org"]), ["org/set"], "completes only the part after the :");
    assert_eq!(bash(&machine, &["push", "dataset:o"]), ["dataset:org/set"], "bash can be configured not to split at :");
    assert_eq!(bash(&machine, &["pull", "org/"]), ["org/far", "org/near"]);
    assert_eq!(bash(&machine, &["pull", "org/far", "-r", "v"]), ["v1.0"]);
    assert_eq!(bash(&machine, &["remote", "rm", "org/"]), ["org/far"], "only what the bucket has");
    assert_eq!(bash(&machine, &["remote", "rm", "org/far", "-r", "v"]), ["v1.0"]);
    assert_eq!(bash(&machine, &["pull", "org/near", "--revision", ""]), ["main", "v2.0"]);
    assert_eq!(bash(&machine, &["pull-all", "--include", "org/f"]), ["org/far"]);
    assert_eq!(bash(&machine, &["pull-all", "--exclude", "org/"]), ["org/\\*", "org/far", "org/near"]);
    // If the store refuses or does not respond, the other candidates are still offered.
    store.server.on_request(|_| Action::Refuse(403, "AccessDenied", "no"));
    assert_eq!(bash(&machine, &["pull", "org/"]), ["org/near"]);
    store.server.on_request(|_| Action::Hang);
    assert_eq!(bash(&machine, &["pull", "org/"]), ["org/near"]);
}

#[test]
fn a_broken_configuration_does_not_break_completion() {
    let machine = Machine::unconfigured();
    machine.configure("storage: [1\n\tx");
    Revision::model("org/near").write(&machine.hub());
    assert_eq!(bash(&machine, &["pus"]), ["push"]);
    assert_eq!(bash(&machine, &["push", "--dry"]), ["--dry-run"]);
    bash(&machine, &["pull", "org/"]);
}

/// Shells that are not installed are skipped; CI has them all.
#[test]
fn zsh_and_fish_complete_with_their_scripts() {
    let store = Store::new();
    let machine = setup(&store);
    for (name, script, wanted) in [
        (
            "zsh",
            format!(
                "autoload -Uz compinit; compinit -D\nsource <('{BINARY}' completions zsh)\n\
                 _describe() {{ local -a v; v=(\"${{(@P)3}}\"); print -rl -- \"${{v[@]}}\" }}\n\
                 words=(hf-cache-sync push org/); CURRENT=3; _hf_cache_sync\n\
                 words=(hf-cache-sync pus); CURRENT=2; _hf_cache_sync\n"
            ),
            ["org/near", "push"],
        ),
        (
            "fish",
            format!(
                "'{BINARY}' completions fish | source\ncomplete -C 'hf-cache-sync push org/'\ncomplete -C 'hf-cache-sync pus'\n"
            ),
            ["org/near", "push"],
        ),
    ] {
        let found = ["/usr/bin", "/bin", "/usr/local/bin"]
            .iter()
            .map(|dir| Path::new(dir).join(name))
            .find(|path| path.exists());
        let Some(path) = found else { continue };
        let output = shell(&machine, &path, &["-c", &script]);
        let lines: Vec<&str> =
            output.stdout.lines().map(|line| line.split(['\t', ':']).next().unwrap_or_default()).collect();
        assert_eq!((output.code, lines), (0, wanted.to_vec()), "{name}: {output:#?}");
    }
    for shell in ["powershell", "elvish"] {
        assert!(machine.ok(&["completions", shell]).contains("HF_CACHE_SYNC_COMPLETE"), "{shell}");
    }
}
