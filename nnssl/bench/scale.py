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
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, product
from pathlib import Path

import numpy as np
import torch

from nnssl.bench import markdown
from nnssl.bench.command_line import parser_of
from nnssl.data.crops import Crops, Stored
from nnssl.data.packing import pack
from nnssl.data.plan import Case, Plan, make_plan, resampled_shape
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.data.preprocess import BLOCK
from nnssl.data.scans import Found, find_scans
from nnssl.data.survey import HISTOGRAM, SURVEY_VERSION, survey
from nnssl.data.survey_lines import body_histograms, line_file, pack_histogram
from nnssl.data.survey_report import ScanReport
from nnssl.shapes import ceil_div
from nnssl.train import batches, cache, earlier_run
from nnssl.train.places import results_folder
from nnssl.train.pretrain import Options, build_run
from nnssl.train.run import Run
from nnssl.types import PREPROCESSED, RESULTS

NAME, SHAPE, SPACING = "made", (300, 512, 512), (1.5, 0.8, 0.8)
A_FOLDER = 1000  # scans
HU_VALUES = 1100  # in a histogram: an answer then has 3.9 kB, as those of real CT do
LINKS = 60_000  # of a file; ext4 allows 65,000
PLACES = 1000  # samples whose places are drawn
BATCH = 8


@dataclass(frozen=True)
class SyntheticCollection:
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


def make_raw(collection: SyntheticCollection) -> None:
    """Files that are found as scans, and an answer of the survey for each."""
    (collection.folder / "survey").mkdir(parents=True)
    histogram = _histogram()
    for number in range(collection.scans):
        path = collection.raw / f"{number // A_FOLDER:04d}" / f"ct_{number:07d}.nii.gz"
        if number % A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.touch()
        answer = json.dumps(_answer(path, histogram))
        line_file(Found(str(path)), collection.folder).write_text(answer)


def _histogram() -> str:
    """The histogram of a body, as the survey keeps it."""
    low, high = HISTOGRAM
    counts = np.random.default_rng(0).integers(0, 40_000, high - low + 1)
    counts[HU_VALUES:] = 0
    return pack_histogram(counts)


def _answer(path: Path, histogram: str) -> dict:
    """What the survey keeps of a scan."""
    status = path.stat()
    percentiles = (-1000.0, -900.0, 0.0, 90.0, 900.0)
    line = ScanReport(str(path), "", True, "", SHAPE, SPACING, percentiles, histogram, "LPS")
    signature = [SURVEY_VERSION, status.st_size, status.st_mtime_ns]
    return {"signature": signature, "line": line.without("state")}


def make_notes(collection: SyntheticCollection, plan: Plan) -> None:
    """Notes as of preprocessed scans, and files of no voxels: each the first of LINKS."""
    shape = resampled_shape(SHAPE, SPACING, plan.spacing)
    blocks = ceil_div(shape, [BLOCK] * len(shape))
    body = pack(np.random.default_rng(0).integers(100, 256, blocks).astype(np.uint8))
    for first in range(0, len(plan.cases), LINKS):
        case, *others = plan.cases[first : first + LINKS]
        (collection.folder / f"{case.id}.b2nd").touch()
        (collection.folder / f"{case.id}.json").write_text(
            json.dumps(_case_note(case, plan, shape, body))
        )
        _link(collection.folder, case, others)


def _link(folder: Path, first: Case, others: list[Case]) -> None:
    """Give the others the files of the first."""
    for case, ending in product(others, (".b2nd", ".json")):
        os.link(folder / f"{first.id}{ending}", folder / f"{case.id}{ending}")


def _case_note(case: Case, plan: Plan, shape: tuple[int, ...], body: str) -> dict:
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


