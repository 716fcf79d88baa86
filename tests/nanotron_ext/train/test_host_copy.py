"""A copy for a checkpoint holds the state as it was, whatever the next update does to it."""

import pytest
import torch

from nanotron_ext.train.host_copy import HostCopy


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_copy_is_of_the_state_before_the_next_update(device: str) -> None:
    """On a GPU the copy is still under way when the update is launched."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    place = torch.device(device)
    weights = torch.nn.Parameter(torch.arange(100_000_000 if device == "cuda" else 1000, device=place).float())
    before = weights.detach().cpu().clone()
    adam = torch.optim.AdamW([weights], lr=1.0)
    copy = HostCopy(place, adam)
    parts = copy.take([weights.detach()[:300], weights.detach()[300:]])
    weights.grad = torch.ones_like(weights)
    adam.step()
    copy.wait()
    assert [part.numel() for part in parts] == [300, len(before) - 300]
    assert torch.equal(torch.cat(parts), before)
    assert all(part.is_pinned() == (device == "cuda") for part in parts)
    assert not torch.equal(weights.detach().cpu(), before)
    assert parts[1].data_ptr() == parts[0].data_ptr() + 4 * 300  # one piece of memory, written as it lies
