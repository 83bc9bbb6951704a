"""Only one measurement at a time, and nobody waits for ever."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wattbit.energy.device_lock import exclusive_use
from wattbit.errors import MeterError

HOLD = """
import sys
from pathlib import Path
from wattbit.energy.device_lock import exclusive_use
with exclusive_use(["the device"], folder=Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    if len(sys.argv) > 2:
        import os
        os.kill(os.getpid(), 9)
"""

FORK = """
import os, sys
from pathlib import Path
from wattbit.energy.device_lock import exclusive_use
folder = Path(sys.argv[1])
wait, go = os.pipe()
with exclusive_use(["the device"], folder=folder):
    child = os.fork()
    if child == 0:
        os.read(wait, 1)
        os._exit(0)
with exclusive_use(["the device"], wait_s=0.5, folder=folder):
    print("free", flush=True)
os.write(go, b"x")
os.waitpid(child, 0)
"""


def holder(folder: Path, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_measures_and_gets_its_turn_when_that_ends(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        with (
            pytest.raises(
                MeterError, match=f"the device is being measured by process {first.pid}"
            ) as refused,
            exclusive_use(["the device"], wait_s=0.1, folder=tmp_path),
        ):
            raise AssertionError("two measure at once")
        assert "wait for it to end, or stop it" in str(refused.value)
        with exclusive_use(["another device"], wait_s=0.1, folder=tmp_path):
            pass
        first.communicate("\n")
    with exclusive_use(["the device"], wait_s=5.0, folder=tmp_path):
        pass


def test_a_lock_file_that_another_user_made_locks_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def open_foreign(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *more)

    with holder(tmp_path) as first:
        monkeypatch.setattr(os, "open", open_foreign)
        with (
            pytest.raises(MeterError, match=f"is being measured by process {first.pid}"),
            exclusive_use(["the device"], wait_s=0.1, folder=tmp_path),
        ):
            raise AssertionError("two measure at once")
        first.communicate("\n")
    with exclusive_use(["the device"], wait_s=5.0, folder=tmp_path):
        pass


def test_a_holder_that_is_killed_blocks_nobody(tmp_path: Path) -> None:
    with holder(tmp_path, "die") as first:
        first.communicate("\n")
        assert first.returncode != 0
    with exclusive_use(["the device"], wait_s=5.0, folder=tmp_path):
        pass


def test_a_child_that_was_forked_inside_keeps_nothing(tmp_path: Path) -> None:
    # In a process of its own, because forking this one would copy the threads that others have started.
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "free\n", done.stderr


def test_another_thread_waits_as_well(tmp_path: Path) -> None:
    problems: list[str] = []

    def use() -> None:
        try:
            with exclusive_use(["the device"], wait_s=0.05, folder=tmp_path):
                pass
        except MeterError as error:
            problems.append(str(error))

    with exclusive_use(["the device"], folder=tmp_path):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    use()
    assert len(problems) == 1
    assert "another thread of this process" in problems[0]


def test_one_thread_may_hold_a_lock_twice_and_several_locks(tmp_path: Path) -> None:
    with (
        exclusive_use(["a", "b"], folder=tmp_path),
        exclusive_use(["b", "b", "a"], wait_s=0.1, folder=tmp_path),
    ):
        pass
    assert len(list(tmp_path.iterdir())) == 2


def test_work_that_raises_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), exclusive_use(["a"], folder=tmp_path):
        raise ValueError("broken")
    with exclusive_use(["a"], wait_s=0.1, folder=tmp_path):
        pass


def test_a_folder_that_cannot_hold_locks_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with (
        pytest.raises(MeterError, match="set TMPDIR to a folder that can be written"),
        exclusive_use(["a"], folder=tmp_path / "missing"),
    ):
        pass


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    with exclusive_use(["a"], folder=tmp_path):
        (lock,) = tmp_path.iterdir()
    target = tmp_path / "target"
    lock.rename(target)
    before = target.read_bytes()
    lock.symlink_to(target)
    with pytest.raises(MeterError, match="cannot open the lock file"), exclusive_use(["a"], folder=tmp_path):
        pass
    assert target.read_bytes() == before
