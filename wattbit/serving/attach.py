"""Attaching the model that a bundle was made for, as a serving process does."""

from __future__ import annotations

import logging

from torch import nn

from wattbit.calibration import calibration_from_json
from wattbit.errors import BundleError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs
from wattbit.plan import PrecisionPlan
from wattbit.serving.bundle import ControllerBundle
from wattbit.storage.fingerprint import model_fingerprint

_log = logging.getLogger(__name__)


def require_model(bundle: ControllerBundle, model: nn.Module) -> None:
    """Refuse a model whose weights are not those the bundle was made for.

    Raises:
        BundleError: If they are not.
        ModelError: If the model holds no values.
    """
    found, expected = model_fingerprint(model), bundle.model_fingerprint
    if found != expected:
        raise BundleError(
            f"the model has fingerprint {found[:12]}…, the bundle is for {expected[:12]}…; "
            "load the weights it was certified with, or certify this model"
        )


def attach(
    bundle: ControllerBundle, model: nn.Module, example: Inputs, plan: PrecisionPlan
) -> SwitchableModel:
    """Attach ``model`` with the bundle's calibration, ``plan`` packed.

    Args:
        bundle: The bundle.
        model: The model it was made for.
        example: Some real inputs; all of them are run, because only the model knows which tensors hold
            samples.
        plan: The plan that will run.

    Raises:
        BundleError: If the model's weights or layers are not the bundle's, or the bundle's calibration is
            garbled.
    """
    needed_mb = resident_bytes(bundle, plan) / 2**20
    _log.info("attaching needs up to %.0f MB of memory beside the model and its batches", needed_mb)
    layers = bundle.profile.layer_names
    switchable = SwitchableModel(model, example, bundle.profile.precisions)
    try:
        # Weights may have been loaded since the runtime was created; from here on they are watched.
        require_model(bundle, model)
        if switchable.layer_names != layers:
            raise BundleError(
                f"the model runs {len(switchable.layer_names)} switchable layers under other names or in "
                f"another order than the {len(layers)} in the bundle; certify this model"
            )
        try:
            calibration = calibration_from_json(bundle.calibration_json)
        except ValueError as error:
            raise BundleError(f"calibration.json is garbled ({error}); export the bundle again") from None
        switchable.load_calibration(calibration)
        switchable.prepare(plan)
    except BaseException:
        switchable.detach()
        raise
    return switchable


def resident_bytes(bundle: ControllerBundle, plan: PrecisionPlan) -> int:
    """How much memory attaching needs beside the model, at most: a copy of the weights, and packed ones.

    Emulated layers keep values of the format they emulate as float32, so that packed weights may be as large
    as the model's own at any precision; native kernels keep less.
    """
    copies = (
        1 + (plan[layer.name] != bundle.profile.reference_plan[layer.name]) for layer in bundle.profile.layers
    )
    weights = (4 * layer.shape.weight_elements for layer in bundle.profile.layers)
    return sum(count * size for count, size in zip(copies, weights, strict=True))


def layer_without_kernel(
    bundle: ControllerBundle, switchable: SwitchableModel, plan: PrecisionPlan
) -> str | None:
    """A layer whose energy was measured on a native kernel that this machine lacks; None if there is none.

    Modelled energy holds for the device it models, whatever this machine is.
    """
    if bundle.profile.provenance == "modelled":
        return None
    for index, layer in enumerate(bundle.profile.layers):
        name = plan[layer.name]
        if layer.costs[name].native and switchable.native_kernel(index, name) is None:
            return layer.name
    return None
