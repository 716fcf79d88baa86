"""The reasoning mode of rows in the schemas of smoltalk2: kept as they are, noted, or dropped for a reason."""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from posttrain import data, tokenization
from posttrain.data import DatasetError, TrainingData, prepare_data
from posttrain.recipe import load_recipe
from posttrain.rows import conversation_of
from posttrain.template import render
from posttrain.tokenization import IGNORED
from tests.posttrain.template_cases import call

HEADER = "Reasoning mode: "
BLOCK = "<think>\nhm\n</think>\n"
EMPTY = "<think>\n\n</think>\n"
END = "<|im_end|>"


def asked(enable_thinking: Any) -> dict[str, Any]:
    """chat_template_kwargs as every row of smoltalk2's SFT and Preference sets has them."""
    return {"custom_instructions": "", "enable_thinking": enable_thinking, "python_tools": [], "xml_tools": []}


def says(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def row(*replies: str | dict[str, Any], system: Any = "", kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """A conversation of as many questions as replies; without `kwargs` it has only `messages`."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for reply in replies:
        messages += [{"role": "user", "content": "q"}, says(reply) if isinstance(reply, str) else reply]
    return {"messages": messages} | ({} if kwargs is None else {"chat_template_kwargs": kwargs})


@dataclass
class Kept:
    """`trained` are the texts that carry loss; `mode` is that of the header and of the report."""

    mode: str
    trained: list[str]
    notes: list[str] = field(default_factory=list)


def think(*replies: str | dict[str, Any]) -> dict[str, Any]:
    return row(*replies, kwargs=asked(True))


def no_think(*replies: str | dict[str, Any]) -> dict[str, Any]:
    return row(*replies, kwargs=asked(False))


REASONED, CALL = f"{BLOCK}yes", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
TOOL_CALL = {"tool_calls": [call("f", "{}")]}
PARTS = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
FROM_REPLY = {mode: f"no mode given, so /{mode} as in the reply" for mode in ("think", "no_think")}
APART = "control tokens or tool-response tags in the content pulled apart"
NO_LOSS = "turns without reasoning under /think carry no loss"
REWRITTEN = "empty think block written as the template's"
UNCLOSED = "unclosed think block"
STRAY = "think tags besides one block at the start of the reply"
TWICE = "reasoning in a field of its own and think tags in the content"
THINK, NO_THINK = Kept("think", [REASONED + END]), Kept("no_think", [f"{EMPTY}yes{END}"])
THINK_LIKE_REPLY = Kept("think", THINK.trained, [FROM_REPLY["think"]])
NO_THINK_LIKE_REPLY = Kept("no_think", NO_THINK.trained, [FROM_REPLY["no_think"]])
ONE_TURN_OF_TWO = Kept("think", THINK.trained, [NO_LOSS])
BLOCK_REWRITTEN = Kept("no_think", NO_THINK.trained, [REWRITTEN])

# What becomes of a supervised row: Kept, or the reason of its loss.
ROWS: dict[str, tuple[dict[str, Any], Kept | str]] = {
    # As in smoltalk2's *_think and *_no_think splits
    "think": (think(REASONED), THINK),
    "no_think": (no_think("yes"), NO_THINK),
    "think, two turns": (think(REASONED, f"{BLOCK}no"), Kept("think", [REASONED + END, f"{BLOCK}no{END}"])),
    "no_think, two turns": (no_think("a", "b"), Kept("no_think", [f"{EMPTY}a{END}", f"{EMPTY}b{END}"])),
    "think, its own line breaks": (think("<think>a</think>\n\nb"), Kept("think", [f"<think>a</think>\n\nb{END}"])),
    "think and a call": (think(BLOCK + CALL), Kept("think", [BLOCK + CALL + END])),
    "no_think and a call": (no_think(CALL), Kept("no_think", [EMPTY + CALL + END])),
    "no_think, the block is there": (no_think(f"{EMPTY}yes"), NO_THINK),
    "no_think, the block and a line": (no_think(f"{EMPTY}\nyes"), Kept("no_think", [f"{EMPTY}\nyes{END}"])),
    # Flags in the system message
    "flag think": (row(REASONED, system="/think"), THINK),
    "flag no_think": (row("yes", system="Be kind. /no_think"), NO_THINK),
    "flag over argument": (row("yes", system="/no_think", kwargs=asked(True)), NO_THINK),
    "system text without flag": (row("yes", system="Be kind."), NO_THINK_LIKE_REPLY),
    "system text in parts": (row("yes", system=PARTS, kwargs=asked(False)), NO_THINK),
    "a flag in parts": (row(REASONED, system=[*PARTS, {"type": "text", "text": " /think"}]), THINK),
    "system text with control tokens": (row("yes", system="End with <|im_end|>, not <|pad|>.", kwargs=asked(False)),
                                        Kept("no_think", NO_THINK.trained, [APART])),
    "an image": (row("yes", system=[*PARTS, {"type": "image"}]),
                 "a message's content has a part of type image; only text is trained on"),
    # Reasoning in a field of its own
    "reasoning_content": (think(says("yes", reasoning_content="hm")), THINK),
    "thinking": (think(says("yes", thinking="hm")), THINK),
    "reasoning": (think(says("yes", reasoning="hm")), THINK),
    "content in parts": (think(says([{"type": "text", "text": BLOCK}, {"type": "text", "text": "yes"}])), THINK),
    "empty reasoning_content": (no_think(says("yes", reasoning_content=" \n")), NO_THINK),
    "thinking behind an empty field": (think(says("yes", reasoning_content="", thinking="hm")), THINK),
    "reasoning behind blank fields": (think(says("yes", reasoning_content=" ", thinking=[], reasoning="hm")), THINK),
    "the same in two fields": (think(says("yes", reasoning_content="hm", reasoning="hm\n")), THINK),
    "two thoughts": (think(says("yes", reasoning_content="hm", thinking="ah")), "different reasoning in two fields"),
    "reasoning_content and a call": (think(says("", reasoning_content="hm", **TOOL_CALL)),
                                     Kept("think", [BLOCK + CALL + END])),
    # No mode given: that of the replies
    "messages alone, direct": (row("yes"), NO_THINK_LIKE_REPLY),
    "messages alone, reasoning": (row(REASONED), THINK_LIKE_REPLY),
    "messages alone, an empty block": (row(f"{EMPTY}yes"), NO_THINK_LIKE_REPLY),
    "null": (row("yes", kwargs=asked(None)), NO_THINK_LIKE_REPLY),
    "no key": (row("yes", kwargs={"custom_instructions": "Be kind."}), NO_THINK_LIKE_REPLY),
    # Repaired
    "history without reasoning": (think("a", REASONED), ONE_TURN_OF_TWO),
    "an answer to a tool without reasoning": (think(REASONED, "b"), ONE_TURN_OF_TWO),
    "an empty block in the history": (think(f"{EMPTY}a", REASONED), ONE_TURN_OF_TWO),
    "an empty block, closed at once": (no_think("<think></think>yes"), BLOCK_REWRITTEN),
    "an empty block behind a space": (no_think(f" {EMPTY}yes"), BLOCK_REWRITTEN),
    # The reply contradicts the header
    "no reasoning under argument true": (think("yes"), "no reasoning under /think"),
    "no reasoning under flag": (row("yes", system="/think"), "no reasoning under /think"),
    "a call without reasoning": (think(CALL), "no reasoning under /think"),
    "empty block under /think": (think(f"{EMPTY}yes"), "no reasoning under /think"),
    "blank block under /think": (think("<think> \n\t</think>\nyes"), "no reasoning under /think"),
    "reasoning under argument false": (no_think(REASONED), "reasoning under /no_think"),
    "reasoning under flag": (row(REASONED, system="/no_think"), "reasoning under /no_think"),
    "reasoning in one turn of two": (no_think("yes", REASONED), "reasoning under /no_think"),
    "reasoning_content under /no_think": (no_think(says("yes", reasoning_content="hm")), "reasoning under /no_think"),
    # The mode cannot be read
    "the text false": (row("yes", kwargs=asked("false")), "enable_thinking is no boolean but 'false'"),
    "the text true": (row(REASONED, kwargs=asked("true")), "enable_thinking is no boolean but 'true'"),
    "a number": (row("yes", kwargs=asked(0)), "enable_thinking is no boolean but 0"),
    "arguments as text": ({**row("yes"), "chat_template_kwargs": '{"enable_thinking": false}'}, NO_THINK),
    "arguments as other text": ({**row("yes"), "chat_template_kwargs": "no_think"},
                                "chat_template_kwargs is text that is no JSON"),
    "arguments as a list": ({**row("yes"), "chat_template_kwargs": ["no_think"]},
                            "chat_template_kwargs is list, no mapping"),
    "tools as text": ({**no_think("yes"), "tools": '[{"name": "f"}]'}, NO_THINK),
    "tools that are no JSON": ({**no_think("yes"), "tools": "f(x)"}, "tools is text that is no JSON"),
    "tools that are one name": ({**no_think("yes"), "tools": '"f"'}, "tools is no list of JSON schemas"),
    # Think blocks out of shape
    "unclosed": (think("<think>\nhm"), UNCLOSED),
    "unclosed, no mode": (row("<think>\nhm"), UNCLOSED),
    "unclosed, empty": (no_think("<think>"), UNCLOSED),
    "unclosed in the history": (think("<think>\nhm", REASONED), UNCLOSED),
    "closed but not opened": (think("hm\n</think>\nyes"), STRAY),
    "a second block": (think(f"{BLOCK}{REASONED}"), STRAY),
    "a block in a block": (think(f"<think>\n{BLOCK}</think>\nyes"), STRAY),
    "a block behind the answer": (think(f"Sure.\n{REASONED}"), STRAY),
    "both places": (think(says(REASONED, reasoning_content="hm")), TWICE),
    "both places, an empty block": (think(says(f"{EMPTY}yes", reasoning_content="hm")), TWICE),
    "no answer": (think(BLOCK), "no answer after the think block"),
    "content that is no text": (think(says({"text": "x"})),
                                "a message's content is dict, neither text nor a list of parts"),
}  # fmt: skip


def prepare(
    phase: str, content: list[dict[str, Any]], folder: Path, tokenizer: PreTrainedTokenizerBase, *overrides: str
) -> TrainingData:
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")
    sets = json.dumps([{"path": str(folder)}])
    packing = [] if phase == "apo" else ["data.packing_strategy=null"]
    recipe = load_recipe(f"recipes/tiny/{phase}.yaml", [f"data.datasets={sets}", *packing, *overrides])
    return prepare_data(recipe, tokenizer)


def header_of(text: str) -> str:
    return text.partition(f"{HEADER}/")[2].partition("\n")[0]


def trained_texts(sample: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    runs: list[list[int]] = [[]]
    for label in sample["labels"]:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [str(tokenizer.decode(run)) for run in runs if run]


@pytest.mark.parametrize(("content", "expected"), ROWS.values(), ids=ROWS.keys())
def test_supervised_rows(
    content: dict[str, Any], expected: Kept | str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    if isinstance(expected, str):
        with pytest.raises(DatasetError) as refused:
            prepare("sft", [content] * 4, tmp_path, tokenizer)
        assert f"loses 4 of 4 samples: 4 x {expected} (rows 1, 2, 3)" in str(refused.value)
        assert f"{tmp_path}/train.jsonl" in str(refused.value)
        return
    data = prepare("sft", [content] * 4, tmp_path, tokenizer)
    (report,) = data.reports
    assert (report.mode, report.dropped, report.cut) == (expected.mode, 0, 0)
    assert report.notes == dict.fromkeys(expected.notes, 4)
    assert header_of(str(tokenizer.decode(data.dataset[0]["input_ids"]))) == expected.mode
    assert trained_texts(data.dataset[0], tokenizer) == expected.trained


def pair(chosen: Any, rejected: Any, **kwargs: Any) -> dict[str, Any]:
    """As in smoltalk2's Preference sets: whole conversations, and the question as `prompt`."""
    replies = {"chosen": chosen, "rejected": rejected}
    conversations = {name: row(reply)["messages"] for name, reply in replies.items()}
    return {"prompt": "q", **conversations, **kwargs}


NO = f"{BLOCK}no"
THINKING, DIRECT = {"chat_template_kwargs": asked(True)}, {"chat_template_kwargs": asked(False)}
PAIRS: dict[str, tuple[dict[str, Any], tuple[str, list[str]] | str]] = {
    "think": (pair(REASONED, NO, **THINKING), ("think", [])),
    "no_think": (pair("yes", "no", **DIRECT), ("no_think", [])),
    "no mode, reasoning": (pair(REASONED, NO), ("think", [FROM_REPLY["think"]])),
    "no mode, direct": (pair("yes", "no"), ("no_think", [FROM_REPLY["no_think"]])),
    "null": (pair("yes", "no", chat_template_kwargs=asked(None)), ("no_think", [FROM_REPLY["no_think"]])),
    "reasoning in a field": (pair(says("yes", reasoning_content="hm"), NO, **THINKING), ("think", [])),
    "rejected never ends its thoughts": (pair(REASONED, "<think>\nhm", **THINKING),
                                         ("think", ["unclosed think block in rejected"])),
    "rejected does not answer": (pair(REASONED, BLOCK, **THINKING),
                                 ("think", ["no answer after the think block in rejected"])),
    "chosen direct under /think": (pair("yes", NO, **THINKING), "no reasoning under /think in chosen"),
    "rejected direct under /think": (pair(REASONED, "no", **THINKING), "no reasoning under /think in rejected"),
    "both direct under /think": (pair("yes", "no", **THINKING), "no reasoning under /think in chosen"),
    "chosen reasons under /no_think": (pair(REASONED, "no", **DIRECT), "reasoning under /no_think in chosen"),
    "rejected reasons under /no_think": (pair("yes", NO, **DIRECT), "reasoning under /no_think in rejected"),
    "rejected thinks for ever under /no_think": (pair("yes", "<think>\nhm", **DIRECT),
                                                 "reasoning under /no_think in rejected"),
    "no mode, and they differ": (pair(REASONED, "no"), "no mode given, and only one of chosen and rejected reasons"),
    "the text false": (pair("yes", "no", chat_template_kwargs=asked("false")),
                       "enable_thinking is no boolean but 'false'"),
    "chosen never ends its thoughts": (pair("<think>\nhm", NO, **THINKING), "unclosed think block in chosen"),
    "both places": (pair(says(REASONED, reasoning_content="hm"), NO, **THINKING), TWICE),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), PAIRS.values(), ids=PAIRS.keys())
def test_preference_rows(
    content: dict[str, Any], expected: tuple[str, list[str]] | str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    if isinstance(expected, str):
        with pytest.raises(DatasetError) as refused:
            prepare("apo", [content] * 4, tmp_path, tokenizer)
        assert f"4 x {expected} (rows 1, 2, 3)" in str(refused.value)
        return
    data = prepare("apo", [content] * 4, tmp_path, tokenizer)
    (report,) = data.reports
    assert (report.mode, report.notes) == (expected[0], dict.fromkeys(expected[1], 4))
    prompt = str(tokenizer.decode(data.dataset[0]["prompt_ids"]))
    assert header_of(prompt) == expected[0]
    assert prompt.endswith("<|im_start|>assistant\n" + (EMPTY if expected[0] == "no_think" else ""))


def test_a_history_without_reasoning_is_no_contradiction_in_a_pair(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Only the last reply is trained on."""
    history = row("earlier")["messages"]
    content = pair(REASONED, NO, **THINKING)
    content |= {name: [*history, *content[name]] for name in ("chosen", "rejected")}
    assert prepare("apo", [content], tmp_path, tokenizer).reports[0].notes == {}


def test_bad_rows_within_the_budget_are_named_by_their_place_in_the_file(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 40 rows, in whatever order they are trained on; each kind is counted on its own."""
    from rich.console import Console

    from posttrain.data_report import print_report

    rows = [no_think(str(number)) for number in range(1, 41)]
    rows[6] = think("yes")
    rows[22] = no_think(REASONED)
    rows[38] = no_think(REASONED)
    rows[11] = row("12")
    data = prepare("sft", rows, tmp_path, tokenizer, "data.max_lost_fraction=0.08")
    (report,) = data.reports
    assert (report.kept, report.dropped) == (37, 3)
    assert report.reasons == {"reasoning under /no_think": 2, "no reasoning under /think": 1}
    assert report.notes == {FROM_REPLY["no_think"]: 1}
    assert report.examples == {
        "reasoning under /no_think": [23, 39], "no reasoning under /think": [7], FROM_REPLY["no_think"]: [12]
    }  # fmt: skip
    print_report(data, Console())
    shown = capsys.readouterr().out
    assert "lost 2 x reasoning under /no_think (rows 23, 39)" in shown
    assert f"noted 1 x {FROM_REPLY['no_think']} (row 12)" in shown
    with pytest.raises(
        DatasetError, match=r"loses 3 of 40 samples: 2 x reasoning under /no_think \(rows 23, 39\); 1 x"
    ):
        prepare("sft", rows, tmp_path, tokenizer, "data.max_lost_fraction=0.07")


def test_arguments_of_the_set_are_a_mode_that_is_given(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(row("yes")) + "\n")
    sets = [{"path": str(tmp_path), "chat_template_kwargs": {"enable_thinking": False}}]
    recipe = load_recipe("recipes/tiny/sft.yaml", [f"data.datasets={json.dumps(sets)}"])
    assert prepare_data(recipe, tokenizer).reports[0].notes == {}


def test_plain_chatml_has_no_mode_but_the_same_blocks(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Mid-training: reasoning in a field of its own is trained on too, and a block that never ends is not."""
    contents = [row(REASONED), row(says("yes", reasoning_content="hm")), row("<think>\nhm"), row(says("", **TOOL_CALL))]
    data = prepare("midtrain", contents, tmp_path, tokenizer, "data.max_lost_fraction=0.5")
    no_calls = "The chatml template renders no tool_calls. Write them into the content."
    assert data.reports[0].reasons == {UNCLOSED: 1, no_calls: 1} and data.reports[0].notes == {}
    assert [trained_texts(sample, tokenizer) for sample in data.dataset] == [[REASONED + END]] * 2


@pytest.mark.parametrize(("content", "more"), [("yes", {}), ("\nyes", {}), ("yes", TOOL_CALL), ("", TOOL_CALL)])
def test_reasoning_inline_renders_as_in_its_own_field(content: str, more: dict[str, Any]) -> None:
    """What is trained on is what a client's history with reasoning_content becomes."""
    messages = [{"role": "user", "content": "q"}, says(content, reasoning_content="\nhm ", **more)]
    inline = conversation_of({"messages": messages}).messages
    assert render(inline, date_string="d") == render(messages, date_string="d")


def test_another_version_of_the_code_tokenizes_anew(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """datasets keeps what it has mapped, and knows our code by its names alone."""
    (tmp_path / "train.jsonl").write_text(json.dumps(row("yes")) + "\n")
    recipe = load_recipe("recipes/tiny/sft.yaml", [f"data.datasets=[{{path: {tmp_path}}}]"])

    def said() -> str:
        return str(tokenizer.decode(prepare_data(recipe, tokenizer).dataset[0]["input_ids"]))

    first = said()
    monkeypatch.setattr(tokenization, "render", lambda *a, **k: render(*a, **k | {"date_string": "another day"}))
    assert said() == first
    monkeypatch.setattr(data, "RowTokenizer", partial(tokenization.RowTokenizer, code="another version"))
    assert "Date: another day" in said()
