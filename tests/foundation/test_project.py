"""The user's recipes and the project's: which of the two a name means, from whatever folder."""

from pathlib import Path

import pytest

from foundation import project
from foundation.project import IncompleteInstallationError, project_file, recipe_place
from foundation.recipe import load_recipe
from foundation.recipe.errors import RecipeError

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_recipes_are_the_projects_where_the_user_has_none(elsewhere: Path) -> None:
    assert recipe_place(Path("recipes/tiny")) == CHECKOUT / "recipes" / "tiny"
    assert recipe_place(Path("recipes/tiny/sft.yaml")).read_text() == (CHECKOUT / "recipes/tiny/sft.yaml").read_text()


def test_a_users_profile_counts_as_a_whole(elsewhere: Path) -> None:
    """A file of it that is not there is missing; the project's would belong to another profile."""
    (elsewhere / "recipes" / "tiny").mkdir(parents=True)
    assert recipe_place(Path("recipes/tiny")) == Path("recipes/tiny")
    assert recipe_place(Path("recipes/tiny/sft.yaml")) == Path("recipes/tiny/sft.yaml")
    assert recipe_place(Path("recipes/smollm3-3b")) == CHECKOUT / "recipes" / "smollm3-3b"
    with pytest.raises(RecipeError, match=r"There is no recipe recipes/tiny/pretrain\.yaml"):
        load_recipe("recipes/tiny/pretrain.yaml")


@pytest.mark.parametrize("name", ["tiny", "mine/recipes/tiny", "/recipes/tiny", "recipes/nothing", "recipes/../tiny"])
def test_any_other_path_stands_for_itself(elsewhere: Path, name: str) -> None:
    assert recipe_place(Path(name)) == Path(name)


def test_a_misspelt_recipe_is_found_elsewhere_too(elsewhere: Path) -> None:
    with pytest.raises(RecipeError, match=r"Did you mean recipes/tiny/pretrain_stage1.yaml\?"):
        load_recipe("recipes/tiny/pretrain_stag1.yaml")
    assert load_recipe("recipes/tiny/pretrain_stage1.yaml").last_step > 0


def test_a_wheel_has_what_lies_beside_packages_in_smollm3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another distribution has left in site-packages under the same name."""
    for name in ("smollm3/recipes/tiny/sft.yaml", "recipes/tiny/sft.yaml", "slurm/lib.sh"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(project, "ROOT", tmp_path)
    assert not project.is_checkout()
    assert project_file("recipes/tiny") == tmp_path / "smollm3" / "recipes" / "tiny"
    assert project_file("slurm/lib.sh") == tmp_path / "slurm" / "lib.sh"
    with pytest.raises(IncompleteInstallationError, match="slurm/submit is missing from the installation"):
        project_file("slurm/submit")
