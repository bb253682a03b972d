"""How nnU-Net finds the trainers: the variable, and the start-up file of the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from nnssl import trainer_path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_our_folder_is_added_once_behind_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv(trainer_path.VARIABLE, str(tmp_path))
    trainer_path.add_trainers(), trainer_path.add_trainers()
    assert os.environ[trainer_path.VARIABLE].split(os.pathsep) == [
        str(tmp_path),
        trainer_path.trainers_folder(),
    ]
    assert (Path(trainer_path.trainers_folder()) / "nnssl_swin_ssl.py").is_file()


def start_up(folder: Path, code: str) -> subprocess.CompletedProcess:
    """Python with `folder` as a site-packages that holds the start-up file."""
    (folder / "nnssl_trainers.pth").write_text(
        (REPOSITORY / "trainers" / "nnssl_trainers.pth").read_text()
    )
    lines = (
        f"import os, site, sys; sys.path.append({str(folder)!r}); "
        f"site.addsitedir({str(folder)!r})\n{code}"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", trainer_path.VARIABLE)
    }
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", lines]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment, cwd=folder
    )


def test_the_start_up_file_adds_the_folder_of_a_wheel_and_imports_nothing_heavy(tmp_path):
    (tmp_path / "nnssl" / "trainers").mkdir(parents=True)
    for name in ("__init__.py", "trainer_path.py", "conflict.py"):
        (tmp_path / "nnssl" / name).write_text((REPOSITORY / "nnssl" / name).read_text())
    twice = f"site.addsitedir({str(tmp_path)!r})"
    code = (
        f"{twice}; print(os.environ['nnUNet_extTrainer'], 'torch' in sys.modules, 'nnssl' in "
        "sys.modules)"
    )
    done = start_up(tmp_path, code)
    assert (done.stdout.split(), done.stderr) == (
        [str(tmp_path / "nnssl" / "trainers"), "False", "False"],
        "",
    )


def test_the_start_up_file_is_silent_where_the_package_is_gone(tmp_path):
    done = start_up(tmp_path, "print(os.environ.get('nnUNet_extTrainer'))")
    assert (done.stdout.strip(), done.stderr) == ("None", "")


NOTEBOOK = """
import nnssl
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
print(recursive_find_trainer_class_by_name("SwinScratchTrainer").__name__)
"""


def test_importing_the_package_is_enough_in_a_running_kernel(tmp_path):
    """U4: no start-up file is read from PYTHONPATH, where `pip install --target` puts packages."""
    environment = {k: v for k, v in os.environ.items() if k != trainer_path.VARIABLE} | {
        "PYTHONPATH": str(REPOSITORY)
    }
    command = [sys.executable, "-c", NOTEBOOK]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1:] == ["SwinScratchTrainer"], done.stderr


def test_importing_keeps_what_the_user_has_named(tmp_path):
    environment = os.environ | {trainer_path.VARIABLE: str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    code = (
        "import nnssl, os; "
        f"print(os.environ['{trainer_path.VARIABLE}'])\nprint(nnssl.trainer_path.trainers_folder())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        cwd=tmp_path,
    )
    named, ours = done.stdout.splitlines()  # the installed package's, or the repository's
    assert named == os.pathsep.join([str(tmp_path), ours])
