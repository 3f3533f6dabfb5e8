//! Properties of every mixer: derivatives match finite differences, the forward pass equals the
//! sequence of stages, and the output of a causal mixer for a prefix is the prefix of its output.

use super::{
    Adjugates, AnyMixer, Apart, Attention, ChannelMix, Decay, DeltaNet, ExpandedAttention,
    Factored, Factors, Ffn, First, Gate, Indexer, KeysValues, Latent, LatentAttention, Laurel,
    Lightning, LowRank, Mamba, Mamba2, Moe, PerLayer, Projections, QueryKeyValue, Rank, Rates,
    Receptance, Shared, ShortConv, Single, Sparse, Tape, Wkv6, Wkv7,
};
use crate::model::linear::{Linear, Norm, NormTensors, Pass};
use crate::model::ops::attention::{Scores, alibi_slopes};
use crate::model::ops::rope::Angles;
use crate::model::ops::router::Router;
use crate::model::ops::tests::{check_gradients, random};
use crate::model::rows::Rows;
use quantier_arch::hyper::{
    DeltaNumbers, IndexerNumbers, LatentNumbers, LightningNumbers, Mamba2Numbers, MambaNumbers,
    Routing, Temperature, WkvNumbers,
};
use quantier_arch::{
    Activation, DeltaHeads, Gating, Limit, LinearId, Norm as NormKind, Ranking, Rope, Wkv,
};
use quantier_core::progress::Silent;
use std::sync::Arc;

const HIDDEN: usize = 8;
const POSITIONS: usize = 5;

fn pass<'p>() -> Pass<'p> {
    Pass {
        chunk: 0,
        tap: None,
        recording: true,
        split: 1,
        stored: None,
        progress: &Silent,
    }
}

fn linear(experts: usize, rows: usize, columns: usize, seed: u32) -> Linear {
    Linear {
        id: LinearId(seed),
        name: format!("linear {seed}"),
        weights: random(experts * rows * columns, seed).into(),
        experts,
        columns,
        scales: (experts > 1).then(|| (0..experts).map(|e| 0.8 + 0.1 * e as f32).collect()),
        bias: (experts == 1).then(|| random(rows, seed + 100)),
        uploaded: None,
    }
}

fn ffn(first: First) -> Ffn {
    Ffn {
        first,
        inner_norm: None,
        factors: None,
        down: linear(1, HIDDEN, 6, 3),
        activation: Activation::Silu,
        limit: None,
        sparsity: None,
    }
}

fn gated_ffn() -> Ffn {
    ffn(First::Gated {
        gate: linear(1, 6, HIDDEN, 1),
        up: linear(1, 6, HIDDEN, 2),
    })
}

/// Products with a scale before the bias.
fn scaled_ffn() -> Ffn {
    let scaled = |rows, seed, scale| Linear {
        scales: Some(vec![scale]),
        ..linear(1, rows, HIDDEN, seed)
    };
    let (gate, up) = (scaled(6, 1, 0.7), scaled(6, 2, -1.4));
    let mut ffn = ffn(First::Gated { gate, up });
    ffn.down.scales = Some(vec![0.3]);
    ffn
}

fn norm(len: usize, seed: u32) -> Norm {
    Norm {
        kind: NormKind::Rms,
        epsilon: 1e-2,
        weight: random(len, seed),
        bias: vec![0.0; len],
        len,
        tensors: NormTensors::default(),
    }
}

fn angles(pairs: usize) -> Arc<Angles> {
    Arc::new(Angles {
        cosines: random(POSITIONS * pairs, 31),
        sines: random(POSITIONS * pairs, 32),
        pairs,
    })
}

fn attention(projections: Projections, window: Option<usize>) -> Attention {
    Attention {
        projections: QueryKeyValue::All(projections),
        keys_values: KeysValues::Own,
        value_norm: None,
        // Over all heads, and per head.
        query_norm: Some(norm(4 * 6, 21)),
        key_norm: Some(norm(6, 22)),
        norms_rotated: false,
        gate: Gate::None,
        gate_activation: Activation::Sigmoid,
        output_norm: None,
        output: linear(1, HIDDEN, 4 * 3, 14),
        heads: 4,
        kv_heads: 2,
        key_length: 6,
        clamp: Some(1.7),
        temperature: Some(Temperature {
            strength: 0.3,
            period: 2,
            offset: 0,
        }),
        rope: Rope::Halves,
        angles: Some(angles(2)),
        scores: Scores {
            scale: 0.6,
            cap: Some(3.0),
            window,
            sinks: None,
            is_chunked: false,
            is_causal: true,
            slopes: None,
        },
    }
}

