"""Tiny checkpoints of models that see or hear in ways of their own: MobileNet, experts in the encoder, encoders in files
of their own. scripts/projectors.py makes files of them."""

from encoders import FFN, HEADS, LAYERS, PATCH, PREPROCESSOR, TEXT, WIDTH, both, subsampling


def gemma3n(preprocessor=None, key_scale=False, **more):
    vision = {"model_type": "gemma3n_vision", "architecture": "mobilenetv5_300m_enc", "hidden_size": WIDTH} | more
    audio = {"model_type": "gemma3n_audio", "hidden_size": WIDTH, "conf_num_hidden_layers": 2, "conf_num_attention_heads": HEADS,
             "input_feat_size": 80} | ({"intermediate_size": 4 * WIDTH} if more else {})
    config = {"architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n", "vision_config": vision,
              "audio_config": audio, "text_config": {"model_type": "gemma3n_text", "hidden_size": TEXT}}
    tower = "model.vision_tower.timm_model."
    shapes = {tower + "conv_stem.conv.weight": (16, 3, 3, 3), tower + "conv_stem.conv.bias": (16,),
              tower + "conv_stem.bn.weight": (16,)}
    # Edge residuals, inverted residuals with all parts and without the first, attention with and without smaller pictures.
    kinds = {"0.0": {"conv_exp": (32, 16, 3, 3), "bn1": (32,), "conv_pwl": (16, 32, 1, 1), "bn2": (16,)},
             "1.0": {"dw_start.conv": (16, 1, 5, 5), "dw_start.bn": (16,), "pw_exp.conv": (64, 16, 1, 1), "pw_exp.bn": (64,),
                     "dw_mid.conv": (64, 1, 3, 3), "dw_mid.bn": (64,), "pw_proj.conv": (32, 64, 1, 1), "pw_proj.bn": (32,)},
             "2.10": {"pw_exp.conv": (64, 32, 1, 1), "pw_exp.bn": (64,), "pw_proj.conv": (32, 64, 1, 1), "pw_proj.bn": (32,)},
             "3.1": {"norm": (32,), "attn.query.proj": (32, 32, 1, 1), "attn.key.proj": (8, 32, 1, 1),
                     "attn.value.proj": (8, 32, 1, 1), "attn.output.proj": (32, 32, 1, 1)}}
    kinds["3.1"] |= {"attn.key.down_conv": (32, 1, 3, 3), "attn.key.norm": (32,), "attn.value.down_conv": (32, 1, 3, 3),
                     "attn.value.norm": (32,)}
    for block, tensors in kinds.items():
        shapes |= {f"{tower}blocks.{block}.{name}.weight": shape for name, shape in tensors.items()}
    shapes |= {f"{tower}blocks.{block}.layer_scale.gamma": (32,) for block in ("1.0", "3.1")}
    fusion = tower + "msfa."
    shapes |= {fusion + "ffn.pw_exp.conv.weight": (64, 64, 1, 1), fusion + "ffn.pw_exp.bn.weight": (64,),
               fusion + "ffn.pw_proj.conv.weight": (64, 64, 1, 1), fusion + "ffn.pw_proj.bn.weight": (64,),
               fusion + "norm.weight": (64,)}
    for name in ("vision", "audio"):
        embed = f"model.embed_{name}."
        shapes |= {embed + "embedding.weight": (128, WIDTH), embed + "hard_embedding_norm.weight": (WIDTH,),
                   embed + "soft_embedding_norm.weight": (WIDTH,), embed + "embedding_projection.weight": (TEXT, WIDTH)}
    tower = "model.audio_tower."
    for number, shape in ((0, (8, 1, 3, 3)), (1, (4, 8, 3, 3))):
        p = f"{tower}subsample_conv_projection.conv_{number}."
        shapes |= {p + "conv.weight": shape, p + "norm.weight": shape[:1]}
    shapes |= {tower + "subsample_conv_projection.input_proj_linear.weight": (WIDTH, 80)}
    for layer in range(2):
        p = f"{tower}conformer.{layer}."
        for network in ("ffw_layer_start.", "ffw_layer_end."):
            shapes |= {p + network + "ffw_layer_1.weight": (4 * WIDTH, WIDTH), p + network + "ffw_layer_2.weight": (WIDTH, 4 * WIDTH)}
            shapes |= {f"{p}{network}{end}_layer_norm.weight": (WIDTH,) for end in ("pre", "post")}
        shapes |= {f"{p}attention.attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkv"}
        shapes |= {p + "attention.attn.per_dim_scale": (WIDTH // HEADS,), p + "attention.post.weight": (WIDTH, WIDTH),
                   p + "attention.attn.relative_position_embedding.pos_proj.weight": (WIDTH, WIDTH),
                   p + "attention.pre_attn_norm.weight": (WIDTH,), p + "attention.post_norm.weight": (WIDTH,),
                   p + "lconv1d.pre_layer_norm.weight": (WIDTH,), p + "lconv1d.linear_start.weight": (2 * WIDTH, WIDTH),
                   p + "lconv1d.depthwise_conv1d.weight": (WIDTH, 1, 5), p + "lconv1d.conv_norm.weight": (WIDTH,),
                   p + "lconv1d.linear_end.weight": (WIDTH, WIDTH), p + "norm.weight": (WIDTH,)}
        if key_scale:
            shapes |= {p + "attention.attn.per_dim_key_scale": (WIDTH // HEADS,)}
    return config, shapes | {"model.language_model.norm.weight": (TEXT,)}, PREPROCESSOR | (preprocessor or {})


def nemotron_nano_vl(side, hears, preprocessor=None, **outer):
    """The width of the encoder and its number of layers are the reference's constants; its layers can be narrower."""
    width, layers, patch = 1280, 32, 4
    vision = {"architectures": ["RADIOModel"], "model_type": "", "patch_size": patch}
    config = {"architectures": ["NemotronH_Nano_VL_V2"], "model_type": "NemotronH_Nano_VL_V2", "vision_config": vision,
              "llm_config": {"model_type": "nemotron_h", "hidden_size": TEXT}} | outer
    generator = "vision_model.radio_model.model.patch_generator."
    shapes = {generator + "cls_token.token": (10, width), generator + "embedder.weight": (width, 3 * patch * patch),
              generator + "pos_embed": (1, side * side, width), generator + "video_embedder.weight": (width, 96),
              "vision_model.radio_model.input_conditioner.norm_mean": (3, 1, 1)}
    for layer in range(layers):
        p = f"vision_model.radio_model.model.blocks.{layer}."
        shapes |= both(p + "attn.qkv", 96, 32) | both(p + "attn.proj", 32, 32) | both(p + "norm1", 32) | both(p + "norm2", 32)
        shapes |= both(p + "mlp.fc1", 64, 32) | both(p + "mlp.fc2", 32, 64)
    shapes |= {"mlp1.0.weight": (128,), "mlp1.1.weight": (FFN, 128), "mlp1.3.weight": (TEXT, FFN),
               "language_model.backbone.norm.weight": (TEXT,)}
    if hears:
        config["sound_config"] = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
                                  "num_attention_heads": HEADS, "num_mel_bins": 80, "subsampling_factor": 8, "conv_kernel_size": 9}
        shapes |= parakeet()
    return config, shapes, preprocessor or {"norm_mean": [0.5, 0.5, 0.5]}


def parakeet():
    encoder = "sound_encoder.encoder."
    shapes = subsampling(encoder + "subsampling.layers.") | both(encoder + "subsampling.linear", WIDTH, 80)
    shapes |= {encoder + "feature_extractor.featurizer.fb": (1, 80, 65), encoder + "feature_extractor.featurizer.window": (100,)}
    for layer in range(LAYERS):
        p = f"{encoder}layers.{layer}."
        for number in (1, 2):
            shapes |= {f"{p}feed_forward{number}.linear1.weight": (FFN, WIDTH), f"{p}feed_forward{number}.linear2.weight": (WIDTH, FFN)}
            shapes |= both(f"{p}norm_feed_forward{number}", WIDTH)
        shapes |= {f"{p}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "o", "relative_k")}
        shapes |= {f"{p}self_attn.bias_{name}": (HEADS, WIDTH // HEADS) for name in "uv"}
        shapes |= both(p + "norm_self_att", WIDTH) | both(p + "norm_conv", WIDTH) | both(p + "norm_out", WIDTH)
        shapes |= both(p + "conv.depthwise_conv", WIDTH, 1, 9) | both(p + "conv.norm", WIDTH)
        shapes |= both(p + "conv.pointwise_conv1", 2 * WIDTH, WIDTH, 1) | both(p + "conv.pointwise_conv2", WIDTH, WIDTH, 1)
        shapes |= {f"{p}conv.norm.{name}": (WIDTH,) for name in ("running_mean", "running_var")}
        shapes |= {p + "conv.norm.num_batches_tracked": ()}
    projection = "sound_projection."
    return shapes | {projection + "norm.weight": (WIDTH,), projection + "linear1.weight": (FFN, WIDTH),
                     projection + "linear2.weight": (TEXT, FFN)}


def mimo_v2(outer=None, tokenizer=None, books=(16, 8, 5), codebook="F32", **more):
    """The encoder of audio is in a directory of its own; its codebooks may have another type than the other tensors."""
    vision = {"depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": FFN, "num_heads": HEADS, "patch_size": PATCH,
              "num_key_value_heads": 2, "qk_channels": 24, "spatial_merge_size": 2, "visual_token_window_size": 64} | more
    audio = {"audio_channels": len(books), "input_local_layers": 2, "group_size": 4}
    config = {"architectures": ["MiMoV2ForCausalLM"], "model_type": "mimo_v2", "hidden_size": TEXT, "vision_config": vision,
              "audio_config": audio} | (outer or {})
    heads, keys = HEADS * 24, 2 * 24
    shapes = {"visual.patch_embed.proj.weight": (WIDTH, 3, 2, PATCH, PATCH), "model.norm.weight": (TEXT,)}
    for layer in range(LAYERS):
        p = f"visual.blocks.{layer}."
        shapes |= both(p + "attn.qkv", heads + 2 * keys, WIDTH) | both(p + "attn.proj", WIDTH, heads)
        shapes |= both(p + "mlp.gate_proj", FFN, WIDTH) | both(p + "mlp.up_proj", FFN, WIDTH) | both(p + "mlp.down_proj", WIDTH, FFN)
        shapes |= {p + "norm1.weight": (WIDTH,), p + "norm2.weight": (WIDTH,)}
        if layer != 1:
            shapes |= {p + "attn.sinks": (HEADS,)}
    shapes |= {"visual.merger.ln_q.weight": (WIDTH,)} | both("visual.merger.mlp.0", 4 * WIDTH, 4 * WIDTH)
    shapes |= both("visual.merger.mlp.2", TEXT, 4 * WIDTH)
    shapes |= {f"speech_embeddings.{number}.weight": (20, 40) for number in range(len(books))}
    for layer in range(2):
        p = f"audio_encoder.input_local_transformer.layers.{layer}."
        for name in "qkv":
            shapes |= both(f"{p}self_attn.{name}_proj", 40, 40)
        shapes |= {p + "self_attn.o_proj.weight": (40, 40), p + "mlp.gate_proj.weight": (48, 40), p + "mlp.up_proj.weight": (48, 40),
                   p + "mlp.down_proj.weight": (40, 48), p + "input_layernorm.weight": (40,),
                   p + "post_attention_layernorm.weight": (40,)}
    shapes |= {"audio_encoder.input_local_transformer.norm.weight": (40,), "audio_encoder.projection.mlp.0.weight": (FFN, 160),
               "audio_encoder.projection.mlp.2.weight": (TEXT, FFN)}
    encoder = {"d_model": WIDTH, "encoder_ffn_dim": FFN, "encoder_layers": 4, "encoder_attention_heads": HEADS, "n_mels": 80,
               "encoder_attn_window_size": [32, 0]} | (tokenizer or {})
    own = both("encoder.conv1", WIDTH, 80, 3) | both("encoder.conv2", WIDTH, WIDTH, 3) | both("encoder.layer_norm", WIDTH)
    own |= {"encoder.down_sample_layer.0.weight": (WIDTH, WIDTH, 2), "decoder.norm.weight": (WIDTH,)}
    own |= both("encoder.down_sample_norm", WIDTH)
    for layer in range(4):
        p = f"encoder.layers.{layer}."
        own |= {p + "self_attn.k_proj.weight": (WIDTH, WIDTH)}
        for name in ("q_proj", "v_proj", "out_proj"):
            own |= both(f"{p}self_attn.{name}", WIDTH, WIDTH)
        own |= both(p + "self_attn_layer_norm", WIDTH) | both(p + "final_layer_norm", WIDTH)
        own |= both(p + "fc1", FFN, WIDTH) | both(p + "fc2", WIDTH, FFN)
    types = {}
    for number, entries in enumerate(books):
        p = f"encoder.quantizer.vq.layers.{number}._codebook."
        own |= {p + "embed": (entries, WIDTH), p + "embed_avg": (entries, WIDTH), p + "cluster_size": (entries,), p + "inited": (1,)}
        types[p + "embed"] = codebook
    preprocessor = PREPROCESSOR | {"min_pixels": 3136, "max_pixels": 12845056}
    return config, shapes, preprocessor, {"audio_tokenizer": (encoder, own, types)}


def dots3_note(cls, numbers, biases=False, **more):
    """Experts in some layers of the encoder of images, by the numbers of the layers."""
    vision = {"embed_dim": WIDTH, "hidden_size": TEXT, "intermediate_size": FFN, "num_hidden_layers": len(numbers),
              "num_attention_heads": HEADS, "patch_size": PATCH, "pyramid_num_routed": numbers, "capacity_factor": 2.0,
              "adapter_type": "patch_merger", "pre_pixel_shuffle": True, "use_qk_norm": True, "rms_norm_eps": 1e-5,
              "spatial_merge_size": 2} | more
    whisper = {"d_model": WIDTH, "encoder_ffn_dim": FFN, "encoder_layers": LAYERS, "encoder_attention_heads": HEADS,
               "num_mel_bins": 80, "activation_function": "swiglu"}
    audio = {"use_conv2d_stem": True, "use_rope": True, "use_rms_norm": True, "chunk_seconds": 60, "whisper_config": whisper,
             "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10000.0}}
    config = {"architectures": [cls], "model_type": "dots3_note", "hidden_size": TEXT, "vision_config": vision,
              "audio_config": audio}
    patch = "vision_encoder.patch_embed."
    shapes = both(patch + "proj", WIDTH, 3, PATCH, PATCH) | {patch + "norm.weight": (WIDTH,), "model.norm.weight": (TEXT,)}
    for layer, number in enumerate(numbers):
        p = f"vision_encoder.blocks.{layer}."
        shapes |= {p + "attn.qkv.weight": (3 * WIDTH, WIDTH), p + "attn.proj.weight": (WIDTH, WIDTH)}
        shapes |= {f"{p}attn.{name}_norm.weight": (WIDTH // HEADS,) for name in "qk"}
        shapes |= {p + "norm_1.weight": (WIDTH,), p + "norm_2.weight": (WIDTH,)}
        networks = [f"{p}mlp.experts.{expert}." for expert in range(number)] if number > 0 else [p + "mlp."]
        for network in networks:
            shapes |= {network + "fc1.weight": (FFN, WIDTH), network + "fc2.weight": (WIDTH, FFN), network + "fc3.weight": (FFN, WIDTH)}
        if number > 0:
            shapes |= {p + "mlp.gate_weight": (number, WIDTH), p + "mlp.router_bias": (number,)}
    adapter = "vision_encoder.adapter."
    shapes |= {"vision_encoder.post_trunk_norm.weight": (WIDTH,)} | both(adapter + "ln_q", WIDTH)
    shapes |= both(adapter + "mlp.0", 4 * WIDTH, 4 * WIDTH) | both(adapter + "mlp.2", TEXT, 4 * WIDTH)
    encoder = "audio_encoder.dots_encoder.speech_encoder."
    for number, channels in ((1, (8, 1)), (2, (8, 8)), (3, (8, 8))):
        shapes |= both(f"{encoder}conv2d{number}", *channels, 3, 3)
    shapes |= {encoder + "conv_out.weight": (WIDTH, 80), encoder + "layer_norm.weight": (WIDTH,)}
    matrix = both if biases else lambda name, *shape: {name + ".weight": shape}
    for layer in range(LAYERS):
        p = f"{encoder}layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= matrix(f"{p}self_attn.{name}", WIDTH, WIDTH)
        shapes |= matrix(p + "fc1", 2 * FFN, WIDTH) | matrix(p + "fc2", WIDTH, FFN)
        shapes |= {p + "self_attn_layer_norm.weight": (WIDTH,), p + "final_layer_norm.weight": (WIDTH,)}
    adapter = "audio_encoder.audio_adapter.proj."
    shapes |= both(adapter + "0", WIDTH) | both(adapter + "1", FFN, WIDTH) | both(adapter + "3", TEXT, FFN)
    return config, shapes, {"vision_config": PREPROCESSOR | {"min_pixels": 3136, "max_pixels": 12845056}}


def qwen3_tts(codes=5, projected=False, decoder="F32"):
    """The decoder from codes to audio is in a directory of its own."""
    predictor = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": codes, "num_attention_heads": HEADS,
                 "num_key_value_heads": 2, "rms_norm_eps": 1e-6}
    config = {"architectures": ["Qwen3TTSForConditionalGeneration"], "model_type": "qwen3_tts",
              "talker_config": {"hidden_size": TEXT, "code_predictor_config": predictor}, "speaker_encoder_config": {"enc_dim": 64}}
    p = "talker.code_predictor."
    shapes = {"talker.model.codec_embedding.weight": (40, TEXT), "talker.model.norm.weight": (TEXT,),
              p + "model.norm.weight": (WIDTH,)}
    for number in range(15):
        shapes |= {f"{p}model.codec_embedding.{number}.weight": (32, TEXT), f"{p}lm_head.{number}.weight": (32, WIDTH)}
    if projected:
        shapes |= both(p + "small_to_mtp_projection", WIDTH, TEXT)
    for layer in range(codes):
        q = f"{p}model.layers.{layer}."
        shapes |= {q + "self_attn.q_proj.weight": (WIDTH, WIDTH), q + "self_attn.o_proj.weight": (WIDTH, WIDTH),
                   q + "mlp.gate_proj.weight": (FFN, WIDTH), q + "mlp.up_proj.weight": (FFN, WIDTH),
                   q + "mlp.down_proj.weight": (WIDTH, FFN)}
        shapes |= {f"{q}self_attn.{name}_proj.weight": (32, WIDTH) for name in "kv"}
        shapes |= {f"{q}self_attn.{name}_norm.weight": (WIDTH // HEADS,) for name in "qk"}
        shapes |= {f"{q}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    p = "speaker_encoder."
    shapes |= both(p + "blocks.0.conv", 32, 16, 5)
    for stage in (1, 2, 3):
        q = f"{p}blocks.{stage}."
        shapes |= both(q + "tdnn1.conv", 32, 32, 1) | both(q + "tdnn2.conv", 32, 32, 1)
        shapes |= both(q + "se_block.conv1", 8, 32, 1) | both(q + "se_block.conv2", 32, 8, 1)
        for part in range(2):
            shapes |= both(f"{q}res2net_block.blocks.{part}.conv", 16, 16, 3)
    shapes |= both(p + "mfa.conv", 96, 96, 1) | both(p + "asp.tdnn.conv", 16, 288, 1) | both(p + "asp.conv", 96, 16, 1)
    shapes |= both(p + "fc", TEXT, 192, 1)
    return config, shapes, {}, {"speech_tokenizer": code2wav(decoder)}


def code2wav(dtype):
    fields = {"decoder_config": {"num_hidden_layers": 12, "upsampling_ratios": [2, 2], "upsample_rates": [8, 5, 4, 3]}}
    p, shapes = "decoder.quantizer.", {"encoder.norm.weight": (8,)}
    for name, books in (("rvq_first", 1), ("rvq_rest", 15)):
        shapes |= {f"{p}{name}.input_proj.weight": (32, 64, 1), f"{p}{name}.output_proj.weight": (64, 32, 1)}
        for book in range(books):
            q = f"{p}{name}.vq.layers.{book}._codebook."
            shapes |= {q + "embedding_sum": (16, 32), q + "cluster_usage": (16,), q + "initialized": (1,)}
    p = "decoder."
    shapes |= both(p + "pre_conv.conv", 48, 64, 3) | both(p + "pre_transformer.input_proj", 32, 48)
    shapes |= both(p + "pre_transformer.output_proj", 48, 32) | {p + "pre_transformer.norm.weight": (32,)}
    for layer in range(12):
        q = f"{p}pre_transformer.layers.{layer}."
        shapes |= {f"{q}self_attn.{name}_proj.weight": (32, 32) for name in "qkvo"}
        shapes |= {q + "mlp.gate_proj.weight": (64, 32), q + "mlp.up_proj.weight": (64, 32), q + "mlp.down_proj.weight": (32, 64)}
        shapes |= {q + name: (32,) for name in ("input_layernorm.weight", "post_attention_layernorm.weight",
                                                "self_attn_layer_scale.scale", "mlp_layer_scale.scale")}
    for stage in range(2):
        q = f"{p}upsample.{stage}."
        shapes |= both(q + "0.conv", 48, 48, 2) | both(q + "1.dwconv.conv", 48, 1, 7) | both(q + "1.norm", 48)
        shapes |= both(q + "1.pwconv1", 96, 48) | both(q + "1.pwconv2", 48, 96) | {q + "1.gamma": (48,)}
    shapes |= both(p + "decoder.0.conv", 64, 48, 7)

    def snake(name, channels):
        return {f"{name}.{part}": (channels,) for part in ("alpha", "beta")}

    for block, channels in enumerate((32, 16, 8, 4), 1):
        q = f"{p}decoder.{block}.block."
        shapes |= snake(q + "0", 2 * channels) | both(q + "1.conv", 2 * channels, channels, 4)
        shapes[q + "1.conv.bias"] = (channels,)
        for unit in (2, 3, 4):
            shapes |= snake(f"{q}{unit}.act1", channels) | both(f"{q}{unit}.conv1.conv", channels, channels, 7)
            shapes |= snake(f"{q}{unit}.act2", channels) | both(f"{q}{unit}.conv2.conv", channels, channels, 1)
    shapes |= snake(p + "decoder.5", 4) | both(p + "decoder.6.conv", 1, 4, 7)
    return fields, shapes, dict.fromkeys(shapes, dtype)


def pocket_tts(before=True, blocks=6, layers=2):
    """A checkpoint without a config.json, and with its text model in the same file."""
    shapes = {"flow_lm.bos_emb": (32,), "flow_lm.conditioner.embed.weight": (41, TEXT), "flow_lm.emb_mean": (32,),
              "flow_lm.transformer.layers.0.linear1.weight": (FFN, TEXT),
              "flow_lm.emb_std": (32,), "flow_lm.speaker_proj_weight": (TEXT, 96), "flow_lm.input_linear.weight": (TEXT, 32)}
    if before:
        shapes |= {"flow_lm.bos_before_voice": (1, 1, TEXT)}
    shapes |= both("flow_lm.out_eos", 1, TEXT) | both("flow_lm.out_norm", TEXT) | both("flow_lm.transformer.layers.0.norm1", TEXT)
    p = "flow_lm.flow_net."
    shapes |= both(p + "input_proj", WIDTH, 32) | both(p + "cond_embed", WIDTH, TEXT) | both(p + "final_layer.linear", 32, WIDTH)
    shapes |= both(p + "final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    for time in range(2):
        q = f"{p}time_embed.{time}."
        shapes |= {q + "freqs": (16,), q + "mlp.3.alpha": (WIDTH,)} | both(q + "mlp.0", WIDTH, 32) | both(q + "mlp.2", WIDTH, WIDTH)
    for block in range(blocks):
        q = f"{p}res_blocks.{block}."
        shapes |= both(q + "in_ln", WIDTH) | both(q + "mlp.0", WIDTH, WIDTH) | both(q + "mlp.2", WIDTH, WIDTH)
        shapes |= both(q + "adaLN_modulation.1", 3 * WIDTH, WIDTH)
    shapes |= {"mimi.downsample.conv.conv.weight": (128, 128, 4), "mimi.upsample.convtr.convtr.weight": (128, 1, 4),
               "mimi.quantizer.output_proj.weight": (128, 32, 1), "mimi.quantizer.input_proj.weight": (32, 128, 1)}
    for part in ("encoder", "decoder"):
        for layer in range(layers):
            q = f"mimi.{part}_transformer.transformer.layers.{layer}."
            shapes |= {q + "self_attn.in_proj.weight": (384, 128), q + "self_attn.out_proj.weight": (128, 128),
                       q + "linear1.weight": (160, 128), q + "linear2.weight": (128, 160), q + "layer_scale_1.scale": (128,),
                       q + "layer_scale_2.scale": (128,)} | both(q + "norm1", 128) | both(q + "norm2", 128)
        q = f"mimi.{part}.model."
        shapes |= both(q + "0.conv.conv", 8, 1, 7) | both(q + "11.conv.conv", 128, 8, 3)
        for stage in range(3):
            unit, scale = (1 + 3 * stage, 3 + 3 * stage) if part == "encoder" else (3 + 3 * stage, 2 + 3 * stage)
            shapes |= both(f"{q}{unit}.block.1.conv.conv", 4, 8, 3) | both(f"{q}{unit}.block.3.conv.conv", 8, 4, 1)
            shapes |= both(f"{q}{scale}.{'conv.conv' if part == 'encoder' else 'convtr.convtr'}", 8, 8, 8)
    return None, shapes, None
