//! `hf://` against a local Hub that drops connections, redirects, changes its files and sends wrong
//! data.

use crate::support::hub::{COMMIT, Hub, LARGE, etag};
use quantier_core::progress::{Progress, Silent};
use quantier_core::rng::Rng;
use quantier_hub::{Address, Error, Need, Settings, Token, fetch};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];
const INDEX: &str = "model.safetensors.index.json";
/// Files expected in the cache's snapshot.
const WANTED: [&str; 6] = [
    "README.md",
    "config.json",
    SHARDS[0],
    SHARDS[1],
    INDEX,
    "tokenizer.json",
];

/// Pseudo-random bytes.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.below(256) as u8).collect()
}

/// Files of a typical repository, including unused ones.
fn files() -> BTreeMap<String, Vec<u8>> {
    let index = format!(
        r#"{{"weight_map": {{"a": "{}", "b": "{}"}}}}"#,
        SHARDS[0], SHARDS[1]
    );
    let list: Vec<(&str, Vec<u8>)> = vec![
        ("config.json", b"{}".to_vec()),
        ("README.md", bytes(1, 9000)),
        ("tokenizer.json", bytes(2, LARGE + 7)),
        (INDEX, index.into()),
        (SHARDS[0], bytes(3, 700_000)),
        (SHARDS[1], bytes(4, 300_001)),
        ("model-00003-of-00003.safetensors", bytes(5, LARGE)),
        ("pytorch_model.bin", bytes(6, LARGE)),
        ("original/config.json", bytes(7, 10)),
        ("quants/m-Q4_K_M.gguf", bytes(8, 100_000)),
    ];
    list.into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect()
}

struct Place {
    hub: Hub,
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        Place {
            hub: Hub::start(files()),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            endpoint: self.hub.endpoint.clone(),
            token: None,
            cache: self.dir.path().join("hub"),
            authorities: None,
            offline: false,
            patience: Duration::from_millis(1),
        }
    }

    fn fetch(&self, address: &str) -> Result<PathBuf, Error> {
        self.fetch_with(address, &self.settings(), &Silent)
    }

    fn fetch_with(
        &self,
        address: &str,
        settings: &Settings,
        progress: &dyn Progress,
    ) -> Result<PathBuf, Error> {
        fetch(
            &Address::parse(address).unwrap(),
            settings,
            Need::Everything,
            progress,
            &|_| {},
        )
    }

    /// The error of a fetch that must fail, with all these parts.
    #[track_caller]
    fn fails(&self, address: &str, parts: &[&str]) {
        let error = self.fetch(address).unwrap_err().to_string();
        parts
            .iter()
            .for_each(|part| assert!(error.contains(part), "no {part:?} in: {error}"));
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("hub/models--org--name")
    }

    /// Checks that every file equals the Hub's, and that nothing unfinished is left.
    #[track_caller]
    fn is_whole(&self, snapshot: &Path) {
        assert_eq!(snapshot, self.root().join("snapshots").join(COMMIT));
        for name in WANTED {
            assert!(
                fs::read(snapshot.join(name)).unwrap() == self.hub.state().files[name],
                "{name}"
            );
        }
        for blob in fs::read_dir(self.root().join("blobs")).unwrap() {
            let name = blob.unwrap().file_name().into_string().unwrap();
            assert!(!name.contains("incomplete"), "{name}");
        }
    }
}

#[test]
fn pytorch_files_are_downloaded_without_safetensors() {
    let place = Place::new();
    let mut state = place.hub.state();
    state.files.retain(|name, _| !name.contains("safetensors"));
    drop(state);
    let snapshot = place.fetch("hf://org/name").unwrap();
    let file = fs::read(snapshot.join("pytorch_model.bin")).unwrap();
    assert!(file == place.hub.state().files["pytorch_model.bin"]);
    let offline = Settings {
        offline: true,
        ..place.settings()
    };
    let cached = place.fetch_with("hf://org/name", &offline, &Silent);
    assert_eq!(cached.unwrap(), snapshot);
}

