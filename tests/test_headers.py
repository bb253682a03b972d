"""What headers promise: memory, other files, spacing, orientation. Nothing is believed that the
file does not hold.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from synthetic_dicom import (
    EXPLICIT_LITTLE_ENDIAN,
    element,
    unsigned_short,
    write_dicom,
    write_frames,
    write_stored_slice,
)
from synthetic_scans import AXIAL, ct_array, straight, write_series, write_volume

from nnssl.data import dicom_slices
from nnssl.data import volumes as volumes_module
from nnssl.data.dicom import series_in
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.data.scans import Found, find_scans, read_found
from nnssl.data.survey import inspect_scan, survey
from nnssl.files import read_json


def reason(path: Path, series: str = "", in_hu: bool = True) -> str:
    return inspect_scan(Found(str(path), series), in_hu=in_hu).reason


def nifti(
    path: Path, change: dict | None = None, array: np.ndarray | None = None, affine=None
) -> Path:
    """A NIfTI whose header says `change`, whatever is true."""
    image = nibabel.Nifti1Image(
        ct_array() if array is None else array, np.eye(4) if affine is None else affine
    )
    nibabel.save(image, path)
    header = bytearray(path.read_bytes()[:348])
    fields = nibabel.Nifti1Header(bytes(header), check=False)
    for key, value in (change or {}).items():
        fields[key] = value
    path.write_bytes(fields.binaryblock + path.read_bytes()[348:])
    return path


def zipped(path: Path) -> Path:
    out = path.with_name(path.name + ".gz")
    out.write_bytes(gzip.compress(path.read_bytes()[:400]))
    return out


NO_AXES = {"sform_code": 0, "qform_code": 0}
NIFTI_LIES = {
    "larger than the file": ({"dim": [3, 600, 600, 600, 1, 1, 1, 1]}, "truncated"),
    "voxels far behind": ({"vox_offset": 6e8}, "truncated"),
    "voxels inside of the header": ({"vox_offset": 4.0}, "begin at byte 4"),
    "voxels nowhere": ({"vox_offset": np.nan}, "begin at byte nan"),
    "unknown type": ({"datatype": 77}, "unknown voxel type 77"),
    "negative size": ({"dim": [3, 16, -24, 28, 1, 1, 1, 1]}, "gives the size"),
    "spacing 0": ({"pixdim": [1, 0, 0, 0, 0, 0, 0, 0], **NO_AXES}, "has no usable spacing"),
    "spacing NaN": ({"pixdim": [1, np.nan, 1, 1, 0, 0, 0, 0], **NO_AXES}, "has no usable spacing"),
    "two spacings": ({"pixdim": [1, 1, 1, 3, 0, 0, 0, 0]}, "gives two different spacings"),
}


@pytest.mark.parametrize("name", NIFTI_LIES)
def test_a_nifti_header_that_lies_is_refused_before_memory_is_asked_for(
    tmp_path, name, monkeypatch
):
    change, words = NIFTI_LIES[name]
    monkeypatch.setattr(volumes_module, "_information", lambda path: pytest.fail("ITK was asked"))
    path = nifti(tmp_path / "a.nii", change)
    assert words in reason(path)
    if "truncated" in words:  # 97 bytes may not ask for a gigabyte
        assert words in reason(zipped(path))


META = (
    "ObjectType = Image\nNDims = 3\nDimSize = 28 24 16\nElementSpacing = 1 2 3\nElementType = "
    "MET_SHORT\n"
)
LOCAL = "ElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 28 24 16\nendian: little\nencoding: raw\n"
DIRECTIONS = "space: left-posterior-superior\nspace directions: (1,0,0) (0,2,0) (0,0,3)\n"
ELSEWHERE = "not in the header's own folder"
TEXT_LIES = {
    "dimensions": (
        ".mha",
        META.replace("NDims = 3", "NDims = 1000000000") + LOCAL,
        "not three-dimensional",
    ),
    "negative dimensions": (
        ".mha",
        META.replace("NDims = 3", "NDims = -3") + LOCAL,
        "not three-dimensional",
    ),
    "a format string": (
        ".mhd",
        META + "ElementDataFile = %s%s%n.raw 0 23 1\n",
        "allowed are a name, LIST",
    ),
    "an absolute path": (".mhd", META + "ElementDataFile = {outside}\n", ELSEWHERE),
    "a path upwards": (".mhd", META + "ElementDataFile = ../outside.raw\n", ELSEWHERE),
    "a list upwards": (".mhd", META + "ElementDataFile = LIST\n../outside.raw\n", ELSEWHERE),
    "a list by its first letters": (
        ".mhd",
        META + "ElementDataFile = LISTED.raw\n../outside.raw\n",
        ELSEWHERE,
    ),
    "another key": (
        ".mhd",
        META + "ElementDataFile: ../outside.raw = 1\n" + LOCAL,
        "not KEY = VALUE",
    ),
    "a key twice": (
        ".mha",
        META + "ElementSpacing = 1 2 4\n" + LOCAL,
        "repeats ElementSpacing",
    ),
    "a key without a value": (".mha", META + "Offset =\n" + LOCAL, "gives it no value"),
    "a pattern upwards": (".mha", META + "ElementDataFile = ../%03d.raw 1 16 1\n", ELSEWHERE),
    "a pipe": (".mhd", META + "ElementDataFile = pipe.raw\n", "does not exist"),
    "a size": (".mha", META.replace("28 24 16", "2800 2400 1600") + LOCAL, "truncated"),
    "no size": (".mha", META.replace("28 24 16", "28 24") + LOCAL, "3 finite numbers"),
    "no spacing in MHA": (
        ".mha",
        META.replace("ElementSpacing", "Comment") + LOCAL,
        "no spacing",
    ),
    "a plane": (".mha", META + "TransformMatrix = 1 0 0 0 1 0 0 1 0\n" + LOCAL, "in one plane"),
    "NRRD elsewhere": (".nhdr", NRRD + DIRECTIONS + "data file: {outside}\n", ELSEWHERE),
    "NRRD upwards": (".nrrd", NRRD + DIRECTIONS + "datafile: ../outside.raw\n\n", ELSEWHERE),
    "an NRRD pattern": (".nhdr", NRRD + DIRECTIONS + "data file: ../%d.raw 1 16 1\n\n", ELSEWHERE),
    "an NRRD list": (".nhdr", NRRD + DIRECTIONS + "data file: LIST\n../outside.raw\n", ELSEWHERE),
    "no spacing in NRRD": (".nrrd", NRRD + "\n", "no spacing"),
    "NaN as spacing": (".nrrd", NRRD + "spacings: nan nan nan\n\n", "no spacing"),
    "an NRRD field like a pair": (
        ".nrrd",
        NRRD + DIRECTIONS + "datafile: ../outside.raw:=1\n\n",
        ELSEWHERE,
    ),
    "an NRRD size": (
        ".nrrd",
        NRRD.replace("28 24 16", "2800 2400 1600") + DIRECTIONS + "\n",
        "truncated",
    ),
}


@pytest.mark.parametrize("name", TEXT_LIES)
def test_a_text_header_that_lies_is_refused_before_itk_sees_it(tmp_path, name, monkeypatch):
    ending, text, words = TEXT_LIES[name]
    monkeypatch.setattr(volumes_module, "_information", lambda path: pytest.fail("ITK was asked"))
    outside = tmp_path / "outside.raw"
    outside.write_bytes(ct_array().tobytes())
    folder = tmp_path / "in"
    folder.mkdir()
    os.mkfifo(folder / "pipe.raw")
    path = folder / f"a{ending}"
    attached = LOCAL in text or ending == ".nrrd"
    path.write_bytes(text.format(outside=outside).encode() + ct_array().tobytes() * attached)
    assert words in reason(path)


def test_honest_headers_of_several_files_are_read(tmp_path):
    array = ct_array()
    for number, plane in enumerate(array, start=1):
        (tmp_path / f"s{number:02d}.raw").write_bytes(plane.tobytes())
    (tmp_path / "a.mhd").write_text(META + "ElementDataFile = s%02d.raw 1 16 1\n")
    (tmp_path / "b.nhdr").write_text(NRRD + DIRECTIONS + "data file: s%02d.raw 1 16 1\n\n")
    for name in ("a.mhd", "b.nhdr"):
        np.testing.assert_array_equal(read_found(Found(str(tmp_path / name))).voxels, array)
        assert reason(tmp_path / name) == ""


@pytest.mark.parametrize("source", ["a.nii.gz", "a.nrrd"])
@pytest.mark.parametrize("ending", [".mha", ".mhd"])
def test_metadata_that_itk_takes_along_is_passed_over(tmp_path, source, ending):
    write_volume(tmp_path / source, ct_array(), (3.0, 2.0, 1.0))
    image = SimpleITK.ReadImage(str(tmp_path / source))
    image.SetMetaData("0008|0005", "ISO_IR 100")
    path = tmp_path / f"b{ending}"
    SimpleITK.WriteImage(image, str(path))
    assert b"[0] = " in path.read_bytes()
    np.testing.assert_array_equal(read_found(Found(str(path))).voxels, ct_array())
    assert reason(path) == ""


def test_other_keys_may_be_empty_and_repeat(tmp_path):
    text = META + "Comment =\nComment = a = b: c\n" + LOCAL
    (tmp_path / "a.mha").write_bytes(text.encode() + ct_array().tobytes())
    scan = read_found(Found(str(tmp_path / "a.mha")))
    np.testing.assert_array_equal(scan.voxels, ct_array())
    assert scan.spacing == (3, 2, 1)


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_what_itk_compresses_is_read(tmp_path, ending):
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(ct_array()), str(tmp_path / f"a{ending}"), useCompression=True
    )
    assert reason(tmp_path / f"a{ending}") == ""


def test_a_gzipped_file_without_its_ending_is_refused_for_good(tmp_path):
    whole = nifti(tmp_path / "whole.nii.gz")
    path = whole.rename(tmp_path / "a.nii")
    assert reason(path) == "cannot be read: it is gzipped: name it .nii.gz"


def test_nifti_2_and_the_other_byte_order_are_read(tmp_path):
    array = ct_array().transpose()
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4), header), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti2Image(array, np.eye(4)), tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii").read_bytes()[:4] == b"\0\0\x01\x5c"
    for name in ("a.nii", "b.nii.gz"):
        assert reason(tmp_path / name) == ""
        np.testing.assert_array_equal(read_found(Found(str(tmp_path / name))).voxels, ct_array())


def test_compressed_voxels_are_counted(tmp_path):
    packed = zlib.compress(ct_array().tobytes())
    for name, data in {
        "whole": packed,
        "short": packed[: len(packed) // 2],
        "damaged": packed[:-2] + b"ab",
    }.items():
        head = (
            META
            + f"CompressedData = True\nCompressedDataSize = {len(data)}\nElementDataFile = LOCAL\n"
        )
        (tmp_path / f"{name}.mha").write_bytes(head.encode() + data)
    assert reason(tmp_path / "whole.mha") == ""
    assert "damaged or truncated" in reason(tmp_path / "short.mha")
    assert "damaged or truncated" in reason(tmp_path / "damaged.mha")


def spoil(path: Path, tag: bytes, value: bytes) -> None:
    """Overwrite the value of an element: tag, and a length of four bytes."""
    content = bytearray(path.read_bytes())
    offset = content.index(tag) + 8
    content[offset : offset + len(value)] = value
    path.write_bytes(content)


def test_dicom_without_voxels_or_spacing_is_refused(tmp_path):
    folders = {
        name: write_series(tmp_path / name, ct_array(), straight(16))
        for name in ("rows", "cut", "negative")
    }
    for path in folders["rows"].iterdir():
        spoil(path, b"\x28\0\x10\0\x02\0", struct.pack("<H", 2400))
    for path in folders["cut"].iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    for path in folders["negative"].iterdir():
        spoil(path, b"\x28\0\x30\0", b"-1")
    found = {
        name: next(iter(series_in(folder).values())).reason for name, folder in folders.items()
    }
    assert "truncated" in found["rows"]
    assert "truncated" in found["cut"]
    assert "has no usable spacing" in found["negative"]


@pytest.mark.parametrize("codec", ["JPEG2000", "JPEG", "RLE", ""])
def test_compressed_slices_and_slices_without_preamble_are_read(tmp_path, codec):
    write_series(tmp_path / "plain", ct_array(), straight(16))
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "plain").iterdir():
        copy = tmp_path / "other" / path.name
        if not codec:
            copy.write_bytes(path.read_bytes()[132:])
            continue
        plane = SimpleITK.ReadImage(str(path))
        image = SimpleITK.Cast(plane, SimpleITK.sitkInt16)
        for key in plane.GetMetaDataKeys():
            if "|" in key:
                image.SetMetaData(key, plane.GetMetaData(key))
        writer.UseCompressionOn()
        writer.SetCompressor(codec)
        writer.SetFileName(str(copy))
        writer.Execute(image)
    (series,) = series_in(tmp_path / "other").values()
    assert len(series.files) == 16
    np.testing.assert_array_equal(
        read_found(Found(str(tmp_path / "other"), series.uid)).voxels, ct_array()
    )
    copy.write_bytes(copy.read_bytes()[:-40])
    assert "truncated" in series_in(tmp_path / "other")["unreadable files"].reason


def test_a_multi_frame_ct_is_one_scan(tmp_path):
    array, positions = ct_array((12, 16, 18)), straight(12)
    order = np.random.default_rng(0).permutation(12)
    path = write_frames(tmp_path / "a", array[order], [positions[i] for i in order], AXIAL)
    (uid,) = series_in(tmp_path)
    assert series_in(tmp_path)[uid].files == (path.name,) * 12
    scan = read_found(Found(str(tmp_path), uid))
    np.testing.assert_array_equal(scan.voxels, array)
    assert scan.spacing == pytest.approx((2.0, 1.5, 1.5))
    assert reason(tmp_path, uid) == ""
    leaning = (1.0, 0.0, 0.0, 0.0, float(np.cos(0.2)), float(-np.sin(0.2)))
    write_frames(path, array, positions, leaning)
    assert inspect_scan(Found(str(tmp_path), uid)).note.startswith("tilted gantry (11.5 degrees)")


def test_frames_that_are_promised_and_not_described_are_not_listed(tmp_path, monkeypatch):
    """One bit a voxel, one voxel a frame: a small file promised millions, each an object."""
    meta = element(0x00020010, "UI", EXPLICIT_LITTLE_ENDIAN)
    made = []
    monkeypatch.setattr(
        dicom_slices, "_slice", lambda *args: made.append(args) or dicom_slices.Slice("a", "1")
    )
    for edge, reason in ((1, "it has 32000 frames of 1 x 1 pixels"), (16, "")):
        body = [
            element(0x00080060, "CS", "CT"),
            element(0x00280008, "IS", "32000"),
            *(unsigned_short(0x00280010, edge), unsigned_short(0x00280011, edge)),
            unsigned_short(0x00280100, 1),
            element(0x7FE00010, "OW", bytes(4000 * edge**2)),
        ]
        write_dicom(tmp_path / "a.dcm", meta, body)
        (found,) = dicom_slices.read_slices([tmp_path / "a.dcm"])
        assert found.error.startswith(reason)
        assert found.position == ()
    assert len(made) == 1


def test_frames_without_a_position_are_refused_with_their_modality(tmp_path):
    positions = straight(12)
    path = write_frames(tmp_path / "a", ct_array((12, 16, 18)), positions, AXIAL)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<HH", 0x5200, 0x9230), b"\0\x52\x31\x92"))
    (series,) = series_in(tmp_path).values()
    assert series.reason.startswith("has no ImagePositionPatient")


def test_a_compressed_icon_is_passed_over(tmp_path):
    """Its voxels, of no given length, come before those of the slice."""

    def piece(tag: int, content: bytes = b"", length: int | None = None) -> bytes:
        size = len(content) if length is None else length
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, size) + content

    item, end, undefined = 0xFFFEE000, 0xFFFEE0DD, 0xFFFFFFFF
    head = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, undefined)
    pixels = head + piece(item) + piece(item, b"\xff\xd8" + bytes(range(200))) + piece(end)
    icon = struct.pack("<HH2sHI", 0x0088, 0x0200, b"SQ", 0, undefined)
    icon += piece(item, pixels + piece(0xFFFEE00D), undefined) + piece(end)
    stored = (ct_array() + 1024).astype(np.uint16)
    for number, plane in enumerate(stored):
        path = tmp_path / f"{number}.dcm"
        write_stored_slice(path, plane, number, "-1024", "1")
        content = path.read_bytes()
        start = content.rindex(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW"))
        path.write_bytes(content[:start] + icon + content[start:])
    (series,) = series_in(tmp_path).values()
    assert series.reason == ""
    np.testing.assert_array_equal(read_found(Found(str(tmp_path), series.uid)).voxels, ct_array())


def test_a_sheared_nifti_is_read_as_nnunet_reads_it(tmp_path):
    """T6: ITK refuses them, and they were left out."""
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO

    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    affine[0, 2] = 0.3
    image = nibabel.Nifti1Image(ct_array().transpose(), affine)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    theirs, properties = NibabelIO().read_images((str(tmp_path / "a.nii.gz"),))
    scan = read_found(Found(str(tmp_path / "a.nii.gz")))
    np.testing.assert_array_equal(scan.voxels, theirs[0])
    assert scan.spacing == pytest.approx(properties["spacing"])
    assert scan.orientation == "LPS"
    line = inspect_scan(Found(str(tmp_path / "a.nii.gz")))
    assert line.kept
    assert line.note.startswith("sheared")


def test_the_order_of_axes_is_counted_and_permuted_axes_are_unified(tmp_path):
    """One scan of thick axial slices, stored as it was and as if it were sagittal: the same voxels
    and spacing.
    """
    array, raw = ct_array(), tmp_path / "raw"
    write_volume(raw / "axial.nii.gz", array, (5.0, 1.0, 1.5))
    image = SimpleITK.ReadImage(str(raw / "axial.nii.gz"))
    SimpleITK.WriteImage(SimpleITK.PermuteAxes(image, [1, 2, 0]), str(raw / "sagittal.nrrd"))
    SimpleITK.WriteImage(SimpleITK.Flip(image, [True, True, False]), str(raw / "turned.mha"))
    scans = [read_found(found) for found in find_scans([raw])]
    for scan in scans:
        np.testing.assert_allclose(scan.spacing, (5.0, 1.0, 1.5), rtol=1e-6)
    np.testing.assert_array_equal(scans[0].voxels, array)
    np.testing.assert_array_equal(scans[1].voxels, array)
    np.testing.assert_array_equal(scans[2].voxels, array[:, ::-1, ::-1])
    survey(find_scans([raw]), tmp_path / "out", 0)
    report = read_json(tmp_path / "out" / "report.json")
    assert report["orientations"] == {"LPS": 1, "PSL": 1, "RAS": 1}
    assert [row["note"] for row in report["scans"]] == ["", "axes reordered from PSL to LPS", ""]


def test_a_mixture_of_orientations_is_said_before_the_training(tmp_path):
    """U11: spacings of slices were mixed with those in their plane without a word."""
    image, said = SimpleITK.GetImageFromArray(ct_array()), []
    (tmp_path / "raw").mkdir()
    for name, flips in {"a": [False] * 3, "b": [False] * 3, "c": [True, True, False]}.items():
        SimpleITK.WriteImage(SimpleITK.Flip(image, flips), str(tmp_path / "raw" / f"{name}.nii.gz"))
    prepare(
        PrepareRequest(
            "made", tmp_path / "out", [tmp_path / "raw"], num_processes=0, print_fn=said.append
        )
    )
    assert len(said) == 1
    assert "stored in 2 orientations (directions of x, y and z): LPS 2, RAS 1." in said[0]
    assert "report.csv names that of each" in said[0]
