"""Preprocessing: normalise and resample each scan as nnU-Net will at fine-tuning, and store it for
random crops.

Beside each `<case>.b2nd` (float16 [1 Z Y X]; float32 of earlier versions) lies `<case>.json`,
written last: where it is, the case is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from nnssl.data.done import Done
from nnssl.data.packing import pack
from nnssl.data.plan import Case, Plan, resampled_shape
from nnssl.data.refusals import check_hu, check_values
from nnssl.data.scans import Found, check_stored, read_scan
from nnssl.data.source_states import forget_stored
from nnssl.data.workers import Failed, parallel_map
from nnssl.files import atomic, crc32, inside, read_json, write_json
from nnssl.types import Shape, Spacing

BLOCK = 16  # voxels: edge of the blocks whose fraction of body voxels is stored
LARGEST = float(np.finfo(np.float16).max)


def preprocess(
    plan: Plan,
    folder: Path | str,
    num_processes: int,
    part_id: int = 0,
    num_parts: int = 1,
    moved: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Store every case of this part that is not stored yet; returns {case id: reason} of those that
    failed.

    moved: where a source of the plan is now, of those that lie elsewhere.

    A failed case is also noted in `<case>.failed.json` and tried again by the next run. Files that
    were made with another plan are never mixed in: ValueError.
    """
    require_part(part_id, num_parts)
    folder, moved = Path(folder), moved or {}
    part, done = plan.cases[part_id::num_parts], Done(folder, plan.fingerprint)
    missing = [case for case in part if case.id not in done]
    todo = [replace(case, source=moved.get(case.source, case.source)) for case in missing]
    failed = _preprocess_all(todo, plan, folder, num_processes)
    if num_parts == 1:
        done.keep(case.id for case in part if case.id not in failed)
    return failed


def require_part(part_id: int, num_parts: int) -> None:
    """Raise ValueError for a part that is not one of `num_parts`, counted from 0."""
    if not 0 <= part_id < num_parts:
        raise ValueError(
            f"-part_id must be 0 to {num_parts - 1} with -num_parts {num_parts}, got {part_id}"
        )


def _preprocess_all(
    todo: Sequence[Case], plan: Plan, folder: Path, num_processes: int
) -> dict[str, str]:
    """{case id: reason} of those that failed, which are noted in the folder as well."""
    failed = {}
    work = partial(
        preprocess_case, plan=plan.without_cases(), fingerprint=plan.fingerprint, folder=folder
    )
    with closing(parallel_map(work, todo, num_processes, "preprocess")) as results:
        for case, result in results:
            if isinstance(result, Failed):
                failed[case.id] = reason = result.unless_no_room()
                write_json(_failure_file(case, folder), {"reason": reason})
    return failed


def _failure_file(case: Case, folder: Path) -> Path:
    """Where it is noted that a case failed."""
    return inside(folder, f"{case.id}.failed.json")


def forget_damaged(
    plan: Plan, folder: Path | str, num_processes: int, part_id: int = 0, num_parts: int = 1
) -> list[str]:
    """Read what is stored of this part, and forget what is not as it was written: `preprocess` then
    stores it again. The ids of these cases; notes of earlier versions hold no checksum to compare
    with.
    """
    cases = [case.id for case in plan.cases[part_id::num_parts]]
    damaged = _damaged(cases, Path(folder), num_processes)
    forget_stored(Path(folder), damaged)
    return damaged


def _damaged(cases: Sequence[str], folder: Path, num_processes: int) -> list[str]:
    """The ids of those that are not as they were written."""
    work = partial(_is_damaged, folder=folder)
    with closing(parallel_map(work, cases, num_processes, "check")) as results:
        return [case for case, is_bad in results if is_bad is True]


def _is_damaged(case: str, folder: Path) -> bool:
    try:
        known = read_json(inside(folder, f"{case}.json")).get("crc32")
        return known is not None and known != crc32(inside(folder, f"{case}.b2nd"))
    except (OSError, ValueError, AttributeError):
        return False  # nothing whole is stored, which `preprocess` sees by itself


def preprocess_case(case: Case, plan: Plan, fingerprint: str, folder: Path) -> None:
    """Read, normalise, resample, store. nnU-Net resamples in float64: some 40 bytes per voxel at
    the peak.
    """
    voxels, spacing = _read_unchanged(case, plan.hu is not None, folder)
    shape = resampled_shape(voxels.shape, spacing, plan.spacing)
    standardised = plan.standardise(voxels)
    body = body_blocks(plan.body(voxels, standardised), shape)
    del voxels  # the scan itself is not kept while nnU-Net resamples
    path = inside(folder, f"{case.id}.b2nd")
    store(network_input(standardised, spacing, plan), path, plan.crop)
    properties = {
        "fingerprint": fingerprint,
        **_state(path),
        "shape": list(shape),
        "spacing": list(plan.spacing),
        **_origin(case),
        **_packed(body),
    }
    write_json(inside(folder, f"{case.id}.json"), properties)
    _failure_file(case, folder).unlink(missing_ok=True)


