#!/usr/bin/env bash
# Compares the files of `quantier quantize` with those of the real llama-quantize, byte for byte: every file type,
# without an importance matrix and with either format of it, on a small trained model and on generated ones for rules
# that it does not cover; and every flag. Needs cargo, python3, gcc and g++; builds the rest.
#
#   scripts/parity.sh [quantize]            everything
#   scripts/parity.sh [quantize] --quick    every file type, every flag and every model, but not all with all
#   scripts/parity.sh convert [NAME ...]    conversions of Hugging Face checkpoints instead, and whether they run
#                                           (scripts/parity-convert.sh)
#   scripts/parity.sh lora [NAME ...]       LoRA adapters instead, against convert_lora_to_gguf.py
#                                           (scripts/parity-lora.sh)
#   scripts/parity.sh mmproj [NAME ...]     projectors of vision models instead (scripts/parity-mmproj.sh)
#   scripts/parity.sh vocabularies [NAME ...]   real vocabularies instead (scripts/parity-vocabularies.sh)
#   scripts/parity.sh tokenize [NAME ...]   tokens of texts instead (scripts/parity-tokenize.sh)
#   scripts/parity.sh engine [NAME ...]     perplexity, importance matrices and KL divergence instead
#                                           (scripts/parity-engine.sh)
#   scripts/parity.sh make [NAME ...]       files and recipes of quantier make instead (scripts/parity-make.sh)
#   scripts/parity.sh split [NAME ...]      shards and merged files instead, against llama-gguf-split
#                                           (scripts/parity-split.sh)
#
# Where the reference refuses, Quantier must refuse too and leave no file. Ends with "N identical, N different", and with
# exit code 1 if anything differs. Temporary files go to $TMPDIR and are removed.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case "${1:-}" in
    convert | lora | mmproj | vocabularies | tokenize | engine | make | split) exec "$repository/scripts/parity-$1.sh" "${@:2}" ;;
esac
quick=()
for arg in "$@"; do
    case "$arg" in
        quantize) ;;
        --quick) quick=(--quick) ;;
        *) echo "parity.sh: unknown argument '$arg' (see the top of this script)" >&2; exit 2 ;;
    esac
done

reference=$("$repository/scripts/reference.sh")
cd "$repository"
cargo build --quiet --release --bin quantier --example synthetic
target=$(cargo metadata --format-version 1 --no-deps |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 scripts/parity.py --reference "$reference" --ours "$target/release/quantier" \
    --synthetic "$target/release/examples/synthetic" --refmodel testdata/refmodel-f16.gguf --work "$work" "${quick[@]}"
