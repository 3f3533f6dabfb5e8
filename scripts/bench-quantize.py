"""Tables of bench-quantize.sh: from criterion's estimates, and of whole files."""

import filecmp
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

THREADS = os.environ.get("THREADS", "2")
ROUNDS = int(os.environ.get("ROUNDS", "1"))
TYPES = os.environ.get("TYPES", "Q4_K_M IQ4_XS IQ2_S").split()


def header():
    name = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    print(f"{time.strftime('%Y-%m-%d')}; {name[1] if name else 'unknown processor'}, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f}\n")


def estimates(folder):
    """Benchmark -> units per second, from the medians of criterion's last run."""
    found = {}
    for path in folder.glob("*/*/new/estimates.json"):
        benchmark = json.loads((path.parent / "benchmark.json").read_text())
        units = next(iter(benchmark["throughput"].values()))
        seconds = json.loads(path.read_text())["median"]["point_estimate"] * 1e-9
        found.setdefault(benchmark["group_id"], {})[benchmark["function_id"]] = units / seconds
    return found


def blocks(folder):
    found = estimates(folder)
    groups = {g.removeprefix("quantize "): of for g, of in found.items() if g.startswith("quantize ")}
    isas = [name for name in ("scalar", "avx2", "neon") if any(name in of for of in groups.values())]
    print("Quantizing with importance weights, millions of weights per second, one core:\n")
    print(f"| type | ggml | {' | '.join(isas)} | {isas[-1]} : ggml |")
    print("|---|---:|" + "---:|" * len(isas) + "---:|")
    for t, of in sorted(groups.items()):
        cells = [f"{of[name] / 1e6:.1f}" if name in of else "" for name in ("ggml", *isas)]
        ratio = f"{of[isas[-1]] / of['ggml']:.1f}" if "ggml" in of else ""
        print(f"| {t} | {' | '.join(cells)} | {ratio} |")
    print("\nDequantizing into 256 MiB of f32, GB/s of f32, one core:\n")
    print("| type | GB/s |\n|---|---:|")
    for t, speed in sorted(found.get("dequantize", {}).items(), key=lambda e: (e[0] != "copy", e[0])):
        print(f"| {t} | {speed / 1e9:.1f} |")


def timed(command):
    start = time.perf_counter()
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"bench-quantize: {' '.join(map(str, command))}: exit {done.returncode}\n"
                 f"{done.stdout.decode(errors='replace')[-2000:]}")
    return time.perf_counter() - start


def files(ours, theirs, work):
    model, matrix = work / "f16.gguf", work / "imatrix.gguf"
    print(f"{model.stat().st_size / 1e9:.2f} GB in F16 with an importance matrix, {THREADS} threads, median of {ROUNDS}:\n")
    print("| type | llama-quantize | quantier quantize | ratio | files |\n|---|---:|---:|---:|---|")
    different = 0
    for t in TYPES:
        seconds = {"theirs": [], "ours": []}
        for _ in range(ROUNDS):
            seconds["theirs"].append(timed([theirs, "--imatrix", matrix, model, work / "theirs.gguf", t, THREADS]))
            seconds["ours"].append(timed([ours, "quantize", "--imatrix", matrix, model, work / "ours.gguf", t, THREADS]))
        same = filecmp.cmp(work / "theirs.gguf", work / "ours.gguf", shallow=False)
        different += not same
        a, b = (statistics.median(seconds[k]) for k in ("theirs", "ours"))
        print(f"| {t} | {a:.1f} s | {b:.1f} s | {a / b:.1f} | {'identical' if same else 'DIFFERENT'} |", flush=True)
    sys.exit(different != 0)


if __name__ == "__main__":
    header()
    if sys.argv[1] == "blocks":
        blocks(Path(sys.argv[2]))
    else:
        files(*map(Path, sys.argv[2:5]))
