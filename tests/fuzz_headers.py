"""Headers of all formats, and checkpoints, with random damage: every one is read, twice alike, or
refused, within limits of memory and time, and no file outside of its folder is read.

    python tests/fuzz_headers.py --cases 10000 --seed 1

One process; where it dies, the last number it printed is the case. The same seed makes the same
files.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import fuzz_checkpoints
import numpy as np
from synthetic_dicom import write_frames
from synthetic_scans import AXIAL, ct_array, straight, write_series, write_volume

from nnssl.data.dicom import series_in
from nnssl.data.refusals import PassingError, UnusableScanError
from nnssl.data.scans import Found, read_found
from nnssl.data.survey import inspect_scan

SHAPE = (9, 11, 13)
HEADER = {
    ".nii": 352,
    ".nii.gz": 200,
    ".nrrd": 400,
    ".nhdr": 400,
    ".mha": 400,
    ".mhd": 400,
    "dicom": 900,
    "frames": 1200,
    "checkpoint": 1 << 30,
    "checkpoint header": 0,
}
BESIDE = (".nhdr", ".mhd")  # their voxels are in a file beside them
OUTSIDE = 0.1  # of those, how many name one that is elsewhere
MEMORY = 400 << 20  # bytes above what the imports take
SLOWEST = 20.0  # seconds for one case, on a busy machine
NUMBERS = [
    b"-1",
    b"0",
    b"2147483647",
    b"4294967296",
    b"1e308",
    b"nan",
    b"%s",
    b"99999999999999999999",
    b"1.5",
    b"",
]


def write(folder: Path, kind: str) -> Path:
    """A whole scan; returns the file whose header is to be damaged."""
    if kind.startswith("checkpoint"):
        return fuzz_checkpoints.write(folder)
    array = ct_array(SHAPE)
    if kind == "dicom":
        write_series(folder, array, straight(len(array)))
        return folder / "slice_004.dcm"
    if kind == "frames":
        return write_frames(folder / "a.dcm", array, straight(len(array)), AXIAL)
    return write_volume(folder / f"a{kind}", array)


def damage(content: bytes, length: int, rng: np.random.Generator) -> bytes:
    """Bits, bytes, numbers or the length changed, within the first `length` bytes."""
    out = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        offset = int(rng.integers(0, min(length, len(out))))
        way = rng.integers(0, 5)
        if way == 0:
            out[offset] ^= 1 << int(rng.integers(0, 8))
        elif way == 1:
            out[offset : offset + 4] = rng.bytes(4)
        elif way == 2:
            out[offset : offset + 2] = NUMBERS[rng.integers(0, len(NUMBERS))]
        elif way == 3:
            out[offset : offset + 4] = [
                b"\xff\xff\xff\xff",
                b"\0\0\0\0",
                b"\0\0\0\x80",
                b"\xff\x7f",
            ][rng.integers(0, 4)]
        else:
            del out[offset : offset + int(rng.integers(1, 9))]
        out = out or bytearray(b"\0")
    return bytes(out if rng.random() < 0.9 else out[: int(rng.integers(0, len(out)))])


def attempt(found: Found) -> str:
    line = inspect_scan(found)
    if not line.kept:
        return "refused"
    first, second = read_found(found), read_found(found)
    if not np.array_equal(first.voxels, second.voxels):
        raise AssertionError("two reads differ: voxels of memory that was never written")
    return "kept"


def kind_of(number: int) -> str:
    return list(HEADER)[number % len(HEADER)]


def lead_out(path: Path, elsewhere: Path, rng: np.random.Generator) -> None:
    """The header names the voxels of another folder, where they are."""
    (name,) = (one.name for one in path.parent.iterdir() if one != path)
    ways = [f"../{elsewhere.name}/{name}", f"{elsewhere}/{name}", f"./../{elsewhere.name}/{name}"]
    way = ways[rng.integers(0, len(ways))]
    path.write_bytes(path.read_bytes().replace(name.encode(), way.encode()))


def case(number: int, seed: int, top: Path, whole: dict[str, Path]) -> str:
    rng = np.random.default_rng((seed, number))
    kind = kind_of(number)
    folder = top / "case"
    shutil.copytree(whole[kind].parent, folder)
    path = folder / whole[kind].name
    outside = kind in BESIDE and rng.random() < OUTSIDE
    if outside:
        lead_out(path, whole[kind].parent, rng)
    elif kind == "checkpoint header":
        fuzz_checkpoints.damage_header(path, rng)
    else:
        path.write_bytes(damage(path.read_bytes(), HEADER[kind], rng))
    try:
        if kind.startswith("checkpoint"):
            return fuzz_checkpoints.attempt(path)
        if outside and attempt(Found(str(path))) == "kept":
            raise AssertionError("voxels of a file outside of the header's folder were read")
        if kind not in ("dicom", "frames"):
            return attempt(Found(str(path)))
        return (
            ", ".join(sorted({attempt(Found(str(folder), uid)) for uid in series_in(folder)}))
            or "nothing"
        )
    except (UnusableScanError, PassingError) as error:
        return type(error).__name__
    finally:
        shutil.rmtree(folder)


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first case, to look at one again"
    )
    options = parser.parse_args()
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        whole = {kind: write(top / f"{number}", kind) for number, kind in enumerate(HEADER)}
        for kind, path in whole.items():  # so that everything is loaded
            if kind.startswith("checkpoint"):
                outcomes = [fuzz_checkpoints.attempt(path)]
            else:
                outcomes = [
                    attempt(Found(str(path.parent), uid)) for uid in series_in(path.parent)
                ] or [attempt(Found(str(path)))]
            if outcomes != ["kept"]:
                raise AssertionError(f"the undamaged {path} is {outcomes}")
        if sys.platform == "linux":
            limit_memory()
        for number in range(options.first, options.first + options.cases):
            print(number, end="\r", file=sys.stderr, flush=True)
            start = time.process_time()
            outcome = case(number, options.seed, top, whole)
            if time.process_time() - start > SLOWEST:
                raise AssertionError(f"case {number} took {time.process_time() - start:.0f} s")
            kind = "checkpoint" if kind_of(number).startswith("checkpoint") else "scan"
            counts[f"{kind} {outcome}"] = counts.get(f"{kind} {outcome}", 0) + 1
    print({name: counts[name] for name in sorted(counts)})


if __name__ == "__main__":
    main()
