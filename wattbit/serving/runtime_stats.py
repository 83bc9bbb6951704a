"""What a runtime has done so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class RuntimeStats:
    """What a runtime has done so far.

    Attributes:
        samples: Samples answered.
        reruns: Batches run again at the reference because the plan failed or its output was not finite.
        shadow_samples: Samples also run at the reference to watch for drift.
        disagreements: Shadow samples whose predictions differed.
        rollbacks: Times the runtime fell back to the reference.
        energy_saved_j: Energy saved against the reference, shadow runs and re-runs paid for; its provenance
            is the bundle's.
    """

    samples: int = 0
    reruns: int = 0
    shadow_samples: int = 0
    disagreements: int = 0
    rollbacks: int = 0
    energy_saved_j: float = 0.0

    @classmethod
    def of_batch(
        cls, samples: int, reference_j: float, plan_j: float, reruns: int, shadow: Sequence[bool]
    ) -> RuntimeStats:
        """Of one batch that ran at ``plan_j`` a sample.

        It ran once more at ``reference_j`` if there are ``reruns``, or ``shadow`` says who disagreed.
        """
        again_j = reference_j if reruns or shadow else 0.0
        return cls(
            samples=samples,
            reruns=reruns,
            shadow_samples=len(shadow),
            disagreements=sum(shadow),
            energy_saved_j=(reference_j - plan_j - again_j) * samples,
        )

    def plus(self, other: RuntimeStats) -> RuntimeStats:
        """The sum of both."""
        return RuntimeStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))
