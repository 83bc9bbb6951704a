"""Covariance of plans, for a Gaussian process over plans: several kernels, each one idea.

Everything is measured in a layer's *share* of the plan's summed sensitivity, because the logarithm of the
drop is what is modelled: a layer that carries a tenth of the damage can change it by a tenth. Errors of two
layers add up with a correlation, so a pair counts by the root of the product of its shares. In the sums
below, ``s`` and ``t`` are the shares of the two plans, and ``same`` says that a layer has one precision in
both.

========== ============================================ ==================================================
kernel     sum over layers l (and k)                    what it lets the process learn
========== ============================================ ==================================================
constant   1                                            damage per nat of sensitivity
trend      log(sensitivity) x log(sensitivity)          damage grows faster or slower than sensitivity
layer      s_l t_l                                      a layer does more damage than it seemed
choice     s_l t_l same_l                               a layer does, at one precision
neighbour  sqrt(s_l s_(l+1) t_l t_(l+1))                neighbours add to or cancel each other's errors
junction   the same, times same_l same_(l+1)            they do, at one pair of precisions
pair       sqrt(s_l s_k t_l t_k) same_l same_k, l < k   any two layers do, at one pair of precisions
overlap    exp(-4 (1 - mean of same_l))                 anything else, between similar plans
========== ============================================ ==================================================
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from agents.surrogate.plan_arrays import Indices, PlanArrays

Reals = NDArray[np.floating]

KERNELS = ("constant", "trend", "layer", "choice", "neighbour", "junction", "pair", "overlap")
"""Names of the kernels, in the order in which they are returned."""

# Sensitivities below this many nats are treated alike: they change no prediction that can be counted.
FLOOR_NATS = 1e-4
# Where the trend is 0: a plan of about one percentage point of drop.
_MIDDLE_LOG_NATS = -4.0
_OVERLAP_RATE = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class PlanFeatures:
    """What the kernels need of plans, each row one plan.

    Attributes:
        log_nats: Logarithm of the summed sensitivity (plus a floor), (plans,).
        shares: Share of each layer in it, (plans, layers).
        chosen: One-hot plan, (plans, layers * precisions).
        choices: One-hot plan times share, (plans, layers * precisions).
        roots: One-hot plan times root of the share, (plans, layers * precisions).
        neighbours: Root of the product of the shares of a layer and the next, (plans, layers - 1).
        junctions: The same by pair of precisions, (plans, (layers - 1) * precisions^2).
    """

    log_nats: Reals
    shares: Reals
    chosen: Reals
    choices: Reals
    roots: Reals
    neighbours: Reals
    junctions: Reals

    @classmethod
    def of(cls, arrays: PlanArrays, indices: Indices) -> PlanFeatures:
        """The features of plans given as indices, (plans, layers), float64."""
        width = len(arrays.profile.precisions)
        nats = arrays.sensitivities(indices)
        total = nats.sum(axis=1) + FLOOR_NATS
        shares = nats / total[:, None]
        roots = np.sqrt(shares)
        neighbours = roots[:, 1:] * roots[:, :-1]
        pairs = indices[:, :-1] * width + indices[:, 1:]
        return cls(
            log_nats=np.log(total),
            shares=shares,
            chosen=_one_hot(indices, width, np.ones_like(shares)),
            choices=_one_hot(indices, width, shares),
            roots=_one_hot(indices, width, roots),
            neighbours=neighbours,
            junctions=_one_hot(pairs, width * width, neighbours),
        )

    @property
    def single(self) -> PlanFeatures:
        """The same in float32, with which kernels take half the time."""
        return PlanFeatures(*(getattr(self, field.name).astype(np.float32) for field in fields(self)))

    def kernels(self, other: PlanFeatures) -> Reals:
        """Every kernel between these plans and ``other``, (kernels, plans, other plans)."""
        layers = self.shares.shape[1]
        found = np.empty((len(KERNELS), len(self.shares), len(other.shares)), self.shares.dtype)
        constant, trend, layer, choice, neighbour, junction, pair, overlap = found
        constant.fill(1.0)
        np.multiply(_trend(self.log_nats)[:, None], _trend(other.log_nats), out=trend)
        np.matmul(self.shares, other.shares.T, out=layer)
        np.matmul(self.choices, other.choices.T, out=choice)
        np.matmul(self.neighbours, other.neighbours.T, out=neighbour)
        np.matmul(self.junctions, other.junctions.T, out=junction)
        np.matmul(self.roots, other.roots.T, out=pair)
        # All ordered pairs, l = k among them.
        np.square(pair, out=pair)
        pair -= choice
        pair *= 0.5
        np.matmul(self.chosen, other.chosen.T, out=overlap)
        overlap *= _OVERLAP_RATE / layers
        overlap -= _OVERLAP_RATE
        np.exp(overlap, out=overlap)
        return found

    def own_kernels(self) -> Reals:
        """Every kernel of each plan with itself, (kernels, plans)."""
        layer = (self.shares**2).sum(axis=1)
        neighbour = (self.neighbours**2).sum(axis=1)
        ones = np.ones_like(layer)
        pair = 0.5 * (self.shares.sum(axis=1) ** 2 - layer)
        return np.stack([ones, _trend(self.log_nats) ** 2, layer, layer, neighbour, neighbour, pair, ones])


def _trend(log_nats: Reals) -> Reals:
    return log_nats - _MIDDLE_LOG_NATS


def _one_hot(indices: Indices, width: int, values: Reals) -> Reals:
    """``values`` (plans, places) at the index of each place, 0 elsewhere, (plans, places * width)."""
    plans, places = indices.shape
    spread = np.zeros((plans, places * width))
    spread[np.arange(plans)[:, None], np.arange(places) * width + indices] = values
    return spread
