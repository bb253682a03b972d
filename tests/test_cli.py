"""The commands: their messages, and a real run that is stopped, continued and shared by two
processes. Their flags: `test_flags.py`.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnssl import cli, files
from nnssl.__main__ import COMMANDS
from nnssl.methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[1]

SMALL = [
    "--crop",
    "16",
    "16",
    "16",
    "--batch-size",
    "2",
    "--steps",
    "16",
    "--log-every",
    "1",
    "-np",
    "1",
    "-device",
    "cpu",
    "--set",
    "prototypes=32",
    "head_hidden=16",
    "head_bottleneck=8",
]


@pytest.fixture
def call(monkeypatch, capsys):
    """Call a command as typed; its exit code, what it printed, and what it said on stderr."""

    def called(command: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"nnssl_{command}", *map(str, arguments)])
        monkeypatch.setattr("nnssl.train.pretrain.keep_freed_memory", lambda: False)
        try:
            code = getattr(cli, command)()
        except SystemExit as exited:
            code = exited.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return called


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, call):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"usage: nnssl_{command}" in out


def test_methods_are_listed(call):
    code, out, _ = call("pretrain", "--list")
    assert code == 0
    assert all(f"\n{name} " in out for name in METHODS)
    assert "hidden voxels" in out
    assert "Jiang et al., Self-supervised" in out
    assert max(map(len, out.splitlines())) <= 140


def test_a_reader_that_stops_early_is_no_error():
    command = [sys.executable, "-m", "nnssl", "pretrain", "--list"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()  # as `| head` does
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_module_knows_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "nnssl", "fly"],
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 1
    assert all(command in done.stderr for command in COMMANDS)


# -- messages --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no method given; choose one with -m (nnssl_pretrain --list shows them"),
        (["-m", "smit"], "no scans given; use -i FOLDER, or -d ID"),
        (["-m", "smit", "-i", "x", "-device", "tpu"], "invalid choice: 'tpu'"),
        (["-m", "smit", "-i", "x", "--steps", "many"], "invalid int value: 'many'"),
    ],
)
def test_wrong_usage_is_explained(call, arguments, message):
    code, _, err = call("pretrain", *arguments)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "dinosaur", "-i", "x"], "unknown method 'dinosaur'; known: smit"),
        (
            ["-m", "smit", "-i", "x", "--set", "tau=1"],
            "cannot set 'tau=1'; write FIELD=VALUE with one of: lr=",
        ),
        (
            ["-m", "smit", "-i", "x", "--set", "mask_block=7"],
            "mask_block must be a stride of the encoder",
        ),
        (["-m", "smit", "-i", "/no/such/folder"], "/no/such/folder"),
        (["-m", "smit", "-d", "999"], "-d 999: expected one folder Dataset999_* in"),
        (["-m", "smit", "-d", "Dataset001_Not"], "found 0; available: Dataset007_There"),
        (["-m", "smit", "-i", "x", "--name", "../escape"], "is not a valid collection name"),
        (
            ["-m", "smit", "-i", "x", "--probe", "999"],
            "--probe 999: expected one folder Dataset999_* in",
        ),
        (
            ["-m", "smit", "-i", "x", "--probe", "7"],
            "has no dataset.json; a probe needs an nnU-Net raw dataset",
        ),
        (
            ["-m", "smit", "-i", "x", "--dims", "2", "--crop", "32", "32", "32"],
            "--crop 32 32 32 has 3 numbers, but --dims is 2; give Z Y X in 3D, Y X in 2D",
        ),
        (
            ["-m", "smit", "-i", "x", "--dims", "3", "--crop", "32", "32"],
            "has 2 numbers, but --dims is 3",
        ),
        (
            ["-m", "smit", "-i", "x", "--crop", "32"],
            "crop must be three numbers Z Y X, or two Y X for 2d, of at least 1 voxel each, "
            "got (32,)",
        ),
    ],
)
def test_errors_are_one_message_and_exit_code_1(call, nnunet_env, arguments, message):
    (nnunet_env["nnUNet_raw"] / "Dataset007_There").mkdir()
    code, _, err = call("pretrain", *arguments, "-device", "cpu")
    assert code == 1
    assert err.startswith("\nerror: ")
    assert message in err
    assert "Traceback" not in err


def test_an_empty_folder_says_what_was_looked_for(call, nnunet_env, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = call("pretrain", "-m", "smit", "-i", tmp_path / "empty", "-device", "cpu")
    assert code == 1
    assert str(tmp_path / "empty") in err
    assert ".nii.gz" in err
    assert "DICOM" in err


@pytest.mark.parametrize("variable", ["nnUNet_preprocessed", "nnUNet_raw"])
def test_a_missing_variable_is_named(call, nnunet_env, monkeypatch, variable):
    monkeypatch.delenv(variable)
    code, _, err = call("pretrain", "-m", "smit", "-d", "1", "-device", "cpu")
    assert code == 1
    assert f"nnU-Net's variable {variable} is not set; type: export {variable}=" in err


def test_inspect_wants_a_checkpoint_that_is_one(call, tmp_path):
    code, _, err = call("inspect", tmp_path / "none.pth")
    assert code == 1
    assert "no checkpoint at" in err
    (tmp_path / "text.pth").write_text("hello")
    code, _, err = call("inspect", tmp_path / "text.pth")
    assert code == 1
    assert "cannot be read as a checkpoint" in err


def test_the_line_for_nnunet_keeps_the_users_folders(call, tmp_path, monkeypatch):
    """But no other copy of ours, of which nnU-Net would take the trainers."""
    own, copy = tmp_path / "their $own", tmp_path / "copy"
    copy.mkdir()
    (copy / "nnssl_swin_ssl.py").touch()
    monkeypatch.setenv("nnUNet_extTrainer", f"{own}{os.pathsep}{copy}")
    code, out, _ = call("inspect", "--nnunet-env")
    assert code == 0
    _, assigned = shlex.split(out)
    first, folder = assigned.removeprefix("nnUNet_extTrainer=").split(os.pathsep)
    assert first == str(own)
    assert (Path(folder) / "nnssl_swin_ssl.py").is_file()


STARTING = "print('importing', flush=True); import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("command", "number", "ended"),
    [
        (["pretrain", "-m", "smit", "-i", "x"], signal.SIGTERM, 75),
        (["pretrain", "-m", "smit", "-i", "x"], signal.SIGINT, 75),
        (["inspect", "x.pth"], signal.SIGINT, 130),
    ],
)
def test_a_signal_while_torch_is_imported_is_one_line(tmp_path, command, number, ended):
    (tmp_path / "torch.py").write_text(STARTING)
    process = subprocess.Popen(
        [sys.executable, "-m", "nnssl", *command], cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ended, err
    assert err.startswith("\nstopped")
    assert err.count("\n") == 2


ENDING = """
import atexit, os, sys, types
atexit.register(print, "ended", flush=True)
atexit.register(lambda: os.kill(os.getpid(), 15))
made = types.ModuleType("nnssl.train.pretrain")
made.Options, made.pretrain = dict, lambda _: print("finished", flush=True)
made.distributed = types.SimpleNamespace(launch=lambda *_: None)
sys.modules["nnssl.train.pretrain"] = made
sys.argv = ["nnssl_pretrain", "-m", "smit", "-i", "x"]
from nnssl import cli
sys.exit(cli.pretrain())
"""


def test_a_signal_while_python_ends_does_not_change_the_status():
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert (done.returncode, done.stdout) == (0, "finished\nended\n"), done.stderr


FAILING = """
import atexit, sys
from nnssl import cli, dist
from nnssl.signals import Interrupted
from nnssl.train import pretrain
atexit.register(print, "ended", flush=True)
def fails(_):
    raise {error}
