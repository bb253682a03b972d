"""What a collection of ten thousand or a million scans costs before the first step, and beside it.

    python -m nnssl.bench.scale [--scans 10412] [--folder FOLDER]

The collection is made: files of no bytes that are found as scans, the survey's answers (as long as
those of real CT), the notes of preprocessed scans, which are hard links to a few. No voxel is there
or read, so what is timed is what grows with the number of scans: finding, survey, plan, report,
start, the order of an epoch, places of crops, resume. The
same work for twice the scans must take twice as long; tests/test_scale.py counts it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nnssl.bench import markdown
from nnssl.data.crops import Crops, Stored
from nnssl.data.plan import Case, Plan, make_plan, resampled_shape
from nnssl.data.prepare import prepare
from nnssl.data.preprocess import BLOCK
from nnssl.data.scans import Found, find_scans
from nnssl.data.survey import HISTOGRAM, SURVEY_VERSION, survey
from nnssl.data.survey_lines import body_histograms, line_file
from nnssl.data.survey_report import ScanReport
from nnssl.train import batches, before, cache
from nnssl.train.places import results_folder
from nnssl.train.pretrain import Options, build
from nnssl.types import PREPROCESSED, RESULTS

NAME, SHAPE, SPACING = "made", (300, 512, 512), (1.5, 0.8, 0.8)
A_FOLDER = 1000  # scans
HU_VALUES = 1100  # in a histogram: an answer then has 3.9 kB, as those of real CT do
LINKS = 60_000  # of a file; ext4 allows 65,000
PLACES = 1000  # samples whose places are drawn
BATCH = 8


@dataclass(frozen=True)
class Made:
    """A collection of `scans` below `top`, and where nnU-Net's folders are."""

    top: Path
    scans: int

    @property
    def raw(self) -> Path:
        return self.top / "raw"

    @property
    def folder(self) -> Path:
        return self.top / "preprocessed" / "nnssl" / NAME


class WithoutVoxels(Stored):
    """The notes of a folder whose voxels are not there: samples say only where their crop is."""

    late = True


# -- the collection --------------------------------------------------------------------------------


def make_raw(made: Made) -> None:
    """Files that are found as scans, and an answer of the survey for each."""
    (made.folder / "survey").mkdir(parents=True)
    low, high = HISTOGRAM
    counts = np.random.default_rng(0).integers(0, 40_000, high - low + 1)
    counts[HU_VALUES:] = 0
    histogram = base64.b64encode(zlib.compress(counts.astype("<i8").tobytes(), 1)).decode()
    line = ScanReport(
        "", "", True, "", SHAPE, SPACING, (-1000.0, -900.0, 0.0, 90.0, 900.0), "", "LPS"
    )
    for number in range(made.scans):
        path = made.raw / f"{number // A_FOLDER:04d}" / f"ct_{number:07d}.nii.gz"
        if number % A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.touch()
        status = path.stat()
        answer = {
            "signature": [SURVEY_VERSION, status.st_size, status.st_mtime_ns],
            "line": asdict(replace(line, path=str(path))) | {"histogram": histogram},
        }
        line_file(Found(str(path)), made.folder).write_text(json.dumps(answer))


def make_notes(made: Made, plan: Plan) -> None:
    """Notes as of preprocessed scans, and files of no voxels: each the first of LINKS."""
    shape = resampled_shape(SHAPE, SPACING, plan.spacing)
    blocks = [-(-side // BLOCK) for side in shape]
    fractions = np.random.default_rng(0).integers(100, 256, blocks).astype(np.uint8)
    body = base64.b64encode(zlib.compress(fractions.tobytes())).decode()
    first = Path(), Path()
    for number, case in enumerate(plan.cases):
        voxels, note = (made.folder / f"{case.id}{ending}" for ending in (".b2nd", ".json"))
        if number % LINKS:
            os.link(first[0], voxels)
            os.link(first[1], note)
            continue
        first = voxels, note
        voxels.touch()
        note.write_text(json.dumps(_note(case, plan, shape, body)))


def _note(case: Case, plan: Plan, shape: tuple[int, ...], body: str) -> dict:
    return {
        "fingerprint": plan.fingerprint,
        "bytes": 0,
        "shape": list(shape),
        "spacing": list(plan.spacing),
        "source": case.source,
        "series": case.series,
        "body_block": BLOCK,
        "body": body,
    }


# -- what is done with it --------------------------------------------------------------------------


def stages(made: Made) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and call of each piece of work, in order; what is made between them is no part of it."""
    kept: dict = {}
    options = Options(
        "simmim", name=NAME, preset="tiny", crop=(32, 32), batch_size=BATCH, steps=2, workers=0,
        device="cpu", num_processes=0, cache="off",
    )  # fmt: skip

    def find() -> None:
        kept["found"] = find_scans([made.raw])

    def look() -> None:
        kept["lines"] = survey(kept.pop("found"), made.folder, 0)

    def decide() -> None:
        lines = kept.pop("lines")
        kept["plan"] = make_plan(NAME, lines, body_histograms(lines, made.folder))
        kept["plan"].save(made.folder / "plan.json")

    def run(resume: bool) -> None:
        chosen = replace(options, resume=resume)
        plan, results = kept["plan"], results_folder(chosen, kept["plan"])
        earlier = before.of(results, resume, made.folder, plan, _silent)
        kept["run"] = build(chosen, plan, made.folder, torch.device("cpu"), earlier, (), _silent)

    def order() -> None:
        crops = kept["crops"] = Crops(made.folder, kept["plan"], (32, 32, 32))
        crops.source = WithoutVoxels(made.folder)
        steps = -(-made.scans // BATCH)
        samples = (i for part in batches.MicroBatches(0, steps, BATCH, 1) for i in part)
        seen = {crops._scan(index) for index, _ in zip(samples, range(made.scans), strict=False)}
        assert len(seen) == made.scans

    def places() -> None:
        for index in range(PLACES):
            kept["crops"][index]

    yield "find the scans", find
    yield "survey, all answers known, with report", look
    yield "plan", decide
    make_notes(made, kept["plan"])
    yield "first start, with -i", lambda: prepare(NAME, made.folder, [made.raw], num_processes=0)
    yield "later start, with -i", lambda: prepare(NAME, made.folder, [made.raw], num_processes=0)
    yield "later start, --name alone", lambda: prepare(NAME, made.folder, num_processes=0)
    yield (
        "size of it all, for --cache",
        lambda: cache.least_bytes(Crops(made.folder, kept["plan"]), kept["plan"]),
    )
    yield "build the run", lambda: run(False)
    yield "save", lambda: kept["run"].save({})
    yield "resume", lambda: run(True)
    yield "order of an epoch", order
    yield f"places of {PLACES} crops", places


def _silent(_: str) -> None:
    """What a run says of itself is not wanted here."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=int, default=10412, help="default: %(default)s, SMIT's")
    parser.add_argument(
        "--folder", type=Path, help="where it is made, some 5 kB and 4 names a scan; removed again"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as top:
        made = Made(Path(top), args.scans)
        os.environ |= {PREPROCESSED: f"{top}/preprocessed", RESULTS: f"{top}/results"}
        make_raw(made)
        print(f"{args.scans} synthetic scans\n")
        print(markdown.header(("stage", "s", "CPU s", "us per scan", "peak MiB")))
        for name, work in stages(made):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            each = 1e6 * cpu / args.scans
            cells = (name, f"{wall:.2f}", f"{cpu:.2f}", f"{each:.1f}", f"{peak:.0f}")
            print(markdown.row(cells), flush=True)


if __name__ == "__main__":
    main()
