"""Unchanged clients in other languages that read from the bucket through `serve`: huggingface.js, and hf-hub for Rust."""

import json
import os
import re
import unittest
from pathlib import Path

import fixtures
from harness import HERE, TIMEOUT, files, finish, folder, sha256
from serving import Relay, Served, ServeScenario

NODE, HF_HUB = os.environ.get("NODE_CLIENT"), os.environ.get("HF_HUB_CLIENT")
needs_node = unittest.skipUnless(NODE, "huggingface.js needs Node.js 18 or later and npm, and one of them is not here")
# hf-hub knows no kernels, and neither does huggingface.js.
REPOS = [repo for repo in fixtures.EVERYDAY if repo.kind != "kernel"]


def is_plain(path):
    """Return whether huggingface.js and hf-hub can ask for a path: they paste it into a URL as it is."""
    return re.fullmatch(r"[\w./-]+", path, re.ASCII)


class Others(ServeScenario):
    """Starts the clients, whose results are the same for both."""

    def start_node(self, machine, action, repo, revision="main", **more):
        arguments = {"id": repo.id, "kind": repo.kind, "revision": revision, **more}
        return machine.start("node", HERE / "client.mjs", action, json.dumps(arguments), NODE_CLIENT=NODE)

    def node(self, machine, action, repo, revision="main", **more):
        answer = json.loads(finish(self.start_node(machine, action, repo, revision, **more)).stdout)
        self.assertNotIn("error", answer)
        return answer["result"]

    def start_rust(self, machine, repo, *paths, revision="main"):
        return machine.start(HF_HUB, repo.kind, repo.id, revision, *paths)

    def rust(self, process):
        """Return the first line that hf-hub's client prints, and one for each file."""
        first, *lines = finish(process).stdout.splitlines()
        return first, lines

    def assert_snapshot(self, machine, repo, commit, paths=None):
        """Assert that a cache has these files of a commit (all by default) with the Hub's bytes, and nothing else."""
        root = machine.cache / folder(repo)
        contents = {path: file for path, file in repo.commits[commit].items() if paths is None or path in paths}
        found = {path: sha256(file) for path, file in files(root / "snapshots" / commit).items()}
        self.assertEqual(found, {path: file.sha256 for path, file in contents.items()})
        right = {file.etag: file.sha256 for contents in repo.commits.values() for file in contents.values()}
        for name, path in files(root / "blobs").items():
            if not name.endswith(".lock"):
                self.assertEqual(sha256(path), right[name])


class Reading(Others):
    """All kinds of repos, refs and paths."""

    def setUp(self):
        super().setUp()
        bucket = self.bucket()
        source = self.machine("source", bucket)
        source.download(REPOS)
        source.ours("push")
        self.served = Served(self.machine("server", bucket))

    @needs_node
    def test_huggingface_js(self):
        client = self.client_of(self.served, "node")
        for repo in REPOS:
            for ref, commit in repo.refs.items():
                # It does not escape paths, so these are not to be had from the Hub, either.
                contents = {path: file for path, file in repo.commits[commit].items() if is_plain(path)}
                if contents == repo.commits[commit]:
                    snapshot = self.node(client, "snapshot", repo, ref)
                    self.assertEqual(Path(snapshot).name, commit)
                    self.assert_snapshot(client, repo, commit)
                paths = [*contents, "no-such-file"]
                self.assertEqual(
                    self.node(client, "read", repo, ref, files=paths),
                    {
                        path: {
                            "sha256": file.sha256,
                            "end": file.data[-5:].hex(),
                            "size": len(file.data),
                            "etag": f'"{file.etag}"',
                        }
                        for path, file in contents.items()
                    }
                    | {"no-such-file": None},
                )
                self.assertEqual(
                    self.node(client, "browse", repo, ref, files=paths),
                    {
                        "sha": commit,
                        "tree": {path: file.etag for path, file in repo.commits[commit].items()},
                        "paths": dict.fromkeys(contents, commit),
                        "exists": {path: path in contents for path in paths},
                        "user": "user",
                        "lacks": False,
                    },
                )
        self.served.stop()

    def test_hf_hub_for_rust(self):
        client = self.client_of(self.served, "rust")
        for repo in REPOS:
            for ref, commit in repo.refs.items():
                contents = [path for path in repo.commits[commit] if is_plain(path)]
                first, lines = self.rust(self.start_rust(client, repo, *contents, "no-such-file", revision=ref))
                self.assertEqual(first, f"{commit} {len(repo.commits[commit])}")
                self.assertIn("404", lines.pop())
                root = client.cache / folder(repo) / "snapshots" / commit
                self.assertEqual(lines, [str(root / path) for path in contents])
                self.assert_snapshot(client, repo, commit, contents)
        self.served.stop()


