"""What models, data sets and names say, through everything that shows it: the text is kept, and does nothing."""

import importlib
import io
import re
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from chain import ablations
from chain.view import View
from check import audit, doctor
from datapipes.synthetic.build import Report as SyntheticReport
from datapipes.synthetic.build import print_report as print_synthetic_report
from eval import curve
from eval.page import Cell, Sheet
from eval.page import to_html as table_html
from eval.page import to_markdown as table_markdown
from eval.pretraining import HeldOut, StageSummary
from eval.pretraining import show as show_pretraining
from eval.results import Curve, CurvePoint, Score
from foundation.charts import Series, line_chart
from foundation.errors import UserError
from foundation.plain_text import markdown, plain
from foundation.terminal import Terminal
from jobs import status
from posttrain import chat, evaluate
from posttrain.chat import Session
from posttrain.generate import ModelError, Sampling
from report import seeds
from report.blocks import Chart, Details, Finding, Missing, Sample, Section, Table, Text
from report.html import to_html
from report.markdown import write_markdown
from report.terminal import print_summary
from smollm3 import command_line

CONTROLS = "\x1b]52;c;Zm9v\x07 \x1b]0;title\x1b\\ \x1b[2J \x9b2J \x08\r\x7f\x00"
DIRECTIONS = "\u202etxt.exe\u2066\u200f\u061c"
TEXT = "a[i] [/x] [bold]b[/bold] :smile: <script>alert(1)</script> ![p](http://h) `c` |d|"
HOSTILE = f"{TEXT} {CONTROLS}{DIRECTIONS} end"


def test_plain_keeps_the_text() -> None:
    kept = "print(a[i])\n\tif x < 3: [/x] :smile: é 日本 שלום عربى 👩‍👩‍👧 \u00a0\u2028"
    assert plain(kept) == kept
    assert plain(HOSTILE) == f"{TEXT} ]52;c;Zm9v ]0;title\\ [2J 2J txt.exe end"
    assert plain("a\r\nb\ud800") == "a\nb\N{REPLACEMENT CHARACTER}"


def test_what_is_dropped_is_what_unicode_calls_control_or_direction() -> None:
    """Against Unicode's own table: category Cc, and the twelve characters of the property Bidi_Control."""
    dropped = {code for code in range(0x110000) if not 0xD800 <= code < 0xE000 and not plain(chr(code))}
    controls = {code for code in range(0x110000) if unicodedata.category(chr(code)) == "Cc"} - {9, 10}
    directions = {
        code for code in range(0x110000)
        if unicodedata.bidirectional(chr(code)) in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
    }  # fmt: skip
    assert dropped == controls | directions | {0x200E, 0x200F, 0x061C} and len(directions) == 9


def _terminal(show: Callable[[Terminal], object]) -> str:
    file = io.StringIO()
    show(Terminal(file=file, width=400))
    return file.getvalue()


class _Talker:
    """Says what is hostile, in pieces of one character, as a model may."""

    def prompt(self, messages: Any, **more: Any) -> str:
        return ""

    def stream(self, prompt: str, sampling: Sampling, on_text: Callable[[str], None]) -> str:
        for character in f"<think>{HOSTILE}</think>{HOSTILE}":
            on_text(character)
        return ""


def _session(console: Terminal) -> Session:
    return Session(_Talker(), Sampling(), console)  # type: ignore[arg-type]


def _calls(console: Terminal) -> None:
    reply = SimpleNamespace(
        tool_calls=[SimpleNamespace(name=HOSTILE, arguments={"a": "b"})], code=[HOSTILE], malformed_calls=[HOSTILE]
    )
    _session(console)._show_calls(reply)  # type: ignore[arg-type]


