"""Compares hf-cache-sync with its peers, side by side: the same bytes, the same stores, one after another, in turns."""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import data
import measure
import stores
import tools

ROOT = Path(__file__).resolve().parents[2]


def arguments():
    def words(known):
        def parse(text):
            chosen = text.split(",")
            if unknown := [word for word in chosen if word not in known]:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
            return chosen

        return parse

    parser = argparse.ArgumentParser(prog="benches/compare/run", description=__doc__)
    add = parser.add_argument
    add("--set", type=words(data.SETS), default=list(data.SETS), help="a,b,c,d: which data (all)")
    add("--server", type=words(stores.ABOUT), default=list(stores.ABOUT), help="lean,far,seaweed: which stores (all)")
    add("--direction", type=words(("push", "pull")), default=["push", "pull"], help="push,pull (both)")
    add("--peers", type=words(tools.PEERS), default=list(tools.PEERS), help=f"{','.join(tools.PEERS)} (all)")
    add("--runs", type=int, default=5, help="runs of each tool (5)")
    add("--work", type=Path, default=ROOT / "target" / "compare", help="folder of the data (target/compare)")
    add("--bin", type=Path, required=True, help="the hf-cache-sync to measure")
    add("--lean-server", type=Path, required=True, help="the lean-server example")
    add("--timeout", type=float, default=1800, help="seconds after which a run counts as failed (1800)")
    add("--json", type=Path, help="write every figure to this file")
    return parser.parse_args()


class Comparison:
    """The whole run: what was chosen, and what was measured."""

    def __init__(self, options, scratch, peers):
        self.options, self.scratch = options, scratch
        self.ours, self.peers = tools.Ours(options.bin), peers
        self.binaries = Path(sys.executable).parent
        self.results = []

    def tools(self, direction):
        synced = [tools.OursSynced(self.options.bin)] if direction == "pull" else []
        return [self.ours, *synced, *self.peers]

    def compare(self, one, direction, name):
        """One set, in one direction, at one store: every tool in turn, then again; and its table."""
        place = data.make(one, self.options.work)
        needed = self.disk(one, direction, name)
        if shutil.disk_usage(self.scratch).free < needed:
            print(f"\n{one.name} {direction} {name}: left out, it needs {needed / 2**30:.0f} GiB of free disk")
            return
        seeded = direction == "pull" or one.present
        everyone = self.tools(direction)
        samples, failed = {tool.name: [] for tool in everyone}, {}
        with ExitStack() as stack:
            runs = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.scratch)))
            store = self.start(stack, place if seeded else None, name)
            if seeded and not store.counts:
                bucket = stack.enter_context(store.bucket("seeded"))
                self.measure(self.ours, "push", tools.Job(one, place, store.endpoint, bucket), runs)
            else:
                bucket = "bench"
            for number in range(self.options.runs):
                for tool in everyone[number % len(everyone) :] + everyone[: number % len(everyone)]:
                    if tool.name in failed:
                        continue
                    job = tools.Job(one, place, store.endpoint, bucket)
                    run = f"{everyone.index(tool)}-{number}"
                    try:
                        action = self.pull if direction == "pull" else self.present if one.present else self.push
                        samples[tool.name].append(action(tool, job, store, runs, run))
                    except measure.Failed as error:
                        failed[tool.name] = str(error)
                        print(f"{tool.name}: {error}", file=sys.stderr)
        os.sync()
        result = {"set": one.name, "direction": direction, "server": name, "samples": samples, "failed": failed}
        self.results.append(result)
        self.table(one, result, everyone)

    def disk(self, one, direction, name):
        """Bytes of disk that a comparison takes at most, and some to spare."""
        copies = 0
        if direction == "pull":
            copies += 1 if few(one) else self.options.runs * len(self.tools(direction))
        if name == "seaweed":
            copies += 1
        return copies * max(one.bytes, one.count * 4096) + (4 << 30)

    def start(self, stack, place, name):
        return stack.enter_context(
            stores.start(
                name,
                lean=self.options.lean_server,
                weed=self.binaries / "weed",
                objects=place and place.bucket,
                scratch=self.scratch,
            )
        )

    def push(self, tool, job, store, runs, run):
        with store.bucket(f"run-{run}") as bucket:
            job = dataclasses.replace(job, bucket=bucket, prefix=f"run-{run}")
            sample = self.measure(tool, "push", job, runs, store)
            prefix, count = tool.keys(job)
            if (found := store.keys(bucket, prefix)) < count:
                raise measure.Failed(f"{found} objects instead of {count} are in the bucket")
        return sample

    def pull(self, tool, job, store, runs, run):
        target = runs / run
        sample = self.measure(tool, "pull", dataclasses.replace(job, target=target), runs, store)
        sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file() and not path.is_symlink()]
        if sum(size == job.set.size for size in sizes) != job.set.count:
            raise measure.Failed(f"{len(sizes)} files instead of {job.set.count} arrived")
        if few(job.set):
            shutil.rmtree(target)
        return sample

    def present(self, tool, job, store, runs, run):
        return self.measure(tool, "present", job, runs, store)

    def measure(self, tool, direction, job, runs, store=None):
        """One run of one tool. What earlier runs left to be written is on the disk before it starts."""
        shutil.rmtree(job.place.hub / ".locks", ignore_errors=True)
        command, env = tool.command(direction, job), tools.environment() | tool.env(job)
        os.sync()
        if store:
            store.requests()
        sample = measure.run(command, env=env, cwd=runs, log=runs / "log", timeout=self.options.timeout)
        if store:
            sample.requests = store.requests()
        return sample

    def table(self, one, result, everyone):
        print(f"\n### {one.name}: {one.about}, {result['direction']}, {result['server']}\n")
        print("| tool | wall s | min..max | wall / ours | CPU s | RSS MB | requests | verifies |")
        print("|---|---|---|---|---|---|---|---|")
        ours = result["samples"][self.ours.name]
        for tool in everyone:
            samples = result["samples"][tool.name]
            if tool.name in result["failed"] or not samples:
                print(f"| {tool.name} | failed | | | | | | |")
                continue
            walls = [sample.wall for sample in samples]
            ratio = f"{statistics.median(walls) / median(ours, 'wall'):.2f}" if ours else ""
            requests = "" if samples[0].requests is None else f"{median(samples, 'requests'):.0f}"
            cells = [
                tool.name,
                f"{statistics.median(walls):.2f}",
                f"{min(walls):.2f}..{max(walls):.2f}",
                ratio,
                f"{median(samples, 'cpu'):.2f}",
                f"{median(samples, 'rss'):.0f}",
                requests,
                tool.verifies["present" if one.present else result["direction"]],
            ]
            print(f"| {' | '.join(cells)} |", flush=True)

    def ratios(self):
        print("\n### wall of hf-cache-sync / wall of the peer (below 1: ours is faster)\n")
        print(f"| set | direction | store | {' | '.join(peer.name for peer in self.peers)} |")
        print("|---" * (3 + len(self.peers)) + "|")
        for result in self.results:
            ours = result["samples"][self.ours.name]
            cells = [result["set"], result["direction"], result["server"]]
            for peer in self.peers:
                theirs = result["samples"][peer.name]
                known = ours and theirs and peer.name not in result["failed"]
                cells.append(f"{median(ours, 'wall') / median(theirs, 'wall'):.2f}" if known else "")
            print(f"| {' | '.join(cells)} |")


