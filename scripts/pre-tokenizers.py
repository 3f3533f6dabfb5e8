#!/usr/bin/env python3
"""Writes the fingerprints of pre-tokenizers (crates/tokenizer/src/data/pre.tsv) from the reference's converter.

    scripts/pre-tokenizers.py "$(scripts/reference.sh --source)"

One line per fingerprint: SHA-256, a tab, llama.cpp's name of the pre-tokenizer; sorted, for
binary search. A fingerprint that the reference tests twice has the name of the last test. The probe text, whose
token ids are hashed, goes to crates/tokenizer/src/data/probe.txt.
"""

import ast
import sys
from pathlib import Path

source = Path(sys.argv[1]) / "conversion" / "base.py"
data = Path(__file__).resolve().parent.parent / "crates" / "tokenizer" / "src" / "data"
[function] = [
    node
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef) and node.name == "get_vocab_base_pre"
]
names: dict[str, str] = {}
probe = None
for node in function.body:
    match node:
        case ast.Assign(targets=[ast.Name("chktxt")], value=ast.Constant(value=text)):
            probe = text
        case ast.If(
            test=ast.Compare(left=ast.Name("chkhsh"), comparators=[ast.Constant(value=fingerprint)]),
            body=[ast.Assign(targets=[ast.Name("res")], value=ast.Constant(value=name))],
        ):
            names[fingerprint] = name
if probe is None or len(names) < 90:
    sys.exit(f"{source}: the probe text or the fingerprints are not where they used to be")
data.mkdir(parents=True, exist_ok=True)
(data / "probe.txt").write_bytes(probe.encode())
(data / "pre.tsv").write_text("".join(f"{f}\t{names[f]}\n" for f in sorted(names)), encoding="utf-8")
print(f"{len(names)} fingerprints")
