"""Common parts of the evidence scripts: running commands, cutting texts, Markdown."""

import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

THREADS = os.environ.get("THREADS", str(os.cpu_count()))
SCRIPT = Path(sys.argv[0]).stem


def fail(text):
    sys.exit(f"{SCRIPT}: {text}")


def run(command, check=True, env=None):
    """Runs a command; prints it and its duration on standard error; its errors follow its output."""
    command = [str(c) for c in command]
    start = time.time()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", env=env)
    shown = " ".join(Path(c).name if c.startswith("/") else c for c in command)
    print(f"[{time.strftime('%H:%M:%S')}] {time.time() - start:.0f} s: {shown}", file=sys.stderr, flush=True)
    if check and done.returncode != 0:
        fail(f"{shown}: exit {done.returncode}\n{done.stdout[-2000:]}")
    return done


def made(path, make):
    """Path of a file, which is made under a temporary name and renamed unless it exists."""
    if not path.exists():
        beside = path.with_name("unfinished-" + path.name)
        beside.unlink(missing_ok=True)
        make(beside)
        if not beside.exists():
            fail(f"{path.name} was not written")
        beside.rename(path)
    return path


def cut(source, path, first, size):
    """Part of a text in whole characters: `size` bytes from `first` on; a negative `first` counts from the end."""
    data = source.read_bytes()
    first = first if first >= 0 else max(0, len(data) + first)
    path.write_bytes(data[first:first + size].decode(errors="ignore").encode())
    return path


def geometric_mean(ratios):
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def machine(quantier):
    """Prints the date, the machine, its load, and the program."""
    name = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    version = run([quantier, "--version"]).stdout.strip()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"{time.strftime('%Y-%m-%d')}; {name[1] if name else 'unknown processor'}, {os.cpu_count()} cores, {THREADS} "
          f"threads, load {os.getloadavg()[0]:.1f}; {version} ({commit}).")


def stages_table(stages):
    """Prints time and memory of every stage of `quantier make`, given `stages` of its frontier.json by name of the run."""
    rows = []
    for name, done in stages.items():
        for stage in done:
            peak = f"{stage['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in stage else "not known"
            rows.append([name, stage["name"], f"{stage['seconds']:.1f} s", peak])
    table(["run", "stage", "time", "peak memory so far"], rows)
