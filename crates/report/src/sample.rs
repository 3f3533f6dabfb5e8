//! Synthetic models for tests and demonstration, with realistic nats and their frontier.

use super::data::*;

/// Types, bits per weight, and approximate loss of a whole model in this type, in nats.
const TYPES: [(&str, f64, f64); 12] = [
    ("iq1_m", 1.75, 0.90),
    ("iq2_xxs", 2.0625, 0.45),
    ("iq2_s", 2.5625, 0.28),
    ("iq3_xxs", 3.0625, 0.13),
    ("q3_K", 3.4375, 0.095),
    ("iq3_s", 3.44, 0.085),
    ("iq4_xs", 4.25, 0.027),
    ("q4_K", 4.5, 0.0223),
    ("q5_K", 5.5, 0.0059),
    ("q6_K", 6.5625, 0.0014),
    ("q8_0", 8.5, 0.00015),
    ("bf16", 16.0, 0.0),
];

/// Relative sensitivity of a role.
fn weight_of(role: &str) -> f64 {
    match role {
        "attn_v" | "attn_output" => 2.2,
        "ffn_down" | "ffn_down_exps" => 1.5,
        "attn_q" | "attn_k" => 0.5,
        "output" => 2.5,
        "token_embd" => 0.4,
        _ => 1.0,
    }
}

/// Pseudo-random number between 0 and 1, a function of `seed`.
fn noise(seed: u64) -> f64 {
    let mixed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 11) as f64
        / (1_u64 << 53) as f64
}

/// Shape of a model: layers of these linears, embedding and output of `vocabulary` rows.
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) architecture: &'static str,
    pub(super) layers: u32,
    pub(super) hidden: u64,
    pub(super) vocabulary: u64,
    /// Role, row length, total rows.
    pub(super) matrices: Vec<(&'static str, u64, u64)>,
    pub(super) experts: Option<u32>,
    /// Offset of the nats relative to the table.
    pub(super) level: f64,
}

/// Report of the model in testdata/.
pub fn small() -> Frontier {
    frontier(&refmodel(), &[2.6, 3.1, 3.6, 4.25, 5.0, 6.0])
}

/// The model in testdata/.
pub(super) fn refmodel() -> Shape {
    let matrices = vec![
        ("attn_q", 256, 256),
        ("attn_k", 256, 128),
        ("attn_v", 256, 128),
        ("attn_output", 256, 256),
        ("ffn_gate", 256, 768),
        ("ffn_up", 256, 768),
        ("ffn_down", 768, 256),
    ];
    let name = "Quantier refmodel 6.8M";
    Shape {
        name,
        architecture: "llama",
        layers: 6,
        hidden: 256,
        vocabulary: 4096,
        matrices,
        experts: None,
        level: 1.0,
    }
}

/// 8 B weights, 32 layers.
#[cfg(test)]
pub(super) fn eight_billion() -> Shape {
    let matrices = vec![
        ("attn_q", 4096, 4096),
        ("attn_k", 4096, 1024),
        ("attn_v", 4096, 1024),
        ("attn_output", 4096, 4096),
        ("ffn_gate", 4096, 14336),
        ("ffn_up", 4096, 14336),
        ("ffn_down", 14336, 4096),
    ];
    let name = "Atlas-8B-Instruct";
    Shape {
        name,
        architecture: "llama",
        layers: 32,
        hidden: 4096,
        vocabulary: 128_256,
        matrices,
        experts: None,
        level: 1.3,
    }
}

/// 48 layers of 128 experts, 30 B weights.
#[cfg(test)]
pub(super) fn experts() -> Shape {
    let matrices = vec![
        ("attn_q", 2048, 4096),
        ("attn_k", 2048, 512),
        ("attn_v", 2048, 512),
        ("attn_output", 4096, 2048),
        ("ffn_gate_exps", 2048, 768 * 128),
        ("ffn_up_exps", 2048, 768 * 128),
        ("ffn_down_exps", 768, 2048 * 128),
    ];
    let (name, architecture) = ("Borealis-30B-A3B", "qwen3moe");
    let vocabulary = 151_936;
    Shape {
        name,
        architecture,
        layers: 48,
        hidden: 2048,
        vocabulary,
        matrices,
        experts: Some(128),
        level: 0.8,
    }
}

