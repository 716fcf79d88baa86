"""The scores of the SmolLM3 model card, in percent, and which of our tasks make up each of its rows.

Measured there with vLLM 0.9.1, instruction-tuned models at temperature 0.6 and top-p 0.95. They compare with full
editions only, and only where the question and its scoring are the same: `differences` says what is not, by the code of
the published evaluation (huggingface/smollm, text/evaluation/smollm3).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from eval.results import TaskResult

BASE_MODELS = ("SmolLM3-3B", "Qwen2.5-3B", "Llama3.2-3B", "Qwen3-1.7B", "Qwen3-4B")
_REASONING_MODELS = ("SmolLM3-3B", "Qwen3-1.7B", "Qwen3-4B")
_LANGUAGES = {"fr": "French", "es": "Spanish", "de": "German", "it": "Italian", "pt": "Portuguese"}

Settings = Mapping[str, str | int | float]

_WORDING = "another wording of the task"
_OVER_QUESTIONS = "mean over all questions, not over the subjects' means"
# Benchmark -> how our test is another one than that of the published evaluation, as far as it is known.
_DIFFERENCES = {
    "winogrande": "other spaces around the options",
    "mmlu": _OVER_QUESTIONS,
    "gsm8k": "the worked answers end in other words, other shots",
    "math": "another prompt, other shots, mean over all problems, not over the subjects' means",
    "humaneval_plus": "other stop sequences",
    "mbpp_plus": "another prompt, other stop sequences",
    "ruler_.*": "a short form of our own: 8 tasks for 13 (no hard needles), noise for essays, smaller lists and "
    "chains, invented questions for SQuAD and HotpotQA, lengths without the answer",
    "mlmm_hellaswag_..": "the mark [title] is taken out of more endings",
    "global_mmlu_..": _OVER_QUESTIONS,
    "flores200_.*": "another prompt",
    "aime25": _WORDING,
    "gsm_plus": _WORDING,
    "gpqa_diamond": _WORDING,
    "livecodebench_v4": f"problems of release_v4, not v4_v5; {_WORDING}",
    "ifeval": "sentences and words are split without trained data",
    "mixeval_hard_.*": f"another judge's prompt, or none; {_WORDING}",
    "bfcl_.*": "our own scorer over five categories",
    "global_mmlu_instruct_..": f"culturally agnostic questions only; {_WORDING}",
}


def differences(benchmark: str) -> str:
    """In words; empty where none is known, or where no score is published."""
    return "; ".join(text for pattern, text in _DIFFERENCES.items() if re.fullmatch(pattern, benchmark))


@dataclass(frozen=True)
class CardRow:
    """One row of the card. `tasks` matches the names of the tasks whose mean is the row's score, `settings` are those
    that it was measured with."""

    label: str
    mode: str
    tasks: re.Pattern[str]
    scores: dict[str, float]
    settings: Settings
    in_win_rate: bool = False

    def differences(self, results: Iterable[TaskResult]) -> list[str]:
        """How `results` were not measured as the row was, in words."""
        found = []
        for result in results:
            found.append(differences(result.benchmark))
            for name, wanted in self.settings.items():
                if result.settings.get(name) != wanted:
                    found.append(f"{name} {result.settings.get(name)} for {wanted}")
        return [text for text in dict.fromkeys(found) if text]


_CLOZE: Settings = {"formulation": "cf", "num_fewshots": 0}
_INSTRUCT: Settings = {"temperature": 0.6, "top_p": 0.95, "num_fewshots": 0, "generation_tokens": 32768}


def _greedy(num_fewshots: int) -> Settings:
    return {"temperature": 0.0, "num_fewshots": num_fewshots}


_RULER = {**_greedy(0), "max_documents": 500}

# label, tasks, settings, and whether the row is one of the twelve whose ranks make the win rate of base models
_BASE_ROWS: list[tuple[str, str, Settings, bool, tuple[float, ...]]] = [
    ("HellaSwag", "hellaswag", _CLOZE, True, (76.15, 74.19, 75.52, 60.52, 74.37)),
    ("ARC (mean of both)", "arc_(easy|challenge)", _CLOZE, True, (65.61, 59.81, 58.58, 55.88, 62.11)),
    ("Winogrande", "winogrande", _CLOZE, True, (58.88, 61.41, 58.72, 57.06, 59.59)),
    ("CommonsenseQA", "commonsense_qa", _CLOZE, True, (55.28, 49.14, 60.60, 48.98, 52.99)),
    ("MMLU-CF", "mmlu", _CLOZE, True, (44.13, 42.93, 41.32, 39.11, 47.65)),
    ("MMLU-Pro-CF", "mmlu_pro", _CLOZE, True, (19.61, 16.66, 16.42, 18.04, 24.92)),
    ("MMLU-Pro-MCF", "mmlu_pro_mcf", {**_CLOZE, "formulation": "mcf"}, False, (32.70, 31.32, 25.07, 30.39, 41.07)),
    ("PIQA", "piqa", _CLOZE, True, (78.89, 78.35, 78.51, 75.35, 77.58)),
    ("OpenBookQA", "openbookqa", _CLOZE, True, (40.60, 40.20, 42.00, 36.40, 42.40)),
    ("BoolQ", "boolq", _CLOZE, False, (78.99, 73.61, 75.33, 74.46, 74.28)),
    ("GSM8K", "gsm8k", _greedy(5), True, (67.63, 70.13, 25.92, 65.88, 74.14)),
    ("MATH", "math", _greedy(4), True, (46.10, 40.10, 7.44, 41.64, 51.20)),
    ("HumanEval+", "humaneval_plus", _greedy(0), True, (30.48, 34.14, 25.00, 43.29, 54.87)),
    ("MBPP+", "mbpp_plus", _greedy(0), True, (52.91, 52.11, 38.88, 59.25, 63.75)),
    ("RULER 32k", "ruler_.*_32k", _RULER, False, (76.35, 75.93, 77.58, 70.63, 83.98)),
    ("RULER 64k", "ruler_.*_64k", _RULER, False, (67.85, 64.90, 72.93, 57.18, 60.29)),
    ("RULER 128k", "ruler_.*_128k", _RULER, False, (61.03, 62.23, 71.30, 43.03, 47.23)),
]
# language: MLMM HellaSwag, Belebele, Global MMLU (CF), Flores-200
_MULTILINGUAL_ROWS = {
    "fr": (
        (63.94, 57.47, 57.66, 51.26, 61.00),
        (51.00, 51.55, 49.22, 49.44, 55.00),
        (38.37, 34.22, 33.71, 34.94, 41.80),
        (62.85, 61.38, 62.89, 58.68, 65.76),
    ),
    "es": (
        (65.85, 58.25, 59.39, 52.40, 61.85),
        (47.00, 48.88, 47.00, 47.56, 50.33),
        (38.51, 35.84, 35.60, 34.79, 41.22),
        (48.25, 50.00, 44.45, 46.93, 50.16),
    ),
    "de": (
        (59.56, 49.99, 53.19, 46.10, 56.43),
        (48.44, 47.88, 46.22, 48.00, 53.44),
        (35.10, 33.19, 32.60, 32.73, 38.70),
        (56.60, 50.63, 54.95, 52.58, 50.48),
    ),
    "it": (
        (62.49, 53.21, 54.96, 48.72, 58.76),
        (46.44, 44.77, 43.88, 44.00, 48.78),
        (36.99, 33.91, 32.79, 35.37, 39.26),
        (52.65, 54.87, 48.83, 48.37, 49.11),
    ),
    "pt": (
        (63.22, 57.38, 56.84, 50.73, 59.89),
        (47.67, 49.22, 45.00, 44.00, 50.00),
        (36.88, 34.72, 33.05, 35.26, 40.66),
        (60.93, 57.68, 54.28, 56.58, 63.43),
    ),
}
# label, tasks, scores without reasoning (base models' order; None: not given), scores with reasoning
_INSTRUCT_ROWS: list[tuple[str, str, tuple[float | None, ...], tuple[float, ...]]] = [
    ("AIME 2025", "aime25", (9.3, 2.9, 0.3, 8.0, 17.1), (36.7, 30.7, 58.8)),
    ("GSM-Plus", "gsm_plus", (72.8, 74.1, 59.2, 68.3, 82.1), (83.4, 79.4, 88.2)),
    ("LiveCodeBench v4", "livecodebench_v4", (15.2, 10.5, 3.4, 15.0, 24.9), (30.0, 34.4, 52.9)),
    ("GPQA Diamond", "gpqa_diamond", (35.7, 32.2, 29.4, 31.8, 44.4), (41.7, 39.9, 55.3)),
    ("IFEval", "ifeval", (76.7, 65.6, 71.6, 74.0, 68.9), (71.2, 74.2, 85.4)),
    ("MixEval Hard", "mixeval_hard_.*", (26.9, 27.6, 24.9, 24.3, 31.6), (30.8, 33.9, 38.0)),
    ("BFCL", "bfcl_.*", (92.3, None, 92.3, 89.5, 95.0), (88.8, 88.8, 95.5)),
    ("Global MMLU", "global_mmlu_instruct_.*", (53.5, 50.54, 46.8, 49.5, 65.1), (64.1, 62.3, 73.3)),
]


def _card() -> tuple[CardRow, ...]:
    rows = [
        CardRow(label, "plain", re.compile(tasks), _by_model(BASE_MODELS, scores), settings, in_win_rate)
        for label, tasks, settings, in_win_rate, scores in _BASE_ROWS
    ]
    for code, (hellaswag, belebele, mmlu, flores) in _MULTILINGUAL_ROWS.items():
        language = _LANGUAGES[code]
        for label, tasks, settings, scores in (
            ("MLMM HellaSwag", f"mlmm_hellaswag_{code}", _CLOZE, hellaswag),
            ("Belebele", f"belebele_{code}", _CLOZE, belebele),
            ("Global MMLU (CF)", f"global_mmlu_{code}", _CLOZE, mmlu),
            ("Flores-200 (mean of both directions)", f"flores200_({code}_en|en_{code})", _greedy(5), flores),
        ):
            ours = _by_model(BASE_MODELS, scores)
            rows.append(CardRow(f"{label}, {language}", "plain", re.compile(tasks), ours, settings))
    for label, tasks, plain, reasoning in _INSTRUCT_ROWS:
        known: Settings = {} if label == "BFCL" else _INSTRUCT  # BFCL's harness has settings of its own
        rows.append(CardRow(label, "no_think", re.compile(tasks), _by_model(BASE_MODELS, plain), known))
        rows.append(CardRow(label, "think", re.compile(tasks), _by_model(_REASONING_MODELS, reasoning), known))
    return tuple(rows)


def _by_model(models: tuple[str, ...], scores: tuple[float | None, ...]) -> dict[str, float]:
    return {model: score for model, score in zip(models, scores, strict=True) if score is not None}


CARD = _card()
