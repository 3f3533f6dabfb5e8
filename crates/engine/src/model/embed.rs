//! From tokens to the first layer's input, and back.
//!
//! ```text
//! stream     embedding * scale + position + token type -> norm -> all streams, in models with several
//! carried    (norm(projection of the stream) + per-layer embedding * scale) / sqrt(2), for every layer;
//!            zeros for what layers write
//! ```

use super::backward::{Embedded, TableGradients};
use super::layer::Bundle;
use super::linear::{Norm, Pass};
use super::ops::elementwise::{add, add_scaled, scale};
use super::ops::product::{product, product_derivative};
use super::rows::Rows;
use super::streams::Expansion;
use super::weights::Weights;
use super::{Engine, Error, Result};
use quantier_arch::spec::PerLayerInputsSpec;
use std::f32::consts::FRAC_1_SQRT_2;

/// The tables' companions, widened.
pub(super) struct Embedder<'e> {
    engine: &'e Engine<'e>,
    /// The norm after the embeddings.
    norm: Option<Norm>,
    per_layer: Option<PerLayerInputs<'e>>,
    expansion: Option<Expansion>,
}

/// The projection of per-layer embeddings, and its norm.
struct PerLayerInputs<'e> {
    spec: &'e PerLayerInputsSpec,
    /// `[columns, hidden]`.
    projection: Vec<f32>,
    norm: Norm,
}

impl PerLayerInputs<'_> {
    /// The projection before its norm: `[positions, columns]`.
    fn project(&self, stream: &Rows) -> Rows {
        let mut projected = product(stream, &self.projection, 1);
        scale(projected.numbers_mut(), projection_scale(stream.columns()));
        projected
    }

    /// Factor of the table's rows.
    fn row_scale(&self) -> f32 {
        (self.norm.len as f32).sqrt()
    }

    /// The inputs of all layers, from the stream and rows of the table.
    fn inputs(&self, stream: &Rows, rows: &[f32]) -> Rows {
        let mut inputs = self.project(stream);
        self.norm.apply(inputs.numbers_mut());
        add_scaled(inputs.numbers_mut(), rows, self.row_scale());
        scale(inputs.numbers_mut(), FRAC_1_SQRT_2);
        inputs
    }

    /// Derivative of [`PerLayerInputs::inputs`]: adds the gradient of the stream to `of_stream` and
    /// turns `g` into the gradient of the table's rows.
    fn derivative(&self, stream: &Rows, g: &mut Rows, of_stream: &mut Rows, pass: &Pass<'_>) {
        scale(g.numbers_mut(), FRAC_1_SQRT_2);
        let mut of_projected = g.clone();
        let projected = self.project(stream);
        pass.back_norm(&self.norm, projected.numbers(), of_projected.numbers_mut());
        scale(
            of_projected.numbers_mut(),
            projection_scale(stream.columns()),
        );
        let of_x = product_derivative(&of_projected, &self.projection, 1);
        add(of_stream.numbers_mut(), of_x.numbers());
        scale(g.numbers_mut(), self.row_scale());
    }
}

/// Factor of the projection.
fn projection_scale(hidden: usize) -> f32 {
    1.0 / (hidden as f32).sqrt()
}

