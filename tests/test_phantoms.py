"""Phantoms look like CT to every part that reads HU, and cannot be segmented by a threshold."""

from __future__ import annotations

import numpy as np
import pytest

from nnssl import phantoms
from nnssl.phantoms import LABELS, blur, phantom
from nnssl.types import BODY_HU


@pytest.fixture(scope="module")
def some() -> list[phantoms.Phantom]:
    return [phantom(seed) for seed in range(6)]


def test_same_seed_same_phantom_other_seed_another():
    one, again, other = phantom(3), phantom(3), phantom(4)
    assert np.array_equal(one.hu, again.hu)
    assert np.array_equal(one.labels, again.labels)
    assert one.spacing == again.spacing != other.spacing


def test_values_are_hounsfield_units(some):
    for case in some:
        assert case.hu.dtype == np.int16
        assert case.labels.dtype == np.uint8
        assert case.hu.min() >= -1024
        assert case.hu.max() <= 3071
        body = case.hu > BODY_HU
        assert 0.25 < body.mean() < 0.8
        corner = case.hu[:, :3, :3]
        assert np.median(corner) == pytest.approx(-1000, abs=30)
        assert 100 < np.percentile(case.hu[body], 99) < 900  # bone, or an enhanced kidney
        assert ((case.hu > -950) & (case.hu < -600)).mean() > 0.01  # lung


def test_every_organ_is_there_and_has_its_hu(some):
    for case in some:
        sizes = {name: int((case.labels == value).sum()) for name, value in LABELS.items()}
        assert min(sizes.values()) > 30, sizes
        assert sizes["liver"] > sizes["kidney"] > sizes["canal"]
        for name in ("liver", "kidney", "canal"):
            assert 0 < np.median(case.hu[case.labels == LABELS[name]]) < 250, name


def test_a_threshold_cannot_find_the_organs(some):
    """Even the best HU window, chosen with the truth at hand, stays far from the organ."""
    for case in some:
        for name in ("liver", "kidney", "canal"):
            truth = case.labels == LABELS[name]
            windows = (
                np.percentile(case.hu[truth], (low, 100 - low)) for low in (0, 5, 10, 20, 30)
            )
            best = max(_dice((case.hu >= low) & (case.hu <= high), truth) for low, high in windows)
            assert best < 0.75, name


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_cases_differ_in_spacing_and_size(some):
    assert len({case.spacing for case in some}) == len(some)
    assert len({case.hu.shape for case in some}) == len(some)


def test_shape_and_spacing_can_be_given():
    case = phantom(0, shape=(9, 20, 17), spacing=(5.0, 12.0, 14.0))
    assert case.hu.shape == case.labels.shape == (9, 20, 17)
    assert case.spacing == (5.0, 12.0, 14.0)


def test_labels_follow_the_spacing():
    """The same anatomy on a grid twice as fine has the same organ volumes in mm3."""
    coarse = phantom(5, shape=(40, 60, 70), spacing=(6.0, 6.0, 6.0))
    fine = phantom(5, shape=(80, 120, 140), spacing=(3.0, 3.0, 3.0))
    for name in ("liver", "kidney"):
        volumes = [
            (case.labels == LABELS[name]).sum() * np.prod(case.spacing) for case in (coarse, fine)
        ]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.05)


@pytest.mark.parametrize(
    ("shape", "spacing", "words"),
    [
        ((10, 10), None, "three axes"),
        ((1, 9, 9), None, "at least 2"),
        (None, (1.0, 0.0, 1.0), "above 0"),
    ],
)
def test_impossible_sizes_are_refused(shape, spacing, words):
    with pytest.raises(ValueError, match=words):
        phantom(0, shape, spacing)


def test_blur_keeps_a_constant_and_the_sum_inside():
    assert np.allclose(blur(np.full((4, 5, 6), 7.0), passes=2), 7.0)
    point = np.zeros((5, 5, 5))
    point[2, 2, 2] = 64.0
    assert blur(point, passes=1)[2, 2, 2] == pytest.approx(8.0)
    assert blur(point, passes=1).sum() == pytest.approx(64.0)


def test_files_read_back_as_written(tmp_path):
    import SimpleITK

    (path,) = phantoms.write_folder(tmp_path, seeds=[2], shape=(12, 14, 16))
    case, image = phantom(2, shape=(12, 14, 16)), SimpleITK.ReadImage(str(path))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), case.hu)
    assert tuple(reversed(image.GetSpacing())) == pytest.approx(case.spacing)


def test_dataset_passes_nnunets_own_check(tmp_path):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    folder = tmp_path / "Dataset901_Phantoms"
    phantoms.write_nnunet_dataset(folder, training=range(2), unseen=[7], shape=(24, 36, 40))
    verify_dataset_integrity(str(folder), num_processes=1)
    assert (folder / "imagesTs" / "phantom_0007_0000.nii.gz").is_file()
    assert (folder / "labelsTs" / "phantom_0007.nii.gz").is_file()
