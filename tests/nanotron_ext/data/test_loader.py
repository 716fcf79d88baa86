"""The loader against a brute-force reading of the raw documents."""

import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import UserError
from foundation.recipe import Recipe
from foundation.shards.errors import ShardError
from nanotron_ext.data.loader import MicroBatch, MixtureLoader, StepBatch, validation_batches
from nanotron_ext.train.startup import data_state
from tests.nanotron_ext.data.prepared_data import Documents, make_recipe, random_documents, write_source

STAGES = [(1, {"a": 0.5, "b": 0.3, "c": 0.2}), (11, {"a": 0.15, "c": 0.8, "d": 0.05})]
TOKENS = {"a": (500, 300), "b": (90,), "c": (400, 9, 170), "d": (60, 41)}


RNG = np.random.default_rng(6)
SOURCES = {name: [random_documents(RNG, tokens) for tokens in files] for name, files in TOKENS.items()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, files in SOURCES.items():
        write_source(tmp_path, name, files)
    return tmp_path


def expected_window(files: list[Documents], window: int, length: int) -> tuple[list, list, list, list]:
    """Inputs, labels, mask and piece lengths of a source's n-th window, by walking over the documents."""
    for documents in files:
        flat = [(token, number) for number, document in enumerate(documents) for token in document]
        windows = (len(flat) - 1) // length
        if window < windows:
            piece = flat[window * length : (window + 1) * length + 1]
            owners = [number for _, number in piece]
            mask = [owners[i] == owners[i + 1] for i in range(length)]
            lengths = list(Counter(owners[:-1]).values())
            return [token for token, _ in piece[:-1]], [token for token, _ in piece[1:]], mask, lengths
        window -= windows
    raise AssertionError("no such window")


def samples_of(micro_batch: MicroBatch, length: int) -> list[tuple[list, list, list, list]]:
    samples, lengths = [], list(micro_batch.lengths)
    for first in range(0, len(micro_batch.input_ids), length):
        part = slice(first, first + length)
        pieces: list[int] = []
        while sum(pieces) < length:
            pieces.append(lengths.pop(0))
        fields = (micro_batch.input_ids, micro_batch.label_ids, micro_batch.label_mask)
        samples.append((*(field[part].tolist() for field in fields), pieces))
    assert not lengths
    return samples


def step_samples(batch: StepBatch, length: int) -> list[tuple[list, list, list, list]]:
    return [sample for micro_batch in batch.micro_batches for sample in samples_of(micro_batch, length)]


@pytest.mark.parametrize("token_bytes", [2, 4])
@pytest.mark.parametrize("length", [4, 8, 40])
def test_every_sample_is_its_window_of_the_documents(tmp_path: Path, token_bytes: int, length: int) -> None:
    for name, files in SOURCES.items():
        write_source(tmp_path, name, files, token_bytes)
    recipe = make_recipe(tmp_path, STAGES, 20, sequence_length=length, micro_batch_size=3, micro_batches=2)
    loader = MixtureLoader(recipe, 0, 1)
    for step in range(1, 21):
        batch = loader.batch(step)
        samples = step_samples(batch, length)
        for (source, window), sample in zip(loader.sample_ids(step), samples, strict=True):
            assert sample == expected_window(SOURCES[source], window, length)
        assert (batch.step, batch.first_sample) == (step, (step - 1) * 6)
        assert batch.trained_tokens == sum(sum(sample[2]) for sample in samples)
        assert [len(micro_batch.input_ids) for micro_batch in batch.micro_batches] == [3 * length] * 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 12))
def test_document_boundaries(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int) -> None:
    """Documents of one token, cut by windows, ending with a window, and windows without any boundary."""
    folder = tmp_path_factory.mktemp("boundaries")
    documents = [[*range(10, 9 + size), 1] for size in [*lengths, length + 1]]
    write_source(folder, "a", [documents])
    windows = (sum(map(len, documents)) - 1) // length
    recipe = make_recipe(
        folder, [(1, {"a": 1.0})], sequence_length=length, more=[f"tokens.limit_val_batches={windows}"]
    )
    batches = validation_batches(recipe, "a", windows, 0, 1)
    expected = [expected_window([documents], window, length) for window in range(windows)]
    assert [sample for batch in batches for sample in samples_of(batch, length)] == expected


