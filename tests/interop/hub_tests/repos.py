"""The repositories on huggingface.co that huggingface_hub's own tests read. Their ids, revisions and paths are the real
ones; their contents are made up, since the tests mostly do not depend on them."""

import json
import struct

from hub import File, Repo

LFS = (".bin", ".ckpt", ".gz", ".h5", ".msgpack", ".safetensors")


def file(path, data):
    """Return a file, in LFS if the Hub would keep it there."""
    return File(data, lfs=path.endswith(LFS))


def named(*paths, revision=""):
    """Return files that contain their own paths. With a revision, their contents differ from those of others."""
    return {path: file(path, f"{revision}{path}\n".encode()) for path in paths}


def repo(repo_id, *commits, kind="model"):
    """Return a repo with these commits: each a hash (or None, if no test knows it), its files, and the refs to it."""
    made = Repo(repo_id, kind)
    for commit, contents, *refs in commits:
        commit = commit or made.hash(contents)
        made.commits[commit] = contents
        made.refs.update(dict.fromkeys(refs, commit))
    return made


def padded_json(size):
    return b'{"model_type": "roberta"}'.ljust(size - 1) + b"\n"


def safetensors(tensors, header_size=0):
    """Return a safetensors file with a header that describes these tensors (type, shape), but without their data."""
    header = {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape) in tensors.items():
        size = 2 * shape[0]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    encoded = json.dumps(header).encode().ljust(header_size)
    return struct.pack("<Q", len(encoded)) + encoded


def dummy_model():
    paths = [".gitattributes", "README.md", "flax_model.msgpack", "merges.txt", "tf_model.h5", "vocab.json"]

    def contents(revision, config_size):
        weights = File(revision.encode().ljust(65074, b"\0"), lfs=True)
        return named(*paths, revision=revision) | {
            "config.json": File(padded_json(config_size)),
            "pytorch_model.bin": weights,
        }

    return repo(
        "julien-c/dummy-unknown",
        ("f2c752cfc5c0ab6f4bdec59acea69eefbee381c2", contents("one", 851)),
        ("44c70f043cfe8162efc274ff531575e224a0e6f0", contents("two", 700)),
        (None, contents("three", 496), "main"),
        (None, contents("four", 500), "refs/pr/1"),
    )


def cache_layout():
    texts = {number: File(f"File {number}\n".encode()) for number in range(4)}

    def contents(*numbers):
        return named(".gitattributes") | {f"file_{number}.txt": texts[number] for number in numbers}

    return repo(
        "hf-internal-testing/hfh-cache-layout",
        (None, contents(0), "main"),
        ("5e23cb3ae7f904919a442e1b27dcddae6c6bc292", contents(0, 1, 2), "file-2"),
        ("78aa2ebdb60bba086496a8792ba506e58e587b4c", contents(0, 1, 3), "file-3"),
    )


def scanned_model():
    first, readme = named(".gitattributes"), named("README.md")
    return repo(
        "hf-internal-testing/hfh_ci_scan_repo_a",
        ("f95875cd910793299a545417cc4b3c9055202883", first),
        ("c0d57e03d9f128062eadb6665618982db612b2e3", first | readme, "main"),
        ("1a665a9d28a66b1d0f8edd9359fc824aacc63234", first | readme | named("another.txt"), "refs/pr/1"),
    )


def sharded_model():
    count, third = 7241732096, 989888512
    shards = {number: {f"model.layers.{number}.weight": ("BF16", [1000])} for number in range(1, 8)}
    shards[3] = {
        "model.layers.10.input_layernorm.weight": ("BF16", [4096]),
        "model.layers.10.mlp.weight": ("BF16", [third - 4096]),
    }
    shards[8] = {"lm_head.weight": ("BF16", [count - third - 6000])}
    names = {number: f"model-{number:05}-of-00008.safetensors" for number in shards}
    weight_map = {tensor: names[number] for number, tensors in shards.items() for tensor in tensors}
    index = json.dumps({"metadata": {"total_size": 2 * count}, "weight_map": weight_map}).encode()
    contents = {name: file(name, safetensors(shards[number])) for number, name in names.items()}
    contents["model.safetensors.index.json"] = File(index)
    contents["pytorch_model-00001-of-00008.bin"] = File(b"not safetensors, but a pickle", lfs=True)
    return repo("HuggingFaceH4/zephyr-7b-beta", (None, contents, "main"))


def unsharded_models():
    tensors = {f"h.{number}.weight": ("F16", [1]) for number in range(291)}
    tensors["h.0.input_layernorm.bias"] = ("F16", [1024])
    tensors["word_embeddings.weight"] = ("F16", [559214592 - 1024 - 291])
    bloomz = {"model.safetensors": file("model.safetensors", safetensors(tensors))}
    many = {f"model.layers.{number}.weight": ("U8", [16]) for number in range(852)}
    # As large as what clients ask for at first.
    large = {"model-00008-of-00282.safetensors": File(safetensors(many, header_size=100_000), lfs=True)}
    return [
        repo("bigscience/bloomz-560m", (None, bloomz, "main")),
        repo("nvidia/GLM-5-NVFP4", ("dc54ff55a7e9e71b85db953d8bc22eca894b44c6", large)),
        repo(
            "huggingface-hub-ci/test_safetensors_metadata",
            (None, named("README.md"), "main"),
            (None, named("README.md") | bloomz, "refs/pr/1"),
        ),
    ]


def datasets():
    card = {"README.md": File(b"---\nlicense: mit\ntags:\n- test\n---\n# Dataset\n")}
    rows = named("custom_squad.py", "data/train.bin")
    return [
        repo(
            "gaia-benchmark/GAIA",
            ("c603981e170e9e333934a39781d2ae3a2677e81f", card, "test-branch"),
            (None, card | rows, "main"),
            kind="dataset",
        ),
        repo("lhoestq/custom_squad", (None, card | rows, "main"), kind="dataset"),
        repo(
            "allenai/c4",
            ("607bd4c8450a42878aa9ddc051a65a055450ef87", card | named("en/c4-train.00001-of-01024.json.gz")),
            kind="dataset",
        ),
        repo(
            "bigcode/admin",
            (None, card, "main"),
            (None, named("default/train/0000.parquet"), "refs/convert/parquet"),
            kind="dataset",
        ),
    ]


def listed_models():
    paths = [".gitattributes", "README.md", "model_index.json", "openjourney-v4.ckpt"]
    folders = ["feature_extractor", "safety_checker", "scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    paths += [f"{folder}/config.json" for folder in folders]
    return [
        repo("gpt2", (None, named("config.json"), "main")),
        repo("prompthero/openjourney-v4", ("c9211c53404dd6f4cfac5f04f33535892260668e", named(*paths))),
        repo(
            "openchat/openchat_3.5",
            (None, named("config.json"), "main"),
            (None, named("config.json", revision="one"), "refs/pr/1"),
            (None, named("config.json", revision="two"), "refs/pr/2"),
        ),
    ]


def others():
    paths = [".gitattributes", "README.md", "benchmarks/benchmark.py"]
    kernel = [(None, named(*paths), "main"), (None, named(*paths, revision="v1"), "v1")]
    return [
        # Not renamed here.
        repo("hf-internal-testing/dummy-will-be-renamed", (None, named("config.json"), "main")),
        repo("kernels-community/relu", *kernel, kind="kernel"),
    ]


REPOS = [dummy_model(), cache_layout(), scanned_model(), sharded_model()]
REPOS += [*unsharded_models(), *datasets(), *listed_models(), *others()]