/// Gates of the given rows, head norms after the rotation, a norm before the output matrix, ALiBi.
fn gated_attention(gate_rows: usize) -> AnyMixer {
    AnyMixer::Attention(Attention {
        query_norm: Some(norm(6, 21)),
        norms_rotated: true,
        gate: Gate::Own(linear(1, gate_rows, HIDDEN, 16)),
        output_norm: Some(norm(4 * 3, 23)),
        scores: Scores {
            scale: 0.6,
            cap: None,
            window: None,
            sinks: None,
            is_chunked: false,
            is_causal: true,
            slopes: Some(alibi_slopes(4, 8.0).into()),
        },
        ..attention(Projections::Fused(linear(1, 42, HIDDEN, 15)), None)
    })
}

/// Layer norms with separate weights for every query and key head.
fn normed_heads() -> AnyMixer {
    let norm = |heads: usize, seed: u32| Norm {
        kind: NormKind::Layer,
        len: 6,
        ..norm(heads * 6, seed)
    };
    AnyMixer::Attention(Attention {
        query_norm: Some(norm(4, 25)),
        key_norm: Some(norm(2, 26)),
        ..attention(Projections::Fused(linear(1, 42, HIDDEN, 15)), None)
    })
}

/// Gates fused with the queries; values as long as keys.
fn attention_with_gates() -> AnyMixer {
    let projections = [
        linear(1, 2 * 4 * 6, HIDDEN, 16),
        linear(1, 2 * 6, HIDDEN, 12),
        linear(1, 2 * 6, HIDDEN, 13),
    ];
    AnyMixer::Attention(Attention {
        gate: Gate::Queries,
        clamp: None,
        output: linear(1, HIDDEN, 4 * 6, 17),
        ..attention(Projections::Apart(Box::new(projections)), None)
    })
}

/// A norm of values without weights.
fn unit_values(length: usize) -> Option<Norm> {
    Some(Norm {
        weight: vec![1.0; length],
        ..norm(length, 0)
    })
}

/// Keys and values that later layers read, or those of an earlier layer.
fn attention_of_shared_keys(keys_values: KeysValues) -> AnyMixer {
    let whole = attention(Projections::Fused(linear(1, 42, HIDDEN, 15)), Some(3));
    let projections = match keys_values {
        KeysValues::Shared => QueryKeyValue::Queries(linear(1, 4 * 6, HIDDEN, 18)),
        KeysValues::Own | KeysValues::Kept => whole.projections,
    };
    AnyMixer::Attention(Attention {
        projections,
        keys_values,
        value_norm: unit_values(3),
        ..whole
    })
}

/// Keys before their norm serve as values.
fn keys_as_values() -> AnyMixer {
    let both = [linear(1, 4 * 6, HIDDEN, 16), linear(1, 2 * 6, HIDDEN, 12)];
    AnyMixer::Attention(Attention {
        projections: QueryKeyValue::KeysAsValues(Box::new(both)),
        value_norm: unit_values(6),
        output: linear(1, HIDDEN, 4 * 6, 17),
        ..attention(Projections::Fused(linear(1, 42, HIDDEN, 15)), None)
    })
}

fn per_layer() -> AnyMixer {
    AnyMixer::PerLayer(PerLayer {
        gate: linear(1, 5, HIDDEN, 7),
        activation: Activation::Gelu,
        output: linear(1, HIDDEN, 5, 8),
    })
}

fn delta_net(sharing: DeltaHeads) -> AnyMixer {
    let numbers = DeltaNumbers {
        key_heads: 2,
        value_heads: 4,
        sharing,
        key_length: 4,
        value_length: 3,
        kernel: 3,
    };
    let (heads, values) = (numbers.value_heads, numbers.values());
    let norm = |weight: Vec<f32>| Norm {
        kind: NormKind::Rms,
        epsilon: 1e-2,
        len: weight.len(),
        weight,
        bias: Vec::new(),
        tensors: NormTensors::default(),
    };
    AnyMixer::DeltaNet(DeltaNet {
        numbers,
        projections: Projections::Fused(linear(1, numbers.channels(), HIDDEN, 61)),
        gate: Factored::Whole(linear(1, values, HIDDEN, 62)),
        gate_activation: Activation::Silu,
        rates: match sharing {
            DeltaHeads::Grouped => Rates::Fused(linear(1, 2 * heads, HIDDEN, 63)),
            _ => Rates::Apart(Box::new(Apart {
                strength: linear(1, heads, HIDDEN, 63),
                step: Factored::Whole(linear(1, heads, HIDDEN, 64)),
            })),
        },
        step_bias: random(heads, 65),
        decay: Decay::Softplus(below_zero(heads)),
        kernels: random(numbers.channels() * numbers.kernel, 67),
        unit: norm(vec![0.5; 4]),
        norm: norm(random(3, 68)),
        output: linear(1, HIDDEN, values, 69),
    })
}

