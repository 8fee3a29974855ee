"""Unchanged Python clients that read from the bucket through `serve`, with nothing but the variables that it prints."""

import json
from http.client import HTTPConnection

import fixtures
from harness import HERE, TOOLS, Machine, describe, files, finish, folder, request, sha256
from hub import File, Repo
from serving import Relay, Served, ServeScenario
from test_loading import ROWS

VERSIONS = {"0.36": TOOLS.python_v0, "1.x": TOOLS.python_v1, "2.x": TOOLS.python_v2}
PYTHONS = VERSIONS | {"2.x without hf_xet": TOOLS.python_without_xet}
REPOS = fixtures.EVERYDAY + fixtures.SHARED


def describe_without_xet(cache):
    """Describe a cache, but for the Xet hashes in trees, which no server tells since clients would use them."""
    described = describe(cache)
    for repo in described.values():
        for name, content in repo["trees"].items():
            tree = json.loads(content)
            for entry in tree["files"].values():
                entry.pop("xet_hash", None)
            repo["trees"][name] = tree
    return described


def folders_of(paths):
    return {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 1)}


def full_name(ref):
    """Return the full name of a ref. A cache does not tell tags from branches, so what looks like a version is a tag."""
    if ref.startswith("refs/"):
        return ref
    return f"refs/tags/{ref}" if ref.startswith("v1") else f"refs/heads/{ref}"


class Clients(ServeScenario):
    """Every version of the client with every kind of repo and ref."""

    def setUp(self):
        super().setUp()
        bucket = self.bucket()
        source = self.machine("source", bucket)
        # The fake Hub has no Xet store.
        source.env["HF_HUB_DISABLE_XET"] = "1"
        source.download(REPOS + fixtures.KERNELS)
        source.ours("push")
        self.server = self.machine("server", bucket)
        self.served = Served(self.server)

    def test_caches_are_as_if_downloaded_from_the_hub(self):
        for version, python in PYTHONS.items():
            with self.subTest(version):
                repos = REPOS if version == "0.36" else REPOS + fixtures.KERNELS
                plain, client = self.machine(f"hub {version}"), self.client_of(self.served, f"served {version}")
                plain.env["HF_HUB_DISABLE_XET"] = "1"
                plain.download(repos, python=python)
                client.download(repos, python=python)
                self.assertEqual(describe_without_xet(client.cache), describe_without_xet(plain.cache))
                self.assert_resolves(client, repos, python=python)
        # The server's own cache is that of a pull: clients find everything in it, too.
        self.assert_resolves(self.server, REPOS + fixtures.KERNELS)
        self.served.stop()

    def test_the_api_tells_what_the_hub_knows(self):
        repos = [fixtures.by_id("acme/paths"), *fixtures.TWINS, fixtures.by_id("acme/versions")]
        for version, python in PYTHONS.items():
            client, asked, expected = self.client_of(self.served, version), [], []
            for repo in repos if version == "0.36" else repos + fixtures.KERNELS:
                for ref in repo.refs:
                    paths, answer = self.expect(repo, ref)
                    asked.append({**request(repo, ref), "paths": paths})
                    expected.append(answer)
            self.assertEqual(client.client("browse", asked, python=python), expected, version)

    def expect(self, repo, ref):
        """Return paths to ask for, and what `browse` returns about this revision."""
        commit = repo.refs[ref]
        contents = repo.commits[commit]
        first = sorted(contents)[-1]
        folders = [[path, "folder"] for path in sorted(folders_of(contents))]
        entries = {}
        for path, file in contents.items():
            entry = file.tree_entry(path)
            entries[path] = [path, entry["size"], entry["oid"], file.sha256 if file.lfs else None]
        everything = sorted([*entries.values(), *folders])
        expected = {
            "id": repo.id,
            "sha": commit,
            "siblings": {path: entry[1:] for path, entry in entries.items()},
            "tree": everything,
            "expanded": everything,
            "top": [entry for entry in everything if "/" not in entry[0]],
            "paths": sorted([entries[first], *folders[:1]]),
            "refs": {full_name(name): target for name, target in repo.refs.items()},
        }
        if repo.kind == "kernel":
            expected["siblings"] = {path: [None, None, None] for path in contents}
        else:
            expected["files"] = sorted(contents)
            read = {"sha256": contents[first].sha256, "names": [first]}
            expected["read"] = read | dict.fromkeys(("blocks", "rest", "end"), True)
        return [first, "no such file", *[path for path, _ in folders[:1]]], expected


