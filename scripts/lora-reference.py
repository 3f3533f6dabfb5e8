#!/usr/bin/env python3
"""Runs the reference's convert_lora_to_gguf.py on many adapters in one process.

    lora-reference.py SOURCE < JOBS

SOURCE is the reference's directory; every line of JOBS is the arguments of one conversion, separated by tabs. The last
line of the exception is printed for each that fails: `failed <TAB> arguments <TAB> reason`.
"""

import logging
import os
import runpy
import sys


def main():
    source = sys.argv[1]
    sys.path.insert(0, source)
    sys.path.insert(1, os.path.join(source, "gguf-py"))
    script = os.path.join(source, "convert_lora_to_gguf.py")
    for line in sys.stdin.read().splitlines():
        sys.argv = ["convert_lora_to_gguf.py", *line.split("\t")]
        reason = None
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            reason = f"exit code {end.code}" if end.code else None
        except BaseException as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if reason:
            print("failed", line, reason, sep="\t", flush=True)
        logging.getLogger().handlers.clear()


if __name__ == "__main__":
    main()
