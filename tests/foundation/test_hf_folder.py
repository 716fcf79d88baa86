"""What a config.json means in every spelling that releases of transformers write, and what is written for all of them.

The spellings below are the layouts that 4.53.0, 4.57.6 and 5.23.0 write for one model; tests/compat holds the same
claims against these releases themselves.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, SmolLM3Config, SmolLM3ForCausalLM
from transformers.models.smollm3.modeling_smollm3 import SmolLM3RotaryEmbedding

from foundation.errors import UserError
from foundation.hf_folder import ModelFolderError, finish_folder, meaning, spelled_for_all
from foundation.recipe.architecture import parameters_of
from nanotron_ext.checkpoint import CheckpointReader
from nanotron_ext.export import stretched
from nanotron_ext.hf_format import hf_config, model_config_from_hf
from nanotron_ext.import_hf import ImportModelError, import_hf
from nanotron_ext.model.rotary import rotary_frequencies
from tests.nanotron_ext.samples import small_recipe

SOURCE = Path("model/config.json")
THETA = 12345.0  # no class's default
COMMON: dict[str, Any] = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "layer_types": ["full_attention"] * 4,
    "max_position_embeddings": 256,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0],
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-06,
    "sliding_window": None,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 320,
}
YARN = {"factor": 2.0, "original_max_position_embeddings": 128}


def written_by(release: str, yarn: bool = False) -> dict[str, Any]:
    """The config.json of one tied bfloat16 model as the release writes it."""
    rope: dict[str, Any] = {"rope_theta": THETA, "rope_scaling": None}
    if yarn:
        rope["rope_scaling"] = {"type" if release == "4.53.0" else "rope_type": "yarn", **YARN}
    if release == "4.53.0":
        return {**COMMON, **rope, "torch_dtype": "bfloat16", "transformers_version": release}
    if release == "4.57.6":
        return {**COMMON, **rope, "dtype": "bfloat16", "mlp_bias": False, "transformers_version": release}
    rope = {"rope_theta": THETA, **({"rope_type": "yarn", **YARN} if yarn else {"rope_type": "default"})}
    newer = {"dtype": "bfloat16", "mlp_bias": False, "tie_word_embeddings": True, "transformers_version": release}
    return {**COMMON, **newer, "rope_parameters": rope}


OLDER = ["4.53.0", "4.57.6"]
EVERY = [*OLDER, "5.23.0"]


@pytest.mark.parametrize("yarn", [False, True])
@pytest.mark.parametrize("release", OLDER)
def test_every_spelling_means_the_same(release: str, yarn: bool) -> None:
    older, newer = written_by(release, yarn), written_by("5.23.0", yarn)
    assert meaning(older, SOURCE) == meaning(newer, SOURCE)
    ours = model_config_from_hf(older, SOURCE)
    assert ours == model_config_from_hf(newer, SOURCE)
    assert (ours.rope_theta, ours.tie_word_embeddings, ours.no_rope_layer_interval) == (THETA, True, 4)
    assert (None if ours.rope_scaling is None else ours.rope_scaling.factor) == (2.0 if yarn else None)


def test_absent_keys_have_the_defaults_of_their_class() -> None:
    """As published for SmolLM3Config and LlamaConfig; that 4.x has the same ones is a test of tests/compat."""
    smollm3, llama = (meaning({"model_type": kind}, SOURCE) for kind in ("smollm3", "llama"))
    assert smollm3["rope_parameters"] == {"rope_theta": 2_000_000.0, "rope_type": "default"}
    assert smollm3["tie_word_embeddings"] is True and smollm3["rms_norm_eps"] == 1e-6
    assert smollm3["no_rope_layers"] == [1, 1, 1, 0] * 9 and smollm3["max_position_embeddings"] == 32768
    assert (smollm3["hidden_size"], smollm3["num_key_value_heads"], smollm3["vocab_size"]) == (2048, 4, 128_256)
    assert llama["rope_parameters"] == {"rope_theta": 10_000.0, "rope_type": "default"}
    assert llama["tie_word_embeddings"] is False and llama["max_position_embeddings"] == 2048


@pytest.mark.parametrize("release", EVERY)
def test_what_is_written_states_the_same_numbers_twice(release: str) -> None:
    base = spelled_for_all({**written_by(release), "use_cache": False}, SOURCE)
    assert base["rope_theta"] == THETA and base["rope_scaling"] is None
    assert base["rope_parameters"] == {"rope_type": "default", "rope_theta": THETA}
    assert base["dtype"] == base["torch_dtype"] == "bfloat16"
    assert base["tie_word_embeddings"] is True and base["use_cache"] is True

    yarn = spelled_for_all(written_by(release, yarn=True), SOURCE)
    stated = {"rope_type": "yarn", **YARN, "beta_fast": 32.0, "beta_slow": 1.0}
    assert yarn["rope_theta"] == THETA and yarn["rope_scaling"] == stated
    assert yarn["rope_parameters"] == {**stated, "rope_theta": THETA}
    for written in (base, yarn):
        assert spelled_for_all(written, SOURCE) == written
        assert meaning(written, SOURCE) == meaning(written_by("5.23.0", written is yarn), SOURCE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}, r"rope_theta.* mean .*12345.*5000000"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": THETA, **YARN}}, "contradicts itself"),
        ({"rope_scaling": {"rope_type": "yarn", **YARN, "factor": 4.0}}, "max_position_embeddings 512 and original"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "max_position_embeddings 512 and original.* 256"),
        ({"torch_dtype": "float32"}, "dtype 'bfloat16' but torch_dtype 'float32'"),
        ({"model_type": "smolm3"}, "model_type 'smolm3', which transformers"),
        ({"num_hidden_layers": "four"}, "no configuration of a smollm3"),
    ],
)
def test_what_releases_would_read_differently_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFolderError, match=message):
        spelled_for_all({**written_by("4.57.6"), **changes}, SOURCE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type = 'llama'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"layer_types": ["sliding_attention"] * 4, "sliding_window": 8}, "layer_types"),
        ({"eos_token_id": None}, "eos_token_id is None"),
        ({"no_rope_layers": [1, 0, 0, 1]}, "no_rope_layers"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
    ],
)
def test_an_architecture_that_is_not_ours_is_refused_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_config_from_hf({**written_by("4.57.6"), **changes}, SOURCE)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("model_type", "beside", "scaling"),
    [
        ("llama", {"rope_theta": 5e5}, {"rope_type": "llama3", **LLAMA3}),
        ("llama", {"rope_theta": 5e5}, {"rope_type": "linear", "factor": 2.0}),
        ("stablelm", {"rope_theta": 5e5, "partial_rotary_factor": 0.5}, None),
    ],
)
def test_rotary_settings_of_other_families_are_spelled_twice_too(
    model_type: str, beside: dict[str, float], scaling: dict[str, Any] | None
) -> None:
    """As 4.x writes them, and as 5.x does: what post-training and merge write of such a model is the same to both."""
    common = {"model_type": model_type, "max_position_embeddings": 65536}
    older = {**common, **beside, "rope_scaling": scaling}
    newer = {**common, "rope_parameters": {**(scaling or {"rope_type": "default"}), **beside}}
    assert meaning(older, SOURCE) == meaning(newer, SOURCE)
    written = spelled_for_all(newer, SOURCE)
    assert written["rope_scaling"] == scaling and beside.items() <= written.items()
    assert written["rope_parameters"] == newer["rope_parameters"]
    assert spelled_for_all(older, SOURCE) == spelled_for_all(written, SOURCE) == written


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        finish_folder(tmp_path)
    with pytest.raises(ModelFolderError, match="There is no"):
        finish_folder(tmp_path / "absent")


def yarn_by_hand(theta: float, head_dim: int, factor: float, trained: int) -> tuple[list[float], float]:
    """Radians per position and the factor on the tables, in Python's float64, after the YaRN paper and its code.

    Feature i turns trained / (2 pi theta^(2i / d)) times within the trained length. From 32 turns on it is kept, below
    one it is slowed down by `factor`; between the features where this happens the share of both is linear.
    """

    def feature_with(turns: float) -> float:
        return head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(feature_with(32)), 0), min(math.ceil(feature_with(1)), head_dim - 1)
    frequencies = []
    for i in range(head_dim // 2):
        plain = theta ** (-2 * i / head_dim)
        slowed = min(max((i - first) / (last - first), 0.0), 1.0)
        frequencies.append(plain * (1 - slowed) + plain / factor * slowed)
    return frequencies, 0.1 * math.log(factor) + 1.0


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_yarn_is_that_of_the_paper(tmp_path: Path, factor: float) -> None:
    """In the model here, and in transformers on the exported configuration."""
    shape = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096}
    config = stretched(small_recipe(model_config={**shape, "rope_theta": THETA}).architecture, factor)
    frequencies, table_factor = yarn_by_hand(THETA, 128, factor, 4096)
    wanted = torch.tensor(frequencies, dtype=torch.float64)
    plain = THETA ** -(torch.arange(64, dtype=torch.float64) / 64)
    assert 8 < int(torch.isclose(wanted, plain).sum()) < 56  # some are kept, some are not

    ours, our_factor = rotary_frequencies(config)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config, "float32")))
    finish_folder(tmp_path)
    theirs = SmolLM3RotaryEmbedding(AutoConfig.from_pretrained(tmp_path))
    for found in (ours, theirs.inv_freq):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    assert our_factor == pytest.approx(table_factor) and theirs.attention_scaling == pytest.approx(table_factor)


def save_model(folder: Path) -> Path:
    """A model folder as transformers 5 saves it, with a tokenizer of one more special token and a chat template."""
    torch.manual_seed(0)
    model = SmolLM3ForCausalLM(SmolLM3Config(**meaning(written_by("5.23.0"), SOURCE))).bfloat16()
    model.save_pretrained(folder)
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate("Ġabcd<>|")}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|e|>", pad_token="<|p|>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|x|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_gets_names_that_both_majors_load(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    before = AutoTokenizer.from_pretrained(folder)
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "TokenizersBackend" and isinstance(saved["extra_special_tokens"], list)
    finish_folder(folder)
    written = json.loads((folder / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|x|>"] and "extra_special_tokens" not in written
    assert written["model_max_length"] == 256 and written["clean_up_tokenization_spaces"] is False
    after = AutoTokenizer.from_pretrained(folder)
    text = "ab cd<|x|>d<|e|>"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.all_special_tokens == before.all_special_tokens and after.chat_template == before.chat_template
    finish_folder(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text()) == written


def test_a_tokenizer_class_of_its_own_is_kept(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    finish_folder(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "GPT2Tokenizer"


@pytest.mark.parametrize("release", OLDER)
def test_an_import_does_not_depend_on_the_spelling(tmp_path: Path, release: str) -> None:
    folder = save_model(tmp_path / "model")
    newer = CheckpointReader(import_hf(folder, tmp_path / "newer"))
    (folder / "config.json").write_text(json.dumps(written_by(release)))
    older = CheckpointReader(import_hf(folder, tmp_path / "older"))
    for key in ("model_config", "dtype"):
        assert older.manifest[key] == newer.manifest[key]
    assert older.manifest["dtype"] == "bfloat16"
    config = model_config_from_hf(written_by(release), SOURCE)
    for name, whole in parameters_of(config).items():
        assert torch.equal(*(reader.read("master", name, whole.shape) for reader in (older, newer)))
    embedding = older.read("master", "embedding.token_embedding.weight", (320, 64))
    assert torch.equal(embedding.bfloat16(), load_file(folder / "model.safetensors")["model.embed_tokens.weight"])


def test_import_of_parts_that_only_add_up_is_refused(tmp_path: Path) -> None:
    """Queries of the keys' rows and keys of the queries': together they fill our parameter, each in a wrong place."""
    folder = save_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    q, k = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
    assert tensors[q].shape != tensors[k].shape
    save_file(tensors | {q: tensors[k], k: tensors[q]}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ImportModelError, match=rf"{q} is .*, config\.json makes it"):
        import_hf(folder, tmp_path / "imported")
    assert not (tmp_path / "imported" / "checkpoints" / "0").exists()


def test_import_into_a_run_is_refused(tmp_path: Path) -> None:
    """Its first checkpoint would be another model's, and `latest` would name it."""
    folder, there = save_model(tmp_path / "model"), tmp_path / "run" / "checkpoints" / "7"
    there.mkdir(parents=True)
    (there / "checkpoint.json").write_text("{}")
    with pytest.raises(ImportModelError, match=rf"{there} exists: .*run belongs to another run"):
        import_hf(folder, tmp_path / "run")
    assert [path.name for path in tmp_path.glob("run/*")] == ["checkpoints"]


def test_without_a_stated_type_an_import_has_that_of_the_weights(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert CheckpointReader(import_hf(folder, tmp_path / "run")).manifest["dtype"] == "bfloat16"
