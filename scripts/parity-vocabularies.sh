#!/usr/bin/env bash
# Compares the vocabularies that `quantier convert` writes with the reference's, key by key, on real ones: tokenizer
# files are rebuilt from the reference's models/ggml-vocab-*.gguf, and both sides convert them. Nothing is told to the
# reference: it finds the pre-tokenizers by their fingerprints or refuses.
#
#   scripts/parity-vocabularies.sh [NAME ...]      all (scripts/vocabularies.py has the names), or those named
#
# Then runs tests/suite/vocabulary.rs on them, which prints one line per vocabulary. Exit code 1 if one differs.
#
# QUANTIER_VOCABULARIES   where the files go, about 200 MB (default: a temporary directory, removed afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(scripts/reference.sh --python)
source=$(scripts/reference.sh --source)
if [ -n "${QUANTIER_VOCABULARIES:-}" ]; then
    mkdir -p "$QUANTIER_VOCABULARIES"
else
    QUANTIER_VOCABULARIES=$(mktemp -d)
    trap 'rm -rf "$QUANTIER_VOCABULARIES"' EXIT
fi
export QUANTIER_VOCABULARIES
"$python" scripts/vocabularies.py "$source" "$QUANTIER_VOCABULARIES" "$@"
"$python" scripts/vocabularies.py --jobs "$source" "$QUANTIER_VOCABULARIES" "$@" |
    QUANTIER_PRE='' "$python" scripts/convert-reference.py "$source" 2>"$QUANTIER_VOCABULARIES/reference.log" || true
grep '^failed:' "$QUANTIER_VOCABULARIES/reference.log" | cut -f 1 || true
cargo test --release --quiet --test suite vocabulary:: -- --ignored --nocapture
