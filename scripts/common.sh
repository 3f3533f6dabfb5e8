# Common parts of several scripts; to be sourced from the repository's root.

# Sets $quantier: $QUANTIER, or the program of this repository, built if missing.
find_quantier() {
    quantier=${QUANTIER:-target/release/quantier}
    [ -x "$quantier" ] || cargo build --release --quiet
}

# Plans `make` in $1 shards of every stage for the scheduler $2, in $out below $work; `$work/one/out` there has the outputs of one
# process. $MAKE has the arguments of make, in place of three sizes of the reference model with few chunks.
plan_for() {
    local arguments usual=(testdata/refmodel --bpw 3.3 --bpw 4.25 --bpw 5.5 -c 128 --score-chunks 6 --eval-chunks 40
        -f testdata/texts/calibration.txt --eval testdata/texts/evaluation.txt)
    read -ra arguments <<<"${MAKE:-${usual[*]}}"
    [ -f "$work/one/out/frontier.json" ] || "$quantier" make "${arguments[@]}" -o "$work/one/out" >/dev/null
    out=$work/$2/out
    rm -rf "$out"
    "$quantier" make "${arguments[@]}" -o "$out" --plan-only --shards "$1"
}

# Kills the process of a shard, $1, unless that shard was killed four times: schedulers start a shard again five times.
declare -A kills_of=()
kill_shard() {
    local shard
    shard=$({ tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null) || return 1
    [ -n "$shard" ] && [ "${kills_of[$shard]:-0}" -lt 4 ] && kill -9 "$1" 2>/dev/null || return 1
    kills_of[$shard]=$((${kills_of[$shard]:-0} + 1))
}

# Sets $work: the named directory, created if missing; without a name a temporary one, removed at the end.
work_in() {
    if [ -n "$1" ]; then
        work=$1
        mkdir -p "$work"
    else
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
    fi
}
