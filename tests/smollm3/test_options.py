"""Which profile, run folder and recipes a command line means, from the user's own folder, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

import posttrain.launch
import posttrain.train
from foundation.project import ROOT, project_file
from jobs.profile import Profile
from posttrain.recipe import load_recipe
from smollm3.command_line import main
from smollm3.options import takes_recipes

PHASE = "sft.yaml"


def recipe_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / PHASE).write_text("extends: recipes/tiny/sft.yaml\n")
    return folder / PHASE


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, which is not the checkout."""
    for name in ("RUN", "RECIPES", "PROFILE"):
        monkeypatch.setenv(name, "")  # empty is as good as not set
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chosen(*arguments: str) -> tuple[Profile, list[Path], list[str]]:
    """What a verb is given."""
    found = []

    @click.command()
    @takes_recipes("sft.yaml")
    def verb(profile: Profile, recipes: list[Path], overrides: list[str]) -> None:
        found.append((profile, recipes, overrides))

    verb.main(list(arguments), standalone_mode=False)
    return found[0]


def refused(capsys: pytest.CaptureFixture[str], message: str, *arguments: str) -> None:
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_path_is_no_name(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "There is no profile './tiny'", "check", "--profile", "./tiny")
    recipe_in(home / "tiny")
    assert chosen("--profile", "./tiny")[0] == Profile(Path("tiny"), Path("runs/tiny"))
    assert chosen("--profile", "tiny")[0].recipes == project_file("recipes/tiny")


def test_a_profile_holds_recipes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "There is no profile ''", "check", "--profile", "")
    refused(capsys, "holds no recipe", "demo", "--profile", "recipes")
    (home / "empty").mkdir()
    refused(capsys, "The folder empty holds no recipe", "demo", "--profile", "empty")
    (home / "empty" / "notes.yaml").write_text("a: 1\n")
    refused(capsys, "empty has a recipe of no job", "demo", "--profile", "empty")
    assert not (home / "runs").exists() or not list((home / "runs").glob("*/*.json"))


