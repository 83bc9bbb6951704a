"""The switch benchmark: what is timed, and plans never seen before."""

from __future__ import annotations

import json

import pytest
import torch

from scripts.benchmarks import switch_bench
from wattbit.execution.switchable import SwitchableModel


def test_switching_is_timed_per_module_and_for_200_modules() -> None:
    net = switch_bench.network(6)
    x = torch.randn(4, switch_bench.WIDTH)
    with SwitchableModel(net, x, ["bf16", "int8"]) as model:
        model.calibrate([x])
        benchmark = switch_bench.measure(model, x, switches=20, new_plans=5)
    figures = benchmark.figures
    assert {"us_per_module_median", "ms_200_modules_median"} <= set(figures)
    assert figures["ms_200_modules_median"] == pytest.approx(0.2 * figures["us_per_module_median"])
    assert all(row["modules"] == 6 for row in benchmark.rows if row["table"] == "switches")
    assert json.loads(benchmark.to_json())["bench"] == "switch"


def test_plans_never_seen_before_differ_from_one_another() -> None:
    plans = switch_bench.random_plans(tuple("abcdefgh"))
    assert len({next(plans) for _ in range(50)}) > 45
