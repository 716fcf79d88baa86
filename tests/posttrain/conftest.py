"""A tiny model on disk for the post-training tests."""

import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from posttrain.template import install_template
from tests.posttrain.tiny_model import write_model


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transformers folder of a SmolLM3 with random weights."""
    return write_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="session")
def tokenizer(base_model: Path) -> PreTrainedTokenizerBase:
    """Its tokenizer with the dual-mode template."""
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    install_template(tokenizer, "dual_mode")
    return tokenizer


@pytest.fixture(autouse=True)
def dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the user's datasets cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")
