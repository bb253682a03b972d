"""Parcels: scans registered to one another, clusters of tissue and position, and the method that
segments them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import micro
import numpy as np
import pytest
import SimpleITK
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
    DownsampleSegForDSTransform,
)
from torch.nn import functional

from nnssl import phantoms
from nnssl.data import atlas, parcel_failures, parcel_maps, survey_index
from nnssl.data.crops import PARCELS, Crops
from nnssl.data.orientation import flipped_axes
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.data.preprocess import forget_damaged
from nnssl.data.refusals import PassingError
from nnssl.files import NoRoomError, read_json, write_json
from nnssl.network.reconstruction import at_size
from nnssl.train import pretrain
from nnssl.train.log import Log
from nnssl.train.pretrain import Options

SPACING = (5.0, 6.0, 6.0)
UNMOVED = atlas.Affine(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0,) * 3)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> tuple[Path, object, list[str]]:
    """A folder of preprocessed phantoms with eight parcels, their plan, and the scans that have
    parcels.
    """
    raw, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    phantoms.write_folder(raw, seeds=range(3), shape=(24, 36, 40))
    plan = prepare(PrepareRequest("made", folder, [raw], spacing=SPACING, num_processes=0))
    return folder, plan, parcel_maps.make(folder, plan, classes=8, num_processes=0, print_fn=print)


def test_an_affine_map_is_found_again():
    """Against the truth: the phantom moved by known mm and stretched by known factors."""
    from scipy.ndimage import affine_transform

    voxels = phantoms.phantom(0, (48, 60, 64), SPACING).hu.astype(np.float32)
    # voxels of the template, (z, y, x)
    scale, shift = np.array([1.0, 0.92, 1.08]), np.array([2.0, -1.5, 1.0])
    moved = affine_transform(voxels, scale, shift, order=1, mode="constant", cval=-1000.0)
    found = atlas.register(voxels, moved, SPACING)
    body = np.argwhere(moved > -500)[::500]
    truth = (body * scale + shift) * SPACING
    positions = found.template_positions(moved.shape, SPACING)[tuple(body.T)][:, ::-1]
    assert np.linalg.norm(positions - truth, axis=1).mean() < 8.0


def test_a_scan_that_shows_nothing_is_refused():
    with pytest.raises(atlas.RegistrationError):
        atlas.check_spread(np.zeros((8, 8, 8), np.float32))


def test_the_template_is_large_and_typical():
    shapes = [(10, 10, 10), (20, 20, 20), (21, 21, 21), (22, 22, 22), (90, 90, 90)]
    assert atlas.template_of(shapes) == 3


def test_nearest_is_the_nearest():
    rng = np.random.default_rng(0)
    rows, centres = (
        rng.normal(size=(100, 5)).astype(np.float32),
        rng.normal(size=(7, 5)).astype(np.float32),
    )
    naive = [int(np.argmin([np.linalg.norm(row - centre) for centre in centres])) for row in rows]
    assert parcel_maps.nearest_centre(rows, centres).tolist() == naive


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Path, object]:
    """Preprocessed phantoms; the last is the one before it with all axes stored the other way."""
    raw, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    last = phantoms.write_folder(raw, seeds=range(3), shape=(24, 36, 40))[-1]
    turned = SimpleITK.DICOMOrient(SimpleITK.ReadImage(last), "RAI")
    SimpleITK.WriteImage(turned, raw / "turned.nii.gz")
    return folder, prepare(PrepareRequest("mixed", folder, [raw], spacing=SPACING, num_processes=0))


def test_parcels_do_not_depend_on_the_direction_of_stored_axes(mixed):
    """No registration finds a flip: 4 % of the voxels had the same class."""
    folder, plan = mixed
    cases = parcel_maps.make(folder, plan, 8, 0, print)
    assert len(cases) == 4
    labels = {case: atlas.load_volume(folder / f"{case}{PARCELS}") for case in cases}
    turned = next(labels.pop(case) for case in cases if case.startswith("turned"))[::-1, ::-1, ::-1]
    original = labels[max(labels)]
    body = original > 0
    assert (turned == original)[body].mean() > 0.9


@pytest.mark.parametrize(
    ("name", "other", "flips"),
    [
        ("LPS", "LPS", (False, False, False)),
        ("RAS", "LPI", (True, True, True)),
        ("ASR", "LPS", (False, False, False)),  # permuted axes are brought to LPS
        ("ASR", "RPS", (True, False, False)),
        ("", "RAS", (False, False, False)),
        ("L?S", "RAS", (False, False, False)),
    ],
)
def test_flipped_axes_are_those_of_the_arrays(name, other, flips):
    assert flipped_axes(name, other) == flips == flipped_axes(other, name)


def test_orientations_are_read_from_one_file_and_what_it_lacks_from_the_scans_lines(mixed):
    folder, plan = mixed
    index = folder / survey_index.INDEX
    kept, found = index.read_text(), parcel_maps._several_orientations
    cases = {case.id for case in plan.cases}
    whole = found(folder, plan, cases)
    assert sorted(whole[parcel_maps.ORIENTATIONS].values()) == ["LPS", "LPS", "LPS", "RAI"]
    try:
        for text in ("", "".join(kept.splitlines(keepends=True)[:3]), kept[:-20]):
            index.write_text(text)
            assert found(folder, plan, cases) == whole
        index.write_text(kept)
        (folder / "survey").rename(folder / "away")
        assert found(folder, plan, cases) == whole
    finally:
        index.write_text(kept)
        (folder / "away").rename(folder / "survey")


def test_parcels_made_before_orientations_counted_are_made_again_unless_a_run_has_them(mixed):
    folder, plan = mixed
    cases = parcel_maps.make(folder, plan, 8, 0, print)
    note = read_json(folder / parcel_maps.NOTE)
    assert len(set(note.pop(parcel_maps.ORIENTATIONS).values())) == 2
    write_json(folder / parcel_maps.NOTE, note)
    assert not parcel_maps.are_made(folder, plan, 8)
    assert parcel_maps.make(folder, plan, 8, 0, print, cases) == cases
    assert parcel_maps.ORIENTATIONS not in read_json(folder / parcel_maps.NOTE)


def test_body_has_parcels_and_air_has_none(collection):
    folder, plan, cases = collection
    assert cases
    for case in cases:
        labels = atlas.load_volume(folder / f"{case}{PARCELS}")
        hu = plan.hu.restore(atlas.load_volume(folder / f"{case}.b2nd"))
        assert labels.dtype == np.uint8
        assert ((labels > 0) == (hu > -500)).mean() > 0.999
        assert labels.max() <= 8
    assert len(np.unique(labels)) >= 6


def test_the_same_place_has_the_same_parcel_in_all_scans(collection):
    """Bone and soft tissue fall into different parcels, the same ones in each phantom."""
    folder, plan, cases = collection
    rows = []
    for case in cases:
        labels = atlas.load_volume(folder / f"{case}{PARCELS}")
        hu = plan.hu.restore(atlas.load_volume(folder / f"{case}.b2nd"))
        rows.append(
            [
                np.bincount(labels[hu > 300], minlength=9),
                np.bincount(labels[abs(hu - 50) < 30], minlength=9),
            ]
        )
    table = np.array(rows, dtype=float)
    table /= table.sum(axis=-1, keepdims=True)
    bone, soft = table[:, 0], table[:, 1]
    assert np.abs(bone - bone.mean(0)).sum(-1).max() < np.abs(bone.mean(0) - soft.mean(0)).sum()


def test_they_are_made_once_and_anew_for_another_number(collection):
    folder, plan, cases = collection
    before = (folder / f"{cases[0]}{PARCELS}").stat().st_mtime_ns
    assert parcel_maps.make(folder, plan, 8, 0, print) == cases
    assert (folder / f"{cases[0]}{PARCELS}").stat().st_mtime_ns == before
    (folder / f"{cases[0]}{PARCELS}").unlink()
    assert parcel_maps.make(folder, plan, 8, 0, print) == cases
    assert (folder / f"{cases[0]}{PARCELS}").is_file()
    assert read_json(folder / parcel_maps.NOTE)["classes"] == 8


def test_a_scan_that_a_check_removed_has_no_parcels(collection, tmp_path):
    """Without its raw scan it is not stored again: each training ended for want of its note."""
    folder, plan, ids = collection
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    damaged = kept / f"{ids[0]}.b2nd"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    assert forget_damaged(plan, kept, 0) == [ids[0]]
    assert not list(kept.glob(f"{ids[0]}*"))
    (kept / f"{ids[0]}.b2nd").touch()  # as an earlier version left it
    assert parcel_maps.preprocessed(kept, plan) == ids[1:]
    assert parcel_maps.make(kept, plan, 8, 0, print) == ids[1:]


def test_a_stop_half_way_leaves_no_parcels_that_count(collection, tmp_path, monkeypatch):
    """Some labels are of six classes then, the others still of eight."""
    folder, plan, cases = collection
    mixed, stored = shutil.copytree(folder, tmp_path / "mixed"), []
    store = parcel_maps.store

    def stopped(*args):
        if stored:
            raise KeyboardInterrupt
        stored.append(store(*args))

    monkeypatch.setattr(atlas, "register", lambda *_: UNMOVED)
    monkeypatch.setattr(parcel_maps, "store", stopped)
    with pytest.raises(KeyboardInterrupt):
        parcel_maps.make(mixed, plan, 6, 0, print)
    assert len(stored) == 1
    assert not any(parcel_maps.are_made(mixed, plan, classes) for classes in (6, 8))
    monkeypatch.setattr(parcel_maps, "store", store)
    assert parcel_maps.make(mixed, plan, 8, 0, print) == cases
    assert parcel_maps.are_made(mixed, plan, 8)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), r"out of memory.*-np 1"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (NoRoomError("the disk is full"), "^the disk is full$"),
    ],
)
@pytest.mark.parametrize("stage", ["tissue_and_position", "store"])
def test_a_failure_that_may_pass_is_an_error_and_is_not_noted(
    collection, tmp_path, monkeypatch, stage, error, words
):
    """A scan that could not be registered for want of memory had no parcels for ever."""
    folder, plan, cases = collection
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / parcel_maps.NOTE).unlink()

    def fail(*_):
        raise error

    monkeypatch.setattr(atlas, "register", lambda *_: UNMOVED)
    with monkeypatch.context() as patch:
        patch.setattr(parcel_maps, stage, fail)
        with pytest.raises((PassingError, NoRoomError), match=words):
            parcel_maps.make(copy, plan, 8, 0, print)
    assert not (copy / parcel_maps.NOTE).exists()
    assert not (copy / parcel_failures.FAILED).exists()
    assert parcel_maps.make(copy, plan, 8, 0, print) == cases


def test_a_registration_that_lacks_memory_is_not_one_that_fails(monkeypatch):
    """ITK says both by a RuntimeError."""
    voxels = phantoms.phantom(0, (24, 36, 40), SPACING).hu.astype(np.float32)

    def execute(*_) -> None:
        raise RuntimeError("ITK ERROR: Failed to allocate memory for image.")

    method = SimpleNamespace(SetInitialTransform=lambda *_, **__: None, Execute=execute)
    monkeypatch.setattr(atlas, "_registration_method", lambda: method)
    with pytest.raises(MemoryError, match="Failed to allocate"):
        atlas.register(voxels, voxels, SPACING)


@pytest.mark.parametrize("classes", [1, 251])
def test_impossible_numbers_of_classes_are_refused(collection, classes):
    folder, plan, _ = collection
    with pytest.raises(ValueError, match="classes must be from 2 to 250, got"):
        parcel_maps.make(folder, plan, classes, 0, print)


@pytest.mark.parametrize("shape", [(16, 16, 16), (16, 32)])
def test_crops_read_the_parcels_of_their_voxels(collection, shape):
    folder, plan, cases = collection
    crops = Crops(folder, plan, shape, cases=cases, parcels=True)
    sample = crops[0]
    labels = atlas.load_volume(folder / f"{cases[sample['scan']]}{PARCELS}")
    assert sample["parcels"].shape == shape
    assert sample["parcels"].dtype == torch.uint8
    air = sample["crop"][0] <= float(np.float16(plan.padding))
    assert not sample["parcels"][air].any()
    if len(shape) == 3:
        start = sample["start"].tolist()
        low = [max(0, s) for s in start]
        inner = tuple(slice(a - s, None) for a, s in zip(low, start, strict=True))
        part = labels[tuple(slice(a, s + n) for a, s, n in zip(low, start, shape, strict=True))]
        read = sample["parcels"][inner][tuple(slice(n) for n in part.shape)]
        assert np.array_equal(read.numpy(), part)


def test_the_loss_is_a_weighted_cross_entropy():
    method = micro.method("parcels", classes=3).eval()
    views = micro.views(method)
    out = method(views)
    outputs = method.decoder(method.student(views["image"]), views["image"])
    strides = [views["image"].shape[-1] // logits.shape[-1] for logits in outputs]
    assert strides == [1, 2, 4, 8]
    naive = [
        functional.cross_entropy(logits, views["parcels"][:, s // 2 :: s, s // 2 :: s, s // 2 :: s])
        for logits, s in zip(outputs, strides, strict=True)
    ]
    expected = sum(0.5**level * term for level, term in enumerate(naive)) / 1.875
    torch.testing.assert_close(out.losses["total"], expected)
    body = views["parcels"] > 0
    right = (outputs[0].argmax(dim=1) == views["parcels"])[body]
    torch.testing.assert_close(out.monitored["accuracy"], right.float().mean())


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_coarse_labels_are_those_that_nnunet_gives_the_same_outputs(stride):
    """They were those of the cells' first corners, up to 4 voxels away along each axis."""
    labels = torch.randint(0, 9, (2, 1, 16, 24, 32))
    theirs = DownsampleSegForDSTransform([(1 / stride,) * 3])
    wanted = torch.stack([theirs(segmentation=one)["segmentation"][0][0] for one in labels])
    assert torch.equal(at_size(labels[:, 0], wanted.shape[1:]), wanted)


