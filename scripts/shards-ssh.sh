#!/usr/bin/env bash
# Runs the shards of `quantier make` by GNU parallel over ssh, and compares all outputs with those of one process.
#
#   scripts/shards-ssh.sh [SHARDS] [HOSTS]      shards of every stage (default 4); machines, separated by commas (default localhost)
#
# All machines see this directory under the same path, and take ssh without a password. A failed shard is started again,
# twice at most. Exit code 1 if an output differs. Needs GNU parallel and jq.
#
# MAKE       arguments of make, in place of three sizes of the reference model with few chunks
# QUANTIER   the program (default: target/release/quantier, built if it is not there)
# WORK       where the outputs go (default: a temporary directory); `one/out` there is that of one process
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
find_quantier
quantier=$(realpath "$quantier")
shards=${1:-4} hosts=${2:-localhost}
work_in "${WORK:-}"
plan_for "$shards" ssh >/dev/null
while read -r stage count; do
    seq 0 $((count - 1)) |
        parallel --jobs 1 --retries 3 --sshlogin "$hosts" --workdir "$PWD" "$quantier" shard "$out" "$stage" {}
    "$quantier" merge-shards "$out" "$stage"
done < <(jq -r '.stages[] | "\(.name) \(.shards | length)"' "$out/work/plan.json")
jq -r '.arguments[]' "$out/work/plan.json" | tr '\n' '\0' | xargs -0 "$quantier" >/dev/null
"$quantier" cluster status "$out" | head -8
QUANTIER=$quantier scripts/shards.py --compare "$work/one/out" "$out"
