#!/usr/bin/env bash
# The block formats on aarch64: compiles them for it, with their NEON kernels, and runs there under emulation
#
#   every operation of the lanes against the plain one, and the unit tests of the formats,
#   the golden vectors of the real ggml (crates/blocks/testdata/blocks.golden),
#   NEON against scalar for every type: blocks per type in QUANTIER_BLOCKS (default 1000), types in QUANTIER_TYPES.
#
#   scripts/aarch64.sh
#
# On Debian, as root, it installs what it needs: a compiler (rustc-web, with the standard library for arm64 unpacked into
# the cache), a linker, the C library and qemu-user. On aarch64 itself it runs the same tests without all that.
# QUANTIER_AARCH64 is the directory of the standard library (default: $XDG_CACHE_HOME/quantier/aarch64).
set -euo pipefail
cd "$(dirname "$0")/.."

export QUANTIER_BLOCKS=${QUANTIER_BLOCKS:-1000}
tests=(cargo test --release -p quantier-blocks --lib --tests)
if [ "$(uname -m)" = aarch64 ]; then
    exec "${tests[@]}"
fi

target=aarch64-unknown-linux-gnu
cache=${QUANTIER_AARCH64:-${XDG_CACHE_HOME:-$HOME/.cache}/quantier/aarch64}
needs=(rustc-web:/usr/bin/rustc gcc-aarch64-linux-gnu:/usr/bin/aarch64-linux-gnu-gcc
    libc6-dev-arm64-cross:/usr/aarch64-linux-gnu/include/stdio.h qemu-user:/usr/bin/qemu-aarch64)
# The standard library must have the compiler's version.
find_sysroot() {
    version=$(/usr/bin/rustc --version | cut -d' ' -f2)
    sysroot=$cache/$version
}
is_ready() {
    local need
    for need in "${needs[@]}"; do
        [ -e "${need#*:}" ] || return 1
    done
    find_sysroot
    [ -e "$sysroot/ready" ]
}
if ! is_ready; then
    packages=("${needs[@]%%:*}")
    [ "$(id -u)" = 0 ] || { echo "aarch64.sh: needs ${packages[*]} and the arm64 packages; run it as root once" >&2; exit 1; }
    # apt as root: its own user cannot write /dev/null in some containers, finds no signature valid and so no package of arm64.
    apt=(apt-get -o APT::Sandbox::User=root)
    dpkg --print-foreign-architectures | grep -qx arm64 || dpkg --add-architecture arm64
    "${apt[@]}" update -qq
    # A present compiler too: one of older lists has another version than the library.
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y -qq "${packages[@]}" >/dev/null
    find_sysroot
    rm -rf "$sysroot"
    mkdir -p "$sysroot/lib/rustlib"
    (cd "$sysroot" && "${apt[@]}" download -qq libstd-rust-web-dev:arm64 && dpkg -x libstd-rust-web-dev_*_arm64.deb unpacked)
    mv "$sysroot/unpacked/usr/lib/rustlib/$target" "$sysroot/lib/rustlib/"
    rm -rf "$sysroot/unpacked" "$sysroot"/*.deb
    touch "$sysroot/ready"
fi

export RUSTC=/usr/bin/rustc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--sysroot=$sysroot"
"${tests[@]}" --target "$target" --target-dir target/aarch64
