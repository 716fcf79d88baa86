"""What a suite will run on a model, resolved before weights are loaded: data, prompts, template, sandbox."""

import dataclasses
import hashlib
import importlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.asking import lighteval_task, task_plan
from eval.benchmarks import BENCHMARKS, Benchmark
from eval.engine import Doc, LightevalTask
from eval.errors import EvalError
from eval.fingerprint import task_fingerprint
from eval.judge import check_judge, judge_metric
from eval.local_data import LocalDataset, read_dataset
from eval.model import PromptBuilder
from eval.recipe import EvalRecipe, Mode, Suite, Task
from eval.results import ModelInfo
from eval.ruler import sentences
from eval.sandbox import SandboxError, check_sandbox
from eval.tasks.common import TaskPlan
from foundation.fingerprint import Fingerprint
from foundation.finite import check_files_finite
from foundation.hf_folder import meaning, read_config
from foundation.pretrained import check_folder, load_tokenizer
from foundation.weights import read_header

GENERATED_DOCUMENTS = 24


@dataclass
class PlannedTask:
    """A task that was resolved: data read, prompts built, nothing computed yet."""

    name: str
    mode: Mode
    benchmark: Benchmark
    task: Task
    plan: TaskPlan
    dataset: LocalDataset
    lighteval_task: LightevalTask
    fingerprint: Fingerprint

    @property
    def result_name(self) -> str:
        return self.name if self.mode == "plain" else f"{self.name}.{self.mode}"


def inspect_model(folder: Path, name: str | None) -> ModelInfo:
    """Hashes of weights and template; reads every weight.

    Raises:
        EvalError: if the folder is not a transformers checkpoint with a tokenizer.
        UnsafeNameError: if its index names weights elsewhere.
        ModelFolderError: for a configuration that contradicts itself.
        NotFiniteError: for a weight that is NaN or infinite, which need not show in a score.
    """
    missing = [file for file in ("config.json", "tokenizer.json") if not (folder / file).is_file()]
    weights = sorted(folder.glob("*.safetensors"))
    if missing or not weights:
        lacking = ", ".join([*missing, *([] if weights else ["*.safetensors"])])
        raise EvalError(f"{folder} is not a transformers model with tokenizer: it lacks {lacking}.")
    check_folder(folder)  # transformers would read whatever file its index names, and the hash would not cover it
    meaning(read_config(folder), folder / "config.json")
    check_files_finite(weights)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    parameters = 0
    for file in weights:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
        parameters += sum(math.prod(entry["shape"]) for entry in read_header(file).values())
    template = load_tokenizer(folder).chat_template
    template_hash = hashlib.sha256(str(template).encode()).hexdigest() if template else None
    return ModelInfo(
        name=name or folder.resolve().name,
        path=str(folder),
        weights_sha256=digest.hexdigest(),
        tokenizer_sha256=hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        chat_template_sha256=template_hash,
        num_parameters=parameters,
    )


def plan_suite(recipe: EvalRecipe, suite_name: str, model: ModelInfo) -> list[PlannedTask]:
    """Everything that can go wrong without weights goes wrong here: data, prompts, template, sandbox.

    Raises:
        EvalError: naming the task and the fix.
    """
    suite = recipe.suites[suite_name]
    tokenizer = load_tokenizer(model.path)
    if suite.needs_chat_template and model.chat_template_sha256 is None:
        raise EvalError(f"Suite {suite_name} talks to the model, but {model.path} has no chat template.")
    planned = []
    for name, task in suite.tasks.items():
        benchmark = BENCHMARKS[task.benchmark or name]
        _check_code_execution(recipe, name, benchmark)
        if benchmark.judged and recipe.judge is not None:
            check_judge(recipe.judge)
        dataset = _load_rows(recipe, name, benchmark, task, tokenizer)
        for mode in suite.modes:
            planned.append(_plan_task(recipe, suite, name, mode, benchmark, task, dataset, model))
    return planned


def _check_code_execution(recipe: EvalRecipe, name: str, benchmark: Benchmark) -> None:
    if not benchmark.executes_code:
        return
    if not recipe.execute_code:
        raise EvalError(f"Task {name} executes code that the model writes. Allow it with execute_code=true.")
    try:
        check_sandbox()
    except SandboxError as error:
        raise EvalError(f"Task {name} executes code, which is refused without a working sandbox. {error}") from None


