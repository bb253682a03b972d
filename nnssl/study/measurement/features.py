"""Feature reuse, measured: encoders from their files, crops of scans, and the rows of CKA and
attention distance.

Both networks of a comparison see a crop through the intensity map of the fine-tuned one, so that an
encoder is compared and not its input. Examples of CKA are places in a scan: all layers are read at
the same ones, at most one in a token of the last stage. A crop is a minibatch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nnssl import checkpoint, finetune
from nnssl.encoder.blocks import Stage
from nnssl.encoder.swin import Swin
from nnssl.finetune.architecture import is_ours
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.study.measurement.attention import AttentionDistance
from nnssl.study.measurement.cka import LEAST, MinibatchCKA
from nnssl.types import FINAL, Shape, Spacing

PLACES = 128  # examples of a minibatch, where the last stage has so many tokens


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
    if not is_ours(resolved):
        name = resolved.get("architecture", {}).get("network_class_name")
        raise ValueError(
            f"{path} holds a {name}; CKA and attention distance compare Swin encoders of this "
            "package"
        )
    weights = saved["network_weights"]
    channels = weights["encoder.patch_embed.proj.weight"].shape[1]
    heads = [name for name in weights if finetune.HEADS in name and name.endswith("weight")]
    network = finetune.build(resolved, channels, len(weights[heads[0]]), deep_supervision=False)
    network.load_state_dict(weights)
    return network.eval()


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
        data, labels = np.asarray(stored), np.asarray(seg)
        generator = np.random.default_rng([seed, number])
        places = np.argwhere(labels[0] > 0)
        centre = (
            places[generator.integers(len(places))]
            if len(places)
            else np.array(labels.shape[1:]) // 2
        )
        yield torch.from_numpy(_cut(data, centre, patch))[None]


def _cut(data: np.ndarray, centre: np.ndarray, patch: Shape) -> np.ndarray:
    """[C Z Y X] to [C *patch] around `centre`, moved inside where the scan is large enough."""
    size = (1,) * (3 - len(patch)) + tuple(patch)
    out = np.zeros((len(data), *size), np.float32)
    from_, to = [slice(None)], [slice(None)]
    for place, length, whole in zip(centre, size, data.shape[1:], strict=True):
        start = int(np.clip(place - length // 2, 0, max(0, whole - length)))
        kept = min(length, whole - start)
        from_.append(slice(start, start + kept))
        to.append(slice(0, kept))
    out[tuple(to)] = data[tuple(from_)]
    return out.reshape(len(data), *patch)


class Layers:
    """Reads an encoder's layers at places of a crop: after the patch embedding and after every
    block.

    names: "patch embedding", "stage 1 block 1", ...
    """

    def __init__(self, network: SwinUNETR) -> None:
        self.network, encoder = network, network.encoder
        self.names = ["patch embedding"]
        self._watched: list[tuple[int, Stage, nn.Module]] = []
        for number, stage in enumerate(encoder.stages):
            for place, block in enumerate(stage.blocks):
                self.names.append(f"stage {number + 1} block {place + 1}")
                self._watched.append((number, stage, block))

    @torch.inference_mode()
    def read(self, crop: Tensor, places: Tensor) -> list[Tensor]:
        """crop [1 C *patch]; places [n dims], in voxels of the encoder's axes; a list of [n
        channels].
        """
        encoder, found, grids, hooks = self.network.encoder, {}, {}, []

        def embedded(module: nn.Module, inputs: tuple, tokens: Tensor) -> None:
            found[0] = tokens[0].flatten(0, -2)[
                _raster(places, tokens.shape[1:-1], self._strides(0))
            ]

        def staged(number: int) -> Callable[[nn.Module, tuple], None]:
            return lambda module, inputs: grids.update({number: tuple(inputs[0].shape[1:-1])})

        def blocked(index: int, number: int) -> Callable[[nn.Module, tuple, Tensor], None]:
            def keep(module: nn.Module, inputs: tuple, tokens: Tensor) -> None:
                order = inputs[1].tokens  # raster index of each token of the list
                where = torch.empty_like(order).scatter_(
                    0, order, torch.arange(len(order), device=order.device)
                )
                found[index] = tokens[0][
                    where[_raster(places, grids[number], self._strides(number))]
                ]

            return keep

        hooks.append(encoder.patch_embed.register_forward_hook(embedded))
        for index, (number, stage, block) in enumerate(self._watched, start=1):
            hooks.append(stage.register_forward_pre_hook(staged(number)))
            hooks.append(block.register_forward_hook(blocked(index, number)))
        try:
            encoder(as_seen(self.network, crop))
        finally:
            for hook in hooks:
                hook.remove()
        return [found[index] for index in sorted(found)]

    def _strides(self, number: int) -> Shape:
        return strides(self.network.encoder, number)


def as_seen(network: SwinUNETR, crop: Tensor) -> Tensor:
    """What the network's encoder gets to see of a crop in nnU-Net's axes and intensities."""
    seen = crop.permute(network.to_file_axes)
    return network.encoder.get_submodule("intensity")(seen)


def strides(encoder: Swin, stage: int) -> Shape:
    """Voxels from one token to the next in a stage, from 0, by axis."""
    steps = [encoder.config.step(number) for number in range(stage + 1)]
    return tuple(int(np.prod(axis)) for axis in zip(*steps, strict=True))


def draw_places(spatial: Shape, stride: Shape, generator: torch.Generator) -> Tensor:
    """[n dims] voxels, n at most PLACES: in different tokens of that stride, anywhere in each."""
    grid = [-(-size // step) for size, step in zip(spatial, stride, strict=True)]
    cells = torch.randperm(int(np.prod(grid)), generator=generator)[:PLACES]
    corner = torch.stack(torch.unravel_index(cells, grid), dim=1) * torch.tensor(stride)
    room = torch.minimum(torch.tensor(stride), torch.tensor(spatial) - corner)
    return corner + (torch.rand(corner.shape, generator=generator) * room).long()


def _raster(places: Tensor, grid: Shape, stride: Shape) -> Tensor:
    """[n] index of the token in which each place lies."""
    index = torch.zeros(len(places), dtype=torch.long)
    for axis, (size, step) in enumerate(zip(grid, stride, strict=True)):
        index = index * size + places[:, axis] // step
    return index


def cka_row(
    task: str,
    first: str,
    network1: SwinUNETR,
    second: str,
    network2: SwinUNETR,
    crops: Iterable[Tensor],
    seed: int,
) -> dict:
    """The row of `results.jsonl`: CKA of all layers of two networks, over the crops; `seed` also
    draws the places.

    Raises ValueError where a crop has too few tokens in the last stage to be a minibatch.
    """
    one, two, measured = Layers(network1), Layers(network2), MinibatchCKA()
    generator = torch.Generator().manual_seed(seed)
    for crop in crops:
        spatial = tuple(as_seen(network1, crop).shape[2:])
        stride = tuple(map(max, strides(network1.encoder, 3), strides(network2.encoder, 3)))
        places = draw_places(spatial, stride, generator)
        if len(places) < LEAST:
            raise ValueError(
                f"a crop of {spatial} voxels has {len(places)} token(s) of {stride} voxels, CKA "
                f"needs {LEAST} or more; use a larger patch"
            )
        measured.add(one.read(crop, places), two.read(crop, places))
    values = [[round(v, 5) if v == v else None for v in line] for line in measured.value().tolist()]
    row = {"kind": "cka", "task": task, "first": first, "second": second, "seed": seed}
    return {
        **row,
        "rows": one.names,
        "columns": two.names,
        "values": values,
        "volumes": measured.minibatches,
    }


@torch.inference_mode()
def attention_rows(
    task: str,
    arm: str,
    budget: int | str,
    seed: int,
    network: SwinUNETR,
    spacing: Spacing,
    crops: Iterable[Tensor],
) -> list[dict]:
    """The rows of `results.jsonl`: mm of each head over the crops. spacing: the configuration's, in
    nnU-Net's axes.
    """
    by_axis = tuple(spacing[axis - 2] for axis in network.to_file_axes[2:])
    with AttentionDistance(network.encoder, by_axis) as watch:
        for crop in crops:
            network.encoder(as_seen(network, crop))
    of = {"kind": "attention", "task": task, "arm": arm, "budget": budget, "seed": seed}
    return [
        {**of, **row, "mm": round(row["mm"], 4), "uniform_mm": round(row["uniform_mm"], 4)}
        for row in watch.rows()
    ]