fn short_conv() -> AnyMixer {
    const KERNEL: usize = 3;
    AnyMixer::ShortConv(ShortConv {
        input: linear(1, 3 * HIDDEN, HIDDEN, 71),
        kernels: random(HIDDEN * KERNEL, 72),
        output: linear(1, HIDDEN, HIDDEN, 73),
    })
}

fn mamba(is_normalized: bool) -> AnyMixer {
    let numbers = MambaNumbers {
        channels: 2 * HIDDEN,
        state: 4,
        rank: 3,
        kernel: 3,
        is_normalized,
    };
    let MambaNumbers {
        channels,
        state,
        rank,
        kernel,
        ..
    } = numbers;
    let norms = [norm(rank, 81), norm(state, 82), norm(state, 83)];
    let decay = random(channels * state, 84).into_iter();
    AnyMixer::Mamba(Mamba {
        numbers,
        input: linear(1, 2 * channels, HIDDEN, 85),
        kernels: random(channels * kernel, 86),
        kernel_bias: random(channels, 87),
        parameters: linear(1, rank + 2 * state, channels, 88),
        norms: is_normalized.then(|| Box::new(norms)),
        step: linear(1, channels, rank, 89),
        decay: decay.map(|x| -0.5 - x.abs()).collect(),
        skip: random(channels, 90),
        output: linear(1, HIDDEN, channels, 91),
    })
}

/// Two of four experts; a shared expert if there is a router for it.
fn moe(normalized: bool, shared_router: Option<Linear>) -> Moe {
    Moe {
        scores: linear(1, 4, HIDDEN, 41),
        router: Router {
            routing: Routing {
                used: 2,
                gating: Gating::Softmax,
                groups: None,
                normalized,
                scale: 1.5,
                ranking: Ranking::Probabilities,
                weighs_inputs: false,
            },
            selection_bias: None,
            sharing: 1,
        },
        routes_first: false,
        latent: None,
        experts: Ffn {
            down: linear(4, HIDDEN, 6, 44),
            ..ffn(First::Gated {
                gate: linear(4, 6, HIDDEN, 42),
                up: linear(4, 6, HIDDEN, 43),
            })
        },
        adjugates: None,
        shared: shared_router.map(|router| Shared {
            router: Some(router),
            ffn: gated_ffn(),
        }),
        scale: 1.0,
    }
}

/// Two of four experts, and two smaller ones shared by pairs, which may be chosen twice.
fn moe_with_adjugates(weighs_inputs: bool) -> AnyMixer {
    let mut plain = moe(true, Some(linear(1, 1, HIDDEN, 45)));
    plain.router.routing.ranking = Ranking::Sigmoid;
    plain.router.routing.weighs_inputs = weighs_inputs;
    let router = Router {
        sharing: 2,
        ..plain.router.clone()
    };
    AnyMixer::Moe(Moe {
        adjugates: Some(Box::new(Adjugates {
            router,
            experts: Ffn {
                down: linear(2, HIDDEN, 3, 53),
                ..ffn(First::Gated {
                    gate: linear(2, 3, HIDDEN, 54),
                    up: linear(2, 3, HIDDEN, 55),
                })
            },
            scale: 0.7,
        })),
        ..plain
    })
}

/// Ungated experts between two projections, chosen by sigmoid scores with a bias; an unweighted
/// shared expert.
fn latent_moe() -> AnyMixer {
    const LATENT: usize = 4;
    let mut moe = moe(true, None);
    moe.router.routing.gating = Gating::Sigmoid;
    moe.router.selection_bias = Some(vec![0.0, 0.2, 0.6, 0.0]);
    AnyMixer::Moe(Moe {
        latent: Some(Latent {
            down: linear(1, LATENT, HIDDEN, 46),
            up: linear(1, HIDDEN, LATENT, 47),
        }),
        experts: Ffn {
            down: linear(4, LATENT, 6, 48),
            activation: Activation::SquaredRelu,
            ..ffn(First::Plain(linear(4, 6, LATENT, 49)))
        },
        shared: Some(Shared {
            router: None,
            ffn: ffn(First::Plain(linear(1, 6, HIDDEN, 50))),
        }),
        ..moe
    })
}

