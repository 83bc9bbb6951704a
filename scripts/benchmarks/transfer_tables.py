"""The tables of the transfer benchmark, from what was found on each network."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scripts.benchmarks import Row
from scripts.benchmarks.search_scores import Interval
from scripts.benchmarks.search_tables import by_tolerance, percent

OWN, ZERO_SHOT, ADDITIVE = "own network", "zero-shot", "zero-shot, additive model"
TRANSFERRED, SCRATCH, ILP = "few-shot", "from scratch", "ilp"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found on one network.

    Attributes:
        trained_on: The network that the policy comes from; None if none was trained before.
        network: The network that plans are found for.
        what: How.
        evaluations: Plans that could be evaluated on ``network``.
        seed: The seed.
        regrets: Optimisation regret at each tolerance: of the archive, without any that of the proposals.
        proposed: Regret of what is proposed without the archive, at each tolerance; empty if nothing is.
        breaks: True for each of these proposals that breaks the gate; its regret is the reference's.
    """

    trained_on: str | None
    network: str
    what: str
    evaluations: int
    seed: int
    regrets: Sequence[float]
    proposed: Sequence[float] = ()
    breaks: Sequence[bool] = ()


def regret_rows(found: Iterable[Finding]) -> list[Row]:
    """Two rows for each way, network and source: the mean over the tolerances, and the regret at each."""
    groups: dict[tuple[str, int, str, str], list[Finding]] = {}
    for f in found:
        groups.setdefault((f.network, f.evaluations, f.what, f.trained_on or "-"), []).append(f)
    means: list[Row] = []
    at_each: list[Row] = []
    for (network, evaluations, what, trained_on), seeds in sorted(groups.items()):
        row: Row = {"network": network, "evaluations": evaluations, "what": what, "trained_on": trained_on}
        means.append(
            {
                "table": "optimisation regret (raw gate), mean over the tolerances",
                **row,
                **percent(Interval.of_means(f.regrets for f in seeds)),
                "broken_%": _mean_percent([b for f in seeds for b in f.breaks]),
                "regret_if_held_%": _mean_percent([r for f in seeds for r in _held(f)]),
            }
        )
        at_each.append(
            {
                "table": "optimisation regret (raw gate) at each tolerance, %",
                **row,
                **by_tolerance([f.regrets for f in seeds]),
            }
        )
    return [*means, *at_each]


def difference_rows(found: Sequence[Finding]) -> list[Row]:
    """What the trained weights change in a few-shot search, paired by network and seed."""
    rows: list[Row] = []
    for budget in _budgets(found):
        for network in (*dict.fromkeys(f.network for f in found), None):
            differences = _differences(found, budget, network)
            if differences:
                rows.append(
                    {
                        "table": "few-shot regret minus that from scratch, paired by network and seed",
                        "evaluations": budget,
                        "network": network or "all",
                        **percent(Interval.of(differences)),
                    }
                )
    return rows


def figures(found: Sequence[Finding]) -> dict[str, float]:
    """The means over networks and seeds."""
    zero_shot = [f for f in found if f.what == ZERO_SHOT]
    result = {
        "zero_shot_regret": _mean_regret(found, ZERO_SHOT, 0),
        "zero_shot_broken": statistics.fmean(broken for f in zero_shot for broken in f.breaks),
        "zero_shot_additive_regret": _mean_regret(found, ADDITIVE, 0),
    }
    for budget in _budgets(found):
        for name, what in (("few_shot", TRANSFERRED), ("scratch", SCRATCH), ("ilp", ILP)):
            result[f"{name}_regret_{budget}"] = _mean_regret(found, what, budget)
    return result


def _differences(found: Sequence[Finding], budget: int, network: str | None) -> list[float]:
    chosen = [f for f in found if f.evaluations == budget and network in (None, f.network)]
    scratch = {(f.network, f.seed): statistics.fmean(f.regrets) for f in chosen if f.what == SCRATCH}
    return [statistics.fmean(f.regrets) - scratch[f.network, f.seed] for f in chosen if f.what == TRANSFERRED]


def _budgets(found: Iterable[Finding]) -> list[int]:
    return sorted({f.evaluations for f in found if f.what == TRANSFERRED})


def _held(finding: Finding) -> list[float]:
    """Regrets of the proposals that hold the tolerance."""
    return [r for r, broken in zip(finding.proposed, finding.breaks, strict=True) if not broken]


def _mean_regret(found: Sequence[Finding], what: str, evaluations: int) -> float:
    chosen = [f.regrets for f in found if (f.what, f.evaluations) == (what, evaluations)]
    return statistics.fmean(statistics.fmean(regrets) for regrets in chosen)


def _mean_percent(values: Sequence[float]) -> float | None:
    return 100.0 * statistics.fmean(values) if values else None
