"""What `make record` takes over of a run."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from tools.record import main, record


def put(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "tiny"
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "validation_bits_per_byte": {"a": 1.5, "b": 2.5}}]
    put(folder / "stage1" / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    put(folder / "data" / "a" / "manifest.json", {"tokens": 100})
    put(folder / "data" / "b" / "manifest.json", {"tokens": 23})
    put(folder / "chain.json", {"steps": {"data": {"seconds": 12.345}}})
    put(folder / "eval" / "pretraining.json", {"stages": [{"stage": "stage1"}], "held_out": []})
    replies = [
        {"task": task, "mode": mode, "question": f"{task} {number}?", "text": f"{mode} {number}", "correct": False}
        for number in (1, 2)
        for task in ("addition", "chain", "tool_call")
        for mode in ("think", "no_think")
    ]
    models = {f"runs/tiny/hf/{name}": {"summary": {"of": name}, "replies": replies} for name in ("sft", "merged")}
    put(folder / "eval" / "capabilities.json", {"models": models})
    return folder


def test_what_pages_quote_is_taken_over(run: Path) -> None:
    (run / "link").symlink_to(run / "chain.json")
    found = record(run, "two cores", "2026-11")
    assert (found["machine"], found["measured"], found["seconds"]) == ("two cores", "2026-11", {"data": 12.3})
    assert found["data_tokens"] == 123
    assert found["bytes"] == sum(file.stat().st_size for file in run.rglob("*.json*") if not file.is_symlink())
    assert found["validations"] == [{"stage": "stage1", "step": 2, "bits_per_byte": {"a": 1.5, "b": 2.5}}]
    assert found["capabilities"] == {"sft": {"of": "sft"}, "merged": {"of": "merged"}}


def test_the_chat_is_the_first_prompt_of_its_task_whatever_the_reply(run: Path) -> None:
    replies = record(run, "", "")["replies"]
    assert [(reply["question"], reply["text"]) for reply in replies] == [
        ("chain 1?", "think 1"),
        ("chain 1?", "no_think 1"),
        ("tool_call 1?", "no_think 1"),
    ]


def test_seeds_are_taken_over_where_they_are(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = run.parents[1]
    (root / "results").mkdir()
    monkeypatch.setattr("tools.record.ROOT", root)
    main([str(run), "--machine", "two cores"], standalone_mode=False)
    assert [file.name for file in (root / "results").iterdir()] == ["demo.json"]
    put(root / "runs" / "tiny-seeds" / "seeds.json", {"seeds": [1, 2], "effects": []})
    main([str(run), "--machine", "two cores"], standalone_mode=False)
    seeds = json.loads((root / "results" / "demo_seeds.json").read_text())
    assert seeds["seeds"] == [1, 2] and seeds["machine"] == "two cores"


def test_an_unfinished_run_is_refused_before_anything_is_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "eval" / "capabilities.json").unlink()
    monkeypatch.setattr("tools.record.ROOT", run.parents[1])
    with pytest.raises(click.ClickException, match=r"capabilities\.json cannot be read .*Finish the run first"):
        main([str(run)], standalone_mode=False)
    assert not (run.parents[1] / "results").exists()
