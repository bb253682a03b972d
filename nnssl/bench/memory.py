"""Peak memory of a fine-tuning step, measured, beside the estimate that plans go by
(`nnssl.plans.memory_model`).

    python -m nnssl.bench.memory [-device cuda] [--fit]

A step is what nnU-Net's trainer does: forward under fp16 autocast, its Dice and cross-entropy with
deep supervision, backward, with AdamW's moments in place.

Without a GPU the step runs on PyTorch's meta device: every operation of the GPU's path is
dispatched, with the shapes and types that it has there, but without values. Each new storage is
counted until it is freed, in blocks of 512 bytes, as CUDA's caching allocator hands them out. So
this is what the allocator would hold at its peak for PyTorch's tensors. Not in it: workspaces of
cuDNN, the CUDA context, fragmentation. Attention counts as PyTorch's plain formula; fused kernels
and torch.compile hold less. With -device cuda the same step runs and is read off
max_memory_allocated.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pprint import pformat

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.bench import markdown
from nnssl.bench.accounting import HALF, Accounting, Autocast
from nnssl.bench.command_line import parser_of
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.presets import preset
from nnssl.finetune import deep_supervision_weights
from nnssl.network.decoders import DECODERS, full_options
from nnssl.network.swin_unetr import SwinUNETR, output_sizes
from nnssl.plans import memory_model
from nnssl.types import Shape


@dataclass(frozen=True)
class MemoryCase:
    """A step to be measured."""

    config: SwinConfig
    decoder: str
    patch: Shape
    batch: int = 2
    classes: int = 6

    def __str__(self) -> str:
        config, patch = self.config, "x".join(map(str, self.patch))
        channels = f"{config.in_channels} to {self.classes}"
        return " | ".join([self._encoder(), self.decoder, patch, str(self.batch), channels])

    def _encoder(self) -> str:
        config = self.config
        depths = "-".join(map(str, config.depths))
        thin, v2 = ", thin" if config.steps else "", ", v2" if config.convolutions else ""
        return f"embed {config.embed_dim}, depths {depths}, window {config.window}{thin}{v2}"


def network_and_moments(case: MemoryCase, device: str) -> tuple[nn.Module, list[Tensor]]:
    """The network, and of each of its parameters AdamW's two moments and the average."""
    with torch.device(device):
        network = _network(case)
    return network, [torch.zeros_like(p) for p in network.parameters() for _ in range(3)]


def _network(case: MemoryCase) -> nn.Module:
    encoder, decoder = case.config.to_dict(), full_options(case.decoder)
    channels = case.config.in_channels
    return SwinUNETR(channels, case.classes, True, encoder=encoder, decoder=decoder)


