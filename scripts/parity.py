"""Comparisons of parity.sh: runs every case with llama-quantize and with quantier and compares the files."""

import argparse
import ctypes
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

TYPES = """Q1_0 Q2_0 Q4_0 Q4_1 MXFP4_MOE Q5_0 Q5_1 IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ1_S IQ1_M TQ1_0 TQ2_0 Q2_K Q2_K_S
IQ3_XXS IQ3_S IQ3_M Q3_K IQ3_XS Q3_K_S Q3_K_M Q3_K_L IQ4_NL IQ4_XS Q4_K Q4_K_S Q4_K_M Q5_K Q5_K_S Q5_K_M Q6_K Q8_0
F16 BF16 F32 COPY""".split()
MATRICES = {"none": "", "gguf": ".imatrix.gguf", "dat": ".imatrix.dat"}

# ggml's type numbers with tables that take the reference long to build.
SLOW_TABLES = [16, 17, 18, 19, 21, 22, 29]

# Model, options, types. {i} is the model's importance matrix, {d} the same as .dat, {w} a directory with the files
# that OPTION_FILES lists.
OPTION_FILES = {
    "types.txt": "attn_q=q8_0 blk\\.1\\..*=iq4_nl\n\n  ffn_(up|gate)=Q5_1\n",
    "bad_types.txt": "attn_q=q8_0 attn_k=q9\n",
}
OPTIONS = [
    ("gqa4", "--pure", "Q4_K_M Q2_K IQ4_XS F16"),
    ("gqa4", "--pure --imatrix {i}", "IQ2_M IQ3_XXS Q2_K_S"),
    ("experts8", "--pure --imatrix {i}", "Q3_K_M IQ2_XXS MXFP4_MOE"),
    ("falcon", "--pure", "Q5_K_M"),
    ("width-320", "--pure", "Q3_K_M Q6_K"),
    ("tied", "--pure", "Q4_K_S"),
    ("tied", "--pure --output-tensor-type q5_K", "Q4_K_S"),
    ("gqa4", "--leave-output-tensor", "Q4_K_M F32"),
    ("tied", "--leave-output-tensor", "Q4_K_M"),
    ("gqa4", "--output-tensor-type q8_0", "Q4_K_M F16 MXFP4_MOE COPY"),
    ("gqa4", "--output-tensor-type Q4_0 --leave-output-tensor", "Q6_K"),
    ("tied", "--output-tensor-type Q5_K", "Q3_K_M F16"),
    ("width-320", "--output-tensor-type q4_k", "Q4_K_M"),
    ("gqa4", "--output-tensor-type q9_9", "Q4_K_M"),
    ("gqa4", "--token-embedding-type q3_K", "Q4_K_M BF16"),
    ("tied", "--token-embedding-type IQ4_NL", "Q4_K_M"),
    ("tied", "--token-embedding-type q4_1 --output-tensor-type q5_1", "Q4_K_M F32"),
    ("tied", "--token-embedding-type q4_1 --tensor-type per_layer=q6_K", "Q4_K_M F16"),
    ("gqa4", "--token-embedding-type iq2_xxs", "Q4_K_M"),
    ("width-40", "--token-embedding-type q8_0", "Q4_K_M"),
    ("gqa4", "--tensor-type attn_v=q8_0", "Q4_K_M IQ4_XS F16 COPY"),
    ("gqa4", "--tensor-type ATTN_Q=Q5_K --tensor-type ^blk\\.(1|2)\\..*up.*=iq4_xs", "Q4_K_M Q4_K_S"),
    ("gqa4", "--tensor-type blk\\.[0-3]\\.ffn_down=q6_k --tensor-type ffn_(?:down|gate)=q4_0", "Q4_K_M Q3_K_L"),
    ("gqa4", "--tensor-type blk\\.[[:digit:]]+\\.attn_output=q5_1 --tensor-type \\battn_k\\b=f16", "Q3_K_M"),
    ("gqa4", "--tensor-type blk\\.\\D\\.=q5_1 --tensor-type (f)fn_d\\w+n.weight$=bf16", "Q4_K_M"),
    ("gqa4", "--tensor-type blk.1{2}.=q5_1 --tensor-type blk\\.1[^2-5]\\.(?!attn)=f32", "Q4_K_M"),
    ("gqa4", "--tensor-type attn_v=iq2_xs --imatrix {i}", "Q4_K_M IQ2_S"),
    ("gqa4", "--tensor-type attn_v=iq2_xs", "Q4_K_M"),
    ("gqa4", "--tensor-type attn_v", "Q4_K_M"),
    ("gqa4", "--tensor-type =q8_0", "Q4_K_M"),
    ("gqa4", "--tensor-type attn_v=", "Q4_K_M"),
    ("gqa4", "--tensor-type (=q8_0", "Q4_K_M"),
    ("width-320", "--tensor-type attn_v=q6_K --tensor-type attn_k=tq2_0", "Q4_K_M"),
    ("width-40", "--tensor-type attn_v=q1_0", "Q4_K_M"),
    ("gqa4", "--tensor-type-file {w}/types.txt", "Q4_K_M"),
    ("gqa4", "--tensor-type attn_q=q6_K --tensor-type-file {w}/types.txt", "Q4_K_M"),
    ("gqa4", "--tensor-type-file {w}/types.txt --tensor-type attn_q=q6_K", "Q4_K_M"),
    ("gqa4", "--tensor-type-file {w}/bad_types.txt", "Q4_K_M"),
    ("gqa4", "--tensor-type-file {w}/none.txt", "Q4_K_M"),
    ("gqa4", "--imatrix {i} --include-weights attn_q --include-weights ffn", "Q4_K_M IQ4_XS IQ2_XXS"),
    ("gqa4", "--imatrix {d} --include-weights blk.1.", "Q4_0"),
    ("gqa4", "--imatrix {i} --exclude-weights ffn_down --exclude-weights attn_v", "Q4_K_M IQ3_XXS"),
    ("gqa4", "--imatrix {i} --exclude-weights weight", "Q4_0 IQ4_XS"),
    ("gqa4", "--imatrix {i} --exclude-weights ffn --include-weights attn", "Q4_K_M"),
    ("gqa4", "--imatrix {w}/none.gguf", "Q4_K_M"),
    ("gqa4", "--imatrix {w}/types.txt", "Q4_K_M"),
    ("quantized", "--allow-requantize", "Q4_K_M Q8_0 Q6_K Q2_K IQ4_NL F16 F32"),
    ("quantized", "--allow-requantize --imatrix {i}", "IQ3_XXS IQ1_S"),
    ("quantized", "", "Q8_0 Q4_K_M"),
    ("split", "--keep-split", "Q4_K_M COPY F16"),
    ("split", "--keep-split --imatrix {i}", "IQ2_M IQ4_NL"),
    ("split-empty-first", "--keep-split", "Q4_K_M COPY"),
    ("gqa4", "--keep-split", "Q4_K_M COPY"),
    ("split", "--keep-split --prune-layers 2,5", "Q4_K_M"),
    ("split", "--prune-layers 0,1,2,3", "COPY Q4_K_M"),
    ("gqa4", "--override-kv general.name=str:another,name --override-kv test.float=float:-1.5e-3", "Q8_0"),
    ("gqa4", "--override-kv test.int=int:-5 --override-kv test.big=int:5000000000", "Q8_0"),
    ("gqa4", "--override-kv test.yes=bool:true --override-kv general.name=bool:false", "Q8_0 COPY"),
    ("gqa4", "--override-kv test.a=int:1 --override-kv test.a=str: --override-kv test.a=float:2", "Q8_0"),
    ("gqa4", "--override-kv general.file_type=int:7", "COPY Q4_K_M"),
    ("gqa4", "--override-kv general.file_type=str:x", "COPY"),
    ("split", "--override-kv general.file_type=int:15", "COPY"),
    ("gqa4", "--override-kv llama.attention.head_count_kv=int:8", "Q2_K IQ4_XS"),
    ("gqa4", "--override-kv llama.attention.head_count_kv=float:8", "Q2_K"),
    ("gqa2", "--override-kv llama.attention.head_count=int:16", "Q2_K IQ3_M"),
    ("gqa2", "--override-kv llama.attention.head_count_kv=int:0", "Q2_K"),
    ("heads-by-layer", "--override-kv llama.attention.head_count_kv=int:8", "Q2_K"),
    ("llama-80-layers-mha", "--override-kv llama.attention.head_count_kv=int:2", "Q2_K Q4_K_M"),
    ("experts8", "--override-kv llama.expert_count=int:4", "Q4_K_M IQ3_M Q2_K"),
    ("experts4", "--override-kv llama.expert_count=int:8", "Q4_K_M IQ3_XS"),
    ("experts4", "--override-kv llama.block_count=int:9", "Q4_K_M"),
    ("gqa4", "--override-kv llama.block_count=int:80", "Q3_K_M Q2_K"),
    ("gqa4", "--override-kv general.architecture=str:qwen2", "Q4_K_M"),
    ("gqa4", "--override-kv noequals", "Q8_0"),
    ("gqa4", "--override-kv a=bool:yes", "Q8_0"),
    ("gqa4", "--override-kv a=list:1", "Q8_0"),
    ("gqa4", "--prune-layers 3,4,7", "Q4_K_M COPY"),
    ("gqa4", "--prune-layers 0", "Q4_K_M"),
    ("gqa4", "--prune-layers 15,1,1 --imatrix {i}", "IQ2_XS Q3_K_M"),
    ("experts8", "--prune-layers 2,9 --imatrix {d}", "Q4_K_M Q2_K"),
    ("odd-tensors", "--prune-layers 3", "Q4_K_M"),
    ("gqa4", "--prune-layers 99", "Q4_K_M"),
    ("gqa4", "--prune-layers x", "Q4_K_M"),
    ("gqa4", "--prune-layers -1", "Q4_K_M"),
    ("refmodel", "--max-buffer-size 1", "Q8_0 Q4_K_S"),
    ("experts8", "--max-buffer-size 1 --imatrix {i}", "Q4_K_M IQ3_S"),
    ("gqa4", "--max-buffer-size 0", "Q8_0"),
    ("gqa4", "--nonsense", "Q8_0"),
]
# Other spellings of types; the last ones are invalid.
SPELLINGS = "q4_k_m 15 iq2_xs 20 0 1 copy 7 tq1_0 38 Mxfp4_moe Q4_K_XL 4 33".split()
THREADS = "0 2 3 7 16 -1 x".split()
DRY_RUNS = [("gqa4", "Q4_K_M"), ("gqa4", "IQ2_XXS"), ("experts8", "Q2_K"), ("split", "Q5_0"), ("width-40", "IQ3_M"),
            ("tied", "COPY"), ("refmodel", "IQ1_M"), ("width-320", "Q4_K_S")]
