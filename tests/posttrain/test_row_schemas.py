"""Rows in the schemas that occur: taken as they are meant, repaired with a note, or dropped for a reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from posttrain import tokenization
from posttrain.data import DatasetError, prepare_data
from posttrain.recipe import load_recipe
from posttrain.rows import CONTENT_AS_JSON, NO_LOSS_ASKED, NULLS_LEFT_OUT, OTHER_PROMPT, SPLIT_RESPONSES
from tests.posttrain.template_cases import call
from tests.posttrain.test_rows import APART, EMPTY, END, NO_THINK, Kept, asked, no_think, prepare, says, trained_texts

DIRECT = {"chat_template_kwargs": asked(False)}
USER, BOT = "<|im_start|>user\n", "<|im_start|>assistant\n"
Q = {"role": "user", "content": "q"}
QUESTION = f"{USER}q{END}\n{BOT}"
ALONE = "Answer directly.<|im_end|>\n"  # the end of a system turn with nothing but the defaults
KIND = "## Instructions\nBe kind.<|im_end|>\n"


def talk(*messages: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **DIRECT, **columns}


def after_call(content: Any, **columns: Any) -> dict[str, Any]:
    """A tool message, which is what the case is about, behind the call that it answers."""
    return talk(Q, says("", tool_calls=[call("f", "{}")]), {"role": "tool", "content": content}, says("yes"), **columns)


def result(text: str) -> str:
    return f"{USER}<tool_response>\n{text}\n</tool_response>{END}\n"


def calls(*texts: str) -> str:
    return EMPTY + "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts) + END


def tools(*schemas: str) -> str:
    """What stands between the defaults of the system turn and how to call a tool."""
    return "Answer directly.\n\n## Tools\nFunctions, as JSON schemas:\n" + "\n".join(schemas) + "\nCall one"


F_CALL, ANSWER = calls('{"name": "f", "arguments": {}}'), f"{EMPTY}yes{END}"
CALLED = Kept("no_think", [F_CALL, ANSWER])
F, G = {"name": "f"}, {"name": "g"}
KWARGS = asked(False)

# The row, what becomes of it, and what its text has to contain.
ROWS: dict[str, tuple[dict[str, Any], Kept | str, str]] = {
    # Where the conversation stands
    "ShareGPT": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}], **DIRECT},
                 NO_THINK, ALONE + QUESTION),
    "ShareGPT with a system turn": (
        {"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "q"},
                           {"from": "gpt", "value": "yes"}], **DIRECT}, NO_THINK, KIND + QUESTION),
    "ShareGPT with a tool": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"},
                           {"from": "observation", "value": "1"}, {"from": "gpt", "value": "yes"}], **DIRECT},
        Kept("no_think", [f"{EMPTY}a{END}", ANSWER]), result("1")),
    "ShareGPT with another role": ({"conversations": [{"from": "function_call", "value": "{}"}]},
                                   "unknown role 'function_call'", ""),
    "messages as JSON": ({"messages": json.dumps([Q, says("yes")]), **DIRECT}, NO_THINK, ALONE + QUESTION),
    "messages as broken JSON": ({"messages": json.dumps([Q, says("yes")])[:-1]},
                                "messages is text, and no list of messages", ""),
    "prompt and completion": ({"prompt": "q", "completion": "yes", **DIRECT}, NO_THINK, ALONE + QUESTION),
    "prompt and completion as messages": ({"prompt": [Q], "completion": [says("yes")], **DIRECT}, NO_THINK,
                                          ALONE + QUESTION),
    "the completion says the prompt again": ({"prompt": [Q], "completion": [Q, says("yes")], **DIRECT}, NO_THINK,
                                             ALONE + QUESTION),
    "a reply in the prompt": ({"prompt": [Q, says("a"), Q], "completion": [says("yes")], **DIRECT}, NO_THINK,
                              f"a{END}"),
    "a prompt that is a list in text": ({"prompt": "[1, 2]", "completion": "yes", **DIRECT}, NO_THINK,
                                        f"{USER}[1, 2]{END}"),
    "a completion to another prompt": ({"prompt": [{"role": "system", "content": "s"}, Q],
                                        "completion": [{"role": "user", "content": "r"}, says("yes")]},
                                       "completion starts with a user turn that is not the prompt's", ""),
    "messages and conversations": (talk(Q, says("yes"), conversations=[{"from": "gpt", "value": "a"}]),
                                   "both messages and conversations", ""),
    "other columns": ({"instruction": "q", "output": "yes"}, "no messages; the row has instruction, output", ""),
    "a row that is a list": ([Q, says("yes")], "the line is JSON, but list and no object", ""),  # type: ignore[dict-item]
    # System text
    "developer": (talk({"role": "developer", "content": "Be kind."}, Q, says("yes")), NO_THINK, KIND + QUESTION),
    "a developer's flag": (talk({"role": "developer", "content": "/no_think"}, Q, says("yes"),
                                chat_template_kwargs=asked(True)), NO_THINK, ALONE),
    "a late developer": (talk(Q, says("yes"), {"role": "developer", "content": "Be kind."}),
                         "The system message must be the first message.", ""),
    "a system column": (talk(Q, says("yes"), system="Be kind."), NO_THINK, KIND + QUESTION),
    "a system column and the same message": (
        talk({"role": "system", "content": "Be kind."}, Q, says("yes"), system="Be kind."), NO_THINK, KIND + QUESTION),
    "a system column and another message": (
        talk({"role": "system", "content": "Be brief."}, Q, says("yes"), system="Be kind."),
        "both a system column and another system message", ""),
    "instructions": (talk(Q, says("yes"), chat_template_kwargs={**KWARGS, "custom_instructions": "Be kind."}),
                     NO_THINK, KIND + QUESTION),
    "instructions and a system message": (
        talk({"role": "system", "content": "Be brief."}, Q, says("yes"),
             chat_template_kwargs={**KWARGS, "custom_instructions": "Be kind."}),
        "custom_instructions lost in rendering: there is a system message", ""),
    "instructions that are no text": (talk(Q, says("yes"), chat_template_kwargs={"custom_instructions": ["a"]}),
                                      "custom_instructions is list, no text", ""),
    "an argument of another template": (talk(Q, says("yes"), chat_template_kwargs={"reasoning_effort": "low"}),
                                        "chat_template_kwargs has reasoning_effort, which is no argument that a row "
                                        "may set", ""),
    # Results of tools
    "a result": (after_call("1"), CALLED, result("1")),
    "a result as a mapping": (after_call({"b": None, "a": 1}), Kept("no_think", CALLED.trained, [CONTENT_AS_JSON]),
                              result('{"b": null, "a": 1}')),
    "a result as a number": (after_call(4.5), Kept("no_think", CALLED.trained, [CONTENT_AS_JSON]), result("4.5")),
    "a result as a list": (after_call([1, {"type": "x"}]), Kept("no_think", CALLED.trained, [CONTENT_AS_JSON]),
                           result('[1, {"type": "x"}]')),
    "a result in parts": (after_call([{"type": "text", "text": "1"}]), CALLED, result("1")),
    "a result in its tags": (after_call("<tool_response>\n1\n</tool_response>"), CALLED, result("1")),
    "two results in one message": (
        after_call("<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"),
        Kept("no_think", CALLED.trained, [SPLIT_RESPONSES]), result("1") + result("2")),
    "a result with tags and more": (after_call("<tool_response>1</tool_response> and 2"),
                                    Kept("no_think", CALLED.trained, [APART]),
                                    result("< tool_response >1< /tool_response > and 2")),
    "a user quotes a result": (talk({"role": "user", "content": "Why <tool_response>?"}, says("yes")),
                               Kept("no_think", NO_THINK.trained, [APART]), "Why < tool_response >?"),
    # Calls and schemas
    "two calls at once": (talk(Q, says(None, tool_calls=[call("f", "{}"), call("g", {"x": [1]})])),
                          Kept("no_think", [calls('{"name": "f", "arguments": {}}',
                                                  '{"name": "g", "arguments": {"x": [1]}}')]), ALONE),
    "null in a call": (talk(Q, says(None, tool_calls=[call("f", {"z": None, "a": {"b": None}})])),
                       Kept("no_think", [calls('{"name": "f", "arguments": {"z": null, "a": {"b": null}}}')]), ALONE),
    "calls as JSON": (talk(Q, says("", tool_calls=json.dumps([call("f", {"x": None})]))),
                      Kept("no_think", [calls('{"name": "f", "arguments": {"x": null}}')]), ALONE),
    "a function_call": (talk(Q, says(None, function_call={"name": "f", "arguments": "{}"})),
                        Kept("no_think", [F_CALL]), ALONE),
    "a call without arguments": (talk(Q, says("", tool_calls=[{"function": {"name": "f"}}])),
                                 Kept("no_think", [F_CALL]), ALONE),
    "arguments that are no JSON": (talk(Q, says("", tool_calls=[call("f", "x=1")])),
                                   "arguments of a tool call is text that is no JSON", ""),
    "arguments in a list": (talk(Q, says("", tool_calls=[call("f", "[1]")])),
                            "arguments of a tool call are no JSON object", ""),
    "a call without a name": (talk(Q, says("", tool_calls=[{"function": {"arguments": "{}"}}])),
                              "a tool call has no name", ""),
    "calls that are a mapping": (talk(Q, says("", tool_calls=call("f", "{}"))), "tool_calls is no list", ""),
    "a call of the user": (talk({**Q, "tool_calls": [call("f", "{}")]}, says("yes")), "a user turn has tool calls", ""),
    "tools": (talk(Q, says("yes"), tools=[{**F, "default": None}]), NO_THINK, tools('{"name": "f", "default": null}')),
    "tools in their own order": (talk(Q, says("yes"), tools=[{"z": 1, "a": {"c": 1, "b": 2}}]), NO_THINK,
                                 tools('{"z": 1, "a": {"c": 1, "b": 2}}')),
    "tools as texts": (talk(Q, says("yes"), tools=[json.dumps(F), json.dumps(G)]), NO_THINK,
                       tools('{"name": "f"}', '{"name": "g"}')),
    "xml_tools stay as they are written": (talk(Q, says("yes"), chat_template_kwargs={**KWARGS, "xml_tools": ["{f}"]}),
                                           NO_THINK, tools("{f}")),
    "tools and the same xml_tools": (
        talk(Q, says("yes"), tools=[F], chat_template_kwargs={**KWARGS, "xml_tools": ['{"name":"f"}']}),
        NO_THINK, tools('{"name": "f"}')),
    "tools and other xml_tools": (
        talk(Q, says("yes"), tools=[F], chat_template_kwargs={**KWARGS, "xml_tools": ['{"name":"g"}']}),
        NO_THINK, tools('{"name":"g"}', '{"name": "f"}')),
    "tools in two places": (talk(Q, says("yes"), tools=[F], chat_template_kwargs={**KWARGS, "tools": [F]}),
                            "tools given in a column and in chat_template_kwargs", ""),
    "xml_tools that are a number": (talk(Q, says("yes"), chat_template_kwargs={**KWARGS, "xml_tools": 3}),
                                    "xml_tools is neither text nor a list of texts and schemas", ""),
    # Which turns carry loss
    "train: false": (talk(Q, says("a", train=False), Q, says("yes")),
                     Kept("no_think", NO_THINK.trained, [NO_LOSS_ASKED]), f"a{END}"),
    "training: false": (talk(Q, says("a", training=False), Q, says("yes")),
                        Kept("no_think", NO_THINK.trained, [NO_LOSS_ASKED]), f"a{END}"),
    "weight 0": (talk(Q, says("a", weight=0), Q, says("yes", weight=1)),
                 Kept("no_think", NO_THINK.trained, [NO_LOSS_ASKED]), f"a{END}"),
    "train on every turn": (talk({**Q, "train": False}, says("yes", train=True)), NO_THINK, QUESTION),
    "train: false everywhere": (talk(Q, says("yes", train=False)), "every reply asks for no loss", ""),
    "train as text": (talk(Q, says("yes", train="false")), "train of a turn is no boolean but 'false'", ""),
    "weight 2": (talk(Q, says("yes", weight=2)), "weight 2 of a turn; only 0 and 1 are known", ""),
    "train and weight": (talk(Q, says("yes", weight=0, train=True)),
                         "train and weight of a turn contradict each other", ""),
    "train of the user": (talk({**Q, "train": True}, says("yes")),
                          "a user turn asks for loss, which is on assistant turns alone", ""),
    "the reasoning turn has no loss": (
        talk(Q, says("<think>\na\n</think>\nb", train=False), Q, says("yes"), chat_template_kwargs=asked(True)),
        "no reply carries loss: those that reason ask for none", ""),
    # What is no text
    "an image beside the text": (talk(Q, says("yes"), images=["a.png"]), "the row has images; only text is trained on",
                                 ""),
    "an image in a message": (talk({**Q, "image": "a.png"}, says("yes")),
                              "a message has image; only text is trained on", ""),
    "no images": (talk({**Q, "images": []}, says("yes"), images=[]), NO_THINK, QUESTION),
    "a sound": (talk({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, says("yes")),
                "a message's content has a part of type input_audio; only text is trained on", ""),
    "a number": (talk({"role": "user", "content": 3}, says("yes")),
                 "a message's content is int, neither text nor a list of parts", ""),
    "a part without text": (talk(Q, says([{"type": "text"}])), "empty assistant turn in messages", ""),
    "a part of a number": (talk(Q, says([{"type": "text", "text": 3}])), "the text of a part is no text", ""),
    "a message that is text": (talk("q", says("yes")), "a message is str, no mapping", ""),
    "a message that is null": (talk(None, says("yes")), "a message is NoneType, no mapping", ""),
    "a message without a role": (talk({"content": "q"}, says("yes")), "unknown role None", ""),
    "a role that is a list": (talk({"role": ["user"], "content": "q"}, says("yes")), "unknown role ['user']", ""),
    "a reply that is null": (talk(Q, says(None)), "empty assistant turn in messages", ""),
    "a question under another key": (talk({"role": "user", "text": "q"}, says("yes")),
                                     "a user turn has no content but text", ""),
    "a result under another key": (after_call(None) | {"messages": [
        *after_call(None)["messages"][:2], {"role": "tool", "name": "f", "output": "1"}, says("yes")]},
        "a tool turn has no content but output", ""),
    "reasoning in other tags": (talk(Q, says("<thinking>a</thinking>yes")), "reasoning in other tags than <think>", ""),
    "thoughts of another model": ({"messages": [Q, says("<|begin_of_thought|>\na<|end_of_thought|>\nyes")]},
                                  "reasoning in other tags than <think>", ""),
    "the tag in capitals": (talk(Q, says(" <Think>a</Think>yes")), "reasoning in other tags than <think>", ""),
    "an answer about thinking": (talk(Q, says("<thinker>yes")), Kept("no_think", [f"{EMPTY}<thinker>yes{END}"]), ALONE),
    "tools that are null in text": (talk(Q, says("yes"), tools="null"), NO_THINK, ALONE + QUESTION),
    "a question that is null": (talk({"role": "user", "content": None}, says("yes")), NO_THINK, f"{USER}{END}"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected", "fragment"), ROWS.values(), ids=ROWS.keys())
def test_supervised_rows(
    content: dict[str, Any], expected: Kept | str, fragment: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    if isinstance(expected, str):
        with pytest.raises(DatasetError) as refused:
            prepare("sft", [content] * 4, tmp_path, tokenizer)
        assert f"{tmp_path}/train.jsonl) loses 4 of 4 samples: 4 x {expected} (rows 1, 2, 3)" in str(refused.value)
        return
    data = prepare("sft", [content] * 4, tmp_path, tokenizer)
    (report,) = data.reports
    assert (report.mode, report.notes) == (expected.mode, dict.fromkeys(expected.notes, 4))
    assert trained_texts(data.dataset[0], tokenizer) == expected.trained
    text = str(tokenizer.decode(data.dataset[0]["input_ids"]))
    assert text.count(fragment) == 1


def pair(chosen: Any, rejected: Any, **columns: Any) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected, **DIRECT, **columns}


SYSTEM = {"role": "system", "content": "Be kind."}
GPT = [[{"from": "human", "value": "q"}, {"from": "gpt", "value": text}] for text in ("yes", "no")]
PAIRS: dict[str, tuple[dict[str, Any], list[str] | str, str]] = {
    "whole": (pair([Q, says("yes")], [Q, says("no")]), [], ALONE),
    "a prompt and whole": (pair([Q, says("yes")], [Q, says("no")], prompt=[Q]), [], ALONE),
    "a long prompt and whole": (pair([SYSTEM, Q, says("yes")], [SYSTEM, Q, says("no")], prompt=[SYSTEM, Q]), [], KIND),
    "a prompt and one whole": (pair([Q, says("yes")], [says("no")], prompt=[Q]), [], ALONE),
    "a prompt and replies": (pair([says("yes")], [says("no")], prompt=[SYSTEM, Q]), [], KIND),
    "texts": (pair("yes", "no", prompt="q"), [], ALONE),
    "texts after a conversation": (pair("yes", "no", prompt=[SYSTEM, Q]), [], KIND),
    "replies after a text": (pair([says("yes")], [says("no")], prompt="q"), [], ALONE),
    "JSON": (pair(json.dumps([Q, says("yes")]), json.dumps([Q, says("no")])), [], ALONE),
    "ShareGPT": (pair(*GPT), [], ALONE),
    "a system column": (pair("yes", "no", prompt="q", system="Be kind."), [], KIND),
    "another question beside whole ones": (pair([Q, says("yes")], [Q, says("no")], prompt="r"), [OTHER_PROMPT], ALONE),
    "another prompt": (pair([Q, says("yes")], [Q, says("no")], prompt=[SYSTEM, Q]),
                       "chosen starts with a user turn that is not the prompt's", ""),
    "texts without a prompt": (pair("yes", "no"), "chosen is text, and there is no prompt", ""),
    "no rejected": ({"chosen": [Q, says("yes")]}, "no rejected; the row has chosen", ""),
    "train: false": (pair([Q, says("yes")], [Q, says("no", train=False)]),
                     "the reply of rejected asks for no loss", ""),
    "an image": (pair("yes", "no", prompt="q", image="a.png"), "the row has image; only text is trained on", ""),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected", "fragment"), PAIRS.values(), ids=PAIRS.keys())
def test_preference_rows(
    content: dict[str, Any],
    expected: list[str] | str,
    fragment: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    if isinstance(expected, str):
        with pytest.raises(DatasetError) as refused:
            prepare("apo", [content] * 4, tmp_path, tokenizer)
        assert f"loses 4 of 4 samples: 4 x {expected} (rows 1, 2, 3)" in str(refused.value)
        return
    data = prepare("apo", [content] * 4, tmp_path, tokenizer)
    assert data.reports[0].notes == dict.fromkeys(expected, 4)
    sample = {name: str(tokenizer.decode(ids)) for name, ids in data.dataset[0].items()}
    assert sample["prompt_ids"].endswith(fragment + QUESTION + EMPTY)
    assert (sample["chosen_ids"], sample["rejected_ids"]) == (f"yes{END}", f"no{END}")


def test_one_bad_row_of_a_hundred_is_counted_whatever_it_is(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Also one of another type than the others, which a table of columns cannot hold, and a line that is no JSON."""
    rows: list[Any] = [no_think(str(number)) for number in range(100)]
    rows[10] |= {"tools": "f(x)"}
    rows[20] = {"messages": "hi"}
    rows[30] = {"messages": [{"role": "user", "content": {"a": 1}}]}
    lines = [json.dumps(row) for row in rows]
    lines[40] = lines[40][:-9]
    (tmp_path / "train.jsonl").write_text("\n\n".join(lines) + "\n")  # every second line is blank
    sets = [{"path": str(tmp_path / "train.jsonl")}]
    recipe = load_recipe("recipes/tiny/sft.yaml", [f"data.datasets={json.dumps(sets)}", "data.max_lost_fraction=0.05"])
    (report,) = prepare_data(recipe, tokenizer).reports
    assert (report.samples, report.kept) == (100, 96)
    assert report.examples == {
        "tools is text that is no JSON": [21],
        "messages is text, and no list of messages": [41],
        "a message's content is dict, neither text nor a list of parts": [61],
        "the line is no JSON": [81],
    }


