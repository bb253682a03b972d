"""Download a file of a web server: whole or not at all, and again only if it has changed."""

from __future__ import annotations

import http.client
import os
import re
import string
import urllib.error
import urllib.request
import warnings
from base64 import b64encode
from contextlib import suppress
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from nnssl import files
from nnssl.address.shown import public

if TYPE_CHECKING:
    from tqdm import tqdm

TIMEOUT = 30.0  # seconds without a byte
NOTE = "source.json"  # beside a file: from where it is
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
CHANGED = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}


class WebError(ValueError):
    """The file cannot be fetched; the message says why and what to type."""


class _UnwritableError(WebError):
    """The cache cannot be written: no fault of the server's, or of the connection's."""


class _BrokenError(ConnectionError):
    """The connection ended while a file came."""


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids contacting any server."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def cache() -> Path:
    """Where downloads are kept: beside those of huggingface_hub, in $HF_HOME/nnssl."""
    if named := os.environ.get("HF_HOME"):
        return Path(named, "nnssl")
    above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(above, "huggingface", "nnssl")


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
    _require_url(url)
    name, path = public(url), _cached_path(url)
    known = _known(path)
    if offline():
        _require_earlier(name, known)
        return path
    try:
        with _opened(url, known) as response:
            _store(response, name, path, largest)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 304 and known:
            return path
        reason = f"{error.code} {error.reason}"
        if error.code < 500 or not known:
            raise WebError(
                f"{name} cannot be downloaded: the server returned {reason}; open the address in a "
                "browser to check that it is right and public"
            ) from error
        _warn_of_earlier(name, reason)
    except files.NoRoomError:
        raise
    except _UnwritableError as error:
        if not known:
            raise
        _warn_of_earlier(name, error)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if not known:
            raise WebError(
                f"{name} cannot be downloaded: {reason}. Check the connection (HTTPS_PROXY) and "
                "type the same command again"
            ) from error
        _warn_of_earlier(name, reason)
    return path


def _require_earlier(name: str, known: dict) -> None:
    """`known`: the note of an earlier download, or nothing."""
    if not known:
        raise WebError(
            f"{name} was not downloaded before, and HF_HUB_OFFLINE is set: unset it, or give the "
            "path of a file"
        )


def _cached_path(url: str) -> Path:
    """Where the file of `url` is kept."""
    return cache() / files.fingerprint(url) / _file_name(url)


def kept_folders() -> list[Path]:
    """One for each file in the cache."""
    return [note.parent for note in cache().glob(f"*/{NOTE}")]


def _file_name(url: str) -> str:
    """A safe one, after the last part of the path."""
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    return (re.sub(r"[^\w.-]", "_", name) or "file").lstrip(".")


def _opened(url: str, known: dict) -> HTTPResponse:
    """The server's response; HTTPError 304 where the file is still that of the note `known`."""
    conditions = {CHANGED[key]: value for key, value in known.items() if key in CHANGED}
    bare, login = _without_login(url)
    request = urllib.request.Request(bare, headers={"User-Agent": "nnssl-swin", **conditions})
    if login:  # of this server alone
        request.add_unredirected_header("Authorization", login)
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except WebError:
        raise
    except ValueError as error:  # of urllib, before our handler sees it
        raise WebError(f"{public(url)} leads to what is not an address: {error}") from error


def _without_login(url: str) -> tuple[str, str]:
    """The address without user and password, and these as a header; "" where there are none."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, ""
    encoded = b64encode(unquote(login).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {encoded}"


def _require_url(url: str) -> None:
    """Raises WebError unless it is an address as a browser copies it, and a safe one."""
    if not (url.isascii() and url.isprintable() and " " not in url):
        raise WebError(
            f"{public(url)!r} has characters that no address has; copy it from the browser, which "
            f"writes them with %, as in {quote(public(url), safe=string.punctuation)}"
        )
    _require_safe_url(url)


def _require_safe_url(url: str, may_be_here: bool = True) -> None:
    """may_be_here: whether http:// is allowed to this machine."""
    if not _is_safe(url, may_be_here):
        raise WebError(
            f"{public(url)!r} is refused: addresses begin with https:// or hf://, since http:// "
            "can be tampered with; it is allowed only for this machine"
        )


def _is_safe(url: str, may_be_here: bool) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # ValueError where it is no number
    except ValueError as error:
        raise WebError(f"{public(url)!r} is not the address of a file: {error}") from error
    if parts.scheme == "https":
        return bool(parts.hostname)
    return may_be_here and parts.scheme == "http" and parts.hostname in THIS_MACHINE


def _known(path: Path) -> dict:
    """What was noted of an earlier download that is still whole; else nothing."""
    with suppress(OSError, ValueError):
        record = files.read_json(path.parent / NOTE)
        if path.stat().st_size == record["bytes"]:
            return record
    return {}


def _warn_of_earlier(name: str, why: object) -> None:
    warnings.warn(
        f"{name} could not be checked ({why}); the file of an earlier download is used",
        stacklevel=4,
    )


def _store(response: HTTPResponse, url: str, path: Path, largest: int) -> None:
    """Write the file and a note next to it, with `url` as `public` has it. Raises WebError for what
    is not the whole file, or where nothing can be written.
    """
    size = _promised_size(response.headers, url)
    _check_size(url, size, largest)
    files.sweep(path.parent, older=files.STALE)
    try:
        with files.atomic(path) as temporary, _download_bar(path.name, size) as bar:
            got = _copy(response, temporary, bar, largest)
            _check_size(url, got, largest)
            _check_whole(url, got, size)
        note = {"url": url, "bytes": got, **_version_headers(response.headers)}
        files.write_json(path.parent / NOTE, note)
    except (_BrokenError, files.NoRoomError):
        raise
    except OSError as error:
        raise _UnwritableError(f"{url} {unwritable(error)}") from error


def unwritable(error: OSError) -> str:
    """How a message about a file ends that cannot be kept."""
    return (
        f"cannot be written to the cache: {error}. Name a folder that can be written: export "
        "HF_HOME=FOLDER"
    )


def _check_whole(url: str, got: int, size: int | None) -> None:
    if size is not None and got != size:
        raise WebError(
            f"{url} was interrupted after {got} of {size} bytes; type the same command again"
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
        while block := _next_block(response):
            got += len(block)
            if got > largest:
                break
            file.write(block)
            bar.update(len(block))
    return got


def _next_block(response: HTTPResponse) -> bytes:
    """Raises _BrokenError: a fault of the connection, and none of the disk that is written."""
    try:
        return response.read(files.BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Followed to https alone: what was requested safely must not come unsafely. No other server
    may lead to what listens on this machine by http, or gets user and password.
    """

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _require_safe_url(newurl, req.origin_req_host.strip("[]") in THIS_MACHINE)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        login = req.unredirected_hdrs.get("Authorization")
        if request is not None and login and (request.type, request.host) == (req.type, req.host):
            request.add_unredirected_header("Authorization", login)
        return request
