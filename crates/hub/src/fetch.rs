//! Downloads a model into the cache.

use super::api::{Listing, Remote};
use super::cache::Cache;
use super::download::download;
use super::http::Client;
use super::needed::{MAX_SMALL, Selection, Weights, is_weights, select};
use super::{Address, Error, Result, Settings};
use quantier_core::progress::{Progress, Unit};
use quantier_core::words::size;
use quantier_gguf as format;
use quantier_gguf::gguf::shard_siblings;
use quantier_gguf::index::{Format, Index};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Parallel downloads.
const WORKERS: usize = 4;

/// Files of a model to download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Everything needed for a conversion.
    Everything,
    /// The same without weights. A GGUF is downloaded whole.
    Vocabulary,
}

/// Downloads the missing files of a model into the cache. Returns the path of the model: a snapshot
/// directory, or a file in one. `note` receives notes for the user.
///
/// # Errors
/// See [`Error`]. Finished and partial downloads are kept; the next call resumes them.
pub fn fetch(
    address: &Address,
    settings: &Settings,
    need: Need,
    progress: &dyn Progress,
    note: &dyn Fn(&str),
) -> Result<PathBuf> {
    let cache = Cache::new(&settings.cache, &address.repository);
    if settings.offline {
        let offline = || Error::Offline {
            address: address.to_string(),
            cache: settings.cache.clone(),
        };
        return cached(&cache, address, need).ok_or_else(offline);
    }
    let client = Client::new(settings, address)?;
    let listing = match Listing::get(&client, progress) {
        Ok(listing) => listing,
        // Without a connection, the cached model is used, as in huggingface_hub.
        Err(Error::Lost { host, why, .. }) if cached(&cache, address, need).is_some() => {
            note(&format!(
                "{address}: {host} cannot be reached ({why}); using the cached files"
            ));
            return cached(&cache, address, need).ok_or(Error::Stopped);
        }
        Err(error) => return Err(error),
    };
    let Selection {
        small,
        weights,
        model,
    } = select(
        address,
        &listing.files,
        need == Need::Vocabulary && address.file.is_none(),
    )?;
    cache.create()?;
    cache.set_commit(&address.revision, &listing.commit)?;
    let job = Fetch {
        client: &client,
        cache: &cache,
        listing: &listing,
        progress,
        note,
    };
    job.all(&small, Some(MAX_SMALL))?;
    match weights {
        Weights::Files(files) => job.all(&files, None)?,
        Weights::OfIndex(index) => {
            job.all(&[index.to_owned()], Some(MAX_SMALL))?;
            let path = cache.snapshot(&listing.commit).join(index);
            let files = Index::read(&path)
                .map_err(|e| client.wrong(e.to_string()))?
                .map_or_else(Vec::new, |index| index.parts());
            let listed: HashSet<&String> = listing.files.iter().collect();
            if let Some(file) = files.iter().find(|file| !listed.contains(file)) {
                let alternatives = format!(", and {index} names it");
                return Err(Error::NoFile {
                    address: address.to_string(),
                    file: file.clone(),
                    alternatives,
                });
            }
            job.all(&files, None)?;
        }
    }
    let snapshot = cache.snapshot(&listing.commit);
    Ok(model.map_or(snapshot.clone(), |file| snapshot.join(file)))
}

/// Path of the model, if the cache has all of it.
fn cached(cache: &Cache, address: &Address, need: Need) -> Option<PathBuf> {
    let commit = cache.commit(&address.revision)?;
    let snapshot = cache.snapshot(&commit);
    let has = |file: &str| cache.has(&commit, file);
    if let Some(file) = &address.file {
        let all = shard_siblings(file).unwrap_or_else(|| vec![file.clone()]);
        return all
            .iter()
            .all(|file| has(file))
            .then(|| snapshot.join(file));
    }
    let names: Vec<String> = snapshot
        .read_dir()
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let format = Format::of(&names);
    let is_weights = |name: &&String| is_weights(format, name);
    if !has("config.json")
        || !names.iter().any(|name| is_weights(&name)) && need == Need::Everything
    {
        // A repository of GGUFs with one of them in the cache.
        let mut firsts = names.iter().filter(|name| {
            let shards = shard_siblings(name);
            name.ends_with(".gguf")
                && shards.is_none_or(|all| all[0] == **name && all.iter().all(|file| has(file)))
        });
        let only = firsts.next()?;
        return firsts.next().is_none().then(|| snapshot.join(only));
    }
    let complete = match Index::read(&snapshot.join(format.index)).ok()? {
        Some(index) => index.parts().iter().all(|file| has(file)),
        None => names.iter().filter(is_weights).all(|name| {
            let parts = siblings(name, format.suffix);
            parts.iter().all(|file| has(file))
        }),
    };
    (complete || need == Need::Vocabulary).then_some(snapshot)
}

