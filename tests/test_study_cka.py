"""CKA against the estimator's definition, the textbook formula, and what must hold of any such
measure.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import linear_kernel
from sklearn.preprocessing import KernelCenterer

from nnssl.study.measurement.cka import MinibatchCKA, grams, hsic


def features(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def cka(first: torch.Tensor, second: torch.Tensor, size: int | None = None) -> float:
    measured = MinibatchCKA()
    for one, two in zip(
        first.split(size or len(first)), second.split(size or len(second)), strict=True
    ):
        measured.add([one], [two])
    return float(measured.value())


def test_hsic_is_the_mean_over_all_quadruples():
    """Song et al. 2012, theorem 3: K_ij (L_ij + L_qr - 2 L_iq) over all (i, j, q, r) without
    repetition.
    """
    k, m = (grams([features(6, 3, seed)])[0].numpy() for seed in (0, 1))
    terms = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(6), 4)
    ]
    found = float(hsic(torch.tensor(k)[None], torch.tensor(m)[None]))
    assert found == pytest.approx(np.mean(terms))


def test_with_many_examples_it_is_the_textbook_cka():
    """Kornblith et al. 2019: |Y'X|^2 / (|X'X| |Y'Y|), the kernels centred by scikit-learn."""
    x = features(1500, 8, 0)
    y = x @ features(8, 5, 1) + features(1500, 5, 2)
    k, m = (KernelCenterer().fit_transform(linear_kernel(part.numpy())) for part in (x, y))
    textbook = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert cka(x, y) == pytest.approx(textbook, abs=0.01)
    assert 0.3 < textbook < 0.9


def test_minibatches_agree_with_the_whole():
    x = features(4000, 6, 0)
    y = x @ features(6, 6, 1) + 2 * features(4000, 6, 2)
    assert cka(x, y, size=20) == pytest.approx(cka(x, y), abs=0.02)


def test_independent_features_are_at_zero_where_the_biased_one_is_not():
    x, y = features(1600, 200, 0), features(1600, 200, 1)
    assert abs(cka(x, y, size=32)) < 0.02
    few = [KernelCenterer().fit_transform(linear_kernel(part[:32].numpy())) for part in (x, y)]
    biased = (few[0] * few[1]).sum() / np.sqrt((few[0] ** 2).sum() * (few[1] ** 2).sum())
    assert biased > 0.5


def test_rotation_scale_and_offset_change_nothing():
    x, y = features(64, 5, 0), features(64, 5, 1) + features(64, 5, 0)
    turn = torch.linalg.qr(features(5, 5, 2)).Q
    assert cka(3 * x @ turn + 7, y) == pytest.approx(cka(x, y))
    assert cka(x, x @ turn) == pytest.approx(1)


def test_all_pairs_of_layers_at_once_are_the_single_ones():
    first, second = (
        [features(32, w, w) for w in (3, 4, 5)],
        [features(32, w, w + 1) for w in (6, 2)],
    )
    measured = MinibatchCKA()
    measured.add(first, second)
    single = [[cka(x, y) for y in second] for x in first]
    assert measured.value().numpy() == pytest.approx(np.array(single))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="at least 4 examples, got 3"):
        MinibatchCKA().add([features(3, 2, 0)], [features(3, 2, 1)])
    with pytest.raises(ValueError, match="same examples"):
        MinibatchCKA().add([features(8, 2, 0)], [features(9, 2, 1)])
    with pytest.raises(ValueError, match="no minibatch"):
        MinibatchCKA().value()


def test_a_layer_that_never_varies_has_no_value():
    assert np.isnan(cka(torch.ones(8, 3), features(8, 3, 0)))
