"""Loads one repo offline through the library that its users use, run by the interpreter that has these libraries.

Usage: `python load.py LIBRARY NAME`, NAME a repo id or a folder; what was loaded is JSON on stdout, an error its class.
"""

import json
import sys


def datasets(name):
    """The rows of the training split."""
    from datasets import load_dataset

    return load_dataset(name, split="train").to_list()


def transformers(name):
    """What a model needs besides its weights (PyTorch is too large for a test), and where the weights are."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import cached_file

    config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    with open(cached_file(name, "model.safetensors"), "rb") as weights:
        size = len(weights.read())
    return {"layers": config.num_hidden_layers, "tokens": tokenizer("hello world")["input_ids"], "weights": size}


def diffusers(name):
    """The configuration of one part of a pipeline, by its folder."""
    from diffusers.configuration_utils import ConfigMixin

    class Scheduler(ConfigMixin):
        config_name = "scheduler_config.json"

    return Scheduler.load_config(name, subfolder="scheduler")["num_train_timesteps"]


if __name__ == "__main__":
    library = {"datasets": datasets, "diffusers": diffusers, "transformers": transformers}[sys.argv[1]]
    try:
        answer = library(sys.argv[2])
    except Exception as error:
        answer = type(error).__name__
    json.dump(answer, sys.stdout)
