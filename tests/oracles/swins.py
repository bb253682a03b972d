"""SMIT's Swin and MONAI's before 1.5: MONAI 1.6.1's `SwinTransformer` with what is different there
put in its place.

Both are described in the projects' own code: SMIT's `models/Trans.py`
(github.com/The-Veeraraghavan-Lab/SMIT) and MONAI's pull request 8285. They see arrays (x, y, z), as
those projects load them.
"""

from __future__ import annotations

from unittest import mock

import torch
import torch.nn.functional as F
from monai.networks.nets import swin_unetr
from torch import Tensor, nn

SLICE = {0: slice(0, None, 2), 1: slice(1, None, 2)}


class _Merging(swin_unetr.PatchMergingV2):
    ORDER: tuple[tuple[int, int, int], ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        _, *grid, _ = x.shape
        x = F.pad(x, (0, 0, *(n for size in reversed(grid) for n in (0, size % 2))))
        parts = [x[:, SLICE[i], SLICE[j], SLICE[k]] for i, j, k in self.ORDER]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class LegacyMerging(_Merging):
    """MONAI before 1.5: (1, 1, 0) and (0, 1, 1) are never joined, (0, 1, 0) and (0, 0, 1) twice."""

    ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class SmitMerging(_Merging):
    ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1))


def unclipped(grid, window, shift=None):
    """In the place of MONAI's `get_window_size`: SMIT's windows are whole, and always shifted."""
    return tuple(window) if shift is None else (tuple(window), tuple(shift))


def smit_reverse(windows: Tensor, window: tuple[int, ...], dims: list[int]) -> Tensor:
    """In the place of MONAI's `window_reverse`: the axes are interchanged as though it were
    `window_partition`.
    """
    b, *grid = dims
    x = windows.view(b, *(g // w for g, w in zip(grid, window, strict=True)), *window, -1)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).contiguous().view(b, *grid, -1)


class Smit(nn.Module):
    """Gives, as SMIT's `SwinTransformer_Unetr`, what follows the last merge, and the four
    normalised stages.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
        qkv_bias: bool,
    ):
        super().__init__()
        self.swin = swin_unetr.SwinTransformer(
            in_chans=1,
            embed_dim=embed_dim,
            window_size=(window,) * 3,
            patch_size=(2, 2, 2),
            depths=depths,
            num_heads=heads,
            qkv_bias=qkv_bias,
            patch_norm=True,
            downsample=SmitMerging,
        )
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim * 2**i) for i in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        outs, x = [], self.swin.patch_embed(x)
        replaced = mock.patch.multiple(
            swin_unetr, get_window_size=unclipped, window_reverse=smit_reverse
        )
        for number in range(4):
            (stage,) = getattr(self.swin, f"layers{number + 1}")
            before = []
            hook = stage.downsample.register_forward_pre_hook(
                lambda _, inputs, kept=before: kept.append(inputs[0])
            )
            with replaced:
                x = stage(x)
            hook.remove()
            outs.append(self.norms[number](before[0]).movedim(-1, 1))
        return x, outs

    def published(self) -> dict[str, Tensor]:
        """The tensors under the names of SMIT's files."""
        names = {}
        for name, tensor in self.swin.state_dict().items():
            for stage in range(4):
                name = name.replace(f"layers{stage + 1}.0.", f"layers.{stage}.")
            names[name.replace("linear", "fc")] = tensor
        return names | {f"norm{name}": tensor for name, tensor in self.norms.state_dict().items()}
