#!/usr/bin/env bash
# Compares the vocabularies that `quantier convert` writes with the reference's, key by key, on real ones: tokenizer
# files are rebuilt from the reference's models/ggml-vocab-*.gguf, and both sides convert them. The reference detects
# the pre-tokenizers by their fingerprints, or refuses.
#
#   scripts/parity-vocabularies.sh [NAME ...]      all (scripts/vocabularies.py has the names), or those named; `small` for
#                                                  those of scripts/small_vocabularies.py
#
# The small ones cover the files of each family; both sides are given their pre-tokenizers, since their fingerprints are
# unknown. Then runs tests/suite/vocabulary.rs on them, which prints one line per vocabulary. Exit code 1 if one differs.
#
# QUANTIER_WRITE_GOLDENS=1 stores the small ones, and the reference's files of them, in crates/tokenizer/testdata.
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
root=$QUANTIER_VOCABULARIES
# The programs beside some checkpoints are copied there.
export HF_HOME=$root/cache QUANTIER_ONLY_VOCABULARY=1

convert() {
    "$python" scripts/convert-reference.py "$source" 2>"$root/reference.log" || true
    grep '^failed:' "$root/reference.log" | cut -f 1 || true
}

# compare DIRECTORY PRE SCRIPT [ARGUMENT ...]: SCRIPT makes the checkpoints, and lists their conversions.
compare() {
    export QUANTIER_VOCABULARIES=$1 QUANTIER_PRE=$2
    local script=$3
    shift 3
    mkdir -p "$QUANTIER_VOCABULARIES"
    "$python" "$script" "$@"
    # With mistral-common installed, transformers would choose other classes for other vocabularies.
    "$python" "$script" --jobs "$@" | grep -v /tekken | convert
    "$python" "$script" --jobs "$@" | grep /tekken | PYTHONPATH=$mistral_common convert
    cargo test --release --quiet --test suite vocabulary:: -- --ignored --nocapture
}

failed=0
mistral_common=$(scripts/reference.sh --mistral-common)
if [ $# = 0 ] || [[ " $* " == *" small "* ]]; then
    (compare "$root/small" qwen2 scripts/small_vocabularies.py "$root/small") || failed=1
fi
if [ -n "${QUANTIER_WRITE_GOLDENS:-}" ]; then
    "$python" scripts/small_vocabularies.py --goldens "$root/small"
fi
names=()
for name in "$@"; do [ "$name" = small ] || names+=("$name"); done
if [ $# = 0 ] || [ ${#names[@]} -gt 0 ]; then
    (compare "$root/real" '' scripts/vocabularies.py "$source" "$root/real" "${names[@]}") || failed=1
fi
exit "$failed"
