"""lighteval 0.13, made importable and offline: import this module before any other part of lighteval.

Four things stand in the way of the stock pipeline, each found by running it:
  * it imports nanotron whenever that is installed, and nanotron 0.4 dies in its own import cycle;
  * its registry imports every task module, one of which downloads a file at import and two of which crash;
  * importing its transformers backend switches autograd off for the whole process;
  * IFEval's rules and the BLEU metric call nltk.download.
"""

import logging
import os
import sys
from collections import defaultdict
from typing import Any, cast

import nltk
import torch
from packaging.requirements import Requirement

if "lighteval.pipeline" not in sys.modules:
    from lighteval.utils.imports import required_dependencies

    # A version that cannot exist: lighteval then takes nanotron for absent. The dictionary is cached by lighteval.
    required_dependencies()[0]["nanotron"] = Requirement("nanotron<0")

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
nltk.download = lambda *arguments, **options: False
_grad_enabled = torch.is_grad_enabled()

from lighteval.logging.evaluation_tracker import EvaluationTracker  # noqa: E402
from lighteval.models.abstract_model import LightevalModel, ModelConfig  # noqa: E402
from lighteval.models.model_output import ModelResponse  # noqa: E402
from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters  # noqa: E402
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig  # noqa: E402
from lighteval.tasks.requests import Doc, SamplingMethod  # noqa: E402

torch.set_grad_enabled(_grad_enabled)

from eval.reasoning import split_answer  # noqa: E402

__all__ = ["Doc", "LightevalModel", "LightevalTask", "LightevalTaskConfig", "ModelConfig", "ModelResponse"]
__all__ += ["SamplingMethod", "SuitePipeline", "import_ifeval"]


# lighteval complains once per unparseable answer; such answers are simply wrong.
logging.getLogger("lighteval").setLevel(logging.ERROR)
BOOTSTRAP_RUNS = 100  # for the standard error of corpus metrics (chrF++, BLEU); means have a closed form


class _TaskList:
    """The little of lighteval's Registry that a pipeline over given tasks needs."""

    def __init__(self, task: LightevalTask) -> None:
        self.task_to_configs = {task.name: [task.config]}


class _NoDetails:
    """In place of lighteval's details logger, which fails with xxhash 4; the runner writes its own details."""

    def log(self, *arguments: object) -> None:
        pass

    def aggregate(self) -> None:
        pass


class SuitePipeline(Pipeline):
    """lighteval's pipeline over one task whose dataset is in memory.

    Reasoning is split off by `split_answer` instead of lighteval's tag removal, which scores unclosed reasoning.
    """

    def __init__(self, task: LightevalTask, model: LightevalModel, max_documents: int | None, scratch: str) -> None:
        self._task = task
        self.responses: list[ModelResponse] = []
        tracker = EvaluationTracker(output_dir=scratch, save_details=False)
        tracker.details_logger = cast(Any, _NoDetails())
        super().__init__(
            tasks=task.full_name,
            pipeline_parameters=PipelineParameters(
                ParallelismManager.NONE, max_samples=max_documents, bootstrap_iters=BOOTSTRAP_RUNS
            ),
            evaluation_tracker=tracker,
            model=model,
        )

    def _init_tasks_and_requests(self, tasks: str) -> None:
        self.registry = cast(Any, _TaskList(self._task))
        self.tasks_dict = {self._task.full_name: self._task}
        docs = self._task.get_docs(self.pipeline_parameters.max_samples)
        self.documents_dict = {self._task.full_name: docs}
        (method,) = self._task.sampling_methods
        self.sampling_docs = defaultdict(list, {method: docs})

    def _post_process_outputs(self, sampling_method_responses: dict[str, list[ModelResponse]]) -> None:
        for responses in sampling_method_responses.values():
            for response in responses:
                prompt = response.input if isinstance(response.input, str) else ""
                response.text_post_processed = [split_answer(text, prompt).text for text in response.text]
            self.responses = responses
            for metric in self._task.metrics:
                if hasattr(metric.sample_level_fn, "score_all"):
                    metric.sample_level_fn.score_all(self.docs, responses)

    @property
    def docs(self) -> list[Doc]:
        return self.documents_dict[self._task.full_name]

    @property
    def reasons(self) -> list[list[str]]:
        """Why the answers of each document are not right, as far as the task says it."""
        return list(getattr(self._task.metrics[0].sample_level_fn, "reasons", []))

    def scores(self) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """(aggregated metrics with their `_stderr`, values per document) after `evaluate()`."""
        logger = self.evaluation_tracker.metrics_logger
        return dict(logger.metric_aggregated[self._task.full_name]), dict(logger.metrics_values[self._task.full_name])


def import_ifeval() -> Any:
    """lighteval's IFEval module on rules that need no data files.

    Sentences are split by nltk's Punkt algorithm without its trained abbreviations, and words by its Treebank rules:
    both need no data, so that scores are the same on every machine. langdetect draws random numbers, and without a seed
    calls a short answer Portuguese at one time and Latvian at another.
    """
    from langdetect import DetectorFactory
    from lighteval.tasks.tasks.ifeval import instructions_utils, main
    from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer

    DetectorFactory.seed = 0
    instructions_utils._get_sentence_tokenizer = PunktSentenceTokenizer
    instructions_utils.nltk.word_tokenize = NLTKWordTokenizer().tokenize
    return main
