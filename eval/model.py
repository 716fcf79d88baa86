"""A transformers folder as lighteval model: exact prompts, exact log-likelihoods, no cache.

Each row of a batch has its own limit, length, stop sequences and random numbers, so that its answer is the one that it
has alone (in float32; bfloat16 rounds with the batch's shape, which can turn a near tie). lighteval's own backend
limits all rows by the longest prompt, keeps a prediction cache inside the model folder that survives new weights, cuts
prompts to `max_new_tokens`, cannot pass template arguments and stores the scores of every generated token.
"""

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from eval.engine import Doc, LightevalModel, ModelConfig, ModelResponse
from eval.recipe import Backend, Mode, Sampling
from foundation.pretrained import load_model, load_tokenizer, render_prompt

Progress = Callable[[int, int, float], None]  # done, total, seconds


@dataclass(frozen=True)
class Scored:
    """One choice of a document: how likely is `continuation` (token ids) after `context`?"""

    response: ModelResponse
    choice: int
    context: list[int]
    continuation: list[int]

    def ids(self, max_length: int) -> list[int]:
        return (self.context + self.continuation)[-max_length:]


@dataclass(frozen=True)
class Generated:
    """One answer that is wanted to a document's prompt. `fits`: all of its longest length fits into the window."""

    response: ModelResponse
    sample: int
    prompt_ids: list[int]
    max_new_tokens: int
    stops: list[str]
    fits: bool


class Written(NamedTuple):
    """An answer; `cut`: `max_new_tokens` ended it, not the model and not a stop sequence."""

    text: str
    cut: bool


Request = TypeVar("Request", Scored, Generated)


class PromptBuilder:
    """Turns lighteval documents into prompt text, plain or through the chat template in one of its modes."""

    def __init__(self, tokenizer: Any, mode: Mode) -> None:
        self.tokenizer = tokenizer
        self.mode = mode

    def __call__(self, doc: Doc) -> str:
        if self.mode == "plain":
            shots = [f"{shot.query}{_joined(shot.query, shot.get_golds()[0])}" for shot in doc.fewshot_samples]
            return "\n\n".join([*shots, doc.query])
        messages = []
        for shot in doc.fewshot_samples:
            messages.append({"role": "user", "content": shot.query})
            messages.append({"role": "assistant", "content": shot.get_golds()[0].strip()})
        messages.append({"role": "user", "content": doc.query})
        tools = (doc.specific or {}).get("tools")
        arguments = {"xml_tools": tools, "tools": tools} if tools else {}
        return render_prompt(self.tokenizer, messages, enable_thinking=self.mode == "think", **arguments)


def _joined(query: str, answer: str) -> str:
    needs_space = not query[-1:].isspace() and not answer[:1].isspace()
    return f" {answer}" if needs_space else answer


