"""Evidence of bench-frontier.sh: makes the files, evaluates them by llama-perplexity, prints Markdown."""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

from bench import THREADS, cut, fail, geometric_mean, machine, made, run, stages_table, table

CTX = 512
PRESETS = ["IQ2_XXS", "IQ2_M", "Q2_K", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K"]
# llama-quantize makes these only with an importance matrix.
NEED_IMATRIX = {"IQ2_XXS", "IQ2_M", "IQ3_XXS"}
QUICK_PRESETS = ["Q2_K", "Q4_K_M", "Q6_K"]
SIZES = ["2", "2.5", "3", "3.25", "3.75", "4.25", "5", "6", "7", "8"]
QUICK_SIZES = ["2.5", "3.5", "4.5", "6"]
EVALUATION = "wiki.txt"
CALIBRATION_BYTES = 60_000
TRIES = 8
# llama-perplexity exits without waiting for the thread that prints its log; this delays the exit of any process.
LINGER = "#include <unistd.h>\n__attribute__((destructor)) static void linger(void) { sleep(3); }\n"


class Bench:
    """Paths, and measurements made so far."""

    def __init__(self, options):
        self.quantier, self.reference = options.quantier.resolve(), options.reference.resolve()
        self.work, self.model = options.work.resolve(), options.model.resolve()
        self.quick = options.quick
        given = os.environ.get("PRESETS")
        self.presets = given.split(",") if given else QUICK_PRESETS if options.quick else PRESETS
        self.cut_texts(options)
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

    def cut_texts(self, options):
        source = options.texts or Path("../shared/text")
        source = source if source.is_absolute() else (options.start / source if options.texts else source)
        if not (source / EVALUATION).exists():
            fail(f"{source}: there is no {EVALUATION}; name a directory of texts")
        self.evaluation = cut(source / EVALUATION, self.work / "eval.txt", 0, 40_000 if self.quick else 200_000)
        folder = self.work / "calibration"
        folder.mkdir(exist_ok=True)
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

    def make(self, name, budgets, *more, imatrix=True):
        """Runs `quantier make`; returns its frontier.json. Runs with the same settings share a directory."""
        given = ["--imatrix", self.imatrix] if imatrix else []
        kept = self.work / f"{name}.json"
        if not kept.exists():
            folder = self.work / ("made" if imatrix and not more else name)
            run([self.quantier, "make", self.model, *self.texts(), "--eval", self.evaluation, *given, "-c", CTX, "-t", THREADS, "-o", folder, "--name", name, *budgets, *more])
            shutil.copy(folder / "frontier.json", kept)
        frontier = json.loads(kept.read_text())
        self.stages[name] = frontier.get("stages", [])
        folder = self.work / ("made" if imatrix and not more else name)
        for file in frontier["files"]:
            file["path"] = folder / file["name"]
        return frontier

    def base(self):
        def make(path):
            run([self.reference / "llama-perplexity", "-m", self.model, "-f", self.evaluation, "-c", CTX, "-t", THREADS,
                 "--kl-divergence-base", path])

        return made(self.work / "base.kld", make)

    def linger(self):
        """Environment of llama-perplexity that gives the thread with its log time to print."""
        def make(path):
            source = self.work / "linger.c"
            source.write_text(LINGER)
            run(["gcc", "-shared", "-fPIC", "-o", path, source])

        return {**os.environ, "LD_PRELOAD": str(made(self.work / "linger.so", make))}

    def judge(self, path):
        """llama-perplexity's mean divergence, uncertainty, 99.9th percentile (nats), and same top token (percent).

        Its last lines can be lost as it exits. Then it is run again; each value was printed by one of the runs, which all
        compute the same. The same top token is also, with as many digits, at the end of the line of the last chunk, just
        before the statistics.
        """
        kept = path.with_name(path.name + ".judged.json")
        if kept.exists():
            return json.loads(kept.read_text())
        number = r"\s*(-?[\d.]+)"
        patterns = {"kld": rf"Mean\s+KLD:{number}\s*±", "uncertainty": r"Mean\s+KLD:\s*-?[\d.]+\s*±" + number,
                    "p999": rf"99\.9%\s+KLD:{number}", "top": rf"Same top p:{number}|{number} ±\s*[\d.]+ %\n+=+ Perplexity statistics"}
        found = {}
        for _ in range(TRIES):
            done = run([self.reference / "llama-perplexity", "-m", path, "--kl-divergence-base", self.base(),
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


def more_options():
    """The types of our files, and the further options of `make`."""
    types = os.environ.get("TYPES")
    return types, (["--types", types] if types else []) + os.environ.get("MORE", "").split()


def like(bench):
    print("## At the bytes of llama.cpp's presets\n")
    types, more = more_options()
    print(f"The same importance matrix for both{f'; ours of {types}' if types else ''}; divergence as llama-perplexity "
          "measures it.\n", flush=True)
    frontier = bench.make("like", likes(bench), *more)
    rows, ratios, held = [], [], True
    for preset in bench.presets:
        path = bench.preset(preset)
        theirs, size = bench.judge(path), path.stat().st_size
        file = file_of(frontier, preset, size)
        ours, our_size = bench.judge(file["path"]), file["path"].stat().st_size
        ratios.append(ours["kld"] / theirs["kld"])
        held &= our_size <= size and ours["kld"] < theirs["kld"]
        rows.append([preset, str(size), str(our_size), f"{theirs['kld']:.6f} ± {theirs['uncertainty']:.6f}",
                     f"{ours['kld']:.6f} ± {ours['uncertainty']:.6f}", f"{ratios[-1]:.3f}", f"{theirs['p999']:.4f}",
                     f"{ours['p999']:.4f}", f"{theirs['top']:.2f}", f"{ours['top']:.2f}"])
    table(["preset", "bytes", "ours", "mean KLD", "ours", "ratio", "99.9% KLD", "ours", "same top %", "ours"], rows)
    print(f"Geometric mean of the ratios: **{geometric_mean(ratios):.3f}**. Every file is at most as large as the preset "
          f"and diverges less: {'yes' if held else 'NO'}.\n", flush=True)


def independent(bench):
    print("## Beside llama.cpp's own way\n")
    types, more = more_options()
    print(f"`quantier make` with nothing but the texts, of {types or 'all types'}; presets with the importance matrix of "
          "llama-imatrix on the same texts, and without one; divergence as llama-perplexity measures it.\n", flush=True)
    frontier = bench.make("independent", likes(bench), *more, imatrix=False)
    rows, ratios = [], {True: [], False: []}
    for preset in bench.presets:
        paths = {True: bench.preset(preset, bench.theirs, "presets-theirs")}
        if preset not in NEED_IMATRIX:
            paths[False] = bench.preset(preset, "", "presets-plain")
        size = paths[True].stat().st_size
        file = file_of(frontier, preset, size)
        ours, found = bench.judge(file["path"]), {way: bench.judge(path)["kld"] for way, path in paths.items()}
        for way, kld in found.items():
            ratios[way].append(ours["kld"] / kld)
        plain = [f"{found[False]:.6f}", f"{ours['kld'] / found[False]:.3f}"] if False in found else ["", ""]
        rows.append([preset, str(size), str(file["path"].stat().st_size), f"{ours['kld']:.6f} ± {ours['uncertainty']:.6f}",
                     f"{found[True]:.6f}", f"{ours['kld'] / found[True]:.3f}", *plain])
    table(["preset", "bytes", "ours", "mean KLD, ours", "with imatrix", "ratio", "without", "ratio"], rows)
    print(f"Geometric mean of the ratios: **{geometric_mean(ratios[True]):.3f}** with an importance matrix, "
          f"**{geometric_mean(ratios[False]):.3f}** without.\n", flush=True)


def measures(bench):
    print("## Against other ways to choose\n")
    types, chunks = os.environ.get("SWEEP_TYPES"), os.environ.get("SWEEP_CHUNKS", "24")
    print(f"The same budgets; `--score sweep` with {types or 'all types'} on {chunks} chunks"
          f"{', and our own choice from the same types' if types else ''}. Ratios are ours (`divergence`) to theirs.\n",
          flush=True)
    narrowed = ["--types", types] if types else []
    ways = {"divergence": bench.make("like", likes(bench), *more_options()[1]),
            "imatrix": bench.make("imatrix", likes(bench), "--score", "imatrix")}
    ways["sweep"] = bench.make("sweep", likes(bench), "--score", "sweep", "--score-chunks", chunks, *narrowed)
    if types:
        ways["divergence, these types"] = bench.make("narrowed", likes(bench), *narrowed)
    rows, ratios = [], {way: [] for way in ways}
    for preset in bench.presets:
        size = bench.preset(preset).stat().st_size
        files = {way: file_of(frontier, preset, size) for way, frontier in ways.items()}
        found = {way: bench.judge(file["path"])["kld"] for way, file in files.items()}
        for way in ways:
            ours = found["divergence, these types" if types and way == "sweep" else "divergence"]
            ratios[way].append(ours / found[way])
        rows.append([preset, str(size)] + [f"{found[way]:.6f} ({files[way]['bytes']})" for way in ways]
                    + [f"{ratios[way][-1]:.3f}" for way in ("imatrix", "sweep")])
    table(["size of", "bytes", *(f"`{way}` (bytes)" for way in ways), "ours/imatrix", "ours/sweep"], rows)
    for way in "imatrix", "sweep":
        print(f"Geometric mean of the ratios to `{way}`: **{geometric_mean(ratios[way]):.3f}**.")
    print(flush=True)


def ranks(values):
    return [sum(other < value for other in values) for value in values]


def predict(bench):
    print("## Predicted against measured\n")
    print("Divergence as Quantier measures it, which is that of the weights alone; llama-perplexity's, which rounds "
          "activations to 8 bits too, beside it.\n", flush=True)
    budgets = [part for size in (QUICK_SIZES if bench.quick else SIZES) for part in ("--bpw", size)]
    frontier = bench.make("predict", budgets)
    fit, rows = frontier["fit"], []
    for file in frontier["files"]:
        measured = file["measured"]
        rows.append([file["budget"].removeprefix("--bpw "), f"{file['bpw']:.3f}", str(file["bytes"]),
                     f"{file['predicted']:.6f}", f"{file['corrected']:.6f}", f"{measured['kld']:.6f}",
                     f"{measured['kld'] / file['predicted']:.3f}", f"{file['corrected'] / measured['kld'] - 1:+.1%}",
                     f"{bench.judge(file['path'])['kld']:.6f}"])
    table(["asked bpw", "bpw", "bytes", "predicted", "after the fit", "measured", "measured/predicted", "error of the fit",
           "llama-perplexity"], rows)
    above = [f for f in frontier["files"] if f["bpw"] > 3]
    predicted, measured = (ranks(v) for v in zip(*((f["predicted"], f["measured"]["kld"]) for f in above)))
    n = len(above)
    rank = 1 - 6 * sum((a - b) ** 2 for a, b in zip(predicted, measured)) / (n * (n * n - 1))
    print(f"Fit: measured = {fit['scale']:.3f} x predicted ^ {fit['exponent']:.3f}. Rank correlation above 3 bpw: "
          f"**{rank:.3f}** ({n} files); median error after the fit: **{fit['median_error']:.1%}**.\n", flush=True)


def header(bench):
    machine(bench.quantier)
    print(f"Calibration: the first {CALIBRATION_BYTES // 1000} kB each of {', '.join(p.name for p in bench.calibration)}. "
          f"Evaluation: the first {bench.evaluation.stat().st_size // 1000} kB of {EVALUATION}, {CTX} tokens.\n", flush=True)


PARTS = {"like": like, "independent": independent, "measures": measures, "predict": predict}


def main():
    parser = argparse.ArgumentParser()
    for name in "quantier", "reference", "work", "model", "start":
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default="like,measures,predict")
    parser.add_argument("texts", type=Path, nargs="?")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        fail(f"unknown part '{unknown[0]}'; there are {', '.join(PARTS)}")
    bench = Bench(options)
    header(bench)
    for part in parts:
        PARTS[part](bench)
    print("## Time and memory of `quantier make`\n")
    stages_table(bench.stages)


if __name__ == "__main__":
    main()
