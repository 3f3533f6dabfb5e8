//! All derivatives against finite differences, in one table.

use super::activation::{activate, activate_derivative, gate, gate_derivative};
use super::attention::{Heads, Scores, Unseen, alibi_slopes};
use super::convolution::{convolve, convolve_derivative};
use super::delta::Streams;
use super::elementwise::{
    add_bias, add_scaled, clamp, clamp_derivative, dots, multiply, scale, scale_groups, sigmoid,
    sigmoid_slope, softplus,
};
use super::length::{match_lengths, match_lengths_derivative};
use super::mixing::{mix, mix_derivative};
use super::norm::{self, layer_norm, rms_norm};
use super::product::{product, product_derivative, row_derivative};
use super::rope::{Angles, Direction};
use super::router::Router;
use super::selective::Selective;
use super::shift;
use super::sparse::{keep_above, keep_above_derivative};
use super::ssd;
use super::wkv::Wkv;
use crate::model::rows::Rows;
use quantier_arch::hyper::{DeltaNumbers, ExpertGroups, Routing};
use quantier_arch::{Activation, DeltaHeads, Gating, Ranking, Rope, Xielu};

/// Pseudo-random numbers between -1 and 1.
pub(in crate::model) fn random(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| number()).collect()
}

/// Derivative of `f` at 0, by fourth-order central differences.
fn slope(f: impl Fn(f32) -> f64) -> f64 {
    const STEP: f32 = 1e-2;
    (8.0 * (f(STEP) - f(-STEP)) - (f(2.0 * STEP) - f(-2.0 * STEP))) / (12.0 * f64::from(STEP))
}

/// Dot product in f64.
fn dot(x: &[f32], y: &[f32]) -> f64 {
    let products = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y));
    products.sum()
}

/// Asserts that the gradients of a function match finite differences: along a random direction of
/// each argument, for a random weighted sum of the results.
pub(in crate::model) fn check_gradients(
    name: &str,
    at: &[Vec<f32>],
    f: &Function<'_>,
    gradients: &Derivative<'_>,
) {
    let weights = random(f(at).len(), 77);
    let gradients = gradients(at, &weights);
    assert_eq!(gradients.len(), at.len(), "{name}");
    for (i, gradient) in gradients.iter().enumerate() {
        assert_eq!(gradient.len(), at[i].len(), "{name}, argument {i}");
        let direction = random(at[i].len(), 99 + i as u32);
        let measured = slope(|step| {
            let mut moved = at.to_vec();
            add_scaled(&mut moved[i], &direction, step);
            dot(&f(&moved), &weights)
        });
        let computed = dot(gradient, &direction);
        assert!(
            (measured - computed).abs() < 2e-3 * computed.abs().max(1.0),
            "{name}, argument {i}: {computed}, measured {measured}"
        );
    }
}

/// A function of several arguments.
type Function<'c> = dyn Fn(&[Vec<f32>]) -> Vec<f32> + 'c;
/// The gradients of the arguments, given the arguments and the gradient of the result.
type Derivative<'c> = dyn Fn(&[Vec<f32>], &[f32]) -> Vec<Vec<f32>> + 'c;

/// One row of the table.
struct Case<'c> {
    name: String,
    /// Lengths of the arguments.
    lens: Vec<usize>,
    f: Box<Function<'c>>,
    derivative: Box<Derivative<'c>>,
}

fn case<'c>(
    name: impl Into<String>,
    lens: &[usize],
    f: impl Fn(&[Vec<f32>]) -> Vec<f32> + 'c,
    derivative: impl Fn(&[Vec<f32>], &[f32]) -> Vec<Vec<f32>> + 'c,
) -> Case<'c> {
    Case {
        name: name.into(),
        lens: lens.to_vec(),
        f: Box::new(f),
        derivative: Box::new(derivative),
    }
}

/// A modified copy of `x`.
fn changed(x: &[f32], change: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut x = x.to_vec();
    change(&mut x);
    x
}

/// Rows of length seven.
fn rows(x: &[f32]) -> Rows {
    Rows::new(x.to_vec(), 7)
}

fn of_columns(x: &[f32], columns: usize) -> Rows {
    Rows::new(x.to_vec(), columns)
}

