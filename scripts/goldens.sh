#!/usr/bin/env bash
# Renews the golden files, only from the reference.
#
#   scripts/goldens.sh     writes crates/blocks/testdata/blocks.golden with the real ggml's quantizers, and
#                          testdata/convert.sha256 and crates/tokenizer/testdata with the real convert_hf_to_gguf.py
set -euo pipefail

cd "$(dirname "$0")/.."
QUANTIER_REFERENCE_BIN=$(scripts/reference.sh)
export QUANTIER_REFERENCE_BIN QUANTIER_WRITE_GOLDENS=1
scripts/parity-convert.sh refmodel Card-Llama-7M-Chat-v0.3 bpe
cargo test --release -p quantier-blocks --test blocks -- --ignored --exact --nocapture golden::write_goldens
scripts/parity-vocabularies.sh small
