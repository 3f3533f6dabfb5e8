#!/usr/bin/env bash
# Compares `quantier split` and `quantier merge` with the real llama-gguf-split, byte for byte: sizes, numbers of tensors,
# first shards without tensors, limits that are too small, models that are split or merged already, on the model in
# testdata/, on quantized ones, on the reference's vocabularies (no tensors, odd strings), and with other alignments.
#
#   scripts/parity-split.sh [NAME ...]      all models, or those named (for example refmodel)
#
# One line per case, then `N identical, M different`; exit code 1 if any is different. Where the reference refuses, Quantier
# must refuse too and leave no file. llama-gguf-split lays files out for 32 bytes even if general.alignment says
# otherwise, so that tensors are not where readers look for them. If its file is broken in that way and ours has the
# model's tensors, as gguf-py reads them, the case is counted apart.
#
# QUANTIER   the program (default: target/release/quantier, built if it is not there)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

theirs=$(scripts/reference.sh)/llama-gguf-split
python=$(scripts/reference.sh --python)
vocabularies=$(scripts/reference.sh --source)/models
find_quantier
quantier=$(realpath "$quantier")
work_in ""
mkdir "$work/models"

cp testdata/refmodel-f16.gguf "$work/models/refmodel.gguf"
for preset in Q4_K_M Q2_K; do
    "$quantier" quantize testdata/refmodel-f16.gguf "$work/models/refmodel-$preset.gguf" "$preset" >/dev/null
done
for alignment in 8 16 64 4096; do
    "$quantier" set testdata/refmodel-f16.gguf -o "$work/models/aligned-$alignment.gguf" \
        --key "general.alignment=u32:$alignment" >/dev/null
done
for vocabulary in "$vocabularies"/ggml-vocab-*.gguf; do
    ln -s "$vocabulary" "$work/models/$(basename "$vocabulary")"
done

identical=0 different=0 broken=0
verdict() {
    case $1 in
        identical) identical=$((identical + 1)) ;;
        different) different=$((different + 1)) ;;
        "only theirs is broken") broken=$((broken + 1)) ;;
    esac
    echo "$1  $2${3:+: $3}"
}
# Runs both in separate directories: case, arguments of the reference, ours. Leaves the results in a/ and b/.
both() {
    local case=$1 a=0 b=0
    rm -rf "$work/a" "$work/b"
    mkdir "$work/a" "$work/b"
    (cd "$work/a" && "$theirs" $2) >"$work/a.log" 2>&1 || a=$?
    (cd "$work/b" && "$quantier" $3) >"$work/b.log" 2>&1 || b=$?
    if [ "$b" != 0 ] && [ -n "$(ls -A "$work/b")" ]; then
        verdict different "$case" "we refuse and leave $(ls "$work/b" | tr '\n' ' ')"
    elif [ "$a" != 0 ] && [ "$b" != 0 ]; then
        verdict identical "$case" "both refuse"
    elif [ "$a" != 0 ] || [ "$b" != 0 ]; then
        verdict different "$case" "exit codes $a and $b: $(tail -qn 1 "$work/a.log" "$work/b.log" | tr '\n' ' ')"
    elif diff -qr "$work/a" "$work/b" >"$work/diff"; then
        verdict identical "$case" "$(ls "$work/a" | wc -l) files"
    elif [ "$(ls "$work/a")" = "$(ls "$work/b")" ] && ! sound "$work/a" && sound "$work/b"; then
        verdict "only theirs is broken" "$case"
    else
        verdict different "$case" "$(head -n 1 "$work/diff")"
    fi
}
# True if the files in a directory have the model's tensors, all of them and byte for byte, as read by gguf-py.
sound() {
    "$python" - "$1" "$model" <<'PYTHON' >/dev/null 2>&1
import sys
from pathlib import Path

from gguf import GGUFReader

def tensors(path):
    return [(t.name, t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in GGUFReader(path).tensors]

found = [t for path in sorted(Path(sys.argv[1]).iterdir()) for t in tensors(path)]
sys.exit(0 if found == tensors(sys.argv[2]) else 1)
PYTHON
}
# Number of tensors per shard.
dry_run() {
    local case="$1 $2 --dry-run"
    "$theirs" $2 --dry-run "$3" s 2>/dev/null | sed -n 's/^split .*n_tensors = \([0-9]*\),.*/\1/p' >"$work/a.log" || true
    "$quantier" split $2 --dry-run --json "$3" s 2>/dev/null |
        python3 -c 'import json, sys; [print(f["tensors"]) for f in json.load(sys.stdin)["files"]]' >"$work/b.log"
    if cmp -s "$work/a.log" "$work/b.log" && [ -s "$work/a.log" ]; then
        verdict identical "$case" "$(wc -l <"$work/a.log") shards"
    else
        verdict different "$case"
    fi
}

options=("" "--split-max-tensors 1" "--split-max-tensors 7" "--split-max-tensors 13 --no-tensor-first-split"
    "--split-max-tensors 56" "--split-max-tensors 1000" "--split-max-size 1M" "--split-max-size 2M"
    "--split-max-size 3M --no-tensor-first-split" "--split-max-size 5M" "--split-max-size 1G"
    "--no-tensor-first-split")
for model in "$work"/models/*.gguf; do
    name=$(basename "$model" .gguf)
    if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then
        continue
    fi
    for option in "${options[@]}"; do
        both "split $name $option" "$option $model s" "split $option $model s"
        # Their shards merged by us, and ours by them. (Both fail on broken shards.)
        first=$(ls "$work/b" | head -n 1)
        if [ -n "$first" ] && diff -qr "$work/a" "$work/b" >/dev/null; then
            rm -rf "$work/shards-a" "$work/shards-b"
            mv "$work/a" "$work/shards-a"
            mv "$work/b" "$work/shards-b"
            both "merge $name $option" "--merge $work/shards-b/$first o.gguf" "merge $work/shards-a/$first o.gguf"
        fi
    done
    dry_run "split $name" "--split-max-tensors 10" "$model"
done

# Merged files are split again, and files that are not shards are refused.
if [ $# -eq 0 ]; then
    model=$work/models/refmodel.gguf
    both "merge refmodel, not split" "--merge $model o.gguf" "merge $model o.gguf"
    "$quantier" split "$model" "$work/again" --split-max-tensors 20 >/dev/null
    "$quantier" merge "$work/again-00001-of-00003.gguf" "$work/merged.gguf" >/dev/null
    both "split merged" "--split-max-tensors 11 $work/merged.gguf s" "split --split-max-tensors 11 $work/merged.gguf s"
    rm "$work/again-00002-of-00003.gguf"
    both "merge with a shard missing" "--merge $work/again-00001-of-00003.gguf o.gguf" \
        "merge $work/again-00001-of-00003.gguf o.gguf"
fi
[ "$broken" = 0 ] || echo "$broken broken by the reference, but valid from Quantier"
echo "$identical identical, $different different"
[ "$different" = 0 ]
