#!/usr/bin/env python3
"""Compares the bytes of Quantier's outputs with recorded ones: SHA-256 of files made from tiny models.

    scripts/guard.py [PROGRAM]            compares with testdata/guard.sha256; exit code 1 if a file differs
    scripts/guard.py --write [PROGRAM]    renews testdata/guard.sha256
    scripts/guard.py --print [PROGRAM]    prints the table

    QUANTIER_GUARD=refmodel,ways,experts scripts/guard.py    only these models

PROGRAM is target/release/quantier by default. The models are random ones of every kind (dense, tied, experts, windows,
fused matrices, biases, transposed) and the reference model. The outputs are converted files, importance matrices and
Hessians, files of both roundings, recipes and frontier.json without times and versions.

A change that keeps all bytes keeps the table. Lines marked `sums` depend on the order of floating-point sums, and so on the
vector instructions of the CPU; they are compared only on a CPU with the instructions named in the table's first line.
Needs only Python's standard library.
"""

import hashlib
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "testdata" / "guard.sha256"
TEXTS = ROOT / "testdata" / "texts"
HIDDEN, HEADS, KV_HEADS, HEAD, LAYERS, FFN = 256, 4, 2, 64, 2, 512
SPM_VOCAB, BPE_VOCAB = 4096, 512
POOL = 1 << 18
# Fields of a Hessian file that describe its job (path and time of the model), and their checksum: key, type, length, hex digits.
JOB = re.compile(rb"covariance\.(key|checksum)\x08\0\0\0.{8}[0-9a-f]{64}", re.DOTALL)


def cpu():
    """Vector instructions that determine the order of sums in a matrix product."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return next((name for name in ("avx512f", "fma") if f" {name} " in flags), "other")


class Weights:
    """Gaussian BF16 weights, slices of one pool at offsets derived from the tensor's name."""

    def __init__(self):
        rng = random.Random(1)
        numbers = (rng.gauss(0.0, 0.05) for _ in range(POOL))
        packed = struct.pack(f"<{POOL}f", *numbers)
        self.pool = b"".join(packed[i + 2:i + 4] for i in range(0, len(packed), 4))
        self.pool += self.pool

    def of(self, name, shape):
        count = 1
        for n in shape:
            count *= n
        if "norm" in name or "ln_" in name:
            # Around 1, exact in BF16.
            return b"".join(struct.pack("<f", 1.0 + (i * 7 % 16 - 8) / 64)[2:] for i in range(count))
        rng = random.Random(name)
        out = bytearray()
        while len(out) < 2 * count:
            start = 2 * rng.randrange(POOL)
            out += self.pool[start:start + min(2 * POOL, 2 * count - len(out), 8192)]
        return bytes(out)


def attention(p, head=HEAD, biases=False):
    q, k = HEADS * head, KV_HEADS * head
    shapes = {"q_proj.weight": (q, HIDDEN), "k_proj.weight": (k, HIDDEN), "v_proj.weight": (k, HIDDEN),
              "o_proj.weight": (HIDDEN, q)}
    if biases:
        shapes |= {"q_proj.bias": (q,), "k_proj.bias": (k,), "v_proj.bias": (k,)}
    return {f"{p}self_attn.{n}": s for n, s in shapes.items()}


def gated(p, ffn=FFN):
    return {f"{p}mlp.gate_proj.weight": (ffn, HIDDEN), f"{p}mlp.up_proj.weight": (ffn, HIDDEN),
            f"{p}mlp.down_proj.weight": (HIDDEN, ffn)}


def norms(p, *names, size=HIDDEN):
    return {f"{p}{n}.weight": (size,) for n in names}


BEFORE = ("input_layernorm", "post_attention_layernorm")
AROUND = BEFORE + ("pre_feedforward_layernorm", "post_feedforward_layernorm")


def decoder(vocab, layer, layers=LAYERS, tied=False):
    shapes = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for i in range(layers):
        shapes |= layer(f"model.layers.{i}.")
    shapes |= norms("model.", "norm")
    return shapes if tied else shapes | {"lm_head.weight": (vocab, HIDDEN)}


