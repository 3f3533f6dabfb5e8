#!/usr/bin/env python3
"""Time of `quantier make` on several machines for the shapes of real models, as Markdown: plans of sparse checkpoints
(scripts/sparse-checkpoint.py) with a shard for every unit, with this machine's speed scaled to machines of 16 cores, and
simulated by `quantier cluster status`.

    scripts/machines-table.py QUANTIER --text FILE --eval FILE [--arguments "--bpw 4.25"] [MODEL ...]

Run it on an idle machine: a plan measures the speed of products and of rounding. Calculation scales evenly over the
cores, reading and writing does not. A GPU is a machine of 16 cores whose products take GPU_FLOPS operations per second:
an assumption, not a measurement.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = ["qwen3-8b", "llama-3.3-70b", "qwen3-235b-a22b", "deepseek-v3"]
CORES = 16
MACHINES, GPUS = [1, 8, 64], [1, 8]
GPU_FLOPS = 1e14


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def scaled(plan, product_rate):
    """The plan with the times of a machine of CORES cores; products at so many operations per second."""
    here = os.cpu_count() / CORES
    stages = []
    for stage in plan["stages"]:
        products, disk = stage["product_seconds"], stage["disk_seconds"]
        rest = stage["seconds"] - products - disk
        products *= here if product_rate is None else plan["flops_per_second"] / product_rate
        factor = (products + rest * here + disk) / max(stage["seconds"], 1e-9)
        shards = [shard | {"seconds": shard["seconds"] * factor} for shard in stage["shards"]]
        units = [seconds * factor for seconds in stage["unit_seconds"]]
        stages.append(stage | {"shards": shards, "unit_seconds": units, "seconds": stage["seconds"] * factor})
    return plan | {"stages": stages}


def without(plan, name):
    return plan | {"stages": [stage | {"done": stage["done"] or stage["name"] == name} for stage in plan["stages"]]}


def simulated(quantier, out, plan):
    """Hours and part at work, by number of machines."""
    (out / "work" / "plan.json").write_text(json.dumps(plan))
    status = json.loads(run(quantier, "cluster", "status", out, "--json"))
    return {machines: (seconds / 3600, work) for machines, seconds, work in status["machines"]}


def short(number):
    return f"{number:.2f}" if number < 1 else f"{number:.1f}" if number < 10 else f"{number:.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantier", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--arguments", default="--bpw 3.3 --bpw 4.25 --bpw 5.5 --compare none")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    options = parser.parse_intermixed_args()
    quantier = options.quantier.resolve()
    head = ["model", "units", "stages", *(f"{n} × {CORES} cores" for n in MACHINES), *(f"{n} GPU" for n in GPUS), "parts",
            "weights read", "memory"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name in options.models or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, out = Path(folder) / name, Path(folder) / "out"
            run(sys.executable, HERE / "sparse-checkpoint.py", name, checkpoint)
            run(quantier, "make", checkpoint, "-f", options.text, "--eval", options.eval, *options.arguments.split(),
                "-o", out, "--plan-only", "--shards", "100000")
            plan = json.loads((out / "work" / "plan.json").read_text())
            stages = plan["stages"]
            of_size = [sum(stage["part_bytes"] for stage in stages), sum(stage["read_bytes"] * stage["units"] for stage in stages)]
            memory = max(stage["memory_bytes"] for stage in stages)
            sizes = [f"{size / 2 ** 30:,.0f} GiB" for size in (*of_size, memory)]
            for kind in ("all", "without files"):
                cells = []
                for machines, rate in ((MACHINES, None), (GPUS, GPU_FLOPS)):
                    of_kind = scaled(plan, rate)
                    found = simulated(quantier, out, of_kind if kind == "all" else without(of_kind, "files"))
                    cells += [f"{short(found[n][0])} h, {found[n][1]:.0%}" for n in machines]
                units = sum(stage["units"] for stage in stages if kind == "all" or stage["name"] != "files")
                row = [name if kind == "all" else "", str(units), kind, *cells, *(sizes if kind == "all" else ["", "", ""])]
                print("| " + " | ".join(row) + " |", flush=True)
            spread = ", ".join(f"{stage['name']} {stage['units']} units {stage['seconds']:.0f} s" for stage in stages)
            print(f"{name} here: {spread}; {plan['flops_per_second'] / 1e9:.0f} GFLOP/s", file=sys.stderr)


if __name__ == "__main__":
    main()
