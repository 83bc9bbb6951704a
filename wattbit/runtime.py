"""The runtime: a model that runs certified plans, watches itself, and falls back to the reference."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from wattbit.audit import AuditLog
from wattbit.batches import Inputs, logits_of, num_samples, select
from wattbit.calibration import calibration_from_json
from wattbit.controller import Decision, PrecisionController
from wattbit.errors import BundleError, GuardrailError
from wattbit.fingerprint import model_fingerprint
from wattbit.layers import SwitchableModel
from wattbit.monitor import EProcess
from wattbit.plan import PrecisionPlan


@dataclass(frozen=True, slots=True)
class RuntimeCounters:
    """What a runtime has done so far.

    Attributes:
        samples: Samples answered.
        reruns: Batches run again at the reference because the output was not finite.
        shadow_samples: Samples also run at the reference to watch for drift.
        disagreements: Shadow samples whose predictions differed.
        rollbacks: Times the runtime fell back to the reference.
        energy_saved_j: Energy saved against the reference, shadow runs and re-runs paid for; the provenance is
            the bundle's.
    """

    samples: int = 0
    reruns: int = 0
    shadow_samples: int = 0
    disagreements: int = 0
    rollbacks: int = 0
    energy_saved_j: float = 0.0


class PrecisionRuntime:
    """Wraps a model: the same call, fewer joules, the reference whenever in doubt.

    Args:
        controller: The controller.
        model: The model the bundle was made for; detached again by `close`.
        tolerance_pp: The largest drop the caller accepts.
        example: A small batch to attach with; None: the first batch that is run.
        shadow_share: Share of batches that are also run at the reference.
        rollback_limit_pp: Largest rate of disagreement with the reference that is tolerated, percentage points.
        alpha: Level of the drift alarm: its false-alarm probability over the whole life of the runtime.
        audit_path: File of the audit log; None keeps none.

    Raises:
        BundleError: If the model is not the one the bundle was made for.
        GuardrailError: If a setting makes no sense.
    """

    def __init__(
        self,
        controller: PrecisionController,
        model: nn.Module,
        *,
        tolerance_pp: float = 1.0,
        example: Inputs | None = None,
        shadow_share: float = 0.0,
        rollback_limit_pp: float = 0.7,
        alpha: float = 0.01,
        audit_path: Path | str | None = None,
    ) -> None:
        if not 0.0 <= shadow_share <= 1.0:
            raise GuardrailError(f"shadow_share is {shadow_share}, must be from 0 to 1; 0.01 runs 1 batch in 100")
        expected = controller.bundle.model_fingerprint
        found = model_fingerprint(model)
        if found != expected:
            raise BundleError(
                f"the model has fingerprint {found[:12]}…, the bundle is for {expected[:12]}…; "
                "load the weights it was certified with, or certify this model"
            )
        self._controller = controller
        self._model = model
        self._decision: Decision = controller.decide(tolerance_pp)
        self._shadow_every = round(1 / shadow_share) if shadow_share else 0
        self._drift = EProcess(rollback_limit_pp / 100.0)
        self._alpha = alpha
        self._audit = None if audit_path is None else AuditLog(Path(audit_path))
        self._lock = threading.Lock()
        self._batches = 0
        self._counters = RuntimeCounters()
        self._switchable: SwitchableModel | None = None
        self._rolled_back = False
        if example is not None:
            self._attach(example)

    @classmethod
    def load(cls, folder: Path | str, model: nn.Module, **settings: Any) -> PrecisionRuntime:
        """Load the bundle in ``folder`` for ``model``; ``settings`` are the constructor's.

        Raises:
            BundleError: If the bundle is missing, damaged, or for another model.
        """
        return cls(PrecisionController.load(folder), model, **settings)

    @property
    def plan(self) -> PrecisionPlan:
        """The plan in force."""
        return self._controller.reference_plan if self._rolled_back else self._decision.plan

    @property
    def decision(self) -> Decision:
        """What the controller decided at load."""
        return self._decision

    @property
    def counters(self) -> RuntimeCounters:
        """What the runtime has done so far."""
        return self._counters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one batch: the same call as the model's, the same kind of output."""
        batch: Inputs = kwargs or (args[0] if len(args) == 1 else args)
        switchable = self._switchable or self._attach(select(batch, slice(0, 2)))
        plan = self.plan
        output = switchable.run(batch, plan)
        if plan == self._controller.reference_plan:
            self._count(batch, plan)
            return output
        if not bool(torch.isfinite(logits_of(output)).all()):
            output = switchable.run(batch, self._controller.reference_plan)
            self._count(batch, plan, reruns=1)
            self._log("re-run", reason="output not finite", plan_id=plan.plan_id, samples=num_samples(batch))
            return output
        return self._shadow(switchable, batch, plan, output)

    def rollback(self, reason: str) -> None:
        """Run the reference from now on, until `restore`."""
        with self._lock:
            if self._rolled_back:
                return
            self._rolled_back = True
            self._counters = _add(self._counters, rollbacks=1)
        self._log("rollback", reason=reason, plan_id=self._decision.plan.plan_id)

    def restore(self) -> None:
        """Run the certified plan again after a rollback, with fresh evidence."""
        with self._lock:
            self._rolled_back = False
            self._drift = EProcess(self._drift.limit)
        self._log("switch", reason="restored by the operator", plan_id=self._decision.plan.plan_id)

    def close(self) -> None:
        """Log the energy saved and give the model back as it was."""
        if self._switchable is not None:
            self._log(
                "energy",
                energy_saved_j=self._counters.energy_saved_j,
                provenance=self._controller.bundle.profile.provenance,
                samples=self._counters.samples,
            )
            self._switchable.detach()
            self._switchable = None
        if self._audit is not None:
            self._audit.close()
            self._audit = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside -----------------------------------------------------------------------------------------

    def _attach(self, example: Inputs) -> SwitchableModel:
        with self._lock:
            if self._switchable is not None:
                return self._switchable
            profile = self._controller.bundle.profile
            switchable = SwitchableModel(self._model, example, profile.precisions)
            if switchable.layer_names != profile.layer_names:
                switchable.detach()
                raise BundleError(
                    f"the model runs {len(switchable.layer_names)} switchable layers in another order or under other "
                    f"names than the {len(profile.layer_names)} in the bundle; certify this model"
                )
            switchable.load_calibration(calibration_from_json(self._controller.bundle.calibration_json))
            switchable.prepare(self._decision.plan)
            self._switchable = switchable
        self._log("load", reason=self._decision.reason, plan_id=self._decision.plan.plan_id)
        return switchable

    @torch.inference_mode()
    def _shadow(self, switchable: SwitchableModel, batch: Inputs, plan: PrecisionPlan, output: Any) -> Any:
        with self._lock:
            due = self._shadow_every and self._batches % self._shadow_every == 0
            self._batches += 1
        if not due:
            self._count(batch, plan)
            return output
        expected = switchable.run(batch, self._controller.reference_plan)
        differs = logits_of(output).argmax(1) != logits_of(expected).argmax(1)
        self._count(batch, plan, shadow=differs)
        with self._lock:
            for value in differs.tolist():
                self._drift.update(float(value))
            alarm = self._drift.alarm(self._alpha)
        if alarm:
            self.rollback(f"disagreement with the reference is above {100 * self._drift.limit:g} pp")
        # The reference's answer is there and better; return it.
        return expected

    def _count(self, batch: Inputs, plan: PrecisionPlan, *, reruns: int = 0, shadow: Tensor | None = None) -> None:
        profile = self._controller.bundle.profile
        samples = num_samples(batch)
        saved_j = (profile.reference_energy_j - profile.plan_energy_j(plan)) * samples
        if reruns or shadow is not None:
            saved_j -= profile.reference_energy_j * samples
        with self._lock:
            self._counters = _add(
                self._counters,
                samples=samples,
                reruns=reruns,
                shadow_samples=0 if shadow is None else samples,
                disagreements=0 if shadow is None else int(shadow.sum()),
                energy_saved_j=saved_j,
            )

    def _log(self, event: str, **payload: Any) -> None:
        if self._audit is not None:
            self._audit.append(event, payload)


def _add(counters: RuntimeCounters, **more: float) -> RuntimeCounters:
    now = {name: getattr(counters, name) for name in RuntimeCounters.__slots__}
    return RuntimeCounters(**{name: value + more.get(name, 0) for name, value in now.items()})
