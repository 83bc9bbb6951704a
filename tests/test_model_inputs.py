"""Inputs of any shape a model takes: counted, cut, and passed on as the model wants them."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from wattbit.errors import ConfigError, DataError, ModelError
from wattbit.model_inputs import (
    Inputs,
    batches,
    call_model,
    inputs_of_call,
    logits_of,
    map_tensors,
    num_samples,
    predict,
    select,
    tensors_in,
)

X = torch.arange(12.0).reshape(6, 2)
Y = torch.arange(6)
Pair = namedtuple("Pair", ["left", "right"])
FORMS = [X, (X, Y), {"x": X, "y": Y}, ({"x": X}, [Y, None]), {"x": X, "flag": True, "none": None}]


def tensors(inputs: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(inputs, note)
    return found


@pytest.mark.parametrize("inputs", FORMS)
def test_samples_are_counted_along_the_first_axis(inputs: Inputs) -> None:
    assert num_samples(inputs) == 6


@pytest.mark.parametrize("inputs", FORMS)
@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_batches_hold_every_sample_once_and_in_order(inputs: Inputs, batch_size: int) -> None:
    parts = list(batches(inputs, batch_size))
    assert [num_samples(part) for part in parts[:-1]] == [batch_size] * (len(parts) - 1)
    for index, whole in enumerate(tensors(inputs)):
        assert torch.equal(torch.cat([tensors(part)[index] for part in parts]), whole)


def test_samples_are_selected_by_index() -> None:
    selected = select((X, Y), torch.tensor([3, 1]))
    assert isinstance(selected, tuple)
    assert torch.equal(selected[1], torch.tensor([3, 1]))


def test_what_all_samples_share_is_not_cut() -> None:
    mask, scale = torch.ones(2, 2), torch.tensor(0.5)
    inputs = {"x": X, "mask": mask, "scale": scale, "causal": True, "past": None, "name": "a"}
    part = select(inputs, slice(0, 3))
    assert isinstance(part, dict)
    assert len(part["x"]) == 3
    assert part["mask"] is mask
    assert part["scale"] is scale
    assert (part["causal"], part["past"], part["name"]) == (True, None, "a")


def test_nested_inputs_keep_their_types() -> None:
    inputs = (Pair(X, [Y]), {"x": X})
    doubled = map_tensors(inputs, lambda x: x * 2)
    assert isinstance(doubled, tuple)
    assert isinstance(doubled[0], Pair)
    assert isinstance(doubled[0].right, list)
    assert torch.equal(doubled[0].right[0], Y * 2)
    assert torch.equal(doubled[1]["x"], X * 2)


class OwnDict(dict[str, Any]):
    """A dict of a class of its own, as batches of some libraries are."""


class OwnList(list[Any]):
    """A list of a class of its own."""


class Registered(OrderedDict[str, Any]):
    """A model's output as transformers has them: a class of its own that pytree has been told of."""


pytree.register_pytree_node(
    Registered,
    lambda output: (list(output.values()), list(output)),
    lambda values, keys: Registered(zip(keys, values, strict=True)),
)


@pytest.mark.parametrize(
    ("inputs", "kept"),
    [
        (OrderedDict(x=X, flag=None), OrderedDict),
        (defaultdict(list, x=[X]), dict),
        (OwnDict(x=X, size=torch.Size([2])), dict),
        ((OwnDict(x=OwnList([X])), 3), tuple),
        ([Pair(OwnList([(X,)]), "a")], list),
        (Registered(logits=X, hidden=None), Registered),
        ({"output": Registered(states=(X, OwnDict()))}, dict),
    ],
)
def test_tensors_are_found_in_containers_of_any_class(inputs: Any, kept: type) -> None:
    assert num_samples(inputs) == 6
    [found] = tensors_in(inputs)
    assert found is X
    part = select(inputs, slice(1, 3))
    assert isinstance(part, kept)
    [cut] = tensors_in(part)
    assert torch.equal(cut, X[1:3])


@pytest.mark.parametrize("inputs", [(), {}, (None, 3), {"scale": torch.tensor(1.0)}])
def test_inputs_without_samples_are_refused_in_one_line(inputs: Inputs) -> None:
    for use in (num_samples, lambda i: select(i, slice(0, 1)), lambda i: list(batches(i, 2))):
        with pytest.raises(ModelError, match="hold no tensor with samples, need at least 1"):
            use(inputs)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch size {batch_size}: must be at least 1"):
        list(batches(X, batch_size))


def test_models_are_called_the_way_their_inputs_ask_for() -> None:
    calls = []

    def model(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))

    for inputs in (X, (X, Y), {"x": X}):
        call_model(model, inputs)
    assert calls == [((X,), {}), ((X, Y), {}), ((), {"x": X})]


# --- repeating a call -------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Records its arguments."""

    def forward(self, x: Tensor, y: Any = None, *, z: int = 0, **more: Any) -> tuple[Any, ...]:
        return x, y, z, more


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X,), {}),
        ((X, Y), {}),
        (({"x": X},), {}),
        (((X, Y),), {}),
        (([X, Y],), {}),
        ((), {"x": X, "z": 3}),
        ((X,), {"y": Y}),
        ((X, Y), {"z": 2, "w": 5}),
    ],
)
def test_any_call_of_a_model_can_be_repeated_as_it_was(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    model = Recorder()
    assert call_model(model, inputs_of_call(model, args, kwargs)) == model(*args, **kwargs)


def test_arguments_that_do_not_fit_raise_what_the_model_would() -> None:
    with pytest.raises(TypeError):
        inputs_of_call(nn.Linear(2, 2), (X,), {"y": Y})


def test_a_mixed_call_that_keywords_cannot_express_is_refused() -> None:
    class Variadic(nn.Module):
        def forward(self, *xs: Tensor, scale: float = 1.0) -> Tensor:
            return torch.stack(xs).sum(0) * scale

    with pytest.raises(ModelError, match="'xs' of the model cannot be given by keyword beside scale"):
        inputs_of_call(Variadic(), (X, X), {"scale": 2.0})


# --- outputs ----------------------------------------------------------------------------------------------


class WithLogits:
    """An output as language-model libraries return it."""

    logits = X


@pytest.mark.parametrize("output", [X, (X, Y), [X], WithLogits(), {"logits": X, "loss": 3}])
def test_logits_are_found_in_the_usual_outputs(output: Any) -> None:
    assert logits_of(output) is X


@pytest.mark.parametrize("output", [None, 3, (), [], {}, {"loss": X}, ("a", X)])
def test_an_output_without_logits_is_refused_in_one_line(output: Any) -> None:
    with pytest.raises(ModelError, match="which holds no logits; return a tensor of shape") as error:
        logits_of(output)
    assert len(str(error.value).splitlines()) == 1


def test_predicting_in_batches_gives_what_one_batch_gives(
    linear_model: tiny.TokenNet, linear_inputs: Tensor
) -> None:
    logits = predict(linear_model, linear_inputs, 10)
    with torch.inference_mode():
        torch.testing.assert_close(logits, linear_model(linear_inputs))
    assert logits.dtype == torch.float32
    assert not logits.requires_grad


def test_predicting_nothing_is_refused(linear_model: tiny.TokenNet, linear_inputs: Tensor) -> None:
    with pytest.raises(DataError, match="0 samples give no logits"):
        predict(linear_model, linear_inputs[:0], 10)