def config(cls, model_type, vocab, **more):
    return {"architectures": [cls], "model_type": model_type, "hidden_size": HIDDEN, "intermediate_size": FFN,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
            "vocab_size": vocab, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "bos_token_id": 1,
            "eos_token_id": 2, "torch_dtype": "bfloat16"} | more


def tied():
    scaling = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
               "original_max_position_embeddings": 8192, "rope_type": "llama3"}
    layer = lambda p: attention(p) | gated(p) | norms(p, *BEFORE)
    return config("LlamaForCausalLM", "llama", BPE_VOCAB, rope_theta=500000.0, rope_scaling=scaling,
                  tie_word_embeddings=True, head_dim=HEAD), decoder(BPE_VOCAB, layer, tied=True), "bpe"


def biases():
    layer = lambda p: attention(p, biases=True) | gated(p) | norms(p, *BEFORE)
    return config("Qwen2ForCausalLM", "qwen2", BPE_VOCAB, rope_theta=1e6), decoder(BPE_VOCAB, layer), "bpe"


def experts():
    def layer(p):
        shapes = attention(p) | norms(p, *BEFORE) | {p + "block_sparse_moe.gate.weight": (4, HIDDEN)}
        for e in range(4):
            x = f"{p}block_sparse_moe.experts.{e}."
            shapes |= {x + "w1.weight": (256, HIDDEN), x + "w2.weight": (HIDDEN, 256), x + "w3.weight": (256, HIDDEN)}
        return shapes
    return config("MixtralForCausalLM", "mixtral", SPM_VOCAB, num_local_experts=4, num_experts_per_tok=2,
                  intermediate_size=256), decoder(SPM_VOCAB, layer), "spm"


def shared_expert():
    def layer(p):
        shapes = attention(p, biases=True) | norms(p, *BEFORE) | {p + "mlp.gate.weight": (4, HIDDEN)}
        for e in range(4):
            x = f"{p}mlp.experts.{e}."
            shapes |= {x + "gate_proj.weight": (256, HIDDEN), x + "up_proj.weight": (256, HIDDEN),
                       x + "down_proj.weight": (HIDDEN, 256)}
        x = p + "mlp.shared_expert."
        shapes |= {x + "gate_proj.weight": (256, HIDDEN), x + "up_proj.weight": (256, HIDDEN),
                   x + "down_proj.weight": (HIDDEN, 256), p + "mlp.shared_expert_gate.weight": (1, HIDDEN)}
        return shapes
    return config("Qwen2MoeForCausalLM", "qwen2_moe", BPE_VOCAB, num_experts=4, num_experts_per_tok=2,
                  moe_intermediate_size=256, shared_expert_intermediate_size=256,
                  norm_topk_prob=False), decoder(BPE_VOCAB, layer), "bpe"


def query_norms():
    def layer(p):
        shapes = attention(p, head=128) | norms(p, *BEFORE)
        shapes |= norms(p, "self_attn.q_norm", "self_attn.k_norm", size=128) | {p + "mlp.gate.weight": (4, HIDDEN)}
        for e in range(4):
            x = f"{p}mlp.experts.{e}."
            shapes |= {x + "gate_proj.weight": (256, HIDDEN), x + "up_proj.weight": (256, HIDDEN),
                       x + "down_proj.weight": (HIDDEN, 256)}
        return shapes
    return config("Qwen3MoeForCausalLM", "qwen3_moe", BPE_VOCAB, num_experts=4, num_experts_per_tok=2, head_dim=128,
                  moe_intermediate_size=256, norm_topk_prob=True), decoder(BPE_VOCAB, layer), "bpe"


def caps():
    layer = lambda p: attention(p) | gated(p) | norms(p, *AROUND)
    return config("Gemma2ForCausalLM", "gemma2", SPM_VOCAB, head_dim=HEAD, sliding_window=24,
                  query_pre_attn_scalar=HEAD, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
                  hidden_activation="gelu_pytorch_tanh"), decoder(SPM_VOCAB, layer, tied=True), "spm"


