//! Finds the value of each setting and its source.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::credentials::{Credentials, Halves, Secret};
use super::environment::Environment;
use super::hosts;
use super::settings::{Form, SETTINGS, Setting, setting};
use super::source::Source;
use super::values::{self, Encryption, GigaBytes};
use super::yaml::{File, FileValue};
use super::{Cache, Config, FILE_NAME, FILE_VARIABLE, Hub, Storage, Team};
use crate::error::{Error, Result, printable};
use crate::model::pins::Pins;
use crate::net::Network;

/// Values from the command line, which take precedence over all others.
#[derive(Clone, Default)]
pub struct Overrides {
    /// `--config`
    pub file: Option<PathBuf>,
    /// Values of the options that correspond to settings, by option name without dashes; a switch has the value `true`.
    pub values: BTreeMap<&'static str, OsString>,
}

impl Overrides {
    /// Adds an option.
    pub fn with(mut self, flag: &'static str, value: impl Into<OsString>) -> Self {
        self.values.insert(flag, value.into());
        self
    }
}

/// The value of a setting and its source.
#[derive(Debug, Clone)]
pub struct SettingValue {
    /// The setting.
    pub setting: &'static Setting,
    /// The validated value; `None` if nothing is set or the value is invalid. Never holds a secret.
    pub value: Option<OsString>,
    /// The source of the value.
    pub source: Source,
}

/// An environment variable that affects the tool but has no counterpart in the configuration file.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its value; `None` for a secret.
    pub value: Option<String>,
}

/// These variables, and whether their values are secret.
const VARIABLES: [(&str, bool); 28] = [
    ("B2_APPLICATION_KEY_ID", true),
    ("B2_APPLICATION_KEY", true),
    ("AWS_ACCESS_KEY_ID", true),
    ("AWS_SECRET_ACCESS_KEY", true),
    ("AWS_SESSION_TOKEN", true),
    ("AWS_PROFILE", false),
    ("AWS_CONFIG_FILE", false),
    ("AWS_SHARED_CREDENTIALS_FILE", false),
    ("AWS_ROLE_ARN", false),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", false),
    ("AWS_EC2_METADATA_DISABLED", false),
    ("HF_ENDPOINT", false),
    ("HF_TOKEN", true),
    ("HUGGING_FACE_HUB_TOKEN", true),
    ("HF_TOKEN_PATH", false),
    ("HF_HUB_DISABLE_IMPLICIT_TOKEN", false),
    ("HF_HUB_OFFLINE", false),
    ("HTTPS_PROXY", false),
    ("https_proxy", false),
    ("HTTP_PROXY", false),
    ("http_proxy", false),
    ("NO_PROXY", false),
    ("no_proxy", false),
    ("SSL_CERT_FILE", false),
    ("REQUESTS_CA_BUNDLE", false),
    ("CURL_CA_BUNDLE", false),
    ("AWS_CA_BUNDLE", false),
    ("RUST_LOG", false),
];

/// Everything that was found, including problems, so that `config show` can display even an invalid configuration.
#[derive(Debug)]
pub struct Resolution {
    /// The value of each setting, in the order of the table.
    pub values: Vec<SettingValue>,
    /// Invalid values, in the order in which they were found.
    pub problems: Vec<Error>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
    /// Adjustments to the user's values that may come as a surprise.
    pub notes: Vec<String>,
    /// The configuration file, if there is one.
    pub file: Option<PathBuf>,
    /// The source of the file's name.
    pub file_source: Source,
    /// The default locations of the file, in order.
    pub searched: Vec<PathBuf>,
    /// Other environment variables that are set.
    pub variables: Vec<Variable>,
    /// The credentials.
    pub credentials: Credentials,
    /// The Hugging Face Hub.
    pub hub: Hub,
    /// Certificate bundles and proxy exceptions.
    pub network: Network,
    /// The cache, or `None` if its location cannot be determined.
    pub cache_root: Option<PathBuf>,
}

