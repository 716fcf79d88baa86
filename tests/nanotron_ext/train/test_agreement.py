"""A rank that sees other files than the rest goes on with them from the same state, or no rank starts."""

import importlib.metadata
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.journal import read_metrics
from foundation.outcome import Outcome
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointReader, list_checkpoints, resolve_checkpoint
from nanotron_ext.train import agreement, startup
from nanotron_ext.train import run as module
from nanotron_ext.train.run import run
from nanotron_ext.train.startup import StartupError
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import damage, prepare, tiny_recipe

TOKENS = "{sequence_length: 16, train_steps: 12, micro_batch_size: 2, stop_step: %d}"
NEWEST = "/checkpoints/8"


def recipe_of(root: Path, name: str, stop_step: int = 12, **changes: object) -> Recipe:
    return tiny_recipe(root, general__run=name, tokens=TOKENS % stop_step, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agreement")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def straight(root: Path) -> Recipe:
    """Twelve steps in one go, with checkpoints of steps 4, 8 and 12."""
    recipe = recipe_of(root, "straight")
    run_ranks(run, 2, recipe)
    return recipe


def after_step_8(root: Path, straight: Recipe, name: str) -> Recipe:
    """A run that has come to step 8."""
    recipe = recipe_of(root, name)
    shutil.copytree(straight.run_folder, recipe.run_folder)
    shutil.rmtree(recipe.run_folder / "checkpoints" / "12")
    return recipe


def old_listing() -> None:
    """Folders are listed as they were before the newest checkpoint."""
    glob = Path.glob

    def glob_before(folder: Path, pattern: str, **keywords: Any) -> Iterator[Path]:
        return (path for path in glob(folder, pattern, **keywords) if not str(path).endswith(NEWEST))

    Path.glob = glob_before  # type: ignore[method-assign]


def old_view() -> None:
    """Nor can what is in it be opened."""
    old_listing()
    read_bytes, is_file = Path.read_bytes, Path.is_file

    def read_before(path: Path) -> bytes:
        if NEWEST in str(path):
            raise FileNotFoundError(f"No such file: {path}")
        return read_bytes(path)

    Path.read_bytes = read_before  # type: ignore[method-assign]
    Path.is_file = lambda path: NEWEST not in str(path) and is_file(path)  # type: ignore[method-assign]


def other_manifest() -> None:
    """One file of the newest checkpoint has another checksum here."""
    read_bytes = Path.read_bytes

    def read_other(path: Path) -> bytes:
        content = read_bytes(path)
        if not str(path).endswith(f"{NEWEST}/checkpoint.json"):
            return content
        manifest = json.loads(content)
        del manifest["sha256"]  # of the manifest itself
        next(iter(manifest["files"].values()))["sha256"] = "0" * 64
        return json.dumps(manifest).encode()

    Path.read_bytes = read_other  # type: ignore[method-assign]


def other_ledger() -> None:
    startup.skipped_samples = lambda run_folder, before: [(48, 4)]


def other_numpy() -> None:
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "1.0.2" if name == "numpy" else version(name)


def other_attention() -> None:
    agreement.attention_backend = lambda recipe, device: "flash_attn"


def whole_view() -> None:
    pass


def run_spoiled(recipes: list[Recipe], victim: int, spoil: Callable[[], None]) -> Outcome:
    """Every rank on a machine of its own, that of the `victim` with another view of the file system."""
    rank = int(os.environ["RANK"])
    os.environ["LOCAL_RANK"] = "0"
    if rank == victim:
        spoil()
    return run(recipes[rank])


def assert_same_end(recipe: Recipe, straight: Recipe) -> None:
    losses = [row["loss"] for row in read_metrics(straight.run_folder)]
    assert [row["loss"] for row in read_metrics(recipe.run_folder)] == losses
    state, expected = (CheckpointReader(resolve_checkpoint(r.run_folder)) for r in (recipe, straight))
    assert state.step == expected.step == 12
    for kind in straight.optimizer.state_kinds:
        assert all(torch.equal(state.read(kind, name), expected.read(kind, name)) for name in expected.names())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_with_an_old_listing_goes_on_from_the_newest_checkpoint(
    victim: int, root: Path, straight: Recipe
) -> None:
    recipe = after_step_8(root, straight, f"listing-{victim}")
    assert run_ranks(run_spoiled, 2, [recipe, recipe], victim, old_listing) == [Outcome("finished", 12)] * 2
    assert_same_end(recipe, straight)


@pytest.mark.parametrize("key", ["resume_checkpoint_path", "load_weights_path"])
def test_the_run_that_another_one_starts_from_is_the_same_too(key: str, root: Path, straight: Recipe) -> None:
    before = after_step_8(root, straight, f"before-{key}")
    names = [f"{key}-{number}" for number in range(2)]
    for name, spoil in zip(names, (whole_view, old_listing), strict=True):
        recipe = recipe_of(root, name, **{f"checkpoints__{key}": before.run_folder})
        assert run_ranks(run_spoiled, 2, [recipe, recipe], 1, spoil) == [Outcome("finished", 12)] * 2
    mine, expected = ([row["loss"] for row in read_metrics(recipe_of(root, name).run_folder)] for name in names[::-1])
    assert mine == expected and len(mine) == (4 if key == "resume_checkpoint_path" else 12)


def test_damaged_weights_are_refused(root: Path, straight: Recipe) -> None:
    before = after_step_8(root, straight, "before-damaged")
    damage(victim := next((before.run_folder / "checkpoints" / "8").glob("master-*")))
    recipe = recipe_of(root, "from-damaged", parallelism="{dp: 1}", checkpoints__load_weights_path=before.run_folder)
    with pytest.raises(RuntimeError, match=rf"{victim.name} does not match its checksum\. Restore it, or set checkpoi"):
        run_ranks(run, 1, recipe)
    assert read_metrics(recipe.run_folder) == []


CASES: dict[str, tuple[int, Callable[[], None], str]] = {
    "first cannot open": (0, old_view, r"Rank 0 on HOST: .*step 8, .*checkpoints/8, which rank 1 on HOST has found: "),
    "other cannot open": (1, old_view, r"Rank 1 on HOST: .*step 8, .*checkpoints/8, which rank 0 on HOST has found: "),
    "other manifest": (1, other_manifest, r"Rank 1 on HOST: .*from step 8, .*its manifest has digest \w{12}, there "),
    "other versions": (
        1,
        other_numpy,
        r"Rank 1 on HOST: versions\.numpy is '1\.0\.2' here, '[\d.]+' on the ",
    ),
    "other kernel": (
        1,
        other_attention,
        r"Rank 1 on HOST: attention backend is 'flash_attn' here, 'per_document' on ",
    ),
    "other ledger": (1, other_ledger, r"Rank 1 on HOST: skipped samples is \[\(48, 4\)\] here, \[\] on the first rank"),
}


@pytest.mark.parametrize("case", CASES)
def test_otherwise_the_start_is_refused(case: str, root: Path, straight: Recipe) -> None:
    victim, spoil, message = CASES[case]
    recipe = after_step_8(root, straight, case)
    with pytest.raises(RuntimeError, match=message.replace("HOST", socket.gethostname())):
        run_ranks(run_spoiled, 2, [recipe, recipe], victim, spoil)
    assert [path.name for path in list_checkpoints(recipe.run_folder)] == ["4", "8"]


def test_ranks_with_other_recipes_or_data_are_refused(root: Path, tmp_path: Path) -> None:
    usual, often = recipe_of(root, "usual"), recipe_of(root, "usual", checkpoints__checkpoint_interval=3)
    with pytest.raises(RuntimeError, match=r"Rank 1 on \S+: recipe\.checkpoints\.checkpoint_interval is 3 here, 4 on"):
        run_ranks(run_spoiled, 2, [usual, often], 0, whole_view)
    shutil.copytree(root / "data", tmp_path / "data")
    shutil.copytree(root / "data" / "a", tmp_path / "data" / "b", dirs_exist_ok=True)
    manifest = tmp_path / "data" / "b" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "source": "b"}))
    other = recipe_of(root, "usual", data__path=tmp_path / "data")
    with pytest.raises(RuntimeError, match=r"Rank 1 on \S+: data\.b\.files is '\w+' here, '\w+' on the first rank"):
        run_ranks(run_spoiled, 2, [usual, other], 0, whole_view)
    assert not usual.run_folder.exists()


