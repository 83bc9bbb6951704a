"""What every plan of a small network loses on some samples, batch by batch, kept on disk as it comes."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from envs.evaluators.plan_evaluator import correct
from envs.grouping import Groups, layer_plan
from scripts.exhaustive_tables.plan_tree import PlanTree
from wattbit.errors import ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import batches
from wattbit.plan import PrecisionPlan
from wattbit.profiling.profiler import divergence
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.npz import read_npz
from wattbit.storage.regular_file import read_regular
from workloads.workload import Split

# Plans whose logits are judged together: few calls, and they stay in the processor's cache.
_TOGETHER = 64
# As for a single plan, an output that is not finite is as far off as can be.
_WORST = 100.0
# Plans of each batch that are run again by themselves.
_CHECKED = 3
_MOST_BYTES = 2**28


@dataclass(frozen=True, slots=True, eq=False)
class PlanCounts:
    """Outcomes of every plan on some samples, in the order of tables.

    Attributes:
        reference_only: Samples that row 0 gets right and the plan wrong, int64 (plans,).
        plan_only: The reverse.
        divergence: Sum over samples of the divergence from row 0, nats, float64 (plans,).
        samples: Number of samples, int64 ().
        reference_right: Samples that row 0 gets right, int64 ().
    """

    reference_only: NDArray[np.int64]
    plan_only: NDArray[np.int64]
    divergence: NDArray[np.float64]
    samples: NDArray[np.int64]
    reference_right: NDArray[np.int64]

    def __add__(self, other: PlanCounts) -> PlanCounts:
        return PlanCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(PlanCounts)))


class PlanCounter:
    """Counts what every plan loses.

    Args:
        model: The model, attached with ``native=False`` and calibrated.
        groups: Layers that change precision together.
        precisions: Names of the precisions, the reference first.
        folder: Where the counts of each batch are kept: an interrupted run goes on after the last one.
    """

    def __init__(
        self, model: SwitchableModel, groups: Groups, precisions: Sequence[str], folder: Path
    ) -> None:
        self._model = model
        self._groups = dict(groups)
        self._precisions = tuple(precisions)
        self._folder = folder
        self._tree = PlanTree(model, groups, precisions)

    @property
    def rows(self) -> int:
        """Number of plans."""
        return int(len(self._precisions) ** len(self._groups))

    def count(
        self, split: Split, batch_size: int, done: Callable[[int, int], None] = lambda done, total: None
    ) -> PlanCounts:
        """The outcomes on ``split``; ``done`` is told (samples, samples in all) after each batch.

        Raises:
            ModelError: If a plan answers differently by itself than among all plans.
            OutputError: If the folder cannot be written.
        """
        total: PlanCounts | None = None
        labels = torch.split(split.labels, batch_size)
        for batch, batch_labels in zip(batches(split.inputs, batch_size), labels, strict=True):
            if not isinstance(batch, Tensor):
                raise ModelError("inputs are not a single tensor, which the walk through all plans needs")
            counts = self._batch(batch, batch_labels)
            total = counts if total is None else total + counts
            done(int(total.samples), len(split))
        if total is None:
            raise ModelError("0 samples give no counts, need at least 1")
        return total

    def _batch(self, batch: Tensor, labels: Tensor) -> PlanCounts:
        path = self._folder / f"{self._key(batch, labels)}.npz"
        known = _read(path, self.rows)
        if known is None:
            known = self._run(batch, labels)
            content = io.BytesIO()
            np.savez_compressed(content, **{f.name: getattr(known, f.name) for f in fields(PlanCounts)})
            write_atomically(path, content.getvalue())
        return known

    def _key(self, batch: Tensor, labels: Tensor) -> str:
        """A name for everything that decides the counts, what the uniform plans answer included."""
        digest = hashlib.sha256(json.dumps([self._groups, self._precisions], sort_keys=False).encode())
        answers = [
            self._model.logits([batch], PrecisionPlan.uniform(self._model.layer_names, name))
            for name in self._precisions
        ]
        for tensor in (batch, labels, *answers):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def _run(self, batch: Tensor, labels: Tensor) -> PlanCounts:
        checked = np.random.default_rng(0).integers(0, self.rows, _CHECKED).tolist()
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        reference: ReferenceAnswers | None = None
        first = 0
        for together in _stacked(self._tree.logits(batch)):
            reference = reference or ReferenceAnswers(together[0], labels)
            parts.append(reference.compare(together))
            for row in checked:
                if first <= row < first + len(together):
                    self._check(row, batch, together[row - first])
            first += len(together)
        if reference is None:
            raise ModelError("no plan was run")
        lost, gained, nats = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        right = np.array(int(reference.right.sum()))
        return PlanCounts(lost, gained, nats, np.array(len(labels)), right)

    def _check(self, row: int, batch: Tensor, logits: Tensor) -> None:
        names = [self._precisions[digit] for digit in digits(row, len(self._precisions), len(self._groups))]
        plan = layer_plan(self._groups, dict(zip(self._groups, names, strict=True)))
        if not torch.equal(self._model.logits([batch], plan), logits):
            raise ModelError(
                f"plan {','.join(names)} answers differently by itself than among all plans; "
                "run on one torch thread"
            )


class ReferenceAnswers:
    """What row 0 answers on a batch."""

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self._labels = labels
        self._log = F.log_softmax(logits, 1)
        self.right = correct(logits, labels)

    def compare(self, together: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Samples lost, samples gained and summed divergence of several plans, each (plans,).

        Args:
            together: Logits of the plans, (plans, samples, classes).
        """
        plans, samples, classes = together.shape
        flat = together.reshape(-1, classes)
        right = correct(flat, self._labels.repeat(plans)).reshape(plans, samples)
        nats = divergence(self._log.repeat(plans, 1), flat).double().nan_to_num(nan=_WORST, posinf=_WORST)
        return (
            (self.right & ~right).sum(1),
            (~self.right & right).sum(1),
            nats.clamp_max(_WORST).reshape(plans, samples).sum(1),
        )


def digits(row: int, base: int, count: int) -> list[int]:
    """The index of each group's precision in the plan at ``row``."""
    return [row // base**power % base for power in range(count - 1, -1, -1)]


def _stacked(logits: Iterator[Tensor]) -> Iterator[Tensor]:
    held: list[Tensor] = []
    for one in logits:
        held.append(one)
        if len(held) == _TOGETHER:
            yield torch.stack(held)
            held = []
    if held:
        yield torch.stack(held)


def _read(path: Path, rows: int) -> PlanCounts | None:
    """The counts kept at ``path``; None if there are none, or they are damaged."""
    try:
        arrays = read_npz(read_regular(path, _MOST_BYTES), _MOST_BYTES)
        counts = PlanCounts(*(arrays[f.name] for f in fields(PlanCounts)))
    except (OSError, LookupError, ValueError):
        return None
    sound: Any = counts.reference_only.shape == counts.plan_only.shape == counts.divergence.shape == (rows,)
    return counts if sound else None
