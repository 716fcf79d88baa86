"""French, Spanish, German, Italian and Portuguese: multiple choice by log-likelihood, and translation."""

from collections.abc import Sequence
from typing import Any

import sacrebleu
from lighteval.metrics.metrics_corpus import CorpusLevelComputation
from lighteval.metrics.sample_preparator import GenerativePreparator
from lighteval.metrics.utils.metric_utils import CorpusLevelMetric
from lighteval.tasks.templates.hellaswag import get_hellaswag_prompt_function
from lighteval.tasks.templates.multichoice import get_mcq_prompt_function
from lighteval.utils.language import Language

from eval.benchmarks import Benchmark
from eval.engine import Doc, SamplingMethod
from eval.recipe import Task
from eval.tasks.common import Row, TaskPlan, choice_plan, formulation

LIGHTEVAL_LANGUAGES = {
    "fr": Language.FRENCH,
    "es": Language.SPANISH,
    "de": Language.GERMAN,
    "it": Language.ITALIAN,
    "pt": Language.PORTUGUESE,
}
_ENGLISH_NAMES = {"fr": "French", "es": "Spanish", "de": "German", "it": "Italian", "pt": "Portuguese"}


def belebele(benchmark: Benchmark, task: Task) -> TaskPlan:
    def adapter(row: Row) -> Any:
        return {
            "question": row["question"],
            "context": row["flores_passage"],
            "choices": [row[f"mc_answer{number}"] for number in range(1, 5)],
            "gold_idx": int(row["correct_answer_num"]) - 1,
        }

    language = LIGHTEVAL_LANGUAGES[benchmark.arguments["language"]]
    return choice_plan(get_mcq_prompt_function(language, adapter, formulation(task.formulation)), task.formulation)


def mlmm_hellaswag(benchmark: Benchmark, task: Task) -> TaskPlan:
    def adapter(row: Row) -> Any:
        return {
            "ctx_a": row["ctx_a"],
            "ctx_b": row["ctx_b"],
            "continuations": row["endings"],
            "gold_idx": int(row["label"]),
        }

    language = LIGHTEVAL_LANGUAGES[benchmark.arguments["language"]]
    # The machine-translated sets write the artefact without the leading space of the English one.
    prompt = get_hellaswag_prompt_function(
        language, adapter, formulation(task.formulation), wikihow_artifacts=[" [title]", "[title]"]
    )
    return choice_plan(prompt, task.formulation)


def global_mmlu(benchmark: Benchmark, task: Task) -> TaskPlan:
    """The questions that annotators found culturally agnostic ("CA"; "-" is unannotated), as SmolLM3 was measured."""

    def adapter(row: Row) -> Any:
        if row["cultural_sensitivity_label"] != "CA":
            return None
        return {
            "question": row["question"],
            "choices": [row[f"option_{letter}"] for letter in "abcd"],
            "gold_idx": "ABCD".index(row["answer"]),
        }

    language = LIGHTEVAL_LANGUAGES[benchmark.arguments["language"]]
    return choice_plan(get_mcq_prompt_function(language, adapter, formulation(task.formulation)), task.formulation)


def flores(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Sentence translation from or into English, scored by chrF++ (0 to 100)."""
    assert benchmark.dataset is not None
    foreign, english = benchmark.dataset.subset.split("-")
    name = _ENGLISH_NAMES[benchmark.arguments["language"]]
    source, target = (foreign, english) if benchmark.arguments["to_english"] else (english, foreign)
    source_name, target_name = (name, "English") if benchmark.arguments["to_english"] else ("English", name)

    def prompt(row: Row, task_name: str) -> Doc:
        query = f"{source_name}: {row[f'sentence_{source}']}\n{target_name}:"
        return Doc(query=query, choices=[f" {row[f'sentence_{target}']}"], gold_index=0, task_name=task_name)

    return TaskPlan(prompt, [_chrf_metric()], ["\n"])


class _Chrf(CorpusLevelComputation):
    """chrF++ over all sentences. lighteval's own hands sacrebleu one reference stream per sentence, so that only the
    first sentence is compared with anything."""

    def compute_corpus(self, items: Sequence[Any]) -> float:
        hypotheses = [item.preds[0] for item in items]
        references = [item.golds[0] for item in items]
        return float(sacrebleu.CHRF(word_order=2).corpus_score(hypotheses, [references]).score)


def _chrf_metric() -> CorpusLevelMetric:
    return CorpusLevelMetric(
        metric_name="chrf++",
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=GenerativePreparator(),
        corpus_level_fn=_Chrf(),
    )
