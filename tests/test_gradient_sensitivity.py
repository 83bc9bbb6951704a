"""Sensitivities from derivatives: near to what is measured directly, and measured where they would not be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wattbit.energy.device_model import DeviceModel
from wattbit.errors import ConfigError, ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.profiling.gradient_sensitivity import gradient_sensitivities
from wattbit.profiling.layer_costs import ModelledCost
from wattbit.profiling.profiler import measure_profile
from wattbit.profiling.sensitivity import LayerChoice, Sensitivity, SensitivityMethod, direct_sensitivities

NEVER = float("inf")


def all_of(model: SwitchableModel) -> list[LayerChoice]:
    return [(index, precision) for index in range(len(model.shapes)) for precision in model.precisions]


def attached(net: nn.Module, x: Tensor, *precisions: str) -> SwitchableModel:
    model = SwitchableModel(net.eval(), x, precisions)
    model.calibrate([x])
    return model


def found_of(sensitivity: Sensitivity | None) -> Sensitivity:
    assert sensitivity is not None
    return sensitivity


def both(model: SwitchableModel, x: Tensor, nats: float = NEVER) -> list[tuple[Sensitivity, Sensitivity]]:
    candidates = [candidate for candidate in all_of(model) if candidate[1].name != "fp32"]
    followed = gradient_sensitivities(model, x, candidates, 64, doubtful_nats=nats)
    measured = direct_sensitivities(model, x, candidates, 64)
    return [(found_of(one), found_of(other)) for one, other in zip(followed, measured, strict=True)]


def assert_near(pairs: list[tuple[Sensitivity, Sensitivity]], rel: float) -> None:
    assert pairs
    for followed, measured in pairs:
        assert followed.mean == pytest.approx(measured.mean, rel=rel, abs=1e-7)
        assert followed.std_error == pytest.approx(measured.std_error, rel=2 * rel, abs=1e-7)


class Net(nn.Module):
    """Two layers and a head; ``step`` is what happens in between."""

    def __init__(self, step: Callable[[Net, Tensor], Tensor], classes: int = 4) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, classes)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.step(self, x))
        return logits


def rows(samples: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_small_deviations_come_out_as_measured_on_a_convolutional_network(
    conv_model: tiny.ConvNet, conv_inputs: Tensor, precision: str
) -> None:
    with attached(conv_model, conv_inputs, precision) as model:
        assert_near(both(model, conv_inputs), rel=0.1)


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_small_deviations_come_out_as_measured_on_a_transformer(
    linear_model: tiny.TokenNet, linear_inputs: Tensor, precision: str
) -> None:
    with attached(linear_model, linear_inputs, precision) as model:
        assert_near(both(model, linear_inputs), rel=0.1)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from(["int2", "int3", "mxfp4"]), st.integers(2, 10))
def test_where_the_layers_after_it_are_linear_any_deviation_comes_out_exactly(
    seed: int, precision: str, classes: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(lambda net, x: net.second(net.first(x)), classes)
    with attached(net, rows(seed=seed), precision) as model:
        assert_near(both(model, rows(seed=seed)), rel=0.01)


def test_many_classes_count_the_improbable_ones_as_one_which_loses_little() -> None:
    net = Net(lambda net, x: torch.relu(net.first(x)), classes=200)
    nn.init.normal_(net.head.weight, std=2.0)
    with attached(net, rows(), "int8") as model:
        for followed, measured in both(model, rows()):
            assert 0.6 * measured.mean < followed.mean < 1.1 * measured.mean


def test_layers_that_are_written_into_called_twice_or_beside_shortcuts_come_out_as_measured() -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        y = torch.relu_(net.first(x))
        z = net.second(y)
        z += y
        out: Tensor = z + net.second(torch.tanh(z))
        return out

    with attached(Net(step), rows(), "bf16") as model:
        assert_near(both(model, rows()), rel=0.15)


def test_a_layer_that_writes_its_samples_along_another_axis_is_measured_directly() -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        tokens_first = torch.stack([x] * 64)  # as many tokens as samples: no shape can tell
        return torch.relu(net.second(torch.relu(net.first(tokens_first)))).mean(0)

    with attached(Net(step), rows(), "int4") as model:
        candidates = [(0, model.precisions[1]), (1, model.precisions[1])]
        found = gradient_sensitivities(model, rows(), candidates, 64, doubtful_nats=NEVER)
        assert found == direct_sensitivities(model, rows(), candidates, 16)


def test_a_large_divergence_is_measured_directly_on_some_samples(
    conv_model: tiny.ConvNet, conv_inputs: Tensor
) -> None:
    with attached(conv_model, conv_inputs, "int8", "int2") as model:
        int8, int2 = model.precisions[1:]
        candidates = [(0, int8), (1, int2)]
        small, large = gradient_sensitivities(
            model, conv_inputs, candidates, 64, doubtful_nats=1e-3, direct_samples=16
        )
        on_some, measured = direct_sensitivities(model, conv_inputs[:16], candidates, 16)
        assert large == measured
        assert small != on_some


def test_rows_that_nothing_depends_on_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(lambda net, x: torch.relu(net.first(x))[:, :2].mean(1))
    x = torch.stack([rows()] * 7, 1)  # 7 tokens, of which the network uses 2
    with attached(net, x, "bf16") as model:
        assert_near(both(model, x)[:1], rel=0.05)
        read: list[Tensor] = []
        run = model.layer_callable

        def reading(index: int, name: str) -> Callable[[Tensor], Tensor]:
            def read_and_run(y: Tensor) -> Tensor:
                read.append(y)
                return run(index, name)(y)

            return run(index, name) if name == "fp32" else read_and_run

        monkeypatch.setattr(model, "layer_callable", reading)
        gradient_sensitivities(model, x, all_of(model)[:2], 32, doubtful_nats=NEVER)
    assert [len(y) for y in read] == [32] * 4


def test_a_precision_that_overflows_for_one_late_sample_is_left_out(device_model: DeviceModel) -> None:
    net = Net(lambda net, x: net.second(net.first(x)))
    nn.init.constant_(net.first.weight, 100.0)
    x = torch.cat([rows(80).abs() * 1e-3, torch.full((1, 6), 200.0)])  # fp16 ends at 65,504
    with attached(net, x, "fp16", "bf16") as model:
        costs = ModelledCost(device_model, model.shapes)
        profile = measure_profile(model, x, costs, sensitivity="gradient")
    assert profile.supported(0) == ("fp32", "bf16")


def test_a_profile_from_derivatives_has_all_that_a_direct_one_has(
    switchable: SwitchableModel, device_model: DeviceModel, conv_inputs: Tensor
) -> None:
    costs = ModelledCost(device_model, switchable.shapes)
    plan = switchable.reference_plan.replace(stem="int8")
    switchable.switch(plan)
    steps: list[tuple[int, int]] = []
    with torch.inference_mode():
        followed = measure_profile(
            switchable, conv_inputs, costs, sensitivity="gradient", progress=lambda *step: steps.append(step)
        )
    direct = measure_profile(switchable, conv_inputs, costs)
    for one, other in zip(followed.layers, direct.layers, strict=True):
        assert list(one.costs) == list(other.costs)
        assert one.costs["fp32"].sensitivity == 0.0
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert steps[-1] == (len(steps), len(steps))
    assert switchable.active_plan == plan
    assert all(parameter.grad is None for parameter in switchable.model.parameters())


@pytest.mark.parametrize("method", ["gradient", "direct"])
def test_the_profile_does_not_depend_on_how_many_threads_find_it(
    switchable: SwitchableModel, device_model: DeviceModel, conv_inputs: Tensor, method: SensitivityMethod
) -> None:
    costs = ModelledCost(device_model, switchable.shapes)
    one, three = (
        measure_profile(switchable, conv_inputs, costs, batch_size=8, sensitivity=method, workers=workers)
        for workers in (1, 3)
    )
    assert one == three
    with pytest.raises(ConfigError, match="workers is 0, must be at least 1"):
        measure_profile(switchable, conv_inputs, costs, workers=0)


def test_a_failure_in_one_of_several_threads_is_told(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    broken = torch.cat([conv_inputs, conv_inputs * torch.inf])
    with pytest.raises(ModelError, match="the reference output holds NaN or infinite values"):
        gradient_sensitivities(switchable, broken, all_of(switchable), 32, workers=2)


def test_a_frozen_model_is_followed_as_well() -> None:
    net = Net(lambda net, x: torch.relu(net.first(x))).requires_grad_(False)
    with attached(net, rows(), "bf16") as model:
        assert_near(both(model, rows()), rel=0.1)


def test_a_model_that_forbids_derivatives_is_refused_with_the_remedy() -> None:
    @torch.no_grad()
    def step(net: Net, x: Tensor) -> Tensor:
        return torch.relu(net.first(x))

    net = Net(lambda net, x: x)
    net.forward = torch.no_grad()(lambda x: net.head(step(net, x)))  # type: ignore[method-assign]
    with (
        attached(net, rows(), "bf16") as model,
        pytest.raises(ModelError, match=r"cannot be differentiated .* sensitivity='direct'"),
    ):
        gradient_sensitivities(model, rows(), all_of(model), 64)


def test_an_unknown_way_to_find_sensitivities_is_refused(
    switchable: SwitchableModel, device_model: DeviceModel, conv_inputs: Tensor
) -> None:
    costs = ModelledCost(device_model, switchable.shapes)
    with pytest.raises(ConfigError, match="sensitivity 'guessed' is unknown; choose from direct, gradient"):
        measure_profile(switchable, conv_inputs, costs, sensitivity="guessed")  # type: ignore[arg-type]