/// All files of a split checkpoint such as `model-00002-of-00003.safetensors`.
fn siblings(name: &str, suffix: &str) -> Vec<String> {
    let stem = name.strip_suffix(suffix).unwrap_or(name);
    let shards = shard_siblings(&format!("{stem}.gguf"));
    let renamed = |shard: String| format!("{}{suffix}", shard.trim_end_matches(".gguf"));
    shards.map_or_else(
        || vec![name.to_owned()],
        |all| all.into_iter().map(renamed).collect(),
    )
}

struct Fetch<'a> {
    client: &'a Client<'a>,
    cache: &'a Cache,
    listing: &'a Listing,
    progress: &'a dyn Progress,
    note: &'a dyn Fn(&str),
}

impl Fetch<'_> {
    /// Downloads the missing files, several in parallel.
    fn all(&self, files: &[String], max: Option<u64>) -> Result<()> {
        let commit = &*self.listing.commit;
        let mut missing = Vec::new();
        for file in files.iter().filter(|file| !self.cache.has(commit, file)) {
            if self.progress.cancelled() {
                return Err(Error::Stopped);
            }
            let remote = Remote::get(self.client, commit, file, self.progress)?;
            if let Some(max) = max.filter(|max| remote.size > *max) {
                let what = format!("{file} has {} bytes, above the limit of {max}", remote.size);
                return Err(self.client.wrong(what));
            }
            missing.push(remote);
        }
        let downloaded = |remote: &Remote| {
            let blob = self.cache.blob(&remote.etag);
            let part = self.cache.incomplete(&remote.etag);
            blob.metadata()
                .or_else(|_| part.metadata())
                .map_or(0, |meta| meta.len().min(remote.size))
        };
        let needed: u64 = missing
            .iter()
            .map(|remote| remote.size - downloaded(remote))
            .sum();
        if let Some(free) = self.cache.free().filter(|&free| free < needed) {
            let path = self.client.settings.cache.clone();
            return Err(format::Error::NoSpace { path, needed, free }.into());
        }
        if needed > 0 && max.is_none() {
            let to = self.client.settings.cache.display();
            let (address, n) = (self.client.address, missing.len());
            let files = if n == 1 {
                "1 file".to_owned()
            } else {
                format!("{n} files")
            };
            (self.note)(&format!(
                "{address}: {files}, {} to download to {to}",
                size(needed)
            ));
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.progress
            .begin(missing.iter().map(|remote| remote.size).sum(), Unit::Bytes);
        self.several(missing)
    }

    fn several(&self, remotes: Vec<Remote>) -> Result<()> {
        let (client, cache, commit) = (self.client, self.cache, &*self.listing.commit);
        let workers = WORKERS.min(remotes.len());
        let watch = Watch {
            progress: self.progress,
            failed: AtomicBool::new(false),
        };
        let (queue, failure) = (Mutex::new(remotes.into_iter()), Mutex::new(None));
        let failed = |error| {
            watch.failed.store(true, Ordering::SeqCst);
            // Only the first failure is reported; the others are its consequence.
            failure
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .get_or_insert(error);
        };
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().unwrap_or_else(|e| e.into_inner()).next();
                        let Some(remote) = next.filter(|_| !watch.cancelled()) else {
                            return;
                        };
                        if let Err(error) = download(client, cache, commit, remote, &watch) {
                            return failed(error);
                        }
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(error) => Err(error),
            None if self.progress.cancelled() => Err(Error::Stopped),
            None => Ok(()),
        }
    }
}

/// Stops all downloads after the first failure.
struct Watch<'a> {
    progress: &'a dyn Progress,
    failed: AtomicBool,
}

impl Progress for Watch<'_> {
    fn at(&self, name: &str) {
        self.progress.at(name);
    }

    fn advance(&self, amount: u64) {
        self.progress.advance(amount);
    }

    fn cancelled(&self) -> bool {
        self.failed.load(Ordering::SeqCst) || self.progress.cancelled()
    }
}
