"""The settings that a pretraining derives from the plan, the number of scans, the steps and the
batch size, and why.

As nnU-Net does for segmentation: every choice is one line with its reason, `--set field=value`
overrides it, and `--set published=true` keeps the papers' settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from nnssl import dist
from nnssl.methods import Method, MethodConfig
from nnssl.modules.encoder_with_heads import DistillationConfig
from nnssl.modules.masked import BlockSides, MaskedConfig
from nnssl.train.capacity import fitting_batch_size, timely_batch_size
from nnssl.types import PrintFn, Shape, Spacing
from nnssl.views.masking import block_grid

BLOCK_MM = 32.0  # of a hidden block: SMIT's 16 voxels at 2 mm
BLOCK_SIDES = (8, 16, 32)  # voxels; tokens of smaller blocks have seen too little
WHOLE_SIDES = (16, 32)  # voxels; blocks that hold whole windows of stages 1 and 2 (4 tokens)
BLOCKS = 4  # along an axis of the crop, at least
LEAST_CUBE, MOST_CUBES = 24, 3  # voxels of a cube of CPC; with 16 its last stage has one token
SHORT, LONG = 5_000, 20_000  # steps
FEW = 1_000  # scans
LEAST_MEMORY = 100  # steps of the student that a teacher remembers, at least
PARCELS_LR = 1e-3  # of `nnssl.methods.parcels`
TRIAL_BATCH = 8  # scans, for what is tried before a batch size is known
TITLE = (
    "chosen automatically (--set FIELD=VALUE overrides it, --set published=true keeps the "
    "papers' settings):"
)


@dataclass(frozen=True)
class Choice:
    """One field of a method's config, and why it has this value."""

    name: str
    value: object
    reason: str

    def __str__(self) -> str:
        return f"  {self.name}={self.value}: {self.reason}"


@dataclass(frozen=True)
class Sizes:
    """What choices follow: crop in voxels and spacing in mm, (z, y, x) or (y, x); scans of the
    collection.
    """

    crop: Shape
    spacing: Spacing
    scans: int
    steps: int
    batch_size: int  # scans per step


def configure(
    method: type[Method],
    settings: Sequence[str],
    sizes: Sizes,
    stored: dict | None = None,
    from_scans: Sequence[Choice] = (),
) -> tuple[MethodConfig, list[Choice]]:
    """The method's config, and what of it was chosen: neither set by `settings` nor published.

    from_scans: what was chosen before, from the scans themselves (`nnssl.train.parcels_choice`).
    stored: the "method_config" of a run that continues; its values stay. Raises ValueError for
    settings that cannot be.
    """
    given = method.Config.read(settings)
    if stored:
        return replace(method.Config.stored(stored), **given), []
    if given.get("published"):
        return method.Config.parse(settings), []
    choices = [*from_scans, *_choices(method, sizes, given)]
    chosen = [choice for choice in choices if choice.name not in given]
    config = method.Config.parse(settings, {choice.name: choice.value for choice in chosen})
    rates = [choice for choice in _of_parcels(config) if choice.name not in given]
    return replace(config, **{rate.name: rate.value for rate in rates}), [*chosen, *rates]


def _choices(method: type[Method], sizes: Sizes, given: dict) -> list[Choice]:
    """For all fields, also for those that are `given`."""
    return [
        *_of_masks(method, sizes, given),
        *_of_teachers(method, sizes),
        *_of_cubes(method, sizes, given),
        *_of_length(sizes),
    ]


def _of_parcels(config: MethodConfig) -> list[Choice]:
    """The rate of a run that learns from parcels, where its method's own is lower."""
    if not config.parcel_classes or config.lr >= PARCELS_LR:
        return []
    reason = "parcels are learnt like a segmentation, at a higher learning rate"
    return [Choice("lr", PARCELS_LR, reason), Choice("lr_most", PARCELS_LR, reason)]


def print_choices(chosen: list[Choice], print_fn: PrintFn) -> None:
    """One line per choice."""
    if chosen:
        print_fn("\n".join([TITLE, *map(str, chosen)]))


