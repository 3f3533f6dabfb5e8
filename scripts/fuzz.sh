#!/usr/bin/env bash
# Fuzzes the readers of untrusted files, each target for SECONDS (default: 60), starting from the seeds in
# fuzz/seeds. Findings are in fuzz/artifacts/TARGET; make a test of each.
#
#     scripts/fuzz.sh [SECONDS] [TARGET...]
#
# Needs cargo-fuzz (cargo install cargo-fuzz). Works with the stable toolchain: the sanitizer's compiler flags are
# unlocked only for these builds.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] ||
    targets=(gguf imatrix covariance safetensors torch quantized tokenizer_model tokenizer_json tiktoken)
export RUSTC_BOOTSTRAP=1
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target"
    dictionary=()
    [ ! -f "$target.dict" ] || dictionary=(-dict="$target.dict")
    # A file of 64 KiB never warrants an allocation of 32 MiB.
    # The target of quantized checkpoints makes sound ones of any bytes.
    seeds=()
    [ ! -d "seeds/$target" ] || seeds=("seeds/$target")
    nice cargo fuzz run --sanitizer address "$target" "corpus/$target" "${seeds[@]}" -- \
        -max_total_time="$seconds" -max_len=65536 -malloc_limit_mb=32 -rss_limit_mb=2048 -timeout=10 \
        -print_final_stats=1 "${dictionary[@]}"
done
