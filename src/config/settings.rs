//! The table of settings, the single place that defines them. It drives the command-line options, the configuration file,
//! the environment variables, validation and its errors, the template of `init`, `config show`, and the table in
//! docs/configuration.md.

use super::values;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The section of the YAML file.
    pub section: &'static str,
    /// The key in that section.
    pub key: &'static str,
    /// The command-line option, without its dashes.
    pub flag: Option<&'static str>,
    /// Environment variables that take precedence over the file, in order.
    pub variables: &'static [&'static str],
    /// Environment variables that apply if nothing else sets a value, in order.
    pub fallbacks: &'static [&'static str],
    /// The kind of value.
    pub form: Form,
    /// Validates and normalises a value, or says what is wrong with it.
    pub check: fn(&str) -> Result<String, String>,
    /// The placeholder for the value in the option's help.
    pub value_name: &'static str,
    /// Whether the short help shows the option.
    pub common: bool,
    /// The default value, in words.
    pub default: &'static str,
    /// The description, for help and documentation.
    pub doc: &'static str,
    /// The line in the template of `init`.
    pub template: Template,
}

/// The kind of a setting's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Any text.
    Text,
    /// Text that is never shown.
    Secret,
    /// A path, in which `~` and `$VARIABLES` are expanded.
    Path,
    /// A number.
    Number,
    /// True or false.
    Switch,
    /// One of these values.
    Choice(&'static [&'static str]),
    /// Several texts: a list in the file, separated by commas elsewhere.
    List,
}

/// A line in the template of `init`.
#[derive(Debug, Clone, Copy)]
pub enum Template {
    /// An active line with this value.
    Set(&'static str),
    /// A commented-out line with this value.
    Comment(&'static str),
}

impl Setting {
    /// Returns the name in the file, such as `storage.bucket`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// Whether the value is never shown.
    pub fn is_secret(&self) -> bool {
        self.form == Form::Secret
    }

    /// Lists where it can be set, for hints: the key, the first variable and the option.
    pub fn places(&self) -> String {
        let variable = self.variables.first().or(self.fallbacks.first());
        let flag = self.flag.map(|flag| format!("--{flag}"));
        let places = [Some(self.name()), variable.map(ToString::to_string), flag];
        let places: Vec<String> = places.into_iter().flatten().collect();
        match places.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
            None => String::new(),
        }
    }
}

/// Looks up a setting.
///
/// # Panics
/// When there is no such setting, which is a bug, since all callers pass literals.
pub fn setting(section: &str, key: &str) -> &'static Setting {
    SETTINGS
        .iter()
        .find(|setting| setting.section == section && setting.key == key)
        .expect("the setting is in the table")
}

/// The sections of the file, in order.
pub const SECTIONS: [&str; 3] = ["storage", "cache", "team"];

/// Default values for the entries below.
const PLAIN: Setting = Setting {
    section: "storage",
    key: "",
    flag: None,
    variables: &[],
    fallbacks: &[],
    form: Form::Text,
    check: values::any,
    value_name: "VALUE",
    common: false,
    default: "none",
    doc: "",
    template: Template::Comment(""),
};

