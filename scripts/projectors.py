#!/usr/bin/env python3
"""Makes tiny checkpoints of vision models: config.json, preprocessor_config.json and seeded random weights of the encoder
of images and its projector, with one tensor of the text model.

    scripts/projectors.py OUT [NAME ...]     all of them, or those named
    scripts/projectors.py --list

Needs torch and safetensors. Equal versions of this script make equal files.
"""

import json
import sys
from pathlib import Path

import torch
from checkpoints import tensor
from safetensors.torch import save_file

# Lengths of the encoder, its network, the text model; patches; layers; heads.
WIDTH, FFN, TEXT, PATCH, LAYERS, HEADS = 64, 96, 128, 14, 3, 4
PREPROCESSOR = {"image_mean": [0.5, 0.48, 0.4], "image_std": [0.26862954, 0.5, 0.25]}


def both(name, *shape):
    """A matrix and its bias."""
    return {name + ".weight": shape, name + ".bias": shape[:1]}


def siglip(prefix, patches):
    shapes = both(prefix + "embeddings.patch_embedding", WIDTH, 3, PATCH, PATCH)
    shapes |= {prefix + "embeddings.position_embedding.weight": (patches, WIDTH)}
    for layer in range(LAYERS):
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
}


def make(out, name):
    maker, dtype = PROJECTORS[name]
    config, shapes, preprocessor = maker()
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    if "model.embed_tokens.weight" in shapes:
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (folder / "tokenizer_config.json").write_text("{}")
    save_file({n: tensor(n, shape, dtype) for n, shape in shapes.items()}, folder / "model.safetensors", {"format": "pt"})


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
