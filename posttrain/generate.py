"""Sampling replies from a chat model: one stream for the terminal, batches for the evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from foundation.errors import UserError
from foundation.pretrained import load_model, load_tokenizer, render_prompt
from posttrain.recipe import TemplateName
from posttrain.template import TURN_END, Message, install_template


class ModelError(UserError):
    """A model that cannot chat; the message says what it lacks."""


@dataclass(frozen=True)
class Sampling:
    """SmolLM3's defaults. `temperature` 0 is greedy."""

    temperature: float = 0.6
    top_p: float = 0.95
    max_new_tokens: int = 512

    def arguments(self) -> dict[str, Any]:
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": self.max_new_tokens}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
        }


@dataclass(frozen=True)
class ChatModel:
    model: Any  # a PreTrainedModel; the type hints of generate() are not usable
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, folder: str, template_if_none: TemplateName | None = None) -> "ChatModel":
        """A transformers folder or hub name with the end-of-turn token and a chat template.

        `template_if_none` is given to a tokenizer without template, so that base models can be compared.

        Raises:
            ModelError: it is absent or is no chat model.
            UnsafeNameError: its index names weights elsewhere.
        """
        is_path = folder.startswith((".", "/")) or folder.count("/") > 1
        if is_path and not (Path(folder) / "config.json").is_file():
            raise ModelError(f"There is no model at {folder} (no config.json).")
        try:
            tokenizer = load_tokenizer(folder)
            model: Any = load_model(folder, dtype="auto")
        except OSError as error:
            raise ModelError(f"The model {folder} cannot be loaded: {str(error).splitlines()[0]}") from None
        if TURN_END not in tokenizer.get_vocab():
            raise ModelError(f"{folder} has no token {TURN_END} that would end a turn.")
        if tokenizer.chat_template is None and template_if_none:
            install_template(tokenizer, template_if_none)
        if tokenizer.chat_template is None:
            raise ModelError(f"{folder} has no chat template. Chat needs a post-trained model (hf/sft, hf/apo, ...).")
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer)

    @property
    def end_of_turn(self) -> int:
        token_id = self.tokenizer.convert_tokens_to_ids(TURN_END)
        assert isinstance(token_id, int)
        return token_id

    def prompt(self, messages: Sequence[Message], **template_arguments: Any) -> str:
        """Text up to where the assistant speaks."""
        return render_prompt(self.tokenizer, list(messages), **template_arguments)

    def stream(self, prompt: str, sampling: Sampling, on_text: Callable[[str], None]) -> str:
        """Sample one reply, handing on text as soon as it is complete characters; returns all of it.

        Raises:
            ModelError: the conversation fills the model's positions.
        """
        inputs = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(self.model.device)
        streamer = _CharacterStreamer(self.tokenizer, self.end_of_turn, on_text)
        self.model.generate(
            **inputs,
            **sampling.arguments() | {"max_new_tokens": self._room(sampling, inputs["input_ids"].shape[1])},
            eos_token_id=self.end_of_turn,
            streamer=streamer,
        )
        return streamer.text

    def sample(self, prompts: Sequence[str], sampling: Sampling, batch_size: int) -> list[tuple[str, bool]]:
        """Reply and whether it ended its turn, per prompt. Prompts are batched by length; each has its own limit.

        Raises:
            ModelError: a prompt fills the model's positions.
        """
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        replies: dict[int, tuple[str, bool]] = {}
        for begin in range(0, len(order), batch_size):
            indices = order[begin : begin + batch_size]
            inputs = self.tokenizer(
                [prompts[index] for index in indices],
                add_special_tokens=False,
                return_tensors="pt",
                padding=True,
                padding_side="left",
            ).to(self.model.device)
            limits = [self._room(sampling, tokens) for tokens in inputs["attention_mask"].sum(-1).tolist()]
            output = self.model.generate(
                **inputs,
                **sampling.arguments() | {"max_new_tokens": max(limits)},
                eos_token_id=self.end_of_turn,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            written = output[:, inputs["input_ids"].shape[1] :].tolist()
            for index, row, limit in zip(indices, written, limits, strict=True):
                ids = row[:limit]
                ended = self.end_of_turn in ids
                said = ids[: ids.index(self.end_of_turn)] if ended else ids
                replies[index] = (str(self.tokenizer.decode(said)), ended)
        return [replies[index] for index in range(len(prompts))]

    def _room(self, sampling: Sampling, prompt_tokens: int) -> int:
        """How long a reply may become within the model's positions."""
        positions = self.model.config.max_position_embeddings
        if prompt_tokens >= positions:
            raise ModelError(
                f"The conversation has {prompt_tokens} tokens, the model {positions} positions. "
                "Shorten it, or start anew (/reset)."
            )
        return min(sampling.max_new_tokens, positions - prompt_tokens)


class _CharacterStreamer(BaseStreamer):
    """Passes text on token by token, holding back bytes of unfinished characters and the end of turn."""

    HELD_TOKENS = 16  # a character has four bytes at most: what is unfinished for longer never will be a character

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_of_turn: int, on_text: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.end_of_turn = end_of_turn
        self.on_text = on_text
        self.pending: list[int] = []
        self.text = ""
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.pending += [token_id for token_id in value.flatten().tolist() if token_id != self.end_of_turn]
        text = str(self.tokenizer.decode(self.pending))
        if not text.endswith("\N{REPLACEMENT CHARACTER}") or len(self.pending) >= self.HELD_TOKENS:
            self._emit(text)

    def end(self) -> None:
        self._emit(str(self.tokenizer.decode(self.pending)))

    def _emit(self, text: str) -> None:
        self.pending = []
        if text:
            self.text += text
            self.on_text(text)
