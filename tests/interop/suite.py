"""Runs all scenarios with a fake Hub and both S3 servers, and prints `N passed, M failed` at the end.

The scenarios mostly wait, so they are distributed over several processes, each with its own servers.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest
from contextlib import ExitStack
from pathlib import Path

import fixtures
from harness import HERE, TOOLS, kill_started
from hub import Hub
from servers import s3s_fs, seaweedfs

PROCESSES = 2


def find_tests(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from find_tests(test)
        else:
            yield test


def load(names):
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{name}*" for name in names] or None
    return list(find_tests(loader.discover(str(HERE))))


def run_share(names, share):
    """Run every `PROCESSES`th test in this process, and return 0 if all of them passed."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-cache-sync-interop-")))
        stack.callback(kill_started)
        TOOLS.root = root
        TOOLS.hub = stack.enter_context(Hub(fixtures.EVERYDAY + fixtures.KERNELS + fixtures.SHARED + fixtures.LOADABLE))
        TOOLS.s3s_fs = stack.enter_context(s3s_fs(os.environ["S3_SERVER_BIN"], root / "s3s-fs"))
        TOOLS.seaweedfs = stack.enter_context(seaweedfs(Path(sys.executable).parent / "weed", root / "seaweedfs"))
        tests = unittest.TestSuite(load(names)[share::PROCESSES])
        result = unittest.TextTestRunner(verbosity=2).run(tests)
    failed = len({test.id() for test, _ in result.failures + result.errors}) + len(result.unexpectedSuccesses)
    print(f"{result.testsRun - failed - len(result.skipped)} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def main(names):
    shares = min(PROCESSES, len(load(names)))
    with ExitStack() as stack:
        running = []
        for share in range(shares):
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            command = [sys.executable, __file__, f"--share={share}", *names]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(stop, process)
            running.append((process, log))
        passed = failed = 0
        for process, log in running:
            code = process.wait()
            log.seek(0)
            output = log.read()
            print(output, end="", flush=True)
            counts = re.search(r"^(\d+) passed, (\d+) failed$(?![\s\S]*\S)", output, re.MULTILINE)
            if counts is None:
                print(f"these scenarios did not complete: exit code {code}", flush=True)
            passed += int(counts[1]) if counts else 0
            failed += int(counts[2]) if counts else 1
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if passed and not failed else 1


def stop(process):
    """Terminate a share that is still running, which also stops its servers."""
    if process.poll() is None:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    # Make SIGTERM unwind like Ctrl-C, the only exception that unittest lets through, so that all processes are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = sys.argv[1:]
    if arguments and arguments[0].startswith("--share="):
        sys.exit(run_share(arguments[1:], int(arguments[0].removeprefix("--share="))))
    sys.exit(main(arguments))
