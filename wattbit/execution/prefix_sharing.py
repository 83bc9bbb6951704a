"""Running many plans through one model: the first layers that plans share run once, not once per plan.

Plans are sorted by the kernels of their layers, in execution order. Each plan starts at the first layer in
which it differs from the one before, with the values kept there. Kernels are compared, not precisions: an
int8 layer that writes codes for the next layer differs from one that does not.

The outputs are those of plain passes, bit for bit: the same modules run on the same batches in the same
order. This is tried on a few samples first; a model that cannot share is run plan by plan, and
`PrefixSharing.refusal` says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from wattbit.errors import ConfigError, ModelError
from wattbit.execution.activation_cache import ActivationCache
from wattbit.execution.layer_graph import LayerGraph, trace_layers
from wattbit.execution.packing import Kernels
from wattbit.execution.sharing_check import check_sharing
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, logits_of, num_samples, select
from wattbit.plan import PrecisionPlan

MEMORY_BYTES = 512 * 2**20
"""Default limit for the values kept between plans."""

# Samples on which sharing is tried against plain passes.
_TRIED = 2


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A plan and its kernels, with one number for each: equal kernels of a layer have equal numbers."""

    rank: tuple[int, ...]
    plan: PrecisionPlan
    kernels: Kernels


@dataclass(frozen=True, slots=True)
class _Run:
    """One plan among sorted ones.

    Attributes:
        kernels: The plan's kernels.
        common: Number of parts it shares with the plan before.
        returns: How many later plans start at each part of this one, by part.
    """

    kernels: Kernels
    common: int
    returns: Mapping[int, int]


class PrefixSharing:
    """Runs plans of one calibrated model; the first layers that they share run once.

    Args:
        model: The model.
        example: Inputs like those it will run on; a few samples of them are tried.
        memory_bytes: Limit for the values kept between plans, besides those before the first layer; the
            outputs of plans that run together may take as much again. Where it is too small, the values
            that save least are not kept, which costs time but changes no result.

    Raises:
        ConfigError: If ``memory_bytes`` is negative.
    """

    def __init__(self, model: SwitchableModel, example: Inputs, *, memory_bytes: int = MEMORY_BYTES) -> None:
        if memory_bytes < 0:
            raise ConfigError(f"memory_bytes is {memory_bytes}, must be at least 0; {MEMORY_BYTES} is usual")
        self._model = model
        self._memory_bytes = memory_bytes
        self._executed = self._plain = self._output_bytes = 0
        self._graph: LayerGraph | None = None
        self._refusal: str | None = None
        try:
            try:
                self._graph = self._tried(select(example, slice(0, _TRIED)))
            except (RuntimeError, ValueError, IndexError):
                # A tensor that is as long as the batch by chance may not be cut.
                self._graph = self._tried(example)
        except ModelError as error:
            self._refusal = str(error)
        self._executed = self._plain = 0

    @property
    def refusal(self) -> str | None:
        """Why plans are run one by one; None if they share."""
        return self._refusal

    @property
    def layer_executions(self) -> int:
        """How many times a switchable layer has run on a batch."""
        return self._executed

    @property
    def plain_layer_executions(self) -> int:
        """How many times one would have run in plain passes of the same plans."""
        return self._plain

    def logits(
        self, batches: Sequence[Inputs], plans: Iterable[PrecisionPlan]
    ) -> Iterator[tuple[PrecisionPlan, Tensor]]:
        """Run ``batches`` under each of ``plans``.

        Yields:
            Each distinct plan, in an order of its own, with what `SwitchableModel.logits` gives for it:
            float32 of shape (samples, classes), on the CPU.

        Raises:
            DataError: If there is no batch; further as `SwitchableModel.run`.
        """
        distinct = list(dict.fromkeys(plans))
        graph = self._graph
        if graph and batches and len(distinct) > 1 and all(graph.fits(batch) for batch in batches):
            yield from self._shared(graph, batches, distinct)
            return
        calls = (sum(graph.calls) if graph else len(self._model.layer_names)) * len(batches)
        for plan in distinct:
            logits = self._model.logits(batches, plan)
            self._executed += calls
            self._plain += calls
            yield plan, logits

    # --- inside -----------------------------------------------------------------------------------------

    def _tried(self, inputs: Inputs) -> LayerGraph:
        graph = trace_layers(self._model.model, self._model.layer_names, inputs)
        logits = check_sharing(
            self._model, graph, inputs, lambda plans: dict(self._shared(graph, [inputs], plans))
        )
        self._output_bytes = logits.nbytes // len(logits)
        return graph

    def _shared(
        self, graph: LayerGraph, batches: Sequence[Inputs], plans: Sequence[PrecisionPlan]
    ) -> Iterator[tuple[PrecisionPlan, Tensor]]:
        ranked = _sorted(graph, {plan: self._model.prepare(plan) for plan in plans})
        output_bytes = self._output_bytes * sum(map(num_samples, batches))
        together = max(1, self._memory_bytes // max(1, output_bytes))
        for start in range(0, len(ranked), together):
            group = ranked[start : start + together]
            runs = _runs(group)
            parts = [self._run_batch(graph, batch, runs) for batch in batches]
            for one, outputs in zip(group, zip(*parts, strict=True), strict=True):
                yield one.plan, torch.cat(outputs)

    @torch.inference_mode()
    def _run_batch(self, graph: LayerGraph, batch: Inputs, runs: Sequence[_Run]) -> list[Tensor]:
        """Logits of one batch under each of sorted plans."""
        with self._model.holding(runs[0].kernels):
            kept = ActivationCache(graph.begin(batch), graph.calls, self._memory_bytes)
        outputs: list[Tensor] = []
        for run in runs:
            first, values = kept.resume(run.common, run.returns)
            with self._model.holding(run.kernels):
                for part in range(first, len(graph.calls)):
                    kept.keep(part, values, run.returns)
                    graph.run(part, values)
            outputs.append(logits_of(graph.output(values)).float().cpu())
            self._executed += sum(graph.calls[first:])
            self._plain += sum(graph.calls)
        return outputs


def _sorted(graph: LayerGraph, kernels: Mapping[PrecisionPlan, Kernels]) -> list[_Ranked]:
    """The plans in an order in which those that share their first layers are neighbours."""
    seen: list[dict[int, int]] = [{} for _ in graph.layers]
    ranked = []
    for plan, own in kernels.items():
        places = zip(graph.layers, seen, strict=True)
        # Kernels are compared by identity: each is packed once.
        rank = tuple(known.setdefault(id(own[layer]), len(known)) for layer, known in places)
        ranked.append(_Ranked(rank, plan, own))
    return sorted(ranked, key=lambda one: one.rank)


def _runs(ranked: Sequence[_Ranked]) -> list[_Run]:
    common = [0, *(_common(a.rank, b.rank) for a, b in pairwise(ranked))]
    runs: list[_Run] = []
    returns: dict[int, int] = {}
    for index in reversed(range(len(ranked))):
        runs.append(_Run(ranked[index].kernels, common[index], returns))
        # For the plan before, parts beyond those in common do not count.
        returns = {part: count for part, count in returns.items() if part <= common[index]}
        returns[common[index]] = returns.get(common[index], 0) + 1
    return runs[::-1]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the prefix that ``a`` and ``b`` share."""
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
