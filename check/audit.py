"""Audit what a recipe trains on: the mixture as a tree, samples as the model sees them, lint of a sample of windows."""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import groupby

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from check.lint import Findings, Window, WindowReader, lint
from datapipes.registry import find_source
from datapipes.tokenizer import load_tokenizer
from foundation.recipe import Recipe
from foundation.shards.errors import ShardError
from nanotron_ext.data.loader import MixtureLoader

WHOLE_RUN = "whole run"
# Of a source's windows; more is worth a warning. Sound text repeats itself too: tables, lists, listings of code.
MAX_FINDINGS = {"empty": 0.02, "duplicated": 0.02, "boilerplate": 0.2}
MIN_WIDTH = 100  # in narrower terminals lines run on, rather than lose digits
PIECE_STYLES = ("default", "cyan")


@dataclass(frozen=True)
class SourceUse:
    """What a stage, or the whole run, takes from one source.

    `first_step` and `last_step` are the first and the last of its steps that draw on the source; None if none does.
    What depends on prepared data is None without it.
    """

    stage: str
    category: str
    source: str
    share: float
    available_tokens: int | None
    planned_tokens: int
    epochs: float | None
    first_step: int | None
    last_step: int | None


@dataclass(frozen=True)
class Audit:
    """`problems` keep the recipe from being trained, `warnings` do not; `lint` is by source."""

    uses: list[SourceUse]
    problems: list[str]
    warnings: list[str]
    lint: dict[str, Findings] = field(default_factory=dict)


class Plan:
    """How many tokens each step has consumed of each source: the loader's count, or without data the shares'."""

    def __init__(self, recipe: Recipe, loader: MixtureLoader | None) -> None:
        self._recipe = recipe
        ends = [stage.start_training_step - 1 for stage in recipe.data_stages[1:]] + [recipe.tokens.train_steps]
        self.stages = [
            (stage.name, stage.start_training_step, end, stage.shares())
            for stage, end in zip(recipe.data_stages, ends, strict=True)
        ]
        self.sources = list(dict.fromkeys(source for *_, shares in self.stages for source in shares))
        self._consumed = cache(loader.consumed) if loader else None
        self._available = (
            {plan.source: (plan.available_tokens, plan.dropped_tokens) for plan in loader.plan} if loader else {}
        )

    def tokens_after(self, source: str, step: int) -> int:
        """Tokens of the source in the steps up to this one."""
        if self._consumed:
            return self._consumed(step)[source].tokens
        steps = sum(
            shares.get(source, 0) * min(max(step - first + 1, 0), last - first + 1)
            for _, first, last, shares in self.stages
        )
        return int(steps * self._recipe.tokens_per_step)

    def use(self, stage: str, source: str, first_step: int, last_step: int) -> SourceUse:
        """What these steps take from the source."""
        steps = range(first_step, last_step + 1)
        before, after = self.tokens_after(source, first_step - 1), self.tokens_after(source, last_step)
        drawn: tuple[int | None, int | None] = None, None
        if before < after:
            tokens_after = partial(self.tokens_after, source)
            drawn = (
                steps[bisect.bisect_right(steps, before, key=tokens_after)],
                steps[bisect.bisect_left(steps, after, key=tokens_after)],
            )
        available, dropped = self._available.get(source, (None, 0))
        return SourceUse(
            stage=stage,
            category=find_source(source).category,
            source=source,
            share=(after - before) / (len(steps) * self._recipe.tokens_per_step),
            available_tokens=available,
            planned_tokens=after - before,
            epochs=(after - before) / (available - dropped) if available else None,
            first_step=drawn[0],
            last_step=drawn[1],
        )

    def uses(self) -> list[SourceUse]:
        """Stage by stage and then for the whole run, in each sorted by category and falling tokens.

        Raises:
            SourceError: if the registry does not know a source.
        """
        parts = [(name, first, last, list(shares)) for name, first, last, shares in self.stages]
        parts.append((WHOLE_RUN, 1, self._recipe.tokens.train_steps, self.sources))
        return [
            use
            for name, first, last, sources in parts
            for use in sorted(
                (self.use(name, source, first, last) for source in sources),
                key=lambda use: (use.category, -use.planned_tokens),
            )
        ]


def audit(recipe: Recipe, lint_windows: int, max_epochs: float) -> Audit:
    """The mixture, and lint of so many windows per source. Without prepared data: the mixture alone.

    Raises:
        SourceError: if the registry does not know a source, or the tokenizer of the data is not there.
    """
    try:
        loader = MixtureLoader(recipe, 0, recipe.parallelism.dp)
    except ShardError as error:
        return Audit(Plan(recipe, None).uses(), error.problems, [])
    plan = Plan(recipe, loader)
    uses = plan.uses()
    findings: dict[str, Findings] = {}
    if lint_windows:
        findings = lint(WindowReader(recipe, plan.sources), load_tokenizer(recipe).tokenizer, lint_windows)
    return Audit(uses, [], [*_repeated(uses, max_epochs), *_unsound(findings)], findings)


