//! RWKV 7 time mixing (Peng et al. 2025), also in place of Qwen 2's attention.

use super::factored::{Factored, FactoredTape};
use super::front::{beside, parts, run_front};
use super::{BoxedTape, Mixer, Stage, StageTape};
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::elementwise::{
    add, add_bias, add_scaled_groups, dots, multiply, scale_groups, sigmoid, sigmoid_slope,
};
use crate::model::ops::shift::{differences, differences_derivative, mixed, mixed_derivative};
use crate::model::ops::wkv::Wkv;
use crate::model::rows::Rows;
use quantier_arch::hyper::WkvNumbers;

/// Lower bound of log decays: -exp(-1/2), rounded as in llama.cpp.
const LEAST: f32 = -0.606_531;

/// ```text
/// stage 0      input -> token shifts of receptance, decay, key, value, rate and gate;
///              low-rank products of decays, rates, gates and the share of the first layer's values
/// stage 1-3    mixes of receptances, keys and values -> their matrices
/// stage 4      values blended with the first layer's -> states of all heads -> norm, plus values
///              times the bonus-weighted receptance-key products, times the gate
/// stage 5      -> output matrix
/// ```
///
/// The first layer outputs its values before its output columns; the others read them after the
/// input columns.
#[derive(Clone)]
pub(in crate::model) struct Wkv7 {
    pub numbers: WkvNumbers,
    /// `[mixes, channels]`.
    pub mixes: Vec<f32>,
    pub decay: Rank,
    pub rate: Rank,
    /// None in the first layer.
    pub values: Option<Rank>,
    pub gate: Option<Factored>,
    pub key_scale: Vec<f32>,
    pub key_rate: Vec<f32>,
    pub bonus: Vec<f32>,
    /// The matrices of receptances, keys and values.
    pub projections: Box<[Linear; 3]>,
    /// Scales a key head to unit length.
    pub unit: Norm,
    pub norm: Option<Norm>,
    pub output: Linear,
}

/// A low-rank matrix and the bias of its product.
#[derive(Clone)]
pub(in crate::model) struct Rank {
    pub factors: Factored,
    pub bias: Vec<f32>,
}

impl Rank {
    /// The sigmoid of the product plus bias.
    fn run<'m>(&'m self, input: &Rows, pass: &Pass<'_>) -> Result<(Rows, FactoredTape<'m>)> {
        pass.input(&[self.factors.outer()], None, input)?;
        let (mut y, tape) = self.factors.run(input, pass)?;
        add_bias(&mut y, &self.bias);
        y.numbers_mut().iter_mut().for_each(|x| *x = sigmoid(*x));
        Ok((y, tape))
    }
}

/// Turns gradients of sigmoid values into those of its arguments.
fn sigmoid_derivative(g: &mut Rows, values: &Rows) {
    let places = g.numbers_mut().iter_mut().zip(values.numbers());
    places.for_each(|(g, value)| *g *= sigmoid_slope(*value));
}

/// Indices of the mixes.
const RECEPTANCE: usize = 0;
const DECAY: usize = 1;
const KEY: usize = 2;
const VALUE: usize = 3;
const RATE: usize = 4;
const GATE: usize = 5;

/// Values that the derivative of the first stage needs.
struct ShiftTape<'m> {
    mixer: &'m Wkv7,
    decays: Rows,
    kept: Rows,
    decay: FactoredTape<'m>,
    rates: Rows,
    rate: FactoredTape<'m>,
    gate: Option<FactoredTape<'m>>,
    shares: Option<(Rows, FactoredTape<'m>)>,
}

/// Input of the states.
struct Read {
    kept: Rows,
    rates: Rows,
    gates: Rows,
    /// Share of the first layer's values.
    shares: Rows,
    first_values: Rows,
    receptances: Rows,
    keys: Rows,
    values: Rows,
}

/// Values that the derivative of the states needs.
struct StatesTape<'m> {
    mixer: &'m Wkv7,
    read: Read,
    wkv: Wkv,
    /// Scaled keys before and after normalization to unit length.
    scaled: Rows,
    units: Rows,
    outputs: Rows,
    /// Bonus-weighted dot products of receptances and keys, by position and head.
    found: Vec<f32>,
    /// Output before the gate.
    ungated: Rows,
}

impl Wkv7 {
    fn mix(&self, number: usize) -> &[f32] {
        let channels = self.numbers.channels();
        &self.mixes[number * channels..][..channels]
    }

