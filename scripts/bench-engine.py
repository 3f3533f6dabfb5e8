"""Measurements of bench-engine.sh: makes the models, runs the commands in turn, prints time and memory."""

import os
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from process import field, own_memory

CTX = 512
TYPES = ["Q8_0", "Q6_K", "Q4_K_M"]
THREADS = os.environ.get("THREADS", "2")
CHUNKS = int(os.environ.get("CHUNKS", "12"))
LIMIT = int(os.environ.get("LIMIT", "1536"))


class Run:
    """Time and memory of a command."""

    def __init__(self, seconds, cpu, rss, own, read, output):
        self.seconds, self.cpu, self.rss, self.own, self.read, self.output = seconds, cpu, rss, own, read, output


def run(command, group=None):
    """Runs a command, in a control group if given. Memory is in MiB; `own` excludes mapped files."""
    enter = (lambda: Path(group, "cgroup.procs").write_text(str(os.getpid()))) if group else None
    start = time.perf_counter()
    child = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, preexec_fn=enter)
    seen = {"own": 0, "read": 0}

    def watch():
        while child.returncode is None:
            try:
                own = own_memory(child.pid)
                io = Path(f"/proc/{child.pid}/io").read_text()
            except OSError:
                return
            seen["own"] = max(seen["own"], own)
            seen["read"] = max(seen["read"], field(io, "read_bytes"))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = child.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if child.returncode != 0 and not group:
        sys.exit(f"bench-engine: {' '.join(map(str, command))}: exit {child.returncode}\n{output[-2000:]}")
    result = Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, seen["own"], seen["read"], output)
    result.code = child.returncode
    return result


def text(work):
    """The repository's own sources and pages: English and code, more than a million tokens of the small tokenizer."""
    path = work / "text.txt"
    files = subprocess.run(["git", "ls-files", "*.md", "*.rs", "*.py", "*.sh"], capture_output=True, text=True,
                           check=True).stdout.split()
    path.write_text("".join(Path(f).read_text() for f in sorted(files)))
    return path


def made(path, command):
    if not path.exists():
        subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    return path


def show(name, runs, tokens):
    wall = statistics.median(r.seconds for r in runs)
    cpu = statistics.median(r.cpu for r in runs)
    print(f"{name:<44} {len(runs):>4} {wall:>8.1f} s {tokens / wall:>7.1f} tok/s {cpu:>8.1f} s {tokens / cpu:>7.1f} "
          f"{max(r.rss for r in runs):>6.0f} MiB {max(r.own for r in runs):>6.0f} MiB", flush=True)
    return wall, cpu


