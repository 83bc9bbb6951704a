"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattbit.errors import OutputError
from wattbit.storage.atomic_write import write_atomically


def test_texts_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    write_atomically(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError) as error:
        write_atomically(path, b"new", "buy a disk")
    assert str(error.value) == f"cannot write {path}: No space left on device; buy a disk"
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*; free space or choose another folder") as error:
        write_atomically(tmp_path / "file" / "below", "text")
    assert "\n" not in str(error.value)
