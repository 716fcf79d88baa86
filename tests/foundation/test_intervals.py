import numpy as np
import pytest
from scipy import stats

from foundation.intervals import newcombe, t_interval, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 12), (1, 9), (119, 121), (121, 121)])
def test_wilson_equals_scipys(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    share = wilson(successes, trials)
    assert (share.value, share.low, share.high) == pytest.approx((successes / trials, expected.low, expected.high))


@pytest.mark.parametrize(  # table II of Newcombe (1998), method 10
    ("first", "second", "low", "high"),
    [((48, 80), (56, 70), 0.0524, 0.3339), ((3, 10), (9, 10), 0.1705, 0.8090), ((0, 29), (5, 56), -0.0381, 0.1926)],
)
def test_difference_of_shares_has_the_published_interval(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    difference = newcombe(wilson(*first), wilson(*second))
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=5e-5)
    assert difference.value == pytest.approx(second[0] / second[1] - first[0] / first[1])


def test_mean_over_seeds_has_the_interval_of_a_t_test() -> None:
    values = np.random.default_rng(0).normal(1, 2, 4)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = t_interval(values.tolist())
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), expected.low, expected.high))
