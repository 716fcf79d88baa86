"""Merges against the float64 sum of the inputs, and the inputs that are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from foundation.finite import NotFiniteError
from foundation.hf_folder import ModelFolderError
from foundation.tokenizer_json import TokenizerFileError
from foundation.weights import WeightFileError
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


def as_5_reads(folder: Path) -> dict[str, object]:
    """Every key of the configuration as the installed transformers loads it."""
    return {**AutoConfig.from_pretrained(folder).to_dict(), "_name_or_path": ""}


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
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (second / name).read_bytes()
    # These two are spelled for every release of transformers; to the one that wrote the parent they say the same.
    assert as_5_reads(tmp_path / "out") == as_5_reads(second)
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", second))
    assert ours.chat_template == theirs.chat_template and ours.special_tokens_map == theirs.special_tokens_map
    assert ours.model_max_length == 256
    manifest = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    assert [entry["weight"] for entry in manifest["inputs"]] == [0.5, 0.5]
    assert manifest["inputs"][0]["sha256"]["model.safetensors"] != manifest["inputs"][1]["sha256"]["model.safetensors"]
    assert not list(tmp_path.glob("*.partial"))


def test_float32_inputs_become_bfloat16_and_the_config_says_so(make_checkpoint, tmp_path):
    folders = [make_checkpoint("a", 1, torch.float32), make_checkpoint("b", 2, torch.bfloat16)]
    write_average(plan(folders, [0.25, 0.75]), tmp_path / "out", "soup", quiet=True)
    assert {tensor.dtype for tensor in all_tensors(tmp_path / "out").values()} == {torch.bfloat16}
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"


def test_a_finished_merge_is_kept_and_another_one_is_refused(make_checkpoint, tmp_path):
    folders = [make_checkpoint("a", 1), make_checkpoint("b", 2)]
    write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)
    stamp = (tmp_path / "out" / MANIFEST_NAME).stat().st_mtime_ns
    write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)
    assert (tmp_path / "out" / MANIFEST_NAME).stat().st_mtime_ns == stamp
    with pytest.raises(MergeError, match="other inputs or weights"):
        write_average(plan(folders, [0.9, 0.1]), tmp_path / "out", "soup", quiet=True)
    manifest = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    (tmp_path / "out" / MANIFEST_NAME).write_text(json.dumps({**manifest, "format": "merge/1"}))
    with pytest.raises(MergeError, match="by an earlier version"):
        write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 8}, "num_hidden_layers is 8, the parent's is 4"),
        ({"vocab_size": 384}, "vocab_size is 384"),
        ({"extra_tokens": 3}, r"tokenizer\.json has other vocabulary than"),
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


MERGES = [["h", "e"], ["he", "r"], ["e", "r"]]
OTHER_TOKENIZERS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "order of merges": ("merges", lambda t: t["model"]["merges"].reverse()),
    "pre-tokenizer": ("pre-tokenizer", lambda t: t["pre_tokenizer"].update(add_prefix_space=True)),
    "normalizer": ("normalizer", lambda t: t.update(normalizer={"type": "NFC"})),
    "flag of an added token": ("added tokens", lambda t: t["added_tokens"][0].update(lstrip=True)),
    "setting": ("settings of the model", lambda t: t["model"].update(ignore_merges=True)),
}


def edit_tokenizer(folder: Path, *edits: Callable[[dict[str, Any]], object]) -> str:
    """Give it merges and apply the edits; returns the ids of a text."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = [list(pair) for pair in MERGES]
    for pair in MERGES:
        content["model"]["vocab"].setdefault("".join(pair), len(content["model"]["vocab"]))
    for edit in edits:
        edit(content)
    path.write_text(json.dumps(content, indent=1))
    return str(Tokenizer.from_file(str(path)).encode("a <|im_end|> e\u0301 here").ids)


@pytest.mark.parametrize("other", OTHER_TOKENIZERS)
def test_tokenizers_with_one_vocabulary_that_make_other_ids_are_refused(make_checkpoint, tmp_path, other):
    words, edit = OTHER_TOKENIZERS[other]
    folders = [make_checkpoint("parent", 1), make_checkpoint("other", 2)]
    edit_tokenizer(folders[0])
    edit_tokenizer(folders[1], edit)
    with pytest.raises(MergeError, match=rf"other: its tokenizer\.json has other {words} than the parent's"):
        write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)


def test_the_spelling_of_a_tokenizer_changes_nothing(make_checkpoint, tmp_path):
    """As releases of tokenizers before 0.20 write merges, with keys left out, and with the last call's truncation."""
    folders = [make_checkpoint("parent", 1), make_checkpoint("other", 2)]
    expected = edit_tokenizer(folders[0])

    def respell(content: dict[str, Any]) -> None:
        content["model"]["merges"] = [" ".join(pair) for pair in MERGES]
        del content["model"]["ignore_merges"], content["model"]["byte_fallback"]
        content["truncation"] = {
            "direction": "Right", "max_length": 4000, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip

    assert edit_tokenizer(folders[1], respell) == expected
    write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)


def test_a_tokenizer_that_cannot_be_read_is_named(make_checkpoint, tmp_path):
    folders = [make_checkpoint("parent", 1), make_checkpoint("other", 2)]
    (folders[1] / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(TokenizerFileError, match=r"other/tokenizer\.json is not a tokenizer that can be read"):
        write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)


