import numpy as np
import pytest
from scipy import stats

from chain.ablations import BASE, Effect, Outcome, effect_of
from chain.steps import ChainError


def test_interval_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    base, variant = rng.normal(3, 1, 5), rng.normal(3.2, 1, 5)
    outcomes = [Outcome(BASE, seed, 0.0, value) for seed, value in enumerate(base)]
    outcomes += [Outcome("mha", seed, 0.0, value) for seed, value in enumerate(variant)]
    effect = effect_of("mha", "bits_per_byte", outcomes)
    interval = stats.ttest_rel(variant, base).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
    assert effect.difference == pytest.approx((variant - base).mean())


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-0.1, 0.2, "no difference"), (0.1, 0.2, "worse"), (-0.2, -0.1, "better")]
)
def test_conclusion_follows_the_interval(low: float, high: float, word: str) -> None:
    assert word in Effect("rope", "bits_per_byte", 2.0, (low + high) / 2, low, high).conclusion


def test_one_seed_gives_no_interval() -> None:
    with pytest.raises(ChainError, match="two seeds"):
        effect_of("mha", "training_loss", [Outcome(BASE, 1, 1.0, 1.0), Outcome("mha", 1, 1.0, 1.0)])
