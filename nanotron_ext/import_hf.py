"""Import a transformers SmolLM3 as a checkpoint.

The checkpoint holds weights and no optimizer state: a run that continues it starts Adam afresh. Streams: one parameter
is in memory at a time, and one layer's worth is written per file.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from foundation.errors import UserError
from foundation.finite import check_finite
from foundation.hf_folder import read_config, spelled_for_all
from foundation.paths import WEIGHTS, indexed_weight_files
from foundation.recipe.architecture import Parameter, parameters_of
from foundation.weights import read_header
from nanotron_ext.checkpoint import (
    checkpoint_folder,
    finish_checkpoint,
    index_of,
    list_checkpoints,
    merged,
    save_shard,
)
from nanotron_ext.hf_format import model_config_from_hf
from nanotron_ext.placement import Placement


class ImportModelError(UserError):
    """A model folder that cannot be imported; nothing was written."""


def import_hf(model: Path, out: Path) -> Path:
    """Write `<out>/checkpoints/0` with the weights of the transformers folder `model`; returns the checkpoint.

    Raises:
        ImportModelError: when the folder is not a complete SmolLM3, naming what is missing.
        UserError: for a configuration that this model cannot have, and for weights that are NaN or infinite.
    """
    source = model / "config.json"
    hf = spelled_for_all(read_config(model), source)
    config = model_config_from_hf(hf, source)
    files = _weight_files(model)
    parameters = parameters_of(config)
    missing = [part for parameter in parameters.values() for part in parameter.parts if part not in files]
    if missing:
        raise ImportModelError(f"{model} lacks {len(missing)} tensors, the first is {missing[0]!r}.")
    final = checkpoint_folder(out, 0)
    if there := [final] if final.exists() else list_checkpoints(out):
        raise ImportModelError(f"{there[0]} exists: {out} belongs to another run. Choose another folder.")
    temporary = final.with_name("0.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    files_written: dict[str, Any] = {}
    indices = []
    try:
        for position, parameter in enumerate(parameters.values()):
            whole, shard = _whole(files, parameter), f"import{position:05d}"
            parts = [(parameter.name, Placement.whole(tuple(whole.shape)), 0, whole.flatten())]
            files_written |= save_shard(temporary, "master", shard, parts)
            indices.append(index_of(shard, parts))
    except UserError:
        shutil.rmtree(temporary)
        raise
    content = {
        "step": 0,
        "recipe_hash": None,
        "model_config": config.model_dump(mode="json"),
        "dtype": _dtype(hf.get("dtype"), files),
        "tokenizer": str(model),
        "data": {},
        "index": merged(indices),
    }
    finish_checkpoint(temporary, final, content, files_written)
    return final


def _whole(files: dict[str, Path], parameter: Parameter) -> torch.Tensor:
    """Our parameter in float32, put together from the folder's tensors."""
    parts = []
    for name, rows in parameter.parts.items():
        part = _read(files[name], name)
        if list(part.shape) != (expected := [rows, *parameter.shape[1:]]):
            raise ImportModelError(f"{files[name]}: {name} is {list(part.shape)}, config.json makes it {expected}.")
        check_finite(name, part, files[name])
        parts.append(part)
    return torch.cat(parts).float()


def _weight_files(model: Path) -> dict[str, Path]:
    """Tensor name -> the safetensors file that holds it; other files of that kind are not the model's."""
    paths = [model / name for name in indexed_weight_files(model) or [WEIGHTS]]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ImportModelError(
            f"{model} holds no {missing[0]}; its weights have to be safetensors files, and complete."
        )
    for path in paths:
        read_header(path)
    files: dict[str, Path] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            files.update(dict.fromkeys(file.keys(), path))
    return files


def _dtype(stated: str | None, files: dict[str, Path]) -> str:
    """What an export writes unless told otherwise; where config.json names no type, it is that of the weights."""
    if stated is None:
        name, path = next(iter(files.items()))
        with safe_open(path, framework="pt") as file:
            stated = {"BF16": "bfloat16"}.get(file.get_slice(name).get_dtype())
    return "bfloat16" if stated == "bfloat16" else "float32"  # float16 fits into float32 alone


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def local_folder(model: str) -> Path:
    """`model` itself when it is a folder, else the snapshot of that hub model.

    Raises:
        ImportModelError: when it is neither, or the hub cannot be reached.
    """
    if Path(model).is_dir():
        return Path(model)
    if os.sep == model[:1] or model.count("/") != 1:
        raise ImportModelError(f"There is no folder {model}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except Exception as error:  # the hub client raises a dozen types for "not reachable" and "not there"
        raise ImportModelError(
            f"{model} is not a local folder, and the hub gave nothing ({type(error).__name__}). Without a network, "
            f"give a folder."
        ) from None
