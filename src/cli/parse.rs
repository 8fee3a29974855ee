//! Parses the command line, and makes the errors of clap safe to print and helpful.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use super::Cli;
use crate::error::printable;
use crate::escape::{Keep, escape, without_user};

/// Parses the command line. In errors, control characters in arguments are escaped, and user and password are removed
/// from URLs.
///
/// # Errors
/// An error of clap, which can also be the help or the version.
pub fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(args).map_err(|mut error| {
        let texts: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let shown = texts.iter().map(|text| escape(&without_user(text), Keep::Nothing).into_owned());
        let line: Vec<String> = shown.collect();
        if !error.use_stderr() || texts == line {
            return with_correction(error, &line);
        }
        // A value parser has to see the original value: the escaped one could fail for another reason.
        if error.kind() == ErrorKind::ValueValidation {
            let escaped = with_escaped_value(error);
            let text = escaped.to_string();
            if escape(&text, Keep::Lines) == text {
                return with_correction(escaped, &line);
            }
            error = escaped;
        }
        match Cli::try_parse_from(&line) {
            Err(error) if error.use_stderr() => with_correction(error, &line),
            _ => Cli::command()
                .error(error.kind(), "an argument cannot be shown: it contains control characters or a password"),
        }
    })
}

/// Escapes control characters in an invalid value, and removes user and password from it. Names in the value parser's own
/// message are escaped already.
fn with_escaped_value(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) {
        let value = escape(&without_user(value), Keep::Nothing).into_owned();
        error.insert(ContextKind::InvalidValue, ContextValue::String(value));
    }
    error
}

/// Adds the correct form to a usage error, if the intention is clear.
fn with_correction(mut error: clap::Error, line: &[String]) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let known = |word: &&String| Cli::command().get_subcommands().any(|command| command.get_name() == word.as_str());
    let command = line.iter().skip(1).find(known).map(String::as_str);
    let argument = text(ContextKind::InvalidArg);
    let tip = match (error.kind(), command, argument) {
        (ErrorKind::UnknownArgument, Some(command), Some(argument)) => correct_form(command, &argument, line),
        (ErrorKind::ValueValidation, Some("pull"), _) => {
            let value = text(ContextKind::InvalidValue).filter(|value| value.starts_with("refs/"));
            value.and_then(|value| correct_form("pull", &value, line))
        }
        (ErrorKind::MissingRequiredArgument, Some("pull"), _) => {
            let named = line.iter().find(|word| word.starts_with("--repo") || word.starts_with("--model"));
            named.and_then(|word| correct_form("pull", word.split('=').next().unwrap_or_default(), line)).or_else(
                || {
                    Some(
                        "name a repo, as in `hf-cache-sync pull org/name`; `hf-cache-sync pull-all` pulls every repo"
                            .into(),
                    )
                },
            )
        }
        _ => None,
    };
    if let Some(tip) = tip {
        error.remove(ContextKind::SuggestedArg);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// Returns the correct form of an argument that the command does not accept.
fn correct_form(command: &str, argument: &str, line: &[String]) -> Option<String> {
    let flag = argument.split('=').next().unwrap_or_default();
    let at = line.iter().position(|word| word == argument || word.split('=').next() == Some(flag));
    let value = at.and_then(|at| match line[at].split_once('=') {
        Some((_, value)) => Some(value.to_string()),
        None => line.get(at + 1).filter(|word| !word.starts_with('-')).cloned(),
    });
    let value = value.filter(|value| !value.is_empty()).map(|value| printable(&value, 80));
    let after = line.iter().position(|word| word == command).map_or(line.len(), |at| at + 1);
    let mut others = line.iter().skip(after).filter(|word| !word.starts_with('-') && word.as_str() != argument);
    let repo = others.find(|word| Some(word.as_str()) != value.as_deref()).map(|word| printable(word, 80));
    let repo = repo.unwrap_or_else(|| "org/name".into());
    let takes_repo = matches!(command, "pull" | "push" | "rm");
    let form = |arguments: String| Some(format!("write `hf-cache-sync {command} {arguments}`"));
    match flag {
        "--repo" | "--repo-id" | "--repo_id" | "--id" | "--name" | "--model" if takes_repo => {
            form(value.unwrap_or_else(|| "org/name".into()))
        }
        "--dataset" | "--space" | "--kernel" if takes_repo => {
            form(format!("{}:{}", &flag[2..], value.unwrap_or_else(|| "org/name".into())))
        }
        "--repo" | "--repo-id" | "--repo_id" | "--model" | "--dataset" if command == "pull-all" => {
            form(format!("--include '{}'", value.unwrap_or_else(|| "org/*".into())))
        }
        "-r" | "--revision" | "--rev" | "--ref" | "--branch" | "--tag" | "--commit" => match command {
            "pull" | "push" => form(format!("{repo} -r {}", value.unwrap_or_else(|| "main".into()))),
            "pull-all" => Some(format!(
                "pull-all pulls the main revision of every repo; for another one, use `hf-cache-sync pull {repo} -r REVISION`"
            )),
            _ => None,
        },
        "--repo-type" | "--repo_type" | "--type" | "-t" => match (command, value) {
            ("push" | "rm", Some(kind)) => form(format!("{kind}:{repo}")),
            ("pull", Some(kind)) => form(format!("{repo} --repo-type {kind}")),
            ("pull-all", Some(kind)) => form(format!("--include '{kind}:*'")),
            _ => None,
        },
        word if !word.starts_with('-') => match command {
            // `refs/pr/1` is a revision; `org/name` and `dataset:name` hardly are.
            "pull" => form(format!("{repo} -r {}", printable(word, 80))),
            "pull-all" => Some(format!(
                "write `hf-cache-sync pull {0}`, or `hf-cache-sync pull-all --include '{0}'`",
                printable(word, 80)
            )),
            _ => None,
        },
        _ => None,
    }
}
