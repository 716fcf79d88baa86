"""Where the project's own files are: recipes, job scripts, templates, locks.

A checkout has them beside its packages. A wheel has what a package holds in that package, and what lies beside the
packages (recipes, locks) below smollm3/, where setup.py puts it. Nothing of them is looked up from the current folder,
which is the user's; only the user's own recipes are.
"""

from pathlib import Path

from foundation.errors import UserError

ROOT = Path(__file__).parents[1]  # of the packages: a checkout, or site-packages
_BESIDE_PACKAGES = "smollm3"  # the folder of a wheel for what a checkout has beside its packages


class IncompleteInstallationError(UserError):
    """A file that every installation has is not there."""


def is_checkout() -> bool:
    return not (ROOT / _BESIDE_PACKAGES / "recipes").is_dir()


def project_file(name: str | Path) -> Path:
    """The project's file or folder `name`, as a checkout calls it: "slurm/lib.sh", "recipes/tiny", "constraints.txt".

    Raises:
        IncompleteInstallationError: if it is not there.
    """
    for place in (ROOT / _BESIDE_PACKAGES / name, ROOT / name):
        if place.exists():
            return place
    raise IncompleteInstallationError(
        f"{name} is missing from the installation of smollm3-pipeline in {ROOT}. Install it again."
    )


def recipe_place(path: Path) -> Path:
    """Where a recipe, or a profile's folder of recipes, is that a user calls `path`.

    recipes/<profile> in the current folder is the user's own and comes first, as a whole; without it recipes/<profile>
    is the project's. Any other path stands for itself.
    """
    if path.parts[:1] != ("recipes",) or Path(*path.parts[:2]).exists():
        return path
    shipped = project_file("recipes").joinpath(*path.parts[1:])
    return shipped if shipped.exists() else path
