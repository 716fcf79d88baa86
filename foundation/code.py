"""Which code a result depends on, and a hash of it that changes only when what the code does may have changed."""

import ast
import hashlib
from collections.abc import Iterable, Set
from pathlib import Path

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Code:
    """The files of the repository at `root`, each read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[Path, tuple[set[str], bytes]] = {}
        self._imports: dict[Path, set[Path]] = {}

    def digest(self, *paths: str, without: Iterable[str] = ()) -> str:
        """SHA-256 over what the `paths`, relative to the root, stand for.

        A Python file counts together with everything that it imports from the repository, directly or not; comments,
        docstrings and layout do not count. Any other file counts byte by byte. A folder stands for its files, caches
        apart. The files `without` do not count, nor does what only they import.
        """
        left_out = {self._root / path for path in without}
        files: set[Path] = set()
        for place in (self._root / path for path in paths):
            files |= {place} if place.is_file() else {file for file in place.rglob("*") if file.is_file()}
        files = {file for file in files if "__pycache__" not in file.parts}
        for file in [file for file in files if file.suffix == ".py"]:
            files |= self.imported_files(file, left_out)
        digest = hashlib.sha256()
        for file in sorted(files):
            content = self._meaning(file)[1] if file.suffix == ".py" else file.read_bytes()
            digest.update(f"{file.relative_to(self._root)}\0".encode() + content + b"\0")
        return digest.hexdigest()

    def imported_files(self, file: Path, left_out: Set[Path] = frozenset()) -> set[Path]:
        """`file` and the repository's files that it imports, at any depth, wherever the import statements stand;
        those `left_out` are not followed."""
        found: set[Path] = set()
        new = {file}
        while new:
            found |= new
            new = {target for file in new for target in self._imported_by(file)} - found - left_out
        return found

    def _imported_by(self, file: Path) -> set[Path]:
        if file not in self._imports:
            targets: set[Path] = set()
            for name in self._meaning(file)[0]:
                parts = name.split(".")
                for end in range(1, len(parts) + 1):  # a package's __init__ runs before its modules
                    place = self._root.joinpath(*parts[:end])
                    targets |= {path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()}
            self._imports[file] = targets
        return self._imports[file]

    def _meaning(self, file: Path) -> tuple[set[str], bytes]:
        """(names that the file imports, its syntax tree without docstrings and positions)."""
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
            self._read[file] = names, ast.dump(tree).encode()
        return self._read[file]
