"""The command that measures a GPU, dry-run on the CPU: every kind of part runs, and one failure
loses no other.
"""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from test_floors import import_without

from nnssl.bench import gpu, throughput
from nnssl.train.peak import peak_of

CPU = torch.device("cpu")


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return tmp_path / "out"


@pytest.mark.parametrize("part", ["correctness", "pretraining, smit", "fine-tuning, light"])
def test_a_dry_run_writes_a_table_and_its_numbers(out, part: str) -> None:
    gpu.main(["--device", "cpu", "--quick", "--only", part])
    result = json.loads((out / "gpu.json").read_text())
    (found,) = result["parts"].values()
    assert "failed" not in found, found
    assert result["machine"]["device"] == "CPU"
    assert part in (out / "gpu.md").read_text()
    if part == "correctness":
        assert found["maps_fp32"] == 0
        assert found["gradients_bf16_right"]
        assert found["gradients_bf16"] > 0
    else:
        assert found["ms"] > 0
        assert found["scans_per_second"] == pytest.approx(1000 * found["scans"] / found["ms"])
        assert found["tflops"] > 0
        of_a_gpu = ("waits", "waits_at", "idle", "kernels", "of_peak")
        assert all(found[key] is None for key in of_a_gpu)


def test_settings_reach_the_methods_that_know_them(out) -> None:
    gpu.main(["--device", "cpu", "--quick", "--only", "pretraining, sim", "--set", "w_parcels=1"])
    assert "w_parcels=1" in (out / "gpu.md").read_text().splitlines()[0]
    result = json.loads((out / "gpu.json").read_text())
    assert result["machine"]["settings"][-1] == "w_parcels=1"
    assert not any("failed" in found for found in result["parts"].values())


def test_a_graph_needs_a_gpu(capsys) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--graph"])
    assert "--device cuda" in capsys.readouterr().err


def test_only_waits_are_counted_as_waits(monkeypatch) -> None:
    def step() -> None:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    monkeypatch.setattr(throughput, "_warning_of_waits", nullcontext)
    (place,) = throughput.waits(step, CPU)
    assert place == f"{__file__}:{step.__code__.co_firstlineno + 2}"


def test_kernels_of_one_name_are_summed() -> None:
    def kernel(name: str, nanoseconds: int) -> SimpleNamespace:
        return SimpleNamespace(name=lambda: name, duration_ns=lambda: nanoseconds)

    long = "cutlass" * 40
    found = throughput.kernel_ms([kernel(long, 1000), kernel("gemm", 2000), kernel("gemm", 500)])
    assert list(found.items()) == [("gemm", 2.5e-3), (long[: throughput.NAME], 1e-3)]


def test_every_method_decoder_and_rival_is_a_part() -> None:
    names = [name for name, _ in gpu.bench_parts(gpu.TINY, CPU)]
    assert names[:3] == ["correctness", "pretraining, smit", "pretraining, simmim"]
    assert {f"pretraining, {name}" for name in gpu.METHODS} <= set(names)
    assert {f"fine-tuning, {name}" for name in gpu.DECODERS} <= set(names)
    rivals = {"nnU-Net PlainConvUNet", "nnU-Net ResEnc L", "MONAI SwinUNETR"}
    assert {f"fine-tuning, {name}" for name in rivals} <= set(names)
    assert len(names) == len(set(names))


def test_a_part_that_fails_or_is_not_installed_loses_no_other(out, monkeypatch) -> None:
    def fails(seconds):
        raise RuntimeError("CUDA error: an illegal memory access")

    def missing(seconds):
        raise ModuleNotFoundError("No module named 'monai'", name="monai")

    parts = {"one": fails, "two": missing, "three": lambda seconds: {"ms": 1.0, "scans": 2}}
    monkeypatch.setattr(gpu, "bench_parts", lambda *_: parts.items())
    gpu.main(["--device", "cpu", "--quick"])
    found = json.loads((out / "gpu.json").read_text())["parts"]
    assert found["one"]["failed"] == "RuntimeError: CUDA error: an illegal memory access"
    assert found["two"]["left_out"] == "monai is not installed"
    assert found["three"]["ms"] == 1.0
    table = (out / "gpu.md").read_text()
    assert "| three | 2 | 1.0 |" in table
    assert "one: failed RuntimeError" in table


def test_no_part_begins_when_the_time_is_over(out, monkeypatch) -> None:
    monkeypatch.setattr(
        gpu, "bench_parts", lambda *_: [("one", lambda seconds: pytest.fail("began"))]
    )
    gpu.main(["--device", "cpu", "--quick", "--minutes", "0"])
    assert "no time left" in json.loads((out / "gpu.json").read_text())["parts"]["one"]["left_out"]


def test_the_batch_is_halved_until_it_fits(monkeypatch) -> None:
    tried = []

    def measure(step, scans, device, seconds, flops):
        tried.append((step, scans, flops))
        if scans > 2:
            raise torch.cuda.OutOfMemoryError("no memory")
        return {"scans": scans}

    monkeypatch.setattr(throughput, "step_costs", measure)
    assert gpu._fitting(lambda scans: f"step of {scans}", 8, CPU, 1.0, 3.0) == {"scans": 2}
    assert tried == [("step of 8", 8, 24.0), ("step of 4", 4, 12.0), ("step of 2", 2, 6.0)]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("Tesla V100-SXM2-32GB", 125.0),
        ("Tesla T4", 65.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("Quadro K600", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_it_needs_no_other_library() -> None:
    others = {"blosc2", "SimpleITK", "nnunetv2", "matplotlib", "yaml", "scipy", "monai"}
    done = import_without(others, ["nnssl.bench.gpu"])
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_it_says_what_to_type(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu --quick" in capsys.readouterr().err
