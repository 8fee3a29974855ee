"""Provides a folder for the output of the runs, such that one run does not slow down the next.

For a minute, ext4 does not reuse the inode of a removed file. A program that creates files near thousands of removed ones
then spends most of its time searching for free inodes: 2,000 files took 0.7 s of CPU instead of 0.1. So nothing is removed
before the end, every run gets a folder far from the others on the disk, and the next comparison waits.
"""

import fcntl
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

MEMORY = 60
# From linux/fs.h: the flags of a file, and the one that spreads subfolders over the disk (like `chattr +T`).
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x00020000


@contextmanager
def scratch_folder(work):
    removed = work / "removed"
    if removed.exists() and 0 < (left := removed.stat().st_mtime + MEMORY - time.time()) <= MEMORY:
        print(f"waiting {left:.0f} s, because files were removed just now", file=sys.stderr)
        time.sleep(left)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=work))
    try:
        _spread(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        removed.touch()


def _spread(folder):
    handle = os.open(folder, os.O_RDONLY)
    # Other file systems neither have nor need this flag.
    with suppress(OSError):
        flags = int.from_bytes(fcntl.ioctl(handle, FS_IOC_GETFLAGS, bytes(8)), sys.byteorder)
        fcntl.ioctl(handle, FS_IOC_SETFLAGS, (flags | FS_TOPDIR_FL).to_bytes(8, sys.byteorder))
    os.close(handle)
