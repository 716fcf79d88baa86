"""Write the report of a profile's chain: `python -m report recipes/tiny`.

Reads what the stages left in RUN (default runs/<profile>) and writes RUN/report/index.html, one file that loads
nothing, and RUN/report/report.md. What has not run yet is shown as missing.
"""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from foundation.errors import UserError
from jobs.profile import Profile
from report.collect import collect
from report.html import to_html
from report.markdown import write_markdown
from report.sections import build_sections
from report.terminal import print_summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m report", description=__doc__)
    parser.add_argument("recipes", type=Path, help="folder of recipes, such as recipes/tiny")
    options = parser.parse_args()
    run = Path(os.environ.setdefault("RUN", f"runs/{options.recipes.name}"))
    try:
        report = collect(Profile(options.recipes, run))
        sections = build_sections(report)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    title, subtitle = (
        "SmolLM3, from raw text to a merged reasoning model",
        f"Profile {report.profile}, {report.created}",
    )
    folder = run / "report"
    folder.mkdir(parents=True, exist_ok=True)
    write_markdown(folder / "report.md", title, subtitle, sections)
    (folder / "index.html").write_text(to_html(title, subtitle, sections), encoding="utf-8")
    print_summary(sections, Console() if sys.stdout.isatty() else Console(width=110))
    print(f"report: {folder / 'index.html'} and {folder / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
