"""What the model is: its keys in the recipe, and the table of its parameters.

Count, initialisation, transformers' names (export and import), the planner's tensors and the names that
`optimizer.weight_decay_exclude_named_params` may match all follow from the rows of `embedding`, `layer` and `head`. A
parameter that a new key brings is one row here, and its use in nanotron_ext/model/smollm3.py.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from foundation.limits import MAX_LAYERS
from foundation.recipe.section import Section

EMBEDDING = "embedding.token_embedding.weight"
LM_HEAD = "head.lm_head.weight"


class RopeScaling(Section):
    """YaRN: positions beyond the trained length; the keys are those of transformers' `rope_parameters`."""

    rope_type: Literal["yarn"] = "yarn"
    factor: float = Field(ge=1, description="Declared length over trained length.")
    original_max_position_embeddings: int = Field(gt=0, description="Trained length, in tokens.")
    beta_fast: float = Field(32.0, gt=0, description="Turns within the trained length above which nothing changes.")
    beta_slow: float = Field(1.0, gt=0, description="Turns below which a frequency is divided by the whole factor.")
    attention_factor: float | None = Field(
        None, gt=0, description="Factor on rotated queries and keys; default 0.1 ln(factor) + 1."
    )


class ModelConfig(Section):
    """Architecture; the field names are those of transformers' SmolLM3Config where it has the field."""

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0, description="Width of the SiLU-gated MLP.")
    num_hidden_layers: int = Field(gt=0, le=MAX_LAYERS)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(
        gt=0, description="Grouped-query attention: key/value heads; null: as many as query heads (multi-head)."
    )
    max_position_embeddings: int = Field(gt=0, description="Longest position the model is declared for, in tokens.")
    rope_theta: float = Field(gt=1, description="Base of the rotary frequencies.")
    rope_scaling: RopeScaling | None = Field(None, description="YaRN; by default positions are not stretched.")
    no_rope_layer_interval: int = Field(
        4, ge=0, description="Every n-th layer has no positional encoding at all; 0 gives every layer rotary."
    )
    document_mask: bool = Field(True, description="Attention only within a document.")
    rms_norm_eps: float = Field(1e-6, gt=0)
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int = Field(ge=0)
    pad_token_id: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _multi_head(cls, keys: Any) -> Any:
        if isinstance(keys, dict) and "num_key_value_heads" in keys and keys["num_key_value_heads"] is None:
            return keys | {"num_key_value_heads": keys.get("num_attention_heads")}
        return keys

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def layer_has_rope(self, layer_index: int) -> bool:
        """Whether the 0-based layer rotates queries and keys (SmolLM3: all but layers 3, 7, 11, ...)."""
        return self.no_rope_layer_interval == 0 or (layer_index + 1) % self.no_rope_layer_interval != 0

    def num_parameters(self) -> int:
        """Exact count, a tied embedding counted once. SmolLM3-3B: 3,075,098,624."""
        return sum(parameter.elements for parameter in parameters_of(self).values())


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model, whole: a matrix `[rows, columns]`, or a vector where `columns` is None.

    `parts` are the tensors that transformers keeps in its place, with the rows of each, in their order. `split` is the
    dimension that tensor-parallel ranks share (of `rows`, each rank has its share of every part); None: each has all.
    """

    name: str
    parts: Mapping[str, int]
    columns: int | None
    init: Literal["normal", "ones"]
    split: Literal["rows", "columns"] | None

    @property
    def shape(self) -> tuple[int, ...]:
        rows = sum(self.parts.values())
        return (rows,) if self.columns is None else (rows, self.columns)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def elements_per_rank(self, tp: int) -> int:
        """Of one of `tp` tensor-parallel ranks."""
        return self.elements if self.split is None else self.elements // tp


def embedding(config: ModelConfig) -> Parameter:
    parts = {"model.embed_tokens.weight": config.vocab_size}
    return Parameter(EMBEDDING, parts, config.hidden_size, "normal", "rows")


def head(config: ModelConfig) -> tuple[Parameter, ...]:
    """Behind the last decoder layer; a tied model's head is its embedding."""
    norm = _norm("head.final_layernorm.weight", "model.norm.weight", config.hidden_size)
    if config.tie_word_embeddings:
        return (norm,)
    return norm, Parameter(LM_HEAD, {"lm_head.weight": config.vocab_size}, config.hidden_size, "normal", "rows")


def layer(config: ModelConfig) -> tuple[Parameter, ...]:
    """Of one decoder layer, under their names in it: `decoder.<index>.` and `model.layers.<index>.` go in front."""
    h, kv, width = config.hidden_size, config.num_key_value_heads * config.head_dim, config.intermediate_size
    qkv = {"self_attn.q_proj.weight": h, "self_attn.k_proj.weight": kv, "self_attn.v_proj.weight": kv}
    gate_up = {"mlp.gate_proj.weight": width, "mlp.up_proj.weight": width}
    return (
        _norm("input_layernorm.weight", "input_layernorm.weight", h),
        Parameter("attention.qkv_proj.weight", qkv, h, "normal", "rows"),
        Parameter("attention.o_proj.weight", {"self_attn.o_proj.weight": h}, h, "normal", "columns"),
        _norm("post_attention_layernorm.weight", "post_attention_layernorm.weight", h),
        Parameter("mlp.gate_up_proj.weight", gate_up, h, "normal", "rows"),
        Parameter("mlp.down_proj.weight", {"mlp.down_proj.weight": h}, width, "normal", "columns"),
    )


def _norm(name: str, hf_name: str, width: int) -> Parameter:
    return Parameter(name, {hf_name: width}, None, "ones", None)


def parameters_of(config: ModelConfig) -> dict[str, Parameter]:
    """All parameters of the model by name, in its order."""
    layers = [_numbered(row, index) for index in range(config.num_hidden_layers) for row in layer(config)]
    return {parameter.name: parameter for parameter in (embedding(config), *layers, *head(config))}


def _numbered(row: Parameter, index: int) -> Parameter:
    parts = {f"model.layers.{index}.{name}": rows for name, rows in row.parts.items()}
    return dataclasses.replace(row, name=f"decoder.{index}.{row.name}", parts=parts)
