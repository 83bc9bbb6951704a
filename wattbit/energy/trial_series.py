"""The trials of one comparison: run until enough are good or it is given up, then summed up."""

from __future__ import annotations

import statistics
from collections import Counter

from wattbit.energy.comparison import Comparison
from wattbit.energy.ratio_interval import ratio_interval
from wattbit.energy.trial import Trial, TrialRunner
from wattbit.errors import MeterError


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
            MeterError: If the meter fails, or so many trials were wrong that too few can be left.
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

    def result(self, idle_w: float | None) -> Comparison:
        """What the trials say; if too few were good, those that only scatter count as well.

        They are then reliable only if there are so many that the ratio is as certain as one good trial's.

        Args:
            idle_w: Power of the idle device, watts; None if not known.
        """
        enough = len(self._good) >= self._schedule.trials
        used = self._good if enough else [*self._good, *self._noisy]
        repeats = self._schedule.repeats
        ratio = statistics.median(ratio for trial in used for ratio in trial.energy_ratios)
        time_ratio = statistics.median(ratio for trial in used for ratio in trial.time_ratios)
        by_trial = [statistics.median(trial.energy_ratios) for trial in used]
        references_j = [trial.reference.energy_j / repeats for trial in used]
        reference_j = statistics.median(references_j)
        reference_s = statistics.median(trial.reference.seconds for trial in used) / repeats
        rules = self._runner.rules
        low, high = ratio_interval(ratio, by_trial, rules.confidence)
        return Comparison(
            energy_ratio=ratio,
            energy_rel_std=statistics.stdev(by_trial) / ratio,
            reference_j=reference_j,
            candidate_j=ratio * reference_j,
            reference_s=reference_s,
            candidate_s=time_ratio * reference_s,
            trials=len(used),
            repeats=repeats,
            ratio_low=low,
            ratio_high=high,
            reference_rel_std=statistics.stdev(references_j) / reference_j,
            rejected=self._tried - len(used),
            reliable=enough or high / ratio - 1.0 <= rules.max_cv,
            idle_w=idle_w,
        )
