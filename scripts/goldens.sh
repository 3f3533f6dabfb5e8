#!/usr/bin/env bash
# Renews the golden files in testdata/ from the reference, and from nothing else.
#
#   scripts/goldens.sh     writes testdata/blocks.golden with the real ggml's quantizers
set -euo pipefail

cd "$(dirname "$0")/.."
QUANTIER_REFERENCE_BIN=$(scripts/reference.sh)
export QUANTIER_REFERENCE_BIN QUANTIER_WRITE_GOLDENS=1
cargo test --release --test blocks_golden -- --ignored --exact --nocapture write_goldens