def test_an_exception_of_a_row_is_a_reason(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that nobody has thought of."""
    said = tokenization.conversation_of

    def conversation_of(row: dict[str, Any]) -> Any:
        return said(row) if row["messages"][1]["content"] != "7" else {}["x"]

    monkeypatch.setattr(tokenization, "conversation_of", conversation_of)
    rows = [no_think(str(number)) for number in range(20)]
    (report,) = prepare("sft", rows, tmp_path, tokenizer, "data.max_lost_fraction=0.05").reports
    assert (report.kept, report.examples) == (19, {"cannot be rendered: KeyError: 'x'": [8]})


def test_nulls_that_a_parquet_file_fills_in_are_left_out(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """They cannot be told from those of the row; where one may be meant, the rows are counted."""
    rows = [talk(Q, says("", tool_calls=[call("f", {name: 1})]), tools=[F]) for name in ("x", "y")]
    rows += [talk(Q, says("yes"))]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "set.parquet"))
    recipe = load_recipe(
        "recipes/tiny/sft.yaml", [f"data.datasets=[{{path: {tmp_path}/set.parquet}}]", "data.packing_strategy=null"]
    )
    data = prepare_data(recipe, tokenizer)
    assert data.reports[0].notes == {NULLS_LEFT_OUT: 2}
    trained = sorted(text for sample in data.dataset for text in trained_texts(sample, tokenizer))
    assert trained == sorted([ANSWER, *(calls(f'{{"name": "f", "arguments": {{"{name}": 1}}}}') for name in "xy")])


def test_every_token_is_trained_or_the_row_is_dropped(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """In mid-training as published the loss is on all tokens, so `train: false` cannot be heeded."""
    reply = says("<think>\na\n</think>\nb")
    overrides = ("data.assistant_only_loss=false", "data.max_lost_fraction=0.5")
    rows = [talk(Q, reply, Q, reply), talk(Q, {**reply, "train": False}, Q, reply)]
    (report,) = prepare("midtrain", rows, tmp_path, tokenizer, *overrides).reports
    assert report.examples == {"turns without loss, and assistant_only_loss is false: every token is trained": [2]}


def test_nulls_of_a_row_leave_the_sets_arguments(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """As absent keys do: the set's mode and system text hold for a row whose own are null."""
    sets = [
        {
            "path": str(tmp_path / "train.jsonl"),
            "chat_template_kwargs": {"enable_thinking": False, "custom_instructions": "Be kind."},
        }
    ]
    own = {"enable_thinking": None, "custom_instructions": None}
    row = {"messages": [Q, says("yes")], "chat_template_kwargs": own}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    recipe = load_recipe("recipes/tiny/sft.yaml", [f"data.datasets={json.dumps(sets)}", "data.packing_strategy=null"])
    data = prepare_data(recipe, tokenizer)
    assert data.reports[0].notes == {}  # and not: no mode given
    assert KIND + QUESTION in str(tokenizer.decode(data.dataset[0]["input_ids"]))


def test_a_file_of_windows_is_read_whole(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """With its mark at the beginning and its ends of lines."""
    lines = [json.dumps(talk({"role": "user", "content": str(n)}, says("yes"))) for n in range(3)]
    (tmp_path / "train.jsonl").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    sets = [{"path": str(tmp_path / "train.jsonl")}]
    (report,) = prepare_data(
        load_recipe("recipes/tiny/sft.yaml", [f"data.datasets={json.dumps(sets)}"]), tokenizer
    ).reports
    assert (report.samples, report.kept) == (3, 3)
