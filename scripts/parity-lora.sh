#!/usr/bin/env bash
# Compares `quantier convert` of LoRA adapters with the reference's convert_lora_to_gguf.py, byte for byte: an adapter of
# every kind of matrix, of embeddings and of norms for a tiny checkpoint of many architectures, in ranks, types and output
# types that rotate; settings, files and names of one.
#
#   scripts/parity-lora.sh [NAME ...]      the checkpoints below, or those named
#
# One line per adapter: `identical`, `different`; `refused` where both refuse; `ours` where only the reference refuses
# (what its class for pairs lacks), with its reason; `theirs` where only Quantier refuses, with the reason: llama.cpp must
# refuse or abort on the reference's file. `corrected` where bytes differ and llama.cpp loads ours but not the reference's:
# factors of GPT-2, which the reference exchanges (of its one square matrix, llama.cpp loads them, and misapplies them).
# Then the counts. Exit code 1 if anything is different, or refused here alone although llama.cpp runs it.
#
# QUANTIER            the program (default: target/release/quantier, built if it is not there)
# QUANTIER_PARITY     where the files go (default: a temporary directory, removed afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

bin=$(scripts/reference.sh)
python=$(scripts/reference.sh --python)
source=$(scripts/reference.sh --source)
export QUANTIER_REFMODEL=${QUANTIER_REFMODEL:-$PWD/testdata/refmodel}

find_quantier

work_in "${QUANTIER_PARITY:-}"

names=("$@")
[ ${#names[@]} -gt 0 ] || names=(llama llama3 mixtral qwen2 qwen2moe qwen3moe phi2 phi3 gemma2 gemma3 gptneox bloom
    falcon-groups gpt2 starcoder command-r olmo granite granitemoe qwen35 qwen35-f16 qwen3next deepseek2 glm4 internlm2
    falcon-h1 mamba2 lfm2 minicpm nemotron stablelm gpt-oss chatglm exaone4 qwen25vl gemma3-vl ernie4_5-fused xverse mpt
    codeshell refact granitehybrid-experts)

# True if llama.cpp generates with an adapter on its base.
runs() {
    local name=$1 adapter=$2 model=$work/models/$1.gguf
    mkdir -p "$work/models"
    [ -f "$model" ] || "$quantier" convert "$work/checkpoints/$name" --outtype f32 --pre gpt-2 -o "$model" >"$work/model.log" 2>&1
    "$bin/llama-completion" -m "$model" --lora "$adapter" -p "Hello world" -n 4 -no-cnv --temp 0 -t 2 --no-warmup \
        </dev/null >"$work/run.log" 2>&1
}

export OMP_NUM_THREADS=1
mkdir -p "$work/checkpoints" "$work/adapters"
"$python" scripts/checkpoints.py "$work/checkpoints" "${names[@]}"
"$python" scripts/adapters.py "$work/checkpoints" "$work/adapters" "${names[@]}"

# adapter <TAB> checkpoint <TAB> output type
cases() {
    local types=(f32 f16 bf16 q8_0) number=0 adapter
    for adapter in "$work/adapters"/*/*/; do
        adapter=${adapter#"$work/adapters/"}
        printf '%s\t%s\t%s\n' "${adapter%/}" "${adapter%%/*}" "${types[number++ % 4]}"
    done
}

rm -rf "$work/expected" "$work/ours"
cases | while IFS=$'\t' read -r adapter name type; do
    mkdir -p "$work/expected/$adapter" "$work/ours/$adapter"
    # Names are made of the adapter's, in one case.
    output=$work/expected/$adapter/out.gguf
    [[ $adapter != */Name-* ]] || output=$work/expected/$adapter
    printf '%s\t--base\t%s\t--outtype\t%s\t--outfile\t%s\n' "$work/adapters/$adapter" "$work/checkpoints/$name" "$type" \
        "$output"
done >"$work/jobs"
"$python" scripts/lora-reference.py "$source" <"$work/jobs" >"$work/failed" 2>"$work/reference.log"

declare -A count=([identical]=0 [corrected]=0 [different]=0 [refused]=0 [ours]=0 [theirs]=0)
wrong=0
report() {
    count[$1]=$((count[$1] + 1))
    printf '%-10s %s%s\n' "$1" "$2" "${3:+: $3}"
}
while IFS=$'\t' read -r adapter name type; do
    output=$work/ours/$adapter/out.gguf
    [[ $adapter != */Name-* ]] || output=$work/ours/$adapter
    made=yes
    "$quantier" convert "$work/adapters/$adapter" --base "$work/checkpoints/$name" --outtype "$type" \
        --outfile "$output" >"$work/ours.log" 2>&1 || made=
    expected=$(ls "$work/expected/$adapter")
    reason=$(grep -v '^note' "$work/ours.log" | tail -n 1)
    case ${made:-no}-${expected:+yes} in
        yes-yes)
            if diff -r "$work/expected/$adapter" "$work/ours/$adapter" >"$work/cmp.log" 2>&1; then
                report identical "$adapter"
            elif [[ $adapter == gpt2/*_attn_c_proj ]] || ! runs "$name" "$work/expected/$adapter/out.gguf" && runs "$name" "$output"; then
                report corrected "$adapter"
            else
                report different "$adapter" "$(tail -n 1 "$work/cmp.log")"
            fi
            ;;
        yes-) report ours "$adapter" "$(grep -F "adapters/$adapter"$'\t' "$work/failed" | cut -f 9 | head -n 1)" ;;
        no-yes)
            report theirs "$adapter" "$reason"
            ! runs "$name" "$work/expected/$adapter/out.gguf" || wrong=$((wrong + 1))
            ;;
        no-) report refused "$adapter" ;;
    esac
done < <(cases)
echo "${count[identical]} identical, ${count[corrected]} corrected, ${count[different]} different, ${count[refused]} refused by" \
    "both, ${count[ours]} converted here alone, ${count[theirs]} by the reference alone, $wrong of which run"
[ "${count[different]}" = 0 ] && [ "$wrong" = 0 ]
