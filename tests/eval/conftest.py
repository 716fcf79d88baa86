"""A tiny random SmolLM3 with byte-level tokenizer and a template with both modes; a recipe over all tasks."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SmolLM3Config, SmolLM3ForCausalLM

from eval.benchmarks import BENCHMARKS
from eval.data import write_small_edition
from eval.recipe import EvalRecipe, load_eval_recipe

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if xml_tools %}tools: {{ xml_tools | tojson }}\n{% endif %}"
    "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}"
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate([*special, *alphabet, "th", "er"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("e", "r")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|end_of_text|>")
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = SmolLM3Config(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, no_rope_layer_interval=4,
        bos_token_id=0, eos_token_id=3, pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    SmolLM3ForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 3, "temperature": 0.6, "do_sample": True})
    )
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> EvalRecipe:
    """Every benchmark once, by log-likelihood (choices) or as text (answers), and once more in both modes (chat)."""
    folder = tmp_path_factory.mktemp("eval")
    choices: dict[str, dict[str, object]] = {}
    answers: dict[str, dict[str, object]] = {}
    for name, benchmark in sorted(BENCHMARKS.items()):
        if benchmark.scored_by == "log-likelihood":
            choices[name] = {}
        else:
            answers[name] = {"max_documents": 2 if benchmark.executes_code else 6}
        if benchmark.generator is not None:
            answers[name] = {"context_tokens": 1500, "max_documents": 2}
    # One language and one needle stand for the others, which differ in their data only.
    chat = {name: task for name, task in answers.items() if name[-3:] not in ("_de", "_es", "_it", "_pt", "_en", "key")}
    tree = {
        "output": str(folder / "results"),
        "data": str(folder / "data"),
        "backend": {"dtype": "float32", "device": "cpu", "batch_size": 4},
        "execute_code": True,
        "suites": {
            "choices": {"tasks": choices},
            "answers": {"tasks": answers},
            "chat": {"modes": ["think", "no_think"], "tasks": chat},
        },
    }
    (folder / "eval.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    loaded = load_eval_recipe(folder / "eval.yaml")
    write_small_edition(loaded)
    return loaded
