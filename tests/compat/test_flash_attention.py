"""Calls of the flash-attention kernels against the signatures in flash-attn's own sources, which no CPU can run."""

import ast
import inspect
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanotron_ext.model.attention_backends import KERNELS
from nanotron_ext.model.documents import query_block
from tests.compat.environments import CACHE

pytestmark = pytest.mark.compat

NAME = "flash_attn_varlen_func"
SOURCES = {"flash_attn": "flash_attn/flash_attn_interface.py", "flash_attn_3": "hopper/flash_attn_interface.py"}


@pytest.fixture(scope="module")
def sources() -> Path:
    """The archive of the release that constraints-cuda.txt pins."""
    [pin] = [line for line in Path("constraints-cuda.txt").read_text().split("\n") if line.startswith("flash-attn==")]
    folder = CACHE / pin.replace("==", "-")
    if not list(folder.glob("*.tar.gz")):
        command = ("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder), pin)
        environment = os.environ | {"FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}
        subprocess.run([sys.executable, "-m", "pip", "--quiet", *command], env=environment, check=True)
    [archive] = folder.glob("*.tar.gz")
    return archive


def function_of(archive: Path, path: str) -> Callable[..., None]:
    """A function that does nothing, with the parameters of the one in the archive."""
    with tarfile.open(archive) as tar:
        [member] = [member for member in tar.getmembers() if member.name.partition("/")[2] == path]
        file = tar.extractfile(member)
        assert file is not None
        tree = ast.parse(file.read())
    [definition] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == NAME]
    definition.body, definition.decorator_list, definition.returns = [ast.Pass()], [], None
    for argument in (*definition.args.args, *definition.args.kwonlyargs):
        argument.annotation = None
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.fix_missing_locations(ast.Module([definition], [])), path, "exec"), names)
    function: Callable[..., None] = names[NAME]
    return function


@pytest.mark.parametrize("kernel", SOURCES)
def test_the_call_means_what_it_should(kernel: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = inspect.signature(function_of(sources, SOURCES[kernel]))
    bound: list[dict[str, Any]] = []

    def record(*arguments: Any, **named: Any) -> torch.Tensor:
        bound.append(real.bind(*arguments, **named).arguments)
        return torch.zeros(1)

    module, attend = KERNELS[kernel]
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{NAME: record}))  # type: ignore[arg-type]
    q, k = torch.zeros(133, 4, 16), torch.zeros(200, 2, 16)
    attend(q, k, k, query_block(slice(67, 200), 0, [0, 130, 131, 200], "cpu"))
    [call] = bound
    assert call.pop("q") is q and call.pop("k") is k and call.pop("v") is k
    assert call.pop("cu_seqlens_q").tolist() == [0, 63, 64, 133]
    assert call.pop("cu_seqlens_k").tolist() == [0, 130, 131, 200]
    assert call == {"max_seqlen_q": 69, "max_seqlen_k": 130, "causal": True}
