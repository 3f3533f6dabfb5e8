"""Files of presets and of `quantier make`, judged by llama-perplexity: for the scripts that bring evidence."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

from bench import THREADS, cut, fail, made, run

CTX = 512
EVALUATION = "wiki.txt"
CALIBRATION_BYTES = int(os.environ.get("CALIBRATED", "60000"))
TRIES = 8
# llama-perplexity exits without waiting for the thread that prints its log; this delays the exit of any process.
LINGER = "#include <unistd.h>\n__attribute__((destructor)) static void linger(void) { sleep(3); }\n"


class Bench:
    """Paths, and measurements made so far."""

    def __init__(self, options, presets, evaluated):
        """`presets` are those without PRESETS; `evaluated` is the number of bytes of the evaluation text."""
        self.quantier, self.reference = options.quantier.resolve(), options.reference.resolve()
        self.work, self.model = options.work.resolve(), options.model.resolve()
        given = os.environ.get("PRESETS")
        self.presets = given.split(",") if given else presets
        self.cut_texts(options, evaluated)
        self.stages = {}

    @property
    def imatrix(self):
        return made(self.work / "imatrix.gguf", self.make_imatrix)

    @property
    def theirs(self):
        """The importance matrix of llama-imatrix, on the concatenated calibration texts."""
        text = self.work / "calibration.txt"
        text.write_bytes(b"".join(part.read_bytes() for part in self.calibration))
        return made(self.work / "theirs.imatrix.gguf", lambda path: run(
            [self.reference / "llama-imatrix", "-m", self.model, "-f", text, "-o", path, "-c", CTX, "--process-output",
             "--no-ppl", "-t", THREADS]))

    def cut_texts(self, options, evaluated):
        source = options.texts or Path("../shared/text")
        source = source if source.is_absolute() else (options.start / source if options.texts else source)
        if not (source / EVALUATION).exists():
            fail(f"{source}: there is no {EVALUATION}; name a directory of texts")
        self.evaluation = cut(source / EVALUATION, self.work / "eval.txt", 0, evaluated)
        folder = self.work / "calibration"
        folder.mkdir(exist_ok=True)
        self.source = source
        others = sorted(p for p in source.glob("*.txt") if p.name != EVALUATION)
        self.calibration = [cut(p, folder / p.name, 0, CALIBRATION_BYTES) for p in others]
        if not self.calibration:
            fail(f"{source}: there is no text beside {EVALUATION} to calibrate with")

    def texts(self):
        return [part for text in self.calibration for part in ("-f", text)]

    def make_imatrix(self, path):
        run([self.quantier, "imatrix", self.model, *self.texts(), "-o", path, "-c", CTX, "--process-output", "--no-ppl",
             "-t", THREADS])

    def preset(self, name, imatrix=None, folder="presets"):
        given = ["--imatrix", imatrix or self.imatrix] if imatrix != "" else []

        def make(path):
            for _ in range(TRIES):
                command = [self.reference / "llama-quantize", *given, self.model, path, name, THREADS]
                if run(command, check=False).returncode == 0 and path.exists():
                    return
                path.unlink(missing_ok=True)
            fail(f"llama-quantize {name} failed {TRIES} times")

        (self.work / folder).mkdir(exist_ok=True)
        return made(self.work / folder / f"{name}.gguf", make)

    def make(self, name, budgets, *more, imatrix=True, folder=None):
        """Runs `quantier make`; returns its frontier.json. Runs in one directory share what they measure: by default
        those without further options."""
        given = ["--imatrix", self.imatrix] if imatrix else []
        kept = self.work / f"{name}.json"
        folder = self.work / (folder or ("made" if imatrix and not more else name))
        if not kept.exists():
            run([self.quantier, "make", self.model, *self.texts(), "--eval", self.evaluation, *given, "-c", CTX, "-t", THREADS,
                 "--compare", "none", "-o", folder, "--name", name, *budgets, *more])
            shutil.copy(folder / "frontier.json", kept)
        frontier = json.loads(kept.read_text())
        self.stages[name] = frontier.get("stages", [])
        for file in frontier["files"]:
            file["path"] = folder / file["name"]
        return frontier

    @property
    def base(self):
        """The original's logits on the evaluation text."""
        return made(self.work / "base.kld", lambda path: run(
            [self.reference / "llama-perplexity", "-m", self.model, "-f", self.evaluation, "-c", CTX, "-t", THREADS,
             "--kl-divergence-base", path]))

    def linger(self):
        """Environment of llama-perplexity that gives the thread with its log time to print."""
        def make(path):
            source = self.work / "linger.c"
            source.write_text(LINGER)
            run(["gcc", "-shared", "-fPIC", "-o", path, source])

        return {**os.environ, "LD_PRELOAD": str(made(self.work / "linger.so", make))}

    def judge(self, path):
        """llama-perplexity's mean divergence, uncertainty, 99.9th percentile (nats), and same top token (percent), on
        the evaluation text.

        Its last lines can be lost as it exits. Then it is run again; each value was printed by one of the runs, which all
        compute the same. The same top token is also, with as many digits, at the end of the line of the last chunk, just
        before the statistics.
        """
        kept = path.with_name(f"{path.name}.judged.json")
        if kept.exists():
            return json.loads(kept.read_text())
        number = r"\s*(-?[\d.]+)"
        patterns = {"kld": rf"Mean\s+KLD:{number}\s*±", "uncertainty": r"Mean\s+KLD:\s*-?[\d.]+\s*±" + number,
                    "p999": rf"99\.9%\s+KLD:{number}", "top": rf"Same top p:{number}|{number} ±\s*[\d.]+ %\n+=+ Perplexity statistics"}
        found = {}
        for _ in range(TRIES):
            done = run([self.reference / "llama-perplexity", "-m", path, "--kl-divergence-base", self.base,
                        "--kl-divergence", "-c", CTX, "-t", THREADS], check=False, env=self.linger())
            for name, pattern in patterns.items():
                if match := re.search(pattern, done.stdout):
                    found[name] = float(next(figure for figure in match.groups() if figure))
            if len(found) == len(patterns):
                kept.write_text(json.dumps(found))
                return found
            print(f"  it told {', '.join(found) or 'nothing'}; its end: {done.stdout[-150:]!r}", file=sys.stderr, flush=True)
        fail(f"llama-perplexity told {sorted(found)} for {path} in {TRIES} tries; its end was\n"
                 f"{done.stdout[-2000:]}")


def likes(bench):
    return [part for preset in bench.presets for part in ("--like", preset)]


def file_of(frontier, preset, most):
    """The file for a preset's budget, also if it serves another budget too."""
    files = [f for f in frontier["files"] if f["budget"] == f"--like {preset}"]
    files = files or [f for f in frontier["files"] if f["bytes"] <= most][-1:]
    return files[0] if files else fail(f"there is no file for --like {preset}")
