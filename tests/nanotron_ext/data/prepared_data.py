"""Hand-written shards, and recipes over them; nothing here uses the code under test."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foundation.recipe import Recipe, load_recipe

EOS = 1
SHA = "0" * 64
Documents = list[list[int]]


def write_source(
    data: Path, name: str, files: Sequence[Documents], token_bytes: int = 2, **manifest_changes: Any
) -> list[np.ndarray]:
    """Write a source, one shard per list of documents (EOS included), and return each shard's tokens."""
    folder = data / name
    folder.mkdir(parents=True)
    entries, shards = [], []
    for number, documents in enumerate(files):
        tokens = np.array([token for document in documents for token in document], f"<u{token_bytes}")
        ends = np.cumsum([len(document) for document in documents]).astype("<u8")
        path = folder / f"{number:03d}.ds"
        path.write_bytes(tokens.tobytes())
        Path(f"{path}.index").write_bytes(ends.tobytes())
        entries.append(
            {
                "name": path.name,
                "documents": len(documents),
                "tokens": len(tokens),
                "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
                "index_sha256": hashlib.sha256(ends.tobytes()).hexdigest(),
            }
        )
        shards.append(tokens.astype(np.int64))
    manifest = {
        "format": "token-shards/1",
        "source": name,
        "revision": "test",
        "pipeline_sha256": SHA,
        "tokenizer_sha256": SHA,
        "vocab_size": 4096,
        "token_bytes": token_bytes,
        "eos_token_id": EOS,
        "documents": sum(len(documents) for documents in files),
        "tokens": sum(len(tokens) for tokens in shards),
        "files": entries,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | manifest_changes))
    return shards


def random_documents(rng: np.random.Generator, tokens: int, mean_length: float = 12.0) -> Documents:
    """Documents of geometric lengths from 1 token (a lone EOS) on, `tokens` in all."""
    documents: Documents = []
    while tokens:
        length = min(int(rng.geometric(1 / mean_length)), tokens)
        documents.append([*rng.integers(2, 4096, length - 1).tolist(), EOS])
        tokens -= length
    return documents


def make_recipe(
    data: Path,
    stages: Sequence[tuple[int, dict[str, float]]],
    train_steps: int = 100,
    sequence_length: int = 8,
    dp: int = 1,
    micro_batch_size: int = 1,
    micro_batches: int = 1,
    more: Sequence[str] = (),
) -> Recipe:
    """Recipe over the folder `data` with stages `[(first step, {source: weight}), ...]`, weights in any scale."""
    data_stages = [
        {"name": f"stage{start}", "start_training_step": start, "mixture": mixture, "normalize": True}
        for start, mixture in stages
    ]
    return load_recipe(
        "recipes/tiny/pretrain.yaml",
        [
            f"data.path={data}",
            "data.chunk_tokens=null",
            "data.validation=[]",
            "tokens.val_check_interval=null",
            "tokenizer.tokenizer_name_or_path=some/hub-name",
            "tokenizer.train=null",
            f"parallelism={{dp: {dp}}}",
            f"tokens.train_steps={train_steps}",
            f"tokens.sequence_length={sequence_length}",
            f"tokens.micro_batch_size={micro_batch_size}",
            f"tokens.batch_accumulation_per_replica={micro_batches}",
            "optimizer.learning_rate_scheduler={learning_rate: 1e-3, lr_decay_style: constant}",
            f"data_stages={json.dumps(data_stages)}",
            *more,
        ],
    )
