"""Outcomes of a reference and a plan to be judged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wattbit.guardrail import Guardrail

ONE_PP = Guardrail(1.0)


def outcomes(samples: int, lost: int, gained: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Outcomes of a reference that is right on all but the last tenth, and of a plan that differs as told."""
    reference = np.arange(samples) < samples - max(gained, samples // 10)
    plan = reference.copy()
    plan[:lost] = False
    plan[samples - gained :] = True
    return reference, plan
