"""Names that a file gives: what a manifest or an index calls a file must be one in its own folder.

The file may come from somebody else: a bucket that others write to, a model from a hub. With an absolute path or
`..` for a name, fetching a checkpoint would overwrite any file of its user, and uploading one would send any file out.
"""

from pathlib import Path

from foundation.errors import UserError
from foundation.json_text import loads

WEIGHT_INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"  # of a model that has no index


class UnsafeNameError(UserError):
    """A name that is no file's in the folder it belongs to; nothing was read or written under it."""


def plain_name(name: object) -> str:
    """`name` itself if it can be that of a file in a folder: printable text, no separator, not empty, not `.` or `..`.

    Raises:
        UnsafeNameError: for everything else. The caller adds which file gave it.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or not name.isprintable() or set(name) & set("/\\"):
        raise UnsafeNameError(f"{name!r} is not the plain name of a file in its folder.")
    return name


def inside(folder: Path, name: object) -> Path:
    """The file `name` of `folder`, for writing or for sending away: links, too, must end below the folder.

    Raises:
        UnsafeNameError: if the name is not plain, or a link leads elsewhere.
    """
    path = folder / plain_name(name)
    try:
        leads_to = path.resolve()
    except (OSError, RuntimeError):  # links in a circle; which of the two depends on Python's version
        leads_to = None
    # From 3.13 on a circle raises nothing: it leads to a link.
    if leads_to is None or leads_to.is_symlink() or not leads_to.is_relative_to(folder.resolve()):
        raise UnsafeNameError(f"{path} is a link that leads out of its folder. Put the file itself there.")
    return path


class AmbiguousWeightsError(UserError):
    """A model folder that holds two sets of weights: programs differ in which they read."""


def indexed_weight_files(model: Path) -> list[str]:
    """Names of the files that a transformers folder's index of weights lists, sorted; none if it has no index.

    They may be links: the hub's cache keeps files elsewhere, and a link is its maker's doing, not the index's.

    Raises:
        UnsafeNameError: if the index is not one, or names anything but files of the folder.
        AmbiguousWeightsError: if it leaves out a model.safetensors, which transformers reads instead of the index.
    """
    index = model / WEIGHT_INDEX
    if not index.is_file():
        return []
    try:
        weight_map = loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({plain_name(name) for name in weight_map.values()})
    except UnsafeNameError as error:
        raise UnsafeNameError(f"{index}: {error} Get the model again, from where you trust it.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsafeNameError(f"{index} is not an index of weights ({type(error).__name__}: {error}).") from None
    if WEIGHTS not in names and (model / WEIGHTS).is_file():
        raise AmbiguousWeightsError(
            f"{model} holds {WEIGHTS}, and beside it {WEIGHT_INDEX}, which lists {', '.join(names[:3])}"
            f"{' and more' if len(names) > 3 else ''} instead. They may be two models: remove the one that is old."
        )
    return names
