"""The demo end to end in its quick form, and what it does with folders, failures and restarts."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import site
import sys
import sysconfig
import types
from pathlib import Path

import numpy as np
import pytest

from nnssl import cli, commands, signals, trainer_path
from nnssl.commands import CommandError
from nnssl.demo import result, stages
from nnssl.demo.chain import QUICK, TRAINERS, ChainStage, Demo

NOTEBOOK = Path(__file__).resolve().parents[1] / "documentation" / "demo.ipynb"


@pytest.fixture
def demo(tmp_path) -> Demo:
    return Demo(tmp_path / "nnssl_demo", size=QUICK)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def plain_commands(monkeypatch) -> None:
    """Commands are run as they are, not looked up as console scripts."""
    monkeypatch.setattr(commands, "executable", lambda command: command)


def with_stages(monkeypatch, *stages: ChainStage) -> None:
    monkeypatch.setattr(Demo, "stages", lambda self: list(stages))


def test_finished_stages_are_not_done_again(demo, monkeypatch, plain_commands):
    done = []
    with_stages(
        monkeypatch,
        ChainStage("first", "", lambda: done.append("first"), ()),
        ChainStage("second", "", [python("import sys; sys.exit(3)")], ()),
    )
    with pytest.raises(stages.DemoError):
        stages.run(demo)
    with_stages(
        monkeypatch,
        ChainStage("first", "", lambda: done.append("first again"), ()),
        ChainStage("second", "", lambda: done.append("second"), ()),
    )
    assert list(stages.run(demo)) == ["first", "second"]
    assert done == ["first", "second"]


def test_other_settings_start_afresh(demo, monkeypatch):
    done = []
    with_stages(monkeypatch, ChainStage("only", "", lambda: done.append(1), ()))
    stages.run(demo)
    (demo.folder / "scans" / "old.nii.gz").touch()
    stages.run(dataclasses.replace(demo, device="cuda"))
    assert done == [1, 1]
    assert not (demo.folder / "scans" / "old.nii.gz").exists()


def test_a_stage_starts_on_clean_ground(demo, monkeypatch):
    left = demo.folder / "predictions" / "from_scratch" / "left_by_a_kill.nii.gz"
    with_stages(
        monkeypatch, ChainStage("make", "", lambda: (left.parent.mkdir(), left.touch()), ())
    )
    stages.run(demo)
    with_stages(monkeypatch, ChainStage("again", "", lambda: None, ("predictions/from_scratch",)))
    stages.run(demo)
    assert not left.exists()


def test_a_folder_of_the_users_is_left_alone(demo):
    demo.folder.mkdir()
    (demo.folder / "thesis.tex").touch()
    with pytest.raises(stages.DemoError, match=r"neither empty nor a demo folder.*nnssl_demo -o"):
        stages.run(demo)
    assert [path.name for path in demo.folder.iterdir()] == ["thesis.tex"]


def test_a_failed_command_shows_its_last_lines(demo, monkeypatch, plain_commands):
    code = "import sys; print('line\\n' * 100); sys.stderr.write('the cause'); sys.exit(7)"
    with_stages(monkeypatch, ChainStage("fails", "", [python(code)], ()))
    with pytest.raises(stages.DemoError, match="status 7") as error:
        stages.run(demo)
    assert "the cause" in str(error.value)
    assert str(error.value).count("\nline") < stages.LINES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stopped_demo_leaves_no_command_running(demo, monkeypatch, plain_commands, number):
    """The command runs in its own session, where no signal to the demo reaches it."""
    pid = demo.folder / "pid"
    code = (
        f"import os, pathlib, signal, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))"
    )
    stop = f"os.kill({os.getpid()}, {int(number)}); time.sleep(60)"
    with_stages(monkeypatch, ChainStage("runs", "", [python(f"{code}; {stop}")], ()))
    with pytest.raises(signals.Interrupted, match="nnssl_demo command continues"):
        stages.run(demo)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_tail_takes_the_newest_of_a_progress_bar(tmp_path):
    log = tmp_path / "log"
    log.write_text("start\n  1%\r 50%\r100%\n\n")
    assert commands.tail(log, 1) == "100%"
    assert commands.tail(log, 2) == " 50%\n100%"


def test_the_users_nnunet_stays_out_of_it(demo, monkeypatch):
    monkeypatch.setenv("nnUNet_results", "/somewhere/of/the/user")
    monkeypatch.setenv("nnssl_checkpoint", "/somewhere/else.pth")
    variables = stages.environment(demo)
    assert variables["nnUNet_results"] == str(demo.folder / "nnUNet_results")
    assert "nnssl_checkpoint" not in variables


def test_a_missing_command_says_what_to_install():
    with pytest.raises(CommandError, match="pip install"):
        commands.executable(["nnUNetv2_no_such_command"])


def test_commands_of_a_users_installation_are_found(monkeypatch, tmp_path):
    """pip puts them there where Python's own folder is read-only; a virtual environment has
    none.
    """
    script = tmp_path / sysconfig.get_preferred_scheme("user") / "nnUNetv2_no_such_command"
    script.parent.mkdir()
    script.touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda _, scheme="own": str(tmp_path / scheme))
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    assert commands.executable([script.name, "-h"]) == [str(script), "-h"]
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    with pytest.raises(CommandError, match="pip install"):
        commands.executable([script.name])


def test_own_scans_take_the_place_of_the_phantoms(demo, tmp_path):
    mine = dataclasses.replace(demo, scans=tmp_path)
    (command,) = next(stage.work for stage in mine.stages() if stage.name == "pretrain")
    assert command[command.index("-i") + 1] == str(tmp_path)
    assert "--spacing" in command


def test_dice_closed_forms():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert result.dice(a, a) == 1.0
    assert result.dice(a, b) == 0.5
    assert result.dice(a, ~a) == 0.0
    assert result.dice(a & ~a, a & ~a) == 1.0


def test_most_organs_prefers_the_slice_with_all_of_them():
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[0] = 1
    labels[2, 0, :3] = 1, 2, 3
    assert result.most_organs(labels) == 2


@pytest.mark.slow
def test_quick_demo_end_to_end(demo, capsys, monkeypatch):
    """Every public command once: pretrain, plan, both trainings, both predictions, Dice,
    picture.
    """
    outcome = result.summarise(demo, stages.run(demo))
    text = capsys.readouterr().out + result.result_text(demo, outcome)
    for command in (
        "nnssl_pretrain -m smit",
        "nnssl_plan -d 901",
        "nnUNetv2_train 901",
        "nnUNetv2_predict -d 901",
    ):
        assert f"$ {command}" in text
    scores = json.loads((demo.folder / "result.json").read_text())["dice"]
    assert set(scores) == set(TRAINERS)
    assert all(0 <= value <= 1 for score in scores.values() for value in score.values())
    assert (demo.folder / "demo.png").stat().st_size > 10_000
    (checkpoint,) = (demo.folder / "nnUNet_results" / "nnssl").rglob("checkpoint_final.pth")
    monkeypatch.setattr(sys, "argv", ["nnssl_inspect", str(checkpoint)])
    assert cli.inspect() == 0
    assert "method     smit" in capsys.readouterr().out
    assert list(stages.run(demo)) == list(outcome["seconds"])  # all finished: nothing is done twice
    run_the_notebook(demo.folder, monkeypatch)


def run_the_notebook(finished: Path, monkeypatch) -> None:
    """documentation/demo.ipynb, cell by cell, in the folder beside which the demo was done."""
    shown: list[Path] = []
    display = types.ModuleType("IPython.display")
    display.Image = lambda filename: Path(filename)
    display.display = shown.append
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: None  # matplotlib asks whether there is a shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv(trainer_path.VARIABLE, trainer_path.trainers_folder())
    monkeypatch.chdir(finished.parent)
    kernel: dict = {"__name__": "__main__"}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert cell.get("outputs", []) == []  # kept clean: a difference shows what was edited
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), kernel)
    assert [path.name for path in shown] == ["demo.png", "views.png", "progress.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in shown)
    assert kernel["manifest"]["sittings"][0]["command"].startswith("nnssl_pretrain -m smit")
