"""The program that scripts test."""

import json
import os
import subprocess


def built():
    """Path of QUANTIER, or of the release build, which is built first."""
    given = os.environ.get("QUANTIER")
    if given is not None:
        return given
    subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "quantier"], check=True)
    found = subprocess.run(["cargo", "metadata", "--format-version", "1", "--no-deps"], check=True, stdout=subprocess.PIPE)
    return f"{json.loads(found.stdout)['target_directory']}/release/quantier"
