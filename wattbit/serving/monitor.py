"""Watching a plan in service: evidence that it disagrees with the reference more often than allowed.

An e-process can be looked at after every observation, and acted on, without its false-alarm rate growing
(Ville's inequality; Ramdas, Gruenwald, Vovk and Shafer 2023, "Game-theoretic statistics and safe
anytime-valid inference", Statistical Science 38:576-601). Needs nothing but Python.
"""

from __future__ import annotations

import math

from wattbit.errors import GuardrailError

BETS = ((0.05, 0.005, 0.3), (0.6, 0.02, 0.7), (0.3, 0.06, 0.9), (0.05, 0.3, 0.9))
"""The share of wealth in each bet, the share of it that the bet loses to a sample that agrees, and the most
that it loses to an observation: best at rates about 0.5, 2, 6 and 30 percentage points above the limit."""
_RELEASE = 1000.0
"""About this many samples pass until half of the wealth held back is in play."""


class EProcess:
    """Evidence, observation by observation, that disagreement is above a limit.

    A gambler starts with wealth 1, spread over bets on how far the rate lies above the limit; a bet of the
    share s of its wealth earns the factor ``1 + s (x / limit - 1)`` with each observation x. While the rate
    is at most the limit, no bet gains on average, whenever one stops looking: the chance that wealth, the
    e-value, *ever* reaches ``1 / alpha`` is at most alpha.

    An observation may be the mean of many samples. They may depend on each other in any way: what must hold
    is that the mean to be expected, given all observations before, is at most the limit. The stake grows with
    the number of samples, which is known before they are.

    Bets that have been in play through a long quiet time are worth next to nothing, and a fault that starts
    then would be found late. So a quarter of the wealth is held back and put in play little by little, the
    share ``1000 / (t + 1000)`` of it remaining after t samples: evidence for a fault that starts at t then
    only has to make up for the smaller stake.

    Args:
        limit: The rate of disagreement allowed, a share between 0 and 1.
        held_back: The share of wealth held back at first, from 0 to below 1.

    Raises:
        GuardrailError: If an argument is out of range.
    """

    __slots__ = ("_held_back", "_limit", "_log_unit", "_peak", "_samples", "_stakes")

    def __init__(self, limit: float, *, held_back: float = 0.25) -> None:
        if not 0.0 < limit < 1.0:
            raise GuardrailError(f"limit {limit!r} of disagreement must lie between 0 and 1; give a share")
        if not 0.0 <= held_back < 1.0:
            raise GuardrailError(f"held_back {held_back!r} must be from 0 to below 1; 0.25 is usual")
        self._limit = float(limit)
        self._held_back = float(held_back)
        self._stakes = [share * (1.0 - held_back) for share, _, _ in BETS]
        self._log_unit = 0.0  # of the stakes, which would become too large for a float
        self._samples = 0
        self._peak = 0.0

    @property
    def observations(self) -> int:
        """Number of samples observed so far."""
        return self._samples

    @property
    def log_evalue(self) -> float:
        """The natural logarithm of the e-value."""
        idle = self._held_back * _RELEASE / (self._samples + _RELEASE) * math.exp(-self._log_unit)
        wealth = math.fsum(self._stakes) + idle
        return math.log(wealth) + self._log_unit if wealth else -math.inf

    @property
    def evalue(self) -> float:
        """The e-value: what a wealth of 1 has become; infinite above the largest float."""
        return _exp(self.log_evalue)

    def update(self, x: float, samples: int = 1) -> float:
        """Take in one observation.

        Args:
            x: 1 for disagreement, 0 for agreement, or the share of ``samples`` that disagree.
            samples: How many samples x is the mean of.

        Returns:
            The e-value.

        Raises:
            GuardrailError: If x is NaN or not from 0 to 1, or there is no sample; the evidence is then left
                as it was.
        """
        if not (0.0 <= x <= 1.0 and samples >= 1):
            raise GuardrailError(
                f"disagreement {x!r} of {samples} samples must be from 0 to 1, of at least one sample; "
                "check the outputs compared"
            )
        # What is put in play now: the share held back falls from 1000/(t+1000) to 1000/(t+samples+1000).
        t = self._samples + _RELEASE
        new = self._held_back * _RELEASE * samples / (t * (t + samples)) * math.exp(-self._log_unit)
        surplus = x / self._limit - 1.0
        self._stakes = [
            (stake + share * new) * (1.0 + min(loss * samples, most) * surplus)
            for stake, (share, loss, most) in zip(self._stakes, BETS, strict=True)
        ]
        largest = max(self._stakes)
        if largest > 1e100:
            self._stakes = [stake / largest for stake in self._stakes]
            self._log_unit += math.log(largest)
        self._samples += samples
        log_evalue = self.log_evalue
        self._peak = max(self._peak, log_evalue)
        return _exp(log_evalue)

    def alarm(self, alpha: float) -> bool:
        """Whether the e-value has ever reached ``1 / alpha``; at most alpha likely while the limit holds.

        Raises:
            GuardrailError: If alpha does not lie between 0 and 1.
        """
        if not 0.0 < alpha < 1.0:
            raise GuardrailError(f"alpha {alpha!r} must lie between 0 and 1; 0.05 is usual")
        return self._peak >= -math.log(alpha)


def _exp(log_value: float) -> float:
    return math.exp(log_value) if log_value < 709.0 else math.inf
