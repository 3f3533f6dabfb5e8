#!/usr/bin/env bash
# Evidence for the frontier, on the model of testdata/refmodel-f16.gguf, evaluated by llama-perplexity:
#
#   like      llama-quantize's presets beside the files of `quantier make --like PRESET`, all with one importance matrix
#   independent  `quantier make` with only the texts, beside presets with llama-imatrix's importance matrix and without
#             one; runs only if named
#   measures  the same budgets chosen by the importance-weighted error alone and by a sweep (each tensor measured alone)
#   predict   ten budgets from 2 to 8 bits per weight: predicted against measured divergence
#
#   scripts/bench-frontier.sh [--quick] [--parts like,independent,measures,predict] [TEXTS]
#
# TEXTS is a directory with wiki.txt, whose first 200 kB are for evaluation, and at least one other .txt; the first 60 kB
# of each of these are for calibration (default: ../shared/text). --quick takes 3 presets, 40 kB and 4 sizes.
# Prints Markdown; the last table has times and memory of every stage of `make`.
#
# QUANTIER          the program (default: target/release/quantier, built if it is not there)
# QUANTIER_BENCH    directory of the files; existing ones are reused (default: a temporary directory, removed
#                   afterwards)
# PRESETS           the presets, separated by commas
# TYPES             the types of `like` and `independent` (default: all);  MORE  further options of their `make`
# MODEL             another model, a GGUF of full precision
# SWEEP_TYPES       the types of the sweep (default: all);  SWEEP_CHUNKS  its number of chunks (default: 24)
# THREADS           of all programs (default: all cores)
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
. scripts/common.sh

reference=$(scripts/reference.sh)
find_quantier
work_in "${QUANTIER_BENCH:-}"
python3 scripts/bench-frontier.py --quantier "$quantier" --reference "$reference" --work "$work" --start "$here" \
    --model "${MODEL:-testdata/refmodel-f16.gguf}" "$@"
