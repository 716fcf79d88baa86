import json
import os
import random
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from check.audit import WHOLE_RUN, SourceUse, audit, coloured, sample_windows
from check.lint import WindowReader, lint
from datapipes.tokenizer import LoadedTokenizer
from foundation.recipe import Recipe, load_recipe
from nanotron_ext.data.loader import MixtureLoader
from tests.nanotron_ext.data.prepared_data import Documents, make_recipe, write_source

EOS, EOS_TEXT = 1, "<|end_of_text|>"
STAGES = [
    (1, {"tiny-web-en": 0.9, "tiny-math": 0.1}),
    (30, {"tiny-web-en": 0.5, "tiny-math": 0.3, "tiny-web-fra": 0.2}),
]


def write(data: Path, tokenizer: LoadedTokenizer, name: str, documents: Documents) -> np.ndarray:
    (tokens,) = write_source(data, name, [documents], tokenizer_sha256=tokenizer.sha256, vocab_size=400)
    return tokens


def encode(tokenizer: LoadedTokenizer, texts: Sequence[str]) -> Documents:
    return [[*tokenizer.tokenizer.encode(text).ids, EOS] for text in texts]


def random_words(generator: random.Random, words: int) -> str:
    return " ".join("".join(generator.choices(string.ascii_lowercase, k=generator.randint(1, 5))) for _ in range(words))


def recipe_over(data: Path, tokenizer: LoadedTokenizer, stages: Sequence[tuple[int, dict[str, float]]]) -> Recipe:
    more = [f"tokenizer.tokenizer_name_or_path={tokenizer.file.parent}"]
    return make_recipe(data, stages, train_steps=60, sequence_length=64, micro_batch_size=4, more=more)


@pytest.fixture
def recipe(tmp_path: Path, tokenizer: LoadedTokenizer) -> Recipe:
    generator = random.Random(3)
    for name in ("tiny-web-en", "tiny-math", "tiny-web-fra"):
        texts = [random_words(generator, generator.randint(1, 90)) for _ in range(40)]
        write(tmp_path / "data", tokenizer, name, encode(tokenizer, texts))
    return recipe_over(tmp_path / "data", tokenizer, STAGES)


def test_steps_tokens_and_epochs_are_those_of_all_samples_counted_one_by_one(recipe: Recipe) -> None:
    loader = MixtureLoader(recipe, 0, 1)
    drawn = [(step, source) for step in range(1, 61) for source, _ in loader.sample_ids(step)]
    windows = {
        name: (np.fromfile(Path(recipe.data.path) / name / "000.ds", "<u2").size - 1) // 64
        for name in ("tiny-web-en", "tiny-math", "tiny-web-fra")
    }
    uses = audit(recipe, 0, 4.0).uses
    assert [use.source for use in uses if use.stage == "stage30"] == ["tiny-math", "tiny-web-en", "tiny-web-fra"]
    parts = {"stage1": range(1, 30), "stage30": range(30, 61), WHOLE_RUN: range(1, 61)}
    for use in uses:
        steps = [step for step, source in drawn if source == use.source and step in parts[use.stage]]
        assert (use.first_step, use.last_step) == (steps[0], steps[-1])
        assert use.planned_tokens == 64 * len(steps)
        assert use.epochs == pytest.approx(len(steps) / windows[use.source])
        assert use.share == pytest.approx(len(steps) / (4 * len(parts[use.stage])))


def test_repeated_sources_are_warned_about(recipe: Recipe) -> None:
    epochs = {use.source: use.epochs for use in audit(recipe, 0, 4.0).uses if use.stage == WHOLE_RUN}
    most = max(epochs, key=lambda name: epochs[name] or 0)
    second = sorted(epoch for epoch in epochs.values() if epoch)[-2]
    (warning,) = audit(recipe, 0, max_epochs=second).warnings
    assert warning.startswith(f"{most}: The run repeats it {epochs[most]:.1f} times")
    assert not audit(recipe, 0, max_epochs=epochs[most] or 0).warnings


def test_without_data_the_plan_is_that_of_the_shares_and_what_is_missing_is_named(recipe: Recipe) -> None:
    def planned(uses: list[SourceUse]) -> dict[tuple[str, str], int]:
        return {(use.stage, use.source): use.planned_tokens for use in uses}

    prepared = planned(audit(recipe, 0, 4.0).uses)
    (Path(recipe.data.path) / "tiny-math" / "manifest.json").unlink()
    result = audit(recipe, 64, 4.0)
    (problem,) = result.problems
    assert "tiny-math/manifest.json" in problem and "smollm3 data" in problem
    assert all(use.available_tokens is use.epochs is None for use in result.uses)
    for key, tokens in planned(result.uses).items():
        assert abs(tokens - prepared[key]) <= 2 * 64  # less than a sample per stage


