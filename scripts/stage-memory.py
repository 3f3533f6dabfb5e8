#!/usr/bin/env python3
"""Memory and time of every stage of a command of quantier.

    scripts/stage-memory.py [--program PATH] COMMAND [OPTION ...]

    scripts/stage-memory.py make model-F16.gguf --bpw 4.25 --max-memory 1024 -o out

Prints for each stage, in the order in which they begin, its first step, its wall time, and the largest own memory of the
process in it: resident pages that belong to no file, sampled every 10 ms. Needs only Python's standard library.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from process import own_memory

ROOT = Path(__file__).resolve().parent.parent


class Stage:
    """A stage with its first step; memory in MiB."""

    def __init__(self, begun):
        self.begun, self.ended, self.first, self.memory = begun, begun, "", 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=str(ROOT / "target/release/quantier"))
    ours, command = parser.parse_known_args()
    child = subprocess.Popen([ours.program, *command, "--progress", "json"], stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True)
    stages = [Stage(0.0)]

    def watch():
        while child.poll() is None:
            try:
                stages[-1].memory = max(stages[-1].memory, own_memory(child.pid))
            except OSError:
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for line in child.stderr:
        if not line.startswith("{"):
            print(line, end="", file=sys.stderr)
            continue
        event = json.loads(line)
        stages[-1].ended = event["seconds"]
        if event["event"] == "begin":
            stages.append(Stage(event["seconds"]))
        elif event["event"] == "at":
            stages[-1].first = stages[-1].first or event["name"]
        elif "text" in event:
            print(f"{event['event']}: {event['text']}", file=sys.stderr)
    watcher.join()
    print(f"{'stage':<6}{'first step':<40}{'time':>10}{'own memory':>14}")
    for number, stage in enumerate(stages):
        print(f"{number:<6}{stage.first[:38]:<40}{stage.ended - stage.begun:>8.1f} s{stage.memory:>10.0f} MiB")
    sys.exit(child.returncode)


if __name__ == "__main__":
    main()
