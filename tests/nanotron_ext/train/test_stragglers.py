"""A rank that falls behind is named: by the arithmetic of the watch, and in a real run in which one rank is slow."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nanotron_ext.train.stragglers import WINDOW_STEPS, StragglerWatch, WorkTimer
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

NODES = ["n1", "n1", "n2", "n2", "n3", "n3", "n4", "n4"]


def alarms(watch: StragglerWatch, seconds: list[float], steps: int = WINDOW_STEPS) -> list[str]:
    return [alarm for _ in range(steps) if (alarm := watch.observe(seconds)[1]) is not None]


def test_stages_are_compared_with_themselves_only() -> None:
    """Pipeline stages differ in work without anybody being slow."""
    watch = StragglerWatch(NODES, [[0, 1, 2, 3], [4, 5, 6, 7]])
    assert alarms(watch, [1.0, 1.1, 1.0, 1.05, 2.0, 2.1, 2.0, 2.2]) == []
    slowest, _ = watch.observe([1.0, 1.1, 1.0, 1.3, 2.0, 2.1, 2.0, 2.2])
    assert slowest.rank == 3 and slowest.seconds_behind == pytest.approx(0.3)
    watch = StragglerWatch(NODES, [[0, 1, 2, 3], [4, 5, 6, 7]])
    [alarm] = alarms(watch, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 2.0])
    assert "rank 6 on n4 worked 3 s per step" in alarm and "same pipeline stage 2 s" in alarm


def test_an_alarm_is_given_once_and_again_when_it_is_another_rank() -> None:
    watch = StragglerWatch(NODES, [list(range(8))])
    slow_3 = [1.0] * 3 + [1.5] + [1.0] * 4
    slow_3_and_5 = [1.0] * 3 + [1.5, 1.0, 1.6] + [1.0] * 2
    assert alarms(watch, slow_3, WINDOW_STEPS - 1) == []
    assert len(alarms(watch, slow_3, 3 * WINDOW_STEPS)) == 1
    watch = StragglerWatch(NODES, [list(range(8))])
    assert ["rank 3 on n2" in alarm for alarm in alarms(watch, slow_3)] == [True]
    assert ["rank 5 on n3, 3 on n2 worked 1.6" in alarm for alarm in alarms(watch, slow_3_and_5)] == [True]


def test_one_slow_step_is_no_alarm() -> None:
    watch = StragglerWatch(NODES, [list(range(8))])
    watch.observe([1.0] * 7 + [4.0])
    assert alarms(watch, [1.0] * 8, WINDOW_STEPS - 1) == []


SLOW_SECONDS = 0.15  # more than a busy machine holds up a rank by itself


def test_pauses_are_no_work() -> None:
    timer = WorkTimer(torch.device("cpu"))
    assert timer.seconds() == 0
    for _ in range(2):  # a pause of an earlier step counts no more
        with timer.paused():
            time.sleep(0.02)
        timer.start()
        time.sleep(0.05)
        for _ in range(2):
            with timer.paused():
                time.sleep(0.1)
        timer.stop()
        assert 0.05 <= timer.seconds() < 0.1


def _train_with_a_slow_rank(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """On each rank: metrics rows and warnings of a run on which rank 1 computes SLOW_SECONDS longer."""
    from foundation.journal import read_metrics
    from nanotron_ext.train import run as training
    from nanotron_ext.train import step, stragglers

    def slow_engine(name: str) -> Any:
        engine = pipeline_engine(name)
        train_batch_iter = engine.train_batch_iter

        def slowly(*arguments: Any, **keywords: Any) -> Any:
            if step.dist.get_rank() == 1:
                time.sleep(SLOW_SECONDS)
            return train_batch_iter(*arguments, **keywords)

        engine.train_batch_iter = slowly
        return engine

    pipeline_engine, step.pipeline_engine = step.pipeline_engine, slow_engine
    stragglers.WINDOW_STEPS = 4
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    training.logger.addHandler(handler)
    recipe = tiny_recipe(root, tokens__val_check_interval="null")
    training.run(recipe)
    return read_metrics(recipe.run_folder), warnings


def test_a_run_names_its_slow_rank(tmp_path: Path) -> None:
    prepare(tmp_path)
    rows, warnings = run_ranks(_train_with_a_slow_rank, 2, tmp_path)[0]
    measured = rows[1:]  # the first step has nothing before it
    assert [row["slowest_rank"] for row in measured] == [1] * len(measured)
    behind = sorted(row["slowest_rank_seconds_behind"] for row in measured)[len(measured) // 2]
    assert SLOW_SECONDS * 0.8 < behind < SLOW_SECONDS * 2
    [warning] = [warning for warning in warnings if warning.startswith("Slow: ")]
    assert "rank 1 on " in warning
