# Common parts of several scripts; to be sourced from the repository's root.

# Sets $quantier: $QUANTIER, or the program of this repository, built if missing.
find_quantier() {
    quantier=${QUANTIER:-target/release/quantier}
    [ -x "$quantier" ] || cargo build --release --quiet
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
