"""Write the report of a profile's chain.

From what the stages left in the run folder come report/index.html, one file that loads nothing, and report/report.md.
What has not run yet is shown as missing.
"""

from pathlib import Path

from rich.console import Console

from jobs.profile import Profile
from report.collect import collect
from report.html import to_html
from report.markdown import write_markdown
from report.sections import build_sections
from report.terminal import print_summary


def write_report(profile: Profile, console: Console) -> Path:
    """Write both files, and print a summary; returns their folder.

    Raises:
        UserError: a recipe or a result that cannot be read.
    """
    report = collect(profile)
    sections = build_sections(report)
    title, subtitle = (
        "SmolLM3, from raw text to a merged reasoning model",
        f"Profile {report.profile}, {report.created}",
    )
    folder = profile.run / "report"
    folder.mkdir(parents=True, exist_ok=True)
    write_markdown(folder / "report.md", title, subtitle, sections)
    (folder / "index.html").write_text(to_html(title, subtitle, sections), encoding="utf-8")
    print_summary(sections, console)
    return folder
