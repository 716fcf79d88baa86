"""The program that torchrun starts, before it has read a recipe."""

import os

import pytest

from nanotron_ext.train import __main__ as program


@pytest.mark.parametrize("given", [{}, {"PYTORCH_CUDA_ALLOC_CONF": "x"}, {"PYTORCH_ALLOC_CONF": "y"}])
def test_the_allocators_segments_grow_unless_the_user_says_otherwise(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(program, "StopSignal", lambda ends_at_once: None)
    monkeypatch.setattr("sys.argv", ["train", "none.yaml"])
    assert program.main() == 2
    found = {name: os.environ[name] for name in os.environ if name.endswith("ALLOC_CONF")}
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    assert found == (given or {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})
