//! An opened model: its weights, its metadata and its catalog.

use crate::catalog::{Catalog, Entry, TensorId};
use quantier_gguf::gguf::{Value, keys};
use quantier_gguf::reader::{Tensor, TensorReader};
use std::ops::Deref;

/// A checked model, ready to be read.
pub struct Input<'a> {
    reader: TensorReader<'a>,
    catalog: Catalog,
}

impl<'a> From<TensorReader<'a>> for Input<'a> {
    fn from(reader: TensorReader<'a>) -> Input<'a> {
        let architecture = reader
            .metadata()
            .get(keys::ARCHITECTURE)
            .and_then(Value::as_str);
        let infos = reader.tensors.iter().map(|tensor| &tensor.info);
        let catalog = Catalog::new(
            architecture.unwrap_or_default(),
            infos.map(|info| (&*info.name, info.shape.four())),
        );
        Input { reader, catalog }
    }
}

impl<'a> Input<'a> {
    /// The tensors, linears, inputs and layers of the model.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// A tensor, to be read.
    pub fn tensor(&self, id: TensorId) -> &Tensor<'a> {
        &self.reader.tensors[id.index()]
    }

    /// The catalog's entry of a tensor of this model.
    pub fn entry(&self, tensor: &Tensor<'_>) -> &Entry {
        &self.catalog.tensors()[tensor.index]
    }
}

impl<'a> Deref for Input<'a> {
    type Target = TensorReader<'a>;

    fn deref(&self) -> &TensorReader<'a> {
        &self.reader
    }
}
