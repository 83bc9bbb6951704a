"""Plans under `torch.compile`: one compiled callable per plan, built ahead, switched by reference.

A model whose kernels change would be compiled again at every switch. Here every plan gets a copy of the
model that shares its parameters and buffers and has the plan's kernels fixed in it; each copy is compiled
once, and a switch replaces one reference. A batch that has begun keeps the callable it began with.

CUDA's kernels are traced, so that casts and scales are fused with what is around them. Kernels that look at
values, hold a lock or only emulate are called as they are.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from wattbit.errors import ModelError, PlanError
from wattbit.execution.discovery import find_layers, foldable
from wattbit.execution.kernels import Kernel, PackedKernel
from wattbit.execution.layer_graph import structure_of
from wattbit.execution.layer_uses import watch_uses
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, call_model
from wattbit.plan import PrecisionPlan

_OPAQUE = ("cuda tf32",)
"""CUDA kernels that are not traced: this one flips a switch of the process under a lock."""


class CompiledPlans:
    """The plans of a calibrated model, each compiled.

    Compiling happens here, by running ``example`` once under each plan. A batch of another size may compile
    again, once for all sizes. The model's parameters must not change afterwards, and it may be detached.

    Args:
        model: The switchable model, calibrated.
        plans: The plans to build; the reference plan is added, and is in force first.
        example: A real batch, of the size that will be served.
        backend: torch's name of a compiler backend.

    Raises:
        PlanError: If a plan is for another model.
        PrecisionError: If a plan uses a precision that is not on offer.
        ModelError: If the model was not calibrated, or its copy is built from other layers than the model.
    """

    def __init__(
        self,
        model: SwitchableModel,
        plans: Iterable[PrecisionPlan],
        example: Inputs,
        *,
        backend: str = "inductor",
    ) -> None:
        self._callables: dict[PrecisionPlan, Callable[..., Any]] = {}
        for plan in dict.fromkeys([model.reference_plan, *plans]):
            compiled = torch.compile(fixed_copy(model, plan, example), backend=backend, **_isolation())
            _run(compiled, example)
            self._callables[plan] = compiled
        self._structure = structure_of(example)
        self._reference = self._callables[model.reference_plan]
        self._active = model.reference_plan, self._reference

    @property
    def plans(self) -> tuple[PrecisionPlan, ...]:
        """The plans that were built, the reference plan first."""
        return tuple(self._callables)

    @property
    def active_plan(self) -> PrecisionPlan:
        """The plan that the next batch runs under."""
        return self._active[0]

    def switch(self, plan: PrecisionPlan) -> None:
        """Run every batch that begins from now on under ``plan``.

        Raises:
            PlanError: If it was not built.
        """
        self._active = plan, self._find(plan)

    def run(self, batch: Inputs, plan: PrecisionPlan | None = None) -> Any:
        """Run one batch under ``plan`` (None: the active plan) and return what the model returns.

        A batch with other arguments than the example may take another path, and runs at the reference.

        Raises:
            PlanError: If the plan was not built.
        """
        run = self._active[1] if plan is None else self._find(plan)
        return _run(run if structure_of(batch) == self._structure else self._reference, batch)

    def _find(self, plan: PrecisionPlan) -> Callable[..., Any]:
        if plan not in self._callables:
            raise PlanError(
                f"plan {plan.plan_id} was not compiled, {len(self._callables)} others were; "
                "give CompiledPlans every plan that it will serve"
            )
        return self._callables[plan]


def fixed_copy(model: SwitchableModel, plan: PrecisionPlan, example: Inputs) -> nn.Module:
    """A copy of the model that always runs under ``plan`` and shares the model's parameters and buffers.

    Args:
        model: The switchable model, calibrated.
        plan: What the copy runs.
        example: A small batch, to find the copy's layers with.

    Raises:
        PlanError: If the plan is for another model.
        PrecisionError: If it uses a precision that is not on offer.
        ModelError: If the model was not calibrated, or the example reaches other layers than the model's own.
    """
    kernels = model.prepare(plan)
    shared: dict[int, Any] = {
        id(tensor): tensor for tensor in chain(model.model.parameters(), model.model.buffers())
    }
    fixed: nn.Module = copy.deepcopy(model.model, shared).eval()
    found = find_layers(fixed, example)
    found = foldable(fixed, example, found, watch_uses(fixed, example))
    names = tuple(layer.shape.name for layer in found)
    folds = tuple(layer.batch_norm is not None for layer in found)
    if (names, folds) != (model.layer_names, model.folds_batch_norm):
        raise ModelError(
            f"the example reaches {len(names)} layers and {sum(folds)} foldable BatchNorms, the model has "
            f"{len(model.layer_names)} and {sum(model.folds_batch_norm)}; give an example like the one that "
            "the model was attached with"
        )
    for layer, kernel in zip(found, kernels, strict=True):
        if kernel is not None:
            layer.module.forward = traceable(kernel)
            if layer.batch_norm is not None:
                layer.batch_norm.forward = _unchanged  # type: ignore[method-assign]
    return fixed


def traceable(kernel: PackedKernel) -> Kernel:
    """What a compiler may trace of a kernel."""
    if kernel.native is not None and kernel.native.startswith("cuda ") and kernel.native not in _OPAQUE:
        return kernel.run
    opaque: Kernel = torch.compiler.disable(kernel.run)  # type: ignore[no-untyped-call]
    return opaque


def _isolation() -> dict[str, Any]:
    """Have torch count each copy by itself: they share code, of which it compiles a few versions only."""
    parameters = inspect.signature(torch.compile).parameters
    return {"isolate_recompiles": True} if "isolate_recompiles" in parameters else {}


@torch.inference_mode()
def _run(run: Callable[..., Any], batch: Inputs) -> Any:
    return call_model(run, batch)


def _unchanged(input: Tensor) -> Tensor:  # noqa: A002 - the name that a module's forward has
    return input
