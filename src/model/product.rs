//! The matrix product, on one thread per call: the caller runs chunks side by side, which loses less than splitting
//! each product does.

use candle_core::{CpuStorage, CustomOp2, Error, Layout, Result, Shape, Tensor};
use gemm::Parallelism;

/// `[batch.., m, k]` times the transpose of `[batch.., n, k]` (or of `[n, k]`, the same for all): rows times rows.
///
/// `split` is how many threads one product may take.
pub(super) fn product(a: &Tensor, b: &Tensor, split: usize) -> Result<Tensor> {
    match a.device().is_cpu() {
        true => a.contiguous()?.apply_op2(&b.contiguous()?, Product { split }),
        false if b.rank() == 2 => a.broadcast_matmul(&b.t()?),
        false => a.matmul(&b.transpose(b.rank() - 2, b.rank() - 1)?),
    }
}

struct Product {
    split: usize,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (contiguous(a, la)?, contiguous(b, lb)?);
        let (da, db) = (la.dims(), lb.dims());
        let ([outer @ .., m, k], [outer_b @ .., n, k_b]) = (da, db) else {
            return Err(Error::Msg(format!("a product of {da:?} and {db:?}")));
        };
        let (mut m, n, k) = (*m, *n, *k);
        let mut batch: usize = outer.iter().product();
        if outer_b.is_empty() {
            (m, batch) = (m * batch, 1);
        }
        if k != *k_b || (!outer_b.is_empty() && outer != outer_b) {
            return Err(Error::Msg(format!("a product of {da:?} and {db:?}")));
        }
        let mut out = vec![0.0f32; batch * m * n];
        let parallelism = if self.split > 1 { Parallelism::Rayon(self.split) } else { Parallelism::None };
        if k > 0 {
            let parts = out.chunks_exact_mut(m * n).zip(a.chunks_exact(m * k)).zip(b.chunks_exact(n * k));
            for ((out, a), b) in parts {
                rows_times_rows(a, b, [m, n, k], out, parallelism);
            }
        }
        let mut dims = outer.to_vec();
        dims.extend([da[da.len() - 2], n]);
        Ok((CpuStorage::F32(out), Shape::from(dims)))
    }

    /// Of `y = a b^T` with the gradient `g` of `y`: `g b` for `a` and `g^T a` for `b`.
    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let turned = |x: &Tensor| x.transpose(x.rank() - 2, x.rank() - 1);
        let tracked = |x: &Tensor| x.is_variable() || x.track_op();
        let of_a = tracked(a).then(|| product(g, &turned(b)?, self.split)).transpose()?;
        let of_b = tracked(b).then(|| product(&turned(g)?, &turned(a)?, self.split)).transpose()?;
        Ok((of_a, of_b))
    }
}

/// `[m, k]` times the transpose of `[n, k]`, into `[m, n]`, on the calling thread.
///
/// # Panics
/// If the lengths do not fit the dimensions `[m, n, k]`.
pub fn multiply(a: &[f32], b: &[f32], dims: [usize; 3], out: &mut [f32]) {
    rows_times_rows(a, b, dims, out, Parallelism::None);
}

fn rows_times_rows(a: &[f32], b: &[f32], [m, n, k]: [usize; 3], out: &mut [f32], parallelism: Parallelism) {
    assert_eq!((a.len(), b.len(), out.len()), (m * k, n * k, m * n), "a product of [{m}, {k}] and [{n}, {k}]");
    // SAFETY: `out` is m x n, `a` m x k and `b` n x k, each row by row without gaps.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            1,
            k as isize,
            b.as_ptr(),
            k as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = layout.contiguous_offsets().ok_or_else(|| Error::Msg("numbers with gaps".into()))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}
