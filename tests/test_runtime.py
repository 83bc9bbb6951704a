"""The runtime: the certified plan while all is well, the reference whenever in doubt, an answer always."""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from wattbit.audit import log as audit
from wattbit.audit.log import AuditLog, verify
from wattbit.errors import AuditError, BundleError, GuardrailError, ModelError, OutputError, WattbitError
from wattbit.execution.kernels import cpu
from wattbit.execution.switchable import SwitchableModel
from wattbit.serving.attach import layer_without_kernel
from wattbit.serving.bundle import ControllerBundle
from wattbit.serving.controller import PrecisionController
from wattbit.serving.runtime import PrecisionRuntime, RuntimeStats
from wattbit.serving.shadow import ShadowWatch, disagreement

TOLERANCE_PP, PRECISION = tiny.DEPLOYED[1]
X = tiny.images(16)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Rollbacks are logged; tests need not print them."""
    caplog.set_level(logging.CRITICAL, logger="wattbit.serving.runtime")


@pytest.fixture
def make(bundle: ControllerBundle, conv_model: nn.Module) -> Iterator[Callable[..., PrecisionRuntime]]:
    """Makes runtimes of the tiny bundle, and closes them."""
    made = []

    def build(**settings: Any) -> PrecisionRuntime:
        settings = {"tolerance_pp": TOLERANCE_PP, **settings}
        made.append(PrecisionRuntime(PrecisionController(bundle), conv_model, **settings))
        return made[-1]

    yield build
    for runtime in made:
        runtime.close()


@pytest.fixture
def reference() -> Tensor:
    """What the unmodified model answers to ``X``."""
    return tiny.conv_model()(X).detach()


@pytest.fixture
def quantized(bundle: ControllerBundle) -> Tensor:
    """What the certified plan answers to ``X``."""
    from wattbit.calibration import calibration_from_json

    with SwitchableModel(tiny.conv_model(), X[:2], bundle.profile.precisions) as model:
        model.load_calibration(calibration_from_json(bundle.calibration_json))
        return model.run(X, bundle.plans[1].plan).detach()


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same(output: Tensor, expected: Tensor) -> bool:
    return torch.equal(output.detach(), expected)


def unpatched(model: nn.Module) -> bool:
    return all("forward" not in module.__dict__ for module in model.modules())


# --- running ----------------------------------------------------------------------------------------------


def test_the_certified_plan_runs(make, quantized: Tensor, reference: Tensor) -> None:
    runtime = make()
    assert set(runtime.plan.values()) == {PRECISION}
    assert same(runtime(X), quantized)
    assert not same(runtime(X), reference)
    assert runtime.decision.certified is not None


def test_a_bundle_is_loaded_and_run_in_two_lines(
    bundle_dir: Path, conv_model: nn.Module, quantized: Tensor
) -> None:
    with PrecisionRuntime.load(bundle_dir, conv_model, tolerance_pp=TOLERANCE_PP) as runtime:
        assert same(runtime(X), quantized)


def test_the_model_itself_and_keywords_are_called_alike(make, quantized: Tensor) -> None:
    runtime = make()
    assert same(runtime(x=X), quantized)
    assert same(runtime(X), quantized)


def test_without_a_fitting_plan_the_reference_runs_bit_for_bit(make, reference: Tensor) -> None:
    runtime = make(tolerance_pp=0.1, shadow_share=1.0)
    assert same(runtime(X), reference)
    assert runtime.plan == runtime.decision.plan
    assert runtime.counters == RuntimeStats(samples=16)


def test_an_output_is_of_the_same_kind_as_the_model_s(make) -> None:
    runtime = make(shadow_share=1.0)
    for _ in range(2):
        output = runtime(X)
        assert not output.is_inference()
        runtime.rollback("a test")
    runtime.restore()
    x = X.clone().requires_grad_()
    runtime.rollback("gradients need the reference")
    runtime(x).sum().backward()
    assert x.grad is not None


def test_batches_of_one_and_of_none_are_answered(make, quantized: Tensor, reference: Tensor) -> None:
    runtime = make()
    assert runtime(X[:0]).shape == (0, tiny.CLASSES)  # shows no layers yet: the plain model answers
    assert unpatched(runtime._model)
    torch.testing.assert_close(runtime(X[:1]).detach(), quantized[:1], atol=1e-4, rtol=1e-4)
    assert runtime(X[:0]).shape == (0, tiny.CLASSES)
    assert runtime.counters.samples == 1


def test_a_call_that_does_not_fit_the_model_raises_what_the_model_raises_and_is_not_the_plan_s_fault(
    make,
) -> None:
    runtime = make()
    runtime(X)
    for bad in (torch.zeros(2, 3, 8, 8), torch.zeros(2)):
        with pytest.raises(RuntimeError):
            runtime(bad)
    with pytest.raises(TypeError):
        runtime(X, colour="blue")
    assert runtime.counters.rollbacks == 0


def test_a_call_without_inputs_is_refused_in_one_line(make) -> None:
    with pytest.raises(ModelError, match="hold no tensor with samples"):
        make()()


def test_an_example_attaches_at_once(make, quantized: Tensor) -> None:
    runtime = make(example=X[:2])
    assert not unpatched(runtime._model)
    assert same(runtime(X), quantized)


def test_saved_energy_is_counted_by_sample(make, bundle: ControllerBundle) -> None:
    runtime = make()
    for size in (16, 5, 1):
        runtime(X[:size])
    saved_j = bundle.profile.reference_energy_j - bundle.plans[1].energy_j
    assert runtime.counters.samples == 22
    assert runtime.counters.energy_saved_j == pytest.approx(22 * saved_j)
    assert saved_j > 0


# --- which model ------------------------------------------------------------------------------------------


def test_another_model_is_refused(bundle: ControllerBundle, conv_model: nn.Module) -> None:
    conv_model.head.bias.data[0] += 1e-3
    with pytest.raises(
        BundleError, match=r"the model has fingerprint .*, the bundle is for .*; load the weights"
    ):
        PrecisionRuntime(PrecisionController(bundle), conv_model)


class Reordered(tiny.ConvNet):
    """The same weights, but not the same computation."""

    def forward(self, x: Tensor) -> Tensor:
        self.head(torch.zeros(1, 16))
        return super().forward(x)


def test_a_model_that_runs_other_layers_is_refused_and_given_back(bundle: ControllerBundle) -> None:
    other = Reordered()
    other.load_state_dict(tiny.conv_model().state_dict())
    runtime = PrecisionRuntime(PrecisionController(bundle), other.train())
    for _ in range(2):
        with pytest.raises(
            BundleError, match="runs 4 switchable layers under other names or in another order"
        ):
            runtime(X)
    assert unpatched(other)
    assert other.training


def test_a_garbled_calibration_is_refused_and_the_model_given_back(
    bundle: ControllerBundle, conv_model: nn.Module, tmp_path: Path
) -> None:
    for text in ("[]", '{"schema": 1, "layers": {}}'):
        controller = PrecisionController(replace(bundle, calibration_json=text))
        with pytest.raises(WattbitError, match="calibration"):
            PrecisionRuntime(controller, conv_model, example=X, audit_path=tmp_path / "audit.jsonl")
        assert unpatched(conv_model)
    AuditLog(tmp_path / "audit.jsonl").close()  # not left open


def test_a_model_without_values_is_refused(bundle: ControllerBundle) -> None:
    with torch.device("meta"):
        empty = tiny.ConvNet()
    with pytest.raises(ModelError, match="holds no values"):
        PrecisionRuntime(PrecisionController(bundle), empty)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shadow_share": 1.5}, "shadow_share is 1.5, must be from 0 to 1"),
        ({"shadow_share": float("nan")}, "shadow_share is nan"),
        ({"rollback_limit_pp": 0.0}, "rollback_limit_pp is 0.0, must be above 0 and below 100"),
        ({"rollback_limit_pp": 100.0}, "rollback_limit_pp is 100.0"),
        ({"alpha": 0.0}, "alpha is 0.0, must be above 0 and below 1"),
        ({"tolerance_pp": -1.0}, "tolerance is -1.0 pp"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_before_anything_runs(make, settings, message: str) -> None:
    with pytest.raises(GuardrailError, match=message):
        make(**settings)


def test_energy_measured_on_a_native_kernel_is_not_claimed_without_it(
    bundle: ControllerBundle, conv_model: nn.Module, monkeypatch: pytest.MonkeyPatch, reference: Tensor
) -> None:
    layers = tuple(
        replace(layer, costs={name: replace(cost, native=True) for name, cost in layer.costs.items()})
        for layer in bundle.profile.layers
    )
    measured = replace(
        bundle,
        profile=replace(bundle.profile, layers=layers, provenance="measured"),
        plans=tuple(replace(plan, provenance="measured") for plan in bundle.plans),
    )
    monkeypatch.setattr(cpu, "has_vnni", lambda: False)
    with PrecisionRuntime(PrecisionController(measured), conv_model, tolerance_pp=TOLERANCE_PP) as runtime:
        assert same(runtime(X), reference)
        assert runtime.counters.rollbacks == 1
        assert runtime.counters.energy_saved_j == 0.0


def test_measured_energy_holds_where_every_layer_has_its_kernel(
    bundle: ControllerBundle, switchable: SwitchableModel
) -> None:
    measured = replace(bundle, profile=replace(bundle.profile, provenance="measured"))
    assert layer_without_kernel(measured, switchable, switchable.reference_plan) is None


# --- giving the model back --------------------------------------------------------------------------------


def test_closing_gives_the_model_back_as_it_was(
    bundle: ControllerBundle, conv_model: nn.Module, reference: Tensor
) -> None:
    state = copy.deepcopy(conv_model.state_dict())
    conv_model.train()
    runtime = PrecisionRuntime(PrecisionController(bundle), conv_model, tolerance_pp=TOLERANCE_PP)
    runtime(X)
    assert not conv_model.training
    runtime.close()
    runtime.close()
    assert conv_model.training
    assert unpatched(conv_model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in conv_model.state_dict().items())
    assert same(conv_model.eval()(X), reference)


def test_a_closed_runtime_does_not_take_the_model_again(make) -> None:
    for runs in (0, 1):
        runtime = make()
        for _ in range(runs):
            runtime(X)
        runtime.close()
        with pytest.raises(
            ModelError, match="the runtime is closed and runs no batch any more; load it again"
        ):
            runtime(X)
        assert unpatched(runtime._model)


def test_closing_from_inside_a_batch_is_refused_and_can_be_done_afterwards(make) -> None:
    runtime = make(example=X[:2])
    handle = runtime._model.dropout.register_forward_hook(lambda *_: runtime.close())
    with pytest.raises(ModelError, match="cannot be detached from inside a batch"):
        runtime(X)
    handle.remove()
    runtime.close()
    assert unpatched(runtime._model)


# --- doubt ------------------------------------------------------------------------------------------------


def broken_kernels(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Let every packed kernel change its result."""
    from wattbit.execution import packing
    from wattbit.execution.kernels import PackedKernel

    pack = packing.pack

    def broken(*args: Any, **settings: Any) -> PackedKernel:
        kernel = pack(*args, **settings)
        return PackedKernel(lambda x: change(kernel.run(x)), kernel.native)

    monkeypatch.setattr(packing, "pack", broken)


