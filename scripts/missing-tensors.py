#!/usr/bin/env python3
"""Checks that `quantier convert` refuses a checkpoint with a missing tensor exactly where the reference fails too:
its converter fails, or llama-completion does not load the file.

    scripts/missing-tensors.py [NAME ...]     every kind of checkpoint of scripts/checkpoints.py, or those named

Each tensor is removed in turn; of tensors that differ only by their numbers, the last one. One line per checkpoint, one for
each tensor with different verdicts; the last line is `N agree, M differ`. Exit code 1 if any differs. QUANTIER is
the program (default: target/release/quantier). The reference must be built (scripts/reference.sh --python).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = os.environ.get("QUANTIER", HERE.parent / "target" / "release" / "quantier")
# Excluded: the same tensors as another checkpoint, in other files or another type; no model of its own; not converted by
# the reference; or never finished by llama.cpp.
OTHERS = re.compile(r"-(bin|f16|f32|fp8|yarn|deep|long|reranker|embedding|promised|loops)|^Card-|^mistral-format|^(baichuan|exaone|mpt-scaled|plamo2)$")
INDEX = "model.safetensors.index.json"
# Number of families that one process of the reference converts, as it starts slowly.
TOGETHER = 6
# Cases that Quantier refuses, but where llama.cpp runs a model other than the checkpoint's: pattern of names -> reason.
STRICTER = {
    r"\.act_fn\.": "each becomes a number of a list, in which those of later layers move up",
    r"^mtp\.layers\..*(\.[qkv]_proj\.weight|experts\.gate_up_proj|fc2_latent_proj\.weight)$|\.layers\.2\.self_attn\.[qkv]_proj\.weight$":
        "a block for further tokens; llama.cpp looks for them only where it runs it",
    r"^model\.layers\.5\.eh_proj\.weight$":
        "of Ling 3: llama.cpp takes a file without it for one without the block",
    r"\.scale$": "of codes, which the reference then takes for weights",
    r"^mtp\.\d+\..*\.weight$": "of scales, in a block that is left out",
    r"^model\.layers\.1\.mlp\.(gate|up)_proj\.weight$":
        "of Grok 2: llama.cpp runs a dense network beside experts without its gate, and a model without the network",
    r"block_sparse_moe\.shared_experts\.gate_proj": "of Kimi Linear: llama.cpp runs a shared expert without its gate",
    r"time_mixer\.g1$": "a factor of a gate, which llama.cpp leaves out without it",
    r"^(model\.)?(language_model\.)?(lm_head|output_layer|embed_out)\.weight$": "not tied; llama.cpp takes the embeddings",
}


def say(*command, **more):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace", **more)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def out_of(*command):
    code, out, error = say(*command)
    if code != 0:
        raise RuntimeError(f"{command[0]}: {error[-400:]}")
    return out


def kinds(names):
    """The last one of names that differ only by their numbers."""
    return list({re.sub(r"\d+", "{}", name): name for name in sorted(names)}.values())


def without(folder, made, tensors, name):
    """A copy of the checkpoint in `folder`, in `made`, without a tensor."""
    from safetensors.torch import save_file

    made.mkdir(parents=True)
    for file in folder.iterdir():
        if not file.name.startswith("model"):
            (made / file.name).symlink_to(file)
    tensors = {n: t for n, t in tensors.items() if n != name}
    save_file(tensors, made / "model.safetensors", {"format": "pt"})
    # The reference's MiniMax 01 looks for the embeddings in it.
    if (folder / INDEX).exists():
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
        (made / INDEX).write_text(json.dumps(index))


def load(folder):
    from safetensors.torch import load_file

    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


class Reference:
    def __init__(self):
        self.bin = Path(out_of(HERE / "reference.sh"))
        self.source = next(self.bin.parents[1].glob("*/vendor/llama.cpp"))

    def convert(self, jobs):
        """Converts checkpoints to files; failures have none."""
        lines = "".join(f"{checkpoint}\t--outfile\t{file}\t--outtype\tf16\n" for checkpoint, file in jobs)
        _, _, error = say(sys.executable, HERE / "convert-reference.py", self.source, input=lines)
        for line in error.splitlines():
            if line.startswith("failed: "):
                Path(line.split("\t")[2]).unlink(missing_ok=True)

    def runs(self, file):
        return file.exists() and 0 == say(
            self.bin / "llama-completion", "-m", file, "-p", "a", "-n", 1, "-no-cnv", "-t", 1, "-c", 64,
            "--no-warmup", stdin=subprocess.DEVNULL)[0]


def ours(checkpoint, file):
    code, _, error = say(PROGRAM, "convert", checkpoint, "--outfile", file, "--outtype", "f16", "--pre", "gpt-2")
    return code == 0, error


def cut(name, work):
    """Checkpoints of a family by missing tensor, the first of them complete, and the files to make."""
    import checkpoints

    checkpoints.make(work, name, True)
    tensors = load(work / name)
    jobs = {}
    for number, tensor in enumerate(["", *kinds(tensors)]):
        made = work / f"{name}-{number}"
        without(work / name, made, tensors, tensor)
        jobs[tensor] = (made, work / f"{made.name}.gguf")
    return jobs


def verdicts(jobs, reference, work):
    """The number of tensors with equal verdicts, and the differences."""
    agree, wrong = 0, []
    for tensor, (checkpoint, file) in jobs.items():
        runs, (converts, error) = reference.runs(file), ours(checkpoint, work / "ours.gguf")
        is_stricter = any(re.search(names, tensor) for names in STRICTER)
        if runs == converts or runs and not converts and is_stricter:
            agree += 1
        elif not tensor:
            raise RuntimeError(f"whole, it {'runs' if runs else 'does not run'}; ours: {error[-300:]}")
        else:
            made = "runs" if runs else "does not run" if file.exists() else "is not converted"
            wrong.append(f"without {tensor}: {made}, and ours {'converts' if converts else 'refuses'} it")
        file.unlink(missing_ok=True)
    return agree, wrong


def main():
    python = out_of(HERE / "reference.sh", "--python")
    if Path(sys.executable) != Path(python):
        os.execv(python, [python, *sys.argv])
    sys.path.insert(0, str(HERE))
    import checkpoints

    names = sys.argv[1:] or [n for n in checkpoints.CHECKPOINTS if not OTHERS.search(n)]
    reference, total, bad = Reference(), 0, 0
    for first in range(0, len(names), TOGETHER):
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            cuts = {name: cut(name, work) for name in names[first:first + TOGETHER]}
            reference.convert([job for jobs in cuts.values() for job in jobs.values()])
            for name, jobs in cuts.items():
                try:
                    agree, wrong = verdicts(jobs, reference, work)
                except RuntimeError as error:
                    agree, wrong = 0, [str(error)]
                total, bad = total + agree, bad + len(wrong)
                print(f"{'differs' if wrong else 'agrees':<8} {name}: {agree} tensors agree", flush=True)
                for line in wrong:
                    print(f"         {line}", flush=True)
    print(f"{total} agree, {bad} differ")
    sys.exit(bad != 0)


if __name__ == "__main__":
    main()
