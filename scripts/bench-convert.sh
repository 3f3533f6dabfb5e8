#!/usr/bin/env bash
# Measures `quantier convert` against the reference's convert_hf_to_gguf.py and against cp: a Llama of 1 GB in bf16
# (random weights, two shards, the vocabulary of testdata/refmodel), read from a warm cache.
#
#   scripts/bench-convert.sh [ROUNDS]     default: 5; every round runs every command once, the slow Python ones in
#                                         the first three rounds only
#
# Prints the median and the range of the wall time and the peak resident memory of every command, the relevant ratios,
# the machine's load, and whether our files are identical to the reference's. Exit code 1 if one is not.
#
# QUANTIER         the program (default: target/release/quantier, built if it is not there)
# QUANTIER_BENCH   where the files go, about 6 GB (default: a temporary directory, removed afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

python=$(scripts/reference.sh --python)
source=$(scripts/reference.sh --source)
find_quantier
work_in "${QUANTIER_BENCH:-}"
"$python" scripts/bench-convert.py "$quantier" "$source" "$work" "${1:-5}"
