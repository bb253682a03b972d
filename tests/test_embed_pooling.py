"""Means and maps of whole scans: exact over regions, once over windows, in their place."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from micro import ENCODER
from synthetic_checkpoints import pretrained
from synthetic_scans import ct_array

import nnssl
from nnssl.embed import pooling
from nnssl.embed.scan import Prepared, outlined, resampled_affine, resampled_nearest


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return nnssl.load_encoder(pretrained(tmp_path_factory.mktemp("weights")))


# --- pooling


def random_scan(shape, seed=0, labels=False) -> Prepared:
    generator = np.random.default_rng(seed)
    image = generator.normal(size=shape).astype(np.float32)
    found = generator.integers(0, 3, shape) * 5 if labels else None
    return Prepared(image, image > -0.5, found)


def test_means_are_over_the_voxels_of_each_region(encoder):
    """Against each token repeated over its voxels, and a mean over the region's voxels."""
    prepared = random_scan((19, 34, 21), labels=True)
    found = pooling.pool(encoder, prepared)
    assert (found.labels, found.windows) == ((5, 10), 1)
    assert found.voxels == tuple((prepared.labels == label).sum() for label in found.labels)
    regions = [prepared.body, *(prepared.labels == label for label in found.labels)]
    with torch.inference_mode():
        maps = encoder(torch.from_numpy(prepared.image)[None, None])
    for tokens, stride, means in zip(maps, encoder.strides, found.means, strict=True):
        fine = tokens[0].numpy()
        for axis, step in enumerate(stride, start=1):
            fine = fine.repeat(step, axis)
        fine = fine[:, :19, :34, :21]
        wanted = [fine[:, region].mean(1, dtype=np.float64) for region in regions]
        np.testing.assert_allclose(means, wanted, atol=2e-5)


def test_windows_cover_a_scan_once(encoder, monkeypatch):
    """With maps that are constant in a window, every token's weights must add up to one."""
    constant = [1.0, 2.0, 3.0, 4.0, 5.0]

    def maps(_, image):
        return [
            torch.full((c, *(-(-n // s) for n, s in zip(image.shape, stride, strict=True))), value)
            for c, stride, value in zip(encoder.channels, encoder.strides, constant, strict=True)
        ]

    monkeypatch.setattr(pooling, "_maps", maps)
    found = pooling.pool(encoder, random_scan((70, 33, 130)), dense=2, window=(32, 32, 64))
    assert found.windows > 4
    for means, value in zip(found.means, constant, strict=True):
        np.testing.assert_allclose(means, value, rtol=1e-5)
    assert found.dense.shape == (encoder.channels[2], 9, 5, 17)
    np.testing.assert_allclose(found.dense, 3.0, rtol=1e-5)


def test_one_window_is_the_whole(encoder):
    prepared = random_scan((20, 20, 20))
    one = pooling.pool(encoder, prepared, dense=1, window=(64, 64, 64))
    whole = pooling.pool(encoder, prepared, dense=1, window="whole")
    np.testing.assert_array_equal(one.dense, whole.dense)
    with torch.inference_mode():
        maps = encoder(torch.from_numpy(prepared.image)[None, None])
    np.testing.assert_allclose(whole.dense, maps[1][0].numpy(), atol=1e-6)


def test_the_window_depends_on_scan_and_encoder_alone(encoder):
    assert pooling.window_for(encoder, (40, 50, 60)) == (64, 64, 64)
    assert pooling.window_for(encoder, (900, 900, 900)) == (96, 96, 96)
    assert pooling.window_for(encoder, (900, 900, 900), "whole") == (928, 928, 928)
    assert pooling.window_for(encoder, (900, 900, 900), (50, 64, 1)) == (64, 64, 32)


def test_slices_of_a_2d_encoder_are_a_batch(tmp_path):
    flat = nnssl.load_encoder(pretrained(tmp_path, replace(ENCODER, spatial_dims=2)))
    prepared = random_scan((18, 30, 30), labels=True)
    assert flat.strides[1] == (1, 4, 4)
    assert flat.batch(torch.from_numpy(prepared.image)).shape == (18, 1, 30, 30)
    found = pooling.pool(flat, prepared, dense=1)
    with torch.inference_mode():
        maps = flat(torch.from_numpy(prepared.image)[:, None])
    np.testing.assert_allclose(found.dense, maps[1].movedim(0, 1).numpy(), atol=1e-5)


# --- where things lie


def test_tokens_lie_where_their_voxels_are():
    """A token's place is the mean of its voxels' places, on a grid resampled edge to edge."""
    affine = nibabel.affines.from_matvec(np.diag([-2.0, 2.5, 3.0]), [5.0, -7.0, 11.0])
    old, new, stride = (8, 12, 16), (16, 6, 16), (2, 3, 4)
    moved = resampled_affine(affine, old, new, stride)
    for axis in range(3):
        z = 2 - axis
        token = np.zeros(3)
        token[axis] = 1
        voxels = (np.arange(stride[z]) + stride[z] + 0.5) * old[z] / new[z] - 0.5
        there = np.zeros(3)
        for other in range(3):
            k = 2 - other
            there[other] = (stride[k] / 2) * old[k] / new[k] - 0.5
        there[axis] = voxels.mean()
        np.testing.assert_allclose(
            nibabel.affines.apply_affine(moved, token), nibabel.affines.apply_affine(affine, there)
        )


def test_the_body_has_its_lungs():
    tissue = np.zeros((2, 7, 7), bool)
    tissue[:, 1:6, 1:6] = True
    tissue[:, 3, 3] = False  # air inside
    body = outlined(tissue)
    assert body[0, 3, 3]
    assert not body[0, 0, 0]


def test_nearest_is_edge_to_edge():
    volume = np.arange(4).reshape(1, 1, 4)
    assert resampled_nearest(volume, (1, 1, 8))[0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert resampled_nearest(volume, (1, 1, 2))[0, 0].tolist() == [1, 3]


def test_the_affine_is_that_of_the_file(encoder, tmp_path):
    affine = nibabel.affines.from_matvec(np.diag([-2.0, -2.0, 3.0]), [50.0, 60.0, -70.0])
    nibabel.save(nibabel.Nifti1Image(ct_array((18, 24, 28)).T, affine), tmp_path / "a.nii.gz")
    np.testing.assert_allclose(encoder.prepare(tmp_path / "a.nii.gz").affine, affine, atol=1e-4)
    # stored sagittally: x, y and z of the file are the patient's y, z and x
    permuted = affine[:, [1, 2, 0, 3]]
    array = ct_array((18, 24, 28)).T.transpose(1, 2, 0)
    nibabel.save(nibabel.Nifti1Image(array, permuted), tmp_path / "b.nii.gz")
    prepared = encoder.prepare(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(prepared.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(prepared.image, encoder.prepare(tmp_path / "a.nii.gz").image)
