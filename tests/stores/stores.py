"""The stores. Each listens on 127.0.0.1, and is killed by its process id."""

import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "interop"))
import servers  # noqa: E402
from servers import READ_ONLY, READ_WRITE, REGION, free_ports, kill  # noqa: E402

BIN = Path(sys.executable).parent
READERS = "for-readers"
# The keys that Garage accepts have this form.
GARAGE_KEYS = ("GK" + "0123456789abcdef01234567", "a1" * 32)
GARAGE_READER = ("GK" + "76543210fedcba9876543210", "b2" * 32)


class NotStarted(Exception):
    """A store could not be started."""


@dataclass
class Store:
    """A running store. `read_only` is a bucket and a pair of keys that may only read it, or empty."""

    endpoint: str
    keys: tuple = READ_WRITE
    region: str = REGION
    read_only: str = ""
    cluster: object = None

    def client(self):
        return servers.Server("", self.endpoint, self.keys, self.region).client()


@contextmanager
def seaweedfs(root):
    with servers.seaweedfs(BIN / "weed", root) as server:
        server.client().create_bucket(Bucket=READERS)
        yield Store(server.endpoint, read_only=":".join((READERS, *READ_ONLY)))


@contextmanager
def moto(root):
    root.mkdir()
    (port,) = free_ports(1)
    with running([BIN / "moto_server", "-H", "127.0.0.1", "-p", port], root / "log") as process:
        store = Store(f"http://127.0.0.1:{port}")
        wait_until_writable(store, process, root / "log")
        yield store


@contextmanager
def rclone(root):
    folder = root / "buckets"
    folder.mkdir(parents=True)
    (port,) = free_ports(1)
    command = [BIN / "rclone", "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}"]
    with running([*command, "--auth-key", ",".join(READ_WRITE), folder], root / "log") as process:
        store = Store(f"http://127.0.0.1:{port}")
        wait_until_writable(store, process, root / "log")
        yield store


@contextmanager
def garage(root):
    root.mkdir()
    rpc, s3, admin = free_ports(3)
    config = root / "garage.toml"
    config.write_text(
        f"""
metadata_dir = "{root}/meta"
data_dir = "{root}/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"
rpc_secret = "{"c3" * 32}"
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:{s3}"
[admin]
api_bind_addr = "127.0.0.1:{admin}"
"""
    )
    binary = os.environ.get("GARAGE_BIN", "garage")
    default = {
        "GARAGE_DEFAULT_ACCESS_KEY": GARAGE_KEYS[0],
        "GARAGE_DEFAULT_SECRET_KEY": GARAGE_KEYS[1],
        "GARAGE_DEFAULT_BUCKET": READERS,
    }
    command = [binary, "-c", config, "server", "--single-node", "--default-bucket"]
    with running(command, root / "log", env=os.environ | default) as process:
        store = Store(f"http://127.0.0.1:{s3}", GARAGE_KEYS, "garage", ":".join((READERS, *GARAGE_READER)))
        wait_until_writable(store, process, root / "log", READERS)
        for arguments in (
            ["key", "allow", "--create-bucket", GARAGE_KEYS[0]],
            ["key", "import", "--yes", "-n", "reader", *GARAGE_READER],
            ["bucket", "allow", "--read", READERS, "--key", GARAGE_READER[0]],
        ):
            subprocess.run([binary, "-c", config, *arguments], check=True, stdout=subprocess.DEVNULL)
        yield store


def ceph_conf(root, mon, s3):
    """Returns the configuration of the smallest Ceph: one monitor, one OSD that keeps objects in memory, one gateway."""
    return f"""
[global]
fsid = {uuid.uuid4()}
mon host = v1:127.0.0.1:{mon}
ms bind msgr2 = false
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
admin socket =
pid file =
run dir = {root}
crash dir = {root}
log file = {root}/$type.log
mon cluster log file = {root}/cluster.log
mon data = {root}/mon
mon data avail crit = 0
mon allow pool size one = true
osd data = {root}/osd
osd objectstore = memstore
memstore device bytes = 4G
osd class update on start = false
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
rgw data = {root}/rgw
rgw frontends = beast endpoint=127.0.0.1:{s3}
"""


@contextmanager
def ceph(root):
    for folder in (root, root / "osd", root / "rgw"):
        folder.mkdir()
    mon, s3 = free_ports(2)
    config = root / "ceph.conf"
    config.write_text(ceph_conf(root, mon, s3))
    fsid = config.read_text().split("fsid = ")[1].split()[0]
    osd = str(uuid.uuid4())

    def run(program, *arguments):
        command = [program, "-c", config, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
        if done.returncode:
            raise NotStarted(f"{program} {' '.join(map(str, arguments))} failed:\n{done.stderr[-2000:]}")

    with ExitStack() as stack:
        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{mon}]", root / "monmap")
        run("ceph-mon", "-i", "a", "--mkfs", "--monmap", root / "monmap")
        stack.enter_context(running(["ceph-mon", "-c", config, "-i", "a", "-f"], root / "mon.out"))
        run("ceph", "--connect-timeout", "60", "osd", "new", osd)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        stack.enter_context(running(["ceph-osd", "-c", config, "-i", "0", "-f"], root / "osd.out"))
        for user, (key, secret) in (("writer", READ_WRITE), ("reader", READ_ONLY)):
            names = (f"--uid={user}", f"--display-name={user}")
            run("radosgw-admin", "user", "create", *names, f"--access-key={key}", f"--secret-key={secret}")
        gateway = ["radosgw", "-c", config, "-n", "client.rgw.a", "-f"]
        process = stack.enter_context(running(gateway, root / "rgw.out"))
        store = Store(f"http://127.0.0.1:{s3}", read_only=":".join((READERS, *READ_ONLY)))
        wait_until_writable(store, process, root / "rgw.out", READERS)
        allow = {
            "Effect": "Allow",
            "Principal": {"AWS": ["arn:aws:iam:::user/reader"]},
            "Action": ["s3:GetObject", "s3:ListBucket", "s3:ListBucketMultipartUploads"],
            "Resource": [f"arn:aws:s3:::{READERS}", f"arn:aws:s3:::{READERS}/*"],
        }
        policy = {"Version": "2012-10-17", "Statement": [allow]}
        store.client().put_bucket_policy(Bucket=READERS, Policy=json.dumps(policy))
        yield store