/// Experts and a router with biases, weights from a softmax over the chosen scores, a limit before
/// the activation.
fn biased_moe() -> AnyMixer {
    let biased = |rows: usize, columns: usize, seed: u32| Linear {
        bias: Some(random(4 * rows, seed + 100)),
        ..linear(4, rows, columns, seed)
    };
    let mut moe = moe(false, None);
    moe.router.routing.gating = Gating::ChosenSoftmax;
    moe.experts = Ffn {
        down: biased(HIDDEN, 6, 44),
        activation: Activation::QuickGelu,
        // No value is near the limit, where the derivative is discontinuous.
        limit: Some(Limit::InFront {
            limit: 0.9,
            offset: 1.0,
        }),
        ..ffn(First::Gated {
            gate: biased(6, HIDDEN, 42),
            up: biased(6, HIDDEN, 43),
        })
    };
    AnyMixer::Moe(moe)
}

/// Sinks of the scores' magnitude, and a window.
fn attention_with_sinks() -> AnyMixer {
    let plain = attention(Projections::Fused(linear(1, 42, HIDDEN, 15)), Some(3));
    AnyMixer::Attention(Attention {
        scores: Scores {
            sinks: Some(random(4, 18).into()),
            ..plain.scores.clone()
        },
        ..plain
    })
}

/// Parts of two tokens, query and key norms without weights, a softplus gate, a norm with a bias.
fn attention_within_parts() -> AnyMixer {
    let unit = || Norm {
        weight: vec![1.0; 6],
        ..norm(6, 27)
    };
    let AnyMixer::Attention(gated) = gated_attention(4) else {
        unreachable!("attention");
    };
    AnyMixer::Attention(Attention {
        query_norm: Some(unit()),
        key_norm: Some(unit()),
        gate_activation: Activation::Softplus,
        output_norm: Some(Norm {
            bias: random(4 * 3, 28),
            ..norm(4 * 3, 23)
        }),
        scores: Scores {
            window: Some(2),
            is_chunked: true,
            is_causal: true,
            slopes: None,
            ..gated.scores
        },
        ..gated
    })
}

/// Experts chosen by scores, with weighted inputs, and a shared expert; their sum is halved.
fn weighed_inputs(latent: Option<usize>) -> AnyMixer {
    let mut weighed = moe(false, Some(linear(1, 1, HIDDEN, 45)));
    weighed.router.routing.gating = Gating::Sigmoid;
    weighed.router.routing.ranking = Ranking::Scores;
    weighed.router.routing.weighs_inputs = true;
    weighed.scale = 0.5;
    if let Some(length) = latent {
        weighed.latent = Some(Latent {
            down: linear(1, length, HIDDEN, 46),
            up: linear(1, HIDDEN, length, 47),
        });
        weighed.experts = Ffn {
            down: linear(4, length, 6, 48),
            ..ffn(First::Plain(linear(4, 6, length, 49)))
        };
    }
    AnyMixer::Moe(weighed)
}

/// With a convolution bias and a norm, or with neither.
fn mamba2(plain: bool) -> AnyMixer {
    let numbers = Mamba2Numbers {
        groups: 2,
        heads: 4,
        key_length: 5,
        value_length: 3,
        kernel: 3,
        rank: None,
    };
    let (heads, channels) = (numbers.heads, numbers.channels());
    AnyMixer::Mamba2(Mamba2 {
        numbers,
        input: linear(1, numbers.inputs(), HIDDEN, 71),
        factors: None,
        kernels: random(channels * numbers.kernel, 72),
        channel_bias: (!plain).then(|| random(channels, 73)),
        step_bias: random(heads, 74),
        decay: random(heads, 75).iter().map(|x| -0.3 - x.abs()).collect(),
        skip: random(heads, 76),
        // Separate weights per group of heads.
        norm: (!plain).then(|| Norm {
            len: 2 * 3,
            ..norm(4 * 3, 77)
        }),
        output: linear(1, HIDDEN, numbers.values(), 78),
    })
}

/// With keys, queries and steps computed from the values.
fn factored_mamba2() -> AnyMixer {
    const RANK: usize = 4;
    let AnyMixer::Mamba2(plain) = mamba2(true) else {
        unreachable!("a state space");
    };
    let numbers = Mamba2Numbers {
        groups: 1,
        rank: Some(RANK),
        ..plain.numbers
    };
    let (values, keys) = (numbers.values(), numbers.keys());
    AnyMixer::Mamba2(Mamba2 {
        numbers,
        input: linear(1, numbers.inputs(), HIDDEN, 91),
        factors: Some(Box::new(Factors {
            parameters: linear(1, 2 * keys + RANK, values, 92),
            norms: [norm(keys, 93), norm(keys, 94), norm(RANK, 95)],
            step: linear(1, numbers.heads, RANK, 96),
        })),
        kernels: random(values * numbers.kernel, 97),
        ..plain
    })
}

