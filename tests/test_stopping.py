"""A search stops when it must, and says why."""

import time

import pytest

from agents.search_method import spread
from agents.stopping import SearchInterrupted, StopRule
from wattbit.errors import ConfigError


def test_without_a_limit_nothing_stops() -> None:
    stop = StopRule()
    stop.check()
    assert stop.status == "finished"
    assert not stop.requested


def test_a_request_stops_at_the_next_check() -> None:
    stop = StopRule(1000.0)
    stop.request()
    assert stop.requested
    with pytest.raises(SearchInterrupted, match="interrupted"):
        stop.check()
    assert stop.status == "interrupted"


def test_a_time_limit_stops_once_it_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stop = StopRule(10.0)
    stop.check()
    now += 10.5
    with pytest.raises(SearchInterrupted, match="time limit"):
        stop.check()
    assert stop.status == "time limit"


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_limit_that_leaves_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        StopRule(seconds)


@pytest.mark.parametrize("length", [1, 2, 5, 17])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 40])
def test_spread_takes_both_ends_and_no_more_than_asked(length: int, count: int) -> None:
    chosen = spread(list(range(length)), count)
    assert len(chosen) == min(length, count)
    assert chosen == sorted(set(chosen))
    if count >= 1:
        assert chosen[-1] == length - 1
    if count >= 2:
        assert chosen[0] == 0