/// All settings, in the order of the file.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: "endpoint",
        flag: Some("endpoint"),
        common: true,
        variables: &["B2_ENDPOINT"],
        fallbacks: &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"],
        check: values::endpoint,
        value_name: "URL",
        default: "AWS",
        doc: "URL of the store; `https://` is added to a bare host",
        template: Template::Set("https://s3.us-west-000.backblazeb2.com"),
        ..PLAIN
    },
    Setting {
        key: "bucket",
        flag: Some("bucket"),
        common: true,
        variables: &["B2_BUCKET"],
        check: values::bucket,
        value_name: "NAME",
        doc: "name of the bucket, without `s3://` and without a path",
        template: Template::Set("my-hf-cache"),
        ..PLAIN
    },
    Setting {
        key: "region",
        flag: Some("region"),
        common: true,
        variables: &["B2_REGION"],
        fallbacks: &["AWS_REGION", "AWS_DEFAULT_REGION"],
        check: values::region,
        value_name: "NAME",
        default: "from the endpoint",
        doc: "region of the bucket",
        // Commented out, since it would override the correct region in the endpoint's host.
        template: Template::Comment("us-west-000"),
        ..PLAIN
    },
    Setting {
        key: "access_key",
        form: Form::Secret,
        check: values::credential,
        doc: "key id; preferably leave this empty and export `B2_APPLICATION_KEY_ID`",
        template: Template::Set("\"\""),
        ..PLAIN
    },
    Setting {
        key: "secret_key",
        form: Form::Secret,
        check: values::credential,
        doc: "secret key; preferably leave this empty and export `B2_APPLICATION_KEY`",
        template: Template::Set("\"\""),
        ..PLAIN
    },
    Setting {
        key: "addressing_style",
        flag: Some("addressing-style"),
        variables: &["HF_CACHE_SYNC_ADDRESSING_STYLE"],
        form: Form::Choice(&["auto", "path", "virtual"]),
        value_name: "STYLE",
        default: "auto",
        doc: "how the bucket is addressed: in the URL's `path`, or as a `virtual` host in front of the endpoint's",
        template: Template::Comment("auto"),
        ..PLAIN
    },
    Setting {
        key: "checksums",
        flag: Some("checksums"),
        variables: &["HF_CACHE_SYNC_CHECKSUMS"],
        form: Form::Choice(&["auto", "none", "md5", "crc32"]),
        value_name: "KIND",
        default: "auto",
        doc: "checksum of each PUT and part: `md5` is the Content-MD5 header, `crc32` is \
              `x-amz-checksum-crc32`; `auto` sends none unless the store requires one, or is another machine that is \
              reached over plain HTTP (then MD5)",
        template: Template::Comment("auto"),
        ..PLAIN
    },
    Setting {
        key: "sse",
        flag: Some("sse"),
        variables: &["HF_CACHE_SYNC_SSE"],
        form: Form::Choice(&["AES256", "aws:kms", "aws:kms:dsse"]),
        value_name: "KIND",
        default: "the bucket's default",
        doc: "server-side encryption to request for uploads",
        template: Template::Comment("aws:kms"),
        ..PLAIN
    },
    Setting {
        key: "sse_kms_key_id",
        flag: Some("sse-kms-key-id"),
        variables: &["HF_CACHE_SYNC_SSE_KMS_KEY_ID"],
        check: values::header,
        value_name: "KEY",
        default: "the account's default",
        doc: "id or ARN of the KMS key; implies `sse: aws:kms`",
        template: Template::Comment("arn:aws:kms:..."),
        ..PLAIN
    },
    Setting {
        key: "storage_class",
        flag: Some("storage-class"),
        variables: &["HF_CACHE_SYNC_STORAGE_CLASS"],
        check: values::storage_class,
        value_name: "CLASS",
        default: "the bucket's default",
        doc: "storage class for uploads, such as `STANDARD_IA` or `INTELLIGENT_TIERING`",
        template: Template::Comment("STANDARD_IA"),
        ..PLAIN
    },
    Setting {
        key: "requester_pays",
        flag: Some("requester-pays"),
        variables: &["HF_CACHE_SYNC_REQUESTER_PAYS"],
        fallbacks: &["AWS_REQUEST_PAYER"],
        form: Form::Switch,
        check: values::requester_pays,
        default: "false",
        doc: "pay for requests to someone else's bucket",
        template: Template::Comment("false"),
        ..PLAIN
    },
    Setting {
        key: "unsigned",
        flag: Some("no-sign-request"),
        variables: &["HF_CACHE_SYNC_UNSIGNED"],
        form: Form::Switch,
        check: values::switch,
        default: "false",
        doc: "read a public bucket without looking for credentials",
        template: Template::Comment("false"),
        ..PLAIN
    },
    Setting {
        key: "max_parts",
        variables: &["HF_CACHE_SYNC_MAX_PARTS"],
        form: Form::Number,
        check: values::max_parts,
        default: "10000, or 1000 for Scaleway",
        doc: "maximum number of parts in a multipart upload",
        template: Template::Comment("10000"),
        ..PLAIN
    },
    Setting {
        key: "timeout",
        variables: &["HF_CACHE_SYNC_TIMEOUT"],
        form: Form::Number,
        check: values::timeout,
        default: "60",
        doc: "seconds in which the store has to respond. A transfer has half as long again to make progress",
        template: Template::Comment("60"),
        ..PLAIN
    },
    Setting {
        key: "dual_stack",
        variables: &["HF_CACHE_SYNC_DUAL_STACK"],
        fallbacks: &["AWS_USE_DUALSTACK_ENDPOINT"],
        form: Form::Switch,
        check: values::switch,
        default: "false",
        doc: "use AWS's dual-stack endpoint (IPv4 and IPv6); only if no endpoint is set",
        template: Template::Comment("false"),
        ..PLAIN
    },
    Setting {
        key: "fips",
        variables: &["HF_CACHE_SYNC_FIPS"],
        fallbacks: &["AWS_USE_FIPS_ENDPOINT"],
        form: Form::Switch,
        check: values::switch,
        default: "false",
        doc: "use AWS's FIPS 140 endpoint; only if no endpoint is set",
        template: Template::Comment("false"),
        ..PLAIN
    },
    Setting {
        key: "ca_bundle",
        flag: Some("ca-bundle"),
        variables: &["HF_CACHE_SYNC_CA_BUNDLE"],
        form: Form::Path,
        value_name: "FILE",
        default: "the system's certificates",
        doc: "PEM file of additional CA certificates, such as a company's own",
        template: Template::Comment("/etc/ssl/certs/company.pem"),
        ..PLAIN
    },
    Setting {
        section: "cache",
        key: "max_local_gb",
        form: Form::Number,
        check: values::gigabytes,
        default: "50",
        doc: "disk budget of `prune`, in units of 2^30 bytes",
        template: Template::Set("50"),
        ..PLAIN
    },
    Setting {
        section: "cache",
        key: "prune_require_remote",
        variables: &["HF_CACHE_SYNC_PRUNE_REQUIRE_REMOTE"],
        form: Form::Switch,
        check: values::switch,
        default: "false",
        doc: "`prune` evicts only what the bucket holds, as with `--require-remote`; `--no-require-remote` turns \
              it off",
        template: Template::Comment("true"),
        ..PLAIN
    },
    Setting {
        section: "cache",
        key: "keep",
        variables: &["HF_CACHE_SYNC_KEEP"],
        form: Form::List,
        check: values::pins,
        doc: "patterns for revisions that `prune` never evicts: `org/*`, `dataset:org/name`, `org/name@v1.0`; \
              `--keep` adds to them",
        template: Template::Comment("[\"org/*\", \"org/name@v1.0\"]"),
        ..PLAIN
    },
    Setting {
        section: "cache",
        key: "sync_xet",
        form: Form::Switch,
        check: values::switch,
        default: "false",
        doc: "also push LFS/Xet pointer files (not the files they stand for)",
        template: Template::Set("false"),
        ..PLAIN
    },
    Setting {
        section: "cache",
        key: "hf_cache_dir",
        flag: Some("cache-dir"),
        common: true,
        form: Form::Path,
        value_name: "DIR",
        default: "as in huggingface_hub",
        doc: "the `hub` folder; `~` and `$VARIABLES` are expanded",
        template: Template::Comment("~/.cache/huggingface/hub"),
        ..PLAIN
    },
    Setting {
        section: "team",
        key: "prefix",
        flag: Some("prefix"),
        common: true,
        check: values::prefix,
        value_name: "PREFIX",
        doc: "prefix of all keys in the bucket",
        template: Template::Set("\"\""),
        ..PLAIN
    },
    Setting {
        section: "team",
        key: "allow_gated",
        form: Form::Switch,
        check: values::switch,
        default: "false",
        doc: "also push and pull repos whose licence files look gated. A pull can only check files that \
              are already in this cache, so the first pull on a fresh machine is never refused",
        template: Template::Set("false"),
        ..PLAIN
    },
];

