//! Projectors of vision models: `quantier convert --mmproj`.
//!
//! `scripts/parity.sh mmproj` compares the files with those of convert_hf_to_gguf.py.

use crate::convert::{Model, fails, plan, weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tempfile::TempDir;

const WIDTH: u64 = 32;
const FFN: u64 = 48;
const TEXT: u64 = 64;
const PATCH: u64 = 2;

/// A Gemma 3 with an encoder of one layer; of the text model, there is one norm.
fn gemma3() -> Model {
    gemma3_for(TEXT)
}

/// The same for a text model with embeddings of `text` numbers.
pub(super) fn gemma3_for(text: u64) -> Model {
    let mut model = Model {
        config: json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
            "text_config": { "model_type": "gemma3_text", "hidden_size": text },
            "vision_config": { "model_type": "siglip_vision_model", "hidden_size": WIDTH, "intermediate_size": FFN,
                "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 128, "patch_size": PATCH },
        }),
        tensors: BTreeMap::new(),
    };
    let siglip = "vision_tower.vision_model";
    for (name, shape) in [
        ("embeddings.patch_embedding", vec![WIDTH, 3, PATCH, PATCH]),
        ("post_layernorm", vec![WIDTH]),
        ("encoder.layers.0.layer_norm1", vec![WIDTH]),
        ("encoder.layers.0.layer_norm2", vec![WIDTH]),
        ("encoder.layers.0.self_attn.q_proj", vec![WIDTH, WIDTH]),
        ("encoder.layers.0.self_attn.k_proj", vec![WIDTH, WIDTH]),
        ("encoder.layers.0.self_attn.v_proj", vec![WIDTH, WIDTH]),
        ("encoder.layers.0.self_attn.out_proj", vec![WIDTH, WIDTH]),
        ("encoder.layers.0.mlp.fc1", vec![FFN, WIDTH]),
        ("encoder.layers.0.mlp.fc2", vec![WIDTH, FFN]),
    ] {
        model.add(&format!("{siglip}.{name}.weight"), &shape);
        model.add(&format!("{siglip}.{name}.bias"), &shape[..1]);
    }
    let positions = format!("{siglip}.embeddings.position_embedding.weight");
    model.add(&positions, &[(128 / PATCH) * (128 / PATCH), WIDTH]);
    model.add(
        "multi_modal_projector.mm_input_projection_weight",
        &[WIDTH, text],
    );
    model.add("multi_modal_projector.mm_soft_emb_norm.weight", &[WIDTH]);
    model.add("language_model.model.norm.weight", &[text]);
    model
}

fn write(model: &Model, preprocessor: Value) -> TempDir {
    let dir = model.write();
    let file = dir.path().join("preprocessor_config.json");
    std::fs::write(file, preprocessor.to_string()).unwrap();
    dir
}