#[test]
fn needed_files_are_downloaded_once_into_the_hub_layout() {
    let place = Place::new();
    let snapshot = place.fetch("hf://org/name").unwrap();
    place.is_whole(&snapshot);
    let mut names: Vec<_> = fs::read_dir(&snapshot)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, WANTED, "and no file that nobody reads");
    for name in WANTED {
        let blob = etag(&place.hub.state().files[name]);
        assert_eq!(
            fs::read_link(snapshot.join(name)).unwrap(),
            Path::new("../../blobs").join(blob)
        );
    }
    assert_eq!(
        fs::read_to_string(place.root().join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(
        place
            .dir
            .path()
            .join("hub/.locks/models--org--name")
            .is_dir()
    );

    place.hub.asked();
    assert_eq!(place.fetch("hf://org/name").unwrap(), snapshot);
    let asked = place.hub.asked();
    assert_eq!(
        asked.len(),
        1,
        "only whether there is a newer commit: {asked:?}"
    );

    // Another revision of the same commit needs nothing either; a GGUF is downloaded alone.
    place.fetch(&format!("hf://org/name@{COMMIT}")).unwrap();
    let gguf = place.fetch("hf://org/name/quants/m-Q4_K_M.gguf").unwrap();
    assert_eq!(gguf, snapshot.join("quants/m-Q4_K_M.gguf"));
    assert!(fs::read(&gguf).unwrap() == place.hub.state().files["quants/m-Q4_K_M.gguf"]);
}

#[test]
fn downloads_survive_fifty_random_cuts() {
    let place = Place::new();
    let mut cut = 0;
    while cut < 50 {
        let fresh = Place {
            hub: Hub::start(files()),
            dir: tempfile::tempdir().unwrap(),
        };
        let cuts = 1 + place.hub.state().rng.below(4) as u32;
        fresh.hub.state().cuts = cuts;
        fresh.hub.state().rng = Rng::new(cut.into());
        fresh.hub.state().cuts_listing = cut % 2 == 0;
        let snapshot = fresh.fetch("hf://org/name").unwrap();
        fresh.is_whole(&snapshot);
        assert_eq!(fresh.hub.state().cuts, 0);
        cut += cuts;
    }
}

#[test]
fn long_download_survives_many_cuts() {
    let place = Place::new();
    place
        .hub
        .state()
        .files
        .insert("big.gguf".into(), bytes(9, 30 << 20));
    // Cuts are in the rest of the file, half of which is lost each time: there are always some
    // bytes between two.
    place.hub.state().cuts = 18;
    let path = place.fetch("hf://org/name/big.gguf").unwrap();
    assert!(fs::read(path).unwrap() == place.hub.state().files["big.gguf"]);
    let state = place.hub.state();
    assert_eq!(state.cuts, 0);
    assert!(
        state.sent < (31 << 20),
        "{} bytes were sent for 30 MiB: what was there was sent again",
        state.sent
    );
}

/// Stops a job after this many bytes.
struct StopsAfter(u64, AtomicU64);

impl Progress for StopsAfter {
    fn advance(&self, amount: u64) {
        self.1.fetch_add(amount, Ordering::SeqCst);
    }

    fn cancelled(&self) -> bool {
        self.1.load(Ordering::SeqCst) >= self.0
    }
}

#[test]
fn stopped_downloads_resume() {
    let place = Place::new();
    place
        .hub
        .state()
        .files
        .insert("big.gguf".into(), bytes(9, 8 << 20));
    let stops = StopsAfter(3 << 20, AtomicU64::new(0));
    let stopped = place.fetch_with("hf://org/name/big.gguf", &place.settings(), &stops);
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert!(
        !place.root().join("snapshots").exists(),
        "an unfinished file has no name"
    );
    let part = place.root().join(format!(
        "blobs/{}.incomplete",
        etag(&place.hub.state().files["big.gguf"])
    ));
    let there = fs::metadata(&part).unwrap().len();
    assert!(there >= 3 << 20);
    place.hub.asked();
    let path = place.fetch("hf://org/name/big.gguf").unwrap();
    assert!(fs::read(path).unwrap() == place.hub.state().files["big.gguf"]);
    let ranges: Vec<_> = place
        .hub
        .asked()
        .into_iter()
        .filter(|a| a.store)
        .map(|a| a.range)
        .collect();
    assert_eq!(ranges, [Some(format!("bytes={there}-"))]);
}

#[test]
fn servers_without_ranges_send_whole_files() {
    let place = Place::new();
    place.hub.state().ignores_ranges = true;
    place.hub.state().cuts = 8;
    let snapshot = place.fetch("hf://org/name").unwrap();
    place.is_whole(&snapshot);
}

#[test]
fn changed_files_restart_the_download() {
    let place = Place::new();
    {
        // The first answer of the storage server is cut; after it every file has other bytes and
        // ETags.
        let mut state = place.hub.state();
        (state.changes_after, state.cuts) = (Some(0), 2);
    }
    let path = place.fetch("hf://org/name/quants/m-Q4_K_M.gguf").unwrap();
    let old = files()["quants/m-Q4_K_M.gguf"].clone();
    let new = place.hub.state().files["quants/m-Q4_K_M.gguf"].clone();
    let is = fs::read(path).unwrap();
    assert!(is == new && is != old);

    // The storage server's version changes between two parts, so they are not combined.
    let place = Place::new();
    place.hub.state().cuts = 1;
    place.hub.state().store_versions = true;
    let path = place.fetch("hf://org/name/quants/m-Q4_K_M.gguf").unwrap();
    assert!(fs::read(path).unwrap() == files()["quants/m-Q4_K_M.gguf"]);
    let ranges: Vec<_> = place
        .hub
        .asked()
        .into_iter()
        .filter(|a| a.store)
        .map(|a| a.range.is_some())
        .collect();
    assert_eq!(ranges, [false, true, false]);
}

#[test]
fn wrong_downloads_are_discarded() {
    let place = Place::new();
    let address = "hf://org/name/quants/m-Q4_K_M.gguf";
    place.hub.state().wrong_from = Some(60_000);
    place.fails(address, &["m-Q4_K_M.gguf", "SHA-256", "was discarded"]);
    assert_eq!(fs::read_dir(place.root().join("blobs")).unwrap().count(), 0);
    place.hub.state().wrong_from = None;

    // Wrong bytes of an earlier program are detected, and all of the file is downloaded again.
    let good = files()["quants/m-Q4_K_M.gguf"].clone();
    let part = place
        .root()
        .join(format!("blobs/{}.incomplete", etag(&good)));
    for left in [
        vec![0; 50_000],
        vec![0; good.len()],
        vec![0; good.len() + 9],
    ] {
        fs::write(&part, left).unwrap();
        let path = place.fetch(address).unwrap();
        assert!(fs::read(&path).unwrap() == good);
        fs::remove_file(path.canonicalize().unwrap()).unwrap();
    }

    // A wrong size.
    for size in [1 << 40, 99_999] {
        place.hub.state().said_size = Some(size);
        let error = place.fetch(address).unwrap_err().to_string();
        assert!(
            error.starts_with("hf://org/name") || error.contains("are free there"),
            "{error}"
        );
        assert!(
            !place
                .root()
                .join("snapshots")
                .join(COMMIT)
                .join("quants/m-Q4_K_M.gguf")
                .is_file()
        );
    }
}

#[test]
fn token_is_sent_only_to_the_hub() {
    let place = Place::new();
    place.hub.state().token = Some("hf_secret".into());
    place.fails(
        "hf://org/name",
        &["401", "HF_TOKEN", "does not exist, or is private or gated"],
    );
    let with = |secret: &str| Settings {
        token: Some(Token::new(secret, "HF_TOKEN").unwrap()),
        ..place.settings()
    };
    let error = place
        .fetch_with("hf://org/name", &with("hf_old"), &Silent)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rejects the token from HF_TOKEN") && !error.contains("hf_old"),
        "{error}"
    );
    place.hub.asked();
    let snapshot = place
        .fetch_with("hf://org/name", &with("hf_secret"), &Silent)
        .unwrap();
    place.is_whole(&snapshot);
    let asked = place.hub.asked();
    assert!(asked.iter().any(|a| a.store) && asked.iter().any(|a| !a.store));
    assert!(
        asked.iter().all(|a| a.token.is_some() != a.store),
        "{asked:?}"
    );
}

