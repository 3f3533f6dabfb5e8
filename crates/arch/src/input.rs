//! An opened model: its weights, its metadata and its catalog.

use crate::catalog::{Catalog, Entry, LayerId, TensorId};
use crate::hyper::Hyper;
use crate::spec::NextnSpec;
use quantier_gguf::gguf::{Value, keys};
use quantier_gguf::reader::{Tensor, TensorReader};
use quantier_gguf::types::GgmlType;
use std::ops::Deref;

/// A validated model.
pub struct Input<'a> {
    reader: TensorReader<'a>,
    catalog: Catalog,
    /// The first multi-token prediction block, if any.
    nextn: Option<LayerId>,
    /// True if the multi-token prediction block is supported.
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
        let drafts = hyper.is_some_and(|hyper| NextnSpec::new(&hyper, &catalog, None).is_some());
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

    /// True if an importance matrix covers a tensor: in layers, and in supported multi-token
    /// prediction blocks.
    pub fn is_run(&self, name: &str) -> bool {
        self.drafts || !self.is_nextn(name)
    }

    /// True for tensors of multi-token prediction blocks, which do not affect the model's own
    /// output.
    pub fn is_nextn(&self, name: &str) -> bool {
        let id = self.catalog.tensor_named(name);
        let layer = id.and_then(|id| self.catalog.tensor(id).layer);
        layer
            .zip(self.nextn)
            .is_some_and(|(layer, first)| layer >= first)
    }

    /// True if llama.cpp loads a tensor with this type: an output matrix with a scale is loaded
    /// with NVFP4 only.
    pub fn loads_as(&self, tensor: &Tensor<'_>, ggml_type: GgmlType) -> bool {
        let linear = self.catalog.linear_of(self.entry(tensor).id);
        let is_scaled_output =
            linear.is_some_and(|linear| linear.layer.is_none() && linear.scale.is_some());
        !is_scaled_output || ggml_type == GgmlType::NVFP4
    }

    /// A tensor for reading.
    pub fn tensor(&self, id: TensorId) -> &Tensor<'a> {
        &self.reader.tensors[id.index()]
    }

    /// The catalog entry of a tensor.
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
