#!/usr/bin/env python3
"""Checks rules of the project beyond the compiler's.

    scripts/house.py [--binary PATH] [--counts] [RULE ...]

Rules: crates, modules, names, dimensions, vectors, parameters, words. All of them by default. `words` includes
help texts if --binary gives the program. With --counts, findings are counted by file
instead of listed. Exit code 1 if there is a finding.
"""

import argparse
import collections
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the bottom up: each may import the previous ones.
CRATES = """core blocks gguf tokenizer arch allocate round engine report hub quantier""".split()

# Modules of the program, from the bottom up: each may import the previous ones.
MODULES = """
    text chat convert input sensitivity quantize verify diff edit tune make cluster publish cli
""".split()

# Parts of tensor names in string literals, and operations on names.
NAMES = re.compile(
    r"""
      " [^"\n]* (?: \b blk \. | (?: attn | ffn | ssm ) _ [a-z] | _ (?: exps | shexp ) \b | token_embd | position_embd
                  | \b output \. weight | output_norm ) [^"\n]* "
    | " \.? (?: weight | bias ) "
    """,
    re.VERBOSE,
)
# Files that may read names, with reasons.
NAMES_ALLOWED = {
    "crates/arch/": "the one place that knows names",
    "src/convert/": "rules from a checkpoint's names to those of a GGUF",
    "src/cli/": "patterns that a user types, and examples of them",
    "crates/allocate/src/recipe.rs": "a message",
    "crates/engine/src/hessian/collect.rs": "names of files",
    "crates/engine/src/model/weights.rs": "the tensors of a linear, by the stem that its spec gives",
    "crates/report/src/heat_map.rs": "the order of rows, by role",
    "crates/report/src/page.rs": "names cut short",
}

# A third dimension used as the number of experts.
DIMENSIONS = re.compile(r"\.four\(\)\s*\[\s*[23]\s*\]|dims\(\)\s*\.len\(\)\s*(?:>|>=|<|==)|dims\(\)?\s*\[\s*2|, matrices, _\]")
DIMENSIONS_ALLOWED = {
    "crates/arch/": "the catalog",
    "crates/gguf/": "the file format, to which dimensions are numbers",
    "src/convert/": "shapes of a checkpoint",
    "src/cli/inspect": "shapes as they are",
}

MOST_PARAMETERS = 5

# The glossary's discouraged words, as patterns.
WORDS = {
    r"\bcovarianc\w*": "input Hessian, output Hessian",
    r"\bwhat (?:it|they|each|is|was|a \w+|the \w+|matrices|linears|tensors) (?:meets?|met)\b": "input",
    r"\bwhat is multiplied\b": "linear",
    r"\b(?:tokens?|positions?|matri\w+|linears?|experts?|it|they|that|none) (?:meets?|met)\b": "reads, reaches",
    r"\bworth\b": "sensitivity, output gradient",
    r"\bso many\b": "a number with its unit",
    r"\b(?:made|make|makes|making) good\b": "compensated",
    r"\bfed\b": "error feedback",
    r"\b(?:one|each) behind the other\b|\bbehind each other\b|\bpropagat\w*": "sequential",
    r"\bboth sides\b": "two-sided",
    r"\b(?:is|are|was|were|be) told\b|\btold (?:by|of|from)\b": "known, recorded",
}


def rust_files():
    for place in ["src", *(f"crates/{p.name}/src" for p in sorted((ROOT / "crates").iterdir()))]:
        yield from sorted((ROOT / place).rglob("*.rs"))


def name_of(path):
    return str(path.relative_to(ROOT))


TOKEN = re.compile(
    r"""
      (?P<line> //[^\n]*) | (?P<block> /\* .*? \*/)
    | (?P<raw> \b b? r (?P<hashes> \#* ) " .*? " (?P=hashes) )
    | (?P<text> b? " (?: \\. | [^"\\] )* ")
    | (?P<char> ' (?: \\. [^']* | [^'\\\n] ) ' )
    """,
    re.VERBOSE | re.DOTALL,
)


