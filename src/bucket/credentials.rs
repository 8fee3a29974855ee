//! Finds the credentials that sign requests, and the store's settings in the profile of the AWS tools.

use std::time::Duration;

use aws_config::imds;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials as Keys;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_runtime::env_config::property::PropertiesKey;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_types::os_shim_internal::{Env, Fs};
use aws_types::region::Region;

use super::connection;
use super::connection::Certificates;
use crate::config::{Credentials, KeyPair, values};
use crate::error::{Cause, Error, Result, printable};

/// The instance metadata service, unless the environment names another endpoint.
const METADATA: &str = "http://169.254.169.254";
/// Connect timeout for the metadata service. It is short because outside a cloud nothing is there.
const METADATA_CONNECT: Duration = Duration::from_millis(500);
/// Number of attempts to connect to the metadata service before this machine counts as outside a cloud.
const METADATA_CONNECT_TRIES: u32 = 2;
/// Response timeout inside a cloud, where the metadata service may be slow under load.
const METADATA_ANSWER: Duration = Duration::from_secs(3);
/// Maximum number of requests for the same metadata.
const METADATA_TRIES: u32 = 5;

/// The hint that applies to every user without keys.
const EXPORT_HINT: &str =
    "export B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)";

/// The source of the credentials that sign requests.
pub(super) struct CredentialSource {
    /// `None` if requests are not signed.
    pub(super) provider: Option<SharedCredentialsProvider>,
    /// The credentials that the provider has already returned. Each call may start a process or send a request.
    pub(super) first: Option<Keys>,
    /// Whether the provider may return other credentials later.
    pub(super) renewable: bool,
}

impl CredentialSource {
    /// Returns the source for unsigned requests.
    pub(super) fn unsigned() -> CredentialSource {
        CredentialSource { provider: None, first: None, renewable: false }
    }
}

/// Finds the credentials. Only the AWS credential chain accesses the network.
///
/// # Errors
/// [`Cause::Usage`] with half a pair, [`Cause::BadCredentials`] if none are found, with the chain's own reason.
pub(super) async fn find(credentials: &Credentials, region: &str, trusted: &Certificates) -> Result<CredentialSource> {
    if let Credentials::Incomplete(why) = credentials {
        return Err(Error::usage("the credentials are incomplete")
            .because(why.clone())
            .hint("set both halves of the pair"));
    }
    if let Some(KeyPair { id, secret, session_token }) = credentials.pair() {
        let token = session_token.as_ref().map(|token| token.expose().to_string());
        let keys = Keys::new(id.expose(), secret.expose(), token, None, "hf-cache-sync");
        let provider = Some(SharedCredentialsProvider::new(keys.clone()));
        return Ok(CredentialSource { provider, first: Some(keys), renewable: false });
    }
    let region = Region::new(region.to_string());
    let config = |proxy| {
        let client = connection::http_client(trusted.clone(), proxy);
        ProviderConfig::without_region().with_region(Some(region.clone())).with_http_client(client)
    };
    let has_metadata = has_metadata_service().await;
    let metadata = imds::Client::builder()
        // The metadata service is link-local; a proxy cannot reach it.
        .configure(&config(ProxyConfig::disabled()))
        .connect_timeout(METADATA_CONNECT)
        .read_timeout(if has_metadata { METADATA_ANSWER } else { METADATA_CONNECT })
        .operation_attempt_timeout(METADATA_ANSWER)
        .operation_timeout(METADATA_ANSWER * METADATA_TRIES)
        .max_attempts(if has_metadata { METADATA_TRIES } else { 1 })
        .build();
    let chain = aws_config::default_provider::credentials::DefaultCredentialsChain::builder()
        .configure(config(ProxyConfig::from_env()))
        .region(region.clone())
        .imds_client(metadata)
        .build()
        .await;
    match chain.provide_credentials().await {
        Ok(keys) => {
            // The signer rejects values that are not valid in a header.
            let parts = [Some(keys.access_key_id()), Some(keys.secret_access_key()), keys.session_token()];
            if let Err(why) = parts.into_iter().flatten().try_for_each(|part| values::credential(part).map(drop)) {
                return Err(Error::new(
                    Cause::BadCredentials,
                    "the credentials of the AWS profile or role cannot be used",
                )
                .because(why)
                .hint("check ~/.aws/credentials, or the output of the profile's credential_process"));
            }
            Ok(CredentialSource {
                provider: Some(SharedCredentialsProvider::new(chain)),
                first: Some(keys),
                renewable: true,
            })
        }
        Err(error) => {
            let (why, hint) = reason(&error).await;
            Err(Error::new(Cause::BadCredentials, "no credentials were found").because(why).hint(hint))
        }
    }
}

