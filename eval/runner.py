"""Runs the planned tasks of a suite: load the model once, write each result when it is done."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.asking import ask
from eval.engine import LightevalModel, ModelResponse, SuitePipeline
from eval.fingerprint import VERSIONED
from eval.model import LocalModel
from eval.planning import PlannedTask
from eval.reasoning import split_answer
from eval.recipe import EvalRecipe, Sampling
from eval.results import DatasetInfo, Metric, ModelInfo, SuiteResult, TaskResult, write_json
from eval.tasks.common import TaskPlan
from foundation.fingerprint import Fingerprint, versions


def run_suite(
    recipe: EvalRecipe,
    suite_name: str,
    model: ModelInfo,
    planned: Sequence[PlannedTask],
    get_backend: Callable[[], LightevalModel],
) -> SuiteResult:
    """Run what has no result yet and write <output>/<model>/<suite>.json.

    `get_backend` is called only if there is something to run: a finished suite loads no weights.
    """
    folder = Path(recipe.output) / model.name / suite_name
    sampling = recipe.suites[suite_name].sampling
    started = time.monotonic()
    results = []
    for number, task in enumerate(planned, 1):
        label = f"[{number}/{len(planned)}] {task.result_name}"
        result = _finished(folder / f"{task.result_name}.json", task.fingerprint, label)
        if result is None:
            result = _run_task(task, get_backend(), folder, label, recipe, sampling)
        main = result.main_metric
        print(f"{label}: {main.name} {main.value:.4f} ({result.num_documents} documents)", flush=True)
        results.append(result)
    suite = SuiteResult(
        suite=suite_name,
        model=model,
        tasks=results,
        seconds=round(time.monotonic() - started, 2),
        versions=versions(VERSIONED),
        command=" ".join(["python", *sys.orig_argv[1:]]),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_json(suite, folder.with_suffix(".json"))
    return suite


def _finished(file: Path, fingerprint: Fingerprint, label: str) -> TaskResult | None:
    """The result that is there, if nothing that it depends on has changed; else says what has."""
    if not file.is_file():
        return None
    result = TaskResult.model_validate_json(file.read_text(encoding="utf-8"))
    if result.fingerprint == fingerprint.total:
        return result
    changes = fingerprint.changes_since(result.fingerprint_parts)
    why = f"changed: {changes}" if result.fingerprint_parts else "made by an older version"
    print(f"{label}: computed again ({why})", flush=True)
    return None


def _run_task(
    planned: PlannedTask, backend: LightevalModel, folder: Path, label: str, recipe: EvalRecipe, sampling: Sampling
) -> TaskResult:
    if isinstance(backend, LocalModel):
        backend.start_task(planned.mode, sampling, _ProgressPrinter(label))
    started = time.monotonic()
    pipeline = ask(planned.lighteval_task, backend, planned.task.max_documents)
    aggregated, per_document = pipeline.scores()
    result = TaskResult(
        task=planned.result_name,
        benchmark=planned.benchmark.name,
        mode=planned.mode,
        metrics=_metrics(planned.plan, aggregated),
        chance=planned.benchmark.chance,
        num_documents=len(pipeline.docs),
        num_samples=planned.task.num_samples,
        num_unclosed_reasoning=_count_unclosed(pipeline.responses),
        num_over_length=getattr(backend, "over_length", 0),
        seconds=round(time.monotonic() - started, 2),
        dataset=_dataset_info(planned),
        settings=_settings(planned, recipe, sampling),
        fingerprint=planned.fingerprint.total,
        fingerprint_parts=dict(planned.fingerprint.parts),
    )
    _write_details(folder / f"{planned.result_name}.details.jsonl", pipeline, per_document)
    write_json(result, folder / f"{planned.result_name}.json")
    return result


def _metrics(plan: TaskPlan, aggregated: dict[str, float]) -> list[Metric]:
    metrics = []
    for position, metric in enumerate(plan.metrics):
        stderr = aggregated.get(f"{metric.metric_name}_stderr")
        value = float(aggregated[metric.metric_name])
        error = None if stderr is None else float(stderr)
        metrics.append(Metric(name=metric.metric_name, value=value, stderr=error, main=position == 0))
    return metrics


def _count_unclosed(responses: Sequence[ModelResponse]) -> int:
    return sum(
        split_answer(text, response.input if isinstance(response.input, str) else "").unclosed
        for response in responses
        for text in response.text
    )


def _dataset_info(planned: PlannedTask) -> DatasetInfo:
    source = planned.benchmark.dataset
    return DatasetInfo(
        repo=source.repo if source else "generated",
        subset=source.subset if source else planned.benchmark.name,
        split=source.split if source else "test",
        revision=planned.dataset.revision,
        edition=planned.dataset.edition,
        sha256=planned.dataset.sha256,
    )


def _settings(
    planned: PlannedTask, recipe: EvalRecipe, sampling: Sampling
) -> dict[str, str | int | float | bool | None]:
    settings = planned.task.model_dump(exclude={"benchmark", "revision"})
    settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    settings |= recipe.backend.model_dump()
    return settings


def _write_details(file: Path, pipeline: SuitePipeline, per_document: dict[str, list[Any]]) -> None:
    """One line per document: prompt, what was expected, what came back, its scores, and why they are not full."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Half a surrogate pair becomes its JSON escape.
    with file.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for index, (doc, response) in enumerate(zip(pipeline.docs, pipeline.responses, strict=True)):
            scores = {
                name: values[index] for name, values in per_document.items() if not hasattr(values[index], "golds")
            }
            line: dict[str, Any] = {
                "id": doc.id,
                "prompt": response.input,
                "choices": doc.choices,
                "gold_index": doc.gold_index,
            }
            line |= {"answers": response.text, "logprobs": list(response.logprobs), "scores": scores}
            if pipeline.reasons and any(pipeline.reasons[index]):
                line["reasons"] = pipeline.reasons[index]
            stream.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


class _ProgressPrinter:
    """One line at most every ten seconds, with the time left."""

    def __init__(self, label: str) -> None:
        self._label, self._printed = label, 0.0

    def __call__(self, done: int, total: int, seconds: float) -> None:
        if seconds - self._printed >= 10 and done < total:
            self._printed = seconds
            print(f"{self._label}: {done}/{total}, {seconds / done * (total - done):.0f} s left", flush=True)
