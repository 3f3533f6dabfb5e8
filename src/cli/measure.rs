//! Common options and helpers of the commands that run a model on a text.

use super::corpus::{ChatTokens, Chats};
use super::hub;
use super::messages::note;
use anyhow::{Context, ensure};
use quantier::chat::template::{ChatTemplate, chat_template};
use quantier::convert;
use quantier::input::{Input, Source};
use quantier_engine::model::{Device, Engine, Options, device};
use quantier_gguf::gguf::{Value, keys};
use quantier_tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

/// Common options.
#[derive(clap::Args)]
pub struct Common {
    /// Tokens per chunk
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub ctx_size: usize,
    /// Maximum number of chunks per text; all by default
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    #[command(flatten)]
    pub running: Running,
}

/// Options of every command that runs a model.
#[derive(clap::Args)]
pub struct Running {
    /// Number of threads; 0 for one per core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Memory for dequantized weights and activations, in MiB; activations beyond it go to a
    /// temporary file
    #[arg(long, value_name = "MIB")]
    pub max_memory: Option<u64>,
    /// Device: cpu, cuda[:N] or metal[:N], as far as the build supports them
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    pub device: Device,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl Running {
    pub fn options(&self) -> Options {
        let max_memory = self.max_memory.map(|mib| mib.saturating_mul(1 << 20));
        Options {
            threads: self.threads,
            max_memory,
            device: self.device.clone(),
        }
    }
}

/// Options of the commands that score a model on texts.
#[derive(clap::Args)]
pub struct Scored {
    /// An evaluation text of conversations, JSONL: {"messages": [...], "tools": [...]}, rendered by the
    /// model's chat template; repeatable
    #[arg(long, value_name = "JSONL")]
    pub chat: Vec<PathBuf>,
    /// The scored tokens of conversations
    #[arg(long, value_name = "WHICH", default_value = "assistant")]
    pub chat_tokens: ChatTokens,
    /// Allow sequences that are longer than the model's context
    #[arg(long)]
    pub force_context: bool,
}

impl Scored {
    /// The chat template of the model that renders the conversations, if there are any.
    pub fn template(&self, model: &Opened<'_>) -> anyhow::Result<Option<ChatTemplate>> {
        let needed = !self.chat.is_empty();
        needed.then(|| model.chat_template()).transpose()
    }

    /// The conversations.
    pub fn chats<'r>(&'r self, template: Option<&'r ChatTemplate>) -> Option<Chats<'r>> {
        template.map(|template| Chats {
            files: &self.chat,
            template,
            tokens: self.chat_tokens,
        })
    }
}

/// Reads a text as the reference does: without a final line break.
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

/// An open model with its tokenizer.
pub struct Opened<'a> {
    pub engine: Engine<'a>,
    pub tokenizer: Tokenizer,
    input: &'a Input<'a>,
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
        "{}: its tokenizer has {} tokens, but its output matrix has only {} rows",
        name(),
        tokenizer.vocab_size(),
        engine.vocabulary()
    );
    Ok(Opened {
        engine,
        tokenizer,
        input,
    })
}

/// Opens a model's files, downloading them if necessary.
pub fn source(path: &Path) -> anyhow::Result<Source> {
    Ok(Source::open(&hub::local(path)?)?)
}

/// The model of the opened files, for inspection.
pub fn input(source: &Source) -> anyhow::Result<Input<'_>> {
    Ok(source.reader(&convert::Job::default())?)
}

/// The model of the opened files, for running; prints notes for the user.
pub fn runnable(source: &Source) -> anyhow::Result<Input<'_>> {
    let input = source.finite_reader(&convert::Job::default())?;
    input.notes().iter().for_each(|note| note!("{note}"));
    Ok(input)
}

/// The files of some models.
pub fn sources(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    paths.iter().map(|path| source(path)).collect()
}

/// The models of opened files, for running.
pub fn runnables(sources: &[Source]) -> anyhow::Result<Vec<Input<'_>>> {
    sources.iter().map(runnable).collect()
}

/// Opens some models, so that none is run before all are checked.
pub fn open_all<'a>(
    paths: &[PathBuf],
    inputs: &'a [Input<'a>],
    options: &Options,
) -> anyhow::Result<Vec<Opened<'a>>> {
    let both = paths.iter().zip(inputs);
    both.map(|(path, input)| open(path, input, options))
        .collect()
}

impl Opened<'_> {
    /// The model's context, if it is shorter than this number of tokens and `forced` is false.
    pub fn exceeded(&self, tokens: usize, forced: bool) -> Option<u64> {
        let context = self.context().filter(|_| !forced)?;
        (tokens as u64 > context).then_some(context)
    }

    /// Fails for an embedding model, with the consequence.
    pub fn ensure_output(&self, path: &Path, consequence: &str) -> anyhow::Result<()> {
        ensure!(
            self.engine.has_output(),
            "{}: the model makes embeddings of texts and predicts no tokens: {consequence}. `quantier kld BASE MODEL -f \
             TEXT` measures the cosine distance of its embeddings",
            path.display()
        );
        Ok(())
    }

    /// The BOS token for every chunk, if the vocabulary has one.
    pub fn chunk_bos(&self) -> Option<u32> {
        self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos())
    }

    /// The context length of training, in tokens, if the model names one.
    fn context(&self) -> Option<u64> {
        let metadata = self.input.metadata();
        let architecture = metadata.get(keys::ARCHITECTURE).and_then(Value::as_str)?;
        let context = metadata.get(&format!("{architecture}.context_length"));
        context
            .and_then(Value::as_u64)
            .filter(|context| *context > 0)
    }

    /// The chat template.
    pub fn chat_template(&self) -> anyhow::Result<ChatTemplate> {
        let template = chat_template(self.input.metadata());
        let template = template.context("it has no chat template, which conversations need")?;
        template.map_err(|what| anyhow::anyhow!("its chat template: {what}"))
    }
}