def test_an_output_that_is_not_finite_is_run_again_at_the_reference(
    make, monkeypatch: pytest.MonkeyPatch, reference: Tensor, bundle: ControllerBundle, tmp_path: Path
) -> None:
    broken_kernels(monkeypatch, lambda y: y * torch.nan)
    runtime = make(audit_path=tmp_path / "audit.jsonl")
    for _ in range(2):
        assert same(runtime(X), reference)
    counters = runtime.counters
    assert (counters.samples, counters.reruns, counters.rollbacks) == (32, 2, 0)
    assert counters.energy_saved_j == pytest.approx(-32 * bundle.plans[1].energy_j)
    runtime.close()
    reruns = [event for event in events(tmp_path / "audit.jsonl") if event["event"] == "re-run"]
    assert [event["payload"]["samples"] for event in reruns] == [16, 16]


def test_a_nan_in_the_input_is_answered_as_the_model_answers_it(make) -> None:
    x = X.clone()
    x[3, 0, 2, 2] = torch.nan
    output = make()(x).detach()
    expected = tiny.conv_model()(x).detach()
    torch.testing.assert_close(output, expected, equal_nan=True)
    assert output[3].isnan().all()


def test_a_plan_that_fails_is_replaced_by_the_reference(
    make, monkeypatch: pytest.MonkeyPatch, reference: Tensor, tmp_path: Path
) -> None:
    def fail(y: Tensor) -> Tensor:
        raise RuntimeError("kernel lost\nits way")

    broken_kernels(monkeypatch, fail)
    runtime = make(audit_path=tmp_path / "audit.jsonl")
    for _ in range(2):
        assert same(runtime(X), reference)
    assert (runtime.counters.reruns, runtime.counters.rollbacks) == (1, 1)
    assert runtime.plan == runtime._reference
    rollback = events(tmp_path / "audit.jsonl")[-1]
    assert rollback["event"] == "rollback"
    assert rollback["payload"]["reason"] == "the plan failed: RuntimeError: kernel lost its way"


