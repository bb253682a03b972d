"""Weights by address: the file on this machine of a path, `hf://owner/repo/file` or `https://...`.

Every command that takes weights asks `local`. A download is a file of bytes and nothing more:
whoever reads it decides what may be in it (`nnssl.checkpoint`).

    hf://owner/repo[/file][@revision]   Hugging Face, through huggingface_hub: its cache, its login,
                                        HF_ENDPOINT and HF_HUB_OFFLINE. Without a file: MODEL
    https://host/file                   any server; kept in $HF_HOME/nnssl
    a folder                            of `nnssl_convert --hub`: the file MODEL in it; or of a
                                        pretraining: its final checkpoint
    a name of `nnssl.weights`           the file that came with this package; a path comes first

Each may end with #sha256=..., and is refused where the file has another one.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from nnssl import files, weights
from nnssl.address.shown import PIN, public
from nnssl.types import FINAL
from nnssl.weights import MODEL

LARGEST = 16 << 30  # bytes of a download
EXAMPLES = "hf://owner/repo/file, hf://owner/repo/file@revision or https://host/file"
HUB = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<before>refs/\w+/[^/@]+|[^/@]+))?"
    r"(?:/(?P<file>[^@?]+))?"
    r"(?:@(?P<after>[^@?]+))?"
)
HUB_PAGE = re.compile(
    r"https://huggingface\.co/(?P<repo>[\w.-]+/[\w.-]+)/(?:resolve|blob)/(?P<before>[^/]+)"
    r"/(?P<file>[^?@]+)(?:\?[^@]*)?(?P<after>)"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class AddressError(ValueError):
    """The address is invalid, or its file cannot be fetched; the message says what to type."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository of Hugging Face. revision: branch, tag or commit; None: main."""

    repo: str
    file: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}/{self.file}" + (f"@{self.revision}" if self.revision else "")


def is_address(named: Path | str) -> bool:
    """Whether it is an address to fetch rather than a path. Costs nothing."""
    return "://" in str(named)


def path_or_address(text: str) -> Path | str:
    """What a user typed: a path, or an address as it is. For argparse."""
    return text if is_address(text) else Path(text)


def local(where: Path | str) -> Path:
    """The file on this machine; a path stays a path, there or not. Raises AddressError.

    Downloads what is new. Where the server does not respond, or HF_HUB_OFFLINE is set, the file of
    an earlier download is taken.
    """
    if not is_address(where):
        return _local_path(where)
    text, sha256 = _unpinned(str(where))
    hub = _hub_file(text)
    path = _from_hub(hub) if hub else _from_web(text)
    if sha256:
        _check_sha256(text, files.sha256(path), sha256)
    return path


