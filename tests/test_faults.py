"""The campaign of faults, in its shortest form (python -m nnssl.bench.faults runs any number)."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import pytest
import torch

from nnssl.bench import faults, trials


def test_a_killed_run_ends_as_if_nothing_had_happened():
    done = subprocess.run(
        [sys.executable, "-m", "nnssl.bench.faults", "--only", "killed"],
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    total = [word.strip() for word in done.stdout.splitlines()[-1].split("|")[2:4]]
    assert total[0] == total[1]


def test_a_difference_is_noticed_and_named():
    whole = {"final": {"w": torch.ones(2)}, "losses": [(1, 0.5), (2, 0.25)]}
    trials.require_equal(whole, {"final": {"w": torch.ones(2)}, "losses": [(1, 0.5), (2, 0.25)]})
    for other, where in [
        ({"final": {"w": torch.ones(2) + 1e-7}, "losses": whole["losses"]}, "final.w"),
        ({"final": whole["final"], "losses": [(1, 0.5), (2, 0.5)]}, r"losses\[1\]\[1\]"),
        ({"final": whole["final"], "losses": [(1, 0.5)]}, "losses"),
        ({"final": {"v": torch.ones(2)}, "losses": whole["losses"]}, "final"),
    ]:
        with pytest.raises(trials.Lost, match=f"^{where} differs"):
            trials.require_equal(whole, other)


class Lying:
    """A trial whose run ends as it likes and says nothing of use."""

    def __init__(self, status: int, said: str = "") -> None:
        self.status, self.words = status, said

    def start(self, **_):
        return 0

    def until(self, *_):
        pass

    sleep = until

    def wait(self, _):
        return self.status

    def said(self):
        return self.words


def test_what_ends_otherwise_than_promised_is_lost(monkeypatch):
    monkeypatch.setattr(faults.os, "kill", lambda *_: None)
    whole = faults.Undisturbed(None, {}, 0.0, 0.0)
    monkeypatch.setattr(faults.Undisturbed, "lend", lambda *_: 0.0)
    chance = random.Random(0)
    assert faults.stopped(Lying(faults.STOPPED), chance, whole) == faults.KILLS
    for status in (1, -signal.SIGTERM):
        with pytest.raises(trials.Lost, match="a signal ended it with"):
            faults.stopped(Lying(status), chance, whole)
    with pytest.raises(trials.Lost, match="did not say what cannot be written"):
        faults.require_no_room(Lying(1, "Errno 28"), 1)
    faults.require_no_room(Lying(1, "x cannot be written: the disk is full"), 1)
