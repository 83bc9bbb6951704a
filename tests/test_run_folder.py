"""One run a folder, settings that make sense before anything runs, and resuming by Hydra's own grammar."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import check_overrides, quoted, resumed_arguments
from pipeline.run_folder import RunFolder
from pipeline.settings import compose_training
from wattbit.errors import ConfigError, WattbitError

CLAIM = """
import sys
from pathlib import Path
from pipeline.run_folder import RunFolder
RunFolder(Path(sys.argv[1])).claim(resumed=False)
print("mine", flush=True)
sys.stdin.read()
"""


def claimant(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended_or_was_killed(tmp_path: Path) -> None:
    first = claimant(tmp_path / "run")
    assert first.stdout is not None
    assert first.stdout.readline() == "mine\n"
    with claimant(tmp_path / "run") as second:
        _, errors = second.communicate("", timeout=60)
    assert "another run is writing to" in errors.splitlines()[-1]
    first.kill()
    first.communicate()
    with claimant(tmp_path / "run") as third:
        assert third.communicate("", timeout=60)[0] == "mine\n"


@pytest.mark.parametrize("name", ["state.json", "archive.jsonl", "results.json"])
def test_a_folder_that_holds_a_run_is_only_gone_on_with_on_purpose(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"holds a run already .* go on with it by resume="):
        RunFolder(tmp_path / ".").claim(resumed=False)


def test_drafts_that_a_killed_run_left_are_removed(tmp_path: Path) -> None:
    for name in (".results.json.0a1b2c3d.tmp", ".mine.tmp", "results.json.tmp"):
        (tmp_path / name).touch()
    RunFolder(tmp_path).claim(resumed=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".mine.tmp", "results.json.tmp"]


@pytest.mark.parametrize(
    "name", ["run", "a b", "a=b", "a,b", "it's", 'say "so"', "back\\slash", "${now}", "{x}[1]"]
)
def test_resume_reads_any_path_as_hydra_does(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- seed=7\n- ++resume=x\n- hydra.run.dir=x\n")
    arguments = resumed_arguments(["budget.agent=9", f"resume={quoted(str(folder))}"])
    assert arguments[:2] == ["seed=7", "budget.agent=9"]
    config = check_overrides("train", arguments)
    assert Path(config.hydra.run.dir) == folder
    assert config.seed == 7


@pytest.mark.parametrize("argument", ["resume={0}", "resume='{0}'", 'resume="{0}"', "++resume={0}"])
def test_resume_may_be_quoted_or_not(tmp_path: Path, argument: str) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=7\n", encoding="utf-8")
    assert resumed_arguments([argument.format(tmp_path)])[0] == "seed=7"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"- 3", b"\xff", b"[" * 5000, b"a: [", b"- !!python/object:x {}"]
)
def test_a_damaged_record_of_settings_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        resumed_arguments([f"resume={tmp_path}"])
    assert len(str(caught.value).splitlines()) == 1


def test_a_record_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    os.mkfifo(tmp_path / ".hydra" / "overrides.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        resumed_arguments([f"resume={tmp_path}"])


@pytest.mark.parametrize("name", ["state.json", "profile.json", "calibration.json"])
def test_a_state_that_is_no_state_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "state.json").write_text('{"schema": 2, "model_fingerprint": 7}', encoding="utf-8")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot resume"):
        RunFolder(tmp_path).load_state("m")


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1", "seed=1.5", "seed=x", "seed=null", "seed=true", f"seed={2**40}", "threads=0",
        "workers=x", "workers=0", "budget.agent=-1", "budget.baseline=1.5", "time_limit_s=-1",
        "time_limit_s=x", "verbose=3", "tolerances_pp=1", "tolerances_pp=[]", "tolerances_pp=[a]",
        "tolerances_pp=[0]", "tolerances_pp=[1e400]", "tolerances_pp=null", "precisions.names=int8",
        "precisions.names=[]", "precisions.names=[3]", "precisions.names=null",
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_one_line_before_anything_runs(override: str) -> None:
    with pytest.raises(WattbitError) as caught:
        compose_training([override])
    assert len(str(caught.value).splitlines()) == 1
