"""Evidence of bench-real.sh: what each step of `quantier make` gains on a real model; prints Markdown."""

import argparse
import hashlib
import os
from pathlib import Path

from bench import THREADS, cut, fail, geometric_mean, machine, made, run, stages_table, table
from bench_presets import CALIBRATION_BYTES, CTX, EVALUATION, Bench, file_of, likes

PRESETS = ["Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"]
# Evaluation texts beside wiki.txt, whose calibration part comes first.
OTHERS = ["code.txt", "multilingual.txt"]
# Options of `make` by step; each step but the first adds to the one before it.
STEPS = {
    "preset": None,
    "weighted": ["--score", "imatrix", "--rounding", "reference"],
    "recipe": None,
    "feedback": ["--no-sequential", "--one-sided"],
    "sequential": ["--one-sided"],
    "two-sided": [],
    "tuned": ["--tune", "--tune-steps", os.environ.get("TUNE_STEPS", "400")],
}
MEANING = {
    "preset": "llama-quantize, the preset",
    "weighted": "types by the importance-weighted error of the weights alone, rounded as llama-quantize does",
    "recipe": "types by KL divergence, rounded by llama-quantize (`--tensor-type-file`)",
    "feedback": "the same types, rounded with error feedback",
    "sequential": "sequential rounding",
    "two-sided": "two-sided rounding: the default",
    "tuned": "`--tune`",
}


def sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Ladder:
    """The files of all steps."""

    def __init__(self, bench, steps):
        self.bench, self.steps = bench, steps
        self.texts = [bench.evaluation] + [self.later(name) for name in OTHERS]

    def later(self, name):
        bench = self.bench
        return cut(bench.source / name, bench.work / f"eval-{name}", -bench.evaluation.stat().st_size, 1 << 30)

    def made(self, step):
        """Result of `make` with the options of a step. All share a directory, and with it what was measured."""
        return self.bench.make(f"made-{step}", likes(self.bench), *STEPS[step], folder="made")

    def path(self, step, preset):
        bench = self.bench
        plain = bench.preset(preset)
        if step == "preset":
            return plain
        frontier = self.made("two-sided" if step == "recipe" else step)
        path = file_of(frontier, preset, plain.stat().st_size)["path"]
        if step != "recipe":
            return path
        recipe = path.with_name(path.name + ".recipe.txt")
        folder = bench.work / "recipes"
        folder.mkdir(exist_ok=True)
        return made(folder / f"{preset}.gguf", lambda out: run(
            [bench.reference / "llama-quantize", "--imatrix", bench.imatrix, "--tensor-type-file", recipe, bench.model,
             out, preset, THREADS]))

    def show(self):
        bench, found = self.bench, {}
        for preset in bench.presets:
            for step in self.steps:
                path = self.path(step, preset)
                found[preset, step] = path.stat().st_size, [bench.judge(path, text) for text in self.texts]
        names = [text.stem.removeprefix("eval-") for text in self.texts]
        names[0] = Path(EVALUATION).stem
        rows, ratios = [], {step: [] for step in self.steps}
        for (preset, step), (size, judged) in found.items():
            theirs = found[preset, self.steps[0]][1]
            of_texts = [ours["kld"] / their["kld"] for ours, their in zip(judged, theirs)]
            ratios[step] += of_texts
            wiki = judged[0]
            rows.append([f"{preset}: {step}", str(size), *(f"{each['kld']:.5f} ({ratio:.3f})" for each, ratio in
                         zip(judged, of_texts)), f"{wiki['p999']:.3f}", f"{wiki['top']:.2f}"])
        table(["size of: step", "bytes", *names, f"99.9%, {names[0]}", f"same top %, {names[0]}"], rows)
        print("Geometric mean of the ratios over all sizes and texts:\n")
        before = None
        means = []
        for step in self.steps:
            mean = geometric_mean(ratios[step])
            means.append([step, MEANING[step], f"{mean:.3f}", "" if before is None else f"{mean / before - 1:+.1%}"])
            before = mean
        table(["step", "meaning", f"of the {self.steps[0]}'s divergence", "change"], means)

    def predictions(self):
        """Predicted against measured divergence, by this program on the evaluation text."""
        rows = []
        for step in self.steps:
            if STEPS[step] is None or step == "weighted":
                continue
            for file in self.made(step)["files"]:
                measured = file["measured"]["kld"]
                rows.append([file["budget"], step, f"{file['predicted']:.6f}", f"{measured:.6f}",
                             f"{measured / file['predicted']:.3f}"])
        table(["budget", "step", "predicted", "measured", "measured/predicted"], rows)

    def sums(self):
        rows = [[self.bench.model.name, sha256(self.bench.model)]]
        for preset in self.bench.presets:
            rows += [[f"{preset}: {step}", sha256(self.path(step, preset))] for step in self.steps]
        table(["file", "SHA-256"], rows)


def main():
    parser = argparse.ArgumentParser()
    for name in "quantier", "reference", "work", "model", "start":
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("texts", type=Path, nargs="?")
    options = parser.parse_args()
    bench = Bench(options, PRESETS, int(os.environ.get("EVALUATED", "60000")))
    steps = os.environ.get("STEPS", ",".join(STEPS)).split(",")
    if unknown := [step for step in steps if step not in STEPS]:
        fail(f"unknown step '{unknown[0]}'; there are {', '.join(STEPS)}")
    machine(bench.quantier)
    texts = ", ".join(p.name for p in bench.calibration)
    print(f"{bench.model.name}. Calibration: the first {CALIBRATION_BYTES // 1000} kB each of {texts}. Evaluation: "
          f"{bench.evaluation.stat().st_size // 1000} kB each of {EVALUATION}, {', '.join(OTHERS)}, {CTX} tokens, by "
          "llama-perplexity; mean KL divergence in nats, and its ratio to the first step's.\n", flush=True)
    ladder = Ladder(bench, steps)
    ladder.show()
    print("## Predicted against measured\n")
    ladder.predictions()
    print("## Time and memory of `quantier make`\n")
    print("Steps after the first use what it measured.\n")
    stages_table(bench.stages)
    print("## Checksums\n")
    ladder.sums()


if __name__ == "__main__":
    main()
