"""A fine-tuning continues though its last checkpoint was truncated."""

from __future__ import annotations

import os

import pytest
import torch

from nnssl.finetune.resume import newest, whole
from nnssl.train.same import load_weights


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
def test_a_checkpoint_cut_short_gives_way_to_the_best(tmp_path, fraction):
    """U7: nnU-Net's EOFError names no file, and nothing to do."""
    latest, best, said = tmp_path / "checkpoint_latest.pth", tmp_path / "checkpoint_best.pth", []
    for path in (latest, best):
        torch.save({"epoch": 3, "w": torch.zeros(1000)}, path)
    content = latest.read_bytes()
    assert whole(str(latest), said.append) == str(latest)
    latest.write_bytes(content[: int(fraction * len(content))])
    assert said == []
    assert whole(str(latest), said.append) == str(best)
    assert len(said) == 1
    assert f"{latest} is truncated" in said[0]
    best.unlink()
    with pytest.raises(ValueError, match=r"latest.pth is truncated.*without --c"):
        whole(str(latest), said.append)


def test_a_cut_best_checkpoint_gives_way_to_the_final_one(tmp_path):
    """`--val_best` after a training that had ended."""
    (tmp_path / "checkpoint_best.pth").write_bytes(b"PK")
    torch.save({"epoch": 3}, final := tmp_path / "checkpoint_final.pth")
    assert whole(str(tmp_path / "checkpoint_best.pth"), print) == str(final)


@pytest.mark.parametrize(
    ("latest_is_newer", "is_whole", "name"),
    [(True, True, "latest"), (False, True, "final"), (True, False, "final")],
)
def test_a_stopped_training_after_a_finished_one_is_continued(
    tmp_path, latest_is_newer, is_whole, name
):
    """One that was made longer, or started again: nnU-Net takes the finished one."""
    final, latest, said = tmp_path / "checkpoint_final.pth", tmp_path / "checkpoint_latest.pth", []
    for path in (final, latest):
        torch.save({"epoch": 3}, path)
    os.utime(final, (0, 2)), os.utime(latest, (0, 3 if latest_is_newer else 1))
    if not is_whole:
        latest.write_bytes(b"PK")
        os.utime(latest, (0, 3))
    assert newest(str(final), said.append) == str(tmp_path / f"checkpoint_{name}.pth")
    assert ["latest.pth is newer than" in line for line in said] == [True] * (name == "latest")
    assert newest(str(latest), said.append) == str(latest)


@pytest.mark.parametrize("newest", ["checkpoint_latest.pth", "checkpoint_best.pth"])
def test_a_final_checkpoint_cut_short_gives_way_to_the_newest(tmp_path, newest):
    final = tmp_path / "checkpoint_final.pth"
    final.write_bytes(b"PK")
    for name in ("checkpoint_latest.pth", "checkpoint_best.pth"):
        torch.save({"epoch": 3}, tmp_path / name)
        os.utime(tmp_path / name, (0, 2 if name == newest else 1))
    assert whole(str(final), print) == str(tmp_path / newest)


def test_what_is_no_file_is_nnunets_to_judge(tmp_path):
    assert whole({"epoch": 3}, print) == {"epoch": 3}
    assert whole(str(tmp_path / "gone.pth"), print) == str(tmp_path / "gone.pth")


def test_a_pretraining_of_another_version_is_not_continued(tmp_path):
    """Its method was built otherwise: the error says what to type."""
    method, file = torch.nn.Linear(3, 2), tmp_path / "checkpoint_latest.pth"
    before = torch.nn.Linear(4, 2).state_dict()
    with pytest.raises(
        ValueError, match=r"latest.pth cannot be continued.*weight.*\[2, 4\].*--from"
    ):
        load_weights(method, before, file)
