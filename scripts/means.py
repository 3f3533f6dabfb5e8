#!/usr/bin/env python3
"""Prints the goldens of src/convert/mean.rs: mean magnitudes as PyTorch computes them on one thread.

    scripts/means.py        run by the reference's Python: "$(scripts/reference.sh --python)" scripts/means.py
"""

import numpy as np
import torch

# Below and at one vector, remainders of all kinds, several levels of the cascade, and a matrix.
COUNTS = [64, 100, 4096, 4103, 65536, 131327, 1638400]


def numbers(count):
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    even = torch.from_numpy((mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1.0))
    return even * even * even


def main():
    torch.set_num_threads(1)
    for count in COUNTS:
        bits = numbers(count).abs().mean().view(torch.int32).item()
        print(f"        ({count}, {bits:#010x}),")


if __name__ == "__main__":
    main()