DEFAULT_OUTPUTS = [("gqa4", "Q4_K_M", ""), ("gqa4", "15", ""), ("gqa4", "copy", ""), ("gqa4", "Q8_0", "--keep-split"),
                   ("split", "Q8_0", "--keep-split"), ("split", "iq4_nl", "")]
# Possible results. A reference that fails an assertion where we write a valid file is no evidence against us.
VERDICTS = ["identical", "both refuse", "only it crashes", "different"]


@dataclass
class Case:
    model: str
    options: list
    type: str
    threads: str = "1"
    default_output: bool = False
    number: int = 0

    def __str__(self):
        output = "" if self.default_output else " OUT"
        return " ".join(["llama-quantize", *self.options, self.model + output, self.type, self.threads]).rstrip()


@dataclass
class Places:
    reference: Path
    ours: Path
    work: Path
    models: dict = field(default_factory=dict)


def first_shards(directory):
    """Model name -> path of the file to name on the command line."""
    found = {}
    for path in sorted(directory.glob("*.gguf")):
        shard = re.search(r"-(\d{5})-of-\d{5}$", path.stem)
        if path.name.endswith(".imatrix.gguf") or (shard and shard[1] != "00001"):
            continue
        found[path.stem[: shard.start()] if shard else path.stem] = path
    return found


