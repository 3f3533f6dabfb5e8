#!/usr/bin/env python3
"""Compares the tensors of two GGUF files: names, shapes, types and every byte; metadata may differ.

    tensors.py ONE.gguf OTHER.gguf

Exit code 1, and the first few differences, if there are any. Needs the gguf package.
"""

import sys

from gguf import GGUFReader

SHOWN = 5


def tensors(path):
    return {t.name: (t.tensor_type.name, tuple(t.shape), t.data.tobytes()) for t in GGUFReader(path).tensors}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    one, other = map(tensors, sys.argv[1:])
    different = [f"{name}: in one file only" for name in one.keys() ^ other.keys()]
    for name in one.keys() & other.keys():
        (type_a, shape_a, data_a), (type_b, shape_b, data_b) = one[name], other[name]
        if (type_a, shape_a) != (type_b, shape_b):
            different.append(f"{name}: {type_a} {shape_a} and {type_b} {shape_b}")
        elif data_a != data_b:
            at = next(i for i, (a, b) in enumerate(zip(data_a, data_b)) if a != b)
            different.append(f"{name}: {type_a}, byte {at}")
    print(f"{len(one)} tensors" if not different else "; ".join(sorted(different)[:SHOWN]))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
