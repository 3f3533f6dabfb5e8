//! The pieces that a chat template writes around the turns of a conversation.
//!
//! The template is not parsed but probed: conversations with known contents are rendered, and the
//! text between the contents is split into the pieces of [`Turns`]. The pieces are then combined
//! for other conversations, and accepted only if the template itself renders the same. So the style
//! of the template does not matter, and templates beyond such pieces (counting, looking into
//! contents, changing early turns) are detected.

use crate::chat::template::{ChatTemplate, Message};

/// Place of the system text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum System {
    /// A turn of its own, before all others.
    Turn {
        /// Text before it.
        open: String,
        /// Text after it.
        close: String,
    },
    /// In the first user turn.
    First(Within),
    /// In the last user turn.
    Last(Within),
    /// None: the template rejects or ignores it.
    None,
}

/// A system text inside a user turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Within {
    /// Text between the start of the turn and the system text.
    pub open: String,
    /// Text between the system text and the user text.
    pub close: String,
}

/// Pieces of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turns {
    /// Start of every prompt, without the BOS token, which the runtime adds.
    pub start: String,
    /// Start of a conversation without a system text: usually a turn with the default system text.
    pub default_system: String,
    /// Place of the system text.
    pub system: System,
    /// Text before and after a user text.
    pub user: (String, String),
    /// Text before and after an assistant text.
    pub assistant: (String, String),
    /// Start of the assistant's next turn.
    pub generation: String,
    /// True if blanks around contents are trimmed, which Go templates cannot do.
    pub trims: bool,
}

/// Template families by common name. Informative only: the pieces matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `<|im_start|>user`
    ChatMl,
    /// `<|start_header_id|>user<|end_header_id|>`
    Llama3,
    /// `<start_of_turn>user`
    Gemma,
    /// `[INST]`
    Mistral,
    /// `<|user|>`
    Phi,
    /// Any other.
    Other,
}

impl Family {
    /// Name of the family.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::ChatMl => "ChatML",
            Family::Llama3 => "Llama 3",
            Family::Gemma => "Gemma",
            Family::Mistral => "Mistral",
            Family::Phi => "Phi",
            Family::Other => "of its own kind",
        }
    }
}

/// Contents that no template contains and that are not substrings of each other.
const SYSTEM: &str = "QzSysQ";
const USER: [&str; 2] = ["QzUsrAQ", "QzUsrBQ"];
const ASSISTANT: &str = "QzAstQ";

impl Turns {
    /// Splits a template into its pieces.
    ///
    /// # Errors
    /// A template that cannot be rendered, or with turns that depend on their context.
    pub fn of(template: &ChatTemplate) -> Result<Turns, String> {
        let user = |i: usize| Message::new("user", USER[i]);
        let assistant = || Message::new("assistant", ASSISTANT);
        let render = |messages: &[Message], generate| template.prompt(messages, generate);

        let [before, after] = between(&render(&[user(0)], false)?, [USER[0]])?;
        let asked = render(&[user(0)], true)?;
        let [_, after_asked] = between(&asked, [USER[0]])?;
        let generation = after_asked
            .strip_prefix(&*after)
            .ok_or("the generation prompt changes the user turn")?;
        // The last answer may begin differently from earlier ones (for example, with its
        // reasoning).
        let [_, _, end] = between(
            &render(&[user(0), assistant()], false)?,
            [USER[0], ASSISTANT],
        )?;
        let three = render(&[user(0), assistant(), user(1)], true)?;
        let [_, early, next, _] = between(&three, [USER[0], ASSISTANT, USER[1]])?;
        let answer = early
            .strip_prefix(&*after)
            .ok_or("an answer changes the preceding user turn")?;
        // Between an answer and the next question are the end of the answer and the start of the
        // turn. Text common to all user turns belongs to each turn; text before the first only
        // belongs to the conversation.
        let close = if next.starts_with(&*end) {
            end
        } else {
            common(&end, &next)
        };
        let (close, opened, lead) = match before.strip_suffix(&next[close.len()..]) {
            Some(lead) => (&*close, &next[close.len()..], lead),
            None => (
                next.strip_suffix(&*before)
                    .ok_or("the first user turn begins differently from later ones")?,
                &*before,
                "",
            ),
        };
        let mut turns = Turns {
            start: String::new(),
            default_system: lead.to_owned(),
            system: System::None,
            user: (opened.to_owned(), after),
            assistant: (answer.to_owned(), close.to_owned()),
            generation: generation.to_owned(),
            trims: false,
        };
        turns.find_system(template)?;
        let padded = format!(" {} ", USER[0]);
        turns.trims =
            render(&[Message::new("user", &padded)], true)? != asked.replace(USER[0], &padded);
        turns.check(template)?;
        Ok(turns)
    }

