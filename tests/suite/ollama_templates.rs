//! Go templates of chat templates of every family: Go's text/template must render the same as Jinja
//! with the model's template. Without Go, only the pieces are compared;
//! `scripts/ollama-templates.sh` installs it.

use quantier::chat::template::{ChatTemplate, Message};
use quantier::publish::go_template::go_template;
use quantier::publish::turns::{Family, System, Turns, conversations};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;

const FAMILIES: [(&str, Family, &[&str]); 9] = [
    ("chatml", Family::ChatMl, &["<|im_end|>", "<|im_start|>"]),
    (
        "chatml-default-system",
        Family::ChatMl,
        &["<|im_end|>", "<|im_start|>"],
    ),
    (
        "llama3",
        Family::Llama3,
        &["<|eot_id|>", "<|start_header_id|>"],
    ),
    (
        "gemma",
        Family::Gemma,
        &["<end_of_turn>", "<start_of_turn>"],
    ),
    (
        "gemma-no-system",
        Family::Gemma,
        &["<end_of_turn>", "<start_of_turn>"],
    ),
    ("mistral", Family::Mistral, &["</s>", "[INST]"]),
    ("mistral-inst-each", Family::Mistral, &["</s>", "[INST]"]),
    ("phi", Family::Phi, &["<|end|>", "<|user|>"]),
    ("plain-words", Family::Other, &["</s>"]),
];

fn parsed(name: &str) -> ChatTemplate {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/chat/{name}.jinja"));
    ChatTemplate::parse(&fs::read_to_string(path).unwrap(), "<s>", "</s>").unwrap()
}

#[test]
fn families_are_recognized() {
    for (name, family, stops) in FAMILIES {
        let turns = Turns::of(&parsed(name)).unwrap_or_else(|what| panic!("{name}: {what}"));
        assert_eq!(
            (turns.family(), turns.stops(Some("</s>"))),
            (family, stops.iter().map(|s| s.to_string()).collect()),
            "{name}"
        );
        let place = match turns.system {
            System::Turn { .. } => "turn",
            System::First(_) => "first",
            System::Last(_) => "last",
            System::None => "none",
        };
        let expected = match name {
            "gemma" | "mistral-inst-each" => "first",
            "gemma-no-system" => "none",
            "mistral" => "last",
            _ => "turn",
        };
        assert_eq!(place, expected, "{name}");
        assert_eq!(turns.trims, ["llama3", "gemma"].contains(&name), "{name}");
        assert_eq!(
            !turns.default_system.is_empty(),
            ["llama3", "chatml-default-system"].contains(&name),
            "{name}"
        );
    }
}

#[test]
fn nonuniform_conversations_are_refused() {
    assert!(Turns::of(&parsed("counts")).is_err());
    let of =
        |source: &str| Turns::of(&ChatTemplate::parse(source, "<s>", "</s>").unwrap()).unwrap_err();
    assert!(of("{{ messages[-1].content }}").contains("left out"));
    assert!(of("{% for m in messages %}{{ m.content | upper }}{% endfor %}").contains("left out"));
    assert!(of("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.content | length > 20 %}!{% endif %}{% endfor %}")
        .contains("uniform turns"));
    assert!(of("{{ raise_exception('never') }}").contains("never"));
}

/// Renders all templates of a JSON file with all their conversations.
const HARNESS: &str = r#"package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct{ Role, Content string }

type Case struct {
	Template      string
	Conversations [][]Message
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	var all [][]string
	for _, c := range cases {
		t := template.Must(template.New("").Option("missingkey=zero").Parse(c.Template))
		var rendered []string
		for _, messages := range c.Conversations {
			var pointers []*Message
			for i := range messages {
				pointers = append(pointers, &messages[i])
			}
			var out strings.Builder
			values := map[string]any{"Messages": pointers, "System": "", "Response": ""}
			if err := t.Execute(&out, values); err != nil {
				panic(err)
			}
			rendered = append(rendered, out.String())
		}
		all = append(all, rendered)
	}
	json.NewEncoder(os.Stdout).Encode(all)
}
"#;

/// Output of Go; `None` without Go.
fn rendered_by_go(cases: &serde_json::Value) -> Option<Vec<Vec<String>>> {
    if Command::new("go").arg("version").output().is_err() {
        assert!(
            std::env::var_os("QUANTIER_NEEDS_GO").is_none(),
            "there is no Go, and QUANTIER_NEEDS_GO is set"
        );
        eprintln!(
            "note: there is no Go here, so its templates are not rendered; scripts/ollama-templates.sh installs it"
        );
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("main.go"), HARNESS).unwrap();
    let input = dir.path().join("cases.json");
    fs::write(&input, serde_json::to_vec(cases).unwrap()).unwrap();
    let mut go = Command::new("go");
    go.args(["run", "main.go"])
        .current_dir(dir.path())
        .env("GOCACHE", dir.path().join("cache"))
        .env("GO111MODULE", "off");
    let output = go.stdin(fs::File::open(&input).unwrap()).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn go_and_jinja_render_identically() {
    let mut cases = Vec::new();
    let mut expected = Vec::new();
    for (name, ..) in FAMILIES {
        let template = parsed(name);
        let turns = Turns::of(&template).unwrap();
        let mut all = conversations(turns.system != System::None);
        let mut rendered: Vec<String> = all
            .iter()
            .map(|turns| template.prompt(turns, true).unwrap())
            .collect();
        // Contents that Go must not change, and more turns than the program's own check.
        let odd = [
            "{{ .Role }} \"x\" \\n",
            "a\n\n  b\t<|x|>",
            "ünïcödé 🦊",
            "`back` 'tick'",
            "5",
        ];
        let roles = ["user", "assistant"].iter().cycle();
        all.push(
            odd.iter()
                .zip(roles)
                .map(|(said, role)| Message::new(role, said))
                .collect(),
        );
        rendered.push(template.prompt(all.last().unwrap(), true).unwrap());
        // An answer to be continued: everything up to its end.
        let begun = [
            Message::new("user", "Count."),
            Message::new("assistant", "One, two,"),
        ];
        rendered.push(format!(
            "{}{}{}{}One, two,",
            turns
                .render(&begun[..1])
                .trim_end_matches(&*turns.generation),
            "",
            turns.assistant.0,
            ""
        ));
        all.push(begun.to_vec());
        if turns.system == System::None {
            // The system text is kept: it precedes the first question.
            let led = [
                Message::new("system", "Be kind."),
                Message::new("user", "Hello"),
            ];
            rendered.push(
                template
                    .prompt(&[Message::new("user", "Be kind.\n\nHello")], true)
                    .unwrap(),
            );
            all.push(led.to_vec());
        }
        let messages: Vec<Vec<_>> = all
            .iter()
            .map(|turns| {
                turns
                    .iter()
                    .map(|m| json!({"Role": m.role, "Content": m.content}))
                    .collect()
            })
            .collect();
        cases.push(json!({ "Template": go_template(&turns), "Conversations": messages }));
        expected.push(rendered);
    }
    let Some(rendered) = rendered_by_go(&json!(cases)) else {
        return;
    };
    for ((name, ..), (go, jinja)) in FAMILIES.iter().zip(rendered.iter().zip(&expected)) {
        assert_eq!(go.len(), jinja.len());
        for (go, jinja) in go.iter().zip(jinja) {
            assert_eq!(go, jinja, "{name}");
        }
    }
}
