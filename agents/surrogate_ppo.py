"""PPO that learns on a surrogate of the drop, and runs only plans that may improve on the best known."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from agents.additive import additive_plans
from agents.initial_design import BisectedDesign
from agents.ppo import draw_plans
from agents.ppo_search import PPOSearch
from agents.search_method import SearchTask
from agents.stopping import BudgetSpent, SearchInterrupted
from agents.surrogate.acquisition import Acquisition
from agents.surrogate.chain_step import AIMS, chain_steps
from agents.surrogate.drop_surrogate import DropSurrogate, FittedSurrogate
from agents.surrogate.plan_arrays import Indices
from agents.surrogate.surrogate_evaluator import SurrogateEvaluator
from envs.gate import SearchGate
from wattbit.errors import ConfigError, require_at_least
from wattbit.features import FeatureEncoder

_INITIAL_PER_TOLERANCE = 6
# Additive optima that are looked at each round, which costs no evaluation.
_OPTIMA = 60


@dataclass(frozen=True, slots=True)
class SurrogateSettings:
    """How the budget is spent.

    Attributes:
        initial_share: Largest share of the budget for the initial design, six plans a tolerance, where the
            archive has fewer.
        rounds: Rounds that the rest of the budget is spent in; each runs its share of plans at once.
        samples_per_tolerance: Plans drawn from the policy at each tolerance, each round.
        climbs: Starts of hill climbing at each tolerance besides the incumbent, each round.
        relearn_every: Outcomes after which the weights of the surrogate's kernels are learned anew.
        updates_per_round: Imitation steps each round.
        final_updates: Imitation steps at the end.

    Raises:
        ConfigError: If a number makes no sense.
    """

    initial_share: float = 0.35
    rounds: int = 20
    samples_per_tolerance: int = 24
    climbs: int = 2
    relearn_every: int = 30
    updates_per_round: int = 60
    final_updates: int = 3000

    def __post_init__(self) -> None:
        share = self.initial_share
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"initial_share is {share}, must be from 0 to 1; 0.35 is the default")
        require_at_least(
            1,
            rounds=self.rounds,
            samples_per_tolerance=self.samples_per_tolerance,
            relearn_every=self.relearn_every,
        )
        require_at_least(
            0,
            climbs=self.climbs,
            updates_per_round=self.updates_per_round,
            final_updates=self.final_updates,
        )


@dataclass(frozen=True, slots=True)
class SurrogatePPO(PPOSearch):
    """Rounds of learning and proposing.

    Each round fits the surrogate to every outcome known, lets the policy imitate the best plans known, which
    keeps it from collapsing to one plan, and trains it with PPO on the surrogate. Candidates are drawn from
    the policy at each tolerance; others come from long steps (`agents.surrogate.chain_step`) and from the
    additive model. Hill climbing starts from those with the largest expected saving, and the best plans it
    reaches are run: an evaluation is paid only for a plan that may improve on the incumbent. At the end the
    policy imitates once more, without smoothing: it is then good for use without the archive.

    Attributes:
        surrogate: How the budget is spent.
    """

    surrogate: SurrogateSettings = field(default_factory=SurrogateSettings)

    def search(self, task: SearchTask) -> None:
        """Run the initial design, then rounds until the budget is spent or no plan is worth running."""
        evaluator, settings, agent = task.evaluator, self.surrogate, self.ppo
        surrogates = _Surrogates(task, settings.relearn_every)
        surrogate_evaluator = SurrogateEvaluator(evaluator.profile, task.check)
        # What is predicted is the judged drop, so nothing is to be added to it again.
        model = agent.open(task, surrogate_evaluator, SearchGate(0.5))
        proposer = _Proposer(self, task, surrogate_evaluator)
        try:
            with suppress(BudgetSpent):
                self._run_initial_design(task)
                plans_per_round = math.ceil((task.budget - evaluator.evaluations) / settings.rounds)
                while (left := task.budget - evaluator.evaluations) > 0:
                    surrogate_evaluator.surrogate = surrogates.latest()
                    agent.imitate(task, settings.updates_per_round)
                    count = min(plans_per_round, left)
                    # In step with the budget.
                    share = (evaluator.evaluations + count) / task.budget
                    timesteps = math.ceil(self.total_timesteps * share) - model.num_timesteps
                    if timesteps > 0:
                        agent.learn(task, timesteps)
                    plans = proposer.propose(surrogate_evaluator.surrogate)[:count]
                    if not len(plans):
                        break
                    evaluator.evaluate_all(surrogate_evaluator.arrays.plans(plans))
            agent.imitate(task, settings.final_updates, 0.0)
        except SearchInterrupted:
            agent.imitate(task, settings.updates_per_round)
            raise
        finally:
            agent.save()

    def _run_initial_design(self, task: SearchTask) -> None:
        wanted = min(
            math.ceil(self.surrogate.initial_share * task.budget),
            _INITIAL_PER_TOLERANCE * len(task.tolerances_pp),
        )
        if wanted > len(task.archive):
            BisectedDesign(task).run(task.evaluator.evaluations + wanted - len(task.archive))


class _Proposer:
    """Finds the plans to run next, by the policy, long steps, the additive model and hill climbing."""

    def __init__(self, method: SurrogatePPO, task: SearchTask, evaluator: SurrogateEvaluator) -> None:
        self._settings = method.surrogate
        self._task = task
        self._model = method.ppo.opened
        self._encoder = FeatureEncoder(evaluator.profile, method.ppo.pp_per_nat)
        self._rng = np.random.default_rng([task.seed, self._model.num_timesteps])
        self._optima = evaluator.arrays.indices(additive_plans(evaluator.profile, _OPTIMA))

    def propose(self, surrogate: FittedSurrogate) -> Indices:
        """New plans, the largest expected saving first, (plans, layers)."""
        task, settings = self._task, self._settings
        acquisition = Acquisition(surrogate, task.archive, task.tolerances_pp)
        tolerances_pp = np.repeat(task.tolerances_pp, settings.samples_per_tolerance)
        drawn = np.unique(draw_plans(self._model, self._encoder, tolerances_pp.tolist()), axis=0)
        found: dict[bytes, tuple[float, Indices]] = {}
        for column, tolerance_pp in enumerate(task.tolerances_pp):
            task.check()
            incumbent = acquisition.incumbents[column]
            far = chain_steps(surrogate, incumbent, AIMS * tolerance_pp)
            candidates = np.concatenate([drawn, far, self._optima])
            order = np.argsort(-acquisition.values(candidates)[:, column], kind="stable")
            for start in (incumbent, *candidates[order[: settings.climbs]]):
                plan, value = acquisition.climb(start, column, self._rng)
                if value > found.get(plan.tobytes(), (0.0, plan))[0]:
                    found[plan.tobytes()] = value, plan
        rows = [plan for _, plan in sorted(found.values(), key=lambda pair: -pair[0])]
        return np.array(rows, np.intp).reshape(len(rows), drawn.shape[1])


class _Surrogates:
    """Fits surrogates to a task's archive; learning the kernels' weights is slow, so only now and then."""

    def __init__(self, task: SearchTask, relearn_every: int) -> None:
        self._task = task
        self._surrogate = DropSurrogate(task.evaluator.profile, task.archive.gate)
        self._relearn_every = relearn_every
        self._learned_at = -relearn_every
        self._latest: FittedSurrogate | None = None

    def latest(self) -> FittedSurrogate:
        """The surrogate of everything known now, the reference included."""
        outcomes = list(self._task.archive.known.values())
        stale = len(outcomes) - self._learned_at >= self._relearn_every
        if stale:
            self._learned_at = len(outcomes)
        self._latest = self._surrogate.fit(outcomes, None if stale else self._latest)
        return self._latest
