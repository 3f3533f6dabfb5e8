#!/usr/bin/env bash
# Measures quantization beside the reference:
#
#   blocks   weights per second of one core, every type: plain, AVX2 (or NEON) and the real ggml on the same rows, with
#            importance weights; and bytes per second of dequantized f32 beside a plain copy (cargo bench --bench blocks)
#   files    `quantier quantize` beside llama-quantize at equal threads: a Llama of 1.2 B random weights (the shape of
#            Llama 3.2 1B) in F16, with an importance matrix; the files compared byte by byte
#
#   scripts/bench-quantize.sh [PART..]     default: blocks files
#
# QUANTIER         the program (default: target/release/quantier, built if it is not there)
# QUANTIER_BENCH   where the files go, about 5 GB (default: a temporary directory, removed afterwards)
# THREADS          of both programs (default: 2);  ROUNDS  of the files (default: 1);  TYPES  (default: Q4_K_M IQ4_XS IQ2_S)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

reference=$(scripts/reference.sh)
parts=${*:-blocks files}
if [[ $parts == *blocks* ]]; then
    QUANTIER_REFERENCE_BIN=$reference cargo bench --quiet --bench blocks >/dev/null
    python3 scripts/bench-quantize.py blocks "${CARGO_TARGET_DIR:-target}/criterion"
fi
if [[ $parts == *files* ]]; then
    find_quantier
    synthetic=${SYNTHETIC:-target/release/examples/synthetic}
    [ -x "$synthetic" ] || cargo build --release --quiet --example synthetic
    work_in "${QUANTIER_BENCH:-}"
    [ -e "$work/f16.gguf" ] || "$synthetic" --engine 1b testdata/refmodel-f16.gguf "$work/f16.gguf" >/dev/null
    # One chunk is enough: speed does not depend on the importance weights.
    [ -e "$work/imatrix.gguf" ] || "$quantier" imatrix -m "$work/f16.gguf" -f README.md -c 128 --chunks 1 --no-ppl \
        -o "$work/imatrix.gguf" >/dev/null
    python3 scripts/bench-quantize.py files "$quantier" "$reference/llama-quantize" "$work"
fi
