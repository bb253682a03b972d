"""What a batch system or a container gives, in the files where the kernel says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nnssl import limits
from nnssl.train import capacity


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A function that writes the kernel's files: this process's cgroup, and the content of each
    file.
    """
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)

    def write(own: str, **content: str) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in content.items():
            path = (
                tmp_path
                / "cgroup"
                / Path(*name.split("__")[:-1])
                / name.split("__")[-1].replace("_", ".", 1)
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_cores_by_affinity_slurm_and_quota(kernel, monkeypatch):
    """U15: 64 cores were counted where a job has one."""
    assert limits.cores() == 64
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert limits.cores() == 12
    kernel("0::/job/step\n", job__step__cpu_max="max 100000", job__cpu_max="350000 100000")
    assert limits.cores() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert limits.cores() == 1


def test_cores_by_version_1(kernel):
    kernel("5:cpu,cpuacct:/docker/abc\n")
    folder = limits.CGROUPS / "cpu"
    folder.mkdir(parents=True)  # in a container the host's path is not there
    (folder / "cpu.cfs_quota_us").write_text("200000")
    (folder / "cpu.cfs_period_us").write_text("100000")
    assert limits.cores() == 2
    (folder / "cpu.cfs_quota_us").write_text("-1")
    assert limits.cores() == 64


def test_memory_that_the_cgroup_leaves(kernel, monkeypatch):
    """U16: a container was counted with all memory of its host."""
    assert limits.free_memory() is None
    kernel(
        "0::/job\n",
        memory_max="max",
        job__memory_max=str(2 << 30),
        job__memory_current=str(1 << 30),
        job__memory_stat=f"anon 5\ninactive_file {1 << 28}\n",
    )
    assert limits.free_memory() == (1 << 30) + (1 << 28)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert capacity.free_bytes(torch.device("cpu")) <= (1 << 30) + (1 << 28)


def test_memory_by_version_1(kernel):
    kernel("4:memory:/job\n")
    folder = limits.CGROUPS / "memory" / "job"
    folder.mkdir(parents=True)
    (folder.parent / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    (folder / "memory.limit_in_bytes").write_text("1000")
    (folder / "memory.usage_in_bytes").write_text("400")
    assert limits.free_memory() == 600
