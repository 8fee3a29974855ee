"""The fixtures of huggingface_hub's own tests, whose source distribution leaves this file out.

The tests read from `serve`. What they write in their setup is published to its bucket by another machine: from a fake
Hub through a real cache, with `hf-cache-sync push`.
"""

import fnmatch
import json
import os
import subprocess
from typing import Any

import pytest
from hub import Hub, Repo
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, snapshot_download
from huggingface_hub.hf_api import CommitInfo, RepoUrl
from repos import REPOS, file, named

from . import testing_constants
from .testing_utils import repo_name

# Both of the Hub's sites are `serve` here. Tests copy these names when they are imported.
testing_constants.ENDPOINT_PRODUCTION = testing_constants.ENDPOINT_STAGING = constants.ENDPOINT

RepoFactory = Any


class Publisher:
    """A machine that publishes repos to the bucket. It takes the place of what the client writes to the Hub."""

    def __init__(self):
        self._env = json.loads(os.environ["PUBLISHER"])
        self._hub = Hub([])
        self._hub.__enter__()

    def download(self, repo, *revisions):
        """Download these revisions of a repo from the fake Hub."""
        self._hub.repos[repo.kind, repo.id] = repo
        for revision in revisions:
            snapshot_download(
                repo.id,
                repo_type=repo.kind,
                revision=revision,
                endpoint=self._hub.endpoint,
                cache_dir=self._env["HF_HUB_CACHE"],
                token=False,
            )

    def push(self, *repo_ids):
        """Push these repos to the bucket, or all."""
        command = [os.environ["HF_CACHE_SYNC_BIN"], "push", *repo_ids]
        subprocess.run(command, env=self._env, check=True, stdout=subprocess.DEVNULL)

    def create_repo(self, api, repo_id, *, repo_type=None, **_):
        kind = repo_type or "model"
        repo_id = repo_id if "/" in repo_id else f"{testing_constants.USER}/{repo_id}"
        if (kind, repo_id) not in self._hub.repos:
            self._commit(Repo(repo_id, kind), named(".gitattributes"), "main")
        return RepoUrl(self._url(api, kind, repo_id), endpoint=api.endpoint)

    def create_branch(self, api, repo_id, *, branch, **_):
        repo = self._hub.repos["model", repo_id]
        repo.refs[branch] = repo.refs["main"]
        self._publish(repo, branch)

    def create_commit(
        self, api, repo_id, operations, *, commit_message, repo_type=None, revision="main", create_pr=False, **_
    ):
        repo = self._hub.repos[repo_type or "model", repo_id]
        revision = revision or "main"
        contents = dict(repo.commits[repo.refs[revision]])
        for operation in operations:
            path = operation.path_in_repo
            if isinstance(operation, CommitOperationAdd):
                with operation.as_file() as added:
                    contents[path] = file(path, added.read())
            elif isinstance(operation, CommitOperationDelete):
                del contents[path]
            else:
                raise NotImplementedError(operation)
        if create_pr:
            revision = f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in repo.refs)}"
        commit = self._commit(repo, contents, revision)
        url = f"{self._url(api, repo.kind, repo_id)}/commit/{commit}"
        return CommitInfo(url, commit_message, "", commit, _endpoint=api.endpoint)

    def _commit(self, repo, contents, ref):
        commit = repo.commit(contents, ref)
        self._publish(repo, ref)
        return commit

    def _publish(self, repo, ref):
        self.download(repo, ref)
        self.push(f"{repo.kind}:{repo.id}")

    @staticmethod
    def _url(api, kind, repo_id):
        return f"{api.endpoint}/{repo_id}" if kind == "model" else f"{api.endpoint}/{kind}s/{repo_id}"


PUBLISHER = Publisher()
HfApi.create_repo = lambda api, *arguments, **options: PUBLISHER.create_repo(api, *arguments, **options)
HfApi.create_branch = lambda api, *arguments, **options: PUBLISHER.create_branch(api, *arguments, **options)
HfApi.create_commit = lambda api, *arguments, **options: PUBLISHER.create_commit(api, *arguments, **options)
# Every repo has a name of its own, so none needs to go.
HfApi.delete_repo = lambda *_, **__: None


def pytest_configure(config):
    for marker in ("api", "git_lfs", "production", "transfer", "vcr", "xet"):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(config, items):
    """Deselect tests whose names (`module.py::Class::test`) match one of the patterns, whatever their parameters."""
    patterns = json.loads(os.environ["DESELECTED"])
    deselected = []
    for item in list(items):
        name = item.nodeid.split("[")[0].split("/")[-1]
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            items.remove(item)
            deselected.append(item)
    config.hook.pytest_deselected(items=deselected)


def pytest_sessionstart(session):
    for repo in REPOS:
        PUBLISHER.download(repo, *repo.commits, *repo.refs)
    PUBLISHER.push()


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path_factory):
    """Give each test its own cache, for those that do not name one."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))


@pytest.fixture(scope="session")
def api():
    return HfApi(endpoint=constants.ENDPOINT, token=testing_constants.TOKEN)


@pytest.fixture
def repo_factory(api):
    def create(repo_type="model", *, repo_id=None, **_):
        return api.create_repo(repo_id or repo_name(), repo_type=repo_type)

    return create
