"""Benchmarks of pretrained models: multiple choice by log-likelihood, and two sets of worked mathematics."""

import re
from collections.abc import Callable
from typing import Any

from lighteval.tasks.templates.boolq import get_boolq_prompt_function
from lighteval.tasks.templates.continuation import get_continuation_prompt_function
from lighteval.tasks.templates.hellaswag import get_hellaswag_prompt_function
from lighteval.tasks.templates.multichoice import get_mcq_prompt_function
from lighteval.utils.language import Language

from eval.benchmarks import Benchmark
from eval.engine import Doc
from eval.recipe import Task
from eval.tasks.common import Row, TaskPlan, answer_metric, choice_plan, formulation, math_score


def _questions(task: Task, adapter: Callable[[Row], Any]) -> TaskPlan:
    prompt = get_mcq_prompt_function(Language.ENGLISH, adapter, formulation(task.formulation))
    return choice_plan(prompt, task.formulation)


def hellaswag(benchmark: Benchmark, task: Task) -> TaskPlan:
    def adapter(row: Row) -> Any:
        return {
            "activity_label": row["activity_label"],
            "ctx_a": row["ctx_a"],
            "ctx_b": row["ctx_b"],
            "continuations": row["endings"],
            "gold_idx": int(row["label"]),
        }

    prompt = get_hellaswag_prompt_function(Language.ENGLISH, adapter, formulation(task.formulation))
    return choice_plan(prompt, task.formulation)


def winogrande(benchmark: Benchmark, task: Task) -> TaskPlan:
    def adapter(row: Row) -> Any:
        before, _, after = row["sentence"].partition("_")
        options = [f"{row[name]}{after}" for name in ("option1", "option2")]
        return {"context": before.strip(), "continuations": options, "gold_idx": int(row["answer"]) - 1}

    prompt = get_continuation_prompt_function(Language.ENGLISH, adapter, formulation(task.formulation))
    return choice_plan(prompt, task.formulation)


def boolq(benchmark: Benchmark, task: Task) -> TaskPlan:
    adapter: Any = {"question": "question", "answer": "answer", "context": "passage"}
    prompt = get_boolq_prompt_function(Language.ENGLISH, adapter, formulation(task.formulation))
    return choice_plan(prompt, task.formulation)


def _labelled(question_key: str) -> Callable[[Row], Any]:
    def adapter(row: Row) -> Any:
        labels, texts = row["choices"]["label"], row["choices"]["text"]
        return {"question": row[question_key], "choices": texts, "gold_idx": labels.index(row["answerKey"])}

    return adapter


def arc(benchmark: Benchmark, task: Task) -> TaskPlan:
    return _questions(task, _labelled("question"))


def commonsense_qa(benchmark: Benchmark, task: Task) -> TaskPlan:
    return _questions(task, _labelled("question"))


def openbookqa(benchmark: Benchmark, task: Task) -> TaskPlan:
    return _questions(task, _labelled("question_stem"))


def mmlu(benchmark: Benchmark, task: Task) -> TaskPlan:
    return _questions(
        task, lambda row: {"question": row["question"], "choices": row["choices"], "gold_idx": int(row["answer"])}
    )


def mmlu_pro(benchmark: Benchmark, task: Task) -> TaskPlan:
    return _questions(
        task, lambda row: {"question": row["question"], "choices": row["options"], "gold_idx": int(row["answer_index"])}
    )


def piqa(benchmark: Benchmark, task: Task) -> TaskPlan:
    return _questions(
        task,
        lambda row: {"question": row["goal"], "choices": [row["sol1"], row["sol2"]], "gold_idx": int(row["label"])},
    )


def gsm8k(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Worked grade-school problems; the reference solution ends in `#### number`."""

    def prompt(row: Row, task_name: str) -> Doc:
        solution, _, number = row["answer"].rpartition("####")
        worked = f" {solution.strip()}\nThe answer is {number.strip()}."
        query = f"Question: {row['question']}\nAnswer:"
        gold = number.strip().replace(",", "")
        return Doc(query=query, choices=[worked], gold_index=0, task_name=task_name, specific={"gold": gold})

    return TaskPlan(prompt, [answer_metric("exact_match", math_score)], ["Question:"])


def math(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Competition problems; the gold answer is the last boxed expression of the reference solution."""

    def prompt(row: Row, task_name: str) -> Doc:
        query = f"Problem: {row['problem']}\nSolution:"
        gold = {"gold": f"${last_boxed(row['solution'])}$"}
        return Doc(query=query, choices=[f" {row['solution']}"], gold_index=0, task_name=task_name, specific=gold)

    return TaskPlan(prompt, [answer_metric("exact_match", math_score)], ["Problem:"])


def last_boxed(text: str) -> str:
    """The content of the last \\boxed{...} or \\fbox{...}, braces balanced; some solutions write `\\boxed 3` instead.

    Raises:
        ValueError: if there is none.
    """
    marks = list(re.finditer(r"\\(?:boxed|fbox)\s*(?:\{|(\w+))", text))
    if not marks:
        raise ValueError(f"This solution boxes no answer: {text[-80:]!r}")
    if marks[-1][1] is not None:
        return str(marks[-1][1])
    starts = [marks[-1].end()]
    depth, position = 1, starts[-1]
    while depth and position < len(text):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        position += 1
    return text[starts[-1] : position - 1]
