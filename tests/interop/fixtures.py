"""The repositories on the fake Hub, chosen so that each hard case of the cache occurs once."""

import base64
import random

from hub import File, Repo


def weights(seed, size):
    """Return an LFS file with reproducible, incompressible bytes."""
    return File(random.Random(seed).randbytes(size), lfs=True)


def text(value):
    return File(value.encode())


def _tiny(kind):
    """A model, dataset, space or kernel with the same name, each with its own content."""
    repo = Repo("acme/tiny", kind)
    repo.commit({"README.md": text(f"# a {kind}\n"), "data.bin": weights(kind, 200_000)}, "main")
    return repo


def _paths():
    repo = Repo("acme/paths")
    shared = text("the same bytes under two names\n")
    files = {
        ".gitattributes": text("*.bin filter=lfs\n"),
        "empty.txt": text(""),
        "empty.bin": File(b"", lfs=True),
        "a.json": shared,
        "copies/b.json": shared,
        "one/two/three/four/five/six/deep.txt": text("deep\n"),
        "模型/größe – naïve 🤗.txt": text("non-ASCII\n"),
        "with space/50% + #1 (x) & [y]?.txt": text("punctuation\n"),
        "blobs/snapshots/refs/main": text("the names of the cache's own folders\n"),
    }
    repo.commit(files, "main")
    return repo


def _versions():
    """Commits that share a blob, with branches, a tag and a PR ref pointing to them."""
    repo = Repo("acme/versions")
    config = text('{"layers": 2}\n')
    repo.commit({"config.json": config, "model.safetensors": weights("v1", 300_000)}, "v1.0", "feature/old")
    repo.commit({"config.json": config, "model.safetensors": weights("v2", 300_000)}, "main")
    repo.commit({"config.json": text('{"layers": 3}\n')}, "refs/pr/1")
    return repo


def _simple(repo_id, kind="model"):
    repo = Repo(repo_id, kind)
    repo.commit({"config.json": text(f'{{"name": "{repo_id}"}}\n'), "model.bin": weights(repo_id, 100_000)}, "main")
    return repo


def _large():
    repo = Repo("acme/large")
    files = {"config.json": text("{}\n"), "extra.bin": weights("extra", 999)}
    files["model.safetensors"] = weights("large", 40 << 20)
    repo.commit(files, "main")
    return repo


def _shared():
    """Two repos with the same large Xet file, which the client keeps once in its shared store."""
    data = random.Random("shared").randbytes(2_000_000)
    repos = []
    for name in ("acme/shared", "acme/shared-finetune"):
        repo = Repo(name)
        repo.commit({"config.json": text(f"{name}\n"), "model.safetensors": File(data, lfs=True, xet=True)}, "main")
        repos.append(repo)
    return repos


def _loadable_model():
    """The files that `transformers` reads without PyTorch (a configuration and a three-word tokenizer), and weights."""
    repo = Repo("acme/loadable")
    vocabulary = '{"[UNK]": 0, "hello": 1, "world": 2}'
    files = {
        "config.json": text('{"model_type": "bert", "num_hidden_layers": 3}\n'),
        "tokenizer.json": text(
            '{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, '
            '"pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null, '
            f'"model": {{"type": "WordLevel", "vocab": {vocabulary}, "unk_token": "[UNK]"}}}}\n'
        ),
        "tokenizer_config.json": text('{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}\n'),
        "model.safetensors": weights("loadable", 5000),
    }
    repo.commit(files, "main")
    return repo


def _loadable_pipeline():
    repo = Repo("acme/pipeline")
    files = {
        "model_index.json": text('{"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"]}\n'),
        "scheduler/scheduler_config.json": text('{"_class_name": "DDPMScheduler", "num_train_timesteps": 7}\n'),
    }
    repo.commit(files, "main")
    return repo


# Three rows of `text` and `label`, written by pyarrow without compression, dictionary or statistics.
_PARQUET = """
UEFSMRUAFToVOiwVBhUAFQYVBhwAAAACAAAABgEDAAAAb25lAwAAAHR3bwUAAAB0aHJlZRUAFSQVJCwVBhUAFQYVBhwAAAACAAAABgEAAAAAAQAAAAAA
AAAVBBk8NQAYBnNjaGVtYRUEABUMJQIYBHRleHQlAEwcAAAAFQIlAhgFbGFiZWwlHkysEwgRAAAAFgYZHBksJgAcFQwZJQYAGRgEdGV4dBUAFgYWYBZg
JghJHBUAFQAVAgA8FhYZBhkmAAYAAAAmABwVAhklBgAZGAVsYWJlbBUAFgYWShZKJmhJHBUAFQAVAgA8KQYZJgAGAAAAFqoBFgYmCBaqAQAoIHBhcnF1
ZXQtY3BwLWFycm93IHZlcnNpb24gMjYuMC4xGSwcAAAcAAAA0AAAAFBBUjE=
"""


def _loadable_dataset():
    repo = Repo("acme/rows", "dataset")
    table = File(base64.b64decode(_PARQUET), lfs=True)
    repo.commit({"README.md": text("# Rows\n"), "data/train-00000-of-00001.parquet": table}, "main")
    return repo


# Ids that share their bucket keys with no other id: 0.1.0 handles these.
PLAIN = [_simple("gpt2"), _simple("acme/corpus", "dataset"), _versions(), _paths(), _large()]
# Ids whose bucket keys collide or decode to another id.
TWINS = [_tiny("model"), _tiny("dataset"), _tiny("space")]
UNDERSCORES = [_simple("team__a/under__score"), _simple("a_/b"), _simple("a/_b")]
KERNELS = [_tiny("kernel")]
SHARED = _shared()
# Repos that the libraries built on huggingface_hub can load.
LOADABLE_MODEL, LOADABLE_PIPELINE, LOADABLE_DATASET = _loadable_model(), _loadable_pipeline(), _loadable_dataset()
LOADABLE = [LOADABLE_MODEL, LOADABLE_PIPELINE, LOADABLE_DATASET]
EVERYDAY = PLAIN + TWINS + UNDERSCORES


def by_id(repo_id, kind="model"):
    return next(repo for repo in EVERYDAY + KERNELS + SHARED if (repo.id, repo.kind) == (repo_id, kind))