#[test]
fn each_status_has_its_own_error() {
    let place = Place::new();
    let refuse = |status, header| place.hub.state().answers = [(status, header)].into();
    refuse(403, "X-Error-Code: GatedRepo");
    let page = format!(
        "accept the model's conditions at {}/org/name",
        place.hub.endpoint
    );
    place.fails("hf://org/name", &["403", &page]);
    place.fails("hf://org/other", &["404", "no such model"]);
    place.fails(
        "hf://org/name@v9",
        &["404", "no such branch, tag or commit"],
    );
    place.fails(
        "hf://org/name/absent.gguf",
        &["no file 'absent.gguf'", "quants/m-Q4_K_M.gguf"],
    );
    refuse(400, "");
    place.fails("hf://org/name", &["status 400"]);
    refuse(418, "");
    place.fails("hf://org/name", &["status 418"]);
    place.hub.state().answers = [(429, ""); 6].into();
    place.fails("hf://org/name", &["429", "rate limit"]);
    refuse(429, "Retry-After: 86400");
    place.fails("hf://org/name", &["429", "rate limit"]);
    place.hub.state().answers = [(503, ""); 6].into();
    place.fails("hf://org/name", &["status 503", "resumes the download"]);
    refuse(307, "Location: ftp://elsewhere/");
    place.fails("hf://org/name", &["redirects to an invalid address"]);
    place.hub.state().answers = [(307, "Location: /api/models/org/name/revision/main"); 20].into();
    place.fails("hf://org/name", &["more than 8 redirects"]);
    place.hub.state().answers.clear();
    assert!(!place.root().exists(), "what is refused leaves nothing");

    // Temporary failures are retried.
    place.hub.state().answers = [(429, "Retry-After: 0"), (503, ""), (502, ""), (429, "")].into();
    place.hub.state().store_answers = [(500, ""), (429, "Retry-After: 0"), (504, "")].into();
    let snapshot = place.fetch("hf://org/name").unwrap();
    place.is_whole(&snapshot);
    // A renamed model redirects to its new name.
    place.hub.state().answers = [(307, "Location: /api/models/org/name/revision/main")].into();
    place.fetch("hf://org/old-name").unwrap_err();
}

