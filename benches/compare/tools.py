"""The tools that are compared, and the command lines with which each does the same job."""

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from servers import READ_WRITE, REGION


@dataclass(frozen=True)
class Job:
    """One run: a set is pushed below `prefix`, or pulled into the fresh folder `target`."""

    set: object
    place: object
    endpoint: str
    bucket: str
    scratch: Path
    prefix: str = ""
    target: Path = None


# Settings of the tuned peers: the smallest parts that S3 accepts, and many of them at once per file.
PART_MIB, AT_ONCE = 5, 16


class Tool:
    """A program, with a method for each action: `push`, `pull`, and `present`, a push that finds everything."""

    name = ""
    version_flags = ("--version",)
    # What it checks, by action.
    verifies = {}
    # Where the blobs are, below the prefix of a push.
    below = ""
    # Its commands that scan a whole local cache.
    lists = ()

    def __init__(self, binary):
        self.binary = str(binary)

    def version(self):
        """Returns the line that it prints as its version."""
        output = subprocess.run([self.binary, *self.version_flags], capture_output=True, text=True, env=environment())
        return (output.stdout or output.stderr).splitlines()[0]

    def env(self, job):
        """Returns variables beyond `environment()`."""
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


class OursServed(Ours):
    """A client that reads everything through `serve`, into an empty cache."""

    name = "hf-cache-sync serve"
    verifies = {"pull": "as pull; a client gets the end of a file once it is verified"}

    def pull(self, job):
        flags = ["--cache-dir", job.target, "--no-sync"]
        return ["serve", *flags, "--", sys.executable, Path(__file__).with_name("read.py"), job.set.repo]


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
        # There is neither a flag nor a variable for the prefix.
        config = job.scratch / "config-0.1.0.yaml"
        config.write_text(f"team:\n  prefix: '{job.prefix}'\n")
        return [self.binary, "--config", config, *(["pull", job.set.repo] if action == "pull" else ["push"])]


class S5cmd(Tool):
    name = "s5cmd"
    version_flags = ("version",)
    verifies = {"push": "MD5 of what it sends, by the store", "pull": "nothing", "present": "names and sizes"}

    # Flags of `cp`.
    flags = ()

    def _start(self, job):
        return ["--endpoint-url", job.endpoint]

    def push(self, job):
        return [*self._start(job), "cp", *self.flags, f"{job.place.blobs}/*", f"s3://{job.bucket}/{job.prefix}/"]

    def pull(self, job):
        return [*self._start(job), "cp", *self.flags, f"s3://{job.bucket}/blobs/*", f"{job.target}/"]

    def present(self, job):
        return [*self._start(job), "sync", "--size-only", f"{job.place.blobs}/", f"s3://{job.bucket}/blobs/"]


class S5cmdTuned(S5cmd):
    """According to its README, `--concurrency` of `cp` is the number of parts of a file at once, `--part-size` their MiB."""

    name = "s5cmd, tuned"
    flags = ("--concurrency", AT_ONCE, "--part-size", PART_MIB)


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


class RcloneTuned(Rclone):
    """According to https://rclone.org/s3/#multipart-uploads: a higher concurrency, and chunks for files below 200 MiB, too.
    The multi-thread flags do the same for downloads of files above their cutoff."""

    name = "rclone, tuned"

    def command(self, action, job):
        upload = ["--s3-upload-cutoff", f"{PART_MIB}Mi", "--s3-chunk-size", f"{PART_MIB}Mi"]
        threads = ["--multi-thread-cutoff", f"{PART_MIB}Mi", "--multi-thread-chunk-size", f"{PART_MIB}Mi"]
        many = ["--s3-upload-concurrency", AT_ONCE, "--multi-thread-streams", AT_ONCE]
        return [*super().command(action, job), *upload, *threads, *many]


class Aws(Tool):
    name = "AWS CLI (CRT)"
    verifies = {
        "push": "CRC64 of what it sends, by the store",
        "pull": "CRC64, if the store has it",
        "present": "names and sizes",
    }

    # More lines of the section `s3`.
    settings = ()

    def env(self, job):
        config = job.scratch / "aws.ini"
        lines = ["preferred_transfer_client = crt", "addressing_style = path", *self.settings]
        config.write_text("\n  ".join([f"[default]\nregion = {REGION}\ns3 =", *lines]) + "\n")
        return {"AWS_CONFIG_FILE": str(config)}

    def _s3(self, job, *arguments):
        return ["--endpoint-url", job.endpoint, "s3", *arguments, "--only-show-errors"]

    def push(self, job):
        return self._s3(job, "cp", "--recursive", job.place.blobs, f"s3://{job.bucket}/{job.prefix}/")

    def pull(self, job):
        return self._s3(job, "cp", "--recursive", f"s3://{job.bucket}/blobs/", job.target)

    def present(self, job):
        return self._s3(job, "sync", "--size-only", job.place.blobs, f"s3://{job.bucket}/blobs/")


class AwsTuned(Aws):
    """According to `help s3-config`: with CRT, the target bandwidth determines how many requests are in flight, and parts
    are sized automatically by default."""

    name = "AWS CLI (CRT), tuned"
    settings = (
        "target_bandwidth = 50Gb/s",
        f"multipart_threshold = {PART_MIB}MB",
        f"multipart_chunksize = {PART_MIB}MB",
    )


PEERS = {
    "s5cmd": S5cmd,
    "rclone": Rclone,
    "aws": Aws,
    "0.1.0": Original,
    "s5cmd-tuned": S5cmdTuned,
    "rclone-tuned": RcloneTuned,
    "aws-tuned": AwsTuned,
}
# The peers compared by default. 0.1.0 cannot be tuned.
USUAL = ("s5cmd", "rclone", "aws", "0.1.0")


def find_peers(names, binaries):
    """Returns the peers that are installed, and a remark about each that is not."""
    found, missing = [], {}
    for name in names:
        program = name.removesuffix("-tuned")
        binary = _aws(binaries) if program == "aws" else binaries / {"0.1.0": "hf-cache-sync"}.get(program, program)
        if binary and binary.exists():
            found.append(PEERS[name](binary))
        else:
            missing[PEERS[name].name] = "left out, there is no package for this machine"
    return found, missing


def _aws(binaries):
    """Returns the AWS CLI 2, which is not on PyPI: it is unpacked from a package that contains a layer for AWS Lambda."""
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
    """Returns the environment of every command, with nothing of this machine's configuration, and no proxy."""
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
