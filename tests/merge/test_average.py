"""Merges against the float64 sum of the inputs, and the inputs that are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge.average import MANIFEST_NAME, Average, write_average
from merge.checkpoint import Checkpoint, MergeError
from merge.verify import verify_average


def plan(
    folders: list[Path], weights: list[float], parent: int = 0, dtype: str = "bfloat16", shard: int = 200_000
) -> Average:
    checkpoints = [Checkpoint(folder) for folder in folders]
    return Average(checkpoints, weights, checkpoints[parent], dtype, shard)


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


@pytest.mark.parametrize("weights", [[0.9, 0.1], [1 / 3] * 3, [0.4, 0.3, 0.2, 0.05, 0.05]])
def test_every_element_is_the_float64_sum_within_one_bf16_rounding(make_checkpoint, tmp_path, weights):
    folders = [make_checkpoint(f"in{index}", seed=index) for index in range(len(weights))]
    write_average(plan(folders, weights), tmp_path / "out", "soup", quiet=True)
    merged = all_tensors(tmp_path / "out")
    inputs = [all_tensors(folder) for folder in folders]
    assert merged.keys() == inputs[0].keys() and len(merged) == 38
    for name, tensor in merged.items():
        terms = [weight * tensors[name].double() for weight, tensors in zip(weights, inputs, strict=True)]
        infinity = torch.tensor(float("inf"), dtype=torch.bfloat16)
        spacing = torch.nextafter(tensor.abs(), infinity).double() - tensor.abs().double()
        # Half a bf16 spacing, and the float32 error of the sum, which shows where the terms cancel.
        bound = 0.5 * spacing + 3e-7 * sum(term.abs() for term in terms)
        assert tensor.dtype == torch.bfloat16
        assert ((tensor.double() - sum(terms)).abs() <= bound).all(), name


def test_result_loads_tied_and_keeps_the_parents_files(make_checkpoint, tmp_path):
    first, second = make_checkpoint("first", 1), make_checkpoint("second", 2)
    write_average(plan([first, second], [0.5, 0.5], parent=1), tmp_path / "out", "soup", quiet=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert next(model.parameters()).dtype == torch.bfloat16
    for name in (
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "config.json",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (second / name).read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    manifest = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    assert [entry["weight"] for entry in manifest["inputs"]] == [0.5, 0.5]
    assert manifest["inputs"][0]["sha256"]["model.safetensors"] != manifest["inputs"][1]["sha256"]["model.safetensors"]
    assert not list(tmp_path.glob("*.partial"))


def test_float32_inputs_become_bfloat16_and_the_config_says_so(make_checkpoint, tmp_path):
    folders = [make_checkpoint("a", 1, torch.float32), make_checkpoint("b", 2, torch.bfloat16)]
    write_average(plan(folders, [0.25, 0.75]), tmp_path / "out", "soup", quiet=True)
    assert {tensor.dtype for tensor in all_tensors(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_finished_merge_is_kept_and_another_one_is_refused(make_checkpoint, tmp_path):
    folders = [make_checkpoint("a", 1), make_checkpoint("b", 2)]
    write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)
    stamp = (tmp_path / "out" / MANIFEST_NAME).stat().st_mtime_ns
    write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)
    assert (tmp_path / "out" / MANIFEST_NAME).stat().st_mtime_ns == stamp
    with pytest.raises(MergeError, match="other inputs or weights"):
        write_average(plan(folders, [0.9, 0.1]), tmp_path / "out", "soup", quiet=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 8}, "num_hidden_layers is 8, the parent's is 4"),
        ({"vocab_size": 384}, "vocab_size is 384"),
        ({"extra_tokens": 3}, "maps tokens to other ids"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"rope_theta": 5e6}, "rope"),
        ({"intermediate_size": 128}, "has shape"),
    ],
)
def test_models_that_differ_are_refused_before_work(make_checkpoint, tmp_path, change, message):
    folders = [make_checkpoint("parent", 1), make_checkpoint("other", 2, **change)]
    with pytest.raises(MergeError, match=message):
        write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)
    assert not list(tmp_path.glob("out*"))


def test_an_lm_head_beside_tied_embeddings_is_refused(make_checkpoint, tmp_path):
    folders = [make_checkpoint("a", 1), make_checkpoint("b", 2)]
    tensors = load_file(folders[1] / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folders[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"hold an lm_head\.weight"):
        write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)


def test_a_config_without_architecture_is_refused(make_checkpoint, tmp_path):
    folders = [make_checkpoint("a", 1), make_checkpoint("b", 2)]
    config = json.loads((folders[1] / "config.json").read_text())
    del config["architectures"]
    (folders[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(MergeError, match="names no architecture"):
        plan(folders, [0.5, 0.5]).check(tmp_path / "out")


def test_bad_weights_folders_files_and_disks_are_refused(make_checkpoint, tmp_path, monkeypatch):
    folders = [make_checkpoint("a", 1), make_checkpoint("b", 2)]
    with pytest.raises(MergeError, match=r"sum to 1\.1"):
        plan(folders, [0.9, 0.2]).check(tmp_path / "out")
    with pytest.raises(MergeError, match="listed twice"):
        plan([folders[0], folders[0]], [0.5, 0.5]).check(tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(MergeError, match="not empty"):
        plan(folders, [0.5, 0.5]).check(tmp_path / "full")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(MergeError, match=r"0\.0 GB are free"):
            plan(folders, [0.5, 0.5]).check(tmp_path / "out")
    with pytest.raises(MergeError, match="no checkpoint folder"):
        Checkpoint(tmp_path / "absent")
    data = (folders[1] / "model.safetensors").read_bytes()
    (folders[1] / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(MergeError, match="header promises"):
        Checkpoint(folders[1])


def test_verification_finds_a_wrong_element_and_not_a_number(make_checkpoint, tmp_path):
    folders = [make_checkpoint("a", 1), make_checkpoint("b", 2)]
    average = plan(folders, [0.5, 0.5], shard=10**9)
    write_average(average, tmp_path / "out", "soup", quiet=True)
    file = next((tmp_path / "out").glob("*.safetensors"))
    sound = load_file(file)
    for value, message in ((0.5, "not the weighted average"), (float("nan"), "not finite")):
        broken = {name: tensor.clone() for name, tensor in sound.items()}
        broken["model.layers.2.mlp.up_proj.weight"][-1, 7] = value
        save_file(broken, file, metadata={"format": "pt"})
        with pytest.raises(MergeError, match=message):
            verify_average(
                Checkpoint(tmp_path / "out"), average.checkpoints, average.weights, average.parent, "bfloat16"
            )