#[test]
fn server_names_cannot_leave_the_cache() {
    let place = Place::new();
    let outside = [
        "../../../../evil.json",
        "/tmp/evil.json",
        "additional_chat_templates/../../../x.jinja",
    ];
    let names = WANTED
        .iter()
        .chain(&outside)
        .map(|name| (*name).to_owned())
        .collect();
    place.hub.state().listing = Some(names);
    let snapshot = place.fetch("hf://org/name").unwrap();
    place.is_whole(&snapshot);
    assert!(
        place
            .hub
            .asked()
            .iter()
            .all(|a| !a.path.contains("..") && !a.path.contains("evil"))
    );

    let place = Place::new();
    let index = br#"{"weight_map": {"a": "../../../evil.safetensors"}}"#;
    place.hub.state().files.insert(INDEX.into(), index.to_vec());
    place.fails("hf://org/name", &["not a file name"]);
    let place = Place::new();
    let index = br#"{"weight_map": {"a": "absent.safetensors"}}"#;
    place.hub.state().files.insert(INDEX.into(), index.to_vec());
    place.fails("hf://org/name", &["no file 'absent.safetensors'", INDEX]);
}

#[test]
fn concurrent_downloads_share_files() {
    let place = Place::new();
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| place.fetch("hf://org/name").unwrap()));
        both.into_iter()
            .for_each(|one| place.is_whole(&one.join().unwrap()));
    });
    let mut gets: Vec<_> = place
        .hub
        .asked()
        .into_iter()
        .filter(|a| a.store)
        .map(|a| a.path)
        .collect();
    gets.sort();
    let once = gets.len();
    gets.dedup();
    assert_eq!(gets.len(), once, "{gets:?}");
}

