"""The saved template in the engines that servers and clients render it with: minijinja (Rust), @huggingface/jinja
(JavaScript) and llama.cpp (C++). The expected text is written by hand, or was measured of the official template."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.recipe import TemplateName
from posttrain.template import load_template
from tests.compat.environments import template_engines
from tests.posttrain.official_semantics import SYSTEM_TEXTS, decided, expected_of
from tests.posttrain.template_cases import CASES, CHATML_CASES, Case

pytestmark = pytest.mark.compat

HERE = Path(__file__).parent
DATE = "01 July 2025"
Engine = Callable[[list[dict[str, Any]], TemplateName], list[Any]]

# What llama.cpp's server does to a request before the template sees it: it refuses what is not in OpenAI's form, joins
# the parts of a content by a line break, and leaves out fields of reasoning but `reasoning_content`.
NOT_IN_OPENAIS_FORM = {
    "tools mean xml tools", "tools come behind xml tools", "two tool calls after text", "a result as a mapping",
}  # fmt: skip
CHANGED_BY_THE_SERVER = {"content in parts", "reasoning in the field of other servers"}


@pytest.fixture(scope="session", params=["minijinja", "javascript", "llama.cpp"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder, work = template_engines(), tmp_path_factory.mktemp("engine")
    python = str(folder / "bin" / "python")
    if request.param == "javascript":
        (work / "node_modules").symlink_to(folder / "node_modules")
        shutil.copy(HERE / "render_jinja.mjs", work)
        command = ["node", str(work / "render_jinja.mjs")]
    else:
        command = [python, str(HERE / f"render_{request.param.replace('.', '_')}.py")]

    def render(conversations: list[dict[str, Any]], template: TemplateName = "dual_mode") -> list[Any]:
        file = work / "request.json"
        file.write_text(json.dumps({"template": load_template(template), "conversations": conversations}))
        done = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        answers = json.loads(done.stdout)
        assert len(answers) == len(conversations)
        return list(answers)

    render.name = request.param  # type: ignore[attr-defined]
    return render


def differences(cases: list[Case], answers: list[Any]) -> dict[str, Any]:
    wanted = {case.name: case.expected.replace("«", "").replace("»", "") for case in cases}
    return {name: got for (name, text), got in zip(wanted.items(), answers, strict=True) if got != text}


def conversations_of(cases: list[Case]) -> list[dict[str, Any]]:
    return [{"messages": case.messages, "arguments": {"date_string": DATE, **case.arguments}} for case in cases]


def test_the_table_of_the_template(engine: Any) -> None:
    different = differences(CASES, engine(conversations_of(CASES), "dual_mode"))
    if engine.name == "llama.cpp":
        assert {name for name, got in different.items() if isinstance(got, dict)} == NOT_IN_OPENAIS_FORM
        assert {name for name, got in different.items() if isinstance(got, str)} == CHANGED_BY_THE_SERVER
    else:
        assert different == {}


def test_the_table_of_plain_chatml(engine: Any) -> None:
    different = differences(CHATML_CASES, engine(conversations_of(CHATML_CASES), "chatml"))
    assert set(different) == ({"content in parts"} if engine.name == "llama.cpp" else set())


def test_the_official_semantics_of_system_texts(engine: Any) -> None:
    """Each text under both values of `enable_thinking`, mode and instructions read out of the rendered text."""
    asked = [(text, thinking) for text in SYSTEM_TEXTS for thinking in (True, False)]
    conversations = [
        {
            "messages": [{"role": "system", "content": text}, {"role": "user", "content": "Hi"}],
            "arguments": {"enable_thinking": thinking, "date_string": DATE, "add_generation_prompt": True},
        }
        for text, thinking in asked
    ]
    for (text, thinking), rendered in zip(asked, engine(conversations, "dual_mode"), strict=True):
        assert decided(rendered) == expected_of(text, thinking), text


REFUSED = {
    "an image": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
    "an unknown role": [{"role": "critic", "content": "x"}],
    "a late system message": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
}


def test_nothing_is_left_out_in_silence(engine: Any) -> None:
    answers = engine([{"messages": messages, "arguments": {}} for messages in REFUSED.values()], "dual_mode")
    assert [list(answer) for answer in answers] == [["error"]] * len(REFUSED)
