//! HTTP requests: redirects without the token for other servers, errors with remedies, retries.

use super::{Address, Error, Result, Settings};
use quantier_core::progress::Progress;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Method, Request, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

/// Maximum number of consecutive redirects.
const MAX_REDIRECTS: usize = 8;
/// Maximum number of tries without progress.
const MAX_TRIES: u32 = 6;
/// Maximum number of tries before the first answer: there is probably no network.
const MAX_FIRST_TRIES: u32 = 3;
/// Longest pause between two tries, also if the server asks for more.
const MAX_PAUSE: Duration = Duration::from_secs(120);
/// Polling interval for cancellation during a pause.
const POLL: Duration = Duration::from_millis(50);
/// Timeout of a silent server.
const SILENCE: Duration = Duration::from_secs(30);

/// A connection to the Hub for one address.
pub(super) struct Client<'a> {
    agent: Agent,
    endpoint: Uri,
    /// True after an answer of any server.
    reached: AtomicBool,
    pub settings: &'a Settings,
    pub address: &'a Address,
}

/// An answer, after redirects.
pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
    /// ETag from the Hub itself, not from the storage server.
    pub etag: Option<String>,
    /// Size of the file, from the Hub itself.
    pub size: Option<u64>,
}

/// A failed request.
pub(super) enum Failure {
    /// No connection, or a broken one; retryable.
    Lost { host: String, why: String },
    /// A status other than success.
    Status {
        status: u16,
        code: String,
        url: String,
        wait: Option<Duration>,
    },
    /// Not retryable.
    Final(Error),
}

/// Policy for redirects to other servers.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Follow {
    Everywhere,
    AtHome,
}

/// Size limit of a certificate file in bytes. Mozilla's list has a quarter of a MB.
const MAX_AUTHORITIES: u64 = 16 << 20;

/// Certificates in a file.
fn authorities(path: &Path) -> Result<RootCerts> {
    let wrong = |what: &str| {
        Error::Setting(format!(
            "SSL_CERT_FILE or REQUESTS_CA_BUNDLE names {}: {what}",
            path.display()
        ))
    };
    let meta = path.metadata().map_err(|e| wrong(&e.to_string()))?;
    if !meta.is_file() || meta.len() > MAX_AUTHORITIES {
        return Err(wrong("that is not a certificate file"));
    }
    let bytes = std::fs::read(path).map_err(|e| wrong(&e.to_string()))?;
    let mut all = Vec::new();
    for item in parse_pem(&bytes) {
        match item {
            Ok(PemItem::Certificate(certificate)) => all.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(wrong(&error.to_string())),
        }
    }
    match all.is_empty() {
        true => Err(wrong("it contains no certificate; PEM is expected")),
        false => Ok(RootCerts::from(all)),
    }
}

