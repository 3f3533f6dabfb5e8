//! `tokenizer.ggml.pre`: detection of a model's pre-tokenizer among llama.cpp's.
//!
//! The reference encodes a probe text and looks up the SHA-256 of the ids in a table. That finds
//! only the models of the table: one added token changes the fingerprint but not the splits. For
//! other models, the splits of the probe text are compared with those of every known pre-tokenizer.

use super::files::Files;
use super::hf::{HfTokenizer, guarded, library_error};
use quantier_gguf::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::LazyLock;
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper,
};

/// The reference's probe text, which pre-tokenizers split differently.
pub(super) const PROBE: &str = include_str!("data/probe.txt");
/// Punctuation at ends of lines, missing in the probe text. Only for the comparison of splits.
const MORE: &str = " end.\n\n\tif (x) {\r\n\t}\r\n";
/// The reference's table of fingerprints and names, sorted.
const FINGERPRINTS: &str = include_str!("data/pre.tsv");

/// The name of a fingerprint.
pub(super) fn lookup(fingerprint: &str) -> Option<&'static str> {
    FINGERPRINTS
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .find(|(f, _)| *f == fingerprint)
        .map(|(_, name)| name)
}

/// Fingerprint of the ids of the probe text: SHA-256 of the list in Python's notation.
pub(super) fn fingerprint(ids: &[u32]) -> String {
    let list = format!("{ids:?}");
    quantier_gguf::hex(&Sha256::digest(list))
}

/// A pre-tokenizer of llama.cpp in terms of `tokenizer.json`.
struct Known {
    name: &'static str,
    /// Patterns, applied in order.
    patterns: &'static [&'static str],
    /// True if the byte-level step splits with GPT-2's pattern.
    like_gpt2: bool,
    /// True if a piece equal to a token is not merged (`ignore_merges`); `None` for either.
    ignores_merges: Option<bool>,
}

