"""Weights by address or name: `hf://owner/repo/file`, `https://...` or one of `nnssl.weights` in
place of a path.

resolve   the file on this machine of a path or an address; the only way for all commands
web       a file of any server, in the cache
shown     addresses without what may be secret
"""

from nnssl.address.resolve import (
    MODEL,
    AddressError,
    fetched,
    is_address,
    local,
    path_or_address,
    pinned,
    released,
)
from nnssl.address.shown import public

__all__ = [
    "MODEL",
    "AddressError",
    "fetched",
    "is_address",
    "local",
    "path_or_address",
    "pinned",
    "public",
    "released",
]