const N: usize = 3 * 7;

fn cases_of_rows<'c>(weight: &'c [f32], bias: &'c [f32]) -> Vec<Case<'c>> {
    vec![
        case(
            "rms_norm",
            &[N],
            |x| changed(&x[0], |x| rms_norm(x, weight, 1e-3)),
            |x, g| {
                vec![changed(g, |g| {
                    norm::derivative(&x[0], g, weight, 1e-3, false)
                })]
            },
        ),
        case(
            "layer_norm",
            &[N],
            |x| changed(&x[0], |x| layer_norm(x, weight, bias, 1e-3)),
            |x, g| {
                vec![changed(g, |g| {
                    norm::derivative(&x[0], g, weight, 1e-3, true)
                })]
            },
        ),
        case(
            "add_scaled",
            &[N, N],
            |x| changed(&x[0], |y| add_scaled(y, &x[1], 0.3)),
            |_, g| vec![g.to_vec(), changed(g, |g| scale(g, 0.3))],
        ),
        case(
            "multiply",
            &[N, N],
            |x| changed(&x[0], |y| multiply(y, &x[1])),
            |x, g| {
                [1, 0]
                    .map(|other| changed(g, |g| multiply(g, &x[other])))
                    .into()
            },
        ),
        case(
            "add_bias",
            &[N],
            |x| {
                let mut y = rows(&x[0]);
                add_bias(&mut y, bias);
                y.into_numbers()
            },
            |_, g| vec![g.to_vec()],
        ),
        case(
            "scale_groups",
            &[N, 3],
            |x| changed(&x[0], |y| scale_groups(y, &x[1])),
            |x, g| vec![changed(g, |g| scale_groups(g, &x[1])), dots(&x[0], g, 3)],
        ),
        case(
            "clamp",
            &[N],
            |x| changed(&x[0], |x| clamp(x, 0.413)),
            |x, g| vec![changed(g, |g| clamp_derivative(&x[0], g, 0.413))],
        ),
        case(
            "match_lengths",
            &[N, N],
            |x| {
                let mut y = rows(&x[0]);
                match_lengths(&mut y, &rows(&x[1]));
                y.into_numbers()
            },
            |x, g| {
                let mut of_rows = rows(g);
                let of_target = match_lengths_derivative(&rows(&x[0]), &rows(&x[1]), &mut of_rows);
                vec![of_rows.into_numbers(), of_target.into_numbers()]
            },
        ),
        case(
            "mix",
            &[3 * 2 * 7, 3 * 4],
            |x| mix(&of_columns(&x[0], 14), &of_columns(&x[1], 4)).into_numbers(),
            |x, g| {
                let (streams, weights) = (of_columns(&x[0], 14), of_columns(&x[1], 4));
                mix_derivative(&streams, &weights, &of_columns(g, 14))
                    .map(Rows::into_numbers)
                    .into()
            },
        ),
        case(
            "keep_above",
            &[N],
            |x| {
                let mut y = rows(&x[0]);
                keep_above(&mut y, -0.5);
                y.into_numbers()
            },
            |x, g| {
                let mut g = rows(g);
                keep_above_derivative(&rows(&x[0]), &mut g, -0.5);
                vec![g.into_numbers()]
            },
        ),
        case(
            "sigmoid",
            &[N],
            |x| x[0].iter().map(|x| sigmoid(*x)).collect(),
            |x, g| {
                let slope = |x: &f32| sigmoid_slope(sigmoid(*x));
                vec![g.iter().zip(&x[0]).map(|(g, x)| g * slope(x)).collect()]
            },
        ),
        case(
            "softplus",
            &[N],
            |x| x[0].iter().map(|x| softplus(*x)).collect(),
            |x, g| vec![g.iter().zip(&x[0]).map(|(g, x)| g * sigmoid(*x)).collect()],
        ),
        case(
            "convolve",
            &[N],
            |x| convolve(&rows(&x[0]), &weight_of(2)).into_numbers(),
            |_, g| vec![convolve_derivative(&rows(g), &weight_of(2)).into_numbers()],
        ),
        case(
            "product",
            &[5 * 7],
            |x| product(&rows(&x[0]), &weight_of(4), 1).into_numbers(),
            |_, g| {
                let g = Rows::new(g.to_vec(), 4);
                vec![product_derivative(&g, &weight_of(4), 1).into_numbers()]
            },
        ),
        case(
            "product of one row",
            &[7],
            |x| product(&rows(&x[0]), &weight_of(4), 1).into_numbers(),
            |_, g| {
                let g = Rows::new(g.to_vec(), 4);
                vec![row_derivative(&g, &weight_of(4)).into_numbers()]
            },
        ),
    ]
}

