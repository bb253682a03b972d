"""The pages of a pretraining and of a collection: what they say, and what they look like."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import shutil
import sys
from pathlib import Path

import browser
import micro
import numpy as np
import pytest
from PIL import Image
from synthetic_scans import ct_array, write_volume

from nnssl import checkpoint, cli, files
from nnssl.data.plan import Plan, case_id
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.report import cost, left_out, pretraining_page
from nnssl.report.collection import Collection
from nnssl.report.from_folder import write_page
from nnssl.report.thumbnails import BOX, Planes, bars, picture
from nnssl.train import pictures
from nnssl.train.loop import train

PATIENT = "Muster_Erika_1950"  # a folder's name that must not reach a page


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Three scans, one of them turned round, and three that are left out."""
    raw, folder = tmp_path_factory.mktemp("raw") / PATIENT, tmp_path_factory.mktemp("pre")
    for seed in range(3):
        write_volume(raw / f"scan_{seed}.nii.gz", ct_array(seed=seed))
    write_volume(raw / "shifted_1.nii.gz", ct_array(seed=4) + 1024)
    write_volume(raw / "shifted_2.nii.gz", ct_array(seed=5) + 1024)
    (raw / "cut.nii.gz").write_bytes((raw / "scan_0.nii.gz").read_bytes()[:2000])
    prepare(PrepareRequest("made", folder, [raw], num_processes=0, print_fn=lambda _: None))
    return folder


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "smit__micro"
    train(micro.run(folder, steps=6, save_every=2), print)
    return folder


def text_of(page: Path) -> str:
    """What is read on a page; pictures by what stands for them."""
    text = re.sub(r'src="data:[^"]*"', "", page.read_text(encoding="utf-8"))
    return re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)


def pngs(page: Path) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]*)"', page.read_text(encoding="utf-8"))
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_a_collections_page_shows_its_scans_and_why_others_are_left_out(collection):
    page = write_page(collection)
    assert page == collection / "report.html"
    text = text_of(page)
    assert "6 found, 3 kept" in text
    for case in Plan.load(collection / "plan.json").cases:
        assert f"three planes and histogram of {case.id}" in text
    assert text.count("is not in HU: ") >= 2
    assert "is truncated" in text or "cannot be read" in text
    shown = pngs(page)
    assert [image.shape for image in shown] == [(BOX, 4 * BOX)] * 5
    assert all(image[:, : 3 * BOX].std() > 20 for image in shown)


def test_no_path_of_a_scan_reaches_the_page(collection):
    assert PATIENT in (collection / "report.csv").read_text()
    page = write_page(collection)
    assert PATIENT not in page.read_text(encoding="utf-8")
    assert str(collection) not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "reason",
    [
        "cannot be read: File /data/Muster_Erika_1950/ct 1.nii.gz is no image",
        "cannot be read now: no such file (/elsewhere/Muster_Erika/a.dcm); the next run retries",
        "ct 1.nii.gz has no spacing",
        "the first: Muster_Erika-001.dcm is truncated",
    ],
)
def test_reasons_name_no_file(reason):
    line = {"path": "/data/Muster_Erika_1950/ct 1.nii.gz", "series": "", "reason": reason}
    shown = left_out.reason(line)
    assert "Muster" not in shown
    assert "ct 1" not in shown
    assert "…" in shown


@pytest.mark.parametrize(
    ("path", "reason", "shown"),
    [
        (
            "/old/Doe Jane/ct.nii.gz",
            "cannot be read now: Permission denied (/new/Roe, Mary (1950)/ct.nii.gz); the next run "
            "retries",
            "cannot be read now: Permission denied (…); the next run retries",
        ),
        (
            "/old/Doe Jane/CT",
            "cannot be read now: Permission denied (/old/Doe Jane/CT/Roe Mary 001); the next run "
            "retries",
            "cannot be read now: Permission denied (…); the next run retries",
        ),
        (
            "/old/Doe Jane/CT",
            'cannot be read: no image in "/old/Doe Jane/CT/Roe Mary 1": failed',
            'cannot be read: no image in "…": failed',
        ),
        ("/a/CT", "cannot be read: file /a/CT/Roe Mary 001", "cannot be read: file …"),
        ("/old/Roe Mary/CT", "has changed: Roe Mary", "has changed: …"),
        (
            "/a/b.mhd",
            "cannot be read: its data file 'Roe Mary.raw' does not exist",
            "cannot be read: its data file … does not exist",
        ),
    ],
)
def test_names_with_blanks_and_commas_are_cut_as_a_whole(path, reason, shown):
    assert left_out.reason({"path": path, "series": "", "reason": reason}) == shown


