//! The configuration file with a publisher's defaults.

use crate::support::models;
use crate::support::program::{listing, quantier};
use assert_cmd::Command;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Small texts, chunks and types, for runs of seconds; and typical publisher's settings.
const DEFAULTS: &str = r#"
[make]
file = "texts/cal.txt"
eval = ["texts/eval.txt"]
types = "q2_K,q4_K,q6_K,q8_0,q5_0"
variants = 3
ctx-size = 64
score-chunks = 2
eval-chunks = 2

[publish]
quantized-by = "someone"
repo = "someone/{name}-GGUF"
license = "mit"
language = ["no", "en"]
template = "card.md"
"#;

const CARD: &str =
    "{{ front_matter }}\nMine: {{ repo }}\n{% for c in commands %}{{ c.command }}\n{% endfor %}";

/// A home directory with a configuration file, and a model elsewhere.
fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("home/.config/quantier");
    fs::create_dir_all(own.join("texts")).unwrap();
    fs::create_dir(dir.path().join("work")).unwrap();
    let text = models::text();
    fs::write(own.join("texts/cal.txt"), &text[..2000]).unwrap();
    fs::write(own.join("texts/eval.txt"), &text[3000..4000]).unwrap();
    fs::write(own.join("card.md"), CARD).unwrap();
    fs::write(own.join("config.toml"), DEFAULTS).unwrap();
    models::shortened(1).write(&dir.path().join("work/m.gguf"));
    dir
}

fn command(dir: &Path, args: &str) -> Command {
    let mut command = quantier(args);
    command
        .env_remove("QUANTIER_CONFIG")
        .env_remove("XDG_CONFIG_HOME")
        .env("HOME", dir.join("home"));
    command.current_dir(dir.join("work"));
    command
}

#[track_caller]
fn runs(mut command: Command) -> (String, String) {
    let ran = command.assert().success();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        text(&ran.get_output().stdout),
        text(&ran.get_output().stderr),
    )
}

#[track_caller]
fn fails(mut command: Command, parts: &[&str]) {
    let ran = command.assert().code(1);
    let error = String::from_utf8(ran.get_output().stderr.clone()).unwrap();
    parts
        .iter()
        .for_each(|part| assert!(error.contains(part), "it does not say {part:?}: {error}"));
}

/// Longer than a few seconds.
mod slow {
    use super::*;

    #[test]
    fn defaults_apply_to_make_and_publish() {
        let dir = place();
        let args =
            "make m.gguf --score-positions 64 --publish --base-model org/The-Model --name M -o out";
        let (_, notes) = runs(command(dir.path(), args));
        let file = dir.path().join("home/.config/quantier/config.toml");
        assert!(
            notes.contains(&format!("{} adds ", file.display())),
            "{notes}"
        );
        let out = dir.path().join("work/out");
        let models = listing(&out)
            .into_iter()
            .filter(|(path, _)| path.to_string_lossy().contains("bpw"));
        assert_eq!(
            models
                .filter(|(path, _)| path.extension().is_some_and(|e| e == "gguf"))
                .count(),
            3
        );
        let card = fs::read_to_string(out.join("publish/README.md")).unwrap();
        for part in [
            "license: mit",
            "quantized_by: someone",
            "- \"no\"",
            "Mine: someone/The-Model-GGUF",
        ] {
            assert!(card.contains(part), "{part}: {card}");
        }
        // The recorded command is complete and contains no directory.
        let made = card
            .lines()
            .find(|line| line.starts_with("quantier make m.gguf"))
            .unwrap();
        assert!(
            made.contains("--file=cal.txt --eval=eval.txt --variants=3"),
            "{made}"
        );
        assert!(
            made.contains("--quantized-by=someone") && made.contains("--ctx-size=64"),
            "{made}"
        );
        assert!(!card.contains(dir.path().to_str().unwrap()));

        // The command line takes precedence: over single keys, over lists, and one size over all sizes.
        let args = "publish out -o other --license apache-2.0 --language de --no-config";
        runs(command(dir.path(), args));
        let card = fs::read_to_string(dir.path().join("work/other/README.md")).unwrap();
        assert!(
            card.contains("- de") && !card.contains("quantized_by") && !card.contains("Mine:"),
            "{card}"
        );
        runs(command(
            dir.path(),
            "publish out -o third --license apache-2.0 --language de",
        ));
        let card = fs::read_to_string(dir.path().join("work/third/README.md")).unwrap();
        assert!(
            card.contains("- de")
                && !card.contains("\"no\"")
                && card.contains("license: apache-2.0"),
            "{card}"
        );
        assert!(card.contains("quantized_by: someone"), "{card}");
        let (plan, _) = runs(command(
            dir.path(),
            "make m.gguf --like Q4_K_M --dry-run --json -o like",
        ));
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        assert_eq!(plan["files"].as_array().unwrap().len(), 1, "{plan}");
    }
}

