"""What nnssl_doctor finds of GPUs, without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nnssl.doctor import machine

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
