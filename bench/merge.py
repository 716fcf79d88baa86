"""`python bench/merge.py [FOLDER]`: merge 3B-shaped random checkpoints and report time and peak memory.

Writes two bfloat16 checkpoints of SmolLM3-3B's 3,075,098,624 parameters (6.2 GB each), merges them 0.9 to 0.1 with the
recipe's shard size in a process of its own, and checks the result against the float64 average. Exit code 1 if the
process took more memory than LIMIT_GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, SmolLM3Config

LIMIT_GB = 8.0
SHARD_BYTES = 2_000_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="a disk with 25 GB free (default: the system's temporary folder)")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder, prefix="bench-merge-") as scratch:
        folder = Path(scratch)
        for seed, name in enumerate(("soup-0", "midtrain")):
            started = time.monotonic()
            parameters = write_checkpoint(folder / name, seed)
            print(f"{name}: {parameters:,} parameters, written in {time.monotonic() - started:.0f} s", flush=True)
        recipe = {
            "dtype": "bfloat16",
            "max_shard_bytes": SHARD_BYTES,
            "soup": {
                "method": "weighted",
                "checkpoints": [{"path": str(folder / "soup-0"), "weight": 0.9},
                                {"path": str(folder / "midtrain"), "weight": 0.1}],
                "output": str(folder / "merged"),
            },
        }  # fmt: skip
        (folder / "merge.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "smollm3", "merge", str(folder / "merge.yaml")], check=True)
        seconds = time.monotonic() - started
        # Linux gives the largest resident set of the children in KiB: pages of mapped weight files are in it.
        peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        manifest = json.loads((folder / "merged" / "merge_manifest.json").read_text(encoding="utf-8"))
        print(
            f"merged two models of 6.2 GB: {manifest['merge_seconds']:.0f} s in mergekit, {seconds:.0f} s in all with "
            f"hashes and verification; peak memory {peak_gb:.2f} GB (limit {LIMIT_GB:g}); verified: "
            f"{manifest['verification']}"
        )
    return 0 if peak_gb < LIMIT_GB else 1


def write_checkpoint(folder: Path, seed: int) -> int:
    """A random model of SmolLM3-3B's shape in shards of SHARD_BYTES, one tensor in memory at a time."""
    config = SmolLM3Config(vocab_size=128_256, tie_word_embeddings=True, architectures=["SmolLM3ForCausalLM"])
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    backend = Tokenizer(models.BPE(vocab={"<|end_of_text|>": 0}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end_of_text|>").save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    shards: list[dict[str, torch.Tensor]] = [{}]
    weight_map, total = {}, 0
    # One random block, scaled anew for every tensor: drawing 3 billion normal numbers takes minutes and shows no more.
    block = torch.randn(config.vocab_size * config.hidden_size // 8, generator=generator)
    for name, shape in tensor_shapes(config).items():
        count = int(torch.tensor(shape).prod())
        repeated = block.repeat(-(-count // len(block)))[:count]
        tensor = (repeated * float(torch.rand((), generator=generator)) * 0.04).to(torch.bfloat16).view(shape)
        if sum(entry.nbytes for entry in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            save_file(shards[-1], folder / f"model-{len(shards):05d}.safetensors", metadata={"format": "pt"})
            shards[-1] = {}
            shards.append({})
        shards[-1][name] = tensor
        weight_map[name] = f"model-{len(shards):05d}.safetensors"
        total += count
    save_file(shards[-1], folder / f"model-{len(shards):05d}.safetensors", metadata={"format": "pt"})
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def tensor_shapes(config: SmolLM3Config) -> dict[str, tuple[int, ...]]:
    hidden, width = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * hidden // config.num_attention_heads
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (width, hidden),
        "mlp.up_proj.weight": (width, hidden),
        "mlp.down_proj.weight": (hidden, width),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {**shapes, "model.norm.weight": (hidden,)}


if __name__ == "__main__":
    sys.exit(main())
