"""Embedding models, for scripts/parity-engine.py: embeddings of texts, importance matrices and cosine distances beside
llama.cpp's (scripts/embeddings-reference.cpp), whose tools measure none of them."""

import json
import subprocess
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).resolve().parent
# Largest cosine distance between both programs' embeddings of a text, and of one of its tokens; the largest difference of a sum of
# squares relative to its tensor's mean; that of the mean cosine distance of a quantized file.
DISTANCE, SUMS, MEAN = 1e-6, 0.002, 0.02
# The reference uses a table of GELU in f16.
OF_TABLE = {"distance": 2e-6, "sums": 0.005}
GELU = ("bert", "distilbert", "roberta", "xlm-roberta", "nomic-bert-moe", "jina-bert", "modernbert", "embeddinggemma")
SILU = ("modernbert-classifier",)
# A token of a mixture whose experts are nearly tied may go to others, as GELU is another: of this share of tokens, and of embeddings,
# differences do not count.
TIED = {"nomic-bert-moe": 0.001}
# Case -> pooling in place of the file's: that in front of a reranker's classifier.
CASES = {name: None for name in (
    "bert", "bert-txt", "bert-mlm", "distilbert", "roberta", "xlm-roberta", "xlm-roberta-json", "nomic-bert", "nomic-bert-moe",
    "jina-bert", "jina-bert-code", "modernbert", "modernbert-classifier", "neobert", "neobert-mlm", "eurobert",
    "embeddinggemma", "embeddinggemma-dense", "llama-embed", "qwen3-embedding")}


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"{Path(command[0]).name} fails with {done.returncode}: {' '.join(tail)}")
    return done.stdout


def compiled(options):
    """The reference program, compiled once."""
    program = options.work / "embeddings-reference"
    if not program.exists():
        source = Path(run(HERE / "reference.sh", "--source").strip())
        run("g++", "-O1", "-std=c++17", *(f"-I{source / part}" for part in ("include", "ggml/include")),
            HERE / "embeddings-reference.cpp", "-o", program, f"-L{options.reference}", f"-Wl,-rpath,{options.reference}",
            "-lllama", "-lggml", "-lggml-base")
    return program


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class EmbeddingCase:
    """A checkpoint of an embedding model."""

    def __init__(self, options, name):
        self.o, self.name, self.pooling = options, name, CASES[name]
        self.folder = options.work / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.f32, self.quantized, self.dequantized = (self.folder / f"{n}.gguf" for n in ("f32", "q", "dequantized"))
        # Paragraphs of up to a few hundred words; the empty lines between them separate texts.
        self.text = self.folder / "texts.txt"
        paragraphs = [p for p in options.text.read_text().split("\n\n") if len(p) > 40][:60]
        self.text.write_text("\n\n".join(paragraphs))

    def make(self):
        checkpoint = self.o.work / "checkpoints" / self.name
        if not checkpoint.exists():
            run(self.o.python, HERE / "checkpoints.py", "--lively", checkpoint.parent, self.name)
        dense = ["--sentence-transformers-dense-modules"] if self.name.endswith("-dense") else []
        run(self.o.ours, "convert", checkpoint, "--outtype", "f32", "--pre", "gpt-2", *dense, "--outfile", self.f32)
        run(self.o.ours, "quantize", self.f32, self.quantized, "Q4_K_M")
        run(self.o.ours, "quantize", "--allow-requantize", self.quantized, self.dequantized, "F32")

    def ours(self):
        """Tokens and embeddings of every text."""
        lines = run(self.o.embed, self.f32, self.text).splitlines()
        texts = [json.loads(line) for line in lines]
        return [t["tokens"] for t in texts], [np.array(t["embeddings"], dtype=np.float64) for t in texts]

    def theirs(self, model, tokens, counts):
        """Embeddings of texts of these tokens, `counts` of each, and sums by linear."""
        ids = self.folder / "ids"
        ids.write_text("".join(" ".join(map(str, text)) + "\n" for text in tokens))
        pooling = [] if self.pooling is None else [self.pooling]
        numbers, sums = run(compiled(self.o), model, ids, *pooling).split("\n\n", 1)
        rows = np.array([line.split() for line in numbers.splitlines()], dtype=np.float64)
        if len(rows) != sum(counts):
            raise RuntimeError(f"{sum(counts)} embeddings, and the reference has {len(rows)}")
        texts = np.split(unit(rows), np.cumsum(counts)[:-1])
        found = {}
        for line in sums.splitlines():
            head, squares = line.split(" | ")
            name, *own = head.split()
            found[name] = (np.array(squares.split(), dtype=np.float64), [int(count) for count in own])
        return texts, found

    def imatrix(self, expected):
        """The largest difference of a sum, and whether the counts agree."""
        path = self.folder / "imatrix.gguf"
        run(self.o.ours, "imatrix", "-m", self.f32, "-f", self.text, "-c", 4096, "-o", path)
        found = {t.name: np.array(t.data, dtype=np.float64).flatten() for t in gguf.GGUFReader(path).tensors}
        names = {name.removesuffix(".in_sum2") for name in found if name.endswith(".in_sum2")}
        if names != expected.keys():
            raise RuntimeError(f"imatrix: only one side has {sorted(names ^ expected.keys())[:3]}")
        worst, where, counts = 0.0, "", True
        for name, (squares, own) in expected.items():
            difference = float(np.abs(found[f"{name}.in_sum2"] - squares).max() / squares.mean())
            off = np.abs(found[f"{name}.counts"].astype(int) - np.array(own))
            counts &= bool(off.sum() <= TIED.get(self.name, 0) * sum(own))
            if not difference <= worst:
                worst, where = difference, name
        return worst, where, counts

    def line(self):
        """True if all values are within tolerance, and the values."""
        self.make()
        tokens, ours = self.ours()
        counts = [len(rows) for rows in ours]
        theirs, sums = self.theirs(self.f32, tokens, counts)
        distances = np.sum((np.concatenate(ours) - np.concatenate(theirs)) ** 2, axis=1) / 2
        worst = float(np.quantile(distances, 1 - TIED.get(self.name, 0)))
        quantized, _ = self.theirs(self.dequantized, tokens, counts)
        mean = lambda a, b: float(np.mean(np.sum((a - b) ** 2, axis=1) / 2))
        expected = np.mean([mean(a, b) for a, b in zip(theirs, quantized)])
        out = json.loads(run(self.o.ours, "kld", self.f32, self.quantized, "-f", self.text, "-c", 4096, "--json"))
        found = out["models"][0]["cosine_distance"]["mean"]["value"]
        off, where, same = self.imatrix(sums)
        bounds = {"distance": DISTANCE, "sums": SUMS}
        if self.name.startswith(GELU) and self.name not in SILU:
            bounds = OF_TABLE
        good = worst <= bounds["distance"] and off <= bounds["sums"] and same and abs(found / expected - 1) <= MEAN
        return good, (
            f"{len(ours)} texts; embeddings off by {worst:.2e}; imatrix off by {off:.4%}{' in ' + where if off > SUMS else ''}, counts "
            f"{'identical' if same else 'DIFFER'}; distance of Q4_K_M {found:.6f} / {expected:.6f} ({found / expected - 1:+.3%})")
