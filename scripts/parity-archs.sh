#!/usr/bin/env bash
# Compares results of the engine with the reference's on the reference's own random models: its test-llama-archs writes
# one of nearly every architecture that it loads. A second source beside scripts/parity-engine.sh, whose models come from
# this repository's checkpoints; the same figures and tolerances.
#
#   scripts/parity-archs.sh [NAME ...]      all files, or those named (llama-dense, deepseek2-moe ...)
#
# One line per file: within, not, refused (by Quantier, with its reason) or unusable (the reference cannot run it). Exit
# code 1 if any is not. The first call builds the reference.
#
# QUANTIER            the program (default: target/release/quantier, built if it is not there)
# QUANTIER_PARITY     where the files go (default: a temporary directory, removed afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

bin=$(scripts/reference.sh)
source=$(scripts/reference.sh --source)
python=$(scripts/reference.sh --python)
find_quantier
work_in "${QUANTIER_PARITY:-}"
if [ ! -d "$work/models" ]; then
    g++ -O1 -std=c++17 "-I$source"/{common,include,ggml/include,src,vendor} "$source/tests/test-llama-archs.cpp" \
        -o "$work/test-llama-archs" -L"$bin" -Wl,-rpath,"$bin" -lllama-common -lllama -lggml -lggml-base
    mkdir "$work/models"
    "$work/test-llama-archs" -o "$work/models" -s 1 >"$work/models.log" 2>&1 ||
        { tail -n 5 "$work/models.log" >&2; rm -r "$work/models"; exit 1; }
fi
cat testdata/texts/*.txt >"$work/text.txt"
"$python" scripts/parity-archs.py --reference "$bin" --ours "$quantier" --python "$python" --text "$work/text.txt" \
    --work "$work" "$@"
