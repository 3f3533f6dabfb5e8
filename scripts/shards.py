#!/usr/bin/env python3
"""Runs `quantier make` in shards and compares all outputs with those of one process.

    scripts/shards.py [--shards 4,37] [--kill 50] [--jobs 2] [--namespaces] [--work DIR] [-- MAKE-ARGUMENTS]
    scripts/shards.py --compare ONE OTHER          compares two output directories

For every number of shards: `make --plan-only`, then every shard of every stage as a process of its own, in random order and
some at once, the merges, and `make` to the end. With --kill, that many shards are killed by SIGKILL at random moments and
started again. With --namespaces, every shard runs in mount and network namespaces of its own (needs root). The arguments of
make default to three sizes of the reference model with few chunks. Prints the processor time of both ways. Exit code 1 if an
output differs in more than times. Needs only Python's standard library.

QUANTIER    the program (default: target/release/quantier)
"""

import argparse
import concurrent.futures
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("QUANTIER", str(ROOT / "target" / "release" / "quantier"))
QUICK = ["testdata/refmodel", "--bpw", "3.3", "--bpw", "4.25", "--bpw", "5.5", "-c", "128", "--score-chunks", "6",
         "--eval-chunks", "40"]


def normalized(path):
    """Content of a file without times."""
    data = path.read_bytes()
    if path.name == "frontier.json":
        report = json.loads(data)

        def strip(value):
            if isinstance(value, dict):
                return {k: strip(v) for k, v in value.items() if k not in ("stages", "created", "seconds", "peak_bytes")}
            return [strip(v) for v in value] if isinstance(value, list) else value

        return json.dumps(strip(report), sort_keys=True).encode()
    if path.name == "report.html":
        # The table of stages: times and memory.
        return re.sub(rb"[0-9.]+ (?:s|min|h|[KMG]i?B)\b", b"", data)
    return data


def outputs(directory):
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    named = ((str(path.relative_to(directory)), path) for path in files)
    return {name: path for name, path in named if not name.startswith("work/")}


def hessians(directory):
    """Hessians of the work directory: as outputs."""
    files = (path for folder in ("covariance", "gradients") for path in sorted((directory / "work" / folder).glob("*.gguf")))
    return {str(path.relative_to(directory)): path for path in files}


def compare(one, other):
    """Prints and counts the outputs that differ."""
    ours, theirs = ({**outputs(d), **hessians(d)} for d in (one, other))
    different = sorted(ours.keys() ^ theirs.keys())
    both = sorted(ours.keys() & theirs.keys())
    different += [name for name in both if normalized(ours[name]) != normalized(theirs[name])]
    for name in different:
        print(f"different: {name}")
    print(f"{other.parent.name}: {len(both) - len(set(different) & set(both))} files identical, {len(different)} different", flush=True)
    return len(different)


def run(arguments, **more):
    return subprocess.run([PROGRAM, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL, **more)


def children_time():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Runner:
    """Runs shards, and kills some."""

    def __init__(self, out, kills, namespaces):
        self.out, self.kills, self.lock = out, kills, threading.Lock()
        self.prefix = ["unshare", "--mount", "--net"] if namespaces else []
        self.killed, self.seconds = 0, 1.0

    def take_kill(self):
        with self.lock:
            if self.killed < self.kills and random.random() < 0.7:
                self.killed += 1
                return True
            return False

    def shard(self, stage, number):
        command = [*self.prefix, PROGRAM, "shard", str(self.out), stage, str(number)]
        while True:
            doomed, start = self.take_kill(), time.monotonic()
            process = subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                error = process.communicate(timeout=random.uniform(0.0, self.seconds) if doomed else None)[1]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                continue
            if doomed:
                # It ended before its time.
                with self.lock:
                    self.killed -= 1
            if process.returncode:
                sys.exit(f"{' '.join(command)}: code {process.returncode}\n{error.decode()}")
            self.seconds = max(0.5, time.monotonic() - start)
            return


def in_shards(out, arguments, options):
    run([*arguments, "-o", str(out), "--plan-only", "--shards", str(options.count)])
    plan = json.loads((out / "work" / "plan.json").read_text())
    runner = Runner(out, options.kill, options.namespaces)
    done = 0
    for stage in plan["stages"]:
        numbers = list(range(len(stage["shards"])))
        random.shuffle(numbers)
        done += len(numbers)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for _ in pool.map(lambda number, name=stage["name"]: runner.shard(name, number), numbers):
                pass
        run(["merge-shards", str(out), stage["name"]])
    run([*arguments, "-o", str(out)])
    print(f"{out.parent.name}: {done} shards in {len(plan['stages'])} stages, {runner.killed} killed and started again", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="4,37")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--namespaces", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("ONE", "OTHER"))
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    if options.compare:
        return 1 if compare(*options.compare) else 0
    random.seed(options.seed)
    work = options.work or Path(tempfile.mkdtemp())
    work = work.resolve()
    arguments = ["make", *(options.arguments or QUICK)]
    different, times = 0, {}
    try:
        # The report names the output directory.
        one = work / "one" / "out"
        if not (one / "frontier.json").exists():
            start = children_time()
            run([*arguments, "-o", str(one)])
            times["one process"] = children_time() - start
        for count in map(int, options.shards.split(",")):
            options.count = count
            out = work / f"shards-{count}" / "out"
            shutil.rmtree(out.parent, ignore_errors=True)
            start = children_time()
            in_shards(out, arguments, options)
            times[f"{count} shards"] = children_time() - start
            different += compare(one, out)
    finally:
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)
    for name, seconds in times.items():
        print(f"{name}: {seconds:.1f} s of processor time")
    return 1 if different else 0


sys.exit(main())
