"""Which code a result depends on, and a hash of it that changes only when what the code does may have changed."""

import ast
import hashlib
import re
from collections.abc import Collection, Iterable, Set
from pathlib import Path

from foundation.project import ROOT

PACKAGES = (
    "foundation", "nanotron_ext", "datapipes", "posttrain", "merge", "eval",
    "jobs", "slurm", "check", "report", "chain", "smollm3",
)  # fmt: skip
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_FILE_NAME = re.compile(r"[\w.-]*\w\.(?!py$)\w{1,8}")


class Code:
    """The files of the `packages` in the folder `root`, each read once."""

    def __init__(self, root: Path = ROOT, packages: Collection[str] = PACKAGES) -> None:
        self._root, self._packages = root, frozenset(packages)
        self._read: dict[Path, tuple[set[str], set[Path], bytes]] = {}
        self._imports: dict[Path, set[Path]] = {}

    def digest(self, *paths: str, without: Iterable[str] = ()) -> str:
        """SHA-256 over what the `paths`, relative to the root, stand for.

        A Python file counts together with everything that it imports from the packages, directly or not, and with the
        files beside a module that it names in a string, such as a template; comments, docstrings and layout do not
        count. Any other file counts byte by byte. A folder stands for its files, caches apart. The files `without` do
        not count, nor does what only they import.

        Raises:
            FileNotFoundError: for a path or a file `without` that is not there.
        """
        left_out = {self._there(path) for path in without}
        files: set[Path] = set()
        for place in map(self._there, paths):
            files |= {place} if place.is_file() else {file for file in place.rglob("*") if file.is_file()}
        files = {file for file in files if "__pycache__" not in file.parts}
        for file in [file for file in files if file.suffix == ".py"]:
            files |= self.imported_files(file, left_out)
        digest = hashlib.sha256()
        for file in sorted(files):
            content = self._meaning(file)[2] if file.suffix == ".py" else file.read_bytes()
            digest.update(f"{file.relative_to(self._root)}\0".encode() + content + b"\0")
        return digest.hexdigest()

    def _there(self, path: str) -> Path:
        place = self._root / path
        if not place.exists():
            raise FileNotFoundError(f"{place} is said to be code that a result depends on, but it does not exist.")
        return place

    def imported_files(self, file: Path, left_out: Set[Path] = frozenset()) -> set[Path]:
        """`file` and the files that it imports or names, at any depth, wherever the import statements stand; those
        `left_out` are not followed."""
        found: set[Path] = set()
        new = {file}
        while new:
            found |= new
            new = {target for file in new for target in self._needed_by(file)} - found - left_out
        return found

    def _needed_by(self, file: Path) -> set[Path]:
        if file.suffix != ".py":
            return set()
        if file not in self._imports:
            names, named_files, _ = self._meaning(file)
            targets = set(named_files)
            for parts in (name.split(".") for name in names):
                for end in range(1, len(parts) + 1):  # a package's __init__ runs before its modules
                    place = self._root.joinpath(*parts[:end])
                    targets |= {path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()}
            self._imports[file] = targets
        return self._imports[file]

    def _meaning(self, file: Path) -> tuple[set[str], set[Path], bytes]:
        """(names that the file imports, files beside it that it names, its tree without docstrings and positions)."""
        if file not in self._read:
            tree = ast.parse(file.read_bytes(), str(file))
            names: set[str] = set()
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names |= {f"{node.module}.{alias.name}" for alias in node.names}
                elif isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:]
            strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            texts = {text for text in strings if isinstance(text, str) and _FILE_NAME.fullmatch(text)}
            named_files = {place for text in texts if (place := file.parent / text).is_file()}
            ours = {name for name in names if name.partition(".")[0] in self._packages}
            self._read[file] = ours, named_files, ast.dump(tree).encode()
        return self._read[file]
