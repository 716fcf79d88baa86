"""RULER (arXiv 2404.06654): retrieval, tracing and counting in prompts of an exact length, generated on the spot."""

from eval.benchmarks import Benchmark
from eval.engine import Doc
from eval.recipe import Task
from eval.tasks.common import Row, TaskPlan, answer_metric


def ruler(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Row: input (the whole prompt), outputs (strings that the answer must hold), length (tokens of the prompt)."""

    def prompt(row: Row, task_name: str) -> Doc:
        outputs = [str(output) for output in row["outputs"]]
        specific = {"outputs": outputs, "length_tokens": row["length"]}
        gold = [" " + ", ".join(outputs)]
        return Doc(query=row["input"], choices=gold, gold_index=0, task_name=task_name, specific=specific)

    return TaskPlan(prompt, [answer_metric("string_match", match_all)])


def match_all(answer: str, doc: Doc) -> float:
    """Share of the wanted strings that occur in the answer, ignoring case."""
    outputs = (doc.specific or {})["outputs"]
    return sum(output.lower() in answer.lower() for output in outputs) / len(outputs)
