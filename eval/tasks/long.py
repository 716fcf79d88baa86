"""RULER (arXiv 2404.06654) and HELMET (arXiv 2410.02694): prompts of an exact length, generated on the spot."""

import re
import string

from eval.benchmarks import Benchmark
from eval.engine import Doc
from eval.recipe import Task
from eval.tasks.common import Row, TaskPlan, answer_metric


def _prompt(row: Row, task_name: str) -> Doc:
    """Row: input (the whole prompt), outputs (wanted strings), length (tokens of the prompt)."""
    specific = {"outputs": row["outputs"], "length_tokens": row["length"]}
    gold = [" " + ", ".join(row["outputs"])]
    return Doc(query=row["input"], choices=gold, gold_index=0, task_name=task_name, specific=specific)


def ruler(benchmark: Benchmark, task: Task) -> TaskPlan:
    return TaskPlan(_prompt, [answer_metric("string_match", match_all)])


def helmet_answer(benchmark: Benchmark, task: Task) -> TaskPlan:
    """One of the accepted answers occurs in the first line of the reply."""
    return TaskPlan(_prompt, [answer_metric("substring_match", match_any)], ["\n"])


def helmet_label(benchmark: Benchmark, task: Task) -> TaskPlan:
    """The reply is the label and nothing else."""
    return TaskPlan(_prompt, [answer_metric("exact_match", match_label)], ["\n"])


def match_all(answer: str, doc: Doc) -> float:
    """Share of the wanted strings that occur in the answer, ignoring case."""
    outputs = (doc.specific or {})["outputs"]
    return sum(output.lower() in answer.lower() for output in outputs) / len(outputs)


def match_any(answer: str, doc: Doc) -> float:
    """1.0 if an accepted string occurs in the answer; case, articles and punctuation do not count."""
    return float(any(normalised(output) in normalised(answer) for output in (doc.specific or {})["outputs"]))


def match_label(answer: str, doc: Doc) -> float:
    return float(normalised(answer).removeprefix("label").strip() == (doc.specific or {})["outputs"][0])


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and doubled spaces, as question answering sets compare."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())
