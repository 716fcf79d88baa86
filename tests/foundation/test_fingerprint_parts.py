"""Fingerprints: equal for equal contents, and which kinds differ, in words."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from foundation.fingerprint import fingerprint, versions


@dataclass(frozen=True)
class Dataset:
    name: str


def test_the_order_of_keys_does_not_count_the_order_of_a_list_does() -> None:
    one = fingerprint({"recipe": {"a": 1, "b": Path("x")}, "code": ["a", "b"]})
    assert one.total == fingerprint({"code": ["a", "b"], "recipe": {"b": "x", "a": 1}}).total
    assert one.total != fingerprint({"recipe": {"a": 1, "b": "x"}, "code": ["b", "a"]}).total


def test_kinds_that_differ_are_named_also_those_that_only_one_has() -> None:
    then = fingerprint({"recipe": 1, "code": Dataset("a"), "data": 3})
    now = fingerprint({"recipe": 2, "code": Dataset("a"), "versions": {}})
    assert now.changes_since(then.parts) == "recipe, versions, data"
    assert now.changes_since(now.parts) == ""


def test_a_value_whose_text_changes_from_run_to_run_is_refused() -> None:
    with pytest.raises(TypeError, match="no form in JSON"):
        fingerprint({"code": object()})


def test_versions_are_those_that_are_installed() -> None:
    import torch

    found = versions(["torch", "no-such-package"])
    assert list(found) == ["torch"] and torch.__version__.startswith(found["torch"].partition("+")[0])
