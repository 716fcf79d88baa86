"""Differences between recipes, ours and nanotron's."""

import json
from pathlib import Path

import pytest
import yaml

from foundation.recipe.compare import ABSENT, Difference, differences
from smollm3.command_line import main

STAGE1, STAGE2 = (f"recipes/smollm3-3b/pretrain_stage{number}.yaml" for number in (1, 2))

# A configuration in the shape of nanotron's own schema, with the values of the first stage but for theta and a weight.
NANOTRON = {
    "checkpoints": {"checkpoint_interval": 2000, "checkpoints_path": "runs/smollm3-3b"},
    "data_stages": [
        {
            "name": "stable",
            "start_training_step": 1,
            "data": {
                "seed": 6,
                "dataset": {
                    "dataset_folder": [
                        "s3://bucket/fineweb-edu/",
                        "s3://bucket/dclm/tokenized/",
                        "s3://bucket/infiwebmath",
                    ],
                    "dataset_weights": [0.333, 0.36, 0.01],
                },
            },
        }
    ],
    "model": {"model_config": {"hidden_size": 2048, "no_rope_layer": 4, "_use_doc_masking": True, "rope_theta": 1e6}},
    "optimizer": {"zero_stage": 0, "optimizer_factory": {"name": "adamW", "adam_beta1": 0.9, "adam_eps": 1e-8}},
    "parallelism": {"dp": 192, "tp": 2, "expert_parallel_size": 1},
    "tokens": {"train_steps": 4720000},
}


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.delenv("RUN", raising=False)  # recipes name their folders by it
    code = main(["diff", *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_leaves_of_nested_trees() -> None:
    left = {"a": {"b": 1, "c": [1, 2]}, "list": [{"x": 1}, {"x": 2}]}
    right = {"a": {"b": 1, "c": [1, 3]}, "list": [{"x": 1}], "new": None}
    assert differences(left, right) == [
        Difference("a.c", [1, 2], [1, 3]),
        Difference("list.1.x", 2, ABSENT),
        Difference("new", ABSENT, None),
    ]
    assert differences(left, left) == []


def test_two_stages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out = run(capsys, monkeypatch, STAGE1, STAGE2)
    assert code == 1
    for key in ("general.run", "tokens.stop_step", "checkpoints.resume_checkpoint_path"):
        assert f"  {key}\n" in out
    assert out.startswith("3 keys differ")
    assert run(capsys, monkeypatch, STAGE1, STAGE1)[0] == 0


def test_other_phases(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out = run(capsys, monkeypatch, "recipes/smollm3-3b/sft.yaml", "recipes/tiny/sft.yaml")
    assert code == 1 and "data.max_length\n    A 65536\n    B 320" in out


def test_a_published_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and sources are translated; of what both sides have, only what was changed differs."""
    published = tmp_path / "stage1.yaml"
    published.write_text(yaml.safe_dump(NANOTRON))
    code, out = run(capsys, monkeypatch, STAGE1, str(published), "--json")
    both = {one["key"]: (one["left"], one["right"]) for one in json.loads(out) if {"left", "right"} <= one.keys()}
    assert code == 1 and both == {
        "model.model_config.rope_theta": (50000.0, 1e6),
        "data_stages.0.mixture.dclm": (0.37, 0.36),
        "data_stages.0.name": ("stage1", "stable"),
        "optimizer.zero_stage": (1, 0),
    }
    only_there = [one["key"] for one in json.loads(out) if "left" not in one]
    assert only_there == ["optimizer.optimizer_factory.name", "parallelism.expert_parallel_size"]


def test_missing_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out = run(capsys, monkeypatch, STAGE1, "recipes/smollm3-3b/pretrain_stage9.yaml")
    assert code == 2 and "error: " in out and "Did you mean" in out
