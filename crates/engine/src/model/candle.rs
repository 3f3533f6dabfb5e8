//! Products with weights by candle: on CUDA and Metal devices, or on the CPU by MKL or Accelerate.
//! The CPU computes the rest; activations are copied for each product.

use super::device::{Backend, Uploaded};
use super::rows::Rows;
use super::{Error, Result};
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// A candle device.
pub(super) struct Candle(Device);

struct Weights(Vec<Tensor>);

impl Candle {
    /// The CPU backend of candle's BLAS library.
    #[cfg(any(test, feature = "mkl", feature = "accelerate"))]
    pub(super) fn cpu() -> Arc<dyn Backend> {
        Arc::new(Candle(Device::Cpu))
    }

    pub(super) fn cuda(number: usize) -> candle_core::Result<Arc<dyn Backend>> {
        Ok(Arc::new(Candle(Device::new_cuda(number)?)))
    }

    pub(super) fn metal(number: usize) -> candle_core::Result<Arc<dyn Backend>> {
        Ok(Arc::new(Candle(Device::new_metal(number)?)))
    }
}

fn failed(error: candle_core::Error) -> Error {
    Error::Device(error.to_string())
}

impl Backend for Candle {
    fn upload(&self, weights: &[f32], [rows, columns]: [usize; 2]) -> Result<Arc<dyn Uploaded>> {
        let matrices = weights.chunks_exact(rows * columns);
        let upload = |weights| Tensor::from_slice(weights, (rows, columns), &self.0);
        let matrices: candle_core::Result<_> = matrices.map(upload).collect();
        Ok(Arc::new(Weights(matrices.map_err(failed)?)))
    }
}

impl Uploaded for Weights {
    fn product(&self, matrix: usize, x: &Rows) -> Result<Rows> {
        let weights = &self.0[matrix];
        let multiply = || -> candle_core::Result<Vec<f32>> {
            let shape = (x.len(), x.columns());
            let x = Tensor::from_slice(x.numbers(), shape, weights.device())?;
            x.matmul(&weights.t()?)?.flatten_all()?.to_vec1()
        };
        let columns = weights.dim(0).map_err(failed)?;
        Ok(Rows::new(multiply().map_err(failed)?, columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::product::product;
    use crate::model::ops::tests::random;

    #[test]
    fn products_match_the_cpu() {
        let (x, w) = (Rows::new(random(5 * 7, 1), 7), random(2 * 3 * 7, 2));
        let uploaded = Candle::cpu().upload(&w, [3, 7]).unwrap();
        for (matrix, w) in w.chunks_exact(3 * 7).enumerate() {
            let (found, own) = (uploaded.product(matrix, &x).unwrap(), product(&x, w, 1));
            let pairs = found.numbers().iter().zip(own.numbers());
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}
