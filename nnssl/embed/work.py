"""`nnssl_embed`: features of all scans of some folders. The same command continues after a stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from nnssl import files, signals, weights
from nnssl.data.orientation import Scan
from nnssl.data.plan import case_id
from nnssl.data.refusals import UnusableScanError
from nnssl.data.scans import Found, find_scans, read_found
from nnssl.data.survey import ScanReport, nothing_usable, survey
from nnssl.data.workers import Failed, parallel_map
from nnssl.embed import dense, feature_settings, pooling, table
from nnssl.embed.embed_options import EmbedOptions
from nnssl.embed.masks import below, find_label_files, match_masks, stem
from nnssl.embed.scan import Prepared, grid_plan, prepare_scan, read_labels
from nnssl.embed.scan_encoder import Encoder, grid_spacing, load_encoder
from nnssl.embed.table import ScanRow
from nnssl.finetune import checkpoint_choice
from nnssl.hu import HUPolicy
from nnssl.train.distributed import choose_device
from nnssl.types import PrintFn, Spacing

FAILED = "failed.json"  # the scans that failed in the last call, and why
PRINTED = 10  # of them


@dataclass(frozen=True)
class EmbedTask:
    """One scan for a worker."""

    row: ScanRow
    found: Found
    labels: Path | None
    signature: str


@dataclass(frozen=True)
class EmbedWork:
    """Settings shared by all scans. number: of the map that is wanted in full; masks: label
    files.
    """

    encoder: Encoder
    options: EmbedOptions
    number: int | None
    masks: list[Path] | None
    print_fn: PrintFn

    @property
    def folder(self) -> Path:
        return self.options.output

    @property
    def has_labels(self) -> bool:
        return self.masks is not None


def embed(options: EmbedOptions, print_fn: PrintFn = print) -> Path:
    """Embed the scans that are not embedded yet, and write the tables; the path of `features.npz`.

    Raises ValueError, FileNotFoundError, OSError, files.LockedError where another process writes
    there, and Interrupted.
    """
    device = choose_device(options.device)  # a mistake is reported before weights are loaded
    encoder = encoder_of(options, print_fn).to(device)
    number = None if options.dense is None else dense.stage_of(encoder, options.dense)
    scans = find_scans(options.sources)  # a mistake is reported before anything is written
    label_files = None if options.masks is None else find_label_files(options.masks)
    work = EmbedWork(encoder, options, number, label_files, print_fn)
    work.folder.mkdir(parents=True, exist_ok=True)
    with signals.handled(_stop), files.locked(work.folder, "wait for it, or choose another -o"):
        files.sweep(work.folder, work.folder / table.SCANS, work.folder / dense.FOLDER)
        _draw(work, _embed(work, scans))
    return work.folder / f"{table.FEATURES}.npz"


def _draw(work: EmbedWork, features: table.FeatureTable) -> None:
    """The pictures, where they are wanted."""
    if picture := work.options.picture:
        from nnssl.embed import neighbours

        neighbours.draw_pictures(features, work.folder, picture == "thumbnails", work.print_fn)


def _embed(work: EmbedWork, scans: list[Found]) -> table.FeatureTable:
    settings = feature_settings.checked(work.folder, work.encoder, work.options)
    lines = _survey_reports(work, scans)
    kept = [line for line in lines if line.kept]
    if not kept:
        raise nothing_usable(lines, work.options.sources)
    fingerprint = feature_settings.store(work.folder, settings)
    tasks = _tasks(work, kept, _labels(work, lines), fingerprint)
    failed = _encode(work, tasks)
    _keep_failures(work.folder / FAILED, failed)
    if len(failed) == len(tasks):
        raise _nothing_embedded(work.folder / FAILED, failed)
    features = _write_tables(work, tasks, failed)
    out, report = len(lines) - len(tasks), work.folder / "report.csv"
    work.print_fn(
        f"{len(features.id)} scans embedded, {out} left out ({report}), {len(failed)} failed"
    )
    _tell_failures(work, tasks, failed)
    _tell_tables(work, features)
    return features


def _keep_failures(path: Path, failed: dict[str, str]) -> None:
    """{id: reason} of all of them, as JSON; no file where none failed."""
    if failed:
        files.write_json(path, failed)
    else:
        path.unlink(missing_ok=True)


def _nothing_embedded(path: Path, failed: dict[str, str]) -> ValueError:
    scan, reason = next(iter(failed.items()))
    return ValueError(
        f"none of {len(failed)} scans could be embedded; {scan}: {reason}. {path} has the reasons; "
        "the same command tries them again"
    )


def _write_tables(
    work: EmbedWork, tasks: list[EmbedTask], failed: dict[str, str]
) -> table.FeatureTable:
    rows = [task.row for task in tasks if task.row.id not in failed]
    return table.write_finished_scans(work.folder, rows, work.has_labels)


def _survey_reports(work: EmbedWork, scans: list[Found]) -> list[ScanReport]:
    in_hu = work.encoder.hu is not None
    processes = work.options.num_processes
    return survey(scans, work.folder, processes, in_hu=in_hu, histograms=False)


def _stop(*_: object) -> None:
    raise signals.Interrupted("stopped; the same command continues from there")


def encoder_of(options: EmbedOptions, print_fn: PrintFn) -> Encoder:
    """The one that is named, or that a training would start from: then `print_fn` gets its name."""
    given = {"checkpoint_path": str(options.checkpoint)} if options.checkpoint else {}
    choice = checkpoint_choice.choose(given, "nnssl_embed -c")
    if not options.checkpoint:
        about = weights.about(choice.sha256 or "")
        print_fn("\n".join([f"Weights: {choice.path}, by {choice.named_by}", *about]))
    return load_encoder(choice.path, options.spacing)


def _labels(work: EmbedWork, lines: Sequence[ScanReport]) -> dict[Path, Path]:
    """The label files by the paths of their scans; `lines`: of all that was found."""
    if work.masks is None or work.options.masks is None:
        return {}
    scans, tops = (Path(line.path) for line in lines), _tops(work.options.sources)
    return match_masks(scans, tops, work.masks, work.options.masks)


def _tasks(
    work: EmbedWork, lines: Sequence[ScanReport], labels: Mapping[Path, Path], settings: str
) -> list[EmbedTask]:
    rows = _scan_rows(lines, work.options.sources)
    return [
        _task(line, row, labels.get(Path(line.path)), settings)
        for line, row in zip(lines, rows, strict=True)
    ]


def _task(line: ScanReport, row: ScanRow, labels: Path | None, settings: str) -> EmbedTask:
    inputs = [settings, line.path, line.series, *line.state]
    signature = files.fingerprint(inputs + (_identity(labels) if labels else []))
    return EmbedTask(row, line.found, labels, signature)


def _identity(file: Path) -> list:
    """The signature of a file, which changes with the file."""
    status = file.stat()
    return [str(file), status.st_size, status.st_mtime_ns]


def _scan_rows(lines: Sequence[ScanReport], sources: Sequence[Path]) -> list[ScanRow]:
    """Ids are paths below the given folder; where two would be the same, with a hash."""
    tops = _tops(sources)
    rows = [_scan_row(line, tops) for line in lines]
    often = Counter(row.id for row in rows)
    return [row if often[row.id] == 1 else replace(row, id=row.case) for row in rows]


def _tops(sources: Sequence[Path]) -> list[Path]:
    """The given folders and files, the deepest first."""
    return sorted((Path(s).absolute() for s in sources), key=lambda p: -len(p.parts))


def _scan_row(line: ScanReport, tops: Sequence[Path]) -> ScanRow:
    """tops: as `_tops` gives them."""
    path = Path(line.path)
    top = next((t for t in tops if path.is_relative_to(t)), path.parent)
    inside = below(path, tops)
    group = inside.parts[0] if len(inside.parts) > 1 and len(tops) == 1 else top.name
    name = stem(inside.as_posix()) or path.name
    return ScanRow(name, line.path, group, case_id(line.path, line.series))


def _encode(work: EmbedWork, tasks: list[EmbedTask]) -> dict[str, str]:
    """Embed the remaining scans; {id: reason} of those that failed."""
    todo = [task for task in tasks if not _is_done(work.folder, task, work.options)]
    if len(todo) < len(tasks):
        work.print_fn(f"{len(tasks) - len(todo)} of {len(tasks)} scans were already done")
    failed: dict[str, str] = {}
    spacing, hu = work.encoder.spacing, work.encoder.hu
    read_one = partial(prepared, spacing=spacing, hu=hu, cache=work.folder)
    with closing(parallel_map(read_one, todo, work.options.num_processes, "embed")) as results:
        for task, result in results:
            if isinstance(result, Failed):
                failed[task.row.id] = result.unless_no_room()
            else:
                _write_scan_features(work, task, *result)
    return failed


def _write_scan_features(work: EmbedWork, task: EmbedTask, scan: Prepared, about: dict) -> None:
    """Encode one scan and write its features."""
    encoder, folder = work.encoder, work.folder
    pooled = _pooled_features(encoder, scan, work.number, work.options.window)
    _write_dense(work, task.row, scan, pooled.dense)
    small = table.thumbnail(scan.image, encoder.hu, about["grid"], scan.affine)
    table.keep(folder, task.row, task.signature, pooled, about, small)


def _write_dense(
    work: EmbedWork, row: ScanRow, scan: Prepared, features: np.ndarray | None
) -> None:
    number = work.number
    if number is not None and features is not None:
        nifti = work.options.nifti
        dense.write_feature_map(work.folder, row, work.encoder, scan, features, number, nifti)


def _is_done(folder: Path, task: EmbedTask, options: EmbedOptions) -> bool:
    if options.dense and not dense.map_path(folder, task.row, options.nifti).exists():
        return False
    return table.is_done(folder, task.row, task.signature)


def prepared(
    task: EmbedTask, spacing: Spacing, hu: HUPolicy | None, cache: Path
) -> tuple[Prepared, dict]:
    """The work of one worker: read and resample; the survey has checked the scan."""
    scan = read_found(task.found, cache)
    grid = grid_spacing(spacing, scan.spacing)
    about = {"shape": scan.voxels.shape, "spacing": scan.spacing, "grid": grid}
    return prepare_scan(scan, grid_plan(grid, hu), _task_labels(task, scan)), about


def _task_labels(task: EmbedTask, scan: Scan) -> np.ndarray | None:
    try:
        return None if task.labels is None else read_labels(task.labels, scan, task.found.path)
    except UnusableScanError as refusal:
        raise UnusableScanError(f"{task.found.path}: {refusal}") from refusal


def _pooled_features(
    encoder: Encoder, scan: Prepared, number: int | None, window: pooling.Window
) -> pooling.Pooled:
    try:
        return pooling.pool(encoder, scan, number, window)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(encoder, scan) from error


def _too_large(encoder: Encoder, scan: Prepared) -> RuntimeError:
    edge = " ".join(map(str, pooling.window_for(encoder, (1, 1, 1), (64, 64, 64))))
    return RuntimeError(
        f"a scan of {scan.image.shape} voxels does not fit into memory; choose smaller windows, "
        f"such as --window {edge}, with another -o, and fewer -np"
    )


def _tell_failures(work: EmbedWork, tasks: Sequence[EmbedTask], failed: dict[str, str]) -> None:
    for scan, reason in list(failed.items())[:PRINTED]:
        work.print_fn(f"  {scan}: {reason}")
    if len(failed) > PRINTED:
        work.print_fn(f"  and {len(failed) - PRINTED} more: {work.folder / FAILED}")
    unlabelled = [task.row.id for task in tasks if task.labels is None]
    if work.has_labels and unlabelled:
        work.print_fn(f"  {len(unlabelled)} without a matching mask, such as {unlabelled[0]}")


def _tell_tables(work: EmbedWork, features: table.FeatureTable) -> None:
    widths = " ".join(str(stage.shape[1]) for stage in features.stages)
    path = work.folder / table.FEATURES
    work.print_fn(
        f"{path}.npz, {path}.csv: one row per scan; stage0 to stage4 with {widths} numbers"
    )
    if work.has_labels:
        work.print_fn(f"{work.folder / table.LABELS}.npz, .csv: one row per scan and label")
