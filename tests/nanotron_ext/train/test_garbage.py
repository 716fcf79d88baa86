"""Python's garbage collector runs between steps, at the same ones on every rank, and what it is for is still done."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from foundation.recipe import Recipe
from nanotron_ext.train import garbage
from nanotron_ext.train.garbage import GarbageCollection
from nanotron_ext.train.run import run
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

STEPS = 8


def collections_by_step(recipe: Recipe) -> list[tuple[int, bool]]:
    """Of every collection from the second step on: the last step begun, and whether it was within that step."""
    garbage.EVERY_STEPS = 3
    train_step, seen = TrainState.train_step, []
    now = [0, False]

    def noting(state: TrainState, batch: Any, *arguments: Any) -> Any:
        now[:] = [batch.step, True]
        for _ in range(3000):  # with cycles, as a real model's step makes them: enough for Python's threshold
            cycle: list[Any] = []
            cycle.append(cycle)
        result = train_step(state, batch, *arguments)
        now[1] = False
        return result

    def note(phase: str, _: dict[str, int]) -> None:
        if phase == "start" and now[0] >= 2:
            seen.append((now[0], bool(now[1])))

    TrainState.train_step = noting  # type: ignore[method-assign]
    gc.callbacks.append(note)
    run(recipe)
    gc.callbacks.remove(note)
    return seen[: next((i for i, (step, _) in enumerate(seen) if step > STEPS), len(seen))]


def test_collections_are_between_steps_and_alike_on_all_ranks(tmp_path: Path) -> None:
    prepare(tmp_path)
    ranks = run_ranks(collections_by_step, 2, tiny_recipe(tmp_path))
    for seen in ranks:
        assert not any(within for _, within in seen)
        assert {step for step, _ in seen if step < STEPS} == {3, 6}


def test_cycles_are_freed_and_the_collector_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Holder:
        def __init__(self) -> None:
            self.itself = self

    monkeypatch.setattr(garbage, "EVERY_STEPS", 4)
    assert gc.isenabled()
    with GarbageCollection() as collection:
        collection.after_step(1)
        assert not gc.isenabled() and gc.get_freeze_count() > 0
        watched = weakref.ref(Holder())
        collection.after_step(2)
        assert watched() is not None
        collection.after_step(4)
        assert watched() is None
    assert gc.isenabled() and gc.get_freeze_count() == 0
