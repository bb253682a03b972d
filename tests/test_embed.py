"""Features of scans: prepared as for the pretraining, pooled exactly, resumed, told."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from synthetic_checkpoints import pretrained
from synthetic_scans import ct_array, write_series, write_volume

import nnssl
from nnssl import cli, files
from nnssl.data.crops import OPEN
from nnssl.data.plan import Plan, case_of, resampled_shape
from nnssl.data.preprocess import preprocess_case
from nnssl.data.refusals import UnusableScanError
from nnssl.data.scans import Found
from nnssl.data.survey import inspect_scan
from nnssl.embed import neighbours, pooling, table, work
from nnssl.embed.work import EmbedOptions

SPACING = (3.0, 2.0, 2.0)  # of made checkpoints


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def encoder(weights):
    return nnssl.load_encoder(weights)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two folders of small scans, and a file that is none."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(6):
        group = ("chest", "head")[number % 2]
        array = ct_array((18, 24, 28), number)
        array = np.where(array > -500, array + (60 if group == "head" else 0), array)
        write_volume(folder / group / f"s{number}.nii.gz", array, (3.0, 2.0, 2.5))
    (folder / "head" / "broken.nii.gz").write_bytes(b"no scan")
    return folder


# --- the module


def test_the_encoder_is_a_plain_module(encoder, weights):
    assert isinstance(encoder, torch.nn.Module)
    assert not encoder.training
    assert set(encoder.state_dict()) == {
        name for name in torch.load(weights)["network_weights"] if "mask_token" not in name
    }
    assert encoder.strides[-1] == (32, 32, 32)
    with torch.inference_mode():
        maps = encoder(torch.zeros(1, 1, 16, 16, 16))
    assert [m.shape[1] for m in maps] == list(encoder.channels)


def test_scans_are_prepared_as_for_the_pretraining(encoder, scans, tmp_path):
    path = scans / "chest" / "s0.nii.gz"
    line = inspect_scan(Found(str(path)))
    plan = Plan("made", SPACING, encoder.hu, (16, 16, 16), (case_of(line),))
    preprocess_case(plan.cases[0], plan, plan.fingerprint, tmp_path)
    import blosc2

    stored = blosc2.open(str(tmp_path / f"{plan.cases[0].id}.b2nd"), **OPEN)[:]
    image = encoder.preprocess(path)
    assert image.shape == (1, *stored.shape)
    # the store may be of half precision
    np.testing.assert_array_equal(image[0].numpy().astype(stored.dtype), stored)
    voxels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    assert torch.equal(encoder.preprocess(voxels, (3.0, 2.0, 2.5)), image)


def test_a_dicom_folder_is_a_scan(encoder, tmp_path):
    array = ct_array()
    write_series(tmp_path / "s", array, [(5.0, -7.0, 10 + 3.0 * z) for z in range(len(array))])
    prepared = encoder.prepare(tmp_path / "s")
    assert prepared.image.shape == resampled_shape(array.shape, (3.0, 1.5, 1.5), SPACING)
    corner = nibabel.affines.apply_affine(prepared.affine, (-0.5, -0.5, -0.5))
    np.testing.assert_allclose(corner, (-5 + 0.75, 7 + 0.75, 10 - 1.5))  # half a voxel before


@pytest.mark.parametrize(
    ("scan", "spacing", "message"),
    [
        (np.zeros((4, 4, 4)), None, r"with spacing=\(z, y, x\) in mm"),
        ("scan.nii.gz", (1, 1, 1), "a file has its own spacing"),
    ],
)
def test_wrong_calls_are_explained(encoder, scan, spacing, message):
    with pytest.raises(ValueError, match=message):
        encoder.preprocess(scan, spacing)


def test_what_is_no_scan_is_refused_with_its_name(encoder, scans, tmp_path):
    with pytest.raises(ValueError, match=r"broken.nii.gz .*"):
        encoder.preprocess(scans / "head" / "broken.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"none\.nii\.gz does not exist"):
        encoder.preprocess(tmp_path / "none.nii.gz")


def test_an_unknown_spacing_has_to_be_said(tmp_path):
    content = torch.load(pretrained(tmp_path), weights_only=True)
    content["header"]["plan"]["spacing"] = None
    nnssl_path = tmp_path / "unknown.pth"
    torch.save(content, nnssl_path)
    with pytest.raises(ValueError, match="does not record the spacing"):
        nnssl.load_encoder(nnssl_path)
    assert nnssl.load_encoder(nnssl_path, (2, 2, 2)).spacing == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="leave the spacing out"):
        nnssl.load_encoder(tmp_path / "checkpoint_final.pth", (2, 2, 2))
    for wrong in ((-3, 1, 1), (math.nan, 1, 1)):
        with pytest.raises(ValueError, match=r"spacing must be .* from 0\.05 to 15 mm"):
            nnssl.load_encoder(nnssl_path, wrong)


# --- the command


@pytest.fixture(scope="module")
def embedded(weights, scans, tmp_path_factory):
    """The folder of a whole run with maps and pictures, and what it said."""
    folder, said = tmp_path_factory.mktemp("out") / "features", []
    options = EmbedOptions(
        [scans], folder, weights, dense=8, nifti=True, num_processes=0, picture="thumbnails",
        device="cpu",
    )  # fmt: skip
    work.embed(options, said.append)
    return folder, said, options


def test_the_table_has_a_row_a_scan(embedded, encoder, scans):
    folder, said, _ = embedded
    with np.load(folder / "features.npz", allow_pickle=False) as found:
        ids = found["id"].tolist()
        assert ids == [f"chest/s{n}" for n in (0, 2, 4)] + [f"head/s{n}" for n in (1, 3, 5)]
        assert found["group"].tolist() == ["chest"] * 3 + ["head"] * 3
        one = encoder.embed(scans / "head" / "s3.nii.gz")
        for number in range(5):
            np.testing.assert_allclose(found[f"stage{number}"][4], one[number], atol=1e-5)
    with (folder / "features.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ids
    assert rows[4]["shape"] == "18x24x28"
    assert float(rows[4]["stage2_3"]) == pytest.approx(float(one[2][3]), abs=1e-4)
    assert said[0].startswith("6 scans embedded, 1 left out (")


def test_what_is_no_scan_is_reported_as_by_the_survey(embedded):
    report = json.loads((embedded[0] / "report.json").read_text())
    (left_out,) = [line for line in report["scans"] if not line["kept"]]
    assert left_out["path"].endswith("broken.nii.gz")
    assert left_out["reason"]


def test_maps_have_their_place(embedded, encoder, scans):
    maps = sorted((embedded[0] / "dense").iterdir())
    assert len(maps) == 6
    image = nibabel.load(maps[0])
    prepared = encoder.prepare(scans / "chest" / "s0.nii.gz")
    with torch.inference_mode():
        wanted = encoder(torch.from_numpy(prepared.image)[None, None])[2][0].numpy()
    got = np.asarray(image.dataobj)[:, :, :, 0].transpose(3, 2, 1, 0)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    size = np.abs(nibabel.affines.voxel_sizes(image.affine))
    np.testing.assert_allclose(size, (16.0, 16.0, 24.0), rtol=0.1)  # 8 voxels of 2, 2 and 3 mm


def test_pictures_are_drawn(embedded):
    for name in ("neighbours.png", "projection.png"):
        assert (embedded[0] / name).read_bytes().startswith(b"\x89PNG")
    assert any("nearest neighbour is in their own folder" in line for line in embedded[1])


def test_the_same_line_goes_on(embedded, monkeypatch):
    folder, _, options = embedded
    lost = sorted((folder / "scans").iterdir())
    lost[0].unlink()
    lost[1].write_bytes(lost[1].read_bytes()[:100])  # cut by a crash of the disk
    before = {path.name: path.stat().st_mtime_ns for path in lost[2:]}
    said, pooled, whole = [], [], pooling.pool
    monkeypatch.setattr(pooling, "pool", lambda *a: pooled.append(1) or whole(*a))
    work.embed(replace(options, picture=None), said.append)
    assert said[0] == "4 of 6 scans were already done"
    assert len(pooled) == 2
    assert {path.name: path.stat().st_mtime_ns for path in lost[2:]} == before


def test_a_scan_that_was_replaced_is_embedded_again(weights, tmp_path):
    """Mirrored, it has the name, shape, spacing and percentiles of the one before."""
    array = ct_array((18, 24, 28), 0)
    write_volume(tmp_path / "scans" / "s.nii.gz", array, SPACING)
    options = EmbedOptions(
        [tmp_path / "scans"], tmp_path / "out", weights, num_processes=0, device="cpu"
    )
    found = []
    for voxels in (array, array[:, ::-1]):
        write_volume(tmp_path / "scans" / "s.nii.gz", voxels, SPACING)
        work.embed(options, print)
        with np.load(tmp_path / "out" / "features.npz") as features:
            found.append(features["stage3"])
    assert not np.allclose(found[0], found[1])


def test_weights_that_were_not_named_are_said(weights, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("nnssl_checkpoint", str(weights))
    said: list[str] = []
    work.encoder_of(EmbedOptions([scans], tmp_path, device="cpu"), said.append)
    assert said == [f"Weights: {weights}, by the variable nnssl_checkpoint"]
    work.encoder_of(EmbedOptions([scans], tmp_path, weights, device="cpu"), said.append)
    assert len(said) == 1


def test_a_call_in_which_every_scan_fails_is_an_error(weights, scans, tmp_path, monkeypatch):
    def fail(task, **_):
        raise UnusableScanError(f"{task.row.id} has no grid")

    options = EmbedOptions([scans], tmp_path, weights, num_processes=0, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(work, "prepared", fail)
        with pytest.raises(ValueError, match=r"none of 6 scans could .* chest/s0: .*grid"):
            work.embed(options, print)
    assert len(files.read_json(tmp_path / work.FAILED)) == 6
    work.embed(options, print)
    assert not (tmp_path / work.FAILED).exists()


def test_all_failures_are_written_and_some_printed(tmp_path, weights, scans, monkeypatch):
    whole = work.prepared

    def fail_but_one(task, **options):
        if not task.row.id.endswith("s0"):
            raise UnusableScanError("has no grid")
        return whole(task, **options)

    monkeypatch.setattr(work, "prepared", fail_but_one)
    monkeypatch.setattr(work, "PRINTED", 2)
    said: list[str] = []
    options = EmbedOptions([scans], tmp_path, weights, num_processes=0, device="cpu")
    work.embed(options, said.append)
    assert sum("has no grid" in line for line in said) == 2
    assert f"  and 3 more: {tmp_path / work.FAILED}" in said
    assert len(files.read_json(tmp_path / work.FAILED)) == 5


def test_a_folder_without_scans_leaves_no_settings(weights, tmp_path):
    (tmp_path / "scans").mkdir()
    options = EmbedOptions([tmp_path / "scans"], tmp_path / "out", weights, device="cpu")
    with pytest.raises(ValueError, match="no scans in"):
        work.embed(options, print)
    assert not (tmp_path / "out" / "embed.json").exists()


def test_other_settings_are_not_mixed(embedded):
    with pytest.raises(ValueError, match=r"dense: was 8, now 16.*choose another -o"):
        work.embed(replace(embedded[2], dense=16), print)


def test_a_stop_exits_with_75_and_leaves_whole_files(weights, scans, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise work.signals.Interrupted("stopped; the same command continues from there")

    monkeypatch.setattr(pooling, "pool", stop)
    line = ["nnssl_embed", "-c", weights, "-i", scans, "-o", tmp_path / "out", "-np", 0]
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    assert cli.embed() == 75
    assert "the same command continues" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob(f"{files.TEMPORARY}*"))


def test_means_by_label(weights, encoder, scans, tmp_path):
    """Masks of nnU-Net's names; one scan has none, one of another size."""
    labels = np.zeros((18, 24, 28), np.uint8)
    labels[4:12, 6:18, 8:20] = 3
    for name in ("s0", "s2"):
        write_volume(tmp_path / "images" / f"{name}_0000.nii.gz", ct_array((18, 24, 28)), SPACING)
        write_volume(tmp_path / "masks" / f"{name}.nii.gz", labels, SPACING)
    write_volume(tmp_path / "images" / "s4_0000.nii.gz", ct_array((18, 24, 28)), SPACING)
    write_volume(tmp_path / "images" / "s6_0000.nii.gz", ct_array((18, 24, 30)), SPACING)
    write_volume(tmp_path / "masks" / "s6.nii.gz", labels, SPACING)
    said = []
    out = tmp_path / "out"
    work.embed(
        EmbedOptions(
            [tmp_path / "images"], out, weights, tmp_path / "masks", num_processes=0, device="cpu"
        ),
        said.append,
    )
    assert said[0].startswith("3 scans embedded, 0 left out")
    assert any("its labels" in line and "have shape (18, 24, 28)" in line for line in said)
    assert any("1 without a matching mask, such as s4_0000" in line for line in said)
    with np.load(out / "labels.npz", allow_pickle=False) as found:
        assert found["id"].tolist() == ["s0_0000", "s2_0000"]
        assert found["label"].tolist() == [3, 3]
        assert found["voxels"].tolist() == [(labels == 3).sum()] * 2
        prepared = encoder.prepare(tmp_path / "images" / "s0_0000.nii.gz")
        wanted = pooling.pool(encoder, replace(prepared, labels=labels)).means[1][1]
        np.testing.assert_allclose(found["stage1"][0], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense": 5}, "have strides of 2, 4, 8, 16, 32 voxels"),
        ({"masks": "none"}, "mask folder none does not exist"),
        ({"sources": ["none"]}, "folder none does not exist"),
        ({"checkpoint": "none.pth"}, "no file at none.pth"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(embedded, tmp_path, change, message):
    from pathlib import Path

    given = {k: Path(v) if k == "masks" else v for k, v in change.items()}
    options = replace(embedded[2], output=tmp_path / "out", **given)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        work.embed(options, print)
    assert not (tmp_path / "out").exists()


def test_ids_are_unique(tmp_path):
    """The same name in two folders that are given; a folder of one level has no groups."""
    from nnssl.data.survey import ScanReport

    lines = [ScanReport(str(tmp_path / top / "s.nii.gz"), "", True) for top in ("a", "b")]
    both = work._scan_rows(lines, [tmp_path / "a", tmp_path / "b"])
    assert len({row.id for row in both}) == 2
    assert [row.group for row in both] == ["a", "b"]
    assert [row.id for row in work._scan_rows(lines, [tmp_path])] == ["a/s", "b/s"]


# --- pictures


def test_neighbours_of_the_same_group_are_counted():
    features = np.array([[0.0, 1], [0.1, 1], [1, 0], [1, 0.1], [0.9, 0]], np.float32)
    assert neighbours.same_group(features, ["a", "a", "b", "b", "b"]) == 1.0
    assert neighbours.same_group(features, ["a", "b", "a", "b", "a"]) < 1.0
    assert neighbours.nearest(features, 10).shape == (5, 4)
    one = table.FeatureTable(["a"], ["a"], [features[:1]] * 5, [])
    with pytest.raises(ValueError, match="pictures need at least 5 scans, found 1"):
        neighbours.draw_pictures(one, None, False, print)


def test_folders_of_one_scan_choose_no_stage(tmp_path, monkeypatch):
    """And more folders than colours have no legend, which would cover the points."""
    names, random = [f"p{number}" for number in range(24)], np.random.default_rng(0)
    stages = [random.standard_normal((24, width)).astype(np.float32) for width in (3, 4, 5, 6, 7)]
    many = table.FeatureTable(names, names, stages, [])
    said, figures = [], []
    monkeypatch.setattr(neighbours, "_save", lambda figure, path: figures.append(figure))
    neighbours.draw_pictures(many, tmp_path, False, said.append)
    assert [line.rpartition(": ")[2] for line in said] == ["by stage3"]
    assert [axes.get_legend() for axes in figures[1].axes] == [None, None]
    few = table.FeatureTable(names, ["a", "b"] * 12, stages, [])
    neighbours.draw_pictures(few, tmp_path, False, said.append)
    assert said[1].startswith("fraction of scans whose nearest neighbour is in their own folder")
    assert figures[3].axes[1].get_legend() is not None


def test_queries_take_every_group_in_turn():
    groups = ["a"] * 10 + ["b"] * 2
    features = table.FeatureTable([f"{n:02}" for n in range(12)], groups, [], [])
    queries = neighbours._queries(features, ["a", "b"])
    assert {groups[q] for q in queries[:2]} == {"a", "b"}
    assert len(set(queries)) == len(queries)


def test_a_thumbnail_is_upright_and_square():
    image = np.zeros((10, 4, 20), np.float32)
    image[9] = 1.0  # the head
    small = table.thumbnail(image, None, (4.0, 1.0, 1.0), np.eye(4))
    assert small.shape == (72, 36)
    assert small[0].mean() > small[-1].mean()