def _refused(console: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation in which the model cannot answer."""
    session, lines = _session(console), iter(["hello", "/quit"])
    monkeypatch.setattr(console, "input", lambda prompt: next(lines))

    def refuse(line: str) -> None:
        raise ModelError(HOSTILE)

    monkeypatch.setattr(session, "say", refuse)
    chat._converse(session)


def _status(console: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = SimpleNamespace(
        recipes=HOSTILE, run="run", jobs_in=lambda place: ["data"], plan=lambda name: SimpleNamespace(name=name)
    )
    scheduler = SimpleNamespace(place="cluster", history=None)
    monkeypatch.setattr(status, "_row", lambda *_: [HOSTILE, f"failed: {HOSTILE}", "", "", "", "", ""])
    console.print(status.status_table(profile, scheduler, {}))  # type: ignore[arg-type]


def _view(console: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SimpleNamespace(name=HOSTILE, plan=SimpleNamespace(job=SimpleNamespace(seconds=1.0)))
    monkeypatch.setattr("chain.view._progress", lambda step: HOSTILE)
    view = View([step], SimpleNamespace(steps={}), [step])  # type: ignore[arg-type, list-item]
    view._current = (step, 0.0)  # type: ignore[assignment]
    monkeypatch.setattr(View, "_eta", lambda self: "0s")
    console.print(view._table())


def _window(console: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    tokenizer = Tokenizer(WordLevel({HOSTILE: 0, "end": 1}))
    window = SimpleNamespace(pieces=lambda: [np.array([0, 1])], document_ends=[2])
    console.print(audit.coloured(window, tokenizer), soft_wrap=True)  # type: ignore[arg-type]
    console.print(audit.lint_table({HOSTILE: SimpleNamespace(counts={}, windows=1)}))  # type: ignore[dict-item]


def _ablations(console: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    effect = SimpleNamespace(
        variant=HOSTILE, measure="bits_per_byte", base=1.0, difference=0.0, low=0.0, high=0.0, conclusion=HOSTILE
    )
    ablations.show([effect], [1, 2], console)  # type: ignore[list-item]


def _seeds(console: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    effect = {"claim": HOSTILE, "effect": HOSTILE, "unit": "", "values": [1.0], "mean": 1.0, "low": 1.0, "high": 1.0}
    seeds.show({"seeds": [1], "effects": [effect]}, console)


JUDGED = [evaluate.Judged(HOSTILE, mode, 1, True, True, True, HOSTILE, HOSTILE) for mode in ("think", "no_think")]
CURVES = [Series(HOSTILE, [1, 2], [1, 2]), Series("b", [1], [1])]
SECTIONS = [
    Section(
        "Samples",
        HOSTILE,
        [
            Text(HOSTILE),
            Table([HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]]),
            Chart("chart", HOSTILE, CURVES, HOSTILE, HOSTILE, [(1, HOSTILE)]),
            Sample(HOSTILE, HOSTILE, f"{HOSTILE}\n\n<script>alert(2)</script>\n</pre>\n# {HOSTILE}"),
            Missing(HOSTILE, HOSTILE),
            Finding("shown", HOSTILE, [HOSTILE], HOSTILE),
            Details(HOSTILE, [Text(HOSTILE)]),
        ],
    )
]  # fmt: skip
TERMINALS: dict[str, Callable[[Terminal, pytest.MonkeyPatch], object]] = {
    "reply": lambda console, _: _session(console).say("hello"),
    "tool calls": lambda console, _: _calls(console),
    "refusal in a chat": _refused,
    "cluster-status": _status,
    "the chain's view": _view,
    "audit": _window,
    "ablations": _ablations,
    "report": lambda console, _: print_summary(SECTIONS, console),
    "report-seeds": _seeds,
    "capabilities": lambda console, _: evaluate.print_table({HOSTILE: JUDGED}, console),
    "synthesize": lambda console, _: print_synthetic_report(
        SyntheticReport(1, 1, Counter({HOSTILE: 1})), console
    ),
    "print": lambda console, _: console.print(HOSTILE, style="red"),
    "rule": lambda console, _: console.rule(HOSTILE),
}  # fmt: skip


def check_shown(text: str) -> None:
    """Nothing that acts is left, and what was said can be read; colours and lines are not there, as no terminal is."""
    acting = {character for character in text if plain(character) != character}
    assert acting == set(), f"{acting!r} in {text!r}"
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())
    assert "a[i] [/x] [bold]b[/bold] :smile: <script>" in shown, shown


@pytest.mark.parametrize("output", TERMINALS)
def test_terminals_show_text_and_nothing_else(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_shown(_terminal(lambda console: TERMINALS[output](console, monkeypatch)))


def test_the_tables_of_a_pretraining_summary_and_of_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    stage, held_out = StageSummary(HOSTILE, 1, 2, 3, 4.0, 3.0, 2.0, 1.0), HeldOut("a", 1, 1.0, 2.0, 3.0)
    for show in (
        lambda: show_pretraining([stage], [held_out], [HOSTILE]),
        lambda: doctor.show([doctor.Finding(HOSTILE, "a", "ok", HOSTILE)]),
    ):
        show()
        text = capsys.readouterr().out
        assert not [character for character in text if plain(character) != character]
        assert "a[i]" in text and "[/x]" in text


def test_error_messages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UserError(HOSTILE)

    monkeypatch.setattr(command_line.smollm3, "main", fail)
    assert command_line.main(["x"]) == 2
    check_shown(capsys.readouterr().err.removeprefix("error: "))


@pytest.mark.parametrize(
    ("program", "fails"),
    [
        ("posttrain.train", "posttrain.recipe.load_recipe"),
        ("nanotron_ext.train.__main__", "foundation.recipe.load_recipe"),
        ("slurm.checks", "slurm.checks.profile_from_environment"),
        ("slurm.checkpoint_evaluations", "jobs.profile.Profile.plan"),
    ],
)
def test_error_messages_of_programs_that_torchrun_and_sbatch_start(
    program: str, fails: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row's keys and roles stand in what post-training says of the data."""

    def fail(*_: Any, **__: Any) -> None:
        raise UserError(HOSTILE)

    monkeypatch.setattr(fails, fail)
    monkeypatch.setattr("sys.argv", [program, "pretrain_stage1"])
    monkeypatch.setattr("foundation.outcome.StopSignal.__init__", lambda *_, **__: None)
    for name, value in {"PROFILE": "tiny", "RUN": "runs/tiny", "RECIPES": "recipes/tiny"}.items():
        monkeypatch.setenv(name, value)
    assert importlib.import_module(program).main() == 2
    check_shown(capsys.readouterr().err.removeprefix("error: "))


def test_the_page_has_no_other_markup_than_its_own() -> None:
    """As a parser of HTML sees it: one script, no picture, and the text as it was said."""
    from lxml import html  # type: ignore[import-untyped]

    for page in (
        to_html("t", HOSTILE, SECTIONS),
        table_html(HOSTILE, [Sheet(HOSTILE, [HOSTILE], [[Cell(HOSTILE)], [Cell(HOSTILE, 1.0, HOSTILE)]], HOSTILE)]),
    ):
        assert not [character for character in page if plain(character) != character]
        tree = html.fromstring(page)
        [script] = tree.iter("script")
        assert "alert(" not in script.text and not list(tree.iter("img")) and not list(tree.iter("bold"))
        assert plain(HOSTILE) in tree.text_content()


@pytest.mark.parametrize("output", ["report", "tables", "curve"])
def test_markdown_has_no_html_no_links_and_no_pictures(output: str, tmp_path: Path) -> None:
    if output == "report":
        write_markdown(tmp_path / "page.md", "t", HOSTILE, SECTIONS)
        text = (tmp_path / "page.md").read_text()
        [own] = re.findall(r"!\[[^]]*\]\(charts/chart\.svg\)", text)
        text = text.replace(own, "")
        assert "<script>" not in (tmp_path / "charts" / "chart.svg").read_text()
    elif output == "tables":
        text = table_markdown([Sheet(HOSTILE, [HOSTILE], [[Cell(HOSTILE, 1.0, HOSTILE)]], "")])
    else:
        score = Score(value=1.0, stderr=0.1, edition="full")
        point = CurvePoint(run=HOSTILE, step=1, tokens=1, checkpoint_sha256="", scores={HOSTILE: score})
        curve._draw(Curve(suites=[], settings_sha256="", points=[point]), tmp_path)
        text = (tmp_path / "curve.md").read_text()
    assert not [character for character in text if plain(character) != character]
    for line in text.splitlines():
        # Four spaces begin code, and a code span ends at the next backtick: both are shown as they are.
        prose = "" if line.startswith("    ") else re.sub(r"`[^`]*`", "", line)
        assert not re.search(r"<[\w/!]|\]\(", prose), prose
    assert "&#60;script>" in text


def test_markdown_is_one_line_that_reads_as_it_was() -> None:
    from html import unescape

    said = "a\nb | <b> & [x](y) `c` *d* \\ &lt;"
    assert unescape(markdown(said)) == said.replace("\n", " ")
    assert not set(markdown(said)) & set("<[]`|*\\\n")


def test_a_chart_shows_names_and_runs_none() -> None:
    chart = line_chart([Series(HOSTILE, [1, 2], [1, 2]), Series("'><script>", [1], [1])], HOSTILE, HOSTILE)
    assert "<script>" not in chart and not [character for character in chart if plain(character) != character]


def test_nothing_prints_on_a_console_of_its_own() -> None:
    files = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()
    ours = [file for file in files if not file.startswith(("tests/", "bench/", "tools/"))]
    console = re.compile(r"\brich\.print\b|(?<!class )\bConsole\(\)|\bConsole\((file|width|stderr)")
    assert {file for file in ours if console.search(Path(file).read_text())} == set() and issubclass(Terminal, Console)
