"""Window attention off the CPU's own path: the Triton kernel, proven without a GPU, and PyTorch's
fused attention.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nnssl.encoder import attention, kernel_check
from nnssl.encoder.attention import choice, fused, reference
from nnssl.encoder.presets import PRESETS
from nnssl.encoder.windows import Mask

TRITON = importlib.util.find_spec("triton") is not None
# PyTorch brings Triton along for Linux with CUDA only; without it the kernel is never chosen.
needs_triton = pytest.mark.skipif(not TRITON, reason="triton is not importable on this platform")
HERE = Path(__file__).parent


# -- the kernel in Triton's interpreter ------------------------------------------------


@pytest.fixture(scope="module")
def interpreted() -> dict:
    """What `kernel_interpreted.py` found."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, HERE / "kernel_interpreted.py"],
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
def test_the_kernel_equals_the_formula_in_double_precision(interpreted: dict) -> None:
    """Any number of slots and channels, with and without a mask: output, gradient, and gradient of
    the bias.
    """
    limits = {"torch.float32": 1e-6, "torch.bfloat16": 1e-2, "torch.float16": 1e-3}
    for case, errors in interpreted["errors"].items():
        assert all(error < limits[case.split()[0]] for error in errors.values()), case
        assert errors["bias gradient"] < 1e-6, case  # adds up in fp32 whatever the inputs are


@needs_triton
def test_the_kernels_of_the_residual_stream_equal_the_formula(interpreted: dict) -> None:
    """Sums, norms, and all gradients, with and without a branch, stochastic depth and an order."""
    limits = {"torch.float32": 1e-6, "torch.bfloat16": 1e-2, "torch.float16": 1e-3}
    for case, errors in interpreted["stream_errors"].items():
        assert all(error < limits[case.split()[0]] for error in errors.values()), (case, errors)


@needs_triton
def test_an_encoder_through_the_kernel_equals_one_on_the_cpu(interpreted: dict) -> None:
    """Shifted, padded and clipped windows of two samples; maps and the gradients of all
    parameters.
    """
    assert max(interpreted["encoders"].values()) < 1e-5


@needs_triton
def test_the_kernel_is_compiled_into_one_graph(interpreted: dict) -> None:
    assert interpreted["compiled"] < 1e-6


@needs_triton
def test_the_gradient_of_the_bias_is_the_same_every_time(interpreted: dict) -> None:
    assert interpreted["twice"] == [True] * 4


@needs_triton
def test_a_kernel_that_differs_or_cannot_run_is_found_out(interpreted: dict) -> None:
    said = interpreted["wrong"]
    assert said["right"] == ""
    assert said["fails"] == "it cannot run (RuntimeError: out of resource: shared memory)"
    assert said["differs"].startswith(
        "its bias gradient is off by 1.0e-01 for torch.float32, n=8, heads=1, d=4"
    )


# -- compiled for GPUs that are not here -----------------------------------------------


