"""Evaluations in worker processes: real ones, on a tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from checkout import ROOT
from worker_pools import recorded_pools

from envs.evaluators.evaluator import Outcome
from envs.evaluators.parallel_evaluator import ParallelEvaluator
from envs.evaluators.plan_evaluator import PlanEvaluator
from envs.evaluators.workers import WorkerError, WorkerPool
from wattbit.errors import ConfigError, ModelError, PlanError
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan

NAMES = ("stem", "depthwise", "pointwise", "head")


def attached() -> SwitchableModel:
    model = SwitchableModel(tiny.conv_model(), tiny.images(2), tiny.PRECISIONS)
    model.calibrate([tiny.images(64)])
    return model


def labels() -> torch.Tensor:
    return torch.arange(48) % tiny.CLASSES


def make_evaluator() -> PlanEvaluator:
    return PlanEvaluator(attached(), tiny.profile(), tiny.images(48), labels(), batch_size=20)


def refuse_to_build() -> PlanEvaluator:
    raise ModelError("this model cannot be built twice")


def fail_to_build() -> PlanEvaluator:
    raise ZeroDivisionError("an accident")


def die() -> PlanEvaluator:
    os._exit(3)


def die_the_first_time(marker: Path) -> PlanEvaluator:
    if not marker.exists():
        marker.touch()
        die()
    return make_evaluator()


def plans(*columns: str) -> list[PrecisionPlan]:
    return [PrecisionPlan(dict(zip(NAMES, names.split(), strict=True))) for names in columns]


PLANS = plans(
    "int8 int8 int8 int8",
    "fp32 fp32 fp32 fp32",
    "int8 int8 int8 bf16",
    "bf16 int4 int8 mxfp4",
    "int8 int8 int8 int8",
    "fp32 bf16 int4 int8",
)


@pytest.fixture(scope="module")
def evaluator_and_pool() -> Iterator[tuple[ParallelEvaluator, WorkerPool]]:
    with (
        recorded_pools() as pools,
        attached() as model,
        ParallelEvaluator(
            model, tiny.profile(), tiny.images(48), labels(), batch_size=20, factory=make_evaluator, workers=2
        ) as evaluator,
    ):
        yield evaluator, pools[0]


@pytest.fixture
def parallel(evaluator_and_pool: tuple[ParallelEvaluator, WorkerPool]) -> ParallelEvaluator:
    return evaluator_and_pool[0]


@pytest.fixture
def pool(evaluator_and_pool: tuple[ParallelEvaluator, WorkerPool]) -> WorkerPool:
    return evaluator_and_pool[1]


def gone(pid: int) -> bool:
    """True once no process has that id, or only its entry is left that nobody has asked about."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_workers_give_the_outcomes_of_a_serial_run_in_the_order_given(
    parallel: ParallelEvaluator, pool: WorkerPool
) -> None:
    serial = make_evaluator()
    assert parallel.evaluate_all(PLANS) == serial.evaluate_all(PLANS)
    assert parallel.evaluations == serial.evaluations == 5
    assert parallel.reference_accuracy == serial.reference_accuracy
    assert len(pool.pids) == 2


def test_what_is_known_is_run_by_nobody(parallel: ParallelEvaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    known = parallel.evaluate_all(PLANS)

    def refuse(self: WorkerPool, plans: list[PrecisionPlan]) -> list[Outcome]:
        raise AssertionError(plans)

    monkeypatch.setattr(WorkerPool, "evaluate", refuse)
    assert parallel.evaluate_all(PLANS[::-1]) == known[::-1]
    assert parallel.evaluate(PLANS[0]) is known[0]
    # One plan alone gains nothing from a worker.
    assert parallel.evaluate_all(plans("bf16 bf16 bf16 bf16"))[0].plan["stem"] == "bf16"


def test_a_plan_for_another_model_is_refused_before_any_is_run(parallel: ParallelEvaluator) -> None:
    before = parallel.evaluations
    with pytest.raises(PlanError, match="'elsewhere'"):
        parallel.evaluate_all([*plans("mxfp4 int8 int8 int8"), PrecisionPlan({"elsewhere": "int8"})])
    assert parallel.evaluations == before


def test_a_worker_that_dies_is_replaced(
    parallel: ParallelEvaluator, pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    parallel.evaluate_all(plans("int4 int8 int8 int8", "int4 int8 int8 bf16"))
    victim, other = pool.pids
    os.kill(victim, signal.SIGKILL)
    new = plans("int4 int4 int8 int8", "int4 int4 int4 int4")
    assert parallel.evaluate_all(new) == make_evaluator().evaluate_all(new)
    assert victim not in pool.pids
    assert other in pool.pids
    assert "worker process 1 ended by itself (exit code -9); it is replaced once" in caplog.text


def test_a_worker_that_dies_twice_is_an_error_and_the_others_are_ended() -> None:
    pool = WorkerPool(die, 2)
    with pytest.raises(WorkerError, match=r"worker process \d of 2 ended by itself twice \(exit code 3\)"):
        pool.evaluate(PLANS[:3])
    assert pool.pids == ()


def test_a_worker_that_dies_while_it_starts_is_replaced_too(tmp_path: Path) -> None:
    pool = WorkerPool(partial(die_the_first_time, tmp_path / "died"), 2)
    try:
        (found,) = pool.evaluate(PLANS[:1])
        assert found == make_evaluator().evaluate(PLANS[0])
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (refuse_to_build, ModelError, "this model cannot be built twice"),
        (fail_to_build, WorkerError, "a worker process failed: ZeroDivisionError: an accident"),
        (lambda: make_evaluator(), WorkerError, "cannot start a worker process: .*; use workers=1"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_said_here(
    factory: Callable[[], PlanEvaluator], error: type[Exception], message: str
) -> None:
    pool = WorkerPool(factory, 2)
    with pytest.raises(error, match=message):
        pool.evaluate(PLANS[:1])
    assert pool.pids == ()


def test_one_worker_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 worker processes save no time"):
        WorkerPool(make_evaluator, 1)


def test_closing_ends_the_workers_and_what_follows_runs_here() -> None:
    with attached() as model, recorded_pools() as pools:
        evaluator = ParallelEvaluator(
            model, tiny.profile(), tiny.images(48), labels(), factory=make_evaluator, workers=2
        )
        with evaluator:
            evaluator.evaluate_all(PLANS)
            pids = pools[0].pids
        assert all(gone(pid) for pid in pids)
        new = plans("int4 int8 int8 int8", "int4 int8 int8 bf16")
        assert [outcome.plan for outcome in evaluator.evaluate_all(new)] == new
        evaluator.close()


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_no_worker_outlives_a_run_that_is_interrupted_or_killed(
    tmp_path: Path, number: signal.Signals, group: bool
) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import time\n"
        "import test_parallel_evaluator\n"
        "from envs.evaluators.workers import WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(test_parallel_evaluator.make_evaluator, 2)\n"
        "    pool.evaluate(test_parallel_evaluator.PLANS[:2])\n"
        "    print(*pool.pids, flush=True)\n"
        "    time.sleep(60)\n",
        encoding="utf-8",
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2, process.communicate()
    # A terminal sends Ctrl-C to every process of the group.
    os.killpg(process.pid, number) if group else process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert all(gone(pid) for pid in pids)
    assert errors.count("KeyboardInterrupt") == group, errors
