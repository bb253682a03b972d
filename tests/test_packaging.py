"""What `pip install .` puts where, and what happens beside MIC-DKFZ's package of the same import
name.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import nnssl

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the sources, so that the repository gets no build folder."""
    copy = tmp_path_factory.mktemp("source") / "copy"
    leave_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(REPOSITORY, copy, ignore=leave_out)
    subprocess.run([sys.executable, "setup.py", "-q", "bdist_wheel"], cwd=copy, check=True)
    (path,) = (copy / "dist").glob("*.whl")
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


def test_types_are_shipped(wheel):
    assert "nnssl/py.typed" in wheel.namelist()


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "documentation" / "CITATION.cff").read_text())
    assert citation["version"] == nnssl.__version__
    changelog = (REPOSITORY / "documentation" / "changelog.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (\S+)", changelog, flags=re.MULTILINE)
    assert nnssl.__version__ in sections[:2]  # above it there may be what is not released yet


def test_commands_version_and_licence(wheel):
    scripts = metadata(wheel, "entry_points.txt")
    for command in ("pretrain", "inspect", "plan", "convert", "study", "demo", "doctor", "report"):
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


def test_every_command_is_a_function():
    from nnssl import cli

    for command in ("pretrain", "inspect", "plan", "convert", "study", "demo", "doctor", "report"):
        assert callable(getattr(cli, command))


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