/// A matrix of `rows` rows of length seven.
fn weight_of(rows: usize) -> Vec<f32> {
    random(rows * 7, 8)
}

fn cases_of_activations<'c>() -> Vec<Case<'c>> {
    let mut cases = Vec::new();
    let xielu = Activation::Xielu(Xielu {
        rise: 0.9,
        fall: 1.3,
        slope: 0.5,
        bound: -1e-6,
    });
    let kinds = [
        Activation::Silu,
        Activation::Gelu,
        Activation::Relu,
        Activation::SquaredRelu,
        Activation::Sigmoid,
        Activation::Softplus,
        Activation::QuickGelu,
    ];
    for kind in kinds.into_iter().chain([xielu]) {
        cases.push(case(
            format!("{kind:?}"),
            &[N],
            move |x| changed(&x[0], |x| activate(x, kind)),
            move |x, g| vec![changed(&x[0], |x| activate_derivative(x, g, kind))],
        ));
        cases.push(case(
            format!("gated {kind:?}"),
            &[N, N],
            move |x| changed(&x[0], |y| gate(y, &x[1], kind)),
            move |x, g| {
                vec![
                    changed(&x[0], |y| gate_derivative(y, &x[1], g, kind)),
                    changed(&x[0], |y| gate(y, g, kind)),
                ]
            },
        ));
    }
    cases
}

/// All gatings, with two of six experts; bias and groups affect the choice.
fn cases_of_experts<'c>() -> Vec<Case<'c>> {
    // Far enough apart for the choice to stay the same under finite differences.
    let apart = [0.1, -0.9, 0.6, 1.1, -0.4, 0.3];
    let scores = move |x: &[f32]| -> Vec<f32> {
        let moved = x.iter().zip(apart);
        moved.map(|(x, apart)| 0.1 * x + apart).collect()
    };
    let groups = ExpertGroups { count: 3, used: 1 };
    let mut cases = Vec::new();
    for gating in [
        Gating::Softmax,
        Gating::Sigmoid,
        Gating::ChosenSoftmax,
        Gating::RootSoftplus,
    ] {
        for (normalized, biased, groups) in [
            (false, false, None),
            (true, true, None),
            (true, false, Some(groups)),
            (false, true, Some(groups)),
        ] {
            let router = Router {
                routing: Routing {
                    used: 2,
                    gating,
                    groups,
                    normalized,
                    scale: 1.3,
                    ranking: match !normalized && groups.is_none() {
                        true => Ranking::Scores,
                        false => Ranking::Probabilities,
                    },
                    weighs_inputs: false,
                },
                selection_bias: biased.then(|| vec![3.0, 0.0, 0.0, 0.0, 2.0, 0.0]),
                sharing: 1,
            };
            let of_forward = router.clone();
            cases.push(case(
                format!("{gating:?}, normalized {normalized}, bias {biased}, {groups:?}"),
                &[6],
                move |x| {
                    let mut row = scores(&x[0]);
                    let chosen = of_forward.route(&mut row);
                    only(&chosen, &row)
                },
                move |x, g| {
                    let scores = scores(&x[0]);
                    let chosen = router.route(&mut scores.clone());
                    let mut g = only(&chosen, g);
                    router.derivative(&scores, &chosen, &mut g);
                    g.iter_mut().for_each(|g| *g *= 0.1);
                    vec![g]
                },
            ));
        }
    }
    cases
}

/// The numbers at these indices, with zeros elsewhere.
fn only(places: &[usize], numbers: &[f32]) -> Vec<f32> {
    let number = |(place, number): (usize, &f32)| match places.contains(&place) {
        true => *number,
        false => 0.0,
    };
    numbers.iter().enumerate().map(number).collect()
}

