"""What measuring a candidate against a reference yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EnergyComparison:
    """A candidate measured against a reference.

    Attributes:
        energy_ratio: Candidate energy / reference energy: the median over trials or, of many short windows,
            that of the calmest.
        energy_rel_std: Relative standard deviation of the ratio from trial to trial (or group of trials).
        reference_j: Energy of one run of the reference, joules; median or calmest, as the ratio.
        candidate_j: ``energy_ratio * reference_j``.
        reference_s: Time of one run of the reference, seconds.
        candidate_s: Time ratio times ``reference_s``, seconds.
        trials: Number of trials the figures are from.
        repeats: Runs per window.
        ratio_low: Lower end of the confidence interval of ``energy_ratio``; None if none was computed.
        ratio_high: Its upper end.
        reference_rel_std: Relative standard deviation of the reference's energy from trial to trial.
        rejected: Trials thrown away.
        reliable: False if trials that scattered had to be used and the interval is wider than windows may
            differ.
        idle_w: Power of the idle device, watts; None if it was not measured.
    """

    energy_ratio: float
    energy_rel_std: float
    reference_j: float
    candidate_j: float
    reference_s: float
    candidate_s: float
    trials: int
    repeats: int
    ratio_low: float | None = None
    ratio_high: float | None = None
    reference_rel_std: float | None = None
    rejected: int = 0
    reliable: bool = True
    idle_w: float | None = None

    @property
    def net_reference_j(self) -> float | None:
        """Energy of one run of the reference above that of the idle device, joules; None if not known."""
        return None if self.idle_w is None else self.reference_j - self.idle_w * self.reference_s

    @property
    def net_candidate_j(self) -> float | None:
        """Energy of one run of the candidate above that of the idle device, joules; None if not known."""
        return None if self.idle_w is None else self.candidate_j - self.idle_w * self.candidate_s

    @property
    def net_ratio(self) -> float | None:
        """Ratio of the energies above idle; None if not known, or not above 0."""
        reference_j, candidate_j = self.net_reference_j, self.net_candidate_j
        if reference_j is None or candidate_j is None or min(reference_j, candidate_j) <= 0.0:
            return None
        return candidate_j / reference_j


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A plan measured end to end, beside what the additive model says of it.

    Attributes:
        measured: The whole model under the plan against the whole model at the reference.
        predicted_ratio: The additive model's ratio of the two energies.
    """

    measured: EnergyComparison
    predicted_ratio: float

    @property
    def error(self) -> float:
        """The additive model's relative error: 0.1 means that it predicts 10 % too much energy."""
        return self.predicted_ratio / self.measured.energy_ratio - 1.0
