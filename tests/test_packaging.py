"""What `pip install .` puts into an environment: everything that the project reads, found from any current folder."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.archives import unpack
from tests.conftest import build

TRACKED = subprocess.check_output(["git", "ls-files"], text=True).splitlines()
PACKAGES = sorted(
    path.parent.name for path in Path().glob("*/__init__.py") if path.parent.name not in ("tests", "tools")
)
# Beside the packages in a checkout, in smollm3/ of a wheel.
CARRIED = [
    path
    for path in TRACKED
    if path.startswith(("recipes/", "constraints")) or path in ("pyproject.toml", "tools/find-python")
]
NOT_INSTALLED = (".gitignore",)


def wanted_in_a_wheel() -> set[str]:
    """Every tracked file of a package, and of what lies beside them."""
    in_packages = {path for path in TRACKED if path.partition("/")[0] in PACKAGES and not path.endswith(NOT_INSTALLED)}
    return in_packages | {f"smollm3/{path}" for path in CARRIED}


@pytest.fixture(scope="session")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder that holds the project and nothing else."""
    folder = tmp_path_factory.mktemp("site-packages")
    [wheel] = built.glob("*.whl")
    install = ("install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(folder), str(wheel))
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    return folder


def run_installed(installed: Path, folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(installed), **environment}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def test_a_wheel_has_every_file_that_the_packages_have_in_a_checkout(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert len(CARRIED) > 45 and len(PACKAGES) > 10
    assert names == wanted_in_a_wheel()


def test_a_source_archive_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    [sdist], [wheel] = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if name.endswith("site.sh")]
    unpack(sdist, tmp_path)
    [source] = tmp_path.iterdir()
    build(source, tmp_path)
    [again] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


READS = """
import json, os
from pathlib import Path
import foundation
from foundation.project import is_checkout, project_file, recipe_place
from foundation.recipe import load_recipe
from datapipes.registry import load_registry, CORPUS_FOLDER
from eval.recipe import load_eval_recipe
from merge.recipe import load_merge_recipe
from posttrain.recipe import load_recipe as load_post_training_recipe
from posttrain.template import load_template
import report.html
print(json.dumps({
    "code": foundation.__file__,
    "checkout": is_checkout(),
    "steps": load_recipe("recipes/tiny/pretrain_stage1.yaml").last_step,
    "overlay": load_recipe("recipes/tiny/pretrain_ablation.yaml", ["recipes/ablations/mha.yaml"]).last_step,
    "sft": load_post_training_recipe("recipes/tiny/sft.yaml").run_folder.name,
    "suites": len(load_eval_recipe(load_merge_recipe("recipes/tiny/merge.yaml").evaluation.recipe).suites),
    "sources": len(load_registry()),
    "corpus": len(list(CORPUS_FOLDER.glob("*.xz"))),
    "template": len(load_template("dual_mode")),
    "page": report.html._TEMPLATE.is_file(),
    "scripts": [os.access(project_file(name), os.X_OK) for name in (
        "slurm/submit", "slurm/dev-cluster", "tools/find-python", "slurm/lib.sh")],
    "mixtures": project_file("recipes/smollm3-3b/published_mixtures.csv").stat().st_size,
    "profile": str(recipe_place(Path("recipes/tiny"))),
}))
"""


def test_everything_is_read_from_an_unrelated_folder(installed: Path, tmp_path: Path) -> None:
    answer = run_installed(installed, tmp_path, sys.executable, "-c", READS)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found.pop("code") == str(installed / "foundation" / "__init__.py") and found.pop("checkout") is False
    assert found.pop("profile") == str(installed / "smollm3" / "recipes" / "tiny")
    assert found.pop("scripts") == [True, True, True, False]
    here = run_installed(Path.cwd(), Path.cwd(), sys.executable, "-c", READS)
    expected = json.loads(here.stdout)
    assert expected.pop("checkout") is True and expected.pop("profile") == "recipes/tiny"
    assert found == {key: value for key, value in expected.items() if key not in ("code", "scripts")}
    assert not list(tmp_path.iterdir())


DOCTOR = "from check import doctor; print(doctor.to_json(doctor.examine()))"


def test_doctor_compares_with_the_wheels_lock_and_names_no_target_of_make(installed: Path, tmp_path: Path) -> None:
    """Without `packaging`, all that is to be installed is named by a command that an installation can run."""
    answer = run_installed(installed, tmp_path, sys.executable, "-c", DOCTOR)
    findings = {finding["name"]: finding for finding in json.loads(answer.stdout)["findings"]}
    assert findings["versions"]["found"].endswith("as in constraints-cuda.txt")
    bare = run_installed(installed, tmp_path, sys.executable, "-S", "-c", DOCTOR)
    [lacking] = [finding for finding in json.loads(bare.stdout)["findings"] if finding["state"] == "broken"]
    command = lacking["advice"].split()
    assert command[:3] == ["pip", "install", "--constraint"] and command[4:] == ["smollm3-pipeline"]
    assert Path(command[3]).read_text() == Path("constraints-cuda.txt").read_text()
    for finding in findings.values():
        assert "make " not in finding["advice"], finding


SBATCH = """#!/bin/bash
# Runs a copy of the script at once, as Slurm does later: in the folder it was submitted from, knowing no other place.
while [[ $1 == -* ]]; do shift; done
cp "$1" "$0.spooled"
bash "$0.spooled" >"$0.output" 2>&1
echo "exit code $? in $PWD with $RECIPES" >>"$0.output"
echo 7
"""


def test_a_job_that_is_submitted_from_an_unrelated_folder_finds_its_scripts(installed: Path, tmp_path: Path) -> None:
    commands, user = tmp_path / "bin", tmp_path / "user"
    commands.mkdir()
    user.mkdir()
    for name, text in {"sbatch": SBATCH, "squeue": "#!/bin/bash\n"}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    settings = {"PROFILE": "tiny", "PATH": f"{commands}:/usr/bin:/bin", "LOGIN_PYTHON": sys.executable}
    answer = run_installed(installed, user, str(installed / "slurm" / "submit"), "data", **settings)
    assert answer.stdout == "data: job 7, output in slurm/logs/data-7.out\n", answer.stderr
    output = (commands / "sbatch.output").read_text()
    # lib.sh was read: it misses Slurm, as there is none here.
    assert output.startswith("This is a job script: submit it with slurm/submit data")
    assert f"exit code 2 in {user} with {installed}/smollm3/recipes/tiny" in output
    assert [str(path.relative_to(user)) for path in user.rglob("*")] == ["slurm", "slurm/logs"]