impl Resolution {
    /// Gathers the values from all sources.
    pub fn gather(overrides: &Overrides, env: &Environment<'_>) -> Resolution {
        let invalid = RefCell::new(Vec::<Error>::new());
        let ignored = (env.var)("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
        let ignored = ignored.is_some_and(|text| text.trim().eq_ignore_ascii_case("true"));
        let var = |name: &str| {
            let text = (env.var)(name).filter(|_| !(ignored && name.starts_with("AWS_ENDPOINT_URL")))?;
            match values::clean(&text) {
                Ok(text) => Some(text.to_string()),
                Err(why) => {
                    let error = Error::usage(format!("the environment variable {name} cannot be used")).because(why);
                    let mut invalid = invalid.borrow_mut();
                    if !invalid.contains(&error) {
                        invalid.push(error);
                    }
                    None
                }
            }
        };
        let env = Environment { var: &var, home: env.home.clone(), current: env.current.clone() };
        let mut found = Resolution {
            values: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
            file: None,
            file_source: Source::Default,
            searched: search_paths(&env),
            variables: VARIABLES
                .into_iter()
                .filter_map(|(name, is_secret)| {
                    let value = env.get(name)?;
                    Some(Variable { name, value: (!is_secret).then(|| redact(&value)) })
                })
                .collect(),
            credentials: Credentials::AwsChain,
            hub: Hub::from_environment(&env),
            network: Network::from_environment(|name| env.get(name), |text| env.current.join(env.expand(text))),
            cache_root: None,
        };
        if let Some((path, source)) = find_file(overrides, &env) {
            (found.file, found.file_source) = (Some(path), source);
        }
        let file = match found.file.as_ref().map(|path| File::read(path, &mut found.warnings)) {
            None => File::default(),
            Some(Ok(file)) => file,
            Some(Err(mut error)) => {
                if found.file_source != Source::Default {
                    error.what = format!("{} (from {})", error.what, found.file_source);
                }
                found.problems.push(error);
                File::default()
            }
        };
        let inputs = Inputs { overrides, env: &env, file: &file };
        for setting in SETTINGS {
            let given = if setting.is_secret() { inputs.find_secret(setting) } else { inputs.find(setting) };
            let given = given.unwrap_or_else(|error| {
                found.problems.push(error);
                None
            });
            let (value, source) = given.map_or((None, Source::Default), |(value, source)| (Some(value), source));
            found.values.push(SettingValue { setting, value, source });
        }
        found.split_endpoint();
        found.find_region();
        found.find_cache(&env);
        found.find_credentials(&inputs);
        found.check_combinations();
        let bundle = found.get(setting("storage", "ca_bundle"));
        if let Some(path) = &bundle.value {
            let bundle = (bundle.source.to_string(), env.current.join(path));
            found.network.bundles.insert(0, bundle);
        }
        found.problems.extend(invalid.take());
        found
    }

    /// Removes a bucket from the endpoint's host or path; otherwise, it would appear in request URLs twice.
    fn split_endpoint(&mut self) {
        let (endpoint, bucket) = (setting("storage", "endpoint"), setting("storage", "bucket"));
        let Some(url) = self.text("storage", "endpoint") else { return };
        let configured = self.text("storage", "bucket");
        let source = self.get(endpoint).source.clone();
        match hosts::split_bucket(&url, configured.as_deref()) {
            Ok(None) => {}
            Ok(Some((service, named))) => {
                let note = format!("removed the bucket '{named}' from the endpoint ({source}), which is now {service}");
                self.notes.push(note);
                if configured.is_none() {
                    self.set(bucket, Some(named.into()), source.clone());
                }
                self.set(endpoint, Some(service.into()), source);
            }
            Err(hosts::SplitEndpoint { endpoint, bucket: named, prefix }) => {
                let mut why = format!("it contains the bucket '{named}'");
                let mut instead = format!("--endpoint {endpoint} --bucket {named}");
                if let Some(prefix) = prefix {
                    why = format!("it contains the bucket '{named}' and a prefix");
                    instead += &format!(" --prefix {prefix}");
                } else if let Some(configured) = configured {
                    why += &format!(", but {} is '{configured}'", self.get(bucket).source);
                }
                self.problems.push(
                    Error::usage(format!("the endpoint '{}' cannot be used", printable(&url, 200)))
                        .because(why)
                        .hint(format!("set {source} to the store's URL alone: {instead}")),
                );
            }
        }
    }

    /// Derives the region from the endpoint's host. It takes precedence over variables that some platforms set by default.
    fn find_region(&mut self) {
        let region = setting("storage", "region");
        let fallback = matches!(self.get(region).source, Source::Variable(name) if region.fallbacks.contains(&name));
        if !fallback && self.get(region).value.is_some() {
            return;
        }
        if let Some(host) = self.text("storage", "endpoint").and_then(|url| hosts::region_of(&values::host_of(&url))) {
            self.set(region, Some(host.into()), Source::Host);
        }
    }

    fn find_cache(&mut self, env: &Environment<'_>) {
        let setting = setting("cache", "hf_cache_dir");
        let given = self.get(setting).clone();
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

    fn find_credentials(&mut self, inputs: &Inputs<'_>) {
        let mut variable = |name: &'static str| {
            let text = inputs.env.get(name)?;
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
            let found = inputs.file.get(setting("storage", key)).ok().flatten()?;
            let text = values::clean(&found.text).ok().filter(|text| !text.is_empty())?;
            values::credential(text).ok().map(Secret::new)
        };
        let file = (yaml("access_key"), yaml("secret_key"));
        self.credentials = Halves { b2, aws, aws_token, file }.pick(&mut self.warnings);
    }

    /// Checks settings that depend on each other.
    fn check_combinations(&mut self) {
        let (sse, key) = (setting("storage", "sse"), setting("storage", "sse_kms_key_id"));
        if self.get(key).value.is_some() && self.text("storage", "sse").is_some_and(|kind| kind == "AES256") {
            let (key, sse) = (&self.get(key).source, &self.get(sse).source);
            self.problems.push(
                Error::usage(format!("the KMS key in {key} cannot be used"))
                    .because(format!("{sse} is AES256, which does not use a KMS key"))
                    .hint("set storage.sse to aws:kms, or remove it"),
            );
        }
        let endpoint = self.get(setting("storage", "endpoint")).clone();
        for name in ["dual_stack", "fips"] {
            let setting = setting("storage", name);
            let given = self.get(setting).clone();
            if given.value.is_none_or(|value| value != "true") || endpoint.value.is_none() {
                continue;
            }
            // Where a platform sets AWS's own variable, it is not meant for another store.
            if matches!(given.source, Source::Variable(name) if setting.fallbacks.contains(&name)) {
                self.set(setting, None, Source::Default);
                continue;
            }
            self.problems.push(
                Error::usage(format!("{} cannot be used together with {}", given.source, endpoint.source))
                    .because("it selects one of AWS's own endpoints")
                    .hint("remove one of them"),
            );
        }
        if let Some(class) = self.text("storage", "storage_class").filter(|class| is_archive(class)) {
            let source = &self.get(setting("storage", "storage_class")).source;
            self.warnings
                .push(format!("{source}: objects stored as {class} must be restored before they can be pulled"));
        }
    }

    /// Returns the value of a setting and its source.
    pub fn get(&self, setting: &Setting) -> &SettingValue {
        self.values.iter().find(|given| std::ptr::eq(given.setting, setting)).expect("every setting is in the table")
    }

    fn set(&mut self, setting: &Setting, value: Option<OsString>, source: Source) {
        if let Some(given) = self.values.iter_mut().find(|given| std::ptr::eq(given.setting, setting)) {
            (given.value, given.source) = (value, source);
        }
    }

    fn text(&self, section: &str, key: &str) -> Option<String> {
        self.get(setting(section, key)).value.as_ref()?.to_str().map(String::from)
    }

    fn is_on(&self, section: &str, key: &str) -> bool {
        self.text(section, key).is_some_and(|text| text == "true")
    }

    /// Converts the values into the configuration.
    ///
    /// # Errors
    /// The first problem that was found.
    pub fn into_config(mut self) -> Result<Config> {
        if let Some(problem) = self.problems.drain(..).next() {
            return Err(problem);
        }
        let kms_key_id = self.text("storage", "sse_kms_key_id");
        let algorithm = self.text("storage", "sse").or(kms_key_id.is_some().then(|| "aws:kms".to_string()));
        let parsed = |key: &str| self.text("storage", key).unwrap_or_default();
        let gigabytes = self.text("cache", "max_local_gb").and_then(|text| text.parse::<GigaBytes>().ok());
        let max_parts = self.text("storage", "max_parts").and_then(|text| text.parse().ok());
        let timeout = self.text("storage", "timeout").and_then(|text| text.parse().ok());
        let host = self.text("storage", "endpoint").map(|url| values::host_of(&url));
        let parts_of_host = host.and_then(|host| hosts::max_parts_of(&host));
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
                max_parts: max_parts.or(parts_of_host).unwrap_or(values::MAX_PARTS),
                timeout: Duration::from_secs(timeout.unwrap_or(values::TIMEOUT)),
                dual_stack: self.is_on("storage", "dual_stack"),
                fips: self.is_on("storage", "fips"),
            },
            cache: Cache {
                source: self.get(setting("cache", "hf_cache_dir")).source.clone(),
                root: self.cache_root.take().unwrap_or_default(),
                max_local_bytes: gigabytes.unwrap_or(GigaBytes(50 << 30)).0,
                prune_require_remote: self.is_on("cache", "prune_require_remote"),
                keep: Pins::parse_list(&self.text("cache", "keep").unwrap_or_default()).unwrap_or_default(),
                sync_xet: self.is_on("cache", "sync_xet"),
            },
            team: Team {
                prefix: self.text("team", "prefix").unwrap_or_default(),
                allow_gated: self.is_on("team", "allow_gated"),
            },
            hub: self.hub.clone(),
            network: self.network.clone(),
            file: self.file.clone(),
            warnings: self.warnings,
            notes: self.notes,
            values: self.values,
        })
    }
}

