"""What every task needs: a prompt function, metrics with the main one first, and stop sequences."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

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
from eval.reasoning import split_answer

Row = dict[str, Any]
PromptFunction = Callable[[Row, str], Doc | None]
ScoreAnswer = Callable[[str, Doc], float]

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class TaskPlan:
    """How one benchmark is asked and scored; `metrics[0]` is the one that tables show."""

    prompt: PromptFunction
    metrics: Sequence[Metric]
    stop_sequences: Sequence[str] = field(default_factory=list)


class AnswerScore(SampleLevelComputation):
    """Mean score of a document's answers; reasoning is taken out, and unclosed reasoning scores 0.

    With `threads` above 1 all documents are scored at once before lighteval asks for them one by one: running programs
    and asking a judge is waiting, mostly.
    """

    def __init__(self, score: ScoreAnswer, threads: int) -> None:
        self._score, self._threads = score, threads
        self._prepared: dict[int, float] = {}

    def score_all(self, docs: Sequence[Doc], responses: Sequence[ModelResponse]) -> None:
        if self._threads > 1:
            with ThreadPoolExecutor(self._threads) as pool:
                scores = pool.map(self._mean_score, docs, responses)
                self._prepared = {id(response): score for response, score in zip(responses, scores, strict=True)}

    def compute(self, doc: Doc, model_response: ModelResponse, **kwargs: Any) -> float:
        prepared = self._prepared.pop(id(model_response), None)
        return self._mean_score(doc, model_response) if prepared is None else prepared

    def _mean_score(self, doc: Doc, model_response: ModelResponse) -> float:
        prompt = model_response.input if isinstance(model_response.input, str) else ""
        answers = [split_answer(text, prompt) for text in model_response.text]
        return float(np.mean([0.0 if answer.unclosed else self._score(answer.text, doc) for answer in answers]))


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
