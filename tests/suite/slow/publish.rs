//! Tests of `quantier publish` and `quantier make --variants --publish`.

use crate::convert::Model;
use crate::projector;
use crate::support::models;
use crate::support::program::{json, listing, quantier, stderr, succeeds};
use quantier_core::rng::Rng;
use quantier_gguf::gguf::Value;
use quantier_report::data::Frontier;
use saphyr_parser::{Event, Parser};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tempfile::TempDir;

/// Few short chunks and few types, for runs of seconds.
const SMALL: &str = "-c 64 --score-chunks 2 --score-positions 64 --eval-chunks 2 --types q2_K,q3_K,q4_K,q6_K,q8_0,q5_0";

/// A name with special characters of Markdown, YAML, shells and URLs.
const ODD: &str = "Tést 'model' #1 [a](b) no";

fn text(seed: u64, words: usize) -> String {
    const WORDS: [&str; 8] = [
        "the", "river", "was", "old", "and", "near", "windows", "green",
    ];
    let mut rng = Rng::new(seed);
    let word = |i: usize, rng: &mut Rng| {
        let word = WORDS[(rng.uniform() * WORDS.len() as f32) as usize % WORDS.len()];
        format!("{word}{}", if i % 12 == 11 { ".\n\n" } else { " " })
    };
    (0..words).map(|i| word(i, &mut rng)).collect()
}

/// A directory with two texts, and two layers of the small model with a chat template.
fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let chat = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/chat/chatml.jinja"),
    )
    .unwrap();
    let model = models::shortened(2)
        .set("tokenizer.chat_template", Value::str(chat))
        .set("general.license", Value::str("apache-2.0"))
        .set(
            "general.source.url",
            Value::str("https://huggingface.co/some-org/Some-Model"),
        )
        .set("general.sampling.temp", Value::F32(0.6));
    model.write(&dir.path().join("m.gguf"));
    fs::create_dir(dir.path().join("texts")).unwrap();
    fs::write(dir.path().join("texts/cal.txt"), text(1, 400)).unwrap();
    fs::write(dir.path().join("texts/eval.txt"), text(2, 200)).unwrap();
    dir
}

fn make(dir: &Path, rest: &[&str]) -> String {
    let mut command = quantier(&format!("make {}/m.gguf {SMALL} -o out", dir.display()));
    command
        .args(["-f", "texts/cal.txt", "--eval"])
        .arg(dir.join("texts/eval.txt"))
        .args(rest)
        .current_dir(dir);
    String::from_utf8(command.assert().success().get_output().stderr.clone()).unwrap()
}

/// The values of a card's front matter; lists joined with `, `.
fn front_matter(card: &str) -> BTreeMap<String, String> {
    let yaml = card
        .strip_prefix("---\n")
        .unwrap()
        .split_once("\n---\n")
        .unwrap()
        .0;
    let (mut map, mut key, mut depth) = (BTreeMap::<String, String>::new(), None::<String>, 0);
    for event in Parser::new_from_str(yaml) {
        match event.unwrap().0 {
            Event::SequenceStart(..) => depth += 1,
            Event::SequenceEnd => (depth, key) = (depth - 1, None),
            Event::Scalar(text, ..) if key.is_none() => key = Some(text.into_owned()),
            Event::Scalar(text, ..) => {
                let value = map.entry(key.clone().unwrap()).or_default();
                *value = if value.is_empty() {
                    text.into_owned()
                } else {
                    format!("{value}, {text}")
                };
                key = key.filter(|_| depth > 0);
            }
            _ => {}
        }
    }
    map
}

fn decoded(address: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), address.bytes());
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Names and SHA-256 of all files except the checksums, which must match.
fn checked_sums(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (path, _) in listing(dir) {
        let sum: String = Sha256::digest(fs::read(&path).unwrap())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        found.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), sum);
    }
    found.remove("SHA256SUMS");
    let text = fs::read_to_string(dir.join("SHA256SUMS")).unwrap();
    let said: BTreeMap<_, _> = text
        .lines()
        .map(|l| l.split_once("  ").unwrap())
        .map(|(sum, name)| (name.to_owned(), sum.to_owned()))
        .collect();
    assert_eq!(said, found);
    if let Ok(run) = std::process::Command::new("sha256sum")
        .args(["--quiet", "-c", "SHA256SUMS"])
        .current_dir(dir)
        .output()
    {
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
    }
    found
}