    /// Column counts of stage 0's output after the mixes of receptances, keys and values: decay
    /// factors, rates, gates, shares and values of the first layer.
    fn made(&self) -> [usize; 5] {
        let channels = self.numbers.channels();
        let values = match self.values {
            Some(_) => channels,
            None => 0,
        };
        let gates = match self.gate {
            Some(_) => channels,
            None => 0,
        };
        [channels, channels, gates, values, values]
    }

    fn read(&self, input: &Rows) -> Read {
        let channels = self.numbers.channels();
        let lengths = [&self.made()[..], &[channels; 3]].concat();
        let mut all = parts(input, &lengths);
        let [
            kept,
            rates,
            gates,
            shares,
            first_values,
            receptances,
            keys,
            values,
        ] = std::array::from_fn(|i| std::mem::take(&mut all[i]));
        Read {
            kept,
            rates,
            gates,
            shares,
            first_values,
            receptances,
            keys,
            values,
        }
    }

    /// Bonus-weighted dot products of receptances and keys, by position and head.
    fn found(&self, receptances: &Rows, keys: &Rows) -> Vec<f32> {
        let mut x = receptances.clone();
        x.iter_mut().for_each(|row| multiply(row, &self.bonus));
        dots(x.numbers(), keys.numbers(), x.len() * self.numbers.heads)
    }
}

impl Mixer for Wkv7 {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        let ranks = [Some(&self.decay), Some(&self.rate), self.values.as_ref()];
        let factors = ranks.into_iter().flatten().map(|rank| &rank.factors);
        let factors = factors.chain(&self.gate);
        let inner =
            factors.flat_map(|factors| std::iter::once(factors.outer()).chain(factors.inner()));
        let mut stages = vec![Stage {
            linears: Vec::new(),
            inner: inner.collect(),
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
        let ranks = [
            Some(&mut self.decay),
            Some(&mut self.rate),
            self.values.as_mut(),
        ];
        let factors = ranks.into_iter().flatten().map(|rank| &mut rank.factors);
        let factors = factors.chain(&mut self.gate);
        let inner = factors.flat_map(|factors| {
            let (outer, inner) = factors.linears_mut();
            std::iter::once(outer).chain(inner)
        });
        let mut stages = vec![Stage {
            linears: Vec::new(),
            inner: inner.collect(),
        }];
        let projections = self.projections.iter_mut();
        stages.extend(projections.map(|linear| Stage::of(vec![linear])));
        stages.extend([Stage::of(Vec::new()), Stage::of(vec![&mut self.output])]);
        stages
    }

    fn columns(&self, stage: usize) -> Option<usize> {
        let channels = self.numbers.channels();
        let carried = match self.values {
            Some(_) => 0,
            None => channels,
        };
        Some(match stage {
            0 => 2 * channels - carried,
            5 => channels + carried,
            // At any stage, mixes and products of mixes are three in total.
            _ => 3 * channels + self.made().iter().sum::<usize>(),
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
            1..=3 => run_front(&self.projections[stage - 1], None, input, pass),
            4 => Ok(self.states(input, pass)),
            _ => run_front(&self.output, None, input, pass),
        }
    }
}

impl Wkv7 {
    fn shift<'m>(&'m self, input: &Rows, pass: &Pass<'_>) -> Result<(Rows, BoxedTape<'m>)> {
        let channels = self.numbers.channels();
        let x = input.columns_range(0..channels);
        let first_values = input.columns_range(channels..input.columns());
        let differences = differences(&x);
        let mixed = |number: usize| mixed(&x, &differences, self.mix(number));
        let (decays, decay) = self.decay.run(&mixed(DECAY), pass)?;
        let mut kept = decays.clone();
        kept.numbers_mut()
            .iter_mut()
            .for_each(|x| *x = (*x * LEAST).exp());
        let (rates, rate) = self.rate.run(&mixed(RATE), pass)?;
        let mix_of_values = mixed(VALUE);
        let shares = self
            .values
            .as_ref()
            .map(|values| values.run(&mix_of_values, pass));
        let shares = shares.transpose()?;
        let gate = self.gate.as_ref().map(|gate| {
            let mix = mixed(GATE);
            pass.input(&[gate.outer()], None, &mix)?;
            gate.run(&mix, pass)
        });
        let gate = gate.transpose()?;
        let (gates, gate) = gate.unzip();
        let none = Rows::default();
        let of_shares = shares.as_ref().map_or(&none, |(shares, _)| shares);
        let y = beside(&[
            &mixed(RECEPTANCE),
            &mixed(KEY),
            &mix_of_values,
            &kept,
            &rates,
            gates.as_ref().unwrap_or(&none),
            of_shares,
            &first_values,
        ]);
        let tape = ShiftTape {
            mixer: self,
            decays,
            kept,
            decay,
            rates,
            rate,
            gate,
            shares,
        };
        Ok((y, Box::new(tape)))
    }

    fn states<'m>(&'m self, input: &Rows, pass: &Pass<'_>) -> (Rows, BoxedTape<'m>) {
        let read = self.read(input);
        let mut value = read.values.clone();
        if self.values.is_some() {
            let first = read.first_values.numbers().iter();
            let places = value.numbers_mut().iter_mut().zip(first);
            let places = places.zip(read.shares.numbers());
            places.for_each(|((value, first), share)| *value += (first - *value) * share);
        }
        let mut scaled = read.keys.clone();
        scaled
            .iter_mut()
            .for_each(|row| multiply(row, &self.key_scale));
        let units = self.unit.of(&scaled);
        let mut take = units.clone();
        take.numbers_mut().iter_mut().for_each(|x| *x = -*x);
        let mut put = units.clone();
        multiply(put.numbers_mut(), read.rates.numbers());
        let mut key = read.keys.clone();
        for (key, rates) in key.iter_mut().zip(read.rates.iter()) {
            let places = key.iter_mut().zip(rates).zip(&self.key_rate);
            places.for_each(|((key, rate), share)| *key *= 1.0 + share * (rate - 1.0));
        }
        let wkv = Wkv {
            length: self.numbers.length,
            receptance: read.receptances.clone(),
            kept: read.kept.clone(),
            key,
            value,
            moved: Some([take, put]),
            bonus: None,
        };
        let outputs = wkv.scan(pass.split);
        let mut ungated = self
            .norm
            .as_ref()
            .map_or_else(|| outputs.clone(), |norm| norm.of(&outputs));
        let found = self.found(&wkv.receptance, &wkv.key);
        add_scaled_groups(ungated.numbers_mut(), wkv.value.numbers(), &found);
        let mut y = ungated.clone();
        if self.gate.is_some() {
            multiply(y.numbers_mut(), read.gates.numbers());
        }
        if self.values.is_none() {
            y = Rows::beside(&[&y, &wkv.value]);
        }
        let tape = StatesTape {
            mixer: self,
            read,
            wkv,
            scaled,
            units,
            outputs,
            found,
            ungated,
        };
        (y, Box::new(tape))
    }
}

