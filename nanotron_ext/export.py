"""Export a checkpoint to a transformers folder.

Streams: at most one output shard is in memory at a time.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from foundation.errors import UserError
from foundation.files import put_in_place, restore
from foundation.finite import check_finite
from foundation.hf_folder import TOKENIZER_FILES, finish_folder, write_json
from foundation.recipe import ModelConfig
from foundation.recipe.architecture import RopeScaling, parameters_of
from nanotron_ext.checkpoint import CheckpointError, CheckpointReader, resolve_checkpoint
from nanotron_ext.hf_format import generation_config, hf_config, to_hf
from nanotron_ext.retention import in_use

MAX_SHARD_BYTES = 2 * 1024**3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ExportError(UserError):
    """An export that cannot be made as asked; nothing was written."""


def export(
    checkpoint: Path,
    out: Path,
    tokenizer: Path | None = None,
    dtype: str | None = None,
    replace: bool = False,
    yarn_factor: float | None = None,
) -> Path:
    """Write the model of `checkpoint` (a checkpoint or run folder) to `out`, with tokenizer and generation config.

    `dtype` defaults to the one the model was trained in, `tokenizer` to the folder the run used. `replace` allows `out`
    to hold an earlier model. `yarn_factor` declares the model for that many times its trained length, by YaRN.

    Raises:
        CheckpointError: when there is no complete checkpoint, or its weights do not match their checksums.
        ExportError: when `out` is in use or the tokenizer is missing.
        NotFiniteError: when a weight is NaN or infinite, also by rounding to `dtype`; an earlier model stays in `out`.
    """
    reader = CheckpointReader(resolve_checkpoint(checkpoint))
    config = ModelConfig(**reader.manifest["model_config"])
    if yarn_factor is not None:
        config = stretched(config, yarn_factor)
    dtype = dtype or reader.manifest["dtype"]
    tokenizer = tokenizer or Path(reader.manifest["tokenizer"])
    if not (tokenizer / "tokenizer.json").is_file():
        raise ExportError(f"There is no tokenizer in {tokenizer}. Give its folder with --tokenizer.")
    restore(out)
    holds_model = (out / "config.json").is_file()
    if out.exists() and any(out.iterdir()) and not (replace and holds_model):
        advice = "give --replace to overwrite the model in it" if holds_model else "choose another folder"
        raise ExportError(f"{out} is not empty; {advice}.")
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, temporary / name)
        write_json(temporary / "config.json", hf_config(config, dtype))
        write_json(temporary / "generation_config.json", generation_config(config))
        finish_folder(temporary)
        with in_use(reader.folder):
            if damaged := reader.damaged_files("master"):
                raise CheckpointError(f"{'; '.join(damaged)}. Export another checkpoint of this run.")
            _write_weights(temporary, _tensors(reader, config, DTYPES[dtype]))
    except UserError:
        shutil.rmtree(temporary)
        raise
    put_in_place(temporary, out)
    return out


def stretched(config: ModelConfig, factor: float) -> ModelConfig:
    """The same model declared for `factor` times its trained length.

    Raises:
        ExportError: when the model is stretched already, or the factor gives no whole number of tokens.
    """
    trained = config.max_position_embeddings
    if config.rope_scaling is not None:
        raise ExportError("The model was trained with rope_scaling already; leave --yarn-factor out.")
    if factor < 1 or factor * trained != int(factor * trained):
        raise ExportError(f"--yarn-factor {factor:g} does not make {trained} tokens a whole, larger number of tokens.")
    scaling = RopeScaling(factor=factor, original_max_position_embeddings=trained)
    return config.model_copy(update={"rope_scaling": scaling, "max_position_embeddings": int(factor * trained)})


def _tensors(reader: CheckpointReader, config: ModelConfig, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in parameters_of(config).items():
        whole = reader.read("master", name, expected_shape=parameter.shape).to(dtype)
        for hf_name, part in to_hf(parameter, whole):
            check_finite(hf_name, part, f"{reader.folder} as {str(dtype).removeprefix('torch.')}")
            yield hf_name, part.contiguous()


def _write_weights(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Shards of at most MAX_SHARD_BYTES under transformers' names; one shard alone is model.safetensors."""
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    pending_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal pending, pending_bytes
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending, pending_bytes = {}, 0

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > MAX_SHARD_BYTES:
            flush()
        pending[name] = tensor
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    weight_map = {}
    for index, names in enumerate(shards):
        file_name = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{index}").rename(folder / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    index_content = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index_content)
