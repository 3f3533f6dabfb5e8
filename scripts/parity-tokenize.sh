#!/usr/bin/env bash
# Compares `quantier tokenize` with the reference's llama-tokenize, id for id: every vocabulary of a supported kind that
# the reference has (models/ggml-vocab-*.gguf), and the reference model's; on the reference's own cases (.inp, whose
# ids are also compared with .out), on texts, and on generated difficult ones; special tokens parsed and not. Then a small
# vocabulary for every pre-tokenizer that the reference names, one of PLaMo and one of RWKV (scripts/split_vocabularies.py),
# on the difficult texts.
#
#   scripts/parity-tokenize.sh [NAME ...]      all vocabularies, or those named (for example llama-bpe); `split` for all of
#                                              the small ones, split-NAME for one
#
# One line per case; the last line is `N identical, N different`. Exit code 1 if any is different.
#
# QUANTIER        the program (default: target/release/quantier, built first)
# QUANTIER_TEXT   a directory of .txt files (default: ../shared/text if it is there)
set -euo pipefail
cd "$(dirname "$0")/.."

reference=$(scripts/reference.sh)
vocabularies=$(scripts/reference.sh --source)/models
llama_tokenize=$reference/llama-tokenize
[ -x "$llama_tokenize" ] || llama_tokenize=$reference/bin/llama-tokenize
quantier=${QUANTIER:-target/release/quantier}
[ -n "${QUANTIER:-}" ] || cargo build --release --quiet --bin quantier
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Random strings of characters that pre-tokenizers treat differently; the seed is fixed.
python3 - "$work/nasty.txt" <<'PYTHON'
import random
import sys

random.seed(4)
parts = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n", "\u00a0", "\u0085", "\u3000", "\u2028", "\u200b", "\u200d",
         "a", "Z", "foo", "HelloWorld", "ÉCOLE", "naïve", "Straße", "ǅ", "ʰ", "1", "12", "1234567", "½", "٣", "Ⅷ", "²",
         "'s", "'LL", "'re", "'", "’s", "'ſ", "e\u0301", "\u0301", "क्षि", "ไทย", "漢字", "かな", "カナ", "한국어", "ㄅㄆ", "𠀀",
         "😀", "👩\u200d👩\u200d👧", "🇩🇪", "!", "...", "—", "$", "+=", "<", "|", "`", "。", "！", "،", "_", "\\", "/", "//",
         "\u0000a", "\u001f", "\ue000", "\U0010ffff", "\u0378", "<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>",
         "<|eot_id|>", "<bos>", "<0x0A>", "▁", "▁▁", "Ġ", "[PAD]", "<fim_prefix>", "<think>"]
with open(sys.argv[1], "w", encoding="utf-8", newline="") as out:
    for _ in range(20000):
        out.write("".join(random.choice(parts) for _ in range(random.randint(1, 12))))
        out.write(random.choice(["", "\n", " "]))
PYTHON

texts=("$work/nasty.txt")
directory=${QUANTIER_TEXT:-../shared/text}
[ ! -d "$directory" ] || texts+=("$directory"/*.txt)

identical=0 different=0
report() {
    if cmp -s "$work/expected" "$work/ours" && [ -s "$work/ours" ]; then
        identical=$((identical + 1))
        echo "identical  $1"
    else
        different=$((different + 1))
        echo "different  $1: $(head -c 200 "$work/log" | tr '\n' ' ')$(cmp "$work/expected" "$work/ours" 2>&1 | head -c 200)"
    fi
}
compare() {
    local case=$1 model=$2 text=$3
    shift 3
    "$llama_tokenize" -m "$model" -f "$text" --ids --no-escape --log-disable "$@" >"$work/expected" 2>"$work/log" || true
    "$quantier" tokenize -m "$model" -f "$text" --ids --no-escape "$@" >"$work/ours" 2>"$work/log" || true
    report "$case"
}

# The reference's own cases: texts between markers, one line of ids for each.
own_cases() {
    local name=$1 model=$2
    python3 - "$model" "$quantier" "$work" <<'PYTHON'
import subprocess
import sys

model, quantier, work = sys.argv[1:]
texts = open(model + ".inp", encoding="utf-8", newline="").read().split("\n__ggml_vocab_test__\n")
expected = open(model + ".out").read().splitlines()
ours = []
for text in texts[: len(expected)]:
    ran = subprocess.run([quantier, "tokenize", "-m", model, "--stdin", "--json", "--no-escape", "--no-bos",
                          "--no-parse-special"], input=text.encode(), capture_output=True)
    ours.append(ran.stdout.decode())
import json
with open(work + "/expected", "w") as a, open(work + "/ours", "w") as b:
    for line, own in zip(expected, ours):
        a.write(" ".join(line.split()) + "\n")
        b.write(" ".join(map(str, json.loads(own)["ids"])) + "\n")
PYTHON
    report "$name .inp/.out"
}

for model in "$vocabularies"/ggml-vocab-*.gguf testdata/refmodel-f16.gguf; do
    name=$(basename "${model#*ggml-vocab-}" .gguf)
    if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then
        continue
    fi
    if ! "$quantier" tokenize -m "$model" -p a --ids >"$work/log" 2>&1; then
        echo "skipped    $name: $(tr '\n' ' ' <"$work/log")"
        continue
    fi
    [ ! -f "$model.inp" ] || : >"$work/log"
    [ ! -f "$model.inp" ] || own_cases "$name" "$model"
    for text in "${texts[@]}"; do
        compare "$name $(basename "$text" .txt)" "$model" "$text"
        compare "$name $(basename "$text" .txt) --no-parse-special" "$model" "$text" --no-parse-special
    done
done

# Every pre-tokenizer by its name.
if [ $# = 0 ] || [[ " $* " == *" split"* ]]; then
    python=$(scripts/reference.sh --python)
    "$python" scripts/split_vocabularies.py "$(scripts/reference.sh --source)" "$work/split" "$work/nasty.txt"
    head -c 100000 "$work/nasty.txt" | iconv -f utf-8 -t utf-8 -c >"$work/some.txt"
    for model in "$work"/split/*.gguf; do
        name=$(basename "$model" .gguf)
        if [ $# -gt 0 ] && [[ " $* " != *" split "* ]] && [[ " $* " != *" $name "* ]]; then
            continue
        fi
        compare "$name" "$model" "$work/some.txt"
        compare "$name --no-parse-special" "$model" "$work/some.txt" --no-parse-special
    done
fi
echo "$identical identical, $different different"
[ "$different" = 0 ]