def _repeated(uses: list[SourceUse], max_epochs: float) -> Iterator[str]:
    for use in uses:
        if use.stage == WHOLE_RUN and use.epochs is not None and use.epochs > max_epochs:
            yield (
                f"{use.source}: The run repeats it {use.epochs:.1f} times, more than {max_epochs:g}. Prepare more of "
                f"it, or lower its share."
            )


def _unsound(findings: dict[str, Findings]) -> Iterator[str]:
    for name, found in findings.items():
        for kind, count in found.counts.items():
            if count > MAX_FINDINGS[kind] * found.windows:
                examples = ", ".join(map(str, found.examples[kind]))
                yield f"{name}: {count} of {found.windows} windows are {kind}, such as number {examples}."


def tree(uses: list[SourceUse], max_epochs: float) -> Table:
    """Stage, category and source as a tree in the first column, their numbers in the others."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("stage / category / source", no_wrap=True)
    for header in ("share %", "available", "planned", "epochs", "first step", "last step"):
        table.add_column(header, justify="right", no_wrap=True)
    for stage, in_stage in groupby(uses, key=lambda use: use.stage):
        of_stage = list(in_stage)
        table.add_row(*_row(stage, of_stage), style="bold")
        categories = [list(group) for _, group in groupby(of_stage, key=lambda use: use.category)]
        for number, of_category in enumerate(categories):
            is_last = number == len(categories) - 1
            table.add_row(*_row(f"{'└' if is_last else '├'}─ {of_category[0].category}", of_category))
            for use in of_category:
                branch = "└" if use is of_category[-1] else "├"
                is_repeated = use.epochs is not None and use.epochs > max_epochs
                label = f"{' ' if is_last else '│'}  {branch}─ {use.source}"
                table.add_row(*_row(label, [use]), style="yellow" if is_repeated else "dim")
        table.add_section()
    return table


def _row(label: str, uses: list[SourceUse]) -> list[str]:
    available = [use.available_tokens for use in uses if use.available_tokens is not None]
    epochs = [use.epochs for use in uses if use.epochs is not None]
    drawn = [(use.first_step, use.last_step) for use in uses if use.first_step and use.last_step]
    return [
        label,
        f"{100 * sum(use.share for use in uses):.2f}",
        _tokens(sum(available)) if available else "missing",
        _tokens(sum(use.planned_tokens for use in uses)),
        f"{epochs[0]:.2f}" if len(uses) == 1 and epochs else "",
        f"{min(first for first, _ in drawn):,}" if drawn else "",
        f"{max(last for _, last in drawn):,}" if drawn else "",
    ]


def _tokens(count: int) -> str:
    """With the four digits that matter where there are many: 3.961 T, 105.8 B, 12.29 M."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if count >= 10 * size or (count >= size and unit != "M"):
            return f"{count / size:#.4g} {unit}"
    return f"{count:,}"


def lint_table(findings: dict[str, Findings]) -> Table:
    """Windows judged, and how many of them are of which kind, per source."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for header in ("lint", "windows", "sound", "findings"):
        table.add_column(header, justify="right" if header in ("windows", "sound") else "left")
    for name, found in findings.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.counts.items())
        table.add_row(name, str(found.windows), str(found.windows - sum(found.counts.values())), kinds)
    return table


def sample_windows(recipe: Recipe, samples: int) -> Iterator[tuple[int, Window]]:
    """Training samples at equal distances over the run, each with its step.

    Raises:
        SourceError: if the data is not prepared (nanotron_ext.data).
    """
    loader = MixtureLoader(recipe, 0, recipe.parallelism.dp)
    reader = WindowReader(recipe, Plan(recipe, loader).sources)
    for step in np.linspace(1, recipe.tokens.train_steps, samples).round().astype(int).tolist():
        drawn = loader.sample_ids(step)
        yield step, reader.read(*drawn[step % len(drawn)])


def coloured(window: Window, tokenizer: Tokenizer) -> Text:
    """The decoded window; documents in alternating colours, the tokens that end them reversed."""
    text = Text()
    for number, piece in enumerate(window.pieces()):
        ends = piece[-1:].tolist() if number < len(window.document_ends) else []
        body = piece[: len(piece) - len(ends)].tolist()
        text.append(tokenizer.decode(body, skip_special_tokens=False), style=PIECE_STYLES[number % len(PIECE_STYLES)])
        text.append(tokenizer.decode(ends, skip_special_tokens=False), style="reverse")
    return text


def print_audit(result: Audit, max_epochs: float, console: Console) -> None:
    console.print(tree(result.uses, max_epochs))
    if result.lint:
        console.print(lint_table(result.lint))
    for warning in result.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)


def print_samples(recipe: Recipe, samples: int, console: Console) -> None:
    tokenizer = load_tokenizer(recipe).tokenizer
    for step, window in sample_windows(recipe, samples):
        documents = f"{len(window.pieces())} pieces of documents"
        console.rule(f"step {step}: {window.source}, window {window.number}, {documents}", align="left")
        console.print(coloured(window, tokenizer), soft_wrap=True)
