"""Watching a plan in service: evidence that it disagrees with the reference more often than allowed.

An e-process can be looked at after every observation, and acted on, without its false-alarm rate growing
(Ville's inequality; Ramdas, Gruenwald, Vovk and Shafer 2023, "Game-theoretic statistics and safe
anytime-valid inference", Statistical Science 38:576-601). Needs numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from wattbit.errors import GuardrailError

_RELEASE = 1000.0
"""About this many observations pass until half of the wealth held back is in play."""


class EProcess:
    """Evidence, observation by observation, that disagreement is above a limit.

    A gambler starts with wealth 1, spread over bets on how far the rate lies above the limit; the bet l
    earns the factor ``1 + l (x - limit)`` with each observation x. While the rate is at most the limit, no
    bet gains on average, whenever one stops looking: the chance that wealth, the e-value, *ever* reaches
    ``1 / alpha`` is at most alpha.

    Bets that have been in play through a long quiet time are worth next to nothing, and a fault that starts
    then would be found late. So half of the wealth is held back and put in play little by little, the share
    ``1000 / (t + 1000)`` of it remaining after t observations: evidence for a fault that starts at t then
    only has to make up for the smaller stake. Without (``held_back=0``), the e-value is the plain mean over
    bets of the product of factors.

    Args:
        limit: The rate of disagreement allowed, a share between 0 and 1.
        lambdas: The bets, each above 0 and below ``1 / limit``; None for `default_lambdas`.
        held_back: The share of wealth held back at first, from 0 to below 1.

    Raises:
        GuardrailError: If an argument is out of range.
    """

    __slots__ = ("_held_back", "_lambdas", "_limit", "_log_mean", "_log_stakes", "_observations", "_peak")

    def __init__(
        self, limit: float, lambdas: Sequence[float] | None = None, *, held_back: float = 0.5
    ) -> None:
        if not 0.0 < limit < 1.0:
            raise GuardrailError(f"limit {limit!r} of disagreement must lie between 0 and 1; give a share")
        if not 0.0 <= held_back < 1.0:
            raise GuardrailError(f"held_back {held_back!r} must be from 0 to below 1; 0.5 is usual")
        bets = np.array(default_lambdas(limit) if lambdas is None else lambdas, dtype=np.float64)
        if bets.ndim != 1 or not bets.size or not np.all((bets > 0.0) & (bets < 1.0 / limit)):
            raise GuardrailError(
                f"lambdas {lambdas!r} must each be above 0 and below 1/limit = {1 / limit:g}"
            )
        self._limit = float(limit)
        self._held_back = float(held_back)
        self._lambdas = bets
        self._log_mean = -math.log(bets.size)
        self._log_stakes = np.full(bets.size, math.log1p(-held_back))
        self._observations = 0
        self._peak = 0.0

    @property
    def observations(self) -> int:
        """Number of observations so far."""
        return self._observations

    @property
    def log_evalue(self) -> float:
        """The natural logarithm of the e-value."""
        in_play = float(np.logaddexp.reduce(self._log_stakes)) + self._log_mean
        if not self._held_back:
            return in_play
        idle = math.log(self._held_back) + math.log(_RELEASE / (self._observations + _RELEASE))
        return float(np.logaddexp(in_play, idle))

    @property
    def evalue(self) -> float:
        """The e-value: what a wealth of 1 has become; infinite above the largest float."""
        return _exp(self.log_evalue)

    def update(self, x: float) -> float:
        """Take in one observation.

        Args:
            x: 1 for disagreement, 0 for agreement, or the share of a batch that disagrees.

        Returns:
            The e-value.

        Raises:
            GuardrailError: If x is NaN or not from 0 to 1; the evidence is then left as it was.
        """
        if not 0.0 <= x <= 1.0:
            raise GuardrailError(f"disagreement {x!r} must be from 0 to 1; check the outputs compared")
        if self._held_back:
            # What is put in play now: the share held back falls from 1000/(t+1000) to 1000/(t+1001).
            t = self._observations + _RELEASE
            stake = math.log(self._held_back) + math.log(_RELEASE / (t * (t + 1.0)))
            np.logaddexp(self._log_stakes, stake, out=self._log_stakes)
        self._log_stakes += np.log1p(self._lambdas * (x - self._limit))
        self._observations += 1
        log_evalue = self.log_evalue
        self._peak = max(self._peak, log_evalue)
        return _exp(log_evalue)

    def alarm(self, alpha: float) -> bool:
        """Whether the e-value has ever reached ``1 / alpha``; at most alpha likely while the limit holds.

        Raises:
            GuardrailError: If alpha does not lie between 0 and 1.
        """
        if not 0.0 < alpha < 1.0:
            raise GuardrailError(f"alpha {alpha!r} must lie between 0 and 1; 0.01 is usual")
        return self._peak >= -math.log(alpha)


def default_lambdas(limit: float) -> list[float]:
    """The bets ``(p - limit) / (limit (1 - limit))``, optimal at rates p of 1.25, 1.5, 2, 3, ... limits."""
    bets = [min(0.25 / (1.0 - limit), 0.5 / limit)]
    while 2.0 * bets[-1] <= 0.5 / limit:
        bets.append(2.0 * bets[-1])
    return bets


def _exp(log_value: float) -> float:
    return math.exp(log_value) if log_value < 709.0 else math.inf
