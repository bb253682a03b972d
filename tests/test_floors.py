"""Imports only go down, and pretraining needs no image library and no nnU-Net."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnssl.__main__ import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[1]
FLOORS = (
    {"types", "json_text", "hu"},
    {
        "files",
        "dist",
        "host_memory",
        "conflict",
        "trainer_path",
        "commands",
        "signals",
        "sockets",
        "shapes",
        "limits",
        "options",
        "cpu",
        "weights",
    },
    {"address", "data", "views", "encoder", "modules", "phantoms", "recipe", "settings"},
    {"network"},
    {"methods", "checkpoint"},
    {"train", "finetune", "convert"},
    {"plans"},
    {"demo", "bench", "study", "trainers", "doctor", "embed", "export"},
    {"report", "parsers"},
    {"cli"},
    {"__main__"},
)
LEVEL = {part: level for level, parts in enumerate(FLOORS, start=1) for part in parts}
APART = FLOORS[2]  # the parts of this floor do not import each other


def own_modules() -> dict[str, Path]:
    """Dotted name to file, as they are called once installed."""
    folders = {"nnssl": "nnssl", "nnssl.trainers": "trainers", "nnssl.plans": "plans"}
    modules = {}
    for package, folder in folders.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            name = ".".join([package, *path.relative_to(REPOSITORY / folder).with_suffix("").parts])
            modules[name.removesuffix(".__init__")] = path
    return modules


MODULES = own_modules()


def part_of(name: str) -> str | None:
    """`nnssl.data.plan` is of part `data`; None for other people's modules and for `nnssl`
    itself.
    """
    words = name.split(".")
    return (
        words[1] if words[0] == "nnssl" and len(words) > 1 and words[1] != "__version__" else None
    )


def imports(path: Path) -> Iterator[str]:
    """Every module a file names, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(importer: str, imported: str) -> str | None:
    own, other = part_of(importer), part_of(imported)
    if own is None or other is None or own == other:
        return None
    if not {own, other} <= set(LEVEL):
        return f"{importer} imports {imported}: one of them has no floor"
    if own in APART and other in APART:
        return f"{importer} imports {imported}: {own} and {other} are apart"
    if LEVEL[other] >= LEVEL[own]:
        return f"{importer} (floor {LEVEL[own]}) imports {imported} (floor {LEVEL[other]})"
    return None


def test_every_part_has_a_floor():
    assert {part_of(name) for name in MODULES} - {None} <= set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module):
    found = [violations(module, name) for name in imports(MODULES[module])]
    assert [text for text in found if text] == []


KERNELS = {"kernel", "launch", "choice"}  # a package of Triton kernels has all three


@pytest.mark.parametrize("kind", ["module", "class"])
def test_no_name_stands_twice(kind):
    """Whoever reads `memory.` or `Options` knows which one is meant."""
    files: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        if kind == "class":
            classes = [
                n
                for n in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(n, ast.ClassDef)
            ]
            names = [node.name for node in classes if not node.name.startswith("_")]
        else:
            names = [path.stem] if path.stem not in {"__init__", "__main__", *KERNELS} else []
        for own in names:
            files.setdefault(own, []).append(name)
    assert {own: where for own, where in files.items() if len(where) > 1} == {}


# `python -m nnssl.bench.X` runs `main`; a formula of attention has the signature of its kernel, and
# each fast path of the CPU is asked for in the same way
PROTOCOLS = {"main", "attention", "is_supported"}


def test_no_function_stands_three_times():
    """Whoever searches for `_memory_row`, or meets it in a traceback, knows which one is meant."""
    files: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name not in PROTOCOLS:
                files.setdefault(node.name, []).append(name)
    assert {own: where for own, where in files.items() if len(where) > 2} == {}


def test_no_relative_imports():
    """nnU-Net loads trainer files under their bare names, where a relative import cannot work."""
    for module, path in MODULES.items():
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), module


def test_the_rule_would_notice():
    assert "floor 3" in violations("nnssl.data.plan", "nnssl.train.loop")
    assert "apart" in violations("nnssl.data.crops", "nnssl.encoder.swin")
    assert violations("nnssl.methods.smit", "nnssl.modules.heads") is None
    assert violations("nnssl.data.plan", "nnssl.data.scans") is None


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is not for this path")

sys.meta_path.insert(0, Blocked())
import importlib
for name in {modules}:
    importlib.import_module(name)
print(*{{name.split(".")[0] for name in sys.modules}})
"""
# what serves other commands, or only the preparation
APART_FROM_IT = {"SimpleITK", "nnunetv2", "huggingface_hub", "safetensors", "sklearn", "pandas"}
# what only a flag, another command or a test needs
OPTIONAL = {"wandb", "tensorboard", "onnx", "onnxscript", "onnxruntime", "IPython", "submitit"}
OPTIONAL |= {"jaxtyping", "beartype"}
PRETRAINING = [
    "nnssl.cli",
    "nnssl.train.loop",
    "nnssl.methods",
    "nnssl.data.crops",
    "nnssl.checkpoint",
]


def import_without(blocked: set[str], modules: list[str]) -> subprocess.CompletedProcess:
    script = BLOCKED.format(blocked=blocked, modules=modules)
    return subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, encoding="utf-8"
    )


def test_pretraining_needs_neither_simpleitk_nor_nnunet_nor_what_is_optional():
    done = import_without({"SimpleITK", "nnunetv2"}, [*PRETRAINING, "nnssl.train.initial_encoder"])
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout.split()
    assert (APART_FROM_IT | OPTIONAL) & set(done.stdout.split()) == set()


HELP = """
import sys
sys.argv = ["nnssl_{command}", "--help"]
from nnssl import cli
try:
    cli.{command}()
except SystemExit:
    print("\\n" + " ".join({{name.split(".")[0] for name in sys.modules}}))
    print(len(sys.modules))
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_asking_for_options_imports_next_to_nothing(command):
    """A command answers before PyTorch would be there: some 180 modules of Python 3.11 itself."""
    script = HELP.format(command=command)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, encoding="utf-8"
    )
    *_, tops, count = done.stdout.splitlines()
    heavy = {"torch", "numpy", "scipy", "matplotlib", "blosc2", *APART_FROM_IT, *OPTIONAL}
    assert heavy & set(tops.split()) == set()
    assert int(count) < 300


def test_importing_the_package_is_light():
    done = import_without(
        {"torch", "numpy", "SimpleITK", "nnunetv2", "blosc2"}, ["nnssl", "nnssl.types"]
    )
    assert done.returncode == 0, done.stderr


def test_the_block_works():
    done = import_without({"numpy"}, ["numpy"])
    assert "numpy is not for this path" in done.stderr
