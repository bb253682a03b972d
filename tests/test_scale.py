"""What grows with a collection grows in proportion: counted, not timed."""

from __future__ import annotations

import base64
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nnssl.bench import scale
from nnssl.data import plan as plan_module
from nnssl.data.crops import Crops
from nnssl.data.done import INDEX, Done
from nnssl.files import read_json, write_json
from nnssl.train.run import Run
from nnssl.types import PREPROCESSED, RESULTS

FEW, MANY = 600, 1200
OPENED: list[int] = []  # where to count; an audit hook stays for good


class Id(str):
    """A case's id, whose every comparison and look-up is a call that is counted."""

    def __hash__(self) -> int:
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


def _hook(event: str, _: tuple) -> None:
    if event == "open" and OPENED:
        OPENED[-1] += 1


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Calls of Python and of C, and files opened, while the block lasts."""
    count: Counter[str] = Counter()

    def count_event(_: object, event: str, __: object) -> None:
        if event in ("call", "c_call"):
            count["calls"] += 1

    OPENED.append(0)
    sys.setprofile(count_event)
    try:
        yield count
    finally:
        sys.setprofile(None)
        count["files opened"] = OPENED.pop()


def plainly(save: Callable) -> Callable:
    """`save` without our kind of ids, which a checkpoint cannot hold."""

    def saved(run: Run, metrics: dict) -> None:
        run.cases = [str(case) for case in run.cases]
        save(run, metrics)

    return saved


@pytest.fixture(scope="module")
def counts(tmp_path_factory) -> dict[int, dict[str, Counter]]:
    """What each stage of the bench does for FEW and for MANY scans."""
    sys.addaudithook(_hook)
    found: dict[int, dict[str, Counter]] = {}
    for scans in (FEW, MANY):
        collection = scale.SyntheticCollection(tmp_path_factory.mktemp("made"), scans)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(PREPROCESSED, str(collection.top / "preprocessed"))
            patch.setenv(RESULTS, str(collection.top / "results"))
            name = plan_module.case_id
            patch.setattr(
                plan_module, "case_id", lambda *arguments, name=name: Id(name(*arguments))
            )
            patch.setattr(Run, "save", plainly(Run.save))
            scale.make_raw(collection)
            found[scans] = {}
            for stage, work in scale.stages(collection):
                with counted() as count:
                    work()
                found[scans][stage] = count
    return found


def test_twice_the_scans_are_twice_the_work(counts):
    assert len(counts[MANY]) == 12
    for stage, many in counts[MANY].items():
        few = counts[FEW][stage]
        for what in ("calls", "files opened"):
            assert many[what] <= 2.1 * few[what] + 50, (stage, what, few[what], many[what])


def test_a_start_opens_no_file_for_each_scan(counts):
    """The survey's answers are read where a plan is made of them, and there once."""
    opened = {stage: count["files opened"] for stage, count in counts[MANY].items()}
    assert MANY <= opened["survey, all answers known, with report"] < 1.1 * MANY
    for stage in (
        "later start, with -i",
        "later start, --name alone",
        "size of it all, for --cache",
        "build the run",
        "resume",
    ):
        assert opened[stage] < 0.1 * MANY, stage
    assert opened["order of an epoch"] == 0


def test_the_check_would_notice():
    """That the listing of what failed was once made again for each case of the plan."""
    calls = []
    for scans in (100, 200):
        ids = [Id(number) for number in range(scans)]
        with counted() as count:
            sum(name not in set(ids) for name in ids)
        calls.append(count["calls"])
    assert calls[1] > 3.5 * calls[0]


# -- the index -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    for case in ("a", "b"):
        (tmp_path / f"{case}.b2nd").write_bytes(b"12345")
        body = base64.b64encode(zlib.compress(bytes(1))).decode()
        note = {"fingerprint": "f", "bytes": 5, "spacing": [1, 1, 1], "shape": [16, 16, 16]}
        write_json(tmp_path / f"{case}.json", {**note, "body": body, "body_block": 16})
    Done(tmp_path, "f").keep(["a", "b"])
    return tmp_path


def test_what_the_index_knows_is_looked_at_by_size_and_name(folder):
    size = (folder / "a.json").stat().st_size
    known = {"a": [5, size], "b": [5, size]}
    assert read_json(folder / INDEX) == {"fingerprint": "f", "bytes": known}
    with counted() as count:
        done = Done(folder, "f")
        assert "a" in done
        assert "b" in done
    assert count["files opened"] == 1
    (folder / "a.b2nd").write_bytes(b"123")
    (folder / "b.json").write_text("{}")
    done = Done(folder, "f")
    assert "a" not in done
    assert "b" not in done
    assert "c" not in done


@pytest.mark.parametrize("spoilt", ["", "[]", '{"fingerprint": "g", "bytes": {"a": 5}}'])
def test_an_index_of_another_plan_or_a_damaged_one_is_made_anew(folder, spoilt):
    (folder / INDEX).write_text(spoilt)
    done = Done(folder, "f")
    assert "a" in done
    done.keep(["a", "b"])
    assert set(read_json(folder / INDEX)["bytes"]) == {"a", "b"}
    with pytest.raises(ValueError, match="files of two plans are never mixed"):
        _ = "a" in Done(folder, "g")


def test_scans_that_failed_are_no_longer_looked_for_one_by_one(folder):
    """See the first test: this is the case that its collection does not have."""
    case = plan_module.Case("a", "/a", "", (9, 9, 9), (1, 1, 1))
    lost = plan_module.Case("lost", "/lost", "", (9, 9, 9), (1, 1, 1))
    plan = plan_module.Plan("made", (1, 1, 1), None, (16, 16, 16), (case, lost))
    with pytest.raises(ValueError, match="1 of the 2 cases"):
        Crops(folder, plan)
    write_json(folder / "lost.failed.json", {})
    assert Crops(folder, plan).cases == ("a",)
