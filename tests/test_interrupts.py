"""Runs that are interrupted, killed, limited or repeated keep what they found."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import copy_checkout, run_python

from report.results import load_results

LONG = (
    "budget.agent=100000",
    "agent.surrogate.rounds=10000",
    "agent.total_timesteps=10000000",
    "agent.surrogate.final_updates=300",
    "workload.epochs=10",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("user") / "checkout")


def start(checkout: Path, run: str) -> subprocess.Popen[str]:
    """A long run in a process of its own, stopped by the test."""
    return subprocess.Popen(
        [sys.executable, "train.py", *LONG, "budget.baseline=8", f"hydra.run.dir=outputs/{run}"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_plans(process: subprocess.Popen[str], journal: Path, method: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and f'"method": "{method}"' in journal.read_text(encoding="utf-8"):
            return
        time.sleep(0.2)
    process.kill()
    pytest.fail(f"no plan of {method} in time: {process.communicate()}")


def test_ctrl_c_keeps_certifies_and_exports_the_best_so_far(checkout: Path) -> None:
    process = start(checkout, "stopped")
    folder = checkout / "outputs" / "stopped"
    wait_for_plans(process, folder / "archive.jsonl", "ppo")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    results = load_results(folder)
    deployed = results.deployed_at(1.0)
    assert results.status == "interrupted"
    assert deployed is not None
    assert deployed.verdict == "pass"
    assert (folder / "bundle" / "manifest.json").exists()


def test_a_crash_loses_no_plan_and_the_run_goes_on(checkout: Path) -> None:
    process = start(checkout, "crashed")
    folder = checkout / "outputs" / "crashed"
    wait_for_plans(process, folder / "archive.jsonl", "ppo")
    process.kill()
    process.communicate(timeout=60)
    best = json.loads((folder / "best.json").read_text(encoding="utf-8"))["plans"]
    assert next(plan["precisions"] for plan in best if plan["tolerance_pp"] == 1.0)
    with (folder / "archive.jsonl").open("a", encoding="utf-8") as journal:
        journal.write('{"method": "torn')
    known = (folder / "archive.jsonl").read_text(encoding="utf-8").splitlines()[:-1]

    more = ("budget.agent=20", "agent.total_timesteps=3000", "agent.surrogate.final_updates=300")
    resumed = run_python(checkout, "train.py", "resume=outputs/crashed", *more)
    assert resumed.returncode == 0, resumed.stderr
    lines = (folder / "archive.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [(record["method"], tuple(record["precisions"].values())) for record in map(json.loads, lines)]
    assert lines[: len(known)] == known
    assert len(set(asked)) == len(asked), "what was known was written again"
    assert load_results(folder).status == "finished"


def test_a_time_limit_ends_the_search_with_a_result(checkout: Path) -> None:
    done = run_python(checkout, "train.py", *LONG, "time_limit_s=4", "hydra.run.dir=outputs/limited")
    assert done.returncode == 0, done.stderr
    assert load_results(checkout / "outputs" / "limited").status == "time limit"


def test_several_runs_at_once(checkout: Path) -> None:
    done = run_python(
        checkout, "train.py", "--multirun", "seed=0,1", "budget.baseline=2", "budget.agent=2",
        "agent.total_timesteps=100", "workload.epochs=2", "hydra.sweep.dir=outputs/many",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number in ("0", "1"):
        assert load_results(checkout / "outputs" / "many" / number).seed == int(number)
