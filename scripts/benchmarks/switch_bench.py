"""How long a switch takes, and what a layer call costs on top while a model is attached.

The model has 200 linear layers, so small that what is measured is the switching, not the layers. Both plans
differ in every layer and are prepared, as a serving process prepares its certified plans.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from scripts.benchmarks import Benchmark, Row
from scripts.benchmarks.timing import compare_times
from wattbit.energy.time_power import cpu_name
from wattbit.energy.trial import timed_s
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan

MODULES = 200
WIDTH = 16
BATCH = 8
SWITCHES = 2000
NEW_PLANS = 200


def run() -> Benchmark:
    """Measure on the CPU."""
    net, x = network(), torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    with SwitchableModel(net, x, ["bf16", "int8"]) as model:
        model.calibrate([x])
        return measure(model, x)


def measure(
    model: SwitchableModel,
    x: Tensor,
    *,
    switches: int = SWITCHES,
    new_plans: int = NEW_PLANS,
) -> Benchmark:
    """Time the switches of a calibrated ``model`` that offers bf16 and int8, and its layer calls on ``x``."""
    names = model.layer_names
    plans = [PrecisionPlan.uniform(names, name) for name in ("bf16", "int8")]
    for plan in plans:
        model.switch(plan)
        model.run(x)
    prepared = _switch_us(model, itertools.cycle(plans), switches)
    # A plan that was read from a file is equal to the prepared one, but another object.
    copies = (PrecisionPlan(dict(plan)) for plan in itertools.cycle(plans))
    equal = _switch_us(model, copies, switches)
    new = _switch_us(model, random_plans(names), new_plans)
    call_us, first_us = _layer_call_us(model, x, plans)
    rows: list[Row] = [
        _row("prepared plans, the same objects", prepared, len(names)),
        _row("prepared plans, read anew", equal, len(names)),
        _row("plans never seen before", new, len(names)),
        _call_row("attached at the reference, over the plain model", call_us),
        _call_row("first batch after a switch, over the next one", first_us),
    ]
    figures = {
        "us_per_module_median": prepared / len(names),
        "ms_200_modules_median": prepared / len(names) * MODULES / 1e3,
        "us_per_module_new_plan_median": new / len(names),
        "layer_call_overhead_us": call_us,
        "first_batch_overhead_us_per_layer": first_us,
    }
    return Benchmark("switch", f"cpu: {cpu_name()}", figures, tuple(rows))


def _row(what: str, median_us: float, modules: int) -> Row:
    return {
        "table": "switches",
        "what": what,
        "modules": modules,
        "ms_median": median_us / 1e3,
        "us_per_module_median": median_us / modules,
    }


def _call_row(what: str, us: float) -> Row:
    return {"table": "layer calls", "what": what, "us_per_call": us}


def _switch_us(model: SwitchableModel, plans: Iterator[PrecisionPlan], switches: int) -> float:
    """The median time of one switch, microseconds."""
    times_ns = []
    for plan in itertools.islice(plans, switches):
        start = time.perf_counter_ns()
        model.switch(plan)
        times_ns.append(time.perf_counter_ns() - start)
    return statistics.median(times_ns) / 1e3


def random_plans(names: tuple[str, ...]) -> Iterator[PrecisionPlan]:
    """Plans drawn at random for the layers ``names``, the same ones each time, without end."""
    generator = random.Random(0)  # noqa: S311 - nothing here is secret
    while True:
        yield PrecisionPlan({name: generator.choice(("fp32", "bf16", "int8")) for name in names})


@torch.inference_mode()
def _layer_call_us(model: SwitchableModel, x: Tensor, plans: list[PrecisionPlan]) -> tuple[float, float]:
    """Extra time of one layer call: while attached at the reference; in the first batch after a switch."""
    layers = len(model.layer_names)
    model.switch(model.reference_plan)
    plain = network(layers).to(x.device)
    timing = compare_times(lambda: plain(x), lambda: model.model(x))
    attached_us = (timing.candidate_s - timing.reference_s) / layers * 1e6
    extra_s = []
    for plan in itertools.islice(itertools.cycle(plans), 100):
        model.switch(plan)
        first_s, next_s = (timed_s(lambda: model.run(x), 1, time.perf_counter) for _ in range(2))
        extra_s.append(first_s - next_s)
    return attached_us, statistics.median(extra_s) / layers * 1e6


def network(modules: int = MODULES) -> nn.Sequential:
    """Linear layers one after the other, in eval mode; the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(modules))).eval()