def cases(places, quick):
    def matrix(model, kind):
        suffix = MATRICES[kind]
        return ["--imatrix", str(places.work / "models" / (model + suffix))] if suffix else []

    def matrices(model, types, kinds):
        return [Case(model, matrix(model, kind), t) for t in types for kind in kinds]

    # Refusals are fast, so these have all types in the quick run too.
    thorough = {"gqa4", "nan", "experts8"}
    rotation = cycle(TYPES)
    for model in places.models:
        if not quick:
            yield from matrices(model, TYPES, MATRICES)
        elif model == "refmodel":
            yield from matrices(model, ["Q4_K_M", "IQ4_XS", "Q2_K", "Q8_0"], ["gguf"])
            yield from matrices(model, ["Q4_0", "COPY"], ["none"])
        elif model in thorough:
            yield from matrices(model, TYPES, ["none", "gguf"])
        else:
            yield from matrices(model, islice(rotation, 7), ["none", "gguf"])
            yield from matrices(model, islice(rotation, 2), ["dat"])
    for model, options, types in OPTIONS:
        if model in places.models:
            fill = {"i": matrix(model, "gguf")[1], "d": matrix(model, "dat")[1], "w": places.work}
            filled = [option.format(**fill) if "{w}" in option or option in ("{i}", "{d}") else option
                      for option in options.split()]
            for t in types.split():
                yield Case(model, filled, t)
    for spelling in SPELLINGS:
        yield Case("gqa2", matrix("gqa2", "gguf"), spelling)
    for threads in THREADS:
        yield Case("experts8", matrix("experts8", "gguf"), "Q4_K_M", threads)
        yield Case("refmodel", [], "Q8_0", threads)
    for model, t in DRY_RUNS:
        yield Case(model, ["--dry-run"], t)
    for model, t, option in DEFAULT_OUTPUTS:
        yield Case(model, option.split(), t, threads="", default_output=True)


