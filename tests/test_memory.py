"""Memory of a training step: the accounting against PyTorch's allocator, autocast against CUDA's,
the estimate.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from micro import ENCODER
from torch._subclasses.fake_tensor import FakeTensorMode

from nnssl.bench import memory as bench
from nnssl.bench.memory import Accounting, Autocast, MemoryCase
from nnssl.bench.timing import peak_memory
from nnssl.cpu import upsampling
from nnssl.encoder.presets import preset
from nnssl.network.decoders import DECODERS
from nnssl.plans import memory_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_accounting_counts_what_pytorchs_allocator_hands_out(monkeypatch, decoder):
    monkeypatch.setattr(upsampling, "is_supported", lambda *_: False)  # as on a GPU
    case = MemoryCase(replace(ENCODER, embed_dim=12), decoder, (32, 32, 32))

    def work() -> None:
        network, moments = bench.network_and_moments(case, "cpu")
        bench.run_training_step(network, case, "cpu", nullcontext())
        del network, moments

    work()  # tables of windows, which are kept
    with Accounting("cpu") as accounting:
        work()
    assert accounting.peak == pytest.approx(peak_memory(work), rel=0.06)
    assert accounting.alive < 0.01 * accounting.peak


def test_what_is_freed_is_no_longer_counted():
    with Accounting("meta") as accounting:
        a = torch.zeros(1000, device="meta")
        b = a + 1
        assert accounting.alive == 2 * 4096
        view = b[:10]
        del a, b
        assert accounting.alive == 4096
        del view
    assert (accounting.alive, accounting.peak) == (0, 2 * 4096)


def half_and_single(device: str) -> dict[str, torch.dtype]:
    """Types that functions of our networks give to inputs of both precisions."""
    x, half = (
        torch.zeros(2, 4, 8, 8, 8, device=device),
        torch.zeros(2, 4, 8, 8, 8, device=device).half(),
    )
    weight = torch.zeros(4, 4, 3, 3, 3, device=device, requires_grad=True)
    square = torch.zeros(8, 8, device=device, requires_grad=True)
    norm = torch.ones(8, device=device, requires_grad=True)
    results = {
        "linear": F.linear(x, square),
        "convolution": F.conv3d(x, weight, padding=1),
        "transposed convolution": F.conv_transpose3d(half, weight, stride=2),
        "layer norm": F.layer_norm(half, (8,), norm, norm),
        "instance norm": F.instance_norm(half),
        "group norm": F.group_norm(half, 2),
        "attention": F.scaled_dot_product_attention(
            x[0], half[0], half[0], attn_mask=half[0, :, :, :, :8]
        ),
        "gelu": F.gelu(half),
        "leaky relu": F.leaky_relu(half),
        "softmax": torch.softmax(half, 1),
        "a sum of both": x + half,
        "both in one": torch.cat([x, half]),
        "total": half.sum(1),
        "cross entropy": F.cross_entropy(
            half, torch.zeros(2, 8, 8, 8, dtype=torch.long, device=device)
        ),
    }
    return {name: result.dtype for name, result in results.items()}


def test_the_meta_device_has_the_types_of_cudas_autocast():
    """CUDA's own rules, asked through fake tensors, which need no GPU."""
    with FakeTensorMode():
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.float16)
        try:
            wanted = half_and_single("cuda")
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()
    with Autocast():
        assert half_and_single("meta") == wanted
    assert set(wanted.values()) == {torch.float16, torch.float32}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("name", "patch", "batch", "changes"),
    [
        ("tiny", (64, 64, 64), 2, {}),
        ("tiny", (12, 128, 96), 3, {"steps": bench.THIN}),
        ("tiny", (192, 160), 12, {}),
        ("monai", (48, 48, 48), 2, {}),
        ("smit", (56, 72, 64), 2, {"embed_dim": 96}),
    ],
)
def test_the_estimate_is_within_15_percent_of_the_measurement(decoder, name, patch, batch, changes):
    """None of these is among those that the estimate was fitted to."""
    case = MemoryCase(preset(name, len(patch), **changes), decoder, patch, batch)
    assert bench.estimated(case) == pytest.approx(bench.measured(case), rel=memory_model.TOLERANCE)


@pytest.mark.parametrize("name", ["tiny", "smit"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_estimate_counts_the_channels_that_the_decoders_have(decoder, name):
    """Each cuts the widths of large encoders otherwise."""
    config, widths = preset(name), {}
    network, _ = bench.network_and_moments(MemoryCase(config, decoder, (32, 32, 32)), "meta")
    levels = {"swinunetr": "ups", "light": "lifts", "nnunet": "stages"}[decoder]
    for level in getattr(network.decoder, levels):
        level.register_forward_hook(
            lambda _module, _inputs, x: widths.update({32 // x.shape[-1]: x.shape[1]})
        )
    network(torch.zeros(1, 1, 32, 32, 32, device="meta"))
    assert tuple(widths[2**level] for level in range(5)) == memory_model.decoder_widths(
        config, decoder
    )


def test_the_bench_prints_a_row_a_case(monkeypatch, capsys):
    case = MemoryCase(preset("tiny"), "light", (32, 32, 32))
    monkeypatch.setattr(bench, "grid", lambda: [case])
    bench.main([])
    out = capsys.readouterr().out
    assert "| embed 24, depths 2-2-4-2, window 4 | light | 32x32x32 | 2 | 1 to 6 |" in out
    assert "largest error" in out


def test_a_fit_finds_what_the_sizes_are_made_of():
    cases = [case for case in bench.grid() if case.decoder == "light"] + [
        replace(case, batch=case.batch + 1, classes=case.classes + 5)
        for case in bench.grid()
        if case.decoder == "light"
    ]
    known = {"parameters": 14.0, "tokens": 12.0, "finest": 20.0}

    def size(case: MemoryCase) -> float:
        return sum(known.get(name, 0.0) * value for name, value in bench.terms_of(case).items())

    both = cases + [replace(case, decoder="swinunetr") for case in cases]
    found = bench.fit(both, [size(case) for case in both])
    for name, value in found["light"].items():
        assert value == pytest.approx(known.get(name, 0.0), abs=0.02), name