fn cases_of_attention<'c>() -> Vec<Case<'c>> {
    let mut cases = Vec::new();
    for (positions, window, cap, alibi, [sinks, sparse, is_causal]) in [
        (5, None, None, None, [false, false, true]),
        (70, Some(9), None, None, [false, false, true]),
        (66, None, Some(2.0), None, [false, false, true]),
        (66, None, None, Some(8.0), [false, false, true]),
        (66, Some(9), Some(2.0), None, [true, false, true]),
        (66, None, None, None, [false, true, true]),
        (66, None, None, Some(8.0), [false, false, false]),
        (140, Some(9), None, None, [false, false, false]),
    ] {
        let scores = Scores {
            scale: 0.8,
            cap,
            window,
            is_chunked: window == Some(9) && cap.is_some(),
            is_causal,
            sinks: sinks.then(|| random(4, 9).into()),
            slopes: alibi.map(|bias| alibi_slopes(4, bias).into()),
        };
        let of_derivative = scores.clone();
        let heads = move |x: &[Vec<f32>]| Heads {
            heads: 4,
            kv_heads: 2,
            query: Rows::new(x[0].clone(), 6),
            key: Rows::new(x[1].clone(), 6),
            value: Rows::new(x[2].clone(), 2 * 5),
            unseen: sparse.then(|| {
                Unseen::but_the_best(positions, 7, |query| random(query + 1, query as u32))
            }),
        };
        cases.push(case(
            format!("attention over {positions} positions"),
            &[4 * positions * 6, 2 * positions * 6, positions * 2 * 5],
            move |x| scores.attend(&heads(x), 1).into_numbers(),
            move |x, g| {
                let Heads {
                    query, key, value, ..
                } = of_derivative.derivative(&heads(x), &Rows::new(g.to_vec(), 4 * 5));
                [query, key, value].map(Rows::into_numbers).into()
            },
        ));
    }
    for rope in [Rope::Pairs, Rope::Halves] {
        // Six of a head's eight numbers are rotated.
        let (positions, pairs) = (4, 3);
        let angles = Angles {
            cosines: random(positions * pairs, 3),
            sines: random(positions * pairs, 4),
            pairs,
        };
        let back = Angles {
            cosines: angles.cosines.clone(),
            sines: angles.sines.clone(),
            pairs,
        };
        cases.push(case(
            format!("rotation of {rope:?}"),
            &[2 * positions * 8],
            move |x| {
                let mut x = Rows::new(x[0].clone(), 8);
                angles.rotate(&mut x, positions, rope, Direction::Forward);
                x.into_numbers()
            },
            move |_, g| {
                let mut g = Rows::new(g.to_vec(), 8);
                back.rotate(&mut g, positions, rope, Direction::Back);
                vec![g.into_numbers()]
            },
        ));
    }
    cases
}

/// Streams with 4 value heads of length 3, 2 key heads of length 5 and one decay per head or
/// channel.
fn streams(x: &[Vec<f32>]) -> Streams {
    // Decays below 0, strengths between 0 and 1.
    let decay: Vec<f32> = x[3].iter().map(|x| 0.2 * x - 0.3).collect();
    let strength = x[4].iter().map(|x| 0.4 * x + 0.5).collect();
    Streams {
        numbers: DeltaNumbers {
            key_heads: 2,
            value_heads: 4,
            sharing: DeltaHeads::Tiled,
            key_length: 5,
            value_length: 3,
            kernel: 1,
        },
        query: Rows::new(x[0].clone(), 2 * 5),
        key: Rows::new(x[1].iter().map(|x| 0.5 * x).collect(), 2 * 5),
        value: Rows::new(x[2].clone(), 4 * 3),
        decay: Rows::new(decay, 4 * x[3].len() / x[4].len()),
        strength: Rows::new(strength, 4),
    }
}

/// Argument lengths of [`streams`] with `decays` decays per head.
fn lens_of_streams(positions: usize, decays: usize) -> [usize; 5] {
    [10, 10, 12, 4 * decays, 4].map(|each| each * positions)
}

