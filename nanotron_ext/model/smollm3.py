"""SmolLM3 for training: grouped-query attention, SwiGLU, RMSNorm, rotary in three of four layers, document masks.

Activations are token-major: `[tokens, hidden_size]` with all samples of a micro-batch laid end to end, of which each
context-parallel rank holds its part; `tokens` is that part below. In REDUCE_SCATTER mode each tensor-parallel rank
holds `[tokens/tp, hidden_size]` of it between the linear layers. Only
these hidden states cross pipeline stages. Document borders and rotary tables reach every stage beside them, and enter
each layer's computation as arguments, so that a recomputed layer sees its own micro-batch and not a later one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from foundation.recipe import ModelConfig
from foundation.recipe.schema import Parallelism
from nanotron_ext.engine import (
    NanotronModel,
    ParallelContext,
    PipelineBlock,
    StaticShapeP2P,
    TensorParallelColumnLinear,
    TensorParallelEmbedding,
    TensorParallelLinearMode,
    differentiable_all_gather,
    differentiable_identity,
)
from nanotron_ext.model.attention import attend
from nanotron_ext.model.documents import Documents
from nanotron_ext.model.elementwise import Elementwise
from nanotron_ext.model.linear import RowLinear
from nanotron_ext.model.loss import linear_cross_entropy
from nanotron_ext.model.rotary import rotary_tables
from nanotron_ext.model.sharding import gather_tokens


@dataclass(frozen=True)
class TensorParallel:
    """How the linear layers are split: nanotron's group, mode and overlap."""

    group: Any
    mode: TensorParallelLinearMode
    async_communication: bool

    @property
    def shards_sequence(self) -> bool:
        return self.mode is TensorParallelLinearMode.REDUCE_SCATTER

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments that nanotron's linear layers share."""
        overlap = self.async_communication and self.shards_sequence
        return {"pg": self.group, "mode": self.mode, "bias": False, "async_communication": overlap}


class SideInputs:
    """What each layer needs beside the hidden states, for the micro-batch whose forward pass runs now."""

    documents: Documents
    rotary: tuple[torch.Tensor, torch.Tensor]


class RMSNorm(nn.Module):
    def __init__(self, config: ModelConfig, elementwise: Elementwise) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps, self.elementwise = config.rms_norm_eps, elementwise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.elementwise.rms_norm(x, self.weight, self.eps)


class Embedding(nn.Module):
    def __init__(self, config: ModelConfig, tp: TensorParallel) -> None:
        super().__init__()
        self.token_embedding = TensorParallelEmbedding(
            config.vocab_size, config.hidden_size, pg=tp.group, mode=tp.mode, padding_idx=None
        )

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"hidden_states": self.token_embedding(input_ids)}  # [tokens] -> [tokens(/tp), hidden_size]