impl<'a> Client<'a> {
    /// # Errors
    /// An invalid endpoint, or an invalid certificate file.
    pub(crate) fn new(settings: &'a Settings, address: &'a Address) -> Result<Client<'a>> {
        let wrong = |e| {
            Error::Setting(format!(
                "HF_ENDPOINT '{}' is not a valid address: {e}",
                settings.endpoint
            ))
        };
        let endpoint: Uri = settings.endpoint.parse().map_err(wrong)?;
        let roots = settings
            .authorities
            .as_deref()
            .map_or(Ok(RootCerts::WebPki), authorities)?;
        // `ask` follows redirects itself, to withhold the token from other servers.
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("quantier/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(2 * SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        Ok(Client {
            agent: config.new_agent(),
            endpoint,
            reached: AtomicBool::new(false),
            settings,
            address,
        })
    }

    /// URL of an [`escaped`] path below the endpoint.
    ///
    /// # Errors
    /// A path that does not make a valid URL.
    pub(crate) fn url(&self, path: &str) -> Result<Uri> {
        let url = format!("{}/{path}", self.settings.endpoint);
        url.parse()
            .map_err(|e| self.wrong(format!("'{url}' is not a valid address: {e}")))
    }

    /// Error for an invalid answer of the server.
    pub(crate) fn wrong(&self, what: impl Into<String>) -> Error {
        Error::Answer {
            address: self.address.to_string(),
            what: what.into(),
        }
    }

    /// Sends one request and follows redirects. Bytes before `from` are not requested.
    ///
    /// # Errors
    /// No connection, a status other than success, or a refused redirect.
    pub(crate) fn ask(
        &self,
        method: Method,
        url: &Uri,
        from: u64,
        follow: Follow,
    ) -> std::result::Result<Answer, Failure> {
        let mut url = url.clone();
        let (mut etag, mut size) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method.clone()).uri(url.clone());
            let at_home = same_origin(&url, &self.endpoint);
            if let Some(token) = self.settings.token.as_ref().filter(|_| at_home) {
                request =
                    request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let request = request
                .body(())
                .map_err(|e| Failure::Final(self.wrong(e.to_string())))?;
            let answer = self.agent.run(request).map_err(|e| self.lost(&url, e))?;
            self.reached.store(true, Ordering::Relaxed);
            let (parts, body) = answer.into_parts();
            let (status, headers) = (parts.status.as_u16(), parts.headers);
            let is_redirect = matches!(status, 301 | 302 | 303 | 307 | 308);
            if at_home {
                let plain = header(&headers, "etag").filter(|_| !is_redirect);
                etag = header(&headers, "x-linked-etag")
                    .or(plain)
                    .map(|e| unquoted(&e))
                    .or(etag);
                let length = header(&headers, "content-length").filter(|_| status == 200);
                size = header(&headers, "x-linked-size")
                    .or(length)
                    .and_then(|n| n.parse().ok())
                    .or(size);
            }
            if is_redirect {
                let next = header(&headers, "location").and_then(|to| resolved(&url, &to));
                let next = next.ok_or_else(|| {
                    Failure::Final(self.wrong(format!("{url} redirects to an invalid address")))
                })?;
                if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                    let what = format!(
                        "{} redirects from https to http, which is refused",
                        host(&url)
                    );
                    return Err(Failure::Final(self.wrong(what)));
                }
                if follow == Follow::Everywhere || same_origin(&next, &url) {
                    url = next;
                    continue;
                }
            } else if !(200..300).contains(&status) && status != 416 {
                let code = header(&headers, "x-error-code").unwrap_or_default();
                let wait = header(&headers, "retry-after")
                    .and_then(|s| s.parse().ok())
                    .map(Duration::from_secs);
                return Err(Failure::Status {
                    status,
                    code,
                    url: without_query(&url),
                    wait,
                });
            }
            return Ok(Answer {
                status,
                headers,
                body,
                etag,
                size,
            });
        }
        Err(Failure::Final(self.wrong(format!(
            "more than {MAX_REDIRECTS} redirects in a row from {}",
            host(&url)
        ))))
    }

    fn lost(&self, url: &Uri, error: ureq::Error) -> Failure {
        match error {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
                let what = format!("{} has no valid certificate: {error}", host(url));
                Failure::Final(self.wrong(what))
            }
            // A rejected certificate arrives as an error of the stream.
            ureq::Error::Io(e)
                if e.get_ref()
                    .is_some_and(|e| e.to_string().contains("certificate")) =>
            {
                Failure::Final(self.wrong(format!("{} has no valid certificate: {e}", host(url))))
            }
            error => Failure::Lost {
                host: host(url),
                why: error.to_string(),
            },
        }
    }

    /// Error for a failure that is not retried.
    pub(crate) fn error(&self, failure: Failure, file: Option<&str>) -> Error {
        let address = self.address.to_string();
        match (failure, &self.settings.token) {
            (Failure::Final(error), _) => error,
            (Failure::Lost { host, why }, _) => Error::Lost { address, host, why },
            (Failure::Status { status: 401, .. }, None) => Error::Unauthorized(address),
            (Failure::Status { status: 401, .. }, Some(token)) => Error::BadToken {
                address,
                from: token.from.clone(),
            },
            (Failure::Status { status: 403, .. }, _) => {
                let page = format!("{}/{}", self.settings.endpoint, self.address.repository);
                Error::Forbidden { address, page }
            }
            (
                Failure::Status {
                    status: 404, code, ..
                },
                _,
            ) => match (code.as_str(), file) {
                ("RevisionNotFound", _) => Error::NoRevision(address),
                (_, Some(file)) => Error::NoFile {
                    address,
                    file: file.into(),
                    alternatives: " (404)".into(),
                },
                _ => Error::NoModel(address),
            },
            (Failure::Status { status: 429, .. }, _) => Error::TooMany(address),
            (Failure::Status { status, url, .. }, _) => Error::Status {
                address,
                url,
                status,
            },
        }
    }

    /// Retries a request while that can help.
    ///
    /// # Errors
    /// The last failure, or cancellation.
    pub(crate) fn with_retries<T>(
        &self,
        file: Option<&str>,
        progress: &dyn Progress,
        mut ask: impl FnMut() -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut backoff = Backoff::new(self);
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(failure) => backoff.after(failure, file, progress)?,
            }
        }
    }
}

