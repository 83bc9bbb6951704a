"""Splits that are disjoint, balanced and fixed by a seed, and workloads that are whole."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import one_line
from torch import Tensor, nn

from wattbit.errors import ConfigError, DataError, ModelError
from workloads.splits import make_splits
from workloads.workload import SPLITS, Split, Workload

SIZES = {"calibrate": 10, "search": 20, "certify": 30, "test": 10}


def numbered_data(samples: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Inputs that say which sample they are, and labels."""
    numbers = torch.arange(samples)
    return numbers[:, None].float(), numbers % classes


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 5), min_size=20, max_size=200),
    sizes=st.fixed_dictionaries({}, optional={name: st.integers(2, 40) for name in SPLITS[1:]}),
    seed=st.integers(0, 2**31),
)
def test_every_sample_is_in_exactly_one_split_and_classes_are_balanced(
    labels: list[int], sizes: dict[str, int], seed: int
) -> None:
    if sum(sizes.values()) + 2 > len(labels):
        with pytest.raises(DataError):
            make_splits(torch.arange(len(labels)), torch.tensor(labels), sizes, seed)
        return
    splits = make_splits(torch.arange(len(labels)), torch.tensor(labels), sizes, seed)
    assert list(splits) == [name for name in SPLITS if name == "train" or name in sizes]
    numbers = [number for split in splits.values() for number in split.inputs.tolist()]  # type: ignore[union-attr]
    assert sorted(numbers) == list(range(len(labels)))
    for name, size in sizes.items():
        assert len(splits[name]) == size
    for split in splits.values():
        assert split.labels.tolist() == [labels[number] for number in split.inputs.tolist()]  # type: ignore[union-attr]
        for label in set(labels):
            expected = len(split) * labels.count(label) / len(labels)
            assert abs(split.labels.tolist().count(label) - expected) < 3


def test_a_small_split_of_balanced_data_has_every_class_equally_often() -> None:
    splits = make_splits(*numbered_data(1000, classes=10), {"calibrate": 20, "search": 100}, seed=3)
    assert torch.bincount(splits["calibrate"].labels).tolist() == [2] * 10
    assert torch.bincount(splits["search"].labels).tolist() == [10] * 10


def test_the_same_seed_gives_the_same_splits_and_another_seed_others() -> None:
    first, again, other = (make_splits(*numbered_data(200), SIZES, seed) for seed in (1, 1, 2))
    for name in SPLITS:
        assert first[name].fingerprint() == again[name].fingerprint()
        assert first[name].fingerprint() != other[name].fingerprint()


def test_splitting_leaves_the_global_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    make_splits(*numbered_data(200), SIZES, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_classes_are_mixed_within_a_split() -> None:
    labels = torch.arange(1000) // 100
    split = make_splits(torch.zeros(1000), labels, {"search": 500}, 0)["search"]
    assert len(set(split.labels[:100].tolist())) > 5


def test_inputs_of_several_tensors_stay_together() -> None:
    numbers, labels = numbered_data(200)
    tuples = make_splits((numbers, numbers * 2), labels, SIZES, 0)["search"].inputs
    assert isinstance(tuples, tuple)
    assert torch.equal(tuples[0] * 2, tuples[1])
    dicts = make_splits({"a": numbers, "b": numbers * 3}, labels, SIZES, 0)["search"].inputs
    assert isinstance(dicts, dict)
    assert torch.equal(dicts["a"] * 3, dicts["b"])


def test_too_few_samples_are_refused_with_how_many_there_are_and_how_many_would_do() -> None:
    with pytest.raises(DataError) as error:
        make_splits(*numbered_data(71), SIZES, 0)
    message = one_line(error)
    assert "71" in message
    assert "need 72" in message
    assert "certify 30" in message
    assert len(make_splits(*numbered_data(72), SIZES, 0)["train"]) == 2


def test_empty_data_are_refused() -> None:
    with pytest.raises(DataError) as error:
        make_splits(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), {}, 0)
    assert "have 0" in one_line(error)
    with pytest.raises(DataError, match="empty"):
        Split(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="empty"):
        Split((), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("sizes", [{"serch": 10}, {"train": 10}])
def test_a_split_that_cannot_be_sized_is_refused_with_the_valid_names(sizes: dict[str, int]) -> None:
    with pytest.raises(DataError) as error:
        make_splits(*numbered_data(100), sizes, 0)
    assert "calibrate, search, certify, test" in one_line(error)


@pytest.mark.parametrize("size", [-5, 0, 1])
def test_a_split_of_less_than_two_samples_is_refused(size: int) -> None:
    with pytest.raises(DataError) as error:
        make_splits(*numbered_data(100), {"search": size}, 0)
    assert f"'search' is too small: {size} samples" in one_line(error)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("axes", [1, 3])
def test_inputs_that_are_not_finite_are_refused_with_the_first_sample(bad: float, axes: int) -> None:
    inputs = torch.zeros(100, *[2] * (axes - 1))
    inputs[17] = bad
    with pytest.raises(DataError) as error:
        make_splits({"pixels": inputs}, numbered_data(100)[1], {"search": 10}, 0)
    message = one_line(error)
    assert "1 of 100" in message
    assert "sample 17" in message
    assert "pixels" in message


@pytest.mark.parametrize(
    "inputs", [torch.zeros(99, 2), (torch.zeros(100), torch.zeros(101)), torch.tensor(1.0)]
)
def test_inputs_and_labels_of_different_length_are_refused(inputs: Any) -> None:
    with pytest.raises(DataError) as error:
        make_splits(inputs, numbered_data(100)[1], {"search": 10}, 0)
    assert "100 labels" in one_line(error)


@pytest.mark.parametrize("labels", [torch.zeros(9), torch.zeros(9, dtype=torch.int32), torch.eye(9).long()])
def test_labels_that_are_not_class_indices_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError) as error:
        Split(torch.zeros(9, 2), labels)
    assert "torch.int64" in one_line(error)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), samples=st.integers(1, 6), features=st.integers(1, 4))