/// Files must not contain the path where they were made.
fn names_no_path(dir: &Path, made_in: &Path) {
    let secret = [
        made_in.to_str().unwrap().to_owned(),
        made_in.canonicalize().unwrap().to_str().unwrap().to_owned(),
    ];
    let parent = made_in.parent().unwrap().to_str().unwrap();
    for (path, _) in listing(dir) {
        let bytes = fs::read(&path).unwrap();
        for secret in &secret {
            assert!(
                !bytes.windows(secret.len()).any(|w| w == secret.as_bytes()),
                "{} has {secret}",
                path.display()
            );
        }
        if let Ok(text) = String::from_utf8(bytes) {
            assert!(
                !text.contains(&format!("{parent}/")),
                "{} has {parent}",
                path.display()
            );
            assert!(
                !text.contains("texts/"),
                "{} has a directory",
                path.display()
            );
        }
    }
}

#[test]
fn publication_is_ready_for_the_hub() {
    let dir = place();
    let said = [
        "--variants",
        "4",
        "--publish",
        "--name",
        ODD,
        "--language",
        "no",
        "--language",
        "en",
        "--tag",
        "tiny",
    ];
    let notes = make(dir.path(), &said);
    let out = dir.path().join("out/publish");
    assert!(
        notes.contains("--quantized-by") && notes.contains("takes no tools"),
        "{notes}"
    );
    assert!(
        !notes.contains("--license")
            && !notes.contains("--base-model")
            && !notes.contains("--language"),
        "{notes}"
    );

    let card = fs::read_to_string(out.join("README.md")).unwrap();
    let matter = front_matter(&card);
    let expected = [
        ("base_model", "some-org/Some-Model"),
        ("base_model_relation", "quantized"),
        ("library_name", "gguf"),
        ("pipeline_tag", "text-generation"),
        ("license", "apache-2.0"),
        ("language", "no, en"),
        ("tags", "gguf, imatrix, quantier, tiny"),
    ];
    assert_eq!(
        matter,
        expected
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    );

    let frontier: Frontier =
        serde_json::from_str(&fs::read_to_string(dir.path().join("out/frontier.json")).unwrap())
            .unwrap();
    assert!(
        (3..=4).contains(&frontier.files.len()),
        "{}",
        frontier.files.len()
    );
    let steps: Vec<f64> = frontier
        .files
        .windows(2)
        .map(|w| w[0].predicted / w[1].predicted)
        .collect();
    assert!(steps.iter().all(|step| *step > 1.5), "{steps:?}");

    let sums = checked_sums(&out);
    let rows: Vec<&str> = card
        .lines()
        .filter(|line| line.starts_with("| [T"))
        .collect();
    assert_eq!(rows.len(), frontier.files.len(), "{card}");
    for (row, file) in rows.iter().zip(&frontier.files) {
        let address = row.split_once("](").unwrap().1.split_once(") |").unwrap().0;
        // The name has escaped brackets of its own.
        let address = address.rsplit_once("](").map_or(address, |(_, last)| last);
        assert_eq!(decoded(address), file.name, "{row}");
        assert!(
            sums.contains_key(&file.name)
                && sums.contains_key(&format!("{}.recipe.txt", file.name))
        );
        let cells = row.replace("\\|", "").matches('|').count();
        assert_eq!(cells, 10, "{row}");
        // The same bytes under a second name; the first still exists.
        let (made, published) = (
            dir.path().join("out").join(&file.name),
            out.join(&file.name),
        );
        assert_eq!(
            made.metadata().unwrap().ino(),
            published.metadata().unwrap().ino()
        );
        let modelfile = out.join(format!("{}.Modelfile", file.name.trim_end_matches(".gguf")));
        let modelfile = fs::read_to_string(modelfile).unwrap();
        let from = modelfile
            .lines()
            .find_map(|line| line.strip_prefix("FROM ./"))
            .unwrap();
        assert!(out.join(from).is_file(), "{from}");
        let template = modelfile.split("\"\"\"").nth(1).unwrap();
        assert_eq!(template, fs::read_to_string(out.join("template")).unwrap());
        assert!(
            modelfile.contains("PARAMETER stop \"<|im_end|>\"\n")
                && modelfile.contains("PARAMETER num_ctx 2048\n")
        );
        assert!(
            card.contains(&file.name.replace('\'', "'\\''")),
            "a command for each"
        );
    }
    let params: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("params")).unwrap()).unwrap();
    let expected = serde_json::json!({"stop": ["<|im_end|>", "<|im_start|>"], "num_ctx": 2048, "temperature": 0.6});
    assert_eq!(params, expected);
    for name in [
        "imatrix.gguf",
        "frontier.svg",
        "frontier.json",
        "report.html",
    ] {
        assert!(sums.contains_key(name), "{name}");
    }
    assert!(
        card.contains("cal.txt")
            && card.contains("quantier make m.gguf")
            && card.contains("--eval eval.txt"),
        "{card}"
    );
    assert!(card.contains("llama-quantize --imatrix imatrix.gguf"));
    names_no_path(&out, dir.path());

    // The command on the card makes the same files again.
    let command = card
        .lines()
        .find(|line| line.starts_with("quantier make "))
        .unwrap();
    let again = dir.path().join("again");
    fs::create_dir(&again).unwrap();
    for name in ["m.gguf", "texts/cal.txt", "texts/eval.txt"] {
        fs::copy(
            dir.path().join(name),
            again.join(Path::new(name).file_name().unwrap()),
        )
        .unwrap();
    }
    let program = env!("CARGO_BIN_EXE_quantier");
    let line = command.replacen("quantier", program, 1);
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", &line])
        .env("QUANTIER_CONFIG", crate::support::program::no_defaults());
    let run = command.current_dir(&again).output().unwrap();
    assert!(
        run.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&run.stderr)
    );
    let same = checked_sums(&again.join("out/publish"));
    for file in &frontier.files {
        assert_eq!(same[&file.name], sums[&file.name], "{}", file.name);
    }
}

