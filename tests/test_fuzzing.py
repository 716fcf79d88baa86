"""Random texts through every door by which files and replies come in: a value or one sentence, never another error.

`make fuzz` gives each door 60 seconds (FUZZ_SECONDS); plain tests 80 values, the same every time.
"""

import contextlib
import io
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from datapipes.errors import SourceError
from datapipes.readers import texts_of
from datapipes.registry import Files, Source
from datapipes.shards import read_manifest
from datapipes.synthetic import answers
from eval.engine import Doc
from eval.reasoning import split_answer
from eval.tasks.code import extract_code
from eval.tasks.tools import call_score, parse_calls
from foundation.errors import UserError
from foundation.hf_folder import meaning, read_config
from foundation.paths import indexed_weight_files
from foundation.pretrained import load_tokenizer
from foundation.recipe import load_recipe
from foundation.shards.manifest import read_source
from foundation.terminal import Terminal
from foundation.weights import read_header
from nanotron_ext.checkpoint import CheckpointReader
from posttrain import modes, rows
from posttrain.chat import Session
from posttrain.recipe import DataSet
from posttrain.recipe import load_recipe as load_posttraining_recipe
from posttrain.template import install_template, parse_reply
from posttrain.tokenization import ROW, RowTokenizer
from tests.nanotron_ext.data.prepared_data import write_source
from tests.posttrain.tiny_model import write_model

SECONDS = float(os.environ.get("FUZZ_SECONDS") or 0)
EXAMPLES = 80  # of a batch
STRANGE = st.sampled_from(
    ["", "\0", "..", "/", "\ud800", "\u202e", "\x1b[2J", "<tool_call>", "</think>", "<|im_start|>", "NaN",
     "${HF_TOKEN}",
     "${X:-}", "*a", "&a [*a]", "!!python/name:os", "[" * 60, "9" * 5000, "1e999", "-0", "null", "{}", "é" * 300]
)  # fmt: skip
TEXTS = st.one_of(STRANGE, st.text(max_size=40), st.text(alphabet='{}[]":,-&*!|>\n ab01<>/_', max_size=60))
LARGE = st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**400])
NUMBERS = st.one_of(st.integers(), st.integers(-2, 2), LARGE, st.floats())
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Keys that lead to each part of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [before, *(place for key, part in inner for place in places(part, (*before, key)))]


@st.composite
def damaged(draw: st.DrawFn, sound: Any) -> Any:
    """The sound value with one to three of its parts replaced, left out, or joined by others."""
    value = json.loads(json.dumps(sound))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(value))) or (None,)
        if last is None:
            return draw(VALUES)
        outer = value
        for key in way:
            outer = outer[key]
        change = draw(st.sampled_from(["replace", "delete", "add"]))
        if change == "replace":
            outer[last] = draw(VALUES)
        elif change == "delete":
            del outer[last]
        elif isinstance(outer, dict):
            outer[draw(TEXTS)] = draw(VALUES)
    return value


def spelled(value: Any) -> bytes:
    return json.dumps(value).encode()


def files(sound: Any) -> st.SearchStrategy[bytes]:
    """What a file may hold in place of a sound JSON value."""
    text = spelled(sound)
    cut = st.integers(0, len(text)).map(lambda end: text[:end])
    return st.one_of(damaged(sound).map(spelled), VALUES.map(spelled), cut, st.binary(max_size=60), TEXTS.map(_encoded))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


