"""Who takes the step: this trainer in its layouts, and transformers as a careful user would run it."""

import importlib.util
from collections.abc import Callable
from typing import Any

from stepbench.work import LEARNING_RATE, VOCABULARY, Work

OURS = "this trainer"
LAYOUTS = {f"{OURS}, tp 2": (2, 1), f"{OURS}, dp 2": (1, 2)}  # (tp, dp)
TRANSFORMERS = ("transformers eager", "transformers sdpa", "transformers sdpa, compiled")
FLASH = "transformers flash_attention_2"
TakeStep = Callable[[int], float]


def available(device: str) -> list[str]:
    """The variants to compare on the device; says of others in one line why they are left out."""
    names = [OURS, *TRANSFORMERS]
    if device == "cuda" and importlib.util.find_spec("flash_attn"):
        names.append(FLASH)
    elif device == "cuda":
        print(f"{FLASH}: left out, flash-attn is not installed")
    print("torchtitan, nanotron's own Llama: no variants (docs/speed.md says why)")
    return names


def world_size(variant: str) -> int:
    tp, dp = LAYOUTS.get(variant, (1, 1))
    return tp * dp


def build(variant: str, work: Work, device: str) -> TakeStep:
    """The function that takes a step, given its number, and returns the loss; in a process of its own."""
    if variant.startswith(OURS):
        return our_step(work, *LAYOUTS.get(variant, (1, 1)))
    return transformers_step(work, variant, device)


def our_step(work: Work, tp: int = 1, dp: int = 1, overrides: tuple[str, ...] = ()) -> TakeStep:
    from nanotron_ext.engine import ParallelContext, initialize_distributed
    from nanotron_ext.train.step import TrainState

    device = initialize_distributed().device
    context = ParallelContext(tp, 1, dp)
    state = TrainState(work.recipe(tp, dp, overrides), context, device)
    return lambda step: state.train_step(work.batch(step, context.replica, dp)).loss


def packed_shape(variant: str, work: Work) -> tuple[int, int]:
    """Rows and tokens of each as the model gets a micro-batch.

    transformers' flash attention takes position ids for document borders in a single row only; with more rows it
    attends over each whole row, which is other work. The other implementations build a mask of the square of a row's
    length, so for them rows stay as they are.
    """
    if variant == FLASH:
        return 1, work.micro_batch_size * work.sequence_length
    return work.micro_batch_size, work.sequence_length


def transformers_step(work: Work, variant: str, device: str) -> TakeStep:
    """Packed samples by their position ids, gradients accumulated, fused AdamW on float32 weights, autocast to bf16."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    from foundation.recipe.architecture import parameters_of
    from nanotron_ext.hf_format import hf_config, to_hf
    from nanotron_ext.model.documents import Documents
    from nanotron_ext.model.init import initial_tensor

    recipe = work.recipe()
    config = SmolLM3Config(**hf_config(recipe.architecture, "float32"))
    model = SmolLM3ForCausalLM._from_config(config, attn_implementation=variant.split()[1].strip(","))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parameters_of(recipe.architecture).values():
            whole = initial_tensor(parameter, recipe.general.seed, recipe.model.init_method.std)
            for hf_name, part in to_hf(parameter, whole):
                parameters[hf_name].copy_(part)
    model.to(device).train()
    embedding = parameters.pop("model.embed_tokens.weight")
    settings = recipe.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": list(parameters.values()), "weight_decay": settings.weight_decay},
            {"params": [embedding], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_eps,
        fused=True,
    )
    run: Any = torch.compile(model) if "compiled" in variant else model
    shape = packed_shape(variant, work)

    def take_step(step: int) -> float:
        batch = work.batch(step)
        total = torch.zeros((), device=device)
        for micro_batch in batch.micro_batches:
            positions = Documents.from_lengths(micro_batch.lengths, device).position_ids.view(shape)
            labels = micro_batch.label_ids.masked_fill(~micro_batch.label_mask, -100).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=work.dtype == "bfloat16"):
                ids = micro_batch.input_ids.view(shape).to(device)
                logits = run(input_ids=ids, position_ids=positions, use_cache=False).logits.view(-1, VOCABULARY)
                loss = cross_entropy(logits.float(), labels, reduction="sum") / batch.trained_tokens
            del logits
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        return float(total)

    return take_step
