"""Which model and which seeds a command line means."""

from pathlib import Path

import click
import pytest

from jobs.profile import Profile
from smollm3.models import final_model, model_folder, model_or_hub_name
from smollm3.options import ArgumentError, Seeds


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    for name in ("midtrain", "sft", "apo"):
        (tmp_path / "hf" / name).mkdir(parents=True)
        (tmp_path / "hf" / name / "config.json").write_text("{}")
    return Profile(Path("recipes/tiny"), tmp_path)


def test_a_model_is_a_folder_or_a_name_of_the_run(profile: Profile) -> None:
    folder = profile.run / "hf" / "sft"
    assert model_folder(profile, str(folder)) == model_folder(profile, "sft") == folder
    with pytest.raises(ArgumentError, match=r"There is no model folder stf\. Did you mean .*/hf/sft\?"):
        model_folder(profile, "stf")
    with pytest.raises(ArgumentError, match=r"There is no model folder .*/hf/merged\. .*hf has apo, midtrain, sft\."):
        final_model(profile)
    with pytest.raises(ArgumentError, match=r"There is none in .*/nothing/hf either"):
        model_folder(Profile(profile.recipes, profile.run / "nothing"), "sft")


def test_a_hub_name_is_left_to_the_hub_and_a_path_is_not(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_or_hub_name(profile, "owner/name") == "owner/name"
    assert model_or_hub_name(profile, "apo") == str(profile.run / "hf" / "apo")
    monkeypatch.chdir(profile.run)
    for path in ("hf/stf", "./stf", "/no/such", "stf"):
        with pytest.raises(ArgumentError):
            model_or_hub_name(profile, path)


@pytest.mark.parametrize("text", ["42", "42,42", "42 43", "42,,43", "42,-1", "a,b"])
def test_seeds_that_give_no_interval_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"42,43,44\."):
        Seeds(at_least=2).convert(text, None, None)


def test_seeds_are_separated_by_commas() -> None:
    assert Seeds(at_least=2).convert("42,43,44", None, None) == (42, 43, 44)
    assert Seeds(at_least=1).convert("42", None, None) == (42,)
