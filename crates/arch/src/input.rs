//! An opened model: its weights, its metadata and its catalog.

use crate::catalog::{Catalog, Entry, LayerId, TensorId};
use crate::hyper::Hyper;
use crate::spec::NextnSpec;
use quantier_gguf::gguf::{Value, keys};
use quantier_gguf::reader::{Tensor, TensorReader};
use quantier_gguf::types::GgmlType;
use std::ops::Deref;

/// A checked model, ready to be read.
pub struct Input<'a> {
    reader: TensorReader<'a>,
    catalog: Catalog,
    /// The first layer that is a block for further tokens, if any is.
    nextn: Option<LayerId>,
    /// Whether that block can be run.
    drafts: bool,
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
        let number = |key: &str| {
            let value = reader.metadata().get(&format!("{}.{key}", architecture?))?;
            value.as_u64()
        };
        let nextn = number("nextn_predict_layers").filter(|blocks| *blocks > 0);
        let first = number("block_count").zip(nextn);
        let first = first.and_then(|(all, blocks)| all.checked_sub(blocks)?.try_into().ok());
        let hyper = first.and_then(|_: u32| Hyper::new(reader.metadata()).ok());
        let drafts = hyper.is_some_and(|hyper| NextnSpec::new(&hyper, &catalog).is_some());
        Input {
            reader,
            catalog,
            nextn: first.map(LayerId),
            drafts,
        }
    }
}

impl<'a> Input<'a> {
    /// The tensors, linears, inputs and layers of the model.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Whether an importance matrix has what a linear reads: it is in a layer, or in a block for
    /// further tokens that can be run.
    pub fn is_run(&self, name: &str) -> bool {
        self.drafts || !self.is_nextn(name)
    }

    /// Whether a tensor belongs to a block for further tokens (multi-token prediction), on which
    /// the model's own output does not depend.
    pub fn is_nextn(&self, name: &str) -> bool {
        let id = self.catalog.tensor_named(name);
        let layer = id.and_then(|id| self.catalog.tensor(id).layer);
        layer
            .zip(self.nextn)
            .is_some_and(|(layer, first)| layer >= first)
    }

    /// Whether llama.cpp loads a tensor as this type: a scale beside the output matrix is loaded with
    /// NVFP4 alone.
    pub fn loads_as(&self, tensor: &Tensor<'_>, ggml_type: GgmlType) -> bool {
        let linear = self.catalog.linear_of(self.entry(tensor).id);
        let is_scaled_output =
            linear.is_some_and(|linear| linear.layer.is_none() && linear.scale.is_some());
        !is_scaled_output || ggml_type == GgmlType::NVFP4
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