class Attention(nn.Module):
    """Grouped-query attention of this rank's queries over the keys of the whole micro-batch."""

    def __init__(
        self, config: ModelConfig, tp: TensorParallel, elementwise: Elementwise, cp_group: Any, layer_index: int
    ) -> None:
        super().__init__()
        self.cp_group, self.elementwise = cp_group, elementwise
        self.head_dim = config.head_dim
        self.heads = config.num_attention_heads // tp.group.size()
        self.kv_heads = config.num_key_value_heads // tp.group.size()
        self.has_rope = config.layer_has_rope(layer_index)
        q_size, kv_size = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.qkv_proj = TensorParallelColumnLinear(
            config.hidden_size, q_size + 2 * kv_size, contiguous_chunks=(q_size, kv_size, kv_size), **tp.arguments()
        )
        self.o_proj = RowLinear(config.hidden_size, config.hidden_size, **tp.arguments())

    def forward(self, x: torch.Tensor, documents: Documents, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))  # [tokens, (heads + 2 kv_heads)/tp, head_dim]
        if self.has_rope:
            q, k, v = self.elementwise.split_and_rotate(qkv, self.heads, self.kv_heads, *rotary)
        else:
            q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if self.cp_group.size() > 1:  # one message for both
            k, v = gather_tokens(torch.cat((k, v), dim=1), documents.sharding, self.cp_group).chunk(2, dim=1)
        out: torch.Tensor = self.o_proj(attend(q, k, v, documents).flatten(1))
        return out


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, tp: TensorParallel, elementwise: Elementwise) -> None:
        super().__init__()
        self.elementwise = elementwise
        width = config.intermediate_size
        self.gate_up_proj = TensorParallelColumnLinear(
            config.hidden_size, 2 * width, contiguous_chunks=(width, width), **tp.arguments()
        )
        self.down_proj = RowLinear(width, config.hidden_size, **tp.arguments())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.elementwise.swiglu(self.gate_up_proj(x)))
        return out


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        config: ModelConfig,
        tp: TensorParallel,
        elementwise: Elementwise,
        cp_group: Any,
        layer_index: int,
        parallelism: Parallelism,
        side_inputs: SideInputs,
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config, elementwise)
        self.attention = Attention(config, tp, elementwise, cp_group, layer_index)
        self.post_attention_layernorm = RMSNorm(config, elementwise)
        self.mlp = MLP(config, tp, elementwise)
        self.recompute_layer, self.recompute_mlp = parallelism.recompute_layer, parallelism.recompute_mlp
        self.side_inputs = side_inputs

    def forward(self, hidden_states: torch.Tensor) -> dict[str, torch.Tensor]:
        arguments = (hidden_states, self.side_inputs.documents, self.side_inputs.rotary)
        if self.recompute_layer and torch.is_grad_enabled():
            return {"hidden_states": checkpoint(self._layer, *arguments, use_reentrant=False)}
        return {"hidden_states": self._layer(*arguments)}

    def _layer(self, x: torch.Tensor, documents: Documents, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x = x + self.attention(self.input_layernorm(x), documents, rotary)
        if self.recompute_mlp and torch.is_grad_enabled():
            return x + checkpoint(self._mlp, x, use_reentrant=False)
        return x + self._mlp(x)

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.mlp(self.post_attention_layernorm(x))
        return out


class HeadAndLoss(nn.Module):
    """Final norm, language-model head and the weighted sum of token losses."""

    def __init__(
        self, config: ModelConfig, tp: TensorParallel, elementwise: Elementwise, loss_chunk_tokens: int
    ) -> None:
        super().__init__()
        self.tp, self.elementwise = tp, elementwise
        self.loss_chunk_tokens = loss_chunk_tokens
        self.final_layernorm = RMSNorm(config, elementwise)
        self.lm_head = TensorParallelColumnLinear(config.hidden_size, config.vocab_size, **tp.arguments())

    def forward(
        self, hidden_states: torch.Tensor, label_ids: torch.Tensor, label_weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        hidden = self._whole_sequence(hidden_states)
        loss = linear_cross_entropy(
            hidden,
            self.lm_head.weight,
            label_ids,
            label_weights,
            self.tp.group,
            self.loss_chunk_tokens,
            self.elementwise,
        )
        return {"loss": loss}

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """This rank's columns of the logits: `[tokens, vocab_size/tp]`."""
        return functional.linear(self._whole_sequence(hidden_states), self.lm_head.weight)

    def _whole_sequence(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normed hidden states of all tokens, `[tokens, hidden_size]`, whose gradient is summed over the group."""
        hidden = self.final_layernorm(hidden_states)
        whole = differentiable_all_gather if self.tp.shards_sequence else differentiable_identity
        gathered: torch.Tensor = whole(hidden, group=self.tp.group)
        return gathered


class SmolLM3ForTraining(NanotronModel):
    """The whole model; on each pipeline rank only the blocks of its stage hold parameters.

    Build it with `nanotron_ext.model.build.build_model`.
    """

    def __init__(
        self,
        config: ModelConfig,
        parallelism: Parallelism,
        parallel_context: ParallelContext,
        p2p: StaticShapeP2P,
        tp: TensorParallel,
        elementwise: Elementwise,
    ) -> None:
        super().__init__()
        self.config = config
        self.parallel_context = parallel_context
        self.side_inputs = SideInputs()
        hidden = {"hidden_states"}
        model_kwargs = {"config": config, "tp": tp}
        layer_kwargs = {
            **model_kwargs,
            "elementwise": elementwise,
            "cp_group": parallel_context.cp_pg,
            "parallelism": parallelism,
            "side_inputs": self.side_inputs,
        }
        head_kwargs = {
            **model_kwargs,
            "elementwise": elementwise,
            "loss_chunk_tokens": parallelism.loss_chunk_tokens,
        }
        self.embedding = PipelineBlock(p2p, Embedding, model_kwargs, {"input_ids"}, hidden)
        self.decoder = nn.ModuleList(
            PipelineBlock(p2p, DecoderLayer, {**layer_kwargs, "layer_index": index}, hidden, hidden)
            for index in range(config.num_hidden_layers)
        )
        self.head = PipelineBlock(
            p2p, HeadAndLoss, head_kwargs, {"hidden_states", "label_ids", "label_weights"}, {"loss"}
        )

    def forward(
        self, input_ids: Any, label_ids: Any, label_weights: Any, documents: Documents
    ) -> dict[str, torch.Tensor]:
        """Loss of one micro-batch as `{"loss": scalar}` on the last stage (a TensorPointer elsewhere).

        `input_ids` int64 `[tokens]` on the first stage, `label_ids` int64 and `label_weights` float32 `[tokens]` on
        the last, TensorPointers elsewhere; `documents` on every stage.
        """
        hidden_states = self._hidden_states(input_ids, documents)
        out: dict[str, torch.Tensor] = self.head(
            hidden_states=hidden_states, label_ids=label_ids, label_weights=label_weights
        )
        return out

    def logits(self, input_ids: torch.Tensor, documents: Documents) -> torch.Tensor:
        """This rank's columns of the logits, `[tokens, vocab_size/tp]`; last pipeline stage with pp 1 only.

        After an update with ZeRO-1, `Optimizer.wait_for_weights` comes first.
        """
        out: torch.Tensor = self.head.pp_block.logits(self._hidden_states(input_ids, documents))
        return out

    def _hidden_states(self, input_ids: Any, documents: Documents) -> Any:
        self.side_inputs.documents = documents
        self.side_inputs.rotary = rotary_tables(documents.position_ids, self.config)
        hidden_states = self.embedding(input_ids=input_ids)["hidden_states"]
        for layer in self.decoder:
            hidden_states = layer(hidden_states=hidden_states)["hidden_states"]
        return hidden_states

    def init_model_randomly(self, config: Any) -> None:
        """nanotron's abstract hook; initialisation is `nanotron_ext.model.init.initialize`."""
        raise NotImplementedError("Use nanotron_ext.model.init.initialize.")
