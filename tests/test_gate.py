"""The search gate judges a bound on the drop, never less than the drop itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.gate import SearchGate
from wattbit.errors import ConfigError
from wattbit.judging.noninferiority import PairedCounts


@st.composite
def counts(draw: st.DrawFn) -> PairedCounts:
    samples = draw(st.integers(1, 500))
    lost = draw(st.integers(0, samples))
    return PairedCounts(samples, lost, draw(st.integers(0, samples - lost)))


@settings(deadline=None, max_examples=100)
@given(counts(), st.floats(0.01, 0.49))
def test_the_bound_is_never_below_the_drop_seen(seen: PairedCounts, alpha: float) -> None:
    assert SearchGate(alpha).bound_pp(seen) >= seen.drop_pp - 1e-9


@settings(deadline=None, max_examples=50)
@given(counts(), st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_what_passes_a_tolerance_passes_every_larger_one(seen: PairedCounts, a: float, b: float) -> None:
    gate = SearchGate()
    assert gate.passes(seen, max(a, b)) or not gate.passes(seen, min(a, b))


def test_alpha_one_half_compares_the_drop_as_observed() -> None:
    seen = PairedCounts(400, 4, 2)
    assert SearchGate(0.5).bound_pp(seen) == seen.drop_pp == 0.5
    assert SearchGate(0.5).passes(seen, 0.5)
    assert not SearchGate(0.2).passes(seen, 0.5)


def test_a_stricter_level_needs_more_evidence() -> None:
    seen = PairedCounts(400, 1, 0)
    bounds = [SearchGate(alpha).bound_pp(seen) for alpha in (0.4, 0.2, 0.05)]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 0.51, 1.0, float("nan")])
def test_a_level_that_makes_no_sense_is_refused_in_one_line(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"must be above 0 and at most 0\.5") as refused:
        SearchGate(alpha)
    assert "\n" not in str(refused.value)
