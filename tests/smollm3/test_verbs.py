"""Every verb of `smollm3` explains itself, suggests what was meant, and says errors in one sentence."""

import subprocess
import sys

import pytest

from smollm3.command_line import VERBS, main

NAMES = [verb.name for verbs in VERBS.values() for verb in verbs]


@pytest.mark.parametrize("verb", NAMES)
def test_help_explains_the_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: smollm3 {verb}") and len(text.splitlines()) > 6, text


@pytest.mark.parametrize("verb", [name for name in NAMES if name != "submit"])  # which hands options to the scheduler
def test_an_unknown_option_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--no-such-option"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_without_a_verb_the_chain_is_shown_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n  {name} ") for name in NAMES]
    assert places == sorted(places)


def test_an_unknown_verb_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completoin"]) == 2
    assert "Did you mean 'completion'?" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_the_verbs(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_SMOLLM3_COMPLETE" in capsys.readouterr().out


def test_help_loads_no_library_of_the_chain() -> None:
    code = "import sys; from smollm3.command_line import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert not [name for name in ("torch", "transformers", "pydantic", "datatrove") if f"'{name}'" in loaded]
