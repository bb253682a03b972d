"""Similarity of two encoders, layer by layer: unbiased linear CKA over minibatches.

Centred kernel alignment: Kornblith et al. 2019 (arXiv 1905.00414). The unbiased estimator of HSIC:
Song et al. 2012 (JMLR 13, eq. 5). Minibatches, whose averages converge to the whole's: Nguyen et
al. 2021 (arXiv 2010.15327).

    minibatch of n examples -> Gram matrices [n n] of every layer -> HSIC of every pair, added up ->
    CKA at the end

The memory is that of one minibatch, whatever their number.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 4  # examples of a minibatch that the estimator is defined for


def grams(features: list[Tensor]) -> Tensor:
    """L features [n C_i] to linear Gram matrices [L n n] without their diagonals, float64."""
    matrices = torch.stack([x.double() @ x.double().T for x in features])
    matrices.diagonal(dim1=1, dim2=2).zero_()
    return matrices


def hsic(first: Tensor, second: Tensor) -> Tensor:
    """[L n n] and [M n n], as `grams` makes them, to [L M]: the unbiased estimates of HSIC of all
    pairs.
    """
    n = first.shape[-1]
    if n < LEAST:
        raise ValueError(f"unbiased HSIC needs minibatches of at least {LEAST} examples, got {n}")
    products = first.flatten(1) @ second.flatten(1).T  # tr(KL), of symmetric matrices
    of_first, of_second = first.sum(-1), second.sum(-1)
    totals = torch.outer(of_first.sum(-1), of_second.sum(-1)) / ((n - 1) * (n - 2))
    crossed = of_first @ of_second.T * (2 / (n - 2))
    return (products + totals - crossed) / (n * (n - 3))


def centre(features: Tensor) -> Tensor:
    """Features less their mean, which changes no HSIC but keeps the sums small."""
    features = features.double()
    return features - features.mean(0)


class MinibatchCKA:
    """Adds up minibatches of two networks' features; `value()` is their CKA, [L M].

    A value is at most about 1, for equal features up to rotation and scale, and about 0 for
    independent ones; an unbiased estimate may come out slightly below 0. NaN for a layer whose
    features do not vary.
    """

    def __init__(self) -> None:
        self.across = torch.zeros(())
        self.own = torch.zeros(()), torch.zeros(())
        self.minibatches = 0

    def add(self, first: list[Tensor], second: list[Tensor]) -> None:
        """One minibatch: features [n C] of L layers of the one, of M layers of the other, of the
        same n examples.
        """
        _require_same_examples([*first, *second])
        k, m = (grams([centre(x) for x in features]) for features in (first, second))
        self.across = self.across + hsic(k, m)
        self.own = self.own[0] + _self_hsic(k), self.own[1] + _self_hsic(m)
        self.minibatches += 1

    def value(self) -> Tensor:
        if not self.minibatches:
            raise ValueError("no minibatch was added: there is nothing to compare")
        scale = torch.outer(*self.own)
        return self.across / scale.where(scale > 0, torch.nan).sqrt()


def _require_same_examples(features: list[Tensor]) -> None:
    sizes = {len(x) for x in features}
    if len(sizes) != 1:
        raise ValueError(
            "CKA compares features of the same examples, got different numbers of examples: "
            f"{sorted(sizes)}"
        )


def _self_hsic(gram: Tensor) -> Tensor:
    """[L] HSIC of each layer with itself."""
    return torch.stack([hsic(g[None], g[None])[0, 0] for g in gram])
