"""The evaluation recipe: suites of tasks with formulation, shots, samples, generation settings and dataset revision."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from foundation.recipe import Problem, Section, load_as

Mode = Literal["think", "no_think", "plain"]


class Backend(Section):
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="vllm: for GPUs, needs the vllm package; prompts and scoring are the same."
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Of the weights while evaluating.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes the GPU if there is one; vllm has its own device."
    )
    batch_size: int = Field(
        8, ge=1, description="Sequences per forward pass, which change no answer; vllm makes its own."
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share the model, with vllm.")
    gpu_memory_utilization: float = Field(0.8, gt=0, le=1, description="Share of GPU memory that vllm may take.")
    max_length_tokens: int | None = Field(
        None, ge=16, description="Prompt and answer together; default: max_position_embeddings of the model."
    )
    seed: int = Field(0, ge=0, description="Of sampled answers, together with the prompt.")

    @model_validator(mode="after")
    def _several_gpus_need_vllm(self) -> Self:
        if self.engine == "transformers" and self.tensor_parallel_size > 1:
            raise ValueError("tensor_parallel_size above 1 needs engine: vllm")
        return self


class Judge(Section):
    url: str = Field(
        pattern=r"^https?://",
        description="OpenAI-compatible endpoint, for example http://127.0.0.1:8000/v1 (vllm serve).",
    )
    model: str = Field(description="Name of the model there.")
    threads: int = Field(8, ge=1, description="Requests at once.")
    timeout_seconds: float = Field(120.0, gt=0, description="Longest wait for one reply.")


class Sampling(Section):
    temperature: float = Field(0.0, ge=0, description="0 decodes greedily.")
    top_p: float = Field(1.0, gt=0, le=1)


class Task(Section):
    benchmark: str | None = Field(None, description="Name in the list of benchmarks; default: the task's own name.")
    formulation: Literal["cf", "mcf", "hybrid"] = Field(
        "cf", description="Cloze (score the answer's text), multiple choice (score the letter), or options + text."
    )
    num_fewshots: int = Field(0, ge=0, description="Solved examples in front of each question.")
    num_samples: int = Field(1, ge=1, description="Answers per question; the score is their mean (avg@k).")
    generation_tokens: int = Field(256, ge=1, description="Longest answer, reasoning included.")
    max_documents: int | None = Field(None, ge=1, description="Evaluate a fixed random part; marked in every table.")
    context_tokens: int | None = Field(None, ge=64, description="Prompt length of generated long-context tasks.")
    haystack: str | None = Field(None, description="Text file that hides RULER's needles; default: noise sentences.")
    revision: str | None = Field(None, description="Git revision of the hub dataset; default: newest, recorded.")


class Suite(Section):
    modes: list[Mode] = Field(
        ["plain"], min_length=1, description="plain: no chat template; think, no_think: the template's two modes."
    )
    sampling: Sampling = Sampling()
    tasks: dict[str, Task] = Field(min_length=1)

    @property
    def needs_chat_template(self) -> bool:
        return any(mode != "plain" for mode in self.modes)

    @model_validator(mode="after")
    def _samples_need_temperature(self) -> Self:
        several = [name for name, task in self.tasks.items() if task.num_samples > 1]
        if several and self.sampling.temperature == 0:
            raise ValueError(f"{several[0]} draws several answers, which are all equal at temperature 0; set sampling")
        return self


class CheckpointSuites(Section):
    """Suites to run on pretraining checkpoints while training goes on, in Slurm jobs of their own."""

    every_steps: int = Field(gt=0, description="Evaluate the checkpoints of every so many steps.")
    suites: list[str] = Field(min_length=1, description="Suites without chat template.")


class EvalRecipe(Section):
    output: str = Field(description="Folder of the results, <output>/<model>/<suite>.json.")
    data: str = Field(description="Folder of the data, written by smollm3 eval-data.")
    backend: Backend = Backend()
    judge: Judge | None = Field(
        None, description="Model that scores free-form answers; default: whether a reference answer occurs in them."
    )
    execute_code: bool = Field(False, description="Allow the code benchmarks to run model code, in a sandbox.")
    suites: dict[str, Suite] = Field(min_length=1)
    checkpoints: CheckpointSuites | None = None


def load_eval_recipe(path: str | Path, overrides: Sequence[str] = ()) -> EvalRecipe:
    """Read and validate an evaluation recipe; `extends:`, `${VAR:-default}` and overrides work as in every recipe.

    Raises:
        RecipeError: naming every wrong key with file, line and fix.
    """
    return load_as(EvalRecipe, path, overrides, _problems)


def _problems(recipe: EvalRecipe) -> list[Problem]:
    return _unknown_benchmarks(recipe) + _unfit_checkpoint_suites(recipe)


def _unfit_checkpoint_suites(recipe: EvalRecipe) -> list[Problem]:
    fitting = [name for name, suite in recipe.suites.items() if not suite.needs_chat_template]
    wanted = recipe.checkpoints.suites if recipe.checkpoints else []
    message = f"No suite %r that runs without a chat template. Fitting: {', '.join(fitting)}."
    return [Problem(("checkpoints", "suites"), message % name) for name in wanted if name not in fitting]


def _unknown_benchmarks(recipe: EvalRecipe) -> list[Problem]:
    from eval.benchmarks import BENCHMARK_NAMES

    problems = []
    for suite_name, suite in recipe.suites.items():
        for task_name, task in suite.tasks.items():
            name = task.benchmark or task_name
            if name not in BENCHMARK_NAMES:
                close = difflib.get_close_matches(name, BENCHMARK_NAMES, n=1)
                hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(BENCHMARK_NAMES))}."
                problems.append(Problem(("suites", suite_name, "tasks", task_name), f"No benchmark {name!r}. {hint}"))
    return problems