/// Whether this machine has an instance metadata service. In a cloud, connecting to it takes almost no time.
async fn has_metadata_service() -> bool {
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    if var("AWS_EC2_METADATA_DISABLED").eq_ignore_ascii_case("true") {
        return false;
    }
    let given = var("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    let (host, port, _) = connection::target(if given.is_empty() { METADATA } else { &given });
    let host = host.trim_matches(['[', ']']);
    for _ in 0..METADATA_CONNECT_TRIES {
        let connected = tokio::net::TcpStream::connect((host, port));
        match tokio::time::timeout(METADATA_CONNECT, connected).await {
            Ok(Ok(_)) => return true,
            // Refused or unreachable: trying again does not help.
            Ok(Err(_)) => return false,
            Err(_) => {}
        }
    }
    false
}

/// Returns why a provider has no keys, in its own words, and a hint. The reason contains no secrets: providers report
/// files, profiles and processes, and what those printed to stderr.
pub(super) async fn reason(error: &CredentialsError) -> (String, String) {
    let mut words = Vec::new();
    let mut current: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = current {
        words.push(error.to_string());
        current = error.source();
    }
    let all = words.join(": ");
    let lower = all.to_ascii_lowercase();
    let var = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let profile = var("AWS_PROFILE");
    if lower.contains("sso") && (lower.contains("token") || lower.contains("session")) {
        let login = match &profile {
            Some(name) => format!("run `aws sso login --profile {}`", printable(name, 60)),
            None => "run `aws sso login`".to_string(),
        };
        return (
            format!("the SSO session of the AWS profile has expired or was never started ({})", best_reason(&words)),
            login,
        );
    }
    if let Some(file) = var("AWS_WEB_IDENTITY_TOKEN_FILE")
        && let Err(error) = std::fs::File::open(&file)
    {
        let why = crate::error::plain_io(&error);
        let why = format!("cannot read {} (AWS_WEB_IDENTITY_TOKEN_FILE): {why}", printable(&file, 200));
        return (why, "correct the variable, or mount the token there".into());
    }
    if let Some(name) = &profile
        && has_profile(name).await == Some(false)
    {
        let name = printable(name, 60);
        return (
            format!("there is no AWS profile '{name}' (AWS_PROFILE)"),
            format!("correct AWS_PROFILE, create the profile with `aws configure --profile {name}`, or {EXPORT_HINT}"),
        );
    }
    if matches!(error, CredentialsError::CredentialsNotLoaded(_)) {
        let reason = profile_reason(&all).filter(|why| !is_benign(why));
        return match (profile, reason) {
            (Some(name), reason) => explain_chosen_profile(&name, reason),
            (None, Some(why)) => (
                format!("the AWS profile 'default' provides none: {}", printable(why, 200)),
                format!("correct it with `aws configure`, or {EXPORT_HINT}"),
            ),
            (None, None) => (
                "looked in B2_* and AWS_* variables, the configuration file, and the AWS profile, web identity, \
                 container and instance"
                    .into(),
                format!("{EXPORT_HINT}, or set storage.access_key and storage.secret_key in .hf-cache-sync.yaml"),
            ),
        };
    }
    let hint = if lower.contains("credential_process") || lower.contains("process") {
        "run the profile's credential_process by hand, and fix it"
    } else if lower.contains("web identity") || lower.contains("webidentity") || lower.contains("token file") {
        "check AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN"
    } else if lower.contains("profile") {
        "check AWS_PROFILE and the files ~/.aws/config and ~/.aws/credentials"
    } else if lower.contains("assume") || lower.contains("sts") {
        "check the role, and who may assume it"
    } else {
        return (best_reason(&words), format!("{EXPORT_HINT}, or see what `aws sts get-caller-identity` reports"));
    };
    (best_reason(&words), hint.into())
}

/// Explains why the profile chosen with AWS_PROFILE provides no keys.
fn explain_chosen_profile(name: &str, reason: Option<&str>) -> (String, String) {
    let name = printable(name, 60);
    let why = reason.map_or_else(|| "it has no keys and no way to get them".into(), |why| printable(why, 200));
    (
        format!("the AWS profile '{name}' (AWS_PROFILE) provides none: {why}"),
        format!("correct AWS_PROFILE, or the profile with `aws configure --profile {name}`, or {EXPORT_HINT}"),
    )
}

/// Whether the files of the AWS tools have a profile; `None` if they cannot be read.
async fn has_profile(name: &str) -> Option<bool> {
    let (fs, env, files) = (Fs::real(), Env::real(), Default::default());
    let sections = aws_config::profile::load(&fs, &env, &files, None).await.ok()?;
    Some(sections.profiles().any(|known| known == name))
}

/// Returns the reason for the profile from the chain's list of providers without keys.
fn profile_reason(all: &str) -> Option<&str> {
    let line = all.lines().find_map(|line| line.trim().strip_prefix("Profile: "))?;
    let why = line.strip_prefix("the credential provider was not enabled").unwrap_or(line);
    Some(why.trim_start_matches([':', ' ']))
}

/// Whether the reason is merely that there is no profile, or none with keys, which is not a mistake.
fn is_benign(why: &str) -> bool {
    let lower = why.to_ascii_lowercase();
    if lower.is_empty() {
        return true;
    }
    ["`default` was not defined", "no profiles were defined", "did not contain credential"]
        .iter()
        .any(|words| lower.contains(words))
}

/// Returns the most informative of nested reasons: the innermost one that is a sentence.
fn best_reason(words: &[String]) -> String {
    let generic =
        ["unhandled error", "service error", "dispatch failure", "an error occurred while loading credentials"];
    let specific = words.iter().rev().find(|text| text.len() > 8 && !generic.contains(&text.trim()));
    let text = specific.or(words.last()).map(String::as_str).unwrap_or_default();
    let text = &text[..text.find(" (os error").unwrap_or(text.len())];
    // The Debug output of a service's error: extract its code and message.
    let quoted = |name: &str| Some(text.split_once(&format!("{name}: \""))?.1.split_once('"')?.0.to_string());
    let text = match (text.trim_start().starts_with("Error {"), quoted("code"), quoted("message")) {
        (true, Some(code), Some(message)) => format!("{code}: {message}"),
        (true, Some(code), None) => code,
        _ => text.to_string(),
    };
    printable(text.trim(), 300)
}

/// The settings for the store in a profile of the AWS tools.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) ca_bundle: Option<std::path::PathBuf>,
    pub(super) addressing_style: Option<String>,
}