/// Whether objects of a storage class have to be restored before they can be read.
fn is_archive(class: &str) -> bool {
    matches!(class, "GLACIER" | "DEEP_ARCHIVE" | "ARCHIVE" | "COLD_ARCHIVE")
}

/// Returns the default locations of the configuration file, in search order.
fn search_paths(env: &Environment<'_>) -> Vec<PathBuf> {
    let xdg = match (env.get("XDG_CONFIG_HOME"), &env.home) {
        (Some(dir), _) => Some(env.current.join(env.expand(&dir))),
        (None, Some(home)) => Some(home.join(".config")),
        (None, None) => None,
    };
    let mut paths = vec![env.current.join(FILE_NAME)];
    paths.extend(env.home.as_ref().map(|home| home.join(FILE_NAME)));
    paths.extend(xdg.map(|dir| dir.join("hf-cache-sync").join("config.yaml")));
    // In the home directory, the first two are the same.
    paths.dedup();
    paths
}

/// Returns the file that the user named, whether or not it exists.
pub fn named_file(overrides: &Overrides, env: &Environment<'_>) -> Option<(PathBuf, Source)> {
    if let Some(path) = &overrides.file {
        // Shells do not expand the `~` in `--config=~/team.yaml`.
        let path = path.to_str().map_or(path.clone(), |path| env.expand(path));
        return Some((env.current.join(path), Source::Flag("config")));
    }
    let path = env.get(FILE_VARIABLE)?;
    Some((env.current.join(env.expand(&path)), Source::Variable(FILE_VARIABLE)))
}

