#!/usr/bin/env bash
# Compares `quantier convert` with the reference's convert_hf_to_gguf.py, byte for byte: a tiny checkpoint of every
# architecture in every output type, splits, vocabularies alone, metadata and names, and the reference model.
#
#   scripts/parity-convert.sh [NAME ...]      all checkpoints, or those named
#
# One line per case, then `N identical, N different`. Then every file of ours must load in llama-completion and generate,
# and the first of each checkpoint must tokenize a text to the ids of the checkpoint's own tokenizer
# (scripts/convert-runs.py): one line per checkpoint, then `N run, N do not`. Exit code 1 if anything is different or
# does not run. The first call builds the reference and installs its Python packages (5 GB).
#
# QUANTIER_WRITE_GOLDENS=1 stops after the reference has written its files and puts the SHA-256 of those that the plain
# tests can make (tests/suite/convert_golden.rs) into testdata/convert.sha256.
#
# QUANTIER            the program (default: target/release/quantier, built if it is not there)
# QUANTIER_REFMODEL   the reference model as a Hugging Face directory (default: testdata/refmodel)
# QUANTIER_PARITY     where the files go (default: a temporary directory, removed afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

bin=$(scripts/reference.sh)
python=$(scripts/reference.sh --python)
source=$(scripts/reference.sh --source)
# Both sides are given the pre-tokenizer: the reference cannot know the hashes of tiny vocabularies.
export QUANTIER_PRE=gpt-2
export QUANTIER_REFMODEL=${QUANTIER_REFMODEL:-$PWD/testdata/refmodel}

find_quantier

work_in "${QUANTIER_PARITY:-}"
mkdir -p "$work/checkpoints"

names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <("$python" scripts/checkpoints.py --list; echo refmodel; echo bpe)

# The checkpoints that draft models are for.
declare -A targets
while IFS=$'\t' read -r draft target; do targets[$draft]=$target; done < <("$python" scripts/checkpoints.py --targets)

# case <TAB> checkpoint <TAB> name of the output, a dot for the default <TAB> further arguments
cases() {
    local name type more
    for name in "${names[@]}"; do
        if [ "$name" = bpe ]; then
            printf 'bpe-vocab\tbpe\tout.gguf\t--vocab-only\n'
            continue
        fi
        if [ -n "${targets[$name]:-}" ]; then
            more=$'\t--target-model-dir\t'$work/checkpoints/${targets[$name]}
            for type in f32 f16 bf16 q8_0 auto; do
                printf '%s-%s\t%s\tout.gguf\t--outtype\t%s%s\n' "$name" "$type" "$name" "$type" "$more"
            done
            printf '%s-default\t%s\t.\t--outtype\tf16%s\n' "$name" "$name" "$more"
            printf '%s-vocab\t%s\tout.gguf\t--vocab-only%s\n' "$name" "$name" "$more"
            continue
        fi
        if [[ $name == mistral-format* ]]; then
            for type in f32 f16 bf16 q8_0 auto; do
                printf '%s-%s\t%s\tout.gguf\t--outtype\t%s\t--mistral-format\n' "$name" "$type" "$name" "$type"
            done
            printf '%s-plain\t%s\tout.gguf\t--mistral-format\t--disable-mistral-community-chat-template\n' "$name" "$name"
            printf '%s-vocab\t%s\tout.gguf\t--vocab-only\t--mistral-format\n' "$name" "$name"
            continue
        fi
        # The reference requires a block for further tokens, and files without one do not run, unless it is disabled by
        # an option.
        more=
        case $name in qwen35-without-mtp | qwen35-promised | minicpmv46) more=$'\t--no-nextn' ;; esac
        for type in f32 f16 bf16 q8_0 auto; do
            printf '%s-%s\t%s\tout.gguf\t--outtype\t%s%s\n' "$name" "$type" "$name" "$type" "$more"
        done
        case $name in
            # Some rows of qwen2 are not whole blocks.
            refmodel | llama-f32 | mixtral | qwen2 | gemma1 | gpt2 | llama-bin-f16 | bitnet)
                for type in tq1_0 tq2_0; do
                    printf '%s-%s\t%s\t{ftype}-{FTYPE}.gguf\t--outtype\t%s\n' "$name" "$type" "$name" "$type"
                done
                ;;&
            refmodel | llama | llama-bin | mixtral | phi3-long)
                printf '%s-first\t%s\tout.gguf\t--no-tensor-first-split\t--use-temp-file\n' "$name" "$name"
                printf '%s-first-tensors\t%s\tout.gguf\t--no-tensor-first-split\t--split-max-tensors\t5\n' "$name" "$name"
                printf '%s-temp\t%s\tout.gguf\t--use-temp-file\n' "$name" "$name"
                printf '%s-tensors\t%s\tout.gguf\t--split-max-tensors\t5\n' "$name" "$name"
                printf '%s-size\t%s\tout.gguf\t--split-max-size\t1M\n' "$name" "$name"
                printf '%s-unsplit\t%s\tout.gguf\t--split-max-size\t1G\n' "$name" "$name"
                printf '%s-vocab\t%s\tout.gguf\t--vocab-only\n' "$name" "$name"
                for type in f32 f16; do
                    printf '%s-bigendian-%s\t%s\tout.gguf\t--bigendian\t--outtype\t%s\n' "$name" "$type" "$name" "$type"
                done
                ;;
            qwen35 | qwen35moe | qwen35-sparse | qwen3next | nemotron_h_moe-latent | bailingmoe3 | glm4-flash | glm4moe | deepseek32 | glm-dsa-shared | hy_v3 | mimo2 | step35 | deepseek4 | glm5-next | dots3note)
                for type in f32 q8_0; do
                    printf '%s-mtp-%s\t%s\tout.gguf\t--mtp\t--outtype\t%s\n' "$name" "$type" "$name" "$type"
                    printf '%s-no-nextn-%s\t%s\tout.gguf\t--no-nextn\t--outtype\t%s\n' "$name" "$type" "$name" "$type"
                done
                printf '%s-mtp-default\t%s\t.\t--mtp\t--outtype\tf16\n' "$name" "$name"
                printf '%s-no-mtp-default\t%s\t.\t--no-mtp\t--outtype\tf16\n' "$name" "$name"
                ;;
            *fp8* | *nvfp4-mixed)
                for type in f16 bf16; do
                    printf '%s-as-q8-%s\t%s\tout.gguf\t--fp8-as-q8\t--outtype\t%s\n' "$name" "$type" "$name" "$type"
                done
                ;;
            embeddinggemma*)
                for type in f32 q8_0; do
                    printf '%s-modules-%s\t%s\tout.gguf\t--sentence-transformers-dense-modules\t--outtype\t%s\n' "$name" "$type" "$name" "$type"
                done
                printf '%s-vocab\t%s\tout.gguf\t--vocab-only\n' "$name" "$name"
                ;;
            bert | xlm-roberta* | jina-bert* | modernbert | t5 | t5-gated)
                printf '%s-vocab\t%s\tout.gguf\t--vocab-only\n' "$name" "$name"
                ;;
            Card-*)
                printf '%s-default\t%s\t.\t--outtype\tf16\n' "$name" "$name"
                printf '%s-default-vocab\t%s\t.\t--vocab-only\n' "$name" "$name"
                printf '%s-template\t%s\t{ftype}-{FTYPE}.gguf\t--outtype\tq8_0\n' "$name" "$name"
                printf '%s-name\t%s\t.\t--model-name\tGiven Name\n' "$name" "$name"
                printf '%s-metadata\t%s\t.\t--metadata\t%s\n' "$name" "$name" "$work/checkpoints/$name/metadata.json"
                ;;
        esac
    done
}