impl Profile {
    /// Reads the profile in use. Missing and unreadable files yield nothing here: looking up the credentials reports them.
    pub(super) async fn read() -> Profile {
        let (fs, env, files) = (Fs::real(), Env::real(), Default::default());
        let Ok(sections) = aws_config::profile::load(&fs, &env, &files, None).await else {
            return Profile::default();
        };
        let non_empty = |text: Option<&str>| text.map(str::trim).filter(|text| !text.is_empty()).map(String::from);
        let s3 = non_empty(sections.get("s3")).unwrap_or_default();
        let ignored = env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_ok_and(|text| is_true(&text))
            || sections.get("ignore_configured_endpoint_urls").is_some_and(is_true);
        let service_endpoint = || {
            let key = PropertiesKey::builder()
                .section_key("services")
                .section_name(sections.get("services")?.trim())
                .property_name("s3")
                .sub_property_name("endpoint_url");
            let found = sections.other_sections().get(&key.build().ok()?)?;
            non_empty(Some(found.as_str()))
        };
        let endpoint = || {
            service_endpoint()
                .or_else(|| nested(&s3, "endpoint_url"))
                .or_else(|| non_empty(sections.get("endpoint_url")))
        };
        Profile {
            region: non_empty(sections.get("region")),
            endpoint: if ignored { None } else { endpoint() },
            ca_bundle: non_empty(sections.get("ca_bundle")).map(Into::into),
            addressing_style: nested(&s3, "addressing_style"),
        }
    }
}

fn is_true(text: &str) -> bool {
    text.trim().eq_ignore_ascii_case("true")
}

/// Returns a property from the lines below `s3 =`.
fn nested(lines: &str, name: &str) -> Option<String> {
    let found = lines.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim().eq_ignore_ascii_case(name)).then(|| value.trim().to_string())
    });
    found.filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_extracted_from_their_wrapping() {
        let best_reason =
            |words: &[&str]| super::best_reason(&words.iter().map(|text| text.to_string()).collect::<Vec<_>>());
        let service = "Error { code: \"AccessDenied\", message: \"Not authorized\", aws_request_id: \"r\" }";
        assert_eq!(best_reason(&["unhandled error", service]), "AccessDenied: Not authorized");
        assert_eq!(best_reason(&["the file is gone (os error 2)", "x"]), "the file is gone");
        let chain = "no credentials found in chain. Attempted:\n  Environment: x\n  Profile: the credential provider was not \
                     enabled: profile `a` was not defined\n  Ec2: y";
        assert_eq!(profile_reason(chain), Some("profile `a` was not defined"));
        let chain = "Attempted:\n  Profile: the credential provider was not enabled\n  Ec2: y";
        assert!(profile_reason(chain).is_some_and(is_benign));
        assert!(is_benign("No profiles were defined") && !is_benign("profile `a` was not defined"));
    }

    #[test]
    fn nested_properties_are_found() {
        let lines = "\n  max_concurrent_requests = 3\n  addressing_style = virtual\nendpoint_url =\n";
        assert_eq!(nested(lines, "addressing_style").as_deref(), Some("virtual"));
        assert_eq!(nested(lines, "endpoint_url"), None);
        assert_eq!(nested("", "x"), None);
    }
}