def test_check_leaves_out_no_recipe(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_in(home / "mine").with_name("cluster.yaml").write_text("device: cpu\nsbatch: {all: {nodes: 1}}\n")
    assert main(["check", "--profile", "mine"]) == 0
    assert "mine/cluster.yaml: ok" in capsys.readouterr().out
    (home / "mine" / "cluster.yaml").write_text("device: tpu\n")
    refused(capsys, "mine/cluster.yaml is not valid", "check", "--profile", "mine")
    (home / "mine" / "cluster.yaml").unlink()
    (home / "mine" / "midtrian.yaml").write_text("extends: recipes/tiny/midtrain.yaml\n")
    refused(capsys, "midtrian.yaml: the name of a recipe starts with its phase", "check", "--profile", "mine")


def test_recipes_of_two_profiles_would_share_a_run_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [str(recipe_in(home / "a")), str(recipe_in(home / "b"))]
    refused(capsys, "The recipes are of several profiles, ", "check", *both)
    assert chosen("--profile", "a", *both)[1] == [Path(path) for path in both]
    assert chosen(both[0], f"{home}/a/../a/{PHASE}")[0].run == Path("runs/a")


@pytest.mark.parametrize(("folder", "profile"), [("mine", "."), ("mine/below", "..")])
def test_the_folder_that_one_is_in_has_a_name(
    home: Path, folder: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_in(home / "mine")
    (home / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(home / folder)
    assert chosen("--profile", profile)[0].run == Path("runs/mine")
    assert chosen(f"{profile}/{PHASE}")[0].run == Path("runs/mine")


@pytest.mark.parametrize(
    "arguments",
    [("check", "--run", ""), ("export", "runs/a", ""), ("posttrain-data", ""), ("eval-data", "--pack", ""),
     ("plan", "--out", ""), ("import", "model", ""), ("eval-report", "")],
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    refused(capsys, "It is empty, as of a variable that is not set", *arguments)
    assert not list(home.iterdir())


def test_a_file_is_no_place_for_results(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "notes").write_text("mine")
    refused(capsys, "notes is a file. Results need a folder.", "demo", "--run", "notes")
    refused(capsys, "notes is a file. Results need a folder.", "posttrain-data", "notes/below")
    assert (home / "notes").read_text() == "mine"


def test_what_the_machine_refuses_is_said_in_a_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "error: No such file or directory: /proc/none", "posttrain-data", "/proc/none", "--midtrain", "1")


def test_a_path_with_an_equals_sign_is_no_override(home: Path) -> None:
    recipe = recipe_in(home / "lr=1e-3")
    (home / "lr=1e-3" / "more.yaml").write_text("general: {seed: 7}\n")
    overlay = str(home / "lr=1e-3" / "more.yaml")
    assert chosen(str(recipe), "general.seed=3")[1:] == ([recipe], ["general.seed=3"])
    assert load_recipe(*chosen(str(recipe), "--with", overlay)[1], [overlay]).general.seed == 7


def test_a_path_with_an_equals_sign_reaches_the_trainers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's program tells recipes from overrides anew."""
    recipe = recipe_in(home / "lr=1e-3")
    overlay = home / "lr=1e-3" / "more.yaml"
    overlay.write_text("general: {seed: 7}\n")
    monkeypatch.setattr(posttrain.launch, "check_inputs", lambda recipe: None)
    command, _ = posttrain.launch.training_command([recipe], [str(overlay), "general.seed=3"])
    found = []
    monkeypatch.setattr(posttrain.train, "_train", lambda recipes, stop: found.append(recipes) or 0)
    assert posttrain.train.main(command[command.index("posttrain.train") + 1 :]) == 0
    [[trained]] = found
    assert trained.general.seed == 3


def test_run_of_the_environment_is_said_beside_a_recipe_file(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_in(home / "mine")
    chosen(str(recipe))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RUN", "runs/other")
    assert chosen(str(recipe))[0].run == Path("runs/other")
    assert "results in runs/other" in capsys.readouterr().err


def test_numbers_that_mean_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, option, value in [
        ("plan", "--price", "-1"),
        ("plan", "--document-tokens", "0"),
        ("audit", "--samples", "-1"),
    ]:
        refused(capsys, f"Invalid value for '{option}'", verb, option, value)
    refused(capsys, "Invalid value for '--raw'", "data", "--raw", "nowhere", "--dry-run")


def test_results_of_a_model_lie_in_the_folder_of_results(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/model", "b/model"):
        (home / name).mkdir(parents=True)
    refused(capsys, "is not the plain name", "eval", "--model", "a/model", "--name", "../../x")
    refused(capsys, "Two models of one name", "eval", "--model", "a/model", "--model", "b/model")


def test_what_an_error_tells_to_type_can_be_typed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a space in the folder, and elsewhere than runs/<profile>."""
    command = "RUN='my runs' smollm3 export 'my runs/stage3' 'my runs/hf/stage3'"
    refused(capsys, f"Write it: {command}", "summary", "--run", "my runs")


def test_an_option_that_would_be_passed_over_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "step.json").write_text("{}")
    refused(capsys, "--measured is a step on a GPU", "plan", "--measured", "step.json")


def test_a_full_disk_is_said_in_a_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "smollm3", "diff", "recipes/tiny/sft.yaml", "recipes/tiny/apo.yaml"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.stderr == "error: No space left on device. Make room; the same command goes on.\n"


def test_shipped_recipes_are_compared_from_any_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "recipes/tiny/sft.yaml", "recipes/tiny/apo.yaml"]) == 1
    assert "keys differ between A = recipes/tiny/sft.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "recipe", "right"),
    [("train", "recipes/tiny/sft.yaml", "posttrain"), ("posttrain", "recipes/tiny/pretrain.yaml", "train"),
     ("train", "recipes/tiny/merge.yaml", "merge")],
)  # fmt: skip
def test_a_recipe_of_another_verb_is_sent_there(
    verb: str, recipe: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, recipe]) == 2
    said = capsys.readouterr().err
    assert f": smollm3 {right} " in said and said.endswith(f"{recipe}\n")


@pytest.mark.parametrize("run", ["sweep/a", "../../oops", "..", "sweep:a", "a#1", ""])
@pytest.mark.parametrize("recipe", ["pretrain", "sft"])
def test_a_run_that_names_no_folder_is_refused(recipe: str, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be written elsewhere, or end the run when wandb refuses it."""
    assert main(["check", f"recipes/tiny/{recipe}.yaml", f"general.run='{run}'"]) == 2
    assert "names a folder in general.runs_path" in capsys.readouterr().err


def test_check_looks_for_the_input_of_post_training(capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["recipes/tiny/sft.yaml", "model.model_name_or_path=/nowhere/model"]
    assert main(["check", *missing]) == 0
    assert main(["check", "--data", *missing]) == 2
    assert "recipes/tiny/sft.yaml: There is no model at /nowhere/model" in capsys.readouterr().err


def test_check_sees_left_out_evaluations_from_either_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("pretrain", "pretrain_stage1", "eval"):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {ROOT}/recipes/tiny/{name}.yaml\n")
    with (tmp_path / "eval.yaml").open("a") as file:
        file.write("checkpoints: {every_steps: 150, suites: [base]}\n")
    for name in ("pretrain", "pretrain_stage1", "eval"):
        assert main(["check", str(tmp_path / f"{name}.yaml")]) == 2, name
        assert "leaves most of those out" in capsys.readouterr().err
