//! RWKV 6 time mixing (Peng et al. 2024), and its variant with gated linear attention for Qwen 2.

use super::factored::{Factored, FactoredTape};
use super::front::{beside, parts, run_front};
use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::Routed;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative, gate, gate_derivative};
use crate::model::ops::elementwise::{add, add_bias, multiply, scale};
use crate::model::ops::shift::{differences, differences_derivative, mixed, mixed_derivative};
use crate::model::ops::wkv::Wkv;
use crate::model::rows::Rows;
use quantier_arch::Activation;
use quantier_arch::hyper::WkvNumbers;

/// Token-shift mixes: of decay, key, value, receptance and gate.
const MIXES: usize = 5;

/// ```text
/// stage 0      input -> token shift -> matrix -> tanh -> one matrix per mix -> weights of the mixes
///              mix of decays -> factors -> exp(-exp()): decay factors of the states
/// stage 1-4    mixes of receptances, keys, values and gates -> their matrices
/// stage 5      states of all heads -> norm -> times the activated gate
/// stage 6      -> output matrix
/// ```
#[derive(Clone)]
pub(in crate::model) struct Wkv6 {
    pub numbers: WkvNumbers,
    pub first_mix: Vec<f32>,
    /// `[5, channels]`.
    pub mixes: Vec<f32>,
    pub mix_factor: Linear,
    /// One matrix per mix.
    pub mix_outputs: Linear,
    pub decay: Factored,
    pub decay_bias: Vec<f32>,
    /// None for gated linear attention, whose keys are multiplied by 1 - decay factor.
    pub bonus: Option<Vec<f32>>,
    /// The matrices of receptances, keys, values and gates.
    pub projections: Box<[Linear; 4]>,
    pub norm: Option<Norm>,
    pub output: Linear,
}

/// Values that the derivative of the first stage needs.
struct ShiftTape<'m> {
    mixer: &'m Wkv6,
    differences: Rows,
    /// Before tanh.
    factors: Rows,
    /// Weights of the previous position in each mix.
    weights: Vec<Rows>,
    /// Logarithms of the decay rates.
    rates: Rows,
    kept: Rows,
    decay: FactoredTape<'m>,
}

/// Values that the derivative of the states needs.
struct StatesTape<'m> {
    mixer: &'m Wkv6,
    wkv: Wkv,
    /// Keys before their multiplication by 1 - decay factor.
    keys: Rows,
    outputs: Rows,
    normalized: Rows,
    gates: Rows,
}

/// All positions.
fn all(rows: usize) -> Vec<u32> {
    (0..rows as u32).collect()
}

fn routed(mix: usize, positions: &[u32]) -> Option<Routed<'_>> {
    Some(Routed {
        expert: mix,
        experts: MIXES,
        positions,
    })
}

impl Wkv6 {
    /// The position-independent weights of one mix.
    fn mix(&self, number: usize) -> &[f32] {
        let channels = self.numbers.channels();
        &self.mixes[number * channels..][..channels]
    }

    fn gate_activation(&self) -> Activation {
        match self.bonus {
            Some(_) => Activation::Silu,
            None => Activation::Sigmoid,
        }
    }

    /// Factor of the states' outputs.
    fn scale(&self) -> f32 {
        match self.bonus {
            Some(_) => 1.0,
            None => (self.numbers.length as f32).powf(-0.5),
        }
    }

    /// Repeats key or value heads for all receptance heads that share them.
    fn shared(&self, rows: &Rows) -> Rows {
        let WkvNumbers {
            heads,
            kv_heads,
            length,
            ..
        } = self.numbers;
        if heads == kv_heads {
            return rows.clone();
        }
        let heads = rows.numbers().chunks_exact(length);
        let times = self.numbers.heads / kv_heads;
        let shared = heads.flat_map(|head| std::iter::repeat_n(head, times).flatten());
        Rows::new(shared.copied().collect(), self.numbers.channels())
    }

    /// Derivative of [`Wkv6::shared`].
    fn shared_derivative(&self, g: &Rows) -> Rows {
        let WkvNumbers {
            heads,
            kv_heads,
            length,
            ..
        } = self.numbers;
        let mut sums = Rows::zeros(g.len(), self.numbers.keys());
        let places = sums.numbers_mut().chunks_exact_mut(length);
        let groups = g.numbers().chunks_exact(length * (heads / kv_heads));
        for (sum, group) in places.zip(groups) {
            group.chunks_exact(length).for_each(|head| add(sum, head));
        }
        sums
    }

