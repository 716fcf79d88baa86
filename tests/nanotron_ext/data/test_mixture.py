"""Exact shares at every prefix, stages that continue, and closed forms that agree with counting."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.shards.errors import ShardError
from nanotron_ext.data.mixture import MAX_PERIOD, Mixture, Stage, earliest_deadline_first, integer_quotas


def stage(shares: dict[str, Fraction], samples: int, first_sample: int = 0) -> Stage:
    return Stage(f"stage from {first_sample}", first_sample, samples, shares)


def shares_of(weights: list[int]) -> dict[str, Fraction]:
    return {f"s{i}": Fraction(weight, sum(weights)) for i, weight in enumerate(weights)}


def largest_error(turns: np.ndarray, quotas: list[int]) -> Fraction:
    """Largest distance of a count from its exact share over all prefixes, in integers."""
    period, slots = sum(quotas), np.arange(1, len(turns) + 1)
    worst = max(np.abs(np.cumsum(turns == i) * period - slots * quota).max() for i, quota in enumerate(quotas))
    return Fraction(int(worst), period)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_shares_are_exact_at_every_prefix(quotas: list[int]) -> None:
    turns = earliest_deadline_first(quotas, sum(quotas))
    assert np.bincount(turns, minlength=len(quotas)).tolist() == quotas
    assert largest_error(turns, quotas) < 1


def test_shares_are_exact_with_weights_of_smollm3() -> None:
    weights = "0.333 0.37 0.02 0.001 0.004 0.016 0.02 0.022 0.0105 0.01 0.01 0.01 0.003 0.00325 0.00325 0.15 0.014"
    quotas = integer_quotas([Fraction(weight) for weight in weights.split()])
    assert largest_error(earliest_deadline_first(quotas, sum(quotas)), quotas) < 1


stage_lists = st.lists(
    st.tuples(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), st.integers(1, 60)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(stage_lists)
def test_sources_go_on_across_stages(stages: list[tuple[list[int], int]]) -> None:
    """Every source's positions are 0, 1, 2, ... over the whole run, however the samples are asked for."""
    plan, first = [], 0
    for weights, samples in stages:
        shares = {f"s{i}": Fraction(w, sum(weights)) for i, w in enumerate(weights) if w}
        plan.append(stage(shares, samples, first))
        first += samples
    mixture = Mixture(plan)
    seen = {name: 0 for name in mixture.sources}
    for current in plan:
        drawn = dict.fromkeys(mixture.sources, 0)
        for sample in range(current.first_sample, current.first_sample + current.samples):
            source, position = mixture.draw(np.array([sample]))
            name = mixture.sources[source[0]]
            assert position[0] == seen[name]
            seen[name] += 1
            drawn[name] += 1
            done = sample + 1 - current.first_sample
            assert all(abs(drawn[s] - done * current.shares.get(s, Fraction(0))) < 1 for s in drawn)
            assert mixture.counts(sample + 1).tolist() == list(seen.values())
    samples = np.arange(first)
    whole = mixture.draw(samples)
    singles = [mixture.draw(samples[i : i + 1]) for i in range(first)]
    assert whole[0].tolist() == [int(single[0][0]) for single in singles]
    assert whole[1].tolist() == [int(single[1][0]) for single in singles]


def test_sample_2_7_billion_needs_no_history() -> None:
    """Ordinals of the far end against plain arithmetic: 10 slots per period, `a` owns 7 of them."""
    mixture = Mixture([stage({"a": Fraction(7, 10), "b": Fraction(3, 10)}, 2_719_000_000)])
    first = 2_700_000_000
    source, position = mixture.draw(np.arange(first, first + 10))
    assert sorted(position[source == 0].tolist()) == list(range(first // 10 * 7, first // 10 * 7 + 7))
    assert mixture.counts(first).tolist() == [first // 10 * 7, first // 10 * 3]


def test_repeating_decimals_are_taken_as_written() -> None:
    assert integer_quotas([Fraction("0.3333333333")] * 3) == [1, 1, 1]


def test_too_fine_shares_are_rounded_and_reported() -> None:
    fine = {"a": Fraction("0.26864337"), "b": Fraction("0.7313"), "c": Fraction("0.00005663")}
    mixture = Mixture([stage(fine, 10)])
    schedule = mixture.schedules[0]
    assert schedule.period == MAX_PERIOD
    kept = [Fraction(int(quota), MAX_PERIOD) for quota in schedule.quotas]
    changes = [abs(share - new) for share, new in zip(fine.values(), kept, strict=True)]
    assert 0 < max(changes) < Fraction(1, MAX_PERIOD)
    assert schedule.rounding == pytest.approx(float(max(changes)), rel=1e-9)
    assert Mixture([stage(shares_of([3, 2]), 10)]).schedules[0].rounding == 0


def test_vanishing_share_is_refused() -> None:
    with pytest.raises(ShardError, match=r"'b' in stage .* is below the smallest .* remove the source"):
        Mixture([stage({"a": 1 - Fraction("1e-9"), "b": Fraction("1e-9")}, 10)])
