//! Model arguments: a path, or an `hf://` address and its local copy.

use anyhow::bail;
use quantier_hub::Address;
use std::path::{Path, PathBuf};

/// A model on this machine.
pub struct Model {
    pub path: PathBuf,
    /// Address on the Hub, if any: nothing may be written into the Hub's cache.
    pub address: Option<Address>,
}

/// Parts of a model that a command reads.
#[derive(Clone, Copy)]
pub enum Need {
    Everything,
    /// Tokens, but no weights.
    Vocabulary,
}

/// Path of a model; `hf://` models are downloaded unless cached.
pub fn local(argument: &Path) -> anyhow::Result<PathBuf> {
    Ok(model(argument, Need::Everything)?.path)
}

/// As [`local`], limited to a part of the model, with the model's address.
pub fn model(argument: &Path, need: Need) -> anyhow::Result<Model> {
    if Address::is_meant(argument) {
        let address =
            Address::parse(&argument.display().to_string()).map_err(anyhow::Error::msg)?;
        return Ok(Model {
            path: fetched(&address, need)?,
            address: Some(address),
        });
    }
    let as_address =
        || Address::parse(&format!("{}{}", quantier_hub::SCHEME, argument.display())).ok();
    // A bare ORG/NAME is the most likely mistake.
    if !argument.exists()
        && argument
            .extension()
            .is_none_or(|e| e != "gguf" && e != "safetensors" && e != "bin")
        && argument
            .parent()
            .is_some_and(|parent| !parent.as_os_str().is_empty() && !parent.exists())
        && let Some(address) = as_address()
    {
        bail!(
            "{} does not exist; for the model of this name on the Hugging Face Hub, write {address}",
            argument.display()
        );
    }
    Ok(Model {
        path: argument.to_owned(),
        address: None,
    })
}

/// As [`model`], for `ORG/NAME` without the scheme.
pub fn remote(argument: &Path, need: Need) -> anyhow::Result<Model> {
    match Address::is_meant(argument) {
        true => model(argument, need),
        false => model(
            Path::new(&format!("{}{}", quantier_hub::SCHEME, argument.display())),
            need,
        ),
    }
}

#[cfg(feature = "hub")]
fn fetched(address: &Address, need: Need) -> anyhow::Result<PathBuf> {
    use super::messages::note;
    use quantier_hub::{Settings, fetch};
    let need = match need {
        Need::Everything => quantier_hub::Need::Everything,
        Need::Vocabulary => quantier_hub::Need::Vocabulary,
    };
    let bar = super::terminal::Bar::new();
    Ok(fetch(
        address,
        &Settings::from_env()?,
        need,
        &bar,
        &|note| note!("{note}"),
    )?)
}

#[cfg(not(feature = "hub"))]
fn fetched(address: &Address, _: Need) -> anyhow::Result<PathBuf> {
    bail!(
        "{address}: this program was built without Hub support; build it with --features hub, or download the model yourself"
    )
}