fn cases_of_states<'c>() -> Vec<Case<'c>> {
    let case = |(positions, decays): (usize, usize)| {
        case(
            format!("states over {positions} positions, {decays} decays"),
            &lens_of_streams(positions, decays),
            |x| streams(x).scan(1).into_numbers(),
            |x, g| {
                let g = streams(x).derivative(&Rows::new(g.to_vec(), 12), 1);
                let times = |x: Rows, scale: f32| {
                    changed(x.numbers(), |x| super::elementwise::scale(x, scale))
                };
                vec![
                    times(g.query, 1.0),
                    times(g.key, 0.5),
                    times(g.value, 1.0),
                    times(g.decay, 0.2),
                    times(g.strength, 0.4),
                ]
            },
        )
    };
    // Less than a block of steps, more than one, and two.
    let positions = [3, 70, 128].into_iter();
    let both = positions.flat_map(|positions| [1, 5].map(|decays| (positions, decays)));
    both.map(case).collect()
}

/// Streams with 6 value heads of length 3 and 2 key heads of length 5.
fn plain_streams(x: &[Vec<f32>]) -> ssd::Streams {
    ssd::Streams {
        groups: 2,
        query: Rows::new(x[0].clone(), 2 * 5),
        key: Rows::new(x[1].clone(), 2 * 5),
        value: Rows::new(x[2].clone(), 6 * 3),
        // Below 0.
        decay: Rows::new(x[3].iter().map(|x| 0.2 * x - 0.3).collect(), 6),
    }
}

/// Argument lengths of [`plain_streams`].
fn lens_of_plain_streams(positions: usize) -> [usize; 4] {
    [10, 10, 18, 6].map(|each| each * positions)
}

fn cases_of_plain_states<'c>() -> Vec<Case<'c>> {
    let case = |positions: usize| {
        case(
            format!("states without the delta rule over {positions} positions"),
            &lens_of_plain_streams(positions),
            |x| plain_streams(x).scan(1).into_numbers(),
            |x, g| {
                let ssd::Streams {
                    query,
                    key,
                    value,
                    mut decay,
                    ..
                } = plain_streams(x).derivative(&Rows::new(g.to_vec(), 18), 1);
                scale(decay.numbers_mut(), 0.2);
                [query, key, value, decay].map(Rows::into_numbers).into()
            },
        )
    };
    [3, 70, 128].map(case).into()
}

/// Compares blocks without the delta rule with single steps in f64.
#[test]
fn blocks_without_delta_rule_equal_single_steps() {
    for positions in [1, 5, 64, 65, 150] {
        let arguments = lens_of_plain_streams(positions);
        let arguments: Vec<_> = arguments
            .iter()
            .zip(1..)
            .map(|(len, seed)| random(*len, seed))
            .collect();
        let all = plain_streams(&arguments);
        let out = all.scan(1);
        assert_eq!(out, all.scan(4));
        for head in 0..6 {
            let mut state = [[0.0f64; 5]; 3];
            for position in 0..positions {
                let at = |x: &Rows, i: usize| f64::from(x.numbers()[position * x.columns() + i]);
                let (group, kept) = (head / 3 * 5, at(&all.decay, head).exp());
                for (column, state) in state.iter_mut().enumerate() {
                    let value = at(&all.value, head * 3 + column);
                    for (i, x) in state.iter_mut().enumerate() {
                        *x = kept * *x + at(&all.key, group + i) * value;
                    }
                    let read = |i: usize| state[i] * at(&all.query, group + i);
                    let want: f64 = (0..5).map(read).sum();
                    let got = at(&out, head * 3 + column);
                    assert!(
                        (got - want).abs() < 1e-4,
                        "{positions} {head} {position}: {got} {want}"
                    );
                }
            }
        }
    }
}

/// Inputs of 70 channels with states of 3: more channels than one group.
fn selective(x: &[Vec<f32>]) -> Selective {
    Selective {
        value: Rows::new(x[0].clone(), CHANNELS),
        step: Rows::new(x[1].iter().map(|x| 0.3 * x + 0.5).collect(), CHANNELS),
        key: Rows::new(x[2].clone(), 3),
        query: Rows::new(x[3].clone(), 3),
    }
}

const CHANNELS: usize = 70;

fn lens_of_selective(positions: usize) -> [usize; 4] {
    [CHANNELS, CHANNELS, 3, 3].map(|each| each * positions)
}

