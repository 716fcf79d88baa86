"""Which model folder is meant: a path, or a name in the run folder's hf/."""

import difflib
from pathlib import Path

from jobs.profile import Profile
from smollm3.options import ArgumentError

FINAL = "merged"  # the model that the chain ends with, in RUN/hf


def model_folder(profile: Profile, name: str) -> Path:
    """The transformers folder at the path `name`, or of that name among the run's models.

    Raises:
        ArgumentError: there is none; the message names what there is.
    """
    models = profile.run / "hf"
    for folder in (Path(name), models / name):
        if folder.is_dir():
            return folder
    known = sorted(file.parent.name for file in models.glob("*/config.json"))
    close = difflib.get_close_matches(Path(name).name, known, 1)
    if close:
        hint = f"Did you mean {models / close[0]}?"
    elif known:
        hint = f"{models} has {', '.join(known)}."
    else:
        hint = f"There is none in {models} either: train or export one, or give another --profile or --run."
    raise ArgumentError(f"There is no model folder {name}. {hint}")


def final_model(profile: Profile) -> Path:
    """Raises ArgumentError when the chain has not made it yet."""
    return model_folder(profile, str(profile.run / "hf" / FINAL))


def model_or_hub_name(profile: Profile, name: str) -> str:
    """As `model_folder`; what can only be the name of a hub repository, OWNER/NAME, is returned as it is."""
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).parent.is_dir()
    try:
        return str(model_folder(profile, name))
    except ArgumentError:
        if is_hub_name:
            return name
        raise
