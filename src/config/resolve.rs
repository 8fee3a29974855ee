//! Finds what is given for each setting, and where.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::credentials::{Credentials, Halves, Secret};
use super::environment::Environment;
use super::settings::{Form, SETTINGS, Setting, setting};
use super::source::Source;
use super::values::{self, Encryption, GigaBytes};
use super::yaml::{File, Found};
use super::{Cache, Config, FILE_NAME, Hub, Storage, Team};
use crate::error::{Error, Result, printable};
use crate::net::Network;

/// Values from the command line, which win over everything.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`
    pub file: Option<PathBuf>,
    /// What the options of settings say, by their names without dashes; a switch says `true`.
    pub values: BTreeMap<&'static str, OsString>,
}

impl Overrides {
    /// The same with one more option.
    pub fn with(mut self, flag: &'static str, value: impl Into<OsString>) -> Self {
        self.values.insert(flag, value.into());
        self
    }
}

/// What is given for a setting.
#[derive(Debug, Clone)]
pub struct Given {
    /// The setting.
    pub setting: &'static Setting,
    /// Its value, checked; `None` when nothing is given, or it cannot be used. Never that of a secret.
    pub value: Option<OsString>,
    /// Where it comes from.
    pub source: Source,
}

/// All that was found. It may have problems, and can be shown all the same.
#[derive(Debug)]
pub struct Resolution {
    /// Each setting, in the order of the table.
    pub given: Vec<Given>,
    /// What cannot be used, in the order in which it was found.
    pub problems: Vec<Error>,
    /// What a user should know.
    pub warnings: Vec<String>,
    /// The file that was found, if any.
    pub file: Option<PathBuf>,
    /// Whose keys.
    pub credentials: Credentials,
    /// The Hub.
    pub hub: Hub,
    /// Certificates and exceptions from the proxy.
    pub network: Network,
    /// The cache; `None` when there is no telling where.
    pub cache_root: Option<PathBuf>,
}

impl Resolution {
    /// Looks everywhere.
    pub fn gather(overrides: &Overrides, env: &Environment<'_>) -> Resolution {
        let unclean = RefCell::new(Vec::<Error>::new());
        let ignored = (env.var)("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
        let ignored = ignored.is_some_and(|text| text.trim().eq_ignore_ascii_case("true"));
        let var = |name: &str| {
            let text = (env.var)(name).filter(|_| !(ignored && name.starts_with("AWS_ENDPOINT_URL")))?;
            match values::clean(&text) {
                Ok(text) => Some(text.to_string()),
                Err(why) => {
                    let error = Error::usage(format!("the environment variable {name} cannot be used")).because(why);
                    let mut unclean = unclean.borrow_mut();
                    if !unclean.contains(&error) {
                        unclean.push(error);
                    }
                    None
                }
            }
        };
        let env = Environment { var: &var, home: env.home.clone(), current: env.current.clone() };
        let mut found = Resolution {
            given: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            file: find_file(overrides, &env),
            credentials: Credentials::AwsChain,
            hub: Hub::from_environment(&env),
            network: Network::from_environment(|name| env.get(name), |text| env.current.join(env.expand(text))),
            cache_root: None,
        };
        let file = match found.file.as_ref().map(|path| File::read(path, &mut found.warnings)) {
            None => File::default(),
            Some(Ok(file)) => file,
            Some(Err(error)) => {
                found.problems.push(error);
                File::default()
            }
        };
        let places = Places { overrides, env: &env, file: &file };
        for setting in SETTINGS {
            let given = if setting.is_secret() { places.secret(setting) } else { places.find(setting) };
            let given = given.unwrap_or_else(|error| {
                found.problems.push(error);
                None
            });
            let (value, source) = given.map_or((None, Source::Default), |(value, source)| (Some(value), source));
            found.given.push(Given { setting, value, source });
        }
        found.find_region();
        found.find_cache(&env);
        found.find_credentials(&places);
        found.check_together();
        let bundle = found.of(setting("storage", "ca_bundle"));
        if let Some(path) = &bundle.value {
            let bundle = (bundle.source.to_string(), env.current.join(path));
            found.network.bundles.insert(0, bundle);
        }
        found.problems.extend(unclean.take());
        found
    }

    /// The region that the endpoint's host names ranks before variables that platforms set unasked.
    fn find_region(&mut self) {
        let region = setting("storage", "region");
        let fallback = matches!(self.of(region).source, Source::Variable(name) if region.fallbacks.contains(&name));
        if !fallback && self.of(region).value.is_some() {
            return;
        }
        if let Some(host) = self.text("storage", "endpoint").and_then(|url| region_of_host(&url)) {
            self.set(region, Some(host.into()), Source::Host);
        }
    }

    fn find_cache(&mut self, env: &Environment<'_>) {
        let setting = setting("cache", "hf_cache_dir");
        let given = self.of(setting).clone();
        let root = match given.value {
            Some(root) => PathBuf::from(root),
            None => match env.default_cache() {
                Ok((root, source)) => {
                    self.set(setting, Some(root.clone().into()), source);
                    root
                }
                Err(error) => return self.problems.push(error),
            },
        };
        self.cache_root = Some(env.current.join(root));
    }

    fn find_credentials(&mut self, places: &Places<'_>) {
        let mut variable = |name: &'static str| {
            let text = places.env.get(name)?;
            match values::credential(&text) {
                Ok(text) => Some(Secret::new(text)),
                Err(why) => {
                    self.problems
                        .push(Error::usage(format!("the environment variable {name} cannot be used")).because(why));
                    None
                }
            }
        };
        let b2 = (variable("B2_APPLICATION_KEY_ID"), variable("B2_APPLICATION_KEY"));
        let aws = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"));
        let aws_token = variable("AWS_SESSION_TOKEN");
        let yaml = |key: &str| {
            let found = places.file.get(setting("storage", key)).ok().flatten()?;
            let text = values::clean(&found.text).ok().filter(|text| !text.is_empty())?;
            values::credential(text).ok().map(Secret::new)
        };
        let file = (yaml("access_key"), yaml("secret_key"));
        self.credentials = Halves { b2, aws, aws_token, file }.pick(&mut self.warnings);
    }

