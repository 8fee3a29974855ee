"""Runs `serve` for clients, and a relay between it and the bucket that can hold and damage what it passes on."""

import json
import re
import signal
import socket
import threading
import time

from harness import HERE, TIMEOUT, TOOLS, Scenario


class Served:
    """A running `serve` on a machine."""

    def __init__(self, machine, *arguments, listen="127.0.0.1:0"):
        self.log = machine.home / f"serve-{time.monotonic_ns()}.log"
        command = [TOOLS.ours, "--json", "serve", "-v", "--listen", listen, *arguments]
        self.process = machine.start(*command, stderr_to=self.log)
        started = json.loads(self.process.stdout.readline() or "{}")
        if started.get("event") != "started":
            raise AssertionError(f"serve did not start: {self.log.read_text()}")
        self.url = started["url"]
        self.env = {variable["name"]: variable["value"] for variable in started["environment"]}

    @property
    def address(self):
        return self.url.removeprefix("http://")

    def requests(self, method, path=""):
        """Return the paths of all requests of this method so far whose path contains `path`."""
        found = re.findall(rf" {method} (/\S*)", self.log.read_text())
        return [target for target in found if path in target]

    def stop(self):
        """Stop it with SIGTERM, and check that it succeeds."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(TIMEOUT)
        self.process.stdout.close()
        if code:
            raise AssertionError(f"serve exited with {code}: {self.log.read_text()}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class ProxyTrap:
    """A proxy that records what it is asked for, and refuses it."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self._listener.getsockname()[1]
        self.asked = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(1000).split(b"\r\n")[0].decode())
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    def close(self):
        self._listener.close()


class ServeScenario(Scenario):
    """A scenario with clients whose only connection is to a server, and that fails if they try any other."""

    # Parts of requests to other machines that are known and cannot be prevented.
    known_egress = ()

    def setUp(self):
        super().setUp()
        self.egress = self.root / "egress"
        self.proxy = ProxyTrap()
        self.addCleanup(self.proxy.close)
        self.addCleanup(self.assert_no_egress)

    def assert_no_egress(self):
        """Assert that no client has tried to connect to another machine, or to a proxy for one."""
        tried = self.egress.read_text().splitlines() if self.egress.exists() else []
        foreign = [line for line in tried + self.proxy.asked if not any(known in line for known in self.known_egress)]
        self.assertEqual(foreign, [], "foreign connections")

    def client_of(self, served, name, *, cache=None, has_xet_switch=True):
        """Return a machine that has nothing but the variables that the server prints."""
        machine = self.machine(name)
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), self.proxy.url)
        machine.env |= served.env | proxies
        machine.env |= {"HF_HOME": str(machine.home / "hf"), "EGRESS_LOG": str(self.egress)}
        machine.env |= {"PYTHONPATH": str(HERE / "guard"), "no_proxy": served.env["NO_PROXY"]}
        # Clients wait as long as they do by default.
        del machine.env["HF_HUB_DOWNLOAD_TIMEOUT"]
        if not has_xet_switch:
            del machine.env["HF_HUB_DISABLE_XET"]
        if cache:
            machine.cache = cache
            machine.env["HF_HUB_CACHE"] = str(cache)
        return machine

    def start_download(self, machine, python, *requests):
        """Start the client's download of these requests in another process."""
        return machine.start(python, HERE / "client.py", "download", json.dumps(requests))

    def wait_until(self, what, condition):
        deadline = time.monotonic() + 60
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"timed out waiting for {what}")
            time.sleep(0.02)


class Relay:
    """Passes connections on to a server on loopback, as its bucket. Can hold and damage objects that come back."""

    def __init__(self, endpoint):
        host, port = endpoint.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = "http://127.0.0.1:%d" % self._listener.getsockname()[1]
        self._is_open = threading.Event()
        self._is_open.set()
        self._limit = self._flip_at = None
        self.flipped = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, limit):
        """Hold all bytes of objects beyond this offset."""
        self._limit = limit
        self._is_open.clear()

    def release(self):
        self._is_open.set()

    def flip_once(self, at):
        """Flip one byte at about this offset of an object."""
        self._flip_at = at

    def close(self):
        self.release()
        self._listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            _Relayed(self, client, socket.create_connection(self._target))

    def _pass(self, at, data):
        """Return the data to pass on, which comes from this offset of an object."""
        if self._limit is not None and at + len(data) > self._limit:
            self._is_open.wait()
        if self._flip_at is not None and at <= self._flip_at < at + len(data):
            damaged, position = bytearray(data), self._flip_at - at
            self._flip_at = None
            damaged[position] ^= 1
            self.flipped += 1
            return bytes(damaged)
        return data


class _Relayed:
    """A connection through a relay."""

    def __init__(self, relay, client, server):
        self.relay, self.client, self.server = relay, client, server
        self.at = 0
        for pump in (self.forward, self.backward):
            threading.Thread(target=pump, daemon=True).start()

    def forward(self):
        try:
            while data := self.client.recv(1 << 16):
                if data.startswith(b"GET "):
                    requested = re.search(rb"\r\nrange: bytes=(\d+)-", data, re.IGNORECASE)
                    self.at = int(requested[1]) if requested else 0
                self.server.sendall(data)
            self.server.shutdown(socket.SHUT_WR)
        except OSError:
            self.server.close()

    def backward(self):
        try:
            while data := self.server.recv(1 << 16):
                data = self.relay._pass(self.at, data)
                self.at += len(data)
                self.client.sendall(data)
        except OSError:
            pass
        finally:
            self.client.close()
            self.server.close()
