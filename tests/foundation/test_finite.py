"""NaN and infinity are found wherever they stand, and no model with them is imported or exported."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from foundation import finite
from foundation.finite import NotFiniteError, check_files_finite, check_finite
from nanotron_ext.checkpoint import CheckpointReader
from nanotron_ext.export import export
from nanotron_ext.import_hf import import_hf

BROKEN = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize(("shape", "index"), [((), ()), ((5,), (3,)), ((6, 4), (5, 0)), ((3, 2, 4), (1, 1, 3))])
def test_the_row_is_named(dtype: torch.dtype, value: float, shape: tuple[int, ...], index: tuple[int, ...]) -> None:
    tensor = torch.full(shape, 0.5, dtype=dtype)
    check_finite("w", tensor, "here")
    tensor[index] = value
    with pytest.raises(NotFiniteError, match=rf"^here: w holds {value} in row {100 + (index[0] if index else 0)}\."):
        check_finite("w", tensor, "here", first_row=100)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn])
def test_the_largest_numbers_are_numbers(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    check_finite("w", torch.tensor([limits.max, limits.min, limits.tiny]).to(dtype), "here")
    check_finite("w", torch.empty(0, 4, dtype=dtype), "here")
    check_finite("ids", torch.tensor([1, 2]), "here")


def test_every_row_of_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One NaN at each place of a tensor in turn, in blocks that do not divide its rows."""
    monkeypatch.setattr(finite, "BLOCK_VALUES", 10)
    path = tmp_path / "model.safetensors"
    sound = {"a": torch.ones(3), "b": torch.ones(7, 4, dtype=torch.bfloat16), "c": torch.ones(())}
    save_file(sound, path)
    check_files_finite([path])
    for name, tensor in sound.items():
        for place in range(tensor.numel()):
            broken = tensor.clone()
            broken.view(-1)[place] = float("nan")
            save_file({**sound, name: broken}, path)
            row = place // 4 if name == "b" else place
            with pytest.raises(NotFiniteError, match=rf"model\.safetensors: {name} holds nan in row {row}\."):
                check_files_finite([path])


def model_folder(folder: Path, **weights: Any) -> Path:
    """A tiny float32 model with single values of its embedding replaced, and a tokenizer's file."""
    torch.manual_seed(0)
    config = SmolLM3Config(
        vocab_size=96, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    SmolLM3ForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    tensors = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        tensors[name.replace("__", ".")][7, 3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_a_broken_model_is_not_imported(tmp_path: Path, name: str, value: float) -> None:
    folder = model_folder(tmp_path / "model", **{name: value})
    with pytest.raises(NotFiniteError, match=rf"{name} holds {value} in row 7"):
        import_hf(folder, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_broken_checkpoint_is_not_exported(tmp_path: Path) -> None:
    """Neither one with NaN, nor one whose largest weight bfloat16 cannot hold; the model that stands there stays."""
    import_hf(model_folder(tmp_path / "model"), tmp_path / "run")
    out = export(tmp_path / "run", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    # The embedding's first row, whose tensor is flat in a checkpoint: 3.4e38 is finite in float32 alone.
    for value, dtype in ((float("nan"), "float32"), (3.4e38, "bfloat16")):
        poison_checkpoint(tmp_path / "run" / "checkpoints" / "0", value)
        with pytest.raises(NotFiniteError, match=rf"as {dtype}: model\.embed_tokens\.weight holds (nan|inf) in row 0"):
            export(tmp_path / "run", out, dtype=dtype, replace=True)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert not (tmp_path / "out.tmp").exists()
    export(tmp_path / "run", out, dtype="float32", replace=True)


def poison_checkpoint(folder: Path, value: float) -> None:
    """Put `value` into the embedding of an imported checkpoint, as if it had been trained to be that."""
    name = "embedding.token_embedding.weight"
    path = next(file for file in folder.glob("*.safetensors") if name in load_file(file))
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start : start + 4] = torch.tensor([value]).numpy().tobytes()
    path.write_bytes(data)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest.pop("sha256", None)
    manifest["files"][path.name]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(manifest))
    assert torch.equal(
        CheckpointReader(folder).read("master", name, (96, 16))[0, 0].nan_to_num(1.0),
        torch.tensor(value).nan_to_num(1.0),
    )
