#!/usr/bin/env bash
# Compares `quantier convert --mmproj` with the reference's convert_hf_to_gguf.py --mmproj, byte for byte: a tiny projector of
# every supported kind (scripts/projectors.py) in every output type, and under the default name.
#
#   scripts/parity-mmproj.sh [NAME ...]      all projectors, or those named
#
# One line per case, then `N identical, N different`. Exit code 1 if anything is different.
#
# QUANTIER            the program (default: target/release/quantier, built if it is not there)
# QUANTIER_PARITY     where the files go (default: a temporary directory, removed afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

python=$(scripts/reference.sh --python)
source=$(scripts/reference.sh --source)

find_quantier

work_in "${QUANTIER_PARITY:-}"

names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <("$python" scripts/projectors.py --list)

export OMP_NUM_THREADS=1
mkdir -p "$work/checkpoints"
"$python" scripts/projectors.py "$work/checkpoints" "${names[@]}"

# case <TAB> projector <TAB> name of the output, a dot for the default <TAB> further arguments
cases() {
    local name type
    for name in "${names[@]}"; do
        for type in f32 f16 bf16 q8_0 auto; do
            printf '%s-%s\t%s\tout.gguf\t--outtype\t%s\n' "$name" "$type" "$name" "$type"
        done
        printf '%s-default\t%s\t.\t--outtype\tf16\n' "$name" "$name"
        printf '%s-name\t%s\t{ftype}-{FTYPE}.gguf\t--model-name\tGiven Name\n' "$name" "$name"
        printf '%s-bigendian\t%s\tout.gguf\t--bigendian\t--outtype\tf16\n' "$name" "$name"
    done
}

rm -rf "$work/expected" "$work/ours"
cases | while IFS=$'\t' read -r case name output arguments; do
    mkdir -p "$work/expected/$case" "$work/ours/$case"
    printf '%s\t--outfile\t%s\t--mmproj\t%s\n' "$work/checkpoints/$name" "$work/expected/$case/$output" "$arguments"
done >"$work/jobs"
"$python" scripts/convert-reference.py "$source" <"$work/jobs" >"$work/reference.log" 2>&1
if grep '^failed:' "$work/reference.log" >&2; then
    tail -n 20 "$work/reference.log" >&2
    echo "parity-mmproj.sh: the reference failed" >&2
    exit 1
fi

identical=0 different=0
while IFS=$'\t' read -r case name output arguments; do
    IFS=$'\t' read -ra more <<<"$arguments"
    if "$quantier" convert "$work/checkpoints/$name" --mmproj --outfile "$work/ours/$case/$output" "${more[@]}" \
        >"$work/ours.log" 2>&1 && [ -n "$(ls "$work/expected/$case")" ] &&
        diff -r "$work/expected/$case" "$work/ours/$case" >"$work/cmp.log" 2>&1; then
        identical=$((identical + 1))
        echo "identical  $case"
    else
        different=$((different + 1))
        echo "different  $case: $(tail -qn 1 "$work/ours.log" "$work/cmp.log" 2>/dev/null | tr '\n' ' ')"
    fi
done < <(cases)
echo "$identical identical, $different different"
[ "$different" = 0 ]
