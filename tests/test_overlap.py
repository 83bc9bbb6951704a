"""Splits that share samples are refused by content; a reference no better than chance is said to be."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from messages import one_line
from shaped import workload

from pipeline.reference_check import check_reference
from wattbit.errors import DataError
from workloads.workload import SPLITS, Split, Workload


def noise(samples: int) -> torch.Tensor:
    """Inputs that no other call gives."""
    return torch.rand(samples, 4) + next(_SHIFTS)


_SHIFTS = iter(range(10, 1000))


def made(**splits: Split) -> Workload:
    whole = workload(lambda y: y)
    return dataclasses.replace(whole, splits={**whole.splits, **splits})


def test_the_same_split_used_five_times_is_refused() -> None:
    with pytest.raises(DataError) as error:
        check_reference(made(**dict.fromkeys(SPLITS, made().splits["search"])))
    assert "60 of 60 samples of split" in one_line(error)
    assert "allowed is 1%" in one_line(error)


@pytest.mark.parametrize("count", [2, 30])
def test_splits_that_share_samples_in_another_order_are_refused(count: int) -> None:
    search, certify = made().splits["search"], made().splits["certify"]
    inputs = certify.inputs.clone()  # type: ignore[union-attr]
    inputs[-count:] = search.inputs[:count].flip(0)  # type: ignore[index, union-attr]
    with pytest.raises(DataError, match=f"{count} of 60 samples of split"):
        check_reference(made(certify=Split(inputs, certify.labels)))


def test_a_few_samples_in_two_splits_are_said_and_accepted() -> None:
    x = noise(300)
    whole = made(certify=Split(x, torch.arange(300) % 2))
    search = Split(noise(300), torch.arange(300) % 2)
    search.inputs[0] = x[7]  # type: ignore[index]
    check = check_reference(dataclasses.replace(whole, splits={**whole.splits, "search": search}))
    assert any("1 of 300 samples" in warning for warning in check.warnings)


def test_a_model_at_chance_is_warned_about_on_each_split_that_decides() -> None:
    labels = torch.arange(60) % 2
    bad = {name: Split(noise(60), labels) for name in ("search", "certify")}
    check = check_reference(made(**bad))
    assert len(check.warnings) == 2
    assert all("not clearly better than always naming the commonest class (30)" in w for w in check.warnings)


def test_a_model_as_good_as_the_commonest_class_is_warned_about() -> None:
    labels = torch.zeros(60, dtype=torch.int64)
    check = check_reference(made(certify=Split(noise(60), labels)))
    assert any("'certify'" in warning for warning in check.warnings)


def test_train_may_be_left_out_and_the_accuracy_of_every_other_split_is_told() -> None:
    assert "train" not in made().splits
    text = check_reference(made()).text
    assert all(f"100.00 % on {name}" in text for name in SPLITS[1:])
