"""The limits: what is accepted, what is refused, and what the presets mean."""

from __future__ import annotations

import importlib
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.errors import GuardrailError
from wattbit.guardrail import Guardrail, RelativeGuardrail

PRESETS = Path(__file__).parents[1] / "conf" / "guardrail"


def preset(name: str) -> Guardrail | RelativeGuardrail:
    settings_of = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    module, _, class_name = settings_of.pop("_target_").rpartition(".")
    value: Guardrail | RelativeGuardrail = getattr(importlib.import_module(module), class_name)(**settings_of)
    return value


@pytest.mark.parametrize("tolerance", [0, 0.0, -1.0, 100.1, math.nan, math.inf, "1", None, True])
def test_a_tolerance_that_makes_no_sense_is_refused_in_one_line(tolerance: Any) -> None:
    with pytest.raises(GuardrailError) as caught:
        Guardrail(tolerance)
    assert "tolerance_pp" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, -0.05, math.nan, "0.05", None])
def test_an_alpha_that_makes_no_sense_is_refused(alpha: Any) -> None:
    with pytest.raises(GuardrailError, match=r"alpha .* must lie between 0 and 0\.5"):
        Guardrail(1.0, alpha=alpha)


@pytest.mark.parametrize(
    "per_class", [{-1: 0.2}, {"cat": 0.2}, {True: 0.2}, {0: 0.0}, {0: math.nan}, [0.2], {1: 101}]
)
def test_class_limits_that_make_no_sense_are_refused(per_class: Any) -> None:
    with pytest.raises(GuardrailError):
        Guardrail(1.0, per_class_pp=per_class)


def test_a_class_given_as_number_and_as_text_is_refused() -> None:
    both: Any = {1: 0.2, "1": 0.3}
    with pytest.raises(GuardrailError, match="class 1 is given twice"):
        Guardrail(1.0, per_class_pp=both)


@pytest.mark.parametrize("name", ["max_latency_ms", "max_memory_bytes"])
@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, "5", True])
def test_hard_limits_that_make_no_sense_are_refused(name: str, limit: Any) -> None:
    with pytest.raises(GuardrailError, match=name):
        Guardrail(1.0, **{name: limit})


def test_strict_must_be_true_or_false() -> None:
    not_a_bool: Any = "no"
    with pytest.raises(GuardrailError, match="strict 'no' must be true or false"):
        Guardrail(1.0, strict=not_a_bool)


def test_class_limits_may_be_keyed_by_text_as_json_and_command_lines_write_them() -> None:
    text_keys: Any = {"3": 0.2}
    assert Guardrail(1.0, per_class_pp=text_keys) == Guardrail(1.0, per_class_pp={3: 0.2})


def test_changing_the_map_of_class_limits_afterwards_does_not_change_the_guardrail() -> None:
    limits = {3: 0.2}
    guardrail = Guardrail(1.0, per_class_pp=limits)
    limits[3] = 50.0
    assert guardrail.per_class_pp == {3: 0.2}


def test_a_guardrail_can_be_a_key() -> None:
    assert len({Guardrail(1.0), Guardrail(1.0), Guardrail(0.5)}) == 2


def test_broken_hard_limits_are_named_with_value_and_limit() -> None:
    guardrail = Guardrail(1.0, max_latency_ms=5.0, max_memory_bytes=1000)
    assert guardrail.violations(5.0, 1000) == ()
    assert guardrail.violations(7.25, 1001) == (
        "latency 7.25 ms is above the limit of 5 ms",
        "memory 1001 bytes is above the limit of 1000 bytes",
    )


def test_a_latency_of_nan_breaks_the_limit() -> None:
    assert len(Guardrail(1.0, max_latency_ms=5.0).violations(math.nan, None)) == 1


def test_figures_that_are_not_known_are_named_but_break_nothing() -> None:
    guardrail = Guardrail(1.0, max_latency_ms=5.0, max_memory_bytes=1000)
    assert guardrail.violations(None, None) == ()
    assert len(guardrail.unknowns(None, None)) == 2
    assert guardrail.unknowns(4.0, 10) == ()
    assert Guardrail(1.0).unknowns(None, None) == ()


@settings(deadline=None, max_examples=50)
@given(
    st.floats(1e-6, 100.0),
    st.floats(1e-6, 0.499),
    st.booleans(),
    st.dictionaries(st.integers(0, 1000), st.floats(1e-3, 100.0), max_size=4),
    st.none() | st.floats(1e-3, 1e6),
    st.none() | st.integers(1, 10**12),
)
def test_a_guardrail_survives_its_dict_form(
    tolerance_pp: float,
    alpha: float,
    strict: bool,
    per_class_pp: dict[int, float],
    max_latency_ms: float | None,
    max_memory_bytes: int | None,
) -> None:
    guardrail = Guardrail(
        tolerance_pp,
        alpha=alpha,
        strict=strict,
        per_class_pp=per_class_pp,
        max_latency_ms=max_latency_ms,
        max_memory_bytes=max_memory_bytes,
    )
    assert Guardrail(**guardrail.as_dict()) == guardrail


def test_a_relative_tolerance_is_that_share_of_the_reference_accuracy() -> None:
    resolved = RelativeGuardrail(0.01, alpha=0.01, per_class_pp={2: 0.5}, max_latency_ms=3.0).resolve(0.7646)
    assert resolved.tolerance_pp == pytest.approx(0.7646)
    assert resolved == Guardrail(resolved.tolerance_pp, alpha=0.01, per_class_pp={2: 0.5}, max_latency_ms=3.0)


def test_an_absolute_guardrail_resolves_to_itself() -> None:
    guardrail = Guardrail(1.0)
    assert guardrail.resolve(0.8) is guardrail


@pytest.mark.parametrize("accuracy", [0.0, -0.1, 76.46, math.nan])
def test_a_reference_accuracy_that_is_no_share_is_refused(accuracy: float) -> None:
    with pytest.raises(GuardrailError, match="give it as a share"):
        RelativeGuardrail(0.01).resolve(accuracy)


@pytest.mark.parametrize("relative", [0.0, 1.0, 99.0, math.nan, "0.01"])
def test_a_relative_tolerance_that_is_no_share_is_refused(relative: Any) -> None:
    with pytest.raises(GuardrailError, match="relative_tolerance"):
        RelativeGuardrail(relative)


def test_presets_are_what_their_names_say() -> None:
    assert preset("default") == Guardrail(1.0)
    assert preset("strict") == Guardrail(0.5, strict=True)
    assert preset("mlperf_99") == RelativeGuardrail(0.01)
    assert preset("mlperf_99_9") == RelativeGuardrail(0.001)


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_names_every_argument_of_its_constructor(name: str) -> None:
    settings_of = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    target = type(preset(name))
    assert settings_of.keys() - {"_target_"} == set(inspect.signature(target).parameters)
