"""A realistic ``results.json`` for tests of tables, figures and reports; all numbers invented."""

import copy
import json
import math
import random
from typing import Any

from report.results import RunResults

LAYERS = (
    ("stem.conv", "conv2d", 41_472),
    ("stages.0.blocks.0.depthwise_convolution", "depthwise_conv2d", 27_648),
    ("stages.0.blocks.0.pointwise_convolution", "conv2d", 73_728),
    ("stages.0.blocks.1.depthwise_convolution", "depthwise_conv2d", 27_648),
    ("stages.0.blocks.1.pointwise_convolution", "conv2d", 73_728),
    ("stages.1.downsample.conv", "conv2d", 147_456),
    ("stages.1.blocks.0.attention.query_key_value_projection", "linear", 98_304),
    ("stages.1.blocks.0.attention.output_projection", "linear", 32_768),
    ("stages.1.blocks.0.feed_forward", "linear", 131_072),
    ("head", "linear", 1_280),
)
BITS = {
    "fp32": 32.0,
    "bf16": 16.0,
    "fp16": 16.0,
    "fp8_e4m3": 8.0,
    "int8": 8.0,
    "int6": 6.0,
    "int4": 4.0,
    "int2": 2.0,
    "mxfp4": 4.25,
    "nvfp4": 4.5,
    "int4_wo": 10.0,
}
TOLERANCES = (0.25, 0.5, 1.0, 2.0)
METHODS = (
    "ppo",
    "policy",
    "greedy",
    "ilp",
    "random",
    "uniform_bf16",
    "uniform_int8",
    "uniform_int4",
    "uniform_int2",
)


def read(results: dict[str, Any]) -> RunResults:
    """The value that a ``results.json`` with this content holds."""
    return RunResults.from_json(json.dumps(results))


