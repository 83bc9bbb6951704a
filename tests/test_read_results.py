"""Reading results.json: what is there is checked, what is not there is None or empty."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from results_example import example_results

from report.read_results import parse_results
from wattbit.errors import ConfigError


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("plans", 3, "energy_j"),
            "much",
            r"results\.plans\[3\]\.energy_j is 'much': must be a number or null",
        ),
        (("plans", 0, "precisions"), [1], r"results\.plans\[0\]\.precisions is \[1\]: must be an object"),
        (("plans",), "none", r"results\.plans is 'none': must be a list"),
        (("plans", 1, "certify_interval_pp"), [1], r"certify_interval_pp is \[1\]: must be two numbers"),
        (("plans", 2, "method"), None, r"results\.plans\[2\]\.method is None: must be a text"),
        (("deployed",), {"one": None}, r"results\.deployed .* keyed by tolerances"),
        (("profile", "layers", 4, "shape"), {}, r"results\.profile\.layers\[4\]\.shape\.name is None"),
        (("archive", 0), 7, r"results\.archive\[0\] is 7: must be an object"),
        (("peak_rss_mb",), True, r"results\.peak_rss_mb is True: must be a number or null"),
        (("notes", 0), {}, r"results\.notes\[0\] is {}: must be a text or a number"),
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
        parse_results(results)


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
        parse_results(results)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


def test_results_that_never_were_a_file_may_have_numbers_as_keys_and_numpy_values() -> None:
    results = example_results()
    saving = {1.0: np.float32(0.5), 2.0: np.float64(0.75)}
    results["learning_curve"] = ({"timesteps": np.int64(64), "mean_reward": None, "best_saving": saving},)
    (point,) = parse_results(results).learning_curve
    assert (point.timesteps, point.best_saving) == (64.0, {1.0: 0.5, 2.0: 0.75})


def test_numbers_that_are_not_finite_read_as_unknown() -> None:
    results = example_results()
    results["plans"][0]["energy_j"] = float("nan")
    results["learning_curve"][0]["mean_reward"] = float("inf")
    run = parse_results(results)
    assert run.plans[0].energy_j is None
    assert run.learning_curve[0].mean_reward is None


def test_a_deployed_plan_that_no_method_proposed_there_is_listed_all_the_same() -> None:
    results = example_results()
    results["plans"] = [
        plan for plan in results["plans"] if (plan["method"], plan["tolerance_pp"]) != ("ppo", 1.0)
    ]
    run = parse_results(results)
    plans = run.plans_at(1.0)
    assert plans[0].method == "ppo"
    assert [run.is_deployed(plan) for plan in plans] == [True] + [False] * (len(plans) - 1)


def test_the_deployed_plan_takes_what_it_lacks_from_the_list_of_plans() -> None:
    results = example_results()
    twin = next(plan for plan in results["plans"] if (plan["method"], plan["tolerance_pp"]) == ("ppo", 2.0))
    deployed = parse_results(results).deployed[2.0]
    assert deployed is not None
    assert (deployed.latency_ms, deployed.test_drop_pp) == (twin["latency_ms"], twin["test_drop_pp"])


def test_methods_are_compared_at_the_tolerance_of_the_guardrail() -> None:
    results = example_results()
    assert parse_results(results).main_tolerance_pp == 1.0
    results["guardrail"]["tolerance_pp"] = 0.5
    assert parse_results(results).main_tolerance_pp == 0.5
