"""Every task of every suite with models whose answers are known: perfect 100 %, wrong 0, guessing at chance."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks import BENCHMARKS
from eval.engine import Doc, LightevalModel, ModelConfig, ModelResponse, SamplingMethod
from eval.model import PromptBuilder
from eval.planning import inspect_model, plan_suite
from eval.recipe import EvalRecipe
from eval.results import SuiteResult, TaskResult, read_suite
from eval.runner import run_suite


class Scripted(LightevalModel):
    """Answers from the documents' gold: `knowledge` is perfect, wrong, guessing or endless (never stops thinking)."""

    def __init__(self, knowledge: str, reasons: bool, seed: int = 1) -> None:
        self.config = ModelConfig(model_name=knowledge)
        self._cache = _Cache()
        self._knowledge, self._reasons = knowledge, reasons
        self._rng = random.Random(seed)
        self.calls = 0

    tokenizer = None
    add_special_tokens = False
    max_length = 10**9

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        self.calls += 1
        responses = []
        for doc in docs:
            gold = doc.gold_index[0] if isinstance(doc.gold_index, list) else doc.gold_index
            scores = [self._rng.random() - 2 for _ in doc.choices]
            if self._knowledge != "guessing":
                scores[gold] = 0.0 if self._knowledge == "perfect" else -9.0
            # Sums over characters (here also the tokens), so that normalised scores are the ones drawn.
            logprobs = [score * len(choice) for score, choice in zip(scores, doc.choices, strict=True)]
            tokens = [list(range(len(choice))) for choice in doc.choices]
            responses.append(ModelResponse(input=doc.query, logprobs=logprobs, output_tokens=tokens))
        return responses

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        self.calls += 1
        responses = []
        for doc in docs:
            gold = perfect_answer(doc)
            if self._knowledge == "guessing":
                gold = f"Answer: {self._rng.choice(doc.choices)}"
            text = gold if self._knowledge in ("perfect", "endless", "guessing") else wrong_answer(doc)
            if self._knowledge == "endless":
                text = f"<think>\nMaybe it is this: {text}"
            elif self._reasons:
                text = f"<think>\nIs it 123456 or B?\n</think>\n{text}"
            responses.append(ModelResponse(input=doc.query, text=[text] * doc.num_samples))
        return responses

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        raise NotImplementedError


class _Cache:
    def _init_registry(self, registry: object) -> None:
        pass


def perfect_answer(doc: Doc) -> str:
    name = doc.task_name.split("|")[0]
    specific = doc.specific or {}
    if "expected" in specific:
        if not specific["expected"]:
            return "None of the functions can do that."
        calls = [
            {"name": function, "arguments": {key: _first(allowed) for key, allowed in arguments.items()}}
            for call in specific["expected"]
            for function, arguments in call.items()
        ]
        return "\n".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in reversed(calls))
    if name.startswith("livecodebench"):
        factor = re.search(r"times (\d+)", doc.query)
        assert factor
        return f"Here it is:\n```python\nprint(int(input()) * {factor[1]})\n```"
    if name.startswith("helmet_icl"):
        return f" {specific['outputs'][0]}"
    if "instructions_id_list" in specific:
        text = (
            "here is a text about it without any of the marks and with far more than twenty words in it so it is long"
        )
        return f"{text} That is all." if "That is all." in doc.query else text
    if "gold" in specific:
        return f"We compute. The answer is \\boxed{{{specific['gold'].strip('$')}}}."
    if set(doc.choices) <= set("ABCDEFGHIJ") and len(doc.choices) > 1:
        gold = doc.gold_index[0] if isinstance(doc.gold_index, list) else doc.gold_index
        return f"Because it is so.\nAnswer: {doc.choices[gold]}"
    return doc.get_golds()[0]


