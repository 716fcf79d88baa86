"""System text of a prompt set reaches the teacher and the training rows, wherever the set has it."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from datapipes.errors import SourceError
from datapipes.synthetic.prompts import _without_flags
from tests.datapipes.synthetic.fake_server import serving
from tests.datapipes.synthetic.test_synthetic import chat, echo, make, rows_of, write_prompts
from tests.posttrain.official_semantics import OURS, SYSTEM_TEXTS

PIRATE = "You are a pirate."


def asked(question: str, custom: Any, system: str = "", **more: Any) -> dict[str, Any]:
    """A row as smoltalk2's systemchats set has them, with the persona beside the messages."""
    named = {"custom_instructions": custom, "enable_thinking": False, "python_tools": [], "xml_tools": [], **more}
    return {**chat(question, system=system), "chat_template_kwargs": named}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_persona_in_custom_instructions_reaches_the_teacher(form: str, tmp_path: Path) -> None:
    rows = [
        asked("one", PIRATE),
        asked("two", "", system="Be kind. /no_think."),
        asked("three", f"{PIRATE} /no_think", system="/no_think"),
        asked("four", ""),
        asked("five", PIRATE, system=PIRATE),
    ]
    overrides = []
    if form == "parquet":
        (tmp_path / "prompts").mkdir()
        Dataset.from_list(rows).to_parquet(str(tmp_path / "prompts" / "train.parquet"))
        prompts = {"kind": "files", "path": str(tmp_path / "prompts"), "format": "parquet", "files": ["*.parquet"]}
        overrides = [f"prompts={json.dumps([prompts])}"]
    else:
        write_prompts(tmp_path / "prompts", rows)
    with serving(echo) as server:
        report = make(tmp_path, server.url, *overrides)
    wanted = {"one": PIRATE, "two": "Be kind. .", "three": PIRATE, "four": None, "five": PIRATE}

    def persona(messages: list[dict[str, str]]) -> str | None:
        return messages[0]["content"] if messages[0]["role"] == "system" else None

    assert {request["messages"][-1]["content"]: persona(request["messages"]) for request in server.requests} == wanted
    assert {row["messages"][-2]["content"]: persona(row["messages"]) for row in rows_of(tmp_path)} == wanted
    assert (report.rows, report.lost.total()) == (5, 0)
    assert report.passed_on == {"system text": 4, "several questions": 0}
    assert json.loads((tmp_path / "out/report.json").read_text())["passed_on"] == report.passed_on


def test_prompts_that_would_lose_something_are_counted(tmp_path: Path) -> None:
    rows = [
        asked("one", PIRATE, system="Be kind."),
        asked("two", "", xml_tools=['{"name": "f"}']),
        {**chat("three"), "tools": [{"name": "f"}]},
        {**chat("four", "five"), "chat_template_kwargs": json.dumps({"custom_instructions": PIRATE})},
        {"messages": [{"role": "developer", "content": "Be brief."}, *chat("six")["messages"]]},
    ]
    write_prompts(tmp_path / "prompts", rows)
    with serving(echo) as server:
        report = make(tmp_path, server.url)
    assert report.lost == {"prompt with a system message and custom_instructions": 1, "prompt with tools": 2}
    assert report.passed_on == {"system text": 2, "several questions": 1}
    systems = {request["messages"][-1]["content"]: request["messages"][0]["content"] for request in server.requests}
    assert systems == {"four": PIRATE, "five": PIRATE, "six": "Be brief."}


@pytest.mark.parametrize("given", ["a pirate", ["a pirate"], {"custom_instructions": ["a pirate"]}])
def test_arguments_that_cannot_be_read_are_refused(given: Any, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", [chat("one"), {**chat("two"), "chat_template_kwargs": given}])
    with serving(echo) as server, pytest.raises(SourceError, match=r"Row 1 of .*train\.jsonl: chat_template_kwargs is"):
        make(tmp_path, server.url)


@pytest.mark.parametrize("text", [text for text in SYSTEM_TEXTS if "override" not in text])
def test_flags_go_where_the_chat_template_takes_them_out(text: str) -> None:
    """The teacher's instructions are those of the training row."""
    assert _without_flags(text) == (OURS.get(text, SYSTEM_TEXTS[text])[2] or "")
