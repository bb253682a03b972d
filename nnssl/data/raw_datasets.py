"""nnU-Net raw datasets, by nnU-Net's own rules: which files are a case, and which reader reads
them.

So that pretraining and the probe see the axes, the spacing and the values that fine-tuning will
see. Of several channels the first counts, or each that is asked for, as a scan by itself.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnssl.data.orientation import Scan
from nnssl.data.refusals import (
    PassingError,
    UnusableScanError,
    check_name,
    passing_errors,
    summarise_error,
)
from nnssl.data.volumes import check_header, is_plain
from nnssl.files import is_file, read_json
from nnssl.types import Spacing

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

READER = "nnU-Net "  # before a reader's name, where the name of a DICOM series stands otherwise
SAME_AS_OURS = "SimpleITKIO"


@dataclass(frozen=True)
class RawCase:
    """`images`: one file per channel, with these `numbers` at the ends of their names; without any
    they are those from 0 on. `labels`: None for test images.
    """

    id: str
    images: tuple[Path, ...]
    labels: Path | None = None
    numbers: tuple[int, ...] = ()

    @property
    def image(self) -> Path:
        """The first channel."""
        return self.channel(0)

    def channel(self, number: int) -> Path:
        """Its file, which does not exist where only later channels do. Raises ValueError where the
        channels are not in files of their own.
        """
        files = dict(zip(self.numbers or range(len(self.images)), self.images, strict=True))
        if number in files:
            return files[number]
        if self.numbers and number < max(self.numbers):
            ending = self.images[0].name[len(f"{self.id}_0000") :]
            return self.images[0].with_name(f"{self.id}_{number:04d}{ending}")
        raise ValueError(
            f"case {self.id} has {len(self.images)} file(s), but channel {number} was requested: "
            "channels stored in one file cannot be separated. Leave out --channels to use the "
            "first one"
        )


@dataclass(frozen=True)
class RawDataset:
    """`reader`: the name of nnU-Net's class. `training` and `test` cases, sorted; `content` of
    dataset.json.
    """

    content: dict
    reader: str
    training: tuple[RawCase, ...]
    test: tuple[RawCase, ...]
    is_listed: bool  # in dataset.json, rather than in imagesTr and labelsTr


def open_raw(dataset: Path) -> RawDataset:
    """The raw dataset in a folder. FileNotFoundError without dataset.json, ValueError without a
    reader for it.
    """
    content = read_content(dataset)
    ending, listed = content["file_ending"], "dataset" in content
    training = tuple(_listed_cases(dataset, content) if listed else _in_folders(dataset, ending))
    test = tuple(_unlabelled(dataset / "imagesTs", ending))
    reader = _reader(dataset, content, [case.image for case in training + test])
    return RawDataset(content, reader, training, test, listed)


def read_content(dataset: Path) -> dict:
    """dataset.json. Raises FileNotFoundError when there is none."""
    if not (dataset / "dataset.json").is_file():
        raise FileNotFoundError(
            f"{dataset} has no dataset.json, so it is not an nnU-Net raw dataset"
        )
    content = read_json(dataset / "dataset.json")
    if not isinstance(content, dict):
        raise _not_as_nnunet_wants(dataset, f"it holds {str(content)[:60]!r}")
    content = {"file_ending": ".nii.gz", **content}
    ending, names = content["file_ending"], _channel_field(content)
    if not (isinstance(ending, str) and ending.startswith(".")):
        raise _not_as_nnunet_wants(dataset, f'its "file_ending" is {ending!r}')
    if not (isinstance(names, dict) and all(str(number).isdecimal() for number in names)):
        raise _not_as_nnunet_wants(dataset, f'its "channel_names" are {str(names)[:60]}')
    return content


def _not_as_nnunet_wants(dataset: Path, found: str) -> ValueError:
    return ValueError(
        f"{dataset / 'dataset.json'} is not as nnU-Net wants it: {found}. It must be an object "
        'such as {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, '
        '"numTraining": 20, "file_ending": ".nii.gz"}; correct it'
    )


def _channel_field(content: dict) -> dict:
    """Names by number, as they are written; one of CT where nothing is."""
    return content.get("channel_names") or content.get("modality") or {"0": "CT"}


def _listed_cases(dataset: Path, content: dict) -> list[RawCase]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    try:
        found = get_filenames_of_train_images_and_targets(str(dataset), copy.deepcopy(content))
        return [
            RawCase(case, _paths(found[case]["images"]), Path(found[case]["label"]))
            for case in sorted(found)
        ]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{dataset / "dataset.json"}: "dataset" must give each case a list of "images", not '
            "empty, and a "
            f'"label", as nnU-Net wants them; got {str(content["dataset"])[:200]}'
        ) from error


def _paths(images: Sequence[str]) -> tuple[Path, ...]:
    """Raises IndexError where there is none."""
    return (Path(images[0]), *map(Path, images[1:]))


def channel_names(content: dict) -> dict[int, str]:
    """The channels of a dataset.json by number; one without a name where it names none."""
    return {int(number): str(name) for number, name in _channel_field(content).items()}


def chosen_channels(dataset: Path, wanted: Sequence[int] | None) -> dict[int, str]:
    """Numbers and names of the channels `wanted`; None: all. ValueError for one that is not
    there.
    """
    names = channel_names(read_content(dataset))
    chosen = set(names) if wanted is None else set(wanted)
    if unknown := sorted(chosen - set(names)):
        raise ValueError(
            f"{dataset.name} has no channel {', '.join(map(str, unknown))}; its dataset.json names "
            f"{_numbered_channels(names)}. --channels takes these, or all"
        )
    return {number: names[number] for number in sorted(chosen)}


def is_ct_name(channel: str) -> bool:
    """Whether a channel of this name is CT, by nnU-Net's own rule."""
    return channel.lower() == "ct"


