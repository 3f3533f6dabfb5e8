//! The tuned file: a copy with other bytes in some tensors.

use super::{Error, Result};
use crate::format::gguf::{Files, shard_name, shard_path};
use crate::format::output::{Output, check_new};
use crate::input::Input;
use crate::model::Changed;
use std::path::{Path, PathBuf};

/// Names of the new files, one for each of the model's.
pub struct Targets(Vec<PathBuf>);

/// The new files for an output of this name.
///
/// # Errors
/// An existing file unless `replace` is set; for a split model, a name other than that of a first
/// file.
pub fn targets(files: &Files, output: &Path, replace: bool) -> Result<Targets> {
    let count = files.maps().len() as u64;
    let all = match (count, shard_name(output)) {
        (1, _) => vec![output.to_owned()],
        (count, Some((prefix, 0, n))) if n == count => (0..count)
            .map(|no| shard_path(&prefix, no, count))
            .collect(),
        _ => {
            return Err(Error::Output {
                path: output.to_owned(),
                what: "the model is split: name an output that ends in -00001-of-, the number of its files in five \
                       digits and .gguf",
            });
        }
    };
    if !replace {
        all.iter().try_for_each(|path| check_new(path))?;
    }
    Ok(Targets(all))
}

/// Copies a model's files with the bytes of changed tensors: all files or none.
///
/// # Errors
/// Those of [`Output`].
pub(super) fn write(
    files: &Files,
    input: &Input<'_>,
    changed: &Changed,
    targets: &Targets,
) -> Result<()> {
    let inputs = files.paths();
    let mut outputs = Vec::with_capacity(targets.0.len());
    for (map, target) in files.maps().iter().zip(&targets.0) {
        outputs.push(Output::create(target, map.bytes().len() as u64, &inputs)?);
    }
    for (shard, (map, output)) in files.maps().iter().zip(&mut outputs).enumerate() {
        map.check_length()?;
        let mut patches: Vec<(usize, &[u8])> = changed
            .iter()
            .map(|(id, bytes)| (input.tensor(*id), bytes))
            .filter(|(tensor, _)| tensor.shard == shard)
            .map(|(tensor, bytes)| (tensor.offset as usize, &**bytes))
            .collect();
        patches.sort_unstable_by_key(|(offset, _)| *offset);
        let mut at = 0;
        for (offset, bytes) in patches {
            output.copy(map, at..offset)?;
            output.write(bytes)?;
            at = offset + bytes.len();
        }
        output.copy(map, at..map.bytes().len())?;
    }
    outputs.into_iter().try_for_each(Output::finish)?;
    Ok(())
}
