"""A model that would be evaluated as something else than it is, is refused before anything is loaded."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eval.planning import inspect_model
from foundation.finite import NotFiniteError
from foundation.hf_folder import ModelFolderError


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_a_broken_row_is_refused(copy: Path, value: float) -> None:
    """The row of a token that hardly any text holds: every score would look sound."""
    tensors = load_file(copy / "model.safetensors")
    tensors["model.embed_tokens.weight"][319, 0] = value
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFiniteError, match=rf"model\.embed_tokens\.weight holds {value} in row 319\."):
        inspect_model(copy, None)


def test_a_config_that_says_two_things_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": 5e6}))
    with pytest.raises(ModelFolderError, match="contradicts itself"):
        inspect_model(copy, None)
