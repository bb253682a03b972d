"""The probe: labelled cases on the plan's grid, the linear classifier, its place in a run, what it
refuses.
"""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import blosc2
import micro
import numpy as np
import pytest
import synthetic_scans
import torch
from torch import nn

from nnssl import checkpoint
from nnssl.data import labelled
from nnssl.data.plan import Plan
from nnssl.train import few_shot, linear, pictures, prepared_scans
from nnssl.train.log import LOG, Log
from nnssl.train.loop import Interrupted, train
from nnssl.train.pretrain_options import Options
from nnssl.train.probe import MOST_CROPS, Probe
from nnssl.train.run import BEST, FINAL, LATEST, Run

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = {"background": 0, "bone": 1, "left half": 2}
SHAPE = (20, 36, 40)


@pytest.fixture(autouse=True)
def short(request, monkeypatch):
    """The decoder's training is short, and shorter where no test asks what it has learnt."""
    learns = "decoder_learns" in request.fixturenames
    monkeypatch.setattr(few_shot, "STEPS", 30 if learns else 2)
    monkeypatch.setattr(few_shot, "SEEDS", (0,))


@pytest.fixture
def decoder_learns() -> None:
    """Marks a test that asks what the decoder has learnt."""


def synthetic_labels(hu: np.ndarray) -> np.ndarray:
    """Bone, and the left half of what else is body."""
    labels = np.zeros(hu.shape, np.uint8)
    labels[hu > -300] = 2
    labels[..., hu.shape[2] // 2 :] = 0
    labels[hu > 400] = 1
    return labels


def write_dataset(folder: Path, count: int = 4, labels: dict | None = None) -> Path:
    for seed in range(count):
        hu = synthetic_scans.ct_array(SHAPE, seed)
        synthetic_scans.write_volume(folder / "imagesTr" / f"case_{seed}_0000.nii.gz", hu)
        synthetic_scans.write_volume(
            folder / "labelsTr" / f"case_{seed}.nii.gz", synthetic_labels(hu)
        )
    content = {"channel_names": {"0": "CT"}, "labels": labels or LABELS, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[Path, Path, Plan]:
    """The raw dataset, the folder of the prepared probe, the plan. Shared: read, never write."""
    top = tmp_path_factory.mktemp("probe")
    raw = write_dataset(top / "Dataset007_Made")
    scans = [synthetic_scans.ct_array(SHAPE, seed) for seed in range(2)]
    plan = synthetic_scans.small_plan([Path("a"), Path("b")], scans)
    labelled.prepare_labelled(labelled.find_labelled(raw, 4), top / "stored", plan, 0)
    return raw, top / "stored", plan


class Telling(nn.Module):
    """Stands in for an encoder: of stride 2, 4, ...; its first map is the image itself and a ramp
    along x.
    """

    strides = (2, 4)

    def __init__(self, constant: bool = False) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        pool = nn.functional.avg_pool3d if image.ndim == 5 else nn.functional.avg_pool2d
        ramp = torch.linspace(-1, 1, image.shape[-1]).expand_as(image)
        body = (image > image.min() + 0.5).float()
        features = torch.cat([image, image.square(), ramp * body, body], dim=1)
        if self.constant:
            features = torch.ones_like(features)
        return [pool(features, 2), pool(features, 4)]


# -- the classifier --------------------------------------------------------------------


def test_ridge_is_least_squares_with_a_penalty():
    generator = np.random.default_rng(0)
    x, y = generator.normal(2, 3, (5000, 7)), generator.normal(size=(5000, 3))
    weights, penalty = generator.uniform(0.1, 2, 5000), 0.3
    coefficients, offset = linear.ridge(
        *(torch.from_numpy(part) for part in (x, y, weights)), penalty
    )
    fraction = weights / weights.sum()
    mean = fraction @ x
    std = np.sqrt(fraction @ (x - mean) ** 2)
    root = np.sqrt(fraction)[:, None]
    rows = np.concatenate([root * (x - mean) / std, np.sqrt(penalty) * np.eye(7)])
    wanted = np.linalg.lstsq(
        rows, np.concatenate([root * (y - fraction @ y), np.zeros((7, 3))]), rcond=None
    )[0]
    np.testing.assert_allclose(coefficients.numpy() * std[:, None], wanted, rtol=1e-8)
    np.testing.assert_allclose(
        mean @ coefficients.numpy() + offset.numpy(), fraction @ y, atol=1e-12
    )


def test_features_that_say_nothing_give_the_mean():
    x, y = torch.full((50, 4), 3.0), torch.randn(50, 2)
    coefficients, offset = linear.ridge(x, y, torch.ones(50), 0.1)
    assert float(coefficients.abs().max()) == 0
    torch.testing.assert_close(offset, y.double().mean(0))


@pytest.mark.parametrize("size", [(16, 24), (8, 12, 20)])
def test_everywhere_is_at_every_point(size):
    """Also where the last token hangs over the edge."""
    strides = (2, 8)
    maps = [torch.randn(1, 3, *(-(-n // s) for n in size)) for s in strides]
    fitted = torch.randn(6, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    points = torch.cartesian_prod(*(torch.arange(n) for n in size))
    scores = linear.at_points(maps, strides, points).double() @ fitted[0] + fitted[1]
    everywhere = linear.everywhere(maps, strides, fitted, size)[0].flatten(1).T
    torch.testing.assert_close(everywhere, scores.float(), rtol=1e-4, atol=1e-5)


def test_offsets_are_the_best_thresholds():
    torch.manual_seed(0)
    classes = torch.arange(400) % 2
    scores = torch.stack([torch.zeros(400), torch.randn(400) + 1.5 * classes - 3], dim=1).double()
    weights = torch.where(classes == 1, 1.0, 5.0).double()

    def dice(offset: float) -> float:
        predicted = scores[:, 1] + offset > 0
        hit = (weights * (predicted & (classes == 1))).sum()
        return float(2 * hit / ((weights * predicted).sum() + (weights * classes).sum()))

    best = linear.offsets(scores, classes, weights)
    assert best[0] == 0
    assert dice(float(best[1])) == pytest.approx(
        max(dice(o) for o in np.linspace(-3, 8, 2000)), abs=2e-3
    )


# -- the cases -------------------------------------------------------------------------


def test_images_and_labels_lie_on_the_same_grid(stored):
    _, folder, plan = stored
    note = json.loads((folder / labelled.NOTE).read_text())
    assert note["cases"] == [f"case_{seed}" for seed in range(4)]
    assert note["labels"] == {"bone": 1, "left half": 2}
    image, labels = (labelled_volume(folder, part) for part in ("", "_labels"))
    assert image.shape == labels.shape
    assert set(np.unique(labels)) == {0, 1, 2}
    bone = plan.hu.restore(image)[labels == 1]
    assert np.median(bone) > 300


def labelled_volume(folder: Path, part: str) -> np.ndarray:
    return blosc2.open(str(folder / f"case_0{part}.b2nd"))[0]


def test_preparing_again_repeats_nothing_and_a_changed_file_is_read_again(
    stored, tmp_path, monkeypatch
):
    _, _, plan = stored
    raw = write_dataset(tmp_path / "Dataset008_Again", count=2)
    done = []
    store = labelled.store_case
    monkeypatch.setattr(
        labelled, "store_case", lambda case, **how: done.append(case.id) or store(case, **how)
    )
    for touched in ((), (), ("case_1",)):
        for name in touched:
            hu = synthetic_scans.ct_array(SHAPE, 9)
            synthetic_scans.write_volume(
                raw / "labelsTr" / f"{name}.nii.gz", np.roll(synthetic_labels(hu), 3, axis=1)
            )
        labelled.prepare_labelled(labelled.find_labelled(raw, 4), tmp_path / "stored", plan, 0)
    assert done == ["case_0", "case_1", "case_1"]
    (tmp_path / "stored" / "case_0.b2nd").write_bytes(b"truncated")
    labelled.prepare_labelled(labelled.find_labelled(raw, 4), tmp_path / "stored", plan, 0)
    assert done[3:] == ["case_0"]


def test_cases_are_chosen_evenly(stored):
    raw = stored[0]
    assert [case.id for case in labelled.find_labelled(raw, 2).cases] == ["case_0", "case_3"]
    assert len(labelled.find_labelled(raw, 99).cases) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: (raw / "dataset.json").unlink(), "has no dataset.json"),
        (
            lambda raw: (raw / "labelsTr").rename(raw / "away"),
            r"0 files \*.nii.gz in labelsTr, 0 of them with an image",
        ),
        (
            lambda raw: (raw / "imagesTr").rename(raw / "away"),
            r"2 files \*.nii.gz in labelsTr, 0 of them with an image",
        ),
        (
            lambda raw: write_dataset(raw, 2, {"background": 0, "whole": [1, 2]}),
            "labels that are regions of several numbers are not supported",
        ),
    ],
)
def test_datasets_without_labels_are_refused(tmp_path, spoil, message):
    raw = write_dataset(tmp_path / "Dataset009_Bad", count=2)
    spoil(raw)
    with pytest.raises(ValueError, match=message):
        labelled.find_labelled(raw, 4)


def test_one_case_is_not_enough(stored):
    with pytest.raises(
        ValueError, match="at least 2 labelled cases, one to fit and one to test; got 1"
    ):
        labelled.find_labelled(stored[0], 1)


def test_labels_of_another_shape_are_refused_by_name(stored, tmp_path):
    raw = write_dataset(tmp_path / "Dataset010_Other", count=2)
    synthetic_scans.write_volume(
        raw / "labelsTr" / "case_1.nii.gz", np.ones((20, 30, 40), np.uint8)
    )
    with pytest.raises(
        ValueError, match=r"case_1 of Dataset010_Other .*\(20, 36, 40\), its labels \(20, 30, 40\)"
    ):
        labelled.prepare_labelled(labelled.find_labelled(raw, 2), tmp_path / "stored", stored[2], 0)


@pytest.mark.parametrize("name", ["labelsTr/case_1.nii.gz", "imagesTr/case_1_0000.nii.gz"])
def test_a_truncated_file_is_refused_by_name(stored, tmp_path, name):
    """ITK reads the rest as 0: background, which made the Dice wrong without a word."""
    _, _, plan = stored
    raw = write_dataset(tmp_path / "Dataset008_Made", 2)
    whole = (raw / name).read_bytes()
    (raw / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"case_1 of .* {name} cannot be read: .*ended before"):
        labelled.prepare_labelled(labelled.find_labelled(raw, 2), tmp_path / "out", plan, 0)


def test_labels_that_are_on_one_side_only_are_refused(stored, tmp_path):
    raw = write_dataset(tmp_path / "Dataset011_Empty", count=2)
    synthetic_scans.write_volume(raw / "labelsTr" / "case_1.nii.gz", np.zeros(SHAPE, np.uint8))
    labelled.prepare_labelled(labelled.find_labelled(raw, 2), tmp_path / "stored", stored[2], 0)
    with pytest.raises(
        ValueError,
        match=r"no label .* both in the cases it is fitted on, \['case_0'\], and .* more cases",
    ):
        Probe(tmp_path / "stored", (16, 16, 16), 1)


# -- what it says ----------------------------------------------------------------------


@pytest.mark.parametrize("crop", [(16, 32, 32), (32, 32)])
def test_features_that_tell_beat_constant_ones(stored, crop, decoder_learns):
    probe = Probe(stored[1], crop, every=1)
    assert 0 < len(probe.fitted_on) <= 2 * MOST_CROPS[len(crop)]
    assert {c.case for c in probe.fitted_on} == {"case_0", "case_2"}
    assert {c.case for c in probe.tested_on} == {"case_1", "case_3"}
    good, bad = (probe.evaluate(Telling(constant), micro.CPU) for constant in (False, True))
    assert set(good) == {"probe_bone", "probe_left half", "probe_dice", "probe_decoder"}
    assert good["probe_dice"] == pytest.approx((good["probe_bone"] + good["probe_left half"]) / 2)
    assert good["probe_bone"] > 0.6
    assert good["probe_left half"] > 0.6
    assert bad["probe_dice"] < 0.4
    assert good["probe_decoder"] > 0.6 > 0.4 > bad["probe_decoder"]
    assert good == probe.evaluate(Telling(), micro.CPU), "asked twice, it says the same"


def test_crops_larger_than_the_scan(stored):
    probe = Probe(stored[1], (64, 64, 64), every=1)
    assert len(probe.fitted_on) == 2
    assert 0.3 < probe.evaluate(Telling(), micro.CPU)["probe_dice"] <= 1


def test_voxels_to_ignore_count_neither_way(stored, tmp_path):
    folder = tmp_path / "stored"
    folder.mkdir()
    for path in stored[1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    note = json.loads((folder / labelled.NOTE).read_text())
    (folder / labelled.NOTE).write_text(json.dumps({**note, "labels": {"bone": 1}, "ignore": 2}))
    probe = Probe(folder, (16, 32, 32), every=1)
    assert probe.names == ["background", "bone"]
    values = probe._labels(probe.fitted_on[0])
    assert (values == -1).any()
    assert set(probe.evaluate(Telling(), micro.CPU)) == {
        "probe_bone",
        "probe_dice",
        "probe_decoder",
    }


# -- in a run --------------------------------------------------------------------------


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(Log, "draw", lambda self: None)


def probed_run(folder: Path, stored, every: int = 2, **options) -> Run:
    run = micro.run(folder, settings={"drop_path": 0.3}, **options)
    run.probe = Probe(stored[1], micro.CROP, every)
    return run


def rows(folder: Path) -> list[dict]:
    timings = ("samples_per_second", "data_wait")
    lines = (folder / LOG).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timings} for line in lines]


def same(first: dict, second: dict) -> bool:
    return all(
        torch.equal(v, second[k]) if torch.is_tensor(v) else v == second[k]
        for k, v in first.items()
    )


def test_a_probe_changes_nothing_of_a_run(tmp_path, stored, quiet):
    plain = micro.run(tmp_path / "plain", settings={"drop_path": 0.3})
    probed = probed_run(tmp_path / "probed", stored)
    for run in (plain, probed):
        train(run, lambda _: None)
    assert same(plain.method.state_dict(), probed.method.state_dict())
    assert probed.method.training
    assert not probed.method.teacher.training
    probed_rows = rows(tmp_path / "probed")
    assert ["probe_dice" in row for row in probed_rows] == [False, True] * 3
    without_probe = [
        {k: v for k, v in row.items() if not k.startswith("probe_")} for row in probed_rows
    ]
    assert without_probe == rows(tmp_path / "plain")


def test_a_stopped_run_with_a_probe_goes_on_exactly(tmp_path, stored, quiet):
    whole = probed_run(tmp_path / "whole", stored)
    train(whole, lambda _: None)
    first = probed_run(tmp_path / "parts", stored, save_every=3)
    requested = first.update

    def stop_at_three():
        result = requested()
        if first.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    first.update = stop_at_three
    with pytest.raises(Interrupted):
        train(first, lambda _: None)
    second = probed_run(tmp_path / "parts", stored)
    second.resume()
    assert second.probed == first.probed != {}
    train(second, lambda _: None)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert whole.probed == second.probed
    for name in (BEST, FINAL):
        ours, theirs = (checkpoint.read(tmp_path / part / name) for part in ("whole", "parts"))
        assert same(ours["network_weights"], theirs["network_weights"])
        assert ours["header"]["probe"] == theirs["header"]["probe"]


def test_the_best_encoder_is_kept(tmp_path, stored, quiet):
    run = probed_run(tmp_path, stored)
    scores = iter([0.2, 0.5, 0.3])
    states = []

    def ask(encoder, device, bf16):
        states.append({k: v.clone() for k, v in encoder.state_dict().items()})
        assert not encoder.training
        return {"probe_bone": (dice := next(scores)), "probe_dice": dice}

    run.probe.evaluate = ask
    train(run, lambda _: None)
    best = checkpoint.load(tmp_path / BEST)
    assert best.header["step"] == 4
    assert best.header["metrics"]["probe_dice"] == 0.5
    assert same(states[1], {k.removeprefix("encoder."): v for k, v in best.weights.items()})
    assert checkpoint.read(tmp_path / LATEST)["training_state"]["probe"]["best"] == 0.5
    last = checkpoint.load(tmp_path / FINAL)
    assert last.header["probe"]["probe_dice"] == 0.3
    assert last.header["probe"]["cases"] == len(run.probe.cases)
    assert run.probe.cases[0] not in str(last.header)
    text = checkpoint.describe(last)
    assert "probe" in text
    assert "bone 0.3, dice 0.3 (mean); best 0.5 at step 4" in text
    assert "Dataset007_Made at step 6" in text


@pytest.mark.parametrize("other", [{"cases": ["others"]}, {"dataset": "Dataset008_Other"}], ids=str)
def test_the_best_of_other_cases_does_not_count(tmp_path, stored, quiet, other):
    """Cases of one id may be of different datasets."""
    run = probed_run(tmp_path, stored)
    own = {"dataset": run.probe.dataset, "cases": run.probe.cases}
    run.probed = {**own, **other, "best": 0.99, "best_step": 1}
    train(run, lambda _: None)
    assert run.probed["best"] < 0.99
    assert (tmp_path / BEST).is_file()


def test_a_row_is_written_when_the_probe_is_asked(tmp_path, stored, quiet):
    train(probed_run(tmp_path, stored, every=4, log_every=3), lambda _: None)
    assert [row["step"] for row in rows(tmp_path)] == [3, 4, 6]
    assert [row["step"] for row in rows(tmp_path) if "probe_dice" in row] == [4, 6]
    assert all(math.isfinite(value) for row in rows(tmp_path) for value in row.values())


def test_the_picture_has_the_probes_panel(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, _: drawn.append(figure))
    records = [
        {"step": 1, "total": 2.0},
        {"step": 2, "total": 1.0, "probe_bone": 0.5, "probe_dice": 0.5},
        {"step": 3, "total": 1},
    ]
    pictures.progress(records, tmp_path / "progress.png", "smit")
    panel = next(axes for axes in drawn[0].axes if axes.get_title().startswith("probe"))
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [
        "probe_bone",
        "probe_dice",
    ]
    # what the method does not have is no empty panel
    assert all(axes.lines for axes in drawn[0].axes)


@pytest.mark.parametrize(
    ("channel", "options", "refused"),
    [("CT", {}, False), ("MRI", {}, True), ("MRI", {"no_hu": True}, False)],
)
def test_a_probe_has_the_scans_modality(nnunet_env, channel, options, refused):
    """MRI read as HU would be scored, and mean nothing."""
    raw = write_dataset(nnunet_env["nnUNet_raw"] / "Dataset007_Made")
    content = json.loads((raw / "dataset.json").read_text())
    content["channel_names"]["0"] = channel
    (raw / "dataset.json").write_text(json.dumps(content))
    given = Options(method="smit", sources=(raw,), probe="7", **options)
    if not refused:
        assert prepared_scans._labelled(given, raw, not given.no_hu).dataset == raw.name
        return
    with pytest.raises(ValueError, match=r"channel 0 of Dataset007_Made is MRI.*scans are CT"):
        prepared_scans.prepare_scans(given, "made", raw, print)


def test_a_collection_that_is_named_alone_knows_its_modality(nnunet_env, tmp_path, stored):
    raw = write_dataset(nnunet_env["nnUNet_raw"] / "Dataset007_Made")
    content = (raw / "dataset.json").read_text().replace('"CT"', '"MRI"')
    (raw / "dataset.json").write_text(content)
    given = Options(method="smit", name="made", probe="7")
    replace(stored[2], hu=None).save(tmp_path / "plan.json")
    assert prepared_scans._labelled(given, tmp_path, True).dataset == raw.name
    stored[2].save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="the scans are CT"):
        prepared_scans._labelled(given, tmp_path, True)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_real_encoder_is_asked(stored, dims):
    method = micro.method("simmim", spatial_dims=dims).eval()
    scores = Probe(stored[1], (32, 32, 32)[:dims], every=1).evaluate(method.encoder, micro.CPU)
    assert all(0 <= value <= 1 for value in scores.values())
