"""Measuring a profile: costs from a cost model, sensitivities from running one layer at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wattbit.energy.device_model import DeviceModel, stored_weight_bytes
from wattbit.errors import ModelError, PrecisionError
from wattbit.execution.switchable import SwitchableModel
from wattbit.precision import Precision, precision
from wattbit.profile import ModelProfile
from wattbit.profiling.layer_costs import ModelledCost
from wattbit.profiling.profiler import LayerCost, divergence, measure_profile


@pytest.fixture
def costs(switchable: SwitchableModel, device_model: DeviceModel) -> ModelledCost:
    return ModelledCost(device_model, switchable.shapes)


class Selective(ModelledCost):
    """Costs of some layers and precisions only."""

    lacking: tuple[tuple[int, str], ...] = ()

    def layer_cost(self, layer_index: int, precision: Precision) -> LayerCost | None:
        if (layer_index, precision.name) in self.lacking:
            return None
        return super().layer_cost(layer_index, precision)

    def residual_cost(self) -> tuple[float | None, float | None]:
        return 1e-6, 0.5


def lacking(switchable: SwitchableModel, device_model: DeviceModel, *pairs: tuple[int, str]) -> Selective:
    cost = Selective(device_model, switchable.shapes)
    cost.lacking = pairs
    return cost


def test_a_profile_covers_every_layer_and_precision_in_order(
    switchable: SwitchableModel, costs: ModelledCost, conv_inputs: Tensor
) -> None:
    profile = measure_profile(switchable, conv_inputs, costs)
    assert profile.layer_names == ("stem", "depthwise", "pointwise", "head")
    assert profile.precisions == tiny.PRECISIONS
    assert (profile.provenance, profile.device) == ("modelled", "edge_7nm")
    assert (profile.other_energy_j, profile.other_latency_ms) == (None, None)
    for index, layer in enumerate(profile.layers):
        assert tuple(layer.costs) == tiny.PRECISIONS
        for name, cost in layer.costs.items():
            modelled = costs.layer_cost(index, precision(name))
            assert modelled is not None
            assert cost.energy_j == modelled.energy_j
            assert cost.memory_bytes == math.ceil(stored_weight_bytes(layer.shape, precision(name)))
            assert cost.native == (switchable.native_kernel(index, name) is not None)


def test_sensitivity_is_the_mean_divergence_with_only_that_layer_changed(
    switchable: SwitchableModel, costs: ModelledCost, conv_inputs: Tensor
) -> None:
    cost = measure_profile(switchable, conv_inputs, costs).layers[1].costs["int4"]
    plan = switchable.reference_plan.replace(depthwise="int4")
    reference = F.log_softmax(switchable.logits([conv_inputs], switchable.reference_plan).double(), 1)
    changed = F.log_softmax(switchable.logits([conv_inputs], plan).double(), 1)
    values = (reference.exp() * (reference - changed)).sum(1).numpy()
    assert cost.sensitivity == pytest.approx(values.mean(), rel=1e-3)
    assert cost.sensitivity_std == pytest.approx(values.std(ddof=1) / np.sqrt(64), rel=1e-2)


def test_the_reference_disturbs_nothing_and_narrow_formats_disturb_more(
    switchable: SwitchableModel, costs: ModelledCost, conv_inputs: Tensor
) -> None:
    for layer in measure_profile(switchable, conv_inputs, costs).layers:
        assert layer.costs["fp32"].sensitivity == 0.0
        assert 0.0 < layer.costs["bf16"].sensitivity < layer.costs["int4"].sensitivity


def test_the_batch_size_does_not_change_the_profile(
    switchable: SwitchableModel, costs: ModelledCost, conv_inputs: Tensor
) -> None:
    one, other = (measure_profile(switchable, conv_inputs, costs, batch_size=size) for size in (64, 7))
    for a, b in zip(one.layers, other.layers, strict=True):
        for name in tiny.PRECISIONS:
            assert a.costs[name].sensitivity == pytest.approx(b.costs[name].sensitivity, rel=0.05, abs=1e-7)


def test_one_sample_has_a_sensitivity_without_spread(
    switchable: SwitchableModel, costs: ModelledCost, conv_inputs: Tensor
) -> None:
    cost = measure_profile(switchable, conv_inputs[:1], costs).layers[0].costs["int4"]
    assert cost.sensitivity_std == 0.0


def test_conversions_that_cost_something_are_kept(
    switchable: SwitchableModel, costs: ModelledCost, conv_inputs: Tensor
) -> None:
    conversion_j = measure_profile(switchable, conv_inputs[:4], costs).conversion_j
    assert len(conversion_j) == 5 * 4
    assert min(conversion_j.values()) > 0
    assert conversion_j["fp32->int8"] == costs.conversion_j(precision("fp32"), precision("int8"))


def test_progress_counts_every_layer_and_precision(
    switchable: SwitchableModel, costs: ModelledCost, conv_inputs: Tensor
) -> None:
    steps: list[tuple[int, int]] = []
    measure_profile(switchable, conv_inputs[:4], costs, progress=lambda *step: steps.append(step))
    assert steps == [(done, 20) for done in range(1, 21)]


def test_precisions_without_a_cost_are_left_out(
    switchable: SwitchableModel, device_model: DeviceModel, conv_inputs: Tensor
) -> None:
    unknown = [(index, "bf16") for index in range(4)]
    profile = measure_profile(
        switchable, conv_inputs[:4], lacking(switchable, device_model, (0, "int4"), *unknown)
    )
    assert profile.precisions == ("fp32", "int8", "int4", "mxfp4")
    assert profile.supported(0) == ("fp32", "int8", "mxfp4")
    assert profile.supported(1) == profile.precisions
    assert profile.other_energy_j == 1e-6
    assert ModelProfile.from_json(profile.to_json()) == profile


def test_a_device_that_cannot_run_the_reference_is_refused_rather_than_given_another_reference(
    switchable: SwitchableModel, device_model: DeviceModel, conv_inputs: Tensor
) -> None:
    with pytest.raises(
        PrecisionError, match="'edge_7nm' gives layer 'depthwise' no cost at the reference 'fp32'"
    ):
        measure_profile(switchable, conv_inputs[:4], lacking(switchable, device_model, (1, "fp32")))


def test_a_precision_at_which_the_output_is_not_finite_is_left_out(device_model: DeviceModel) -> None:
    # fp16 ends at 65,504: this layer's output does not fit.
    layer = nn.Linear(4, 3)
    nn.init.constant_(layer.weight, 1e5)
    model = nn.Sequential(layer).eval()
    x = torch.ones(4, 4)
    with SwitchableModel(model, x, ["fp16", "bf16"]) as switchable:
        switchable.calibrate([x])
        profile = measure_profile(switchable, x, ModelledCost(device_model, switchable.shapes))
    assert profile.supported(0) == ("fp32", "bf16")
    assert profile.precisions == ("fp32", "bf16")


def test_a_reference_whose_output_is_not_finite_is_refused(device_model: DeviceModel) -> None:
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    x = torch.ones(4, 4)
    with SwitchableModel(model, x, ["int8"]) as switchable:
        switchable.calibrate([x])
        costs = ModelledCost(device_model, switchable.shapes)
        with pytest.raises(
            ModelError, match="the reference output holds NaN or infinite values, allowed are 0"
        ):
            measure_profile(switchable, x * torch.inf, costs)


def test_measuring_leaves_the_active_plan_alone(
    switchable: SwitchableModel, costs: ModelledCost, conv_inputs: Tensor
) -> None:
    plan = switchable.reference_plan.replace(stem="int8")
    switchable.switch(plan)
    measure_profile(switchable, conv_inputs[:4], costs)
    assert switchable.active_plan == plan


def test_divergence_is_zero_for_equal_outputs_and_never_negative() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 20
    log_reference = F.log_softmax(logits, 1)
    assert divergence(log_reference, logits).abs().max() < 1e-5
    nearly = divergence(log_reference, logits + 1e-4 * torch.randn_like(logits))
    assert nearly.min() >= 0.0
    assert divergence(log_reference, -logits).min() > 0.0


def test_the_fixture_profile_is_what_is_measured(
    profile: ModelProfile, switchable: SwitchableModel, costs: ModelledCost, conv_inputs: Tensor
) -> None:
    assert replace(profile, layers=()) == replace(measure_profile(switchable, conv_inputs, costs), layers=())