    /// Column counts of stage 0's output: mixes of receptances, keys, values and gates; decay
    /// factors.
    fn mixed(&self) -> [usize; 5] {
        [self.numbers.channels(); 5]
    }

    /// Column counts of the states' input: decay factors, receptances, keys, values, gates.
    fn read(&self) -> [usize; 5] {
        let (channels, keys) = (self.numbers.channels(), self.numbers.keys());
        [channels, channels, keys, keys, channels]
    }
}

impl Mixer for Wkv6 {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        let mut inner = vec![&self.mix_factor, &self.mix_outputs, self.decay.outer()];
        inner.extend(self.decay.inner());
        let mut stages = vec![Stage {
            linears: Vec::new(),
            inner,
        }];
        stages.extend(
            self.projections
                .iter()
                .map(|linear| Stage::of(vec![linear])),
        );
        stages.extend([Stage::of(Vec::new()), Stage::of(vec![&self.output])]);
        stages
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let (outer, second) = self.decay.linears_mut();
        let mut inner = vec![&mut self.mix_factor, &mut self.mix_outputs, outer];
        inner.extend(second);
        let mut stages = vec![Stage {
            linears: Vec::new(),
            inner,
        }];
        let projections = self.projections.iter_mut();
        stages.extend(projections.map(|linear| Stage::of(vec![linear])));
        stages.extend([Stage::of(Vec::new()), Stage::of(vec![&mut self.output])]);
        stages
    }

    fn columns(&self, stage: usize) -> Option<usize> {
        let (mixed, read) = (self.mixed(), self.read());
        Some(match stage {
            0 | 6 => self.numbers.channels(),
            // Columns not yet read, followed by the outputs of earlier stages.
            stage => {
                mixed[stage - 1..].iter().sum::<usize>() + read[1..stage].iter().sum::<usize>()
            }
        })
    }

    fn run_stage<'m>(
        &'m self,
        stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        match stage {
            0 => self.shift(input, pass),
            1..=4 => run_front(&self.projections[stage - 1], None, input, pass),
            5 => Ok(self.states(input, pass)),
            _ => run_linear(&self.output, input, pass),
        }
    }
}

impl Wkv6 {
    fn shift<'m>(&'m self, input: &Rows, pass: &Pass<'_>) -> Result<(Rows, BoxedTape<'m>)> {
        let differences = differences(input);
        let first = mixed(input, &differences, &self.first_mix);
        pass.input(&[&self.mix_factor], None, &first)?;
        let factors = pass.times(&self.mix_factor, &first)?;
        let mut bent = factors.clone();
        activate(bent.numbers_mut(), Activation::Tanh);
        let rank = self.mix_outputs.columns;
        let (mut weights, mut mixes) = (Vec::new(), Vec::new());
        for (number, part) in parts(&bent, &[rank; MIXES]).iter().enumerate() {
            // Not shown to the tap: llama-imatrix does not record products with a reshaped tensor.
            let mut of_mix = pass.times_expert(&self.mix_outputs, number, part)?;
            add_bias(&mut of_mix, self.mix(number));
            let mut mix = of_mix.clone();
            multiply(mix.numbers_mut(), differences.numbers());
            add(mix.numbers_mut(), input.numbers());
            weights.push(of_mix);
            mixes.push(mix);
        }
        pass.input(&[self.decay.outer()], None, &mixes[0])?;
        let (mut rates, decay) = self.decay.run(&mixes[0], pass)?;
        add_bias(&mut rates, &self.decay_bias);
        let mut kept = rates.clone();
        kept.numbers_mut()
            .iter_mut()
            .for_each(|x| *x = (-x.exp()).exp());
        let y = beside(&[&mixes[3], &mixes[1], &mixes[2], &mixes[4], &kept]);
        let tape = ShiftTape {
            mixer: self,
            differences,
            factors,
            weights,
            rates,
            kept,
            decay,
        };
        Ok((y, Box::new(tape)))
    }

    fn states<'m>(&'m self, input: &Rows, pass: &Pass<'_>) -> (Rows, BoxedTape<'m>) {
        let mut read = parts(input, &self.read());
        let [kept, receptance, key, value, gates] =
            std::array::from_fn(|i| std::mem::take(&mut read[i]));
        let keys = self.shared(&key);
        let mut key = keys.clone();
        if self.bonus.is_none() {
            let places = key.numbers_mut().iter_mut().zip(kept.numbers());
            places.for_each(|(key, kept)| *key -= *key * kept);
        }
        let wkv = Wkv {
            length: self.numbers.length,
            receptance,
            kept,
            key,
            value: self.shared(&value),
            moved: None,
            bonus: self.bonus.clone(),
        };
        let mut outputs = wkv.scan(pass.split);
        scale(outputs.numbers_mut(), self.scale());
        let normalized = self.norm.as_ref();
        let normalized = normalized.map_or_else(|| outputs.clone(), |norm| norm.of(&outputs));
        let mut y = gates.clone();
        gate(
            y.numbers_mut(),
            normalized.numbers(),
            self.gate_activation(),
        );
        let tape = StatesTape {
            mixer: self,
            wkv,
            keys,
            outputs,
            normalized,
            gates,
        };
        (y, Box::new(tape))
    }
}