def test_a_rank_that_fails_alone_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started the ranks prints what the first one raises, and nothing of the others."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    for rank in (0, 7):
        with pytest.raises(StartupError), startup.told_by_rank(rank):
            raise StartupError("The disk is full.")
    assert capsys.readouterr().err == f"error: Rank 7 on {socket.gethostname()}: The disk is full.\n"


def run_noting_what_it_opens(recipe: Recipe) -> tuple[Outcome, list[str]]:
    """What is opened below the folder of checkpoints, as Python's own audit reports it."""
    folder, opened = str(recipe.run_folder / "checkpoints"), []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.scandir", "os.listdir") and str(arguments[0]).startswith(folder):
            opened.append(str(arguments[0]).removeprefix(folder))

    load, until_loaded = module.load_checkpoint, []

    def load_and_look(*arguments: Any) -> None:
        load(*arguments)
        until_loaded.extend(opened)

    sys.addaudithook(note)
    module.load_checkpoint = load_and_look
    return run(recipe), until_loaded


def test_what_a_start_opens_does_not_grow_with_the_number_of_checkpoints(root: Path, straight: Recipe) -> None:
    found = []
    for copies in (0, 40):
        recipe = after_step_8(root, straight, f"with-{copies}-more")
        shutil.rmtree(recipe.run_folder / "checkpoints" / "4")
        for number in range(copies):
            older = recipe.run_folder / "checkpoints" / "7".zfill(number + 1)
            shutil.copytree(straight.run_folder / "checkpoints" / "4", older)
        found.append(run_ranks(run_noting_what_it_opens, 2, recipe))
    for rank in range(2):
        (few, opened), (many, opened_among_many) = (of_ranks[rank] for of_ranks in found)
        assert few == many == Outcome("finished", 12)
        assert opened == opened_among_many and 0 < len(opened) < 8