#[test]
fn configuration_file_is_found_by_precedence() {
    let dir = place();
    let other = dir.path().join("other.toml");
    fs::write(&other, "[make]\nvariants = 2\nfile = \"x.txt\"\n").unwrap();
    let shown = |more: &str, set: Option<&str>| -> serde_json::Value {
        let mut command = command(dir.path(), &format!("config --json {more}"));
        set.map(|path| command.env("QUANTIER_CONFIG", path));
        serde_json::from_str(&runs(command).0).unwrap()
    };
    let usual = shown("", None);
    assert_eq!(
        usual["path"],
        dir.path()
            .join("home/.config/quantier/config.toml")
            .to_str()
            .unwrap()
    );
    assert_eq!(usual["in_force"]["publish"][0], "--quantized-by=someone");
    let named = format!("--config {}", other.display());
    let theirs = serde_json::json!([
        format!("--file={}/x.txt", dir.path().display()),
        "--variants=2"
    ]);
    for found in [
        shown(&named, None),
        shown("", Some(other.to_str().unwrap())),
        shown(&named, Some("/nowhere")),
    ] {
        assert_eq!(found["in_force"]["make"], theirs, "{found}");
    }
    assert_eq!(shown("--no-config", None)["found"], false);
    let mut xdg = command(dir.path(), "config");
    xdg.env("XDG_CONFIG_HOME", dir.path());
    let (text, _) = runs(xdg);
    assert!(
        text.contains("quantier/config.toml: no such file") && text.contains("#quantized-by ="),
        "{text}"
    );
    let (text, _) = runs(command(dir.path(), "config"));
    assert!(
        text.contains("publish, make --publish:\n  --quantized-by=someone"),
        "{text}"
    );

    // The example is a valid file.
    let (example, _) = runs(command(dir.path(), "config --example"));
    fs::write(&other, example).unwrap();
    assert_eq!(
        shown(&named, None)["in_force"]["make"],
        serde_json::json!([])
    );

    // Other commands ignore it.
    fs::write(
        dir.path().join("home/.config/quantier/config.toml"),
        "nonsense",
    )
    .unwrap();
    runs(command(dir.path(), "inspect m.gguf"));
}

#[test]
fn configuration_errors_are_reported_before_any_work() {
    let dir = place();
    let file = dir.path().join("home/.config/quantier/config.toml");
    let make = "make m.gguf --bpw 4 -o out";
    for (text, parts) in [
        (
            "[make]\nvariants = \"many\"\n",
            &[
                "config.toml, line 2",
                "variants must be a whole number",
                "'many'",
            ][..],
        ),
        (
            "[publish]\n\nlicence = \"mit\"\n",
            &["config.toml, line 3", "'licence'", "the nearest is license"],
        ),
        ("[make\n", &["config.toml, line 1", "not valid TOML"]),
        (
            "[make]\nfile = \"gone.txt\"\n",
            &["cannot read", ".config/quantier/gone.txt"],
        ),
    ] {
        fs::write(&file, text).unwrap();
        fails(command(dir.path(), make), parts);
        assert!(!dir.path().join("work/out").exists());
    }
    fs::write(&file, [0xff, 0xfe]).unwrap();
    fails(
        command(dir.path(), make),
        &["cannot read the configuration file", "config.toml"],
    );
    fails(
        command(dir.path(), &format!("{make} --config nowhere.toml")),
        &["nowhere.toml", "cannot read the configuration file"],
    );
    fails(
        command(dir.path(), &format!("{make} --config .")),
        &["not a file", "--no-config"],
    );
    command(dir.path(), &format!("{make} --config a --no-config"))
        .assert()
        .code(2);
}
