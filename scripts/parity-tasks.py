#!/usr/bin/env python3
"""Compares scores of multiple-choice tasks with llama-perplexity's, answer by answer where it prints them.

    scripts/parity-tasks.py [MODEL ...]      GGUFs in F16 or F32 (default: testdata/refmodel-f16.gguf)

Files of tasks are those of testdata/tasks. llama-perplexity drops the last task of a CSV that ends with one line break,
so it gets a copy with two. Where few tokens follow the blank, it takes the first token of the second choice from a
wrong position: these tasks of --winogrande are counted apart. One line per model and format; exit code 1 if a score
differs.

QUANTIER  the program (default: target/release/quantier, built first)
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from program import built

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TASKS = ROOT / "testdata/tasks"
# The last lines of llama-perplexity's output are sometimes lost.
TRIES = 20
# With more tokens behind the common beginning, the filled blank is not scored.
MIN_TRAILING = 3


def output(*command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"parity-tasks.py: {command[0]}: {done.stdout[-400:]}")
    return done.stdout


def reference(program, model, arguments, pattern, tasks):
    """The lines of an output that match, once there is one for each task."""
    for _ in range(TRIES):
        found = re.findall(pattern, output(program, "-m", model, *arguments), re.MULTILINE)
        if len(found) == tasks:
            return found
    sys.exit(f"parity-tasks.py: llama-perplexity printed {len(found)} of {tasks} tasks: {found[-1:]}")


def scores_blank(program, model, work):
    """By task of --winogrande: whether the filled blank itself is scored."""
    import csv

    def ids(text):
        (work / "text.txt").write_text(text)
        return json.loads(output(program, "tokenize", "-m", model, "-f", work / "text.txt", "--no-escape", "--no-parse-special",
                                 "--ids"))

    scored = []
    for _, sentence, first, second, _ in csv.reader((TASKS / "winogrande.csv").read_text().splitlines()):
        both = [ids(sentence.replace("_", choice, 1)) for choice in (first, second)]
        common = next((i for i, (a, b) in enumerate(zip(*both)) if a != b), min(map(len, both)))
        scored.append(min(len(tokens) - common for tokens in both) <= MIN_TRAILING)
    return scored


def main():
    program = built()
    perplexity = Path(output(HERE / "reference.sh").strip().splitlines()[-1]) / "llama-perplexity"
    differ = False
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        (work / "winogrande.csv").write_text((TASKS / "winogrande.csv").read_text() + "\n")
        for model in sys.argv[1:] or [ROOT / "testdata/refmodel-f16.gguf"]:
            json_of = lambda option, file: json.loads(
                subprocess.check_output([program, "tasks", str(model), option, str(file), "--json"], text=True))["files"][0]
            name = Path(model).stem

            ours = json_of("--hellaswag", TASKS / "hellaswag.txt")
            found = reference(perplexity, model, ["-f", TASKS / "hellaswag.txt", "--hellaswag", "--hellaswag-tasks", "100000"],
                              r"^(?:\d+\.\S+ \w )?\d+\t *([\d.]+)%\t\[", ours["tasks"])
            right, theirs = ours["models"][0]["accuracy"]["right"], round(float(found[-1]) * ours["tasks"] / 100)
            print(f"{name}, hellaswag: {right} and {theirs} of {ours['tasks']} right", flush=True)
            differ |= right != theirs

            ours = json_of("--multiple-choice", TASKS / "multiple-choice.bin")
            found = reference(perplexity, model, ["-bf", TASKS / "multiple-choice.bin", "--multiple-choice", "-np", "8"],
                              r"^(?:\d+\.\S+ \w )?\d+\t([\d.]+)$", ours["tasks"])
            sums = [0] + [round(float(value) * (i + 1) / 100) for i, value in enumerate(found)]
            theirs = [b - a for a, b in zip(sums, sums[1:])]
            mine = [int(right[choice]) for right, choice in zip(ours["right"], ours["models"][0]["choices"])]
            same = sum(a == b for a, b in zip(mine, theirs))
            print(f"{name}, multiple choice: {sum(mine)} and {sum(theirs)} of {len(mine)} right, {same} answers alike", flush=True)
            differ |= mine != theirs

            ours = json_of("--winogrande", TASKS / "winogrande.csv")
            found = reference(perplexity, model, ["-f", work / "winogrande.csv", "--winogrande"],
                              r"^(?:\d+\.\S+ \w )?\d+\t[\d.]+\t +\S+ +\S+ +([12]) +[12]$", ours["tasks"])
            picks = list(zip(ours["models"][0]["choices"], (int(value) - 1 for value in found), scores_blank(program, model, work)))
            behind = [a == b for a, b, blank in picks if not blank]
            blanks = [a == b for a, b, blank in picks if blank]
            print(f"{name}, winogrande: {sum(behind)} of {len(behind)} answers alike; of those with a scored blank "
                  f"{sum(blanks)} of {len(blanks)}", flush=True)
            differ |= not all(behind)
    sys.exit(differ)


main()
