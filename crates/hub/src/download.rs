//! Downloads one file into the cache: resumable, one writer at a time, verified before the final
//! rename.

use super::api::Remote;
use super::cache::Cache;
use super::http::{Answer, Backoff, Client, Failure, Follow, header, paused, unquoted};
use super::{Error, Result};
use quantier_core::progress::Progress;
use quantier_gguf as format;
use quantier_gguf::hex;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;
use ureq::http::Method;

/// Size of a read in bytes.
const BUFFER: usize = 256 << 10;
/// Polling interval for another process's lock.
const LOCK_POLL: Duration = Duration::from_millis(200);
/// Maximum number of restarts of a file that changes on the server.
const MAX_RESTARTS: u32 = 4;

/// Downloads a file of a commit into the cache and links it.
pub(super) fn download(
    client: &Client<'_>,
    cache: &Cache,
    commit: &str,
    mut remote: Remote,
    progress: &dyn Progress,
) -> Result<()> {
    for _ in 0..MAX_RESTARTS {
        let mut blob = Blob {
            client,
            cache,
            commit,
            remote: &remote,
            progress,
            reported: 0,
        };
        if blob.write()? {
            return cache.link(commit, &remote.file, &remote.etag);
        }
        // The file has changed on the server: request its ETag and size again.
        remote = Remote::get(client, commit, &remote.file, progress)?;
    }
    Err(client.wrong(format!("{} keeps changing; try again later", remote.file)))
}

/// The download of a blob.
struct Blob<'a> {
    client: &'a Client<'a>,
    cache: &'a Cache,
    commit: &'a str,
    remote: &'a Remote,
    progress: &'a dyn Progress,
    /// Bytes reported to progress. They are not reported again after a restart.
    reported: u64,
}

/// The partial file.
struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    /// SHA-256 of the bytes so far, if the Hub states the file's.
    sum: Option<Sha256>,
}

/// The end of one answer.
enum End {
    /// All bytes have arrived.
    Complete,
    /// The file on the server has changed.
    Changed,
}

