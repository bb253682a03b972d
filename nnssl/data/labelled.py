"""Labelled cases for the probe: images and labels of an nnU-Net raw dataset on the plan's grid.

`probe.json` names them, written last; for each lie `<case>.b2nd` (float16 [1 Z Y X], as in
pretraining), `<case>_labels.b2nd` (int16 [1 Z Y X], resampled as nnU-Net does) and `<case>.json`,
where it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nnssl.data.orientation import Scan
from nnssl.data.plan import Plan, resampled_shape
from nnssl.data.preprocess import network_input, resample, store
from nnssl.data.raw_datasets import RawDataset, open_raw, read_image
from nnssl.data.refusals import UnusableScanError
from nnssl.data.volumes import check_voxels
from nnssl.data.workers import Failed, parallel_map
from nnssl.files import STALE, fingerprint, inside, is_file, read_json, sweep, write_json

NOTE = "probe.json"
FEWEST = 2  # cases: one to fit, one to test
IGNORE = "ignore"  # nnU-Net's own name for what counts neither way


@dataclass(frozen=True)
class LabelledCase:
    id: str
    image: Path
    labels: Path
    reader: str = "SimpleITKIO"  # of nnU-Net's


@dataclass(frozen=True)
class Labelled:
    """Some cases of a raw dataset. `labels`: name -> value, without background and `ignore`."""

    dataset: str
    labels: dict[str, int]
    ignore: int | None
    cases: tuple[LabelledCase, ...]


def find_labelled(dataset: Path, count: int) -> Labelled:
    """`count` training cases of the raw dataset in folder `dataset`, evenly from its sorted names.

    Raises ValueError when there are no labels, when classes overlap, or when fewer than two cases
    are complete.
    """
    _check_count(count)
    if not (dataset / "dataset.json").is_file():
        raise ValueError(
            f"{dataset} has no dataset.json; a probe needs an nnU-Net raw dataset with labels"
        )
    raw = open_raw(dataset)
    labels = _integer_labels(dataset, raw)
    classes = {name: value for name, value in labels.items() if value != 0 and name != IGNORE}
    cases = _evenly(_complete(dataset, raw), count)
    return Labelled(dataset.name, classes, labels.get(IGNORE), cases)


def _check_count(count: int) -> None:
    if count < FEWEST:
        raise ValueError(
            f"a probe needs at least {FEWEST} labelled cases, one to fit and one to test; got "
            f"{count}"
        )


def _evenly(cases: list[LabelledCase], count: int) -> tuple[LabelledCase, ...]:
    """At most `count` of them, from the first to the last."""
    numbers = np.linspace(0, len(cases) - 1, min(count, len(cases))).round().astype(int)
    return tuple(cases[number] for number in np.unique(numbers))


def _integer_labels(dataset: Path, raw: RawDataset) -> dict[str, int]:
    labels = raw.content.get("labels", {})
    is_named = isinstance(labels, dict) and bool(labels)
    if not is_named or not all(isinstance(value, int) for value in labels.values()):
        raise ValueError(
            f"{dataset / 'dataset.json'}: a probe needs one number for each label, got {labels}; "
            "labels that are regions of several numbers are not supported"
        )
    return labels


def _complete(dataset: Path, raw: RawDataset) -> list[LabelledCase]:
    """The training cases of which both image and labels are there; ValueError where too few are."""
    complete = list(_labelled_cases(raw))
    if len(complete) < FEWEST:
        raise ValueError(
            f"{dataset}: {_there(dataset, raw)}, {len(complete)} of them with an image; a probe "
            f"needs at least {FEWEST} labelled cases"
        )
    return complete


def _labelled_cases(raw: RawDataset) -> Iterator[LabelledCase]:
    for case in raw.training:
        if is_file(case.image) and case.labels is not None and is_file(case.labels):
            yield LabelledCase(case.id, case.image, case.labels, raw.reader)


def _there(dataset: Path, raw: RawDataset) -> str:
    if raw.is_listed:
        return f"{len(raw.training)} cases listed in dataset.json"
    ending = raw.content["file_ending"]
    files = list((dataset / "labelsTr").glob(f"*{ending}"))
    return f"{len(files)} files *{ending} in labelsTr"


def prepare_labelled(
    labelled: Labelled, folder: Path | str, plan: Plan, num_processes: int
) -> None:
    """Store what is not stored yet. ValueError, naming the case, for one that cannot be used."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder, older=STALE)
    todo = [case for case in labelled.cases if not _is_done(case, plan.fingerprint, folder)]
    work = partial(
        store_case, plan=plan.without_cases(), plan_fingerprint=plan.fingerprint, folder=folder
    )
    with closing(parallel_map(work, todo, min(num_processes, len(todo)), "probe")) as results:
        for case, result in results:
            if isinstance(result, Failed):
                raise ValueError(
                    f"{case.id} of {labelled.dataset} cannot be used by the probe: {result.reason}"
                )
    write_json(folder / NOTE, _probe_metadata(labelled, plan))


