#!/usr/bin/env bash
# Evidence for rounding with error feedback, on the model of testdata/refmodel-f16.gguf: divergence of the weights alone,
# as `quantier kld` measures it, beside the reference's rounding with the same importance matrix.
#
#   types    every type, the whole model in it (except the token embeddings, which have no Hessian), on three texts
#   tokens   Q4_K, Q2_K and IQ2_S calibrated with more and more tokens, evaluated on text of the same kinds and of others
#   experts  a Mixture of Experts: the model's feed-forward matrices four times, each with noise of its own and a random
#            router; its files must also load in llama.cpp
#   make     time and memory of every stage of `quantier make` with either rounding
#
#   scripts/bench-feedback.sh [TEXTS] [PART..]     default: ../shared/text, types tokens experts
#
# TEXTS is a directory with c4.txt, code.txt, technical.txt and multilingual.txt, whose beginnings are for calibration and whose
# ends are for evaluation; and wiki.txt and groups_merged.txt, for evaluation only. Prints Markdown. `make` uses its built-in text.
#
# QUANTIER        the program (default: target/release/quantier, built if it is not there)
# QUANTIER_BENCH  directory of the files; existing ones are reused (default: a temporary directory, removed
#                 afterwards)
# WIKI_BYTES      of wiki.txt to evaluate `types` on (default: 200000);  JUDGED_BYTES  of the other texts (default: 24000)
# TYPES           of `types` (default: all)
# COUNTS          tokens for `tokens` (default: 5000 20000 80000 320000)
# THREADS         of all programs (default: all cores)
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
. scripts/common.sh

texts=../shared/text
if [[ $# -gt 0 && ! " types tokens experts make " == *" $1 "* ]]; then
    texts=$(cd "$here" && realpath "$1")
    shift
fi
parts=${*:-types tokens experts}
find_quantier
work_in "${QUANTIER_BENCH:-}"
if [[ " $parts " == *" experts "* ]]; then
    reference=$(scripts/reference.sh)
    [ -e "$work/experts-f16.gguf" ] ||
        "$(scripts/reference.sh --python)" scripts/experts.py testdata/refmodel-f16.gguf "$work/experts-f16.gguf"
fi
python3 scripts/bench-feedback.py --quantier "$quantier" --reference "${reference:-}" --work "$work" --texts "$texts" $parts
