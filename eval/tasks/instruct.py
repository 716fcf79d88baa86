"""Benchmarks of instruction-tuned models: generated answers, in both reasoning modes."""

import hashlib
from functools import cache
from typing import Any

from eval.benchmarks import Benchmark
from eval.engine import Doc, ModelResponse, import_ifeval
from eval.recipe import Task
from eval.tasks.common import LETTERS, Row, TaskPlan, answer_metric, letter_doc, letter_score, math_score
from eval.tasks.long import match_any

_BOXED = "Solve the problem below. Work step by step and put the final answer in \\boxed{}."
_LETTER = (
    "Answer the question below. End your reply with a line 'Answer: X', where X is the letter of the right option."
)
_LETTER_IN = {
    "fr": "Répondez à la question. Terminez par une ligne 'Answer: X', où X est la lettre de la bonne réponse.",
    "es": "Responda a la pregunta. Termine con una línea 'Answer: X', donde X es la letra de la opción correcta.",
    "de": "Beantworten Sie die Frage. Enden Sie mit einer Zeile 'Answer: X', wobei X der richtige Buchstabe ist.",
    "it": "Rispondi alla domanda. Termina con una riga 'Answer: X', dove X è la lettera dell'opzione corretta.",
    "pt": "Responda à pergunta abaixo. Termine com uma linha 'Answer: X', em que X é a letra da opção correta.",
}


def _boxed_doc(problem: str, gold: str, task_name: str) -> Doc:
    specific = {"gold": gold}
    return Doc(query=f"{_BOXED}\n\n{problem}", choices=[gold], gold_index=0, task_name=task_name, specific=specific)


def aime25(benchmark: Benchmark, task: Task) -> TaskPlan:
    def prompt(row: Row, task_name: str) -> Doc:
        return _boxed_doc(row["problem"], str(row["answer"]), task_name)

    return TaskPlan(prompt, [answer_metric("exact_match", math_score)])


def gsm_plus(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Perturbed GSM8K; the "critical thinking" perturbation has no numeric answer and is left out."""

    def prompt(row: Row, task_name: str) -> Doc | None:
        if row["perturbation_type"] == "critical thinking":
            return None
        return _boxed_doc(row["question"], str(row["answer"]), task_name)

    return TaskPlan(prompt, [answer_metric("exact_match", math_score)])


def gpqa(benchmark: Benchmark, task: Task) -> TaskPlan:
    """The gold option's place is a hash of the question: it depends neither on task order nor on the process."""

    def prompt(row: Row, task_name: str) -> Doc:
        options = [row[f"Incorrect Answer {number}"].strip() for number in (1, 2, 3)]
        gold_index = hashlib.sha256(row["Question"].encode()).digest()[0] % 4
        options.insert(gold_index, row["Correct Answer"].strip())
        return letter_doc(_LETTER, row["Question"].strip(), options, gold_index, task_name)

    return TaskPlan(prompt, [answer_metric("accuracy", letter_score)])


def global_mmlu_instruct(benchmark: Benchmark, task: Task) -> TaskPlan:
    def prompt(row: Row, task_name: str) -> Doc | None:
        if row["cultural_sensitivity_label"] != "CA":
            return None
        options = [row[f"option_{letter}"] for letter in "abcd"]
        instruction = _LETTER_IN[benchmark.arguments["language"]]
        return letter_doc(instruction, row["question"], options, "ABCD".index(row["answer"]), task_name)

    return TaskPlan(prompt, [answer_metric("accuracy", letter_score)])


def _mixeval_question(row: Row) -> str:
    context = row.get("context") or ""
    return f"{context}\n\n{row['prompt']}" if context.strip().lower() not in ("", "none", "null") else row["prompt"]


def mixeval_mc(benchmark: Benchmark, task: Task) -> TaskPlan:
    def prompt(row: Row, task_name: str) -> Doc:
        options = row["options"][: len(LETTERS)]
        return letter_doc(_LETTER, _mixeval_question(row), options, int(row["target"][0]), task_name)

    return TaskPlan(prompt, [answer_metric("accuracy", letter_score)])


def mixeval_freeform(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Without a judge the score is whether a reference answer occurs in the reply, under a name of its own."""

    def prompt(row: Row, task_name: str) -> Doc:
        question = _mixeval_question(row)
        targets = [str(target) for target in row["target"]]
        specific = {"outputs": targets, "question": question}
        query = f"{question}\n\nEnd your reply with the answer in a few words."
        return Doc(query=query, choices=targets, gold_index=0, task_name=task_name, specific=specific)

    return TaskPlan(prompt, [answer_metric("reference_in_reply", match_any)])


def ifeval(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Verifiable instructions, by lighteval's rules; strict (main) and loose, per prompt."""

    def prompt(row: Row, task_name: str) -> Doc:
        specific = {"instructions_id_list": row["instruction_id_list"], "kwargs": row["kwargs"]}
        return Doc(query=row["prompt"], choices=[""], gold_index=0, task_name=task_name, specific=specific)

    def strict(answer: str, doc: Doc) -> float:
        return float(_ifeval_scores(answer, doc)["prompt_level_strict_acc"])

    def loose(answer: str, doc: Doc) -> float:
        return float(_ifeval_scores(answer, doc)["prompt_level_loose_acc"])

    metrics = [answer_metric("prompt_level_strict", strict), answer_metric("prompt_level_loose", loose)]
    return TaskPlan(prompt, metrics)


@cache
def _ifeval_metric() -> Any:
    return import_ifeval().IFEvalMetrics()


def _ifeval_scores(answer: str, doc: Doc) -> dict[str, Any]:
    scores: dict[str, Any] = _ifeval_metric().compute(doc=doc, model_response=ModelResponse(text=[answer]))
    return scores
