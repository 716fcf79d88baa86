"""What pyproject.toml cannot say: the files that a checkout has beside its packages are below smollm3/ in a wheel.

foundation/project.py finds them in both places.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# tools/find-python reads pyproject.toml, and `smollm3 doctor` the locks.
CARRIED = ("recipes/*/*.yaml", "recipes/*/*.csv", "constraints*.txt", "pyproject.toml", "tools/find-python")


class BuildWithFilesBesidePackages(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout's own are found
            return
        for source in self._carried():
            target = Path(self.build_lib, "smollm3", source)
            self.mkpath(str(target.parent))
            self.copy_file(source, str(target))

    def get_source_files(self) -> list[str]:
        """What a source archive has to hold to be built from."""
        return [*super().get_source_files(), *self._carried()]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        carried = [] if self.editable_mode else self._carried()
        return [*super().get_outputs(include_bytecode), *(str(Path(self.build_lib, "smollm3", f)) for f in carried)]

    def _carried(self) -> list[str]:
        return sorted(str(path) for pattern in CARRIED for path in Path().glob(pattern))


setup(cmdclass={"build_py": BuildWithFilesBesidePackages})
