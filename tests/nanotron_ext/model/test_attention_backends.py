"""Kernels are taken because they work here, not because a package of their name is installed.

The packages are doubles, as no GPU is needed to see which of them training would take; tests/compat holds their
signatures to the real ones. They compute on float64 matrices with a mask written out.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanotron_ext.model import attention_backends
from nanotron_ext.model.attention_backends import AttentionShape, choose_attention, problem_of

SHAPE = AttentionShape(heads=4, kv_heads=2, head_dim=16)
CPU = torch.device("cpu")


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    aligned_at_end: bool = True,
    sees_others: bool = False,
) -> torch.Tensor:
    """What flash-attn's function of this name computes, by its documentation; or a mistake."""
    query, key = torch.arange(len(q)), torch.arange(len(k))
    borders_q, borders_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    assert max_seqlen_q == max(b - a for a, b in itertools.pairwise(borders_q))
    assert max_seqlen_k == max(b - a for a, b in itertools.pairwise(borders_k))
    document_q = torch.bucketize(query, cu_seqlens_q[1:], right=True)
    document_k = torch.bucketize(key, cu_seqlens_k[1:], right=True)
    starts_q, starts_k = cu_seqlens_q[document_q], cu_seqlens_k[document_k]
    place_q, place_k = query - starts_q, key - starts_k
    if aligned_at_end:
        lengths = (cu_seqlens_k.diff() - cu_seqlens_q.diff())[document_q]
        place_q = place_q + lengths
    seen = document_q[:, None] == document_k[None]
    if causal:
        seen &= place_k[None] <= place_q[:, None]
    if sees_others:
        seen = torch.ones_like(seen).tril(len(k) - len(q))
    groups = q.shape[1] // k.shape[1]
    wide = k.double().repeat_interleave(groups, 1), v.double().repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), wide[0]) / math.sqrt(q.shape[2])
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, wide[1]).to(q.dtype)


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] / 2


def raising(*_: object, **__: object) -> torch.Tensor:
    raise RuntimeError("no kernel image is available for execution on the device")


BROKEN: dict[str, Callable[..., torch.Tensor]] = {
    "aligned at the beginning": lambda *a, **k: varlen(*a, **k, aligned_at_end=False),
    "sees other documents": lambda *a, **k: varlen(*a, **k, sees_others=True),
    "not causal": lambda *a, causal: varlen(*a),
    "not a number": lambda *a, **k: varlen(*a, **k) * torch.nan,
    "half a gradient": lambda *a, **k: _HalfGradient.apply(varlen(*a, **k)),
    "no gradient": lambda *a, **k: varlen(*a, **k).detach(),
    "another shape": lambda *a, **k: varlen(*a, **k)[:-1],
    "raises": raising,
}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels for CUDA devices are tried on the CPU."""
    tried = problem_of
    monkeypatch.setattr(attention_backends, "problem_of", lambda m, f, _, *rest: tried(m, f, CPU, *rest))
    choose_attention.cache_clear()
    yield
    choose_attention.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, module: str, function: Callable[..., Any]) -> None:
    double = SimpleNamespace(flash_attn_varlen_func=function, __spec__=SimpleNamespace(name=module))
    monkeypatch.setitem(__import__("sys").modules, module, double)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["flash_attn", "flash_attn_interface"])
def test_a_kernel_that_works_is_taken(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, module, varlen)
    expected = {"flash_attn": "flash_attn", "flash_attn_interface": "flash_attn_3"}[module]
    assert choose_attention("cuda", torch.bfloat16, SHAPE)[0] == expected
    assert choose_attention("cuda", torch.float32, SHAPE)[0] == "per_document"  # they have none for float32
    assert choose_attention("cpu", torch.bfloat16, SHAPE)[0] == "per_document"


def test_the_newer_one_comes_first_and_may_give_the_log_sum_exp_too(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn", varlen)
    install(monkeypatch, "flash_attn_interface", lambda *a, **k: (varlen(*a, **k), torch.zeros(1)))
    assert choose_attention("cuda", torch.bfloat16, SHAPE)[0] == "flash_attn_3"


@pytest.mark.parametrize("fault", BROKEN)
def test_one_that_does_not_work_is_left_out_with_the_reason(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, "flash_attn_interface", BROKEN[fault])
    install(monkeypatch, "flash_attn", varlen)
    with caplog.at_level(logging.WARNING):
        assert choose_attention("cuda", torch.bfloat16, SHAPE)[0] == "flash_attn"
    assert "Attention does not use flash_attn_3: " in caplog.text
    assert ("no kernel image" in caplog.text) == (fault == "raises")
    assert ("differ from the reference by up to" in caplog.text) == (
        fault not in ("raises", "no gradient", "another shape")
    )


def test_a_package_built_against_another_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c105')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        name, function = choose_attention("cuda", torch.bfloat16, SHAPE)
    assert (name, function) == ("per_document", attention_backends.attend_per_document)
    assert "does not use flash_attn: ImportError: undefined symbol: _ZN3c105" in caplog.text
    assert "does not use torch_varlen: " in caplog.text  # it has no kernel for CPUs
    assert "each document by itself" in caplog.text


def test_the_reference_agrees_with_matrices_in_float64() -> None:
    assert problem_of("torch", attention_backends.attend_per_document, CPU, torch.float32, SHAPE) is None
    reference = problem_of("torch", lambda q, k, v, block: varlen(
        q, k, v, block.cu_seqlens_q, block.cu_seqlens_k, max(block.query_lengths), max(block.key_lengths), causal=True
    ), CPU, torch.float32, SHAPE)  # fmt: skip
    assert reference is None
