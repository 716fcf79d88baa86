"""The five things of vLLM's offline interface that eval.vllm_model uses, computed by transformers.

Field names and meanings follow vLLM's documentation: `prompt_logprobs[i]` maps token ids to the log-probability of
standing at position i (None for the first), always including the prompt's own token; text ends before a stop string;
`finish_reason` is "length" where max_tokens ended it, "stop" elsewhere.
"""

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    seed: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True


class LLM:
    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        max_model_len: int,
        generation_config: str,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        seed: int,
        trust_remote_code: bool,
    ) -> None:
        assert generation_config == "vllm" and not trust_remote_code
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._max_model_len = max_model_len

    def generate(self, prompts: list[Any], parameters: list[SamplingParams], use_tqdm: bool) -> list[Any]:
        return [self._run(prompt["prompt_token_ids"], entry) for prompt, entry in zip(prompts, parameters, strict=True)]

    @torch.no_grad()
    def _run(self, ids: list[int], parameters: SamplingParams) -> Any:
        assert ids and len(ids) + parameters.max_tokens <= self._max_model_len
        prompt_logprobs: list[dict[int, Any] | None] | None = None
        if parameters.prompt_logprobs is not None:
            scores = self._model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            prompt_logprobs = [None]
            for position in range(1, len(ids)):
                row, token = scores[position - 1], ids[position]
                rank = int((row > row[token]).sum()) + 1
                prompt_logprobs.append({token: SimpleNamespace(logprob=float(row[token]), rank=rank)})
        sampled = {"do_sample": parameters.temperature > 0}
        if parameters.temperature > 0:
            torch.manual_seed(parameters.seed or 0)
            sampled |= {"temperature": parameters.temperature, "top_p": parameters.top_p, "top_k": 0}
        out = self._model.generate(
            torch.tensor([ids]), max_new_tokens=parameters.max_tokens, pad_token_id=1,
            eos_token_id=parameters.stop_token_ids or None, **sampled,
        )  # fmt: skip
        text = self._tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        ended = int(out[0, -1]) in parameters.stop_token_ids or any(stop in text for stop in parameters.stop)
        for stop in parameters.stop:
            text = text.split(stop)[0]
        outputs = [SimpleNamespace(text=text, finish_reason="stop" if ended else "length")]
        return SimpleNamespace(prompt_logprobs=prompt_logprobs, outputs=outputs)


def module() -> ModuleType:
    made = ModuleType("vllm")
    made.__dict__.update(LLM=LLM, SamplingParams=SamplingParams, __spec__=SimpleNamespace())
    return made
