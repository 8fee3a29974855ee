"""Loading pulled repos offline: by id with transformers and diffusers, by the printed path with datasets."""

import json

import fixtures
from harness import HERE, TOOLS, Scenario

ROWS = [{"text": "one", "label": 0}, {"text": "two", "label": 1}, {"text": "three", "label": 0}]


class Loading(Scenario):
    """Checks every claim in the README's section "What loads after a pull"."""

    def setUp(self):
        super().setUp()
        bucket = self.bucket()
        source, self.target = self.machine("source", bucket), self.machine("target", bucket)
        source.download(fixtures.LOADABLE)
        source.ours("push")

    def pull(self, repo):
        return str(self.target.pull(repo, "main"))

    def load(self, library, name):
        env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.target.home / "hf")}
        return json.loads(self.target.run(TOOLS.python_libraries, HERE / "load.py", library, name, **env).stdout)

    def test_transformers_loads_by_id(self):
        repo = fixtures.LOADABLE_MODEL
        snapshot = self.pull(repo)
        expected = {"layers": 3, "tokens": [1, 2], "weights": 5000}
        self.assertEqual(self.load("transformers", repo.id), expected)
        self.assertEqual(self.load("transformers", snapshot), expected)

    def test_diffusers_loads_by_id(self):
        repo = fixtures.LOADABLE_PIPELINE
        self.pull(repo)
        self.assertEqual(self.load("diffusers", repo.id), 7)

    def test_datasets_loads_by_the_printed_path(self):
        snapshot = self.pull(fixtures.LOADABLE_DATASET)
        self.assertEqual(self.load("datasets", snapshot), ROWS)

    def test_datasets_does_not_load_by_id(self):
        repo = fixtures.LOADABLE_DATASET
        self.pull(repo)
        # Offline, `datasets` only looks in its own cache of prepared data. Update the README if this changes.
        self.assertEqual(self.load("datasets", repo.id), "ConnectionError")
