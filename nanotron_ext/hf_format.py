"""Between our parameters and configuration and those of transformers' SmolLM3 (models/smollm3, transformers 5).

Packed projections split by rows; nothing is permuted, because our rotary uses transformers' half-split convention.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from foundation.errors import UserError
from foundation.hf_folder import meaning
from foundation.recipe import ModelConfig
from foundation.recipe.architecture import Parameter, RopeScaling


def to_hf(parameter: Parameter, whole: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Split our whole parameter into transformers' named tensors."""
    yield from zip(parameter.parts, whole.split(list(parameter.parts.values())), strict=True)


def hf_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The keys of config.json in the spelling of transformers 5; `finish_folder` adds that of 4.x.

    `no_rope_layers[i]` is 1 when layer i HAS rotary: that is transformers' sense.
    """
    return {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": _rope_parameters(config),
        "no_rope_layers": [int(config.layer_has_rope(index)) for index in range(config.num_hidden_layers)],
        "no_rope_layer_interval": config.no_rope_layer_interval,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "use_sliding_window": False,
        "sliding_window": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": True,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }


def _rope_parameters(config: ModelConfig) -> dict[str, Any]:
    if config.rope_scaling is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    return {"rope_theta": config.rope_theta, **config.rope_scaling.model_dump(exclude_none=True)}


def generation_config(config: ModelConfig) -> dict[str, Any]:
    """The content of generation_config.json: stop at the end of text, greedy unless asked otherwise."""
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "do_sample": False,
    }


def model_config_from_hf(config: dict[str, Any], source: Path) -> ModelConfig:
    """Our architecture from the keys of a transformers config.json, `source`, as any release from 4.53 on writes it.

    Raises:
        UserError: for anything that this model does not have, naming the key.
    """
    if config.get("model_type") != "smollm3":
        raise _unsupported(source, "model_type", config.get("model_type"))
    hf = meaning(config, source)
    wanted = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "hidden_act": "silu"}
    wanted["layer_types"] = ["full_attention"] * hf["num_hidden_layers"]
    for key, value in wanted.items():
        if hf[key] != value:
            raise _unsupported(source, key, hf[key])
    eos = hf["eos_token_id"]
    try:
        return ModelConfig(
            vocab_size=hf["vocab_size"],
            hidden_size=hf["hidden_size"],
            intermediate_size=hf["intermediate_size"],
            num_hidden_layers=hf["num_hidden_layers"],
            num_attention_heads=hf["num_attention_heads"],
            num_key_value_heads=hf["num_key_value_heads"],
            max_position_embeddings=hf["max_position_embeddings"],
            rope_theta=float(hf["rope_parameters"]["rope_theta"]),
            rope_scaling=_rope_scaling(hf["rope_parameters"], source),
            no_rope_layer_interval=_interval(hf, source),
            rms_norm_eps=float(hf["rms_norm_eps"]),
            tie_word_embeddings=hf["tie_word_embeddings"],
            bos_token_id=hf["bos_token_id"],
            eos_token_id=eos[0] if isinstance(eos, list) else eos,
            pad_token_id=hf["pad_token_id"],
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{source}: {key} is {first['input']!r}, which no model here can have: {first['msg']}."
        ) from None


def _unsupported(source: Path, key: str, value: object) -> UserError:
    return UserError(f"{source} has {key} = {value!r}, which this SmolLM3 implementation does not have.")


def _rope_scaling(rope: dict[str, Any], source: Path) -> RopeScaling | None:
    settings = {key: value for key, value in rope.items() if key != "rope_theta"}
    if settings == {"rope_type": "default"}:
        return None
    unknown = sorted(settings.keys() - RopeScaling.model_fields.keys())
    if settings["rope_type"] != "yarn" or unknown:
        raise UserError(
            f"{source} has rope_type {settings['rope_type']!r} with {unknown or 'its usual keys'}; this model has "
            f"'default', and 'yarn' with the keys {sorted(RopeScaling.model_fields)}."
        )
    integer = "original_max_position_embeddings"
    floats = {key: float(value) for key, value in settings.items() if key not in ("rope_type", integer)}
    return RopeScaling(**{**settings, **floats})


def _interval(hf: dict[str, Any], source: Path) -> int:
    """The NoPE interval that the list `no_rope_layers` (1 = has rotary) spells out."""
    layers = hf["num_hidden_layers"]
    flags = hf["no_rope_layers"][:layers]
    without = [index for index, has_rope in enumerate(flags) if not has_rope]
    interval = without[0] + 1 if without else 0
    regular = [int(interval == 0 or (index + 1) % interval != 0) for index in range(layers)]
    if flags != regular:
        raise UserError(f"{source} has no_rope_layers {flags}, which is not 'every n-th layer without rotary'.")
    return interval
