"""PPO that learns on a surrogate of the drop, and runs only the plans it hopes most of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from sb3_contrib import MaskablePPO

from agents.additive import additive_plans
from agents.initial_design import AdditiveSeeds
from agents.ppo import PPO
from agents.search_method import SearchTask
from agents.stopping import BudgetSpent, SearchInterrupted
from agents.surrogate.acquisition import Acquisition
from agents.surrogate.chain_step import AIMS, chain_steps
from agents.surrogate.drop_surrogate import DropSurrogate, FittedSurrogate
from agents.surrogate.plan_arrays import Indices
from agents.surrogate.surrogate_evaluator import SurrogateEvaluator
from envs.gate import SearchGate
from wattbit.errors import ConfigError
from wattbit.features import Context, FeatureEncoder, PlanBuilder

_SEEDS_PER_TOLERANCE = 6
# Additive optima that are looked at each round, which costs no evaluation.
_OPTIMA = 60


class SurrogateLoop:
    """Rounds of learning and proposing, for `agents.ppo.PPO`.

    Each round fits the surrogate to every outcome known, lets the policy imitate the best plans known, which
    keeps it from collapsing to one plan, and trains it with PPO on the surrogate. Then plans are drawn from
    the policy at each tolerance, others come from long steps (`agents.surrogate.chain_step`) and from the
    additive model, the most promising are climbed from, and the best of what is found is run. So an
    evaluation is paid only for a plan that may improve on what is known. At the end the policy imitates once
    more, without smoothing: it is then good for use without the archive.

    Args:
        seed_share: Largest share of the budget for additive optima (`agents.initial_design`), six a
            tolerance, where the archive has fewer plans.
        rounds: Rounds that the rest of the budget is spent in; each runs its share of plans at once.
        samples_per_tolerance: Plans drawn from the policy at each tolerance, each round.
        climbs: Promising plans climbed from at each tolerance, each round.
        relearn_every: Outcomes after which the surrogate's own constants are learned anew.
        updates_per_round: Imitation steps each round.
        final_updates: Imitation steps at the end.

    Raises:
        ConfigError: If a number makes no sense.
    """

    def __init__(
        self,
        *,
        seed_share: float = 0.35,
        rounds: int = 20,
        samples_per_tolerance: int = 24,
        climbs: int = 2,
        relearn_every: int = 30,
        updates_per_round: int = 60,
        final_updates: int = 3000,
    ) -> None:
        if not 0.0 <= seed_share <= 1.0:
            raise ConfigError(f"seed_share is {seed_share}, must be from 0 to 1; 0.35 is the default")
        for name, value, least in (
            ("rounds", rounds, 1),
            ("samples_per_tolerance", samples_per_tolerance, 1),
            ("climbs", climbs, 0),
            ("relearn_every", relearn_every, 1),
            ("updates_per_round", updates_per_round, 0),
            ("final_updates", final_updates, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value}, must be at least {least}")
        self._seed_share = seed_share
        self._rounds = rounds
        self._samples_per_tolerance = samples_per_tolerance
        self._climbs = climbs
        self._relearn_every = relearn_every
        self._updates_per_round = updates_per_round
        self._final_updates = final_updates

    def run(self, agent: PPO, task: SearchTask) -> None:
        """Seed, then learn and propose in rounds until the budget is spent or nothing promises anything."""
        surrogates = _Surrogates(task, self._relearn_every)
        predicted = SurrogateEvaluator(task.evaluator.profile, task.check)
        # What is predicted is the judged drop, so nothing is to be added to it again.
        model = agent.open(task, predicted, SearchGate(0.5))
        encoder = FeatureEncoder(task.evaluator.profile, agent.pp_per_nat)
        rng = np.random.default_rng([task.seed, model.num_timesteps])
        optima = predicted.arrays.indices(additive_plans(task.evaluator.profile, _OPTIMA))
        try:
            with suppress(BudgetSpent):
                self._seed(task)
                plans_per_round = math.ceil((task.budget - task.evaluator.evaluations) / self._rounds)
                while task.evaluator.evaluations < task.budget:
                    surrogate = predicted.surrogate = surrogates.latest()
                    agent.imitate(task, self._updates_per_round)
                    count = min(plans_per_round, task.budget - task.evaluator.evaluations)
                    # In step with the budget.
                    share = (task.evaluator.evaluations + count) / task.budget
                    timesteps = math.ceil(agent.total_timesteps * share) - model.num_timesteps
                    if timesteps > 0:
                        agent.learn(task, timesteps)
                    plans = self._propose(encoder, model, task, surrogate, optima, rng)[:count]
                    if not len(plans):
                        break
                    task.evaluator.evaluate_all(surrogate.arrays.plans(plans))
            agent.imitate(task, self._final_updates, 0.0)
        except SearchInterrupted:
            agent.imitate(task, self._updates_per_round)
            raise
        finally:
            agent.save()

    def _seed(self, task: SearchTask) -> None:
        wanted = min(
            math.ceil(self._seed_share * task.budget), _SEEDS_PER_TOLERANCE * len(task.tolerances_pp)
        )
        if wanted > len(task.archive):
            AdditiveSeeds(task).run(task.evaluator.evaluations + wanted - len(task.archive))

    def _propose(
        self,
        encoder: FeatureEncoder,
        model: MaskablePPO,
        task: SearchTask,
        surrogate: FittedSurrogate,
        optima: Indices,
        rng: np.random.Generator,
    ) -> Indices:
        """The plans to run next, the most promising first, (plans, layers)."""
        acquisition = Acquisition(surrogate, task.archive, task.tolerances_pp)
        arrays = acquisition.arrays
        tolerances = np.repeat(task.tolerances_pp, self._samples_per_tolerance)
        best = arrays.indices([task.archive.best(t).plan for t in task.tolerances_pp])
        drawn = np.unique(draw_plans(model, encoder, tolerances.tolist()), axis=0)
        found: dict[bytes, tuple[float, Indices]] = {}
        for column, tolerance_pp in enumerate(task.tolerances_pp):
            task.check()
            far = chain_steps(surrogate, best[column], [aim * tolerance_pp for aim in AIMS])
            starts = np.concatenate([drawn, far, optima])
            promised = acquisition.values(starts)[:, column]
            for start in (best[column], *starts[np.argsort(-promised, kind="stable")[: self._climbs]]):
                plan, value = acquisition.climb(start, column, rng)
                if value > found.get(plan.tobytes(), (0.0, plan))[0]:
                    found[plan.tobytes()] = value, plan
        rows = [plan for _, plan in sorted(found.values(), key=lambda promise: -promise[0])]
        return np.array(rows, np.intp).reshape(len(rows), len(arrays.profile.layers))


def draw_plans(
    model: MaskablePPO, encoder: FeatureEncoder, tolerances_pp: Sequence[float], *, greedy: bool = False
) -> Indices:
    """Plans drawn from the policy, one for each tolerance, (plans, layers).

    Args:
        model: The agent.
        encoder: Encodes observations as those it was trained on.
        tolerances_pp: The tolerances, percentage points.
        greedy: True for the most probable precision of each layer.
    """
    walks = [PlanBuilder(encoder, Context(tolerance)) for tolerance in tolerances_pp]
    chosen = []
    for _ in encoder.profile.layers:
        observations = np.stack([walk.observation for walk in walks])
        masks = np.stack([walk.mask for walk in walks])
        actions, _ = model.predict(observations, action_masks=masks, deterministic=greedy)
        for walk, action in zip(walks, actions, strict=True):
            walk.assign(action)
        chosen.append(actions)
    return np.stack(chosen, axis=1).astype(np.intp)


class _Surrogates:
    """Fits surrogates to a task's archive; their own constants, which takes longest, only now and then."""

    def __init__(self, task: SearchTask, relearn_every: int) -> None:
        self._task = task
        self._surrogate = DropSurrogate(task.evaluator.profile, task.archive.gate)
        self._relearn_every = relearn_every
        self._learned_at = -relearn_every
        self._latest: FittedSurrogate | None = None

    def latest(self) -> FittedSurrogate:
        """The surrogate of everything known now, the reference among it."""
        outcomes = list(self._task.archive.known.values())
        stale = len(outcomes) - self._learned_at >= self._relearn_every
        if stale:
            self._learned_at = len(outcomes)
        self._latest = self._surrogate.fit(outcomes, None if stale else self._latest)
        return self._latest
