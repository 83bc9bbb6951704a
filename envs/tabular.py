"""The exhaustive benchmark: search problems whose every answer is known, thousands of episodes a second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.evaluators.evaluator import Evaluator, Outcome
from envs.evaluators.remembering_evaluator import RememberingEvaluator
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from envs.plan_table import PlanTable
from wattbit.errors import GuardrailError
from wattbit.judging.noninferiority import PairedCounts
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile


class TabularEvaluator(RememberingEvaluator):
    """Looks plans up in a table of all plans of a network, and knows the best of them.

    A search may see outcomes on the search samples only, of plans it asks for. Hand it `for_search`, which
    can do nothing else. `optimum`, `held_out_counts` and `held_out_optimum` judge the search afterwards::

        table = TabularEvaluator("fashion_resnet8")
        found = my_search(table.for_search())                          # a plan
        best = table.optimum(1.0)                                      # how good is the optimiser?
        regret = table.for_search().evaluate(found).energy_j / best.energy_j - 1
        leaks = table.held_out_counts(found).drop_pp > 1.0             # what does the user get?

    Args:
        table: A table, the name of one that comes with the checkout, or the path of one.

    Raises:
        DataError: If there is no such table, or it is damaged.
    """

    def __init__(self, table: PlanTable | str | Path) -> None:
        self._table = table if isinstance(table, PlanTable) else PlanTable.read(table)
        super().__init__(self._table.profile)
        self._position = {name: index for index, name in enumerate(self.profile.precisions)}
        # Cheapest first, among equals the least divergent, as archives choose.
        self._order = np.lexsort((self._table.search_divergence, self._table.energy_j))

    @property
    def table(self) -> PlanTable:
        """The table itself, held-out samples included."""
        return self._table

    def for_search(self) -> Evaluator:
        """What a search may see: plans in, their outcomes on the search samples out."""
        return _SearchView(self)

    def optimum(self, tolerance_pp: float, gate: SearchGate | None = None) -> Outcome:
        """The cheapest of all plans that pass ``gate`` on the search samples; not counted as an evaluation.

        Args:
            tolerance_pp: The largest drop allowed.
            gate: Judges the drop; None: as observed. The reference passes any gate.

        Raises:
            GuardrailError: If the tolerance is not at least 0.
        """
        judge = gate or SearchGate(0.5)
        return self._outcome(
            self._cheapest(
                self._table.search_reference_only,
                self._table.search_plan_only,
                self._table.search_samples,
                tolerance_pp,
                judge,
            )
        )

    # --- for judging a search, never for searching ------------------------------------------------------

    def held_out_counts(self, plan: PrecisionPlan) -> PairedCounts:
        """Paired outcomes of ``plan`` on the held-out samples.

        Raises:
            PlanError: If the plan is for another model or uses a precision the table does not have.
        """
        return self._held_out(self._row(plan))

    def held_out_optimum(self, tolerance_pp: float) -> Outcome:
        """The cheapest of all plans whose drop on the held-out samples is at most ``tolerance_pp``.

        Its counts are those of the held-out samples; its divergence is NaN, because it is not recorded there.

        Raises:
            GuardrailError: If the tolerance is not at least 0.
        """
        row = self._cheapest(
            self._table.held_out_reference_only,
            self._table.held_out_plan_only,
            self._table.held_out_samples,
            tolerance_pp,
            SearchGate(0.5),
        )
        found = self._outcome(row)
        return Outcome(found.plan, found.energy_j, found.latency_ms, self._held_out(row), math.nan)

    # --- inside -----------------------------------------------------------------------------------------

    def _run(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        return [self._outcome(self._row(plan), plan) for plan in plans]

    def _row(self, plan: PrecisionPlan) -> int:
        names, position = self.profile.layer_names, self._position
        row = 0
        try:
            for name in names:
                row = row * len(position) + position[plan[name]]
        except KeyError:
            self.profile.require_plan(plan)  # says what is wrong
        if len(plan) != len(names):
            self.profile.require_plan(plan)
        return row

    def _plan(self, row: int) -> PrecisionPlan:
        names = self.profile.precisions
        digits: list[str] = []
        for _ in self.profile.layers:
            row, digit = divmod(row, len(names))
            digits.append(names[digit])
        return PrecisionPlan(dict(zip(self.profile.layer_names, reversed(digits), strict=True)))

    def _outcome(self, row: int, plan: PrecisionPlan | None = None) -> Outcome:
        table, plan = self._table, plan or self._plan(row)
        return Outcome(
            plan=plan,
            energy_j=self.profile.plan_energy_j(plan),
            latency_ms=self.profile.plan_latency_ms(plan),
            counts=PairedCounts(
                table.search_samples, int(table.search_reference_only[row]), int(table.search_plan_only[row])
            ),
            divergence=float(table.search_divergence[row]),
        )

    def _held_out(self, row: int) -> PairedCounts:
        table = self._table
        lost, gained = int(table.held_out_reference_only[row]), int(table.held_out_plan_only[row])
        return PairedCounts(table.held_out_samples, lost, gained)

    def _cheapest(
        self,
        reference_only: NDArray[np.uint16],
        plan_only: NDArray[np.uint16],
        samples: int,
        tolerance_pp: float,
        gate: SearchGate,
    ) -> int:
        """The row of the cheapest plan that passes ``gate``; row 0, the reference, passes any."""
        if not tolerance_pp >= 0.0:
            raise GuardrailError(f"tolerance is {tolerance_pp} pp, must be at least 0")
        net = reference_only.astype(np.int64) - plan_only
        # A bound is no smaller than the drop itself, so few rows are left to be judged one by one.
        for row in self._order[(100.0 * net / samples <= tolerance_pp)[self._order]]:
            counts = PairedCounts(samples, int(reference_only[row]), int(plan_only[row]))
            if row == 0 or gate.passes(counts, tolerance_pp):
                return int(row)
        return 0


class TabularPrecisionEnv(LayerPrecisionEnv):
    """`wattbit/TabularPrecision-v0`: the precision environment on a table of all plans of a small network.

    Observations, actions and rewards are those of `LayerPrecisionEnv`; a layer is a group of layers. Because
    a plan is looked up and not run, a process makes thousands of steps a second, and because all plans are in
    the table, it is known how far a result is from the best::

        import gymnasium, envs

        env = gymnasium.make("wattbit/TabularPrecision-v0", table="fashion_resnet8")
        observation, info = env.reset(seed=0, options={"tolerance_pp": 1.0})
        done = False
        while not done:
            action = env.action_space.sample(env.unwrapped.action_masks().astype("int8"))
            observation, reward, done, _, info = env.step(action)
        best = envs.tabular.TabularEvaluator("fashion_resnet8").optimum(1.0, env.unwrapped.gate)
        regret = info["energy_j"] / best.energy_j - 1 if info["feasible"] else None

    A search algorithm that is no reinforcement learner takes the evaluator itself: `TabularEvaluator`.

    Args:
        table: Name of a table that comes with the checkout, or the path of one.
        settings: Further arguments of `LayerPrecisionEnv`.

    Raises:
        DataError: If there is no such table, or it is damaged.
        ConfigError: If a setting makes no sense.
    """

    def __init__(self, table: str | Path = "fashion_resnet8", **settings: Any) -> None:
        super().__init__(TabularEvaluator(table).for_search(), **settings)


class _SearchView:
    """The part of a `TabularEvaluator` that a search may use."""

    def __init__(self, evaluator: TabularEvaluator) -> None:
        self._evaluator = evaluator

    @property
    def profile(self) -> ModelProfile:
        return self._evaluator.profile

    @property
    def evaluations(self) -> int:
        return self._evaluator.evaluations

    def evaluate(self, plan: PrecisionPlan) -> Outcome:
        return self._evaluator.evaluate(plan)

    def evaluate_all(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        return self._evaluator.evaluate_all(plans)
