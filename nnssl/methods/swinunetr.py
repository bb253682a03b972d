"""Swin UNETR's pretext tasks: from two damaged views of a crop, predict how each was rotated, that
they belong together, and the original voxels.

Tang et al. 2022, "Self-supervised pre-training of Swin transformers for 3D medical image analysis",
CVPR, arXiv 2111.14791.

    crop -> two views, each turned by k x 90 degrees about z, then cut out: blocks of noise, blocks
    of another scan
      -> encoder -> T5 -+- mean -> linear -> which k?                     CE over 4  (rotation)
                        +- mean -> linear -> the other view of this crop  NT-Xent    (contrast)
                        +- 5 x (conv, norm, double) -> voxels             L1, all    (voxels)

T5: the tokens after the last merge (stride 32).
Differs from the authors' code: rotation and contrast read the mean of all tokens, not token 0 and
token 1 (`token0=true` for the latter); layer norm in place of the decoder's instance norm, which
would remove the mean of its few tokens, that is, what they say; tokens are layer-normalised before
the contrast; other crops of the same scan are no negatives; blocks have edges of 1/8 to 1/4 of the
view's (there 1/20 to 1/4), and those of another scan come from its undamaged view; half of the
crops are shown through a random HU window, both views through the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.encoder.swin import Swin
from nnssl.host_memory import to_device
from nnssl.methods.method import Method, MethodConfig, Step, weighted_total
from nnssl.modules.bounds import (
    require_above_zero,
    require_at_least,
    require_fraction,
    require_open_fraction,
    require_weights,
)
from nnssl.modules.contrast import nt_xent
from nnssl.modules.heads import pooled
from nnssl.modules.losses import accuracy_of
from nnssl.types import LAST, Shape
from nnssl.views.cutout import covered, draw_cutout
from nnssl.views.intensity import apply_windows, draw_window, gaussian
from nnssl.views.spatial import rotate, rotations

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class SwinUNETRConfig(MethodConfig):
    w_rotation: float = 1.0  # Tang 2022: all three weigh the same
    w_contrast: float = 1.0
    w_voxels: float = 1.0
    # of a view, at most, for the noise and again for the other scan (the authors' code)
    cut_share: float = 0.3
    # longest edge of a block, as a fraction of the view's (the authors' code)
    cut_edge: float = 0.25
    temperature: float = 0.5  # the authors' code
    head_out: int = 512  # the authors' code
    # read the rotation from token 0 and the contrast from token 1, as the authors' code
    token0: bool = False
    window_jitter: float = 0.5  # chance of a narrower HU window; not in the paper

    PUBLISHED: ClassVar[dict] = {
        "lr": 4e-4,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "drop_path": 0.0,
        "token0": True,
        "window_jitter": 0.0,
    }

    def __post_init__(self) -> None:
        require_weights(self, "w_rotation", "w_contrast", "w_voxels")
        require_open_fraction(self, "cut_share", "cut_edge")
        require_above_zero(self, "temperature")
        require_at_least(1, self, "head_out")
        require_fraction(self, "window_jitter")


class ConvDecoder(nn.Module):
    """From T5 to voxels, doubling five times: [B d *grid] -> [B 1 *size]; what lies beyond `size`
    is cut off.

    The authors' "vae" head: channels d -> d/2 -> d/4 -> d/8 -> d/16 -> d/16 -> 1. The last layer
    stands before the last doubling, not after it: both are linear and act on other axes, so the
    result is the same for 1/16 of memory.
    """

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        widths = [channels // 2**i for i in (0, 1, 2, 3, 4, 4)]
        self.mode = {2: "bilinear", 3: "trilinear"}[dims]
        self.layers = nn.ModuleList(
            nn.Sequential(
                convolution(wide, narrow, 3, padding=1), nn.GroupNorm(1, narrow), nn.LeakyReLU()
            )
            for wide, narrow in pairwise(widths)
        )
        self.to_voxels = convolution(widths[-1], 1, 1)

    def forward(
        self, tokens: Float[Tensor, "batch channels *grid"], size: Shape
    ) -> Float[Tensor, "batch 1 *size"]:
        *layers, last = self.layers
        for layer in layers:
            tokens = self._double(layer(tokens))
        return self._double(self.to_voxels(last(tokens)))[(..., *(slice(s) for s in size))]

    def _double(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode=self.mode)


class SwinUNETRPretext(Method):
    title = "Swin UNETR's pretext"
    family = "rotation + contrastive + inpainting"
    signal = (
        "how a view was rotated, which view is its twin, and its voxels before blocks were cut out"
    )
    citation = (
        "Tang et al., Self-supervised pre-training of Swin transformers for 3D medical image "
        "analysis, CVPR 2022"
    )
    smallest_batch = 4
    between_scans = "contrast"
    compares_within_part = True
    separating = ("contrast",)
    Config = SwinUNETRConfig
    config: SwinUNETRConfig

    def __init__(self, encoder: Swin, config: SwinUNETRConfig) -> None:
        super().__init__()
        self.config = config
        # what is cut out is cut out of the image
        self.student = encoder.copied(maskable=False, wanted=LAST)
        dims, channels = encoder.config.spatial_dims, encoder.channels[-1]
        self.rotations = rotations(dims, 4)
        self.rotation_head = nn.Linear(channels, 4)
        self.contrast_head = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, config.head_out)
        )
        self.decoder = ConvDecoder(channels, dims)

    @staticmethod
    def region(crop: Shape) -> Shape:
        """The crop itself. Raises ValueError where y and x differ: its shape would reveal the
        rotation.
        """
        if crop[-1] != crop[-2]:
            raise _no_square(crop)
        return crop

    @property
    def encoder(self) -> Swin:
        return self.student

    def views(
        self,
        regions: Float[Tensor, "batch 1 *region"],
        generators: Sequence[torch.Generator],
        within: Int[Tensor, "batch dims 2"] | None = None,
    ) -> dict[str, Tensor]:
        """{"image" [2 B 1 *crop]: turned; "noisy": the same with blocks of noise; "swapped" Bool [2
        B 1 *crop]: what another scan will cover (see `_student_input`); "turn" [2 B]}; `regions`
        [B 1 *crop].
        """
        c, size = self.config, tuple(regions.shape[2:])
        windows = [draw_window(c.window_jitter, generator, self.ranges) for generator in generators]
        shown = apply_windows(regions, windows)
        drawn = [
            self._draw_view(region, generator)
            for region, generator in zip(shown, generators, strict=True)
            for _ in range(2)
        ]
        images, turns, boxes, noises = zip(*drawn, strict=True)
        image, noise = torch.stack(images), torch.stack(noises)
        holes = covered(torch.stack(boxes, dim=1).flatten(0, 1), size, image.device)
        noised, swapped = holes.unsqueeze(1).chunk(2)
        by_scan = {
            "image": image,
            "noisy": torch.where(noised, noise, image),
            "swapped": swapped,
            "turn": to_device(torch.tensor(turns), image.device),
        }
        return {name: _by_view(value) for name, value in by_scan.items()}

    def _draw_view(
        self, region: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, int, Tensor, Tensor]:
        """The region [1 *crop] turned, how it was; boxes of noise and of another scan [2 N dims 2];
        noise [1 *crop] of std 1, the body's.
        """
        c, dims = self.config, region.ndim - 1
        turn = int(torch.randint(4, (), generator=generator))
        boxes = [draw_cutout(c.cut_share, c.cut_edge, dims, generator) for _ in range(2)]
        seed = int(torch.randint(2**62, (), generator=generator))
        image = rotate(region, self.rotations[turn])
        return image, turn, torch.stack(boxes), gaussian(region, seed)

    def loss(self, views: dict[str, Tensor]) -> Step:
        c, image, turn = self.config, views["image"].flatten(0, 1), views["turn"].flatten()
        last = self.student(self._student_input(views).flatten(0, 1), wanted=LAST)[-1]
        logits = self.rotation_head(self._read(last, 0)).float()
        first, second = self.contrast_head(self._read(last, 1)).chunk(2)
        contrast, found = nt_xent(first, second, c.temperature, views["scan"])
        losses = {
            "rotation": F.cross_entropy(logits, turn),
            "contrast": contrast,
            "voxels": F.l1_loss(self.decoder(last, image.shape[2:]).float(), image),
        }
        losses["total"] = weighted_total(losses, c)
        monitored = {
            "embedding": pooled(last.detach()),
            "accuracy_rotation": accuracy_of(logits, turn),
            "accuracy_contrast": found.detach(),
        }
        return Step(losses, monitored)

    def show(self, views: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch 1 *_"]]:
        image, student_input = (
            views["image"].flatten(0, 1),
            self._student_input(views).flatten(0, 1),
        )
        last = self.student(student_input, wanted=LAST)[-1]
        predicted = self.decoder(last, image.shape[2:]).float()
        return {"turned": image, "seen": student_input, "predicted": predicted}

    def _student_input(self, views: dict[str, Tensor]) -> Tensor:
        """The encoder's input [2 B 1 *crop]: in some blocks the scan before it in the batch, where
        it is another.

        Done here and not in `views`, whose result for a scan must not depend on the rest of its
        batch; which blocks is drawn there. A batch of one scan has nothing to swap.
        """
        scan = views["scan"].to(views["image"].device, non_blocking=True)
        another = (scan != scan.roll(1)).view(-1, *[1] * (views["image"].ndim - 2))
        return torch.where(
            views["swapped"] & another, views["image"].roll(1, dims=1), views["noisy"]
        )

    def _read(self, tokens: Tensor, number: int) -> Tensor:
        """[2B d *grid] -> [2B d]: the mean of the tokens, or with `token0` that of this number."""
        if not self.config.token0:
            return pooled(tokens)
        tokens = tokens.flatten(2)
        if tokens.shape[2] < 2:
            raise ValueError(
                "token0 needs two tokens, but the crop gives one: use a crop above 32 voxels, or "
                "token0=false"
            )
        return tokens[:, :, number]


def _no_square(crop: Shape) -> ValueError:
    works = " ".join(map(str, (*crop[:-2], *[min(crop[-2:])] * 2)))
    return ValueError(
        f"swinunetr needs a crop with equal y and x, got {'x'.join(map(str, crop))}: type --crop "
        f"{works}"
    )


def _by_view(rows: Tensor) -> Tensor:
    """Rows [B 2 ...] flattened, scan by scan, to [2 B ...]."""
    return rows.unflatten(0, (-1, 2)).transpose(0, 1)
