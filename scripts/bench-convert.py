"""Measurements of bench-convert.sh: makes the checkpoint, runs the commands in turn, prints time and memory."""

import filecmp
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS = 2048, 5632, 11, 32, 4
PYTHON_ROUNDS = 3


def make(folder):
    """A Llama with the layers of TinyLlama, half as many."""
    import checkpoints
    import torch

    checkpoints.HEADS, checkpoints.KV_HEADS = HEADS, KV_HEADS
    head = HIDDEN // HEADS
    vocab = checkpoints.SPM_VOCAB
    shapes = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        shapes |= checkpoints.attention(p, head=head, hidden=HIDDEN)
        shapes |= checkpoints.gated(p + "mlp.", ffn=FFN, hidden=HIDDEN)
        shapes |= checkpoints.norms(p, "input_layernorm", "post_attention_layernorm", size=HIDDEN)
    shapes |= checkpoints.norms("model.", "norm", size=HIDDEN) | {"lm_head.weight": (vocab, HIDDEN)}
    config = checkpoints.base("LlamaForCausalLM", "llama", vocab, hidden_size=HIDDEN, intermediate_size=FFN,
                              num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    checkpoints.write_spm(folder)
    tensors = {n: checkpoints.tensor(n, shape, torch.bfloat16) for n, shape in shapes.items()}
    checkpoints.write_weights(folder, tensors, 2)


def measure(command):
    """Wall time in seconds, and peak resident memory in MiB."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"bench-convert: {' '.join(map(str, command))}: {errors.decode(errors='replace')[-2000:]}")
    return seconds, usage.ru_maxrss / 1024


def main():
    quantier, source, work, rounds = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    model = work / "Bench"
    if not model.exists():
        subprocess.run([sys.executable, __file__, "--make", model], check=True)
    ours, theirs = work / "ours", work / "theirs"
    ours.mkdir(exist_ok=True)
    theirs.mkdir(exist_ok=True)
    types = ["bf16", "f16", "q8_0"]
    commands = {}
    for t in types:
        commands[f"quantier convert --outtype {t}"] = (
            [quantier, "convert", model, "--outtype", t, "--outfile", ours / f"{t}.gguf"], ours / f"{t}.gguf", rounds)
    for t in types:
        commands[f"convert_hf_to_gguf.py --outtype {t}"] = (
            [sys.executable, source / "convert_hf_to_gguf.py", model, "--outtype", t, "--outfile",
             theirs / f"{t}.gguf"], theirs / f"{t}.gguf", min(rounds, PYTHON_ROUNDS) if t == "bf16" else 1)
    copy = work / "copy.gguf"
    made = theirs / "bf16.gguf"
    commands["cp"] = (["cp", made, copy], copy, rounds)
    commands["cp && sync FILE"] = (["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", made, copy], copy, rounds)

    def warm():
        for file in [*model.glob("*.safetensors"), made]:
            if file.exists():
                with open(file, "rb") as opened:
                    while opened.read(1 << 24):
                        pass

    # The reference's files come first: cp copies one of them.
    results = {name: [] for name in commands}
    loads = []
    order = sorted(commands, key=lambda name: not name.startswith("convert_hf"))
    for i in range(rounds):
        for name in order:
            command, out, times = commands[name]
            if i >= times:
                continue
            out.unlink(missing_ok=True)
            # Earlier output is flushed to disk before the clock starts.
            os.sync()
            warm()
            loads.append(os.getloadavg()[0])
            results[name].append(measure(command))

    size = sum(f.stat().st_size for f in model.glob("*.safetensors"))
    print(f"checkpoint: {size / 1e9:.3f} GB of safetensors in {len(list(model.glob('*.safetensors')))} files; "
          f"{os.cpu_count()} cores; load before the runs {min(loads):.1f} to {max(loads):.1f}")
    print(f"{'command':<40} {'runs':>4} {'median':>8} {'fastest':>8} {'slowest':>8} {'memory':>9}")
    median = {}
    for name, runs in results.items():
        seconds = [s for s, _ in runs]
        median[name] = statistics.median(seconds)
        print(f"{name:<40} {len(runs):>4} {median[name]:>6.2f} s {min(seconds):>6.2f} s {max(seconds):>6.2f} s "
              f"{max(m for _, m in runs):>5.0f} MiB")
    for t in types:
        ratio = median[f"convert_hf_to_gguf.py --outtype {t}"] / median[f"quantier convert --outtype {t}"]
        print(f"{t}: {ratio:.1f} times faster than convert_hf_to_gguf.py")
    for name in "cp", "cp && sync FILE":
        print(f"bf16: {median['quantier convert --outtype bf16'] / median[name]:.2f} times the time of {name}")
    different = [t for t in types if not filecmp.cmp(ours / f"{t}.gguf", theirs / f"{t}.gguf", shallow=False)]
    print(f"files: {len(types) - len(different)} identical, {len(different)} different")
    sys.exit(bool(different))


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        make(Path(sys.argv[2]))
    else:
        main()
