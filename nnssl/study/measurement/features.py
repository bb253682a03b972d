"""Feature reuse, measured: encoders from their files, crops of scans, and the rows of CKA and
attention distance.

Both networks of a comparison see a crop through the intensity map of the fine-tuned one, so that an
encoder is compared and not its input. Examples of CKA are positions in a scan: all layers are read
at the same ones, at most one in a token of the last stage. A crop is a minibatch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nnssl import checkpoint, finetune
from nnssl.encoder.blocks import Block
from nnssl.encoder.swin import Swin
from nnssl.finetune.architecture import is_ours
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.shapes import ceil_div
from nnssl.study.measurement.attention_distance import AttentionDistance, blocks_of, strides
from nnssl.study.measurement.cka import LEAST, MinibatchCKA
from nnssl.study.rows import AttentionRow, Budget, CkaRow
from nnssl.types import FINAL, Shape, Spacing

POSITIONS = 128  # examples of a minibatch, where the last stage has so many tokens


def finetuned(fold: Path | str) -> SwinUNETR:
    """The network of an nnU-Net fold folder's checkpoint_final.pth, in evaluation mode.

    Raises FileNotFoundError, or ValueError where the fold's network is not ours (nnU-Net's own has
    no such layers).
    """
    path = Path(fold) / FINAL
    if not path.is_file():
        raise FileNotFoundError(f"no finished training in {fold}: {path.name} is missing")
    # nnU-Net's own file, read as nnU-Net does
    saved = torch.load(path, map_location="cpu", weights_only=False)
    arguments = saved["init_args"]
    resolved = finetune.resolve(arguments["plans"], arguments["configuration"])
    _require_ours(resolved, path)
    return _network(resolved, saved["network_weights"])


def _require_ours(resolved: dict, path: Path) -> None:
    if not is_ours(resolved):
        raise ValueError(
            f"{path} holds a {resolved.get('architecture', {}).get('network_class_name')}; CKA and "
            "attention distance compare Swin encoders of this package"
        )


def _network(resolved: dict, weights: dict[str, Tensor]) -> SwinUNETR:
    """With the channels and labels of the weights."""
    channels = weights["encoder.patch_embed.proj.weight"].shape[1]
    network = finetune.build_network(
        resolved, channels, _num_classes(weights), deep_supervision=False
    )
    network.load_state_dict(weights)
    return network.eval()


def _num_classes(weights: dict[str, Tensor]) -> int:
    """The number of classes of a head of the network."""
    heads = [name for name in weights if finetune.HEADS in name and name.endswith("weight")]
    return len(weights[heads[0]])


def pretrained(path: Path | str, like: SwinUNETR) -> SwinUNETR:
    """`like` with the encoder that its fine-tuning started from: the checkpoint's. Raises
    TransferError.
    """
    network = copy.deepcopy(like)
    checkpoint.transfer(checkpoint.load(path), network.encoder)
    return network


def crops(
    folder: Path | str, cases: list[str], patch: Shape, count: int = 50, seed: int = 0
) -> Iterator[Tensor]:
    """`count` crops [1 C *patch] of nnU-Net's preprocessed `cases`, one case after the other,
    around labelled voxels.

    folder: of the preprocessed cases of a configuration. In 2D a crop is a slice's. The same
    arguments give the same crops; what lies outside of a scan is zeros, nnU-Net's own padding.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset = infer_dataset_class(str(folder))(str(folder), list(cases))
    for number in range(count):
        stored, seg, *_ = dataset.load_case(cases[number % len(cases)])
        centre = _labelled(np.asarray(seg)[0], np.random.default_rng([seed, number]))
        yield torch.from_numpy(_cut(np.asarray(stored), centre, patch))[None]


