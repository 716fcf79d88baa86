"""What an evaluation writes: typed, versioned JSON with everything needed to judge and repeat it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Record):
    name: str
    value: float
    stderr: float | None
    main: bool  # the metric that tables and merges use


class DatasetInfo(_Record):
    """`edition` small marks our own items, whose scores compare with no published number."""

    repo: str
    subset: str
    split: str
    revision: str
    edition: Literal["small", "full", "generated"]
    sha256: str


class TaskResult(_Record):
    task: str
    benchmark: str
    mode: Literal["plain", "think", "no_think"]
    metrics: list[Metric]
    chance: float | None
    num_documents: int
    num_samples: int  # answers per document
    num_unclosed_reasoning: int  # answers that never left their reasoning, scored 0
    num_over_length: int  # documents whose prompt or answer met the end of the window
    seconds: float
    dataset: DatasetInfo
    settings: dict[str, str | int | float | bool | None]
    fingerprint: str  # of model, template, data, recipe, code and versions: an equal one is not computed again
    fingerprint_parts: dict[str, str] = {}  # by kind

    @property
    def main_metric(self) -> Metric:
        return next(metric for metric in self.metrics if metric.main)

    @property
    def is_retrieval(self) -> bool:
        """Whether it asks for what a prompt of `context_tokens` holds: RULER's tasks, and questions about records."""
        return self.benchmark.startswith("ruler_") or self.benchmark == "facts"


class ModelInfo(_Record):
    name: str
    path: str
    weights_sha256: str  # of config.json and the weight files
    tokenizer_sha256: str
    chat_template_sha256: str | None
    num_parameters: int


class SuiteResult(_Record):
    format: Literal["eval/1"] = "eval/1"
    suite: str
    model: ModelInfo
    tasks: list[TaskResult]
    seconds: float
    versions: dict[str, str]
    command: str
    created: str


class Score(_Record):
    """In percent."""

    value: float
    stderr: float
    edition: Literal["small", "full", "generated"]


class CurvePoint(_Record):
    run: str
    step: int
    tokens: int
    checkpoint_sha256: str  # of checkpoint.json, which holds the hash of every file
    scores: dict[str, Score]  # "suite/task" -> main metric


class Curve(_Record):
    """Scores over the checkpoints of one or several runs that continue each other, by tokens."""

    format: Literal["eval-curve/1"] = "eval-curve/1"
    suites: list[str]
    settings_sha256: str  # of the suites in the recipe: points of other settings do not compare
    points: list[CurvePoint]


def write_json(record: BaseModel, file: Path) -> None:
    """Atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


def read_suite(file: Path) -> SuiteResult:
    return SuiteResult.model_validate_json(file.read_text(encoding="utf-8"))
