"""What layers cost, measured on their own inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_machine import FakeMachine, FakeMeter
from layer_cost_of import cost_of
from torch import Tensor, nn

from wattbit.calibration import LayerCalibration
from wattbit.energy import interleaved, measurer
from wattbit.energy.energy_comparison import EnergyComparison
from wattbit.energy.measurement_cache import MeasurementCache
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.energy.rejection import RejectionRules
from wattbit.errors import MeterError, PlanError
from wattbit.execution.kernels import registry
from wattbit.execution.kernels.kernel import Kernel, NativeKernel
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.execution.switchable import SwitchableModel
from wattbit.precision import Precision, precision
from wattbit.profiling.layer_costs import MeteredCost
from wattbit.profiling.profiler import measure_profile

FP32, INT8, INT4 = precision("fp32"), precision("int8"), precision("int4")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """A machine whose meter charges for the values that layers read and write; nothing else takes time."""
    machine = FakeMachine()

    def compare_all(*args: Any, **settings: Any) -> list[EnergyComparison]:
        return interleaved.compare_all(*args, **settings, clock=machine.clock)

    monkeypatch.setattr(measurer, "compare_all", compare_all)
    return machine


@pytest.fixture
def fake_int8(monkeypatch: pytest.MonkeyPatch, machine: FakeMachine) -> None:
    """A native int8 kernel that takes a quarter of the reference's time, on any CPU."""

    def pack(layer: LayerWeights, wanted: Precision, calibration: LayerCalibration, /) -> Kernel:
        def run(x: Tensor) -> Tensor:
            machine.work(x.numel() * 1e-6 / 4)
            return layer.apply(x, layer.weight)

        return run

    def supports(device: torch.device, layer: LayerWeights, wanted: Precision) -> bool:
        return wanted.name == "int8"

    kernel = NativeKernel("fake int8", supports, pack)
    monkeypatch.setattr(registry, "NATIVE_KERNELS", [kernel])


def charge(
    monkeypatch: pytest.MonkeyPatch, machine: FakeMachine, kind: Any, seconds: Callable[[Tensor], float]
) -> None:
    """Have every layer of a class charge for what it reads; a patch of one layer would be left alone."""
    forward = kind.forward

    def run(self: nn.Module, input: Tensor) -> Tensor:  # noqa: A002
        machine.work(seconds(input))
        y: Tensor = forward(self, input)
        return y

    monkeypatch.setattr(kind, "forward", run)


class Timed(nn.Module):
    """Layers, and a rest that takes some time."""

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.same_as_first = nn.Linear(4, 4)
        self.rest_s = 1e-4
        self._machine = machine

    def forward(self, x: Tensor) -> Tensor:
        self._machine.work(self.rest_s)
        out: Tensor = self.same_as_first(self.twice(self.twice(self.first(x))))
        return out


@pytest.fixture
def timed(
    monkeypatch: pytest.MonkeyPatch, machine: FakeMachine, fake_int8: None
) -> Iterator[SwitchableModel]:
    x = torch.randn(8, 4)
    charge(monkeypatch, machine, nn.Linear, lambda read: read.numel() * 1e-6)
    with SwitchableModel(Timed(machine), x, ["int8", "int4"]) as model:
        model.calibrate([x])
        yield model


def metered(
    model: SwitchableModel, machine: FakeMachine, samples: int = 8, meter: FakeMeter | None = None
) -> MeteredCost:
    return MeteredCost(
        meter or FakeMeter(machine),
        model,
        torch.randn(samples, 4),
        MeasurementProtocol(window_s=0.001, trials=3),
    )


def test_a_measured_layer_costs_what_the_meter_read_for_one_sample(
    timed: SwitchableModel, machine: FakeMachine
) -> None:
    cost = cost_of(metered(timed, machine), 0, FP32)
    assert cost.energy_j == pytest.approx(4e-6)
    assert cost.latency_ms == pytest.approx(4e-3)


def test_a_layer_that_runs_twice_costs_both_of_its_runs(timed: SwitchableModel, machine: FakeMachine) -> None:
    costs = metered(timed, machine)
    for candidate in (FP32, INT8):
        once, twice = cost_of(costs, 0, candidate), cost_of(costs, 1, candidate)
        assert twice.energy_j == pytest.approx(2 * once.energy_j)
        assert twice.latency_ms == pytest.approx(2 * once.latency_ms)


