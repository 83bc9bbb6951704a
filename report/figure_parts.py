"""What the figures of a run share: colours, marks, and what to say where there is nothing to draw."""

from __future__ import annotations

from report.results import RunResults

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#8A8A8A"

MARKS = (
    (BLUE, "o"),
    (ORANGE, "^"),
    (GREEN, "s"),
    (PURPLE, "D"),
    (SKY, "v"),
    (VERMILLION, "P"),
    (BLACK, "x"),
    (GREY, "+"),
)
"""A colour and a marker for each of several series; the last one serves all that follow."""


def missing(run: RunResults, figure: str) -> str:
    """Why the figure called ``figure`` cannot be drawn from ``run``; empty if it can."""
    energies = [run.reference.energy_j, *(plan.energy_j for plan in run.plans)]
    there = {
        "energy_accuracy": any(energy_j is not None for energy_j in energies),
        "pareto": bool(run.archive),
        "precisions": bool(run.layer_names),
        "sensitivity": any(layer.costs for layer in run.layers),
        "learning_curve": bool(run.learning_curve),
    }
    what = {
        "energy_accuracy": "No energy is recorded",
        "pareto": "No evaluated plan is recorded",
        "precisions": "No plan and no profile is recorded",
        "sensitivity": "No sensitivity is recorded",
        "learning_curve": "No learning curve is recorded",
    }
    return "" if there[figure] else f"{what[figure]} (status of the run: {run.status})."
