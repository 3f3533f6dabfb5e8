//! Files of multiple-choice tasks, as llama-perplexity reads them.
//!
//! ```text
//! --hellaswag         text; six lines per task: context, number of the right ending from 0, four endings
//! --winogrande        CSV without a header: number, sentence with a blank "_", two choices, right choice (1 or 2).
//!                     Quotes hide commas in the sentence, and are removed around it alone
//! --multiple-choice   binary, little-endian: u32 n, n x u32 offset, n x task
//!                     task     question, answers with one right, answers with several right (not scored)
//!                     answers  u32 n (at most 100), n x string, n x i32 (1 for a right answer, else 0)
//!                     string   u32 bytes, UTF-8
//! ```

use crate::{Error, Result};
use std::path::Path;

/// The formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Continuations of a context.
    HellaSwag,
    /// Two ways to fill a blank.
    WinoGrande,
    /// Answers to a question.
    MultipleChoice,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its place in the file: `line 7`, `byte 120`.
    pub place: String,
    /// The complete text of each choice.
    pub texts: Vec<String>,
    /// For a blank, each text up to the end of the filled blank.
    pub heads: Option<[String; 2]>,
    /// The right choices.
    pub right: Vec<bool>,
}

/// Most answers to a question, as in llama-perplexity.
const MOST_ANSWERS: u32 = 100;
/// Lines per task of [`Format::HellaSwag`].
const LINES: usize = 6;
/// Endings per task of [`Format::HellaSwag`].
const ENDINGS: usize = 4;
/// Commas before the right choice in [`Format::WinoGrande`].
const COMMAS: usize = 4;

/// Reads a file of tasks.
///
/// # Errors
/// A file that cannot be read, is not UTF-8, has another format, or no tasks; the place is named.
pub fn read(path: &Path, format: Format) -> Result<Vec<Task>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    parse(&bytes, format).map_err(|what| Error::Bad {
        path: path.to_owned(),
        what,
    })
}

/// Parses the bytes of a file of tasks; the error names the place.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8], format: Format) -> std::result::Result<Vec<Task>, String> {
    let text = || {
        std::str::from_utf8(bytes).map_err(|error| {
            let at = error.valid_up_to();
            format!("not UTF-8 at byte {at}; convert the text to UTF-8")
        })
    };
    let tasks = match format {
        Format::HellaSwag => hellaswag(text()?)?,
        Format::WinoGrande => winogrande(text()?)?,
        Format::MultipleChoice => multiple_choice(bytes)?,
    };
    match tasks.is_empty() {
        true => Err("the file has no tasks".into()),
        false => Ok(tasks),
    }
}

fn hellaswag(text: &str) -> std::result::Result<Vec<Task>, String> {
    let mut lines: Vec<&str> = text.split('\n').collect();
    while lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    if !lines.len().is_multiple_of(LINES) {
        return Err(format!(
            "line {}: the file ends within a task: {} lines are no multiple of {LINES} (context, number of the right \
             ending, four endings)",
            lines.len(),
            lines.len()
        ));
    }
    let task = |(i, lines): (usize, &[&str])| {
        let (line, [context, right]) = (i * LINES + 1, [lines[0], lines[1]]);
        let number = right.trim().parse::<usize>().ok();
        let number = number.filter(|number| *number < ENDINGS);
        let number = number.ok_or_else(|| {
            let right = cut(right);
            format!(
                "line {}: {right:?} is no number of an ending from 0 to 3",
                line + 1
            )
        })?;
        if let Some(ending) = lines[2..].iter().position(|ending| ending.is_empty()) {
            return Err(format!("line {}: an empty ending", line + 2 + ending));
        }
        let texts = lines[2..]
            .iter()
            .map(|ending| format!("{context} {ending}"));
        Ok(Task {
            place: format!("line {line}"),
            texts: texts.collect(),
            heads: None,
            right: (0..ENDINGS).map(|ending| ending == number).collect(),
        })
    };
    lines.chunks(LINES).enumerate().map(task).collect()
}

fn winogrande(text: &str) -> std::result::Result<Vec<Task>, String> {
    let lines = text.split('\n').enumerate();
    let lines = lines.map(|(i, line)| (i + 1, line.strip_suffix('\r').unwrap_or(line)));
    let lines = lines.filter(|(_, line)| !line.is_empty());
    lines
        .map(|(number, line)| blank(line, number).map_err(|what| format!("line {number}: {what}")))
        .collect()
}

