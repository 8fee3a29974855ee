//! Finds what is given for each setting, and where.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::credentials::{Credentials, Halves, Secret};
use super::environment::Environment;
use super::hosts;
use super::settings::{Form, SETTINGS, Setting, setting};
use super::source::Source;
use super::values::{self, Encryption, GigaBytes};
use super::yaml::{File, Found};
use super::{Cache, Config, FILE_NAME, FILE_VARIABLE, Hub, Storage, Team};
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

/// A variable that matters and has no setting in the file.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its value; `None` for a secret.
    pub value: Option<String>,
}

/// Those variables, and whether their values are secrets.
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

/// All that was found. It may have problems, and can be shown all the same.
#[derive(Debug)]
pub struct Resolution {
    /// Each setting, in the order of the table.
    pub given: Vec<Given>,
    /// What cannot be used, in the order in which it was found.
    pub problems: Vec<Error>,
    /// What a user should know.
    pub warnings: Vec<String>,
    /// What was made of what was given, where that may surprise.
    pub notes: Vec<String>,
    /// The file that was found, if any.
    pub file: Option<PathBuf>,
    /// What names the file.
    pub file_source: Source,
    /// Where a file is searched when nothing names one, in order.
    pub searched: Vec<PathBuf>,
    /// Other variables that are set.
    pub variables: Vec<Variable>,
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
            notes: Vec::new(),
            file: None,
            file_source: Source::Default,
            searched: places(&env),
            variables: VARIABLES
                .into_iter()
                .filter_map(|(name, is_secret)| {
                    let value = env.get(name)?;
                    Some(Variable { name, value: (!is_secret).then(|| without_credentials(&value)) })
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
        found.part_endpoint();
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

    /// A bucket that stands in the endpoint, before the host or as its path, is taken out of it: keys would get it twice.
    fn part_endpoint(&mut self) {
        let (endpoint, bucket) = (setting("storage", "endpoint"), setting("storage", "bucket"));
        let Some(url) = self.text("storage", "endpoint") else { return };
        let configured = self.text("storage", "bucket");
        let source = self.of(endpoint).source.clone();
        match hosts::part(&url, configured.as_deref()) {
            Ok(None) => {}
            Ok(Some((service, named))) => {
                let note =
                    format!("the bucket '{named}' is taken out of the endpoint ({source}), which is then {service}");
                self.notes.push(note);
                if configured.is_none() {
                    self.set(bucket, Some(named.into()), source.clone());
                }
                self.set(endpoint, Some(service.into()), source);
            }
            Err(hosts::Parts { endpoint, bucket: named, prefix }) => {
                let mut why = format!("the bucket '{named}' stands in it");
                let mut instead = format!("--endpoint {endpoint} --bucket {named}");
                if let Some(prefix) = prefix {
                    why = format!("the bucket '{named}' and a prefix stand in it");
                    instead += &format!(" --prefix {prefix}");
                } else if let Some(configured) = configured {
                    why += &format!(", and {} says '{configured}'", self.of(bucket).source);
                }
                self.problems.push(
                    Error::usage(format!("the endpoint '{}' cannot be used", printable(&url, 200)))
                        .because(why)
                        .hint(format!("{source} is the URL of the store alone: {instead}")),
                );
            }
        }
    }

    /// The region that the endpoint's host names ranks before variables that platforms set unasked.
    fn find_region(&mut self) {
        let region = setting("storage", "region");
        let fallback = matches!(self.of(region).source, Source::Variable(name) if region.fallbacks.contains(&name));
        if !fallback && self.of(region).value.is_some() {
            return;
        }
        if let Some(host) = self.text("storage", "endpoint").and_then(|url| hosts::region_of(&values::host_of(&url))) {
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
            hub: self.hub.clone(),
            network: self.network.clone(),
            file: self.file.clone(),
            warnings: self.warnings,
            notes: self.notes,
            given: self.given,
        })
    }
}

/// Classes whose objects cannot be read at once.
fn is_archive(class: &str) -> bool {
    matches!(class, "GLACIER" | "DEEP_ARCHIVE" | "ARCHIVE" | "COLD_ARCHIVE")
}

/// The file's places, in the order in which they are searched, without those that a user names.
fn places(env: &Environment<'_>) -> Vec<PathBuf> {
    let xdg = match (env.get("XDG_CONFIG_HOME"), &env.home) {
        (Some(dir), _) => Some(env.current.join(env.expand(&dir))),
        (None, Some(home)) => Some(home.join(".config")),
        (None, None) => None,
    };
    let mut places = vec![env.current.join(FILE_NAME)];
    places.extend(env.home.as_ref().map(|home| home.join(FILE_NAME)));
    places.extend(xdg.map(|dir| dir.join("hf-cache-sync").join("config.yaml")));
    // At home, the first two are one.
    places.dedup();
    places
}

/// The file that the user names, whether or not it is there.
pub fn named_file(overrides: &Overrides, env: &Environment<'_>) -> Option<(PathBuf, Source)> {
    if let Some(path) = &overrides.file {
        // No shell expands the `~` of `--config=~/team.yaml`.
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
    let found = places(env).into_iter().find(|path| path.symlink_metadata().is_ok())?;
    Some((found, Source::Default))
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
        let value = match setting.form {
            Form::Path => self.env.expand(&value).into(),
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