pub(super) fn means() -> Value {
    json!({ "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25] })
}

#[test]
fn the_projector_is_a_file_of_its_own() {
    // 64 patches on a side become 8 tokens: squares of 8 by 8 instead of the usual 4 by 4.
    let mut settings = means();
    settings["image_seq_length"] = json!(64);
    let dir = write(&gemma3(), settings);
    let result = plan(dir.path(), &["--mmproj", "--outtype", "f16"]);
    assert_eq!(result["architecture"], "clip");
    let tensors = result["tensors"].as_array().unwrap();
    let types: BTreeMap<_, _> = tensors
        .iter()
        .map(|t| (t["name"].as_str().unwrap(), t["to"].as_str().unwrap()))
        .collect();
    assert_eq!(types.len(), 23);
    for (name, to) in [
        ("v.patch_embd.weight", "f32"),
        ("v.position_embd.weight", "f32"),
        ("v.blk.0.attn_q.weight", "f16"),
        ("v.blk.0.attn_q.bias", "f32"),
        ("mm.input_projection.weight", "f16"),
        ("mm.soft_emb_norm.weight", "f32"),
    ] {
        assert_eq!(types[name], to, "{name}");
    }
    // Gemma's norms are stored minus 1.
    let norm = weights(dir.path(), "mm.soft_emb_norm.weight");
    assert_eq!(norm[..3], [1.0, 2.0, 3.0]);
    let listed = crate::support::program::json(dir.path(), "inspect out.gguf --json");
    let metadata = listed["metadata"].to_string();
    for part in [
        "clip.vision.image_size",
        "gemma3",
        "clip.use_gelu",
        "clip.vision.projector.scale_factor",
    ] {
        assert!(metadata.contains(part), "{part} is not in {metadata}");
    }
}

#[test]
fn what_a_projector_lacks_is_named() {
    let without = |name: &str| {
        let mut model = gemma3();
        model.tensors.retain(|tensor, _| !tensor.contains(name));
        write(&model, means())
    };
    let args = ["--mmproj"];
    fails(
        without("fc1.weight").path(),
        &args,
        &["mlp.fc1.weight", "these tensors are missing"],
    );
    fails(
        write(&gemma3(), json!({ "image_mean": [0.5] })).path(),
        &args,
        &["'image_std' is neither in preprocessor_config.json"],
    );
    let mut text = gemma3();
    text.config.as_object_mut().unwrap().remove("vision_config");
    fails(
        write(&text, means()).path(),
        &args,
        &["'vision_config' is missing"],
    );
    let mut other = gemma3();
    other.config["architectures"] = json!(["OtherForConditionalGeneration"]);
    fails(
        write(&other, means()).path(),
        &args,
        &[
            "class 'OtherForConditionalGeneration' is not supported",
            "Gemma3For",
        ],
    );
    let mut unknown = gemma3();
    unknown.add("vision_tower.vision_model.extra.weight", &[WIDTH]);
    let unknown = write(&unknown, means());
    fails(
        unknown.path(),
        &args,
        &["extra.weight", "has no such tensors"],
    );
    let dir = write(&gemma3(), means());
    fails(
        dir.path(),
        &["--mmproj", "--vocab-only"],
        &["--vocab-only is for text models"],
    );
}

/// A Gemma 4 with one layer for images and two for audio, whose matrices have bounds.
fn gemma4() -> Model {
    let mut model = Model {
        config: json!({
            "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4",
            "text_config": { "model_type": "gemma4_text", "hidden_size": TEXT },
            "vision_config": { "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": 1,
                "num_attention_heads": 2, "patch_size": PATCH },
            "audio_config": { "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2 },
        }),
        tensors: BTreeMap::new(),
    };
    let tower = "model.vision_tower";
    let colors = 3 * PATCH * PATCH;
    for (name, shape) in [
        ("patch_embedder.input_proj.weight", vec![WIDTH, colors]),
        ("patch_embedder.position_embedding_table", vec![2, 8, WIDTH]),
    ] {
        model.add(&format!("{tower}.{name}"), &shape);
    }
    let layer = format!("{tower}.encoder.layers.0");
    for (name, rows, columns) in [
        ("self_attn.q_proj", WIDTH, WIDTH),
        ("self_attn.k_proj", WIDTH, WIDTH),
        ("self_attn.v_proj", WIDTH, WIDTH),
        ("self_attn.o_proj", WIDTH, WIDTH),
        ("mlp.gate_proj", FFN, WIDTH),
        ("mlp.up_proj", FFN, WIDTH),
        ("mlp.down_proj", WIDTH, FFN),
    ] {
        model.add(&format!("{layer}.{name}.linear.weight"), &[rows, columns]);
        for bound in ["input_min", "input_max", "output_min", "output_max"] {
            model.add(&format!("{layer}.{name}.{bound}"), &[]);
        }
    }
    for (name, length) in [
        ("self_attn.q_norm", WIDTH / 2),
        ("self_attn.k_norm", WIDTH / 2),
        ("input_layernorm", WIDTH),
        ("post_attention_layernorm", WIDTH),
        ("pre_feedforward_layernorm", WIDTH),
        ("post_feedforward_layernorm", WIDTH),
    ] {
        model.add(&format!("{layer}.{name}.weight"), &[length]);
    }
    let tower = "model.audio_tower";
    for (name, shape) in [
        ("layer0.conv", vec![4, 1, 3, 3]),
        ("layer0.norm", vec![4]),
        ("layer1.conv", vec![4, 4, 3, 3]),
        ("layer1.norm", vec![4]),
        ("input_proj_linear", vec![WIDTH, WIDTH]),
    ] {
        model.add(
            &format!("{tower}.subsample_conv_projection.{name}.weight"),
            &shape,
        );
    }
    for layer in 0..2 {
        let layer = format!("{tower}.layers.{layer}");
        for network in ["feed_forward1", "feed_forward2"] {
            for (name, shape) in [
                ("ffw_layer_1.linear", vec![4 * WIDTH, WIDTH]),
                ("ffw_layer_2.linear", vec![WIDTH, 4 * WIDTH]),
                ("pre_layer_norm", vec![WIDTH]),
                ("post_layer_norm", vec![WIDTH]),
            ] {
                model.add(&format!("{layer}.{network}.{name}.weight"), &shape);
            }
        }
        for (name, shape) in [
            ("self_attn.q_proj.linear", vec![WIDTH, WIDTH]),
            ("self_attn.k_proj.linear", vec![WIDTH, WIDTH]),
            ("self_attn.v_proj.linear", vec![WIDTH, WIDTH]),
            ("self_attn.post.linear", vec![WIDTH, WIDTH]),
            ("self_attn.relative_k_proj", vec![WIDTH, WIDTH]),
            ("norm_pre_attn", vec![WIDTH]),
            ("norm_post_attn", vec![WIDTH]),
            ("norm_out", vec![WIDTH]),
            ("lconv1d.pre_layer_norm", vec![WIDTH]),
            ("lconv1d.linear_start.linear", vec![2 * WIDTH, WIDTH]),
            ("lconv1d.depthwise_conv1d", vec![WIDTH, 1, 5]),
            ("lconv1d.conv_norm", vec![WIDTH]),
            ("lconv1d.linear_end.linear", vec![WIDTH, WIDTH]),
        ] {
            model.add(&format!("{layer}.{name}.weight"), &shape);
        }
        model.add(&format!("{layer}.self_attn.per_dim_scale"), &[WIDTH]);
    }
    for name in ["embed_vision", "embed_audio"] {
        let name = format!("model.{name}.embedding_projection.weight");
        model.add(&name, &[TEXT, WIDTH]);
    }
    model
}

#[test]
fn images_and_audio_have_encoders_of_their_own() {
    let dir = write(&gemma4(), means());
    let result = plan(dir.path(), &["--mmproj", "--outtype", "bf16"]);
    let tensors = result["tensors"].as_array().unwrap();
    let types: BTreeMap<_, _> = tensors
        .iter()
        .map(|t| (t["name"].as_str().unwrap(), t["to"].as_str().unwrap()))
        .collect();
    for (name, to) in [
        ("v.patch_embd.weight", "f32"),
        ("v.blk.0.attn_q.weight", "bf16"),
        ("v.blk.0.attn_q.input_max", "f32"),
        ("a.blk.1.attn_q.weight", "bf16"),
        ("a.blk.1.conv_dw.weight", "f32"),
        ("a.input_projection.weight", "f32"),
        ("mm.a.input_projection.weight", "bf16"),
    ] {
        assert_eq!(types[name], to, "{name}");
    }
    // Red, green and blue of a pixel become three planes.
    let patches = weights(dir.path(), "v.patch_embd.weight");
    let planes = [0.0, 3.0, 6.0, 9.0, 1.0, 4.0, 7.0, 10.0, 2.0, 5.0, 8.0, 11.0];
    assert_eq!(patches[..12], planes);
    // ln(1 + e^0) and ln(1 + e^1).
    let scales = weights(dir.path(), "a.blk.0.per_dim_scale.weight");
    assert_eq!(scales[..2], [std::f32::consts::LN_2, 1.313_261_6]);

    let without = |part: &str| {
        let mut model = gemma4();
        model.tensors.retain(|name, _| !name.contains(part));
        write(&model, means())
    };
    // There are two layers of audio, and one of images.
    fails(
        without("audio_tower.layers.1.norm_out").path(),
        &["--mmproj"],
        &["audio_tower.layers.1.norm_out.weight", "missing"],
    );
    let mut deaf = gemma4();
    deaf.config["audio_config"] = Value::Null;
    deaf.tensors.retain(|name, _| !name.contains("audio"));
    let result = plan(write(&deaf, means()).path(), &["--mmproj"]);
    let names = result["tensors"].to_string();
    assert!(!names.contains("\"a."), "{names}");
}
