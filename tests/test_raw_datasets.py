"""nnU-Net raw datasets: the same files, axes, spacing and values as fine-tuning, for each of
nnU-Net's readers.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from synthetic_scans import ct_array, small_plan, write_volume

from nnssl.data.labelled import find_labelled, prepare_labelled
from nnssl.data.raw_datasets import READER, open_raw, read_image
from nnssl.data.refusals import UnusableScanError
from nnssl.data.scans import Found, find_scans, read_found
from nnssl.data.survey import inspect_scan, survey

LABELS = {"background": 0, "bone": 1}
READERS = {
    "SimpleITKIO": ".nii.gz",
    "SimpleITKIOWithReorient": ".nii.gz",
    "NibabelIO": ".nii.gz",
    "NibabelIOWithReorient": ".nii.gz",
    "Tiff3DIO": ".tif",
}


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array)
        case = (
            path.name[: -len("_0000.tif")]
            if path.parent.name == "imagesTr"
            else path.name[: -len(".tif")]
        )
        (path.parent / f"{case}.json").write_text(json.dumps({"spacing": [3.0, 2.0, 1.5]}))
        return
    # sagittal and oblique
    affine = np.array([[0.0, 0, 3, 5], [1.5, 0.1, 0, -7], [-0.1, 2, 0, 30], [0, 0, 0, 1]])
    affine[1:3, :2] = [[1.5, 0.0], [0.0, 2.0]]
    nibabel.save(nibabel.Nifti1Image(array.transpose(), affine), path)


def write_dataset(folder: Path, ending: str = ".nii.gz", channels: int = 1, **more) -> Path:
    for seed in range(3):
        hu = ct_array(seed=seed)
        for channel in range(channels):
            write_image(folder / "imagesTr" / f"case_{seed}_{channel:04d}{ending}", hu + channel)
        write_image(folder / "labelsTr" / f"case_{seed}{ending}", (hu > 300).astype(np.uint8))
    names = {str(channel): "CT" for channel in range(channels)}
    content = {
        "channel_names": names,
        "labels": LABELS,
        "file_ending": ending,
        "numTraining": 3,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", READERS)
def test_each_reader_gives_what_fine_tuning_will_read(tmp_path, name):
    """U12: pretraining saw other axes than fine-tuning."""
    raw = write_dataset(tmp_path / "raw", READERS[name], overwrite_image_reader_writer=name)
    found = find_scans([], [raw])
    reader = recursive_find_reader_writer_by_name(name)()
    for one, case in zip(
        found, get_filenames_of_train_images_and_targets(str(raw)).values(), strict=True
    ):
        theirs, properties = reader.read_images(case["images"])
        scan = read_found(one)
        assert one.path == case["images"][0]
        np.testing.assert_array_equal(scan.voxels, theirs[0])
        assert scan.spacing == pytest.approx(properties["spacing"])
        assert inspect_scan(one).kept
    (first, *_) = find_labelled(raw, 3).cases
    values = reader.read_seg(str(first.labels))[0]
    np.testing.assert_array_equal(
        read_image(first.labels, first.reader, labels=True).voxels, values[0]
    )
    plan = small_plan([raw], [ct_array()], spacing=(3.0, 3.0, 3.0), crop=(16, 16, 16))
    prepare_labelled(find_labelled(raw, 3), tmp_path / "probe", plan, 0)
    assert (tmp_path / "probe" / "case_2_labels.b2nd").is_file()


def test_a_case_is_what_nnunet_calls_one(tmp_path):
    raw = write_dataset(tmp_path / "raw", channels=2)
    write_image(raw / "imagesTr" / "case_1_more_0000.nii.gz", ct_array())
    (raw / "imagesTr" / "notes_0000.txt").write_text("no image")
    theirs = get_filenames_of_train_images_and_targets(str(raw))
    ours = open_raw(raw).training
    assert [(c.id, str(c.image), str(c.labels)) for c in ours] == [
        (case, files["images"][0], files["label"]) for case, files in theirs.items()
    ]


def test_files_that_dataset_json_lists_are_found_wherever_they_are(tmp_path, monkeypatch):
    """T7: `-d` found nothing in such datasets."""
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    hu = ct_array()
    write_volume(tmp_path / "elsewhere" / "x.nii.gz", hu)
    write_volume(tmp_path / "raw" / "deep" / "y.nii.gz", hu + 1)
    for name in ("x", "y"):
        write_volume(tmp_path / "raw" / "answers" / f"{name}.nii.gz", (hu > 300).astype(np.uint8))
    entries = {
        "x": {"images": ["$ELSEWHERE/x.nii.gz"], "label": "answers/x.nii.gz"},
        "y": {"images": ["deep/y.nii.gz"], "label": "answers/y.nii.gz"},
    }
    content = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "file_ending": ".nii.gz",
        "dataset": entries,
    }
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(content))
    found = find_scans([], [tmp_path / "raw"])
    assert [Path(scan.path).name for scan in found] == ["x.nii.gz", "y.nii.gz"]
    assert [line.kept for line in survey(found, tmp_path / "out", 0)] == [True, True]
    assert [case.id for case in find_labelled(tmp_path / "raw", 2).cases] == ["x", "y"]


@pytest.mark.parametrize(
    "listed",
    [{"a": {"images": []}}, {"a": {"label": "x"}}, {"a": {"images": [], "label": "x"}}, []],
)
def test_a_list_that_nnunet_would_not_take_is_an_error_with_its_form(tmp_path, listed):
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "dataset": listed})
    )
    with pytest.raises(ValueError, match='must give each case a list of "images"'):
        find_scans([], [tmp_path])


def test_one_file_may_hold_several_channels(tmp_path):
    raw, channels = tmp_path / "raw", [ct_array(seed=seed) for seed in range(2)]
    image = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(channel) for channel in channels])
    (raw / "imagesTr").mkdir(parents=True)
    SimpleITK.WriteImage(image, str(raw / "imagesTr" / "a_0000.nii.gz"))
    (raw / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    )
    (found,) = find_scans([], [raw])
    assert found.series == READER + "SimpleITKIO"
    np.testing.assert_array_equal(read_found(found).voxels, channels[0])
    assert inspect_scan(found).note == "read by nnU-Net's SimpleITKIO"


def test_a_plain_scan_of_a_dataset_is_the_same_scan_in_a_folder(tmp_path):
    path = write_volume(tmp_path / "imagesTr" / "a_0000.nii.gz", ct_array())
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    )
    assert find_scans([tmp_path / "imagesTr"], [tmp_path]) == [Found(str(path))]


def test_flat_images_are_refused_by_their_size(tmp_path):
    raw = tmp_path / "raw"
    (raw / "imagesTr").mkdir(parents=True)
    from skimage import io

    io.imsave(raw / "imagesTr" / "a_0000.png", ct_array()[8].astype(np.uint8), check_contrast=False)
    (raw / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "rgb"}, "file_ending": ".png"})
    )
    (found,) = find_scans([], [raw])
    assert "too small" in inspect_scan(found, in_hu=False).reason


def test_what_a_reader_cannot_read_is_refused_with_its_words(tmp_path):
    path = write_volume(tmp_path / "a.nii.gz", ct_array())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UnusableScanError, match="cannot be read by nnU-Net's NibabelIO"):
        read_image(path, "NibabelIO")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"channel_names": ["CT"]},
        {"channel_names": "CT"},
        {"channel_names": {"CT": "0"}},
        {"file_ending": 5},
        {"file_ending": ""},
    ],
    ids=str,
)
def test_a_dataset_json_of_another_form_is_an_error_that_says_what_it_must_hold(tmp_path, content):
    raw = write_dataset(tmp_path / "raw")
    whole = json.loads((raw / "dataset.json").read_text())
    changed = {**whole, **content} if isinstance(content, dict) else content
    (raw / "dataset.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"is not as nnU-Net wants it: it.*\{\"0\": \"CT\"\}"):
        find_scans([], [raw])


def test_a_probe_of_labels_without_names_is_refused(tmp_path):
    raw = write_dataset(tmp_path / "raw", labels=["bone"])
    with pytest.raises(ValueError, match="a probe needs one number for each label"):
        find_labelled(raw, 2)


def test_a_case_that_has_later_channels_only_is_a_line_of_the_report(tmp_path):
    """Its second channel was read as the first."""
    raw = write_dataset(tmp_path / "raw", channels=2)
    (raw / "imagesTr" / "case_1_0000.nii.gz").unlink()
    lines = survey(find_scans([], [raw]), tmp_path / "out", 0)
    assert [(Path(line.path).name[:11], line.kept) for line in lines] == [
        ("case_0_0000", True),
        ("case_1_0000", False),
        ("case_2_0000", True),
    ]
    assert "No such file" in lines[1].reason
    assert [case.id for case in find_labelled(raw, 3).cases] == ["case_0", "case_2"]
    second = find_scans([], [raw], channels=[1])
    assert [Path(scan.path).name[:11] for scan in second] == [f"case_{i}_0001" for i in range(3)]
