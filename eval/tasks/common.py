"""What every task needs: a prompt function, metrics with the main one first, and stop sequences."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from lighteval.metrics.dynamic_metrics import (
    ExprExtractionConfig,
    LatexExtractionConfig,
    LogLikelihoodAccMetric,
    MultilingualExtractiveMatchMetric,
)
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.normalizations import LogProbCharNorm, LogProbTokenNorm
from lighteval.metrics.utils.extractive_match_utils import IndicesExtractionConfig
from lighteval.metrics.utils.metric_utils import Metric, SampleLevelMetric
from lighteval.tasks.templates.utils.formulation import CFFormulation, HybridFormulation, MCFFormulation
from lighteval.utils.language import Language

from eval.engine import Doc, ModelResponse, SamplingMethod
from eval.reasoning import Answer, split_answer
from foundation.time_limit import cpu_limit

Row = dict[str, Any]
PromptFunction = Callable[[Row, str], Doc | None]


class Grade(NamedTuple):
    """Of one answer; `reason` says why it is not right, where more can be said than that."""

    score: float
    reason: str = ""


ScoreAnswer = Callable[[str, Doc], float | Grade]

LETTERS = "ABCDEFGHIJ"
_GRADING_SECONDS = 1.0  # of computing; an ordinary answer takes milliseconds


@dataclass(frozen=True)
class TaskPlan:
    """How one benchmark is asked and scored; `metrics[0]` is the one that tables show."""

    prompt: PromptFunction
    metrics: Sequence[Metric]
    stop_sequences: Sequence[str] = field(default_factory=list)


class AnswerScore(SampleLevelComputation):
    """Mean score of a document's answers; reasoning is taken out, and unclosed reasoning scores 0.

    All documents are scored at once before lighteval asks for them one by one. With `threads` above 1 that goes in
    parallel: running programs and asking a judge is waiting, mostly. `reasons` are those of each document's answers.
    """

    def __init__(self, score: ScoreAnswer, threads: int) -> None:
        self._score, self._threads = score, threads
        self._prepared: dict[int, float] = {}
        self.reasons: list[list[str]] = []

    def score_all(self, docs: Sequence[Doc], responses: Sequence[ModelResponse]) -> None:
        if self._threads == 1:  # in this thread: rules for mathematics set an alarm, which others cannot
            grades = list(map(self._grades, docs, responses))
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                grades = list(pool.map(self._grades, docs, responses))
        means = map(_mean_score, grades)
        self._prepared = {id(response): mean for response, mean in zip(responses, means, strict=True)}
        self.reasons = [[grade.reason for grade in graded] for graded in grades]

    def compute(self, doc: Doc, model_response: ModelResponse, **kwargs: Any) -> float:
        prepared = self._prepared.pop(id(model_response), None)
        return _mean_score(self._grades(doc, model_response)) if prepared is None else prepared

    def _grades(self, doc: Doc, model_response: ModelResponse) -> list[Grade]:
        prompt = model_response.input if isinstance(model_response.input, str) else ""
        return [self._grade(split_answer(text, prompt), doc) for text in model_response.text]

    def _grade(self, answer: Answer, doc: Doc) -> Grade:
        if answer.unclosed:
            return Grade(0.0, "the answer never leaves its reasoning")
        try:
            # Programs and judges, which threads wait for, have limits of their own.
            with cpu_limit(_GRADING_SECONDS) if self._threads == 1 else nullcontext():
                grade = self._score(answer.text, doc)
        except (TimeoutError, RecursionError) as error:  # an answer of a thousand brackets overflows some rules
            return Grade(0.0, f"the answer could not be graded: {error}")
        return grade if isinstance(grade, Grade) else Grade(grade)


def _mean_score(grades: Sequence[Grade]) -> float:
    return float(np.mean([grade.score for grade in grades]))


def answer_metric(name: str, score: ScoreAnswer, threads: int = 1) -> Metric:
    """A metric over generated answers, averaged over samples and documents."""
    return SampleLevelMetric(
        metric_name=name,
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=AnswerScore(score, threads),
        corpus_level_fn=np.mean,
    )


def formulation(name: str) -> Any:
    return {"cf": CFFormulation, "mcf": MCFFormulation, "hybrid": HybridFormulation}[name]()


def choice_plan(prompt: PromptFunction, formulation_name: str) -> TaskPlan:
    """Log-likelihood of the choices. Cloze choices differ in length: normalised per character (the main metric) and per
    token; letters do not."""
    plain = LogLikelihoodAccMetric(normalization=None)
    by_character = LogLikelihoodAccMetric(normalization=LogProbCharNorm())
    by_token = LogLikelihoodAccMetric(normalization=LogProbTokenNorm())
    if formulation_name == "mcf":
        return TaskPlan(prompt, [plain])
    return TaskPlan(prompt, [by_character, by_token, plain])


def _extractor(gold: Sequence[Any], predicted: Sequence[Any]) -> Any:
    return MultilingualExtractiveMatchMetric(
        language=Language.ENGLISH, gold_extraction_target=gold, pred_extraction_target=predicted, precision=5
    )


_MATH = _extractor(
    [LatexExtractionConfig(), ExprExtractionConfig()],
    [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()],
)
_LETTER_TARGET = [IndicesExtractionConfig(prefix_for_extraction="NativeLetters", try_extract_without_anchor=True)]
_LETTER = _extractor(_LETTER_TARGET, _LETTER_TARGET)


def math_score(answer: str, doc: Doc) -> float:
    """1.0 if the last expression of the answer (a boxed one first) equals doc.specific["gold"]."""
    gold = Doc(query=doc.query, choices=[(doc.specific or {})["gold"]], gold_index=0)
    return float(_MATH.compute(gold, ModelResponse(text=[answer])))


def letter_score(answer: str, doc: Doc) -> float:
    """1.0 if the letter that the answer settles on is the gold one."""
    return float(_LETTER.compute(doc, ModelResponse(text=[answer])))


def letter_doc(instruction: str, question: str, options: Sequence[str], gold_index: int, task_name: str) -> Doc:
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    choices = list(LETTERS[: len(options)])
    return Doc(
        query=f"{instruction}\n\n{question}\n\n{listed}", choices=choices, gold_index=gold_index, task_name=task_name
    )


def index_of(labels: Mapping[str, Any] | Sequence[Any], key: Any) -> int:
    return list(labels).index(key)