def _first(allowed: list[Any]) -> Any:
    value = allowed[0]
    return {key: _first(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def wrong_answer(doc: Doc) -> str:
    name = doc.task_name.split("|")[0]
    specific = doc.specific or {}
    if "expected" in specific:
        return '<tool_call>{"name": "no_such_function", "arguments": {}}</tool_call>'
    if "instructions_id_list" in specific:
        return "NO, NO."
    if name.startswith(("humaneval", "mbpp", "livecodebench")):
        return "import os\nos._exit(0)\n"
    if set(doc.choices) <= set("ABCDEFGHIJ") and len(doc.choices) > 1:
        gold = doc.gold_index[0] if isinstance(doc.gold_index, list) else doc.gold_index
        return f"Answer: {doc.choices[(gold + 1) % len(doc.choices)]}"
    return "\\boxed{-7654321}" if "gold" in specific else "§"


def evaluate(recipe: EvalRecipe, folder: Path, suite: str, name: str, only: str | None = None) -> SuiteResult:
    model = inspect_model(folder, f"{name}-{suite}")
    planned = plan_suite(recipe, suite, model)
    if only:
        planned = [task for task in planned if task.benchmark.name.startswith(only)]
    return run_suite(recipe, suite, model, planned, lambda: Scripted(name, reasons=suite == "chat"))


@pytest.mark.parametrize("suite", ["choices", "answers"])
def test_perfect_model_scores_one_hundred_on_every_task(recipe, model_folder, suite):
    result = evaluate(recipe, model_folder, suite, "perfect")
    scored_by = "log-likelihood" if suite == "choices" else "answer"
    assert {task.benchmark for task in result.tasks} == {
        b.name for b in BENCHMARKS.values() if b.scored_by == scored_by
    }
    for task in result.tasks:
        assert task.main_metric.value == pytest.approx(best(task)), task.task
        assert task.num_unclosed_reasoning == 0
        assert task.dataset.edition in ("small", "generated") and len(task.dataset.sha256) == 64


def best(task: TaskResult) -> float:
    return 100.0 if task.main_metric.name == "chrf++" else 1.0


@pytest.mark.parametrize("suite", ["choices", "answers"])
def test_wrong_model_scores_zero_on_every_task(recipe, model_folder, suite):
    for task in evaluate(recipe, model_folder, suite, "wrong").tasks:
        assert task.main_metric.value == 0.0, task.task


def test_reasoning_does_not_count_whatever_it_says(recipe, model_folder):
    perfect = evaluate(recipe, model_folder, "chat", "perfect")
    assert {task.mode for task in perfect.tasks} == {"think", "no_think"}
    for task in perfect.tasks:
        assert task.main_metric.value == pytest.approx(best(task)), task.task


def test_unclosed_reasoning_is_wrong_and_counted(recipe, model_folder):
    result = evaluate(recipe, model_folder, "chat", "endless")
    for task in result.tasks:
        assert task.main_metric.value == 0.0, task.task
        assert task.num_unclosed_reasoning == task.num_documents, task.task


def test_guessing_scores_at_chance_on_every_task(recipe, model_folder):
    """Ten guessers per task: each task within 4 standard errors of its chance level, all of them together within 3."""
    right, expected, variance = 0.0, 0.0, 0.0
    for suite, scored in (("choices", "choices"), ("letters", "answers")):
        model = inspect_model(model_folder, "guess")
        planned = [task for task in plan_suite(recipe, scored, model) if task.benchmark.chance is not None]
        assert len(planned) == (25 if suite == "choices" else 7)
        for task in planned:
            chance, count, hits = task.benchmark.chance, 0, 0.0
            for seed in range(10):
                docs = task.lighteval_task.get_docs(task.task.max_documents)
                guesser = Scripted("guessing", reasons=False, seed=seed)
                method = guesser.loglikelihood if suite == "choices" else guesser.greedy_until
                for doc, response in zip(docs, method(docs), strict=True):
                    response.text_post_processed = response.text
                    (score,) = task.plan.metrics[0].compute_sample(doc=doc, model_response=response).values()
                    hits, count = hits + score, count + 1
            error = (chance * (1 - chance) * count) ** 0.5
            assert abs(hits - chance * count) < 4 * error, task.name
            right, expected, variance = right + hits, expected + chance * count, variance + error**2
    assert abs(right - expected) < 3 * variance**0.5


def test_finished_tasks_are_not_repeated_and_changed_weights_are(recipe, model_folder, tmp_path):
    first = evaluate(recipe, model_folder, "choices", "guessing", only="arc")
    model = inspect_model(model_folder, "guessing-choices")
    planned = [task for task in plan_suite(recipe, "choices", model) if task.benchmark.name.startswith("arc")]

    def must_not_load() -> Any:
        raise AssertionError("a finished suite loads no model")

    again = run_suite(recipe, "choices", model, planned, must_not_load)
    assert again.tasks == first.tasks
    other = model.model_copy(update={"weights_sha256": "0" * 64})
    changed = [task for task in plan_suite(recipe, "choices", other) if task.benchmark.name.startswith("arc")]
    scripted = Scripted("perfect", reasons=False)
    assert run_suite(recipe, "choices", other, changed, lambda: scripted).tasks[0].main_metric.value == 1.0
    assert scripted.calls == 2
    assert read_suite(Path(recipe.output) / "guessing-choices" / "choices.json").tasks[1].task == "arc_easy"


def test_modes_and_tools_reach_the_template(recipe, model_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    planned = plan_suite(recipe, "chat", inspect_model(model_folder, None))
    prompts = {
        task.result_name: PromptBuilder(tokenizer, task.mode)(task.lighteval_task.get_docs(1)[0])
        for task in planned
        if task.benchmark.name == "bfcl_simple"
    }
    assert prompts["bfcl_simple.think"].endswith("<|im_start|>assistant\n")
    assert prompts["bfcl_simple.no_think"].endswith("<think>\n\n</think>\n")
    assert '"name": "get_weather"' in prompts["bfcl_simple.think"]
    assert {task.lighteval_task.sampling_methods[0] for task in planned} == {SamplingMethod.GENERATIVE}