fn decays() -> Vec<f32> {
    let decays = random(CHANNELS * 3, 9).into_iter();
    decays.map(|x| -0.6 * (x + 1.0)).collect()
}

fn cases_of_selective_scans<'c>() -> Vec<Case<'c>> {
    let case = |positions: usize| {
        case(
            format!("a selective scan over {positions} positions"),
            &lens_of_selective(positions),
            |x| selective(x).scan(&decays(), 1).into_numbers(),
            |x, g| {
                let g = Rows::new(g.to_vec(), CHANNELS);
                let g = selective(x).derivative(&decays(), &g, 1);
                let step = changed(g.step.numbers(), |x| scale(x, 0.3));
                let [value, key, query] = [g.value, g.key, g.query].map(Rows::into_numbers);
                vec![value, step, key, query]
            },
        )
    };
    // Less than a block of steps, more than one, and two.
    [3, 35, 64].map(case).into()
}

/// Two heads of RWKV 6, gated linear attention, or RWKV 7.
#[derive(Clone, Copy, Debug, PartialEq)]
enum States {
    Six,
    Gated,
    Seven,
}

const WKV_LENGTH: usize = 5;

fn wkv(x: &[Vec<f32>], states: States) -> Wkv {
    let rows = |x: &[f32]| Rows::new(x.to_vec(), 2 * WKV_LENGTH);
    Wkv {
        length: WKV_LENGTH,
        receptance: rows(&x[0]),
        kept: rows(&changed(&x[1], |x| {
            x.iter_mut().for_each(|x| *x = 0.6 + 0.3 * *x)
        })),
        key: rows(&x[2]),
        value: rows(&x[3]),
        moved: (states == States::Seven)
            .then(|| [&x[4], &x[5]].map(|x| rows(&changed(x, |x| scale(x, 0.4))))),
        bonus: (states == States::Six).then(|| random(2 * WKV_LENGTH, 8)),
    }
}

fn lens_of_wkv(positions: usize, states: States) -> Vec<usize> {
    let arguments = if states == States::Seven { 6 } else { 4 };
    vec![2 * WKV_LENGTH * positions; arguments]
}

fn cases_of_wkv<'c>() -> Vec<Case<'c>> {
    let case = |(positions, states): (usize, States)| {
        case(
            format!("states of {states:?} over {positions} positions"),
            &lens_of_wkv(positions, states),
            move |x| wkv(x, states).scan(1).into_numbers(),
            move |x, g| {
                let g = Rows::new(g.to_vec(), 2 * WKV_LENGTH);
                let g = wkv(x, states).derivative(&g, 1);
                let kept = changed(g.kept.numbers(), |x| scale(x, 0.3));
                let moved = g.moved.into_iter().flatten();
                let moved = moved.map(|g| changed(g.numbers(), |x| scale(x, 0.4)));
                let [receptance, key, value] =
                    [g.receptance, g.key, g.value].map(Rows::into_numbers);
                [receptance, kept, key, value]
                    .into_iter()
                    .chain(moved)
                    .collect()
            },
        )
    };
    // Less than a block of steps, more than one, and two.
    let positions = [3, 35, 64].into_iter();
    let all = positions.flat_map(|positions| {
        [States::Six, States::Gated, States::Seven].map(|states| (positions, states))
    });
    all.map(case).collect()
}

