"""A rollback outlives the process, until it is restored on purpose."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from audit_logs import break_log
from runtimes import TOLERANCE_PP, MakeRuntime, X, events, same
from torch import Tensor

from wattbit.audit.hash_chain import verify
from wattbit.errors import AuditError
from wattbit.serving.bundle import ControllerBundle
from wattbit.serving.controller import PrecisionController
from wattbit.serving.runtime import PrecisionRuntime
from wattbit.storage.fingerprint import model_fingerprint


def test_a_rollback_survives_a_restart_until_it_is_restored(
    make_runtime: MakeRuntime,
    quantized_answer: Tensor,
    reference_answer: Tensor,
    log_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with make_runtime(audit_path=log_path) as runtime:
        runtime(X)
        runtime.rollback("disagreement")
    for _ in range(2):
        caplog.clear()
        caplog.set_level(logging.WARNING)
        with make_runtime(audit_path=log_path) as runtime:
            assert "still rolled back to the reference, until restored: disagreement" in caplog.text
            assert runtime.rollback_reason == "disagreement"
            assert set(runtime.plan.values()) == {"fp32"}
            assert same(runtime(X), reference_answer)
            assert runtime.stats.rollbacks == 0
    assert events(log_path)[-2]["payload"]["reason"].endswith("; rolled back: disagreement")
    with make_runtime(audit_path=log_path) as runtime:
        runtime.restore()
        assert same(runtime(X), quantized_answer)
    with make_runtime(audit_path=log_path) as runtime:
        assert same(runtime(X), quantized_answer)
        runtime.rollback("again")
    assert make_runtime(audit_path=log_path).rollback_reason == "again"
    assert verify(log_path).ok


KILLED = """
import sys
sys.path[:0] = {path!r}
import os, signal, tiny
from wattbit.serving.controller import PrecisionController
from wattbit.serving.runtime import PrecisionRuntime
from wattbit.storage.fingerprint import model_fingerprint
runtime = PrecisionRuntime(
    PrecisionController(tiny.bundle()), tiny.conv_model(), tolerance_pp=10.0, audit_path={log!r}
)
runtime(tiny.images(4))
runtime.rollback("about to be killed")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_rollback_survives_a_kill(make_runtime: MakeRuntime, log_path: Path) -> None:
    code = KILLED.format(path=sys.path, log=str(log_path))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert make_runtime(audit_path=log_path).rollback_reason == "about to be killed"


def test_a_rollback_survives_a_torn_line_after_it(make_runtime: MakeRuntime, log_path: Path) -> None:
    with make_runtime(audit_path=log_path) as runtime:
        runtime(X)
        runtime.rollback("x")
    log_path.write_bytes(log_path.read_bytes()[:-20])
    assert make_runtime(audit_path=log_path).rollback_reason == "x"


def test_a_rollback_is_of_one_plan_of_one_model(
    make_runtime: MakeRuntime, bundle: ControllerBundle, conv_model: tiny.ConvNet, log_path: Path
) -> None:
    with make_runtime(audit_path=log_path) as runtime:
        runtime.rollback("the int8 plan")
    with make_runtime(audit_path=log_path, tolerance_pp=2.0) as runtime:
        assert runtime.rollback_reason is None
        assert set(runtime.plan.values()) == {"bf16"}
        runtime.restore()  # there is nothing to restore, so it restores nothing
    # Whichever bundle brings the same plan for the same model.
    again = replace(bundle, created="2027-01-01T00:00:00+00:00", workload={"name": "another"})
    runtime = PrecisionRuntime(
        PrecisionController(again), conv_model, tolerance_pp=TOLERANCE_PP, audit_path=log_path
    )
    with runtime:
        assert runtime.rollback_reason == "the int8 plan"


def test_a_retrained_model_is_not_rolled_back_for_the_one_before(
    bundle: ControllerBundle, log_path: Path
) -> None:
    old, new = tiny.conv_model(), tiny.conv_model()
    new.head.bias.data += 1.0
    fingerprint = model_fingerprint(new)
    retrained = replace(
        bundle,
        model_fingerprint=fingerprint,
        certificates=tuple(replace(one, model_fingerprint=fingerprint) for one in bundle.certificates),
    )
    for made, model, expected in ((bundle, old, None), (retrained, new, None), (bundle, old, "x")):
        controller = PrecisionController(made)
        with PrecisionRuntime(controller, model, tolerance_pp=TOLERANCE_PP, audit_path=log_path) as runtime:
            assert runtime.rollback_reason == expected
            if model is old:
                runtime.rollback("x")


def test_a_rollback_that_the_log_could_not_take_is_written_as_soon_as_it_can(
    make_runtime: MakeRuntime, log_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        runtime = make_runtime(audit_path=log_path)
        runtime(X)
        break_log(patch, 0)
        runtime.rollback("a full disk must not forget it")
    runtime.close()
    assert verify(log_path).ok
    assert make_runtime(audit_path=log_path).rollback_reason == "a full disk must not forget it"


def test_a_log_from_which_a_rollback_was_cut_is_refused(make_runtime: MakeRuntime, log_path: Path) -> None:
    with make_runtime(audit_path=log_path) as runtime:
        runtime(X)
        runtime.rollback("x")
    for _ in range(3):
        with make_runtime(audit_path=log_path):
            pass
    lines = log_path.read_bytes().splitlines(keepends=True)
    log_path.write_bytes(b"".join(line for line in lines if b"rollback" not in line))
    with pytest.raises(AuditError, match="tampered"):
        make_runtime(audit_path=log_path)