def _check_sha256(text: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise AddressError(
            f"{public(text)} has sha256 {found}, expected {wanted}: the file has changed, or it is "
            "another one. Give the intended revision (@REVISION), or leave #sha256 out"
        )


def _local_path(where: Path | str) -> Path:
    """The file of a path, in a folder of `nnssl_convert --hub` or of a pretraining, or of released
    weights.
    """
    path = Path(where)
    for inside in (path / MODEL, path / FINAL):
        if files.is_file(inside):
            return inside
    return released(str(where)) if is_released(where) and not files.is_file(path) else path


def is_released(where: Path | str) -> bool:
    """Whether it is a name of weights that came with this package."""
    return str(where) in weights.RELEASED


def released(name: str) -> Path:
    """The file of weights that came with this package. Raises AddressError where it is not the one
    that was released.
    """
    one = weights.RELEASED[name]
    found = files.sha256(one.file) if one.file.is_file() else None
    if found != one.sha256:
        raise AddressError(
            f"the released weights {name} are {'damaged or changed' if found else 'missing'}: "
            f"{one.file} has sha256 {found}, expected {one.sha256}. Reinstall the package (pip "
            "install --force-reinstall), or name other weights"
        )
    return one.file


def pinned(where: Path | str, path: Path) -> str:
    """How plans record `where`, whose file is `path`, so that it means the same file later.

    A branch of Hugging Face becomes the commit, a path is made absolute; released weights are
    named. Others may read plans: an address is recorded as `public` has it.
    """
    for name, one in weights.RELEASED.items():
        if path.resolve() == one.file:
            return name
    return _at_commit(str(where), path) if is_address(where) else str(path.resolve())


def _at_commit(text: str, path: Path) -> str:
    """The address of the commit by which the cache of Hugging Face keeps `path`; others stay."""
    hub = _hub_file(_unpinned(text)[0])
    commit = next(filter(COMMIT.fullmatch, reversed(path.parts)), None)
    return str(replace(hub, revision=commit)) if hub and commit else public(text)


def fetched(name: str) -> list[Path]:
    """The files of this name that came from any server: an address may be known without its query,
    and not work without it.
    """
    from nnssl.address import web  # not when a command merely asks for its options

    return sorted(folder / name for folder in web.kept_folders() if (folder / name).is_file())


def _unpinned(text: str) -> tuple[str, str | None]:
    if "#" not in text:
        return text, None
    if not (found := PIN.fullmatch(text)):
        raise AddressError(
            f"{public(text)!r}: # must be followed by sha256= and 64 hexadecimal digits, as "
            "printed by nnssl_inspect"
        )
    return found["where"], found["sha256"]


def _hub_file(text: str) -> HubFile | None:
    """None for other addresses. Raises AddressError for one of Hugging Face that is incomplete."""
    if found := HUB.fullmatch(text) or HUB_PAGE.fullmatch(text):
        return _hub_file_of(found)
    if text.startswith(("https://", "http://")):
        return None
    raise AddressError(f"{text!r} is not the address of a file; addresses are {EXAMPLES}")


def _hub_file_of(found: re.Match[str]) -> HubFile:
    """The file at an address that HUB or HUB_PAGE matches; a browser writes some characters with
    %.
    """
    file, revision = found["file"] or MODEL, found["before"] or found["after"] or None
    if found.re is HUB_PAGE:
        file, revision = unquote(file), revision and unquote(revision)
    if ".." in file.split("/"):
        raise AddressError(f"{found[0]!r} leads out of the repository; addresses are {EXAMPLES}")
    if set("@?#") & set(file):
        raise AddressError(
            f"{found[0]!r} names a file with @, ? or # in its name: download it, and give its path"
        )
    return HubFile(found["repo"], file, revision)


def _from_web(url: str) -> Path:
    from nnssl.address import web  # not when a command merely asks for its options

    try:
        return web.fetch(url, LARGEST)
    except web.WebError as error:
        raise AddressError(str(error)) from error


def _from_hub(wanted: HubFile) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise AddressError(
            f"{wanted} needs huggingface_hub, which is not installed; type: pip install "
            "huggingface_hub"
        ) from error
    from nnssl.address import web

    # read now, and not when huggingface_hub was imported: a notebook may set it later
    endpoint, offline = os.environ.get("HF_ENDPOINT") or None, web.offline()
    try:
        if not offline and not _is_kept(wanted):
            _check_size(wanted, endpoint)
        path = huggingface_hub.hf_hub_download(
            wanted.repo,
            wanted.file,
            revision=wanted.revision,
            endpoint=endpoint,
            local_files_only=offline,
        )
        return Path(path)
    except AddressError:
        raise
    except Exception as error:  # those of several libraries
        raise AddressError(f"{wanted} {_why(wanted, error, offline)}") from error


def _is_kept(wanted: HubFile) -> bool:
    """Whether the cache has the file of a commit, which never changes: no server is contacted."""
    from huggingface_hub import try_to_load_from_cache

    if wanted.revision is None or not COMMIT.fullmatch(wanted.revision):
        return False
    found = try_to_load_from_cache(wanted.repo, wanted.file, revision=wanted.revision)
    return isinstance(found, str)


def _check_size(wanted: HubFile, endpoint: str | None) -> None:
    """Nothing where the server does not respond: the cache may still have the file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    from nnssl.address import web

    url = hf_hub_url(wanted.repo, wanted.file, revision=wanted.revision, endpoint=endpoint)
    try:
        size = get_hf_file_metadata(url, endpoint=endpoint).size
    except HfHubHTTPError as error:
        if _is_refusal(error):
            raise
        return
    except Exception:  # no connection, by whichever library
        return
    if size is not None and size > LARGEST:
        raise AddressError(web.too_large(str(wanted), size, LARGEST))


def _is_refusal(error: Exception) -> bool:
    """Whether the server responded, and found fault with the request."""
    return getattr(getattr(error, "response", None), "status_code", 500) < 500


def _why(wanted: HubFile, error: Exception, offline: bool) -> str:
    """Why a file of Hugging Face cannot be fetched, and what to type."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return _why_not_cached(wanted, offline)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        from nnssl.address import web

        return web.unwritable(error)
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    known = _known_reasons(f"https://huggingface.co/{wanted.repo}")
    reasons = (reason for kind, reason in known.items() if isinstance(error, kind))
    return next(reasons, f"cannot be downloaded: {first_line}")


def _known_reasons(page: str) -> dict[type[Exception], str]:
    """By huggingface_hub's errors, the special ones first; `page`: of the repository."""
    from huggingface_hub import errors

    return {
        errors.GatedRepoError: (
            f"requires its conditions to be accepted: accept them at {page}, then type: hf "
            "auth login"
        ),
        errors.RepositoryNotFoundError: (
            f"is not in a repository that you can access: check {page}; if it is private, type: "
            "hf auth login"
        ),
        errors.RevisionNotFoundError: f"has no such revision: see {page}/tree/main",
        errors.EntryNotFoundError: f"is not in the repository: see its files at {page}/tree/main",
    }


def _why_not_cached(wanted: HubFile, offline: bool) -> str:
    if offline:
        return (
            "is not in the cache, and HF_HUB_OFFLINE is set: unset it, or download "
            f"it on a machine with a connection: hf download {wanted.repo} {wanted.file}"
        )
    return (
        "is not in the cache, and Hugging Face does not respond: check the connection "
        "(HTTPS_PROXY, HF_ENDPOINT) and type the same command again"
    )
