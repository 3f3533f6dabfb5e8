//! Endpoint, access token and cache, from the environment variables of the Python library
//! huggingface_hub.

use super::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Default endpoint.
const ENDPOINT: &str = "https://huggingface.co";
/// Size limit of a token file, in bytes.
const MAX_TOKEN: u64 = 4096;

/// Access token and its origin. The secret is never printed.
#[derive(Clone)]
pub struct Token {
    secret: String,
    /// Variable or file, for errors.
    pub from: String,
}

/// Access to the Hub.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://huggingface.co` or a mirror: scheme, host and optional path, without a trailing
    /// slash.
    pub endpoint: String,
    /// Access token.
    pub token: Option<Token>,
    /// Cache: the parent directory of `models--ORG--NAME`.
    pub cache: PathBuf,
    /// PEM file of certificate authorities, in place of Mozilla's list.
    pub authorities: Option<PathBuf>,
    /// Offline: no network requests.
    pub offline: bool,
    /// Pause before the first retry; doubled for each further one.
    pub patience: Duration,
}

impl Token {
    /// Trims the text of a token. `from` names its origin in errors.
    ///
    /// # Errors
    /// An empty text, or one with blanks or non-printable or non-ASCII characters.
    pub fn new(text: &str, from: &str) -> Result<Token> {
        let secret = text.trim();
        match !secret.is_empty() && secret.bytes().all(|b| b.is_ascii_graphic()) {
            true => Ok(Token {
                secret: secret.to_owned(),
                from: from.to_owned(),
            }),
            false => Err(Error::Setting(format!(
                "{from}: a token has no blanks in it; it looks like hf_abc..."
            ))),
        }
    }

    pub(super) fn secret(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token from {}", self.from)
    }
}

impl Settings {
    /// From the environment: `HF_ENDPOINT`, `HF_TOKEN` or the file that `HF_TOKEN_PATH` names
    /// or `HF_HOME` contains, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_HUB_OFFLINE`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `SSL_CERT_FILE` or `REQUESTS_CA_BUNDLE`.
    ///
    /// # Errors
    /// No home directory, an invalid token, or an endpoint that is not an HTTP URL.
    pub fn from_env() -> Result<Settings> {
        Settings::from(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(get: &dyn Fn(&str) -> Option<String>) -> Result<Settings> {
        let path = |name: &str| get(name).map(|value| expanded(&value, get));
        let cache = || {
            let own = path("XDG_CACHE_HOME").or_else(|| Some(home(get)?.join(".cache")));
            let advice = "there is no home directory; set HF_HOME to a directory for downloads";
            own.ok_or_else(|| Error::Setting(advice.into()))
        };
        let hf_home =
            path("HF_HOME").map_or_else(|| Ok(cache()?.join("huggingface")), Ok::<_, Error>)?;
        let is_set = |name: &str| {
            let value = get(name).unwrap_or_default().to_ascii_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
        };
        let token = match get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN")) {
            _ if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            Some(text) => Some(Token::new(&text, "HF_TOKEN")?),
            None => stored(&path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token")))?,
        };
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            let what =
                format!("HF_ENDPOINT is '{endpoint}'; an address such as {ENDPOINT} is expected");
            return Err(Error::Setting(what));
        }
        Ok(Settings {
            endpoint,
            token,
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| hf_home.join("hub")),
            authorities: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            patience: Duration::from_secs(1),
        })
    }
}

/// Token stored by `hf auth login`.
fn stored(path: &Path) -> Result<Option<Token>> {
    // An unreadable token counts as none: the Hub answers 401 where it needs one.
    let Ok(meta) = path.metadata() else {
        return Ok(None);
    };
    if !meta.is_file() || meta.len() > MAX_TOKEN {
        return Ok(None);
    }
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => {
            Token::new(&text, &path.display().to_string()).map(Some)
        }
        _ => Ok(None),
    }
}

fn home(get: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    get("HOME")
        .or_else(|| get("USERPROFILE"))
        .map(PathBuf::from)
}

/// Expands a leading `~/` to the home directory.
fn expanded(path: &str, get: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    match (path.strip_prefix("~/"), home(get)) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let get = |name: &str| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Settings::from(&get)
    }

    #[test]
    fn variables_match_huggingface_hub() {
        let plain = settings(&[("HOME", "/h")]).unwrap();
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/h/.cache/huggingface/hub"));
        assert!(plain.token.is_none() && !plain.offline);
        let cache = |variables: &[(&str, &str)]| settings(variables).unwrap().cache;
        assert_eq!(
            cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]),
            Path::new("/x/huggingface/hub")
        );
        assert_eq!(
            cache(&[("HOME", "/h"), ("HF_HOME", "~/hf")]),
            Path::new("/h/hf/hub")
        );
        assert_eq!(
            cache(&[("HF_HOME", "/a"), ("HF_HUB_CACHE", "/b")]),
            Path::new("/b")
        );
        let set = settings(&[
            ("HF_HOME", "/a"),
            ("HF_ENDPOINT", "http://m.example/hf/"),
            ("HF_HUB_OFFLINE", "yes"),
        ]);
        let set = set.unwrap();
        assert_eq!(
            (set.endpoint.as_str(), set.offline),
            ("http://m.example/hf", true)
        );
        let authorities = |name: &str| {
            settings(&[("HOME", "/h"), (name, "~/ca.pem")])
                .unwrap()
                .authorities
        };
        for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"] {
            assert_eq!(authorities(name).as_deref(), Some(Path::new("/h/ca.pem")));
        }
        assert!(settings(&[]).unwrap_err().to_string().contains("HF_HOME"));
        assert!(
            settings(&[("HF_HOME", "/a"), ("HF_ENDPOINT", "mirror")])
                .unwrap_err()
                .to_string()
                .contains("mirror")
        );
    }

    #[test]
    fn tokens_come_from_variable_or_file_and_are_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let stored = settings(&[("HF_HOME", home)]).unwrap();
        assert_eq!(stored.token.as_ref().unwrap().secret(), "hf_file");
        let given = settings(&[("HF_HOME", home), ("HF_TOKEN", " hf_given ")]).unwrap();
        assert_eq!(given.token.as_ref().unwrap().secret(), "hf_given");
        assert!(
            !format!("{given:?}{stored:?}").contains("hf_given")
                && !format!("{stored:?}").contains("hf_file")
        );
        let none = settings(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap();
        assert!(none.token.is_none());
        let bad = settings(&[("HF_HOME", home), ("HF_TOKEN", "hf_se cret")])
            .unwrap_err()
            .to_string();
        assert!(!bad.contains("cret") && bad.contains("HF_TOKEN"), "{bad}");
    }
}
