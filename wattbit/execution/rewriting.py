"""The kernels of a model's plans, in which layers run as one while nobody reads what lies between them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.modules import module as modules

from wattbit.calibration import Calibration
from wattbit.execution.discovery import FoundLayer
from wattbit.execution.int8_chaining import Int8Chain
from wattbit.execution.layer_uses import hooks_of
from wattbit.execution.packing import Kernels, PackedLayers
from wattbit.execution.weights_watch import WeightsWatch
from wattbit.plan import PrecisionPlan
from wattbit.precision import Precision

_log = logging.getLogger(__name__)


class RewrittenLayers:
    """Layers with BatchNorms folded in and 8-bit codes passed between them, and the same layers apart.

    Args:
        found: The layers, in execution order.
        chains: Those of them that pass codes.
        precisions: The precisions on offer.
        native: Use native kernels where the device has them.
        weights: Watches the weights that the layers are packed from.
    """

    def __init__(
        self,
        found: Sequence[FoundLayer],
        chains: Sequence[Int8Chain],
        precisions: Sequence[Precision],
        *,
        native: bool,
        weights: WeightsWatch,
    ) -> None:
        self._found = found
        self._chains = chains
        self._precisions = precisions
        self._native = native
        self._weights = weights
        self.packed = PackedLayers(found, precisions, native=native, chains=chains)
        self._apart: PackedLayers | None = None
        self._together = True
        self._hooks = self._watched_hooks()
        self._lock = threading.RLock()

    @property
    def between(self) -> set[nn.Module]:
        """The BatchNorms and ReLUs that kernels apply."""
        return {m for m in (*(f.batch_norm for f in self._found), *(c.relu for c in self._chains)) if m}

    def kernels(self, plan: PrecisionPlan, *, apart: bool = False) -> Kernels:
        """The kernels of ``plan``; raises as `PackedLayers.kernels`.

        Args:
            plan: The plan.
            apart: Have each layer run by itself, as where a hook would see what lies between.
        """
        if self._hooks and (apart or not self._together or any(self._hooks)):
            return self._packed_apart().kernels(plan)
        return self.packed.kernels(plan)

    def part(self) -> None:
        """Have each layer run by itself from now on."""
        if self._together:
            self._together = False
            _log.warning("something reads what lies between layers that ran as one; each runs by itself now")

    def load(self, calibration: Calibration) -> None:
        """As `PackedLayers.load`."""
        with self._lock:
            self.packed.load(calibration)
            if self._apart is not None:
                self._apart.load(calibration)

    def drop(self) -> None:
        """Free what is packed."""
        self.packed.drop()
        self._apart = None

    def _packed_apart(self) -> PackedLayers:
        with self._lock:
            if self._apart is None:
                self._weights.require_unchanged()
                found = [replace(layer, batch_norm=None) for layer in self._found]
                apart = PackedLayers(found, self._precisions, native=self._native)
                if self.packed.calibration:
                    apart.load(self.packed.calibration)
                self._apart = apart
            return self._apart

    def _watched_hooks(self) -> tuple[Mapping[int, Any], ...]:
        """The hooks, now none, that would see what lies between layers; () if no layers run as one."""
        hooks: list[Mapping[int, Any]] = []
        for layer in self._found:
            hooks += [] if layer.batch_norm is None else [layer.module._forward_hooks]
        for chain in self._chains:
            hooks += [self._found[chain.producer].module._forward_hooks]
            hooks += hooks_of(self._found[chain.consumer].module)
        for module in self.between:
            hooks += hooks_of(module)
        # Those that every module of the process has.
        return (*hooks, modules._global_forward_hooks, modules._global_forward_pre_hooks) if hooks else ()
