"""Reading results.json: what is there is checked, what is not there is None or empty."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from results_example import (
    bare_results,
    confirmed_results,
    example_results,
    interrupted_results,
    read,
)

from report.results import RunResults
from wattbit.errors import ConfigError


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("plans", 3, "energy_j"),
            "much",
            r"results\.plans\[3\]\.energy_j is 'much': must be a finite number or null",
        ),
        (("plans", 0, "precisions"), [1], r"results\.plans\[0\]\.precisions is \[1\]: must be an object"),
        (("plans",), "none", r"results\.plans is 'none': must be a list"),
        (
            ("plans", 1, "certify_interval_pp"),
            [1],
            r"certify_interval_pp is \[1\]: must be a list of 2",
        ),
        (("plans", 2, "method"), None, r"results\.plans\[2\]\.method is None: must be a text"),
        (
            ("deployed", 1, "tolerance_pp"),
            "one",
            r"results\.deployed\[1\]\.tolerance_pp is 'one': must be a finite number",
        ),
        (("guardrail", "per_class_pp"), {"one": 1}, r"per_class_pp is 'one': must be keyed by whole numbers"),
        (("guardrail", "alpha"), 2, r"results\.guardrail: alpha 2\.0 must lie between"),
        (("seed",), 0.5, r"results\.seed is 0\.5: must be a whole number or null"),
        (
            ("plans", 0, "verdict"),
            "maybe",
            r"'maybe': must be one of pass, fail, inconclusive or",
        ),
        (("plans", 0, "speed"), 1, r"results\.plans\[0\] has a field 'speed' that no results have"),
        (("layers", 4, "shape"), {}, r"results\.layers\[4\]\.shape\.name is None"),
        (("archive", 0), 7, r"results\.archive\[0\] is 7: must be an object"),
        (("peak_rss_mb",), True, r"results\.peak_rss_mb is True: must be a finite number or null"),
        (("notes", 0), {}, r"results\.notes\[0\] is {}: must be a text"),
    ],
)
def test_a_field_of_the_wrong_type_is_named_with_its_place(
    path: tuple[Any, ...], value: object, message: str
) -> None:
    results: Any = example_results()
    part = results
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        read(results)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(st.data(), JSON)
def test_any_value_anywhere_is_read_or_refused_in_one_line(data: st.DataObject, value: Any) -> None:
    results = example_results()
    results["archive"] = results["archive"][:2]
    part: Any = results
    while True:
        step = data.draw(
            st.sampled_from(list(part)) if isinstance(part, dict) else st.integers(0, len(part) - 1)
        )
        if not isinstance(part[step], dict | list) or not part[step] or data.draw(st.booleans()):
            break
        part = part[step]
    part[step] = value
    message = ""
    try:
        read(results)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


def test_results_are_read_as_they_were_written() -> None:
    for make in (example_results, confirmed_results, interrupted_results, bare_results):
        run = read(make())
        assert RunResults.from_json(run.to_json()) == run


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" + 400 * "0"])
@pytest.mark.parametrize("field", ["peak_rss_mb", "interval_level"])
def test_numbers_that_are_not_finite_are_refused(number: str, field: str) -> None:
    text = json.dumps(bare_results()).replace("{", f'{{"{field}": {number}, ', 1)
    with pytest.raises(ConfigError, match=r"NaN is no|Infinity is no|must be a finite number"):
        RunResults.from_json(text)


def test_a_deployed_plan_that_no_method_proposed_there_is_listed_all_the_same() -> None:
    results = example_results()
    results["plans"] = [
        plan for plan in results["plans"] if (plan["method"], plan["tolerance_pp"]) != ("ppo", 1.0)
    ]
    run = read(results)
    plans = run.plans_at(1.0)
    assert plans[0].method == "ppo"
    assert [run.is_deployed(plan) for plan in plans] == [True] + [False] * (len(plans) - 1)


def test_methods_are_compared_at_the_tolerance_of_the_guardrail() -> None:
    results = example_results()
    assert read(results).main_tolerance_pp == 1.0
    results["guardrail"]["tolerance_pp"] = 0.5
    assert read(results).main_tolerance_pp == 0.5
