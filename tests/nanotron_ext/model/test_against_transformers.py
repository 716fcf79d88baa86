"""Our logits equal those of transformers' SmolLM3 on every document alone, for random architectures and layouts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from foundation.recipe import ModelConfig, Recipe
from nanotron_ext.checkpoint import CheckpointReader, resolve_checkpoint
from nanotron_ext.data.loader import MicroBatch
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.export import export
from nanotron_ext.hf_format import hf_config
from nanotron_ext.import_hf import import_hf
from nanotron_ext.model.documents import Documents
from nanotron_ext.train.persistence import load_checkpoint
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import save_checkpoint, small_recipe

CONFIGURATIONS = 24


def random_recipe(number: int, runs_path: Path) -> tuple[Recipe, list[int]]:
    """Architecture, layout and document lengths drawn from the number."""
    generator = torch.Generator().manual_seed(number)

    def choose(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    tp, pp = choose(1, 1, 2), choose(1, 1, 2)
    kv_heads = tp * choose(1, 2)
    heads = kv_heads * choose(1, 2, 3)
    documents = [choose(1, 2, 5, 11, 20) for _ in range(choose(1, 2, 4, 7))]
    documents.append(1 + -(sum(documents) + 1) % 4)  # the tokens must split over the tensor-parallel ranks
    recipe = small_recipe(
        general={"seed": number, "runs_path": str(runs_path)},
        parallelism={"tp": tp, "pp": pp, "tp_mode": choose("REDUCE_SCATTER", "ALL_REDUCE")},
        tokens={"sequence_length": sum(documents), "batch_accumulation_per_replica": pp},
        model_config={
            "vocab_size": choose(64, 100, 258),
            "hidden_size": heads * choose(4, 8, 16),
            "intermediate_size": choose(16, 40, 64),
            "num_hidden_layers": choose(2, 3, 5, 8),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": sum(documents),
            "rope_theta": choose(500.0, 10000.0, 2.0e6),
            "no_rope_layer_interval": choose(0, 2, 3, 4),
            "tie_word_embeddings": choose(True, True, False),
            "pad_token_id": 2,
        },
    )
    return recipe, documents


def token_ids(recipe: Recipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(99)
    return torch.randint(0, recipe.architecture.vocab_size, (recipe.tokens.sequence_length,), generator=generator)


def save_and_evaluate(recipe: Recipe, lengths: list[int]) -> float:
    """Save a checkpoint of random weights in the recipe's layout; returns the summed loss of all tokens."""
    state = TrainState(recipe, *context_and_device(recipe))
    for slot, start, master in state.optimizer.state("master"):
        noise = torch.Generator().manual_seed(len(slot.entry.name) + start)
        master += 0.1 * torch.randn(master.shape, generator=noise)  # norms away from 1
    state.optimizer.masters_to_model()
    save_checkpoint(state, 1)
    # What the checkpoint holds is the truth: tensor-parallel copies of norms drew the same noise, shards did not.
    load_checkpoint(state, CheckpointReader(resolve_checkpoint(recipe.run_folder)))
    ids = token_ids(recipe)
    samples = torch.cat([ids, ids[:1]])[None].int()
    return state.evaluate([MicroBatch(samples, torch.empty(0, dtype=torch.int64), lengths)])


def load_and_compute_logits(recipe: Recipe, lengths: list[int]) -> torch.Tensor:
    """Logits `[tokens, vocab_size]` of the saved checkpoint, the vocabulary gathered from the ranks."""
    context, device = context_and_device(recipe)
    state = TrainState(recipe, context, device)
    load_checkpoint(state, CheckpointReader(resolve_checkpoint(recipe.run_folder)))
    with torch.no_grad():
        local = state.model.logits(token_ids(recipe), Documents.from_lengths(lengths))
    parts = [torch.empty_like(local) for _ in range(recipe.parallelism.tp)]
    torch.distributed.all_gather(parts, local, group=context.tp_pg)
    return torch.cat(parts, dim=1)


def context_and_device(recipe: Recipe) -> tuple[ParallelContext, torch.device]:
    device = initialize_distributed().device
    return ParallelContext(recipe.parallelism.tp, recipe.parallelism.pp, recipe.parallelism.dp), device


def fake_tokenizer(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("number", range(CONFIGURATIONS))
def test_logits_and_loss_equal_transformers(number: int, tmp_path: Path) -> None:
    recipe, lengths = random_recipe(number, tmp_path)
    p = recipe.parallelism
    loss = run_ranks(save_and_evaluate, p.world_size, recipe, lengths)[0]
    without_pipeline = recipe.model_copy(update={"parallelism": p.model_copy(update={"pp": 1})})
    logits = run_ranks(load_and_compute_logits, p.tp, without_pipeline, lengths)[0]

    folder = export(recipe.run_folder, tmp_path / "hf", fake_tokenizer(tmp_path / "tokenizer"))
    reference = SmolLM3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = token_ids(recipe)
    with torch.no_grad():
        expected = torch.cat([reference(document[None]).logits[0] for document in ids.split(lengths)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    expected_loss = torch.nn.functional.cross_entropy(expected, ids.roll(-1), reduction="sum")
    torch.testing.assert_close(torch.tensor(loss), expected_loss, rtol=1e-5, atol=0)


def test_export_import_export_is_bit_identical(tmp_path: Path) -> None:
    recipe, lengths = random_recipe(3, tmp_path)
    run_ranks(save_and_evaluate, recipe.parallelism.world_size, recipe, lengths)
    for dtype in ("float32", "bfloat16"):
        first = export(recipe.run_folder, tmp_path / f"{dtype}-1", fake_tokenizer(tmp_path / f"tok-{dtype}"), dtype)
        import_hf(first, tmp_path / f"{dtype}-imported")
        second = export(tmp_path / f"{dtype}-imported", tmp_path / f"{dtype}-2")
        names = sorted(path.name for path in first.iterdir())
        assert names == sorted(path.name for path in second.iterdir())
        assert "model.safetensors" in names
        for name in names:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_export_in_several_shards_loads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, lengths = random_recipe(5, tmp_path)
    run_ranks(save_and_evaluate, recipe.parallelism.world_size, recipe, lengths)
    tokenizer = fake_tokenizer(tmp_path / "tokenizer")
    one = export(recipe.run_folder, tmp_path / "one", tokenizer)
    monkeypatch.setattr("nanotron_ext.export.MAX_SHARD_BYTES", 4000)
    many = export(recipe.run_folder, tmp_path / "many", tokenizer)
    assert len(list(many.glob("model-*.safetensors"))) > 3
    assert "weight_map" in json.loads((many / "model.safetensors.index.json").read_text())
    left, right = (SmolLM3ForCausalLM.from_pretrained(folder).state_dict() for folder in (one, many))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_3b_has_the_published_number_of_parameters() -> None:
    smollm3_3b = ModelConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=65536,
        rope_theta=5e6,
        eos_token_id=128001,
    )
    assert smollm3_3b.num_parameters() == 3_075_098_624
    with torch.device("meta"):
        reference = SmolLM3ForCausalLM(SmolLM3Config(**hf_config(smollm3_3b, "bfloat16")))
    assert reference.num_parameters() == 3_075_098_624
