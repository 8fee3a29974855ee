"""An S3 server that computes a bucket: it lists all keys, and returns manifests and refs. It refuses everything else."""

import asyncio
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from contextlib import contextmanager
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit

from world import WRITTEN

BUCKET = "bench"
PAGE = 1000
LISTED = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(WRITTEN))


class Server:
    """A running server: its address, and the requests since they were last taken."""

    def __init__(self, objects):
        self._objects, self._keys = objects, sorted(objects)
        self._counts = Counter()
        self.endpoint = None

    def take_requests(self):
        counts, self._counts = self._counts, Counter()
        return counts

    async def serve(self, reader, writer):
        """Answers the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, target, *_ = head.decode().split(" ", 2)
                writer.write(self._answer(method, urlsplit(target)))
                await writer.drain()
                if method not in ("GET", "HEAD"):
                    # Its body is not read.
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, method, url):
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        query = parse_qs(url.query, keep_blank_values=True)
        lists = method == "GET" and not key and "list-type" in query
        self._counts["LIST" if lists else method] += 1
        if bucket != BUCKET or method not in ("GET", "HEAD") or (not key and not lists):
            return _response("501 Not Implemented", _error("NotImplemented"))
        if lists:
            return _response("200 OK", self._page(query), "content-type: application/xml")
        if key not in self._objects:
            return _response("404 Not Found", b"" if method == "HEAD" else _error("NoSuchKey"))
        size, etag, content = self._objects[key]
        if method == "GET" and content is None:
            return _response("501 Not Implemented", _error("NotImplemented"))
        modified = f"last-modified: {formatdate(WRITTEN, usegmt=True)}"
        body = b"" if method == "HEAD" else content
        return _response("200 OK", body, f'etag: "{etag}"', modified, length=size)

    def _page(self, query):
        prefix = query.get("prefix", [""])[0]
        after = (query.get("continuation-token") or query.get("start-after") or [""])[0]
        most = min(int(query.get("max-keys", [PAGE])[0]), PAGE)
        start = bisect_right(self._keys, after) if after else bisect_left(self._keys, prefix)
        found = []
        for key in self._keys[start : start + most]:
            if not key.startswith(prefix):
                break
            found.append(key)
        end = start + len(found)
        more = end < len(self._keys) and self._keys[end].startswith(prefix)
        lines = ['<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>']
        for key in found:
            size, etag, _ = self._objects[key]
            lines.append(
                f"<Contents><Key>{key}</Key><LastModified>{LISTED}</LastModified><ETag>&quot;{etag}&quot;</ETag>"
                f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        token = f"<NextContinuationToken>{found[-1]}</NextContinuationToken>" if more else ""
        truncated = "true" if more else "false"
        lines.append(f"<KeyCount>{len(found)}</KeyCount><IsTruncated>{truncated}</IsTruncated>{token}")
        return "".join([*lines, "</ListBucketResult>"]).encode()


def _error(code):
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()


def _response(status, body, *headers, length=None):
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"date: {formatdate(usegmt=True)}", f"content-length: {size}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextmanager
def start(objects):
    """Runs a server in a thread of this process."""
    server, loop = Server(objects), asyncio.new_event_loop()
    listener = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", 0))
    server.endpoint = "http://127.0.0.1:{}".format(listener.sockets[0].getsockname()[1])
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listener.close()
