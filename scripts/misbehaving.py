"""A shared directory that misbehaves: a FUSE pass-through to another directory, as a network file system can be.

    misbehaving.py STORE MOUNT [--outages FILE]

Attributes, names and missing names are up to a second old. Writes tear: they arrive in pieces, with pauses between them, so
that a reader on another mount sees halves, and a killed writer leaves them. FILE, if it exists, holds the kind of an outage:
`hang` (every call waits until FILE is gone) or `fail` (every call fails with EIO).

Needs fusepy from PyPI and Debian's libfuse2.
"""

import argparse
import errno
import os
import random
import threading
import time
from pathlib import Path

from fuse import FUSE, FuseOSError, Operations

STALE_SECONDS = 1
LARGEST_PIECE = 16 << 10
PAUSE_SECONDS = 0.002
ATTRIBUTES = ["st_atime", "st_ctime", "st_gid", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid", "st_ino", "st_blocks"]
SPACE = ["f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize", "f_namemax"]


class Misbehaving(Operations):
    """Calls that pass to the directory `store`, late, torn, or not at all."""

    use_ns = False

    def __init__(self, store, outages):
        self.store, self.outages = store, outages
        self.random, self.guard = random.Random(7), threading.Lock()

    def __call__(self, call, *arguments):
        while self.outages and (kind := self.outage()):
            if kind == "fail":
                raise FuseOSError(errno.EIO)
            time.sleep(0.1)
        try:
            return super().__call__(call, *arguments)
        except FuseOSError:
            raise
        except OSError as error:
            raise FuseOSError(error.errno) from None

    def outage(self):
        try:
            return self.outages.read_text().strip()
        except FileNotFoundError:
            return ""

    def path(self, path):
        return f"{self.store}{path}"

    def getattr(self, path, fh=None):
        found = os.lstat(self.path(path))
        return {name: getattr(found, name) for name in ATTRIBUTES}

    def access(self, path, mode):
        if not os.access(self.path(path), mode):
            raise FuseOSError(errno.EACCES)

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self.path(path))]

    def statfs(self, path):
        found = os.statvfs(self.path(path))
        return {name: getattr(found, name) for name in SPACE}

    def open(self, path, flags):
        return os.open(self.path(path), flags & ~os.O_APPEND)

    def create(self, path, mode, fi=None):
        return os.open(self.path(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        done = 0
        while done < len(data):
            with self.guard:
                size, pauses = self.random.randint(1, LARGEST_PIECE), self.random.random() < 0.02
            done += os.pwrite(fh, data[done:done + size], offset + done)
            if pauses:
                time.sleep(PAUSE_SECONDS)
        return done

    def truncate(self, path, length, fh=None):
        os.truncate(self.path(path), length)

    def release(self, path, fh):
        os.close(fh)

    def fsync(self, path, datasync, fh):
        os.fsync(fh)

    def unlink(self, path):
        os.unlink(self.path(path))

    def rename(self, old, new):
        os.rename(self.path(old), self.path(new))

    def link(self, target, source):
        os.link(self.path(source), self.path(target))

    def symlink(self, target, source):
        os.symlink(source, self.path(target))

    def readlink(self, path):
        return os.readlink(self.path(path))

    def mkdir(self, path, mode):
        os.mkdir(self.path(path), mode)

    def rmdir(self, path):
        os.rmdir(self.path(path))

    def chmod(self, path, mode):
        os.chmod(self.path(path), mode)

    def utimens(self, path, times=None):
        os.utime(self.path(path), times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("mount", type=Path)
    parser.add_argument("--outages", type=Path)
    options = parser.parse_args()
    FUSE(Misbehaving(options.store.resolve(), options.outages), str(options.mount), foreground=True, attr_timeout=STALE_SECONDS,
         entry_timeout=STALE_SECONDS, negative_timeout=STALE_SECONDS, allow_other=True, big_writes=True)


if __name__ == "__main__":
    main()
