"""A small table of all plans, made up: what tests of the benchmark share."""

from __future__ import annotations

import numpy as np
from synthetic import all_plans, make_profile

from envs.plan_table import PlanTable, energies_j
from wattbit.plan import PrecisionPlan

GROUPS, NAMES = 4, ("fp16", "int8", "int3")
ROWS = len(NAMES) ** GROUPS
SEARCH, HELD_OUT = 700, 900


def make_table(seed: int = 0) -> PlanTable:
    """Four groups at three precisions; what is lost grows with the index of the precision."""
    profile = make_profile(GROUPS, NAMES, seed=seed)
    rng = np.random.default_rng(seed)
    digits = np.indices((len(NAMES),) * GROUPS).reshape(GROUPS, -1)
    strain = (digits * rng.uniform(0.5, 1.5, (GROUPS, 1))).sum(0)
    counts = {}
    for part, samples in (("search", SEARCH), ("held_out", HELD_OUT)):
        counts[f"{part}_reference_only"] = rng.binomial(samples, 0.004 * strain).astype(np.uint16)
        counts[f"{part}_plan_only"] = rng.binomial(samples, 0.001 * strain).astype(np.uint16)
    return PlanTable(
        profile=profile,
        energy_j=energies_j(profile),
        search_divergence=(0.01 * strain).astype(np.float32),
        search_samples=SEARCH,
        held_out_samples=HELD_OUT,
        about={"table": "made up"},
        **counts,
    )


def plans(table: PlanTable) -> list[PrecisionPlan]:
    """Every plan of a table, in the order of its rows."""
    return list(all_plans(table.profile))
