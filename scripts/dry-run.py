#!/usr/bin/env python3
"""Compares `quantier make --dry-run` with the run that it predicts: time by stage, and peak memory.

    scripts/dry-run.py [--program PATH] [--most-time 0.25] [--most-memory 0.15] MODEL [OPTION OF make ...]

    scripts/dry-run.py testdata/refmodel-f16.gguf --bpw 4.25
    scripts/dry-run.py SmolLM2-135M-Instruct-f16.gguf --bpw 4.25 -f calibration.txt

Runs the dry run, then the run itself in a new directory, and prints both side by side. The run needs an idle machine: it
measures wall time. Its peak memory is the peak resident set of the process, minus that of
`quantier --version` and the mapped model. Exit code 1 if the time or the memory is off by more than the bounds. Needs
only Python's standard library.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(command):
    """Standard output of a command, and peak resident set of its process in bytes."""
    read, write = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_CLOSE, read), (os.POSIX_SPAWN_CLOSE, write)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    os.close(write)
    with os.fdopen(read) as output:
        text = output.read()
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: failed")
    return text, usage.ru_maxrss * 1024


def size(path):
    """Size of a model in bytes: a file, or a directory of files."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def row(name, predicted, measured, unit):
    off = predicted / measured - 1 if measured else 0.0
    print(f"{name:<22}{predicted:>12.1f}{measured:>12.1f} {unit:<4}{off:>+8.0%}")
    return off


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=str(ROOT / "target/release/quantier"))
    parser.add_argument("--most-time", type=float, default=0.25)
    parser.add_argument("--most-memory", type=float, default=0.15)
    parser.add_argument("model", type=Path)
    ours, options = parser.parse_known_args()
    program = str(Path(ours.program).resolve())
    base = run([program, "--version"])[1] + size(ours.model)
    with tempfile.TemporaryDirectory() as out:
        command = [program, "--no-config", "make", str(ours.model), *options, "-o", out, "--json"]
        plan = json.loads(run([*command, "--dry-run"])[0])
        text, peak = run(command)
    stages = json.loads(text)["stages"]
    measured = {}
    for stage in stages:
        measured[stage["name"]] = measured.get(stage["name"], 0.0) + stage["seconds"]
    print(f"{'':<22}{'predicted':>12}{'measured':>12}")
    for stage in plan["stages"]:
        row(stage["name"], stage["seconds"], measured.get(stage["name"], 0.0), "s")
    time = row("time", sum(s["seconds"] for s in plan["stages"]), sum(measured.values()), "s")
    mib = 1 << 20
    memory = row("memory", plan["memory_bytes"] / mib, (peak - base) / mib, "MiB")
    print(f"{'resident in all':<22}{'':>12}{peak / mib:>12.1f} MiB")
    return int(abs(time) > ours.most_time or abs(memory) > ours.most_memory)


if __name__ == "__main__":
    sys.exit(main())