def _probe_metadata(labelled: Labelled, plan: Plan) -> dict:
    return {
        "dataset": labelled.dataset,
        "labels": labelled.labels,
        "ignore": labelled.ignore,
        "padding": plan.padding,
        "plan": plan.fingerprint,
        "cases": [case.id for case in labelled.cases],
    }


def store_case(case: LabelledCase, plan: Plan, plan_fingerprint: str, folder: Path) -> None:
    """Read, normalise, resample and store one image and its labels."""
    scan, labels = _read_image_and_labels(case)
    shape = resampled_shape(scan.voxels.shape, scan.spacing, plan.spacing)
    image = network_input(plan.standardise(scan.voxels), scan.spacing, plan)
    values = resample(labels[None], shape, scan.spacing, plan.spacing, labels=True)
    store(image, inside(folder, f"{case.id}.b2nd"), plan.crop)
    store(values, inside(folder, f"{case.id}_labels.b2nd"), plan.crop, np.int16)
    done = {
        "fingerprint": _fingerprint(case, plan_fingerprint),
        "shape": list(shape),
        "bytes": _bytes(case, folder),
    }
    write_json(inside(folder, f"{case.id}.json"), done)


def _read_image_and_labels(case: LabelledCase) -> tuple[Scan, np.ndarray]:
    """The image, and its labels int16 [Z Y X]. Raises ValueError where their shapes differ."""
    scan = _read_whole(case.image, case.reader)
    labels = _read_whole(case.labels, case.reader, labels=True).voxels
    if labels.shape != scan.voxels.shape:
        raise ValueError(f"the image has shape {scan.voxels.shape}, its labels {labels.shape}")
    return scan, np.rint(labels).astype(np.int16)


def _read_whole(path: Path, reader: str, labels: bool = False) -> Scan:
    """Raises UnusableScanError, which names the file, for one that is truncated or damaged: ITK
    reads what is missing as 0.
    """
    try:
        check_voxels(path)
        return read_image(path, reader, labels)
    except UnusableScanError as refusal:
        raise UnusableScanError(f"{path.parent.name}/{path.name} {refusal}") from refusal


def _is_done(case: LabelledCase, plan_fingerprint: str, folder: Path) -> bool:
    """Whether the case is stored whole, by this plan and from these files; if not, it is stored
    again.
    """
    try:
        properties = read_json(inside(folder, f"{case.id}.json"))
        whole = {"fingerprint": _fingerprint(case, plan_fingerprint), "bytes": _bytes(case, folder)}
        return properties == {**properties, **whole}
    except (FileNotFoundError, ValueError):
        return False


def _fingerprint(case: LabelledCase, plan_fingerprint: str) -> str:
    """Changes with the plan, the reader, and either file."""
    stats = [path.stat() for path in (case.image, case.labels)]
    files = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
    return fingerprint([plan_fingerprint, case.reader, *files])


def _bytes(case: LabelledCase, folder: Path) -> list[int]:
    return [inside(folder, f"{case.id}{part}.b2nd").stat().st_size for part in ("", "_labels")]
