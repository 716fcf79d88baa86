"""Recipes, data, reasoning and scoring rules on their own."""

import json

import pytest

from eval.asking import task_plan
from eval.benchmarks import BENCHMARKS, Benchmark, Dataset
from eval.data import write_full_edition, write_small_edition
from eval.editions import small_rows
from eval.engine import Doc
from eval.errors import EvalError
from eval.local_data import read_dataset, write_dataset
from eval.reasoning import split_answer
from eval.recipe import Task, load_eval_recipe
from eval.tasks.base import last_boxed
from eval.tasks.code import contest_tests
from eval.tasks.common import letter_score, math_score
from eval.tasks.tools import call_score
from foundation.recipe import RecipeError


@pytest.mark.parametrize("profile", ["tiny", "smollm3-3b"])
def test_shipped_recipes_are_valid(profile):
    recipe = load_eval_recipe(f"recipes/{profile}/eval.yaml")
    assert {"base", "long", "multilingual", "instruct", "code", "tools"} <= set(recipe.suites)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("suites: {base: {tasks: {helaswag: {}}}}", ["helaswag", "Did you mean 'hellaswag'"]),
        ("suites: {base: {tasks: {arc_easy: {num_fewshot: 5}}}}", ["num_fewshot", "Did you mean 'num_fewshots'"]),
        ("suites: {base: {tasks: {aime25: {num_samples: 4}}}}", ["several answers", "temperature 0"]),
        ("suites: {base: {tasks: {}}}", ["suites.base.tasks"]),
    ],
)
def test_wrong_recipes_name_key_and_fix(tmp_path, text, messages):
    (tmp_path / "eval.yaml").write_text(f"output: o\ndata: d\n{text}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_eval_recipe(tmp_path / "eval.yaml")
    for message in [*messages, "eval.yaml:3"]:
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("generated", "prompt", "text", "unclosed"),
    [
        ("4", "", "4", False),
        ("<think>\nhm 5\n</think>\n4", "", "4", False),
        ("<think>a</think>b<think>c</think>\n\n    return 4", "", "    return 4", False),
        ("<think>\nit is 4", "", "", True),
        ("<think>a</think>4 <think> or 5", "", "", True),
        ("hm 5 </think> 4", "...assistant\n<think>\n", " 4", False),
        ("it is 4", "...assistant\n<think>\n", "", True),
        ("4", "...assistant\n<think>\n\n</think>\n", "4", False),
    ],
)
def test_reasoning_is_split_off(generated, prompt, text, unclosed):
    answer = split_answer(generated, prompt)
    assert (answer.text, answer.unclosed) == (text, unclosed)


def test_small_editions_repeat_and_share_no_item_between_splits():
    for benchmark in BENCHMARKS.values():
        if benchmark.dataset is None:
            continue
        rows = small_rows(benchmark)
        assert rows == small_rows(benchmark)
        everything = [json.dumps(row, sort_keys=True) for split in rows.values() for row in split]
        assert len(set(everything)) == len(everything) >= 20, benchmark.name
        assert set(rows) == set(benchmark.dataset.splits)


def test_a_benchmark_that_is_half_written_names_what_is_missing():
    """A row of eval/benchmarks.py alone, as somebody who adds a benchmark begins."""
    row = Benchmark("sciq", "base", "sciq", Dataset("allenai/sciq", "default", "test"), "log-likelihood")
    with pytest.raises(EvalError, match=r"eval/tasks/base\.py does not have"):
        task_plan(row, Task())
    with pytest.raises(EvalError, match=r"_MAKERS in eval/editions\.py .* --edition full"):
        small_rows(row)


def test_changed_or_missing_data_is_refused(tmp_path):
    dataset = Dataset("owner/name", "default", "test")
    with pytest.raises(EvalError, match="smollm3 eval-data"):
        read_dataset(tmp_path, dataset)
    write_dataset(tmp_path / dataset.folder, dataset, {"test": [{"a": 1}]}, "full", "abc")
    assert read_dataset(tmp_path, dataset).rows == {"test": [{"a": 1}]}
    (tmp_path / dataset.folder / "test.jsonl").write_text('{"a": 2}\n')
    with pytest.raises(EvalError, match="was changed"):
        read_dataset(tmp_path, dataset)


def test_full_edition_is_fetched_once_and_records_the_revision(tmp_path):
    text = f"output: o\ndata: {tmp_path}\nsuites: {{base: {{tasks: {{arc_easy: {{}}, piqa: {{}}}}}}}}\n"
    (tmp_path / "eval.yaml").write_text(text, encoding="utf-8")
    recipe = load_eval_recipe(tmp_path / "eval.yaml")
    fetched = []

    def fetch(dataset, revision):
        fetched.append(dataset.repo)
        return {split: [{"question": "?"}] for split in dataset.splits}, "commit"

    write_small_edition(recipe)
    write_full_edition(recipe, fetch)
    write_full_edition(recipe, fetch)
    assert fetched == ["allenai/ai2_arc", "ybisk/piqa"]
    assert read_dataset(tmp_path, BENCHMARKS["piqa"].dataset).revision == "commit"


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("The answer is 18.", "18", 1),
        ("so \\boxed{\\frac{1}{2}}", "0.5", 1),
        ("12 apples, then 7, in all \\boxed{19}", "19", 1),
        ("\\boxed{20}", "19", 0),
        ("", "19", 0),
        ("1,234", "1234", 1),
    ],
)
def test_math_answers(answer, gold, score):
    assert math_score(answer, Doc(query="q", choices=[""], gold_index=0, specific={"gold": gold})) == score


@pytest.mark.parametrize(
    ("answer", "score"), [("Answer: C", 1), ("**Answer: C**", 1), ("Answer: A", 0), ("", 0), ("I guess", 0)]
)
def test_letters(answer, score):
    assert letter_score(answer, Doc(query="q", choices=list("ABCD"), gold_index=2)) == score


def test_boxed_expressions_keep_their_braces():
    assert last_boxed(r"first \boxed{1}, then \boxed{\frac{a}{b^{2}}}.") == r"\frac{a}{b^{2}}"
    with pytest.raises(ValueError, match="boxes no answer"):
        last_boxed("none")


def test_hidden_contest_tests_are_read_without_executing_pickles():
    import base64
    import os
    import pickle
    import zlib

    def row(private):
        return {"public_test_cases": "[]", "private_test_cases": base64.b64encode(zlib.compress(private)).decode()}

    assert contest_tests(row(pickle.dumps('[{"input": "1"}]'))) == [{"input": "1"}]

    class Attack:
        def __reduce__(self):
            return os.getpid, ()

    with pytest.raises(pickle.UnpicklingError, match="only text"):
        contest_tests(row(pickle.dumps(Attack())))


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('<tool_call>{"name": "f", "arguments": {"a": 1, "b": "new york"}}</tool_call>', 1),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', 1),  # b is optional
        ('<tool_call>{"name": "f", "arguments": {"b": "New York"}}</tool_call>', 0),
        ('<tool_call>{"name": "f", "arguments": {"a": 1, "c": 2}}</tool_call>', 0),
        ('<tool_call>{"name": "g", "arguments": {"a": 1}}</tool_call>', 0),
        ('<tool_call>{"name": "f", "arguments": {"a": true}}</tool_call>', 0),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>' * 2, 0),
        ("<tool_call>{name: f}</tool_call>", 0),
        ("f(1)", 0),
    ],
)
def test_tool_calls(answer, score):
    expected = [{"f": {"a": [1, 2], "b": ["New York", ""]}}]
    assert call_score(answer, Doc(query="q", choices=[""], gold_index=0, specific={"expected": expected})) == score
