//! Every command of README.md, docs/ and the examples of `--help` runs as written.
//!
//! Each page gets a directory in which its commands run from top to bottom, in bash, with the files
//! that they name: the repository's testdata/ with one layer of the reference model, small models
//! and texts in place of other people's, a local Hub for `hf://`; `/tmp` is a directory of the
//! test. A configuration file keeps the jobs small. A command that neither runs nor is listed with
//! a reason is a failure.

use crate::support::hub::Hub;
use crate::support::models;
use crate::support::program::{listing, succeeds};
use quantier::text::{Set, joined};
use quantier_gguf::gguf::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Pages whose commands depend on the size of the reference model or its number of tensors.
const WHOLE_MODEL: [&str; 2] = ["docs/files.md", "docs/first-ten-minutes.md"];

/// First words of commands that are run.
const RUN: [&str; 10] = [
    "quantier",
    "target/release/quantier",
    "mkdir",
    "cd",
    "cmp",
    "printf",
    "sha256sum",
    "parallel",
    "sbatch",
    "ls",
];

/// Start of a command that stands for `quantier`.
const CARGO_RUN: &str = "cargo run --release -- ";

/// Prefixes of commands that are not run, with reasons.
const NOT_RUN: [(&str, &str); 6] = [
    (
        "cargo build",
        "the program is the one that cargo has built for this test",
    ),
    ("cargo test", "this is what it runs"),
    (
        "scripts/",
        "each builds or needs llama.cpp; CONTRIBUTING.md says how long they take",
    ),
    (
        "quantier make kimi-k3.gguf",
        "it needs llama.cpp; slow::outside runs it with a small one",
    ),
    (
        "quantier make testdata/refmodel-f16.gguf --engine",
        "it needs llama.cpp; slow::outside runs it with a small one",
    ),
    ("hf upload", "it needs the Hub and an account"),
];

/// Sizes for a page's model, and the replacements for the small one.
const SIZES: [(&str, &str); 6] = [
    ("quantier tune ", "quantier tune --steps 5 -c 64 "),
    ("--tune ", "--tune --tune-steps 5 -c 64 "),
    ("--size 2.2GiB", "--size 2MiB"),
    ("--size 400MiB", "--size 2MiB"),
    ("-c 32768", "-c 64"),
    ("--ctx-size 32768", "--ctx-size 64"),
];

/// Defaults that keep `make` small: seconds instead of minutes.
const DEFAULTS: &str = "
[make]
file = \"small/calibration.txt\"
eval = \"small/evaluation.txt\"
types = \"k\"
score-chunks = 2
eval-chunks = 2
draws = 1
";

/// Installation directories for shell completions and manual pages.
const INSTALLED: [&str; 4] = [
    ".local/share/bash-completion/completions",
    ".zfunc",
    ".config/fish/completions",
    ".local/share/man/man1",
];
/// Replaces programs that only display their input.
const SHOWS: &str = "#!/bin/sh\nexec cat >/dev/null\n";
/// Replaces GNU parallel: the last word before `:::` with each word after it in place of {}.
const PARALLEL: &str = "#!/bin/bash
while [ \"$1\" != ::: ]; do command=$1; shift; done; shift
for word; do bash -euc \"${command//\\{\\}/$word}\" || exit; done
";
/// Replaces Slurm: eight sequential tasks.
const SBATCH: &str = "#!/bin/bash
shift
for task in 0 1 2 3 4 5 6 7; do SLURM_ARRAY_TASK_ID=$task SLURM_CPUS_PER_TASK=2 bash -eu \"$1\" || exit; done
";
/// Name of a script on a page.
const SCRIPT: &str = "imatrix.sbatch";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and all of docs/, by name.
fn pages() -> Vec<(String, String)> {
    let docs = fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = docs
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    paths.push(root().join("README.md"));
    paths.sort();
    let name = |path: &Path| path.strip_prefix(root()).unwrap().display().to_string();
    paths
        .iter()
        .map(|path| (name(path), fs::read_to_string(path).unwrap()))
        .collect()
}

/// Examples of a command's help, like a block of a page.
fn examples(help: &str) -> String {
    let all = help.split_once("\nExamples:\n").map_or("", |(_, all)| all);
    let lines = all
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("  "));
    lines
        .map(|line| format!("{}\n", line.trim_start()))
        .collect()
}

/// Blocks between ```sh and ```.
fn blocks(page: &str) -> impl Iterator<Item = &str> {
    page.split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
}

