"""The time left: from the pace of the last steps, for resumed trainings and several in a row too."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.plan import Folders, Job, Plan, TrainingRun
from jobs.progress import seconds_left


def write_rows(folder: Path, first: int, last: int, seconds_per_step: float, **more: float) -> None:
    folder.mkdir()
    rows = [
        {"step": step, "loss": 1.0, "tokens": 64 * step, "tokens_per_second": 64 / seconds_per_step}
        | {key: value * step for key, value in more.items()}
        for step in range(first, last + 1)
    ]
    rows[0]["tokens_per_second"] = 0.1  # the first step is slow
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def step(*runs: TrainingRun) -> Plan:
    job = Job("train", "", unplanned, lambda folders: True, "train")
    return Plan(job, Path("train.yaml"), Path("train"), (), (), (), runs=runs)


def unplanned(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    raise NotImplementedError


def test_stage_that_goes_on_from_another_stages_step(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", 201, 230, 2.0)
    assert seconds_left(step(TrainingRun(tmp_path / "a", last_step=300)), 500.0, 100) == pytest.approx(70 * 2.0)


def test_the_pace_is_that_of_the_present_batch(tmp_path: Path) -> None:
    """A batch that was doubled at step 200: 64 tokens a step until then, 128 now, at two seconds."""
    write_rows(tmp_path / "a", 201, 230, 2.0)
    file = tmp_path / "a" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[1:]:
        row["tokens_per_second"] = 64.0
    for row in rows:
        row["tokens"] = 128 * row["step"] - 64 * 200
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seconds_left(step(TrainingRun(tmp_path / "a", last_step=300)), 500.0, 100) == pytest.approx(70 * 2.0)


def test_phase_whose_steps_follow_from_its_data(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", 1, 30, 2.0, epoch=0.02)  # two epochs are 100 steps
    assert seconds_left(step(TrainingRun(tmp_path / "a", epochs=2)), 1.0, 100) == pytest.approx(70 * 2.0)


def test_second_of_two_trainings_is_still_to_come(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", 1, 30, 2.0)
    runs = TrainingRun(tmp_path / "a", last_step=40), TrainingRun(tmp_path / "b", last_step=40)
    assert seconds_left(step(*runs), 60.0, 160) == pytest.approx(10 * 2.0 + 80)
    write_rows(tmp_path / "b", 1, 10, 2.0)
    assert seconds_left(step(*runs), 120.0, 160) == pytest.approx(30 * 2.0)


def test_before_the_first_step_the_expectation_counts(tmp_path: Path) -> None:
    assert seconds_left(step(TrainingRun(tmp_path / "a", last_step=40)), 30.0, 100) == 70
    assert seconds_left(step(), 130.0, 100) == 0


def test_line_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", 1, 1000, 2.0)
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1001, "lo')
    left = seconds_left(step(TrainingRun(tmp_path / "a", last_step=1100)), 1.0, 100)
    assert left == pytest.approx(100 * 2.0)
