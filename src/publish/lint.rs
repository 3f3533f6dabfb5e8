//! Checks of a model's chat template for defects that affect users.

use crate::chat::template::{ChatTemplate, Message};
use serde_json::json;

/// Findings; empty if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings(pub Vec<String>);

/// Distinctive contents, searched for in the rendered text.
const SYSTEM: &str = "QzSystem";
const USER: &str = "QzQuestion";
const ASSISTANT: &str = "QzAnswer";
const TOOL: &str = "QzResult";
const FUNCTION: &str = "qz_function";

/// Renders one conversation of each kind, and reports failures and omissions. A parse error is a
/// finding too.
pub fn lint(parsed: Option<&Result<ChatTemplate, String>>) -> Findings {
    let template = match parsed {
        None => {
            return Findings(vec![
                "the model has no chat template: it only continues text".into(),
            ]);
        }
        Some(Err(what)) => {
            return Findings(vec![format!("the chat template cannot be parsed: {what}")]);
        }
        Some(Ok(template)) => template,
    };
    let mut found = Vec::new();
    if template.marks_generation {
        found.push(
            "the chat template has {% generation %} tags, which mark what a training would learn: Transformers and a recent \
             llama.cpp pass over them, others fail; take them out"
                .into(),
        );
    }
    let says = Message::new;
    let (question, answer) = (says("user", USER), says("assistant", ASSISTANT));
    let plain: [(&str, Vec<Message>, &[&str]); 4] = [
        ("a question", vec![question.clone()], &[USER]),
        (
            "a system message and a question",
            vec![says("system", SYSTEM), question.clone()],
            &[SYSTEM, USER],
        ),
        (
            "several turns",
            vec![question.clone(), answer.clone(), question.clone()],
            &[USER, ASSISTANT],
        ),
        (
            "a conversation that ends with an answer",
            vec![question.clone(), answer.clone()],
            &[USER, ASSISTANT],
        ),
    ];
    for (what, messages, contents) in plain {
        let generate = messages.last().is_some_and(|last| last.role == "user");
        report(
            &mut found,
            what,
            template.render(&messages, generate),
            contents,
        );
    }
    let asks_nothing = template.render(std::slice::from_ref(&question), true);
    if asks_nothing.is_ok()
        && asks_nothing == template.render(std::slice::from_ref(&question), false)
    {
        // [/INST] ends a question and starts the answer, so this is a finding only if nothing else
        // follows a question.
        let ends = asks_nothing.is_ok_and(|text| text.trim_end().ends_with(USER));
        if ends {
            found.push("the chat template ignores add_generation_prompt: a prompt does not start the answer".into());
        }
    }
    let tools = json!([{ "type": "function", "function": { "name": FUNCTION, "description": "Does something.",
        "parameters": { "type": "object", "properties": { "a": { "type": "string", "description": "What." } }, "required": ["a"] } } }]);
    let call = json!([{ "id": "call00001", "type": "function", "function": { "name": FUNCTION, "arguments": { "a": "b" } } }]);
    let calls = Message {
        tool_calls: Some(call),
        ..says("assistant", "")
    };
    let described = template.render_with(std::slice::from_ref(&question), Some(&tools), true);
    match described {
        Ok(text) if !text.contains(FUNCTION) => {
            found.push(
                "the chat template takes no tools: function descriptions are left out".into(),
            );
        }
        described => {
            report(
                &mut found,
                "a question with tools",
                described,
                &[USER, FUNCTION],
            );
            let turns = [question, calls, says("tool", TOOL)];
            let rendered = template.render_with(&turns, Some(&tools), true);
            report(
                &mut found,
                "a tool's call and result",
                rendered,
                &[USER, TOOL],
            );
        }
    }
    Findings(found)
}

fn report(
    found: &mut Vec<String>,
    what: &str,
    rendered: Result<String, String>,
    contents: &[&str],
) {
    match rendered {
        Err(error) => found.push(format!("the chat template cannot render {what}: {error}")),
        Ok(text) => {
            let role = |content: &str| match content {
                SYSTEM => "the system message",
                USER => "the question",
                ASSISTANT => "the answer",
                TOOL => "the tool's result",
                _ => "the function",
            };
            for missing in contents.iter().filter(|content| !text.contains(**content)) {
                found.push(format!(
                    "the chat template leaves out {} of {what}",
                    role(missing)
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lint_of(source: &str) -> Vec<String> {
        lint(Some(&ChatTemplate::parse(source, "<s>", "</s>"))).0
    }

    const ALL: &str = "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}\
                       {% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}\
                       {% if add_generation_prompt %}<assistant>{% endif %}";

    #[test]
    fn complete_templates_have_no_findings() {
        assert_eq!(lint_of(ALL), Vec::<String>::new());
    }

    #[test]
    fn defects_of_templates_are_found() {
        let has = |source: &str, part: &str| {
            let found = lint_of(source);
            assert!(found.iter().any(|f| f.contains(part)), "{part}: {found:?}");
        };
        assert!(lint(None).0[0].contains("no chat template"));
        has("{% for %}", "cannot be parsed: line 1");
        has(
            &ALL.replace(
                "{{ m.content }}",
                "{% generation %}{{ m.content }}{% endgeneration %}",
            ),
            "{% generation %} tags",
        );
        has(
            &ALL.replace(
                "<{{ m.role }}>",
                "{% if m.role == 'system' %}{{ raise_exception('No system!') }}{% endif %}",
            ),
            "cannot render a system message and a question: line 2: No system!",
        );
        has(
            &ALL.replace(
                "{{ m.content }}",
                "{% if m.role != 'system' %}{{ m.content }}{% endif %}",
            ),
            "leaves out the system message",
        );
        has(
            &ALL.replace("{% if tools %}{{ tools | tojson }}\n{% endif %}", ""),
            "takes no tools",
        );
        has(
            &ALL.replace(
                "{{ m.content }}",
                "{% if m.role != 'tool' %}{{ m.content }}{% endif %}",
            ),
            "leaves out the tool's result",
        );
        has(
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "ignores add_generation_prompt",
        );
    }
}
