"""Measures commands on a cache and a bucket of two sizes; `run` builds the binary first."""

import argparse
import json
import os
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).resolve().parents[1] / "compare"))
import bucket  # noqa: E402
import measure  # noqa: E402
from world import World  # noqa: E402

TENTH, FULL = World(200, 100_000), World(2_000, 1_000_000)
COMMANDS = {
    "list": ["list"],
    "diff": ["diff"],
    "push, nothing to do": ["push"],
    "list --remote": ["list", "--remote"],
    "list --remote --sizes": ["list", "--remote", "--sizes"],
    "pull-all --dry-run": ["pull-all", "--dry-run"],
    "prune --dry-run": ["prune", "--dry-run", "--max-size", "1MB", "--include-referenced"],
    "prune --require-remote --dry-run": ["prune", "--dry-run", "--max-size", "1MB", "--require-remote"],
    "remote du": ["remote", "du"],
    "remote gc --dry-run": ["remote", "gc", "--dry-run"],
}
# Limits at full size: MB (10^6 bytes), and how much of the work grows faster than the data.
MAX_RSS = 250
TOLERANCE = 1.2
# Runs at a tenth for each one at full size.
SHORT_RUNS = 3
# Seconds of CPU time below which a tenth is too short to compare with.
SHORTEST = 0.05


def main():
    options = parse()
    measure.prepare()
    samples = {}
    with ExitStack() as stack:
        places = [stack.enter_context(place(options.work, world)) for world in (TENTH, FULL)]
        for name in chosen(options.only):
            samples[name] = compare(options, COMMANDS[name], *places)
            for sample in samples[name]:
                print(f"{name}: {describe(sample)}", file=sys.stderr)
    print(f"{TENTH.title}, against {FULL.title}\n")
    failures = report(samples)
    if options.json:
        rows = {name: [asdict(sample) for sample in taken] for name, taken in samples.items()}
        options.json.write_text(json.dumps({"machine": measure.machine(options.work), "samples": rows}, indent=2))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


@contextmanager
def place(work, world):
    """Creates the cache of a world, and starts its bucket. Returns the folder and the server."""
    print(f"{world.title} ...", file=sys.stderr)
    folder = work / str(world.repos)
    world.write_cache(folder / "hub")
    with bucket.start(world.objects()) as server:
        yield folder, server


def compare(options, arguments, tenth, full):
    """Runs a command in both worlds. The runs alternate, so that what else the machine does slows down both."""
    short, long = [], []
    for _ in range(options.runs):
        short += [run(options.bin, arguments, *tenth) for _ in range(SHORT_RUNS)]
        long.append(run(options.bin, arguments, *full))
    return middle(short), middle(long)


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=Path, required=True, help="the hf-cache-sync binary")
    parser.add_argument("--work", type=Path, required=True, help="where the caches are created, and stay")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[], help="only commands with one of these words")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each command at full size (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every figure")
    return parser.parse_args()


def chosen(words):
    names = [name for name in COMMANDS if not words or any(word in name for word in words)]
    if not names:
        sys.exit(f"no command has any of these words: {' '.join(words)}")
    return names


def settings(endpoint, folder):
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HUB_CACHE": str(folder / "hub"),
        "B2_APPLICATION_KEY_ID": "bench",
        "B2_APPLICATION_KEY": "bench",
        "B2_ENDPOINT": endpoint,
        "B2_BUCKET": bucket.BUCKET,
        "B2_REGION": "us-east-1",
    }


def run(binary, arguments, folder, server):
    command = [binary.resolve(), *arguments, "--no-progress"]
    server.take_requests()
    sample = measure.run(command, env=settings(server.endpoint, folder), cwd=folder / "home", log=folder / "log", timeout=3600)
    sample.requests = server.take_requests().total()
    return sample


def middle(samples):
    """Returns the median times, and the highest memory."""
    cpu, wall = median(sample.cpu for sample in samples), median(sample.wall for sample in samples)
    return measure.Sample(wall, cpu, max(sample.rss for sample in samples), max(sample.requests for sample in samples))


def describe(sample):
    return f"{sample.requests} requests, {sample.cpu:.2f} s CPU, {sample.wall:.2f} s, {sample.rss:.0f} MB"


def report(samples):
    """Prints the table, and returns what exceeds the limits."""
    print("| command | requests | CPU s | x | wall s | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    failures = []
    for name, (tenth, full) in samples.items():
        factor = full.cpu / max(tenth.cpu, 0.001)
        print(
            f"| `{name}` | {tenth.requests:,}, {full.requests:,} | {tenth.cpu:.2f}, {full.cpu:.2f} | {factor:.1f} "
            f"| {tenth.wall:.2f}, {full.wall:.2f} | {tenth.rss:.0f}, {full.rss:.0f} |"
        )
        if full.rss > MAX_RSS:
            failures.append(f"{name}: {full.rss:.0f} MB, more than {MAX_RSS}")
        if full.cpu > 10 * TOLERANCE * max(tenth.cpu, SHORTEST):
            failures.append(f"{name}: {factor:.1f} times the CPU time for 10 times the data")
        if full.requests > 10 * tenth.requests:
            failures.append(f"{name}: {full.requests} requests, more than 10 times {tenth.requests}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
