"""Calls the real huggingface_hub client. Run by the interpreter that has the client version under test.

Usage: `python client.py ACTION ARGUMENTS`, with the arguments as one JSON value. Prints the result as JSON.
The cache and the endpoint come from the environment (HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE).
"""

import hashlib
import json
import sys
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi, HfFileSystem, constants, hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.hf_api import RepoSibling

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


def browse(requests):
    """Return all that the client tells about each revision of a repo."""
    return [_browse_one(request) for request in requests]


def _browse_one(request):
    api, place = HfApi(), {name: request[name] for name in ("repo_id", "repo_type", "revision")}
    kind = place["repo_type"]
    info = api.repo_info(**place) if kind == "kernel" else api.repo_info(**place, files_metadata=True)
    siblings = {}
    for file in info.siblings:
        # Kernels have plain dictionaries.
        file = RepoSibling(**file) if isinstance(file, dict) else file
        siblings[file.rfilename] = [file.size, file.blob_id, file.lfs and file.lfs.sha256]
    tree = [_entry(entry) for entry in api.list_repo_tree(**place, recursive=True)]
    refs = api.list_repo_refs(place["repo_id"], repo_type=kind, include_pull_requests=True)
    described = {
        "id": info.id,
        "sha": info.sha,
        "siblings": siblings,
        "tree": sorted(tree),
        "expanded": sorted(_entry(entry) for entry in api.list_repo_tree(**place, recursive=True, expand=True)),
        "top": sorted(_entry(entry) for entry in api.list_repo_tree(**place)),
        "paths": sorted(_entry(entry) for entry in api.get_paths_info(paths=request["paths"], **place)),
        "refs": {
            ref.ref: ref.target_commit for ref in [*refs.branches, *refs.tags, *refs.converts, *refs.pull_requests]
        },
    }
    if kind != "kernel":
        described["files"] = sorted(api.list_repo_files(**place))
        api.auth_check(place["repo_id"], repo_type=kind)
        described["read"] = _read_as_file_system(place, request["paths"][0])
    return described


def _entry(entry):
    """Return a file's or folder's path and what identifies its content."""
    if not hasattr(entry, "blob_id"):
        return [entry.path, "folder"]
    return [entry.path, entry.size, entry.blob_id, entry.lfs and entry.lfs.sha256]


def _read_as_file_system(place, path):
    """Read one file with `HfFileSystem`: whole, from its end, and in small blocks. Return what was not as expected."""
    file_system = HfFileSystem()
    prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[place["repo_type"]]
    root = f"{prefix}{place['repo_id']}@{quote(place['revision'], safe='')}"
    whole = file_system.cat_file(f"{root}/{path}")
    with file_system.open(f"{root}/{path}", "rb", block_size=50_000) as file:
        blocks = b"".join(iter(lambda: file.read(30_000), b""))
        file.seek(len(whole) // 2)
        rest = file.read()
    names = [entry["name"].removeprefix(f"{root}/") for entry in file_system.ls(f"{root}/{path}")]
    end = file_system.cat_file(f"{root}/{path}", start=-5)
    parts = {"blocks": blocks == whole, "rest": rest == whole[len(whole) // 2 :], "end": end == whole[-5:]}
    return {"sha256": hashlib.sha256(whole).hexdigest(), "names": names, **parts}


def errors(requests):
    """Return the class of the error of each download, or None."""
    found = []
    for request in requests:
        try:
            _download_one(**request)
            found.append(None)
        except Exception as error:
            found.append(type(error).__name__)
    return found


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
    actions = {"browse": browse, "download": download, "errors": errors}
    action = (actions | {"resolve": resolve, "scan": scan, "delete": delete})[sys.argv[1]]
    json.dump(action(json.loads(sys.argv[2])), sys.stdout)