made=()
for name in "${names[@]}"; do
    case $name in
        refmodel) ln -sfn "$QUANTIER_REFMODEL" "$work/checkpoints/refmodel" ;;
        bpe) ln -sfn "$PWD/testdata/bpe" "$work/checkpoints/bpe" ;;
        *) made+=("$name" ${targets[$name]:+"${targets[$name]}"}) ;;
    esac
done
[ ${#made[@]} = 0 ] || "$python" scripts/checkpoints.py "$work/checkpoints" "${made[@]}"
rm -rf "$work/expected" "$work/ours"
cases | while IFS=$'\t' read -r case name output arguments; do
    mkdir -p "$work/expected/$case" "$work/ours/$case"
    printf '%s\t--outfile\t%s\t%s\n' "$work/checkpoints/$name" "$work/expected/$case/$output" "$arguments"
done >"$work/jobs"
# PyTorch's sums depend on the number of threads in their last bits; BitNet's scales are such sums.
export OMP_NUM_THREADS=1
# Mistral's own format needs a package that must be hidden from the others.
convert() {
    { grep -v mistral-format "$work/jobs" || true; } | "$python" scripts/convert-reference.py "$source"
    if grep -q mistral-format "$work/jobs"; then
        local mistral_common
        mistral_common=$(scripts/reference.sh --mistral-common)
        grep mistral-format "$work/jobs" |
            PYTHONPATH=$mistral_common "$python" scripts/convert-reference.py "$source"
    fi
}
if ! convert >"$work/reference.log" 2>&1 ||
    grep '^failed:' "$work/reference.log" >&2; then
    tail -n 20 "$work/reference.log" >&2
    echo "parity-convert.sh: the reference failed" >&2
    exit 1
fi

if [ -n "${QUANTIER_WRITE_GOLDENS:-}" ]; then
    (cd "$work/expected" && sha256sum refmodel-*/* Card-*/* bpe-*/*) >testdata/convert.sha256
    exit
fi

identical=0 different=0
# True if both sides made the same files of a case, by names and bytes.
compare() {
    [ -n "$(ls "$work/expected/$1")" ] && diff -r "$work/expected/$1" "$work/ours/$1"
}
while IFS=$'\t' read -r case name output arguments; do
    IFS=$'\t' read -ra more <<<"$arguments"
    if "$quantier" convert "$work/checkpoints/$name" --outfile "$work/ours/$case/$output" "${more[@]}" \
        --pre "$QUANTIER_PRE" >"$work/ours.log" 2>&1 && compare "$case" >"$work/cmp.log" 2>&1; then
        identical=$((identical + 1))
        echo "identical  $case"
    else
        different=$((different + 1))
        echo "different  $case: $(tail -qn 1 "$work/ours.log" "$work/cmp.log" 2>/dev/null | tr '\n' ' ')"
    fi
done < <(cases)
echo "$identical identical, $different different"

# A split model is opened by its first file. Vocabulary-only files, draft models, rerankers and big-endian files cannot
# generate here.
cases | while IFS=$'\t' read -r case name output arguments; do
    # llama.cpp never finishes a token of PLaMo 2: it rotates heads by 0 numbers, without end.
    # Draft models run beside their targets only.
    [[ $name != *-reranker* && $name != plamo2 && -z ${targets[$name]:-} ]] || continue
    files=("$work/ours/$case"/*.gguf)
    [[ $arguments == --vocab-only* || $arguments == --bigendian* || $arguments == --mtp* ]] || [ ! -e "${files[0]}" ] || printf '%s\t%s\n' "$name" "${files[0]}"
done >"$work/files"
"$python" scripts/convert-runs.py "$bin" "$work/checkpoints" <"$work/files" && [ "$different" = 0 ]