def windows():
    def layer(p):
        return (attention(p) | gated(p) | norms(p, *AROUND)
                | norms(p, "self_attn.q_norm", "self_attn.k_norm", size=HEAD))
    return config("Gemma3ForCausalLM", "gemma3_text", SPM_VOCAB, head_dim=HEAD, sliding_window=16, num_hidden_layers=6,
                  sliding_window_pattern=6, query_pre_attn_scalar=HEAD), decoder(SPM_VOCAB, layer, 6, tied=True), "spm"


def fused():
    def layer(p):
        return norms(p, *BEFORE) | {
            p + "self_attn.qkv_proj.weight": (HIDDEN + 2 * KV_HEADS * HEAD, HIDDEN),
            p + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            p + "mlp.gate_up_proj.weight": (2 * FFN, HIDDEN), p + "mlp.down_proj.weight": (HIDDEN, FFN)}
    return config("Phi3ForCausalLM", "phi3", SPM_VOCAB, sliding_window=None, original_max_position_embeddings=2048,
                  rope_scaling=None), decoder(SPM_VOCAB, layer), "spm"


def scales():
    layer = lambda p: attention(p) | gated(p) | norms(p, *BEFORE)
    return config("GraniteForCausalLM", "granite", SPM_VOCAB, attention_multiplier=0.015625, embedding_multiplier=12.0,
                  residual_multiplier=0.22, logits_scaling=8.0), decoder(SPM_VOCAB, layer), "spm"


def behind():
    def layer(p):
        return (attention(p) | gated(p) | norms(p, "post_attention_layernorm", "post_feedforward_layernorm")
                | norms(p, "self_attn.q_norm", size=HIDDEN) | norms(p, "self_attn.k_norm", size=KV_HEADS * HEAD))
    return config("Olmo2ForCausalLM", "olmo2", BPE_VOCAB), decoder(BPE_VOCAB, layer), "bpe"


def transposed():
    shapes = {"wte.weight": (BPE_VOCAB, HIDDEN), "wpe.weight": (256, HIDDEN)}
    for i in range(LAYERS):
        p = f"h.{i}."
        shapes |= {p + "ln_1.weight": (HIDDEN,), p + "ln_1.bias": (HIDDEN,), p + "ln_2.weight": (HIDDEN,),
                   p + "ln_2.bias": (HIDDEN,), p + "attn.c_attn.weight": (HIDDEN, 3 * HIDDEN),
                   p + "attn.c_attn.bias": (3 * HIDDEN,), p + "attn.c_proj.weight": (HIDDEN, HIDDEN),
                   p + "attn.c_proj.bias": (HIDDEN,), p + "mlp.c_fc.weight": (HIDDEN, 4 * HIDDEN),
                   p + "mlp.c_fc.bias": (4 * HIDDEN,), p + "mlp.c_proj.weight": (4 * HIDDEN, HIDDEN),
                   p + "mlp.c_proj.bias": (HIDDEN,)}
    shapes |= {"ln_f.weight": (HIDDEN,), "ln_f.bias": (HIDDEN,)}
    return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": HIDDEN, "n_layer": LAYERS,
            "n_head": HEADS, "n_ctx": 256, "n_positions": 256, "vocab_size": BPE_VOCAB, "layer_norm_epsilon": 1e-5,
            "torch_dtype": "bfloat16"}, shapes, "bpe"


MODELS = {f.__name__.replace("_", "-"): f for f in (
    tied, biases, experts, shared_expert, query_norms, caps, windows, fused, scales, behind, transposed)}


