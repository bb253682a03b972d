"""Spatial augmentation, the position and orientation of views: offsets and boxes drawn from a
generator, cut, resampled, flipped, rotated.

Flips and rotations move voxels and change none; only `resample` interpolates. All of them give one
image the same bits alone and in a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnssl.host_memory import to_device
from nnssl.types import Shape

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

# axis i of the result is axis permutation[i]; then axes to flip
Rotation = tuple[tuple[int, ...], tuple[int, ...]]
CLASSES = {2: (4,), 3: (4, 10, 24)}  # of rotations, by the number of axes


def inside(
    region: Shape, starts: Int[Tensor, "batch dims"], sizes: Int[Tensor, "batch dims"]
) -> Int[Tensor, "batch dims 2"]:
    """Where the scan lies in its region: [B dims 2], the first voxel and one past the last.

    `starts`, `sizes` [B dims]: the region's first voxel in the scan, and the scan's size, in
    voxels.
    """
    low = (-starts).clamp(min=0)
    high = torch.minimum(torch.as_tensor(region, device=starts.device), sizes - starts)
    return torch.stack([low, high], dim=-1)


def draw_offset(
    region: Shape,
    crop: Shape,
    generator: torch.Generator,
    within: Int[Tensor, "dims 2"] | None = None,
) -> Shape:
    """A uniformly random corner at which `crop` still lies inside `region`, and inside the scan.

    `within` [dims 2], whole numbers: see `inside`; None: the whole region. Along an axis on which
    the scan is smaller than the crop, the crop is centred on it.
    """
    corner = []
    for outer, size, (low, high) in zip(region, crop, _bounds(region, within), strict=True):
        room = high - low - size
        drawn = int(torch.randint(max(room, 0) + 1, (), generator=generator))
        corner.append(low + drawn if room >= 0 else min(max(low + room // 2, 0), outer - size))
    return tuple(corner)


def _bounds(region: Shape, within: Int[Tensor, "dims 2"] | None) -> list[tuple[int, int]]:
    """Along each axis the first voxel of the scan and one past the last."""
    if within is None:
        return [(0, size) for size in region]
    return [(low, high) for low, high in within.tolist()]


def per_scan(
    within: Int[Tensor, "batch dims 2"] | None, count: int
) -> Sequence[Int[Tensor, "dims 2"] | None]:
    """`within` of each of `count` scans, as `draw_offset` and `draw_box` take it."""
    return [None] * count if within is None else list(within)


def cut(
    volume: Shaped[Tensor, "channels *region"], offset: Shape, crop: Shape
) -> Shaped[Tensor, "channels *crop"]:
    """The part of `volume` [C *region] at `offset`: [C *crop], a view."""
    return volume[(slice(None), *(slice(o, o + c) for o, c in zip(offset, crop, strict=True)))]


def cut_each(
    volumes: Shaped[Tensor, "batch *region"], offsets: Int[Tensor, "views batch dims"], crop: Shape
) -> Shaped[Tensor, "views batch *crop"]:
    """Several cuts of each volume: [B *region] at whole `offsets` [V B dims] -> [V B *crop]."""
    scans = torch.arange(len(volumes), device=volumes.device)
    index = [scans.view(1, -1, *[1] * len(crop))]
    for axis, size in enumerate(crop):
        along = [1] * len(crop)
        along[axis] = size
        steps = torch.arange(size, device=volumes.device).view(1, 1, *along)
        index.append(offsets[..., axis].view(*offsets.shape[:2], *[1] * len(crop)) + steps)
    return volumes[tuple(index)]


def region_size(crop: Shape) -> Shape:
    """4/3 of the crop, so that any two cuts of it have at least (2/3)^3 = 30 % of the crop's volume
    in common.
    """
    return tuple(size + size // 3 for size in crop)


def crop_size(region: Shape) -> Shape:
    """The inverse of `region_size`."""
    return tuple(size - size // 4 for size in region)


# -- boxes of any size -----------------------------------------------------------------------------


def draw_box(
    region: Shape,
    sides: tuple[float, float],
    generator: torch.Generator,
    within: Int[Tensor, "dims 2"] | None = None,
) -> Float[Tensor, "dims 2"]:
    """A random box inside the region: [dims 2], start and side in voxels, neither of them whole
    numbers.

    Every side is the same fraction of the region's, drawn uniformly from `sides`. `within` as in
    `draw_offset`. Raises ValueError for fractions outside (0, 1].
    """
    low, high = _checked_sides(sides)
    draws = torch.rand(1 + len(region), generator=generator, dtype=torch.float64)
    fraction, *positions = draws.tolist()
    rows = []
    for position, size, bounds in zip(positions, region, _bounds(region, within), strict=True):
        side = size * (low + fraction * (high - low))
        rows.append([_start(position, size, side, bounds), side])
    return torch.tensor(rows, dtype=torch.float64)


def _checked_sides(sides: tuple[float, float]) -> tuple[float, float]:
    low, high = sides
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"the sides of a box are fractions of the region's, 0 < low <= high <= 1, got {sides}"
        )
    return sides


def _start(position: float, size: int, side: float, bounds: tuple[int, int]) -> float:
    """Where a box of `side` starts on an axis of `size` voxels: at `position` in [0, 1) of the room
    within `bounds`, or centred on them where there is none.
    """
    first, end = bounds
    room = end - first - side
    if room >= 0:
        return first + position * room
    return min(max(first + room / 2, 0.0), size - side)


def resample(
    regions: Float[Tensor, "batch channels *region"],
    boxes: Float[Tensor, "batch dims 2"],
    size: Shape,
) -> Float[Tensor, "batch channels *size"]:
    """What lies in the boxes, on a grid of `size`: [B C *region], [B dims 2] -> [B C *size].

    (Tri)linear. Where a box has more voxels than the grid, the kernel widens to the grid's step, so
    that what is finer than the grid is averaged and not aliased; a box of whole numbers with the
    grid's own size is cut out unchanged. Beyond the border the outermost voxel continues.
    """
    weights = [
        _linear_weights(boxes[:, axis].cpu(), regions.shape[2 + axis], size[axis])
        for axis in range(len(size))
    ]
    return separable_filter(regions, weights)


def _linear_weights(spans: Tensor, inner: int, outer: int) -> Tensor:
    """[B outer inner]: the weight of each voxel of an axis at each point of the grid on it; `spans`
    [B 2].
    """
    start, side = spans.double().unsqueeze(-1).unbind(dim=1)
    step = side / outer
    # [B outer], where whole numbers are middles of voxels
    points = start + (torch.arange(outer) + 0.5) * step - 0.5
    points = points.clamp(0, inner - 1)
    distance = (points.unsqueeze(-1) - torch.arange(inner)).abs()
    weights = (1 - distance / step.clamp(min=1).unsqueeze(-1)).clamp(min=0)
    return weights / weights.sum(dim=-1, keepdim=True)


def separable_filter(
    images: Float[Tensor, "batch channels *size"], weights: Sequence[Float[Tensor, "batch _ _"]]
) -> Float[Tensor, "batch channels *outer"]:
    """Weighted sums along each axis in turn: [B C *s] with one [B outer inner] per axis -> [B C
    *outer].

    A matrix product for each axis, of all images at once: the one it contracts is always the first,
    and the new one comes last, so that after all of them the axes stand in their old order.
    """
    batch, channels = images.shape[:2]
    outer = [weight.shape[1] for weight in weights]
    x = images.flatten(0, 1)
    for weight in weights:
        weight = to_device(weight.to(x.dtype), x.device).repeat_interleave(channels, dim=0)
        rest = x.shape[2:]
        x = torch.bmm(x.flatten(2).transpose(1, 2), weight.transpose(1, 2)).unflatten(1, rest)
    return x.reshape(batch, channels, *outer)


# -- flips and rotations ---------------------------------------------------------------------------


def draw_flips(dims: int, generator: torch.Generator) -> Bool[Tensor, " dims"]:
    """Bool [dims]: each axis is flipped with probability 1/2 (nnU-Net's mirroring)."""
    return torch.rand(dims, generator=generator) < 0.5


def flip(
    images: Shaped[Tensor, "batch channels *size"], flips: Bool[Tensor, "batch dims"]
) -> Shaped[Tensor, "batch channels *size"]:
    """[B C *s] with the axes flipped that `flips` [B dims] names for each image."""
    for axis, flipped in enumerate(per_image(flips, images)):
        images = torch.where(flipped, images.flip(2 + axis), images)
    return images


def per_image(
    values: Shaped[Tensor, "batch count"], images: Shaped[Tensor, "batch *shape"]
) -> tuple[Shaped[Tensor, "batch *_"], ...]:
    """`count` tensors of one value per image, on the device of `images` and as many axes."""
    values = to_device(values, images.device)
    return values.view(*values.shape, *[1] * (images.ndim - 1)).unbind(1)


def rotations(dims: int, classes: int) -> tuple[Rotation, ...]:
    """The proper rotations of a cube or a square by quarter turns; the first one turns nothing.

    In 3D `classes` is 24 (all), 10 (none, or 1 to 3 turns about one axis; Taleb 2020) or 4 (turns
    about z), each list being the beginning of the longer one; in 2D it is 4. Raises ValueError for
    another number.
    """
    _check_classes(dims, classes)
    first = _about_one_axis(dims)
    others = [r for r in _permutations_with_flips(dims) if _is_proper(r) and r not in first]
    return tuple([*first, *others][:classes])


def _check_classes(dims: int, classes: int) -> None:
    known = CLASSES[dims]
    if classes not in known:
        raise ValueError(
            f"in {dims}D there are {' or '.join(map(str, known))} classes of rotation, got "
            f"{classes}"
        )


def _about_one_axis(dims: int) -> list[Rotation]:
    """None, then 1 to 3 turns about each axis."""
    still: Rotation = (tuple(range(dims)), ())
    planes = [(0, 1)] if dims == 2 else [(1, 2), (0, 2), (0, 1)]
    quarter_turns = [_quarter_turns(dims, plane, turns) for plane in planes for turns in (1, 2, 3)]
    return [still, *quarter_turns]


def _permutations_with_flips(dims: int) -> list[Rotation]:
    """All orders of the axes, each with all sets of flipped axes: rotations and mirror images."""
    flags = itertools.product((False, True), repeat=dims)
    flips = [tuple(itertools.compress(range(dims), flipped)) for flipped in flags]
    return list(itertools.product(itertools.permutations(range(dims)), flips))


def _quarter_turns(dims: int, plane: tuple[int, int], turns: int) -> Rotation:
    """The same as `torch.rot90(x, turns, plane)`."""
    axes, (a, b) = list(range(dims)), plane
    if turns == 2:
        return tuple(axes), (a, b)
    axes[a], axes[b] = b, a
    return tuple(axes), (a if turns == 1 else b,)


def _is_proper(rotation: Rotation) -> bool:
    """Not a mirror image: the determinant, the product of the permutation's sign and the flips', is
    +1.
    """
    axes, flipped = rotation
    inversions = sum(axes[i] > axes[j] for i, j in itertools.combinations(range(len(axes)), 2))
    return (inversions + len(flipped)) % 2 == 0


def rotate(
    volume: Shaped[Tensor, "channels *size"], rotation: Rotation
) -> Shaped[Tensor, "channels *turned"]:
    """`volume` [C *cube] turned; no voxel changes. Works on any shape, of which it permutes the
    axes.
    """
    axes, flipped = rotation
    return volume.permute(0, *(1 + axis for axis in axes)).flip([1 + axis for axis in flipped])


def rotate_back(
    volume: Shaped[Tensor, "channels *size"], rotation: Rotation
) -> Shaped[Tensor, "channels *turned"]:
    """The inverse of `rotate`."""
    axes, flipped = rotation
    inverse = [axes.index(axis) for axis in range(len(axes))]
    return volume.flip([1 + axis for axis in flipped]).permute(0, *(1 + axis for axis in inverse))
