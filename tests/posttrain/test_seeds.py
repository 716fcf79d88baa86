"""The table over several seeds; the training itself is replaced by a copy of the model."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from posttrain import seeds
from posttrain.tiny_data import TASKS, write_sets
from smollm3.command_line import main


def test_every_seed_goes_through_all_phases(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUN", str(tmp_path))
    shutil.copytree(base_model, tmp_path / "hf/long_context_64k")
    write_sets(tmp_path / "posttrain_data", 0, {"midtrain": 1, "sft": 1, "apo": 1, "heldout": 1})
    started = []

    def run(command: list[str], env: Mapping[str, str]) -> CompletedProcess[str]:
        options = dict(argument.split("=", 1) for argument in command if "=" in argument)
        (phase,) = (Path(argument).stem for argument in command if argument.endswith(".yaml"))
        started.append((phase, options["general.seed"], options["data.seed"]))
        shutil.copytree(options["model.model_name_or_path"], f"{options['general.runs_path']}/hf/{phase}")
        return CompletedProcess(command, 0)

    monkeypatch.setattr(seeds.subprocess, "run", run)
    assert main(["posttrain-seeds", "--seeds", "1,2"]) == 0
    assert started == [(phase, seed, seed) for seed in "12" for phase in ("midtrain", "sft", "apo")]
    table = json.loads((tmp_path / "eval" / "posttrain_seeds.json").read_text())
    assert len(table["chains"]) == 2 and table["base"]["all"]["think"]["correct"]["trials"] == len(TASKS)
    assert "per seed" in capsys.readouterr().out

    monkeypatch.setattr(seeds.subprocess, "run", lambda command, env: CompletedProcess(command, 1))
    assert main(["posttrain-seeds", "--seeds", "1,2"]) == 2
    assert "Phase midtrain under seed 1 failed" in capsys.readouterr().err
