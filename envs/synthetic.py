"""A network that does not exist, but behaves like one: any depth, hidden interactions, known optimum."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from envs.chain import cheapest_chain
from envs.evaluators.evaluator import Outcome
from envs.evaluators.remembering_evaluator import RememberingEvaluator
from envs.gate import SearchGate
from envs.synthetic_profile import draw_profile
from wattbit.errors import ConfigError, require_at_least
from wattbit.features import Floats
from wattbit.judging.noninferiority import PairedCounts
from wattbit.plan import PrecisionPlan
from wattbit.precision import Precision, parse_precisions
from wattbit.profile import ModelProfile

# Share of the samples that a uniform plan damages, by stored bits, whatever the number of layers: 0.3 pp at
# 8 bits, several at 4, tens at 3. Logarithms are interpolated.
_BITS = (2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
_DAMAGED = (1.0, 0.35, 0.06, 0.012, 0.003, 0.00001)
# The most that can be lost: a ruined network still guesses.
_MOST = 0.9
# Divergence for each damaged share of the samples.
_NATS = 3.0
# Scores are kept in parts of a sample, so that they do not round to nothing in a deep network.
_PARTS = 64
# Spread (of the logarithm) of damage over layers, over the precisions of a layer, and between divergence and
# damage: divergence never predicts a drop perfectly.
_LAYER_SPREAD, _PRECISION_SPREAD, _DIVERGENCE_SPREAD = 1.0, 0.35, 0.3
# First and last layers are more sensitive than those between.
_END_FACTOR = 3.0


class SyntheticEvaluator(RememberingEvaluator):
    """Evaluates plans of a made-up network of any depth by formula, at once and repeatably.

    Damage is counted in samples lost. Each layer has its own at each precision, lognormal over layers and
    growing steeply towards 3 bits. Neighbours interact: some pairs do far more damage together than each
    alone, some make up for each other; no sensitivity of a single layer shows that, and an additive model
    cannot have it. Energy is modelled from random layer shapes, conversions between neighbours included.

    Energy and damage are both sums over a chain, so that `optimum` is exact by dynamic programming where
    4^200 plans cannot be listed.

    Args:
        layers: Number of layers.
        precisions: Names of the precisions, the reference first.
        samples: Number of samples that outcomes are counted in.
        seed: Draws the network; another seed is another network.

    Raises:
        ConfigError: If there is no layer, no sample or only one precision.
        PrecisionError: If a precision is unknown, or no figure of its energy is at hand.
    """

    def __init__(
        self,
        layers: int,
        *,
        precisions: Sequence[str] = ("fp16", "int8", "int4", "int3"),
        samples: int = 10_000,
        seed: int = 0,
    ) -> None:
        chosen = parse_precisions(precisions)
        require_at_least(1, layers=layers, samples=samples)
        if len(chosen) < 2:
            raise ConfigError(f"precisions are only {chosen[0].name}, must be at least 2; add int8")
        rng = np.random.default_rng(seed)
        damage = _damage(rng, layers, chosen)
        spread = np.exp(rng.normal(0.0, _DIVERGENCE_SPREAD, (layers, len(chosen))))
        divergence = _NATS * damage * spread[:, None, :]
        super().__init__(draw_profile(rng, chosen, divergence[:, 0, :]))
        self._samples = samples
        self._scores = np.rint(damage * samples * _PARTS).astype(np.int64)
        self._energy_j = _steps_j(self._profile)
        latency_ms = [[layer.costs[p].latency_ms for p in precisions] for layer in self._profile.layers]
        per_pair = np.broadcast_to(np.array(latency_ms)[:, None, :], damage.shape)
        # One row of figures for each layer and pair of precisions: a plan is the sum of its rows.
        figures = (self._energy_j, self._scores, divergence, per_pair)
        self._rows = np.stack([figure.reshape(-1) for figure in figures], axis=1)
        self._position = {name: index for index, name in enumerate(precisions)}
        self._first_row = np.arange(layers) * len(chosen) ** 2

    @property
    def samples(self) -> int:
        """Number of samples that outcomes are counted in."""
        return self._samples

    def optimum(self, tolerance_pp: float, gate: SearchGate | None = None) -> Outcome:
        """The cheapest of all plans at ``tolerance_pp``, exactly; not counted as an evaluation.

        Args:
            tolerance_pp: The largest drop allowed.
            gate: Judges the drop; None: as observed. The reference passes any gate.

        Raises:
            ConfigError: If the tolerance is negative.
        """
        if not tolerance_pp >= 0.0:
            raise ConfigError(f"tolerance is {tolerance_pp} pp, must be at least 0")
        judge = gate or SearchGate(0.5)
        # Both the bound on the drop and the number of samples lost grow with the score.
        passing = bisect_right(
            range(self._samples + 1),
            tolerance_pp,
            key=lambda lost: judge.bound_pp(PairedCounts(self._samples, lost, 0)),
        )
        if not passing:
            return self._outcome(self._profile.reference_plan)
        most = int(self._scores.max(axis=(1, 2)).sum())
        limit = bisect_right(range(most + 1), passing - 1, key=self._lost) - 1
        path = cheapest_chain(self._energy_j, self._scores, limit)
        names = [self._profile.precisions[choice] for choice in path or [0] * len(self._scores)]
        return self._outcome(PrecisionPlan(dict(zip(self._profile.layer_names, names, strict=True))))

    def _run(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        return [self._outcome(plan) for plan in plans]

    def _outcome(self, plan: PrecisionPlan) -> Outcome:
        names, position = self._profile.layer_names, self._position
        try:
            path = [position[plan[name]] for name in names]
        except KeyError:
            path = []
        if not path or len(plan) != len(path):
            self._profile.require_plan(plan)  # says what is wrong
        choices = np.array([0, *path])
        rows = self._first_row + choices[:-1] * len(position) + choices[1:]
        # Row by row, which is how `ModelProfile.plan_energy_j` adds: the figures agree to the last bit.
        energy_j, score, divergence, latency_ms = np.add.reduce(self._rows[rows], axis=0).tolist()
        counts = PairedCounts(self._samples, self._lost(score), 0)
        return Outcome(plan, energy_j, latency_ms, counts, divergence)

    def _lost(self, score: float) -> int:
        """Samples lost: the damage at first, less as fewer are left to lose."""
        most = _MOST * self._samples
        return math.floor(-most * math.expm1(-score / (_PARTS * most)))


def _damage(rng: np.random.Generator, layers: int, precisions: Sequence[Precision]) -> Floats:
    """Share of the samples damaged by a layer at a precision after one at another, (layers, from, to).

    The first column of ``from`` is the reference, where a layer does its own damage only.
    """
    bits = np.array([p.stored_weight_bits for p in precisions])
    target = np.exp(np.interp(bits, _BITS, np.log(_DAMAGED)))
    target[0] = 0.0
    own = np.exp(
        rng.normal(0.0, _LAYER_SPREAD, (layers, 1))
        + rng.normal(0.0, _PRECISION_SPREAD, (layers, len(precisions)))
    )
    own[[0, -1]] *= _END_FACTOR
    strength = _strength(rng, layers, np.clip((16.0 - bits) / 12.0, 0.0, 1.0))
    # All terms are of first degree, so that the uniform plans can be brought to their targets at once.
    uniform = np.array([_total(own, strength)[:, p, p].sum() for p in range(len(precisions))])
    return _total(own * target / uniform, strength)


def _strength(rng: np.random.Generator, layers: int, lowness: Floats) -> Floats:
    """How strongly a layer interacts with the one before, (layers, from, to).

    Above 0 both together do more damage than each alone, below 0 less. With these shares of pairs the
    additive optimum of 50 layers costs about 5 % more than the true one.
    """
    drawn = rng.random(layers)
    strength = np.select(
        [drawn < 0.3, drawn < 0.65],
        [rng.uniform(2.0, 6.0, layers), -rng.uniform(0.5, 0.95, layers)],
        rng.uniform(0.0, 0.3, layers),
    )
    strength[0] = 0.0
    pair = np.sqrt(np.outer(lowness, lowness))
    varied: Floats = strength[:, None, None] * pair * rng.uniform(0.5, 1.0, (layers, *pair.shape))
    varied[:, 0, :] = varied[:, :, 0] = 0.0
    return varied


def _total(own: Floats, strength: Floats) -> Floats:
    """A layer's own damage and that of the interaction with the one before, (layers, from, to), 0 or more."""
    before = np.vstack([own[:1], own[:-1]])[:, :, None]
    after = own[:, None, :]
    shared = np.where(strength > 0, np.sqrt(before * after), np.minimum(before, after))
    return np.asarray(after + strength * shared, np.float64)


def _steps_j(profile: ModelProfile) -> Floats:
    """Energy of a layer at a precision after one at another, (layers, from, to), joules."""
    names = profile.precisions
    return np.array(
        [
            [[profile.step_energy_j(index, name, before) for name in names] for before in names]
            for index in range(len(profile.layers))
        ]
    )