def deployed_at(results: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """The entry of a tolerance in ``deployed``."""
    return next(entry for entry in results["deployed"] if entry["tolerance_pp"] == tolerance)


def example_results() -> dict[str, Any]:
    """A finished run on a modelled device: certified at 0.5, 1 and 2 pp, inconclusive at 0.25 pp."""
    rng = random.Random(7)  # noqa: S311 - made-up numbers, no secrets
    plans = [_plan(method, tolerance, rng) for tolerance in TOLERANCES for method in METHODS]
    return {
        "schema": 2,
        "status": "finished",
        "workload": "digits",
        "model": {"fingerprint": "9f2c4be01d77a3c5", "parameters": 654_218, "switchable_layers": len(LAYERS)},
        "device": "modelled: 7 nm accelerator (Jouppi et al., ISCA 2021, table 2)",
        "seed": 0,
        "provenance": "modelled",
        "energy_note": "energy: modelled for a 7 nm accelerator because no energy counter can be read here",
        "reference": {"accuracy": 0.985, "energy_j": 1.2e-6, "latency_ms": 0.01, "test_accuracy": 0.98},
        "precisions": list(BITS),
        "tolerances_pp": list(TOLERANCES),
        "guardrail": {"tolerance_pp": 1.0, "alpha": 0.05, "strict": False, "per_class_pp": {"8": 0.2}},
        "splits": {"train": 500, "calibrate": 97, "search": 300, "certify": 600, "test": 300},
        "notes": ["certify has 600 samples; a tolerance of 0.25 pp needs at least 1080 to be certified"],
        "plans": plans,
        "deployed": [{"tolerance_pp": t, "plan": _deployed(plans, t)} for t in TOLERANCES],
        "layers": [_layer(i) for i in range(len(LAYERS))],
        "archive": [_archived(rng) for _ in range(400)] + [_archive_of(plan) for plan in plans],
        "learning_curve": [_curve_point(i, rng) for i in range(40)],
        "seconds": {"profile": 12.4, "train": 187.2, "certify": 3.1, "total": 205.9},
        "peak_rss_mb": 812.0,
    }


def confirmed_results() -> dict[str, Any]:
    """The same run with a meter: deployed plans save at 1 pp, perhaps at 2 pp, and not at 0.5 pp."""
    results = copy.deepcopy(example_results())
    results["provenance"] = "estimated"
    found = {0.5: (-0.04, [-0.06, -0.02]), 1.0: (0.31, [0.29, 0.33]), 2.0: (0.01, [-0.02, 0.04])}
    for tolerance, (saving, interval) in found.items():
        deployed = deployed_at(results, tolerance)["plan"]
        confirmation = {
            "energy_j": 1.1e-6 * (1 - saving),
            "reference_energy_j": 1.1e-6,
            "provenance": "estimated",
            "saving": saving,
            "saving_interval": interval,
            "interval_level": 0.95,
            "net_saving": None,
            "additive_error": (1 - deployed["saving"]) / (1 - saving) - 1,
            "trials": 12,
            "reliable": True,
        }
        for entry in (deployed, *results["plans"]):
            if entry["plan_id"] == deployed["plan_id"]:
                entry["confirmation"] = confirmation
    return results


def interrupted_results() -> dict[str, Any]:
    """The same run stopped during the search: candidates, but no certificate and no learning curve."""
    results = copy.deepcopy(example_results())
    results["status"] = "interrupted"
    results["deployed"] = []
    results["notes"] = []
    for plan in results["plans"]:
        plan |= dict.fromkeys(
            (
                "certify_drop_pp",
                "certify_interval_pp",
                "test_drop_pp",
                "test_interval_pp",
                "verdict",
                "reason",
            )
        )
    del results["learning_curve"]
    results["seconds"] = {"profile": 12.4, "train": 31.0, "certify": None, "total": None}
    return results


def bare_results() -> dict[str, Any]:
    """The least that a report can be made of."""
    return {"schema": 2, "workload": "digits", "provenance": "estimated"}


def _plan(method: str, tolerance: float, rng: random.Random) -> dict[str, Any]:
    uniform = method.removeprefix("uniform_")
    if uniform in BITS:
        precisions = {name: uniform for name, _, _ in LAYERS}
        drop = {"bf16": 0.0, "int8": 0.33, "int4": 6.3, "int2": 71.7}[uniform]
    else:
        menu = ["int8", "int6", "int4", "mxfp4", "nvfp4", "int4_wo", "fp8_e4m3"]
        start = {0.25: 0, 0.5: 0, 1.0: 1, 2.0: 2}[tolerance]
        precisions = {name: rng.choice(menu[start : start + 4]) for name, _, _ in LAYERS}
        precisions[LAYERS[0][0]] = "int8"
        drop = tolerance * {"ppo": 0.6, "policy": 0.7, "greedy": 0.9, "ilp": 0.8, "random": 1.6}[method]
    ratio = sum(BITS[precisions[name]] * macs for name, _, macs in LAYERS) / (
        32 * sum(m for _, _, m in LAYERS)
    )
    ratio *= {"ppo": 0.8, "policy": 0.84, "ilp": 0.9, "greedy": 0.96}.get(method, 1.0)
    ratio *= 1.0 if uniform in BITS else 1.1 - 0.15 * tolerance
    half = 0.2 + drop / 6
    verdict, reason = "pass", ""
    if tolerance == 0.25:
        verdict, reason = "inconclusive", "600 samples cannot certify 0.25 pp; at least 1080 would do"
    elif drop > tolerance:
        verdict, reason = "fail", f"drop {drop:.2f} pp is above {tolerance:g} pp"
    return {
        "method": method,
        "tolerance_pp": tolerance,
        "plan_id": f"{rng.getrandbits(64):016x}",
        "precisions": precisions,
        "energy_j": 1.2e-6 * ratio,
        "saving": 1 - ratio,
        "latency_ms": 0.01 * (0.4 + 0.6 * ratio),
        "memory_bytes": round(2_616_872 * ratio),
        "search_drop_pp": drop * 0.9,
        "certify_drop_pp": drop,
        "certify_interval_pp": [drop - half, drop + half],
        "test_drop_pp": drop * 1.1,
        "test_interval_pp": [drop * 1.1 - half, drop * 1.1 + half],
        "verdict": verdict,
        "reason": reason,
        "evaluations": 1 if method.startswith("uniform") else 400,
        "seconds": 0.2 if method.startswith("uniform") else 60.5,
    }


def _deployed(plans: list[dict[str, Any]], tolerance: float) -> dict[str, Any] | None:
    for plan in plans:
        if (plan["method"], plan["tolerance_pp"], plan["verdict"]) == ("ppo", tolerance, "pass"):
            return dict(plan)
    return None


def _layer(index: int) -> dict[str, Any]:
    name, kind, macs = LAYERS[index]
    costs = {}
    for precision, bits in BITS.items():
        if precision == "nvfp4" and kind == "depthwise_conv2d":
            continue
        weight = 1 + 3 * math.cos(1.7 * index) ** 2
        sensitivity = 0.0 if precision == "fp32" else weight * 10 ** (0.4 - 0.62 * min(bits, 9.0))
        costs[precision] = {
            "energy_j": 1e-12 * macs * bits / 16,
            "energy_rel_std": None,
            "latency_ms": 0.0005 * bits / 16,
            "memory_bytes": round(macs * bits / 64),
            "sensitivity": sensitivity,
            "sensitivity_std": sensitivity / 10,
            "native": precision in ("fp32", "bf16", "int8"),
        }
    return {
        "shape": {
            "name": name,
            "kind": kind,
            "macs": macs,
            "weight_elements": macs // 16,
            "input_elements": 256,
            "output_elements": 256,
            "in_channels": 16,
            "out_channels": 16,
            "kernel_size": 1,
            "stride": 1,
            "groups": 1,
            "depth": index / (len(LAYERS) - 1),
        },
        "costs": costs,
    }


def _archived(rng: random.Random) -> dict[str, Any]:
    share = rng.uniform(0.12, 0.8)
    drop = max(-0.3, 0.02 / share**2.5 + rng.gauss(0.3, 0.5) * rng.choice([1, 1, 6]))
    method = rng.choice(["ppo", "ppo", "ppo", "random", "greedy", "ilp"])
    return {"energy_j": 1.2e-6 * share, "search_drop_pp": drop, "method": method}


def _archive_of(plan: dict[str, Any]) -> dict[str, Any]:
    return {key: plan[key] for key in ("energy_j", "search_drop_pp", "method")}


def _curve_point(index: int, rng: random.Random) -> dict[str, Any]:
    learned = 1 - math.exp(-index / 9)
    best = {t: (0.62 + 0.06 * i) + 0.1 * round(learned, 1) for i, t in enumerate(TOLERANCES)}
    return {
        "timesteps": 512 * (index + 1),
        "mean_reward": -0.4 + 1.1 * learned + rng.gauss(0, 0.03),
        "evaluations": 20 * (index + 1),
        "best_saving": [
            {"tolerance_pp": t, "saving": saving if index > 3 or t >= 1.0 else None}
            for t, saving in best.items()
        ],
    }
