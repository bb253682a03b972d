"""Group the slices of a DICOM folder into stacks, and reject stacks that are not scans."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl.data.dicom_slices import Slice
from nnssl.data.orientation import off_right_angles
from nnssl.data.refusals import UnusableScanError, check_components
from nnssl.data.stacks import arrange
from nnssl.files import fingerprint
from nnssl.types import Spacing

VERSION = 5  # goes up when a change in these rules makes kept results wrong
# of the survey's answers that were right before, of series of `each_by_itself` and of others
EACH_VERSION, OTHERS_VERSION = 4, 2
READ = ("CT", "MR")  # modalities
INVERTED = "MONOCHROME1"
Grid = tuple[tuple[float, ...], tuple[float, ...]]  # orientation and pixel of a slice

LOCALIZER_WORDS = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}
SAME_DIRECTION = 1e-3  # of directions, unit vectors: half a millimetre at the edge of a slice
SAME_PIXEL = 1e-3  # mm
REFORMAT_WORDS = {"REFORMATTED", "MPR", "CPR", "MIP", "MINIP", "PROJECTION", "VRT", "VOLREN"}


@dataclass(frozen=True)
class Series:
    """Slices that make one stack: file names in order along the stack, spacing (z, y, x), or why it
    is left out.

    `frames`: of the files, where one has several. `positions` where the slices make no straight and
    even grid; `note` says so then. `each_by_itself`: its files, of one slice each, differ in slope,
    intercept or the type of their voxels.
    """

    uid: str
    files: tuple[str, ...]
    spacing: Spacing = ()
    reason: str = ""
    modality: str = ""
    frames: tuple[int, ...] = ()
    orientation: tuple[float, ...] = ()
    positions: tuple[tuple[float, ...], ...] = ()
    note: str = ""
    each_by_itself: bool = False

    def signature(self, folder: Path | str) -> list:
        """What changes when one of its files changes."""
        paths = [Path(folder, name) for name in dict.fromkeys(self.files)]
        version = EACH_VERSION if self.each_by_itself else OTHERS_VERSION
        return [version, _state_of_files(paths), self.reason]


def signature_of(paths: Sequence[Path]) -> list:
    """What changes when one of the files or these rules change."""
    return [VERSION, _state_of_files(paths)]


def _state_of_files(paths: Sequence[Path]) -> str:
    states = [(path.name, (status := path.stat()).st_size, status.st_mtime_ns) for path in paths]
    return fingerprint(states)


def judge(slices: Iterable[Slice]) -> list[Series]:
    """Group slices to stacks and order each. A UID that holds several stacks (size, orientation)
    names them #2, #3.
    """
    return [_judge_stack(uid, stack) for uid, stack in _named_stacks(slices)]


def _named_stacks(slices: Iterable[Slice]) -> Iterator[tuple[str, list[Slice]]]:
    """Each stack with its name, of a UID the largest first."""
    groups: dict[str, dict[tuple, dict]] = defaultdict(lambda: defaultdict(dict))
    for one in slices:
        alike = groups[one.series][_stack(one)]
        alike.setdefault((one.orientation, one.pixel), []).append(one)
    for uid, kinds in groups.items():
        stacks = [stack for alike in kinds.values() for stack in _joined(alike)]
        largest_first = sorted(stacks, key=len, reverse=True)
        for number, stack in enumerate(largest_first, start=1):
            yield (uid if number == 1 else f"{uid}#{number}"), stack


def _joined(alike: Mapping[Grid, list[Slice]]) -> Iterable[list[Slice]]:
    """Slices with directions and pixels that differ by rounding only are one stack. Numbers that
    are rounded before they are compared would differ on both sides of a half.
    """
    stacks: dict[Grid, list[Slice]] = {}
    for grid, slices in alike.items():
        known = next((other for other in stacks if _is_same_grid(grid, other)), grid)
        stacks.setdefault(known, []).extend(slices)
    return stacks.values()


def _is_same_grid(one: Grid, other: Grid) -> bool:
    pairs = zip(one, other, (SAME_DIRECTION, SAME_PIXEL), strict=True)
    return all(_are_close(values, others, most) for values, others, most in pairs)


def _are_close(values: tuple[float, ...], others: tuple[float, ...], most: float) -> bool:
    if len(values) != len(others):
        return False
    return all(abs(a - b) < most for a, b in zip(values, others, strict=True))


def _stack(one: Slice) -> tuple:
    """Slices for which this is equal can be one volume, if they lie on the same grid."""
    return (
        one.size,
        one.components,
        one.modality,
        one.echo if one.modality == "MR" else "",
        bool(_image_type_words(one) & LOCALIZER_WORDS),
        bool(one.position),
    )


def _image_type_words(one: Slice) -> set[str]:
    return set(re.split(r"[^A-Z0-9]+", one.image_type))


def _judge_stack(uid: str, slices: list[Slice]) -> Series:
    # The same slice copied under another name. Where an anonymisation gave all slices one UID, they
    # still lie at different positions.
    stack = list({(one.instance, one.position): one for one in slices}.values())
    try:
        _check_kind(stack)
        return _arranged(uid, stack)
    except UnusableScanError as refusal:
        names = tuple(dict.fromkeys(one.name for one in stack))
        return Series(uid, names, reason=str(refusal), modality=stack[0].modality)


def _arranged(uid: str, stack: list[Slice]) -> Series:
    """In order along the stack. UnusableScanError for slices that do not form a grid."""
    first = stack[0]
    positions = np.array([one.position for one in stack])
    found = arrange(positions, np.array(first.orientation), table=first.modality == "CT")
    ordered = [stack[number] for number in found.order]
    return Series(
        uid,
        tuple(one.name for one in ordered),
        (found.spacing, *first.pixel[::-1]),
        modality=first.modality,
        frames=tuple(one.frame for one in ordered) if first.size[2] > 1 else (),
        orientation=first.orientation,
        positions=tuple(one.position for one in ordered) if found.note else (),
        note=found.note,
        each_by_itself=first.size[2] == 1 and (_rescales_differ(stack) or _types_differ(stack)),
    )


def _check_kind(stack: list[Slice]) -> None:
    """Refuse what is not a stack of slices of a scan."""
    one = stack[0]
    if one.error:
        raise UnusableScanError(
            f"{len(stack)} files cannot be read as DICOM images; the first: {one.error}"
        )
    _check_modality(one.modality)
    _check_image_type(_image_type_words(one))
    check_components(one.components)
    _check_orientation(one)
    _check_pixel(one.pixel)
    _check_right_angles(one.orientation)
    _check_rescaling(stack)
    _check_not_inverted(stack)


def _check_not_inverted(stack: list[Slice]) -> None:
    """Refuse what is shown with its least value as white: ITK would read other values than those
    that are stored.
    """
    if any(one.photometric == INVERTED for one in stack):
        raise UnusableScanError(
            f"is {INVERTED} (PhotometricInterpretation, tag 0028,0004): ITK inverts its values; "
            "convert it to NIfTI with a program that reads the stored values, such as dcm2niix"
        )


def _check_modality(modality: str) -> None:
    if modality not in READ:
        raise UnusableScanError(f"is {modality or 'of no modality'}, not {' or '.join(READ)}")


def _check_rescaling(stack: list[Slice]) -> None:
    """Refuse slices that are on several scales, or that cannot be read on one."""
    lacking = [one for one in stack if not all(one.rescaling)]
    if 0 < len(lacking) < len(stack) and len({_scale(one) for one in stack}) > 1:
        raise UnusableScanError(
            f"has {len(lacking)} of {len(stack)} slices without RescaleSlope or RescaleIntercept: "
            "their values are on another scale than those of the others; export the series again"
        )
    if stack[0].size[2] > 1 and _rescales_differ(stack):
        raise UnusableScanError(
            "is a multi-frame file that rescales each frame differently; convert it to NIfTI"
        )


def _scale(one: Slice) -> tuple[str, ...]:
    """Slope and intercept as readers take them: what is absent changes nothing."""
    return tuple(text or usual for text, usual in zip(one.rescaling, ("1", "0"), strict=True))


def _types_differ(stack: list[Slice]) -> bool:
    """ITK reads a stack with the type of its first slice, in which others may have no place."""
    return len({each.voxel_type for each in stack}) > 1


def _rescales_differ(stack: list[Slice]) -> bool:
    return len({each.rescaling for each in stack}) > 1


def _check_image_type(words: set[str]) -> None:
    if localizer := words & LOCALIZER_WORDS:
        raise UnusableScanError(f"is a localizer: image type {'/'.join(localizer)}")
    if reformat := words & REFORMAT_WORDS:
        raise UnusableScanError(
            f"is a reformat, not the primary stack: image type {'/'.join(sorted(reformat))}"
        )


def _check_orientation(one: Slice) -> None:
    """Refuse a slice without a position."""
    if not (one.position and one.orientation):
        raise UnusableScanError(
            "has no ImagePositionPatient or ImageOrientationPatient, so its slices cannot be placed"
        )


def _check_pixel(pixel: tuple[float, ...]) -> None:
    """Refuse a slice without pixel spacing."""
    if not pixel or min(pixel) <= 0:
        raise UnusableScanError(
            f"has no usable spacing: PixelSpacing {pixel or 'is absent or not two numbers'}"
        )


def _check_right_angles(orientation: tuple[float, ...]) -> None:
    """Refuse rows and columns, whose directions are [6], that are skewed or no unit vectors."""
    if off_right_angles(np.reshape(orientation, (2, 3))) > 1e-2:
        raise UnusableScanError(
            "has an ImageOrientationPatient whose directions are not at right angles"
        )
