"""How fast a step was: what its attention cost, and the hardware's peak that its FLOPs are a share of (MFU)."""

import time

import torch

from nanotron_ext.data.loader import StepBatch
from nanotron_ext.engine import dist
from nanotron_ext.flops import PEAK_FLOPS_PER_SECOND


def squared_document_lengths(batch: StepBatch) -> int:
    """Sum of n^2 over the documents of this replica's micro-batches."""
    return sum(length * length for micro_batch in batch.micro_batches for length in micro_batch.lengths)


def peak_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Peak of all devices of the run together.

    GPUs: the data sheet's. CPUs have no such figure: there it is what one matrix product achieves in every process at
    the same time, measured now (0.2 s).
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = next((peak for part, peak in PEAK_FLOPS_PER_SECOND.items() if part in name), float("nan"))
        return peak * dist.get_world_size()
    measured = torch.tensor(_matrix_product_rate(dtype))
    dist.all_reduce(measured, group=torch.distributed.group.WORLD)
    return float(measured)


def _matrix_product_rate(dtype: torch.dtype, size: int = 512, seconds: float = 0.2) -> float:
    matrix = torch.randn(size, size).to(dtype)
    torch.mm(matrix, matrix)
    torch.distributed.barrier()
    start, products = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        torch.mm(matrix, matrix)
        products += 1
    return products * 2 * size**3 / elapsed