@pytest.mark.parametrize("damage", ["flipped", "half", "empty", "absent"])
def test_a_damaged_scan_has_no_picture_and_the_page_is_written(collection, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(collection, folder)
    case = Plan.load(folder / "plan.json").cases[0]
    path = folder / f"{case.id}.b2nd"
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes({"flipped": flipped, "half": whole[:middle], "empty": b""}[damage])
    (folder / f"{Plan.load(folder / 'plan.json').cases[1].id}.json").unlink()
    (folder / f"{Plan.load(folder / 'plan.json').cases[1].id}.failed.json").write_text("{")
    text = text_of(write_page(folder))
    assert "failed: its note cannot be read" in text
    if damage == "absent":
        assert "1 scans are not preprocessed yet" in text
    elif damage != "flipped":  # which may have hit another plane than those shown
        assert "no picture: what is stored is damaged" in text


def test_cases_that_could_not_be_preprocessed_are_told(collection, tmp_path):
    plan = Plan.load(collection / "plan.json")
    case = plan.cases[0]
    found = Collection(tmp_path, [], plan)
    assert found.state(case) == "not yet"
    files.write_json(tmp_path / f"{case.id}.failed.json", {"reason": f"{case.source} has changed"})
    assert found.state(case) == "failed: … has changed"


def test_words_of_a_reason_stay():
    text = "is a reformat, not the primary stack: image type DERIVED/SECONDARY"
    line = {"path": "/data/reformat", "series": "1.2.3", "reason": text}
    assert left_out.reason(line) == text


def test_of_each_kind_of_reason_alike_many_are_shown(collection):
    lines = [line for line in files.read_json(collection / "report.json")["scans"] if line["shape"]]
    shifted = [line for line in lines if not line["kept"]]
    other = {**shifted[0], "reason": "is constant: every voxel is 3", "path": shifted[0]["path"]}
    group = left_out.tiles([*shifted, other], collection, shown=2)
    assert [tile.text[:12] for tile in group.tiles] == ["is constant:", "is not in HU"]


def test_fewer_thumbnails_are_spread_over_the_collection(collection):
    text = text_of(write_page(collection, scans=2))
    first, _, last = (case.id for case in Plan.load(collection / "plan.json").cases)
    assert re.findall(r"histogram of (scan_\w+)", text) == [first, last]


def test_a_collection_without_a_plan_has_a_page(collection, tmp_path):
    (tmp_path / "report.json").write_bytes((collection / "report.json").read_bytes())
    assert "no scan is usable" in text_of(write_page(tmp_path))


@pytest.mark.parametrize(("orientation", "turned"), [("LPS", ""), ("RAS", "yx"), ("LPI", "z")])
def test_the_patient_is_shown_upright(orientation, turned):
    """A scan with a bright corner: the head of a patient stored in LPS is at the last slice."""
    volume = np.zeros((8, 8, 8))
    volume[6:, :2, :2] = 1  # head, front, right in LPS
    axes = {"z": 0, "y": 1, "x": 2}
    volume = np.flip(volume, [axes[letter] for letter in turned])
    planes = Planes(volume.max(0), volume.max(1), volume.max(2), (1.0, 1.0, 1.0))
    png = picture(planes, np.ones(4), orientation, (0.0, 1.0))
    shown = np.asarray(Image.open(io.BytesIO(png)))
    for number in range(3):
        box = shown[:, number * BOX : (number + 1) * BOX]
        assert box[5, 5] == 255, number
        assert box[-5, -5] == 0, number


def test_planes_keep_their_proportions():
    planes = Planes(np.ones((10, 40)), np.ones((10, 40)), np.ones((10, 10)), (8.0, 2.0, 1.0))
    shown = np.asarray(Image.open(io.BytesIO(picture(planes, np.ones(2), "", (0.0, 0.5)))))
    axial, sagittal = shown[:, :BOX], shown[:, 2 * BOX : 3 * BOX]
    assert (axial.any(axis=0).sum(), axial.any(axis=1).sum()) == (BOX, BOX // 2)
    assert (sagittal.any(axis=0).sum(), sagittal.any(axis=1).sum()) == (BOX // 4, BOX)


def test_equal_counts_are_equal_bars():
    """Also where bins do not divide the picture's width."""
    assert len({column.sum() for column in bars(np.ones(150)).T.astype(int)}) == 1


def test_a_runs_page_shows_losses_monitors_views_and_time(pretraining):
    page = write_page(pretraining)
    text = text_of(page)
    for part in ("smit: loss", "embedding std", "gradient norm", "Step 6 of 6", "scans per second"):
        assert part in text
    assert re.findall(r"<strong>(step \d+)</strong>", text) == ["step 2", "step 4", "step 6"]
    assert "not finished" not in text
    hardware = files.read_json(pretraining / "manifest.json")["sittings"][0]["hardware"]
    assert hardware["processor"] in html.unescape(text)
    assert hardware["host"] not in text
    rows = files.read_json_lines(pretraining / "log.jsonl")
    (last,) = re.findall(r"<td>total</td>.*>([^<]*)</td></tr>", text)
    assert float(last) == pytest.approx(rows[-1]["total"], rel=1e-3)


def test_alarms_and_an_early_end_are_told_first(pretraining, tmp_path):
    rows = files.read_json_lines(pretraining / "log.jsonl")
    rows[3]["alarm"] = "all crops look alike"
    files.write_json_lines(tmp_path / "log.jsonl", rows)
    text = text_of(write_page(tmp_path))
    box = text[text.index('class="missing"') : text.index("<section")]
    assert "step 4: all crops look alike" in box
    assert "--c" in box


def test_a_finished_run_that_is_extended_shows_where_it_is_now(pretraining, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pretraining, folder)
    latest = checkpoint.read(folder / "checkpoint_latest.pth")
    latest["header"] |= {"step": 8, "run": {**latest["header"]["run"], "steps": 10}}
    checkpoint.write(folder / "checkpoint_latest.pth", latest)
    files.append_json_line(
        folder / "log.jsonl", files.read_json_lines(folder / "log.jsonl")[-1] | {"step": 8}
    )
    text = text_of(write_page(folder))
    assert "Step 8 of 10" in text
    assert "not finished" in text
    latest["header"]["step"] = 10
    checkpoint.write(folder / "checkpoint_final.pth", latest)
    assert "not finished" not in text_of(write_page(folder))
    (folder / "checkpoint_latest.pth").unlink()
    assert "not finished" not in text_of(write_page(folder))


def test_a_runs_page_shows_what_was_left_out_of_its_collection(
    pretraining, collection, tmp_path, nnunet_env
):
    folder = nnunet_env["nnUNet_preprocessed"] / "nnssl" / "made"
    folder.parent.mkdir()
    folder.symlink_to(collection)
    plan = {"name": "made", "fingerprint": Plan.load(collection / "plan.json").fingerprint}
    header = {**micro.header(), "plan": {**micro.header()["plan"], **plan}}
    run = micro.run(tmp_path / "run", steps=1)
    run.header.update(header)
    train(run, lambda _: None)
    text = text_of(write_page(tmp_path / "run"))
    assert "3 of 6 scans were left out" in text
    assert f"three planes of {case_id(shifted_path(collection))}" in text


def shifted_path(collection: Path) -> str:
    lines = files.read_json(collection / "report.json")["scans"]
    return next(line["path"] for line in lines if "shifted_1" in line["path"])


def test_a_damaged_collection_costs_a_run_only_what_was_left_out(
    pretraining, collection, tmp_path, nnunet_env
):
    folder = nnunet_env["nnUNet_preprocessed"] / "nnssl" / "unknown"
    shutil.copytree(collection, folder)
    run = tmp_path / "run"
    shutil.copytree(pretraining, run)
    for path in run.glob("*.pth"):
        content = checkpoint.read(path)
        content["header"]["plan"] |= {"name": "unknown", "fingerprint": "1"}
        checkpoint.write(path, content)
    (folder / "plan.json").write_text('{"format_version": 1}')
    text = text_of(write_page(run))
    assert "report.json or plan.json of the collection unknown cannot be read" in text
    assert "smit: loss" in text
    assert str(folder) not in text


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", "{"])
def test_a_manifest_of_another_form_costs_a_run_only_the_devices(pretraining, tmp_path, content):
    shutil.copytree(pretraining, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text(content)
    text = text_of(write_page(tmp_path / "run"))
    assert "manifest.json cannot be read: devices, hours and energy are left out" in text
    assert "hours of devices" not in text
    assert "pauses do not count" in text


@pytest.mark.parametrize("row", [{"total": 1.0}, {"step": "1", "samples_per_second": 1.0}])
def test_a_row_of_the_log_without_a_step_is_named(tmp_path, row):
    files.write_json_lines(tmp_path / "log.jsonl", [{"step": 1, "samples_per_second": 2.0}, row])
    with pytest.raises(ValueError, match=r"log\.jsonl, row 2 is damaged: it needs step and"):
        write_page(tmp_path)


@pytest.mark.parametrize("content", ['{"scans": 3}', '{"scans": [{"path": "a"}]}', "[]"])
def test_a_damaged_report_of_a_collection_is_named(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=r"report\.json is damaged: its scans must be a list"):
        write_page(tmp_path)


def test_a_folder_to_write_to_gets_the_usual_name(pretraining, tmp_path):
    assert write_page(pretraining, tmp_path) == tmp_path / "report.html"
    assert "Step 6 of 6" in text_of(tmp_path / "report.html")


def test_what_is_not_finite_is_left_out_of_averages_and_extremes():
    smooth = pictures._smooth((1.0, math.nan, 0.5, math.inf, 0.4))
    assert smooth == pytest.approx([1.0, 1.0, 0.9, 0.9, 0.8])
    assert pictures._smooth((math.nan, 2.0, 3.0))[1:] == pytest.approx([2.0, 2.2])
    rows = [{"step": i, "total": value} for i, value in enumerate([math.nan, 0.9, math.inf, 0.3])]
    name, first, *extremes, last = pretraining_page._extremes(rows, "total")
    assert (name, math.isnan(first), last) == ("total", True, 0.3)
    assert extremes == [0.3, 3, 0.9, 1]
    never = pretraining_page._extremes(rows[:1], "total")
    assert never[2:6] == ["none", "", "none", ""]


def test_views_are_kept_at_steps_spread_over_the_run(tmp_path):
    path = tmp_path / "views.png"
    for step in range(100, 10_100, 100):
        path.write_text(str(step))
        pictures.keep(path, step)
    kept = [int(picture.stem) for picture in sorted((tmp_path / "views").iterdir())]
    assert len(kept) == pictures.KEPT
    assert (kept[0], kept[-1]) == (100, 10_000)
    assert max(np.diff(kept)) <= 4 * min(np.diff(kept))
    assert (tmp_path / "views" / f"{kept[2]:09d}.png").read_text() == str(kept[2])


def test_pauses_are_no_training_time():
    rows = [{"step": 10, "samples_per_second": 2.0}, {"step": 30, "samples_per_second": 4.0}]
    assert cost.seconds(rows, batch_size=4) == 10 * 4 / 2 + 20 * 4 / 4


def test_the_fraction_of_the_peak_is_shown_where_the_log_has_it(pretraining, tmp_path):
    shutil.copytree(pretraining, tmp_path / "run")
    rows = files.read_json_lines(pretraining / "log.jsonl")
    assert "device&#39;s peak" not in text_of(write_page(tmp_path / "run"))
    marked = [
        {**row, "of_peak": value} for row, value in zip(rows[:3], (0.1, 0.34, 0.9), strict=True)
    ]
    files.write_json_lines(tmp_path / "run" / "log.jsonl", marked)
    text = text_of(write_page(tmp_path / "run"))
    assert "<td>of the device&#39;s peak</td><td>34%</td>" in text


def test_the_command_and_its_errors(collection, tmp_path, monkeypatch, capsys):
    def report(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["nnssl_report", *map(str, arguments)])
        return cli.report()

    page = tmp_path / "elsewhere" / "page.html"
    assert report(collection, "-o", page, "--scans", 1) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.exists()
    assert report(tmp_path) == 1
    assert "log.jsonl" in capsys.readouterr().err
    assert report(tmp_path / "nowhere") == 1
    assert "--only-prepare" in capsys.readouterr().err
    assert report(collection, "--scans", -1) == 1
    assert "0 or more, got -1" in capsys.readouterr().err


@browser.needed
@pytest.mark.parametrize("window", [browser.LAPTOP, browser.PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("kind", ["collection", "pretraining"])
def test_in_a_browser_nothing_is_wider_than_the_window(kind, window, request, tmp_path):
    page = write_page(request.getfixturevalue(kind), tmp_path / "page.html")
    answer = browser.ask(page, tmp_path, window)
    width, inner = answer["width"]
    assert width <= inner
    assert inner in range(window[0] - 20, window[0] + 1)  # less a scroll bar
    assert answer["requests"] == []
    assert len(answer["images"]) >= 8
    for natural, shown in answer["images"]:
        assert natural > 0
        assert shown >= min(300, inner - 60)


def test_a_page_is_one_file_that_asks_for_nothing(pretraining):
    page = write_page(pretraining).read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    settings = re.search(r"<h2>Settings</h2><pre>(.*?)</pre>", page, re.DOTALL)[1]
    assert json.loads(html.unescape(settings))["method"] == "smit"
