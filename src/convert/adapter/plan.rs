//! The plan of an adapter's file.

use super::outputs::{self, Conversion, Outputs};
use super::{Based, Weights};
use crate::arch::{Architecture, Nextn};
use crate::convert::general::{General, ParameterCount};
use crate::convert::outputs::Fault;
use crate::convert::plan::{PlannedTensor, check_defaults, check_endian, output};
use crate::convert::{Error, Job, Plan, Result, range};
use crate::format::gguf::{Array, Entries, Metadata, QUANTIZATION_VERSION, Value, ValueType, keys};
use crate::format::safetensors::Dtype;

/// The value of `general.type`.
const ADAPTER: &str = "adapter";

impl<'a> Plan<'a> {
    /// Plans the conversion of an adapter. Options of a job that are for models alone must be at
    /// their defaults.
    ///
    /// # Errors
    /// [`Error::Impossible`] with all reasons at once.
    pub fn of_adapter(based: &'a Based, job: &Job) -> Result<Plan<'a>> {
        check_defaults(
            job,
            &[
                (job.widen, "--widen"),
                (job.pre != Job::default().pre, "--pre"),
            ],
            "is for models, and this is a LoRA adapter",
        )?;
        let checkpoint = &based.checkpoint;
        let in_config = |what| crate::format::Error::Bad {
            path: checkpoint.config_path(),
            what,
        };
        let architecture = Architecture::of(&checkpoint.config).map_err(in_config)?;
        let names = based.changes.iter().map(|change| &*change.name);
        let nextn = architecture.nextn_blocks(Nextn::IfThere, &checkpoint.config, names);
        let config = &checkpoint
            .config
            .clone()
            .with_nextn(nextn.map_err(in_config)?);
        let file_type = job.out_type.file_type(based.halves());
        let conversion = Conversion {
            based,
            config,
            architecture,
            file_type,
        };
        let planned = outputs::plan(conversion).map_err(|fault| match fault {
            Fault::Config(what) => in_config(what).into(),
            Fault::Tensors(problems) => Error::Impossible(problems),
        })?;
        check_endian(&planned.tensors, job.endian)?;
        let mut notes = based.notes();
        notes.extend(planned.notes(config.is_tied() == Some(true)));
        let general = General::load(
            &based.dir,
            job.metadata.as_deref(),
            job.model_name.as_deref(),
            &count(&planned.tensors),
        )?;
        let name = || general.adapter_file_name(file_type.name()).stem();
        let path = output(&job.output, file_type, name)?;
        Ok(Plan {
            checkpoint,
            files: vec![(path, based.metadata(architecture, &general)?)],
            tensors: planned.tensors,
            file_type,
            architecture,
            notes,
            endian: job.endian,
            vocab_only: false,
            check: job.check,
            threads: job.threads,
            too_large: range::Seen::default(),
        })
    }
}

/// The weights of the changed matrices, as the reference counts them: of embeddings, those of B.
fn count(tensors: &[PlannedTensor]) -> ParameterCount {
    let mut columns = 0;
    let mut total = 0;
    for tensor in tensors {
        let dims = tensor.shape.dims();
        if tensor.name.ends_with(".lora_a") {
            columns = dims[0];
        } else if tensor.name.ends_with(".lora_b") {
            total += dims[1..].iter().product::<u64>() * columns;
        } else {
            total += tensor.shape.elements();
        }
    }
    ParameterCount {
        total,
        is_adapter: true,
        ..ParameterCount::default()
    }
}

impl Based {
    /// The type of the first factor of 16 bits.
    fn halves(&self) -> Option<Dtype> {
        let mut tensors = self.checkpoint.tensors.iter();
        let is_half = |dtype: &Dtype| matches!(dtype, Dtype::Bf16 | Dtype::F16);
        tensors.find_map(|tensor| Some(tensor.dtype).filter(is_half))
    }

    fn metadata(
        &self,
        architecture: &Architecture,
        general: &General,
    ) -> Result<Metadata<'static>> {
        let mut entries = Entries::new();
        entries.set(keys::ARCHITECTURE, Value::str(architecture.name));
        entries.set(keys::TYPE, Value::str(ADAPTER));
        entries.set("adapter.type", Value::str("lora"));
        entries.extend(general.entries()?);
        let alpha = self.settings.alpha as f32;
        entries.set("adapter.lora.alpha", Value::F32(alpha));
        let tokens = &self.settings.invocation;
        if !tokens.is_empty() {
            let tokens = tokens.iter().map(|token| Value::U32(*token));
            let list = Array::of_values(ValueType::U32, tokens);
            entries.set("adapter.alora.invocation_tokens", Value::Array(list));
        }
        entries.set(keys::QUANTIZATION_VERSION, Value::U32(QUANTIZATION_VERSION));
        let mut metadata = Metadata::new();
        for (key, value) in entries {
            metadata.set(key, value);
        }
        Ok(metadata)
    }

    /// What llama.cpp does otherwise than PEFT, for the user.
    fn notes(&self) -> Vec<String> {
        let settings = &self.settings;
        let mut notes = Vec::new();
        if settings.by_root {
            let ranks = self
                .changes
                .iter()
                .filter_map(|change| match change.weights {
                    Weights::Pair { a, .. } => Some(self.checkpoint.tensors[a].shape[0]),
                    Weights::Whole(_) => None,
                });
            let mut ranks: Vec<u64> = ranks.collect();
            ranks.sort_unstable();
            ranks.dedup();
            let advice = match ranks[..] {
                [rank] => format!("run it with --lora-scaled FILE:{:.4}", (rank as f64).sqrt()),
                _ => "its ranks differ, so that no factor for all makes up for it; merge it instead (--lora)".into(),
            };
            notes.push(format!(
                "the adapter was trained with use_rslora, which divides alpha by the root of the rank; llama.cpp divides \
                 by the rank: {advice}"
            ));
        }
        if !settings.alphas.is_empty() {
            notes.push(
                "the adapter has another alpha for some matrices (alpha_pattern), and the GGUF one for all; merge it \
                 instead (--lora)"
                    .into(),
            );
        }
        if let Some(method) = &settings.residual {
            notes.push(format!(
                "the adapter was initialized by {method}, which changes the base model; it fits the base saved with it, \
                 or needs to be converted by PEFT (path_initial_model_for_weight_conversion)"
            ));
        }
        notes
    }
}

impl Outputs {
    /// What llama.cpp does with some tensors, for the user.
    fn notes(&self, is_tied: bool) -> Vec<String> {
        let mut notes = Vec::new();
        if self.has_norms {
            notes.push(
                "llama.cpp ignores the norms of an adapter; merge it to have them (--lora)".into(),
            );
        }
        if self.has_output && is_tied {
            notes.push(
                "the embeddings of the base serve as output matrix; llama.cpp loads this adapter only on a GGUF with an \
                 output.weight of its own"
                    .into(),
            );
        }
        if self.transposed > 0 {
            notes.push(format!(
                "{} updates are of matrices that the base stores transposed (Conv1D); their factors are written so that \
                 they fit (convert_lora_to_gguf.py exchanges them)",
                self.transposed
            ));
        }
        let left_out = self.left_out.iter();
        notes.extend(
            left_out.map(|(part, count)| format!("{count} tensors of {part} are left out")),
        );
        notes
    }
}
