"""The trials of one comparison: run until enough are good or attempts run out, then summed up."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wattbit.energy.energy_comparison import EnergyComparison
from wattbit.energy.ratio_interval import ratio_interval
from wattbit.energy.trial import Trial, TrialRunner
from wattbit.errors import MeterError

_CALM_SHARE = 0.1
_GROUPS = 5


class TrialSeries:
    """Collects trials.

    Args:
        runner: Runs them.
        device: What is measured, for messages.
    """

    def __init__(self, runner: TrialRunner, device: str) -> None:
        self._runner = runner
        self._device = device
        self._schedule = runner.schedule
        self._limit = self._schedule.trials * runner.rules.attempts
        self._good: list[Trial] = []
        self._noisy: list[Trial] = []
        self._tried = 0
        self._causes: Counter[str] = Counter()

    @property
    def finished(self) -> bool:
        """True if there are enough good trials, or no attempts are left."""
        return len(self._good) == self._schedule.trials or self._tried == self._limit

    def run_trial(self) -> None:
        """Run one more trial.

        Raises:
            MeterError: If the meter fails, or too many trials were wrong for enough good ones to be left.
        """
        trial = self._runner.run()
        self._tried += 1
        if trial.rejection is None:
            self._good.append(trial)
            return
        self._causes[trial.rejection.cause] += 1
        if trial.rejection.noise:
            self._noisy.append(trial)
        wrong = self._tried - len(self._good) - len(self._noisy)
        if wrong > self._limit - self._schedule.trials:
            ((cause, times),) = self._causes.most_common(1)
            rejected = self._tried - len(self._good)
            raise MeterError(
                f"{self._device}: {rejected} of {self._tried} trials were rejected, {times} of them because: "
                f"{cause}; leave the device to this process alone and let it cool, or choose energy=modelled"
            )

    def result(self, idle_w: float | None) -> EnergyComparison:
        """What the trials say; if too few were good, those that only scatter count as well.

        They are then reliable only if together they give the ratio as precisely as one good trial would.

        Args:
            idle_w: Power of the idle device, watts; None if not known.
        """
        enough = len(self._good) >= self._schedule.trials
        used = self._good if enough else [*self._good, *self._noisy]
        rules, repeats = self._runner.rules, self._schedule.repeats
        fine = self._schedule.rounds > 1
        whole = _estimate(used, fine)
        # Only some windows are calm, so trials are grouped: each group then has a few.
        groups = [used[start::_GROUPS] for start in range(_GROUPS)] if fine else [[trial] for trial in used]
        parts = [_estimate(group, fine) for group in groups if group]
        low, high = ratio_interval(
            whole.energy_ratio, [part.energy_ratio for part in parts], rules.confidence
        )
        reference_j, reference_s = whole.reference_j / repeats, whole.reference_s / repeats
        return EnergyComparison(
            energy_ratio=whole.energy_ratio,
            energy_rel_std=statistics.stdev(part.energy_ratio for part in parts) / whole.energy_ratio,
            reference_j=reference_j,
            candidate_j=whole.energy_ratio * reference_j,
            reference_s=reference_s,
            candidate_s=whole.time_ratio * reference_s,
            trials=len(used),
            repeats=repeats,
            ratio_low=low,
            ratio_high=high,
            reference_rel_std=statistics.stdev(part.reference_j for part in parts) / whole.reference_j,
            rejected=self._tried - len(used),
            reliable=enough or high / whole.energy_ratio - 1.0 <= rules.max_cv,
            idle_w=idle_w,
        )


@dataclass(frozen=True, slots=True)
class _Estimate:
    """What some trials say: two ratios, and energy (J) and time (s) of a window of the reference."""

    energy_ratio: float
    time_ratio: float
    reference_j: float
    reference_s: float


def _estimate(trials: Sequence[Trial], fine: bool) -> _Estimate:
    """The medians over trials; of many short windows, the calmest on each side."""
    if not fine:
        return _Estimate(
            statistics.median(ratio for trial in trials for ratio in trial.energy_ratios),
            statistics.median(ratio for trial in trials for ratio in trial.time_ratios),
            statistics.median(trial.reference.energy_j for trial in trials),
            statistics.median(trial.reference.seconds for trial in trials),
        )
    rounds = [one for trial in trials for one in trial.rounds]
    reference = [window for first, _, _, last in rounds for window in (first, last)]
    candidate = [window for _, second, third, _ in rounds for window in (second, third)]
    reference_j, candidate_j = (_calm(w.energy_j for w in windows) for windows in (reference, candidate))
    reference_s, candidate_s = (_calm(w.seconds for w in windows) for windows in (reference, candidate))
    return _Estimate(candidate_j / reference_j, candidate_s / reference_s, reference_j, reference_s)


def _calm(values: Iterable[float]) -> float:
    """Mean of the smallest values: what disturbs a run only ever adds to it."""
    ordered = sorted(values)
    return statistics.fmean(ordered[: math.ceil(_CALM_SHARE * len(ordered))])
