"""Choosing a meter: the first counter that works, and a sentence that says why."""

from collections.abc import Callable

import pytest

from wattbit.energy.auto import choose_meter
from wattbit.energy.device_model import DeviceModel, MemoryLevel
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.time_power import TimePowerMeter
from wattbit.errors import MeterError

FALLBACK = DeviceModel(
    name="toy_device",
    source="round numbers",
    mac_pj={"int8": 0.5},
    memory=(MemoryLevel("all", None, 10.0, 1e8),),
    peak_macs_per_s={"int8": 1e12},
    conversion_pj={"float": 0.1, "int": 0.1, "block": 0.1, "widen": 0.1},
)
METER = TimePowerMeter(watts=1.0, source="a test", device="toy counter")


def works() -> EnergyMeter:
    return METER


def refuses(message: str) -> Callable[[], EnergyMeter]:
    def build() -> EnergyMeter:
        raise MeterError(message)

    return build


def must_not_run() -> EnergyMeter:
    raise AssertionError("a later candidate was built")


def test_the_first_counter_that_can_be_built_is_taken() -> None:
    choice = choose_meter([("first", works), ("second", must_not_run)], FALLBACK)
    assert choice.meter is METER
    assert choice.reason == "Energy is estimated by first on toy counter."


def test_counters_passed_over_are_named_with_their_reasons() -> None:
    choice = choose_meter([("nvml", refuses("no driver;\ninstall one.")), ("rapl", works)], FALLBACK)
    assert choice.meter is METER
    expected = "by rapl on toy counter, as others cannot measure here (nvml: no driver; install one)."
    assert choice.reason.endswith(expected)


def test_without_a_counter_the_declared_device_is_modelled_and_the_sentence_says_why() -> None:
    choice = choose_meter([("nvml", refuses("no driver")), ("rapl", refuses("not readable"))], FALLBACK)
    assert choice.meter is FALLBACK
    assert choice.reason.startswith("Energy is modelled for toy_device, ")
    assert "nvml: no driver; rapl: not readable" in choice.reason
    assert "\n" not in choice.reason


def test_without_candidates_the_declared_device_is_modelled() -> None:
    choice = choose_meter([], FALLBACK)
    assert choice.meter is FALLBACK
    assert choice.reason == "Energy is modelled for toy_device, as no counter was looked for."


def test_an_error_that_is_no_meter_error_is_not_hidden() -> None:
    with pytest.raises(AssertionError):
        choose_meter([("broken", must_not_run)], FALLBACK)
