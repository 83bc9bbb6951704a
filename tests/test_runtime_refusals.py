"""Models and settings that do not fit the bundle are refused, and the model is given back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from attached import unpatched
from runtimes import TOLERANCE_PP, MakeRuntime, X, same
from torch import Tensor

from wattbit.audit.log import AuditLog
from wattbit.errors import BundleError, GuardrailError, ModelError, WattbitError
from wattbit.execution.kernels import cpu
from wattbit.execution.switchable import SwitchableModel
from wattbit.serving.attach import layer_without_kernel
from wattbit.serving.bundle import ControllerBundle
from wattbit.serving.controller import PrecisionController
from wattbit.serving.runtime import PrecisionRuntime


def test_another_model_is_refused(bundle: ControllerBundle, conv_model: tiny.ConvNet) -> None:
    conv_model.head.bias.data[0] += 1e-3
    with pytest.raises(
        BundleError, match=r"the model has fingerprint .*, the bundle is for .*; load the weights"
    ):
        PrecisionRuntime(PrecisionController(bundle), conv_model)


class Reordered(tiny.ConvNet):
    """The same weights, but not the same computation."""

    def forward(self, x: Tensor) -> Tensor:
        self.head(torch.zeros(1, 16))
        return super().forward(x)


def test_a_model_that_runs_other_layers_is_refused_and_given_back(bundle: ControllerBundle) -> None:
    other = Reordered()
    other.load_state_dict(tiny.conv_model().state_dict())
    runtime = PrecisionRuntime(PrecisionController(bundle), other.train())
    for _ in range(2):
        with pytest.raises(
            BundleError, match="runs 4 switchable layers under other names or in another order"
        ):
            runtime(X)
    assert unpatched(other)
    assert other.training


def test_a_garbled_calibration_is_refused_and_the_model_given_back(
    bundle: ControllerBundle, conv_model: tiny.ConvNet, tmp_path: Path
) -> None:
    for text in ("[]", '{"schema": 1, "layers": {}}'):
        controller = PrecisionController(replace(bundle, calibration_json=text))
        with pytest.raises(WattbitError, match="calibration"):
            PrecisionRuntime(controller, conv_model, example=X, audit_path=tmp_path / "audit.jsonl")
        assert unpatched(conv_model)
    AuditLog(tmp_path / "audit.jsonl").close()  # not left open


def test_a_model_without_values_is_refused(bundle: ControllerBundle) -> None:
    with torch.device("meta"):
        empty = tiny.ConvNet()
    with pytest.raises(ModelError, match="holds no values"):
        PrecisionRuntime(PrecisionController(bundle), empty)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shadow_share": 1.5}, "shadow_share is 1.5, must be from 0 to 1"),
        ({"shadow_share": float("nan")}, "shadow_share is nan"),
        ({"rollback_limit_pp": 0.0}, "rollback_limit_pp is 0.0, must be above 0 and below 100"),
        ({"rollback_limit_pp": 100.0}, "rollback_limit_pp is 100.0"),
        ({"alpha": 0.0}, "alpha is 0.0, must be above 0 and below 1"),
        ({"tolerance_pp": -1.0}, "tolerance is -1.0 pp"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_before_anything_runs(
    make_runtime: MakeRuntime, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(GuardrailError, match=message):
        make_runtime(**settings)


def test_energy_measured_on_a_native_kernel_is_not_claimed_without_it(
    bundle: ControllerBundle,
    conv_model: tiny.ConvNet,
    monkeypatch: pytest.MonkeyPatch,
    reference_answer: Tensor,
) -> None:
    layers = tuple(
        replace(layer, costs={name: replace(cost, native=True) for name, cost in layer.costs.items()})
        for layer in bundle.profile.layers
    )
    measured = replace(
        bundle,
        profile=replace(bundle.profile, layers=layers, provenance="measured"),
        plans=tuple(replace(plan, provenance="measured") for plan in bundle.plans),
    )
    monkeypatch.setattr(cpu, "has_vnni", lambda: False)
    with PrecisionRuntime(PrecisionController(measured), conv_model, tolerance_pp=TOLERANCE_PP) as runtime:
        assert same(runtime(X), reference_answer)
        assert runtime.stats.rollbacks == 1
        assert runtime.stats.energy_saved_j == 0.0


def test_measured_energy_holds_where_every_layer_has_its_kernel(
    bundle: ControllerBundle, switchable: SwitchableModel
) -> None:
    measured = replace(bundle, profile=replace(bundle.profile, provenance="measured"))
    assert layer_without_kernel(measured, switchable, switchable.reference_plan) is None
