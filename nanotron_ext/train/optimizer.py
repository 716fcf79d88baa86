"""AdamW over flat float32 buffers, with gradient accumulation, ZeRO-1 and one global gradient norm.

Gradients are *summed*, over micro-batches and replicas alike: the loss is normalised by the global number of trained
tokens before the backward. So a step is: add gradients as they appear and reduce them bucket by bucket (buckets.py),
one norm, one fused AdamW per weight-decay group, and with ZeRO-1 one gather per bucket, beside the next forward
(gathers.py). nanotron's per-parameter loops cost 218 ms of host time per step at 192 replicas.
"""

import contextlib
from collections.abc import Iterator

import torch

from foundation.recipe.schema import Optimizer as OptimizerSection
from nanotron_ext.engine import ParallelContext, dist
from nanotron_ext.model.naming import GlobalParameter, global_parameters
from nanotron_ext.model.smollm3 import SmolLM3ForTraining
from nanotron_ext.train.buckets import FlatGroup, GradientCollector, Slot
from nanotron_ext.train.gathers import Waiting, WeightGathers


class Optimizer:
    """The optimizer of one rank. `step` does everything between the backward and the next forward."""

    def __init__(
        self,
        model: SmolLM3ForTraining,
        section: OptimizerSection,
        context: ParallelContext,
        waiting: Waiting = contextlib.nullcontext,
    ) -> None:
        """`waiting` is entered around each wait of a forward pass for new weights."""
        self.context = context
        self.clip_grad = section.clip_grad
        self.moments = section.moments
        self.sharded = section.zero_stage == 1 and context.dp_pg.size() > 1
        shard_over, shard_rank = (context.dp_pg.size(), dist.get_rank(context.dp_pg)) if self.sharded else (1, 0)
        self.groups = [
            FlatGroup(entries, decay, shard_over, shard_rank)
            for decay, entries in _decay_groups(model, section)
            if entries
        ]
        self.adam = torch.optim.AdamW(
            [{"params": [group.master], "weight_decay": group.weight_decay} for group in self.groups],
            lr=0.0,
            betas=(section.adam_beta1, section.adam_beta2),
            eps=section.adam_eps,
            fused=section.torch_adam_is_fused,
        )
        names = [entry.name for entry in global_parameters(model)]
        self._gradients = GradientCollector(self.groups, names, context, self.sharded)
        self._gathers = WeightGathers(model, self.groups, context, waiting) if self.sharded else None

    def start_step(self, micro_batches: int) -> None:
        """To be called before the first of so many backward passes."""
        self._gradients.start(micro_batches)

    def reduce_gradients(self) -> torch.Tensor:
        """Sum gradients over replicas and tied copies; returns the global gradient norm, a float32 scalar.

        Afterwards each group's `master.grad` holds this rank's shard of the summed gradients.
        """
        self._gradients.finish()
        squares = torch.stack([_counted_square(group) for group in self.groups]).sum()
        if not self.sharded:
            squares /= self.context.dp_pg.size()  # every replica has all of it
        # Over all ranks at once: sums of several groups may differ in the last bit, and then replicas would, for good.
        dist.all_reduce(squares, group=self.context.world_pg)
        return squares.sqrt()

    def step(self, learning_rate: float, grad_norm: float) -> None:
        """Clip to the global norm, update masters, and hand the new values to the model."""
        self.wait_for_weights()
        factor = 1.0 if self.clip_grad is None else self.clip_grad / (grad_norm + 1e-6)
        for parameters, group in zip(self.adam.param_groups, self.groups, strict=True):
            parameters["lr"] = learning_rate
            if factor < 1.0:  # known on the host by now, so that most steps need no pass over the gradients
                assert group.master.grad is not None
                group.master.grad.mul_(factor)
        self.adam.step()
        self.masters_to_model()

    def state(self, kind: str) -> Iterator[tuple[Slot, int, torch.Tensor]]:
        """Per parameter: its slot, the first element of it in this rank's shard, and that part of the state, flat.

        `kind` is one of the recipe's `Optimizer.state_kinds`. The tensors are views: writing to them changes the state.
        """
        for group in self.groups:
            yield from group.parts(group.master if kind == "master" else self._adam_state(group)[kind])

    def flat_state(self, group: FlatGroup) -> list[torch.Tensor]:
        """This rank's shard of each kind of state, as `state` yields it parameter by parameter."""
        return [group.master, *(self._adam_state(group)[kind] for kind in self.moments)]

    def set_steps_taken(self, steps: int) -> None:
        """After loading state: how many updates it has seen, for Adam's bias correction."""
        for group in self.groups:
            self._adam_state(group)["step"].fill_(steps)

    def masters_to_model(self) -> None:
        """Give the model the values of the masters, rounded to its dtype; with ZeRO-1 before each layer's next pass."""
        if self._gathers is not None:
            self._gathers.start()
            return
        for group in self.groups:
            if group.master is not group.params:
                group.params.copy_(group.master)

    def wait_for_weights(self) -> None:
        """Have the model hold the masters' values now, for whoever reads them outside of a forward pass.

        To be called on all ranks: it sends what is not yet under way.
        """
        if self._gathers is not None:
            self._gathers.finish()

    def _adam_state(self, group: FlatGroup) -> dict[str, torch.Tensor]:
        """torch creates the state at the first step; a load needs it before."""
        state = self.adam.state[group.master]
        if not state:
            fused = self.adam.defaults["fused"]
            device = group.master.device if fused else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state.update({kind: torch.zeros_like(group.master) for kind in self.moments})
        return state


def _counted_square(group: FlatGroup) -> torch.Tensor:
    assert group.master.grad is not None
    return torch.linalg.vector_norm(group.master.grad[group.counted_shard]).square()


def _decay_groups(model: SmolLM3ForTraining, section: OptimizerSection) -> list[tuple[float, list[GlobalParameter]]]:
    """(weight decay, parameters) for those with decay and those whose name an exclusion matches."""
    decayed: list[GlobalParameter] = []
    excluded: list[GlobalParameter] = []
    for entry in global_parameters(model):
        (decayed if section.has_weight_decay(entry.name) else excluded).append(entry)
    return [(section.weight_decay, decayed), (0.0, excluded)]
