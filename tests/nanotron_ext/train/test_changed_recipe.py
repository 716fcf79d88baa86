"""A run that goes on with another batch, other sources or other stages: one consent, and no window twice or never."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation.journal import last_row, read_metrics, read_samples, tokens_per_step
from foundation.recipe import Recipe
from nanotron_ext import ledger
from nanotron_ext.checkpoint import CheckpointReader, checkpoint_folder
from nanotron_ext.rewind import rewind
from nanotron_ext.train.run import run
from tests.nanotron_ext.data.prepared_data import random_documents, write_source
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import damage, prepare, tiny_recipe

WINDOW, CHANGED_AT, LAST = 16, 6, 18
STAGES = [
    {"name": "one", "start_training_step": 1, "mixture": {"a": 0.75, "b": 0.25}},
    {"name": "two", "start_training_step": 4, "mixture": {"a": 0.5, "b": 0.5}},
]
WITH_C = [*STAGES, {"name": "three", "start_training_step": 10, "mixture": {"a": 0.3, "b": 0.3, "c": 0.4}}]
DOUBLED: dict[str, Any] = {"batch": 8, "stages": WITH_C}


def recipe_of(root: Path, name: str, batch: int = 4, stages: Any = STAGES, last: int = LAST, **keys: object) -> Recipe:
    """`batch` samples for each of two replicas, in micro-batches of four."""
    tokens = {
        "sequence_length": WINDOW,
        "train_steps": LAST,
        "stop_step": last,
        "micro_batch_size": 4,
        "batch_accumulation_per_replica": batch // 4,
    }
    changes: dict[str, object] = {
        "general__run": name,
        "tokens": json.dumps(tokens),
        "data_stages": json.dumps(stages),
        "logging__log_samples": "true",
        "checkpoints__checkpoint_interval": 3,
    }
    return tiny_recipe(root, **(changes | keys))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small sources, so that a run reads some of them more than once."""
    folder = tmp_path_factory.mktemp("changes")
    prepare(folder)
    rng = np.random.default_rng(1)
    sha = hashlib.sha256((folder / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest()
    for source, tokens in (("small_a", 1000), ("c", 1500)):
        write_source(folder / "data", source, [random_documents(rng, tokens)], tokenizer_sha256=sha)
    (folder / "data" / "a").rename(folder / "data" / "large_a")
    manifest = folder / "data" / "small_a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"small_a"', '"a"'))
    (folder / "data" / "small_a").rename(folder / "data" / "a")
    return folder


def assert_every_window_in_its_turn(recipe: Recipe, batches: list[int]) -> None:
    """By the log alone: within a pass over a source no window comes twice, and none is left out of a whole pass."""
    log = read_samples(recipe.run_folder)
    assert [len(log[step]) for step in range(1, LAST + 1)] == batches
    counts = Counter(sample for step in log for sample in log[step])
    for source in ("a", "b", "c"):
        manifest = json.loads((Path(recipe.data.path) / source / "manifest.json").read_text())
        windows = (manifest["tokens"] - 1) // WINDOW
        read = [counts[source, window] for window in range(windows)]
        assert sum(read) == sum(count for (name, _), count in counts.items() if name == source), "no other window"
        assert max(read) - min(read) <= 1, source
        passes, rest = divmod(sum(read), windows)
        assert read.count(passes + 1) == rest and read.count(passes) == windows - rest
    assert sum(counts["a", window] for window in range(62)) > 62, "a was read more than once, or this shows little"


def without_consent(recipe: Recipe) -> str:
    with pytest.raises(RuntimeError, match="CheckpointError") as refused:
        run_ranks(run, 2, recipe)
    return str(refused.value)


def test_twice_the_batch_and_a_new_source_go_on_with_one_consent(root: Path) -> None:
    run_ranks(run, 2, recipe_of(root, "doubled", last=CHANGED_AT))
    message = without_consent(recipe_of(root, "doubled", **DOUBLED))
    assert "start a new run with another general.run" in message
    advice = re.search(r"checkpoints\.(accept_changes)=(\[\S+\])\;", message)
    assert advice is not None and advice[2] == "[data_stages,global_batch_size]"

    # As advised, and stopped on the way: what was agreed to once is not asked again.
    run_ranks(run, 2, recipe_of(root, "doubled", **DOUBLED, last=12, checkpoints__accept_changes=advice[2]))
    recipe = recipe_of(root, "doubled", **DOUBLED)
    run_ranks(run, 2, recipe)
    assert_every_window_in_its_turn(recipe, [8] * CHANGED_AT + [16] * (LAST - CHANGED_AT))

    [entry] = ledger.read(recipe.run_folder, "recipe changed")
    assert entry["step"] == CHANGED_AT and entry["changes"]["global_batch_size"] == [8, 16]
    rows = read_metrics(recipe.run_folder)
    expected = [128 * step for step in range(1, 7)] + [768 + 256 * step for step in range(1, 13)]
    assert [row["tokens"] for row in rows] == expected
    assert tokens_per_step(rows) == [128] * 6 + [256] * 12 and tokens_per_step(rows[7:]) == [256] * 11
    sources = (last_row(recipe.run_folder / "metrics.jsonl") or {})["data"]
    assert sum(record["tokens"] for record in sources.values()) == expected[-1]

    # Adam goes on: a second moment is at least what three steps leave of the one before the change.
    before, after = (CheckpointReader(checkpoint_folder(recipe.run_folder, step)) for step in (CHANGED_AT, 9))
    for name in before.names():
        left = before.read("exp_avg_sq", name) * recipe.optimizer.adam_beta2**3
        assert bool((after.read("exp_avg_sq", name) >= left * (1 - 1e-5)).all()) and float(left.max()) > 0, name

    # The same again in one go, from a copy at another place: nothing depends on where the run was stopped.
    tail = {"checkpoints__resume_checkpoint_path": checkpoint_folder(recipe.run_folder, CHANGED_AT)}
    again = recipe_of(root, "again", **DOUBLED, **tail, checkpoints__accept_changes=advice[2])
    run_ranks(run, 2, again)
    assert read_samples(again.run_folder) == {
        step: samples for step, samples in read_samples(recipe.run_folder).items() if step > CHANGED_AT
    }
    assert [row["loss"] for row in read_metrics(again.run_folder)] == [row["loss"] for row in rows[CHANGED_AT:]]


def test_a_moved_border_and_smaller_batches_on_another_layout(root: Path) -> None:
    """Changed twice, the second time with a rewind in front of the first change; each time from where the data was."""
    run_ranks(run, 2, recipe_of(root, "moved", batch=8, last=CHANGED_AT))
    consent = {"checkpoints__accept_changes": "[data_stages,global_batch_size]"}
    earlier = [WITH_C[0], {**WITH_C[1], "start_training_step": 8}, {**WITH_C[2], "start_training_step": 9}]
    run_ranks(run, 1, recipe_of(root, "moved", batch=4, stages=earlier, last=12, parallelism="{dp: 1}", **consent))
    rewind(recipe_of(root, "moved").run_folder, 9, None)
    recipe = recipe_of(root, "moved", batch=8, stages=WITH_C, **consent)
    run_ranks(run, 2, recipe)
    assert_every_window_in_its_turn(recipe, [16] * 6 + [4] * 3 + [16] * 9)
    assert [entry["step"] for entry in ledger.read(recipe.run_folder, "recipe changed")] == [6, 9]


def test_behind_a_damaged_checkpoint_the_older_recipe_is_known(root: Path) -> None:
    """The newest checkpoint has the new batch and cannot be read: the one before it has the old one."""
    run_ranks(run, 2, recipe_of(root, "fallback", last=CHANGED_AT))
    consent = {"checkpoints__accept_changes": "[data_stages,global_batch_size]"}
    run_ranks(run, 2, recipe_of(root, "fallback", **DOUBLED, last=9, **consent))
    recipe = recipe_of(root, "fallback", **DOUBLED)
    damage(next(checkpoint_folder(recipe.run_folder, 9).glob("master-*")))
    run_ranks(run, 2, recipe)
    assert_every_window_in_its_turn(recipe, [8] * CHANGED_AT + [16] * (LAST - CHANGED_AT))
    assert [row["tokens"] for row in read_metrics(recipe.run_folder)][5:8] == [768, 1024, 1280]


def test_samples_are_left_out_behind_a_change_too(root: Path) -> None:
    """A range of whole new batches, which begin behind the old ones: 40 samples, then 16 to a step."""
    run_ranks(run, 2, recipe_of(root, "skips", last=CHANGED_AT))
    consent = {"checkpoints__accept_changes": "[data_stages,global_batch_size]"}
    run_ranks(run, 2, recipe_of(root, "skips", **DOUBLED, last=12, **consent))
    recipe = recipe_of(root, "skips", **DOUBLED)
    whole = read_samples(recipe.run_folder)
    # Step 7 had samples 48 to 63, step 8 had 64 to 79, step 9 had 80 to 95.
    assert rewind(recipe.run_folder, CHANGED_AT, (70, 70)) == (64, 16)
    run_ranks(run, 2, recipe_of(root, "skips", **DOUBLED, last=9, **consent))
    left = read_samples(recipe.run_folder)
    assert left[7] == whole[7] and left[8] == whole[9]


IMPOSSIBLE = {
    "data.seed": ({"data__seed": 9}, "[data_seed]", "data.seed is 9 here, 6 there"),
    "chunk_tokens": ({"data__chunk_tokens": 32}, "[chunk_tokens]", "data.chunk_tokens is 32 here, 16 there"),
    "shape": (
        {"model__model_config__intermediate_size": 64},
        "[model]",
        "changes 4 parameters; the first is decoder.0",
    ),
    "window": (
        {"tokens__sequence_length": 8, "data__chunk_tokens": 16},
        "[sequence_length]",
        "tokens.sequence_length is 8 here, 16 there",
    ),
}


@pytest.fixture(scope="module")
def six_steps(root: Path) -> Recipe:
    recipe = recipe_of(root, "six", last=CHANGED_AT)
    run_ranks(run, 2, recipe)
    return recipe


@pytest.mark.parametrize("case", IMPOSSIBLE)
@pytest.mark.parametrize("is_agreed", [True, False])
def test_what_cannot_be_changed_is_refused_once_and_for_all(
    root: Path, six_steps: Recipe, case: str, is_agreed: bool
) -> None:
    keys, consent, problem = IMPOSSIBLE[case]
    if is_agreed:
        keys = keys | {"checkpoints__accept_changes": consent}
    message = without_consent(recipe_of(root, "six", **keys))
    assert "cannot be continued with this recipe" in message and problem in message
    assert "accept_changes" not in message.split("cannot be continued")[1]


def test_the_refusal_shows_of_the_stages_what_differs(root: Path, six_steps: Recipe) -> None:
    stages = '[{"name": "one", "start_training_step": 1, "mixture": {"a": 0.5, "b": 0.5}}]'
    message = without_consent(recipe_of(root, "six", data_stages=stages))
    shown = message.split("What differs:")[1].splitlines()[1:]
    assert [line.split(":")[0].strip() for line in shown[:3]] == [
        "data_stages.0.mixture.a", "data_stages.0.mixture.b", "data_stages.1",
    ], message  # fmt: skip
    assert "0.75 there, 0.5 here" in shown[0] and "there, None here" in shown[2]
    assert "agree to it with checkpoints.accept_changes=[data_stages];" in message


def test_the_advice_fits_a_run_that_continues_another(root: Path, six_steps: Recipe) -> None:
    """Another name would not help: the run has a name of its own already."""
    keys = {"checkpoints__resume_checkpoint_path": six_steps.run_folder}
    message = without_consent(recipe_of(root, "next", batch=8, **keys))
    assert "another general.run" not in message and "without checkpoints.resume_checkpoint_path" in message
    assert not recipe_of(root, "next").run_folder.exists()


def test_a_source_with_other_files_needs_another_name(tmp_path: Path) -> None:
    prepare(tmp_path)
    run_ranks(run, 2, recipe_of(tmp_path, "files", last=3))
    manifest = tmp_path / "data" / "b" / "manifest.json"
    old = json.loads(manifest.read_text())["files"][0]["sha256"]
    manifest.write_text(manifest.read_text().replace(old, "1" * 64))
    consent = {"checkpoints__accept_changes": "[data_stages,global_batch_size]"}
    message = without_consent(recipe_of(tmp_path, "files", batch=8, **consent))
    assert "b.files" in message and "give a source with other files another name" in message
    manifest.write_text(manifest.read_text().replace('"b"', '"b2"'))
    manifest.parent.rename(tmp_path / "data" / "b2")
    stages = json.loads(json.dumps(STAGES).replace('"b"', '"b2"'))
    run_ranks(run, 2, recipe_of(tmp_path, "files", batch=8, stages=stages, last=6, **consent))
