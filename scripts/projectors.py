#!/usr/bin/env python3
"""Makes tiny checkpoints of models that see or hear: config.json, preprocessor_config.json and seeded random weights of the
encoders and their projectors, with one tensor of the text model.

    scripts/projectors.py OUT [NAME ...]     all of them, or those named
    scripts/projectors.py --list

Needs torch and safetensors. Equal versions of this script make equal files.
"""

import json
import sys
from pathlib import Path

import late_projectors as late
import torch
from checkpoints import tensor
from encoders import FFN, HEADS, LAYERS, PATCH, PREPROCESSOR, TEXT, WIDTH, both, subsampling
from safetensors.torch import save_file


def siglip(prefix, patches, layers=LAYERS):
    shapes = both(prefix + "embeddings.patch_embedding", WIDTH, 3, PATCH, PATCH)
    shapes |= {prefix + "embeddings.position_embedding.weight": (patches, WIDTH)}
    for layer in range(layers):
        p = f"{prefix}encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= both(f"{p}self_attn.{name}", WIDTH, WIDTH)
        shapes |= both(p + "layer_norm1", WIDTH) | both(p + "layer_norm2", WIDTH)
        shapes |= both(p + "mlp.fc1", FFN, WIDTH) | both(p + "mlp.fc2", WIDTH, FFN)
    return shapes | both(prefix + "post_layernorm", WIDTH)


def gemma3(image=896, **preprocessor):
    vision = {"model_type": "siglip_vision_model", "hidden_size": WIDTH, "intermediate_size": FFN, "image_size": image,
              "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "patch_size": PATCH}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": vision,
              "text_config": {"model_type": "gemma3_text", "hidden_size": TEXT}}
    shapes = siglip("vision_tower.vision_model.", (image // PATCH) ** 2)
    shapes |= {"multi_modal_projector.mm_input_projection_weight": (WIDTH, TEXT),
               "multi_modal_projector.mm_soft_emb_norm.weight": (WIDTH,),
               "vision_tower.vision_model.head.probe": (1, 1, WIDTH),
               "language_model.model.norm.weight": (TEXT,)}
    return config, shapes, PREPROCESSOR | preprocessor


def merger(prefix, norm, first, second, norm_bias):
    """A norm, and two matrices over squares of four patches."""
    shapes = {f"{prefix}{norm}.weight": (WIDTH,)}
    if norm_bias:
        shapes[f"{prefix}{norm}.bias"] = (WIDTH,)
    return shapes | both(prefix + first, 4 * WIDTH, 4 * WIDTH) | both(prefix + second, TEXT, 4 * WIDTH)


def blocks(prefix, network, norm_bias):
    shapes = {}
    for layer in range(LAYERS):
        p = f"{prefix}blocks.{layer}."
        shapes |= both(p + "attn.qkv", 3 * WIDTH, WIDTH) | both(p + "attn.proj", WIDTH, WIDTH) | network(p + "mlp.")
        for norm in ("norm1", "norm2"):
            shapes |= both(p + norm, WIDTH) if norm_bias else {f"{p}{norm}.weight": (WIDTH,)}
    return shapes


def qwen2_vl():
    vision = {"depth": LAYERS, "embed_dim": WIDTH, "hidden_size": TEXT, "num_heads": HEADS, "patch_size": PATCH}
    config = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_size": TEXT,
              "rms_norm_eps": 1e-5, "vision_config": vision}
    shapes = {"visual.patch_embed.proj.weight": (WIDTH, 3, 2, PATCH, PATCH), "model.norm.weight": (TEXT,)}
    shapes |= blocks("visual.", lambda p: both(p + "fc1", 4 * WIDTH, WIDTH) | both(p + "fc2", WIDTH, 4 * WIDTH), True)
    return config, shapes | merger("visual.merger.", "ln_q", "mlp.0", "mlp.2", True), PREPROCESSOR


def qwen25_vl():
    vision = {"depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": FFN, "num_heads": HEADS, "patch_size": PATCH,
              "out_hidden_size": TEXT, "fullatt_block_indexes": [0, 1, 2]}
    config = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": TEXT,
              "vision_config": vision}
    shapes = {"visual.patch_embed.proj.weight": (WIDTH, 3, 2, PATCH, PATCH), "model.norm.weight": (TEXT,)}
    shapes |= blocks("visual.", lambda p: both(p + "gate_proj", FFN, WIDTH) | both(p + "up_proj", FFN, WIDTH)
                     | both(p + "down_proj", WIDTH, FFN), False)
    return config, shapes | merger("visual.merger.", "ln_q", "mlp.0", "mlp.2", False), PREPROCESSOR


def qwen3_vl(cls="Qwen3VLForConditionalGeneration", model_type="qwen3_vl", deep=(0, 2), **more):
    vision = {"depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": FFN, "num_heads": HEADS, "patch_size": 16,
              "out_hidden_size": TEXT, "num_position_embeddings": 144, "deepstack_visual_indexes": list(deep)} | more
    config = {"architectures": [cls], "model_type": model_type, "vision_config": vision,
              "text_config": {"model_type": model_type + "_text", "hidden_size": TEXT, "rms_norm_eps": 1e-5}}
    shapes = both("model.visual.patch_embed.proj", WIDTH, 3, 2, 16, 16)
    shapes |= {"model.visual.pos_embed.weight": (144, WIDTH), "model.language_model.norm.weight": (TEXT,)}
    shapes |= blocks("model.visual.",
                     lambda p: both(p + "linear_fc1", FFN, WIDTH) | both(p + "linear_fc2", WIDTH, FFN), True)
    shapes |= merger("model.visual.merger.", "norm", "linear_fc1", "linear_fc2", True)
    for number in range(len(deep)):
        p = f"model.visual.deepstack_merger_list.{number}."
        shapes |= both(p + "norm", 4 * WIDTH) | both(p + "linear_fc1", 4 * WIDTH, 4 * WIDTH)
        shapes |= both(p + "linear_fc2", TEXT, 4 * WIDTH)
    return config, shapes, PREPROCESSOR


def pixtral(cls="LlavaForConditionalGeneration", model_type="llava", merged=False, **more):
    vision = {"model_type": "pixtral", "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
              "num_attention_heads": HEADS, "head_dim": WIDTH // HEADS, "image_size": 224, "patch_size": PATCH,
              "hidden_act": "silu"} | more
    config = {"architectures": [cls], "model_type": model_type, "vision_config": vision,
              "text_config": {"model_type": "mistral", "hidden_size": TEXT}}
    shapes = {"vision_tower.patch_conv.weight": (WIDTH, 3, PATCH, PATCH), "vision_tower.ln_pre.weight": (WIDTH,)}
    for layer in range(LAYERS):
        p = f"vision_tower.transformer.layers.{layer}."
        shapes |= {f"{p}attention.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{p}{name}.weight": (WIDTH,) for name in ("attention_norm", "ffn_norm")}
        shapes |= {f"{p}feed_forward.{name}_proj.weight": (FFN, WIDTH) for name in ("gate", "up")}
        shapes |= {p + "feed_forward.down_proj.weight": (WIDTH, FFN)}
    shapes |= both("multi_modal_projector.linear_1", TEXT, WIDTH) | both("multi_modal_projector.linear_2", TEXT, TEXT)
    if merged:
        shapes |= {"multi_modal_projector.norm.weight": (WIDTH,),
                   "multi_modal_projector.patch_merger.merging_layer.weight": (WIDTH, 4 * WIDTH)}
    # The reference leaves out what has language_model. in its name, and with it the token between rows of patches.
    shapes |= {"model.embed_tokens.weight": (32, TEXT), "language_model.model.norm.weight": (TEXT,)}
    return config, shapes, PREPROCESSOR


