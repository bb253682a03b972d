"""What `pip install .` puts where, and what happens beside MIC-DKFZ's package of the same import
name.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import nnssl
from nnssl import trainer_path, weights
from nnssl.__main__ import COMMANDS
from nnssl.checkpoint.card import CONFIG

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that the repository gets no build folder."""
    copy = tmp_path_factory.mktemp("source") / "copy"
    leave_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(REPOSITORY, copy, ignore=leave_out)
    kinds = ("sdist", "bdist_wheel")
    subprocess.run([sys.executable, "setup.py", "-q", *kinds], cwd=copy, check=True)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path) -> zipfile.ZipFile:
    (path,) = (sources / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (member,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
    return wheel.read(member).decode()


def test_only_one_name_and_the_start_up_file_reach_site_packages(wheel):
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "nnssl",
        "nnssl_trainers.pth",
    }


def test_every_module_is_in_the_wheel(wheel):
    ours = {
        path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "nnssl").rglob("*.py")
    }
    for folder in ("trainers", "plans"):
        ours |= {f"nnssl/{folder}/{path.name}" for path in (REPOSITORY / folder).glob("*.py")}
    assert {name for name in wheel.namelist() if name.endswith(".py")} == ours


def test_types_and_the_reports_template_are_shipped(wheel):
    assert {"nnssl/py.typed", "nnssl/study/report/page.html"} <= set(wheel.namelist())


def test_released_weights_are_shipped_with_their_cards(wheel, sources):
    (path,) = (sources / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for one in weights.RELEASED.values():
        assert f"nnssl/weights/{one.name}/{one.file.name}" in packed
        for path in (one.file, one.card, one.file.parent / CONFIG):
            assert wheel.read(f"nnssl/weights/{one.name}/{path.name}") == path.read_bytes()


def test_what_is_built_from_the_sdist_is_the_same_wheel(wheel, sources, tmp_path):
    """As `pip install nnssl_swin-*.tar.gz` builds it: the sources hold all that it needs."""
    (path,) = (sources / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel"], cwd=unpacked, check=True, timeout=300
    )
    (built,) = (unpacked / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as again:
        assert sorted(again.namelist()) == sorted(wheel.namelist())


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "documentation" / "CITATION.cff").read_text())
    assert citation["version"] == nnssl.__version__
    changelog = (REPOSITORY / "documentation" / "changelog.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (\S+)", changelog, flags=re.MULTILINE)
    assert nnssl.__version__ in sections[:2]  # above it there may be what is not released yet


def test_commands_version_and_licence(wheel):
    scripts = metadata(wheel, "entry_points.txt")
    for command in COMMANDS:
        assert f"nnssl_{command} = nnssl.cli:{command}" in scripts
    about = Parser().parsestr(metadata(wheel, "METADATA"))
    assert about["Name"] == "nnssl-swin"
    assert about["Version"] == nnssl.__version__
    assert "Apache-2.0" in (about["License-Expression"], about["License"])
    assert any(
        "Apache License" in wheel.read(n).decode()
        for n in wheel.namelist()
        if n.endswith("LICENSE")
    )


def test_every_command_is_a_function_and_a_console_script():
    from nnssl import cli

    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    scripts = re.findall(r'"nnssl_(\w+) = nnssl\.cli:(\w+)"', setup)
    assert scripts == [(command, command) for command in COMMANDS]
    assert all(COMMANDS[command] is getattr(cli, command) for command in COMMANDS)


