"""A benchmark as lighteval's task, and the task put to a model."""

import importlib
import tempfile
from collections.abc import Mapping, Sequence

from eval.benchmarks import Benchmark
from eval.engine import LightevalModel, LightevalTask, LightevalTaskConfig, SuitePipeline
from eval.errors import EvalError
from eval.recipe import Mode, Task
from eval.tasks.common import Row, TaskPlan


def task_plan(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Raises EvalError when the benchmark's family has no function of its `builder`'s name."""
    module = importlib.import_module(f"eval.tasks.{benchmark.family}")
    build = getattr(module, benchmark.builder, None)
    if build is None:
        raise EvalError(
            f"eval/benchmarks.py names {benchmark.builder!r} as the builder of {benchmark.name!r}, which "
            f"eval/tasks/{benchmark.family}.py does not have. Write that function, or correct the name."
        )
    plan: TaskPlan = build(benchmark, task)
    return plan


def lighteval_task(
    name: str,
    benchmark: Benchmark,
    task: Task,
    mode: Mode,
    plan: TaskPlan,
    rows: Mapping[str, Sequence[Row]],
) -> LightevalTask:
    """`rows` by split, which lighteval would read itself."""
    source = benchmark.dataset
    split = source.split if source else "test"
    config = LightevalTaskConfig(
        name=name,
        prompt_function=plan.prompt,  # lighteval skips rows that give None
        hf_repo=source.repo if source else benchmark.generator or name,
        hf_subset=source.subset if source else "default",
        metrics=list(plan.metrics),
        hf_avail_splits=list(rows),
        evaluation_splits=[split],
        few_shots_split=(source.fewshot_split if source and benchmark.generator is None else None) or split,
        few_shots_select="sequential",
        generation_size=task.generation_tokens,
        # A chat answer ends by itself; stop strings belong to continued text.
        stop_sequence=list(plan.stop_sequences) if mode == "plain" else [],
        num_fewshots=task.num_fewshots,
    )
    made = LightevalTask(config)
    made.dataset = {split: [dict(row) for row in entries] for split, entries in rows.items()}
    made.num_samples = [task.num_samples]
    return made


def ask(task: LightevalTask, backend: LightevalModel, max_documents: int | None) -> SuitePipeline:
    """The finished pipeline, which holds documents, answers and scores."""
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = SuitePipeline(task, backend, max_documents, scratch)
        pipeline.evaluate()
    return pipeline