fn tensors(shape: &Shape) -> Vec<Tensor> {
    let mut places = vec![(None, "token_embd", shape.hidden, shape.vocabulary)];
    for layer in 0..shape.layers {
        places.extend(
            shape
                .matrices
                .iter()
                .map(|&(role, n, rows)| (Some(layer), role, n, rows)),
        );
    }
    places.push((None, "output", shape.hidden, shape.vocabulary));
    let share = |i: usize, (layer, role, n, rows): (Option<u32>, &str, u64, u64)| {
        let edge = layer.map_or(1.0, |l| {
            let end = f64::from(l.min(shape.layers - 1 - l));
            1.0 + 2.0 * (-end / 2.0).exp()
        });
        ((n * rows) as f64).sqrt() * weight_of(role) * edge * (0.6 + 0.8 * noise(i as u64))
    };
    let all: f64 = places
        .iter()
        .enumerate()
        .map(|(i, &place)| share(i, place))
        .sum();
    let tensor = |(i, &(layer, role, n, rows)): (usize, &(Option<u32>, &str, u64, u64))| {
        let part = share(i, (layer, role, n, rows)) / all * shape.level;
        let weights = n * rows;
        let choice = |(k, (name, bpw, loss)): (usize, &(&str, f64, f64))| Choice {
            ggml_type: (*name).into(),
            bytes: (weights as f64 * bpw / 8.0) as u64,
            nats: loss * part * (0.9 + 0.2 * noise((i * 31 + k) as u64)),
        };
        Tensor {
            name: layer.map_or(format!("{role}.weight"), |l| {
                format!("blk.{l}.{role}.weight")
            }),
            role: role.into(),
            layer,
            shape: match shape.experts {
                Some(e) if role.ends_with("_exps") => vec![n, rows / u64::from(e), u64::from(e)],
                _ => vec![n, rows],
            },
            weights,
            choices: TYPES.iter().enumerate().map(choice).collect(),
            standard_error: None,
        }
    };
    places.iter().enumerate().map(tensor).collect()
}

/// The choice of every tensor that is cheapest at `price` nats per byte.
fn choose(tensors: &[Tensor], price: f64) -> Vec<&Choice> {
    let cost = |choice: &Choice| choice.nats + price * choice.bytes as f64;
    let best = |tensor: &'_ Tensor| {
        tensor.choices.iter().position(|choice| {
            tensor
                .choices
                .iter()
                .all(|other| cost(choice) <= cost(other))
        })
    };
    tensors
        .iter()
        .map(|tensor| &tensor.choices[best(tensor).unwrap()])
        .collect()
}

/// Synthetic measurement for `predicted` nats.
fn measure(predicted: f64, rows: f64, seed: u64) -> Measured {
    let kld = 1.04 * predicted.powf(0.985) * (0.97 + 0.06 * noise(seed));
    Measured {
        mean: Mean::Kld(kld),
        uncertainty: Some(kld * 1.6 / rows.sqrt()),
        median: Some(kld * 0.55),
        p999: Some(9.0 * kld.powf(0.85)),
        same_top: Some(1.0 - 0.9 * kld.sqrt().min(1.0)),
        ppl: Some(8.4 * (0.4 * kld).exp()),
        ppl_base: Some(8.4),
        rank_correlation: None,
        shared_neighbours: None,
    }
}

