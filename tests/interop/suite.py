"""Starts the look-alike Hub and both S3 servers, runs every scenario, and ends with `N passed, M failed`."""

import os
import signal
import sys
import tempfile
import unittest
from contextlib import ExitStack
from pathlib import Path

import fixtures
from harness import HERE, TOOLS, kill_started
from hub import Hub
from servers import s3s_fs, seaweedfs


def main(names):
    # A termination unwinds like ctrl-c, the one exception that unittest lets through: every process is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-cache-sync-interop-")))
        stack.callback(kill_started)
        TOOLS.root = root
        TOOLS.hub = stack.enter_context(Hub(fixtures.EVERYDAY + fixtures.KERNELS + fixtures.SHARED + fixtures.LOADABLE))
        TOOLS.s3s_fs = stack.enter_context(s3s_fs(os.environ["S3_SERVER_BIN"], root / "s3s-fs"))
        TOOLS.seaweedfs = stack.enter_context(seaweedfs(Path(sys.executable).parent / "weed", root / "seaweedfs"))
        loader = unittest.TestLoader()
        loader.testNamePatterns = [f"*{name}*" for name in names] or None
        result = unittest.TextTestRunner(verbosity=2).run(loader.discover(str(HERE)))
    failed = len({test.id() for test, _ in result.failures + result.errors}) + len(result.unexpectedSuccesses)
    passed = result.testsRun - failed - len(result.skipped)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
