"""Stops a volume server, then the leading master, while the tool works. Nothing may be lost."""

import hashlib
import os
import random
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from stores import servers, wait

OURS = os.environ["HF_CACHE_SYNC_BIN"]
MIB = 1 << 20
BUCKET = "for-faults"
# Answers in the log of `-v`.
ANSWER = re.compile(rb" 20[0-9] (?:[0-9]+ B )?[0-9]+ ms$", re.MULTILINE)
RATE = "8MB/s"
ATTEMPTS = 10


class Machine:
    """A cache and the environment of one bucket."""

    def __init__(self, folder, store):
        self.folder, self.hub = folder, folder / "hub"
        self.hub.mkdir(parents=True)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HF_HUB_CACHE": str(self.hub),
            "B2_APPLICATION_KEY_ID": store.keys[0],
            "B2_APPLICATION_KEY": store.keys[1],
            "B2_ENDPOINT": store.endpoint,
            "B2_BUCKET": BUCKET,
            "B2_REGION": store.region,
        }

    def start(self, *arguments):
        """Starts the tool with its log in a file, which it returns as well."""
        log = self.folder / "log"
        with open(log, "wb") as output:
            command = [OURS, *arguments, "-v", "--no-progress"]
            process = subprocess.Popen(command, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=output)  # fmt: skip
        return process, log

    def run(self, *arguments):
        process, log = self.start(*arguments)
        return process.wait(), log.read_text(errors="replace")

    def add(self, repo, commit, files):
        """Writes a revision as huggingface_hub does."""
        folder = self.hub / f"models--{repo.replace('/', '--')}"
        snapshot = folder / "snapshots" / commit
        for made in (folder / "blobs", folder / "refs", snapshot):
            made.mkdir(parents=True)
        for path, content in files.items():
            blob = hashlib.sha256(content).hexdigest()
            (folder / "blobs" / blob).write_bytes(content)
            (snapshot / path).symlink_to(f"../../blobs/{blob}")
        (folder / "refs" / "main").write_text(commit)

    def files(self):
        """Returns the SHA-256 of each file of each snapshot."""
        found = self.hub.glob("models--*/snapshots/*/*")
        return {str(path.relative_to(self.hub)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def survives_faults(store, folder):
    """Runs a push, a pull and a gc, each with both faults. Returns whether everything was as it should be."""
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"faults: seed {seed}", flush=True)
    chance = random.Random(seed)
    bucket = servers.Bucket(store, BUCKET)
    source, target = Machine(folder / "source", store), Machine(folder / "target", store)
    for number in range(6):
        sizes = [24 * MIB, *[MIB] * 8, *[2000] * 10]
        files = {f"{index:02}.bin": chance.randbytes(size) for index, size in enumerate(sizes)}
        source.add(f"org/repo-{number}", hashlib.sha1(str(number).encode()).hexdigest(), files)
    try:
        disturb(store, chance, source, "push", "--bwlimit", RATE)
        check(whole(bucket) == 6, "not all manifests are there")
        disturb(store, chance, target, "pull-all", "--bwlimit", RATE)
        check(target.files() == source.files(), "the pulled files differ")
        needed = set(bucket.keys())
        orphans = [f"blobs/{hashlib.sha256(str(number).encode()).hexdigest()}" for number in range(3000)]
        client = store.client()
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: client.put_object(Bucket=BUCKET, Key=key, Body=b"nobody's"), orphans))
        disturb(store, chance, source, "remote", "gc", "--grace", "0", "--yes")
        left = {key for key in bucket.keys() if not key.startswith("_hf_cache_sync_gc/")}
        check(left == needed, f"{len(left - needed)} keys too many, {len(needed - left)} too few")
        check(whole(bucket) == 6, "not all manifests are there")
        code, log = source.run("verify", "--remote", "--deep")
        check(code == 0, f"verify ended with {code}:\n{log[-2000:]}")
    except AssertionError as error:
        print(f"faults: FAILED: {error}", flush=True)
        return False
    print("faults: nothing was lost", flush=True)
    return True


def disturb(store, chance, machine, *arguments):
    """Runs a command, and stops two servers in the middle. Repeats it until it succeeds, then starts them again."""
    cluster, name = store.cluster, " ".join(arguments)
    volume = chance.choice(cluster.volumes)
    process, log = machine.start(*arguments)
    after_answers(process, log, chance.randrange(5, 25))
    cluster.stop(volume)
    after_answers(process, log, chance.randrange(1, 15))
    leader = wait("a leading master", cluster.leader)
    cluster.stop(leader)
    was_running = process.poll() is None
    started = time.monotonic()
    code = process.wait(timeout=900)
    codes = [code]
    while code and len(codes) < ATTEMPTS:
        check(code in (1, 6), f"{name} ended with {code}:\n{log.read_text(errors='replace')[-2000:]}")
        code, _ = machine.run(*arguments)
        codes.append(code)
    check(code == 0, f"{name} does not succeed: {codes}\n{log.read_text(errors='replace')[-2000:]}")
    seconds = time.monotonic() - started
    when = "before its end" if was_running else "after its end"
    print(f"faults: {name}: volume server and master stopped {when}; exit codes {codes} after {seconds:.0f} s", flush=True)
    for port in (volume, leader):
        cluster.start(port)
    wait("a complete cluster", cluster.is_complete)


def after_answers(process, log, count):
    """Waits until the store has answered this many more requests, or the command has ended."""
    answers = lambda: len(ANSWER.findall(log.read_bytes()))  # noqa: E731
    before = answers()
    while process.poll() is None and answers() < before + count:
        time.sleep(0.02)


def whole(bucket):
    """Reads every blob of every manifest, and returns the number of manifests."""
    manifests = bucket.manifests()
    for key, manifest in manifests.items():
        for file in manifest["files"]:
            found = hashlib.sha256(bucket.get(f"blobs/{file['blob']}")).hexdigest()
            check(found == file["blob"], f"{key}: {file['path']} has other bytes")
    for key in bucket.keys():
        if key.startswith("refs/"):
            manifest = f"manifests/{key.split('/')[1]}@{bucket.get(key).decode()}.json"
            check(manifest in manifests, f"{key} leads nowhere")
    return len(manifests)


def check(is_met, what):
    if not is_met:
        raise AssertionError(what)