class Worker:
    """Runs cases. Loads the reference as a library, with its slow tables built once, and forks for every case."""

    def __init__(self, places):
        self.places = places
        os.environ["GGML_NO_BACKTRACE"] = "1"
        base = ctypes.CDLL(str(places.reference / "libggml-base.so"))
        self.library = ctypes.CDLL(str(places.reference / "libllama-quantize-impl.so"))
        for number in SLOW_TABLES:
            base.ggml_quantize_init(number)

    def run_reference(self, directory, args, log):
        """The program's main function in a child process; returns its exit status, negative for a signal."""
        child = os.fork()
        if child == 0:
            os.chdir(directory)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            words = [b"llama-quantize"] + [arg.encode() for arg in args]
            argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
            os._exit(self.library._Z14llama_quantizeiPPc(len(words), argv))
        status = os.waitpid(child, 0)[1]
        return os.waitstatus_to_exitcode(status)

    def run_ours(self, directory, args, log):
        with open(log, "w") as out:
            return subprocess.run([self.places.ours, "quantize", *args], cwd=directory, stdout=out,
                                  stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode

    def __call__(self, case):
        """(case, verdict, difference, seconds of each)"""
        home = self.places.work / f"case-{case.number}"
        started = time.monotonic()
        theirs, ours = home / "theirs", home / "ours"
        dry_run = "--dry-run" in case.options
        inputs = self.inputs(case)
        for directory in (theirs, ours):
            directory.mkdir(parents=True)
            for path in inputs if case.default_output else []:
                (directory / path.name).symlink_to(path)
        model = self.places.models[case.model]
        output = [] if case.default_output or dry_run else ["out.gguf"]
        words = [*case.options, model.name if case.default_output else str(model), *output, case.type]
        words += [case.threads] if case.threads else []
        code = self.run_reference(theirs, words, home / "theirs.log")
        between = time.monotonic()
        own_code = self.run_ours(ours, ["--json", *words] if dry_run else words, home / "ours.log")
        verdict, why = self.judge(home, code, own_code, dry_run)
        ended = time.monotonic()
        shutil.rmtree(home)
        return case, verdict, why, between - started, ended - between

    def inputs(self, case):
        first = self.places.models[case.model]
        shards = re.match(r"(.*)-00001-of-(\d{5})$", first.stem)
        return sorted(first.parent.glob(f"{shards[1]}-*-of-{shards[2]}.gguf")) if shards else [first]

    def judge(self, home, code, own_code, dry_run):
        theirs, ours = ({p.name: p for p in (home / side).iterdir() if not p.is_symlink()}
                        for side in ("theirs", "ours"))
        last = (home / "ours.log").read_text(errors="replace").strip().splitlines()[-3:]
        if own_code != 0 and ours:
            return "different", f"we refuse and leave {sorted(ours)}"
        if code != 0 and own_code != 0:
            return "both refuse", ""
        if code < 0 and own_code == 0:
            return "only it crashes", f"signal {-code}"
        if code != 0:
            reason = (home / "theirs.log").read_text(errors="replace").strip().splitlines()[-2:]
            return "different", f"only the reference refuses: {reason}"
        if own_code != 0:
            return "different", f"only we refuse: {last}"
        if dry_run:
            return self.judge_sizes(home)
        if theirs.keys() != ours.keys():
            return "different", f"files {sorted(theirs)} and {sorted(ours)}"
        for name in sorted(theirs):
            at = first_difference(theirs[name], ours[name])
            if at is not None:
                return "different", f"{name} at byte {at}"
        return "identical", ""

    def judge_sizes(self, home):
        said = re.search(r"quant size  = *([\d.]+) MiB \(([\d.]+) BPW\)", (home / "theirs.log").read_text())
        output = json.loads((home / "ours.log").read_text())["outputs"][0]
        ours = (f"{output['tensor_bytes'] / 2**20:.2f}", f"{output['bpw']:.2f}")
        same = said is not None and said.groups() == ours
        return ("identical", "") if same else ("different", f"sizes {said and said.groups()} and {ours}")


def first_difference(a, b):
    with open(a, "rb") as file_a, open(b, "rb") as file_b:
        position = 0
        while True:
            part_a, part_b = file_a.read(1 << 20), file_b.read(1 << 20)
            if part_a != part_b:
                pairs = enumerate(zip(part_a, part_b))
                return position + next((i for i, (x, y) in pairs if x != y), min(len(part_a), len(part_b)))
            if not part_a:
                return None
            position += len(part_a)


worker = None


def run(case):
    return worker(case)


def main():
    global worker
    parser = argparse.ArgumentParser()
    for name in ("reference", "ours", "synthetic", "refmodel", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    started = time.monotonic()

    places = Places(args.reference, args.ours.resolve(), args.work.resolve())
    models = places.work / "models"
    subprocess.run([args.synthetic, models], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([args.synthetic, "--imatrix", args.refmodel, models / "refmodel.imatrix"], check=True)
    places.models = {"refmodel": args.refmodel.resolve(), **first_shards(models)}
    for name, text in OPTION_FILES.items():
        (places.work / name).write_text(text)
    todo = list(cases(places, args.quick))
    for number, case in enumerate(todo):
        case.number = number
    # Slow cases first, so that no core idles at the end.
    todo.sort(key=lambda case: case.model != "refmodel")

    worker = Worker(places)
    counts, seconds, different = defaultdict(Counter), Counter(), []
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        for case, verdict, why, theirs, ours in pool.imap_unordered(run, todo):
            counts[case.model][verdict] += 1
            counts["all"][verdict] += 1
            seconds["theirs"] += theirs
            seconds["ours"] += ours
            if verdict == "different":
                different.append(case)
                print(f"DIFFERENT  {case}\n           {why}", flush=True)

    print(f"{'model':<38}" + "".join(f"{verdict:>17}" for verdict in VERDICTS))
    for model in [*places.models, "all"]:
        print(f"{model:<38}" + "".join(f"{counts[model][verdict]:>17}" for verdict in VERDICTS))
    print(f"{time.monotonic() - started:.0f} s; in llama-quantize {seconds['theirs']:.0f} s, "
          f"in quantier {seconds['ours']:.0f} s, over all cores")
    same = counts["all"]["identical"] + counts["all"]["both refuse"]
    print(f"{same} identical, {len(different)} different")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
