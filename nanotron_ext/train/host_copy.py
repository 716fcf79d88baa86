"""Copies of this rank's state in the host's memory, taken while the device goes on computing."""

import torch


class HostCopy:
    """On a GPU the copy goes to page-locked memory, on a stream of its own, beside the next forward and backward pass.

    The optimizer's next update waits for it on the device; `wait` has the host wait. A copy to pageable memory would
    hold up the host, and with it the device, for its whole length. On CPUs `take` returns when all is copied.
    """

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer` is what changes the tensors that are copied."""
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None
        if self._stream is not None:
            optimizer.register_step_pre_hook(self._before_update)

    def take(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Flat float32 copies, one behind the other in one piece of memory; complete after `wait`."""
        sizes = [tensor.numel() for tensor in tensors]
        # torch keeps page-locked memory that is free again for the next copy.
        host = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=self._stream is not None).split(sizes)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # None: no stream
            for copy, tensor in zip(host, tensors, strict=True):
                copy.copy_(tensor.detach(), non_blocking=True)
        if self._stream is not None:
            self._copied = self._stream.record_event()
        return list(host)

    def wait(self) -> None:
        """Until the device has made all copies."""
        if self._copied is not None:
            self._copied.synchronize()

    def _before_update(self, *_: object) -> None:
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