#[test]
fn existing_files_are_replaced_only_on_request() {
    let dir = place();
    make(dir.path(), &["--bpw", "4.5", "--bpw", "6"]);
    let fails = |args: &str, code: i32, part: &str| {
        let before = listing(dir.path());
        let output = quantier(args).current_dir(dir.path()).assert().code(code);
        let error = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(error.contains(part), "{error}");
        assert_eq!(listing(dir.path()), before);
    };
    fails("publish texts -o hub", 1, "no frontier.json");
    fails(
        "publish out -o hub --base-model /some/where/model",
        2,
        "expected a name on the Hub, like org/name",
    );
    fails("publish out -o m.gguf", 1, "not a writable directory");
    fs::write(dir.path().join("bad.md"), "a\n{{ b }").unwrap();
    fails(
        "publish out -o hub --template bad.md",
        1,
        "the card's template: line 2",
    );
    fails("make m.gguf --bpw 4 -o x --license mit", 2, "--publish");
    fails("publish", 2, "DIR");

    let made = json(
        dir.path(),
        "publish out -o hub --json --quantized-by me --repo me/Repo-GGUF",
    );
    assert_eq!(made["files"].as_array().unwrap().len(), 2);
    assert_eq!(made["files"][0]["linked"], true);
    let hub = dir.path().join("hub");
    let first = checked_sums(&hub);
    let card = fs::read_to_string(hub.join("README.md")).unwrap();
    assert!(
        card.contains("llama-cli -hf me/Repo-GGUF -hff ")
            && card.contains("ollama run hf.co/me/Repo-GGUF:"),
        "{card}"
    );
    assert_eq!(front_matter(&card)["quantized_by"], "me");
    fails("publish out -o hub", 1, "--force");
    make_fails_early(dir.path());

    // One file less, another card, and an unrelated file.
    fs::write(hub.join("LICENSE"), "text").unwrap();
    make(dir.path(), &["--bpw", "4.5"]);
    fs::write(
        dir.path().join("own.md"),
        "{{ front_matter }}\n{{ files | length }} file, {{ files[0].name | shell }}\n",
    )
    .unwrap();
    let told = succeeds(
        dir.path(),
        "publish out -o hub --force --copy --template own.md",
    );
    assert!(told.contains("(copy)"), "{told}");
    assert_eq!(fs::read_to_string(hub.join("LICENSE")).unwrap(), "text");
    fs::remove_file(hub.join("LICENSE")).unwrap();
    let second = checked_sums(&hub);
    let models = |sums: &BTreeMap<String, String>| {
        sums.iter()
            .filter(|(name, _)| name.ends_with("bpw-Q8_0.gguf") || name.contains("bpw-"))
            .filter(|(n, _)| n.ends_with(".gguf"))
            .map(|(n, s)| (n.clone(), s.clone()))
            .collect::<Vec<_>>()
    };
    let (two, one) = (models(&first), models(&second));
    assert_eq!((two.len(), one.len()), (2, 1));
    assert!(two.contains(&one[0]));
    let published = hub.join(&one[0].0).metadata().unwrap().ino();
    assert_ne!(
        dir.path()
            .join("out")
            .join(&one[0].0)
            .metadata()
            .unwrap()
            .ino(),
        published
    );
    let card = fs::read_to_string(hub.join("README.md")).unwrap();
    assert!(card.ends_with(&format!("1 file, {}\n", one[0].0)), "{card}");

    // A model that was changed meanwhile is not published with old measurements.
    let made = dir.path().join("out").join(&one[0].0);
    let bytes = fs::read(&made).unwrap();
    fs::write(&made, &bytes[..bytes.len() - 1]).unwrap();
    fails("publish out -o other", 1, "in frontier.json");
}

