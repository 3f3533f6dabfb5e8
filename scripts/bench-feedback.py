"""Evidence of bench-feedback.sh: quantizes, measures, prints Markdown."""

import argparse
import json
import math
import os
from pathlib import Path

from bench import THREADS, cut, fail, geometric_mean, machine, made, run, stages_table, table

CTX = 512
KINDS = ["c4", "code", "technical", "multilingual"]
OTHERS = ["wiki", "groups_merged"]
CALIBRATION_BYTES = 60_000
EXPERTS_BYTES = 12_000
# End of a text, held out from calibration.
JUDGED_BYTES = int(os.environ.get("JUDGED_BYTES", "24000"))
WIKI_BYTES = int(os.environ.get("WIKI_BYTES", "200000"))
TYPES = os.environ.get("TYPES", "q4_0 q4_1 q5_0 q5_1 q8_0 q1_0 q2_0 tq1_0 tq2_0 mxfp4 nvfp4 iq4_nl iq4_xs q2_K q3_K q4_K q5_K "
                       "q6_K iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s").split()
COUNTS = [int(count) for count in os.environ.get("COUNTS", "5000 20000 80000 320000").split()]
COUNTED_TYPES = ["q4_K", "q2_K", "iq2_s"]
EXPERT_TYPES = ["q4_K", "q2_K", "iq2_s"]
ROUNDINGS = ["reference", "feedback", "propagated", "both"]
# Options of `make`.
MAKE = {"reference": ["--rounding", "reference"], "feedback": ["--no-propagate"], "propagated": ["--one-sided"], "both": []}
# Maximum ratio of the divergence to the reference's, by case.
TARGETS = {"q4_K": 0.45, "q2_K": 0.55, **dict.fromkeys(["iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"], 0.7)}