def test_samples_are_the_loaders_and_end_marks_are_reversed(recipe: Recipe, tokenizer: LoadedTokenizer) -> None:
    loader = MixtureLoader(recipe, 0, 1)
    samples = list(sample_windows(recipe, 5))
    assert [step for step, _ in samples] == [1, 16, 30, 45, 60]
    for step, window in samples:
        ids = loader.batch(step).micro_batches[0].input_ids.view(4, 64).tolist()
        assert window.tokens.tolist() in ids
        text = coloured(window, tokenizer.tokenizer)
        assert text.plain == "".join(
            tokenizer.tokenizer.decode(piece.tolist(), skip_special_tokens=False) for piece in window.pieces()
        )
        marked = [text.plain[span.start : span.end] for span in text.spans if span.style == "reverse"]
        assert [mark for mark in marked if mark] == [EOS_TEXT] * window.tokens.tolist().count(EOS)
        shown = [text.plain[span.start : span.end] for span in text.spans if span.style != "reverse"]
        assert all(EOS_TEXT not in document for document in shown)


def test_lint_finds_what_was_planted(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    generator = random.Random(5)
    sound = [random_words(generator, 400) for _ in range(10)]
    line = random_words(generator, 6)
    sources = {
        "tiny-web-en": encode(tokenizer, sound),
        "tiny-web-fra": encode(tokenizer, sound[:5]),  # begins as tiny-web-en does, so windows are equal
        "tiny-web-deu": [[EOS]] * 1000,
        "tiny-web-spa": encode(tokenizer, [" \n" * 2000]),
        "tiny-math": encode(tokenizer, [f"{line}\n" * 300]),
    }
    for name, documents in sources.items():
        write(tmp_path, tokenizer, name, documents)
    findings = lint(WindowReader(recipe_over(tmp_path, tokenizer, STAGES[:1]), list(sources)), tokenizer.tokenizer, 500)
    counts = {name: found.counts for name, found in findings.items()}
    windows = {name: found.windows for name, found in findings.items()}
    assert windows == {name: (sum(map(len, documents)) - 1) // 64 for name, documents in sources.items()}
    assert counts["tiny-web-en"] == {}
    assert counts["tiny-web-fra"]["duplicated"] >= 0.95 * windows["tiny-web-fra"]
    assert counts["tiny-web-deu"] == {"empty": windows["tiny-web-deu"]}
    assert counts["tiny-web-spa"] == {"empty": windows["tiny-web-spa"]}
    assert counts["tiny-math"].get("boilerplate", 0) + counts["tiny-math"]["duplicated"] == windows["tiny-math"]


def command(*arguments: str, run: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smollm3", "audit", *arguments],
        env={**os.environ, "RUN": str(run), "PYTHONPATH": ".", "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )


def test_unprepared_recipes_show_their_mixture_and_exit_with_2(tmp_path: Path) -> None:
    result = command("recipes/tiny/pretrain.yaml", run=tmp_path)
    assert result.returncode == 2
    assert "tiny-web-deu" in result.stdout and "missing" in result.stdout
    assert result.stderr.count("manifest.json: There is no manifest") == 10 and "Traceback" not in result.stderr
    as_json = command("recipes/tiny/pretrain.yaml", "--json", run=tmp_path)
    assert as_json.returncode == 2
    parsed = json.loads(as_json.stdout)
    assert len(parsed["problems"]) == 10
    recipe = load_recipe("recipes/tiny/pretrain.yaml")
    first, second = recipe.data_stages[:2]
    steps = second.start_training_step - first.start_training_step
    planned = sum(use["planned_tokens"] for use in parsed["uses"] if use["stage"] == first.name)
    assert planned == steps * recipe.global_batch_size * recipe.tokens.sequence_length


def test_an_unregistered_source_is_an_error_without_traceback(tmp_path: Path) -> None:
    result = command("recipes/tiny/pretrain.yaml", "data_stages.0.mixture={tiny-wb-en: 1.0}", run=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr and len(result.stderr.splitlines()) < 20
