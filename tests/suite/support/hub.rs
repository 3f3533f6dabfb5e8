//! A local Hub with two servers, like the real one. The first serves models and small files and
//! redirects requests for large files to the second, a storage server of another origin. Both can
//! be made to misbehave.

use quantier_core::rng::Rng;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Files from this size on are on the storage server.
pub const LARGE: usize = 32 << 10;

/// A recorded request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// True for requests to the storage server.
    pub store: bool,
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

/// Files, recorded requests and misbehaviour of the servers.
pub struct State {
    pub model: String,
    /// Other models with the same files.
    pub others: Vec<String>,
    pub revisions: Vec<String>,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Replaces the names of `files` in listings.
    pub listing: Option<Vec<String>>,
    pub asked: Vec<Asked>,
    /// The next answers of the Hub: status, headers.
    pub answers: VecDeque<(u16, &'static str)>,
    /// The next answers of the storage server.
    pub store_answers: VecDeque<(u16, &'static str)>,
    /// The token required by the Hub.
    pub token: Option<String>,
    /// Number of bodies that end at a random byte.
    pub cuts: u32,
    pub rng: Rng,
    /// True if listings can be cut too.
    pub cuts_listing: bool,
    pub ignores_ranges: bool,
    /// Bodies of the storage server are wrong from this byte on.
    pub wrong_from: Option<usize>,
    /// Size stated in answers to HEAD, for all large files.
    pub said_size: Option<u64>,
    /// Number of answers of the storage server after which all files change.
    pub changes_after: Option<usize>,
    /// True if the storage server's ETag changes with every answer.
    pub store_versions: bool,
    /// Bytes of bodies sent by the storage server.
    pub sent: u64,
    /// Redirect target of large files; the storage server by default.
    pub location: Option<String>,
}

pub struct Hub {
    state: Arc<Mutex<State>>,
    pub endpoint: String,
}

impl Hub {
    /// Serves a model `org/name` until the test ends.
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Hub {
        let state = State {
            model: "org/name".into(),
            others: Vec::new(),
            revisions: vec!["main".into(), COMMIT.into()],
            files,
            listing: None,
            asked: Vec::new(),
            answers: VecDeque::new(),
            store_answers: VecDeque::new(),
            token: None,
            cuts: 0,
            rng: Rng::new(5),
            cuts_listing: false,
            ignores_ranges: false,
            wrong_from: None,
            said_size: None,
            changes_after: None,
            store_versions: false,
            sent: 0,
            location: None,
        };
        let state = Arc::new(Mutex::new(state));
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, store) = (bind(), bind());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (endpoint, store_address) = (address(&hub), address(&store));
        for (listener, is_store) in [(hub, false), (store, true)] {
            let (state, store) = (state.clone(), store_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, store) = (state.clone(), store.clone());
                    // A disconnected client is not an error of the server.
                    std::thread::spawn(move || serve(stream, &state, is_store, &store));
                }
            });
        }
        Hub { state, endpoint }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Requests since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }
}

/// An ETag like the Hub's: the SHA-256 of large files, a short hash of small ones.
pub fn etag(bytes: &[u8]) -> String {
    let sum: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    if bytes.len() < LARGE {
        sum[..40].to_owned()
    } else {
        sum
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>, is_store: bool, store: &str) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    // Connections are kept open, as in real servers.
    while let Some(asked) = read(&mut reader, is_store) {
        let mut state = state.lock().unwrap();
        state.asked.push(asked.clone());
        let answer = if is_store {
            stored(&mut state, &asked)
        } else {
            hub(&mut state, &asked, store)
        };
        let cut = match state.cuts {
            0 => None,
            _ if answer.body.is_empty() || asked.method == "HEAD" => None,
            _ if asked.path.starts_with("/api/") && !state.cuts_listing => None,
            _ => {
                state.cuts -= 1;
                Some(state.rng.below(answer.body.len() as u64) as usize)
            }
        };
        if is_store {
            state.sent += cut.unwrap_or(answer.body.len()) as u64;
        }
        drop(state);
        let mut head = format!(
            "HTTP/1.1 {} X\r\nContent-Length: {}\r\n",
            answer.status,
            answer.body.len()
        );
        answer
            .headers
            .iter()
            .for_each(|header| head += &format!("{header}\r\n"));
        let mut stream = &stream;
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        if asked.method != "HEAD" {
            stream
                .write_all(&answer.body[..cut.unwrap_or(answer.body.len())])
                .ok()?;
        }
        if cut.is_some() {
            let _ = stream.shutdown(Shutdown::Both);
            return None;
        }
    }
    Some(())
}

