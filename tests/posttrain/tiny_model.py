"""A SmolLM3 with random weights and a tokenizer trained on the standard library: what the tests train on."""

import sysconfig
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, SmolLM3Config, SmolLM3ForCausalLM

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
ADDED = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<code>",
    "</code>",
]
MODULES = [
    "argparse.py",
    "random.py",
    "textwrap.py",
    "statistics.py",
    "datetime.py",
    "difflib.py",
    "logging/__init__.py",
]


def train_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the pipeline's special tokens at ids 0 ... 4."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [(library / name).read_text(encoding="utf-8") for name in MODULES]
    texts.append(
        "## Metadata\nKnowledge cutoff: June 2025\nReasoning mode: /think\nStart with 1. Add 2. Convert Sort " * 99
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|pad|>",
    )


def write_model(
    folder: Path, vocab_size: int = 600, hidden_size: int = 32, layers: int = 4, positions: int = 512, **changes: Any
) -> Path:
    """A transformers folder with weights and tokenizer; `changes` are keys of the configuration."""
    tokenizer = train_tokenizer(vocab_size)
    torch.manual_seed(0)
    heads = max(2, hidden_size // 32)
    keys: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4),
        "max_position_embeddings": positions,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    SmolLM3ForCausalLM(SmolLM3Config(**{**keys, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
