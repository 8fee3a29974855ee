"""Loads one repo offline with a library. Run by the interpreter that has the libraries.

Usage: `python load.py LIBRARY NAME`, where NAME is a repo id or a folder. Prints the result, or the class of the error,
as JSON.
"""

import json
import sys


def datasets(name):
    """Return the rows of the training split."""
    from datasets import load_dataset

    return load_dataset(name, split="train").to_list()


def transformers(name):
    """Return data from a model's configuration, tokenizer and weights file (PyTorch is too large for a test)."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import cached_file

    config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    with open(cached_file(name, "model.safetensors"), "rb") as weights:
        size = len(weights.read())
    return {"layers": config.num_hidden_layers, "tokens": tokenizer("hello world")["input_ids"], "weights": size}


def diffusers(name):
    """Return a value from the configuration of one component of a pipeline."""
    from diffusers.configuration_utils import ConfigMixin

    class Scheduler(ConfigMixin):
        config_name = "scheduler_config.json"

    return Scheduler.load_config(name, subfolder="scheduler")["num_train_timesteps"]


if __name__ == "__main__":
    library = {"datasets": datasets, "diffusers": diffusers, "transformers": transformers}[sys.argv[1]]
    try:
        result = library(sys.argv[2])
    except Exception as error:
        result = type(error).__name__
    json.dump(result, sys.stdout)