def few(one):
    """Whether a set's files are so few that removing them between runs does not slow the runs after.

    Removing thousands of files makes ext4 slower at creating the next ones. Those of the other sets stay to the end.
    """
    return one.count < 100


def median(samples, figure):
    return statistics.median(getattr(sample, figure) for sample in samples)


def main():
    # A plain kill ends the servers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = arguments()
    measure.prepare()
    options.work.mkdir(parents=True, exist_ok=True)
    options.bin, options.lean_server = options.bin.resolve(), options.lean_server.resolve()
    peers, missing = tools.find_peers(options.peers, Path(sys.executable).parent)
    with tempfile.TemporaryDirectory(prefix="run-", dir=options.work.resolve()) as scratch:
        options.work = options.work.resolve()
        comparison = Comparison(options, Path(scratch), peers)
        machine = measure.machine(options.work)
        print("\n".join(f"- {name}: {value}" for name, value in machine))
        versions = {tool.name: tool.version() for tool in (comparison.ours, *peers)}
        print("\n".join(f"- {name}: {version}" for name, version in versions.items()))
        print("".join(f"- {line}\n" for line in missing), end="", flush=True)
        for name in options.set:
            one = data.SETS[name]
            for server in options.server:
                for direction in options.direction:
                    if direction in one.directions:
                        comparison.compare(one, direction, server)
        comparison.ratios()
    if options.json:
        report = {"machine": dict(machine), "versions": versions, "results": comparison.results}
        options.json.write_text(json.dumps(report, default=dataclasses.asdict, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