def import_beside(folder: Path, name: str) -> subprocess.CompletedProcess:
    """`import nnssl` where pip would list a distribution called `name`."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    code = f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(folder)!r}]; import nnssl"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=folder
    )


def test_their_package_in_the_same_environment_is_refused(tmp_path):
    done = import_beside(tmp_path, "nnssl")
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "cannot share an environment" in done.stderr
    assert "pip uninstall" in done.stderr


def test_our_commands_notice_even_where_their_init_replaced_ours(monkeypatch):
    from nnssl import conflict

    monkeypatch.setattr(conflict, "THEIRS", "numpy")  # any distribution that is installed
    monkeypatch.delitem(sys.modules, "nnssl.cli", raising=False)
    with pytest.raises(ImportError, match="cannot share an environment"):
        importlib.import_module("nnssl.cli")


def test_our_own_name_is_no_conflict(tmp_path):
    done = import_beside(tmp_path, "nnssl-swin")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory) -> Path:
    """A folder as `pip install --target FOLDER` fills it, the start-up file included."""
    folder = tmp_path_factory.mktemp("target")
    wheel.extractall(folder)
    return folder


def said(program: str, *arguments: str, where: Path, **variables: str) -> str:
    """What `program` prints with `variables` and none of the user's."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", trainer_path.VARIABLE)}
    done = subprocess.run(
        [program, *arguments],
        env=kept | variables,
        cwd=where,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# what this environment's own start-up file may have named comes first
SHOW = f"import os; print(os.environ.get({trainer_path.VARIABLE!r}, '').split(os.pathsep)[-1])"


def test_in_a_target_folder_no_start_up_file_is_read_but_importing_sets_the_variable(
    target, tmp_path
):
    trainers = str(target / "nnssl" / "trainers")
    path = {"where": tmp_path, "PYTHONPATH": str(target)}
    # Not this environment's Python: its own start-up file would find the package in the folder.
    assert said(sys._base_executable, "-c", SHOW, **path) != trainers
    assert said(sys.executable, "-c", f"import nnssl; {SHOW}", **path) == trainers


def test_what_a_kernel_or_slicer_starts_after_the_import_inherits_it(target, tmp_path):
    """3D Slicer's nnU-Net extension starts nnUNetv2_predict as a program of its own."""
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SHOW!r}])"
    trainers = str(target / "nnssl" / "trainers")
    path = {"where": tmp_path, "PYTHONPATH": str(target)}
    assert said(sys.executable, "-c", f"import nnssl; {child}", **path) == trainers


def test_the_line_that_the_command_prints_is_enough_for_programs_without_our_import(
    target, tmp_path
):
    line = (
        f'eval "$({sys.executable} -m nnssl inspect --nnunet-env)"; echo "${trainer_path.VARIABLE}"'
    )
    found = said("sh", "-c", line, where=tmp_path, PYTHONPATH=str(target))
    assert found == str(target / "nnssl" / "trainers")


LOOK = f"""
import os
os.environ.pop("{trainer_path.VARIABLE}", None)
import nnssl
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
found = recursive_find_trainer_class_by_name("SwinFrozenTrainer")
print(found.__init__.__code__.co_filename)
"""


def test_nnunet_itself_finds_the_trainers_of_a_target_folder(target, tmp_path):
    found = said(sys.executable, "-c", LOOK, where=tmp_path, PYTHONPATH=str(target))
    assert Path(found.splitlines()[-1]).is_relative_to(target)


def test_the_doctor_knows_how_it_is_installed(target, tmp_path):
    ask = "from nnssl.doctor import ways; print(ways.installation(), '|', ways.start_up_file())"
    text = said(sys.executable, "-c", ask, where=tmp_path, PYTHONPATH=str(target))
    assert text.startswith(f"in {target}, which is not a site-packages")
    assert text.endswith("| None")
    as_site = (
        f"import site, sys; sys.path.insert(0, {str(target)!r}); "
        f"site.getsitepackages = lambda: [{str(target)!r}]; {ask}; print(ways.way())"
    )
    text = said(sys.executable, "-c", as_site, where=tmp_path)
    assert text.startswith(f"installed in {target} |")
    assert text.endswith(f"the start-up file {target / 'nnssl_trainers.pth'}")
    text = said(sys.executable, "-c", ask, where=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert text.startswith(f"run from the sources in {REPOSITORY}")