class LocalModel(LightevalModel):
    """What every backend shares: the tokenizer, exact prompts, and what does not fit.

    `over_length` counts documents that did not fit into the window: log-likelihood contexts are cut from the left,
    generation prompts that fill the window get an empty answer, and answers may reach the window's end.
    """

    def __init__(self, folder: Path, backend: Backend, max_length: int, eos_ids: list[int]) -> None:
        self.config = ModelConfig(model_name=folder.name)
        self._cache = _NoCache()
        self._backend = backend
        self._tokenizer: Any = load_tokenizer(folder)
        self._max_length = backend.max_length_tokens or max_length
        self._eos_ids = eos_ids
        self.start_task("plain", Sampling(), lambda done, total, seconds: None)

    def start_task(self, mode: Mode, sampling: Sampling, progress: Progress) -> None:
        """Set what differs from task to task; counters start anew."""
        self.prompt = PromptBuilder(self._tokenizer, mode)
        self._sampling = sampling
        self._progress = progress
        self.over_length = 0

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def add_special_tokens(self) -> bool:
        # A chat template writes its special tokens itself.
        return self.prompt.mode == "plain"

    @property
    def max_length(self) -> int:
        return self._max_length

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        raise NotImplementedError("No benchmark of the suites measures perplexity.")

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """Sum of the log-probabilities of each choice's tokens after the prompt."""
        requests: list[Scored] = []
        responses = []
        for doc in docs:
            prompt = self.prompt(doc)
            contexts, continuations = self.tok_encode_pair(prompt, doc.choices)
            response = ModelResponse(input=prompt, logprobs=[0.0] * len(doc.choices))
            response.argmax_logits_eq_gold = [False] * len(doc.choices)
            response.output_tokens = continuations
            responses.append(response)
            pairs = list(zip(contexts, continuations, strict=True))
            self.over_length += any(
                len(context) + len(continuation) > self._max_length for context, continuation in pairs
            )
            requests += [
                Scored(response, choice, context, continuation) for choice, (context, continuation) in enumerate(pairs)
            ]
        requests.sort(key=lambda request: -len(request.context) - len(request.continuation))
        for batch in self._batches(requests):
            for request, (logprob, is_greedy) in zip(batch, self._score_batch(batch), strict=True):
                request.response.logprobs[request.choice] = logprob
                request.response.argmax_logits_eq_gold[request.choice] = is_greedy
        return responses

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """One or more answers per document, by the recipe's sampling; text stops before a stop sequence."""
        responses = [ModelResponse(input=self.prompt(doc), text=[""] * doc.num_samples) for doc in docs]
        requests = []
        for doc, response in zip(docs, responses, strict=True):
            prompt_ids = list(self.tok_encode(str(response.input)))
            room = self._max_length - len(prompt_ids)
            if room <= 0:
                self.over_length += 1
                continue
            wanted = doc.generation_size or room
            stops = list(doc.stop_sequences or [])
            requests += [
                Generated(response, sample, prompt_ids, min(wanted, room), stops, wanted <= room)
                for sample in range(doc.num_samples)
            ]
        requests.sort(key=lambda request: -len(request.prompt_ids))
        ended_by_window = set()
        for batch in self._batches(requests):
            for request, written in zip(batch, self._generate_batch(batch), strict=True):
                request.response.text[request.sample] = written.text
                if written.cut and not request.fits:
                    ended_by_window.add(id(request.response))
        self.over_length += len(ended_by_window)
        return responses

    def _seed(self, request: Generated) -> int:
        """Every sample of every prompt has its own, so that neither order nor batches matter."""
        return self._backend.seed + zlib.crc32(str(request.prompt_ids).encode()) + request.sample

    def _score_batch(self, batch: list[Scored]) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether greedy decoding would write it) per request."""
        raise NotImplementedError

    def _generate_batch(self, batch: list[Generated]) -> list[Written]:
        raise NotImplementedError

    def _batches(self, requests: list[Request]) -> Iterator[list[Request]]:
        size = self._batch_size(len(requests))
        started = time.monotonic()
        for start in range(0, len(requests), size):
            yield requests[start : start + size]
            self._progress(min(start + size, len(requests)), len(requests), time.monotonic() - started)

    def _batch_size(self, num_requests: int) -> int:
        return self._backend.batch_size


class TransformersModel(LocalModel):
    """Runs a model folder in this process with transformers."""

    def __init__(self, folder: Path, backend: Backend) -> None:
        cuda = torch.cuda.is_available() if backend.device == "auto" else backend.device == "cuda"
        self._device = torch.device("cuda" if cuda else "cpu")
        model: Any = load_model(folder, dtype=getattr(torch, backend.dtype))
        self._model = model.to(self._device).eval()
        super().__init__(folder, backend, int(model.config.max_position_embeddings), stop_ids(folder))
        self._pad_id = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else self._eos_ids[0]
        self._row_by_row = _rope_follows_length(model.config)

    def _batch_size(self, num_requests: int) -> int:
        return 1 if self._row_by_row else super()._batch_size(num_requests)

    @torch.no_grad()
    def _score_batch(self, batch: list[Scored]) -> list[tuple[float, bool]]:
        rows = [request.ids(self._max_length) for request in batch]
        longest_continuation = max(len(request.continuation) for request in batch)
        input_ids, mask = self._left_padded(rows)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        # With padding on the left every continuation ends at the last position: only these logits are computed.
        logits = self._model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=longest_continuation + 1,
        ).logits.float()
        logprobs = torch.log_softmax(logits[:, :-1], dim=-1)
        results = []
        for row, request in enumerate(batch):
            # The first token of a row has nothing before it to follow from.
            target = torch.tensor(request.continuation[-(len(rows[row]) - 1) :], device=self._device)
            part = logprobs[row, -len(target) :]
            chosen = part.gather(-1, target[:, None]).sum()
            results.append((float(chosen), bool((part.argmax(-1) == target).all())))
        return results

    @torch.no_grad()
    def _generate_batch(self, batch: list[Generated]) -> list[Written]:
        input_ids, mask = self._left_padded([request.prompt_ids for request in batch])
        width = input_ids.shape[1]
        limits = [request.max_new_tokens for request in batch]
        stops = [_StopSequences(self._tokenizer, [request.stops for request in batch], width)]
        sequences = self._model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=max(limits),
            eos_token_id=self._eos_ids,
            pad_token_id=self._pad_id,
            stopping_criteria=StoppingCriteriaList([*stops, _OwnLength(limits, width, self._device)]),
            logits_processor=LogitsProcessorList(self._sampling_steps(batch)),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        return [
            self._written(row[: request.max_new_tokens], request)
            for row, request in zip(sequences[:, width:].tolist(), batch, strict=True)
        ]

    def _sampling_steps(self, batch: list[Generated]) -> list[LogitsProcessor]:
        """None to decode greedily; else the last one is noise under which the greatest logit is a random sample."""
        if self._sampling.temperature == 0:
            return []
        steps: list[LogitsProcessor] = [TemperatureLogitsWarper(self._sampling.temperature)]
        if self._sampling.top_p < 1:
            steps.append(TopPLogitsWarper(self._sampling.top_p))
        generators = [torch.Generator(self._device).manual_seed(self._seed(request)) for request in batch]
        return [*steps, _OwnNoise(generators)]

    def _written(self, row: list[int], request: Generated) -> Written:
        end = next((position for position, token in enumerate(row) if token in self._eos_ids), None)
        whole = self._tokenizer.decode(row[:end], skip_special_tokens=True)
        text = cut_at(whole, request.stops)
        return Written(text, cut=end is None and text == whole and len(row) == request.max_new_tokens)

    def _left_padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(input_ids, attention_mask), both [batch, longest row]."""
        width = max(len(row) for row in rows)
        ids = [[self._pad_id] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)


