"""Files that are whole or absent, disks that are full, and what killed writes leave."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from nnssl import files

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("error", "free", "told"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1 << 40,
            "the disk is full or the quota used up",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            1 << 40,
            "the disk is full or the quota used up",
        ),
        (OSError(errno.EROFS, "Read-only file system"), 1 << 40, "the disk is read-only"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2"),
            4096,
            "the disk is full or the quota used up, 0.0 MB are left",
        ),
    ],
)
def test_a_full_disk_is_told_with_the_file_and_the_folder(tmp_path, monkeypatch, error, free, told):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 41, 0, free))

    def write() -> None:
        with files.atomic(tmp_path / "a.pth"):
            raise error

    with pytest.raises(files.NoRoomError) as raised:
        write()
    assert f"{tmp_path / 'a.pth'} cannot be written: {told}" in str(raised.value)
    assert f"for {tmp_path}, or choose another disk" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def write_and_fail(path: Path, size: int, error: Exception) -> None:
    """An error after so many bytes."""
    with files.atomic(path) as temporary:
        temporary.write_bytes(b"0" * size)
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EFBIG, "File too large"), RuntimeError("pos 1")])
def test_a_limit_on_files_is_told_as_such(tmp_path, monkeypatch, error):
    monkeypatch.setattr(files, "_largest_file", lambda: 2_000_000)
    with pytest.raises(files.NoRoomError, match=r"larger than the limit of 2.0 MB \(ulimit -f\)"):
        write_and_fail(tmp_path / "a.pth", 2_000_000, error)


def test_another_error_is_itself_though_files_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_largest_file", lambda: 2_000_000)
    with pytest.raises(RuntimeError, match="no such layer"):
        write_and_fail(tmp_path / "a.pth", 1000, RuntimeError("no such layer"))
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_finds_no_room_names_its_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(files.NoRoomError, match=r"log\.jsonl cannot be written: the disk is full"):
        files.append_json_line(tmp_path / "log.jsonl", {})


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (RuntimeError("no"), ValueError("no"), OSError(errno.EIO, "no")):
        with pytest.raises(type(error), match="no"), files.atomic(tmp_path / "a"):
            raise error


def test_what_is_moved_is_on_the_disk(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(files.os, "fsync", lambda _: done.append("fsync"))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *paths: done.append("replace") or replace(*paths))
    files.write_json(tmp_path / "a.json", {})
    assert done == ["fsync", "replace"]


def test_temporaries_are_swept_though_others_move_them_meanwhile(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in (".tmp-a", ".tmp-gone", "sub/.tmp-b", "kept"):
        (tmp_path / name).touch()
    stat = Path.stat

    def vanishing(path, **how):
        if path.name == ".tmp-gone":
            raise FileNotFoundError(path)
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", vanishing)
    files.sweep(tmp_path, older=-1)
    monkeypatch.undo()
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == [".tmp-b", ".tmp-gone", "kept", "sub"]  # a folder within may be another's
    files.sweep(tmp_path, tmp_path / "sub", tmp_path / "not there", older=-1)
    assert not (tmp_path / "sub" / ".tmp-b").exists()


def test_a_lock_can_be_taken_again(tmp_path):
    for _ in range(2):
        with files.locked(tmp_path / "run", "hint"):
            assert (tmp_path / "run" / files.LOCK).read_text().startswith("process ")