fn find_file(overrides: &Overrides, env: &Environment<'_>) -> Option<(PathBuf, Source)> {
    if let Some(named) = named_file(overrides, env) {
        return Some(named);
    }
    let found = search_paths(env).into_iter().find(|path| path.symlink_metadata().is_ok())?;
    Some((found, Source::Default))
}

/// The sources of values.
struct Inputs<'a> {
    overrides: &'a Overrides,
    env: &'a Environment<'a>,
    file: &'a File,
}

impl Inputs<'_> {
    /// Returns the validated value of a setting and its source.
    fn find(&self, setting: &'static Setting) -> Result<Option<(OsString, Source)>> {
        if let Some(flag) = setting.flag
            && let Some(raw) = self.overrides.values.get(flag)
        {
            let source = Source::Flag(flag);
            return match (raw.to_str(), setting.form) {
                (Some(text), _) => self.validate(setting, text, source),
                // A path need not be UTF-8.
                (None, Form::Path) => Ok(Some((raw.clone(), source))),
                (None, _) => Err(Error::usage(format!("--{flag} cannot be used")).because("it is not valid UTF-8")),
            };
        }
        for name in setting.variables {
            if let Some(text) = self.env.get(name) {
                return self.validate(setting, &text, Source::Variable(name));
            }
        }
        if let Some(FileValue { text, source }) = self.file.get(setting)?
            && let Some(given) = self.validate(setting, &text, source)?
        {
            return Ok(Some(given));
        }
        for name in setting.fallbacks {
            if let Some(text) = self.env.get(name) {
                return self.validate(setting, &text, Source::Variable(name));
            }
        }
        Ok(None)
    }

    /// Checks whether a secret is in the file, without returning it.
    fn find_secret(&self, setting: &'static Setting) -> Result<Option<(OsString, Source)>> {
        let Some(FileValue { text, source }) = self.file.get(setting)? else { return Ok(None) };
        let wrong = |why: String| Error::usage(format!("cannot use {source}")).because(why);
        let text = values::clean(&text).map_err(wrong)?;
        (setting.check)(text).map_err(wrong)?;
        Ok((!text.is_empty()).then(|| (OsString::from("set"), source)))
    }

    /// Validates and normalises a value; returns `None` if nothing is left of it.
    fn validate(&self, setting: &'static Setting, text: &str, source: Source) -> Result<Option<(OsString, Source)>> {
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
        let value = value.map_err(|why| wrong(&redact(text), why))?;
        let value = match setting.form {
            Form::Path => self.env.expand(&value).into(),
            _ => value.into(),
        };
        Ok(Some((value, source)))
    }
}

/// Hides the parts of a value that may be secret: everything before an `@` or after a `?`.
fn redact(text: &str) -> String {
    let text = text.split_once('?').map_or(text.to_string(), |(before, _)| format!("{before}?…"));
    text.rsplit_once('@').map_or(text.clone(), |(_, host)| format!("…@{host}"))
}
