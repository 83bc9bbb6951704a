"""The runtime: a model that runs certified plans, watches itself, and falls back to the reference."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from torch import nn

from wattbit.errors import AuditError, ModelError, WattbitError, one_line
from wattbit.execution.patching import claim, release
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, call_model, inputs_of_call, num_samples
from wattbit.plan import PrecisionPlan
from wattbit.serving.attach import attach, layer_without_kernel, require_model, resident_bytes
from wattbit.serving.controller import Decision, PrecisionController
from wattbit.serving.finiteness import FailureLimit, is_finite, plan_at_fault
from wattbit.serving.runtime_log import RESTORED, RuntimeLog
from wattbit.serving.runtime_stats import RuntimeStats
from wattbit.serving.shadow import ShadowWatch, certified_limit_pp, disagreement

__all__ = ["PrecisionRuntime", "RuntimeStats"]

_log = logging.getLogger(__name__)


class PrecisionRuntime:
    """Wraps a model: the same call, fewer joules, the reference whenever in doubt.

    Several threads may call it. If running the plan, the monitor or the audit log fails, the batch still gets
    an answer, and the reference runs from then on. With an audit log, a rollback outlives the process.

    Args:
        controller: The controller.
        model: The model the bundle was made for; given back as it was by `close`.
        tolerance_pp: The largest drop the caller accepts.
        example: A small batch to attach with; None: the first batch that is run.
        shadow_share: Share of batches that are also run at the reference; what that costs is taken off
            ``stats.energy_saved_j``.
        rollback_limit_pp: Largest rate of disagreement with the reference tolerated, percentage points; None:
            what the certificate leaves room for (`wattbit.serving.shadow.certified_limit_pp`).
        alpha: Level of the drift alarm: its false-alarm probability over the whole life of the runtime.
        shadow_window: Fewest shadowed samples whose mean is one observation of the alarm; more where samples
            that follow each other are alike.
        max_reruns: The plan is rolled back when so many of the last 1,000 batches had an output that is not
            finite where the reference's is.
        audit_path: File of the audit log; None keeps none.

    Raises:
        BundleError: If the model is not the one the bundle was made for.
        ModelError: If another runtime or `SwitchableModel` holds the model.
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
        shadow_share: float = 0.01,
        rollback_limit_pp: float | None = None,
        alpha: float = 0.05,
        shadow_window: int = 32,
        max_reruns: int = 3,
        audit_path: Path | str | None = None,
    ) -> None:
        self._decision: Decision = controller.decide(tolerance_pp)
        if rollback_limit_pp is None:
            rollback_limit_pp = certified_limit_pp(controller.bundle, self._decision.certified)
        self._watch = ShadowWatch(shadow_share, rollback_limit_pp, alpha, shadow_window)
        self._failures = FailureLimit(max_reruns)
        require_model(controller.bundle, model)
        self._controller = controller
        self._model = model
        self._reference = controller.reference_plan
        self._reference_j = controller.bundle.profile.reference_energy_j
        # Re-entrant, so that a signal handler that closes cannot wait for its own thread.
        self._lock = threading.RLock()
        self._stats = RuntimeStats()
        self._switchable: SwitchableModel | None = None
        self._closed = False
        # Dropped without `close`, it must neither keep the model attached nor the log open.
        self._held: list[Callable[[], None]] = []
        self._drop = weakref.finalize(self, _let_go, self._held)
        self._drop.atexit = False
        claim(model, self)
        try:
            self._audit = RuntimeLog(audit_path, self._decision, controller.bundle)
            self._held.append(self._audit.close)
            self._rollback_reason = self._audit.rolled_back
            if example is not None:
                self._attach(example)
        except BaseException:
            release(model, self)
            self._drop()
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
        return self._decision.plan if self._rollback_reason is None else self._reference

    @property
    def rollback_reason(self) -> str | None:
        """Why the reference runs in place of the plan, until `restore`; None if it does not."""
        return self._rollback_reason

    @property
    def decision(self) -> Decision:
        """What the controller decided at load."""
        return self._decision

    @property
    def memory_bytes(self) -> int:
        """How much memory it needs beside the model, at most; known before the model is attached."""
        return resident_bytes(self._controller.bundle, self._decision.plan)

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
            finite = is_finite(output)
        except Exception as error:
            # If the input is at fault, the reference raises too, and the plan is not to blame.
            output = switchable.run(batch, self._reference)
            self.rollback(f"the plan failed: {one_line(error)}")
            self._count(batch, plan, reruns=1)
            return output
        if not finite:
            return self._rerun(switchable, batch, plan, output)
        self._failures.add(False)
        return self._shadowed(switchable, batch, plan, output)

    def rollback(self, reason: str) -> None:
        """Run the reference from now on, until `restore`."""
        with self._lock:
            if self._rollback_reason is not None:
                return
            self._rollback_reason = reason
            self._add(RuntimeStats(rollbacks=1))
        _log.warning("rolled back to the reference: %s", reason)
        self._audit.write_change("rollback", reason)

    def restore(self) -> None:
        """Run the certified plan again after a rollback, with fresh evidence.

        Raises:
            AuditError: If the audit log failed: plans do not run unlogged where a log was asked for.
        """
        if self._rollback_reason is None:
            return
        self._audit.write_change("switch", RESTORED)
        with self._lock:
            if self._audit.lost:
                raise AuditError("the audit log failed, so the reference stays; load the runtime again")
            self._watch.reset()
            self._failures.reset()
            self._rollback_reason = None

    def close(self) -> None:
        """Wait for batches under way, give the model back as it was, and log the energy saved.

        Raises:
            ModelError: If it is called from inside a batch.
            OutputError: If the end of the audit log cannot be forced to disk.
        """
        with self._lock:
            switchable = self._switchable
            if self._closed:
                return
            self._closed = True
        if switchable is not None:
            try:
                switchable.detach()
            except ModelError:
                self._closed = False
                raise
            self._audit.write(
                "energy",
                energy_saved_j=self._stats.energy_saved_j,
                provenance=self._controller.bundle.profile.provenance,
                samples=self._stats.samples,
            )
        self._switchable = None
        release(self._model, self)
        self._drop.detach()
        self._audit.close()

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
            release(self._model, self)
            try:
                switchable = attach(bundle, self._model, example, plan)
            except BaseException:
                claim(self._model, self)
                raise
            self._held.insert(0, switchable.detach)
            # Logged and checked before any thread can run the plan.
            rolled_back = "" if self._rollback_reason is None else f"; rolled back: {self._rollback_reason}"
            self._log_or_roll_back(self._audit.write_change("load", self._decision.reason + rolled_back))
            lacking = layer_without_kernel(bundle, switchable, plan)
            if lacking is not None:
                self.rollback(f"layer {lacking!r} lacks its native kernel: its measured energy does not hold")
            self._switchable = switchable
        return switchable

    def _rerun(self, switchable: SwitchableModel, batch: Inputs, plan: PrecisionPlan, output: Any) -> Any:
        """The reference's answer to a batch that the plan did not answer with finite numbers."""
        expected = switchable.run(batch, self._reference)
        self._count(batch, plan, reruns=1)
        at_fault = plan_at_fault(output, expected)
        reason = "output not finite" if at_fault else "output not finite at the reference either"
        self._log_or_roll_back(
            self._audit.write("re-run", reason=reason, plan_id=plan.plan_id, samples=num_samples(batch))
        )
        if self._failures.add(at_fault):
            self.rollback("the plan's output was not finite too often")
        return expected

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
        self, batch: Inputs, plan: PrecisionPlan | None = None, reruns: int = 0, shadow: Sequence[bool] = ()
    ) -> None:
        """Count a batch that ran under ``plan`` (None: at the reference), and at the reference again."""
        certified = self._decision.certified
        plan_j = self._reference_j if plan is None or certified is None else certified.energy_j
        self._add(RuntimeStats.of_batch(num_samples(batch), self._reference_j, plan_j, reruns, shadow))

    def _add(self, more: RuntimeStats) -> None:
        with self._lock:
            self._stats = self._stats.plus(more)

    def _log_or_roll_back(self, failure: str | None) -> None:
        """If the audit log failed, inference continues at the reference."""
        if failure is not None:
            self.rollback(f"the audit log failed: {failure}")


def _let_go(held: Iterable[Callable[[], None]]) -> None:
    for end in held:
        with suppress(WattbitError):
            end()
