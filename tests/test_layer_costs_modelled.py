"""What layers cost from a device table, and with a real meter."""

from __future__ import annotations

import math

import tiny
from layer_cost_of import cost_of
from torch import Tensor

from wattbit.energy.device_model import DeviceModel
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.execution.switchable import SwitchableModel
from wattbit.precision import precision
from wattbit.profiling.layer_costs import MeteredCost, ModelledCost

FP32, INT8 = precision("fp32"), precision("int8")


def test_modelled_costs_are_the_table_s(switchable: SwitchableModel, device_model: DeviceModel) -> None:
    costs = ModelledCost(device_model, switchable.shapes, batch_size=4)
    shape = switchable.shapes[0]
    cost = cost_of(costs, 0, INT8)
    assert cost.energy_j == device_model.layer_energy_j(shape, INT8, 4)
    assert cost.latency_ms == device_model.layer_latency_s(shape, INT8, 4) * 1e3
    assert cost.energy_rel_std is None
    assert costs.conversion_j(FP32, INT8) == device_model.conversion_j_per_element(FP32, INT8) > 0
    assert costs.residual_cost() == (None, None)
    assert (costs.provenance, costs.device) == ("modelled", "edge_7nm")


def test_a_format_the_device_lacks_has_no_cost(device_model: DeviceModel) -> None:
    narrow = DeviceModel(
        name="narrow",
        source="a test",
        mac_pj={"int8": 1.0},
        memory=device_model.memory,
        peak_macs_per_s={"int8": 1e9},
        conversion_pj=device_model.conversion_pj,
    )
    costs = ModelledCost(narrow, ())
    assert costs.layer_cost(0, FP32) is None
    assert costs.conversion_j(FP32, INT8) == 0.0
    assert costs.conversion_j(INT8, INT8) == 0.0


def test_the_real_meter_s_figures_are_finite(linear_model: tiny.TokenNet, linear_inputs: Tensor) -> None:
    from wattbit.energy.time_power import TimePowerMeter

    meter = TimePowerMeter(10.0, "a test", clock="wall")
    with SwitchableModel(linear_model, linear_inputs[:2], ["int8"]) as model:
        model.calibrate([linear_inputs])
        costs = MeteredCost(meter, model, linear_inputs, MeasurementProtocol(window_s=0.0001, trials=2))
        found = cost_of(costs, 0, FP32)
        assert math.isfinite(found.energy_j)
        assert found.energy_j > 0
        assert costs.provenance == "estimated"