fn lightning() -> AnyMixer {
    let numbers = LightningNumbers {
        heads: 3,
        length: 4,
        rate: 0.8,
    };
    let values = numbers.values();
    AnyMixer::Lightning(Lightning {
        numbers,
        projections: linear(1, 3 * values, HIDDEN, 81),
        gate: linear(1, values, HIDDEN, 82),
        norm: norm(values, 83),
        output: linear(1, HIDDEN, values, 84),
    })
}

fn below_zero(heads: usize) -> Vec<f32> {
    random(heads, 66).iter().map(|x| -0.3 - x.abs()).collect()
}

/// A matrix, or factors with an inner length of 3.
fn factored(low_rank: Option<Option<Norm>>, rows: usize, seed: u32) -> Factored {
    match low_rank {
        None => Factored::Whole(linear(1, rows, HIDDEN, seed)),
        Some(norm) => Factored::LowRank(Box::new(LowRank {
            first: linear(1, 3, HIDDEN, seed),
            norm,
            activation: None,
            second: linear(1, rows, 3, seed + 1),
        })),
    }
}

/// Kimi Delta Attention: keys per head, decays per channel.
fn channel_net(low_rank: bool) -> AnyMixer {
    let numbers = DeltaNumbers {
        key_heads: 3,
        value_heads: 3,
        sharing: DeltaHeads::Own,
        key_length: 4,
        value_length: 4,
        kernel: 3,
    };
    let (heads, values) = (numbers.value_heads, numbers.values());
    let AnyMixer::DeltaNet(net) = delta_net(DeltaHeads::Tiled) else {
        unreachable!("another mixer");
    };
    let factors = low_rank.then_some(None);
    AnyMixer::DeltaNet(DeltaNet {
        numbers,
        projections: Projections::Apart(Box::new(
            [71, 72, 73].map(|seed| linear(1, values, HIDDEN, seed)),
        )),
        gate: factored(factors.clone(), values, 74),
        gate_activation: Activation::Sigmoid,
        rates: Rates::Apart(Box::new(Apart {
            strength: linear(1, heads, HIDDEN, 76),
            step: factored(factors, numbers.decays(), 77),
        })),
        step_bias: random(numbers.decays(), 79),
        decay: match low_rank {
            true => Decay::Softplus(below_zero(heads)),
            false => Decay::Bounded {
                numbers: random(heads, 66),
                bound: -2.5,
            },
        },
        kernels: random(numbers.channels() * numbers.kernel, 67),
        norm: norm(4, 68),
        output: linear(1, HIDDEN, values, 69),
        ..net
    })
}

/// The factors of a low-rank matrix with an activation between them.
fn ranks(activation: Option<Activation>, seed: u32) -> Factored {
    Factored::LowRank(Box::new(LowRank {
        first: linear(1, 3, HIDDEN, seed),
        norm: None,
        activation,
        second: linear(1, HIDDEN, 3, seed + 1),
    }))
}

/// A layer norm for each of two heads, with separate weights.
fn norm_of_two(seed: u32) -> Norm {
    Norm {
        kind: NormKind::Layer,
        len: HIDDEN / 2,
        bias: random(HIDDEN, seed + 1),
        ..norm(HIDDEN, seed)
    }
}

/// RWKV 6, or with shared key heads gated linear attention.
fn wkv6(kind: Wkv, kv_heads: usize) -> AnyMixer {
    let numbers = WkvNumbers {
        kind,
        heads: 2,
        kv_heads,
        length: HIDDEN / 2,
        shifts: 1,
    };
    let is_six = kind == Wkv::Six;
    AnyMixer::Wkv6(Wkv6 {
        numbers,
        first_mix: random(HIDDEN, 101),
        mixes: random(5 * HIDDEN, 102),
        mix_factor: linear(1, 5 * 3, HIDDEN, 103),
        mix_outputs: linear(5, HIDDEN, 3, 104),
        decay: ranks(Some(Activation::Tanh), 105),
        decay_bias: random(HIDDEN, 107),
        bonus: is_six.then(|| random(HIDDEN, 108)),
        projections: Box::new([
            linear(1, HIDDEN, HIDDEN, 109),
            linear(1, numbers.keys(), HIDDEN, 110),
            linear(1, numbers.keys(), HIDDEN, 111),
            linear(1, HIDDEN, HIDDEN, 112),
        ]),
        norm: is_six.then(|| norm_of_two(113)),
        output: linear(1, HIDDEN, HIDDEN, 115),
    })
}