def test_a_native_precision_costs_its_share_of_the_reference(
    timed: SwitchableModel, machine: FakeMachine
) -> None:
    cost = cost_of(metered(timed, machine), 0, INT8)
    assert cost.energy_j == pytest.approx(1e-6)
    assert cost.latency_ms == pytest.approx(1e-3)
    assert cost.energy_rel_std == pytest.approx(0.0, abs=1e-9)


def test_a_machine_that_slows_down_between_two_layers_does_not_change_their_ratio(
    timed: SwitchableModel, machine: FakeMachine
) -> None:
    costs = metered(timed, machine)
    reference = cost_of(costs, 0, FP32)
    machine.watts = lambda seconds: 7.0
    assert cost_of(costs, 0, INT8).energy_j == pytest.approx(reference.energy_j / 4)


def test_what_runs_emulated_has_no_measured_cost(timed: SwitchableModel, machine: FakeMachine) -> None:
    costs = metered(timed, machine)
    assert costs.layer_cost(0, INT4) is None
    assert costs.layer_cost(0, FP32) is not None


def test_layers_of_equal_shape_share_one_measurement(timed: SwitchableModel, machine: FakeMachine) -> None:
    meter = FakeMeter(machine)
    costs = metered(timed, machine, meter=meter)
    costs.layer_cost(0, INT8)
    windows = meter.windows
    assert costs.layer_cost(2, INT8) == costs.layer_cost(0, INT8)
    assert meter.windows == windows


def test_a_layer_with_batch_norm_is_measured_apart_from_one_without(
    monkeypatch: pytest.MonkeyPatch, machine: FakeMachine, fake_int8: None
) -> None:
    charge(monkeypatch, machine, nn.Conv2d, lambda read: 1e-4)
    charge(monkeypatch, machine, nn.BatchNorm2d, lambda read: 3e-4)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.normed = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.normed(self.plain(x)))
            return out.mean((2, 3))

    x = torch.randn(2, 2, 3, 3)
    with SwitchableModel(Net().eval(), x, ["int8"]) as model:
        assert model.folds_batch_norm == (False, True)
        costs = MeteredCost(FakeMeter(machine), model, x, MeasurementProtocol(window_s=0.001, trials=2))
        assert cost_of(costs, 0, FP32).energy_j == pytest.approx(1e-4 / 2)
        assert cost_of(costs, 1, FP32).energy_j == pytest.approx(4e-4 / 2)


def test_the_rest_of_the_model_is_the_whole_less_its_layers(
    timed: SwitchableModel, machine: FakeMachine
) -> None:
    energy_j, latency_ms = metered(timed, machine).residual_cost()
    assert energy_j == pytest.approx(1e-4 / 8, rel=1e-3)
    assert latency_ms == pytest.approx(1e-1 / 8, rel=1e-3)


def test_a_rest_that_noise_hides_is_unknown_and_not_zero(
    timed: SwitchableModel, machine: FakeMachine
) -> None:
    assert isinstance(timed.model, Timed)
    timed.model.rest_s = -1e-5
    assert metered(timed, machine).residual_cost() == (None, None)


def test_measured_figures_carry_the_meter_s_provenance_and_device(
    timed: SwitchableModel, machine: FakeMachine
) -> None:
    costs = metered(timed, machine)
    assert (costs.provenance, costs.device) == ("measured", "fake")
    assert costs.conversion_j(FP32, INT8) == 0.0


def test_a_rest_is_charged_on_the_layers_figures_whatever_the_machine_does_in_between(
    timed: SwitchableModel, machine: FakeMachine
) -> None:
    costs = metered(timed, machine)
    for index in range(3):
        costs.layer_cost(index, FP32)
    machine.watts = lambda seconds: 9.0
    energy_j, _ = costs.residual_cost()
    assert energy_j == pytest.approx(1e-4 / 8, rel=1e-3)


def test_a_figure_at_the_reference_has_the_reference_s_own_spread(
    timed: SwitchableModel, machine: FakeMachine
) -> None:
    machine.watts = lambda seconds: 1.0 + seconds
    cost = cost_of(metered(timed, machine), 0, FP32)
    other = cost_of(metered(timed, machine), 0, INT8)
    assert cost.energy_rel_std is not None
    assert other.energy_rel_std is not None
    assert cost.energy_rel_std > other.energy_rel_std


