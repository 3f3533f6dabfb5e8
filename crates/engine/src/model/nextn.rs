//! The block after the layers that predicts one further token (multi-token prediction), run as a
//! draft model: over the tokens and the model's own activations.
//!
//! ```text
//! position k    the embedding of its token, normalized, concatenated with
//!               the model's normalized activations of position k - 1, normalized again
//!               -> projection -> layer -> its own output matrix, if it has one
//! ```
//!
//! The first position reads zeros in place of previous activations, as in llama.cpp.

use super::layer::{Bundle, Layer};
use super::linear::{Linear, Norm, Pass};
use super::order::in_order;
use super::rows::Rows;
use super::{Engine, Error, Hidden, Observer, Result, Tap};
use quantier_arch::LinearId;
use quantier_arch::spec::{NextnHead, NextnSpec};
use quantier_core::progress::{Progress, Unit};

/// The widened block.
struct Block {
    token_norm: Norm,
    hidden_norm: Norm,
    projection: Linear,
    layer: Layer,
    /// The norm after the model's last layer.
    model_norm: Option<Norm>,
    /// Its own output matrix, and the norm before it.
    head: Option<(Option<Norm>, LinearId)>,
}

impl Engine<'_> {
    /// True if the model has a multi-token prediction block that can be run.
    pub fn has_nextn(&self) -> bool {
        self.spec.nextn.is_some()
    }

    /// Runs the multi-token prediction block, if there is one, over chunks that have passed all
    /// layers; `hidden` holds all of their rows. The observer sees the inputs of its linears.
    ///
    /// # Errors
    /// Tensors that are missing or have the wrong shape, activations that are not finite.
    pub fn run_nextn(
        &self,
        chunks: &[Vec<u32>],
        hidden: &Hidden,
        observer: &dyn Observer,
        progress: &dyn Progress,
    ) -> Result<()> {
        let Some(spec) = &self.spec.nextn else {
            return Ok(());
        };
        let positions = chunks.first().map_or(0, Vec::len);
        if chunks.iter().any(|chunk| chunk.len() != hidden.rows()) {
            return Err(Error::Model("chunks differ in length".into()));
        }
        progress.begin(chunks.len() as u64, Unit::Steps);
        progress.at("block for a further token");
        self.pool.install(|| {
            let block = self.nextn(spec, positions)?;
            in_order(chunks.len(), |chunk| {
                if progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                let pass = Pass {
                    chunk,
                    tap: Some(observer as &dyn Tap),
                    recording: false,
                    split: self.split(chunks.len()),
                    stored: Some(&self.weights),
                    progress,
                };
                let width = self.hyper.hidden;
                let tokens = self.weights.rows(&spec.embedding, &chunks[chunk], width)?;
                let hidden = hidden.rows_of(chunk)?;
                let input = block.input(Rows::new(tokens, width), &hidden);
                pass.input(&[&block.projection], None, &input)?;
                let stream = pass.times(&block.projection, &input)?;
                let Bundle { stream, .. } = block.layer.forward(Bundle::of(stream), &pass)?;
                if !stream.is_finite() {
                    let layer = self.hyper.layers;
                    return Err(Error::NotFinite { layer, chunk });
                }
                if let Some((norm, head)) = &block.head {
                    let mut rows = stream;
                    if let Some(norm) = norm {
                        norm.apply(rows.numbers_mut());
                    }
                    pass.input_of(&[*head], None, &rows)?;
                }
                progress.advance(1);
                observer.chunk_done(chunk)
            })?;
            observer.layer_done(self.hyper.layers)
        })
    }

    fn nextn(&self, spec: &NextnSpec, positions: usize) -> Result<Block> {
        let weights = &self.weights;
        let model_norm = self.spec.output_norm.as_ref();
        Ok(Block {
            token_norm: weights.norm(&spec.token_norm)?,
            hidden_norm: weights.norm(&spec.hidden_norm)?,
            projection: weights.linear(&spec.projection)?,
            layer: Layer::load(weights, &spec.layer, &self.angles(positions)?)?,
            model_norm: model_norm.map(|norm| weights.norm(norm)).transpose()?,
            head: match &spec.head {
                Some(head) => self.nextn_head(head)?,
                None => None,
            },
        })
    }

    /// The block's own output matrix, without its weights: its products are not needed.
    fn nextn_head(&self, spec: &NextnHead) -> Result<Option<(Option<Norm>, LinearId)>> {
        let norm = spec.norm.as_ref().map(|norm| self.weights.norm(norm));
        let norm = norm.transpose()?;
        let linear = self.weights.catalog().linear_named(&spec.weight);
        Ok(linear.map(|linear| (norm, linear.id)))
    }
}

impl Block {
    /// Input of the projection, from embeddings and activations after the last layer: `[rows,
    /// hidden]` each.
    fn input(&self, mut tokens: Rows, hidden: &Rows) -> Rows {
        self.token_norm.apply(tokens.numbers_mut());
        let mut before = Rows::zeros(hidden.len(), hidden.columns());
        let (_, rest) = before.numbers_mut().split_at_mut(hidden.columns());
        rest.copy_from_slice(&hidden.numbers()[..rest.len()]);
        if let Some(norm) = &self.model_norm {
            norm.apply(rest);
        }
        self.hidden_norm.apply(rest);
        Rows::beside(&[&tokens, &before])
    }
}
