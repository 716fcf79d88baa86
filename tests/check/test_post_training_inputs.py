"""`smollm3 check --data` on post-training recipes: what is there, what is not, and what only the hub may have."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from smollm3.command_line import main

MODEL, SET = "HuggingFaceTB/a-model", "HuggingFaceTB/a-set"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_home/hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    return "recipes/tiny/sft.yaml"


def checked(recipe: str, model: str, sets: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    datasets = json.dumps([{"path": path} for path in sets])
    code = main(["check", recipe, "--data", f"model.model_name_or_path={model}", f"data.datasets={datasets}"])
    shown = capsys.readouterr()
    return code, (shown.err if code else shown.out).rstrip()


def test_what_only_the_hub_may_have_is_named(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = checked(recipe, MODEL, [SET, SET], capsys)
    assert code == 0 and said.endswith(f"ok, but not looked for on the hub: {MODEL}, {SET}")
    cached = tmp_path / "hf_home/hub/models--HuggingFaceTB--a-model/snapshots/0"
    cached.mkdir(parents=True)
    (cached / "config.json").touch()
    assert checked(recipe, MODEL, [SET], capsys)[1].endswith(f"on the hub: {SET}")
    (tmp_path / "hf_home/datasets/HuggingFaceTB___a-set").mkdir(parents=True)
    assert checked(recipe, MODEL, [SET], capsys)[1].endswith("sft.yaml: ok")


def test_without_a_connection_it_is_missing(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, said = checked(recipe, MODEL, [SET], capsys)
    assert code == 2 and f"HF_HUB_OFFLINE is set, and {constants.HF_HOME} holds no {MODEL}, no {SET}" in said


@pytest.mark.parametrize(("content", "code", "message"), [("{}\n", 0, ": ok"), ("", 2, "set.jsonl is empty")])
def test_an_empty_file_is_no_set(
    content: str, code: int, message: str, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").touch()
    (tmp_path / "set.jsonl").write_text(content)
    found, said = checked(recipe, str(tmp_path / "model"), [str(tmp_path / "set.jsonl")], capsys)
    assert found == code and message in said
