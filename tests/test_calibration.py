"""Calibration: an even, bounded sample of what a layer reads, and its JSON form."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from wattbit.calibration import (
    ActivationObserver,
    LayerCalibration,
    calibration_from_json,
    calibration_to_json,
    integer_widths,
)
from wattbit.errors import ModelError
from wattbit.numerics import AffineQuantizer, activation_quantizer
from wattbit.precision import parse_precisions


def observed(*batches: torch.Tensor, bits: tuple[int, ...] = (8, 4)) -> LayerCalibration:
    observer = ActivationObserver("layer")
    for batch in batches:
        observer.observe(batch)
    return observer.calibrate(bits)


def test_a_small_layer_is_calibrated_on_all_of_its_input() -> None:
    x = torch.randn(4, 5, 6)
    found = observed(x)
    assert found.absmax == x.abs().max()
    assert found.affine == {bits: activation_quantizer(x, bits) for bits in (8, 4)}


def test_batches_count_together() -> None:
    low, high = torch.full((10,), -1.0), torch.full((10,), 3.0)
    found = observed(low, high)
    assert found.absmax == 3.0
    assert found.affine[8] == activation_quantizer(torch.cat([low, high]), 8)


@pytest.mark.parametrize("size", [4_097, 6_000, 8_191, 8_192, 20_000, 100_003])
def test_the_sample_reaches_to_the_end_of_a_batch(size: int) -> None:
    # The last fifth of the values is ten times as large: a sample of the first values only would clip it.
    x = torch.rand(size, generator=torch.Generator().manual_seed(0))
    x[-size // 5 :] *= 10.0
    found = observed(x).affine[8]
    assert found.highest_step * found.scale > 5.0


def test_early_batches_count_as_much_as_late_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    many = [torch.rand(4_000, generator=generator) for _ in range(60)]
    early_large = observed(*[x * (10.0 if i < 6 else 1.0) for i, x in enumerate(many)]).affine[4]
    late_large = observed(*[x * (10.0 if i >= 54 else 1.0) for i, x in enumerate(many)]).affine[4]
    assert early_large.scale == pytest.approx(late_large.scale, rel=0.1)


def test_the_sample_stays_small_however_many_batches_there_are() -> None:
    observer = ActivationObserver("layer")
    for _ in range(200):
        observer.observe(torch.ones(50_000))
    held: dict[int, object] = {}
    copy.deepcopy(observer, held)
    assert 0 < sum(sample.numel() for sample in held.values() if isinstance(sample, Tensor)) <= 4 * 16_384


def test_an_empty_batch_changes_nothing() -> None:
    x = torch.randn(10)
    assert observed(torch.zeros(0, 3), x) == observed(x)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 7_777, -1])
def test_an_activation_that_is_not_finite_is_refused_wherever_it_hides(bad: float, index: int) -> None:
    x = torch.zeros(20_000)
    x[index] = bad
    with pytest.raises(ModelError, match="layer 'layer' reads NaN or infinite activations"):
        observed(x, bits=())


def test_a_layer_that_never_ran_is_named() -> None:
    with pytest.raises(ModelError, match="layer 'layer' ran on 0 calibration samples"):
        observed()


def test_only_integer_activations_need_ranges() -> None:
    names = ["fp32", "int8", "int4", "int8_wo", "mxfp4", "bf16", "int2"]
    assert integer_widths(parse_precisions(names)) == (2, 4, 8)


# --- JSON -------------------------------------------------------------------------------------------------

CALIBRATION = {
    "stem": LayerCalibration(2.5, {8: AffineQuantizer(0.02, 3, 8), 4: AffineQuantizer(0.3, 0, 4)}),
    "head": LayerCalibration(0.0, {}),
}


def test_a_calibration_survives_its_json() -> None:
    assert calibration_from_json(calibration_to_json(CALIBRATION)) == CALIBRATION


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], 2),
        (["layers"], []),
        (["layers", "stem"], 3),
        (["layers", "stem", "absmax"], math.nan),
        (["layers", "stem", "absmax"], -1.0),
        (["layers", "stem", "absmax"], "2"),
        (["layers", "stem", "affine"], []),
        (["layers", "stem", "affine", "x"], {}),
        (["layers", "stem", "affine", "8"], {"scale": 1.0}),
        (["layers", "stem", "affine", "8", "scale"], 0.0),
        (["layers", "stem", "affine", "8", "scale"], "wide"),
        (["layers", "stem", "affine", "8", "zero_point"], 256),
        (["layers", "stem", "affine", "8", "zero_point"], 0.5),
        (["layers", "stem", "affine", "8", "bits"], 4),
        (["layers", "stem", "affine", "8", "bits"], 40),
    ],
)
def test_a_garbled_calibration_is_refused_in_one_line(path: list[Any], value: Any) -> None:
    data = json.loads(calibration_to_json(CALIBRATION))
    *parents, last = path
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises(ValueError) as error:
        calibration_from_json(json.dumps(data))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}'])
def test_what_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        calibration_from_json(text)