def test_disagreement_in_the_shadow_rolls_back(
    make, monkeypatch: pytest.MonkeyPatch, reference: Tensor, tmp_path: Path
) -> None:
    broken_kernels(monkeypatch, lambda y: y.roll(1, -1))
    runtime = make(shadow_share=1.0, audit_path=tmp_path / "audit.jsonl")
    batches = 0
    while not runtime.counters.rollbacks:
        assert same(runtime(X), reference)  # a shadowed batch gets the better answer
        batches += 1
        assert batches < 50
    counters = runtime.counters
    assert counters.shadow_samples == counters.samples == 16 * batches
    assert counters.disagreements > 0.007 * counters.samples
    assert counters.energy_saved_j < 0
    assert same(runtime(X), reference)
    assert runtime.counters.shadow_samples == counters.shadow_samples
    record = events(tmp_path / "audit.jsonl")[-1]
    assert record["payload"]["reason"] == "disagreement with the reference is above 0.7 pp"
    assert record["payload"]["layers_changed"] == ["stem", "depthwise", "pointwise", "head"]


def test_a_plan_that_agrees_goes_on_running(make, quantized: Tensor, bundle: ControllerBundle) -> None:
    runtime = make(shadow_share=0.25)
    for _ in range(40):
        runtime(X)
    counters = runtime.counters
    assert (counters.shadow_samples, counters.disagreements, counters.rollbacks) == (160, 0, 0)
    saved_j = 40 * 16 * (bundle.profile.reference_energy_j - bundle.plans[1].energy_j)
    shadows_j = 10 * 16 * bundle.profile.reference_energy_j
    assert counters.energy_saved_j == pytest.approx(saved_j - shadows_j)