/// The commands of a block: lines, with continuation lines joined.
fn commands(block: &str) -> Vec<String> {
    let lines = block.replace("\\\n", " ");
    let line = |line: &str| {
        Some(line.trim().to_owned()).filter(|line| !line.is_empty() && !line.starts_with('#'))
    };
    lines.lines().filter_map(line).collect()
}

/// Environment for the pages' commands.
struct Place {
    dir: tempfile::TempDir,
    hub: Hub,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        ["bin", "home", "small"]
            .iter()
            .for_each(|name| fs::create_dir(at(name)).unwrap());
        INSTALLED
            .iter()
            .for_each(|name| fs::create_dir_all(at("home").join(name)).unwrap());
        let program = |name: &str, text: &str| {
            fs::write(at("bin").join(name), text).unwrap();
            fs::set_permissions(at("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        program("parallel", PARALLEL);
        program("sbatch", SBATCH);
        ["jq", "man"].iter().for_each(|name| program(name, SHOWS));
        symlink(env!("CARGO_BIN_EXE_quantier"), at("bin/quantier")).unwrap();
        let (calibration, evaluation) = (joined(Set::Calibration), joined(Set::Evaluation));
        let first = |text: &str, bytes: usize| {
            let end = (0..=bytes)
                .rev()
                .find(|at| text.is_char_boundary(*at))
                .unwrap();
            text[..end].to_owned()
        };
        fs::write(at("small/calibration.txt"), first(&calibration, 6_000)).unwrap();
        fs::write(at("small/evaluation.txt"), first(&evaluation, 5_000)).unwrap();
        fs::write(at("defaults.toml"), DEFAULTS).unwrap();
        // Long enough for the 200 chunks and a few more that are split over machines.
        let twice = calibration.repeat(2);
        fs::write(at("small/long.txt"), first(&twice, twice.len() / 6 * 5)).unwrap();
        const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
        let model = models::shortened(1).set("general.description", Value::str("small"));
        let model = model.set("tokenizer.chat_template", Value::str(TEMPLATE));
        model.write(&at("small/model.gguf"));
        succeeds(
            dir.path(),
            "split small/model.gguf small/model --split-max-tensors 4",
        );
        fs::write(at("small/template.jinja"), TEMPLATE).unwrap();
        for preset in ["Q4_K_M", "Q6_K"] {
            succeeds(
                dir.path(),
                &format!("quantize small/model.gguf small/{preset}.gguf {preset}"),
            );
        }
        // An embedding model: the same with a pooling.
        let model = models::shortened(1).set("llama.pooling_type", Value::U32(3));
        model.write(&at("small/embedding.gguf"));
        succeeds(
            dir.path(),
            "quantize small/embedding.gguf small/embedding-Q4_K_M.gguf Q4_K_M",
        );
        models::shortened_checkpoint(&at("small/checkpoint"), 1);
        let draft = crate::drafts::eagle3().write();
        fs::create_dir(at("small/eagle3")).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(draft.path().join(file), at("small/eagle3").join(file)).unwrap();
        }
        // The repository's testdata/ with one layer of the reference model.
        fs::create_dir(at("testdata")).unwrap();
        for entry in fs::read_dir(root().join("testdata")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if !name.starts_with("refmodel") {
                symlink(entry.path(), at("testdata").join(name)).unwrap();
            }
        }
        models::shortened_checkpoint(&at("testdata/refmodel"), 1);
        succeeds(
            dir.path(),
            "convert testdata/refmodel --outtype f16 -o testdata/refmodel-f16.gguf",
        );
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (path, _) in listing(&at("small/checkpoint")) {
            files.insert(
                path.file_name().unwrap().to_str().unwrap().into(),
                fs::read(&path).unwrap(),
            );
        }
        succeeds(
            dir.path(),
            "quantize small/checkpoint small/name-Q4_K_M.gguf Q4_K_M",
        );
        files.insert(
            "name-Q4_K_M.gguf".into(),
            fs::read(at("small/name-Q4_K_M.gguf")).unwrap(),
        );
        let hub = Hub::start(files);
        hub.state().others = vec!["Qwen/Qwen3-0.6B".into(), "org/name-GGUF".into()];
        hub.state().revisions.push("v1.0".into());
        Place { dir, hub }
    }

    /// A page's own directory, with everything that its commands name.
    fn of_page(&self, page: &str) -> PathBuf {
        let here = self.dir.path().join(page.replace(['/', ' '], "-"));
        fs::create_dir_all(here.join("target/release")).unwrap();
        fs::create_dir(here.join("tmp")).unwrap();
        let small = |name: &str| self.dir.path().join("small").join(name);
        let model = || small("model.gguf");
        let of_repository = |name: &str| root().join("testdata").join(name);
        let text = if page.contains("imatrix") {
            "long.txt"
        } else {
            "calibration.txt"
        };
        let testdata = match page {
            page if WHOLE_MODEL.contains(&page) => root().join("testdata"),
            _ => self.dir.path().join("testdata"),
        };
        for (name, is) in [
            ("testdata", testdata),
            ("README.md", root().join("README.md")),
            ("docs", root().join("docs")),
            (
                "target/release/quantier",
                env!("CARGO_BIN_EXE_quantier").into(),
            ),
            ("Qwen3-4B", small("checkpoint")),
            ("Qwen3-4B_eagle3", small("eagle3")),
            ("gemma-3-4b-it", small("checkpoint")),
            ("my-adapter", root().join("testdata/adapter")),
            ("calibration.txt", small(text)),
            ("held-out.txt", small("evaluation.txt")),
            ("wiki.txt", small("evaluation.txt")),
            ("book.txt", small("evaluation.txt")),
            ("chats.jsonl", of_repository("texts/conversations.jsonl")),
            (
                "hellaswag_val_full.txt",
                of_repository("tasks/hellaswag.txt"),
            ),
            ("winogrande.csv", of_repository("tasks/winogrande.csv")),
            (
                "arc-challenge-validation.bin",
                of_repository("tasks/multiple-choice.bin"),
            ),
            ("model-Q3_K_M.gguf", small("Q4_K_M.gguf")),
            ("code.txt", small("calibration.txt")),
            ("template.jinja", small("template.jinja")),
            ("model-F16.gguf", model()),
            ("embedder-F16.gguf", small("embedding.gguf")),
            ("embedder-Q4_K_M.gguf", small("embedding-Q4_K_M.gguf")),
            ("model-bf16.gguf", model()),
            ("model-BF16.gguf", model()),
            ("old.gguf", model()),
            ("new.gguf", small("Q6_K.gguf")),
            (
                "model-00001-of-00003.gguf",
                small("model-00001-of-00003.gguf"),
            ),
            (
                "model-00002-of-00003.gguf",
                small("model-00002-of-00003.gguf"),
            ),
            (
                "model-00003-of-00003.gguf",
                small("model-00003-of-00003.gguf"),
            ),
            ("Qwen3-0.6B", small("checkpoint")),
            ("model-Q4_K_M.gguf", small("Q4_K_M.gguf")),
            ("model-Q6_K.gguf", small("Q6_K.gguf")),
        ] {
            // Models are hard links: a command may replace one without affecting others.
            match is.starts_with(self.dir.path()) && is.is_file() {
                true => fs::hard_link(is, here.join(name)).unwrap(),
                false => symlink(is, here.join(name)).unwrap(),
            }
        }
        // A copy that may be changed in place.
        fs::copy(model(), here.join("model.gguf")).unwrap();
        here
    }

    /// Runs a command, which must succeed.
    #[track_caller]
    fn runs(&self, here: &Path, page: &str, command: &str) {
        let path = format!(
            "{}:{}",
            self.dir.path().join("bin").display(),
            std::env::var("PATH").unwrap()
        );
        let mut bash = Command::new("bash");
        let line = command.replace(CARGO_RUN, "quantier ");
        let line = line.replace("/tmp/", &format!("{}/tmp/", here.display()));
        let line = SIZES
            .iter()
            .fold(line, |line, (theirs, ours)| line.replace(theirs, ours));
        bash.args(["-euo", "pipefail", "-c", &line]);
        for name in [
            "HF_TOKEN",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "HF_TOKEN_PATH",
            "XDG_CONFIG_HOME",
            "SSL_CERT_FILE",
        ] {
            bash.env_remove(name);
        }
        bash.env("PATH", path)
            .env("HOME", self.dir.path().join("home"))
            .env("HF_HOME", self.dir.path().join("hf"));
        bash.env("HF_ENDPOINT", &self.hub.endpoint)
            .env("NO_PROXY", "*");
        bash.env("QUANTIER_CONFIG", self.dir.path().join("defaults.toml"));
        let begun = Instant::now();
        let output = bash.current_dir(here).output().unwrap();
        eprintln!("{:6.1} s  {page}: {command}", begun.elapsed().as_secs_f64());
        // diff exits with 1 if two models differ.
        let differs = command.starts_with("quantier diff ") && output.status.code() == Some(1);
        assert!(
            output.status.success() || differs,
            "{page}: {command}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Runs the commands of a page; returns their number, and the entries of `NOT_RUN` in it.
fn run_page<'b>(
    place: &Place,
    page: &str,
    blocks: impl Iterator<Item = &'b str>,
) -> (PathBuf, usize, Vec<usize>) {
    let here = place.of_page(page);
    let (mut ran, mut not_run) = (Vec::new(), Vec::new());
    for block in blocks {
        if block.starts_with("#!") {
            fs::write(here.join(SCRIPT), block).unwrap();
            continue;
        }
        for command in commands(block) {
            if let Some(at) = NOT_RUN
                .iter()
                .position(|(start, _)| command.starts_with(start))
            {
                not_run.push(at);
                continue;
            }
            let first = command.split_whitespace().next().unwrap();
            assert!(
                RUN.contains(&first) || command.starts_with(CARGO_RUN),
                "{page}: {command}\nneither run nor listed with a reason in NOT_RUN"
            );
            // Repeated commands of a page, such as resuming after a kill, have run.
            let line = command.split("   # ").next().unwrap().to_owned();
            if !ran.contains(&line) {
                place.runs(&here, page, &command);
                ran.push(line);
            }
        }
    }
    (here, ran.len(), not_run)
}

#[test]
fn documented_commands_run() {
    let place = Place::new();
    let (mut all, mut listed) = (0, Vec::new());
    for (page, text) in pages() {
        if blocks(&text).next().is_none() {
            continue;
        }
        let (here, ran, not_run) = run_page(&place, &page, blocks(&text));
        all += ran;
        listed.extend(not_run);
        if page == "README.md" {
            has_listed_files(&here.join("out"), &text);
        }
    }
    assert!(all > 30, "the pages have their commands in ```sh blocks");
    for (at, (start, _)) in NOT_RUN.iter().enumerate() {
        assert!(
            listed.contains(&at),
            "no page has a command that begins with '{start}'"
        );
    }
}

#[test]
fn help_examples_run() {
    let place = Place::new();
    let help = |args: &str| succeeds(place.dir.path(), &format!("{args} --help"));
    let all = help("");
    let names = all
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    let names: Vec<&str> = names
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|n| !["", "help"].contains(n))
        .collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names.into_iter().chain([""]) {
        let text = examples(&help(name));
        let (_, ran, _) = run_page(
            &place,
            &format!("quantier {name} --help"),
            [&*text].into_iter(),
        );
        assert!(ran > 0, "quantier {name} --help has no examples");
    }
}

/// Checks that the files of the page's first table exist.
fn has_listed_files(made: &Path, page: &str) {
    let rows = page
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1);
    let cells = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').nth(1).unwrap());
    let names: Vec<&str> = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    assert!(names.len() >= 5, "{names:?}");
    // One layer of the model has another size, and another nearest preset, than the whole.
    let unlabelled = |name: &str| match (name.split_once('-'), name.find(".gguf")) {
        (Some((start, rest)), Some(end)) if rest.contains("bpw-") => {
            format!("{start}{}", &name[end..])
        }
        _ => name.to_owned(),
    };
    let there: Vec<String> = listing(made)
        .into_iter()
        .filter_map(|(path, _)| Some(unlabelled(path.file_name()?.to_str()?)))
        .collect();
    for name in names {
        assert!(
            there.contains(&unlabelled(name)),
            "{name} is not among {there:?}"
        );
    }
}

#[test]
fn links_between_pages_are_valid() {
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    for (page, text) in pages() {
        let name = page.trim_start_matches("docs/");
        assert!(
            page == "README.md" || name == "README.md" || index.contains(&format!("]({name})")),
            "{page} is not listed"
        );
        // Links to files, except for URLs and anchors in the same page.
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next())
        {
            let dir = root().join(&page).parent().unwrap().to_owned();
            let inside = !target.is_empty()
                && !target.contains("://")
                && !target.contains(char::is_whitespace);
            assert!(
                !inside || dir.join(target).exists(),
                "{page} leads to {target}, which is not there"
            );
        }
    }
}

#[test]
fn all_architectures_are_listed() {
    let page = fs::read_to_string(root().join("docs/architectures.md")).unwrap();
    for architecture in quantier_arch::ARCHITECTURES {
        let name = format!("| `{}` |", architecture.name);
        let rows: Vec<_> = page.lines().filter(|line| line.contains(&name)).collect();
        assert!(!rows.is_empty(), "docs/architectures.md has no {name}");
        for class in architecture.classes {
            let class = format!("`{class}`");
            assert!(rows.iter().any(|row| row.contains(&class)), "{class}");
        }
    }
}
