//! Pre-tokenizers by name: the split of a text into words before the merges.
//!
//! Names, regular expressions and properties are facts of the format, from the reference's list.
//! Expressions are in the syntax of [`Pattern`]; the reference's hand-written splits are [`Step`]s.

use super::pattern::Pattern;
use super::split::Step;

/// Steps and properties of a pre-tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pre {
    /// The steps; each splits the pieces of the previous one.
    pub steps: Vec<Step>,
    /// True if tokens are spelled in GPT-2's alphabet of bytes, not in UTF-8 with byte tokens such
    /// as `<0x0A>`.
    pub byte_level: bool,
    /// True if spaces become U+2581.
    pub escapes_spaces: bool,
    /// True if a word equal to a token is not merged.
    pub ignores_merges: bool,
    /// True if a run of line breaks equal to a token is not merged.
    pub keeps_line_breaks: bool,
    /// Default of `add_bos_token`.
    pub adds_bos: bool,
    /// True if a BOS token is added regardless of `add_bos_token`.
    pub forces_bos: bool,
    /// True if the default BOS token is 11; otherwise there is no default.
    pub has_bos: bool,
}

/// Contractions, in either case.
macro_rules! contractions {
    () => {
        "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    };
}

/// Words of OpenAI's o200k: upper case, then lower case, then a suffix; non-ASCII characters count
/// as both.
macro_rules! cased_words {
    ($marks:literal, $after:expr) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[A-Z\p{Lx}",
            $marks,
            r"]*[a-z\p{Lx}",
            $marks,
            "]+",
            $after,
            r"|[^\r\n\p{L}\p{N}]?[A-Z\p{Lx}",
            $marks,
            r"]+[a-z\p{Lx}",
            $marks,
            "]*",
            $after,
        )
    };
}

/// Words of letters and marks, with trailing contractions.
macro_rules! marked_words {
    () => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]*[\p{L}\p{M}]+(?:",
            contractions!(),
            ")?",
            r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+[\p{L}\p{M}]*(?:",
            contractions!(),
            ")?",
        )
    };
}

/// Line breaks with the spaces before them, then spaces.
const SPACES: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";
const SIGNS: &str = r" ?[^\s\p{L}\p{N}]+";
const ASCII_SIGN_AND_WORD: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##;
const CHINESE_AND_KANA: &str = "[一-龥぀-ゟ゠-ヿ]+";
const CHINESE_AND_KOREAN: &str = "[一-龥ࠀ-一가-퟿]+";
const AFMOE_ASIAN: &str = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+";
/// Letters of scripts with upper and lower case.
const DEEPSEEK_LETTERS: &str = concat!(
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ",
    "-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK",
    "-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-",
    "𐳲𑢠-𑣟𞤀-𞥃",
);

fn pattern(pattern: &str) -> Step {
    Step::Pattern(Pattern::new(pattern))
}

fn patterns(all: &[&str]) -> Vec<Step> {
    all.iter().map(|p| pattern(p)).collect()
}

fn words(digits: usize) -> Step {
    Step::Words {
        digits,
        marks: false,
    }
}

/// The three steps of DeepSeek V3 and, with other arguments, of its variants.
fn deepseek3(first: Step, asian: &str, signs_and_spaces: &str) -> Vec<Step> {
    let last = [
        ASCII_SIGN_AND_WORD,
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+",
        signs_and_spaces,
    ]
    .concat();
    vec![first, pattern(asian), pattern(&last)]
}

