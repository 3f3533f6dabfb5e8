"""Evidence of bench-real.sh: what each step of `quantier make` gains on a real model; prints Markdown."""

import argparse
import hashlib
import json
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

    @property
    def names(self):
        """Names of the evaluation texts."""
        return [Path(EVALUATION).stem] + [text.stem.removeprefix("eval-") for text in self.texts[1:]]

    def measured(self, preset):
        """Results of `quantier kld` on a preset's files and all texts, in one run, by step."""
        paths = [self.path(step, preset) for step in self.steps]

        def make(out):
            texts = [part for text in self.texts for part in ("-f", text)]
            done = run([self.bench.quantier, "kld", self.bench.model, *paths, *texts, "-c", CTX, "-t", THREADS, "--json"])
            # Notes come before it.
            out.write_text(done.stdout[done.stdout.index("{"):])

        found = json.loads(made(self.bench.work / f"kld-{preset}.json", make).read_text())
        # A pair's difference is that of its first model, here the first step's, from its second.
        first = str(paths[0])
        errors = {pair["second"]: pair["paired"]["uncertainty"] for pair in found["pairs"] if pair["first"] == first}
        return {step: {**model, "error": errors.get(str(path))}
                for step, path, model in zip(self.steps, paths, found["models"])}

    def show(self):
        models = {(preset, step): model for preset in self.bench.presets for step, model in self.measured(preset).items()}
        of = {case: [text["statistics"]["kld"]["value"] for text in model["texts"]] for case, model in models.items()}
        rows, ratios = [], {step: [] for step in self.steps}
        for case, model in models.items():
            preset, step = case
            before = preset, self.steps[0]
            path = self.path(step, preset)
            judged = "–"
            if step in (self.steps[0], self.steps[-1]):
                ours, theirs = (self.bench.judge(self.path(each, preset))["kld"] for each in (step, self.steps[0]))
                judged = f"{ours:.5f} ({ours / theirs:.3f})"
            of_texts = [ours / their for ours, their in zip(of[case], of[before])]
            ratios[step] += of_texts
            all_texts = model["statistics"]
            error = model["error"]
            base = models[before]["statistics"]["kld"]["value"]
            ratio = f"{all_texts['kld']['value'] / base:.3f}" + (f" ± {error / base:.3f}" if error else "")
            p999 = dict(map(tuple, all_texts["kld_spread"]["percentiles"]))[99.9]
            by_text = [f"{kld:.5f} ({each:.3f})" for kld, each in zip(of[case], of_texts)]
            rows.append([f"{preset}: {step}", str(path.stat().st_size), judged, *by_text, ratio, f"{p999:.3f}",
                         f"{100 * all_texts['same_top']['value']:.2f}"])
        table(["size of: step", "bytes", f"{self.names[0]}, llama-perplexity", *self.names, "all, of the preset's",
               "99.9%", "same top %"], rows)
        print("Geometric mean of the ratios over all sizes and texts, by `quantier kld`:\n")
        before, means = None, []
        for step in self.steps:
            mean = geometric_mean(ratios[step])
            means.append([step, MEANING[step], f"{mean:.3f}", "" if before is None else f"{mean / before - 1:+.1%}"])
            before = mean
        table(["step", "meaning", f"of the {self.steps[0]}'s divergence", "change"], means)

    def predictions(self):
        """Predicted divergence against that measured on each text, by this program."""
        rows = []
        for preset in self.bench.presets:
            for step, model in self.measured(preset).items():
                if STEPS[step] is None or step == "weighted":
                    continue
                files = self.made(step)["files"]
                predicted = next(file["predicted"] for file in files if file["path"] == self.path(step, preset))
                ratios = [text["statistics"]["kld"]["value"] / predicted for text in model["texts"]]
                rows.append([preset, step, f"{predicted:.6f}", *(f"{ratio:.3f}" for ratio in ratios)])
        table(["size of", "step", "predicted", *(f"measured/predicted, {name}" for name in self.names)], rows)

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
          "`quantier kld`; of the first text, first and last step by llama-perplexity too, which rounds activations to 8 bits. Mean "
          "KL divergence in nats, and its ratio to the first step's, over all texts with the standard error of the paired "
          "difference.\n", flush=True)
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
