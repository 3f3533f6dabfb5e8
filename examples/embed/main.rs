//! The embeddings of the texts in a file, as `quantier kld` compares them, one JSON object a line: tokens and unit vectors.
//! For scripts that compare them with other programs'.
//!
//! ```sh
//! cargo run --release --example embed -- MODEL.gguf TEXTS
//! ```

use anyhow::{Context, anyhow};
use quantier::chat::encoder::Encoder;
use quantier::input::Source;
use quantier::text::Text;
use quantier_core::progress::Silent;
use quantier_engine::evaluate::embeddings::embeddings;
use quantier_engine::model::{Engine, Options};
use quantier_tokenizer::Tokenizer;
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = || anyhow!("usage: embed MODEL.gguf TEXTS");
    let model = args.next().ok_or_else(usage)?;
    let texts = args.next().ok_or_else(usage)?;
    let source = Source::open(std::path::Path::new(&model))?;
    let input = source.reader(&quantier::convert::Job::default())?;
    let engine = Engine::new(&input, &Options::default())?;
    engine.check()?;
    let tokenizer = Tokenizer::from_gguf(input.metadata())?;
    let encoder = Encoder {
        tokenizer: &tokenizer,
        template: None,
    };
    let content = std::fs::read_to_string(&texts).with_context(|| texts.clone())?;
    let longest = engine.hyper.context.unwrap_or(usize::MAX);
    let separate = encoder.separate(&Text::plain(&texts, content), longest);
    let texts = separate.map_err(|what| anyhow!(what))?.texts;
    let all = embeddings(&model, &engine, &texts, &Silent)?;
    for (tokens, embedding) in texts.iter().zip(&all) {
        let rows: Vec<&[f32]> = embedding.iter().collect();
        println!("{}", json!({ "tokens": tokens, "embeddings": rows }));
    }
    Ok(())
}
