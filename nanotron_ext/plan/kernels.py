"""Seconds of the kernels of a step: from a GPU's figures here, measured on the spot in `cpu.py`."""

from dataclasses import dataclass
from typing import Protocol

from nanotron_ext.plan import devices
from nanotron_ext.plan.devices import Device

# Bytes that eager elementwise kernels move, forward and backward, in elements of the model's dtype per element (reads +
# writes): counted from the operations of model/smollm3.py.
_NORM_PASSES = 5  # forward 1 + 1, backward 2 + 1
_RESIDUAL_PASSES = 6  # forward 2 + 1, and the sum of two gradients in the backward
_GATED_PASSES = 18  # of width ff: silu, product; their backward; gradients of gate and up joined
_SPLIT_PASSES = 2  # gradients of queries, keys and values joined
_ROTARY_BYTES = 92  # per element, computed in float32: casts, four products, two sums, join; the same backward
_LOGIT_BYTES = 52  # per logit: cast, maximum, shift, exponential, sum, two scalings, cast back
_HEAD_GRADIENT_BYTES = 10  # per element of the head and chunk of tokens: float32 sum over chunks
_ADAM_BYTES = 40  # per float32 master: gradient norm, clipping, AdamW
_MODEL_COPY_BYTES = 10  # per parameter: masters to weights, gradients to zero


class Kernels(Protocol):
    """Seconds of forward and backward together; `rows` are tokens, all shapes those of one rank."""

    def linear(self, rows: int, inputs: int, outputs: int) -> float: ...
    def attention(
        self, rows: int, heads: int, kv_heads: int, head_dim: int, has_rope: bool, document_tokens: int
    ) -> float:
        """Everything between the two linear layers: split, rotation, attention within documents."""
        ...

    def norm(self, rows: int, width: int) -> float: ...
    def residual(self, rows: int, width: int) -> float: ...
    def gated(self, rows: int, width: int) -> float: ...
    def embedding(self, rows: int, hidden_size: int, vocabulary: int) -> float: ...
    def head_and_loss(self, rows: int, hidden_size: int, vocabulary: int, chunk_rows: int) -> float: ...
    def accumulate(self, elements: int) -> float:
        """Gradients of one micro-batch added to the float32 buffer."""
        ...

    def update(self, elements: int, masters: int) -> float:
        """Norm, clipping, AdamW on `masters` elements; new weights and cleared gradients for `elements`."""
        ...


@dataclass(frozen=True)
class GpuKernels:
    """A roofline: matrix products at a share of the peak, everything else at a share of memory bandwidth."""

    device: Device
    element_bytes: int

    def linear(self, rows: int, inputs: int, outputs: int) -> float:
        return 6 * rows * inputs * outputs / (self.device.peak_flops_per_second * devices.MATRIX_PRODUCT_SHARE)

    def attention(
        self, rows: int, heads: int, kv_heads: int, head_dim: int, has_rope: bool, document_tokens: int
    ) -> float:
        flops = 6 * rows * document_tokens * heads * head_dim
        rotated = rows * (heads + kv_heads) * head_dim if has_rope else 0
        split = rows * (heads + 2 * kv_heads) * head_dim * _SPLIT_PASSES * self.element_bytes
        products = flops / (self.device.peak_flops_per_second * devices.ATTENTION_SHARE)
        return products + self._moved(rotated * _ROTARY_BYTES + split)

    def norm(self, rows: int, width: int) -> float:
        return self._moved(rows * width * _NORM_PASSES * self.element_bytes)

    def residual(self, rows: int, width: int) -> float:
        return self._moved(rows * width * _RESIDUAL_PASSES * self.element_bytes)

    def gated(self, rows: int, width: int) -> float:
        return self._moved(rows * width * _GATED_PASSES * self.element_bytes)

    def embedding(self, rows: int, hidden_size: int, vocabulary: int) -> float:
        # Rows read and written; in the backward a gradient of the whole table is cleared, and rows are added to it.
        return self._moved((5 * rows + vocabulary) * hidden_size * self.element_bytes)

    def head_and_loss(self, rows: int, hidden_size: int, vocabulary: int, chunk_rows: int) -> float:
        chunks = -(-rows // chunk_rows)
        moved = rows * vocabulary * _LOGIT_BYTES + chunks * vocabulary * hidden_size * _HEAD_GRADIENT_BYTES
        return self.linear(rows, hidden_size, vocabulary) + self._moved(moved)

    def accumulate(self, elements: int) -> float:
        return self._moved(elements * (8 + self.element_bytes))

    def update(self, elements: int, masters: int) -> float:
        return self._moved(masters * _ADAM_BYTES + elements * _MODEL_COPY_BYTES)

    def _moved(self, size_bytes: float) -> float:
        return size_bytes / (self.device.memory_bytes_per_second * devices.MEMORY_SHARE)


class Links(Protocol):
    """Seconds of communication; `group` processes, of which `per_node` lie on one node."""

    def gather(self, size_bytes: float, group: int, per_node: int) -> float:
        """All-gather or reduce-scatter of `size_bytes` in all."""
        ...

    def send(self, size_bytes: float, same_node: bool) -> float: ...


@dataclass(frozen=True)
class GpuLinks:
    """Latency plus volume over bandwidth: NVLink within a node, one network card per GPU between nodes."""

    device: Device

    def gather(self, size_bytes: float, group: int, per_node: int) -> float:
        if group == 1:
            return 0.0
        within, between = self._bandwidths()
        volume = size_bytes * (group - 1) / group
        if group <= per_node:
            return devices.COLLECTIVE_LATENCY_SECONDS + volume / within
        # Hierarchical: all cards of the group's members on a node carry its share at the same time.
        nodes = -(-group // per_node)
        hops = devices.COLLECTIVE_LATENCY_SECONDS * nodes
        return hops + max(volume / (per_node * between), volume / within)

    def send(self, size_bytes: float, same_node: bool) -> float:
        within, between = self._bandwidths()
        return devices.COLLECTIVE_LATENCY_SECONDS + size_bytes / (within if same_node else between)

    def _bandwidths(self) -> tuple[float, float]:
        within = self.device.node_bytes_per_second * devices.NVLINK_SHARE
        return within, self.device.network_bytes_per_second * devices.NETWORK_SHARE