class Bench:
    """Paths, and results made so far."""

    def __init__(self, options):
        self.quantier, self.reference = options.quantier.resolve(), options.reference
        self.work, self.texts = options.work.resolve(), options.texts
        self.model = Path("testdata/refmodel-f16.gguf").resolve()
        # By directory, the texts of its Hessians with the maximum number of chunks of each.
        self.sources = {}
        for name in [*KINDS, *OTHERS]:
            if not self.text(name).exists():
                fail(f"{self.text(name)}: there is no such file; name a directory of texts")

    def text(self, name):
        return self.texts / f"{name}.txt"

    def calibration(self, size=CALIBRATION_BYTES):
        """The beginnings of the calibration texts."""
        return [cut(self.text(name), self.work / f"calibration-{size}-{name}.txt", 0, size) for name in KINDS]

    def judged(self, name):
        """The end of a text, for evaluation."""
        return cut(self.text(name), self.work / f"judged-{name}.txt", -JUDGED_BYTES, JUDGED_BYTES)

    def collected(self, name, model, texts, *more):
        """Importance matrix and Hessians of texts, in a directory; and the number of tokens of these."""
        folder = self.work / name
        self.sources[folder] = (texts, more)
        log = folder / "log.txt"
        if not log.exists():
            folder.mkdir(exist_ok=True)
            named = [part for text in texts for part in ("-f", text)]
            done = run([self.quantier, "imatrix", model, *named, "-o", folder / "imatrix.gguf", "-c", CTX, "--process-output",
                        "--no-ppl", "--no-checkpoint", "--covariance", folder / "covariance", "-t", THREADS, "--json", *more])
            log.write_text(done.stdout)
        chunks = json.loads(log.read_text().splitlines()[-1])["chunks"]
        return folder, chunks * CTX

    def gradients(self, name, model, texts):
        """Output Hessians, written by `quantier frontier`; with one type, as its scores are not used."""
        folder = self.work / name
        if not (folder / "frontier.json").exists():
            named = [part for text in texts for part in ("-f", text)]
            run([self.quantier, "frontier", model, *named, "-c", CTX, "-t", THREADS, "--types", "q8_0,f16", "-o", folder])
        return folder / "work/gradients"

    def quantized(self, model, collected, kind, rounding, embeddings, gradients=None):
        """All layers' matrices and the output in one type; and the effect of error feedback on each."""
        path = collected / f"{kind}-{rounding}.gguf"
        plan = path.with_suffix(".json")
        if not path.exists():
            feedback = [] if rounding == "reference" else ["--rounding", "feedback", "--covariance", collected / "covariance"]
            if rounding in ("propagated", "both"):
                texts, more = self.sources[collected]
                feedback += [*(part for text in texts for part in ("--propagate", text)), "-c", CTX, *more]
            if rounding == "both":
                feedback += ["--gradients", gradients]
            plan.write_text(run([self.quantier, "quantize", "--imatrix", collected / "imatrix.gguf",
                                 *feedback, "--token-embedding-type", embeddings,
                                 "--output-tensor-type", kind, "--tensor-type", f"^blk={kind}", "--no-fallback", "--json",
                                 model, path, "Q8_0", THREADS]).stdout)
        output = json.loads(plan.read_text().splitlines()[-1])["outputs"][0]
        matrices = [t for t in output["tensors"] if len(t["shape"]) > 1 and t["role"] not in ("token_embd", "other")
                    and "ffn_gate_inp" not in t["name"]]
        wrong = [t["name"] for t in matrices if t["to"].lower() != kind.lower() or t["feedback"] != (rounding != "reference")]
        if wrong or not matrices:
            fail(f"{path.name}: {wrong[:3]} are not {kind}, rounded with {rounding}")
        return path, output

    def divergences(self, name, base, files, texts):
        """Mean divergences: file -> text -> (nats, standard error). One pass of the base serves all files."""
        def measure(path):
            named = [part for text in texts for part in ("-f", text)]
            done = run([self.quantier, "kld", base, *files, *named, "-c", CTX, "-t", THREADS, "--json"])
            path.write_text(done.stdout.splitlines()[-1])

        found = json.loads(made(self.work / f"{name}.json", measure).read_text())
        per_text = {}
        for model in found["models"]:
            # A single text has no parts.
            parts = model.get("texts") or [{"text": str(texts[0]), "statistics": model["statistics"]}]
            klds = {Path(part["text"]).stem.removeprefix("judged-"): part["statistics"]["kld"] for part in parts}
            per_text[Path(model["model"])] = {text: (kld["value"], kld["uncertainty"]) for text, kld in klds.items()}
        rows = {Path(text["text"]).stem.removeprefix("judged-"): text["chunks"] * CTX for text in found["texts"]}
        return per_text, rows


def nats(of):
    """Four significant digits, without an exponent."""
    value, _ = of
    return f"{value:.{max(3, 3 - math.floor(math.log10(value)))}f}"


def errors(found):
    """Standard errors, in percent of their values."""
    relative = [uncertainty / value for of in found.values() for value, uncertainty in of.values()]
    return f"{min(relative):.1%} to {max(relative):.1%}"


