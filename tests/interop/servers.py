"""The two S3 servers of the suite. Each listens on 127.0.0.1 and is killed by its process id."""

import json
import random
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

READ_WRITE = ("suite-read-write", "suite-read-write-secret")
READ_ONLY = ("suite-read-only", "suite-read-only-secret")
REGION = "us-east-1"


@dataclass
class Server:
    """A running S3 server."""

    name: str
    endpoint: str
    keys: tuple = READ_WRITE
    region: str = REGION

    def client(self):
        key, secret = self.keys
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}, proxies={}, retries={"max_attempts": 1}),
        )


class Bucket:
    """A bucket for one test."""

    def __init__(self, server, name):
        self.server, self.name = server, name
        self._client = server.client()
        self._client.create_bucket(Bucket=name)

    def keys(self):
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def get(self, key):
        return self._client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def delete(self, key):
        self._client.delete_object(Bucket=self.name, Key=key)

    def manifests(self):
        """Return all manifests by key."""
        return {key: json.loads(self.get(key)) for key in self.keys() if key.startswith("manifests/")}


@contextmanager
def s3s_fs(binary, root):
    """Run the project's s3s-fs example server."""
    key, secret = READ_WRITE
    root.mkdir()
    command = [binary, "--root", root, "--bucket", "initial", "--access-key", key, "--secret-key", secret]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        endpoint = process.stdout.readline().strip()
        if not endpoint.startswith("http://127.0.0.1:"):
            raise RuntimeError(f"{binary} printed {endpoint!r} instead of its address")
        yield Server("s3s-fs", endpoint)
    finally:
        kill(process)


@contextmanager
def seaweedfs(weed, root):
    """Run SeaweedFS with a read-write and a read-only identity."""
    root.mkdir()
    config = write_identities(root / "s3.json")
    for attempt in range(1, 4):
        data, log = root / f"data-{attempt}", root / f"weed-{attempt}.log"
        data.mkdir()
        ports = free_ports(4)
        with open(log, "wb") as output:
            process = subprocess.Popen(_weed_command(weed, data, config, *ports), stdout=output, stderr=output)
        try:
            server = Server("SeaweedFS", f"http://127.0.0.1:{ports[0]}")
            if becomes_writable(server, process):
                yield server
                return
        finally:
            kill(process)
            remove_sockets(ports)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-2000:]}")


def _weed_command(weed, data, config, s3, master, volume, filer):
    return [
        weed,
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        f"-s3.config={config}",
        f"-s3.port={s3}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-master.port={master}",
        "-master.telemetry=false",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        "-volume.max=1000",
        "-master.volumeSizeLimitMB=1024",
    ]


def write_identities(path):
    """Write SeaweedFS's configuration of a read-write and a read-only identity."""
    identities = [
        _identity("writer", READ_WRITE, ["Admin", "Read", "Write", "List", "Tagging"]),
        _identity("reader", READ_ONLY, ["Read", "List"]),
    ]
    path.write_text(json.dumps({"identities": identities}))
    return path


def _identity(name, pair, actions):
    return {"name": name, "credentials": [{"accessKey": pair[0], "secretKey": pair[1]}], "actions": actions}


def becomes_writable(server, process, *, bucket="ready", seconds=90):
    """Return whether it stores an object in time. It dies if another program has taken one of its ports."""
    client, deadline = server.client(), time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            # It may exist, and then the key need not be allowed to create it.
            with suppress(ClientError):
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="probe", Body=b"probe")
            return True
        except (BotoCoreError, ClientError):
            time.sleep(0.3)
    return False


def free_ports(count):
    """Return distinct free ports for which the port 10000 higher is free too, since SeaweedFS uses it for gRPC."""
    found = set()
    while len(found) < count:
        port = random.randrange(12000, 22000)
        if _is_free(port) and _is_free(port + 10000):
            found.add(port)
    return list(found)


def _is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def remove_sockets(ports):
    """Remove the sockets that SeaweedFS creates in /tmp, wherever its data is, and leaves behind when it is killed."""
    for port in (*ports, *(port + 10000 for port in ports)):
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


def kill(process):
    """Send SIGKILL, because SeaweedFS sometimes ignores SIGTERM."""
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()
