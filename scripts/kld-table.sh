#!/usr/bin/env bash
# Mean KL divergence of quantized files on texts, ours beside llama-perplexity's, as a table in Markdown.
#
#   scripts/kld-table.sh TEXT ...       the first 200 kB of each
#
# QUANTIER         the program (default: target/release/quantier, built first)
# QUANTIER_MODEL   the base, a GGUF (default: testdata/refmodel-f16.gguf)
# QUANTIER_CHUNKS  maximum number of chunks of 512 tokens per text (default: all)
# QUANTIER_TYPES   the types (default: Q2_K Q3_K_M Q4_K_M Q5_K_M Q6_K Q8_0)
set -euo pipefail
cd "$(dirname "$0")/.."

reference=$(scripts/reference.sh)
model=${QUANTIER_MODEL:-testdata/refmodel-f16.gguf}
chunks=${QUANTIER_CHUNKS:--1}
read -ra types <<<"${QUANTIER_TYPES:-Q2_K Q3_K_M Q4_K_M Q5_K_M Q6_K Q8_0}"
quantier=${QUANTIER:-target/release/quantier}
[ -n "${QUANTIER:-}" ] || cargo build --release --quiet --bin quantier
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

files=()
for type in "${types[@]}"; do
    "$quantier" quantize "$model" "$work/$type.gguf" "$type" >/dev/null
    files+=("$work/$type.gguf")
done

# Output of llama-perplexity; its last lines are sometimes lost, so it is run until they are printed.
divergence() {
    local found
    for _ in $(seq 20); do
        found=$("$reference/llama-perplexity" -t 1 -m "$1" -c 512 --kl-divergence --kl-divergence-base "$work/base.kld" \
            2>&1 | sed -n 's/^Mean *KLD: *\([0-9.]*\).*/\1/p')
        [ -z "$found" ] || break
    done
    echo "${found:-none}"
}

echo "| text | type | Quantier | Quantier, reference's logits file | llama-perplexity | activations rounded |"
echo "|---|---|---|---|---|---|"
for text in "$@"; do
    head -c 200000 "$text" | iconv -c -f utf-8 -t utf-8 >"$work/text.txt"
    "$reference/llama-perplexity" -t 1 -m "$model" -f "$work/text.txt" -c 512 --chunks "$chunks" \
        --kl-divergence-base "$work/base.kld" >/dev/null 2>&1
    "$quantier" kld "$model" "${files[@]}" -f "$work/text.txt" ${QUANTIER_CHUNKS:+--chunks "$chunks"} --json \
        >"$work/ours.json"
    "$quantier" kld --logits "$work/base.kld" "${files[@]}" --json >"$work/stored.json"
    for i in "${!types[@]}"; do
        python3 - "$work" "$i" "$(basename "$text" .txt)" "${types[i]}" "$(divergence "${files[i]}")" <<'PYTHON'
import json
import sys

work, i, text, kind, theirs = sys.argv[1:]
ours, stored = (json.load(open(f"{work}/{name}.json"))["models"][int(i)]["statistics"]["kld"]["value"]
                for name in ("ours", "stored"))
print(f"| {text} | {kind} | {ours:.6f} | {stored:.6f} | {theirs} | {float(theirs) / stored - 1:+.1%} |", flush=True)
PYTHON
    done
done
