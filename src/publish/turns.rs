//! What a chat template writes around the turns of a conversation.
//!
//! The template is not read but tried: conversations with known contents are rendered, and what
//! stands between the contents is taken apart into the pieces of [`Turns`]. The pieces are then put
//! together again for other conversations, and only if that is what the template itself renders are
//! they believed. So it does not matter how a template is written, and what no such pieces can say
//! (a template that counts, looks into contents, or changes early turns) is found out.

use super::chat::{ChatTemplate, Message};

/// Where the system's text goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum System {
    /// A turn of its own, before all others.
    Turn {
        /// Before its text.
        open: String,
        /// After its text.
        close: String,
    },
    /// Into the first turn of the user.
    First(Within),
    /// Into the last turn of the user.
    Last(Within),
    /// Nowhere: the template refuses it, or leaves it out.
    None,
}

/// A system's text inside a user's turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Within {
    /// Between the turn's beginning and the text.
    pub open: String,
    /// Between the text and what the user says.
    pub close: String,
}

/// The pieces of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turns {
    /// At the very beginning, whatever follows. The token that begins a text is not in it: who runs
    /// the model adds that.
    pub start: String,
    /// At the beginning of a conversation without a system's text: as a rule, a turn with the
    /// system's usual text.
    pub default_system: String,
    /// The system.
    pub system: System,
    /// Before and after what the user says.
    pub user: (String, String),
    /// Before and after what the assistant has said.
    pub assistant: (String, String),
    /// What asks for the assistant's next words.
    pub generation: String,
    /// Whether blanks around contents are cut away, which Go templates cannot do.
    pub trims: bool,
}

/// Families of templates, as people call them. Only a name: the pieces are what counts.
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
    /// How it is called.
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

/// Contents that no template writes by itself, and that no part of another one is.
const SYSTEM: &str = "QzSysQ";
const USER: [&str; 2] = ["QzUsrAQ", "QzUsrBQ"];
const ASSISTANT: &str = "QzAstQ";

impl Turns {
    /// Takes a template apart.
    ///
    /// # Errors
    /// A template that cannot be rendered, or with turns that vary by their context.
    pub fn of(template: &ChatTemplate) -> Result<Turns, String> {
        let user = |i: usize| Message::new("user", USER[i]);
        let assistant = || Message::new("assistant", ASSISTANT);
        let render = |messages: &[Message], generate| template.prompt(messages, generate);

        let [before, after] = between(&render(&[user(0)], false)?, [USER[0]])?;
        let asked = render(&[user(0)], true)?;
        let [_, after_asked] = between(&asked, [USER[0]])?;
        let generation = after_asked
            .strip_prefix(&*after)
            .ok_or("asking for an answer changes the user's turn")?;
        // The last answer may begin in another way than earlier ones (its thoughts are shown, say).
        let [_, _, end] = between(
            &render(&[user(0), assistant()], false)?,
            [USER[0], ASSISTANT],
        )?;
        let three = render(&[user(0), assistant(), user(1)], true)?;
        let [_, early, next, _] = between(&three, [USER[0], ASSISTANT, USER[1]])?;
        let answer = early
            .strip_prefix(&*after)
            .ok_or("an answer changes the user's turn before it")?;
        // Between an answer and the next question lie the answer's end and the turn's beginning.
        // What is common to all turns of the user is before each; what only the first has is before
        // the conversation.
        let close = if next.starts_with(&*end) {
            end
        } else {
            common(&end, &next)
        };
        let (close, opened, lead) = match before.strip_suffix(&next[close.len()..]) {
            Some(lead) => (&*close, &next[close.len()..], lead),
            None => (
                next.strip_suffix(&*before)
                    .ok_or("the user's first turn begins unlike later ones")?,
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
        // It may be refused, or left out.
        let rendered = template.prompt(&conversation, true).unwrap_or_default();
        let Some(at) = rendered.find(SYSTEM) else {
            self.start = std::mem::take(&mut self.default_system);
            return Ok(());
        };
        let opened = &*self.user.0;
        let changes = "the system's text changes the user's turn";
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
        // One of its own ends before the user's begins; one within has the user's beginning before
        // it.
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
                    .ok_or("the system's text is neither a turn nor within one of the user's")?
                    .to_owned();
                self.start = std::mem::take(&mut self.default_system);
                System::First(Within { open, close })
            }
        };
        Ok(())
    }

    /// The prompt of a conversation of system (or none), user, assistant and so on, as these pieces
    /// make it: what the Go template does as well.
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
                    "a conversation of {} is no row of turns that are all alike",
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

    /// What ends an answer: the marks after it, and those that begin a turn of the user. `eos` is
    /// the vocabulary's.
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

/// Conversations of the usual forms, which end with the user.
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

/// The first mark of a piece that stands for a token: `<|im_end|>`, `</s>`, `[INST]`.
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

/// What both begin with, at the border of a character.
fn common(a: &str, b: &str) -> String {
    a.chars()
        .zip(b.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a)
        .collect()
}

/// What stands before, between and behind some contents, which must come in this order, each once.
fn between<const N: usize, const M: usize>(
    text: &str,
    contents: [&str; N],
) -> Result<[String; M], String> {
    let mut parts = Vec::with_capacity(M);
    let mut rest = text;
    for content in contents {
        let (before, after) = rest
            .split_once(content)
            .ok_or("what is said is left out, changed, or moved")?;
        if after.contains(content) {
            return Err("what is said is repeated".into());
        }
        parts.push(before.to_owned());
        rest = after;
    }
    parts.push(rest.to_owned());
    parts
        .try_into()
        .map_err(|_| "as many parts as contents and one".into())
}