class Transfers(ServeScenario):
    """One large file, on a bucket that can be slow and damage what it sends."""

    def setUp(self):
        super().setUp()
        self.shared_bucket = self.bucket()
        self.repo = fixtures.by_id("acme/large")
        ((self.commit, self.files),) = self.repo.commits.items()
        self.weights = self.files["model.safetensors"]
        self.source = self.machine("source", self.shared_bucket)
        self.source.download([self.repo])
        self.source.ours("push")
        self.relay = Relay(self.shared_bucket.server.endpoint)
        self.addCleanup(self.relay.close)
        self.server = self.machine("server", self.shared_bucket)
        self.server.env["B2_ENDPOINT"] = self.relay.endpoint

    def start_all(self, served, requests=None):
        """Start a download with each version of the client, each into its own cache."""
        started = {}
        for version, python in VERSIONS.items():
            client = self.client_of(served, f"{version} at {served.address}")
            started[version] = (client, self.start_download(client, python, *(requests or [request(self.repo, "main")])))
        return started

    def put(self, path, data):
        key = f"blobs/{self.files[path].etag}"
        self.shared_bucket._client.put_object(Bucket=self.shared_bucket.name, Key=key, Body=data)

    def damage(self, path, at):
        """Flip one byte of a blob in the bucket."""
        data = bytearray(self.files[path].data)
        data[at] ^= 1
        self.put(path, bytes(data))

    def repair(self, path):
        self.put(path, self.files[path].data)

    def bytes_of(self, machine):
        """Return the size of what a client has of the large file. Clients write 10 MiB at a time."""
        blobs = machine.cache / folder(self.repo) / "blobs"
        return sum(path.stat().st_size for path in blobs.glob(f"{self.weights.etag}*"))

    def assert_complete(self, machine):
        """Assert that a cache has the whole repo."""
        snapshot = machine.cache / folder(self.repo) / "snapshots" / self.commit
        found = {path: sha256(file) for path, file in files(snapshot).items()}
        self.assertEqual(found, {path: file.sha256 for path, file in self.files.items()})
        self.assertEqual((machine.cache / folder(self.repo) / "refs" / "main").read_text(), self.commit)

    def assert_no_bad_bytes(self, machine):
        """Assert that no blob or file of a snapshot has other bytes than the Hub's."""
        right = {file.etag: file.sha256 for file in self.files.values()}
        for repo in describe(machine.cache, modes=False).values() if machine.cache.exists() else ():
            for name, (found, _) in repo["blobs"].items():
                if not name.endswith(".incomplete"):
                    self.assertEqual(found, right[name])
            for path, (_, found) in repo["snapshots"].items():
                self.assertEqual(found, self.files[path.split("/", 1)[1]].sha256)

    def test_clients_that_share_the_cache_download_nothing(self):
        served = Served(self.server)
        self.relay.hold(1 << 20)
        clients = []
        for version in ("1.x", "2.x", "2.x"):
            client = self.client_of(served, f"{version} {len(clients)}", cache=self.server.cache)
            clients.append(self.start_download(client, VERSIONS[version], request(self.repo, "main")))
        self.wait_until("all clients", lambda: len(served.requests("HEAD", "model.safetensors")) == len(clients))
        self.relay.release()
        for client in clients:
            finish(client)
        self.assertEqual(served.requests("GET", "/resolve/"), [])
        self.assertEqual(describe_without_xet(self.server.cache), describe_without_xet(self.source.cache))
        self.assert_complete(self.server)
        served.stop()

    def test_what_cannot_be_shared_is_streamed(self):
        """0.36 asks under its lock, and forced downloads and those into folders do not look into the cache."""
        served = Served(self.server)
        old = self.client_of(served, "old", cache=self.server.cache)
        old.client("download", [request(self.repo, "main")], python=TOOLS.python_v0)
        self.assertEqual(len(served.requests("GET", "model.safetensors")), 1)
        self.assert_complete(self.server)
        for version, python in VERSIONS.items():
            client = self.client_of(served, version, cache=self.server.cache)
            target = self.root / f"folder {version}"
            forced = request(self.repo, "main", filename="model.safetensors", force_download=True)
            into = request(self.repo, "main", local_dir=str(target))
            client.client("download", [forced, into], python=python)
            self.assertEqual({path: sha256(target / path) for path in self.files}, {
                path: file.sha256 for path, file in self.files.items()
            })
            self.assert_complete(self.server)
        served.stop()

    def test_damage_in_the_bucket_reaches_no_client(self):
        self.damage("model.safetensors", 100)
        self.damage("config.json", 1)
        served = Served(self.server)
        started = self.start_all(served)
        for _, process in started.values():
            self.assertNotEqual(finish(process, code=None).returncode, 0)
        for version, (client, _) in started.items():
            self.assert_no_bad_bytes(client)
            requests = [request(self.repo, "main", filename=path) for path in ("config.json", "model.safetensors")]
            found = client.client("errors", requests, python=VERSIONS[version])
            self.assertNotIn(None, found)
            self.assertNotIn("EntryNotFoundError", found)
            self.assert_no_bad_bytes(client)
        self.assert_no_bad_bytes(self.server)
        served.stop()
        self.repair("model.safetensors")
        self.repair("config.json")
        again = Served(self.server, listen=served.address)
        for version, (client, _) in started.items():
            client.client("download", [request(self.repo, "main")], python=VERSIONS[version])
            self.assert_complete(client)
        self.assert_complete(self.server)
        again.stop()

    def start_and_hold(self, is_damaged):
        """Return a server and clients which have some of the large file, perhaps with a wrong byte."""
        if is_damaged:
            self.damage("model.safetensors", 100)
        self.relay.hold(24 << 20)
        served = Served(self.server)
        started = self.start_all(served, [request(self.repo, "main", filename="model.safetensors")])
        for version, (client, process) in started.items():
            self.wait_until(f"bytes for {version}", lambda: self.bytes_of(client) >= 10 << 20)
            self.assertIsNone(process.poll())
        return served, started

    def check_that_all_complete(self, started):
        for version, (client, _) in started.items():
            client.client("download", [request(self.repo, "main")], python=VERSIONS[version])
            self.assert_complete(client)
        self.assert_complete(self.server)

    def check_killed_clients(self, is_damaged):
        served, started = self.start_and_hold(is_damaged)
        for _, process in started.values():
            process.kill()
        self.repair("model.safetensors")
        self.relay.release()
        self.check_that_all_complete(started)
        served.stop()

    def test_killed_clients_resume(self):
        self.check_killed_clients(is_damaged=False)

    def test_killed_clients_with_wrong_bytes_start_again(self):
        self.check_killed_clients(is_damaged=True)

    def check_killed_server(self, is_damaged):
        served, started = self.start_and_hold(is_damaged)
        served.kill()
        self.repair("model.safetensors")
        self.relay.release()
        again = Served(self.server, listen=served.address)
        for client, process in started.values():
            # Those that did not outlive the server must not have taken what it sent for the file.
            finish(process, code=None)
            self.assert_no_bad_bytes(client)
        self.check_that_all_complete(started)
        again.stop()

    def test_a_killed_server_is_resumed(self):
        self.check_killed_server(is_damaged=False)

    def test_after_a_killed_server_nobody_keeps_wrong_bytes(self):
        self.check_killed_server(is_damaged=True)

    def test_damage_on_the_wire_is_repaired(self):
        served = Served(self.server)
        self.relay.flip_once(2 << 20)
        started = self.start_all(served)
        for version, (client, process) in started.items():
            # 0.36 gives up when a connection breaks, and resumes when it is called again.
            finish(process, code=None if version == "0.36" else 0)
            self.assert_no_bad_bytes(client)
        self.assertEqual(self.relay.flipped, 1)
        self.check_that_all_complete(started)
        served.stop()