const fn known(name: &'static str, patterns: &'static [&'static str]) -> Known {
    Known {
        name,
        patterns,
        like_gpt2: false,
        ignores_merges: None,
    }
}

/// Only the most frequent one of names with the same splits.
static KNOWN: [Known; 14] = [
    Known {
        ignores_merges: Some(true),
        ..known(
            "llama-bpe",
            &[
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
        )
    },
    known(
        "dbrx",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    known(
        "qwen2",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    known(
        "qwen35",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    Known {
        like_gpt2: true,
        ..known("gpt-2", &[])
    },
    Known {
        like_gpt2: true,
        ..known("starcoder", &[r"\p{N}"])
    },
    Known {
        like_gpt2: true,
        ..known("falcon", &[r"[\p{P}\$\+<=>\^~\|`]+", r"[0-9][0-9][0-9]"])
    },
    known(
        "tekken",
        &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    known(
        "gpt-4o",
        &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    known(
        "deepseek-coder",
        &[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}",
        ],
    ),
    known(
        "deepseek-v3",
        &[
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ],
    ),
    known(
        "seed-coder",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    known("bloom", &[" ?[^(\\s|[.,!?…。，、।۔،])]+"]),
    known("viking", &[" ?[^(\\s|[.,!?…。，、।۔،])]+", r"\p{N}"]),
];

impl Known {
    fn pre_tokenizer(&self) -> Value {
        let mut parts: Vec<Value> = self
            .patterns
            .iter()
            .map(|p| json!({ "type": "Split", "pattern": { "Regex": p }, "behavior": "Isolated", "invert": false }))
            .collect();
        parts.push(json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": self.like_gpt2
        }));
        json!({ "type": "Sequence", "pretokenizers": parts })
    }
}

/// The known pre-tokenizers, compiled once: compilation takes far longer than a split.
static MADE: LazyLock<Vec<(&Known, PreTokenizerWrapper)>> = LazyLock::new(|| {
    let make =
        |known: &'static Known| Some((known, serde_json::from_value(known.pre_tokenizer()).ok()?));
    KNOWN.iter().filter_map(make).collect()
});

/// Ends of the pieces of the normalized probe text, as byte offsets in the original one.
fn ends(
    pre_tokenizer: &PreTokenizerWrapper,
    normalized: NormalizedString,
) -> Option<BTreeSet<usize>> {
    let mut text = PreTokenizedString::from(normalized);
    pre_tokenizer.pre_tokenize(&mut text).ok()?;
    let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Some(splits.into_iter().map(|(_, (_, end), _)| end).collect())
}

/// The known pre-tokenizer with the most similar splits, and true if they are equal.
fn nearest(tokenizer: &HfTokenizer, ignores_merges: bool) -> Option<(&'static str, bool)> {
    let mut probe = NormalizedString::from([PROBE, MORE].concat());
    if let Some(normalizer) = tokenizer.inner().get_normalizer() {
        normalizer.normalize(&mut probe).ok()?;
    }
    // All offsets refer to the text before normalization, so they are comparable.
    let own = ends(tokenizer.inner().get_pre_tokenizer()?, probe.clone())?;
    let likeness = |known: &Known, made: &PreTokenizerWrapper| {
        let theirs = ends(made, probe.clone())?;
        let shared =
            own.intersection(&theirs).count() as f64 / own.union(&theirs).count().max(1) as f64;
        let fits = known
            .ignores_merges
            .is_none_or(|ignores| ignores == ignores_merges);
        Some((shared, fits))
    };
    let mut best: Option<(f64, bool, &Known)> = None;
    for (known, made) in MADE.iter() {
        if let Some((shared, fits)) = likeness(known, made)
            && best
                .as_ref()
                .is_none_or(|&(s, f, _)| (shared, fits) > (s, f))
        {
            best = Some((shared, fits, known));
        }
    }
    best.map(|(shared, fits, known)| (known.name, shared == 1.0 && fits))
}

/// Name of the pre-tokenizer by its fingerprint; an unknown fingerprint otherwise.
pub(super) fn by_fingerprint(
    files: &Files,
    tokenizer: &HfTokenizer,
) -> Result<std::result::Result<&'static str, String>> {
    let ids = tokenizer
        .encode(PROBE)
        .map_err(|what| library_error(files, "the probe text", &what))?;
    let fingerprint = fingerprint(&ids);
    Ok(lookup(&fingerprint).ok_or(fingerprint))
}

/// Name of the pre-tokenizer: by fingerprint, otherwise by equal splits, with a note. `kin` maps
/// some of the latter to other names.
pub(super) fn find(
    files: &Files,
    tokenizer: &HfTokenizer,
    kin: &[(&str, &str)],
    notes: &mut Vec<String>,
) -> Result<String> {
    let fingerprint = match by_fingerprint(files, tokenizer)? {
        Ok(name) => return Ok(name.to_owned()),
        Err(fingerprint) => fingerprint,
    };
    let model = files.tokenizer.as_ref().and_then(|t| t.get("model"));
    let ignores_merges = model
        .and_then(|m| m.get("ignore_merges")?.as_bool())
        .unwrap_or(false);
    let nearest = guarded(|| Ok(nearest(tokenizer, ignores_merges)));
    match nearest.map_err(|what| library_error(files, "the probe text", &what))? {
        Some((found, true)) => {
            let name = kin.iter().find(|(other, _)| *other == found);
            let name = name.map_or(found, |(_, own)| *own);
            notes.push(format!(
                "the tokenizer's fingerprint {fingerprint} is not known; its pre-tokenizer splits text like {name}'s, \
                 which is what the file says (--pre NAME says another)"
            ));
            Ok(name.to_owned())
        }
        Some((name, false)) => Err(files.bad_tokenizer(format!(
            "its pre-tokenizer is none that llama.cpp is known to have (fingerprint {fingerprint}); the nearest is \
             {name}, but it splits the probe text differently; use --pre {name} if that will do"
        ))),
        None => Err(files.bad_tokenizer(format!(
            "it has no pre-tokenizer to compare (fingerprint {fingerprint}); choose one of llama.cpp's with --pre NAME"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_complete() {
        let lines: Vec<_> = FINGERPRINTS
            .lines()
            .map(|l| l.split_once('\t').unwrap())
            .collect();
        assert!(lines.is_sorted_by(|a, b| a.0 < b.0));
        assert!(
            lines
                .iter()
                .all(|(f, name)| f.len() == 64 && !name.is_empty())
        );
        assert_eq!(
            lookup("0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5"),
            Some("llama-bpe")
        );
        assert_eq!(lookup("0ef9"), None);
        for known in &KNOWN {
            assert!(
                lines.iter().any(|(_, name)| *name == known.name),
                "{} is not a name in llama.cpp",
                known.name
            );
        }
    }

    #[test]
    fn ids_are_hashed_in_python_notation() {
        // SHA-256 of "[1, 23]"
        assert_eq!(
            fingerprint(&[1, 23]),
            "0cece80dadc07c46bcc36ff2cdf5f706de3dc19864ca296155373a805358dc1a"
        );
    }

    #[test]
    fn known_pre_tokenizers_split_the_probe_differently() {
        let all: Vec<_> = KNOWN
            .iter()
            .map(|known| {
                let pre: PreTokenizerWrapper =
                    serde_json::from_value(known.pre_tokenizer()).unwrap();
                (
                    known,
                    ends(&pre, NormalizedString::from([PROBE, MORE].concat())).unwrap(),
                )
            })
            .collect();
        for (i, (a, ends_of_a)) in all.iter().enumerate() {
            for (b, ends_of_b) in &all[..i] {
                let alike = ends_of_a == ends_of_b && a.ignores_merges == b.ignores_merges;
                assert!(!alike, "{} and {}", a.name, b.name);
            }
        }
    }
}
