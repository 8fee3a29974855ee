"""Calls the real huggingface_hub client. Run by the interpreter that has the client version under test.

Usage: `python client.py ACTION ARGUMENTS`, with the arguments as one JSON value. Prints the result as JSON.
The cache and the endpoint come from the environment (HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE).
"""

import hashlib
import json
import sys
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download


def download(requests):
    """Download each requested snapshot or file, and return the local paths."""
    return [_download_one(**request) for request in requests]


def _download_one(filename=None, xet=False, **request):
    if xet:
        _replace_xet_transfer(request["repo_id"], request.get("repo_type"))
    return hf_hub_download(filename=filename, **request) if filename else snapshot_download(**request)


def resolve(requests):
    """Return the files of each snapshot with their sha256 as the client finds them offline, or the error's name."""
    results = []
    for request in requests:
        try:
            root = Path(snapshot_download(local_files_only=True, **request))
        except Exception as error:
            results.append(type(error).__name__)
            continue
        files = [path for path in root.rglob("*") if not path.is_dir()]
        results.append({path.relative_to(root).as_posix(): _sha256(path) for path in files})
    return results


def scan(_):
    """Return the result of `scan_cache_dir`: its warnings, and the refs of each repo by commit."""
    info = scan_cache_dir()
    repos = {
        f"{repo.repo_type} {repo.repo_id}": {rev.commit_hash: sorted(rev.refs) for rev in repo.revisions}
        for repo in info.repos
    }
    return {"warnings": [str(warning) for warning in info.warnings], "repos": repos}


def delete(commits):
    """Delete these revisions as `hf cache rm` does."""
    scan_cache_dir().delete_revisions(*commits).execute()


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _replace_xet_transfer(repo_id, repo_type):
    """Fetch Xet files over HTTP, since the fake Hub has no Xet store. All else is real, even the shared store."""
    from huggingface_hub import file_download, hf_hub_url
    from huggingface_hub.utils import get_session

    def xet_get(*, incomplete_path, displayed_filename, **_):
        url = hf_hub_url(repo_id, displayed_filename, repo_type=repo_type, endpoint=constants.ENDPOINT)
        incomplete_path.write_bytes(get_session().get(url).raise_for_status().content)

    file_download.xet_get = xet_get
    file_download.is_xet_available = lambda: True


if __name__ == "__main__":
    action = {"download": download, "resolve": resolve, "scan": scan, "delete": delete}[sys.argv[1]]
    json.dump(action(json.loads(sys.argv[2])), sys.stdout)