def test_coarse_labels_of_an_odd_size_are_those_of_the_cells_centres():
    labels = torch.arange(5 * 28).view(1, 5, 28)
    assert torch.equal(
        at_size(labels, torch.Size([3, 4])), labels[:, [1, 3, 4]][..., [4, 12, 20, 27]]
    )
    assert torch.equal(at_size(labels, torch.Size([1, 28])), labels[:, 4:])


def test_the_checkpoint_holds_the_decoder(tmp_path):
    run = micro.run(tmp_path, "parcels", steps=1)
    content = run._pack({})
    assert content["header"]["decoder"]["name"] == "light"
    assert any(name.startswith("decoder.lifts.") for name in content["network_weights"])


@pytest.fixture
def trains(nnunet_env, tmp_path, monkeypatch):
    """A function that pretrains on three phantoms, as typed; what it said."""
    monkeypatch.setattr(Log, "draw", lambda self: None)
    monkeypatch.setattr(pretrain, "keep_freed_memory", lambda: False)
    phantoms.write_folder(tmp_path / "raw", seeds=range(3), shape=(24, 36, 40))

    def run(**options) -> str:
        said = []
        chosen = {
            "sources": (tmp_path / "raw",),
            "name": "made",
            "preset": "tiny",
            "crop": (32, 32),
            "batch_size": 2,
            "steps": 1,
            "workers": 0,
            "device": "cpu",
            "num_processes": 0,
            "spacing": SPACING,
            **options,
        }
        pretrain.pretrain(Options("parcels", **chosen), said.append)
        return "\n".join(said)

    return run