class Cluster:
    """SeaweedFS as three masters, three volume servers, and a filer with the S3 API. Each object is stored twice."""

    def __init__(self, root):
        self.root = root
        self.processes = {}
        self.ports = free_ports(8)
        self.masters, self.volumes, (self.filer, self.s3) = self.ports[:3], self.ports[3:6], self.ports[6:]
        self.config = servers.write_identities(root / "s3.json")

    def start(self, port):
        """Starts the server with this port, for the first time or once more."""
        folder = self.root / str(port)
        folder.mkdir(exist_ok=True)
        masters = ",".join(f"127.0.0.1:{master}" for master in self.masters)
        command = {
            "master": [
                f"-mdir={folder}", f"-peers={masters}", "-defaultReplication=001", "-volumeSizeLimitMB=256",
                "-electionTimeout=2s", "-telemetry=false",
            ],
            "volume": [f"-dir={folder}", f"-master={masters}", "-max=100", "-preStopSeconds=0"],
            "filer": [
                f"-master={masters}", f"-defaultStoreDir={folder}", "-defaultReplicaPlacement=001", "-s3",
                f"-s3.config={self.config}", f"-s3.port={self.s3}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                f"-localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock",
            ],
        }  # fmt: skip
        kind = "master" if port in self.masters else "volume" if port in self.volumes else "filer"
        arguments = [BIN / "weed", kind, "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-port={port}", *command[kind]]
        with open(self.root / f"{kind}-{port}.log", "ab") as log:
            self.processes[port] = subprocess.Popen(arguments, stdout=log, stderr=log)

    def stop(self, port):
        """Kills a server."""
        kill(self.processes.pop(port))

    def stop_all(self):
        for port in list(self.processes):
            self.stop(port)
        servers.remove_sockets(self.ports)

    def leader(self):
        """Returns the port of the leading master, or None while there is none."""
        for port in self.masters:
            status = self._get(port, "/cluster/status")
            if status and status.get("IsLeader"):
                return port
        return None

    def is_complete(self):
        """Whether the masters have a leader, which knows all volume servers."""
        leader = self.leader()
        status = leader and self._get(leader, "/dir/status")
        centers = ((status or {}).get("Topology") or {}).get("DataCenters") or []
        nodes = [node for center in centers for rack in center["Racks"] for node in rack["DataNodes"]]
        return len(nodes) == len(self.volumes)

    def _get(self, port, path):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            return json.loads(opener.open(f"http://127.0.0.1:{port}{path}", timeout=5).read())
        except (OSError, ValueError):
            return None


@contextmanager
def seaweedfs_cluster(root):
    root.mkdir()
    cluster = Cluster(root)
    try:
        for port in (*cluster.masters, *cluster.volumes, cluster.filer):
            cluster.start(port)
        wait("a complete cluster", cluster.is_complete)
        read_only = ":".join((READERS, *READ_ONLY))
        store = Store(f"http://127.0.0.1:{cluster.s3}", read_only=read_only, cluster=cluster)
        filer = cluster.processes[cluster.filer]
        wait_until_writable(store, filer, root / f"filer-{cluster.filer}.log", READERS)
        yield store
    finally:
        cluster.stop_all()


def wait(what, is_met, seconds=120):
    """Waits until a condition is met."""
    deadline = time.monotonic() + seconds
    while not (found := is_met()):
        if time.monotonic() > deadline:
            raise NotStarted(f"timed out waiting for {what}")
        time.sleep(0.1)
    return found


def wait_until_writable(store, process, log, bucket="ready"):
    if not servers.becomes_writable(store, process, bucket=bucket):
        raise NotStarted(f"the store did not start:\n{log.read_text()[-2000:]}")


@contextmanager
def running(command, log, **options):
    with open(log, "wb") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output, **options)
    with ExitStack() as stack:
        stack.callback(kill, process)
        yield process


# `None`: the tests start it themselves.
START = {
    "s3s-fs": None,
    "seaweedfs": seaweedfs,
    "garage": garage,
    "moto": moto,
    "rclone": rclone,
    "cluster": seaweedfs_cluster,
    "ceph": ceph,
}
TITLES = {
    "s3s-fs": "s3s-fs",
    "seaweedfs": "SeaweedFS",
    "garage": "Garage",
    "moto": "moto",
    "rclone": "rclone",
    "cluster": "SeaweedFS cluster",
    "ceph": "Ceph",
}
