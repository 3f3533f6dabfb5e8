#!/usr/bin/env bash
# Evidence on a real model: what each step of `quantier make` gains at the sizes of some presets, evaluated by
# `quantier kld` and, on wiki.txt, by llama-perplexity, on texts that nothing was calibrated on. The table in benches/real.md.
#
#   scripts/bench-real.sh MODEL.gguf [TEXTS]
#
# MODEL is a GGUF of full precision. TEXTS is a directory (default: ../shared/text) with wiki.txt and at least one other
# .txt: the first 60 kB of each other one are for calibration, later parts of wiki.txt, code.txt and multilingual.txt for
# evaluation. Prints Markdown; the last tables have time and memory of every stage of `make`, and checksums.
#
# QUANTIER          the program (default: target/release/quantier, built if it is not there)
# QUANTIER_BENCH    directory of the files; existing ones are reused (default: a temporary directory, removed
#                   afterwards)
# PRESETS           the presets, separated by commas (default: Q3_K_M,Q4_K_M,Q5_K_M,Q6_K)
# STEPS             the steps, separated by commas (default: all of preset, weighted, recipe, feedback, sequential,
#                   two-sided, tuned)
# CALIBRATED        bytes of each calibration text (default: 60000)
# EVALUATED         bytes of each evaluation text (default: 60000)
# TUNE_STEPS        steps of tuning (default: 400)
# THREADS           of all programs (default: all cores)
set -euo pipefail
here=$PWD
[ $# -ge 1 ] || { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \?//' >&2; exit 2; }
model=$(realpath "$1")
shift
cd "$(dirname "$0")/.."
. scripts/common.sh

reference=$(scripts/reference.sh)
find_quantier
work_in "${QUANTIER_BENCH:-}"
python3 scripts/bench-real.py --quantier "$quantier" --reference "$reference" --work "$work" --start "$here" \
    --model "$model" "$@"
