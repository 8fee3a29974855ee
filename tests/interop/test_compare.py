"""The benchmark in benches/compare runs. It uses a few bytes only, to make sure that it works when it is needed."""

import json
import subprocess
import sys

from harness import HERE, TIMEOUT, TOOLS, Scenario


class Compare(Scenario):
    def test_the_benchmark_measures_every_tool(self):
        figures = self.root / "figures.json"
        command = [sys.executable, HERE.parents[1] / "benches" / "compare" / "compare.py", "--bin", TOOLS.ours]
        command += ["--work", self.root / "work", "--json", figures]
        command += ["--set", "smoke", "--server", "seaweed", "--peers", "0.1.0", "--runs", "1"]
        with open(self.root / "log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        # Terminated rather than killed, so that it stops its own SeaweedFS.
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        self.assertEqual(process.wait(timeout=TIMEOUT), 0, (self.root / "log").read_text())
        for comparison in json.loads(figures.read_text())["comparisons"]:
            self.assertEqual(comparison["failed"], {})
            for tool, samples in comparison["samples"].items():
                self.assertEqual([sample["wall"] > 0 for sample in samples], [True], tool)
