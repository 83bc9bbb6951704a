"""The runtime: a model that runs certified plans, watches itself, and falls back to the reference."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from wattbit.audit.log import AuditLog
from wattbit.errors import AuditError, ModelError, one_line
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, call_model, inputs_of_call, logits_of, num_samples
from wattbit.plan import PrecisionPlan
from wattbit.serving.attach import attach, layer_without_kernel, require_model
from wattbit.serving.controller import Decision, PrecisionController
from wattbit.serving.runtime_stats import RuntimeStats
from wattbit.serving.shadow import ShadowWatch, disagreement

__all__ = ["PrecisionRuntime", "RuntimeStats"]

_log = logging.getLogger(__name__)


class PrecisionRuntime:
    """Wraps a model: the same call, fewer joules, the reference whenever in doubt.

    Several threads may call it. If running the plan, the monitor or the audit log fails, the batch still gets
    an answer, and the reference runs from then on.

    Args:
        controller: The controller.
        model: The model the bundle was made for; given back as it was by `close`.
        tolerance_pp: The largest drop the caller accepts.
        example: A small batch to attach with; None: the first batch that is run.
        shadow_share: Share of batches that are also run at the reference.
        rollback_limit_pp: Largest rate of disagreement with the reference tolerated, percentage points.
        alpha: Level of the drift alarm: its false-alarm probability over the whole life of the runtime.
        audit_path: File of the audit log; None keeps none.

    Raises:
        BundleError: If the model is not the one the bundle was made for.
        GuardrailError: If a setting makes no sense.
        AuditError: If the audit log is damaged, or open elsewhere.
        OutputError: If the audit log cannot be written.
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
        self._watch = ShadowWatch(shadow_share, rollback_limit_pp, alpha)
        require_model(controller.bundle, model)
        self._controller = controller
        self._model = model
        self._reference = controller.reference_plan
        self._reference_j = controller.bundle.profile.reference_energy_j
        self._decision: Decision = controller.decide(tolerance_pp)
        # Re-entrant, so that a signal handler that closes cannot wait for its own thread.
        self._lock = threading.RLock()
        self._stats = RuntimeStats()
        self._switchable: SwitchableModel | None = None
        self._rolled_back = self._closed = self._audit_lost = False
        self._audit = None if audit_path is None else AuditLog(Path(audit_path))
        if example is not None:
            try:
                self._attach(example)
            except BaseException:
                self.close()
                raise

    @classmethod
    def load(
        cls, folder: Path | str, model: nn.Module, *, public_key: Any = None, **settings: Any
    ) -> PrecisionRuntime:
        """Load the bundle in ``folder`` for ``model``; ``settings`` are the constructor's.

        Args:
            folder: The bundle's folder.
            model: The model.
            public_key: The Ed25519 public key that the bundle must be signed for; None: anybody's will do.
            **settings: The constructor's.

        Raises:
            BundleError: If the bundle is missing, damaged, not signed for the key, or for another model.
        """
        return cls(PrecisionController.load(folder, public_key=public_key), model, **settings)

    @property
    def plan(self) -> PrecisionPlan:
        """The plan in force."""
        return self._reference if self._rolled_back else self._decision.plan

    @property
    def decision(self) -> Decision:
        """What the controller decided at load."""
        return self._decision

    @property
    def stats(self) -> RuntimeStats:
        """What the runtime has done so far."""
        return self._stats

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one batch: the same call as the model's, the same kind of output."""
        batch = inputs_of_call(self._model, args, kwargs)
        switchable = self._switchable or self._attach(batch)
        if switchable is None:
            return call_model(self._model, batch)
        plan = self.plan
        if plan == self._reference:
            output = switchable.run(batch, plan)
            self._count(batch)
            return output
        try:
            output = switchable.run(batch, plan)
            finite = bool(torch.isfinite(logits_of(output)).all())
        except Exception as error:
            # If the input is at fault, the reference raises too, and the plan is not to blame.
            output = switchable.run(batch, self._reference)
            self.rollback(f"the plan failed: {one_line(error)}")
            self._count(batch, plan, reruns=1)
            return output
        if not finite:
            output = switchable.run(batch, self._reference)
            self._count(batch, plan, reruns=1)
            self._write(
                "re-run", reason="output not finite", plan_id=plan.plan_id, samples=num_samples(batch)
            )
            return output
        return self._shadowed(switchable, batch, plan, output)

    def rollback(self, reason: str) -> None:
        """Run the reference from now on, until `restore`."""
        with self._lock:
            if self._rolled_back:
                return
            self._rolled_back = True
            self._add(RuntimeStats(rollbacks=1))
        _log.warning("rolled back to the reference: %s", reason)
        self._write("rollback", reason=reason, **self._change())

    def restore(self) -> None:
        """Run the certified plan again after a rollback, with fresh evidence.

        Raises:
            AuditError: If the audit log failed: plans do not run unlogged where a log was asked for.
        """
        if not self._rolled_back:
            return
        self._write("switch", reason="restored by the operator", **self._change())
        with self._lock:
            if self._audit_lost:
                raise AuditError("the audit log failed, so the reference stays; load the runtime again")
            self._watch.reset()
            self._rolled_back = False

    def close(self) -> None:
        """Wait for batches under way, give the model back as it was, and log the energy saved.

        Raises:
            ModelError: If it is called from inside a batch.
            OutputError: If the end of the audit log cannot be forced to disk.
        """
        with self._lock:
            switchable, audit = self._switchable, self._audit
            if self._closed:
                return
            self._closed = True
        if switchable is not None:
            try:
                switchable.detach()
            except ModelError:
                self._closed = False
                raise
            self._write(
                "energy",
                energy_saved_j=self._stats.energy_saved_j,
                provenance=self._controller.bundle.profile.provenance,
                samples=self._stats.samples,
            )
        self._switchable = self._audit = None
        if audit is not None:
            audit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- inside -----------------------------------------------------------------------------------------

    def _attach(self, example: Inputs) -> SwitchableModel | None:
        """Attach the model; None if ``example`` is empty, which shows no layers."""
        with self._lock:
            if self._closed:
                raise ModelError("the runtime is closed and runs no batch any more; load it again")
            if self._switchable is not None or not num_samples(example):
                return self._switchable
            bundle, plan = self._controller.bundle, self._decision.plan
            switchable = attach(bundle, self._model, example, plan)
            # Logged and checked before any thread can run the plan.
            self._write("load", reason=self._decision.reason, **self._change())
            lacking = layer_without_kernel(bundle, switchable, plan)
            if lacking is not None:
                self.rollback(
                    f"layer {lacking!r} has no native kernel here, so its measured energy does not hold"
                )
            self._switchable = switchable
        return switchable

    def _shadowed(self, switchable: SwitchableModel, batch: Inputs, plan: PrecisionPlan, output: Any) -> Any:
        """The answer to a batch; every so often the reference's, to see whether the plan agrees with it."""
        try:
            if not self._watch.due():
                self._count(batch, plan)
                return output
            expected = switchable.run(batch, self._reference)
            differs = disagreement(output, expected)
            alarm = self._watch.observe(differs)
        except Exception as error:
            self._count(batch, plan)
            self.rollback(f"the monitor failed: {one_line(error)}")
            return output
        self._count(batch, plan, shadow=differs)
        if alarm:
            self.rollback(f"disagreement with the reference is above {self._watch.limit_pp:g} pp")
        # The reference's answer is there and better; return it.
        return expected

    def _count(
        self,
        batch: Inputs,
        plan: PrecisionPlan | None = None,
        *,
        reruns: int = 0,
        shadow: list[bool] | None = None,
    ) -> None:
        """Count a batch that ran under ``plan`` (None: at the reference), and at the reference again."""
        samples = num_samples(batch)
        certified = self._decision.certified
        saved_j = 0.0 if plan is None or certified is None else self._reference_j - certified.energy_j
        if reruns or shadow is not None:
            saved_j -= self._reference_j
        self._add(
            RuntimeStats(
                samples=samples,
                reruns=reruns,
                shadow_samples=0 if shadow is None else samples,
                disagreements=0 if shadow is None else sum(shadow),
                energy_saved_j=saved_j * samples,
            )
        )

    def _add(self, more: RuntimeStats) -> None:
        with self._lock:
            self._stats = self._stats.plus(more)

    def _change(self) -> dict[str, Any]:
        """What an audit record says about the plan that comes or goes."""
        plan, certified = self._decision.plan, self._decision.certified
        record: dict[str, Any] = {
            "plan_id": plan.plan_id,
            "layers_changed": list(plan.changed_layers(self._reference)),
        }
        if certified is not None:
            record |= {
                "tolerance_pp": certified.tolerance_pp,
                "drop_pp": certified.drop_pp,
                "saving": certified.saving,
                "provenance": certified.provenance,
            }
        return record

    def _write(self, event: str, **payload: Any) -> None:
        """Append to the audit log; if that fails, inference continues at the reference."""
        audit = self._audit
        if audit is None or self._audit_lost:
            return
        try:
            audit.append(event, payload)
        except Exception as error:
            self._audit_lost = True
            _log.error("audit log lost: %s", one_line(error))
            self.rollback(f"the audit log failed: {one_line(error)}")
