"""What nnssl_doctor finds of GPUs, without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nnssl.doctor import machine
from nnssl.doctor.finding import Finding

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def visible_gpu(monkeypatch):
    """A V100 as PyTorch shows it; its kernels run on the CPU."""
    ones = torch.ones
    gpu = SimpleNamespace(name="Tesla V100-PCIE-32GB", total_memory=32 * 2**30)
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "get_device_properties": gpu,
        "get_device_capability": (7, 0),
        "get_arch_list": ["sm_75", "sm_80"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    monkeypatch.setenv("CC", "cc")


def test_a_gpu_that_computes_is_right(visible_gpu):
    found = machine.machine()[0]
    assert (found.state, found.says) == ("ok", "GPU 0: Tesla V100-PCIE-32GB, 32 GiB")


def test_a_gpu_that_pytorch_has_no_kernels_for_is_wrong(visible_gpu, monkeypatch):
    """As a V100 is to PyTorch's files for CUDA 13: visible, and of no use."""

    def refuse(*_, device):
        assert device == "cuda:0"
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    monkeypatch.setattr(torch, "ones", refuse)
    found = machine.machine()[0]
    assert found.is_wrong
    for said in (
        "GPU 0: Tesla V100-PCIE-32GB, 32 GiB, cannot compute: CUDA error: no kernel image is "
        "available.",
        "compute capability is 7.0",
        "has kernels for: sm_75, sm_80",
        "https://pytorch.org/get-started/locally",
    ):
        assert said in found.says
    assert "--index-url https://download.pytorch.org/whl/" in found.remedy


def about_compilers() -> list[Finding]:
    return [found for found in machine.machine() if "C compiler" in found.says]


def test_a_gpu_without_a_c_compiler_is_wrong(visible_gpu, monkeypatch, tmp_path):
    """As in a slim container: Triton needs one when a kernel first runs."""
    monkeypatch.delenv("CC")
    monkeypatch.delenv("nnUNet_compile", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = about_compilers()
    assert found.is_wrong
    assert "neither gcc nor clang is on PATH" in found.says
    assert "nnU-Net's torch.compile ends a training" in found.says
    assert found.remedy.startswith("sudo apt-get install gcc libc6-dev ")
    monkeypatch.setenv("nnUNet_compile", "f")
    (found,) = about_compilers()
    assert found.state == "note"


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_any_c_compiler_will_do(visible_gpu, monkeypatch, tmp_path, name):
    assert about_compilers() == []
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / name).touch(0o755)
    assert about_compilers() == []


def test_without_a_gpu_no_compiler_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert about_compilers() == []
