"""Labels belong to the scan's voxels: those on another grid of the same shape are refused, and no
scan gets those of another.
"""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from synthetic_scans import ct_array

from nnssl.data.refusals import UnusableScanError
from nnssl.data.volumes import read_volume
from nnssl.embed.masks import find_label_files, match_masks
from nnssl.embed.scan import read_labels

SHAPE = (18, 24, 28)
LPS = np.array([[-2.0, 0, 0, 50], [0, -2.0, 0, 60], [0, 0, 3.0, -70], [0, 0, 0, 1]])


def labels() -> np.ndarray:
    """uint8 [Z Y X], of which no axis can be reversed unnoticed."""
    array = np.zeros(SHAPE, np.uint8)
    array[2:8, 3:9, 4:12] = 3
    return array


def saved(path, array, affine):
    nibabel.save(nibabel.Nifti1Image(array.T, affine), path)
    return path


@pytest.fixture
def scan(tmp_path):
    return read_volume(saved(tmp_path / "scan.nii.gz", ct_array(SHAPE), LPS))


def test_labels_in_another_orientation_are_refused(scan, tmp_path):
    """The same labels in the same place, stored as RAS."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(labels().T, LPS))
    nibabel.save(image, tmp_path / "mask.nii.gz")
    with pytest.raises(UnusableScanError) as refused:
        read_labels(tmp_path / "mask.nii.gz", scan)
    for said in (
        "mask.nii.gz are on another grid: up to 70.9 mm",
        "orientation RAS",
        "the scan has orientation LPS",
        "SimpleITK.Resample(labels, scan",
    ):
        assert said in str(refused.value)


@pytest.mark.parametrize(
    "change", [(0, 3, 1.0), (2, 2, 0.3)], ids=["moved by half a voxel", "another spacing"]
)
def test_labels_in_another_place_are_refused(scan, tmp_path, change):
    row, column, amount = change
    other = LPS.copy()
    other[row, column] += amount
    with pytest.raises(UnusableScanError, match="are on another grid"):
        read_labels(saved(tmp_path / "mask.nii.gz", labels(), other), scan)


def test_labels_on_the_scans_grid_are_read(scan, tmp_path):
    """Up to rounding; and where the scan's place is unknown, by the shape alone."""
    rounded = LPS + np.array([[1e-4, 0, 0, 1e-2], [0] * 4, [0] * 4, [0] * 4])
    path = saved(tmp_path / "mask.nii.gz", labels(), rounded)
    assert np.array_equal(read_labels(path, scan), labels())
    elsewhere = saved(tmp_path / "other.nii.gz", labels(), np.diag([2.0, 2.0, 3.0, 1.0]))
    assert np.array_equal(read_labels(elsewhere, replace(scan, affine=None)), labels())


def test_truncated_labels_are_refused(scan, tmp_path):
    noise = np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.uint8)
    path = saved(tmp_path / "mask.nii.gz", noise, LPS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnusableScanError, match=r"cannot be read: .*ended before"):
        read_labels(path, scan)


def test_labels_with_axes_in_another_order_are_brought_to_the_scans(scan, tmp_path):
    turned = nibabel.Nifti1Image(labels().T.transpose(2, 0, 1), LPS[:, [2, 0, 1, 3]])
    nibabel.save(turned, tmp_path / "mask.nii.gz")
    assert np.array_equal(read_labels(tmp_path / "mask.nii.gz", scan), labels())


def test_labels_written_with_the_scans_affine_are_read_though_its_forms_differ(tmp_path):
    """By nibabel: ITK takes the scan's qform, and of its mask the only form there is."""
    moved = LPS.copy()
    moved[:3, 3] += 5.0
    image = nibabel.Nifti1Image(ct_array(SHAPE, 0).T.astype(np.float32), LPS)
    image.set_sform(LPS, 2)
    image.set_qform(moved, 1)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    affine = nibabel.load(tmp_path / "ct.nii.gz").affine
    path = saved(tmp_path / "mask.nii.gz", labels(), affine)
    scan = read_volume(tmp_path / "ct.nii.gz")
    with pytest.raises(UnusableScanError, match="are on another grid"):
        read_labels(path, scan)
    assert np.array_equal(read_labels(path, scan, tmp_path / "ct.nii.gz"), labels())


@pytest.mark.parametrize(
    ("scans", "masks", "matches"),
    [
        (["p0/ct", "p1/ct"], ["p0/ct"], {"p0/ct": "p0/ct"}),
        (["1/2/ct", "2/1/ct"], ["1/2/ct", "2/1/ct"], {"1/2/ct": "1/2/ct", "2/1/ct": "2/1/ct"}),
        (["p1/ct", "p2/ct"], ["p1_seg/ct", "p2_seg/ct"], {}),
        (["p1/ct"], ["p2/ct", "p3/ct"], {}),
        (["p1/ct", "p2/ct"], ["p3/ct"], {}),
        (["Tr/p1/ct", "Tr/p2/ct"], ["p2/ct"], {"Tr/p2/ct": "p2/ct"}),
        (["s0_0000", "s0_0001"], ["s0"], {"s0_0000": "s0"}),
        (["s0", "more/s0"], ["s0", "more/s0"], {"s0": "s0", "more/s0": "more/s0"}),
        (["images/s0_0000"], ["labels/a/s0"], {"images/s0_0000": "labels/a/s0"}),
    ],
)
def test_a_mask_is_that_of_the_same_folders(tmp_path, scans, masks, matches):
    """By name alone only where one scan and one mask have it: nobody notices another's mask."""
    there = touched(tmp_path / "scans", scans)
    touched(tmp_path / "masks", masks)
    found = matched(there, [tmp_path / "scans"], tmp_path / "masks")
    wanted = {("scans", scan): ("masks", mask) for scan, mask in matches.items()}
    assert found == {
        tmp_path / a / f"{scan}.nii.gz": tmp_path / b / f"{mask}.nii.gz"
        for (a, scan), (b, mask) in wanted.items()
    }


def touched(folder, names):
    paths = [folder / f"{name}.nii.gz" for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def matched(scans, tops, folder):
    return match_masks(scans, tops, find_label_files(folder), folder)


def test_no_scan_is_its_own_mask(tmp_path):
    """With the whole dataset as the folder of masks; nor is another scan one."""
    scans = touched(tmp_path / "imagesTr", ["s0_0000", "s1_0000"])
    (mask,) = touched(tmp_path / "labelsTr", ["s0"])
    assert matched(scans, [tmp_path / "imagesTr"], tmp_path) == {scans[0]: mask}


def test_patients_that_are_given_one_by_one_have_their_own_masks(tmp_path):
    scans = touched(tmp_path / "scans", ["p1/ct", "p2/ct"])
    masks = touched(tmp_path / "masks", ["p1/ct", "p2/ct"])
    tops = [scan.parent for scan in scans]
    assert matched(scans, tops, tmp_path / "masks") == dict(zip(scans, masks, strict=True))
