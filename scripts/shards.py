#!/usr/bin/env python3
"""Runs `quantier make` in shards and compares all outputs with those of one process.

    scripts/shards.py [--shards 4,37] [--kill 50] [--jobs 2] [--namespaces] [--misbehaving [--outages KIND,...]] [--work DIR]
        [-- MAKE-ARGUMENTS]
    scripts/shards.py --compare ONE OTHER          compares two output directories

For every number of shards: `make --plan-only`, then every shard of every stage as a process of its own, in random order and
some at once, the merges, and `make` to the end. With --kill, that many shards are killed by SIGKILL at random moments and
started again. With --namespaces, every shard runs in mount and network namespaces of its own (needs root).

With --misbehaving, every process sees the output directory through one of two FUSE mounts (scripts/misbehaving.py): attributes
are up to a second old, and writes tear. --outages makes the mounts hang, or fail, once each at a random moment for
--outage-seconds; shards that fail are started again, and their messages printed. Needs root, fusepy in this Python and
Debian's libfuse2.

The arguments of make default to three sizes of the reference model with few chunks. Prints the processor time of both ways. Exit code 1 if an
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
        return re.sub(rb"(?:[0-9.]+ (?:s|min|h|[KMG]i?B)\b ?)+", b"", data)
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


def run(arguments):
    return subprocess.run([PROGRAM, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def children_time():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Mounts:
    """Two misbehaving mounts of one directory, with outages. Processes see one of them at the place of `out`."""

    def __init__(self, out, outages, seconds):
        self.out, self.seconds = out, seconds
        self.store = out.parent / "store" / out.name
        self.switch = out.parent / "outage"
        self.mounts = [out.parent / name for name in "ab"]
        for folder in (out, self.store, *self.mounts):
            folder.mkdir(parents=True)
        command = [sys.executable, str(ROOT / "scripts" / "misbehaving.py"), str(self.store)]
        self.processes = [subprocess.Popen([*command, str(mount), "--outages", str(self.switch)]) for mount in self.mounts]
        while not all(os.path.ismount(mount) for mount in self.mounts):
            if any(process.poll() is not None for process in self.processes):
                sys.exit("the mounts failed")
            time.sleep(0.1)
        # Kinds of outages to come, by the number of processes before them.
        self.outages = dict(zip(random.sample(range(2, 13), len(outages)), outages))
        self.begun, self.lock, self.one_outage = 0, threading.Lock(), threading.Lock()

    def prefix(self):
        """The start of a command that sees a mount in the place of `out`; an outage may begin with it."""
        with self.lock:
            self.begun += 1
            kind = self.outages.pop(self.begun, None)
        if kind:
            threading.Timer(random.uniform(0.2, 1.0), self.fail, [kind]).start()
        mount = random.choice(self.mounts)
        return ["unshare", "--mount", "sh", "-ec", 'mount --bind "$1" "$2"; shift 2; exec "$@"', "sh", str(mount), str(self.out)]

    def fail(self, kind):
        with self.one_outage:
            print(f"{self.out.parent.name}: the mounts {kind} for {self.seconds:.0f} s", flush=True)
            self.switch.write_text(kind)
            time.sleep(self.seconds)
            self.switch.unlink()

    def end(self):
        for mount in self.mounts:
            subprocess.run(["fusermount", "-u", "-z", str(mount)], check=False)
        for process in self.processes:
            process.wait()


class Runner:
    """Runs shards, and kills some."""

    def __init__(self, out, options, mounts):
        self.out, self.kills, self.lock, self.mounts = out, options.kill, threading.Lock(), mounts
        self.namespaces = ["unshare", "--mount", "--net"] if options.namespaces else []
        self.killed, self.failed, self.seconds = 0, 0, 1.0

    def prefix(self):
        return self.mounts.prefix() if self.mounts else self.namespaces

    def run(self, arguments, cwd=ROOT, is_killable=False):
        """Runs a command; again if it was killed, or while the mounts fail."""
        while True:
            doomed, start = is_killable and self.take_kill(), time.monotonic()
            process = subprocess.Popen([*self.prefix(), PROGRAM, *arguments], cwd=cwd, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE, text=True)
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
            if not process.returncode:
                return time.monotonic() - start
            self.refused(arguments, process.returncode, error)

    def shard(self, stage, number):
        seconds = self.run(["shard", str(self.out), stage, str(number)], cwd="/", is_killable=True)
        self.seconds = max(0.5, seconds)

    def refused(self, arguments, code, error):
        """A failed command: only an outage may be the cause. Waits for its end."""
        what = f"{' '.join(map(str, arguments))}: code {code}: {error.strip()}"
        if not self.mounts or self.failed > 200:
            sys.exit(what)
        self.failed += 1
        print(what, flush=True)
        time.sleep(2)

    def take_kill(self):
        with self.lock:
            if self.killed < self.kills and random.random() < 0.7:
                self.killed += 1
                return True
            return False


def in_shards(out, arguments, options, mounts):
    runner = Runner(out, options, mounts)
    runner.run([*arguments, "-o", str(out), "--plan-only", "--shards", str(options.count)])
    plan = json.loads(((mounts.store if mounts else out) / "work" / "plan.json").read_text())
    done = 0
    for stage in plan["stages"]:
        numbers = list(range(len(stage["shards"])))
        random.shuffle(numbers)
        done += len(numbers)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for _ in pool.map(lambda number, name=stage["name"]: runner.shard(name, number), numbers):
                pass
        runner.run(["merge-shards", str(out), stage["name"]])
    runner.run([*arguments, "-o", str(out)])
    print(f"{out.parent.name}: {done} shards in {len(plan['stages'])} stages, {runner.killed} killed and started again, "
          f"{runner.failed} failed and started again", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="4,37")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--namespaces", action="store_true")
    parser.add_argument("--misbehaving", action="store_true")
    parser.add_argument("--outages", default="", help="hang, fail, or both, separated by a comma")
    parser.add_argument("--outage-seconds", type=float, default=60)
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
            mounts = None
            if options.misbehaving:
                mounts = Mounts(out, options.outages.split(",") if options.outages else [], options.outage_seconds)
            try:
                in_shards(out, arguments, options, mounts)
            finally:
                if mounts:
                    mounts.end()
            times[f"{count} shards"] = children_time() - start
            different += compare(one, mounts.store if mounts else out)
    finally:
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)
    for name, seconds in times.items():
        print(f"{name}: {seconds:.1f} s of processor time")
    return 1 if different else 0


sys.exit(main())
