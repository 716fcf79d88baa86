"""Models that bring code, pickles or templates without end: nothing of theirs runs, and one line says why."""

import json
import os
import pickle
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import foundation.pretrained
from eval.model import PromptBuilder, TransformersModel
from eval.planning import inspect_model
from eval.pretraining import samples
from eval.recipe import Backend
from foundation.errors import UserError
from foundation.pretrained import TRUST, ForeignCodeError, load_config, load_model, load_tokenizer, trusts_remote_code
from foundation.time_limit import cpu_limit
from merge.checkpoint import Checkpoint
from posttrain.generate import ChatModel
from posttrain.recipe import load_recipe as load_posttraining_recipe
from posttrain.training import build_trainer
from posttrain.training import load_tokenizer as load_phase_tokenizer
from smollm3.command_line import smollm3
from tests.posttrain.tiny_model import write_model

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class MineConfig(LlamaConfig):
    model_type = "mine"
class Mine(LlamaForCausalLM):
    config_class = MineConfig
class MineTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(autouse=True)
def _modules_of_models_go_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what a hurried user answers to transformers' question
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


def with_code(folder: Path, mark: Path, *files: str) -> Path:
    """A model whose JSON `files` ask for code of its own, which leaves `mark` when it runs."""
    model = write_model(folder / "model")
    (model / "mine.py").write_text(CODE.format(mark=str(mark)))
    maps = {
        "config.json": {
            "model_type": "mine",
            "auto_map": {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "MineTokenizer", "auto_map": {"AutoTokenizer": ["mine.MineTokenizer"] * 2},
        },
    }  # fmt: skip
    for name in files:
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(content | maps[name]))
    return model


def train_from(model: Path) -> None:
    overrides = [f"model.model_name_or_path={model}", f"general.runs_path={model.parent}/runs"]
    recipe = load_posttraining_recipe("recipes/tiny/sft.yaml", overrides)
    tokenizer = load_phase_tokenizer(recipe)
    build_trainer(recipe, tokenizer, None)  # type: ignore[arg-type]


FILES = [("config.json",), ("tokenizer_config.json",), ("config.json", "tokenizer_config.json")]
BACKEND = Backend(device="cpu")
DOORS: dict[str, Callable[[Path], object]] = {
    "chat": lambda model: ChatModel.load(str(model), "dual_mode"),
    "evaluation": lambda model: (inspect_model(model, None), TransformersModel(model, BACKEND)),
    "evaluation without a look": lambda model: TransformersModel(model, BACKEND),
    "post-training": train_from,
    "summary": lambda model: samples(model, load_tokenizer(model)),
    "configuration": load_config,
}  # fmt: skip


@pytest.mark.parametrize("files", FILES, ids=str)
@pytest.mark.parametrize("door", DOORS)
def test_no_code_of_a_model_runs(door: str, files: tuple[str, ...], tmp_path: Path, mark: Path) -> None:
    if door == "configuration" and "config.json" not in files:
        return
    model = with_code(tmp_path, mark, *files)
    with pytest.raises(UserError, match=r"auto_map|does not know|unknown model_type|config\.json"):
        DOORS[door](model)
    assert not mark.exists()


def test_the_command_line_alone_allows_it(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_code(tmp_path, mark, "config.json")
    with pytest.raises(ForeignCodeError, match=r"If you have read that code .*smollm3 --trust-remote-code"):
        load_config(model)
    monkeypatch.setenv(TRUST, "1")
    load_config(model)
    assert mark.exists()


@pytest.mark.parametrize("given", [False, True])
def test_what_the_environment_says_of_it_counts_for_nothing(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST, "1")
    seen = []
    monkeypatch.setattr("check.doctor.examine", lambda: seen.append(trusts_remote_code()) or [])
    CliRunner().invoke(smollm3, [*(["--trust-remote-code"] if given else []), "doctor", "--json"])
    assert seen == [given]


def test_weights_in_pickles_are_not_opened(tmp_path: Path, mark: Path) -> None:
    model = write_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    for act in (load_model, load_tokenizer, lambda model: ChatModel.load(str(model), "dual_mode")):
        with pytest.raises(UserError, match=r"its weights in pytorch_model\.bin, which can run code"):
            act(model)

    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(mark),)

    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError):
        load_model(model)
    with pytest.raises(UserError):
        Checkpoint(model)
    assert not mark.exists()


def test_a_sound_model_loads_as_with_transformers(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    ours, theirs = load_model(model), AutoModelForCausalLM.from_pretrained(model)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert load_tokenizer(model).get_vocab() == AutoTokenizer.from_pretrained(model).get_vocab()


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foundation.pretrained, "TEMPLATE_SECONDS", 0.3)
    model = write_model(tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.chat_template = ENDLESS
    doc = type("Doc", (), {"query": "a", "fewshot_samples": [], "specific": None})()
    for ask in (
        lambda: ChatModel(None, tokenizer).prompt([{"role": "user", "content": "a"}]),
        lambda: PromptBuilder(tokenizer, "think")(doc),
    ):
        with pytest.raises(ForeignCodeError, match=r"chat template of .* does not end: it took longer than 0\.3 s"):
            ask()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert ChatModel(None, tokenizer).prompt([{"role": "user", "content": "a"}]) == "a"


def test_a_limit_ends_code_that_catches_everything_and_leaves_no_timer() -> None:
    def stubborn() -> None:
        while True:
            try:
                while True:
                    pass
            except Exception:
                pass

    with pytest.raises(TimeoutError, match=r"longer than 0\.1 s"), cpu_limit(0.1):
        stubborn()
    with cpu_limit(0.1):
        pass
    sum(range(30_000_000))


def test_every_model_is_opened_there() -> None:
    files = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()
    ours = [file for file in files if not file.startswith(("tests/", "bench/", "tools/"))]
    opening = re.compile(r"(?<![\w.])Auto\w+\.from_pretrained\(")
    assert {file for file in ours if opening.search(Path(file).read_text())} == set()
