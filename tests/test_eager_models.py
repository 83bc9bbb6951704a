"""Models and inputs as people hold them: accepted, or refused in one line with the remedy."""

from __future__ import annotations

import copy
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from messages import one_line
from shaped import workload
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pipeline.reference_check import check_reference
from wattbit.eager import eager_model
from wattbit.errors import DataError, ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import batches
from wattbit.storage.fingerprint import model_fingerprint
from workloads.workload import SPLITS, Split, Workload

# torch compiles and scripts with deprecated parts of its own.
pytestmark = pytest.mark.filterwarnings("ignore")

X, LABELS = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def test_a_compiled_model_is_the_model_that_was_compiled() -> None:
    net = network()
    compiled: Any = torch.compile(net)
    assert eager_model(compiled) is net
    assert model_fingerprint(compiled) == model_fingerprint(net)
    with SwitchableModel(compiled, torch.zeros(2, 4), ["int8"]) as model:
        assert model.model is net
        assert model.layer_names == ("0", "2")


def test_a_model_within_data_parallelism_is_taken_out_of_it() -> None:
    net = network()
    assert eager_model(nn.DataParallel(net)) is net


def scripted() -> Any:
    return torch.jit.script(network())


def traced_within() -> Any:
    return nn.Sequential(torch.jit.trace(network(), torch.zeros(1, 4)))  # type: ignore[no-untyped-call]


def quantized() -> Any:
    return torch.ao.quantization.quantize_dynamic(network(), {nn.Linear})  # type: ignore[no-untyped-call]


def compiled_within() -> Any:
    inner: Any = torch.compile(nn.Linear(4, 4))
    return nn.Sequential(inner, nn.Linear(4, 2))


def compiled_in_place() -> nn.Module:
    net = network()
    net.compile()
    return net


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (scripted, "is a TorchScript module, whose layers cannot be switched one by one; give the eager"),
        (traced_within, "layer '0' is a TorchScript module"),
        (quantized, "is quantized already"),
        (compiled_within, "layer '0' is compiled within the model"),
        (compiled_in_place, "the model is compiled within the model"),
        (lambda: torch.sin, "give a torch.nn.Module"),
    ],
)
def test_a_model_whose_layers_cannot_be_switched_is_refused_with_the_reason(make: Any, said: str) -> None:
    model = make()
    if isinstance(model, nn.Module):
        model.eval()
    for accept in (eager_model, lambda m: SwitchableModel(m, torch.zeros(2, 4), ["int8"])):
        with pytest.raises(ModelError) as error:
            accept(model)
        assert said in one_line(error)


class Flagged(nn.Module):
    """A model that takes a nested dict, flags and None beside its tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: dict[str, Tensor], mask: None, scale: bool, mode: str, power: int) -> Tensor:
        """Map ``x["a"]`` (samples, 4) to logits (samples, 2)."""
        assert mask is None
        assert mode == "plain"
        return self.head(x["a"]) * (2.0 if scale else 1.0) ** power  # type: ignore[no-any-return]


def test_flags_none_and_nested_dicts_go_to_the_model_as_they_are() -> None:
    plain = workload(lambda y: y)
    splits = {
        name: Split(
            {"x": {"a": split.inputs}, "mask": None, "scale": True, "mode": "plain", "power": 2}, split.labels
        )
        for name, split in plain.splits.items()
    }
    model = Flagged()
    model.head = copy.deepcopy(plain.model.head)  # type: ignore[assignment]
    made = Workload("flags", model.eval(), splits, ("a", "b"), 25, "")
    assert set(check_reference(made).accuracy.values()) == {1.0}
    first = next(batches(made.splits["search"].inputs, 4))
    with SwitchableModel(made.model, first, ["int8"]) as switchable:
        switchable.calibrate([first])
        assert switchable.logits([first]).shape == (4, 2)


@pytest.mark.parametrize(
    "inputs",
    [
        X.numpy(),
        X.double().numpy(),
        X.tolist(),
        list(X),
        [row.numpy() for row in X],
    ],
)
def test_arrays_and_lists_become_tensors(inputs: Any) -> None:
    split = Split(inputs, LABELS.numpy().astype(np.int32))  # type: ignore[arg-type]
    assert isinstance(split.inputs, Tensor)
    assert torch.equal(split.inputs, X)
    assert split.inputs.dtype == torch.float32
    assert torch.equal(split.labels, LABELS)
    assert Split(X, LABELS.tolist()).fingerprint() == split.fingerprint()  # type: ignore[arg-type]
    assert Split(X, LABELS[:, None]).fingerprint() == split.fingerprint()


def test_mappings_and_lists_of_arguments_keep_their_parts() -> None:
    assert Split(UserDict({"a": X.numpy()}), LABELS).inputs.keys() == {"a"}  # type: ignore[arg-type, union-attr]
    pair = Split([X, X.numpy()], LABELS).inputs  # type: ignore[arg-type]
    assert isinstance(pair, tuple)
    assert torch.equal(pair[1], X)


def test_a_fingerprint_changes_with_a_flag() -> None:
    one, other = (Split({"x": X, "flag": flag}, LABELS).fingerprint() for flag in (True, False))
    assert one != other


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (DataLoader(TensorDataset(X, LABELS)), "inputs are a DataLoader.*collect them"),
        (TensorDataset(X, LABELS), "inputs are a TensorDataset.*collect them"),
        ([[1.0, 2.0], [3.0]], "rows differ in length"),
        (np.array(["a"] * 6), "array of <U1"),
        (iter(X), "inputs hold a generator|inputs hold a"),
        ("text", "inputs are a str"),
        (torch.eye(6).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(6, 2, device="meta"), "without values"),
        ({"x": X, "y": object()}, "inputs hold a object"),
        ({"flag": True}, "split is empty"),
    ],
)
def test_inputs_that_cannot_be_cut_are_refused_with_the_remedy(inputs: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        Split(inputs, LABELS)
    one_line(error)


def test_a_loader_in_place_of_a_split_is_refused() -> None:
    loader: Any = DataLoader(TensorDataset(X, LABELS))
    whole = workload(lambda y: y)
    with pytest.raises(DataError, match="is a DataLoader"):
        Workload("x", whole.model, dict.fromkeys(SPLITS, loader), ("a", "b"), 25, "")


def test_a_model_that_autocasts_is_compared_with_itself_as_it_is() -> None:
    whole = workload(lambda y: y)

    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = whole.model

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(x)  # type: ignore[no-any-return]

    model = Casting().eval()
    x = whole.splits["search"].inputs
    assert isinstance(x, Tensor)
    with torch.no_grad():
        expected = model(x)
    with SwitchableModel(model, x[:2], ["int8"]) as switchable:
        switchable.calibrate([x])
        assert torch.equal(switchable.logits([x], switchable.reference_plan), expected.float())
