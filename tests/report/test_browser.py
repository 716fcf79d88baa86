"""The page in a real browser: nothing sticks out of it, on a desktop and on a phone."""

import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.profile import Profile
from report.collect import collect
from report.html import to_html
from report.sections import build_sections
from tests.report.run_folder import summary, write_capabilities, write_retrieval, write_stage

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# The page tells the frame around it what lies right of its edge and cannot be scrolled to.
PROBE = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach(fold => fold.open = true);
  const width = document.documentElement.clientWidth;
  const outside = [...document.querySelectorAll("body *")].filter(part => !part.parentElement.closest(".scroll, nav") &&
    part.getBoundingClientRect().right > width + 1);
  const names = outside.map(part => part.tagName + " " + part.textContent.slice(0, 40));
  if (document.documentElement.scrollWidth > width) names.push("the page scrolls sideways");
  parent.postMessage("outside: " + names.join("; "), "*");
});</script></html>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome")
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("RUN", str(run))
    sources = {f"a-source-with-a-long-name-{number}": 0.1 for number in range(10)}
    write_stage(run / "stage1", 1, 20, sources, dict.fromkeys(sources, 200))
    write_retrieval(run, "stage1", 3, 12, 512)
    write_capabilities(run, {"hf/merged": summary({"all": (5, 5), "chain": (5, 5)}, (5, 5), 10)})
    page = to_html("Title", "Subtitle", build_sections(collect(Profile(Path("recipes/tiny"), run))))
    (tmp_path / "page.html").write_text(page.replace("</html>", PROBE))
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<script>addEventListener('message', event => { document.title = event.data; });</script>"
        f"<iframe src='page.html' style='border:0;width:{width}px;height:2000px'></iframe>"
    )
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    data = f"--user-data-dir={tmp_path / 'browser'}"
    assert BROWSER is not None
    command = [BROWSER, *options, data, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert "<title>outside: </title>" in dom, dom[:500]