/// RWKV 7 in the first layer, which outputs its values for the others, or in a later one.
fn wkv7(is_first: bool, gated: bool) -> AnyMixer {
    let numbers = WkvNumbers {
        kind: Wkv::Seven,
        heads: 2,
        kv_heads: 2,
        length: HIDDEN / 2,
        shifts: 1,
    };
    let rank = |activation, seed: u32| Rank {
        factors: ranks(activation, seed),
        bias: random(HIDDEN, seed + 2),
    };
    AnyMixer::Wkv7(Wkv7 {
        numbers,
        mixes: random(6 * HIDDEN, 121),
        decay: rank(Some(Activation::Tanh), 122),
        rate: rank(None, 125),
        values: (!is_first).then(|| rank(None, 128)),
        gate: gated.then(|| ranks(Some(Activation::Sigmoid), 131)),
        key_scale: random(HIDDEN, 133),
        key_rate: random(HIDDEN, 134),
        bonus: random(HIDDEN, 135),
        projections: Box::new([136, 137, 138].map(|seed| linear(1, HIDDEN, HIDDEN, seed))),
        unit: Norm {
            kind: NormKind::Rms,
            epsilon: 1e-3,
            weight: vec![0.5; HIDDEN / 2],
            bias: Vec::new(),
            len: HIDDEN / 2,
            tensors: NormTensors::default(),
        },
        norm: gated.then(|| norm_of_two(139)),
        output: linear(1, HIDDEN, HIDDEN, 141),
    })
}

fn channel_mix(has_receptance: bool) -> AnyMixer {
    let receptance = Receptance {
        mix: random(HIDDEN, 151),
        matrix: linear(1, HIDDEN, HIDDEN, 152),
    };
    AnyMixer::ChannelMix(ChannelMix {
        key_mix: random(HIDDEN, 153),
        key: linear(1, 6, HIDDEN, 154),
        value: linear(1, HIDDEN, 6, 155),
        receptance: has_receptance.then(|| Box::new(receptance)),
    })
}

fn latent_attention(gated: bool, heads: usize) -> AnyMixer {
    let numbers = LatentNumbers {
        rank: 5,
        rotated: 4,
        key_length: 7,
        value_length: 3,
    };
    AnyMixer::LatentAttention(LatentAttention {
        numbers,
        heads,
        query: factored(gated.then(|| Some(norm(3, 80))), heads * 7, 81),
        compression: linear(1, 9, HIDDEN, 83),
        norm: norm(5, 84),
        key: linear(heads, 5, 3, 85),
        value: Linear {
            bias: None,
            ..linear(heads, 3, 5, 86)
        },
        gate: match gated {
            true => Gate::Own(linear(1, heads, HIDDEN, 87)),
            false => Gate::None,
        },
        output: linear(1, HIDDEN, heads * 3, 88),
        rope: Rope::Pairs,
        angles: gated.then(|| angles(2)),
        scores: Scores {
            scale: 0.6,
            cap: None,
            window: None,
            sinks: None,
            is_chunked: false,
            is_causal: true,
            slopes: None,
        },
        temperature: gated.then_some(Temperature {
            strength: 0.3,
            period: 2,
            offset: 0,
        }),
        sparse: None,
    })
}

/// Keys and values expanded from the latent vector.
fn expanded_attention(low_rank: bool, heads: usize) -> AnyMixer {
    let numbers = LatentNumbers {
        rank: 5,
        rotated: 4,
        key_length: 7,
        value_length: 2,
    };
    AnyMixer::ExpandedAttention(ExpandedAttention {
        numbers,
        heads,
        query: factored(low_rank.then(|| Some(norm(3, 80))), heads * 7, 81),
        compression: linear(1, 9, HIDDEN, 83),
        norm: norm(5, 84),
        expansion: linear(1, heads * 5, 5, 85),
        output: linear(1, HIDDEN, heads * 2, 88),
        rope: Rope::Halves,
        angles: low_rank.then(|| angles(2)),
        scores: Scores {
            scale: 0.6,
            cap: None,
            window: None,
            sinks: None,
            is_chunked: false,
            is_causal: true,
            slopes: None,
        },
    })
}

/// Five tokens; each query sees two, chosen by an indexer of three heads.
fn sparse_attention() -> AnyMixer {
    let AnyMixer::LatentAttention(dense) = latent_attention(true, 2) else {
        unreachable!("another mixer");
    };
    let numbers = IndexerNumbers {
        heads: 3,
        length: 6,
        top_k: 2,
    };
    AnyMixer::LatentAttention(LatentAttention {
        sparse: Some(Sparse {
            top_k: numbers.top_k,
            indexer: Some(Box::new(Indexer {
                numbers,
                query: linear(1, 3 * 6, 3, 90),
                key: linear(1, 6, HIDDEN, 91),
                key_norm: Norm {
                    kind: NormKind::Layer,
                    ..norm(6, 92)
                },
                weights: linear(1, 3, HIDDEN, 93),
                rope: Rope::Halves,
                angles: Some(angles(2)),
            })),
        }),
        ..dense
    })
}