def write_checkpoint(directory, made, weights):
    settings, shapes, vocabulary = made
    directory.mkdir(parents=True)
    source = ROOT / "testdata" / ("refmodel" if vocabulary == "spm" else "bpe")
    for path in source.iterdir():
        if path.name.startswith("token") or path.name == "special_tokens_map.json":
            shutil.copy(path, directory / path.name)
    (directory / "config.json").write_text(json.dumps(settings))
    header, data = {}, []
    at = 0
    for name, shape in shapes.items():
        raw = weights.of(name, shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


# Settings in frontier.json that were reworded since the sums were recorded: (current, former).
REWORDED = (
    (r'"scored positions"', '"positions judged on"'),
    (r'"sequential(?:, two-sided)? error feedback(?=[;"])',
     '"error feedback, each matrix behind those that were rounded before it'),
    (r"; the output error on held-out text is (\S+) times that of reference rounding \((\S+) to (\S+) per tensor\)",
     r"; on held-out text the errors of products are \1 times those of plain rounding (\2 to \3, tensor by tensor)"),
    (r"with llama\.cpp only", "by llama.cpp alone"),
)


def without_times(text):
    """frontier.json without varying fields."""
    for today, then in REWORDED:
        text = re.sub(today, then, text)

    def clean(value):
        if isinstance(value, dict):
            volatile = ("seconds", "version", "stages", "quantier", "command", "created", "threads")
            return {k: clean(v) for k, v in value.items() if k not in volatile}
        return [clean(v) for v in value] if isinstance(value, list) else value
    return json.dumps(clean(json.loads(text)), sort_keys=True)


class Guard:
    def __init__(self, program, work):
        self.program, self.work, self.lines = program, work, []

    def run(self, *args):
        args = [str(a) for a in args]
        done = subprocess.run([self.program, *args], cwd=self.work, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"guard.py: {' '.join(args)} failed:\n{done.stderr}")
        return done.stdout

    def add(self, name, content, exact=False):
        self.lines.append((hashlib.sha256(content).hexdigest(), "exact" if exact else "sums", name))

    def file(self, name, exact=False):
        self.add(name, JOB.sub(b"", (self.work / name).read_bytes()), exact)

    def directory(self, name):
        """All files below, except the index with checksums of whole files, which include the job."""
        for path in sorted((self.work / name).rglob("*")):
            relative = str(path.relative_to(self.work))
            if path.is_file() and path.name != "index.gguf":
                self.file(relative)

    def model(self, name, checkpoint, pre):
        f16 = f"{name}/f16.gguf"
        (self.work / name).mkdir(exist_ok=True)
        for kind in ("f16", "q8_0", "auto"):
            self.run("convert", checkpoint, "--outtype", kind, "--outfile", f"{name}/{kind}.gguf", *pre)
            self.file(f"{name}/{kind}.gguf", exact=True)
        self.run("imatrix", "-m", f16, "-f", "cal.txt", "-o", f"{name}/imatrix.gguf", "--covariance",
                 f"{name}/covariance", "-c", "64", "--chunks", "16", "--process-output", "-t", "2")
        self.file(f"{name}/imatrix.gguf")
        self.directory(f"{name}/covariance")
        matrix = ("--imatrix", f"{name}/imatrix.gguf")
        for kind in ("Q4_K_M", "IQ2_S", "IQ4_XS", "Q5_0"):
            self.run("quantize", *matrix, f16, f"{name}/{kind}.gguf", kind, "2")
            self.file(f"{name}/{kind}.gguf")
        fed = (*matrix, "--covariance", f"{name}/covariance")
        for kind in ("Q4_K_M", "IQ2_XS", "Q4_0", "IQ4_NL"):
            self.run("quantize", *fed, "--rounding", "feedback", f16, f"{name}/{kind}-feedback.gguf", kind, "2")
            self.file(f"{name}/{kind}-feedback.gguf")
        out = f"{name}/make"
        second = ("--kld", "0.05") if name == "refmodel" else ("--like", "Q3_K_S")
        self.run("make", f16, "--bpw", "4.25", *second, "-f", "cal.txt", "--eval", "eval.txt", "-c", "64",
                 "--eval-chunks", "8", "--score-chunks", "6", "--types", "k", "--compare", "Q4_K_M", "--name", name,
                 "-o", out, "-t", "2")
        self.made(out)
        for kind in ("Q4_K_M", "IQ3_S") if name == "refmodel" else ("IQ3_S",):
            self.run("quantize", *fed, "--propagate", "cal.txt", "-c", "64", "--chunks", "16", f16,
                     f"{name}/{kind}-sequential.gguf", kind, "2")
            self.file(f"{name}/{kind}-sequential.gguf")
        self.run("quantize", "--imatrix", f"{out}/imatrix.gguf", "--covariance", f"{out}/work/covariance",
                 "--gradients", f"{out}/work/gradients", "--propagate", "cal.txt", "-c", "64", f16,
                 f"{name}/two-sided.gguf", "Q3_K_M", "2")
        self.file(f"{name}/two-sided.gguf")
        found = self.run("kld", f16, f"{name}/Q4_K_M.gguf", f"{name}/two-sided.gguf", "-f", "eval.txt", "-c", "64",
                         "--chunks", "8", "--json", "-t", "2")
        self.add(f"{name}/kld.json", without_times(found).encode())

    def made(self, out):
        for path in sorted((self.work / out).iterdir()):
            if path.name.endswith((".gguf", ".txt")):
                self.file(f"{out}/{path.name}")
        found = without_times((self.work / out / "frontier.json").read_text())
        self.add(f"{out}/frontier.json", found.encode())

    def ways(self):
        """The other options of rounding and scoring, on the reference model."""
        common = ("make", "refmodel/f16.gguf", "--bpw", "3.5", "-f", "cal.txt", "--eval", "eval.txt", "-c", "64",
                  "--eval-chunks", "8", "--score-chunks", "4", "--types", "q4_k,q2_k,iq3_s", "--name", "m", "-t", "2")
        for name, args in {
            "no-propagate": ["--no-propagate"], "one-sided": ["--one-sided"],
            "neither": ["--no-propagate", "--one-sided"], "reference": ["--rounding", "reference"],
            "weighted": ["--score", "imatrix"], "positions": ["--score-positions", "64", "--draws", "1"],
        }.items():
            self.run(*common, *args, "-o", f"ways/{name}")
            self.made(f"ways/{name}")


def table(program):
    weights = Weights()
    with tempfile.TemporaryDirectory() as directory:
        guard = Guard(str(Path(program).resolve()), Path(directory))
        shutil.copy(TEXTS / "calibration.txt", guard.work / "cal.txt")
        shutil.copy(TEXTS / "evaluation.txt", guard.work / "eval.txt")
        only = os.environ.get("QUANTIER_GUARD", "").split(",")
        wanted = lambda name: only == [""] or name in only
        if wanted("refmodel") or wanted("ways"):
            guard.model("refmodel", ROOT / "testdata" / "refmodel", ())
        if wanted("ways"):
            guard.ways()
        for name, make in MODELS.items():
            if not wanted(name):
                continue
            write_checkpoint(guard.work / "checkpoints" / name, make(), weights)
            pre = ("--pre", "gpt-2") if make()[2] == "bpe" else ()
            guard.model(name, f"checkpoints/{name}", pre)
            print(f"guard.py: {name}", file=sys.stderr)
        return guard.lines


def main():
    args = sys.argv[1:]
    mode = args.pop(0) if args and args[0].startswith("--") else "--compare"
    found = table(args[0] if args else ROOT / "target" / "release" / "quantier")
    text = f"# {cpu()}\n" + "".join(f"{sha}  {kind}  {name}\n" for sha, kind, name in found)
    if mode == "--print":
        print(text, end="")
    elif mode == "--write":
        TABLE.write_text(text)
    else:
        recorded = TABLE.read_text().splitlines()
        same_cpu = recorded[0] == f"# {cpu()}"
        expected = {name: (sha, kind) for sha, kind, name in (line.split("  ", 2) for line in recorded[1:])}
        names = {name for _, _, name in found}
        compared = [(sha, name) for sha, kind, name in found if same_cpu or kind == "exact"]
        different = [name for sha, name in compared if expected.get(name, ("", ""))[0] != sha]
        models = {name.split("/")[0] for name in names}
        missing = [name for name in expected if name not in names and name.split("/")[0] in models]
        for name in different + missing:
            print(f"different  {name}")
        print(f"{len(compared) - len(different)} identical, {len(different)} different, {len(missing)} missing, "
              f"{len(found) - len(compared)} not comparable on this CPU")
        sys.exit(1 if different or missing else 0)


main()