class _NoCache:
    """lighteval's pipeline announces its registry to the model's cache; there is none."""

    def _init_registry(self, registry: object) -> None:
        pass


class _StopSequences(StoppingCriteria):
    """Ends each row by itself once its new text holds one of its stop sequences."""

    TAIL_TOKENS = 24

    def __init__(self, tokenizer: Any, stops: list[list[str]], prompt_tokens: int) -> None:
        self._tokenizer, self._stops, self._prompt_tokens = tokenizer, stops, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        if any(self._stops):
            tails = input_ids[:, max(self._prompt_tokens, input_ids.shape[1] - self.TAIL_TOKENS) :].tolist()
            for row, (tail, stops) in enumerate(zip(tails, self._stops, strict=True)):
                text = self._tokenizer.decode(tail)
                done[row] = any(stop in text for stop in stops)
        return done


class _OwnLength(StoppingCriteria):
    """Ends each row at its own number of new tokens."""

    def __init__(self, limits: list[int], prompt_tokens: int, device: torch.device) -> None:
        self._limits, self._prompt_tokens = torch.tensor(limits, device=device), prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self._limits <= input_ids.shape[1] - self._prompt_tokens


class _OwnNoise(LogitsProcessor):
    """Gumbel noise, each row's from its own generator: argmax(logits + noise) is a sample of softmax(logits)."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_(min=torch.finfo(noise.dtype).tiny).log()


def _rope_follows_length(config: Any) -> bool:
    """Whether the rotary frequencies change with a batch's longest row, so that rows change each other's answers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(entry for entry in parameters.values() if isinstance(entry, dict))]  # one per kind of layer
    return any(entry.get("rope_type") in ("dynamic", "longrope") for entry in kinds)


def cut_at(text: str, stops: list[str]) -> str:
    """`text` up to the first occurrence of any stop sequence."""
    ends = [position for stop in stops if (position := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def stop_ids(folder: Path) -> list[int]:
    """The end tokens of the generation config and of the tokenizer."""
    configured = GenerationConfig.from_pretrained(folder).eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*ids, load_tokenizer(folder).eos_token_id] if token is not None})
