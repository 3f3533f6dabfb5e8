"""Evidence of bench-frontier.sh: makes the files, evaluates them by llama-perplexity, prints Markdown."""

import argparse
import json
import os
from pathlib import Path

from bench import fail, geometric_mean, machine, stages_table, table
from bench_presets import CALIBRATION_BYTES, CTX, EVALUATION, Bench, file_of, likes

PRESETS = ["IQ2_XXS", "IQ2_M", "Q2_K", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K"]
# llama-quantize makes these only with an importance matrix.
NEED_IMATRIX = {"IQ2_XXS", "IQ2_M", "IQ3_XXS"}
QUICK_PRESETS = ["Q2_K", "Q4_K_M", "Q6_K"]
SIZES = ["2", "2.5", "3", "3.25", "3.75", "4.25", "5", "6", "7", "8"]
QUICK_SIZES = ["2.5", "3.5", "4.5", "6"]


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
    bench = Bench(options, QUICK_PRESETS if options.quick else PRESETS, 40_000 if options.quick else 200_000)
    bench.quick = options.quick
    header(bench)
    for part in parts:
        PARTS[part](bench)
    print("## Time and memory of `quantier make`\n")
    stages_table(bench.stages)


if __name__ == "__main__":
    main()
