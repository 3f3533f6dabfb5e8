//! What the commands have in common that run a model on a text.

use super::hub;
use anyhow::{Context, ensure};
use quantier::convert;
use quantier::input::{Input, Source};
use quantier::model::{Device, Engine, Options, device};
use quantier::tokenizer::Tokenizer;
use std::path::Path;

/// What all of them take.
#[derive(clap::Args)]
pub struct Common {
    /// Tokens in a chunk
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub ctx_size: usize,
    /// The most chunks of each text that are used; all without it
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// How many threads to use; 0 takes one per core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Memory for widened weights and the activations of all chunks, in MiB; activations beyond it
    /// go to a temporary file
    #[arg(long, value_name = "MIB")]
    pub max_memory: Option<u64>,
    /// Where to compute: cpu, cuda[:N] or metal[:N], as far as the build has them
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    pub device: Device,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl Common {
    pub fn options(&self) -> Options {
        let max_memory = self.max_memory.map(|mib| mib.saturating_mul(1 << 20));
        Options {
            threads: self.threads,
            max_memory,
            device: self.device.clone(),
        }
    }
}

/// A text as the reference reads it: without the line break at its end, if there is one.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!(
            "{}: not UTF-8 at byte {at}; convert the text to UTF-8",
            path.display()
        )
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// A model that is open, with its tokenizer.
pub struct Opened<'a> {
    pub engine: Engine<'a>,
    pub tokenizer: Tokenizer,
}

pub fn open<'a>(
    path: &Path,
    input: &'a Input<'a>,
    options: &Options,
) -> anyhow::Result<Opened<'a>> {
    let name = || path.display().to_string();
    let engine = Engine::new(input, options).with_context(name)?;
    engine.check().with_context(name)?;
    let tokenizer = Tokenizer::from_gguf(input.metadata()).with_context(name)?;
    ensure!(
        tokenizer.vocab_size() <= engine.vocabulary(),
        "{}: its tokenizer has {} tokens and its output matrix {} rows",
        name(),
        tokenizer.vocab_size(),
        engine.vocabulary()
    );
    Ok(Opened { engine, tokenizer })
}

/// The files of a model, from wherever it was named.
pub fn source(path: &Path) -> anyhow::Result<Source> {
    Ok(Source::open(&hub::local(path)?)?)
}

pub fn input(source: &Source) -> anyhow::Result<Input<'_>> {
    Ok(source.reader(&convert::Job::default())?)
}

impl Opened<'_> {
    /// The BOS that stands at the beginning of every chunk, if the vocabulary asks for one.
    pub fn chunk_bos(&self) -> Option<u32> {
        self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos())
    }
}
