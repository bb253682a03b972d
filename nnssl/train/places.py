"""The folders of a pretraining: nnU-Net's folders, names of collection and run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl import files

if TYPE_CHECKING:
    from nnssl.train.pretrain_options import Options

LONGEST_NAME = 80  # letters of a collection's name that is made of several


def data_folder(options: Options) -> tuple[str, Path]:
    """The collection's name and where its preprocessed scans are:
    $nnUNet_preprocessed/nnssl/<name>.
    """
    root = _variable("nnUNet_preprocessed") / "nnssl"
    name = options.name or _collection_name(_source_names(options), root)
    if not _is_name(name):
        raise ValueError(
            f"{name!r} is not a valid collection name; give one with --name, such as --name my_ct"
        )
    return name, root / name


def _is_name(name: str) -> bool:
    """Whether it names a visible folder directly inside another one."""
    return bool(name) and name == Path(name).name and not name.startswith(".")


def _source_names(options: Options) -> list[str]:
    """The names of what the collection is made of."""
    parts = [*(Path(s).resolve().name for s in options.sources), *options.dataset_ids]
    return parts if options.channels == (0,) else [*parts, _channels(options.channels)]


def _channels(channels: Sequence[int] | None) -> str:
    chosen = ["all"] if channels is None else map(str, channels)
    return f"channels_{'_'.join(chosen)}"


def _collection_name(parts: Sequence[str], root: Path) -> str:
    """The parts joined; of many the first, their number and a hash, the same in any order."""
    joined = "_".join(parts)
    if len(parts) < 2 or len(joined) <= LONGEST_NAME or _is_folder(root, joined):
        return joined
    first, more = min(parts)[:LONGEST_NAME], len(parts) - 1
    return f"{first}_and_{more}_more_{files.fingerprint(sorted(parts))}"


def _is_folder(root: Path, name: str) -> bool:
    """Whether it is there; file systems know no name of 256 bytes or more."""
    return len(os.fsencode(name)) < 256 and (root / name).is_dir()


def results_folder(options: Options, collection: str) -> Path:
    """Of a run on the collection of this name."""
    named = run_name(options.method, options.preset, dimensions(options))
    return options.output or results_root() / collection / named


def results_root() -> Path:
    return _variable("nnUNet_results") / "nnssl"


def run_name(method: str, preset: str, dims: int) -> str:
    """The folder of a run's results."""
    return f"{method}__{preset}" + ("_2d" if dims == 2 else "")


def dimensions(options: Options) -> int:
    """2 or 3, as --dims or the length of --crop says. Raises ValueError when they differ."""
    given = len(options.crop) if options.crop else options.dims or 3
    if options.dims not in (None, given):
        raise ValueError(
            f"--crop {' '.join(map(str, options.crop or ()))} has {given} numbers, but --dims is "
            f"{options.dims}; give Z Y X in 3D, Y X in 2D"
        )
    return given


def raw_dataset(identifier: str, flag: str = "-d") -> Path:
    """$nnUNet_raw/DatasetNNN_Name for an id (501) or a name. Raises ValueError when it is not
    there.
    """
    raw = _variable("nnUNet_raw")
    wanted = f"Dataset{int(identifier):03d}_*" if identifier.isdigit() else identifier
    found = [path for path in raw.glob(wanted) if path.is_dir()]
    if len(found) != 1:
        raise ValueError(
            f"{flag} {identifier}: expected one folder {wanted} in {raw}, found {len(found)}; "
            f"available: {_datasets(raw)}"
        )
    return found[0]


def _datasets(raw: Path) -> str:
    return ", ".join(sorted(path.name for path in raw.glob("Dataset*"))) or "nothing"


def _variable(name: str) -> Path:
    if not os.environ.get(name):
        raise ValueError(
            f"nnU-Net's variable {name} is not set; type: export {name}=/path/to/{name}"
        )
    return Path(os.environ[name])