impl Pre {
    /// The pre-tokenizer with a name in `tokenizer.ggml.pre`; an empty name is `default`. `None`
    /// for unknown names.
    pub(crate) fn named(name: &str) -> Option<Pre> {
        let contractions = contractions!();
        let spaces_after_breaks = format!(r"[\r\n]*|{SPACES}");
        let steps = match name {
            "" | "default" => {
                vec![
                    pattern(r"[\p{P}\$\+<=>\^~\|]+"),
                    Step::Gpt2,
                    pattern(r"\p{N}+"),
                    pattern("[0-9][0-9][0-9]"),
                ]
            }
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral"
            | "midm-2.0" | "lfm2" | "jina-v5-nano" | "dbrx" | "smaug-bpe" | "chatglm-bpe"
            | "glm4" | "glm5" => vec![words(3)],
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2"
            | "hunyuan" | "solar-open" | "grok-2" => vec![words(1)],
            "qwen35" => vec![Step::Words {
                digits: 1,
                marks: true,
            }],
            "exaone-moe" => vec![Step::Phrases],
            "laguna" => vec![Step::Lines, words(1)],
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es"
            | "jina-v2-de" | "a.x-4.0" | "mellum" | "modern-bert" | "jina-v1-en"
            | "jina-v2-code" | "roberta-bpe" | "exaone4" | "mpt" | "olmo" | "jais" | "trillion"
            | "granite-docling" => vec![Step::Gpt2],
            "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone"
            | "minerva-7b" | "mellum2" => {
                vec![pattern(r"\p{N}"), Step::Gpt2]
            }
            "falcon" => vec![
                pattern(r"[\p{P}\$\+<=>\^~\|`]+"),
                Step::Gpt2,
                pattern("[0-9][0-9][0-9]"),
            ],
            "deepseek-llm" => vec![
                pattern(r"[\r\n]"),
                pattern(&format!(r"\s?[{DEEPSEEK_LETTERS}]+")),
                pattern(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
                Step::TrailingSpaces,
                pattern(CHINESE_AND_KOREAN),
                pattern(r"\p{N}+"),
            ],
            "deepseek-coder" => patterns(&[
                r"[\r\n]",
                r"\s?\p{L}+",
                r"\s?\p{P}+",
                CHINESE_AND_KOREAN,
                r"\p{N}",
            ]),
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => deepseek3(
                pattern(r"\p{N}{1,3}"),
                CHINESE_AND_KANA,
                &spaces_after_breaks,
            ),
            "spark2_5" => {
                let mut steps = deepseek3(
                    pattern(r"\p{N}{1,3}"),
                    CHINESE_AND_KANA,
                    r"|[\r\n]|\s+(?!\S)|\s+",
                );
                steps.push(pattern(r"\p{N}"));
                steps
            }
            "afmoe" => deepseek3(Step::DigitsFromRight, AFMOE_ASIAN, &spaces_after_breaks),
            "youtu" => vec![
                pattern("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"),
                pattern(&format!(
                    r"{}|\p{{N}}|{SIGNS}[\r\n/]*|{SPACES}",
                    marked_words!()
                )),
            ],
            "tiny_aya" | "cohere2moe" => vec![
                Step::DigitsFromRight,
                pattern(&format!(
                    r"{}|\p{{N}}{{1,3}}|{SIGNS}[\r\n/]*|{SPACES}",
                    marked_words!()
                )),
            ],
            "tekken" => {
                vec![pattern(&format!(
                    r"{}|\p{{N}}|{SIGNS}[\r\n/]*|{SPACES}",
                    cased_words!("", "")
                ))]
            }
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => {
                let words = cased_words!("", concat!("(?:", contractions!(), ")?"));
                vec![pattern(&format!(
                    r"{words}|\p{{N}}{{1,3}}|{SIGNS}[\r\n/]*|{SPACES}"
                ))]
            }
            "granite-embed-multi-97m" => {
                let words = cased_words!(r"\p{M}", concat!("(?:", contractions!(), ")?"));
                vec![pattern(&format!(
                    r"{words}|\p{{N}}{{1,3}}|{SIGNS}[\r\n/]*|{SPACES}"
                ))]
            }
            "jais-2" => {
                let last: Vec<_> = [512, 256, 128, 64, 32, 16, 8, 4]
                    .iter()
                    .map(|n| format!(r"\s{{{n}}}(?!\S)"))
                    .collect();
                vec![pattern(&format!(
                    r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{SIGNS}[\r\n]*|\s*[\r\n]+|{}|\s{{1,2}}(?!\S)|\s",
                    last.join("|")
                ))]
            }
            "poro-chat" | "bloom" | "gpt3-finnish" => patterns(&[r" ?[^(\s|.,!?…。，、।۔،)]+"]),
            "viking" => patterns(&[r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"]),
            "chameleon" => vec![
                pattern("<sentinel:[0-9]+>"),
                pattern("IMGIMG[A-I]{1,4}Z"),
                pattern(r"[\t\n]|    |  "),
                pattern(r"\p{N}"),
                pattern(r"[\p{P}!-/:-@\[-`{-~]"),
                Step::Gpt2,
            ],
            "kimi-k2" => vec![Step::Kimi],
            "superbpe" => vec![pattern(r"\p{N}+"), Step::BeforeThreeDigits],
            "bailingmoe" | "bailingmoe2" | "llada-moe" => vec![pattern(&format!(
                r"'[sSdDmMtT]|'[lL][lL]|'[vV][eE]|'[rR][eE]|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{SIGNS}[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
            ))],
            "seed-coder" => vec![pattern(&format!(
                r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"
            ))],
            "ufakzeka" => vec![pattern(&format!(
                r"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{SIGNS}[\r\n]*|{SPACES}"
            ))],
            "minicpm5" => vec![
                pattern(r"\p{N}{1,3}"),
                pattern(&format!(
                    r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+|{SIGNS}[\r\n]*|{SPACES}"
                )),
            ],
            "gemma4" | "granite-embed-multi-311m" | "sarvam-moe" => vec![Step::Lines],
            _ => return None,
        };
        let gemma4 = matches!(name, "gemma4" | "granite-embed-multi-311m");
        let raw = gemma4 || name == "sarvam-moe";
        let llama3 = matches!(
            name,
            "llama3"
                | "llama-v3"
                | "llama-bpe"
                | "falcon3"
                | "falcon-h1"
                | "pixtral"
                | "midm-2.0"
                | "lfm2"
                | "jina-v5-nano"
        );
        Some(Pre {
            steps,
            byte_level: !raw,
            escapes_spaces: raw,
            ignores_merges: llama3
                || matches!(
                    name,
                    "minicpm5" | "youtu" | "glm4" | "glm5" | "tekken" | "granite-embed-multi-97m"
                ),
            keeps_line_breaks: gemma4,
            adds_bos: llama3 || matches!(name, "tekken" | "chameleon"),
            forces_bos: gemma4,
            has_bos: !matches!(name, "chatglm-bpe" | "glm4" | "glm5"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        let mut ends = vec![text.len()];
        for step in &Pre::named(name).unwrap().steps {
            let mut start = 0;
            let mut finer = Vec::new();
            for end in ends {
                step.split(text, start, end, &mut finer);
                start = end;
            }
            ends = finer;
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts
            .zip(&ends)
            .map(|(start, &end)| &text[start..end])
            .collect()
    }

    #[test]
    fn digits() {
        assert_eq!(pieces("llama-bpe", "x12345"), ["x", "123", "45"]);
        assert_eq!(pieces("qwen2", "123"), ["1", "2", "3"]);
        assert_eq!(pieces("gpt-2", " 1234"), [" 1234"]);
        assert_eq!(
            pieces("superbpe", "a12345 678"),
            ["a", "12", "345", " ", "678"]
        );
        // The text before digits joins their first group.
        assert_eq!(pieces("tiny_aya", "1234567"), ["1", "234", "567"]);
    }

    #[test]
    fn contractions_and_spaces() {
        assert_eq!(
            pieces("gpt-2", "It's  o'KAY \n\n x"),
            ["It", "'s", " ", " o", "'", "KAY", " \n\n", " x"]
        );
        assert_eq!(
            pieces("llama-bpe", "WE'LL...\n\n  x  "),
            ["WE", "'LL", "...\n\n", " ", " x", "  "]
        );
        assert_eq!(
            pieces("gpt-4o", "WE'LL HelloWorld"),
            ["WE'LL", " Hello", "World"]
        );
        assert_eq!(pieces("deepseek-llm", "ab  "), ["ab", "  "]);
    }

    #[test]
    fn phrases_are_words_separated_by_single_spaces() {
        assert_eq!(
            pieces("exaone-moe", " ab cd  e\u{301}f 1 x.\n\n y"),
            [
                " ab cd",
                " ",
                " e\u{301}f",
                " ",
                "1",
                " x",
                ".\n",
                "\n",
                " y"
            ]
        );
    }

    #[test]
    fn marks_belong_to_words_if_configured() {
        assert_eq!(pieces("qwen2", "e\u{301}e"), ["e", "\u{301}e"]);
        assert_eq!(pieces("qwen35", "e\u{301}e"), ["e\u{301}e"]);
    }

    #[test]
    fn splits_keep_all_text() {
        let text = "It's 12345 naïve—漢字かな한국어 ไทย \t\r\n\u{85}\u{3000}\u{a0}x  'LL e\u{301}😀‍👩  <a href='b'>\n\n  ";
        for name in NAMES {
            assert_eq!(pieces(name, text).concat(), text, "{name}");
            assert!(pieces(name, text).iter().all(|p| !p.is_empty()), "{name}");
            assert_eq!(pieces(name, "").concat(), "", "{name}");
        }
        assert_eq!(Pre::named("no such"), None);
    }

    const NAMES: [&str; 29] = [
        "default",
        "exaone-moe",
        "llama-bpe",
        "qwen2",
        "qwen35",
        "laguna",
        "gpt-2",
        "starcoder",
        "falcon",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "spark2_5",
        "afmoe",
        "youtu",
        "tiny_aya",
        "tekken",
        "gpt-4o",
        "granite-embed-multi-97m",
        "jais-2",
        "bloom",
        "viking",
        "chameleon",
        "kimi-k2",
        "superbpe",
        "bailingmoe",
        "seed-coder",
        "minicpm5",
        "gemma4",
    ];
}