def test_boundaries_come_from_the_index_not_from_eos_ids(tmp_path: Path) -> None:
    write_source(tmp_path, "a", [[[5, 1, 6, 1], [7, 1, 1, 8, 1]]])
    recipe = make_recipe(tmp_path, [(1, {"a": 1.0})])
    (batch,) = MixtureLoader(recipe, 0, 1).batch(1).micro_batches
    assert batch.lengths == [4, 4]
    assert batch.label_mask.tolist() == [True, True, True, False, True, True, True, True]


def test_without_document_mask_every_label_is_trained(data: Path) -> None:
    recipe = make_recipe(data, STAGES, 20, micro_batch_size=3, more=["model.model_config.document_mask=false"])
    masked = MixtureLoader(make_recipe(data, STAGES, 20, micro_batch_size=3), 0, 1).batch(7)
    batch = MixtureLoader(recipe, 0, 1).batch(7)
    assert batch.micro_batches[0].lengths == [8, 8, 8]
    assert batch.trained_tokens == 24 > masked.trained_tokens
    assert torch.equal(batch.micro_batches[0].label_ids, masked.micro_batches[0].label_ids)


def test_every_epoch_shows_every_window_once_in_a_new_order(data: Path) -> None:
    recipe = make_recipe(data, [(1, {"a": 0.7, "b": 0.3})], train_steps=400, micro_batch_size=2)
    loader = MixtureLoader(recipe, 0, 1)
    ids = [sample for step in range(1, 401) for sample in loader.sample_ids(step)]
    for source, windows in (("a", 499 // 8 + 299 // 8), ("b", 89 // 8)):
        seen = [window for name, window in ids if name == source]
        epochs = [seen[first : first + windows] for first in range(0, len(seen) - windows + 1, windows)]
        assert len(epochs) >= 3
        assert all(sorted(epoch) == list(range(windows)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize(("dp_size", "micro_batch_size"), [(1, 1), (2, 1), (3, 2), (8, 3), (1, 24)])
def test_order_does_not_depend_on_the_split(data: Path, dp_size: int, micro_batch_size: int) -> None:
    def samples(dp_size: int, micro_batch_size: int) -> list:
        recipe = make_recipe(
            data,
            STAGES,
            20,
            dp=dp_size,
            micro_batch_size=micro_batch_size,
            micro_batches=24 // (dp_size * micro_batch_size),
        )
        loaders = [MixtureLoader(recipe, rank, dp_size) for rank in range(dp_size)]
        steps = (1, 10, 11, 20)
        ids = [sample for step in steps for loader in loaders for sample in loader.sample_ids(step)]
        first_samples = [loader.batch(2).first_sample for loader in loaders]
        assert first_samples == [24 + rank * 24 // dp_size for rank in range(dp_size)]
        return [ids, [s for step in steps for loader in loaders for s in step_samples(loader.batch(step), 8)]]

    assert samples(dp_size, micro_batch_size) == samples(4, 3)


weights = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(17, 300), min_size=3, max_size=3),
    st.lists(st.tuples(weights, st.integers(1, 8)), min_size=1, max_size=3),
    st.sampled_from([1, 2]),
    st.integers(0, 99),
)
def test_whatever_the_mixture(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    stages: list[tuple[list[int], int]],
    windows_per_chunk: int,
    seed: int,
) -> None:
    """Shares exact at every prefix, epochs without repeats or gaps, one order for DP 1, 2, 3 and 8, at any step."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, tokens in zip("abc", sizes, strict=True):
        write_source(folder, name, [random_documents(np.random.default_rng(seed), tokens)])
    first, plan = 1, []
    for stage_weights, steps in stages:
        plan.append((first, {name: weight for name, weight in zip("abc", stage_weights, strict=True) if weight}))
        first += steps
    more = [f"data.seed={seed}", f"data.chunk_tokens={8 * windows_per_chunk}"]
    last = first - 1

    def ids(dp: int, steps: range) -> list[tuple[str, int]]:
        recipe = make_recipe(folder, plan, last, dp=dp, micro_batches=24 // dp, more=more)
        loaders = [MixtureLoader(recipe, rank, dp) for rank in range(dp)]
        return [sample for step in steps for loader in loaders for sample in loader.sample_ids(step)]

    drawn = ids(1, range(1, last + 1))
    for dp in (2, 3, 8):
        assert ids(dp, range(1, last + 1)) == drawn
    resumed_at = 1 + seed % last
    assert ids(1, range(resumed_at, last + 1)) == drawn[24 * (resumed_at - 1) :]
    for (start, mixture), end in zip(plan, [*(start for start, _ in plan[1:]), first], strict=True):
        stage = [name for name, _ in drawn[24 * (start - 1) : 24 * (end - 1)]]
        for name in "abc":
            share = mixture.get(name, 0) / sum(mixture.values())
            counts = np.cumsum([drawn_name == name for drawn_name in stage])
            assert (np.abs(counts - np.arange(1, len(stage) + 1) * share) < 1).all()
    for name, tokens in zip("abc", sizes, strict=True):
        windows = (tokens - 1) // (8 * windows_per_chunk) * windows_per_chunk
        seen = [window for drawn_name, window in drawn if drawn_name == name]
        for begin in range(0, len(seen), windows):
            epoch = seen[begin : begin + windows]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(windows))


def test_resuming_equals_continuing(data: Path) -> None:
    recipe = make_recipe(data, STAGES, 20, micro_batch_size=2)
    continued = [step_samples(batch, 8) for batch, _ in MixtureLoader(recipe, 0, 1).iterate(1, 20)]
    resumed = [step_samples(batch, 8) for batch, _ in MixtureLoader(recipe, 0, 1).iterate(9, 20)]
    assert resumed == continued[8:]
    assert step_samples(MixtureLoader(recipe, 0, 1).batch(20), 8) == continued[19]


def test_consumption_and_plan_equal_counting(data: Path) -> None:
    recipe = make_recipe(data, STAGES, 20, micro_batch_size=3, micro_batches=2)
    loader = MixtureLoader(recipe, 0, 1)
    count: Counter[str] = Counter()
    windows = {name: sum((tokens - 1) // 8 for tokens in files) for name, files in TOKENS.items()}
    for step in range(21):
        if step:
            count.update(name for name, _ in loader.sample_ids(step))
        for name, progress in loader.consumed(step).items():
            assert progress.tokens == count[name] * 8
            assert progress.epochs == pytest.approx(count[name] / windows[name])
    for plan in loader.plan:
        assert plan.planned_tokens == count[plan.source] * 8
        assert plan.available_tokens == sum(TOKENS[plan.source])
        assert plan.dropped_tokens == plan.available_tokens - windows[plan.source] * 8
    assert loader.share_rounding == {}


def saved(run: Path, recipe: Recipe, step: int) -> str:
    """What a checkpoint says of the data, in a run folder; returns the key that continues it."""
    folder = run / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    content = {"recipe": recipe.to_dict(), "data": data_state(MixtureLoader(recipe, 0, 1), step)}
    (folder / "checkpoint.json").write_text(json.dumps(content))
    return f"data.continue_from={run}"


def tokens_read(recipe: Recipe, steps: int) -> Counter[tuple[str, int]]:
    """Every token that these steps read as an input: source, and place among the tokens of its chunks."""
    length = recipe.tokens.sequence_length
    drawn = [sample for step in range(1, steps + 1) for sample in MixtureLoader(recipe, 0, 1).sample_ids(step)]
    return Counter((name, window * length + place) for name, window in drawn for place in range(length))


def test_a_run_goes_on_with_the_sources_of_another_in_longer_windows(data: Path, tmp_path: Path) -> None:
    """A short run, a longer-windowed one that continues it, and one that continues that: no token is read twice."""
    chunks = ["data.chunk_tokens=16"]
    short = make_recipe(data, [(1, {"a": 0.8, "d": 0.2})], 7, sequence_length=4, micro_batch_size=5, more=chunks)
    more = [*chunks, saved(tmp_path / "short", short, 7)]
    long = make_recipe(data, [(1, {"a": 0.5, "c": 0.5})], 20, sequence_length=16, micro_batch_size=2, more=more)
    more = [*chunks, saved(tmp_path / "long", long, 10)]
    # Of d nothing came in the second run, but the third must know how far the first got.
    last = make_recipe(data, [(1, {"a": 0.7, "d": 0.3})], 10, sequence_length=16, more=more)

    read = [tokens_read(short, 7), tokens_read(long, 10), tokens_read(last, 10)]
    together = sum(read, Counter())
    assert {name for name, _ in together} == {"a", "c", "d"}
    assert set(together.values()) == {1}
    start = MixtureLoader(long, 0, 1).consumed(0)
    end_of_short = MixtureLoader(short, 0, 1).consumed(7)["a"].tokens
    assert end_of_short == 28 * 4 and start["a"].tokens == 7 * 16 and start["c"].tokens == 0
    assert [plan.planned_tokens for plan in MixtureLoader(long, 0, 1).plan] == [20 * 16, 20 * 16]


def test_a_run_goes_on_in_the_same_windows_as_if_it_were_one(data: Path, tmp_path: Path) -> None:
    whole = make_recipe(data, [(1, {"a": 0.5, "b": 0.5})], 30, micro_batch_size=2)
    first = make_recipe(data, [(1, {"a": 0.5, "b": 0.5})], 11, micro_batch_size=2)
    second = make_recipe(
        data, [(1, {"a": 0.5, "b": 0.5})], 19, micro_batch_size=2, more=[saved(tmp_path / "first", first, 11)]
    )
    loader, continued = MixtureLoader(whole, 0, 1), MixtureLoader(second, 0, 1)
    for step in range(1, 20):
        assert step_samples(continued.batch(step), 8) == step_samples(loader.batch(11 + step), 8)
        assert continued.consumed(step) == loader.consumed(11 + step)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("data.seed=7", r"data\.seed: It is 7, but 6 in .*/run/checkpoints/5"),
        ("data.chunk_tokens=16", r"data\.chunk_tokens: It is 16, but 8 in .*Set it to 8"),
        (None, r"/a: Its files are not those that .* was trained on"),
    ],
)
def test_what_cannot_be_continued_is_refused(data: Path, tmp_path: Path, change: str | None, complaint: str) -> None:
    key = saved(tmp_path / "run", make_recipe(data, STAGES, 20), 5)
    if change is None:
        shutil.rmtree(data / "a")
        write_source(data, "a", [random_documents(RNG, 300)])
    with pytest.raises(ShardError, match=complaint):
        MixtureLoader(make_recipe(data, STAGES, 20, more=[key, *([change] if change else [])]), 0, 1)


def test_a_run_to_continue_that_is_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no complete checkpoint in .*/nothing"):
        MixtureLoader(make_recipe(data, STAGES, 20, more=[f"data.continue_from={tmp_path}/nothing"]), 0, 1)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    def fingerprints(name: str, b_tokens: int) -> dict[str, str]:
        rng = np.random.default_rng(6)
        write_source(tmp_path / name, "a", [random_documents(rng, 100)])
        write_source(tmp_path / name, "b", [random_documents(rng, b_tokens)])
        return MixtureLoader(make_recipe(tmp_path / name, [(1, {"a": 0.5, "b": 0.5})]), 0, 1).fingerprints

    first, same, other = fingerprints("first", 100), fingerprints("same", 100), fingerprints("other", 101)
    assert first == same
    assert first["a"] == other["a"]
    assert first["b"] != other["b"]


@pytest.mark.parametrize("step", [0, 21])
def test_step_outside_the_run(data: Path, step: int) -> None:
    with pytest.raises(ValueError, match=f"Step {step} lies outside the run's steps 1 to 20"):
        MixtureLoader(make_recipe(data, STAGES, 20), 0, 1).batch(step)


def test_batch_that_does_not_split(data: Path) -> None:
    with pytest.raises(ShardError, match=r"global batch of 4 samples does not split .* Change parallelism\.dp"):
        MixtureLoader(make_recipe(data, STAGES, 20, micro_batch_size=4), 0, 3)


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mixture-loader")]


def test_read_ahead_ends_with_the_iterator(data: Path) -> None:
    iterator = MixtureLoader(make_recipe(data, STAGES, 20), 0, 1).iterate(1, 20)
    next(iterator)
    assert reader_threads()
    iterator.close()
    assert not reader_threads()


def test_read_ahead_raises_at_its_step_and_measures_the_wait(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = MixtureLoader(make_recipe(data, STAGES, 20), 0, 1)
    read = loader.batch

    def slow_then_broken(step: int) -> StepBatch:
        if step == 3:
            raise OSError("the disk is gone")
        time.sleep(0.05)
        return read(step)

    monkeypatch.setattr(loader, "batch", slow_then_broken)
    received, waits = [], []
    with pytest.raises(OSError, match="the disk is gone"):
        for batch, waited_seconds in loader.iterate(1, 20):
            received.append(batch.step)
            waits.append(waited_seconds)
            time.sleep(0.1)
    assert received == [1, 2]
    assert waits[0] > 0.04
    assert waits[1] < 0.04
    assert not reader_threads()


def test_file_truncated_during_the_run(data: Path) -> None:
    loader = MixtureLoader(make_recipe(data, [(1, {"b": 1.0})], 30), 0, 1)
    (data / "b" / "000.ds").write_bytes(b"\0\0")
    with pytest.raises(ShardError, match=r"b/000\.ds: The file was truncated after the run had started"):
        for step in range(1, 12):
            loader.batch(step)


def test_many_files_need_few_descriptors(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    write_source(tmp_path, "a", [random_documents(rng, 9) for _ in range(600)])
    loader = MixtureLoader(make_recipe(tmp_path, [(1, {"a": 1.0})], 100, micro_batch_size=6), 0, 1)
    windows = {window for step in range(1, 101) for window in read_all(loader, step)}
    assert windows == set(range(600))
    assert len(list(Path("/proc/self/fd").iterdir())) < 600


def read_all(loader: MixtureLoader, step: int) -> list[int]:
    loader.batch(step)
    return [window for _, window in loader.sample_ids(step)]


@pytest.mark.parametrize(("dp_size", "micro_batch_size"), [(1, 4), (2, 4), (3, 2), (8, 1)])
def test_validation_covers_the_first_windows_once(data: Path, dp_size: int, micro_batch_size: int) -> None:
    recipe = make_recipe(data, STAGES, more=["tokens.limit_val_batches=13"])
    ranks = [list(validation_batches(recipe, "d", micro_batch_size, rank, dp_size)) for rank in range(dp_size)]
    assert len({len(batches) for batches in ranks}) == 1
    samples = [sample for batches in ranks for batch in batches for sample in samples_of(batch, 8)]
    windows = 59 // 8 + 40 // 8
    assert windows < 13
    assert samples[:windows] == [expected_window(SOURCES["d"], window, 8) for window in range(windows)]
    assert not any(any(sample[2]) for sample in samples[windows:])
    limited = make_recipe(data, STAGES, more=["tokens.limit_val_batches=3"])
    (batch,) = validation_batches(limited, "d", 3, 0, 1)
    assert samples_of(batch, 8) == samples[:3]
