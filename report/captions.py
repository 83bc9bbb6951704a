"""What stands around each figure of the report: heading, caption, and a description for who cannot see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from report.formatting import (
    format_interval,
    format_joules,
    format_percent,
    format_pp,
    format_short,
    format_tolerance,
)
from report.plan_result import PlanResult
from report.results import RunResults


@dataclass(frozen=True, slots=True)
class Caption:
    """The words around a figure; ``describe`` makes its alternative text."""

    heading: str
    text: str
    describe: Callable[[RunResults], str]


def _describe_energy_accuracy(run: RunResults) -> str:
    before = format_joules(run.reference.energy_j, run.provenance)
    reference = f"Bars of energy and points of drop. Reference: {before}"
    rows = [f"{format_tolerance(t)}: {_deployed(run, t)}" for t in run.tolerances_pp]
    return "; ".join([reference, *rows]) + "."


def _describe_pareto(run: RunResults) -> str:
    energies = [plan.energy_j for plan in run.archive]
    drops = [plan.search_drop_pp for plan in run.archive]
    return (
        f"Scatter plot of {len(run.archive)} evaluated plans: energy from "
        f"{format_joules(min(energies), run.provenance)} to {format_joules(max(energies), run.provenance)}, "
        f"drop from {format_pp(min(drops))} to {format_pp(max(drops))} pp, with the Pareto front "
        "and the deployed plans marked."
    )


def _describe_precisions(run: RunResults) -> str:
    parts = []
    for tolerance_pp in run.tolerances_pp:
        plan = run.deployed_at(tolerance_pp)
        counts = Counter(plan.precisions.values()) if plan else Counter()
        mix = ", ".join(f"{count} at {name}" for name, count in counts.most_common())
        parts.append(f"{format_tolerance(tolerance_pp)}: {mix or f'all at {run.reference_precision}'}")
    return f"Map of {len(run.layer_names)} layers by precision. " + "; ".join(parts) + "."


def _describe_sensitivity(run: RunResults) -> str:
    values = [
        (cost.sensitivity, layer.name, name) for layer in run.layers for name, cost in layer.costs.items()
    ]
    text = f"Map of the sensitivity of {len(run.layers)} layers."
    if not values:
        return text
    value, layer, name = max(values)
    return f"{text} The most sensitive is {layer} at {name}: {format_short(value)} nats."


def _describe_learning_curve(run: RunResults) -> str:
    last = run.learning_curve[-1]
    text = f"Line plots over {last.timesteps:,.0f} training steps."
    best = [
        f"{format_percent(best.saving)} at {format_tolerance(best.tolerance_pp)}"
        for best in last.best_saving
        if best.saving is not None
    ]
    return f"{text} Saving of the best plan at the end: {', '.join(best)}." if best else text


def _deployed(run: RunResults, tolerance_pp: float) -> str:
    plan: PlanResult | None = run.deployed_at(tolerance_pp)
    if plan is None:
        return "the reference runs"
    interval = format_interval(plan.certify_interval_pp)
    drop = f"drop {format_pp(plan.certify_drop_pp)} pp" + (f" ({interval})" if interval else "")
    end_to_end = f", which {plan.confirmation.text}" if plan.confirmation else ""
    return f"{plan.method}{end_to_end}, {format_joules(plan.energy_j, run.provenance)}, {drop}"


CAPTIONS: Mapping[str, Caption] = MappingProxyType(
    {
        "energy_accuracy": Caption(
            "Energy and accuracy side by side",
            "One row a plan. Left: energy per inference, added up over layers or, where a plan was metered "
            "as a whole, end to end; a hatched bar is the reference. Right: accuracy lost against the "
            "reference on the same samples, with its interval; the black stroke is the tolerance, and an "
            "arrow stands for a drop beyond the axis.",
            _describe_energy_accuracy,
        ),
        "pareto": Caption(
            "Every plan tried: energy against drop",
            "Down and to the left is better. The line joins the plans that no other plan beats in both. The "
            "drop is that on the search split, which is optimistic: verdicts come from the certify split.",
            _describe_pareto,
        ),
        "precisions": Caption(
            "Which layer runs at which precision",
            "One row a layer in execution order, one column a plan.",
            _describe_precisions,
        ),
        "sensitivity": Caption(
            "How sensitive each layer is",
            "Mean Kullback-Leibler divergence, in nats, of the model's output from the reference output when "
            "only this layer runs at this precision. Logarithmic colours; a dash is a precision that the "
            "layer does not support.",
            _describe_sensitivity,
        ),
        "learning_curve": Caption(
            "How the policy learned",
            "Left: mean reward of an episode. Right: saving of the cheapest plan found so far whose drop on "
            "the search split is within the tolerance.",
            _describe_learning_curve,
        ),
    }
)
"""The words around every figure, in the order of the report."""