/// `make --publish` refuses before measuring what `publish` would refuse afterwards.
fn make_fails_early(dir: &Path) {
    fs::create_dir(dir.join("out/publish")).unwrap();
    fs::write(dir.join("out/publish/mine"), "").unwrap();
    let args = format!(
        "make m.gguf {SMALL} -f texts/cal.txt --eval texts/eval.txt --bpw 5 -o out --publish"
    );
    let error = stderr(dir, &args, 1);
    assert!(error.contains("--force"), "{error}");
    fs::remove_dir_all(dir.join("out/publish")).unwrap();
}

/// A directory with two texts, and two layers of the small model with an encoder of images, as `seeing`.
fn seeing() -> TempDir {
    const HIDDEN: u64 = 256;
    let dir = place();
    let model = dir.path().join("seeing");
    models::shortened_checkpoint(&model, 2);
    let text = Model::read(&model);
    let mut both = projector::gemma3_for(HIDDEN);
    both.tensors
        .retain(|name, _| !name.starts_with("language_model."));
    both.tensors.extend(text.tensors);
    both.config["text_config"] = text.config;
    for (name, bytes) in [
        ("config.json", both.config.to_string().into_bytes()),
        ("model.safetensors", both.safetensors(|_| true)),
        (
            "preprocessor_config.json",
            projector::means().to_string().into_bytes(),
        ),
    ] {
        fs::write(model.join(name), bytes).unwrap();
    }
    dir
}

/// The name of the only projector in a directory.
fn projector_in(dir: &Path) -> Option<String> {
    let names = listing(dir).into_iter();
    let mut names = names.map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned());
    names.find(|name| name.contains("mmproj"))
}

