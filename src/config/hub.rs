//! The Hugging Face Hub's address and token, read from the environment as huggingface_hub does.

use std::path::PathBuf;

use super::{Environment, Secret};
use crate::error::{Error, Result};
use crate::files;

/// The Hub's own address.
const ENDPOINT: &str = "https://huggingface.co";
/// Maximum size of a token file, in bytes.
const MAX_TOKEN: u64 = 64 << 10;

/// The Hugging Face Hub, for `--fallback hf-hub`.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    /// URL without a trailing slash (`HF_ENDPOINT`). It may contain a password.
    pub endpoint: Secret,
    /// The token (`HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`).
    pub token: Option<Secret>,
    /// The file in which `hf auth login` stores the token (`HF_TOKEN_PATH`, `HF_HOME/token`).
    pub token_file: Option<PathBuf>,
    /// The variable that forbids access to the Hub, if one is set (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`).
    pub offline: Option<&'static str>,
    /// Whether snapshots get real files instead of links (`HF_HUB_DISABLE_SYMLINKS`).
    pub no_symlinks: bool,
    /// Whether nothing joins the cache-wide blob store (`HF_HUB_DISABLE_SHARED_BLOBS`, `HF_HUB_DISABLE_XET`).
    pub no_shared_blobs: bool,
}

impl Hub {
    /// Reads the settings from the environment.
    pub(super) fn from_environment(env: &Environment<'_>) -> Hub {
        let is_set = |name: &str| {
            env.get(name).is_some_and(|text| matches!(text.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let text =
            |name: &str| env.get(name).map(|text| strip_quotes(&text).to_string()).filter(|text| !text.is_empty());
        // TRANSFORMERS_OFFLINE counts only if HF_HUB_OFFLINE is not set at all, not even to 0.
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| env.get(name).is_some());
        let home = match (env.get("HF_HOME"), env.get("XDG_CACHE_HOME")) {
            (Some(home), _) => Some(env.expand(&home)),
            (None, Some(cache)) => Some(env.expand(&cache).join("huggingface")),
            (None, None) => env.home.as_ref().map(|home| home.join(".cache/huggingface")),
        };
        let named = env.get("HF_TOKEN_PATH").map(|path| env.expand(&path));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let mut hub = Hub {
            endpoint: Secret::new(endpoint.trim_end_matches('/').to_string()),
            token: text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).map(Secret::new),
            token_file: named.or_else(|| home.map(|home| home.join("token"))).map(|path| env.current.join(path)),
            offline: offline.filter(|name| is_set(name)),
            no_symlinks: is_set("HF_HUB_DISABLE_SYMLINKS"),
            no_shared_blobs: is_set("HF_HUB_DISABLE_SHARED_BLOBS") || is_set("HF_HUB_DISABLE_XET"),
        };
        if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            (hub.token, hub.token_file) = (None, None);
        }
        hub
    }

    /// Checks that the token file, if it exists, is a regular file, so that its token is not silently left out.
    ///
    /// # Errors
    /// When it is a named pipe, a socket or a device.
    pub fn check_token_file(&self) -> Result<()> {
        match self.token_file.as_ref().and_then(|path| Some((path, std::fs::metadata(path).ok()?))) {
            Some((path, meta)) if files::is_special(&meta) => {
                Err(Error::usage(format!("cannot read the token in {}", path.display()))
                    .because(files::not_a_file(&meta))
                    .hint("set HF_TOKEN, or HF_TOKEN_PATH to a file"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the token to send, if there is one.
    pub fn find_token(&self) -> Option<Secret> {
        let stored = || {
            let text = files::read_named_text(self.token_file.as_ref()?, MAX_TOKEN).ok()?;
            Some(strip_quotes(&text).to_string()).filter(|text| !text.is_empty()).map(Secret::new)
        };
        self.token.clone().or_else(stored)
    }
}

/// Strips surrounding white space and one pair of quotes, which mounted secrets and env files often have.
fn strip_quotes(text: &str) -> &str {
    let text = text.trim();
    let within = |quote: char| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    within('"').or_else(|| within('\'')).map_or(text, str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Hub {
        let var = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, text)| text.to_string());
        Hub::from_environment(&Environment { var: &var, home: Some("/home/u".into()), current: "/now".into() })
    }

    #[test]
    fn the_environment_is_read_as_huggingface_hub_does() {
        let hub = read(&[]);
        assert_eq!((hub.endpoint.expose(), hub.offline, hub.find_token()), ("https://huggingface.co", None, None));
        assert_eq!(hub.token_file.unwrap(), PathBuf::from("/home/u/.cache/huggingface/token"));
        let hub = read(&[("HF_ENDPOINT", "http://127.0.0.1:1/"), ("HF_TOKEN", " hf_x\n"), ("HF_HOME", "~/h")]);
        assert_eq!((hub.endpoint.expose(), hub.find_token().unwrap().expose()), ("http://127.0.0.1:1", "hf_x"));
        assert_eq!(hub.token_file.unwrap(), PathBuf::from("/home/u/h/token"));
        assert_eq!(read(&[("HF_TOKEN_PATH", "t")]).token_file.unwrap(), PathBuf::from("/now/t"));
        for (value, set) in [("1", true), ("on", true), ("Yes", true), ("TRUE", true), ("0", false), ("", false)] {
            assert_eq!(read(&[("HF_HUB_DISABLE_SYMLINKS", value)]).no_symlinks, set, "{value}");
        }
        for name in ["HF_HUB_DISABLE_SHARED_BLOBS", "HF_HUB_DISABLE_XET"] {
            assert!(read(&[(name, "1")]).no_shared_blobs && !read(&[(name, "0")]).no_shared_blobs);
        }
        assert!(!read(&[("HF_HUB_DISABLE_SYMLINKS_WARNING", "1")]).no_symlinks, "another variable");
        for (vars, offline) in [
            (&[("HF_HUB_OFFLINE", "1")][..], Some("HF_HUB_OFFLINE")),
            (&[("HF_HUB_OFFLINE", "0")], None),
            (&[("TRANSFORMERS_OFFLINE", "Yes")], Some("TRANSFORMERS_OFFLINE")),
            (&[("TRANSFORMERS_OFFLINE", "2")], None),
            (&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "on")], Some("TRANSFORMERS_OFFLINE")),
            (&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")], None),
            (&[("HF_DATASETS_OFFLINE", "1")], None),
        ] {
            assert_eq!(read(vars).offline, offline, "{vars:?}");
        }
        assert_eq!(read(&[("HF_TOKEN", " \"hf_x\"\r\n")]).find_token().unwrap().expose(), "hf_x");
        let none = read(&[("HF_TOKEN", "x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert!(none.token.is_none() && none.token_file.is_none());
        assert!(!format!("{:?}", read(&[("HF_TOKEN", "hf_secret")])).contains("hf_secret"));
    }
}
