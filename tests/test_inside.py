"""No name and no link in a folder leads out of it."""

from __future__ import annotations

import json

import pytest

from nnssl.data.crops import Stored
from nnssl.data.done import is_done
from nnssl.files import inside


@pytest.fixture
def folder(tmp_path):
    """A folder beside a secret, with links to the secret and to a file of its own."""
    (tmp_path / "secret.json").write_text(json.dumps({"fingerprint": "secret"}))
    folder = tmp_path / "collection"
    folder.mkdir()
    (folder / "own.json").write_text("{}")
    (folder / "out.json").symlink_to(tmp_path / "secret.json")
    (folder / "within.json").symlink_to(folder / "own.json")
    return folder


@pytest.mark.parametrize("name", ["own.json", "absent.json", "within.json"])
def test_what_is_inside_is_given(folder, name):
    assert inside(folder, name).resolve() == (folder / name).resolve()


@pytest.mark.parametrize(
    "name", ["../secret.json", "out.json", "a/../../secret.json", "/etc", ".."]
)
def test_what_leads_out_is_refused(folder, name):
    with pytest.raises(ValueError, match="leads out of its folder"):
        inside(folder, name)


def test_a_linked_note_is_not_read(folder):
    """As a stranger's collection may have it: neither at the start of a run nor in its crops."""
    with pytest.raises(ValueError, match="leads out of its folder"):
        is_done("out", "secret", folder)
    with pytest.raises(ValueError, match="leads out of its folder"):
        Stored(folder).note("out")


def test_linked_voxels_are_not_read(folder):
    (folder / "case.b2nd").symlink_to(folder.parent / "secret.json")
    with pytest.raises(ValueError, match="leads out of its folder"):
        Stored(folder).box("case.b2nd", [0, 0, 0], [1, 1, 1], 0.0)
