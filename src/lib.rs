//! Quantier turns a model checkpoint into the best GGUF for its size.
//!
//! Every command of the program is a function of this crate: it takes a job, reports progress
//! through `quantier_core::progress::Progress`, and prints nothing.
//!
//! # Convert a checkpoint
//!
//! ```no_run
//! use quantier::convert::{Checkpoint, Job, OutType, Plan};
//! use quantier_core::progress::Silent;
//! use std::path::Path;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open(Path::new("SmolLM2-135M"))?;
//! let job = Job {
//!     output: "model.gguf".into(),
//!     out_type: OutType::F16,
//!     ..Job::default()
//! };
//! Plan::new(&checkpoint, &job)?.run(&Silent)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Quantize a model
//!
//! ```no_run
//! use quantier::quantize::{Job, OutputRequest, Plan};
//! use quantier::{convert, input::Source};
//! use quantier_allocate::{file_type::FileType, recipe::Wishes};
//! use quantier_core::progress::Silent;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let output = OutputRequest {
//!     path: "model-Q4_K_M.gguf".into(),
//!     wishes: Wishes { file_type: Some(FileType::Q4_K_M), ..Wishes::default() },
//!     ..OutputRequest::default()
//! };
//! let job = Job { input: "model.gguf".into(), outputs: vec![output], ..Job::default() };
//! let source = Source::open(&job.input)?;
//! let model = source.reader(&convert::Job::default())?;
//! Plan::new(&model, &job)?.run(&Silent)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Compute an importance matrix
//!
//! ```no_run
//! use quantier::{convert, input::Source};
//! use quantier_core::progress::Silent;
//! use quantier_engine::imatrix::collect::{Options, collect};
//! use quantier_engine::{evaluate::windows::Windows, model, model::Engine};
//! use quantier_tokenizer::Tokenizer;
//! use std::path::Path;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = Source::open(Path::new("model.gguf"))?;
//! let model = source.reader(&convert::Job::default())?;
//! let engine = Engine::new(&model, &model::Options::default())?;
//! let tokenizer = Tokenizer::from_gguf(model.metadata())?;
//! let tokens = tokenizer.encode(&std::fs::read_to_string("calibration.txt")?, true, false);
//! let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
//! let windows = Windows::of_text(&tokens, 512, None, bos)?;
//! let collected = collect(&engine, &windows, &Options::default(), &Silent)?;
//! collected.sums.to_file(512).write_gguf(Path::new("imatrix.gguf"))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Measure the KL divergence of a quantized model
//!
//! ```no_run
//! use quantier_core::progress::Silent;
//! use quantier_engine::evaluate::measure::{Base, Measured, compare};
//! use quantier_engine::evaluate::{sequences::Sequences, statistics::Statistics, windows::Windows};
//! use quantier_engine::model::Engine;
//!
//! // Engines and windows as in the example above.
//! fn divergence(
//!     [base, quantized]: [&Engine<'_>; 2],
//!     text: &Windows<'_>,
//! ) -> Result<f64, Box<dyn std::error::Error>> {
//!     let chunks = Sequences::from(text);
//!     let base = Base::Model(Measured::new("base".into(), base, &chunks, &Silent)?);
//!     let models = [Measured::new("quantized".into(), quantized, &chunks, &Silent)?];
//!     let rows = compare(&base, &models, &chunks, None, &Silent)?;
//!     Ok(Statistics::of(&[&rows[0]]).ok_or("no scored rows")?.kld.value)
//! }
//! ```
//!
//! # Make the best file for a size
//!
//! ```no_run
//! use quantier::chat::encoder::Encoder;
//! use quantier::input::Input;
//! use quantier::make::{Files, Goal, Job, NamedBudget, Options, Runnable, Runner, Text, Texts};
//! use quantier_allocate::frontier::Budget;
//! use quantier_core::progress::Silent;
//! use quantier_engine::model::Engine;
//! use quantier_tokenizer::Tokenizer;
//!
//! // Model, engine and tokenizer as in the example of the importance matrix.
//! fn make(
//!     input: &Input<'_>,
//!     engine: &Engine<'_>,
//!     text: &str,
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let budgets = vec![NamedBudget { name: "--bpw 4.25".into(), budget: Budget::Bpw(4.25) }];
//!     let goal = Goal::Files(Files { budgets, ..Files::default() });
//!     let options = Options { directory: "out".into(), goal, ..Options::default() };
//!     let texts = Texts::hold_out(vec![Text::plain("text.txt", text.into())]);
//!     let tokenizer = &Tokenizer::from_gguf(input.metadata())?;
//!     let encoder = Encoder { tokenizer, template: None };
//!     let runner = Runner::Native(Runnable { engine, encoder });
//!     let job = Job::new(input, runner, options, &texts)?;
//!     let made = job.run(&Silent, &|note| eprintln!("{note}"))?;
//!     println!("{:?}", made.files);
//!     Ok(())
//! }
//! ```
//!
//! # Modules
//!
//! This crate holds the pipelines. Each module depends on those below it only.
//!
//! | module | content | access |
//! |---|---|---|
//! | [`make`] | the main pipeline: measure, allocate, write, verify, report | files, through `quantier-gguf` |
//! | [`cluster`] | plans of shards for schedulers: scripts, a Snakefile, the status | none: data in, text out; the status reads a directory |
//! | [`publish`] | a directory for the Hub from the results of `make`: card, Modelfiles, checksums, chat template | the same; links and renames |
//! | [`tune`] | norms, scales and codes of a quantized file, trained by KL divergence | files, through `quantier-gguf`; a snapshot |
//! | [`edit`] | `split`, `merge`, `set`: copies with other files or metadata | files, through `quantier-gguf` |
//! | [`diff`] | differences between two models: metadata, shapes, types, the error of every tensor | weights, through `input` |
//! | [`convert`], [`quantize`], [`verify`] | the other pipelines | files, through `quantier-gguf` |
//! | [`sensitivity`] | nats of every type in every tensor, from gradients and quantized bytes | weights, through `input`; a snapshot |
//! | [`input`] | the input of a command: a GGUF, or a checkpoint converted on the fly | files, through `quantier-gguf` |
//! | [`chat`] | chat templates; conversations as text, and their tokens | none |
//! | [`text`] | the built-in texts for calibration and evaluation; parts of a text that are held out | none |
//!
//! # Crates
//!
//! The parts of the pipelines. Each crate depends on those below it only.
//!
//! | crate | content | access |
//! |---|---|---|
//! | `quantier-hub` | `hf://`: downloads from the Hugging Face Hub, uploads to it | the network; the Hub's cache |
//! | `quantier-report` | frontier.json, pictures, the page, the table for a terminal | none: data in, text out |
//! | `quantier-engine` | the engine: forward and backward passes by layer, taps on linears, sequential rounding; importance matrices, Hessians, perplexity, KL divergence | weights; a temporary file; a directory, through `quantier-gguf` |
//! | `quantier-round` | weights to blocks, with error feedback; Hessians and their files | numbers; a directory, through `quantier-gguf` |
//! | `quantier-allocate` | allocation: file types, preset rules, the frontier's solver | numbers and names |
//! | `quantier-arch` | model families and the catalog of a model's tensors | names and shapes of a checkpoint |
//! | `quantier-tokenizer` | Hugging Face tokenizer files to GGUF metadata; text to tokens | tokenizer files |
//! | `quantier-gguf` | GGUF, safetensors, importance matrices, output files; the only parser of untrusted bytes | files |
//! | `quantier-blocks` | block layouts, quantizers, dequantizers, block validation; eight lanes of f32 with the same results on every CPU | numbers |
//! | `quantier-core` | errors, progress and cancellation of long jobs | none |
//!
//! `src/main.rs` and `src/cli/` are the program: one file per command, and the only code that
//! prints.

#![warn(missing_docs, unreachable_pub)]

pub mod chat;
pub mod cluster;
pub mod convert;
pub mod diff;
pub mod edit;
pub mod input;
pub mod make;
pub mod publish;
pub mod quantize;
pub mod sensitivity;
pub mod text;
pub mod tune;
pub mod verify;

// Short names of the crates, for this crate alone.
use quantier_allocate as plan;
use quantier_arch as arch;
use quantier_blocks as quant;
use quantier_core::progress;
use quantier_engine::{evaluate, hessian, imatrix, model, resume};
use quantier_gguf as format;
use quantier_hub as hub;
use quantier_report as report;
use quantier_round as rounding;
use quantier_tokenizer as tokenizer;
