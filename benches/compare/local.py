"""Measures what needs no store: how long a program takes to start, to scan a large cache, and to serve what is in it."""

import os
import statistics
import sys
import time
from pathlib import Path

import data
import measure
from report import table

STARTS = 20
# How often a file of 512 MiB is read.
READS = 8


def startup(ours, peers, env, scratch):
    """Measures the milliseconds that it takes to print the version, and to list an empty cache."""
    empty = scratch / "empty"
    empty.mkdir()
    env = env | {"HF_HUB_CACHE": str(empty)}
    commands = {"/bin/true, for comparison": ["/bin/true"]}
    for tool in (ours, *peers):
        commands[f"{tool.name}: version"] = [tool.binary, *tool.version_flags]
    for tool in (ours, *peers):
        if tool.lists:
            commands[f"{tool.name}: list, empty cache"] = [tool.binary, "list"]
    times = {name: [] for name in commands}
    for _ in range(STARTS):
        for name, command in commands.items():
            times[name].append(_start(command, env) * 1000)
    rows = [
        [name, f"{statistics.median(walls):.1f}", f"{min(walls):.1f}..{max(walls):.1f}"] for name, walls in times.items()
    ]
    table(f"startup: {STARTS} times each", ["command", "wall ms", "min..max"], rows)
    return times


def _start(command, env):
    """Returns the seconds of one command, started without a shell, which would take as long as the command."""
    nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    started = time.monotonic()
    pid = os.posix_spawn(command[0], command, env, file_actions=nowhere)
    status = os.waitpid(pid, 0)[1]
    wall = time.monotonic() - started
    if status:
        raise measure.Failed(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return wall


def scan(ours, peers, env, scratch, work, runs):
    """Measures the commands that scan a whole cache, and `find`, which visits the same files."""
    hub = data.make_scan(work)
    commands = {"find -L": ["find", "-L", hub, "-type", "f"]}
    for tool in (ours, *peers):
        for action in tool.lists:
            commands[f"{tool.name}: {action}"] = [tool.binary, action]
    samples = {name: [] for name in commands}
    for number in range(-1, runs):
        for name, command in commands.items():
            env = env | {"HF_HUB_CACHE": str(hub)}
            sample = measure.run(command, env=env, cwd=scratch, log=scratch / "log", timeout=600)
            # The first round brings the folders into memory.
            if number >= 0:
                samples[name].append(sample)
    medians = {name: statistics.median(sample.wall for sample in taken) for name, taken in samples.items()}
    rows = [
        [
            name,
            f"{medians[name]:.2f}",
            f"{min(sample.wall for sample in taken):.2f}..{max(sample.wall for sample in taken):.2f}",
            f"{medians[name] / medians['find -L']:.2f}",
            f"{statistics.median(sample.cpu for sample in taken):.2f}",
            f"{statistics.median(sample.rss for sample in taken):.0f}",
        ]
        for name, taken in samples.items()
    ]
    title = f"scan: {data.SCAN_REPOS:,} repos of {data.SCAN_FILES} files"
    table(title, ["command", "wall s", "min..max", "x find", "CPU s", "RSS MB"], rows)
    return samples


def served(ours, env, scratch, work, runs):
    """Measures `serve` with a full cache, and clients that discard what they read."""
    large, small = data.SETS["a"], data.SETS["b"]
    url = f"$HF_ENDPOINT/{large.repo}/resolve/main/file-00000.bin"
    gib = READS * large.size / 2**30
    curl = ["sh", "-c", "curl -sf" + f' -o /dev/null "{url}"' * READS]
    read = [sys.executable, Path(__file__).with_name("read.py"), small.repo]
    clients = {f"curl, {gib:.0f} GiB on one connection": (large, curl), f"16 connections, {small.about}": (small, read)}
    rows, figures = [], {}
    for name, (one, client) in clients.items():
        hub = data.make(one, work).hub
        command = [ours.binary, "serve", "--offline", "--cache-dir", hub, "--", *client]
        samples = [
            measure.run(command, env=env, cwd=scratch, log=scratch / "log", timeout=600) for _ in range(runs)
        ]
        figures[name] = samples
        walls = [sample.wall for sample in samples]
        size = gib * 2**30 if client is curl else one.bytes
        cpu = statistics.median(sample.cpu for sample in samples)
        rate = size / statistics.median(walls) / 1e9
        rows.append([name, f"{statistics.median(walls):.2f}", f"{min(walls):.2f}..{max(walls):.2f}", f"{rate:.2f}", f"{cpu:.2f}"])
    table("serve, from the cache", ["client", "wall s", "min..max", "GB/s", "CPU s, both"], rows)
    return figures