@pytest.mark.parametrize("failing", ["observe", "due"])
def test_a_monitor_that_fails_leads_to_the_reference(
    make, monkeypatch: pytest.MonkeyPatch, quantized: Tensor, reference: Tensor, failing: str
) -> None:
    runtime = make(shadow_share=1.0)

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("no evidence")

    monkeypatch.setattr(runtime._watch, failing, fail)
    first = runtime(X)
    assert same(first, quantized) or same(first, reference)
    assert runtime.counters.rollbacks == 1
    assert same(runtime(X), reference)
    assert runtime.counters.samples == 32


def test_a_shadow_run_that_fails_leads_to_the_reference_and_the_answer_is_kept(
    make, monkeypatch: pytest.MonkeyPatch, quantized: Tensor
) -> None:
    runtime = make(shadow_share=1.0, example=X[:2])
    run = SwitchableModel.run

    def fails_at_reference(self: SwitchableModel, batch: Any, plan: Any = None) -> Any:
        if plan == runtime._reference:
            raise MemoryError("no room for the shadow")
        return run(self, batch, plan)

    monkeypatch.setattr(SwitchableModel, "run", fails_at_reference)
    assert same(runtime(X), quantized)
    assert runtime.counters.rollbacks == 1


def test_the_operator_rolls_back_and_restores(
    make, quantized: Tensor, reference: Tensor, tmp_path: Path
) -> None:
    runtime = make(audit_path=tmp_path / "audit.jsonl")
    runtime(X)
    runtime.restore()  # nothing to restore, nothing to log
    runtime.rollback("maintenance")
    runtime.rollback("maintenance, again")
    assert same(runtime(X), reference)
    assert runtime.counters.rollbacks == 1
    runtime.restore()
    assert same(runtime(X), quantized)
    runtime.close()
    logged = events(tmp_path / "audit.jsonl")
    assert [event["event"] for event in logged] == ["load", "rollback", "switch", "energy"]
    assert logged[2]["payload"]["reason"] == "restored by the operator"