class Answers(ServeScenario):
    """What single requests are answered, and what clients make of files that are not there."""

    def setUp(self):
        super().setUp()
        self.shared_bucket = self.bucket(TOOLS.s3s_fs)
        self.server = self.machine("server", self.shared_bucket)

    def push(self, name, repos, *, python=TOOLS.python_v2, by=Machine.ours, **patterns):
        """Push repos from a machine that has downloaded their main branches, perhaps partly."""
        source = self.machine(name, self.shared_bucket)
        source.client("download", [request(repo, "main", **patterns) for repo in repos], python=python)
        by(source, "push")

    def ask(self, served, method, path, **headers):
        """Send one request, and return the status, the headers and the body."""
        connection = HTTPConnection(served.address, timeout=30)
        self.addCleanup(connection.close)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def test_manifests_of_the_original_are_served(self):
        """They have no trees, so nobody knows whether they are complete."""
        repos = fixtures.PLAIN
        self.push("source", repos, by=Machine.original)
        served = Served(self.server)
        for version, python in PYTHONS.items():
            client = self.client_of(served, version)
            requests = [request(repo, "main") for repo in repos]
            client.client("download", requests, python=python)
            expected = [
                {path: file.sha256 for path, file in repo.commits[repo.refs["main"]].items()} for repo in repos
            ]
            self.assertEqual(client.client("resolve", requests, python=python), expected)
            self.assertEqual(client.client("scan", python=python)["warnings"], [])
            self.assertEqual(list(client.cache.rglob("trees/*")), [])
        self.assertEqual(self.server.client("resolve", requests), expected)
        self.assertEqual(self.server.client("scan")["warnings"], [])
        served.stop()

    def test_of_a_part_without_a_tree_nothing_is_concluded(self):
        repo = fixtures.by_id("acme/large")
        self.push("part", [repo], python=TOOLS.python_v0, by=Machine.original, allow_patterns=["config.json"])
        served = Served(self.server, "--refresh", "0")
        clients = {version: self.client_of(served, version) for version in PYTHONS}
        for version, client in clients.items():
            client.client("download", [request(repo, "main")], python=PYTHONS[version])
            missing = [request(repo, "main", filename=name) for name in ("extra.bin", "nothing.txt")]
            for error in client.client("errors", missing, python=PYTHONS[version]):
                self.assertIn("EntryNotFound", error)
        # Once the rest has been pushed, everybody gets it.
        self.push("whole", [repo])
        for version, client in clients.items():
            client.download([repo], python=PYTHONS[version])
            self.assert_resolves(client, [repo], python=PYTHONS[version])
            self.assertEqual(list(client.cache.rglob(".no_exist/**/*.*")), [])
        served.stop()

    def test_of_a_tree_absence_is_concluded(self):
        repo = fixtures.by_id("acme/large")
        self.push("part", [repo], allow_patterns=["config.json"])
        served = Served(self.server)
        for version, python in PYTHONS.items():
            client = self.client_of(served, version)
            wanted = [request(repo, "main", filename=name) for name in ("nothing.txt", "extra.bin")]
            before = len(served.requests("GET", "extra.bin"))
            absent, never_pushed, whole = client.client("errors", [*wanted, request(repo, "main")], python=python)
            self.assertIn("EntryNotFound", absent)
            # Not that it does not exist, nor that the Hub cannot be reached.
            self.assertEqual((never_pushed, whole), ("HfHubHTTPError", "HfHubHTTPError"), version)
            self.assertEqual(len(served.requests("GET", "extra.bin")) - before, 2, "a request was repeated")
            remembered = [path.name for path in client.cache.rglob(".no_exist/*/*")]
            self.assertEqual(remembered, ["nothing.txt"])
            self.assertNotIn("extra.bin", [path.name for path in client.cache.rglob("*")])
        served.stop()

    def test_ranges(self):
        repo = fixtures.by_id("acme/tiny")
        self.push("source", [repo, fixtures.by_id("acme/paths")])
        served = Served(self.server)
        data = repo.commits[repo.refs["main"]]["data.bin"].data
        size = len(data)
        parts = {
            "bytes=0-0": (0, 1),
            "bytes=0-100000": (0, 100_001),
            "bytes=150000-": (150_000, size),
            f"bytes={size - 1}-{size + 9}": (size - 1, size),
            "bytes=-7": (size - 7, size),
            "bytes=0-": (0, size),
        }
        for _ in ("while it arrives", "from the cache"):
            for wanted, (start, end) in parts.items():
                status, headers, body = self.ask(served, "GET", "/acme/tiny/resolve/main/data.bin", Range=wanted)
                self.assertEqual((status, body), (206, data[start:end]), wanted)
                self.assertEqual(headers["Content-Range"], f"bytes {start}-{end - 1}/{size}")
                self.assertEqual(headers["Accept-Ranges"], "bytes")
        status, headers, body = self.ask(served, "GET", "/acme/tiny/resolve/main/data.bin", Range=f"bytes={size}-")
        self.assertEqual((status, headers["Content-Range"], body), (416, f"bytes */{size}", b""))
        for name in ("empty.txt", "empty.bin"):
            status, headers, body = self.ask(served, "GET", f"/acme/paths/resolve/main/{name}")
            self.assertEqual((status, headers["Content-Length"], body), (200, "0", b""))
            status, headers, body = self.ask(served, "GET", f"/acme/paths/resolve/main/{name}", Range="bytes=0-0")
            self.assertEqual((status, headers["Content-Range"], body), (200, "bytes */0", b""))
        served.stop()

    def test_the_size_of_a_huge_file(self):
        """Above 50 GB, clients refuse plain HTTP, but from 1.33 on only if they are told the size."""
        repo, size = fixtures.by_id("acme/large"), 60_000_000_000
        self.push("source", [repo])
        ((key, manifest),) = self.shared_bucket.manifests().items()
        for entry in manifest["files"]:
            if entry["path"] == "model.safetensors":
                entry["size"] = size
        manifest["tree"]["files"]["model.safetensors"] |= {"size": size, "lfs_size": size}
        self.shared_bucket._client.put_object(
            Bucket=self.shared_bucket.name, Key=key, Body=json.dumps(manifest).encode()
        )
        served = Served(self.server)
        status, headers, _ = self.ask(served, "HEAD", "/acme/large/resolve/main/model.safetensors")
        self.assertEqual((status, headers["Content-Length"], headers["X-Linked-Size"]), (200, str(size), str(size)))
        for version, python in VERSIONS.items():
            client = self.client_of(served, version)
            (error,) = client.client("errors", [request(repo, "main", filename="model.safetensors")], python=python)
            # The bucket has only a small blob, so the download itself cannot succeed.
            refused = version == "0.36"
            self.assertEqual(len(served.requests("GET", "model.safetensors")) == 0, refused, version)
            self.assertEqual(error == "ValueError", refused, f"{version}: {error}")
        served.stop()

    def test_a_moved_branch(self):
        repo = fixtures.by_id("acme/versions")
        old, new = repo.refs["main"], repo.refs["v1.0"]
        source = self.machine("source", self.shared_bucket)
        source.download([repo])
        source.ours("push")
        served = Served(self.server, "--refresh", "0")
        client = self.client_of(served, "client")
        head = self.server.cache / folder(repo) / "refs" / "main"
        client.client("download", [request(repo, "main", filename="config.json")])
        self.assertEqual(head.read_text(), old)
        self.shared_bucket._client.put_object(
            Bucket=self.shared_bucket.name, Key="refs/acme__versions/main", Body=new.encode()
        )
        for revision in ("main", old, new[:8]):
            (path,) = client.client("download", [request(repo, revision, filename="model.safetensors")])
            self.assertIn(f"/{old if revision == old else new}/", path)
        self.assertEqual(head.read_text(), new)
        self.assertEqual((client.cache / folder(repo) / "refs" / "main").read_text(), new)
        served.stop()

    def test_libraries_load_by_id(self):
        # `datasets` also asks for exported data at a name that it makes of the endpoint's and that nobody has.
        self.known_egress = ("datasets-server.127.0.0.1",)
        self.push("source", fixtures.LOADABLE)
        served = Served(self.server)
        expected = {
            "transformers": (fixtures.LOADABLE_MODEL, {"layers": 3, "tokens": [1, 2], "weights": 5000}),
            "diffusers": (fixtures.LOADABLE_PIPELINE, 7),
            "datasets": (fixtures.LOADABLE_DATASET, ROWS),
        }
        for library, (repo, result) in expected.items():
            client = self.client_of(served, library)
            # Otherwise, `datasets` counts its loads at s3.amazonaws.com. The documentation says so.
            client.env["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
            loaded = client.run(TOOLS.python_libraries, HERE / "load.py", library, repo.id)
            self.assertEqual(json.loads(loaded.stdout), result, loaded.stderr)
        served.stop()


class FromTheHub(ServeScenario):
    """What the bucket lacks comes from the Hub, and goes to the bucket."""

    def setUp(self):
        super().setUp()
        self.shared_bucket = self.bucket()
        self.server = self.machine("server", self.shared_bucket)

    def test_once_for_all_clients_and_then_for_everybody(self):
        repo = fixtures.by_id("acme/large")
        gate = TOOLS.hub.hold(repo.commits[repo.refs["main"]]["model.safetensors"])
        before = TOOLS.hub.bodies
        served = Served(self.server, "--fallback", "hf-hub", "--push")
        clients = {version: self.client_of(served, version) for version in VERSIONS}
        started = [
            self.start_download(client, VERSIONS[version], request(repo, "main")) for version, client in clients.items()
        ]
        self.wait_until("all clients", lambda: len(served.requests("HEAD", "model.safetensors")) == len(clients))
        self.assertTrue(gate.reached.wait(60))
        TOOLS.hub.drop(repo.commits[repo.refs["main"]]["model.safetensors"])
        for process in started:
            finish(process)
        self.assertEqual(TOOLS.hub.bodies - before, 3)
        for version, client in clients.items():
            self.assert_resolves(client, [repo], python=VERSIONS[version])
        served.stop()

        old = self.machine("old", self.shared_bucket)
        old.original("pull", repo.id)
        (found,) = old.client("resolve", [request(repo, "main")])
        self.assertEqual(found, {path: file.sha256 for path, file in repo.commits[repo.refs["main"]].items()})
        again = Served(self.machine("second server", self.shared_bucket))
        client = self.client_of(again, "client of the bucket")
        client.download([repo])
        self.assert_resolves(client, [repo])
        again.stop()

    def test_the_rest_of_a_part_comes_from_the_hub(self):
        repo = fixtures.by_id("acme/large")
        part = self.machine("part", self.shared_bucket)
        part.client("download", [request(repo, "main", filename="config.json")], python=TOOLS.python_v0)
        part.original("push")
        served = Served(self.server, "--fallback", "hf-hub", "--push")
        for version, python in VERSIONS.items():
            client = self.client_of(served, version)
            client.download([repo], python=python)
            self.assert_resolves(client, [repo], python=python)
        served.stop()
        target = self.machine("target", self.shared_bucket)
        self.pull_all_refs(target, [repo])
        self.assert_resolves(target, [repo])

    def test_gated_repos_are_not_published(self):
        repo = Repo("acme/gated")
        terms = b"META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nYou must accept these terms.\n"
        repo.commit({"LICENSE": File(terms), "config.json": File(b"{}\n")}, "main")
        TOOLS.hub.repos["model", repo.id] = repo
        self.addCleanup(TOOLS.hub.repos.pop, ("model", repo.id))
        served = Served(self.server, "--fallback", "hf-hub", "--push")
        client = self.client_of(served, "client")
        # Without the file that shows it.
        client.client("download", [request(repo, "main", filename="config.json")])
        served.stop()
        self.assertEqual([key for key in self.shared_bucket.keys() if "gated" in key], [])
