"""Compares hf-cache-sync with its peers: the same bytes, the same stores, one run of each tool after another, in turns."""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import data
import local
import measure
import report
import stores
import tools
from scratch import scratch_folder

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ("startup", "scan", "served")
# Bytes of disk that must stay free.
SPARE = 4 << 30


def arguments():
    def words(known):
        def parse(text):
            chosen = text.split(",")
            if unknown := [word for word in chosen if word not in known]:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
            return chosen

        return parse

    parser = argparse.ArgumentParser(
        prog="benches/compare/run",
        description=__doc__,
        epilog="\n".join(
            [
                *(f"set {one.name}: {one.about}" for one in data.SETS.values()),
                *(f"server {name}: {about}" for name, about in stores.ABOUT.items()),
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def choice(flag, known, about, default=None):
        about = f"{','.join(known)}{about}"
        parser.add_argument(flag, type=words(known), default=list(default or known), metavar="A,B", help=about)

    choice("--set", (*LOCAL, *data.SETS), ": what to measure (all but smoke)", (*LOCAL, *data.USUAL))
    choice("--server", tuple(stores.ABOUT), ": which stores (all but far-slow)", stores.USUAL)
    choice("--direction", ("push", "pull"), " (both)")
    choice("--peers", tuple(tools.PEERS), " (those that are not tuned)", tools.USUAL)
    add = parser.add_argument
    add("--runs", type=int, default=5, metavar="N", help="runs of each tool (5)")
    add("--json", type=Path, metavar="FILE", help="write every figure to this file")
    add("--work", type=Path, default=ROOT / "target" / "compare", metavar="DIR", help="the data (target/compare)")
    add("--timeout", type=float, default=600, metavar="S", help="seconds after which a run has failed (600)")
    built = ROOT / "target" / "release"
    ours, lean = built / "hf-cache-sync", built / "examples" / "lean-server"
    add("--bin", type=Path, default=ours, metavar="FILE", help="the hf-cache-sync to measure, instead of building it")
    add("--lean-server", type=Path, default=lean, metavar="FILE", help="the lean-server example, likewise")
    options = parser.parse_args()
    for name in ("bin", "lean_server", "work"):
        setattr(options, name, getattr(options, name).resolve())
    return options


class Comparison:
    """All comparisons, and their results."""

    def __init__(self, options, scratch, peers, binaries):
        self.options, self.scratch, self.peers = options, scratch, peers
        self.ours = tools.Ours(options.bin)
        self.weed = binaries / "weed"
        self.results = []

    def compare(self, one, direction, server):
        """Measures one set in one direction at one store, with every tool in turn, and prints the table."""
        others = [tools.OursSynced, tools.OursServed] if direction == "pull" else []
        everyone = [self.ours, *(other(self.options.bin) for other in others), *self.peers]
        title = f"{one.name} ({one.about}), {direction}, {server}"
        needed = self.disk(one, direction, server, len(everyone))
        if shutil.disk_usage(self.scratch).free < needed:
            print(f"\n### {title}\n\nLeft out: it needs {needed / 2**30:.0f} GiB of free disk.", flush=True)
            return
        result = {"set": one.name, "direction": direction, "server": server, "failed": {}}
        result["samples"] = {tool.name: [] for tool in everyone}
        place = data.make(one, self.options.work)
        action = "present" if one.present else direction
        with ExitStack() as stack:
            bench = Bench(self, one, place, server, stack, None if action == "push" else place.bucket)
            act = getattr(bench, action)
            for number in range(self.options.runs):
                for turn in range(len(everyone)):
                    tool = everyone[(number + turn) % len(everyone)]
                    if tool.name in result["failed"]:
                        continue
                    try:
                        sample = act(tool, f"run-{number}-{everyone.index(tool)}")
                        result["samples"][tool.name].append(sample)
                        print(f"{title}: {tool.name}: {sample.wall:.2f} s", file=sys.stderr)
                    except measure.Failed as error:
                        result["failed"][tool.name] = str(error)
                        print(f"{title}: {tool.name}: {error}", file=sys.stderr)
        self.results.append(result)
        report.comparison(title, everyone, result, action)

    def disk(self, one, direction, server, count):
        """Returns how many bytes of free disk a comparison needs."""
        copies = 0
        if direction == "pull":
            copies += 1 if few(one) else self.options.runs * count
        if server == "seaweed":
            copies += 1 if few(one) else count
        return copies * one.count * max(one.size, 4096) + SPARE


class Bench:
    """One set at one store. Each action runs one tool once, checks what it did, and returns the sample."""

    def __init__(self, comparison, one, place, server, stack, objects):
        self.all, self.set, self.place, self.server = comparison, one, place, server
        self.objects, self.seeds = objects, {}
        self.store = stack.enter_context(self.start())

    def start(self):
        lean, weed = self.all.options.lean_server, self.all.weed
        return stores.start(self.server, lean=lean, weed=weed, objects=self.objects, scratch=self.all.scratch)

    def push(self, tool, run):
        bucket = self.store.make_bucket(run)
        try:
            sample = self.measure(tool, "push", self.job(bucket, prefix=run))
            count, size = self.store.holds(bucket, f"{run}/{tool.below}")
        finally:
            self.store.remove_bucket(bucket)
        # The lean stores count the framing that the AWS CLI sends as well.
        if count < self.set.count or size < self.set.bytes:
            raise measure.Failed(f"{count} objects of {size} bytes are in the bucket")
        return sample

    def pull(self, tool, run):
        target = Path(tempfile.mkdtemp(prefix=run, dir=self.all.scratch))
        sample = self.measure(tool, "pull", self.job(self.seeded("pulls"), target=target))
        sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file() and not path.is_symlink()]
        if (found := sizes.count(self.set.size)) != self.set.count:
            raise measure.Failed(f"{found} files instead of {self.set.count} arrived")
        if few(self.set):
            shutil.rmtree(target)
        return sample

    def present(self, tool, _run):
        """Runs a push that finds everything. Each tool has its own bucket, because 0.1.0 rewrites the manifests."""
        if not self.store.counts:
            return self.measure(tool, "present", self.job(self.seeded(tool.name)))
        shared = self.store
        with self.start() as self.store:
            sample = self.measure(tool, "present", self.job("bench"))
        self.store = shared
        return sample

    def seeded(self, name):
        """Returns a bucket that contains the set."""
        if self.store.counts:
            return "bench"
        if name not in self.seeds:
            bucket = self.store.make_bucket(f"seeded-{len(self.seeds)}")
            self.measure(self.all.ours, "push", self.job(bucket))
            self.seeds[name] = bucket
        return self.seeds[name]

    def job(self, bucket, **more):
        return tools.Job(self.set, self.place, self.store.endpoint, bucket, self.all.scratch, **more)

    def measure(self, tool, action, job):
        """Runs one tool once, after everything that earlier runs have written is on the disk."""
        shutil.rmtree(job.place.hub / ".locks", ignore_errors=True)
        command, env = tool.command(action, job), tools.environment() | tool.env(job)
        os.sync()
        self.store.requests()
        scratch, timeout = self.all.scratch, self.all.options.timeout
        if shutil.disk_usage(scratch).free < SPARE // 2:
            raise measure.Failed("not started, the disk is nearly full")
        sample = measure.run(command, env=env, cwd=scratch, log=scratch / "log", timeout=timeout)
        sample.requests = self.store.requests()
        return sample


def few(one):
    """Returns whether a set has so few files that removing them does not slow down the next run; see `scratch.py`."""
    return one.count < 100


def main():
    # A plain kill stops the servers as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = arguments()
    measure.prepare()
    options.work.mkdir(parents=True, exist_ok=True)
    binaries = Path(sys.executable).parent
    peers, missing = tools.find_peers(options.peers, binaries)
    env = tools.environment()
    with scratch_folder(options.work) as scratch:
        comparison = Comparison(options, scratch, peers, binaries)
        facts = measure.machine(options.work)
        facts |= {tool.name: tool.version() for tool in (comparison.ours, *peers)} | missing
        facts["runs"] = f"{options.runs} of each tool, in turns; medians"
        print("\n".join(f"- {name}: {fact}" for name, fact in facts.items()), flush=True)
        figures = {"facts": facts, "comparisons": comparison.results}
        try:
            if "startup" in options.set:
                figures["startup_ms"] = local.startup(comparison.ours, peers, env, scratch)
            if "scan" in options.set:
                figures["scan"] = local.scan(comparison.ours, peers, env, scratch, options.work, options.runs)
            if "served" in options.set:
                figures["served"] = local.served(comparison.ours, env, scratch, options.work, options.runs)
            for one in (data.SETS[name] for name in options.set if name in data.SETS):
                for server in options.server:
                    for direction in options.direction:
                        if direction in one.directions:
                            comparison.compare(one, direction, server)
        finally:
            if comparison.results:
                report.ratios(comparison.results, comparison.ours, peers)
            if options.json:
                options.json.write_text(json.dumps(figures, default=dataclasses.asdict, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