/// Retry state: number of tries and length of the next pause.
pub(super) struct Backoff<'a> {
    client: &'a Client<'a>,
    tries: u32,
}

impl<'a> Backoff<'a> {
    pub(crate) fn new(client: &'a Client<'a>) -> Backoff<'a> {
        Backoff { client, tries: 0 }
    }

    /// Resets the number of tries after progress.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure itself if it is not retryable, or cancellation.
    pub(crate) fn after(
        &mut self,
        failure: Failure,
        file: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let asked = match &failure {
            Failure::Lost { .. } => None,
            Failure::Status {
                status: 408 | 429 | 500 | 502 | 503 | 504,
                wait,
                ..
            } => *wait,
            _ => return Err(self.client.error(failure, file)),
        };
        let most = if self.client.reached.load(Ordering::Relaxed) {
            MAX_TRIES
        } else {
            MAX_FIRST_TRIES
        };
        self.tries += 1;
        if self.tries >= most || asked.is_some_and(|wait| wait > MAX_PAUSE) {
            return Err(self.client.error(failure, file));
        }
        let own = self.client.settings.patience * (1 << (self.tries - 1));
        paused(asked.unwrap_or(own).min(MAX_PAUSE), progress)
    }
}

/// Sleeps unless cancelled.
pub(super) fn paused(pause: Duration, progress: &dyn Progress) -> Result<()> {
    let end = Instant::now() + pause;
    loop {
        if progress.cancelled() {
            return Err(Error::Stopped);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(POLL));
    }
}

/// A header as text.
pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// ETag without quotes and weak prefix.
pub(super) fn unquoted(etag: &str) -> String {
    etag.strip_prefix("W/")
        .unwrap_or(etag)
        .trim_matches('"')
        .to_owned()
}

/// True if scheme, host and port are equal.
fn same_origin(a: &Uri, b: &Uri) -> bool {
    let origin = |uri: &Uri| {
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri
            .port_u16()
            .unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme, uri.host()?.to_ascii_lowercase(), port))
    };
    origin(a).is_some() && origin(a) == origin(b)
}

fn host(url: &Uri) -> String {
    url.authority().map_or_else(
        || url.to_string(),
        |a| a.as_str().rsplit('@').next().unwrap_or_default().to_owned(),
    )
}

/// URL for messages: a query may contain a signature.
fn without_query(url: &Uri) -> String {
    format!(
        "{}://{}{}",
        url.scheme_str().unwrap_or_default(),
        host(url),
        url.path()
    )
}

/// The absolute URL of a redirect.
fn resolved(from: &Uri, to: &str) -> Option<Uri> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let text = if to.starts_with("http://") || to.starts_with("https://") {
        to.to_owned()
    } else if to.starts_with("//") {
        format!("{scheme}:{to}")
    } else if to.starts_with('/') {
        format!("{scheme}://{authority}{to}")
    } else if to.is_empty() || to.contains("://") {
        return None;
    } else {
        let directory = from
            .path()
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{to}")
    };
    text.parse()
        .ok()
        .filter(|uri: &Uri| uri.host().is_some_and(|host| !host.is_empty()))
}

/// Percent-encodes a path, except for slashes.
pub(super) fn escaped(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(byte.into())
            }
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let from: Uri = "https://hub.example:8443/a/b?x=1".parse().unwrap();
        let to = |text: &str| resolved(&from, text).map(|uri| uri.to_string());
        assert_eq!(to("/c?d").unwrap(), "https://hub.example:8443/c?d");
        assert_eq!(to("c").unwrap(), "https://hub.example:8443/a/c");
        assert_eq!(to("//other.example/c").unwrap(), "https://other.example/c");
        assert_eq!(
            to("http://other.example/c").unwrap(),
            "http://other.example/c"
        );
        assert_eq!((to("ftp://other.example/c"), to("")), (None, None));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://hub.example/a", "https://HUB.example:443/b"));
        assert!(!same("https://hub.example/", "http://hub.example/"));
        assert!(!same("http://127.0.0.1:80/", "http://127.0.0.1:81/"));
        assert!(!same("https://hub.example/", "https://hub.example.evil/"));
    }

    #[test]
    fn paths_and_etags() {
        assert_eq!(escaped("a b/ü#?%.gguf"), "a%20b/%C3%BC%23%3F%25.gguf");
        assert_eq!(unquoted("W/\"abc\""), "abc");
        assert_eq!(unquoted("abc"), "abc");
    }
}