def resources(function, arch: int, dtype: torch.dtype, n: int, d: int) -> dict[str, int]:
    """Registers, bytes of stack (what did not fit into registers) a thread, and shared bytes a
    program.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    from nnssl.encoder.attention import kernel, launch

    kind = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    signature = {"QKV": kind, "BIAS": "*fp32", "WHICH": "*i64", "REGIONS": "*i32"}
    signature |= (
        {"OUT": kind}
        if function is kernel.forward
        else {"DOUT": kind, "DQKV": kind, "PARTS": "*fp32"}
    )
    if function is kernel.backward:
        signature |= {"SUMS": "*fp32", "rows": "i32"}
    signature |= {"windows": "i32", "per_sample": "i32", "scale": "fp32", "hidden": "fp32"}
    constants = launch.shape(torch.empty(1, n, 3, 4, d, device="meta"), masked=True)
    if function is kernel.backward:
        constants["SUMMED"] = True
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(signature)
        if signature[name][0] == "*"
    }
    source = triton.compiler.ASTSource(
        function, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, aligned
    )
    built = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options=launch.settings(dtype, n, d)
    )
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    binary = Path(os.environ["TRITON_CACHE_DIR"]) / f"{function.__name__}.cubin"
    binary.write_bytes(built.asm["cubin"])
    usage = subprocess.run(
        [tool, "-res-usage", binary], capture_output=True, encoding="utf-8", check=True
    ).stdout
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": built.metadata.shared,
    }


@needs_triton
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "n", "d", "stack"),
    [
        (torch.bfloat16, 64, 12, 0),  # the first stages of `smit` and `tiny`
        # and their others; the backward pass also sums the gradient of the projection's bias
        (torch.bfloat16, 64, 24, 192),
        (torch.bfloat16, 64, 96, 192),  # the last of `smit_miccai22`
        (torch.float32, 64, 12, 0),
    ],
)
def test_the_kernels_compile_and_stay_in_registers(
    monkeypatch, tmp_path, arch, dtype, n, d, stack
) -> None:
    from nnssl.encoder.attention import kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # the larger one
    for function in (kernel.forward, kernel.backward) if d == 12 else (kernel.backward,):
        used = resources(function, arch, dtype, n, d)
        assert used["stack"] <= stack, (function, used)
        # what the smallest of these GPUs (L4, RTX) have
        assert used["shared"] <= 99 * 1024, (function, used)
        assert used["registers"] <= 255


def test_what_the_presets_need_is_what_the_kernel_has() -> None:
    """All windows but those of 343 tokens, all heads."""
    for name, config in PRESETS.items():
        assert (config.window**3 <= choice.MOST_SLOTS) == (name != "monai")
        widths = [config.embed_dim * 2**i // heads for i, heads in enumerate(config.heads)]
        assert max(widths) <= choice.MOST_CHANNELS


# -- which path is taken ---------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch):
    """No shape has been tried yet, and nothing said."""
    choice._tried.cache_clear()
    monkeypatch.setattr(kernel_check, "_warned", set())
    yield
    choice._tried.cache_clear()


CUDA = torch.device("cuda", 0)


def test_the_kernel_is_for_cuda_halves_and_singles_and_small_windows(monkeypatch, fresh) -> None:
    monkeypatch.setattr(choice, "_fault", lambda *_: "")
    assert choice.is_supported(CUDA, torch.bfloat16, 64, 4, 12)
    assert not choice.is_supported(torch.device("cpu"), torch.float32, 64, 4, 12)
    assert not choice.is_supported(torch.device("mps"), torch.float32, 64, 4, 12)
    assert not choice.is_supported(CUDA, torch.float64, 64, 4, 12)
    assert not choice.is_supported(CUDA, torch.bfloat16, 343, 3, 16)


def test_without_the_kernel_one_line_says_so(monkeypatch, fresh) -> None:
    monkeypatch.setattr(
        choice, "attention_errors", lambda *_: {"output": 1e-3, "gradient": float("nan")}
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert not choice.is_supported(CUDA, torch.bfloat16, 64, 4, 12)
        assert not choice.is_supported(CUDA, torch.bfloat16, 64, 4, 24)
    (line,) = (str(warning.message) for warning in said)
    assert "without the Triton kernel, which is slower: its gradient is off by nan" in line


def test_an_old_gpu_is_not_tried(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0" in choice._fault(CUDA, torch.float16, 64, 4, 12)


@needs_triton
def test_the_comparison_leaves_the_runs_chance_alone(monkeypatch) -> None:
    state = torch.get_rng_state()
    monkeypatch.setattr(choice, "_all", lambda function, *_: [torch.ones(6, 4, 3, 1, 4)] * 3)
    monkeypatch.setattr(choice, "_offset_gradient", lambda *_: torch.ones(3, 4))
    choice.attention_errors(torch.device("cpu"), torch.float32, 4, 1, 4)
    assert torch.equal(torch.get_rng_state(), state)


# -- PyTorch's fused attention ---------------------------------------------------------


def masked(n: int, windows: int) -> Mask:
    chance = torch.Generator().manual_seed(n)
    regions = torch.stack(
        [torch.zeros(n, dtype=torch.long), *torch.randint(3, (2, n), generator=chance)]
    )
    return Mask.of(regions, torch.randint(3, (windows,), generator=chance), -torch.inf)


@pytest.mark.parametrize("most", [1, 4, 1 << 15])
@pytest.mark.parametrize("with_mask", [False, True])
def test_fused_attention_equals_the_formula(monkeypatch, most: int, with_mask: bool) -> None:
    """Whatever a call may hold, in the order of the windows, with the gradient of the bias."""
    monkeypatch.setattr(fused, "MOST_WINDOWS", most)
    torch.manual_seed(0)
    qkv = torch.randn(3 * 7, 6, 3, 2, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 6, 6, dtype=torch.float64, requires_grad=True)
    mask = masked(6, 7) if with_mask else None
    got, wanted = (function(qkv, bias, mask) for function in (fused.attention, reference.attention))
    torch.testing.assert_close(got, wanted)
    weight = torch.randn_like(got)
    for a, b in zip(
        *(torch.autograd.grad(out, (qkv, bias), weight) for out in (got, wanted)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_fused_attention_copies_no_mask_and_stays_within_pytorchs_limits(monkeypatch) -> None:
    """As many windows as the backward pass on a GPU refuses, on the device that holds no data."""
    calls = []

    def call(q, k, v, attn_mask):
        calls.append((len(q), tuple(attn_mask.shape)))
        return torch.empty_like(q)

    monkeypatch.setattr(F, "scaled_dot_product_attention", call)
    mask = masked(8, 7)
    fused.attention(torch.empty(7 * 10_000, 8, 3, 1, 4), torch.zeros(1, 8, 8), mask)
    assert sum(windows for windows, _ in calls) == 70_000
    assert max(windows for windows, _ in calls) < 65_535
    assert {shape for _, shape in calls} == {(1, 1, 8, 8)}
    calls.clear()
    fused.attention(torch.empty(800, 343, 3, 3, 1), torch.zeros(3, 343, 343), None)  # preset monai
    assert max(windows * 3 * 343 * 343 * 4 for windows, _ in calls) <= 256 * 2**20


def test_off_the_cpu_the_choice_decides(monkeypatch) -> None:
    requested = []
    monkeypatch.setattr(attention.cached, "is_supported", lambda x: False)
    monkeypatch.setattr(choice, "is_supported", lambda *shape: requested.append(shape))
    attention.window_attention(
        torch.randn(2, 8, 12), torch.randn(36, 12), None, 3, torch.randn(3, 8, 8), None
    )
    assert requested == [(torch.device("cpu"), torch.float32, 8, 3, 4)]
