"""A surrogate in the evaluator's place: an environment around it costs no evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agents.surrogate.drop_surrogate import FittedSurrogate
from agents.surrogate.plan_arrays import PlanArrays
from envs.evaluators.evaluator import Outcome
from wattbit.errors import ConfigError
from wattbit.judging.noninferiority import PairedCounts
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

# Enough that rounding a predicted drop to whole samples does not matter.
_SAMPLES = 10**9


class SurrogateEvaluator:
    """Answers with predictions, which never belong in an archive.

    The surrogate predicts judged drops, so they are compared as they are, by ``SearchGate(0.5)``.

    Args:
        profile: The model's profile.
        check: Called before each answer; may raise, to stop a search.

    Attributes:
        surrogate: What predicts; None until it is first set.
    """

    def __init__(self, profile: ModelProfile, check: Callable[[], None] = lambda: None) -> None:
        self.surrogate: FittedSurrogate | None = None
        self._check = check
        self._profile = profile
        self._arrays = PlanArrays.of(profile)

    @property
    def profile(self) -> ModelProfile:
        """The model's profile."""
        return self._profile

    @property
    def arrays(self) -> PlanArrays:
        """The profile as tables."""
        return self._arrays

    @property
    def evaluations(self) -> int:
        """0: nothing is run."""
        return 0

    def evaluate(self, plan: PrecisionPlan) -> Outcome:
        """The predicted outcome of ``plan``."""
        return self.evaluate_all([plan])[0]

    def evaluate_all(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        """The predicted outcomes of ``plans``, in the order given; divergences are those of the profile.

        Raises:
            ConfigError: If there is no surrogate yet.
        """
        self._check()
        if self.surrogate is None:
            raise ConfigError("the surrogate is None, must be fitted to at least 0 outcomes first")
        indices = self._arrays.indices(plans)
        drops_pp, _ = self.surrogate.predict(indices)
        lost = drops_pp * (_SAMPLES / 100)
        energies_j = self._arrays.energies_j(indices)
        nats = self._arrays.sensitivities(indices).sum(axis=1)
        latency_ms = [self._profile.plan_latency_ms(plan) for plan in plans]
        return [
            Outcome(plan, float(energy_j), latency, _counts(float(many)), float(divergence))
            for plan, energy_j, latency, many, divergence in zip(
                plans, energies_j, latency_ms, lost, nats, strict=True
            )
        ]

    def __deepcopy__(self, memo: dict[int, object]) -> SurrogateEvaluator:
        # Gymnasium copies the arguments of environments; all are to see the same surrogate.
        return self


def _counts(lost: float) -> PairedCounts:
    most = min(round(abs(lost)), _SAMPLES)
    return PairedCounts(_SAMPLES, most, 0) if lost > 0 else PairedCounts(_SAMPLES, 0, most)
