"""A transformers model folder: what its config.json means, whichever release wrote it, and how it is written here.

Releases of transformers spell one model differently, and each takes its class's default for a key that it does not
find: a rotary base that is stated as `rope_parameters` alone is another model to release 4.57, without a word.

|                         | 4.53 to 4.57                          | 5.x                        |
| rotary base             | rope_theta                            | rope_parameters.rope_theta |
| YaRN                    | rope_scaling                          | rope_parameters            |
| type of the weights     | torch_dtype, from 4.56 on also dtype  | dtype                      |
| tied embeddings         | left out where true is the default    | tie_word_embeddings        |
| the generic tokenizer   | PreTrainedTokenizerFast               | TokenizersBackend          |
| further special tokens  | additional_special_tokens             | extra_special_tokens       |

So whoever asks what a config.json says asks `meaning`, and every folder that is written here is finished by
`finish_folder`, which states the same numbers in both spellings.
"""

import copy
import json
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from foundation.json_text import loads
from foundation.limits import MAX_LAYERS

# Besides config.json and the weights, what makes a model folder; chat_template.jinja is read from 4.53 on.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# The files that `finish_folder` rewrites; all others are copied byte by byte.
FINISHED_FILES = ("config.json", "tokenizer_config.json")
# What every release takes for a key of YaRN that is absent (modeling_rope_utils.py, 4.53 to 5.23).
_YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}


class ModelFolderError(UserError):
    """A model folder whose files are absent, unreadable, or say two things at once."""


def read_config(folder: Path) -> dict[str, Any]:
    """The keys of the folder's config.json as they are written.

    Raises:
        ModelFolderError: when there is none, it is no JSON object, or has more layers than any model.
    """
    config = _read_json(folder / "config.json")
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MAX_LAYERS:  # each takes memory long before there are weights
        raise ModelFolderError(
            f"{folder / 'config.json'} has {layers:,} layers (num_hidden_layers); more than {MAX_LAYERS:,} are refused."
        )
    return config


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelFolderError(f"There is no {path}; give the folder of a transformers model.")
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{path} is not JSON: {error}. Write it again.") from None
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} holds no JSON object. Write it again.")
    return content


def meaning(config: dict[str, Any], source: Path) -> dict[str, Any]:
    """Every key of the configuration, in the spelling of transformers 5 and with its class's defaults filled in.

    Two configurations of one architecture have the same meaning exactly if these are equal. `source` is the file that
    `config` was read from, for messages.

    Raises:
        ModelFolderError: for an unknown architecture, values that its class refuses, or two spellings of one setting
            that contradict each other, which releases would read as different models.
    """
    known = _read_by_transformers(config, source)
    dtype, in_4_dtype = config.get("dtype"), config.get("torch_dtype")
    if dtype and in_4_dtype and dtype != in_4_dtype:
        raise ModelFolderError(f"{source} has dtype {dtype!r} but torch_dtype {in_4_dtype!r}. Remove what is wrong.")
    in_4 = {key for key in ("rope_theta", "rope_scaling") if config.get(key) is not None}
    if in_4 and config.get("rope_parameters"):
        old, new = (
            _read_by_transformers(_without(config, other_spelling), source)["rope_parameters"]
            for other_spelling in ({"rope_parameters"}, in_4)
        )
        if old != new:
            raise ModelFolderError(
                f"{source} contradicts itself: {' and '.join(sorted(in_4))}, which transformers 4 reads, mean {old}, "
                f"but rope_parameters, which transformers 5 reads, is {new}. Remove what is wrong."
            )
    return known


def _without(config: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _read_by_transformers(config: dict[str, Any], source: Path) -> dict[str, Any]:
    # Imported here: it takes a second, and whoever only asks for names of files does not need it.
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ModelFolderError(
            f"{source} has model_type {model_type!r}, which transformers {__version__} does not know."
        )
    try:
        known: dict[str, Any] = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(config)).to_dict()
    except Exception as error:  # the class validates its fields, with errors of a dozen types
        raise ModelFolderError(f"{source} is no configuration of a {model_type}: {error}") from None
    if _is_flat(known.get("rope_parameters") or {}):
        known["rope_parameters"] = _rope_meaning(known["rope_parameters"])
    return known


def _is_flat(rope: dict[str, Any]) -> bool:
    """Whether one set of rotary settings holds for all layers; some architectures have one per type of layer."""
    return bool(rope) and not any(isinstance(value, dict) for value in rope.values())


def _rope_meaning(rope: dict[str, Any]) -> dict[str, Any]:
    rope = {key: value for key, value in rope.items() if value is not None and key != "type"}
    return {**_YARN_DEFAULTS, **rope} if rope["rope_type"] == "yarn" else rope


def spelled_for_all(config: dict[str, Any], source: Path) -> dict[str, Any]:
    """`config` with its meaning stated for every release from 4.53 on.

    Raises:
        ModelFolderError: as `meaning`, and for a YaRN factor that is not the ratio of the lengths: 4.53 takes the
            ratio, later releases the factor.
    """
    known = meaning(config, source)
    spelled = {**config, "use_cache": True}
    for key in ("tie_word_embeddings", "max_position_embeddings"):
        if key in known:
            spelled[key] = known[key]
    if known.get("dtype"):
        spelled |= {"dtype": known["dtype"], "torch_dtype": known["dtype"]}
    rope: dict[str, Any] = known.get("rope_parameters") or {}
    if not _is_flat(rope):
        return spelled
    if rope["rope_type"] == "yarn":
        _check_yarn_lengths(rope, known["max_position_embeddings"], source)
    beside: dict[str, Any] = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    scaling = _without(rope, set(beside))
    spelled |= {**beside, "rope_parameters": rope}
    spelled["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling
    return spelled


def _check_yarn_lengths(rope: dict[str, Any], declared: int, source: Path) -> None:
    factor, trained = rope["factor"], rope["original_max_position_embeddings"]
    if factor * trained != declared:
        raise ModelFolderError(
            f"{source} stretches {trained} positions by YaRN's factor {factor:g} but has max_position_embeddings "
            f"{declared}; releases of transformers take one or the other. Write max_position_embeddings "
            f"{factor * trained:g} and original_max_position_embeddings {trained}, or what is right."
        )


def finish_folder(folder: Path) -> None:
    """Rewrite config.json and tokenizer_config.json so that every release from 4.53 on reads the folder alike.

    Call it after everything else but the weights lies in `folder`. The tokenizer's `model_max_length` becomes the
    length that the model is declared for: text is cut there with `truncation=True`.

    Raises:
        ModelFolderError: see `spelled_for_all`.
    """
    path = folder / "config.json"
    config = spelled_for_all(read_config(folder), path)
    write_json(path, config)
    path = folder / "tokenizer_config.json"
    if path.is_file() or (folder / "tokenizer.json").is_file():
        tokenizer = _read_json(path) if path.is_file() else {}
        write_json(path, _tokenizer_for_all(tokenizer, config.get("max_position_embeddings")))


def _tokenizer_for_all(tokenizer: dict[str, Any], length: int | None) -> dict[str, Any]:
    tokenizer = {"clean_up_tokenization_spaces": False, **tokenizer}
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"  # which 5.x loads as its TokenizersBackend
    if isinstance(tokenizer.get("extra_special_tokens"), list):  # 4.x stops at a list under this name
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    if length is not None:
        tokenizer["model_max_length"] = length
    return tokenizer


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the file as a whole: a kill leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
