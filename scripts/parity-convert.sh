#!/usr/bin/env bash
# Compares `quantier convert` with the reference's convert_hf_to_gguf.py, byte for byte: a tiny checkpoint of every
# architecture in every output type, splits, vocabularies alone, and the reference model.
#
#   scripts/parity-convert.sh [NAME ...]      all checkpoints, or those named
#
# One line per case, then `N identical, N different`. Then every file of ours must load in llama-completion and generate,
# and the first of each checkpoint must tokenize a text to the ids of the checkpoint's own tokenizer
# (scripts/convert-runs.py): one line per checkpoint, then `N run, N do not`. Exit code 1 if anything is different or
# does not run. The first call builds the reference and installs its Python packages (5 GB).
#
# QUANTIER            the program (default: target/release/quantier, built if it is not there)
# QUANTIER_REFMODEL   the reference model as a Hugging Face directory (default: testdata/refmodel)
# QUANTIER_PARITY     where the files go (default: a temporary directory, removed afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$(scripts/reference.sh)
python=$(scripts/reference.sh --python)
source=$(scripts/reference.sh --source)
# Both sides are told the pre-tokenizer: the reference cannot know the hashes of tiny vocabularies.
export QUANTIER_PRE=gpt-2
export QUANTIER_REFMODEL=${QUANTIER_REFMODEL:-$PWD/testdata/refmodel}

quantier=${QUANTIER:-target/release/quantier}
[ -x "$quantier" ] || cargo build --release --quiet

if [ -n "${QUANTIER_PARITY:-}" ]; then
    work=$QUANTIER_PARITY
    mkdir -p "$work"
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work/checkpoints" "$work/expected" "$work/ours"

names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <("$python" scripts/checkpoints.py --list; echo refmodel)

# case <TAB> checkpoint <TAB> further arguments
cases() {
    local name type
    for name in "${names[@]}"; do
        for type in f32 f16 bf16 q8_0 auto; do
            printf '%s-%s\t%s\t--outtype\t%s\n' "$name" "$type" "$name" "$type"
        done
        case $name in
            llama | mixtral | phi3-long)
                printf '%s-tensors\t%s\t--split-max-tensors\t5\n' "$name" "$name"
                printf '%s-size\t%s\t--split-max-size\t1M\n' "$name" "$name"
                printf '%s-unsplit\t%s\t--split-max-size\t1G\n' "$name" "$name"
                printf '%s-vocab\t%s\t--vocab-only\n' "$name" "$name"
                ;;
        esac
    done
}

made=()
for name in "${names[@]}"; do
    if [ "$name" = refmodel ]; then
        ln -sfn "$QUANTIER_REFMODEL" "$work/checkpoints/refmodel"
    else
        made+=("$name")
    fi
done
[ ${#made[@]} = 0 ] || "$python" scripts/checkpoints.py "$work/checkpoints" "${made[@]}"
cases | while IFS=$'\t' read -r case name arguments; do
    printf '%s\t--outfile\t%s\t%s\n' "$work/checkpoints/$name" "$work/expected/$case.gguf" "$arguments"
done >"$work/jobs"
if ! "$python" scripts/convert-reference.py "$source" <"$work/jobs" >"$work/reference.log" 2>&1 ||
    grep '^failed:' "$work/reference.log" >&2; then
    tail -n 20 "$work/reference.log" >&2
    echo "parity-convert.sh: the reference failed" >&2
    exit 1
fi

identical=0 different=0
# Compares all files of a case: `NAME.gguf`, or its shards.
compare() {
    local case=$1 expected other=0 found=0
    for expected in "$work/expected/$case".gguf "$work/expected/$case"-*-of-*.gguf; do
        [ -e "$expected" ] || continue
        found=$((found + 1))
        cmp "$expected" "$work/ours/${expected##*/}" || other=1
    done
    [ "$found" = "$(find "$work/ours" -name "$case.gguf" -o -name "$case-*-of-*.gguf" | wc -l)" ] || other=1
    [ "$other" = 0 ] && [ "$found" -gt 0 ]
}
while IFS=$'\t' read -r case name arguments; do
    IFS=$'\t' read -ra more <<<"$arguments"
    rm -f "$work/ours/$case".gguf "$work/ours/$case"-*-of-*.gguf
    if "$quantier" convert "$work/checkpoints/$name" --outfile "$work/ours/$case.gguf" "${more[@]}" \
        --pre "$QUANTIER_PRE" >"$work/ours.log" 2>&1 && compare "$case" >"$work/cmp.log" 2>&1; then
        identical=$((identical + 1))
        echo "identical  $case"
    else
        different=$((different + 1))
        echo "different  $case: $(tail -qn 1 "$work/ours.log" "$work/cmp.log" 2>/dev/null | tr '\n' ' ')"
    fi
done < <(cases)
echo "$identical identical, $different different"

# Of a split model, the first file is opened; a vocabulary alone cannot generate.
cases | while IFS=$'\t' read -r case name arguments; do
    for file in "$work/ours/$case".gguf "$work/ours/$case"-00001-of-*.gguf; do
        [ "$arguments" = --vocab-only ] || [ ! -e "$file" ] || printf '%s\t%s\n' "$name" "$file"
    done
done >"$work/files"
"$python" scripts/convert-runs.py "$bin" "$work/checkpoints" <"$work/files" && [ "$different" = 0 ]
