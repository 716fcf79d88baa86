"""A complete run at the smallest size: random shards, a stand-in tokenizer, a recipe over them."""

import hashlib
import json
from pathlib import Path

import numpy as np

from foundation.recipe import Recipe, load_recipe
from tests.nanotron_ext.data.prepared_data import random_documents, write_source

VOCAB_SIZE = 4096
RECIPE_PATH = "recipes/tiny/pretrain.yaml"


def prepare(root: Path) -> None:
    """Sources `a` and `b`, a held-out source `held`, and a tokenizer whose every token is two bytes of text."""
    tokenizer = root / "tokenizer"
    tokenizer.mkdir(parents=True)
    vocabulary = {f"{number // 64:02d}"[:2] + f"#{number}": number for number in range(3, VOCAB_SIZE)}
    added = [{"id": index, "content": f"<{index}>", "special": True} for index in range(3)]
    content = json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}).encode()
    (tokenizer / "tokenizer.json").write_bytes(content)
    rng = np.random.default_rng(0)
    for source, tokens in (("a", 3000), ("b", 2000), ("held", 300)):
        documents = random_documents(rng, tokens)
        sha = hashlib.sha256(content).hexdigest()
        write_source(root / "data", source, [documents], tokenizer_sha256=sha)


def overrides(root: Path, **changes: object) -> list[str]:
    """Command-line values that turn recipes/tiny/pretrain.yaml into a run of 8 steps over `prepare`'s data."""
    values: dict[str, object] = {
        "general.runs_path": root / "runs",
        "general.run": "run",
        "data.path": root / "data",
        "data.chunk_tokens": "null",
        "data.validation": "[held]",
        "tokenizer": json.dumps({"tokenizer_name_or_path": str(root / "tokenizer")}),
        "parallelism": "{dp: 2}",
        "model.init_method": "{std: 0.02}",
        "model.model_config.hidden_size": 48,
        "model.model_config.intermediate_size": 32,
        "model.model_config.num_hidden_layers": 2,
        "tokens": "{sequence_length: 16, train_steps: 8, micro_batch_size: 2, val_check_interval: 4}",
        "optimizer.learning_rate_scheduler": "{learning_rate: 3e-3, lr_warmup_steps: 2, lr_decay_style: constant}",
        "data_stages": json.dumps(
            [
                {"name": "one", "start_training_step": 1, "mixture": {"a": 0.75, "b": 0.25}},
                {"name": "two", "start_training_step": 5, "mixture": {"a": 0.5, "b": 0.5}},
            ]
        ),
        "checkpoints.checkpoint_interval": 4,
        "wandb.mode": "disabled",
    }
    values.update({name.replace("__", "."): value for name, value in changes.items()})
    return [f"{name}={value}" for name, value in values.items()]


def tiny_recipe(root: Path, **changes: object) -> Recipe:
    return load_recipe(RECIPE_PATH, overrides(root, **changes))


def damage(file: Path) -> None:
    """Flip one bit of its last byte, a weight's: the size, the header and whatever else can be read stay the same."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
