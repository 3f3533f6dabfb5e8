#!/usr/bin/env bash
# Compares results of the engine with the reference's, on F32 GGUFs of a tiny random checkpoint of every
# architecture (scripts/checkpoints.py) and of the reference model: perplexity within 0.05%, sums of importance matrices
# within 0.2% of their tensor's mean with identical counts, KL divergence of a quantized file within 2%. The reference
# gets that file dequantized, since it would round activations to 8 bits before multiplying them by quantized weights.
#
# Embedding models have no perplexity: their embeddings are compared with llama.cpp's (scripts/parity_embeddings.py), besides sums and
# the cosine distance of a quantized file.
#
#   scripts/parity-engine.sh [NAME ...]      all cases, or those named
#
# One line per case, then `N within, N not`. Exit code 1 if any is not. The first call builds the reference and installs
# its Python packages (5 GB).
#
# QUANTIER_EMBED      the example `embed` (default: target/release/examples/embed, built first)
# QUANTIER            the program (default: target/release/quantier, built first)
# QUANTIER_REFMODEL   the reference model as a Hugging Face directory (default: testdata/refmodel)
# QUANTIER_PARITY     where the files go (default: a temporary directory, removed afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

bin=$(scripts/reference.sh)
python=$(scripts/reference.sh --python)
export QUANTIER_REFMODEL=${QUANTIER_REFMODEL:-$PWD/testdata/refmodel}
if [ -z "${QUANTIER:-}" ]; then
    cargo build --release --quiet --bin quantier
    QUANTIER=$(cargo metadata --format-version 1 --no-deps |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/quantier
fi

if [ -z "${QUANTIER_EMBED:-}" ]; then
    cargo build --release --quiet --example embed
    QUANTIER_EMBED=$(cargo metadata --format-version 1 --no-deps |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/examples/embed
fi

work_in "${QUANTIER_PARITY:-}"
# The text: all prose and some code of this repository.
cat testdata/texts/*.txt >"$work/text.txt"
"$python" scripts/parity-engine.py --reference "$bin" --ours "$QUANTIER" --embed "$QUANTIER_EMBED" --python "$python" --text "$work/text.txt" \
    --work "$work" "$@"
