//! Secrets, and the choice between key pairs.

use std::fmt;

/// A secret string that `Debug` does not reveal.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: String) -> Self {
        Secret(text)
    }

    /// Returns the secret in plain text.
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

/// The source of the credentials.
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
    /// Half a pair and nothing else, which is surely a mistake, so the AWS chain is not tried. Says which half is missing.
    Incomplete(String),
}

impl Credentials {
    /// Returns the name that `doctor` shows for this source.
    pub fn source(&self) -> &'static str {
        match self {
            Credentials::B2Env(_) => "b2_env",
            Credentials::AwsEnv(_) => "aws_env",
            Credentials::ConfigFile(_) => "config",
            Credentials::AwsChain => "aws_chain",
            Credentials::Incomplete(_) => "none",
        }
    }

    /// Returns the key pair, unless it has yet to be fetched from the AWS chain.
    pub fn pair(&self) -> Option<&KeyPair> {
        match self {
            Credentials::B2Env(pair) | Credentials::AwsEnv(pair) | Credentials::ConfigFile(pair) => Some(pair),
            Credentials::AwsChain | Credentials::Incomplete(_) => None,
        }
    }
}

impl KeyPair {
    /// Returns what looks wrong with the pair, judging by its format alone. The text never contains the keys.
    ///
    /// Backblaze key ids are 25 hexadecimal digits starting with 00 (12 digits for a master key), and the keys 31
    /// characters starting with K00. AWS key ids are AKIA or ASIA followed by 16 characters, and the keys 40 characters.
    pub fn suspicion(&self, endpoint: Option<&str>) -> Option<&'static str> {
        let (id, secret) = (self.id.expose(), self.secret.expose());
        if id == secret {
            return Some("the key id and the secret key are the same");
        }
        if Shape::of(id).is_some_and(Shape::is_secret) || Shape::of(secret).is_some_and(|shape| !shape.is_secret()) {
            return Some("the key id and the secret key look swapped");
        }
        let backblaze = endpoint.is_some_and(super::is_backblaze);
        match Shape::of(id)? {
            Shape::AwsId if backblaze => Some("the key id looks like an AWS key id, but the endpoint is Backblaze's"),
            Shape::BackblazeId if endpoint.is_none() => Some(
                "the key id looks like a Backblaze key id, but no endpoint is set (B2_ENDPOINT or storage.endpoint)",
            ),
            Shape::AwsId if id.starts_with("ASIA") && self.session_token.is_none() => {
                Some("the key id belongs to temporary credentials, which need AWS_SESSION_TOKEN")
            }
            _ => None,
        }
    }
}

/// The recognizable format of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    BackblazeId,
    BackblazeSecret,
    AwsId,
    AwsSecret,
}

impl Shape {
    fn of(text: &str) -> Option<Shape> {
        let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let base64 = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
        let upper = |text: &str| text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        match text.len() {
            25 if text.starts_with("00") && hex(text) => Some(Shape::BackblazeId),
            31 if text.starts_with("K00") && base64(text) => Some(Shape::BackblazeSecret),
            20 if (text.starts_with("AKIA") || text.starts_with("ASIA")) && upper(text) => Some(Shape::AwsId),
            // A purely hexadecimal key belongs to another store, such as R2 or Wasabi.
            40 if base64(text) && !hex(text) => Some(Shape::AwsSecret),
            _ => None,
        }
    }

    fn is_secret(self) -> bool {
        matches!(self, Shape::BackblazeSecret | Shape::AwsSecret)
    }
}

/// The key pairs found so far, each possibly incomplete.
#[derive(Default)]
pub(super) struct Halves {
    pub(super) b2: (Option<Secret>, Option<Secret>),
    pub(super) aws: (Option<Secret>, Option<Secret>),
    pub(super) aws_token: Option<Secret>,
    pub(super) file: (Option<Secret>, Option<Secret>),
}

impl Halves {
    /// Picks the first complete pair, and warns about incomplete ones.
    pub(super) fn pick(self, warnings: &mut Vec<String>) -> Credentials {
        let mut halves = Vec::new();
        let mut pair = |id_name: &str, secret_name: &str, keys: (Option<Secret>, Option<Secret>)| {
            let (set, missing) = match keys {
                (Some(id), Some(secret)) => return Some(KeyPair { id, secret, session_token: None }),
                (Some(_), None) => (id_name, secret_name),
                (None, Some(_)) => (secret_name, id_name),
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
                warnings.extend(halves.into_iter().map(|half| format!("{half}: the incomplete pair is ignored")));
                found
            }
            None if halves.is_empty() => Credentials::AwsChain,
            None => Credentials::Incomplete(halves.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_pair_is_suspected() {
        let pair = |id: &str, secret: &str, endpoint: Option<&str>| {
            KeyPair { id: Secret::new(id.into()), secret: Secret::new(secret.into()), session_token: None }
                .suspicion(endpoint)
        };
        let b2 = ("0051a2b3c4d5e6f0000000001", "K005abcdefghijklmnopqrstuvwxyz0");
        let aws = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let b2_url = Some("https://s3.us-west-004.backblazeb2.com");
        assert_eq!(pair(b2.0, b2.1, b2_url), None);
        assert_eq!(pair(aws.0, aws.1, None), None);
        assert_eq!(pair("minioadmin", "minio-secret", Some("http://minio:9000")), None);
        for (id, secret, endpoint, words) in [
            (b2.1, b2.0, b2_url, "swapped"),
            (aws.1, aws.0, None, "swapped"),
            (b2.1, "anything", b2_url, "swapped"),
            ("anything", aws.0, None, "swapped"),
            (b2.0, b2.0, b2_url, "same"),
            (aws.0, aws.1, b2_url, "looks like an AWS key id"),
            (b2.0, b2.1, None, "B2_ENDPOINT"),
            ("ASIAIOSFODNN7EXAMPLE", aws.1, None, "AWS_SESSION_TOKEN"),
        ] {
            assert!(pair(id, secret, endpoint).is_some_and(|text| text.contains(words)), "{words}");
        }
    }
}