/// A row of [`Format::WinoGrande`].
fn blank(line: &str, number: usize) -> std::result::Result<Task, String> {
    let mut is_quoted = false;
    let commas = line.char_indices().filter(|(_, c)| {
        is_quoted ^= *c == '"';
        *c == ',' && !is_quoted
    });
    let commas: Vec<usize> = commas.map(|(at, _)| at).take(COMMAS).collect();
    let [first, second, third, fourth] = commas[..] else {
        return Err("not number, sentence, choice, choice, right choice (1 or 2)".into());
    };
    let sentence = &line[first + 1..second];
    let unquoted = sentence
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let sentence = unquoted.unwrap_or(sentence);
    let choices = [&line[second + 1..third], &line[third + 1..fourth]];
    let right = match line[fourth + 1..].trim() {
        "1" => 0,
        "2" => 1,
        other => {
            let other = cut(other);
            return Err(format!("{other:?} in place of the right choice, 1 or 2"));
        }
    };
    let Some((before, behind)) = sentence.split_once('_') else {
        return Err(format!("no blank _ in the sentence {:?}", cut(sentence)));
    };
    if choices.contains(&"") {
        return Err("an empty choice".into());
    }
    let heads = choices.map(|choice| format!("{before}{choice}"));
    Ok(Task {
        place: format!("line {number}"),
        texts: heads.iter().map(|head| format!("{head}{behind}")).collect(),
        heads: Some(heads),
        right: vec![right == 0, right == 1],
    })
}

/// The beginning of a text, for a message.
fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Bytes of a file of tasks, with the offset of the next.
struct Bytes<'b> {
    all: &'b [u8],
    at: usize,
}

impl<'b> Bytes<'b> {
    fn take(&mut self, count: usize, what: &str) -> std::result::Result<&'b [u8], String> {
        let end = self.at.checked_add(count);
        let bytes = end.and_then(|end| self.all.get(self.at..end));
        let bytes = bytes.ok_or_else(|| {
            format!(
                "byte {}: {what} of {count} bytes exceeds the file of {} bytes",
                self.at,
                self.all.len()
            )
        })?;
        self.at += count;
        Ok(bytes)
    }

    fn number(&mut self, what: &str) -> std::result::Result<u32, String> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self, what: &str) -> std::result::Result<&'b str, String> {
        let length = self.number(&format!("the length of {what}"))?;
        let start = self.at;
        let bytes = self.take(length as usize, what)?;
        std::str::from_utf8(bytes).map_err(|error| {
            let at = start + error.valid_up_to();
            format!("byte {at}: {what} is not UTF-8")
        })
    }

    /// Answers, with their labels.
    fn answers(&mut self) -> std::result::Result<Vec<(&'b str, bool)>, String> {
        let at = self.at;
        let count = self.number("a number of answers")?;
        if count > MOST_ANSWERS {
            return Err(format!(
                "byte {at}: {count} answers; at most {MOST_ANSWERS} are allowed"
            ));
        }
        let texts = (0..count).map(|_| self.text("an answer"));
        let texts = texts.collect::<std::result::Result<Vec<_>, _>>()?;
        let label = |text| {
            let at = self.at;
            match self.number("a label")? {
                right @ (0 | 1) => Ok((text, right == 1)),
                other => Err(format!("byte {at}: a label of {other}; it must be 0 or 1")),
            }
        };
        texts.into_iter().map(label).collect()
    }
}

fn multiple_choice(bytes: &[u8]) -> std::result::Result<Vec<Task>, String> {
    let mut bytes = Bytes { all: bytes, at: 0 };
    let count = bytes.number("the number of tasks")?;
    // Offsets serve to pick single tasks.
    let offsets = (count as usize)
        .checked_mul(4)
        .ok_or("byte 0: too many tasks")?;
    bytes.take(offsets, "the table of offsets")?;
    let mut tasks = Vec::new();
    for _ in 0..count {
        tasks.push(question(&mut bytes)?);
    }
    match bytes.at == bytes.all.len() {
        true => Ok(tasks),
        false => Err(format!(
            "byte {}: {} bytes follow the last of {count} tasks",
            bytes.at,
            bytes.all.len() - bytes.at
        )),
    }
}