fn mixers() -> Vec<(&'static str, AnyMixer)> {
    let apart = [
        linear(1, 4 * 6, HIDDEN, 11),
        linear(1, 2 * 6, HIDDEN, 12),
        linear(1, 2 * 3, HIDDEN, 13),
    ];
    let fused = ffn(First::Fused(linear(1, 12, HIDDEN, 4)));
    let plain = ffn(First::Plain(linear(1, 6, HIDDEN, 5)));
    let factored = Ffn {
        factors: Some(random(6, 25)),
        ..ffn(First::Plain(linear(1, 6, HIDDEN, 5)))
    };
    let normed = Ffn {
        inner_norm: Some(norm(6, 24)),
        ..gated_ffn()
    };
    vec![
        (
            "attention",
            AnyMixer::Attention(attention(Projections::Apart(Box::new(apart)), None)),
        ),
        (
            "fused attention with a window",
            AnyMixer::Attention(attention(
                Projections::Fused(linear(1, 42, HIDDEN, 15)),
                Some(2),
            )),
        ),
        ("attention with a gate per head", gated_attention(4)),
        ("attention with a gate per element", gated_attention(4 * 3)),
        ("attention with gates among queries", attention_with_gates()),
        ("delta net", delta_net(DeltaHeads::Tiled)),
        ("delta net of groups", delta_net(DeltaHeads::Grouped)),
        ("lightning attention", lightning()),
        ("state space", mamba2(false)),
        ("state space without bias and norm", mamba2(true)),
        ("short convolution", short_conv()),
        ("selective state space", mamba(false)),
        ("selective state space with norms", mamba(true)),
        ("state space with factors", factored_mamba2()),
        ("delta net of channels", channel_net(true)),
        ("delta net of channels with a bound", channel_net(false)),
        ("latent attention", latent_attention(false, 4)),
        ("latent attention of one head", latent_attention(false, 1)),
        (
            "latent attention with a gate, factors and angles",
            latent_attention(true, 2),
        ),
        ("sparse latent attention", sparse_attention()),
        (
            "expanded attention with factors and angles",
            expanded_attention(true, 3),
        ),
        (
            "expanded attention of one head",
            expanded_attention(false, 1),
        ),
        ("gated", AnyMixer::Ffn(gated_ffn())),
        ("gated, with scales", AnyMixer::Ffn(scaled_ffn())),
        ("fused", AnyMixer::Ffn(fused)),
        ("plain", AnyMixer::Ffn(plain)),
        ("plain, with factors", AnyMixer::Ffn(factored)),
        (
            "attention with norms of their own for heads",
            normed_heads(),
        ),
        ("with an inner norm", AnyMixer::Ffn(normed)),
        (
            "with a limit",
            AnyMixer::Ffn(Ffn {
                // No value is near the limit, where the derivative is discontinuous.
                limit: Some(Limit::Behind(0.9)),
                ..gated_ffn()
            }),
        ),
        (
            "of few gates",
            AnyMixer::Ffn(Ffn {
                activation: Activation::Gelu,
                sparsity: Some(-0.25),
                ..gated_ffn()
            }),
        ),
        (
            "of few gates in one matrix",
            AnyMixer::Ffn(Ffn {
                sparsity: Some(0.2),
                ..ffn(First::Fused(linear(1, 12, HIDDEN, 4)))
            }),
        ),
        (
            "low-rank branch",
            AnyMixer::Laurel(Laurel {
                first: linear(1, 3, HIDDEN, 7),
                second: linear(1, HIDDEN, 3, 8),
                norm: norm(HIDDEN, 27),
            }),
        ),
        (
            "one linear",
            AnyMixer::Single(Single(linear(1, HIDDEN, HIDDEN, 6))),
        ),
        ("experts", AnyMixer::Moe(moe(true, None))),
        (
            "experts and a shared one",
            AnyMixer::Moe(moe(false, Some(linear(1, 1, HIDDEN, 45)))),
        ),
        (
            "attention with keys and values for later layers",
            attention_of_shared_keys(KeysValues::Kept),
        ),
        (
            "attention with keys and values of an earlier layer",
            attention_of_shared_keys(KeysValues::Shared),
        ),
        ("attention with keys as values", keys_as_values()),
        ("gate of per-layer embeddings", per_layer()),
        ("latent experts without gates", latent_moe()),
        ("experts with biases and a limit", biased_moe()),
        (
            "experts chosen by other rows",
            AnyMixer::Moe(Moe {
                routes_first: true,
                scores: linear(1, 4, 3, 52),
                ..moe(true, Some(linear(1, 1, HIDDEN, 45)))
            }),
        ),
        ("experts and adjugates", moe_with_adjugates(false)),
        (
            "experts and adjugates whose inputs are weighed",
            moe_with_adjugates(true),
        ),
        ("attention with sinks", attention_with_sinks()),
        ("attention within parts", attention_within_parts()),
        ("experts whose inputs are weighed", weighed_inputs(None)),
        (
            "latent experts whose inputs are weighed",
            weighed_inputs(Some(4)),
        ),
        ("RWKV 6", wkv6(Wkv::Six, 2)),
        ("gated linear attention", wkv6(Wkv::SixGated, 2)),
        ("gated linear attention of groups", wkv6(Wkv::SixGated, 1)),
        ("RWKV 7, first layer", wkv7(true, true)),
        ("RWKV 7", wkv7(false, true)),
        ("RWKV 7 without gate and norm", wkv7(false, false)),
        ("RWKV 6's network", channel_mix(true)),
        ("RWKV 7's network", channel_mix(false)),
    ]
}

