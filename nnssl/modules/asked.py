"""Which tokens a head is asked for, as a list of fixed length.

A boolean index makes the host wait for the device: the number of rows is not known before. And it
changes the shapes of all that follows, which no CUDA graph may.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Asked(NamedTuple):
    """`index` [K] of the asked tokens among all of a batch, in raster order; others fill it up.

    counts: [K] 1 for a token that is asked for, 0 for one that fills up.
    weight: [K] one over the number of those asked of its view, and over the views; 0 likewise.
    """

    index: Tensor
    counts: Tensor
    weight: Tensor

    def of(self, tokens: Tensor) -> Tensor:
        """Tokens [B C *grid] -> [K C]."""
        return tokens.movedim(1, -1).flatten(0, -2).index_select(0, self.index)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over views of each view's mean over its asked tokens: [K] -> scalar.

        A view of which none is asked counts as 0, as in iBOT's code (Zhou 2022, eq. 2), so the
        result is finite, with a gradient, even when no view asks for any.
        """
        return (values * self.weight).sum()


def ask(hidden: Tensor, most: int) -> Asked:
    """The True ones of Bool [B *grid], of which there are at most `most` in the batch."""
    flat = hidden.flatten(1)
    index = flat.flatten().byte().argsort(descending=True, stable=True)[:most]
    weight = flat / (flat.sum(dim=1, keepdim=True).clamp(min=1) * len(flat))
    weight = weight.flatten().index_select(0, index)
    return Asked(index, (weight > 0).float(), weight)
