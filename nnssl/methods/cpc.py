"""CPC: from the sub-cubes passed so far, distinguish the next ones from all others.

van den Oord et al. 2018, "Representation learning with contrastive predictive coding", arXiv
1807.03748; in 3D Taleb et al. 2020, "3D self-supervised methods for medical imaging", NeurIPS,
arXiv 2006.03829.

    region -> 3 x 3 x 3 cubes, apart -> each alone: encoder -> mean of T5 -> linear -> z
              along a random axis, either way:  z_1 .. z_t -> GRU -> c_t,  z_t + W_k c_t: which cube
              is z_t+k?
                                                                                  InfoNCE, k = 1, 2

T5: the tokens after the last merge (stride 32). Cubes are encoded apart, never as tokens of one
pass: shifted windows and merging would carry the target into the context. Differs from the papers:
cubes have no voxel in common (a third of the crop long, each at a random place in a cell a quarter
longer) and each has intensities of its own, so that nothing that continues across a border gives
the answer away; the axis and direction of the walk are drawn for each scan; the context is that of
one line of cubes, not of all layers passed; the prediction starts from the present code (z_t + W_k
c_t, there W_k c_t); cosines and a temperature instead of a bilinear score; tokens are
layer-normalised before the codes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nnssl.encoder.config import PATCH
from nnssl.encoder.swin import Swin
from nnssl.host_memory import to_device
from nnssl.methods.method import Method, MethodConfig, Step
from nnssl.modules.bounds import require_above_zero, require_at_least
from nnssl.modules.contrast import info_nce
from nnssl.modules.heads import pooled
from nnssl.modules.voxel_decoders import unfold_cubes
from nnssl.types import LAST, Shape
from nnssl.views.intensity import apply_intensity, draw_intensity
from nnssl.views.spatial import cut, draw_offset

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class CPCConfig(MethodConfig):
    lr: float = 2e-4  # ours: at 6e-4 a run of 600 steps collapsed
    # along each axis; nnssl_pretrain takes as many as leave 24 voxels a cube, at most 3
    cubes: int = 3
    ahead: int = 0  # predict 1 to this many cubes ahead; 0: 2, or 1 where there are 2 cubes
    temperature: float = 0.1  # ours; the papers' score has none
    head_out: int = 256  # width of z (Taleb 2020: 256 units of the GRU in their code)
    head_hidden: int = 256  # width of the context

    def __post_init__(self) -> None:
        if self.cubes < 2:
            raise ValueError(
                "cubes must be at least 2 along each axis, one as context and one to predict, got "
                f"{self.cubes}"
            )
        if not 0 <= self.ahead < self.cubes:
            raise ValueError(
                f"ahead must be 1 to {self.cubes - 1} (one less than cubes), or 0 to choose it by "
                f"cubes, got {self.ahead}"
            )
        require_above_zero(self, "temperature")
        require_at_least(1, self, "head_hidden", "head_out")

    @property
    def distances(self) -> int:
        """How many cubes ahead the farthest prediction is."""
        return self.ahead or min(2, self.cubes - 1)


class _Predictors(nn.ModuleList):
    keeps_fp32 = True  # see `CPC._predict`


class CPC(Method):
    title = "contrastive predictive coding"
    family = "contrastive (predictive coding)"
    signal = "which cube comes next along a line"
    citation = (
        "van den Oord et al., Representation learning with contrastive predictive coding, 2018, "
        "arXiv 1807.03748"
    )
    smallest_batch = 2
    compares_within_part = True
    separating = ("total",)
    Config = CPCConfig
    config: CPCConfig

    def __init__(self, encoder: Swin, config: CPCConfig) -> None:
        super().__init__()
        self.config = config
        self.student = encoder.copied(maskable=False, wanted=LAST)  # nothing is hidden
        channels = encoder.channels[-1]
        self.projector = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, config.head_out))
        self.context = nn.GRU(config.head_out, config.head_hidden, batch_first=True)
        self.predictors = _Predictors(
            nn.Linear(config.head_hidden, config.head_out) for _ in range(config.distances)
        )

    @staticmethod
    def region(crop: Shape) -> Shape:
        """5/4 of the crop: each cell is a quarter longer than its cube (40 voxels for 32), which
        moves in it.
        """
        return tuple(size + size // 4 for size in crop)

    @property
    def encoder(self) -> Swin:
        return self.student

    def views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        within: Int[Tensor, "batch dims 2"] | None = None,
    ) -> dict[str, Tensor]:
        """{"cubes": [B steps lines 1 *cube]}, in the order of a walk along a random axis, either
        way.

        `regions` [B 1 *region]. No two cubes have a voxel in common. Raises ValueError where a cube
        would be smaller than an encoder's patch.
        """
        size = tuple(regions.shape[2:])
        cube = self._cube(size)
        cubes, intensities, walks = [], [], []
        for region, generator in zip(regions, generators, strict=True):
            walks.append(self._draw_walk(len(size), generator))
            # lazily: a cube's offset is drawn, then its intensities, then the next cube's offset
            for offset in self._draw_offsets(size, cube, generator):
                cubes.append(cut(region, offset, cube))
                intensities.append(draw_intensity(generator, self.ranges))
        augmented = apply_intensity(torch.stack(cubes), intensities)
        augmented = augmented.unflatten(0, (len(regions), -1))
        walk = torch.stack(walks)  # [B steps lines]
        scan = torch.arange(len(walk))[:, None, None]
        rows = to_device((scan * augmented.shape[1] + walk).flatten(), augmented.device)
        return {"cubes": augmented.flatten(0, 1).index_select(0, rows).unflatten(0, walk.shape)}

    def _draw_offsets(
        self, region: Shape, cube: Shape, generator: torch.Generator
    ) -> Iterator[Shape]:
        """Where each cube starts: anywhere in its cell of the region."""
        cell = tuple(size // self.config.cubes for size in region)
        for position in itertools.product(range(self.config.cubes), repeat=len(region)):
            moved = draw_offset(cell, cube, generator)
            steps = zip(position, cell, moved, strict=True)
            yield tuple(number * side + move for number, side, move in steps)

    def loss(self, views: dict[str, Tensor]) -> Step:
        cubes = views["cubes"]
        features = pooled(self.student(cubes.flatten(0, 2), wanted=LAST)[-1])
        z = self.projector(features).unflatten(0, cubes.shape[:3])
        losses, right = {}, []
        for ahead, predicted in enumerate(self._predict(z), start=1):
            loss, accuracy = self._contrast(predicted[:, :-ahead], z[:, ahead:])
            losses[f"ahead_{ahead}"] = loss
            right.append(accuracy)
        losses["total"] = torch.stack(list(losses.values())).mean()
        features = features.detach().unflatten(0, cubes.shape[:3])
        middle = features[:, cubes.shape[1] // 2, cubes.shape[2] // 2]
        return Step(losses, {"embedding": middle, "accuracy": torch.stack(right).mean()})

    def show(self, views: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch 1 *_"]]:
        """The cubes as a wall, walked from left to right; and what is known when the last ones are
        to be found.
        """
        cubes = views["cubes"]
        known = cubes.clone()
        known[:, -1] = math.nan
        return {
            "cubes, left to right": self._wall(cubes),
            "known before the last": self._wall(known),
        }

    def _predict(
        self, z: Float[Tensor, "batch steps lines dim"]
    ) -> list[Float[Tensor, "batch steps lines dim"]]:
        """For 1, 2, ... ahead: z_t + W_k c_t, [B steps lines d], of each step of a line and those
        before it alone.

        Neighbours are alike, so z_t itself is a guess that is right at times, and W_k c_t learns
        what changes.
        """
        lines = z.transpose(1, 2).float()
        # not every recurrent kernel knows bf16, and it is small
        with torch.autocast(z.device.type, enabled=False):
            contexts = (
                self.context(lines.flatten(0, 1))[0].unflatten(0, lines.shape[:2]).transpose(1, 2)
            )
            return [z + predictor(contexts) for predictor in self.predictors]

    def _contrast(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """[B steps lines d] each -> loss, accuracy."""
        # Without scans: the other cubes of the same crop are negatives too, and the best ones.
        loss, accuracy = info_nce(
            predicted.flatten(0, 2), target.flatten(0, 2), self.config.temperature
        )
        return loss, accuracy.detach()

    def _cube(self, region: Shape) -> Shape:
        """The size of a cube: a part of the crop that `region` was read for, in whole patches."""
        crop = tuple(size - size // 5 for size in region)
        cube = tuple(size // self.config.cubes // PATCH * PATCH for size in crop)
        if min(cube) < PATCH:
            raise self._no_room(crop)
        return cube

    def _no_room(self, crop: Shape) -> ValueError:
        return ValueError(
            f"a crop of {'x'.join(map(str, crop))} is too small for {self.config.cubes} cubes "
            "along each axis; use a larger --crop or fewer cubes (--set cubes=2)"
        )

    def _draw_walk(self, dims: int, generator: torch.Generator) -> Tensor:
        """[steps lines]: the numbers of the cubes, step by step along a random axis in a random
        direction.
        """
        axis = int(torch.randint(dims, (), generator=generator))
        backwards = torch.rand((), generator=generator) < 0.5
        numbers = torch.arange(self.config.cubes**dims).view([self.config.cubes] * dims)
        numbers = numbers.movedim(axis, 0).flatten(1)
        return numbers.flip(0) if backwards else numbers

    def _wall(self, cubes: Tensor) -> Tensor:
        """[B steps lines 1 *cube] -> [B 1 *wall]: the steps along the last axis, the lines along
        the others.
        """
        dims, count = cubes.ndim - 4, self.config.cubes
        # [B lines.. steps *cube]
        grid = cubes[:, :, :, 0].movedim(1, 2).unflatten(1, [count] * (dims - 1))
        return unfold_cubes(grid).unsqueeze(1)
