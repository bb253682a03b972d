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

import argparse
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pprint import pformat

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from nnssl.bench import markdown
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import SwinConfig
from nnssl.finetune import deep_supervision_weights
from nnssl.network.decoders import DECODERS, full_options
from nnssl.network.swin_unetr import SwinUNETR, output_sizes
from nnssl.plans import memory_model
from nnssl.types import Shape

BLOCK = 512  # bytes; CUDA's caching allocator rounds up to it
HALF = torch.float16


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


class Accounting(TorchDispatchMode):
    """Counts the bytes of all storages of a device that arise under it: `alive` now, `peak` at the
    highest.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.alive, self.peak = device, 0, 0
        self._known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known or not storage.nbytes():
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._known[storage] = size
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.alive -= size


class Autocast(TorchFunctionMode):
    """What CUDA's autocast does to the functions of our networks and of nnU-Net's loss; the meta
    device has none.
    """

    LOWER = frozenset({F.linear, F.conv2d, F.conv3d, F.conv_transpose2d, F.conv_transpose3d,
                       torch.matmul, F.scaled_dot_product_attention})  # fmt: skip
    SINGLE = frozenset({F.layer_norm, F.group_norm, F.softmax, torch.softmax, F.log_softmax,
                        F.cross_entropy, Tensor.sum, torch.sum})  # fmt: skip

    def __init__(self, half: torch.dtype = HALF) -> None:
        super().__init__()
        self.half = half
        self._weights: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func in self.LOWER or func in self.SINGLE:
            dtype = self.half if func in self.LOWER else torch.float32
            args = tree_map(lambda x: self._cast(x, dtype), args)
            kwargs = {name: self._cast(x, dtype) for name, x in kwargs.items()}
        return func(*args, **kwargs)

    def _cast(self, x: object, dtype: torch.dtype) -> object:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == dtype:
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.to(dtype)
        if id(x) not in self._weights:  # a weight is cast once in a step
            self._weights[id(x)] = x.to(dtype)
        return self._weights[id(x)]


def build(case: MemoryCase, device: str) -> tuple[nn.Module, list[Tensor]]:
    """The network, and of each of its parameters AdamW's two moments and the average."""
    encoder, decoder = case.config.to_dict(), full_options(case.decoder)
    with torch.device(device):
        network = SwinUNETR(
            case.config.in_channels, case.classes, True, encoder=encoder, decoder=decoder
        )
    return network, [torch.zeros_like(p) for p in network.parameters() for _ in range(3)]


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


def step(
    network: nn.Module, case: MemoryCase, device: str, autocast: AbstractContextManager
) -> None:
    """Forward, loss and backward of a batch of zeros."""
    image = torch.zeros(case.batch, case.config.in_channels, *case.patch, device=device)
    sizes = output_sizes(case.patch, case.config.steps)
    labels: dict = {"dtype": torch.int16, "device": device}
    targets = [torch.zeros(case.batch, 1, *size, **labels) for size in sizes]
    loss = loss_function(len(sizes))
    with autocast:
        total = loss(network(image), targets)
    total.backward()


def measured(case: MemoryCase, device: str = "meta") -> int:
    """Bytes at the peak of one training step."""
    if device == "cuda":
        return _on_a_gpu(case)
    with Accounting("meta") as accounting:
        network, moments = build(case, "meta")
        step(network, case, "meta", Autocast())
        peak = accounting.peak
    del network, moments
    return peak


def _on_a_gpu(case: MemoryCase) -> int:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    network, moments = build(case, "cuda")
    for _ in range(2):  # cuDNN chooses its algorithms in the first
        network.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        step(network, case, "cuda", torch.autocast("cuda", HALF))
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
        MemoryCase(_config(name, patch), decoder, patch, batch, CHANNELS[name][1])
        for name, patches in PATCHES.items()
        for patch, batch in patches
        for decoder in DECODERS
    ]


def _config(name: str, patch: Shape) -> SwinConfig:
    """A preset, or one with " v2" behind its name, for the channels and axes of its patches."""
    base, *v2 = name.split()
    steps = THIN if patch[0] < 32 else ()
    config = preset(base, len(patch), steps=steps, in_channels=CHANNELS[name][0])
    return replace(config, **V2) if v2 else config


def fit(cases: list[MemoryCase], bytes_: list[int]) -> dict[str, dict[str, float]]:
    """`memory_model.COEFFICIENTS` that bring the relative errors down: least squares, none
    negative."""
    found = {}
    for decoder in dict.fromkeys(case.decoder for case in cases):
        own = [(c, size) for c, size in zip(cases, bytes_, strict=True) if c.decoder == decoder]
        terms = [terms_of(case) for case, _ in own]
        relative = [[v / size for v in t.values()] for t, (_, size) in zip(terms, own, strict=True)]
        values = _non_negative(np.array(relative))
        found[decoder] = dict(zip(terms[0], (round(v, 2) for v in values), strict=True))
    return found


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


def table(cases: list[MemoryCase], bytes_: list[int]) -> str:
    """A Markdown table, and the largest error of the estimate."""
    estimates = [estimated(case) for case in cases]
    errors = [100 * (e / size - 1) for e, size in zip(estimates, bytes_, strict=True)]
    rows = [
        [case, f"{size / 1e9:.2f}", f"{estimate / 1e9:.2f}", f"{error:+.0f} %"]
        for case, size, estimate, error in zip(cases, bytes_, estimates, errors, strict=True)
    ]
    largest = max(map(abs, errors))
    return f"{markdown.table(COLUMNS, rows)}\n\nlargest error {largest:.1f} %"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-device", choices=("meta", "cuda"), default="meta")
    parser.add_argument(
        "--fit",
        action="store_true",
        help="print the coefficients for nnssl.plans.memory_model instead",
    )
    args = parser.parse_args(argv)
    cases = grid()
    bytes_ = [measured(case, args.device) for case in cases]
    print(pformat(fit(cases, bytes_)) if args.fit else table(cases, bytes_))


if __name__ == "__main__":
    main()