def _load_rows(recipe: EvalRecipe, name: str, benchmark: Benchmark, task: Task, tokenizer: Any) -> LocalDataset:
    source = None if benchmark.dataset is None else read_dataset(Path(recipe.data), benchmark.dataset)
    if benchmark.generator is None:
        assert source is not None
        return source
    if task.context_tokens is None:
        raise EvalError(f"Task {name} generates its prompts and needs context_tokens.")
    documents = task.max_documents or GENERATED_DOCUMENTS
    arguments = dict(benchmark.arguments)
    if task.haystack is not None:
        arguments["haystack"] = _haystack(name, benchmark, Path(task.haystack))
    generate = importlib.import_module(f"eval.{benchmark.generator}").generate
    try:
        rows = generate(
            **arguments,
            rows=_generator_rows(benchmark, source),
            tokenizer=tokenizer,
            context_tokens=task.context_tokens,
            documents=documents,
            seed=recipe.backend.seed,
        )
    except ValueError as error:
        raise EvalError(
            f"Task {name} does not fit into context_tokens={task.context_tokens}: {error}. Raise it."
        ) from None
    if source is None or benchmark.dataset is None:
        return LocalDataset({"test": rows}, "generated", f"{benchmark.generator}/1", _sha256(rows))
    return LocalDataset({benchmark.dataset.split: rows}, source.edition, source.revision, source.sha256)


def _haystack(name: str, benchmark: Benchmark, file: Path) -> list[str]:
    """The file's sentences."""
    if benchmark.generator != "ruler":
        raise EvalError(f"Task {name} hides nothing in a text; remove haystack.")
    try:
        found = sentences(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise EvalError(f"Task {name}: haystack {file} cannot be read: {error}.") from None
    if not found:
        raise EvalError(f"Task {name}: haystack {file} holds no sentence.")
    return found


def _generator_rows(benchmark: Benchmark, source: LocalDataset | None) -> dict[str, list[dict[str, Any]]]:
    """What generators give as the splits test and demos."""
    dataset = benchmark.dataset
    if source is None or dataset is None:
        return {}
    return {"test": source.rows[dataset.split], "demos": source.rows[dataset.fewshot_split or dataset.split]}


def _plan_task(
    recipe: EvalRecipe,
    suite: Suite,
    name: str,
    mode: Mode,
    benchmark: Benchmark,
    task: Task,
    dataset: LocalDataset,
    model: ModelInfo,
) -> PlannedTask:
    plan = task_plan(benchmark, task)
    if benchmark.judged and recipe.judge is not None:
        plan = dataclasses.replace(plan, metrics=[judge_metric(recipe.judge), *plan.metrics])
    made = lighteval_task(name, benchmark, task, mode, plan, dataset.rows)
    _check_documents(name, made, task)
    # Generated prompts depend on the tokenizer and the generator, whatever they are made of.
    data_sha256 = dataset.sha256 if benchmark.generator is None else _sha256(dataset.rows)
    template = model.chat_template_sha256 if mode != "plain" else None
    depends_on = task_fingerprint(
        recipe, suite, task, benchmark, mode,
        data=data_sha256, model=[model.weights_sha256, model.tokenizer_sha256], template=template,
    )  # fmt: skip
    return PlannedTask(name, mode, benchmark, task, plan, dataset, made, depends_on)


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _check_documents(name: str, task: LightevalTask, settings: Task) -> None:
    try:
        docs = task.eval_docs()
        shots = task.fewshot_docs() if settings.num_fewshots else []
    except (KeyError, ValueError, IndexError, TypeError, SyntaxError) as error:
        raise EvalError(
            f"Task {name}: its data does not have the expected columns ({error!r}). Write it again."
        ) from None
    if not docs:
        raise EvalError(f"Task {name} has no documents.")
    if len(shots) < settings.num_fewshots:
        raise EvalError(f"Task {name} wants {settings.num_fewshots} shots, its data has {len(shots)}.")


def example_prompt(planned: PlannedTask, tokenizer: Any) -> str:
    """The first document's prompt, as the model would see it."""
    docs: list[Doc] = planned.lighteval_task.get_docs(1)
    return PromptBuilder(tokenizer, planned.mode)(docs[0])
