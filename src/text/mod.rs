//! The built-in texts, the default for calibration and evaluation.
//!
//! They were written for Quantier: nothing is quoted; persons, companies and places are invented;
//! the licence is the program's. They are small and varied: many short documents in ten domains. A
//! text of the user's own domain is better.
//!
//! [`Set::Calibration`] and [`Set::Evaluation`] share no topics and no wording. Each has one UTF-8
//! file per domain (`calibration/NAME.txt`, `evaluation/NAME.txt`); a line with only a form feed
//! ends a document. To add a document, append it to its file. To add a domain, write both files and
//! a line in `DOMAINS`.
//!
//! Each set has conversations too (`conversations.jsonl`, one per line), for models with a chat template: tools,
//! edits of code, reasoning, several languages.

mod held_out;
pub(crate) mod passages;
mod separate;

pub(crate) use held_out::HELD_OUT;
pub use held_out::{Kind, Text};
pub use passages::Shared;
pub(crate) use separate::separate;

/// Separator of documents in a file: a line with a form feed.
const SEPARATOR: &str = "\n\x0c\n";

/// One of the two built-in texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Set {
    /// Importance matrices, Hessians and sensitivities.
    Calibration,
    /// Held out, for the divergence of files.
    Evaluation,
}

struct Domain {
    name: &'static str,
    calibration: &'static str,
    evaluation: &'static str,
}

impl Domain {
    fn documents(&self, set: Set) -> impl Iterator<Item = &'static str> + use<> {
        let file = match set {
            Set::Calibration => self.calibration,
            Set::Evaluation => self.evaluation,
        };
        file.split(SEPARATOR)
            .map(|document| document.trim_matches('\n'))
    }
}

macro_rules! domain {
    ($name:literal) => {
        Domain {
            name: $name,
            calibration: include_str!(concat!("calibration/", $name, ".txt")),
            evaluation: include_str!(concat!("evaluation/", $name, ".txt")),
        }
    };
}

/// In the order of the first round of [`joined`]; adjacent domains are dissimilar.
static DOMAINS: [Domain; 10] = [
    domain!("narrative"),
    domain!("code_systems"),
    domain!("knowledge"),
    domain!("languages_latin"),
    domain!("data"),
    domain!("dialogue"),
    domain!("code_scripts"),
    domain!("practical"),
    domain!("languages_scripts"),
    domain!("mathematics"),
];

/// The documents of a set as pairs of domain and text, by domain.
///
/// Documents have no newline at either end; every domain has documents in each set.
#[cfg(test)]
fn documents(set: Set) -> impl Iterator<Item = (&'static str, &'static str)> {
    DOMAINS.iter().flat_map(move |domain| {
        domain
            .documents(set)
            .map(move |document| (domain.name, document))
    })
}

/// The whole set as one text with a blank line between documents, the domains interleaved.
///
/// The order is fixed, and every prefix of more than a few documents has about the same shares of
/// domains as the whole, so the text can be cut at any number of tokens.
pub fn joined(set: Set) -> String {
    let mut text = interleaved(set)
        .into_iter()
        .map(|(_, document)| document)
        .collect::<Vec<_>>()
        .join("\n\n");
    text.push('\n');
    text
}

/// The conversations of a set, in JSONL.
pub fn conversations(set: Set) -> &'static str {
    match set {
        Set::Calibration => include_str!("calibration/conversations.jsonl"),
        Set::Evaluation => include_str!("evaluation/conversations.jsonl"),
    }
}

