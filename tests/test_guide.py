"""The guide is followed to the letter: its files, its command, its way to deploy."""

import json
import shlex
from pathlib import Path

from checkout import ROOT, code_blocks, copy_checkout, run_python

from report.results import load_results

DEPLOY = """
import torch
from workloads.digits_mlp import load
workload = load(seed=0, hidden=128, epochs=40, batch_size=200)
model, batch = workload.model, workload.splits["test"].inputs[:32]
"""


def test_a_users_own_workload_works_as_the_guide_says(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    workload, deploy = code_blocks(guide, "python")
    settings = code_blocks(guide, "yaml")[0]
    command = shlex.split(code_blocks(guide, "bash")[0])
    checkout = copy_checkout(tmp_path / "checkout")
    (checkout / "workloads" / "digits_mlp.py").write_text(workload, encoding="utf-8")
    (checkout / "conf" / "workload" / "digits_mlp.yaml").write_text(settings, encoding="utf-8")

    assert command[0] == "python"
    trained = run_python(checkout, *command[1:])
    assert trained.returncode == 0, trained.stderr
    results = load_results(checkout / "outputs/latest")
    deployed = results.deployed_at(1.0)
    assert results.workload == "digits_mlp"
    assert deployed is not None
    assert deployed.verdict == "pass"

    served = run_python(checkout, "-c", f"{DEPLOY}\n{deploy}\nassert logits.shape == (32, 10)")
    assert served.returncode == 0, served.stderr

    plan = dict.fromkeys(deployed.precisions, "int8")
    (checkout / "my_plan.json").write_text(json.dumps(plan), encoding="utf-8")
    judged = run_python(checkout, "evaluate.py", "bundle=outputs/latest/bundle", "plan=my_plan.json")
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert "plan at 1 pp: pass" in judged.stdout


def test_every_command_of_the_guide_composes() -> None:
    from pipeline.cli import check_overrides

    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    lines = [line for block in code_blocks(guide, "bash") for line in block.splitlines()]
    checked = 0
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "train.py"] and "--multirun" not in words and "digits_mlp" not in line:
            check_overrides("train", words[2:])
            checked += 1
    assert checked >= 5