impl Engine<'_> {
    /// Loads what turns tokens into the first layer's input.
    pub(super) fn embedder(&self) -> Result<Embedder<'_>> {
        let norm = self.spec.embedding_norm.as_ref();
        let mut per_layer = None;
        if let Some(spec) = &self.spec.per_layer {
            let dims = [spec.columns(), self.hyper.hidden];
            per_layer = Some(PerLayerInputs {
                spec,
                projection: self.weights.tensor(spec.projection, &dims)?,
                norm: self.weights.norm(&spec.norm)?,
            });
        }
        Ok(Embedder {
            engine: self,
            norm: norm.map(|norm| self.weights.norm(norm)).transpose()?,
            per_layer,
            expansion: self.expansion(&self.weights)?,
        })
    }

    fn expansion(&self, weights: &Weights<'_>) -> Result<Option<Expansion>> {
        let streams = self.spec.streams.as_ref();
        let expansion = streams.map(|spec| Expansion::load(weights, spec, self.hyper.hidden));
        expansion.transpose()
    }

    /// Checks presence and shapes of the tensors of [`Engine::embedder`], and of the tables.
    pub(super) fn check_embedder(&self) -> Result<()> {
        let weights = self.weights.shapes_only();
        let embedding = self.spec.embedding;
        let tokens = self.weights.row_count(embedding).unwrap_or(0);
        weights.tensor(embedding, &[tokens, self.hyper.hidden])?;
        if let Some(spec) = &self.spec.per_layer {
            weights.tensor(spec.table, &[tokens, spec.columns()])?;
            weights.tensor(spec.projection, &[spec.columns(), self.hyper.hidden])?;
            weights.norm(&spec.norm)?;
        }
        self.expansion(&weights)?;
        Ok(())
    }
}

