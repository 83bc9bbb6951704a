"""The Fashion-MNIST transformer: the data of the residual network, a network of its own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fashion_mnist_files import arguments, contents, write
from torch import Tensor, fx, nn

from wattbit.model_inputs import predict
from workloads import fashion_mnist
from workloads.fashion_transformer import FashionTransformer, load

CONFIG = Path(__file__).parents[1] / "conf" / "workload" / "fashion_transformer.yaml"


def test_the_configuration_has_exactly_the_arguments_of_load() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    assert config.pop("_target_") == "workloads.fashion_transformer.load"
    assert set(config) == set(inspect.signature(load).parameters)


def test_it_has_the_splits_of_the_residual_network(tmp_path: Path) -> None:
    write(tmp_path / "data", contents())
    workload = load(**arguments(tmp_path))
    other = fashion_mnist.load(**arguments(tmp_path))
    for name, split in workload.splits.items():
        assert split.fingerprint() == other.splits[name].fingerprint()
    assert workload.classes == other.classes
    assert predict(workload.model, workload.splits["test"].inputs, 50).shape == (60, 10)


def test_a_second_load_takes_the_trained_weights_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> nn.Module:
        raise RuntimeError("trained again")

    write(tmp_path / "data", contents())
    first = load(**arguments(tmp_path)).model.state_dict()
    monkeypatch.setattr(torch.optim, "SGD", refuse)
    again = load(**arguments(tmp_path)).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(RuntimeError, match="trained again"):
        load(**arguments(tmp_path, epochs=2))


def test_the_network_can_be_traced_and_is_as_large_as_it_says(tmp_path: Path) -> None:
    model = FashionTransformer().eval()
    x = torch.randn(3, 1, 28, 28)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 14
    assert round(sum(p.numel() for p in model.parameters()) / 1000) == 72


def test_a_patch_is_a_square_of_the_image() -> None:
    model = FashionTransformer().eval()
    seen: list[Tensor] = []
    model.embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.arange(28.0 * 28).reshape(1, 1, 28, 28)
    model(x)
    (patches,) = seen
    assert patches.shape == (1, 16, 49)
    assert torch.equal(patches[0, 6].reshape(7, 7), x[0, 0, 7:14, 14:21])