dist.td.is_initialized, pretrain.pretrain = lambda: True, fails
sys.argv = ["nnssl_pretrain", "-m", "smit", "-i", "x"]
sys.exit(cli.pretrain())
"""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("OSError('no space left')", 1, "error: no space left"),
        ("KeyError('spacing')", 1, "KeyError: 'spacing'"),
        ("Interrupted('stopped at step 3')", 75, "stopped at step 3"),
    ],
)
def test_one_of_several_processes_ends_at_once_with_its_error(error, status, said):
    """Python's end, and NCCL's, would wait for the others, which wait for this one."""
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(error=error)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "ended" not in done.stdout


def test_any_name_can_be_printed_on_any_terminal(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli._console_command(lambda: print("geprüft") or 0)() == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"gepr\\xfcft\n"


# -- a real run ------------------------------------------------------------------------------------


class Terminal:
    """nnU-Net's folders, and commands typed in a shell that knows them."""

    def __init__(self, folder: Path, scans: Path) -> None:
        self.scans, self.results = (
            scans,
            folder / "nnUNet_results" / "nnssl" / "made" / "smit__tiny",
        )
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        self.environment = {
            **os.environ,
            **{name: str(folder / name) for name in names},
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        for name in names:
            (folder / name).mkdir()

    def pretrain(self, *more: object) -> subprocess.Popen:
        line = [
            sys.executable,
            "-m",
            "nnssl",
            "pretrain",
            "-m",
            "smit",
            "-i",
            self.scans,
            "--name",
            "made",
            "-a",
            "tiny",
        ]
        return subprocess.Popen(
            [*map(str, [*line, *SMALL, *more])],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip

    def rows(self, folder: Path | None = None) -> list[dict]:
        log = (folder or self.results) / "log.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture(scope="module")
def terminal(tmp_path_factory, phantom_folder) -> Terminal:
    return Terminal(tmp_path_factory.mktemp("terminal"), phantom_folder)


@pytest.fixture(scope="module")
def stopped(terminal) -> tuple[int, str, str]:
    """Exit code and words of a run that got SIGTERM after its first steps."""
    process = terminal.pretrain()
    deadline = time.monotonic() + 600
    while len(terminal.rows()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def test_sigterm_saves_and_exits_with_75_and_c_finishes(terminal, stopped):
    code, out, err = stopped
    assert code == 75, err
    assert "3 scans" in out
    assert "the same command with --c continues" in err
    assert (terminal.results / "checkpoint_latest.pth").is_file()
    assert not (terminal.results / "checkpoint_final.pth").exists()
    done = len(terminal.rows())
    assert 2 <= done < 16

    process = terminal.pretrain("--c")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert f"continuing at step {done} of 16" in out
    assert "look at it with: nnssl_inspect" in out
    assert [row["step"] for row in terminal.rows()] == list(range(1, 17))
    written = {path.name for path in terminal.results.iterdir()} - {files.LOCK}
    assert written == {
        "checkpoint_final.pth",
        "checkpoint_latest.pth",
        "log.jsonl",
        "manifest.json",
        "progress.png",
        "views",
        "views.png",
    }


def test_inspect_shows_the_run(terminal, stopped, call):
    code, out, _ = call("inspect", terminal.results / "checkpoint_latest.pth")
    assert code == 0
    for part in (
        "method     smit",
        "tiny",
        "made, 3 scans",
        "mm (z y x)",
        "HU policy",
        "prototypes 32",
        "Jiang et al.",
    ):
        assert part in out


@pytest.mark.slow
def test_two_processes_from_one_line_are_stopped_and_go_on(terminal, stopped, tmp_path):
    """SIGTERM to the launcher alone, as a cluster sends it: saved once, no traceback."""
    folder = tmp_path / "two"
    process = terminal.pretrain("-num_gpus", 2, "--steps", 400, "-o", folder)
    deadline = time.monotonic() + 600
    while not terminal.rows(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    assert "2 process(es)" in out
    assert err.count("the same command with --c continues") == 1
    assert "Traceback" not in err
    written = {path.name for path in folder.iterdir()} - {files.LOCK}
    assert written == {
        "checkpoint_latest.pth",
        "log.jsonl",
        "manifest.json",
        "progress.png",
        "views",
        "views.png",
    }
    done = len(terminal.rows(folder))

    process = terminal.pretrain("-num_gpus", 2, "--steps", done + 1, "-o", folder, "--c")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.count("finished: ") == 1
    assert [row["step"] for row in terminal.rows(folder)] == list(range(1, done + 2))
    assert (folder / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_in_the_preparation_ends_with_75_and_no_traceback(
    call, nnunet_env, tmp_path, monkeypatch, number
):
    monkeypatch.setattr(
        "nnssl.train.prepared_scans.prepare", lambda *_, **__: signal.raise_signal(number)
    )
    code, _, err = call("pretrain", "-m", "smit", "-i", tmp_path, "-device", "cpu")
    assert (code, err) == (
        75,
        "\nstopped; the same command with --c continues from there\n",
    )
