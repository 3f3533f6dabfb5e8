#!/usr/bin/env bash
# The evidence for the frontier, on the model of testdata/refmodel-f16.gguf, with llama-perplexity as the judge:
#
#   like      llama-quantize's presets beside the files of `quantier make --like PRESET`, all with one importance matrix
#   independent  `quantier make` with nothing but the texts beside presets with llama-imatrix's importance matrix, and
#             without one; only if it is named
#   measures  the same budgets chosen by the importance-weighted error alone and by a sweep (each tensor measured alone)
#   predict   ten budgets from 2 to 8 bits per weight: predicted against measured divergence
#
#   scripts/bench-frontier.sh [--quick] [--parts like,independent,measures,predict] [TEXTS]
#
# TEXTS is a directory with wiki.txt, whose first 200 kB everything is judged on, and at least one other .txt, of each of
# which the first 60 kB calibrate (default: ../shared/text). --quick takes 3 presets, 40 kB and 4 sizes.
# Prints Markdown; a table of times and memory of every stage of `make` is the last.
#
# QUANTIER          the program (default: target/release/quantier, built if it is not there)
# QUANTIER_BENCH    where the files go; what is there already is not made again (default: a temporary directory, removed
#                   afterwards)
# PRESETS           the presets, with commas between
# TYPES             the types of `independent` (default: all);  MORE  further options of its `make`
# MODEL             another model, a GGUF of full precision
# SWEEP_TYPES       the types of the sweep (default: all);  SWEEP_CHUNKS  the chunks that it measures (default: 24)
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
