"""The certified plan runs while all is well, and every call is answered as the model would."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny
import torch
from attached import unpatched
from runtimes import PRECISION, TOLERANCE_PP, MakeRuntime, X, same
from torch import Tensor

from wattbit.errors import ModelError
from wattbit.serving.bundle import ControllerBundle
from wattbit.serving.controller import PrecisionController
from wattbit.serving.runtime import PrecisionRuntime, RuntimeStats

# --- running ----------------------------------------------------------------------------------------------


def test_the_certified_plan_runs(
    make_runtime: MakeRuntime, quantized_answer: Tensor, reference_answer: Tensor
) -> None:
    runtime = make_runtime()
    assert set(runtime.plan.values()) == {PRECISION}
    assert same(runtime(X), quantized_answer)
    assert not same(runtime(X), reference_answer)
    assert runtime.decision.certified is not None


def test_a_bundle_is_loaded_and_run_in_two_lines(
    bundle_dir: Path, conv_model: tiny.ConvNet, quantized_answer: Tensor
) -> None:
    with PrecisionRuntime.load(bundle_dir, conv_model, tolerance_pp=TOLERANCE_PP) as runtime:
        assert same(runtime(X), quantized_answer)


def test_the_model_itself_and_keywords_are_called_alike(
    make_runtime: MakeRuntime, quantized_answer: Tensor
) -> None:
    runtime = make_runtime()
    assert same(runtime(x=X), quantized_answer)
    assert same(runtime(X), quantized_answer)


def test_without_a_fitting_plan_the_reference_runs_bit_for_bit(
    make_runtime: MakeRuntime, reference_answer: Tensor
) -> None:
    runtime = make_runtime(tolerance_pp=0.1, shadow_share=1.0)
    assert same(runtime(X), reference_answer)
    assert runtime.plan == runtime.decision.plan
    assert runtime.stats == RuntimeStats(samples=16)


def test_an_output_is_of_the_same_kind_as_the_model_s(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(shadow_share=1.0)
    for _ in range(2):
        output = runtime(X)
        assert not output.is_inference()
        runtime.rollback("a test")
    runtime.restore()
    x = X.clone().requires_grad_()
    runtime.rollback("gradients need the reference")
    runtime(x).sum().backward()
    assert x.grad is not None


def test_batches_of_one_and_of_none_are_answered(
    make_runtime: MakeRuntime, conv_model: tiny.ConvNet, quantized_answer: Tensor
) -> None:
    runtime = make_runtime()
    assert runtime(X[:0]).shape == (0, tiny.CLASSES)  # shows no layers yet: the plain model answers
    assert unpatched(conv_model)
    torch.testing.assert_close(runtime(X[:1]).detach(), quantized_answer[:1], atol=1e-4, rtol=1e-4)
    assert runtime(X[:0]).shape == (0, tiny.CLASSES)
    assert runtime.stats.samples == 1


def test_a_call_that_does_not_fit_the_model_raises_what_the_model_raises_and_is_not_the_plan_s_fault(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    runtime(X)
    for bad in (torch.zeros(2, 3, 8, 8), torch.zeros(2)):
        with pytest.raises(RuntimeError):
            runtime(bad)
    with pytest.raises(TypeError):
        runtime(X, colour="blue")
    assert runtime.stats.rollbacks == 0


def test_a_call_without_inputs_is_refused_in_one_line(make_runtime: MakeRuntime) -> None:
    with pytest.raises(ModelError, match="hold no tensor with samples"):
        make_runtime()()


def test_an_example_attaches_at_once(
    make_runtime: MakeRuntime, conv_model: tiny.ConvNet, quantized_answer: Tensor
) -> None:
    runtime = make_runtime(example=X[:2])
    assert not unpatched(conv_model)
    assert same(runtime(X), quantized_answer)


def test_saved_energy_is_counted_by_sample(make_runtime: MakeRuntime, bundle: ControllerBundle) -> None:
    runtime = make_runtime()
    for size in (16, 5, 1):
        runtime(X[:size])
    saved_j = bundle.profile.reference_energy_j - bundle.plans[1].energy_j
    assert runtime.stats.samples == 22
    assert runtime.stats.energy_saved_j == pytest.approx(22 * saved_j)
    assert saved_j > 0


# --- giving the model back --------------------------------------------------------------------------------


def test_closing_gives_the_model_back_as_it_was(
    bundle: ControllerBundle, conv_model: tiny.ConvNet, reference_answer: Tensor
) -> None:
    state = copy.deepcopy(conv_model.state_dict())
    conv_model.train()
    runtime = PrecisionRuntime(PrecisionController(bundle), conv_model, tolerance_pp=TOLERANCE_PP)
    runtime(X)
    assert not any(module.training for module in conv_model.modules())
    runtime.close()
    runtime.close()
    assert conv_model.training
    assert unpatched(conv_model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in conv_model.state_dict().items())
    assert same(conv_model.eval()(X), reference_answer)


def test_a_closed_runtime_does_not_take_the_model_again(
    make_runtime: MakeRuntime, conv_model: tiny.ConvNet
) -> None:
    for runs in (0, 1):
        runtime = make_runtime()
        for _ in range(runs):
            runtime(X)
        runtime.close()
        with pytest.raises(
            ModelError, match="the runtime is closed and runs no batch any more; load it again"
        ):
            runtime(X)
        assert unpatched(conv_model)


def test_closing_from_inside_a_batch_is_refused_and_can_be_done_afterwards(
    make_runtime: MakeRuntime, conv_model: tiny.ConvNet
) -> None:
    runtime = make_runtime(example=X[:2])
    handle = conv_model.dropout.register_forward_hook(lambda *_: runtime.close())
    with pytest.raises(ModelError, match="cannot be detached from inside a batch"):
        runtime(X)
    handle.remove()
    runtime.close()
    assert unpatched(conv_model)
