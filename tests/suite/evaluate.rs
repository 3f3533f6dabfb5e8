//! Results of `perplexity` and `kld` for several texts, several models and a logits file, on the
//! small trained model and quantized files of it.

use crate::support::program::{fails, json, succeeds};
use crate::support::text::{numbers, prose};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const CTX: &str = "-c 48 --chunks 4";

fn refmodel() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/refmodel-f16.gguf")
}

/// The model as m.gguf, two quantized files, and two texts.
fn with_models() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(refmodel(), dir.path().join("m.gguf")).unwrap();
    succeeds(dir.path(), "quantize m.gguf q3.gguf Q3_K_M");
    succeeds(dir.path(), "quantize m.gguf q8.gguf Q8_0");
    std::fs::write(dir.path().join("a.txt"), prose(2000)).unwrap();
    std::fs::write(dir.path().join("b.txt"), numbers(2000)).unwrap();
    dir
}

fn number(value: &Value, path: &str) -> f64 {
    value
        .pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{path} in {value}"))
}

#[track_caller]
fn near(a: f64, b: f64, off: f64) {
    assert!((a - b).abs() <= off, "{a} {b}");
}

#[test]
fn combined_runs_equal_single_runs() {
    let dir = with_models();
    let all = json(
        dir.path(),
        &format!("kld m.gguf q3.gguf q8.gguf -f a.txt -f b.txt {CTX} --json"),
    );
    assert_eq!(all["chunks"], 8);
    for (i, model) in ["q3.gguf", "q8.gguf"].iter().enumerate() {
        for (j, text) in ["a.txt", "b.txt"].iter().enumerate() {
            let one = json(
                dir.path(),
                &format!("kld m.gguf {model} -f {text} {CTX} --json"),
            );
            assert_eq!(
                one["models"][0]["statistics"],
                all["models"][i]["texts"][j]["statistics"]
            );
            assert_eq!(all["models"][i]["texts"][j]["text"], *text);
            assert_eq!(one["models"][0]["statistics"]["rows"], 4 * 23);
        }
        // Equal numbers of rows per text: the mean is the mean of both.
        let kld = |at: &str| number(&all, &format!("/models/{i}{at}/statistics/kld/value"));
        near(kld(""), (kld("/texts/0") + kld("/texts/1")) / 2.0, 1e-12);
        let base = |at: &str| {
            number(
                &all,
                &format!("/models/{i}{at}/statistics/perplexity_base/value"),
            )
        };
        let ppl = json(
            dir.path(),
            &format!("perplexity m.gguf -f a.txt -f b.txt {CTX} --json"),
        );
        near(base(""), number(&ppl, "/perplexity/perplexity/value"), 1e-9);
        near(
            base("/texts/1"),
            number(&ppl, "/texts/1/perplexity/perplexity/value"),
            1e-9,
        );
    }
    let kld = |i: usize| number(&all, &format!("/models/{i}/statistics/kld/value"));
    assert!(
        kld(0) > 10.0 * kld(1) && kld(1) > 0.0,
        "{} {}",
        kld(0),
        kld(1)
    );
}

#[test]
fn results_are_independent_of_memory_and_threads() {
    let dir = with_models();
    let run = |more: &str| {
        json(
            dir.path(),
            &format!("kld m.gguf q3.gguf q8.gguf -f a.txt {CTX} --json {more}"),
        )
    };
    let all = run("--threads 2");
    // One MiB is less than any layer: all activations go to the temporary file, and models are
    // compared one by one.
    assert_eq!(run("--max-memory 1 --threads 1"), all);
    assert_eq!(run("--max-memory 12"), all);
}

#[test]
fn divergence_from_itself_is_zero() {
    let dir = with_models();
    let same = json(
        dir.path(),
        &format!("kld m.gguf m.gguf -f a.txt {CTX} --json"),
    );
    let statistics = &same["models"][0]["statistics"];
    assert_eq!(statistics["kld"]["value"], 0.0);
    assert_eq!(statistics["same_top"]["value"], 1.0);
    assert_eq!(statistics["ratio"]["value"], 1.0);
}

