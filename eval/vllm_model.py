"""The same prompts and scores as `eval.model`, computed by vLLM: for GPUs and long answers.

lighteval's own vLLM backend is pinned to vLLM 0.10.0 - 0.10.1, keeps a prediction cache in the model folder, runs all
documents of a batch with the first one's stop sequences, and cannot pass template arguments. This one uses five things
of vLLM's offline interface: LLM, SamplingParams, prompts as token ids, prompt_logprobs and finish_reason.
"""

from pathlib import Path
from typing import Any

from eval.model import Generated, LocalModel, Scored, Written, cut_at, stop_ids
from eval.recipe import Backend
from foundation.pretrained import load_config, trusts_remote_code


class VllmModel(LocalModel):
    """Runs a model folder with vLLM; requests go to the engine all at once, and it batches them."""

    def __init__(self, folder: Path, backend: Backend) -> None:
        from vllm import LLM

        config = load_config(folder)
        super().__init__(folder, backend, int(config.max_position_embeddings), stop_ids(folder))
        self._llm = LLM(
            model=str(folder),
            trust_remote_code=trusts_remote_code(),
            dtype=backend.dtype,
            tensor_parallel_size=backend.tensor_parallel_size,
            gpu_memory_utilization=backend.gpu_memory_utilization,
            max_model_len=self._max_length,
            seed=backend.seed,
            # Without it the folder's generation_config.json would change sampling behind the recipe's back.
            generation_config="vllm",
        )

    def _batch_size(self, num_requests: int) -> int:
        # Progress is reported between batches; a tenth of the work keeps the engine busy at 3B.
        return max(256, num_requests // 10)

    def _run(self, prompts: list[list[int]], parameters: list[dict[str, Any]]) -> list[Any]:
        from vllm import SamplingParams

        return list(
            self._llm.generate(
                [{"prompt_token_ids": ids} for ids in prompts],
                [SamplingParams(**entry) for entry in parameters],
                use_tqdm=False,
            )
        )

    def _score_batch(self, batch: list[Scored]) -> list[tuple[float, bool]]:
        # One token is generated and ignored, because vLLM wants at least one: the last prompt token makes room for it.
        rows = [request.ids(self._max_length - 1) for request in batch]
        parameters = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 1, "detokenize": False}
        results = []
        for request, row, output in zip(batch, rows, self._run(rows, [parameters] * len(rows)), strict=True):
            logprob, is_greedy = 0.0, True
            for position in range(max(1, len(row) - len(request.continuation)), len(row)):
                chosen = output.prompt_logprobs[position][row[position]]
                logprob += chosen.logprob
                is_greedy = is_greedy and chosen.rank == 1
            results.append((logprob, is_greedy))
        return results

    def _generate_batch(self, batch: list[Generated]) -> list[Written]:
        parameters = [
            {
                "temperature": self._sampling.temperature,
                "top_p": self._sampling.top_p,
                "max_tokens": request.max_new_tokens,
                "stop": request.stops,
                "stop_token_ids": self._eos_ids,
                "seed": self._seed(request),
            }
            for request in batch
        ]
        outputs = [output.outputs[0] for output in self._run([request.prompt_ids for request in batch], parameters)]
        return [
            Written(cut_at(output.text, request.stops), cut=output.finish_reason == "length")
            for request, output in zip(batch, outputs, strict=True)
        ]
