"""The device model: a layer worked out by hand, laws that hold for any layer, and refusal of bad tables."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.energy.device_model import DeviceModel, MemoryLevel, stored_weight_bytes
from wattbit.errors import ConfigError, PrecisionError
from wattbit.precision import PRECISIONS, precision
from wattbit.profile import LayerShape

TABLES = Path(__file__).parents[1] / "conf" / "energy" / "device"
SMALL = MemoryLevel("small", 512, 1.0, 1e9)
BIG = MemoryLevel("big", None, 10.0, 1e8)
DEVICE = DeviceModel(
    name="toy",
    source="round numbers",
    mac_pj={"fp32": 2.0, "bf16": 1.0, "int8": 0.5},
    memory=(SMALL, BIG),
    peak_macs_per_s={"fp32": 1e11, "bf16": 1e6, "int8": 1e12},
    conversion_pj={"float": 0.1, "int": 0.2, "block": 0.3, "widen": 0.25},
)
LINEAR = LayerShape(
    name="fc",
    kind="linear",
    macs=1000,
    weight_elements=1000,
    input_elements=20,
    output_elements=50,
    in_channels=20,
    out_channels=50,
    kernel_size=1,
    stride=1,
    groups=1,
    depth=0.0,
)
SHAPES = st.builds(
    LayerShape,
    name=st.just("layer"),
    kind=st.just("conv2d"),
    macs=st.integers(1, 10**9),
    weight_elements=st.integers(1, 10**7),
    input_elements=st.integers(1, 10**6),
    output_elements=st.integers(1, 10**6),
    in_channels=st.integers(1, 2048),
    out_channels=st.integers(1, 2048),
    kernel_size=st.just(3),
    stride=st.just(1),
    groups=st.just(1),
    depth=st.just(0.5),
)
REAL = [DeviceModel.from_table(yaml.safe_load(path.read_text())) for path in sorted(TABLES.glob("*.yaml"))]
DEVICES = st.sampled_from(REAL)
NAMES = st.sampled_from(sorted(PRECISIONS))
NARROWER = [
    (wide.name, narrow.name)
    for wide in PRECISIONS.values()
    for narrow in PRECISIONS.values()
    if wide.family == narrow.family
    and wide.weight_only == narrow.weight_only
    and narrow.stored_weight_bits < wide.stored_weight_bits
    and narrow.stored_activation_bits <= wide.stored_activation_bits
]


def pj(energy_j: float) -> float:
    """Picojoules: `pytest.approx` takes joules that differ by less than 1e-12 for equal."""
    return energy_j * 1e12


def table() -> dict[str, Any]:
    return {
        "name": "toy",
        "source": "a paper",
        "mac_pj": {"int8": {"value": 0.5, "source": "table 1"}},
        "memory": [
            {
                "name": "all",
                "capacity_bytes": {"value": None, "source": "unlimited"},
                "pj_per_byte": {"value": 10, "source": "table 1"},
                "bandwidth_bytes_per_s": {"value": 1.0e8, "source": "assumption"},
            }
        ],
        "peak_macs_per_s": {"int8": {"value": 1.0e12, "source": "assumption"}},
        "conversion_pj": {
            key: {"value": 0.1, "source": "assumption"} for key in ("float", "int", "block", "widen")
        },
    }


@pytest.mark.parametrize(
    ("name", "batch_size", "energy_pj"),
    [
        # 1000 MACs; 1000 weights x 4 B from "big", as 4000 B exceed 512; 80 B in, 200 B out through "small".
        ("fp32", 1, 1000 * 2.0 + 4000 * 10 + 80 + 200),
        # Weights 1 B each and 50 scales of 4 B; 20 B in; outputs leave at 2 B.
        ("int8", 1, 1000 * 0.5 + (1000 + 200) * 10 + 20 + 100),
        ("int8", 4, 1000 * 0.5 + (1000 + 200) / 4 * 10 + 20 + 100),
        # Weights 0.5 B each, computed in bf16 with inputs of 2 B, and 1000 weights to widen.
        ("int4_wo", 1, 1000 * 1.0 + (500 + 200) * 10 + 40 + 100 + 1000 * 0.25),
        ("int4_wo", 2, 1000 * 1.0 + (500 + 200) / 2 * 10 + 40 + 100 + 1000 / 2 * 0.25),
    ],
)
def test_energy_of_a_layer_agrees_with_the_figure_worked_out_by_hand(
    name: str, batch_size: int, energy_pj: float
) -> None:
    energy_j = DEVICE.layer_energy_j(LINEAR, precision(name), batch_size)
    assert pj(energy_j) == pytest.approx(energy_pj)


def test_latency_is_that_of_the_slowest_resource() -> None:
    memory_bound = DEVICE.layer_latency_s(LINEAR, precision("int8"))
    assert memory_bound == pytest.approx((1000 + 200) / 1e8)  # "big" at 1e8 B/s; 1e-9 s of arithmetic
    compute_bound = DEVICE.layer_latency_s(LINEAR, precision("bf16"))
    assert compute_bound == pytest.approx(1000 / 1e6)
    activations = replace(LINEAR, weight_elements=1, out_channels=1, input_elements=100, output_elements=100)
    assert DEVICE.layer_latency_s(activations, precision("int8")) == pytest.approx((5 + 100 + 200) / 1e9)


def test_conversion_costs_arithmetic_and_one_pass_through_the_smallest_memory() -> None:
    fp32, bf16, int8 = precision("fp32"), precision("bf16"), precision("int8")
    to_int8_pj = 0.2 + 4 + 1
    assert pj(DEVICE.conversion_j_per_element(fp32, int8)) == pytest.approx(to_int8_pj)
    from_int8_pj = 0.1 + 2 + 4  # an int8 layer writes 16 bits
    assert pj(DEVICE.conversion_j_per_element(int8, fp32)) == pytest.approx(from_int8_pj)
    weight_only = precision("int8_wo")  # reads and computes in bf16
    assert DEVICE.conversion_j_per_element(bf16, weight_only) == 0.0
    assert pj(DEVICE.conversion_j_per_element(int8, weight_only)) == pytest.approx(0.1 + 2 + 2)


def test_a_tensor_that_just_fits_a_memory_is_in_it() -> None:
    fp32 = precision("fp32")
    fits = replace(LINEAR, macs=1, weight_elements=128, input_elements=128, output_elements=128)
    assert pj(DEVICE.layer_energy_j(fits, fp32)) == pytest.approx(2 + 3 * 512)
    exceeds = replace(fits, input_elements=129)
    assert pj(DEVICE.layer_energy_j(exceeds, fp32)) == pytest.approx(2 + 2 * 512 + 516 * 10)


def test_all_weights_of_a_model_can_share_one_memory() -> None:
    small = replace(LINEAR, weight_elements=100, macs=1, input_elements=1, output_elements=1, out_channels=1)
    alone = DEVICE.layer_energy_j(small, precision("fp32"))
    shared = replace(DEVICE, resident_weight_bytes=513).layer_energy_j(small, precision("fp32"))
    assert pj(shared - alone) == pytest.approx(400 * (10 - 1))


def test_the_model_says_what_it_is() -> None:
    assert DEVICE.provenance == "modelled"
    assert DEVICE.device == "toy"


def test_a_precision_is_supported_if_the_table_has_its_compute_format() -> None:
    assert DEVICE.supports(precision("int8"))
    assert DEVICE.supports(precision("int4_wo"))
    assert not DEVICE.supports(precision("int4"))


def test_an_unsupported_precision_is_refused_with_what_is_supported() -> None:
    int4 = precision("int4")
    with pytest.raises(PrecisionError, match=r"'toy' has no format 'int4'.*supports fp32, bf16, int8"):
        DEVICE.layer_energy_j(LINEAR, int4)
    with pytest.raises(PrecisionError):
        DEVICE.layer_latency_s(LINEAR, int4)
    with pytest.raises(PrecisionError):
        DEVICE.conversion_j_per_element(precision("int8"), int4)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_without_samples_is_refused(batch_size: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        DEVICE.layer_energy_j(LINEAR, precision("int8"), batch_size)


@settings(deadline=None, max_examples=200)
@given(DEVICES, SHAPES, st.sampled_from(NARROWER), st.integers(1, 256))
def test_fewer_bits_of_the_same_family_never_cost_more(
    device: DeviceModel, shape: LayerShape, pair: tuple[str, str], batch_size: int
) -> None:
    wide, narrow = precision(pair[0]), precision(pair[1])
    energies_j = [device.layer_energy_j(shape, p, batch_size) for p in (wide, narrow)]
    assert energies_j[1] <= energies_j[0]
    seconds = [device.layer_latency_s(shape, p, batch_size) for p in (wide, narrow)]
    assert seconds[1] <= seconds[0]


@settings(deadline=None, max_examples=100)
@given(DEVICES, SHAPES, NAMES, st.integers(1, 10**9))
def test_energy_grows_by_the_same_amount_with_every_mac(
    device: DeviceModel, shape: LayerShape, name: str, more: int
) -> None:
    p = precision(name)
    base_j = device.layer_energy_j(shape, p)
    grown_j = device.layer_energy_j(replace(shape, macs=shape.macs + more), p)
    assert pj(grown_j) == pytest.approx(pj(base_j) + more * device.mac_pj[p.compute])


@settings(deadline=None, max_examples=100)
@given(DEVICES, SHAPES, NAMES, st.integers(1, 512))
def test_larger_batches_never_cost_more_per_sample(
    device: DeviceModel, shape: LayerShape, name: str, batch_size: int
) -> None:
    p = precision(name)
    assert device.layer_energy_j(shape, p, batch_size + 1) <= device.layer_energy_j(shape, p, batch_size)
    assert device.layer_latency_s(shape, p, batch_size + 1) <= device.layer_latency_s(shape, p, batch_size)


@settings(deadline=None, max_examples=100)
@given(DEVICES, SHAPES, NAMES)
def test_energy_and_time_are_positive_and_finite(device: DeviceModel, shape: LayerShape, name: str) -> None:
    p = precision(name)
    for figure in (device.layer_energy_j(shape, p), device.layer_latency_s(shape, p)):
        assert math.isfinite(figure)
        assert figure > 0


@settings(deadline=None, max_examples=100)
@given(DEVICES, NAMES, NAMES)
def test_conversion_is_free_only_between_equal_activation_formats(
    device: DeviceModel, source: str, target: str
) -> None:
    a, b = precision(source), precision(target)
    energy_j = device.conversion_j_per_element(a, b)
    assert (energy_j == 0.0) == (a.compute == b.compute)
    assert energy_j >= 0.0


@settings(deadline=None, max_examples=100)
@given(DEVICES, SHAPES)
def test_no_precision_wins_by_falling_into_a_smaller_memory(device: DeviceModel, shape: LayerShape) -> None:
    def weights_pj(name: str) -> float:
        bare = replace(device, mac_pj=dict.fromkeys(device.mac_pj, 1e-9))
        once, many = (bare.layer_energy_j(shape, precision(name), n) for n in (1, 10**12))
        return pj(once - many)

    ratio = weights_pj("fp32") / weights_pj("bf16")
    assert ratio == pytest.approx(2.0, rel=1e-4)


def test_stored_weights_include_their_scales() -> None:
    assert stored_weight_bytes(LINEAR, precision("fp32")) == 4000
    assert stored_weight_bytes(LINEAR, precision("int8")) == 1000 + 4 * 50
    assert stored_weight_bytes(LINEAR, precision("int4_wo")) == 500 + 4 * 50
    assert stored_weight_bytes(LINEAR, precision("mxfp4")) == 1000 * 4.25 / 8
    assert stored_weight_bytes(LINEAR, precision("nvfp4")) == 1000 * 4.5 / 8


def test_a_table_and_plain_arguments_build_the_same_model() -> None:
    built = DeviceModel(
        name="toy",
        source="a paper",
        mac_pj={"int8": 0.5},
        memory=(MemoryLevel("all", None, 10, 1.0e8),),
        peak_macs_per_s={"int8": 1.0e12},
        conversion_pj={"float": 0.1, "int": 0.1, "block": 0.1, "widen": 0.1},
    )
    assert DeviceModel.from_table(table()) == built
    assert DeviceModel.from_table(table(), resident_weight_bytes=9).resident_weight_bytes == 9


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "0.5", "5e11", None, True, [1]])
@pytest.mark.parametrize(
    "path",
    [
        ("mac_pj", "int8"),
        ("peak_macs_per_s", "int8"),
        ("conversion_pj", "widen"),
        ("memory", 0, "pj_per_byte"),
        ("memory", 0, "bandwidth_bytes_per_s"),
    ],
)
def test_a_figure_that_is_no_positive_number_is_refused(path: tuple[str | int, ...], value: object) -> None:
    data: Any = table()
    figure = data
    for key in path:
        figure = figure[key]
    figure["value"] = value
    with pytest.raises(ConfigError) as error:
        DeviceModel.from_table(data)
    message = str(error.value)
    assert "\n" not in message
    assert "'toy'" in message
    assert str(path[-1]) in message
    assert repr(value) in message


@pytest.mark.parametrize(
    "figure", [{"value": 0.5}, {"value": 0.5, "source": " "}, {"source": "x"}, 0.5, None]
)
def test_a_figure_without_its_source_is_refused(figure: object) -> None:
    data = table()
    data["mac_pj"]["int8"] = figure
    with pytest.raises(ConfigError, match=r"mac_pj\.int8.*(source|value)"):
        DeviceModel.from_table(data)


@pytest.mark.parametrize("key", sorted(table()))
def test_a_missing_key_is_named(key: str) -> None:
    data = table()
    del data[key]
    with pytest.raises(ConfigError, match=f"key '{key}' is missing"):
        DeviceModel.from_table(data)


def test_an_unknown_key_is_refused_with_the_valid_ones() -> None:
    unknown: dict[str, Callable[[dict[str, Any]], None]] = {
        "macs_pj": lambda data: data.update(macs_pj={}),
        "int9": lambda data: data["mac_pj"].update(int9={"value": 1, "source": "x"}),
        "latency": lambda data: data["memory"][0].update(latency={"value": 1, "source": "x"}),
        "unit": lambda data: data["mac_pj"]["int8"].update(unit="pJ"),
        "fp32": lambda data: data["peak_macs_per_s"].update(fp32={"value": 1, "source": "x"}),
        "bool": lambda data: data["conversion_pj"].update(bool={"value": 1, "source": "x"}),
    }
    for key, spoil in unknown.items():
        data = table()
        spoil(data)
        with pytest.raises(ConfigError, match=f"unknown key '{key}'; choose from"):
            DeviceModel.from_table(data)


def test_each_format_needs_a_peak_rate_and_each_conversion_a_price() -> None:
    data = table()
    data["mac_pj"]["int4"] = {"value": 0.1, "source": "x"}
    with pytest.raises(ConfigError, match="peak_macs_per_s: key 'int4' is missing"):
        DeviceModel.from_table(data)
    data = table()
    del data["conversion_pj"]["widen"]
    with pytest.raises(ConfigError, match="conversion_pj: key 'widen' is missing"):
        DeviceModel.from_table(data)


def test_a_table_of_another_shape_is_refused() -> None:
    wrong: list[tuple[Any, str]] = [
        ([], "device table is \\[\\]"),
        ({**table(), "memory": {}}, "give a list of levels"),
        ({**table(), "memory": "ddr"}, "give a list of levels"),
        ({**table(), "memory": []}, "must hold anything"),
        ({**table(), "memory": [3]}, r"memory\[0\] is 3"),
        ({**table(), "mac_pj": {}}, "mac_pj has no format"),
        ({**table(), "mac_pj": [1]}, "mac_pj is"),
        ({**table(), "name": ""}, "name is ''"),
        ({**table(), "source": None}, "source is None"),
    ]
    for data, message in wrong:
        with pytest.raises(ConfigError, match=message):
            DeviceModel.from_table(data)


def test_memory_levels_must_grow_and_end_with_one_that_holds_anything() -> None:
    def with_capacities(*capacities: int | None) -> dict[str, Any]:
        data = table()
        level = data["memory"][0]
        data["memory"] = []
        for index, capacity in enumerate(capacities):
            data["memory"].append(copy.deepcopy(level))
            data["memory"][-1]["name"] = f"level{index}"
            data["memory"][-1]["capacity_bytes"]["value"] = capacity
        return data

    DeviceModel.from_table(with_capacities(1, 2, None))
    for capacities in ((2, 1, None), (1, 1, None)):
        with pytest.raises(ConfigError, match="grow in capacity"):
            DeviceModel.from_table(with_capacities(*capacities))
    with pytest.raises(ConfigError, match="last memory level must hold anything"):
        DeviceModel.from_table(with_capacities(1, 2))
    with pytest.raises(ConfigError, match=r"memory\[0\]\.capacity_bytes is None"):
        DeviceModel.from_table(with_capacities(None, None))
    twins = with_capacities(1, None)
    twins["memory"][1]["name"] = "level0"
    with pytest.raises(ConfigError, match="differ in name"):
        DeviceModel.from_table(twins)
