#!/usr/bin/env python3
"""Makes a mixture of experts from a Llama in F16: every expert is its feed-forward network with added noise.

    experts.py MODEL.gguf OUT.gguf

Results on such a model are more meaningful than on random weights: it predicts text as well as the original. Needs
the gguf package.
"""

import sys

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

EXPERTS, USED = 4, 2
# Standard deviation of the noise, relative to that of the matrix.
NOISE = 0.2
SEED = 7


def main():
    source, target = sys.argv[1:3]
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(USED)
    rng = np.random.default_rng(SEED)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        prefix, _, last = tensor.name.removesuffix(".weight").rpartition(".")
        if last not in ("ffn_gate", "ffn_up", "ffn_down"):
            writer.add_tensor(tensor.name, data)
            continue
        noise = rng.standard_normal((EXPERTS, *data.shape)) * (NOISE * data.astype(np.float64).std())
        writer.add_tensor(f"{prefix}.{last}_exps.weight", (data[None].astype(np.float64) + noise).astype(np.float16))
        if last == "ffn_gate":
            # The normalized activations have a length of about sqrt(columns): logits of about 1.
            columns = data.shape[1]
            router = rng.standard_normal((EXPERTS, columns)) / np.sqrt(columns)
            writer.add_tensor(f"{prefix}.ffn_gate_inp.weight", router.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