def test_a_fingerprint_changes_with_any_value(data: st.DataObject, samples: int, features: int) -> None:
    inputs, labels = torch.zeros(samples, features), torch.zeros(samples, dtype=torch.int64)
    fingerprint = Split(inputs, labels).fingerprint()
    assert Split(inputs.clone(), labels.clone()).fingerprint() == fingerprint
    position = data.draw(st.integers(0, samples - 1)), data.draw(st.integers(0, features - 1))
    changed = inputs.clone()
    changed[position] = 1e-30
    assert Split(changed, labels).fingerprint() != fingerprint
    relabelled = labels.clone()
    relabelled[position[0]] = 1
    assert Split(inputs, relabelled).fingerprint() != fingerprint


def test_a_fingerprint_depends_on_type_shape_and_name_but_not_on_memory_layout() -> None:
    values, labels = torch.ones(4, 2, 3), torch.zeros(4, dtype=torch.int64)
    transposed = values.transpose(1, 2).contiguous().transpose(1, 2)
    assert Split(transposed, labels).fingerprint() == Split(values, labels).fingerprint()
    assert Split({"a": values, "b": values}, labels).fingerprint() == (
        Split(dict(reversed({"a": values, "b": values}.items())), labels).fingerprint()
    )
    variants: list[Any] = [
        *(values, values.bfloat16(), values.flatten(1), values.bool()),
        *((values,), (values, values), {"a": values}, {"b": values}),
    ]
    assert len({Split(inputs, labels).fingerprint() for inputs in variants}) == len(variants)


def tiny_workload(**changes: Any) -> Workload:
    split = Split(torch.zeros(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]))
    workload = Workload(
        name="tiny",
        model=nn.Linear(2, 3).eval(),
        splits=dict.fromkeys(SPLITS, split),
        classes=("a", "b", "c"),
        batch_size=4,
        description="",
    )
    return dataclasses.replace(workload, **changes)


def test_a_sound_workload_is_accepted() -> None:
    assert len(tiny_workload().splits["search"]) == 6


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_a_class_is_refused(label: int) -> None:
    splits = {**tiny_workload().splits, "certify": Split(torch.zeros(2, 2), torch.tensor([0, label]))}
    with pytest.raises(DataError) as error:
        tiny_workload(splits=splits)
    message = one_line(error)
    assert f"'certify' has label {label}" in message
    assert "0 to 2" in message


@pytest.mark.parametrize("name", SPLITS[1:])
def test_a_workload_without_one_of_the_splits_is_refused(name: str) -> None:
    splits = {other: split for other, split in tiny_workload().splits.items() if other != name}
    with pytest.raises(DataError) as error:
        tiny_workload(splits=splits)
    assert f"lacks split {name!r}" in one_line(error)


def test_a_workload_with_an_unknown_or_too_small_split_is_refused() -> None:
    splits = tiny_workload().splits
    with pytest.raises(DataError, match="unknown split 'extra'"):
        tiny_workload(splits={**splits, "extra": splits["test"]})
    with pytest.raises(DataError, match="'test' is too small: 1 samples"):
        tiny_workload(splits={**splits, "test": Split(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_with_weights_that_are_not_finite_is_refused(bad: float) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    model[1].running_var[1] = bad  # type: ignore[operator]
    with pytest.raises(ModelError) as error:
        tiny_workload(model=model)
    assert "'1.running_var' has NaN or infinite values" in one_line(error)


def test_a_model_that_is_no_reference_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        tiny_workload(model=nn.Linear(2, 3))
    with pytest.raises(ModelError, match=r"model\.float\(\)"):
        tiny_workload(model=nn.Linear(2, 3).bfloat16().eval())
    with pytest.raises(ModelError, match=r"model\.cpu\(\)"):
        tiny_workload(model=nn.Linear(2, 3, device="meta").eval())


def test_a_batch_size_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=0"):
        tiny_workload(batch_size=0)
