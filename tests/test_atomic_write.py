"""Files appear whole or not at all."""

from __future__ import annotations

import os
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


def test_a_pipe_is_written_to_and_a_link_is_followed(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert pipe.is_fifo()
    target.write_text("old", encoding="utf-8")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "new"
    assert sorted(tmp_path.iterdir()) == [link, pipe, target]