/// Returns the template that `init` writes.
pub fn template() -> String {
    let mut text = String::from(
        "# hf-cache-sync configuration. Looked for in the current directory, then in the home directory.\n\
         # Command-line options, B2_* variables and an exported AWS key pair override this file. It overrides \
         HF_HUB_CACHE,\n# HF_HOME and the other AWS_* variables. See docs/configuration.md.\n",
    );
    for section in SECTIONS {
        text += &format!("{section}:\n");
        for setting in SETTINGS.iter().filter(|setting| setting.section == section) {
            let line = match setting.template {
                Template::Set(value) => format!("{}: {value}", setting.key),
                Template::Comment(value) => format!("# {}: {value}", setting.key),
            };
            let stops = if setting.is_secret() { &[][..] } else { &[". ", "; ", " (", ": "] };
            let end = stops.iter().filter_map(|stop| setting.doc.find(stop)).min().unwrap_or(setting.doc.len());
            let about = setting.doc[..end].replace('`', "");
            text += &format!("  {line:<32}  # {about}\n");
        }
        if section != "team" {
            text.push('\n');
        }
    }
    text
}

/// Returns the table in docs/configuration.md.
#[cfg(test)]
fn documentation() -> String {
    let mut text = String::from("| key | option | variables | meaning | default |\n|---|---|---|---|---|\n");
    for setting in SETTINGS {
        let flag = setting.flag.map_or(String::new(), |flag| format!("`--{flag}`"));
        let variables = setting.variables.iter().chain(setting.fallbacks);
        let variables: Vec<String> = variables.map(|name| format!("`{name}`")).collect();
        let allowed = match setting.form {
            Form::Choice(all) => {
                let all: Vec<String> = all.iter().map(|word| format!("`{word}`")).collect();
                format!("{}: ", all.join(", "))
            }
            _ => String::new(),
        };
        let (doc, default) = (setting.doc, setting.default);
        text += &format!("| `{}` | {flag} | {} | {allowed}{doc} | {default} |\n", setting.name(), variables.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_matches_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        let docs = std::fs::read_to_string(path).unwrap();
        let table = documentation();
        assert!(docs.contains(&table), "docs/configuration.md must contain this table:\n{table}");
        let all = SETTINGS.iter().flat_map(|setting| setting.variables.iter().chain(setting.fallbacks));
        all.for_each(|name| assert!(docs.contains(&format!("`{name}`")), "{name}"));
    }

    #[test]
    fn every_setting_is_documented_and_unique() {
        for setting in SETTINGS {
            assert!(SECTIONS.contains(&setting.section) && !setting.doc.is_empty(), "{}", setting.name());
            let twins = SETTINGS.iter().filter(|other| other.name() == setting.name()).count();
            assert_eq!(twins, 1, "{}", setting.name());
        }
        assert_eq!(setting("storage", "bucket").places(), "storage.bucket, B2_BUCKET or --bucket");
    }
}
