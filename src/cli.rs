//! The command line: global options and the enum of commands. The options of a command are in its own file.

mod parse;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
pub use parse::parse;

use crate::VERSION;
use crate::cache::root;
use crate::commands::remote::deletion::{self, Deletion};
use crate::commands::{
    completions, config, diff, doctor, init, list, man, prune, pull, pull_all, push, remote, rm, serve, status, verify,
    watch,
};
use crate::config::resolve::{Resolution, named_file};
use crate::config::settings::{Form, SETTINGS, Setting};
use crate::config::{Config, Environment, Overrides};
use crate::engine::Session;
use crate::error::{Error, Kind, Result, shown};
use crate::progress::Event;
use crate::ui::{GivenOptions, Style, Ui};

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync init                     write a configuration template
  hf-cache-sync doctor                   check it
  hf-cache-sync push                     from the cache to the bucket
  hf-cache-sync pull org/name            from the bucket to the cache
  hf-cache-sync diff                     show what differs

Exit codes: 0 success, 1 partial failure, 2 usage or configuration,
3 credentials or permission, 4 not found, 5 integrity, 6 store unavailable,
70 internal error, 130 interrupted";

/// Share the Hugging Face Hub cache through Backblaze B2 or any S3-compatible bucket.
#[derive(Debug, Parser)]
#[command(version = VERSION, about, propagate_version = false, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub global: Global,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Command,
}

/// Options of all commands, accepted before and after the command's name.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Configuration file [default: ./.hf-cache-sync.yaml, then ~/.hf-cache-sync.yaml, then
    /// ~/.config/hf-cache-sync/config.yaml]
    #[arg(long, value_name = "PATH", global = true)]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub settings: SettingArgs,

    /// Report as JSON on stdout
    #[arg(long, global = true)]
    pub json: bool,

    /// Print nothing unless something fails, apart from requested results (a path, a list)
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// Show no progress: no bars, and no lines without a terminal
    #[arg(long, global = true)]
    pub no_progress: bool,

    /// Log decisions and requests to stderr; -vv includes dependencies
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
}

