"""The one way in which folders of transformers models are opened: weights as safetensors, and no code of theirs.

`auto_map` in a folder's JSON files asks transformers to run Python that comes with the model, and weights in pickles
run some when they are read. Neither happens unless the user says `smollm3 --trust-remote-code VERB ...`; no recipe can.
"""

import os
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from foundation.hf_folder import read_config
from foundation.paths import indexed_weight_files
from foundation.time_limit import cpu_limit
from foundation.weights import read_header

TRUST = "SMOLLM3_TRUST_REMOTE_CODE"  # set by the command line alone, for the processes that it starts
TEMPLATE_SECONDS = 10.0


class ForeignCodeError(UserError):
    """A model that would run code of its own, or has a template that does not end."""


def trusts_remote_code() -> bool:
    return os.environ.get(TRUST) == "1"


def check_folder(model: str | Path) -> None:
    """Refuse what a model folder could do before anything of it is loaded; a name of the hub is none.

    Raises:
        ForeignCodeError: for weights in pickles alone.
        UnsafeNameError: if its index names weights elsewhere, which transformers would follow.
        ModelFolderError, WeightFileError: for a config.json or a file of weights that is none.
    """
    folder = Path(model)
    if not (folder / "config.json").is_file():
        return
    read_config(folder)
    indexed_weight_files(folder)
    for file in sorted(folder.glob("*.safetensors")):
        read_header(file)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled and not any(folder.glob("*.safetensors")) and not trusts_remote_code():
        raise ForeignCodeError(
            f"{folder} has its weights in {pickled[0]}, which can run code when it is read. Get the model as "
            f"safetensors, or convert it where you trust it."
        )


def load_tokenizer(model: str | Path, **arguments: Any) -> Any:
    """transformers' AutoTokenizer. Raises as `check_folder`, and what transformers raises."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, model, **arguments)


def load_model(model: str | Path, **arguments: Any) -> Any:
    """transformers' AutoModelForCausalLM. Raises as `check_folder`, and what transformers raises."""
    from transformers import AutoModelForCausalLM

    only_safetensors = {} if trusts_remote_code() else {"use_safetensors": True}
    return _load(AutoModelForCausalLM, model, **only_safetensors, **arguments)


def load_config(model: str | Path) -> Any:
    """transformers' AutoConfig. Raises as `check_folder`, and what transformers raises."""
    from transformers import AutoConfig

    return _load(AutoConfig, model)


def _load(kind: Any, model: str | Path, **arguments: Any) -> Any:
    check_folder(model)
    try:
        return kind.from_pretrained(model, trust_remote_code=trusts_remote_code(), **arguments)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ForeignCodeError(
            f"{model} wants to run code that comes with it (auto_map). If you have read that code and trust it: "
            f"smollm3 --trust-remote-code VERB ..."
        ) from None


def render_prompt(tokenizer: Any, messages: list[Any], **arguments: Any) -> str:
    """The conversation in the tokenizer's own chat template, up to where the assistant speaks.

    Raises:
        ForeignCodeError: when the template does not end within 10 s.
    """
    try:
        with cpu_limit(TEMPLATE_SECONDS):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **arguments)
    except TimeoutError as error:
        raise ForeignCodeError(f"The chat template of {tokenizer.name_or_path} does not end: {error}.") from None
    assert isinstance(text, str)
    return text
