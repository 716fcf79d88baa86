"""Judging replies, intervals, and the tiny tasks that are judged."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from transformers import PreTrainedTokenizerBase

from posttrain import tiny_data
from posttrain.evaluate import MODES, Proportion, bare_prompt, judge, summarise
from posttrain.generate import ChatModel
from posttrain.tiny_data import TASKS, Problem, exchanges, problems, sft_row, write_sets
from smollm3.command_line import main

CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("mode", "expected", "text", "followed", "correct"),
    [
        ("think", "7", "<think>\n3 + 4 = 7\n</think>\n7", True, True),
        ("think", "7", "<think>\n3 + 4 = 7\n</think>\n8", True, False),
        ("think", "7", "<think>\n\n</think>\n7", False, True),
        ("think", "7", "7", False, True),
        ("think", "7", "<think>\n3 + 4 = 7", False, False),
        ("no_think", "7", "<think>\n\n</think>\n7", True, True),
        ("no_think", "7", "<think>\n3 + 4 = 7\n</think>\n7", False, True),
        ("no_think", "7", "<think>\n\n</think>\n17", True, False),
        ("no_think", CALL, "<think>\n\n</think>\n" + CALL.replace(": ", ":"), True, True),
        ("no_think", CALL, "<think>\n\n</think>\n" + CALL.replace("Oslo", "Rome"), True, False),
        ("no_think", CALL, "<think>\n\n</think>\n" + CALL + CALL, True, False),
        ("no_think", "7", "<think>\n\n</think>\n7" + CALL, True, False),
    ],
)
def test_judge(mode: Any, expected: str, text: str, followed: bool, correct: bool) -> None:
    row = {"task": "t", "question": "q", "answer": expected}
    judged = judge(row, mode, 0, text, ended=True)
    assert (judged.followed_mode, judged.correct) == (followed, correct)
    assert not judge(row, mode, 0, text, ended=False).correct


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (3, 10), (95, 100), (1, 1000)])
def test_intervals_equal_scipy(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert Proportion(successes, trials).interval() == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_summary_counts_each_task_and_all() -> None:
    rows = [{"task": task, "question": "q", "answer": "7"} for task in ("a", "a", "b")]
    texts = ["<think>\nx\n</think>\n7", "7", "<think>\nx\n</think>\n8"]
    judged = [judge(row, "think", 0, text, True) for row, text in zip(rows, texts, strict=True)]
    judged += [judge(row, "no_think", 0, "8", False) for row in rows]
    summary = summarise(judged)
    assert summary["all"]["think"]["correct"] == Proportion(2, 3)
    assert summary["a"]["think"]["followed_mode"] == Proportion(1, 2)
    assert summary["b"]["no_think"]["ended"] == Proportion(0, 1)


def test_the_mode_is_asked_for_but_not_given_away(base_model: Path) -> None:
    """Flag and argument ask alike, and neither prompt opens the think block for the model."""
    chat_model = ChatModel.load(str(base_model), template_if_none="dual_mode")
    row = {"task": "t", "question": "q", "answer": "7"}
    for mode in MODES:
        flagged, argued = (bare_prompt(chat_model, row, mode, flag, "01 July 2025") for flag in (True, False))
        assert flagged == argued
        assert f"Reasoning mode: /{mode}\n" in flagged and flagged.endswith("<|im_start|>assistant\n")


def test_command_writes_table_and_json(base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sets(tmp_path, 0, {"midtrain": 1, "sft": 1, "apo": 1, "heldout": 1})
    arguments = ["capabilities", str(base_model), "--prompts", str(tmp_path / "heldout.jsonl"), "--seeds", "2"]
    arguments += ["--max-new-tokens", "4", "--run", str(tmp_path)]
    assert main(arguments) == 0
    assert "follows mode" in capsys.readouterr().out
    content = json.loads((tmp_path / "eval" / "capabilities.json").read_text())
    assert main([*arguments, "--json", "--out", str(tmp_path / "other.json")]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == 2 and (tmp_path / "other.json").is_file()
    assert content["multi_step_tasks"] == ["chain"]
    result = content["models"][str(base_model)]
    assert result["summary"]["all"]["think"]["correct"]["trials"] == 2 * len(TASKS)
    assert len(result["replies"]) == 2 * 2 * len(TASKS)


@pytest.mark.parametrize("content", ["", "no json\n", '{"task": "t"}\n'])
def test_bad_prompts_exit_with_a_message(content: str, base_model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(content)
    assert main(["capabilities", str(base_model), "--prompts", str(tmp_path / "prompts.jsonl")]) == 2


# The tasks themselves: every taught answer is checked by computing it another way.


def solve(problem: Problem) -> str:
    question = problem.question
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if problem.task == "addition":
        return str(sum(numbers))
    if problem.task == "chain":
        return str(sum(int(term) for term in re.findall(r"[+-]?\d", question)))
    if problem.task == "conversion":
        smallest = {"km": 1e6, "m": 1e3, "dm": 100, "cm": 10, "mm": 1, "kg": 1e3, "g": 1, "l": 1e3, "ml": 1}
        large, small = re.findall(r"\d+ (\w+) to (\w+)", question)[0]
        return f"{round(numbers[0] * smallest[large] / smallest[small])} {small}"
    if problem.task == "sorting":
        return ",".join(map(str, sorted(numbers)))
    if problem.task == "translation":
        adjective, noun = question.rpartition(": the ")[2].split()
        return f"la {tiny_data._NOUNS[noun]} {tiny_data._ADJECTIVES[adjective]}"
    name, parameter, number = re.findall(r"Please (\w+) (\w+) (\d+)\.", question)[0]
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": {parameter: int(number)}}) + "\n</tool_call>"


@pytest.mark.parametrize("task", TASKS)
def test_taught_answers_are_right_and_wrong_ones_wrong(task: str) -> None:
    rng = random.Random(0)
    for _ in range(200):
        problem = TASKS[task](rng)
        assert problem.answer == solve(problem)
        assert problem.wrong_answer != problem.answer
        for left, sign, right, total in re.findall(r"(\d+)([+-])(\d+)=(-?\d+)", problem.thinking):
            assert int(total) == int(left) + int(right) * (1 if sign == "+" else -1)


def test_held_out_problems_are_in_no_training_set(tmp_path: Path) -> None:
    write_sets(tmp_path, 0, {"midtrain": 300, "sft": 200, "apo": 100, "heldout": 10})
    held_out = {json.loads(line)["question"] for line in (tmp_path / "heldout.jsonl").read_text().splitlines()}
    assert len(held_out) > 30
    for file in tmp_path.glob("*/train.jsonl"):
        text = file.read_text()
        assert not [question for question in held_out if json.dumps(question)[1:-1] in text]


def test_sets_follow_from_the_seed(tmp_path: Path) -> None:
    sizes = {"midtrain": 5, "sft": 5, "apo": 5, "heldout": 2}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_sets(tmp_path / name, seed, sizes)
    texts = {name: (tmp_path / name / "sft_think/train.jsonl").read_text() for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]


def test_rows_ask_for_the_mode_that_they_answer_in(tokenizer: PreTrainedTokenizerBase) -> None:
    """Also where a flag in the system message contradicts the template argument."""
    from posttrain.template import reasoning_mode

    rng = random.Random(0)
    stream = problems(rng, held_out=False)
    contradictions, turns = 0, set()
    for mode in MODES * 100:
        row = sft_row(exchanges(next(stream), stream, rng), mode, rng)
        assert reasoning_mode(row["messages"][:-1], **row["chat_template_kwargs"]) == mode
        replies = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert [reply.startswith("<think>") for reply in replies] == [mode == "think"] * len(replies)
        turns.add(("xml_tools" in row["chat_template_kwargs"], len(replies)))
        contradictions += row["chat_template_kwargs"]["enable_thinking"] != (mode == "think")
    assert contradictions > 20
    assert turns == {(tools, number) for tools in (True, False) for number in (1, 2, 3)}
