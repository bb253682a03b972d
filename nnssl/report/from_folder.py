"""From a folder to its page: a pretraining's results, or a collection of scans."""

from __future__ import annotations

from pathlib import Path

from nnssl import files
from nnssl.report import collection, collection_page, pretraining_page
from nnssl.train.log import LOG

PAGE = "report.html"
SCANS = 60  # thumbnails


def write_page(folder: Path | str, path: Path | str | None = None, scans: int = SCANS) -> Path:
    """Write the page of `folder` and return its path, `report.html` in the folder by default.

    path:  a file, or a folder that exists, for `report.html` in it.
    scans: how many of a collection get a thumbnail. Raises FileNotFoundError for a folder that is
    not there, ValueError for one that is neither a pretraining's nor a collection's.
    """
    folder = Path(folder)
    _check_arguments(folder, scans)
    path = Path(path) if path else folder
    path = path / PAGE if path.is_dir() else path
    html = _render(folder, scans)
    with files.atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _check_arguments(folder: Path, scans: int) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; {EXPECTED}")
    if scans < 0:
        raise ValueError(f"--scans must be 0 or more, got {scans}")


def _render(folder: Path, scans: int) -> str:
    if (folder / LOG).is_file():
        return pretraining_page.render_pretraining(folder)
    if (folder / collection.REPORT).is_file():
        return collection_page.render_collection(folder, scans)
    kinds = f"neither {LOG} (a pretraining) nor {collection.REPORT} (a collection)"
    raise ValueError(f"{folder} holds {kinds}; {EXPECTED}")


EXPECTED = (
    "give the results of a pretraining, such as $nnUNet_results/nnssl/my_ct/smit__smit, or a "
    "collection made by nnssl_pretrain --only-prepare, such as $nnUNet_preprocessed/nnssl/my_ct"
)