def with_learning_rate(folder: Path, learning_rate: float) -> None:
    manifest = json.loads((folder / "checkpoint.json").read_text())
    del manifest["sha256"]
    manifest["recipe"]["optimizer"]["learning_rate_scheduler"]["learning_rate"] = learning_rate
    (folder / "checkpoint.json").write_text(json.dumps(manifest))


def test_what_was_agreed_behind_a_checkpoint_needs_no_consent_when_a_run_falls_back_to_it(
    root: Path, straight: Recipe, tmp_path: Path
) -> None:
    """The recipe was changed behind step 4, as agreed then: step 8 goes on, and when it is damaged, step 4 does."""
    for name in ("whole", "damaged"):
        recipe = after_step_8(root, straight, f"changed-{name}")
        checkpoints = recipe.run_folder / "checkpoints"
        with_learning_rate(checkpoints / "4", 0.5)
        if name == "damaged":
            damage(next((checkpoints / "8").glob("master-*")))
        assert run_ranks(run, 2, recipe) == [Outcome("finished", 12)] * 2
        assert [row["lr"] for row in read_metrics(recipe.run_folder)] == [
            row["lr"] for row in read_metrics(straight.run_folder)
        ]
        entries = (recipe.run_folder / "ledger.jsonl").read_text() if name == "damaged" else ""
        assert ("recipe changed" in entries) == (name == "damaged")
