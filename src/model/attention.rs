//! From scores to probabilities: scale, soft cap, mask and softmax in one pass over the row.

use candle_core::{CpuStorage, CustomOp1, D, Error, Layout, Result, Shape, Tensor};

/// What is done to the scores of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scores {
    /// They are multiplied by this first.
    pub scale: f32,
    /// Then bent to stay below this.
    pub cap: Option<f32>,
    /// A token sees so many tokens, itself among them.
    pub window: Option<usize>,
}

impl Scores {
    /// Probabilities of `[.., queries, keys]`; query `i` of each `keys` queries sees keys up to `i`. Several heads of
    /// queries may follow each other in one batch.
    pub(super) fn softmax(&self, scores: &Tensor) -> Result<Tensor> {
        if scores.device().is_cpu() {
            return scores.contiguous()?.apply_op1(*self);
        }
        let keys = scores.dim(D::Minus1)?;
        let mut scores = (scores * f64::from(self.scale))?;
        if let Some(cap) = self.cap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let mask: Vec<f32> = (0..keys * keys)
            .map(|i| if self.seen(i / keys).contains(&(i % keys)) { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        let repeats = scores.dim(D::Minus2)? / keys;
        let mask = Tensor::from_vec(mask, (keys, keys), scores.device())?.repeat((repeats, 1))?;
        candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)
    }

    fn seen(&self, query: usize) -> std::ops::Range<usize> {
        let first = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
        first..query + 1
    }
}

impl CustomOp1 for Scores {
    fn name(&self) -> &'static str {
        "scores"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (start, end) = layout.contiguous_offsets().ok_or_else(|| Error::Msg("scores with gaps".into()))?;
        let scores = &storage.as_slice::<f32>()?[start..end];
        let keys = layout.dims().last().copied().unwrap_or(0);
        let mut out = vec![0.0f32; scores.len()];
        for (row, (scores, out)) in scores.chunks_exact(keys).zip(out.chunks_exact_mut(keys)).enumerate() {
            let seen = self.seen(row % keys);
            self.row(&scores[seen.clone()], &mut out[seen]);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    /// Of probabilities `p` with their gradient `g`: `p (g - sum of p g)`, times the slope of scale and cap.
    fn bwd(&self, scores: &Tensor, p: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let mean = (p * g)?.sum_keepdim(D::Minus1)?;
        let slope = ((p * g.broadcast_sub(&mean)?)? * f64::from(self.scale))?;
        Ok(Some(match self.cap {
            None => slope,
            Some(cap) => {
                let bent = (scores * f64::from(self.scale / cap))?.tanh()?;
                (slope * (1.0 - bent.sqr()?)?)?
            }
        }))
    }
}

impl Scores {
    fn row(&self, scores: &[f32], out: &mut [f32]) {
        let mut max = f32::NEG_INFINITY;
        for (out, score) in out.iter_mut().zip(scores) {
            let mut x = score * self.scale;
            if let Some(cap) = self.cap {
                x = (x / cap).tanh() * cap;
            }
            max = max.max(x);
            *out = x;
        }
        let mut sum = 0.0f64;
        for x in out.iter_mut() {
            *x = (*x - max).exp();
            sum += f64::from(*x);
        }
        let scale = (1.0 / sum) as f32;
        out.iter_mut().for_each(|x| *x *= scale);
    }
}
