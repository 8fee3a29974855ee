"""Reads all files of a model from the Hub's API, in parallel, and discards them: a client that costs next to nothing.

Usage: `python read.py REPO [TIMES]`. The endpoint comes from HF_ENDPOINT.
"""

import json
import os
import queue
import socket
import sys
import threading
from http.client import HTTPConnection
from urllib.parse import quote

AT_ONCE = 16
# More would not stay in the processor's cache.
BUFFER = 64 << 10


def main(repo, times=1):
    address = os.environ["HF_ENDPOINT"].removeprefix("http://")
    connection = HTTPConnection(address)
    connection.request("GET", f"/api/models/{repo}")
    paths = [sibling["rfilename"] for sibling in json.load(connection.getresponse())["siblings"]]
    waiting, failures = queue.SimpleQueue(), []
    for path in paths * int(times):
        waiting.put(f"/{repo}/resolve/main/{quote(path)}")

    def work():
        connection, buffer = HTTPConnection(address), memoryview(bytearray(BUFFER))
        while not waiting.empty():
            try:
                path = waiting.get_nowait()
            except queue.Empty:
                return
            connection.request("GET", path)
            response = connection.getresponse()
            left = response.length
            while left > 0 and (read := response.readinto(buffer)):
                left -= read
            if response.status != 200 or left:
                failures.append(path)

    threads = [threading.Thread(target=work) for _ in range(min(AT_ONCE, waiting.qsize()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(f"{len(failures)} files were not read, among them {failures[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