CALL = {"name": "f", "arguments": {"a": 1}}
CHAT = {
    "messages": [
        {"role": "system", "content": "be kind /no_think"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\nyes", "reasoning_content": None, "tool_calls": [CALL]},
    ],
    "chat_template_kwargs": {"enable_thinking": True, "custom_instructions": "x"},
    "tools": [{"name": "f", "parameters": {}}],
}  # fmt: skip
PIECES = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "<code>", "</code>", "```", "```python\n", "\n", " ",
     json.dumps(CALL), '{"name": 3}', '{"name": "f", "arguments": []}', "[[0.5]]", "\\boxed{", "}", "/no_think", "x"]
)  # fmt: skip
REPLIES = st.lists(st.one_of(PIECES, TEXTS, VALUES.map(lambda value: json.dumps(value))), max_size=8).map("".join)
RECIPE = {
    "general": {"project": "p", "run": "r", "seed": 1, "runs_path": "runs"},
    "model": {"model_config": {"hidden_size": 64, "num_hidden_layers": 2, "rope_theta": 10000.0, "rope_scaling": None}},
    "tokens": {"sequence_length": 16, "train_steps": 8, "micro_batch_size": 2},
    "data_stages": [{"name": "one", "start_training_step": 1, "mixture": {"a": 0.75, "b": 0.25}}],
    "parallelism": {"dp": 2, "tp": 1, "pp": 1},
    "optimizer": {"weight_decay_exclude_named_params": [".*n"], "learning_rate_scheduler": {"learning_rate": 1e-3}},
    "checkpoints": {"checkpoint_interval": 4, "remote_path": None},
    "extends": None,
}  # fmt: skip


def fuzz(door: str, strategy: st.SearchStrategy[Any], act: Callable[[Any], object]) -> None:
    """Batches of values, each with a seed of its own, until the time is over; one batch in plain tests."""
    count, end = 0, time.monotonic() + SECONDS
    for number in itertools.count():

        @seed(number)
        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )  # fmt: skip
        @given(strategy)
        def batch(value: Any) -> None:
            nonlocal count
            count += 1
            with contextlib.suppress(UserError):
                act(value)

        batch()
        if time.monotonic() > end:
            break
    print(f"fuzz: {door}: {count:,} values in {SECONDS:g} s")
    assert count >= EXAMPLES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_recipes(tmp_path: Path) -> None:
    """As YAML, of which JSON is a part, and as text; read as pretraining and as post-training."""
    path = tmp_path / "recipe.yaml"

    def act(content: bytes) -> None:
        path.write_bytes(content)
        for load in (load_recipe, load_posttraining_recipe):
            with contextlib.suppress(UserError):
                load(path)

    fuzz("recipe", files(RECIPE), act)


def test_overlays_and_overrides(tmp_path: Path) -> None:
    """Over a sound recipe, so that what is damaged is all that is wrong."""
    path = tmp_path / "overlay.yaml"
    keys = st.sampled_from([".".join(map(str, place)) for place in places(RECIPE) if place])

    def act(given: tuple[bytes, str, str]) -> None:
        content, key, value = given
        path.write_bytes(content)
        for overrides in ([str(path)], [f"{key}={value}"]):
            with contextlib.suppress(UserError):
                load_recipe("recipes/tiny/pretrain.yaml", overrides)

    values = st.one_of(TEXTS, VALUES.map(json.dumps))
    fuzz("overlay and override", st.tuples(damaged(RECIPE).map(spelled), keys, values), act)


def test_manifests_of_shards(tmp_path: Path) -> None:
    write_source(tmp_path, "a", [[[2, 3, 1]]])
    manifest = tmp_path / "a" / "manifest.json"
    sound = json.loads(manifest.read_text())

    def act(content: bytes) -> None:
        manifest.write_bytes(content)
        for read in (read_source, read_manifest):
            with contextlib.suppress(UserError):
                read(tmp_path / "a")

    fuzz("manifest", files(sound), act)


def test_manifests_of_checkpoints(tmp_path: Path) -> None:
    sound = {
        "format": "smollm3-checkpoint/1", "step": 4, "recipe_hash": "0", "model_config": {}, "data": {},
        "recipe": {"parallelism": {"dp": 1, "tp": 1, "pp": 1}, "optimizer": {}},
        "files": {"master-0.safetensors": {"bytes": 3, "sha256": "0" * 64}},
    }  # fmt: skip
    (tmp_path / "master-0.safetensors").write_bytes(b"abc")

    def act(content: bytes) -> None:
        (tmp_path / "checkpoint.json").write_bytes(content)
        CheckpointReader(tmp_path)

    fuzz("checkpoint.json", files(sound), act)


