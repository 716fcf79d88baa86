"""Random SmolLM3 checkpoints of tiny size, with a tokenizer, chat template and generation config."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SmolLM3Config, SmolLM3ForCausalLM

MakeCheckpoint = Callable[..., Path]


def write_tokenizer(folder: Path, extra_tokens: int = 0) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {
        token: index for index, token in enumerate(["<|begin_of_text|>", "<|end_of_text|>", "<|im_end|>", *alphabet])
    }
    vocab |= {f"extra{index}": len(vocab) + index for index in range(extra_tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|end_of_text|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """make(name, seed=0, dtype=bfloat16, extra_tokens=0, **config) writes a model folder and returns it."""

    def make(
        name: str, seed: int = 0, dtype: torch.dtype = torch.bfloat16, extra_tokens: int = 0, **changes: object
    ) -> Path:
        settings: dict[str, object] = dict(
            vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, no_rope_layer_interval=4,
            bos_token_id=0, eos_token_id=2, pad_token_id=1,
        )  # fmt: skip
        torch.manual_seed(seed)
        model = SmolLM3ForCausalLM(SmolLM3Config(**{**settings, **changes})).to(dtype)
        folder = tmp_path / name
        model.save_pretrained(folder)
        write_tokenizer(folder, extra_tokens)
        generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": 2, "note": name}
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
        return folder

    return make