def spell_as_4_57(folder: Path, **rope_scaling: object) -> None:
    """Rewrite a config.json as transformers 4.57 saves it; see tests/foundation/test_hf_folder.py."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "rope_scaling": rope_scaling or None}
    assert config.pop("tie_word_embeddings") is True
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "4.57.6"}))


def test_the_spelling_of_a_config_changes_nothing(make_checkpoint, tmp_path):
    """Inputs as 5.x and as 4.57 write them, in any combination: the same model, whose config says it in both."""
    changes = {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}}
    newer = [make_checkpoint(name, seed, **changes) for seed, name in enumerate("ab")]
    older = [Path(shutil.copytree(folder, tmp_path / f"{folder.name}4")) for folder in newer]
    for folder in older:
        spell_as_4_57(folder)
    write_average(plan(newer, [0.9, 0.1]), tmp_path / "out", "soup", quiet=True)
    expected = all_tensors(tmp_path / "out")
    for number, folders in enumerate([older, [newer[0], older[1]], [older[0], newer[1]]]):
        out = tmp_path / f"out{number}"
        write_average(plan(folders, [0.9, 0.1]), out, "soup", quiet=True)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in all_tensors(out).items())
        written = json.loads((out / "config.json").read_text())
        assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 12345.0
        assert written["tie_word_embeddings"] is True
        assert as_5_reads(out) == as_5_reads(tmp_path / "out")


def test_another_rotary_base_or_yarn_is_refused_in_any_spelling(make_checkpoint, tmp_path):
    folders = [make_checkpoint("a", 1), make_checkpoint("b", 2)]
    spell_as_4_57(folders[1], rope_type="yarn", factor=2.0, original_max_position_embeddings=128)
    with pytest.raises(MergeError, match=r"rope_parameters is .*yarn"):
        write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)
    config = json.loads((folders[1] / "config.json").read_text())
    (folders[1] / "config.json").write_text(json.dumps({**config, "rope_scaling": None, "rope_theta": 5e6}))
    with pytest.raises(MergeError, match=r"rope_parameters is .*5000000"):
        write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)
    assert not list(tmp_path.glob("out*"))


def test_a_parent_that_releases_read_differently_is_refused(make_checkpoint, tmp_path):
    """YaRN with factor 2 over 256 positions, but declared for 256: 4.53 would not stretch the merged model at all."""
    folders = [make_checkpoint("a", 1), make_checkpoint("b", 2)]
    for folder in folders:
        spell_as_4_57(folder, rope_type="yarn", factor=2.0, original_max_position_embeddings=256)
    with pytest.raises(ModelFolderError, match="max_position_embeddings 512"):
        write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("name", "row"), [("model.embed_tokens.weight", 7), ("model.layers.2.mlp.up_proj.weight", 94)])
def test_an_input_that_is_not_finite_is_refused_by_tensor_and_row(make_checkpoint, tmp_path, name, row, value):
    folders = [make_checkpoint("a", 1), make_checkpoint("b", 2)]
    set_element(folders[1], name, row, value)
    with pytest.raises(NotFiniteError, match=rf"b/model\.safetensors: {name} holds {value} in row {row}\."):
        write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)
    assert not list(tmp_path.glob("out*"))


def test_an_average_that_overflows_is_not_verified(make_checkpoint, tmp_path):
    """Finite in float32, infinite when rounded to bfloat16."""
    folders = [make_checkpoint(name, seed, torch.float32) for seed, name in enumerate("ab")]
    for folder in folders:
        set_element(folder, "model.embed_tokens.weight", 7, 3.4e38)
    with pytest.raises(NotFiniteError, match=r"model\.embed_tokens\.weight holds inf in row 7"):
        write_average(plan(folders, [0.5, 0.5]), tmp_path / "out", "soup", quiet=True)
    assert not (tmp_path / "out").exists()


def set_element(folder: Path, name: str, row: int, value: float) -> None:
    file = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(file)
    tensors[name][row, 5] = value
    save_file(tensors, file, metadata={"format": "pt"})


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
    with pytest.raises(WeightFileError, match="header promises"):
        Checkpoint(folders[1])


@pytest.mark.parametrize("block", [10**6, 500])
def test_verification_reads_every_element(make_checkpoint, tmp_path, monkeypatch, block):
    """One wrong element, wherever it stands: in blocks of whole tensors, and of a few rows."""
    monkeypatch.setattr("foundation.finite.BLOCK_VALUES", block)
    folders = [make_checkpoint("a", 1), make_checkpoint("b", 2)]
    average = plan(folders, [0.5, 0.5], shard=10**9)
    manifest = write_average(average, tmp_path / "out", "soup", quiet=True)
    sound = all_tensors(tmp_path / "out")
    assert manifest["verification"]["elements"] == sum(tensor.numel() for tensor in sound.values())
    places = [("model.embed_tokens.weight", row) for row in (0, 7, 8, 163, 319)]
    for name, row in [*places, ("model.layers.2.mlp.up_proj.weight", 95), ("model.norm.weight", 11)]:
        for value, error, message in (
            (0.5, MergeError, "not the weighted average"),
            (float("nan"), NotFiniteError, f"{name} holds nan in row {row}"),
        ):
            broken = {key: tensor.clone() for key, tensor in sound.items()}
            broken[name][row] = value
            save_file(broken, next((tmp_path / "out").glob("*.safetensors")), metadata={"format": "pt"})
            with pytest.raises(error, match=message):
                verify_average(
                    Checkpoint(tmp_path / "out"), average.checkpoints, average.weights, average.parent, "bfloat16"
                )
