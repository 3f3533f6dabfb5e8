#!/usr/bin/env bash
# Measures the engine beside the reference on a Llama of half a billion random weights (vocabulary of 128,256 tokens,
# the tokenizer of testdata/refmodel), on the texts of this repository:
#
#   imatrix   llama-imatrix beside quantier imatrix, F16
#   kld       llama-perplexity's base run and three quantized models, beside one quantier kld of the same
#   memory    with a limit: a model larger than the memory allowed, imatrix by both (needs a memory cgroup)
#
#   scripts/bench-engine.sh [ROUNDS [PART..]]     default: 3 rounds of imatrix and kld
#
# Prints wall time, tokens per second, processor time, peak memory (total, and without mapped files) of every command,
# the relevant ratios, the processor and the machine's load.
#
# QUANTIER          the program (default: target/release/quantier, built if it is not there)
# QUANTIER_BENCH    where the files go, about 3 GB, with `memory` 9 GB (default: a temporary directory, removed
#                   afterwards)
# MODEL             another model for imatrix and kld, a GGUF of full precision
# THREADS           of both (default: 2);  CHUNKS  of 512 tokens (default: 12);  LIMIT  of `memory`, MiB (default: 1536)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

reference=$(scripts/reference.sh)
find_quantier
synthetic=${SYNTHETIC:-target/release/examples/synthetic}
[ -n "${MODEL:-}" ] || [ -x "$synthetic" ] || cargo build --release --quiet --example synthetic
work_in "${QUANTIER_BENCH:-}"
rounds=${1:-3}
shift || true
python3 scripts/bench-engine.py "$quantier" "$synthetic" "$reference" "$work" "$rounds" "${@:-imatrix kld}"
