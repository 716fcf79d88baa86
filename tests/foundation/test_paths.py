"""Names of files that a stranger's manifest or index gives, through every door by which one comes in or goes out."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from datapipes.shards import read_manifest
from eval.planning import inspect_model
from eval.pretraining import _tokens
from foundation.errors import UserError
from foundation.paths import AmbiguousWeightsError, UnsafeNameError, inside, plain_name
from foundation.shards.manifest import read_source
from merge.checkpoint import Checkpoint
from nanotron_ext.checkpoint import CheckpointReader
from nanotron_ext.import_hf import import_hf
from nanotron_ext.storage import RemoteCheckpoints, fetch_newest
from nanotron_ext.train.exchange import _inventory
from posttrain.generate import ChatModel
from posttrain.recipe import load_recipe as load_posttraining_recipe
from posttrain.training import build_trainer
from tests.nanotron_ext.data.prepared_data import write_source
from tests.nanotron_ext.tiny_run import tiny_recipe
from tests.posttrain.tiny_model import write_model

# {outside} becomes the absolute path of a file that is none of the folder's business.
UPWARDS = ("../outside/file", "../../outside/file", "sub/../../outside/file")
HOSTILE = ("{outside}", *UPWARDS, "..", ".", "", "a/b", "a\\b", "a\0b")
NOT_TEXT = (None, 3, ["a"], {"a": 1})
CONTENT = b"a file of the user's, outside"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """tmp_path/outside/file, beside the folders of every door."""
    file = tmp_path / "outside" / "file"
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    return file


def hostile_names(outside: Path) -> list[str]:
    return [name.format(outside=outside) for name in HOSTILE]


def test_only_a_file_of_the_folder_has_a_plain_name(tmp_path: Path) -> None:
    for name in [*hostile_names(tmp_path), "a\nb", "\x1b[2J", *NOT_TEXT]:
        with pytest.raises(UnsafeNameError, match="is not the plain name of a file"):
            plain_name(name)
    for name in ("model-00001-of-00002.safetensors", "...", "..a", " a", "größe.ds"):
        assert plain_name(name) == name and inside(tmp_path, name) == tmp_path / name


def test_links_are_followed_before_a_file_is_written_or_sent(outside: Path, tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    (folder / "file").touch()
    (folder / "own").symlink_to("file")
    (folder / "other").symlink_to(outside)
    (folder / "circle").symlink_to("circle")
    assert inside(link, "own") == link / "own"  # the folder itself may be reached by a link
    for name in ("other", "circle"):
        with pytest.raises(UnsafeNameError, match="a link that leads out of its folder"):
            inside(folder, name)


def checkpoint_json(*names: object, content: bytes = CONTENT) -> str:
    described = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {
        "format": "smollm3-checkpoint/1",
        "step": 2,
        "recipe_hash": None,
        "files": {n: described for n in names},
    }
    return json.dumps(manifest)


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fetching_a_checkpoint_writes_nothing_outside(outside: Path, tmp_path: Path) -> None:
    """The bucket holds the files under the very names, as a server that wants to do harm would give them."""
    recipe = tiny_recipe(tmp_path, checkpoints=f"{{checkpoint_interval: 2, remote_path: 'file://{tmp_path}/bucket'}}")
    remote, step = RemoteCheckpoints(recipe), tmp_path / "bucket" / "run" / "2"
    step.mkdir(parents=True)
    evil = b"what the stranger would have there"
    for name in hostile_names(outside):
        served = Path(os.path.normpath(f"{step}/{name}")) if "\0" not in name else step
        if not served.exists():
            served.parent.mkdir(parents=True, exist_ok=True)
            served.write_bytes(evil)
        (step / "checkpoint.json").write_text(checkpoint_json(name, content=evil))
        before = everything(tmp_path / "outside")
        with pytest.raises(UserError, match="is not the plain name of a file"):
            remote.fetch(2, recipe.run_folder)
        fetch_newest(recipe)  # leaves it out with a warning, as a damaged one
        assert everything(tmp_path / "outside") == before == {outside: CONTENT}
        assert not list(recipe.run_folder.glob("checkpoints/*"))


def test_uploading_a_checkpoint_sends_nothing_from_outside(outside: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, checkpoints=f"{{checkpoint_interval: 2, remote_path: 'file://{tmp_path}/bucket'}}")
    remote, folder = RemoteCheckpoints(recipe), tmp_path / "runs" / "run" / "checkpoints" / "2"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    relative = os.path.relpath(outside, folder)
    for name in [*hostile_names(outside), relative, "link"]:
        (folder / "checkpoint.json").write_text(checkpoint_json(name))
        with pytest.raises(UserError, match=r"plain name of a file|a link that leads out of its folder"):
            remote.upload(folder)
        assert everything(tmp_path / "bucket") == {}
    assert outside.read_bytes() == CONTENT


def test_a_checkpoint_reads_its_own_files_only(outside: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run" / "checkpoints" / "2"
    folder.mkdir(parents=True)
    outside.unlink()
    save_file({"weight": torch.ones(2)}, outside)
    for name in [*hostile_names(outside), os.path.relpath(outside, folder)]:
        (folder / "checkpoint.json").write_text(checkpoint_json(name, content=outside.read_bytes()))
        with pytest.raises(UserError, match=r"checkpoint\.json: .* is not the plain name of a file"):
            CheckpointReader(folder)
        assert _inventory(folder) is None and "is not the plain name" in caplog.text


NO_FILES = ("", ', "files": [1]', ', "files": {"a": 1}', ', "files": {"a": {}}', ', "files": {"a": {"bytes": "9"}}')
NO_MANIFESTS = ("[]", "3", "null", "\xff", '{"format": []}')


@pytest.mark.parametrize(
    "content", [*NO_MANIFESTS, *(f'{{"format": "smollm3-checkpoint/1"{files}}}' for files in NO_FILES)]
)
def test_what_is_no_manifest_is_refused_in_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"checkpoint\.json (cannot be read|has format)"):
        CheckpointReader(tmp_path)


@pytest.fixture(scope="module")
def split_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with an index, as save_pretrained writes it for large models."""
    folder = write_model(tmp_path_factory.mktemp("models") / "split")
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def train_from(model: Path) -> None:
    overrides = [f"model.model_name_or_path={model}", f"general.runs_path={model.parent}/runs"]
    recipe = load_posttraining_recipe("recipes/tiny/sft.yaml", overrides)
    build_trainer(recipe, PreTrainedTokenizerFast.from_pretrained(model), None)  # type: ignore[arg-type]


