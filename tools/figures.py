"""Writes the measured figures of README and docs from the result files in results/: `make figures`.

A page holds

    <!-- figures: NAME -->table, or indented block<!-- end -->
    a sentence with <!-- = NAME -->a figure<!-- end --> in it

NAME of a block is one of tools/figure_blocks.py, or `table FILE` for results/FILE.json that holds a table. NAME of a
figure is one of `named_values` there, `cell FILE / ROW / COLUMN` of such a table, or `value FILE / KEY` of a result
file with `values`. Pictures are written to docs/images/ in the same way. `make record` and `make predictions` write the
result files that come from runs of this code; the others say which command measured them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tools.figure_blocks import BLOCKS, markdown, named_values
from tools.pictures import PICTURES

ROOT = Path(__file__).parents[1]
_REGION = re.compile(r"<!-- (?P<kind>figures:|=) (?P<name>[^>]*?) -->(?P<text>.*?)<!-- end -->", re.DOTALL)


def pages(root: Path = ROOT) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def read_results(root: Path = ROOT) -> dict[str, Any]:
    """The result files by name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(root.glob("results/*.json"))}


def written(root: Path, results: Mapping[str, Any]) -> dict[Path, str]:
    """Every page and picture with the figures that the results have.

    Raises:
        click.ClickException: when a page asks for a figure that is not there.
    """
    found = {page: render(page.read_text(encoding="utf-8"), results, page.name) for page in pages(root)}
    return found | {root / "docs" / "images" / f"{name}.svg": draw(results) for name, draw in PICTURES.items()}


def render(text: str, results: Mapping[str, Any], page: str = "page") -> str:
    """The page's text with every figure as the results have it.

    Raises:
        click.ClickException: for a name that stands for nothing.
    """

    def replace(match: re.Match[str]) -> str:
        name = match["name"].strip()
        try:
            if match["kind"] == "=":
                return f"<!-- = {name} -->{figure(name, results)}<!-- end -->"
            return f"<!-- figures: {name} -->\n{block(name, results).rstrip()}\n<!-- end -->"
        except KeyError as error:
            kind = "figure" if match["kind"] == "=" else "block"
            why = (
                f"{page}: the {kind} {name!r} is not there: {error.args[0]}. tools/figures.py says what a name can be."
            )
            raise click.ClickException(why) from None

    return _REGION.sub(replace, text)


def block(name: str, results: Mapping[str, Any]) -> str:
    kind, _, file = name.partition(" ")
    if kind == "table":
        table = _file(file, results)
        rows = [[_cell(text, results) for text in row] for row in table["rows"]]
        return markdown(table["columns"], rows, table["align"])
    if name not in BLOCKS:
        raise KeyError(f"the blocks are {', '.join(BLOCKS)}")
    return BLOCKS[name](results)


def figure(name: str, results: Mapping[str, Any]) -> str:
    kind, _, place = name.partition(" ")
    parts = place.split(" / ")
    if kind == "value" and len(parts) == 2:
        found = _file(parts[0], results)["values"]
        return str(_only([found[key] for key in found if key == parts[1]], parts[1]))
    if kind == "cell" and len(parts) == 3:
        table = _file(parts[0], results)
        row = _only([row for row in table["rows"] if row[0] == parts[1]], parts[1])
        return _cell(
            _only([text for head, text in zip(table["columns"], row, strict=True) if head == parts[2]], parts[2]),
            results,
        )
    found = named_values(results)
    if name not in found:
        raise KeyError(f"the figures are {', '.join(found)}, and `cell FILE / ROW / COLUMN`, `value FILE / KEY`")
    return found[name]


def _cell(text: str, results: Mapping[str, Any]) -> str:
    """A cell's text; `= NAME` stands for a figure of another result file."""
    return figure(text.removeprefix("= "), results) if text.startswith("= ") else text


def _file(name: str, results: Mapping[str, Any]) -> Mapping[str, Any]:
    if name not in results:
        raise KeyError(f"no file results/{name}.json")
    return results[name]


def _only(found: Sequence[Any], name: str) -> Any:
    if len(found) != 1:
        raise KeyError(f"{len(found)} rows, columns or values are called {name!r}")
    return found[0]


@click.command()
def main() -> None:
    """Write the figures of README and docs, and the pictures, from the files in results/."""
    for path, text in written(ROOT, read_results()).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