impl StageTape for ShiftTape<'_> {
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let mixer = self.mixer;
        let channels = mixer.numbers.channels();
        let lengths = [&[channels; 3][..], &mixer.made()].concat();
        let mut of_made = parts(&dy, &lengths);
        let [
            of_receptance,
            of_key,
            mut of_value,
            mut of_decays,
            mut of_rates,
            of_gates,
            mut of_shares,
            of_first,
        ] = std::array::from_fn(|i| std::mem::take(&mut of_made[i]));
        let zeros = || Rows::zeros(input.len(), channels);
        let [mut of_decay, mut of_rate, mut of_gate] = [zeros(), zeros(), zeros()];
        if let Some(gate) = &self.gate {
            gate.backward(input, of_gates, pass, &mut of_gate)?;
        }
        if let Some((shares, tape)) = &self.shares {
            sigmoid_derivative(&mut of_shares, shares);
            tape.backward(input, of_shares, pass, &mut of_value)?;
        }
        sigmoid_derivative(&mut of_rates, &self.rates);
        self.rate.backward(input, of_rates, pass, &mut of_rate)?;
        let places = of_decays.numbers_mut().iter_mut().zip(self.kept.numbers());
        places.for_each(|(g, kept)| *g *= LEAST * kept);
        sigmoid_derivative(&mut of_decays, &self.decays);
        self.decay.backward(input, of_decays, pass, &mut of_decay)?;

        let (mut of_x, mut of_differences) = (zeros(), zeros());
        let mut of_mixes = vec![
            (RECEPTANCE, of_receptance),
            (DECAY, of_decay),
            (KEY, of_key),
            (VALUE, of_value),
            (RATE, of_rate),
        ];
        of_mixes.extend(self.gate.is_some().then_some((GATE, of_gate)));
        for (number, g) in &of_mixes {
            mixed_derivative(g, mixer.mix(*number), &mut of_x, &mut of_differences);
        }
        differences_derivative(&of_differences, &mut of_x);
        dx.add_columns(0, &of_x);
        dx.add_columns(channels, &of_first);
        Ok(())
    }
}

