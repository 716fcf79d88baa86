"""Going back a few steps without some samples; spikes; changed recipes that somebody agreed to."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from foundation.journal import read_metrics, read_samples
from foundation.recipe import Recipe
from foundation.recipe.schema import Spikes
from nanotron_ext import ledger
from nanotron_ext.checkpoint import CheckpointReader, list_checkpoints
from nanotron_ext.data.loader import MixtureLoader
from nanotron_ext.train.run import run
from nanotron_ext.train.spikes import SpikeDetector
from smollm3.command_line import main
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewind")
    prepare(folder)
    return folder


def command(*arguments: object) -> int:
    return main(["rewind", *map(str, arguments)])


def staged(root: Path, second_stage: int, steps: int) -> Recipe:
    stages = [
        {"name": "one", "start_training_step": 1, "mixture": {"a": 0.7, "b": 0.3}},
        {"name": "two", "start_training_step": second_stage, "mixture": {"b": 0.9, "a": 0.1}},
    ]
    tokens = f"{{sequence_length: 16, train_steps: {steps}, micro_batch_size: 2}}"
    return tiny_recipe(root, tokens=tokens, data_stages=json.dumps(stages))


def test_what_is_left_out_is_all_that_is_missing(root: Path) -> None:
    """Against a run whose stages are that much longer, with these steps taken out of its list."""
    skipped = [(8, 8), (24, 4), (60, 12)]  # steps 3, 4 and 7 of the longer run, and 16 to 18 in its second stage
    longer = MixtureLoader(staged(root, 11 + 3, 20 + 6), 0, 1)
    expected = [longer.sample_ids(step) for step in range(1, 27) if step not in (3, 4, 7, 16, 17, 18)]
    for dp_size in (1, 2):
        loaders = [MixtureLoader(staged(root, 11, 20), rank, dp_size, skipped) for rank in range(dp_size)]
        steps = range(1, 21)
        found = [list(itertools.chain(*(loader.sample_ids(step) for loader in loaders))) for step in steps]
        assert found == expected
    assert loaders[0].consumed(20) == longer.consumed(26)
    assert loaders[0].consumed(2) == longer.consumed(2) and loaders[0].consumed(3) == longer.consumed(5)
    assert [loaders[0].data_position(step) for step in (0, 2, 3, 20)] == [0, 8, 20, 104]


def test_rewind(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(root, checkpoints__checkpoint_interval=2, logging__log_samples="true")
    folder = recipe.run_folder
    run_ranks(run, 2, recipe)
    before, first_losses = read_samples(folder), [row["loss"] for row in read_metrics(folder)]
    for arguments, message in [
        (("--to-step", 5), "has no checkpoint of step 5; it has: 2, 4, 6, 8"),
        (("--to-step", 6, "--skip-samples", "18-20"), "which has seen samples up to 23. Rewind further back"),
        (("--to-step", 2, "--skip-samples", "15-16"), "belong to two data stages"),
        (("--to-step", 2, "--skip-samples", "32-33"), "The run has no sample 32: its 8 steps end at 31"),
    ]:
        assert command(folder, *arguments) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(folder)] == ["2", "4", "6", "8"]

    assert command(folder, "--to-step", 4, "--skip-samples", "17-18") == 0
    assert "continues from step 4 without samples 16 to 19" in capsys.readouterr().out
    assert [path.name for path in list_checkpoints(folder)] == ["2", "4"]
    assert [path.name for path in list_checkpoints(folder / "rewound" / "1")] == ["6", "8"]
    assert len(read_metrics(folder / "rewound" / "1")) == 8
    run_ranks(run, 2, recipe)
    after, losses = read_samples(folder), [row["loss"] for row in read_metrics(folder)]
    assert [after[step] for step in (1, 2, 3, 4, 5, 6, 7)] == [before[step] for step in (1, 2, 3, 4, 6, 7, 8)]
    assert losses[:4] == first_losses[:4] and losses[4] != first_losses[4]
    assert ledger.skipped_samples(folder) == [(16, 4)]

    # The next segment knows from the checkpoint what was left out, without a ledger of its own.
    assert CheckpointReader(list_checkpoints(folder)[-1]).manifest["skipped_samples"] == [[16, 4]]
    tail = tiny_recipe(root, general__run="tail", checkpoints__resume_checkpoint_path=folder / "checkpoints" / "6")
    run_ranks(run, 2, tail)
    assert [row["loss"] for row in read_metrics(tail.run_folder)] == losses[6:]


def test_ledger_entry_that_a_kill_cut_off_never_was(tmp_path: Path) -> None:
    for number in range(3):
        ledger.record(tmp_path, "rewind", to_step=number, skipped_samples=[8 * number, 4])
        with (tmp_path / "ledger.jsonl").open("ab") as file:
            file.write('{"event": "rewind", "reason": "µ'.encode()[:-1])
        assert ledger.skipped_samples(tmp_path) == [(8 * done, 4) for done in range(number + 1)]


def test_spikes_are_told_from_noise() -> None:
    rng = np.random.default_rng(0)
    falling = 10 - 7 * (1 - np.exp(-np.arange(2000) / 300)) + rng.normal(0, 0.05, 2000)
    detector = SpikeDetector(Spikes())
    assert [step for step, loss in enumerate(falling) if detector.observe(float(loss))] == []
    message = detector.observe(float(falling[-1]) + 1)
    assert message is not None and "standard deviations above" in message
    assert detector.observe(float(falling[-1]) + 1) is None  # the same spike
    assert SpikeDetector(Spikes(action="off")).observe(1e9) is None


def run_into_a_spike(recipe: Recipe) -> None:
    observe = SpikeDetector.observe

    def observe_a_spike(detector: SpikeDetector, loss: float) -> str | None:
        observe(detector, loss)
        return "loss 9 lies 99 standard deviations above" if len(detector._losses) == 7 else None

    SpikeDetector.observe = observe_a_spike  # type: ignore[method-assign]
    run(recipe)


def test_a_spike_stops_the_run_and_the_message_says_how_to_go_on(root: Path) -> None:
    recipe = tiny_recipe(root, general__run="spike", spikes__action="stop")
    with pytest.raises(RuntimeError, match=r"Step 7: loss 9 .*--to-step 4 --skip-samples 24-27"):
        run_ranks(run_into_a_spike, 2, recipe)
    outcome = json.loads((recipe.run_folder / "outcome.json").read_text())
    assert outcome["outcome"] == "failed" and "smollm3 rewind" in outcome["message"]
    warned = tiny_recipe(root, general__run="spike")
    assert run_ranks(run, 2, warned)[0].outcome == "finished"


def test_a_changed_recipe_needs_consent(root: Path) -> None:
    first = tiny_recipe(root, general__run="changed", tokens__stop_step=4)
    run_ranks(run, 2, first)
    rate = {"optimizer__learning_rate_scheduler__learning_rate": 1e-3, "general__run": "changed"}
    key = "optimizer.learning_rate_scheduler.learning_rate"
    with pytest.raises(RuntimeError, match=rf"(?s)accept_changes=\[optimizer\].*{key}: 0.003 there, 0.001 here"):
        run_ranks(run, 2, tiny_recipe(root, **rate))
    agreed = tiny_recipe(root, **rate, checkpoints__accept_changes=f"[{key}]")
    run_ranks(run, 2, agreed)
    assert [row["lr"] for row in read_metrics(agreed.run_folder)][3:6] == [3e-3, 1e-3, 1e-3]
    [entry] = ledger.read(agreed.run_folder, "recipe changed")
    assert entry["step"] == 4 and entry["changes"] == {key: [3e-3, 1e-3]}