fn input(mixer: &AnyMixer) -> Rows {
    let columns = mixer.columns(0).unwrap();
    Rows::new(random(POSITIONS * columns, 51), columns)
}

#[test]
fn derivatives_match_finite_differences() {
    for (name, mixer) in mixers() {
        let at = input(&mixer);
        let rows = |x: &[Vec<f32>]| Rows::new(x[0].clone(), at.columns());
        let run = |x: &[Vec<f32>]| mixer.forward(&rows(x), &pass(), None).unwrap();
        let forward = |x: &[Vec<f32>]| run(x).into_numbers();
        let backward = |x: &[Vec<f32>], g: &[f32]| {
            let mut tape = Tape::default();
            mixer.forward(&rows(x), &pass(), Some(&mut tape)).unwrap();
            let dy = Rows::new(g.to_vec(), run(x).columns());
            let mut dx = Rows::zeros(POSITIONS, at.columns());
            mixer
                .backward(&tape, &rows(x), dy, &pass(), &mut dx)
                .unwrap();
            vec![dx.into_numbers()]
        };
        let at = [at.numbers().to_vec()];
        check_gradients(name, &at, &forward, &backward);
    }
}

#[test]
fn forward_equals_the_sequence_of_stages() {
    for (name, mixer) in mixers() {
        let mut x = input(&mixer);
        let whole = mixer.forward(&x, &pass(), None).unwrap();
        for (number, stage) in mixer.stages().iter().enumerate() {
            assert_eq!(mixer.columns(number), Some(x.columns()), "{name}: {number}");
            for linear in &stage.linears {
                assert!(linear.columns <= x.columns(), "{name}: {}", linear.name);
            }
            x = mixer.run_stage(number, &x, &pass()).unwrap().0;
        }
        assert_eq!(x, whole, "{name}");
    }
}

#[test]
fn output_of_a_prefix_is_the_prefix_of_the_output() {
    for (name, mixer) in mixers() {
        let input = input(&mixer);
        let whole = mixer.forward(&input, &pass(), None).unwrap();
        for positions in 1..POSITIONS {
            let mut mixer = mixer.clone();
            let angles = match &mut mixer {
                AnyMixer::Attention(attention) => &mut attention.angles,
                AnyMixer::LatentAttention(attention) => &mut attention.angles,
                AnyMixer::ExpandedAttention(attention) => &mut attention.angles,
                _ => &mut None,
            };
            if let Some(angles) = angles {
                *angles = Arc::new(Angles {
                    cosines: angles.cosines[..positions * angles.pairs].to_vec(),
                    sines: angles.sines[..positions * angles.pairs].to_vec(),
                    pairs: angles.pairs,
                });
            }
            if let AnyMixer::LatentAttention(attention) = &mut mixer {
                let angles = attention.angles.clone();
                let indexer = attention
                    .sparse
                    .as_mut()
                    .and_then(|sparse| sparse.indexer.as_mut());
                indexer
                    .into_iter()
                    .for_each(|indexer| indexer.angles.clone_from(&angles));
            }
            let cut = input.range(0..positions);
            let cut = mixer.forward(&cut, &pass(), None).unwrap();
            for (a, b) in cut.numbers().iter().zip(whole.numbers()) {
                assert!(
                    (a - b).abs() < 1e-5,
                    "{name}, {positions} positions: {a} {b}"
                );
            }
        }
    }
}
