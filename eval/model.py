"""A transformers folder as lighteval model: exact prompts, exact log-likelihoods, per-row stopping, no cache.

lighteval's own backend keeps a prediction cache inside the model folder that survives new weights, cuts prompts to
`max_new_tokens`, cannot pass template arguments and stores the scores of every generated token; this one does not.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from eval.engine import Doc, LightevalModel, ModelConfig, ModelResponse
from eval.recipe import Backend, Mode, Sampling

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
    """One answer that is wanted to a document's prompt."""

    response: ModelResponse
    sample: int
    prompt_ids: list[int]
    max_new_tokens: int
    stops: list[str]


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
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.mode == "think",
            **arguments,
        )
        return text


def _joined(query: str, answer: str) -> str:
    needs_space = not query[-1:].isspace() and not answer[:1].isspace()
    return f" {answer}" if needs_space else answer


class LocalModel(LightevalModel):
    """What every backend shares: the tokenizer, exact prompts, and what does not fit.

    `over_length` counts documents that did not fit: log-likelihood contexts are cut from the left, generation prompts
    that leave no room for an answer get an empty one.
    """

    def __init__(self, folder: Path, backend: Backend, max_length: int, eos_ids: list[int]) -> None:
        self.config = ModelConfig(model_name=folder.name)
        self._cache = _NoCache()
        self._backend = backend
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
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
        torch.manual_seed(self._backend.seed)
        responses = [ModelResponse(input=self.prompt(doc), text=[""] * doc.num_samples) for doc in docs]
        requests = []
        for doc, response in zip(docs, responses, strict=True):
            prompt_ids = list(self.tok_encode(str(response.input)))
            if len(prompt_ids) >= self._max_length:
                self.over_length += 1
                continue
            room = min(doc.generation_size or self._max_length, self._max_length - len(prompt_ids))
            stops = list(doc.stop_sequences or [])
            requests += [Generated(response, sample, prompt_ids, room, stops) for sample in range(doc.num_samples)]
        requests.sort(key=lambda request: -len(request.prompt_ids))
        for batch in self._batches(requests):
            for request, text in zip(batch, self._generate_batch(batch), strict=True):
                request.response.text[request.sample] = text
        return responses

    def _score_batch(self, batch: list[Scored]) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether greedy decoding would write it) per request."""
        raise NotImplementedError

    def _generate_batch(self, batch: list[Generated]) -> list[str]:
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
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, backend.dtype))
        self._model = model.to(self._device).eval()
        super().__init__(folder, backend, int(model.config.max_position_embeddings), stop_ids(folder))
        self._pad_id = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else self._eos_ids[0]

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
            target = torch.tensor(request.continuation[-(input_ids.shape[1] - 1) :], device=self._device)
            part = logprobs[row, -len(target) :]
            chosen = part.gather(-1, target[:, None]).sum()
            results.append((float(chosen), bool((part.argmax(-1) == target).all())))
        return results

    @torch.no_grad()
    def _generate_batch(self, batch: list[Generated]) -> list[str]:
        input_ids, mask = self._left_padded([request.prompt_ids for request in batch])
        width = input_ids.shape[1]
        stops = [request.stops for request in batch]
        arguments: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self._sampling.temperature > 0:
            arguments = {"do_sample": True, "temperature": self._sampling.temperature, "top_p": self._sampling.top_p}
            arguments["top_k"] = 0
        sequences = self._model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=min(max(request.max_new_tokens for request in batch), self._max_length - width),
            eos_token_id=self._eos_ids,
            pad_token_id=self._pad_id,
            stopping_criteria=StoppingCriteriaList([_StopSequences(self._tokenizer, stops, width)]),
            **arguments,
        )
        texts = []
        for row, request in zip(sequences[:, width:].tolist(), batch, strict=True):
            ends = [position for position, token in enumerate(row) if token in self._eos_ids]
            text = self._tokenizer.decode(row[: ends[0]] if ends else row, skip_special_tokens=True)
            texts.append(cut_at(text, request.stops))
        return texts

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


def cut_at(text: str, stops: list[str]) -> str:
    """`text` up to the first occurrence of any stop sequence."""
    ends = [position for stop in stops if (position := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def stop_ids(folder: Path) -> list[int]:
    """The end tokens of the generation config and of the tokenizer."""
    configured = GenerationConfig.from_pretrained(folder).eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*ids, AutoTokenizer.from_pretrained(folder).eos_token_id] if token is not None})
