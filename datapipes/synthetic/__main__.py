"""`python -m datapipes.synthetic RECIPE [section.key=value ...]`: make a synthetic set, or go on with it."""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from datapipes.synthetic.build import Report, build
from datapipes.synthetic.recipe import load_recipe
from foundation.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 an error that the message explains."""
    parser = argparse.ArgumentParser(
        prog="python -m datapipes.synthetic",
        description="Have a teacher answer the prompts of a recipe. Interrupted, the same command goes on.",
    )
    parser.add_argument("recipe", help="YAML file, e.g. recipes/tiny/synthetic.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        report = build(recipe)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print(report, Console())
    print(f"{recipe.output_folder / 'train.jsonl'}: {report.rows} rows")
    return 0


def _print(report: Report, console: Console) -> None:
    table = Table("prompts", "conversations", "share")
    table.add_row("all", str(report.prompts), "")
    table.add_row("kept", str(report.rows), f"{report.rows / report.prompts:.1%}")
    for reason, count in report.lost.most_common():
        table.add_row(f"lost: {reason}", str(count), f"{count / report.prompts:.1%}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