def blank(text):
    """Blank text with the same line breaks."""
    return re.sub(r"[^\n]", " ", text)


def code_of(path, strings):
    """Contents of a file without comments and tests, and without string contents unless `strings`."""

    def kept(match):
        kind = match.lastgroup if match.lastgroup != "hashes" else "raw"
        if kind in ("line", "block"):
            return blank(match[0])
        if strings:
            return match[0]
        return '"' + blank(match[0][1:-1]) + '"' if kind != "char" else "' '" + " " * (len(match[0]) - 3)

    code = TOKEN.sub(kept, path.read_text())
    bare = code if not strings else TOKEN.sub(lambda m: blank(m[0]), code)
    for match in reversed(list(re.finditer(r"#\[cfg\(test\)\][^{;]*\{", bare))):
        end = closing(bare, match.end() - 1)
        code = code[: match.start()] + blank(code[match.start() : end]) + code[end:]
    return code


PAIRS = {"(": ")", "[": "]", "{": "}"}


def closing(text, at):
    """The position after the closing bracket for the opening one at `at`."""
    depth = 0
    for position in range(at, len(text)):
        if text[position] in PAIRS:
            depth += 1
        elif text[position] in PAIRS.values():
            depth -= 1
            if depth == 0:
                return position + 1
    return len(text)


def is_test(path):
    return path.name in ("tests.rs", "sample.rs", "generator.rs") or "tests" in path.parts


def line_of(text, at):
    return text.count("\n", 0, at) + 1


def allowed(path, places):
    return any(name_of(path).startswith(place) for place in places)


def crates():
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--offline"]
    data = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    short = lambda name: name.removeprefix("quantier-")
    for package in data["packages"]:
        name = short(package["name"])
        if name not in CRATES:
            yield f"crates/{name}", "is not in the order of crates that this script declares"
            continue
        for dependency in package["dependencies"]:
            other = short(dependency["name"])
            if other in CRATES and CRATES.index(other) >= CRATES.index(name) and dependency["kind"] is None:
                yield f"crates/{name}/Cargo.toml", f"imports {other}, which is above it"


def modules():
    for path in sorted((ROOT / "src").rglob("*.rs")):
        module = path.relative_to(ROOT / "src").parts[0].removesuffix(".rs")
        if module in ("lib", "main"):
            continue
        if module not in MODULES:
            yield name_of(path), "is not in the order of modules that this script declares"
            continue
        code = code_of(path, strings=False)
        # `use crate::{a::b, c};` names modules too.
        named = [(m.start(), m[1]) for m in re.finditer(r"\b(?:crate|quantier)::(\w+)", code)]
        for match in re.finditer(r"\b(?:crate|quantier)::\{", code):
            inner = code[match.end() : closing(code, match.end() - 1) - 1]
            named += [(match.start(), part.strip().split("::")[0]) for part in top_level(inner)]
        for at, other in named:
            if other in MODULES and MODULES.index(other) > MODULES.index(module):
                yield f"{name_of(path)}:{line_of(code, at)}", f"imports {other}, which is above {module}"


def names():
    for path in rust_files():
        if is_test(path) or allowed(path, NAMES_ALLOWED):
            continue
        code = code_of(path, strings=True)
        for match in NAMES.finditer(code):
            yield f"{name_of(path)}:{line_of(code, match.start())}", match[0]


def dimensions():
    for path in rust_files():
        if is_test(path) or allowed(path, DIMENSIONS_ALLOWED):
            continue
        code = code_of(path, strings=False)
        for match in DIMENSIONS.finditer(code):
            yield f"{name_of(path)}:{line_of(code, match.start())}", match[0].strip()


def vectors():
    """Closures of `vectorized` that the compiler may leave out of line, and then without the CPU's vectors."""
    for path in rust_files():
        code = code_of(path, True)
        for match in re.finditer(r"\bvectorized\((?!\s*#\[inline\(always\)\])", code):
            yield f"{name_of(path)}:{line_of(code, match.start())}", "mark the closure with #[inline(always)]"