    /// Settings that depend on each other.
    fn check_together(&mut self) {
        let (sse, key) = (setting("storage", "sse"), setting("storage", "sse_kms_key_id"));
        if self.of(key).value.is_some() && self.text("storage", "sse").is_some_and(|kind| kind == "AES256") {
            let (key, sse) = (&self.of(key).source, &self.of(sse).source);
            self.problems.push(
                Error::usage(format!("the KMS key of {key} cannot be used"))
                    .because(format!("{sse} asks for AES256, which has no key of yours"))
                    .hint("set storage.sse to aws:kms, or leave it out"),
            );
        }
        let endpoint = self.of(setting("storage", "endpoint")).clone();
        for name in ["dual_stack", "fips"] {
            let setting = setting("storage", name);
            let given = self.of(setting).clone();
            if given.value.is_none_or(|value| value != "true") || endpoint.value.is_none() {
                continue;
            }
            // A platform that sets AWS's own variable does not mean another store.
            if matches!(given.source, Source::Variable(name) if setting.fallbacks.contains(&name)) {
                self.set(setting, None, Source::Default);
                continue;
            }
            self.problems.push(
                Error::usage(format!("{} cannot be used together with {}", given.source, endpoint.source))
                    .because("it chooses among AWS's own endpoints")
                    .hint("leave out one of them"),
            );
        }
        if let Some(class) = self.text("storage", "storage_class").filter(|class| is_archive(class)) {
            let source = &self.of(setting("storage", "storage_class")).source;
            self.warnings
                .push(format!("{source}: what is stored as {class} has to be restored before it can be pulled"));
        }
    }

    /// What is given for a setting.
    pub fn of(&self, setting: &Setting) -> &Given {
        self.given.iter().find(|given| std::ptr::eq(given.setting, setting)).expect("every setting is in the table")
    }

    fn set(&mut self, setting: &Setting, value: Option<OsString>, source: Source) {
        if let Some(given) = self.given.iter_mut().find(|given| std::ptr::eq(given.setting, setting)) {
            (given.value, given.source) = (value, source);
        }
    }

    fn text(&self, section: &str, key: &str) -> Option<String> {
        self.of(setting(section, key)).value.as_ref()?.to_str().map(String::from)
    }

    fn is_on(&self, section: &str, key: &str) -> bool {
        self.text(section, key).is_some_and(|text| text == "true")
    }

    /// The configuration.
    ///
    /// # Errors
    /// The first problem.
    pub fn into_config(mut self) -> Result<Config> {
        if let Some(problem) = self.problems.drain(..).next() {
            return Err(problem);
        }
        let kms_key_id = self.text("storage", "sse_kms_key_id");
        let algorithm = self.text("storage", "sse").or(kms_key_id.is_some().then(|| "aws:kms".to_string()));
        let parsed = |key: &str| self.text("storage", key).unwrap_or_default();
        let gigabytes = self.text("cache", "max_local_gb").and_then(|text| text.parse::<GigaBytes>().ok());
        let max_parts = self.text("storage", "max_parts").and_then(|text| text.parse().ok());
        Ok(Config {
            storage: Storage {
                endpoint: self.text("storage", "endpoint"),
                bucket: self.text("storage", "bucket"),
                region: self.text("storage", "region"),
                credentials: self.credentials.clone(),
                addressing: parsed("addressing_style").parse().unwrap_or_default(),
                checksums: parsed("checksums").parse().unwrap_or_default(),
                encryption: algorithm.map(|algorithm| Encryption { algorithm, kms_key_id }),
                storage_class: self.text("storage", "storage_class"),
                requester_pays: self.is_on("storage", "requester_pays"),
                unsigned: self.is_on("storage", "unsigned"),
                max_parts: max_parts.unwrap_or(values::MAX_PARTS),
                dual_stack: self.is_on("storage", "dual_stack"),
                fips: self.is_on("storage", "fips"),
            },
            cache: Cache {
                source: self.of(setting("cache", "hf_cache_dir")).source.clone(),
                root: self.cache_root.take().unwrap_or_default(),
                max_local_bytes: gigabytes.unwrap_or(GigaBytes(50 << 30)).0,
                sync_xet: self.is_on("cache", "sync_xet"),
            },
            team: Team {
                prefix: self.text("team", "prefix").unwrap_or_default(),
                allow_gated: self.is_on("team", "allow_gated"),
            },
            hub: self.hub,
            network: self.network,
            file: self.file,
            warnings: self.warnings,
        })
    }
}

