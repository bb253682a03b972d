"""The tokens that a head is applied to, as a list of fixed length.

A boolean index makes the host wait for the device: the number of rows is not known before. And it
changes the shapes of all that follows, which no CUDA graph may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class SelectedTokens(NamedTuple):
    """`index` [K] of the selected tokens among all of a batch, in raster order; others fill it up.

    counts: [K] 1 for a selected token, 0 for one that fills up.
    weight: [K] one over the number selected of its view, and over the views; 0 likewise.
    """

    index: Tensor
    counts: Tensor
    weight: Tensor

    def of(
        self, tokens: Float[Tensor, "batch channels *grid"]
    ) -> Float[Tensor, "selected channels"]:
        """Tokens [B C *grid] -> [K C]."""
        return tokens.movedim(1, -1).flatten(0, -2).index_select(0, self.index)

    def only(self, rows: Float[Tensor, "selected dim"]) -> Float[Tensor, "selected dim"]:
        """[K d] with zeros in the rows of what fills up."""
        return rows * self.counts[:, None]

    def mean(self, values: Float[Tensor, " selected"]) -> Float[Tensor, ""]:
        """The mean over views of each view's mean over its selected tokens: [K] -> scalar.

        A view of which none is selected counts as 0, as in iBOT's code (Zhou 2022, eq. 2), so the
        result is finite, with a gradient, even when no view asks for any.
        """
        return torch.dot(values, self.weight)


def select_tokens(hidden: Bool[Tensor, "batch *grid"], most: int) -> SelectedTokens:
    """The True ones of Bool [B *grid], of which there are at most `most` in the batch."""
    flat = hidden.flatten(1)
    index = flat.flatten().byte().argsort(descending=True, stable=True)[:most]
    weight = flat / (flat.sum(dim=1, keepdim=True).clamp(min=1) * len(flat))
    weight = weight.flatten().index_select(0, index)
    return SelectedTokens(index, weight.sign(), weight)
