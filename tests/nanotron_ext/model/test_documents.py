"""No document sees another: not in a logit, not in a gradient, not in the last bit."""

import pytest
import torch

from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.model.build import build_model
from nanotron_ext.model.documents import Documents
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import small_recipe

LENGTHS = [5, 7, 4]
OF_B = slice(5, 12)


def logits_and_gradients_of_b(first_token: int, lengths: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of the middle document, and every parameter's gradient of its loss, for given other documents."""
    device = initialize_distributed().device
    model = build_model(small_recipe(), ParallelContext(1, 1, 1), device)
    ids = torch.arange(16) + 20
    ids[:5] = first_token + torch.arange(5)
    ids[12:] = first_token
    documents = Documents.from_lengths(lengths)
    weights = torch.zeros(16)
    weights[5:11] = 1.0  # the label of B's last token is C's first
    model(input_ids=ids, label_ids=ids.roll(-1), label_weights=weights, documents=documents)["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    with torch.no_grad():
        return model.logits(ids, documents)[OF_B], gradients


@pytest.mark.parametrize("other_tokens", [1, 50, 80])
def test_other_documents_change_nothing_to_the_bit(other_tokens: int) -> None:
    [(logits, gradients)] = run_ranks(logits_and_gradients_of_b, 1, 3, LENGTHS)
    [(other_logits, other_gradients)] = run_ranks(logits_and_gradients_of_b, 1, other_tokens, LENGTHS)
    assert torch.equal(logits, other_logits)
    assert gradients.keys() == other_gradients.keys()
    assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients.values()) > 1.0


def test_without_the_mask_they_do_change() -> None:
    [(logits, gradients)] = run_ranks(logits_and_gradients_of_b, 1, 3, [16])
    [(other_logits, other_gradients)] = run_ranks(logits_and_gradients_of_b, 1, 50, [16])
    assert not torch.equal(logits, other_logits)
    assert not all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)
