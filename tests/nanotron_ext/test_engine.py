"""The bridge to nanotron: its version guard, its groups' time-outs, the one defect that gives wrong numbers without it,
and that ranks on GPUs and on CPUs do not start together."""

import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch

from nanotron_ext.engine import (
    ParallelContext,
    TensorParallelLinearMode,
    dist,
    initialize_distributed,
    require_supported_nanotron,
)
from nanotron_ext.model.build import build_model
from nanotron_ext.model.linear import RowLinear
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import small_recipe


def test_another_nanotron_is_refused() -> None:
    require_supported_nanotron("0.4")
    for version in ("0.3", "0.4.1", "0.5", "1.0"):
        with pytest.raises(RuntimeError, match=rf"nanotron {version} is installed.*pip install nanotron==0\.4"):
            require_supported_nanotron(version)


def test_the_bridge_imports_in_a_fresh_process_without_flash_attn() -> None:
    script = "import sys, nanotron_ext.engine; print('flash_attn' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def row_linear_gradients(asynchronous: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of a row-parallel layer: of its input, gathered over features, and of its own weight rows."""
    initialize_distributed()
    group = ParallelContext(3, 1, 1).tp_pg
    rank = dist.get_rank(group)
    x, weight, target = whole_tensors()
    layer = RowLinear(
        12, 6, pg=group, mode=TensorParallelLinearMode.REDUCE_SCATTER, bias=False, async_communication=asynchronous
    ).double()
    columns = slice(rank * 4, rank * 4 + 4)
    with torch.no_grad():
        layer.weight.copy_(weight[:, columns])
    own = x[:, columns].clone().requires_grad_()
    out = layer(own)
    (out * target.chunk(3)[rank]).sum().backward()
    assert own.grad is not None and layer.weight.grad is not None
    return own.grad, layer.weight.grad


def whole_tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((9, 12), (6, 12), (9, 6))
    x, weight, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, weight, target


@pytest.mark.parametrize("asynchronous", [True, False])
def test_row_linear_gradients_equal_the_unsharded_layer(asynchronous: bool) -> None:
    per_rank = run_ranks(row_linear_gradients, 3, asynchronous)
    x, weight, target = whole_tensors()
    x.requires_grad_()
    weight.requires_grad_()
    (torch.nn.functional.linear(x, weight) * target).sum().backward()
    torch.testing.assert_close(torch.cat([grad_x for grad_x, _ in per_rank], dim=1), x.grad)
    torch.testing.assert_close(torch.cat([grad_w for _, grad_w in per_rank], dim=1), weight.grad)


def time_outs() -> list[timedelta]:
    """Of all process groups that exist once there is a model."""
    recipe = small_recipe(parallelism={"tp": 2, "pp": 2})
    device = initialize_distributed().device
    build_model(recipe, ParallelContext(2, 2, 1), device)
    groups = torch.distributed.distributed_c10d._world.pg_map
    return [group._get_backend(device).options._timeout for group in groups]


def test_no_group_keeps_nanotrons_ten_minutes() -> None:
    for of_rank in run_ranks(time_outs, 4):
        assert len(of_rank) > 4 and set(of_rank) == {timedelta(minutes=60)}


def start_with_a_gpu(victims: list[int]) -> None:
    if int(os.environ["RANK"]) in victims:
        torch.cuda.is_available = lambda: True  # type: ignore[method-assign]
    initialize_distributed()


@pytest.mark.parametrize(
    ("with_gpu", "message"),
    [
        ([0], r"Torch finds a GPU for rank 0 on HOST, but none for the other ranks\."),
        ([0, 1], r"Torch finds no GPU for rank 2 on HOST, but one for the other ranks\."),
    ],
)
def test_ranks_with_and_without_a_gpu_do_not_start(with_gpu: list[int], message: str) -> None:
    """Not even those that are all right: their first collective operation would never end."""
    with pytest.raises(RuntimeError, match=r"rank 0 failed(.|\n)*" + message.replace("HOST", socket.gethostname())):
        run_ranks(start_with_a_gpu, 3, with_gpu, timeout_seconds=20)
