#!/usr/bin/env python3
"""Writes the codebooks of the IQ types (crates/blocks/src/iq/data/*.hex) from the reference's source.

    scripts/grids.py "$(scripts/reference.sh --source)"

The points of every codebook ascend, so a codebook is stored as a set: bit i of the file is set if
point number i belongs to it. A point's number has its levels as digits in base 3 (eight levels from 0 to 2) or 8 (four
levels from 0 to 7), first level lowest. Bytes are written as hex, bit 0 lowest, in lines of 60 bytes.

Two checks: the points do ascend, and the reference's other tables, used for dequantization,
list the same points in the same order.
"""

import re
import sys
from pathlib import Path

# Our name: (base, levels in a point, quantizer's table, dequantizer's table, the byte for each level there).
BOOKS = {
    "iq1": (3, 8, "kgrid_1bit_2048", "iq1s_grid", [0xFF, 0x00, 0x01]),
    "iq2_xxs": (3, 8, "kgrid_2bit_256", "iq2xxs_grid", [0x08, 0x19, 0x2B]),
    "iq2_xs": (3, 8, "kgrid_2bit_512", "iq2xs_grid", [0x08, 0x19, 0x2B]),
    "iq2_s": (3, 8, "kgrid_2bit_1024", "iq2s_grid", [0x08, 0x19, 0x2B]),
    "iq3_xxs": (8, 4, "kgrid_256", "iq3xxs_grid", [0x04, 0x0C, 0x14, 0x1C, 0x24, 0x2C, 0x34, 0x3E]),
    "iq3_s": (8, 4, "kgrid_512", "iq3s_grid", [0x01, 0x03, 0x05, 0x07, 0x09, 0x0B, 0x0D, 0x0F]),
}
BYTES_PER_LINE = 60


def integers(text: str) -> list[int]:
    return [int(n, 0) for n in re.findall(r"0x[0-9a-f]+|\d+", text)]


def main() -> None:
    source = Path(sys.argv[1]) / "ggml" / "src"
    quantizer = (source / "ggml-quants.c").read_text()
    common = (source / "ggml-common.h").read_text()
    data = Path(__file__).resolve().parent.parent / "src" / "quant" / "iq" / "data"
    for name, (base, length, packed_name, bytes_name, byte_of_level) in BOOKS.items():
        packed = integers(re.search(rf"{packed_name}\[\w+\] = \{{(.*?)\}};", quantizer, re.S)[1])
        as_bytes = integers(re.search(rf"{bytes_name}, \w+\)(.*?)GGML_TABLE_END", common, re.S)[1])
        bits = (base - 1).bit_length()
        points = [[p >> bits * i & (1 << bits) - 1 for i in range(length)] for p in packed]
        assert all(level < base for point in points for level in point), name
        assert points == [[byte_of_level.index(p >> 8 * i & 255) for i in range(length)] for p in as_bytes], name
        numbers = [sum(level * base**i for i, level in enumerate(point)) for point in points]
        assert numbers == sorted(set(numbers)), f"{name}: the points do not ascend"
        members = sum(1 << n for n in numbers).to_bytes((base**length + 7) // 8, "little").hex()
        lines = [members[at : at + 2 * BYTES_PER_LINE] for at in range(0, len(members), 2 * BYTES_PER_LINE)]
        (data / f"{name}.hex").write_text("\n".join(lines) + "\n")
        print(f"{name}: {len(points)} points")


if __name__ == "__main__":
    main()
