#!/usr/bin/env bash
# Runs the shards of `quantier make` through Snakemake, and compares all outputs with those of one process.
#
#   scripts/shards-snakemake.sh [SHARDS] [KILLS]      shards of every stage (default 37), of which so many are killed (default 10)
#
# Snakemake is installed from PyPI into a virtual environment in the work directory. KILLS shards are killed by SIGKILL and started
# again by Snakemake. Exit code 1 if an output differs. Needs python3-venv.
#
# MAKE        arguments of make, in place of three sizes of the reference model with few chunks
# QUANTIER    the program (default: target/release/quantier, built if it is not there)
# WORK        where the outputs go (default: a temporary directory); `one/out` there is that of one process
# SNAKEMAKE   Snakemake, if it is installed
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
find_quantier
quantier=$(realpath "$quantier")
shards=${1:-37} kills=${2:-10}
work_in "${WORK:-}"
snakemake=${SNAKEMAKE:-}
if [ -z "$snakemake" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet snakemake
    snakemake=$work/venv/bin/snakemake
fi
plan_for "$shards" snakemake >/dev/null
"$quantier" cluster snakemake "$out" --cores 1
"$snakemake" --snakefile "$out/work/snakemake/Snakefile" --cores 2 --directory "$work" --keep-going --quiet &
engine=$!
killed=0
while kill -0 "$engine" 2>/dev/null; do
    for process in /proc/[0-9]*; do
        if [ "$killed" -lt "$kills" ] &&
            { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -q "^$quantier shard $out "; then
            if kill_shard "${process#/proc/}"; then
                killed=$((killed + 1))
                sleep 1
            fi
        fi
    done
    sleep 0.2
done
wait "$engine"
echo "$killed shards killed and started again"
QUANTIER=$quantier scripts/shards.py --compare "$work/one/out" "$out"