    fn find_system(&mut self, template: &ChatTemplate) -> Result<(), String> {
        let (system, user) = (Message::new("system", SYSTEM), |i: usize| {
            Message::new("user", USER[i])
        });
        let conversation = [
            system,
            user(0),
            Message::new("assistant", ASSISTANT),
            user(1),
        ];
        // It may be rejected or ignored.
        let rendered = template.prompt(&conversation, true).unwrap_or_default();
        let Some(at) = rendered.find(SYSTEM) else {
            self.start = std::mem::take(&mut self.default_system);
            return Ok(());
        };
        let opened = &*self.user.0;
        let changes = "the system message changes the user turn";
        if rendered.find(ASSISTANT).is_some_and(|answer| answer < at) {
            let [before, _, gap, close, _] =
                between(&rendered, [USER[0], ASSISTANT, SYSTEM, USER[1]])?;
            let open = gap
                .strip_prefix(&*self.assistant.1)
                .and_then(|gap| gap.strip_prefix(opened))
                .ok_or(changes)?;
            let start = before.strip_suffix(opened).ok_or(changes)?.to_owned();
            self.system = System::Last(Within {
                open: open.to_owned(),
                close,
            });
            self.default_system = self
                .default_system
                .strip_prefix(&*start)
                .ok_or(changes)?
                .to_owned();
            self.start = start;
            return Ok(());
        }
        let [before, close, _, _, _] = between(&rendered, [SYSTEM, USER[0], ASSISTANT, USER[1]])?;
        // A separate system turn ends before the start of the user turn; a system text within the
        // user turn comes after it.
        self.system = match close.strip_suffix(opened).filter(|_| !opened.is_empty()) {
            Some(own) => System::Turn {
                open: before,
                close: own.to_owned(),
            },
            None => {
                let within = before
                    .strip_prefix(&*self.default_system)
                    .and_then(|rest| rest.strip_prefix(opened));
                let open = within
                    .ok_or("the system message is neither a turn nor part of a user turn")?
                    .to_owned();
                self.start = std::mem::take(&mut self.default_system);
                System::First(Within { open, close })
            }
        };
        Ok(())
    }

    /// Prompt of a conversation of system (optional), user, assistant and so on, built from these
    /// pieces as the Go template does.
    pub fn render(&self, messages: &[Message]) -> String {
        let system = messages
            .iter()
            .find(|m| m.role == "system")
            .map(|m| m.content.as_str());
        let users: Vec<usize> = (0..messages.len())
            .filter(|i| messages[*i].role == "user")
            .collect();
        let mut out = self.start.clone();
        if system.is_none() {
            out += &self.default_system;
        }
        for (i, message) in messages.iter().enumerate() {
            let content = &message.content;
            match &*message.role {
                "system" => {
                    if let System::Turn { open, close } = &self.system {
                        out += &[open, content, close].map(String::as_str).concat();
                    }
                }
                "user" => {
                    out += &self.user.0;
                    let within = match &self.system {
                        System::First(within) if users.first() == Some(&i) => Some(within),
                        System::Last(within) if users.last() == Some(&i) => Some(within),
                        _ => None,
                    };
                    if let (Some(within), Some(system)) = (within, system) {
                        out += &[&within.open, system, &within.close].concat();
                    }
                    out += &[content, &*self.user.1].concat();
                }
                _ if i + 1 == messages.len() => out += &[&*self.assistant.0, content].concat(),
                _ => out += &[&*self.assistant.0, content, &*self.assistant.1].concat(),
            }
        }
        if messages.last().is_none_or(|last| last.role != "assistant") {
            out += &self.generation;
        }
        out
    }