/// The documents of a set in the order of [`joined`]: each from the domain with the smallest
/// fraction used so far, in bytes (among equals, the first in `DOMAINS`).
fn interleaved(set: Set) -> Vec<(&'static str, &'static str)> {
    struct Queue {
        name: &'static str,
        documents: std::vec::IntoIter<&'static str>,
        used: usize,
        total: usize,
    }

    let mut queues: Vec<Queue> = DOMAINS
        .iter()
        .map(|domain| {
            let documents: Vec<_> = domain.documents(set).collect();
            let total = documents.iter().map(|document| document.len()).sum();
            Queue {
                name: domain.name,
                documents: documents.into_iter(),
                used: 0,
                total,
            }
        })
        .collect();

    let mut order = Vec::new();
    // used / total of two queues, compared by cross-multiplication; min_by takes the first of
    // equals.
    while let Some(queue) = queues
        .iter_mut()
        .filter(|queue| !queue.documents.as_slice().is_empty())
        .min_by(|a, b| (a.used * b.total).cmp(&(b.used * a.total)))
    {
        let document = queue
            .documents
            .next()
            .expect("queues without documents were filtered out");
        queue.used += document.len();
        order.push((queue.name, document));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    const BOTH: [Set; 2] = [Set::Calibration, Set::Evaluation];

    /// Runs of letters and digits in lower case; in scripts without spaces, every character is a
    /// word.
    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let mut word = String::new();
        for c in text.chars() {
            let ideograph_or_kana = matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}');
            if c.is_alphanumeric() && !ideograph_or_kana {
                word.extend(c.to_lowercase());
                continue;
            }
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            if ideograph_or_kana {
                words.push(c.to_string());
            }
        }
        if !word.is_empty() {
            words.push(word);
        }
        words
    }

    #[test]
    fn words_are_found_in_all_scripts() {
        assert_eq!(
            words("Don't_stop: Ünder 3.5"),
            ["don", "t", "stop", "ünder", "3", "5"]
        );
        assert_eq!(words("茶tea。カ"), ["茶", "tea", "カ"]);
    }

    /// The contents of all messages of a set's conversations.
    fn spoken(set: Set) -> impl Iterator<Item = String> {
        conversations(set).lines().flat_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let messages = line["messages"].as_array().unwrap().clone();
            messages.into_iter().flat_map(|message| {
                let keys = ["content", "reasoning_content"];
                keys.map(|key| message[key].as_str().unwrap_or_default().to_owned())
            })
        })
    }

    #[test]
    fn conversations_are_readable_and_varied() {
        for (set, least) in BOTH.into_iter().zip([20, 8]) {
            let text = conversations(set);
            let read = crate::chat::conversation::read(text).unwrap();
            assert!(read.len() >= least, "{}", read.len());
            for part in [
                "\"tool_calls\"",
                "\"reasoning_content\"",
                "\"system\"",
                "```",
            ] {
                assert!(text.contains(part), "{set:?}: {part}");
            }
        }
    }

    #[test]
    fn sizes_are_within_limits() {
        let size = |set| {
            documents(set)
                .map(|(_, document)| document.len())
                .sum::<usize>()
        };
        assert!(
            (110_000..=140_000).contains(&size(Set::Calibration)),
            "{}",
            size(Set::Calibration)
        );
        assert!(
            (35_000..=45_000).contains(&size(Set::Evaluation)),
            "{}",
            size(Set::Evaluation)
        );
        for domain in &DOMAINS {
            for file in [domain.calibration, domain.evaluation] {
                assert!(
                    file.len() < 25_000,
                    "{}: {} bytes, divide it",
                    domain.name,
                    file.len()
                );
            }
        }
    }

    #[test]
    fn form_feeds_are_on_their_own_lines() {
        for domain in &DOMAINS {
            for file in [domain.calibration, domain.evaluation] {
                assert!(
                    file.ends_with('\n') && !file.ends_with("\n\n"),
                    "{}: end with one newline",
                    domain.name
                );
                assert!(!file.contains('\r'), "{}: a carriage return", domain.name);
                assert_eq!(
                    file.matches('\x0c').count(),
                    file.matches(SEPARATOR).count(),
                    "{}",
                    domain.name
                );
            }
            assert!(
                domain.documents(Set::Calibration).count() >= 10,
                "{}: too few documents",
                domain.name
            );
            assert!(
                domain.documents(Set::Evaluation).count() >= 4,
                "{}: too few documents",
                domain.name
            );
        }
    }

    #[test]
    fn documents_are_unique_and_neither_empty_nor_long() {
        let mut seen = HashSet::new();
        for (domain, document) in BOTH.into_iter().flat_map(documents) {
            let count = words(document).len();
            assert!(
                (20..=500).contains(&count),
                "{domain}: {count} words in {document:?}"
            );
            assert!(seen.insert(document), "{domain}: twice: {document:?}");
        }
    }

    #[test]
    fn sets_share_no_eight_words() {
        const RUN: usize = 8;
        let all = |set| {
            let documents = documents(set).map(|(domain, text)| (domain, text.to_owned()));
            documents.chain(spoken(set).map(|text| ("conversations", text)))
        };
        let mut calibration = HashSet::new();
        for (_, document) in all(Set::Calibration) {
            calibration.extend(words(&document).windows(RUN).map(<[String]>::to_vec));
        }
        assert!(
            calibration.len() > 10_000,
            "only {} runs of words",
            calibration.len()
        );
        for (domain, document) in all(Set::Evaluation) {
            for run in words(&document).windows(RUN) {
                assert!(
                    !calibration.contains(run),
                    "{domain}: also in the calibration text: {}",
                    run.join(" ")
                );
            }
        }
    }

    #[test]
    fn joining_keeps_all_documents() {
        for set in BOTH {
            let order = interleaved(set);
            let mut sorted: Vec<_> = order.clone();
            let mut expected: Vec<_> = documents(set).collect();
            sorted.sort_unstable();
            expected.sort_unstable();
            assert_eq!(sorted, expected);

            let text = joined(set);
            let mut rest = text.as_str();
            for (_, document) in &order {
                rest = rest
                    .strip_prefix(*document)
                    .expect("documents come in order");
                rest = rest.strip_prefix("\n\n").unwrap_or(rest);
            }
            assert_eq!(rest, "\n");
            assert!(!text.contains('\x0c'));
        }
    }

    #[test]
    fn every_prefix_mixes_the_domains() {
        for set in BOTH {
            let mut total = HashMap::<_, usize>::new();
            let mut longest = HashMap::<_, usize>::new();
            for (domain, document) in documents(set) {
                *total.entry(domain).or_default() += document.len();
                let longest = longest.entry(domain).or_default();
                *longest = document.len().max(*longest);
            }
            // No domain is ever ahead of another by more than its longest document.
            let part = |domain: &str, bytes: usize| bytes as f64 / total[domain] as f64;
            let mut given: HashMap<_, usize> = total.keys().map(|&domain| (domain, 0)).collect();
            for (domain, document) in interleaved(set) {
                *given.get_mut(domain).unwrap() += document.len();
                let behind = given
                    .iter()
                    .map(|(&d, &bytes)| part(d, bytes))
                    .fold(f64::INFINITY, f64::min);
                for (&d, &bytes) in &given {
                    let lead = part(d, bytes) - behind;
                    assert!(lead <= part(d, longest[d]) + 1e-12, "{d} leads by {lead}");
                }
            }
        }
    }
}
