//! Writes small models with importance matrices, for preset rules that few models reach, and large
//! ones for measurements. Identical on every machine: seeded numbers, no math library.
//!
//! ```text
//! synthetic OUT_DIR                      every small model: NAME.gguf, NAME.imatrix.gguf, NAME.imatrix.dat
//! synthetic --imatrix MODEL PREFIX       only an importance matrix for a model: PREFIX.gguf, PREFIX.dat
//! synthetic --large BYTES FILE [bf16]    a llama of about BYTES bytes, F16 by default
//! synthetic --engine SIZE LIKE FILE      a llama in F16 that can be run, with the tokenizer of the GGUF `LIKE`;
//!                                        SIZE is one of engine.rs's
//! ```
//!
//! `scripts/parity.sh` quantizes the small ones with llama-quantize and with Quantier, and compares
//! the files.

mod engine;
mod large;
mod models;
mod write;

use quantier_gguf::types::GgmlType;
use std::path::Path;

const USAGE: &str = "usage: synthetic OUT_DIR | --imatrix MODEL PREFIX | --large BYTES FILE [bf16] | \
                     --engine SIZE LIKE FILE";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--large", bytes, file] => large::write(bytes.parse()?, Path::new(file), GgmlType::F16)?,
        ["--large", bytes, file, "bf16"] => {
            large::write(bytes.parse()?, Path::new(file), GgmlType::BF16)?
        }
        ["--engine", name, like, file] => {
            let size = engine::SIZES.iter().find(|size| size.name == name);
            let names: Vec<_> = engine::SIZES.iter().map(|size| size.name).collect();
            let size =
                size.ok_or_else(|| format!("no size '{name}'; there are {}", names.join(", ")))?;
            engine::write(size, Path::new(like), Path::new(file))?;
        }
        ["--imatrix", model, prefix] => write::imatrix_for_file(Path::new(model), prefix)?,
        [dir] if !dir.starts_with('-') => {
            std::fs::create_dir_all(dir)?;
            for model in models::all() {
                write::model(&model, Path::new(dir))?;
                println!("{}", model.name);
            }
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}
