"""One model in several releases of transformers: what is exported here is the same model to each, and what each writes
is the same model here.

The environments are installed once (a minute each) and kept; see environments.py.
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from foundation.hf_folder import meaning
from foundation.recipe import ModelConfig
from foundation.recipe.architecture import parameters_of
from merge.average import Average, write_average
from merge.checkpoint import Checkpoint
from nanotron_ext.checkpoint import CheckpointReader
from nanotron_ext.export import export
from nanotron_ext.import_hf import import_hf
from posttrain import train as train_command
from posttrain.tiny_data import write_sets
from tests.compat.environments import python_with_transformers
from tests.foundation.test_hf_folder import yarn_by_hand
from tests.posttrain.template_cases import CASES
from tests.posttrain.tiny_model import write_model

pytestmark = pytest.mark.compat
INSTALLED = transformers.__version__
OLDER = ["4.53.0", "4.57.6"]
THETA = 12345.0  # no class's default
TRAINED, HEAD_DIM = 1024, 16
FOLDERS = ["base", "long_context", "post_trained", "checkpoint", "merged"]
TEXTS = [
    "Hello, wörld 123 — ñ\n\n\tdef f(x):",
    "<think>\nhm\n</think>\nYes<|im_end|>\n",
    "<|begin_of_text|>a b  c ",
    "",
]
DATE = "01 July 2025"
SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>"}


def interpreter(release: str) -> str:
    return sys.executable if release == INSTALLED else str(python_with_transformers(release))


def run(release: str, script: str, *arguments: str) -> None:
    command = [interpreter(release), str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of every kind that this project writes, all of one pretraining run."""
    root = tmp_path_factory.mktemp("exported")
    source = write_model(root / "source", positions=TRAINED, rope_theta=THETA, initializer_range=0.3)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(source)
    import_hf(source, root / "run")
    hf = root / "hf"
    export(root / "run", hf / "base")
    export(root / "run", hf / "long_context", yarn_factor=2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUN", str(root))
        write_sets(root / "posttrain_data", 0, {"midtrain": 12, "sft": 12, "apo": 8, "heldout": 2})
        arguments = [f"model.model_name_or_path={hf / 'base'}", "general.run=post_trained", "wandb.mode=disabled"]
        arguments += ["data.max_length=512", "data.max_lost_fraction=0.5", "model.compute_dtype=bfloat16"]
        assert train_command.main(["recipes/tiny/sft.yaml", *arguments]) == 0
    checkpoint = next((root / "post_trained" / "checkpoints").glob("checkpoint-*"))
    members = [Checkpoint(hf / "post_trained"), Checkpoint(hf / "base")]
    average = Average(members, [0.9, 0.1], members[0], "float32", 10**9)
    write_average(average, hf / "merged", "linear", quiet=True)
    return {**{name: hf / name for name in FOLDERS}, "checkpoint": checkpoint}


class Releases:
    """What each release makes of the exported folders, asked once."""

    def __init__(self, exported: dict[str, Path], scratch: Path) -> None:
        self._exported, self._scratch = exported, scratch
        self._answers: dict[str, Any] = {}
        self._request = scratch / "request.json"
        length = 1500  # beyond the trained length
        ids = torch.randint(0, 600, (length,), generator=torch.Generator().manual_seed(0)).tolist()
        conversations = [
            {"messages": case.messages, "arguments": {"date_string": DATE, **case.arguments}} for case in CASES
        ]
        folders = [str(folder) for folder in exported.values()]
        content = {"folders": folders, "input_ids": ids, "texts": TEXTS, "conversations": conversations}
        self._request.write_text(json.dumps(content), encoding="utf-8")

    def answer(self, release: str) -> Any:
        if release not in self._answers:
            file = self._scratch / f"{release}.pt"
            run(release, "load_models.py", str(self._request), str(file))
            self._answers[release] = torch.load(file, weights_only=True)
        return self._answers[release]

    def loaded(self, release: str, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.answer(release)["folders"][str(self._exported[name])]
        return answer


@pytest.fixture(scope="module")
def releases(exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Releases:
    return Releases(exported, tmp_path_factory.mktemp("answers"))


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("release", OLDER)
def test_an_export_is_the_same_model_to_every_release(releases: Releases, release: str, name: str) -> None:
    """Logits, token ids, text of templates, and all that decides an answer. Fixtures and first answers take minutes."""
    ours, theirs = dict(releases.loaded(INSTALLED, name)), dict(releases.loaded(release, name))
    torch.testing.assert_close(theirs.pop("logits"), ours.pop("logits"), rtol=0, atol=1e-4)
    torch.testing.assert_close(theirs.pop("frequencies"), ours.pop("frequencies"), rtol=1e-6, atol=0)
    assert theirs == ours
    assert theirs["tied"] and theirs["use_cache"] and theirs["model_max_length"] == theirs["positions"]
    assert theirs["stored_dtype"] == ("bfloat16" if name == "post_trained" else "float32")


@pytest.mark.parametrize("release", [*OLDER, INSTALLED])
def test_every_release_turns_by_the_trained_base(releases: Releases, release: str) -> None:
    """Against the formulas, in float64: theta alone, and YaRN over twice the trained length."""
    plain = torch.tensor([THETA ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)], dtype=torch.float64)
    for name in FOLDERS:
        loaded = releases.loaded(release, name)
        wanted, factor = yarn_by_hand(THETA, HEAD_DIM, 2.0, TRAINED) if name == "long_context" else (plain, 1.0)
        wanted = torch.as_tensor(wanted, dtype=torch.float64)
        torch.testing.assert_close(loaded["frequencies"].double(), wanted, rtol=1e-6, atol=0)
        assert loaded["table_factor"] == pytest.approx(factor)
        assert loaded["positions"] == (2 * TRAINED if name == "long_context" else TRAINED)
    stretched, base = (releases.loaded(release, name)["logits"] for name in ("long_context", "base"))
    assert (stretched - base).abs().max() > 0.1  # the comparison of logits would see a YaRN that is left out


@pytest.mark.parametrize("release", [*OLDER, INSTALLED])
def test_every_release_renders_the_conversations_as_written_by_hand(releases: Releases, release: str) -> None:
    for name in ("post_trained", "merged"):
        rendered = releases.loaded(release, name)["conversations"]
        for case, text in zip(CASES, rendered, strict=True):
            assert text == case.expected.replace("«", "").replace("»", ""), case.name
    assert releases.loaded(release, "post_trained")["generation"] == [True, 4, 2, 0, 0.6, 0.95]


def test_another_base_would_be_seen(exported: dict[str, Path], releases: Releases, tmp_path: Path) -> None:
    """With SmolLM3Config's own base, 2,000,000, the logits that are compared above are others."""
    wrong = Path(shutil.copytree(exported["base"], tmp_path / "wrong"))
    config = json.loads((wrong / "config.json").read_text())
    other = {"rope_type": "default", "rope_theta": 2e6}
    (wrong / "config.json").write_text(json.dumps({**config, "rope_theta": 2e6, "rope_parameters": other}))
    ids = torch.tensor(json.loads(releases._request.read_text())["input_ids"])[None]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(wrong).float()(ids).logits[0]
    assert (logits - releases.loaded(INSTALLED, "base")["logits"]).abs().max() > 0.1


@pytest.mark.parametrize("release", OLDER)
def test_the_defaults_of_absent_keys_are_those_of_the_release(releases: Releases, release: str) -> None:
    known = json.loads(releases.answer(release)["defaults"])
    for model_type, theirs in known.items():
        ours = json.loads(json.dumps(meaning({"model_type": model_type}, Path("config.json"))))
        assert ours["rope_parameters"] == {"rope_type": "default", "rope_theta": theirs.pop("rope_theta")}
        assert theirs.pop("rope_scaling") is None and theirs["tie_word_embeddings"] == ours["tie_word_embeddings"]
        theirs["dtype"] = theirs.pop("torch_dtype", None)
        # What 4.x calls by the same name; keys of generation that it keeps in the configuration are not asked here.
        shared = (theirs.keys() & ours.keys()) - {"transformers_version", "_name_or_path"}
        assert {key: theirs[key] for key in shared} == {key: ours[key] for key in shared}
        assert len(shared) > 20


@pytest.fixture(scope="module", params=OLDER)
def pairs(request: pytest.FixtureRequest, exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(release, two random models as it saves them, the same two as the installed release saves them)."""
    root = tmp_path_factory.mktemp("saved")
    older = [root / "a4", root / "b4"]
    content = {
        "config": {
            "vocab_size": 600, "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "rope_theta": THETA,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.3,
        },
        "tokenizer_file": str(exported["base"] / "tokenizer.json"),
        "special_tokens": SPECIAL,
        "folders": {str(folder): seed for seed, folder in enumerate(older)},
    }  # fmt: skip
    (root / "request.json").write_text(json.dumps(content), encoding="utf-8")
    run(request.param, "save_models.py", str(root / "request.json"))
    newer = [root / "a5", root / "b5"]
    for old, new in zip(older, newer, strict=True):
        AutoModelForCausalLM.from_pretrained(old).save_pretrained(new)
        AutoTokenizer.from_pretrained(old).save_pretrained(new)
    written = json.loads((older[0] / "config.json").read_text())
    assert "tie_word_embeddings" not in written and "rope_parameters" not in written and written["rope_theta"] == THETA
    return request.param, older, newer


def test_what_a_release_wrote_is_imported_as_what_the_installed_one_writes(pairs: Any, tmp_path: Path) -> None:
    _, older, newer = pairs
    for old, new in zip(older, newer, strict=True):
        one, two = (CheckpointReader(import_hf(folder, tmp_path / folder.name)) for folder in (old, new))
        assert one.manifest["model_config"] == two.manifest["model_config"]
        assert one.manifest["dtype"] == two.manifest["dtype"] == "float32"
        assert one.manifest["model_config"]["rope_theta"] == THETA
        for name, whole in parameters_of(ModelConfig(**one.manifest["model_config"])).items():
            assert torch.equal(*(reader.read("master", name, whole.shape) for reader in (one, two))), name


def test_what_a_release_wrote_is_merged_as_what_the_installed_one_writes(pairs: Any, tmp_path: Path) -> None:
    """In any combination of the two, to the bit; and the release reads the merged model as the installed one does."""
    release, older, newer = pairs
    outs = []
    for number, folders in enumerate([newer, older, [older[0], newer[1]], [newer[0], older[1]]]):
        members = [Checkpoint(folder) for folder in folders]
        outs.append(tmp_path / f"merged{number}")
        write_average(Average(members, [0.9, 0.1], members[0], "float32", 10**9), outs[-1], "linear", quiet=True)
    expected = weights(outs[0])
    parts = [load_file(folder / "model.safetensors") for folder in newer]
    for out in outs:
        merged = weights(out)
        assert merged.keys() == expected.keys() == parts[0].keys()
        for name, tensor in merged.items():
            assert torch.equal(tensor, expected[name])
            by_hand = 0.9 * parts[0][name].double() + 0.1 * parts[1][name].double()
            torch.testing.assert_close(tensor.double(), by_hand, rtol=1e-6, atol=1e-7)
    loaded = Releases({out.name: out for out in outs}, tmp_path)
    for out in outs:
        ours, theirs = loaded.loaded(INSTALLED, out.name), loaded.loaded(release, out.name)
        assert math.isfinite(float(ours["logits"].sum()))
        torch.testing.assert_close(theirs["logits"], ours["logits"], rtol=0, atol=1e-4)
        torch.testing.assert_close(ours["logits"], loaded.loaded(INSTALLED, "merged0")["logits"], rtol=0, atol=0)
        assert theirs["ids"] == ours["ids"] and theirs["specials"] == ours["specials"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