impl StageTape for StatesTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let Self {
            mixer, read, wkv, ..
        } = self;
        let (channels, heads) = (mixer.numbers.channels(), mixer.numbers.heads);
        let mut of_ungated = dy.columns_range(0..channels);
        let mut of_gates = Rows::default();
        if mixer.gate.is_some() {
            of_gates = of_ungated.clone();
            multiply(of_gates.numbers_mut(), self.ungated.numbers());
            multiply(of_ungated.numbers_mut(), read.gates.numbers());
        }
        // Bonus-weighted products of receptances and keys, times the values.
        let g = of_ungated.numbers();
        let of_found = dots(g, wkv.value.numbers(), dy.len() * heads);
        let found_part = |other: &Rows| {
            let mut part = other.clone();
            part.iter_mut().for_each(|row| multiply(row, &mixer.bonus));
            scale_groups(part.numbers_mut(), &of_found);
            part
        };
        let (of_receptance, of_key) = (found_part(&wkv.key), found_part(&wkv.receptance));
        let mut of_value = of_ungated.clone();
        scale_groups(of_value.numbers_mut(), &self.found);
        if let Some(norm) = &mixer.norm {
            pass.back_norm(norm, self.outputs.numbers(), of_ungated.numbers_mut());
        }
        let mut gradient = wkv.derivative(&of_ungated, pass.split);
        add(gradient.receptance.numbers_mut(), of_receptance.numbers());
        add(gradient.key.numbers_mut(), of_key.numbers());
        add(gradient.value.numbers_mut(), of_value.numbers());
        if mixer.values.is_none() {
            let of_carried = dy.columns_range(channels..dy.columns());
            add(gradient.value.numbers_mut(), of_carried.numbers());
        }
        let [take, put] = gradient.moved.unwrap_or_default();

        // Gradients of the rates and unit keys, through `take` and `put`.
        let mut of_rates = put.clone();
        multiply(of_rates.numbers_mut(), self.units.numbers());
        let mut of_units = put;
        multiply(of_units.numbers_mut(), read.rates.numbers());
        let places = of_units.numbers_mut().iter_mut().zip(take.numbers());
        places.for_each(|(g, take)| *g -= take);
        mixer
            .unit
            .derivative(self.scaled.numbers(), of_units.numbers_mut());
        of_units
            .iter_mut()
            .for_each(|row| multiply(row, &mixer.key_scale));
        let mut of_keys = of_units;
        for (row, g) in gradient.key.iter().enumerate() {
            let [keys, rates] = [&read.keys, &read.rates].map(|rows| rows.row(row));
            let start = row * channels;
            for (j, share) in mixer.key_rate.iter().enumerate() {
                of_keys.numbers_mut()[start + j] += g[j] * (1.0 + share * (rates[j] - 1.0));
                of_rates.numbers_mut()[start + j] += g[j] * keys[j] * share;
            }
        }

        let (mut of_shares, mut of_first) = (Rows::default(), Rows::default());
        let mut of_values = gradient.value;
        if mixer.values.is_some() {
            of_shares = of_values.clone();
            let pairs = read
                .first_values
                .numbers()
                .iter()
                .zip(read.values.numbers());
            let places = of_shares.numbers_mut().iter_mut().zip(pairs);
            places.for_each(|(g, (first, value))| *g *= first - value);
            of_first = of_values.clone();
            multiply(of_first.numbers_mut(), read.shares.numbers());
            let places = of_values.numbers_mut().iter_mut().zip(of_first.numbers());
            places.for_each(|(g, first)| *g -= first);
        }
        let all = beside(&[
            &gradient.kept,
            &of_rates,
            &of_gates,
            &of_shares,
            &of_first,
            &gradient.receptance,
            &of_keys,
            &of_values,
        ]);
        add(dx.numbers_mut(), all.numbers());
        Ok(())
    }
}
