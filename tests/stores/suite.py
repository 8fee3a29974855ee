"""Starts each store in turn, runs the contract tests with it, and compares or writes the table in docs/stores.md."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import cluster
import stores

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "stores.md"
MARK = "<!-- measured -->"
CARGO = ["cargo", "test", "--locked", "--quiet", "--test", "it", "contract::"]


def main(arguments):
    update = arguments[:1] == ["--update"]
    names = arguments[update:]
    if unknown := [name for name in names if name not in stores.START]:
        sys.exit(f"unknown: {' '.join(unknown)}; there are {' '.join(stores.START)}")
    measured, failed = {}, []
    for name in names:
        print(f"\n== {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"hf-cache-sync-{name}-") as folder:
            try:
                facts, is_ok = check(name, Path(folder))
                measured[stores.TITLES[name]] = facts
            except stores.NotStarted as error:
                print(error, file=sys.stderr)
                is_ok = False
        if not is_ok:
            failed.append(name)
    differences = write_table(measured) if update else compare(measured)
    print("\n".join(differences))
    passed = [name for name in names if name not in failed]
    print(f"passed: {' '.join(passed) or 'none'}; failed: {' '.join(failed) or 'none'}")
    return 1 if failed or differences else 0


def check(name, folder):
    """Runs everything there is for one store. Returns what was measured, and whether all tests passed."""
    facts = folder / "facts"
    facts.touch()
    with stores.START[name](folder / "store") if stores.START[name] else nullcontext() as store:
        variables = {"CONTRACT_STORE": stores.TITLES[name], "CONTRACT_FACTS": str(facts)}
        if store:
            variables |= {
                "CONTRACT_ENDPOINT": store.endpoint,
                "CONTRACT_REGION": store.region,
                "CONTRACT_KEYS": ":".join(store.keys),
                "CONTRACT_READ_ONLY": store.read_only,
            }
        is_ok = subprocess.run(CARGO, cwd=ROOT, env=os.environ | variables).returncode == 0
        if name == "cluster":
            is_ok = cluster.survives_faults(store, folder) and is_ok
    return dict(line.split("\t") for line in facts.read_text().splitlines()), is_ok


def read_table():
    """Returns the table as rows of cells, and the text before and after it."""
    before, table, after = DOCS.read_text().split(MARK)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    return before, [rows[0], *rows[2:]], after


def compare(measured):
    _, (heads, *rows), _ = read_table()
    written = {(row[0], head): cell for row in rows for head, cell in zip(heads[1:], row[1:])}
    return [
        f"docs/stores.md: '{fact}' of {store} is '{written.get((fact, store))}' there, and was measured as '{value}'"
        for store, facts in measured.items()
        for fact, value in sorted(facts.items())
        if written.get((fact, store)) != value
    ]


def write_table(measured):
    before, (heads, *rows), after = read_table()
    heads = [heads[0], *dict.fromkeys([*heads[1:], *measured])]
    names = dict.fromkeys([*(row[0] for row in rows), *sorted(set().union(*measured.values()))])
    old = {(row[0], head): cell for row in rows for head, cell in zip(heads[1:], row[1:])}
    cell = lambda fact, store: measured.get(store, {}).get(fact) or old.get((fact, store), "")  # noqa: E731
    lines = [heads, ["---"] * len(heads), *([name, *(cell(name, head) for head in heads[1:])] for name in names)]
    table = "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else "|" + "---|" * len(line) for line in lines)
    DOCS.write_text(f"{before}{MARK}\n{table}\n{MARK}{after}")
    return []


if __name__ == "__main__":
    # SIGTERM unwinds, so that all servers are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