    /// Renders some conversations both ways.
    fn check(&self, template: &ChatTemplate) -> Result<(), String> {
        for messages in conversations(self.system != System::None) {
            let theirs = template.prompt(&messages, true)?;
            let ours = self.render(&messages);
            if theirs != ours {
                let roles: Vec<&str> = messages.iter().map(|m| &*m.role).collect();
                return Err(format!(
                    "a conversation of {} is not a sequence of uniform turns",
                    roles.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// The family.
    pub fn family(&self) -> Family {
        let open = &self.user.0;
        let marks = [
            ("<|im_start|>", Family::ChatMl),
            ("<|start_header_id|>", Family::Llama3),
            ("<start_of_turn>", Family::Gemma),
            ("[INST]", Family::Mistral),
            ("<|user|>", Family::Phi),
        ];
        marks
            .iter()
            .find(|(mark, _)| open.contains(mark))
            .map_or(Family::Other, |(_, family)| *family)
    }

    /// Stop words: the marks after an answer, and those at the start of a user turn. `eos` is the
    /// vocabulary's.
    pub fn stops(&self, eos: Option<&str>) -> Vec<String> {
        let mut stops: Vec<String> = Vec::new();
        let after = mark(&self.assistant.1).or(eos.map(str::to_owned));
        for stop in after.into_iter().chain(mark(&self.user.0)) {
            if !stops.contains(&stop) {
                stops.push(stop);
            }
        }
        stops
    }
}

/// Typical conversations, ending with a user turn.
pub fn conversations(with_system: bool) -> Vec<Vec<Message>> {
    let says = |role: &str, content: &str| Message::new(role, content);
    let mut turns = vec![says("user", "What is the tallest tree?")];
    let mut all = vec![turns.clone()];
    for (answer, question) in [
        ("A redwood.", "How tall, in \"feet\"?"),
        ("About 380 feet.\nMore or less.", "<b>Thanks</b> & bye"),
    ] {
        turns.extend([says("assistant", answer), says("user", question)]);
        all.push(turns.clone());
    }
    if with_system {
        let system = says("system", "You are terse.\nYou like trees.");
        let led = all
            .clone()
            .into_iter()
            .map(|turns| [vec![system.clone()], turns].concat());
        all.extend(led);
    }
    all
}

/// The first mark of a piece that looks like a token: `<|im_end|>`, `</s>`, `[INST]`.
fn mark(piece: &str) -> Option<String> {
    let piece = piece.trim_start();
    let close = match piece.chars().next()? {
        '<' => '>',
        '[' => ']',
        _ => return None,
    };
    let end = piece.find(close)? + 1;
    let mark = &piece[..end];
    (mark.len() > 2 && !mark.contains(char::is_whitespace)).then(|| mark.to_owned())
}

/// Common prefix, cut at a character boundary.
fn common(a: &str, b: &str) -> String {
    a.chars()
        .zip(b.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a)
        .collect()
}

/// Text before, between and after some contents, each of which must occur once, in this order.
fn between<const N: usize, const M: usize>(
    text: &str,
    contents: [&str; N],
) -> Result<[String; M], String> {
    let mut parts = Vec::with_capacity(M);
    let mut rest = text;
    for content in contents {
        let (before, after) = rest
            .split_once(content)
            .ok_or("contents are left out, changed, or moved")?;
        if after.contains(content) {
            return Err("contents are repeated".into());
        }
        parts.push(before.to_owned());
        rest = after;
    }
    parts.push(rest.to_owned());
    parts
        .try_into()
        .map_err(|_| "as many parts as contents and one".into())
}
