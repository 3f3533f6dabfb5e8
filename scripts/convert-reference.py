#!/usr/bin/env python3
"""Runs the reference's convert_hf_to_gguf.py on many checkpoints in one process.

    convert-reference.py SOURCE < JOBS

SOURCE is the reference's directory; every line of JOBS is the arguments of one conversion, separated by tabs.
With QUANTIER_ONLY_VOCABULARY in the environment, classes write no parameters of their models: then only the vocabulary is
compared, and the configuration may be incomplete.

The reference is unchanged except for a few things. It cannot know the hash of a tiny vocabulary, so the pre-tokenizer's
name is given in the environment's QUANTIER_PRE (default: gpt-2; if empty, nothing is
changed). Norms of Llama 4's encoder of images and of Granite Speech get the names that llama.cpp reads, where the
reference gives them those of other models; so do norms of Gemma 3n's convolutions of audio, which have no names there. Sines, cosines
and exponentials of Qwen's positions of audio are computed in 64 bits and rounded once: PyTorch's last bit depends on the CPU.
"""

import logging
import math
import os
import sys
import traceback

# Checkpoints with tensor values that the reference cannot read lazily ("Tensor.item() cannot be called on meta tensors").
EAGER = {"jais"}
# "Tensor on device cpu is not on the expected device meta".
EAGER_NAMES = {"bitnet-packed"}


def subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def main():
    source = sys.argv[1]
    sys.path.insert(0, source)
    sys.path.insert(1, os.path.join(source, "gguf-py"))
    import convert_hf_to_gguf
    from conversion.base import ModelBase, TextModel
    from gguf.constants import MODEL_TENSOR
    from gguf.tensor_mapping import TensorNameMap

    if told := os.environ.get("QUANTIER_PRE", "gpt-2"):
        # Kimi's ranks have one pre-tokenizer; the reference accepts no other.
        def pre(self, tokenizer):
            kimi = ("KimiLinearModel", "DeepseekV2Model", "KimiK3Model")
            is_kimi = type(self).__name__ in kimi and hasattr(tokenizer, "special_tokens")
            return "kimi-k2" if is_kimi else told

        TextModel.get_vocab_base_pre = pre
    import torch
    from conversion.qwenvl import Qwen25AudioModel

    def positions(self):
        width = self.hparams_audio["hidden_size"]
        step = -math.log(10000) / (width // 2 - 1)
        rates = (step * torch.arange(width // 2).float()).double().exp().float()
        angles = (torch.arange(1500)[:, None] * rates[None, :]).double()
        yield "audio_tower.embed_positions.weight", torch.cat([angles.sin(), angles.cos()], dim=1).float()

    Qwen25AudioModel.generate_extra_tensors = positions
    if os.environ.get("QUANTIER_ONLY_VOCABULARY"):
        prepare = TextModel.prepare_metadata

        def without_parameters(self, vocab_only):
            self.set_gguf_parameters = lambda: None
            return prepare(self, vocab_only)

        TextModel.prepare_metadata = without_parameters
    names = dict(TensorNameMap.block_mappings_cfg)
    for line in sys.stdin.read().splitlines():
        arguments = line.split("\t")
        name = os.path.basename(arguments[0])
        eager = ["--no-lazy"] if name.split("-")[0] in EAGER or name in EAGER_NAMES else []
        sys.argv = ["convert_hf_to_gguf.py", *arguments, *eager]
        mapped = TensorNameMap.block_mappings_cfg
        if name.split("-")[0] == "llama4":
            mapped[MODEL_TENSOR.V_ENC_ATTN_POST_NORM] = ()
        if name.startswith("gemma3n"):
            mapped[MODEL_TENSOR.A_ENC_CONV1D_NORM] += ("model.audio_tower.subsample_conv_projection.conv_{bid}.norm",)
        if name.startswith("granite-speech"):
            mapped[MODEL_TENSOR.A_ENC_CONV_NORM] = mapped[MODEL_TENSOR.A_ENC_CONV_NORM_VAR]
            mapped[MODEL_TENSOR.A_ENC_CONV_NORM_VAR] = ()
        try:
            convert_hf_to_gguf.main()
        except SystemExit as end:
            if end.code:
                print(f"failed: {line}", file=sys.stderr)
        except Exception:
            traceback.print_exc()
            print(f"failed: {line}", file=sys.stderr)
        # The program stores these flags in the model's class, if it supports them.
        if {"--mtp", "--no-nextn", "--no-mtp"} & set(sys.argv):
            for cls in subclasses(ModelBase):
                for flag in {"no_mtp", "mtp_only"} & vars(cls).keys() if cls.supports_mtp_export else ():
                    delattr(cls, flag)
        # What converters of RWKV and EmbeddingGemma collect of a model, and leave at the class too.
        for cls in subclasses(ModelBase):
            for collected in ("lerp_weights", "module_paths", "dense_features_dims"):
                vars(cls).get(collected, {}).clear()
        # Arctic's names, which the table of all models takes over.
        TensorNameMap.block_mappings_cfg.clear()
        TensorNameMap.block_mappings_cfg.update(names)
        logging.getLogger().setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
