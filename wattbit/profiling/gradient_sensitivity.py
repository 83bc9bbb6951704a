"""Sensitivities of all layers at all precisions from a few passes, by following the model's derivatives.

A layer that runs alone at another precision moves its own output by ``dy`` and nothing before it, so that to
first order the model's logits move by ``dz = J dy``, where ``J`` is the derivative of the logits by the
layer's output at the reference. ``J`` comes from one forward pass and one backward pass for each class but
one; ``dy`` from running that layer alone, on the input it reads at the reference. The sensitivity is the
Kullback-Leibler divergence between softmax(z) and softmax(z + dz). For small ``dz`` that is
``dz' (diag(p) - p p') dz / 2``, the Gauss-Newton form that HAWQ-V2 (Z. Dong et al., NeurIPS 2020) and others
rank layers by (its matrix is the Fisher information of the logits); here the divergence itself is taken,
which also holds where ``dz`` is not small but the layers after it still answer linearly.

Where they do not, the divergence is large, and it is measured directly, on some of the samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wattbit.errors import ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, batches, logits_of, num_samples, select
from wattbit.precision import Precision
from wattbit.profiling.sensitivity import (
    LayerChoice,
    Progress,
    Sensitivity,
    direct_sensitivities,
    divergence,
    reference_log_probabilities,
    side_by_side,
)

_log = logging.getLogger(__name__)

MOST_OUTCOMES = 10
"""Classes followed, each by a backward pass: the most probable of each sample; the others count as one."""

DOUBTFUL_NATS = 0.01
"""A mean divergence above this is measured directly, where the layers after it are not linear."""

DIRECT_SAMPLES = 64
"""Samples for what is measured directly; a large divergence needs few."""

TRACED_SAMPLES = 16
"""Samples per pass at most: all activations of a pass are held, and more would not fit into caches."""


def gradient_sensitivities(
    model: SwitchableModel,
    inputs: Inputs,
    candidates: Sequence[LayerChoice],
    batch_size: int,
    *,
    doubtful_nats: float = DOUBTFUL_NATS,
    direct_samples: int = DIRECT_SAMPLES,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[Sensitivity | None]:
    """Follow the derivatives of all ``inputs``, and measure directly where they do not suffice.

    Args:
        model: The model, calibrated; its samples do not depend on each other.
        inputs: The samples.
        candidates: What to estimate.
        batch_size: Samples per pass, at most; see `TRACED_SAMPLES`.
        doubtful_nats: What comes out above this is measured directly instead.
        direct_samples: The most samples used for what is measured directly.
        workers: Threads that take batches side by side; results do not depend on it.
        progress: Called after each batch, and after each direct measurement.

    Returns:
        One for each candidate; None where the output is not finite.

    Raises:
        ModelError: If the reference output is not finite, or the model cannot be differentiated.
    """
    batch_size = min(batch_size, TRACED_SAMPLES)
    reference = model.precisions[0]
    others = [candidate for candidate in candidates if candidate[1] != reference]
    values = _follow(model, inputs, others, batch_size, workers, progress)
    found: dict[LayerChoice, Sensitivity | None] = {c: Sensitivity.of(v) for c, v in values.items()}
    # What is infinite for one sample may be finite for the few that others are measured on.
    infinite = [c for c, v in values.items() if not bool(torch.isfinite(v).all())]
    large = [c for c in others if c not in values or float(values[c].mean()) > doubtful_nats]
    done = -(-num_samples(inputs) // batch_size)
    some = select(inputs, slice(0, direct_samples))
    for doubtful, samples in ((infinite, inputs), ([c for c in large if c not in infinite], some)):
        if doubtful:
            measured = direct_sensitivities(
                model, samples, doubtful, batch_size, workers, _after(progress, done)
            )
            found.update(zip(doubtful, measured, strict=True))
            done += len(doubtful)
    _log.info(
        "sensitivities: %d of %d come from derivatives on %d samples; %d were measured on %d, %d on all",
        len(set(values) - {*large, *infinite}), len(others), num_samples(inputs),
        len({*large} - {*infinite}), num_samples(some), len(infinite),
    )  # fmt: skip
    return [Sensitivity(0.0, 0.0) if c[1] == reference else found[c] for c in candidates]


def _follow(
    model: SwitchableModel,
    inputs: Inputs,
    candidates: Sequence[LayerChoice],
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> dict[LayerChoice, Tensor]:
    """The divergence of each sample, (samples,) nats, for each candidate that derivatives suffice for."""
    cut = list(batches(inputs, batch_size))
    entangled = _Trace.of(model, cut[0]).entangled_layers()
    clear = [candidate for candidate in candidates if candidate[0] not in entangled]
    parts: list[Tensor] = []
    for part in side_by_side(lambda batch: _Trace.of(model, batch).divergences(clear), cut, workers):
        parts.append(part)
        if progress:
            progress(len(parts), len(cut))
    return dict(zip(clear, torch.cat(parts, 1), strict=True))


def _after(progress: Progress | None, steps: int) -> Progress | None:
    """The progress of what follows ``steps`` that are done."""
    return (lambda done, total: progress(steps + done, steps + total)) if progress else None


@dataclass(slots=True)
class _Call:
    """One call of a layer at the reference: what it read, and what it wrote, as part of the graph."""

    read: Tensor
    wrote: Tensor


@dataclass(slots=True)
class _Trace:
    """One batch at the reference, with the graph of its derivatives.

    Attributes:
        model: The model.
        outcomes: Logits of each sample's outcomes less that of the last one, (samples, outcomes - 1).
        calls: The calls of each layer, by its index.
        gradients: The derivative of each outcome by what each call wrote, (outcomes - 1, *shape); by layer.
    """

    model: SwitchableModel
    outcomes: Tensor
    calls: list[list[_Call]]
    gradients: list[list[Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, model: SwitchableModel, batch: Inputs) -> _Trace:
        """Run ``batch`` at the reference."""
        reference = model.precisions[0].name
        calls: list[list[_Call]] = [[] for _ in model.shapes]

        def watched(index: int) -> Callable[[Tensor], Tensor]:
            layer = model.layer_callable(index, reference)

            def run(x: Tensor) -> Tensor:
                # Copied before and after, because what comes next may write into either.
                read = x.clone()
                wrote = layer(read)
                if not wrote.requires_grad:
                    wrote = wrote.detach().requires_grad_()
                calls[index].append(_Call(read.detach(), wrote))
                return wrote.clone()

            return run

        try:
            with torch.inference_mode(False), torch.enable_grad():
                logits = logits_of(model.run_layers(batch, [watched(i) for i in range(len(calls))]))
                reference_log_probabilities(logits.detach())
                if logits.shape[1] < 2:
                    raise RuntimeError("it tells 1 class, not at least 2")
                trace = cls(model, _outcomes(logits.float()), calls)
                trace._differentiate()
        except RuntimeError as error:
            raise ModelError(
                f"the model cannot be differentiated ({str(error).splitlines()[0]}); measure its "
                "sensitivities with sensitivity='direct'"
            ) from error
        return trace

    def _differentiate(self) -> None:
        written = [call.wrote for calls in self.calls for call in calls]
        directions = [self._gradients(written, column) for column in self.outcomes.sum(0)]
        stacked = iter([torch.stack(found) for found in zip(*directions, strict=True)])
        self.gradients = [[next(stacked) for _ in calls] for calls in self.calls]

    def _gradients(self, written: list[Tensor], of: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(of, written, retain_graph=True, allow_unused=True, materialize_grads=True)

    def entangled_layers(self) -> set[int]:
        """The layers whose outputs do not hold the samples one after the other.

        In such a layer the first sample's outcomes also depend on places that would be other samples'.
        """
        samples = len(self.outcomes)
        found = {i for i, calls in enumerate(self.calls) if any(len(c.wrote) % samples for c in calls)}
        written = [(index, call.wrote) for index, calls in enumerate(self.calls) for call in calls]
        with torch.inference_mode(False), torch.enable_grad():
            gradients = self._gradients([y for _, y in written], self.outcomes[0].sum())
        for (index, y), gradient in zip(written, gradients, strict=True):
            if bool(gradient[max(1, len(y) // samples) :].any()):
                found.add(index)
        return found

    @torch.inference_mode()
    def divergences(self, candidates: Iterable[LayerChoice]) -> Tensor:
        """The divergence of each sample's output for each candidate, (candidates, samples), nats."""
        with_last = torch.nn.functional.pad(self.outcomes.detach(), (0, 1))
        log_reference = torch.log_softmax(with_last, 1)
        rows = [
            divergence(log_reference, with_last + torch.nn.functional.pad(self._moves(index, p), (0, 1)))
            for index, p in candidates
        ]
        return torch.stack(rows) if rows else with_last.new_zeros(0, len(with_last))

    def _moves(self, index: int, precision: Precision) -> Tensor:
        """How far each outcome moves to first order, (samples, outcomes - 1)."""
        layer = self.model.layer_callable(index, precision.name)
        moves = torch.zeros_like(self.outcomes)
        for call, gradient in zip(self.calls[index], self.gradients[index], strict=True):
            x, y = call.read, call.wrote.detach()
            if self.model.shapes[index].kind == "linear":
                # Rows that nothing depends on, such as those of padding, need not be run.
                x, y, gradient = x.flatten(0, -2), y.flatten(0, -2), gradient.flatten(1, -2)
                used = gradient.any(0).any(1).nonzero().squeeze(1)
                owner = used // (len(y) // len(moves))
                x, y, gradient = x[used], y[used], gradient[:, used]
            else:
                owner = torch.arange(len(y)) // (len(y) // len(moves))
            change = (layer(x) - y).flatten(1)
            per_row = torch.einsum("krn,rn->rk", gradient.flatten(2), change)
            moves.index_add_(0, owner.to(moves.device), per_row)
        return moves


def _outcomes(logits: Tensor) -> Tensor:
    """Logits of the outcomes of each sample less that of the last one, (samples, outcomes - 1).

    The outcomes are the most probable classes and, as the last, all others together.
    """
    kept = min(logits.shape[1], MOST_OUTCOMES) - 1
    ordered = logits.gather(1, logits.detach().argsort(1, descending=True))
    return ordered[:, :kept] - ordered[:, kept:].logsumexp(1, keepdim=True)