/// The options that the table of settings defines.
#[derive(Debug, Clone, Default)]
pub struct SettingArgs(pub BTreeMap<&'static str, OsString>);

impl clap::Args for SettingArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let options = SETTINGS.iter().filter_map(|setting| setting.flag.map(|flag| (setting, flag)));
        options.fold(command, |command, (setting, flag)| command.arg(option(setting, flag)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn option(setting: &Setting, flag: &'static str) -> Arg {
    let doc = setting.doc.replace('`', "");
    let mut letters = doc.chars();
    let doc: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
    let help = match setting.form {
        Form::Switch => doc,
        _ if setting.default == "none" => doc,
        _ => format!("{doc} [default: {}]", setting.default),
    };
    // Man pages only show the long help of options that the short help hides.
    let option = Arg::new(flag).long(flag).global(true).hide_short_help(!setting.common);
    let option = option.help(help.clone()).long_help(help);
    match setting.form {
        Form::Switch => option.action(ArgAction::SetTrue),
        Form::Choice(all) => {
            option.value_name(setting.value_name).value_parser(PossibleValuesParser::new(all)).ignore_case(true)
        }
        _ => option.value_name(setting.value_name).value_parser(clap::value_parser!(OsString)),
    }
}

impl FromArgMatches for SettingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = SettingArgs::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (setting, flag) in SETTINGS.iter().filter_map(|setting| setting.flag.map(|flag| (setting, flag))) {
            let value = match setting.form {
                Form::Switch => matches.get_flag(flag).then(|| OsString::from("true")),
                _ => matches.get_raw(flag).and_then(|mut values| values.next()).map(OsString::from),
            };
            self.0.extend(value.map(|value| (flag, value)));
        }
        Ok(())
    }
}

/// All commands.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // documented on each command's Args
pub enum Command {
    Init(init::Args),
    Doctor(doctor::Args),
    Push(push::Args),
    Pull(pull::Args),
    PullAll(pull_all::Args),
    Watch(watch::Args),
    Serve(serve::Args),
    Prune(prune::Args),
    Rm(rm::Args),
    Verify(verify::Args),
    Status(status::Args),
    List(list::Args),
    Diff(diff::Args),
    Remote(remote::Args),
    Config(config::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Global {
    /// Returns the output style.
    pub fn style(&self) -> Style {
        Style { json: self.json, quiet: self.quiet, no_progress: self.no_progress, lines: false }
    }

    /// Returns the options that choose the bucket, the cache and the configuration, for commands in hints.
    pub fn given_options(&self) -> GivenOptions {
        let config = self.config.iter().map(|path| ("config", Some(path.to_string_lossy())));
        let is_switch = |flag: &str| {
            SETTINGS.iter().any(|setting| setting.flag == Some(flag) && matches!(setting.form, Form::Switch))
        };
        let settings = self.settings.0.iter().map(|(flag, value)| {
            let value = (!is_switch(flag)).then(|| value.to_string_lossy());
            (*flag, value)
        });
        GivenOptions::new(config.chain(settings))
    }

    /// Calls `read` with the command line's values and the environment.
    fn with_sources<T>(&self, read: impl FnOnce(&Overrides, &Environment<'_>) -> T) -> Result<T> {
        let overrides = Overrides { file: self.config.clone(), values: self.settings.0.clone() };
        let unreadable = std::cell::RefCell::new(None);
        let var = |name: &str| {
            let value = std::env::var(name);
            if let Err(std::env::VarError::NotUnicode(_)) = &value {
                *unreadable.borrow_mut() = Some(name.to_string());
            }
            value.ok()
        };
        let env = Environment {
            var: &var,
            home: std::env::home_dir().filter(|home| !home.as_os_str().is_empty()),
            current: current_dir()?,
        };
        let result = read(&overrides, &env);
        // Treating it as unset could select another cache.
        match unreadable.take() {
            Some(name) => Err(Error::usage(format!("the environment variable {name} is not valid UTF-8"))),
            None => Ok(result),
        }
    }

    /// Loads the configuration.
    ///
    /// # Errors
    /// When it cannot be read or is invalid.
    pub fn load(&self) -> Result<Config> {
        self.with_sources(Config::load)?
    }
}

impl Command {
    /// Whether this command normally runs until a signal, which it handles itself.
    pub fn runs_until_signal(&self) -> bool {
        matches!(self, Command::Watch(_) | Command::Serve(_))
    }
}

impl Cli {
    /// Returns the output style, which depends on the command.
    pub fn style(&self) -> Style {
        Style { lines: self.command.runs_until_signal(), ..self.global.style() }
    }
}

fn current_dir() -> Result<PathBuf> {
    std::env::current_dir()
        .map_err(|e| Error::failed("cannot determine the current directory").because(crate::error::plain_io(&e)))
}

/// How a command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Nothing failed.
    Success,
    /// It finished with failures in its report.
    Failed(Kind),
    /// It ran another program, whose exit code counts.
    Code(u8),
}

impl Exit {
    /// Returns the exit code of the process.
    pub fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Failed(kind) => kind.exit_code(),
            Exit::Code(code) => code,
        }
    }
}

impl From<Option<Kind>> for Exit {
    fn from(failed: Option<Kind>) -> Exit {
        failed.map_or(Exit::Success, Exit::Failed)
    }
}

/// Runs a command.
///
/// # Errors
/// When the command could not finish.
pub async fn run(cli: &Cli, ui: &Ui) -> Result<Exit> {
    // These commands have to work even if the configuration is broken.
    match &cli.command {
        Command::Init(_) => {
            let named = cli.global.with_sources(named_file)?.map(|(path, _)| path);
            return Ok(ui.show(&init::execute(&current_dir()?, named)?).into());
        }
        Command::Completions(args) => return Ok(ui.show(&completions::execute(args)?).into()),
        Command::Man(args) => return Ok(ui.show(&man::execute(Cli::command(), args)?).into()),
        Command::Config(_) => {
            return Ok(ui.show(&config::execute(cli.global.with_sources(Resolution::gather)?)).into());
        }
        Command::Serve(args) if args.env => return Ok(ui.show(&args.environment()?).into()),
        _ => {}
    }
    let mut config = cli.global.load()?;
    config.warnings.iter().for_each(|warning| ui.warning(warning));
    if let Some(suggestion) = root::suggest_root(&config.cache.root) {
        let (folder, source) = (shown(&config.cache.root), &config.cache.source);
        ui.warning(&format!("{folder} (from {source}) contains no repos; did you mean {}?", shown(&suggestion)));
    }
    let notes = std::mem::take(&mut config.notes);
    let session = Session { config, progress: Arc::new(ui.bars().clone()), now: SystemTime::now() };
    notes.into_iter().for_each(|note| session.progress.event(Event::Note(note)));
    let failed = match &cli.command {
        Command::Init(_) | Command::Completions(_) | Command::Man(_) | Command::Config(_) => None,
        Command::Doctor(args) => ui.show(&doctor::execute(&session, args).await),
        Command::Push(args) => ui.show(&push::execute(&session, args).await?),
        Command::Prune(args) if args.dry_run || args.yes || !ui.can_ask() => {
            ui.show(&prune::execute(&session, args, None).await?)
        }
        Command::Prune(args) => {
            let preview = prune::preview(&session, args).await?;
            match !preview.deletes() || ui.ask(&preview, "Delete this?").await {
                true => ui.show(&prune::execute(&session, args, Some(&preview)).await?),
                false => ui.show(&preview.into_declined()),
            }
        }
        Command::Rm(args) if args.dry_run || args.yes || !ui.can_ask() => {
            ui.show(&rm::execute(&session, args, None).await?)
        }
        Command::Rm(args) => {
            let preview = rm::preview(&session, args).await?;
            match !preview.deletes() || ui.ask(&preview, "Remove this?").await {
                true => ui.show(&rm::execute(&session, args, Some(&preview)).await?),
                false => ui.show(&preview.into_declined()),
            }
        }
        Command::Pull(args) => ui.show(&pull::execute(&session, args).await?),
        Command::PullAll(args) => ui.show(&pull_all::execute(&session, args).await?),
        Command::Watch(args) => {
            watch::execute(&session, args, &|update| ui.show_line(&update)).await?;
            None
        }
        Command::Serve(args) => {
            let code = serve::execute(&session, args, &|update| ui.show_line(&update)).await?;
            return Ok(code.map_or(Exit::Success, Exit::Code));
        }
        Command::Status(args) => ui.show(&status::execute(&session, args).await?),
        Command::List(args) => ui.show(&list::execute(&session, args).await?),
        Command::Verify(args) => ui.show(&verify::execute(&session, args).await?),
        Command::Diff(args) => ui.show(&diff::execute(&session, args).await?),
        Command::Remote(args) => match &args.command {
            remote::Command::Du(_) => ui.show(&remote::du::execute(&session).await?),
            remote::Command::Rm(args) => {
                let consent = Consent { command: "hf-cache-sync remote rm", dry_run: args.dry_run, yes: args.yes };
                delete_from_bucket(&session, ui, &consent, remote::rm::prepare(&session, args)).await?
            }
            remote::Command::Gc(args) => {
                let consent = Consent { command: "hf-cache-sync remote gc", dry_run: args.dry_run, yes: args.yes };
                delete_from_bucket(&session, ui, &consent, remote::gc::prepare(&session, args)).await?
            }
        },
    };
    Ok(failed.into())
}

/// How far the user agrees to a deletion.
struct Consent {
    command: &'static str,
    dry_run: bool,
    yes: bool,
}

/// Shows what would be deleted from the bucket, asks unless that is agreed to, and deletes it.
async fn delete_from_bucket(
    session: &Session,
    ui: &Ui,
    consent: &Consent,
    prepare: impl Future<Output = Result<Deletion>>,
) -> Result<Option<Kind>> {
    if !consent.dry_run && !consent.yes && !ui.can_ask() {
        return Err(deletion::refuse_without_consent(consent.command));
    }
    let planned = prepare.await?;
    let preview = planned.preview();
    if consent.dry_run {
        return Ok(ui.show(&preview));
    }
    let asks = !consent.yes && preview.deletes();
    match !asks || ui.ask(&preview, "Delete this from the bucket?").await {
        true => Ok(ui.show(&planned.execute(session, asks).await?)),
        false => Ok(ui.show(&preview.into_declined())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Returns the command lines among the examples, without comments and redirections.
    fn examples(help: &str) -> Vec<Vec<String>> {
        let lines = help.lines().filter_map(|line| line.strip_prefix("  ")).map(str::trim_start);
        let lines = lines.filter(|line| line.starts_with("hf-cache-sync"));
        let command = |line: &str| line.split("  ").next().unwrap_or_default().split(" > ").next().map(str::to_string);
        lines.filter_map(command).map(|line| line.split_whitespace().map(String::from).collect()).collect()
    }

    #[test]
    fn every_command_has_examples_and_every_example_is_accepted() {
        let tree = Cli::command();
        for command in std::iter::once(&tree).chain(tree.get_subcommands()) {
            let name = command.get_name();
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = examples(&help);
            assert!(!examples.is_empty(), "{name} has no examples");
            for example in &examples {
                if let Err(error) = Cli::try_parse_from(example) {
                    panic!("the help of {name} has an example that does not work: {example:?}: {error}");
                }
            }
            let own = |example: &Vec<String>| example.iter().any(|word| word == name);
            assert!(examples.iter().any(own), "no example of {name} uses it");
        }
    }

    #[test]
    fn global_options_are_accepted_before_and_after_the_command() {
        for line in [["hf-cache-sync", "--bucket", "b", "doctor"], ["hf-cache-sync", "doctor", "--bucket", "b"]] {
            assert_eq!(Cli::parse_from(line).global.settings.0["bucket"], "b");
        }
    }
}