#[test]
fn logits_files_replace_the_base() {
    let dir = with_models();
    let direct = json(
        dir.path(),
        &format!("kld m.gguf q3.gguf -f a.txt -f b.txt {CTX} --json --save-logits a.kld"),
    );
    succeeds(
        dir.path(),
        &format!("perplexity -m m.gguf -f a.txt -f b.txt {CTX} --save-logits b.kld"),
    );
    let bytes = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("a.kld") == bytes("b.kld"));
    let stored = json(dir.path(), "kld --logits a.kld q3.gguf --json");
    let pick =
        |value: &Value, what: &str| number(value, &format!("/models/0/statistics/{what}/value"));
    // 16 nats in 65,535 steps; statistics of the rows' own text are not stored in the file.
    near(pick(&stored, "kld"), pick(&direct, "kld"), 2e-4);
    assert_eq!(pick(&stored, "perplexity"), pick(&direct, "perplexity"));
    near(
        pick(&stored, "perplexity_base") / pick(&direct, "perplexity_base"),
        1.0,
        1e-4,
    );
    // With the texts, results are per text again.
    let with_texts = json(
        dir.path(),
        &format!("kld --logits a.kld q3.gguf -f a.txt -f b.txt {CTX} --json"),
    );
    assert_eq!(
        with_texts["models"][0]["statistics"],
        stored["models"][0]["statistics"]
    );
    assert_eq!(
        with_texts["models"][0]["texts"].as_array().unwrap().len(),
        2
    );
    // Fewer chunks than the file has.
    let fewer = json(dir.path(), "kld --logits a.kld q3.gguf --chunks 3 --json");
    assert_eq!(fewer["chunks"], 3);
    assert_eq!(fewer["models"][0]["statistics"]["rows"], 3 * 23);
}

#[test]
fn tables_have_a_line_per_text_and_model() {
    let dir = with_models();
    let text = succeeds(
        dir.path(),
        &format!("kld m.gguf q3.gguf q8.gguf -f a.txt -f b.txt {CTX}"),
    );
    for (start, count) in [
        ("a.txt ", 2),
        ("b.txt ", 2),
        ("all ", 2),
        ("q8.gguf ", 1),
        ("Mean    KLD:", 2),
    ] {
        let lines = text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(lines, count, "{start:?} in\n{text}");
    }
    let text = succeeds(
        dir.path(),
        &format!("perplexity m.gguf -f a.txt -f b.txt {CTX}"),
    );
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.contains("Final estimate: PPL = ") && text.contains("8 chunks of 48 tokens"),
        "{text}"
    );
}

/// The maximum with its place, means by position, the distribution, and their picture.
#[test]
fn divergences_have_places() {
    let dir = with_models();
    let all = json(
        dir.path(),
        &format!("kld m.gguf q3.gguf q8.gguf -f a.txt -f b.txt {CTX} --json --svg kld.svg"),
    );
    let texts = ["a.txt", "b.txt"].map(|name| {
        let tokenized = json(
            dir.path(),
            &format!("tokenize -m m.gguf -f {name} --no-escape --no-parse-special --json"),
        );
        tokenized["ids"].as_array().unwrap().clone()
    });
    for model in all["models"].as_array().unwrap() {
        let statistics = &model["statistics"];
        let largest = model["largest"].as_array().unwrap();
        assert_eq!(largest.len(), 5);
        assert_eq!(largest[0]["kld"], statistics["kld_spread"]["maximum"]);
        for row in largest {
            let text = usize::from(row["text"] == "b.txt");
            let [chunk, position] =
                ["chunk", "position"].map(|what| row[what].as_u64().unwrap() as usize);
            assert!(chunk < 4 && (24..47).contains(&position), "{row}");
            // 48 tokens per chunk; the label is the next token.
            assert_eq!(row["token"], texts[text][48 * chunk + position + 1]);
        }
        let bins = model["positions"].as_array().unwrap();
        assert_eq!(
            (bins[0]["first"].as_u64(), bins[7]["end"].as_u64()),
            (Some(24), Some(47))
        );
        let rows: Vec<f64> = bins.iter().map(|bin| number(bin, "/rows")).collect();
        let sum: f64 = bins
            .iter()
            .zip(&rows)
            .map(|(bin, rows)| rows * number(bin, "/kld/value"))
            .sum();
        assert_eq!(rows.iter().sum::<f64>(), 8.0 * 23.0);
        near(sum / (8.0 * 23.0), number(statistics, "/kld/value"), 1e-12);
        let distribution = model["distribution"].as_array().unwrap();
        assert_eq!(distribution[0]["kld"], statistics["kld_spread"]["maximum"]);
        let trimmed = number(statistics, "/kld_trimmed");
        assert!(trimmed > 0.0 && trimmed < number(statistics, "/kld/value"));
    }
    let picture = std::fs::read_to_string(dir.path().join("kld.svg")).unwrap();
    assert!(picture.starts_with("<svg ") && picture.contains("q8.gguf: mean "));
    let text = succeeds(
        dir.path(),
        &format!("kld m.gguf q3.gguf q8.gguf -f a.txt {CTX}"),
    );
    for part in [
        "Trimmed KLD:",
        "Maximum at chunk ",
        "most probable next token differs",
        "mean KLD by position in the context",
        "24 to 26",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

/// 2,048 tokens are the model's context.
#[test]
fn contexts_beyond_the_model_are_forced_or_refused() {
    let dir = with_models();
    std::fs::write(dir.path().join("long.txt"), prose(40_000)).unwrap();
    for command in ["kld m.gguf q3.gguf", "perplexity m.gguf"] {
        fails(
            dir.path(),
            &format!("{command} -f long.txt -c 2049"),
            &[
                "chunks of 2049 tokens exceed the model's context of 2048",
                "--force-context",
            ],
        );
    }
    let forced = json(
        dir.path(),
        "perplexity m.gguf -f long.txt -c 2049 --force-context --chunks 1 --json",
    );
    assert_eq!(forced["perplexity"]["rows"], 1024);
}

const CHATS: &str = r#"{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day to you."}]}

{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two, I think."}, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Three."}]}
"#;

