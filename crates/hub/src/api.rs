//! The Hub's API: the commit and files of a revision, ETag and size of a file.

use super::address::{is_commit, is_inside};
use super::http::{Client, Failure, Follow, escaped};
use super::{Error, Result};
use quantier_core::progress::Progress;
use quantier_gguf::json;
use std::io::Read;
use ureq::http::Method;

/// Size limit of a listing, in bytes. One file takes about 100.
const MAX_LISTING: u64 = 32 << 20;
/// Limit on the files of a listing.
const MAX_FILES: usize = 200_000;

/// The files of one commit.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    pub commit: String,
    /// Names of files; names that leave the repository are dropped.
    pub files: Vec<String>,
}

impl Listing {
    /// Requests the listing of the address's revision.
    ///
    /// # Errors
    /// A failed request, or a listing that is malformed or too long.
    pub(crate) fn get(client: &Client<'_>, progress: &dyn Progress) -> Result<Listing> {
        let address = client.address;
        // A slash in a revision is not a path separator.
        let revision = escaped(&address.revision).replace('/', "%2F");
        let url = client.url(&format!(
            "api/models/{}/revision/{revision}",
            address.repository
        ))?;
        let bytes = client.with_retries(None, progress, || {
            let answer = client.ask(Method::GET, &url, 0, Follow::AtHome)?;
            if answer.status != 200 {
                let what = format!(
                    "the Hub answers a request for the file list with status {}",
                    answer.status
                );
                return Err(Failure::Final(client.wrong(what)));
            }
            let mut bytes = Vec::new();
            let mut body = answer.body;
            body.as_reader()
                .take(MAX_LISTING + 1)
                .read_to_end(&mut bytes)
                .map_err(|e| Failure::Lost {
                    host: client.settings.endpoint.clone(),
                    why: e.to_string(),
                })?;
            Ok(bytes)
        })?;
        Listing::parse(&bytes)
            .map_err(|what| client.wrong(format!("the Hub's file list is invalid: {what}")))
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Listing, String> {
        if bytes.len() as u64 > MAX_LISTING {
            return Err(format!("it is longer than {MAX_LISTING} bytes"));
        }
        let listing = json::object(bytes)?;
        let commit = listing
            .get("sha")
            .and_then(|sha| sha.as_str())
            .filter(|sha| is_commit(sha));
        let commit = commit.ok_or("its 'sha' is not a commit")?.to_owned();
        let siblings = listing
            .get("siblings")
            .and_then(|list| list.as_array())
            .ok_or("its 'siblings' are not a list")?;
        if siblings.len() > MAX_FILES {
            return Err(format!("it has more than {MAX_FILES} files"));
        }
        let names = siblings
            .iter()
            .filter_map(|file| file.get("rfilename")?.as_str());
        Ok(Listing {
            commit,
            files: names
                .filter(|name| is_inside(name))
                .map(str::to_owned)
                .collect(),
        })
    }
}

/// Name, ETag and size of a file on the Hub.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub file: String,
    /// Name of the blob in the cache.
    pub etag: String,
    pub size: u64,
}

impl Remote {
    /// Requests the headers of a file of a commit.
    ///
    /// # Errors
    /// A failed request, or an answer without a valid ETag or a size.
    pub(crate) fn get(
        client: &Client<'_>,
        commit: &str,
        file: &str,
        progress: &dyn Progress,
    ) -> Result<Remote> {
        let url = client.url(&format!(
            "{}/resolve/{commit}/{}",
            client.address.repository,
            escaped(file)
        ))?;
        let answer = client.with_retries(Some(file), progress, || {
            client.ask(Method::HEAD, &url, 0, Follow::AtHome)
        })?;
        let wrong = |what: &str| client.wrong(format!("the Hub's answer for {file} {what}"));
        let etag = answer
            .etag
            .filter(|etag| is_etag(etag))
            .ok_or_else(|| wrong("has no usable ETag"))?;
        let size = answer
            .size
            .ok_or_else(|| wrong("does not state its size"))?;
        Ok(Remote {
            file: file.to_owned(),
            etag,
            size,
        })
    }

    /// SHA-256 of the contents, if the ETag is one.
    pub(crate) fn sha256(&self) -> Option<&str> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (self.etag.len() == 64 && self.etag.bytes().all(hex)).then_some(&*self.etag)
    }
}

/// True for an ETag that is usable as the name of a blob.
fn is_etag(etag: &str) -> bool {
    (8..=128).contains(&etag.len())
        && etag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Final(e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_checked() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let names = r#"{"rfilename": "config.json"}, {"rfilename": "../../.bashrc"}, {"rfilename": "/etc/passwd"},
            {"rfilename": "a\\..\\b"}, {"rfilename": 7}, 8, {"rfilename": "d/x.gguf"}, {"rfilename": "a\u0000b"}"#;
        let listing =
            Listing::parse(format!(r#"{{"sha": "{commit}", "siblings": [{names}]}}"#).as_bytes())
                .unwrap();
        assert_eq!(
            (listing.commit.as_str(), listing.files),
            (commit, vec!["config.json".into(), "d/x.gguf".into()])
        );
        for bad in [
            r#"{"sha": "../../x", "siblings": []}"#,
            r#"{"siblings": []}"#,
            r#"{"sha": "0123456789abcdef0123456789abcdef01234567"}"#,
            "[]",
            "",
            "{",
        ] {
            assert!(Listing::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = format!("{{\"a\": {}", "[".repeat(100_000));
        assert!(Listing::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn etags_with_special_characters_are_refused_as_file_names() {
        assert!(is_etag("0123456789abcdef0123456789abcdef01234567"));
        for bad in [
            "",
            "..",
            "../../../x",
            "a/b/c/d/e/f",
            "short",
            "white space",
            ".hidden-one",
        ] {
            assert!(!is_etag(bad), "{bad}");
        }
    }
}