def batch_size(method: Method, crop: Shape, device: torch.device, bf16: bool) -> tuple[int, str]:
    """Scans for one process, the same for all of them, and why: what fits, and on a CPU what is
    done in time.
    """
    fits = dist.all_reduce_min(fitting_batch_size(method, crop, device, bf16), device)
    reason = f"{fits} fit into the memory of one process"
    if device.type != "cpu" or fits <= method.smallest_batch:
        return fits, reason
    timely = dist.all_reduce_min(timely_batch_size(method, crop, device), device)
    if timely >= fits:
        return fits, reason
    seconds = f"on this CPU a step of {timely} takes a second or two"
    return timely, f"{seconds}, or the method needs this many"


def check_scans(method: type[Method], scans: int, print_fn: PrintFn) -> None:
    """Warn through `print_fn` where a collection of one scan leaves one of the losses at 0. Raises
    ValueError where it is the whole loss.
    """
    if scans > 1 or not method.between_scans:
        return
    found = f"{method.title} compares different scans, and there is {scans} usable scan"
    cure = "give more scans (-i, -d), or choose another method (nnssl_pretrain --list)"
    if method.between_scans == "total":
        raise ValueError(f"{found}; the loss would be 0 throughout. At least 2 are needed: {cure}")
    print_fn(f"WARNING: {found}; the loss {method.between_scans!r} is 0 throughout. {cure}")


def warn_small(method: Method, batch_size: int, accumulate: int, print_fn: PrintFn) -> None:
    """Warn through `print_fn` if a step of `batch_size` scans in `accumulate` parts has fewer than
    the method needs: in a part, where these are compared.
    """
    least, within = method.smallest_batch, method.compares_within_part
    together = batch_size // accumulate if within else batch_size
    if together >= least:
        return
    if within:
        needed = "compares the scans of a part of a step with one another"
        cure = (
            "with a smaller --crop or --checkpointing, fewer parts (--accumulate does not help: "
            "each part is compared alone), more GPUs,"
        )
    else:
        needed = "learns from the scans of a step together"
        cure = "with --accumulate, a smaller --crop or --checkpointing where they do not fit,"
    print_fn(
        f"WARNING: {method.title} {needed} and needs at least about {least} of them; this run has "
        f"{together}. Try --batch-size {least} {cure} or a method that needs fewer "
        "(nnssl_pretrain --list)"
    )


def require_visible(config: MethodConfig, crop: Shape) -> None:
    """Raises ValueError where every block of a crop would be hidden, or blocks do not divide it."""
    sides = config.block_sides(len(crop))
    blocks = math.prod(block_grid(crop, sides))
    if config.most_hidden(blocks) < blocks:
        return
    raise ValueError(
        f"all of the {blocks} block(s) of {'x'.join(map(str, sides))} voxels in a crop of "
        f"{'x'.join(map(str, crop))} would be hidden, but a view needs a visible one. Type a "
        "larger --crop, or a smaller block or a lower ratio with --set mask_block=N mask_ratio=X"
    )


def fitting_crop(method: type[Method], crop: Shape, settings: Sequence[str] = ()) -> Shape:
    """The nearest smaller crop that the method takes: of whole blocks where `settings` name their
    size, and a rotation needs equal sides.

    Raises ValueError, as `method.region` does, where no such crop works.
    """
    # what is chosen later for the crop divides all crops of a plan, as the default does
    blocks = method.Config.parse(settings).block_sides(len(crop))
    crop = tuple(size - size % side or size for size, side in zip(crop, blocks, strict=True))
    square = (*crop[:-2], *[min(crop[-2:])] * 2)
    for tried in (crop, square):
        try:
            method.region(tried)
        except ValueError:
            continue
        return tried
    method.region(cube := (min(crop),) * len(crop))
    return cube


def hidden_block(crop: Shape, spacing: Spacing, allowed: Sequence[int] = BLOCK_SIDES) -> BlockSides:
    """Some 32 mm along each axis as a power of two of voxels among `allowed`, and at least four
    blocks where the crop allows.
    """
    pairs = zip(crop, spacing, strict=True)
    return BlockSides(_block_side(size, mm, allowed) for size, mm in pairs)