def _state(path: Path) -> dict:
    """The entries of a note that say how the file of voxels was written."""
    return {"bytes": path.stat().st_size, "crc32": crc32(path)}


def _origin(case: Case) -> dict:
    """The entries of a note that describe the scan before preprocessing."""
    return {
        "source": case.source,
        "series": case.series,
        "original_shape": list(case.shape),
        "original_spacing": list(case.spacing),
    }


def _packed(body: np.ndarray) -> dict:
    """The entries of a note that hold what `body_blocks` gave."""
    return {"body_block": BLOCK, "body": pack(body)}


def _read_unchanged(case: Case, in_hu: bool, folder: Path) -> tuple[np.ndarray, Spacing]:
    """Voxels [Z Y X] and spacing. Raises ValueError for a scan of another shape than planned, and
    for one that the survey would leave out: it may have been damaged since.
    """
    found = Found(case.source, case.series)
    check_stored(found, in_hu, folder)
    voxels, spacing = read_scan(found, folder)
    if voxels.shape != case.shape:
        raise ValueError(
            f"has shape {voxels.shape}, but had {case.shape} at planning: the scan has changed"
        )
    (check_hu if in_hu else check_values)(voxels)
    return voxels, spacing


def network_input(standardised: np.ndarray, spacing: Spacing, plan: Plan) -> np.ndarray:
    """What `plan.standardise` gave of a scan [Z Y X], on the plan's grid as the encoder sees it:
    [1 Z Y X].
    """
    shape = resampled_shape(standardised.shape, spacing, plan.spacing)
    return plan.bend(resample(standardised[None], shape, spacing, plan.spacing))


def resample(
    voxels: np.ndarray, shape: Shape, spacing: Spacing, new_spacing: Spacing, labels: bool = False
) -> np.ndarray:
    """nnU-Net's own resampling of images or labels [1 Z Y X], as its planner sets it for every
    dataset.
    """
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    return resample_data_or_seg_to_shape(
        voxels,
        shape,
        spacing,
        new_spacing,
        is_seg=labels,
        order=1 if labels else 3,
        order_z=0,
        force_separate_z=None,
    )


def body_blocks(body: np.ndarray, shape: Shape) -> np.ndarray:
    """Fraction of body voxels, 0 to 255, in each block of BLOCK voxels per side of the scan
    resampled to `shape`.

    Taken from the unresampled mask [Z Y X]: clipped and resampled values no longer tell air from
    body.
    """
    fraction = body.astype(np.float32)
    for axis, size in enumerate(shape):
        fraction = _block_means(fraction, axis, size)
    return np.rint(fraction * 255).astype(np.uint8)


def _block_means(values: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Means along one of three axes, of the blocks that it has once it is resampled to `size`."""
    old = values.shape[axis]
    edges = np.arange(0, size, BLOCK) * old // size
    counts = np.diff([*edges, old]).clip(1)
    means = np.add.reduceat(values, edges, axis=axis)
    means /= counts.reshape([-1 if a == axis else 1 for a in range(3)])
    return means


def store(voxels: np.ndarray, path: Path, crop: Shape, dtype: type = np.float16) -> None:
    """nnU-Net's blosc2 store: its codec, and its chunk and block sizes for patches of `crop`.

    Half precision by default: half the size, and a rounding below 1 HU in lung and soft tissue.
    """
    import blosc2
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

    if dtype is np.float16:  # beyond its range it would become infinite
        voxels = voxels.clip(-LARGEST, LARGEST)
    voxels = np.ascontiguousarray(voxels, dtype)
    blocks, chunks = comp_blosc2_params(voxels.shape, crop, voxels.itemsize)
    blosc2.set_nthreads(1)
    with atomic(path) as temporary:
        blosc2.asarray(
            voxels,  # pyright: ignore[reportArgumentType] an array of numpy, as its page says
            urlpath=str(temporary),
            mode="w",
            chunks=chunks,
            blocks=blocks,
            cparams=_compression(),
        )


def _compression() -> dict:
    """nnU-Net's, in one thread."""
    import blosc2

    return {
        "codec": blosc2.Codec.LZ4HC,
        "clevel": 5,
        "filters": [blosc2.Filter.SHUFFLE],
        "nthreads": 1,
    }