/// Compares heads with the formulas, evaluated elementwise in f64.
#[test]
fn rwkv_states_match_their_formulas() {
    for states in [States::Six, States::Gated, States::Seven] {
        for positions in [1, 33, 70] {
            let lens = lens_of_wkv(positions, states);
            let arguments: Vec<_> = lens
                .iter()
                .zip(1..)
                .map(|(len, s)| random(*len, s))
                .collect();
            let all = wkv(&arguments, states);
            let out = all.scan(1);
            assert_eq!(out, all.scan(3));
            for head in 0..2 {
                let mut state = [[0.0f64; WKV_LENGTH]; WKV_LENGTH];
                for position in 0..positions {
                    let at = |x: &Rows, i: usize| f64::from(x.row(position)[head * WKV_LENGTH + i]);
                    for i in 0..WKV_LENGTH {
                        let column: Vec<f64> = state.iter().map(|row| row[i]).collect();
                        let value = at(&all.value, i);
                        let taken: f64 = all.moved.as_ref().map_or(0.0, |[take, _]| {
                            (0..WKV_LENGTH).map(|j| at(take, j) * column[j]).sum()
                        });
                        let mut want = 0.0;
                        for j in 0..WKV_LENGTH {
                            let learned = at(&all.key, j) * value;
                            let put = all.moved.as_ref().map_or(0.0, |[_, put]| at(put, j));
                            state[j][i] = at(&all.kept, j) * column[j] + learned + put * taken;
                            let read = match &all.bonus {
                                Some(bonus) => {
                                    column[j] + f64::from(bonus[head * WKV_LENGTH + j]) * learned
                                }
                                None => state[j][i],
                            };
                            want += at(&all.receptance, j) * read;
                        }
                        let got = at(&out, i);
                        assert!(
                            (got - want).abs() < 1e-4,
                            "{states:?} {position}: {got} {want}"
                        );
                    }
                }
            }
        }
    }
}

/// Mixes of positions with the previous one.
fn cases_of_shifts<'c>() -> Vec<Case<'c>> {
    let rows = |x: &[f32]| Rows::new(x.to_vec(), 4);
    let of = |positions: usize| {
        case(
            format!("a shift of {positions} positions"),
            &[4 * positions],
            move |x| {
                let x = rows(&x[0]);
                shift::mixed(&x, &shift::differences(&x), &random(4, 5)).into_numbers()
            },
            move |x, g| {
                let mut dx = Rows::zeros(x[0].len() / 4, 4);
                let mut dd = dx.clone();
                shift::mixed_derivative(&rows(g), &random(4, 5), &mut dx, &mut dd);
                shift::differences_derivative(&dd, &mut dx);
                vec![dx.into_numbers()]
            },
        )
    };
    [1, 2, 5].map(of).into()
}

#[test]
fn positions_are_mixed_with_the_previous_one() {
    let x = Rows::new(vec![1.0, 2.0, 5.0, 6.0], 2);
    let differences = shift::differences(&x);
    assert_eq!(differences.numbers(), [-1.0, -2.0, -4.0, -4.0]);
    let mixed = shift::mixed(&x, &differences, &[1.0, 0.25]);
    assert_eq!(mixed.numbers(), [0.0, 1.5, 1.0, 5.0]);
}

/// Compares lanes of channels with single states in f64.
#[test]
fn selective_scan_equals_single_steps() {
    for positions in [1, 33, 70] {
        let arguments: Vec<_> = lens_of_selective(positions)
            .iter()
            .zip(1..)
            .map(|(len, seed)| random(*len, seed))
            .collect();
        let (all, decays) = (selective(&arguments), decays());
        let out = all.scan(&decays, 1);
        assert_eq!(out, all.scan(&decays, 3));
        for channel in [0, 5, 63, 64, CHANNELS - 1] {
            let mut state = [0.0f64; 3];
            for position in 0..positions {
                let at = |x: &Rows, i: usize| f64::from(x.numbers()[position * x.columns() + i]);
                let (value, step) = (at(&all.value, channel), at(&all.step, channel));
                let mut want = 0.0;
                for (i, h) in state.iter_mut().enumerate() {
                    let decay = f64::from(decays[channel * 3 + i]);
                    *h = (step * decay).exp() * *h + step * value * at(&all.key, i);
                    want += *h * at(&all.query, i);
                }
                let got = at(&out, channel);
                assert!(
                    (got - want).abs() < 1e-5,
                    "{positions} {channel} {position}: {got} {want}"
                );
            }
        }
    }
}

