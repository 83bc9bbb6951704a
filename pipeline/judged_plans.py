"""How many plans a split has judged one by one: the more there are, the likelier that one passes by luck.

Of plans that lose exactly the tolerance, one in twenty passes at a level of 5 %; so of 20 of them, some plan
does in about half of all cases. Holm's method (1979, "A simple sequentially rejective multiple test
procedure", Scandinavian Journal of Statistics 6:65-70) keeps that chance at the level for all plans together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from wattbit.errors import ConfigError
from wattbit.guardrail import Guardrail
from wattbit.judging.judgement import Judgement
from wattbit.judging.noninferiority import first_beyond
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.regular_file import read_regular
from wattbit.storage.strict_json import dump_json, parse_json, require_number

SCHEMA = 1
_MOST_BYTES = 2**24
NOT_COUNTED = (
    "Nothing counts the plans that this split has judged: one at the boundary passes wrongly in up to 5 % of "
    "cases, some of 20 in half of them; give bundle=FOLDER to have them counted and corrected."
)


@dataclass(frozen=True, slots=True)
class JudgedPlans:
    """The p-values of the plans that one split has judged, kept in a file.

    Attributes:
        path: The file.
        split: Fingerprint of the split; a file about another one is begun anew.
        p_values: By what was tested: the plan and its limits.
    """

    path: Path
    split: str
    p_values: Mapping[str, float]

    @classmethod
    def read(cls, path: Path, split: str) -> Self:
        """The plans judged so far.

        Raises:
            ConfigError: If the file is damaged: then nobody knows how many there were.
        """
        try:
            data = parse_json(read_regular(path, _MOST_BYTES)) if path.exists() else None
            if data is None or data["split"] != split:
                return cls(path, split, {})
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r:.80} is not {SCHEMA}")
            found = {tested: require_number(p, tested) for tested, p in data["p_values"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"cannot read {path} ({error}), which counts the plans judged on this split; restore it, or "
                "certify on fresh samples"
            ) from None
        return cls(path, split, found)

    def correct(
        self,
        plan_id: str,
        alone: Judgement,
        guardrail: Guardrail,
        judge: Callable[[Guardrail], Judgement],
    ) -> Judgement:
        """Count one plan more, and write it down before anybody sees the verdict.

        Args:
            plan_id: The plan.
            alone: Its judgement by itself.
            guardrail: Its limits.
            judge: Judges the plan by itself against limits of another alpha.

        Returns:
            The judgement; a pass that the number of plans makes void is inconclusive.

        Raises:
            OutputError: If it cannot be written down.
        """
        limits = {name: value for name, value in guardrail.as_dict().items() if name != "alpha"}
        tested = f"{plan_id} {json.dumps(limits, sort_keys=True)}"
        p_values = {**self.p_values, tested: _p_value(alone, guardrail, judge)}
        record = {"schema": SCHEMA, "split": self.split, "p_values": p_values}
        write_atomically(
            self.path, dump_json(record), "make the bundle's folder writable: plans must be counted"
        )
        needed = holm(p_values)[tested]
        if alone.verdict != "pass" or needed <= guardrail.alpha:
            return alone
        return replace(
            alone,
            verdict="inconclusive",
            reasons=(
                f"passes by itself, but this split has judged {len(p_values)} plans: corrected for that "
                f"(Holm), p is {needed:.2g}, above {guardrail.alpha:g}; certify it on fresh samples",
            ),
        )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values adjusted for their number: reject where at most alpha, and any error has chance alpha."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = least
    return adjusted


def _p_value(alone: Judgement, guardrail: Guardrail, judge: Callable[[Guardrail], Judgement]) -> float:
    """The smallest alpha at which the plan passes, whatever tests that takes; 1 if none does."""
    most = 0.499
    if alone.p_value is not None and not guardrail.per_class_pp and alone.samples:
        return alone.p_value
    if judge(replace(guardrail, alpha=most)).verdict != "pass":
        return 1.0
    return first_beyond(lambda alpha: judge(replace(guardrail, alpha=alpha)).verdict == "pass", 0.0, most)
