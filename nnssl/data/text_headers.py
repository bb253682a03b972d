"""The text headers of MetaImage and NRRD, read before ITK sees them.

ITK trusts them: it allocates what they promise, leaves voxels that are not there as the memory was,
opens any file they name, and takes a pattern of file names as the format of a C printf.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnssl.data import metaimage, nrrd
from nnssl.data.data_files import DEFLATE, unreadable
from nnssl.data.header_text import StoredVoxels
from nnssl.data.refusals import UnusableScanError, passing_errors, summarise_error

META_ENDINGS, NRRD_ENDINGS = (".mha", ".mhd"), (".nrrd", ".nhdr")


def read_text_header(path: Path | str) -> StoredVoxels:
    """What the header of a .mha, .mhd, .nrrd or .nhdr promises, compared with the sizes of the
    files.

    UnusableScanError for what ITK cannot read safely; PassingError when the disk does not respond.
    """
    path = Path(path)
    parse = metaimage.parse if path.suffix.lower() in META_ENDINGS else nrrd.parse
    with passing_errors(), path.open("rb") as file, _not_understood():
        stored = parse(path, file)
    _check_sizes(stored)
    return stored


@contextmanager
def _not_understood() -> Iterator[None]:
    """What a parser cannot make sense of becomes UnusableScanError."""
    try:
        yield
    except UnusableScanError:
        raise
    except (ValueError, KeyError, OverflowError) as error:
        raise unreadable(f"its header is not understood ({summarise_error(error)})") from error


def _check_sizes(stored: StoredVoxels) -> None:
    """No more may be promised than the files can hold, so that no memory is allocated that they
    cannot fill.
    """
    there = _bytes_there(stored)
    if stored.limit is not None and not 0 < stored.limit <= there:
        raise unreadable(f"it is truncated, {there} of {stored.limit} bytes are there")
    # of bzip2 counted where it is read: it has no useful bound
    if stored.encoding != "bzip2" and _most(stored, there) < stored.bytes:
        raise unreadable(
            f"it is truncated, {max(there, 0)} bytes cannot hold the {stored.bytes} that its "
            "header promises"
        )


def _bytes_there(stored: StoredVoxels) -> int:
    """From where the voxels begin to the end of the last file; below 0 where they begin behind."""
    with passing_errors():
        return sum(path.stat().st_size for path in stored.files) - stored.offset


def _most(stored: StoredVoxels, there: int) -> int:
    """The most bytes of voxels that the bytes `there` can become."""
    factors = {"text": stored.size, "zlib": DEFLATE, "gzip": DEFLATE}
    return factors.get(stored.encoding, 1) * there