def smolvlm(cls, model_type, preprocessor, **outer):
    vision = {"model_type": model_type + "_vision", "hidden_size": WIDTH, "intermediate_size": FFN, "image_size": 56,
              "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "patch_size": PATCH}
    config = {"architectures": [cls], "model_type": model_type, "vision_config": vision,
              "text_config": {"model_type": "llama", "hidden_size": TEXT}} | outer
    shapes = siglip("model.vision_model.", 16) | {"model.text_model.norm.weight": (TEXT,), "lm_head.weight": (32, TEXT)}
    shapes |= {"model.connector.modality_projection.proj.weight": (TEXT, 4 * WIDTH)}
    return config, shapes, PREPROCESSOR | preprocessor


def clipped(name, rows, columns, bounds):
    """A matrix in a module that may clip its inputs and outputs."""
    ends = ("input_min", "input_max", "output_min", "output_max") if bounds else ()
    return {f"{name}.linear.weight": (rows, columns)} | {f"{name}.{end}": () for end in ends}


def gemma4_audio(bounds):
    shapes, prefix = {}, "model.audio_tower."
    for number, channels in ((0, (8, 1)), (1, (4, 8))):
        p = f"{prefix}subsample_conv_projection.layer{number}."
        shapes |= {p + "conv.weight": (*channels, 3, 3), p + "norm.weight": channels[:1]}
    shapes |= {prefix + "subsample_conv_projection.input_proj_linear.weight": (WIDTH, 128)}
    for layer in range(LAYERS + 1):
        p = f"{prefix}layers.{layer}."
        for network in ("feed_forward1.", "feed_forward2."):
            shapes |= clipped(p + network + "ffw_layer_1", 4 * WIDTH, WIDTH, bounds)
            shapes |= clipped(p + network + "ffw_layer_2", WIDTH, 4 * WIDTH, bounds)
            shapes |= {p + network + name: (WIDTH,) for name in ("pre_layer_norm.weight", "post_layer_norm.weight")}
        for name in ("q_proj", "k_proj", "v_proj", "post"):
            shapes |= clipped(f"{p}self_attn.{name}", WIDTH, WIDTH, bounds)
        shapes |= {p + "self_attn.relative_k_proj.weight": (WIDTH, WIDTH), p + "self_attn.per_dim_scale": (WIDTH,)}
        shapes |= {p + name + ".weight": (WIDTH,) for name in ("norm_pre_attn", "norm_post_attn", "norm_out",
                                                               "lconv1d.pre_layer_norm", "lconv1d.conv_norm")}
        shapes |= clipped(p + "lconv1d.linear_start", 2 * WIDTH, WIDTH, bounds)
        shapes |= clipped(p + "lconv1d.linear_end", WIDTH, WIDTH, bounds)
        shapes |= {p + "lconv1d.depthwise_conv1d.weight": (WIDTH, 1, 5)}
    return shapes | both(prefix + "output_proj", 96, WIDTH) | {"model.embed_audio.embedding_projection.weight": (TEXT, 96)}


def gemma4(hears, standardized, **more):
    vision = {"model_type": "gemma4_vision", "architectures": None, "hidden_size": WIDTH, "intermediate_size": FFN,
              "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "patch_size": PATCH, "pooling_kernel_size": 3} | more
    audio = {"model_type": "gemma4_audio", "hidden_size": WIDTH, "num_attention_heads": HEADS,
             "num_hidden_layers": LAYERS + 1, "layer_norm_eps": 1e-5, "input_feat_size": 80} if hears else None
    config = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "vision_config": vision,
              "audio_config": audio, "text_config": {"model_type": "gemma4_text", "hidden_size": TEXT}}
    tower = "model.vision_tower."
    shapes = {tower + "patch_embedder.input_proj.weight": (WIDTH, 3 * PATCH * PATCH),
              tower + "patch_embedder.position_embedding_table": (2, 48, WIDTH)}
    for layer in range(LAYERS):
        p = f"{tower}encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes |= clipped(f"{p}self_attn.{name}", WIDTH, WIDTH, hears)
        for name in ("gate_proj", "up_proj", "down_proj"):
            rows, columns = (WIDTH, FFN) if name == "down_proj" else (FFN, WIDTH)
            shapes |= clipped(f"{p}mlp.{name}", rows, columns, hears)
        shapes |= {f"{p}self_attn.{name}.weight": (WIDTH // HEADS,) for name in ("q_norm", "k_norm")}
        shapes |= {f"{p}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention", "pre_feedforward",
                                                                        "post_feedforward")}
        if standardized:
            shapes |= {p + "layer_scalar": (1,)}
    if standardized:
        shapes |= {tower + name: (WIDTH,) for name in ("std_bias", "std_scale")}
    shapes |= {"model.embed_vision.embedding_projection.weight": (TEXT, WIDTH),
               "model.language_model.norm.weight": (TEXT,)}
    return config, shapes | (gemma4_audio(True) if hears else {}), PREPROCESSOR


def gemma4_unified(**more):
    vision = {"model_type": "gemma4_unified_vision", "mm_embed_dim": WIDTH, "patch_size": 4, "pooling_kernel_size": 3} | more
    config = {"architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified",
              "vision_config": vision, "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 96},
              "text_config": {"model_type": "gemma4_text", "hidden_size": TEXT}}
    pixels = 3 * vision.get("model_patch_size", 12) ** 2
    shapes = both("model.vision_embedder.patch_dense", WIDTH, pixels) | both("model.vision_embedder.patch_ln1", pixels)
    shapes |= both("model.vision_embedder.patch_ln2", WIDTH) | both("model.vision_embedder.pos_norm", WIDTH)
    shapes |= {"model.vision_embedder.pos_embedding": (40, 2, WIDTH),
               "model.embed_vision.embedding_projection.weight": (TEXT, WIDTH),
               "model.embed_audio.embedding_projection.weight": (TEXT, 96), "model.language_model.norm.weight": (TEXT,)}
    return config, shapes, PREPROCESSOR


def internvl(biases=True, head_norms=False, side=56, outer=None, **more):
    """The reference knows as many numbers of matrices behind the encoder as there are layers: mlp1.3 takes four."""
    vision = {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "hidden_size": WIDTH,
              "intermediate_size": FFN, "image_size": side, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS + 1,
              "patch_size": PATCH, "layer_norm_eps": 1e-6, "hidden_act": "gelu"} | more
    config = {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "vision_config": vision,
              "llm_config": {"model_type": "qwen2", "hidden_size": TEXT}, "downsample_ratio": 0.5} | (outer or {})
    norm = both if biases else lambda name, *shape: {name + ".weight": shape}
    shapes = both("vision_model.embeddings.patch_embedding", WIDTH, 3, PATCH, PATCH)
    shapes |= {"vision_model.embeddings.class_embedding": (1, 1, WIDTH),
               "vision_model.embeddings.position_embedding": (1, 17, WIDTH)}
    for layer in range(LAYERS + 1):
        p = f"vision_model.encoder.layers.{layer}."
        shapes |= norm(p + "attn.qkv", 3 * WIDTH, WIDTH) | both(p + "attn.proj", WIDTH, WIDTH)
        shapes |= norm(p + "norm1", WIDTH) | norm(p + "norm2", WIDTH)
        shapes |= both(p + "mlp.fc1", FFN, WIDTH) | both(p + "mlp.fc2", WIDTH, FFN) | {p + "ls1": (WIDTH,), p + "ls2": (WIDTH,)}
        if head_norms:
            shapes |= {f"{p}attn.{name}.weight": (WIDTH,) for name in ("q_norm", "k_norm")}
    shapes |= both("mlp1.0", 4 * WIDTH) | both("mlp1.1", TEXT, 4 * WIDTH) | both("mlp1.3", TEXT, TEXT)
    return config, shapes | {"language_model.model.norm.weight": (TEXT,)}, PREPROCESSOR


def intern_s1():
    config, old, preprocessor = internvl(side=[56, 56], patch_size=[PATCH, PATCH])
    config |= {"architectures": ["InternS1ForConditionalGeneration"], "model_type": "interns1"}
    config["text_config"] = config.pop("llm_config")
    shapes = {"model.language_model.norm.weight": (TEXT,)}
    tower, matrices = "model.vision_tower.", "model.multi_modal_projector."
    names = {"embeddings.class_embedding": "embeddings.cls_token",
             "embeddings.position_embedding": "embeddings.position_embeddings",
             "embeddings.patch_embedding.": "embeddings.patch_embeddings.projection.", "encoder.layers.": "encoder.layer.",
             ".attn.proj": ".attention.projection_layer", ".norm1": ".layernorm_before", ".norm2": ".layernorm_after",
             ".ls": ".lambda_", "mlp1.0": matrices + "layer_norm", "mlp1.1": matrices + "linear_1",
             "mlp1.3": matrices + "linear_2", "vision_model.": tower}
    for name, shape in old.items():
        for old_part, new_part in names.items():
            name = name.replace(old_part, new_part)
        if ".attn.qkv" in name:
            shapes |= {name.replace(".attn.qkv", f".attention.{part}_proj"): (WIDTH, *shape[1:]) for part in "qkv"}
        elif "language_model" not in name:
            shapes[name] = shape
    return config, shapes, preprocessor


def lfm2_vl(model_type="lfm2-vl", prefix="", norm=True, outer=None, **more):
    vision = {"model_type": "siglip2_vision_model", "hidden_size": WIDTH, "intermediate_size": FFN,
              "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "patch_size": 16} | more
    config = {"architectures": ["Lfm2VlForConditionalGeneration"], "model_type": model_type, "vision_config": vision,
              "text_config": {"model_type": "lfm2", "hidden_size": TEXT}} | (outer or {})
    shapes = siglip(prefix + "vision_tower.vision_model.", 16)
    shapes[prefix + "vision_tower.vision_model.embeddings.patch_embedding.weight"] = (WIDTH, 768)
    matrices = prefix + "multi_modal_projector."
    if norm:
        shapes |= both(matrices + "layer_norm", 4 * WIDTH)
    shapes |= both(matrices + "linear_1", FFN, 4 * WIDTH) | both(matrices + "linear_2", TEXT, FFN)
    return config, shapes | {"model.language_model.embedding_norm.weight": (TEXT,)}, PREPROCESSOR


def glm4v(cls, model_type, ocr=False, positions=True, preprocessor=None, **more):
    vision = {"model_type": model_type, "depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": FFN, "num_heads": HEADS,
              "image_size": 56, "patch_size": PATCH, "out_hidden_size": TEXT} | more
    config = {"architectures": [cls], "model_type": model_type, "vision_config": vision,
              "text_config": {"model_type": model_type + "_text", "hidden_size": TEXT}}
    linear = both if ocr else lambda name, *shape: {name + ".weight": shape}
    shapes = both("model.visual.patch_embed.proj", WIDTH, 3, 2, PATCH, PATCH)
    if positions:
        shapes |= {"model.visual.embeddings.position_embedding.weight": (16, WIDTH),
                   "model.visual.post_conv_layernorm.weight": (WIDTH,)}
    shapes |= {"model.visual.post_layernorm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        p = f"model.visual.blocks.{layer}."
        shapes |= linear(p + "attn.qkv", 3 * WIDTH, WIDTH) | linear(p + "attn.proj", WIDTH, WIDTH)
        shapes |= linear(p + "mlp.gate_proj", FFN, WIDTH) | linear(p + "mlp.up_proj", FFN, WIDTH)
        shapes |= linear(p + "mlp.down_proj", WIDTH, FFN) | {p + f"norm{number}.weight": (WIDTH,) for number in (1, 2)}
        if ocr:
            shapes |= {f"{p}attn.{name}.weight": (WIDTH // HEADS,) for name in ("q_norm", "k_norm")}
    merger = "model.visual.merger."
    shapes |= both("model.visual.downsample", TEXT, WIDTH, 2, 2) | both(merger + "post_projection_norm", TEXT)
    shapes |= {merger + "proj.weight": (TEXT, TEXT), merger + "gate_proj.weight": (FFN, TEXT),
               merger + "up_proj.weight": (FFN, TEXT), merger + "down_proj.weight": (TEXT, FFN)}
    return config, shapes | {"model.language_model.norm.weight": (TEXT,), "lm_head.weight": (32, TEXT)}, \
        PREPROCESSOR | (preprocessor or {})


def moonvit():
    shapes, tower = both("vision_tower.patch_embed.proj", WIDTH, 3, PATCH, PATCH), "vision_tower.encoder."
    shapes |= {"vision_tower.patch_embed.pos_emb.weight": (6, 4, WIDTH)} | both(tower + "final_layernorm", WIDTH)
    for layer in range(LAYERS):
        p = f"{tower}blocks.{layer}."
        shapes |= both(p + "wqkv", 3 * WIDTH, WIDTH) | both(p + "wo", WIDTH, WIDTH)
        shapes |= both(p + "norm0", WIDTH) | both(p + "norm1", WIDTH)
        shapes |= both(p + "mlp.fc0", FFN, WIDTH) | both(p + "mlp.fc1", WIDTH, FFN)
    return shapes | {"language_model.model.norm.weight": (TEXT,)}


def kimi_vl():
    vision = {"model_type": "moonvit", "hidden_size": WIDTH, "intermediate_size": FFN, "num_attention_heads": HEADS,
              "num_hidden_layers": LAYERS, "patch_size": PATCH, "init_pos_emb_height": 6, "merge_kernel_size": [2, 2]}
    config = {"architectures": ["KimiVLForConditionalGeneration"], "model_type": "kimi_vl", "vision_config": vision,
              "text_config": {"model_type": "deepseek_v3", "hidden_size": TEXT}}
    p = "multi_modal_projector."
    shapes = moonvit() | both(p + "pre_norm", WIDTH) | both(p + "linear_1", 4 * WIDTH, 4 * WIDTH)
    return config, shapes | both(p + "linear_2", TEXT, 4 * WIDTH), PREPROCESSOR


def kimi_k25(cls, names, preprocessor=None, **more):
    vision = {"vt_hidden_size": WIDTH, "vt_intermediate_size": FFN, "vt_num_attention_heads": 16,
              "vt_num_hidden_layers": LAYERS, "patch_size": PATCH} | more
    config = {"architectures": [cls], "model_type": "kimi_k25", "vision_config": vision,
              "text_config": {"model_type": "kimi_k2", "hidden_size": TEXT}}
    shapes = moonvit() | both("mm_projector.pre_norm", WIDTH) | both(names[0], 4 * WIDTH, 4 * WIDTH)
    return config, shapes | both(names[1], TEXT, 4 * WIDTH), PREPROCESSOR | (preprocessor or {})


def muse_glimmer(norms=True):
    vision = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
              "patch_size": PATCH, "patch_temporal": 2, "pos_emb_height": 4, "merge_size": 2, "layer_norm_eps": 1e-5}
    config = {"architectures": ["MuseGlimmerForConditionalGeneration"], "model_type": "muse_glimmer", "vision_config": vision,
              "text_config": {"model_type": "muse_glimmer_text", "hidden_size": TEXT}}
    tower = "model.vision_tower."
    shapes = {tower + "patch_embedder.patch_embedding.weight": (WIDTH, 2 * 3 * PATCH * PATCH)}
    if norms:
        shapes |= both(tower + "ln_pre", WIDTH) | both(tower + "ln_post", WIDTH)
    for layer in range(LAYERS):
        p = f"{tower}layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "proj"):
            shapes |= both(f"{p}attn.{name}", WIDTH, WIDTH)
        shapes |= both(p + "norm1", WIDTH) | both(p + "norm2", WIDTH)
        shapes |= both(p + "mlp.fc1", FFN, WIDTH) | both(p + "mlp.fc2", WIDTH, FFN)
    shapes |= {"model.vision_adapter.fc1.weight": (FFN, 4 * WIDTH), "model.vision_adapter.fc2.weight": (FFN, FFN),
               "model.vision_projection.weight": (TEXT, FFN), "model.language_model.norm.weight": (TEXT,)}
    return config, shapes, PREPROCESSOR


def llama4(**more):
    vision = {"model_type": "llama4_vision_model", "hidden_size": WIDTH, "intermediate_size": FFN, "image_size": 56,
              "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "patch_size": PATCH} | more
    config = {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "vision_config": vision,
              "text_config": {"model_type": "llama4_text", "hidden_size": TEXT}}
    shapes = {"vision_model.class_embedding": (WIDTH,), "vision_model.positional_embedding_vlm": (17, WIDTH),
              "vision_model.patch_embedding.linear.weight": (WIDTH, 3 * PATCH * PATCH)}
    shapes |= both("vision_model.layernorm_pre", WIDTH) | both("vision_model.layernorm_post", WIDTH)
    for layer in range(LAYERS):
        p = f"vision_model.model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes |= both(f"{p}self_attn.{name}", WIDTH, WIDTH)
        shapes |= both(p + "input_layernorm", WIDTH) | both(p + "post_attention_layernorm", WIDTH)
        shapes |= both(p + "mlp.fc1", FFN, WIDTH) | both(p + "mlp.fc2", WIDTH, FFN)
    shapes |= {"vision_model.vision_adapter.mlp.fc1.weight": (FFN, 4 * WIDTH),
               "vision_model.vision_adapter.mlp.fc2.weight": (FFN, FFN), "multi_modal_projector.linear_1.weight": (TEXT, FFN),
               "language_model.model.norm.weight": (TEXT,)}
    return config, shapes, PREPROCESSOR


def whisper(prefix="audio_tower.", layers=LAYERS):
    shapes = both(prefix + "conv1", WIDTH, 80, 3) | both(prefix + "conv2", WIDTH, WIDTH, 3) | both(prefix + "layer_norm", WIDTH)
    shapes |= {prefix + "embed_positions.weight": (50, WIDTH)}
    for layer in range(layers):
        p = f"{prefix}layers.{layer}."
        for name in ("q_proj", "v_proj", "out_proj"):
            shapes |= both(f"{p}self_attn.{name}", WIDTH, WIDTH)
        shapes |= {p + "self_attn.k_proj.weight": (WIDTH, WIDTH)} | both(p + "fc1", FFN, WIDTH) | both(p + "fc2", WIDTH, FFN)
        shapes |= both(p + "self_attn_layer_norm", WIDTH) | both(p + "final_layer_norm", WIDTH)
    return shapes


OWN_WHISPER = {"d_model": WIDTH, "encoder_ffn_dim": FFN, "encoder_layers": LAYERS, "encoder_attention_heads": HEADS,
               "num_mel_bins": 80}
OTHER_WHISPER = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
                 "num_mel_bins": 80}


def hearing(cls, model_type, audio, shapes, **outer):
    config = {"architectures": [cls], "model_type": model_type, "audio_config": audio,
              "text_config": {"model_type": "llama", "hidden_size": TEXT}} | outer
    return config, whisper() | shapes | {"language_model.model.norm.weight": (TEXT,)}, {}


def meralion():
    adapter = "speech_audio_adapter."
    shapes = whisper("speech_encoder.") | both("ln_speech", WIDTH) | {"text_decoder.model.norm.weight": (TEXT,)}
    shapes |= both(adapter + "mlp_adapter.0", FFN, 15 * WIDTH) | both(adapter + "gate_proj", FFN, FFN)
    shapes |= both(adapter + "pool_proj", FFN, FFN) | both(adapter + "out_proj", TEXT, FFN)
    config = {"architectures": ["MERaLiON2ForConditionalGeneration"], "model_type": "meralion2", "speech_config": OWN_WHISPER,
              "text_config": {"model_type": "gemma2", "hidden_size": TEXT}}
    return config, shapes, {}


def glm_asr():
    encoder = "audio_encoder."
    shapes = {name: shape for name, shape in whisper(encoder + "whisper.").items() if "embed_positions" not in name}
    shapes |= both(encoder + "layer_norm", WIDTH) | both(encoder + "adapting.0", FFN, 4 * WIDTH)
    shapes |= both(encoder + "adapting.2", TEXT, FFN) | {encoder + "audio_bos_eos_token.weight": (2, TEXT)}
    config = {"architectures": ["GlmasrModel"], "model_type": "Glmasr", "whisper_config": OWN_WHISPER, "merge_factor": 4,
              "lm_config": {"model_type": "llama", "hidden_size": TEXT}}
    return config, shapes | {"model.norm.weight": (TEXT,), "lm_head.weight": (32, TEXT)}, {}



def lfm2_audio(layers=7):
    """The reference knows as many numbers of convolutions as there are layers."""
    encoder = {"d_model": WIDTH, "n_layers": layers, "n_heads": HEADS, "feat_in": 80}
    config = {"architectures": ["Lfm2AudioForConditionalGeneration"], "model_type": "lfm2_audio", "encoder": encoder,
              "lfm": {"model_type": "lfm2", "hidden_size": TEXT}}
    shapes = subsampling("conformer.pre_encode.conv.") | both("conformer.pre_encode.out", WIDTH, 80)
    for layer in range(layers):
        p = f"conformer.layers.{layer}."
        for number in (1, 2):
            shapes |= both(f"{p}feed_forward{number}.linear1", FFN, WIDTH) | both(f"{p}feed_forward{number}.linear2", WIDTH, FFN)
            shapes |= both(f"{p}norm_feed_forward{number}", WIDTH)
        for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
            shapes |= both(f"{p}self_attn.{name}", WIDTH, WIDTH)
        shapes |= {f"{p}self_attn.{name}": (HEADS, WIDTH // HEADS) for name in ("pos_bias_u", "pos_bias_v")}
        shapes |= {p + "self_attn.linear_pos.weight": (WIDTH, WIDTH)}
        shapes |= both(p + "norm_self_att", WIDTH) | both(p + "norm_conv", WIDTH) | both(p + "norm_out", WIDTH)
        shapes |= both(p + "conv.depthwise_conv", WIDTH, 1, 9) | both(p + "conv.batch_norm", WIDTH)
        shapes |= both(p + "conv.pointwise_conv1", 2 * WIDTH, WIDTH, 1) | both(p + "conv.pointwise_conv2", WIDTH, WIDTH, 1)
        shapes |= {f"{p}conv.batch_norm.{name}": (WIDTH,) for name in ("running_mean", "running_var")}
        shapes |= {p + "conv.batch_norm.num_batches_tracked": ()}
    adapter = "audio_adapter.model."
    shapes |= both(adapter + "0", WIDTH) | both(adapter + "1", FFN, WIDTH) | both(adapter + "3", TEXT, FFN)
    shapes |= {"audio_embedding.embedding.weight": (64, TEXT), "audio_embedding.embedding_norm.weight": (TEXT,),
               "audio_embedding.to_logits.weight": (64, TEXT), "audio_loss_weights": (8,), "codebook_offsets": (8,),
               "depth_linear.weight": (TEXT, TEXT), "lfm.embedding_norm.weight": (TEXT,)}
    return config, shapes, {}


def cogvlm(**more):
    vision = {"hidden_size": WIDTH, "intermediate_size": FFN, "image_size": 56, "num_heads": HEADS, "num_hidden_layers": LAYERS,
              "patch_size": PATCH} | more
    config = {"architectures": ["CogVLMForCausalLM"], "vision_config": vision, "hidden_size": TEXT}
    p = "model.vision."
    shapes = {p + "patch_embedding.cls_embedding": (1, WIDTH), p + "patch_embedding.position_embedding.weight": (17, WIDTH)}
    shapes |= both(p + "patch_embedding.proj", WIDTH, 3, PATCH, PATCH)
    for layer in range(LAYERS):
        q = f"{p}transformer.layers.{layer}."
        shapes |= both(q + "attention.query_key_value", 3 * WIDTH, WIDTH) | both(q + "attention.dense", WIDTH, WIDTH)
        shapes |= both(q + "input_layernorm", WIDTH) | both(q + "post_attention_layernorm", WIDTH)
        shapes |= both(q + "mlp.fc1", FFN, WIDTH) | both(q + "mlp.fc2", WIDTH, FFN)
    shapes |= {p + "linear_proj.linear_proj.weight": (TEXT, WIDTH), p + "linear_proj.dense_h_to_4h.weight": (FFN, TEXT),
               p + "linear_proj.gate_proj.weight": (FFN, TEXT), p + "linear_proj.dense_4h_to_h.weight": (TEXT, FFN),
               p + "boi": (1, 1, TEXT), p + "eoi": (1, 1, TEXT), "model.norm.weight": (TEXT,)}
    return config, shapes | both(p + "linear_proj.norm1", TEXT), PREPROCESSOR


def dots_ocr():
    vision = {"hidden_size": TEXT, "embed_dim": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
              "num_attention_heads": HEADS, "patch_size": PATCH, "rms_norm_eps": 1e-5, "spatial_merge_size": 2}
    vision["hidden_size"] = vision["embed_dim"]
    config = {"architectures": ["DotsOCRForCausalLM"], "model_type": "dots_ocr", "vision_config": vision, "hidden_size": TEXT}
    shapes = both("vision_tower.patch_embed.patchifier.proj", WIDTH, 3, PATCH, PATCH)
    shapes |= {"vision_tower.patch_embed.patchifier.norm.weight": (WIDTH,), "vision_tower.post_trunk_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        p = f"vision_tower.blocks.{layer}."
        shapes |= {p + "attn.qkv.weight": (3 * WIDTH, WIDTH), p + "attn.proj.weight": (WIDTH, WIDTH),
                   p + "norm1.weight": (WIDTH,), p + "norm2.weight": (WIDTH,), p + "mlp.fc1.weight": (FFN, WIDTH),
                   p + "mlp.fc2.weight": (WIDTH, FFN), p + "mlp.fc3.weight": (FFN, WIDTH)}
    shapes |= both("vision_tower.merger.ln_q", WIDTH) | both("vision_tower.merger.mlp.0", 4 * WIDTH, 4 * WIDTH)
    shapes |= both("vision_tower.merger.mlp.2", TEXT, 4 * WIDTH) | {"model.norm.weight": (TEXT,)}
    return config, shapes, PREPROCESSOR | {"min_pixels": 3136, "max_pixels": 11289600}


def hunyuan_vl(**more):
    vision = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
              "patch_size": PATCH} | more
    config = {"architectures": ["HunYuanVLForConditionalGeneration"], "model_type": "hunyuan_vl", "vision_config": vision,
              "hidden_size": TEXT}
    shapes = both("vit.embeddings.patch_embedding", WIDTH, 3, PATCH, PATCH)
    shapes |= {"vit.embeddings.position_embedding.weight": (17, WIDTH)}
    for layer in range(LAYERS):
        p = f"vit.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes |= both(f"{p}self_attn.{name}", WIDTH, WIDTH)
        shapes |= both(p + "input_layernorm", WIDTH) | both(p + "post_attention_layernorm", WIDTH)
        shapes |= both(p + "mlp.dense_h_to_4h", FFN, WIDTH) | both(p + "mlp.dense_4h_to_h", WIDTH, FFN)
    p = "vit.perceive."
    shapes |= both(p + "proj.0", 2 * WIDTH, WIDTH, 2, 2) | both(p + "proj.2", 4 * WIDTH, 2 * WIDTH, 1, 1)
    shapes |= both(p + "mlp", TEXT, 4 * WIDTH)
    shapes |= {p + "before_rms.weight": (WIDTH,), p + "after_rms.weight": (TEXT,), p + "image_newline": (4 * WIDTH,),
               p + "image_sep": (4 * WIDTH,), p + "image_begin": (TEXT,), p + "image_end": (TEXT,), "model.norm.weight": (TEXT,)}
    return config, shapes, PREPROCESSOR | {"min_pixels": 262144, "max_pixels": 4194304}


def siglip_kin(cls, model_type, prefix, projection, preprocessor=None, outer=None, leave=(), **more):
    vision = {"hidden_size": WIDTH, "intermediate_size": FFN, "image_size": 56, "num_attention_heads": HEADS,
              "num_hidden_layers": LAYERS, "patch_size": PATCH} | more
    vision = {name: value for name, value in vision.items() if name not in leave}
    config = {"architectures": [cls], "model_type": model_type, "vision_config": vision,
              "text_config": {"model_type": "llama", "hidden_size": TEXT}} | (outer or {})
    shapes = siglip(prefix, 16) | projection | {"lm_head.weight": (32, TEXT)}
    return config, shapes, PREPROCESSOR | (preprocessor or {})


def janus(**more):
    config, shapes, preprocessor = siglip_kin(
        "JanusForConditionalGeneration", "janus", "model.vision_model.",
        both("model.aligner.fc1", TEXT, WIDTH) | both("model.aligner.hidden_layers.0", TEXT, TEXT)
        | {"model.vqmodel.quantize.embedding.weight": (16, 8), "model.generation_head.vision_head.weight": (16, 8)},
        leave=("intermediate_size",), mlp_ratio=1.5, **more)
    return config, {name.replace("out_proj", "projection_layer"): shape for name, shape in shapes.items()}, preprocessor


def youtu_vl(**more):
    p = "merger."
    config, shapes, preprocessor = siglip_kin(
        "YoutuVLForConditionalGeneration", "youtu_vl", "siglip2.vision_model.",
        {p + "ln_q.weight": (WIDTH,)} | both(p + "mlp.0", 4 * WIDTH, 4 * WIDTH) | both(p + "mlp.2", TEXT, 4 * WIDTH),
        leave=("image_size",), window_size=32, fullatt_block_indexes=[0, 2], **more)
    del shapes["siglip2.vision_model.embeddings.position_embedding.weight"]
    shapes["siglip2.vision_model.embeddings.patch_embedding.weight"] = (WIDTH, 3 * PATCH * PATCH)
    return config, shapes, preprocessor


def minicpm_v(preprocessor, outer, **more):
    tower, merger = "model.vision_tower.vit_merger.", "model.merger.mlp.0."
    shapes = both(merger + "pre_norm", 4 * WIDTH) | both(merger + "linear_1", FFN, 4 * WIDTH)
    shapes |= both(merger + "linear_2", TEXT, FFN)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= both(f"{tower}self_attn.{name}", WIDTH, WIDTH)
    shapes |= both(tower + "layer_norm1", WIDTH) | both(tower + "pre_norm", 4 * WIDTH)
    shapes |= both(tower + "linear_1", FFN, 4 * WIDTH) | both(tower + "linear_2", WIDTH, FFN)
    return siglip_kin("MiniCPMV4_6ForConditionalGeneration", "minicpmv4_6", "model.vision_tower.", shapes, preprocessor,
                      outer, **more)


def paddleocr_vl(**more):
    p = "mlp_AR."
    shapes = both(p + "pre_norm", WIDTH) | both(p + "linear_1", 4 * WIDTH, 4 * WIDTH) | both(p + "linear_2", TEXT, 4 * WIDTH)
    shapes |= {"visual.vision_model.embeddings.packing_position_embedding.weight": (40, WIDTH),
               "visual.vision_model.head.probe": (1, 1, WIDTH)}
    return siglip_kin("PaddleOCRVLForConditionalGeneration", "paddleocr_vl", "visual.vision_model.", shapes,
                      {"min_pixels": 147384, "max_pixels": 2822400}, architectures=["PaddleOCRVisionModel"], **more)


def lighton_ocr():
    config, old, preprocessor = pixtral("LightOnOCRForConditionalGeneration", "mistral3", True)
    shapes = {"model.language_model.norm.weight": (TEXT,), "lm_head.weight": (32, TEXT)}
    for name, shape in old.items():
        if name.startswith(("vision_tower.", "multi_modal_projector.")):
            name = name.replace("vision_tower.", "model.vision_encoder.")
            shapes[name.replace("multi_modal_projector.", "model.vision_projection.")] = shape
    return config, shapes, preprocessor


def sarashina2():
    config, shapes, preprocessor = qwen2_vl()
    config |= {"architectures": ["Sarashina2VisionForCausalLM"], "model_type": "sarashina2_vision"}
    return config, shapes | {"llm.model.norm.weight": (TEXT,), "norm.weight": (TEXT,)}, preprocessor



def granite_speech(cls, model_type, outer=None, **more):
    encoder = {"num_layers": LAYERS, "hidden_dim": WIDTH, "num_heads": HEADS, "dim_head": 24, "input_dim": 80} | more
    config = {"architectures": [cls], "model_type": model_type, "encoder_config": encoder,
              "projector_config": {"num_attention_heads": HEADS, "encoder_hidden_size": 2 * WIDTH},
              "text_config": {"model_type": "granite", "hidden_size": TEXT}} | (outer or {})
    inner = HEADS * 24
    shapes = both("encoder.input_linear", WIDTH, 80) | both("encoder.out", 32, WIDTH) | both("encoder.out_mid", WIDTH, 32)
    for layer in range(LAYERS):
        p = f"encoder.layers.{layer}."
        for network in ("ff1.", "ff2."):
            shapes |= both(p + network + "pre_norm", WIDTH) | both(p + network + "up_proj", 4 * WIDTH, WIDTH)
            shapes |= both(p + network + "down_proj", WIDTH, 4 * WIDTH)
        shapes |= both(p + "attn.pre_norm", WIDTH) | both(p + "attn.to_out", WIDTH, inner) | both(p + "post_norm", WIDTH)
        shapes |= {p + "attn.to_q.weight": (inner, WIDTH), p + "attn.to_kv.weight": (2 * inner, WIDTH),
                   p + "attn.rel_pos_emb.weight": (41, 24), p + "attn.attention_dists": (8, 8)}
        shapes |= both(p + "conv.norm", WIDTH) | both(p + "conv.up_conv", 4 * WIDTH, WIDTH, 1)
        shapes |= both(p + "conv.down_conv", WIDTH, 2 * WIDTH, 1) | {p + "conv.depth_conv.conv.weight": (2 * WIDTH, 1, 15)}
        norm = p + "conv.batch_norm"
        shapes |= both(norm, 2 * WIDTH) | {f"{norm}.{name}": (2 * WIDTH,) for name in ("running_mean", "running_var")}
        shapes |= {norm + ".num_batches_tracked": ()}
    p = "projector."
    shapes |= {p + "query": (1, 3, TEXT)} | both(p + "qformer.layernorm", TEXT) | both(p + "linear", TEXT, TEXT)
    for layer in range(2):
        q = f"{p}qformer.encoder.layer.{layer}."
        for name in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                columns = TEXT if part == "query" or name == "attention" else WIDTH
                shapes |= both(f"{q}{name}.attention.{part}", TEXT, columns)
            shapes |= both(f"{q}{name}.output.dense", TEXT, TEXT) | both(f"{q}{name}.output.LayerNorm", TEXT)
        shapes |= both(q + "intermediate_query.dense", FFN, TEXT) | both(q + "output_query.dense", TEXT, FFN)
        shapes |= both(q + "output_query.LayerNorm", TEXT)
    return config, shapes | {"language_model.model.norm.weight": (TEXT,)}, {}


def exaone45(**more):
    vision = {"depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": FFN, "num_heads": HEADS, "patch_size": PATCH} | more
    config = {"architectures": ["Exaone4_5_ForConditionalGeneration"], "model_type": "exaone4_5", "vision_config": vision,
              "text_config": {"model_type": "exaone4", "hidden_size": TEXT}, "rms_norm_eps": 1e-5}
    shapes = {"model.visual.patch_embed.proj.weight": (WIDTH, 3, 2, PATCH, PATCH), "model.norm.weight": (TEXT,)}
    shapes |= blocks("model.visual.", lambda p: both(p + "gate_proj", FFN, WIDTH) | both(p + "up_proj", FFN, WIDTH)
                     | both(p + "down_proj", WIDTH, FFN), False)
    for layer in range(LAYERS):
        shapes |= both(f"model.visual.blocks.{layer}.attn.qkv", WIDTH + 2 * WIDTH // HEADS * 2, WIDTH)
    shapes |= merger("model.visual.merger.", "ln_q", "mlp.0", "mlp.2", False)
    return config, shapes, PREPROCESSOR | {"min_pixels": 3136, "max_pixels": 12845056}


def ling3_vl():
    config, shapes, preprocessor = qwen3_vl("BailingMoeV3VLForConditionalGeneration", "bailing_moe_v3_vl", (),
                                            disable_merger_proj=True, spatial_merge_size=2)
    shapes = {name: shape for name, shape in shapes.items() if "merger" not in name and "patch_embed.proj.bias" not in name}
    shapes |= both("model.visual.merger.norm", WIDTH) | both("linear_proj.0", TEXT, 4 * WIDTH) | both("linear_proj.2", TEXT, TEXT)
    return config, shapes, preprocessor


def deepseek4_vision():
    config = {"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "hidden_size": TEXT,
              "vision_n_layers": LAYERS, "vision_dim": WIDTH, "vision_n_heads": HEADS, "vision_inter_dim": FFN,
              "vision_patch_size": PATCH, "vision_downsample_ratio": 3, "vision_min_pixels": 3136,
              "vision_max_n_token": 384, "vision_max_wh_ratio": 8}
    shapes = both("vision.patch_embed.proj", WIDTH, 3 * PATCH * PATCH) | {"vision.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        p = f"vision.blocks.{layer}."
        shapes |= {p + "attn.wqkv.weight": (3 * WIDTH, WIDTH), p + "attn.wo.weight": (WIDTH, WIDTH), p + "norm1.weight": (WIDTH,),
                   p + "norm2.weight": (WIDTH,), p + "mlp.w1.weight": (2 * FFN, WIDTH), p + "mlp.w2.weight": (WIDTH, FFN)}
    shapes |= both("aligner.w1", TEXT, 9 * WIDTH) | both("aligner.w2", TEXT, TEXT)
    shapes |= {name: (TEXT,) for name in ("image_newline", "image_start", "image_end", "image_pad", "norm.weight")}
    return config, shapes, {}


def minimax_m3(**more):
    width = 160
    vision = {"hidden_size": width, "intermediate_size": FFN, "image_size": 56, "num_attention_heads": 2,
              "num_hidden_layers": LAYERS, "patch_size": PATCH} | more
    config = {"architectures": ["MiniMaxM3SparseForConditionalGeneration"], "model_type": "minimax_m3", "vision_config": vision,
              "text_config": {"model_type": "minimax_m3_text", "hidden_size": TEXT}}
    p = "vision_tower.vision_model."
    shapes = {p + "embeddings.patch_embedding.weight": (width, 3, 2, PATCH, PATCH)} | both(p + "pre_layrnorm", width)
    for layer in range(LAYERS):
        q = f"{p}encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= both(f"{q}self_attn.{name}", width, width)
        shapes |= both(q + "layer_norm1", width) | both(q + "layer_norm2", width)
        shapes |= both(q + "mlp.fc1", FFN, width) | both(q + "mlp.fc2", width, FFN)
    shapes |= both("multi_modal_projector.linear_1", TEXT, width) | both("multi_modal_projector.linear_2", TEXT, TEXT)
    shapes |= both("patch_merge_mlp.linear_1", FFN, 4 * TEXT) | both("patch_merge_mlp.linear_2", TEXT, FFN)
    return config, shapes | {"language_model.model.norm.weight": (TEXT,)}, PREPROCESSOR



def step3_vl(cls, **more):
    """The reference takes no other sizes than the real ones, and does not compare them with those of the tensors."""
    vision = {"width": 1536, "layers": 47, "heads": 16, "image_size": 728, "patch_size": PATCH} | more
    config = {"architectures": [cls], "model_type": "step3p7", "vision_config": vision, "understand_projector_stride": 2,
              "text_config": {"model_type": "step3p7_text", "hidden_size": TEXT}}
    p, width = "vision_model.", 32
    shapes = {p + "conv1.weight": (width, 3, PATCH, PATCH), p + "positional_embedding": (9, width)} | both(p + "ln_pre", width)
    for layer in range(47):
        q = f"{p}transformer.resblocks.{layer}."
        shapes |= {q + "attn.in_proj_weight": (3 * width, width), q + "attn.in_proj_bias": (3 * width,)}
        shapes |= {q + "ls_1.gamma": (width,), q + "ls_2.gamma": (width,)}
        shapes |= both(q + "attn.out_proj", width, width) | both(q + "ln_1", width) | both(q + "ln_2", width)
        shapes |= both(q + "mlp.c_fc", 64, width) | both(q + "mlp.c_proj", width, 64)
    shapes |= both(p + "vit_downsampler1", 64, width, 3, 3) | both(p + "vit_downsampler2", 64, 64, 3, 3)
    return config, shapes | {"vit_large_projector.weight": (TEXT, 64), "model.norm.weight": (TEXT,)}, {}


def phi4_vision(prefix="model.vision_tower.vision_tower.", **more):
    vision = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS} | more
    config = {"architectures": ["Phi4ForCausalLMV"], "model_type": "phi4-siglip", "vision_config": vision, "hidden_size": TEXT,
              "min_num_patches": 16, "max_num_patches": 3600}
    shapes = siglip(prefix + "vision_model.", 36) | {prefix + "vision_model.head.probe": (1, 1, WIDTH)}
    shapes[prefix + "vision_model.embeddings.patch_embedding.weight"] = (WIDTH, 3 * PATCH * PATCH)
    shapes |= both("model.mm_projector.0", TEXT, WIDTH) | both("model.mm_projector.2", TEXT, TEXT)
    return config, shapes | {"model.norm.weight": (TEXT,)}, PREPROCESSOR | {"patch_size": PATCH, "max_num_patches": 1024}



def omni(cls, model_type, vision, shapes, audio, matrices):
    """`shapes` are those of a VL model's encoder, `matrices` and convolutions those of an encoder of audio. The reference
    knows as many numbers of convolutions as there are layers."""
    layers = LAYERS + 1
    audio = OWN_WHISPER | {"encoder_layers": layers} | audio
    thinker = {"model_type": model_type + "_thinker", "vision_config": vision, "audio_config": audio,
               "text_config": {"model_type": model_type + "_text", "hidden_size": TEXT, "rms_norm_eps": 1e-5}}
    config = {"architectures": [cls], "model_type": model_type, "thinker_config": thinker}
    encoder = {name.replace("layer_norm.", "ln_post.") if name.count(".") == 3 else name: shape
               for name, shape in whisper("thinker.audio_tower.", layers).items() if "embed_positions" not in name}
    if "conv2d1.weight" in matrices:
        encoder = {name: shape for name, shape in encoder.items() if ".conv" not in name}
    shapes = encoder | {name: shape for name, shape in shapes.items() if "visual." in name}
    shapes |= {"thinker.audio_tower." + name: shape for name, shape in matrices.items()}
    return config, shapes | {"thinker.model.norm.weight": (TEXT,), "talker.model.norm.weight": (TEXT,)}, PREPROCESSOR


def qwen25_omni():
    config, shapes, _ = qwen25_vl()
    shapes = {"thinker." + name: shape for name, shape in shapes.items()}
    vision = config["vision_config"] | {"model_type": "qwen2_5_omni_vision_encoder"}
    matrices = both("proj", TEXT, WIDTH) | {"audio_bos_eos_token.weight": (2, TEXT)}
    return omni("Qwen2_5OmniModel", "qwen2_5_omni", vision, shapes, {"model_type": "qwen2_5_omni_audio_encoder"}, matrices)


PICTURES = both("conv2d1", 8, 1, 3, 3) | both("conv2d2", 8, 8, 3, 3) | both("conv2d3", 8, 8, 3, 3) \
    | {"conv_out.weight": (WIDTH, 80)} | both("proj1", WIDTH, WIDTH) | both("proj2", TEXT, WIDTH)


def qwen3_omni():
    """The reference does not know the names with thinker. before them that the checkpoints have."""
    config, old, _ = qwen3_vl()
    vision = config["vision_config"] | {"model_type": "qwen3_omni_moe_vision_encoder"}
    shapes = {}
    for name, shape in old.items():
        if "merger" in name:
            name = name.replace("deepstack_merger_list", "merger_list").replace(".norm.", ".ln_q.")
            name = name.replace("linear_fc1", "mlp.0").replace("linear_fc2", "mlp.2")
        shapes[name] = shape
    return omni("Qwen3OmniMoeForConditionalGeneration", "qwen3_omni_moe", vision, shapes,
                {"model_type": "qwen3_omni_moe_audio_encoder"}, PICTURES)


def qwen3_asr():
    config, shapes, _ = omni("Qwen3ASRForConditionalGeneration", "qwen3_asr", {}, {}, {"layer_norm_eps": 1e-6}, PICTURES)
    del config["thinker_config"]["vision_config"]
    return config, shapes, {}



def sam():
    p, shapes = "model.sam_model.", {}
    shapes |= {p + "pos_embed": (1, 4, 4, WIDTH)} | both(p + "patch_embed.proj", WIDTH, 3, 16, 16)
    for layer in range(LAYERS - 1):
        q = f"{p}blocks.{layer}."
        shapes |= both(q + "norm1", WIDTH) | both(q + "norm2", WIDTH) | both(q + "attn.qkv", 3 * WIDTH, WIDTH)
        shapes |= both(q + "attn.proj", WIDTH, WIDTH) | both(q + "mlp.lin1", FFN, WIDTH) | both(q + "mlp.lin2", WIDTH, FFN)
        shapes |= {f"{q}attn.rel_pos_{axis}": (7, WIDTH // HEADS) for axis in "hw"}
    shapes |= {p + "neck.0.weight": (32, WIDTH, 1, 1), p + "neck.2.weight": (32, 32, 3, 3)}
    shapes |= both(p + "neck.1", 32) | both(p + "neck.3", 32)
    return shapes | {p + "net_2.weight": (48, 32, 3, 3), p + "net_3.weight": (WIDTH, 48, 3, 3)}


def deepseek_ocr(cls, fields, shapes, **more):
    width = {"sam_vit_b": {"heads": HEADS, "layers": LAYERS - 1, "width": WIDTH}} | fields
    config = {"architectures": [cls], "model_type": "deepseek_vl_v2", "vision_config": {"width": width} | more,
              "language_config": {"model_type": "deepseek_v2", "hidden_size": TEXT}}
    shapes = sam() | shapes | both("model.projector.layers", TEXT, 2 * WIDTH)
    shapes |= {"model.image_newline": (TEXT,), "model.view_seperator": (TEXT,), "model.norm.weight": (TEXT,)}
    return config, shapes, PREPROCESSOR


def deepseek_ocr1(cls, **more):
    """The reference knows as many numbers of SAM's necks as there are layers."""
    p, shapes = "model.vision_model.", {}
    shapes |= {p + "embeddings.class_embedding": (WIDTH,), p + "embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
               p + "embeddings.position_embedding.weight": (17, WIDTH)} | both(p + "pre_layrnorm", WIDTH)
    for layer in range(LAYERS + 1):
        q = f"{p}transformer.layers.{layer}."
        shapes |= both(q + "self_attn.qkv_proj", 3 * WIDTH, WIDTH) | both(q + "self_attn.out_proj", WIDTH, WIDTH)
        shapes |= both(q + "layer_norm1", WIDTH) | both(q + "layer_norm2", WIDTH)
        shapes |= both(q + "mlp.fc1", FFN, WIDTH) | both(q + "mlp.fc2", WIDTH, FFN)
    clip = {"heads": HEADS, "image_size": 224, "layers": LAYERS + 1, "patch_size": PATCH, "width": WIDTH}
    return deepseek_ocr(cls, {"clip-l-14-224": clip}, shapes, **more)


def deepseek_ocr2():
    p, shapes = "model.qwen2_model.", {}
    for layer in range(LAYERS + 1):
        q = f"{p}model.model.layers.{layer}."
        for name, rows in (("q_proj", WIDTH), ("k_proj", 16), ("v_proj", 16)):
            shapes |= both(f"{q}self_attn.{name}", rows, WIDTH)
        shapes |= {q + "self_attn.o_proj.weight": (WIDTH, WIDTH), q + "input_layernorm.weight": (WIDTH,),
                   q + "post_attention_layernorm.weight": (WIDTH,), q + "mlp.gate_proj.weight": (4864, WIDTH),
                   q + "mlp.up_proj.weight": (4864, WIDTH), q + "mlp.down_proj.weight": (WIDTH, 4864)}
    shapes |= {p + "model.model.norm.weight": (WIDTH,), p + "query_768.weight": (9, WIDTH), p + "query_1024.weight": (16, WIDTH)}
    return deepseek_ocr("DeepseekOCR2ForCausalLM", {"qwen2-0-5b": {"dim": WIDTH}}, shapes, image_size=1024, layers=LAYERS + 1)



def granite4_vision(layers=4, **outer):
    """The reference knows as many numbers of projectors as there are layers."""
    vision = {"model_type": "siglip_vision_model", "hidden_size": WIDTH, "intermediate_size": FFN, "image_size": 56,
              "num_attention_heads": HEADS, "num_hidden_layers": layers, "patch_size": PATCH}
    config = {"architectures": ["Granite4VisionForConditionalGeneration"], "model_type": "granite4_vision",
              "vision_config": vision, "downsample_rate": "4/8", "spatial_target_layers": [5, 1],
              "deepstack_layer_map": [[-1, 0], [-3, -2]],
              "text_config": {"model_type": "granite", "hidden_size": TEXT, "num_hidden_layers": 5}} | outer
    shapes = siglip("model.vision_tower.vision_model.", 16, layers) | {"model.image_newline": (TEXT,)}
    shapes |= {"lm_head.weight": (32, TEXT), "model.vision_tower.vision_model.head.probe": (1, 1, WIDTH)}
    for kind in ("layerwise", "spatial"):
        for number in range(2):
            p = f"model.{kind}_projectors.{number}."
            shapes |= {p + "image_positions": (1, 64, WIDTH), p + "query": (1, 16, WIDTH)} | both(p + "norm", WIDTH)
            shapes |= both(p + "out_linear", TEXT, WIDTH) | both(p + "qformer.layernorm", WIDTH)
            q = p + "qformer.encoder.layer.0."
            for name in ("attention", "crossattention"):
                for part in ("query", "key", "value"):
                    shapes |= both(f"{q}{name}.attention.{part}", WIDTH, WIDTH)
                shapes |= both(f"{q}{name}.output.dense", WIDTH, WIDTH) | both(f"{q}{name}.output.LayerNorm", WIDTH)
            shapes |= both(q + "intermediate_query.dense", FFN, WIDTH) | both(q + "output_query.dense", WIDTH, FFN)
            shapes |= both(q + "output_query.LayerNorm", WIDTH)
    return config, shapes | {"model.language_model.norm.weight": (TEXT,)}, PREPROCESSOR



TOKENIZER = {"added_tokens": [{"id": 1, "content": "<s>"}, {"id": 12, "content": "[IMG_BREAK]"}],
             "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}

PROJECTORS = {
    "gemma3": (gemma3, torch.bfloat16),
    "gemma3-tiny": (lambda: gemma3(112, image_seq_length=16), torch.float16),
    "pixtral": (pixtral, torch.bfloat16),
    "mistral3": (lambda: pixtral("Mistral3ForConditionalGeneration", "mistral3", True, hidden_act="gelu"), torch.float16),
    "smolvlm": (lambda: smolvlm("SmolVLMForConditionalGeneration", "smolvlm", {"size": {"longest_edge": 112}}, scale_factor=4),
                torch.bfloat16),
    "idefics3": (lambda: smolvlm("Idefics3ForConditionalGeneration", "idefics3", {}), torch.float32),
    "qwen2-vl": (qwen2_vl, torch.bfloat16),
    "qwen25-vl": (qwen25_vl, torch.bfloat16),
    "qwen3-vl": (qwen3_vl, torch.bfloat16),
    "qwen3-vl-f32": (lambda: qwen3_vl(image_size=224, spatial_merge_size=2), torch.float32),
    "qwen35": (lambda: qwen3_vl("Qwen3_5ForConditionalGeneration", "qwen3_5", ()), torch.bfloat16),
    "gemma4": (lambda: gemma4(True, False), torch.bfloat16),
    "gemma4-f16": (lambda: gemma4(True, True), torch.float16),
    "gemma4-vision": (lambda: gemma4(False, True, layer_norm_eps=1e-5), torch.bfloat16),
    "gemma4-unified": (gemma4_unified, torch.bfloat16),
    "gemma4-unified-f16": (lambda: gemma4_unified(model_patch_size=8), torch.float16),
    "internvl": (internvl, torch.bfloat16),
    "internvl-6b": (lambda: internvl(False, True, hidden_act="silu", outer={"min_dynamic_patch": 1, "max_dynamic_patch": 12}),
                    torch.float16),
    "intern-s1": (intern_s1, torch.float32),
    "lfm2-vl": (lambda: lfm2_vl(layer_norm_eps=1e-6, outer={"downsample_factor": 3, "vision_feature_layer": -2}), torch.bfloat16),
    "lfm2-vl-hf": (lambda: lfm2_vl("lfm2_vl", "model.", False), torch.float16),
    "glm4v": (lambda: glm4v("Glm4vForConditionalGeneration", "glm4v"), torch.bfloat16),
    "glm4v-moe": (lambda: glm4v("Glm4vMoeForConditionalGeneration", "glm4v_moe", hidden_act="GELU", rms_norm_eps=1e-6),
                  torch.float16),
    "glm-ocr": (lambda: glm4v("GlmOcrForConditionalGeneration", "glm_ocr", True, False, hidden_act="silu"), torch.bfloat16),
    "glm5v": (lambda: glm4v("Glm5NextForConditionalGeneration", "glm5_next", True, False,
                            {"min_image_tokens": 4, "max_image_tokens": 64}, hidden_act="silu", swiglu_limit=7.0),
              torch.bfloat16),
    "kimi-vl": (kimi_vl, torch.bfloat16),
    "kimi-k25": (lambda: kimi_k25("KimiK25ForConditionalGeneration", ("mm_projector.proj.0", "mm_projector.proj.2")),
                 torch.bfloat16),
    "glm5-vision": (lambda: kimi_k25("Glm5vForConditionalGeneration", ("mm_projector.linear_1", "mm_projector.linear_2"),
                                     {"media_proc_cfg": {"in_patch_limit": 4096}}, num_attention_heads=8,
                                     projector_hidden_act="relu", projector_ln_eps=1e-6, init_pos_emb_height=6,
                                     init_pos_emb_width=4, init_pos_emb_time=2, merge_kernel_size=[4, 4]), torch.float16),
    "muse-glimmer": (muse_glimmer, torch.bfloat16),
    "muse-glimmer-f16": (lambda: muse_glimmer(False), torch.float16),
    "llama4": (llama4, torch.bfloat16),
    "llama4-f16": (lambda: llama4(norm_eps=1e-6, pixel_shuffle_ratio=0.25), torch.float16),
    "voxtral": (lambda: hearing("VoxtralForConditionalGeneration", "voxtral", OTHER_WHISPER,
                                {"multi_modal_projector.linear_1.weight": (TEXT, 4 * WIDTH),
                                 "multi_modal_projector.linear_2.weight": (TEXT, TEXT)}), torch.bfloat16),
    "ultravox": (lambda: hearing("UltravoxModel", "ultravox", OWN_WHISPER | {"layer_norm_eps": 1e-6},
                                 {"multi_modal_projector.linear_1.weight": (2 * FFN, 8 * WIDTH),
                                  "multi_modal_projector.linear_2.weight": (TEXT, FFN),
                                  "multi_modal_projector.ln_pre.weight": (8 * WIDTH,),
                                  "multi_modal_projector.ln_mid.weight": (FFN,)}, stack_factor=8), torch.float16),
    "qwen2-audio": (lambda: hearing("Qwen2AudioForConditionalGeneration", "qwen2_audio", OWN_WHISPER,
                                    both("multi_modal_projector.linear", TEXT, WIDTH)), torch.bfloat16),
    "audio-flamingo3": (lambda: hearing("AudioFlamingo3ForConditionalGeneration", "audioflamingo3", OTHER_WHISPER,
                                        both("multi_modal_projector.linear_1", TEXT, WIDTH)
                                        | both("multi_modal_projector.linear_2", TEXT, TEXT)), torch.bfloat16),
    "meralion": (meralion, torch.bfloat16),
    "glm-asr": (glm_asr, torch.bfloat16),
    "lfm2-audio": (lfm2_audio, torch.bfloat16),
    "lfm2-audio-f16": (lfm2_audio, torch.float16),
    "cogvlm": (cogvlm, torch.bfloat16),
    "cogvlm2": (lambda: cogvlm(layer_norm_eps=1e-5), torch.float16),
    "dots-ocr": (dots_ocr, torch.bfloat16),
    "hunyuan-vl": (hunyuan_vl, torch.bfloat16),
    "hunyuan-vl-f16": (lambda: hunyuan_vl(max_image_size=1024, rms_norm_eps=1e-6, spatial_merge_size=3), torch.float16),
    "janus-pro": (janus, torch.bfloat16),
    "janus-pro-silu": (lambda: janus(hidden_act="SiLU", layer_norm_eps=1e-5), torch.float16),
    "youtu-vl": (youtu_vl, torch.bfloat16),
    "youtu-vl-silu": (lambda: youtu_vl(hidden_act="silu", spatial_merge_size=4, layer_norm_eps=1e-5), torch.float16),
    "minicpm-v": (lambda: minicpm_v({"scale_resolution": 112}, {"insert_layer_id": 1}), torch.bfloat16),
    "minicpm-v-4x": (lambda: minicpm_v({"downsample_mode": "4x"}, None, insert_layer_id=2, layer_norm_eps=1e-5), torch.float16),
    "paddleocr-vl": (paddleocr_vl, torch.bfloat16),
    "paddleocr-vl-f16": (lambda: paddleocr_vl(rms_norm_eps=1e-5), torch.float16),
    "lighton-ocr": (lighton_ocr, torch.bfloat16),
    "sarashina2": (sarashina2, torch.bfloat16),
    "qwen4-exp": (lambda: qwen3_vl("Qwen4ExpForConditionalGeneration", "qwen4_exp", (1,)), torch.float16),
    "granite-speech": (lambda: granite_speech("GraniteSpeechForConditionalGeneration", "granite_speech"), torch.bfloat16),
    "granite-speech-plus": (lambda: granite_speech(
        "GraniteSpeechPlusForConditionalGeneration", "granite_speech_plus", {"window_size": 12, "downsample_rate": 4},
        feedforward_mult=4, context_size=100, conv_kernel_size=15, max_pos_emb=64, cat_hidden_layers=[1]), torch.float16),
    "exaone45": (exaone45, torch.bfloat16),
    "exaone45-windows": (lambda: exaone45(rms_norm_eps=1e-6, num_key_value_heads=2, window_size=112,
                                          fullatt_block_indexes=[0, 1]), torch.float16),
    "ling3-vl": (ling3_vl, torch.bfloat16),
    "deepseek4-vision": (deepseek4_vision, torch.bfloat16),
    "minimax-m3": (minimax_m3, torch.bfloat16),
    "minimax-m3-f16": (lambda: minimax_m3(layer_norm_eps=1e-6, img_token_compression_config={"spatial_merge_size": 3}),
                       torch.float16),
    "step3-vl": (lambda: step3_vl("StepVLForConditionalGeneration"), torch.bfloat16),
    "step3p7": (lambda: step3_vl("Step3p7ForConditionalGeneration", mlp_ratio=4.0, layer_norm_eps=1e-6), torch.float16),
    "phi4-vision": (phi4_vision, torch.bfloat16),
    "phi4-vision-f16": (lambda: phi4_vision("vision_tower.", layer_norm_eps=1e-5), torch.float16),
    "qwen25-omni": (qwen25_omni, torch.bfloat16),
    "qwen3-omni": (qwen3_omni, torch.bfloat16),
    "qwen3-asr": (qwen3_asr, torch.float16),
    "deepseek-ocr": (lambda: deepseek_ocr1("DeepseekOCRForCausalLM"), torch.bfloat16),
    "unlimited-ocr": (lambda: deepseek_ocr1("UnlimitedOCRForCausalLM", layer_norm_eps=1e-5, window_size=7), torch.float16),
    "deepseek-ocr2": (deepseek_ocr2, torch.bfloat16),
    "granite4-vision": (lambda: granite4_vision(image_grid_pinpoints=[[56, 112], [112, 56]]), torch.bfloat16),
    "granite4-vision-f16": (lambda: granite4_vision(spatial_vision_layer=1), torch.float16),
    "gemma3n": (late.gemma3n, torch.bfloat16),
    "gemma3n-f16": (lambda: late.gemma3n({"size": {"height": 256, "width": 256}, "image_seq_length": 16}, True,
                                         layer_norm_eps=1e-5, intermediate_size=24, num_attention_heads=2), torch.float16),
    "nemotron-nano-vl": (lambda: late.nemotron_nano_vl(7, False, force_image_size=16), torch.bfloat16),
    "nemotron-nano-vl-audio": (lambda: late.nemotron_nano_vl(3, True, PREPROCESSOR, force_image_size=20, downsample_ratio=0.25),
                               torch.float16),
    "nemotron-nano-vl-f32": (lambda: late.nemotron_nano_vl(5, False, force_image_size=20), torch.float32),
    "mimo-v2": (lambda: late.mimo_v2(vit_window_attn_types=[-1, 0, 1]), torch.bfloat16),
    "mimo-v2-mixed": (lambda: late.mimo_v2(None, {"hybrid_attention": True, "swa_per_block": 3, "layer_norm_eps": 1e-6},
                                           (9,) * 11, "F16", rms_norm_eps=1e-5, image_size=280), torch.float16),
    "dots3-note": (lambda: late.dots3_note("Dots3NoteForCausalLM", [0, 3, 12, 0, 2]), torch.bfloat16),
    "dots3-note-f16": (lambda: late.dots3_note("Dots3NoteForConditionalGeneration", [2, -1, 4], True, capacity_factor=3,
                                               router_scale=1.0, use_bias=False), torch.float16),
    "qwen3-tts": (late.qwen3_tts, torch.bfloat16),
    "qwen3-tts-f16": (lambda: late.qwen3_tts(2, True), torch.float16),
    "pocket-tts": (late.pocket_tts, torch.bfloat16),
    "pocket-tts-f32": (lambda: late.pocket_tts(False, 3, 4), torch.float32),
}


# Types of tensors that have another than the checkpoint.
TYPES = {"F32": torch.float32}


def weights(name, shape, dtype):
    """Weights of a name: variances are positive."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    w = tensor(name, shape, dtype)
    if name.endswith("running_var"):
        # Without the few numbers whose root torch (MKL) does not round to nearest.
        w = w.abs() + 0.01
        exact = (w.float() + 1e-5).double().sqrt().float()
        w[torch.sqrt(w.float() + 1e-5) != exact] = 1.0
    if name.endswith((".alpha", ".beta")):
        # The same for exponentials.
        w[w.float().exp() != w.double().exp().float()] = 0.0
    return w


def make(out, name):
    maker, dtype = PROJECTORS[name]
    config, shapes, preprocessor, *beside = maker()
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    # Parts of the model in checkpoints of their own: config, shapes, and types of tensors that have another.
    for part, (fields, own, types) in (beside[0] if beside else {}).items():
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(fields, indent=2))
        tensors = {n: weights(n, shape, TYPES.get(types.get(n), dtype)) for n, shape in own.items()}
        save_file(tensors, folder / part / "model.safetensors", {"format": "pt"})
    if config:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    if "model.embed_tokens.weight" in shapes:
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (folder / "tokenizer_config.json").write_text("{}")
    save_file({n: weights(n, shape, dtype) for n, shape in shapes.items()}, folder / "model.safetensors", {"format": "pt"})


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(PROJECTORS))
        return
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for name in sys.argv[2:] or PROJECTORS:
        make(Path(sys.argv[1]), name)


if __name__ == "__main__":
    main()