def test_a_figure_that_scatters_is_said_to(
    timed: SwitchableModel, machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.watts = lambda seconds: 1.0 + 0.9 * math.sin(1e3 * seconds)
    metered(timed, machine).layer_cost(0, INT8)
    assert (
        "measured energy is uncertain by more than 3 % for first at int8, twice at int8, because"
        in caplog.text
    )


def test_energy_above_idle_is_kept_where_idle_power_was_asked_for(
    timed: SwitchableModel, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurer, "measure_idle_w", lambda meter, seconds: 0.4)
    costs = MeteredCost(
        FakeMeter(machine),
        timed,
        torch.randn(8, 4),
        MeasurementProtocol(window_s=0.001, trials=2, idle_s=1.0),
    )
    profile = measure_profile(timed, torch.randn(8, 4), costs)
    (found,) = costs.confirm(profile, [timed.reference_plan.replace(first="int8")])
    assert found.measured.net_ratio == pytest.approx(found.measured.energy_ratio)
    assert found.measured.net_reference_j == pytest.approx(0.6 * found.measured.reference_j)


def test_a_whole_plan_is_confirmed_against_what_the_profile_says(
    timed: SwitchableModel, machine: FakeMachine
) -> None:
    costs = metered(timed, machine)
    profile = measure_profile(timed, torch.randn(8, 4), costs)
    plan = timed.reference_plan.replace(first="int8")
    confirmed, same = costs.confirm(profile, [plan, timed.reference_plan])
    # Four layer runs of 32 values each, of which one at a quarter of the time, and a rest of 1e-4 s.
    whole = 4 * 32e-6 + 1e-4
    assert confirmed.measured.energy_ratio == pytest.approx(1 - 24e-6 / whole, rel=1e-3)
    assert confirmed.error == pytest.approx(0.0, abs=1e-3)
    assert same.measured.energy_ratio == pytest.approx(1.0)
    assert (costs.samples, costs.confidence) == (8, 0.95)
    assert costs.confirm(profile, []) == []
    with pytest.raises(PlanError, match="cannot run at 'int4'"):
        costs.confirm(profile, [timed.reference_plan.replace(first="int4")])


class GpuMeter(FakeMeter):
    """A counter of another device than the model is on."""

    refresh_s, min_window_s, lock_keys = 0.1, 5.0, ("gpu",)

    def covers(self, device: str) -> bool:
        """Only for GPUs."""
        return device.startswith("cuda")


def test_a_meter_of_another_device_than_the_model_s_is_refused(
    timed: SwitchableModel, machine: FakeMachine
) -> None:
    with pytest.raises(
        MeterError, match="the model is on cpu, whose energy is not counted by the meter of fake"
    ):
        MeteredCost(GpuMeter(machine), timed, torch.randn(8, 4))


def profiled(
    model: SwitchableModel, machine: FakeMachine, folder: Path, batch: Tensor | None = None, **settings: Any
) -> tuple[Any, int]:
    """A profile, and how many windows it took."""
    meter = FakeMeter(machine)
    cache = MeasurementCache(folder / "measurements.json", {"settings": settings.pop("meter", None)})
    batch = torch.ones(8, 4) if batch is None else batch
    protocol = MeasurementProtocol(**{"window_s": 1e-3, "trials": 2, **settings})
    costs = MeteredCost(meter, model, batch, protocol, cache=cache)
    return measure_profile(model, batch, costs), meter.windows


def test_a_second_profile_measures_nothing_and_is_the_same(
    timed: SwitchableModel, machine: FakeMachine, tmp_path: Path
) -> None:
    first, windows = profiled(timed, machine, tmp_path)
    assert windows > 0
    machine.watts = lambda seconds: 5.0
    second, windows = profiled(timed, machine, tmp_path)
    assert windows == 0
    assert second == first


@pytest.mark.parametrize(
    "changed",
    [
        {"trials": 3},
        {"window_s": 2e-3},
        {"rules": RejectionRules(max_cv=0.1)},
        {"meter": {"watts": 5.0}},
        {"batch": torch.full((8, 4), 2.0)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_a_measurement_depends_on_makes_it_anew(
    timed: SwitchableModel, machine: FakeMachine, tmp_path: Path, changed: dict[str, Any]
) -> None:
    profiled(timed, machine, tmp_path)
    assert profiled(timed, machine, tmp_path, **changed)[1] > 0


def test_other_weights_or_another_torch_are_measured_anew(
    timed: SwitchableModel, machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiled(timed, machine, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "99.0")
        assert profiled(timed, machine, tmp_path)[1] > 0
    net, x = timed.model, torch.randn(8, 4)
    assert isinstance(net, Timed)
    timed.detach()
    with torch.no_grad():
        net.first.weight.mul_(2.0)
    with SwitchableModel(net, x, ["int8", "int4"]) as other:
        other.calibrate([x])
        assert profiled(other, machine, tmp_path)[1] > 0