fn read(reader: &mut BufReader<TcpStream>, store: bool) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut asked = Asked {
        store,
        method,
        path,
        range: None,
        token: None,
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Some(asked);
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = Some(value.to_owned()),
            "authorization" => asked.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
}

struct Answer {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
}

fn plain(status: u16, header: &str) -> Answer {
    let headers = if header.is_empty() {
        Vec::new()
    } else {
        vec![header.to_owned()]
    };
    Answer {
        status,
        headers,
        body: Vec::new(),
    }
}

fn hub(state: &mut State, asked: &Asked, store: &str) -> Answer {
    if let Some((status, header)) = state.answers.pop_front() {
        return plain(status, header);
    }
    if state.token.is_some() && asked.token != state.token {
        return plain(401, "X-Error-Code: RepoNotFound");
    }
    if let Some(rest) = asked.path.strip_prefix("/api/models/") {
        let Some((model, revision)) = rest.split_once("/revision/") else {
            return plain(404, "");
        };
        if model != state.model && !state.others.iter().any(|other| other == model) {
            return plain(404, "X-Error-Code: RepoNotFound");
        }
        if !state.revisions.contains(&revision.replace("%2F", "/")) {
            return plain(404, "X-Error-Code: RevisionNotFound");
        }
        let names: Vec<&String> = state
            .listing
            .as_ref()
            .map_or(state.files.keys().collect(), |l| l.iter().collect());
        let siblings: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({ "rfilename": name }))
            .collect();
        let body =
            serde_json::json!({ "id": model, "sha": COMMIT, "siblings": siblings }).to_string();
        return Answer {
            status: 200,
            headers: vec!["Content-Type: application/json".into()],
            body: body.into(),
        };
    }
    let named = std::iter::once(&state.model)
        .chain(&state.others)
        .find_map(|model| {
            let prefix = format!("/{model}/resolve/{COMMIT}/");
            asked.path.strip_prefix(&prefix)
        });
    let file = named.and_then(|name| Some((name.to_owned(), state.files.get(name)?.clone())));
    let Some((name, bytes)) = file else {
        return plain(404, "X-Error-Code: EntryNotFound");
    };
    let etag = etag(&bytes);
    if bytes.len() >= LARGE {
        let location = state
            .location
            .clone()
            .unwrap_or_else(|| format!("{store}/{name}?signature=secret"));
        let headers = vec![
            format!("Location: {location}"),
            format!("X-Linked-Etag: \"{etag}\""),
            format!(
                "X-Linked-Size: {}",
                state.said_size.unwrap_or(bytes.len() as u64)
            ),
            format!("X-Repo-Commit: {COMMIT}"),
        ];
        return Answer {
            status: 302,
            headers,
            body: Vec::new(),
        };
    }
    let mut answer = part(state, asked, &bytes);
    answer.headers.push(format!("ETag: W/\"{etag}\""));
    answer.headers.push(format!("X-Repo-Commit: {COMMIT}"));
    answer
}

fn stored(state: &mut State, asked: &Asked) -> Answer {
    if let Some((status, header)) = state.store_answers.pop_front() {
        return plain(status, header);
    }
    let name = asked.path[1..].split('?').next().unwrap_or_default();
    let Some(mut bytes) = state.files.get(name).cloned() else {
        return plain(404, "");
    };
    if let Some(from) = state.wrong_from.filter(|&from| from < bytes.len()) {
        bytes[from..].fill(b'?');
    }
    let mut answer = part(state, asked, &bytes);
    let version = if state.store_versions {
        state.asked.len()
    } else {
        0
    };
    answer
        .headers
        .push(format!("ETag: \"store-{version}-{}\"", &etag(&bytes)[..8]));
    if let Some(left) = state.changes_after {
        if left == 0 {
            state
                .files
                .values_mut()
                .for_each(|bytes| bytes.iter_mut().for_each(|b| *b = b.wrapping_add(1)));
        }
        state.changes_after = left.checked_sub(1);
    }
    answer
}

/// The whole file, or the requested range.
fn part(state: &State, asked: &Asked, bytes: &[u8]) -> Answer {
    let from = asked.range.as_ref().and_then(|r| {
        r.strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    match from {
        None => Answer {
            status: 200,
            headers: Vec::new(),
            body: bytes.to_vec(),
        },
        Some(_) if state.ignores_ranges => Answer {
            status: 200,
            headers: Vec::new(),
            body: bytes.to_vec(),
        },
        Some(from) if from >= bytes.len() => plain(416, ""),
        Some(from) => {
            let range = format!(
                "Content-Range: bytes {from}-{}/{}",
                bytes.len() - 1,
                bytes.len()
            );
            Answer {
                status: 206,
                headers: vec![range],
                body: bytes[from..].to_vec(),
            }
        }
    }
}