def stages(collection: SyntheticCollection) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and call of each piece of work, in order; what is made between them is no part of it."""
    work = ScaleWork(collection)
    yield "find the scans", work.find
    yield "survey, all answers known, with report", work.survey
    yield "plan", work.decide
    make_notes(collection, work.plan)
    bare = PrepareRequest(NAME, collection.folder, num_processes=0)
    with_sources = replace(bare, sources=[collection.raw])
    yield "first start, with -i", partial(prepare, with_sources)
    yield "later start, with -i", partial(prepare, with_sources)
    yield "later start, --name alone", partial(prepare, bare)
    yield "size of it all, for --cache", work.least_bytes
    yield "build the run", partial(work.build, resume=False)
    yield "save", work.save
    yield "resume", partial(work.build, resume=True)
    yield "order of an epoch", work.order
    yield f"places of {PLACES} crops", work.places


class ScaleWork:
    """The pieces of work on a collection; what one leaves, later ones take."""

    found: list[Found]
    lines: list[ScanReport]
    plan: Plan
    run: Run
    crops: Crops

    def __init__(self, collection: SyntheticCollection) -> None:
        self.collection = collection
        self.options = Options(
            "simmim", name=NAME, preset="tiny", crop=(32, 32), batch_size=BATCH, steps=2,
            workers=0, device="cpu", num_processes=0, cache="off",
        )  # fmt: skip

    def find(self) -> None:
        self.found = find_scans([self.collection.raw])

    def survey(self) -> None:
        self.lines = survey(self.found, self.collection.folder, 0)
        del self.found

    def decide(self) -> None:
        self.plan = make_plan(NAME, self.lines, body_histograms(self.lines, self.collection.folder))
        self.plan.save(self.collection.folder / "plan.json")
        del self.lines

    def least_bytes(self) -> int:
        return cache.least_bytes(Crops(self.collection.folder, self.plan), self.plan)

    def build(self, resume: bool) -> None:
        chosen, folder = replace(self.options, resume=resume), self.collection.folder
        results = results_folder(chosen, self.plan.name)
        earlier = earlier_run.read_earlier_run(results, chosen, folder, self.plan, _silent)
        device = torch.device("cpu")
        self.run = build_run(chosen, self.plan, folder, device, earlier, (), _silent)

    def save(self) -> None:
        self.run.save({})

    def order(self) -> None:
        crops = self.crops = Crops(self.collection.folder, self.plan, (32, 32, 32))
        crops.source = WithoutVoxels(self.collection.folder)
        drawn = set(map(crops._scan, _epoch(self.collection.scans)))
        assert len(drawn) == self.collection.scans

    def places(self) -> None:
        for index in range(PLACES):
            self.crops[index]


def _epoch(scans: int) -> Iterator[int]:
    """The samples of the first steps, one for each scan."""
    steps = -(-scans // BATCH)
    samples = chain.from_iterable(batches.MicroBatches(0, steps, BATCH, 1))
    return islice(samples, scans)


def _silent(_: str) -> None:
    """What a run says of itself is not wanted here."""


def parse_collection_options(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--scans", type=int, default=10412, help="default: %(default)s, SMIT's")
    parser.add_argument(
        "--folder", type=Path, help="where it is made, some 5 kB and 4 names a scan; removed again"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_collection_options(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as top:
        collection = SyntheticCollection(Path(top), args.scans)
        os.environ |= {PREPROCESSED: f"{top}/preprocessed", RESULTS: f"{top}/results"}
        make_raw(collection)
        print(f"{args.scans} synthetic scans\n")
        print(markdown.header(("stage", "s", "CPU s", "us per scan", "peak MiB")))
        for name, work in stages(collection):
            print(markdown.row([name, *_costs(work, args.scans)]), flush=True)


def _costs(work: Callable[[], object], scans: int) -> list[str]:
    """The cells of a piece of work: its seconds, CPU time per scan, and the peak so far."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [f"{wall:.2f}", f"{cpu:.2f}", f"{1e6 * cpu / scans:.1f}", f"{peak:.0f}"]


if __name__ == "__main__":
    main()
