//! `quantier tokenize`.

use super::hub::{self, Need};
use super::measure::read_text;
use super::text::say;
use anyhow::{Context, bail};
use quantier::chat::conversation::{self, Renderer};
use quantier::chat::template::chat_template;
use quantier::convert;
use quantier::input::Source;
use quantier_tokenizer::Tokenizer;
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Show the tokens of a text, as llama-tokenize does
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier tokenize -m model.gguf -p 'Hello world'
  quantier tokenize -m hf://Qwen/Qwen3-0.6B -f wiki.txt --show-count
  quantier tokenize -m model.gguf --chat chats.jsonl --json")]
pub struct Args {
    /// A GGUF file (any shard of a split one), a Hugging Face directory, or hf://ORG/NAME; only the
    /// vocabulary is read
    #[arg(short, long)]
    model: PathBuf,
    /// The text
    #[arg(short, long, conflicts_with_all = ["file", "stdin"])]
    prompt: Option<String>,
    /// A file with the text
    #[arg(short, long, conflicts_with = "stdin")]
    file: Option<PathBuf>,
    /// Conversations, JSONL: {"messages": [...], "tools": [...]}, rendered by the model's chat template.
    /// With --json, also the ranges of the assistant's tokens
    #[arg(long, value_name = "JSONL", conflicts_with_all = ["prompt", "file", "stdin", "no_bos", "no_parse_special"])]
    chat: Option<PathBuf>,
    /// Read the text from standard input
    #[arg(long)]
    stdin: bool,
    /// Print only the ids: [1, 2, 3]
    #[arg(long)]
    ids: bool,
    /// Print the tokens as JSON
    #[arg(long, conflicts_with = "ids")]
    json: bool,
    /// Do not prepend the BOS token, even if the vocabulary says so
    #[arg(long)]
    no_bos: bool,
    /// Treat control tokens in the text as plain text
    #[arg(long)]
    no_parse_special: bool,
    /// Do not process the escapes \n, \r, \t, \', \", \\ and \x41 in the text
    #[arg(long)]
    no_escape: bool,
    /// Print the number of tokens
    #[arg(long)]
    show_count: bool,
    /// Accepted for compatibility with llama-tokenize; nothing is logged
    #[arg(long)]
    log_disable: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let model = hub::model(&args.model, Need::Vocabulary)?;
    let source = Source::open(&model.path)?;
    // The weights are not read and may be missing.
    let input = source.reader(&convert::Job {
        vocab_only: true,
        ..convert::Job::default()
    })?;
    let tokenizer =
        Tokenizer::from_gguf(input.metadata()).with_context(|| args.model.display().to_string())?;
    if let Some(path) = &args.chat {
        let template = chat_template(input.metadata());
        let template = template.with_context(|| {
            let model = args.model.display();
            format!("{model}: it has no chat template, which conversations need")
        })?;
        let template = template.map_err(|what| {
            anyhow::anyhow!("{}: its chat template: {what}", args.model.display())
        })?;
        let renderer = Renderer {
            template: &template,
            tokenizer: &tokenizer,
        };
        return conversations(args, path, &renderer);
    }
    let (bytes, from) = match (&args.prompt, &args.file) {
        (Some(text), _) => (text.clone().into_bytes(), "the prompt".to_owned()),
        (None, Some(path)) => {
            let bytes =
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            (bytes, path.display().to_string())
        }
        (None, None) if args.stdin => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .read_to_end(&mut bytes)
                .context("cannot read standard input")?;
            (bytes, "standard input".to_owned())
        }
        (None, None) => bail!("no text; use --prompt, --file or --stdin"),
    };
    let bytes = if args.no_escape {
        bytes
    } else {
        unescaped(&bytes)
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{from}: not UTF-8 at byte {at}; convert the text to UTF-8")
    })?;
    let add_special = tokenizer.adds_bos() && !args.no_bos;
    let tokens = tokenizer.encode(&text, add_special, !args.no_parse_special);
    if args.json {
        let pieces: Vec<_> = tokens
            .iter()
            .map(|&t| String::from_utf8_lossy(&tokenizer.piece(t)).into_owned())
            .collect();
        say!(
            "{}",
            json!({ "count": tokens.len(), "ids": tokens, "pieces": pieces })
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.ids {
        let ids: Vec<_> = tokens.iter().map(u32::to_string).collect();
        say!("[{}]", ids.join(", "))?;
    } else {
        for &token in &tokens {
            say!(
                "{token:6} -> '{}'",
                String::from_utf8_lossy(&tokenizer.piece(token))
            )?;
        }
    }
    if args.show_count {
        say!("Total number of tokens: {}", tokens.len())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the tokens of conversations.
fn conversations(args: &Args, path: &Path, renderer: &Renderer<'_>) -> anyhow::Result<ExitCode> {
    let file = || path.display().to_string();
    let mut all = Vec::new();
    for conversation in conversation::read(&read_text(path)?).with_context(file)? {
        let tokens = renderer.tokens(&conversation).with_context(file)?;
        if !args.json {
            let ids: Vec<_> = tokens.iter().map(u32::to_string).collect();
            match args.show_count {
                true => say!("line {}: {} tokens", conversation.line, tokens.len())?,
                false => say!("[{}]", ids.join(", "))?,
            }
            continue;
        }
        let turns = renderer.turns(&conversation).with_context(file)?;
        let turns = turns.iter().map(|turns| {
            let ranges = turns.assistant.iter();
            let ranges = ranges.map(|range| [range.start, range.end]);
            json!({ "ids": turns.tokens, "assistant": ranges.collect::<Vec<_>>() })
        });
        all.push(json!({
            "line": conversation.line, "count": tokens.len(), "ids": tokens, "turns": turns.collect::<Vec<_>>(),
        }));
    }
    if args.json {
        say!("{}", json!(all))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A text with its escapes resolved; unknown ones are kept.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        let (byte, used) = match (first, after) {
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [same @ (b'\'' | b'"' | b'\\'), ..]) => (*same, 2),
            (b'\\', [b'x', high, low, ..]) => match hex(&[*high, *low]) {
                Some(byte) => (byte, 4),
                None => (b'\\', 1),
            },
            _ => (first, 1),
        };
        out.push(byte);
        rest = &rest[used..];
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn escapes() {
        assert_eq!(
            super::unescaped(br#"a\n\t\\n\x41\xg1\q\"\"#),
            b"a\n\t\\nA\\xg1\\q\"\\"
        );
    }
}
