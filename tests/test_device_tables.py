"""The device tables and energy options that ship: every figure has a source and follows from it."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from pipeline.energy_source import auto_energy, modelled_energy
from wattbit.energy.device_model import DeviceModel
from wattbit.energy.time_power import TimePowerMeter
from wattbit.precision import PRECISIONS

CONF = Path(__file__).parents[1] / "conf"
TABLES = {path.stem: path for path in sorted((CONF / "energy" / "device").glob("*.yaml"))}
OPERATIONS_PJ = {
    7: {"i8+": 0.007, "i32+": 0.03, "f32+": 0.38, "i8*": 0.07, "bf16*": 0.21, "f16*": 0.34, "f32*": 1.31},
    45: {
        "i8+": 0.03,
        "i32+": 0.1,
        "f32+": 0.9,
        "i8*": 0.2,
        "bf16*": 1.1 * 0.21 / 0.34,
        "f16*": 1.1,
        "f32*": 3.7,
    },
}
NODES_NM = {"edge_7nm": 7, "datacenter_hbm": 7, "cmos_45nm": 45}


def load(name: str) -> dict[str, Any]:
    data = yaml.safe_load(TABLES[name].read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def figures(node: object, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict) and "value" in node:
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from figures(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from figures(value, f"{path}[{index}]")


def energy_option(*overrides: str) -> DictConfig:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose(overrides=list(overrides)).energy  # type: ignore[no-any-return]


def test_the_tables_are_those_that_are_checked_here() -> None:
    assert set(TABLES) == set(NODES_NM)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_builds_and_bears_the_name_of_its_file(name: str) -> None:
    assert DeviceModel.from_table(load(name)).device == name


@pytest.mark.parametrize("name", TABLES)
def test_every_number_in_a_table_has_a_source(name: str) -> None:
    found = list(figures(load(name)))
    numbers = TABLES[name].read_text(encoding="utf-8").count("value:")
    assert len(found) == numbers == 3 * 4 + 2 * 12 + 4
    for path, figure in found:
        assert figure["source"].strip(), path
        assert set(figure) == {"value", "source"}, path


@pytest.mark.parametrize("name", TABLES)
def test_every_precision_is_in_every_table(name: str) -> None:
    model = DeviceModel.from_table(load(name))
    assert all(model.supports(p) for p in PRECISIONS.values())


@pytest.mark.parametrize("name", TABLES)
def test_energy_of_a_mac_follows_from_the_published_operations(name: str) -> None:
    op = OPERATIONS_PJ[NODES_NM[name]]
    int_mul = {bits: op["i8*"] * bits**2 / 64 for bits in (2, 3, 4, 5, 6, 8)}
    expected = {
        "fp32": op["f32*"] + op["f32+"],
        "tf32": op["f16*"] + op["i8+"] * 3 / 8 + op["f32+"],
        "bf16": op["bf16*"] + op["f32+"],
        "fp16": op["f16*"] + op["f32+"],
        "fp8_e4m3": 2.83 * (op["i8*"] + op["i32+"]),
        **{f"int{bits}": int_mul[bits] + op["i32+"] for bits in (8, 6, 4, 3, 2)},
        "mxfp4": int_mul[5] + op["i32+"] + (2 * op["i8+"] + op["f32+"]) / 32,
        "nvfp4": int_mul[5] + op["i32+"] + (int_mul[4] + op["f16*"] + op["f32+"]) / 16,
    }
    assert DeviceModel.from_table(load(name)).mac_pj == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", TABLES)
def test_conversions_follow_from_the_published_operations(name: str) -> None:
    op = OPERATIONS_PJ[NODES_NM[name]]
    expected = {
        "float": op["i32+"],
        "int": op["f16*"] + 2 * op["i32+"],
        "block": op["f16*"] + 3 * op["i32+"],
        "widen": op["bf16*"] + op["i32+"],
    }
    assert DeviceModel.from_table(load(name)).conversion_pj == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "pj_per_64_bits"),
    [
        ("edge_7nm", [7.5, 8.5, 14.0, 1300.0]),
        ("datacenter_hbm", [7.5, 8.5, 14.0, 250.0]),
        ("cmos_45nm", [10.0, 20.0, 100.0, 1300.0]),
    ],
)
def test_memory_energies_are_the_published_ones_per_64_bits(name: str, pj_per_64_bits: list[float]) -> None:
    memory = DeviceModel.from_table(load(name)).memory
    assert [level.pj_per_byte * 8 for level in memory] == pj_per_64_bits


@pytest.mark.parametrize("name", TABLES)
def test_a_wider_significand_never_multiplies_for_less(name: str) -> None:
    mac_pj = DeviceModel.from_table(load(name)).mac_pj
    for order in (
        ("int2", "int3", "int4", "int6", "int8", "fp8_e4m3", "bf16", "fp16", "tf32", "fp32"),
        ("int4", "mxfp4", "nvfp4", "fp8_e4m3"),
    ):
        energies_pj = [mac_pj[name] for name in order]
        assert energies_pj == sorted(energies_pj)


@pytest.mark.parametrize("option", ["modelled", "auto"])
@pytest.mark.parametrize("table", TABLES)
def test_options_build_the_declared_device(option: str, table: str) -> None:
    energy = energy_option(f"+energy={option}", f"energy/device={table}")
    assert energy._target_ == f"pipeline.energy_source.{option}_energy"
    device: Any = OmegaConf.to_container(energy.device)
    assert DeviceModel.from_table(device) == DeviceModel.from_table(load(table))


@pytest.mark.parametrize("option", ["modelled", "auto"])
def test_the_device_is_edge_7nm_unless_another_is_named(option: str) -> None:
    assert energy_option(f"+energy={option}").device.name == "edge_7nm"


def test_the_estimated_option_builds_a_meter_that_says_where_its_watts_come_from() -> None:
    energy = energy_option("+energy=estimated")
    assert energy._target_ == "pipeline.energy_source.metered_energy"
    meter = instantiate(energy.meter, _convert_="all")()
    assert isinstance(meter, TimePowerMeter)
    assert "assumption" in energy.meter.source
    assert energy.meter.watts == 280 / 64


@pytest.mark.parametrize(
    ("option", "key", "target"),
    [
        ("estimated", "meter", TimePowerMeter),
        ("modelled", None, modelled_energy),
        ("auto", None, auto_energy),
    ],
)
def test_keys_of_an_option_are_arguments_of_what_it_builds(option: str, key: str | None, target: Any) -> None:
    energy = energy_option(f"+energy={option}")
    arguments = {str(name) for name in (energy if key is None else energy[key])}
    assert arguments - {"_target_", "_partial_"} <= set(inspect.signature(target).parameters)