def top_level(text):
    """The parts between commas outside of brackets."""
    parts, depth, start = [], 0, 0
    text = text.replace("->", "  ").replace("=>", "  ")
    for at, letter in enumerate(text):
        if letter in "([{<":
            depth += 1
        elif letter in ")]}>":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def parameters():
    for path in rust_files():
        if is_test(path):
            continue
        code = code_of(path, strings=False)
        for match in re.finditer(r"\bfn\s+(\w+)", code):
            at = match.end()
            if at < len(code) and code[at] == "<":
                depth = 0
                for at in range(at, len(code)):
                    if code[at] == "<":
                        depth += 1
                    elif code[at] == ">" and code[at - 1] not in "-=":
                        depth -= 1
                        if depth == 0:
                            break
                at += 1
            if at >= len(code) or code[at] != "(":
                continue
            inner = code[at + 1 : closing(code, at) - 1]
            listed = [p for p in top_level(inner) if not re.fullmatch(r"(?:&\s*(?:'\w+\s*)?)?(?:mut\s+)?self(?:\s*:.*)?", p)]
            place = f"{name_of(path)}:{line_of(code, match.start())}"
            if len(listed) > MOST_PARAMETERS:
                yield place, f"{match[1]} has {len(listed)} parameters"
            for parameter in listed:
                pattern, _, kind = parameter.rpartition(": ") if parameter.count(": ") == 1 else parameter.partition(": ")
                kind = re.sub(r"^(?:&\s*(?:'\w+\s*)?(?:mut\s+)?|Option<\s*)+", "", kind.strip())
                if re.match(r"\((?!\)|\s*(?:dyn|impl)\b)", kind):
                    yield place, f"{match[1]} takes a tuple: {' '.join(parameter.split())}"


def texts(binary):
    """Names and contents of texts for users."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        yield name_of(path), path.read_text()
    for path in sorted((ROOT / "crates/report/src").rglob("*")):
        if path.is_file():
            yield name_of(path), path.read_text()
    if binary:
        run = lambda *words: subprocess.run([binary, *words, "--help"], capture_output=True, text=True).stdout
        top = run()
        yield "--help", top
        commands = top.partition("Commands:\n")[2].partition("\n\n")[0]
        for command in re.findall(r"^  (\w[\w-]*)", commands, re.MULTILINE):
            if command != "help":
                yield f"{command} --help", run(command)


def words(binary):
    for name, text in texts(binary):
        # Names of options and files are not prose.
        prose = re.sub(r"--[\w-]+|`[^`\n]*`|\]\([^)\n]*\)", lambda m: " " * len(m[0]), text)
        for pattern, better in WORDS.items():
            for match in re.finditer(pattern, prose, re.IGNORECASE):
                yield f"{name}:{line_of(prose, match.start())}", f"'{match[0]}': {better}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", help="the program, whose help texts are read too")
    parser.add_argument("--counts", action="store_true", help="count findings by file")
    parser.add_argument("rules", nargs="*", metavar="RULE")
    args = parser.parse_args()
    rules = {
        "crates": crates,
        "modules": modules,
        "names": names,
        "dimensions": dimensions,
        "vectors": vectors,
        "parameters": parameters,
        "words": lambda: words(args.binary),
    }
    unknown = [rule for rule in args.rules if rule not in rules]
    if unknown:
        parser.error(f"no rule '{unknown[0]}'; there are {', '.join(rules)}")
    counts = {}
    for rule in args.rules or rules:
        findings = list(dict.fromkeys(rules[rule]()))
        counts[rule] = len(findings)
        if args.counts:
            by_file = collections.Counter(place.split(":")[0] for place, _ in findings)
            findings = [(place, str(count)) for place, count in by_file.most_common()]
        for place, what in findings:
            print(f"{rule}: {place}: {what}")
    print("; ".join(f"{rule} {count}" for rule, count in counts.items()))
    sys.exit(any(counts.values()))


if __name__ == "__main__":
    main()