def header(rounds):
    name = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    flags = re.search(r"flags\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    levels = [f for f in ("avx2", "fma", "f16c", "avx512f", "avx512_bf16") if flags and f in flags[1].split()]
    print(f"{time.strftime('%Y-%m-%d')}; {name[1] if name else 'unknown processor'} ({' '.join(levels)}), "
          f"{os.cpu_count()} cores, {THREADS} threads; {CHUNKS} chunks of {CTX} tokens, {rounds} rounds; "
          f"load {os.getloadavg()[0]:.1f}")
    print(f"{'command':<44} {'runs':>4} {'wall':>10} {'':>13} {'cpu':>10} {'tok/s':>7} {'memory':>10} {'own':>10}",
          flush=True)


def imatrix(ours, reference, model, source, work, rounds):
    def llama(*more):
        return [reference / "llama-imatrix", "-m", model, "-f", source, "-o", work / "theirs.imatrix.gguf", "-c", CTX,
                "--chunks", CHUNKS, "-t", THREADS, *more]

    def quantier(*more):
        out = work / "ours.imatrix.gguf"
        out.unlink(missing_ok=True)
        return [ours, "imatrix", "-m", model, "-f", source, "-o", out, "-c", CTX, "--chunks", CHUNKS, "-t", THREADS,
                *more]

    runs = {}
    for _ in range(rounds):
        for name, command in [("llama-imatrix", llama()), ("quantier imatrix", quantier()),
                              ("llama-imatrix --no-ppl", llama("--no-ppl")),
                              ("quantier imatrix --no-ppl", quantier("--no-ppl"))]:
            (work / "ours.imatrix.gguf").unlink(missing_ok=True)
            runs.setdefault(name, []).append(run(command))
    took = {name: show(name, r, CHUNKS * CTX) for name, r in runs.items()}
    for more in "", " --no-ppl":
        theirs, mine = took["llama-imatrix" + more], took["quantier imatrix" + more]
        print(f"quantier imatrix{more}: {theirs[0] / mine[0]:.2f} times the reference's tokens per second, "
              f"{theirs[1] / mine[1]:.2f} per second of processor time")


def kld(ours, reference, model, quants, source, work, rounds):
    logits = work / "base.logits"
    llama = [reference / "llama-perplexity", "-f", source, "-c", CTX, "--chunks", CHUNKS, "-t", THREADS,
             "--kl-divergence-base", logits]
    runs = {}
    for _ in range(rounds):
        runs.setdefault("llama-perplexity, base", []).append(run([*llama, "-m", model]))
        for name, quant in quants.items():
            found = run([*llama, "-m", quant, "--kl-divergence"])
            runs.setdefault(f"llama-perplexity --kl-divergence, {name}", []).append(found)
        mine = run([ours, "kld", model, *quants.values(), "-f", source, "-c", CTX, "--chunks", CHUNKS, "-t", THREADS])
        runs.setdefault("quantier kld, all three", []).append(mine)
    took = {name: show(name, r, CHUNKS * CTX) for name, r in runs.items()}
    mine = took.pop("quantier kld, all three")
    wall, cpu = (sum(t[i] for t in took.values()) for i in (0, 1))
    print(f"llama-perplexity: {wall:.1f} s in all, {cpu:.1f} s of processor time; logits file of "
          f"{logits.stat().st_size / 2**20:.0f} MiB")
    print(f"quantier kld: {wall / mine[0]:.2f} times as fast, {cpu / mine[1]:.2f} by processor time")


def memory(ours, reference, model, source, work):
    """One run each, in a control group with a limit that counts mapped pages too, from a cold cache."""
    group = Path("/sys/fs/cgroup/memory/quantier-bench")
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(f"{LIMIT}M")
    print(f"{model.name}: {model.stat().st_size / 2**30:.2f} GiB; memory limited to {LIMIT} MiB, pages of files included")
    chunks = os.environ.get("MEMORY_CHUNKS", "4")
    commands = {
        "quantier imatrix": [ours, "imatrix", "-m", model, "-f", source, "-o", work / "memory.imatrix.gguf", "-c", CTX,
                             "--chunks", chunks, "-t", THREADS, "--max-memory", LIMIT * 3 // 4],
        "llama-imatrix": [reference / "llama-imatrix", "-m", model, "-f", source, "-o", work / "memory.theirs.gguf",
                          "-c", CTX, "--chunks", chunks, "-t", THREADS],
    }
    for name, command in commands.items():
        (work / "memory.imatrix.gguf").unlink(missing_ok=True)
        subprocess.run(["sh", "-c", "sync; echo 1 > /proc/sys/vm/drop_caches"], check=False)
        found = run(["timeout", os.environ.get("MEMORY_TIMEOUT", "900"), *command], group)
        end = "done" if found.code == 0 else f"exit {found.code}"
        print(f"{name}: {end}, {found.seconds:.1f} s, {int(chunks) * CTX / found.seconds:.1f} tok/s", flush=True)
        print(f"  peak of the group {int((group / 'memory.max_usage_in_bytes').read_text()) / 2**20:.0f} MiB")
        (group / "memory.max_usage_in_bytes").write_text("0")
    group.rmdir()


def main():
    ours, synthetic, reference, work = (Path(p).resolve() for p in sys.argv[1:5])
    rounds, parts = int(sys.argv[5]), " ".join(sys.argv[6:]).split()
    source = text(work)
    like = Path("testdata/refmodel-f16.gguf")
    given = os.environ.get("MODEL")
    model = Path(given) if given else made(work / "f16.gguf", [synthetic, "--engine", "0.5b", like, work / "f16.gguf"])
    header(rounds)
    if "imatrix" in parts:
        imatrix(ours, reference, model, source, work, rounds)
    if "kld" in parts:
        quants = {t: made(work / f"{t}.gguf", [ours, "quantize", model, work / f"{t}.gguf", t]) for t in TYPES}
        kld(ours, reference, model, quants, source, work, rounds)
    if "memory" in parts:
        large = made(work / "large.gguf", [synthetic, "--engine", "2.5b", like, work / "large.gguf"])
        memory(ours, reference, large, source, work)


if __name__ == "__main__":
    main()
