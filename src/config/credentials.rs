//! Secrets, and the rule which key pair counts.

use std::fmt;

/// A secret text: usable, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: String) -> Self {
        Secret(text)
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A complete key pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// Access key id.
    pub id: Secret,
    /// Secret access key.
    pub secret: Secret,
    /// Session token of temporary credentials.
    pub session_token: Option<Secret>,
}

/// Where the credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// `B2_APPLICATION_KEY_ID` and `B2_APPLICATION_KEY`.
    B2Env(KeyPair),
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, with `AWS_SESSION_TOKEN` if set.
    AwsEnv(KeyPair),
    /// `storage.access_key` and `storage.secret_key`.
    ConfigFile(KeyPair),
    /// The standard AWS chain: profile, SSO, web identity, container, instance metadata.
    AwsChain,
    /// Half a pair and nothing else: surely not meant, so the AWS chain is not tried. Says which half is missing.
    Incomplete(String),
}

impl Credentials {
    /// The name that `doctor` shows.
    pub fn source(&self) -> &'static str {
        match self {
            Credentials::B2Env(_) => "b2_env",
            Credentials::AwsEnv(_) => "aws_env",
            Credentials::ConfigFile(_) => "config",
            Credentials::AwsChain => "aws_chain",
            Credentials::Incomplete(_) => "none",
        }
    }

    /// The pair, when it is known already.
    pub fn pair(&self) -> Option<&KeyPair> {
        match self {
            Credentials::B2Env(pair) | Credentials::AwsEnv(pair) | Credentials::ConfigFile(pair) => Some(pair),
            Credentials::AwsChain | Credentials::Incomplete(_) => None,
        }
    }
}

/// The halves of the pairs that are given.
#[derive(Default)]
pub(super) struct Halves {
    pub(super) b2: (Option<Secret>, Option<Secret>),
    pub(super) aws: (Option<Secret>, Option<Secret>),
    pub(super) aws_token: Option<Secret>,
    pub(super) file: (Option<Secret>, Option<Secret>),
}

impl Halves {
    /// The first whole pair; the halves of others are warned about.
    pub(super) fn pick(self, warnings: &mut Vec<String>) -> Credentials {
        let mut halves = Vec::new();
        let mut pair = |id_from: &str, secret_from: &str, halves_given: (Option<Secret>, Option<Secret>)| {
            let (set, missing) = match halves_given {
                (Some(id), Some(secret)) => return Some(KeyPair { id, secret, session_token: None }),
                (Some(_), None) => (id_from, secret_from),
                (None, Some(_)) => (secret_from, id_from),
                (None, None) => return None,
            };
            halves.push(format!("{set} is set without {missing}"));
            None
        };
        let b2 = pair("B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY", self.b2).map(Credentials::B2Env);
        let session_token = self.aws_token;
        let aws = pair("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", self.aws)
            .map(|pair| Credentials::AwsEnv(KeyPair { session_token, ..pair }));
        let file = pair("storage.access_key", "storage.secret_key", self.file).map(Credentials::ConfigFile);
        match b2.or(aws).or(file) {
            Some(found) => {
                warnings.extend(halves.into_iter().map(|half| format!("{half}: this half of a pair is ignored")));
                found
            }
            None if halves.is_empty() => Credentials::AwsChain,
            None => Credentials::Incomplete(halves.join("; ")),
        }
    }
}