def _labelled(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A labelled voxel; the middle of a scan without any."""
    positions = np.argwhere(labels > 0)
    return (
        positions[generator.integers(len(positions))]
        if len(positions)
        else np.array(labels.shape) // 2
    )


def _cut(data: np.ndarray, centre: np.ndarray, patch: Shape) -> np.ndarray:
    """[C Z Y X] to [C *patch] around `centre`, moved inside where the scan is large enough."""
    size = (1,) * (3 - len(patch)) + tuple(patch)
    spans = [_span(*axis) for axis in zip(centre, size, data.shape[1:], strict=True)]
    out = np.zeros((len(data), *size), np.float32)
    inside = (slice(None), *(slice(kept) for _, kept in spans))
    out[inside] = data[(slice(None), *(slice(start, start + kept) for start, kept in spans))]
    return out.reshape(len(data), *patch)


def _span(centre: int, length: int, whole: int) -> tuple[int, int]:
    """Where a cut of `length` begins on an axis, and how much of it lies inside."""
    start = np.clip(centre - length // 2, 0, max(0, whole - length))
    return start, min(length, whole - start)


class Layers:
    """Reads an encoder's layers at positions of a crop: after the patch embedding and after every
    block.

    names: "patch embedding", "stage 1 block 1", ...
    """

    def __init__(self, network: SwinUNETR) -> None:
        self.network = network
        self.blocks = blocks_of(network.encoder)
        blocks = [f"stage {number + 1} block {index + 1}" for number, index, _ in self.blocks]
        self.names = ["patch embedding", *blocks]

    @property
    def stride(self) -> Shape:
        """Stride of the last stage, in voxels."""
        return strides(self.network.encoder, 3)

    @torch.inference_mode()
    def read(self, crop: Tensor, positions: Tensor) -> list[Tensor]:
        """crop [1 C *patch]; positions [n dims], in voxels of the encoder's axes; a list of [n
        channels].
        """
        reading = _Reading(self.network.encoder, positions)
        with ExitStack() as hooks:
            for hook in self._hooked(reading):
                hooks.callback(hook.remove)
            self.network.encoder(as_seen(self.network, crop))
        return [reading.found[index] for index in sorted(reading.found)]

    def _hooked(self, reading: _Reading) -> Iterator[RemovableHandle]:
        encoder = self.network.encoder
        yield encoder.patch_embed.register_forward_hook(reading.embedded)
        for number, stage in enumerate(encoder.stages):
            yield stage.register_forward_pre_hook(partial(reading.entered, number))
        for index, (number, _, block) in enumerate(self.blocks, start=1):
            yield block.register_forward_hook(partial(reading.left, index, number))


@dataclass
class _Reading:
    """What is read of one crop. found: layer to [n channels]; grids: tokens by axis of a stage."""

    encoder: Swin
    positions: Tensor
    found: dict[int, Tensor] = field(default_factory=dict)
    grids: dict[int, Shape] = field(default_factory=dict)

    def embedded(self, _: nn.Module, inputs: tuple, tokens: Tensor) -> None:
        self.grids[0] = tokens.shape[1:-1]
        self.found[0] = tokens[0].flatten(0, -2)[self._raster(0)]

    def _raster(self, number: int) -> Tensor:
        """[n] where the positions lie among the tokens of a stage."""
        return raster(self.positions, self.grids[number], strides(self.encoder, number))

    def entered(self, number: int, _: nn.Module, inputs: tuple) -> None:
        self.grids[number] = tuple(inputs[0].shape[1:-1])

    def left(self, index: int, number: int, _: Block, inputs: tuple, tokens: Tensor) -> None:
        order = inputs[1].tokens  # raster index of each token of the list
        counted = torch.arange(len(order), device=order.device)
        where = torch.empty_like(order).scatter_(0, order, counted)
        self.found[index] = tokens[0][where[self._raster(number)]]


def as_seen(network: SwinUNETR, crop: Tensor) -> Tensor:
    """What the network's encoder gets to see of a crop in nnU-Net's axes and intensities."""
    permuted = crop.permute(network.to_file_axes)
    return network.encoder.get_submodule("intensity")(permuted)


def draw_positions(spatial: Shape, stride: Shape, generator: torch.Generator) -> Tensor:
    """[n dims] voxels, n at most POSITIONS: in different tokens of that stride, anywhere in
    each.
    """
    grid = ceil_div(spatial, stride)
    cells = torch.randperm(int(np.prod(grid)), generator=generator)[:POSITIONS]
    corner = torch.stack(torch.unravel_index(cells, grid), dim=1) * torch.tensor(stride)
    room = torch.minimum(torch.tensor(stride), torch.tensor(spatial) - corner)
    return corner + (torch.rand(corner.shape, generator=generator) * room).long()


def raster(positions: Tensor, grid: Shape, stride: Shape) -> Tensor:
    """[n] index of the token in which each position lies."""
    index = torch.zeros(len(positions), dtype=torch.long)
    for axis, (size, step) in enumerate(zip(grid, stride, strict=True)):
        index = index * size + positions[:, axis] // step
    return index


def cka_row(
    task: str,
    first: str,
    network1: SwinUNETR,
    second: str,
    network2: SwinUNETR,
    crops: Iterable[Tensor],
    seed: int,
) -> CkaRow:
    """CKA of all layers of two networks, over the crops; `seed` also draws the positions.

    Raises ValueError where a crop has too few tokens in the last stage to be a minibatch.
    """
    one, two = Layers(network1), Layers(network2)
    measured = _cka(one, two, crops, torch.Generator().manual_seed(seed))
    return CkaRow(
        task=task,
        first=first,
        second=second,
        seed=seed,
        rows=one.names,
        columns=two.names,
        values=_rounded(measured.value()),
        volumes=measured.minibatches,
    )


def _cka(
    one: Layers, two: Layers, crops: Iterable[Tensor], generator: torch.Generator
) -> MinibatchCKA:
    """generator: of the positions, in tokens of the coarser last stage."""
    measured = MinibatchCKA()
    stride = tuple(map(max, one.stride, two.stride))
    for crop in crops:
        positions = _positions(tuple(as_seen(one.network, crop).shape[2:]), stride, generator)
        measured.add(one.read(crop, positions), two.read(crop, positions))
    return measured


def _rounded(values: Tensor) -> list[list[float | None]]:
    return [[round(v, 5) if v == v else None for v in line] for line in values.tolist()]


def _positions(spatial: Shape, stride: Shape, generator: torch.Generator) -> Tensor:
    positions = draw_positions(spatial, stride, generator)
    if len(positions) < LEAST:
        raise ValueError(
            f"a crop of {spatial} voxels has {len(positions)} token(s) of {stride} voxels, but "
            f"CKA needs at least {LEAST}; use a larger patch"
        )
    return positions


@torch.inference_mode()
def attention_rows(
    task: str,
    arm: str,
    budget: Budget,
    seed: int,
    network: SwinUNETR,
    spacing: Spacing,
    crops: Iterable[Tensor],
) -> list[AttentionRow]:
    """Mean attention distance of each head over the crops. spacing: the configuration's, in
    nnU-Net's axes.
    """
    by_axis = tuple(spacing[axis - 2] for axis in network.to_file_axes[2:])
    with AttentionDistance(network.encoder, by_axis) as watch:
        for crop in crops:
            network.encoder(as_seen(network, crop))
    run_fields = {"task": task, "arm": arm, "budget": budget, "seed": seed}
    return [AttentionRow(**run_fields, **head.rounded._asdict()) for head in watch.rows()]
