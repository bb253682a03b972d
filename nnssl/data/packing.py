"""Arrays as text in a note: compressed, in the letters of base64."""

from __future__ import annotations

import base64
import zlib

import numpy as np


def pack(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes())).decode()


def unpack(text: str) -> bytes:
    """The bytes of the array. Raises ValueError, TypeError or zlib.error for other text."""
    return zlib.decompress(base64.b64decode(text))
