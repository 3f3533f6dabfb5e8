#!/usr/bin/env python3
"""Makes a tiny Qwen 4 Experimental checkpoint whose table of n-grams has GIB gibibytes of BF16 in name only: a file of
holes. To measure the memory of its conversion.

    scripts/sparse-table.py GIB OUT

Needs torch, safetensors and sentencepiece (scripts/reference.sh --python).
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import checkpoints
from safetensors import safe_open
from safetensors.torch import save_file

sparse = import_module("sparse-checkpoint")
TABLE = ".ngram_embedding.shard_"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    size, out = int(float(sys.argv[1]) * 2 ** 30), Path(sys.argv[2])
    checkpoints.make(out, "qwen4exp", False)
    folder = next(path.parent for path in out.rglob("config.json"))
    small, tables = {}, {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                (tables if TABLE in name else small)[name] = tensor
        path.unlink()
    for path in folder.glob("*.index.json"):
        path.unlink()
    rows = size // (sparse.BF16 * next(iter(tables.values())).shape[1] * len(tables))
    # Parts of several lengths, as in real ones.
    shapes = {name: (rows + (3 if i == 0 else 0), table.shape[1]) for i, (name, table) in enumerate(sorted(tables.items()))}
    names = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    save_file(small, folder / names[0], metadata={"format": "pt"})
    written = sparse.write(folder / names[1], shapes)
    files = {name: names[0] for name in small} | {name: names[1] for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    print(f"{folder}: a table of {written / 2 ** 30:.1f} GiB in name only")


if __name__ == "__main__":
    main()