#[test]
fn projector_lies_beside_the_files() {
    let dir = seeing();
    let make = |rest: &str| {
        let args = format!(
            "make seeing {SMALL} -f texts/cal.txt --eval texts/eval.txt --name See -o out {rest}"
        );
        quantier(&args).current_dir(dir.path()).assert().success()
    };
    make("--bpw 5 --publish --repo me/See-GGUF");
    let (out, hub) = (dir.path().join("out"), dir.path().join("out/publish"));
    const NAME: &str = "mmproj-See-F16.gguf";
    succeeds(
        dir.path(),
        "convert seeing --mmproj --outtype f16 -o vision.gguf",
    );
    let converted = fs::read(dir.path().join("vision.gguf")).unwrap();
    assert!(fs::read(out.join(NAME)).unwrap() == converted);
    assert!(fs::read(hub.join(NAME)).unwrap() == converted);
    assert!(checked_sums(&hub).contains_key(NAME));

    let frontier = fs::read_to_string(hub.join("frontier.json")).unwrap();
    let frontier: Frontier = serde_json::from_str(&frontier).unwrap();
    let written = frontier.projector.unwrap();
    assert_eq!(
        (&*written.name, written.bytes),
        (NAME, converted.len() as u64)
    );
    let card = fs::read_to_string(hub.join("README.md")).unwrap();
    assert_eq!(front_matter(&card)["pipeline_tag"], "image-text-to-text");
    assert!(
        card.contains(&format!("[{NAME}]({NAME})")) && card.contains("reads images"),
        "{card}"
    );
    let stem = frontier.files[0].name.trim_end_matches(".gguf");
    let modelfile = fs::read_to_string(hub.join(format!("{stem}.Modelfile"))).unwrap();
    let from = format!("FROM ./{stem}.gguf\nFROM ./{NAME}\n");
    assert!(modelfile.contains(&from), "{modelfile}");

    // It is not written again.
    let time = || out.join(NAME).metadata().unwrap().modified().unwrap();
    let before = time();
    make("--bpw 5");
    assert_eq!(time(), before);
    fs::remove_file(out.join(NAME)).unwrap();
    make("--bpw 5");
    assert!(fs::read(out.join(NAME)).unwrap() == converted);

    // The room that it takes is missing for the model.
    let planned = |rest: &str| {
        let args = format!(
            "make seeing {SMALL} -f texts/cal.txt --eval texts/eval.txt --fit 11MiB --ctx 256 -o other --dry-run --json"
        );
        let told = json(dir.path(), &format!("{args} {rest}"));
        let bytes = told["files"][0][1].as_u64().unwrap();
        (bytes, told["projector_bytes"].as_u64().unwrap())
    };
    let ((with, bytes), (without, none)) = (planned(""), planned("--no-mmproj"));
    assert_eq!((bytes, none), (converted.len() as u64, 0));
    let given = planned("--mmproj vision.gguf");
    assert_eq!(given, (with, bytes));
    let difference = without - with;
    assert!(
        (bytes / 2..2 * bytes).contains(&difference),
        "{difference} for {bytes}"
    );
}

#[test]
fn models_without_a_usable_projector_are_complete() {
    let dir = seeing();
    let config = dir.path().join("seeing/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let other = text.replace(
        "Gemma3ForConditionalGeneration",
        "OtherForConditionalGeneration",
    );
    fs::write(&config, other).unwrap();
    let make = |rest: &str| {
        let args = format!(
            "make seeing {SMALL} -f texts/cal.txt --eval texts/eval.txt --bpw 5 -o out {rest}"
        );
        let run = quantier(&args).current_dir(dir.path()).assert().success();
        String::from_utf8(run.get_output().stderr.clone()).unwrap()
    };
    let told = make("--publish");
    assert!(
        told.contains("class 'OtherForConditionalGeneration' is not supported")
            && told.contains("complete without it"),
        "{told}"
    );
    let hub = dir.path().join("out/publish");
    assert_eq!(projector_in(&hub), None);
    assert!(!make("--no-mmproj").contains("not supported"));

    // A file of another program, or of another name.
    fs::write(&config, &text).unwrap();
    succeeds(
        dir.path(),
        "convert seeing --mmproj --outtype f16 -o vision.gguf",
    );
    succeeds(dir.path(), "publish out -o hub --mmproj vision.gguf");
    let hub = dir.path().join("hub");
    assert_eq!(projector_in(&hub).as_deref(), Some("mmproj-vision.gguf"));
    assert!(checked_sums(&hub).contains_key("mmproj-vision.gguf"));
    let error = stderr(dir.path(), "publish out -o other --mmproj m.gguf", 1);
    assert!(error.contains("not a projector"), "{error}");
    let settings = dir.path().join("seeing/preprocessor_config.json");
    fs::remove_file(settings).unwrap();
    let told = make("");
    assert!(told.contains("'image_mean' is neither in"), "{told}");
}

#[test]
fn printed_template_can_be_used() {
    let printed = succeeds(Path::new("."), "publish --print-template");
    assert!(
        printed.starts_with("{#\n")
            && printed.contains("front_matter")
            && printed.contains("{% for file in files -%}")
    );
    let dir = place();
    make(dir.path(), &["--bpw", "4.5"]);
    fs::write(dir.path().join("card.md"), printed).unwrap();
    succeeds(dir.path(), "publish out -o a");
    succeeds(dir.path(), "publish out -o b --template card.md");
    assert_eq!(
        fs::read(dir.path().join("a/README.md")).unwrap(),
        fs::read(dir.path().join("b/README.md")).unwrap()
    );
}