/// A task of [`Format::MultipleChoice`].
fn question(bytes: &mut Bytes<'_>) -> std::result::Result<Task, String> {
    let place = format!("byte {}", bytes.at);
    let question = bytes.text("a question")?;
    let answers = bytes.answers()?;
    bytes.answers()?;
    let bad = |what: &str| Err(format!("{place}: {what}"));
    if question.is_empty() {
        return bad("an empty question");
    }
    if answers.len() < 2 {
        return bad("fewer than two answers");
    }
    if answers.iter().any(|(answer, _)| answer.is_empty()) {
        return bad("an empty answer");
    }
    if !answers.iter().any(|(_, right)| *right) {
        return bad("no right answer");
    }
    let texts = answers
        .iter()
        .map(|(answer, _)| format!("{question} {answer}"));
    Ok(Task {
        texts: texts.collect(),
        heads: None,
        right: answers.iter().map(|(_, right)| *right).collect(),
        place,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fails(text: &str, format: Format, part: &str) {
        let error = parse(text.as_bytes(), format).unwrap_err();
        assert!(error.contains(part), "{text:?}: {error}");
    }

    #[test]
    fn hellaswag_has_six_lines_per_task() {
        let text = "A cat\n2\nflies.\nbarks.\nsleeps.\nreads.\nA dog\n0\na\nb\nc\nd\n";
        let tasks = parse(text.as_bytes(), Format::HellaSwag).unwrap();
        assert_eq!(tasks.len(), 2);
        assert_eq!(tasks[0].texts[2], "A cat sleeps.");
        assert_eq!(tasks[0].right, [false, false, true, false]);
        assert_eq!(tasks[1].place, "line 7");
        fails("A cat\n2\na\nb\nc\n", Format::HellaSwag, "line 5: ");
        fails("A cat\n4\na\nb\nc\nd", Format::HellaSwag, "line 2: \"4\"");
        fails("A cat\n1\na\nb\n\nd", Format::HellaSwag, "line 5: an empty");
        fails("\n", Format::HellaSwag, "no tasks");
    }

    #[test]
    fn winogrande_has_a_blank_and_two_choices() {
        let text = "0,\"Ann met Bea, so _ was glad.\",Ann,Bea,2\n\n1,_ ran,he,she,1\r\n";
        let tasks = parse(text.as_bytes(), Format::WinoGrande).unwrap();
        assert_eq!(tasks[0].texts[1], "Ann met Bea, so Bea was glad.");
        assert_eq!(tasks[0].heads.as_ref().unwrap()[0], "Ann met Bea, so Ann");
        assert_eq!(tasks[0].right, [false, true]);
        assert_eq!(tasks[1].place, "line 3");
        for (row, part) in [
            ("0,a _,b,c", "line 1: not number"),
            ("0,a _,b,c,3", "line 1: \"3\""),
            ("0,a _,b,c,1,5", "line 1: \"1,5\""),
            ("0,a,b,c,1", "line 1: no blank"),
            ("0,a _,,c,1", "line 1: an empty choice"),
        ] {
            fails(row, Format::WinoGrande, part);
        }
    }

    /// The bytes of tasks of a question and answers with labels.
    fn binary(tasks: &[(&str, &[(&str, u32)])]) -> Vec<u8> {
        let mut out = (tasks.len() as u32).to_le_bytes().to_vec();
        out.extend(vec![0; 4 * tasks.len()]);
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.as_bytes());
        };
        for (question, answers) in tasks {
            text(&mut out, question);
            out.extend((answers.len() as u32).to_le_bytes());
            answers
                .iter()
                .for_each(|(answer, _)| text(&mut out, answer));
            for (_, label) in *answers {
                out.extend(label.to_le_bytes());
            }
            out.extend(0_u32.to_le_bytes());
        }
        out
    }

    #[test]
    fn multiple_choices_are_binary() {
        let bytes = binary(&[("Q?", &[("a", 0), ("b", 1)]), ("R?", &[("c", 1), ("d", 0)])]);
        let tasks = parse(&bytes, Format::MultipleChoice).unwrap();
        assert_eq!(tasks[0].texts, ["Q? a", "Q? b"]);
        assert_eq!(tasks[0].right, [false, true]);
        assert_eq!(tasks[0].place, "byte 12");
        let error = |bytes: &[u8]| parse(bytes, Format::MultipleChoice).unwrap_err();
        for end in 0..bytes.len() {
            assert!(error(&bytes[..end]).contains("byte "), "{end}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(error(&longer).contains("1 bytes follow"));
        let bad = |answers: &[(&str, u32)]| error(&binary(&[("Q?", answers)]));
        assert!(bad(&[("a", 1)]).contains("byte 8: fewer than two answers"));
        assert!(bad(&[("a", 0), ("b", 0)]).contains("no right answer"));
        assert!(bad(&[("a", 2), ("b", 0)]).contains("a label of 2"));
        assert!(bad(&[("", 1), ("b", 0)]).contains("an empty answer"));
        assert!(error(&u32::MAX.to_le_bytes()).contains("exceeds the file"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for format in [Format::HellaSwag, Format::WinoGrande, Format::MultipleChoice] {
                if let Ok(tasks) = parse(&bytes, format) {
                    for task in tasks {
                        prop_assert!(task.texts.len() == task.right.len());
                    }
                }
            }
        }
    }
}
