"""Coverage: the share of a model's work and weights that a plan can switch, and what is left out.

Values only; `wattbit.profiling.count_macs` counts them. Needs neither torch nor numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_MACS = 0.5
"""Below this share of the multiply-accumulates, what plans save says too little about the whole model."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Parts of one kind that do not switch: an example, how many, their share of the MACs, and why."""

    kind: str
    example: str
    count: int
    macs: float
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of a model can switch.

    Attributes:
        macs: Share of the multiply-accumulates of all matrix products and convolutions, 0 to 1.
        weights: Share of the parameters, 0 to 1; tied ones count once.
        left_out: What does not switch, the largest first.
        other_weight_bytes: Size of the parameters that are no switchable layer's weight, bytes.
        tied: Groups of switchable layers that share one weight; a group that begins with ``""`` also shares
            it with something that does not switch, whose size is in ``other_weight_bytes``.
    """

    macs: float
    weights: float
    left_out: tuple[LeftOut, ...] = ()
    other_weight_bytes: int = 0
    tied: tuple[tuple[str, ...], ...] = ()

    @property
    def text(self) -> str:
        """All of it in a line."""
        line = f"{_percent(self.macs)} of the MACs and {_percent(self.weights)} of the weights can switch"
        parts = [
            f"{part.count} {part.kind} ({part.example}{', …' if part.count > 1 else ''}; {part.reason}) "
            f"{_percent(part.macs)}"
            for part in self.left_out[:3]
        ]
        return f"{line}; left out: {'; '.join(parts)}" if parts else line

    @property
    def withheld(self) -> str:
        """Why no saving of the whole model is claimed; empty if it is."""
        if self.macs >= LEAST_MACS:
            return ""
        return (
            f"no saving is claimed: only {_percent(self.macs)} of the model's MACs can switch, needed are "
            f"{_percent(LEAST_MACS)}"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