#[test]
fn cache_suffices_without_the_network() {
    let place = Place::new();
    let offline = Settings {
        offline: true,
        ..place.settings()
    };
    let error = place
        .fetch_with("hf://org/name", &offline, &Silent)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("HF_HUB_OFFLINE") && error.contains("run once without it"),
        "{error}"
    );
    let snapshot = place.fetch("hf://org/name").unwrap();
    place.hub.asked();
    assert_eq!(
        place
            .fetch_with("hf://org/name", &offline, &Silent)
            .unwrap(),
        snapshot
    );
    assert!(place.hub.asked().is_empty(), "nobody is asked");

    // No server at this address: the cache is used, with a note.
    let gone = Settings {
        endpoint: "http://127.0.0.1:9".into(),
        ..place.settings()
    };
    let notes = std::cell::RefCell::new(Vec::new());
    let note = |text: &str| notes.borrow_mut().push(text.to_owned());
    let address = Address::parse("hf://org/name").unwrap();
    assert_eq!(
        fetch(&address, &gone, Need::Everything, &Silent, &note).unwrap(),
        snapshot
    );
    assert!(notes.borrow()[0].contains("cannot be reached"), "{notes:?}");
    let error = place
        .fetch_with("hf://org/other", &gone, &Silent)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no stable connection to 127.0.0.1:9") && error.contains("HTTPS_PROXY"),
        "{error}"
    );

    // A missing shard is detected.
    fs::remove_file(snapshot.join(SHARDS[1])).unwrap();
    assert!(matches!(
        place.fetch_with("hf://org/name", &offline, &Silent),
        Err(Error::Offline { .. })
    ));
    place.is_whole(&place.fetch("hf://org/name").unwrap());
}

/// The program, with a Hub that serves testdata/refmodel.
struct Program {
    place: Place,
    work: TempDir,
}

impl Program {
    fn new() -> Program {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir("testdata/refmodel").unwrap() {
            let path = entry.unwrap().path();
            files.insert(
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                fs::read(&path).unwrap(),
            );
        }
        files.insert(
            "refmodel-f16.gguf".into(),
            fs::read("testdata/refmodel-f16.gguf").unwrap(),
        );
        files.insert("LICENSE".into(), b"free".to_vec());
        let place = Place {
            hub: Hub::start(files),
            dir: tempfile::tempdir().unwrap(),
        };
        Program {
            place,
            work: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, args: &str) -> assert_cmd::Command {
        let mut command = crate::support::program::quantier(args);
        for name in [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "HF_TOKEN_PATH",
        ] {
            command.env_remove(name);
        }
        command
            .env_remove("SSL_CERT_FILE")
            .env_remove("REQUESTS_CA_BUNDLE");
        command
            .env("HF_ENDPOINT", &self.place.hub.endpoint)
            .env("HF_HOME", self.place.dir.path())
            .env("NO_PROXY", "*");
        command.current_dir(self.work.path());
        command
    }

    #[track_caller]
    fn prints(&self, args: &str) -> String {
        String::from_utf8(
            self.command(args)
                .assert()
                .success()
                .get_output()
                .stdout
                .clone(),
        )
        .unwrap()
    }

    #[track_caller]
    fn fails(&self, command: &mut assert_cmd::Command, parts: &[&str]) {
        let ran = command.assert().code(1);
        let error = String::from_utf8(ran.get_output().stderr.clone()).unwrap();
        assert!(
            error.starts_with("error: ") && error.trim_end().lines().count() == 1,
            "{error}"
        );
        parts
            .iter()
            .for_each(|part| assert!(error.contains(part), "no {part:?} in: {error}"));
        assert_eq!(fs::read_dir(self.work.path()).unwrap().count(), 0);
    }
}

#[test]
fn commands_take_models_from_the_hub() {
    let program = Program::new();
    let ids = program.prints("tokenize -m hf://org/name -p Hello --ids");
    let asked = program.place.hub.asked();
    assert!(
        asked.iter().all(|a| !a.path.contains("model.safetensors")),
        "tokens need no weights: {asked:?}"
    );

    let shown = program.prints("inspect --json hf://org/name");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["metadata"]["general.architecture"]["value"], "llama");
    assert_eq!(
        shown["all"]["tensors"].as_u64(),
        Some(shown["tensors"].as_array().unwrap().len() as u64)
    );
    program.place.hub.asked();

    // The same file as from a local directory of this name, without unused files.
    let copy = program.place.dir.path().join("name");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir("testdata/refmodel").unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    program.prints("convert hf://org/name -o hub.gguf");
    program.prints(&format!("convert {} -o directory.gguf", copy.display()));
    let read = |name: &str| fs::read(program.work.path().join(name)).unwrap();
    assert!(read("hub.gguf") == read("directory.gguf"));
    let asked = program.place.hub.asked();
    assert_eq!(asked.len(), 1, "all was there: {asked:?}");
    program.prints("convert --remote org/name --outtype bf16");
    assert!(read("org-name-bf16.gguf") == read("directory.gguf"));
    assert_eq!(ids, program.prints("tokenize -m hub.gguf -p Hello --ids"));