def _block_side(size: int, mm: float, allowed: Sequence[int]) -> int:
    """The side of a block along an axis of `size` voxels of `mm`."""
    wanted = 2 ** round(math.log2(BLOCK_MM / mm))
    fitting = [side for side in allowed if size % side == 0 and size // side >= BLOCKS]
    return min(fitting or allowed[:1], key=lambda side: abs(math.log2(side / wanted)))


def _of_masks(method: type[Method], sizes: Sizes, given: dict) -> list[Choice]:
    if not issubclass(method.Config, MaskedConfig):
        return []
    alone = given.get("visible_only", False)
    allowed = WHOLE_SIDES if alone else BLOCK_SIDES
    block = hidden_block(sizes.crop, sizes.spacing, allowed)
    return [Choice("mask_block", block, _reason_for_block(block, sizes.spacing, allowed))]


def _reason_for_block(block: Shape, spacing: Spacing, allowed: Sequence[int]) -> str:
    size = " x ".join(f"{side * mm:.0f}" for side, mm in zip(block, spacing, strict=True))
    sides = f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]} voxels"
    return (
        f"{size} mm at this spacing: of {sides} the nearest to the {BLOCK_MM:.0f} mm of SMIT's "
        f"authors, with at least {BLOCKS} blocks along each axis where the crop allows"
    )


def _of_teachers(method: type[Method], sizes: Sizes) -> list[Choice]:
    if not issubclass(method.Config, DistillationConfig):
        return []
    scans, steps = sizes.scans, sizes.steps
    return [_prototypes(scans), _momentum(steps), *_head_hidden(scans), *_temperature(steps)]


def _prototypes(scans: int) -> Choice:
    count = 1024 if scans < FEW else 4096 if scans < 10_000 else 8192
    reason = f"{scans} scans; the 8192 of the papers are for ten thousand"
    return Choice("prototypes", count, reason)


def _momentum(steps: int) -> Choice:
    momentum = round(min(max(1 - 10 / steps, 1 - 1 / LEAST_MEMORY), 0.999), 4)
    tenth = "a tenth of the run" if steps >= 10 * LEAST_MEMORY else f"{LEAST_MEMORY} steps"
    reason = f"{steps} steps: the teacher follows within {tenth}"
    return Choice("teacher_momentum", momentum, reason)


def _head_hidden(scans: int) -> list[Choice]:
    if scans >= FEW:
        return []
    reason = f"{scans} scans; the 2048 of the papers cost more time than a small encoder"
    return [Choice("head_hidden", 512, reason)]


def _temperature(steps: int) -> list[Choice]:
    if steps > LONG:
        return []
    reason = f"{steps} steps: a softer teacher pays off in runs above {LONG}"
    return [Choice("teacher_temperature_end", 0.04, reason)]


def _of_cubes(method: type[Method], sizes: Sizes, given: dict) -> list[Choice]:
    if not hasattr(method.Config, "cubes"):  # CPC's
        return []
    shortest = min(sizes.crop)
    fitting = max(shortest // LEAST_CUBE, 2, (given.get("ahead") or 1) + 1)
    cubes = given.get("cubes", min(fitting, MOST_CUBES))
    ahead = Choice("ahead", min(2, cubes - 1), f"lines have {cubes} cubes")
    return [Choice("cubes", cubes, _reason_for_cubes(shortest // cubes)), ahead]


def _reason_for_cubes(side: int) -> str:
    reason = f"cubes of {side} voxels"
    return reason if side >= LEAST_CUBE else f"{reason}; take a --crop of {2 * LEAST_CUBE} or more"


def _of_length(sizes: Sizes) -> list[Choice]:
    """AdamW's second moment should not outlast a good part of the run."""
    steps = sizes.steps
    if steps >= LONG:
        return []
    reason = f"the default 0.999 averages over some 1000 steps, and the run has {steps}"
    return [Choice("beta2", 0.95 if steps < SHORT else 0.98, reason)]