class Damage(Others):
    """A large file with a wrong byte, which clients have received by the time that the server notices."""

    AT, HELD, SEEN = 1 << 20, 7 << 20, 3 << 20

    def setUp(self):
        super().setUp()
        self.shared_bucket = self.bucket()
        self.repo = fixtures.by_id("acme/large")
        ((self.commit, contents),) = self.repo.commits.items()
        self.weights = contents["model.safetensors"]
        source = self.machine("source", self.shared_bucket)
        source.download([self.repo])
        source.ours("push")
        self.relay = Relay(self.shared_bucket.server.endpoint)
        self.addCleanup(self.relay.close)
        self.server = self.machine("server", self.shared_bucket)
        self.server.env["B2_ENDPOINT"] = self.relay.endpoint

    def put(self, data):
        key = f"blobs/{self.weights.etag}"
        self.shared_bucket._client.put_object(Bucket=self.shared_bucket.name, Key=key, Body=data)

    def damage(self):
        data = bytearray(self.weights.data)
        data[self.AT] ^= 1
        self.put(bytes(data))

    def blobs_of(self, machine):
        """Return the sizes of what a client has of the large file."""
        blobs = files(machine.cache / folder(self.repo) / "blobs")
        return {
            name: path.stat().st_size for name, path in blobs.items() if name.startswith(self.weights.etag)
        }

    def wait_for_wrong_bytes(self, machine):
        self.wait_until("the wrong byte", lambda: sum(self.blobs_of(machine).values()) > self.SEEN)

    @needs_node
    def test_huggingface_js_never_keeps_wrong_bytes(self):
        for is_lasting in (False, True):
            with self.subTest(is_lasting=is_lasting):
                if is_lasting:
                    self.damage()
                else:
                    self.relay.flip_once(self.AT)
                self.relay.hold(self.HELD)
                served = Served(self.server)
                client = self.client_of(served, f"node {is_lasting}")
                started = self.start_node(client, "snapshot", self.repo)
                self.wait_for_wrong_bytes(client)
                self.relay.release()
                outcome = json.loads(finish(started).stdout)
                # The connection breaks, and it does not try again by itself. On a busy machine, a single damage may be repaired
                # in time: then it has the right bytes.
                if is_lasting or "error" in outcome:
                    self.assertIn("error", outcome)
                    self.assertNotIn(self.weights.etag, self.blobs_of(client))
                else:
                    self.assert_snapshot(client, self.repo, self.commit)
                served.stop()
                self.put(self.weights.data)
                again = Served(self.server, listen=served.address)
                self.node(client, "snapshot", self.repo)
                self.assert_snapshot(client, self.repo, self.commit)
                again.stop()
                self.server.ours("rm", self.repo.id, "--yes")

    def test_hf_hub_for_rust_is_sent_nothing_that_may_be_wrong(self):
        """It appends whatever it is sent to its partial file, even all of the file, and does not look at the result."""
        self.relay.flip_once(self.AT)
        self.relay.hold(self.HELD)
        served = Served(self.server)
        client = self.client_of(served, "rust")
        started = self.start_rust(client, self.repo, "model.safetensors")
        self.wait_until("its request", lambda: len(served.requests("GET", "model.safetensors")) > 0)
        self.wait_until("the wrong byte", lambda: self.relay.flipped)
        self.relay.release()
        _, lines = self.rust(started)
        self.assertNotIn("error", lines[0], served.log.read_text())
        self.assert_snapshot(client, self.repo, self.commit, ["model.safetensors"])
        served.stop()

    def test_hf_hub_for_rust_resumes_after_the_object_was_repaired(self):
        self.damage()
        self.relay.hold(self.HELD)
        served = Served(self.server)
        client = self.client_of(served, "rust")
        started = self.start_rust(client, self.repo, "model.safetensors")
        self.wait_until("its request", lambda: len(served.requests("GET", "model.safetensors")) > 0)
        self.relay.release()
        _, lines = self.rust(started)
        self.assertIn("error", lines[0])
        # What it has, it keeps and resumes.
        self.assertEqual(sum(self.blobs_of(client).values()), 0)
        served.stop()
        self.put(self.weights.data)
        again = Served(self.server, listen=served.address)
        _, lines = self.rust(self.start_rust(client, self.repo, "model.safetensors"))
        self.assertNotIn("error", lines[0])
        self.assert_snapshot(client, self.repo, self.commit, ["model.safetensors"])
        again.stop()

    def test_llama_cpp_starts_again_on_its_next_run(self):
        """It resumes only if `HEAD` says that it can, and accepts nothing but the rest of a file."""
        self.relay.flip_once(self.AT)
        self.relay.hold(self.HELD)
        served = Served(self.server)
        client = self.client_of(served, "llama.cpp")
        path = f"{served.url}/{self.repo.id}/resolve/{self.commit}/model.safetensors"
        curl = ["curl", "-s", "--max-time", TIMEOUT, "-A", "llama-cpp/1", "--noproxy", "*"]
        partial = client.home / "partial"

        def head():
            lines = client.run(*curl, "-I", path).stdout.lower().splitlines()
            return lines[0].split()[1], dict(line.split(": ", 1) for line in lines[1:] if line)

        status, headers = head()
        self.assertEqual((status, headers["accept-ranges"]), ("200", "bytes"))
        self.assertEqual(headers["content-length"], str(len(self.weights.data)))
        self.assertEqual(headers["etag"], f'"{self.weights.etag}"')
        started = client.start(*curl, "-o", partial, path)
        self.wait_until("the wrong byte", lambda: partial.exists() and partial.stat().st_size > self.SEEN)
        self.relay.release()
        self.assertEqual(finish(started, code=None).returncode, 18, "the connection breaks")
        resumed = client.run(*curl, "-r", f"{partial.stat().st_size}-", "-o", "/dev/null", "-w", "%{http_code}", path)
        self.assertEqual(resumed.stdout, "200", "it refuses this")
        status, headers = head()
        self.assertEqual((status, headers["accept-ranges"]), ("200", "none"))
        client.run(*curl, "-o", partial, path)
        self.assertEqual(sha256(partial), self.weights.sha256)
        served.stop()
