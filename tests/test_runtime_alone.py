"""One runtime a model, and it says beforehand what it needs."""

from __future__ import annotations

import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch
from attached import unpatched
from runtimes import TOLERANCE_PP, MakeRuntime, X, same
from torch import Tensor, nn

from wattbit.audit.log import AuditLog
from wattbit.errors import ModelError
from wattbit.execution.patching import claim, release, require_unpatched
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan
from wattbit.serving.bundle import ControllerBundle
from wattbit.serving.controller import PrecisionController
from wattbit.serving.runtime import PrecisionRuntime

TAKEN = "attached already; detach or close what holds it first"


@pytest.mark.parametrize("batches", [0, 1])
def test_a_second_runtime_on_a_model_is_refused_at_once_until_the_first_is_closed(
    make_runtime: MakeRuntime, quantized_answer: Tensor, log_path: Path, batches: int
) -> None:
    runtime = make_runtime()
    for _ in range(batches):
        runtime(X)
    with pytest.raises(ModelError, match=TAKEN):
        make_runtime(audit_path=log_path)
    AuditLog(log_path).close()  # not left open
    assert same(runtime(X), quantized_answer)
    with pytest.raises(ModelError, match=TAKEN):
        make_runtime()
    runtime.close()
    assert same(make_runtime()(X), quantized_answer)


def test_a_switchable_model_and_a_runtime_keep_each_other_out(
    make_runtime: MakeRuntime, conv_model: tiny.ConvNet
) -> None:
    runtime = make_runtime()
    with pytest.raises(ModelError, match=TAKEN):
        SwitchableModel(conv_model, X[:2], ["int8"])
    runtime.close()
    with SwitchableModel(conv_model, X[:2], ["int8"]), pytest.raises(ModelError, match=TAKEN):
        make_runtime()
    make_runtime()(X)


@pytest.mark.parametrize("batches", [0, 1])
def test_a_runtime_that_is_dropped_gives_model_and_log_back(
    make_runtime: MakeRuntime,
    bundle: ControllerBundle,
    conv_model: tiny.ConvNet,
    log_path: Path,
    batches: int,
) -> None:
    runtime = PrecisionRuntime(
        PrecisionController(bundle), conv_model, tolerance_pp=TOLERANCE_PP, audit_path=log_path
    )
    for _ in range(batches):
        runtime(X)
    del runtime
    gc.collect()
    assert unpatched(conv_model)
    make_runtime(audit_path=log_path)(X)


def test_a_constructor_that_fails_leaves_the_model_free(
    make_runtime: MakeRuntime, conv_model: tiny.ConvNet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no log\n", encoding="utf-8")
    with pytest.raises(Exception, match="audit"):
        make_runtime(audit_path=tmp_path / "file")
    with pytest.raises(RuntimeError):
        make_runtime(example=torch.zeros(2, 3, 8, 8))
    assert unpatched(conv_model)
    make_runtime()(X)


def test_parts_and_wholes_of_a_model_are_taken_with_it_and_activations_are_not() -> None:
    relu = nn.ReLU()
    inner = nn.Sequential(nn.Linear(2, 2), relu)
    outer, other = nn.Sequential(inner, nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), relu)

    class Owner:
        pass

    owner = Owner()
    for held, refused in ((inner, outer), (outer, inner)):
        claim(held, owner)
        with pytest.raises(ModelError, match="attached already"):
            require_unpatched(refused)
        require_unpatched(other)
        release(held, owner)
        require_unpatched(refused)
    claim(inner, owner)
    release(inner, Owner())
    with pytest.raises(ModelError, match="attached already"):
        claim(inner, Owner())
    del owner
    gc.collect()
    require_unpatched(inner)


def test_of_many_threads_that_want_a_model_one_gets_it(bundle: ControllerBundle) -> None:
    model, controller, barrier = tiny.conv_model(), PrecisionController(bundle), threading.Barrier(8)

    def build(_: int) -> PrecisionRuntime | None:
        barrier.wait()
        try:
            return PrecisionRuntime(controller, model)
        except ModelError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [runtime for runtime in pool.map(build, range(8)) if runtime]
    assert len(made) == 1
    made[0].close()


def matrices() -> set[int]:
    """Where the 61 x 61 matrices of this process lie."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
    return {tensor.data_ptr() for tensor in found if tensor.shape == (61, 61)}


@pytest.mark.parametrize("name", ["int8_wo", "int4_wo", "int4", "bf16", "mxfp4"])
def test_packed_weights_are_no_larger_than_the_model_s_own(name: str) -> None:
    model = nn.Sequential(nn.Linear(61, 61), nn.Linear(61, 61)).eval()
    x = torch.randn(8, 61)
    with SwitchableModel(model, x[:2], [name], native=False) as switchable:
        switchable.calibrate([x])
        before = matrices()
        switchable.prepare(PrecisionPlan.uniform(switchable.layer_names, name))
        assert len(matrices() - before) == 2


def test_the_memory_needed_is_said_before_the_model_is_attached(
    make_runtime: MakeRuntime, bundle: ControllerBundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="wattbit.serving.attach")
    runtime = make_runtime()
    weights = sum(layer.shape.weight_elements for layer in bundle.profile.layers)
    assert runtime.memory_bytes == 8 * weights
    runtime(X)
    assert "attaching needs up to 0 MB of memory beside the model and its batches" in caplog.messages
    runtime.close()
    assert make_runtime(tolerance_pp=0.1).memory_bytes == 4 * weights
