"""A tiny model on disk for the post-training tests."""

import os
import shutil
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from posttrain.template import install_template
from posttrain.tiny_data import write_sets
from tests.posttrain.runs import SIZES
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


@pytest.fixture(scope="session")
def roomy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for the long token sequences of the small test tokenizer."""
    return write_model(tmp_path_factory.mktemp("base") / "model", positions=1024)


@pytest.fixture
def run(tmp_path: Path, roomy_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder with the tiny sets and the base model."""
    monkeypatch.setenv("RUN", str(tmp_path))
    write_sets(tmp_path / "posttrain_data", 0, SIZES)
    shutil.copytree(roomy_model, tmp_path / "hf" / "long_context_64k")
    return tmp_path


@pytest.fixture(autouse=True)
def dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the user's datasets cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")
