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


# --- what the sample sees -----------------------------------------------------------------------------------


def test_every_count_of_small_maps_sees_a_position_that_alone_is_not_zero() -> None:
    for count in range(400, 601):
        x = torch.zeros(count, 1, 7, 7)
        x.flatten(1)[:, count % 49] = torch.linspace(0.5, 1.0, count)
        observer = ActivationObserver("layer")
        observer.observe(x)
        share = float((observer.sample > 0).float().mean())
        assert share == pytest.approx(1 / 49, rel=0.02), count
        if count % 20 == 0:
            assert observer.calibrate([8]).affine[8].scale == pytest.approx(1 / 255, rel=0.01)


@pytest.mark.parametrize("shape", [(300, 64), (40, 16, 64), (64, 64, 7, 7), (16, 16, 30, 17)])
def test_an_outlier_is_in_the_range_whichever_column_position_or_channel_has_it(
    shape: tuple[int, ...],
) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = 0.1 * torch.randn(shape, generator=generator)
    for axis in range(1, len(shape)):
        scales = []
        for index in range(0, shape[axis], max(1, shape[axis] // 5)):
            x = plain.clone()
            x.select(axis, index).add_(13.0)
            scales.append(observed(x, bits=(4,)).affine[4].scale)
        assert min(scales) > 0.8 * max(scales) > 0.5


@pytest.mark.parametrize("shape", [(50_000,), (200, 500), (100, 20, 50), (50, 8, 20, 20)])
def test_the_true_ends_of_the_range_are_always_in_the_sample(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator) - 0.5
    for index in range(0, x.numel(), 9973):
        one = x.clone()
        one.view(-1)[index] = 1e4
        one.view(-1)[index - 1] = -1e4
        found = observed(one)
        assert found.absmax == 1e4
        # One value that is 20,000 times as large as the others outweighs them all.
        span = found.affine[8]
        assert span.highest_step * span.scale > 9e3
        assert span.lowest_step * span.scale < -9e3


def test_every_row_column_and_position_is_in_the_sample() -> None:
    for shape in ((64, 768), (8, 32, 512), (128, 40, 9, 11), (5_000,), (10_000, 3), (2, 4_096)):
        for axis, size in enumerate(shape):
            index = torch.arange(size, dtype=torch.float32).reshape(-1, *[1] * (len(shape) - axis - 1))
            observer = ActivationObserver("layer")
            observer.observe(index.expand(shape))
            seen = observer.sample
            assert len(seen) <= 4_096
            assert len(set(seen.tolist())) == min(size, 4_096)


def test_the_same_batches_give_the_same_calibration() -> None:
    batches = [torch.randn(64, 300, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    assert observed(*batches) == observed(*batches)
