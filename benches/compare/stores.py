"""The stores. Each listens on 127.0.0.1, and is stopped by its process id."""

import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "interop"))
from servers import Server, seaweedfs  # noqa: E402

ABOUT = {
    "lean": "from memory, uploads are counted and forgotten",
    "far": "lean, with 30 ms before each answer and 40 MB/s a connection",
    "far-slow": "lean, with 30 ms before each answer and 5 MB/s a connection",
    "seaweed": "SeaweedFS, one process, on the same disk",
}
FLAGS = {
    "lean": (),
    "far": ("--delay-ms", "30", "--cap-mb", "40"),
    "far-slow": ("--delay-ms", "30", "--cap-mb", "5"),
}
# The stores used by default. With few streams, gigabytes take a quarter of an hour at 5 MB/s.
USUAL = ("lean", "far", "seaweed")


class Store:
    """A running store. `counts` is whether it counts requests."""

    def __init__(self, name, endpoint):
        self.name, self.endpoint = name, endpoint
        self.counts = name in FLAGS
        self._client = Server(name, endpoint).client()

    def requests(self):
        """Returns the number of requests since the last call."""
        if not self.counts:
            return None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return int(opener.open(f"{self.endpoint}/_requests").read())

    def holds(self, bucket, prefix):
        """Returns how many objects have the prefix, and their total size."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        sizes = [item["Size"] for page in pages for item in page.get("Contents", [])]
        return len(sizes), sum(sizes)

    def make_bucket(self, name):
        """Returns an empty bucket, or the only one of a lean store."""
        if self.counts:
            return "bench"
        self._client.create_bucket(Bucket=name)
        return name

    def remove_bucket(self, name):
        """Frees the disk space of a bucket, which SeaweedFS does at once only for whole buckets."""
        if not self.counts:
            # It may answer late, or be stopped by the same ctrl-c. The rest is removed with the store.
            with suppress(BotoCoreError, ClientError):
                self._client.delete_bucket(Bucket=name)


@contextmanager
def start(name, *, lean, weed, objects, scratch):
    """Starts a store. `objects` is a folder of files that a lean store serves from the start, or None."""
    if name == "seaweed":
        with tempfile.TemporaryDirectory(dir=scratch) as folder, seaweedfs(weed, Path(folder) / "seaweed") as server:
            yield Store(name, server.endpoint)
        return
    command = [lean, "--bucket", "bench", *FLAGS[name], *(["--data", objects] if objects else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        endpoint = process.stdout.readline().strip()
        if not endpoint.startswith("http://127.0.0.1:"):
            raise RuntimeError(f"{lean} printed {endpoint!r} instead of its address")
        yield Store(name, endpoint)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
