"""One decision about wandb, for pretraining and post-training: what the user's variables say, else the recipe."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundation.recipe import load_recipe
from foundation.wandb_run import Tracked, TrackingError, wandb_mode
from posttrain.recipe import load_recipe as load_posttraining_recipe

LOADERS = {"pretrain.yaml": load_recipe, "sft.yaml": load_posttraining_recipe}


@pytest.fixture(params=LOADERS)
def with_mode(request: pytest.FixtureRequest) -> object:
    """wandb.mode -> a recipe."""
    load, path = LOADERS[request.param], f"recipes/tiny/{request.param}"
    return lambda mode: load(path, [f"wandb.mode={mode}"])


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of wandb is set, and nobody is logged in."""
    for name in ("MODE", "DISABLED", "API_KEY", "BASE_URL"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One that answers, and that the user is logged in to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield address


@pytest.mark.parametrize(
    ("variables", "in_recipe", "expected"),
    [
        ({}, "auto", "offline"),
        ({}, "disabled", "disabled"),
        ({"WANDB_MODE": "disabled"}, "online", "disabled"),
        ({"WANDB_MODE": "offline"}, "disabled", "offline"),
        ({"WANDB_MODE": "dryrun"}, "auto", "dryrun"),
        ({"WANDB_MODE": ""}, "disabled", "disabled"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "auto", "disabled"),
        ({"WANDB_DISABLED": "false"}, "auto", "offline"),
    ],
)
def test_decision_without_a_login(
    with_mode, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], in_recipe: str, expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(with_mode(in_recipe)) == expected


@pytest.mark.parametrize(
    ("variable", "in_recipe", "expected"),
    [(None, "auto", "online"), ("shared", "disabled", "shared"), ("offline", "online", "offline")],
)
def test_decision_with_a_login(
    with_mode, server: str, monkeypatch: pytest.MonkeyPatch, variable: str | None, in_recipe: str, expected: str
) -> None:
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_mode(with_mode(in_recipe)) == expected


def refused(recipe: Tracked) -> str:
    with pytest.raises(TrackingError) as error:
        wandb_mode(recipe)
    return str(error.value)


def test_what_cannot_be_had_is_refused(with_mode, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(with_mode("online")).startswith("wandb.mode is online, but nobody is logged in")
    monkeypatch.setenv("WANDB_MODE", "online")
    message = refused(with_mode("disabled"))
    assert message.startswith("WANDB_MODE is online, but nobody is logged in") and "WANDB_MODE=offline" in message
    monkeypatch.setenv("WANDB_MODE", "ofline")
    assert "WANDB_MODE is 'ofline'" in refused(with_mode("disabled"))


def test_a_server_of_ones_own_is_asked_with_its_own_login(
    with_mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Post-training took any login at api.wandb.ai for one at the server that was set."""
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert wandb_mode(with_mode("auto")) == "offline"
    assert "nobody is logged in" in refused(with_mode("online"))