def test_evidence_is_fresh_after_a_restoration(make, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = make(shadow_share=1.0)
    runtime(X)
    runtime._watch.observe([True] * 100)
    runtime.rollback("a test")
    runtime.restore()
    runtime(X)
    assert runtime.counters.rollbacks == 1


def test_rollbacks_are_logged_for_people(make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="wattbit.serving.runtime")
    make().rollback("a test")
    assert caplog.messages == ["rolled back to the reference: a test"]


# --- audit log --------------------------------------------------------------------------------------------


def test_the_audit_log_tells_the_story_and_verifies(make, bundle: ControllerBundle, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    runtime = make(audit_path=str(path))
    for _ in range(3):
        runtime(X)
    saved_j = runtime.counters.energy_saved_j
    runtime.close()
    assert verify(path).ok
    load, energy = events(path)
    assert (load["event"], energy["event"]) == ("load", "energy")
    assert load["payload"] == {
        "reason": "cheapest plan certified at 10 pp",
        "plan_id": bundle.plans[1].plan.plan_id,
        "layers_changed": list(bundle.profile.layer_names),
        "tolerance_pp": 10.0,
        "drop_pp": bundle.plans[1].drop_pp,
        "saving": bundle.plans[1].saving,
        "provenance": "modelled",
    }
    assert energy["payload"] == {"energy_saved_j": saved_j, "provenance": "modelled", "samples": 48}


def test_a_log_that_goes_on_is_verified_as_one(make, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(2):
        runtime = make(audit_path=path)
        runtime(X)
        runtime.close()
    assert [event["seq"] for event in events(path)] == [1, 2, 3, 4]
    assert verify(path).ok


def test_a_log_that_cannot_be_opened_is_found_at_the_start(make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a log\n", encoding="utf-8")
    with pytest.raises(AuditError):
        make(audit_path=tmp_path / "file")
    with pytest.raises(OutputError):
        make(audit_path=tmp_path / "file" / "audit.jsonl")


def break_log(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let every append fail, from the n-th on."""
    append, appended = AuditLog.append, []

    def failing(self: AuditLog, event: str, payload: Any) -> Any:
        appended.append(event)
        if len(appended) > after:
            raise OutputError("cannot write audit log: No space left on device; free space")
        return append(self, event, payload)

    monkeypatch.setattr(AuditLog, "append", failing)


def test_a_log_that_fails_at_load_keeps_the_plan_from_running(
    make, monkeypatch: pytest.MonkeyPatch, reference: Tensor, tmp_path: Path
) -> None:
    runtime = make(audit_path=tmp_path / "audit.jsonl")
    break_log(monkeypatch, 0)
    for _ in range(3):
        assert same(runtime(X), reference)
    assert (runtime.counters.samples, runtime.counters.rollbacks) == (48, 1)


def test_a_log_that_fails_later_does_not_break_inference_but_leads_to_the_reference(
    make, monkeypatch: pytest.MonkeyPatch, reference: Tensor, tmp_path: Path
) -> None:
    runtime = make(audit_path=tmp_path / "audit.jsonl")
    break_log(monkeypatch, 1)
    runtime(X)
    broken = runtime._switchable
    assert broken is not None
    run = broken.run
    monkeypatch.setattr(
        broken, "run", lambda batch, plan: run(batch, plan) * (1 if plan == runtime._reference else torch.nan)
    )
    assert same(runtime(X), reference)  # run again, which cannot be logged
    assert runtime.counters.rollbacks == 1
    assert same(runtime(X), reference)
    with pytest.raises(
        AuditError, match="the audit log failed, so the reference stays; load the runtime again"
    ):
        runtime.restore()
    assert same(runtime(X), reference)
    runtime.close()
    assert unpatched(runtime._model)
    assert verify(tmp_path / "audit.jsonl").ok


def test_restoring_is_refused_if_that_itself_cannot_be_logged(
    make, monkeypatch: pytest.MonkeyPatch, reference: Tensor, tmp_path: Path
) -> None:
    runtime = make(audit_path=tmp_path / "audit.jsonl")
    runtime(X)
    runtime.rollback("a test")
    break_log(monkeypatch, 0)
    with pytest.raises(AuditError, match="the reference stays"):
        runtime.restore()
    assert same(runtime(X), reference)


def test_a_log_that_cannot_be_closed_says_so_after_the_model_is_back(
    make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = make(audit_path=tmp_path / "audit.jsonl")
    runtime(X)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(audit.os, "fsync", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        runtime.close()
    assert unpatched(runtime._model)


# --- threads ----------------------------------------------------------------------------------------------


def test_threads_that_come_together_attach_once_and_get_right_answers(
    make, quantized: Tensor, tmp_path: Path
) -> None:
    runtime = make(audit_path=tmp_path / "audit.jsonl")
    barrier = threading.Barrier(6)

    def serve(index: int) -> bool:
        barrier.wait()
        with torch.inference_mode():
            return all(same(runtime(X), quantized) for _ in range(10))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(serve, range(6)))
    assert runtime.counters.samples == 6 * 10 * 16
    runtime.close()
    assert [event["event"] for event in events(tmp_path / "audit.jsonl")] == ["load", "energy"]


def test_rollbacks_restorations_and_closing_under_load_never_give_a_wrong_answer(
    make, quantized: Tensor, reference: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    runtime = make(shadow_share=0.2, audit_path=path, example=X[:2])
    answers: list[Tensor] = []
    refused: list[str] = []

    def serve() -> None:
        with torch.inference_mode():
            while True:
                try:
                    answers.append(runtime(X))
                except ModelError as error:
                    refused.append(str(error))
                    return

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20.0
    while len(answers) < 60 and time.monotonic() < deadline:
        runtime.rollback("a test")
        time.sleep(1e-3)
        runtime.restore()
        time.sleep(1e-3)
    runtime.close()
    for thread in threads:
        thread.join(20.0)
    assert len(refused) == 4
    assert all(same(answer, quantized) or same(answer, reference) for answer in answers)
    assert runtime.counters.samples == 16 * len(answers)
    assert unpatched(runtime._model)
    assert verify(path).ok


# --- shadow watch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.7, 1.0])
def test_the_share_of_shadowed_batches_is_the_one_asked_for(share: float) -> None:
    watch = ShadowWatch(share, 0.7, 0.01)
    due = [watch.due() for _ in range(1000)]
    assert sum(due) == round(1000 * share)
    assert due[0] == (share > 0)
    if share == 0.5:
        assert due == [True, False] * 500


def test_the_alarm_needs_evidence_and_forgets_it_on_reset() -> None:
    watch = ShadowWatch(1.0, 0.7, 0.01)
    assert watch.limit_pp == 0.7
    assert not watch.observe([False] * 500)
    assert not watch.observe([True])
    assert watch.observe([True] * 40)
    assert watch.observe([False] * 10), "an alarm is not taken back by what comes later"
    watch.reset()
    assert not watch.observe([False])


def test_disagreement_is_told_for_each_sample() -> None:
    a = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    assert disagreement(a, a) == [False, False, False]
    assert disagreement(a, a.flip(1)) == [True, True, True]
    assert disagreement((a, None), {"logits": torch.tensor([[1.0, 2.0], [1.0, 3.0], [0.0, 1.0]])}) == [
        False,
        True,
        False,
    ]
    assert disagreement(a[:0], a[:0]) == []


def test_one_position_that_differs_makes_a_sample_differ() -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    other = pixels.clone()
    other[1, 2, 0, 0] = 1.0
    assert disagreement(pixels, other) == [False, True]
