"""Precision plans: immutable values with one identity, and parsing that answers every mistake in one line."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.errors import PlanError, PrecisionError
from wattbit.plan import PrecisionPlan
from wattbit.precision import PRECISIONS

LAYERS = ("stem", "body.0.conv", "head")
PLAN = PrecisionPlan({"stem": "fp32", "body.0.conv": "int8", "head": "int4"})
NAMES = st.text(min_size=1, max_size=12)
PLANS = st.dictionaries(NAMES, st.sampled_from(list(PRECISIONS)), min_size=1, max_size=8).map(PrecisionPlan)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(PLANS)
@settings(deadline=None)
def test_a_plan_survives_its_json(plan: PrecisionPlan) -> None:
    parsed = PrecisionPlan.parse(plan.to_json(), list(plan))
    assert parsed == plan
    assert list(parsed.items()) == list(plan.items())
    assert parsed.plan_id == plan.plan_id


@given(PLANS, st.randoms())
@settings(deadline=None)
def test_the_identity_of_a_plan_does_not_depend_on_the_order_of_layers(
    plan: PrecisionPlan, random: Random
) -> None:
    items = list(plan.items())
    random.shuffle(items)
    shuffled = PrecisionPlan(dict(items))
    assert shuffled == plan
    assert hash(shuffled) == hash(plan)
    assert shuffled.plan_id == plan.plan_id


@given(PLANS, PLANS)
@settings(deadline=None)
def test_plans_that_differ_have_different_identities(one: PrecisionPlan, other: PrecisionPlan) -> None:
    assert (one == other) == (one.plan_id == other.plan_id)


def test_the_identity_is_the_hash_of_the_documented_canonical_json() -> None:
    # Computed apart: printf '%s' '{"body.0.conv":"int8","head":"int4","stem":"fp32"}' | sha256sum
    assert PLAN.plan_id == "489124ca7ab458fb"


def test_a_layer_name_that_is_no_unicode_has_an_identity_all_the_same() -> None:
    plan = PrecisionPlan({"\ud800": "int8"})
    assert len(plan.plan_id) == 16
    assert PrecisionPlan.parse(plan.to_json(), ["\ud800"]) == plan


def test_a_plan_is_a_mapping_in_execution_order() -> None:
    assert list(PLAN) == list(LAYERS)
    assert PLAN["head"] == "int4"
    assert len(PLAN) == 3
    assert PLAN.get("tail") is None


def test_a_plan_cannot_be_changed() -> None:
    source = {"stem": "int8"}
    plan = PrecisionPlan(source)
    source["stem"] = "int2"
    assert plan["stem"] == "int8"
    with pytest.raises(TypeError):
        plan["stem"] = "int2"  # type: ignore[index]
    with pytest.raises(AttributeError):
        plan.note = "x"  # type: ignore[attr-defined]


@pytest.mark.parametrize("copied", [copy.deepcopy(PLAN), pickle.loads(pickle.dumps(PLAN)), eval(repr(PLAN))])  # noqa: S301, S307
def test_copies_of_a_plan_are_equal(copied: PrecisionPlan) -> None:
    assert copied == PLAN
    assert hash(copied) == hash(PLAN)


def test_a_plan_is_not_equal_to_a_dict() -> None:
    assert dict(PLAN) != PLAN


def test_replacing_changes_the_named_layers_only() -> None:
    changed = PLAN.replace(**{"body.0.conv": "bf16"})
    assert dict(changed) == {**PLAN, "body.0.conv": "bf16"}
    assert changed.changed_layers(PLAN) == ("body.0.conv",)
    assert PLAN.changed_layers(PLAN) == ()


def test_a_layer_may_be_called_self() -> None:
    assert PrecisionPlan({"self": "int8"}).replace(self="int4")["self"] == "int4"


def test_replacing_an_unknown_layer_is_refused() -> None:
    with pytest.raises(
        PlanError, match=r"layer 'tail' is not in this plan; its layers: stem, body.0.conv, head"
    ):
        PLAN.replace(tail="int8")


def test_long_lists_of_layers_are_cut_in_messages() -> None:
    many = [f"layer{index}" for index in range(50)]
    with pytest.raises(PlanError, match=r"layer5, … \(50 in all\)$"):
        PrecisionPlan.uniform(many, "int8").replace(tail="int8")


# --- the three accepted forms -----------------------------------------------------------------------------


def test_the_full_form_is_read() -> None:
    text = json.dumps({"schema": 1, "precisions": dict(PLAN)})
    assert PrecisionPlan.parse(text, LAYERS) == PLAN


def test_a_bare_map_is_read_and_put_in_execution_order() -> None:
    text = json.dumps(dict(reversed(list(PLAN.items()))))
    assert list(PrecisionPlan.parse(text, LAYERS)) == list(LAYERS)


def test_one_name_is_read_as_the_uniform_plan() -> None:
    assert PrecisionPlan.parse('"int8"', LAYERS) == PrecisionPlan.uniform(LAYERS, "int8")


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "plan is not valid JSON: Expecting value"),
        ("{", "plan is not valid JSON"),
        ("[" * 100_000, "plan is not valid JSON"),
        ("3", "plan is a JSON int; write {layer: precision} or one name"),
        ("null", "plan is a JSON NoneType"),
        ("[1]", "plan is a JSON list"),
        ("{}", "a plan needs at least one layer, got none"),
        ('{"schema": 2, "precisions": {}}', "plan schema 2 is not 1; export the plan again"),
        ('{"precisions": []}', "'precisions' is a JSON list"),
        ('{"": "int8"}', "layer name '' in plan: must be a non-empty string"),
        ('{"stem": "int8", "stem": "int4"}', "'stem' is given twice"),
        (
            '{"stem": "int8", "tail": "int8"}',
            "plan names layer 'tail', which the model lacks; its layers: stem",
        ),
        ('{"stem": "int8"}', "plan leaves out layer 'body.0.conv' (2 of 3 missing)"),
        ('{"stem": "int9"}', "unknown precision 'int9'"),
        ('{"stem": {"stem": "int8"}}', "unknown precision {'stem': 'int8'}"),
        ('"float"', "unknown precision 'float'"),
    ],
)
def test_a_mistake_in_a_plan_is_answered_in_one_line(text: str, message: str) -> None:
    with pytest.raises((PlanError, PrecisionError)) as error:
        PrecisionPlan.parse(text, LAYERS)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@given(st.one_of(st.text(), JSON.map(json.dumps)))
@settings(deadline=None)
def test_any_text_is_a_plan_or_is_refused_in_one_short_line(text: str) -> None:
    try:
        assert isinstance(PrecisionPlan.parse(text, LAYERS), PrecisionPlan)
        return
    except (PlanError, PrecisionError) as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    assert len(message) < 500


def test_a_plan_file_with_a_hundred_thousand_doubled_layers_is_refused_at_once() -> None:
    text = "{" + ", ".join(f'"{index}": "int8"' for index in range(100_000)) + ', "99999": "int8"}'
    with pytest.raises(PlanError, match="'99999' is given twice"):
        PrecisionPlan.parse(text, LAYERS)


def test_a_plan_cannot_be_made_of_something_else_than_a_map() -> None:
    with pytest.raises(PlanError, match="a plan maps layers to precisions, got a list; give a map"):
        PrecisionPlan(["int8"])  # type: ignore[arg-type]


def test_a_plan_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(PLAN.to_json(), encoding="utf-8")
    assert PrecisionPlan.read(path, LAYERS) == PLAN


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(PlanError, match="cannot read plan file") as error:
            PrecisionPlan.read(path, LAYERS)
        assert str(path) in str(error.value)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="give the path of a JSON file"):
        PrecisionPlan.read(binary, LAYERS)