MODEL_DOORS: dict[str, Callable[[Path], object]] = {
    "merge": Checkpoint,
    "import": lambda model: import_hf(model, model.parent / "imported"),
    "evaluation": lambda model: inspect_model(model, None),
    "chat": lambda model: ChatModel.load(str(model)),
    "post-training": train_from,
}


@pytest.mark.parametrize("door", MODEL_DOORS)
def test_an_index_names_weights_of_its_own_folder_only(door: str, split_model: Path, outside: Path) -> None:
    index = split_model / "model.safetensors.index.json"
    sound = index.read_text()
    try:
        for name in [*hostile_names(outside), *NOT_TEXT]:
            content = json.loads(sound)
            content["weight_map"]["model.norm.weight"] = name
            index.write_text(json.dumps(content))
            with pytest.raises(UnsafeNameError, match=r"index\.json: .* is not the plain name of a file"):
                MODEL_DOORS[door](split_model)
        for damaged in ("{}", "[]", '{"weight_map": 3}', "{"):
            index.write_text(damaged)
            with pytest.raises(UnsafeNameError, match="is not an index of weights"):
                MODEL_DOORS[door](split_model)
    finally:
        index.write_text(sound)


@pytest.mark.parametrize("door", MODEL_DOORS)
def test_an_old_single_file_beside_the_index_is_refused(door: str, split_model: Path, tmp_path: Path) -> None:
    """transformers reads the single file, a merge read the shards, and an import took the single file's tensors."""
    model = shutil.copytree(split_model, tmp_path / "model")
    old = AutoModelForCausalLM.from_pretrained(split_model)
    old.model.norm.weight.data.fill_(7.0)
    old.save_pretrained(tmp_path / "old")
    shutil.copy(tmp_path / "old" / "model.safetensors", model)
    assert AutoModelForCausalLM.from_pretrained(model).model.norm.weight[0] == 7.0
    with pytest.raises(AmbiguousWeightsError, match=r"holds model\.safetensors, and beside it .* remove the one"):
        MODEL_DOORS[door](model)


def test_files_that_the_index_leaves_out_are_not_imported(split_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(split_model, tmp_path / "model")
    first = min(model.glob("model-*"))
    stale = {name: tensor + 1 for name, tensor in load_file(first).items()}
    save_file(stale, model / "model-99999-of-99999.safetensors", {"format": "pt"})
    import_hf(split_model, tmp_path / "expected")
    import_hf(model, tmp_path / "found")
    readers = [CheckpointReader(tmp_path / name / "checkpoints" / "0") for name in ("expected", "found")]
    for name in readers[0].names():
        assert torch.equal(*(reader.read("master", name) for reader in readers)), name


def test_transformers_itself_follows_such_a_name(split_model: Path, tmp_path: Path) -> None:
    """Why the doors check it: weights from outside the folder, which no hash of the folder covers."""
    model = shutil.copytree(split_model, tmp_path / "model")
    index = json.loads((model / "model.safetensors.index.json").read_text())
    moved = index["weight_map"]["model.norm.weight"]
    tensors = load_file(model / moved)
    tensors["model.norm.weight"].fill_(7.0)
    save_file(tensors, tmp_path / moved, {"format": "pt"})
    index["weight_map"] = {key: f"../{name}" if name == moved else name for key, name in index["weight_map"].items()}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert AutoModelForCausalLM.from_pretrained(model).model.norm.weight[0] == 7.0
    with pytest.raises(UnsafeNameError):
        inspect_model(model, None)


SHARD_DOORS: dict[str, Callable[[Path], object]] = {
    "training": read_source,
    "preparation": read_manifest,
    "summary": _tokens,
}


@pytest.mark.parametrize("door", SHARD_DOORS)
def test_a_manifest_of_shards_names_files_of_its_own_folder_only(door: str, tmp_path: Path) -> None:
    write_source(tmp_path / "elsewhere", "a", [[[2, 3, 1]]])
    write_source(tmp_path / "data", "a", [[[2, 3, 1]]])
    SHARD_DOORS[door](tmp_path / "data" / "a")
    manifest = tmp_path / "data" / "a" / "manifest.json"
    sound = json.loads(manifest.read_text())
    there = tmp_path / "elsewhere" / "a" / "000.ds"
    for name in (str(there), "../../elsewhere/a/000.ds", "sub/000.ds", "a\\000.ds", "\0.ds"):
        manifest.write_text(json.dumps({**sound, "files": [{**sound["files"][0], "name": name}]}))
        with pytest.raises(UserError, match="is not the plain name of a file"):
            SHARD_DOORS[door](tmp_path / "data" / "a")