impl StageTape for ShiftTape<'_> {
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let mixer = self.mixer;
        let mut of_mixes = parts(&dy, &mixer.mixed());
        let mut of_rates = of_mixes.remove(4);
        // Derivative of exp(-exp(x)).
        let places = of_rates.numbers_mut().iter_mut().zip(self.kept.numbers());
        let places = places.zip(self.rates.numbers());
        places.for_each(|((g, kept), rate)| *g *= -kept * rate.exp());
        let mut of_decay = Rows::zeros(input.len(), input.columns());
        self.decay.backward(input, of_rates, pass, &mut of_decay)?;
        // In the order of the mixes: decay, key, value, receptance, gate.
        let receptance = of_mixes.remove(0);
        of_mixes.insert(0, of_decay);
        of_mixes.insert(3, receptance);

        let positions = all(input.len());
        let rank = mixer.mix_outputs.columns;
        let mut of_differences = Rows::zeros(input.len(), input.columns());
        let mut of_bent = Rows::zeros(input.len(), MIXES * rank);
        for (number, g) in of_mixes.iter().enumerate().rev() {
            add(dx.numbers_mut(), g.numbers());
            let mut part = g.clone();
            multiply(part.numbers_mut(), self.weights[number].numbers());
            add(of_differences.numbers_mut(), part.numbers());
            let mut of_weights = g.clone();
            multiply(of_weights.numbers_mut(), self.differences.numbers());
            let mut of_part = Rows::zeros(input.len(), rank);
            let routed = routed(number, &positions);
            pass.back_expert(&mixer.mix_outputs, routed, &of_weights, &mut of_part)?;
            of_bent.add_columns(number * rank, &of_part);
        }
        let mut of_factors = self.factors.clone();
        activate_derivative(
            of_factors.numbers_mut(),
            of_bent.numbers(),
            Activation::Tanh,
        );
        let mut of_first = Rows::zeros(input.len(), input.columns());
        pass.back(&mixer.mix_factor, &of_factors, &mut of_first)?;
        mixed_derivative(&of_first, &mixer.first_mix, dx, &mut of_differences);
        differences_derivative(&of_differences, dx);
        Ok(())
    }
}

impl StageTape for StatesTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let mixer = self.mixer;
        let activation = mixer.gate_activation();
        let (normalized, dy) = (self.normalized.numbers(), dy.numbers());
        let mut of_gates = self.gates.clone();
        gate_derivative(of_gates.numbers_mut(), normalized, dy, activation);
        let mut of_outputs = self.gates.clone();
        gate(of_outputs.numbers_mut(), dy, activation);
        if let Some(norm) = &mixer.norm {
            pass.back_norm(norm, self.outputs.numbers(), of_outputs.numbers_mut());
        }
        scale(of_outputs.numbers_mut(), mixer.scale());
        let Wkv {
            receptance,
            mut kept,
            mut key,
            value,
            ..
        } = self.wkv.derivative(&of_outputs, pass.split);
        if mixer.bonus.is_none() {
            let places = kept.numbers_mut().iter_mut().zip(key.numbers());
            let places = places.zip(self.keys.numbers());
            places.for_each(|((of_kept, g), key)| *of_kept -= g * key);
            let places = key.numbers_mut().iter_mut().zip(self.wkv.kept.numbers());
            places.for_each(|(g, kept)| *g *= 1.0 - kept);
        }
        let (key, value) = (
            mixer.shared_derivative(&key),
            mixer.shared_derivative(&value),
        );
        let all = beside(&[&kept, &receptance, &key, &value, &of_gates]);
        add(dx.numbers_mut(), all.numbers());
        Ok(())
    }
}
