"""Download a file of a web server: whole or not at all, and again only if it has changed."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
import warnings
from contextlib import suppress
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from nnssl import files

if TYPE_CHECKING:
    from tqdm import tqdm

TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 20
NOTE = "source.json"  # beside a file: from where it is
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
CHANGED = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}


class WebError(ValueError):
    """The file cannot be fetched; the message says why and what to type."""


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids contacting any server."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def cache() -> Path:
    """Where downloads are kept: beside those of huggingface_hub, in $HF_HOME/nnssl."""
    above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_HOME") or Path(above, "huggingface"), "nnssl")


def too_large(what: str, size: int, largest: int) -> str:
    return (
        f"{what} has {size / 2**30:.1f} GiB, weights have at most {largest / 2**30:g} GiB here; "
        "if it is the right file, download it manually and give its path"
    )


def fetch(url: str, largest: int) -> Path:
    """The file of `url` in the cache, at most `largest` bytes. Raises WebError.

    The server says whether it changed. Where it does not respond, or must not be contacted
    (`offline`), the file of an earlier download is taken; in the first case with a warning.
    """
    _require_safe_url(url)
    path = _cached_path(url)
    known = _known(path)
    if offline():
        _require_earlier(url, known)
        return path
    try:
        with _opened(url, known) as response:
            _store(response, url, path, largest)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 304 and known:
            return path
        reason = f"{error.code} {error.reason}"
        if error.code < 500 or not known:
            raise WebError(
                f"{url} cannot be downloaded: the server returned {reason}; open the address in a "
                "browser to check that it is right and public"
            ) from error
        _warn_of_earlier(url, reason)
    except files.NoRoomError:
        raise
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if not known:
            raise WebError(
                f"{url} cannot be downloaded: {reason}. Check the connection (HTTPS_PROXY) and "
                "type the same command again"
            ) from error
        _warn_of_earlier(url, reason)
    return path


def _require_earlier(url: str, known: dict) -> None:
    """`known`: the note of an earlier download, or nothing."""
    if not known:
        raise WebError(
            f"{url} was not downloaded before, and HF_HUB_OFFLINE is set: unset it, or give the "
            "path of a file"
        )


def _cached_path(url: str) -> Path:
    """Where the file of `url` is kept."""
    return cache() / files.fingerprint(url) / _file_name(url)


def _file_name(url: str) -> str:
    """A safe one, after the last part of the path."""
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    return (re.sub(r"[^\w.-]", "_", name) or "file").lstrip(".")


def _opened(url: str, known: dict) -> HTTPResponse:
    """The server's response; HTTPError 304 where the file is still that of the note `known`."""
    conditions = {CHANGED[key]: value for key, value in known.items() if key in CHANGED}
    request = urllib.request.Request(url, headers={"User-Agent": "nnssl-swin", **conditions})
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)


def _require_safe_url(url: str) -> None:
    if not _is_safe(url):
        raise WebError(
            f"{url!r} is refused: addresses begin with https:// or hf://, since http:// can be "
            "tampered with; it is allowed only for this machine"
        )


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "https":
        return bool(parts.hostname)
    return parts.scheme == "http" and parts.hostname in THIS_MACHINE


def _known(path: Path) -> dict:
    """What was noted of an earlier download that is still whole; else nothing."""
    with suppress(OSError, ValueError):
        record = files.read_json(path.parent / NOTE)
        if path.stat().st_size == record["bytes"]:
            return record
    return {}


def _warn_of_earlier(url: str, why: object) -> None:
    warnings.warn(
        f"{url} could not be checked ({why}); the file of an earlier download is used",
        stacklevel=4,
    )


def _store(response: HTTPResponse, url: str, path: Path, largest: int) -> None:
    """Write the file and the note beside it. Raises WebError for what is not the whole file."""
    size = _promised_size(response.headers, url)
    _check_size(url, size, largest)
    with files.atomic(path) as temporary, _download_bar(path.name, size) as bar:
        got = _copy(response, temporary, bar, largest)
        _check_size(url, got, largest)
        if size is not None and got != size:
            raise WebError(
                f"{url} was interrupted after {got} of {size} bytes; type the same command again"
            )
    files.write_json(
        path.parent / NOTE, {"url": url, "bytes": got, **_version_headers(response.headers)}
    )


def _version_headers(headers: HTTPMessage) -> dict[str, str]:
    """What the server needs to know to say later whether the file changed."""
    return {key: headers[key] for key in CHANGED if headers.get(key)}


def _promised_size(headers: HTTPMessage, url: str) -> int | None:
    """Bytes; None where the server does not say. Raises WebError for a page."""
    if headers.get_content_type() == "text/html":
        raise WebError(
            f"{url} is a web page, not a file of weights; use the address of the file itself, as "
            "behind the page's download button"
        )
    length = headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _check_size(url: str, size: int | None, largest: int) -> None:
    if size is not None and size > largest:
        raise WebError(too_large(url, size, largest))


def _download_bar(name: str, size: int | None) -> tqdm:
    from tqdm import tqdm

    return tqdm(total=size, desc=name, unit="B", unit_scale=True, delay=1, dynamic_ncols=True)


def _copy(response: HTTPResponse, to: Path, bar: tqdm, largest: int) -> int:
    """The bytes that came; more than `largest` are not written."""
    got = 0
    with to.open("wb") as file:
        while block := response.read(BLOCK):
            got += len(block)
            if got > largest:
                break
            file.write(block)
            bar.update(len(block))
    return got


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Followed to https alone: what was requested safely must not come unsafely."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _require_safe_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