/// Classes whose objects cannot be read at once.
fn is_archive(class: &str) -> bool {
    matches!(class, "GLACIER" | "DEEP_ARCHIVE" | "ARCHIVE" | "COLD_ARCHIVE")
}

fn find_file(overrides: &Overrides, env: &Environment<'_>) -> Option<PathBuf> {
    if let Some(path) = &overrides.file {
        // No shell expands the `~` of `--config=~/team.yaml`.
        let path = path.to_str().map_or(path.clone(), |path| env.expand_home(path).into());
        return Some(env.current.join(path));
    }
    let places = [Some(&env.current), env.home.as_ref()];
    places.into_iter().flatten().map(|dir| dir.join(FILE_NAME)).find(|path| path.symlink_metadata().is_ok())
}

/// Where values are looked for.
struct Places<'a> {
    overrides: &'a Overrides,
    env: &'a Environment<'a>,
    file: &'a File,
}

impl Places<'_> {
    /// What is given for a setting, checked.
    fn find(&self, setting: &'static Setting) -> Result<Option<(OsString, Source)>> {
        if let Some(flag) = setting.flag
            && let Some(raw) = self.overrides.values.get(flag)
        {
            let source = Source::Flag(flag);
            return match (raw.to_str(), setting.form) {
                (Some(text), _) => self.checked(setting, text, source),
                // A path may be any bytes.
                (None, Form::Path) => Ok(Some((raw.clone(), source))),
                (None, _) => Err(Error::usage(format!("--{flag} cannot be used")).because("it is not valid UTF-8")),
            };
        }
        for name in setting.variables {
            if let Some(text) = self.env.get(name) {
                return self.checked(setting, &text, Source::Variable(name));
            }
        }
        if let Some(Found { text, source }) = self.file.get(setting)?
            && let Some(given) = self.checked(setting, &text, source)?
        {
            return Ok(Some(given));
        }
        for name in setting.fallbacks {
            if let Some(text) = self.env.get(name) {
                return self.checked(setting, &text, Source::Variable(name));
            }
        }
        Ok(None)
    }

    /// Whether a secret is in the file; its value is not told.
    fn secret(&self, setting: &'static Setting) -> Result<Option<(OsString, Source)>> {
        let Some(Found { text, source }) = self.file.get(setting)? else { return Ok(None) };
        let wrong = |why: String| Error::usage(format!("cannot use {source}")).because(why);
        let text = values::clean(&text).map_err(wrong)?;
        (setting.check)(text).map_err(wrong)?;
        Ok((!text.is_empty()).then(|| (OsString::from("set"), source)))
    }

    /// A value in its one form; `None` when nothing is left of it.
    fn checked(&self, setting: &'static Setting, text: &str, source: Source) -> Result<Option<(OsString, Source)>> {
        let wrong = |shown: &str, why: String| {
            let shown = if shown.is_empty() { String::new() } else { format!(" '{}'", printable(shown, 200)) };
            let what = match &source {
                Source::Flag(_) | Source::Variable(_) => format!("{source}{shown} cannot be used"),
                _ => format!("cannot use{shown} as {source}"),
            };
            Error::usage(what).because(why).hint(format!("the setting is {}", setting.places()))
        };
        let text = values::clean(text).map_err(|why| wrong("", why))?;
        if text.is_empty() {
            return Ok(None);
        }
        let value = match setting.form {
            Form::Choice(all) => values::choice(text, all),
            _ => (setting.check)(text),
        };
        let value = value.map_err(|why| wrong(&without_credentials(text), why))?;
        let value = match (setting.form, &source) {
            (Form::Path, Source::Flag(_)) => self.env.expand_home(&value).into(),
            (Form::Path, _) => self.env.expand(&value).into(),
            _ => value.into(),
        };
        Ok(Some((value, source)))
    }
}

/// What stands before an `@`, or after a `?`, may be a secret: it is never repeated.
fn without_credentials(text: &str) -> String {
    let text = text.split_once('?').map_or(text.to_string(), |(before, _)| format!("{before}?…"));
    text.rsplit_once('@').map_or(text.clone(), |(_, host)| format!("…@{host}"))
}

fn region_of_host(endpoint: &str) -> Option<String> {
    let host = values::host_of(endpoint);
    let region = host
        .strip_prefix("s3.")?
        .strip_suffix(".backblazeb2.com")
        .or_else(|| host.strip_prefix("s3.")?.strip_suffix(".amazonaws.com"))?;
    (!region.is_empty() && !region.contains('.')).then(|| region.to_string())
}