    // Outputs without an explicit path are not written to the cache.
    program.prints("quantize hf://org/name Q8_0");
    assert!(program.work.path().join("ggml-model-Q8_0.gguf").is_file());
    program.prints("quantize hf://org/name/refmodel-f16.gguf q4_0.gguf Q4_0");
    program.prints("convert hf://org/name --outtype f16");
    assert_eq!(
        fs::read_dir(program.work.path())
            .unwrap()
            .filter(is_gguf)
            .count(),
        6
    );
    assert!(
        program
            .prints("verify hf://org/name/refmodel-f16.gguf")
            .contains("no fault")
    );
}

#[test]
fn cards_name_the_model_from_the_hub() {
    let program = Program::new();
    let text = crate::support::models::text();
    fs::write(program.work.path().join("cal.txt"), &text[..2000]).unwrap();
    fs::write(program.work.path().join("eval.txt"), &text[3000..4000]).unwrap();
    let small = "-f cal.txt --eval eval.txt -c 64 --score-chunks 1 --eval-chunks 2 --types q4_K,q8_0 --score imatrix";
    program.prints(&format!(
        "make hf://org/name {small} --bpw 6 --publish -o out"
    ));
    let card = fs::read_to_string(program.work.path().join("out/publish/README.md")).unwrap();
    assert!(card.contains("\nbase_model: org/name\n"), "{card}");
    let data = fs::read_to_string(program.work.path().join("out/publish/frontier.json")).unwrap();
    assert!(data.contains(COMMIT));
    assert!(
        !data.contains(program.place.dir.path().to_str().unwrap()),
        "no path of the cache"
    );
    // A GGUF on the Hub is a third-party conversion: its base model is unknown.
    program.prints(&format!(
        "make hf://org/name/refmodel-f16.gguf {small} --bpw 6 --publish -o other"
    ));
    let card = fs::read_to_string(program.work.path().join("other/publish/README.md")).unwrap();
    assert!(!card.contains("\nbase_model:"), "{card}");
}

fn is_gguf(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry
        .as_ref()
        .unwrap()
        .path()
        .extension()
        .is_some_and(|e| e == "gguf")
}

#[test]
fn errors_of_the_program_have_remedies() {
    let program = Program::new();
    let inspect = |address: &str| program.command(&format!("inspect {address}"));
    program.fails(
        &mut inspect("hf://org/other"),
        &["hf://org/other: the Hub has no such model (404)"],
    );
    program.fails(&mut inspect("hf://org"), &["404"]);
    program.fails(
        &mut inspect("hf://org/na--me"),
        &["not a model name", "hf://ORG/NAME"],
    );
    program.fails(
        &mut inspect("org/name"),
        &["org/name does not exist", "write hf://org/name"],
    );
    program.fails(
        inspect("hf://org/name").env("HF_HUB_OFFLINE", "1"),
        &["HF_HUB_OFFLINE", "run once without it"],
    );
    program.fails(
        inspect("hf://org/name").env("HF_TOKEN", "a b"),
        &["HF_TOKEN", "no blanks"],
    );
    program.fails(
        inspect("hf://org/name").env("HF_ENDPOINT", "mirror"),
        &["HF_ENDPOINT", "https://huggingface.co"],
    );
    for (name, part) in [
        ("nowhere.pem", "No such file"),
        ("/", "not a certificate file"),
        ("Cargo.toml", "PEM"),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        program.fails(
            inspect("hf://org/name").env("SSL_CERT_FILE", path),
            &["SSL_CERT_FILE", name, part],
        );
    }
    program.place.hub.state().token = Some("hf_secret".into());
    program.fails(&mut inspect("hf://org/name"), &["401", "set HF_TOKEN"]);
    fs::write(program.place.dir.path().join("token"), "hf_secret\n").unwrap();
    program.prints("tokenize -m hf://org/name -p Hello --ids");
}