impl Embedder<'_> {
    /// The first layer's input. `change` may overwrite rows of a table: it gets the table's name, the
    /// row numbers, and the rows.
    pub(super) fn input<E: From<Error>>(
        &self,
        tokens: &[u32],
        change: impl Fn(&str, &[u32], &mut [f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Bundle, E> {
        let stream = self.stream(tokens, &change)?;
        let mut bundle = self.engine.with_carried(stream);
        if let (Some(inputs), Some(carried)) = (&self.per_layer, &mut bundle.carried) {
            let (table, columns) = (inputs.spec.table, inputs.spec.columns());
            let mut rows = self.engine.weights.rows(table, tokens, columns)?;
            change(table, tokens, &mut rows)?;
            carried.set_columns(0, &inputs.inputs(&bundle.stream, &rows));
        }
        if let Some(expansion) = &self.expansion {
            bundle.stream = expansion.expand(&bundle.stream);
        }
        Ok(bundle)
    }

    /// Embeddings of tokens: `[positions, hidden]`.
    fn stream<E: From<Error>>(
        &self,
        tokens: &[u32],
        change: impl Fn(&str, &[u32], &mut [f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Rows, E> {
        let mut x = self.unnormalized(tokens, change)?;
        if let Some(norm) = &self.norm {
            norm.apply(x.numbers_mut());
        }
        Ok(x)
    }

    /// [`Embedder::stream`] before the norm.
    fn unnormalized<E: From<Error>>(
        &self,
        tokens: &[u32],
        change: impl Fn(&str, &[u32], &mut [f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Rows, E> {
        let engine = self.engine;
        let rows = |table: &str, numbers: &[u32]| {
            let mut rows = engine.weights.rows(table, numbers, engine.hyper.hidden)?;
            change(table, numbers, &mut rows)?;
            Ok::<_, E>(rows)
        };
        let mut x = rows(engine.spec.embedding, tokens)?;
        scale(&mut x, engine.hyper.embedding_scale);
        if let Some(table) = engine.spec.positions {
            let positions: Vec<u32> = (0..tokens.len() as u32).collect();
            let at = rows(table, &positions)?;
            x.iter_mut().zip(&at).for_each(|(x, at)| *x += at);
        }
        if let Some(table) = engine.spec.token_types {
            let first = rows(table, &[0])?;
            for x in x.chunks_exact_mut(engine.hyper.hidden) {
                add(x, &first);
            }
        }
        Ok(Rows::new(x, engine.hyper.hidden))
    }

    /// The tables whose rows are looked up by token, and their row lengths.
    pub(super) fn tables(&self) -> Vec<TableGradients> {
        let table = |name: &str, columns: usize| TableGradients {
            name: name.to_owned(),
            columns,
            chunks: Vec::new(),
        };
        let mut tables = vec![table(self.engine.spec.embedding, self.engine.hyper.hidden)];
        let per_layer = self.per_layer.iter().map(|inputs| inputs.spec);
        tables.extend(per_layer.map(|spec| table(spec.table, spec.columns())));
        tables
    }

    /// Gradients of the tables' rows, in the order of [`Embedder::tables`]: from those of the first
    /// layer's input, one for each draw. The tap of `pass` sees the gradients of the norms.
    pub(super) fn derivative(
        &self,
        tokens: &[u32],
        draws: Vec<Bundle>,
        pass: &Pass<'_>,
    ) -> Result<Vec<Embedded>> {
        let unchanged = |_: &str, _: &[u32], _: &mut [f32]| Ok::<_, Error>(());
        let stream = match self.per_layer.is_some() || self.expansion.is_some() {
            true => self.stream(tokens, unchanged)?,
            false => Rows::default(),
        };
        let unnormalized = match self.norm {
            Some(_) => self.unnormalized(tokens, unchanged)?,
            None => Rows::default(),
        };
        let tables = 1 + usize::from(self.per_layer.is_some());
        let mut embedded = vec![
            Embedded {
                tokens: tokens.to_vec(),
                gradients: Vec::new(),
            };
            tables
        ];
        for Bundle {
            stream: mut of_stream,
            carried,
            ..
        } in draws
        {
            if let Some(expansion) = &self.expansion {
                of_stream = expansion.derivative(&stream, &of_stream);
            }
            if let (Some(inputs), Some(carried)) = (&self.per_layer, carried) {
                let mut g = carried.columns_range(0..inputs.spec.columns());
                inputs.derivative(&stream, &mut g, &mut of_stream, pass);
                embedded[1].gradients.push(g.into_numbers());
            }
            if let Some(norm) = &self.norm {
                pass.back_norm(norm, unnormalized.numbers(), of_stream.numbers_mut());
            }
            scale(of_stream.numbers_mut(), self.engine.hyper.embedding_scale);
            embedded[0].gradients.push(of_stream.into_numbers());
        }
        Ok(embedded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::head::of_chunk;
    use crate::model::linear::NormTensors;
    use crate::model::ops::tests::{check_gradients, random};
    use quantier_arch::Norm as NormKind;

    #[test]
    fn inputs_of_layers_have_a_derivative_by_stream_and_rows() {
        const HIDDEN: usize = 6;
        const LENGTH: usize = 4;
        const LAYERS: usize = 3;
        let norm = |len: usize| Norm {
            kind: NormKind::Rms,
            epsilon: 1e-2,
            weight: random(len, 3),
            bias: vec![0.0; len],
            len,
            tensors: NormTensors::default(),
        };
        let spec = PerLayerInputsSpec {
            table: "table",
            projection: "projection",
            norm: quantier_arch::spec::NormSpec {
                stem: "norm".into(),
                kind: NormKind::Rms,
                epsilon: 1e-2,
                len: LENGTH,
                groups: 1,
            },
            layers: LAYERS,
        };
        let inputs = PerLayerInputs {
            spec: &spec,
            projection: random(spec.columns() * HIDDEN, 4),
            norm: norm(LENGTH),
        };
        let stream = |x: &[Vec<f32>]| Rows::new(x[0].clone(), HIDDEN);
        let forward = |x: &[Vec<f32>]| inputs.inputs(&stream(x), &x[1]).into_numbers();
        let backward = |x: &[Vec<f32>], g: &[f32]| {
            let mut of_rows = Rows::new(g.to_vec(), spec.columns());
            let mut of_stream = Rows::zeros(2, HIDDEN);
            inputs.derivative(&stream(x), &mut of_rows, &mut of_stream, &of_chunk(0, None));
            vec![of_stream.into_numbers(), of_rows.into_numbers()]
        };
        let at = [random(2 * HIDDEN, 1), random(2 * spec.columns(), 2)];
        check_gradients("per-layer inputs", &at, &forward, &backward);
    }
}
