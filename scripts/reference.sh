#!/usr/bin/env bash
# Provides the reference: the llama.cpp vendored in the PyPI source package llama_cpp_python, built with its
# default options (Release, shared libraries). Runs once per machine; later calls return at once.
#
#   scripts/reference.sh            build missing parts, then print the directory of the binaries
#   scripts/reference.sh --check    print it if it is built, else exit 1
#   scripts/reference.sh --source   print the directory of the vendored source instead
#   scripts/reference.sh --python   print the interpreter for its Python converter instead, with the required packages
#                                   (installed at the first call, about 5 GB)
#   scripts/reference.sh --mistral-common   print the directory of mistral-common instead, which it needs for Mistral's
#                                   own format, and which must be hidden otherwise
#
# Some virtual machines announce AMX but forbid it: builds with -march=native there end with "Illegal instruction" or
# "Segmentation fault" on quantized models. So the build ends with a test run of one, and repeats ggml's CPU library without AMX if necessary.
#
# QUANTIER_REFERENCE is its directory (default: $XDG_CACHE_HOME/quantier/reference), about 1 GiB.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
version=0.3.36
cache=${QUANTIER_REFERENCE:-${XDG_CACHE_HOME:-$HOME/.cache}/quantier/reference}
home=$cache/$version
source=$home/llama_cpp_python-$version/vendor/llama.cpp
bin=$home/build/bin
log=$home/build.log
targets=(llama-quantize llama-gguf-split llama-tokenize llama-imatrix llama-perplexity llama-completion llama-bench)

# The stamps: the list of targets, so that a checkout with more targets builds them; and the test of quantized models.
stamp=$home/built
runs=$home/runs
built() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "${targets[*]}" ]; }
ready() { built && [ -f "$runs" ]; }

build() {
    PATH=$home/venv/bin:$PATH cmake -S "$source" -B "$home/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DBUILD_TESTING=OFF "$@" &&
        # The quantizer first: most suites need it.
        PATH=$home/venv/bin:$PATH cmake --build "$home/build" --target llama-quantize &&
        PATH=$home/venv/bin:$PATH cmake --build "$home/build" --target "${targets[@]}"
}

# CMake options that list the instruction sets of this CPU, without AMX.
without_amx() {
    local macros option
    macros=$(gcc -march=native -dM -E - </dev/null)
    echo -DGGML_NATIVE=OFF
    for option in SSE42:SSE4_2 AVX:AVX AVX2:AVX2 FMA:FMA F16C:F16C BMI2:BMI2 AVX_VNNI:AVXVNNI AVX512:AVX512F \
        AVX512_VBMI:AVX512VBMI AVX512_VNNI:AVX512VNNI AVX512_BF16:AVX512BF16; do
        if grep -q "define __${option#*:}__ " <<<"$macros"; then
            echo "-DGGML_${option%:*}=ON"
        else
            echo "-DGGML_${option%:*}=OFF"
        fi
    done
    printf -- '-DGGML_AMX_%s=OFF\n' TILE INT8 BF16
}

# Runs quantized models; 132 (128 + SIGILL) or 139 (SIGSEGV) if the CPU does not run an instruction that it announces.
try() {
    local model=$repository/testdata/refmodel-f16.gguf text=$repository/testdata/texts/evaluation.txt type
    for type in Q4_0 Q8_0 Q4_K_S; do
        "$bin/llama-quantize" "$model" "$home/probe.gguf" "$type" >"$home/probe.log" 2>&1 || return
        "$bin/llama-perplexity" -m "$home/probe.gguf" -f "$text" -c 128 --chunks 1 >"$home/probe.log" 2>&1 || return
    done
    rm -f "$home/probe.gguf" "$home/probe.log"
}

fail() {
    echo "reference.sh: $1" >&2
    exit 1
}

case "${1:-}" in
    --check) ready && echo "$bin" && exit 0 || exit 1 ;;
    --source) show=$source ;;
    --python) show=$home/pyvenv/bin/python ;;
    --mistral-common) show=$home/mistral-common ;;
    "") show=$bin ;;
    *) echo "reference.sh: unknown argument '$1' (see the top of this script)" >&2; exit 2 ;;
esac

mkdir -p "$home"
exec 9>"$home/lock"
flock 9

if ! built; then
    start=$(date +%s)
    for tool in python3 gcc g++ git; do
        command -v "$tool" >/dev/null || fail "'$tool' is needed; install it and try again"
    done
    if [ ! -x "$home/venv/bin/ninja" ]; then
        python3 -m venv "$home/venv"
        "$home/venv/bin/pip" install --quiet cmake ninja scikit-build-core
    fi
    if [ ! -d "$source" ]; then
        echo "reference.sh: fetching llama_cpp_python $version" >&2
        # No build isolation: the metadata step would otherwise compile cmake itself.
        PATH=$home/venv/bin:$PATH "$home/venv/bin/pip" download --quiet --no-deps --no-build-isolation \
            --no-binary llama-cpp-python --dest "$home" "llama_cpp_python==$version"
        tar -xzf "$home/llama_cpp_python-$version.tar.gz" -C "$home"
    fi
    echo "reference.sh: building ${targets[*]} (about a quarter of an hour on two cores; log: $log)" >&2
    build >"$log" 2>&1 || { tail -n 30 "$log" >&2; fail "the build failed; the whole log is $log"; }
    echo "${targets[*]}" >"$stamp"
    echo "reference.sh: built in $(($(date +%s) - start)) s" >&2
fi
if ! ready; then
    code=0
    try || code=$?
    # No pipe: grep ends at the first match, and gcc can then fail of the closed pipe.
    macros=$(gcc -march=native -dM -E - </dev/null)
    if [[ $code = 132 || $code = 139 ]] && [[ $macros == *__AMX_TILE__* ]]; then
        echo "reference.sh: this CPU announces AMX but does not run it: building ggml's CPU library without" >&2
        mapfile -t options < <(without_amx)
        build "${options[@]}" >>"$log" 2>&1 || { tail -n 30 "$log" >&2; fail "the build failed; the whole log is $log"; }
        code=0
        try || code=$?
    fi
    [ "$code" = 0 ] || fail "a quantized model does not run (exit code $code); its output is $home/probe.log"
    touch "$runs"
fi
if [[ "${1:-}" == --python || "${1:-}" == --mistral-common ]] && [ ! -f "$home/pyvenv/complete" ]; then
    echo "reference.sh: installing the Python packages into $home/pyvenv" >&2
    python3 -m venv "$home/pyvenv"
    "$home/pyvenv/bin/pip" install --quiet torch==2.11.0
    "$home/pyvenv/bin/pip" install --quiet transformers==4.57.6 numpy==2.2.6 sentencepiece==0.2.3 protobuf safetensors gguf
    touch "$home/pyvenv/complete"
fi
# Separate from the others: with it installed, transformers chooses other classes for other vocabularies.
if [ "${1:-}" = --mistral-common ] && [ ! -f "$home/mistral-common/complete" ]; then
    echo "reference.sh: installing mistral-common into $home/mistral-common" >&2
    "$home/pyvenv/bin/pip" install --quiet --upgrade --target "$home/mistral-common" mistral-common==1.13.1
    touch "$home/mistral-common/complete"
fi
echo "$show"
