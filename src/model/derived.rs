//! Operations with derivatives: the fast forward functions of this engine, as candle's graph knows
//! operations.
//!
//! The forward result is computed first, without a graph; where an argument is tracked, it then
//! enters the graph as an operation whose derivative is given beside it.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor,
};
use std::sync::Mutex;

/// The result of an operation, until the graph takes it.
struct Known(Mutex<Option<(CpuStorage, Shape)>>);

impl Known {
    fn new(value: &Tensor) -> Result<Known> {
        let value = value.contiguous()?;
        let (storage, layout) = value.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            return Err(Error::Msg(
                "a derivative on another device than the CPU".into(),
            ));
        };
        let numbers = storage.as_slice::<f32>()?[start..end].to_vec();
        Ok(Known(Mutex::new(Some((
            CpuStorage::F32(numbers),
            value.shape().clone(),
        )))))
    }

    fn take(&self) -> Result<(CpuStorage, Shape)> {
        let mut known = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        known
            .take()
            .ok_or_else(|| Error::Msg("an operation was computed twice".into()))
    }
}

struct Op<D> {
    value: Known,
    derivative: D,
}

/// `value`, a function of `x`; the derivative maps the gradient of the value to that of `x`.
pub(super) fn of_one<D>(x: &Tensor, value: &Tensor, derivative: D) -> Result<Tensor>
where
    D: Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    x.apply_op1(Op {
        value: Known::new(value)?,
        derivative,
    })
}

/// The same of two arguments. What is not tracked may get no gradient.
pub(super) fn of_two<D>([a, b]: [&Tensor; 2], value: &Tensor, derivative: D) -> Result<Tensor>
where
    D: Fn([&Tensor; 2], &Tensor) -> Result<[Option<Tensor>; 2]> + Send + Sync + 'static,
{
    a.apply_op2(
        b,
        Op {
            value: Known::new(value)?,
            derivative,
        },
    )
}

/// The same of three arguments.
pub(super) fn of_three<D>([a, b, c]: [&Tensor; 3], value: &Tensor, derivative: D) -> Result<Tensor>
where
    D: Fn([&Tensor; 3], &Tensor) -> Result<[Tensor; 3]> + Send + Sync + 'static,
{
    a.apply_op3(
        b,
        c,
        Op {
            value: Known::new(value)?,
            derivative,
        },
    )
}

impl<D: Fn(&Tensor, &Tensor) -> Result<Tensor>> CustomOp1 for Op<D> {
    fn name(&self) -> &'static str {
        "derived"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.value.take()
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some((self.derivative)(&x.detach(), gradient)?))
    }
}

impl<D: Fn([&Tensor; 2], &Tensor) -> Result<[Option<Tensor>; 2]>> CustomOp2 for Op<D> {
    fn name(&self) -> &'static str {
        "derived"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.value.take()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [of_a, of_b] = (self.derivative)([&a.detach(), &b.detach()], gradient)?;
        Ok((of_a, of_b))
    }
}

impl<D: Fn([&Tensor; 3], &Tensor) -> Result<[Tensor; 3]>> CustomOp3 for Op<D> {
    fn name(&self) -> &'static str {
        "derived"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.value.take()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [of_a, of_b, of_c] =
            (self.derivative)([&a.detach(), &b.detach(), &c.detach()], gradient)?;
        Ok((Some(of_a), Some(of_b), Some(of_c)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use candle_core::{Device, Result, Tensor, Var};

    /// Numbers between -1 and 1 without a pattern.
    pub(in crate::model) fn random(shape: &[usize], seed: u32) -> Tensor {
        let mut state = seed;
        let mut number = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| number()).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    }

    /// Compares the derivatives of `f` for all its arguments with differences: along random
    /// directions, the slope of a random weighing of the result.
    pub(in crate::model) fn check(f: impl Fn(&[Tensor]) -> Result<Tensor>, shapes: &[&[usize]]) {
        const STEP: f64 = 1e-2;
        let at: Vec<Tensor> = shapes
            .iter()
            .zip(1..)
            .map(|(shape, seed)| random(shape, seed))
            .collect();
        let vars: Vec<Var> = at.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
        let tracked: Vec<Tensor> = vars.iter().map(|x| x.as_tensor().clone()).collect();
        let value = f(&tracked).unwrap();
        let weights = random(value.dims(), 77);
        let sum = |y: &Tensor| {
            (y * &weights)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        let sum = |y: &Tensor| sum(y).iter().map(|x| f64::from(*x)).sum::<f64>();
        let store = (&value * &weights)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        for (i, var) in vars.iter().enumerate() {
            let direction = random(at[i].dims(), 99 + i as u32);
            let moved = |step: f64| {
                let mut at = at.clone();
                at[i] = (&at[i] + (&direction * step).unwrap()).unwrap();
                sum(&f(&at).unwrap())
            };
            // Fourth-order central differences.
            let slope = (8.0 * (moved(STEP) - moved(-STEP))
                - (moved(2.0 * STEP) - moved(-2.0 * STEP)))
                / (12.0 * STEP);
            let gradient = store.get(var.as_tensor()).expect("a gradient");
            let product = (gradient * &direction)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            let product: f64 = product.iter().map(|x| f64::from(*x)).sum();
            assert!(
                (slope - product).abs() < 2e-3 * product.abs().max(1.0),
                "argument {i}: {product}, measured {slope}"
            );
        }
    }
}