/// Complete data of a model, with files of about these bits per weight.
pub(super) fn frontier(shape: &Shape, budgets: &[f64]) -> Frontier {
    let tensors = tensors(shape);
    let weights: u64 = tensors.iter().map(|t| t.weights).sum();
    let header = 120_000 + 30 * shape.vocabulary;
    let bpw = |bytes: u64| 8.0 * bytes as f64 / weights as f64;
    let unit = shape.level / weights as f64;
    let price = |i: usize| unit * 30.0 * 0.96_f64.powi(i as i32);
    let point = |i: usize| {
        let chosen = choose(&tensors, price(i));
        let bytes: u64 = chosen.iter().map(|choice| choice.bytes).sum();
        Point {
            bytes: bytes + header,
            bpw: bpw(bytes),
            nats: chosen.iter().map(|choice| choice.nats).sum(),
        }
    };
    let mut points: Vec<Point> = (0..430).map(point).collect();
    let chosen = points.clone();
    points.dedup_by_key(|point| point.bytes);
    let mut files: Vec<File> = Vec::new();
    for (i, budget) in budgets.iter().enumerate() {
        let at = chosen
            .iter()
            .rposition(|point| point.bpw <= *budget)
            .unwrap();
        let predicted = chosen[at].nats;
        let types = choose(&tensors, price(at))
            .into_iter()
            .map(|choice| choice.ggml_type.clone());
        files.push(File {
            name: format!("{}-{budget}bpw-Q4_K_M.gguf", shape.name.replace(' ', "-")),
            budget: format!("--bpw {budget}"),
            label: format!("{budget} bpw"),
            bytes: chosen[at].bytes,
            bpw: chosen[at].bpw,
            recipe: tensors
                .iter()
                .map(|tensor| tensor.name.clone())
                .zip(types)
                .collect(),
            predicted,
            corrected: Some(1.04 * predicted.powf(0.985)),
            measured: Some(measure(predicted, 25_000.0, i as u64)),
            versus: Vec::new(),
            tuned: None,
            rounding: Vec::new(),
        });
    }
    Frontier {
        format: FORMAT,
        distance: Distance::KlDivergence,
        generator: "quantier 0.1.0".into(),
        model: Model {
            name: shape.name.into(),
            architecture: shape.architecture.into(),
            parameters: weights,
            layers: shape.layers,
            experts: shape.experts,
            base_type: "bf16".into(),
            base_bytes: 2 * weights + header,
            source: None,
        },
        scoring: Scoring {
            texts: vec![
                Text { name: "prose.txt".into(), tokens: 12_288 },
                Text { name: "code.txt".into(), tokens: 8_192 },
            ],
            sequences: 40,
            context: 512,
            draws: 2,
            seed: 1,
            score: Score::PerToken,
        },
        evaluation: Some(Evaluation {
            texts: vec![Text { name: "wiki.test.raw".into(), tokens: 50_176 }],
            context: 512,
            tokens: 24_990,
            tool: "quantier".into(),
        }),
        types: TYPES.iter().map(|(name, ..)| (*name).into()).collect(),
        tensors,
        frontier: points,
        presets: presets(shape, weights, header),
        correction: None,
        preset_fit: None,
        fit: Some(Fit {
            scale: 1.04,
            exponent: 0.985,
            points: budgets.len() as u32,
            rank_correlation: Some(1.0),
            median_error: Some(0.014),
        }),
        files,
        projector: None,
        stages: [
            ("importance matrix and scores", 312.4, 3),
            ("choice", 0.4, 3),
            ("files", 95.0, 1),
            ("measuring", 140.0, 2),
        ]
        .map(|(name, seconds, gib)| Stage { name: name.into(), seconds, peak_bytes: Some(gib << 30) })
        .into(),
        settings: vec![
            Setting { name: "types".into(), value: "all of llama.cpp's".into() },
            Setting { name: "pins".into(), value: "none".into() },
        ],
        commands: vec![Command {
            purpose: "Everything in one run".into(),
            command: "quantier make model -f prose.txt -f code.txt --eval wiki.test.raw --bpw 4.25 -o out".into(),
        }],
    }
}

