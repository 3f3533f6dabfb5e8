//! A model that was named: a path, or `hf://` and what it becomes here.

use anyhow::bail;
use quantier::hub::Address;
use std::path::{Path, PathBuf};

/// Where a model is read from, and where a file goes that is named after it.
pub struct Model {
    /// A path of this machine.
    pub path: PathBuf,
    /// What was typed, if the model came from the Hub: nothing may be written beside it then.
    pub address: Option<Address>,
}

/// How much of a model a command reads.
#[derive(Clone, Copy)]
pub enum Need {
    Everything,
    /// Tokens, but no weights.
    Vocabulary,
}

/// The path of a model; what `hf://` names is downloaded first, as far as it is not in the cache.
pub fn local(named: &Path) -> anyhow::Result<PathBuf> {
    Ok(model(named, Need::Everything)?.path)
}

/// As [`local`], with what the command needs of it, and where it came from.
pub fn model(named: &Path, need: Need) -> anyhow::Result<Model> {
    if Address::is_meant(named) {
        let address = Address::parse(&named.display().to_string()).map_err(anyhow::Error::msg)?;
        return Ok(Model {
            path: fetched(&address, need)?,
            address: Some(address),
        });
    }
    let as_address =
        || Address::parse(&format!("{}{}", quantier::hub::SCHEME, named.display())).ok();
    // The name of a model where a path is expected is the most likely slip.
    if !named.exists()
        && named
            .extension()
            .is_none_or(|e| e != "gguf" && e != "safetensors")
        && named
            .parent()
            .is_some_and(|parent| !parent.as_os_str().is_empty() && !parent.exists())
        && let Some(address) = as_address()
    {
        bail!(
            "there is no {}; for the model of this name on the Hugging Face Hub, write {address}",
            named.display()
        );
    }
    Ok(Model {
        path: named.to_owned(),
        address: None,
    })
}

#[cfg(feature = "hub")]
fn fetched(address: &Address, need: Need) -> anyhow::Result<PathBuf> {
    use super::messages::note;
    use quantier::hub::{self, Settings, fetch};
    let need = match need {
        Need::Everything => hub::Need::Everything,
        Need::Vocabulary => hub::Need::Vocabulary,
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
        "{address}: this program was built without the Hub; build it with --features hub, or download the model yourself"
    )
}
