//! The target of a draft model, whose vocabulary its GGUF has.

use super::{Checkpoint, Error, Job, Result};
use crate::arch::{Architecture, Config};
use crate::format::json;
use crate::tokenizer::VocabKind;
use std::path::PathBuf;

/// The vocabulary of a conversion.
pub(super) struct Vocabulary {
    /// The directory of its files.
    pub(super) dir: PathBuf,
    /// Its kind.
    pub(super) kind: VocabKind,
}

/// The vocabulary of a checkpoint, and its config; of a draft model, the vocabulary of the target, and the config
/// with the target's.
///
/// # Errors
/// A draft without a target, a target of another model, and an unreadable or unsupported target.
pub(super) fn vocabulary(
    checkpoint: &Checkpoint,
    architecture: &Architecture,
    job: &Job,
) -> Result<(Vocabulary, Config)> {
    let config = checkpoint.config.clone();
    let own = |dir| Vocabulary {
        dir,
        kind: architecture.vocabulary,
    };
    match (&job.target, architecture.is_draft()) {
        (None, false) => Ok((own(checkpoint.dir.clone()), config)),
        (None, true) => Err(Error::impossible(format!(
            "this is a draft model (architecture {}), and its file has the vocabulary of the model that it drafts for; \
             name that model's directory: quantier convert DRAFT --target-model-dir DIR",
            architecture.name
        ))),
        (Some(_), false) => Err(Error::impossible(format!(
            "--target-model-dir is for draft models, and architecture {} is none; leave it out",
            architecture.name
        ))),
        (Some(dir), true) => {
            const MASK: &str = "mask_embedding.pt";
            if checkpoint.dir.join(MASK).is_file() {
                return Err(Error::impossible(format!(
                    "the draft has an embedding of its own for the mask token ({MASK}), which is written into a copy of \
                     the target's embeddings; such drafts are not supported"
                )));
            }
            let target = Checkpoint::of_config(dir)?;
            let fields = json::read_object(&target.config_path())?;
            let vocabulary = match architecture.has_vocabulary_of_target() {
                true => {
                    let of_target = Architecture::of(&target.config);
                    let of_target = of_target
                        .map_err(|what| super::checkpoint::bad(&target.config_path(), what))?;
                    Vocabulary {
                        kind: of_target.vocabulary,
                        dir: target.dir,
                    }
                }
                false => own(target.dir),
            };
            Ok((vocabulary, config.with_target(fields)))
        }
    }
}
