#!/usr/bin/env python3
"""Checks that converted files work in the reference: each loads and generates, or makes embeddings, and the first file of every checkpoint
tokenizes a text to the ids of the checkpoint's own tokenizer.

    convert-runs.py BIN CHECKPOINTS < FILES

BIN has llama-completion, llama-bench and llama-tokenize; every line of FILES is the name of a checkpoint (a directory in
CHECKPOINTS) and a file made of it, separated by a tab. One line per checkpoint; the last line is `N run, M do not`.
Exit code 1 if any does not. Needs transformers and sentencepiece.
"""

import ast
import logging
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import embedding_checkpoints

GENERATED = 16
TRIES = 8
PROMPT = "Hello world"
# A text with a sample of every kind of text that pre-tokenizers or normalizers treat specially.
PROBE = """Hello, world! The quick brown fox jumps over 13 lazy dogs; it's 3.14159, isn't it? We'll see: they've 1000000.
    def probe(x, y=[1, 2]):\n\treturn x ** 2 if x != y else {"key": 'value'}  # a comment, HTTPServer_v2 && ||\r\n
Runs  of   spaces     and\t\ttabs,\n\n\n\nand lines.   \n   \n of the and on the other, of anding \\n <not> a <|token|>
naïve café Ünïcödé Straße œuvre — “quoted” … ½ € 42° e\u0301 ﬁ Å \u212b ²³ Ⅻ
日本語のテキスト、中文字符，한국어 텍스트。 Привет, мир! مرحبا שלום नमस्ते ไทย
😀 👩‍👩‍👧 🇩🇪 \u200b\u00a0\u3000 \u0007\u007f \U0001d54f 1\u0662\u0663 ▁ ▁▁x Ġ
One <s> two</s> three <unk>four  <|im_start|>user\nhi<|im_end|>\n<|im_end|><s></s>  <bos><eos> x<|user|>  <|end|>\n end \n"""


def run(program, *arguments):
    """Result of a program without input."""
    return subprocess.run([program, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, errors="replace", timeout=300)


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no output"


def generates(bin, file, evaluated=GENERATED):
    """The fault of a file, None if it loads and generates; and the number of repeated runs.

    The reference sometimes exits before the end of its log is printed: the token count, and the last tokens. So the
    count is checked if present; otherwise a text after the prompt suffices, and without either the program is run
    again.
    """
    for again in range(TRIES):
        done = run(bin / "llama-completion", "-m", file, "-p", PROMPT, "-n", GENERATED, "-no-cnv", "--temp", 0,
                   "-t", 2, "--ignore-eos", "--no-warmup")
        if done.returncode != 0:
            errors = re.findall(r" E (.*)", done.stderr)
            return f"exit code {done.returncode}: {errors[0] if errors else last_line(done.stderr)}", again
        if runs := re.search(r" eval time = .* / +(\d+) runs", done.stderr):
            # The first token comes from evaluating the prompt.
            count = int(runs[1]) + 1
            return None if count == evaluated else f"generates {count} tokens instead of {evaluated}", again
        _, prompt, text = done.stdout.partition(PROMPT)
        if prompt and text.strip():
            return None, again
    return f"shows nothing generated in {TRIES} runs", TRIES - 1


def embeds(bin, file):
    """As generates, of an embedding model."""
    done = run(bin / "llama-bench", "-m", file, "-p", GENERATED, "-n", 0, "-r", 1, "-t", 2, "-embd", 1, "--no-warmup")
    return (None if done.returncode == 0 else f"exit code {done.returncode}: {last_line(done.stderr)}"), 0


def reference_ids(bin, file, probe):
    done = run(bin / "llama-tokenize", "-m", file, "--ids", "-f", probe, "--no-escape", "--log-disable")
    if done.returncode != 0:
        raise ValueError(f"llama-tokenize: exit code {done.returncode}: {last_line(done.stderr)}")
    return ast.literal_eval(last_line(done.stdout))


def own_tokenizers(checkpoint):
    """The checkpoint's tokenizer in transformers: the implementation in Rust and, with a tokenizer.model, the one based
    on sentencepiece."""
    from transformers import AutoTokenizer

    if (checkpoint / "spiece.model").exists() or "t5" in checkpoint.name:
        return []
    kinds = [True, False] if (checkpoint / "tokenizer.model").exists() else [True]
    if not any((checkpoint / name).exists() for name in ("tokenizer.model", "tokenizer.json")):
        # Files that only a class beside the checkpoint reads, such as PLaMo's; scripts/vocabularies.py tests those.
        return []
    return [AutoTokenizer.from_pretrained(checkpoint, use_fast=fast) for fast in kinds]


def difference(checkpoint, got):
    """First difference to the ids of the checkpoint's tokenizer, and the number of these ids."""
    for tokenizer in own_tokenizers(checkpoint):
        want = tokenizer.encode(PROBE)
        if want != got:
            at = next((i for i, (a, b) in enumerate(zip(want, got)) if a != b), min(len(want), len(got)))
            pieces = [tokenizer.convert_ids_to_tokens(ids[max(0, at - 2):at + 4]) for ids in (want, got)]
            return f"token {at}: {type(tokenizer).__name__} {pieces[0]}, the reference {pieces[1]}"
    return None


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    bin, checkpoints = map(Path, sys.argv[1:])
    files = {}
    for line in sys.stdin.read().splitlines():
        name, file = line.split("\t")
        files.setdefault(name, []).append(file)
    bad = 0
    with tempfile.NamedTemporaryFile(suffix=".txt") as probe:
        probe.write(PROBE.encode())
        probe.flush()
        for name, made in files.items():
            is_encoder = embedding_checkpoints.is_encoder(name)
            if is_encoder:
                outcomes = [(file, *embeds(bin, file)) for file in made]
            else:
                # The decoder of a T5 evaluates a start token, then all that it generates.
                evaluated = GENERATED + embedding_checkpoints.is_pair(name)
                outcomes = [(file, *generates(bin, file, evaluated)) for file in made]
            problems = [f"{Path(file).name}: {problem}" for file, problem, _ in outcomes if problem]
            again = sum(more for _, _, more in outcomes)
            count = 0
            try:
                ids = reference_ids(bin, made[0], probe.name)
                count = len(ids)
                # The reference's own WordPiece and Unigram split some characters in other ways.
                different = None if is_encoder else difference(checkpoints / name, ids)
                if different:
                    problems.append(different)
            except Exception as error:
                problems.append(f"tokenizing: {error}")
            bad += bool(problems)
            if problems:
                print(f"fails      {name}: {'; '.join(problems)}", flush=True)
            else:
                note = f" ({again} runs more, since the reference showed nothing)" if again else ""
                print(f"runs       {name}: {len(made)} files generate{note}; {count} equal ids", flush=True)
    print(f"{len(files) - bad} run, {bad} do not")
    sys.exit(bad != 0 or not files)


if __name__ == "__main__":
    main()