/// Compares blocks of steps with single steps in f64.
#[test]
fn blocks_of_steps_equal_single_steps() {
    let positions = [1, 5, 64, 65, 150].into_iter();
    for (positions, decays, strong) in
        positions.flat_map(|p| [(p, 1, 1.0), (p, 5, 1.0), (p, 1, 400.0), (p, 5, 400.0)])
    {
        let arguments = lens_of_streams(positions, decays);
        let arguments: Vec<_> = arguments
            .iter()
            .zip(1..)
            .map(|(len, s)| random(*len, s))
            .collect();
        let mut all = streams(&arguments);
        // Strong decays at some steps, weak ones between.
        for row in all.decay.iter_mut().step_by(7) {
            row.iter_mut().for_each(|x| *x *= strong);
        }
        let out = all.scan(1);
        assert_eq!(out, all.scan(3));
        for head in 0..4 {
            // By value column.
            let mut state = [[0.0f64; 5]; 3];
            for position in 0..positions {
                let at = |x: &Rows, i: usize| f64::from(x.numbers()[position * x.columns() + i]);
                let key = |i: usize| at(&all.key, head % 2 * 5 + i);
                for (i, x) in state.iter_mut().flat_map(|row| row.iter_mut().enumerate()) {
                    *x *= at(&all.decay, head * decays + i % decays).exp();
                }
                for (column, state) in state.iter_mut().enumerate() {
                    let recalled: f64 = (0..5).map(|i| state[i] * key(i)).sum();
                    let error = at(&all.value, head * 3 + column) - recalled;
                    let learned = at(&all.strength, head) * error;
                    (0..5).for_each(|i| state[i] += key(i) * learned);
                    let read = |i: usize| state[i] * at(&all.query, head % 2 * 5 + i);
                    let want = (0..5).map(read).sum::<f64>() / 5f64.sqrt();
                    let got = at(&out, head * 3 + column);
                    assert!(
                        (got - want).abs() < 1e-5,
                        "{positions} {decays} {strong} {head} {position}: {got} {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn derivatives_match_finite_differences() {
    let (weight, bias) = (random(7, 5), random(7, 6));
    let cases = cases_of_rows(&weight, &bias)
        .into_iter()
        .chain(cases_of_activations())
        .chain(cases_of_experts())
        .chain(cases_of_attention())
        .chain(cases_of_states())
        .chain(cases_of_plain_states())
        .chain(cases_of_selective_scans())
        .chain(cases_of_wkv())
        .chain(cases_of_shifts());
    for case in cases {
        let at = case
            .lens
            .iter()
            .zip(1..)
            .map(|(len, seed)| random(*len, seed));
        check_gradients(
            &case.name,
            &at.collect::<Vec<_>>(),
            &case.f,
            &case.derivative,
        );
    }
}

/// Compares with formulas evaluated in f64.
#[test]
fn norms_and_activations_match_their_formulas() {
    for n in [1, 7, 64, 101] {
        let (x, weight, bias) = (random(n, 1), random(n, 2), random(n, 3));
        let mean =
            |of: &dyn Fn(f64) -> f64| x.iter().map(|x| of(f64::from(*x))).sum::<f64>() / n as f64;
        let near = |ours: &[f32], formula: &dyn Fn(usize) -> f64| {
            for (i, ours) in ours.iter().enumerate() {
                let (ours, formula) = (f64::from(*ours), formula(i));
                assert!(
                    (ours - formula).abs() < 1e-5 * formula.abs().max(1.0),
                    "{n}, {i}"
                );
            }
        };
        let at = |xs: &[f32], i: usize| f64::from(xs[i]);
        let scale = 1.0 / (mean(&|x| x * x) + 1e-2).sqrt();
        near(&changed(&x, |x| rms_norm(x, &weight, 1e-2)), &|i| {
            at(&x, i) * scale * at(&weight, i)
        });
        let center = mean(&|x| x);
        let scale = 1.0 / (mean(&|x| (x - center).powi(2)) + 1e-2).sqrt();
        near(
            &changed(&x, |x| layer_norm(x, &weight, &bias, 1e-2)),
            &|i| (at(&x, i) - center) * scale * at(&weight, i) + at(&bias, i),
        );
        near(&changed(&x, |x| activate(x, Activation::Silu)), &|i| {
            at(&x, i) / (1.0 + (-at(&x, i)).exp())
        });
        let root = (2.0 / std::f64::consts::PI).sqrt();
        near(&changed(&x, |x| activate(x, Activation::Gelu)), &|i| {
            let x = at(&x, i);
            0.5 * x * (1.0 + (root * (x + 0.044_715 * x.powi(3))).tanh())
        });
    }
}
