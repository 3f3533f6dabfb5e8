#!/usr/bin/env python3
"""Compares tokens of conversations, rendered by real chat templates, with those of llama.cpp's own rendering.

    scripts/parity-chat.py [TEMPLATE ...]      all templates, or those whose file name begins so

Templates and vocabularies are those in the reference's sources. Conversations that a template cannot render count if
both programs refuse them. One line per template, then `N identical, N different`. Exit code 1 if anything differs.

QUANTIER        the program (default: target/release/quantier, built first)
QUANTIER_TEXTS  the conversations (default: testdata/texts/conversations.jsonl)
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from program import built

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# Template -> the vocabulary of its model, or one of the same kind.
TEMPLATES = {
    "Qwen-Qwen2.5-7B-Instruct": "qwen2",
    "Qwen-Qwen3-0.6B": "qwen2",
    "Qwen-QwQ-32B": "qwen2",
    "Qwen3-Coder": "qwen2",
    "Qwen3.5-4B": "qwen35",
    "meta-llama-Llama-3.1-8B-Instruct": "llama-bpe",
    "meta-llama-Llama-3.2-3B-Instruct": "llama-bpe",
    "meta-llama-Llama-3.3-70B-Instruct": "llama-bpe",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "llama-bpe",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "qwen2",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "llama-bpe",
    "google-gemma-2-2b-it": "llama-spm",
    "google-gemma-4-31B-it": "gemma-4",
    "microsoft-Phi-3.5-mini-instruct": "phi-3",
    "mistralai-Mistral-Nemo-Instruct-2407": "llama-spm",
    "HuggingFaceTB-SmolLM3-3B": "gpt-2",
    "ibm-granite-granite-3.3-2B-Instruct": "starcoder",
    "ibm-granite-granite-4.0": "starcoder",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "command-r",
    "GLM-4.6": "gpt-2",
    "MiniMax-M2": "gpt-2",
    "ByteDance-Seed-OSS": "gpt-2",
    "LFM2-8B-A1B": "gpt-2",
}


def run(*command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stdout, done.stderr.strip()


def output(*command):
    code, out, error = run(*command)
    if code:
        sys.exit(f"parity-chat.py: {command[0]}: {error}")
    return out


def ours(program, model, line, work):
    """Tokens of one conversation, or the error."""
    file = work / "conversation.jsonl"
    file.write_text(line)
    code, out, error = run(program, "tokenize", "-m", model, "--chat", file, "--ids")
    return (out.strip().strip("[]").replace(",", "").split(), None) if code == 0 else (None, error)


def main():
    program = built()
    texts = Path(os.environ.get("QUANTIER_TEXTS", ROOT / "testdata/texts/conversations.jsonl"))
    lines = texts.read_text().splitlines()
    binaries, source = (Path(output(HERE / "reference.sh", *more).strip()) for more in ([], ["--source"]))
    models = source / "models"
    identical = different = 0
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        oracle = work / "chat-reference"
        output("g++", "-O1", "-std=c++17", *(f"-I{source / part}" for part in ("common", "include", "ggml/include", "vendor")),
               HERE / "chat-reference.cpp", "-rdynamic", "-o", oracle, f"-L{binaries}", f"-Wl,-rpath,{binaries}", "-lllama-common",
               "-lllama", "-lggml", "-lggml-base")
        for name, vocabulary in TEMPLATES.items():
            if sys.argv[1:] and not any(name.startswith(word) for word in sys.argv[1:]):
                continue
            template, vocabulary = models / "templates" / f"{name}.jinja", models / f"ggml-vocab-{vocabulary}.gguf"
            model = work / "model.gguf"
            output(program, "set", vocabulary, "--chat-template", template, "--force", "-o", model)
            theirs = output(oracle, vocabulary, template, texts).splitlines()
            counts = {"identical": 0, "different": 0, "refused": 0}
            for number, (line, found) in enumerate(zip(lines, theirs), 1):
                tokens, error = ours(program, model, line, work)
                is_refused = found.startswith("error")
                if tokens is None and is_refused:
                    counts["refused"] += 1
                elif tokens is not None and not is_refused and tokens == found.split():
                    counts["identical"] += 1
                else:
                    counts["different"] += 1
                    what = error or (found if is_refused else "other tokens")
                    print(f"  {name}, line {number}: {what}")
            model.unlink()
            identical, different = identical + counts["identical"], different + counts["different"]
            print(f"{name}: {counts['identical']} identical, {counts['refused']} refused by both, {counts['different']} different",
                  flush=True)
    print(f"{identical} identical, {different} different")
    sys.exit(different > 0)


main()