def loss_function(outputs: int) -> nn.Module:
    """As `nnUNetTrainer._build_loss` makes it for plain labels."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    # declared as the default, which is another class
    kind: type = MemoryEfficientSoftDiceLoss
    one = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=kind)
    return DeepSupervisionWrapper(one, deep_supervision_weights(outputs))


def run_training_step(
    network: nn.Module, case: MemoryCase, device: str, autocast: AbstractContextManager
) -> None:
    """Forward, loss and backward of a batch of zeros."""
    image = torch.zeros(case.batch, case.config.in_channels, *case.patch, device=device)
    targets = _targets(case, device)
    loss = loss_function(len(targets))
    with autocast:
        total = loss(network(image), targets)
    total.backward()


def _targets(case: MemoryCase, device: str) -> list[Tensor]:
    """Labels 0, of the size of each output."""
    sizes = output_sizes(case.patch, case.config.steps)
    labels: dict = {"dtype": torch.int16, "device": device}
    return [torch.zeros(case.batch, 1, *size, **labels) for size in sizes]


def measured(case: MemoryCase, device: str = "meta") -> int:
    """Bytes at the peak of one training step."""
    if device == "cuda":
        return _on_a_gpu(case)
    with Accounting("meta") as accounting:
        network, moments = network_and_moments(case, "meta")
        run_training_step(network, case, "meta", Autocast())
        peak = accounting.peak
    del network, moments
    return peak


def _on_a_gpu(case: MemoryCase) -> int:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    network, moments = network_and_moments(case, "cuda")
    for _ in range(2):  # cuDNN chooses its algorithms in the first
        network.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        run_training_step(network, case, "cuda", torch.autocast("cuda", HALF))
        torch.cuda.synchronize()
    del network, moments
    return torch.cuda.max_memory_allocated() - before


THIN = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
V2 = {"convolutions": True, "windows": "monai", "merging": "legacy", "taps": "merge"}  # as VoCo's
PATCHES = {  # presets, patches and batch sizes
    "tiny": [((32, 32, 32), 4), ((96, 96, 96), 2), ((160, 160, 160), 2), ((512, 448), 8)],
    "smit": [((64, 64, 64), 2), ((96, 96, 96), 2), ((40, 56, 40), 9), ((80, 192, 160), 2),
             ((16, 256, 224), 2), ((160, 160, 160), 2), ((320, 64, 64), 2), ((256, 224), 32),
             ((1024, 768), 3)],
    "monai": [((64, 64, 64), 2), ((96, 96, 96), 2), ((48, 192, 192), 2), ((512, 512), 12)],
    "monai v2": [((64, 64, 64), 2), ((80, 112, 96), 2), ((384, 320), 8)],
    "smit_miccai22": [((88, 120, 104), 3), ((128, 128, 128), 2), ((320, 320), 12)],
}  # fmt: skip
CHANNELS = {
    "tiny": (4, 3),
    "smit": (1, 6),
    "monai": (1, 14),
    "monai v2": (1, 4),
    "smit_miccai22": (3, 40),
}  # of the image, of the logits


def grid() -> list[MemoryCase]:
    """What the documentation's table shows: all presets, all decoders, patches of 32 to 1024 voxels
    per side.
    """
    return [
        MemoryCase(_patch_config(name, patch), decoder, patch, batch, CHANNELS[name][1])
        for name, patches in PATCHES.items()
        for patch, batch in patches
        for decoder in DECODERS
    ]


def _patch_config(name: str, patch: Shape) -> SwinConfig:
    """A preset, or one with " v2" behind its name, for the channels and axes of its patches."""
    base, *v2 = name.split()
    steps = THIN if patch[0] < 32 else ()
    config = preset(base, len(patch), steps=steps, in_channels=CHANNELS[name][0])
    return replace(config, **V2) if v2 else config


def fit(cases: list[MemoryCase], bytes_: list[int]) -> dict[str, dict[str, float]]:
    """`memory_model.COEFFICIENTS` that bring the relative errors down: least squares, none
    negative.
    """
    by_decoder: dict[str, list[tuple[MemoryCase, int]]] = {}
    for case, size in zip(cases, bytes_, strict=True):
        by_decoder.setdefault(case.decoder, []).append((case, size))
    return {decoder: _coefficients(own) for decoder, own in by_decoder.items()}


def _coefficients(measured: list[tuple[MemoryCase, int]]) -> dict[str, float]:
    """The coefficients that fit measured cases of one decoder, and their bytes."""
    relative = [[term / size for term in terms_of(case).values()] for case, size in measured]
    values = (round(value, 2) for value in _non_negative(np.array(relative)))
    return dict(zip(terms_of(measured[0][0]), values, strict=True))


def _non_negative(rows: np.ndarray) -> list[float]:
    """The coefficients [columns] with which every row sums up to about 1."""
    from scipy.optimize import nnls

    scale = rows.max(axis=0)
    solution, _ = nnls(rows / scale, np.ones(len(rows)))
    return (solution / scale).tolist()


def terms_of(case: MemoryCase) -> dict[str, float]:
    return memory_model.terms(case.config, case.decoder, case.patch, case.batch, case.classes)


def estimated(case: MemoryCase) -> float:
    return memory_model.peak_bytes(case.config, case.decoder, case.patch, case.batch, case.classes)


COLUMNS = ("encoder", "decoder", "patch", "batch", "channels to classes", "measured GB",
           "estimated GB", "error")  # fmt: skip


def estimate_table(cases: list[MemoryCase], bytes_: list[int]) -> str:
    """A Markdown table, and the largest error of the estimate."""
    both = list(zip(cases, bytes_, strict=True))
    largest = max(abs(_error(case, size)) for case, size in both)
    rows = (_memory_row(case, size) for case, size in both)
    return f"{markdown.pipe_table(COLUMNS, rows)}\n\nlargest error {largest:.1f} %"


def _error(case: MemoryCase, size: int) -> float:
    """The error of the estimate, in percent of what was measured."""
    return 100 * (estimated(case) / size - 1)


def _memory_row(case: MemoryCase, size: int) -> list[object]:
    gigabytes = (f"{value / 1e9:.2f}" for value in (size, estimated(case)))
    return [case, *gigabytes, f"{_error(case, size):+.0f} %"]


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("-device", choices=("meta", "cuda"), default="meta")
    parser.add_argument(
        "--fit",
        action="store_true",
        help="print the coefficients for nnssl.plans.memory_model instead",
    )
    args = parser.parse_args(argv)
    cases = grid()
    bytes_ = [measured(case, args.device) for case in cases]
    print(pformat(fit(cases, bytes_)) if args.fit else estimate_table(cases, bytes_))


if __name__ == "__main__":
    main()
