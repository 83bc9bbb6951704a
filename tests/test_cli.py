"""The entry points as a user runs them: what a run leaves, and one line and exit code 2 for mistakes."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from checkout import copy_checkout, run_python

from report.results import RunResults, load_results

QUICK = (
    "budget.baseline=8",
    "budget.agent=16",
    "agent.total_timesteps=2000",
    "agent.surrogate.rounds=5",
    "agent.surrogate.final_updates=300",
    "workload.epochs=10",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("user") / "checkout")


@pytest.fixture(scope="module")
def said(checkout: Path) -> str:
    """What a short run that came to its end printed."""
    done = run_python(checkout, "train.py", *QUICK, "hydra.run.dir=outputs/first")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(checkout: Path, said: str) -> Path:
    """The folder of that run."""
    return checkout / "outputs" / "first"


def without_timings(run: RunResults) -> RunResults:
    plans = tuple(replace(plan, seconds=None) for plan in run.plans)
    return replace(run, seconds={}, peak_rss_mb=None, command="", plans=plans)


def test_a_run_writes_what_it_promises(finished: Path) -> None:
    for name in ("results.json", "report.html", "audit.jsonl", "best.json", "bundle/manifest.json"):
        assert (finished / name).stat().st_size > 0, name
    assert len(list((finished / "figures").glob("*.png"))) >= 5
    assert list((finished / "tensorboard").rglob("events*"))
    assert (finished.parent / "latest").resolve() == finished.resolve()


def test_the_last_screen_fits_40_lines_and_leads_to_the_report(finished: Path, said: str) -> None:
    screen = said[said.index("digits: finished") :].splitlines()
    assert len(screen) <= 40
    *lines, report, results, bundle = screen
    assert max(map(len, lines)) <= 110
    assert [Path(line.split()[-1]).name for line in (report, results, bundle)] == [
        "report.html",
        "results.json",
        "bundle",
    ]
    assert sum(" deployed " in line for line in lines) == len(load_results(finished).tolerances_pp)


def test_every_tolerance_from_1_pp_up_has_a_certified_plan(finished: Path) -> None:
    results = load_results(finished)
    assert max(results.tolerances_pp) >= 1.0
    for entry in results.deployed:
        if entry.tolerance_pp >= 1.0:
            assert entry.plan is not None
            assert entry.plan.verdict == "pass"
            assert entry.plan.saving is not None
            assert 0.0 < entry.plan.saving < 1.0
    assert results.provenance == "modelled"


def test_ppo_costs_no_more_than_any_baseline_that_passes_the_gate(finished: Path) -> None:
    results = load_results(finished)
    for tolerance in results.tolerances_pp:
        energy_j = {p.method: p.energy_j or math.nan for p in results.plans if p.tolerance_pp == tolerance}
        assert energy_j["ppo"] <= min(energy_j[name] for name in ("greedy", "ilp", "random"))


def test_the_same_seed_gives_the_same_results_and_worker_processes_change_nothing_but_the_time(
    checkout: Path, finished: Path
) -> None:
    parallel = run_python(checkout, "train.py", *QUICK, "workers=2", "hydra.run.dir=outputs/parallel")
    assert parallel.returncode == 0, parallel.stderr
    folder = checkout / "outputs" / "parallel"
    assert without_timings(load_results(folder)) == without_timings(load_results(finished))
    journals = [(path / "archive.jsonl").read_text(encoding="utf-8") for path in (folder, finished)]
    assert journals[0] == journals[1]


def test_with_a_meter_what_is_deployed_is_metered_end_to_end(checkout: Path, finished: Path) -> None:
    metered = run_python(
        checkout, "train.py", *QUICK, "energy=estimated", "energy.protocol.trials=2",
        "energy.protocol.window_s=0.001", "verbose=true", "hydra.run.dir=outputs/metered",
    )  # fmt: skip
    assert metered.returncode == 0, metered.stderr
    results = load_results(checkout / "outputs" / "metered")
    said = metered.stdout[metered.stdout.index("digits: finished") :]
    for entry in results.deployed:
        if entry.plan is not None:
            assert entry.plan.confirmation is not None
            assert entry.plan.confirmation.provenance == "estimated"
            assert entry.plan.confirmation.energy_j > 0.0
            assert f"{entry.plan.method} {entry.plan.confirmation.text}" in " ".join(said.split())
    # An estimate is called an estimate, also where it comes from a whole model.
    assert "measured" not in metered.stdout
    assert not any(plan.confirmation for plan in load_results(finished).plans)


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_a_bundle_is_judged_again_with_the_same_verdicts(checkout: Path, finished: Path) -> None:
    before = files_in(checkout)
    judged = run_python(checkout, "evaluate.py", f"bundle={finished / 'bundle'}", "json=judged.json")
    assert judged.returncode == 0, judged.stdout + judged.stderr
    again = RunResults.from_json((checkout / "judged.json").read_bytes())
    results = load_results(finished)
    for plan in (p for p in again.plans if p.method == "bundle"):
        deployed = results.deployed_at(plan.tolerance_pp)
        assert deployed is not None
        assert plan.certify_drop_pp == deployed.certify_drop_pp
        assert plan.verdict == "pass"
    # Nothing is written but what was asked for.
    assert files_in(checkout) - before == {checkout / "judged.json"}


def test_a_plan_that_loses_too_much_is_exit_code_1(checkout: Path, finished: Path) -> None:
    judged = run_python(checkout, "evaluate.py", f"bundle={finished / 'bundle'}", "plan=int2")
    assert judged.returncode == 1
    assert "plan at 1 pp: fail" in judged.stdout


BAD_TRAINING = {
    "tolerances_pp=[0]": "tolerance_pp 0",
    "precisions.names=[fp32,int9]": "int9",
    "precisions.names=[int8]": "fp32",
    "workload.certify=0": "certify",
    "workload.search=5000": "5899",
    "hydra.run.dir=/dev/null/run": "/dev/null/run",
    "time_limit_s=0": "time_limit_s",
    "workers=0": "workers is 0",
    "resume=/nonexistent": "/nonexistent",
    "energy.device.mac_pj.fp32.value=-1": "fp32",
}


@pytest.mark.parametrize("override", BAD_TRAINING)
def test_bad_input_is_one_line_code_2_and_leaves_nothing(checkout: Path, override: str) -> None:
    before = sorted(path.name for path in (checkout / "outputs").glob("*"))
    failed = run_python(checkout, "train.py", override)
    assert failed.returncode == 2, failed.stderr
    error = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert BAD_TRAINING[override] in error[0]
    assert "Traceback" not in failed.stderr
    assert sorted(path.name for path in (checkout / "outputs").glob("*")) == before or before == []


def test_bad_plans_and_bundles_are_one_line_and_code_2(
    checkout: Path, finished: Path, tmp_path: Path
) -> None:
    bundle = f"bundle={finished / 'bundle'}"
    (tmp_path / "other.json").write_text('{"conv9": "int8"}', encoding="utf-8")
    broken = tmp_path / "broken"
    shutil.copytree(finished / "bundle", broken)
    plans = (broken / "plans.json").read_text(encoding="utf-8")
    (broken / "plans.json").write_text(plans.replace("int8", "int4"), encoding="utf-8")
    cases = {
        (bundle, f"plan={tmp_path / 'other.json'}"): "conv9",
        (bundle, "plan=int9"): "int9",
        (f"bundle={broken}",): "plans.json",
        (f"bundle={tmp_path}",): "manifest.json",
        (bundle, "workload=digits", "seed=1", "workload.epochs=1"): "is for model",
        (): "bundle=FOLDER",
    }
    for arguments, mention in cases.items():
        failed = run_python(checkout, "evaluate.py", *arguments)
        assert failed.returncode == 2, (arguments, failed.stderr)
        assert mention in failed.stderr
        assert "Traceback" not in failed.stderr
