#!/usr/bin/env bash
# Compares the files of `quantier make --rounding reference` with those of the real llama-quantize for the same model, recipe
# and importance matrix: every tensor, byte for byte. These files, including those of tiny
# mixture-of-experts models, and files rounded with error feedback, must also load and generate in
# llama-completion.
#
#   scripts/parity-make.sh [NAME ...]      refmodel and the checkpoints mixtral, qwen2moe and qwen3moe, or those named
#
# One line per file, then `N identical, N different`; then `N run, N do not` (scripts/convert-runs.py). Exit code 1 if
# anything is different or does not run. The first call builds the reference and installs its Python packages (5 GB).
#
# QUANTIER          the program (default: target/release/quantier, built if it is not there)
# QUANTIER_PARITY   where the files go (default: a temporary directory, removed afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

bin=$(scripts/reference.sh)
python=$(scripts/reference.sh --python)
find_quantier

work_in "${QUANTIER_PARITY:-}"
mkdir -p "$work/checkpoints"

names=("$@")
[ ${#names[@]} -gt 0 ] || names=(refmodel mixtral qwen2moe qwen3moe)

# Any text works: the comparison does not depend on it.
settings=(-f testdata/texts/calibration.txt --eval testdata/texts/evaluation.txt -c 128 --score-chunks 4 --score-positions 256
    --eval-chunks 4)

: >"$work/files"
identical=0 different=0
for name in "${names[@]}"; do
    if [ "$name" = refmodel ]; then
        base=testdata/refmodel-f16.gguf
        ln -sfn "$PWD/testdata/refmodel" "$work/checkpoints/refmodel"
        budgets=(--bpw 2.4 --bpw 3.3 --like Q3_K_M --bpw 4.25 --bpw 5.5 --bpw 8)
    else
        base=$work/$name.gguf
        QUANTIER_REFMODEL=$PWD/testdata/refmodel "$python" scripts/checkpoints.py "$work/checkpoints" "$name" >/dev/null
        "$quantier" convert "$work/checkpoints/$name" --outfile "$base" --outtype f16 --pre gpt-2 >"$work/log" 2>&1
        budgets=(--bpw 5 --types k,q8_0,iq4_nl,q5_0)
    fi
    out=$work/$name
    rm -rf "$out"
    if ! "$quantier" make "$base" "${settings[@]}" "${budgets[@]}" --rounding reference -o "$out" >"$work/log" 2>&1; then
        different=$((different + 1))
        echo "different  $name: $(tail -n 1 "$work/log")"
        continue
    fi
    # llama-quantize has no error feedback to compare with: the files must run.
    if "$quantier" make "$base" "${settings[@]}" "${budgets[@]:0:2}" "${budgets[@]:$((${#budgets[@]} - 2))}" \
        -o "$out-feedback" >"$work/log" 2>&1; then
        for file in "$out-feedback"/*bpw-*.gguf; do printf '%s\t%s\n' "$name" "$file" >>"$work/files"; done
    else
        different=$((different + 1))
        echo "different  $name, with error feedback: $(tail -n 1 "$work/log")"
    fi
    for recipe in "$out"/*.recipe.txt; do
        file=${recipe%.recipe.txt}
        case=$(basename "$file" .gguf)
        label=${case##*bpw-}
        printf '%s\t%s\n' "$name" "$file" >>"$work/files"
        # The reference sometimes loses its last lines, but nothing else: only the file matters.
        rm -f "$work/theirs.gguf"
        "$bin/llama-quantize" --imatrix "$out/imatrix.gguf" --tensor-type-file "$recipe" "$base" "$work/theirs.gguf" \
            "$label" >"$work/log" 2>&1 || true
        if [ -e "$work/theirs.gguf" ] && "$python" scripts/tensors.py "$file" "$work/theirs.gguf" >"$work/cmp.log" 2>&1; then
            identical=$((identical + 1))
            echo "identical  $name: $case, $(cat "$work/cmp.log")"
        else
            different=$((different + 1))
            echo "different  $name: $case: $(tail -qn 1 "$work/cmp.log" "$work/log" 2>/dev/null | tr '\n' ' ')"
        fi
    done
done
echo "$identical identical, $different different"
QUANTIER_PRE=gpt-2 "$python" scripts/convert-runs.py "$bin" "$work/checkpoints" <"$work/files" && [ "$different" = 0 ]
