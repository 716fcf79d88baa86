"""The devices that a run can be planned for: data-sheet figures, and the shares of them that kernels reach."""

from dataclasses import dataclass

from foundation.errors import UserError
from nanotron_ext.flops import PEAK_FLOPS_PER_SECOND

# Shares of the data sheet. None was measured with this project's code; each says where it is from.
MATRIX_PRODUCT_SHARE = 0.728  # 720 of an H100's 989 TFLOP/s: what SmolLM3's team measured and sized its run with
ATTENTION_SHARE = 0.35  # FlashAttention-2, forward and backward, head size 128, causal (arXiv 2407.08608, figure 5)
MEMORY_SHARE = 0.85  # of memory bandwidth, elementwise kernels on large tensors
NVLINK_SHARE = 0.8  # all-gather and reduce-scatter of tens of MB within a node
NETWORK_SHARE = 0.875  # 350 of 400 GB/s per node: the all-reduce that SmolLM3's team measured on its 48 nodes
COLLECTIVE_LATENCY_SECONDS = 20e-6
RUNTIME_BYTES = 2.0e9  # CUDA context, libraries and NCCL's buffers

# Everything that the sum of kernels leaves out: launch gaps, stragglers, clock throttling, data, checkpoints. The
# one calibrated constant: it makes the published run (384 H100, 13,500-14,000 tokens/s per GPU) come out at 13,750.
RUN_OVERHEAD = 1.204


@dataclass(frozen=True)
class Device:
    name: str
    peak_flops_per_second: float  # dense bf16
    memory_bytes: float  # what a process can allocate
    memory_bytes_per_second: float
    devices_per_node: int
    node_bytes_per_second: float  # between devices of a node, per device and direction
    network_bytes_per_second: float  # between nodes, per device and direction


def _gpu(name: str, gibibytes: float, memory: float, node: float, network: float) -> Device:
    return Device(name, PEAK_FLOPS_PER_SECOND[name.upper()], gibibytes * 2**30, memory, 8, node, network)


# Memory: what torch sees (an "80 GB" H100 has 79.1 GiB). Networks: 400 Gb/s per GPU (A100: 200, L40S: 100), as clouds
# and DGX systems have them.
GPUS = {
    device.name: device
    for device in (
        _gpu("h100", 79.1, 3.35e12, 450e9, 50e9),
        _gpu("h200", 139.8, 4.8e12, 450e9, 50e9),
        _gpu("a100", 79.2, 2.04e12, 300e9, 25e9),
        _gpu("b200", 178.4, 8.0e12, 900e9, 50e9),
        _gpu("l40s", 44.5, 0.864e12, 32e9, 12.5e9),
    )
}


def find_gpu(name: str) -> Device:
    """Raises UserError for a device without figures."""
    if name.lower() not in GPUS:
        raise UserError(f"--gpu {name}: no figures for this device. Known: {', '.join(GPUS)}, and cpu (measured).")
    return GPUS[name.lower()]
