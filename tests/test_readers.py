"""Nothing waits for ever: readers that die, hang or cannot hand over, and whatever keeps them
alive.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Listener, wait
from pathlib import Path

import micro
import pytest
import torch
from torch.multiprocessing import reductions

from nnssl import checkpoint, sockets
from nnssl.train import batches, pictures
from nnssl.train.log import Log
from nnssl.train.loop import Interrupted, train
from nnssl.train.run import LATEST

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = 600.0


class Unspeakable(str):
    """Passes as text until it is handed over to another process."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


class Troubled(torch.utils.data.Dataset):
    """From sample `first` on each goes wrong."""

    def __init__(self, trouble: str, first: int = 4) -> None:
        self.trouble, self.first, self.made = trouble, first, micro.SyntheticCrops((24, 24, 24))

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict:
        sample = self.made[index]
        if index >= self.first:
            if self.trouble == "hangs":
                time.sleep(LONG)
            if self.trouble == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            sample["said"] = Unspeakable("x")
        return sample


def read(trouble: str) -> list:
    micro_batches = batches.MicroBatches(0, 8, batch_size=2, accumulate=1)
    with batches.reading(Troubled(trouble), micro_batches, workers=1, pin_memory=False) as stream:
        return list(stream)


def readers() -> list:
    return [child for child in multiprocessing.active_children() if child.is_alive()]


@pytest.mark.parametrize("trouble", ["is killed", "cannot hand over"])
def test_a_reader_that_is_gone_ends_the_run_and_says_what_to_do(trouble):
    """T2: whatever the reason, nothing waits for what will never come."""
    with pytest.raises(
        batches.ReaderError, match=r"--workers(.|\n)*--shm-size(.|\n)*--c continues"
    ) as gone:
        read(trouble)
    how = {"is killed": "by SIGKILL, most likely out of memory\n", "cannot hand over": "status 1\n"}
    assert how[trouble] in str(gone.value)
    assert readers() == []


def test_the_end_of_a_reader_does_not_interrupt_the_handling_of_its_error(monkeypatch):
    """On a busy machine its signal came after its broken connection, and hid what had happened."""
    exit_codes = batches._exit_codes

    def cut_off(*_: object) -> None:
        raise ConnectionResetError

    def late(of: list) -> list[int]:
        (reader,) = of
        reader.kill()
        wait([reader.sentinel])
        signal.raise_signal(signal.SIGCHLD)
        return exit_codes(of)

    monkeypatch.setattr(batches, "_exit_codes", late)
    micro_batches = batches.MicroBatches(0, 8, batch_size=2, accumulate=1)
    with batches.reading(Troubled("", 16), micro_batches, workers=1, pin_memory=False) as stream:
        next(stream)
        monkeypatch.setattr(reductions, "rebuild_storage_fd", cut_off)
        with pytest.raises(batches.ReaderError, match="by SIGKILL"):
            list(stream)


def test_a_reader_that_is_killed_during_a_step_ends_the_run_at_the_next_batch():
    micro_batches = batches.MicroBatches(0, 8, batch_size=2, accumulate=1)
    with batches.reading(Troubled("", 16), micro_batches, workers=1, pin_memory=False) as stream:
        next(stream)
        (reader,) = readers()
        reader.kill()
        wait([reader.sentinel])
        signal.raise_signal(signal.SIGCHLD)  # here nothing is raised
        with pytest.raises(batches.ReaderError, match="by SIGKILL"):
            next(stream)
    assert readers() == []


def test_readers_end_with_the_block_whatever_keeps_the_stream(monkeypatch):
    monkeypatch.setattr(batches, "PATIENCE", 0.1)
    micro_batches = batches.MicroBatches(0, 8, batch_size=2, accumulate=1)
    with batches.reading(Troubled("hangs"), micro_batches, workers=1, pin_memory=False) as stream:
        assert next(stream)["index"].tolist() == [0, 1]
        assert len(readers()) == 1
    assert readers() == []


KEPT = """
import sys
sys.path.insert(0, {tests!r})
import test_readers as t
micro_batches = t.batches.MicroBatches(0, 8, batch_size=2, accumulate=1)
kept = t.batches.reading(t.Troubled("hangs"), micro_batches, workers=1, pin_memory=False)
stream = kept.__enter__()
print(len(t.readers()))
"""


def test_python_ends_though_a_stream_was_never_left():
    """T9: a finished run never exited."""
    script = KEPT.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


HUNG_UP = """
import os, socket
from multiprocessing import resource_sharer

from nnssl.train import batches

batches._quiet_worker(0)
shared = resource_sharer.DupFd(os.open(os.devnull, os.O_RDONLY))
with socket.socket(socket.AF_UNIX) as broken_off:
    broken_off.connect(shared._id[0])
os.close(shared.detach())  # which the thread answers next
raise RuntimeError("another error")
"""


def test_a_loop_that_stops_while_it_takes_a_batch_prints_no_error_of_the_reader():
    done = subprocess.run(
        [sys.executable, "-c", HUNG_UP], capture_output=True, text=True, timeout=120, check=False
    )
    assert "another error" in done.stderr
    assert done.stderr.count("Traceback") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_waits_for_data_is_saved_and_ends(tmp_path, monkeypatch, number):
    """U14: SLURM's SIGUSR1 ended it without a save."""
    monkeypatch.setattr(batches, "PATIENCE", 0.1)
    monkeypatch.setattr(Log, "draw", lambda self: None)
    run = micro.run(tmp_path, workers=1)
    run.crops = Troubled("hangs")
    run.crops.made = micro.SyntheticCrops(run.method.region(micro.CROP))
    update = run.update

    def updated():
        # when the next batch is waited for
        threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        return update()

    run.update = updated
    with pytest.raises(
        Interrupted, match="stopped at step 1 of 6; the same command with --c continues"
    ):
        train(run, lambda _: None)
    assert checkpoint.read(tmp_path / LATEST)["training_state"]["step"] == 1
    assert readers() == []


def test_pictures_that_cannot_be_written_cost_one_warning(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "views", full)
    said = []
    run = micro.run(tmp_path, steps=3, save_every=1)
    train(run, said.append)
    assert run.step == 3
    assert run.method.training
    assert sum("pictures could not be written" in text for text in said) == 1


def test_sockets_find_room_when_the_temporary_folder_is_long(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(
        multiprocessing.process.current_process(), "_config", {"authkey": b"", "semprefix": "/mp"}
    )
    # the folders are removed here
    monkeypatch.setattr(multiprocessing.util, "Finalize", lambda *_, **__: None)
    with pytest.raises(OSError, match="too long"):
        Listener(family="AF_UNIX")
    del multiprocessing.process.current_process()._config["tempdir"]
    sockets.room_for_sockets()
    Listener(family="AF_UNIX").close()
    shutil.rmtree(multiprocessing.util.get_temp_dir())
    assert tempfile.gettempdir() == str(long)  # all else stays where the user wants it


def test_a_long_folder_without_a_short_one_is_said(tmp_path, monkeypatch):
    """T3: "AF_UNIX path too long", and no cure."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(sockets.os, "access", lambda *_: False)
    with pytest.raises(OSError, match="export TMPDIR="):
        sockets.room_for_sockets()