impl Blob<'_> {
    /// Completes the blob; `false` if the file has changed on the server.
    fn write(&mut self) -> Result<bool> {
        let Remote { etag, size, file } = self.remote;
        let (blob, size) = (self.cache.blob(etag), *size);
        let _lock = self.locked()?;
        if blob
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.len() == size)
        {
            self.report(size);
            return Ok(true);
        }
        let mut part = self.part()?;
        let mut wrong = None;
        loop {
            if let End::Changed = self.filled(&mut part)? {
                return Ok(false);
            }
            let actual = part.sum.take().map(|sum| hex(&sum.finalize()));
            match (actual, self.remote.sha256()) {
                (Some(actual), Some(expected)) if actual != expected => {
                    // Bytes of an earlier run can cause the first mismatch, but not the second.
                    part.restart()?;
                    if wrong.replace(actual.clone()).is_some() {
                        let (address, file) = (self.client.address.to_string(), file.clone());
                        let _ = std::fs::remove_file(&part.path);
                        return Err(Error::Sum {
                            address,
                            file,
                            actual,
                            expected: expected.to_owned(),
                        });
                    }
                }
                _ => break,
            }
        }
        part.file.sync_all().map_err(|e| part.fail("write", e))?;
        std::fs::rename(&part.path, &blob).map_err(|e| part.fail("rename", e))?;
        Ok(true)
    }

    /// Waits for the lock of this blob.
    fn locked(&self) -> Result<Option<File>> {
        let path = self.cache.lock(&self.remote.etag);
        let fail = |source| {
            Error::Format(format::Error::Io {
                path: path.clone(),
                action: "create",
                source,
            })
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(fail)?;
        let mut waiting = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                // Some network file systems lack locks.
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) if !waiting => {
                    waiting = true;
                    self.progress.at(&format!(
                        "{}: another process downloads it",
                        self.remote.file
                    ));
                }
                Err(TryLockError::WouldBlock) => paused(LOCK_POLL, self.progress)?,
            }
        }
    }

    /// Opens the partial file of an earlier run and hashes its bytes.
    fn part(&self) -> Result<Part> {
        let path = self.cache.incomplete(&self.remote.etag);
        let fail = |source| {
            Error::Format(format::Error::Io {
                path: path.clone(),
                action: "create",
                source,
            })
        };
        if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
            return Err(fail(std::io::Error::other("it is not a file; remove it")));
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        let mut part = Part {
            path: path.clone(),
            file,
            len,
            sum: None,
        };
        if len > self.remote.size {
            part.restart()?;
        }
        part.sum = self.remote.sha256().map(|_| Sha256::new());
        let mut buffer = vec![0; BUFFER];
        let mut left = part.len;
        while let Some(sum) = part.sum.as_mut().filter(|_| left > 0) {
            if self.progress.cancelled() {
                return Err(Error::Stopped);
            }
            let n = part
                .file
                .read(&mut buffer[..BUFFER.min(left as usize)])
                .map_err(|e| part_error(&path, "read", e))?;
            if n == 0 {
                return Err(part_error(
                    &path,
                    "read",
                    std::io::ErrorKind::UnexpectedEof.into(),
                ));
            }
            sum.update(&buffer[..n]);
            left -= n as u64;
        }
        Ok(part)
    }

    /// Requests missing bytes until the file is complete.
    fn filled(&mut self, part: &mut Part) -> Result<End> {
        let file = &*self.remote.file;
        let mut backoff = Backoff::new(self.client);
        let mut version = None;
        self.progress.at(file);
        if part.sum.is_none() && self.remote.sha256().is_some() {
            part.sum = Some(Sha256::new());
        }
        self.report(part.len);
        while part.len < self.remote.size {
            let before = part.len;
            match self.one_answer(part, &mut version) {
                Ok(End::Changed) => return Ok(End::Changed),
                Ok(End::Complete) => {}
                Err(failure) => {
                    if part.len > before {
                        backoff.reset();
                    }
                    backoff.after(failure, Some(file), self.progress)?;
                }
            }
        }
        Ok(End::Complete)
    }

    /// Writes the bytes of one answer. `version` is the ETag of the storage server, which later
    /// answers must repeat.
    fn one_answer(
        &mut self,
        part: &mut Part,
        version: &mut Option<String>,
    ) -> std::result::Result<End, Failure> {
        let Remote { file, etag, size } = self.remote;
        let client = self.client;
        let url = client.url(&format!(
            "{}/resolve/{}/{}",
            client.address.repository,
            self.commit,
            super::http::escaped(file)
        ))?;
        let answer = client.ask(Method::GET, &url, part.len, Follow::Everywhere)?;
        if answer.etag.as_ref().is_some_and(|is| is != etag)
            || answer.size.is_some_and(|is| is != *size)
        {
            return Ok(End::Changed);
        }
        let lost = |why: &str| Failure::Lost {
            host: "the Hub's store".into(),
            why: format!("{file}: {why}"),
        };
        let is = header(&answer.headers, "etag").map(|etag| unquoted(&etag));
        let other = version.is_some() && is.is_some() && *version != is;
        match answer.status {
            206 if other => {
                // The rest of another version: the bytes so far are useless.
                *version = None;
                part.restart()?;
                return Err(lost("it changed in the middle of the download"));
            }
            206 => match range(&answer) {
                Some((first, total))
                    if first == part.len && total.is_none_or(|total| total == *size) => {}
                _ => {
                    part.restart()?;
                    return Err(lost("the answer is not the requested range"));
                }
            },
            // The server ignores ranges and sends the whole file.
            200 if part.len > 0 => part.restart()?,
            200 => {}
            416 => {
                part.restart()?;
                return Err(lost("the server does not have this range"));
            }
            status => {
                let url = client.settings.endpoint.clone();
                return Err(Failure::Status {
                    status,
                    code: String::new(),
                    url,
                    wait: None,
                });
            }
        }
        *version = is;
        let mut body = answer.body;
        let mut reader = body.as_reader();
        let mut buffer = vec![0; BUFFER];
        while part.len < *size {
            if self.progress.cancelled() {
                return Err(Failure::Final(Error::Stopped));
            }
            let n = match reader.read(&mut buffer) {
                Ok(0) => return Err(lost("the connection ended before the file")),
                Ok(n) => n,
                Err(e) => return Err(lost(&e.to_string())),
            };
            if n as u64 > *size - part.len {
                part.restart()?;
                return Err(lost("more bytes arrived than it has"));
            }
            part.append(&buffer[..n])?;
            self.report(part.len);
        }
        Ok(End::Complete)
    }

    /// Reports the first `len` bytes to progress.
    fn report(&mut self, len: u64) {
        if len > self.reported {
            self.progress.advance(len - self.reported);
            self.reported = len;
        }
    }
}

impl Part {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|e| part_error(&self.path, "write", e))?;
        if let Some(sum) = &mut self.sum {
            sum.update(bytes);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Discards all bytes.
    fn restart(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .map_err(|e| part_error(&self.path, "write", e))?;
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(|e| part_error(&self.path, "write", e))?;
        self.len = 0;
        self.sum = self.sum.as_ref().map(|_| Sha256::new());
        Ok(())
    }

    fn fail(&self, action: &'static str, source: std::io::Error) -> Error {
        part_error(&self.path, action, source)
    }
}

fn part_error(path: &std::path::Path, action: &'static str, source: std::io::Error) -> Error {
    Error::Format(format::Error::Io {
        path: path.to_owned(),
        action,
        source,
    })
}

/// Parses `bytes FIRST-LAST/TOTAL` into the first byte and, if stated, the total.
fn range(answer: &Answer) -> Option<(u64, Option<u64>)> {
    let text = header(&answer.headers, "content-range")?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-')?.0.trim().parse().ok()?;
    Some((first, total.trim().parse().ok()))
}