/// The models with a chat template, and conversations.
fn with_chats(template: &str) -> TempDir {
    let dir = with_models();
    std::fs::write(dir.path().join("t.jinja"), template).unwrap();
    // A new key needs a copy.
    for model in ["m.gguf", "q3.gguf"] {
        succeeds(
            dir.path(),
            &format!("set {model} --chat-template t.jinja -o copy.gguf"),
        );
        std::fs::rename(dir.path().join("copy.gguf"), dir.path().join(model)).unwrap();
    }
    std::fs::write(dir.path().join("c.jsonl"), CHATS).unwrap();
    dir
}

const CHATML: &str = include_str!("../../testdata/chat/chatml.jinja");

#[test]
fn conversations_are_scored_on_the_assistants_tokens() {
    let dir = with_chats(CHATML);
    let tokenized = json(dir.path(), "tokenize -m m.gguf --chat c.jsonl --json");
    let ids = |value: &Value| -> Vec<u64> {
        let ids = value.as_array().unwrap().iter();
        ids.map(|id| id.as_u64().unwrap()).collect()
    };
    let plain = |text: &str| {
        std::fs::write(dir.path().join("p.txt"), text).unwrap();
        ids(&json(dir.path(), "tokenize -m m.gguf -f p.txt --no-escape --json")["ids"])
    };
    let second = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n\
                  Two, I think.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nThree.<|im_end|>\n";
    assert_eq!(ids(&tokenized[1]["ids"]), plain(second));
    assert_eq!(tokenized[1]["turns"].as_array().unwrap().len(), 1);
    assert_eq!(ids(&tokenized[1]["turns"][0]["ids"]), plain(second));
    let mut scored = 0;
    for conversation in tokenized.as_array().unwrap() {
        for range in conversation["turns"][0]["assistant"].as_array().unwrap() {
            let range = ids(range);
            scored += range[1] - range[0];
        }
    }
    let found = json(dir.path(), "kld m.gguf q3.gguf --chat c.jsonl --json");
    assert_eq!(found["models"][0]["statistics"]["rows"], scored);
    assert_eq!(found["texts"][0]["sequences"], 2);
    let all = json(
        dir.path(),
        "kld m.gguf q3.gguf --chat c.jsonl --chat-tokens all --json",
    );
    let tokens = ids(&tokenized[0]["ids"]).len() + ids(&tokenized[1]["ids"]).len();
    assert_eq!(all["models"][0]["statistics"]["rows"], tokens - 2);
    // With a plain text, results are per text; those of conversations do not change.
    let both = json(
        dir.path(),
        &format!("kld m.gguf q3.gguf -f a.txt --chat c.jsonl {CTX} --json"),
    );
    assert_eq!(
        both["models"][0]["texts"][1]["statistics"],
        found["models"][0]["statistics"]
    );
    let plain = json(
        dir.path(),
        &format!("kld m.gguf q3.gguf -f a.txt {CTX} --json"),
    );
    assert_eq!(
        both["models"][0]["texts"][0]["statistics"],
        plain["models"][0]["statistics"]
    );
    let ppl = json(dir.path(), "perplexity m.gguf --chat c.jsonl --json");
    near(
        number(&ppl, "/perplexity/perplexity/value"),
        number(&found, "/models/0/statistics/perplexity_base/value"),
        1e-9,
    );
}

