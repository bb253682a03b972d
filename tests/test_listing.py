"""The table of the methods: its costs are those that are counted."""

from __future__ import annotations

import pytest

from nnssl.bench import listing
from nnssl.methods import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_method_has_a_cost():
    assert set(listing.COSTS) == set(METHODS), "count them: python -m nnssl.bench.listing"


@pytest.fixture(scope="module")
def unit() -> int:
    return listing.operations(METHODS[listing.UNIT])


@pytest.mark.parametrize("name", listing.COSTS)
def test_the_costs_are_counted(name, unit):
    assert listing.operations(METHODS[name]) / unit == pytest.approx(
        listing.COSTS[name], rel=0.01, abs=0.006
    )


def test_the_cost_of_parcels_is_counted(unit):
    counted = listing.operations(METHODS["smit"], "w_parcels=1") / unit
    assert counted == pytest.approx(listing.SMIT_WITH_PARCELS, rel=0.01)
    assert "smit has 6.4 where it learns from parcels too" in listing.method_table()


def test_long_cells_go_on_in_the_next_line():
    text = listing.method_table({"smit": METHODS["smit"]})
    assert " ".join(text.split()).count("MICCAI 2022") == 1
    lines = text.splitlines()
    assert lines[2].startswith("smit ")
    assert lines[3].startswith("    ")
    assert max(map(len, lines)) <= sum(listing.COLUMNS.values()) + 2 * (len(listing.COLUMNS) - 1)
