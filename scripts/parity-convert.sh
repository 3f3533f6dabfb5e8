#!/usr/bin/env bash
# Compares `quantier convert` with the reference's convert_hf_to_gguf.py, byte for byte: a tiny checkpoint of every
# architecture in every output type, splits, vocabularies alone, and the reference model.
#
#   scripts/parity-convert.sh [NAME ...]      all checkpoints, or those named
#
# One line per case; the last line is `N identical, N different`. Exit code 1 if any is different.
# The first run installs the reference's Python packages (about 1.5 GB) beside the reference itself.
#
# QUANTIER            the program (default: target/release/quantier, built if it is not there)
# QUANTIER_REFMODEL   the reference model as a Hugging Face directory (default: testdata/refmodel)
# QUANTIER_PARITY     where the files go (default: a temporary directory, removed afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${QUANTIER_REFERENCE:-${XDG_CACHE_HOME:-$HOME/.cache}/quantier/reference}/0.3.36
venv=$cache/pyvenv
python=$venv/bin/python
source=$(scripts/reference.sh --source)
# Both sides are told the pre-tokenizer: the reference cannot know the hashes of tiny vocabularies.
export QUANTIER_PRE=gpt-2
export QUANTIER_REFMODEL=${QUANTIER_REFMODEL:-$PWD/testdata/refmodel}

if [ ! -x "$python" ] || ! "$python" -c 'import torch, transformers, sentencepiece' 2>/dev/null; then
    echo "parity-convert.sh: installing the reference's Python packages into $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch==2.11.0
    "$venv/bin/pip" install --quiet transformers==4.57.6 numpy==2.2.6 sentencepiece==0.2.3 protobuf safetensors gguf
fi
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

for name in "${names[@]}"; do
    if [ "$name" = refmodel ]; then
        ln -sfn "$QUANTIER_REFMODEL" "$work/checkpoints/refmodel"
    else
        "$python" scripts/checkpoints.py "$work/checkpoints" "$name"
    fi
done
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
    if "$quantier" convert "$work/checkpoints/$name" --outfile "$work/ours/$case.gguf" "${more[@]}" \
        --pre "$QUANTIER_PRE" >"$work/ours.log" 2>&1 && compare "$case" >"$work/cmp.log" 2>&1; then
        identical=$((identical + 1))
        echo "identical  $case"
    else
        different=$((different + 1))
        echo "different  $case: $(tail -qn 1 "$work/ours.log" "$work/cmp.log" 2>/dev/null | tr '\n' ' ')"
    fi
    rm -f "$work/ours/$case".gguf "$work/ours/$case"-*-of-*.gguf
done < <(cases)
echo "$identical identical, $different different"
[ "$different" = 0 ]