/// A template that drops the reasoning of earlier answers makes a sequence of each turn, as at run time.
#[test]
fn turns_that_are_rendered_differently_later_are_scored_apart() {
    let template = "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.reasoning_content is defined %}\
                    ({{ m.reasoning_content }}){% endif %}{{ m.content }}</>{% endfor %}\
                    {% if add_generation_prompt %}<assistant>{% endif %}";
    let dir = with_chats(template);
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "reasoning_content": "hm", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "reasoning_content": "well", "content": "d"}]}"#;
    std::fs::write(dir.path().join("c.jsonl"), chat).unwrap();
    let tokenized = json(dir.path(), "tokenize -m m.gguf --chat c.jsonl --json");
    let turns = tokenized[0]["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 2);
    for turn in turns {
        assert_eq!(turn["assistant"].as_array().unwrap().len(), 1);
    }
    json(dir.path(), "kld m.gguf q3.gguf --chat c.jsonl --json");
}

#[test]
fn conversations_and_templates_that_fail_are_named() {
    let dir = with_chats(CHATML);
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "bad.jsonl",
        &format!("{}\n{{\"messages\": 3}}", CHATS.trim_end()),
    );
    fails(
        dir.path(),
        "kld m.gguf q3.gguf --chat bad.jsonl",
        &["bad.jsonl: line 4: no array \"messages\""],
    );
    write(
        "user.jsonl",
        r#"{"messages": [{"role": "user", "content": "a"}]}"#,
    );
    fails(
        dir.path(),
        "kld m.gguf q3.gguf --chat user.jsonl",
        &["user.jsonl: line 1: no message of the assistant"],
    );
    let long = "word ".repeat(3000);
    write(
        "long.jsonl",
        &format!(
            r#"{{"messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant", "content": "{long}"}}]}}"#
        ),
    );
    fails(
        dir.path(),
        "kld m.gguf q3.gguf --chat long.jsonl",
        &[
            "long.jsonl: line 1: the conversation has ",
            "context of 2048",
        ],
    );
    fails(
        dir.path(),
        "kld q8.gguf q3.gguf --chat c.jsonl",
        &["q8.gguf: it has no chat template"],
    );
    let strict = with_chats(
        "{% for m in messages %}\n{{ raise_exception('no ' ~ m.role) if m.content == 'And?' else m.content }}{% endfor %}",
    );
    fails(
        strict.path(),
        "kld m.gguf q3.gguf --chat c.jsonl",
        &["c.jsonl: line 3: the chat template: line 2: no user"],
    );
}

/// Conversations calibrate as the text that they are rendered to.
#[test]
fn conversations_are_calibration_text() {
    let dir = with_chats(CHATML);
    let answer = "word after word ".repeat(40);
    let chat = format!(
        r#"{{"messages": [{{"role": "user", "content": "Go on."}}, {{"role": "assistant", "content": "{answer}"}}]}}"#
    );
    let rendered =
        format!("<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n");
    // The name of the text is in the file.
    for (place, text) in [("chat", &chat), ("plain", &rendered)] {
        let place = dir.path().join(place);
        std::fs::create_dir(&place).unwrap();
        // A final line break is dropped from a plain text.
        let text = format!("{text}\n");
        std::fs::write(place.join("text"), text).unwrap();
    }
    let run = |place: &str, option: &str| {
        let place = dir.path().join(place);
        succeeds(
            &place,
            &format!("imatrix {option} text -c 16 -o out.gguf ../m.gguf"),
        );
        std::fs::read(place.join("out.gguf")).unwrap()
    };
    assert!(run("chat", "--chat") == run("plain", "--parse-special -f"));
    let plan = "make m.gguf --bpw 4.25 -c 16 --dry-run -o out";
    succeeds(dir.path(), &format!("{plan} --chat chat/text --eval b.txt"));
    std::fs::write(dir.path().join("bad.jsonl"), "{}\n").unwrap();
    fails(
        dir.path(),
        &format!("{plan} --chat bad.jsonl"),
        &["bad.jsonl: line 1: no array \"messages\""],
    );
    fails(
        dir.path(),
        "tune m.gguf q3.gguf --chat bad.jsonl -o tuned.gguf",
        &["bad.jsonl: line 1: no array \"messages\""],
    );
}
