"""The programs that are compared, and how each is told to do the same job."""

import os
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from servers import READ_WRITE, REGION


@dataclass(frozen=True)
class Job:
    """One run: a set to be pushed below `prefix`, or pulled into the fresh folder `target`."""

    set: object
    place: object
    endpoint: str
    bucket: str
    scratch: Path
    prefix: str = ""
    target: Path = None


class Tool:
    """A program, with a method for each action: `push`, `pull`, and `present`, a push that finds everything there."""

    name = ""
    version_flags = ("--version",)
    # What it checks, by action.
    verifies = {}
    # Below the prefix of a push, where the blobs are.
    below = ""
    # Its commands that read a whole local cache.
    lists = ()

    def __init__(self, binary):
        self.binary = str(binary)

    def version(self):
        """What it says of its version, on one line."""
        output = subprocess.run([self.binary, *self.version_flags], capture_output=True, text=True, env=environment())
        return (output.stdout or output.stderr).splitlines()[0]

    def env(self, job):
        """Variables beyond `environment()`."""
        return {}

    def command(self, action, job):
        return [self.binary, *getattr(self, action)(job)]


class Ours(Tool):
    name = "hf-cache-sync"
    below = "blobs/"
    lists = ("list", "status")
    verifies = {
        "push": "sha256 of every byte sent, against its name",
        "pull": "sha256 of every byte against its name; does not wait for the disk",
        "present": "names and sizes",
    }

    def env(self, job):
        return {"B2_ENDPOINT": job.endpoint, "B2_BUCKET": job.bucket}

    def push(self, job):
        prefix = ["--prefix", job.prefix] if job.prefix else []
        return ["push", "--cache-dir", job.place.hub, *prefix]

    present = push

    def pull(self, job):
        return ["pull", job.set.repo, "--cache-dir", job.target, "--no-sync"]


class OursSynced(Ours):
    name = "hf-cache-sync, synced"
    verifies = {"pull": "the same; each blob is on the disk before it is visible"}

    def pull(self, job):
        return super().pull(job)[:-1]


class Original(Ours):
    name = "hf-cache-sync 0.1.0"
    verifies = {
        "push": "CRC32 of what it sends, by the store",
        "pull": "sha256 of each file, which it reads again; not git's sha1 names",
        "present": "names",
    }

    def env(self, job):
        return super().env(job) | {"HF_HUB_CACHE": str(job.target or job.place.hub)}

    def command(self, action, job):
        # The prefix has neither a flag nor a variable.
        config = job.scratch / "config-0.1.0.yaml"
        config.write_text(f"team:\n  prefix: '{job.prefix}'\n")
        return [self.binary, "--config", config, *(["pull", job.set.repo] if action == "pull" else ["push"])]


class S5cmd(Tool):
    name = "s5cmd"
    version_flags = ("version",)
    verifies = {"push": "MD5 of what it sends, by the store", "pull": "nothing", "present": "names and sizes"}

    def _start(self, job):
        return ["--endpoint-url", job.endpoint]

    def push(self, job):
        return [*self._start(job), "cp", f"{job.place.blobs}/*", f"s3://{job.bucket}/{job.prefix}/"]

    def pull(self, job):
        return [*self._start(job), "cp", f"s3://{job.bucket}/blobs/*", f"{job.target}/"]

    def present(self, job):
        return [*self._start(job), "sync", "--size-only", f"{job.place.blobs}/", f"s3://{job.bucket}/blobs/"]


class Rclone(Tool):
    name = "rclone"
    version_flags = ("version",)
    verifies = {
        "push": "MD5 of what it sends, by the store",
        "pull": "MD5, if the ETag is one: not of multipart objects",
        "present": "names and sizes",
    }

    def env(self, job):
        settings = {
            "TYPE": "s3",
            "PROVIDER": "Other",
            "ENDPOINT": job.endpoint,
            "REGION": REGION,
            "ENV_AUTH": "true",
        }
        return {f"RCLONE_CONFIG_BENCH_{name}": value for name, value in settings.items()}

    def push(self, job):
        return ["copy", job.place.blobs, f"bench:{job.bucket}/{job.prefix}"]

    def pull(self, job):
        return ["copy", f"bench:{job.bucket}/blobs", job.target]

    def present(self, job):
        return ["copy", "--size-only", job.place.blobs, f"bench:{job.bucket}/blobs"]


class Aws(Tool):
    name = "AWS CLI (CRT)"
    verifies = {
        "push": "CRC64 of what it sends, by the store",
        "pull": "CRC64, if the store has it",
        "present": "names and sizes",
    }

    def env(self, job):
        config = job.scratch / "aws.ini"
        config.write_text(
            f"[default]\nregion = {REGION}\ns3 =\n  preferred_transfer_client = crt\n  addressing_style = path\n"
        )
        return {"AWS_CONFIG_FILE": str(config)}

    def _s3(self, job, *arguments):
        return ["--endpoint-url", job.endpoint, "s3", *arguments, "--only-show-errors"]

    def push(self, job):
        return self._s3(job, "cp", "--recursive", job.place.blobs, f"s3://{job.bucket}/{job.prefix}/")

    def pull(self, job):
        return self._s3(job, "cp", "--recursive", f"s3://{job.bucket}/blobs/", job.target)

    def present(self, job):
        return self._s3(job, "sync", "--size-only", job.place.blobs, f"s3://{job.bucket}/blobs/")


PEERS = {"s5cmd": S5cmd, "rclone": Rclone, "aws": Aws, "0.1.0": Original}


def find_peers(names, binaries):
    """The peers that are here, and what to say of each that is not."""
    found, missing = [], {}
    for name in names:
        binary = _aws(binaries) if name == "aws" else binaries / {"0.1.0": "hf-cache-sync"}.get(name, name)
        if binary and binary.exists():
            found.append(PEERS[name](binary))
        else:
            missing[PEERS[name].name] = "left out, there is no package of it for this machine"
    return found, missing


def _aws(binaries):
    """The AWS CLI 2 is not on PyPI as such: it is unpacked from a package that brings it as a layer for AWS Lambda."""
    unpacked = binaries.parent / "aws-cli"
    for archive in binaries.parent.glob("lib/python*/site-packages/aws_cdk/asset_awscli_v2/_jsii/*.tgz"):
        if not unpacked.exists():
            with tarfile.open(archive) as outer, zipfile.ZipFile(outer.extractfile("package/lib/layer.zip")) as layer:
                layer.extractall(f"{unpacked}.new")
            os.rename(f"{unpacked}.new", unpacked)
        for binary in unpacked.glob("awscli/v2/*/dist/aws"):
            binary.chmod(0o755)
            return binary
    return None


def environment():
    """What every command gets: nothing of this machine's configuration, and no proxy."""
    key, secret = READ_WRITE
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
