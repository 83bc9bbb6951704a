"""Trying on a few samples whether a model's plans can share their first layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from wattbit.errors import ModelError
from wattbit.execution.layer_graph import LayerGraph
from wattbit.execution.switchable import SwitchableModel
from wattbit.execution.weights_watch import write_count
from wattbit.model_inputs import Inputs, map_tensors, tensors_in
from wattbit.plan import PrecisionPlan

Run = Callable[[Sequence[PrecisionPlan]], Mapping[PrecisionPlan, Tensor]]
"""Runs plans on the samples, shared; returns the logits of each."""


def check_sharing(model: SwitchableModel, graph: LayerGraph, inputs: Inputs, run: Run) -> Tensor:
    """Compare shared with plain passes, bit for bit, and look for writes into values that are kept.

    Args:
        model: The calibrated model.
        graph: Its traced forward pass.
        inputs: A few samples.
        run: Runs plans on them.

    Returns:
        The reference's logits on the samples.

    Raises:
        ModelError: If plans of the model cannot share, with the reason.
    """
    plans = _plans(model)
    own = _tensors_of(model.model)
    versions = [write_count(tensor) for tensor in own]
    plain = {plan: model.logits([inputs], plan) for plan in plans}
    if [write_count(tensor) for tensor in own] != versions:
        raise ModelError("the forward pass writes into the model's own tensors; write it without")
    if not _same_bits(plain[plans[0]], model.logits([inputs], plans[0])):
        raise ModelError("two passes on the same samples differ; a model must not draw random numbers")
    # A user's modules may fail in any way when they are called one by one.
    try:
        for plan in plans:
            _require_no_writes(model, graph, inputs, plan)
        shared = run(plans)
    except ModelError:
        raise
    except Exception as error:
        said = str(error).strip().split("\n")[0]
        raise ModelError(
            f"the traced forward pass fails ({type(error).__name__}: {said:.200}); "
            "each plan runs from its first layer instead, which takes longer and gives the same"
        ) from error
    for plan, logits in plain.items():
        if not _same_bits(logits, shared[plan]):
            raise ModelError(
                "the traced forward pass gives another output; each plan runs from "
                "its first layer instead, which takes longer and gives the same"
            )
    return plain[model.reference_plan]


def _plans(model: SwitchableModel) -> list[PrecisionPlan]:
    """The reference, every layer at some other precision, and two that take half of each."""
    layers, names = model.layer_names, [precision.name for precision in model.precisions]
    reference = model.reference_plan
    mixed = {layer: names[(index + 1) % len(names)] for index, layer in enumerate(layers)}
    half = layers[len(layers) // 2 :]
    plans = [
        reference,
        reference.replace(**{layer: mixed[layer] for layer in half}),
        PrecisionPlan(mixed),
        PrecisionPlan(mixed).replace(**{layer: reference[layer] for layer in half}),
    ]
    return list(dict.fromkeys(plans))


@torch.no_grad()
def _require_no_writes(
    model: SwitchableModel, graph: LayerGraph, inputs: Inputs, plan: PrecisionPlan
) -> None:
    """Refuse a model that writes into what lies before a layer, or into its own tensors, after it.

    Torch counts the writes into a tensor, views included, except in inference mode.
    """
    with torch.inference_mode(False), model.holding(model.prepare(plan)):
        own = [*_tensors_of(model.model), *graph.constants]
        seen = [(tensor, write_count(tensor)) for tensor in own]
        values = graph.begin(map_tensors(inputs, torch.clone))
        for part in range(len(graph.layers)):
            seen += [(tensor, write_count(tensor)) for tensor in tensors_in(values)]
            graph.run(part, values)
    if any(write_count(tensor) != version for tensor, version in seen):
        raise ModelError(
            "the forward pass writes in place into a tensor that it reads again, or into the model's own; "
            "write it without"
        )


def _tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))
