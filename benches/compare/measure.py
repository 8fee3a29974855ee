"""Runs and measures one command, and describes the machine."""

import ctypes
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
# Starts a command, prints its process id, and exits at once.
LAUNCH = 'log=$1; shift; "$@" </dev/null >"$log" 2>&1 & echo $!'


class Failed(Exception):
    """A command failed; the text is the end of its output."""


@dataclass
class Sample:
    """One run of one command. Times are in seconds, `rss` in MB (10^6 bytes)."""

    wall: float
    cpu: float
    rss: float
    requests: int | None = None


def prepare():
    """Makes this process inherit commands from the shells that started them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def run(argv, *, env, cwd, log, timeout):
    """Runs a command to its end.

    The peak RSS that the kernel reports for a process is never below that of the process from which it was forked. So a
    shell of 1 MB starts the command and exits; the command is then a child of this process, which waits for it.
    """
    started = time.monotonic()
    shell = ["/bin/sh", "-c", LAUNCH, "sh", str(log), *map(str, argv)]
    pid = int(subprocess.run(shell, env=env, cwd=cwd, stdout=subprocess.PIPE, check=True).stdout)
    timer = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
    timer.start()
    try:
        _, status, usage = os.wait4(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.wait4(pid, 0)
        raise
    finally:
        timer.cancel()
    wall = time.monotonic() - started
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise Failed(f"{Path(argv[0]).name} ended with {code} after {wall:.1f} s:\n{tail(log)}")
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)


def tail(log):
    return Path(log).read_bytes()[-1500:].decode(errors="replace").strip()


def machine(folder):
    """Returns what the results depend on."""
    return {
        "CPU": f"{_first('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "RAM": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": f"{_file_system(folder)}, {shutil.disk_usage(folder).free / 2**30:.0f} GiB free",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def _first(file, name):
    for line in Path(file).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(folder):
    """Returns the type of the file system that contains the folder."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if Path(folder).resolve().is_relative_to(point):
            best = max(best, (point, kind), key=lambda found: len(found[0]))
    return best[1]