def test_indices_and_configurations_of_models(tmp_path: Path) -> None:
    index = {"metadata": {"total_size": 3}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    config = {
        "model_type": "smollm3", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 99,
        "rope_theta": 10000.0, "rope_scaling": None, "no_rope_layers": [1, 1, 1, 0], "dtype": "bfloat16",
        "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip

    def act(given: tuple[bytes, bytes]) -> None:
        (tmp_path / "model.safetensors.index.json").write_bytes(given[0])
        (tmp_path / "config.json").write_bytes(given[1])
        with contextlib.suppress(UserError):
            indexed_weight_files(tmp_path)
        meaning(read_config(tmp_path), tmp_path / "config.json")

    fuzz("index.json and config.json", st.tuples(files(index), files(config)), act)


def test_headers_of_weights(file: Path) -> None:
    sound = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}

    def act(given: tuple[bytes, bytes, int]) -> None:
        header, tail, length = given
        file.write_bytes((length or len(header)).to_bytes(8, "little") + header + tail)
        read_header(file)

    lengths = st.one_of(st.just(0), st.integers(0, 2**64 - 1))
    fuzz("safetensors header", st.tuples(files(sound), st.binary(max_size=20), lengths), act)


def test_chat_rows_of_post_training(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_model(tmp_path / "model", positions=1024))
    install_template(tokenizer, "dual_mode")
    data = load_posttraining_recipe("recipes/tiny/sft.yaml").data
    spec = DataSet(path="x.jsonl")
    tokenize = RowTokenizer(tokenizer, spec, data, pairs=False)
    pairs = RowTokenizer(tokenizer, spec, data, pairs=True)

    def act(row: Any) -> None:
        if isinstance(row, dict):  # as a data set gives rows
            tokenize({"messages": None, ROW: 1, **row})
            pairs({"chosen": row.get("messages"), "rejected": row.get("messages"), ROW: 1, **row})

    fuzz("chat rows of post-training", damaged(CHAT), act)


def test_rows_of_pretraining(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    readers = [
        Files(kind="files", path=str(tmp_path), format="jsonl", files=["*.jsonl"], **more)
        for more in ({}, {"chat_column": "messages"})
    ]

    def act(content: bytes) -> None:
        path.write_bytes(content + b"\n")
        for reader in readers:
            with contextlib.suppress(SourceError):
                list(texts_of(Source(name="a", category="web", licence="none", reader=reader)))

    fuzz("rows of pretraining", st.one_of(files(CHAT), files({"text": "a", "id": "b"})), act)


def test_replies() -> None:
    """Of models, through all that reads them; `call_score` and `parse_answer` give their own errors."""
    doc = Doc(query="", choices=[""], gold_index=0, specific={"expected": [{"f": {"a": [1]}}], "outputs": ["x"]})
    session = Session.__new__(Session)

    def act(text: str) -> None:
        session.console = Terminal(file=io.StringIO(), width=80)
        session._show_calls(parse_reply(text))
        parse_calls(text), call_score(text, doc), extract_code(text), split_answer(text, text)
        answers.without_thinking(text), answers.repeats_itself(text)
        with contextlib.suppress(answers.Unusable):
            answers.parse_answer({"text": text, "reasoning": "", "finish_reason": "stop"}, True)
        said = [{"role": role, "content": text} for role in ("user", "assistant")]
        with contextlib.suppress(rows.UnusableRow):
            modes.mode_of_conversation(rows.conversation_of({"messages": said}).messages, {}, "dual_mode")

    fuzz("replies", REPLIES, act)