def types(bench):
    print("## Every type\n")
    collected, tokens = bench.collected("calibrated", bench.model, bench.calibration())
    texts = [cut(bench.text("wiki"), bench.work / "judged-wiki.txt", 0, WIKI_BYTES), *map(bench.judged, ("code", "multilingual"))]
    gradients = bench.gradients("gradients", bench.model, bench.calibration())
    files = {(kind, rounding): bench.quantized(bench.model, collected, kind, rounding, "f16", gradients)[0]
             for kind in TYPES for rounding in ROUNDINGS}
    found, rows = bench.divergences("types", bench.model, files.values(), texts)
    print(f"Calibrated on the first {CALIBRATION_BYTES // 1000} kB each of {', '.join(KINDS)}: {tokens} tokens, of which one "
          f"chunk of eight is held out. Judged on the first {WIKI_BYTES // 1000} kB of wiki ({rows['wiki']} tokens) and the last "
          f"{JUDGED_BYTES // 1000} kB of code ({rows['code']}) and of multilingual ({rows['multilingual']}). All matrices of the layers and the "
          "output matrix are in the type; the token embeddings stay in F16, since rounding with feedback does not reach them. "
          f"Mean KL divergence in nats, all with the same importance matrix: as the reference rounds, with feedback, the same "
          f"one behind the other (`--propagate`, the same texts), and both sides of each matrix (`--gradients`, the same texts); "
          f"then what the last leaves of the first. Standard errors are {errors(found)} of them.\n")
    lines, ratios, worse, missed = [], {(text, of): [] for text in rows for of in ROUNDINGS[:3]}, [], []
    for kind in TYPES:
        *before, ours = (found[files[kind, rounding]] for rounding in ROUNDINGS)
        line = [kind]
        for text in rows:
            left = [ours[text][0] / of[text][0] for of in before]
            for rounding, ratio in zip(ROUNDINGS, left):
                ratios[text, rounding].append(ratio)
                worse += [f"{kind} on {text} than {rounding} ({ratio:.3f})"] if ratio > 1 else []
            missed += [f"{kind} on {text} ({left[0]:.3f})"] if left[0] > TARGETS.get(kind, 1) else []
            line += [nats(of[text]) for of in (*before, ours)] + [f"{left[0]:.3f}"]
        lines.append(line)
    table(["type", *(head for text in rows for head in (text, *ROUNDINGS[1:], "left"))], lines)
    print("Geometric means of what both sides leave: "
          + ", ".join(f"{text} of {of} **{geometric_mean(r):.3f}**" for (text, of), r in ratios.items())
          + f". Worse: {', '.join(worse) or 'none'}. Above its target (q4_K 0.45, q2_K 0.55, i-quants of 2 and "
          f"3 bits 0.7): {', '.join(missed) or 'none'}.\n", flush=True)


def tokens(bench):
    print("## More and more calibration\n")
    texts = [bench.judged(name) for name in [*KINDS, *OTHERS]]
    sets, files = {}, {}
    gradients = bench.gradients("gradients", bench.model, bench.calibration())
    for count in COUNTS:
        chunks = max(1, round(count / CTX / len(KINDS)))
        # Evaluation text is never used for calibration, whatever the number of chunks.
        sources = []
        for name in KINDS:
            size = bench.text(name).stat().st_size - 2 * JUDGED_BYTES
            sources.append(cut(bench.text(name), bench.work / f"all-{name}.txt", 0, size))
        sets[count] = bench.collected(f"calibrated-{count}", bench.model, sources, "--chunks", chunks)
        if sets[count][1] != chunks * len(KINDS) * CTX:
            fail(f"{count} tokens: the texts give {sets[count][1]} in parts of {chunks} chunks")
        for kind in COUNTED_TYPES:
            for rounding in ROUNDINGS:
                made_of = bench.quantized(bench.model, sets[count][0], kind, rounding, "f16", gradients)
                files[count, kind, rounding] = made_of[0]
    found, rows = bench.divergences("tokens", bench.model, files.values(), texts)
    print(f"Calibrated on {', '.join(KINDS)} from their beginnings, as many tokens of each; judged on the last "
          f"{JUDGED_BYTES // 1000} kB of each of these (the mean over {sum(rows[k] for k in KINDS)} tokens) and of wiki "
          f"({rows['wiki']}) and groups_merged ({rows['groups_merged']}). Importance matrix and covariances are of the same "
          "tokens; the gradients of both sides are of 24 chunks, whatever the number. Mean KL divergence in nats.\n")
    lines = []
    for kind in COUNTED_TYPES:
        for count in COUNTS:
            line = [kind, str(sets[count][1])]
            each = [found[files[count, kind, rounding]] for rounding in ROUNDINGS]
            # Every chunk has as many positions, so the mean over texts is weighted by their chunks.
            weights = {k: rows[k] for k in KINDS}
            mean = lambda of: sum(of[k][0] * w for k, w in weights.items()) / sum(weights.values())
            for of_text in [[mean(of) for of in each], *([of[text][0] for of in each] for text in OTHERS)]:
                line += [*(f"{nats:.5f}" for nats in of_text), f"{of_text[-1] / of_text[0]:.3f}"]
            lines.append(line)
    table(["type", "tokens", *(head for text in ("same kinds", *OTHERS) for head in (text, *ROUNDINGS[1:], "left"))], lines)


