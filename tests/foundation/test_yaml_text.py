"""YAML that never ends, grows without bound, or asks for objects; and that plain values are PyYAML's own."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from datapipes.registry import load_registry
from foundation.errors import UserError
from foundation.recipe import load_recipe
from foundation.recipe.loading import read_tree
from foundation.yaml_text import YamlTextError, load
from jobs.plan import Folders
from jobs.scheduler import load_cluster_settings
from report.collect import _training

LAUGHS = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
HOSTILE = {
    "an alias in itself": ("a: &a [*a]\n", "nested in more than|recursive"),
    "a mapping in itself": ("a: &a {b: *a}\n", "nested in more than|recursive"),
    "aliases of aliases": (LAUGHS, "more than 100,000 entries"),
    "deep lists": ("a: " + "[" * 5000 + "]" * 5000, "nested in more than 50|exceeded"),
    "deep lists that never end": ("a: " + "[" * 5000, "nested in more than 50|exceeded|expected"),
    "sixty levels": ("a: " + "[" * 60 + "]" * 60, "nested in more than 50"),
    "deep mappings": ("a: " + "{a: " * 5000 + "}" * 5000, "nested in more than 50|exceeded"),
    "deep blocks": ("".join(" " * n + "a:\n" for n in range(3000)), "nested in more than 50|exceeded|characters"),
    "an object": ("a: !!python/object/apply:os.system [true]\n", "the tag .* is none of a plain value"),
    "a name of Python's": ("a: !!python/name:os.system\n", "the tag .* is none of a plain value"),
    "a tag of its own": ("a: !mine 1\n", "the tag '!mine' is none"),
    "a tag of a mapping": ("a: !mine {b: 1}\n", "the tag '!mine' is none"),
    "binary": ("a: !!binary aGk=\n", "the tag .* is none"),
    "a set": ("a: !!set {b, c}\n", "the tag .* is none"),
    "no date": ("a: 2001-99-99\n", "month must be in|range"),
    "no number": ("a: !!int x\n", "invalid literal"),
    "no binary number": ("a: 0b_\n", "invalid literal"),
    "a long number": ("a: " + "1" * 5000 + "\n", "Exceeds the limit"),
    "a key that is a list": ("? [a, b]\n: 1\n", "a key is no text"),
    "a key that is an alias": ("a: &a [x]\n? *a\n: 1\n", "a key is no text"),
    "half a pair": ("a: \ud800\n", "surrogates not allowed"),
    "control characters": ("a: \x07\n", "not allowed|control"),
    "too long": ("#" + "a" * 1_000_001, "more than 1,000,000 characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_refused_at_once(name: str) -> None:
    text, message = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(YamlTextError, match=message):
        load(text)
    assert time.process_time() - started < 1


def _recipe(folder: Path) -> None:
    load_recipe(folder / "file.yaml")


DOORS: dict[str, Callable[[Path], object]] = {
    "recipe": _recipe,
    "keys of a chain": lambda folder: read_tree(folder / "file.yaml"),
    "cluster settings": lambda folder: load_cluster_settings(
        Folders((folder / "file.yaml").rename(folder / "cluster.yaml").parent, folder)
    ),
    "sources": load_registry,
    "report": lambda folder: _training(folder),
    "override": lambda folder: load_recipe(
        "recipes/tiny/pretrain.yaml", [f"general={(folder / 'file.yaml').read_text(errors='surrogatepass')}"]
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_says_so_in_a_sentence(door: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(HOSTILE[name][0], errors="surrogatepass")
    if door == "report":
        (tmp_path / "file.yaml").rename(tmp_path / "recipe.yaml")
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    with pytest.raises(UserError) as refusal:
        DOORS[door](tmp_path)
    assert len(str(refusal.value)) < 3000 + len(HOSTILE[name][0])


@pytest.mark.parametrize(
    "variable", ["[*a]", "!!python/name:os.system", "[" * 3000, "2001-99-99", "1" * 5000, "{a: &b [*b]}"]
)
def test_variables_of_the_environment_are_read_as_bounded(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUE", variable)
    (tmp_path / "file.yaml").write_text("general: ${VALUE}\n")
    with pytest.raises(UserError):
        load_recipe(tmp_path / "file.yaml")


ORDINARY = """
a: [1, 2.5, -3, 0x1f, 1_000, .5, true, no, ~, null, "x", 'y', plain text, 2026-11-26, 12:30:45]
b: &anchor {c: 1, d: [e, f]}
g: *anchor
h: |
  lines
  of text
i: >-
  folded
  text
"""


def test_ordinary_values_are_those_of_pyyaml() -> None:
    """But for numbers such as 1e-8, which YAML 1.1 takes for text."""
    assert load(ORDINARY) == yaml.safe_load(ORDINARY)
    assert load("a: 1e-8") == {"a": 1e-8} and yaml.safe_load("a: 1e-8") == {"a": "1e-8"}
    assert load("") is None and load("a") == "a"
    for file in [*Path("recipes").rglob("*.yaml"), *Path("datapipes/sources").glob("*.yaml")]:
        assert load(file.read_text()).keys() == yaml.safe_load(file.read_text()).keys()