def _numbered_channels(names: dict[int, str]) -> str:
    return ", ".join(f"{number} ({name})" for number, name in sorted(names.items()))


def _in_folders(dataset: Path, ending: str) -> list[RawCase]:
    cases = _cases(dataset / "imagesTr", ending)
    return [
        RawCase(
            case,
            tuple(images),
            dataset / "labelsTr" / f"{case}{ending}",
            _channel_numbers(case, images),
        )
        for case, images in cases.items()
    ]


def _unlabelled(folder: Path, ending: str) -> list[RawCase]:
    return [
        RawCase(case, tuple(images), numbers=_channel_numbers(case, images))
        for case, images in _cases(folder, ending).items()
    ]


def _channel_numbers(case: str, images: Sequence[Path]) -> tuple[int, ...]:
    """Those of `<case>_0001.nii.gz`."""
    start = len(f"{case}_")
    return tuple(int(image.name[start : start + 4]) for image in images)


def _cases(folder: Path, ending: str) -> dict[str, list[Path]]:
    """What nnU-Net's create_lists_from_splitted_dataset_folder finds, from the same two functions
    of it.

    Not by that one itself: it forks a pool of processes, which inherit our signal handlers.
    """
    from nnunetv2.utilities.utils import (
        create_paths_fn,
        get_identifiers_from_splitted_dataset_folder,
    )

    if not folder.is_dir():
        return {}
    files = _files_by_case(folder, ending)
    found = {}
    for case in map(str, get_identifiers_from_splitted_dataset_folder(str(folder), ending)):
        if paths := create_paths_fn(str(folder), files[case], ending, case):
            found[case] = [Path(path) for path in paths]
    return found


def _files_by_case(folder: Path, ending: str) -> dict[str, list[str]]:
    """Names of files, sorted, by what stands before the number of the channel."""
    paths = (path for path in folder.iterdir() if is_file(path) and path.name.endswith(ending))
    files = defaultdict(list)
    for name in sorted(path.name for path in paths):
        files[name[: -(len(ending) + len("_0000"))]].append(name)
    return files


def _reader(dataset: Path, content: dict, images: list[Path]) -> str:
    """The reader that nnU-Net's planning chooses, from the first image that can be given to one."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    example = next((str(image) for image in images if _harmless(image)), None)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            reader = determine_reader_writer_from_dataset_json(
                content,
                example,  # pyright: ignore[reportArgumentType] None where no image can be given
                verbose=False,
            )
    except RuntimeError as error:
        raise ValueError(
            f"{dataset}: none of nnU-Net's readers reads {example or content['file_ending']}"
        ) from error
    return reader.__name__


def _harmless(image: Path) -> bool:
    try:
        check_header(check_name(image))
    except (UnusableScanError, PassingError):
        return False
    return is_file(image)


def series_of(image: Path, reader: str) -> str:
    """The reader to record for an image with its path: empty where our own reading gives the
    same.

    A scan that is found in a dataset and in a folder is one scan then.
    """
    return "" if reader == SAME_AS_OURS and is_plain(image) else READER + reader


def read_image(path: Path | str, reader: str, labels: bool = False) -> Scan:
    """The first channel of an image, or its labels, by a reader of nnU-Net's. UnusableScanError
    when it does not read it.
    """
    check_header(check_name(path))
    nnunet_reader = _reader_class(reader)()
    try:
        voxels, spacing = _read_with_reader(str(path), nnunet_reader, labels)
    except (PassingError, MemoryError):
        raise
    except Exception as error:  # each reader has its own
        raise UnusableScanError(
            f"cannot be read by nnU-Net's {reader}: {summarise_error(error)}"
        ) from error
    note = f"read by nnU-Net's {reader}"
    return Scan(np.ascontiguousarray(voxels[0], np.float32), spacing, note=note)


def _read_with_reader(
    path: str, reader: BaseReaderWriter, labels: bool
) -> tuple[np.ndarray, Spacing]:
    """Voxels [C Z Y X] and spacing as the reader gives them."""
    with passing_errors(), contextlib.redirect_stdout(io.StringIO()):
        voxels, properties = reader.read_seg(path) if labels else reader.read_images((path,))
    return voxels, tuple(float(mm) for mm in properties["spacing"])


@lru_cache
def _reader_class(name: str) -> type:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    return recursive_find_reader_writer_by_name(name)