def test_a_run_goes_on_with_its_classes_and_its_parcels(trains, nnunet_env, tmp_path):
    """No --set is repeated, and scans that came since change nothing of what was made for it."""
    trains(settings=("classes=6",))
    folder = nnunet_env["nnUNet_preprocessed"] / "nnssl" / "made"
    note, identity = folder / parcel_maps.NOTE, parcel_maps.identity(folder)
    before = note.stat().st_mtime_ns
    phantoms.write_folder(tmp_path / "more", seeds=[7], shape=(24, 36, 40))
    sources = (tmp_path / "raw", tmp_path / "more")
    assert "continuing at step 1 of 2" in trains(resume=True, steps=2, sources=sources, update=True)
    assert (note.stat().st_mtime_ns, parcel_maps.identity(folder)) == (before, identity)
    with pytest.raises(ValueError, match="classes: was 6, now 5"):
        trains(resume=True, steps=3, settings=("classes=5",))
    assert note.stat().st_mtime_ns == before

    trains(settings=("classes=5",), output=tmp_path / "other")  # overwrites them, with four scans
    assert parcel_maps.identity(folder) != identity
    assert "continuing at step 2 of 3" in trains(resume=True, steps=3)
    assert parcel_maps.identity(folder) == identity  # the same again
    content = read_json(note)
    write_json(note, content | {"centres": content["centres"][::-1]})
    with pytest.raises(ValueError, match=r"parcels: was 6 classes of 3 scans \("):
        trains(resume=True, steps=4)
