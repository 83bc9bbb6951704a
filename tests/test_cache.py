"""The cache of trained weights: built once, never wrong, never half written."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wattbit.errors import ConfigError, OutputError
from workloads.cache import cache_key, cached_state_dict, source_of

KEY = {"workload": "tiny", "seed": 0}


class Builder:
    """Builds a small model and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> nn.Module:
        """Build the model."""
        self.calls += 1
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        for number, parameter in enumerate(model.parameters()):
            nn.init.constant_(parameter, 0.1 + number)
        return model


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(state) == list(other) and all(torch.equal(state[name], other[name]) for name in state)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_weights_are_built_once_and_come_back_bit_for_bit(tmp_path: Path) -> None:
    build = Builder()
    first = cached_state_dict(tmp_path / "new" / "cache", KEY, build)
    again = cached_state_dict(str(tmp_path / "new" / "cache"), dict(reversed(KEY.items())), build)
    assert build.calls == 1
    assert same(first, again)
    build().load_state_dict(again)


@pytest.mark.parametrize("change", [{"seed": 1}, {"workload": "other"}, {"epochs": 1}, {"seed": "0"}])
def test_any_other_key_part_means_another_file(tmp_path: Path, change: dict[str, Any]) -> None:
    build = Builder()
    cached_state_dict(tmp_path, KEY, build)
    cached_state_dict(tmp_path, {**KEY, **change}, build)
    assert build.calls == 2
    assert len(files(tmp_path)) == 2


def test_the_version_of_torch_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = cache_key(KEY)
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert cache_key(KEY) != key


@pytest.mark.parametrize("part", [object(), float("nan"), {1, 2}])
def test_a_key_part_that_is_not_json_is_refused(tmp_path: Path, part: object) -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        cached_state_dict(tmp_path, {"part": part}, Builder())


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_happens_to_a_cache_file_the_weights_are_right(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    truth = cached_state_dict(folder, KEY, Builder())
    (path,) = files(folder)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    assert same(cached_state_dict(folder, KEY, Builder()), truth)


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build = Builder()
    truth = cached_state_dict(tmp_path, KEY, build)
    (path,) = files(tmp_path)
    content = path.read_bytes()
    weight = truth["0.weight"].numpy().tobytes()
    assert content.count(weight) == 1
    path.write_bytes(content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    assert same(cached_state_dict(tmp_path, KEY, build), truth)
    assert build.calls == 2
    assert "corrupt" in caplog.text
    assert same(cached_state_dict(tmp_path, KEY, build), truth)
    assert build.calls == 2


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_cache_file_is_not_run(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    truth = cached_state_dict(cache, KEY, Builder())
    (path,) = files(cache)
    torch.save({"key": cache_key(KEY), "sha256": "", "state": Trap(tmp_path / "sprung")}, path)
    assert same(cached_state_dict(cache, KEY, Builder()), truth)
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_another_key_is_not_taken(tmp_path: Path) -> None:
    build = Builder()
    cached_state_dict(tmp_path, KEY, build)
    (path,) = files(tmp_path)
    other = {**KEY, "seed": 1}
    path.rename(tmp_path / f"{cache_key(other)}.pt")
    cached_state_dict(tmp_path, other, build)
    assert build.calls == 2


def test_a_folder_that_cannot_be_written_fails_in_one_line_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    build = Builder()
    with pytest.raises(OutputError) as error:
        cached_state_dict(tmp_path / "file" / "cache", KEY, build)
    assert build.calls == 0
    assert "\n" not in str(error.value)
    assert "cache_dir" in str(error.value)


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> nn.Module:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_state_dict(tmp_path, KEY, fail)
    assert files(tmp_path) == []


def test_processes_that_miss_at_the_same_time_agree(tmp_path: Path) -> None:
    code = (
        "import sys, time, torch; from torch import nn; from workloads.cache import cached_state_dict\n"
        "def build():\n"
        "    time.sleep(0.5); torch.manual_seed(0); return nn.Linear(300, 300)\n"
        "print(float(cached_state_dict(sys.argv[1], {}, build)['weight'].sum()))"
    )
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert outputs[0] == outputs[1] != ""
    assert len(files(tmp_path)) == 1


def commented(x: int) -> int:
    """Double."""
    # A comment.
    return x * 2


def test_source_sees_code_but_not_comments_docstrings_or_layout() -> None:
    class Same:
        """A docstring."""

        def twice(self, x: int) -> int:  # a comment
            return (
                x * 2
            )  # fmt: skip

    assert source_of(commented) == "def commented(x: int) -> int:\n    return x * 2"
    assert source_of(Same) == "class Same:\n\n    def twice(self, x: int) -> int:\n        return x * 2"
    assert source_of(Same, commented) == f"{source_of(Same)}\n{source_of(commented)}"
