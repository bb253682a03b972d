"""Addresses as messages and files show them, which others may read."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

PIN = re.compile(r"(?P<where>[^#]+)#sha256=(?P<sha256>[0-9a-f]{64})")


def public(where: str) -> str:
    """An address of a server without user, password and query, which may be secret; others stay."""
    if not where.startswith(("https://", "http://")):
        return where
    address, _, pin = where.partition("#")
    try:
        parts = urlsplit(address)
    except ValueError:  # no address, which `local` refuses
        return address.partition("?")[0].rpartition("@")[2]
    kept = f"#{pin}" if PIN.fullmatch(where) else ""
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", "")) + kept