def experts(bench):
    print("## A Mixture of Experts\n")
    model = bench.work / "experts-f16.gguf"
    calibration = bench.calibration(EXPERTS_BYTES)
    collected, tokens = bench.collected("calibrated-experts", model, calibration)
    texts = [bench.judged(name) for name in ("wiki", "code", "multilingual")]
    gradients = bench.gradients("gradients-experts", model, calibration)
    files = {(kind, rounding): bench.quantized(model, collected, kind, rounding, "f16", gradients)[0]
             for kind in EXPERT_TYPES for rounding in ROUNDINGS}
    frontiers = {}
    for rounding in ROUNDINGS:
        folder = bench.work / f"experts-{rounding}"
        kept = folder / "frontier.json"
        if not kept.exists():
            named = [part for text in calibration for part in ("-f", text)]
            run([bench.quantier, "make", model, *named, "--eval", texts[0], "--bpw", "4.5", *MAKE[rounding], "-c", CTX, "-t", THREADS,
                 "--score-chunks", 8, "-o", folder])
        frontiers[rounding] = json.loads(kept.read_text())
        files["make --bpw 4.5", rounding] = folder / frontiers[rounding]["files"][0]["name"]
    found, rows = bench.divergences("experts", model, files.values(), texts)
    print(f"scripts/experts.py's model: 4 experts of which each token meets 2. {tokens} tokens calibrate, from "
          f"the first {EXPERTS_BYTES // 1000} kB each of {', '.join(KINDS)}; judged on the last "
          f"{JUDGED_BYTES // 1000} kB of each text ({', '.join(f'{text} {n} tokens' for text, n in rows.items())}). Mean KL "
          f"divergence in nats, standard errors {errors(found)} of it.\n")
    lines = []
    for kind in dict.fromkeys(kind for kind, _ in files):
        each = [found[files[kind, rounding]] for rounding in ROUNDINGS]
        line = [f"`{kind}`" if " " in kind else kind]
        for text in rows:
            line += [nats(of[text]) for of in each] + [f"{each[-1][text][0] / each[0][text][0]:.3f}"]
        lines.append(line + ["yes" if loads(bench, files[kind, "both"]) else "NO"])
    table(["files", *(head for text in rows for head in (text, *ROUNDINGS[1:], "left")), "llama.cpp runs it"], lines)


def loads(bench, path):
    """True if llama-completion loads a file and generates from it."""
    done = run([bench.reference / "llama-completion", "-m", path, "-p", "The history of", "-n", 16, "-t", THREADS, "-no-cnv",
                "--temp", 0], check=False)
    return done.returncode == 0 and "The history of" in done.stdout


def make(bench):
    print("## Time and memory of `quantier make`\n")
    print(f"On the built-in text, `testdata/refmodel`, {THREADS} threads; load {os.getloadavg()[0]:.1f} before.\n", flush=True)
    stages = {}
    for budget in (["--bpw", "4.5"], ["--like", "Q4_K_M"]):
        for rounding in ROUNDINGS:
            folder = bench.work / f"make-{budget[1]}-{rounding}"
            if not (folder / "frontier.json").exists():
                run([bench.quantier, "make", "testdata/refmodel", *budget, *MAKE[rounding], "-t", THREADS, "-o", folder])
            frontier = json.loads((folder / "frontier.json").read_text())
            stages[f"{' '.join(budget)}, {rounding}"] = frontier["stages"]
            file = frontier["files"][0]
            print(f"- `{' '.join([*budget, *MAKE[rounding]])}`: {file['bytes']} bytes, {file['measured']['kld']:.6f} nats")
    print(flush=True)
    stages_table(stages)


PARTS = {"types": types, "tokens": tokens, "experts": experts, "make": make}


def main():
    parser = argparse.ArgumentParser()
    for name in "quantier", "reference", "work", "texts":
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    options = parser.parse_args()
    bench = Bench(options)
    machine(bench.quantier)
    print()
    for part in options.parts:
        PARTS[part](bench)


if __name__ == "__main__":
    main()
