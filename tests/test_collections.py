"""A collection lives: scans come, go, fail, are repaired and move, and its runs continue."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import ENCODER
from synthetic_checkpoints import pretrained
from synthetic_scans import ct_array, straight, write_series, write_volume

from nnssl import checkpoint, files
from nnssl.data import prepare as prepare_module
from nnssl.data import preprocess as preprocess_module
from nnssl.data.crops import PARCELS, stored_array
from nnssl.data.moved import moved_sources
from nnssl.data.plan import Case, Plan
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.data.scans import Found
from nnssl.data.source_states import SOURCES
from nnssl.data.unchanged import UNCHANGED
from nnssl.train import cache, configure, places, pretrain
from nnssl.train.initial_encoder import OTHER_SIZE
from nnssl.train.log import Log
from nnssl.train.pretrain import Options
from nnssl.train.run import LATEST, WHEN_DIVERGED
from nnssl.types import FINAL

SHAPE = (14, 20, 24)


def raw_folder(folder: Path, numbers=range(3)) -> Path:
    for number in numbers:
        write_volume(folder / f"patient {number}" / "ct.nii.gz", ct_array(SHAPE, number))
    return folder


def prepared(tmp_path: Path, raw: Path, **options) -> tuple[Plan, str]:
    said = []
    plan = prepare(
        PrepareRequest(
            "made", tmp_path / "out", [raw], num_processes=0, print_fn=said.append, **options
        )
    )
    return plan, "\n".join(said)


def stored(tmp_path: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.b2nd")}


def test_the_plan_is_kept_when_scans_come_and_go_and_update_takes_them_in(tmp_path):
    raw = raw_folder(tmp_path / "raw")
    plan, said = prepared(tmp_path, raw)
    assert said == ""
    before = stored(tmp_path)
    shutil.rmtree(raw / "patient 0")
    write_volume(raw / "new" / "ct.nii.gz", ct_array((30, 40, 44)), (5.0, 1.0, 1.0))
    again, said = prepared(tmp_path, raw)
    assert again == plan
    assert "is kept, with its 3 scans" in said
    assert "1 new, 1 gone" in said
    assert "--update adds the new ones" in said
    assert stored(tmp_path) == before

    more, said = prepared(tmp_path, raw, update=True)
    assert "1 scans added to the plan, which now has 4" in said
    assert (more.spacing, more.hu, more.crop, more.fingerprint) == (
        plan.spacing,
        plan.hu,
        plan.crop,
        plan.fingerprint,
    )
    assert more.cases[:3] == plan.cases
    assert more == Plan.load(tmp_path / "out" / "plan.json")
    after = stored(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) == {case.id for case in more.cases}
    twice, _ = prepared(tmp_path, raw, update=True)
    assert twice == more


def test_other_scans_and_other_options_are_refused(tmp_path):
    prepared(tmp_path, raw_folder(tmp_path / "raw"))
    other = raw_folder(tmp_path / "other", range(7, 9))
    with pytest.raises(ValueError, match=r"none of its 3 is among the 2 .*--name.*--update"):
        prepared(tmp_path, other)
    with pytest.raises(ValueError, match=r"spacing .*got \(1, 1, 1\).*leave the option out"):
        prepared(tmp_path, tmp_path / "raw", spacing=(1, 1, 1))
    with pytest.raises(ValueError, match=r"HU range .*got \(-1000, 1000\)"):
        prepared(tmp_path, tmp_path / "raw", clip=(-1000, 1000))
    # the same range, but as a linear map
    with pytest.raises(ValueError, match=r"linear HU map, got the linear one of \(-1000, 30"):
        prepared(tmp_path, tmp_path / "raw", clip=(-1000, 3000))
    with pytest.raises(ValueError, match=r"scans in HU.*Files of two plans"):
        prepared(tmp_path, tmp_path / "raw", in_hu=False)
    with pytest.raises(ValueError, match="with -i FOLDER or -d ID"):
        prepare(PrepareRequest("made", tmp_path / "out", update=True, num_processes=0))
    for options, difference in (
        ({"spacing": (3, 3, 3)}, r"spacing .*got \(3, 3, 3\)"),
        ({"clip": (-175, 250)}, r"got .*\(-175, 250\)"),
        ({"in_hu": False}, "scans in HU"),
        ({"pattern": ("*.nrrd",)}, r"no --pattern, got \*.nrrd"),
    ):
        with pytest.raises(ValueError, match=difference):  # also where it is named alone
            prepare(PrepareRequest("made", tmp_path / "out", num_processes=0, **options))
    prepare(PrepareRequest("made", tmp_path / "out", num_processes=0))
    more, _ = prepared(tmp_path, other, update=True)
    assert len(more.cases) == 5


def voxels(tmp_path: Path, case: str) -> np.ndarray:
    return stored_array(tmp_path / "out" / f"{case}.b2nd")[:]


def rewritten_from(raw: Path, tmp_path: Path, kind: str) -> Path:
    """The same file, or the same DICOM series, with other voxels."""
    if kind == "file":
        return write_volume(raw / "patient 1" / "ct.nii.gz", ct_array(SHAPE, 9))
    return write_series(raw / "series", ct_array(SHAPE, 9), straight(SHAPE[0]))


@pytest.mark.parametrize("kind", ["file", "series"])
def test_a_scan_that_was_rewritten_is_reported_and_may_be_stored_again(tmp_path, kind):
    """Of the same shape and spacing, at the same path: nothing else tells."""
    raw = raw_folder(tmp_path / "raw")
    write_series(raw / "series", ct_array(SHAPE, 5), straight(SHAPE[0]))
    plan, _ = prepared(tmp_path, raw)
    path = rewritten_from(raw, tmp_path, kind)
    (case,) = [case.id for case in plan.cases if case.source == str(path)]
    before, old = stored(tmp_path), voxels(tmp_path, case)
    parcels = tmp_path / "out" / f"{case}{PARCELS}"
    parcels.touch()
    for _ in range(2):
        again, said = prepared(tmp_path, raw)
        assert again == plan
        assert "now: 1 rewritten, or with another time of change; --update --check stores" in said
        assert stored(tmp_path) == before | {parcels.stem: parcels.stat().st_mtime_ns}
    # a copy may have another time of change alone, and somebody may train on what is stored
    assert "--update --check stores" in prepared(tmp_path, raw, update=True)[1]
    assert stored(tmp_path) == before | {parcels.stem: parcels.stat().st_mtime_ns}
    again, said = prepared(tmp_path, raw, update=True, check=True)
    assert again == plan
    assert "0 scans added to the plan, which now has 4; 1 scans are stored again" in said
    assert {name for name, time in stored(tmp_path).items() if time != before[name]} == {case}
    assert not np.array_equal(voxels(tmp_path, case), old)
    assert not parcels.exists()
    assert prepared(tmp_path, raw) == (plan, "")
    assert prepared(tmp_path, raw, update=True)[1].startswith("--update: 0 scans added")


def test_scans_that_were_stored_by_an_earlier_version_count_as_unchanged(tmp_path):
    """They are noted as they are now, so that the next change is seen."""
    raw = raw_folder(tmp_path / "raw")
    plan, _ = prepared(tmp_path, raw)
    (tmp_path / "out" / SOURCES).unlink()
    before = stored(tmp_path)
    assert prepared(tmp_path, raw) == (plan, "")
    assert stored(tmp_path) == before
    rewritten_from(raw, tmp_path, "file")
    assert "1 rewritten" in prepared(tmp_path, raw)[1]


def test_a_scan_that_was_rewritten_before_it_was_stored_is_not_stored_again(tmp_path):
    raw = raw_folder(tmp_path / "raw")
    plan, _ = prepared(tmp_path, raw)
    path = rewritten_from(raw, tmp_path, "file")
    (case,) = [case.id for case in plan.cases if case.source == str(path)]
    (tmp_path / "out" / f"{case}.json").unlink()
    assert prepared(tmp_path, raw) == (plan, "")
    assert prepared(tmp_path, raw) == (plan, "")


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 3}'])
def test_a_damaged_note_of_the_sources_is_made_again(tmp_path, content):
    raw = raw_folder(tmp_path / "raw")
    plan, _ = prepared(tmp_path, raw)
    (tmp_path / "out" / SOURCES).write_text(content)
    (tmp_path / "out" / UNCHANGED).unlink()
    assert prepared(tmp_path, raw) == (plan, "")
    assert {case.id for case in plan.cases} <= files.read_json(tmp_path / "out" / SOURCES).keys()


def test_a_folder_that_moved_is_the_same(tmp_path, monkeypatch):
    """U18: also those of it that were not preprocessed yet; nothing is read twice."""
    raw = raw_folder(tmp_path / "old mount" / "raw")
    plan, _ = prepared(tmp_path, raw)
    before = stored(tmp_path)
    (tmp_path / "out" / f"{plan.cases[1].id}.json").unlink()
    shutil.move(tmp_path / "old mount", tmp_path / "new")
    surveyed = len(list((tmp_path / "out" / "survey").iterdir()))
    read = []
    monkeypatch.setattr("nnssl.data.survey.read_found", lambda *found: read.append(found))
    again, said = prepared(tmp_path, tmp_path / "new" / "raw")
    assert again == plan == Plan.load(tmp_path / "out" / "plan.json")
    assert said == "3 scans of the plan have moved; their contents are unchanged"
    assert read == []
    assert len(list((tmp_path / "out" / "survey").iterdir())) == 2 * surveyed
    assert {name for name, time in stored(tmp_path).items() if time != before[name]} == {
        plan.cases[1].id
    }


def test_another_folder_of_the_same_names_is_not_taken_for_a_moved_one(tmp_path):
    raw = raw_folder(tmp_path / "raw")
    plan, _ = prepared(tmp_path, raw)
    twin = shutil.copytree(raw, tmp_path / "staged")  # with its times, as rsync -a does
    moved = "3 scans of the plan have moved; their contents are unchanged"
    assert prepared(tmp_path, twin) == (plan, moved)
    for path in twin.rglob("ct.nii.gz"):
        os.utime(path, (0, 0))
    with pytest.raises(ValueError, match="was made for other scans"):
        prepared(tmp_path, twin)
    shutil.rmtree(raw)
    assert prepared(tmp_path, twin)[0] == plan


@pytest.mark.parametrize("in_hu", [True, False])
def test_other_scans_of_the_same_names_and_sizes_are_not_taken_for_moved_ones(tmp_path, in_hu):
    """Batches of a study have files of the same names; without compression also of one size."""

    def batch(name: str, seed: int) -> Path:
        for number in range(2):
            hu = ct_array(SHAPE, seed + number)
            write_volume(tmp_path / name / f"case_{number}.nii", hu)
        return tmp_path / name

    plan, _ = prepared(tmp_path, batch("one", 0), in_hu=in_hu)
    before = stored(tmp_path)
    shutil.rmtree(tmp_path / "one")
    for _ in range(2):  # it is noticed as often as it is looked for
        again, said = prepared(tmp_path, batch("two", 10), in_hu=in_hu)
        assert again == plan
        assert "unchanged" not in said
        assert "2 scans have the names and sizes of scans of the plan that are gone" in said
        assert "2 rewritten" in said
        assert stored(tmp_path) == before
    _, said = prepared(tmp_path, tmp_path / "two", in_hu=in_hu, update=True, check=True)
    assert "2 scans are stored again" in said
    assert all(time != before[name] for name, time in stored(tmp_path).items())
    said = "2 scans of the plan have moved; their contents are unchanged"
    assert prepared(tmp_path, tmp_path / "two", in_hu=in_hu) == (plan, said)


def test_half_written_lines_of_a_survey_are_removed(tmp_path):
    raw = raw_folder(tmp_path / "raw", range(1))
    prepared(tmp_path, raw)
    left = tmp_path / "out" / "survey" / f"{files.TEMPORARY}a.json"
    left.write_text("{")
    os.utime(left, (0, 0))
    prepared(tmp_path, raw)
    assert not left.exists()


def test_what_has_moved_is_matched_below_its_folder(tmp_path):
    def plan_of(*sources: str) -> Plan:
        plan, _ = prepared(tmp_path, raw_folder(tmp_path / "raw", range(1)))
        (case,) = plan.cases
        return Plan(
            "p",
            plan.spacing,
            plan.hu,
            plan.crop,
            tuple(type(case)(s, s, "", SHAPE, (1, 1, 1)) for s in sources),
        )

    plan = plan_of("/a/x/1/ct.nii", "/a/x/2/ct.nii", "/a/y/1/ct.nii", "/kept/ct.nii")
    now = [
        Found(path) for path in ("/b/x/1/ct.nii", "/b/x/2/ct.nii", "/b/new/ct.nii", "/kept/ct.nii")
    ]
    same = {"/a/x/1/ct.nii": "/b/x/1/ct.nii", "/a/x/2/ct.nii": "/b/x/2/ct.nii"}
    assert moved_sources(plan, now, ["/b", "/kept"]) == same
    assert moved_sources(plan, now, ["/b/x"]) == same  # two below x, one below y
    assert moved_sources(plan, [Found(case.source) for case in plan.cases], ["/a", "/kept"]) == {}
    assert moved_sources(plan, [Found("/c/ct.nii")], ["/c/ct.nii"]) == {}  # four may be it
    assert moved_sources(plan_of("/a/ct.nii"), [Found("/c/ct.nii")], ["/c/ct.nii"]) != {}


@pytest.mark.parametrize("place", ["/new/patients/{}", "/new/{0:.1}/{0}"])
def test_what_has_moved_is_matched_below_many_folders(place):
    """As -i patients/* gives them, with a scan of the same name in each."""
    names = [f"{letter}{number}" for letter in "ab" for number in range(4)]
    cases = [
        Case(name, f"/old/{place.format(name)[5:]}/ct.nii.gz", "", SHAPE, (1, 1, 1))
        for name in names
    ]
    plan = Plan("p", (1, 1, 1), None, (16, 16, 16), tuple(cases))
    folders = [place.format(name) for name in [*names[1:], "c9"]]  # one is gone, and one is new
    now = [Found(f"{folder}/ct.nii.gz") for folder in folders]
    assert moved_sources(plan, now, folders) == {
        case.source: case.source.replace("/old/", "/new/", 1) for case in cases[1:]
    }


def test_a_collection_that_may_only_be_read_is_taken_as_it_is(tmp_path, monkeypatch):
    """As one that a colleague has prepared; with -i as well as without."""
    raw = raw_folder(tmp_path / "raw")
    plan, _ = prepared(tmp_path, raw)
    write_volume(raw / "new" / "ct.nii.gz", ct_array(SHAPE, 9))
    monkeypatch.setattr("nnssl.data.prepare.os.access", lambda *_: False)
    monkeypatch.setattr("nnssl.data.prepare.sweep", lambda *_, **__: pytest.fail("removes files"))
    again, said = prepared(tmp_path, raw)
    assert again == plan
    assert "is read-only" in said
    with pytest.raises(ValueError, match=r"spacing .*got \(1, 1, 1\)"):
        prepared(tmp_path, raw, spacing=(1, 1, 1))
    with pytest.raises(ValueError, match=r"is read-only: leave --check out"):
        prepared(tmp_path, raw, check=True)


@pytest.mark.parametrize("content", ["[]", "null", "3", "{}", '{"fingerprint": 1}', "{", ""])
def test_notes_of_another_form_are_made_again(tmp_path, content):
    raw = raw_folder(tmp_path / "raw", range(1))
    plan, _ = prepared(tmp_path, raw)
    (case,) = plan.cases
    notes = [tmp_path / "out" / f"{case.id}.json", *(tmp_path / "out" / "survey").iterdir()]
    before = [files.read_json(note) for note in notes]
    for note in notes:
        note.write_text(content)
    (tmp_path / "out" / UNCHANGED).unlink()  # with it no answer of the survey is read
    assert prepared(tmp_path, raw)[0] == plan
    assert [files.read_json(note) for note in notes] == before
    (tmp_path / "out" / "plan.json").write_text(content)
    with pytest.raises(ValueError, match=r"plan\.json"):
        prepared(tmp_path, raw)


def test_a_full_disk_ends_the_preparation(tmp_path, monkeypatch):
    def full(**named):
        if named["suffix"].endswith(".b2nd"):
            raise OSError(28, "No space left on device")
        return make(**named)

    make = files.tempfile.mkstemp
    monkeypatch.setattr(files.tempfile, "mkstemp", full)
    with pytest.raises(
        files.NoRoomError,
        match=r"b2nd cannot be written: the disk is full.*Free some space for .*out",
    ):
        prepared(tmp_path, raw_folder(tmp_path / "raw"))


# -- runs ------------------------------------------------------------------------------


@pytest.fixture
def trains(nnunet_env, tmp_path, monkeypatch):
    """A function that pretrains on raw/ for some steps, as typed; what it said."""
    monkeypatch.setattr(Log, "draw", lambda self: None)
    monkeypatch.setattr(pretrain, "keep_freed_memory", lambda: False)
    raw_folder(tmp_path / "raw")

    def run(method: str = "simmim", **options) -> str:
        said = []
        chosen = {
            "sources": (tmp_path / "raw",),
            "name": "made",
            "preset": "tiny",
            "crop": (32, 32),
            "batch_size": 2,
            "steps": 2,
            "workers": 0,
            "device": "cpu",
            "num_processes": 0,
            "save_every": 1,
            "log_every": 1,
            **options,
        }
        pretrain.pretrain(Options(method, **chosen), said.append)
        return "\n".join(said)

    return run


def test_a_run_says_what_it_starts_from_and_of_which_size(nnunet_env, trains, tmp_path):
    """Not of the preset of -a: the encoder is that of the checkpoint."""
    path = pretrained(tmp_path, replace(ENCODER, spatial_dims=2))
    sha256 = checkpoint.load(path).sha256[:12]
    said = trains(start=path, steps=1)
    assert f"its encoder starts from {path} (method smit, sha256 {sha256})" in said
    assert f"encoder {OTHER_SIZE} (" in said
    loaded = checkpoint.load(run_folder(nnunet_env) / FINAL)
    assert loaded.header["preset"] == OTHER_SIZE
    assert f"start      {path} (method smit, sha256 {sha256})" in checkpoint.describe(loaded)
    assert "starts from" not in trains(name="random", steps=1)
    latest = run_folder(nnunet_env) / LATEST
    content = torch.load(latest, weights_only=True)
    content["header"]["preset"] = "smit"  # that of -a, as an earlier version had it
    torch.save(content, latest)
    assert "continuing at step 1 of 2" in trains(start=path, steps=2, resume=True)


@pytest.fixture
def started(trains, tmp_path) -> Path:
    """A run of one step that began from this checkpoint."""
    path = pretrained(tmp_path / "first", replace(ENCODER, spatial_dims=2))
    trains(start=path, steps=1)
    return path


@pytest.mark.parametrize("change", ["rewritten", "moved", "gone", "not typed", "typed otherwise"])
def test_a_run_continues_whatever_became_of_the_checkpoint_that_it_started_from(
    trains, started, nnunet_env, monkeypatch, change
):
    """All its weights are in its own checkpoint."""
    before = checkpoint.load(run_folder(nnunet_env) / FINAL).header
    typed = started
    if change == "rewritten":
        pretrained(started.parent, seed=7)  # with an encoder of other dimensions
    elif change == "moved":
        typed = started.rename(started.with_name("elsewhere.pth"))
    elif change == "gone":
        started.unlink()
    elif change == "not typed":
        typed = None
    else:
        monkeypatch.chdir(started.parent)
        typed = Path(started.name)
    assert "continuing at step 1 of 2" in trains(start=typed, steps=2, resume=True)
    header = checkpoint.load(run_folder(nnunet_env) / FINAL).header
    assert header["step"] == 2
    for name in ("start", "preset", "encoder"):
        assert header[name] == before[name]


def test_another_start_is_refused_in_words(trains, started, tmp_path, nnunet_env):
    sha256 = checkpoint.load(started).sha256[:12]
    other = pretrained(tmp_path / "second", replace(ENCODER, spatial_dims=2), seed=7)
    for typed in (other, tmp_path / "nowhere.pth", "hf://owner/"):
        with pytest.raises(ValueError, match="cannot be continued") as error:
            trains(start=typed, steps=2, resume=True)
        assert (
            f"\n  --from: was {started} (method smit, sha256 {sha256}), now {typed} (leave --from "
            "out: the run continues with its own weights)\n"
        ) in str(error.value)
    trains(name="random", steps=1)
    with pytest.raises(ValueError, match=rf"\n  --from: was not given, now {other} \(leave"):
        trains(name="random", start=other, steps=2, resume=True)


def test_what_was_typed_of_another_run_is_refused_before_anything_is_derived(
    trains, nnunet_env, tmp_path
):
    folder = tmp_path / "named"
    trains(output=folder, steps=1)
    for method in ("smit", "rotation", "simclr"):
        with pytest.raises(ValueError, match=rf"these:\n  method: was simmim, now {method}\nUse"):
            trains(method, output=folder, steps=2, resume=True)
    with pytest.raises(ValueError, match=r"these:\n  dims: was 2, now 3\nUse"):
        trains(output=folder, crop=None, dims=3, steps=2, resume=True)
    with pytest.raises(ValueError, match=r"these:\n  preset: was tiny, now smit\nUse"):
        trains(output=folder, preset="smit", steps=2, resume=True)
    # neither the crop nor --dims need be repeated
    assert "continuing at step 1 of 2" in trains(output=folder, crop=None, steps=2, resume=True)


def test_a_run_of_an_earlier_version_continues_though_its_method_has_a_new_setting(
    trains, nnunet_env
):
    trains(settings=["clip_norm=3"])  # as it was then
    path = run_folder(nnunet_env) / LATEST
    content = checkpoint.read(path)
    assert content["header"]["method_config"].pop("clip_norm") == 3.0
    checkpoint.write(path, content)
    assert "continuing at step 2 of 3" in trains(resume=True, steps=3)
    assert checkpoint.read(path)["header"]["method_config"]["clip_norm"] == 3.0


def test_a_copy_of_the_final_checkpoint_is_no_run_to_continue(trains, nnunet_env):
    trains()
    folder = run_folder(nnunet_env)
    shutil.copy(folder / FINAL, folder / LATEST)
    with pytest.raises(ValueError, match=r"latest\.pth holds no training state .*--from"):
        trains(resume=True, steps=3)


def run_folder(nnunet_env) -> Path:
    return nnunet_env["nnUNet_results"] / "nnssl" / "made" / "simmim__tiny_2d"


def test_a_run_goes_on_with_its_scans_and_may_become_longer(
    trains, nnunet_env, tmp_path, monkeypatch
):
    """T4, U2: one scan fails at first and succeeds later; one is new; --steps is raised."""
    read = preprocess_module.read_scan

    def fail(found, cache):
        if "patient 1" in found.path:
            raise OSError(5, "Input/output error")
        return read(found, cache)

    monkeypatch.setattr(preprocess_module, "read_scan", fail)
    with pytest.warns(UserWarning, match="1 of 3 cases could not be preprocessed"):
        trains()
    monkeypatch.setattr(preprocess_module, "read_scan", read)
    write_volume(tmp_path / "raw" / "new.nii.gz", ct_array(SHAPE, 9))
    said = trains(resume=True, steps=3, update=True)
    assert "the run continues with its original 2 scans; the collection now has 4" in said
    assert "steps: was 2, now 3" in said
    assert "schedules follow those of a run of 3 steps" in said
    content = checkpoint.read(run_folder(nnunet_env) / LATEST)
    assert content["training_state"]["step"] == content["header"]["run"]["steps"] == 3
    assert len(content["training_state"]["cases"]) == content["header"]["plan"]["cases"] == 2
    with pytest.raises(
        ValueError, match=r"has done 3 steps of 3, more than --steps 1: give a larger number"
    ):
        trains(resume=True, steps=1)
    with pytest.raises(ValueError, match=r"seed: was 0, now 1\nUse the original settings"):
        trains(resume=True, steps=3, seed=1)


def test_a_run_continues_in_as_many_parts_as_before_or_as_are_typed(trains, nnunet_env):
    """With fewer GPUs, more parts are the way to fit the same batch into memory."""

    def parts() -> int:
        content = checkpoint.read(run_folder(nnunet_env) / LATEST)
        return content["header"]["run"]["accumulate"]

    trains(batch_size=2, accumulate=2)
    assert parts() == 2
    trains(resume=True, steps=3)
    assert parts() == 2
    assert "accumulate: was 2, now 1" in trains(resume=True, steps=4, accumulate=1)
    assert parts() == 1


def test_a_checkpoint_that_knows_only_their_number_goes_on_with_those_stored_first(
    trains, nnunet_env, tmp_path
):
    trains()
    path = run_folder(nnunet_env) / LATEST
    content = checkpoint.read(path)
    began = content["training_state"].pop("cases")
    checkpoint.write(path, content)
    # sorts before the others
    write_volume(tmp_path / "raw" / "patient 0" / "a.nii.gz", ct_array(SHAPE, 9))
    assert "original 3 scans; the collection now has 4" in trains(resume=True, steps=3, update=True)
    assert checkpoint.read(path)["training_state"]["cases"] == began
    data = nnunet_env["nnUNet_preprocessed"] / "nnssl" / "made"
    shutil.rmtree(tmp_path / "raw" / "patient 2")
    (data / f"{began[-1]}.b2nd").unlink()
    with (
        pytest.warns(UserWarning, match="could not be preprocessed"),
        pytest.raises(ValueError, match=r"1 of the 3 scans that this run trains on.*--from"),
    ):
        trains(resume=True, steps=3)


MISTAKES = [
    ({"preset": "smitt"}, "unknown preset 'smitt'"),
    ({"start": Path("/nowhere/x.pth")}, "no checkpoint at /nowhere/x.pth"),
    ({"graph": True}, "--graph cannot be used: CUDA graphs need an NVIDIA GPU"),
    *[
        ({"method": name, "crop": size}, f"of at least 1 voxel each, got {size}")
        for name, size in [("ibot", (0, 0)), ("ibot", (0, 0, 0)), ("simmim", (-4, 4, 4))]
    ],
    ({"crop": (30, 30)}, "mask block 8 does not divide crop 30x30"),
    ({"method": "rotation", "crop": (32, 48)}, "rotation needs a crop of equal sides"),
    ({"settings": ("mask_block=16x8",), "crop": (32, 32, 32)}, "2 sides for 3 axes"),
    ({"settings": ("mask_block=16x8",), "crop": None}, "2 sides for 3 axes"),
    ({"settings": ("mask_block=16x8x8",), "crop": None, "dims": 2}, "3 sides for 2 axes"),
    ({"method": "cpc", "settings": ("cubes=60",), "crop": None}, "too small for 60 cubes"),
    *[
        (
            {"method": name, "settings": ("mask_block=32",), "crop": (32, 32, 32)},
            "all of the 1 block(s) of 32x32x32 voxels in a crop of 32x32x32 would be hidden",
        )
        for name in ("simmim", "smit", "ibot")
    ],
    (
        {"settings": ("published=true", "mask_ratio=0.8"), "crop": (32, 64)},
        "all of the 2 block(s) of 32x32 voxels in a crop of 32x64 would be hidden",
    ),
    ({"batch_size": 3, "accumulate": 2}, "total batch of 3 cannot be divided"),
    ({"workers": -1}, "workers must be at least 0, got -1"),
    ({"epochs": 0, "steps": None}, "epochs must be at least 1, got 0"),
    ({"probe_every": 0}, "probe_every must be at least 1, got 0"),
    (
        {"clip": (-1024, 3071)},
        "the HU range must rise and lie within -1000 to 3000, got -1024 3071",
    ),
    ({"spacing": (20, 20, 20)}, "spacing must be three numbers from 0.05 to 15 mm"),
    ({"part_id": 2, "num_parts": 2}, "-part_id must be 0 to 1 with -num_parts 2, got 2"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_a_mistake_is_reported_before_any_scan_is_read(trains, monkeypatch, options, message):
    monkeypatch.setattr(prepare_module, "survey", lambda *_, **__: pytest.fail("read"))
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        trains(**options)


def test_a_wrong_folder_leaves_no_empty_collection(trains, nnunet_env, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "no scans in"), ("absent", "does not exist")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            trains(sources=(tmp_path / name,))
    assert not (nnunet_env["nnUNet_preprocessed"] / "nnssl" / "made").exists()


def test_a_run_in_the_way_is_reported_before_any_scan_is_read(trains, nnunet_env, monkeypatch):
    folder = run_folder(nnunet_env)
    folder.mkdir(parents=True)
    (folder / LATEST).touch()
    monkeypatch.setattr(prepare_module, "survey", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ValueError, match="already holds a run"):
        trains()


def test_what_only_the_training_needs_does_not_matter_to_a_preparation(trains, nnunet_env):
    trains(only_prepare=True, graph=True, cache="gpu", start=Path("/nowhere/x.pth"))
    assert (nnunet_env["nnUNet_preprocessed"] / "nnssl" / "made" / "plan.json").exists()


def test_the_collection_is_held_before_the_batch_is_sized(trains, monkeypatch):
    """Both took their fraction of the same free memory: 140 % of it."""
    order, hold = [], cache.hold
    monkeypatch.setattr(cache, "hold", lambda *how: order.append("held") or hold(*how))
    monkeypatch.setattr(configure, "batch_size", lambda *_: order.append("sized") or (2, ""))
    trains(batch_size=None, cache="ram")
    assert order == ["held", "sized"]


def test_the_advice_for_a_run_that_diverged_can_be_followed(trains, nnunet_env, tmp_path):
    trains()
    latest = run_folder(nnunet_env) / LATEST
    for flag in ("-o FOLDER", "--from checkpoint_latest.pth", "--set lr=1e-4"):
        assert flag in WHEN_DIVERGED
    with pytest.raises(ValueError, match="lr: was"):
        trains(resume=True, settings=("lr=1e-4",))
    said = trains(start=latest, output=tmp_path / "again", settings=("lr=1e-4",))
    assert f"its encoder starts from {latest}" in said
    assert "finished: " in said


def test_a_contrast_of_one_scan_is_refused_before_its_first_step(trains, nnunet_env, tmp_path):
    for number in (1, 2):
        shutil.rmtree(tmp_path / "raw" / f"patient {number}")
    with pytest.raises(ValueError, match="compares different scans, and there is 1 usable scan"):
        trains("simclr")
    assert not (nnunet_env["nnUNet_results"] / "nnssl" / "made" / "simclr__tiny" / LATEST).exists()


def test_one_run_a_folder(trains, nnunet_env):
    """U17: whoever comes second is told who is there; what a killed run left is removed."""
    folder = run_folder(nnunet_env)
    folder.mkdir(parents=True)
    (folder / ".tmp-abccheckpoint_latest.pth").touch()
    within = folder / "second" / ".tmp-abccheckpoint_latest.pth"  # of a run with -o there
    for path in (within, folder / "views" / ".tmp-000000001.png"):
        path.parent.mkdir()
        path.touch()
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with files.locked(folder, ""):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(
        files.LockedError, match=rf"is being written by process {child} on .*: wait for it.*-o"
    ):
        trains()
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    assert "finished: " in trains()
    assert list(folder.rglob(".tmp-*")) == [within]


def test_names_of_many_sources_are_short_and_stable(nnunet_env):
    """T5: `-i patients/*` gave a name that was too long for a file."""

    def name(*names: str, **options) -> str:
        return places.data_folder(
            Options("smit", sources=[Path("/x") / n for n in names], **options)
        )[0]

    assert name("a", "b", dataset_ids=("501",)) == "a_b_501"
    many = [f"patient_{number:03d}" for number in range(26)]
    shortened = name(*many)
    assert shortened.startswith("patient_000_and_25_more_")
    assert len(shortened) < 100
    assert name(*reversed(many)) == shortened
    few = many[:10]
    (nnunet_env["nnUNet_preprocessed"] / "nnssl" / "_".join(few)).mkdir(parents=True)
    assert name(*few) == "_".join(few)  # of before


def test_fingerprints_are_those_of_earlier_plans(tmp_path):
    plan, _ = prepared(tmp_path, raw_folder(tmp_path / "raw"))
    content = files.read_json(tmp_path / "out" / "plan.json")
    told = content.pop("fingerprint")
    assert set(content) == {"name", "spacing", "hu", "crop", "cases", "format_version"}
    assert files.fingerprint(content) == told == plan.fingerprint
