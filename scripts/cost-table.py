#!/usr/bin/env python3
"""Cost of `quantier make` for the shapes of real models, as Markdown: dry runs of sparse checkpoints
(scripts/sparse-checkpoint.py) on this machine's speed, scaled to other numbers of cores.

    scripts/cost-table.py QUANTIER [--budget "--bpw 4.25"] [MODEL ...]

Run it on an idle machine: a dry run measures the speed of products and of rounding. The calculation scales evenly over
the cores, reading and writing does not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = ["qwen3-0.6b", "qwen3-8b", "qwen3-32b", "llama-3.3-70b", "qwen3-30b-a3b", "qwen3-235b-a22b"]
CORES = [2, 16, 64]
DISK = 1e9


def plan(quantier, checkpoint, arguments):
    command = [quantier, "make", checkpoint, *arguments, "--threads", "2", "--dry-run", "--json", "-o", checkpoint / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def hours(stages, cores):
    def of(stage):
        disk = (stage["read"] + stage["written"]) / DISK
        return (stage["seconds"] - disk) * 2 / cores + disk

    return sum(map(of, stages)) / 3600


def short(number):
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"


def gib(size):
    return f"{short(size / 2 ** 30)} GiB"


def row(name, setting, found):
    stages = found["stages"]
    parts = {stage["name"]: hours([stage], 2) for stage in stages}
    spread = ", ".join(short(parts.get(stage, 0)) for stage in ("importance matrix", "sensitivities", "files", "proof"))
    cells = [name, setting, gib(found["memory_bytes"]), gib(found["covariance_bytes"]), gib(found["files_bytes"]),
             f"{sum(stage['flops'] for stage in stages):.1e}", spread, *(short(hours(stages, cores)) for cores in CORES)]
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantier", type=Path)
    parser.add_argument("--budget", default="--bpw 4.25")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    options = parser.parse_intermixed_args()
    head = ["model", "settings", "memory", "Hessians", "file", "operations", "hours by stage, 2 cores",
            *(f"{cores} cores" for cores in CORES)]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    speeds = []
    for name in options.models or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / name
            subprocess.run([sys.executable, HERE / "sparse-checkpoint.py", name, checkpoint], check=True, stdout=subprocess.DEVNULL)
            for setting in ("", "--fast", "--fast --no-sequential"):
                found = plan(options.quantier.resolve(), checkpoint, [*options.budget.split(), *setting.split()])
                speeds.append(found["flops_per_second"] / 1e9)
                print(row(name, f"`{setting}`" if setting else "default", found), flush=True)
    print(f"\n{min(speeds):.0f} to {max(speeds):.0f} GFLOP/s in a product.")


if __name__ == "__main__":
    main()
