"""The controller: signals in, plan out. Pure: no I/O, no clock, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattbit.errors import BundleError, GuardrailError
from wattbit.features import Context, FeatureEncoder
from wattbit.plan import PrecisionPlan
from wattbit.serving.bundle import BundledPlan, ControllerBundle, load_bundle


@dataclass(frozen=True, slots=True)
class Decision:
    """Which plan is to run, and why.

    Attributes:
        plan: The plan; the reference plan where nothing certified fits.
        certified: The bundled plan it comes from; None for the reference.
        reason: One sentence for the audit log.
    """

    plan: PrecisionPlan
    certified: BundledPlan | None
    reason: str


class PrecisionController:
    """Chooses among the certified plans of a bundle; anything else means the reference plan."""

    def __init__(self, bundle: ControllerBundle) -> None:
        for plan in bundle.plans:
            if not any(plan.certified_by(certificate) for certificate in bundle.certificates):
                raise BundleError(
                    f"plan {plan.plan.plan_id} for {plan.tolerance_pp:g} pp (verdict {plan.verdict!r}) "
                    "is passed by no certificate of the bundle; export the bundle again"
                )
        self._bundle = bundle

    @classmethod
    def load(cls, folder: Path | str, *, public_key: Any = None) -> PrecisionController:
        """Load the controller of the bundle in ``folder``; arguments and errors are `load_bundle`'s."""
        return cls(load_bundle(folder, public_key=public_key))

    @property
    def bundle(self) -> ControllerBundle:
        """The bundle it chooses from."""
        return self._bundle

    @property
    def reference_plan(self) -> PrecisionPlan:
        """The plan of the unmodified model."""
        return self._bundle.profile.reference_plan

    @property
    def certified(self) -> Sequence[BundledPlan]:
        """The plans it may run, the strictest tolerance first."""
        return self._bundle.plans

    def decide(self, tolerance_pp: float) -> Decision:
        """The cheapest plan certified at ``tolerance_pp`` or stricter, else the reference plan.

        Raises:
            GuardrailError: If the tolerance is not above 0.
        """
        if not tolerance_pp > 0:
            raise GuardrailError(f"tolerance is {tolerance_pp} pp, must be above 0; 1.0 is the usual choice")
        fitting = [plan for plan in self._bundle.plans if plan.tolerance_pp <= tolerance_pp]
        if not fitting:
            return Decision(
                self.reference_plan, None, f"no plan is certified at {tolerance_pp:g} pp or stricter"
            )
        best = min(fitting, key=lambda plan: plan.energy_j)
        return Decision(best.plan, best, f"cheapest plan certified at {best.tolerance_pp:g} pp")

    def propose(self, tolerance_pp: float) -> PrecisionPlan:
        """What the learned policy would do at any tolerance: a candidate to certify, not a plan to run.

        Raises:
            BundleError: If the bundle carries no policy, or one that does not fit its profile.
            GuardrailError: If the tolerance is not a finite number above 0.
        """
        policy = self._bundle.policy
        if policy is None:
            raise BundleError("the bundle carries no policy.npz; train with agent=ppo and export again")
        encoder = FeatureEncoder(self._bundle.profile, policy.pp_per_nat)
        try:
            return policy.propose(encoder, Context(tolerance_pp))
        except ValueError as error:
            raise BundleError(
                f"policy.npz does not fit profile.json ({error}); export the bundle again"
            ) from None
