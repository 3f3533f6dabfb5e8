"""What Linux says of a running process."""

import re
from pathlib import Path


def field(text, name):
    """A number of a file of /proc; 0 without it."""
    found = re.search(rf"^{name}:\s+(\d+)", text, re.M)
    return int(found[1]) if found else 0


def own_memory(pid):
    """Resident memory of a process without mapped files, in MiB.

    Raises OSError after its end.
    """
    return field(Path(f"/proc/{pid}/status").read_text(), "RssAnon") / 1024