/// Measured presets of the model in testdata/ (llama-perplexity, 200 kB of wikitext-2), or similar
/// values.
fn presets(shape: &Shape, weights: u64, header: u64) -> Vec<Preset> {
    const REAL: [(&str, u64, f64, f64, f64, f64); 11] = [
        ("IQ2_XXS", 2_403_904, 0.368868, 0.002540, 3.229715, 0.56275),
        ("IQ2_M", 2_856_000, 0.187088, 0.001408, 2.061056, 0.68132),
        ("Q2_K", 3_040_832, 0.185821, 0.001517, 2.092115, 0.68064),
        ("IQ3_XXS", 3_067_968, 0.116923, 0.001120, 1.517534, 0.73157),
        ("Q3_K_S", 3_446_848, 0.084585, 0.000747, 1.115695, 0.77103),
        ("Q3_K_M", 3_690_048, 0.059800, 0.000560, 0.845764, 0.80603),
        ("IQ4_XS", 4_032_576, 0.026908, 0.000302, 0.448625, 0.86799),
        ("Q4_K_S", 4_229_184, 0.018611, 0.000190, 0.293103, 0.88750),
        ("Q4_K_M", 4_331_072, 0.019291, 0.000194, 0.257460, 0.88578),
        ("Q5_K_M", 4_994_624, 0.005761, 0.000054, 0.081569, 0.93676),
        ("Q6_K", 5_699_648, 0.002230, 0.000023, 0.034998, 0.95843),
    ];
    if shape.layers == 6 {
        let preset =
            |(name, bytes, kld, uncertainty, p999, top): (&str, u64, f64, f64, f64, f64)| Preset {
                name: name.into(),
                bytes,
                bpw: 8.0 * (bytes - header) as f64 / weights as f64,
                predicted: Some(kld * 0.96),
                measured: Some(Measured {
                    mean: Mean::Kld(kld),
                    uncertainty: Some(uncertainty),
                    median: None,
                    p999: Some(p999),
                    same_top: Some(top),
                    ppl: None,
                    ppl_base: None,
                    rank_correlation: None,
                    shared_neighbours: None,
                }),
            };
        return REAL.into_iter().map(preset).collect();
    }
    const MORE: [(&str, f64, f64); 20] = [
        ("IQ2_XXS", 2.38, 0.62),
        ("IQ2_XS", 2.59, 0.47),
        ("IQ2_S", 2.74, 0.40),
        ("IQ2_M", 2.93, 0.30),
        ("Q2_K_S", 2.97, 0.52),
        ("Q2_K", 3.16, 0.36),
        ("IQ3_XXS", 3.25, 0.19),
        ("IQ3_XS", 3.50, 0.155),
        ("Q3_K_S", 3.64, 0.16),
        ("IQ3_S", 3.66, 0.125),
        ("IQ3_M", 3.76, 0.115),
        ("Q3_K_M", 4.00, 0.094),
        ("Q3_K_L", 4.30, 0.083),
        ("IQ4_XS", 4.42, 0.046),
        ("IQ4_NL", 4.66, 0.043),
        ("Q4_K_S", 4.67, 0.039),
        ("Q4_K_M", 4.89, 0.033),
        ("Q5_K_S", 5.57, 0.013),
        ("Q5_K_M", 5.70, 0.0115),
        ("Q6_K", 6.56, 0.0042),
    ];
    let preset = |(i, (name, bpw, kld)): (usize, (&str, f64, f64))| Preset {
        name: name.into(),
        bytes: (weights as f64 * bpw / 8.0) as u64 + header,
        bpw,
        predicted: Some(kld * shape.level),
        measured: (i % 3 != 1).then(|| measure(kld * shape.level, 25_000.0, i as u64 + 50)),
    };
    MORE.into_iter().enumerate().map(preset).collect()
}

/// The same without measurements.
#[cfg(test)]
pub(super) fn unmeasured(mut data: Frontier) -> Frontier {
    data.fit = None;
    data.evaluation = None;
    data.presets
        .iter_mut()
        .for_each(|preset| preset.measured = None);
    for file in &mut data.files {
        (file.measured, file.corrected) = (None, None);
    }
    data
}

/// The same with malicious names.
#[cfg(test)]
pub(super) fn hostile(mut data: Frontier) -> Frontier {
    let evil = "<script>alert('x')</script>\"&{{ 7*7 }}\u{202e}\u{1b}[31m</svg></style>";
    data.model.name = format!("{evil} {}", "very long ".repeat(40));
    data.model.architecture = evil.into();
    data.presets[3].name = evil.into();
    for (i, file) in data.files.iter_mut().enumerate() {
        file.name = format!("{}{evil}.gguf", "x".repeat(60 * i));
        file.label = format!("{evil}{i}");
        file.budget = evil.into();
    }
    let old = std::mem::replace(&mut data.tensors[5].name, evil.into());
    for file in &mut data.files {
        file.recipe.remove(&old);
        file.recipe.insert(evil.into(), evil.into());
    }
    data.tensors[9].role = evil.into();
    data.scoring.texts[0].name = evil.into();
    data.settings[0].value = evil.repeat(9);
    data.commands[0].command = evil.into();
    data.stages[0].name = evil.into();
    data
}
